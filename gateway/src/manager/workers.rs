//! What is told to the workers, and of them.

use std::time::Duration;

use crate::machine;
use crate::model::{Compute, Model};
use crate::pool::Pool;
use crate::supervisor::{WorkerState, WorkerStatus};

/// What every worker is started with.
pub(super) fn arguments(model: &Model, heartbeat_interval: Duration, compute: Compute) -> Vec<String> {
    let mut arguments = vec![
        "--model-path".to_owned(),
        model.path.to_string_lossy().into_owned(),
        "--max-tokens".to_owned(),
        model.max_tokens.to_string(),
        "--heartbeat-ms".to_owned(),
        heartbeat_interval.as_millis().max(1).to_string(),
    ];
    arguments.extend(compute.flags().map(str::to_owned));
    arguments
}

/// What is known of one worker.
#[derive(Debug, Clone)]
pub struct WorkerInfo {
    /// Its number, from 0.
    pub id: usize,
    /// Where it is in its life.
    pub state: WorkerState,
    /// Its process, if there is one.
    pub pid: Option<u32>,
    /// Processes started for it so far.
    pub generation: u64,
    /// Batches it holds now.
    pub in_flight: usize,
    /// Times it was started again.
    pub restarts: u64,
    /// Memory of the process: what is resident, but what it says about itself where a GPU shares the memory (macOS).
    pub rss_bytes: Option<u64>,
    /// Age of the process.
    pub uptime: Option<Duration>,
    /// `cpu` or `gpu`, once it is ready.
    pub device: Option<String>,
    /// Type the model computes in, once it is ready.
    pub dtype: Option<String>,
    /// Library for matrix products, once it is ready.
    pub blas: Option<String>,
    /// What a person should know, such as a slow BLAS.
    pub warnings: Vec<String>,
}

/// What is known of each worker now.
pub(super) fn describe(statuses: Vec<WorkerStatus>, pool: &Pool) -> Vec<WorkerInfo> {
    let memory = machine::memory_bytes(statuses.iter().map(|status| (status.pid, &status.footprint)));
    let describe = |(status, rss_bytes): (WorkerStatus, Option<u64>)| WorkerInfo {
        in_flight: pool.in_flight(status.id),
        rss_bytes,
        uptime: status.pid.is_some().then(|| status.started.elapsed()),
        restarts: status.generation.saturating_sub(1),
        id: status.id,
        state: status.state,
        pid: status.pid,
        generation: status.generation,
        device: status.ready.as_ref().map(|ready| ready.device.clone()),
        dtype: status.ready.as_ref().map(|ready| ready.dtype.clone()),
        blas: status.ready.as_ref().map(|ready| ready.blas.clone()),
        warnings: status.ready.map(|ready| ready.warnings).unwrap_or_default(),
    };
    statuses.into_iter().zip(memory).map(describe).collect()
}

/// Why no worker can take a batch, for an operator.
pub(super) fn why_none_is_ready(statuses: Vec<WorkerStatus>) -> String {
    let describe = |status: WorkerStatus| {
        let state = match status.state {
            WorkerState::Ready | WorkerState::Starting => "starting",
            WorkerState::Unresponsive => "unresponsive",
            WorkerState::Draining => "draining",
            WorkerState::Backoff if status.is_in_crash_loop => "in a crash loop",
            WorkerState::Backoff => "waiting for its next start",
            WorkerState::Failed => "given up",
        };
        let last_loss =
            status.last_loss.map_or(String::new(), |reason| format!(", last lost: {}", reason.name()));
        format!("worker {} is {state}{last_loss}", status.id)
    };
    let workers: Vec<String> = statuses.into_iter().map(describe).collect();
    format!("no worker is ready: {}", workers.join("; "))
}
