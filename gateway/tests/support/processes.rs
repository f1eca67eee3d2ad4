//! What the system says of processes: the same questions on Linux and on macOS.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use sysinfo::{Pid, Process, ProcessRefreshKind, ProcessStatus, ProcessesToUpdate, System};

/// How often a [`MemoryWatch`] looks.
const WATCH_INTERVAL: Duration = Duration::from_millis(1);

pub fn kill(pid: u32, signal: nix::sys::signal::Signal) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
    let _ = nix::sys::signal::kill(pid, signal);
}

/// Asks about one process, or about all.
fn refresh(system: &mut System, which: ProcessesToUpdate) {
    let what = ProcessRefreshKind::nothing().with_memory().without_tasks();
    system.refresh_processes_specifics(which, true, what);
}

fn ask<T>(pid: u32, question: impl FnOnce(&Process) -> T) -> Option<T> {
    let (mut system, pid) = (System::new().unwrap(), Pid::from_u32(pid));
    refresh(&mut system, ProcessesToUpdate::Some(&[pid]));
    system.process(pid).map(question)
}

/// Whether a process exists and is no zombie.
pub fn is_alive(pid: u32) -> bool {
    ask(pid, |process| process.status() != ProcessStatus::Zombie).unwrap_or(false)
}

/// Processes that a process has started.
pub fn children(pid: u32) -> Vec<u32> {
    let mut system = System::new().unwrap();
    refresh(&mut system, ProcessesToUpdate::All);
    let processes = system.processes().values();
    let children = processes.filter(|process| process.parent() == Some(Pid::from_u32(pid)));
    children.map(|process| process.pid().as_u32()).collect()
}

/// How many descriptors a living process has open.
pub fn open_descriptors(pid: u32) -> usize {
    ask(pid, Process::open_files).flatten().expect("the process is gone")
}

/// Resident memory of a living process.
pub fn resident_bytes(pid: u32) -> u64 {
    ask(pid, Process::memory).expect("the process is gone")
}

/// Looks again and again at the memory of a process: only Linux keeps the most that another process ever had.
pub struct MemoryWatch {
    first: u64,
    is_over: Arc<AtomicBool>,
    watcher: JoinHandle<u64>,
}

impl MemoryWatch {
    pub fn start(pid: u32) -> Self {
        let first = resident_bytes(pid);
        let is_over = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&is_over);
        let watcher = std::thread::spawn(move || {
            let (mut system, pid, mut most) = (System::new().unwrap(), Pid::from_u32(pid), first);
            while !stop.load(Ordering::Relaxed) {
                refresh(&mut system, ProcessesToUpdate::Some(&[pid]));
                most = most.max(system.process(pid).map_or(0, Process::memory));
                std::thread::sleep(WATCH_INTERVAL);
            }
            most
        });
        Self { first, is_over, watcher }
    }

    /// The most that was seen.
    pub fn most(self) -> u64 {
        self.is_over.store(true, Ordering::Relaxed);
        self.watcher.join().unwrap()
    }

    /// How much more that is than what there was at first.
    pub fn growth(self) -> u64 {
        let first = self.first;
        self.most() - first
    }
}
