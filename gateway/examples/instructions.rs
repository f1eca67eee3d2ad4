//! Runs one workload so often, for `scripts/instructions` to count its instructions: `instructions NAME TIMES`.

#[path = "support/workloads.rs"]
mod workloads;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, times] = arguments.as_slice() else { return ExitCode::from(64) };
    let found = workloads::all().into_iter().find(|(known, _)| known == name);
    let (Some((_, workload)), Ok(times)) = (found, times.parse::<u32>()) else { return ExitCode::from(64) };
    for _ in 0..times {
        workload();
    }
    ExitCode::SUCCESS
}
