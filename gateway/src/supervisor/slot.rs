//! One worker through all its processes: the states that [`super`] draws.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::backoff::{Backoff, Cause, CrashLoop};
use super::incarnation::{self, Death, Loss, Started};
use super::{Due, Shared, WorkerState, WorkerStatus};
use crate::heart::Heart;
use crate::machine::{self, Footprint};
use crate::metrics::RestartReason;

/// Told to replace a worker's process.
#[derive(Debug)]
pub(super) struct Order {
    /// The process that is meant; `None` means whichever there is.
    pub(super) seat: Option<u64>,
    /// Why.
    pub(super) reason: RestartReason,
    /// Told whether a successor serves now.
    pub(super) done: oneshot::Sender<bool>,
}

/// A process that serves.
struct Serving {
    seat: u64,
    pid: u32,
    relieve: CancellationToken,
    death: JoinHandle<Death>,
    /// When it has been ready for long enough to be in no crash loop.
    survived: Instant,
}

/// The task behind one worker.
pub(super) struct Slot {
    id: usize,
    shared: Arc<Shared>,
    tasks: TaskTracker,
    status: watch::Sender<WorkerStatus>,
    orders: mpsc::Receiver<Order>,
    backoff: Backoff,
    crash_loop: CrashLoop,
    /// How long the last start took.
    start_took: Option<Duration>,
}

/// What follows the end of a process.
enum Next {
    Start,
    End,
}

impl Slot {
    /// Starts the task; returns its status, and where it takes orders.
    pub(super) fn start(
        id: usize,
        shared: Arc<Shared>,
        tasks: &TaskTracker,
        heart: &Heart,
    ) -> (watch::Receiver<WorkerStatus>, mpsc::Sender<Order>) {
        let (status, receiver) = watch::channel(WorkerStatus {
            id,
            state: WorkerState::Starting,
            pid: None,
            generation: 0,
            footprint: Footprint::default(),
            started: Instant::now(),
            due: Due::Now,
            ready: None,
            seat: None,
            last_loss: None,
            is_in_crash_loop: false,
        });
        let (sender, orders) = mpsc::channel(1);
        let slot = Self {
            id,
            tasks: tasks.clone(),
            status,
            orders,
            backoff: Backoff::new(shared.config.backoff_first, shared.config.backoff_longest),
            crash_loop: CrashLoop::new(shared.config.crash_loop_window),
            shared,
            start_took: None,
        };
        tasks.spawn(heart.watch("supervisor", slot.run()));
        (receiver, sender)
    }

    async fn run(mut self) {
        loop {
            let death = match self.start_process().await {
                Ok(started) => {
                    let serving = self.begin(started);
                    self.serve(serving).await
                }
                Err(death) => death,
            };
            if let Next::End = self.wait_for_next_start(death).await {
                self.publish(|status| (status.state, status.pid) = (WorkerState::Draining, None));
                return;
            }
        }
    }

    /// From a spawn to readiness.
    async fn start_process(&mut self) -> Result<Started, Death> {
        let started = Instant::now();
        let due = self.start_took.map_or(Due::Now, |took| Due::At(started + took));
        self.publish(|status| {
            status.state = WorkerState::Starting;
            status.generation += 1;
            status.started = started;
            status.due = due;
        });
        let generation = self.status.borrow().generation;
        let starting = incarnation::spawn(&self.shared, self.id, generation)?;
        self.publish(|status| {
            status.pid = Some(starting.process.pid());
            status.footprint = starting.footprint.clone();
        });
        incarnation::wait_until_ready(&self.shared, self.id, starting).await
    }

    /// Gives a ready process its seat in the pool, and says so.
    fn begin(&mut self, started: Started) -> Serving {
        self.shared.any_was_ready.store(true, Ordering::Relaxed);
        self.start_took = Some(started.took);
        if self.crash_loop.ready() {
            self.shared.metrics.crash_loop.dec();
        }
        let pid = started.pid();
        // Before it has a batch.
        let footprint = started.footprint().clone();
        let memory_at_start = machine::memory_bytes([(Some(pid), &footprint)])[0];
        let is_in_crash_loop = self.crash_loop.is_on();
        let membership = self.shared.pool.join(self.id, started.warm_up_speed());
        let seat = membership.seat.number();
        self.publish(|status| {
            status.state = WorkerState::Ready;
            status.pid = Some(pid);
            status.footprint = footprint;
            status.started = started.started();
            status.due = Due::Now;
            status.seat = Some((seat, memory_at_start));
            status.ready = Some(started.ready.clone());
            status.is_in_crash_loop = is_in_crash_loop;
        });
        let relieve = CancellationToken::new();
        let (shared, id, token) = (Arc::clone(&self.shared), self.id, relieve.clone());
        let death = self
            .tasks
            .spawn(async move { incarnation::serve(&shared, id, started, membership, token).await });
        let survived = Instant::now() + self.crash_loop.window();
        Serving { seat, pid, relieve, death, survived }
    }

    /// Until the process is lost, through all its successors.
    async fn serve(&mut self, mut serving: Serving) -> Death {
        loop {
            let order = tokio::select! {
                death = &mut serving.death => return Self::join(death),
                Some(order) = self.orders.recv() => order,
                () = tokio::time::sleep_until(serving.survived), if self.crash_loop.is_on() => {
                    self.survived();
                    continue;
                }
                () = self.shared.stop.cancelled() => {
                    self.publish(|status| status.state = WorkerState::Draining);
                    return Self::join(serving.death.await);
                }
            };
            if order.seat.is_some_and(|seat| seat != serving.seat) {
                let _ = order.done.send(true); // that process is gone already
                continue;
            }
            tracing::info!(
                worker = self.id,
                pid = serving.pid,
                reason = order.reason.name(),
                "replacing worker"
            );
            let generation = self.status.borrow().generation + 1;
            let (shared, id) = (Arc::clone(&self.shared), self.id);
            let successor = async move {
                let starting = incarnation::spawn(&shared, id, generation)?;
                incarnation::wait_until_ready(&shared, id, starting).await
            };
            let mut successor = std::pin::pin!(successor);
            let mut lost = None;
            let successor = loop {
                tokio::select! {
                    successor = &mut successor => break successor,
                    death = &mut serving.death, if lost.is_none() => {
                        lost = Some(Self::join(death));
                        self.publish_start_after_loss();
                    }
                }
            };
            match (successor, lost) {
                (Ok(successor), lost) => {
                    self.publish(|status| status.generation = generation);
                    let old = std::mem::replace(&mut serving, self.begin(successor));
                    if lost.is_none() {
                        self.shared.metrics.worker_restarted(order.reason);
                        old.relieve.cancel();
                    }
                    let _ = order.done.send(true);
                }
                (Err(failed), None) if !matches!(failed.loss, Loss::Stopped) => {
                    tracing::error!(worker = self.id, detail = %failed.loss, "replacement failed to start: keeping the current worker");
                    let _ = order.done.send(false);
                }
                (Err(failed), lost) => {
                    let _ = order.done.send(false);
                    return lost.unwrap_or(failed);
                }
            }
        }
    }

    /// The process has been ready for so long that what happened before does not count any more.
    fn survived(&mut self) {
        if self.crash_loop.survived() {
            self.shared.metrics.crash_loop.dec();
            self.publish(|status| status.is_in_crash_loop = false);
        }
    }

    fn join(death: Result<Death, tokio::task::JoinError>) -> Death {
        death.unwrap_or_else(|error| {
            tracing::error!(%error, "a worker's task panicked: this is a bug");
            Death { loss: Loss::Protocol("its task panicked".to_owned()), reason: None, batches_answered: 0 }
        })
    }

    fn publish_start_after_loss(&self) {
        let due = self.start_took.map_or(Due::Now, |took| Due::At(Instant::now() + took));
        self.publish(|status| {
            status.state = WorkerState::Starting;
            (status.pid, status.ready) = (None, None);
            status.due = due;
        });
    }

    /// After a death: waits as long as it takes until the next start.
    async fn wait_for_next_start(&mut self, death: Death) -> Next {
        let Death { loss, reason, batches_answered } = death;
        if matches!(loss, Loss::Stopped) || self.shared.stop.is_cancelled() {
            return Next::End;
        }
        self.publish(|status| {
            (status.pid, status.ready) = (None, None);
            status.last_loss = reason.or(status.last_loss);
        });
        if let Loss::Fatal(message) = loss {
            self.publish(|status| (status.state, status.due) = (WorkerState::Failed, Due::Never));
            if !self.shared.any_was_ready.load(Ordering::Relaxed) {
                self.shared.fatal.send_replace(Some(message));
            }
            return self.wait_for_order().await;
        }
        if batches_answered > 0 {
            self.backoff.reset();
        }
        let was_ready = !matches!(self.status.borrow().state, WorkerState::Starting);
        let is_out_of_memory = reason == Some(RestartReason::OutOfMemory);
        if let Some(cause) = self.crash_loop.died(was_ready, is_out_of_memory) {
            self.shared.metrics.crash_loop.inc();
            let next_start_seconds = self.shared.config.crash_loop_wait.as_secs_f64();
            let worker = self.id;
            match cause {
                Cause::NeverReady => tracing::error!(
                    worker,
                    next_start_seconds,
                    "crash loop: the worker keeps exiting before it is ready"
                ),
                Cause::OutOfMemory => tracing::error!(
                    worker,
                    next_start_seconds,
                    hint = "start fewer workers with `--workers`, or give the container or unit more memory",
                    "crash loop: the kernel keeps killing the worker because memory is short"
                ),
            }
        }
        let wait = if self.crash_loop.is_on() {
            self.shared.config.crash_loop_wait
        } else {
            self.backoff.next_wait()
        };
        let due = Instant::now() + wait + self.start_took.unwrap_or_default();
        let is_in_crash_loop = self.crash_loop.is_on();
        self.publish(|status| {
            status.state = WorkerState::Backoff;
            status.due = Due::At(due);
            status.is_in_crash_loop = is_in_crash_loop;
        });
        tokio::select! {
            () = tokio::time::sleep(wait) => Next::Start,
            next = self.wait_for_order() => next,
        }
    }

    /// Waits until somebody wants a new process.
    async fn wait_for_order(&mut self) -> Next {
        let stop = self.shared.stop.clone();
        tokio::select! {
            order = self.next_order_to_start() => {
                // Published first: whoever gave the order looks at it next.
                self.publish(|status| status.state = WorkerState::Starting);
                let _ = order.done.send(true);
                Next::Start
            }
            () = stop.cancelled() => Next::End,
        }
    }

    /// The next order that does not mean a process which is gone.
    async fn next_order_to_start(&mut self) -> Order {
        loop {
            match self.orders.recv().await {
                Some(order) if order.seat.is_none() => return order,
                Some(gone) => drop(gone.done.send(true)),
                None => std::future::pending().await,
            }
        }
    }

    fn publish(&self, change: impl FnOnce(&mut WorkerStatus)) {
        self.status.send_modify(change);
        self.shared.changes.send_replace(());
    }
}
