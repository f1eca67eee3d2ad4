//! The bodies, and the two enums that say which way they travel.

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::error::ProtocolError;
use crate::header::{HEADER_BYTES, Header, MAX_BODY_BYTES, MessageType};

/// How token vectors become one text vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// Mean over all tokens.
    Mean,
    /// The first token.
    Cls,
    /// The last token.
    Last,
}

impl Pooling {
    /// The name on the wire and in the API.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Cls => "cls",
            Self::Last => "last",
        }
    }
}

/// A worker process has started. Sent before any heavy import.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Process id of the worker.
    pub pid: u32,
    /// Version of the `akidb-sidecar` package.
    pub sidecar_version: String,
}

/// A worker has loaded its model and embedded one warm-up batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ready {
    /// `model_type` of the model's `config.json`.
    pub model_type: String,
    /// Length of every vector.
    pub dimension: u32,
    /// Longest text accepted, in tokens.
    pub max_tokens: u32,
    /// `cpu` or `gpu`.
    pub device: String,
    /// Type the model computes in.
    pub dtype: String,
    /// Library for matrix products.
    pub blas: String,
    /// What a person should know, such as a slow BLAS.
    pub warnings: Vec<String>,
    /// Tokens in the warm-up batch.
    pub warm_up_tokens: u32,
    /// Time the warm-up batch took when it was computed once more, in seconds.
    pub warm_up_seconds: f64,
}

/// A worker has started to compute a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// The batch's [`Embed::batch_id`].
    pub batch_id: u64,
}

/// The pooled, not normalised vectors of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Vectors {
    /// The batch's [`Embed::batch_id`].
    pub batch_id: u64,
    /// Number of vectors.
    pub count: u32,
    /// Length of each vector.
    pub dimension: u32,
    /// Time the computation took, in seconds.
    pub compute_seconds: f64,
    /// `count * dimension` little-endian `f32`, text by text.
    pub vectors: Bytes,
}

/// A batch could not be computed; the worker lives on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// The batch's [`Embed::batch_id`].
    pub batch_id: u64,
    /// `inference_failed`, `bad_output` or `invalid_batch`.
    pub code: String,
    /// For the log; never shown to a client.
    pub message: String,
}

/// [`Fatal::code`] of a ready worker whose device is lost.
pub const DEVICE_LOST: &str = "device_lost";

/// Before [`Ready`]: a worker cannot ever become ready. After it, only with the code [`DEVICE_LOST`]: the worker ends, for
/// no reason related to its batch, and may be started again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fatal {
    /// `bad_model`, `unsupported_model`, `bad_configuration` or `internal`; after [`Ready`] [`DEVICE_LOST`].
    pub code: String,
    /// One line for the person who started the gateway.
    pub message: String,
}

/// A heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Grows whenever the worker makes progress on a batch, by steps of any size.
    pub steps_done: u64,
    /// Memory that the worker takes, where what is resident of its process leaves out a part of it: on macOS, that of the
    /// GPU. Left out elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
}

/// A batch to compute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Embed {
    /// Chosen by the gateway, unique on its connection.
    pub batch_id: u64,
    /// How token vectors become one text vector.
    pub pooling: Pooling,
    /// Threads the worker may compute with; 0 leaves it to the worker.
    pub threads: u16,
    /// Tokens per text: little-endian `u32`.
    pub lengths: Bytes,
    /// Token ids of all texts, one after the other: little-endian `u32`.
    pub token_ids: Bytes,
}

impl Embed {
    /// Packs texts, each given as its token ids.
    ///
    /// # Panics
    ///
    /// When a text has more than `u32::MAX` tokens.
    pub fn new<'a>(
        batch_id: u64,
        pooling: Pooling,
        threads: u16,
        texts: impl Iterator<Item = &'a [u32]>,
    ) -> Self {
        let mut lengths = BytesMut::new();
        let mut token_ids = BytesMut::new();
        for text in texts {
            let length = u32::try_from(text.len()).expect("a text has fewer than 2^32 tokens: this is a bug");
            lengths.extend_from_slice(&length.to_le_bytes());
            token_ids.reserve(text.len() * 4);
            for id in text {
                token_ids.extend_from_slice(&id.to_le_bytes());
            }
        }
        Self { batch_id, pooling, threads, lengths: lengths.freeze(), token_ids: token_ids.freeze() }
    }
}

/// What a worker sends.
#[derive(Debug, Clone, PartialEq)]
pub enum WorkerMessage {
    /// See [`Hello`].
    Hello(Hello),
    /// See [`Ready`].
    Ready(Ready),
    /// See [`Begun`].
    Begun(Begun),
    /// See [`Vectors`].
    Vectors(Vectors),
    /// See [`Failed`].
    Failed(Failed),
    /// See [`Fatal`].
    Fatal(Fatal),
    /// See [`Heartbeat`].
    Heartbeat(Heartbeat),
}

/// What the gateway sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GatewayMessage {
    /// See [`Embed`].
    Embed(Embed),
}

/// [`Vectors`] as serde sees it: the vectors stay where they were received.
#[derive(Serialize, Deserialize)]
struct VectorsBody<'a> {
    batch_id: u64,
    count: u32,
    dimension: u32,
    compute_seconds: f64,
    #[serde(borrow, with = "serde_bytes")]
    vectors: &'a [u8],
}

/// [`Embed`] as serde sees it.
#[derive(Serialize, Deserialize)]
struct EmbedBody<'a> {
    batch_id: u64,
    pooling: Pooling,
    threads: u16,
    #[serde(borrow, with = "serde_bytes")]
    lengths: &'a [u8],
    #[serde(borrow, with = "serde_bytes")]
    token_ids: &'a [u8],
}

impl WorkerMessage {
    /// Reads the body of a frame that a worker sent. Vectors share the body's memory.
    ///
    /// # Errors
    ///
    /// A message type that only the gateway sends, and a body that is not as specified.
    pub fn decode(message_type: MessageType, body: &Bytes) -> Result<Self, ProtocolError> {
        Ok(match message_type {
            MessageType::Hello => Self::Hello(decode_body("hello", body)?),
            MessageType::Ready => Self::Ready(decode_body("ready", body)?),
            MessageType::Begun => Self::Begun(decode_body("begun", body)?),
            MessageType::Failed => Self::Failed(decode_body("failed", body)?),
            MessageType::Fatal => Self::Fatal(decode_body("fatal", body)?),
            MessageType::Heartbeat => Self::Heartbeat(decode_body("heartbeat", body)?),
            MessageType::Vectors => {
                let VectorsBody { batch_id, count, dimension, compute_seconds, vectors } =
                    decode_body("vectors", body)?;
                // Both are the sender's word: their product may be more than any length.
                let expected = u64::from(count).saturating_mul(u64::from(dimension)).saturating_mul(4);
                check_length("vectors", expected, vectors)?;
                let vectors = body.slice_ref(vectors);
                Self::Vectors(Vectors { batch_id, count, dimension, compute_seconds, vectors })
            }
            MessageType::Embed => return Err(ProtocolError::UnexpectedType(message_type as u8)),
        })
    }

    /// Appends the whole frame.
    ///
    /// # Errors
    ///
    /// When the body would be longer than [`MAX_BODY_BYTES`].
    pub fn encode(&self, frame: &mut BytesMut) -> Result<(), ProtocolError> {
        match self {
            Self::Hello(body) => encode_frame(MessageType::Hello, body, frame),
            Self::Ready(body) => encode_frame(MessageType::Ready, body, frame),
            Self::Begun(body) => encode_frame(MessageType::Begun, body, frame),
            Self::Failed(body) => encode_frame(MessageType::Failed, body, frame),
            Self::Fatal(body) => encode_frame(MessageType::Fatal, body, frame),
            Self::Heartbeat(body) => encode_frame(MessageType::Heartbeat, body, frame),
            Self::Vectors(Vectors { batch_id, count, dimension, compute_seconds, vectors }) => encode_frame(
                MessageType::Vectors,
                &VectorsBody {
                    batch_id: *batch_id,
                    count: *count,
                    dimension: *dimension,
                    compute_seconds: *compute_seconds,
                    vectors,
                },
                frame,
            ),
        }
    }
}

impl GatewayMessage {
    /// Reads the body of a frame that the gateway sent.
    ///
    /// # Errors
    ///
    /// A message type that only workers send, and a body that is not as specified.
    pub fn decode(message_type: MessageType, body: &Bytes) -> Result<Self, ProtocolError> {
        if message_type != MessageType::Embed {
            return Err(ProtocolError::UnexpectedType(message_type as u8));
        }
        let EmbedBody { batch_id, pooling, threads, lengths, token_ids } = decode_body("embed", body)?;
        let (whole, rest) = lengths.as_chunks::<4>();
        if !rest.is_empty() {
            let expected = u64::try_from(whole.len() * 4).unwrap_or(u64::MAX);
            return Err(ProtocolError::WrongLength { field: "lengths", expected, actual: lengths.len() });
        }
        let tokens: u64 = whole.iter().map(|bytes| u64::from(u32::from_le_bytes(*bytes))).sum();
        check_length("token_ids", tokens * 4, token_ids)?;
        Ok(Self::Embed(Embed {
            batch_id,
            pooling,
            threads,
            lengths: body.slice_ref(lengths),
            token_ids: body.slice_ref(token_ids),
        }))
    }

    /// Appends the whole frame.
    ///
    /// # Errors
    ///
    /// When the body would be longer than [`MAX_BODY_BYTES`].
    pub fn encode(&self, frame: &mut BytesMut) -> Result<(), ProtocolError> {
        let Self::Embed(Embed { batch_id, pooling, threads, lengths, token_ids }) = self;
        let body =
            EmbedBody { batch_id: *batch_id, pooling: *pooling, threads: *threads, lengths, token_ids };
        encode_frame(MessageType::Embed, &body, frame)
    }
}

fn decode_body<'a, T: Deserialize<'a>>(message: &'static str, body: &'a [u8]) -> Result<T, ProtocolError> {
    rmp_serde::from_slice(body)
        .map_err(|error| ProtocolError::InvalidBody { message, reason: error.to_string() })
}

fn check_length(field: &'static str, expected: u64, bytes: &[u8]) -> Result<(), ProtocolError> {
    if u64::try_from(bytes.len()) == Ok(expected) {
        Ok(())
    } else {
        Err(ProtocolError::WrongLength { field, expected, actual: bytes.len() })
    }
}

/// Writes the body after room for the header, then fills the header in.
fn encode_frame<T: Serialize>(
    message_type: MessageType,
    body: &T,
    frame: &mut BytesMut,
) -> Result<(), ProtocolError> {
    let start = frame.len();
    frame.extend_from_slice(&[0; HEADER_BYTES]);
    let mut serializer = rmp_serde::Serializer::new(bytes::BufMut::writer(&mut *frame)).with_struct_map();
    let written = body.serialize(&mut serializer);
    let length = frame.len() - start - HEADER_BYTES;
    let body_bytes = u32::try_from(length).unwrap_or(u32::MAX);
    if let Err(error) = written {
        frame.truncate(start);
        return Err(ProtocolError::InvalidBody { message: "outgoing", reason: error.to_string() });
    }
    if body_bytes > MAX_BODY_BYTES {
        frame.truncate(start);
        return Err(ProtocolError::BodyTooLong(body_bytes));
    }
    frame[start..start + HEADER_BYTES].copy_from_slice(&Header { message_type, body_bytes }.encode());
    Ok(())
}
