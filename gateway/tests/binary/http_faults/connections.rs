//! Connections beyond what the machine allows, and bodies beyond what a client may send.

use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{Client, embed_request};
use crate::support::{self, Gateway, PATIENCE};

const MEBIBYTE: usize = 1 << 20;

/// Sends 64 MiB without reading, then reads; returns the answer and how much the gateway's memory has grown at most.
fn send_far_too_much(gateway: &Gateway, head: &str, piece: &[u8]) -> (String, u64) {
    gateway.wait_until_ready();
    assert_eq!(gateway.embed(&["a"]).status, 200);
    let memory = gateway.watch_memory();
    let mut client =
        Client::sending(gateway, format!("POST /api/v1/embed HTTP/1.1\r\nhost: localhost\r\n{head}\r\n\r\n"));
    for _ in 0..64 {
        client.send(piece);
    }
    let answer = client.rest();
    (answer, memory.growth())
}

#[test]
fn row_21_the_refusal_of_an_announced_body_reaches_a_client_that_is_still_sending() {
    let gateway = Gateway::fake(&["--workers", "1", "--discard-timeout", "10s"]);
    let head = format!("content-length: {}", 64 * MEBIBYTE);
    let (answer, growth) = send_far_too_much(&gateway, &head, &vec![b' '; MEBIBYTE]);
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("body_too_large"), "{answer}");
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
    assert!(growth < 4 * MEBIBYTE as u64, "{growth} bytes more");
    assert_eq!(gateway.embed(&["a"]).status, 200);
}

#[test]
fn row_21_the_refusal_of_a_chunked_body_reaches_a_client_that_is_still_sending() {
    let gateway =
        Gateway::fake(&["--workers", "1", "--discard-timeout", "10s", "--max-body-bytes", "8388608"]);
    let mut chunk = format!("{MEBIBYTE:x}\r\n").into_bytes();
    chunk.extend_from_slice(&vec![b' '; MEBIBYTE]);
    chunk.extend_from_slice(b"\r\n");
    let (answer, growth) = send_far_too_much(&gateway, "transfer-encoding: chunked", &chunk);
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("body_too_large"), "{answer}");
    assert!(growth < 16 * MEBIBYTE as u64, "{growth} bytes more");
    assert_eq!(gateway.embed(&["a"]).status, 200);
}

#[test]
fn row_21_chunks_of_one_byte_take_no_more_memory_than_large_ones() {
    let gateway = Gateway::fake(&["--workers", "1"]);
    let chunks = "1\r\n \r\n".repeat(16 * 1024);
    let (answer, growth) = {
        gateway.wait_until_ready();
        let memory = gateway.watch_memory();
        let head = "POST /api/v1/embed HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
        let mut client = Client::sending(&gateway, head);
        for _ in 0..16 {
            client.send(&chunks);
        }
        client.send("f\r\n{\"texts\":[\"a\"]}\r\n0\r\n\r\n");
        (client.rest(), memory.growth())
    };
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(growth < 4 * MEBIBYTE as u64, "{growth} bytes more for a body of 256 KiB");
}

#[test]
fn a_refused_client_is_listened_to_for_the_discard_time_only() {
    let gateway = Gateway::fake(&["--workers", "1", "--discard-timeout", "300ms"]);
    let head = "POST /api/v1/embed HTTP/1.1\r\nhost: localhost\r\ncontent-length: 999999999999\r\n\r\n";
    let mut client = Client::sending(&gateway, head);
    let started = Instant::now();
    // The gateway's side of the connection ends at once, the client's when it is reset.
    assert!(client.rest().starts_with("HTTP/1.1 413 "));
    let piece = [b' '; 1024];
    while client.stream.write_all(&piece).is_ok() {
        assert!(started.elapsed() < PATIENCE, "it is listened to forever");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(started.elapsed() > Duration::from_millis(250), "{:?}", started.elapsed());
}

#[test]
fn bodies_under_way_share_a_limit_of_memory() {
    let gateway =
        Gateway::fake(&["--workers", "1", "--max-body-bytes", "1048576", "--max-bodies-bytes", "1048576"]);
    gateway.wait_until_ready();
    let large = json!({ "texts": ["a ".repeat(300_000)] }).to_string();
    let head =
        format!("POST /api/v1/embed HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", large.len());
    let mut first = Client::sending(&gateway, head);
    first.send(&large[..large.len() - 1]);
    // Not at once: a request that asks for the memory before the first one has it would have the first one refused.
    std::thread::sleep(Duration::from_millis(500));
    gateway.eventually("the memory is used up", |gateway| {
        let answer = gateway.post("/api/v1/embed", &large);
        if answer.status == 503 {
            assert_eq!(answer.code().1, "overloaded");
            let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
            assert!((1..=2).contains(&wait), "{wait}");
        }
        answer.status == 503
    });
    let small = json!({ "texts": ["a ".repeat(8000)] }).to_string();
    assert!(small.len() <= 16 * 1024);
    assert_eq!(gateway.post("/api/v1/embed", &small).status, 200);
    first.send(&large[large.len() - 1..]);
    assert!(first.answer().starts_with("HTTP/1.1 200 "));
    assert_eq!(gateway.post("/api/v1/embed", &large).status, 200);
}

/// A gateway that may have this many descriptors.
fn with_descriptors(count: usize) -> Gateway {
    let mut command = support::fake_command();
    command.args(["--workers", "1"]);
    Gateway::start(support::with_descriptors(&command, count), None)
}

/// Whether a request is answered within a second.
fn is_served_soon(gateway: &Gateway) {
    let started = Instant::now();
    let answer = Client::sending(gateway, embed_request("a")).answer();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
}

#[test]
fn row_28_connections_beyond_the_cap_wait_until_others_are_closed() {
    let gateway = with_descriptors(160);
    gateway.wait_until_ready();
    let request = "GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let mut clients: Vec<Client> = (0..160 - 128).map(|_| Client::sending(&gateway, request)).collect();
    for client in &mut clients {
        assert!(client.answer().starts_with("HTTP/1.1 200 "));
    }
    let mut waiting = Client::sending(&gateway, request);
    waiting.stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(std::io::Read::read(&mut waiting.stream, &mut [0]).is_err(), "more connections than the cap");
    waiting.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let started = Instant::now();
    drop(clients);
    assert!(waiting.answer().starts_with("HTTP/1.1 200 "));
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    is_served_soon(&gateway);
}

// Nowhere else can the limit of a process that runs be lowered by another one.
#[cfg(target_os = "linux")]
#[test]
fn row_28_used_up_descriptors_pause_the_gateway_for_less_than_a_second_and_are_logged_once() {
    let gateway = with_descriptors(1024);
    gateway.wait_until_ready();
    let open = std::fs::read_dir(format!("/proc/{}/fd", gateway.pid())).unwrap();
    let open: Vec<u64> =
        open.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect();
    // Four more descriptors are free below this number.
    let limit = (0..).filter(|number| !open.contains(number)).nth(4).unwrap();
    let pid = gateway.pid().to_string();
    let lowered = std::process::Command::new("prlimit")
        .args(["--pid", &pid, &format!("--nofile={limit}")])
        .status()
        .unwrap();
    assert!(lowered.success());
    let clients: Vec<Client> = (0..50)
        .map(|_| Client::sending(&gateway, "GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"))
        .collect();
    gateway.logged("cannot accept connections", |line| line["level"] == "WARN");
    // The accept loop tries again fifty times a second.
    std::thread::sleep(Duration::from_millis(500));
    drop(clients);
    is_served_soon(&gateway);
    assert_eq!(gateway.count_logged("cannot accept connections"), 1);
}
