//! Texts that crashed a worker while they were alone in a batch: refused for some time, so that they cost no second one.
//!
//! Only hashes are kept, keyed at random in every process.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use akidb_protocol::Pooling;
use tokio::time::Instant;

/// Most texts that are remembered; the one that is forgotten soonest makes room.
const MOST_TEXTS: usize = 10_000;

/// Remembers texts for some time.
#[derive(Debug)]
pub(super) struct PoisonMemory {
    time: Duration,
    hasher: RandomState,
    forgotten_at: Mutex<HashMap<u64, Instant>>,
}

impl PoisonMemory {
    pub(super) fn new(time: Duration) -> Self {
        Self { time, hasher: RandomState::new(), forgotten_at: Mutex::default() }
    }

    pub(super) fn remember(&self, token_ids: &[u32], pooling: Pooling) {
        let mut forgotten_at = self.forgotten_at.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        forgotten_at.retain(|_, end| *end > now);
        if forgotten_at.len() >= MOST_TEXTS
            && let Some(soonest) = forgotten_at.iter().min_by_key(|(_, end)| **end).map(|(hash, _)| *hash)
        {
            forgotten_at.remove(&soonest);
        }
        forgotten_at.insert(self.hash(token_ids, pooling), now + self.time);
    }

    pub(super) fn contains(&self, token_ids: &[u32], pooling: Pooling) -> bool {
        let forgotten_at = self.forgotten_at.lock().unwrap_or_else(PoisonError::into_inner);
        // Nearly always so: then no text has to be hashed.
        if forgotten_at.is_empty() {
            return false;
        }
        forgotten_at.get(&self.hash(token_ids, pooling)).is_some_and(|end| *end > Instant::now())
    }

    /// Whether no text is remembered.
    pub(super) fn is_empty(&self) -> bool {
        self.forgotten_at.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Tells texts from one another, in this process.
    pub(super) fn hash(&self, token_ids: &[u32], pooling: Pooling) -> u64 {
        self.hasher.hash_one((token_ids, pooling))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_text_is_remembered_for_its_time_and_with_its_pooling() {
        let memory = PoisonMemory::new(Duration::from_secs(600));
        memory.remember(&[1, 2], Pooling::Mean);
        assert!(memory.contains(&[1, 2], Pooling::Mean));
        assert!(!memory.contains(&[1, 2], Pooling::Cls));
        assert!(!memory.contains(&[1, 2, 3], Pooling::Mean));
        tokio::time::advance(Duration::from_secs(599)).await;
        assert!(memory.contains(&[1, 2], Pooling::Mean));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(!memory.contains(&[1, 2], Pooling::Mean));
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded() {
        let memory = PoisonMemory::new(Duration::from_secs(600));
        for id in 0..u32::try_from(MOST_TEXTS).unwrap() + 1 {
            memory.remember(&[id], Pooling::Mean);
            if id == 0 {
                tokio::time::advance(Duration::from_secs(1)).await;
            }
        }
        assert!(!memory.contains(&[0], Pooling::Mean));
        assert!(memory.contains(&[1], Pooling::Mean));
    }
}
