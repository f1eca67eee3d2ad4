//! Who is admitted, and what the others are told. Pure: no clock of its own, no I/O.
//!
//! A request is admitted whole or not at all, at once. With the backlog in tokens (queued and at the workers), `C` the
//! tokens per second of all live workers under full load, `s` the time of one full batch, which is how long the last text
//! of the backlog may be computed together with others, and `D` the time that the request has, it is admitted when
//! `(backlog + own) / C + 1.5 s <= 0.8 D`. So a request that is admitted is answered in time, and under overload the
//! workers compute nothing that is too late.
//!
//! When nothing is queued or computed, a request is admitted when it can be done in its time, and always when it is no
//! larger than one full batch, so that an estimate that fell too low is found out. What could not be done in its time even
//! then is told so, once the speed was measured in this run.

use std::time::Duration;

use crate::error::EmbedError;
use crate::pool::Capacity;

/// Part of a request's time within which it has to be done by forecast.
const FORECAST_MARGIN: f64 = 0.8;
/// Extra full batches allowed for: the one being computed and the text's own.
const BATCHES_OF_DELAY: f64 = 1.5;
/// Least time after which a refused client is asked to come back.
const SHORTEST_RETRY_AFTER: Duration = Duration::from_secs(1);

/// What a request asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestSize {
    /// Tokens of all texts.
    pub(crate) tokens: usize,
    /// Tokens of the longest text.
    pub(crate) longest: usize,
}

/// How long a request may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TimeLimit {
    /// All of it.
    pub(crate) whole: Duration,
    /// What is left of it, less the time until the first worker is ready.
    pub(crate) left: Duration,
}

/// Admits a request, or says why not.
pub(crate) fn judge(
    capacity: &Capacity,
    backlog: usize,
    max_backlog: usize,
    size: RequestSize,
    time: TimeLimit,
) -> Result<(), EmbedError> {
    let is_idle = backlog == 0;
    let alone = real(size.tokens) / capacity.idle_tokens_per_second;
    let is_one_batch = size.tokens <= capacity.batch_tokens;
    if is_idle && (is_one_batch || alone <= time.left.as_secs_f64()) {
        return Ok(());
    }
    if capacity.is_measured && alone > time.whole.as_secs_f64() && !is_one_batch {
        return Err(EmbedError::DeadlineTooShort { needed: seconds(alone), limit: time.whole });
    }
    let speed = capacity.tokens_per_second;
    let longest_text = real(size.longest) * real(capacity.workers) / speed;
    let done = real(backlog) / speed
        + real(size.tokens) / speed
        + BATCHES_OF_DELAY * capacity.batch_seconds.max(longest_text);
    let is_in_time = done <= time.left.as_secs_f64() * FORECAST_MARGIN;
    if is_in_time && backlog.saturating_add(size.tokens) <= max_backlog {
        return Ok(());
    }
    // Caution would keep clients away for longer than need be.
    let wait = real(backlog) / capacity.idle_tokens_per_second;
    Err(EmbedError::Overloaded { retry_after: seconds(wait).max(SHORTEST_RETRY_AFTER) })
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

#[expect(clippy::cast_precision_loss, reason = "a queue has far fewer than 2^52 tokens")]
fn real(number: usize) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two workers of 1,000 tokens/s each, and batches of 250 tokens.
    const CAPACITY: Capacity = Capacity {
        tokens_per_second: 2000.0,
        idle_tokens_per_second: 2000.0,
        is_measured: true,
        workers: 2,
        batch_seconds: 0.25,
        batch_tokens: 250,
    };

    fn verdict(capacity: &Capacity, backlog: usize, tokens: usize, longest: usize, ms: u64) -> &'static str {
        let limit = Duration::from_millis(ms);
        let size = RequestSize { tokens, longest };
        match judge(capacity, backlog, 100_000, size, TimeLimit { whole: limit, left: limit }) {
            Ok(()) => "admitted",
            Err(EmbedError::Overloaded { .. }) => "overloaded",
            Err(EmbedError::DeadlineTooShort { .. }) => "too short",
            Err(_) => "another",
        }
    }

    #[test]
    fn a_request_is_done_after_the_backlog_itself_and_one_and_a_half_batches() {
        // 4 s of backlog, 0.5 s of its own, 0.375 s: 4.875 s are four fifths of 6.094 s.
        assert_eq!(verdict(&CAPACITY, 8000, 1000, 50, 6100), "admitted");
        assert_eq!(verdict(&CAPACITY, 8000, 1000, 50, 6090), "overloaded");
        // A text that takes a worker 0.5 s is as a batch of that time: 5.25 s are four fifths of 6.5625 s.
        assert_eq!(verdict(&CAPACITY, 8000, 1000, 500, 6570), "admitted");
        assert_eq!(verdict(&CAPACITY, 8000, 1000, 500, 6550), "overloaded");
        assert_eq!(verdict(&CAPACITY, 99_500, 1000, 50, 1_000_000), "overloaded");
    }

    #[test]
    fn an_idle_gateway_admits_what_can_be_done_and_one_batch_in_any_case() {
        assert_eq!(verdict(&CAPACITY, 0, 2000, 50, 1000), "admitted");
        assert_eq!(verdict(&CAPACITY, 0, 2001, 50, 1000), "too short");
        assert_eq!(verdict(&CAPACITY, 0, 250, 250, 1), "admitted");
        assert_eq!(verdict(&CAPACITY, 1, 250, 250, 1), "overloaded");
        assert_eq!(verdict(&CAPACITY, 0, 200_000, 50, 100_000), "admitted");
    }

    #[test]
    fn only_what_was_measured_makes_a_deadline_too_short() {
        assert_eq!(verdict(&CAPACITY, 500, 3000, 50, 1000), "too short");
        let guessed = Capacity { is_measured: false, ..CAPACITY };
        assert_eq!(verdict(&guessed, 0, 3000, 50, 1000), "overloaded");
        assert_eq!(verdict(&guessed, 500, 3000, 50, 1000), "overloaded");
        // The time until a worker is ready is not the request's fault.
        let limit = Duration::from_secs(2);
        let time = TimeLimit { whole: limit, left: Duration::from_secs(1) };
        let size = RequestSize { tokens: 3000, longest: 50 };
        let refused = judge(&CAPACITY, 0, 100_000, size, time);
        assert!(matches!(refused, Err(EmbedError::Overloaded { .. })), "{refused:?}");
    }

    #[test]
    fn the_time_that_is_needed_and_the_time_to_wait_are_those_of_the_forecast() {
        let limit = Duration::from_secs(1);
        let time = TimeLimit { whole: limit, left: limit };
        let judge =
            |backlog, tokens| judge(&CAPACITY, backlog, 100_000, RequestSize { tokens, longest: 50 }, time);
        let needed = Duration::from_secs(5);
        assert_eq!(judge(0, 10_000), Err(EmbedError::DeadlineTooShort { needed, limit }));
        assert_eq!(judge(6000, 100), Err(EmbedError::Overloaded { retry_after: Duration::from_secs(3) }));
        assert_eq!(judge(1600, 100), Err(EmbedError::Overloaded { retry_after: SHORTEST_RETRY_AFTER }));
    }
}
