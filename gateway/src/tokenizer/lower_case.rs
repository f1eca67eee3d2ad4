//! Lower-casing all texts, because the model's `sentence_bert_config.json` asks for it.

use serde_json::{Value, json};

/// Puts it before all that the normalizer of `tokenizer.json` does, unless it lower-cases texts anyway. As in the reference, special
/// tokens are found as they are written.
pub(super) fn put_first(normalizer: &mut Value) {
    let own = match normalizer.take() {
        Value::Null => Vec::new(),
        Value::Object(mut sequence) if sequence.get("type") == Some(&json!("Sequence")) => {
            match sequence.remove("normalizers") {
                Some(Value::Array(own)) => own,
                // Whatever it is, it is judged where it is built.
                other => other.into_iter().collect(),
            }
        }
        own => vec![own],
    };
    let does_it = own.iter().any(|part| part["type"] == "Lowercase");
    let first = (!does_it).then(|| json!({"type": "Lowercase"}));
    let all: Vec<Value> = first.into_iter().chain(own).collect();
    *normalizer = json!({"type": "Sequence", "normalizers": all});
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(mut normalizer: Value, text: &str) -> Vec<u32> {
        put_first(&mut normalizer);
        let added = json!({"id": 3, "content": "[X]", "special": true, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false});
        let file = json!({
            "version": "1.0",
            "added_tokens": [added],
            "normalizer": normalizer,
            "pre_tokenizer": {"type": "Whitespace"},
            "model": {"type": "WordLevel", "unk_token": "?", "vocab": {"?": 0, "é": 1, "e": 2, "[X]": 3}},
        });
        let tokenizer: tokenizers::Tokenizer = file.to_string().parse().unwrap();
        tokenizer.encode(text, false).unwrap().get_ids().to_vec()
    }

    #[test]
    fn texts_are_lower_cased_before_what_the_tokenizer_does_and_special_tokens_are_not() {
        let lower = json!({"type": "Lowercase"});
        let replace = json!({"type": "Replace", "pattern": {"String": "É"}, "content": "e"});
        assert_eq!(ids(Value::Null, "É [X] E"), [1, 3, 2]);
        assert_eq!(ids(replace.clone(), "É"), [1]);
        assert_eq!(ids(lower.clone(), "É"), [1]);
        // Lower-cased, but later: the order stays.
        assert_eq!(ids(json!({"type": "Sequence", "normalizers": [replace, lower]}), "É"), [2]);
        assert_eq!(ids(json!({"type": "Sequence", "normalizers": [replace]}), "É"), [1]);
    }
}
