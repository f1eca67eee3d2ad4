//! What happens to workers beyond the fault table, which `fault_rows` and `fault_rows_life` go through.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{Gateway, embed_right, generations};

#[test]
fn a_batch_whose_worker_dies_is_answered_by_the_other_one() {
    for misbehaviour in [
        json!({"signal": 9, "times": 1}),
        json!({"signal": 11, "times": 1}),
        json!({"signal": 6, "times": 1}),
        json!({"exit": 1, "times": 1}),
        json!({"exit": 0, "times": 1}),
    ] {
        let gateway = Gateway::misbehaving(&misbehaviour, &["--workers", "2"]);
        gateway.wait_until_ready();
        embed_right(&gateway, &["a b", "c", "d e f"]);
        gateway.logged("worker lost", |_| true);
        gateway.wait_until_ready();
        assert_eq!(generations(&gateway), 3, "{misbehaviour}");
    }
}

#[test]
fn requests_that_outlive_their_deadline_are_answered_504() {
    let gateway =
        Gateway::misbehaving(&json!({"delay": 2}), &["--workers", "1", "--request-timeout", "300ms"]);
    gateway.wait_until_ready();
    let started = Instant::now();
    assert_eq!(gateway.embed(&["a"]).code(), (504, "deadline_exceeded".to_owned()));
    assert!(started.elapsed() < Duration::from_millis(1500));
}

#[test]
fn a_worker_that_ends_before_it_is_ready_is_started_again_with_growing_waits() {
    let gateway = Gateway::misbehaving(&json!({"start_exit": 3}), &["--workers", "1"]);
    gateway.eventually("it was started three times", |gateway| generations(gateway) >= 3);
    let line = gateway.logged("worker lost", |line| line["generation"] == 2);
    assert_eq!((&line["exit_code"], &line["last_words"]), (&json!(3), &json!("asked to end")));
    gateway.misbehave(&json!({}));
    embed_right(&gateway, &["a"]);
}

#[test]
fn a_gateway_that_was_suspended_keeps_its_healthy_workers() {
    let gateway = Gateway::misbehaving(&json!({}), &["--workers", "2"]);
    gateway.wait_until_ready();
    let workers = gateway.worker_pids();
    for _ in 0..2 {
        gateway.signal(Signal::SIGSTOP);
        std::thread::sleep(Duration::from_secs(4));
        gateway.signal(Signal::SIGCONT);
        embed_right(&gateway, &["a"]);
        std::thread::sleep(Duration::from_millis(800));
    }
    assert_eq!(gateway.worker_pids(), workers);
}
