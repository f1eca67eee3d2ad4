//! Clients that end their stream while they wait: those that only closed their side get their answer, and those that
//! have gone are noticed.

use std::net::Shutdown;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{Client, embed_request};
use crate::support::Gateway;

fn slow_gateway(delay: f64) -> Gateway {
    let gateway = Gateway::misbehaving(&json!({"delay": delay}), &["--workers", "1"]);
    gateway.wait_until_ready();
    gateway
}

fn half_closed(gateway: &Gateway, requests: impl AsRef<[u8]>) -> Client {
    let client = Client::sending(gateway, requests);
    client.stream.shutdown(Shutdown::Write).unwrap();
    client
}

#[test]
fn a_client_that_closes_its_side_behind_a_request_gets_its_answer_and_the_end_of_the_stream() {
    let gateway = slow_gateway(0.7);
    let started = Instant::now();
    let chunked = "POST /api/v1/embed HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nf\r\n{\"texts\":[\"a\"]}\r\n0\r\n\r\n";
    let old =
        "POST /api/v1/embed HTTP/1.0\r\nhost: localhost\r\ncontent-length: 15\r\n\r\n{\"texts\":[\"a\"]}";
    for (request, start) in [
        (embed_request("a").as_str(), "HTTP/1.1 200 OK\r\n"),
        (chunked, "HTTP/1.1 200 OK\r\n"),
        (old, "HTTP/1.0 200 OK\r\n"),
    ] {
        let answer = half_closed(&gateway, request).rest();
        assert!(answer.starts_with(start) && answer.contains("{\"embeddings\":[["), "{request}: {answer}");
        assert_eq!(answer.matches("HTTP/1.").count(), 1, "{answer}");
    }
    let livez = "GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n";
    assert!(half_closed(&gateway, livez).rest().starts_with("HTTP/1.1 200 OK\r\n"));
    let refused = half_closed(&gateway, embed_request("")).rest();
    assert!(refused.starts_with("HTTP/1.1 400 ") && refused.contains("empty_input"), "{refused}");
    assert!(started.elapsed() < Duration::from_secs(8), "it was not closed at once: {:?}", started.elapsed());
    assert_eq!(gateway.metric("akidb_clients_gone_total"), 0.0);
}

#[test]
fn requests_in_a_row_are_all_answered_when_the_client_closes_its_side_behind_them() {
    let gateway = slow_gateway(0.3);
    let answers =
        half_closed(&gateway, embed_request("a") + &embed_request("b") + &embed_request("c")).rest();
    assert_eq!(answers.matches("HTTP/1.1 200 OK\r\n").count(), 3, "{answers}");
    assert_eq!(answers.matches("HTTP/1.").count(), 3, "{answers}");
}

#[test]
fn row_18_a_client_that_goes_is_noticed_within_a_second_while_its_text_is_computed() {
    let gateway = slow_gateway(20.0);
    for (count, half_closes_first) in [(1.0, false), (2.0, true)] {
        let client = Client::sending(&gateway, embed_request("a"));
        gateway.eventually("it is admitted", |gateway| {
            gateway.metric("akidb_embedding_batch_size_count") == count
        });
        if half_closes_first {
            client.stream.shutdown(Shutdown::Write).unwrap();
            std::thread::sleep(Duration::from_millis(500));
        }
        let started = Instant::now();
        drop(client);
        gateway.eventually("it is noticed", |gateway| gateway.metric("akidb_clients_gone_total") == count);
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    }
}

#[test]
fn a_client_that_closes_its_side_inside_a_body_is_told_or_closed() {
    let gateway = slow_gateway(0.0);
    let head = "POST /api/v1/embed HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{\"te";
    let answer = half_closed(&gateway, head).rest();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert_eq!(gateway.embed(&["a"]).status, 200);
}
