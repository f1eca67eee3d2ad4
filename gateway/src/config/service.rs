//! The meaning of the `service` commands' flags.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::cli::{self, Command, KeeperName, ProgramFlags, ServeFlags, ServiceFlags, TargetFlags};
use crate::error::StartError;
use crate::service::{Action, Config, Keeper, Program, Scope};

/// In the names of variables that may hold a secret.
const SECRET: [&str; 4] = ["KEY", "TOKEN", "SECRET", "PASSWORD"];

impl Config {
    /// Gives the flags of a `service` command their meaning.
    ///
    /// # Errors
    ///
    /// [`StartError::Usage`] with what is wrong with flags, those of the gateway among them.
    pub fn from_flags(flags: &ServiceFlags) -> Result<Self, StartError> {
        let (target, action, is_done_here) = match flags {
            ServiceFlags::Print { target, program } => (target, Action::Print(meaning(program)?), false),
            ServiceFlags::Install { target, program, dry_run } => {
                (target, Action::Install { program: meaning(program)?, dry_run: *dry_run }, !dry_run)
            }
            ServiceFlags::Uninstall { target, dry_run } => {
                (target, Action::Uninstall { dry_run: *dry_run }, !dry_run)
            }
            ServiceFlags::Status { target } => (target, Action::Status, true),
        };
        let (scope, keeper) = (scope(target), keeper(target));
        if is_done_here && keeper != Keeper::of_this_system() {
            let problem = format!("--for: {} is not what keeps services on this system", keeper.name());
            return Err(StartError::Usage(vec![problem]));
        }
        let has_user = match &action {
            Action::Print(program) | Action::Install { program, .. } => program.run_as.is_some(),
            Action::Uninstall { .. } | Action::Status => false,
        };
        if has_user && scope == Scope::User {
            return Err(StartError::Usage(vec![
                "--run-as needs --system: your own service runs as you".to_owned(),
            ]));
        }
        Ok(Self { scope, keeper, action })
    }
}

fn scope(flags: &TargetFlags) -> Scope {
    let is_root = nix::unistd::geteuid().is_root();
    if flags.system || (is_root && !flags.user) { Scope::System } else { Scope::User }
}

fn keeper(flags: &TargetFlags) -> Keeper {
    match flags.keeper {
        Some(KeeperName::Launchd) => Keeper::Launchd,
        Some(KeeperName::Systemd) => Keeper::Systemd,
        None => Keeper::of_this_system(),
    }
}

/// Everything is judged as the service will find it, so that it does not end as soon as it is started.
fn meaning(flags: &ProgramFlags) -> Result<Program, StartError> {
    let usage = |problem: String| StartError::Usage(vec![problem]);
    let serve = gateway_flags(&flags.flags)?;
    let config = super::Config::from_flags(&serve)?;
    let as_text = |word: &OsString| {
        let text = word.to_str().filter(|text| !text.contains('\0'));
        text.map(str::to_owned).ok_or_else(|| usage(format!("`{}` is no text", word.display())))
    };
    let arguments = flags.flags.iter().map(as_text).collect::<Result<Vec<_>, _>>()?;
    let (path, is_this_one) = match &flags.program {
        Some(path) => (path.clone(), false),
        None => {
            let this = std::env::current_exe();
            let action = "find this binary";
            (this.map_err(|source| StartError::System { action, source })?, true)
        }
    };
    let model = Path::new(&serve.model);
    let model_folder = model.is_dir().then(|| model.to_owned());
    let python = serve.python.as_deref().map(PathBuf::from);
    let named =
        [("--program", Some(&path)), ("--model", model_folder.as_ref()), ("--python", python.as_ref())];
    for (flag, path) in named {
        if let Some(path) = path.filter(|path| path.is_relative()) {
            let problem = format!(
                "{flag}: `{}` is not an absolute path, and a service has no current folder",
                path.display()
            );
            return Err(usage(problem));
        }
    }
    let drain_timeout = config.http.drain_timeout;
    let (environment, run_as) = (environment(), flags.run_as.clone());
    Ok(Program { path, is_this_one, arguments, python, model_folder, environment, drain_timeout, run_as })
}

fn gateway_flags(flags: &[OsString]) -> Result<ServeFlags, StartError> {
    let words = std::iter::once("akidb-gateway".into()).chain(flags.iter().cloned());
    let usage = |problem: String| StartError::Usage(vec![problem]);
    match cli::parse(words) {
        Ok(Command::Serve(flags)) => Ok(*flags),
        Ok(Command::Models(_) | Command::Service(_)) => {
            Err(usage("a service runs `serve`: only its flags stand after `--`".to_owned()))
        }
        Err(error) => {
            let said = error.render().to_string();
            let first = said.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
            Err(usage(format!("flags of the gateway, after `--`: {first}")))
        }
    }
}

/// The gateway's variables that are set now, but no secrets.
fn environment() -> Vec<(String, String)> {
    let texts = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let is_kept = |name: &str| name.starts_with("AKIDB_") && !SECRET.iter().any(|word| name.contains(word));
    let mut kept: Vec<_> = texts.filter(|(name, _)| is_kept(name)).collect();
    kept.sort();
    kept
}
