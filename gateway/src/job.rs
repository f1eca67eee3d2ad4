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
    pub(crate) _share: Share,
    /// How many workers were lost while they computed it.
    pub(crate) lost_workers: u8,
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
        // Nobody listens when the client has gone.
        let _ = self.reply.sender.send((self.reply.index, result));
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

/// Work that was admitted and is neither answered nor given up, in tokens.
#[derive(Debug, Default)]
pub(crate) struct Backlog(AtomicUsize);

impl Backlog {
    /// Tokens now.
    pub(crate) fn tokens(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Adds a text of so many tokens.
    pub(crate) fn add(self: &Arc<Self>, tokens: usize) -> Share {
        self.0.fetch_add(tokens, Ordering::Relaxed);
        Share { tokens, backlog: Arc::clone(self) }
    }
}

/// A text's part of the [`Backlog`], until it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    tokens: usize,
    backlog: Arc<Backlog>,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.backlog.0.fetch_sub(self.tokens, Ordering::Relaxed);
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
        request.metrics.queue_tokens.inc_by(in_gauge(tokens));
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
        self.request.metrics.queue_tokens.dec_by(in_gauge(self.tokens));
        if !self.is_dispatched && Instant::now() >= self.deadline {
            self.request.metrics.expired_texts.inc();
        }
    }
}

/// A request's place in the queue: it counts in `queue_depth` until the last of its jobs is at a worker or
/// dropped.
#[derive(Debug)]
pub(crate) struct QueueEntry {
    admitted: Instant,
    waited: AtomicBool,
    metrics: Arc<Metrics>,
}

impl QueueEntry {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        metrics.queue_depth.inc();
        Arc::new(Self { admitted: Instant::now(), waited: AtomicBool::new(false), metrics })
    }

    /// Notes that a batch with one of the request's texts has a permit.
    fn has_permit(&self) {
        if !self.waited.swap(true, Ordering::Relaxed) {
            self.metrics.gil_wait_seconds.observe(self.admitted.elapsed().as_secs_f64());
        }
    }
}

impl Drop for QueueEntry {
    fn drop(&mut self) {
        self.metrics.queue_depth.dec();
    }
}

fn in_gauge(tokens: usize) -> i64 {
    i64::try_from(tokens).unwrap_or(i64::MAX)
}
