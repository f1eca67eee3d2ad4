//! What a model's own files say at the start: what is refused, and the end token.

use serde_json::{Value, json};

use crate::support::{self, Gateway, run_to_end};

/// Starts on a model that must be refused; returns the one line that says why.
fn refusal(files: &[(&str, Value)]) -> String {
    let folder = tempfile::tempdir().unwrap();
    support::write_model(folder.path(), files);
    let mut command = support::fake_command_on(folder.path());
    command.args(["--listen", "127.0.0.1:0", "--served-model-name", "fake"]);
    let (code, stderr, _) = run_to_end(command);
    let errors: Vec<&str> = stderr.lines().filter(|line| line.contains("cannot use model")).collect();
    assert_eq!((code, errors.len()), (78, 1), "{stderr}");
    errors[0].to_owned()
}

fn modules(list: &[(&str, &str)]) -> (&'static str, Value) {
    let module = |(path, r#type): &(&str, &str)| json!({"path": path, "type": r#type});
    ("modules.json", list.iter().map(module).collect())
}

fn qwen3(end: &Value) -> (&'static str, Value) {
    let config =
        json!({"model_type": "qwen3", "hidden_size": 8, "max_position_embeddings": 64, "eos_token_id": end});
    ("config.json", config)
}

#[test]
fn a_model_that_would_be_computed_wrongly_is_refused_with_the_reason() {
    let transformer = ("", "sentence_transformers.models.Transformer");
    for (files, part) in [
        (vec![modules(&[transformer, ("2_Dense", "sentence_transformers.models.Dense")])], "`Dense`"),
        (vec![modules(&[("0_Words", "sentence_transformers.models.WordEmbeddings")])], "`WordEmbeddings`"),
        (vec![modules(&[transformer, ("../1_Pooling", "x.Pooling")])], "`../1_Pooling`"),
        (vec![modules(&[transformer, ("/etc", "x.Pooling")])], "`/etc`"),
        (vec![("modules.json", json!({"no": "list"}))], "`modules.json`"),
        (
            vec![modules(&[("pool", "x.Pooling")]), ("pool/config.json", json!({"pooling_mode": "max"}))],
            "`pool/config.json`",
        ),
        (
            vec![(
                "1_Pooling/config.json",
                json!({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}),
            )],
            "several poolings",
        ),
        (vec![("config_sentence_transformers.json", json!({"default_prompt_name": "gone"}))], "`gone`"),
        (vec![qwen3(&json!(null))], "`<|endoftext|>`"),
        (vec![qwen3(&json!(1_000_000))], "`<|endoftext|>`"),
    ] {
        let line = refusal(&files);
        assert!(line.contains(part), "{part} is not in {line}");
    }
}

#[test]
fn the_pooling_is_read_from_where_the_modules_say() {
    let files = [
        modules(&[("", "x.Transformer"), ("pool", "x.Pooling"), ("3", "x.Dropout")]),
        ("pool/config.json", json!({"pooling_mode": "cls"})),
        ("1_Pooling/config.json", json!({"pooling_mode": "max"})),
    ];
    let gateway = Gateway::on_model(&files, &json!({}), &["--workers", "1"]);
    assert_eq!(gateway.logged("model resolved", |_| true)["pooling"], "cls");
    assert_eq!(gateway.embed(&["a"]).status, 200);
}

#[test]
fn a_text_ends_with_the_end_token_also_when_the_tokenizer_forgets_it() {
    const APPENDED: &str = "the tokenizer does not end texts with the end token: the gateway does";
    let tokens = |gateway: &Gateway, text: &str| {
        let answer = gateway.embed(&[text]);
        answer.json()["usage"]["total_tokens"].as_u64().unwrap()
    };
    // The template of the fake model ends every text with token 2, and not with 28.
    let complete = Gateway::on_model(&[qwen3(&json!([2, 5]))], &json!({}), &["--workers", "1"]);
    assert_eq!((tokens(&complete, "a"), complete.count_logged(APPENDED)), (3, 0));
    let forgetful = Gateway::on_model(&[qwen3(&json!(28))], &json!({}), &["--workers", "1"]);
    assert_eq!(forgetful.logged(APPENDED, |_| true)["token_id"], 28);
    // z is token 28: a text that ends with it gets its end token all the same.
    assert_eq!((tokens(&forgetful, "a"), tokens(&forgetful, "a z")), (4, 5));
    assert_eq!(tokens(&forgetful, &"a ".repeat(100)), 64);
    let by_hand = complete.embed(&["a"]).vectors();
    assert_ne!(forgetful.embed(&["a"]).vectors(), by_hand);
}

#[test]
fn a_roberta_has_fewer_usable_positions_than_it_states() {
    let config = json!({"model_type": "xlm-roberta", "hidden_size": 8, "max_position_embeddings": 64, "pad_token_id": 1});
    let gateway = Gateway::on_model(&[("config.json", config)], &json!({}), &["--workers", "1"]);
    assert_eq!(gateway.logged("model resolved", |_| true)["max_tokens"], 62);
    assert_eq!(gateway.embed(&[&"a ".repeat(100)]).json()["usage"]["total_tokens"], 62);
}
