//! The `service` commands: the gateway as a service of launchd or systemd.
//!
//! * `launchd`, `systemd`: the service's file, where it belongs, and what its keeper is asked.
//! * `steps`: what is done to the machine, or only said.
//! * `reach`: whether the service's user could run it.

mod launchd;
mod reach;
mod steps;
mod systemd;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{StartError, print};
use crate::sidecar::Sidecar;
use steps::Step;

/// Time between the end of the drain and the moment at which the gateway is killed.
const STOP_RESERVE: Duration = Duration::from_secs(5);
/// The service's name with systemd, and the name of its folders.
const NAME: &str = "akidb-gateway";
/// Descriptors that the service may have: macOS gives a process no more unless it asks for them itself.
const DESCRIPTORS: u32 = 10_240;

/// For whom the service runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// For the whole machine, from its start on.
    System,
    /// For one user, as that user.
    User,
}

/// What keeps the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeper {
    /// macOS.
    Launchd,
    /// Linux.
    Systemd,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Print the service's file.
    Print(Program),
    /// Install it, and start it.
    Install {
        /// What it runs.
        program: Program,
        /// Whether to say only what would be done.
        dry_run: bool,
    },
    /// Stop it, and remove its file.
    Uninstall {
        /// Whether to say only what would be done.
        dry_run: bool,
    },
    /// Say how it is.
    Status,
}

/// What the service runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The gateway's binary.
    pub path: PathBuf,
    /// Whether that is this one: then its Python can be looked for here.
    pub is_this_one: bool,
    /// Flags of the gateway.
    pub arguments: Vec<String>,
    /// Its Python, where a flag or variable names one.
    pub python: Option<PathBuf>,
    /// Its model, where that is a folder.
    pub model_folder: Option<PathBuf>,
    /// Variables of the gateway.
    pub environment: Vec<(String, String)>,
    /// How long it takes to stop, at most.
    pub drain_timeout: Duration,
    /// The user of a service of the machine.
    pub run_as: Option<String>,
}

/// A `service` command with its meaning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// For whom.
    pub scope: Scope,
    /// With what.
    pub keeper: Keeper,
    /// What to do.
    pub action: Action,
}

impl Keeper {
    /// What keeps services on this system.
    #[must_use]
    pub fn of_this_system() -> Self {
        if cfg!(target_os = "macos") { Self::Launchd } else { Self::Systemd }
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Launchd => "launchd",
            Self::Systemd => "systemd",
        }
    }
}

impl Program {
    /// Time after which a gateway that was asked to stop is killed, in seconds.
    fn stop_seconds(&self) -> u64 {
        (self.drain_timeout + STOP_RESERVE).as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX)
    }

    /// Everything that the service's user must be able to read.
    fn parts(&self) -> impl Iterator<Item = &Path> {
        let optional = [&self.python, &self.model_folder].into_iter().flatten().map(PathBuf::as_path);
        std::iter::once(self.path.as_path()).chain(optional)
    }

    /// Looks for this binary's Python from here, where `VIRTUAL_ENV` and `PATH` may tell: the service has neither.
    fn find_python(&mut self) -> Result<(), StartError> {
        if self.is_this_one && self.python.is_none() {
            let python = Sidecar::find(None)?.python().to_owned();
            self.environment.push(("AKIDB_PYTHON".to_owned(), python.to_string_lossy().into_owned()));
            self.python = Some(python);
        }
        Ok(())
    }
}

/// Does what was asked for. What a program may want to read goes to `output`, remarks for people to `notes`.
///
/// # Errors
///
/// A service that could not run, a file that cannot be written, a keeper that refuses, or a service that does not run.
pub fn run(config: Config, output: &mut dyn Write, notes: &mut dyn Write) -> Result<(), StartError> {
    let Config { scope, keeper, action } = config;
    match action {
        Action::Print(mut program) => {
            // It may be printed for a machine on which there is one.
            let _ = program.find_python();
            let file = match keeper {
                Keeper::Launchd => launchd::file(scope, &program, &home()?)?,
                Keeper::Systemd => systemd::file(scope, &program),
            };
            print(output, &file)
        }
        Action::Install { mut program, dry_run } => {
            if let Err(error) = program.find_python().and_then(|()| reach::check(scope, keeper, &program)) {
                if !dry_run {
                    return Err(error);
                }
                let _ = writeln!(notes, "note: this would not be installed: {error}");
            }
            let (steps, hints) = match keeper {
                Keeper::Launchd => launchd::install(scope, &program, &home()?)?,
                Keeper::Systemd => systemd::install(scope, &program, &configuration_home(scope)?),
            };
            carry_out(&steps, dry_run, output, notes)?;
            for hint in hints {
                let _ = writeln!(notes, "{hint}");
            }
            Ok(())
        }
        Action::Uninstall { dry_run } => {
            let steps = match keeper {
                Keeper::Launchd => launchd::uninstall(scope, &home()?),
                Keeper::Systemd => systemd::uninstall(scope, &configuration_home(scope)?),
            };
            carry_out(&steps, dry_run, output, notes)
        }
        Action::Status => {
            let status = match keeper {
                Keeper::Launchd => launchd::status(scope, &home()?)?,
                Keeper::Systemd => systemd::status(scope, &configuration_home(scope)?)?,
            };
            print(output, &status.text)?;
            if status.is_running { Ok(()) } else { Err(StartError::ServiceNotRunning) }
        }
    }
}

/// How a service is.
struct Status {
    text: String,
    is_running: bool,
}

impl Status {
    /// One line for each fact, and whether the file is there.
    fn new(file: &Path, facts: &[(&str, String)], is_running: bool) -> Self {
        let installed = if file.exists() { "" } else { " (not installed)" };
        let file = ("file", format!("{}{installed}", file.display()));
        let lines = std::iter::once(&file).chain(facts).map(|(name, fact)| format!("{name:<9}{fact}\n"));
        Self { text: lines.collect(), is_running }
    }
}

fn carry_out(
    steps: &[Step],
    dry_run: bool,
    output: &mut dyn Write,
    notes: &mut dyn Write,
) -> Result<(), StartError> {
    for step in steps {
        if dry_run {
            print(output, &step.in_words())?;
        } else {
            let _ = writeln!(notes, "{}", step.in_short());
            step.carry_out()?;
        }
    }
    Ok(())
}

fn absolute(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute())
}

/// The home of whoever asks.
fn home() -> Result<PathBuf, StartError> {
    absolute("HOME").ok_or_else(|| StartError::Usage(vec!["HOME is not set to an absolute path".to_owned()]))
}

/// Where the units of a user are.
fn configuration_home(scope: Scope) -> Result<PathBuf, StartError> {
    match (scope, absolute("XDG_CONFIG_HOME")) {
        (Scope::System, _) => Ok(PathBuf::new()),
        (Scope::User, Some(folder)) => Ok(folder),
        (Scope::User, None) => Ok(home()?.join(".config")),
    }
}

/// Words of a command.
fn words<const N: usize>(words: [&str; N]) -> Vec<OsString> {
    words.into_iter().map(OsString::from).collect()
}
