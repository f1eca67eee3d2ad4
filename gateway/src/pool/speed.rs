//! How much the workers compute in a second, and how large a batch may be.
//!
//! What admission needs is the speed of a worker *while all of them compute*: on shared cores a worker that computes
//! alone has the cores of the others, too. So a batch is a measurement when every live worker was busy for as long as it
//! was computed, and when it was full: at least half of the largest one, or begun while so much was outstanding that
//! every worker could have had such a batch (where texts travel one by one to a worker's own queue, batches never grow,
//! and that is then the speed of full load). A full batch that was computed while other workers were idle says how slow
//! the workers are at most, and a smaller one says nothing.
//!
//! When a worker joins or leaves, the others' speed becomes what it was last among this many, as far as that is
//! plausible; where it is not known, the worst case is taken: all share the cores, or they share nothing.
//!
//! A batch that is overdue slows its worker down at once, for as long as it lasts. Pure: no clock of its own.

use std::time::Duration;

use tokio::time::Instant;

use super::samples::Samples;

/// How long a batch should keep a worker busy: much longer than what a frame costs, and short enough that a later
/// text does not wait long for an earlier batch.
const BATCH_TIME: Duration = Duration::from_millis(100);
/// Bounds of a batch whose size follows from the workers' warm-up, in tokens.
const FEWEST_BATCH_TOKENS: usize = 256;
const MOST_BATCH_TOKENS: usize = 16_384;
/// No batch is larger than what its worker computes in this part of a request's time...
const PART_OF_TIME_LIMIT: f64 = 0.125;
/// ...by the speed of full load, of which other workers may have been idle for this part of the time.
const MOST_IDLE: f64 = 0.1;
/// A warm-up is one small batch, and may have had all cores: before a full batch was seen, this part of its speed is
/// what all workers together are trusted with.
const TRUST_IN_WARM_UP: f64 = 0.25;
/// A batch is overdue after this many times its usual time and `OVERDUE_GRACE_SECONDS`.
const OVERDUE: f64 = 2.0;
const OVERDUE_GRACE_SECONDS: f64 = 0.05;
/// Tokens that a worker is assumed to be given next when it is asked which worker would be done with them first.
const NEXT_TOKENS: f64 = 128.0;
/// A measurement this old is made again before a request is refused for its size.
const OLD: Duration = Duration::from_secs(10);
/// No worker is slower than that, in tokens per second.
const SLOWEST: f64 = 1e-3;

/// What bounds a batch, and what is thought of workers that nobody has seen yet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expectations {
    /// Tokens in one batch; `None` finds it from the speed of the workers' warm-up.
    pub(crate) max_batch_tokens: Option<usize>,
    /// How long a request may take.
    pub(crate) request_timeout: Duration,
    /// Tokens per second of all workers together, before the first one was ready.
    pub(crate) guess: f64,
}

/// What all live workers together can do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Capacity {
    /// Tokens per second of all of them, under full load.
    pub(crate) tokens_per_second: f64,
    /// Tokens per second that one request may have when nothing else is to be done; never less.
    pub(crate) idle_tokens_per_second: f64,
    /// Whether a full batch was seen in this run.
    pub(crate) is_measured: bool,
    /// Live workers, at least one.
    pub(crate) workers: usize,
    /// Time of the batch that takes longest, in seconds.
    pub(crate) batch_seconds: f64,
    /// Most tokens of a batch, were time no matter.
    pub(crate) batch_tokens: usize,
}

/// What was the case when a batch was begun.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Start {
    at: Instant,
    idle_seconds: f64,
    live: usize,
    outstanding: usize,
}

#[derive(Debug)]
struct Worker {
    seat: u64,
    is_live: bool,
    tokens_in_flight: usize,
    batches_in_flight: usize,
    /// Since when it computes a batch of this many tokens.
    computing: Option<(Instant, usize)>,
    samples: Samples,
}

/// Speeds of all seated workers.
#[derive(Debug)]
pub(super) struct Speeds {
    expectations: Expectations,
    workers: Vec<Worker>,
    fastest_warm_up: f64,
    /// Mean speed of a worker while all of this many are busy; `None` before the first full batch.
    typical: Option<f64>,
    /// Whether `typical` comes from batches during which every worker was busy.
    is_full_load: bool,
    /// Speed of the fastest full batch whatever the other workers did.
    fastest: f64,
    /// Live workers when one was last live.
    live: usize,
    /// The last `typical` that was measured among this many workers, by their number.
    by_live: Vec<Option<f64>>,
    measured_at: Option<Instant>,
    /// Seconds that live workers spent without a batch, all together, until `looked_at`.
    idle_seconds: f64,
    looked_at: Instant,
}

impl Speeds {
    pub(super) fn new(expectations: Expectations, now: Instant) -> Self {
        Self {
            expectations,
            workers: Vec::new(),
            fastest_warm_up: 0.0,
            typical: None,
            is_full_load: false,
            fastest: 0.0,
            live: 1,
            by_live: Vec::new(),
            measured_at: None,
            idle_seconds: 0.0,
            looked_at: now,
        }
    }

    /// A worker is ready; its warm-up had this speed, in tokens per second.
    pub(super) fn joins(&mut self, seat: u64, warm_up: f64, now: Instant) {
        self.look(now);
        // A busy machine only makes them slower.
        self.fastest_warm_up = self.fastest_warm_up.max(warm_up);
        self.workers.push(Worker {
            seat,
            is_live: true,
            tokens_in_flight: 0,
            batches_in_flight: 0,
            computing: None,
            samples: Samples::default(),
        });
        self.count_live();
    }

    /// A worker is gone.
    pub(super) fn leaves(&mut self, seat: u64, now: Instant) {
        self.look(now);
        self.workers.retain(|worker| worker.seat != seat);
        self.count_live();
    }

    /// Whether the worker sends heartbeats and makes progress.
    pub(super) fn set_live(&mut self, seat: u64, is_live: bool, now: Instant) {
        self.look(now);
        if let Some(worker) = self.worker(seat) {
            worker.is_live = is_live;
        }
        self.count_live();
    }

    /// A batch is on its way to the worker.
    pub(super) fn sent(&mut self, seat: u64, tokens: usize, now: Instant) {
        self.look(now);
        if let Some(worker) = self.worker(seat) {
            worker.tokens_in_flight += tokens;
            worker.batches_in_flight += 1;
        }
    }

    /// The worker holds a batch no longer.
    pub(super) fn returned(&mut self, seat: u64, tokens: usize, now: Instant) {
        self.look(now);
        if let Some(worker) = self.worker(seat) {
            worker.tokens_in_flight = worker.tokens_in_flight.saturating_sub(tokens);
            worker.batches_in_flight = worker.batches_in_flight.saturating_sub(1);
            worker.computing = None;
        }
    }

    /// The worker begins a batch; this many tokens are admitted and not done.
    pub(super) fn begins(&mut self, seat: u64, tokens: usize, outstanding: usize, now: Instant) -> Start {
        self.look(now);
        if let Some(worker) = self.worker(seat) {
            worker.computing = Some((now, tokens));
        }
        Start { at: now, idle_seconds: self.idle_seconds, live: self.live_workers(), outstanding }
    }

    /// A batch kept its worker busy for so long.
    pub(super) fn took(&mut self, seat: u64, tokens: usize, seconds: f64, start: Start, now: Instant) {
        self.look(now);
        let live = self.live_workers();
        if live != start.live || live == 0 {
            return;
        }
        let largest = self.batch_tokens(seat);
        if tokens * 2 < largest && start.outstanding * 2 < live * largest {
            return;
        }
        let (all, size, seconds) = (real(live), real(tokens), seconds.max(1e-6));
        let elapsed = now.saturating_duration_since(start.at).as_secs_f64().max(1e-6);
        let busy = (1.0 - (self.idle_seconds - start.idle_seconds) / (all * elapsed)).clamp(1.0 / all, 1.0);
        let is_full_load = busy >= 1.0 - MOST_IDLE;
        self.fastest = self.fastest.max(size / seconds);
        // Those that were busy did so much together; all of them do no less.
        let at_least = size / seconds * if is_full_load { 1.0 } else { busy };
        let known = self.speed(seat);
        if !is_full_load && self.typical.is_some() && at_least <= known {
            return;
        }
        if is_full_load && !self.is_full_load {
            // What was known before was a bound.
            self.is_full_load = true;
            self.workers.iter_mut().for_each(|worker| worker.samples = Samples::default());
        }
        if let Some(worker) = self.worker(seat) {
            worker.samples.add(at_least * seconds, seconds);
        }
        let measured: Vec<f64> = self.live().filter_map(|worker| worker.samples.speed()).collect();
        if !measured.is_empty() {
            self.typical = Some(measured.iter().sum::<f64>() / real(measured.len()));
            self.measured_at = Some(now);
            self.by_live.resize(self.by_live.len().max(live + 1), None);
            self.by_live[live] = self.typical;
        }
    }

    /// What all live workers together can do.
    pub(super) fn capacity(&self, now: Instant) -> Capacity {
        let workers = self.live_workers().max(1);
        let full_load = if self.live_workers() == 0 {
            self.unseen()
        } else {
            self.live().map(|worker| self.speed_now(worker, now)).sum()
        };
        let idle = match self.typical {
            Some(_) if self.is_full_load => full_load,
            Some(_) => self.fastest * real(workers),
            None if self.fastest_warm_up > 0.0 => self.fastest_warm_up,
            None => self.expectations.guess,
        };
        let seconds = |worker: &Worker| real(self.batch_tokens(worker.seat)) / self.speed(worker.seat);
        Capacity {
            tokens_per_second: full_load.max(SLOWEST),
            idle_tokens_per_second: idle.max(full_load).max(SLOWEST),
            is_measured: self.typical.is_some(),
            workers,
            batch_seconds: self.live().map(seconds).fold(0.0, f64::max),
            batch_tokens: self.configured_batch_tokens(),
        }
    }

    /// Most tokens of a batch for the worker.
    pub(super) fn batch_tokens(&self, seat: u64) -> usize {
        let in_time = self.speed(seat) * self.expectations.request_timeout.as_secs_f64() * PART_OF_TIME_LIMIT;
        self.configured_batch_tokens().min(whole(in_time)).max(1)
    }

    /// Usual time of a batch of this many tokens at the worker, in seconds.
    pub(super) fn usual_seconds(&self, seat: u64, tokens: usize) -> f64 {
        real(tokens) / self.speed(seat)
    }

    /// How long the worker would take for what it has and a little more, in seconds.
    pub(super) fn wait(&self, seat: u64, now: Instant) -> f64 {
        let worker = self.workers.iter().find(|worker| worker.seat == seat);
        worker.map_or(f64::INFINITY, |worker| {
            (real(worker.tokens_in_flight) + NEXT_TOKENS) / self.speed_now(worker, now)
        })
    }

    /// Whether the worker has a batch.
    pub(super) fn is_busy(&self, seat: u64) -> bool {
        self.workers.iter().any(|worker| worker.seat == seat && worker.batches_in_flight > 0)
    }

    /// Tokens of a full batch for every live worker, when the last measurement is old; `None` while it is not.
    pub(super) fn tokens_to_measure(&self, now: Instant) -> Option<usize> {
        let is_old = self.measured_at.is_none_or(|at| now.saturating_duration_since(at) > OLD);
        let tokens: usize = self.live().map(|worker| self.batch_tokens(worker.seat)).sum();
        (is_old && tokens > 0).then_some(tokens)
    }

    fn configured_batch_tokens(&self) -> usize {
        self.expectations.max_batch_tokens.unwrap_or_else(|| {
            whole(self.fastest_warm_up * BATCH_TIME.as_secs_f64())
                .clamp(FEWEST_BATCH_TOKENS, MOST_BATCH_TOKENS)
        })
    }

    /// Tokens per second of a worker under full load.
    fn speed(&self, seat: u64) -> f64 {
        let measured = self.workers.iter().find(|worker| worker.seat == seat);
        let speed = measured.and_then(|worker| worker.samples.speed());
        speed.unwrap_or_else(|| self.unseen()).max(SLOWEST)
    }

    /// The same of one that has not been measured.
    fn unseen(&self) -> f64 {
        let trusted = if self.fastest_warm_up > 0.0 { self.fastest_warm_up } else { self.expectations.guess };
        self.typical.unwrap_or(trusted * TRUST_IN_WARM_UP / real(self.live_workers().max(1)))
    }

    fn speed_now(&self, worker: &Worker, now: Instant) -> f64 {
        let usual = self.speed(worker.seat);
        let Some((begun, tokens)) = worker.computing else { return usual };
        let overdue = now.saturating_duration_since(begun).as_secs_f64() - OVERDUE_GRACE_SECONDS;
        if overdue <= 0.0 { usual } else { usual.min(OVERDUE * real(tokens) / overdue).max(SLOWEST) }
    }

    fn live(&self) -> impl Iterator<Item = &Worker> {
        self.workers.iter().filter(|worker| worker.is_live)
    }

    fn live_workers(&self) -> usize {
        self.live().count()
    }

    fn worker(&mut self, seat: u64) -> Option<&mut Worker> {
        self.workers.iter_mut().find(|worker| worker.seat == seat)
    }

    /// Counts the time that workers were idle since the last look.
    fn look(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.looked_at).as_secs_f64();
        self.looked_at = now;
        self.idle_seconds +=
            passed * real(self.live().filter(|worker| worker.batches_in_flight == 0).count());
    }

    /// After a worker came or went: the others' speed is now that of another number of them.
    fn count_live(&mut self) {
        let (from, to) = (self.live, self.live_workers());
        if to == 0 || to == from {
            return;
        }
        self.live = to;
        let Some(typical) = self.typical else { return };
        // Between the two extremes: nothing is shared by the workers, or everything.
        let shared = typical * real(from) / real(to);
        let (least, most) = (typical.min(shared), typical.max(shared));
        let known = self.by_live.get(to).copied().flatten();
        let speed = known.map_or(least, |known| known.clamp(least, most));
        self.typical = Some(speed);
        for worker in &mut self.workers {
            worker.samples.scale(speed / typical);
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a queue has far fewer than 2^52 tokens")]
fn real(number: usize) -> f64 {
    number as f64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates")]
fn whole(number: f64) -> usize {
    number as usize
}

#[cfg(test)]
mod tests;
