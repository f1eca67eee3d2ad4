//! The stream of a connection: notes what is read and written, listens on where it is closed too early for the client,
//! and finds out whether a client that has ended its stream still waits.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::progress::{Phase, Progress};

/// Bytes thrown away at a time.
const DISCARD_BYTES: usize = 8 * 1024;
/// What every answer begins with.
const BEGINNING: &[u8] = b"HTTP/1.";
/// Time between the first two probes of a client...
const FIRST_PROBE_WAIT: Duration = Duration::from_millis(100);
/// ...and how much longer each later one is: the last of [`BEGINNING`] is sent after 36 s.
const PROBE_WAIT_GROWTH: u32 = 3;

/// What a client's end of stream means.
enum End {
    /// The connection is over.
    OfAll,
    /// The handler has not taken all that came before, so it is not known whether the request is complete.
    Unclear,
    /// The request is complete: the client may have closed its side only, and wait for the answer, or it may have gone.
    OfItsSide,
}

/// Looks after a client that ended its stream while it waits for an answer.
///
/// Whether it still reads cannot be seen before it is sent something: then the system of a client that has gone resets
/// the connection, and the next write fails. What can be sent is the beginning of the answer, which is always the same;
/// it is sent byte by byte, so that a client that goes later is noticed, too.
#[derive(Debug)]
struct Probe {
    timer: Pin<Box<Sleep>>,
    wait: Duration,
}

impl Probe {
    fn new() -> Self {
        Self { timer: Box::pin(tokio::time::sleep(Duration::ZERO)), wait: FIRST_PROBE_WAIT }
    }
}

/// A stream that notes what is read and written, and that reads on for a while when it is closed too early for the
/// client.
#[derive(Debug)]
pub(super) struct Guarded<S> {
    stream: S,
    progress: Progress,
    discard_timeout: Duration,
    /// Ends the discarding, once it has begun.
    discarding: Option<Pin<Box<Sleep>>>,
    is_shut_down: bool,
    /// Set when the client has ended its stream while it waits for an answer.
    probe: Option<Probe>,
    /// Bytes of the next answer that were sent before it was there.
    sent_early: usize,
    /// Whether the client has ended its stream after a whole request.
    has_ended: bool,
}

impl<S> Guarded<S> {
    pub(super) fn new(stream: S, progress: Progress, discard_timeout: Duration) -> Self {
        Self {
            stream,
            progress,
            discard_timeout,
            discarding: None,
            is_shut_down: false,
            probe: None,
            sent_early: 0,
            has_ended: false,
        }
    }

    #[cfg(test)]
    pub(super) fn progress(&self) -> &Progress {
        &self.progress
    }

    fn note_write(&self, outcome: &Poll<io::Result<usize>>) {
        let mut state = self.progress.lock();
        state.is_flushed = false;
        match outcome {
            Poll::Pending => drop(state.stuck_since.get_or_insert_with(Instant::now)),
            Poll::Ready(_) => state.stuck_since = None,
        }
    }

    /// What to make of the client's end of stream.
    fn note_end(&self) -> End {
        let mut state = self.progress.lock();
        match state.phase {
            Phase::Serving if state.is_request_read => End::OfItsSide,
            Phase::Serving if !state.has_seen_end => {
                state.has_seen_end = true;
                End::Unclear
            }
            _ => End::OfAll,
        }
    }
}

impl<S: AsyncWrite + Unpin> Guarded<S> {
    /// Looks whether a client that has ended its stream still reads; fails when it does not.
    fn poll_probe(&mut self, context: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        loop {
            let Some(probe) = &mut self.probe else { return Poll::Pending };
            ready!(probe.timer.as_mut().poll(context));
            let Some(byte) = BEGINNING.get(self.sent_early) else {
                self.probe = None;
                return Poll::Pending;
            };
            // Behind an earlier answer that the client does not take, nothing can be learned.
            if self.progress.lock().is_flushed
                && let Poll::Ready(sent) = Pin::new(&mut self.stream).poll_write(context, &[*byte])
            {
                self.sent_early += sent?;
            }
            probe.timer.as_mut().reset(Instant::now() + probe.wait);
            probe.wait *= PROBE_WAIT_GROWTH;
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.probe.is_some() {
            return self.poll_probe(context);
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let received = &buffer.filled()[before..];
        if received.is_empty() {
            return match self.note_end() {
                End::OfAll => Poll::Ready(Ok(())),
                End::Unclear => {
                    context.waker().wake_by_ref();
                    Poll::Pending
                }
                End::OfItsSide => {
                    self.has_ended = true;
                    self.probe = Some(Probe::new());
                    self.poll_probe(context)
                }
            };
        }
        let mut state = self.progress.lock();
        if state.phase == Phase::Idle {
            state.enter(Phase::Head);
        }
        // What is pipelined after a request is not scanned: hyper then takes the chunks, and closes.
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
        self.probe = None;
        let early = self.sent_early.min(bytes.len());
        debug_assert!(
            early == 0 || bytes.starts_with(&BEGINNING[..early]),
            "another beginning: this is a bug"
        );
        let outcome = if early > 0 && early == bytes.len() {
            Poll::Ready(Ok(0))
        } else {
            Pin::new(&mut self.stream).poll_write(context, &bytes[early..])
        };
        self.note_write(&outcome);
        let written = ready!(outcome)?;
        self.sent_early = 0;
        Poll::Ready(Ok(early + written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.sent_early > 0 {
            let first = slices.iter().find(|slice| !slice.is_empty());
            return self.poll_write(context, first.map_or(&[], |slice| slice));
        }
        self.probe = None;
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.note_write(&outcome);
        outcome
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// Hyper flushes when it has handed over all it had: once the answer is whole, that is its end.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        let mut state = self.progress.lock();
        state.is_flushed = true;
        if state.phase == Phase::Answering && state.is_answer_whole {
            state.enter(Phase::Idle);
            drop(state);
            // The reader waits for a probe that is over: it has to find the end of the stream, and close.
            if self.has_ended {
                context.waker().wake_by_ref();
            }
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
