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

/// The model served by default.
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
    about = "Local text-embedding server: worker crashes are retried and invisible to clients",
    after_help = AFTER_HELP
)]
struct Cli {
    /// What to do; `serve` is the default
    #[arg(value_enum, value_name = "COMMAND", default_value = "serve", hide_default_value = true)]
    command: CommandName,
    #[command(flatten)]
    serve: ServeFlags,
}

/// `serve` may come before, between or after its flags; `models` and `service` have flags of their own.
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
    /// Default: 1 on Apple silicon (one GPU), otherwise one per core, at most 4. Fewer if the weights would take more than
    /// half of the memory.
    #[arg(long, env = "AKIDB_WORKERS", value_name = "K", help_heading = "Workers")]
    pub workers: Option<String>,

    /// Batches in flight per worker, 1 to 64
    ///
    /// With 2, the next batch waits in the worker's socket while the worker computes.
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
    /// Default: `sidecar-py/.venv` of the checkout that holds the binary, then the environment whose `bin` holds it, then
    /// $VIRTUAL_ENV, then `akidb-sidecar` on the PATH. Locations that other users can write to are skipped; a path given
    /// here may have any owner.
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
    /// Default: `main`. A downloaded branch stays at its commit until the next `models pull`.
    #[arg(long, env = "AKIDB_REVISION", value_name = "REVISION", help_heading = "Model")]
    pub revision: Option<String>,

    /// Name of the model in requests and responses
    ///
    /// Default: the model's name, or the last component of its path.
    #[arg(long, env = "AKIDB_SERVED_MODEL_NAME", value_name = "NAME", help_heading = "Model")]
    pub served_model_name: Option<String>,

    /// How to hold 4-bit and 8-bit weights on a CPU: `float32` or `quantized`
    ///
    /// float32 takes 4 bytes per weight. quantized keeps them as stored: a fifth of the memory, the same vectors, about the
    /// same speed. A GPU always keeps them as stored.
    #[arg(
        long,
        env = "AKIDB_CPU_WEIGHTS",
        value_name = "float32|quantized",
        default_value = "float32",
        help_heading = "Model"
    )]
    pub cpu_weights: String,

    /// Device to compute on: `auto`, `gpu` or `cpu`
    ///
    /// auto uses a working GPU if there is one, otherwise the CPU; `/health` shows which. gpu fails at startup if there is
    /// none.
    #[arg(
        long,
        env = "AKIDB_DEVICE",
        value_name = "auto|gpu|cpu",
        default_value = "auto",
        help_heading = "Model"
    )]
    pub device: String,

    /// Number type of matrix products on a GPU: `float16`, `bfloat16`, `float32` or `stored`
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

    /// Maximum tokens per batch, 1 to 131072, or `auto`. A batch always holds at least one text
    ///
    /// `auto` is what a worker computes in about 100 ms, judging by its warm-up. Both are lowered so that a batch takes at
    /// most an eighth of --request-timeout.
    #[arg(
        long,
        env = "AKIDB_MAX_BATCH_TOKENS",
        value_name = "N|auto",
        default_value = "auto",
        help_heading = "Requests"
    )]
    pub max_batch_tokens: String,

    /// How long a text waits for others to fill its batch while a worker is free, 0s to 1s
    ///
    /// Batches grow on their own while the workers are busy, so waiting rarely helps.
    #[arg(
        long,
        env = "AKIDB_BATCH_WAIT",
        value_name = "TIME",
        default_value = "0s",
        help_heading = "Requests"
    )]
    pub batch_wait: String,

    /// Maximum tokens admitted and not yet computed, 1 to 10^9; beyond that, requests are refused
    ///
    /// Requests that cannot finish in time at the workers' current speed are refused well before this limit.
    #[arg(
        long,
        env = "AKIDB_MAX_QUEUE_TOKENS",
        value_name = "N",
        default_value = "1048576",
        help_heading = "Requests"
    )]
    pub max_queue_tokens: String,

    /// How often to drop abandoned texts from the queue while no worker is free, 1ms to 1h
    #[arg(
        long,
        env = "AKIDB_PRUNE_INTERVAL",
        value_name = "TIME",
        default_value = "250ms",
        help_heading = "Requests",
        hide_short_help = true
    )]
    pub prune_interval: String,

    /// How long a request may take, 1ms to 1h; after that the response is 504
    #[arg(
        long,
        env = "AKIDB_REQUEST_TIMEOUT",
        value_name = "TIME",
        default_value = "30s",
        help_heading = "Requests"
    )]
    pub request_timeout: String,

    /// Address and port to listen on; port 0 picks a free one, which is logged
    #[arg(
        long,
        env = "AKIDB_LISTEN",
        value_name = "ADDR",
        default_value = "127.0.0.1:8080",
        help_heading = "Server"
    )]
    pub listen: String,

    /// Allow --listen on an address that other machines can reach
    ///
    /// Anyone who can reach the gateway can use it, so only loopback addresses are allowed by default.
    #[arg(long, env = "AKIDB_ALLOW_REMOTE", help_heading = "Server")]
    pub allow_remote: bool,

    /// Additional `Host` name that requests may use; may be repeated
    ///
    /// Loopback names and addresses, this machine's name, and names under `.localhost`, `.local` and `.internal` are always
    /// allowed; others are refused to protect against web pages (DNS rebinding). With --allow-remote, only requests with an
    /// `Origin` are checked, and every IP address is allowed. Separate names in the variable with commas.
    #[arg(
        long,
        env = "AKIDB_ALLOWED_HOST",
        value_name = "NAME",
        value_delimiter = ',',
        help_heading = "Server"
    )]
    pub allowed_host: Vec<String>,

    /// How long to let admitted requests finish after SIGTERM or SIGINT, 0s to 1h
    #[arg(
        long,
        env = "AKIDB_DRAIN_TIMEOUT",
        value_name = "TIME",
        default_value = "15s",
        help_heading = "Server"
    )]
    pub drain_timeout: String,

    /// Log format on standard error: `text` or `json`
    #[arg(
        long,
        env = "AKIDB_LOG_FORMAT",
        value_name = "text|json",
        default_value = "text",
        help_heading = "Server"
    )]
    pub log_format: String,

    /// When a worker is replaced
    #[command(flatten)]
    pub faults: FaultFlags,

    /// Limits per client.
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
