//! A `tokenizer.json` that the tokenizer library must not be given, and texts that it makes nothing of.

use serde_json::{Value, json};

use crate::model_files::refusal;
use crate::support::Gateway;

const FAKE: &str = include_str!("../data/fake_model/tokenizer.json");

/// The fake model's tokenizer with other parts.
fn tokenizer(parts: &Value) -> (&'static str, Value) {
    let mut file: Value = FAKE.parse().unwrap();
    for (key, value) in parts.as_object().unwrap() {
        file[key] = value.clone();
    }
    ("tokenizer.json", file)
}

fn added(contents: &[&str]) -> Value {
    let token = |(index, content): (usize, &&str)| {
        json!({"id": 29 + index, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": true, "special": false})
    };
    contents.iter().enumerate().map(token).collect()
}

#[test]
fn a_tokenizer_that_could_panic_or_never_end_is_refused_with_the_reason() {
    let bert = json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                      "strip_accents": null, "lowercase": true});
    let special =
        json!([{"SpecialToken": {"id": "[GONE]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]);
    let template =
        json!({"type": "TemplateProcessing", "single": special, "pair": special, "special_tokens": {}});
    for (parts, part) in [
        (
            json!({"normalizer": bert, "added_tokens": added(&["\u{200c}", "\u{200d}", "\u{200e}", "\u{200f}", "\u{2060}"])}),
            "leaves nothing",
        ),
        (json!({"normalizer": {"type": "Replace", "pattern": {"Regex": "x*"}, "content": "y"}}), "x*"),
        (json!({"normalizer": {"type": "Precompiled", "precompiled_charsmap": null}}), "is null"),
        (json!({"post_processor": template}), "panic"),
    ] {
        let line = refusal(&[tokenizer(&parts)]);
        assert!(line.contains(part), "{part} is not in {line}");
    }
}

#[test]
fn a_text_of_which_nothing_is_left_is_refused_with_its_index_and_reaches_no_worker() {
    let bare = tokenizer(&json!({"post_processor": null}));
    let gateway = Gateway::on_model(&[bare], &json!({}), &["--workers", "1"]);
    assert_eq!(gateway.embed(&["a"]).status, 200);
    for _ in 0..5 {
        let answer = gateway.embed(&["a", "b", " "]);
        assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (400, Some("empty_input")));
        let message = answer.json()["error"]["message"].to_string();
        assert!(message.contains("text 2"), "{message}");
    }
    assert_eq!(gateway.embed(&["a"]).status, 200);
    assert_eq!(gateway.health()["workers"][0]["restarts"], 0);
}

#[test]
fn a_token_beyond_the_vocabulary_is_refused_at_the_start_or_with_the_text_that_has_it() {
    let config = |vocabulary: usize| {
        let config = json!({"model_type": "bert", "hidden_size": 8, "max_position_embeddings": 64, "vocab_size": vocabulary});
        ("config.json", config)
    };
    let line = refusal(&[config(2)]);
    assert!(line.contains("[SEP]"), "{line}");
    let with_added = tokenizer(&json!({"added_tokens": added(&["<new>"])}));
    // z is token 28, and the added one is token 29.
    for (files, text) in [(vec![config(28)], "y z"), (vec![config(29), with_added], "y <new>")] {
        let gateway = Gateway::on_model(&files, &json!({}), &["--workers", "1"]);
        assert_eq!(gateway.embed(&["x y"]).status, 200);
        let answer = gateway.embed(&["a", text]);
        assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (400, Some("not_tokenizable")));
        let message = answer.json()["error"]["message"].to_string();
        assert!(message.contains("text 1"), "{message}");
        assert_eq!(gateway.health()["workers"][0]["restarts"], 0);
    }
}
