//! `POST /api/v1/embed`, the API of the `AkiDB` vector database.
//!
//! Request: a JSON object. Unknown keys are ignored; `null` is as good as no key.
//!
//! * `texts: [str]`, the only key that must be there.
//! * `model?: str`: refused unless it is the one served.
//! * `prompt_name?: str`: the model's prompt of this name stands before every text.
//! * `instruction?: str`: a task in the client's words, for models trained with instructions; not with `prompt_name`.
//! * `pooling?: "mean" | "cls" | "last"`
//! * `dimensions?: int`: so many numbers of each vector, from 32 to all.
//! * `normalize?: bool`: whether what stays of a vector is scaled to length 1.
//! * `truncate?: bool`: whether a text that is too long is cut, else refused.
//! * `truncation_direction?: "right" | "left"`: which end of it is cut off; `"Right"` and `"Left"`, too, as
//!   text-embeddings-inference writes them.
//!
//! What is not chosen is the model's own. The time limit is in the header `x-request-timeout-ms`. Answer:
//! `{"embeddings": [[f32]], "model": str, "dimension": int, "usage": {"total_tokens": int, "truncated": int,
//! "duration_ms": float}}`; tokens of prompts count like those of texts.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{HeaderMap, Response, StatusCode};
use serde::{Deserialize, Serialize};

use super::body::{RequestBody, Share};
use super::respond::{self, RequestError};
use super::{Context, head};
use crate::Pooling;
use crate::error::EmbedError;
use crate::manager::{EmbedRequest, Embeddings, ModelInfo, Prompt, TruncationDirection, shorten};
use crate::metrics::Phase;

/// Answers with more numbers than this are written off the async threads: that takes a millisecond.
const INLINE_NUMBERS: usize = 16 * 1024;
/// Bodies with more bytes than this are parsed off the async threads.
const INLINE_BYTES: usize = 64 * 1024;
/// Levels of arrays and objects that a body may have.
const DEEPEST_NESTING: usize = 128;
/// Length of a number in JSON, comma included, rounded up.
const BYTES_PER_NUMBER: usize = 14;

#[derive(Deserialize)]
struct EmbedBody {
    texts: Vec<String>,
    model: Option<String>,
    prompt_name: Option<String>,
    instruction: Option<String>,
    pooling: Option<Pooling>,
    dimensions: Option<serde_json::Number>,
    normalize: Option<bool>,
    truncate: Option<bool>,
    truncation_direction: Option<TruncationDirection>,
}

#[derive(Serialize)]
struct EmbedAnswer<'a> {
    embeddings: &'a [Vec<f32>],
    model: &'a str,
    dimension: usize,
    usage: Usage,
}

#[derive(Serialize)]
struct Usage {
    total_tokens: u64,
    truncated: usize,
    duration_ms: f64,
}

pub(super) async fn embed(
    headers: &HeaderMap,
    body: &mut RequestBody,
    context: &Context,
) -> Result<Response<Full<Bytes>>, RequestError> {
    let manager = &context.manager;
    // What is made of a body takes memory until it is answered, so its share is kept as long.
    let (request, _share) =
        receive(headers, body, context).await.inspect_err(|_error| manager.count_refused())?;
    let embeddings = manager.embed_request(request).await?;
    let numbers = embeddings.vectors.len() * embeddings.dimension;
    let manager = Arc::clone(manager);
    let write = move || manager.timed(Phase::Write, || write(&embeddings, manager.model_info()));
    let body = if numbers <= INLINE_NUMBERS {
        write()
    } else {
        tokio::task::spawn_blocking(write).await.map_err(|_panic| EmbedError::Internal)?
    };
    Ok(respond::content(StatusCode::OK, respond::JSON, body))
}

/// Reads a request; also returns its share of the memory for bodies.
async fn receive(
    headers: &HeaderMap,
    body: &mut RequestBody,
    context: &Context,
) -> Result<(EmbedRequest, Share), RequestError> {
    let timeout = head::timeout(headers)?;
    let (bytes, share) = body.read(context).await?.into_parts();
    let manager = Arc::clone(&context.manager);
    let is_short = bytes.len() <= INLINE_BYTES;
    let parse = move || manager.timed(Phase::Parse, || parse(&bytes));
    let request = if is_short {
        parse()
    } else {
        tokio::task::spawn_blocking(parse).await.map_err(|_panic| EmbedError::Internal)?
    };
    Ok((EmbedRequest { timeout, ..request? }, share))
}

/// The answer's JSON.
pub(crate) fn write(embeddings: &Embeddings, info: &ModelInfo) -> Vec<u8> {
    let Embeddings { vectors, dimension, total_tokens, truncated, duration } = embeddings;
    let usage = Usage {
        total_tokens: *total_tokens,
        truncated: *truncated,
        duration_ms: duration.as_secs_f64() * 1000.0,
    };
    let answer = EmbedAnswer { embeddings: vectors, model: &info.model, dimension: *dimension, usage };
    let numbers = vectors.len() * dimension;
    let mut body = Vec::with_capacity(numbers * BYTES_PER_NUMBER + 256);
    serde_json::to_writer(&mut body, &answer).expect("our own answers are valid JSON: this is a bug");
    body
}

/// Reads the request's JSON.
pub(crate) fn parse(body: &[u8]) -> Result<EmbedRequest, RequestError> {
    // The parser would take an array for the fields in their order.
    if body.trim_ascii_start().first() == Some(&b'[') {
        return Err(refusal(body, "an array, expected an object"));
    }
    let body: EmbedBody =
        serde_json::from_slice(body).map_err(|error: serde_json::Error| match error.classify() {
            serde_json::error::Category::Data => refusal(body, &error.to_string()),
            _ => RequestError::InvalidJson(shorten(&error.to_string())),
        })?;
    Ok(EmbedRequest {
        model: body.model,
        prompt: prompt(body.prompt_name, body.instruction)?,
        pooling: body.pooling,
        dimensions: body.dimensions.as_ref().map(dimensions).transpose()?,
        normalize: body.normalize,
        truncate: body.truncate.unwrap_or(true),
        truncation_direction: body.truncation_direction.unwrap_or_default(),
        ..EmbedRequest::new(body.texts)
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

/// A number of dimensions, as far as it is one.
fn dimensions(number: &serde_json::Number) -> Result<usize, RequestError> {
    let whole = number.as_u64().and_then(|whole| usize::try_from(whole).ok());
    whole.ok_or_else(|| RequestError::InvalidDimensions(shorten(&number.to_string())))
}

/// For a body that does not have the form of a request: tells what is no JSON at all, or nested deeper than anybody
/// reads, from JSON of another form.
fn refusal(body: &[u8], wrong_form: &str) -> RequestError {
    match serde_json::from_slice::<serde::de::IgnoredAny>(body) {
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
        match parse(body.as_bytes()) {
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
            assert_eq!(parse(body.as_bytes()).unwrap(), EmbedRequest::new(vec!["a".to_owned()]));
        }
    }

    #[test]
    fn every_choice_is_understood() {
        let request = |choice: &str| parse(format!(r#"{{"texts":["a"],{choice}}}"#).as_bytes()).unwrap();
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
            assert_eq!(request(&choice).truncation_direction, direction, "{word}");
        }
    }

    #[test]
    fn dimensions_that_are_no_count_are_named() {
        for number in ["-1", "64.5", "64.0", "1e3", "18446744073709551616", "-1e300"] {
            let body = format!(r#"{{"texts":["a"],"dimensions":{number}}}"#);
            let error = parse(body.as_bytes()).unwrap_err();
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
        let Err(RequestError::InvalidRequest(text)) = parse(body.as_bytes()) else { panic!("accepted") };
        assert!(text.len() < 310);
    }
}
