//! What a process inherits from whoever started it, and what must not decide how it runs: blocked and ignored signals,
//! the mode of new files, a tiny stack, and being process 1 of a container.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rlimit::{Resource, getrlimit, setrlimit};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

/// The stack that Python and the workers' threads get at least, in bytes, where the hard limit allows it.
const LEAST_STACK_BYTES: u64 = 8 << 20;
/// What process 1 passes on. Terminals send theirs to it alone: its child is in a group of its own.
const PASSED_ON: [Signal; 6] =
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

/// Puts right what can be put right before the first thread: it is inherited by threads and workers.
pub fn settle() {
    // It cannot fail with these arguments.
    let _ = SigSet::empty().thread_set_mask();
    // The owner may use what is made, and not everybody may change it; the rest is the user's.
    let inherited = umask(Mode::S_IRWXO);
    umask((inherited - Mode::S_IRWXU) | Mode::S_IWOTH);
    if let Ok((soft, hard)) = getrlimit(Resource::STACK)
        && soft < LEAST_STACK_BYTES
    {
        let _ = setrlimit(Resource::STACK, hard.min(LEAST_STACK_BYTES), hard);
    }
}

/// Takes over SIGCHLD for the life of the process: where it is ignored, the system says of no child how it ended.
///
/// # Errors
///
/// A system that does not allow it.
pub fn take_over_children(runtime: &Runtime) -> io::Result<()> {
    runtime.block_on(async { signal(SignalKind::child()).map(drop) })
}

/// As process 1 of a container, runs the gateway in a child, passes signals on, buries every orphan, and returns the exit
/// code of the child. `None` for any other process, which is the gateway itself.
///
/// A process 1 inherits every orphan, and ignores the signals that it does not handle.
///
/// # Errors
///
/// The child cannot be started.
pub fn run_below_process_1() -> Option<io::Result<u8>> {
    let binary = std::env::current_exe().ok().filter(|_| std::process::id() == 1)?;
    let mut words = std::env::args_os();
    let mut command = Command::new(binary);
    command.arg0(words.next().unwrap_or_default()).args(words).process_group(0);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Some(runtime.and_then(|runtime| runtime.block_on(guard(command))))
}

async fn guard(mut command: Command) -> io::Result<u8> {
    let (sender, mut signals) = tokio::sync::mpsc::unbounded_channel();
    for number in PASSED_ON {
        let (sender, mut stream) = (sender.clone(), signal(SignalKind::from_raw(number as i32))?);
        tokio::spawn(async move { while stream.recv().await.is_some() && sender.send(number).is_ok() {} });
    }
    let mut some_ended = signal(SignalKind::child())?;
    let gateway = Pid::from_raw(command.spawn()?.id().cast_signed());
    loop {
        if let Some(code) = bury(gateway) {
            return Ok(code);
        }
        tokio::select! {
            _ = some_ended.recv() => {}
            Some(number) = signals.recv() => {
                // It fails only for one that has ended in this moment.
                let _ = kill(gateway, number);
            }
        }
    }
}

/// Buries everybody who has ended; returns the exit code of the gateway if it is among them, as a shell would.
fn bury(gateway: Pid) -> Option<u8> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == gateway => {
                return u8::try_from(code).ok().or(Some(u8::MAX));
            }
            Ok(WaitStatus::Signaled(pid, number, _)) if pid == gateway => {
                return u8::try_from(128 + number as i32).ok().or(Some(u8::MAX));
            }
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => break,
            Ok(_) | Err(_) => {} // an orphan, or one whose signal has no name here
        }
    }
    kill(gateway, None).err().map(|_gone| u8::MAX)
}
