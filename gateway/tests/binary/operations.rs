//! `/health`, `/livez`, `/readyz` and `/metrics` say what is so.

use std::io::Write;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{self, Gateway};

#[test]
fn health_describes_every_worker_with_the_same_body_at_200_and_503() {
    let gateway = Gateway::misbehaving(&json!({"start_delay": 1.0}), &["--workers", "2"]);
    let starting = gateway.get("/health");
    assert_eq!(starting.status, 503);
    assert_eq!(starting.json()["status"], "unavailable");
    assert_eq!(gateway.get("/readyz").status, 503);
    let reason = "no worker is ready: worker 0 is starting; worker 1 is starting";
    assert_eq!(gateway.get("/readyz").json()["reason"], reason);
    assert_eq!(gateway.get("/livez").status, 200);
    gateway.wait_until_ready();
    let ready = gateway.get("/health");
    assert_eq!(ready.status, 200);
    assert_eq!(gateway.get("/readyz").status, 200);

    for answer in [starting.json(), ready.json()] {
        for key in ["status", "model", "dimension", "max_tokens", "version", "workers"] {
            assert!(!answer[key].is_null(), "{key} is missing: {answer}");
        }
        for worker in answer["workers"].as_array().unwrap() {
            let worker = worker.as_object().unwrap();
            for key in [
                "id",
                "pid",
                "state",
                "generation",
                "in_flight",
                "restarts",
                "rss_bytes",
                "uptime_seconds",
                "device",
                "dtype",
                "blas",
            ] {
                assert!(worker.contains_key(key), "{key} is missing: {worker:?}");
            }
        }
    }
    let json = ready.json();
    assert_eq!((&json["status"], &json["model"]), (&json!("ok"), &json!("fake")));
    assert_eq!((&json["dimension"], &json["max_tokens"]), (&json!(8), &json!(64)));
    for (id, worker) in json["workers"].as_array().unwrap().iter().enumerate() {
        assert_eq!(worker["id"], id);
        assert_eq!(worker["state"], "ready");
        assert_eq!((&worker["generation"], &worker["restarts"]), (&json!(1), &json!(0)));
        assert!(support::is_alive(u32::try_from(worker["pid"].as_u64().unwrap()).unwrap()));
        assert!(worker["rss_bytes"].as_u64().unwrap() > 1_000_000, "{worker}");
        assert!(worker["uptime_seconds"].as_f64().unwrap() > 0.9, "{worker}");
        assert_eq!(
            (&worker["device"], &worker["dtype"], &worker["blas"]),
            (&json!("cpu"), &json!("float32"), &json!("none"))
        );
    }
}

#[test]
fn a_worker_that_is_on_its_way_back_is_not_called_ready_and_has_no_process() {
    let gateway = Gateway::misbehaving(&json!({}), &["--workers", "2"]);
    gateway.wait_until_ready();
    // Its successors end at once, so that it stays away.
    gateway.misbehave(&json!({"start_exit": 1}));
    support::kill(gateway.worker_pids()[0], Signal::SIGKILL);
    gateway.eventually("the worker waits for its next start", |gateway| {
        let worker = &gateway.health()["workers"][0];
        worker["state"] == "backoff" && worker["pid"].is_null() && worker["blas"].is_null()
    });
    let health = gateway.get("/health");
    assert_eq!((health.status, &health.json()["status"]), (200, &json!("degraded")));
    assert_eq!(gateway.metric("akidb_workers_ready"), 1.0);
    assert!(gateway.metric("akidb_worker_restarts_total{reason=\"signal\"}") >= 1.0);
    assert_eq!(gateway.embed(&["a"]).status, 200);
}

#[test]
fn metrics_have_the_names_and_buckets_that_dashboards_read() {
    let gateway = Gateway::fake(&["--workers", "1"]);
    assert_eq!(gateway.embed(&["a", "b", "c"]).status, 200);
    assert_eq!(gateway.embed(&[]).status, 400);
    let answer = gateway.get("/metrics");
    assert_eq!(answer.status, 200);
    assert!(answer.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    let buckets = |name: &str| {
        let prefix = format!("{name}_bucket{{le=\"");
        let bounds = answer.text.lines().filter_map(|line| line.strip_prefix(&prefix)?.split('"').next());
        bounds.map(|bound| bound.parse::<f64>().unwrap_or(f64::INFINITY)).collect::<Vec<_>>()
    };
    let infinity = f64::INFINITY;
    assert_eq!(
        buckets("akidb_embedding_latency_seconds"),
        [0.01, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, infinity]
    );
    assert_eq!(buckets("akidb_embedding_batch_size"), [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, infinity]);
    assert_eq!(buckets("akidb_embedding_gil_wait_seconds"), [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, infinity]);
    assert_eq!(gateway.metric("akidb_embedding_requests_total{status=\"success\"}"), 1.0);
    assert_eq!(gateway.metric("akidb_embedding_requests_total{status=\"error\"}"), 1.0);
    assert_eq!(gateway.metric("akidb_embedding_batch_size_sum"), 3.0);
    assert_eq!(gateway.metric("akidb_embedding_gil_wait_seconds_count"), 1.0);
    assert_eq!(gateway.metric("akidb_embedding_latency_seconds_count"), 1.0);
    assert_eq!(gateway.metric("akidb_embedding_queue_depth"), 0.0);
    assert_eq!(gateway.metric("akidb_workers_ready"), 1.0);
    assert!(answer.text.contains("akidb_build_info{version=\""), "{}", answer.text);
}

/// What Python's client library finds in metrics: a line for each sample, and for each family its type.
fn read_with_python(parser: &str, text: &str) -> Vec<String> {
    let program = format!(
        "import sys\nfrom {parser} import text_string_to_metric_families as read\nfor family in read(sys.stdin.read()):\n    \
         print(family.name, family.type, bool(family.documentation))\n    for sample in family.samples: print(sample.name, sorted(sample.labels.items()))"
    );
    let mut python = Command::new(support::python());
    python.args(["-c", &program]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut python = python.spawn().unwrap();
    python.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "{parser} cannot read {text}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn metrics_come_in_the_form_that_the_scraper_accepts_and_say_the_same_in_both() {
    let gateway = Gateway::fake(&["--workers", "2"]);
    gateway.wait_until_ready();
    assert_eq!(gateway.embed(&["a", "b", "c"]).status, 200);
    assert_eq!(gateway.embed(&[]).status, 400);
    let read = |accept: &str, content_type: &str, parser: &str| {
        let answer = gateway.get_with("/metrics", ("accept", accept));
        assert_eq!(answer.header("content-type"), Some(content_type), "{accept}");
        (read_with_python(parser, &answer.text), answer.text)
    };
    let open = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let (open_samples, open_text) = read(
        "application/openmetrics-text;version=1.0.0,*/*;q=0.1",
        open,
        "prometheus_client.openmetrics.parser",
    );
    assert!(open_text.ends_with("# EOF\n"));
    let text = "text/plain; version=0.0.4; charset=utf-8";
    let (text_samples, plain_text) = read("text/plain;version=0.0.4", text, "prometheus_client.parser");
    assert!(!plain_text.contains("# EOF") && !plain_text.contains("# UNIT"), "{plain_text}");
    assert!(plain_text.contains("# TYPE akidb_embedding_requests_total counter\n"), "{plain_text}");
    // Python takes `_total` off a counter's name itself; version 0.0.4 has no `info`.
    let as_in_text =
        open_samples.iter().map(|line| line.replace("akidb_build info", "akidb_build_info gauge"));
    let (mut expected, mut found) = (as_in_text.collect::<Vec<_>>(), text_samples);
    expected.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, expected);
    assert!(found.iter().any(|line| line == "akidb_embedding_requests counter True"), "{found:?}");
    assert!(found.len() > 100, "{found:?}");
}

#[test]
fn queue_depth_counts_requests_that_are_not_wholly_at_a_worker() {
    let misbehaviour = json!({"delay": 0.3});
    let gateway = Gateway::misbehaving(
        &misbehaviour,
        &["--workers", "1", "--max-batch-tokens", "1", "--max-inflight-per-worker", "1"],
    );
    gateway.wait_until_ready();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(gateway.embed(&["a"]).status, 200));
        }
        gateway.eventually("three requests wait", |gateway| {
            gateway.metric("akidb_embedding_queue_depth") == 3.0
        });
        assert_eq!(gateway.health()["workers"][0]["in_flight"], 1);
    });
    assert_eq!(gateway.metric("akidb_embedding_queue_depth"), 0.0);
    // Every request waits once, however many texts it has.
    assert_eq!(gateway.metric("akidb_embedding_gil_wait_seconds_count"), 4.0);
    let at_once = gateway.metric("akidb_embedding_gil_wait_seconds_bucket{le=\"0.1\"}");
    assert_eq!(at_once, 1.0, "three of four waited for a permit");
}

#[test]
fn what_a_worker_writes_reaches_the_log_with_its_number() {
    let gateway = Gateway::misbehaving(&json!({"say": "a line from a library"}), &["--workers", "2"]);
    for id in 0..2 {
        let line = gateway.logged("worker wrote", |line| line["worker"] == id);
        assert_eq!(line["line"], "a line from a library");
        assert_eq!(line["stream"], "stderr");
    }
}
