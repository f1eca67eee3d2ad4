//! Workers that can compute nothing any more, beyond the fault table's row 6: whose fault a failed text is.
//!
//! Token 28 is the letter z.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::{Gateway, embed_right, generations, restarts};

/// A ready gateway, of whose workers the first one misbehaves.
fn whose_first_worker(workers: &str, misbehaviour: &Value) -> Gateway {
    let gateway = Gateway::misbehaving(&json!({}), &["--workers", workers]);
    gateway.wait_until_ready();
    let mut misbehaviour = misbehaviour.clone();
    misbehaviour["only_pid"] = json!(gateway.worker_pids()[0]);
    gateway.misbehave(&misbehaviour);
    gateway
}

#[test]
fn every_request_is_answered_by_the_successor_of_an_only_worker_that_can_compute_nothing() {
    const REQUESTS: u32 = 79;
    const DURATION: Duration = Duration::from_millis(8600);
    let check = |misbehaviour: &Value, reason: &str| {
        let gateway = whose_first_worker("1", misbehaviour);
        std::thread::scope(|scope| {
            for request in 0..REQUESTS {
                let gateway = &gateway;
                scope.spawn(move || {
                    std::thread::sleep(DURATION / REQUESTS * request);
                    let letter = char::from(b'a' + u8::try_from(request % 26).unwrap());
                    let texts = [format!("{letter} b"), format!("c {letter}")];
                    // One text, and several, which run one by one when their batch fails.
                    let texts = texts.iter().take(1 + request as usize % 2).map(String::as_str);
                    embed_right(gateway, &texts.collect::<Vec<_>>());
                });
            }
        });
        assert_eq!((restarts(&gateway, reason), generations(&gateway)), (1.0, 2), "{misbehaviour}");
        assert_eq!(gateway.metric("akidb_poison_texts_total"), 0.0, "{misbehaviour}");
    };
    std::thread::scope(|scope| {
        scope.spawn(|| check(&json!({"fail": true, "start_delay": 8}), "failures"));
        scope.spawn(|| check(&json!({"device_lost": true, "start_delay": 8}), "device_lost"));
    });
}

#[test]
fn a_worker_that_fails_its_warm_up_text_is_given_no_more_work_and_the_other_one_answers() {
    let gateway = whose_first_worker("2", &json!({"fail": true, "start_delay": 2}));
    let failing = gateway.worker_pids()[0];
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| embed_right(&gateway, &["a b", "c", "d e"]));
        }
    });
    let lost = gateway.logged("worker lost", |_| true);
    assert_eq!((&lost["pid"], &lost["reason"]), (&json!(failing), &json!("failures")));
    assert_eq!(lost["detail"], "it fails its warm-up text, too");
    assert_eq!((gateway.count_logged("worker lost"), gateway.count_logged("replacing worker")), (1, 0));
}

#[test]
fn a_worker_that_dies_hangs_or_gives_no_vector_for_its_warm_up_text_makes_no_text_suspect() {
    for (at_warm_up, reason) in [
        (json!({"numbers": "nan"}), "failures"),
        (json!({"signal": 11}), "signal"),
        (json!({"hang": true}), "progress"),
    ] {
        let flags = ["--workers", "1", "--progress-timeout", "300ms", "--backoff-first", "10ms"];
        let misbehaviour = json!({"culprit": 28, "at_warm_up": at_warm_up});
        let gateway = Gateway::misbehaving(&misbehaviour, &flags);
        gateway.wait_until_ready();
        // The second worker would have convicted a suspect.
        assert_eq!(gateway.embed(&["z"]).code(), (503, "worker_lost".to_owned()), "{misbehaviour}");
        gateway.eventually("three workers are lost", |gateway| restarts(gateway, reason) == 3.0);
        assert_eq!(gateway.metric("akidb_poison_texts_total"), 0.0, "{misbehaviour}");
        gateway.misbehave(&json!({}));
        embed_right(&gateway, &["z"]);
    }
}

#[test]
fn a_text_that_fails_alone_on_a_sound_worker_is_told_so_at_once_and_costs_no_worker() {
    let gateway = Gateway::misbehaving(&json!({"culprit": 28}), &["--workers", "1"]);
    gateway.wait_until_ready();
    let before = gateway.worker_pids();
    let times = (0..20).map(|_| {
        let started = Instant::now();
        assert_eq!(gateway.embed(&["z"]).code(), (500, "inference_failed".to_owned()));
        let took = started.elapsed();
        embed_right(&gateway, &["a"]);
        took
    });
    let fastest = times.min().unwrap();
    assert!(fastest < Duration::from_millis(100), "{fastest:?}");
    assert_eq!(gateway.worker_pids(), before);
}

#[test]
fn a_text_whose_deadline_passes_before_it_is_known_whose_fault_it_was_is_answered_504() {
    let flags = ["--workers", "1", "--request-timeout", "500ms"];
    let gateway = Gateway::misbehaving(&json!({"culprit": 28, "at_warm_up": {"delay": 1.5}}), &flags);
    gateway.wait_until_ready();
    let started = Instant::now();
    assert_eq!(gateway.embed(&["z"]).code(), (504, "deadline_exceeded".to_owned()));
    assert!(started.elapsed() < Duration::from_millis(1400));
    gateway.eventually("the worker answers", |gateway| gateway.embed(&["a"]).status == 200);
    assert_eq!(generations(&gateway), 1);
}

#[test]
fn a_worker_is_relieved_only_when_it_is_known_whose_fault_its_last_text_was() {
    let gateway =
        Gateway::misbehaving(&json!({"culprit": 28, "delay": 0.4, "start_delay": 0}), &["--workers", "1"]);
    gateway.wait_until_ready();
    let before = gateway.worker_pids();
    std::thread::scope(|scope| {
        let culprit = scope.spawn(|| gateway.embed(&["z"]));
        std::thread::sleep(Duration::from_millis(100));
        gateway.signal(Signal::SIGHUP);
        assert_eq!(culprit.join().unwrap().code(), (500, "inference_failed".to_owned()));
    });
    gateway.logged("worker replaced", |line| line["pid"] == before[0]);
    embed_right(&gateway, &["a"]);
}

#[test]
fn row_05_a_batch_on_a_gpu_may_make_no_progress_for_fifteen_seconds() {
    let gateway = Gateway::misbehaving(&json!({"delay": 4}), &["--workers", "1", "--device", "gpu"]);
    gateway.wait_until_ready();
    embed_right(&gateway, &["a"]);
    assert_eq!(generations(&gateway), 1);
    // A time that is given holds for a GPU, too.
    let flags = ["--workers", "1", "--device", "gpu", "--progress-timeout", "300ms"];
    let gateway = Gateway::misbehaving(&json!({"hang": true, "times": 1}), &flags);
    gateway.wait_until_ready();
    embed_right(&gateway, &["a"]);
    assert_eq!(restarts(&gateway, "progress"), 1.0);
}
