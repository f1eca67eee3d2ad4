//! One process of a worker, from its spawn to its burial.

use std::process::ExitStatus;
use std::time::Duration;

use akidb_protocol::{GatewayCodec, Hello, ProtocolError, Ready, WorkerMessage};
use futures_util::StreamExt;
use nix::sys::signal::Signal;
use tokio::net::UnixStream;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::codec::Framed;
use tokio_util::sync::CancellationToken;

use super::Shared;
use crate::machine::{self, Footprint};
use crate::metrics::RestartReason;
use crate::pool::connection::{self, End, Outcome};
use crate::pool::{Manner, Membership};
use crate::printable;
use crate::sidecar::process::{Ended, Process};

/// Times that the longest silence of a worker that starts is looked at before it is over.
const TICKS_PER_SILENCE: u32 = 20;

/// Why a process was given up.
#[derive(Debug, thiserror::Error)]
pub(super) enum Loss {
    #[error("the process cannot be started: {0}")]
    Spawn(#[source] std::io::Error),
    #[error("it was not ready within {0:?}")]
    StartTimeout(Duration),
    #[error("it exited")]
    Closed,
    #[error("{0}")]
    Protocol(String),
    #[error("it sent no heartbeat for {0:?}")]
    Silent(Duration),
    #[error("its batch made no progress for {0:?}")]
    NoProgress(Duration),
    #[error("it fails its warm-up text, too")]
    FailsWarmUp,
    #[error("{0}")]
    Fatal(String),
    #[error("its device is lost: {0}")]
    DeviceLost(String),
    #[error("it was replaced")]
    Relieved,
    #[error("the gateway is shutting down")]
    Stopped,
}

/// A process on its way to being ready.
pub(super) struct Starting {
    pub(super) process: Process,
    pub(super) footprint: Footprint,
    socket: Framed<UnixStream, GatewayCodec>,
    started: Instant,
    generation: u64,
    oom_kills: u64,
}

/// A process that is ready.
pub(super) struct Started {
    starting: Starting,
    pub(super) ready: Ready,
    /// From its spawn until it was ready.
    pub(super) took: Duration,
}

impl Started {
    pub(super) fn pid(&self) -> u32 {
        self.starting.process.pid()
    }

    pub(super) fn footprint(&self) -> &Footprint {
        &self.starting.footprint
    }

    pub(super) fn started(&self) -> Instant {
        self.starting.started
    }

    /// Tokens per second of its warm-up.
    pub(super) fn warm_up_speed(&self) -> f64 {
        f64::from(self.ready.warm_up_tokens) / self.ready.warm_up_seconds.max(1e-6)
    }
}

/// How a process ended.
pub(super) struct Death {
    pub(super) loss: Loss,
    pub(super) reason: Option<RestartReason>,
    pub(super) batches_answered: u64,
}

/// Spawns a process of worker `id`.
pub(super) fn spawn(shared: &Shared, id: usize, generation: u64) -> Result<Starting, Death> {
    let started = Instant::now();
    let oom_kills = machine::oom_kills();
    match shared.spawner.spawn(id) {
        Ok((process, socket)) => Ok(Starting {
            process,
            footprint: Footprint::default(),
            socket: Framed::new(socket, GatewayCodec::default()),
            started,
            generation,
            oom_kills,
        }),
        Err(error) => {
            let loss = Loss::Spawn(error);
            tracing::error!(worker = id, generation, detail = %loss, "worker lost");
            shared.metrics.worker_restarted(RestartReason::Spawn);
            Err(Death { loss, reason: Some(RestartReason::Spawn), batches_answered: 0 })
        }
    }
}

/// Waits until the process is ready. One that does not become ready is buried.
pub(super) async fn wait_until_ready(
    shared: &Shared,
    id: usize,
    mut starting: Starting,
) -> Result<Started, Death> {
    let start_timeout = shared.config.start_timeout;
    let handshake = tokio::select! {
        ready = tokio::time::timeout(start_timeout, handshake(shared, id, &mut starting.socket, &starting.footprint)) => {
            ready.unwrap_or(Err(Loss::StartTimeout(start_timeout)))
        }
        () = shared.stop.cancelled() => Err(Loss::Stopped),
    };
    match handshake {
        Ok(ready) => {
            let took = starting.started.elapsed();
            let started = Started { starting, ready, took };
            for warning in &started.ready.warnings {
                tracing::warn!(worker = id, warning, "worker warning");
            }
            tracing::info!(
                worker = id,
                pid = started.pid(),
                generation = started.starting.generation,
                device = started.ready.device,
                blas = started.ready.blas,
                warm_up_tokens_per_second = started.warm_up_speed(),
                start_seconds = took.as_secs_f64(),
                "worker ready"
            );
            Ok(started)
        }
        Err(loss) => {
            let Starting { process, socket, started, generation, oom_kills, .. } = starting;
            // One that is to be killed keeps its socket, whose end would let it end on its own.
            let is_killed = matches!(loss, Loss::StartTimeout(_) | Loss::Silent(_) | Loss::Protocol(_));
            let kept = is_killed.then_some(socket);
            let mut burial = Burial { id, generation, started, oom_kills, batches_answered: 0, in_flight: 0 };
            let reason = burial.end(shared, process, &loss).await.reason;
            drop(kept);
            Err(Death { loss, reason, batches_answered: 0 })
        }
    }
}

async fn handshake(
    shared: &Shared,
    id: usize,
    socket: &mut Framed<UnixStream, GatewayCodec>,
    footprint: &Footprint,
) -> Result<Ready, Loss> {
    let mut silence = Silence::new(shared.config.start_heartbeat_timeout);
    let Hello { pid, sidecar_version } = match next_message(shared, socket, &mut silence).await? {
        WorkerMessage::Hello(hello) => hello,
        WorkerMessage::Fatal(fatal) => return Err(Loss::Fatal(printable::line(&fatal.message).into_owned())),
        other => return Err(Loss::Protocol(format!("its first message is {other:?}, not a hello"))),
    };
    tracing::debug!(worker = id, pid, sidecar_version, "worker started");
    let message = loop {
        match next_message(shared, socket, &mut silence).await? {
            WorkerMessage::Heartbeat(heartbeat) => footprint.tell(heartbeat.memory_bytes),
            message => break message,
        }
    };
    match message {
        WorkerMessage::Ready(ready) if ready.dimension as usize != shared.dimension => {
            Err(Loss::Fatal(format!(
                "it answers vectors of {} numbers, but `hidden_size` in the model's `config.json` is {}",
                ready.dimension, shared.dimension
            )))
        }
        WorkerMessage::Ready(ready) if ready.max_tokens as usize != shared.max_tokens => {
            Err(Loss::Fatal(format!(
                "it takes texts of {} tokens, and the gateway would send up to {}: `max_position_embeddings` in the model's `config.json` may be wrong",
                ready.max_tokens, shared.max_tokens
            )))
        }
        WorkerMessage::Ready(ready) => Ok(ready),
        WorkerMessage::Fatal(fatal) => Err(Loss::Fatal(printable::line(&fatal.message).into_owned())),
        other => Err(Loss::Protocol(format!("it sent {other:?} before it was ready"))),
    }
}

async fn next_message(
    shared: &Shared,
    socket: &mut Framed<UnixStream, GatewayCodec>,
    silence: &mut Silence,
) -> Result<WorkerMessage, Loss> {
    let message = tokio::select! {
        message = socket.next() => message,
        () = silence.is_too_long() => return Err(Loss::Silent(silence.longest)),
    };
    silence.ticks = 0;
    match message {
        None | Some(Err(ProtocolError::Io(_))) => Err(Loss::Closed),
        Some(Ok(message)) => Ok(message),
        Some(Err(error @ ProtocolError::WrongVersion(_))) => Err(Loss::Fatal(format!(
            "{error}\nhint: the gateway and `akidb_sidecar` are of different releases; run `make setup`"
        ))),
        Some(Err(error)) => {
            shared.metrics.protocol_errors.inc();
            Err(Loss::Protocol(error.to_string()))
        }
    }
}

/// How long a worker has sent nothing, in ticks, so that the time in which the gateway itself was suspended does not count.
struct Silence {
    longest: Duration,
    tick: Interval,
    ticks: u32,
}

impl Silence {
    fn new(longest: Duration) -> Self {
        let mut tick = tokio::time::interval((longest / TICKS_PER_SILENCE).max(Duration::from_millis(1)));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { longest, tick, ticks: 0 }
    }

    /// The first tick may come at once.
    async fn is_too_long(&mut self) {
        while self.tick.period() * self.ticks.saturating_sub(1) < self.longest {
            self.tick.tick().await;
            self.ticks += 1;
        }
    }
}

/// Serves batches until the process is lost or relieved, and buries it.
pub(super) async fn serve(
    shared: &Shared,
    id: usize,
    started: Started,
    membership: Membership,
    relieve: CancellationToken,
) -> Death {
    let config = &shared.config;
    let progress_timeout = config.progress_timeout(&started.ready.device);
    let Starting { process, footprint, socket, started, generation, oom_kills } = started.starting;
    let settings = connection::Settings {
        worker: id,
        dimension: shared.dimension,
        max_tokens: shared.max_tokens,
        heartbeat_timeout: config.heartbeat_timeout,
        progress_timeout,
        stall_timeout: config.stall_timeout,
        max_batches: config.max_batches,
        footprint,
    };
    let Outcome { end, batches_answered, in_flight, computing } =
        connection::run(socket, settings, membership, relieve, shared.stop.clone()).await;
    let loss = match end {
        End::Closed => Loss::Closed,
        End::Protocol(fault) => {
            shared.metrics.protocol_errors.inc();
            Loss::Protocol(fault.to_string())
        }
        End::Silent(silence) => Loss::Silent(silence),
        End::NoProgress(time) => Loss::NoProgress(time),
        End::FailsWarmUp => Loss::FailsWarmUp,
        End::DeviceLost(message) => Loss::DeviceLost(printable::line(&message).into_owned()),
        End::Relieved => Loss::Relieved,
        End::Stopped => Loss::Stopped,
    };
    let mut burial = Burial { id, generation, started, oom_kills, batches_answered, in_flight };
    let Buried { reason, manner } = burial.end(shared, process, &loss).await;
    shared.pool.settle(computing, manner);
    Death { loss, reason, batches_answered }
}

/// What is written down of a process that ends.
struct Burial {
    id: usize,
    generation: u64,
    started: Instant,
    /// Kills for want of memory in the control group when it was started.
    oom_kills: u64,
    batches_answered: u64,
    in_flight: usize,
}

struct Buried {
    reason: Option<RestartReason>,
    manner: Manner,
}

impl Burial {
    /// Makes sure that the process is gone, and writes down how it ended.
    async fn end(&mut self, shared: &Shared, process: Process, loss: &Loss) -> Buried {
        let pid = process.pid();
        let patience = match loss {
            Loss::Closed | Loss::Fatal(_) | Loss::DeviceLost(_) | Loss::Stopped | Loss::Relieved => {
                shared.config.exit_patience
            }
            _ => Duration::ZERO,
        };
        let Ended { status, last_words } = process.end(patience).await;
        let (signal, exit_code) = (status.and_then(signal_of), status.and_then(|status| status.code()));
        match loss {
            Loss::Stopped => return Buried { reason: None, manner: Manner::OtherHand },
            Loss::Relieved => {
                tracing::info!(worker = self.id, pid, generation = self.generation, "worker replaced");
                return Buried { reason: None, manner: Manner::OtherHand };
            }
            _ => {}
        }
        // One whose memory is being given back may be silent for so long that it is killed once more.
        let is_out_of_memory = matches!(loss, Loss::Closed | Loss::Silent(_))
            && signal == Some(Ok(Signal::SIGKILL))
            && shared.oom_kills.explain(self.oom_kills, machine::oom_kills());
        let reason = match loss {
            _ if is_out_of_memory => RestartReason::OutOfMemory,
            Loss::Spawn(_) => RestartReason::Spawn,
            Loss::StartTimeout(_) => RestartReason::StartTimeout,
            Loss::Protocol(_) => RestartReason::ProtocolError,
            Loss::Silent(_) => RestartReason::Heartbeat,
            Loss::NoProgress(_) => RestartReason::Progress,
            Loss::FailsWarmUp => RestartReason::Failures,
            Loss::DeviceLost(_) => RestartReason::DeviceLost,
            _ if signal.is_some() => RestartReason::Signal,
            _ => RestartReason::Exit,
        };
        // Before the log and the status say so: who has read them finds it counted.
        if !matches!(loss, Loss::Fatal(_)) {
            shared.metrics.worker_restarted(reason);
        }
        tracing::warn!(
            worker = self.id,
            pid,
            generation = self.generation,
            reason = reason.name(),
            detail = %loss,
            signal = signal.map(|signal| signal.map_or_else(|number| number.to_string(), |name| name.to_string())),
            exit_code,
            in_flight = self.in_flight,
            batches_answered = self.batches_answered,
            uptime_seconds = self.started.elapsed().as_secs_f64(),
            last_words = last_words.join(" | "),
            "worker lost"
        );
        let is_killed = matches!(signal, Some(Ok(Signal::SIGKILL | Signal::SIGTERM)));
        let is_of_itself = match loss {
            Loss::NoProgress(_) => true,
            // One that dumps its core is silent meanwhile.
            Loss::Closed | Loss::Silent(_) => !is_killed && (signal.is_some() || exit_code.is_some()),
            _ => false,
        };
        let manner = if is_of_itself { Manner::OfItself } else { Manner::OtherHand };
        Buried { reason: Some(reason), manner }
    }
}

/// The signal that ended a process: its name, or its number where it has none here.
fn signal_of(status: ExitStatus) -> Option<Result<Signal, i32>> {
    let number = std::os::unix::process::ExitStatusExt::signal(&status)?;
    Some(Signal::try_from(number).map_err(|_unknown| number))
}
