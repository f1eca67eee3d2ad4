//! The HTTP server: accepts connections, limits what they may cost, and routes requests.
//!
//! * `connection`: one client's connection, and how long each part of it may take.
//! * `head`, `body`: what a request says before its JSON is read.
//! * `memory`: what the bodies and the answers under way may take together.
//! * `origin`: which names and which web pages a request may come by.
//! * `native`: `POST /api/v1/embed`.
//! * `accept`: the form in which `/metrics` is read.
//! * `operations`: `/health`, `/livez`, `/readyz`, `/metrics`.
//! * `content`: the body of an answer.
//! * `respond`: the one table from errors to status codes and bodies.

mod accept;
mod body;
mod connection;
mod content;
mod head;
mod memory;
pub(crate) mod native;
mod operations;
pub(crate) mod origin;
pub(crate) mod respond;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{CONNECTION, HOST, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, Version};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::error::StartError;
use crate::heart::Heart;
use crate::machine;
use crate::manager::EmbeddingManager;
use crate::notify::Notifier;
use crate::shutdown::Signals;
use body::{ALWAYS_READ_BYTES, RequestBody};
use content::Content;
use head::RequestId;
use memory::Budget;
use origin::Gatekeeper;
use respond::RequestError;

/// Descriptors kept for everything that is not a client's connection.
const RESERVED_DESCRIPTORS: u64 = 128;
/// Long bodies that are parsed at a time.
const PARSERS: usize = 2;
/// Answers that take no more than this are given whatever the others take.
const ALWAYS_ANSWERED_BYTES: usize = 32 * 1024;
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
    /// Names by which the gateway may be called, beside those that lead to this machine anyway.
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
    socket: TcpSocket,
}

/// What every request handler needs.
struct Context {
    config: Config,
    gatekeeper: Gatekeeper,
    /// Memory for bodies and what is made of them.
    bodies: Budget,
    /// Memory for answers.
    responses: Budget,
    /// One permit for each long body that is parsed: meanwhile it is there twice.
    parsers: Arc<Semaphore>,
    manager: Arc<EmbeddingManager>,
}

impl Server {
    /// Takes the address, so that a port in use is noticed before anything is prepared. Clients are refused until
    /// [`Self::serve`] is called.
    pub(crate) fn bind(config: Config) -> Result<Self, StartError> {
        let bind = || {
            let socket = if config.listen.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            socket.set_reuseaddr(true)?;
            socket.bind(config.listen)?;
            Ok(socket)
        };
        let socket = bind().map_err(|source| cannot_listen(config.listen, source))?;
        Ok(Self { config, socket })
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
        let Config { allow_remote, allowed_hosts, .. } = &self.config;
        let gatekeeper = Gatekeeper::new(*allow_remote, allowed_hosts, machine::host_name().as_deref());
        let context = Arc::new(Context {
            gatekeeper,
            bodies: Budget::new(self.config.max_bodies_bytes, ALWAYS_READ_BYTES),
            responses: Budget::new(self.config.max_response_bytes, ALWAYS_ANSWERED_BYTES),
            parsers: Arc::new(Semaphore::new(PARSERS)),
            config: self.config,
            manager: Arc::clone(&manager),
        });
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
            tracing::warn!("admitted requests are given up: the drain time is over, or a second signal came");
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
                    tracing::warn!(limit, "as many connections are open as the descriptors allow: more wait");
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
                    tracing::warn!(%error, "connections cannot be accepted");
                    last_complaint = Some(Instant::now());
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Whether another connection may be accepted all the same.
fn is_of_one_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// Connections that may be open at a time: what the descriptors allow, less some for everything else.
fn connection_limit() -> usize {
    let connections = machine::raise_descriptor_limit().saturating_sub(RESERVED_DESCRIPTORS).max(16);
    usize::try_from(connections).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS)
}

/// Answers one request; also says whether all of it was read.
async fn route(
    request: Request<Incoming>,
    states_two_lengths: bool,
    progress: connection::Progress,
    context: &Context,
) -> (Response<Content>, bool) {
    let (head, body) = request.into_parts();
    let id = RequestId::of(&head.headers);
    let span = tracing::info_span!("request", request_id = id.as_str());
    let answer = async {
        let mut body = RequestBody::new(body, progress);
        let hosts = head.headers.get_all(HOST).iter().count();
        let result = if head.version == Version::HTTP_11 && hosts != 1 {
            Err(RequestError::InvalidHttp("it has not exactly one Host"))
        } else if states_two_lengths {
            Err(RequestError::InvalidHttp("it has both Content-Length and Transfer-Encoding"))
        } else if let Err(refusal) = context.gatekeeper.check(&head) {
            Err(refusal)
        } else {
            handle(&head, &mut body, context).await
        };
        let mut response = result.unwrap_or_else(|error| {
            context.manager.count_rejected(respond::code(&error));
            respond::error(&error, &id)
        });
        respond::identify(&mut response, &id);
        if context.manager.is_draining() || !body.is_read() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        (response, body.is_read())
    };
    answer.instrument(span).await
}

/// The route table.
async fn handle(
    head: &Parts,
    body: &mut RequestBody,
    context: &Context,
) -> Result<Response<Content>, RequestError> {
    let manager = &context.manager;
    let get = head.method == Method::GET || head.method == Method::HEAD;
    let post = head.method == Method::POST;
    match head.uri.path() {
        "/api/v1/embed" if post => native::embed(&head.headers, body, context).await,
        "/api/v1/embed" => Err(RequestError::MethodNotAllowed { allowed: "POST" }),
        "/health" if get => Ok(operations::health(manager)),
        "/livez" if get => Ok(operations::live()),
        "/readyz" if get => Ok(operations::ready(manager)),
        "/metrics" if get => Ok(operations::metrics(manager, &head.headers)),
        "/health" | "/livez" | "/readyz" | "/metrics" => {
            Err(RequestError::MethodNotAllowed { allowed: "GET" })
        }
        _ => Err(RequestError::NotFound),
    }
}
