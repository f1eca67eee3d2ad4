//! Queues texts and forms batches of them.
//!
//! One task owns the queue. It reserves a worker permit first and only then forms a batch, so a batch grows
//! for as long as the workers are busy, and an idle gateway adds no wait. What is queued is shared evenly by the
//! ready workers, so that a large request is computed by all of them at once. Jobs whose client has gone or whose
//! deadline has passed are dropped on the way.

pub(crate) mod packing;

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
    /// Tokens in one batch; `None` finds it from the speed of the workers' warm-up. One text always fits, however long.
    pub max_batch_tokens: Option<usize>,
    /// How long a text may wait for others to fill its batch while a worker is free.
    pub batch_wait: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { max_batch_tokens: None, batch_wait: Duration::ZERO }
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
                Some(jobs) = self.receiver.recv() => {
                    self.jobs.extend(jobs);
                    continue;
                }
                _ = prune.tick() => {
                    self.jobs.retain(Job::is_wanted);
                    continue;
                }
            };
            self.receive_waiting();
            let max_tokens = self.config.max_batch_tokens.unwrap_or_else(|| self.pool.batch_tokens());
            if !self.config.batch_wait.is_zero() {
                self.fill(max_tokens).await;
            }
            let budget = packing::budget(self.queued_tokens(), self.pool.ready_workers(), max_tokens);
            let batch = packing::take_batch(&mut self.jobs, budget);
            if !batch.is_empty() {
                permit.send(batch, !self.jobs.is_empty());
            }
        }
    }

    fn receive_waiting(&mut self) {
        while let Ok(jobs) = self.receiver.try_recv() {
            self.jobs.extend(jobs);
        }
    }

    /// Waits until the queue fills a batch, for as long as that was asked for.
    async fn fill(&mut self, max_tokens: usize) {
        let end = tokio::time::Instant::now() + self.config.batch_wait;
        while self.queued_tokens() < max_tokens {
            match tokio::time::timeout_at(end, self.receiver.recv()).await {
                Ok(Some(jobs)) => self.jobs.extend(jobs),
                Ok(None) | Err(_) => return,
            }
        }
    }

    fn queued_tokens(&self) -> usize {
        self.jobs.iter().map(|job| job.token_ids.len()).sum()
    }
}
