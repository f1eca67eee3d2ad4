//! What the gateway's memory grows to, whatever clients send and however slowly they read.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Client;
use crate::support::{self, Gateway};

const MEBIBYTE: u64 = 1 << 20;
const DIMENSION: u64 = 384;

/// A gateway whose vectors are as long as real ones.
fn gateway(arguments: &[&str]) -> Gateway {
    let config = json!({"model_type": "bert", "hidden_size": DIMENSION, "max_position_embeddings": 64});
    let arguments = [&["--workers", "1"], arguments].concat();
    let gateway = Gateway::on_model(&[("config.json", config)], &json!({}), &arguments);
    gateway.wait_until_ready();
    gateway
}

/// A request for vectors of many texts, in about 8 KB.
fn many_texts(version: &str) -> String {
    let body = json!({"texts": vec!["a"; 2048]}).to_string();
    format!(
        "POST /api/v1/embed HTTP/{version}\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// A client that has got the first bytes of an answer, and reads no more.
fn unread(gateway: &Gateway) -> (Client, String) {
    let mut client = Client::sending(gateway, many_texts("1.1"));
    let mut status = [0; 12];
    client.stream.read_exact(&mut status).unwrap();
    (client, String::from_utf8_lossy(&status).into_owned())
}

#[test]
fn memory_is_bounded_by_the_budgets_of_bodies_and_answers_and_is_given_back() {
    let gateway = gateway(&[]);
    let memory = gateway.watch_memory();
    let unread: Vec<(Client, String)> = (0..40).map(|_| unread(&gateway)).collect();
    assert!(unread.iter().all(|(_, status)| status == "HTTP/1.1 200"));
    let heads: Vec<Client> = (0..200)
        .map(|number| {
            let padding = "x".repeat(10_000);
            Client::sending(
                &gateway,
                format!("GET /livez HTTP/1.1\r\nhost: localhost\r\nx-{number}: {padding}"),
            )
        })
        .collect();
    let body = format!("{{\"texts\":[{}\"a\"]}}", "\"a\",".repeat((4 << 20) - 16));
    let head =
        format!("POST /api/v1/embed HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", body.len());
    std::thread::scope(|scope| {
        for _ in 0..15 {
            scope.spawn(|| {
                let mut client = Client::sending(&gateway, &head);
                client.send(&body);
                let answer = client.answer();
                assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("too_many_texts"), "{answer}");
            });
        }
    });
    let most = memory.most() / MEBIBYTE;
    assert!(most < 150 + 256 + 256, "{most} MiB at most");
    drop((unread, heads));
    let started = Instant::now();
    let resident = || support::resident_bytes(gateway.pid()) / MEBIBYTE;
    // The allocator of macOS only marks what is free: it counts as resident until somebody needs it.
    while cfg!(target_os = "linux") && resident() >= 100 {
        assert!(started.elapsed() < Duration::from_secs(10), "{} MiB ten seconds later", resident());
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(gateway.embed(&["a"]).status, 200);
}

#[test]
fn answers_that_nobody_reads_use_up_a_budget_before_more_is_computed() {
    let gateway = gateway(&["--max-response-bytes", "4194304"]);
    let (mut first, status) = unread(&gateway);
    assert_eq!(status, "HTTP/1.1 200");
    let batches = gateway.metric("akidb_embedding_batch_size_count");
    let refused = gateway.post("/api/v1/embed", &json!({"texts": vec!["a"; 2048]}).to_string());
    assert_eq!(refused.code(), (503, "overloaded".to_owned()));
    assert!(refused.header("retry-after").is_some());
    assert_eq!(gateway.metric("akidb_embedding_batch_size_count"), batches);
    assert_eq!(gateway.embed(&["a", "b"]).status, 200, "small answers are always given");
    first.stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let _until_it_is_all = first.stream.read_to_end(&mut Vec::new());
    gateway.eventually("there is room again", |gateway| {
        gateway.post("/api/v1/embed", &json!({"texts": vec!["a"; 2048]}).to_string()).status == 200
    });
}

#[test]
fn a_long_answer_is_whole_for_every_version_of_http() {
    let gateway = gateway(&[]);
    let expected = support::normalized(&support::raw_fake_vector("a", DIMENSION));
    let answer = gateway.post("/api/v1/embed", &json!({"texts": vec!["a"; 2048]}).to_string());
    assert_eq!(answer.header("transfer-encoding"), Some("chunked"));
    assert_eq!(answer.vectors(), vec![expected.clone(); 2048]);
    assert_eq!(answer.json()["usage"]["total_tokens"], 3 * 2048);
    let old = Client::sending(&gateway, many_texts("1.0")).rest();
    let (head, body) = old.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.0 200 ") && !head.contains("chunked"), "{head}");
    let json: Value = serde_json::from_str(body).unwrap();
    assert_eq!(json["embeddings"].as_array().unwrap().len(), 2048);
    let short = gateway.embed(&["a", "b"]);
    assert!(short.header("content-length").is_some() && short.vectors()[0] == expected);
    assert_eq!(gateway.metric("akidb_embedding_phase_seconds_count{phase=\"write\"}"), 3.0);
}

#[test]
fn a_long_answer_may_take_longer_than_a_connection_may_be_idle() {
    let mut gateway = gateway(&["--idle-timeout", "300ms"]);
    let (mut client, status) = unread(&gateway);
    assert_eq!(status, "HTTP/1.1 200");
    std::thread::sleep(Duration::from_secs(1));
    gateway.signal(nix::sys::signal::Signal::SIGTERM);
    std::thread::sleep(Duration::from_millis(300));
    let rest = client.rest();
    assert!(rest.ends_with("}}\r\n0\r\n\r\n"), "{} bytes, cut off", rest.len());
    assert_eq!(gateway.wait().code(), Some(0));
}

#[test]
fn what_a_request_does_not_ask_for_takes_no_memory() {
    let gateway = gateway(&[]);
    let memory = gateway.watch_memory();
    let numbers = "1,".repeat(7 << 20);
    for body in [
        format!("{{\"unknown\":[{numbers}1],\"texts\":[\"a\"]}}"),
        format!("{{\"unknown\":{{\"deeper\":[[{numbers}1]]}},\"texts\":[\"a\"]}}"),
        format!("{{\"texts\":[\"a\"],\"dimensions\":[{numbers}1]}}"),
        format!("{{\"texts\":[{numbers}1]}}"),
        format!("[{numbers}1]"),
    ] {
        let head = format!(
            "POST /api/v1/embed HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let mut client = Client::sending(&gateway, head);
        client.stream.write_all(body.as_bytes()).unwrap();
        let answer = client.rest();
        assert!(answer.starts_with("HTTP/1.1 200 ") || answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
    let growth = memory.growth() / MEBIBYTE;
    assert!(growth < 64, "{growth} MiB more for bodies of 14 MiB");
}
