//! What clients send never reaches the log, whatever becomes of it and however much is logged.

use std::io::{Read, Write};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{self, Gateway};

/// Stands in everything that a client can choose, in texts as a word of its own.
const SECRET: &str = "confidential";
/// A text of words that the fake model knows, and its token ids: they tell as much as the words.
const WORDS: &str = "q x j w";
const IDS: [&str; 2] = ["19, 26, 12, 25", "19,26,12,25"];

/// Fake workers, with a log of everything that any part of the gateway has to say.
fn talkative(misbehaviour: &Value, arguments: &[&str]) -> Gateway {
    let control = tempfile::tempdir().unwrap();
    let file = control.path().join("control.json");
    std::fs::write(&file, misbehaviour.to_string()).unwrap();
    let mut command = support::fake_command();
    command.env("AKIDB_LOG", "trace").env("AKIDB_FAKE_CONTROL", file).args(arguments);
    Gateway::start(command, Some(control))
}

fn text() -> String {
    format!("{SECRET} {WORDS}")
}

fn check_log(gateway: &Gateway) {
    gateway.logged("ready", |_| true);
    for hidden in [SECRET, IDS[0], IDS[1]] {
        assert!(!gateway.log_contains(hidden), "`{hidden}` was logged");
    }
}

/// Sends bytes and waits for the connection's end, or for a while.
fn send(gateway: &Gateway, bytes: &[u8]) {
    let mut stream = std::net::TcpStream::connect(gateway.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    stream.write_all(bytes).unwrap();
    let _ = stream.read(&mut [0; 4096]);
}

#[test]
fn no_text_is_logged_when_a_request_is_answered_or_refused() {
    let gateway = talkative(&json!({}), &["--workers", "1", "--max-body-bytes", "100000"]);
    gateway.wait_until_ready();
    assert_eq!(gateway.embed(&[&text()]).status, 200);
    for (body, status) in [
        (json!({"texts": [text()], "model": SECRET}), 400),
        (json!({"texts": [text()], "prompt_name": SECRET}), 400),
        (json!({"texts": [text()], "instruction": SECRET}), 400),
        (json!({"texts": [text()], "instruction": SECRET, "prompt_name": SECRET}), 400),
        (json!({"texts": [text()], "pooling": SECRET}), 400),
        (json!({"texts": [text()], "truncation_direction": SECRET}), 400),
        (json!({"texts": [text()], "dimensions": SECRET}), 400),
        (json!({"texts": [text()], "dimensions": 1_000_000}), 400),
        (json!({"texts": [text(), ""]}), 400),
        (json!({"texts": text()}), 400),
        (json!({"texts": [{SECRET: text()}]}), 400),
        (json!({"texts": [text()], SECRET: SECRET}), 200),
        (json!({"texts": [format!("{SECRET} a ").repeat(1000)], "truncate": false}), 400),
        (json!({"texts": [format!("{SECRET} a ").repeat(1000)]}), 200),
        (json!({"texts": vec![text(); 2049]}), 413),
        (json!({"texts": [text().repeat(10_000)]}), 413),
    ] {
        let answer = gateway.try_post("/api/v1/embed", &body.to_string());
        assert_eq!(
            answer.unwrap().status,
            status,
            "{}",
            body.to_string().chars().take(200).collect::<String>()
        );
    }
    for body in [
        format!("{SECRET} {WORDS}"),
        format!("{{\"texts\":[\"{SECRET}"),
        format!("{{\"texts\":[\"{SECRET}\\ud800\"]}}"),
        format!("{{\"texts\":[\"{SECRET}\\x\"]}}"),
        format!("{{\"{SECRET}\":1}}"),
        format!("[\"{SECRET}\"]"),
        format!("\"{SECRET}\""),
    ] {
        assert_eq!(gateway.post("/api/v1/embed", &body).status, 400, "{body}");
    }
    let body = json!({"texts": [text()]}).to_string();
    for header in
        ["x-request-timeout-ms", "authorization", "cookie", "content-encoding", "content-type", "accept"]
    {
        let _ = gateway.post_with("/api/v1/embed", (header, SECRET), &body);
    }
    assert_eq!(gateway.get(&format!("/{SECRET}?key={SECRET}")).status, 404);
    assert_eq!(gateway.get(&format!("/health?key={SECRET}")).status, 200);
    check_log(&gateway);
}

#[test]
fn no_text_is_logged_when_http_is_broken_or_a_client_leaves() {
    let gateway = talkative(&json!({"delay": 0.3}), &["--workers", "1", "--body-timeout", "500ms"]);
    gateway.wait_until_ready();
    let address = gateway.address;
    let body = json!({"texts": [text()]}).to_string();
    let head = |length: usize| {
        format!("POST /api/v1/embed HTTP/1.1\r\nhost: {address}\r\ncontent-length: {length}\r\n\r\n")
    };
    send(&gateway, format!("{SECRET} {WORDS}\r\n\r\n").as_bytes());
    send(&gateway, format!("GET /{SECRET} HTTP/1.1\r\nhost: {SECRET}\r\nhost: {SECRET}\r\n\r\n").as_bytes());
    send(&gateway, format!("GET / HTTP/1.1\r\n{SECRET}: {}\r\n\r\n", SECRET.repeat(100_000)).as_bytes());
    send(
        &gateway,
        format!("{}transfer-encoding: chunked\r\n\r\n{body}", &head(1)[..head(1).len() - 2]).as_bytes(),
    );
    send(&gateway, format!("{}{body}", head(body.len() + 1)).as_bytes());
    // Its client leaves while it is computed.
    drop(gateway.send_embed(&text()));
    gateway.eventually("the gateway noticed", |gateway| gateway.metric("akidb_clients_gone_total") >= 1.0);
    assert_eq!(gateway.embed(&["a"]).status, 200);
    check_log(&gateway);
}

#[test]
fn no_text_is_logged_when_workers_fail_or_die_under_it() {
    // Its last word makes the worker raise, lie, crash or hang.
    let guilty = format!("{} z", text());
    for (misbehaviour, statuses) in [
        (json!({"culprit": 28}), [500].as_slice()),
        (json!({"numbers": "nan"}), &[500]),
        (json!({"poison": 28}), &[422]),
        (json!({"killed_by": 28}), &[503]),
        (json!({"garbage": "00112233".repeat(4)}), &[503]),
        (json!({"wrong_id": true}), &[503]),
        (json!({"cut": 20}), &[503]),
        (json!({"hang": true}), &[503, 504, 422]),
    ] {
        let arguments = ["--workers", "2", "--request-timeout", "3s", "--progress-timeout", "500ms"];
        let gateway = talkative(&misbehaviour, &arguments);
        gateway.wait_until_ready();
        let answer = gateway.embed(&[&guilty, &text()]);
        assert!(statuses.contains(&answer.status), "{misbehaviour}: {}", answer.text);
        gateway.misbehave(&json!({}));
        check_log(&gateway);
    }
}
