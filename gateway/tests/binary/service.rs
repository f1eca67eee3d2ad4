//! The `service` commands: files for launchd and systemd, and what is done with them.

use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::support;

/// Where packages put the gateway.
const PROGRAM: &str = "/usr/local/bin/akidb-gateway";
/// The committed files, and the words that print them.
const DEPLOYED: [(&str, &[&str]); 3] = [
    ("launchd/io.akidb.gateway.plist", &["--system", "--for", "launchd"]),
    ("systemd/akidb-gateway.service", &["--system", "--for", "systemd"]),
    ("systemd/user/akidb-gateway.service", &["--user", "--for", "systemd"]),
];

fn service(words: &[&str]) -> Command {
    let mut command = support::command();
    command.arg("service").args(words);
    command
}

fn run(mut command: Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// What is printed for a gateway at [`PROGRAM`].
fn printed(target: &[&str], flags: &[&str]) -> String {
    let mut command = service(&["print", "--program", PROGRAM]);
    command.args(target).arg("--").args(flags);
    let (code, stdout, stderr) = run(command);
    assert_eq!((code, stderr.as_str()), (0, ""), "{stderr}");
    stdout
}

/// A property list, as Python reads it.
fn property_list(text: &str) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("job.plist");
    std::fs::write(&file, text).unwrap();
    let program = "import json, plistlib, sys; print(json.dumps(plistlib.load(open(sys.argv[1], 'rb'))))";
    let output = Command::new(support::python()).args(["-I", "-c", program]).arg(file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Values of a key of a unit, in their order.
fn values<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect()
}

#[test]
fn the_committed_files_are_what_is_printed() {
    for (file, target) in DEPLOYED {
        let path = support::checkout().join("deploy").join(file);
        let text = printed(target, &[]);
        if std::env::var_os("AKIDB_WRITE_DEPLOY").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        let committed = std::fs::read_to_string(&path).unwrap();
        assert_eq!(committed, text, "run `make deploy-files`");
    }
}

#[test]
fn a_property_list_has_what_launchd_needs() {
    let job = property_list(&printed(&["--system", "--for", "launchd"], &["--workers", "2"]));
    assert_eq!(job["Label"], "io.akidb.gateway");
    assert_eq!(job["ProgramArguments"], json!([PROGRAM, "--workers", "2"]));
    assert_eq!((&job["KeepAlive"], &job["RunAtLoad"]), (&json!(true), &json!(true)));
    assert!(job["ThrottleInterval"].as_u64().unwrap() >= 1);
    assert!(job["ExitTimeOut"].as_u64().unwrap() > 15, "the default drain takes 15 s");
    assert_eq!((&job["ProcessType"], &job["UserName"]), (&json!("Interactive"), &json!("_akidb")));
    assert!(job["SoftResourceLimits"]["NumberOfFiles"].as_u64().unwrap() >= 4096);
    for key in ["StandardOutPath", "StandardErrorPath"] {
        assert!(job[key].as_str().unwrap().starts_with("/Library/Logs/"), "{job}");
    }
    let variable = |name: &str| job["EnvironmentVariables"][name].as_str().unwrap().to_owned();
    assert!(variable("HOME").starts_with('/'));
    assert!(variable("HF_HOME").starts_with(&variable("HOME")), "the system may empty the cache");

    let mut command = service(&["print", "--user", "--for", "launchd", "--program", PROGRAM]);
    command.env("HOME", "/Users/somebody");
    let (_, stdout, _) = run(command);
    let job = property_list(&stdout);
    assert_eq!(job["StandardErrorPath"], "/Users/somebody/Library/Logs/akidb-gateway.log");
    assert_eq!(job["UserName"], Value::Null);
}

#[test]
fn a_unit_has_what_systemd_needs() {
    let unit =
        printed(&["--system", "--for", "systemd"], &["--model", "/srv/a model", "--drain-timeout", "40s"]);
    assert_eq!(
        values(&unit, "ExecStart"),
        [format!("{PROGRAM} --model \"/srv/a model\" --drain-timeout 40s")]
    );
    for (key, value) in [
        ("Type", "notify"),
        ("KillMode", "mixed"),
        ("RestartPreventExitStatus", "64 78"),
        ("Restart", "always"),
        ("DynamicUser", "yes"),
        ("OOMPolicy", "continue"),
        ("TimeoutStopSec", "45"),
        ("WantedBy", "multi-user.target"),
    ] {
        assert_eq!(values(&unit, key), [value], "{key}");
    }
    let environment = values(&unit, "Environment").join(" ");
    assert!(
        environment.contains("HF_HOME=/var/lib/akidb-gateway/"),
        "no cache that may be cleaned: {environment}"
    );
    assert!(values(&unit, "WatchdogSec")[0].parse::<u32>().unwrap() >= 10);
    let named = printed(&["--system", "--for", "systemd", "--run-as", "embedder"], &[]);
    assert_eq!((values(&named, "User"), values(&named, "DynamicUser").len()), (vec!["embedder"], 0));
    // Who may see nothing below /home cannot run what lies there.
    assert_eq!(values(&unit, "ProtectHome"), ["yes"]);
    let at_home = printed(&["--system", "--for", "systemd"], &["--python", "/home/me/bin/python"]);
    assert_eq!(values(&at_home, "ProtectHome"), ["read-only"]);
    let own = printed(&["--user", "--for", "systemd"], &[]);
    assert_eq!(values(&own, "WantedBy"), ["default.target"]);
    assert!(values(&own, "DynamicUser").is_empty() && values(&own, "CapabilityBoundingSet").is_empty());
}

#[test]
fn odd_words_arrive_as_they_are() {
    let odd = "a<b> & \"c\" 'd' 100% $HOME \\ \u{e9}\u{1f600}";
    let job = property_list(&printed(&["--system", "--for", "launchd"], &["--served-model-name", odd]));
    assert_eq!(job["ProgramArguments"][2], odd);
    let unit = printed(&["--system", "--for", "systemd"], &["--served-model-name", odd]);
    let written = "\"a<b> & \\\"c\\\" 'd' 100%% $$HOME \\\\ \u{e9}\u{1f600}\"";
    assert!(values(&unit, "ExecStart")[0].ends_with(written), "{unit}");
}

#[test]
fn variables_of_the_gateway_are_kept_and_secrets_are_not() {
    for keeper in ["launchd", "systemd"] {
        let mut command = service(&["print", "--system", "--for", keeper, "--program", PROGRAM]);
        command.env("AKIDB_WORKERS", "3").env("AKIDB_API_KEY", "hidden").env("AKIDB_HUB_TOKEN", "hidden");
        let (code, stdout, _) = run(command);
        assert_eq!(code, 0);
        assert!(stdout.contains("AKIDB_WORKERS") && !stdout.contains("hidden"), "{stdout}");
    }
}

#[test]
fn what_the_service_could_not_run_with_is_refused_now() {
    for (words, said) in [
        (vec!["print", "--", "--workers", "0"], "--workers"),
        (vec!["print", "--", "--no-such-flag"], "--no-such-flag"),
        (vec!["print", "--", "models", "list"], "`serve`"),
        (vec!["print", "--program", "bin/akidb-gateway"], "not an absolute path"),
        (vec!["print", "--program", PROGRAM, "--", "--python", "bin/python"], "--python"),
        (vec!["print", "--user", "--run-as", "me"], "--run-as"),
        (vec!["print", "--user", "--system"], "--system"),
        (vec!["print", "--for", "windows"], "windows"),
    ] {
        let (code, stdout, stderr) = run(service(&words));
        assert_eq!((code, stdout.as_str()), (64, ""), "{words:?}: {stderr}");
        assert!(stderr.contains(said), "{words:?}: {stderr}");
    }
    let mut relative = service(&["print", "--program", PROGRAM, "--", "--model", "fake_model"]);
    relative.current_dir(support::checkout().join("gateway/tests/data"));
    let (code, _, stderr) = run(relative);
    assert_eq!(code, 64);
    assert!(stderr.contains("--model") && stderr.contains("absolute"), "{stderr}");
}

#[test]
fn a_dry_run_says_everything_and_does_nothing() {
    let home = tempfile::tempdir().unwrap();
    for keeper in ["launchd", "systemd"] {
        for words in [vec!["install", "--user", "--dry-run"], vec!["uninstall", "--user", "--dry-run"]] {
            let mut command = service(&words);
            command.args(["--for", keeper]).env("HOME", home.path()).env_remove("XDG_CONFIG_HOME");
            let (code, stdout, stderr) = run(command);
            assert_eq!(code, 0, "{stderr}");
            let program = if keeper == "launchd" { "run launchctl boot" } else { "run systemctl --user " };
            assert!(stdout.contains(program), "{stdout}");
            let is_installation = words[0] == "install";
            assert_eq!(stdout.contains("write "), is_installation, "{stdout}");
            assert_eq!(stdout.contains("AKIDB_PYTHON"), is_installation, "{stdout}");
        }
    }
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0);
}

#[cfg(target_os = "linux")]
fn permissions(mode: u32) -> std::fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(mode)
}

/// A `systemctl` that writes down what it is asked, and answers `show`.
#[cfg(target_os = "linux")]
struct Systemctl(tempfile::TempDir);

#[cfg(target_os = "linux")]
impl Systemctl {
    fn new(script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("systemctl");
        std::fs::write(
            &file,
            format!("#!/bin/sh\necho \"$@\" >> {}/asked\n{script}\n", folder.path().display()),
        )
        .unwrap();
        std::fs::set_permissions(&file, permissions(0o755)).unwrap();
        Self(folder)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = service(words);
        command.env("PATH", self.0.path()).env("XDG_CONFIG_HOME", self.0.path().join("config"));
        command
    }

    fn unit(&self) -> std::path::PathBuf {
        self.0.path().join("config/systemd/user/akidb-gateway.service")
    }

    fn asked(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.0.path().join("asked")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

#[cfg(target_os = "linux")]
#[test]
fn an_own_service_is_installed_told_about_and_removed() {
    let systemctl = Systemctl::new(
        "case \"$*\" in *show*) printf 'LoadState=loaded\\nActiveState=active\\nSubState=running\\nMainPID=42\\nNRestarts=1\\nStatusText=serving\\n';; esac",
    );
    let (code, _, stderr) = run(systemctl.command(&["install", "--user", "--", "--workers", "1"]));
    assert_eq!(code, 0, "{stderr}");
    let unit = std::fs::read_to_string(systemctl.unit()).unwrap();
    let binary = env!("CARGO_BIN_EXE_akidb-gateway");
    assert_eq!(values(&unit, "ExecStart"), [format!("{binary} --workers 1")]);
    let python = format!("AKIDB_PYTHON={}", support::python().display());
    assert!(values(&unit, "Environment").contains(&python.as_str()), "{unit}");
    assert_eq!(
        systemctl.asked(),
        [
            "--user daemon-reload",
            "--user enable akidb-gateway.service",
            "--user restart --no-block akidb-gateway.service"
        ]
    );
    let (code, stdout, stderr) = run(systemctl.command(&["status", "--user"]));
    assert_eq!(code, 0, "{stderr}");
    for part in ["active (running): serving", "42", "restarts 1", "journalctl --user"] {
        assert!(stdout.contains(part), "{stdout}");
    }
    let (code, _, stderr) = run(systemctl.command(&["uninstall", "--user"]));
    assert_eq!(code, 0, "{stderr}");
    assert!(!systemctl.unit().exists());
    assert_eq!(
        systemctl.asked()[4..],
        [
            "--user disable --now akidb-gateway.service",
            "--user daemon-reload",
            "--user reset-failed akidb-gateway.service"
        ]
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_service_that_does_not_run_is_exit_code_3_and_a_failing_systemctl_is_quoted() {
    let none = Systemctl::new("printf 'LoadState=not-found\\nActiveState=inactive\\n'");
    let (code, stdout, stderr) = run(none.command(&["status", "--user"]));
    assert_eq!(code, 3, "{stderr}");
    assert!(stdout.contains("not installed") && stdout.contains("not-found"), "{stdout}");
    let failing = Systemctl::new("echo 'Failed to connect to bus' >&2; exit 1");
    for words in [vec!["status", "--user"], vec!["install", "--user"]] {
        let (code, _, stderr) = run(failing.command(&words));
        assert_eq!(code, 70, "{stderr}");
        assert!(stderr.contains("systemctl --user") && stderr.contains("Failed to connect"), "{stderr}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_systemctl_that_others_could_have_put_there_is_not_run() {
    let systemctl = Systemctl::new("");
    std::fs::set_permissions(systemctl.0.path(), permissions(0o777)).unwrap();
    let _ = run(systemctl.command(&["status", "--user"]));
    assert!(systemctl.asked().is_empty());
}

#[cfg(target_os = "linux")]
#[test]
fn a_keeper_of_another_system_is_only_printed_for() {
    for words in [vec!["install"], vec!["uninstall"], vec!["status"]] {
        let mut command = service(&words);
        command.args(["--for", "launchd"]);
        let (code, _, stderr) = run(command);
        assert_eq!(code, 64, "{stderr}");
        assert!(stderr.contains("launchd"), "{stderr}");
    }
}

#[test]
fn a_file_that_cannot_be_written_is_exit_code_73() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let mut command = service(&["install", "--user"]);
    // Where both systems put the files of a user.
    command.env("HOME", &file).env("XDG_CONFIG_HOME", file.join("config"));
    let (code, _, stderr) = run(command);
    assert_eq!(code, 73, "{stderr}");
    assert!(stderr.contains(&file.display().to_string()), "{stderr}");
}

#[test]
fn help_names_every_command_and_the_exit_codes() {
    let (code, stdout, _) = run(service(&["--help"]));
    assert_eq!(code, 0);
    for word in ["print", "install", "uninstall", "status", "Exit codes"] {
        assert!(stdout.contains(word), "{stdout}");
    }
}
