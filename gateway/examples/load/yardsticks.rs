//! What a server is held against: bare HTTP, and the tokenizer alone.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System};
use tokio::net::TcpListener;

use crate::Outcome;

#[derive(Serialize)]
pub(crate) struct Tokenized {
    tokenizer_bytes: u64,
    ids: BTreeMap<String, Vec<Vec<u32>>>,
}

pub(crate) async fn hello(address: SocketAddr) -> Outcome<()> {
    let listener = TcpListener::bind(address).await?;
    loop {
        let (stream, _peer) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let greet = service_fn(async |request: Request<Incoming>| {
            drop(request.into_body().collect().await);
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"hello"))))
        });
        tokio::spawn(async move {
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), greet);
            drop(connection.await);
        });
    }
}

pub(crate) fn tokenize(model: &Path, max_tokens: usize, texts: &Path) -> Outcome<Tokenized> {
    let texts: BTreeMap<String, Vec<String>> = serde_json::from_slice(&std::fs::read(texts)?)?;
    let before = resident_bytes()?;
    let mut tokenizer = tokenizers::Tokenizer::from_file(model.join("tokenizer.json"))?;
    tokenizer.with_padding(None);
    let truncation = tokenizers::TruncationParams { max_length: max_tokens, ..Default::default() };
    tokenizer.with_truncation(Some(truncation))?;
    let tokenizer_bytes = resident_bytes()?.saturating_sub(before);
    let mut ids = BTreeMap::new();
    for (name, texts) in texts {
        let encoded =
            texts.iter().map(|text| Ok(tokenizer.encode_fast(text.as_str(), true)?.get_ids().to_vec()));
        ids.insert(name, encoded.collect::<Outcome<Vec<_>>>()?);
    }
    Ok(Tokenized { tokenizer_bytes, ids })
}

/// Resident memory of this process.
fn resident_bytes() -> Outcome<u64> {
    let (mut system, own) = (System::new()?, sysinfo::get_current_pid()?);
    let what = ProcessRefreshKind::nothing().with_memory().without_tasks();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[own]), false, what);
    Ok(system.process(own).ok_or("the system does not say what memory this process has")?.memory())
}
