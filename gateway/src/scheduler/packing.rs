//! Which queued texts go into the next batch. Pure: no clock of its own, no I/O.
//!
//! First in, first out, with one exception: where the next text does not fit into what is left of the budget, later
//! ones that do fit may go before it. No text is overtaken by more than `MOST_OVERTAKEN` others.

use std::collections::VecDeque;

use crate::job::Job;

/// How many later texts may be put into a batch before an earlier one.
pub(super) const MOST_OVERTAKEN: u8 = 8;
/// Most texts in a batch: the answer must fit into a frame, with vectors of up to 8,192 numbers.
const MOST_TEXTS: usize = 2048;
/// How far after a text that does not fit others are considered.
const LOOK_AHEAD: usize = 16;
/// A share of the queue is not made smaller than this for the sake of an idle worker, in tokens.
const SMALLEST_SHARE_TOKENS: usize = 128;

/// What packing needs to know of a queued text.
pub(crate) trait Packable {
    /// Length in tokens.
    fn tokens(&self) -> usize;
    /// Whether two texts may be computed in one batch.
    fn fits_with(&self, other: &Self) -> bool;
    /// Whether anybody still waits for it.
    fn is_wanted(&self) -> bool;
    /// How many later texts went before it so far.
    fn overtaken(&mut self) -> &mut u8;
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

    fn overtaken(&mut self) -> &mut u8 {
        &mut self.overtaken
    }
}

/// Tokens for the next batch: what is queued is shared evenly by the workers, so that all of them finish together,
/// but a batch has at most `max_tokens`.
pub(super) fn budget(queued_tokens: usize, workers: usize, max_tokens: usize) -> usize {
    queued_tokens.div_ceil(workers.max(1)).max(SMALLEST_SHARE_TOKENS).min(max_tokens)
}

/// Takes texts off the queue that fit together and into `max_tokens`. The first one always fits. Unwanted texts are
/// dropped.
pub(crate) fn take_batch<T: Packable>(queue: &mut VecDeque<T>, max_tokens: usize) -> Vec<T> {
    let mut batch: Vec<T> = Vec::new();
    let mut skipped: VecDeque<T> = VecDeque::new();
    let mut tokens = 0;
    while let Some(next) = queue.pop_front() {
        if !next.is_wanted() {
            continue;
        }
        let fits =
            batch.first().is_none_or(|first| first.fits_with(&next) && tokens + next.tokens() <= max_tokens);
        if fits {
            tokens += next.tokens();
            batch.push(next);
            for passed in &mut skipped {
                *passed.overtaken() += 1;
            }
        } else {
            skipped.push_back(next);
        }
        // Whoever passes a later one passes the first one, too, so that one is overtaken most often.
        let patience_is_over = skipped.front_mut().is_some_and(|first| *first.overtaken() >= MOST_OVERTAKEN);
        if tokens >= max_tokens
            || batch.len() >= MOST_TEXTS
            || patience_is_over
            || skipped.len() >= LOOK_AHEAD
        {
            break;
        }
    }
    while let Some(passed) = skipped.pop_back() {
        queue.push_front(passed);
    }
    batch
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, PartialEq)]
    struct Text {
        place: usize,
        tokens: usize,
        pooling: u8,
        wanted: bool,
        overtaken: u8,
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
        fn overtaken(&mut self) -> &mut u8 {
            &mut self.overtaken
        }
    }

    fn queue(tokens: &[usize]) -> VecDeque<Text> {
        let text = |(place, tokens): (usize, &usize)| Text {
            place,
            tokens: *tokens,
            pooling: 0,
            wanted: true,
            overtaken: 0,
        };
        tokens.iter().enumerate().map(text).collect()
    }

    fn places(batch: &[Text]) -> Vec<usize> {
        batch.iter().map(|text| text.place).collect()
    }

    #[test]
    fn a_text_that_fits_may_pass_one_that_does_not() {
        let mut queue = queue(&[60, 80, 30, 10, 5]);
        assert_eq!(places(&take_batch(&mut queue, 100)), [0, 2, 3]);
        assert_eq!(places(&take_batch(&mut queue, 100)), [1, 4]);
    }

    #[test]
    fn a_text_longer_than_the_budget_goes_alone() {
        let mut queue = queue(&[500, 10]);
        assert_eq!(places(&take_batch(&mut queue, 100)), [0]);
        assert_eq!(places(&take_batch(&mut queue, 100)), [1]);
    }

    #[test]
    fn a_queue_is_shared_by_the_workers_down_to_a_smallest_share() {
        assert_eq!(budget(1000, 2, 2048), 500);
        assert_eq!(budget(10_000, 2, 2048), 2048);
        assert_eq!(budget(150, 2, 2048), 128);
        assert_eq!(budget(150, 0, 2048), 150);
        assert_eq!(budget(150, 2, 1), 1);
    }

    /// What happens to a queue.
    #[derive(Debug, Clone)]
    enum Event {
        Arrive {
            tokens: usize,
            pooling: u8,
        },
        /// The client of one of the queued texts goes.
        Leave {
            which: prop::sample::Index,
        },
        Take {
            max_tokens: usize,
        },
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => (1..400_usize, 0..3_u8).prop_map(|(tokens, pooling)| Event::Arrive { tokens, pooling }),
            1 => any::<prop::sample::Index>().prop_map(|which| Event::Leave { which }),
            2 => (1..1000_usize).prop_map(|max_tokens| Event::Take { max_tokens }),
        ]
    }

    proptest! {
        #[test]
        fn a_queue_that_lives_gives_every_text_once_or_drops_it_because_its_client_has_gone(
            events in prop::collection::vec(event(), 0..300),
        ) {
            let mut queue: VecDeque<Text> = VecDeque::new();
            let (mut arrived, mut left, mut taken) = (0, Vec::new(), Vec::<Text>::new());
            // At the end whatever is left over is taken, too.
            for event in events.into_iter().chain((0..300).map(|_| Event::Take { max_tokens: 1000 })) {
                match event {
                    Event::Arrive { tokens, pooling } => {
                        queue.push_back(Text { place: arrived, tokens, pooling, wanted: true, overtaken: 0 });
                        arrived += 1;
                    }
                    Event::Leave { which } => {
                        if !queue.is_empty() {
                            let place = which.index(queue.len());
                            queue[place].wanted = false;
                            left.push(queue[place].place);
                        }
                    }
                    Event::Take { max_tokens } => {
                        let first_wanted = queue.iter().find(|text| text.wanted).map(|text| text.place);
                        let batch = take_batch(&mut queue, max_tokens);
                        prop_assert_eq!(batch.first().map(|text| text.place), first_wanted);
                        prop_assert!(batch.len() <= 1 || batch.iter().map(Text::tokens).sum::<usize>() <= max_tokens);
                        prop_assert!(batch.windows(2).all(|pair| pair[0].pooling == pair[1].pooling));
                        prop_assert!(batch.iter().all(|text| text.wanted));
                        prop_assert!(queue.iter().is_sorted_by_key(|text| text.place));
                        taken.extend(batch);
                    }
                }
                for waiting in &queue {
                    let overtaken = taken.iter().filter(|other| other.place > waiting.place).count();
                    prop_assert!(overtaken <= usize::from(MOST_OVERTAKEN), "{} went before {:?}", overtaken, waiting);
                    prop_assert_eq!(overtaken, usize::from(waiting.overtaken));
                }
            }
            prop_assert!(queue.is_empty());
            let mut places: Vec<usize> = taken.iter().map(|text| text.place).chain(left).collect();
            places.sort_unstable();
            places.dedup();
            prop_assert_eq!(places.len(), arrived);
            taken.sort_by_key(|text| text.place);
            prop_assert!(taken.windows(2).all(|pair| pair[0].place < pair[1].place));
        }

        #[test]
        fn the_shares_of_the_workers_cover_the_queue_unless_the_limit_is_less(
            queued in 0..1_000_000_usize, workers in 0..64_usize, max_tokens in 1..200_000_usize,
        ) {
            let share = budget(queued, workers, max_tokens);
            prop_assert!((1..=max_tokens).contains(&share));
            prop_assert!(share == max_tokens || share * workers.max(1) >= queued);
        }

        #[test]
        fn every_wanted_text_is_taken_once_within_the_budget_and_overtaken_by_few(
            texts in prop::collection::vec((1..400_usize, 0..2_u8, prop::bool::weighted(0.9)), 0..120),
            max_tokens in 1..1000_usize,
        ) {
            let texts: Vec<Text> = texts
                .into_iter()
                .enumerate()
                .map(|(place, (tokens, pooling, wanted))| Text { place, tokens, pooling, wanted, overtaken: 0 })
                .collect();
            let mut queue: VecDeque<Text> = texts.iter().cloned().collect();
            let mut taken = Vec::new();
            while !queue.is_empty() {
                let batch = take_batch(&mut queue, max_tokens);
                prop_assert!(!batch.is_empty() || queue.is_empty());
                prop_assert!(batch.len() <= 1 || batch.iter().map(Text::tokens).sum::<usize>() <= max_tokens);
                prop_assert!(batch.windows(2).all(|pair| pair[0].pooling == pair[1].pooling));
                taken.extend(batch);
            }
            for (position, text) in taken.iter().enumerate() {
                let overtaken = taken[..position].iter().filter(|earlier| earlier.place > text.place).count();
                prop_assert!(overtaken <= usize::from(MOST_OVERTAKEN), "{} others went before {:?}", overtaken, text);
            }
            taken.sort_by_key(|text| text.place);
            let places: Vec<usize> = taken.iter().map(|text| text.place).collect();
            let wanted: Vec<usize> = texts.iter().filter(|text| text.wanted).map(|text| text.place).collect();
            prop_assert_eq!(places, wanted);
        }
    }
}
