//! The fault table's row about kills for memory. Only Linux has control groups, and a kernel that kills one process so that
//! the others have memory.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{self, Gateway, embed_right};

/// A control group with a memory limit, where this machine lets a test create one.
struct MemoryGroup(PathBuf);

impl MemoryGroup {
    fn create(limit_bytes: u64) -> Option<Self> {
        let memberships = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        let path =
            |start: &str| memberships.lines().find_map(|line| line.split_once(start).map(|(_, path)| path));
        let name = format!("akidb-test-{}", std::process::id());
        let (folder, limit) = if let Some(own) = path(":memory:/") {
            (Path::new("/sys/fs/cgroup/memory").join(own), "memory.limit_in_bytes")
        } else {
            // A group of version 2 holds either processes or groups.
            (Path::new("/sys/fs/cgroup").join(path("0::/")?).parent()?.to_owned(), "memory.max")
        };
        std::fs::create_dir(folder.join(&name)).ok()?;
        let group = Self(folder.join(name));
        std::fs::write(group.0.join(limit), limit_bytes.to_string()).ok()?;
        Some(group)
    }

    fn add(&self, pid: u32) {
        std::fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // It can be removed once its last process is gone.
        for _ in 0..200 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn row_14_a_worker_that_the_kernel_kills_for_memory_again_and_again_is_in_a_crash_loop() {
    let Some(group) = MemoryGroup::create(200 << 20) else {
        eprintln!("NOT CHECKED: no control group with a memory limit can be created here");
        return;
    };
    let flags = ["--workers", "1", "--backoff-first", "10ms", "--crash-loop-wait", "1500ms"];
    let flags = [&flags[..], &["--crash-loop-window", "20s"]].concat();
    let gateway = Gateway::misbehaving(&json!({}), &flags);
    gateway.wait_until_ready();
    // What it starts from now on is in the group; it itself stays small.
    group.add(gateway.pid());
    // Kills by hand are no crash loop, however many.
    for generation in 1..=6 {
        support::kill(gateway.worker_pids()[0], Signal::SIGKILL);
        gateway.logged("worker ready", |line| line["generation"] == generation + 1);
        gateway.wait_until_ready();
        embed_right(&gateway, &["a"]);
    }
    assert_eq!((support::restarts(&gateway, "signal"), gateway.metric("akidb_crash_loop")), (6.0, 0.0));
    gateway.misbehave(&json!({"grow": 400 << 20}));
    gateway.eventually("it is a crash loop", |gateway| {
        assert_eq!(gateway.embed(&["a"]).status, 503);
        gateway.metric("akidb_crash_loop") == 1.0
    });
    // The second request has an attempt left, which waits for the next start.
    let kills = support::restarts(&gateway, "out_of_memory");
    assert!((5.0..=6.0).contains(&kills), "{kills}");
    assert_eq!(gateway.metric("akidb_poison_texts_total"), 0.0);
    gateway.logged("worker lost", |line| line["reason"] == "out_of_memory" && line["signal"] == "SIGKILL");
    let line =
        gateway.logged("crash loop: the kernel keeps killing the worker because memory is short", |_| true);
    assert!(line["hint"].as_str().unwrap().contains("--workers"), "{line}");
    let readiness = gateway.get("/readyz").text;
    assert!(readiness.contains("in a crash loop, last lost: out_of_memory"), "{readiness}");
    // It is over once the worker has been ready for the window, not as soon as it is ready.
    gateway.misbehave(&json!({}));
    gateway.wait_until_ready();
    embed_right(&gateway, &["a"]);
    assert_eq!(gateway.metric("akidb_crash_loop"), 1.0);
    gateway.eventually("the crash loop is over", |gateway| gateway.metric("akidb_crash_loop") == 0.0);
    assert_eq!(support::restarts(&gateway, "out_of_memory"), kills);
}
