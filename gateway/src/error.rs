//! What can go wrong: [`EmbedError`] for one request, [`StartError`] for the whole process.
//!
//! Neither knows HTTP; `http/error.rs` turns an [`EmbedError`] into a status, and a dialect writes it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::printable::line;

/// Why texts were not embedded. Its `Display` form is what a client may read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EmbedError {
    /// The list of texts has no element.
    #[error("`texts` is empty: send at least one text")]
    NoTexts,
    /// One of the texts has no character.
    #[error("text {index} is empty: every text needs at least one character")]
    EmptyText {
        /// Position in the request, counted from 0.
        index: usize,
    },
    /// More texts than one request may hold.
    #[error("the request has more than {limit} texts: send them in several requests")]
    TooManyTexts {
        /// Most texts allowed.
        limit: usize,
    },
    /// The request names a model that is not served here.
    #[error("model `{requested}` is not served here: this gateway serves `{served}`")]
    ModelNotServed {
        /// The name in the request.
        requested: String,
        /// The name served.
        served: String,
    },
    /// A text is longer than the model allows, and was not to be cut.
    #[error(
        "text {index} has {}{tokens} tokens, the model takes {limit}: shorten it, or omit `truncate` to have it cut",
        if *.is_exact { "" } else { "more than " }
    )]
    TextTooLong {
        /// Position in the request, counted from 0.
        index: usize,
        /// Tokens of the text, special tokens included.
        tokens: usize,
        /// Whether the text has no more than that; a very long one is not counted to its end.
        is_exact: bool,
        /// Most tokens the model takes.
        limit: usize,
    },
    /// The request names a prompt that the model does not have.
    #[error(
        "the model has no prompt `{requested}`: {}",
        if known.is_empty() { "it has none at all".to_owned() } else { format!("it has {known}") }
    )]
    UnknownPrompt {
        /// The name in the request.
        requested: String,
        /// The names of the model's prompts, a comma between two.
        known: String,
    },
    /// The model leaves its prompt out of its pooling, which the workers do not.
    #[error(
        "this model leaves prompts out of its pooling, which is not supported: name no prompt, or an empty one"
    )]
    PromptNotSupported,
    /// The request gives an instruction to a model that was not trained with any.
    #[error("this model was not trained with instructions: omit `instruction`")]
    InstructionNotSupported,
    /// The request's instruction has no words.
    #[error("`instruction` is empty: describe the task, or omit it")]
    EmptyInstruction,
    /// The prompt leaves no room for a text.
    #[error(
        "the prompt has {}{tokens} tokens, the model takes {limit}: that leaves no room for a text",
        if *.is_exact { "" } else { "more than " }
    )]
    PromptTooLong {
        /// Tokens of the prompt, special tokens included.
        tokens: usize,
        /// Whether it has no more than that.
        is_exact: bool,
        /// Most tokens the model takes.
        limit: usize,
    },
    /// The prompt, once for each text, is more than a request may have tokenized.
    #[error(
        "the prompt before each of {texts} texts makes more than {limit_bytes} bytes: send fewer texts, or shorten it"
    )]
    PromptsTooLong {
        /// Texts in the request.
        texts: usize,
        /// Most bytes of all prompts together.
        limit_bytes: usize,
    },
    /// The request wants vectors of a length that the model does not give.
    #[error("`dimensions` is {requested}: this model gives {}", at_least(*least, *most))]
    InvalidDimensions {
        /// The length in the request.
        requested: usize,
        /// Shortest vector that is given.
        least: usize,
        /// The model's own length.
        most: usize,
    },
    /// The tokenizer finds nothing in a text, and the model has no special tokens either.
    #[error("text {index} has no tokens: it contains nothing that the model reads")]
    NoTokens {
        /// Position in the request, counted from 0.
        index: usize,
    },
    /// The tokenizer refused a text, or read a token in it that the model does not know.
    #[error("text {index} cannot be tokenized")]
    NotTokenizable {
        /// Position in the request, counted from 0.
        index: usize,
    },
    /// The gateway is shutting down and takes no new work.
    #[error("the gateway is shutting down: retry later, or on another instance")]
    Draining,
    /// No worker is ready, and none is due before the deadline.
    #[error("no worker is ready: see /health, and retry later")]
    NoWorker {
        /// Time until a worker is due.
        retry_after: Duration,
    },
    /// So much is queued that the request could not be answered in time.
    #[error("the queue is too long to meet the deadline: retry later, or allow more time")]
    Overloaded {
        /// Time until what is queued now is computed.
        retry_after: Duration,
    },
    /// The request is too large for its time limit, even for an idle machine.
    #[error(
        "the request needs about {} s on this machine but may take only {} s: send fewer or shorter texts at a time, or allow more time",
        tenths(*.needed), .limit.as_secs_f64()
    )]
    DeadlineTooShort {
        /// Time that the request takes when nothing else is to be done.
        needed: Duration,
        /// Time that it may take.
        limit: Duration,
    },
    /// Workers died under this request more often than it may be tried, or none came back in time.
    #[error("the worker computing this request was lost: send the request again")]
    WorkerLost,
    /// The deadline passed first.
    #[error("the request exceeded its time limit: send fewer or shorter texts, or allow more time")]
    DeadlineExceeded,
    /// This text alone killed a worker, now or in the last minutes.
    #[error("text {index} makes the model crash or hang: omit it")]
    PoisonInput {
        /// Position in the request, counted from 0.
        index: usize,
    },
    /// The model raised an error for this text.
    #[error("the model failed on text {index}")]
    InferenceFailed {
        /// Position in the request, counted from 0.
        index: usize,
    },
    /// A worker answered with a vector that cannot be right.
    #[error("the model returned no usable vector for text {index}")]
    BadWorkerOutput {
        /// Position in the request, counted from 0.
        index: usize,
    },
    /// A bug in the gateway.
    #[error("internal error: please report it with the request id")]
    Internal,
}

/// Seconds, rounded up to tenths.
fn tenths(time: Duration) -> f64 {
    (time.as_secs_f64() * 10.0).ceil() / 10.0
}

/// A range, for people.
fn at_least(least: usize, most: usize) -> String {
    if least == most { format!("{most} only") } else { format!("{least} to {most}") }
}

impl EmbedError {
    /// No worker was ready in time, and it is not known when one will be.
    pub(crate) fn no_worker_in_time() -> Self {
        Self::NoWorker { retry_after: Duration::from_secs(1) }
    }

    /// How long to wait before the request is sent again; `None` where that would not help.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Overloaded { retry_after } | Self::NoWorker { retry_after } => Some(*retry_after),
            Self::Draining | Self::WorkerLost => Some(Duration::from_secs(1)),
            _ => None,
        }
    }
}

/// Truncates client-supplied text for use in an error message.
pub(crate) fn shorten(text: &str) -> String {
    const LONGEST_BYTES: usize = 300;
    if text.len() <= LONGEST_BYTES {
        return text.to_owned();
    }
    format!("{}...", &text[..text.floor_char_boundary(LONGEST_BYTES)])
}

/// Writes what a command was asked for to standard output.
pub(crate) fn print(output: &mut (dyn std::io::Write + '_), text: &str) -> Result<(), StartError> {
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        // The reader has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(source) => Err(StartError::System { action: "write to standard output", source }),
        Ok(()) => Ok(()),
    }
}

/// Exit codes of the process, those of BSD's `sysexits.h` where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitCode {
    /// All work was done and the workers have ended.
    Success = 0,
    /// The service that was asked for does not run.
    ServiceNotRunning = 3,
    /// The command line or an `AKIDB_*` variable is wrong.
    Usage = 64,
    /// A bug, or an operating system that refuses what it must give.
    Internal = 70,
    /// A file cannot be written.
    CannotWrite = 73,
    /// The model, the Python environment or another part of the configuration cannot be used.
    Configuration = 78,
    /// Another process listens on the address.
    AddressInUse = 98,
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}

/// Why the gateway cannot run. Line breaks are those of its own hints: what others wrote is escaped.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Flags or variables out of range: one line each.
    #[error("{}", .0.iter().map(|problem| line(problem)).collect::<Vec<_>>().join("\n"))]
    Usage(Vec<String>),
    /// No Python environment with the workers' code was found.
    #[error("no Python environment with `akidb_sidecar` was found: tried {}\nhint: run `make setup` in the checkout, or name one with `--python PATH`", line(&tried.join(", ")))]
    NoPython {
        /// Every place that was looked at.
        tried: Vec<String>,
    },
    /// The Python environment cannot prepare the model.
    #[error(
        "cannot run `{}`: {}\nhint: run `make setup` in the checkout, or name another environment with `--python PATH`",
        line(command),
        line(reason)
    )]
    Sidecar {
        /// What was run.
        command: String,
        /// What happened.
        reason: String,
    },
    /// The model is neither available locally nor downloadable.
    #[error("{}; this works here: {}", line(reason), line(works))]
    ModelNotFound {
        /// What was tried, in one line.
        reason: String,
        /// A full command line that would serve.
        works: String,
    },
    /// The model is not in the local cache, and the hub was not to be asked.
    #[error("{}\nhint: run `{}`", line(reason), line(pull))]
    NotDownloaded {
        /// What was looked for, in one line.
        reason: String,
        /// A command that downloads it.
        pull: String,
    },
    /// The model cannot be downloaded.
    #[error("{}", line(.0))]
    Download(String),
    /// A file of the model is missing or wrong.
    #[error("cannot use model `{}`: {}", line(model), line(reason))]
    Model {
        /// Name or path of the model.
        model: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A worker said that it can never become ready.
    #[error("a worker cannot start: {0}")]
    WorkerFatal(String),
    /// Somebody else listens on the address.
    #[error(
        "cannot listen on {address}: the address is in use\nhint: stop the other process, or choose another address with `--listen ADDR`"
    )]
    AddressInUse {
        /// The address asked for.
        address: SocketAddr,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// A service would not run.
    #[error("{}\nhint: {}", line(reason), line(hint))]
    Service {
        /// What would keep it from running.
        reason: String,
        /// What to do.
        hint: String,
    },
    /// The service does not run.
    #[error("the service is not running")]
    ServiceNotRunning,
    /// launchd or systemd did not do what it was asked for.
    #[error("`{}` failed: {}", line(command), line(reason))]
    Keeper {
        /// What was run.
        command: String,
        /// What it said.
        reason: String,
    },
    /// A file of the system cannot be written.
    #[error(
        "cannot write `{}`: {source}{}",
        line(&path.to_string_lossy()),
        if source.kind() == std::io::ErrorKind::PermissionDenied { "\nhint: run it with `sudo`" } else { "" }
    )]
    CannotWrite {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The operating system refused something that must work.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

impl StartError {
    /// The code to exit with.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::Usage,
            Self::NoPython { .. }
            | Self::Sidecar { .. }
            | Self::ModelNotFound { .. }
            | Self::NotDownloaded { .. }
            | Self::Download(_)
            | Self::Model { .. }
            | Self::WorkerFatal(_)
            | Self::Service { .. }
            | Self::Listen { .. } => ExitCode::Configuration,
            Self::AddressInUse { .. } => ExitCode::AddressInUse,
            Self::System { .. } | Self::Keeper { .. } => ExitCode::Internal,
            Self::CannotWrite { .. } => ExitCode::CannotWrite,
            Self::ServiceNotRunning => ExitCode::ServiceNotRunning,
        }
    }
}
