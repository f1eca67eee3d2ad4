//! One request for embeddings, in any dialect: read, parse, embed, write.

use std::sync::Arc;

use hyper::{HeaderMap, Response, StatusCode};

use super::body::{Body, RequestBody};
use super::content::{Content, PIECE_BYTES};
use super::context::Context;
use super::dialects::Dialect;
use super::error::RequestError;
use super::memory::Reservation;
use super::writer::{BYTES_PER_NUMBER, Writer};
use super::{head, respond};
use crate::error::EmbedError;
use crate::manager::EmbedRequest;
use crate::metrics::{Phase, Status};

/// Responses of up to this many numbers are written at once, which takes a millisecond; longer ones piece by piece.
const WHOLE_NUMBERS: usize = 16 * 1024;
/// Bodies with more bytes than this are parsed off the async threads.
const INLINE_BYTES: usize = 64 * 1024;
/// What a text takes in addition to its bytes until it is answered: as a string, as tokens, as a job, as a place in a queue.
const BYTES_PER_TEXT: usize = 512;
/// What a vector takes in addition to its numbers.
const BYTES_PER_VECTOR: usize = 64;

/// Answers one request.
pub(super) async fn embed(
    dialect: &'static dyn Dialect,
    headers: &HeaderMap,
    body: &mut RequestBody,
    context: &Context,
) -> Result<Response<Content>, RequestError> {
    let manager = &context.manager;
    let received = receive(dialect, headers, body, context).await;
    let (request, mut reservation, response_memory) =
        received.inspect_err(|_error| context.metrics.request_answered(Status::Error))?;
    let count = request.texts.len();
    let embeddings =
        manager.embed_and_note(request, || drop(reservation.resize(count * BYTES_PER_TEXT))).await?;
    drop(reservation);
    let numbers = embeddings.vectors.len() * embeddings.dimension;
    let mut writer = Writer::new(dialect, embeddings, manager.model_info());
    let content = if numbers <= WHOLE_NUMBERS {
        let bytes = context.metrics.timed(Phase::Write, || writer.next(usize::MAX));
        Content::whole(bytes.unwrap_or_default(), response_memory)
    } else {
        Content::vectors(writer, response_memory, Arc::clone(&context.metrics))
    };
    Ok(respond::content(StatusCode::OK, respond::JSON, content))
}

/// Reads a request; also returns what it takes of the memory for bodies, and what its answer will take of that for
/// answers.
async fn receive(
    dialect: &'static dyn Dialect,
    headers: &HeaderMap,
    body: &mut RequestBody,
    context: &Context,
) -> Result<(EmbedRequest, Reservation, Reservation), RequestError> {
    let timeout = head::timeout(headers)?;
    head::check_encoding(headers)?;
    let Body { bytes, mut reservation } = body.read(context).await?;
    let metrics = Arc::clone(&context.metrics);
    let is_short = bytes.len() <= INLINE_BYTES;
    let most_texts = context.manager.max_texts();
    let parse = move || metrics.timed(Phase::Parse, || dialect.parse(&bytes, most_texts));
    let request = if is_short {
        parse()
    } else {
        let permit = Arc::clone(&context.parsers).acquire_owned().await;
        let parse = move || {
            let _permit = permit;
            parse()
        };
        tokio::task::spawn_blocking(parse).await.map_err(|_panic| EmbedError::Internal)?
    };
    let request = EmbedRequest { timeout, ..request? };
    let text_bytes: usize = request.texts.iter().map(String::len).sum();
    reservation.resize(text_bytes + request.texts.len() * BYTES_PER_TEXT)?;
    let most_numbers = context.manager.model_info().dimension;
    let dimension = request.dimensions.map_or(most_numbers, |dimension| dimension.min(most_numbers));
    let mut response_memory = context.responses.reserve();
    response_memory.resize(answer_bytes(request.texts.len(), dimension))?;
    Ok((request, reservation, response_memory))
}

/// Memory that the answer takes until the client has read it.
fn answer_bytes(vectors: usize, dimension: usize) -> usize {
    let numbers = vectors * dimension;
    let as_vectors = numbers * size_of::<f32>() + vectors * BYTES_PER_VECTOR;
    let as_json = if numbers <= WHOLE_NUMBERS { numbers * BYTES_PER_NUMBER } else { 4 * PIECE_BYTES };
    as_vectors + as_json
}
