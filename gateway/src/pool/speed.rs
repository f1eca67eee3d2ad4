//! How fast a worker computes: its warm-up says how large a batch should be, its last batches how much it can do.

/// Busy time after which a batch counts little, in seconds.
const MEMORY_SECONDS: f64 = 3.0;
/// Busy time that one batch counts for at most, in seconds: a single slow one must not become the speed.
const HEAVIEST_SECONDS: f64 = 0.5;
/// Busy time that a warm-up counts for, in seconds: little, because it is one small batch.
const WARM_UP_SECONDS: f64 = 0.05;

/// Tokens per second of one worker.
#[derive(Debug, Default)]
pub(super) struct Speed {
    fastest_warm_up: f64,
    tokens: f64,
    seconds: f64,
}

impl Speed {
    /// Notes the speed of a warm-up.
    pub(super) fn warmed_up(&mut self, tokens_per_second: f64) {
        // A busy machine only makes them slower.
        self.fastest_warm_up = self.fastest_warm_up.max(tokens_per_second);
        if self.seconds == 0.0 {
            self.tokens = tokens_per_second * WARM_UP_SECONDS;
            self.seconds = WARM_UP_SECONDS;
        }
    }

    /// Notes how long a batch kept its worker busy. A small batch says only that workers are at least that fast.
    pub(super) fn batch_took(&mut self, tokens: usize, seconds: f64, is_full: bool) {
        #[expect(clippy::cast_precision_loss, reason = "a batch has far fewer than 2^52 tokens")]
        let (tokens, seconds) = (tokens as f64, seconds.max(1e-6));
        if !is_full && self.seconds > 0.0 && tokens / seconds < self.tokens / self.seconds {
            return;
        }
        let weight = (HEAVIEST_SECONDS / seconds).min(1.0);
        let (tokens, seconds) = (tokens * weight, seconds * weight);
        let keep = (-seconds / MEMORY_SECONDS).exp();
        self.tokens = self.tokens * keep + tokens;
        self.seconds = self.seconds * keep + seconds;
    }

    /// Tokens per second of late; `None` before the first warm-up.
    pub(super) fn tokens_per_second(&self) -> Option<f64> {
        (self.seconds > 0.0).then(|| self.tokens / self.seconds)
    }

    /// Tokens per second of the fastest warm-up so far.
    pub(super) fn fastest_warm_up(&self) -> usize {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates")]
        let speed = self.fastest_warm_up as usize;
        speed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_batches_set_the_speed_and_small_ones_only_raise_it() {
        let mut speed = Speed::default();
        assert_eq!(speed.tokens_per_second(), None);
        speed.warmed_up(1000.0);
        for _ in 0..200 {
            speed.batch_took(400, 0.1, true);
        }
        let close =
            |speed: &Speed, expected: f64| (speed.tokens_per_second().unwrap() / expected - 1.0).abs() < 0.01;
        assert!(close(&speed, 4000.0), "{speed:?}");
        speed.batch_took(3, 0.01, false);
        assert!(close(&speed, 4000.0), "{speed:?}");
        // The machine becomes slower: a few seconds later the speed is known.
        for _ in 0..100 {
            speed.batch_took(400, 0.2, true);
        }
        assert!(close(&speed, 2000.0), "{speed:?}");
        assert_eq!(speed.fastest_warm_up(), 1000);
        // One batch that took for ever moves it a little.
        speed.batch_took(400, 100.0, true);
        assert!(speed.tokens_per_second().unwrap() > 1500.0, "{speed:?}");
    }
}
