//! Text to token ids, with the model's own `tokenizer.json`.
//!
//! Padding and truncation that the file may state are switched off: some files state wrong ones. The limit
//! is the model's, and truncation keeps the special tokens at both ends.
//!
//! * `file`: the parts of `tokenizer.json`; `normalizers` and `checks`: what they may not be.
//! * `settings`: `tokenizer_config.json`; `classes`: what `transformers` makes of both.
//! * `special`: the special tokens around a text.
//! * `encoder`: one text to tokens, cut where it is too long.
//! * `lower_case`: what `sentence_bert_config.json` may ask for.
//! * `vocabulary`: whether the model knows every token.
//! * `probe`: unusual texts that are read at the start, under `guard`.

mod checks;
mod classes;
mod encoder;
mod file;
mod guard;
mod lower_case;
mod normalizers;
#[cfg(test)]
mod popular;
mod probe;
mod settings;
mod special;
mod vocabulary;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::error::EmbedError;
use crate::model::EndToken;
pub(crate) use classes::Family;
use encoder::Encoder;
use file::TokenizerFile;
use guard::{Allowance, Excess};
use settings::Settings;

/// Texts with more bytes than this in one request are tokenized off the async threads.
const INLINE_BYTES: usize = 8 * 1024;
/// A request of this many bytes is tokenized alongside small ones, not before them.
const LARGE_BYTES: usize = 256 * 1024;
/// Most bytes of a request's prompts together, one for each text: a short body must not make more work and take more
/// memory than the longest one without a prompt.
const MOST_PROMPT_BYTES: usize = 16 * 1024 * 1024;
/// What loading may take, and each of the texts that are read then: thousands of times what it does take.
const LOADING: Allowance = Allowance { time: Duration::from_mins(1), memory_bytes: 4 << 30 };

/// Where a text that is too long is cut.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TruncationDirection {
    /// Its end is left out.
    #[default]
    #[serde(alias = "Right")]
    Right,
    /// Its beginning is left out, but nothing of the prompt before it.
    #[serde(alias = "Left")]
    Left,
}

/// How the texts of one request are read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Reading {
    /// Stands before every text.
    pub(crate) prompt: String,
    /// Where a text that is too long is cut.
    pub(crate) truncation: TruncationDirection,
}

/// What the model needs of its tokenizer.
#[derive(Debug, Clone)]
pub(crate) struct Needs {
    /// Longest text, in tokens.
    pub(crate) max_tokens: usize,
    /// What every text is made to end with.
    pub(crate) end_token: Option<EndToken>,
    /// Number of tokens that the model knows, where its files say so.
    pub(crate) vocabulary: Option<usize>,
    /// Whether texts are lower-cased before everything else.
    pub(crate) lower_case: bool,
    /// What decides how `transformers` reads the tokenizer's files.
    pub(crate) family: Family,
}

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
    encoder: Encoder,
    truncation: TruncationDirection,
    /// One permit for each request that is tokenized off the async threads.
    threads: Arc<Semaphore>,
    /// One permit fewer, for requests of much text, so that they never hold all the others up.
    threads_for_large: Arc<Semaphore>,
}

impl Tokenizer {
    /// Loads `tokenizer.json` from a model's directory, and tries it. The error is one line for a person.
    pub(crate) fn load(model: &Path, needs: Needs, threads: usize) -> Result<Self, String> {
        let folder = model.to_owned();
        let loaded = guard::run(LOADING, move |step_done| {
            let mut file = TokenizerFile::read(&folder)?;
            let settings = Settings::read(&folder)?;
            classes::apply(&mut file, &settings, &needs.family)?;
            if needs.lower_case {
                lower_case::put_first(&mut file.normalizer);
            }
            let truncation = settings.truncation_side()?.or(file.truncation_side()?).unwrap_or_default();
            let (normalizer, pre_tokenizer) = (file.normalizer.clone(), file.pre_tokenizer.clone());
            let mut tokenizer = file.build()?;
            tokenizer.set_encode_special_tokens(settings.flag("split_special_tokens", false)?);
            let encoder = Encoder::new(tokenizer, &needs)?;
            let _ = step_done.send(());
            let added = encoder.added_tokens();
            probe::read(&encoder, &probe::texts(&pre_tokenizer, &normalizer, &added), step_done)?;
            Ok((encoder, truncation))
        });
        let (encoder, truncation) = loaded.unwrap_or_else(|excess| {
            let fault = match excess {
                Excess::Panicked => "makes the tokenizer library panic",
                Excess::Time => "keeps the tokenizer library busy forever",
                Excess::Memory => "makes the tokenizer library use unlimited memory",
            };
            Err(format!("`tokenizer.json` cannot be used: it {fault}"))
        })?;
        Ok(Self {
            shared: Arc::new(Shared {
                encoder,
                truncation,
                threads: Arc::new(Semaphore::new(threads.max(2))),
                threads_for_large: Arc::new(Semaphore::new(threads.max(2) - 1)),
            }),
        })
    }

    /// Where a text that is too long is cut when nobody says.
    pub(crate) fn truncation(&self) -> TruncationDirection {
        self.shared.truncation
    }

    /// Tokenizes all texts of a request; long ones off the async threads, a few requests at a time.
    ///
    /// Abandoned work, and work whose deadline has passed, is given up between two texts.
    pub(crate) async fn tokenize(
        &self,
        texts: Vec<String>,
        reading: Reading,
        deadline: Instant,
    ) -> Result<Vec<Tokens>, EmbedError> {
        if reading.prompt.len().saturating_mul(texts.len()) > MOST_PROMPT_BYTES {
            return Err(EmbedError::PromptsTooLong { texts: texts.len(), limit_bytes: MOST_PROMPT_BYTES });
        }
        let caller = Arc::new(());
        let wanted = Wanted { caller: Arc::downgrade(&caller), deadline };
        let bytes: usize = texts.iter().map(|text| reading.prompt.len() + text.len()).sum();
        if bytes <= INLINE_BYTES {
            return self.shared.tokenize_all(&texts, &reading, &wanted);
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
                shared.tokenize_all(&texts, &reading, &wanted)
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
    fn tokenize_all(
        &self,
        texts: &[String],
        Reading { prompt, truncation }: &Reading,
        wanted: &Wanted,
    ) -> Result<Vec<Tokens>, EmbedError> {
        if !prompt.is_empty() {
            self.check_prompt(prompt)?;
        }
        let tokenize = |(index, text): (usize, &String)| {
            wanted.check()?;
            let tokens = contain(|| self.encoder.tokenize(prompt, text, *truncation))?;
            match tokens {
                Ok(tokens) if tokens.ids.is_empty() => Err(EmbedError::NoTokens { index }),
                Ok(tokens) if self.encoder.knows(&tokens.ids) => Ok(tokens),
                _ => Err(EmbedError::NotTokenizable { index }),
            }
        };
        texts.iter().enumerate().map(tokenize).collect()
    }

    /// Refuses a prompt that leaves no room for a text.
    fn check_prompt(&self, prompt: &str) -> Result<(), EmbedError> {
        let limit = self.encoder.max_tokens;
        match contain(|| self.encoder.prompt_without_room(prompt))? {
            Ok(None) => Ok(()),
            Ok(Some((tokens, is_exact))) => Err(EmbedError::PromptTooLong { tokens, is_exact, limit }),
            Err(_error) => Err(EmbedError::NotTokenizable { index: 0 }),
        }
    }
}

/// A library that panics has a bug, and the request has an answer anyway.
fn contain<T>(work: impl FnOnce() -> T) -> Result<T, EmbedError> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|_panic| EmbedError::Internal)
}

#[cfg(test)]
mod tests {
    use super::encoder::SPARE_TOKENS;
    use super::*;

    /// A word-level tokenizer of BERT's form, which states a truncation and a padding of its own.
    fn tokenizer(max_tokens: usize) -> Tokenizer {
        let folder = tempfile::tempdir().unwrap();
        let file = include_str!("../tests/data/fake_model/tokenizer.json");
        std::fs::write(folder.path().join("tokenizer.json"), file).unwrap();
        let needs = Needs {
            max_tokens,
            end_token: None,
            vocabulary: None,
            lower_case: false,
            family: Family::default(),
        };
        Tokenizer::load(folder.path(), needs, 2).unwrap()
    }

    async fn tokens(tokenizer: &Tokenizer, text: &str) -> Tokens {
        let deadline = Instant::now() + Duration::from_secs(60);
        tokenizer.tokenize(vec![text.to_owned()], Reading::default(), deadline).await.unwrap().remove(0)
    }

    #[test]
    fn a_panic_of_the_library_is_an_internal_error_of_the_request() {
        let text = "a\u{a3}";
        assert_eq!(contain(|| text[2..].len()), Err(EmbedError::Internal));
        assert_eq!(contain(|| text[1..].len()), Ok(2));
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
        let deadline = Instant::now() + Duration::from_millis(50);
        let result = tokenizer(64).tokenize(texts, Reading::default(), deadline).await;
        assert_eq!(result, Err(EmbedError::DeadlineExceeded));
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    }

    #[tokio::test]
    async fn a_long_prompt_is_not_multiplied_by_many_texts() {
        let deadline = Instant::now() + Duration::from_secs(60);
        let reading = |bytes: usize| Reading { prompt: " ".repeat(bytes), ..Reading::default() };
        let texts = vec!["a".to_owned(); 2048];
        let tokenizer = tokenizer(64);
        let refused = tokenizer.tokenize(texts.clone(), reading(8193), deadline).await;
        assert_eq!(refused, Err(EmbedError::PromptsTooLong { texts: 2048, limit_bytes: MOST_PROMPT_BYTES }));
        let tokens = tokenizer.tokenize(texts, reading(100), deadline).await.unwrap();
        assert!(tokens.iter().all(|tokens| tokens.ids == [1, 3, 2]));
    }

    #[tokio::test]
    async fn a_cut_never_falls_inside_a_character() {
        let tokens = tokens(&tokenizer(5), &"\u{1f600}".repeat(100_001)).await;
        assert_eq!(tokens.ids, [1, 0, 2]);
    }
}
