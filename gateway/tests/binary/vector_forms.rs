//! What of a vector is answered: how many numbers of it, and whether they are scaled.

use serde_json::{Value, json};

use crate::support::{self, Answer, Gateway, normalized, raw_fake_vector};

fn wide(misbehaviour: &Value) -> Gateway {
    let config = json!({"model_type": "bert", "hidden_size": 64, "max_position_embeddings": 64});
    Gateway::on_model(&[("config.json", config)], misbehaviour, &["--workers", "1"])
}

fn post(gateway: &Gateway, body: &str) -> Answer {
    gateway.post("/api/v1/embed", body)
}

#[test]
fn a_vector_is_cut_and_then_scaled() {
    let gateway = wide(&json!({}));
    let raw = raw_fake_vector("a", 64);
    for (choice, expected) in [
        (json!({}), normalized(&raw)),
        (json!({"dimensions": null}), normalized(&raw)),
        (json!({"dimensions": 64}), normalized(&raw)),
        (json!({"dimensions": 32}), normalized(&raw[..32])),
        (json!({"dimensions": 33, "normalize": true}), normalized(&raw[..33])),
        (json!({"dimensions": 40, "normalize": false}), raw[..40].to_vec()),
    ] {
        let mut body = choice;
        body["texts"] = json!(["a"]);
        let answer = post(&gateway, &body.to_string());
        assert_eq!(answer.status, 200, "{body}: {}", answer.text);
        assert_eq!(answer.json()["dimension"], expected.len(), "{body}");
        assert_eq!(answer.vectors(), [expected], "{body}");
    }
}

#[test]
fn dimensions_that_the_model_does_not_give_are_refused() {
    let gateway = wide(&json!({}));
    for (number, part) in [
        ("31", "32 to 64"),
        ("65", "32 to 64"),
        ("0", "32 to 64"),
        ("18446744073709551615", "32 to 64"),
        ("-1", "whole number"),
        ("48.5", "whole number"),
        ("1e300", "whole number"),
        ("18446744073709551616", "whole number"),
    ] {
        let answer = post(&gateway, &format!(r#"{{"texts":["a"],"dimensions":{number}}}"#));
        assert_eq!(answer.code(), (400, "invalid_dimensions".to_owned()), "{number}");
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains(part), "{number}: {message}");
    }
    for (number, code) in
        [(r#""64""#, "invalid_request"), ("[64]", "invalid_request"), ("1e999", "invalid_json")]
    {
        let answer = post(&gateway, &format!(r#"{{"texts":["a"],"dimensions":{number}}}"#));
        assert_eq!(answer.code(), (400, code.to_owned()), "{number}");
    }
    assert_eq!(gateway.embed(&["a"]).status, 200);
}

#[test]
fn of_a_model_with_few_dimensions_only_the_whole_vector_is_given() {
    let gateway = Gateway::fake(&["--workers", "1"]);
    let whole = post(&gateway, &json!({"texts": ["a"], "dimensions": 8}).to_string());
    assert_eq!(whole.vectors(), [support::fake_vector("a")]);
    for dimensions in [7, 9, 32] {
        let answer = post(&gateway, &json!({"texts": ["a"], "dimensions": dimensions}).to_string());
        assert_eq!(answer.code(), (400, "invalid_dimensions".to_owned()));
        assert!(answer.text.contains("8 only"), "{}", answer.text);
    }
}

#[test]
fn a_part_of_a_vector_that_is_all_zero_is_an_error_and_not_nan() {
    let gateway = wide(&json!({"zeros": 40}));
    for normalize in [true, false] {
        let body = json!({"texts": ["a"], "dimensions": 40, "normalize": normalize});
        let answer = post(&gateway, &body.to_string());
        assert_eq!(answer.code(), (500, "bad_worker_output".to_owned()), "{}", answer.text);
    }
    let answer = post(&gateway, &json!({"texts": ["a"], "dimensions": 41}).to_string());
    assert_eq!(answer.vectors()[0].iter().filter(|number| **number != 0.0).count(), 1);
}

#[test]
fn whether_vectors_are_normalized_is_the_models_choice_unless_the_request_has_one() {
    let module = |path: &str, name: &str| json!({"path": path, "type": format!("sentence_transformers.models.{name}")});
    let transformer = || vec![module("", "Transformer"), module("1_Pooling", "Pooling")];
    let raw = raw_fake_vector("a", 8);
    for (with_normalize, expected) in [(false, raw.clone()), (true, normalized(&raw))] {
        let mut modules = transformer();
        modules.extend(with_normalize.then(|| module("2_Normalize", "Normalize")));
        let pooling = ("1_Pooling/config.json", json!({"pooling_mode_mean_tokens": true}));
        let files = [("modules.json", json!(modules)), pooling];
        let gateway = Gateway::on_model(&files, &json!({}), &["--workers", "1"]);
        let vector = |body: Value| post(&gateway, &body.to_string()).vectors().remove(0);
        assert_eq!(vector(json!({"texts": ["a"]})), expected);
        assert_eq!(vector(json!({"texts": ["a"], "normalize": null})), expected);
        assert_eq!(vector(json!({"texts": ["a"], "normalize": true})), normalized(&raw));
        assert_eq!(vector(json!({"texts": ["a"], "normalize": false})), raw);
        let resolved = gateway.logged("model resolved", |_| true);
        assert_eq!(resolved["normalized"], with_normalize);
    }
}
