//! The fault table, rows about workers: one test a row, named after its number. `http_faults` has the rows about HTTP.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{self, Gateway, embed_right, restarts};

/// Embeds from several clients at once for as long as `during` takes; every answer must be right.
fn under_load(gateway: &Gateway, during: impl FnOnce()) -> usize {
    let is_over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut answers = 0;
                    while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                        embed_right(gateway, &["a b", "c"]);
                        answers += 1;
                    }
                    answers
                })
            })
            .collect();
        during();
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    })
}

#[test]
fn row_01_a_worker_killed_while_idle_is_back_within_a_second_and_no_client_sees_it() {
    let gateway = Gateway::misbehaving(&json!({"start_delay": 0.2}), &["--workers", "1"]);
    gateway.wait_until_ready();
    let before = gateway.worker_pids();
    support::kill(before[0], Signal::SIGKILL);
    let took = embed_right(&gateway, &["a b", "c"]);
    assert!(took < Duration::from_secs(1), "the next worker was ready after {took:?}");
    assert_ne!(gateway.worker_pids(), before);
    let line = gateway.logged("worker lost", |line| line["worker"] == 0);
    assert_eq!((&line["reason"], &line["signal"]), (&json!("signal"), &json!("SIGKILL")));
    assert_eq!((&line["pid"], &line["generation"]), (&json!(before[0]), &json!(1)));
    assert!(line["in_flight"].is_u64() && line.get("exit_code").is_none(), "{line}");
    let uptime = line["uptime_seconds"].as_f64().unwrap();
    assert!((0.2..30.0).contains(&uptime), "it was ready after 0.2 s: {line}");
}

#[test]
fn row_02_a_batch_whose_worker_is_killed_is_answered_by_another_or_by_its_successor() {
    for workers in ["2", "1"] {
        let misbehaviour = json!({"signal": 9, "times": 1, "start_delay": 0.2});
        let gateway = Gateway::misbehaving(&misbehaviour, &["--workers", workers]);
        gateway.wait_until_ready();
        let took = embed_right(&gateway, &["a b", "c", "d e f"]);
        assert!(took < Duration::from_secs(2), "{took:?}");
        let line = gateway.logged("worker lost", |_| true);
        assert!(line["in_flight"].as_u64().unwrap() >= 1, "{line}");
    }
    let gateway = Gateway::misbehaving(&json!({}), &["--workers", "1", "--request-timeout", "1s"]);
    gateway.wait_until_ready();
    gateway.misbehave(&json!({"signal": 9, "start_delay": 60}));
    let answer = gateway.embed(&["a"]);
    assert_eq!(answer.code(), (503, "worker_lost".to_owned()));
    assert!(answer.header("retry-after").is_some());
}

#[test]
fn row_03_a_worker_that_segfaults_or_aborts_costs_nobody_an_answer_and_its_signal_is_logged() {
    for (number, name) in [(11, "SIGSEGV"), (6, "SIGABRT")] {
        let gateway = Gateway::misbehaving(&json!({"signal": number, "times": 1}), &["--workers", "2"]);
        gateway.wait_until_ready();
        embed_right(&gateway, &["a b", "c", "d e f"]);
        let line = gateway.logged("worker lost", |_| true);
        assert_eq!((&line["reason"], &line["signal"]), (&json!("signal"), &json!(name)));
        assert_eq!(restarts(&gateway, "signal"), 1.0);
    }
}

#[test]
fn row_04_a_stopped_worker_is_killed_after_three_seconds_and_its_work_goes_on_elsewhere() {
    let gateway = Gateway::misbehaving(&json!({"delay": 0.1}), &["--workers", "2"]);
    gateway.wait_until_ready();
    let stopped = gateway.worker_pids()[0];
    let started = Instant::now();
    support::kill(stopped, Signal::SIGSTOP);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| embed_right(&gateway, &["a", "b"]));
        }
        gateway.eventually("it is not called ready", |gateway| {
            gateway.health()["workers"][0]["state"] == "unresponsive"
        });
    });
    gateway.logged("worker lost", |line| line["reason"] == "heartbeat");
    let took = started.elapsed().as_secs_f64();
    assert!((1.9..6.0).contains(&took), "it was killed after {took} s");
    gateway.eventually("its process is gone", |_| !support::is_alive(stopped));
    gateway.wait_until_ready();
}

#[test]
fn row_05_a_batch_that_hangs_costs_its_worker_its_life_and_a_slow_one_that_gets_on_does_not() {
    let flags = ["--workers", "2", "--progress-timeout", "500ms", "--heartbeat-timeout", "300ms"];
    let gateway = Gateway::misbehaving(&json!({"hang": true, "times": 1}), &flags);
    gateway.wait_until_ready();
    let took = embed_right(&gateway, &["a b", "c"]);
    assert!(took > Duration::from_millis(500) && took < Duration::from_secs(3), "{took:?}");
    let line = gateway.logged("worker lost", |_| true);
    assert_eq!(line["reason"], "progress");
    gateway.wait_until_ready();
    gateway.misbehave(&json!({"delay": 1.5, "progress": true, "times": 1}));
    embed_right(&gateway, &["a b", "c"]);
    assert_eq!(restarts(&gateway, "progress"), 1.0, "a batch that got on was killed");
    // A hung worker is never ready.
    gateway.misbehave(&json!({"hang": true}));
    std::thread::scope(|scope| {
        scope.spawn(|| gateway.embed(&["a", "b", "c", "d"]));
        gateway.eventually("a hung worker is not ready", |gateway| gateway.get("/readyz").status == 503);
        gateway.misbehave(&json!({}));
    });
}

#[test]
fn row_06_an_exception_fails_only_the_text_that_raised_it_and_three_in_a_row_replace_the_worker() {
    // Token 28 is the letter z.
    let gateway = Gateway::misbehaving(&json!({"culprit": 28}), &["--workers", "1"]);
    gateway.wait_until_ready();
    let before = gateway.worker_pids();
    assert_eq!(gateway.embed(&["a", "z", "b"]).code(), (500, "inference_failed".to_owned()));
    std::thread::scope(|scope| {
        gateway.misbehave(&json!({"culprit": 28, "delay": 0.1}));
        let culprit = scope.spawn(|| gateway.embed(&["z"]));
        let mates: Vec<_> = (0..4).map(|_| scope.spawn(|| embed_right(&gateway, &["a", "b c"]))).collect();
        assert_eq!(culprit.join().unwrap().code(), (500, "inference_failed".to_owned()));
        for mate in mates {
            mate.join().unwrap();
        }
    });
    assert_eq!(gateway.worker_pids(), before, "the worker was replaced for an exception");
    gateway.misbehave(&json!({"culprit": 28}));
    for _ in 0..3 {
        assert_eq!(gateway.embed(&["z"]).status, 500);
    }
    gateway.eventually("the worker is replaced", |gateway| restarts(gateway, "failures") == 1.0);
    embed_right(&gateway, &["a"]);
    assert_ne!(gateway.worker_pids(), before);
}

#[test]
fn row_07_a_vector_that_cannot_be_right_is_computed_again_elsewhere_and_its_worker_is_replaced() {
    for numbers in ["nan", "inf", "zero", "huge"] {
        let misbehaviour = json!({"numbers": numbers, "times": 1});
        let gateway = Gateway::misbehaving(&misbehaviour, &["--workers", "2"]);
        gateway.wait_until_ready();
        embed_right(&gateway, &["a b", "c"]);
        gateway.eventually("the worker is replaced", |gateway| restarts(gateway, "bad_output") == 1.0);
    }
    // Wrong again: an answer, and no worker dies for it.
    let gateway = Gateway::misbehaving(&json!({"numbers": "nan"}), &["--workers", "2"]);
    gateway.wait_until_ready();
    let before = gateway.worker_pids();
    assert_eq!(gateway.embed(&["a"]).code(), (500, "bad_worker_output".to_owned()));
    gateway.misbehave(&json!({}));
    embed_right(&gateway, &["a"]);
    assert_eq!(gateway.worker_pids(), before);
}

#[test]
fn row_08_an_answer_of_another_shape_or_batch_kills_the_worker_and_crosses_no_vectors() {
    for misbehaviour in [
        json!({"count": 1, "times": 1}),
        json!({"count": -1, "times": 1}),
        json!({"dimension": 1, "times": 1}),
        json!({"dimension": -1, "times": 1}),
        json!({"wrong_id": true, "times": 1}),
    ] {
        protocol_error(&misbehaviour);
    }
}

#[test]
fn row_09_an_answer_cut_at_any_byte_is_a_protocol_error_and_is_computed_again() {
    for cut in [1, 11, 12, 13, 40, 100] {
        protocol_error(&json!({"cut": cut, "times": 1}));
    }
    // Cut before its first byte, it is no frame at all.
    let gateway = Gateway::misbehaving(&json!({"cut": 0, "times": 1}), &["--workers", "2"]);
    gateway.wait_until_ready();
    embed_right(&gateway, &["a b", "c"]);
    let line = gateway.logged("worker lost", |_| true);
    assert_eq!((&line["reason"], &line["exit_code"], line.get("signal")), (&json!("exit"), &json!(1), None));
}

#[test]
fn row_10_an_answer_that_stalls_inside_a_frame_is_given_up_after_a_second() {
    for stall in [1, 12, 40] {
        let started = Instant::now();
        let gateway = protocol_error(&json!({"stall": stall, "times": 1}));
        assert!(started.elapsed() > Duration::from_secs(1));
        let line = gateway.logged("worker lost", |_| true);
        assert!(line["detail"].as_str().unwrap().contains("stalled for 1s"), "{line}");
    }
}

#[test]
fn row_11_garbage_is_refused_before_memory_is_reserved_and_there_is_no_resynchronisation() {
    for garbage in [
        "00".repeat(64),
        "414b444201ff0000ffffffff".to_owned(),
        "414b444201040000ffffffff".to_owned(),
        "414b44420204000000000000".to_owned(),
    ] {
        protocol_error(&json!({"garbage": garbage, "times": 1}));
    }
}

/// Two workers, one of which breaks the protocol once: everybody is answered, no memory is taken, and it is replaced.
fn protocol_error(misbehaviour: &serde_json::Value) -> Gateway {
    let gateway = Gateway::misbehaving(misbehaviour, &["--workers", "2"]);
    gateway.wait_until_ready();
    let memory = gateway.watch_memory();
    embed_right(&gateway, &["a b", "c"]);
    let line = gateway.logged("worker lost", |_| true);
    assert_eq!(line["reason"], "protocol_error", "{misbehaviour}: {line}");
    assert_eq!(restarts(&gateway, "protocol_error"), 1.0);
    assert_eq!(gateway.metric("akidb_worker_protocol_errors_total"), 1.0, "{misbehaviour}");
    gateway.wait_until_ready();
    let most = memory.most();
    assert!(most < 200 << 20, "{misbehaviour}: {most} bytes");
    gateway
}

#[test]
fn row_16_with_no_worker_due_in_time_requests_are_refused_at_once() {
    let flags = ["--workers", "2", "--backoff-first", "20s", "--request-timeout", "5s"];
    let gateway = Gateway::misbehaving(&json!({}), &flags);
    gateway.wait_until_ready();
    gateway.misbehave(&json!({"start_exit": 3}));
    for pid in gateway.worker_pids() {
        support::kill(pid, Signal::SIGKILL);
    }
    gateway.eventually("both wait for their next start", |gateway| {
        let health = gateway.health();
        health["workers"].as_array().unwrap().iter().all(|worker| worker["state"] == "backoff")
    });
    let mut times: Vec<Duration> = (0..20)
        .map(|_| {
            let started = Instant::now();
            let answer = gateway.embed(&["a"]);
            assert_eq!(answer.code(), (503, "no_worker".to_owned()));
            let retry_after: u64 = answer.header("retry-after").unwrap().parse().unwrap();
            assert!((1..=40).contains(&retry_after), "{retry_after}");
            started.elapsed()
        })
        .collect();
    times.sort();
    assert!(times[10] < Duration::from_millis(10), "{times:?}");
    let readiness = gateway.get("/readyz");
    assert_eq!(readiness.status, 503);
    assert!(readiness.text.contains("waiting for its next start"), "{}", readiness.text);
}

#[test]
fn row_16_requests_that_wait_are_refused_once_no_worker_is_due_in_time() {
    let flags = ["--workers", "1", "--backoff-first", "20s", "--request-timeout", "5s"];
    let gateway = Gateway::misbehaving(&json!({"delay": 0.5}), &flags);
    gateway.wait_until_ready();
    gateway.misbehave(&json!({"start_exit": 3, "signal": 9}));
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let (status, code) = gateway.embed(&["a"]).code();
                assert!(status == 503 && (code == "no_worker" || code == "worker_lost"), "{code}");
            });
        }
    });
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
}

#[test]
fn row_17_a_worker_that_grows_too_large_is_replaced_by_a_ready_one_and_nobody_notices() {
    for workers in ["1", "2"] {
        let flags = ["--workers", workers, "--worker-memory-limit", "120MiB", "--memory-interval", "50ms"];
        let gateway = Gateway::misbehaving(&json!({"start_delay": 0.2}), &flags);
        gateway.wait_until_ready();
        let before = gateway.worker_pids();
        let answers = under_load(&gateway, || {
            gateway.misbehave(&json!({"start_delay": 0.2, "grow": 200 << 20, "times": 1}));
            gateway.eventually("the worker is replaced", |gateway| restarts(gateway, "memory") == 1.0);
            assert_eq!(gateway.get("/readyz").status, 200);
        });
        assert!(answers > 0);
        gateway.eventually("the old process is gone", |gateway| {
            let now = gateway.worker_pids();
            now != before && support::children(gateway.pid()).len() == before.len()
        });
        assert!(gateway.metric("akidb_worker_resident_bytes{worker=\"0\"}") > 1e6);
    }
}

#[test]
fn row_17_what_a_worker_says_of_its_memory_counts_where_little_of_it_is_resident() {
    let flags = [
        "--workers",
        "1",
        "--worker-memory-limit",
        "2GiB",
        "--memory-interval",
        "50ms",
        "--heartbeat-timeout",
        "400ms",
    ];
    let gateway = Gateway::misbehaving(&json!({"footprint": 1_u64 << 30}), &flags);
    gateway.wait_until_ready();
    let before = gateway.worker_pids();
    assert_eq!(gateway.health()["workers"][0]["rss_bytes"], 1_u64 << 30);
    assert_eq!(gateway.metric("akidb_worker_resident_bytes{worker=\"0\"}"), f64::from(1 << 30));
    assert_eq!(restarts(&gateway, "memory"), 0.0);
    gateway.misbehave(&json!({"footprint": 3_u64 << 30}));
    gateway.eventually("the worker is replaced", |gateway| restarts(gateway, "memory") == 1.0);
    // The successor says so much from the start: the limit is too small for the model.
    gateway.logged("ignoring the memory limit: the model needs more", |_| true);
    assert_ne!(gateway.worker_pids(), before);
    assert_eq!(restarts(&gateway, "memory"), 1.0);
    assert_eq!(gateway.embed(&["a"]).status, 200);
}

#[test]
fn row_17_a_worker_is_replaced_after_the_batches_it_may_answer() {
    let gateway = Gateway::misbehaving(&json!({}), &["--workers", "1", "--worker-max-batches", "5"]);
    gateway.wait_until_ready();
    gateway.eventually("it was replaced twice", |gateway| {
        embed_right(gateway, &["a"]);
        restarts(gateway, "max_batches") >= 2.0
    });
    assert_eq!(restarts(&gateway, "exit") + restarts(&gateway, "signal"), 0.0);
}
