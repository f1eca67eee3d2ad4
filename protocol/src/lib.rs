//! The wire between `akidb-gateway` and its embedding workers. This page is the specification.
//!
//! The gateway and each worker share one Unix stream socket pair; the worker's end is its standard
//! input. Both sides send *frames*: a header of twelve bytes and a body.
//!
//! # Frame
//!
//! Integers are little-endian.
//!
//! ```text
//!  byte  0        4         5         6          8            12
//!        +--------+---------+---------+----------+-------------+----------------------+
//!        | "AKDB" | version | message | reserved | body length | body                 |
//!        |        | u8 = 1  | type u8 | u16 = 0  | u32         | one msgpack map      |
//!        +--------+---------+---------+----------+-------------+----------------------+
//! ```
//!
//! * A header with another magic, version, reserved field or an unknown message type is an error, and so
//!   is a body length above [`MAX_BODY_BYTES`]. The header is judged before any memory is reserved for the
//!   body. There is no resynchronisation: after an error the connection is given up.
//! * The body is one msgpack map with string keys. Unknown keys are ignored, a missing key is an error unless
//!   it is optional. Extension types are never used.
//! * Token ids, lengths and vectors travel as one msgpack `bin` each, of little-endian `u32` or `f32`.
//!
//! # Messages
//!
//! | type | name | direction | body |
//! |---|---|---|---|
//! | 1 | [`Hello`] | worker to gateway | `pid` u32, `sidecar_version` str |
//! | 2 | [`Ready`] | worker to gateway | `model_type` str, `dimension` u32, `max_tokens` u32, `device` str, `dtype` str, `blas` str, `warnings` \[str\], `warm_up_tokens` u32, `warm_up_seconds` f64 |
//! | 3 | [`Begun`] | worker to gateway | `batch_id` u64 |
//! | 4 | [`Vectors`] | worker to gateway | `batch_id` u64, `count` u32, `dimension` u32, `compute_seconds` f64, `vectors` bin of `count * dimension * 4` bytes |
//! | 5 | [`Failed`] | worker to gateway | `batch_id` u64, `code` str, `message` str |
//! | 6 | [`Fatal`] | worker to gateway | `code` str, `message` str |
//! | 7 | [`Heartbeat`] | worker to gateway | `steps_done` u64, `memory_bytes` u64 (optional) |
//! | 16 | [`Embed`] | gateway to worker | `batch_id` u64, `pooling` str, `threads` u16, `lengths` bin of `n * 4` bytes, `token_ids` bin of `sum(lengths) * 4` bytes |
//!
//! # Conversation
//!
//! ```text
//!   worker                                  gateway
//!     | hello            before any heavy import |
//!     |----------------------------------------->|
//!     | heartbeat      every second from here on |
//!     |----------------------------------------->|
//!     | ready      after loading and one warm-up |   or: fatal, then exit 78
//!     |----------------------------------------->|
//!     |                                    embed |   the next embed may already wait in the socket
//!     |<-----------------------------------------|
//!     | begun                                    |
//!     |----------------------------------------->|
//!     | vectors | failed                         |
//!     |----------------------------------------->|
//! ```
//!
//! A worker answers every [`Embed`] with one [`Begun`] and then one [`Vectors`] or [`Failed`], in the order
//! in which the frames came. [`Vectors`] are pooled but not normalised: the gateway cuts and normalises.
//! A worker whose device is lost under a batch sends [`Fatal`] with the code [`DEVICE_LOST`] instead, and ends.
//! End-of-file from the gateway ends the worker at once; end-of-file from the worker means that it is gone.
//!
//! `vectors/` next to this crate holds golden frames, which the tests of both languages read.
//!
//! # Layout
//!
//! * `header`: the twelve bytes.
//! * `message`: the bodies, and the two enums that say which way they travel.
//! * `codec`: frames over a byte stream, for `tokio_util::codec`.
//! * `error`: everything that can be wrong with received bytes.

mod codec;
mod error;
mod header;
mod message;

pub use codec::{GatewayCodec, WorkerCodec};
pub use error::ProtocolError;
pub use header::{HEADER_BYTES, Header, MAGIC, MAX_BODY_BYTES, MessageType, PROTOCOL_VERSION};
pub use message::{
    Begun, DEVICE_LOST, Embed, Failed, Fatal, GatewayMessage, Heartbeat, Hello, Pooling, Ready, Vectors,
    WorkerMessage,
};
