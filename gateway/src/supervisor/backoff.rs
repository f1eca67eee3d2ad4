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

/// Deaths that make a crash loop.
const CRASH_LOOP_DEATHS: usize = 5;

/// Why a worker is in a crash loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// It ends before it is ready.
    NeverReady,
    /// The kernel kills it because memory is short.
    OutOfMemory,
}

/// Notices a worker that ends again and again before it is ready, or for want of memory.
#[derive(Debug)]
pub(super) struct CrashLoop {
    window: Duration,
    deaths_before_ready: VecDeque<Instant>,
    oom_kills: VecDeque<Instant>,
    cause: Option<Cause>,
}

impl CrashLoop {
    pub(super) fn new(window: Duration) -> Self {
        Self { window, deaths_before_ready: VecDeque::new(), oom_kills: VecDeque::new(), cause: None }
    }

    /// Whether the worker is in a crash loop.
    pub(super) fn is_on(&self) -> bool {
        self.cause.is_some()
    }

    /// Counts a death; returns why a crash loop begins with it, if one does.
    pub(super) fn died(&mut self, was_ready: bool, is_out_of_memory: bool) -> Option<Cause> {
        let now = Instant::now();
        let is_loop = |deaths: &mut VecDeque<Instant>, counts: bool| {
            deaths.retain(|death| now - *death <= self.window);
            deaths.extend(counts.then_some(now));
            deaths.len() >= CRASH_LOOP_DEATHS
        };
        let is_short_of_memory = is_loop(&mut self.oom_kills, is_out_of_memory);
        let is_never_ready = is_loop(&mut self.deaths_before_ready, !was_ready);
        let cause = if is_short_of_memory {
            Cause::OutOfMemory
        } else if is_never_ready {
            Cause::NeverReady
        } else {
            return None;
        };
        self.cause.replace(cause).is_none().then_some(cause)
    }

    /// The worker is ready; returns whether that ends a crash loop. One for want of memory it does not end.
    pub(super) fn ready(&mut self) -> bool {
        self.deaths_before_ready.clear();
        self.cause.take_if(|cause| *cause == Cause::NeverReady).is_some()
    }

    /// How long a worker has to be ready until it is in no crash loop any more.
    pub(super) fn window(&self) -> Duration {
        self.window
    }

    /// The worker has been ready for the window; returns whether that ends a crash loop.
    pub(super) fn survived(&mut self) -> bool {
        self.oom_kills.clear();
        self.cause.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn five_deaths_within_the_window_are_a_crash_loop_until_the_worker_is_ready() {
        let mut crash_loop = CrashLoop::new(Duration::from_secs(60));
        for _ in 0..20 {
            assert_eq!(crash_loop.died(false, false), None);
            tokio::time::advance(Duration::from_secs(16)).await;
        }
        tokio::time::advance(Duration::from_secs(60)).await;
        let begins: Vec<bool> = (0..7).map(|_| crash_loop.died(false, false).is_some()).collect();
        assert_eq!(begins, [false, false, false, false, true, false, false]);
        assert!(crash_loop.is_on());
        assert!(crash_loop.ready());
        assert!(!crash_loop.is_on() && !crash_loop.ready() && crash_loop.died(false, false).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn five_kills_for_want_of_memory_are_a_crash_loop_until_the_worker_has_been_ready_for_the_window() {
        let mut crash_loop = CrashLoop::new(Duration::from_secs(60));
        for kill in 1..=5 {
            assert!(!crash_loop.ready());
            tokio::time::advance(Duration::from_secs(10)).await;
            let cause = crash_loop.died(true, true);
            assert_eq!(cause, (kill == 5).then_some(Cause::OutOfMemory), "kill {kill}");
        }
        assert!(!crash_loop.ready() && crash_loop.is_on(), "it was over as soon as the worker was ready");
        tokio::time::advance(Duration::from_secs(45)).await;
        assert_eq!(crash_loop.died(true, true), None);
        assert!(crash_loop.is_on());
        assert!(crash_loop.survived() && !crash_loop.is_on() && !crash_loop.survived());
        assert_eq!(crash_loop.died(true, true), None);
    }

    #[tokio::test(start_paused = true)]
    async fn deaths_of_a_ready_worker_that_somebody_kills_are_no_crash_loop() {
        let mut crash_loop = CrashLoop::new(Duration::from_secs(60));
        for _ in 0..100 {
            assert_eq!(crash_loop.died(true, false), None);
            assert!(!crash_loop.ready());
            tokio::time::advance(Duration::from_secs(1)).await;
        }
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
