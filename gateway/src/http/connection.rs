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
//! sending, which then never reads why. So the limits are here: [`Guarded`] sees every read and write and notes the phase.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context as TaskContext, Poll, ready};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

use super::head::LengthScan;
use super::respond::{self, RequestError};
use super::{Context, route};

/// Longest head of a request; what is longer is answered 431.
const LONGEST_HEAD_BYTES: usize = 64 * 1024;
/// Bytes thrown away at a time.
const DISCARD_BYTES: usize = 8 * 1024;

/// How long the parts of a connection may take.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub(super) header_timeout: Duration,
    pub(super) idle_timeout: Duration,
    pub(super) write_timeout: Duration,
    pub(super) discard_timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Head,
    Serving,
    Answering,
    Idle,
    Closing,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    since: Instant,
    /// Since when the client takes no bytes of what it is sent.
    stuck_since: Option<Instant>,
    /// Whether the client may still be sending what nobody will read.
    is_unread: bool,
    scan: LengthScan,
}

impl State {
    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.since = Instant::now();
    }
}

/// Where a connection stands. Clones share it.
#[derive(Debug, Clone)]
struct Progress {
    state: Arc<Mutex<State>>,
}

impl Progress {
    fn new() -> Self {
        let state = State {
            phase: Phase::Head,
            since: Instant::now(),
            stuck_since: None,
            is_unread: false,
            scan: LengthScan::default(),
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The head of a request is complete. Returns whether it states its length in two ways.
    fn head_complete(&self) -> bool {
        let mut state = self.lock();
        state.enter(Phase::Serving);
        std::mem::take(&mut state.scan).found_both()
    }

    /// The answer is known; `is_body_read` says whether the whole request was read before.
    fn answering(&self, is_body_read: bool) {
        let mut state = self.lock();
        state.enter(Phase::Answering);
        state.is_unread = !is_body_read;
    }

    /// Whether nobody waits for an answer on this connection.
    fn is_between_requests(&self) -> bool {
        matches!(self.lock().phase, Phase::Head | Phase::Idle)
    }

    /// Until when something must happen, and what.
    fn deadline(&self, limits: &Limits) -> Option<(Instant, &'static str)> {
        let state = self.lock();
        let phase = match state.phase {
            Phase::Head => Some((state.since + limits.header_timeout, "the head did not arrive in time")),
            Phase::Idle => Some((state.since + limits.idle_timeout, "it was idle")),
            Phase::Serving | Phase::Answering | Phase::Closing => None,
        };
        let stuck = state.stuck_since.map(|since| (since + limits.write_timeout, "the client does not read"));
        [phase, stuck].into_iter().flatten().min_by_key(|(deadline, _)| *deadline)
    }

    /// Waits until something is overdue; says what.
    ///
    /// It looks again after the shortest limit, so that what happens in between needs no timer of its own.
    async fn overdue(&self, limits: &Limits) -> &'static str {
        let shortest = limits.header_timeout.min(limits.idle_timeout).min(limits.write_timeout);
        loop {
            let now = Instant::now();
            let look_again = now + shortest;
            let wake = match self.deadline(limits) {
                Some((deadline, what)) if deadline <= now => return what,
                Some((deadline, _)) => deadline.min(look_again),
                None => look_again,
            };
            tokio::time::sleep_until(wake).await;
        }
    }
}

/// A stream that notes what is read and written, and that reads on for a while when it is closed too early for the
/// client.
#[derive(Debug)]
struct Guarded<S> {
    stream: S,
    progress: Progress,
    discard_timeout: Duration,
    /// Ends the discarding, once it has begun.
    discarding: Option<Pin<Box<Sleep>>>,
    is_shut_down: bool,
}

impl<S> Guarded<S> {
    fn new(stream: S, progress: Progress, discard_timeout: Duration) -> Self {
        Self { stream, progress, discard_timeout, discarding: None, is_shut_down: false }
    }

    fn note_write(&self, outcome: &Poll<io::Result<usize>>) {
        let mut state = self.progress.lock();
        match outcome {
            Poll::Pending => drop(state.stuck_since.get_or_insert_with(Instant::now)),
            Poll::Ready(_) => state.stuck_since = None,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let received = &buffer.filled()[before..];
        let mut state = self.progress.lock();
        if state.phase == Phase::Idle && !received.is_empty() {
            state.enter(Phase::Head);
        }
        // What is pipelined behind a request is not scanned: hyper then takes the chunks, and closes.
        if state.phase == Phase::Head {
            state.scan.feed(received);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.note_write(&outcome);
        outcome
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.note_write(&outcome);
        outcome
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// Hyper flushes when it has handed over all it had: after an answer, that is its end.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        let mut state = self.progress.lock();
        if state.phase == Phase::Answering {
            state.enter(Phase::Idle);
        }
        Poll::Ready(Ok(()))
    }

    /// Ends the answers. A client that may still be sending is listened to until it ends, or for the discard time: were
    /// the socket closed under it, it would be reset before it has read the answer.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        if !self.is_shut_down {
            ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
            self.is_shut_down = true;
            let mut state = self.progress.lock();
            // In the middle of a head, hyper refused it.
            let is_unread = state.is_unread || state.phase == Phase::Head;
            state.enter(Phase::Closing);
            drop(state);
            if is_unread {
                self.discarding = Some(Box::pin(tokio::time::sleep(self.discard_timeout)));
            }
        }
        let Self { stream, discarding: Some(time), .. } = &mut *self else { return Poll::Ready(Ok(())) };
        loop {
            if time.as_mut().poll(context).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut bytes = [0; DISCARD_BYTES];
            let mut buffer = ReadBuf::new(&mut bytes);
            let outcome = ready!(Pin::new(&mut *stream).poll_read(context, &mut buffer));
            if outcome.is_err() || buffer.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

/// Serves the requests of one connection until it ends, something is overdue, or `close` asks for its end.
pub(super) async fn serve(stream: TcpStream, context: Arc<Context>, close: CancellationToken) {
    // Answers are small and complete when written: waiting for more to send only adds delay.
    let _ = stream.set_nodelay(true);
    let progress = Progress::new();
    let limits = context.config.limits();
    let guarded = Guarded::new(stream, progress.clone(), limits.discard_timeout);
    let noted = progress.clone();
    let manager = Arc::clone(&context.manager);
    let service = service_fn(move |request| {
        let states_two_lengths = noted.head_complete();
        let (noted, context) = (noted.clone(), Arc::clone(&context));
        async move {
            let (response, is_body_read) = route(request, states_two_lengths, &context).await;
            noted.answering(is_body_read);
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
        manager.count_rejected(respond::code(&refusal));
    }
}

fn log_closed(reason: &'static str) {
    tracing::debug!(reason, "connection closed");
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

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
        guarded.progress.head_complete();
        guarded.progress.answering(true);
        guarded.write_all(b"answer").await.unwrap();
        guarded.flush().await.unwrap();
        client.read_exact(&mut [0; 6]).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_head_counts_from_the_accept_and_a_later_one_from_its_first_byte() {
        let (mut client, mut guarded) = connection();
        let progress = guarded.progress.clone();
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
        let progress = guarded.progress.clone();
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
        let progress = guarded.progress.clone();
        progress.head_complete();
        progress.answering(true);
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
            guarded.progress.head_complete();
            guarded.progress.answering(is_body_read);
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
}
