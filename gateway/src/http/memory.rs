//! Memory that the requests under way share: a budget in bytes, of which each takes what it needs or is refused.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::EmbedError;

/// When to try again after a budget was used up.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// So many bytes. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    bytes: Arc<Semaphore>,
    total: usize,
    /// What takes no more than this is not counted, so that small requests go on when large ones have used all up.
    free_bytes: usize,
}

impl Budget {
    pub(super) fn new(bytes: usize, free_bytes: usize) -> Self {
        let total = bytes.min(Semaphore::MAX_PERMITS);
        Self { bytes: Arc::new(Semaphore::new(total)), total, free_bytes }
    }

    /// A reservation of nothing yet.
    pub(super) fn reserve(&self) -> Reservation {
        Reservation { budget: self.clone(), taken: None }
    }
}

/// What one request takes of a budget, until it is dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    budget: Budget,
    taken: Option<OwnedSemaphorePermit>,
}

impl Reservation {
    /// Makes it this many bytes: gives back what it has more, or takes what is missing. Whoever needs more than the whole
    /// budget takes all of it.
    pub(super) fn resize(&mut self, bytes: usize) -> Result<(), EmbedError> {
        let most = self.budget.total.min(u32::MAX as usize);
        let bytes = if bytes <= self.budget.free_bytes { 0 } else { bytes.min(most) };
        let taken = self.taken.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        if bytes <= taken {
            drop(self.taken.as_mut().and_then(|permit| permit.split(taken - bytes)));
            return Ok(());
        }
        let missing = u32::try_from(bytes - taken).expect("a reservation is below 2^32 bytes: this is a bug");
        let missing = Arc::clone(&self.budget.bytes)
            .try_acquire_many_owned(missing)
            .map_err(|_used_up| EmbedError::Overloaded { retry_after: RETRY_AFTER })?;
        match &mut self.taken {
            Some(taken) => taken.merge(missing),
            taken => *taken = Some(missing),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_shares_are_free_and_large_ones_are_refused_when_the_budget_is_used_up() {
        let budget = Budget::new(100_000, 16_000);
        let mut large = budget.reserve();
        large.resize(60_000).unwrap();
        large.resize(90_000).unwrap();
        assert_eq!(budget.bytes.available_permits(), 10_000);
        budget.reserve().resize(16_000).unwrap();
        let refused = budget.reserve().resize(16_001).unwrap_err();
        assert!(matches!(refused, EmbedError::Overloaded { .. }), "{refused:?}");
    }

    #[test]
    fn what_is_dropped_or_shrinks_gives_its_bytes_back() {
        let budget = Budget::new(100_000, 16_000);
        let mut reservation = budget.reserve();
        reservation.resize(90_000).unwrap();
        reservation.resize(20_000).unwrap();
        assert_eq!(budget.bytes.available_permits(), 80_000);
        reservation.resize(10).unwrap();
        assert_eq!(budget.bytes.available_permits(), 100_000);
        reservation.resize(90_000).unwrap();
        budget.reserve().resize(20_000).unwrap_err();
        drop(reservation);
        assert_eq!(budget.bytes.available_permits(), 100_000);
    }

    #[test]
    fn what_needs_more_than_there_is_has_to_be_alone() {
        let budget = Budget::new(100_000, 16_000);
        let mut other = budget.reserve();
        other.resize(20_000).unwrap();
        let mut all = budget.reserve();
        all.resize(1_000_000).unwrap_err();
        drop(other);
        all.resize(1_000_000).unwrap();
        assert_eq!(budget.bytes.available_permits(), 0);
    }
}
