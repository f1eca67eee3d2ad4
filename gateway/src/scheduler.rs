//! Queues texts and forms batches of them.
//!
//! One task owns the queue. It reserves a worker permit first and only then forms a batch, so a batch grows
//! for as long as the workers are busy, and an idle gateway adds no wait. Jobs whose client has gone or whose
//! deadline has passed are dropped on the way.

mod packing;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::job::{Job, QueueEntry};
use crate::metrics::Metrics;
use crate::pool::Pool;

/// While no worker is free, how often jobs that nobody waits for are dropped.
const PRUNE_INTERVAL: Duration = Duration::from_millis(250);

/// How batches are formed.
#[derive(Debug, Clone)]
pub struct Config {
    /// Tokens in one batch. One text always fits, however long.
    pub max_batch_tokens: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { max_batch_tokens: 2048 }
    }
}

/// Handle to the task that owns the queue. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Scheduler {
    submissions: mpsc::UnboundedSender<Vec<Job>>,
    metrics: Arc<Metrics>,
}

impl Scheduler {
    /// Starts the task; it ends when every handle is gone.
    pub(crate) fn start(config: Config, pool: Pool, metrics: Arc<Metrics>) -> Self {
        let (submissions, receiver) = mpsc::unbounded_channel();
        tokio::spawn(Queue { config, pool, receiver, jobs: VecDeque::new() }.run());
        Self { submissions, metrics }
    }

    /// Admits all texts of one request. `make_job` is given the request's place in the queue.
    pub(crate) fn submit(&self, make_jobs: impl FnOnce(&Arc<QueueEntry>) -> Vec<Job>) {
        let entry = QueueEntry::new(Arc::clone(&self.metrics));
        let jobs = make_jobs(&entry);
        // The receiver lives as long as any handle does; were it gone, dropping the jobs tells the manager.
        let _ = self.submissions.send(jobs);
    }
}

/// The task's state.
struct Queue {
    config: Config,
    pool: Pool,
    receiver: mpsc::UnboundedReceiver<Vec<Job>>,
    jobs: VecDeque<Job>,
}

impl Queue {
    async fn run(mut self) {
        let mut prune = tokio::time::interval(PRUNE_INTERVAL);
        prune.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if self.jobs.is_empty() {
                match self.receiver.recv().await {
                    Some(jobs) => self.jobs.extend(jobs),
                    None => return,
                }
            }
            let permit = tokio::select! {
                permit = self.pool.reserve() => permit,
                _ = prune.tick() => {
                    self.jobs.retain(Job::is_wanted);
                    continue;
                }
            };
            while let Ok(jobs) = self.receiver.try_recv() {
                self.jobs.extend(jobs);
            }
            let batch = packing::take_batch(&mut self.jobs, self.config.max_batch_tokens);
            if !batch.is_empty() {
                permit.send(batch);
            }
        }
    }
}
