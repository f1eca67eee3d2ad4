//! The lines that `docs/MLX-DEPLOYMENT-GUIDE.md` quotes under *Troubleshooting* are those that the gateway writes.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::support::{self, Gateway, run_to_end};

/// What every line of the log has besides the facts.
const FRAME: [&str; 4] = ["timestamp", "level", "message", "span"];

/// All lines of the guide's blocks of the language `log`, and which of them a test has seen.
static QUOTED: LazyLock<Vec<String>> = LazyLock::new(|| {
    let guide = support::checkout().join("docs/MLX-DEPLOYMENT-GUIDE.md");
    let text = std::fs::read_to_string(guide).unwrap();
    let blocks = text.split("```log\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.flat_map(str::lines).map(str::to_owned).collect()
});

/// A line of the guide for people as level, message and the names of its facts.
fn parsed(line: &str) -> Option<(String, String, BTreeSet<String>)> {
    let (level, rest) = line.split_once(' ')?;
    let mut message = Vec::new();
    let mut names = BTreeSet::new();
    for word in shlex::split(&rest.replace('`', "'"))? {
        match word.split_once('=') {
            Some((name, _)) if name.chars().all(|c| c.is_ascii_lowercase() || c == '_') => {
                names.insert(name.to_owned());
            }
            // The rest of a fact that is not in quotes.
            _ if !names.is_empty() => {}
            _ => message.push(word),
        }
    }
    Some((level.to_owned(), message.join(" "), names))
}

/// The guide quotes this line of the log: its level, its message, and just its facts.
fn is_quoted(line: &Value) {
    let facts = line.as_object().unwrap().iter().filter(|(name, _)| !FRAME.contains(&name.as_str()));
    let names: BTreeSet<String> =
        facts.map(|(name, _)| name.clone()).filter(|name| name != "spans").collect();
    let wanted = (line["level"].as_str().unwrap(), line["message"].as_str().unwrap());
    let found = QUOTED
        .iter()
        .filter_map(|quoted| parsed(quoted))
        .any(|(level, message, quoted)| (level.as_str(), message.as_str()) == wanted && quoted == names);
    assert!(found, "the guide quotes no such line: {line}");
}

#[test]
fn the_errors_that_the_guide_quotes_are_written_before_the_end() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut port = support::fake_command();
    port.env("AKIDB_LISTEN", &address);
    let cache = tempfile::tempdir().unwrap();
    let mut model = support::command();
    model.args(["--model", "sentence-transformers/all-mpnet-base-v2"]);
    model.env("HF_HOME", cache.path()).env("HF_HUB_OFFLINE", "1");
    for (command, exit_code) in [(port, 98), (model, 78)] {
        let program = command.get_program().to_string_lossy().into_owned();
        let (code, stderr, _) = run_to_end(command);
        assert_eq!(code, exit_code, "{stderr}");
        let stderr = stderr.replace(&program, "akidb-gateway").replace(&address, "127.0.0.1:8080");
        for line in stderr.lines().filter(|line| line.starts_with("error:") || line.starts_with("hint:")) {
            assert!(QUOTED.iter().any(|quoted| quoted == line), "the guide does not quote `{line}`");
        }
    }
}

/// The MLX that is installed on Linux uses no GPU.
#[test]
#[cfg(not(target_os = "macos"))]
fn the_line_about_a_missing_gpu_is_quoted() {
    let mut command = support::command();
    command.args([
        "--model",
        support::MINILM,
        "--workers",
        "1",
        "--device",
        "gpu",
        "--listen",
        "127.0.0.1:0",
    ]);
    let (code, stderr, _) = run_to_end(command);
    assert_eq!(code, 78, "{stderr}");
    let error = stderr.lines().find(|line| line.starts_with("error:")).unwrap();
    assert!(QUOTED.iter().any(|quoted| quoted == error), "the guide does not quote `{error}`");
}

#[test]
fn the_lines_about_requests_that_the_guide_quotes_are_logged() {
    let gateway = Gateway::misbehaving(&json!({"poison": 3}), &["--workers", "2"]);
    gateway.wait_until_ready();
    assert_eq!(gateway.embed(&["a b"]).code(), (422, "poison_input".to_owned()));
    is_quoted(&gateway.logged("request refused", |line| line["code"] == "poison_input"));
    is_quoted(&gateway.logged("worker lost", |line| line["signal"] == "SIGSEGV"));

    let mut stream = TcpStream::connect(gateway.address).unwrap();
    stream
        .write_all(b"GET /livez HTTP/1.1\r\nhost: embeddings.example.com\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("host_not_allowed"), "{answer}");
    is_quoted(&gateway.logged("request refused", |line| line["code"] == "host_not_allowed"));
}

#[test]
fn the_lines_about_workers_that_never_start_are_quoted() {
    let gateway = Gateway::misbehaving(
        &json!({"start_exit": 3, "say": "ImportError: no module named mlx"}),
        &["--workers", "1", "--backoff-first", "1ms"],
    );
    is_quoted(&gateway.logged("crash loop: the worker keeps exiting before it is ready", |_| true));
    is_quoted(&gateway.logged("worker lost", |line| line["exit_code"] == 3));
}

#[test]
fn the_line_about_connections_is_quoted() {
    let mut command = support::with_descriptors(&support::fake_command(), 160);
    command.args(["--workers", "1"]);
    let gateway = Gateway::start(command, None);
    let _open: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(gateway.address).unwrap()).collect();
    is_quoted(&gateway.logged("connection limit reached: new connections are waiting", |_| true));
}

#[test]
fn the_line_about_a_missing_compiler_is_quoted() {
    let cache = tempfile::tempdir().unwrap();
    let mut command = support::command();
    command.args(["--model", support::MINILM, "--workers", "1", "--device", "cpu"]);
    command.env("CC", "/bin/false").env("XDG_CACHE_HOME", cache.path());
    let gateway = Gateway::start(command, None);
    is_quoted(&gateway.logged("worker warning", |line| {
        line["warning"].as_str().unwrap().starts_with("MLX computes the model")
    }));
}

#[test]
fn a_line_of_the_guide_is_read_as_it_is_meant() {
    let line = r#"WARN worker lost worker=0 detail=it exited signal="SIGKILL" last_words="a=b c""#;
    let names = ["worker", "detail", "signal", "last_words"].map(str::to_owned).into();
    assert_eq!(parsed(line), Some(("WARN".to_owned(), "worker lost".to_owned(), names)));
    assert!(QUOTED.len() >= 11, "{QUOTED:?}");
}
