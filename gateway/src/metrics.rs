//! Everything that Prometheus can read, and nothing else can. A leaf: it knows no other module.
//!
//! Label sets are fixed at compile time, so no input can grow them.

pub(crate) mod text;

use std::sync::atomic::{AtomicI64, AtomicU64};
use std::sync::{Mutex, MutexGuard, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry, Unit};
use tokio::time::Instant;

const LATENCY_BUCKETS_SECONDS: [f64; 8] = [0.01, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0];
const BATCH_SIZE_BUCKETS: [f64; 6] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0];
const PHASE_BUCKETS_SECONDS: [f64; 8] = [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3];
const REJECTION_BUCKETS_SECONDS: [f64; 7] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0];
const WAIT_BUCKETS_SECONDS: [f64; 6] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5];

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Success,
    Error,
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Error => "error",
        }
    }
}

/// Why a worker was started again: the first nine when it was lost, the others when it was replaced by a ready one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RestartReason {
    /// It ended on its own.
    Exit,
    /// A signal ended it.
    Signal,
    /// The kernel killed it because memory was short.
    OutOfMemory,
    /// It sent something that is not of the protocol.
    ProtocolError,
    /// It sent no heartbeat.
    Heartbeat,
    /// Its batch made no progress.
    Progress,
    /// It said that its device is lost.
    DeviceLost,
    /// It did not become ready in time.
    StartTimeout,
    /// It could not be started at all.
    Spawn,
    /// Its memory grew beyond the limit.
    Memory,
    /// It had answered as many batches as it may.
    MaxBatches,
    /// Several batches in a row raised errors.
    Failures,
    /// It gave a vector that could not be right, where another worker gave a right one.
    BadOutput,
    /// The operator asked for new workers.
    Reload,
}

impl RestartReason {
    /// Every reason with its label, in the order of the enum.
    const ALL: [(Self, &'static str); 14] = [
        (Self::Exit, "exit"),
        (Self::Signal, "signal"),
        (Self::OutOfMemory, "out_of_memory"),
        (Self::ProtocolError, "protocol_error"),
        (Self::Heartbeat, "heartbeat"),
        (Self::Progress, "progress"),
        (Self::DeviceLost, "device_lost"),
        (Self::StartTimeout, "start_timeout"),
        (Self::Spawn, "spawn"),
        (Self::Memory, "memory"),
        (Self::MaxBatches, "max_batches"),
        (Self::Failures, "failures"),
        (Self::BadOutput, "bad_output"),
        (Self::Reload, "reload"),
    ];

    /// The label's value, also for logs.
    pub(crate) fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

/// Where the time of a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// JSON to texts, per request.
    Parse,
    /// Texts to token ids, per request.
    Tokenize,
    /// A batch between gateway and worker: frames, sockets, and its wait for the previous batch.
    Transfer,
    /// The forward pass, per batch, as the worker measured it.
    Compute,
    /// Vectors to JSON, per request.
    Write,
}

impl Phase {
    /// Every phase with its label, in the order of the enum.
    const ALL: [(Self, &'static str); 5] = [
        (Self::Parse, "parse"),
        (Self::Tokenize, "tokenize"),
        (Self::Transfer, "transfer"),
        (Self::Compute, "compute"),
        (Self::Write, "write"),
    ];
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabel {
    phase: &'static str,
}

type PhaseFamily = Family<PhaseLabel, Histogram, fn() -> Histogram>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatusLabel {
    status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabel {
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WorkerLabel {
    worker: u32,
}

/// Handles to all metrics, and the registry that writes them. Nothing reads them back: no decision depends on a metric.
#[derive(Debug)]
pub(crate) struct Metrics {
    requests: Family<StatusLabel, Counter>,
    /// Time from the arrival of a request's texts to its vectors.
    pub(crate) latency_seconds: Histogram,
    /// Texts per request.
    pub(crate) batch_size: Histogram,
    /// Wait of a request for its first worker permit.
    pub(crate) gil_wait_seconds: Histogram,
    /// Requests admitted and not yet wholly at a worker.
    pub(crate) queue_depth: Gauge<i64, AtomicI64>,
    phases: [Histogram; Phase::ALL.len()],
    /// Workers that can take a batch.
    pub(crate) workers_ready: Gauge<i64, AtomicI64>,
    restarts: Family<ReasonLabel, Counter>,
    /// Texts cut to the model's length limit.
    pub(crate) truncated_texts: Counter<u64, AtomicU64>,
    /// Tokens embedded for successful requests.
    pub(crate) tokens: Counter<u64, AtomicU64>,
    /// Batches that were run again after a worker was lost.
    pub(crate) retries: Counter<u64, AtomicU64>,
    /// Time from the arrival of a request's texts until it was refused as too much.
    pub(crate) rejection_seconds: Histogram,
    /// Tokens admitted and not yet at a worker.
    pub(crate) queue_tokens: Gauge<i64, AtomicI64>,
    /// Texts whose deadline passed before a worker had them.
    pub(crate) expired_texts: Counter<u64, AtomicU64>,
    rejected: Family<CodeLabel, Counter>,
    /// Requests whose client disconnected before the response.
    pub(crate) clients_gone: Counter<u64, AtomicU64>,
    /// Texts that crashed two workers and are refused for it.
    pub(crate) poison_texts: Counter<u64, AtomicU64>,
    /// Frames that broke the protocol.
    pub(crate) protocol_errors: Counter<u64, AtomicU64>,
    /// Workers that keep exiting before they are ready.
    pub(crate) crash_loop: Gauge<i64, AtomicI64>,
    worker_memory_bytes: Family<WorkerLabel, Gauge>,
    registry: Mutex<Registry>,
}

impl Metrics {
    /// Makes and registers every metric: one line each, in the order in which they are written.
    pub(crate) fn new() -> Self {
        let mut registry = Registry::default();
        let to = &mut registry;
        let metrics = Self {
            requests: add(to, "akidb_embedding_requests", "Embedding requests answered", Family::default()),
            latency_seconds: add_seconds(
                to,
                "akidb_embedding_latency",
                "Time from a request's texts to its vectors",
                Histogram::new(LATENCY_BUCKETS_SECONDS),
            ),
            batch_size: add(
                to,
                "akidb_embedding_batch_size",
                "Texts per request",
                Histogram::new(BATCH_SIZE_BUCKETS),
            ),
            gil_wait_seconds: add_seconds(
                to,
                "akidb_embedding_gil_wait",
                "Wait of a request for its first worker permit",
                Histogram::new(WAIT_BUCKETS_SECONDS),
            ),
            queue_depth: add(
                to,
                "akidb_embedding_queue_depth",
                "Requests admitted and not yet wholly at a worker",
                Gauge::default(),
            ),
            phases: {
                let phases = add_seconds(
                    to,
                    "akidb_embedding_phase",
                    "Where the time goes: parse, tokenize and write per request, transfer and compute per batch",
                    PhaseFamily::new_with_constructor(|| Histogram::new(PHASE_BUCKETS_SECONDS)),
                );
                Phase::ALL.map(|(_, phase)| phases.get_or_create_owned(&PhaseLabel { phase }))
            },
            workers_ready: add(to, "akidb_workers_ready", "Workers that can take a batch", Gauge::default()),
            restarts: add(to, "akidb_worker_restarts", "Workers restarted", Family::default()),
            truncated_texts: add(
                to,
                "akidb_truncated_texts",
                "Texts cut to the length limit",
                Counter::default(),
            ),
            tokens: add(to, "akidb_embedding_tokens", "Tokens embedded", Counter::default()),
            retries: add(
                to,
                "akidb_batch_retries",
                "Batches run again after a worker was lost",
                Counter::default(),
            ),
            rejection_seconds: add_seconds(
                to,
                "akidb_rejection",
                "Time from a request's texts until it was refused because the machine is full or no worker is due",
                Histogram::new(REJECTION_BUCKETS_SECONDS),
            ),
            queue_tokens: add(
                to,
                "akidb_embedding_queue_tokens",
                "Tokens admitted and not yet at a worker",
                Gauge::default(),
            ),
            expired_texts: add(
                to,
                "akidb_expired_texts",
                "Texts whose deadline passed in the queue",
                Counter::default(),
            ),
            rejected: add(
                to,
                "akidb_requests_rejected",
                "Requests answered with an error, by its code",
                Family::default(),
            ),
            clients_gone: add(
                to,
                "akidb_clients_gone",
                "Requests whose client disconnected before the response",
                Counter::default(),
            ),
            poison_texts: add(
                to,
                "akidb_poison_texts",
                "Texts that crashed two workers and are refused for it",
                Counter::default(),
            ),
            protocol_errors: add(
                to,
                "akidb_worker_protocol_errors",
                "Frames of workers that broke the protocol",
                Counter::default(),
            ),
            crash_loop: add(
                to,
                "akidb_crash_loop",
                "Workers that keep exiting before they are ready, or because memory is short",
                Gauge::default(),
            ),
            worker_memory_bytes: add_unit(
                to,
                "akidb_worker_resident",
                "Memory of each worker",
                Unit::Bytes,
                Family::default(),
            ),
            registry: Mutex::new(registry),
        };
        for status in [Status::Success, Status::Error] {
            drop(metrics.requests.get_or_create(&StatusLabel { status: status.name() }));
        }
        for (_, reason) in RestartReason::ALL {
            drop(metrics.restarts.get_or_create(&ReasonLabel { reason }));
        }
        metrics
    }

    /// Adds the build information, once it is known which model is served.
    pub(crate) fn serves(&self, model: &str) {
        let labels = vec![
            ("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
            ("model".to_owned(), model.to_owned()),
        ];
        self.registry().register("akidb_build", "The program and the model it serves", Info::new(labels));
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does part of a request's work and notes how long it took.
    pub(crate) fn timed<T>(&self, phase: Phase, work: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let result = work();
        self.phase_took(phase, started.elapsed().as_secs_f64());
        result
    }

    /// Notes how long a phase took.
    pub(crate) fn phase_took(&self, phase: Phase, seconds: f64) {
        self.phases[phase as usize].observe(seconds);
    }

    /// Counts a request that was answered.
    pub(crate) fn request_answered(&self, status: Status) {
        self.requests.get_or_create(&StatusLabel { status: status.name() }).inc();
    }

    /// Counts a worker that has to be started again.
    pub(crate) fn worker_restarted(&self, reason: RestartReason) {
        self.restarts.get_or_create(&ReasonLabel { reason: reason.name() }).inc();
    }

    /// Counts a request that was answered with an error.
    pub(crate) fn request_rejected(&self, code: &'static str) {
        self.rejected.get_or_create(&CodeLabel { code }).inc();
    }

    /// Notes a worker's memory; `None` when it has no process.
    pub(crate) fn worker_uses(&self, worker: usize, bytes: Option<u64>) {
        let label = WorkerLabel { worker: u32::try_from(worker).unwrap_or(u32::MAX) };
        let bytes = bytes.map_or(0, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
        self.worker_memory_bytes.get_or_create(&label).set(bytes);
    }

    /// The `OpenMetrics` text.
    pub(crate) fn encode(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry()).expect("writing to a string cannot fail: this is a bug");
        text
    }
}

fn add<M: Metric + Clone>(to: &mut Registry, name: &str, help: &str, metric: M) -> M {
    to.register(name, help, metric.clone());
    metric
}

fn add_unit<M: Metric + Clone>(to: &mut Registry, name: &str, help: &str, unit: Unit, metric: M) -> M {
    to.register_with_unit(name, help, unit, metric.clone());
    metric
}

fn add_seconds<M: Metric + Clone>(to: &mut Registry, name: &str, help: &str, metric: M) -> M {
    add_unit(to, name, help, Unit::Seconds, metric)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn labels_are_listed_in_the_order_of_their_enums() {
        assert!(Phase::ALL.iter().enumerate().all(|(index, (phase, _))| *phase as usize == index));
        assert!(RestartReason::ALL.iter().enumerate().all(|(index, (reason, _))| *reason as usize == index));
    }

    #[test]
    fn the_names_and_buckets_are_those_that_dashboards_read() {
        let metrics = Metrics::new();
        metrics.serves("some-model");
        metrics.request_answered(Status::Success);
        metrics.latency_seconds.observe(0.15);
        metrics.worker_restarted(RestartReason::Signal);
        let text = metrics.encode();
        for line in [
            "akidb_embedding_requests_total{status=\"success\"} 1",
            "akidb_embedding_requests_total{status=\"error\"} 0",
            "akidb_embedding_latency_seconds_bucket{le=\"0.1\"} 0",
            "akidb_embedding_latency_seconds_bucket{le=\"0.2\"} 1",
            "akidb_embedding_latency_seconds_bucket{le=\"5.0\"} 1",
            "akidb_embedding_batch_size_bucket{le=\"32.0\"} 0",
            "akidb_embedding_gil_wait_seconds_bucket{le=\"0.001\"} 0",
            "akidb_embedding_queue_depth 0",
            "akidb_workers_ready 0",
            "akidb_embedding_phase_seconds_bucket{le=\"0.0001\",phase=\"compute\"} 0",
            "akidb_worker_restarts_total{reason=\"signal\"} 1",
            "# EOF",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(text.contains("akidb_build_info{"), "{text}");
    }

    #[test]
    fn the_page_about_metrics_lists_each_of_them() {
        let metrics = Metrics::new();
        metrics.serves("some-model");
        // Families without a label yet are not written.
        metrics.request_rejected("some_code");
        metrics.worker_uses(0, None);
        let text = metrics.encode();
        let written: BTreeSet<String> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
            .map(|(name, kind)| match kind {
                "counter" => format!("{name}_total"),
                "info" => format!("{name}_info"),
                _ => name.to_owned(),
            })
            .collect();
        let page = include_str!("../../docs/METRICS.md");
        let rows = page.lines().filter_map(|line| line.strip_prefix("| `akidb_"));
        let listed: BTreeSet<String> =
            rows.map(|row| format!("akidb_{}", row.split(['`', '{']).next().unwrap_or_default())).collect();
        assert_eq!(written, listed);
    }
}
