//! The command line with its meaning: validated, nested, one `Config` per subsystem.

mod service;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cli::{FaultFlags, ModelFlags, ModelsFlags, ServeFlags};
use crate::error::StartError;
use crate::model::{Compute, CpuWeights, Device, GpuDtype};
use crate::{catalog, http, manager, model, pool, scheduler, supervisor};

/// Everything the process needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// The HTTP server.
    pub http: http::Config,
    /// The library that it configures.
    pub manager: manager::Config,
    /// Form of the log lines.
    pub log_format: LogFormat,
}

/// Form of the log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl LogFormat {
    /// The format that a flag names, if it does. It is needed before everything else, to say what is wrong with that.
    #[must_use]
    pub fn from_flag(text: &str) -> Option<Self> {
        match text.trim() {
            "text" => Some(Self::Text),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

impl Config {
    /// Gives the flags their meaning.
    ///
    /// # Errors
    ///
    /// [`StartError::Usage`] with one line for each value that is out of range.
    pub fn from_flags(flags: &ServeFlags) -> Result<Self, StartError> {
        let mut check = Check { problems: Vec::new() };
        let config = Self {
            http: http_config(&mut check, flags),
            manager: manager::Config {
                request_timeout: check.time("--request-timeout", &flags.request_timeout, MILLISECOND, HOUR),
                model: model::Config {
                    model: check.name("--model", &flags.model),
                    revision: check.revision(flags.revision.as_deref(), &flags.model),
                    served_name: flags
                        .served_model_name
                        .as_deref()
                        .map(|name| check.name("--served-model-name", name)),
                    compute: Compute {
                        device: check.one_of("--device", &flags.device, Device::ALL, Device::name),
                        cpu_weights: check.one_of(
                            "--cpu-weights",
                            &flags.cpu_weights,
                            CpuWeights::ALL,
                            CpuWeights::name,
                        ),
                        gpu_dtype: check.one_of(
                            "--gpu-dtype",
                            &flags.gpu_dtype,
                            GpuDtype::ALL,
                            GpuDtype::name,
                        ),
                    },
                },
                scheduler: scheduler::Config {
                    max_batch_tokens: match flags.max_batch_tokens.trim() {
                        "auto" => None,
                        text => Some(check.number("--max-batch-tokens", text, 1, 1 << 17)),
                    },
                    batch_wait: check.time("--batch-wait", &flags.batch_wait, Duration::ZERO, SECOND),
                    max_queue_tokens: check.number(
                        "--max-queue-tokens",
                        &flags.max_queue_tokens,
                        1,
                        1_000_000_000,
                    ),
                    prune_interval: check.time("--prune-interval", &flags.prune_interval, MILLISECOND, HOUR),
                },
                pool: pool::Config {
                    max_inflight_per_worker: check.number(
                        "--max-inflight-per-worker",
                        &flags.max_inflight_per_worker,
                        1,
                        64,
                    ),
                    poison_memory: check.time(
                        "--poison-memory",
                        &flags.faults.poison_memory,
                        Duration::ZERO,
                        24 * HOUR,
                    ),
                },
                supervisor: supervisor::Config {
                    workers: flags.workers.as_deref().map(|text| check.number("--workers", text, 1, 64)),
                    ..check.faults(&flags.faults)
                },
                python: flags.python.as_deref().map(PathBuf::from),
                ..manager::Config::default()
            },
            log_format: LogFormat::from_flag(&flags.log_format).unwrap_or_else(|| {
                check.problem("--log-format", &flags.log_format, "`text` or `json`");
                LogFormat::Text
            }),
        };
        if check.problems.is_empty() { Ok(config) } else { Err(StartError::Usage(check.problems)) }
    }
}

impl catalog::Config {
    /// Gives the flags of a `models` command their meaning.
    ///
    /// # Errors
    ///
    /// [`StartError::Usage`] with one line for each value that is out of range.
    pub fn from_flags(flags: &ModelsFlags) -> Result<Self, StartError> {
        let mut check = Check { problems: Vec::new() };
        let mut wanted = |flags: &ModelFlags| catalog::Wanted {
            model: check.name("--model", &flags.model),
            revision: check.revision(flags.revision.as_deref(), &flags.model),
        };
        let (action, environment) = match flags {
            ModelsFlags::List { json, environment } => (catalog::Action::List { json: *json }, environment),
            ModelsFlags::Pull(flags) => (catalog::Action::Pull(wanted(flags)), &flags.environment),
            ModelsFlags::Path(flags) => (catalog::Action::Path(wanted(flags)), &flags.environment),
        };
        let python = environment.python.as_deref().map(PathBuf::from);
        let config = Self { action, python, show_progress: false };
        if check.problems.is_empty() { Ok(config) } else { Err(StartError::Usage(check.problems)) }
    }
}

fn http_config(check: &mut Check, flags: &ServeFlags) -> http::Config {
    let limits = &flags.limits;
    let max_body_bytes = check.number("--max-body-bytes", &limits.max_body_bytes, 1 << 10, 1 << 30);
    let least = 10 * MILLISECOND;
    http::Config {
        listen: check.address("--listen", &flags.listen, flags.allow_remote),
        allow_remote: flags.allow_remote,
        allowed_hosts: flags.allowed_host.iter().map(|name| check.host(name)).collect(),
        max_body_bytes,
        max_bodies_bytes: check.number(
            "--max-bodies-bytes",
            &limits.max_bodies_bytes,
            max_body_bytes,
            1 << 40,
        ),
        max_response_bytes: check.number(
            "--max-response-bytes",
            &limits.max_response_bytes,
            1 << 20,
            1 << 40,
        ),
        header_timeout: check.time("--header-timeout", &limits.header_timeout, least, HOUR),
        idle_timeout: check.time("--idle-timeout", &limits.idle_timeout, least, HOUR),
        body_timeout: check.time("--body-timeout", &limits.body_timeout, least, HOUR),
        write_timeout: check.time("--write-timeout", &limits.write_timeout, least, HOUR),
        discard_timeout: check.time("--discard-timeout", &limits.discard_timeout, Duration::ZERO, MINUTE),
        drain_timeout: check.time("--drain-timeout", &flags.drain_timeout, Duration::ZERO, HOUR),
    }
}

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// Collects every problem, so that a person can fix them all at once.
struct Check {
    problems: Vec<String>,
}

impl Check {
    fn problem(&mut self, flag: &str, value: &str, wanted: &str) {
        let variable = flag.trim_start_matches("--").replace('-', "_").to_uppercase();
        self.problems.push(format!("`{flag}` (or AKIDB_{variable}) is `{value}`: it must be {wanted}"));
    }

    fn number(&mut self, flag: &str, text: &str, least: usize, most: usize) -> usize {
        match text.trim().parse::<usize>() {
            Ok(number) if (least..=most).contains(&number) => number,
            _ => {
                self.problem(flag, text, &format!("a whole number from {least} to {most}"));
                least
            }
        }
    }

    fn time(&mut self, flag: &str, text: &str, least: Duration, most: Duration) -> Duration {
        match humantime::parse_duration(text.trim()) {
            Ok(time) if (least..=most).contains(&time) => time,
            _ => {
                let least = humantime::format_duration(least);
                let most = humantime::format_duration(most);
                self.problem(flag, text, &format!("a time from {least} to {most}, such as `30s` or `500ms`"));
                most_patient()
            }
        }
    }

    fn faults(&mut self, flags: &FaultFlags) -> supervisor::Config {
        let hundredth = 10 * MILLISECOND;
        supervisor::Config {
            workers: None,
            start_timeout: self.time("--start-timeout", &flags.start_timeout, SECOND, HOUR),
            start_heartbeat_timeout: self.time(
                "--start-heartbeat-timeout",
                &flags.start_heartbeat_timeout,
                30 * MILLISECOND,
                HOUR,
            ),
            heartbeat_timeout: self.time(
                "--heartbeat-timeout",
                &flags.heartbeat_timeout,
                30 * MILLISECOND,
                HOUR,
            ),
            progress_timeout: match flags.progress_timeout.trim() {
                "auto" => None,
                text => Some(self.time("--progress-timeout", text, hundredth, HOUR)),
            },
            stall_timeout: self.time("--stall-timeout", &flags.stall_timeout, hundredth, HOUR),
            backoff_first: self.time("--backoff-first", &flags.backoff_first, MILLISECOND, HOUR),
            backoff_longest: self.time("--backoff-longest", &flags.backoff_longest, MILLISECOND, HOUR),
            crash_loop_window: self.time("--crash-loop-window", &flags.crash_loop_window, MILLISECOND, HOUR),
            crash_loop_wait: self.time("--crash-loop-wait", &flags.crash_loop_wait, MILLISECOND, HOUR),
            exit_patience: self.time("--exit-patience", &flags.exit_patience, Duration::ZERO, HOUR),
            memory_limit_bytes: self.size("--worker-memory-limit", &flags.worker_memory_limit),
            memory_interval: self.time("--memory-interval", &flags.memory_interval, hundredth, HOUR),
            max_batches: match flags.worker_max_batches.trim() {
                "none" => None,
                text => Some(self.number("--worker-max-batches", text, 1, 1_000_000_000_000) as u64),
            },
        }
    }

    /// A size in bytes with an optional unit; `none` is no limit.
    fn size(&mut self, flag: &str, text: &str) -> Option<u64> {
        let units = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("B", 0), ("", 0)];
        let trimmed = text.trim();
        if trimmed == "none" {
            return None;
        }
        let size = units.iter().find_map(|(unit, shift)| {
            let number: u64 = trimmed.strip_suffix(unit)?.trim().parse().ok()?;
            number.checked_mul(1 << shift).filter(|bytes| *bytes > 0)
        });
        if size.is_none() {
            self.problem(flag, text, "`none` or a size, such as `800MiB` or `2GiB`");
        }
        size
    }

    fn address(&mut self, flag: &str, text: &str, allow_remote: bool) -> SocketAddr {
        let wanted = match text.trim().replacen("localhost:", "127.0.0.1:", 1).parse::<SocketAddr>() {
            Ok(address) if allow_remote || address.ip().to_canonical().is_loopback() => return address,
            Ok(_) => {
                "a loopback address such as `127.0.0.1:8080`, unless `--allow-remote` is given: whoever reaches it may use it"
            }
            Err(_) => "an IP address and a port, such as `127.0.0.1:8080` or `[::1]:8080`",
        };
        self.problem(flag, text, wanted);
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    fn host(&mut self, text: &str) -> String {
        let name = text.trim();
        if http::origin::HostName::parse(name).is_none() {
            let shown = name.escape_debug().to_string();
            self.problem("--allowed-host", &shown, "a host name or an IP address, without scheme and port");
        }
        name.to_owned()
    }

    fn revision(&mut self, revision: Option<&str>, model: &str) -> Option<String> {
        let revision = self.name("--revision", revision?);
        if Path::new(model).is_dir() {
            self.problem("--revision", &revision, &format!("left out, because `{model}` is a directory"));
        }
        Some(revision)
    }

    /// The one of several that has this name.
    fn one_of<T: Copy + Default, const N: usize>(
        &mut self,
        flag: &str,
        text: &str,
        known: [T; N],
        name: fn(T) -> &'static str,
    ) -> T {
        known.into_iter().find(|one| name(*one) == text.trim()).unwrap_or_else(|| {
            let names: Vec<String> = known.into_iter().map(|one| format!("`{}`", name(one))).collect();
            self.problem(flag, text, &names.join(" or "));
            T::default()
        })
    }

    fn name(&mut self, flag: &str, text: &str) -> String {
        if text.trim().is_empty() || text.chars().any(char::is_control) {
            self.problem(flag, &text.escape_debug().to_string(), "a name of printable characters");
        }
        text.to_owned()
    }
}

fn most_patient() -> Duration {
    HOUR
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Command;

    fn command(arguments: &[&str]) -> Result<Command, clap::Error> {
        let arguments = std::iter::once("akidb-gateway").chain(arguments.iter().copied());
        crate::cli::parse(arguments.map(Into::into))
    }

    fn config(arguments: &[&str]) -> Result<Config, StartError> {
        match command(arguments).unwrap() {
            Command::Serve(flags) => Config::from_flags(&flags),
            Command::Models(_) | Command::Service(_) => panic!("{arguments:?} is no `serve`"),
        }
    }

    fn models(arguments: &[&str]) -> Result<catalog::Config, StartError> {
        match command(arguments).unwrap() {
            Command::Models(flags) => catalog::Config::from_flags(&flags),
            Command::Serve(_) | Command::Service(_) => panic!("{arguments:?} is no `models`"),
        }
    }

    #[test]
    fn the_defaults_are_valid_and_loopback() {
        let config = config(&[]).unwrap();
        assert!(config.http.listen.ip().is_loopback());
        assert_eq!(config.manager.pool.max_inflight_per_worker, 2);
        assert_eq!(config.manager.request_timeout, Duration::from_secs(30));
    }

    #[test]
    fn every_bad_value_is_reported_at_once() {
        let error = config(&[
            "--workers=0",
            "--max-inflight-per-worker=many",
            "--request-timeout=30",
            "--listen=nowhere",
            "--log-format=xml",
            "--model=",
            "--worker-memory-limit=2GB",
            "--heartbeat-timeout=1ms",
            "--cpu-weights=int4",
            "--device=tpu",
            "--gpu-dtype=float8",
        ])
        .unwrap_err();
        let text = error.to_string();
        assert_eq!(text.lines().count(), 11, "{text}");
        let parts = [
            "`2GB`",
            "`int4`",
            "`1ms`",
            "`0`",
            "`many`",
            "`30`",
            "`nowhere`",
            "`xml`",
            "AKIDB_MODEL",
            "(or AKIDB_DEVICE) is `tpu`: it must be `auto` or `gpu` or `cpu`",
            "(or AKIDB_GPU_DTYPE) is `float8`",
        ];
        for part in parts {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert_eq!(error.exit_code(), crate::error::ExitCode::Usage);
    }

    #[test]
    fn an_allowed_host_is_a_name_or_an_address_without_more() {
        let hosts = |arguments: &[&str]| config(arguments).map(|config| config.http.allowed_hosts);
        let several = ["--allowed-host=embed.example.com,10.0.0.1", "--allowed-host", "[fe80::1]"];
        assert_eq!(hosts(&several).unwrap(), ["embed.example.com", "10.0.0.1", "[fe80::1]"]);
        for bad in ["http://embed.example.com", "embed.example.com:8080", "*.example.com", "", "a b"] {
            let error = hosts(&["--allowed-host", bad]).unwrap_err().to_string();
            assert!(error.contains("AKIDB_ALLOWED_HOST") && error.contains(&format!("`{bad}`")), "{error}");
        }
    }

    #[test]
    fn weights_are_float32_on_a_cpu_unless_somebody_says_otherwise() {
        let weights = |arguments: &[&str]| config(arguments).unwrap().manager.model.compute.cpu_weights;
        assert_eq!(weights(&[]), CpuWeights::Float32);
        assert_eq!(weights(&["--cpu-weights", "float32"]), CpuWeights::Float32);
        assert_eq!(weights(&["--cpu-weights", "quantized"]), CpuWeights::Quantized);
    }

    #[test]
    fn a_gpu_is_used_where_there_is_one_and_computes_in_float16() {
        let compute = |arguments: &[&str]| config(arguments).unwrap().manager.model.compute;
        assert_eq!(compute(&[]), Compute::default());
        assert_eq!(compute(&[]).flags().join(" "), "--device auto --cpu-weights float32 --gpu-dtype float16");
        let all = compute(&["--device=gpu", "--cpu-weights=quantized", "--gpu-dtype=stored"]);
        assert_eq!(all.flags().join(" "), "--device gpu --cpu-weights quantized --gpu-dtype stored");
        assert!(!compute(&["--device=cpu"]).is_on_unified_gpu());
    }

    #[test]
    fn a_memory_limit_has_a_unit_or_is_none() {
        let limit = |text: &str| {
            config(&[&format!("--worker-memory-limit={text}")]).unwrap().manager.supervisor.memory_limit_bytes
        };
        assert_eq!(limit("none"), None);
        assert_eq!(limit("2GiB"), Some(2 << 30));
        assert_eq!(limit("800 MiB"), Some(800 << 20));
        assert_eq!(limit("1000000"), Some(1_000_000));
    }

    #[test]
    fn serve_is_the_default_command_and_flags_may_stand_on_both_sides_of_it() {
        for arguments in [
            &["--workers=3", "--model=all-minilm-l6-v2"][..],
            &["serve", "--workers=3", "--model=all-minilm-l6-v2"],
            &["--workers", "3", "serve", "--model", "all-minilm-l6-v2"],
            &["--workers", "3", "--model", "all-minilm-l6-v2", "serve"],
        ] {
            let config = config(arguments).unwrap();
            assert_eq!(config.manager.supervisor.workers, Some(3), "{arguments:?}");
            assert_eq!(config.manager.model.model, "all-minilm-l6-v2", "{arguments:?}");
        }
    }

    #[test]
    fn a_models_command_comes_first_and_has_flags_of_its_own() {
        let pull = models(&["models", "pull", "owner/name", "--revision", "v1", "--python", "p"]).unwrap();
        assert_eq!(pull.python.as_deref(), Some(Path::new("p")));
        let wanted = catalog::Wanted { model: "owner/name".to_owned(), revision: Some("v1".to_owned()) };
        assert_eq!(pull.action, catalog::Action::Pull(wanted));
        let default = catalog::Wanted { model: "qwen3-0.6b-4bit".to_owned(), revision: None };
        assert_eq!(models(&["models", "path"]).unwrap().action, catalog::Action::Path(default));
        let list = models(&["models", "list", "--json"]).unwrap();
        assert_eq!(list.action, catalog::Action::List { json: true });
        for wrong in [&["models"][..], &["models", "list", "x"], &["--workers=2", "models"]] {
            assert!(command(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_directory_has_no_revision() {
        for arguments in [&["--model", "/", "--revision", "v1"][..], &["--revision="]] {
            let error = config(arguments).unwrap_err().to_string();
            assert!(error.contains("`--revision` (or AKIDB_REVISION)"), "{error}");
        }
        let error = models(&["models", "pull", "/", "--revision", "v1"]).unwrap_err().to_string();
        assert!(error.ends_with("it must be left out, because `/` is a directory"), "{error}");
        assert_eq!(config(&["--revision", "v1"]).unwrap().manager.model.revision.as_deref(), Some("v1"));
    }

    #[test]
    fn other_machines_are_let_in_only_when_somebody_says_so() {
        for address in ["0.0.0.0:80", "[::]:80", "192.168.1.2:80", "[::ffff:10.0.0.1]:80"] {
            let listen = format!("--listen={address}");
            let refused = config(&[&listen]).unwrap_err().to_string();
            assert!(refused.contains("--allow-remote") && refused.contains(address), "{refused}");
            assert_eq!(config(&[&listen, "--allow-remote"]).unwrap().http.listen.to_string(), address);
        }
        for address in ["127.0.0.1:80", "127.9.9.9:80", "localhost:80", "[::1]:80", "[::ffff:127.0.0.1]:80"] {
            assert!(config(&[&format!("--listen={address}")]).is_ok(), "{address}");
        }
    }

    #[test]
    fn all_bodies_together_may_take_no_less_than_one() {
        let error = config(&["--max-body-bytes=300000000"]).unwrap_err().to_string();
        assert!(error.contains("--max-bodies-bytes") && error.contains("from 300000000 to"), "{error}");
    }
}
