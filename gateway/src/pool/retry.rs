//! Work that has to be done again.
//!
//! Embedding is pure, so what a worker held when it was lost is run again:
//!
//! * A batch that it had not begun goes on as it was.
//! * The texts of the batch that it was computing are *suspects*: each goes on alone, at most one at a worker at a
//!   time, so that a text which kills its worker takes no others with it and is found.
//! * The same text is never on trial twice at a time, and what was convicted meanwhile goes to no worker.
//! * A worker that dies of itself while it computes one text alone convicts that text, which is then refused for some
//!   time. A kill from outside convicts nobody.
//! * The texts of a batch that raised an error go on alone, and one whose vector cannot be right goes on alone at
//!   another worker, where there is one.
//!
//! A text is lost with at most three workers, and every request that loses a worker draws on a budget, so that
//! retries cannot multiply the load of a machine in trouble.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Assignment, Permit, Pool, State};
use crate::error::EmbedError;
use crate::job::Job;

/// How often a text may be run again after the worker that computed it was lost.
const MAX_RETRIES: u8 = 2;
/// Requests that may be run again before the budget is refilled.
const BUDGET_REQUESTS: f64 = 100.0;
/// Part of a retry that an admitted request adds to the budget.
const REFILL_PER_REQUEST: f64 = 0.1;

/// A batch to be run again.
#[derive(Debug)]
pub(super) struct Retry {
    pub(super) jobs: Vec<Job>,
    is_suspect: bool,
}

/// What waits to be run again, and the budget for it.
#[derive(Debug)]
pub(super) struct Retries {
    waiting: VecDeque<Retry>,
    budget: f64,
}

impl Default for Retries {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), budget: BUDGET_REQUESTS }
    }
}

impl Retries {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn refill(&mut self) {
        self.budget = (self.budget + REFILL_PER_REQUEST).min(BUDGET_REQUESTS);
    }

    fn draw(&mut self) -> bool {
        let has_some = self.budget >= 1.0;
        if has_some {
            self.budget -= 1.0;
        }
        has_some
    }
}

/// Finds the first retry that a worker with a free permit may have.
pub(super) fn take_next(pool: &Pool, state: &mut State) -> Option<(Permit, Retry)> {
    let mut position = 0;
    while let Some(retry) = state.retries.waiting.get_mut(position) {
        retry.jobs.retain(Job::is_wanted);
        retry.jobs = pool.without_poison(std::mem::take(&mut retry.jobs));
        let is_suspect = retry.is_suspect;
        let Some(first) = retry.jobs.first() else {
            state.retries.waiting.remove(position);
            continue;
        };
        let doubted = first.doubt.as_ref().and_then(|doubt| doubt.seat());
        let text = is_suspect.then(|| pool.shared.poison.hash(&first.token_ids, first.pooling));
        if text.is_some_and(|text| state.suspects.contains(&text)) {
            position += 1; // the same text is on trial
            continue;
        }
        let is_alone =
            |seat| state.members.iter().all(|member| member.seat == seat || !member.is_responsive());
        let avoided = doubted.filter(|seat| !is_alone(*seat));
        let permit = pool.try_reserve(state, |member| {
            Some(member.seat) != avoided && !(is_suspect && member.suspects.load(Ordering::Relaxed) > 0)
        });
        if let Some(mut permit) = permit {
            permit.suspect = text;
            if let Some(text) = text {
                state.suspects.insert(text);
                permit.member.suspects.fetch_add(1, Ordering::Relaxed);
            }
            return Some((permit, state.retries.waiting.remove(position)?));
        }
        position += 1;
    }
    None
}

impl Pool {
    /// Takes back batches that a lost worker had not begun.
    pub(crate) fn take_back(&self, not_begun: Vec<Assignment>) {
        let retries = not_begun.into_iter().map(|Assignment { jobs, permit, .. }| {
            let is_suspect = permit.suspect.is_some();
            permit.discard();
            Retry { jobs, is_suspect }
        });
        self.run_again(retries.collect());
    }

    /// Decides on the texts of a batch under which its worker was lost. `of_itself`: nobody killed it.
    pub(crate) fn settle(&self, jobs: Vec<Job>, of_itself: bool) {
        let is_convicted = of_itself && jobs.len() == 1;
        let mut requests = HashSet::new();
        let mut retries = Vec::new();
        for mut job in jobs {
            job.reply.worker_lost.store(true, Ordering::Relaxed);
            if is_convicted && !self.is_poison(&job.token_ids, job.pooling) {
                self.shared.metrics.poison_texts.inc();
                self.shared.poison.remember(&job.token_ids, job.pooling);
            }
            if self.is_poison(&job.token_ids, job.pooling) {
                let index = job.index();
                job.answer(Err(EmbedError::PoisonInput { index }));
                continue;
            }
            let is_new = requests.insert(Arc::as_ptr(&job.reply.worker_lost));
            if job.lost_workers == MAX_RETRIES || (is_new && !self.state().retries.draw()) {
                job.answer(Err(EmbedError::WorkerLost));
            } else {
                job.lost_workers += 1;
                retries.push(Retry { jobs: vec![job], is_suspect: true });
            }
        }
        self.run_again(retries);
    }

    /// Answers those of the texts that are poison by now; returns the others.
    pub(super) fn without_poison(&self, jobs: Vec<Job>) -> Vec<Job> {
        if self.shared.poison.is_empty() {
            return jobs;
        }
        let (poison, others): (Vec<_>, Vec<_>) =
            jobs.into_iter().partition(|job| self.is_poison(&job.token_ids, job.pooling));
        for job in poison {
            let index = job.index();
            job.answer(Err(EmbedError::PoisonInput { index }));
        }
        others
    }

    /// Runs the texts of a failed batch again, one by one.
    pub(crate) fn rerun_singly(&self, jobs: Vec<Job>) {
        self.run_again(jobs.into_iter().map(|job| Retry { jobs: vec![job], is_suspect: false }).collect());
    }

    fn run_again(&self, retries: Vec<Retry>) {
        if retries.is_empty() {
            return;
        }
        self.shared.metrics.retries.inc_by(retries.len() as u64);
        self.state().retries.waiting.extend(retries);
        self.capacity_freed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_a_hundred_requests_and_a_tenth_of_those_admitted() {
        let mut retries = Retries::default();
        retries.refill();
        assert_eq!((0..1000).filter(|_| retries.draw()).count(), 100);
        for _ in 0..100 {
            retries.refill();
        }
        assert!((9..=10).contains(&(0..1000).filter(|_| retries.draw()).count()));
    }
}
