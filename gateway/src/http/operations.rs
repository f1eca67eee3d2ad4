//! What operators ask: `/health`, `/livez`, `/readyz`, `/metrics`.

use bytes::Bytes;
use hyper::{HeaderMap, Response, StatusCode};
use serde::Serialize;

use super::accept::MetricsForm;
use super::content::Content;
use super::respond;
use crate::manager::{EmbeddingManager, WorkerInfo};
use crate::metrics::text;
use crate::supervisor::WorkerState;

#[derive(Serialize)]
struct Health<'a> {
    status: &'static str,
    model: &'a str,
    dimension: usize,
    max_tokens: usize,
    version: &'static str,
    workers: Vec<WorkerHealth>,
}

#[derive(Serialize)]
struct WorkerHealth {
    id: usize,
    pid: Option<u32>,
    state: WorkerState,
    generation: u64,
    in_flight: usize,
    restarts: u64,
    rss_bytes: Option<u64>,
    uptime_seconds: Option<f64>,
    device: Option<String>,
    dtype: Option<String>,
    blas: Option<String>,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct Readiness {
    ready: bool,
    reason: Option<String>,
}

/// 200 with at least one ready worker, else 503; the body is the same.
pub(super) fn health(manager: &EmbeddingManager) -> Response<Content> {
    let workers = manager.workers();
    let ready = workers.iter().filter(|worker| worker.state == WorkerState::Ready).count();
    let (code, status) = match ready {
        0 => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
        ready if ready < workers.len() => (StatusCode::OK, "degraded"),
        _ => (StatusCode::OK, "ok"),
    };
    let describe = |worker: WorkerInfo| WorkerHealth {
        id: worker.id,
        pid: worker.pid,
        state: worker.state,
        generation: worker.generation,
        in_flight: worker.in_flight,
        restarts: worker.restarts,
        rss_bytes: worker.rss_bytes,
        uptime_seconds: worker.uptime.map(|uptime| uptime.as_secs_f64()),
        device: worker.device,
        dtype: worker.dtype,
        blas: worker.blas,
        warnings: worker.warnings,
    };
    let info = manager.model_info();
    let health = Health {
        status,
        model: &info.model,
        dimension: info.dimension,
        max_tokens: info.max_tokens,
        version: env!("CARGO_PKG_VERSION"),
        workers: workers.into_iter().map(describe).collect(),
    };
    respond::json(code, &health)
}

/// 200 for as long as the process answers at all.
pub(super) fn live() -> Response<Content> {
    respond::content(StatusCode::OK, "text/plain; charset=utf-8", Content::Whole(Bytes::from_static(b"ok\n")))
}

/// 200 when a request sent now would be computed, else 503 with the reason.
pub(super) fn ready(manager: &EmbeddingManager) -> Response<Content> {
    let reason = if manager.is_draining() { Some("draining".to_owned()) } else { manager.not_ready_reason() };
    let code = if reason.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    respond::json(code, &Readiness { ready: reason.is_none(), reason })
}

/// Everything that Prometheus can read, in the form that it asks for.
pub(super) fn metrics(manager: &EmbeddingManager, headers: &HeaderMap) -> Response<Content> {
    let form = MetricsForm::wanted(headers);
    let text = match form {
        MetricsForm::OpenMetrics => manager.metrics_text(),
        MetricsForm::Text => text::from_open_metrics(&manager.metrics_text()),
    };
    respond::content(StatusCode::OK, form.content_type(), Content::Whole(text.into()))
}
