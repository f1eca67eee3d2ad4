//! An open loop: requests are sent at given times, whether others were answered or not.
//!
//! This is how independent clients behave, and it is what shows what a server does under more than it can compute: a
//! closed loop slows down with the server. Latency counts from the moment at which this process began to send, and how
//! much later that was than planned (`lag`) is reported beside it: a generator that lags is itself short of processor.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use clap::ValueEnum;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper::header::{CONTENT_TYPE, HOST, RETRY_AFTER};
use hyper::{Method, Request, Response};
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::Outcome;
use crate::client::{Body, connect, read_bodies};
use crate::report::{Report, Sample};
use crate::verify::Expected;

/// The header that says how long a request may take.
const TIMEOUT_HEADER: &str = "x-request-timeout-ms";
/// How long an answer is waited for beyond its deadline.
const PATIENCE: Duration = Duration::from_secs(30);

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
    /// Requests per second; several, with commas, are phases that follow each other
    #[arg(long, required = true, value_delimiter = ',')]
    rate: Vec<f64>,
    /// Seconds of each phase
    #[arg(long, required = true, value_delimiter = ',')]
    seconds: Vec<f64>,
    /// When requests are sent: at even distances, or as independent clients would
    #[arg(long, value_enum, default_value = "poisson")]
    arrivals: Arrivals,
    /// Chooses the times of `poisson`
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Most connections; a request that finds none is not sent, and counted
    #[arg(long, default_value_t = 4096)]
    connections: usize,
    /// What every request may take; sent along as `x-request-timeout-ms`
    #[arg(long, value_parser = humantime::parse_duration, default_value = "30s")]
    deadline: Duration,
    /// How much later than its deadline an answer may come before it is counted as late
    #[arg(long, value_parser = humantime::parse_duration, default_value = "250ms")]
    slack: Duration,
    /// File with the right answer to each body, a line each; answers are compared with it
    #[arg(long)]
    expected: Option<PathBuf>,
    /// Length of the intervals of the report's timeline
    #[arg(long, value_parser = humantime::parse_duration, default_value = "250ms")]
    interval: Duration,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Arrivals {
    Fixed,
    Poisson,
}

/// A request to be sent.
#[derive(Clone, Copy)]
struct Arrival {
    at: Duration,
    phase: usize,
}

/// What the requests share.
struct Shared {
    address: SocketAddr,
    path: String,
    deadline: Duration,
    bodies: Vec<Body>,
    expected: Option<Expected>,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
    room: Semaphore,
}

/// A whole answer.
struct Answer {
    response: Response<()>,
    body: Bytes,
}

/// The body of an error.
#[derive(Deserialize)]
struct ErrorBody {
    error: ErrorDetail,
}

#[derive(Deserialize)]
struct ErrorDetail {
    code: String,
    message: String,
}

pub(crate) async fn run(load: Load) -> Outcome<Report> {
    if load.rate.len() != load.seconds.len() || load.rate.iter().any(|rate| *rate <= 0.0) {
        return Err("every phase needs a positive rate and its seconds".into());
    }
    // Where this is refused there may be fewer connections; what fails for that is counted.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let bodies = read_bodies(&load.bodies)?;
    let expected = load.expected.as_deref().map(|file| Expected::read(file, bodies.len())).transpose()?;
    let shared = Arc::new(Shared {
        address: load.address,
        path: load.path,
        deadline: load.deadline,
        bodies,
        expected,
        idle: Mutex::new(Vec::new()),
        room: Semaphore::new(load.connections),
    });
    let phases: Vec<_> =
        load.rate.into_iter().zip(load.seconds.into_iter().map(Duration::from_secs_f64)).collect();
    let arrivals = schedule(&phases, load.arrivals, load.seed);
    let start = Instant::now();
    let mut requests = JoinSet::new();
    for (number, arrival) in arrivals.into_iter().enumerate() {
        tokio::time::sleep_until(start + arrival.at).await;
        requests.spawn(sample(Arc::clone(&shared), arrival, start, number % shared.bodies.len()));
    }
    let samples = requests.join_all().await;
    Ok(Report::new(&phases, samples, load.deadline, load.slack, load.interval))
}

/// When each request is sent, in order.
fn schedule(phases: &[(f64, Duration)], arrivals: Arrivals, seed: u64) -> Vec<Arrival> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut schedule = Vec::new();
    let mut phase_start = Duration::ZERO;
    for (phase, (rate, length)) in phases.iter().enumerate() {
        let mut at = Duration::ZERO;
        loop {
            let gap = match arrivals {
                Arrivals::Fixed => 1.0,
                Arrivals::Poisson => -(1.0 - random.f64()).ln(),
            };
            at += Duration::from_secs_f64(gap / rate);
            if at >= *length {
                break;
            }
            schedule.push(Arrival { at: phase_start + at, phase });
        }
        phase_start += *length;
    }
    schedule
}

/// Sends one request and says what came of it.
async fn sample(shared: Arc<Shared>, arrival: Arrival, start: Instant, index: usize) -> Sample {
    let began = Instant::now();
    let body = &shared.bodies[index];
    let mut sample = Sample {
        phase: arrival.phase,
        planned: arrival.at,
        lag: began.saturating_duration_since(start + arrival.at),
        latency: Duration::ZERO,
        finished: Duration::ZERO,
        tokens: body.tokens,
        status: 0,
        code: None,
        message: None,
        has_retry_after: false,
        is_right: None,
    };
    let Ok(_place) = shared.room.try_acquire() else {
        sample.code = Some("unsent".to_owned());
        return sample;
    };
    let outcome = tokio::time::timeout(shared.deadline + PATIENCE, ask(&shared, &body.body)).await;
    sample.latency = began.elapsed();
    sample.finished = start.elapsed();
    match outcome {
        Ok(Ok(answer)) => {
            sample.status = answer.response.status().as_u16();
            sample.has_retry_after = answer.response.headers().contains_key(RETRY_AFTER);
            if answer.response.status().is_success() {
                sample.is_right =
                    shared.expected.as_ref().map(|expected| expected.is_right(index, &answer.body));
            } else {
                let error = serde_json::from_slice::<ErrorBody>(&answer.body).ok();
                let (code, message) =
                    error.map_or_else(Default::default, |body| (body.error.code, body.error.message));
                (sample.code, sample.message) = (Some(code), Some(message));
            }
        }
        Ok(Err(error)) => {
            sample.code = Some("connection".to_owned());
            sample.message = Some(error.to_string());
        }
        Err(_elapsed) => sample.code = Some("no_answer".to_owned()),
    }
    sample
}

/// Asks over an idle connection where there is one. The server may close it just then: what was not sent is sent again.
async fn ask(shared: &Shared, body: &Bytes) -> Outcome<Answer> {
    loop {
        let idle = shared.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let is_new = idle.is_none();
        let mut connection = match idle {
            Some(connection) => connection,
            None => connect(shared.address).await?,
        };
        match ask_over(&mut connection, shared, body).await {
            Ok(answer) => {
                shared.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
                return Ok(answer);
            }
            Err(error) if !is_new && (error.is_canceled() || error.is_closed()) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

async fn ask_over(
    connection: &mut SendRequest<Full<Bytes>>,
    shared: &Shared,
    body: &Bytes,
) -> hyper::Result<Answer> {
    connection.ready().await?;
    let request = Request::builder()
        .method(Method::POST)
        .uri(shared.path.as_str())
        .header(HOST, shared.address.to_string())
        .header(CONTENT_TYPE, "application/json")
        .header(TIMEOUT_HEADER, shared.deadline.as_millis().to_string())
        .body(Full::new(body.clone()))
        .expect("a path and three plain headers make a request: this is a bug");
    let (head, body) = connection.send_request(request).await?.into_parts();
    let body = body.collect().await?.to_bytes();
    Ok(Answer { response: Response::from_parts(head, ()), body })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixed_schedule_has_even_distances_in_every_phase() {
        let phases = [(10.0, Duration::from_secs(1)), (2.0, Duration::from_secs(2))];
        let schedule = schedule(&phases, Arrivals::Fixed, 1);
        let at: Vec<_> = schedule.iter().map(|arrival| arrival.at.as_secs_f64()).collect();
        assert!((at[0] - 0.1).abs() < 1e-6 && (at[8] - 0.9).abs() < 1e-6, "{at:?}");
        let second: Vec<_> = schedule.iter().filter(|arrival| arrival.phase == 1).collect();
        assert_eq!((second.len(), second[0].at), (3, Duration::from_millis(1500)));
    }

    #[test]
    fn a_poisson_schedule_is_in_order_and_as_dense_as_wanted() {
        let schedule = schedule(&[(100.0, Duration::from_secs(100))], Arrivals::Poisson, 7);
        assert!(schedule.is_sorted_by_key(|arrival| arrival.at));
        assert!((9_500..10_500).contains(&schedule.len()), "{} in 100 s", schedule.len());
    }
}
