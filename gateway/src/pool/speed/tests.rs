use super::*;

/// Workers that compute in turns of one batch each, on a clock that only they move.
struct Machine {
    speeds: Speeds,
    now: Instant,
}

impl Machine {
    fn new(workers: u64, warm_up: f64, max_batch_tokens: Option<usize>, timeout: Duration) -> Self {
        let now = Instant::now();
        let expectations = Expectations { max_batch_tokens, request_timeout: timeout, guess: 100.0 };
        let mut speeds = Speeds::new(expectations, now);
        for seat in 0..workers {
            speeds.joins(seat, warm_up, now);
        }
        Self { speeds, now }
    }

    /// Each worker computes a batch of this many tokens at its own speed, all at the same time.
    fn round(&mut self, batches: &[(u64, usize, f64)], outstanding: usize) {
        let mut ends: Vec<_> = Vec::new();
        for &(seat, tokens, speed) in batches {
            self.speeds.sent(seat, tokens, self.now);
            let start = self.speeds.begins(seat, tokens, outstanding, self.now);
            ends.push((self.now + Duration::from_secs_f64(real(tokens) / speed), seat, tokens, start));
        }
        ends.sort_by_key(|end| end.0);
        for (end, seat, tokens, start) in ends {
            let seconds = (end - self.now).as_secs_f64();
            self.speeds.took(seat, tokens, seconds, start, end);
            self.speeds.returned(seat, tokens, end);
        }
        let longest = batches.iter().map(|&(_, tokens, speed)| real(tokens) / speed).fold(0.0, f64::max);
        self.now += Duration::from_secs_f64(longest);
    }

    fn capacity(&self) -> Capacity {
        self.speeds.capacity(self.now)
    }

    #[track_caller]
    fn assert_capacity(&self, expected: f64) {
        let measured = self.capacity().tokens_per_second;
        assert!((measured / expected - 1.0).abs() < 0.05, "{measured} instead of {expected}");
    }
}

const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(30);

#[test]
fn before_anything_is_known_the_guess_and_then_the_warm_up_are_trusted_a_little() {
    let mut machine = Machine::new(0, 0.0, None, LONG);
    assert_eq!(machine.capacity().tokens_per_second, 25.0);
    assert_eq!(machine.capacity().idle_tokens_per_second, 100.0);
    machine.speeds.joins(1, 8000.0, machine.now);
    machine.speeds.joins(2, 7000.0, machine.now);
    let capacity = machine.capacity();
    assert_eq!((capacity.tokens_per_second, capacity.idle_tokens_per_second), (2000.0, 8000.0));
    assert!(!capacity.is_measured);
}

#[test]
fn the_size_of_a_batch_follows_from_the_warm_up_within_bounds_and_from_the_time_of_requests() {
    let size = |warm_up, timeout| Machine::new(1, warm_up, None, timeout).speeds.batch_tokens(0);
    assert_eq!(size(1.0, Duration::from_secs(36_000)), FEWEST_BATCH_TOKENS);
    assert_eq!(size(8_000.0, LONG), 800);
    assert_eq!(size(1e12, LONG), MOST_BATCH_TOKENS);
    // A quarter of the warm-up's speed for an eighth of a second.
    assert_eq!(size(8_000.0, SECOND), 250);
    assert_eq!(Machine::new(1, 8_000.0, Some(64), LONG).speeds.batch_tokens(0), 64);
    assert_eq!(Machine::new(1, 8.0, Some(64), Duration::from_millis(1)).speeds.batch_tokens(0), 1);
}

#[test]
fn small_batches_move_nothing_and_full_ones_of_any_configured_size_do() {
    for max_batch_tokens in [Some(64), Some(256), None] {
        let mut machine = Machine::new(2, 10_000.0, max_batch_tokens, SECOND);
        let full = max_batch_tokens.unwrap_or(1000);
        for _ in 0..20 {
            machine.round(&[(0, full, 3000.0), (1, full, 3000.0)], 4 * full);
        }
        machine.assert_capacity(6000.0);
        for _ in 0..1000 {
            machine.round(&[(0, full / 20, 30_000.0), (1, full / 20, 30_000.0)], full / 10);
            machine.round(&[(0, full / 20, 30.0)], full / 20);
        }
        machine.assert_capacity(6000.0);
        for _ in 0..5 {
            machine.round(&[(0, full, 300.0), (1, full, 300.0)], 4 * full);
        }
        machine.assert_capacity(600.0);
    }
}

#[test]
fn batches_that_cannot_grow_are_full_when_enough_is_outstanding() {
    let mut machine = Machine::new(2, 10_000.0, Some(300), SECOND);
    for _ in 0..20 {
        machine.round(&[(0, 30, 2000.0), (1, 30, 2000.0)], 4000);
    }
    machine.assert_capacity(4000.0);
}

#[test]
fn a_worker_that_computes_alone_shows_only_a_bound() {
    let mut machine = Machine::new(2, 10_000.0, Some(300), LONG);
    machine.round(&[(0, 300, 4000.0)], 300);
    let capacity = machine.capacity();
    assert!(capacity.is_measured);
    machine.assert_capacity(4000.0);
    assert!((capacity.idle_tokens_per_second - 8000.0).abs() < 1.0, "{capacity:?}");
    // Both share the cores.
    machine.round(&[(0, 300, 2200.0), (1, 300, 2200.0)], 3000);
    machine.assert_capacity(4400.0);
    for _ in 0..20 {
        machine.round(&[(1, 300, 4400.0)], 300);
    }
    machine.assert_capacity(4400.0);
}

#[test]
fn an_estimate_that_fell_too_low_recovers_by_batches_as_large_as_it_allows() {
    let mut machine = Machine::new(2, 10_000.0, Some(300), SECOND);
    for _ in 0..10 {
        machine.round(&[(0, 300, 200.0), (1, 300, 200.0)], 3000);
    }
    machine.assert_capacity(400.0);
    assert_eq!(machine.speeds.batch_tokens(0), 25);
    for _ in 0..100 {
        machine.round(&[(0, 30, 3000.0), (1, 30, 3000.0)], 60);
    }
    machine.assert_capacity(6000.0);
}

#[test]
fn a_worker_slower_than_the_others_is_given_smaller_batches_and_later() {
    let mut machine = Machine::new(2, 10_000.0, Some(300), SECOND);
    for _ in 0..10 {
        machine.round(&[(0, 300, 3000.0), (1, 300, 3000.0)], 3000);
    }
    for _ in 0..20 {
        machine.speeds.sent(0, 300, machine.now); // it always has another one
        machine.round(&[(1, 300, 300.0), (0, 3000, 3000.0)], 3000);
        machine.speeds.returned(0, 300, machine.now);
    }
    machine.assert_capacity(3300.0);
    assert_eq!((machine.speeds.batch_tokens(0), machine.speeds.batch_tokens(1)), (300, 37));
    machine.speeds.sent(0, 300, machine.now);
    assert!(machine.speeds.wait(0, machine.now) < machine.speeds.wait(1, machine.now));
}

#[test]
fn an_overdue_batch_slows_its_worker_down_until_it_is_done() {
    let mut machine = Machine::new(2, 10_000.0, Some(300), SECOND);
    for _ in 0..10 {
        machine.round(&[(0, 300, 3000.0), (1, 300, 3000.0)], 3000);
    }
    machine.speeds.sent(0, 300, machine.now);
    let start = machine.speeds.begins(0, 300, 3000, machine.now);
    let late = machine.now + Duration::from_millis(1050);
    let capacity = machine.speeds.capacity(late).tokens_per_second;
    assert!((capacity - 3600.0).abs() < 10.0, "{capacity}");
    machine.speeds.took(0, 300, 1.05, start, late);
    machine.speeds.returned(0, 300, late);
    machine.assert_capacity(6000.0);
}

#[test]
fn the_capacity_follows_the_number_of_live_workers() {
    let mut machine = Machine::new(2, 10_000.0, Some(300), LONG);
    for _ in 0..10 {
        machine.round(&[(0, 300, 3000.0), (1, 300, 3000.0)], 3000);
    }
    machine.speeds.leaves(1, machine.now);
    machine.assert_capacity(3000.0);
    // It now has the cores of both.
    for _ in 0..20 {
        machine.round(&[(0, 300, 5000.0)], 3000);
    }
    machine.assert_capacity(5000.0);
    machine.speeds.joins(2, 9000.0, machine.now);
    machine.assert_capacity(6000.0);
    machine.speeds.set_live(2, false, machine.now);
    machine.assert_capacity(5000.0);
    machine.speeds.leaves(0, machine.now);
    machine.speeds.leaves(2, machine.now);
    machine.assert_capacity(5000.0);
    machine.speeds.joins(3, 9000.0, machine.now);
    machine.assert_capacity(5000.0);
}

#[test]
fn of_more_workers_than_ever_before_no_more_is_expected() {
    let mut machine = Machine::new(1, 10_000.0, Some(300), LONG);
    for _ in 0..10 {
        machine.round(&[(0, 300, 3000.0)], 3000);
    }
    machine.speeds.joins(1, 9000.0, machine.now);
    machine.assert_capacity(3000.0);
}
