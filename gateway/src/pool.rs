//! The ready workers: who gets the next batch, and what becomes of a batch whose worker was lost.
//!
//! A permit is one batch frame on one worker. Each worker has a semaphore of its own; `Pool::reserve` waits
//! for a permit of the worker with the fewest tokens in flight. Work that has to be done again comes back here and
//! goes first: it never climbs back into the scheduler. See `retry` for who is run again, and how.
//!
//! The list of workers is behind a mutex that is held for a few instructions per batch, never across an
//! `await`.

pub(crate) mod connection;
mod poison;
mod retry;
mod speed;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use akidb_protocol::Pooling;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};

use crate::job::Job;
use crate::metrics::{Metrics, Phase, RestartReason};
use poison::PoisonMemory;
use retry::{Retries, Retry};
use speed::Speed;

/// How long a batch should keep a worker busy: much longer than what a frame costs, and short enough that a later
/// text does not wait long for an earlier batch.
const BATCH_TIME: Duration = Duration::from_millis(100);
/// Bounds of a batch whose size follows from the workers' speed, in tokens.
const FEWEST_BATCH_TOKENS: usize = 256;
const MOST_BATCH_TOKENS: usize = 16_384;

/// What a worker may hold, and what is remembered of the lost ones.
#[derive(Debug, Clone)]
pub struct Config {
    /// Batches at one worker at a time.
    pub max_inflight_per_worker: usize,
    /// How long a text that crashed a worker is refused.
    pub poison_memory: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { max_inflight_per_worker: 2, poison_memory: Duration::from_secs(600) }
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
    state: Mutex<State>,
    changed: Notify,
    poison: PoisonMemory,
    replacements: mpsc::UnboundedSender<Replacement>,
}

#[derive(Debug, Default)]
struct State {
    members: Vec<Arc<Member>>,
    next_seat: u64,
    retries: Retries,
    /// Hashes of the suspects that are at workers now.
    suspects: HashSet<u64>,
    speed: Speed,
}

/// A ready worker as the pool sees it.
#[derive(Debug)]
struct Member {
    /// Tells this process of the worker from those before and after it.
    seat: u64,
    worker: usize,
    permits: Arc<Semaphore>,
    tokens_in_flight: AtomicUsize,
    /// Texts at the worker under which another worker was lost.
    suspects: AtomicUsize,
    is_responsive: AtomicBool,
    /// Whether somebody asked to have it replaced, and that has not failed yet.
    is_to_be_replaced: AtomicBool,
    batches: mpsc::UnboundedSender<Assignment>,
}

impl Member {
    fn is_responsive(&self) -> bool {
        self.is_responsive.load(Ordering::Relaxed)
    }
}

/// A wish to have a worker replaced, once a successor is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Replacement {
    /// Number of the worker.
    pub(crate) worker: usize,
    /// Its seat; a later process of the same worker is not meant.
    pub(crate) seat: u64,
    /// Why.
    pub(crate) reason: RestartReason,
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
    member: Arc<Member>,
    pool: Pool,
}

impl Seat {
    /// The pool it is a place in.
    pub(crate) fn pool(&self) -> Pool {
        self.pool.clone()
    }

    /// Tells this process of the worker from those before and after it.
    pub(crate) fn number(&self) -> u64 {
        self.member.seat
    }

    /// Says whether the worker gives signs of life and progress; one that does not is given no more batches.
    pub(crate) fn set_responsive(&self, is_responsive: bool) {
        if self.member.is_responsive.swap(is_responsive, Ordering::Relaxed) != is_responsive {
            self.pool.count_ready(is_responsive);
            if is_responsive {
                self.pool.capacity_freed();
            }
        }
    }
}

impl Pool {
    /// An empty pool, and the wishes to have workers replaced.
    pub(crate) fn new(
        config: Config,
        cores: usize,
        metrics: Arc<Metrics>,
    ) -> (Self, mpsc::UnboundedReceiver<Replacement>) {
        let (replacements, wishes) = mpsc::unbounded_channel();
        let shared = Shared {
            poison: PoisonMemory::new(config.poison_memory),
            config,
            cores,
            metrics,
            state: Mutex::default(),
            changed: Notify::new(),
            replacements,
        };
        (Self { shared: Arc::new(shared) }, wishes)
    }

    /// Adds a ready worker, which warmed up at this speed.
    pub(crate) fn join(&self, worker: usize, tokens_per_second: f64) -> Membership {
        let (batches, assignments) = mpsc::unbounded_channel();
        let member = {
            let mut state = self.state();
            state.speed.warmed_up(tokens_per_second);
            state.next_seat += 1;
            let member = Arc::new(Member {
                seat: state.next_seat,
                worker,
                permits: Arc::new(Semaphore::new(self.shared.config.max_inflight_per_worker)),
                tokens_in_flight: AtomicUsize::new(0),
                suspects: AtomicUsize::new(0),
                is_responsive: AtomicBool::new(true),
                is_to_be_replaced: AtomicBool::new(false),
                batches,
            });
            state.members.push(Arc::clone(&member));
            member
        };
        self.count_ready(true);
        self.capacity_freed();
        Membership { assignments, seat: Seat { member, pool: self.clone() } }
    }

    /// Waits for a permit of the worker with the fewest tokens in flight.
    pub(crate) async fn reserve(&self) -> Permit {
        loop {
            let changed = self.shared.changed.notified();
            let permit = self.try_reserve(&self.state(), |_| true);
            if let Some(permit) = permit {
                return permit;
            }
            changed.await;
        }
    }

    /// Tokens that keep a worker busy for `BATCH_TIME`.
    pub(crate) fn batch_tokens(&self) -> usize {
        batch_tokens(self.state().speed.fastest_warm_up())
    }

    /// Workers that can take a batch.
    pub(crate) fn ready_workers(&self) -> usize {
        self.state().members.iter().filter(|member| member.is_responsive()).count()
    }

    /// Tokens that one worker lately computed in a second; `None` before the first warm-up.
    pub(crate) fn worker_tokens_per_second(&self) -> Option<f64> {
        self.state().speed.tokens_per_second()
    }

    /// Batches that a worker holds now.
    pub(crate) fn in_flight(&self, worker: usize) -> usize {
        let limit = self.shared.config.max_inflight_per_worker;
        let held = |member: &Arc<Member>| limit.saturating_sub(member.permits.available_permits());
        self.state().members.iter().filter(|member| member.worker == worker).map(held).sum()
    }

    /// Whether a worker has a seat and gives signs of life and progress.
    pub(crate) fn is_responsive(&self, worker: usize) -> bool {
        self.state().members.iter().any(|member| member.worker == worker && member.is_responsive())
    }

    /// Whether this text lately crashed a worker while it was alone in a batch.
    pub(crate) fn is_poison(&self, token_ids: &[u32], pooling: Pooling) -> bool {
        self.shared.poison.contains(token_ids, pooling)
    }

    /// Notes that a request was admitted, which allows for a tenth of a retry.
    pub(crate) fn request_admitted(&self) {
        self.state().retries.refill();
    }

    /// Asks to have the worker on this seat replaced, if it still is there and nobody has asked before.
    pub(crate) fn replace(&self, seat: u64, reason: RestartReason) {
        if let Some(member) = self.member(seat)
            && !member.is_to_be_replaced.swap(true, Ordering::Relaxed)
        {
            // Nobody listens when the gateway stops.
            let _ = self.shared.replacements.send(Replacement { worker: member.worker, seat, reason });
        }
    }

    /// Lets others ask again to have the worker on this seat replaced.
    pub(crate) fn keep(&self, seat: u64) {
        if let Some(member) = self.member(seat) {
            member.is_to_be_replaced.store(false, Ordering::Relaxed);
        }
    }

    fn member(&self, seat: u64) -> Option<Arc<Member>> {
        self.state().members.iter().find(|member| member.seat == seat).cloned()
    }

    /// Notes how long a batch was away, how much of that its computation took, and how long it kept its worker busy.
    pub(crate) fn batch_took(&self, tokens: usize, away: Duration, compute_seconds: f64, busy: Duration) {
        let metrics = &self.shared.metrics;
        metrics.phase_took(Phase::Compute, compute_seconds);
        metrics.phase_took(Phase::Transfer, (away.as_secs_f64() - compute_seconds).max(0.0));
        let mut state = self.state();
        let full = batch_tokens(state.speed.fastest_warm_up());
        state.speed.batch_took(tokens, busy.as_secs_f64(), tokens * 2 >= full);
    }

    fn try_reserve(&self, state: &State, wanted: impl Fn(&Member) -> bool) -> Option<Permit> {
        let mut members: Vec<&Arc<Member>> =
            state.members.iter().filter(|member| member.is_responsive() && wanted(member)).collect();
        members.sort_by_key(|member| member.tokens_in_flight.load(Ordering::Relaxed));
        members.into_iter().find_map(|member| {
            let slot = Arc::clone(&member.permits).try_acquire_owned().ok()?;
            Some(Permit {
                slot: Some(slot),
                member: Arc::clone(member),
                tokens: 0,
                suspect: None,
                pool: self.clone(),
            })
        })
    }

    /// Called whenever a permit may be free: what has to be done again is served first, then the scheduler.
    fn capacity_freed(&self) {
        loop {
            let mut state = self.state();
            let Some((permit, Retry { jobs, .. })) = retry::take_next(self, &mut state) else { break };
            let more = !state.retries.is_empty();
            drop(state);
            permit.send(jobs, more);
        }
        self.shared.changed.notify_one();
    }

    /// Cores for each worker that is busy once one more batch has been sent to `next`: for each of them all when
    /// `more` batches follow.
    fn threads_for(&self, next: &Member, more: bool) -> u16 {
        // One that hangs or is stopped needs no core.
        let state = self.state();
        let responsive = state.members.iter().filter(|member| member.is_responsive());
        let busy = responsive.filter(|member| {
            more || member.seat == next.seat || member.tokens_in_flight.load(Ordering::Relaxed) > 0
        });
        let busy = busy.count();
        u16::try_from(self.shared.cores / busy.max(1)).unwrap_or(u16::MAX).max(1)
    }

    fn count_ready(&self, one_more: bool) {
        self.shared.metrics.workers_ready.inc_by(if one_more { 1 } else { -1 });
    }

    /// Never drop a [`Permit`] while this is held: that locks, too.
    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.pool.state().members.retain(|member| member.seat != self.member.seat);
        if self.member.is_responsive() {
            self.pool.count_ready(false);
        }
    }
}

/// The right to send one batch to one worker. Dropping it gives the slot back.
#[derive(Debug)]
pub(crate) struct Permit {
    slot: Option<OwnedSemaphorePermit>,
    member: Arc<Member>,
    tokens: usize,
    /// Hash of the text on trial that travels with it.
    suspect: Option<u64>,
    pool: Pool,
}

impl Permit {
    /// Sends a batch to the worker; `more` says that others follow at once.
    pub(crate) fn send(mut self, jobs: Vec<Job>, more: bool) {
        let mut jobs = self.pool.without_poison(jobs);
        if jobs.is_empty() {
            return;
        }
        for job in &mut jobs {
            if let Some(place) = job.place.take() {
                place.dispatch();
            }
        }
        self.tokens = jobs.iter().map(|job| job.token_ids.len()).sum();
        let threads = self.pool.threads_for(&self.member, more);
        self.member.tokens_in_flight.fetch_add(self.tokens, Ordering::Relaxed);
        let batches = self.member.batches.clone();
        if let Err(refused) = batches.send(Assignment { jobs, threads, permit: self }) {
            // The worker was lost between the reservation and now.
            let assignment = refused.0;
            let pool = assignment.permit.pool.clone();
            pool.take_back(vec![assignment]);
        }
    }

    /// Gives the slot back without offering it to anybody; the caller goes on to do that.
    fn discard(mut self) {
        self.release();
    }

    fn release(&mut self) -> bool {
        self.member.tokens_in_flight.fetch_sub(std::mem::take(&mut self.tokens), Ordering::Relaxed);
        if let Some(text) = self.suspect.take() {
            self.pool.state().suspects.remove(&text);
            self.member.suspects.fetch_sub(1, Ordering::Relaxed);
        }
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
