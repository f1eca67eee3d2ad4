//! What else of `tokenizer.json` the library trusts, and must not.

use serde_json::Value;
use tokenizers::{AddedToken, NormalizedString, Normalizer, NormalizerWrapper};

/// Most bytes of an entry of the vocabulary: every token of a text carries its entry along.
const LONGEST_ENTRY: usize = 1024;
/// Most characters of a word that WordPiece tries to divide: the work grows with the square.
const LONGEST_WORD: u64 = 1000;
/// Most bytes of a prefix or suffix of entries.
const LONGEST_AFFIX: usize = 64;

/// Refuses what makes the library panic. The error is one line for a person.
pub(super) fn check_pre_tokenizer(pre_tokenizer: &Value) -> Result<(), String> {
    if let Some(sequence) = pre_tokenizer["pretokenizers"].as_array() {
        return sequence.iter().try_for_each(check_pre_tokenizer);
    }
    if pre_tokenizer["type"] == "FixedLength" && pre_tokenizer["length"] == 0 {
        return Err("the `FixedLength` pre-tokenizer of `tokenizer.json` has `length` 0".to_owned());
    }
    Ok(())
}

/// Refuses what makes tokens random, the library panic, or a text take too much time or memory.
pub(super) fn check_model(model: &Value) -> Result<(), String> {
    let refusal =
        |key: &str, reason: &str| Err(format!("`{key}` of the `model` in `tokenizer.json` {reason}"));
    for key in ["continuing_subword_prefix", "end_of_word_suffix"] {
        if model[key].as_str().is_some_and(|affix| affix.len() > LONGEST_AFFIX) {
            return refusal(key, &format!("has more than {LONGEST_AFFIX} bytes"));
        }
    }
    if model["dropout"].as_f64().is_some_and(|dropout| dropout != 0.0) {
        return refusal(
            "dropout",
            &format!("is {}: the same text would get other tokens every time", model["dropout"]),
        );
    }
    if model["max_input_chars_per_word"].as_u64().is_some_and(|most| most > LONGEST_WORD) {
        return refusal("max_input_chars_per_word", &format!("is more than {LONGEST_WORD}"));
    }
    let mut entries = 0_usize;
    let mut longest = 0;
    each_entry(&model["vocab"], |entry| {
        entries += 1;
        longest = longest.max(entry.len());
    });
    if entries == 0 {
        return refusal("vocab", "is empty");
    }
    if longest > LONGEST_ENTRY {
        return refusal(
            "vocab",
            &format!("has an entry of {longest} bytes, at most {LONGEST_ENTRY} are allowed"),
        );
    }
    check_prefixes(model)?;
    check_unknown(model)
}

/// The token of what is not in the vocabulary must be there: without it, such a text has no tokens.
fn check_unknown(model: &Value) -> Result<(), String> {
    let unknown = &model["unk_token"];
    let is_known = match (&model["vocab"], unknown.as_str()) {
        (Value::Object(vocabulary), Some(unknown)) => vocabulary.contains_key(unknown),
        // BPE may do without one, and Unigram has `unk_id`.
        (Value::Object(_), None) => true,
        _ => !model["unk_id"].is_null(),
    };
    if is_known {
        return Ok(());
    }
    let (key, value) =
        if model["vocab"].is_object() { ("unk_token", unknown) } else { ("unk_id", &Value::Null) };
    Err(format!("`{key}` of the `model` in `tokenizer.json` is {value}, which is not in its `vocab`"))
}

/// The library cuts the prefix off the second part of every merge, whether it is there or not.
fn check_prefixes(model: &Value) -> Result<(), String> {
    let prefix = model["continuing_subword_prefix"].as_str().unwrap_or_default();
    let merges = model["merges"].as_array().filter(|_| !prefix.is_empty());
    let second = |merge: &'_ Value| match merge {
        Value::String(pair) => pair.split_once(' ').map(|(_, second)| second.to_owned()),
        pair => pair[1].as_str().map(str::to_owned),
    };
    match merges.into_iter().flatten().filter_map(second).find(|second| !second.starts_with(prefix)) {
        Some(second) => Err(format!(
            "a merge of the `model` in `tokenizer.json` appends {second:?}, which does not begin with its `continuing_subword_prefix`"
        )),
        None => Ok(()),
    }
}

fn each_entry(vocabulary: &Value, mut visit: impl FnMut(&str)) {
    match vocabulary {
        Value::Object(entries) => entries.keys().for_each(|entry| visit(entry)),
        Value::Array(entries) => entries.iter().filter_map(|entry| entry[0].as_str()).for_each(visit),
        _ => {}
    }
}

/// Refuses a token of which the normalizer leaves nothing: the library finds nothing everywhere, forever.
pub(super) fn check_added_tokens(
    tokens: &[AddedToken],
    normalizer: Option<&NormalizerWrapper>,
) -> Result<(), String> {
    for token in tokens.iter().filter(|token| token.normalized && !token.content.is_empty()) {
        let mut content = NormalizedString::from(token.content.as_str());
        if let Some(normalizer) = normalizer {
            normalizer
                .normalize(&mut content)
                .map_err(|error| format!("`tokenizer.json` cannot be used: {error}"))?;
        }
        if content.is_empty() {
            return Err(format!(
                "the normalizer of `tokenizer.json` leaves nothing of its added token {:?}, which has `normalized: true`",
                token.content
            ));
        }
    }
    Ok(())
}
