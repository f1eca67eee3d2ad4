//! `POST /api/v1/embed`, the API of the `AkiDB` vector database.
//!
//! Request: a JSON object. Unknown keys are ignored; `null` is as good as no key.
//!
//! * `texts: [str]`, the only key that must be there.
//! * `model?: str`: refused unless it is the one served.
//! * `prompt_name?: str`: the model's prompt of this name stands before every text.
//! * `instruction?: str`: a task in the client's words, for models trained with instructions; not with `prompt_name`.
//! * `pooling?: "mean" | "cls" | "last"`
//! * `dimensions?: int`: so many numbers of each vector, from 32 to all.
//! * `normalize?: bool`: whether what stays of a vector is scaled to length 1.
//! * `truncate?: bool`: whether a text that is too long is cut, else refused.
//! * `truncation_direction?: "right" | "left"`: which end of it is cut off; `"Right"` and `"Left"`, too, as
//!   text-embeddings-inference writes them.
//!
//! What is not chosen is the model's own. The time limit is in the header `x-request-timeout-ms`. Answer:
//! `{"embeddings": [[f32]], "model": str, "dimension": int, "usage": {"total_tokens": int, "truncated": int,
//! "duration_ms": int}}`; tokens of prompts count like those of texts.

pub(crate) mod answer;
pub(crate) mod request;

use std::sync::Arc;

use hyper::{HeaderMap, Response, StatusCode};

use super::body::{Body, RequestBody};
use super::content::{Content, PIECE_BYTES};
use super::memory::Share;
use super::respond::{self, RequestError};
use super::{Context, head};
use crate::error::EmbedError;
use crate::manager::EmbedRequest;
use crate::metrics::Phase;
use answer::{BYTES_PER_NUMBER, Writer};

/// Answers of so many numbers are written at once: that takes a millisecond. Of longer ones, a piece at a time.
const WHOLE_NUMBERS: usize = 16 * 1024;
/// Bodies with more bytes than this are parsed off the async threads.
const INLINE_BYTES: usize = 64 * 1024;
/// What a text takes beside its bytes until it is answered: as a string, as tokens, as a job, as a place in a queue.
const BYTES_PER_TEXT: usize = 512;
/// What a vector takes beside its numbers.
const BYTES_PER_VECTOR: usize = 64;

pub(super) async fn embed(
    headers: &HeaderMap,
    body: &mut RequestBody,
    context: &Context,
) -> Result<Response<Content>, RequestError> {
    let manager = &context.manager;
    let received = receive(headers, body, context).await;
    let (request, mut share, answer_share) = received.inspect_err(|_error| manager.count_refused())?;
    let count = request.texts.len();
    let embeddings = manager.embed_and_note(request, || drop(share.resize(count * BYTES_PER_TEXT))).await?;
    drop(share);
    let numbers = embeddings.vectors.len() * embeddings.dimension;
    let mut writer = Writer::new(embeddings, manager.model_info());
    let content = if numbers <= WHOLE_NUMBERS {
        let bytes = manager.timed(Phase::Write, || writer.next(usize::MAX));
        Content::whole(bytes.unwrap_or_default(), answer_share)
    } else {
        Content::vectors(writer, answer_share, Arc::clone(manager))
    };
    Ok(respond::content(StatusCode::OK, respond::JSON, content))
}

/// Reads a request; also returns what it takes of the memory for bodies, and what its answer will take of that for
/// answers.
async fn receive(
    headers: &HeaderMap,
    body: &mut RequestBody,
    context: &Context,
) -> Result<(EmbedRequest, Share, Share), RequestError> {
    let timeout = head::timeout(headers)?;
    head::check_encoding(headers)?;
    let Body { bytes, mut share } = body.read(context).await?;
    let manager = Arc::clone(&context.manager);
    let is_short = bytes.len() <= INLINE_BYTES;
    let most_texts = manager.max_texts();
    let parse = move || manager.timed(Phase::Parse, || request::parse(&bytes, most_texts));
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
    share.resize(text_bytes + request.texts.len() * BYTES_PER_TEXT)?;
    let most_numbers = context.manager.model_info().dimension;
    let dimension = request.dimensions.map_or(most_numbers, |dimension| dimension.min(most_numbers));
    let mut answer_share = context.responses.share();
    answer_share.resize(answer_bytes(request.texts.len(), dimension))?;
    Ok((request, share, answer_share))
}

/// Memory that the answer takes until the client has read it.
fn answer_bytes(vectors: usize, dimension: usize) -> usize {
    let numbers = vectors * dimension;
    let as_vectors = numbers * size_of::<f32>() + vectors * BYTES_PER_VECTOR;
    let as_json = if numbers <= WHOLE_NUMBERS { numbers * BYTES_PER_NUMBER } else { 4 * PIECE_BYTES };
    as_vectors + as_json
}
