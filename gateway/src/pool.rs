//! The ready workers: who gets the next batch, and what becomes of a batch whose worker was lost.
//!
//! A permit is one batch frame on one worker. Each worker has a semaphore of its own; `Pool::reserve` waits
//! for a permit of the worker that would be done first. Work that has to be done again comes back here and
//! goes first: it never climbs back into the scheduler. See `retry` for who is run again, and how.
//!
//! The list of workers is behind a mutex that is held for a few instructions per batch, never across an
//! `await`.

pub(crate) mod connection;
mod poison;
mod retry;
mod samples;
mod speed;
mod writer;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use akidb_protocol::Pooling;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;

use crate::job::{Backlog, Job};
use crate::metrics::{Metrics, Phase, RestartReason};
use poison::{PoisonMemory, TextHash};
pub(crate) use retry::Manner;
use retry::{Retries, Retry};
use speed::Speeds;
pub(crate) use speed::{Capacity, Expectations, Start};

/// What a worker may hold, and what is remembered of the lost ones.
#[derive(Debug, Clone)]
pub struct Config {
    /// Batches at one worker at a time.
    pub max_inflight_per_worker: usize,
    /// How long a text that two workers died of is refused, and one that a worker died of is suspected.
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
    backlog: Arc<Backlog>,
    state: Mutex<State>,
    changed: Notify,
    poison: PoisonMemory,
    replacements: mpsc::UnboundedSender<Replacement>,
}

#[derive(Debug)]
struct State {
    members: Vec<Arc<Member>>,
    next_seat: u64,
    retries: Retries,
    /// Texts on trial at workers now.
    on_trial: HashSet<TextHash>,
    speeds: Speeds,
}

/// A ready worker as the pool sees it.
#[derive(Debug)]
struct Member {
    /// Tells this process of the worker from those before and after it.
    seat: u64,
    worker: usize,
    permits: Arc<Semaphore>,
    /// Texts on trial at the worker.
    trials: AtomicUsize,
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

    /// Says whether the worker sends heartbeats and makes progress; one that does not is given no more batches.
    pub(crate) fn set_responsive(&self, is_responsive: bool) {
        if self.member.is_responsive.swap(is_responsive, Ordering::Relaxed) != is_responsive {
            self.pool.state().speeds.set_live(self.member.seat, is_responsive, Instant::now());
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
        expectations: Expectations,
        cores: usize,
        metrics: Arc<Metrics>,
    ) -> (Self, mpsc::UnboundedReceiver<Replacement>) {
        let (replacements, wishes) = mpsc::unbounded_channel();
        let shared = Shared {
            poison: PoisonMemory::new(config.poison_memory),
            config,
            cores,
            backlog: Arc::new(Backlog::new(Arc::clone(&metrics))),
            metrics,
            state: Mutex::new(State {
                members: Vec::new(),
                next_seat: 0,
                retries: Retries::default(),
                on_trial: HashSet::new(),
                speeds: Speeds::new(expectations, Instant::now()),
            }),
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
            state.next_seat += 1;
            let seat = state.next_seat;
            state.speeds.joins(seat, tokens_per_second, Instant::now());
            let member = Arc::new(Member {
                seat,
                worker,
                permits: Arc::new(Semaphore::new(self.shared.config.max_inflight_per_worker)),
                trials: AtomicUsize::new(0),
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

    /// Waits for a permit of the worker that would be done first with what it holds and a little more.
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

    /// What all workers together can do.
    pub(crate) fn capacity(&self) -> Capacity {
        self.state().speeds.capacity(Instant::now())
    }

    /// Tokens that show how fast the workers are; `None` while that is known, or there is no worker.
    pub(crate) fn tokens_to_measure(&self) -> Option<usize> {
        self.state().speeds.tokens_to_measure(Instant::now())
    }

    /// Work that was admitted and is not done.
    pub(crate) fn backlog(&self) -> &Arc<Backlog> {
        &self.shared.backlog
    }

    /// Workers that can take a batch.
    pub(crate) fn ready_workers(&self) -> usize {
        self.state().members.iter().filter(|member| member.is_responsive()).count()
    }

    /// Time that a batch of this many tokens usually takes on this seat.
    pub(crate) fn usual_time(&self, seat: u64, tokens: usize) -> Duration {
        Duration::try_from_secs_f64(self.state().speeds.usual_seconds(seat, tokens)).unwrap_or(Duration::MAX)
    }

    /// Batches that a worker holds now.
    pub(crate) fn in_flight(&self, worker: usize) -> usize {
        let limit = self.shared.config.max_inflight_per_worker;
        let held = |member: &Arc<Member>| limit.saturating_sub(member.permits.available_permits());
        self.state().members.iter().filter(|member| member.worker == worker).map(held).sum()
    }

    /// Whether a worker has a seat and sends heartbeats and makes progress.
    pub(crate) fn is_responsive(&self, worker: usize) -> bool {
        self.state().members.iter().any(|member| member.worker == worker && member.is_responsive())
    }

    /// Whether this text is refused because two workers recently died of it.
    pub(crate) fn is_poison(&self, token_ids: &[u32], pooling: Pooling) -> bool {
        self.shared.poison.is_poison(token_ids, pooling)
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

    /// Notes that the worker on this seat begins a batch.
    pub(crate) fn batch_begins(&self, seat: u64, tokens: usize) -> Start {
        let outstanding = self.shared.backlog.tokens();
        self.state().speeds.begins(seat, tokens, outstanding, Instant::now())
    }

    /// Notes how long the batch kept its worker busy.
    pub(crate) fn batch_took(&self, seat: u64, tokens: usize, busy: Duration, start: Start) {
        self.state().speeds.took(seat, tokens, busy.as_secs_f64(), start, Instant::now());
    }

    /// Notes how long a batch was away, and how much of that its computation took.
    pub(crate) fn batch_was_away(&self, away: Duration, compute_seconds: f64) {
        let metrics = &self.shared.metrics;
        metrics.phase_took(Phase::Compute, compute_seconds);
        metrics.phase_took(Phase::Transfer, (away.as_secs_f64() - compute_seconds).max(0.0));
    }

    fn try_reserve(&self, state: &State, wanted: impl Fn(&Member) -> bool) -> Option<Permit> {
        let now = Instant::now();
        let members = state.members.iter().filter(|member| member.is_responsive() && wanted(member));
        let mut members: Vec<_> =
            members.map(|member| (state.speeds.wait(member.seat, now), member)).collect();
        members.sort_by(|one, other| one.0.total_cmp(&other.0));
        members.into_iter().find_map(|(_, member)| {
            let slot = Arc::clone(&member.permits).try_acquire_owned().ok()?;
            Some(Permit {
                slot: Some(slot),
                member: Arc::clone(member),
                tokens: 0,
                is_sent: false,
                trial: None,
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
        let busy =
            responsive.filter(|member| more || member.seat == next.seat || state.speeds.is_busy(member.seat));
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
        {
            let mut state = self.pool.state();
            state.members.retain(|member| member.seat != self.member.seat);
            state.speeds.leaves(self.member.seat, Instant::now());
        }
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
    is_sent: bool,
    /// The text on trial that travels with it, alone.
    trial: Option<TextHash>,
    pool: Pool,
}

impl Permit {
    /// Most tokens of a batch for this worker.
    pub(crate) fn batch_tokens(&self) -> usize {
        self.pool.state().speeds.batch_tokens(self.member.seat)
    }

    /// Sends a batch to the worker; `more` says that others follow at once.
    pub(crate) fn send(self, mut jobs: Vec<Job>, more: bool) {
        for job in &mut jobs {
            if let Some(place) = job.place.take() {
                place.dispatch();
            }
        }
        let pool = self.pool.clone();
        let trials = if self.trial.is_some() { Vec::new() } else { pool.sift(&mut jobs) };
        if jobs.is_empty() {
            drop(self);
        } else {
            self.send_to_worker(jobs, more);
        }
        pool.try_alone(trials);
    }

    fn send_to_worker(mut self, jobs: Vec<Job>, more: bool) {
        self.tokens = jobs.iter().map(|job| job.token_ids.len()).sum();
        let threads = self.pool.threads_for(&self.member, more);
        self.is_sent = true;
        self.pool.state().speeds.sent(self.member.seat, self.tokens, Instant::now());
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
        if std::mem::take(&mut self.is_sent) {
            self.pool.state().speeds.returned(self.member.seat, self.tokens, Instant::now());
        }
        if let Some(text) = self.trial.take() {
            self.pool.state().on_trial.remove(&text);
            self.member.trials.fetch_sub(1, Ordering::Relaxed);
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
