//! Parse, build, run, exit code; nothing else.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use akidb_gateway::catalog;
use akidb_gateway::cli::{self, Command, ModelsFlags, ServeFlags};
use akidb_gateway::config::{Config, LogFormat};
use akidb_gateway::error::{self, StartError};
use tokio::runtime::Runtime;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

/// Log lines that may wait to be written.
const MOST_LINES_WAITING: usize = 8192;

fn main() -> ExitCode {
    match cli::parse(std::env::args_os()) {
        Ok(Command::Serve(flags)) => {
            let format = LogFormat::from_flag(&flags.log_format).unwrap_or(LogFormat::Text);
            let log = start_log(format);
            exit_code(serve(&flags), |error| complain(error, format, log))
        }
        Ok(Command::Models(flags)) => exit_code(models(&flags), complain_in_text),
        Err(error) => {
            // Help and version are errors to clap, too, but not to the person who asked for them.
            let code = if error.use_stderr() { error::ExitCode::Usage } else { error::ExitCode::Success };
            let _ = error.print();
            code.into()
        }
    }
}

fn exit_code(outcome: Result<(), StartError>, complain: impl FnOnce(&StartError)) -> ExitCode {
    match outcome {
        Ok(()) => error::ExitCode::Success.into(),
        Err(error) => {
            complain(&error);
            error.exit_code().into()
        }
    }
}

fn serve(flags: &ServeFlags) -> Result<(), StartError> {
    let mut config = Config::from_flags(flags)?;
    config.manager.show_progress = std::io::stderr().is_terminal() && config.log_format == LogFormat::Text;
    let runtime = start_runtime()?;
    let outcome = runtime.block_on(akidb_gateway::run(config));
    // Texts that are still being tokenized have nobody who waits for them.
    runtime.shutdown_timeout(Duration::from_millis(200));
    outcome
}

fn models(flags: &ModelsFlags) -> Result<(), StartError> {
    let mut config = catalog::Config::from_flags(flags)?;
    config.show_progress = std::io::stderr().is_terminal();
    start_runtime()?.block_on(catalog::run(config, &mut std::io::stdout(), &mut std::io::stderr()))
}

fn start_runtime() -> Result<Runtime, StartError> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| StartError::System { action: "start the async runtime", source })
}

/// Logs to standard error, and goes on serving when nobody can write or read it: a thread of its own writes, and lines
/// that it cannot get rid of are dropped. What is left is written when the guard is dropped.
fn start_log(format: LogFormat) -> WorkerGuard {
    let (writer, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(MOST_LINES_WAITING)
        .lossy(true)
        .thread_name("log")
        .finish(std::io::stderr());
    let filter = EnvFilter::builder()
        .with_default_directive(tracing::level_filters::LevelFilter::INFO.into())
        .with_env_var("AKIDB_LOG")
        .from_env_lossy();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_target(false)
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    guard
}

/// Says why the gateway ends, in the form of the log.
fn complain(error: &StartError, format: LogFormat, log: WorkerGuard) {
    match format {
        LogFormat::Text => {
            drop(log); // so that it is the last line
            complain_in_text(error);
        }
        LogFormat::Json => {
            let exit_code = error.exit_code() as u8;
            tracing::error!(%error, exit_code, "the gateway cannot run");
        }
    }
}

fn complain_in_text(error: &StartError) {
    let _ = writeln!(std::io::stderr(), "error: {error}");
}
