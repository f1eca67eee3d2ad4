//! From the bytes of a worker's answer to the vector that was asked for.

use tokio::sync::mpsc;

use crate::error::EmbedError;
use crate::job::Answer;

/// What a request wants its vectors to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct VectorForm {
    /// Numbers of a vector, counted from its first; not more than the model gives.
    pub(super) dimension: usize,
    /// Whether these are then scaled to length 1.
    pub(super) normalize: bool,
}

impl VectorForm {
    /// Reads little-endian `f32`. `None` when the part that stays is all zero: that is no vector of the text.
    pub(super) fn read(self, raw: &[u8]) -> Option<Vec<f32>> {
        let numbers = raw.as_chunks::<4>().0.iter().take(self.dimension);
        let mut vector: Vec<f32> = numbers.map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let length = vector.iter().map(|number| f64::from(*number).powi(2)).sum::<f64>().sqrt();
        if length == 0.0 {
            return None;
        }
        if self.normalize {
            #[expect(clippy::cast_possible_truncation, reason = "the quotient is at most 1")]
            vector.iter_mut().for_each(|number| *number = (f64::from(*number) / length) as f32);
        }
        Some(vector)
    }
}

/// Waits for `count` answers, reads them and puts them in order; the first error ends it. `None`: a job was dropped unanswered.
pub(super) async fn collect(
    mut answers: mpsc::UnboundedReceiver<Answer>,
    count: usize,
    form: VectorForm,
) -> Option<Result<Vec<Vec<f32>>, EmbedError>> {
    let mut vectors = vec![Vec::new(); count];
    for _ in 0..count {
        match answers.recv().await? {
            // Read at once: the bytes of a whole batch live as long as one vector of it is not.
            (index, Ok(raw)) => match form.read(&raw) {
                Some(vector) => vectors[index] = vector,
                None => return Some(Err(EmbedError::BadWorkerOutput { index })),
            },
            (_, Err(error)) => return Some(Err(error)),
        }
    }
    Some(Ok(vectors))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(numbers: &[f32], dimension: usize, normalize: bool) -> Option<Vec<f32>> {
        let raw: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        VectorForm { dimension, normalize }.read(&raw)
    }

    #[test]
    fn vectors_are_normalized_only_when_asked() {
        assert_eq!(read(&[3.0, -4.0], 2, false), Some(vec![3.0, -4.0]));
        assert_eq!(read(&[3.0, -4.0], 2, true), Some(vec![0.6, -0.8]));
    }

    #[test]
    fn a_vector_is_cut_before_it_is_normalized() {
        assert_eq!(read(&[3.0, -4.0, 12.0], 2, true), Some(vec![0.6, -0.8]));
        assert_eq!(read(&[3.0, -4.0, 12.0], 2, false), Some(vec![3.0, -4.0]));
        assert_eq!(read(&[1e-45, 0.0, 1e38], 2, true), Some(vec![1.0, 0.0]));
    }

    #[test]
    fn a_part_that_is_all_zero_is_no_vector() {
        for normalize in [true, false] {
            assert_eq!(read(&[0.0, -0.0, 1.0], 2, normalize), None);
        }
    }
}
