//! The speed of one worker, from its last batches.

use std::collections::VecDeque;

/// Busy time that counts, in seconds: a worker that became ten times slower is noticed within about that.
const WINDOW_SECONDS: f64 = 1.0;
/// Batches that count however long they took, and most that do.
const FEWEST: usize = 4;
const MOST: usize = 128;
/// A batch this many times slower than the others is left out, while there is only one.
const OUTLIER: f64 = 2.0;
/// Busy time that the speed under other circumstances counts for, in seconds.
const PRIOR_SECONDS: f64 = 0.25;

#[derive(Debug, Clone, Copy)]
struct Sample {
    tokens: f64,
    seconds: f64,
}

/// The last batches of one worker.
#[derive(Debug, Default)]
pub(super) struct Samples(VecDeque<Sample>);

impl Samples {
    /// Tokens per second; `None` when nothing is known.
    pub(super) fn speed(&self) -> Option<f64> {
        let total = self.total();
        let slowest = self
            .0
            .iter()
            .max_by(|one, other| (one.seconds / one.tokens).total_cmp(&(other.seconds / other.tokens)))?;
        let others =
            Sample { tokens: total.tokens - slowest.tokens, seconds: total.seconds - slowest.seconds };
        let is_outlier =
            self.0.len() > 1 && slowest.seconds / slowest.tokens > OUTLIER * others.seconds / others.tokens;
        let counted = if is_outlier { others } else { total };
        Some(counted.tokens / counted.seconds)
    }

    /// Adds a batch; those that are too old go.
    pub(super) fn add(&mut self, tokens: f64, seconds: f64) {
        self.0.push_back(Sample { tokens: tokens.max(1.0), seconds: seconds.max(1e-6) });
        let mut counted = self.total().seconds;
        while self.0.len() > MOST || (self.0.len() > FEWEST && counted > WINDOW_SECONDS) {
            counted -= self.0.pop_front().map_or(0.0, |oldest| oldest.seconds);
        }
    }

    /// Circumstances changed: until the next batches say more, the speed is the old one times `factor`.
    pub(super) fn scale(&mut self, factor: f64) {
        if let Some(speed) = self.speed() {
            self.0.clear();
            self.add(speed * factor * PRIOR_SECONDS, PRIOR_SECONDS);
        }
    }

    fn total(&self) -> Sample {
        let add = |sum: Sample, one: &Sample| Sample {
            tokens: sum.tokens + one.tokens,
            seconds: sum.seconds + one.seconds,
        };
        self.0.iter().fold(Sample { tokens: 0.0, seconds: 0.0 }, add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steady(tokens: f64, seconds: f64) -> Samples {
        let mut samples = Samples::default();
        for _ in 0..100 {
            samples.add(tokens, seconds);
        }
        samples
    }

    #[test]
    fn one_slow_batch_changes_nothing_and_ten_times_slower_ones_are_believed_soon() {
        let mut samples = steady(300.0, 0.1);
        assert!((samples.speed().unwrap() - 3000.0).abs() < 1.0);
        samples.add(300.0, 20.0);
        assert!((samples.speed().unwrap() - 3000.0).abs() < 1.0, "{samples:?}");
        let mut samples = steady(300.0, 0.1);
        for _ in 0..3 {
            samples.add(300.0, 1.0);
        }
        assert!(samples.speed().unwrap() < 600.0, "{samples:?}");
    }

    #[test]
    fn a_worker_that_is_fast_again_is_believed_within_its_window() {
        let mut samples = steady(300.0, 1.0);
        for _ in 0..12 {
            samples.add(300.0, 0.1);
        }
        assert!((samples.speed().unwrap() - 3000.0).abs() < 1.0, "{samples:?}");
    }

    #[test]
    fn a_first_batch_is_the_speed_and_a_scaled_one_gives_way_to_what_is_measured() {
        let mut samples = Samples::default();
        assert_eq!(samples.speed(), None);
        samples.scale(2.0);
        assert_eq!(samples.speed(), None);
        samples.add(100.0, 0.1);
        assert!((samples.speed().unwrap() - 1000.0).abs() < 1e-6);
        samples.scale(0.5);
        assert!((samples.speed().unwrap() - 500.0).abs() < 1e-6);
        for _ in 0..10 {
            samples.add(100.0, 0.1);
        }
        assert!((samples.speed().unwrap() - 1000.0).abs() < 1e-6, "{samples:?}");
    }
}
