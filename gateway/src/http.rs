//! The HTTP server: accepts connections, limits what they may cost, and routes requests.
//!
//! * `native`: `POST /api/v1/embed`.
//! * `operations`: `/health`, `/livez`, `/readyz`, `/metrics`.
//! * `respond`: the one table from errors to status codes and bodies.

pub(crate) mod native;
mod operations;
pub(crate) mod respond;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::{EmbedError, StartError};
use crate::machine;
use crate::manager::EmbeddingManager;
use crate::shutdown::Signals;
use respond::{RequestError, RequestId};

/// Descriptors kept for everything that is not a client's connection.
const RESERVED_DESCRIPTORS: u64 = 128;
/// Time in which requests that are given up at the end get their answers.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(1);
/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;
/// Pause after the system refused a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the server listens on and what a connection may cost.
#[derive(Debug, Clone)]
pub struct Config {
    /// Address and port; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Longest request body, in bytes.
    pub max_body_bytes: usize,
    /// Time a client has to send the head of a request.
    pub header_timeout: Duration,
    /// Time a client has to send the body of a request.
    pub body_timeout: Duration,
    /// Time admitted requests have to finish after a signal to stop.
    pub drain_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            max_body_bytes: 16 * 1024 * 1024,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(15),
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
    ) -> Result<(), StartError> {
        let listen = || {
            let listener = self.socket.listen(BACKLOG)?;
            Ok((listener.local_addr()?, listener))
        };
        let (address, listener) = listen().map_err(|source| cannot_listen(self.config.listen, source))?;
        tracing::info!(%address, "listening");
        let drain_timeout = self.config.drain_timeout;
        let context = Arc::new(Context { config: self.config, manager: Arc::clone(&manager) });
        let connections = TaskTracker::new();
        let close = CancellationToken::new();
        let accepting = tokio::spawn(accept(listener, context, connections.clone(), close.clone()));
        let announcement = tokio::spawn(announce_ready(Arc::clone(&manager), address));

        let outcome = tokio::select! {
            () = signals.stop_requested() => Ok(()),
            error = manager.failed() => Err(error),
        };
        announcement.abort();
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

fn cannot_listen(address: SocketAddr, source: std::io::Error) -> StartError {
    match source.kind() {
        std::io::ErrorKind::AddrInUse => StartError::AddressInUse { address },
        _ => StartError::Listen { address, source },
    }
}

/// Says when the first worker is ready, and how to try it.
async fn announce_ready(manager: Arc<EmbeddingManager>, address: SocketAddr) {
    if manager.ready().await.is_ok() {
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
    let slots = Arc::new(Semaphore::new(connection_limit()));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _peer)) => {
                let serving = serve_connection(stream, Arc::clone(&context), close.clone());
                connections.spawn(async move {
                    serving.await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "connection not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Connections that may be open at a time: what the descriptors allow, less some for everything else.
fn connection_limit() -> usize {
    let connections = machine::raise_descriptor_limit().saturating_sub(RESERVED_DESCRIPTORS).max(16);
    usize::try_from(connections).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS)
}

async fn serve_connection(stream: TcpStream, context: Arc<Context>, close: CancellationToken) {
    // Answers are small and complete when written: waiting for more to send only adds delay.
    let _ = stream.set_nodelay(true);
    let header_timeout = context.config.header_timeout;
    let service = service_fn(move |request| {
        let context = Arc::clone(&context);
        async move { Ok::<_, Infallible>(route(request, &context).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        result = connection.as_mut() => log_end(result),
        () = close.cancelled() => {
            connection.as_mut().graceful_shutdown();
            log_end(connection.await);
        }
    }
}

fn log_end(result: Result<(), hyper::Error>) {
    if let Err(error) = result {
        tracing::debug!(%error, "connection ended early");
    }
}

/// The route table.
async fn route(request: Request<Incoming>, context: &Context) -> Response<Full<Bytes>> {
    let id = RequestId::new();
    let get = request.method() == Method::GET || request.method() == Method::HEAD;
    let post = request.method() == Method::POST;
    let result = match request.uri().path() {
        "/api/v1/embed" if post => native::embed(request, context).await,
        "/api/v1/embed" => Err(RequestError::MethodNotAllowed { allowed: "POST" }),
        "/health" if get => Ok(operations::health(&context.manager)),
        "/livez" if get => Ok(operations::live()),
        "/readyz" if get => Ok(operations::ready(&context.manager)),
        "/metrics" if get => Ok(operations::metrics(&context.manager)),
        "/health" | "/livez" | "/readyz" | "/metrics" => {
            Err(RequestError::MethodNotAllowed { allowed: "GET" })
        }
        _ => Err(RequestError::NotFound),
    };
    let mut response = result.unwrap_or_else(|error| respond::error(&error, &id));
    respond::identify(&mut response, &id);
    if context.manager.is_draining() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Reads a whole body within its limits of size and time.
async fn read_body(request: Request<Incoming>, context: &Context) -> Result<Bytes, RequestError> {
    let Context { config, manager } = context;
    let limit_bytes = config.max_body_bytes;
    if request.body().size_hint().lower() > limit_bytes as u64 {
        return Err(RequestError::BodyTooLarge { limit_bytes });
    }
    let body = Limited::new(request.into_body(), limit_bytes).collect();
    let received = tokio::select! {
        received = tokio::time::timeout(config.body_timeout, body) => received,
        () = manager.draining() => return Err(EmbedError::Draining.into()),
    };
    match received {
        Err(_elapsed) => Err(RequestError::BodyTimeout),
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(RequestError::BodyTooLarge { limit_bytes }),
        Ok(Err(_broken)) => Err(RequestError::BodyIncomplete),
    }
}
