//! The memory of workers: what they say of themselves, else what is resident of their processes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::resident_bytes;

/// What one process says of its memory, if it does: where a GPU shares the memory of the machine, what is resident leaves
/// out most of what the process takes. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Footprint(Arc<AtomicU64>);

impl Footprint {
    /// Takes what the process says now.
    pub(crate) fn tell(&self, bytes: Option<u64>) {
        if let Some(bytes) = bytes {
            self.0.store(bytes, Ordering::Relaxed);
        }
    }

    fn told(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|bytes| *bytes > 0)
    }
}

/// Memory of each process in bytes; `None` for one that is gone.
pub(crate) fn memory_bytes<'a>(
    processes: impl IntoIterator<Item = (Option<u32>, &'a Footprint)>,
) -> Vec<Option<u64>> {
    let (pids, told): (Vec<_>, Vec<_>) =
        processes.into_iter().map(|(pid, footprint)| (pid, footprint.told())).unzip();
    resident_bytes(&pids)
        .into_iter()
        .zip(told)
        .map(|(resident, told)| resident.map(|bytes| told.unwrap_or(bytes)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_says_of_its_memory_counts_as_long_as_it_lives() {
        let (silent, told) = (Footprint::default(), Footprint::default());
        told.tell(Some(1 << 40));
        told.tell(None);
        let this = Some(std::process::id());
        let bytes = memory_bytes([(this, &silent), (this, &told), (None, &told)]);
        assert!(bytes[0].is_some_and(|bytes| bytes > 1 << 20 && bytes < 1 << 40));
        assert_eq!(bytes[1..], [Some(1 << 40), None]);
    }
}
