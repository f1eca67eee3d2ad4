//! Queues texts and forms batches of them.
//!
//! One task owns the queue. It reserves a worker permit first and only then forms a batch, so a batch grows
//! for as long as the workers are busy, and an idle gateway adds no wait. What is queued is shared evenly by the
//! ready workers, so that a large request is computed by all of them at once. Jobs whose client has gone or whose
//! deadline has passed are dropped on the way.
//!
//! Who is admitted is decided in `admission`.

pub(crate) mod admission;
pub(crate) mod packing;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::error::EmbedError;
use crate::heart::Heart;
use crate::job::{Job, QueueEntry, Share};
use crate::pool::Pool;
use admission::{RequestSize, TimeLimit};

/// How batches are formed.
#[derive(Debug, Clone)]
pub struct Config {
    /// Tokens in one batch, at most; `None` finds it from the speed of the workers' warm-up. It is less where a worker would
    /// take more than an eighth of a request's time for it. One text always fits, however long.
    pub max_batch_tokens: Option<usize>,
    /// How long a text may wait for others to fill its batch while a worker is free.
    pub batch_wait: Duration,
    /// Most tokens that are admitted and not done.
    pub max_queue_tokens: usize,
    /// How often abandoned jobs are dropped while no worker is free.
    pub prune_interval: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_batch_tokens: None,
            batch_wait: Duration::ZERO,
            max_queue_tokens: 1 << 20,
            prune_interval: Duration::from_millis(250),
        }
    }
}

/// Handle to the task that owns the queue. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Scheduler {
    max_queue_tokens: usize,
    pool: Pool,
    submissions: mpsc::UnboundedSender<Vec<Job>>,
}

impl Scheduler {
    /// Starts the task; it ends when every handle is gone.
    pub(crate) fn start(config: Config, pool: Pool, heart: &Heart) -> Self {
        let (submissions, receiver) = mpsc::unbounded_channel();
        let max_queue_tokens = config.max_queue_tokens;
        let queue = Queue { config, pool: pool.clone(), receiver, jobs: VecDeque::new() };
        tokio::spawn(heart.watch("scheduler", queue.run()));
        Self { max_queue_tokens, pool, submissions }
    }

    /// Admits all texts of one request, or none. `make_jobs` is given the request's place in the queue and its part of the
    /// backlog.
    pub(crate) fn submit(
        &self,
        size: RequestSize,
        time: TimeLimit,
        make_jobs: impl FnOnce(&Arc<QueueEntry>, Share) -> Vec<Job>,
    ) -> Result<(), EmbedError> {
        let capacity = self.pool.capacity();
        let share = self.pool.backlog().join(size.tokens, |backlog| {
            admission::judge(&capacity, backlog, self.max_queue_tokens, size, time)
        })?;
        self.pool.request_admitted();
        self.send(share, make_jobs);
        Ok(())
    }

    /// Computes some of a refused request's texts, whose result is dropped, where the speed of idle workers was never
    /// measured or long ago: else a wrong estimate that refuses every request would never be found out.
    /// `make_jobs` is told how many tokens to compute at least.
    pub(crate) fn probe(&self, make_jobs: impl FnOnce(&Arc<QueueEntry>, Share, usize) -> Vec<Job>) {
        let Some(tokens) = self.pool.tokens_to_measure() else { return };
        let joined = self.pool.backlog().join(tokens, |backlog| if backlog == 0 { Ok(()) } else { Err(()) });
        if let Ok(share) = joined {
            self.send(share, |entry, share| make_jobs(entry, share, tokens));
        }
    }

    fn send(&self, share: Share, make_jobs: impl FnOnce(&Arc<QueueEntry>, Share) -> Vec<Job>) {
        let jobs = make_jobs(&QueueEntry::new(self.pool.backlog()), share);
        // The receiver lives as long as any handle does; were it gone, dropping the jobs tells the manager.
        let _ = self.submissions.send(jobs);
    }

    /// Refuses a request that even with this few tokens could not be done in time after what was admitted before it.
    pub(crate) fn check(&self, least: RequestSize, time: TimeLimit) -> Result<(), EmbedError> {
        match self.pool.backlog().tokens() {
            0 => Ok(()),
            backlog => {
                match admission::judge(&self.pool.capacity(), backlog, self.max_queue_tokens, least, time) {
                    // How much time it needs is known once its tokens are.
                    Err(EmbedError::DeadlineTooShort { .. }) => Ok(()),
                    verdict => verdict,
                }
            }
        }
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
        let mut prune = tokio::time::interval(self.config.prune_interval);
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
            let max_tokens = permit.batch_tokens();
            if !self.config.batch_wait.is_zero() {
                self.fill(max_tokens).await;
            }
            let budget =
                packing::budget(self.pool.backlog().queued_tokens(), self.pool.ready_workers(), max_tokens);
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
        while self.pool.backlog().queued_tokens() < max_tokens {
            match tokio::time::timeout_at(end, self.receiver.recv()).await {
                Ok(Some(jobs)) => self.jobs.extend(jobs),
                Ok(None) | Err(_) => return,
            }
        }
    }
}
