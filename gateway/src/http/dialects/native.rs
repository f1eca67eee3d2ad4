//! `POST /api/v1/embed`, the API of the `AkiDB` vector database.
//!
//! Request: a JSON object. Unknown keys are ignored; `null` means the same as omitting the key.
//!
//! * `texts: [str]`, the only key that must be there.
//! * `model?: str`: refused unless it is the one served.
//! * `prompt_name?: str`: the model's prompt of this name is put before every text.
//! * `instruction?: str`: a task in the client's words, for models trained with instructions; not with `prompt_name`.
//! * `pooling?: "mean" | "cls" | "last"`
//! * `dimensions?: int`: length of the returned vectors, from 32 to the model's own.
//! * `normalize?: bool`: whether vectors are scaled to length 1, after shortening.
//! * `truncate?: bool`: whether a text that is too long is cut; otherwise it is refused.
//! * `truncation_direction?: "right" | "left"`: which end of it is cut; `"Right"` and `"Left"`, too, as
//!   text-embeddings-inference writes them.
//!
//! The model decides what is not chosen. The time limit is in the header `x-request-timeout-ms`. Response:
//! `{"embeddings": [[f32]], "model": str, "dimension": int, "usage": {"total_tokens": int, "truncated": int,
//! "duration_ms": int}}`; tokens of prompts count like those of texts.

pub(crate) mod request;
pub(crate) mod response;

use serde::Serialize;

use super::Dialect;
use crate::http::error::{Kind, Refusal, RequestError};
use crate::http::writer::ResponseForm;
use crate::manager::{EmbedRequest, Embeddings, ModelInfo};

/// The API of the `AkiDB` vector database.
#[derive(Debug)]
pub(crate) struct Native;

impl Dialect for Native {
    fn parse(&self, body: &[u8], most_texts: usize) -> Result<EmbedRequest, RequestError> {
        request::parse(body, most_texts)
    }

    fn form(&self, embeddings: &Embeddings, info: &ModelInfo) -> Box<dyn ResponseForm> {
        Box::new(response::Form::new(embeddings, info))
    }

    fn refuse(&self, refusal: &Refusal, request_id: &str) -> Vec<u8> {
        let r#type = match refusal.kind {
            Kind::Input => "invalid_request_error",
            Kind::Server => "server_error",
            Kind::Overload => "overloaded_error",
        };
        let error = ErrorDetail { message: &refusal.message, r#type, code: refusal.code, request_id };
        serde_json::to_vec(&ErrorBody { error }).expect("our own responses are valid JSON: this is a bug")
    }
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    error: ErrorDetail<'a>,
}

#[derive(Serialize)]
struct ErrorDetail<'a> {
    message: &'a str,
    r#type: &'static str,
    code: &'static str,
    request_id: &'a str,
}
