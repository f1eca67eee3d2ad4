//! Parse, build, run, exit code; nothing else.

use std::fmt::Debug;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use akidb_gateway::catalog;
use akidb_gateway::cli::{self, Command, ModelsFlags, ServeFlags, ServiceFlags};
use akidb_gateway::config::{Config, LogFormat};
use akidb_gateway::error::{self, StartError};
use akidb_gateway::inherited;
use akidb_gateway::panics;
use akidb_gateway::printable::{self, Printing};
use akidb_gateway::service;
use tokio::runtime::Runtime;
use tracing::field::Field;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::format;

/// glibc keeps what was freed for later; this gives it back to the system.
#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Log lines that may wait to be written.
const MOST_LINES_WAITING: usize = 8192;

fn main() -> ExitCode {
    inherited::settle();
    match inherited::run_below_process_1() {
        None => run(),
        Some(Ok(code)) => code.into(),
        Some(Err(source)) => {
            let error = StartError::System { action: "start a process below process 1", source };
            exit_code(Err(error), complain_in_text)
        }
    }
}

fn run() -> ExitCode {
    match cli::parse(std::env::args_os()) {
        Ok(Command::Serve(flags)) => {
            let format = LogFormat::from_flag(&flags.log_format).unwrap_or(LogFormat::Text);
            let log = start_log(format);
            panics::log_without_messages();
            exit_code(serve(&flags), |error| complain(error, format, log))
        }
        Ok(Command::Models(flags)) => exit_code(models(&flags), complain_in_text),
        Ok(Command::Service(flags)) => exit_code(service(&flags), complain_in_text),
        Err(error) => {
            // Help and version are errors to clap, too, but not to the person who asked for them.
            let code = if error.use_stderr() { error::ExitCode::Usage } else { error::ExitCode::Success };
            let text = error.render().to_string();
            let _ = if error.use_stderr() {
                Printing::new(std::io::stderr(), printable::lines).write_all(text.as_bytes())
            } else {
                Printing::new(std::io::stdout(), printable::lines).write_all(text.as_bytes())
            };
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
    let mut notes = Printing::new(std::io::stderr(), printable::lines);
    let runtime = start_runtime()?;
    // A program gets a path as it is.
    if std::io::stdout().is_terminal() {
        let mut output = Printing::new(std::io::stdout(), printable::lines);
        runtime.block_on(catalog::run(config, &mut output, &mut notes))
    } else {
        runtime.block_on(catalog::run(config, &mut std::io::stdout(), &mut notes))
    }
}

fn service(flags: &ServiceFlags) -> Result<(), StartError> {
    let config = service::Config::from_flags(flags)?;
    let mut notes = Printing::new(std::io::stderr(), printable::lines);
    if std::io::stdout().is_terminal() {
        service::run(config, &mut Printing::new(std::io::stdout(), printable::lines), &mut notes)
    } else {
        service::run(config, &mut std::io::stdout(), &mut notes)
    }
}

fn start_runtime() -> Result<Runtime, StartError> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .and_then(|runtime| inherited::take_over_children(&runtime).map(|()| runtime))
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
        .with_target(false)
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => {
            let fields = format::debug_fn(write_field).delimited(" ");
            log.fmt_fields(fields).with_writer(writer).init();
        }
        LogFormat::Json => {
            let writer = move || Printing::new(writer.clone(), printable::json);
            log.json().flatten_event(true).with_writer(writer).init();
        }
    }
    guard
}

/// Writes a field of an event or a span: all that can hold text of others.
fn write_field(writer: &mut format::Writer<'_>, field: &Field, value: &dyn Debug) -> std::fmt::Result {
    let value = format!("{value:?}");
    let value = printable::line(&value);
    match (field.name(), writer.has_ansi_escapes()) {
        ("message", _) => write!(writer, "{value}"),
        (name, true) => write!(writer, "\u{1b}[3m{name}\u{1b}[0m\u{1b}[2m=\u{1b}[0m{value}"),
        (name, false) => write!(writer, "{name}={value}"),
    }
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
    let text = format!("error: {error}\n");
    let _ = Printing::new(std::io::stderr(), printable::lines).write_all(text.as_bytes());
}
