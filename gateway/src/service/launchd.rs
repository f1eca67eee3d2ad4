//! launchd: property lists, `launchctl`, and where they belong.
//!
//! launchd has no watchdog and knows no readiness: who needs that asks `/readyz`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use plist::{Dictionary, Value};

use super::steps::{self, Step};
use super::{DESCRIPTORS, NAME, Program, Scope, Status, words};
use crate::error::StartError;

/// The service's name with launchd.
const LABEL: &str = "io.akidb.gateway";
/// The user that a service of the machine runs as, unless another one is named.
pub(super) const USER: &str = "_akidb";
/// Time between two starts of a gateway that ends at once, in seconds.
const THROTTLE_SECONDS: u64 = 10;
/// Folders of a service of the machine: its home, its models, its cache, and its log.
const STATE: &str = "/Library/Application Support/akidb-gateway";
/// Not in the cache, which the system may empty.
const MODELS: &str = "/Library/Application Support/akidb-gateway/huggingface";
const CACHE: &str = "/Library/Caches/akidb-gateway";
const LOGS: &str = "/Library/Logs/akidb-gateway";

/// The property list.
pub(super) fn file(scope: Scope, program: &Program, home: &Path) -> Result<String, StartError> {
    let log = text(&log(scope, home));
    let mut environment = Dictionary::new();
    if scope == Scope::System {
        environment.insert("HOME".to_owned(), STATE.into());
        environment.insert("HF_HOME".to_owned(), MODELS.into());
        environment.insert("XDG_CACHE_HOME".to_owned(), CACHE.into());
    }
    for (name, value) in &program.environment {
        environment.insert(name.clone(), value.as_str().into());
    }
    let mut limits = Dictionary::new();
    limits.insert("NumberOfFiles".to_owned(), u64::from(DESCRIPTORS).into());
    let path = program.path.to_string_lossy().into_owned();
    let command = std::iter::once(path).chain(program.arguments.iter().cloned()).map(Value::from).collect();

    let mut job = Dictionary::new();
    let mut set = |key: &str, value: Value| drop(job.insert(key.to_owned(), value));
    set("Label", LABEL.into());
    set("ProgramArguments", Value::Array(command));
    if scope == Scope::System {
        set("UserName", program.run_as.as_deref().unwrap_or(USER).into());
    }
    set("EnvironmentVariables", Value::Dictionary(environment));
    set("WorkingDirectory", "/".into());
    // What it makes is for its user alone: 0077.
    set("Umask", 0o077_u64.into());
    set("RunAtLoad", true.into());
    set("KeepAlive", true.into());
    set("ThrottleInterval", THROTTLE_SECONDS.into());
    set("ExitTimeOut", program.stop_seconds().into());
    // Somebody waits for its answers: it is not slowed down as work in the background is.
    set("ProcessType", "Interactive".into());
    set("SoftResourceLimits", Value::Dictionary(limits));
    set("StandardOutPath", log.as_str().into());
    set("StandardErrorPath", log.as_str().into());

    let mut bytes = Vec::new();
    let unwritable =
        |reason: String| StartError::Service { reason, hint: "use plain text in flags".to_owned() };
    Value::Dictionary(job).to_writer_xml(&mut bytes).map_err(|error| unwritable(error.to_string()))?;
    bytes.push(b'\n');
    String::from_utf8(bytes).map_err(|error| unwritable(error.to_string()))
}

/// What installs the service and starts it, and what a person may want to know then.
pub(super) fn install(
    scope: Scope,
    program: &Program,
    home: &Path,
) -> Result<(Vec<Step>, Vec<String>), StartError> {
    let text = file(scope, program, home)?;
    let path = file_path(scope, home);
    let log = log(scope, home);
    let mut steps = Vec::new();
    match scope {
        Scope::System => {
            let owner = Some(program.run_as.as_deref().unwrap_or(USER).to_owned());
            for folder in [STATE, CACHE, LOGS] {
                steps.push(Step::MakeFolder { path: folder.into(), owner: owner.clone() });
            }
        }
        Scope::User => {
            let folder = log.parent().map(Path::to_owned).unwrap_or_default();
            steps.push(Step::MakeFolder { path: folder, owner: None });
        }
    }
    steps.push(Step::Write { path: path.clone(), text });
    steps.push(Step::run(launchctl("enable", &service(scope), None)));
    // Of one that is loaded already, launchd would keep the old file.
    steps.push(Step::Run { words: launchctl("bootout", &service(scope), None), may_fail: true });
    steps.push(Step::run(launchctl("bootstrap", &domain(scope), Some(&path))));
    let hint = format!("log: {}; status: akidb-gateway service status", log.display());
    Ok((steps, vec![hint]))
}

/// What stops the service and removes it.
pub(super) fn uninstall(scope: Scope, home: &Path) -> Vec<Step> {
    vec![
        Step::Run { words: launchctl("bootout", &service(scope), None), may_fail: true },
        Step::Remove { path: file_path(scope, home) },
    ]
}

/// How the service is, in launchd's words.
pub(super) fn status(scope: Scope, home: &Path) -> Result<Status, StartError> {
    let output = steps::output(&launchctl("print", &service(scope), None))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let fact = |name: &str| {
        let mut lines = said.lines().filter_map(|line| line.trim().split_once(" = "));
        lines
            .find(|(key, _)| *key == name)
            .map_or_else(|| "unknown".to_owned(), |(_, value)| value.to_owned())
    };
    let state = if output.status.success() { fact("state") } else { "not loaded".to_owned() };
    let mut facts = vec![("state", state.clone())];
    if output.status.success() {
        facts.push(("pid", fact("pid")));
        facts.push(("started", format!("{} times; last exit code {}", fact("runs"), fact("last exit code"))));
    }
    facts.push(("log", text(&log(scope, home))));
    Ok(Status::new(&file_path(scope, home), &facts, state == "running"))
}

fn file_path(scope: Scope, home: &Path) -> PathBuf {
    let name = format!("{LABEL}.plist");
    match scope {
        Scope::System => Path::new("/Library/LaunchDaemons").join(name),
        Scope::User => home.join("Library/LaunchAgents").join(name),
    }
}

fn log(scope: Scope, home: &Path) -> PathBuf {
    let name = format!("{NAME}.log");
    match scope {
        Scope::System => Path::new(LOGS).join(name),
        Scope::User => home.join("Library/Logs").join(name),
    }
}

fn domain(scope: Scope) -> String {
    match scope {
        Scope::System => "system".to_owned(),
        Scope::User => format!("gui/{}", nix::unistd::getuid()),
    }
}

fn service(scope: Scope) -> String {
    format!("{}/{LABEL}", domain(scope))
}

fn launchctl(command: &str, what: &str, file: Option<&Path>) -> Vec<OsString> {
    let mut words = words(["launchctl", command, what]);
    words.extend(file.map(|file| file.as_os_str().to_owned()));
    words
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
