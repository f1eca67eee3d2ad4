//! Who is replaced when. A replacement takes no capacity away: the successor is ready before the old process goes.
//!
//! One worker is replaced at a time, and none while another one is not ready. Requests to replace all of them that come
//! while that is under way become one more round.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

use super::slot::Order;
use super::{Shared, WorkerState, WorkerStatus};
use crate::machine;
use crate::metrics::RestartReason;
use crate::pool::Replacement;

/// What the replacer is asked for.
#[derive(Debug)]
pub(super) enum Wish {
    /// Every worker, because the operator wants it.
    All,
    /// The process of one worker that had this pid.
    Memory { worker: usize, pid: u32 },
}

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

    /// Serves wishes until the gateway stops.
    pub(super) async fn run(
        self,
        mut wishes: mpsc::UnboundedReceiver<Wish>,
        mut pool_wishes: mpsc::UnboundedReceiver<Replacement>,
    ) {
        let stop = self.shared.stop.clone();
        let serve = async {
            loop {
                tokio::select! {
                    Some(wish) = wishes.recv() => match wish {
                        Wish::All => {
                            // Those that came until now are served by this round.
                            let mut others = Vec::new();
                            while let Ok(wish) = wishes.try_recv() {
                                if let Wish::Memory { worker, pid } = wish {
                                    others.push((worker, pid));
                                }
                            }
                            self.replace_all().await;
                            for (worker, pid) in others {
                                self.replace_large(worker, pid).await;
                            }
                        }
                        Wish::Memory { worker, pid } => self.replace_large(worker, pid).await,
                    },
                    Some(Replacement { worker, seat, reason }) = pool_wishes.recv() => {
                        self.replace(worker, Some(seat), reason).await;
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

    /// Replaces a process that has grown too large, if it still is there.
    async fn replace_large(&self, worker: usize, pid: u32) {
        if self.statuses[worker].borrow().pid == Some(pid) {
            self.replace(worker, None, RestartReason::Memory).await;
        }
    }

    async fn replace_all(&self) {
        tracing::info!("replacing every worker, one at a time");
        for worker in 0..self.orders.len() {
            if !self.replace(worker, None, RestartReason::Reload).await {
                tracing::error!("the other workers are kept: a new one does not become ready");
                return;
            }
        }
        tracing::info!("every worker is replaced");
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
    wishes: mpsc::UnboundedSender<Wish>,
) {
    let mut tick = tokio::time::interval(shared.config.memory_interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // What each process used when it was first seen ready, and whether its successor is asked for.
    let mut seen: HashMap<u32, (u64, bool)> = HashMap::new();
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = shared.stop.cancelled() => return,
        }
        let ready_pid = |status: &watch::Receiver<WorkerStatus>| {
            let status = status.borrow();
            status.pid.filter(|_| status.state == WorkerState::Ready)
        };
        let pids: Vec<Option<u32>> = statuses.iter().map(ready_pid).collect();
        seen.retain(|pid, _| pids.contains(&Some(*pid)));
        for (worker, bytes) in machine::resident_bytes(&pids).into_iter().enumerate() {
            let (Some(pid), Some(bytes)) = (pids[worker], bytes) else { continue };
            let (at_first, is_asked) = seen.entry(pid).or_insert_with(|| {
                if bytes > limit_bytes {
                    tracing::warn!(
                        worker,
                        bytes,
                        limit_bytes,
                        "the memory limit is less than what the model needs: it is ignored"
                    );
                }
                (bytes, false)
            });
            if bytes > limit_bytes && *at_first <= limit_bytes && !*is_asked {
                *is_asked = true;
                tracing::warn!(worker, pid, bytes, limit_bytes, "worker uses too much memory");
                let _ = wishes.send(Wish::Memory { worker, pid });
            }
        }
    }
}
