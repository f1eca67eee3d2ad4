//! Which queued texts go into the next batch. Pure: no clock of its own, no I/O.

use std::collections::VecDeque;

use crate::job::Job;

/// What packing needs to know of a queued text.
pub(super) trait Packable {
    /// Length in tokens.
    fn tokens(&self) -> usize;
    /// Whether two texts may be computed in one batch.
    fn fits_with(&self, other: &Self) -> bool;
    /// Whether anybody still waits for it.
    fn is_wanted(&self) -> bool;
}

impl Packable for Job {
    fn tokens(&self) -> usize {
        self.token_ids.len()
    }

    fn fits_with(&self, other: &Self) -> bool {
        self.pooling == other.pooling
    }

    fn is_wanted(&self) -> bool {
        Job::is_wanted(self)
    }
}

/// Takes texts off the front, first in first out, while they fit together and into `max_tokens`. The first
/// one always fits. Unwanted texts are dropped.
pub(super) fn take_batch<T: Packable>(queue: &mut VecDeque<T>, max_tokens: usize) -> Vec<T> {
    let mut batch: Vec<T> = Vec::new();
    let mut tokens = 0;
    while let Some(next) = queue.pop_front() {
        if !next.is_wanted() {
            continue;
        }
        let fits =
            batch.first().is_none_or(|first| first.fits_with(&next) && tokens + next.tokens() <= max_tokens);
        if !fits {
            queue.push_front(next);
            break;
        }
        tokens += next.tokens();
        batch.push(next);
    }
    batch
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, PartialEq)]
    struct Text {
        tokens: usize,
        pooling: u8,
        wanted: bool,
    }

    impl Packable for Text {
        fn tokens(&self) -> usize {
            self.tokens
        }
        fn fits_with(&self, other: &Self) -> bool {
            self.pooling == other.pooling
        }
        fn is_wanted(&self) -> bool {
            self.wanted
        }
    }

    proptest! {
        #[test]
        fn every_wanted_text_is_taken_once_in_order_within_the_budget(
            texts in prop::collection::vec((1..400_usize, 0..2_u8, prop::bool::weighted(0.9)), 0..60),
            max_tokens in 1..1000_usize,
        ) {
            let texts: Vec<Text> =
                texts.into_iter().map(|(tokens, pooling, wanted)| Text { tokens, pooling, wanted }).collect();
            let mut queue: VecDeque<Text> = texts.iter().cloned().collect();
            let mut taken = Vec::new();
            while !queue.is_empty() {
                let batch = take_batch(&mut queue, max_tokens);
                prop_assert!(!batch.is_empty() || queue.is_empty());
                prop_assert!(batch.len() <= 1 || batch.iter().map(Text::tokens).sum::<usize>() <= max_tokens);
                prop_assert!(batch.windows(2).all(|pair| pair[0].pooling == pair[1].pooling));
                taken.extend(batch);
            }
            let wanted: Vec<Text> = texts.into_iter().filter(|text| text.wanted).collect();
            prop_assert_eq!(taken, wanted);
        }
    }
}
