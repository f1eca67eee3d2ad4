//! Queues texts and forms batches of them.
//!
//! One task owns the queue. It reserves a worker permit first and only then forms a batch, so a batch grows
//! for as long as the workers are busy, and an idle gateway adds no wait. What is queued is shared evenly by the
//! ready workers, so that a large request is computed by all of them at once. Jobs whose client has gone or whose
//! deadline has passed are dropped on the way.
//!
//! # Admission
//!
//! A request is admitted whole or not at all, at once. It is refused when what was admitted before it, and it itself,
//! would by the speed of the workers not be done within four fifths of its time: `(backlog + own) / C + 1.5 s > 0.8 D`,
//! with the backlog in tokens (queued and at the workers), `C` the tokens per second of all workers that can take a
//! batch, `s` the time of one full batch, which is how long the last text of the backlog may be computed together with
//! others, and `D` the time that the request has left. When nothing is queued, a request is always admitted. So a
//! request that is admitted is answered in time, and under overload the workers compute nothing that is too late.

pub(crate) mod packing;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::error::EmbedError;
use crate::job::{Backlog, Job, QueueEntry};
use crate::metrics::Metrics;
use crate::pool::Pool;

/// Part of a request's time within which it has to be done by forecast.
const FORECAST_MARGIN: f64 = 0.8;
/// Full batches that a text may lie in, or wait behind, beyond what the backlog takes.
const BATCHES_OF_DELAY: f64 = 1.5;
/// Least time after which a refused client is asked to come back.
const SHORTEST_RETRY_AFTER: Duration = Duration::from_secs(1);

/// How batches are formed.
#[derive(Debug, Clone)]
pub struct Config {
    /// Tokens in one batch; `None` finds it from the speed of the workers' warm-up. One text always fits, however long.
    pub max_batch_tokens: Option<usize>,
    /// How long a text may wait for others to fill its batch while a worker is free.
    pub batch_wait: Duration,
    /// Most tokens that are admitted and not done.
    pub max_queue_tokens: usize,
    /// How often jobs that nobody waits for are dropped while no worker is free.
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

impl Config {
    /// Tokens in one batch, at most.
    fn batch_tokens(&self, pool: &Pool) -> usize {
        self.max_batch_tokens.unwrap_or_else(|| pool.batch_tokens())
    }
}

/// Handle to the task that owns the queue. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Scheduler {
    config: Config,
    pool: Pool,
    submissions: mpsc::UnboundedSender<Vec<Job>>,
    backlog: Arc<Backlog>,
    metrics: Arc<Metrics>,
}

impl Scheduler {
    /// Starts the task; it ends when every handle is gone.
    pub(crate) fn start(config: Config, pool: Pool, metrics: Arc<Metrics>) -> Self {
        let (submissions, receiver) = mpsc::unbounded_channel();
        let queue = Queue {
            config: config.clone(),
            pool: pool.clone(),
            metrics: Arc::clone(&metrics),
            receiver,
            jobs: VecDeque::new(),
        };
        tokio::spawn(queue.run());
        Self { config, pool, submissions, backlog: Arc::default(), metrics }
    }

    /// Admits all texts of one request, or none. `make_jobs` is given the request's place in the queue.
    pub(crate) fn submit(
        &self,
        tokens: &[usize],
        time_left: Duration,
        make_jobs: impl FnOnce(&Arc<QueueEntry>, &Arc<Backlog>) -> Vec<Job>,
    ) -> Result<(), EmbedError> {
        self.check(tokens.iter().sum(), tokens.iter().max().copied().unwrap_or_default(), time_left)?;
        self.pool.request_admitted();
        let entry = QueueEntry::new(Arc::clone(&self.metrics));
        let jobs = make_jobs(&entry, &self.backlog);
        // The receiver lives as long as any handle does; were it gone, dropping the jobs tells the manager.
        let _ = self.submissions.send(jobs);
        Ok(())
    }

    /// Whether a request of so many tokens, with a longest text of so many, can be done in time.
    pub(crate) fn check(&self, tokens: usize, longest: usize, time_left: Duration) -> Result<(), EmbedError> {
        let queued = self.metrics.queue_tokens.get();
        if queued <= 0 {
            return Ok(());
        }
        let backlog = self.backlog.tokens();
        let speed = self.pool.worker_tokens_per_second();
        let forecast = speed.map(|speed| {
            let full_batch = self.config.batch_tokens(&self.pool);
            forecast(backlog, tokens, full_batch.max(longest), speed, self.pool.ready_workers())
        });
        let is_in_time =
            forecast.is_none_or(|forecast| forecast.done <= time_left.as_secs_f64() * FORECAST_MARGIN);
        if is_in_time && backlog.saturating_add(tokens) <= self.config.max_queue_tokens {
            return Ok(());
        }
        let wait = forecast.map_or(Duration::ZERO, |forecast| {
            Duration::try_from_secs_f64(forecast.backlog_done).unwrap_or(Duration::MAX)
        });
        Err(EmbedError::Overloaded { retry_after: wait.max(SHORTEST_RETRY_AFTER) })
    }
}

/// When work is done, in seconds from now.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Forecast {
    /// What was admitted before.
    backlog_done: f64,
    /// The request itself.
    done: f64,
}

fn forecast(backlog: usize, own: usize, batch: usize, worker_speed: f64, workers: usize) -> Forecast {
    #[expect(clippy::cast_precision_loss, reason = "a queue has far fewer than 2^52 tokens")]
    let (backlog, own, batch, workers) = (backlog as f64, own as f64, batch as f64, workers.max(1) as f64);
    let speed = worker_speed.max(1e-3);
    let backlog_done = backlog / (speed * workers);
    Forecast { backlog_done, done: backlog_done + own / (speed * workers) + BATCHES_OF_DELAY * batch / speed }
}

/// The task's state.
struct Queue {
    config: Config,
    pool: Pool,
    metrics: Arc<Metrics>,
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
            let max_tokens = self.config.batch_tokens(&self.pool);
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

    /// Tokens of the jobs that wait, those included that are on their way to this task.
    fn queued_tokens(&self) -> usize {
        usize::try_from(self.metrics.queue_tokens.get()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_done_after_the_backlog_itself_and_a_full_batch() {
        // 2 workers of 1,000 tokens/s: 4 s of backlog, 0.5 s of its own, 1.5 times 0.25 s for a batch of 250 tokens.
        let forecast = forecast(8_000, 1_000, 250, 1_000.0, 2);
        assert!((forecast.backlog_done - 4.0).abs() < 1e-9, "{forecast:?}");
        assert!((forecast.done - 4.875).abs() < 1e-9, "{forecast:?}");
    }
}
