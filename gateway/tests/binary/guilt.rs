//! Who is to blame for a lost worker: the fault table's row 15, and rows 2 and 5 where they touch it.
//!
//! Token 28 is the letter z.

use std::time::Duration;

use serde_json::json;

use crate::support::{self, Gateway, embed_right, restarts};

fn poison_input() -> (u16, String) {
    (422, "poison_input".to_owned())
}

fn convicts(gateway: &Gateway) -> f64 {
    gateway.metric("akidb_poison_texts_total")
}

#[test]
fn row_15_a_poison_text_kills_at_most_two_workers_and_is_remembered_while_its_mates_are_answered() {
    let gateway = Gateway::misbehaving(&json!({"poison": 28, "delay": 0.05}), &["--workers", "2"]);
    gateway.wait_until_ready();
    let before = gateway.worker_pids();
    std::thread::scope(|scope| {
        let poisoned = scope.spawn(|| gateway.embed(&["z", "c"]));
        let mates: Vec<_> = (0..6).map(|_| scope.spawn(|| embed_right(&gateway, &["a", "b"]))).collect();
        let answer = poisoned.join().unwrap();
        assert_eq!(answer.code(), (422, "poison_input".to_owned()));
        assert!(answer.json()["error"]["message"].as_str().unwrap().contains("text 0"), "{}", answer.text);
        for mate in mates {
            mate.join().unwrap();
        }
    });
    assert!(restarts(&gateway, "signal") <= 2.0, "{} workers died", restarts(&gateway, "signal"));
    assert_eq!(gateway.metric("akidb_poison_texts_total"), 1.0);
    gateway.wait_until_ready();
    let after = gateway.worker_pids();
    assert_ne!(before, after);
    for _ in 0..3 {
        assert_eq!(gateway.embed(&["a", "z"]).code(), (422, "poison_input".to_owned()));
    }
    embed_right(&gateway, &["y"]);
    assert_eq!(gateway.worker_pids(), after, "a remembered text touched a worker");
}

#[test]
fn row_15_a_kill_from_outside_convicts_no_text() {
    let flags = ["--workers", "2", "--backoff-first", "10ms"];
    let gateway = Gateway::misbehaving(&json!({"killed_by": 28}), &flags);
    gateway.wait_until_ready();
    let answer = gateway.embed(&["z"]);
    assert_eq!(answer.code(), (503, "worker_lost".to_owned()));
    assert!(answer.header("retry-after").is_some());
    assert_eq!(restarts(&gateway, "signal"), 3.0);
    assert_eq!(gateway.metric("akidb_poison_texts_total"), 0.0);
    gateway.misbehave(&json!({}));
    embed_right(&gateway, &["z"]);
}

#[test]
fn row_15_a_poison_text_is_forgotten_in_the_end() {
    let gateway =
        Gateway::misbehaving(&json!({"poison": 28}), &["--workers", "1", "--poison-memory", "500ms"]);
    gateway.wait_until_ready();
    assert_eq!(gateway.embed(&["z"]).status, 422);
    gateway.misbehave(&json!({}));
    assert_eq!(gateway.embed(&["z"]).status, 422);
    std::thread::sleep(Duration::from_millis(600));
    embed_right(&gateway, &["z"]);
}

#[test]
fn row_15_one_death_convicts_nobody_and_an_answer_acquits() {
    for misbehaviour in [
        json!({"signal": 11, "times": 1}),
        json!({"signal": 6, "times": 1}),
        json!({"exit": 1, "times": 1}),
        json!({"exit": 0, "times": 1}),
        json!({"hang": true, "times": 1}),
        json!({"exit": 1, "before_begun": true, "times": 1}),
    ] {
        let flags = ["--workers", "1", "--progress-timeout", "300ms", "--backoff-first", "10ms"];
        let gateway = Gateway::misbehaving(&json!({}), &flags);
        gateway.wait_until_ready();
        // Each time it is answered in the end, so the next death is the first one again.
        for _ in 0..3 {
            gateway.misbehave(&misbehaviour);
            embed_right(&gateway, &["a"]);
        }
        assert_eq!(convicts(&gateway), 0.0, "{misbehaviour}");
        assert_eq!(support::generations(&gateway), 4, "{misbehaviour}");
    }
}

#[test]
fn row_15_a_text_is_convicted_by_two_deaths_however_its_workers_end() {
    for (misbehaviour, reason) in [
        (json!({"poison": 28}), "signal"),
        (json!({"poison": 28, "before_begun": true}), "signal"),
        (json!({"signal": 6}), "signal"),
        (json!({"exit": 0}), "exit"),
        (json!({"exit": 70}), "exit"),
        (json!({"exit": 3, "before_begun": true}), "exit"),
        (json!({"hang_at": 28}), "progress"),
        (json!({"hang_at": 28, "before_begun": true}), "progress"),
    ] {
        let flags = ["--workers", "2", "--progress-timeout", "300ms"];
        let gateway = Gateway::misbehaving(&misbehaviour, &flags);
        gateway.wait_until_ready();
        assert_eq!(gateway.embed(&["z"]).code(), poison_input(), "{misbehaviour}");
        assert_eq!(restarts(&gateway, reason), 2.0, "{misbehaviour}");
        assert_eq!(gateway.embed(&["z"]).code(), poison_input(), "{misbehaviour}");
        assert_eq!(restarts(&gateway, reason), 2.0, "{misbehaviour}");
        assert_eq!(convicts(&gateway), 1.0, "{misbehaviour}");
    }
}

#[test]
fn row_15_a_suspect_of_one_request_runs_alone_in_the_next_and_is_convicted_there() {
    let flags = ["--workers", "1", "--request-timeout", "1s", "--batch-wait", "300ms"];
    let gateway = Gateway::misbehaving(&json!({}), &flags);
    gateway.wait_until_ready();
    // The first request is over before there is a worker to try its text again.
    gateway.misbehave(&json!({"poison": 28, "start_delay": 1.5}));
    assert_eq!(gateway.embed(&["z"]).code(), (503, "worker_lost".to_owned()));
    gateway.misbehave(&json!({"poison": 28}));
    gateway.wait_until_ready();
    assert_eq!((restarts(&gateway, "signal"), convicts(&gateway)), (1.0, 0.0));
    std::thread::scope(|scope| {
        // All in one batch, were it not for the suspect.
        let poisoned = scope.spawn(|| gateway.embed(&["z"]));
        let mates: Vec<_> = (0..4).map(|_| scope.spawn(|| embed_right(&gateway, &["a", "b"]))).collect();
        assert_eq!(poisoned.join().unwrap().code(), poison_input());
        for mate in mates {
            mate.join().unwrap();
        }
    });
    assert_eq!((restarts(&gateway, "signal"), convicts(&gateway)), (2.0, 1.0));
}

#[test]
fn row_15_a_request_of_nothing_but_the_same_poison_costs_two_workers() {
    let gateway = Gateway::misbehaving(&json!({"poison": 28}), &["--workers", "1"]);
    gateway.wait_until_ready();
    assert_eq!(gateway.embed(&["z"; 20]).code(), poison_input());
    assert_eq!(restarts(&gateway, "signal"), 2.0);
    embed_right(&gateway, &["a"]);
}

#[test]
fn row_15_without_a_memory_a_poison_text_is_found_anew_in_every_request() {
    let flags = ["--workers", "2", "--poison-memory", "0s", "--backoff-first", "10ms"];
    let gateway = Gateway::misbehaving(&json!({"poison": 28}), &flags);
    gateway.wait_until_ready();
    for deaths in [2.0, 4.0] {
        assert_eq!(gateway.embed(&["z"]).code(), poison_input());
        assert_eq!(restarts(&gateway, "signal"), deaths);
    }
}

#[test]
fn row_15_a_lost_device_convicts_no_text_but_uses_an_attempt() {
    let flags = ["--workers", "2", "--backoff-first", "10ms"];
    let gateway = Gateway::misbehaving(&json!({"device_lost": true, "times": 1}), &flags);
    gateway.wait_until_ready();
    embed_right(&gateway, &["a", "b"]);
    assert_eq!(gateway.logged("worker lost", |_| true)["reason"], "device_lost");
    gateway.wait_until_ready();
    gateway.misbehave(&json!({"device_lost_at": 28}));
    assert_eq!(gateway.embed(&["z"]).code(), (503, "worker_lost".to_owned()));
    assert_eq!((restarts(&gateway, "device_lost"), convicts(&gateway)), (4.0, 0.0));
    gateway.misbehave(&json!({}));
    embed_right(&gateway, &["z"]);
}

#[test]
fn row_15_silence_and_broken_frames_convict_no_text() {
    for (misbehaviour, reason) in
        [(json!({"signal": 19}), "heartbeat"), (json!({"garbage": "00".repeat(64)}), "protocol_error")]
    {
        let flags = ["--workers", "2", "--backoff-first", "10ms", "--heartbeat-timeout", "600ms"];
        let gateway = Gateway::misbehaving(&misbehaviour, &flags);
        gateway.wait_until_ready();
        assert_eq!(gateway.embed(&["a"]).code(), (503, "worker_lost".to_owned()), "{misbehaviour}");
        assert_eq!((restarts(&gateway, reason), convicts(&gateway)), (3.0, 0.0), "{misbehaviour}");
        gateway.misbehave(&json!({}));
        embed_right(&gateway, &["a"]);
    }
}

#[test]
fn row_02_a_worker_that_dies_before_it_begins_costs_its_first_frame_an_attempt() {
    let flags = ["--workers", "2", "--backoff-first", "10ms"];
    let gateway = Gateway::misbehaving(&json!({"signal": 9, "before_begun": true}), &flags);
    gateway.wait_until_ready();
    assert_eq!(gateway.embed(&["a"]).code(), (503, "worker_lost".to_owned()));
    assert_eq!((restarts(&gateway, "signal"), convicts(&gateway)), (3.0, 0.0));
    gateway.misbehave(&json!({"signal": 9, "before_begun": true, "times": 2}));
    embed_right(&gateway, &["a"]);
}

#[test]
fn row_02_frames_behind_the_first_one_are_not_charged() {
    // Three deaths at the first frame would use up the attempts of every other text, were they charged.
    let flags = ["--workers", "1", "--backoff-first", "10ms", "--max-batch-tokens", "1"];
    let flags = [&flags[..], &["--max-inflight-per-worker", "8"]].concat();
    let gateway = Gateway::misbehaving(&json!({}), &flags);
    gateway.wait_until_ready();
    gateway.misbehave(&json!({"killed_by": 28, "before_begun": true, "delay": 0.1}));
    std::thread::scope(|scope| {
        let victim = scope.spawn(|| gateway.embed(&["z"]));
        let others: Vec<_> = (0..6).map(|_| scope.spawn(|| embed_right(&gateway, &["a"]))).collect();
        assert_eq!(victim.join().unwrap().code(), (503, "worker_lost".to_owned()));
        for other in others {
            other.join().unwrap();
        }
    });
    assert_eq!(restarts(&gateway, "signal"), 3.0);
}

#[test]
fn row_05_a_worker_that_hangs_before_it_begins_is_killed_as_well() {
    let flags = ["--workers", "2", "--progress-timeout", "300ms"];
    let misbehaviour = json!({"hang": true, "before_begun": true, "times": 1});
    let gateway = Gateway::misbehaving(&misbehaviour, &flags);
    gateway.wait_until_ready();
    embed_right(&gateway, &["a b", "c"]);
    assert_eq!(restarts(&gateway, "progress"), 1.0);
}

#[test]
fn row_15_the_same_poison_in_many_requests_at_once_costs_two_workers() {
    for (workers, flags) in [("1", &[][..]), ("2", &[]), ("2", &["--max-batch-tokens", "1"])] {
        let flags = [&["--workers", workers][..], flags].concat();
        let gateway = Gateway::misbehaving(&json!({"poison": 28, "delay": 0.1}), &flags);
        gateway.wait_until_ready();
        std::thread::scope(|scope| {
            for _ in 0..10 {
                scope.spawn(|| assert_eq!(gateway.embed(&["z"]).code(), poison_input()));
            }
        });
        assert_eq!((restarts(&gateway, "signal"), convicts(&gateway)), (2.0, 1.0), "{flags:?}");
    }
}
