//! Why a request is refused, and the one table from errors to status codes. No other file names a status code of an error.

use std::time::Duration;

use hyper::StatusCode;

use crate::error::EmbedError;

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
        "the host `{host}` is not allowed: send the request to a loopback address, or start the gateway with `--allowed-host NAME`"
    )]
    HostNotAllowed { host: String },
    #[error("the origin `{origin}` is not allowed: only pages of the gateway's own host may call it")]
    OriginNotAllowed { origin: String },
    #[error("no such path: embeddings are at POST /api/v1/embed")]
    NotFound,
    #[error("this path accepts only {allowed} requests")]
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
    #[error("the body is not a valid request: {0}")]
    InvalidRequest(String),
    #[error("`dimensions` is {0}: it must be a whole number from 32 to the model's own dimension")]
    InvalidDimensions(String),
    #[error(transparent)]
    Embed(#[from] EmbedError),
}

/// Whose fault an error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The client's: the same request fails again.
    Input,
    /// The gateway's or the model's.
    Server,
    /// Nobody's: the same request may succeed later.
    Overload,
}

/// What a client is told of an error, in whatever form its API has for that.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) kind: Kind,
    /// The stable name of the error, also a metric's label.
    pub(crate) code: &'static str,
    pub(crate) message: String,
    /// How long to wait before trying again; `None` if that would not help.
    pub(crate) retry_after: Option<Duration>,
    /// The methods that the path accepts.
    pub(crate) allow: Option<&'static str>,
    /// The content codings that are accepted.
    pub(crate) accept_encoding: Option<&'static str>,
}

impl From<&RequestError> for Refusal {
    fn from(error: &RequestError) -> Self {
        let (status, kind, code) = classify(error);
        let mut refusal = Self {
            status,
            kind,
            code,
            message: error.to_string(),
            retry_after: None,
            allow: None,
            accept_encoding: None,
        };
        match error {
            RequestError::Embed(error) => refusal.retry_after = error.retry_after(),
            RequestError::MethodNotAllowed { allowed } => refusal.allow = Some(allowed),
            RequestError::UnsupportedEncoding { .. } => refusal.accept_encoding = Some("identity"),
            _ => {}
        }
        refusal
    }
}

/// The table: status, kind and stable code of every error.
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
