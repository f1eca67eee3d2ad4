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
    /// List the models that have a name here, and what else is whole in the hub's local cache
    ///
    /// A model has one line for each commit of it that is here.
    #[command(after_help = LIST_AFTER_HELP)]
    List {
        /// One JSON array for programs instead of a table; the keys are below
        #[arg(long)]
        json: bool,
        /// The Python side.
        #[command(flatten)]
        environment: EnvironmentFlags,
    },
    /// Download a model, or what is newer of it on the hub, and print the directory where it is
    ///
    /// Progress and what was done are written to standard error. A download that was cut off goes on where it
    /// stopped; the commit that was there before stays in use until the new one is whole.
    #[command(after_help = EXIT_CODES)]
    Pull(ModelFlags),
    /// Print the directory where a model is, without asking the hub
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
    /// Python interpreter with `akidb_sidecar`; it is looked for as `serve` does
    #[arg(long, env = "AKIDB_PYTHON", value_name = "PATH")]
    pub python: Option<String>,
}

// Paragraphs are one line each: they are wrapped as wide as the terminal is.
const AFTER_HELP: &str = "\
Examples:
  akidb-gateway models pull sentence-transformers/all-MiniLM-L6-v2 --revision main
  akidb-gateway --model \"$(akidb-gateway models path owner/name)\"

The cache is the one of the hub's own tools: HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are \
obeyed.

Exit codes: 0 done, 64 wrong usage, 70 internal error, 78 a model or environment that cannot be used or is not here. \
Ctrl-C ends a download by its signal (130 in a shell); the next `pull` goes on from there.";

const LIST_AFTER_HELP: &str = "\
Keys of every object of the array: `name` (for --model), `repository` (on the hub), `dimension` (number or null), \
`pooling` (`mean`, `cls`, `last` or null), `note` (text), `state` (`ready`, \
`not_downloaded`, or `refused`: `note` says why), `revisions` \
(branches and tags that were this commit when they were last pulled), `commit`, `size_bytes`, `path` (null when there \
is none).

Exit codes: 0 done, 64 wrong usage, 70 internal error, 78 no Python environment that can be used.";

const EXIT_CODES: &str = "\
Exit codes: 0 done, 64 wrong usage, 70 internal error, 78 a model or environment that cannot be used or is not here.";
