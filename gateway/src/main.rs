//! Parse, build, run, exit code; nothing else.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use akidb_gateway::cli::{self, ServeFlags};
use akidb_gateway::config::{Config, LogFormat};
use akidb_gateway::error::{self, StartError};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    match cli::parse(std::env::args_os()) {
        Ok(flags) => {
            let format = LogFormat::from_flag(&flags.log_format).unwrap_or(LogFormat::Text);
            start_log(format);
            run(&flags).unwrap_or_else(|error| {
                complain(&error, format);
                error.exit_code().into()
            })
        }
        Err(error) => {
            // Help and version are errors to clap, too, but not to the person who asked for them.
            let code = if error.use_stderr() { error::ExitCode::Usage } else { error::ExitCode::Success };
            let _ = error.print();
            code.into()
        }
    }
}

fn run(flags: &ServeFlags) -> Result<ExitCode, StartError> {
    let mut config = Config::from_flags(flags)?;
    config.manager.show_progress = std::io::stderr().is_terminal() && config.log_format == LogFormat::Text;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| StartError::System { action: "start the async runtime", source })?;
    let outcome = runtime.block_on(akidb_gateway::run(config));
    // Texts that are still being tokenized have nobody who waits for them.
    runtime.shutdown_timeout(Duration::from_millis(200));
    outcome?;
    Ok(error::ExitCode::Success.into())
}

/// Logs to standard error, and goes on serving when nobody can read it.
fn start_log(format: LogFormat) {
    let filter = EnvFilter::builder()
        .with_default_directive(tracing::level_filters::LevelFilter::INFO.into())
        .with_env_var("AKIDB_LOG")
        .from_env_lossy();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}

/// Says why the gateway ends, in the form of the log.
fn complain(error: &StartError, format: LogFormat) {
    match format {
        LogFormat::Text => drop(writeln!(std::io::stderr(), "error: {error}")),
        LogFormat::Json => {
            let exit_code = error.exit_code() as u8;
            tracing::error!(%error, exit_code, "the gateway cannot run");
        }
    }
}
