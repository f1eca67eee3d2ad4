//! What stands before a text: prompts by name, the default prompt, instructions; and where a long text is cut.

use serde_json::{Value, json};

use crate::support::{self, Answer, Gateway};

fn with_prompts(config: Value) -> Gateway {
    Gateway::on_model(&[("config_sentence_transformers.json", config)], &json!({}), &["--workers", "1"])
}

fn post(gateway: &Gateway, body: &Value) -> Answer {
    gateway.post("/api/v1/embed", &body.to_string())
}

/// The only vector of an answer, and the tokens counted.
fn vector(gateway: &Gateway, body: &Value) -> (Vec<f32>, u64) {
    let answer = post(gateway, body);
    assert_eq!(answer.status, 200, "{body}: {}", answer.text);
    (answer.vectors().remove(0), answer.json()["usage"]["total_tokens"].as_u64().unwrap())
}

/// Posts what must be refused: code, and a part of the message.
fn refuse(gateway: &Gateway, body: &Value, code: &str, parts: &[&str]) {
    let answer = post(gateway, body);
    assert_eq!(answer.code(), (400, code.to_owned()), "{body}");
    let error = &answer.json()["error"];
    assert_eq!(error["type"], "invalid_request_error");
    for part in parts {
        assert!(error["message"].as_str().unwrap().contains(part), "{part} is not in {error}");
    }
}

#[test]
fn a_prompt_stands_before_every_text_and_its_tokens_count() {
    let prompts = json!({"prompts": {"query": "x y ", "document": ""}, "default_prompt_name": null});
    let gateway = with_prompts(prompts);
    let answer = post(&gateway, &json!({"texts": ["a", "b c"], "prompt_name": "query"}));
    assert_eq!(answer.vectors(), [support::fake_vector("x y a"), support::fake_vector("x y b c")]);
    assert_eq!(answer.json()["usage"]["total_tokens"], 5 + 6);
    for body in [
        json!({"texts": ["a"]}),
        json!({"texts": ["a"], "prompt_name": "document"}),
        json!({"texts": ["a"], "prompt_name": null, "instruction": null}),
    ] {
        assert_eq!(vector(&gateway, &body), (support::fake_vector("a"), 3), "{body}");
    }
    let resolved = gateway.logged("model resolved", |_| true);
    assert_eq!((&resolved["prompts"], &resolved["normalized"]), (&json!("document, query"), &json!(true)));
}

#[test]
fn the_default_prompt_is_used_where_a_request_names_none() {
    let prompts = json!({"prompts": {"query": "x ", "document": ""}, "default_prompt_name": "query"});
    let gateway = with_prompts(prompts);
    assert_eq!(vector(&gateway, &json!({"texts": ["a"]})), (support::fake_vector("x a"), 4));
    let document = json!({"texts": ["a"], "prompt_name": "document"});
    assert_eq!(vector(&gateway, &document), (support::fake_vector("a"), 3));
}

#[test]
fn an_unknown_prompt_is_refused_with_the_names_of_those_there_are() {
    let gateway = with_prompts(json!({"prompts": {"query": "x ", "document": ""}}));
    let body = json!({"texts": ["a"], "prompt_name": "passage"});
    refuse(&gateway, &body, "unknown_prompt", &["`passage`", "document, query"]);
    let long = post(&gateway, &json!({"texts": ["a"], "prompt_name": "p".repeat(100_000)}));
    assert!(long.status == 400 && long.text.len() < 1000, "{} bytes", long.text.len());
    let without = Gateway::fake(&["--workers", "1"]);
    refuse(&without, &json!({"texts": ["a"], "prompt_name": "query"}), "unknown_prompt", &["none at all"]);
}

#[test]
fn an_instruction_takes_the_form_of_the_models_own_prompts() {
    let gateway = with_prompts(json!({"prompts": {"query": "Instruct: Find it\nQuery: "}}));
    let by_hand = vector(&gateway, &json!({"texts": ["Instruct: b c\nQuery: a"]}));
    assert_eq!(vector(&gateway, &json!({"texts": ["a"], "instruction": "b c"})), by_hand);
    // Without the space of the model's own prompt, `Query:` and the text would be one token, and six in all.
    assert_eq!(by_hand.1, 7);
    assert!(!gateway.log_contains("b c"));
}

#[test]
fn a_qwen3_takes_instructions_whatever_its_files_say() {
    let config =
        json!({"model_type": "qwen3", "hidden_size": 8, "max_position_embeddings": 64, "eos_token_id": 2});
    let gateway = Gateway::on_model(&[("config.json", config)], &json!({}), &["--workers", "1"]);
    let by_hand = vector(&gateway, &json!({"texts": ["Instruct: b\nQuery:a"]}));
    assert_eq!(vector(&gateway, &json!({"texts": ["a"], "instruction": "b"})), by_hand);
    let published =
        "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:a";
    let by_name = vector(&gateway, &json!({"texts": ["a"], "prompt_name": "query"}));
    assert_eq!(by_name, vector(&gateway, &json!({"texts": [published]})));
}

#[test]
fn an_instruction_that_cannot_be_followed_is_refused() {
    let plain = with_prompts(json!({"prompts": {"query": "query: "}}));
    let body = json!({"texts": ["a"], "instruction": "Rank"});
    refuse(&plain, &body, "instruction_not_supported", &["`instruction`"]);
    let gateway = with_prompts(json!({"prompts": {"query": "Instruct: Find it\nQuery: "}}));
    for empty in ["", "  \n"] {
        let body = json!({"texts": ["a"], "instruction": empty});
        refuse(&gateway, &body, "invalid_request", &["`instruction` is empty"]);
    }
    let both = json!({"texts": ["a"], "instruction": "Rank", "prompt_name": "query"});
    refuse(&gateway, &both, "invalid_request", &["`prompt_name`", "`instruction`"]);
    refuse(&gateway, &json!({"texts": ["a"], "instruction": 1}), "invalid_request", &["integer"]);
    assert_eq!(gateway.embed(&["a"]).status, 200);
}

#[test]
fn a_prompt_that_the_model_keeps_out_of_its_pooling_is_refused() {
    let files = [
        ("config_sentence_transformers.json", json!({"prompts": {"query": "x ", "document": ""}})),
        ("1_Pooling/config.json", json!({"pooling_mode": "mean", "include_prompt": false})),
    ];
    let gateway = Gateway::on_model(&files, &json!({}), &["--workers", "1"]);
    let body = json!({"texts": ["a"], "prompt_name": "query"});
    refuse(&gateway, &body, "prompt_not_supported", &["pooling"]);
    let document = json!({"texts": ["a"], "prompt_name": "document"});
    assert_eq!(vector(&gateway, &document).0, support::fake_vector("a"));
}

#[test]
fn a_prompt_that_leaves_no_room_for_a_text_is_refused() {
    let long = "x ".repeat(62);
    let prompts =
        json!({"prompts": {"long": long, "fits": "x ".repeat(61), "query": "Instruct: x\nQuery: "}});
    let gateway = with_prompts(prompts);
    for direction in ["left", "right"] {
        let body = json!({"texts": ["a"], "prompt_name": "long", "truncation_direction": direction});
        refuse(&gateway, &body, "input_too_long", &["prompt", "64 tokens"]);
        let fits = json!({"texts": ["a"], "prompt_name": "fits", "truncation_direction": direction});
        assert_eq!(vector(&gateway, &fits), (support::fake_vector(&format!("{}a", "x ".repeat(61))), 64));
    }
    let many = json!({"texts": vec!["a"; 2048], "instruction": " ".repeat(8192) + "b"});
    refuse(&gateway, &many, "input_too_long", &["2048 texts"]);
    let huge = json!({"texts": ["a"], "instruction": "b".repeat(8_000_000)});
    refuse(&gateway, &huge, "input_too_long", &["prompt"]);
    refuse(
        &gateway,
        &json!({"texts": ["a"], "instruction": "b ".repeat(1_000_000)}),
        "input_too_long",
        &["more than"],
    );
}

#[test]
fn the_end_of_a_long_text_stays_when_its_beginning_is_to_be_cut() {
    let gateway = with_prompts(json!({"prompts": {"query": "x y "}}));
    let text = format!("{}c d", "a b ".repeat(50));
    let last_62 = format!("{}c d", "a b ".repeat(30));
    let behind_prompt = format!("x y {}c d", "a b ".repeat(29));
    for direction in ["left", "Left"] {
        let body = json!({"texts": [text], "truncation_direction": direction});
        assert_eq!(vector(&gateway, &body), (support::fake_vector(&last_62), 64));
        let body = json!({"texts": [text], "truncation_direction": direction, "prompt_name": "query"});
        assert_eq!(vector(&gateway, &body), (support::fake_vector(&behind_prompt), 64));
    }
    let huge = format!("{}c d", "a b ".repeat(2_000_000));
    let answer = post(&gateway, &json!({"texts": [huge, "a"], "truncation_direction": "left"}));
    assert_eq!(answer.vectors(), [support::fake_vector(&last_62), support::fake_vector("a")]);
    assert_eq!(answer.json()["usage"]["truncated"], 1);
    let first_62 = "a b ".repeat(31);
    for body in [
        json!({"texts": [text]}),
        json!({"texts": [text], "truncation_direction": null}),
        json!({"texts": [text], "truncation_direction": "right"}),
        json!({"texts": [text], "truncation_direction": "Right"}),
    ] {
        assert_eq!(vector(&gateway, &body), (support::fake_vector(first_62.trim()), 64));
    }
    let not_cut = json!({"texts": [text], "truncation_direction": "left", "truncate": false});
    refuse(&gateway, &not_cut, "input_too_long", &["text 0 has 104 tokens"]);
    refuse(&gateway, &json!({"texts": ["a"], "truncation_direction": "up"}), "invalid_request", &["up"]);
}

#[test]
fn a_text_that_crashes_a_worker_behind_a_prompt_is_known_again_behind_it_only() {
    let files = [("config_sentence_transformers.json", json!({"prompts": {"query": "x "}}))];
    // The letter x.
    let gateway = Gateway::on_model(&files, &json!({"poison": 26}), &["--workers", "1"]);
    let body = json!({"texts": ["a"], "prompt_name": "query"});
    for _ in 0..2 {
        assert_eq!(post(&gateway, &body).code(), (422, "poison_input".to_owned()));
    }
    assert_eq!(gateway.vectors(&["a"]), [support::fake_vector("a")]);
}
