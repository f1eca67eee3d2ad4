//! Everything that can be wrong with received bytes.

use crate::header::{MAX_BODY_BYTES, PROTOCOL_VERSION};

/// Why a received frame was refused. The connection it came from cannot be used any more.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// The first four bytes are not `AKDB`.
    #[error("the frame starts with the bytes {0:02x?} instead of \"AKDB\"")]
    WrongMagic([u8; 4]),
    /// The other side speaks another version of the protocol.
    #[error("the frame has protocol version {0}, this side speaks version {PROTOCOL_VERSION}")]
    WrongVersion(u8),
    /// The message type is not known, or does not travel in this direction.
    #[error("message type {0} is not expected here")]
    UnexpectedType(u8),
    /// The reserved field is not zero.
    #[error("the reserved header field is {0} instead of 0")]
    ReservedNotZero(u16),
    /// The body would be longer than [`MAX_BODY_BYTES`].
    #[error("the frame announces a body of {0} bytes, at most {MAX_BODY_BYTES} are allowed")]
    BodyTooLong(u32),
    /// The stream ended inside a frame.
    #[error("the stream ended after {received} bytes of a frame")]
    Truncated {
        /// Bytes of the incomplete frame that did arrive.
        received: usize,
    },
    /// The body is not the msgpack map that this message type requires.
    #[error("the body is not a valid `{message}` map: {reason}")]
    InvalidBody {
        /// Name of the message type.
        message: &'static str,
        /// What the decoder said.
        reason: String,
    },
    /// A `bin` field has another length than the other fields imply.
    #[error("`{field}` has {actual} bytes where {expected} are expected")]
    WrongLength {
        /// Name of the field.
        field: &'static str,
        /// Length implied by the other fields, in bytes.
        expected: u64,
        /// Length received, in bytes.
        actual: usize,
    },
    /// The socket failed.
    #[error("the socket failed")]
    Io(#[from] std::io::Error),
}
