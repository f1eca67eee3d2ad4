//! One text on its way: what it is, who waits for it, and its place in the queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use akidb_protocol::Pooling;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::error::EmbedError;
use crate::metrics::Metrics;

/// A text's position in its request, and its raw vector (little-endian `f32`) or what went wrong.
pub(crate) type Answer = (usize, Result<Bytes, EmbedError>);

/// One text to embed.
#[derive(Debug)]
pub(crate) struct Job {
    /// Token ids, special tokens included.
    pub(crate) token_ids: Vec<u32>,
    /// How its vector is pooled.
    pub(crate) pooling: Pooling,
    /// When its answer stops being of use.
    pub(crate) deadline: Instant,
    /// Who waits.
    pub(crate) reply: Reply,
    /// Its place in the queue, until a worker has the text.
    pub(crate) place: Option<Place>,
    /// Its part of the work that was admitted and is not done.
    pub(crate) share: Share,
    /// How many workers were lost while they computed it.
    pub(crate) lost_workers: u8,
    /// Whether one of them died on its own.
    pub(crate) is_suspect: bool,
    /// Set when its vector could not be right.
    pub(crate) doubt: Option<Arc<Doubt>>,
    /// How many later texts were put into a batch before it.
    pub(crate) overtaken: u8,
}

impl Job {
    /// Whether anybody still waits for the answer.
    pub(crate) fn is_wanted(&self) -> bool {
        !self.reply.sender.is_closed() && Instant::now() < self.deadline
    }

    /// Position of the text in its request.
    pub(crate) fn index(&self) -> usize {
        self.reply.index
    }

    /// Answers the job, which ends it.
    pub(crate) fn answer(self, result: Result<Bytes, EmbedError>) {
        let Self { reply, share, .. } = self;
        // First: whoever reads the answer and sends the next request must not find this one in the backlog.
        drop(share);
        // Nobody listens when the client has gone.
        let _ = reply.sender.send((reply.index, result));
    }
}

/// Texts of one batch whose vectors could not be right, and that are computed again elsewhere.
///
/// Only when all of them come right there, the worker was at fault: else it was one of the texts.
#[derive(Debug)]
pub(crate) struct Doubt {
    seat: Option<u64>,
    undecided: AtomicUsize,
    any_wrong_again: AtomicBool,
}

impl Doubt {
    /// `seat` is that of the worker, unless it has left it.
    pub(crate) fn new(seat: Option<u64>, texts: usize) -> Self {
        Self { seat, undecided: AtomicUsize::new(texts), any_wrong_again: AtomicBool::new(false) }
    }

    /// Seat of the worker that gave the wrong vectors.
    pub(crate) fn seat(&self) -> Option<u64> {
        self.seat
    }

    /// Counts a right vector; returns the seat of the worker that is to be replaced for the wrong ones.
    pub(crate) fn was_right_elsewhere(&self) -> Option<u64> {
        let is_last = self.undecided.fetch_sub(1, Ordering::SeqCst) == 1;
        self.seat.filter(|_| is_last && !self.any_wrong_again.load(Ordering::SeqCst))
    }

    /// Counts a vector that is wrong again.
    pub(crate) fn was_wrong_again(&self) {
        self.any_wrong_again.store(true, Ordering::SeqCst);
        self.undecided.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Where a job's answer goes.
#[derive(Debug)]
pub(crate) struct Reply {
    /// Position of the text in its request.
    pub(crate) index: usize,
    /// Shared by all jobs of the request.
    pub(crate) sender: mpsc::UnboundedSender<Answer>,
    /// Set when a worker was lost under one of the request's texts.
    pub(crate) worker_lost: Arc<AtomicBool>,
}

/// Work that was admitted and is neither answered nor given up, in tokens. Admission is decided by these numbers; the
/// metrics only follow them.
#[derive(Debug)]
pub(crate) struct Backlog {
    outstanding: AtomicUsize,
    queued: AtomicUsize,
    metrics: Arc<Metrics>,
}

impl Backlog {
    /// Nothing.
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self { outstanding: AtomicUsize::new(0), queued: AtomicUsize::new(0), metrics }
    }

    /// Tokens now, queued and at workers.
    pub(crate) fn tokens(&self) -> usize {
        self.outstanding.load(Ordering::Relaxed)
    }

    /// Tokens that no worker has yet.
    pub(crate) fn queued_tokens(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    /// Adds a request of this many tokens if `may_join` agrees to the tokens before it. No two requests are judged by the
    /// same number.
    pub(crate) fn join<E>(
        self: &Arc<Self>,
        tokens: usize,
        may_join: impl Fn(usize) -> Result<(), E>,
    ) -> Result<Share, E> {
        let mut before = self.tokens();
        loop {
            may_join(before)?;
            let after = before.saturating_add(tokens);
            match self.outstanding.compare_exchange_weak(before, after, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return Ok(Share { tokens, backlog: Arc::clone(self) }),
                Err(now) => before = now,
            }
        }
    }
}

/// A part of the [`Backlog`], until it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    tokens: usize,
    backlog: Arc<Backlog>,
}

impl Share {
    /// Takes the part of one text out of its request's.
    pub(crate) fn split(&mut self, tokens: usize) -> Self {
        let tokens = tokens.min(self.tokens);
        self.tokens -= tokens;
        Self { tokens, backlog: Arc::clone(&self.backlog) }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.backlog.outstanding.fetch_sub(self.tokens, Ordering::Relaxed);
    }
}

/// A text's place in the queue. Dropping it gives the place up.
#[derive(Debug)]
pub(crate) struct Place {
    tokens: usize,
    deadline: Instant,
    is_dispatched: bool,
    request: Arc<QueueEntry>,
}

impl Place {
    pub(crate) fn new(request: &Arc<QueueEntry>, tokens: usize, deadline: Instant) -> Self {
        request.backlog.queued.fetch_add(tokens, Ordering::Relaxed);
        request.backlog.metrics.queue_tokens.inc_by(in_gauge(tokens));
        Self { tokens, deadline, is_dispatched: false, request: Arc::clone(request) }
    }

    /// Leaves the queue for a worker.
    pub(crate) fn dispatch(mut self) {
        self.is_dispatched = true;
        self.request.has_permit();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let backlog = &self.request.backlog;
        backlog.queued.fetch_sub(self.tokens, Ordering::Relaxed);
        backlog.metrics.queue_tokens.dec_by(in_gauge(self.tokens));
        if !self.is_dispatched && Instant::now() >= self.deadline {
            backlog.metrics.expired_texts.inc();
        }
    }
}

/// A request's place in the queue: it counts in `queue_depth` until the last of its jobs is at a worker or
/// dropped.
#[derive(Debug)]
pub(crate) struct QueueEntry {
    admitted: Instant,
    waited: AtomicBool,
    backlog: Arc<Backlog>,
}

impl QueueEntry {
    pub(crate) fn new(backlog: &Arc<Backlog>) -> Arc<Self> {
        backlog.metrics.queue_depth.inc();
        Arc::new(Self {
            admitted: Instant::now(),
            waited: AtomicBool::new(false),
            backlog: Arc::clone(backlog),
        })
    }

    /// Notes that a batch with one of the request's texts has a permit.
    fn has_permit(&self) {
        if !self.waited.swap(true, Ordering::Relaxed) {
            self.backlog.metrics.gil_wait_seconds.observe(self.admitted.elapsed().as_secs_f64());
        }
    }
}

impl Drop for QueueEntry {
    fn drop(&mut self) {
        self.backlog.metrics.queue_depth.dec();
    }
}

fn in_gauge(tokens: usize) -> i64 {
    i64::try_from(tokens).unwrap_or(i64::MAX)
}
