//! The command line as typed: raw flags, no meaning yet. [`crate::config`] gives them meaning.

mod faults;
mod limits;
mod models;
mod service;

pub use faults::FaultFlags;
pub use limits::LimitFlags;
pub use models::{EnvironmentFlags, ModelFlags, ModelsFlags};
pub use service::{KeeperName, ProgramFlags, ServiceFlags, TargetFlags};

use std::ffi::OsString;

use clap::error::{ContextValue, ErrorKind};
use clap::{Args, CommandFactory, Parser, ValueEnum};

use crate::printable::line;

/// What is served when nobody says what.
const DEFAULT_MODEL: &str = "qwen3-0.6b-4bit";

/// What was asked for.
#[derive(Debug, Clone)]
pub enum Command {
    /// Serve embeddings over HTTP.
    Serve(Box<ServeFlags>),
    /// List, download or find models.
    Models(ModelsFlags),
    /// Run the gateway as a service of the system.
    Service(Box<ServiceFlags>),
}

/// `akidb-gateway` without `models` and `service`.
#[derive(Debug, Parser)]
#[command(
    name = "akidb-gateway",
    version,
    about = "Text embeddings on this machine, over HTTP, by workers that may crash without anybody noticing",
    after_help = AFTER_HELP
)]
struct Cli {
    /// What to do; `serve` is the default
    #[arg(value_enum, value_name = "COMMAND", default_value = "serve", hide_default_value = true)]
    command: CommandName,
    #[command(flatten)]
    serve: ServeFlags,
}

/// `serve` may stand before, between and after its flags; `models` and `service` have flags of their own.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum CommandName {
    /// Serve embeddings over HTTP
    Serve,
    /// List, download and find models; see `akidb-gateway models --help`
    Models,
    /// Run the gateway as a service of launchd or systemd; see `akidb-gateway service --help`
    Service,
}

/// Flags of `serve`. Every one is also an environment variable; the flag wins.
#[derive(Debug, Clone, Args)]
pub struct ServeFlags {
    /// Worker processes, 1 to 64. Each holds the whole model
    ///
    /// Default: 1 on Apple silicon (one GPU), else the number of cores but at most 4; fewer when the weights
    /// would take more than half of the memory.
    #[arg(long, env = "AKIDB_WORKERS", value_name = "K", help_heading = "Workers")]
    pub workers: Option<String>,

    /// Batches that may be at one worker at a time, 1 to 64
    ///
    /// With 2, the next batch already waits in the worker's socket while it computes.
    #[arg(
        long,
        env = "AKIDB_MAX_INFLIGHT_PER_WORKER",
        value_name = "N",
        default_value = "2",
        help_heading = "Workers"
    )]
    pub max_inflight_per_worker: String,

    /// Python interpreter with `akidb_sidecar`
    ///
    /// Default: `sidecar-py/.venv` of the checkout that the binary lies in, then the environment in whose `bin` it lies,
    /// then $VIRTUAL_ENV, then `akidb-sidecar` on the PATH. Places that every user, or a stranger, can write to are passed
    /// over; a path given here may belong to anybody.
    #[arg(long, env = "AKIDB_PYTHON", value_name = "PATH", help_heading = "Workers")]
    pub python: Option<String>,

    /// Model to serve: a name, a Hugging Face repository (`owner/name`), or a directory
    ///
    /// Names: `qwen3-0.6b-4bit` (from the hub), `all-minilm-l6-v2` (ships with the Python environment).
    #[arg(
        long,
        env = "AKIDB_MODEL",
        value_name = "NAME|PATH",
        default_value = DEFAULT_MODEL,
        help_heading = "Model"
    )]
    pub model: String,

    /// Branch, tag or commit on the hub
    ///
    /// Default: `main`. The commit that it was when it was downloaded is served until `models pull` is asked for a newer one.
    #[arg(long, env = "AKIDB_REVISION", value_name = "REVISION", help_heading = "Model")]
    pub revision: Option<String>,

    /// Name that requests and answers use for the model
    ///
    /// Default: the model's name, or the last component of its path.
    #[arg(long, env = "AKIDB_SERVED_MODEL_NAME", value_name = "NAME", help_heading = "Model")]
    pub served_model_name: Option<String>,

    /// How 4-bit and 8-bit weights are held on a CPU: `float32` or `quantized`
    ///
    /// float32 needs 4 bytes a weight. quantized keeps them as they are: a fifth of the memory, the same vectors, about
    /// the same speed. On a GPU they always stay as they are.
    #[arg(
        long,
        env = "AKIDB_CPU_WEIGHTS",
        value_name = "float32|quantized",
        default_value = "float32",
        help_heading = "Model"
    )]
    pub cpu_weights: String,

    /// What the workers compute with: `auto`, `gpu` or `cpu`
    ///
    /// auto is a GPU where there is one that works, else the CPU; `/health` says which. With gpu, workers that find none do
    /// not start.
    #[arg(
        long,
        env = "AKIDB_DEVICE",
        value_name = "auto|gpu|cpu",
        default_value = "auto",
        help_heading = "Model"
    )]
    pub device: String,

    /// In which type a GPU computes the products: `float16`, `bfloat16`, `float32` or `stored`
    ///
    /// stored is the type of the weights. A CPU always computes in float32.
    #[arg(
        long,
        env = "AKIDB_GPU_DTYPE",
        value_name = "TYPE",
        default_value = "float16",
        help_heading = "Model"
    )]
    pub gpu_dtype: String,

    /// Tokens in one batch, 1 to 131072, or `auto`. One text always fits, however long
    ///
    /// `auto` is what a worker computes in about 100 ms, by the speed of its warm-up. Either is less where a worker would take
    /// more than an eighth of --request-timeout for it.
    #[arg(
        long,
        env = "AKIDB_MAX_BATCH_TOKENS",
        value_name = "N|auto",
        default_value = "auto",
        help_heading = "Requests"
    )]
    pub max_batch_tokens: String,

    /// How long a text may wait for others to fill its batch while a worker is free, 0s to 1s
    ///
    /// Batches grow by themselves while the workers are busy, so waiting rarely pays.
    #[arg(
        long,
        env = "AKIDB_BATCH_WAIT",
        value_name = "TIME",
        default_value = "0s",
        help_heading = "Requests"
    )]
    pub batch_wait: String,

    /// Tokens that may be admitted and not yet computed, 1 to 10^9; what is more is refused
    ///
    /// Long before that, requests are refused that would by the speed of the workers not be done in time.
    #[arg(
        long,
        env = "AKIDB_MAX_QUEUE_TOKENS",
        value_name = "N",
        default_value = "1048576",
        help_heading = "Requests"
    )]
    pub max_queue_tokens: String,

    /// How often texts that nobody waits for are dropped while no worker is free, 1ms to 1h
    #[arg(
        long,
        env = "AKIDB_PRUNE_INTERVAL",
        value_name = "TIME",
        default_value = "250ms",
        help_heading = "Requests",
        hide_short_help = true
    )]
    pub prune_interval: String,

    /// How long a request may take, 1ms to 1h; then it is answered 504
    #[arg(
        long,
        env = "AKIDB_REQUEST_TIMEOUT",
        value_name = "TIME",
        default_value = "30s",
        help_heading = "Requests"
    )]
    pub request_timeout: String,

    /// Address and port to listen on; port 0 takes a free one, which the log names
    #[arg(
        long,
        env = "AKIDB_LISTEN",
        value_name = "ADDR",
        default_value = "127.0.0.1:8080",
        help_heading = "Server"
    )]
    pub listen: String,

    /// Listen on an address that other machines reach, too
    ///
    /// Without it, only loopback addresses are taken: whoever reaches the gateway may use it.
    #[arg(long, env = "AKIDB_ALLOW_REMOTE", help_heading = "Server")]
    pub allow_remote: bool,

    /// Name by which clients may call the gateway (the `Host` of their requests); may be given several times
    ///
    /// Loopback names and addresses, this machine's name, and names under `.localhost`, `.local` and `.internal` are taken
    /// in any case; others are refused, because a web page could be behind them. With --allow-remote this holds for
    /// requests with an `Origin` only, and every IP address is taken. In the variable, a comma stands between two names.
    #[arg(
        long,
        env = "AKIDB_ALLOWED_HOST",
        value_name = "NAME",
        value_delimiter = ',',
        help_heading = "Server"
    )]
    pub allowed_host: Vec<String>,

    /// How long admitted requests may take to finish after SIGTERM or SIGINT, 0s to 1h
    #[arg(
        long,
        env = "AKIDB_DRAIN_TIMEOUT",
        value_name = "TIME",
        default_value = "15s",
        help_heading = "Server"
    )]
    pub drain_timeout: String,

    /// Log lines for people (`text`) or for programs (`json`), on standard error
    #[arg(
        long,
        env = "AKIDB_LOG_FORMAT",
        value_name = "text|json",
        default_value = "text",
        help_heading = "Server"
    )]
    pub log_format: String,

    /// When a worker is given up
    #[command(flatten)]
    pub faults: FaultFlags,

    /// What one client may cost.
    #[command(flatten)]
    pub limits: LimitFlags,
}

const AFTER_HELP: &str = "\
Times are written as `500ms`, `30s`, `2m`. AKIDB_LOG filters the log (`info` by default, `debug`, `warn`).

Examples:
  akidb-gateway --model all-minilm-l6-v2 --workers 2
  akidb-gateway models list
  akidb-gateway service install -- --model all-minilm-l6-v2
  curl -s localhost:8080/api/v1/embed -H 'content-type: application/json' -d '{\"texts\":[\"Hello world\"]}'

Exit codes: 0 stopped by a signal, 64 wrong usage, 70 internal error, 78 unusable model or environment,
98 address in use.";

/// Reads the command line and the environment.
///
/// # Errors
///
/// Clap's own error, which also carries the text of `--help` and `--version`.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, clap::Error> {
    parse_words(arguments.into_iter().collect()).map_err(printable)
}

/// What was typed is quoted in one line.
fn printable(mut error: clap::Error) -> clap::Error {
    let quoted: Vec<_> = error
        .context()
        .filter_map(|(kind, value)| match value {
            ContextValue::String(text) => Some((kind, ContextValue::String(line(text).into_owned()))),
            _ => None,
        })
        .collect();
    for (kind, value) in quoted {
        error.insert(kind, value);
    }
    error
}

fn parse_words(arguments: Vec<OsString>) -> Result<Command, clap::Error> {
    if arguments.get(1).is_some_and(|word| word == "models") {
        return Ok(Command::Models(models::Models::try_parse_from(&arguments[1..])?.flags));
    }
    if arguments.get(1).is_some_and(|word| word == "service") {
        return Ok(Command::Service(Box::new(service::Service::try_parse_from(&arguments[1..])?.flags)));
    }
    let typed = Cli::try_parse_from(arguments)?;
    match typed.command {
        CommandName::Serve => Ok(Command::Serve(Box::new(typed.serve))),
        CommandName::Models => Err(must_come_first("models")),
        CommandName::Service => Err(must_come_first("service")),
    }
}

fn must_come_first(command: &str) -> clap::Error {
    let text = format!("`{command}` must come first, before its own flags");
    Cli::command().error(ErrorKind::ArgumentConflict, text)
}
