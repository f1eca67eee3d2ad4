//! The twelve bytes in front of every body.

use crate::error::ProtocolError;

/// Bytes in a header.
pub const HEADER_BYTES: usize = 12;
/// First bytes of every frame.
pub const MAGIC: [u8; 4] = *b"AKDB";
/// Version that this crate speaks.
pub const PROTOCOL_VERSION: u8 = 1;
/// Longest body accepted, in bytes (64 MiB).
pub const MAX_BODY_BYTES: u32 = 64 * 1024 * 1024;

/// What a frame's body holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageType {
    /// A worker process has started.
    Hello = 1,
    /// A worker has loaded its model and embedded a warm-up batch.
    Ready = 2,
    /// A worker has started to compute a batch.
    Begun = 3,
    /// The pooled vectors of a batch.
    Vectors = 4,
    /// A batch could not be computed; the worker lives on.
    Failed = 5,
    /// A worker cannot ever become ready.
    Fatal = 6,
    /// A heartbeat.
    Heartbeat = 7,
    /// A batch to compute.
    Embed = 16,
}

impl TryFrom<u8> for MessageType {
    type Error = ProtocolError;

    fn try_from(byte: u8) -> Result<Self, ProtocolError> {
        Ok(match byte {
            1 => Self::Hello,
            2 => Self::Ready,
            3 => Self::Begun,
            4 => Self::Vectors,
            5 => Self::Failed,
            6 => Self::Fatal,
            7 => Self::Heartbeat,
            16 => Self::Embed,
            other => return Err(ProtocolError::UnexpectedType(other)),
        })
    }
}

/// A judged header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the body holds.
    pub message_type: MessageType,
    /// Length of the body in bytes, at most [`MAX_BODY_BYTES`].
    pub body_bytes: u32,
}

impl Header {
    /// Writes the header as it travels.
    #[must_use]
    pub fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = PROTOCOL_VERSION;
        bytes[5] = self.message_type as u8;
        bytes[8..].copy_from_slice(&self.body_bytes.to_le_bytes());
        bytes
    }

    /// Reads and judges a header.
    ///
    /// # Errors
    ///
    /// Any header that is not exactly as specified; see the crate documentation.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, ProtocolError> {
        let [m0, m1, m2, m3, version, message_type, r0, r1, l0, l1, l2, l3] = *bytes;
        let magic = [m0, m1, m2, m3];
        if magic != MAGIC {
            return Err(ProtocolError::WrongMagic(magic));
        }
        if version != PROTOCOL_VERSION {
            return Err(ProtocolError::WrongVersion(version));
        }
        let reserved = u16::from_le_bytes([r0, r1]);
        if reserved != 0 {
            return Err(ProtocolError::ReservedNotZero(reserved));
        }
        let body_bytes = u32::from_le_bytes([l0, l1, l2, l3]);
        if body_bytes > MAX_BODY_BYTES {
            return Err(ProtocolError::BodyTooLong(body_bytes));
        }
        Ok(Self { message_type: MessageType::try_from(message_type)?, body_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn valid() -> [u8; HEADER_BYTES] {
        Header { message_type: MessageType::Vectors, body_bytes: 0x0102_0304 & 0x03ff_ffff }.encode()
    }

    #[test]
    fn a_header_survives_the_round_trip() {
        let header = Header { message_type: MessageType::Embed, body_bytes: 4_660 };
        assert_eq!(Header::decode(&header.encode()).unwrap(), header);
    }

    #[test]
    fn every_wrong_field_is_refused() {
        let with = |index: usize, value: u8| {
            let mut bytes = valid();
            bytes[index] = value;
            Header::decode(&bytes)
        };
        assert!(matches!(with(0, b'X'), Err(ProtocolError::WrongMagic(_))));
        assert!(matches!(with(4, 2), Err(ProtocolError::WrongVersion(2))));
        assert!(matches!(with(5, 99), Err(ProtocolError::UnexpectedType(99))));
        assert!(matches!(with(6, 1), Err(ProtocolError::ReservedNotZero(1))));
        assert!(matches!(with(11, 0xff), Err(ProtocolError::BodyTooLong(_))));
    }

    #[test]
    fn the_longest_body_is_accepted_and_one_byte_more_is_not() {
        let mut bytes = Header { message_type: MessageType::Vectors, body_bytes: MAX_BODY_BYTES }.encode();
        assert!(Header::decode(&bytes).is_ok());
        bytes[8] = 1;
        assert!(matches!(Header::decode(&bytes), Err(ProtocolError::BodyTooLong(_))));
    }
}
