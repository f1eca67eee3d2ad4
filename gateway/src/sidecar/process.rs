//! Child processes. The only file that spawns workers.
//!
//! A worker's standard input is its end of a Unix socket pair; its standard output and error are pipes whose
//! lines go to the gateway's log. It inherits no other descriptor, and it is in a process group of its own,
//! so that Ctrl-C in a terminal reaches the gateway alone.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::process::{ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use super::{FIRST_ARGUMENTS, Sidecar};
use crate::machine;

/// Longest log line taken from a worker, in bytes; the rest of a longer one becomes further lines.
const LONGEST_LINE_BYTES: u64 = 4096;
/// Lines kept to be quoted when a worker dies.
const LAST_WORDS_LINES: usize = 5;
/// Longest wait for what a dead process wrote last: it may have left its pipes to a child of its own.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_millis(100);

/// Runs the sidecar to its end and collects what it wrote. It can watch its standard input for the gateway's end, which
/// is what ends it at Ctrl-C, too.
pub(crate) async fn run(sidecar: &Sidecar, arguments: &[&str], inherit_stderr: bool) -> io::Result<Output> {
    let mut command = command(sidecar);
    command.args(arguments).envs(sidecar.for_hub.iter().cloned());
    // Relative names of a model, a cache or a certificate mean what they mean to whoever started the gateway.
    if std::env::current_dir().is_err() {
        command.current_dir("/");
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command.stderr(if inherit_stderr { Stdio::inherit() } else { Stdio::piped() });
    let mut child = command.spawn()?;
    // Its end tells the child that the gateway is gone.
    let input = child.stdin.take();
    let output = child.wait_with_output().await;
    drop(input);
    output
}

/// What every child has in common: Python alone with itself, and a process group of its own.
fn command(sidecar: &Sidecar) -> Command {
    let mut command = Command::new(&sidecar.python);
    command.args(FIRST_ARGUMENTS).env_clear().envs(sidecar.for_workers.iter().cloned());
    command.process_group(0).kill_on_drop(true);
    command
}

/// Starts worker processes, one at a time.
#[derive(Debug, Clone)]
pub(crate) struct Spawner {
    sidecar: Sidecar,
    arguments: Arc<[String]>,
    one_at_a_time: Arc<Mutex<()>>,
}

/// A worker process. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    pid: u32,
    last_words: Arc<Mutex<VecDeque<String>>>,
    pumps: JoinSet<()>,
}

/// How a process ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Its exit code or signal; `None` when the system does not tell.
    pub(crate) status: Option<ExitStatus>,
    /// The last lines that it wrote.
    pub(crate) last_words: Vec<String>,
}

impl Spawner {
    /// `arguments` follow `akidb_sidecar worker`.
    pub(crate) fn new(sidecar: Sidecar, arguments: Vec<String>) -> Self {
        Self { sidecar, arguments: arguments.into(), one_at_a_time: Arc::default() }
    }

    /// Starts worker `id` and returns it with the gateway's end of its socket.
    pub(crate) fn spawn(&self, id: usize) -> io::Result<(Process, UnixStream)> {
        // Where a socket pair cannot be created close-on-exec in one step (macOS), a second spawn at the
        // wrong moment would inherit the first one's descriptors.
        let _guard = self.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        let (ours, theirs) = machine::socket_pair()?;
        ours.set_nonblocking(true)?;
        let mut command = command(&self.sidecar);
        command
            .current_dir("/")
            .args(["worker", "--worker-id", &id.to_string()])
            .args(self.arguments.iter())
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let pid = child.id().unwrap_or_default();
        let last_words = Arc::new(Mutex::new(VecDeque::new()));
        let mut pumps = JoinSet::new();
        if let Some(stdout) = child.stdout.take() {
            pumps.spawn(pump_lines(stdout, id, pid, "stdout", Arc::clone(&last_words)));
        }
        if let Some(stderr) = child.stderr.take() {
            pumps.spawn(pump_lines(stderr, id, pid, "stderr", Arc::clone(&last_words)));
        }
        Ok((Process { child, pid, last_words, pumps }, UnixStream::from_std(ours)?))
    }
}

impl Process {
    /// The operating system's number for it.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits up to `patience` for the process to end on its own, then kills it.
    pub(crate) async fn end(mut self, patience: Duration) -> Ended {
        let by_itself = tokio::time::timeout(patience, self.child.wait()).await;
        let status = match by_itself {
            Ok(status) => status.ok(),
            Err(_elapsed) => {
                // It fails only for a process that has ended in this moment.
                let _ = self.child.start_kill();
                self.child.wait().await.ok()
            }
        };
        let all_read = async { while self.pumps.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(LAST_WORDS_TIMEOUT, all_read).await;
        let last_words =
            self.last_words.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect();
        Ended { status, last_words }
    }
}

async fn pump_lines(
    pipe: impl AsyncRead + Unpin,
    worker: usize,
    pid: u32,
    stream: &'static str,
    last_words: Arc<Mutex<VecDeque<String>>>,
) {
    let mut reader = BufReader::new(pipe);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut reader).take(LONGEST_LINE_BYTES).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                if text.is_empty() {
                    continue;
                }
                tracing::info!(worker, pid, stream, line = text, "worker wrote");
                let mut last_words = last_words.lock().unwrap_or_else(PoisonError::into_inner);
                if last_words.len() == LAST_WORDS_LINES {
                    last_words.pop_front();
                }
                last_words.push_back(text);
            }
        }
    }
}
