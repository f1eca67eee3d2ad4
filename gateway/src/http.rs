//! The HTTP server: accepts connections, limits what they may cost, and routes requests.
//!
//! * `connection`: one client's connection, and how long each part of it may take.
//! * `framing`: whether a request states its length once.
//! * `routes`: which path is whose, and the way of a request from its head to its response.
//! * `request_id`, `head`, `origin`: what a request's head says: its id, time limit and encoding, host and origin.
//! * `body`: reads a body.
//! * `exchange`: a request for embeddings: read, parse, embed, write.
//! * `dialects`: the APIs that clients speak; `native` is `AkiDB`'s.
//! * `writer`, `content`: a response, written while the client takes it.
//! * `operations`: `/health`, `/livez`, `/readyz`, `/metrics`; `accept`: the format of `/metrics`.
//! * `error`: why a request is refused, and the one table from errors to status codes; `respond`: responses.
//! * `memory`: the memory that requests and responses in progress share.
//! * `context`: what all of these need.

mod accept;
mod body;
mod connection;
mod content;
mod context;
pub(crate) mod dialects;
pub(crate) mod error;
mod exchange;
mod framing;
mod head;
mod memory;
mod operations;
pub(crate) mod origin;
mod request_id;
mod respond;
mod routes;
pub(crate) mod writer;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::StartError;
use crate::heart::Heart;
use crate::machine;
use crate::manager::EmbeddingManager;
use crate::metrics::Metrics;
use crate::notify::Notifier;
use crate::shutdown::Signals;
use context::Context;

/// Descriptors kept for everything that is not a client's connection.
const RESERVED_DESCRIPTORS: u64 = 128;
/// Time in which requests that are given up at the end get their answers.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(1);
/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;
/// Pause after the system had nothing left for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// Least time between two lines of the log about that.
const ACCEPT_COMPLAINT_INTERVAL: Duration = Duration::from_secs(5);

/// What the server listens on and what a connection may cost.
#[derive(Debug, Clone)]
pub struct Config {
    /// Address and port; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Whether other machines may use the gateway, by whatever name they know it.
    pub allow_remote: bool,
    /// Names by which the gateway may be called, in addition to those that lead to this machine anyway.
    pub allowed_hosts: Vec<String>,
    /// Longest request body, in bytes.
    pub max_body_bytes: usize,
    /// Bytes that the bodies under way may take together.
    pub max_bodies_bytes: usize,
    /// Bytes that the answers under way may take together.
    pub max_response_bytes: usize,
    /// Time a client has to send the head of a request, from its first byte.
    pub header_timeout: Duration,
    /// Time a connection may stay open without a request.
    pub idle_timeout: Duration,
    /// Time a client has to send the body of a request.
    pub body_timeout: Duration,
    /// Time a client has to take some more of its answer.
    pub write_timeout: Duration,
    /// Time a client is listened to after an answer that came before it had sent everything.
    pub discard_timeout: Duration,
    /// Time admitted requests have to finish after a signal to stop.
    pub drain_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            allow_remote: false,
            allowed_hosts: Vec::new(),
            max_body_bytes: 16 * 1024 * 1024,
            max_bodies_bytes: 256 * 1024 * 1024,
            max_response_bytes: 256 * 1024 * 1024,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            discard_timeout: Duration::from_secs(1),
            drain_timeout: Duration::from_secs(15),
        }
    }
}

impl Config {
    fn limits(&self) -> connection::Limits {
        connection::Limits {
            header_timeout: self.header_timeout,
            idle_timeout: self.idle_timeout,
            write_timeout: self.write_timeout,
            discard_timeout: self.discard_timeout,
        }
    }
}

/// A bound address.
pub(crate) struct Server {
    config: Config,
    metrics: Arc<Metrics>,
    socket: TcpSocket,
}

impl Server {
    /// Takes the address, so that a port in use is noticed before anything is prepared. Clients are refused until
    /// [`Self::serve`] is called.
    pub(crate) fn bind(config: Config, metrics: Arc<Metrics>) -> Result<Self, StartError> {
        let bind = || {
            let socket = if config.listen.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            socket.set_reuseaddr(true)?;
            socket.bind(config.listen)?;
            Ok(socket)
        };
        let socket = bind().map_err(|source| cannot_listen(config.listen, source))?;
        Ok(Self { config, metrics, socket })
    }

    /// Serves until a signal asks to stop, then finishes what was admitted and ends the workers.
    pub(crate) async fn serve(
        self,
        manager: Arc<EmbeddingManager>,
        signals: Signals,
        (heart, notifier): (&Heart, Notifier),
    ) -> Result<(), StartError> {
        let listen = || {
            let listener = self.socket.listen(BACKLOG)?;
            Ok((listener.local_addr()?, listener))
        };
        let (address, listener) = listen().map_err(|source| cannot_listen(self.config.listen, source))?;
        tracing::info!(%address, "listening");
        let drain_timeout = self.config.drain_timeout;
        let context = Arc::new(Context::new(self.config, self.metrics, Arc::clone(&manager)));
        let notifier = Arc::new(notifier);
        let connections = TaskTracker::new();
        let close = CancellationToken::new();
        let accepting = {
            let accepting = accept(listener, context, connections.clone(), close.clone());
            tokio::spawn(heart.watch("accept", accepting))
        };
        let announcement = tokio::spawn(announce_ready(Arc::clone(&manager), address, Arc::clone(&notifier)));

        let outcome = tokio::select! {
            () = signals.stop_requested() => Ok(()),
            error = manager.failed() => Err(error),
        };
        announcement.abort();
        notifier.stopping();
        manager.drain();
        let finish = async {
            manager.drained().await;
            // Now nothing that was admitted can fail: close the listener, then every connection.
            accepting.abort();
            close.cancel();
            connections.close();
            connections.wait().await;
        };
        let mut finish = std::pin::pin!(finish);
        let drain_timeout = if outcome.is_ok() { drain_timeout } else { Duration::ZERO };
        let is_finished = tokio::select! {
            () = &mut finish => true,
            () = tokio::time::sleep(drain_timeout) => false,
            () = signals.force_requested() => false,
        };
        if !is_finished {
            tracing::warn!("abandoning in-flight requests: drain timeout elapsed, or second signal");
            manager.abandon();
            let _ = tokio::time::timeout(LAST_WORDS_TIMEOUT, finish).await;
        }
        manager.stop().await;
        tracing::info!("stopped");
        outcome
    }
}

fn cannot_listen(address: SocketAddr, source: io::Error) -> StartError {
    match source.kind() {
        io::ErrorKind::AddrInUse => StartError::AddressInUse { address },
        _ => StartError::Listen { address, source },
    }
}

/// Says when the first worker is ready, and how to try it.
async fn announce_ready(manager: Arc<EmbeddingManager>, address: SocketAddr, notifier: Arc<Notifier>) {
    if manager.ready().await.is_ok() {
        notifier.ready();
        let info = manager.model_info();
        let try_it = format!(
            "curl -s http://{address}/api/v1/embed -H 'content-type: application/json' -d '{{\"texts\":[\"Hello world\"]}}'"
        );
        tracing::info!(
            model = info.model,
            dimension = info.dimension,
            max_tokens = info.max_tokens,
            %try_it,
            "ready"
        );
    }
}

async fn accept(
    listener: TcpListener,
    context: Arc<Context>,
    connections: TaskTracker,
    close: CancellationToken,
) {
    let limit = connection_limit();
    let slots = Arc::new(Semaphore::new(limit));
    let mut last_complaint: Option<Instant> = None;
    loop {
        let slot = match Arc::clone(&slots).try_acquire_owned() {
            Ok(slot) => slot,
            Err(_none) => {
                if last_complaint.is_none_or(|last| last.elapsed() >= ACCEPT_COMPLAINT_INTERVAL) {
                    tracing::warn!(limit, "connection limit reached: new connections are waiting");
                    last_complaint = Some(Instant::now());
                }
                let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
                slot
            }
        };
        match listener.accept().await {
            Ok((stream, _peer)) => {
                let serving = connection::serve(stream, Arc::clone(&context), close.clone());
                connections.spawn(async move {
                    serving.await;
                    drop(slot);
                });
            }
            Err(error) if is_of_one_client(&error) => {
                tracing::debug!(%error, "connection lost before it was accepted");
            }
            Err(error) => {
                if last_complaint.is_none_or(|last| last.elapsed() >= ACCEPT_COMPLAINT_INTERVAL) {
                    tracing::warn!(%error, "cannot accept connections");
                    last_complaint = Some(Instant::now());
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Whether another connection may be accepted anyway.
fn is_of_one_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// Connections that may be open at a time: what the descriptors allow, less some for everything else.
fn connection_limit() -> usize {
    let connections = machine::raise_descriptor_limit().saturating_sub(RESERVED_DESCRIPTORS).max(16);
    usize::try_from(connections).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS)
}
