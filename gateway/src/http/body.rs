//! The body of a request, read within its limits of size, of time, and of the memory that all bodies share.

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};

use super::connection::Progress;
use super::context::Context;
use super::error::RequestError;
use super::memory::Reservation;
use crate::error::EmbedError;

/// Bodies up to this length are read whatever the others take.
pub(super) const ALWAYS_READ_BYTES: usize = 16 * 1024;

/// Bytes of the longest pieces in which a body is collected.
const LARGEST_PIECE_BYTES: usize = 1024 * 1024;

/// A whole body, and what it takes of the memory for bodies and what is made of them.
#[derive(Debug)]
pub(super) struct Body {
    pub(super) bytes: Bytes,
    pub(super) reservation: Reservation,
}

/// The body of a request, which a handler may read.
pub(super) struct RequestBody {
    incoming: Incoming,
    is_read: bool,
    progress: Progress,
}

impl RequestBody {
    pub(super) fn new(incoming: Incoming, progress: Progress) -> Self {
        let mut body = Self { is_read: false, incoming, progress };
        if body.incoming.is_end_stream() {
            body.has_ended();
        }
        body
    }

    fn has_ended(&mut self) {
        self.is_read = true;
        self.progress.request_read();
    }

    /// Whether nothing of it is left to be read.
    pub(super) fn is_read(&self) -> bool {
        self.is_read
    }

    /// Reads all of it, or refuses it as soon as a limit is reached.
    pub(super) async fn read(&mut self, context: &Context) -> Result<Body, RequestError> {
        let limit_bytes = context.config.max_body_bytes;
        if self.incoming.size_hint().lower() > limit_bytes as u64 {
            return Err(RequestError::BodyTooLarge { limit_bytes });
        }
        let whole = tokio::time::timeout(context.config.body_timeout, self.collect(context));
        tokio::select! {
            whole = whole => whole.unwrap_or(Err(RequestError::BodyTimeout)),
            () = context.manager.draining() => Err(EmbedError::Draining.into()),
        }
    }

    async fn collect(&mut self, context: &Context) -> Result<Body, RequestError> {
        let limit_bytes = context.config.max_body_bytes;
        let announced = self.incoming.size_hint().exact();
        let most_bytes = announced.and_then(|length| usize::try_from(length).ok()).unwrap_or(limit_bytes);
        let mut reservation = context.bodies.reserve();
        let mut pieces = Pieces::default();
        while let Some(frame) = self.incoming.frame().await {
            // What is no data is trailers, which say nothing here.
            let Ok(data) = frame.map_err(|_broken| RequestError::BodyIncomplete)?.into_data() else {
                continue;
            };
            if announced == Some(data.len() as u64) {
                // All in one piece: no need to copy it.
                reservation.resize(data.len())?;
                self.has_ended();
                return Ok(Body { bytes: data, reservation });
            }
            if pieces.length + data.len() > limit_bytes {
                return Err(RequestError::BodyTooLarge { limit_bytes });
            }
            pieces.push(&data, most_bytes, |capacity| reservation.resize(capacity))?;
        }
        self.has_ended();
        Ok(Body { bytes: pieces.join(), reservation })
    }
}

/// A body as it arrives. In pieces, because memory that grows in one has to be there twice, and one for each chunk would
/// take a hundred times the length of chunks of one byte.
#[derive(Debug, Default)]
struct Pieces {
    pieces: Vec<Vec<u8>>,
    length: usize,
    capacity: usize,
}

impl Pieces {
    /// Appends bytes; `reserve` is asked for the memory of all pieces together. There will be at most `most_bytes`, as far
    /// as is known.
    fn push<E>(
        &mut self,
        mut data: &[u8],
        most_bytes: usize,
        mut reserve: impl FnMut(usize) -> Result<(), E>,
    ) -> Result<(), E> {
        while !data.is_empty() {
            if self.capacity == self.length {
                // Twice what there is, up to a size of which there are never many.
                let wanted = self.length.clamp(ALWAYS_READ_BYTES, LARGEST_PIECE_BYTES);
                let piece = wanted.min(most_bytes.saturating_sub(self.length)).max(1);
                reserve(self.capacity + piece)?;
                self.capacity += piece;
                self.pieces.push(Vec::with_capacity(piece));
            }
            let (now, later) = data.split_at(data.len().min(self.capacity - self.length));
            self.pieces
                .last_mut()
                .expect("there is room in the last piece: this is a bug")
                .extend_from_slice(now);
            self.length += now.len();
            data = later;
        }
        Ok(())
    }

    /// All bytes, in one piece.
    fn join(mut self) -> Bytes {
        if self.pieces.len() <= 1 {
            return self.pieces.pop().unwrap_or_default().into();
        }
        let mut bytes = Vec::with_capacity(self.length);
        for piece in self.pieces {
            bytes.extend_from_slice(&piece);
        }
        bytes.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_hold_what_was_pushed_and_reserve_little_more() {
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|number| number.to_le_bytes()[0]).collect();
        for (chunk, most_bytes) in
            [(1, 16 << 20), (1000, 16 << 20), (70_000, 3_000_000), (3_000_000, 16 << 20)]
        {
            let (mut pieces, mut reserved) = (Pieces::default(), 0);
            for data in bytes.chunks(chunk) {
                let reserve = |capacity| {
                    reserved = capacity;
                    Ok::<_, ()>(())
                };
                pieces.push(data, most_bytes, reserve).unwrap();
                assert!(reserved >= pieces.length && reserved <= (2 * pieces.length).max(ALWAYS_READ_BYTES));
            }
            assert!(reserved <= bytes.len() + LARGEST_PIECE_BYTES && reserved <= most_bytes);
            assert!(pieces.pieces.len() < 12, "{}", pieces.pieces.len());
            assert_eq!(pieces.join(), bytes);
        }
        let mut pieces = Pieces::default();
        assert_eq!(pieces.push(b"a", 10, |_| Err("full")), Err("full"));
        assert_eq!(Pieces::default().join(), Bytes::new());
    }
}
