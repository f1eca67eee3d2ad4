//! `tokenizer.json`, read part by part, so that each can be judged before the library sees it.
//!
//! The library trusts the file: some parts make it panic, and others make it take memory without end, at the start or
//! with the first text that meets them.

use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokenizers::models::bpe::BPE;
use tokenizers::models::unigram::Unigram;
use tokenizers::models::wordlevel::WordLevel;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::{
    AddedToken, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
    Tokenizer as HuggingFaceTokenizer,
};

use super::{TruncationDirection, checks, normalizers};

/// `tokenizer.json`, without what tokens of a text do not depend on: padding, and how tokens become text again.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct TokenizerFile {
    version: Option<String>,
    pub(super) truncation: Option<Truncation>,
    #[serde(default)]
    pub(super) added_tokens: Vec<ListedToken>,
    #[serde(default)]
    pub(super) normalizer: Value,
    #[serde(default)]
    pub(super) pre_tokenizer: Value,
    #[serde(default)]
    pub(super) post_processor: Value,
    pub(super) model: Value,
}

/// What the file says of texts that are too long; all but the direction is the gateway's own.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Truncation {
    pub(super) direction: Option<String>,
}

/// A token that is looked for before everything else.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct ListedToken {
    pub(super) id: u32,
    #[serde(flatten)]
    pub(super) token: AddedToken,
}

impl TokenizerFile {
    /// Reads it from a model's directory. The error is one line for a person.
    pub(super) fn read(model: &Path) -> Result<Self, String> {
        let bytes = std::fs::read(model.join("tokenizer.json"))
            .map_err(|error| format!("`tokenizer.json` cannot be read: {error}"))?;
        let file: Self = serde_json::from_slice(&bytes).map_err(|error| invalid(&error))?;
        match &file.version {
            Some(version) if version != "1.0" => {
                Err(format!("`tokenizer.json` has `version` {version:?}, not \"1.0\""))
            }
            _ => Ok(file),
        }
    }

    /// Where it has texts cut, if it has them cut.
    pub(super) fn truncation_side(&self) -> Result<Option<TruncationDirection>, String> {
        match self.truncation.as_ref().and_then(|truncation| truncation.direction.as_deref()) {
            None => Ok(None),
            Some("Left") => Ok(Some(TruncationDirection::Left)),
            Some("Right") => Ok(Some(TruncationDirection::Right)),
            Some(other) => Err(format!("`direction` of `truncation` in `tokenizer.json` is {other:?}")),
        }
    }

    /// Puts the parts together, once each of them is known to do no harm.
    pub(super) fn build(self) -> Result<HuggingFaceTokenizer, String> {
        normalizers::check(&self.normalizer)?;
        checks::check_pre_tokenizer(&self.pre_tokenizer)?;
        checks::check_model(&self.model)?;
        let unusable = |error: tokenizers::Error| invalid(&*error);
        let mut tokenizer = HuggingFaceTokenizer::new(read_model(self.model)?);
        // Before the added tokens, which it changes.
        tokenizer.with_normalizer(part::<NormalizerWrapper>(self.normalizer)?).map_err(unusable)?;
        tokenizer.with_pre_tokenizer(part::<PreTokenizerWrapper>(self.pre_tokenizer)?);
        tokenizer.with_post_processor(part::<PostProcessorWrapper>(self.post_processor)?);
        let tokens: Vec<AddedToken> = self.added_tokens.into_iter().map(|listed| listed.token).collect();
        checks::check_added_tokens(&tokens, tokenizer.get_normalizer())?;
        tokenizer.add_tokens(tokens).map_err(unusable)?;
        Ok(tokenizer)
    }
}

fn read_model(mut model: Value) -> Result<ModelWrapper, String> {
    // The library reads the kind from borrowed text only, and then it needs none.
    let kind = model.as_object_mut().and_then(|model| model.remove("type"));
    Ok(match kind.as_ref().and_then(Value::as_str) {
        Some("BPE") => parse::<BPE>(model)?.into(),
        Some("WordPiece") => parse::<WordPiece>(model)?.into(),
        Some("WordLevel") => parse::<WordLevel>(model)?.into(),
        Some("Unigram") => parse::<Unigram>(model)?.into(),
        _ => parse(model)?,
    })
}

fn part<T: DeserializeOwned>(value: Value) -> Result<Option<T>, String> {
    if value.is_null() { Ok(None) } else { parse(value).map(Some) }
}

fn parse<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| invalid(&error))
}

fn invalid(error: &(impl std::fmt::Display + ?Sized)) -> String {
    format!("`tokenizer.json` cannot be used: {error}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{Family, Needs, Tokenizer};
    use super::*;

    const FAKE: &str = include_str!("../../tests/data/fake_model/tokenizer.json");

    /// Loads the fake model's tokenizer with other parts.
    fn load(parts: &Value) -> Result<Tokenizer, String> {
        let mut file: Value = FAKE.parse().unwrap();
        for (key, value) in parts.as_object().unwrap() {
            file[key] = value.clone();
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
        let needs = Needs {
            max_tokens: 64,
            end_token: None,
            vocabulary: Some(64),
            lower_case: false,
            family: Family::default(),
        };
        Tokenizer::load(folder.path(), needs, 2)
    }

    fn added(contents: &[&str]) -> Value {
        let token = |(index, content): (usize, &&str)| {
            json!({"id": 29 + index, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": true, "special": false})
        };
        contents.iter().enumerate().map(token).collect()
    }

    fn words(model: &Value) -> Value {
        let mut words = FAKE.parse::<Value>().unwrap()["model"].take();
        for (key, value) in model.as_object().unwrap() {
            words[key] = value.clone();
        }
        words
    }

    #[test]
    fn a_file_that_could_panic_or_never_end_is_refused_with_the_reason() {
        let bert = json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true});
        let replace = |pattern: Value, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
        let charsmap = |map: Value| json!({"type": "Precompiled", "precompiled_charsmap": map});
        let special = json!([{"SpecialToken": {"id": "[GONE]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]);
        for (parts, part) in [
            (
                json!({"normalizer": bert, "added_tokens": added(&["\u{200c}"])}),
                "\u{200c}".escape_debug().to_string(),
            ),
            (
                json!({"normalizer": bert, "added_tokens": added(&["\u{200c}", "\u{200d}", "\u{200e}", "\u{200f}", "\u{2060}"])}),
                "leaves nothing".to_owned(),
            ),
            (
                json!({"normalizer": {"type": "Sequence", "normalizers": [bert]}, "added_tokens": added(&["\u{301}"])}),
                "leaves nothing".to_owned(),
            ),
            (
                json!({"normalizer": {"type": "Strip", "strip_left": true, "strip_right": true}, "added_tokens": added(&["  "])}),
                "leaves nothing".to_owned(),
            ),
            (json!({"normalizer": replace(json!({"String": ""}), "x")}), "`Replace`".to_owned()),
            (json!({"normalizer": replace(json!({"Regex": "x*"}), "y")}), "x*".to_owned()),
            (json!({"normalizer": replace(json!({"Regex": "\\b"}), "y")}), "\\b".escape_debug().to_string()),
            (json!({"normalizer": replace(json!({"Regex": "(?=q)"}), "")}), "(?=q)".to_owned()),
            (json!({"normalizer": replace(json!({"Regex": "("}), "")}), "`pattern`".to_owned()),
            (
                json!({"normalizer": replace(json!({"String": "a"}), &"b".repeat(100_000))}),
                "100000 bytes".to_owned(),
            ),
            (
                json!({"normalizer": {"type": "Sequence", "normalizers": vec![replace(json!({"String": "a"}), "aa"); 40]}}),
                "`Replace`".to_owned(),
            ),
            (
                json!({"normalizer": {"type": "Prepend", "prepend": "b".repeat(100_000)}}),
                "`Prepend`".to_owned(),
            ),
            (json!({"normalizer": charsmap(Value::Null)}), "is null".to_owned()),
            (json!({"normalizer": {"type": "Precompiled"}}), "is null".to_owned()),
            (json!({"normalizer": charsmap(json!(""))}), "is cut off".to_owned()),
            (json!({"normalizer": charsmap(json!("AAAAAA=="))}), "is empty".to_owned()),
            (json!({"normalizer": charsmap(json!("////////"))}), "is cut off".to_owned()),
            (json!({"normalizer": charsmap(json!("BAAAAP////8="))}), "points outside".to_owned()),
            (json!({"normalizer": charsmap(json!("no base64"))}), "is not base64".to_owned()),
            (
                json!({"normalizer": {"type": "Sequence", "normalizers": [charsmap(json!("AAAA"))]}}),
                "is cut off".to_owned(),
            ),
            (json!({"pre_tokenizer": {"type": "FixedLength", "length": 0}}), "`FixedLength`".to_owned()),
            (json!({"pre_tokenizer": {"type": "Nonsense"}}), "`tokenizer.json`".to_owned()),
            (
                json!({"post_processor": {"type": "TemplateProcessing", "single": special, "pair": special, "special_tokens": {}}}),
                "panic".to_owned(),
            ),
            (
                json!({"post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "B", "type_id": 0}}], "pair": special, "special_tokens": {}}}),
                "panic".to_owned(),
            ),
            (json!({"model": words(&json!({"vocab": {}}))}), "`vocab`".to_owned()),
            (json!({"model": words(&json!({"unk_token": "[GONE]"}))}), "[GONE]".to_owned()),
            (
                json!({"model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}}),
                "[UNK]".to_owned(),
            ),
            (
                json!({"model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a", "continuing_subword_prefix": "##", "max_input_chars_per_word": 1_000_000}}),
                "`max_input_chars_per_word`".to_owned(),
            ),
            (
                json!({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]], "dropout": 0.5}}),
                "`dropout`".to_owned(),
            ),
            (
                json!({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]}}),
                "panic".to_owned(),
            ),
            (
                json!({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]], "continuing_subword_prefix": "####"}}),
                "continuing_subword_prefix".to_owned(),
            ),
            (json!({"model": {"type": "Unigram", "vocab": [], "unk_id": 0}}), "`vocab`".to_owned()),
            (
                json!({"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 7}}),
                "`tokenizer.json`".to_owned(),
            ),
            (
                json!({"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": null}}),
                "`unk_id`".to_owned(),
            ),
            (
                json!({"model": {"type": "Unigram", "vocab": [["a".repeat(100_000), 0.0]], "unk_id": 0}}),
                "100000 bytes".to_owned(),
            ),
            (json!({"version": "9"}), "`version`".to_owned()),
        ] {
            let line = load(&parts).unwrap_err();
            assert!(line.contains(&part), "{part} is not in {line}");
        }
    }
}
