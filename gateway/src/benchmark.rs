//! The inner functions that benchmarks measure and fuzzing feeds, and that no user of the library needs.

use std::collections::VecDeque;
use std::time::Duration;

use crate::http::dialects::native::{Native, request};
use crate::http::writer::Writer;
use crate::manager::{Embeddings, ModelInfo};
use crate::scheduler::packing::{self, Packable};

/// Texts that a request may have.
const MOST_TEXTS: usize = 2048;

/// Parses the body of a request; returns its number of texts, 0 for a bad one.
#[must_use]
pub fn parse_request(body: &[u8]) -> usize {
    request::parse(body, MOST_TEXTS).map_or(0, |request| request.texts.len())
}

/// Parses the body of a request; returns its texts, or what the client is told.
///
/// # Errors
///
/// A body that is not JSON, or not of the expected form.
pub fn parse_texts(body: &[u8]) -> Result<Vec<String>, String> {
    request::parse(body, MOST_TEXTS).map(|request| request.texts).map_err(|error| error.to_string())
}

/// Writes the body of an answer.
#[must_use]
pub fn write_answer(vectors: Vec<Vec<f32>>) -> Vec<u8> {
    let dimension = vectors.first().map_or(0, Vec::len);
    let info = ModelInfo { model: "all-minilm-l6-v2".to_owned(), dimension, max_tokens: 256 };
    let embeddings =
        Embeddings { vectors, dimension, total_tokens: 1, truncated: 0, duration: Duration::from_millis(5) };
    Writer::new(&Native, embeddings, &info).next(usize::MAX).unwrap_or_default()
}

/// Forms batches of at most `max_tokens` of texts of these lengths; returns how many.
#[must_use]
pub fn form_batches(lengths: &[usize], max_tokens: usize) -> usize {
    let mut queue: VecDeque<Text> =
        lengths.iter().map(|tokens| Text { tokens: *tokens, overtaken: 0 }).collect();
    let mut batches = 0;
    while !queue.is_empty() {
        batches += usize::from(!packing::take_batch(&mut queue, max_tokens).is_empty());
    }
    batches
}

struct Text {
    tokens: usize,
    overtaken: u8,
}

impl Packable for Text {
    fn tokens(&self) -> usize {
        self.tokens
    }

    fn fits_with(&self, _other: &Self) -> bool {
        true
    }

    fn is_wanted(&self) -> bool {
        true
    }

    fn overtaken(&mut self) -> &mut u8 {
        &mut self.overtaken
    }
}
