//! What a request says apart from its texts: its id, its time limit, whether texts may be cut; and what is counted.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::Gateway;

const PATH: &str = "/api/v1/embed";

#[test]
fn a_plain_request_id_is_taken_over_into_the_answer_and_the_log() {
    let gateway = Gateway::fake(&["--workers", "1"]);
    let id = "trace-1.2_3:4";
    let served = gateway.post_with(PATH, ("x-request-id", id), r#"{"texts":["a"]}"#);
    assert_eq!((served.status, served.header("x-request-id")), (200, Some(id)));
    let refused = gateway.post_with(PATH, ("x-request-id", id), "{}");
    assert_eq!((refused.status, refused.header("x-request-id")), (400, Some(id)));
    assert_eq!(refused.json()["error"]["request_id"], id);
    let line = gateway.logged("request refused", |line| line["request_id"] == id);
    assert_eq!((&line["span"]["name"], &line["span"]["request_id"]), (&json!("request"), &json!(id)));
}

#[test]
fn a_request_id_of_another_form_is_replaced() {
    let gateway = Gateway::fake(&["--workers", "1"]);
    for id in ["two words", "a\"b", &"a".repeat(129)] {
        let answer = gateway.post_with("/livez", ("x-request-id", id), "");
        let given = answer.header("x-request-id").unwrap();
        assert!(given != id && given.len() == 16, "{given}");
    }
}

#[test]
fn a_request_may_shorten_its_time_but_not_lengthen_it() {
    let gateway = Gateway::misbehaving(
        &json!({"never_ready": true}),
        &["--workers", "1", "--request-timeout", "900ms"],
    );
    for (milliseconds, least, most) in [("200", 190, 850), ("60000", 890, 5000)] {
        let started = Instant::now();
        let answer = gateway.post_with(PATH, ("x-request-timeout-ms", milliseconds), r#"{"texts":["a"]}"#);
        let took = started.elapsed();
        assert!(answer.status >= 500, "{}", answer.text);
        let expected = Duration::from_millis(least)..Duration::from_millis(most);
        assert!(expected.contains(&took), "{milliseconds}: {took:?}");
    }
}

#[test]
fn a_time_limit_that_is_no_number_of_milliseconds_is_refused() {
    let gateway = Gateway::fake(&["--workers", "1"]);
    let long = "9".repeat(1000);
    for value in ["0", "-5", "1.5", "soon", "5s", &long] {
        let answer = gateway.post_with(PATH, ("x-request-timeout-ms", value), r#"{"texts":["a"]}"#);
        assert_eq!(answer.code(), (400, "invalid_request".to_owned()), "{value}");
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains("x-request-timeout-ms") && message.contains(&value[..value.len().min(100)]));
        assert!(message.len() < 500, "{message}");
    }
}

#[test]
fn row_26_a_text_over_the_limit_is_refused_where_it_may_not_be_cut() {
    let gateway = Gateway::fake(&["--workers", "1"]);
    let ask = |texts: &[String], truncate| {
        gateway.post(PATH, &json!({ "texts": texts, "truncate": truncate }).to_string())
    };
    let (fits, long, huge) = ("a ".repeat(62), "a ".repeat(63), "a ".repeat(1_000_000));
    for (text, part) in [(long, "text 1 has 65 tokens"), (huge, "text 1 has more than ")] {
        let texts = [fits.clone(), text];
        let refused = ask(&texts, json!(false));
        assert_eq!(refused.code(), (400, "input_too_long".to_owned()), "{}", refused.text);
        let message = refused.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains(part) && message.contains("takes 64"), "{message}");
        for truncate in [json!(true), json!(null)] {
            let cut = ask(&texts, truncate);
            assert_eq!((cut.status, &cut.json()["usage"]["truncated"]), (200, &json!(1)));
        }
    }
    let whole = ask(&[fits], json!(false));
    assert_eq!((whole.status, &whole.json()["usage"]["truncated"]), (200, &json!(0)));
    assert_eq!(ask(&["a".to_owned()], json!("no")).code(), (400, "invalid_request".to_owned()));
}

#[test]
fn every_refusal_is_counted_by_its_code() {
    let gateway = Gateway::fake(&["--workers", "1"]);
    gateway.post(PATH, "{");
    gateway.post(PATH, "{}");
    gateway.embed(&[]);
    gateway.embed(&[""]);
    gateway.get("/nothing");
    gateway.get("/nothing");
    gateway.get("/nothing");
    gateway.get(PATH);
    for (code, count) in [
        ("invalid_json", 1.0),
        ("invalid_request", 1.0),
        ("empty_input", 2.0),
        ("not_found", 3.0),
        ("method_not_allowed", 1.0),
    ] {
        assert_eq!(
            gateway.metric(&format!("akidb_requests_rejected_total{{code=\"{code}\"}}")),
            count,
            "{code}"
        );
    }
    // Only requests for embeddings count as such.
    assert_eq!(gateway.metric("akidb_embedding_requests_total{status=\"error\"}"), 4.0);
}
