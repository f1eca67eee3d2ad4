//! Work that has to be done again, and the question which text is to blame.
//!
//! Embedding is pure, so what a worker held when it was lost is run again:
//!
//! * A batch that it had not begun goes on as it was, uncharged. When it had begun none, the first frame that it was sent
//!   counts as the batch that it was computing: it may have died of reading it.
//! * The texts of the batch that it was computing go *on trial*: each runs alone, at most one at a worker at a time, so
//!   that a text which kills its worker takes no others with it and is found. The same text is never on trial twice at a
//!   time.
//! * A worker that *dies on its own* (it exits, a signal other than SIGKILL and SIGTERM ends it, or it is killed because
//!   its batch made no progress) makes the texts of that batch suspects. A suspect that is answered is acquitted; one that
//!   was alone when a second worker died on its own is convicted, and refused for some time.
//! * Suspects are remembered across requests: a suspect in a later request goes on trial, too.
//! * Other ends (a kill from outside, silence, a broken protocol, a device that the worker says is lost) make nobody
//!   suspect.
//! * The texts of a batch that raised an error go on alone, and one whose vector cannot be right goes on alone at
//!   another worker, where there is one.
//!
//! A text is lost with at most three workers, however they end, and every request that loses a worker draws on a budget,
//! so that retries cannot multiply the load of a machine in trouble.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::poison::TextHash;
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
    /// The text, where it is on trial: then it is the only one.
    trial: Option<TextHash>,
}

impl Retry {
    fn free(jobs: Vec<Job>) -> Self {
        Self { jobs, trial: None }
    }
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
        let mut trials = Vec::new();
        match retry.trial {
            Some(text) if pool.shared.poison.is_convicted(text) => refuse(std::mem::take(&mut retry.jobs)),
            Some(_) => {}
            None => trials = pool.sift(&mut retry.jobs),
        }
        let trial = retry.trial;
        let Some(first) = retry.jobs.first() else {
            state.retries.waiting.remove(position);
            for trial in trials.into_iter().rev() {
                state.retries.waiting.insert(position, trial);
            }
            continue;
        };
        let doubted = first.doubt.as_ref().and_then(|doubt| doubt.seat());
        state.retries.waiting.extend(trials);
        if trial.is_some_and(|text| state.on_trial.contains(&text)) {
            position += 1;
            continue;
        }
        let is_alone =
            |seat| state.members.iter().all(|member| member.seat == seat || !member.is_responsive());
        let avoided = doubted.filter(|seat| !is_alone(*seat));
        let permit = pool.try_reserve(state, |member| {
            Some(member.seat) != avoided && !(trial.is_some() && member.trials.load(Ordering::Relaxed) > 0)
        });
        if let Some(mut permit) = permit {
            permit.trial = trial;
            if let Some(text) = trial {
                state.on_trial.insert(text);
                permit.member.trials.fetch_add(1, Ordering::Relaxed);
            }
            return Some((permit, state.retries.waiting.remove(position)?));
        }
        position += 1;
    }
    None
}

/// How a worker's process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// The texts that it computed may be the reason.
    OfItself,
    /// Something else ended it.
    OtherHand,
}

impl Pool {
    /// Takes back batches that a lost worker had not begun.
    pub(crate) fn take_back(&self, not_begun: Vec<Assignment>) {
        let retries = not_begun.into_iter().map(|Assignment { jobs, permit, .. }| {
            let trial = permit.trial;
            permit.discard();
            Retry { jobs, trial }
        });
        self.run_again(retries.collect());
    }

    /// Decides on the texts of all batches that a lost worker was computing.
    pub(crate) fn settle(&self, jobs: Vec<Job>, manner: Manner) {
        if manner == Manner::OfItself && self.convict(&jobs) {
            refuse(jobs);
            return;
        }
        let mut requests = HashSet::new();
        let mut retries = Vec::new();
        for mut job in jobs {
            job.reply.worker_lost.store(true, Ordering::Relaxed);
            job.is_suspect |= manner == Manner::OfItself;
            if self.shared.poison.is_convict(&job) {
                refuse(vec![job]);
                continue;
            }
            let is_new = requests.insert(Arc::as_ptr(&job.reply.worker_lost));
            if job.lost_workers == MAX_RETRIES || (is_new && !self.state().retries.draw()) {
                job.answer(Err(EmbedError::WorkerLost));
            } else {
                job.lost_workers += 1;
                retries.push(self.trial(job));
            }
        }
        self.run_again(retries);
    }

    /// Whether these are one text, and the worker that died on its own under it is the second one; else all are suspects.
    fn convict(&self, jobs: &[Job]) -> bool {
        let poison = &self.shared.poison;
        let Some(first) = jobs.first() else { return false };
        // The same text several times is alone, too.
        let is_alone =
            jobs.iter().all(|job| job.token_ids == first.token_ids && job.pooling == first.pooling);
        let is_second = poison.is_suspect(first) || jobs.iter().any(|job| job.is_suspect);
        if !(is_alone && is_second) {
            jobs.iter().for_each(|job| poison.suspect(job));
            return false;
        }
        if poison.convict(first) {
            self.shared.metrics.poison_texts.inc();
        }
        true
    }

    /// Answers convicts, and takes out those texts that have to run alone.
    pub(super) fn sift(&self, jobs: &mut Vec<Job>) -> Vec<Retry> {
        let poison = &self.shared.poison;
        refuse(jobs.extract_if(.., |job| poison.is_convict(job)));
        let on_trial = jobs.extract_if(.., |job| job.lost_workers > 0 || poison.is_suspect(job));
        on_trial.map(|job| self.trial(job)).collect()
    }

    /// A worker answered this text, so it is no suspect any more.
    pub(crate) fn acquit(&self, job: &Job) {
        self.shared.poison.acquit(job);
    }

    /// Runs texts alone that came with others and are suspects.
    pub(super) fn try_alone(&self, trials: Vec<Retry>) {
        if !trials.is_empty() {
            self.state().retries.waiting.extend(trials);
            self.capacity_freed();
        }
    }

    fn trial(&self, job: Job) -> Retry {
        Retry { trial: Some(self.shared.poison.hash(&job)), jobs: vec![job] }
    }

    /// Runs the texts of a failed batch again, one by one.
    pub(crate) fn rerun_singly(&self, jobs: Vec<Job>) {
        self.run_again(jobs.into_iter().map(|job| Retry::free(vec![job])).collect());
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

/// Answers texts that are refused.
fn refuse(jobs: impl IntoIterator<Item = Job>) {
    for job in jobs {
        let index = job.index();
        job.answer(Err(EmbedError::PoisonInput { index }));
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
