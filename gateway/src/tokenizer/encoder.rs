//! One text to tokens: as much of it as is looked at, and as much as stays.
//!
//! Of a very long text only a *window* is encoded: its beginning, or its end where the beginning is cut off. A window
//! grows until it is certain to contain every token that stays, up to a bound; anything beyond counts as cut off.

use std::borrow::Cow;

use tokenizers::{Encoding, Tokenizer as HuggingFaceTokenizer};

use super::special::SpecialTokens;
use super::vocabulary;
use super::{Needs, Tokens, TruncationDirection};

/// First guess of how many bytes the longest allowed text has, per token.
const BYTES_PER_TOKEN: usize = 16;
/// Of a text, no more bytes than this per allowed token are looked at, and at least [`FEWEST_LOOKED_AT_BYTES`]: a text
/// without spaces has few tokens and takes a second per megabyte.
const MOST_BYTES_PER_TOKEN: usize = 64;
const FEWEST_LOOKED_AT_BYTES: usize = 64 * 1024;
/// A cut text must give this many tokens beyond the limit, so that the cut cannot have changed the others:
/// a word of BERT's is never longer than 100 characters.
pub(super) const SPARE_TOKENS: usize = 128;
/// As much of a text as is certain to decide which tokens are those of the prompt before it.
const BEHIND_PROMPT_BYTES: usize = SPARE_TOKENS * BYTES_PER_TOKEN;
/// A window over the end of a text begins with a word, where one begins within this many bytes: tokenizers that divide long
/// runs of letters or digits do it from the run's beginning.
const WORD_SEARCH_BYTES: usize = 256;

/// The model's tokenizer, with the special tokens around a text and the limit of their number together.
#[derive(Debug)]
pub(super) struct Encoder {
    pub(super) tokenizer: HuggingFaceTokenizer,
    pub(super) special: SpecialTokens,
    pub(super) max_tokens: usize,
    /// The model's number of tokens, where the tokenizer has an entry beyond them.
    pub(super) known_tokens: Option<usize>,
}

/// What was seen of a text.
struct Seen {
    encoding: Encoding,
    is_whole: bool,
}

impl Encoder {
    /// The error is one line for a person.
    pub(super) fn new(tokenizer: HuggingFaceTokenizer, needs: &Needs) -> Result<Self, String> {
        let max_tokens = needs.max_tokens;
        let special = SpecialTokens::find(&tokenizer, needs.end_token)?;
        if special.len() >= max_tokens {
            return Err(format!(
                "the length limit of {max_tokens} tokens leaves no room next to {} special tokens",
                special.len()
            ));
        }
        let known_tokens = match needs.vocabulary {
            Some(vocabulary) => vocabulary::known_tokens(&tokenizer, &special, vocabulary)?,
            None => None,
        };
        Ok(Self { tokenizer, special, max_tokens, known_tokens })
    }

    /// Whether the model has a vector for each of the tokens.
    pub(super) fn knows(&self, ids: &[u32]) -> bool {
        self.known_tokens.is_none_or(|known| ids.iter().all(|id| (*id as usize) < known))
    }

    /// Tokens that are looked for before everything else, in the order of their ids.
    pub(super) fn added_tokens(&self) -> Vec<String> {
        let mut tokens: Vec<_> = self.tokenizer.get_added_tokens_decoder().into_iter().collect();
        tokens.sort_unstable_by_key(|(id, _)| *id);
        tokens.into_iter().map(|(_, token)| token.content).collect()
    }

    /// Tokens of a prompt and the special ones, and whether all of it was counted, if that leaves no room for a text.
    pub(super) fn prompt_without_room(&self, prompt: &str) -> tokenizers::Result<Option<(usize, bool)>> {
        let Seen { encoding, is_whole } = self.encode_enough(prompt, |bytes| beginning("", prompt, bytes))?;
        let is_too_long = encoding.len() >= self.room() || !is_whole;
        Ok(is_too_long.then(|| (encoding.len() + self.special.len(), is_whole)))
    }

    /// Tokenizes a prompt, which may be empty, and a text as one string.
    pub(super) fn tokenize(
        &self,
        prompt: &str,
        text: &str,
        direction: TruncationDirection,
    ) -> tokenizers::Result<Tokens> {
        match direction {
            TruncationDirection::Right => {
                let seen = self.encode_enough(text, |bytes| beginning(prompt, text, bytes))?;
                let ids = seen.encoding.get_ids();
                let stay = &ids[..ids.len().min(self.room())];
                Ok(self.finish([stay, &[]], ids.len(), seen.is_whole))
            }
            TruncationDirection::Left if prompt.is_empty() => {
                let seen = self.encode_enough(text, |bytes| end(text, bytes).into())?;
                let ids = seen.encoding.get_ids();
                Ok(self.finish([last(ids, self.room()), &[]], ids.len(), seen.is_whole))
            }
            TruncationDirection::Left => self.tokenize_keeping_prompt(prompt, text),
        }
    }

    /// Cuts the beginning of the text, but nothing of the prompt before it.
    fn tokenize_keeping_prompt(&self, prompt: &str, text: &str) -> tokenizers::Result<Tokens> {
        let room = self.room();
        let seen = self.encode_enough(text, |bytes| {
            if bytes < text.len() { end(text, bytes).into() } else { beginning(prompt, text, bytes) }
        })?;
        let ids = seen.encoding.get_ids();
        if seen.is_whole && ids.len() <= room {
            return Ok(self.finish([ids, &[]], ids.len(), true));
        }
        let bytes = if seen.is_whole { text.len() } else { BEHIND_PROMPT_BYTES };
        let with_offsets = self.tokenizer.encode(&*beginning(prompt, text, bytes), false)?;
        // A token that is of both belongs to the prompt, which stays whole.
        let is_prompt = |(start, _end): &&(usize, usize)| *start < prompt.len();
        let prompt_tokens = with_offsets.get_offsets().iter().take_while(is_prompt).count();
        let (of_prompt, after_prompt) = with_offsets.get_ids().split_at(prompt_tokens);
        let of_text = if seen.is_whole { after_prompt } else { ids };
        let kept = &of_prompt[..prompt_tokens.min(room)];
        let pieces = [kept, last(of_text, room - kept.len())];
        Ok(self.finish(pieces, prompt_tokens + of_text.len(), seen.is_whole))
    }

    /// Most tokens apart from the special ones.
    fn room(&self) -> usize {
        self.max_tokens - self.special.len()
    }

    /// Encodes ever larger windows of a text until there are more tokens than can stay.
    fn encode_enough<'a>(
        &self,
        text: &str,
        window: impl Fn(usize) -> Cow<'a, str>,
    ) -> tokenizers::Result<Seen> {
        let most_bytes = (self.max_tokens * MOST_BYTES_PER_TOKEN).max(FEWEST_LOOKED_AT_BYTES);
        let mut window_bytes = ((self.max_tokens + SPARE_TOKENS) * BYTES_PER_TOKEN).min(most_bytes);
        loop {
            let encoding = self.tokenizer.encode_fast(&*window(window_bytes), false)?;
            let is_whole = window_bytes >= text.len();
            let is_enough = encoding.len() > self.room() + SPARE_TOKENS || window_bytes == most_bytes;
            if is_whole || is_enough {
                return Ok(Seen { encoding, is_whole });
            }
            window_bytes = (window_bytes * 4).min(most_bytes);
        }
    }

    fn finish(&self, pieces: [&[u32]; 2], tokens: usize, is_counted: bool) -> Tokens {
        Tokens {
            ids: self.special.surround(pieces),
            truncated: tokens > self.room() || !is_counted,
            text_tokens: tokens + self.special.len(),
            is_counted,
        }
    }
}

/// A prompt and the first bytes of a text, or a few fewer where a character would be divided.
fn beginning<'a>(prompt: &'a str, text: &'a str, bytes: usize) -> Cow<'a, str> {
    let text = &text[..text.floor_char_boundary(bytes)];
    if prompt.is_empty() { text.into() } else { [prompt, text].concat().into() }
}

/// The last bytes of a text, or a few fewer where a character or a word would be divided.
fn end(text: &str, bytes: usize) -> &str {
    let end = &text[text.ceil_char_boundary(text.len().saturating_sub(bytes))..];
    if end.len() == text.len() {
        return text;
    }
    // A space between two words: in every kind of tokenizer it goes with the second one.
    let nearby = end.as_bytes().windows(3).take(WORD_SEARCH_BYTES);
    let is_space =
        |bytes: &[u8]| bytes[1] == b' ' && !bytes[0].is_ascii_whitespace() && !bytes[2].is_ascii_whitespace();
    nearby.enumerate().find(|(_, bytes)| is_space(bytes)).map_or(end, |(index, _)| &end[index + 1..])
}

fn last(ids: &[u32], count: usize) -> &[u32] {
    &ids[ids.len().saturating_sub(count)..]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::EndToken;

    const BERT_LIKE: &str = include_str!("../../tests/data/fake_model/tokenizer.json");
    const QWEN3_LIKE: &str = include_str!("../../../sidecar-py/tests/golden/tiny-qwen3/tokenizer.json");
    const BOTH: [TruncationDirection; 2] = [TruncationDirection::Right, TruncationDirection::Left];

    fn encoder(file: &str, max_tokens: usize) -> Encoder {
        let mut tokenizer: HuggingFaceTokenizer = file.parse().unwrap();
        tokenizer.with_truncation(None).unwrap().with_padding(None);
        let special = SpecialTokens::find(&tokenizer, None).unwrap();
        Encoder { tokenizer, special, max_tokens, known_tokens: None }
    }

    fn ids(encoder: &Encoder, prompt: &str, text: &str, direction: TruncationDirection) -> Vec<u32> {
        encoder.tokenize(prompt, text, direction).unwrap().ids
    }

    /// The definition, without windows: everything is encoded, then cut.
    fn whole(encoder: &Encoder, prompt: &str, text: &str, direction: TruncationDirection) -> Vec<u32> {
        let encoding = encoder.tokenizer.encode(format!("{prompt}{text}"), false).unwrap();
        let (all, room) = (encoding.get_ids(), encoder.room());
        let of_prompt = encoding.get_offsets().iter().filter(|(start, _)| *start < prompt.len()).count();
        let pieces = match direction {
            _ if all.len() <= room => [all, &[]],
            TruncationDirection::Right => [&all[..room], &[]],
            TruncationDirection::Left => [&all[..of_prompt], last(&all[of_prompt..], room - of_prompt)],
        };
        encoder.special.surround(pieces)
    }

    #[test]
    fn the_beginning_or_the_end_is_cut_and_the_special_tokens_stay() {
        let encoder = encoder(BERT_LIKE, 5);
        let tokens = |direction| encoder.tokenize("", "a b c d", direction).unwrap();
        assert_eq!(tokens(TruncationDirection::Right).ids, [1, 3, 4, 5, 2]);
        assert_eq!(tokens(TruncationDirection::Left).ids, [1, 4, 5, 6, 2]);
        for direction in BOTH {
            assert_eq!((tokens(direction).truncated, tokens(direction).text_tokens), (true, 6));
            assert_eq!(ids(&encoder, "", "a b c", direction), [1, 3, 4, 5, 2]);
        }
    }

    #[test]
    fn a_prompt_stays_whole_when_the_beginning_of_the_text_is_cut() {
        let encoder = encoder(BERT_LIKE, 6);
        assert_eq!(ids(&encoder, "x y ", "a b c d", TruncationDirection::Left), [1, 26, 27, 5, 6, 2]);
        assert_eq!(ids(&encoder, "x y ", "a b c d", TruncationDirection::Right), [1, 26, 27, 3, 4, 2]);
        let tokens = encoder.tokenize("x y ", "a b", TruncationDirection::Left).unwrap();
        assert_eq!((tokens.ids.as_slice(), tokens.truncated), (&[1, 26, 27, 3, 4, 2][..], false));
    }

    #[test]
    fn a_prompt_and_its_text_are_one_string() {
        let encoder = encoder(BERT_LIKE, 6);
        // No space between them makes one word of two.
        for direction in BOTH {
            assert_eq!(
                ids(&encoder, "x y", "a b c d", direction),
                [1, 26, 0, 4, 5, 2].map(|id| {
                    // Cut on the left, the word of both is the prompt's.
                    match (direction, id) {
                        (TruncationDirection::Left, 4) => 5,
                        (TruncationDirection::Left, 5) => 6,
                        _ => id,
                    }
                })
            );
        }
    }

    #[test]
    fn a_prompt_without_room_behind_it_is_noticed() {
        let encoder = encoder(BERT_LIKE, 5);
        let prompt_without_room = |prompt: &str| encoder.prompt_without_room(prompt).unwrap();
        assert_eq!(prompt_without_room("a b "), None);
        assert_eq!(prompt_without_room("a b c "), Some((5, true)));
        assert_eq!(prompt_without_room(&"a ".repeat(100)), Some((102, true)));
        assert_eq!(prompt_without_room(&"a ".repeat(2000)), Some((1066, false)));
        let huge = prompt_without_room(&" ".repeat(16_000_000));
        assert_eq!(huge, Some((2, false)));
    }

    #[test]
    fn a_text_that_holds_the_end_token_still_ends_with_one_of_its_own() {
        let without_template = {
            let mut json: serde_json::Value = QWEN3_LIKE.parse().unwrap();
            json["post_processor"] = serde_json::Value::Null;
            json.to_string()
        };
        let mut bare = encoder(&without_template, 16);
        assert_eq!(bare.special.len(), 0);
        let end = EndToken { name: "<|endoftext|>", id: None };
        bare.special = SpecialTokens::find(&bare.tokenizer, Some(end)).unwrap();
        let complete = encoder(QWEN3_LIKE, 16);
        let long = "word ".repeat(40);
        for text in ["a", "<|endoftext|>", "a<|endoftext|>", "<|endoftext|>a", long.as_str()] {
            for direction in BOTH {
                let tokens = ids(&bare, "", text, direction);
                assert_eq!(tokens, ids(&complete, "", text, direction), "{text}");
                assert!(tokens.last() == Some(&2044) && tokens.len() <= 16, "{text}: {tokens:?}");
            }
        }
        assert_eq!(ids(&bare, "", "<|endoftext|>", BOTH[0]), [2044, 2044]);
    }

    #[test]
    fn texts_and_prompts_of_a_qwen3_have_the_token_ids_of_the_reference() {
        let golden = include_str!("../../../sidecar-py/tests/golden/tiny-qwen3/golden.json");
        let golden: serde_json::Value = golden.parse().unwrap();
        let encoder = encoder(QWEN3_LIKE, 2048);
        for case in golden["cases"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            // Wherever the line of the query ends, prompt and text are one string.
            let (prompt, query) = text.split_at(text.find("Query:").map_or(0, |start| start + 6));
            for direction in BOTH {
                let tokens = serde_json::json!(ids(&encoder, prompt, query, direction));
                assert_eq!(tokens, case["token_ids"], "{text}");
            }
        }
    }

    #[test]
    fn the_end_of_a_huge_text_is_found_without_encoding_all_of_it() {
        let encoder = encoder(BERT_LIKE, 64);
        let huge = format!("{}c d", "a b ".repeat(4_000_000));
        for prompt in ["", "x "] {
            let started = std::time::Instant::now();
            let tokens = encoder.tokenize(prompt, &huge, TruncationDirection::Left).unwrap();
            assert!(started.elapsed() < std::time::Duration::from_secs(2), "{:?}", started.elapsed());
            assert!(tokens.truncated && !tokens.is_counted);
            let short = format!("{}c d", "a b ".repeat(100));
            assert_eq!(tokens.ids, ids(&encoder, prompt, &short, TruncationDirection::Left));
        }
        for without_spaces in ["a", "\u{1f600}", " "] {
            let text = without_spaces.repeat(16_000_000 / without_spaces.len() + 1);
            for prompt in ["", "x "] {
                assert!(encoder.tokenize(prompt, &text, TruncationDirection::Left).unwrap().truncated);
            }
        }
    }

    #[test]
    fn spaces_do_not_hide_the_words_before_them() {
        let encoder = encoder(BERT_LIKE, 64);
        let text = format!("a b{}", " ".repeat(60_000));
        for prompt in ["", "x "] {
            let tokens = encoder.tokenize(prompt, &text, TruncationDirection::Left).unwrap();
            assert_eq!((tokens.truncated, tokens.text_tokens), (false, 4 + prompt.len() / 2));
        }
    }

    /// Words as people write them, and a few that are not.
    fn words() -> impl Strategy<Value = String> {
        let word = prop_oneof![
            8 => "[a-z]{1,9}",
            1 => "[A-Z][a-z]{1,12}[,.!?]\n?",
            1 => "[0-9]{1,12}",
            1 => "[\u{e0}-\u{ff}\u{4e00}-\u{4e80}]{1,5}",
            1 => Just("<|endoftext|>".to_owned()),
        ];
        proptest::collection::vec(word, 1..700).prop_map(|words| words.join(" "))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_a_window_gives_is_what_the_whole_text_gives(
            text in words(),
            prompt in prop_oneof![Just(""), Just("query: "), Just("Instruct: Find it\nQuery:"), Just("e")],
            max_tokens in 32_usize..64,
            qwen3 in any::<bool>(),
        ) {
            // The first window is of some 3,000 bytes, the longest text of some 5,000.
            let encoder = encoder(if qwen3 { QWEN3_LIKE } else { BERT_LIKE }, max_tokens);
            for direction in BOTH {
                let tokens = encoder.tokenize(prompt, &text, direction).unwrap();
                prop_assert_eq!(&tokens.ids, &whole(&encoder, prompt, &text, direction));
                prop_assert!(tokens.ids.len() <= max_tokens);
                prop_assert_eq!(tokens.truncated, tokens.text_tokens > max_tokens);
            }
        }

        #[test]
        fn special_tokens_stay_at_both_ends(words in 0_usize..3000, prompt in "[a-z ]{0,12}", max_tokens in 16_usize..80) {
            let encoder = encoder(BERT_LIKE, max_tokens);
            for direction in BOTH {
                let ids = ids(&encoder, &prompt, &"a ".repeat(words), direction);
                prop_assert!(ids.len() <= max_tokens && ids.len() >= 2);
                prop_assert_eq!((ids[0], ids[ids.len() - 1]), (1, 2));
                prop_assert!(!ids[1..ids.len() - 1].iter().any(|id| *id == 1 || *id == 2));
            }
        }
    }
}
