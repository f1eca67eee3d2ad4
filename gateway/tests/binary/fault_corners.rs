//! Corners of the fault table where two things go wrong at once.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{self, Gateway, generations, restarts};

#[test]
fn a_slow_batch_does_not_make_a_hang_go_unnoticed() {
    let flags = ["--workers", "1", "--progress-timeout", "400ms", "--heartbeat-timeout", "300ms"];
    let slow = json!({"delay": 3, "progress": true, "times": 1});
    let gateway = Gateway::misbehaving(&slow, &flags);
    gateway.wait_until_ready();
    let text = ["a"; 40].join(" ");
    assert_eq!(gateway.embed(&[&text]).status, 200);
    gateway.misbehave(&json!({"hang": true, "times": 1}));
    let started = Instant::now();
    assert_eq!(gateway.embed(&[&text]).status, 200);
    assert!(started.elapsed() < Duration::from_secs(12), "{:?}", started.elapsed());
    assert_eq!(restarts(&gateway, "progress"), 1.0);
}

#[test]
fn a_successor_that_cannot_start_is_tried_now_and_then_not_again_and_again() {
    let flags = ["--workers", "2", "--crash-loop-wait", "1s"];
    let gateway = Gateway::misbehaving(&json!({"numbers": "nan", "times": 1, "start_exit": 3}), &flags);
    gateway.misbehave(&json!({}));
    gateway.wait_until_ready();
    let before = generations(&gateway);
    gateway.misbehave(&json!({"numbers": "nan", "times": 1, "start_exit": 3}));
    let texts = vec!["a"; 40];
    assert_eq!(gateway.vectors(&texts), vec![support::fake_vector("a"); 40]);
    gateway.logged("replacement failed to start: keeping the current worker", |_| true);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(generations(&gateway), before, "an unready successor was counted");
    assert_eq!(restarts(&gateway, "exit"), 1.0, "it was tried more than once");
    assert_eq!(gateway.embed(&["b"]).status, 200);
}

#[test]
fn a_worker_that_is_too_large_is_replaced_even_when_its_first_successor_cannot_start() {
    let flags = [
        "--workers",
        "1",
        "--worker-memory-limit",
        "120MiB",
        "--memory-interval",
        "20ms",
        "--crash-loop-wait",
        "200ms",
    ];
    let gateway = Gateway::misbehaving(&json!({}), &flags);
    gateway.wait_until_ready();
    let before = gateway.worker_pids();
    // It grows with its first batch, before anybody has looked at it.
    gateway.misbehave(&json!({"grow": 200 << 20, "start_exit": 3}));
    assert_eq!(gateway.embed(&["a"]).status, 200);
    gateway.logged("replacement failed to start: keeping the current worker", |_| true);
    gateway.misbehave(&json!({}));
    gateway.eventually("it is replaced", |gateway| restarts(gateway, "memory") == 1.0);
    assert_ne!(gateway.worker_pids(), before);
    assert_eq!(gateway.embed(&["a"]).status, 200);
}

#[test]
fn sighup_while_a_worker_waits_for_its_next_start_replaces_all_of_them() {
    for _ in 0..5 {
        let flags = ["--workers", "2", "--backoff-first", "20s"];
        let gateway = Gateway::misbehaving(&json!({}), &flags);
        gateway.wait_until_ready();
        let before = gateway.worker_pids();
        gateway.misbehave(&json!({"start_exit": 3}));
        support::kill(before[0], Signal::SIGKILL);
        gateway.eventually("it waits", |gateway| gateway.health()["workers"][0]["state"] == "backoff");
        gateway.misbehave(&json!({}));
        gateway.signal(Signal::SIGHUP);
        gateway.logged("all workers replaced", |_| true);
        assert!(gateway.worker_pids().iter().all(|pid| !before.contains(pid)));
        assert!(!gateway.log_contains("the other workers are kept"));
    }
}

#[test]
fn a_text_without_a_usable_vector_costs_no_worker_its_place() {
    // Every batch with the letter z is NaN as a whole, as a real worker tells it.
    let gateway = Gateway::misbehaving(&json!({"bad_text": 28}), &["--workers", "2"]);
    gateway.wait_until_ready();
    let before = gateway.worker_pids();
    for _ in 0..3 {
        assert_eq!(gateway.embed(&["z", "a", "b"]).code(), (500, "bad_worker_output".to_owned()));
        assert_eq!(gateway.vectors(&["a"])[0], support::fake_vector("a"));
    }
    assert_eq!(gateway.worker_pids(), before);
    assert_eq!(restarts(&gateway, "bad_output"), 0.0);
}

#[test]
fn a_lone_worker_that_gives_no_usable_vector_any_more_is_replaced() {
    let gateway = Gateway::misbehaving(&json!({"numbers": "nan"}), &["--workers", "1"]);
    gateway.wait_until_ready();
    let before = gateway.worker_pids();
    for _ in 0..5 {
        assert_eq!(gateway.embed(&["a"]).status, 500);
    }
    gateway.misbehave(&json!({}));
    gateway.eventually("it is replaced", |gateway| gateway.worker_pids() != before);
}

#[test]
fn a_small_request_is_not_held_up_by_many_large_ones() {
    let gateway = Gateway::fake(&["--workers", "1"]);
    gateway.wait_until_ready();
    std::thread::scope(|scope| {
        for _ in 0..6 {
            let body = json!({"texts": vec!["b ".repeat(32_000); 60]}).to_string();
            scope.spawn(|| {
                let body = body;
                assert_eq!(gateway.post("/api/v1/embed", &body).status, 200);
            });
        }
        std::thread::sleep(Duration::from_millis(300));
        let small = "a ".repeat(5_000);
        let started = Instant::now();
        assert_eq!(gateway.embed(&[small.trim()]).status, 200);
        assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    });
}

#[test]
fn a_request_waits_for_a_worker_that_is_due_within_its_time() {
    let flags = ["--workers", "1", "--request-timeout", "4s", "--backoff-first", "20s"];
    let gateway = Gateway::misbehaving(&json!({"start_delay": 1.0}), &flags);
    gateway.wait_until_ready();
    support::kill(gateway.worker_pids()[0], Signal::SIGKILL);
    gateway.eventually("it starts", |gateway| gateway.health()["workers"][0]["state"] == "starting");
    assert_eq!(gateway.embed(&["a"]).status, 200);
}
