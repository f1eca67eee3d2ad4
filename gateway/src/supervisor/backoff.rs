//! How long to wait before a worker is started again.

use std::time::Duration;

/// Part of each wait that is left to chance, to either side.
const JITTER: f64 = 0.2;

/// Waits that grow with every death: none, `first`, twice that, ... up to `longest`.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
    deaths: u32,
}

impl Backoff {
    pub(super) fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, deaths: 0 }
    }

    /// Counts a death and returns the wait that follows it.
    pub(super) fn next_wait(&mut self) -> Duration {
        let deaths = self.deaths;
        self.deaths = deaths.saturating_add(1);
        if deaths == 0 {
            return Duration::ZERO;
        }
        let doublings = (deaths - 1).min(20);
        let wait = self.first.saturating_mul(1 << doublings).min(self.longest);
        wait.mul_f64(1.0 + JITTER * (2.0 * fastrand::f64() - 1.0))
    }

    /// Forgets the deaths, because the worker has answered a batch.
    pub(super) fn reset(&mut self) {
        self.deaths = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_start_again_after_an_answer() {
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(30));
        assert_eq!(backoff.next_wait(), Duration::ZERO);
        for expected_ms in [250.0, 500.0, 1000.0, 2000.0, 4000.0, 8000.0, 16_000.0, 30_000.0, 30_000.0] {
            let wait_ms = backoff.next_wait().as_secs_f64() * 1000.0;
            assert!((0.8..=1.2).contains(&(wait_ms / expected_ms)), "{wait_ms} for {expected_ms}");
        }
        backoff.reset();
        assert_eq!(backoff.next_wait(), Duration::ZERO);
    }
}
