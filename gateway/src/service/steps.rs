//! What an installation does to the machine. Each step can be said instead of done.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::error::StartError;
use crate::trust::{Owners, Trust};

/// Where the keepers' programs are when `PATH` does not say.
const PROGRAM_FOLDERS: [&str; 4] = ["/usr/bin", "/bin", "/usr/sbin", "/sbin"];

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Make a folder that belongs to a user.
    MakeFolder {
        path: PathBuf,
        owner: Option<String>,
    },
    Write {
        path: PathBuf,
        text: String,
    },
    Remove {
        path: PathBuf,
    },
    /// Run a program of the system; some may fail.
    Run {
        words: Vec<OsString>,
        may_fail: bool,
    },
}

impl Step {
    /// A program that must succeed.
    pub(super) fn run(words: Vec<OsString>) -> Self {
        Self::Run { words, may_fail: false }
    }

    /// A line.
    pub(super) fn in_short(&self) -> String {
        match self {
            Self::MakeFolder { path, owner: None } => format!("make the folder {}", path.display()),
            Self::MakeFolder { path, owner: Some(owner) } => {
                format!("make the folder {} for the user {owner}", path.display())
            }
            Self::Write { path, .. } => format!("write {}", path.display()),
            Self::Remove { path } => format!("remove {}", path.display()),
            Self::Run { words, may_fail } => {
                let ignored = if *may_fail { " (it may fail)" } else { "" };
                format!("run {}{ignored}", in_shell(words))
            }
        }
    }

    /// The same, with what would be written.
    pub(super) fn in_words(&self) -> String {
        let mut said = self.in_short();
        said.push('\n');
        if let Self::Write { text, .. } = self {
            for line in text.lines() {
                said.push_str(format!("    {line}").trim_end());
                said.push('\n');
            }
        }
        said
    }

    /// Does it.
    pub(super) fn carry_out(&self) -> Result<(), StartError> {
        match self {
            Self::MakeFolder { path, owner } => make_folder(path, owner.as_deref())
                .map_err(|source| StartError::CannotWrite { path: path.clone(), source }),
            Self::Write { path, text } => {
                write(path, text).map_err(|source| StartError::CannotWrite { path: path.clone(), source })
            }
            Self::Remove { path } => match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(StartError::CannotWrite { path: path.clone(), source: error })
                }
                _ => Ok(()),
            },
            Self::Run { words, may_fail } => {
                let output = output(words)?;
                if output.status.success() || *may_fail {
                    return Ok(());
                }
                Err(failure(words, &output))
            }
        }
    }
}

/// Runs a program of the system to its end.
pub(super) fn output(words: &[OsString]) -> Result<Output, StartError> {
    let failed = |reason: String| StartError::Keeper { command: in_shell(words), reason };
    let (name, arguments) = words.split_first().ok_or_else(|| failed("it is empty".to_owned()))?;
    let program = find(name).ok_or_else(|| failed(format!("`{}` is not installed", name.display())))?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    command.output().map_err(|error| failed(error.to_string()))
}

/// A program that failed, with the last line that it wrote, or how it ended.
pub(super) fn failure(words: &[OsString], output: &Output) -> StartError {
    let said = String::from_utf8_lossy(&output.stderr);
    let reason = said.trim().lines().last().map_or_else(|| output.status.to_string(), str::to_owned);
    StartError::Keeper { command: in_shell(words), reason }
}

/// A program on the `PATH`, or where systems keep theirs; not one that others could have put there.
fn find(name: &OsStr) -> Option<PathBuf> {
    let trust = Trust::new(std::env::current_exe().ok().as_deref());
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(PROGRAM_FOLDERS.map(PathBuf::from));
    folders
        .map(|folder| folder.join(name))
        .find(|file| file.is_file() && trust.check(file, Owners::Trusted).is_ok())
}

fn in_shell(words: &[OsString]) -> String {
    let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
    shlex::try_join(words.iter().map(AsRef::as_ref)).unwrap_or_default()
}

fn make_folder(path: &Path, owner: Option<&str>) -> io::Result<()> {
    std::fs::create_dir_all(path)?;
    let Some(owner) = owner else { return Ok(()) };
    let user = nix::unistd::User::from_name(owner)?.ok_or(io::ErrorKind::NotFound)?;
    std::os::unix::fs::chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o750))
}

/// Whole or not at all: the keeper may read it at any moment. Others may read it, nobody else may write it.
fn write(path: &Path, text: &str) -> io::Result<()> {
    use std::io::Write;
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    std::fs::create_dir_all(folder)?;
    let unfinished = path.with_added_extension("unfinished");
    let _ = std::fs::remove_file(&unfinished);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(&unfinished)?;
    // Whatever the mask of this process is.
    file.set_permissions(std::fs::Permissions::from_mode(0o644))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&unfinished, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_whole_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/unit.service");
        for text in ["first\n", "second\n"] {
            Step::Write { path: path.clone(), text: text.to_owned() }.carry_out().unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        let remove = Step::Remove { path: path.clone() };
        remove.carry_out().unwrap();
        remove.carry_out().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn what_cannot_be_written_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let below = file.join("unit.service");
        let error = Step::Write { path: below.clone(), text: String::new() }.carry_out().unwrap_err();
        assert!(error.to_string().contains(&below.display().to_string()), "{error}");
        assert_eq!(error.exit_code() as u8, 73);
    }

    #[test]
    fn a_program_that_fails_is_quoted_unless_it_may() {
        let words: Vec<OsString> = ["ls", "/there is nothing"].map(OsString::from).to_vec();
        let error = Step::run(words.clone()).carry_out().unwrap_err().to_string();
        assert!(error.contains("ls '/there is nothing'") && error.contains("No such file"), "{error}");
        assert!(Step::Run { words, may_fail: true }.carry_out().is_ok());
        let error = Step::run(vec!["no-such-program".into()]).carry_out().unwrap_err().to_string();
        assert!(error.contains("not installed"), "{error}");
    }
}
