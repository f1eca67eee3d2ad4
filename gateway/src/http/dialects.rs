//! The APIs that clients speak, one file for each. Past a dialect nobody knows which one was used.

pub(crate) mod native;

use super::error::{Refusal, RequestError};
use super::writer::ResponseForm;
use crate::manager::{EmbedRequest, Embeddings, ModelInfo};

/// How an API writes requests, responses and errors. All of them are JSON.
pub(crate) trait Dialect: Send + Sync + std::fmt::Debug {
    /// Reads the body of a request with at most this many texts.
    fn parse(&self, body: &[u8], most_texts: usize) -> Result<EmbedRequest, RequestError>;

    /// Returns the form of the response to a request.
    fn form(&self, embeddings: &Embeddings, info: &ModelInfo) -> Box<dyn ResponseForm>;

    /// Writes an error.
    fn refuse(&self, refusal: &Refusal, request_id: &str) -> Vec<u8>;
}
