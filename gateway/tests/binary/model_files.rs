//! What a model's own files say at the start: what is refused, and the end token.

use serde_json::{Value, json};

use crate::support::{self, Gateway, run_to_end};

/// Starts on a model that must be refused; returns the one line that says why.
pub(super) fn refusal(files: &[(&str, Value)]) -> String {
    let folder = tempfile::tempdir().unwrap();
    support::write_model(folder.path(), files);
    let mut command = support::fake_command_on(folder.path());
    command.args(["--listen", "127.0.0.1:0", "--served-model-name", "fake"]);
    let (code, stderr, _) = run_to_end(command);
    let errors: Vec<&str> = stderr.lines().filter(|line| line.contains("cannot use model")).collect();
    assert_eq!((code, errors.len()), (78, 1), "{files:?}: {stderr}");
    assert!(!stderr.contains("panicked at"), "{stderr}");
    errors[0].to_owned()
}

fn modules(list: &[(&str, &str)]) -> (&'static str, Value) {
    let module = |(path, name): &(&str, &str)| {
        let r#type = format!("sentence_transformers.models.{name}");
        json!({"name": path, "path": path, "type": r#type})
    };
    ("modules.json", list.iter().map(module).collect())
}

fn saved_as(architecture: &str) -> (&'static str, Value) {
    let config = json!({"model_type": "bert", "architectures": [architecture], "hidden_size": 8, "max_position_embeddings": 64});
    ("config.json", config)
}

fn qwen3(end: &Value) -> (&'static str, Value) {
    let config =
        json!({"model_type": "qwen3", "hidden_size": 8, "max_position_embeddings": 64, "eos_token_id": end});
    ("config.json", config)
}

#[test]
fn a_model_that_would_be_computed_wrongly_is_refused_with_file_key_and_value() {
    let transformer = ("", "Transformer");
    let pooling = ("1_Pooling/config.json", json!({"pooling_mode": "mean"}));
    let whole = || vec![modules(&[transformer, ("1_Pooling", "Pooling")]), pooling.clone()];
    let with = |name: &'static str, content: Value| [whole(), vec![(name, content)]].concat();
    let custom = json!([{"path": "", "type": "custom_st.Transformer"}]);
    for (files, parts) in [
        (
            vec![modules(&[transformer, ("2_Dense", "Dense")])],
            &["`modules.json`", "`type`", "models.Dense"][..],
        ),
        (vec![("modules.json", custom)], &["`modules.json`", "`type`", "custom_st.Transformer"]),
        (vec![modules(&[transformer, ("../1_Pooling", "Pooling")])], &["`path`", "../1_Pooling"]),
        (vec![modules(&[transformer, ("/etc", "Pooling")])], &["`path`", "/etc"]),
        (vec![modules(&[transformer])], &["`modules.json`", "Pooling"]),
        (
            vec![modules(&[transformer, ("2", "Normalize"), ("1_Pooling", "Pooling")]), pooling.clone()],
            &["Normalize"],
        ),
        (vec![modules(&[transformer, ("1_Pooling", "Pooling")])], &["`1_Pooling/config.json` is missing"]),
        (vec![("modules.json", json!({"no": "list"}))], &["`modules.json`"]),
        (
            vec![
                modules(&[transformer, ("pool", "Pooling")]),
                ("pool/config.json", json!({"pooling_mode": "max"})),
            ],
            &["`pool/config.json`", "`pooling_mode`", "\"max\""],
        ),
        (
            vec![(
                "1_Pooling/config.json",
                json!({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}),
            )],
            &["`1_Pooling/config.json`", "`pooling_mode_mean_tokens`", "second pooling"],
        ),
        (
            with("sentence_bert_config.json", json!({"do_lower_case": "true"})),
            &["`do_lower_case`", "\"true\""],
        ),
        (
            with("sentence_roberta_config.json", json!({"max_len": 3})),
            &["`sentence_roberta_config.json`", "`max_len`: 3"],
        ),
        (
            with("sentence_bert_config.json", json!({"processing_kwargs": {"text": {"max_length": 7}}})),
            &["`sentence_bert_config.json`", "`processing_kwargs`", "`max_length`: 7"],
        ),
        (with("config_sentence_transformers.json", json!({"default_prompt_name": "gone"})), &["`gone`"]),
        (with("config_sentence_transformers.json", json!({"truncate_dim": 4})), &["`truncate_dim`: 4"]),
        (
            with("config_sentence_transformers.json", json!({"model_type": "CrossEncoder"})),
            &["cross-encoder"],
        ),
        (
            with("config_sentence_transformers.json", json!({"model_type": "SparseEncoder"})),
            &["sparse encoder", "`model_type`"],
        ),
        (
            vec![saved_as("BertForSequenceClassification")],
            &["classifier", "`config.json`", "`architectures`"],
        ),
        (vec![saved_as("BertForTokenClassification")], &["classifier", "BertForTokenClassification"]),
        (vec![qwen3(&json!(null))], &["`<|endoftext|>`"]),
        (vec![qwen3(&json!(1_000_000))], &["`<|endoftext|>`"]),
    ] {
        let line = refusal(&files);
        for part in parts {
            assert!(line.contains(part), "{part} is not in {line}");
        }
    }
}

#[test]
fn a_key_that_is_not_known_is_named_in_the_log_where_it_changes_no_vector() {
    let files = [("config_sentence_transformers.json", json!({"prompts": {}, "colour": "blue"}))];
    let gateway = Gateway::on_model(&files, &json!({}), &["--workers", "1"]);
    let warning = "ignoring unknown keys in the model's files";
    let warned = gateway.logged(warning, |_| true);
    assert_eq!(
        (warned["keys"].as_str(), gateway.count_logged(warning)),
        (Some("config_sentence_transformers.json: colour"), 1)
    );
    assert_eq!(gateway.vectors(&["a"]), [support::fake_vector("a")]);
}

#[test]
fn texts_are_lower_cased_where_the_model_asks_for_it() {
    let asks = [("sentence_bert_config.json", json!({"max_seq_length": 32, "do_lower_case": true}))];
    let gateway = Gateway::on_model(&asks, &json!({}), &["--workers", "1"]);
    assert_eq!(gateway.vectors(&["A b C"]), [support::fake_vector("a b c")]);
    let plain = Gateway::on_model(&[], &json!({}), &["--workers", "1"]);
    assert_ne!(plain.vectors(&["A b C"]), [support::fake_vector("a b c")]);
}

#[test]
fn a_model_is_read_from_the_folder_of_its_transformer() {
    let folder = tempfile::tempdir().unwrap();
    let path = support::command().args(["models", "path", support::MINILM]).output().unwrap();
    let minilm = std::path::PathBuf::from(String::from_utf8(path.stdout).unwrap().trim());
    // Another model lies where newer ones have theirs.
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        std::fs::copy(support::golden_folder().join("tiny-bert").join(name), folder.path().join(name))
            .unwrap();
    }
    std::fs::create_dir_all(folder.path().join("0_Transformer")).unwrap();
    for name in ["config.json", "tokenizer.json", "sentence_bert_config.json", "model.safetensors"] {
        std::fs::copy(minilm.join(name), folder.path().join("0_Transformer").join(name)).unwrap();
    }
    let (name, list) =
        modules(&[("0_Transformer", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]);
    std::fs::write(folder.path().join(name), list.to_string()).unwrap();
    std::fs::create_dir(folder.path().join("1_Pooling")).unwrap();
    std::fs::copy(minilm.join("1_Pooling/config.json"), folder.path().join("1_Pooling/config.json")).unwrap();
    let mut command = support::command();
    command.arg("--model").arg(folder.path()).args(["--workers", "1"]);
    let gateway = Gateway::start(command, None);
    gateway.wait_until_ready();
    let golden: Vec<_> = support::golden().into_iter().take(4).collect();
    for (text, tokens, expected) in golden {
        let answer = gateway.embed(&[&text]);
        assert_eq!(answer.json()["usage"]["total_tokens"], tokens);
        assert!(support::cosine(&answer.vectors()[0], &expected) >= 0.9999, "{text:?}");
    }
}

#[test]
fn the_pooling_is_read_from_where_the_modules_say() {
    let files = [
        modules(&[("", "Transformer"), ("pool", "Pooling"), ("3", "Dropout")]),
        ("pool/config.json", json!({"pooling_mode": "cls"})),
        ("1_Pooling/config.json", json!({"pooling_mode": "max"})),
    ];
    let gateway = Gateway::on_model(&files, &json!({}), &["--workers", "1"]);
    assert_eq!(gateway.logged("model resolved", |_| true)["pooling"], "cls");
    assert_eq!(gateway.embed(&["a"]).status, 200);
}

#[test]
fn a_text_ends_with_the_end_token_also_when_the_tokenizer_forgets_it() {
    const APPENDED: &str = "the tokenizer does not append the end token: the gateway does";
    let tokens = |gateway: &Gateway, text: &str| {
        let answer = gateway.embed(&[text]);
        answer.json()["usage"]["total_tokens"].as_u64().unwrap()
    };
    // The template of the fake model ends every text with token 2, and not with 28.
    let complete = Gateway::on_model(&[qwen3(&json!([2, 5]))], &json!({}), &["--workers", "1"]);
    assert_eq!((tokens(&complete, "a"), complete.count_logged(APPENDED)), (3, 0));
    let forgetful = Gateway::on_model(&[qwen3(&json!(28))], &json!({}), &["--workers", "1"]);
    assert_eq!(forgetful.logged(APPENDED, |_| true)["token_id"], 28);
    // z is token 28: a text that ends with it gets its end token anyway.
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
