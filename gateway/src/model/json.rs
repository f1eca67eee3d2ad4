//! JSON as Python's `json` module reads it, with which the files of models are written.
//!
//! It writes and reads what `serde_json` refuses: `NaN`, `Infinity` and `-Infinity`, numbers beyond the range of a double, half of
//! a surrogate pair, and a key that an object has twice, of which the last one counts.

use serde::de::DeserializeOwned;
use serde_json::Value;

/// Names that Python gives to numbers which JSON does not have.
const NAMES: [&[u8]; 3] = [b"NaN", b"Infinity", b"-Infinity"];
const NULL: &[u8] = b"null";
/// What stands for half of a surrogate pair, as long as its escape sequence.
const REPLACEMENT: &[u8] = br"\uFFFD";
/// Bytes of `\uXXXX`.
const ESCAPE_BYTES: usize = 6;

/// Reads a file's content. A number that is not finite is read as `null`.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> serde_json::Result<T> {
    let value: Value = serde_json::from_slice(&without_python(bytes))?;
    serde_json::from_value(value)
}

/// The same JSON, without what only Python knows.
fn without_python(bytes: &[u8]) -> Vec<u8> {
    let mut standard = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(first) = rest.first() {
        let (length, written) = match first {
            b'"' => {
                let length = string_bytes(rest);
                push_string(&mut standard, &rest[..length]);
                rest = &rest[length..];
                continue;
            }
            b'N' | b'I' | b'-' if NAMES.iter().any(|name| rest.starts_with(name)) => {
                let name = NAMES.iter().find(|name| rest.starts_with(name)).map_or(1, |name| name.len());
                (name, NULL)
            }
            b'-' | b'0'..=b'9' => {
                let length = number_bytes(rest);
                (length, if is_finite(&rest[..length]) { &rest[..length] } else { NULL })
            }
            _ => (1, &rest[..1]),
        };
        standard.extend_from_slice(written);
        rest = &rest[length..];
    }
    standard
}

/// Length of the string at the start, quotes included; of all that is left where it does not end.
fn string_bytes(text: &[u8]) -> usize {
    let mut position = 1;
    while let Some(byte) = text.get(position) {
        match byte {
            b'"' => return position + 1,
            b'\\' => position += 2,
            _ => position += 1,
        }
    }
    text.len()
}

/// Copies a string; what is half of a surrogate pair becomes U+FFFD.
fn push_string(standard: &mut Vec<u8>, string: &[u8]) {
    let mut rest = string;
    while let Some(first) = rest.first() {
        let (length, written) = match (first, code_unit(rest)) {
            (b'\\', Some(0xD800..=0xDBFF)) => match code_unit(&rest[ESCAPE_BYTES..]) {
                Some(0xDC00..=0xDFFF) => (2 * ESCAPE_BYTES, &rest[..2 * ESCAPE_BYTES]),
                _ => (ESCAPE_BYTES, REPLACEMENT),
            },
            (b'\\', Some(0xDC00..=0xDFFF)) => (ESCAPE_BYTES, REPLACEMENT),
            // Whatever is escaped, it is no beginning of something else.
            (b'\\', _) => (rest.len().min(2), &rest[..rest.len().min(2)]),
            _ => (1, &rest[..1]),
        };
        standard.extend_from_slice(written);
        rest = &rest[length..];
    }
}

/// The UTF-16 code unit that the escape sequence at the start stands for.
fn code_unit(text: &[u8]) -> Option<u16> {
    let digits = text.strip_prefix(br"\u")?.get(..4)?;
    let digits = std::str::from_utf8(digits).ok().filter(|digits| !digits.starts_with('+'))?;
    u16::from_str_radix(digits, 16).ok()
}

fn number_bytes(text: &[u8]) -> usize {
    let is_part = |byte: &u8| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
    text.iter().take_while(|byte| is_part(byte)).count()
}

/// Whether a number is in the range of a double, or no number at all.
fn is_finite(number: &[u8]) -> bool {
    let number = std::str::from_utf8(number).ok().and_then(|number| number.parse::<f64>().ok());
    number.is_none_or(f64::is_finite)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_python_writes_is_read_as_python_reads_it() {
        let huge = format!(r#"{{"a": {}, "b": -{}.5}}"#, "9".repeat(400), "9".repeat(400));
        for (text, expected) in [
            (
                r#"{"a": NaN, "b": Infinity, "c": [-Infinity, 1], "d": 2}"#,
                json!({"a": null, "b": null, "c": [null, 1], "d": 2}),
            ),
            (
                r#"{"a": "NaN", "-Infinity": " Infinity", "b":NaN}"#,
                json!({"a": "NaN", "-Infinity": " Infinity", "b": null}),
            ),
            (
                r#"{"a\"": "\\", "b": "\\\"NaN", "c": Infinity}"#,
                json!({"a\"": "\\", "b": "\\\"NaN", "c": null}),
            ),
            (
                r#"{"a": 1e400, "b": -1E+999, "c": 1e-400, "d": -1.5e3}"#,
                json!({"a": null, "b": null, "c": 0.0, "d": -1500.0}),
            ),
            (&huge, json!({"a": null, "b": null})),
            (r#"{"a": 1, "b": 2, "a": {"c": 3}}"#, json!({"a": {"c": 3}, "b": 2})),
            (
                r#"["\ud83e\udd8a", "\uD83E", "\udd8a\ud83e", "\\ud83e", "\ud83e\n"]"#,
                json!(["🦊", "\u{fffd}", "\u{fffd}\u{fffd}", r"\ud83e", "\u{fffd}\n"]),
            ),
            ("NaN", json!(null)),
        ] {
            assert_eq!(parse::<Value>(text.as_bytes()).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn what_python_refuses_is_refused() {
        for text in [
            "",
            "-NaN",
            "nan",
            "NaNs",
            "infinity",
            "+Infinity",
            "Infinit",
            "01",
            "1.",
            "--1",
            "{",
            r#"{"a": "#,
            r#"""#,
            r#""\"#,
            r#""\u12"#,
            r#"{"a": NaN"#,
            r#"{NaN: 1}"#,
            r#""\ud83"#,
            r#"{"a": 1,}"#,
            "\u{feff}{}",
            "\"a\nb\"",
        ] {
            assert!(parse::<Value>(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn every_beginning_of_a_file_is_judged_without_a_panic() {
        let text = r#"{"\ud83e\udd8a": "\ud83e\"\\", "a": -Infinity, "b": [NaN, 1e400, -0.5]}"#;
        for length in 0..text.len() {
            assert!(parse::<Value>(&text.as_bytes()[..length]).is_err(), "{length}");
        }
        assert!(parse::<Value>(text.as_bytes()).is_ok());
    }
}
