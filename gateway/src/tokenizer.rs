//! Text to token ids, with the model's own `tokenizer.json`.
//!
//! Padding and truncation that the file may state are switched off: some files state wrong ones. The limit
//! is the model's, and truncation keeps the special tokens at both ends.

use std::path::Path;
use std::sync::{Arc, Weak};

use tokenizers::{PostProcessor, Tokenizer as HuggingFaceTokenizer, TruncationDirection};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::error::EmbedError;

/// Texts with more bytes than this in one request are tokenized off the async threads.
const INLINE_BYTES: usize = 8 * 1024;
/// A request of so many bytes is tokenized beside small ones, not before them.
const LARGE_BYTES: usize = 256 * 1024;
/// First guess of how many bytes the longest allowed text has, per token.
const BYTES_PER_TOKEN: usize = 16;
/// Of a text, no more bytes than this per allowed token are looked at, and at least [`FEWEST_LOOKED_AT_BYTES`]: a text
/// without spaces has few tokens and takes a second per megabyte.
const MOST_BYTES_PER_TOKEN: usize = 64;
const FEWEST_LOOKED_AT_BYTES: usize = 64 * 1024;
/// A cut text must give this many tokens beyond the limit, so that the cut cannot have changed the others:
/// a word of BERT's is never longer than 100 characters.
const SPARE_TOKENS: usize = 128;

/// The token ids of one text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tokens {
    /// Ids with special tokens, at most the model's limit.
    pub(crate) ids: Vec<u32>,
    /// Whether the text was longer than the limit.
    pub(crate) truncated: bool,
    /// Tokens of the text before it was cut, special tokens included; of a very long text, those that were looked at.
    pub(crate) text_tokens: usize,
    /// Whether all of the text was looked at.
    pub(crate) is_counted: bool,
}

/// The model's tokenizer and length limit. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Tokenizer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    tokenizer: HuggingFaceTokenizer,
    max_tokens: usize,
    special_tokens: usize,
    /// One permit for each request that is tokenized off the async threads.
    threads: Arc<Semaphore>,
    /// One permit fewer, for requests of much text, so that they never hold all the others up.
    threads_for_large: Arc<Semaphore>,
}

impl Tokenizer {
    /// Loads `tokenizer.json` from a model's directory. The error is one line for a person.
    pub(crate) fn load(model: &Path, max_tokens: usize, threads: usize) -> Result<Self, String> {
        let file = model.join("tokenizer.json");
        let mut tokenizer = HuggingFaceTokenizer::from_file(&file)
            .map_err(|error| format!("`tokenizer.json` cannot be used: {error}"))?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| error.to_string())?;
        let special_tokens =
            tokenizer.get_post_processor().map_or(0, |processor| processor.added_tokens(false));
        if special_tokens >= max_tokens {
            return Err(format!(
                "the length limit of {max_tokens} tokens leaves no room beside {special_tokens} special tokens"
            ));
        }
        Ok(Self {
            shared: Arc::new(Shared {
                tokenizer,
                max_tokens,
                special_tokens,
                threads: Arc::new(Semaphore::new(threads.max(2))),
                threads_for_large: Arc::new(Semaphore::new(threads.max(2) - 1)),
            }),
        })
    }

    /// Tokenizes all texts of a request; long ones off the async threads, a few requests at a time.
    ///
    /// Work that nobody waits for any more, or whose deadline has passed, is given up between two texts.
    pub(crate) async fn tokenize(
        &self,
        texts: Vec<String>,
        deadline: Instant,
    ) -> Result<Vec<Tokens>, EmbedError> {
        let caller = Arc::new(());
        let wanted = Wanted { caller: Arc::downgrade(&caller), deadline };
        let bytes: usize = texts.iter().map(String::len).sum();
        if bytes <= INLINE_BYTES {
            return self.shared.tokenize_all(&texts, &wanted);
        }
        let shared = Arc::clone(&self.shared);
        let tokenize = async {
            let large = match bytes {
                LARGE_BYTES.. => Some(Arc::clone(&shared.threads_for_large).acquire_owned().await),
                _ => None,
            };
            let permit = Arc::clone(&shared.threads).acquire_owned().await;
            let work = move || {
                let _permits = (large, permit);
                shared.tokenize_all(&texts, &wanted)
            };
            tokio::task::spawn_blocking(work).await.map_err(|_panic| EmbedError::Internal)?
        };
        let tokens = tokio::time::timeout_at(deadline, tokenize).await;
        drop(caller);
        tokens.map_err(|_elapsed| EmbedError::DeadlineExceeded)?
    }
}

/// Whether anybody still waits for the tokens.
struct Wanted {
    caller: Weak<()>,
    deadline: Instant,
}

impl Wanted {
    fn check(&self) -> Result<(), EmbedError> {
        let waits = self.caller.strong_count() > 0 && Instant::now() < self.deadline;
        if waits { Ok(()) } else { Err(EmbedError::DeadlineExceeded) }
    }
}

impl Shared {
    fn tokenize_all(&self, texts: &[String], wanted: &Wanted) -> Result<Vec<Tokens>, EmbedError> {
        let tokenize = |(index, text): (usize, &String)| {
            wanted.check()?;
            self.tokenize(text).map_err(|_error| EmbedError::NotTokenizable { index })
        };
        texts.iter().enumerate().map(tokenize).collect()
    }

    /// Tokenizes one text. Of a very long one only the beginning is looked at: as much as is certain to
    /// contain every token that stays, up to a bound; what lies beyond the bound counts as cut off.
    fn tokenize(&self, text: &str) -> tokenizers::Result<Tokens> {
        let room = self.max_tokens - self.special_tokens;
        let most_bytes = (self.max_tokens * MOST_BYTES_PER_TOKEN).max(FEWEST_LOOKED_AT_BYTES);
        let mut window_bytes = ((self.max_tokens + SPARE_TOKENS) * BYTES_PER_TOKEN).min(most_bytes);
        let (mut encoding, seen_bytes) = loop {
            let window = text.get(..text.floor_char_boundary(window_bytes)).unwrap_or(text);
            let encoding = self.tokenizer.encode_fast(window, false)?;
            let is_enough = encoding.len() > room + SPARE_TOKENS || window_bytes == most_bytes;
            if window.len() == text.len() || is_enough {
                break (encoding, window.len());
            }
            window_bytes = (window_bytes * 4).min(most_bytes);
        };
        let is_counted = seen_bytes == text.len();
        let text_tokens = encoding.len() + self.special_tokens;
        let truncated = encoding.len() > room || !is_counted;
        if encoding.len() > room {
            encoding.truncate(room, 0, TruncationDirection::Right);
        }
        let encoding = self.tokenizer.post_process(encoding, None, true)?;
        Ok(Tokens { ids: encoding.get_ids().to_vec(), truncated, text_tokens, is_counted })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A word-level tokenizer of BERT's form, which states a truncation and a padding of its own.
    fn tokenizer(max_tokens: usize) -> Tokenizer {
        let folder = tempfile::tempdir().unwrap();
        let file = include_str!("../tests/data/fake_model/tokenizer.json");
        std::fs::write(folder.path().join("tokenizer.json"), file).unwrap();
        Tokenizer::load(folder.path(), max_tokens, 2).unwrap()
    }

    async fn tokens(tokenizer: &Tokenizer, text: &str) -> Tokens {
        let deadline = Instant::now() + Duration::from_secs(60);
        tokenizer.tokenize(vec![text.to_owned()], deadline).await.unwrap().remove(0)
    }

    #[tokio::test]
    async fn padding_and_truncation_of_the_file_are_switched_off() {
        let tokens = tokens(&tokenizer(64), "a b a b a b a b a b").await;
        assert_eq!(tokens.ids, [1, 3, 4, 3, 4, 3, 4, 3, 4, 3, 4, 2]);
        assert!(!tokens.truncated);
    }

    #[tokio::test]
    async fn truncation_keeps_the_last_special_token() {
        let tokenizer = tokenizer(5);
        let exact = tokens(&tokenizer, "a b a").await;
        assert_eq!((exact.ids.as_slice(), exact.truncated), (&[1, 3, 4, 3, 2][..], false));
        let longer = tokens(&tokenizer, "a b a b").await;
        assert_eq!((longer.ids.as_slice(), longer.truncated), (&[1, 3, 4, 3, 2][..], true));
    }

    #[tokio::test]
    async fn the_tokens_of_a_text_are_counted_unless_it_is_very_long() {
        let tokenizer = tokenizer(5);
        for (words, text_tokens, is_counted) in [(3, 5, true), (4, 6, true), (100, 102, true)] {
            let tokens = tokens(&tokenizer, &"a ".repeat(words)).await;
            assert_eq!((tokens.text_tokens, tokens.is_counted), (text_tokens, is_counted), "{words} words");
        }
        let huge = tokens(&tokenizer, &"a ".repeat(1_000_000)).await;
        assert!(huge.text_tokens > 5 + SPARE_TOKENS && !huge.is_counted, "{huge:?}");
    }

    #[tokio::test]
    async fn a_huge_text_is_cut_and_still_gives_the_tokens_of_the_whole() {
        let tokenizer = tokenizer(64);
        let huge = "a b ".repeat(250_000);
        let tokens_of_huge = tokens(&tokenizer, &huge).await;
        assert!(tokens_of_huge.truncated);
        assert_eq!(tokens_of_huge.ids, tokens(&tokenizer, &"a b ".repeat(100)).await.ids);
        let spaces_first = |spaces: usize| format!("{}a b", " ".repeat(spaces));
        let behind_spaces = tokens(&tokenizer, &spaces_first(60_000)).await;
        assert_eq!((behind_spaces.ids.as_slice(), behind_spaces.truncated), (&[1, 3, 4, 2][..], false));
    }

    #[tokio::test]
    async fn what_lies_beyond_the_bound_is_not_looked_at_and_counts_as_truncated() {
        let tokenizer = tokenizer(64);
        for huge in [format!("{}a b", " ".repeat(16_000_000)), "a".repeat(16_000_000)] {
            let started = std::time::Instant::now();
            assert!(tokens(&tokenizer, &huge).await.truncated);
            assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        }
    }

    #[tokio::test]
    async fn the_deadline_ends_the_work() {
        let texts = vec!["a b ".repeat(100_000); 10_000];
        let started = std::time::Instant::now();
        let result = tokenizer(64).tokenize(texts, Instant::now() + Duration::from_millis(50)).await;
        assert_eq!(result, Err(EmbedError::DeadlineExceeded));
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    }

    #[tokio::test]
    async fn a_cut_never_falls_inside_a_character() {
        let tokens = tokens(&tokenizer(5), &"\u{1f600}".repeat(100_001)).await;
        assert_eq!(tokens.ids, [1, 0, 2]);
    }
}
