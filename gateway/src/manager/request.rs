//! What is asked for, and what is answered.

use std::time::Duration;

use crate::Pooling;
use crate::metrics::Metrics;
use crate::tokenizer::TruncationDirection;

/// One request for vectors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbedRequest {
    /// The texts, in the order in which the vectors are wanted.
    pub texts: Vec<String>,
    /// The model asked for; `None` takes the one served.
    pub model: Option<String>,
    /// How token vectors become one text vector; `None` takes what the model was trained with.
    pub pooling: Option<Pooling>,
    /// What stands before every text.
    pub prompt: Prompt,
    /// Numbers of a vector, 32 or more; `None` takes all that the model gives. A vector is cut before it is scaled.
    pub dimensions: Option<usize>,
    /// Whether every vector is scaled to length 1; `None` does what the model was trained with.
    pub normalize: Option<bool>,
    /// Whether a text beyond the model's length limit is cut; else it is an error.
    pub truncate: bool,
    /// Where such a text is cut; `None` does what the model's files say, which is mostly nothing: its end is left out.
    pub truncation_direction: Option<TruncationDirection>,
    /// How long the request may take, where that is less than [`super::Config::request_timeout`].
    pub timeout: Option<Duration>,
}

/// What stands before every text of a request; it counts as a part of the text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Prompt {
    /// The model's default prompt; most models have none.
    #[default]
    Default,
    /// The model's prompt of this name.
    Named(String),
    /// A task in one's own words, for models that were trained with instructions.
    Instruction(String),
}

impl EmbedRequest {
    /// A request for vectors as the served model gives them, of texts that may be cut.
    #[must_use]
    pub fn new(texts: Vec<String>) -> Self {
        Self {
            texts,
            model: None,
            pooling: None,
            prompt: Prompt::Default,
            dimensions: None,
            normalize: None,
            truncate: true,
            truncation_direction: None,
            timeout: None,
        }
    }
}

/// The vectors of one request.
#[derive(Debug, Clone, PartialEq)]
pub struct Embeddings {
    /// One vector per text, in the request's order.
    pub vectors: Vec<Vec<f32>>,
    /// Numbers of every vector.
    pub dimension: usize,
    /// Tokens of all texts, those of prompts and special tokens included, after truncation.
    pub total_tokens: u64,
    /// Texts that were cut to the model's length limit.
    pub truncated: usize,
    /// Time from the request's arrival to its last vector.
    pub duration: Duration,
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
