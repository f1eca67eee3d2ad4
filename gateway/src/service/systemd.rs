//! systemd: units, `systemctl`, and where they belong.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::steps::{self, Step};
use super::{NAME, Program, Scope, Status, words};
use crate::error::StartError;

/// What is asked of systemd about the service.
const PROPERTIES: [&str; 6] = ["LoadState", "ActiveState", "SubState", "MainPID", "NRestarts", "StatusText"];
/// Folders that `ProtectHome` hides.
const HOMES: [&str; 3] = ["/home", "/root", "/run/user"];

const UNIT: &str = "\
# Ready when the first worker is. Startup is extended while a model downloads.
Type=notify
NotifyAccess=main
ExecReload=/bin/kill -HUP $MAINPID
TimeoutStartSec=90
Restart=always
RestartSec=2
# Wrong usage, or an unusable model or environment: restarting would not help.
RestartPreventExitStatus=64 78
# Fed as long as the loops that accept connections, schedule texts and supervise workers make progress.
WatchdogSec=30
# The gateway stops its own workers; anything left is killed.
KillMode=mixed
# If the kernel kills a worker for lack of memory, the gateway restarts it.
OOMPolicy=continue
LimitNOFILE=65536
";

const SYSTEM: &str = "\
StateDirectory=akidb-gateway
CacheDirectory=akidb-gateway
ConfigurationDirectory=akidb-gateway
# Models are downloaded to HF_HOME, outside the cache so that cleaning the cache keeps them. The cache holds compiled kernels.
Environment=HOME=/var/lib/akidb-gateway HF_HOME=/var/lib/akidb-gateway/huggingface
Environment=XDG_CACHE_HOME=/var/cache/akidb-gateway
# More variables, one NAME=value per line. Set mode 0600 if it contains secrets.
EnvironmentFile=-/etc/akidb-gateway/environment
# A Hugging Face token, in a file only root can read: uncomment both lines.
#LoadCredential=hf-token:/etc/akidb-gateway/hf-token
#Environment=HF_TOKEN_PATH=%d/hf-token
";

const USER: &str = "\
# More variables, one NAME=value per line. Set mode 0600 if it contains secrets.
EnvironmentFile=-%E/akidb-gateway/environment
";

/// Each of these was seen to work with a real worker. `PrivateDevices`, `ProtectClock` and `MemoryDenyWriteExecute` would take
/// a GPU away.
const SANDBOX: &str = "\
# Sandbox. PrivateDevices, ProtectClock and MemoryDenyWriteExecute are left out because they would block GPUs.
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
PrivateTmp=yes
ProtectProc=invisible
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RemoveIPC=yes
UMask=0077
";

const FILTERS: &str = "\
LockPersonality=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
";

/// The unit.
pub(super) fn file(scope: Scope, program: &Program) -> String {
    let command = std::iter::once(program.path.to_string_lossy().into_owned())
        .chain(program.arguments.iter().cloned())
        .map(|word| quoted(&word, "$"))
        .collect::<Vec<_>>()
        .join(" ");
    let mut unit = format!(
        "# Made by `akidb-gateway service print`.\n[Unit]\nDescription=Text embeddings on this machine\n\
         After=network.target\n# Restart it no matter how often it exits.\nStartLimitIntervalSec=0\n\n\
         [Service]\nExecStart={command}\n{UNIT}TimeoutStopSec={}\n",
        program.stop_seconds()
    );
    match scope {
        Scope::System => {
            unit.push_str(&program.run_as.as_ref().map_or_else(
                || "# A user that exists only while the service runs.\nDynamicUser=yes\n".to_owned(),
                |user| format!("User={}\n", quoted(user, "")),
            ));
            unit.push_str(SYSTEM);
        }
        Scope::User => unit.push_str(USER),
    }
    for (name, value) in &program.environment {
        unit.push_str(&format!("Environment={}\n", quoted(&format!("{name}={value}"), "")));
    }
    if scope == Scope::System {
        unit.push_str(SANDBOX);
        let is_in_home = |path: &Path| HOMES.iter().any(|home| path.starts_with(home));
        // A Python environment is made of links.
        let leads_there = |part: &Path| std::fs::canonicalize(part).is_ok_and(|real| is_in_home(&real));
        let is_in_home = program.parts().any(|part| is_in_home(part) || leads_there(part));
        unit.push_str(if is_in_home { "ProtectHome=read-only\n" } else { "ProtectHome=yes\n" });
    } else {
        unit.push_str("# Sandbox, as far as a user service allows.\nNoNewPrivileges=yes\nUMask=0077\n");
    }
    unit.push_str(FILTERS);
    let target = if scope == Scope::System { "multi-user.target" } else { "default.target" };
    unit.push_str(&format!("\n[Install]\nWantedBy={target}\n"));
    unit
}

/// What installs the service and starts it, and what a person may want to know then.
pub(super) fn install(scope: Scope, program: &Program, configuration: &Path) -> (Vec<Step>, Vec<String>) {
    let steps = vec![
        Step::Write { path: file_path(scope, configuration), text: file(scope, program) },
        Step::run(systemctl(scope, &["daemon-reload"])),
        Step::run(systemctl(scope, &["enable", &unit_name()])),
        // It is not waited for: the first start may download a model.
        Step::run(systemctl(scope, &["restart", "--no-block", &unit_name()])),
    ];
    let mut hints = vec![format!("log: {}; status: akidb-gateway service status", log_command(scope))];
    if scope == Scope::User {
        hints.push("to keep it running while you are logged out: loginctl enable-linger".to_owned());
    }
    (steps, hints)
}

/// What stops the service and removes it.
pub(super) fn uninstall(scope: Scope, configuration: &Path) -> Vec<Step> {
    vec![
        Step::Run { words: systemctl(scope, &["disable", "--now", &unit_name()]), may_fail: true },
        Step::Remove { path: file_path(scope, configuration) },
        Step::run(systemctl(scope, &["daemon-reload"])),
        // Else systemd remembers one that had failed.
        Step::Run { words: systemctl(scope, &["reset-failed", &unit_name()]), may_fail: true },
    ]
}

/// How the service is, in systemd's words.
pub(super) fn status(scope: Scope, configuration: &Path) -> Result<Status, StartError> {
    let properties = format!("--property={}", PROPERTIES.join(","));
    let question = systemctl(scope, &["show", &properties, &unit_name()]);
    let output = steps::output(&question)?;
    if !output.status.success() {
        return Err(steps::failure(&question, &output));
    }
    let said = String::from_utf8_lossy(&output.stdout);
    let fact = |name: &str| {
        let mut lines = said.lines().filter_map(|line| line.split_once('='));
        lines.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned()).unwrap_or_default()
    };
    let (loaded, active, text) = (fact("LoadState"), fact("ActiveState"), fact("StatusText"));
    let mut facts = Vec::new();
    if loaded == "loaded" {
        // What it said last is told of one that has failed, too.
        let text = if text.is_empty() || active == "failed" { String::new() } else { format!(": {text}") };
        facts.push(("state", format!("{active} ({}){text}", fact("SubState"))));
        facts.push(("pid", fact("MainPID")));
        facts.push(("restarts", fact("NRestarts")));
    } else {
        facts.push(("state", loaded));
    }
    facts.push(("log", log_command(scope)));
    Ok(Status::new(&file_path(scope, configuration), &facts, active == "active"))
}

/// A word as units write it: in quotes where it is not plain, and with what systemd would expand doubled.
fn quoted(word: &str, doubled: &str) -> String {
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "-_./:=,+@%$".contains(character);
    let mut escaped = String::with_capacity(word.len() + 2);
    for character in word.chars() {
        match character {
            '%' => escaped.push_str("%%"),
            _ if doubled.contains(character) => escaped.extend([character; 2]),
            '"' | '\\' => escaped.extend(['\\', character]),
            '\n' => escaped.push_str("\\n"),
            _ if character.is_ascii_control() => {
                escaped.push_str(&format!("\\x{:02x}", u32::from(character)));
            }
            _ => escaped.push(character),
        }
    }
    if !word.is_empty() && word.chars().all(is_plain) { escaped } else { format!("\"{escaped}\"") }
}

fn unit_name() -> String {
    format!("{NAME}.service")
}

fn file_path(scope: Scope, configuration: &Path) -> PathBuf {
    match scope {
        Scope::System => Path::new("/etc/systemd/system").join(unit_name()),
        Scope::User => configuration.join("systemd/user").join(unit_name()),
    }
}

fn systemctl(scope: Scope, arguments: &[&str]) -> Vec<OsString> {
    let mut command = words(["systemctl"]);
    if scope == Scope::User {
        command.push("--user".into());
    }
    command.extend(arguments.iter().map(OsString::from));
    command
}

fn log_command(scope: Scope) -> String {
    let scope = if scope == Scope::User { "--user " } else { "" };
    format!("journalctl {scope}--unit {NAME}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_as_systemd_reads_them() {
        for (word, written) in [
            ("--workers=2", "--workers=2"),
            ("a b", "\"a b\""),
            ("", "\"\""),
            ("100%", "100%%"),
            ("$HOME", "$$HOME"),
            ("say \"hi\" \\ there", "\"say \\\"hi\\\" \\\\ there\""),
            ("two\nlines", "\"two\\nlines\""),
            ("bell\u{7}", "\"bell\\x07\""),
            ("it's;", "\"it's;\""),
        ] {
            assert_eq!(quoted(word, "$"), written);
        }
        assert_eq!(quoted("$HOME", ""), "$HOME");
    }
}
