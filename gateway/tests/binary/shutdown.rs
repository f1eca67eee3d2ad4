//! Stopping: what was admitted is finished, what comes later is refused, and no process stays behind.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{self, Gateway};

#[test]
fn sigterm_finishes_what_was_admitted_refuses_the_rest_and_exits_0() {
    let mut gateway = Gateway::misbehaving(&json!({"delay": 1.0}), &["--workers", "2"]);
    gateway.wait_until_ready();
    let workers = gateway.worker_pids();
    std::thread::scope(|scope| {
        let admitted: Vec<_> = (0..6).map(|_| scope.spawn(|| gateway.embed(&["a", "b"]))).collect();
        gateway.eventually("all are admitted", |gateway| {
            gateway.metric("akidb_embedding_batch_size_count") >= 6.0
        });
        gateway.signal(Signal::SIGTERM);
        gateway.eventually("it is not ready any more", |gateway| {
            let answer = gateway.get("/readyz");
            answer.status == 503 && answer.json()["reason"] == "draining"
        });
        let refused = gateway.embed(&["a"]);
        assert_eq!(refused.code(), (503, "draining".to_owned()));
        assert_eq!(refused.header("connection"), Some("close"));
        assert!(refused.header("retry-after").is_some());
        assert_eq!(gateway.get("/livez").status, 200);
        for request in admitted {
            let answer = request.join().unwrap();
            assert_eq!(answer.status, 200, "{}", answer.text);
            assert_eq!(answer.vectors()[0], support::fake_vector("a"));
        }
    });
    assert_eq!(gateway.wait().code(), Some(0));
    assert!(TcpStream::connect(gateway.address).is_err(), "somebody still listens");
    assert!(workers.iter().all(|pid| !support::is_alive(*pid)), "a worker outlived its gateway");
}

#[test]
fn an_idle_gateway_ends_at_once_even_with_open_connections() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut gateway = Gateway::fake(&["--workers", "2"]);
        gateway.wait_until_ready();
        let mut idle = TcpStream::connect(gateway.address).unwrap();
        idle.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
        assert!(idle.read(&mut [0; 512]).unwrap() > 0);
        let started = Instant::now();
        gateway.signal(signal);
        assert_eq!(gateway.wait().code(), Some(0), "{signal}");
        assert!(started.elapsed() < Duration::from_secs(3), "{signal}: {:?}", started.elapsed());
    }
}

#[test]
fn a_gateway_whose_workers_are_still_starting_ends_at_once() {
    let mut gateway = Gateway::misbehaving(&json!({"never_ready": true}), &["--workers", "2"]);
    gateway.eventually("they are starting", |gateway| gateway.worker_pids().len() == 2);
    let workers = gateway.worker_pids();
    let started = Instant::now();
    gateway.signal(Signal::SIGTERM);
    assert_eq!(gateway.wait().code(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    assert!(workers.iter().all(|pid| !support::is_alive(*pid)));
}

#[test]
fn a_request_whose_body_is_still_under_way_is_refused_at_once() {
    let mut gateway = Gateway::fake(&["--workers", "1"]);
    gateway.wait_until_ready();
    let mut stream = TcpStream::connect(gateway.address).unwrap();
    stream
        .write_all(b"POST /api/v1/embed HTTP/1.1\r\nhost: localhost\r\ncontent-length: 15\r\n\r\n{\"te")
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let started = Instant::now();
    gateway.signal(Signal::SIGTERM);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("\r\nconnection: close\r\n"), "{answer}");
    assert_eq!(gateway.wait().code(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
}

#[test]
fn work_that_does_not_end_is_given_up_at_the_drain_time_or_at_a_second_signal() {
    for (drain_timeout, second_signal) in [("500ms", false), ("1h", true)] {
        let mut gateway = Gateway::misbehaving(
            &json!({"hang": true}),
            &["--workers", "1", "--drain-timeout", drain_timeout],
        );
        gateway.wait_until_ready();
        let started = std::thread::scope(|scope| {
            scope.spawn(|| assert_eq!(gateway.embed(&["a"]).code(), (503, "draining".to_owned())));
            gateway.eventually("it is at the worker", |gateway| {
                gateway.health()["workers"][0]["in_flight"] == 1
            });
            let started = Instant::now();
            gateway.signal(Signal::SIGTERM);
            gateway.eventually("it drains", |gateway| gateway.get("/readyz").status == 503);
            if second_signal {
                gateway.signal(Signal::SIGINT);
            }
            started
        });
        gateway.wait();
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    }
}

#[test]
fn a_gateway_that_is_killed_while_it_resolves_its_model_leaves_no_process_behind() {
    let silent_hub = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let cache = tempfile::tempdir().unwrap();
    let mut gateway = support::command()
        .args(["--model", "owner/name", "--listen", "127.0.0.1:0"])
        .env("HF_ENDPOINT", format!("http://{}", silent_hub.local_addr().unwrap()))
        .env("HF_HOME", cache.path())
        .spawn()
        .unwrap();
    let _asked = silent_hub.accept().unwrap();
    let preparing = support::children(gateway.id());
    assert_eq!(preparing.len(), 1, "{preparing:?}");
    gateway.kill().unwrap();
    gateway.wait().unwrap();
    // It would give the hub up after 2.5 seconds on its own.
    std::thread::sleep(Duration::from_secs(1));
    assert!(!support::is_alive(preparing[0]));
}
