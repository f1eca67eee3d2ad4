//! The whole way on real weights: all-minilm-l6-v2 on the device that is chosen. The cosines hold for each.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{self, Answer, Gateway, cosine};

const LEAST_COSINE: f64 = 0.9999;

#[test]
fn all_golden_texts_singly_and_in_batches_have_the_reference_vectors_and_token_counts() {
    let gateway = Gateway::real(&["--workers", "2"]);
    let golden = support::golden();
    assert_eq!(golden.len(), 70);
    let check = |answer: &Answer, cases: &[(String, u64, Vec<f32>)]| {
        assert_eq!(answer.status, 200, "{}", answer.text);
        let tokens: u64 = cases.iter().map(|(_, tokens, _)| tokens).sum();
        assert_eq!(answer.json()["usage"]["total_tokens"], tokens);
        let vectors = answer.vectors();
        assert_eq!(vectors.len(), cases.len());
        for (vector, (text, _, expected)) in vectors.iter().zip(cases) {
            assert_eq!(vector.len(), 384);
            let cosine = cosine(vector, expected);
            assert!(cosine >= LEAST_COSINE, "{cosine} for a text of {} bytes", text.len());
        }
    };
    let embed = |cases: &[(String, u64, Vec<f32>)]| {
        gateway.embed(&cases.iter().map(|(text, ..)| text.as_str()).collect::<Vec<_>>())
    };
    for case in &golden {
        check(&embed(std::slice::from_ref(case)), std::slice::from_ref(case));
    }
    for cases in golden.chunks(32) {
        check(&embed(cases), cases);
    }
}

#[test]
fn the_line_to_try_works_as_it_is_printed() {
    let gateway = Gateway::real(&["--workers", "1"]);
    let line = gateway.logged("ready", |_| true);
    let json = run_curl(line["try_it"].as_str().unwrap()).json();
    let vector: Vec<f32> = serde_json::from_value(json["embeddings"][0].clone()).unwrap();
    let golden = support::golden();
    let (.., expected) = golden.iter().find(|(text, ..)| text == "Hello world").unwrap();
    assert_eq!(vector.len(), 384);
    assert!(cosine(&vector, expected) >= LEAST_COSINE);
}

/// Does what a line of `curl -s URL [-H HEADER] [-d BODY]` says, on machines without curl, too.
fn run_curl(line: &str) -> Answer {
    let mut words = shlex::split(line).unwrap().into_iter();
    assert_eq!((words.next().as_deref(), words.next().as_deref()), (Some("curl"), Some("-s")), "{line}");
    let (mut url, mut body) = (String::new(), None);
    while let Some(word) = words.next() {
        match word.as_str() {
            "-H" => assert_eq!(words.next().as_deref(), Some("content-type: application/json"), "{line}"),
            "-d" => body = words.next(),
            _ => url = word,
        }
    }
    Answer::fetch(&format!("http://{}", url.trim_start_matches("http://")), body.as_deref())
}

/// A small checkpoint of Qwen3's architecture with random weights.
fn tiny_qwen3() -> Gateway {
    let mut command = support::command();
    command.arg("--model").arg(support::checkout().join("sidecar-py/tests/golden/tiny-qwen3"));
    command.args(["--workers", "1"]);
    Gateway::start(command, None)
}

#[test]
fn a_prompt_by_name_an_instruction_and_the_same_words_in_the_text_give_one_vector() {
    let gateway = tiny_qwen3();
    let post = |body: serde_json::Value| {
        let answer = gateway.post("/api/v1/embed", &body.to_string());
        assert_eq!(answer.status, 200, "{body}: {}", answer.text);
        answer.vectors().remove(0)
    };
    let task = "Given a web search query, retrieve relevant passages that answer the query";
    let text = "What is the capital of China?";
    let by_hand = post(json!({"texts": [format!("Instruct: {task}\nQuery:{text}")]}));
    let by_name = post(json!({"texts": [text], "prompt_name": "query"}));
    let by_instruction = post(json!({"texts": [text], "instruction": task}));
    assert!(cosine(&by_hand, &by_name) > LEAST_COSINE && cosine(&by_hand, &by_instruction) > LEAST_COSINE);
    assert!(cosine(&by_hand, &post(json!({"texts": [text]}))) < 0.99);
    let short = post(json!({"texts": [text], "prompt_name": "query", "dimensions": 64}));
    assert_eq!(short.len(), 64);
    assert!(cosine(&short, &by_hand[..64]) > LEAST_COSINE);
    let length = short.iter().map(|number| f64::from(*number).powi(2)).sum::<f64>().sqrt();
    assert!((length - 1.0).abs() < 1e-6, "a shorter vector has length {length}");
}

#[test]
fn the_fast_blas_is_in_use_and_the_slow_one_is_warned_of() {
    let gateway = Gateway::real(&["--workers", "1", "--device", "cpu"]);
    let worker = &gateway.health()["workers"][0];
    assert!(!worker["blas"].as_str().unwrap().contains("reference"), "{worker}");
    assert_eq!(worker["warnings"].as_array().unwrap().len(), 0, "{worker}");
    drop(gateway);
    // Elsewhere MLX's wheel has a fast one of its own.
    if cfg!(target_os = "linux") {
        let mut command = support::command();
        command.env("AKIDB_REFERENCE_BLAS", "1").args(["--model", support::MINILM, "--workers", "1"]);
        let gateway = Gateway::start(command, None);
        gateway.wait_until_ready();
        let worker = &gateway.health()["workers"][0];
        assert_eq!(worker["blas"], "reference");
        assert!(worker["warnings"][0].as_str().unwrap().contains("slower"), "{worker}");
        gateway.logged("worker warning", |line| line["worker"] == 0);
    }
}

#[test]
fn workers_ignore_the_signals_of_a_terminal() {
    let gateway = Gateway::real(&["--workers", "2"]);
    let workers = gateway.worker_pids();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        workers.iter().for_each(|pid| support::kill(*pid, signal));
    }
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(gateway.embed(&["still here"]).status, 200);
    assert_eq!(gateway.worker_pids(), workers);
}

#[test]
fn a_gateway_that_is_killed_leaves_no_worker_behind_even_while_they_import() {
    for wait in
        [Duration::ZERO, Duration::from_millis(150), Duration::from_millis(300), Duration::from_secs(2)]
    {
        let mut command = support::command();
        command.args(["--model", support::MINILM, "--workers", "2"]);
        let mut gateway = Gateway::start(command, None);
        gateway.eventually("they have started", |gateway| gateway.worker_pids().len() == 2);
        let workers = gateway.worker_pids();
        std::thread::sleep(wait);
        gateway.signal(Signal::SIGKILL);
        gateway.wait();
        std::thread::sleep(Duration::from_secs(2));
        assert!(workers.iter().all(|pid| !support::is_alive(*pid)), "after {wait:?}");
    }
}

/// Twenty seconds of eight clients while a worker is killed every second: nobody notices.
#[test]
fn killing_a_worker_every_second_fails_no_request_and_spoils_no_vector() {
    const CLIENTS: usize = 8;
    const TIME: Duration = Duration::from_secs(20);
    let gateway = Gateway::real(&["--workers", "2"]);
    let golden = support::golden();
    let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let kills = std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (gateway, golden, stop, answered) = (&gateway, &golden, &stop, &answered);
            scope.spawn(move || {
                for round in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let count = 1 + (round + client) % 3;
                    let first = (round * 7 + client * 11) % (golden.len() - count);
                    let cases = &golden[first..first + count];
                    let texts: Vec<&str> = cases.iter().map(|(text, ..)| text.as_str()).collect();
                    let answer = gateway.embed(&texts);
                    if answer.status != 200 {
                        stop.store(true, Ordering::Relaxed);
                        panic!("{}: {}", answer.status, answer.text);
                    }
                    for (vector, (.., expected)) in answer.vectors().iter().zip(cases) {
                        assert!(cosine(vector, expected) >= LEAST_COSINE, "a wrong vector");
                    }
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let kills = kill_workers(&gateway, TIME, &stop);
        stop.store(true, Ordering::Relaxed);
        kills
    });
    let answered = answered.into_inner();
    eprintln!("{answered} requests answered, {kills} workers killed");
    assert!(kills >= 4, "only {kills} workers were killed");
    assert!(answered >= 50, "only {answered} requests were answered");
    gateway.wait_until_ready();
    assert_eq!(gateway.metric("akidb_embedding_requests_total{status=\"error\"}"), 0.0);
    let by_signal = gateway.metric("akidb_worker_restarts_total{reason=\"signal\"}");
    assert!(by_signal >= f64::from(u32::try_from(kills).unwrap()));
}

/// Kills a random worker every second, whenever all are ready. Returns how many.
fn kill_workers(gateway: &Gateway, time: Duration, stop: &AtomicBool) -> usize {
    let end = Instant::now() + time;
    let mut kills = 0;
    while Instant::now() < end && !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_secs(1));
        let health = gateway.health();
        let workers = health["workers"].as_array().unwrap();
        if workers.iter().all(|worker| worker["state"] == "ready") {
            let pid = workers[fastrand::usize(..workers.len())]["pid"].as_u64().unwrap();
            support::kill(u32::try_from(pid).unwrap(), Signal::SIGKILL);
            kills += 1;
        }
    }
    kills
}
