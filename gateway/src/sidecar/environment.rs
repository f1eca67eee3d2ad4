//! The environment variables that Python gets: an allow list, because the rest may hold keys, passwords in proxies'
//! addresses, and settings that change which code runs.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// What workers get by name.
const NAMES: [&str; 8] =
    ["PATH", "HOME", "USER", "TMPDIR", "LANG", "XDG_CACHE_HOME", "CC", "LD_LIBRARY_PATH"];
/// What workers get by the beginning of its name.
const PREFIXES: [&str; 8] = ["LC_", "OMP_", "OPENBLAS_", "MLX_", "CUDA_", "NVIDIA_", "DYLD_", "AKIDB_"];
/// What is never given to a worker, whatever it starts with.
const SECRETS: [&str; 4] = ["KEY", "TOKEN", "SECRET", "PASSWORD"];
/// What only those get who ask the hub, by the beginning of its name. `SSL_CERT_FILE` and `SSL_CERT_DIR` are what the
/// hub's library obeys; it does not know `REQUESTS_CA_BUNDLE` and `CURL_CA_BUNDLE`.
const HUB_PREFIXES: [&str; 2] = ["HF_", "SSL_"];
/// The same, by the end of its name, in small or capital letters.
const HUB_SUFFIX: &str = "_PROXY";

type Variable = (OsString, OsString);

/// What a worker gets of the gateway's variables. `may_run` judges a folder of the `PATH`.
pub(super) fn for_workers(
    variables: impl IntoIterator<Item = Variable>,
    may_run: impl Fn(&Path) -> bool,
) -> Vec<Variable> {
    let allowed = variables.into_iter().filter(|(name, _)| is_for_workers(name));
    allowed
        .filter_map(|(name, value)| {
            let value = without_current_folder(&name, &value, &may_run)?;
            Some((name, value))
        })
        .collect()
}

/// What those get who ask the hub, besides what workers get.
pub(super) fn for_hub(variables: impl IntoIterator<Item = Variable>) -> Vec<Variable> {
    variables.into_iter().filter(|(name, _)| is_for_hub(name)).collect()
}

fn is_for_workers(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    let upper = name.to_uppercase();
    let is_allowed = NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    is_allowed && !SECRETS.iter().any(|secret| upper.contains(secret))
}

fn is_for_hub(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    HUB_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) || name.to_uppercase().ends_with(HUB_SUFFIX)
}

/// Takes out of a variable what would mean another place in another current folder: an empty element of a search path,
/// as in `LD_LIBRARY_PATH=/opt/lib:`, is the current folder. `None` where nothing is left.
fn without_current_folder(name: &OsStr, value: &OsStr, may_run: impl Fn(&Path) -> bool) -> Option<OsString> {
    let name = name.to_str().unwrap_or_default();
    match name {
        "PATH" => only_folders(value, b":", |folder| folder.is_absolute() && may_run(folder)),
        // The loader takes both signs.
        "LD_LIBRARY_PATH" => only_folders(value, b":;", Path::is_absolute),
        _ if name.starts_with("DYLD_") && name.ends_with("_PATH") => {
            only_folders(value, b":", Path::is_absolute)
        }
        "HOME" | "TMPDIR" | "XDG_CACHE_HOME" => Path::new(value).is_absolute().then(|| value.to_owned()),
        "CC" => {
            let program = value.as_bytes().trim_ascii_start().split(u8::is_ascii_whitespace).next()?;
            (!program.contains(&b'/') || program.starts_with(b"/")).then(|| value.to_owned())
        }
        _ => Some(value.to_owned()),
    }
}

fn only_folders(value: &OsStr, separators: &[u8], is_wanted: impl Fn(&Path) -> bool) -> Option<OsString> {
    let folders = value.as_bytes().split(|byte| separators.contains(byte));
    let wanted: Vec<&[u8]> =
        folders.filter(|folder| is_wanted(Path::new(OsStr::from_bytes(folder)))).collect();
    (!wanted.is_empty()).then(|| OsString::from_vec(wanted.join(&b':')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(all: &[(&str, &str)]) -> Vec<Variable> {
        all.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect()
    }

    fn names(all: &[Variable]) -> Vec<&str> {
        all.iter().map(|(name, _)| name.to_str().unwrap()).collect()
    }

    #[test]
    fn workers_get_what_the_list_names_and_no_secret() {
        let allowed = [
            "PATH",
            "HOME",
            "USER",
            "TMPDIR",
            "LANG",
            "LC_ALL",
            "LC_CTYPE",
            "XDG_CACHE_HOME",
            "CC",
            "OMP_NUM_THREADS",
            "OPENBLAS_CORETYPE",
            "MLX_METAL_DEBUG",
            "CUDA_VISIBLE_DEVICES",
            "NVIDIA_VISIBLE_DEVICES",
            "LD_LIBRARY_PATH",
            "DYLD_LIBRARY_PATH",
            "AKIDB_CHAOS",
            "AKIDB_WORKERS",
        ];
        let refused = [
            "HF_TOKEN",
            "HF_HOME",
            "https_proxy",
            "HTTPS_PROXY",
            "NO_PROXY",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_PROFILE",
            "OPENAI_API_KEY",
            "PYTHONPATH",
            "PYTHONHOME",
            "PYTHONUTF8",
            "PYTHONHASHSEED",
            "VIRTUAL_ENV",
            "LD_PRELOAD",
            "LD_AUDIT",
            "GCONV_PATH",
            "BASH_ENV",
            "SSH_AUTH_SOCK",
            "SSL_CERT_FILE",
            "AKIDB_API_KEY",
            "AKIDB_api_keys",
            "AKIDB_TOKEN",
            "AKIDB_MY_SECRET_X",
            "AKIDB_PASSWORD",
            "CUDA_API_KEY",
            "path",
            "OPENSSL_CONF",
            "LOGNAME",
        ];
        let all: Vec<_> = allowed.iter().chain(&refused).map(|name| (*name, "/x")).collect();
        assert_eq!(names(&for_workers(variables(&all), |_| true)), allowed);
    }

    #[test]
    fn who_asks_the_hub_gets_its_settings_proxies_and_certificates_besides() {
        let allowed = [
            "HF_TOKEN",
            "HF_HOME",
            "HF_ENDPOINT",
            "https_proxy",
            "HTTPS_PROXY",
            "all_proxy",
            "NO_PROXY",
            "SSL_CERT_FILE",
            "SSL_CERT_DIR",
        ];
        let refused = [
            "AWS_SECRET_ACCESS_KEY",
            "PYTHONPATH",
            "LD_PRELOAD",
            "GITHUB_TOKEN",
            "AKIDB_API_KEY",
            "SSLKEYLOGFILE",
        ];
        let all: Vec<_> = allowed.iter().chain(&refused).map(|name| (*name, "x")).collect();
        assert_eq!(names(&for_hub(variables(&all))), allowed);
    }

    #[test]
    fn nothing_that_is_passed_on_means_the_current_folder() {
        let given = [
            ("PATH", ".:/usr/bin::bin:/open:/bin"),
            ("LD_LIBRARY_PATH", "/opt/lib:;./lib;/lib"),
            ("DYLD_FALLBACK_LIBRARY_PATH", ":"),
            ("HOME", "home"),
            ("TMPDIR", "."),
            ("XDG_CACHE_HOME", "cache"),
            ("CC", "./cc -O2"),
            ("LANG", "C"),
        ];
        let passed = for_workers(variables(&given), |folder| folder != Path::new("/open"));
        assert_eq!(
            passed,
            variables(&[("PATH", "/usr/bin:/bin"), ("LD_LIBRARY_PATH", "/opt/lib:/lib"), ("LANG", "C")])
        );
    }

    #[test]
    fn a_compiler_may_have_arguments() {
        for compiler in ["cc", "ccache gcc -I../include", "/usr/bin/cc", " env cc"] {
            let given = variables(&[("CC", compiler)]);
            assert_eq!(for_workers(given.clone(), |_| true), given);
        }
    }
}
