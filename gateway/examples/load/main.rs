//! The load generators and the yardsticks of `make bench`, `make chaos` and `make overload`; `scripts/` runs it and reads
//! its JSON.
//!
//! * `load run`: N keep-alive connections, each with one request under way (a closed loop), bodies from a file.
//! * `load open`: requests at given times, whether others were answered or not (an open loop).
//! * `load hello`: a bare hyper server, to tell what HTTP itself costs.
//! * `load tokenize`: what the model's tokenizer makes of texts, and the memory that it takes.

mod client;
mod closed;
mod open;
mod report;
mod verify;
mod yardsticks;

use std::error::Error;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use serde::Serialize;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

#[derive(Parser)]
#[command(about = "Load generators and yardsticks of `make bench`, `make chaos` and `make overload`")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Send requests in a closed loop and print what came of it, as JSON
    Run(closed::Load),
    /// Send requests on a schedule and print what came of it, as JSON
    Open(open::Load),
    /// Serve `hello` on this address
    Hello {
        /// Address to listen on
        #[arg(long)]
        address: SocketAddr,
    },
    /// Tokenize the texts of a JSON object of lists; print ids and the tokenizer's memory, as JSON
    Tokenize {
        /// Directory with `tokenizer.json`
        #[arg(long)]
        model: PathBuf,
        /// Longest text, in tokens
        #[arg(long)]
        max_tokens: usize,
        /// File with `{"name": ["text", ...], ...}`
        #[arg(long)]
        texts: PathBuf,
    },
}

fn main() -> Outcome<()> {
    let runtime = |threads| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(threads).enable_all().build()
    };
    match Cli::parse().command {
        // One thread: the server needs the cores more.
        Command::Run(load) => print_json(&runtime(1)?.block_on(closed::run(load))?),
        Command::Open(load) => print_json(&runtime(1)?.block_on(open::run(load))?),
        Command::Hello { address } => runtime(2)?.block_on(yardsticks::hello(address)),
        Command::Tokenize { model, max_tokens, texts } => {
            print_json(&yardsticks::tokenize(&model, max_tokens, &texts)?)
        }
    }
}

fn print_json(value: &impl Serialize) -> Outcome<()> {
    let mut output = std::io::stdout().lock();
    serde_json::to_writer(&mut output, value)?;
    writeln!(output)?;
    Ok(())
}
