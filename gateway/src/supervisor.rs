//! Keeps K workers alive: starts them, waits until they are ready, starts them again when they are lost, and replaces
//! them without a gap when that is asked for.
//!
//! One task per worker (`slot`) walks through these states, and publishes the one it is in:
//!
//! ```text
//!              spawn                    hello, ready
//!   (start) ---------> Starting ----------------------> Ready --+ a successor is ready:
//!                       ^  |  |                          |  ^   | the old process drains
//!            backoff is |  |  | lost                lost |  |   | beside it
//!            over       |  |  v                          |  +---+
//!                       | Backoff <----------------------+
//!                       |  |
//!          replacement  |  | fatal, wrong version
//!          asked for    |  v
//!                       Failed
//! ```
//!
//! From every state, a stop of the gateway leads to `Draining` and to the end of the task.
//!
//! *Backoff* counts consecutive deaths with no answered batch between them: the first restart is at once, the next
//! ones after 0.25 s, doubled each time up to 30 s. *Crash loop*: five deaths within 60 s without having been ready, or
//! five kills within 60 s for want of memory, ready or not; from then on one start every 30 s. The former is over once the
//! worker is ready, the latter once it has been ready for 60 s. Replacements count for neither.
//!
//! * `slot`: the states above.
//! * `incarnation`: one process, from its spawn to its burial.
//! * `replacement`: who is replaced when: one at a time, and only while all others are ready.
//! * `backoff`: how long to wait before the next start.
//! * `oom`: which workers the kernel killed because memory was short.

mod backoff;
mod incarnation;
mod oom;
mod replacement;
mod slot;

use std::sync::Arc;
use std::time::Duration;

use akidb_protocol::Ready;
use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::heart::Heart;
use crate::machine::Footprint;
use crate::metrics::{Metrics, RestartReason};
use crate::pool::{self, Pool};
use crate::sidecar::process::Spawner;
use slot::Slot;

/// Signs of life that a worker gives within the time that it may be silent.
const HEARTBEATS_PER_TIMEOUT: u32 = 3;

/// Longest time without progress, unless it is configured.
const CPU_PROGRESS_TIMEOUT: Duration = Duration::from_secs(3);
/// The same on a GPU, which another program may hold meanwhile, and of which no step between two batches is seen.
const GPU_PROGRESS_TIMEOUT: Duration = Duration::from_secs(15);

/// How workers are started and watched.
#[derive(Debug, Clone)]
pub struct Config {
    /// Number of workers; `None` lets the machine decide.
    pub workers: Option<usize>,
    /// Time from a worker's start until it must be ready.
    pub start_timeout: Duration,
    /// Silence of a worker that is not ready yet after which it is killed.
    pub start_heartbeat_timeout: Duration,
    /// Silence of a ready worker after which it is killed.
    pub heartbeat_timeout: Duration,
    /// Time without progress of a batch after which its worker is killed, at least; more for a large batch. `None` goes by
    /// the worker's device.
    pub progress_timeout: Option<Duration>,
    /// Time without a byte inside a frame after which its worker is killed.
    pub stall_timeout: Duration,
    /// Wait before the second restart in a row; the first is at once.
    pub backoff_first: Duration,
    /// Longest wait between two restarts.
    pub backoff_longest: Duration,
    /// Time within which five deaths before readiness, or five kills for want of memory, are a crash loop.
    pub crash_loop_window: Duration,
    /// Wait between two starts in a crash loop.
    pub crash_loop_wait: Duration,
    /// Time that a worker which closed its socket has to end on its own.
    pub exit_patience: Duration,
    /// Resident memory of a worker above which it is replaced, in bytes.
    pub memory_limit_bytes: Option<u64>,
    /// How often the workers' memory is looked at.
    pub memory_interval: Duration,
    /// Batches after which a worker is replaced.
    pub max_batches: Option<u64>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            workers: None,
            start_timeout: Duration::from_secs(120),
            start_heartbeat_timeout: Duration::from_secs(20),
            heartbeat_timeout: Duration::from_secs(3),
            progress_timeout: None,
            stall_timeout: Duration::from_secs(1),
            backoff_first: Duration::from_millis(250),
            backoff_longest: Duration::from_secs(30),
            crash_loop_window: Duration::from_secs(60),
            crash_loop_wait: Duration::from_secs(30),
            exit_patience: Duration::from_secs(1),
            memory_limit_bytes: None,
            memory_interval: Duration::from_secs(1),
            max_batches: None,
        }
    }
}

impl Config {
    /// How often a worker sends a heartbeat.
    pub(crate) fn heartbeat_interval(&self) -> Duration {
        self.heartbeat_timeout.min(self.start_heartbeat_timeout) / HEARTBEATS_PER_TIMEOUT
    }

    /// How long a batch may make no progress, at least, on the device that a worker names.
    fn progress_timeout(&self, device: &str) -> Duration {
        self.progress_timeout.unwrap_or(if device == "gpu" {
            GPU_PROGRESS_TIMEOUT
        } else {
            CPU_PROGRESS_TIMEOUT
        })
    }
}

/// Where a worker is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerState {
    /// The process starts and loads its model.
    Starting,
    /// It takes batches.
    Ready,
    /// It was ready, but sends no heartbeats or makes no progress; it will be killed unless that changes.
    Unresponsive,
    /// It takes no more batches, and ends.
    Draining,
    /// It was lost and will be started again.
    Backoff,
    /// It will not be started again unless the operator asks for new workers.
    Failed,
}

/// What is known of one worker.
#[derive(Debug, Clone)]
pub(crate) struct WorkerStatus {
    /// Its number, from 0.
    pub(crate) id: usize,
    /// Where it is in its life.
    pub(crate) state: WorkerState,
    /// Its process, if there is one.
    pub(crate) pid: Option<u32>,
    /// Processes started for it so far.
    pub(crate) generation: u64,
    /// What the process says of its memory.
    pub(crate) footprint: Footprint,
    /// When the process was started.
    pub(crate) started: Instant,
    /// When it can be ready again, if that is known.
    pub(crate) due: Due,
    /// What it said about itself, while it is ready.
    pub(crate) ready: Option<Ready>,
    /// Its last seat in the pool, and the memory it used when it took that.
    pub(crate) seat: Option<(u64, Option<u64>)>,
    /// Why it was last lost.
    pub(crate) last_loss: Option<RestartReason>,
    /// Whether it ends again and again before it is ready.
    pub(crate) is_in_crash_loop: bool,
}

/// When a worker will be ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    /// It is, or nothing is known against it.
    Now,
    /// At about this time.
    At(Instant),
    /// Never.
    Never,
}

/// Handle to the workers' tasks.
#[derive(Debug)]
pub(crate) struct Supervisor {
    shared: Arc<Shared>,
    statuses: Vec<watch::Receiver<WorkerStatus>>,
    fatal: watch::Receiver<Option<String>>,
    reloads: mpsc::UnboundedSender<()>,
    tasks: TaskTracker,
}

/// What the tasks of all workers share.
#[derive(Debug)]
struct Shared {
    config: Config,
    dimension: usize,
    max_tokens: usize,
    spawner: Spawner,
    pool: Pool,
    metrics: Arc<Metrics>,
    /// A worker's reason why it can never be ready, when none ever was.
    fatal: watch::Sender<Option<String>>,
    any_was_ready: std::sync::atomic::AtomicBool,
    oom_kills: oom::OomKills,
    /// Changes with every status.
    changes: watch::Sender<()>,
    stop: CancellationToken,
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

impl Supervisor {
    /// Starts `workers` workers side by side. Each must answer vectors of `dimension` numbers, and take texts of
    /// `max_tokens`.
    pub(crate) fn start(
        config: &Config,
        workers: usize,
        (dimension, max_tokens): (usize, usize),
        spawner: &Spawner,
        (pool, pool_wishes): (&Pool, mpsc::UnboundedReceiver<pool::Replacement>),
        (metrics, heart): (&Arc<Metrics>, &Heart),
    ) -> Self {
        let tasks = TaskTracker::new();
        let (fatal_sender, fatal) = watch::channel(None);
        let shared = Arc::new(Shared {
            config: config.clone(),
            dimension,
            max_tokens,
            spawner: spawner.clone(),
            pool: pool.clone(),
            metrics: Arc::clone(metrics),
            fatal: fatal_sender,
            any_was_ready: false.into(),
            oom_kills: oom::OomKills::default(),
            changes: watch::channel(()).0,
            stop: CancellationToken::new(),
        });
        let (reloads, reload_receiver) = mpsc::unbounded_channel();
        let (statuses, orders): (Vec<_>, Vec<_>) =
            (0..workers).map(|id| Slot::start(id, Arc::clone(&shared), &tasks, heart)).unzip();
        let replacer = replacement::Replacer::new(Arc::clone(&shared), statuses.clone(), orders);
        tasks.spawn(heart.watch("supervisor", replacer.run(reload_receiver, pool_wishes)));
        if let Some(limit_bytes) = config.memory_limit_bytes {
            let watch = replacement::watch_memory(Arc::clone(&shared), statuses.clone(), limit_bytes);
            tasks.spawn(watch);
        }
        tasks.close();
        Self { shared, statuses, fatal, reloads, tasks }
    }

    /// What is known of each worker now.
    pub(crate) fn statuses(&self) -> Vec<WorkerStatus> {
        let seen = |status: &watch::Receiver<WorkerStatus>| {
            let mut status = status.borrow().clone();
            if status.state == WorkerState::Ready && !self.shared.pool.is_responsive(status.id) {
                status.state = WorkerState::Unresponsive;
            }
            status
        };
        self.statuses.iter().map(seen).collect()
    }

    /// Waits until one worker is ready; the error is a worker's reason why that will never be.
    pub(crate) async fn ready(&self) -> Result<(), String> {
        let waits = self.statuses.iter().cloned().map(|mut status| {
            Box::pin(async move {
                if status.wait_for(|status| status.state == WorkerState::Ready).await.is_err() {
                    std::future::pending::<()>().await;
                }
            })
        });
        tokio::select! {
            _ = futures_util::future::select_all(waits) => Ok(()),
            reason = self.failed() => Err(reason),
        }
    }

    /// Waits until a worker says that it can never become ready, when none ever was.
    pub(crate) async fn failed(&self) -> String {
        let mut fatal = self.fatal.clone();
        let reason = fatal.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        match reason {
            Some(reason) => reason,
            None => std::future::pending().await, // all tasks have ended
        }
    }

    /// Time until a worker is ready, if that is known.
    pub(crate) fn time_until_ready(&self) -> Duration {
        let until = |status: &watch::Receiver<WorkerStatus>| match status.borrow().due {
            Due::Now => Duration::ZERO,
            Due::At(time) => time.saturating_duration_since(Instant::now()),
            Due::Never => Duration::MAX,
        };
        self.statuses.iter().map(until).min().unwrap_or_default()
    }

    /// Waits until no worker is ready or due before `deadline`; returns when the first one is due after it.
    pub(crate) async fn none_due_before(&self, deadline: Instant) -> Option<Instant> {
        let mut changes = self.shared.changes.subscribe();
        loop {
            changes.mark_unchanged();
            let mut first_after = None;
            let is_in_time = |due| match due {
                Due::Now => true,
                Due::At(time) => time <= deadline,
                Due::Never => false,
            };
            let dues: Vec<Due> = self.statuses.iter().map(|status| status.borrow().due).collect();
            if !dues.iter().copied().any(is_in_time) {
                for due in dues {
                    if let Due::At(time) = due {
                        first_after = Some(first_after.map_or(time, |first: Instant| first.min(time)));
                    }
                }
                return first_after;
            }
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Replaces every worker, one at a time, each only once its successor is ready.
    pub(crate) fn reload(&self) {
        let _ = self.reloads.send(());
    }

    /// Ends all workers and waits until their processes are gone.
    pub(crate) async fn stop(&self) {
        self.shared.stop.cancel();
        self.tasks.wait().await;
    }
}
