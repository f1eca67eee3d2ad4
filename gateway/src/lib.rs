//! `akidb-gateway` turns text into embedding vectors on the user's own machine.
//!
//! It owns HTTP, tokenization, scheduling, metrics and supervision; K Python processes, the *workers*, each
//! hold one MLX model and do nothing but the forward pass.
//!
//! # Layout
//!
//! A request takes one way through the house, and imports follow it:
//!
//! ```text
//! http -> http/dialects -> manager -> tokenizer
//!                           |
//!                           v
//!                       scheduler -> pool -> pool/connection -> akidb_protocol -> worker
//! ```
//!
//! * [`http`]: accepts connections, reads JSON, writes answers; the only part that knows status codes.
//! * [`manager`]: the library's front door, [`EmbeddingManager`].
//! * `tokenizer`: text to token ids, with the model's own `tokenizer.json`.
//! * [`scheduler`]: queues texts and forms batches.
//! * [`pool`]: the ready workers, and the batches of lost ones.
//! * [`supervisor`]: starts and restarts workers; not on the request path.
//! * `sidecar`: finds the Python environment; the only part that starts processes.
//! * [`model`]: which model, and what its files say.
//! * [`catalog`]: the `models` commands: which models there are, and where.
//! * [`service`]: the `service` commands: the gateway as a service of launchd or systemd.
//! * [`cli`], [`config`]: flags as typed, and what they mean.
//! * `job`: one text on its way, from the manager to a worker's answer.
//! * `benchmark`: the inner functions that benchmarks measure; no part of the API.
//! * [`inherited`]: what whoever starts the process must not decide.
//! * [`printable`]: other people's text, on its way to a terminal.
//! * `trust`: whose files may be run.
//! * `heart`, `notify`: whether the loops of the gateway turn, and what systemd is told of it.
//! * [`error`], `machine`, `metrics`, [`panics`], `shutdown`: leaves.
//!
//! # Example
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use akidb_gateway::{EmbeddingManager, manager, model};
//!
//! let manager = EmbeddingManager::new(manager::Config {
//!     model: model::Config { model: "all-minilm-l6-v2".to_owned(), ..model::Config::default() },
//!     ..manager::Config::default()
//! })
//! .await?;
//! let vectors = manager.embed(vec!["Hello world".to_owned()]).await?;
//! assert_eq!(vectors[0].len(), manager.model_info().dimension);
//! manager.stop().await;
//! # Ok(())
//! # }
//! ```

#[doc(hidden)]
pub mod benchmark;
pub mod catalog;
pub mod cli;
pub mod config;
pub mod error;
mod heart;
pub mod http;
pub mod inherited;
mod job;
mod machine;
pub mod manager;
mod metrics;
pub mod model;
mod notify;
pub mod panics;
pub mod pool;
pub mod printable;
pub mod scheduler;
pub mod service;
mod shutdown;
mod sidecar;
pub mod supervisor;
mod tokenizer;
mod trust;

use std::sync::Arc;

pub use akidb_protocol::Pooling;
pub use manager::{EmbedRequest, EmbeddingManager, Embeddings, ModelInfo, Prompt, TruncationDirection};

use config::Config;
use error::StartError;
use heart::Heart;
use metrics::Metrics;
use notify::Notifier;

/// Runs the gateway until a signal ends it: wires the parts, in one place.
///
/// # Errors
///
/// Whatever keeps the gateway from serving; see [`StartError`].
pub async fn run(config: Config) -> Result<(), StartError> {
    let signals = shutdown::Signals::install()?;
    let heart = Heart::default();
    let notifier = Notifier::start(heart.clone());
    let metrics = Arc::new(Metrics::new());
    let server = http::Server::bind(config.http, Arc::clone(&metrics))?;
    let manager = tokio::select! {
        manager = EmbeddingManager::with_parts(config.manager, metrics, &heart) => Arc::new(manager?),
        () = signals.stop_requested() => return Ok(()),
    };
    let reloading = tokio::spawn(reload_when_asked(signals.clone(), Arc::clone(&manager)));
    let outcome = server.serve(manager, signals, (&heart, notifier)).await;
    reloading.abort();
    outcome
}

/// Replaces the workers at every SIGHUP.
async fn reload_when_asked(mut signals: shutdown::Signals, manager: Arc<EmbeddingManager>) {
    loop {
        signals.reload_requested().await;
        manager.reload();
    }
}
