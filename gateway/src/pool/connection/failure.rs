//! Texts that raise an error, and the question whether the worker can still compute any.
//!
//! The texts of a batch that raises an error run again one by one. One that raises an error alone may be the culprit, or
//! the worker may have lost what it computes with. So it is not answered at once: first the worker is sent its warm-up
//! text. A worker that gives a usable vector next, for whatever text, can compute, and the text is the culprit. One that
//! fails its warm-up text, too, loses its seat, and the texts run again elsewhere. This is asked anew at each such text, so
//! that not even the first one is answered with an error that is the worker's.
//!
//! A text that waits for this keeps its permit, so that a worker in doubt is given no more than before.

use akidb_protocol::{Embed, Failed, Pooling};

use super::{Assignment, Connection, End, Work, is_usable};
use crate::error::EmbedError;
use crate::job::Job;
use crate::metrics::RestartReason;

/// Failed batches in a row after which a worker that can compute is replaced anyway.
const MOST_FAILURES: u32 = 3;
/// The longest text of a worker's own warm-up, in tokens, unless the model takes shorter ones only...
const WARM_UP_TOKENS: usize = 64;
/// ...and each of its tokens.
const WARM_UP_TOKEN: u32 = 1;

impl Connection {
    /// The model raised an error.
    pub(super) fn fail(&mut self, failed: &Failed) -> Result<(), End> {
        let work = self.take(failed.batch_id)?.work;
        tracing::warn!(
            worker = self.settings.worker,
            code = failed.code,
            reason = failed.message,
            texts = work.texts(),
            "batch failed"
        );
        let Some(assignment) = work.assignment() else { return Err(End::FailsWarmUp) };
        if failed.code == "bad_output" {
            self.bad_batches_in_a_row += 1;
            self.doubt(jobs([assignment]));
            return Ok(());
        }
        self.failures_in_a_row += 1;
        if assignment.jobs.len() > 1 {
            self.pool.rerun_singly(jobs([assignment]));
        } else {
            self.hold(assignment);
        }
        Ok(())
    }

    /// Keeps a text that failed alone until it is known whose fault that was.
    fn hold(&mut self, assignment: Assignment) {
        // One that is in flight already is computed after this text was: frames are answered in order.
        if !self.in_flight.iter().any(|batch| matches!(batch.work, Work::WarmUp(_))) {
            let tokens = WARM_UP_TOKENS.min(self.settings.max_tokens);
            let text = vec![WARM_UP_TOKEN; tokens];
            let embed = Embed::new(
                self.next_batch_id,
                Pooling::Mean,
                assignment.threads,
                [text.as_slice()].into_iter(),
            );
            self.send_work(embed, Work::WarmUp(tokens));
        }
        self.failed_alone.push(assignment);
    }

    /// The worker gave a vector for its warm-up text.
    pub(super) fn warmed_up(&mut self, vector: &[u8]) -> Result<(), End> {
        if !is_usable(vector) {
            return Err(End::FailsWarmUp);
        }
        self.computes();
        if self.failures_in_a_row >= MOST_FAILURES {
            self.ask_for_a_successor(RestartReason::Failures);
        }
        Ok(())
    }

    /// The worker gave a usable vector: the texts that failed before are to blame themselves.
    pub(super) fn computes(&mut self) {
        for job in jobs(self.failed_alone.drain(..)) {
            let index = job.index();
            job.answer(Err(EmbedError::InferenceFailed { index }));
        }
    }
}

/// The texts of batches, whose permits are given back.
pub(super) fn jobs(assignments: impl IntoIterator<Item = Assignment>) -> Vec<Job> {
    assignments.into_iter().flat_map(|Assignment { jobs, .. }| jobs).collect()
}
