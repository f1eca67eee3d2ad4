//! Frames over a byte stream, for `tokio_util::codec`.

use bytes::{Buf, Bytes, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

use crate::error::ProtocolError;
use crate::header::{HEADER_BYTES, Header, MessageType};
use crate::message::{GatewayMessage, WorkerMessage};

/// The gateway's side: reads [`WorkerMessage`], writes [`GatewayMessage`].
#[derive(Debug, Default)]
pub struct GatewayCodec {
    _private: (),
}

impl Decoder for GatewayCodec {
    type Item = WorkerMessage;
    type Error = ProtocolError;

    fn decode(&mut self, received: &mut BytesMut) -> Result<Option<WorkerMessage>, ProtocolError> {
        take_frame(received)?
            .map(|(message_type, body)| WorkerMessage::decode(message_type, &body))
            .transpose()
    }

    fn decode_eof(&mut self, received: &mut BytesMut) -> Result<Option<WorkerMessage>, ProtocolError> {
        let message = self.decode(received)?;
        check_eof(message, received)
    }
}

impl Encoder<GatewayMessage> for GatewayCodec {
    type Error = ProtocolError;

    fn encode(&mut self, message: GatewayMessage, frame: &mut BytesMut) -> Result<(), ProtocolError> {
        message.encode(frame)
    }
}

/// The worker's side: reads [`GatewayMessage`], writes [`WorkerMessage`].
#[derive(Debug, Default)]
pub struct WorkerCodec {
    _private: (),
}

impl Decoder for WorkerCodec {
    type Item = GatewayMessage;
    type Error = ProtocolError;

    fn decode(&mut self, received: &mut BytesMut) -> Result<Option<GatewayMessage>, ProtocolError> {
        take_frame(received)?
            .map(|(message_type, body)| GatewayMessage::decode(message_type, &body))
            .transpose()
    }

    fn decode_eof(&mut self, received: &mut BytesMut) -> Result<Option<GatewayMessage>, ProtocolError> {
        let message = self.decode(received)?;
        check_eof(message, received)
    }
}

impl Encoder<WorkerMessage> for WorkerCodec {
    type Error = ProtocolError;

    fn encode(&mut self, message: WorkerMessage, frame: &mut BytesMut) -> Result<(), ProtocolError> {
        message.encode(frame)
    }
}

/// Takes one whole frame off the front, or says how much room the rest of it needs by reserving it.
fn take_frame(received: &mut BytesMut) -> Result<Option<(MessageType, Bytes)>, ProtocolError> {
    let Some(header_bytes) = received.first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let header = Header::decode(header_bytes)?;
    let frame_bytes = HEADER_BYTES + header.body_bytes as usize;
    if received.len() < frame_bytes {
        received.reserve(frame_bytes - received.len());
        return Ok(None);
    }
    let mut frame = received.split_to(frame_bytes);
    frame.advance(HEADER_BYTES);
    Ok(Some((header.message_type, frame.freeze())))
}

fn check_eof<T>(message: Option<T>, received: &BytesMut) -> Result<Option<T>, ProtocolError> {
    if message.is_none() && !received.is_empty() {
        return Err(ProtocolError::Truncated { received: received.len() });
    }
    Ok(message)
}
