//! The special tokens before and after every text.

use tokenizers::{Encoding, Token, Tokenizer as HuggingFaceTokenizer};

use crate::model::EndToken;

/// Stands for a text; no tokenizer has that many tokens.
const PROBE: u32 = u32::MAX;

/// The special tokens around the tokens of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SpecialTokens {
    before: Vec<u32>,
    after: Vec<u32>,
}

impl SpecialTokens {
    /// Finds them by what the tokenizer's own template puts around a probe, and sees to it that a text ends with the end
    /// token where the model needs one: some conversions of models have lost it. The error is one line for a person.
    pub(super) fn find(
        tokenizer: &HuggingFaceTokenizer,
        end_token: Option<EndToken>,
    ) -> Result<Self, String> {
        let probe = Encoding::from_tokens(vec![Token::new(PROBE, String::new(), (0, 0))], 0);
        let encoding = tokenizer
            .post_process(probe, None, true)
            .map_err(|error| format!("the template of `tokenizer.json` cannot be used: {error}"))?;
        let mut parts = encoding.get_ids().split(|id| *id == PROBE);
        let (Some(before), Some(after), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err("the template of `tokenizer.json` does not hold a text exactly once".to_owned());
        };
        let mut special = Self { before: before.to_vec(), after: after.to_vec() };
        if let Some(end) = end_token {
            let id = find_end(tokenizer, end)?;
            if special.after.last() != Some(&id) {
                tracing::info!(
                    token_id = id,
                    "the tokenizer does not append the end token: the gateway does"
                );
                special.after.push(id);
            }
        }
        Ok(special)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = u32> {
        self.before.iter().chain(&self.after).copied()
    }

    pub(super) fn len(&self) -> usize {
        self.before.len() + self.after.len()
    }

    /// Puts them around the tokens of a text, which come in pieces.
    pub(super) fn surround(&self, pieces: [&[u32]; 2]) -> Vec<u32> {
        let [first, second] = pieces;
        [&self.before, first, second, &self.after].concat()
    }
}

fn find_end(tokenizer: &HuggingFaceTokenizer, end: EndToken) -> Result<u32, String> {
    let by_config = end.id.filter(|id| tokenizer.id_to_token(*id).is_some());
    tokenizer.token_to_id(end.name).or(by_config).ok_or_else(|| {
        format!(
            "its texts must end with a token that was not found: `tokenizer.json` has no `{}`, and `config.json` no `eos_token_id` that is in `tokenizer.json`",
            end.name
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A word-level tokenizer; the template is what is tested.
    fn tokenizer(words: &[&str], template: &serde_json::Value) -> HuggingFaceTokenizer {
        let vocabulary: serde_json::Map<_, _> =
            words.iter().enumerate().map(|(id, word)| ((*word).to_owned(), id.into())).collect();
        let json = serde_json::json!({
            "version": "1.0", "added_tokens": [], "normalizer": null, "decoder": null,
            "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": template,
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": words[0]},
        });
        json.to_string().parse().unwrap()
    }

    fn ends_with(word: &str, id: u32) -> serde_json::Value {
        serde_json::json!({
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": word, "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {word: {"id": word, "ids": [id], "tokens": [word]}},
        })
    }

    fn after(tokenizer: &HuggingFaceTokenizer, id: Option<u32>) -> Result<Vec<u32>, String> {
        let end = EndToken { name: "<|endoftext|>", id };
        SpecialTokens::find(tokenizer, Some(end)).map(|special| special.after)
    }

    #[test]
    fn an_end_token_that_the_template_lacks_is_appended_once() {
        let words = ["?", "a", "<|endoftext|>", "<|im_end|>"];
        let none = serde_json::Value::Null;
        assert_eq!(after(&tokenizer(&words, &none), None), Ok(vec![2]));
        assert_eq!(after(&tokenizer(&words, &ends_with("<|endoftext|>", 2)), None), Ok(vec![2]));
        assert_eq!(after(&tokenizer(&words, &ends_with("<|im_end|>", 3)), Some(3)), Ok(vec![3, 2]));
    }

    #[test]
    fn the_end_token_is_that_of_the_configuration_where_the_tokenizer_has_none_of_that_name() {
        let plain = tokenizer(&["?", "a", "</s>"], &serde_json::Value::Null);
        assert_eq!(after(&plain, Some(2)), Ok(vec![2]));
        for unknown in [None, Some(3)] {
            assert!(after(&plain, unknown).unwrap_err().contains("`<|endoftext|>`"), "{unknown:?}");
        }
    }

    #[test]
    fn what_stands_around_a_text_is_found() {
        let file = include_str!("../../tests/data/fake_model/tokenizer.json");
        let mut bert: HuggingFaceTokenizer = file.parse().unwrap();
        bert.with_truncation(None).unwrap().with_padding(None);
        let special = SpecialTokens::find(&bert, None).unwrap();
        assert_eq!((special.len(), special.surround([&[7], &[8, 9]])), (2, vec![1, 7, 8, 9, 2]));
        let none = SpecialTokens::find(&tokenizer(&["?"], &serde_json::Value::Null), None).unwrap();
        assert_eq!((none.len(), none.surround([&[], &[8]])), (0, vec![8]));
    }
}
