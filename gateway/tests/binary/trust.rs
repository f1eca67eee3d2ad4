//! Which Python runs, and which is passed over because others could have put it there.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::run_to_end;

/// A private folder with the binary alone in `bin`, and places for environments.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::create_dir(place.at("bin")).unwrap();
        fs::copy(env!("CARGO_BIN_EXE_akidb-gateway"), place.at("bin/akidb-gateway")).unwrap();
        place
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    /// Makes an environment whose Python says where it is instead of where a model is.
    fn environment(&self, path: &str) -> PathBuf {
        let folder = self.at(path);
        fs::create_dir_all(folder.join("bin")).unwrap();
        fs::write(folder.join("pyvenv.cfg"), "home = /usr/bin\n").unwrap();
        write_program(&folder.join("bin/akidb-sidecar"), "exit 1");
        write_program(&folder.join("bin/python"), &answer(&format!("/{path}")));
        folder
    }

    fn checkout(&self, path: &str) -> PathBuf {
        assert!(Path::new(path).is_relative() && !path.is_empty(), "a test stays within its folder");
        let environment = self.environment(format!("{path}/sidecar-py/.venv").trim_start_matches("./"));
        fs::write(environment.with_file_name("pyproject.toml"), "").unwrap();
        self.at(path)
    }

    /// Asks for the path of a model, which names the environment that was found.
    fn command(&self) -> Command {
        let mut command = Command::new(self.at("bin/akidb-gateway"));
        command
            .args(["models", "path", "x"])
            .env_clear()
            .env("PATH", self.at("nothing"))
            .current_dir(self.0.path());
        command
    }
}

/// A line of shell that answers like the sidecar, if it is run as that is.
fn answer(path: &str) -> String {
    format!(
        "case \"$*\" in '-I -X utf8 -m akidb_sidecar models '*) echo '{{\"path\": \"{path}\", \"source\": \"path\", \"revision\": null}}';; esac"
    )
}

fn write_program(file: &Path, line: &str) {
    fs::write(file, format!("#!/bin/sh\n{line}\n")).unwrap();
    set_mode(file, 0o755);
}

fn set_mode(file: &Path, mode: u32) {
    fs::set_permissions(file, Permissions::from_mode(mode)).unwrap();
}

fn found(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn refused(command: Command) -> String {
    let (code, stderr, _) = run_to_end(command);
    assert_eq!(code, 78, "{stderr}");
    stderr
}

#[test]
fn the_current_folder_and_its_ancestors_are_no_place_to_look() {
    let place = Place::new();
    let planted = place.checkout("planted");
    fs::create_dir_all(planted.join("deep/down")).unwrap();
    for folder in [planted.clone(), planted.join("deep/down"), planted.join("sidecar-py/.venv/bin")] {
        let mut command = place.command();
        command.current_dir(&folder).env("PATH", ".::bin");
        let said = refused(command);
        assert!(!said.contains("planted"), "{said}");
        let mut command = place.command();
        command.current_dir(&folder).env("VIRTUAL_ENV", "sidecar-py/.venv");
        assert!(refused(command).contains("not an absolute path"));
    }
}

#[test]
fn the_binarys_checkout_comes_first_then_its_folder_then_the_variable_then_the_path() {
    let place = Place::new();
    let on_path = place.environment("on-path");
    let mut command = place.command();
    command.env("PATH", on_path.join("bin"));
    assert_eq!(found(&mut command), "/on-path");
    command.env("VIRTUAL_ENV", place.environment("by-variable"));
    assert_eq!(found(&mut command), "/by-variable");
    place.environment("beside");
    symlink(place.at("beside/bin/akidb-sidecar"), place.at("bin/akidb-sidecar")).unwrap();
    assert_eq!(found(&mut command), "/beside");
    place.checkout(".");
    assert_eq!(found(&mut command), "/sidecar-py/.venv");
}

#[test]
fn what_every_user_can_write_is_passed_over_with_a_reason() {
    for open in ["env", "env/bin", "env/bin/python", "env/pyvenv.cfg", "outer", "outer/env"] {
        let place = Place::new();
        let environment = place.environment(if open.starts_with("outer") { "outer/env" } else { "env" });
        set_mode(&place.at(open), 0o777);
        let link = place.at("link");
        symlink(&environment, &link).unwrap();
        for named in [&environment, &link] {
            let mut command = place.command();
            command.env("VIRTUAL_ENV", named);
            let said = refused(command);
            assert!(said.contains(&format!("/{open}` is writable by every user")), "{open}: {said}");
            // The search goes on.
            let mut command = place.command();
            command.env("VIRTUAL_ENV", named).env("PATH", place.environment("good").join("bin"));
            assert_eq!(found(&mut command), "/good");
        }
        for python in ["python", environment.join("bin/python").to_str().unwrap()] {
            let mut command = place.command();
            command.env("PATH", environment.join("bin")).args(["--python", python]);
            assert!(refused(command).contains("every user"), "{open} {python}");
        }
    }
}

#[test]
fn what_is_passed_over_is_said_in_the_log() {
    let place = Place::new();
    set_mode(&place.environment("open"), 0o777);
    let mut command = place.command();
    command.env("VIRTUAL_ENV", place.at("open")).env("PATH", place.environment("good").join("bin"));
    let mut serving = Command::new(command.get_program());
    serving.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let (_, stderr, _) = run_to_end(serving);
    assert!(stderr.contains("skipping a Python environment") && stderr.contains("every user"), "{stderr}");
}

#[test]
fn a_group_may_write_and_a_sticky_folder_may_lie_above() {
    let place = Place::new();
    let environment = place.environment("sticky/group");
    set_mode(&environment, 0o775);
    set_mode(&place.at("sticky"), 0o1777);
    let mut command = place.command();
    command.env("VIRTUAL_ENV", &environment);
    assert_eq!(found(&mut command), "/sticky/group");
    set_mode(&environment, 0o1777);
    assert!(refused(command).contains("every user"));
}

#[test]
fn what_belongs_to_a_stranger_is_passed_over_unless_a_person_names_it() {
    let place = Place::new();
    let environment = place.environment("strange");
    let strange = Some(nix::unistd::Uid::from_raw(65533));
    if nix::unistd::chown(&environment, strange, None).is_err() {
        eprintln!("only root can give files away: strangers are not tested");
        return;
    }
    let mut command = place.command();
    command.env("VIRTUAL_ENV", &environment).env("PATH", environment.join("bin"));
    let said = refused(command);
    assert_eq!(said.matches("belongs to user 65533").count(), 2, "{said}");
    let mut command = place.command();
    command.arg("--python").arg(environment.join("bin/python"));
    assert_eq!(found(&mut command), "/strange");
    // Unless it is the owner of the gateway itself.
    nix::unistd::chown(&place.at("bin/akidb-gateway"), strange, None).unwrap();
    let mut command = place.command();
    command.env("VIRTUAL_ENV", &environment);
    assert_eq!(found(&mut command), "/strange");
}

#[test]
fn a_script_on_the_path_tells_its_python_and_is_not_run_itself() {
    let place = Place::new();
    let bin = place.at("local/bin");
    fs::create_dir_all(&bin).unwrap();
    let script = bin.join("akidb-sidecar");
    let mut command = place.command();
    command.env("PATH", &bin);
    // pipx, uv: a link, or a link to a link.
    symlink(place.environment("tools/akidb-sidecar").join("bin/akidb-sidecar"), place.at("between")).unwrap();
    symlink("../../between", &script).unwrap();
    assert_eq!(found(&mut command), "/tools/akidb-sidecar");
    // pip as root: a script outside of any environment.
    fs::remove_file(&script).unwrap();
    write_program(&place.at("python3.11"), &answer("/of-shebang"));
    fs::write(&script, format!("#!{} -s\n", place.at("python3.11").display())).unwrap();
    set_mode(&script, 0o755);
    assert_eq!(found(&mut command), "/of-shebang");
    set_mode(&place.at("python3.11"), 0o777);
    let (code, said, _) = run_to_end(command);
    assert!(code == 78 && said.contains("every user"), "{said}");
    // pyenv: a script that looks at the current folder for its Python.
    for line in ["#!/usr/bin/env bash", "#!/bin/sh", "#!python3", ""] {
        fs::write(&script, format!("{line}\nexit 1\n")).unwrap();
        let mut command = place.command();
        command.env("PATH", &bin);
        let said = refused(command);
        assert!(said.contains("akidb-sidecar`: it does not say which Python"), "{said}");
    }
}

#[test]
fn a_bare_name_is_looked_up_on_the_path_alone() {
    let place = Place::new();
    let good = place.environment("good");
    fs::copy(place.environment("planted").join("bin/python"), place.at("python")).unwrap();
    let mut command = place.command();
    command.args(["--python", "python"]).env("PATH", format!(".:{}", good.join("bin").display()));
    assert_eq!(found(&mut command), "/good");
    command.env("PATH", ".");
    assert!(refused(command).contains("`python` on the PATH"));
    let mut command = place.command();
    command.args(["--python", "./python"]);
    assert_eq!(found(&mut command), "/planted", "a path is what a person means");
}
