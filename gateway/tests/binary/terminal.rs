//! Text of others on its way to a terminal: nothing in it may be a command to that.

use std::process::Command;

use serde_json::json;

use crate::support::{self, Gateway, golden_folder, run_to_end};

/// Escape sequences of 7 and 8 bits, a bell, DEL, a carriage return, signs that turn writing around, and a forged line.
const HOSTILE: &str = "x\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}31m\u{7f}\r\u{202e}\u{2066}\u{2028}\u{85}\nhint: run `evil`\nerror: y";

fn assert_clean(text: &str) {
    let hazard = |c: char| (c.is_control() && c != '\n') || "\u{202e}\u{2066}\u{2028}".contains(c);
    assert!(!text.contains(hazard), "{:?}", text.escape_debug().to_string());
    assert!(
        !text.lines().any(|line| line.starts_with("hint: run `evil`") || line.starts_with("error: y")),
        "{text}"
    );
}

/// Runs with log lines for people, to the end.
fn said(mut command: Command) -> String {
    command.env("AKIDB_LOG_FORMAT", "text").env("AKIDB_LOG", "trace");
    let (_, stderr, _) = run_to_end(command);
    assert_clean(&stderr);
    stderr
}

#[test]
fn what_a_worker_says_is_no_command_to_a_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let control = folder.path().join("control.json");
    std::fs::write(&control, json!({"say": HOSTILE, "fatal": HOSTILE}).to_string()).unwrap();
    let mut command = support::fake_command();
    command.env("AKIDB_FAKE_CONTROL", &control).args(["--workers", "1", "--listen", "127.0.0.1:0"]);
    let said = said(command);
    assert!(said.contains("error: a worker cannot start: x\\u{1b}]0;owned\\u{7}"), "{said}");
    assert!(said.contains("worker wrote") && said.contains("worker lost"), "{said}");
}

#[test]
fn what_a_models_files_say_is_no_command_to_a_terminal() {
    for (file, content) in [
        ("config.json", json!({"model_type": HOSTILE, "hidden_size": 8, "max_position_embeddings": 32})),
        ("modules.json", json!([{"idx": 0, "name": HOSTILE, "path": HOSTILE, "type": HOSTILE}])),
    ] {
        let folder = tempfile::tempdir().unwrap();
        for name in ["config.json", "tokenizer.json", "model.safetensors"] {
            std::fs::copy(golden_folder().join("tiny-bert").join(name), folder.path().join(name)).unwrap();
        }
        std::fs::write(folder.path().join(file), content.to_string()).unwrap();
        let mut command = support::command();
        command.args(["--workers", "1", "--listen", "127.0.0.1:0", "--model"]).arg(folder.path());
        let said = said(command);
        assert!(said.contains("owned"), "{file}: {said}");
    }
}

#[test]
fn what_is_typed_is_no_command_to_a_terminal() {
    for arguments in [
        &["--workers", HOSTILE][..],
        &["--model", HOSTILE],
        &["--model", "a\u{202e}b", "--listen", "127.0.0.1:0"],
        &["--python", HOSTILE],
        &["--listen", HOSTILE],
        &[HOSTILE],
        &["--wrong\u{1b}[2J"],
        &["models", HOSTILE],
        &["models", "path", "a\u{202e}b"],
    ] {
        let mut command = support::command();
        command.args(arguments).env("HF_HUB_OFFLINE", "1");
        assert!(said(command).contains("error: "), "{arguments:?}");
    }
    let help = support::command().env("AKIDB_SERVED_MODEL_NAME", HOSTILE).arg("--help").output().unwrap();
    assert_clean(&String::from_utf8(help.stdout).unwrap());
}

#[test]
fn what_a_hub_says_is_no_command_to_a_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let python = folder.path().join("python");
    let answers = |answer: &serde_json::Value| {
        let file = folder.path().join("answer.json");
        std::fs::write(&file, answer.to_string()).unwrap();
        std::fs::write(&python, format!("#!/bin/sh\ncat '{}'\n", file.display())).unwrap();
        std::fs::set_permissions(&python, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        |arguments: &[&str]| {
            let output = support::command().args(arguments).arg("--python").arg(&python).output().unwrap();
            let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
            (text(output.stdout), text(output.stderr))
        }
    };
    let run = answers(&json!({"error": {"code": "hub_unreachable", "message": HOSTILE}}));
    for arguments in
        [&["models", "pull", "a/b"][..], &["models", "path", "a/b"], &["--listen", "127.0.0.1:0"]]
    {
        let (_, stderr) = run(arguments);
        assert!(stderr.contains("owned"), "{stderr}");
        assert_clean(&stderr);
    }
    let model = json!({"name": HOSTILE, "repository": HOSTILE, "dimension": null, "pooling": HOSTILE, "note": HOSTILE,
        "state": HOSTILE, "revisions": [HOSTILE], "commit": HOSTILE, "size_bytes": null, "path": HOSTILE});
    let run = answers(&json!([model]));
    let (table, _) = run(&["models", "list"]);
    assert_eq!(table.lines().count(), 2, "{table}");
    assert_clean(&table);
    let (list, _) = run(&["models", "list", "--json"]);
    assert_clean(&list);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&list).unwrap()[0]["name"], HOSTILE);
    let run = answers(&json!({"path": "/m", "source": "hub", "revision": HOSTILE, "downloaded": true}));
    assert_clean(&run(&["models", "pull", "a/b"]).1);
    let run = answers(&json!(HOSTILE));
    assert_clean(&run(&["models", "pull", "a/b"]).1);
}

#[test]
fn log_lines_for_programs_hold_no_command_to_a_terminal_either() {
    let gateway = Gateway::misbehaving(&json!({"say": HOSTILE, "start_exit": 3}), &["--workers", "1"]);
    let line = gateway.logged("worker wrote", |line| line["line"].as_str().unwrap().contains("owned"));
    assert!(line["line"].as_str().unwrap().contains('\u{9b}'), "programs get the text as it is");
    let folder = tempfile::tempdir().unwrap();
    let control = folder.path().join("control.json");
    std::fs::write(&control, json!({"say": HOSTILE, "fatal": HOSTILE}).to_string()).unwrap();
    let mut command = support::fake_command();
    command.env("AKIDB_FAKE_CONTROL", &control).args(["--workers", "1", "--listen", "127.0.0.1:0"]);
    command.args(["--log-format", "json"]);
    let (_, stderr, _) = run_to_end(command);
    assert_clean(&stderr);
    assert!(stderr.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{stderr}");
}
