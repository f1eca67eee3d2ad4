//! The body of an answer: bytes that are there, or vectors that become JSON while the client takes them.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

use super::connection::Progress;
use super::memory::Reservation;
use super::writer::Writer;
use crate::metrics::{Metrics, Phase};

/// Bytes of JSON that are written at a time. Hyper holds at most three such pieces.
pub(super) const PIECE_BYTES: usize = 32 * 1024;

/// The body of an answer.
pub(super) enum Content {
    /// All of it.
    Whole(Bytes),
    /// What is written of it while the client takes it.
    Vectors(Box<Vectors>),
}

/// Vectors under way to a client.
pub(super) struct Vectors {
    writer: Writer,
    writing: Duration,
    metrics: Arc<Metrics>,
    /// What learns that the last piece is written.
    progress: Option<Progress>,
    _reservation: Reservation,
}

/// Bytes, and the memory reserved for them.
struct Shared {
    bytes: Vec<u8>,
    _reservation: Reservation,
}

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Content {
    /// All of it, with the memory that is given back when the last byte is with the system.
    pub(super) fn whole(bytes: Vec<u8>, reservation: Reservation) -> Self {
        Self::Whole(Bytes::from_owner(Shared { bytes, _reservation: reservation }))
    }

    /// What `writer` writes, with the memory that is given back with the last byte.
    pub(super) fn vectors(writer: Writer, reservation: Reservation, metrics: Arc<Metrics>) -> Self {
        Self::Vectors(Box::new(Vectors {
            writer,
            writing: Duration::ZERO,
            metrics,
            progress: None,
            _reservation: reservation,
        }))
    }
}

impl Content {
    /// Whether all of it is there; else the connection is told when it is.
    pub(super) fn is_whole_or_tells(&mut self, progress: &Progress) -> bool {
        match self {
            Self::Whole(_) => true,
            Self::Vectors(vectors) => {
                vectors.progress = Some(progress.clone());
                false
            }
        }
    }
}

impl Vectors {
    fn next(&mut self) -> Option<Bytes> {
        let started = Instant::now();
        let piece = self.writer.next(PIECE_BYTES);
        self.writing += started.elapsed();
        if self.writer.is_done() && piece.is_some() {
            self.metrics.phase_took(Phase::Write, self.writing.as_secs_f64());
            if let Some(progress) = &self.progress {
                progress.answer_whole();
            }
        }
        piece.map(Bytes::from)
    }
}

impl Body for Content {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = match &mut *self {
            Self::Whole(bytes) if bytes.is_empty() => None,
            Self::Whole(bytes) => Some(std::mem::take(bytes)),
            Self::Vectors(vectors) => vectors.next(),
        };
        Poll::Ready(next.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Vectors(vectors) => vectors.writer.is_done(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Vectors(_) => SizeHint::default(),
        }
    }
}
