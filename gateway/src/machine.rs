//! What the gateway asks of the machine it runs on: cores, memory, file descriptors. A leaf, and the only
//! place where platforms differ. The macOS side has not been run by the project's own tests.

mod cgroup;
mod footprint;

use std::io;
use std::num::NonZero;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rlimit::{Resource, getrlimit, setrlimit};
use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};
use tokio::net::TcpStream;

pub(crate) use footprint::{Footprint, memory_bytes};

/// Workers that are started when nobody says how many, at most.
const MOST_DEFAULT_WORKERS: usize = 4;
/// Bytes that wait in the system for room on a client's side.
#[cfg(target_os = "linux")]
const MOST_UNSENT_BYTES: u32 = 64 * 1024;
/// Bytes of a weight, for a guess.
const BYTES_OF_WEIGHT: u64 = 4;
/// Arithmetic operations that a core, or a GPU, does in a second while a worker computes, at least.
const CORE_OPERATIONS: f64 = 2e10;
const GPU_OPERATIONS: f64 = 1e12;
/// No model is guessed to be faster, in tokens per second.
const MOST_GUESSED_TOKENS: f64 = 2000.0;
/// Most file descriptors the gateway asks for.
const MOST_DESCRIPTORS: u64 = 65_536;
/// File descriptors that a process has where the system does not say.
const FEWEST_DESCRIPTORS: u64 = 256;
/// Buffers of the sockets to workers, in bytes: macOS gives 8 KiB, in which the vectors of a batch are thousands of turns.
const SOCKET_BUFFER_BYTES: usize = 1 << 20;

/// This machine's own name, with or without its domain.
pub(crate) fn host_name() -> Option<String> {
    nix::unistd::gethostname().ok()?.into_string().ok()
}

/// Makes a stream take no more bytes than the client's side has room for, and a few: else the system takes megabytes at
/// once, then none for so long that a client that reads slowly looks like one that does not read.
pub(crate) fn limit_unsent(stream: &TcpStream) {
    // macOS has room again after every 2 KiB.
    #[cfg(target_os = "linux")]
    let _ = socket2::SockRef::from(stream).set_tcp_notsent_lowat(MOST_UNSENT_BYTES);
    #[cfg(not(target_os = "linux"))]
    let _ = stream;
}

/// Makes two Unix sockets that are connected, with large buffers on both ends, as far as the system allows.
pub(crate) fn socket_pair() -> io::Result<(UnixStream, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    for end in [&ours, &theirs] {
        let socket = socket2::SockRef::from(end);
        // What is not allowed costs speed alone.
        let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
        let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    }
    Ok((ours, theirs))
}

/// Cores that this process may use.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

/// One worker per GPU, else one per core; fewer when their weights would take more than half of the memory that the
/// machine has, or that this process's control group allows.
pub(crate) fn default_workers(weights_bytes: u64, on_unified_gpu: bool) -> usize {
    let wanted = if on_unified_gpu { 1 } else { cores().min(MOST_DEFAULT_WORKERS) };
    let memory_bytes = System::new().map_or(u64::MAX, |mut system| {
        system.refresh_memory();
        system.total_memory()
    });
    let limit_bytes = cgroup::memory_limit(Path::new("/")).unwrap_or(u64::MAX);
    fitting_workers(wanted, weights_bytes, memory_bytes.min(limit_bytes))
}

/// Processes in this one's control group that the kernel has killed because memory was short; 0 where it does not tell.
pub(crate) fn oom_kills() -> u64 {
    cgroup::oom_kills(Path::new("/")).unwrap_or_default()
}

/// Whether there is a GPU that shares the memory of the machine, as on Apple silicon.
pub(crate) fn has_unified_gpu() -> bool {
    cfg!(all(target_os = "macos", target_arch = "aarch64"))
}

fn fitting_workers(wanted: usize, weights_bytes: u64, memory_bytes: u64) -> usize {
    let fitting = memory_bytes / 2 / weights_bytes.max(1);
    wanted.min(usize::try_from(fitting).unwrap_or(usize::MAX)).max(1)
}

/// Tokens per second that all workers of a model with so large weights may be expected to compute together, before one was
/// seen: one multiplication and one addition for each weight and token.
pub(crate) fn guess_tokens_per_second(weights_bytes: u64, on_unified_gpu: bool) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "it is a guess")]
    let (operations, cores) = (2.0 * (weights_bytes / BYTES_OF_WEIGHT) as f64, cores() as f64);
    let speed = if on_unified_gpu { GPU_OPERATIONS } else { cores * CORE_OPERATIONS };
    (speed / operations.max(1.0)).min(MOST_GUESSED_TOKENS)
}

/// Resident memory of each process in bytes; `None` for one that is gone.
pub(crate) fn resident_bytes(pids: &[Option<u32>]) -> Vec<Option<u64>> {
    let Ok(mut system) = System::new() else { return vec![None; pids.len()] };
    let living: Vec<Pid> = pids.iter().flatten().copied().map(Pid::from_u32).collect();
    let what = ProcessRefreshKind::nothing().with_memory().without_tasks();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&living), false, what);
    pids.iter().map(|pid| Some(system.process(Pid::from_u32((*pid)?))?.memory())).collect()
}

/// Raises the soft limit of file descriptors as far as allowed, which macOS says in `kern.maxfilesperproc`; returns the
/// limit now in force.
pub(crate) fn raise_descriptor_limit() -> u64 {
    raise_descriptors(MOST_DESCRIPTORS, cfg!(target_os = "macos"))
}

/// A soft limit that is there already may be beyond what macOS gives, such as after `ulimit -n unlimited`. One that is
/// raised never is, so there it is lowered first.
fn raise_descriptors(wanted: u64, may_promise_too_much: bool) -> u64 {
    if may_promise_too_much
        && let Ok((soft, hard)) = getrlimit(Resource::NOFILE)
        && soft > FEWEST_DESCRIPTORS
    {
        let _ = setrlimit(Resource::NOFILE, FEWEST_DESCRIPTORS, hard);
    }
    rlimit::increase_nofile_limit(wanted)
        .or_else(|_| getrlimit(Resource::NOFILE).map(|(soft, _)| soft))
        .unwrap_or(FEWEST_DESCRIPTORS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_descriptors_is_the_one_in_force() {
        let raised = raise_descriptor_limit();
        let (soft, hard) = getrlimit(Resource::NOFILE).unwrap();
        assert_eq!(raised, soft);
        assert!(raised >= hard.min(MOST_DESCRIPTORS) || cfg!(target_os = "macos"));
    }

    #[test]
    fn a_limit_of_descriptors_that_promises_too_much_is_not_taken_as_it_is() {
        let (_, hard) = getrlimit(Resource::NOFILE).unwrap();
        let wanted = FEWEST_DESCRIPTORS + 44;
        setrlimit(Resource::NOFILE, wanted + 1, hard).unwrap();
        assert_eq!(raise_descriptors(wanted, false), wanted + 1);
        assert_eq!(raise_descriptors(wanted, true), wanted);
        assert_eq!(getrlimit(Resource::NOFILE).unwrap(), (wanted, hard));
    }

    #[test]
    fn sockets_to_workers_have_large_buffers_on_both_ends() {
        let (plain, _other) = UnixStream::pair().unwrap();
        let plain = socket2::SockRef::from(&plain);
        let (sent, received) = (plain.send_buffer_size().unwrap(), plain.recv_buffer_size().unwrap());
        let (ours, theirs) = socket_pair().unwrap();
        for end in [&ours, &theirs] {
            let socket = socket2::SockRef::from(end);
            // Linux doubles what is asked for, and allows what `net.core.wmem_max` says, by default what is usual.
            assert!(socket.send_buffer_size().unwrap() >= (2 * sent).min(SOCKET_BUFFER_BYTES));
            assert!(socket.recv_buffer_size().unwrap() >= (2 * received).min(SOCKET_BUFFER_BYTES));
        }
    }

    #[test]
    fn workers_fit_into_half_of_the_memory_but_there_is_always_one() {
        assert_eq!(fitting_workers(4, 1 << 20, 16 << 30), 4);
        assert_eq!(fitting_workers(4, 3 << 30, 16 << 30), 2);
        assert_eq!(fitting_workers(4, 30 << 30, 16 << 30), 1);
    }

    #[test]
    fn a_guessed_speed_falls_with_the_weights_and_has_a_limit() {
        assert_eq!(guess_tokens_per_second(0, false), MOST_GUESSED_TOKENS);
        let (small, large) =
            (guess_tokens_per_second(90 << 20, false), guess_tokens_per_second(2400 << 20, false));
        assert!(small > large && large > 0.0, "{small} {large}");
    }

    #[test]
    fn the_memory_of_a_living_process_is_known_and_that_of_none_is_not() {
        let memory = resident_bytes(&[Some(std::process::id()), None]);
        assert!(memory[0].is_some_and(|bytes| bytes > 100_000), "{memory:?}");
        assert_eq!(memory[1], None);
    }
}
