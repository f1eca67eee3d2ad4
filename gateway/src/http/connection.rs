//! One client's connection, and how long each part of it may take.
//!
//! ```text
//! accepted -> Head -> Serving -> Answering -> Idle -> Head -> ...
//!               '---------'----------'---------'----> Closing
//! ```
//!
//! | phase | ends with | may take |
//! |---|---|---|
//! | `Head` | the last byte of a request's head | `header_timeout`, from the accept or the head's first byte |
//! | `Serving` | an answer | what the body and the request may take |
//! | `Answering` | the answer's last byte written | `write_timeout` without progress |
//! | `Idle` | the first byte of the next head | `idle_timeout` |
//! | `Closing` | the client's end of stream | `discard_timeout` when the client may still be sending, else no time |
//!
//! Hyper knows one limit for `Idle` and `Head` together, and closes a connection in the face of a client that is still
//! sending, which then never reads why. So the limits are here: `guarded` sees every read and write and notes the phase.
//!
//! * `progress`: where a connection stands, and when something is overdue.
//! * `guarded`: the stream that notes it.

mod guarded;
mod progress;

use std::convert::Infallible;
use std::sync::Arc;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::context::Context;
use super::error::{Refusal, RequestError};
use super::routes;
use crate::machine;
use guarded::Guarded;
pub(super) use progress::{Limits, Progress};

/// Longest head of a request; what is longer is answered 431.
const LONGEST_HEAD_BYTES: usize = 64 * 1024;

/// Serves the requests of one connection until it ends, something is overdue, or `close` asks for its end.
pub(super) async fn serve(stream: TcpStream, context: Arc<Context>, close: CancellationToken) {
    // Answers are small and complete when written: waiting for more to send only adds delay.
    let _ = stream.set_nodelay(true);
    machine::limit_unsent(&stream);
    let progress = Progress::new();
    let limits = context.config.limits();
    let guarded = Guarded::new(stream, progress.clone(), limits.discard_timeout);
    let noted = progress.clone();
    let metrics = Arc::clone(&context.metrics);
    let service = service_fn(move |request| {
        let states_two_lengths = noted.head_complete();
        let (noted, context) = (noted.clone(), Arc::clone(&context));
        async move {
            let (mut response, is_body_read) =
                routes::answer(request, states_two_lengths, noted.clone(), &context).await;
            let is_answer_whole = response.body_mut().is_whole_or_tells(&noted);
            noted.answering(is_body_read, is_answer_whole);
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .max_buf_size(LONGEST_HEAD_BYTES)
        .max_header_size(LONGEST_HEAD_BYTES)
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(guarded), service);
    let mut connection = std::pin::pin!(connection);
    let mut overdue = std::pin::pin!(progress.overdue(&limits));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        reason = overdue.as_mut() => return log_closed(reason),
        () = close.cancelled() => {
            if progress.is_between_requests() {
                return;
            }
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection => ended,
                reason = overdue => return log_closed(reason),
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended early");
        // Hyper itself has answered these, without a body.
        let refusal = match () {
            () if error.is_parse_too_large() => RequestError::HeadTooLarge,
            () if error.is_parse() => RequestError::InvalidHttp("it cannot be parsed"),
            () => return,
        };
        metrics.request_rejected(Refusal::from(&refusal).code);
    }
}

fn log_closed(reason: &'static str) {
    tracing::debug!(reason, "connection closed");
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::Instant;

    use super::*;

    const LIMITS: Limits = Limits {
        header_timeout: Duration::from_secs(10),
        idle_timeout: Duration::from_secs(75),
        write_timeout: Duration::from_secs(30),
        discard_timeout: Duration::from_secs(1),
    };

    /// A client that nothing buffers for, and the connection to it.
    fn connection() -> (tokio::io::DuplexStream, Guarded<tokio::io::DuplexStream>) {
        let (client, server) = tokio::io::duplex(64);
        (client, Guarded::new(server, Progress::new(), LIMITS.discard_timeout))
    }

    async fn seconds_until_overdue(progress: &Progress) -> u64 {
        let started = Instant::now();
        progress.overdue(&LIMITS).await;
        started.elapsed().as_secs()
    }

    async fn serve_one(client: &mut tokio::io::DuplexStream, guarded: &mut Guarded<tokio::io::DuplexStream>) {
        client.write_all(b"head").await.unwrap();
        guarded.read_exact(&mut [0; 4]).await.unwrap();
        guarded.progress().head_complete();
        guarded.progress().answering(true, true);
        guarded.write_all(b"answer").await.unwrap();
        guarded.flush().await.unwrap();
        client.read_exact(&mut [0; 6]).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_head_counts_from_the_accept_and_a_later_one_from_its_first_byte() {
        let (mut client, mut guarded) = connection();
        let progress = guarded.progress().clone();
        assert_eq!(seconds_until_overdue(&progress).await, 10);
        serve_one(&mut client, &mut guarded).await;
        tokio::time::sleep(Duration::from_secs(70)).await;
        client.write_all(b"he").await.unwrap();
        guarded.read_exact(&mut [0; 2]).await.unwrap();
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert_eq!(seconds_until_overdue(&progress).await, 6);
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_may_stay_for_the_idle_timeout_and_a_served_one_for_ever() {
        let (mut client, mut guarded) = connection();
        let progress = guarded.progress().clone();
        serve_one(&mut client, &mut guarded).await;
        assert!(progress.is_between_requests());
        assert_eq!(seconds_until_overdue(&progress).await, 75);
        progress.head_complete();
        assert!(!progress.is_between_requests());
        let for_ever = tokio::time::timeout(Duration::from_secs(3600), progress.overdue(&LIMITS));
        assert!(for_ever.await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_some_bytes_has_time_for_more() {
        let (mut client, mut guarded) = connection();
        let progress = guarded.progress().clone();
        progress.head_complete();
        progress.answering(true, true);
        let writing = tokio::spawn(async move { guarded.write_all(&[0; 1000]).await });
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_secs(25)).await;
            client.read_exact(&mut [0; 64]).await.unwrap();
        }
        assert!(matches!(seconds_until_overdue(&progress).await, 29 | 30));
        writing.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_may_still_be_sending_is_listened_to_until_it_ends_or_for_the_discard_time() {
        for (is_body_read, ends, milliseconds) in [(true, false, 0), (false, true, 300), (false, false, 1000)]
        {
            let (mut client, mut guarded) = connection();
            guarded.progress().head_complete();
            guarded.progress().answering(is_body_read, true);
            let sending = tokio::spawn(async move {
                for _ in 0..if ends { 3 } else { 100 } {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    let _ = client.write_all(&[0; 10]).await;
                }
            });
            let started = Instant::now();
            guarded.shutdown().await.unwrap();
            let took = started.elapsed().as_millis();
            assert!((milliseconds..milliseconds + 20).contains(&took), "{took} ms, not {milliseconds}");
            sending.abort();
        }
    }

    /// A client that has sent a whole request and ended its stream, and the connection that has read it.
    async fn half_closed() -> (tokio::io::DuplexStream, Guarded<tokio::io::DuplexStream>) {
        let (mut client, mut guarded) = connection();
        client.write_all(b"head").await.unwrap();
        guarded.read_exact(&mut [0; 4]).await.unwrap();
        guarded.progress().head_complete();
        guarded.progress().request_read();
        client.shutdown().await.unwrap();
        (client, guarded)
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_ends_its_side_only_gets_an_answer_whose_beginning_came_early() {
        for seconds in [0, 1, 10, 100] {
            let (mut client, mut guarded) = half_closed().await;
            let waiting = tokio::time::timeout(Duration::from_secs(seconds), guarded.read(&mut [0; 8])).await;
            assert!(waiting.is_err(), "the connection is over after {seconds} s: {waiting:?}");
            guarded.progress().answering(true, true);
            guarded.write_all(b"HTTP/1.1 200 OK").await.unwrap();
            guarded.flush().await.unwrap();
            // Now the end is the end.
            assert_eq!(guarded.read(&mut [0; 8]).await.unwrap(), 0);
            drop(guarded);
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            assert_eq!(answer, "HTTP/1.1 200 OK", "after {seconds} s");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_has_gone_or_goes_later_is_noticed() {
        for (goes_after, noticed_within) in [(0, 1), (1, 10)] {
            let (client, mut guarded) = half_closed().await;
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(goes_after)).await;
                drop(client);
            });
            let mut byte = [0];
            let end = guarded.read(&mut byte);
            let noticed = tokio::time::timeout(Duration::from_secs(noticed_within), end);
            assert!(noticed.await.expect("not noticed").is_err());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_inside_a_request_is_the_end() {
        let (mut client, mut guarded) = connection();
        guarded.progress().head_complete();
        client.shutdown().await.unwrap();
        assert_eq!(guarded.read(&mut [0; 8]).await.unwrap(), 0);
    }
}
