//! Getting models: the `models` commands and `--revision`, against a hub of our own.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{self, Gateway};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const NEXT_COMMIT: &str = "89abcdef0123456789abcdef0123456789abcdef";
const MIB: usize = 1 << 20;

/// A hub that has the fake model as `owner/name`, and an empty cache.
struct Hub {
    process: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    address: String,
    folder: tempfile::TempDir,
}

impl Hub {
    fn start(weights_bytes: usize, stall_after: Option<usize>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let files = folder.path().join("files");
        std::fs::create_dir(&files).unwrap();
        for name in ["config.json", "tokenizer.json"] {
            std::fs::copy(Path::new(&support::fake_model()).join(name), files.join(name)).unwrap();
        }
        let weights: Vec<u8> = (0..=250).cycle().take(weights_bytes).collect();
        std::fs::write(files.join("model.safetensors"), weights).unwrap();
        let mut process = Command::new(support::python())
            .arg(support::checkout().join("sidecar-py/tests/fake_hub.py"))
            .arg(&files)
            .args(stall_after.map(|bytes| bytes.to_string()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let commands = process.stdin.take().unwrap();
        let mut answers = BufReader::new(process.stdout.take().unwrap());
        let mut address = String::new();
        answers.read_line(&mut address).unwrap();
        Self { process, commands, answers, address: address.trim().to_owned(), folder }
    }

    /// Has the hub do something; returns all requests so far.
    fn tell(&mut self, command: &str) -> Vec<Value> {
        writeln!(self.commands, "{command}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap()
    }

    /// What was asked of the weights: the `Range` of each request.
    fn ranges(&mut self) -> Vec<Value> {
        let requests = self.tell("requests").into_iter();
        let weights = requests.filter(|request| request["path"].as_str().unwrap().starts_with("/cdn/"));
        weights.map(|mut request| request["range"].take()).collect()
    }

    fn around(&self, mut command: Command) -> Command {
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("HF_")) {
            command.env_remove(name);
        }
        command.env("HF_ENDPOINT", &self.address).env("HF_HOME", self.folder.path().join("home"));
        command
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.around(support::command());
        command.args(arguments);
        command
    }

    /// Runs a command; returns its exit code, standard output and standard error.
    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = self.command(arguments).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    /// Serves with fake workers what the hub has; returns the commit that was logged.
    fn served_commit(&self, arguments: &[&str]) -> String {
        let mut command = self.around(support::fake_workers());
        command.args(["--model", "owner/name", "--workers", "1"]).args(arguments);
        let gateway = Gateway::start(command, None);
        gateway.wait_until_ready();
        assert_eq!(gateway.embed(&["a"]).vectors()[0], support::fake_vector("a"));
        gateway.logged("model resolved", |_| true)["revision"].as_str().unwrap().to_owned()
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_model_is_pulled_found_listed_and_pulled_again() {
    let mut hub = Hub::start(3 * MIB, None);
    let (code, stdout, stderr) = hub.run(&["models", "path", "owner/name", "--revision", "v1"]);
    assert_eq!((code, stdout.as_str()), (78, ""), "{stderr}");
    assert_eq!(
        stderr,
        "error: model `owner/name` at revision `v1` is not in the local cache\n\
         hint: run `akidb-gateway models pull owner/name --revision v1`\n"
    );
    assert!(hub.tell("requests").is_empty());

    let (code, pulled, stderr) = hub.run(&["models", "pull", "owner/name"]);
    assert_eq!((code, stderr.lines().count()), (0, 1), "{stderr}");
    assert!(stderr.starts_with("downloaded `owner/name`: commit 0123456789ab, 3.0 MiB, in "), "{stderr}");
    assert!(Path::new(pulled.trim()).join("model.safetensors").is_file() && pulled.contains(COMMIT));
    let asked = hub.tell("requests").len();
    assert_eq!(hub.run(&["models", "path", "owner/name"]), (0, pulled.clone(), String::new()));
    assert_eq!(hub.tell("requests").len(), asked);

    let (code, table, _) = hub.run(&["models", "list"]);
    assert_eq!((code, table.lines().count()), (0, 4), "{table}");
    let line = table.lines().last().unwrap();
    for part in ["owner/name", "ready", "3.0 MiB", "0123456789ab", "main"] {
        assert!(line.contains(part), "{part} is not in {table}");
    }
    assert!(table.contains("not downloaded") && table.contains("ships with the Python environment"));
    let (_, json, _) = hub.run(&["models", "list", "--json"]);
    let models: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(models.as_array().unwrap().len(), 3);
    assert_eq!((&models[2]["path"], &models[2]["commit"]), (&pulled.trim().into(), &COMMIT.into()));
    assert_eq!(models[2]["refusal"], Value::Null);

    let (_, again, stderr) = hub.run(&["models", "pull", "owner/name"]);
    assert_eq!(again, pulled);
    assert!(stderr.starts_with("`owner/name` is up to date: commit 0123456789ab"), "{stderr}");
    hub.tell("move");
    let (_, moved, _) = hub.run(&["models", "pull", "owner/name"]);
    assert!(moved.contains(NEXT_COMMIT), "{moved}");
}

#[test]
fn a_list_says_what_would_be_served_and_what_refused() {
    let hub = Hub::start(MIB, None);
    let pulled = hub.run(&["models", "pull", "owner/name"]).1;
    let path = Path::new(pulled.trim());
    let write = |name: &str, content: &Value| {
        let file = path.join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        // It may be a link to what other commits have, too.
        let _ = std::fs::remove_file(&file);
        std::fs::write(file, content.to_string()).unwrap();
    };
    let listed = || {
        let (code, json, stderr) = hub.run(&["models", "list", "--json"]);
        assert_eq!(code, 0, "{stderr}");
        serde_json::from_str::<Vec<Value>>(&json).unwrap().remove(2)
    };
    // In the newer form, in another folder than usual.
    let module = |path: &str, name: &str| serde_json::json!({"path": path, "type": format!("sentence_transformers.models.{name}")});
    write("modules.json", &serde_json::json!([module("", "Transformer"), module("pool", "Pooling")]));
    write("pool/config.json", &serde_json::json!({"pooling_mode": "cls"}));
    let model = listed();
    assert_eq!(
        (&model["state"], &model["pooling"], &model["dimension"]),
        (&"ready".into(), &"cls".into(), &8.into())
    );
    for (name, content, part) in [
        ("pool/config.json", serde_json::json!({"pooling_mode": "max"}), "`pooling_mode`"),
        ("modules.json", serde_json::json!([module("", "Dense")]), "Dense"),
        (
            "config_sentence_transformers.json",
            serde_json::json!({"model_type": "CrossEncoder"}),
            "cross-encoder",
        ),
        (
            "config.json",
            serde_json::json!({"model_type": "mpnet", "hidden_size": 8, "max_position_embeddings": 64}),
            "`mpnet`",
        ),
    ] {
        let file = path.join(name);
        let before = std::fs::read(&file).ok();
        write(name, &content);
        let model = listed();
        let note = model["note"].as_str().unwrap();
        assert!(model["state"] == "refused" && note.contains(part), "{part} is not in {model}");
        match before {
            Some(before) => std::fs::write(&file, before).unwrap(),
            None => std::fs::remove_file(&file).unwrap(),
        }
    }
    write("pool/config.json", &serde_json::json!({"pooling_mode": "max"}));
    assert!(hub.run(&["models", "list"]).1.contains("refused"));
}

#[test]
fn a_revision_is_served_as_the_commit_that_it_was_until_it_is_pulled_again() {
    let mut hub = Hub::start(MIB, None);
    assert_eq!(hub.served_commit(&["--revision", "main"]), COMMIT);
    let asked = hub.tell("move").len();
    assert_eq!(hub.served_commit(&["--revision", "main"]), COMMIT);
    assert_eq!(hub.served_commit(&[]), COMMIT);
    assert_eq!(hub.tell("requests").len(), asked, "a model that is here was asked for");
    assert_eq!(hub.served_commit(&["--revision", NEXT_COMMIT]), NEXT_COMMIT);
    assert_eq!(hub.served_commit(&[]), COMMIT);
    assert_eq!(hub.run(&["models", "pull", "owner/name"]).0, 0);
    assert_eq!(hub.served_commit(&[]), NEXT_COMMIT);
}

#[test]
fn a_pull_that_is_interrupted_ends_by_its_signal_and_goes_on_later() {
    let mut hub = Hub::start(24 * MIB, Some(12 * MIB));
    for (requests, signal) in [(1, Signal::SIGINT), (2, Signal::SIGKILL)] {
        let mut command = hub.command(&["models", "pull", "owner/name"]);
        let mut pull = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let blobs = hub.folder.path().join("home/hub/models--owner--name/blobs");
        let deadline = Instant::now() + support::PATIENCE;
        while hub.ranges().len() < requests || bytes_of_partial_files(&blobs) != 10 * MIB as u64 {
            assert!(Instant::now() < deadline, "{} bytes came", bytes_of_partial_files(&blobs));
            std::thread::sleep(Duration::from_millis(10));
        }
        let children = support::children(pull.id());
        support::kill(pull.id(), signal);
        let deadline = Instant::now() + Duration::from_secs(5);
        while pull.try_wait().unwrap().is_none() || children.iter().any(|child| support::is_alive(*child)) {
            assert!(Instant::now() < deadline, "it does not end at {signal}");
            std::thread::sleep(Duration::from_millis(10));
        }
        let output = pull.wait_with_output().unwrap();
        assert_eq!(output.status.signal(), Some(signal as i32));
        assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
        assert_eq!(hub.run(&["models", "path", "owner/name"]).0, 78);
    }
    hub.tell("flow");
    let (code, path, stderr) = hub.run(&["models", "pull", "owner/name"]);
    assert_eq!(code, 0, "{stderr}");
    let from = format!("bytes={}-", 10 * MIB);
    assert_eq!(hub.ranges(), [Value::Null, from.clone().into(), from.into()]);
    let pulled = std::fs::read(Path::new(path.trim()).join("model.safetensors")).unwrap();
    assert_eq!(pulled, std::fs::read(hub.folder.path().join("files/model.safetensors")).unwrap());
}

fn bytes_of_partial_files(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let partial = entries.filter(|entry| entry.path().extension().is_some_and(|end| end == "incomplete"));
    partial.filter_map(|entry| entry.metadata().ok()).map(|data| data.len()).sum()
}

#[test]
fn a_pull_that_cannot_be_done_says_why_in_one_line() {
    let hub = Hub::start(MIB, None);
    for (arguments, part) in [
        (&["owner/other"][..], "does not have it"),
        (&["owner/name", "--revision", "v9"], "at revision `v9`"),
        (&["no-such-model"], "not a hub repository"),
        (&["--", "-x"], "`-x` is not a directory"),
    ] {
        let (code, stdout, stderr) = hub.run(&[&["models", "pull"], arguments].concat());
        assert_eq!((code, stdout.as_str(), stderr.lines().count()), (78, "", 1), "{stderr}");
        assert!(stderr.starts_with("error: ") && stderr.contains(part), "{part} is not in {stderr}");
    }
    let model = support::fake_model();
    for command in [&["--revision", "v1", "--model"][..], &["models", "pull", "--revision", "v1"]] {
        let (code, _, stderr) = hub.run(&[command, &[model.as_str()]].concat());
        assert_eq!(code, 64, "{stderr}");
        assert!(stderr.contains("because") && stderr.contains("is a directory"), "{stderr}");
    }
}

#[test]
fn a_token_is_never_logged() {
    let hub = Hub::start(MIB, None);
    let mut command = hub.command(&["models", "pull", "owner/name"]);
    let output = command.env("HF_TOKEN", "hf_verysecret").env("AKIDB_LOG", "trace").output().unwrap();
    assert!(output.status.success());
    assert!(!String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).contains("secret"));
    let hub = Hub::start(MIB, None);
    let mut command = hub.command(&["--model", "owner/name", "--revision", "v9", "--log-format", "json"]);
    command.env("HF_TOKEN", "hf_verysecret").env("AKIDB_LOG", "trace");
    let (code, stderr, _) = support::run_to_end(command);
    assert!(code == 78 && !stderr.contains("secret"), "{stderr}");
}

#[test]
fn every_models_command_has_help_with_its_exit_codes() {
    for command in [&["models", "--help"][..], &["models", "list", "--help"], &["models", "path", "-h"]] {
        let output = support::command().args(command).output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && help.contains("Exit codes: 0 done"), "{help}");
    }
    let output = support::command().args(["--workers", "2", "models"]).output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&output.stderr).contains("`models` must come first"));
}
