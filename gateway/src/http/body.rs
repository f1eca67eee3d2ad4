//! The body of a request, read within its limits of size, of time, and of the memory that all bodies share.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Context;
use super::respond::RequestError;
use crate::error::EmbedError;

/// Bodies up to this length are read whatever the others take.
const ALWAYS_READ_BYTES: usize = 16 * 1024;
/// When to try again after the memory for bodies was used up.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The memory that bodies under way may take together, in bytes.
#[derive(Debug, Clone)]
pub(super) struct BodyMemory {
    bytes: Arc<Semaphore>,
}

impl BodyMemory {
    pub(super) fn new(bytes: usize) -> Self {
        Self { bytes: Arc::new(Semaphore::new(bytes.min(Semaphore::MAX_PERMITS))) }
    }
}

/// A whole body. Its share of the memory is given back when it is dropped.
#[derive(Debug)]
pub(super) struct Body {
    bytes: Bytes,
    share: Share,
}

impl Body {
    /// The bytes, and the share of the memory that they and what is made of them take.
    pub(super) fn into_parts(self) -> (Bytes, Share) {
        (self.bytes, self.share)
    }
}

/// What one body takes of the memory, until it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    memory: BodyMemory,
    taken: Option<OwnedSemaphorePermit>,
}

impl Share {
    /// Takes what is missing to `bytes`.
    fn grow_to(&mut self, bytes: usize) -> Result<(), RequestError> {
        if bytes <= ALWAYS_READ_BYTES {
            return Ok(());
        }
        let taken = self.taken.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = u32::try_from(bytes.saturating_sub(taken)).unwrap_or(u32::MAX);
        let more = Arc::clone(&self.memory.bytes)
            .try_acquire_many_owned(more)
            .map_err(|_used_up| EmbedError::Overloaded { retry_after: RETRY_AFTER })?;
        match &mut self.taken {
            Some(taken) => taken.merge(more),
            taken => *taken = Some(more),
        }
        Ok(())
    }
}

/// The body of a request, which a handler may read.
pub(super) struct RequestBody {
    incoming: Incoming,
    is_read: bool,
}

impl RequestBody {
    pub(super) fn new(incoming: Incoming) -> Self {
        let is_read = incoming.is_end_stream();
        Self { incoming, is_read }
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
        let mut share = Share { memory: context.body_memory.clone(), taken: None };
        let mut bytes = Vec::new();
        while let Some(frame) = self.incoming.frame().await {
            // What is no data is trailers, which say nothing here.
            let Ok(data) = frame.map_err(|_broken| RequestError::BodyIncomplete)?.into_data() else {
                continue;
            };
            if announced == Some(data.len() as u64) {
                // All in one piece: no need to copy it.
                share.grow_to(data.len())?;
                self.is_read = true;
                return Ok(Body { bytes: data, share });
            }
            let length = bytes.len() + data.len();
            if length > limit_bytes {
                return Err(RequestError::BodyTooLarge { limit_bytes });
            }
            if length > bytes.capacity() {
                // Chunks of one byte each would take a hundred times their length if they were kept as they come.
                let capacity = (2 * bytes.capacity()).max(ALWAYS_READ_BYTES).min(most_bytes).max(length);
                share.grow_to(capacity)?;
                bytes.reserve_exact(capacity - bytes.len());
            }
            bytes.extend_from_slice(&data);
        }
        self.is_read = true;
        Ok(Body { bytes: bytes.into(), share })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(memory: &BodyMemory) -> Share {
        Share { memory: memory.clone(), taken: None }
    }

    #[test]
    fn small_bodies_are_read_when_the_memory_is_used_up_and_large_ones_are_refused() {
        let memory = BodyMemory::new(100_000);
        let mut large = share(&memory);
        large.grow_to(60_000).unwrap();
        large.grow_to(90_000).unwrap();
        assert_eq!(memory.bytes.available_permits(), 10_000);
        share(&memory).grow_to(ALWAYS_READ_BYTES).unwrap();
        let refused = share(&memory).grow_to(ALWAYS_READ_BYTES + 1).unwrap_err();
        assert!(matches!(refused, RequestError::Embed(EmbedError::Overloaded { .. })), "{refused:?}");
    }

    #[test]
    fn a_body_that_is_dropped_or_refused_gives_its_memory_back() {
        let memory = BodyMemory::new(100_000);
        let mut refused = share(&memory);
        refused.grow_to(90_000).unwrap();
        refused.grow_to(200_000).unwrap_err();
        drop(refused);
        assert_eq!(memory.bytes.available_permits(), 100_000);
        share(&memory).grow_to(100_000).unwrap();
    }
}
