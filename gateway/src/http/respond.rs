//! The one table from errors to status codes and bodies. No other file names a status code of an error.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use serde::Serialize;

use crate::error::EmbedError;

/// Content type of every JSON answer.
pub(super) const JSON: &str = "application/json";
/// Name of the header that carries the request id.
const REQUEST_ID_HEADER: &str = "x-request-id";

/// Why a request was refused: by HTTP, by its JSON, or by the embedding itself.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("there is nothing at this path; embeddings are at POST /api/v1/embed")]
    NotFound,
    #[error("this path takes {allowed} requests only")]
    MethodNotAllowed { allowed: &'static str },
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
    #[error(transparent)]
    Embed(#[from] EmbedError),
}

/// Names one request in its answer and in the log.
#[derive(Debug)]
pub(super) struct RequestId(String);

impl RequestId {
    pub(super) fn new() -> Self {
        Self(format!("{:016x}", fastrand::u64(..)))
    }
}

/// Kind of an error, as `OpenAI`'s clients know it.
enum Kind {
    Input,
    Server,
    Overload,
}

fn classify(error: &RequestError) -> (StatusCode, Kind, &'static str) {
    match error {
        RequestError::NotFound => (StatusCode::NOT_FOUND, Kind::Input, "not_found"),
        RequestError::MethodNotAllowed { .. } => {
            (StatusCode::METHOD_NOT_ALLOWED, Kind::Input, "method_not_allowed")
        }
        RequestError::BodyTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, Kind::Input, "body_too_large"),
        RequestError::BodyTimeout => (StatusCode::REQUEST_TIMEOUT, Kind::Input, "body_timeout"),
        RequestError::BodyIncomplete => (StatusCode::BAD_REQUEST, Kind::Input, "body_incomplete"),
        RequestError::InvalidJson(_) => (StatusCode::BAD_REQUEST, Kind::Input, "invalid_json"),
        RequestError::InvalidRequest(_) => (StatusCode::BAD_REQUEST, Kind::Input, "invalid_request"),
        RequestError::Embed(error) => match error {
            EmbedError::NoTexts | EmbedError::EmptyText { .. } => {
                (StatusCode::BAD_REQUEST, Kind::Input, "empty_input")
            }
            EmbedError::TooManyTexts { .. } => (StatusCode::PAYLOAD_TOO_LARGE, Kind::Input, "too_many_texts"),
            EmbedError::ModelNotServed { .. } => (StatusCode::BAD_REQUEST, Kind::Input, "model_not_served"),
            EmbedError::TextTooLong { .. } => (StatusCode::BAD_REQUEST, Kind::Input, "input_too_long"),
            EmbedError::PoisonInput { .. } => (StatusCode::UNPROCESSABLE_ENTITY, Kind::Input, "poison_input"),
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
pub(super) fn error(error: &RequestError, id: &RequestId) -> Response<Full<Bytes>> {
    let (status, kind, code) = classify(error);
    let r#type = match kind {
        Kind::Input => "invalid_request_error",
        Kind::Server => "server_error",
        Kind::Overload => "overloaded_error",
    };
    tracing::info!(request_id = id.0, code, status = status.as_u16(), "request refused");
    let detail = ErrorDetail { message: error.to_string(), r#type, code, request_id: &id.0 };
    let mut response = json(status, &ErrorBody { error: detail });
    if matches!(kind, Kind::Overload) {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if let RequestError::MethodNotAllowed { allowed } = error {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    }
    response
}

/// A JSON answer.
pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Response<Full<Bytes>> {
    let bytes = serde_json::to_vec(body).expect("our own answers are valid JSON: this is a bug");
    content(status, JSON, bytes)
}

/// An answer of any type.
pub(super) fn content(
    status: StatusCode,
    content_type: &'static str,
    bytes: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(bytes.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Writes the request id into the answer's head.
pub(super) fn identify(response: &mut Response<Full<Bytes>>, id: &RequestId) {
    if let Ok(value) = HeaderValue::from_str(&id.0) {
        response.headers_mut().insert(REQUEST_ID_HEADER, value);
    }
}
