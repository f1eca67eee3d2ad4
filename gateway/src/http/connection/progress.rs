//! Where a connection stands, and when something is overdue.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::http::framing::LengthScan;

/// How long the parts of a connection may take.
#[derive(Debug, Clone)]
pub(in crate::http) struct Limits {
    pub(in crate::http) header_timeout: Duration,
    pub(in crate::http) idle_timeout: Duration,
    pub(in crate::http) write_timeout: Duration,
    pub(in crate::http) discard_timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Head,
    Serving,
    Answering,
    Idle,
    Closing,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) phase: Phase,
    since: Instant,
    /// Since when the client takes no bytes of what it is sent.
    pub(super) stuck_since: Option<Instant>,
    /// Whether the client may still be sending what nobody will read.
    pub(super) is_unread: bool,
    /// Whether the request under way has arrived to its last byte.
    pub(super) is_request_read: bool,
    /// Whether the client's end of stream was seen since the request's head.
    pub(super) has_seen_end: bool,
    /// Whether the last byte of the answer under way was handed over to be written.
    pub(super) is_answer_whole: bool,
    /// Whether every byte that was handed over to be written was written.
    pub(super) is_flushed: bool,
    pub(super) scan: LengthScan,
}

impl State {
    pub(super) fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.since = Instant::now();
    }
}

/// Where a connection stands. Clones share it.
#[derive(Debug, Clone)]
pub(in crate::http) struct Progress {
    state: Arc<Mutex<State>>,
}

impl Progress {
    pub(super) fn new() -> Self {
        let state = State {
            phase: Phase::Head,
            since: Instant::now(),
            stuck_since: None,
            is_unread: false,
            is_request_read: false,
            has_seen_end: false,
            is_answer_whole: true,
            is_flushed: true,
            scan: LengthScan::default(),
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The head of a request is complete. Returns whether it states its length in two ways.
    pub(super) fn head_complete(&self) -> bool {
        let mut state = self.lock();
        state.enter(Phase::Serving);
        state.is_request_read = false;
        state.has_seen_end = false;
        std::mem::take(&mut state.scan).found_both()
    }

    /// The request under way has arrived to its last byte.
    pub(in crate::http) fn request_read(&self) {
        self.lock().is_request_read = true;
    }

    /// The answer is known; `is_body_read` says whether the whole request was read before, `is_answer_whole` whether
    /// all of the answer is there.
    pub(super) fn answering(&self, is_body_read: bool, is_answer_whole: bool) {
        let mut state = self.lock();
        state.enter(Phase::Answering);
        state.is_unread = !is_body_read;
        state.is_answer_whole = is_answer_whole;
        state.is_flushed = false;
    }

    /// The last piece of an answer is written next.
    pub(in crate::http) fn answer_whole(&self) {
        self.lock().is_answer_whole = true;
    }

    /// Whether nobody waits for an answer on this connection.
    pub(super) fn is_between_requests(&self) -> bool {
        matches!(self.lock().phase, Phase::Head | Phase::Idle)
    }

    /// Until when something must happen, and what.
    fn deadline(&self, limits: &Limits) -> Option<(Instant, &'static str)> {
        let state = self.lock();
        let phase = match state.phase {
            Phase::Head => Some((state.since + limits.header_timeout, "the head did not arrive in time")),
            Phase::Idle => Some((state.since + limits.idle_timeout, "it was idle")),
            Phase::Serving | Phase::Answering | Phase::Closing => None,
        };
        let stuck = state.stuck_since.map(|since| (since + limits.write_timeout, "the client does not read"));
        [phase, stuck].into_iter().flatten().min_by_key(|(deadline, _)| *deadline)
    }

    /// Waits until something is overdue; says what.
    ///
    /// It looks again after the shortest limit, so that what happens in between needs no timer of its own.
    pub(super) async fn overdue(&self, limits: &Limits) -> &'static str {
        let shortest = limits.header_timeout.min(limits.idle_timeout).min(limits.write_timeout);
        loop {
            let now = Instant::now();
            let look_again = now + shortest;
            let wake = match self.deadline(limits) {
                Some((deadline, what)) if deadline <= now => return what,
                Some((deadline, _)) => deadline.min(look_again),
                None => look_again,
            };
            tokio::time::sleep_until(wake).await;
        }
    }
}
