//! The one table from errors to status codes and bodies. No other file names a status code of an error.

use std::time::Duration;

use hyper::header::{ACCEPT_ENCODING, ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use serde::Serialize;

use super::content::Content;
use super::head::{REQUEST_ID, RequestId};
use crate::error::EmbedError;

/// Content type of every JSON answer.
pub(super) const JSON: &str = "application/json";

/// Why a request was refused: by HTTP, by its JSON, or by the embedding itself.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("the request is not valid HTTP: {0}")]
    InvalidHttp(&'static str),
    #[error("the head of the request is too long")]
    HeadTooLarge,
    #[error("the header `{name}` is `{value}`: it must be {wanted}")]
    InvalidHeader { name: &'static str, value: String, wanted: &'static str },
    #[error(
        "this gateway is not known as `{host}`: send the request to a loopback address, or start the gateway with `--allowed-host NAME`"
    )]
    HostNotAllowed { host: String },
    #[error(
        "the request comes from a web page of `{origin}`: only pages of the host that it is sent to may use this gateway"
    )]
    OriginNotAllowed { origin: String },
    #[error("there is nothing at this path; embeddings are at POST /api/v1/embed")]
    NotFound,
    #[error("this path takes {allowed} requests only")]
    MethodNotAllowed { allowed: &'static str },
    #[error("the body is encoded as `{encoding}`: send it as plain UTF-8, without Content-Encoding")]
    UnsupportedEncoding { encoding: String },
    #[error("the body is longer than {limit_bytes} bytes: send the texts in several requests")]
    BodyTooLarge { limit_bytes: usize },
    #[error("the body did not arrive in time")]
    BodyTimeout,
    #[error("the body ended early")]
    BodyIncomplete,
    #[error("the body is not valid JSON: {0}")]
    InvalidJson(String),
    #[error("the body does not have the expected form: {0}")]
    InvalidRequest(String),
    #[error("`dimensions` is {0}: it must be a whole number, 32 or more and not more than the model gives")]
    InvalidDimensions(String),
    #[error(transparent)]
    Embed(#[from] EmbedError),
}

/// Kind of an error, as `OpenAI`'s clients know it.
enum Kind {
    Input,
    Server,
    Overload,
}

fn classify(error: &RequestError) -> (StatusCode, Kind, &'static str) {
    match error {
        RequestError::InvalidHttp(_) => (StatusCode::BAD_REQUEST, Kind::Input, "invalid_http"),
        RequestError::HeadTooLarge => {
            (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, Kind::Input, "head_too_large")
        }
        RequestError::InvalidHeader { .. } => (StatusCode::BAD_REQUEST, Kind::Input, "invalid_request"),
        RequestError::HostNotAllowed { .. } => (StatusCode::FORBIDDEN, Kind::Input, "host_not_allowed"),
        RequestError::OriginNotAllowed { .. } => (StatusCode::FORBIDDEN, Kind::Input, "origin_not_allowed"),
        RequestError::NotFound => (StatusCode::NOT_FOUND, Kind::Input, "not_found"),
        RequestError::MethodNotAllowed { .. } => {
            (StatusCode::METHOD_NOT_ALLOWED, Kind::Input, "method_not_allowed")
        }
        RequestError::UnsupportedEncoding { .. } => {
            (StatusCode::UNSUPPORTED_MEDIA_TYPE, Kind::Input, "unsupported_encoding")
        }
        RequestError::BodyTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, Kind::Input, "body_too_large"),
        RequestError::BodyTimeout => (StatusCode::REQUEST_TIMEOUT, Kind::Input, "body_timeout"),
        RequestError::BodyIncomplete => (StatusCode::BAD_REQUEST, Kind::Input, "body_incomplete"),
        RequestError::InvalidJson(_) => (StatusCode::BAD_REQUEST, Kind::Input, "invalid_json"),
        RequestError::InvalidRequest(_) => (StatusCode::BAD_REQUEST, Kind::Input, "invalid_request"),
        RequestError::InvalidDimensions(_) => (StatusCode::BAD_REQUEST, Kind::Input, "invalid_dimensions"),
        RequestError::Embed(error) => match error {
            EmbedError::NoTexts | EmbedError::EmptyText { .. } => {
                (StatusCode::BAD_REQUEST, Kind::Input, "empty_input")
            }
            EmbedError::TooManyTexts { .. } => (StatusCode::PAYLOAD_TOO_LARGE, Kind::Input, "too_many_texts"),
            EmbedError::ModelNotServed { .. } => (StatusCode::BAD_REQUEST, Kind::Input, "model_not_served"),
            EmbedError::TextTooLong { .. }
            | EmbedError::PromptTooLong { .. }
            | EmbedError::PromptsTooLong { .. } => (StatusCode::BAD_REQUEST, Kind::Input, "input_too_long"),
            EmbedError::UnknownPrompt { .. } => (StatusCode::BAD_REQUEST, Kind::Input, "unknown_prompt"),
            EmbedError::PromptNotSupported => (StatusCode::BAD_REQUEST, Kind::Input, "prompt_not_supported"),
            EmbedError::InstructionNotSupported => {
                (StatusCode::BAD_REQUEST, Kind::Input, "instruction_not_supported")
            }
            EmbedError::EmptyInstruction => (StatusCode::BAD_REQUEST, Kind::Input, "invalid_request"),
            EmbedError::InvalidDimensions { .. } => {
                (StatusCode::BAD_REQUEST, Kind::Input, "invalid_dimensions")
            }
            EmbedError::DeadlineTooShort { .. } => {
                (StatusCode::BAD_REQUEST, Kind::Input, "deadline_too_short")
            }
            EmbedError::PoisonInput { .. } => (StatusCode::UNPROCESSABLE_ENTITY, Kind::Input, "poison_input"),
            EmbedError::NoTokens { .. } => (StatusCode::BAD_REQUEST, Kind::Input, "empty_input"),
            EmbedError::NotTokenizable { .. } => (StatusCode::BAD_REQUEST, Kind::Input, "not_tokenizable"),
            EmbedError::Draining => (StatusCode::SERVICE_UNAVAILABLE, Kind::Overload, "draining"),
            EmbedError::NoWorker { .. } => (StatusCode::SERVICE_UNAVAILABLE, Kind::Overload, "no_worker"),
            EmbedError::Overloaded { .. } => (StatusCode::SERVICE_UNAVAILABLE, Kind::Overload, "overloaded"),
            EmbedError::WorkerLost => (StatusCode::SERVICE_UNAVAILABLE, Kind::Overload, "worker_lost"),
            EmbedError::DeadlineExceeded => (StatusCode::GATEWAY_TIMEOUT, Kind::Server, "deadline_exceeded"),
            EmbedError::InferenceFailed { .. } => {
                (StatusCode::INTERNAL_SERVER_ERROR, Kind::Server, "inference_failed")
            }
            EmbedError::BadWorkerOutput { .. } => {
                (StatusCode::INTERNAL_SERVER_ERROR, Kind::Server, "bad_worker_output")
            }
            EmbedError::Internal => (StatusCode::INTERNAL_SERVER_ERROR, Kind::Server, "internal"),
        },
    }
}

/// The stable name of an error, in answers and as a metric's label.
pub(super) fn code(error: &RequestError) -> &'static str {
    classify(error).2
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    error: ErrorDetail<'a>,
}

#[derive(Serialize)]
struct ErrorDetail<'a> {
    message: String,
    r#type: &'static str,
    code: &'static str,
    request_id: &'a str,
}

/// The answer to a request that failed.
pub(super) fn error(error: &RequestError, id: &RequestId) -> Response<Content> {
    let (status, kind, code) = classify(error);
    let r#type = match kind {
        Kind::Input => "invalid_request_error",
        Kind::Server => "server_error",
        Kind::Overload => "overloaded_error",
    };
    tracing::info!(request_id = id.as_str(), code, status = status.as_u16(), "request refused");
    let detail = ErrorDetail { message: error.to_string(), r#type, code, request_id: id.as_str() };
    let mut response = json(status, &ErrorBody { error: detail });
    if let RequestError::Embed(error) = error
        && let Some(wait) = error.retry_after()
    {
        response.headers_mut().insert(RETRY_AFTER, retry_after(wait).into());
    }
    if let RequestError::UnsupportedEncoding { .. } = error {
        response.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
    if let RequestError::MethodNotAllowed { allowed } = error {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    }
    response
}

/// Whole seconds to wait, at least one, and up to half as many more: clients refused together must not come back together.
fn retry_after(wait: Duration) -> u64 {
    let seconds = (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1);
    seconds + fastrand::u64(0..=seconds.div_ceil(2))
}

/// A JSON answer.
pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Response<Content> {
    let bytes = serde_json::to_vec(body).expect("our own answers are valid JSON: this is a bug");
    content(status, JSON, Content::Whole(bytes.into()))
}

/// An answer of any type.
pub(super) fn content(status: StatusCode, content_type: &'static str, content: Content) -> Response<Content> {
    let mut response = Response::new(content);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Writes the request id into the answer's head.
pub(super) fn identify(response: &mut Response<Content>, id: &RequestId) {
    if let Ok(value) = HeaderValue::from_str(id.as_str()) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_to_wait_is_in_whole_seconds_at_least_one_and_spread() {
        for (wait, least, most) in [(0, 1, 2), (1000, 1, 2), (1001, 2, 3), (9500, 10, 15)] {
            let waits: Vec<u64> = (0..200).map(|_| retry_after(Duration::from_millis(wait))).collect();
            assert_eq!((waits.iter().min(), waits.iter().max()), (Some(&least), Some(&most)), "{wait} ms");
        }
    }
}
