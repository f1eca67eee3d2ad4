//! Whether an answer holds the vectors that the quiet server gave.

use std::path::Path;

use serde::Deserialize;

use crate::Outcome;

/// Largest difference between two numbers that are the same but for the order of additions.
const MOST_DIFFERENCE: f32 = 1e-4;
/// Smallest cosine of two vectors that are the same.
const LEAST_COSINE: f64 = 0.9999;

/// An answer of the native API. A line of the file of expected answers has the same form.
#[derive(Deserialize)]
struct Answer {
    embeddings: Vec<Vec<f32>>,
}

/// The vectors expected for each body.
pub(crate) struct Expected(Vec<Vec<Vec<f32>>>);

impl Expected {
    /// Reads one answer per line.
    pub(crate) fn read(file: &Path, bodies: usize) -> Outcome<Self> {
        let text = std::fs::read_to_string(file)?;
        let answers = text.lines().map(|line| Ok(serde_json::from_str::<Answer>(line)?.embeddings));
        let answers = answers.collect::<Outcome<Vec<_>>>()?;
        if answers.len() == bodies {
            Ok(Self(answers))
        } else {
            Err(format!("{} expected answers for {bodies} bodies", answers.len()).into())
        }
    }

    /// Whether an answer is right.
    pub(crate) fn is_right(&self, body: usize, answer: &[u8]) -> bool {
        let expected = &self.0[body];
        serde_json::from_slice::<Answer>(answer).is_ok_and(|answer| {
            answer.embeddings.len() == expected.len()
                && answer.embeddings.iter().zip(expected).all(|(one, other)| is_same(one, other))
        })
    }
}

fn is_same(one: &[f32], other: &[f32]) -> bool {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    one.len() == other.len()
        && one.iter().zip(other).all(|(a, b)| (a - b).abs() <= MOST_DIFFERENCE)
        && dot(one, other) / (dot(one, one) * dot(other, other)).sqrt() >= LEAST_COSINE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_is_the_same_up_to_rounding_only() {
        assert!(is_same(&[0.6, 0.8], &[0.600_05, 0.8]));
        for other in [&[0.6][..], &[0.6, 0.8, 0.0], &[0.601, 0.8], &[f32::NAN, 0.8], &[0.8, 0.6]] {
            assert!(!is_same(&[0.6, 0.8], other), "{other:?}");
        }
    }

    #[test]
    fn an_answer_with_the_vectors_of_another_text_or_of_fewer_is_wrong() {
        let expected = Expected(vec![vec![vec![1.0, 0.0], vec![0.0, 1.0]]]);
        assert!(expected.is_right(0, br#"{"embeddings":[[1,0],[0,1]],"model":"m"}"#));
        for answer in [r#"{"embeddings":[[0,1],[1,0]]}"#, r#"{"embeddings":[[1,0]]}"#, "{}", ""] {
            assert!(!expected.is_right(0, answer.as_bytes()), "{answer}");
        }
    }
}
