//! The JSON of a request.
//!
//! No more is made of a body than a request may hold: reading stops at the first text too many, and what nobody asked
//! for is passed over without being kept.

use std::cell::Cell;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::Pooling;
use crate::error::{EmbedError, shorten};
use crate::http::error::RequestError;
use crate::manager::{EmbedRequest, Prompt, TruncationDirection};

/// Levels of arrays and objects that a body may have.
const DEEPEST_NESTING: usize = 128;
const UTF_8_MARK: &[u8] = b"\xef\xbb\xbf";

#[derive(Deserialize, Clone, Copy)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Key {
    Texts,
    Model,
    PromptName,
    Instruction,
    Pooling,
    Dimensions,
    Normalize,
    Truncate,
    TruncationDirection,
    #[serde(other)]
    Unknown,
}

/// The keys of a request, each with its value if it was there; the value may be null.
#[derive(Default)]
struct EmbedBody {
    texts: Option<Vec<String>>,
    model: Option<Option<String>>,
    prompt_name: Option<Option<String>>,
    instruction: Option<Option<String>>,
    pooling: Option<Option<Pooling>>,
    dimensions: Option<Option<serde_json::Number>>,
    normalize: Option<Option<bool>>,
    truncate: Option<Option<bool>>,
    truncation_direction: Option<Option<TruncationDirection>>,
}

/// Reads an [`EmbedBody`] with at most this many texts, and notes what a parser's error does not say.
struct Reader {
    most_texts: usize,
    /// The text being read.
    text: Cell<Option<usize>>,
    has_too_many: Cell<bool>,
}

impl<'de> DeserializeSeed<'de> for &Reader {
    type Value = EmbedBody;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<EmbedBody, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for &Reader {
    type Value = EmbedBody;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<EmbedBody, A::Error> {
        let mut body = EmbedBody::default();
        while let Some(key) = map.next_key()? {
            match key {
                Key::Texts if body.texts.is_some() => return Err(A::Error::duplicate_field("texts")),
                Key::Texts => body.texts = Some(map.next_value_seed(Texts(self))?),
                Key::Model => read_once(&mut map, "model", &mut body.model)?,
                Key::PromptName => read_once(&mut map, "prompt_name", &mut body.prompt_name)?,
                Key::Instruction => read_once(&mut map, "instruction", &mut body.instruction)?,
                Key::Pooling => read_once(&mut map, "pooling", &mut body.pooling)?,
                Key::Dimensions => read_once(&mut map, "dimensions", &mut body.dimensions)?,
                Key::Normalize => read_once(&mut map, "normalize", &mut body.normalize)?,
                Key::Truncate => read_once(&mut map, "truncate", &mut body.truncate)?,
                Key::TruncationDirection => {
                    read_once(&mut map, "truncation_direction", &mut body.truncation_direction)?;
                }
                Key::Unknown => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(body)
    }
}

fn read_once<'de, A: MapAccess<'de>, T: Deserialize<'de>>(
    map: &mut A,
    name: &'static str,
    slot: &mut Option<T>,
) -> Result<(), A::Error> {
    if slot.is_some() {
        return Err(A::Error::duplicate_field(name));
    }
    *slot = Some(map.next_value()?);
    Ok(())
}

/// Reads the list of texts.
struct Texts<'a>(&'a Reader);

impl<'de> DeserializeSeed<'de> for Texts<'_> {
    type Value = Vec<String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<String>, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Texts<'_> {
    type Value = Vec<String>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of strings")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<String>, A::Error> {
        let Reader { most_texts, text, has_too_many } = self.0;
        let mut texts = Vec::new();
        while texts.len() < *most_texts {
            text.set(Some(texts.len()));
            match list.next_element()? {
                Some(next) => texts.push(next),
                None => {
                    text.set(None);
                    return Ok(texts);
                }
            }
        }
        text.set(None);
        if list.next_element::<IgnoredAny>()?.is_some() {
            has_too_many.set(true);
            return Err(Error::custom("too many texts"));
        }
        Ok(texts)
    }
}

/// Reads the request's JSON, as long as it has at most this many texts.
pub(crate) fn parse(body: &[u8], most_texts: usize) -> Result<EmbedRequest, RequestError> {
    if let Some(encoding) = foreign_encoding(body) {
        return Err(RequestError::InvalidJson(format!("it is encoded as {encoding}, send it as UTF-8")));
    }
    let body = body.strip_prefix(UTF_8_MARK).unwrap_or(body);
    // The parser would say "a sequence".
    if body.trim_ascii_start().first() == Some(&b'[') {
        return Err(refusal(body, "an array, expected an object"));
    }
    let reader = Reader { most_texts, text: Cell::new(None), has_too_many: Cell::new(false) };
    let mut parser = serde_json::Deserializer::from_slice(body);
    let parsed = reader.deserialize(&mut parser).and_then(|parsed| parser.end().map(|()| parsed));
    let body = parsed.map_err(|error| {
        if reader.has_too_many.get() {
            return EmbedError::TooManyTexts { limit: most_texts }.into();
        }
        let reason = match reader.text.get() {
            Some(index) => format!("text {index}: {error}"),
            None => error.to_string(),
        };
        match error.classify() {
            serde_json::error::Category::Data => refusal(body, &reason),
            _ => RequestError::InvalidJson(shorten(&reason)),
        }
    })?;
    request(body)
}

/// Gives what was read its meaning.
fn request(body: EmbedBody) -> Result<EmbedRequest, RequestError> {
    let missing = || RequestError::InvalidRequest("missing field `texts`".to_owned());
    Ok(EmbedRequest {
        model: body.model.flatten(),
        prompt: prompt(body.prompt_name.flatten(), body.instruction.flatten())?,
        pooling: body.pooling.flatten(),
        dimensions: body.dimensions.flatten().as_ref().map(dimensions).transpose()?,
        normalize: body.normalize.flatten(),
        truncate: body.truncate.flatten().unwrap_or(true),
        truncation_direction: body.truncation_direction.flatten(),
        ..EmbedRequest::new(body.texts.ok_or_else(missing)?)
    })
}

fn prompt(name: Option<String>, instruction: Option<String>) -> Result<Prompt, RequestError> {
    match (name, instruction) {
        (None, None) => Ok(Prompt::Default),
        (Some(name), None) => Ok(Prompt::Named(name)),
        (None, Some(task)) => Ok(Prompt::Instruction(task)),
        (Some(_), Some(_)) => {
            let reason = "`prompt_name` and `instruction` exclude each other, send only one of them";
            Err(RequestError::InvalidRequest(reason.to_owned()))
        }
    }
}

/// Converts the JSON number to a count, if it is one.
fn dimensions(number: &serde_json::Number) -> Result<usize, RequestError> {
    let whole = number.as_u64().and_then(|whole| usize::try_from(whole).ok());
    whole.ok_or_else(|| RequestError::InvalidDimensions(shorten(&number.to_string())))
}

/// The encoding of a body that is not in UTF-8, by its byte order mark or by the zero bytes next to its first character.
fn foreign_encoding(body: &[u8]) -> Option<&'static str> {
    match body {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => Some("UTF-32"),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some("UTF-16"),
        [0, 0, 0, _, ..] | [_, 0, 0, 0, ..] => Some("UTF-32"),
        [0, _, ..] | [_, 0, ..] => Some("UTF-16"),
        _ => None,
    }
}

/// For a body that does not have the form of a request: tells what is no JSON at all, or nested deeper than anybody
/// reads, from JSON of another form.
fn refusal(body: &[u8], wrong_form: &str) -> RequestError {
    match serde_json::from_slice::<IgnoredAny>(body) {
        Err(error) => RequestError::InvalidJson(shorten(&error.to_string())),
        Ok(_) if nesting(body) > DEEPEST_NESTING => {
            RequestError::InvalidJson(format!("it is nested deeper than {DEEPEST_NESTING} levels"))
        }
        Ok(_) => RequestError::InvalidRequest(shorten(wrong_form)),
    }
}

/// How deep valid JSON is nested.
fn nesting(json: &[u8]) -> usize {
    let (mut depth, mut deepest, mut is_in_string, mut is_escaped) = (0_usize, 0, false, false);
    for byte in json {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => is_in_string = !is_in_string,
            b'[' | b'{' if !is_in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !is_in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(body: &str) -> &'static str {
        match parse(body.as_bytes(), 2048) {
            Ok(_) => "ok",
            Err(RequestError::InvalidJson(_)) => "invalid_json",
            Err(RequestError::InvalidRequest(_)) => "invalid_request",
            Err(_) => "other",
        }
    }

    #[test]
    fn defaults_are_the_models_own() {
        let nulls = r#"{"texts":["a"],"model":null,"prompt_name":null,"instruction":null,"pooling":null,"dimensions":null,
            "normalize":null,"truncate":null,"truncation_direction":null}"#;
        for body in [r#"{"texts":["a"],"unknown":{"key":1}}"#, nulls] {
            assert_eq!(parse(body.as_bytes(), 2048).unwrap(), EmbedRequest::new(vec!["a".to_owned()]));
        }
    }

    #[test]
    fn every_choice_is_understood() {
        let request =
            |choice: &str| parse(format!(r#"{{"texts":["a"],{choice}}}"#).as_bytes(), 2048).unwrap();
        assert_eq!(request(r#""prompt_name":"query""#).prompt, Prompt::Named("query".to_owned()));
        assert_eq!(request(r#""instruction":"Rank""#).prompt, Prompt::Instruction("Rank".to_owned()));
        assert_eq!(request(r#""dimensions":256"#).dimensions, Some(256));
        assert_eq!(request(r#""normalize":false"#).normalize, Some(false));
        for (word, direction) in [
            ("left", TruncationDirection::Left),
            ("Left", TruncationDirection::Left),
            ("Right", TruncationDirection::Right),
        ] {
            let choice = format!(r#""truncation_direction":"{word}""#);
            assert_eq!(request(&choice).truncation_direction, Some(direction), "{word}");
        }
    }

    #[test]
    fn dimensions_that_are_no_count_are_named() {
        for number in ["-1", "64.5", "64.0", "1e3", "18446744073709551616", "-1e300"] {
            let body = format!(r#"{{"texts":["a"],"dimensions":{number}}}"#);
            let error = parse(body.as_bytes(), 2048).unwrap_err();
            assert!(matches!(error, RequestError::InvalidDimensions(_)), "{number}: {error}");
        }
        assert_eq!(code(r#"{"texts":["a"],"dimensions":1e999}"#), "invalid_json");
    }

    #[test]
    fn what_is_not_json_differs_from_what_has_the_wrong_form() {
        for body in ["", "{", "nonsense", r#"{"texts":["\ud800"]}"#, r#"{"texts":[NaN]}"#] {
            assert_eq!(code(body), "invalid_json", "{body}");
        }
        for body in [
            "{}",
            "[]",
            r#"{"texts":"a"}"#,
            r#"{"texts":[1]}"#,
            r#"{"texts":["a"],"pooling":"max"}"#,
            r#"{"texts":["a"],"dimensions":"64"}"#,
            r#"{"texts":["a"],"dimensions":true}"#,
            r#"{"texts":["a"],"prompt_name":1}"#,
            r#"{"texts":["a"],"instruction":["x"]}"#,
            r#"{"texts":["a"],"prompt_name":"query","instruction":"Rank"}"#,
            r#"{"texts":["a"],"truncation_direction":"middle"}"#,
        ] {
            assert_eq!(code(body), "invalid_request", "{body}");
        }
        let deep = |levels: usize| format!("{{\"texts\":{}{}}}", "[".repeat(levels), "]".repeat(levels));
        assert_eq!(code(&deep(100)), "invalid_request");
        assert_eq!(code(&deep(100_000)), "invalid_json");
        assert_eq!(code(&deep(100_000)[..100_000]), "invalid_json");
        assert_eq!(code(&"[".repeat(100_000)), "invalid_json");
        assert_eq!(code(r#"{"texts":[1,"[[[\"{"]}"#), "invalid_request");
        assert_eq!(code(&format!("{{\"x\":{}", "[".repeat(100_000))), "invalid_json");
    }

    #[test]
    fn a_long_complaint_is_cut() {
        let body = format!(r#"{{"texts":["a"],"pooling":"{}"}}"#, "\u{e9}".repeat(10_000));
        let Err(RequestError::InvalidRequest(text)) = parse(body.as_bytes(), 2048) else {
            panic!("accepted")
        };
        assert!(text.len() < 310);
    }

    #[test]
    fn reading_stops_at_the_first_text_too_many() {
        let texts = |count: usize| format!(r#"{{"texts":[{}]}}"#, vec![r#""a""#; count].join(","));
        assert_eq!(parse(texts(3).as_bytes(), 3).unwrap().texts.len(), 3);
        // What follows is no JSON, and nobody has looked at it.
        let too_many = format!("{}]]]", &texts(4)[..texts(4).len() - 2]);
        let error = parse(too_many.as_bytes(), 3).unwrap_err();
        assert!(matches!(error, RequestError::Embed(EmbedError::TooManyTexts { limit: 3 })), "{error}");
        assert_eq!(code(r#"{"texts":["a"],"texts":["b"]}"#), "invalid_request");
        assert_eq!(code(r#"{"texts":["a"],"model":null,"model":"b"}"#), "invalid_request");
        assert_eq!(code(r#"{"texts":["a"]} x"#), "invalid_json");
    }

    #[test]
    fn what_is_wrong_with_a_text_is_said_with_its_index() {
        for (element, part) in [
            (r#""\ud800""#, "hex escape"),
            (r#""\udc00""#, "hex escape"),
            (r#""\ud800\u0041""#, "hex escape"),
            (r#""\x""#, "escape"),
            ("\"\n\"", "control character"),
            ("NaN", "expected value"),
            ("1", "integer `1`"),
            ("null", "null"),
            ("[]", "sequence"),
        ] {
            let body = format!(r#"{{"model":"m","texts":["a","b",{element},"c"],"pooling":"cls"}}"#);
            let error = parse(body.as_bytes(), 2048).unwrap_err().to_string();
            assert!(error.contains("text 2: ") && error.contains(part), "{element}: {error}");
        }
        let error = parse(br#"{"texts":["a"],"model":"\ud800"}"#, 2048).unwrap_err().to_string();
        assert!(!error.contains("text "), "{error}");
        let error = parse(b"{\"texts\":[\"a\",\"\xff\"]}", 2048).unwrap_err().to_string();
        assert!(error.contains("text 1: "), "{error}");
    }

    #[test]
    fn a_byte_order_mark_of_utf_8_is_skipped_and_other_encodings_are_named() {
        let body = r#"{"texts":["a"]}"#;
        assert!(parse(format!("\u{feff}{body}").as_bytes(), 2048).is_ok());
        assert!(parse(format!("\u{feff}\u{feff}{body}").as_bytes(), 2048).is_err());
        assert!(parse("\u{feff}".as_bytes(), 2048).is_err());
        let wide =
            |bytes: fn(u32) -> Vec<u8>| body.chars().flat_map(|c| bytes(u32::from(c))).collect::<Vec<u8>>();
        for (name, mark, encoded) in [
            ("UTF-16", &b"\xff\xfe"[..], wide(|c| u16::try_from(c).unwrap().to_le_bytes().to_vec())),
            ("UTF-16", b"\xfe\xff", wide(|c| u16::try_from(c).unwrap().to_be_bytes().to_vec())),
            ("UTF-32", b"\xff\xfe\0\0", wide(|c| c.to_le_bytes().to_vec())),
            ("UTF-32", b"\0\0\xfe\xff", wide(|c| c.to_be_bytes().to_vec())),
        ] {
            for body in [encoded.clone(), [mark, &encoded].concat()] {
                let error = parse(&body, 2048).unwrap_err();
                assert!(
                    matches!(error, RequestError::InvalidJson(_)) && error.to_string().contains(name),
                    "{error}"
                );
            }
        }
    }
}
