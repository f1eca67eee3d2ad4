//! Workers that die or misbehave: nobody gets a wrong vector, and nobody waits for ever.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::{self, Gateway};

/// Embeds while the fake workers do as told, checks the vectors, and returns how long it took.
fn embed_right(gateway: &Gateway, texts: &[&str]) -> Duration {
    let started = Instant::now();
    let vectors = gateway.vectors(texts);
    for (text, vector) in texts.iter().zip(&vectors) {
        assert_eq!(*vector, support::fake_vector(text), "{text}");
    }
    started.elapsed()
}

fn generations(gateway: &Gateway) -> u64 {
    let health = gateway.health();
    health["workers"].as_array().unwrap().iter().map(|worker| worker["generation"].as_u64().unwrap()).sum()
}

#[test]
fn a_worker_killed_while_idle_is_replaced_within_a_second_and_no_client_sees_it() {
    let gateway = Gateway::misbehaving(&json!({"start_delay": 0.2}), &["--workers", "1"]);
    gateway.wait_until_ready();
    let before = gateway.worker_pids();
    support::kill(before[0], Signal::SIGKILL);
    let took = embed_right(&gateway, &["a b", "c"]);
    assert!(took < Duration::from_secs(1), "the next worker was ready after {took:?}");
    assert_ne!(gateway.worker_pids(), before);
    let line = gateway.logged("worker lost", |line| line["worker"] == 0);
    assert_eq!(line["reason"], "signal");
    assert_eq!(line["signal"], "SIGKILL");
    assert_eq!(line["pid"], before[0]);
}

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
fn a_batch_whose_only_worker_dies_is_answered_when_it_is_back() {
    let gateway =
        Gateway::misbehaving(&json!({"signal": 9, "times": 1, "start_delay": 0.2}), &["--workers", "1"]);
    gateway.wait_until_ready();
    let took = embed_right(&gateway, &["a b", "c"]);
    assert!(took >= Duration::from_millis(200) && took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn a_worker_that_never_comes_back_in_time_is_answered_503_and_said_to_be_lost() {
    let gateway = Gateway::misbehaving(&json!({}), &["--workers", "1", "--request-timeout", "1s"]);
    gateway.wait_until_ready();
    gateway.misbehave(&json!({"signal": 9, "start_delay": 60}));
    let started = Instant::now();
    let answer = gateway.embed(&["a"]);
    assert_eq!(answer.code(), (503, "worker_lost".to_owned()));
    assert!(answer.header("retry-after").is_some());
    assert!(started.elapsed() < Duration::from_secs(3));
    // The next request meets no worker at all.
    assert_eq!(gateway.embed(&["a"]).code(), (503, "no_worker".to_owned()));
}

#[test]
fn a_text_that_kills_every_worker_is_given_up_and_its_batch_mates_are_answered() {
    // Token 28 is the letter z.
    let gateway = Gateway::misbehaving(&json!({"poison": 28}), &["--workers", "2"]);
    gateway.wait_until_ready();
    std::thread::scope(|scope| {
        let poisoned = scope.spawn(|| gateway.embed(&["z"]));
        for _ in 0..3 {
            embed_right(&gateway, &["a", "b"]);
        }
        assert_eq!(poisoned.join().unwrap().code(), (503, "worker_lost".to_owned()));
    });
    embed_right(&gateway, &["y"]);
}

#[test]
fn an_answer_that_is_not_of_the_protocol_costs_the_worker_its_life_and_the_client_nothing() {
    for misbehaviour in [
        json!({"garbage": "00".repeat(64), "times": 1}),
        json!({"garbage": "414b444201ff0000ffffffff", "times": 1}),
        json!({"garbage": "414b444201040000ffffffff", "times": 1}),
        json!({"garbage": "414b44420204000000000000", "times": 1}),
        json!({"count": 1, "times": 1}),
        json!({"count": -1, "times": 1}),
        json!({"dimension": 1, "times": 1}),
        json!({"wrong_id": true, "times": 1}),
    ] {
        let gateway = Gateway::misbehaving(&misbehaviour, &["--workers", "2"]);
        gateway.wait_until_ready();
        embed_right(&gateway, &["a b", "c"]);
        let line = gateway.logged("worker lost", |_| true);
        assert_eq!(line["reason"], "protocol_error", "{misbehaviour}");
        assert_eq!(gateway.metric("akidb_worker_restarts_total{reason=\"protocol_error\"}"), 1.0);
        gateway.wait_until_ready();
    }
}

#[test]
fn an_answer_cut_at_any_place_is_run_again() {
    for cut in [0, 1, 11, 12, 40] {
        let gateway = Gateway::misbehaving(&json!({"cut": cut, "times": 1}), &["--workers", "2"]);
        gateway.wait_until_ready();
        embed_right(&gateway, &["a b", "c"]);
        gateway.logged("worker lost", |_| true);
    }
}

#[test]
fn a_stopped_worker_is_killed_after_three_seconds_and_its_work_goes_on_elsewhere() {
    let gateway = Gateway::misbehaving(&json!({"delay": 0.1}), &["--workers", "2"]);
    gateway.wait_until_ready();
    let stopped = gateway.worker_pids()[0];
    support::kill(stopped, Signal::SIGSTOP);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| embed_right(&gateway, &["a", "b"]));
        }
    });
    gateway.logged("worker lost", |line| line["reason"] == "heartbeat");
    gateway.eventually("its process is gone", |_| !support::is_alive(stopped));
    gateway.wait_until_ready();
}

#[test]
fn an_exception_fails_only_the_text_that_raised_it() {
    let gateway = Gateway::misbehaving(&json!({"culprit": 28, "delay": 0.1}), &["--workers", "1"]);
    gateway.wait_until_ready();
    std::thread::scope(|scope| {
        let culprit = scope.spawn(|| gateway.embed(&["z"]));
        let mates: Vec<_> = (0..4).map(|_| scope.spawn(|| embed_right(&gateway, &["a", "b c"]))).collect();
        assert_eq!(culprit.join().unwrap().code(), (500, "inference_failed".to_owned()));
        for mate in mates {
            mate.join().unwrap();
        }
    });
    assert_eq!(generations(&gateway), 1, "the worker was replaced for an exception");
}

#[test]
fn vectors_that_cannot_be_right_are_never_answered_200() {
    for numbers in ["nan", "inf", "zero"] {
        let gateway = Gateway::misbehaving(&json!({"numbers": numbers}), &["--workers", "1"]);
        assert_eq!(gateway.embed(&["a"]).code(), (500, "bad_worker_output".to_owned()), "{numbers}");
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
fn one_fatal_worker_among_ready_ones_is_not_started_again() {
    let gateway = Gateway::misbehaving(&json!({}), &["--workers", "2"]);
    gateway.wait_until_ready();
    gateway.misbehave(&json!({"fatal": "the model file has gone"}));
    support::kill(gateway.worker_pids()[1], Signal::SIGKILL);
    gateway.eventually("it is given up", |gateway| gateway.health()["workers"][1]["state"] == "failed");
    gateway.misbehave(&json!({}));
    std::thread::sleep(Duration::from_millis(700));
    let worker: Value = gateway.health()["workers"][1].clone();
    assert_eq!(
        (&worker["state"], &worker["generation"], &worker["pid"]),
        (&json!("failed"), &json!(2), &Value::Null)
    );
    embed_right(&gateway, &["a"]);
}

#[test]
fn when_every_worker_is_given_up_requests_are_refused_at_once() {
    let gateway = Gateway::misbehaving(&json!({}), &["--workers", "1"]);
    embed_right(&gateway, &["a"]);
    gateway.misbehave(&json!({"fatal": "the model file has gone"}));
    support::kill(gateway.worker_pids()[0], Signal::SIGKILL);
    gateway.eventually("it is given up", |gateway| gateway.health()["workers"][0]["state"] == "failed");
    let started = Instant::now();
    assert_eq!(gateway.embed(&["a"]).code(), (503, "no_worker".to_owned()));
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
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

#[test]
fn many_crashes_leave_no_process_and_no_descriptor_behind() {
    let gateway =
        Gateway::misbehaving(&json!({"delay": 0.02}), &["--workers", "2", "--max-batch-tokens", "1"]);
    gateway.wait_until_ready();
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", gateway.pid())).unwrap().count();
    embed_right(&gateway, &["a"]);
    let before = descriptors();
    for _ in 0..10 {
        for pid in gateway.worker_pids() {
            support::kill(pid, Signal::SIGKILL);
        }
        embed_right(&gateway, &["a"]);
        gateway.wait_until_ready();
        // Both answer a batch, so that neither waits longer and longer before its next start.
        embed_right(&gateway, &["a", "b", "c", "d", "e", "f"]);
    }
    gateway.eventually("the descriptors are given back", |_| descriptors() <= before + 2);
    let children = support::children(gateway.pid());
    assert!(children.len() <= 2, "{children:?}");
}
