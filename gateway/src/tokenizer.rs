//! Text to token ids, with the model's own `tokenizer.json`.
//!
//! Padding and truncation that the file may state are switched off: some files state wrong ones. The limit
//! is the model's, and truncation keeps the special tokens at both ends.

use std::path::Path;
use std::sync::Arc;

use tokenizers::{PostProcessor, Tokenizer as HuggingFaceTokenizer, TruncationDirection};

use crate::error::EmbedError;

/// Texts with more bytes than this in one request are tokenized off the async threads.
const INLINE_BYTES: usize = 8 * 1024;
/// First guess of how many bytes the longest allowed text has, per token.
const BYTES_PER_TOKEN: usize = 16;
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
}

impl Tokenizer {
    /// Loads `tokenizer.json` from a model's directory. The error is one line for a person.
    pub(crate) fn load(model: &Path, max_tokens: usize) -> Result<Self, String> {
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
        Ok(Self { shared: Arc::new(Shared { tokenizer, max_tokens, special_tokens }) })
    }

    /// Tokenizes all texts of a request; long ones off the async threads.
    pub(crate) async fn tokenize(&self, texts: Vec<String>) -> Result<Vec<Tokens>, EmbedError> {
        if texts.iter().map(String::len).sum::<usize>() <= INLINE_BYTES {
            return self.shared.tokenize_all(&texts);
        }
        let shared = Arc::clone(&self.shared);
        let tokens = tokio::task::spawn_blocking(move || shared.tokenize_all(&texts)).await;
        tokens.map_err(|_panic| EmbedError::Internal)?
    }
}

impl Shared {
    fn tokenize_all(&self, texts: &[String]) -> Result<Vec<Tokens>, EmbedError> {
        let tokenize = |(index, text): (usize, &String)| {
            self.tokenize(text).map_err(|_error| EmbedError::NotTokenizable { index })
        };
        texts.iter().enumerate().map(tokenize).collect()
    }

    /// Tokenizes one text. Of a very long one only the beginning is looked at: as much as is certain to
    /// contain every token that stays.
    fn tokenize(&self, text: &str) -> tokenizers::Result<Tokens> {
        let room = self.max_tokens - self.special_tokens;
        let mut window_bytes = (self.max_tokens + SPARE_TOKENS) * BYTES_PER_TOKEN;
        let mut encoding = loop {
            let window = text.get(..text.floor_char_boundary(window_bytes)).unwrap_or(text);
            let encoding = self.tokenizer.encode_fast(window, false)?;
            if window.len() == text.len() || encoding.len() > room + SPARE_TOKENS {
                break encoding;
            }
            window_bytes *= 4;
        };
        let truncated = encoding.len() > room;
        if truncated {
            encoding.truncate(room, 0, TruncationDirection::Right);
        }
        let encoding = self.tokenizer.post_process(encoding, None, true)?;
        Ok(Tokens { ids: encoding.get_ids().to_vec(), truncated })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A word-level tokenizer of BERT's form, which states a truncation and a padding of its own.
    fn tokenizer(max_tokens: usize) -> Tokenizer {
        let folder = tempfile::tempdir().unwrap();
        let file = include_str!("../tests/data/fake_model/tokenizer.json");
        std::fs::write(folder.path().join("tokenizer.json"), file).unwrap();
        Tokenizer::load(folder.path(), max_tokens).unwrap()
    }

    async fn tokens(tokenizer: &Tokenizer, text: &str) -> Tokens {
        tokenizer.tokenize(vec![text.to_owned()]).await.unwrap().remove(0)
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
    async fn a_huge_text_is_cut_and_still_gives_the_tokens_of_the_whole() {
        let tokenizer = tokenizer(64);
        let huge = "a b ".repeat(250_000);
        let tokens_of_huge = tokens(&tokenizer, &huge).await;
        assert!(tokens_of_huge.truncated);
        assert_eq!(tokens_of_huge.ids, tokens(&tokenizer, &"a b ".repeat(100)).await.ids);
        let spaces_first = format!("{}a b", " ".repeat(1_000_000));
        let tokens_behind_spaces = tokens(&tokenizer, &spaces_first).await;
        assert_eq!(
            (tokens_behind_spaces.ids.as_slice(), tokens_behind_spaces.truncated),
            (&[1, 3, 4, 2][..], false)
        );
    }

    #[tokio::test]
    async fn a_cut_never_falls_inside_a_character() {
        let tokens = tokens(&tokenizer(5), &"\u{1f600}".repeat(100_001)).await;
        assert_eq!(tokens.ids, [1, 0, 2]);
    }
}
