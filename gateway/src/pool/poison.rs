//! What is remembered of texts under which workers died of themselves.
//!
//! A text under which one worker died is a *suspect*: it runs alone until it is answered, which clears it, or a second
//! worker dies. Then it is a *convict*: refused for some time, so that it costs no third worker. See `retry`.
//!
//! Only hashes are kept, keyed at random in every process.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use akidb_protocol::Pooling;
use tokio::time::Instant;

use crate::job::Job;

/// Most suspects, and most convicts, that are remembered; the one that is forgotten soonest makes room.
const MOST_TEXTS: usize = 10_000;

/// Tells a text, with its pooling, from others in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct TextHash(u64);

/// Remembers suspects and convicts for some time.
#[derive(Debug)]
pub(super) struct PoisonMemory {
    time: Duration,
    hasher: RandomState,
    suspects: Mutex<Texts>,
    convicts: Mutex<Texts>,
}

impl PoisonMemory {
    pub(super) fn new(time: Duration) -> Self {
        Self { time, hasher: RandomState::new(), suspects: Mutex::default(), convicts: Mutex::default() }
    }

    pub(super) fn hash(&self, job: &Job) -> TextHash {
        self.hash_of(&job.token_ids, job.pooling)
    }

    /// Whether a worker died on its own while it computed this text, and it has not been answered since.
    pub(super) fn is_suspect(&self, job: &Job) -> bool {
        lock(&self.suspects).contains(|| self.hash(job))
    }

    /// Whether this text is refused.
    pub(super) fn is_convict(&self, job: &Job) -> bool {
        self.is_poison(&job.token_ids, job.pooling)
    }

    /// The same for a text that is no job yet.
    pub(super) fn is_poison(&self, token_ids: &[u32], pooling: Pooling) -> bool {
        lock(&self.convicts).contains(|| self.hash_of(token_ids, pooling))
    }

    /// The same for a text whose hash is known.
    pub(super) fn is_convicted(&self, text: TextHash) -> bool {
        lock(&self.convicts).contains(|| text)
    }

    /// Remembers that a worker died on its own while it computed this text.
    pub(super) fn suspect(&self, job: &Job) {
        lock(&self.suspects).insert(self.hash(job), self.time);
    }

    /// Refuses this text from now on; returns whether it was not refused before.
    pub(super) fn convict(&self, job: &Job) -> bool {
        let text = self.hash(job);
        lock(&self.suspects).remove(text);
        lock(&self.convicts).insert(text, self.time)
    }

    /// Forgets that this text was a suspect: a worker answered it.
    pub(super) fn acquit(&self, job: &Job) {
        let mut suspects = lock(&self.suspects);
        if !suspects.is_empty() {
            suspects.remove(self.hash(job));
        }
    }

    fn hash_of(&self, token_ids: &[u32], pooling: Pooling) -> TextHash {
        TextHash(self.hasher.hash_one((token_ids, pooling)))
    }
}

fn lock(texts: &Mutex<Texts>) -> MutexGuard<'_, Texts> {
    texts.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Texts, and when each is forgotten.
#[derive(Debug, Default)]
struct Texts {
    forgotten_at: HashMap<TextHash, Instant>,
    /// When the last of them is forgotten.
    all_forgotten_at: Option<Instant>,
}

impl Texts {
    fn is_empty(&mut self) -> bool {
        if self.all_forgotten_at.is_some_and(|end| end <= Instant::now()) {
            *self = Self::default();
        }
        self.forgotten_at.is_empty()
    }

    /// Nearly always empty: then no text has to be hashed.
    fn contains(&mut self, text: impl FnOnce() -> TextHash) -> bool {
        !self.is_empty() && self.forgotten_at.get(&text()).is_some_and(|end| *end > Instant::now())
    }

    /// Returns whether the text was not there.
    fn insert(&mut self, text: TextHash, time: Duration) -> bool {
        let now = Instant::now();
        if self.forgotten_at.len() >= MOST_TEXTS
            && !self.forgotten_at.contains_key(&text)
            && let Some(soonest) =
                self.forgotten_at.iter().min_by_key(|(_, end)| **end).map(|(text, _)| *text)
        {
            self.forgotten_at.remove(&soonest);
        }
        self.all_forgotten_at = Some(now + time);
        self.forgotten_at.insert(text, now + time).is_none_or(|end| end <= now)
    }

    fn remove(&mut self, text: TextHash) {
        self.forgotten_at.remove(&text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_text_is_remembered_for_its_time_and_with_its_pooling() {
        let memory = PoisonMemory::new(Duration::from_secs(600));
        let text = memory.hash_of(&[1, 2], Pooling::Mean);
        lock(&memory.convicts).insert(text, memory.time);
        assert!(memory.is_poison(&[1, 2], Pooling::Mean));
        assert!(!memory.is_poison(&[1, 2], Pooling::Cls));
        assert!(!memory.is_poison(&[1, 2, 3], Pooling::Mean));
        tokio::time::advance(Duration::from_secs(599)).await;
        assert!(memory.is_convicted(text));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(!memory.is_convicted(text));
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded() {
        let mut texts = Texts::default();
        for id in 0..=MOST_TEXTS as u64 {
            assert!(texts.insert(TextHash(id), Duration::from_secs(600)));
            if id == 0 {
                tokio::time::advance(Duration::from_secs(1)).await;
            }
        }
        assert_eq!(texts.forgotten_at.len(), MOST_TEXTS);
        assert!(!texts.contains(|| TextHash(0)));
        assert!(texts.contains(|| TextHash(1)));
        assert!(!texts.insert(TextHash(1), Duration::from_secs(600)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_memory_of_no_time_remembers_nothing() {
        let mut texts = Texts::default();
        assert!(texts.insert(TextHash(1), Duration::ZERO));
        assert!(!texts.contains(|| TextHash(1)));
    }
}
