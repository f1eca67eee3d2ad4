//! Whether a service could run: whether its user can get at its program, its Python and its model, and nobody else could
//! change them.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::{Keeper, Program, Scope, launchd};
use crate::error::StartError;
use crate::trust::{Owners, Trust};

/// What `PrivateTmp` hides from a service.
const TEMPORARY: [&str; 2] = ["/tmp", "/var/tmp"];

/// Says what would keep the service from running.
pub(super) fn check(scope: Scope, keeper: Keeper, program: &Program) -> Result<(), StartError> {
    let refused = |reason: String, hint: &str| StartError::Service { reason, hint: hint.to_owned() };
    let shown = |path: &Path| format!("`{}`", path.display());
    if !program.path.is_file() {
        return Err(refused(
            format!("{} is not a file", shown(&program.path)),
            "name the binary with `--program PATH`",
        ));
    }
    let trust = Trust::new(Some(&program.path));
    if let Err(reason) = trust.check(&program.path, Owners::Any) {
        return Err(refused(
            reason.to_string(),
            "install the gateway where others cannot write, such as /opt",
        ));
    }
    if scope == Scope::User {
        return Ok(());
    }
    if keeper == Keeper::Systemd
        && let Some(part) =
            program.parts().find(|part| TEMPORARY.iter().any(|folder| part.starts_with(folder)))
    {
        let reason =
            format!("{} is in a folder for temporary files, which a service does not see", shown(part));
        return Err(refused(reason, "install the gateway elsewhere, such as in /opt"));
    }
    match (keeper, &program.run_as) {
        (Keeper::Systemd, None) => {
            let hidden = program.parts().find_map(|part| Some((part, hidden_from_others(part)?)));
            hidden.map_or(Ok(()), |(part, by)| {
                let reason = format!(
                    "the service's user cannot reach {}: others may not enter or read {}",
                    shown(part),
                    shown(&by)
                );
                Err(refused(
                    reason,
                    "install it elsewhere, such as in /opt, or name a user with `--run-as USER`",
                ))
            })
        }
        (_, run_as) => {
            let user = run_as.as_deref().unwrap_or(launchd::USER);
            match nix::unistd::User::from_name(user) {
                Ok(Some(_)) => Ok(()),
                _ => Err(refused(
                    format!("there is no user `{user}`"),
                    "create one, or name another with `--run-as USER`",
                )),
            }
        }
    }
}

/// The first folder on the way that others may not enter, or the file itself when they may not read it.
fn hidden_from_others(path: &Path) -> Option<PathBuf> {
    let real = std::fs::canonicalize(path).ok()?;
    let mode = |path: &Path| std::fs::metadata(path).map_or(0, |facts| facts.permissions().mode());
    let mut folders: Vec<&Path> = real.ancestors().skip(1).collect();
    folders.reverse();
    let closed = folders.into_iter().find(|folder| mode(folder) & 0o001 == 0);
    closed.or((mode(&real) & 0o004 == 0).then_some(real.as_path())).map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::time::Duration;

    use super::*;

    fn program(path: PathBuf) -> Program {
        Program {
            path,
            is_this_one: false,
            arguments: Vec::new(),
            python: None,
            model_folder: None,
            environment: Vec::new(),
            drain_timeout: Duration::from_secs(15),
            run_as: None,
        }
    }

    #[test]
    fn a_file_in_a_closed_folder_is_hidden_from_others() {
        let tree = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let folder = tree.path().join("closed");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("program"), "").unwrap();
        let open = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        open(tree.path(), 0o755);
        open(&folder, 0o700);
        open(&folder.join("program"), 0o755);
        let hidden = hidden_from_others(&folder.join("program")).unwrap();
        assert!(fs::canonicalize(&folder).unwrap().starts_with(&hidden), "{}", hidden.display());
        // Whatever folders it is in, as far as this test can tell.
        open(&folder, 0o755);
        let above = fs::canonicalize(tree.path()).unwrap();
        let still = hidden_from_others(&folder.join("program"));
        assert!(still.is_none_or(|hidden| above.starts_with(hidden)));
    }

    #[test]
    fn what_could_not_run_is_refused_with_what_to_do() {
        let refusal =
            |scope, keeper, program: &Program| check(scope, keeper, program).unwrap_err().to_string();
        let missing = program("/no/such/gateway".into());
        let said = refusal(Scope::User, Keeper::Systemd, &missing);
        assert!(said.contains("/no/such/gateway") && said.contains("--program"), "{said}");
        let tree = tempfile::tempdir_in("/tmp").unwrap();
        let file = tree.path().join("gateway");
        fs::write(&file, "").unwrap();
        let temporary = program(file);
        assert!(check(Scope::User, Keeper::Systemd, &temporary).is_ok());
        let said = refusal(Scope::System, Keeper::Systemd, &temporary);
        assert!(said.contains("temporary"), "{said}");
        let mut named = program("/usr/bin/env".into());
        assert!(check(Scope::System, Keeper::Systemd, &named).is_ok());
        named.run_as = Some("no-such-user".to_owned());
        for keeper in [Keeper::Systemd, Keeper::Launchd] {
            let said = refusal(Scope::System, keeper, &named);
            assert!(said.contains("no-such-user") && said.contains("--run-as"), "{said}");
        }
    }
}
