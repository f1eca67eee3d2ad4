//! What is asked for, and what is answered.

use std::time::Duration;

use crate::Pooling;
use crate::metrics::Metrics;

/// One request for vectors.
#[derive(Debug, Clone)]
pub struct EmbedRequest {
    /// The texts, in the order in which the vectors are wanted.
    pub texts: Vec<String>,
    /// The model asked for; `None` takes the one served.
    pub model: Option<String>,
    /// How token vectors become one text vector; `None` takes what the model was trained with.
    pub pooling: Option<Pooling>,
    /// Whether every vector is scaled to length 1.
    pub normalize: bool,
    /// Whether a text beyond the model's length limit is cut; else it is an error.
    pub truncate: bool,
    /// How long the request may take, where that is less than [`super::Config::request_timeout`].
    pub timeout: Option<Duration>,
}

impl EmbedRequest {
    /// A request for normalized vectors of the served model.
    #[must_use]
    pub fn new(texts: Vec<String>) -> Self {
        Self { texts, model: None, pooling: None, normalize: true, truncate: true, timeout: None }
    }
}

/// The vectors of one request.
#[derive(Debug, Clone, PartialEq)]
pub struct Embeddings {
    /// One vector of [`super::ModelInfo::dimension`] numbers per text, in the request's order.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens of all texts, special tokens included, after truncation.
    pub total_tokens: u64,
    /// Texts that were cut to the model's length limit.
    pub truncated: usize,
    /// Time from the request's arrival to its last vector.
    pub duration: Duration,
}

/// Reads little-endian `f32` and scales them to length 1 if asked to.
pub(super) fn read_vector(raw: &[u8], normalize: bool) -> Vec<f32> {
    let mut vector: Vec<f32> =
        raw.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    if normalize {
        let length = vector.iter().map(|number| f64::from(*number).powi(2)).sum::<f64>().sqrt();
        #[expect(clippy::cast_possible_truncation, reason = "the quotient is at most 1")]
        vector.iter_mut().for_each(|number| *number = (f64::from(*number) / length) as f32);
    }
    vector
}

/// Counts a request whose future was dropped before the answer, because its client has gone.
pub(super) struct ClientWatch<'a> {
    pub(super) metrics: &'a Metrics,
    pub(super) is_there: bool,
}

impl ClientWatch<'_> {
    pub(super) fn got_answer(mut self) {
        self.is_there = false;
    }
}

impl Drop for ClientWatch<'_> {
    fn drop(&mut self) {
        if self.is_there {
            self.metrics.clients_gone.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_normalized_only_when_asked() {
        let raw: Vec<u8> = [3.0_f32, -4.0].iter().flat_map(|number| number.to_le_bytes()).collect();
        assert_eq!(read_vector(&raw, false), [3.0, -4.0]);
        assert_eq!(read_vector(&raw, true), [0.6, -0.8]);
    }
}
