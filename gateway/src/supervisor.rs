//! Keeps K workers alive: starts them, waits until they are ready, starts them again when they are lost.
//!
//! One task per worker walks through these states, and publishes the one it is in:
//!
//! ```text
//!              spawn                    hello, ready
//!   (start) ---------> Starting ----------------------> Ready
//!                       |  ^  |                           |
//!        fatal, version |  |  | lost                      | lost
//!                       v  |  v                           v
//!                  Failed  +-Backoff <--------------------+
//! ```
//!
//! From every state but `Failed`, a stop of the gateway leads to `Draining` and to the end of the task.
//! Backoff counts consecutive deaths with no answered batch between them.

mod backoff;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use akidb_protocol::{GatewayCodec, Hello, ProtocolError, Ready, WorkerMessage};
use futures_util::StreamExt;
use serde::Serialize;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::codec::Framed;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metrics::{Metrics, RestartReason};
use crate::pool::Pool;
use crate::pool::connection::{self, End, Outcome};
use crate::sidecar::process::{Process, Spawner};
use backoff::Backoff;

/// How workers are started and watched.
#[derive(Debug, Clone)]
pub struct Config {
    /// Number of workers; `None` lets the machine decide.
    pub workers: Option<usize>,
    /// Time from a worker's start until it must be ready.
    pub start_timeout: Duration,
    /// Silence of a ready worker after which it is killed.
    pub heartbeat_timeout: Duration,
    /// Wait before the second restart in a row; the first is at once.
    pub backoff_first: Duration,
    /// Longest wait between two restarts.
    pub backoff_longest: Duration,
    /// Time that a worker which closed its socket has to end by itself.
    pub exit_patience: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            workers: None,
            start_timeout: Duration::from_secs(120),
            heartbeat_timeout: Duration::from_secs(3),
            backoff_first: Duration::from_millis(250),
            backoff_longest: Duration::from_secs(30),
            exit_patience: Duration::from_secs(1),
        }
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
    /// It takes no more batches, and ends.
    Draining,
    /// It was lost and will be started again.
    Backoff,
    /// It will not be started again.
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
    /// When the process was started.
    pub(crate) started: Instant,
    /// What it said of itself, while it is ready.
    pub(crate) ready: Option<Ready>,
}

/// Handle to the workers' tasks.
#[derive(Debug)]
pub(crate) struct Supervisor {
    statuses: Vec<watch::Receiver<WorkerStatus>>,
    fatal: watch::Receiver<Option<String>>,
    given_up: CancellationToken,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Supervisor {
    /// Starts `workers` workers side by side. Each must answer vectors of `dimension` numbers.
    pub(crate) fn start(
        config: &Config,
        workers: usize,
        dimension: usize,
        spawner: &Spawner,
        pool: &Pool,
        metrics: &Arc<Metrics>,
    ) -> Self {
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let (fatal_sender, fatal) = watch::channel(None);
        let any_was_ready = Arc::new(AtomicBool::new(false));
        let given_up = CancellationToken::new();
        let hopeful = Arc::new(AtomicUsize::new(workers));
        let start_slot = |id| {
            let (status, receiver) = watch::channel(WorkerStatus {
                id,
                state: WorkerState::Starting,
                pid: None,
                generation: 0,
                started: Instant::now(),
                ready: None,
            });
            let slot = Slot {
                id,
                dimension,
                config: config.clone(),
                spawner: spawner.clone(),
                pool: pool.clone(),
                metrics: Arc::clone(metrics),
                status,
                fatal: fatal_sender.clone(),
                any_was_ready: Arc::clone(&any_was_ready),
                hopeful: Arc::clone(&hopeful),
                given_up: given_up.clone(),
                stop: stop.clone(),
            };
            tasks.spawn(slot.run());
            receiver
        };
        let statuses = (0..workers).map(start_slot).collect();
        tasks.close();
        Self { statuses, fatal, given_up, stop, tasks }
    }

    /// What is known of each worker now.
    pub(crate) fn statuses(&self) -> Vec<WorkerStatus> {
        self.statuses.iter().map(|status| status.borrow().clone()).collect()
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

    /// Waits until no worker will ever be ready again.
    pub(crate) async fn given_up(&self) {
        self.given_up.cancelled().await;
    }

    /// Ends all workers and waits until their processes are gone.
    pub(crate) async fn stop(&self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }
}

/// The task behind one worker.
struct Slot {
    id: usize,
    dimension: usize,
    config: Config,
    spawner: Spawner,
    pool: Pool,
    metrics: Arc<Metrics>,
    status: watch::Sender<WorkerStatus>,
    fatal: watch::Sender<Option<String>>,
    any_was_ready: Arc<AtomicBool>,
    /// Workers that are not `Failed`.
    hopeful: Arc<AtomicUsize>,
    given_up: CancellationToken,
    stop: CancellationToken,
}

/// Why a worker process was given up.
#[derive(Debug, thiserror::Error)]
enum Loss {
    #[error("the process cannot be started: {0}")]
    Spawn(#[source] std::io::Error),
    #[error("it was not ready within {0:?}")]
    StartTimeout(Duration),
    #[error("it ended")]
    Closed,
    #[error("{0}")]
    Protocol(String),
    #[error("it gave no sign of life for {0:?}")]
    Silent(Duration),
    #[error("{0}")]
    Fatal(String),
    #[error("the gateway stops")]
    Stopped,
}

impl Slot {
    async fn run(self) {
        let mut backoff = Backoff::new(self.config.backoff_first, self.config.backoff_longest);
        loop {
            let (loss, batches_answered) = self.live_once().await;
            if batches_answered > 0 {
                backoff.reset();
            }
            if matches!(loss, Loss::Stopped) || self.stop.is_cancelled() {
                return;
            }
            if let Loss::Fatal(reason) = loss {
                self.publish(|status| status.state = WorkerState::Failed);
                if !self.any_was_ready.load(Ordering::Relaxed) {
                    self.fatal.send_replace(Some(reason));
                }
                if self.hopeful.fetch_sub(1, Ordering::SeqCst) == 1 {
                    self.given_up.cancel();
                }
                return;
            }
            self.publish(|status| status.state = WorkerState::Backoff);
            tokio::select! {
                () = tokio::time::sleep(backoff.next_wait()) => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    /// From a spawn to the end of that process. Returns why it was lost and how many batches it answered.
    async fn live_once(&self) -> (Loss, u64) {
        let started = Instant::now();
        self.publish(|status| {
            status.state = WorkerState::Starting;
            status.generation += 1;
            status.started = started;
        });
        let (process, socket) = match self.spawner.spawn(self.id) {
            Ok(spawned) => spawned,
            Err(error) => {
                let loss = Loss::Spawn(error);
                tracing::error!(worker = self.id, reason = %loss, "worker lost");
                self.metrics.worker_restarted(RestartReason::Spawn);
                return (loss, 0);
            }
        };
        let pid = process.pid();
        self.publish(|status| status.pid = Some(pid));
        let mut socket = Framed::new(socket, GatewayCodec::default());
        let handshake = tokio::select! {
            ready = tokio::time::timeout(self.config.start_timeout, self.handshake(&mut socket)) => {
                ready.unwrap_or(Err(Loss::StartTimeout(self.config.start_timeout)))
            }
            () = self.stop.cancelled() => Err(Loss::Stopped),
        };
        let (loss, batches_answered) = match handshake {
            Ok(ready) => self.serve(socket, ready, started).await,
            Err(loss) => {
                drop(socket);
                (loss, 0)
            }
        };
        self.bury(process, &loss, started, batches_answered).await;
        (loss, batches_answered)
    }

    async fn handshake(&self, socket: &mut Framed<UnixStream, GatewayCodec>) -> Result<Ready, Loss> {
        let Hello { pid, sidecar_version } = match next_message(socket).await? {
            WorkerMessage::Hello(hello) => hello,
            WorkerMessage::Fatal(fatal) => return Err(Loss::Fatal(fatal.message)),
            other => return Err(Loss::Protocol(format!("its first message is {other:?}, not a hello"))),
        };
        tracing::debug!(worker = self.id, pid, sidecar_version, "worker started");
        match next_message(socket).await? {
            WorkerMessage::Ready(ready) if ready.dimension as usize == self.dimension => Ok(ready),
            WorkerMessage::Ready(ready) => Err(Loss::Fatal(format!(
                "it answers vectors of {} numbers, but `hidden_size` in the model's `config.json` is {}",
                ready.dimension, self.dimension
            ))),
            WorkerMessage::Fatal(fatal) => Err(Loss::Fatal(fatal.message)),
            other => Err(Loss::Protocol(format!("it sent {other:?} before it was ready"))),
        }
    }

    async fn serve(
        &self,
        socket: Framed<UnixStream, GatewayCodec>,
        ready: Ready,
        started: Instant,
    ) -> (Loss, u64) {
        self.any_was_ready.store(true, Ordering::Relaxed);
        for warning in &ready.warnings {
            tracing::warn!(worker = self.id, warning, "worker warns");
        }
        let tokens_per_second = f64::from(ready.warm_up_tokens) / ready.warm_up_seconds.max(1e-6);
        tracing::info!(
            worker = self.id,
            device = ready.device,
            blas = ready.blas,
            warm_up_tokens_per_second = tokens_per_second,
            start_seconds = started.elapsed().as_secs_f64(),
            "worker ready"
        );
        let membership = self.pool.join(self.id, tokens_per_second);
        self.publish(|status| {
            status.state = WorkerState::Ready;
            status.ready = Some(ready);
        });
        let settings = connection::Settings {
            worker: self.id,
            dimension: self.dimension,
            heartbeat_timeout: self.config.heartbeat_timeout,
        };
        let Outcome { end, batches_answered } =
            connection::run(socket, settings, membership, self.stop.clone()).await;
        let loss = match end {
            End::Closed => Loss::Closed,
            End::Protocol(fault) => Loss::Protocol(fault.to_string()),
            End::Silent(silence) => Loss::Silent(silence),
            End::Stopped => Loss::Stopped,
        };
        (loss, batches_answered)
    }

    /// Makes sure that the process is gone, and writes down how it ended.
    async fn bury(&self, process: Process, loss: &Loss, started: Instant, batches_answered: u64) {
        let stopping = matches!(loss, Loss::Stopped);
        self.publish(|status| {
            status.ready = None;
            status.state = if stopping { WorkerState::Draining } else { WorkerState::Backoff };
        });
        let pid = process.pid();
        let last_words = process.last_words();
        let patience = match loss {
            Loss::Closed | Loss::Fatal(_) | Loss::Stopped => self.config.exit_patience,
            _ => Duration::ZERO,
        };
        let ended = process.end(patience).await;
        if stopping {
            self.publish(|status| status.pid = None);
            return;
        }
        let status = ended.ok();
        let signal = status.and_then(|status| std::os::unix::process::ExitStatusExt::signal(&status));
        let signal = signal.map(|number| {
            nix::sys::signal::Signal::try_from(number)
                .map_or_else(|_| number.to_string(), |signal| signal.to_string())
        });
        let reason = match loss {
            Loss::Spawn(_) => RestartReason::Spawn,
            Loss::StartTimeout(_) => RestartReason::StartTimeout,
            Loss::Protocol(_) => RestartReason::ProtocolError,
            Loss::Silent(_) => RestartReason::Heartbeat,
            Loss::Closed | Loss::Fatal(_) | Loss::Stopped if signal.is_some() => RestartReason::Signal,
            Loss::Closed | Loss::Fatal(_) | Loss::Stopped => RestartReason::Exit,
        };
        // Before the log and the status say so: who has read them finds it counted.
        if !matches!(loss, Loss::Fatal(_)) {
            self.metrics.worker_restarted(reason);
        }
        let last_words: Vec<String> =
            last_words.lock().unwrap_or_else(std::sync::PoisonError::into_inner).iter().cloned().collect();
        tracing::warn!(
            worker = self.id,
            pid,
            generation = self.status.borrow().generation,
            reason = reason.name(),
            detail = %loss,
            signal,
            exit_code = status.and_then(|status| status.code()),
            batches_answered,
            uptime_seconds = started.elapsed().as_secs_f64(),
            last_words = last_words.join(" | "),
            "worker lost"
        );
        self.publish(|status| status.pid = None);
    }

    fn publish(&self, change: impl FnOnce(&mut WorkerStatus)) {
        self.status.send_modify(change);
    }
}

async fn next_message(socket: &mut Framed<UnixStream, GatewayCodec>) -> Result<WorkerMessage, Loss> {
    match socket.next().await {
        None | Some(Err(ProtocolError::Io(_))) => Err(Loss::Closed),
        Some(Ok(message)) => Ok(message),
        Some(Err(error @ ProtocolError::WrongVersion(_))) => Err(Loss::Fatal(format!(
            "{error}\nhint: the gateway and `akidb_sidecar` are of different releases; run `make setup`"
        ))),
        Some(Err(error)) => Err(Loss::Protocol(error.to_string())),
    }
}
