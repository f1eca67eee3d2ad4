//! Which Python runs: the one named, else the first environment with `akidb_sidecar` among those of
//!
//! 1. the checkout that holds the gateway's binary,
//! 2. the folder that holds the binary,
//! 3. `$VIRTUAL_ENV`,
//! 4. the `PATH`, where a script `akidb-sidecar` tells of one.
//!
//! The current folder has no say. A place that others can write to is passed over (see [`Trust`]), and the search goes
//! on: else whoever may make a folder could keep the gateway from starting.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::trust::{Owners, Trust};

const SCRIPT: &str = "akidb-sidecar";
/// What tells the Python environments of `venv` and of conda.
const MARKS: [&str; 2] = ["pyvenv.cfg", "conda-meta"];

/// The places to look at.
pub(super) struct Search {
    trust: Trust,
    /// The folder with the binary, links resolved.
    binary_folder: Option<PathBuf>,
    environment: Option<PathBuf>,
    path: Vec<PathBuf>,
}

/// Why a place does not do.
type Reason = String;

impl Search {
    /// Around this process.
    pub(super) fn new() -> Self {
        let binary = std::env::current_exe().and_then(std::fs::canonicalize).ok();
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        Self {
            trust: Trust::new(binary.as_deref()),
            binary_folder: binary.as_deref().and_then(Path::parent).map(Path::to_owned),
            environment: variable("VIRTUAL_ENV").map(PathBuf::from),
            path: variable("PATH")
                .iter()
                .flat_map(std::env::split_paths)
                .filter(|folder| folder.is_absolute())
                .collect(),
        }
    }

    /// Whether programs of a folder may be run.
    pub(super) fn may_run(&self, folder: &Path) -> bool {
        self.trust
            .check(folder, Owners::Trusted)
            .inspect_err(|reason| tracing::debug!(%reason, "skipping a folder of the PATH"))
            .is_ok()
    }

    /// The Python to run, or every place that was looked at, and what was wrong with it.
    ///
    /// A file that a person names may belong to anybody; a bare name is looked up on the `PATH`.
    pub(super) fn find(&self, named: Option<&Path>) -> Result<PathBuf, Vec<String>> {
        match named {
            Some(name) if name.components().count() == 1 && !name.has_root() && name != Path::new(".") => {
                self.on_path(name)
            }
            Some(file) => {
                self.file(file).map_err(|reason| vec![format!("`{}` (--python): {reason}", file.display())])
            }
            None => self.environment(),
        }
    }

    fn file(&self, named: &Path) -> Result<PathBuf, Reason> {
        let file = std::path::absolute(named).map_err(|error| error.to_string())?;
        if !file.is_file() {
            return Err("there is no such file".to_owned());
        }
        self.check(file, Owners::Any)
    }

    fn on_path(&self, name: &Path) -> Result<PathBuf, Vec<String>> {
        let mut tried = Vec::new();
        for file in self.path.iter().map(|folder| folder.join(name)).filter(|file| is_program(file)) {
            match self.check(file.clone(), Owners::Trusted) {
                Ok(python) => return Ok(python),
                Err(reason) => tried.push(format!("`{}`: {reason}", file.display())),
            }
        }
        tried.push(format!("`{}` on the PATH (--python)", name.display()));
        Err(tried)
    }

    fn environment(&self) -> Result<PathBuf, Vec<String>> {
        let mut tried = Vec::new();
        for (place, found) in self.places() {
            match found.and_then(|python| self.check(python, Owners::Trusted)) {
                Ok(python) => return Ok(python),
                Err(reason) if reason.is_empty() => tried.push(place),
                Err(reason) => {
                    tracing::warn!(place, reason, "skipping a Python environment");
                    tried.push(format!("{place}: {reason}"));
                }
            }
        }
        if self.environment.is_none() {
            tried.push("$VIRTUAL_ENV (not set)".to_owned());
        }
        tried.push(format!("`{SCRIPT}` on the PATH"));
        Err(tried)
    }

    /// Every place with its Python, in the order of the search; no reason where simply nothing is there.
    fn places(&self) -> impl Iterator<Item = (String, Result<PathBuf, Reason>)> {
        let of_folder = |folder: PathBuf| (shown(&folder), python_of_environment(&folder));
        let of_script = |script: PathBuf| (shown(&script), python_of_script(&script));
        let above_binary = self.binary_folder.iter().flat_map(|folder| folder.ancestors());
        let checkouts = above_binary
            .filter(|folder| folder.join("sidecar-py/pyproject.toml").is_file())
            .map(|checkout| checkout.join("sidecar-py/.venv"));
        let beside_binary =
            self.binary_folder.iter().map(|folder| folder.join(SCRIPT)).filter(|file| is_program(file));
        let on_path = self.path.iter().map(|folder| folder.join(SCRIPT)).filter(|file| is_program(file));
        checkouts
            .map(of_folder)
            .chain(beside_binary.map(of_script))
            .chain(self.environment.iter().cloned().map(of_folder))
            .chain(on_path.map(of_script))
    }

    /// Judges the program, and the environment that it would read.
    fn check(&self, python: PathBuf, owners: Owners) -> Result<PathBuf, Reason> {
        let check = |path: &Path| self.trust.check(path, owners).map_err(|reason| reason.to_string());
        check(&python)?;
        let folder = python.parent().and_then(Path::parent).filter(|folder| is_environment(folder));
        if let Some(folder) = folder {
            for part in code_of(folder) {
                check(&part)?;
            }
        }
        Ok(python)
    }
}

/// The Python of an environment with the package, which its script tells from any other one.
fn python_of_environment(folder: &Path) -> Result<PathBuf, Reason> {
    if folder.is_relative() {
        return Err("it is not an absolute path".to_owned());
    }
    if folder.join("bin").join(SCRIPT).is_file() { Ok(folder.join("bin/python")) } else { Err(Reason::new()) }
}

/// The Python that a script would run. The script itself would run it with whatever is around it.
///
/// pipx and uv put a link to a script into a folder of the `PATH`; the script is in the environment.
fn python_of_script(script: &Path) -> Result<PathBuf, Reason> {
    let script = std::fs::canonicalize(script).map_err(|error| error.to_string())?;
    let folder = script.parent().unwrap_or(&script);
    if folder.parent().is_some_and(is_environment) {
        return Ok(folder.join("python"));
    }
    let content = std::fs::read(&script).map_err(|error| error.to_string())?;
    let first_line = content.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let interpreter = first_line.strip_prefix(b"#!").unwrap_or_default().trim_ascii();
    let interpreter = interpreter.split(u8::is_ascii_whitespace).next().unwrap_or_default();
    let interpreter = Path::new(OsStr::from_bytes(interpreter));
    let is_python = interpreter.file_name().is_some_and(|name| name.as_bytes().starts_with(b"python"));
    if interpreter.is_absolute() && is_python {
        return Ok(interpreter.to_owned());
    }
    Err("it does not say which Python it belongs to: name that with `--python PATH`".to_owned())
}

fn shown(place: &Path) -> String {
    format!("`{}`", place.display())
}

fn is_environment(folder: &Path) -> bool {
    MARKS.iter().any(|mark| folder.join(mark).exists())
}

fn is_program(file: &Path) -> bool {
    std::fs::metadata(file).is_ok_and(|facts| facts.is_file() && facts.permissions().mode() & 0o111 != 0)
}

/// Files and folders that say which code an environment's Python runs.
fn code_of(folder: &Path) -> Vec<PathBuf> {
    let settings = folder.join("pyvenv.cfg");
    let home = std::fs::read_to_string(&settings).ok().and_then(|text| home_of(&text));
    let mut parts: Vec<PathBuf> = [folder.to_owned(), folder.join("bin"), settings].into();
    let libraries = std::fs::read_dir(folder.join("lib")).into_iter().flatten().flatten();
    for library in libraries.filter(|entry| entry.file_name().as_bytes().starts_with(b"python")) {
        parts.extend([library.path(), library.path().join("site-packages")]);
    }
    parts.retain(|part| part.exists());
    parts.extend(home);
    parts
}

/// The Python that an environment was made from.
fn home_of(settings: &str) -> Option<PathBuf> {
    let values = settings.lines().filter_map(|line| line.split_once('='));
    values
        .map(|(key, value)| (key.trim(), value.trim()))
        .find(|(key, _)| *key == "home")
        .map(|(_, home)| home.into())
}
