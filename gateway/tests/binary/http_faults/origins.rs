//! Web pages must not drive a gateway on the machine of whoever looks at them: not by its address, not by a name of
//! their own that leads there.

use super::Client;
use crate::support::{self, Gateway};

const BODY: &str = r#"{"texts":["a"]}"#;

/// The status of the answer to a request with these header lines, and its body.
fn ask(gateway: &Gateway, request_line: &str, lines: &str, body: &str) -> (String, String) {
    let length = body.len();
    let request =
        format!("{request_line}\r\n{lines}content-length: {length}\r\nconnection: close\r\n\r\n{body}");
    let answer = Client::sending(gateway, request).rest();
    (answer.get(9..12).unwrap_or_default().to_owned(), answer)
}

fn assert_refused(gateway: &Gateway, request_line: &str, lines: &str, body: &str, code: &str) {
    let (status, answer) = ask(gateway, request_line, lines, body);
    assert!(status == "403" && answer.contains(code), "{request_line} {lines}: {answer}");
}

#[test]
fn a_page_that_rebinds_its_name_gets_nothing_from_any_route() {
    let gateway = Gateway::fake(&["--workers", "1"]);
    gateway.wait_until_ready();
    for path in ["/health", "/livez", "/readyz", "/metrics", "/", "/nothing", "*"] {
        assert_refused(
            &gateway,
            &format!("GET {path} HTTP/1.1"),
            "host: evil.example\r\n",
            "",
            "host_not_allowed",
        );
    }
    let post = "POST /api/v1/embed HTTP/1.1";
    assert_refused(&gateway, post, "host: evil.example:8080\r\n", BODY, "host_not_allowed");
    assert_refused(
        &gateway,
        post,
        "host: evil.example\r\norigin: http://evil.example\r\n",
        BODY,
        "host_not_allowed",
    );
    let absolute = "POST http://evil.example/api/v1/embed HTTP/1.1";
    assert_refused(&gateway, absolute, "host: localhost\r\n", BODY, "host_not_allowed");
    assert_refused(&gateway, "GET /livez HTTP/1.0", "host: evil.example\r\n", "", "host_not_allowed");
    let long = format!("host: {}.example\r\n", "e".repeat(10_000));
    let (status, answer) = ask(&gateway, post, &long, BODY);
    assert!(status == "403" && answer.len() < 1500 && answer.contains("--allowed-host"), "{answer}");
    assert_eq!(ask(&gateway, "GET /livez HTTP/1.0", "", "").0, "200");
    assert_eq!(ask(&gateway, post, "host: LOCALHOST.:1\r\n", BODY).0, "200");
    assert!(gateway.metric("akidb_requests_rejected_total{code=\"host_not_allowed\"}") >= 12.0);
}

#[test]
fn a_page_of_another_origin_is_refused_before_its_body_is_read() {
    let gateway = Gateway::fake(&["--workers", "1"]);
    gateway.wait_until_ready();
    let post = "POST /api/v1/embed HTTP/1.1";
    let own = format!("host: {0}\r\norigin: http://{0}\r\ncontent-type: text/plain\r\n", gateway.address);
    assert_eq!(ask(&gateway, post, &own, BODY).0, "200");
    for origin in ["http://evil.example", "null", "http://localhost:1", "file://", ""] {
        let lines = format!("host: {}\r\norigin: {origin}\r\ncontent-type: text/plain\r\n", gateway.address);
        assert_refused(&gateway, post, &lines, BODY, "origin_not_allowed");
        assert_refused(&gateway, "GET /health HTTP/1.1", &lines, "", "origin_not_allowed");
    }
    let head =
        "POST /api/v1/embed HTTP/1.1\r\nhost: localhost\r\norigin: null\r\ncontent-length: 1000000\r\n\r\n";
    let answer = Client::sending(&gateway, head).rest();
    assert!(
        answer.contains("origin_not_allowed") && answer.contains("\r\nconnection: close\r\n"),
        "{answer}"
    );
    assert_eq!(gateway.metric("akidb_embedding_requests_total{status=\"success\"}"), 1.0);
}

#[test]
fn an_operator_may_allow_names_and_other_machines() {
    let mut command = support::fake_command();
    command.args([
        "--workers",
        "1",
        "--allowed-host",
        "embed.example.com,10.0.0.1",
        "--allowed-host",
        "akidb",
    ]);
    let gateway = Gateway::start(command, None);
    for host in ["embed.example.com", "Embed.Example.Com:443", "10.0.0.1:80", "akidb"] {
        assert_eq!(ask(&gateway, "GET /livez HTTP/1.1", &format!("host: {host}\r\n"), "").0, "200", "{host}");
    }
    assert_refused(&gateway, "GET /livez HTTP/1.1", "host: x.embed.example.com\r\n", "", "host_not_allowed");

    let mut command = support::fake_command();
    command.args(["--workers", "1", "--allow-remote"]).env("AKIDB_ALLOWED_HOST", "embed.example.com,akidb");
    let gateway = Gateway::start(command, None);
    for lines in [
        "host: any.example\r\n",
        "host: 10.0.0.1:8080\r\norigin: http://10.0.0.1:8080\r\n",
        "host: embed.example.com\r\norigin: https://embed.example.com\r\n",
        "host: akidb:1\r\norigin: http://akidb:1\r\n",
    ] {
        assert_eq!(ask(&gateway, "GET /livez HTTP/1.1", lines, "").0, "200", "{lines}");
    }
    let rebound = "host: any.example\r\norigin: http://any.example\r\n";
    assert_refused(&gateway, "GET /livez HTTP/1.1", rebound, "", "host_not_allowed");
    let foreign = "host: 10.0.0.1\r\norigin: http://any.example\r\n";
    assert_refused(&gateway, "GET /livez HTTP/1.1", foreign, "", "origin_not_allowed");
}
