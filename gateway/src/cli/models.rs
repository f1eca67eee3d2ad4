//! Flags of the `models` commands.

use clap::{Args, Parser, Subcommand};

use super::DEFAULT_MODEL;

/// `akidb-gateway models`.
#[derive(Debug, Parser)]
#[command(
    name = "models",
    bin_name = "akidb-gateway models",
    about = "List, download and find models",
    disable_help_subcommand = true,
    after_help = AFTER_HELP
)]
pub(super) struct Models {
    #[command(subcommand)]
    pub(super) flags: ModelsFlags,
}

/// One of the `models` commands, with its flags.
#[derive(Debug, Clone, Subcommand)]
pub enum ModelsFlags {
    /// List the named models, and every complete model in the hub's local cache
    ///
    /// A model has one line for each commit in the cache.
    #[command(after_help = LIST_AFTER_HELP)]
    List {
        /// Print a JSON array instead of a table; its keys are listed below
        #[arg(long)]
        json: bool,
        /// The Python side.
        #[command(flatten)]
        environment: EnvironmentFlags,
    },
    /// Download a model, or update it from the hub, and print its directory
    ///
    /// Progress goes to standard error. An interrupted download resumes where it stopped; the previous commit stays in use
    /// until the new one is complete.
    #[command(after_help = EXIT_CODES)]
    Pull(ModelFlags),
    /// Print the directory of a model, without contacting the hub
    #[command(after_help = EXIT_CODES)]
    Path(ModelFlags),
}

/// Which model a command is about.
#[derive(Debug, Clone, Args)]
pub struct ModelFlags {
    /// Name, Hugging Face repository (`owner/name`), or directory
    #[arg(env = "AKIDB_MODEL", value_name = "MODEL", default_value = DEFAULT_MODEL)]
    pub model: String,

    /// Branch, tag or commit on the hub
    ///
    /// Default: `main`.
    #[arg(long, env = "AKIDB_REVISION", value_name = "REVISION")]
    pub revision: Option<String>,

    /// The Python side.
    #[command(flatten)]
    pub environment: EnvironmentFlags,
}

/// Where the Python side is.
#[derive(Debug, Clone, Args)]
pub struct EnvironmentFlags {
    /// Python interpreter with `akidb_sidecar`; searched for as by `serve`
    #[arg(long, env = "AKIDB_PYTHON", value_name = "PATH")]
    pub python: Option<String>,
}

// Paragraphs are one line each: they are wrapped as wide as the terminal is.
const AFTER_HELP: &str = "\
Examples:
  akidb-gateway models pull sentence-transformers/all-MiniLM-L6-v2 --revision main
  akidb-gateway --model \"$(akidb-gateway models path owner/name)\"

Models are stored in the hub's own cache. HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE apply.

Exit codes: 0 done, 64 wrong usage, 70 internal error, 78 the model or environment is missing or cannot be used. \
Ctrl-C stops a download by its signal (130 in a shell); the next `pull` resumes it.";

const LIST_AFTER_HELP: &str = "\
Keys of every object of the array: `name` (for --model), `repository` (on the hub), `dimension` (number or null), \
`pooling` (`mean`, `cls`, `last` or null), `note` (text), `state` (`ready`, \
`not_downloaded`, or `refused`: `note` says why), `revisions` \
(branches and tags that pointed to this commit when last pulled), `commit`, `size_bytes`, `path` (null if not \
downloaded).

Exit codes: 0 done, 64 wrong usage, 70 internal error, 78 no Python environment that can be used.";

const EXIT_CODES: &str = "\
Exit codes: 0 done, 64 wrong usage, 70 internal error, 78 a model or environment that cannot be used or is not here.";
