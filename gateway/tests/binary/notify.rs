//! What a service manager sees: readiness, the watchdog, the end, and a gateway that is started again after a crash.

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::{self, Gateway, PATIENCE};

const WATCHDOG: Duration = Duration::from_millis(900);

/// The socket of a service manager, and what came over it.
struct Manager {
    socket: UnixDatagram,
    folder: tempfile::TempDir,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        Self { socket, folder }
    }

    /// A gateway with fake workers that is told about this manager.
    fn start(&self, misbehaviour: &Value, watchdog: Option<Duration>) -> Gateway {
        self.start_with_descriptors(4096, misbehaviour, watchdog)
    }

    fn start_with_descriptors(
        &self,
        descriptors: usize,
        misbehaviour: &Value,
        watchdog: Option<Duration>,
    ) -> Gateway {
        let control = tempfile::tempdir().unwrap();
        let file = control.path().join("control.json");
        std::fs::write(&file, misbehaviour.to_string()).unwrap();
        let mut command = support::fake_command();
        command.env("AKIDB_FAKE_CONTROL", file).env("NOTIFY_SOCKET", self.folder.path().join("notify"));
        command.args(["--workers", "2", "--served-model-name", "fake", "--drain-timeout", "5s"]);
        if let Some(watchdog) = watchdog {
            command.env("WATCHDOG_USEC", watchdog.as_micros().to_string());
        }
        Gateway::start(support::with_descriptors(&command, descriptors), Some(control))
    }

    /// What comes next, within that time.
    fn next(&self, within: Duration) -> Option<String> {
        let mut bytes = [0; 4096];
        self.socket.set_read_timeout(Some(within.max(Duration::from_millis(1)))).unwrap();
        let length = self.socket.recv(&mut bytes).ok()?;
        Some(String::from_utf8(bytes[..length].to_vec()).unwrap())
    }

    /// Everything that came until now.
    fn forget(&self) {
        while self.next(Duration::from_millis(1)).is_some() {}
    }

    /// Everything up to the first message with such a line.
    fn until(&self, line: &str) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut messages = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let message = self.next(left).unwrap_or_else(|| panic!("no {line} in {messages:?}"));
            let is_last = message.lines().any(|told| told == line);
            messages.push(message);
            if is_last {
                return messages;
            }
        }
    }

    /// How often the watchdog is fed in a time, and the longest time between two feedings.
    fn feedings(&self, time: Duration) -> (usize, Duration) {
        let end = Instant::now() + time;
        let (mut count, mut last, mut longest) = (0, Instant::now(), Duration::ZERO);
        while let Some(message) = self.next(end.saturating_duration_since(Instant::now())) {
            if message.lines().any(|line| line == "WATCHDOG=1") {
                count += 1;
                longest = longest.max(last.elapsed());
                last = Instant::now();
            }
            if Instant::now() >= end {
                break;
            }
        }
        (count, longest.max(last.elapsed()))
    }
}

#[test]
fn it_is_ready_when_a_worker_is_and_asks_for_time_before_that() {
    let manager = Manager::new();
    let gateway = manager.start(&json!({"start_delay": 2.0}), Some(WATCHDOG));
    let messages = manager.until("READY=1");
    assert_eq!(gateway.get("/readyz").status, 200);
    let (ready, before) = messages.split_last().unwrap();
    assert!(ready.contains("STATUS="), "{ready}");
    let more: Vec<_> = before.iter().filter(|message| message.contains("EXTEND_TIMEOUT_USEC=")).collect();
    assert!(more.len() >= 3, "{messages:?}");
    let after: Vec<String> = (0..3).filter_map(|_| manager.next(WATCHDOG)).collect();
    assert_eq!(after.len(), 3);
    assert!(after.iter().all(|message| !message.contains("EXTEND_TIMEOUT_USEC")), "{after:?}");
}

#[test]
fn a_gateway_that_never_has_a_worker_is_never_ready_but_fed() {
    let manager = Manager::new();
    let _gateway = manager.start(&json!({"never_ready": true}), Some(WATCHDOG));
    let deadline = Instant::now() + Duration::from_secs(3);
    let mut fed = 0;
    while let Some(message) = manager.next(deadline.saturating_duration_since(Instant::now())) {
        assert!(!message.contains("READY=1"), "{message}");
        fed += usize::from(message.contains("WATCHDOG=1"));
    }
    assert!(fed >= 6, "{fed}");
}

#[test]
fn the_watchdog_is_fed_without_work_without_workers_and_while_all_connections_are_taken() {
    let manager = Manager::new();
    // Room for 22 connections.
    let gateway = manager.start_with_descriptors(150, &json!({}), Some(WATCHDOG));
    manager.until("READY=1");
    let line = gateway.logged("notified systemd: ready", |_| true);
    assert_eq!(line["watchdog_ms"], 900);
    for part in ["accept", "scheduler", "supervisor"] {
        assert!(line["loops"].as_str().unwrap().contains(part), "{line}");
    }
    let well = |what: &str| {
        manager.forget();
        let (count, longest) = manager.feedings(3 * WATCHDOG);
        assert!(count >= 4 && longest < WATCHDOG, "{what}: fed {count} times, once after {longest:?}");
    };
    well("idle");
    gateway.misbehave(&json!({"start_exit": 1}));
    for pid in gateway.worker_pids() {
        support::kill(pid, Signal::SIGKILL);
    }
    gateway.eventually("no worker is ready", |gateway| gateway.get("/readyz").status == 503);
    let waiting = gateway.send_embed("a text that waits");
    well("without workers");
    drop(waiting);
    let connections: Vec<_> =
        (0..40).map(|_| std::net::TcpStream::connect(gateway.address).unwrap()).collect();
    gateway.logged("connection limit reached: new connections are waiting", |_| true);
    well("with all connections taken");
    drop(connections);
}

#[test]
fn one_that_does_not_turn_is_not_fed() {
    let manager = Manager::new();
    let gateway = manager.start(&json!({}), Some(WATCHDOG));
    manager.until("READY=1");
    gateway.signal(Signal::SIGSTOP);
    std::thread::sleep(Duration::from_millis(50));
    manager.forget();
    let (count, _) = manager.feedings(2 * WATCHDOG);
    gateway.signal(Signal::SIGCONT);
    assert_eq!(count, 0);
    assert!(manager.feedings(2 * WATCHDOG).0 > 0);
}

#[test]
fn the_end_is_told_and_the_watchdog_is_fed_until_then() {
    let manager = Manager::new();
    let mut gateway = manager.start(&json!({"delay": 2.5}), Some(WATCHDOG));
    manager.until("READY=1");
    std::thread::scope(|scope| {
        let admitted = scope.spawn(|| gateway.embed(&["a"]));
        gateway.eventually("it is admitted", |gateway| {
            gateway.metric("akidb_embedding_batch_size_count") >= 1.0
        });
        gateway.signal(Signal::SIGTERM);
        manager.until("STOPPING=1");
        let (count, longest) = manager.feedings(2 * WATCHDOG);
        assert!(count >= 3 && longest < WATCHDOG, "fed {count} times, once after {longest:?}");
        assert_eq!(admitted.join().unwrap().status, 200);
    });
    assert_eq!(gateway.wait().code(), Some(0));
}

#[test]
fn without_a_watchdog_readiness_alone_is_told() {
    let manager = Manager::new();
    let _gateway = manager.start(&json!({}), None);
    let messages = manager.until("READY=1");
    assert!(messages.iter().all(|message| !message.contains("WATCHDOG")), "{messages:?}");
    assert_eq!(manager.feedings(Duration::from_secs(1)).0, 0);
}

#[test]
fn a_manager_that_listens_no_more_changes_nothing() {
    let manager = Manager::new();
    let gateway = manager.start(&json!({"start_delay": 0.5}), Some(WATCHDOG));
    drop(manager);
    gateway.wait_until_ready();
    assert_eq!(gateway.embed(&["a"]).status, 200);
}

/// As launchd and systemd do it.
#[test]
fn killed_under_a_supervising_loop_it_is_back_and_ready_and_leaves_no_worker() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let start = || {
        let mut command = support::fake_command();
        command.args(["--workers", "2"]);
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let gateway = Gateway::start_on(command, &address);
        gateway.wait_until_ready();
        gateway
    };
    let mut gateway = start();
    for round in 0..3 {
        let workers = gateway.worker_pids();
        assert_eq!(workers.len(), 2);
        // launchd kills the whole group of a job.
        let group = nix::unistd::Pid::from_raw(i32::try_from(gateway.pid()).unwrap());
        nix::sys::signal::killpg(group, Signal::SIGKILL).unwrap();
        let killed = Instant::now();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&gateway.wait()), Some(9));
        gateway = start();
        assert_eq!(gateway.embed(&["a"]).status, 200, "round {round}");
        std::thread::sleep(Duration::from_secs(2).saturating_sub(killed.elapsed()));
        assert!(workers.iter().all(|pid| !support::is_alive(*pid)), "a worker outlived its gateway");
    }
}
