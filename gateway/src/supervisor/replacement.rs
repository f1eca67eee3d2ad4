//! Who is replaced when. A replacement takes no capacity away: the successor is ready before the old process goes.
//!
//! One worker is replaced at a time, and none while another one is not ready. Requests to replace all of them that come
//! while that is under way become one more round.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

use super::slot::Order;
use super::{Shared, WorkerState, WorkerStatus};
use crate::machine;
use crate::metrics::RestartReason;
use crate::pool::Replacement;

/// How often it is looked whether a worker responds again.
const RESPONSE_INTERVAL: Duration = Duration::from_millis(50);

/// Replaces workers, one at a time.
pub(super) struct Replacer {
    shared: Arc<Shared>,
    statuses: Vec<watch::Receiver<WorkerStatus>>,
    orders: Vec<mpsc::Sender<Order>>,
}

impl Replacer {
    pub(super) fn new(
        shared: Arc<Shared>,
        statuses: Vec<watch::Receiver<WorkerStatus>>,
        orders: Vec<mpsc::Sender<Order>>,
    ) -> Self {
        Self { shared, statuses, orders }
    }

    /// Serves wishes until the gateway stops: those of the operator for all workers, those of others for one.
    pub(super) async fn run(
        self,
        mut reloads: mpsc::UnboundedReceiver<()>,
        mut wishes: mpsc::UnboundedReceiver<Replacement>,
    ) {
        let stop = self.shared.stop.clone();
        let serve = async {
            loop {
                tokio::select! {
                    Some(()) = reloads.recv() => {
                        // Those that came until now are served by this round.
                        while reloads.try_recv().is_ok() {}
                        self.replace_all().await;
                    }
                    Some(Replacement { worker, seat, reason }) = wishes.recv() => {
                        if !self.replace(worker, Some(seat), reason).await {
                            self.try_again_later(seat);
                        }
                    }
                    else => return,
                }
            }
        };
        tokio::select! {
            () = serve => {}
            () = stop.cancelled() => {}
        }
    }

    /// The worker may be asked for again, but not at once: starting costs a model's memory and time.
    fn try_again_later(&self, seat: u64) {
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(shared.config.crash_loop_wait) => shared.pool.keep(seat),
                () = shared.stop.cancelled() => {}
            }
        });
    }

    async fn replace_all(&self) {
        tracing::info!("replacing all workers, one at a time");
        for worker in 0..self.orders.len() {
            if !self.replace(worker, None, RestartReason::Reload).await {
                tracing::error!("keeping the other workers: a new one does not become ready");
                return;
            }
        }
        tracing::info!("all workers replaced");
    }

    /// Whether a successor serves now.
    async fn replace(&self, worker: usize, seat: Option<u64>, reason: RestartReason) -> bool {
        for (other, status) in self.statuses.iter().enumerate() {
            if other != worker {
                let is_settled =
                    |status: &WorkerStatus| matches!(status.state, WorkerState::Ready | WorkerState::Failed);
                if status.clone().wait_for(is_settled).await.is_err() {
                    return false;
                }
                // One that is ready but does not respond will respond or be lost soon.
                while status.borrow().state == WorkerState::Ready && !self.shared.pool.is_responsive(other) {
                    tokio::time::sleep(RESPONSE_INTERVAL).await;
                }
            }
        }
        let (done, is_done) = oneshot::channel();
        if self.orders[worker].send(Order { seat, reason, done }).await.is_err() {
            return false;
        }
        let is_replaced = is_done.await.unwrap_or(false);
        // An order to a worker that has no process only starts one.
        let is_settled = |status: &WorkerStatus| {
            matches!(status.state, WorkerState::Ready | WorkerState::Failed | WorkerState::Backoff)
        };
        let mut status = self.statuses[worker].clone();
        is_replaced
            && status.wait_for(is_settled).await.is_ok_and(|status| status.state == WorkerState::Ready)
    }
}

/// Looks at the memory of every worker now and then, and asks for a successor of one that has grown too large.
pub(super) async fn watch_memory(
    shared: Arc<Shared>,
    statuses: Vec<watch::Receiver<WorkerStatus>>,
    limit_bytes: u64,
) {
    let mut tick = tokio::time::interval(shared.config.memory_interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last_warned = None;
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = shared.stop.cancelled() => return,
        }
        let ready: Vec<WorkerStatus> = statuses.iter().map(|status| status.borrow().clone()).collect();
        let processes = ready
            .iter()
            .map(|status| (status.pid.filter(|_| status.state == WorkerState::Ready), &status.footprint));
        for (status, bytes) in ready.iter().zip(machine::memory_bytes(processes)) {
            let (Some(bytes), Some((seat, at_start))) = (bytes, status.seat) else { continue };
            if bytes <= limit_bytes {
                continue;
            }
            if at_start.is_none_or(|at_start| at_start <= limit_bytes) {
                shared.pool.replace(seat, RestartReason::Memory);
            } else if last_warned != Some(seat) {
                last_warned = Some(seat);
                let worker = status.id;
                tracing::warn!(worker, bytes, limit_bytes, "ignoring the memory limit: the model needs more");
            }
        }
    }
}
