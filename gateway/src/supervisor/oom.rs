//! Which workers the kernel killed because memory was short. Their processes end like any that somebody killed; only the
//! control group counts the difference.

use std::sync::{Mutex, PoisonError};

/// Shares out the kills that the control group counted among the workers that were killed.
#[derive(Debug, Default)]
pub(super) struct OomKills {
    /// Kills up to this count are explained, by a worker or as older than all of them.
    explained: Mutex<u64>,
}

impl OomKills {
    /// Whether a kill was counted that explains the end of a process: `at_spawn` were when it started, `now` there are.
    pub(super) fn explain(&self, at_spawn: u64, now: u64) -> bool {
        let mut explained = self.explained.lock().unwrap_or_else(PoisonError::into_inner);
        let before = (*explained).max(at_spawn);
        let is_one = now > before;
        *explained = before + u64::from(is_one);
        is_one
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counted_kill_explains_the_end_of_one_worker() {
        let kills = OomKills::default();
        assert!(!kills.explain(7, 7), "nothing was counted: somebody killed it");
        assert!(kills.explain(7, 9));
        assert!(kills.explain(7, 9));
        assert!(!kills.explain(7, 9), "both kills are explained");
        assert!(!kills.explain(9, 9));
        assert!(kills.explain(9, 10));
        assert!(!kills.explain(0, 0), "the count is not known any more");
    }
}
