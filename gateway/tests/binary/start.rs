//! Starting: flags, models, environments, and the exit codes and one-line errors when one of them is wrong.

use std::process::Command;
use std::time::Duration;

use akidb_gateway::cli::{ModelsFlags, ServeFlags};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::support::{self, Gateway, run_to_end};

/// A hub that refuses every connection, and no cache: what a machine without network has.
fn without_hub(command: &mut Command) -> tempfile::TempDir {
    let cache = tempfile::tempdir().unwrap();
    command
        .env("HF_ENDPOINT", "http://127.0.0.1:9")
        .env("HF_HOME", cache.path())
        .env_remove("HF_HUB_OFFLINE");
    cache
}

#[test]
fn every_value_out_of_range_is_reported_at_once() {
    let mut command = support::command();
    command.args(["--workers", "0", "--max-batch-tokens", "no", "--log-format", "xml"]);
    command.env("AKIDB_REQUEST_TIMEOUT", "soon").env("AKIDB_LISTEN", "everywhere");
    let (code, stderr, _) = run_to_end(command);
    assert_eq!(code, 64, "{stderr}");
    assert_eq!(stderr.lines().count(), 5, "{stderr}");
    for part in
        ["--workers", "`0`", "--max-batch-tokens", "AKIDB_REQUEST_TIMEOUT", "`soon`", "`everywhere`", "`xml`"]
    {
        assert!(stderr.contains(part), "{part} is not in {stderr}");
    }
}

#[test]
fn with_json_lines_a_wrong_value_is_said_in_one() {
    let mut command = support::command();
    command.args(["--workers", "0", "serve", "--log-format", "json", "--listen", "0.0.0.0:0"]);
    let (code, stderr, _) = run_to_end(command);
    assert_eq!((code, stderr.lines().count()), (64, 1), "{stderr}");
    let line: Value = serde_json::from_str(&stderr).unwrap();
    assert_eq!((&line["level"], &line["exit_code"]), (&json!("ERROR"), &json!(64)));
    let error = line["error"].as_str().unwrap();
    assert_eq!(error.lines().count(), 2, "{error}");
    assert!(error.contains("--workers") && error.contains("--allow-remote"), "{error}");
}

#[test]
fn only_a_flag_or_its_variable_lets_other_machines_in() {
    let mut command = support::command();
    command.args(["--listen", "0.0.0.0:0"]);
    let (code, stderr, _) = run_to_end(command);
    assert_eq!((code, stderr.lines().count()), (64, 1), "{stderr}");
    assert!(stderr.contains("--allow-remote"), "{stderr}");
    let mut command = support::fake_command();
    command.args(["--workers", "1", "--listen", "0.0.0.0:0"]).env("AKIDB_ALLOW_REMOTE", "true");
    let gateway = Gateway::start(command, None);
    assert!(gateway.address.ip().is_unspecified());
    assert_eq!(gateway.get("/livez").status, 200);
}

#[test]
fn an_unknown_flag_is_wrong_usage() {
    let mut command = support::command();
    command.arg("--wrokers=2");
    let (code, stderr, _) = run_to_end(command);
    assert_eq!(code, 64);
    assert!(stderr.contains("--workers"), "no suggestion in {stderr}");
}

#[test]
fn help_names_every_flag_and_its_variable() {
    let help = |arguments: &[&str]| {
        let output = support::command().args(arguments).arg("--help").output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    let serve = ServeFlags::augment_args(clap::Command::new("serve"));
    assert!(serve.get_arguments().count() >= 36, "{serve:?}");
    check_help(&serve, &help(&[]));
    let models = ModelsFlags::augment_subcommands(clap::Command::new("models"));
    assert_eq!(models.get_subcommands().count(), 3);
    for command in models.get_subcommands() {
        check_help(command, &help(&["models", command.get_name()]));
    }
}

/// Every flag stands in the help under its own name, with words of explanation; those that set something have a
/// variable that is called like the flag.
fn check_help(command: &clap::Command, help: &str) {
    for argument in command.get_arguments() {
        let name = argument.get_long().unwrap_or_else(|| argument.get_id().as_str());
        let shown =
            argument.get_long().map_or_else(|| format!("[{}]", name.to_uppercase()), |_| format!("--{name}"));
        let is_its_line = |line: &&str| line.split([' ', ',', '=']).any(|word| word == shown);
        assert!(help.lines().any(|line| is_its_line(&line)), "`{shown}` is not in {help}");
        assert!(argument.get_help().is_some(), "`{shown}` is not explained");
        let variable = format!("AKIDB_{}", name.replace('-', "_").to_uppercase());
        if let Some(stated) = argument.get_env() {
            assert_eq!(stated.to_str(), Some(variable.as_str()));
            assert!(help.contains(&format!("[env: {variable}=")), "`{variable}` is not in {help}");
        } else {
            // The form of one command's output is nothing to set for all.
            assert_eq!((command.get_name(), name), ("list", "json"));
        }
    }
}

#[test]
fn a_variable_serves_as_a_flag_and_the_flag_wins() {
    let mut command = support::fake_command();
    command
        .env("AKIDB_WORKERS", "3")
        .env("AKIDB_SERVED_MODEL_NAME", "from-variable")
        .args(["--served-model-name", "from-flag"]);
    let gateway = Gateway::start(command, None);
    let health = gateway.health();
    assert_eq!(health["workers"].as_array().unwrap().len(), 3);
    assert_eq!(health["model"], "from-flag");
}

#[test]
fn the_workers_are_told_what_to_compute_with_and_in_which_type() {
    let told = [
        (&[][..], ("cpu", "float32")),
        (&["--device", "cpu", "--cpu-weights", "quantized"], ("cpu", "quantized")),
        (&["--device", "gpu"], ("gpu", "float16")),
        (&["--device", "gpu", "--gpu-dtype", "stored"], ("gpu", "stored")),
    ];
    for (arguments, (device, dtype)) in told {
        let gateway = Gateway::fake(arguments);
        gateway.wait_until_ready();
        let worker = &gateway.health()["workers"][0];
        assert_eq!((&worker["device"], &worker["dtype"]), (&json!(device), &json!(dtype)));
    }
}

#[test]
fn a_path_is_served_under_its_last_component() {
    let gateway = Gateway::start(support::fake_command(), None);
    assert_eq!(gateway.health()["model"], "fake_model");
    let body = json!({"texts": ["a"], "model": "fake_model"}).to_string();
    assert_eq!(gateway.post("/api/v1/embed", &body).status, 200);
}

#[test]
fn row_33_a_model_that_cannot_be_had_ends_soon_with_one_line_that_holds_a_command_that_works() {
    let mut command = support::command();
    let _cache = without_hub(&mut command);
    command.args(["--workers=1", "--request-timeout", "20s"]);
    let (code, stderr, took) = run_to_end(command);
    assert_eq!(code, 78, "{stderr}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    let works = stderr.trim().split_once("this works here: ").unwrap().1;
    assert!(works.ends_with("--model all-minilm-l6-v2"), "{works}");

    // It does work, as it was printed.
    let words = shlex::split(works).unwrap();
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    let gateway = Gateway::start(command, None);
    gateway.wait_until_ready();
    assert_eq!(gateway.embed(&["Hello world"]).vectors()[0].len(), 384);
}

#[test]
fn a_hub_that_never_answers_is_given_up_soon() {
    let silent_hub = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = support::command();
    let _cache = without_hub(&mut command);
    command.env("HF_ENDPOINT", format!("http://{}", silent_hub.local_addr().unwrap()));
    command.args(["--listen", "127.0.0.1:0"]);
    let (code, stderr, took) = run_to_end(command);
    assert_eq!((code, stderr.lines().count()), (78, 1), "{stderr}");
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn a_name_that_is_no_model_is_refused() {
    for model in ["no such model", "/nonexistent/folder", "a/b/c"] {
        let mut command = support::command();
        let _cache = without_hub(&mut command);
        command.args(["--listen", "127.0.0.1:0", "--model", model]);
        let (code, stderr, _) = run_to_end(command);
        assert_eq!((code, stderr.lines().count()), (78, 1), "{stderr}");
        assert!(stderr.contains(model) && stderr.contains("all-minilm-l6-v2"), "{stderr}");
    }
}

#[test]
fn row_33_a_directory_that_holds_no_usable_model_is_refused() {
    let source = support::checkout().join("gateway/tests/data/fake_model");
    type Damage<'a> = &'a dyn Fn(&std::path::Path);
    let cases: [(&str, Damage, &str); 5] = [
        (
            "no config.json",
            &|folder| std::fs::remove_file(folder.join("config.json")).unwrap(),
            "config.json",
        ),
        (
            "no tokenizer.json",
            &|folder| std::fs::remove_file(folder.join("tokenizer.json")).unwrap(),
            "tokenizer.json",
        ),
        (
            "no weights",
            &|folder| std::fs::remove_file(folder.join("model.safetensors")).unwrap(),
            "safetensors",
        ),
        ("bad JSON", &|folder| std::fs::write(folder.join("config.json"), "{").unwrap(), "config.json"),
        ("damaged weights", &|_| {}, "model.safetensors"),
    ];
    for (name, damage, part) in cases {
        let folder = tempfile::tempdir().unwrap();
        for file in ["config.json", "tokenizer.json"] {
            std::fs::copy(source.join(file), folder.path().join(file)).unwrap();
        }
        std::fs::write(folder.path().join("model.safetensors"), [0xff; 100]).unwrap();
        damage(folder.path());
        let mut command = support::command();
        command
            .args(["--listen", "127.0.0.1:0", "--workers=1", "--log-format=json", "--model"])
            .arg(folder.path());
        let (code, stderr, _) = run_to_end(command);
        let lines: Vec<Value> = stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let errors: Vec<&Value> = lines.iter().filter(|line| line["level"] == "ERROR").collect();
        assert_eq!((code, errors.len()), (78, 1), "{name}: {stderr}");
        assert_eq!(
            (&errors[0]["message"], &errors[0]["exit_code"]),
            (&json!("the gateway cannot run"), &json!(78))
        );
        assert!(errors[0]["error"].as_str().unwrap().contains(part), "{name}: {stderr}");
    }
}

#[test]
fn a_worker_that_can_never_be_ready_ends_the_gateway() {
    for (misbehaviour, part) in [
        (json!({"fatal": "the weights are damaged"}), "the weights are damaged"),
        (json!({"shorter": 1}), "texts of 63 tokens, and the gateway would send up to 64"),
        (json!({"hello_version": 2}), "protocol version 2"),
    ] {
        let mut gateway = Gateway::misbehaving(&misbehaviour, &["--workers", "2"]);
        assert_eq!(gateway.wait().code(), Some(78));
        assert!(gateway.log_contains(part), "{part}");
    }
}

#[test]
fn row_33_a_port_in_use_is_said_and_the_first_gateway_undisturbed() {
    let first = Gateway::fake(&["--workers", "1"]);
    first.wait_until_ready();
    let address = first.address.to_string();
    let mut command = support::fake_command();
    command.args(["--listen", &address]);
    let (code, stderr, _) = run_to_end(command);
    assert_eq!(code, 98, "{stderr}");
    assert!(stderr.contains(&address) && stderr.contains("--listen"), "{stderr}");
    assert_eq!(first.embed(&["a"]).status, 200);
    assert_eq!(first.health()["workers"][0]["generation"], 1);
}

/// The binary alone in a folder, far from any checkout.
fn far_from_the_checkout() -> (tempfile::TempDir, Command) {
    let folder = tempfile::tempdir().unwrap();
    let binary = folder.path().join("akidb-gateway");
    std::fs::copy(env!("CARGO_BIN_EXE_akidb-gateway"), &binary).unwrap();
    let mut command = Command::new(binary);
    command.current_dir(folder.path()).env_remove("VIRTUAL_ENV");
    (folder, command)
}

#[test]
fn row_33_a_missing_python_environment_is_said_with_everything_that_was_tried() {
    let (_folder, mut command) = far_from_the_checkout();
    command.env("PATH", "/nonexistent").env("VIRTUAL_ENV", "/nonexistent/environment");
    let (code, stderr, _) = run_to_end(command);
    assert_eq!(code, 78);
    for part in ["`/nonexistent/environment`", "`akidb-sidecar` on the PATH", "make setup"] {
        assert!(stderr.contains(part), "{part} is not in {stderr}");
    }
    let (_folder, mut command) = far_from_the_checkout();
    command.args(["--python", "/nonexistent/python"]);
    let (code, stderr, _) = run_to_end(command);
    assert_eq!(code, 78);
    assert!(stderr.contains("/nonexistent/python"), "{stderr}");
}

#[test]
fn row_33_a_python_without_the_package_is_said() {
    let (_folder, mut command) = far_from_the_checkout();
    command.args(["--python", "/usr/bin/env", "--model", support::MINILM]);
    let (code, stderr, _) = run_to_end(command);
    assert_eq!(code, 78, "{stderr}");
    assert!(stderr.contains("/usr/bin/env") && stderr.contains("--python"), "{stderr}");
}

#[test]
fn the_environment_is_found_in_the_checkout_by_its_variable_and_on_the_path() {
    let environment = support::python().parent().unwrap().parent().unwrap().to_owned();
    let serves = |mut command: Command| {
        command.args(["--model", support::MINILM, "--workers", "1"]);
        let gateway = Gateway::start(command, None);
        gateway.wait_until_ready();
        assert_eq!(gateway.embed(&["Hello world"]).status, 200);
    };
    serves(support::command());
    let (_folder, mut by_variable) = far_from_the_checkout();
    by_variable.env("VIRTUAL_ENV", &environment);
    serves(by_variable);
    let (_folder, mut by_path) = far_from_the_checkout();
    // An environment without the package is passed over.
    let other = tempfile::tempdir().unwrap();
    by_path.env("PATH", environment.join("bin")).env("VIRTUAL_ENV", other.path());
    serves(by_path);
}
