//! Rules of the house that a compiler does not check.

use std::path::{Path, PathBuf};

use crate::support;

/// Modules of the gateway, each before those that it may import.
const DOWNSTREAM: [&str; 18] = [
    "benchmark",
    "config",
    "cli",
    "catalog",
    "http",
    "shutdown",
    "manager",
    "supervisor",
    "scheduler",
    "pool",
    "tokenizer",
    "job",
    "model",
    "sidecar",
    "machine",
    "metrics",
    "error",
    "",
];

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let files = files.into_iter().filter(|file| file.extension().is_some_and(|end| end == "rs"));
    files.chain(folders.iter().flat_map(|folder| sources(folder))).collect()
}

/// The first name behind every `crate::` outside of tests.
fn imports(source: &str) -> Vec<String> {
    let code = source.split("#[cfg(test)]").next().unwrap_or_default();
    let code: String = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let mut names = Vec::new();
    for behind in code.split("crate::").skip(1) {
        let group = behind.strip_prefix('{').and_then(|group| group.split_once("};").map(|(names, _)| names));
        for part in group.unwrap_or(behind).split(if group.is_some() { "," } else { ";" }) {
            let name: String = part.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            names.push(name);
            if group.is_none() {
                break;
            }
        }
    }
    names
}

#[test]
fn no_module_imports_one_upstream_of_it() {
    let root = support::checkout().join("gateway/src");
    let rank = |name: &str| DOWNSTREAM.iter().position(|module| *module == name);
    let mut checked = 0;
    for file in sources(&root) {
        let relative = file.strip_prefix(&root).unwrap();
        let module =
            relative.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs");
        if module == "lib" || module == "main" {
            continue;
        }
        let own = rank(module).unwrap_or_else(|| panic!("module `{module}` has no place in the order"));
        for import in imports(&std::fs::read_to_string(&file).unwrap()) {
            // What `lib.rs` itself exports has a capital.
            if let Some(imported) = rank(&import).filter(|_| !import.is_empty()) {
                assert!(imported >= own, "{} imports `{import}`, which is upstream", relative.display());
                checked += 1;
            }
        }
    }
    assert!(checked > 30, "only {checked} imports were found");
}

#[test]
fn only_one_file_spawns_and_only_one_names_status_codes_of_errors() {
    let root = support::checkout().join("gateway/src");
    for file in sources(&root) {
        let source = std::fs::read_to_string(&file).unwrap();
        let code = source.split("#[cfg(test)]").next().unwrap();
        let name = file.strip_prefix(&root).unwrap().to_str().unwrap();
        assert!(!code.contains("Command::new") || name == "sidecar/process.rs", "{name} spawns");
        assert!(
            !code.contains("StatusCode::BAD_REQUEST") || name == "http/respond.rs",
            "{name} names a status"
        );
    }
}

#[test]
fn no_file_of_code_is_too_long_to_read() {
    for folder in ["gateway/src", "gateway/tests", "protocol/src", "protocol/tests"] {
        for file in sources(&support::checkout().join(folder)) {
            let lines = std::fs::read_to_string(&file).unwrap().lines().count();
            assert!(lines <= 500, "{} has {lines} lines: would two names be clearer?", file.display());
        }
    }
}

#[test]
fn every_row_of_the_fault_table_has_a_test_and_every_test_that_reliability_names_exists() {
    let tests: String = sources(&support::checkout().join("gateway"))
        .iter()
        .map(|file| std::fs::read_to_string(file).unwrap())
        .collect();
    for row in 1..=35 {
        assert!(tests.contains(&format!("fn row_{row:02}_")), "row {row} has no test");
    }
    let document = std::fs::read_to_string(support::checkout().join("docs/RELIABILITY.md")).unwrap();
    let mut checked = 0;
    for name in document.split('`').skip(1).step_by(2) {
        let Some((_module, test)) = name.split_once("::").filter(|(module, _)| !module.contains('/')) else {
            continue;
        };
        let test = test.trim_end_matches('*');
        assert!(tests.contains(&format!("fn {test}")) || test == "tests" || test.is_empty(), "{name}");
        checked += 1;
    }
    assert!(checked > 4, "only {checked} names were found");
}
