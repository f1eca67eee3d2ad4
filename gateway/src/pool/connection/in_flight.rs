//! What a worker holds.

use tokio::time::Instant;

use crate::pool::{Assignment, Start};

/// What a worker was sent.
pub(super) enum Work {
    /// Texts that somebody waits for.
    Texts(Assignment),
    /// The warm-up text, of this many tokens; nobody waits for its vector.
    WarmUp(usize),
}

impl Work {
    /// Number of texts.
    pub(super) fn texts(&self) -> usize {
        match self {
            Self::Texts(assignment) => assignment.jobs.len(),
            Self::WarmUp(_) => 1,
        }
    }

    /// Number of tokens.
    pub(super) fn tokens(&self) -> usize {
        match self {
            Self::Texts(assignment) => assignment.jobs.iter().map(|job| job.token_ids.len()).sum(),
            Self::WarmUp(tokens) => *tokens,
        }
    }

    /// The texts, if somebody waits for them.
    pub(super) fn assignment(self) -> Option<Assignment> {
        match self {
            Self::Texts(assignment) => Some(assignment),
            Self::WarmUp(_) => None,
        }
    }
}

/// A batch at the worker.
pub(super) struct InFlight {
    /// Its number on this connection.
    pub(super) batch_id: u64,
    /// When it was sent.
    pub(super) sent: Instant,
    /// When the worker said that it began.
    pub(super) begun: Option<Instant>,
    /// Ticks since it was begun.
    pub(super) busy: u32,
    /// What was the case then; `None` for the warm-up text, and when the worker had no seat any more.
    pub(super) start: Option<Start>,
    /// What it is.
    pub(super) work: Work,
}
