//! How long to wait before a worker is started again, and when that has become a crash loop.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

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

/// Deaths before readiness that make a crash loop.
const CRASH_LOOP_DEATHS: usize = 5;

/// Notices a worker that ends again and again before it is ready.
#[derive(Debug)]
pub(super) struct CrashLoop {
    window: Duration,
    deaths: VecDeque<Instant>,
    is_on: bool,
}

impl CrashLoop {
    pub(super) fn new(window: Duration) -> Self {
        Self { window, deaths: VecDeque::new(), is_on: false }
    }

    /// Whether the worker is in a crash loop.
    pub(super) fn is_on(&self) -> bool {
        self.is_on
    }

    /// Counts a death before readiness; returns whether a crash loop begins with it.
    pub(super) fn died(&mut self) -> bool {
        let now = Instant::now();
        self.deaths.push_back(now);
        while self.deaths.front().is_some_and(|death| now - *death > self.window) {
            self.deaths.pop_front();
        }
        let begins = !self.is_on && self.deaths.len() >= CRASH_LOOP_DEATHS;
        self.is_on |= begins;
        begins
    }

    /// The worker is ready; returns whether that ends a crash loop.
    pub(super) fn ready(&mut self) -> bool {
        self.deaths.clear();
        std::mem::take(&mut self.is_on)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn five_deaths_within_the_window_are_a_crash_loop_until_the_worker_is_ready() {
        let mut crash_loop = CrashLoop::new(Duration::from_secs(60));
        for _ in 0..20 {
            assert!(!crash_loop.died());
            tokio::time::advance(Duration::from_secs(16)).await;
        }
        tokio::time::advance(Duration::from_secs(60)).await;
        let begins: Vec<bool> = (0..7).map(|_| crash_loop.died()).collect();
        assert_eq!(begins, [false, false, false, false, true, false, false]);
        assert!(crash_loop.is_on());
        assert!(crash_loop.ready());
        assert!(!crash_loop.is_on() && !crash_loop.ready() && !crash_loop.died());
    }

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
