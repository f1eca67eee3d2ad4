//! A closed loop: N connections, each of which sends its next request when the last one was answered.
//!
//! A server that batches answers many requests at once, so counting between two fixed moments would be wrong by
//! up to a batch at each end. The measured span therefore starts with the last answer of the warm-up and ends
//! with the last answer before the end, and it counts the answers after the first of these moments.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request};
use serde::Serialize;

use crate::Outcome;
use crate::client::{Body, connect, percentile, read_bodies, real};

/// A request that takes longer counts as failed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause after a failed request, so that a server that is gone does not cost a core.
const ERROR_PAUSE: Duration = Duration::from_millis(20);
/// A slow server is measured until every connection had this many answers on average...
const ANSWERS_PER_CONNECTION: usize = 3;
/// ...but never longer than this many times the wanted span.
const LONGEST_SPAN: u32 = 3;

/// One measurement.
#[derive(clap::Args)]
pub(crate) struct Load {
    /// Address of the server
    #[arg(long)]
    address: SocketAddr,
    /// Path of every request
    #[arg(long)]
    path: String,
    /// File of JSON lines `{"texts": N, "tokens": N, "body": "..."}`; every request takes the next one
    #[arg(long)]
    bodies: PathBuf,
    /// Bodies at the beginning of the file to pass over
    #[arg(long, default_value_t = 0)]
    skip: usize,
    /// Connections, each with one request under way
    #[arg(long)]
    connections: usize,
    /// Seconds before anything counts
    #[arg(long)]
    warm_up: f64,
    /// Seconds that count
    #[arg(long)]
    seconds: f64,
}

/// What a measurement gave; times in milliseconds.
#[derive(Serialize)]
pub(crate) struct Report {
    requests: usize,
    errors: usize,
    first_error: Option<String>,
    seconds: f64,
    requests_per_second: f64,
    texts_per_second: f64,
    tokens_per_second: f64,
    p50_ms: f64,
    p95_ms: f64,
    p99_ms: f64,
}

/// What the connections share.
struct Shared {
    address: SocketAddr,
    path: String,
    bodies: Vec<Body>,
    next_body: AtomicUsize,
    answers: AtomicUsize,
    wanted_answers: usize,
    end: Instant,
    latest_end: Instant,
}

impl Shared {
    fn is_over(&self) -> bool {
        let now = Instant::now();
        let enough = self.answers.load(Ordering::Relaxed) >= self.wanted_answers;
        now >= self.latest_end || (enough && now >= self.end)
    }
}

/// One answer, or none.
struct Answer {
    finished: Instant,
    latency: Duration,
    texts: u64,
    tokens: u64,
    error: Option<String>,
}

pub(crate) async fn run(load: Load) -> Outcome<Report> {
    let bodies = read_bodies(&load.bodies)?;
    let started = Instant::now();
    let warm = started + Duration::from_secs_f64(load.warm_up);
    let span = Duration::from_secs_f64(load.seconds);
    let shared = Arc::new(Shared {
        address: load.address,
        path: load.path,
        next_body: AtomicUsize::new(load.skip % bodies.len()),
        bodies,
        answers: AtomicUsize::new(0),
        wanted_answers: ANSWERS_PER_CONNECTION * load.connections,
        end: warm + span,
        latest_end: warm + LONGEST_SPAN * span,
    });
    let connections: Vec<_> =
        (0..load.connections).map(|_| tokio::spawn(keep_asking(Arc::clone(&shared)))).collect();
    let mut answers = Vec::new();
    let mut end = shared.end;
    for connection in connections {
        let (theirs, stopped) = connection.await?;
        answers.extend(theirs);
        end = end.max(stopped);
    }
    Ok(report(answers, started, warm, end))
}

/// Asks until the end; returns the answers, and when the last request was sent.
async fn keep_asking(shared: Arc<Shared>) -> (Vec<Answer>, Instant) {
    let mut connection = None;
    let mut answers = Vec::new();
    while !shared.is_over() {
        let next = shared.next_body.fetch_add(1, Ordering::Relaxed) % shared.bodies.len();
        let Body { texts, tokens, body } = &shared.bodies[next];
        let started = Instant::now();
        let asked = ask(&shared, &mut connection, body.clone());
        let outcome = tokio::time::timeout(REQUEST_TIMEOUT, asked).await;
        let error = match outcome {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_elapsed) => Some(format!("no answer after {REQUEST_TIMEOUT:?}")),
        };
        let finished = Instant::now();
        if error.is_some() {
            connection = None;
            tokio::time::sleep(ERROR_PAUSE).await;
        } else {
            shared.answers.fetch_add(1, Ordering::Relaxed);
        }
        answers.push(Answer { finished, latency: finished - started, texts: *texts, tokens: *tokens, error });
    }
    // What is under way elsewhere is still awaited: nothing may be left over for the next measurement.
    (answers, Instant::now())
}

async fn ask(shared: &Shared, connection: &mut Option<SendRequest<Full<Bytes>>>, body: Bytes) -> Outcome<()> {
    let sender = match connection {
        Some(sender) => sender,
        None => connection.insert(connect(shared.address).await?),
    };
    let request = Request::builder()
        .method(Method::POST)
        .uri(shared.path.as_str())
        .header(HOST, shared.address.to_string())
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(body))?;
    sender.ready().await?;
    let mut response = sender.send_request(request).await?;
    let mut received_bytes = 0;
    while let Some(frame) = response.body_mut().frame().await {
        received_bytes += frame?.data_ref().map_or(0, Bytes::len);
    }
    match response.status() {
        status if !status.is_success() => Err(format!("status {status}").into()),
        _ if received_bytes == 0 => Err("the answer has no body".into()),
        _ => Ok(()),
    }
}

fn report(mut answers: Vec<Answer>, started: Instant, warm: Instant, end: Instant) -> Report {
    answers.retain(|answer| answer.finished <= end);
    answers.sort_unstable_by_key(|answer| answer.finished);
    let counted_from = answers.partition_point(|answer| answer.finished <= warm);
    let first =
        counted_from.checked_sub(1).map_or(started, |last_of_warm_up| answers[last_of_warm_up].finished);
    let (good, failed): (Vec<_>, Vec<_>) =
        answers.drain(counted_from..).partition(|answer| answer.error.is_none());
    let seconds = good.last().map_or(0.0, |last| (last.finished - first).as_secs_f64());
    let rate = |count: u64| if seconds > 0.0 { real(count) / seconds } else { 0.0 };
    let mut latencies: Vec<f64> = good.iter().map(|answer| answer.latency.as_secs_f64() * 1000.0).collect();
    latencies.sort_unstable_by(f64::total_cmp);
    Report {
        requests: good.len(),
        errors: failed.len(),
        first_error: failed.into_iter().find_map(|answer| answer.error),
        seconds,
        requests_per_second: rate(good.len() as u64),
        texts_per_second: rate(good.iter().map(|answer| answer.texts).sum()),
        tokens_per_second: rate(good.iter().map(|answer| answer.tokens).sum()),
        p50_ms: percentile(&latencies, 50),
        p95_ms: percentile(&latencies, 95),
        p99_ms: percentile(&latencies, 99),
    }
}
