//! What came of an open loop, in figures.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::client::{percentile, real};

/// What came of one request.
pub(crate) struct Sample {
    pub(crate) phase: usize,
    /// When it was to be sent, from the start.
    pub(crate) planned: Duration,
    /// How much later this process began to send it.
    pub(crate) lag: Duration,
    pub(crate) latency: Duration,
    /// When its answer was whole, from the start.
    pub(crate) finished: Duration,
    pub(crate) tokens: u64,
    /// Status of the answer; 0 for none.
    pub(crate) status: u16,
    /// `error.code` of the answer, or `unsent`, `connection`, `no_answer`.
    pub(crate) code: Option<String>,
    pub(crate) message: Option<String>,
    pub(crate) has_retry_after: bool,
    /// Whether the vectors are the expected ones, where there are any.
    pub(crate) is_right: Option<bool>,
}

impl Sample {
    fn is_sent(&self) -> bool {
        self.code.as_deref() != Some("unsent")
    }

    fn is_in_time(&self, deadline: Duration) -> bool {
        self.status == 200 && self.latency <= deadline
    }
}

/// Everything; times in milliseconds.
#[derive(Serialize)]
pub(crate) struct Report {
    deadline_ms: f64,
    phases: Vec<Phase>,
    timeline: Vec<Interval>,
    /// The first message of each code.
    messages: BTreeMap<String, String>,
}

/// Requests that were planned for one phase. Rates count what was answered while it lasted.
#[derive(Serialize)]
struct Phase {
    rate: f64,
    seconds: f64,
    offered: usize,
    sent: usize,
    statuses: BTreeMap<u16, usize>,
    codes: BTreeMap<String, usize>,
    tokens_offered: u64,
    tokens_in_time: u64,
    tokens_in_time_per_second: f64,
    admitted: Times,
    refused: Times,
    /// Answers, and requests without one, later than the deadline and the slack.
    late: usize,
    /// How long after its deadline the latest answer came; below 0 when all came before.
    latest_after_deadline_ms: f64,
    refused_without_retry_after: usize,
    compared: usize,
    wrong: usize,
    lag_p99_ms: f64,
    lag_max_ms: f64,
}

/// Latencies of the answers with status 200, or of those with 503.
#[derive(Serialize)]
struct Times {
    count: usize,
    p50_ms: f64,
    p95_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

/// Requests that were planned for this interval, and the tokens answered in it.
#[derive(Serialize)]
struct Interval {
    second: f64,
    offered: usize,
    in_time: usize,
    refused: usize,
    p99_ms: f64,
    tokens_in_time: u64,
}

impl Report {
    pub(crate) fn new(
        phases: &[(f64, Duration)],
        samples: Vec<Sample>,
        deadline: Duration,
        slack: Duration,
        interval: Duration,
    ) -> Self {
        let mut start = Duration::ZERO;
        let mut described = Vec::new();
        for (number, (rate, length)) in phases.iter().enumerate() {
            let theirs: Vec<_> = samples.iter().filter(|sample| sample.phase == number).collect();
            let mut phase = Phase::new(*rate, *length, &theirs, deadline, slack);
            let tokens = tokens_answered(&samples, start, start + *length, deadline);
            phase.tokens_in_time_per_second = real(tokens) / length.as_secs_f64();
            described.push(phase);
            start += *length;
        }
        let timeline = timeline(&samples, start, interval, deadline);
        let mut messages = BTreeMap::new();
        for sample in samples {
            if let (Some(code), Some(message)) = (sample.code, sample.message) {
                messages.entry(code).or_insert(message);
            }
        }
        Self { deadline_ms: milliseconds(deadline), phases: described, timeline, messages }
    }
}

impl Phase {
    fn new(rate: f64, length: Duration, samples: &[&Sample], deadline: Duration, slack: Duration) -> Self {
        let sent: Vec<_> = samples.iter().copied().filter(|sample| sample.is_sent()).collect();
        let mut statuses = BTreeMap::new();
        let mut codes = BTreeMap::new();
        for sample in samples {
            *statuses.entry(sample.status).or_default() += 1;
            if let Some(code) = &sample.code {
                *codes.entry(code.clone()).or_default() += 1;
            }
        }
        let count = |wanted: &dyn Fn(&Sample) -> bool| sent.iter().filter(|sample| wanted(sample)).count();
        let tokens = |wanted: &dyn Fn(&Sample) -> bool| {
            samples.iter().filter(|sample| wanted(sample)).map(|sample| sample.tokens).sum()
        };
        let lags = sorted(samples.iter().map(|sample| sample.lag));
        let latest = sent.iter().map(|sample| sample.latency).max();
        Self {
            rate,
            seconds: length.as_secs_f64(),
            offered: samples.len(),
            sent: sent.len(),
            statuses,
            codes,
            tokens_offered: tokens(&|_| true),
            tokens_in_time: tokens(&|sample| sample.is_in_time(deadline)),
            tokens_in_time_per_second: 0.0,
            admitted: Times::new(&sent, 200),
            refused: Times::new(&sent, 503),
            late: count(&|sample| sample.latency > deadline + slack),
            latest_after_deadline_ms: milliseconds(latest.unwrap_or_default()) - milliseconds(deadline),
            refused_without_retry_after: count(&|sample| sample.status == 503 && !sample.has_retry_after),
            compared: count(&|sample| sample.is_right.is_some()),
            wrong: count(&|sample| sample.is_right == Some(false)),
            lag_p99_ms: percentile(&lags, 99),
            lag_max_ms: percentile(&lags, 100),
        }
    }
}

impl Times {
    fn new(samples: &[&Sample], status: u16) -> Self {
        let times = sorted(samples.iter().filter(|sample| sample.status == status).map(|s| s.latency));
        Self {
            count: times.len(),
            p50_ms: percentile(&times, 50),
            p95_ms: percentile(&times, 95),
            p99_ms: percentile(&times, 99),
            max_ms: percentile(&times, 100),
        }
    }
}

/// Tokens whose answers came between two moments, and within their deadline.
fn tokens_answered(samples: &[Sample], from: Duration, to: Duration, deadline: Duration) -> u64 {
    let answered = samples.iter().filter(|sample| sample.is_in_time(deadline));
    answered.filter(|sample| (from..to).contains(&sample.finished)).map(|sample| sample.tokens).sum()
}

fn timeline(samples: &[Sample], length: Duration, interval: Duration, deadline: Duration) -> Vec<Interval> {
    let mut intervals = Vec::new();
    let mut from = Duration::ZERO;
    while from < length && !interval.is_zero() {
        let to = from + interval;
        let planned: Vec<_> = samples.iter().filter(|sample| (from..to).contains(&sample.planned)).collect();
        intervals.push(Interval {
            second: from.as_secs_f64(),
            offered: planned.len(),
            in_time: planned.iter().filter(|sample| sample.is_in_time(deadline)).count(),
            refused: planned.iter().filter(|sample| sample.status == 503).count(),
            p99_ms: Times::new(&planned, 200).p99_ms,
            tokens_in_time: tokens_answered(samples, from, to, deadline),
        });
        from = to;
    }
    intervals
}

fn sorted(times: impl Iterator<Item = Duration>) -> Vec<f64> {
    let mut times: Vec<f64> = times.map(milliseconds).collect();
    times.sort_unstable_by(f64::total_cmp);
    times
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(planned_ms: u64, latency_ms: u64, status: u16) -> Sample {
        Sample {
            phase: 0,
            planned: Duration::from_millis(planned_ms),
            lag: Duration::ZERO,
            latency: Duration::from_millis(latency_ms),
            finished: Duration::from_millis(planned_ms + latency_ms),
            tokens: 10,
            status,
            code: (status != 200).then(|| "some_code".to_owned()),
            message: None,
            has_retry_after: status == 503 && planned_ms > 500,
            is_right: (status == 200).then_some(latency_ms < 900),
        }
    }

    #[test]
    fn answers_are_sorted_into_what_they_are() {
        let samples = vec![
            answered(100, 200, 200),
            answered(200, 1001, 200),
            answered(300, 1300, 504),
            answered(400, 2, 503),
            answered(600, 4, 503),
        ];
        let second = Duration::from_secs(1);
        let interval = Duration::from_millis(500);
        let report = Report::new(&[(5.0, second)], samples, second, Duration::from_millis(250), interval);
        let phase = &report.phases[0];
        assert_eq!((phase.offered, phase.sent, phase.late, phase.wrong, phase.compared), (5, 5, 1, 1, 2));
        assert_eq!((phase.tokens_offered, phase.tokens_in_time), (50, 10));
        assert_eq!((phase.admitted.count, phase.refused.count), (2, 2));
        assert_eq!(phase.refused_without_retry_after, 1);
        assert_eq!(phase.statuses[&503], 2);
        assert!((phase.latest_after_deadline_ms - 300.0).abs() < 1e-6);
        assert_eq!(
            (report.timeline.len(), report.timeline[0].offered, report.timeline[0].refused),
            (2, 4, 1)
        );
        assert_eq!((report.timeline[0].tokens_in_time, report.timeline[1].tokens_in_time), (10, 0));
    }
}
