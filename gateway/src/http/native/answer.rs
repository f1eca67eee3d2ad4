//! The JSON of an answer, written piece by piece while the client takes it.
//!
//! A number is 4 bytes in a vector and about 12 in JSON, so what a slow client has not taken yet stays a vector.

use serde::Serialize;

use crate::manager::{Embeddings, ModelInfo};

/// Length of a number in JSON, comma included, rounded up.
pub(super) const BYTES_PER_NUMBER: usize = 14;
/// Length of everything else in an answer, rounded up where the model's name is not very long.
const BYTES_BESIDE_NUMBERS: usize = 256;

/// What stands before the vectors.
const OPENING: &[u8] = b"{\"embeddings\":[";

/// What stands behind the vectors.
#[derive(Serialize)]
struct Rest<'a> {
    model: &'a str,
    dimension: usize,
    usage: Usage,
}

#[derive(Serialize)]
struct Usage {
    total_tokens: u64,
    truncated: usize,
    duration_ms: u64,
}

/// Writes one answer.
#[derive(Debug)]
pub(crate) struct Writer {
    vectors: std::vec::IntoIter<Vec<f32>>,
    dimension: usize,
    /// What stands before the next vector.
    separator: &'static [u8],
    /// What stands behind the vectors, until it is written.
    rest: Option<Vec<u8>>,
}

impl Writer {
    pub(crate) fn new(embeddings: Embeddings, info: &ModelInfo) -> Self {
        let Embeddings { vectors, dimension, total_tokens, truncated, duration } = embeddings;
        let duration_ms = u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
        let usage = Usage { total_tokens, truncated, duration_ms };
        let rest = Rest { model: &info.model, dimension, usage };
        let rest = serde_json::to_vec(&rest).expect("our own answers are valid JSON: this is a bug");
        Self { vectors: vectors.into_iter(), dimension, separator: OPENING, rest: Some(rest) }
    }

    /// Whether nothing is left to be written.
    pub(crate) fn is_done(&self) -> bool {
        self.rest.is_none()
    }

    /// The next bytes: at least so many, unless they are the last. `None` after these.
    pub(crate) fn next(&mut self, least_bytes: usize) -> Option<Vec<u8>> {
        let rest = self.rest.as_ref()?;
        let all = self.vectors.len() * self.dimension * BYTES_PER_NUMBER + BYTES_BESIDE_NUMBERS + rest.len();
        let with_last_vector = least_bytes.saturating_add(self.dimension * BYTES_PER_NUMBER);
        let mut bytes = Vec::with_capacity(all.min(with_last_vector));
        while bytes.len() < least_bytes {
            if let Some(vector) = self.vectors.next() {
                bytes.extend_from_slice(std::mem::replace(&mut self.separator, b","));
                serde_json::to_writer(&mut bytes, &vector).expect("numbers are valid JSON: this is a bug");
            } else {
                if self.separator == OPENING {
                    bytes.extend_from_slice(OPENING);
                }
                bytes.extend_from_slice(b"],");
                bytes.extend_from_slice(&self.rest.take()?[1..]);
                break;
            }
        }
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;

    fn writer(texts: usize, dimension: usize) -> Writer {
        #[expect(clippy::cast_precision_loss, reason = "the numbers are small")]
        let vectors = (0..texts).map(|text| vec![text as f32 + 0.25; dimension]).collect();
        let duration = Duration::from_micros(1001);
        let embeddings = Embeddings { vectors, dimension, total_tokens: 7, truncated: 1, duration };
        let info = ModelInfo { model: "a \"model\"".to_owned(), dimension, max_tokens: 64 };
        Writer::new(embeddings, &info)
    }

    #[test]
    fn pieces_make_the_same_json_as_one_piece() {
        for (texts, dimension) in [(0, 3), (1, 1), (2, 3), (100, 40)] {
            let whole = writer(texts, dimension).next(usize::MAX).unwrap();
            for least_bytes in [1, 7, 100, 5000] {
                let mut pieces = writer(texts, dimension);
                let pieces: Vec<Vec<u8>> = std::iter::from_fn(|| pieces.next(least_bytes)).collect();
                assert_eq!(pieces.concat(), whole, "{texts} texts, {least_bytes} bytes");
                let longest = pieces.iter().map(Vec::len).max().unwrap();
                assert!(
                    longest < least_bytes + dimension * BYTES_PER_NUMBER + 200,
                    "{longest} of {least_bytes}"
                );
            }
            let json: Value = serde_json::from_slice(&whole).unwrap();
            assert_eq!(json["embeddings"].as_array().unwrap().len(), texts);
            assert_eq!((&json["model"], &json["dimension"]), (&json!("a \"model\""), &json!(dimension)));
            assert_eq!(json["usage"], json!({"total_tokens": 7, "truncated": 1, "duration_ms": 2}));
        }
    }
}
