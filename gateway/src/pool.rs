//! The ready workers: who gets the next batch, and what becomes of a batch whose worker was lost.
//!
//! A permit is one batch frame on one worker. Each worker has a semaphore of its own; `Pool::reserve` waits
//! for a permit of the worker with the fewest tokens in flight. Lost batches come back here and go first:
//! they never climb back into the scheduler.
//!
//! The list of workers is behind a mutex that is held for a few instructions per batch, never across an
//! `await`.

pub(crate) mod connection;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};

use crate::error::EmbedError;
use crate::job::Job;
use crate::metrics::{Metrics, Phase};

/// How often a job may be run again after the worker that computed it was lost.
const MAX_RETRIES: u8 = 2;

/// How long a batch should keep a worker busy: much longer than what a frame costs, and short enough that a later
/// text does not wait long for an earlier batch.
const BATCH_TIME: Duration = Duration::from_millis(100);
/// Bounds of a batch whose size follows from the workers' speed, in tokens.
const FEWEST_BATCH_TOKENS: usize = 256;
const MOST_BATCH_TOKENS: usize = 16_384;

/// What a worker may hold.
#[derive(Debug, Clone)]
pub struct Config {
    /// Batches at one worker at a time.
    pub max_inflight_per_worker: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { max_inflight_per_worker: 2 }
    }
}

/// Handle to the pool. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: Config,
    /// Threads that all busy workers share.
    cores: usize,
    metrics: Arc<Metrics>,
    members: Mutex<Members>,
    changed: Notify,
    /// Tokens per second of the fastest warm-up so far: a busy machine only makes them slower.
    tokens_per_second: AtomicUsize,
}

#[derive(Debug, Default)]
struct Members {
    workers: Vec<Member>,
    lost: VecDeque<Vec<Job>>,
}

/// A ready worker as the pool sees it.
#[derive(Debug, Clone)]
struct Member {
    id: usize,
    permits: Arc<Semaphore>,
    tokens_in_flight: Arc<AtomicUsize>,
    batches: mpsc::UnboundedSender<Assignment>,
}

/// A batch and the permit it travels with.
#[derive(Debug)]
pub(crate) struct Assignment {
    /// The texts.
    pub(crate) jobs: Vec<Job>,
    /// Threads the worker should compute with.
    pub(crate) threads: u16,
    /// Gives the worker's slot back when it is dropped.
    pub(crate) permit: Permit,
}

/// A worker's part in the pool.
#[derive(Debug)]
pub(crate) struct Membership {
    /// The batches it is given.
    pub(crate) assignments: mpsc::UnboundedReceiver<Assignment>,
    /// Its place; it is given no more batches once this is dropped.
    pub(crate) seat: Seat,
}

/// A worker's place in the pool.
#[derive(Debug)]
pub(crate) struct Seat {
    id: usize,
    pool: Pool,
}

impl Seat {
    /// The pool it is a place in.
    pub(crate) fn pool(&self) -> Pool {
        self.pool.clone()
    }
}

impl Pool {
    /// An empty pool.
    pub(crate) fn new(config: Config, cores: usize, metrics: Arc<Metrics>) -> Self {
        Self {
            shared: Arc::new(Shared {
                config,
                cores,
                metrics,
                members: Mutex::default(),
                changed: Notify::new(),
                tokens_per_second: AtomicUsize::new(0),
            }),
        }
    }

    /// Adds a ready worker, which warmed up at this speed.
    pub(crate) fn join(&self, id: usize, tokens_per_second: f64) -> Membership {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates")]
        self.shared.tokens_per_second.fetch_max(tokens_per_second as usize, Ordering::Relaxed);
        let (batches, assignments) = mpsc::unbounded_channel();
        let permits = Arc::new(Semaphore::new(self.shared.config.max_inflight_per_worker));
        self.members().workers.push(Member { id, permits, tokens_in_flight: Arc::default(), batches });
        self.shared.metrics.workers_ready.inc();
        self.capacity_freed();
        Membership { assignments, seat: Seat { id, pool: self.clone() } }
    }

    /// Waits for a permit of the worker with the fewest tokens in flight.
    pub(crate) async fn reserve(&self) -> Permit {
        loop {
            let changed = self.shared.changed.notified();
            if let Some(permit) = self.try_reserve() {
                return permit;
            }
            changed.await;
        }
    }

    /// Tokens that keep a worker busy for `BATCH_TIME`.
    pub(crate) fn batch_tokens(&self) -> usize {
        batch_tokens(self.shared.tokens_per_second.load(Ordering::Relaxed))
    }

    /// Workers that can take a batch.
    pub(crate) fn ready_workers(&self) -> usize {
        self.members().workers.len()
    }

    /// Batches that a worker holds now.
    pub(crate) fn in_flight(&self, id: usize) -> usize {
        let limit = self.shared.config.max_inflight_per_worker;
        self.members()
            .workers
            .iter()
            .find(|worker| worker.id == id)
            .map_or(0, |worker| limit.saturating_sub(worker.permits.available_permits()))
    }

    /// Takes back the batches of a worker that was lost.
    ///
    /// A batch it had not begun goes on as it was. The texts of one that it had begun go on one by one, so
    /// that a text which kills its worker takes no others with it; each may be lost three times.
    pub(crate) fn take_back(&self, not_begun: Vec<Vec<Job>>, begun: Vec<Vec<Job>>) {
        let mut lost = not_begun;
        for mut job in begun.into_iter().flatten() {
            job.reply.worker_lost.store(true, Ordering::Relaxed);
            if job.lost_workers == MAX_RETRIES {
                job.answer(Err(EmbedError::WorkerLost));
            } else {
                job.lost_workers += 1;
                lost.push(vec![job]);
            }
        }
        if lost.is_empty() {
            return;
        }
        self.shared.metrics.retries.inc_by(lost.len() as u64);
        self.members().lost.extend(lost);
        self.capacity_freed();
    }

    /// Runs the texts of a failed batch again, one by one.
    pub(crate) fn rerun_singly(&self, jobs: Vec<Job>) {
        self.shared.metrics.retries.inc_by(jobs.len() as u64);
        self.members().lost.extend(jobs.into_iter().map(|job| vec![job]));
        self.capacity_freed();
    }

    /// Notes how long a batch was away, and how much of that its computation took.
    pub(crate) fn batch_took(&self, away_seconds: f64, compute_seconds: f64) {
        let metrics = &self.shared.metrics;
        metrics.phase_took(Phase::Compute, compute_seconds);
        metrics.phase_took(Phase::Transfer, (away_seconds - compute_seconds).max(0.0));
    }

    fn try_reserve(&self) -> Option<Permit> {
        let members = self.members();
        let mut workers: Vec<&Member> = members.workers.iter().collect();
        workers.sort_by_key(|worker| worker.tokens_in_flight.load(Ordering::Relaxed));
        workers.into_iter().find_map(|worker| {
            let permit = Arc::clone(&worker.permits).try_acquire_owned().ok()?;
            Some(Permit { slot: Some(permit), worker: worker.clone(), tokens: 0, pool: self.clone() })
        })
    }

    /// Called whenever a permit may be free: lost batches are served first, then the scheduler.
    fn capacity_freed(&self) {
        while !self.members().lost.is_empty() {
            let Some(permit) = self.try_reserve() else { return };
            let Some(mut jobs) = self.members().lost.pop_front() else { break };
            jobs.retain(Job::is_wanted);
            if jobs.is_empty() {
                permit.discard();
            } else {
                let more = !self.members().lost.is_empty();
                permit.send(jobs, more);
            }
        }
        self.shared.changed.notify_one();
    }

    /// Cores for each worker that is busy once one more batch has been sent to `next`: for each of them all when
    /// `more` batches follow.
    fn threads_for(&self, next: &Member, more: bool) -> u16 {
        let busy = |worker: &&Member| {
            more || worker.id == next.id || worker.tokens_in_flight.load(Ordering::Relaxed) > 0
        };
        let busy = self.members().workers.iter().filter(busy).count();
        u16::try_from(self.shared.cores / busy.max(1)).unwrap_or(u16::MAX).max(1)
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        self.shared.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.pool.members().workers.retain(|worker| worker.id != self.id);
        self.pool.shared.metrics.workers_ready.dec();
    }
}

/// The right to send one batch to one worker. Dropping it gives the slot back.
#[derive(Debug)]
pub(crate) struct Permit {
    slot: Option<OwnedSemaphorePermit>,
    worker: Member,
    tokens: usize,
    pool: Pool,
}

impl Permit {
    /// Sends a batch to the worker; `more` says that others follow at once.
    pub(crate) fn send(mut self, mut jobs: Vec<Job>, more: bool) {
        for job in &mut jobs {
            if let Some(entry) = job.queued.take() {
                entry.has_permit();
            }
        }
        self.tokens = jobs.iter().map(|job| job.token_ids.len()).sum();
        let threads = self.pool.threads_for(&self.worker, more);
        self.worker.tokens_in_flight.fetch_add(self.tokens, Ordering::Relaxed);
        let batches = self.worker.batches.clone();
        if let Err(refused) = batches.send(Assignment { jobs, threads, permit: self }) {
            // The worker was lost between the reservation and now.
            let Assignment { jobs, permit, .. } = refused.0;
            let pool = permit.pool.clone();
            permit.discard();
            pool.take_back(vec![jobs], Vec::new());
        }
    }

    /// Gives the slot back without offering it to anybody; the caller goes on to do that.
    fn discard(mut self) {
        self.release();
    }

    fn release(&mut self) -> bool {
        self.worker.tokens_in_flight.fetch_sub(std::mem::take(&mut self.tokens), Ordering::Relaxed);
        self.slot.take().is_some()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.release() {
            self.pool.capacity_freed();
        }
    }
}

fn batch_tokens(tokens_per_second: usize) -> usize {
    let tokens =
        u128::try_from(tokens_per_second).unwrap_or(u128::MAX).saturating_mul(BATCH_TIME.as_millis()) / 1000;
    usize::try_from(tokens).unwrap_or(usize::MAX).clamp(FEWEST_BATCH_TOKENS, MOST_BATCH_TOKENS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_a_batch_follows_from_the_speed_of_the_workers_within_bounds() {
        assert_eq!(batch_tokens(0), FEWEST_BATCH_TOKENS);
        assert_eq!(batch_tokens(8_000), 800);
        assert_eq!(batch_tokens(usize::MAX), MOST_BATCH_TOKENS);
    }
}
