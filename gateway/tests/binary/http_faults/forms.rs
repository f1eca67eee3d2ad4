//! Row 22: what is not HTTP, or HTTP that two programs may understand differently, is refused and the connection closed.

use super::Client;
use crate::support::Gateway;

/// What stands behind a refused request must never be taken for a request.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nhost: localhost\r\n\r\n";

/// Sends each request with another one behind it; the first must be refused with this status, and the second not looked at.
fn assert_refused(requests: &[impl AsRef<str>], status: u16, code: &str) {
    let gateway = Gateway::fake(&["--workers", "1"]);
    for request in requests {
        let request = request.as_ref();
        let answer = Client::sending(&gateway, format!("{request}{SMUGGLED}")).rest();
        let shown = &request[..request.len().min(200)];
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{shown}: {answer}");
        assert_eq!(answer.matches("HTTP/1.").count(), 1, "{shown}: {answer}");
    }
    let refused = format!("akidb_requests_rejected_total{{code=\"{code}\"}} {}\n", requests.len());
    gateway.eventually("every refusal is counted", |gateway| gateway.get("/metrics").text.contains(&refused));
    assert_eq!(gateway.embed(&["a"]).status, 200);
}

/// The head of an embedding request with these header lines.
fn post(lines: &str) -> String {
    format!("POST /api/v1/embed HTTP/1.1\r\nhost: localhost\r\n{lines}\r\n\r\n")
}

#[test]
fn row_22_a_content_length_before_a_transfer_encoding() {
    let request = post("content-length: 5\r\ntransfer-encoding: chunked") + "0\r\n\r\n";
    assert_refused(&[request], 400, "invalid_http");
}

#[test]
fn row_22_a_content_length_behind_a_transfer_encoding() {
    let request = post("Transfer-Encoding: chunked\r\nContent-Length: 5") + "0\r\n\r\n";
    assert_refused(&[request], 400, "invalid_http");
}

#[test]
fn row_22_two_lengths_that_differ() {
    assert_refused(&[post("content-length: 1\r\ncontent-length: 2")], 400, "invalid_http");
}

#[test]
fn row_22_a_length_that_is_no_number() {
    let lengths = ["-1", "+1", "0x10", "1, 2", "1 1", "", "99999999999999999999999"];
    assert_refused(&lengths.map(|length| post(&format!("content-length: {length}"))), 400, "invalid_http");
}

#[test]
fn row_22_a_transfer_encoding_that_does_not_end_in_chunked() {
    let encodings = ["gzip", "chunked, gzip", "xchunked", "identity"];
    let requests = encodings.map(|encoding| post(&format!("transfer-encoding: {encoding}")));
    assert_refused(&requests, 400, "invalid_http");
}

#[test]
fn row_22_a_folded_header() {
    assert_refused(&[post("x: a\r\n b")], 400, "invalid_http");
}

#[test]
fn row_22_a_bare_carriage_return() {
    assert_refused(&[post("x: a\rcontent-length: 5")], 400, "invalid_http");
}

#[test]
fn row_22_a_space_before_a_colon() {
    assert_refused(&[post("content-length : 5")], 400, "invalid_http");
}

#[test]
fn row_22_a_nul_in_a_header() {
    assert_refused(&[post("x: a\0b")], 400, "invalid_http");
}

#[test]
fn row_22_a_transfer_encoding_in_http_1_0() {
    let request =
        "POST /api/v1/embed HTTP/1.0\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    assert_refused(&[request], 400, "invalid_http");
}

#[test]
fn row_22_what_is_not_http() {
    let requests = ["GARBAGE\r\n\r\n", "GET / HTTP/3.0\r\n\r\n", "\x16\x03\x01\x02\0\x01\0\x01\r\n\r\n"];
    assert_refused(&requests, 400, "invalid_http");
}

#[test]
fn row_22_a_chunk_without_a_length() {
    let request = post("transfer-encoding: chunked") + "zz\r\n";
    assert_refused(&[request], 400, "body_incomplete");
}

#[test]
fn row_22_a_head_of_more_than_64_kib() {
    assert_refused(&[post(&format!("x: {}", "a".repeat(66_000)))], 431, "head_too_large");
}

#[test]
fn row_22_a_head_of_many_megabytes_is_refused_while_it_is_sent() {
    assert_refused(&[post(&format!("x: {}", "a".repeat(8 << 20)))], 431, "head_too_large");
}

#[test]
fn row_22_more_than_100_headers() {
    assert_refused(&[post("x: y\r\n".repeat(100).trim_end())], 431, "head_too_large");
}

#[test]
fn the_longest_head_is_still_served() {
    let gateway = Gateway::fake(&["--workers", "1"]);
    let mut client = Client::sending(
        &gateway,
        format!(
            "GET /livez HTTP/1.1\r\nhost: localhost\r\n{}y: {}\r\n\r\n",
            "x: y\r\n".repeat(98),
            "a".repeat(60_000)
        ),
    );
    assert!(client.answer().starts_with("HTTP/1.1 200 "));
}
