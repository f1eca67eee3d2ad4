//! Work that may panic, never end, or take memory without end, because somebody else's file decides.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use crate::{machine, panics};

/// How often the memory is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Why the work was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Excess {
    /// The code panicked.
    Panicked,
    /// A step of it took longer than allowed; it may go on in a thread of its own forever.
    Time,
    /// The process has grown by more than allowed.
    Memory,
}

/// How much the work may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowance {
    /// From one step to the next.
    pub(super) time: Duration,
    /// By how many bytes the process may grow.
    pub(super) memory_bytes: u64,
}

/// Does work on a thread of its own. The work sends `()` after each of its steps.
pub(super) fn run<T: Send + 'static>(
    allowance: Allowance,
    work: impl FnOnce(&Sender<()>) -> T + Send + 'static,
) -> Result<T, Excess> {
    let (step_done, steps) = mpsc::channel();
    let (done, result) = mpsc::channel();
    let thread = std::thread::Builder::new().name(panics::EXPECTED_IN.to_owned()).spawn(move || {
        let outcome = catch_unwind(AssertUnwindSafe(|| work(&step_done)));
        let _ = done.send(outcome.map_err(|_panic| Excess::Panicked));
    });
    if thread.is_err() {
        return Err(Excess::Memory);
    }
    let most_bytes = own_memory().saturating_add(allowance.memory_bytes);
    let mut step_began = Instant::now();
    loop {
        match result.recv_timeout(LOOK_INTERVAL) {
            Ok(outcome) => return outcome,
            Err(RecvTimeoutError::Disconnected) => return Err(Excess::Panicked),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if steps.try_iter().count() > 0 {
            step_began = Instant::now();
        }
        if step_began.elapsed() > allowance.time {
            return Err(Excess::Time);
        }
        if own_memory() > most_bytes {
            return Err(Excess::Memory);
        }
    }
}

fn own_memory() -> u64 {
    machine::resident_bytes(&[Some(std::process::id())])[0].unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWANCE: Allowance = Allowance { time: Duration::from_millis(300), memory_bytes: 64 << 20 };

    #[test]
    fn work_gives_its_result_as_long_as_its_steps_are_short() {
        let work = |step_done: &Sender<()>| {
            for _ in 0..10 {
                std::thread::sleep(Duration::from_millis(50));
                step_done.send(()).unwrap();
            }
            7
        };
        let patient = Allowance { time: Duration::from_secs(5), ..ALLOWANCE };
        assert_eq!(run(patient, work), Ok(7));
    }

    #[test]
    fn a_panic_an_endless_loop_and_endless_memory_end_nothing_but_the_work() {
        let patient = Allowance { time: Duration::from_secs(30), ..ALLOWANCE };
        // With RUST_BACKTRACE the names of the functions take memory, too.
        let roomy = Allowance { memory_bytes: 4 << 30, ..patient };
        assert_eq!(run(roomy, |_| -> u8 { panic!("wanted") }), Err(Excess::Panicked));
        let endless = |_: &Sender<()>| loop {
            std::thread::sleep(Duration::from_secs(1));
        };
        assert_eq!(run(ALLOWANCE, endless), Err::<(), _>(Excess::Time));
        let greedy = |_: &Sender<()>| {
            let mut taken: Vec<Vec<u8>> = Vec::new();
            // An end, should nobody look.
            while taken.len() < 64 {
                taken.push(vec![1; 8 << 20]);
                std::thread::sleep(Duration::from_millis(30));
            }
            taken.len()
        };
        assert_eq!(run(patient, greedy), Err(Excess::Memory));
    }
}
