//! The fault table, rows about starting, stopping and replacing: one test a row, named after its number.

use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{self, Gateway, embed_right};

#[test]
fn row_12_a_worker_that_can_never_be_ready_ends_the_gateway_with_78() {
    for misbehaviour in [json!({"fatal": "the weights are damaged"}), json!({"hello_version": 9})] {
        let mut gateway = Gateway::misbehaving(&misbehaviour, &["--workers", "2"]);
        assert_eq!(gateway.wait().code(), Some(78), "{misbehaviour}");
    }
    // Not retried, and the others serve on.
    let gateway = Gateway::misbehaving(&json!({}), &["--workers", "2"]);
    gateway.wait_until_ready();
    gateway.misbehave(&json!({"fatal": "the model file has gone"}));
    support::kill(gateway.worker_pids()[1], Signal::SIGKILL);
    gateway.eventually("it is given up", |gateway| gateway.health()["workers"][1]["state"] == "failed");
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(gateway.health()["workers"][1]["generation"], 2);
    embed_right(&gateway, &["a"]);
}

#[test]
fn row_13_a_worker_that_is_never_ready_is_killed_at_the_start_deadline_and_readyz_says_why() {
    let flags = ["--workers", "1", "--start-timeout", "1s"];
    let gateway = Gateway::misbehaving(&json!({"never_ready": true}), &flags);
    let line = gateway.logged("worker lost", |line| line["reason"] == "start_timeout");
    assert_eq!(line["signal"], "SIGKILL");
    gateway.eventually("readyz says why", |gateway| {
        let readiness = gateway.get("/readyz");
        readiness.status == 503 && readiness.text.contains("last lost: start_timeout")
    });
}

#[test]
fn row_04_a_worker_that_is_stopped_while_it_starts_is_killed_and_holds_up_no_replacement() {
    let flags = ["--workers", "2", "--start-heartbeat-timeout", "1s"];
    let gateway = Gateway::misbehaving(&json!({}), &flags);
    gateway.wait_until_ready();
    let before = gateway.worker_pids();
    gateway.misbehave(&json!({"start_delay": 60}));
    support::kill(before[0], Signal::SIGKILL);
    gateway.eventually("its successor starts", |gateway| {
        let worker = &gateway.health()["workers"][0];
        worker["state"] == "starting" && worker["generation"] == 2 && worker["pid"].is_u64()
    });
    let starting = gateway.worker_pids()[0];
    let stopped = Instant::now();
    support::kill(starting, Signal::SIGSTOP);
    gateway.misbehave(&json!({}));
    gateway.signal(Signal::SIGHUP);
    let line = gateway.logged("worker lost", |line| line["pid"] == starting);
    assert_eq!((&line["reason"], &line["signal"]), (&json!("heartbeat"), &json!("SIGKILL")));
    assert!(stopped.elapsed() > Duration::from_millis(900), "{:?}", stopped.elapsed());
    gateway.logged("all workers replaced", |_| true);
    assert!(stopped.elapsed() < Duration::from_secs(20), "{:?}", stopped.elapsed());
    assert!(!gateway.worker_pids().contains(&before[1]));
}

#[test]
fn row_04_a_worker_that_is_silent_before_its_hello_is_killed() {
    let flags = ["--workers", "1", "--start-heartbeat-timeout", "1s"];
    let gateway = Gateway::misbehaving(&json!({"hello_delay": 60}), &flags);
    let line = gateway.logged("worker lost", |_| true);
    assert_eq!((&line["reason"], &line["signal"]), (&json!("heartbeat"), &json!("SIGKILL")));
    let uptime = line["uptime_seconds"].as_f64().unwrap();
    assert!(uptime > 0.9, "it was killed after {uptime} s");
    gateway.eventually("readyz says why", |gateway| {
        gateway.get("/readyz").text.contains("last lost: heartbeat")
    });
}

#[test]
fn row_04_a_worker_that_starts_slowly_but_gives_signs_of_life_is_left_alone() {
    let flags = ["--workers", "1", "--start-heartbeat-timeout", "2s"];
    let gateway = Gateway::misbehaving(&json!({"start_delay": 5}), &flags);
    gateway.wait_until_ready();
    assert_eq!(support::generations(&gateway), 1);
    // An import that holds the interpreter's lock is silent for longer than a ready worker may be.
    let flags = ["--workers", "1", "--heartbeat-timeout", "600ms"];
    let gateway = Gateway::misbehaving(&json!({"hold_gil": 3}), &flags);
    gateway.wait_until_ready();
    assert_eq!(support::generations(&gateway), 1);
}

#[test]
fn row_14_a_crash_loop_is_told_and_tried_again_only_now_and_then() {
    let flags = [
        "--workers",
        "1",
        "--backoff-first",
        "20ms",
        "--backoff-longest",
        "50ms",
        "--crash-loop-wait",
        "1500ms",
    ];
    let gateway = Gateway::misbehaving(&json!({"start_exit": 3}), &flags);
    gateway.eventually("it is a crash loop", |gateway| gateway.metric("akidb_crash_loop") == 1.0);
    assert_eq!(gateway.get("/livez").status, 200);
    let readiness = gateway.get("/readyz");
    assert_eq!(readiness.status, 503);
    assert!(readiness.text.contains("in a crash loop"), "{}", readiness.text);
    let line = gateway.logged("worker lost", |line| line["generation"] == 5);
    assert_eq!((&line["exit_code"], &line["last_words"]), (&json!(3), &json!("asked to end")));
    let generation = gateway.health()["workers"][0]["generation"].as_u64().unwrap();
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(gateway.health()["workers"][0]["generation"], generation, "it was not left alone");
    gateway.misbehave(&json!({}));
    gateway.wait_until_ready();
    embed_right(&gateway, &["a"]);
    assert_eq!(gateway.metric("akidb_crash_loop"), 0.0);
}

#[test]
fn row_29_a_log_that_cannot_be_written_or_that_nobody_reads_stops_nobody() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    for stderr in [Stdio::from(full), Stdio::piped()] {
        let mut command = support::fake_command();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        command.args(["--workers", "1", "--listen", &format!("127.0.0.1:{port}")]);
        // A pipe that nobody reads is full after 64 KiB.
        let mut child = command.stderr(stderr).stdout(Stdio::null()).spawn().unwrap();
        let address = format!("http://127.0.0.1:{port}");
        let started = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(started.elapsed() < support::PATIENCE, "it does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        for _ in 0..1000 {
            let answer = support::Answer::fetch(&format!("{address}/nothing"), None);
            assert_eq!(answer.status, 404);
        }
        let answer = support::Answer::fetch(&format!("{address}/api/v1/embed"), Some(r#"{"texts":["a"]}"#));
        assert_eq!(answer.status, 200, "{}", answer.text);
        assert!(child.try_wait().unwrap().is_none());
        support::kill(child.id(), Signal::SIGTERM);
        let stopping = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if stopping.elapsed() > Duration::from_secs(8) {
                child.kill().unwrap();
                panic!("it does not end");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn row_30_a_gateway_that_is_killed_leaves_no_worker_behind() {
    for misbehaviour in [json!({}), json!({"delay": 60}), json!({"never_ready": true})] {
        let mut gateway = Gateway::misbehaving(&misbehaviour, &["--workers", "2"]);
        gateway.eventually("the workers have started", |gateway| gateway.worker_pids().len() == 2);
        let workers = gateway.worker_pids();
        if misbehaviour.get("delay").is_some() {
            gateway.wait_until_ready();
            let _client = gateway.send_embed("a");
            gateway.eventually("it computes", |gateway| {
                let health = gateway.health();
                health["workers"].as_array().unwrap().iter().any(|worker| worker["in_flight"] == 1)
            });
        }
        gateway.signal(Signal::SIGKILL);
        gateway.wait();
        let killed = Instant::now();
        while workers.iter().any(|pid| support::is_alive(*pid)) {
            assert!(killed.elapsed() < Duration::from_secs(2), "{misbehaviour}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn row_31_sigterm_under_load_fails_nothing_that_was_admitted() {
    let mut gateway = Gateway::misbehaving(&json!({"delay": 0.2}), &["--workers", "2"]);
    gateway.wait_until_ready();
    let refused = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        // Once the listener is closed, nothing can be refused any more.
                        let Some(answer) = gateway.try_post("/api/v1/embed", r#"{"texts":["a"]}"#) else {
                            return 0;
                        };
                        if answer.status != 200 {
                            assert_eq!(answer.code(), (503, "draining".to_owned()));
                            assert_eq!(answer.header("connection"), Some("close"));
                            assert!(answer.header("retry-after").is_some());
                            return 1;
                        }
                        assert_eq!(answer.vectors()[0], support::fake_vector("a"));
                    }
                })
            })
            .collect();
        gateway.eventually("all are admitted", |gateway| {
            gateway.metric("akidb_embedding_batch_size_count") >= 16.0
        });
        gateway.signal(Signal::SIGTERM);
        clients.into_iter().map(|client| client.join().unwrap()).sum::<u32>()
    });
    assert!(refused > 0, "nobody was told that it drains");
    assert_eq!(gateway.wait().code(), Some(0));
}

#[test]
fn row_32_twenty_sighups_under_load_fail_nobody() {
    for workers in ["1", "2"] {
        let gateway = Gateway::misbehaving(&json!({"delay": 0.01}), &["--workers", workers]);
        gateway.wait_until_ready();
        let before = gateway.worker_pids();
        let is_over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                            embed_right(&gateway, &["a b"]);
                        }
                    })
                })
                .collect();
            for _ in 0..20 {
                gateway.signal(Signal::SIGHUP);
                std::thread::sleep(Duration::from_millis(100));
            }
            gateway.eventually("it has replaced all of them", |gateway| {
                let reloads = gateway.metric("akidb_worker_restarts_total{reason=\"reload\"}");
                reloads >= 2.0 * f64::from(u8::try_from(before.len()).unwrap())
            });
            is_over.store(true, std::sync::atomic::Ordering::Relaxed);
            for client in clients {
                client.join().unwrap();
            }
        });
        assert_eq!(gateway.metric("akidb_embedding_requests_total{status=\"error\"}"), 0.0);
        gateway.eventually("only new workers are left", |gateway| {
            let now = support::children(gateway.pid());
            now.len() == before.len() && now.iter().all(|pid| !before.contains(pid))
        });
    }
}

#[test]
fn row_32_a_roll_whose_new_worker_cannot_start_keeps_the_old_ones() {
    let gateway = Gateway::misbehaving(&json!({}), &["--workers", "2"]);
    gateway.wait_until_ready();
    let before = gateway.worker_pids();
    gateway.misbehave(&json!({"fatal": "the model file has gone"}));
    gateway.signal(Signal::SIGHUP);
    gateway.logged("replacement failed to start: keeping the current worker", |_| true);
    embed_right(&gateway, &["a"]);
    assert_eq!(gateway.worker_pids(), before);
    gateway.misbehave(&json!({}));
    gateway.signal(Signal::SIGHUP);
    gateway.eventually("all are replaced", |gateway| {
        let now = gateway.worker_pids();
        now.len() == 2 && now.iter().all(|pid| !before.contains(pid))
    });
}

#[test]
fn row_32_a_worker_that_was_given_up_is_started_again_by_sighup() {
    let gateway = Gateway::misbehaving(&json!({}), &["--workers", "1"]);
    gateway.wait_until_ready();
    gateway.misbehave(&json!({"fatal": "the model file has gone"}));
    support::kill(gateway.worker_pids()[0], Signal::SIGKILL);
    gateway.eventually("it is given up", |gateway| gateway.health()["workers"][0]["state"] == "failed");
    let started = Instant::now();
    assert_eq!(gateway.embed(&["a"]).code(), (503, "no_worker".to_owned()));
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    gateway.misbehave(&json!({}));
    gateway.signal(Signal::SIGHUP);
    gateway.wait_until_ready();
    embed_right(&gateway, &["a"]);
}

#[test]
fn row_34_no_code_reads_a_clock_that_can_jump() {
    fn search(folder: &std::path::Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                search(&entry, found);
            } else if entry.extension().is_some_and(|end| end == "rs" || end == "py") {
                let source = std::fs::read_to_string(&entry).unwrap();
                let clocks = ["SystemTime", "UNIX_EPOCH", "time.time(", "datetime.now"];
                found.extend(
                    clocks
                        .iter()
                        .filter(|clock| source.contains(**clock))
                        .map(|clock| format!("{}: {clock}", entry.display())),
                );
            }
        }
    }
    let mut found = Vec::new();
    for folder in ["gateway/src", "protocol/src", "sidecar-py/src"] {
        search(&support::checkout().join(folder), &mut found);
    }
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn row_35_a_thousand_crashes_leave_no_process_and_no_descriptor_behind() {
    // A program before the worker's own, which ends at once for as long as a file says so: a crash costs milliseconds.
    let folder = tempfile::tempdir().unwrap();
    let (script, flag) = (folder.path().join("worker"), folder.path().join("crash"));
    let worker = support::checkout().join("sidecar-py/tests/fake_worker.py");
    let lines = format!(
        "#!/bin/sh\ncase \"$*\" in *' akidb_sidecar worker '*) [ ! -e {flag} ] || exit 3;; esac\nexec {worker} \"$@\"\n",
        flag = flag.display(),
        worker = worker.display()
    );
    std::fs::write(&script, lines).unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = support::fake_command();
    command.env("AKIDB_PYTHON", &script).env("AKIDB_SERVED_MODEL_NAME", "fake");
    command.args(["--workers", "4", "--backoff-first", "1ms", "--backoff-longest", "1ms"]);
    command.args(["--crash-loop-wait", "1ms"]);
    let gateway = Gateway::start(command, None);
    gateway.wait_until_ready();
    embed_right(&gateway, &["a"]);
    let descriptors = || support::open_descriptors(gateway.pid());
    let before = descriptors();
    std::fs::write(&flag, "").unwrap();
    for pid in gateway.worker_pids() {
        support::kill(pid, Signal::SIGKILL);
    }
    gateway.eventually("a thousand crashes", |gateway| {
        gateway.metric("akidb_worker_restarts_total{reason=\"exit\"}") >= 1000.0
    });
    std::fs::remove_file(&flag).unwrap();
    gateway.wait_until_ready();
    gateway.eventually("the descriptors are given back", |_| descriptors() <= before + 2);
    let children = support::children(gateway.pid());
    assert_eq!(children.len(), 4, "{children:?}");
    embed_right(&gateway, &["b"]);
}

#[test]
fn row_35_workers_that_end_after_every_answer_serve_on() {
    let gateway = Gateway::misbehaving(&json!({"exit_after": 3}), &["--workers", "2"]);
    gateway.wait_until_ready();
    for _ in 0..30 {
        embed_right(&gateway, &["a"]);
    }
    gateway.misbehave(&json!({}));
    gateway.wait_until_ready();
    assert_eq!(support::children(gateway.pid()).len(), 2);
}
