//! A response, written piece by piece while the client takes it.
//!
//! A number is 4 bytes in a vector and about 12 in JSON, so what a slow client has not taken yet stays a vector.

use crate::http::dialects::Dialect;
use crate::manager::{Embeddings, ModelInfo};

/// Length of a number in JSON, comma included, rounded up.
pub(super) const BYTES_PER_NUMBER: usize = 14;
/// Length of everything else in a response, rounded up unless the model's name is very long.
const OTHER_BYTES: usize = 256;

/// How a dialect writes vectors.
pub(crate) trait ResponseForm: Send + std::fmt::Debug {
    /// Writes what comes before the first vector.
    fn open(&mut self, bytes: &mut Vec<u8>);
    /// Writes a vector, with what separates it from the one before.
    fn vector(&mut self, bytes: &mut Vec<u8>, index: usize, vector: &[f32]);
    /// Writes what comes after the last vector.
    fn close(&mut self, bytes: &mut Vec<u8>);
    /// Length of that, about.
    fn closing_bytes(&self) -> usize;
}

/// Writes one response.
#[derive(Debug)]
pub(crate) struct Writer {
    form: Box<dyn ResponseForm>,
    vectors: std::iter::Enumerate<std::vec::IntoIter<Vec<f32>>>,
    dimension: usize,
    is_open: bool,
    is_done: bool,
}

impl Writer {
    pub(crate) fn new(dialect: &dyn Dialect, embeddings: Embeddings, info: &ModelInfo) -> Self {
        let form = dialect.form(&embeddings, info);
        let Embeddings { vectors, dimension, .. } = embeddings;
        Self { form, vectors: vectors.into_iter().enumerate(), dimension, is_open: false, is_done: false }
    }

    /// Whether nothing is left to be written.
    pub(crate) fn is_done(&self) -> bool {
        self.is_done
    }

    /// The next bytes: at least this many, unless they are the last. `None` after these.
    pub(crate) fn next(&mut self, least_bytes: usize) -> Option<Vec<u8>> {
        if self.is_done {
            return None;
        }
        let all =
            self.vectors.len() * self.dimension * BYTES_PER_NUMBER + OTHER_BYTES + self.form.closing_bytes();
        let with_last_vector = least_bytes.saturating_add(self.dimension * BYTES_PER_NUMBER);
        let mut bytes = Vec::with_capacity(all.min(with_last_vector));
        if !self.is_open {
            self.is_open = true;
            self.form.open(&mut bytes);
        }
        while bytes.len() < least_bytes {
            let Some((index, vector)) = self.vectors.next() else {
                self.form.close(&mut bytes);
                self.is_done = true;
                break;
            };
            self.form.vector(&mut bytes, index, &vector);
        }
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;
    use crate::http::dialects::native::Native;

    fn writer(texts: usize, dimension: usize) -> Writer {
        #[expect(clippy::cast_precision_loss, reason = "the numbers are small")]
        let vectors = (0..texts).map(|text| vec![text as f32 + 0.25; dimension]).collect();
        let duration = Duration::from_micros(1001);
        let embeddings = Embeddings { vectors, dimension, total_tokens: 7, truncated: 1, duration };
        let info = ModelInfo { model: "a \"model\"".to_owned(), dimension, max_tokens: 64 };
        Writer::new(&Native, embeddings, &info)
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
