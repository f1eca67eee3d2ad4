//! The `models` commands: which models there are, downloading one, and where one is.
//!
//! What a program wants of them is written to standard output, everything else to standard error.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{self, StartError};
use crate::model::{Compute, Model};
use crate::printable;
use crate::sidecar::{self, Listed, PrepareError, Prepared, Sidecar};

/// Characters of a commit that people are shown.
const SHORT_COMMIT: usize = 12;

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Config {
    /// Which of the commands.
    pub action: Action,
    /// Python interpreter with `akidb_sidecar`; `None` looks for one.
    pub python: Option<PathBuf>,
    /// Whether a download may draw progress bars on standard error.
    pub show_progress: bool,
}

/// One of the commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Which models there are.
    List {
        /// As JSON, not as a table.
        json: bool,
    },
    /// Download a model, or what is newer of it.
    Pull(Wanted),
    /// Where a model is.
    Path(Wanted),
}

/// Which model is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// A name, a hub repository, or a directory.
    pub model: String,
    /// Branch, tag or commit on the hub; `None` is `main`.
    pub revision: Option<String>,
}

impl Wanted {
    fn as_asked(&self) -> sidecar::Wanted<'_> {
        sidecar::Wanted { model: &self.model, revision: self.revision.as_deref() }
    }
}

/// Does one of the commands.
///
/// # Errors
///
/// No Python environment, a model that cannot be had, or an output that cannot be written.
pub async fn run(
    config: Config,
    output: &mut (dyn Write + Send),
    notes: &mut (dyn Write + Send),
) -> Result<(), StartError> {
    let sidecar = Sidecar::find(config.python.as_deref())?;
    let text = match &config.action {
        Action::List { json } => {
            let models: Vec<Listed> = sidecar.list().await?.into_iter().map(as_it_would_be_served).collect();
            if *json { as_json(&models) } else { as_table(&models) }
        }
        Action::Pull(wanted) => {
            let started = Instant::now();
            let prepared = sidecar.pull(wanted.as_asked(), config.show_progress).await?;
            let prepared = prepared.map_err(|error| StartError::Download(error.message))?;
            let done = what_was_done(&wanted.model, &prepared, started.elapsed());
            // Nobody has to read it.
            let _ = writeln!(notes, "{done}");
            format!("{}\n", prepared.path.display())
        }
        Action::Path(wanted) => {
            let prepared = sidecar.path(wanted.as_asked()).await?;
            let prepared = prepared.map_err(|error| not_here(wanted, error))?;
            format!("{}\n", prepared.path.display())
        }
    };
    error::print(output, &text)
}

/// Reads the files of a model that is here as they are read to serve it, and says so where they would be refused.
fn as_it_would_be_served(mut listed: Listed) -> Listed {
    let Some(path) = &listed.path else { return listed };
    let read = Model::read(listed.name.clone(), Path::new(path), 0, Compute::default());
    let refusal = match read {
        Ok(model) => {
            listed.dimension = Some(model.dimension as u64);
            listed.pooling = Some(model.pooling.name().to_owned());
            listed.refusal.take()
        }
        Err(reason) => Some(reason),
    };
    if let Some(reason) = refusal {
        "refused".clone_into(&mut listed.state);
        listed.note = reason;
    }
    listed
}

fn not_here(wanted: &Wanted, error: PrepareError) -> StartError {
    if error.code != "not_downloaded" {
        return StartError::Download(error.message);
    }
    let words = ["akidb-gateway", "models", "pull", &wanted.model];
    let revision = wanted.revision.as_deref().map(|revision| ["--revision", revision]);
    let words = words.into_iter().chain(revision.into_iter().flatten());
    StartError::NotDownloaded { reason: error.message, pull: shlex::try_join(words).unwrap_or_default() }
}

fn what_was_done(model: &str, prepared: &Prepared, took: Duration) -> String {
    let commit = match (prepared.source.as_str(), &prepared.revision) {
        ("path", _) => return format!("`{model}` is a directory: nothing to download"),
        (_, None) => return format!("`{model}` ships with the Python environment: nothing to download"),
        (_, Some(commit)) => short(commit),
    };
    let size = size(prepared.size_bytes);
    let seconds = took.as_secs_f64();
    if prepared.downloaded {
        format!("downloaded `{model}`: commit {commit}, {size}, in {seconds:.1} s")
    } else {
        format!("`{model}` is up to date: commit {commit}, {size}, after {seconds:.1} s")
    }
}

fn as_json(models: &[Listed]) -> String {
    let json = serde_json::to_string_pretty(models).expect("strings and numbers are JSON: this is a bug");
    format!("{}\n", printable::json(&json))
}

/// Columns as wide as their widest value, two spaces apart.
fn as_table(models: &[Listed]) -> String {
    let head = ["NAME", "REPOSITORY", "DIMENSION", "POOLING", "STATE", "SIZE", "COMMIT", "REVISION", "NOTE"];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(models.iter().map(|model| row(model).map(|cell| printable::line(&cell).into_owned())));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |row: &[String; 9]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

fn row(model: &Listed) -> [String; 9] {
    let or_dash =
        |text: Option<String>| text.filter(|text| !text.is_empty()).unwrap_or_else(|| "-".to_owned());
    [
        model.name.clone(),
        model.repository.clone(),
        or_dash(model.dimension.map(|dimension| dimension.to_string())),
        or_dash(model.pooling.clone()),
        model.state.replace('_', " "),
        or_dash(model.size_bytes.map(size)),
        or_dash(model.commit.as_deref().map(short)),
        or_dash(Some(model.revisions.join(","))),
        model.note.clone(),
    ]
}

fn short(commit: &str) -> String {
    commit.chars().take(SHORT_COMMIT).collect()
}

fn size(bytes: u64) -> String {
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    if mebibytes < 1024.0 { format!("{mebibytes:.1} MiB") } else { format!("{:.1} GiB", mebibytes / 1024.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(name: &str, commit: Option<&str>, size_bytes: Option<u64>) -> Listed {
        Listed {
            name: name.to_owned(),
            repository: "owner/name".to_owned(),
            dimension: size_bytes,
            pooling: None,
            note: "default".to_owned(),
            state: if commit.is_some() { "ready" } else { "not_downloaded" }.to_owned(),
            revisions: vec!["main".to_owned(), "v1".to_owned()],
            commit: commit.map(str::to_owned),
            size_bytes,
            path: None,
            refusal: None,
        }
    }

    #[test]
    fn columns_of_the_table_are_aligned() {
        let models = [
            listed("a", None, None),
            listed("a-longer-name", Some("0123456789abcdef0123456789abcdef01234567"), Some(3 << 29)),
        ];
        let table = as_table(&models);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 3);
        for column in ["REPOSITORY", "STATE", "COMMIT", "NOTE"] {
            let place = lines[0].find(column).unwrap();
            assert!(lines.iter().all(|line| &line[place - 2..place] == "  "), "{column}\n{table}");
            assert!(lines.iter().all(|line| !line[place..].starts_with(' ')), "{column}\n{table}");
        }
        assert!(lines[1].contains("not downloaded  -        -             main,v1   default"), "{table}");
        assert!(lines[2].contains("1.5 GiB  0123456789ab  main,v1   default"), "{table}");
    }

    #[test]
    fn what_a_pull_did_is_one_line() {
        let mut prepared = Prepared {
            path: PathBuf::from("/x"),
            source: "hub".to_owned(),
            revision: Some("0123456789abcdef".to_owned()),
            downloaded: true,
            size_bytes: 90 << 20,
            weights_bytes: 0,
            warnings: Vec::new(),
        };
        let took = Duration::from_millis(1234);
        assert_eq!(
            what_was_done("m", &prepared, took),
            "downloaded `m`: commit 0123456789ab, 90.0 MiB, in 1.2 s"
        );
        prepared.downloaded = false;
        assert!(what_was_done("m", &prepared, took).starts_with("`m` is up to date: commit 0123456789ab"));
        prepared.revision = None;
        assert!(what_was_done("m", &prepared, took).contains("ships with"));
    }
}
