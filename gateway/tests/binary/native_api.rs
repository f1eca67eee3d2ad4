//! `POST /api/v1/embed`: what is answered, and what is refused.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{self, Gateway, PATIENCE};

#[test]
fn an_answer_has_a_vector_per_text_in_order_with_true_token_counts() {
    let gateway = Gateway::fake(&["--workers", "2"]);
    let answer = gateway.embed(&["a", "b c", "a"]);
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let json = answer.json();
    assert_eq!(json["model"], "fake");
    assert_eq!(json["dimension"], 8);
    // Two special tokens a text.
    assert_eq!(json["usage"]["total_tokens"], 3 + 4 + 3);
    assert_eq!(json["usage"]["truncated"], 0);
    assert!(json["usage"]["duration_ms"].as_u64().unwrap() > 0, "{json}");
    let vectors = answer.vectors();
    assert_eq!(vectors.len(), 3);
    assert_eq!(vectors[0], vectors[2]);
    assert_eq!(vectors[0], support::fake_vector("a"));
    assert_eq!(vectors[1], support::fake_vector("b c"));
}

#[test]
fn vectors_are_normalized_unless_asked_otherwise() {
    let gateway = Gateway::fake(&["--workers", "1"]);
    let length = |body: Value| {
        let answer = gateway.post("/api/v1/embed", &body.to_string());
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.vectors()[0].iter().map(|number| f64::from(*number).powi(2)).sum::<f64>().sqrt()
    };
    assert!((length(json!({"texts": ["a"]})) - 1.0).abs() < 1e-6);
    assert!((length(json!({"texts": ["a"], "normalize": true})) - 1.0).abs() < 1e-6);
    assert!((length(json!({"texts": ["a"], "normalize": null})) - 1.0).abs() < 1e-6);
    assert!((length(json!({"texts": ["a"], "normalize": false})) - 1.0).abs() > 1e-3);
}

#[test]
fn a_text_beyond_the_limit_is_truncated_and_the_answer_says_so() {
    let gateway = Gateway::fake(&["--workers", "1"]);
    let answer = gateway.embed(&["a ".repeat(1000).trim(), "b"]);
    let json = answer.json();
    assert_eq!(answer.status, 200, "{json}");
    assert_eq!(json["usage"]["truncated"], 1);
    assert_eq!(json["usage"]["total_tokens"], 64 + 3);
    assert_eq!(answer.vectors()[0], support::fake_vector("a ".repeat(62).trim()));
}

/// Posts bodies that must be refused: code, and a part of the message.
fn refuse(gateway: &Gateway, cases: &[(&str, &str, &str)]) {
    for (body, code, part) in cases {
        let answer = gateway.post("/api/v1/embed", body);
        let shown = &body[..body.len().min(60)];
        assert_eq!(answer.code(), (400, (*code).to_owned()), "{shown}");
        let error = &answer.json()["error"];
        assert!(error["message"].as_str().unwrap().contains(part), "{shown}: {error}");
        assert_eq!(error["type"], "invalid_request_error", "{shown}");
        assert_eq!(error["request_id"].as_str(), answer.header("x-request-id"), "{shown}");
    }
}

#[test]
fn row_23_bad_json_is_refused_with_a_stable_code() {
    let gateway = Gateway::fake(&["--workers", "1"]);
    let deep = format!("{{\"texts\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let array = "[".repeat(100_000);
    let cases = [
        ("", "invalid_json", "JSON"),
        ("{", "invalid_json", "JSON"),
        ("texts=a", "invalid_json", "JSON"),
        (r#"{"texts":[NaN]}"#, "invalid_json", "JSON"),
        (r#"{"texts":["\ud800"]}"#, "invalid_json", "text 0: "),
        (r#"{"texts":["a","\ud800 b"]}"#, "invalid_json", "text 1: "),
        ("\u{feff}", "invalid_json", "JSON"),
        ("{}", "invalid_request", "texts"),
        ("[]", "invalid_request", "not a valid request"),
        (r#"[["a"],null,null,null]"#, "invalid_request", "array"),
        (r#"{"texts":"a"}"#, "invalid_request", "string"),
        (r#"{"texts":[1]}"#, "invalid_request", "text 0: invalid type: integer"),
        (r#"{"texts":["a",null]}"#, "invalid_request", "text 1: invalid type: null"),
        (r#"{"texts":["a"],"pooling":"max"}"#, "invalid_request", "max"),
        (r#"{"texts":["a"],"normalize":"yes"}"#, "invalid_request", "boolean"),
        (r#"{"texts":["a"],"model":"other"}"#, "model_not_served", "`fake`"),
        (deep.as_str(), "invalid_json", "nested"),
        (array.as_str(), "invalid_json", "JSON"),
    ];
    refuse(&gateway, &cases);
    let long_name = json!({"texts": ["a"], "model": "m".repeat(1_000_000)}).to_string();
    let answer = gateway.post("/api/v1/embed", &long_name);
    assert!(answer.status == 400 && answer.text.len() < 1000, "{} bytes", answer.text.len());
    assert_eq!(gateway.metric("akidb_embedding_requests_total{status=\"error\"}"), 19.0);
    assert_eq!(gateway.embed(&["a"]).status, 200);
    assert_eq!(gateway.metric("akidb_embedding_queue_depth"), 0.0);
    assert_eq!(gateway.health()["workers"][0]["restarts"], 0);
}

#[test]
fn row_24_an_empty_list_and_an_empty_text_are_refused_with_the_index() {
    let gateway = Gateway::fake(&["--workers", "1"]);
    let cases = [
        (r#"{"texts":[]}"#, "empty_input", "empty"),
        (r#"{"texts":[""]}"#, "empty_input", "text 0"),
        (r#"{"texts":["a",""]}"#, "empty_input", "text 1"),
    ];
    refuse(&gateway, &cases);
}

#[test]
fn row_25_many_texts_are_served_and_too_many_refused() {
    let gateway = Gateway::fake(&["--workers", "2"]);
    let most = json!({"texts": vec!["a"; 2048]}).to_string();
    assert_eq!(gateway.post("/api/v1/embed", &most).vectors(), vec![support::fake_vector("a"); 2048]);
    let too_many = json!({"texts": vec!["a"; 2049]}).to_string();
    assert_eq!(gateway.post("/api/v1/embed", &too_many).code(), (413, "too_many_texts".to_owned()));
}

#[test]
fn a_body_in_another_encoding_is_refused_with_its_name_and_a_mark_of_utf_8_is_skipped() {
    let gateway = Gateway::fake(&["--workers", "1"]);
    let body = r#"{"texts":["a"]}"#;
    let marked = format!("\u{feff}{body}");
    assert_eq!(gateway.post("/api/v1/embed", &marked).vectors(), [support::fake_vector("a")]);
    let wide: Vec<u8> = marked.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let head = |lines: &str, length: usize| {
        format!(
            "POST /api/v1/embed HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{lines}content-length: {length}\r\n\r\n"
        )
    };
    let answer = raw(&gateway, &[head("", wide.len()).as_bytes(), &wide].concat());
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("UTF-16"), "{answer}");
    for (line, name) in [
        ("content-encoding: gzip\r\n", "`gzip`"),
        ("content-encoding: identity\r\ncontent-encoding: Deflate\r\n", "`Deflate`"),
        ("content-encoding: identity, zstd\r\n", "`zstd`"),
        ("content-type: application/json; charset=utf-16\r\n", "`utf-16`"),
    ] {
        // Refused before the body is there.
        let answer = raw(&gateway, head(line, 1000).as_bytes());
        assert!(answer.starts_with("HTTP/1.1 415 ") && answer.contains("unsupported_encoding"), "{answer}");
        assert!(answer.contains(name) && answer.contains("\r\naccept-encoding: identity\r\n"), "{answer}");
    }
    let plain =
        head("content-encoding: Identity\r\ncontent-type: application/json; charset=\"UTF-8\"\r\n", 15);
    assert!(raw(&gateway, (plain + body).as_bytes()).starts_with("HTTP/1.1 200 "));
}

#[test]
fn a_body_that_is_not_utf_8_is_refused() {
    let gateway = Gateway::fake(&["--workers", "1"]);
    let answer = raw(&gateway, b"POST /api/v1/embed HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 15\r\n\r\n{\"texts\":[\"\xff\"]}");
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(answer.contains("invalid_json"), "{answer}");
}

#[test]
fn a_body_over_the_limit_is_refused_by_its_header_and_by_its_chunks() {
    let gateway = Gateway::fake(&["--workers", "1"]);
    let announced = raw(
        &gateway,
        b"POST /api/v1/embed HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 999999999999\r\n\r\n",
    );
    assert!(announced.starts_with("HTTP/1.1 413 "), "{announced}");
    assert!(announced.contains("body_too_large"), "{announced}");
    let huge = json!({"texts": ["a ".repeat(9 * 1024 * 1024)]}).to_string();
    let answer = gateway.try_post("/api/v1/embed", &huge);
    assert!(answer.is_none_or(|answer| answer.status == 413), "a body of 18 MiB was taken");
    assert_eq!(gateway.embed(&["a"]).status, 200);
}

#[test]
fn other_paths_and_methods_are_refused_with_a_json_error() {
    let gateway = Gateway::fake(&["--workers", "1"]);
    assert_eq!(gateway.get("/api/v1/embed").code(), (405, "method_not_allowed".to_owned()));
    assert_eq!(gateway.get("/api/v1/embed").header("allow"), Some("POST"));
    assert_eq!(gateway.post("/health", "").code(), (405, "method_not_allowed".to_owned()));
    assert_eq!(gateway.get("/nothing").code(), (404, "not_found".to_owned()));
}

#[test]
fn malformed_http_is_refused_and_the_gateway_lives_on() {
    let gateway = Gateway::fake(&["--workers", "1"]);
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"GARBAGE\r\n\r\n",
        b"POST /api/v1/embed HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{}",
        b"POST /api/v1/embed HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
        b"POST /api/v1/embed HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ] {
        let answer = raw(&gateway, bytes);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
    assert_eq!(gateway.embed(&["a"]).status, 200);
}

#[test]
fn row_27_a_huge_text_without_spaces_is_cut_and_holds_nobody_up() {
    let gateway = Gateway::fake(&["--workers", "1"]);
    gateway.wait_until_ready();
    std::thread::scope(|scope| {
        for letter in ["a", " ", "\u{200b}"] {
            let texts = json!({"texts": [letter.repeat(15 * 1024 * 1024 / letter.len())]}).to_string();
            scope.spawn(|| {
                let started = Instant::now();
                let texts = texts;
                let answer = gateway.post("/api/v1/embed", &texts);
                assert_eq!((answer.status, &answer.json()["usage"]["truncated"]), (200, &json!(1)));
                assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
            });
        }
        for _ in 0..50 {
            let started = Instant::now();
            assert_eq!(gateway.embed(&["a"]).status, 200);
            assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
        }
    });
}

#[test]
fn requests_that_nobody_waits_for_leave_the_queue_while_no_worker_is_ready() {
    let gateway =
        Gateway::misbehaving(&json!({"never_ready": true}), &["--workers", "1", "--request-timeout", "1s"]);
    std::thread::scope(|scope| {
        for _ in 0..40 {
            scope.spawn(|| assert_eq!(gateway.embed(&["a"]).code(), (503, "no_worker".to_owned())));
        }
    });
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(gateway.metric("akidb_embedding_queue_depth"), 0.0);
}

#[test]
fn row_18_a_client_that_goes_away_leaves_nothing_behind() {
    let gateway = Gateway::misbehaving(&json!({"delay": 0.5}), &["--workers", "1"]);
    gateway.wait_until_ready();
    let clients: Vec<TcpStream> = (0..20)
        .map(|_| {
            let mut stream = TcpStream::connect(gateway.address).unwrap();
            stream
                .write_all(b"POST /api/v1/embed HTTP/1.1\r\nhost: localhost\r\ncontent-length: 15\r\n\r\n{\"texts\":[\"a\"]}")
                .unwrap();
            stream
        })
        .collect();
    gateway
        .eventually("all are admitted", |gateway| gateway.metric("akidb_embedding_batch_size_count") >= 20.0);
    drop(clients);
    gateway.eventually("the queue is empty", |gateway| {
        let health = gateway.health();
        gateway.metric("akidb_embedding_queue_depth") == 0.0 && health["workers"][0]["in_flight"] == 0
    });
    assert_eq!(gateway.embed(&["a"]).status, 200);
}

/// Sends bytes as they are and returns everything that comes back until the connection is closed.
fn raw(gateway: &Gateway, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(gateway.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    // The other side may reset the connection once it has said what it had to say.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}
