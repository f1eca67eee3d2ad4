//! What both loops need: bodies, connections, percentiles.

use std::net::SocketAddr;
use std::path::Path;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;

use crate::Outcome;

/// A request's body, and what is in it.
pub(crate) struct Body {
    pub(crate) texts: u64,
    pub(crate) tokens: u64,
    pub(crate) body: Bytes,
}

#[derive(Deserialize)]
struct Line {
    texts: u64,
    tokens: u64,
    body: String,
}

pub(crate) fn read_bodies(file: &Path) -> Outcome<Vec<Body>> {
    let text = std::fs::read_to_string(file)?;
    let lines = text.lines().map(|line| {
        let Line { texts, tokens, body } = serde_json::from_str(line)?;
        Ok(Body { texts, tokens, body: Bytes::from(body) })
    });
    let bodies = lines.collect::<Outcome<Vec<_>>>()?;
    if bodies.is_empty() { Err("there are no bodies in the file".into()) } else { Ok(bodies) }
}

pub(crate) async fn connect(address: SocketAddr) -> Outcome<SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends on its own when the sender is dropped; its errors come out at the sender, too.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}

/// The smallest value that at least `percent` per cent of the sorted values do not exceed; 0 of none.
pub(crate) fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(0.0)
}

#[expect(clippy::cast_precision_loss, reason = "counts of a few minutes are far below 2^53")]
pub(crate) fn real(count: u64) -> f64 {
    count as f64
}
