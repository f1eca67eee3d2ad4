//! Flags of the `service` commands.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// `akidb-gateway service`.
#[derive(Debug, Parser)]
#[command(
    name = "service",
    bin_name = "akidb-gateway service",
    about = "Run the gateway as a service of launchd or systemd",
    disable_help_subcommand = true,
    after_help = AFTER_HELP
)]
pub(super) struct Service {
    #[command(subcommand)]
    pub(super) flags: ServiceFlags,
}

/// One of the `service` commands, with its flags.
#[derive(Debug, Clone, Subcommand)]
pub enum ServiceFlags {
    /// Print the service's file: a property list for launchd, a unit for systemd
    #[command(after_help = AFTER_HELP)]
    Print {
        /// For whom and for what.
        #[command(flatten)]
        target: TargetFlags,
        /// What the service runs.
        #[command(flatten)]
        program: ProgramFlags,
    },
    /// Install the service and start it, now and at every boot or login
    ///
    /// An installed service is updated and restarted.
    #[command(after_help = AFTER_HELP)]
    Install {
        /// For whom and for what.
        #[command(flatten)]
        target: TargetFlags,
        /// What the service runs.
        #[command(flatten)]
        program: ProgramFlags,
        /// Print what would be done, and do nothing else
        #[arg(long)]
        dry_run: bool,
    },
    /// Stop the service and remove its file
    Uninstall {
        /// For whom and for what.
        #[command(flatten)]
        target: TargetFlags,
        /// Print what would be done, and do nothing else
        #[arg(long)]
        dry_run: bool,
    },
    /// Show whether the service is installed and running; the exit code is 3 if it is not running
    Status {
        /// For whom and for what.
        #[command(flatten)]
        target: TargetFlags,
    },
}

/// For whom the service runs, and what keeps it.
#[derive(Debug, Clone, Args)]
pub struct TargetFlags {
    /// A system service, run as an unprivileged user; the default for root
    #[arg(long, conflicts_with = "user")]
    pub system: bool,

    /// A service of your own user; the default for everyone else
    #[arg(long)]
    pub user: bool,

    /// Service manager
    ///
    /// Default: launchd on macOS, systemd elsewhere. `print` and `install --dry-run` accept the other one, too.
    #[arg(long = "for", value_enum, value_name = "KEEPER")]
    pub keeper: Option<KeeperName>,
}

/// What keeps services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KeeperName {
    /// macOS
    Launchd,
    /// Linux
    Systemd,
}

/// What the service runs.
#[derive(Debug, Clone, Args)]
pub struct ProgramFlags {
    /// The gateway's binary. Default: this one
    #[arg(long, value_name = "PATH")]
    pub program: Option<PathBuf>,

    /// User that a system service runs as. Default: allocated by systemd (DynamicUser), or `_akidb` with launchd
    #[arg(long, value_name = "USER", conflicts_with = "user")]
    pub run_as: Option<String>,

    /// Flags of the gateway, after `--`
    #[arg(last = true, value_name = "FLAGS")]
    pub flags: Vec<OsString>,
}

const AFTER_HELP: &str = "\
AKIDB_* variables that are set are copied into the service, except those whose names contain KEY, TOKEN, SECRET or \
PASSWORD: put those in the files named in the service file, readable by root only.

Examples:
  akidb-gateway service print --system --for systemd -- --model all-minilm-l6-v2 --workers 4
  akidb-gateway service install --user -- --model all-minilm-l6-v2
  akidb-gateway service status

Exit codes: 0 done, 3 the service is not running, 64 wrong usage, 70 launchd or systemd failed, 73 a file cannot be \
written, 78 the service could not run.";
