//! Rules of the house that a compiler does not check.

mod tokens;

use std::path::{Path, PathBuf};

use crate::support;

/// Modules of the gateway, each before those that it may import.
const DOWNSTREAM: [&str; 24] = [
    "benchmark",
    "config",
    "cli",
    "catalog",
    "service",
    "http",
    "shutdown",
    "inherited",
    "manager",
    "supervisor",
    "scheduler",
    "pool",
    "tokenizer",
    "job",
    "model",
    "sidecar",
    "trust",
    "machine",
    "metrics",
    "notify",
    "heart",
    "panics",
    "error",
    "printable",
];

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let files = files.into_iter().filter(|file| file.extension().is_some_and(|end| end == "rs"));
    files.chain(folders.iter().flat_map(|folder| sources(folder))).collect()
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
        for import in tokens::imported_modules(&std::fs::read_to_string(&file).unwrap(), relative) {
            // What `lib.rs` itself exports has a capital.
            if let Some(imported) = rank(&import) {
                assert!(imported >= own, "{} imports `{import}`, which is upstream", relative.display());
                checked += 1;
            }
        }
    }
    assert!(checked > 30, "only {checked} imports were found");
}

#[test]
fn only_one_file_spawns_workers_and_only_one_names_status_codes_of_errors() {
    let root = support::checkout().join("gateway/src");
    let (mut spawns, mut names_codes) = (Vec::new(), Vec::new());
    for file in sources(&root) {
        let source = std::fs::read_to_string(&file).unwrap();
        let name = file.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        for path in tokens::paths(&tokens::of(&source)) {
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            match path[..] {
                [.., "Command", "new"] => spawns.push(name.clone()),
                // `/health` and `/readyz` say with one how things are.
                [.., "StatusCode", code] if !["OK", "SERVICE_UNAVAILABLE"].contains(&code) => {
                    names_codes.push(name.clone());
                }
                _ => {}
            }
        }
    }
    names_codes.dedup();
    assert_eq!(
        (spawns, names_codes),
        (
            ["inherited.rs", "service/steps.rs", "sidecar/process.rs"].map(str::to_owned).to_vec(),
            vec!["http/error.rs".to_owned()]
        )
    );
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
