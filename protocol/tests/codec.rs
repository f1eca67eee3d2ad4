//! Frames as a stream delivers them: whole, byte by byte, cut, and hostile.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use akidb_protocol::{
    Begun, Embed, GatewayCodec, GatewayMessage, HEADER_BYTES, Header, Heartbeat, MessageType, Pooling,
    ProtocolError, Vectors, WorkerCodec, WorkerMessage,
};
use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use tokio_util::codec::{Decoder, Encoder};

fn vectors() -> WorkerMessage {
    WorkerMessage::Vectors(Vectors {
        batch_id: 7,
        count: 2,
        dimension: 3,
        compute_seconds: 0.5,
        vectors: Bytes::from(vec![1; 24]),
    })
}

fn encoded(message: WorkerMessage) -> BytesMut {
    let mut frame = BytesMut::new();
    WorkerCodec::default().encode(message, &mut frame).unwrap();
    frame
}

fn raw_frame(message_type: MessageType, body: &[u8]) -> BytesMut {
    let mut frame = BytesMut::new();
    let body_bytes = u32::try_from(body.len()).unwrap();
    frame.extend_from_slice(&Header { message_type, body_bytes }.encode());
    frame.extend_from_slice(body);
    frame
}

#[test]
fn two_frames_in_one_read_come_out_one_by_one() {
    let mut stream = encoded(vectors());
    stream.extend_from_slice(&encoded(WorkerMessage::Heartbeat(Heartbeat {
        steps_done: 1,
        memory_bytes: None,
    })));
    let mut codec = GatewayCodec::default();
    assert_eq!(codec.decode(&mut stream).unwrap(), Some(vectors()));
    assert!(matches!(codec.decode(&mut stream).unwrap(), Some(WorkerMessage::Heartbeat(_))));
    assert_eq!(codec.decode_eof(&mut stream).unwrap(), None);
}

#[test]
fn a_frame_that_arrives_byte_by_byte_is_read_at_its_last_byte() {
    let frame = encoded(vectors());
    let mut codec = GatewayCodec::default();
    let mut received = BytesMut::new();
    for (index, byte) in frame.iter().enumerate() {
        received.extend_from_slice(&[*byte]);
        let message = codec.decode(&mut received).unwrap();
        assert_eq!(message.is_some(), index + 1 == frame.len());
    }
}

#[test]
fn a_stream_that_ends_inside_a_frame_is_an_error_at_every_byte() {
    let frame = encoded(vectors());
    for cut in 1..frame.len() {
        let mut received = BytesMut::from(&frame[..cut]);
        let error = GatewayCodec::default().decode_eof(&mut received).unwrap_err();
        assert!(matches!(error, ProtocolError::Truncated { received } if received == cut), "{error}");
    }
}

#[test]
fn an_enormous_length_is_refused_before_memory_is_reserved() {
    let mut received = BytesMut::from(&b"AKDB\x01\x04\x00\x00\xff\xff\xff\xff"[..]);
    let capacity = received.capacity();
    let error = GatewayCodec::default().decode(&mut received).unwrap_err();
    assert!(matches!(error, ProtocolError::BodyTooLong(0xffff_ffff)));
    assert_eq!(received.capacity(), capacity);
}

#[test]
fn vectors_share_the_memory_they_were_received_in() {
    let mut received = encoded(vectors());
    let range = received.as_ptr_range();
    let Some(WorkerMessage::Vectors(decoded)) = GatewayCodec::default().decode(&mut received).unwrap() else {
        panic!("not a vectors message");
    };
    assert!(range.contains(&decoded.vectors.as_ptr()));
}

#[test]
fn a_count_that_does_not_fit_the_vectors_is_refused() {
    let WorkerMessage::Vectors(mut message) = vectors() else { unreachable!() };
    message.count = 3;
    let error = GatewayCodec::default().decode(&mut encoded(WorkerMessage::Vectors(message))).unwrap_err();
    assert!(matches!(error, ProtocolError::WrongLength { field: "vectors", expected: 36, actual: 24 }));
}

#[test]
fn a_count_and_a_dimension_whose_product_overflows_are_refused() {
    for (count, dimension) in [(1 << 31, 1 << 31), (u32::MAX, u32::MAX), (1 << 30, 1 << 17)] {
        let message = Vectors { batch_id: 7, count, dimension, compute_seconds: 0.5, vectors: Bytes::new() };
        let error =
            GatewayCodec::default().decode(&mut encoded(WorkerMessage::Vectors(message))).unwrap_err();
        assert!(matches!(error, ProtocolError::WrongLength { field: "vectors", actual: 0, .. }), "{error}");
    }
}

#[test]
fn lengths_that_do_not_fit_the_token_ids_are_refused() {
    let mut embed = Embed::new(1, Pooling::Mean, 0, [&[1, 2, 3][..], &[4][..]].into_iter());
    embed.token_ids = embed.token_ids.slice(..12);
    let mut frame = BytesMut::new();
    GatewayCodec::default().encode(GatewayMessage::Embed(embed), &mut frame).unwrap();
    let error = WorkerCodec::default().decode(&mut frame).unwrap_err();
    assert!(matches!(error, ProtocolError::WrongLength { field: "token_ids", expected: 16, actual: 12 }));
}

#[test]
fn a_missing_key_is_refused_and_an_unknown_key_is_ignored() {
    // {} and {"batch_id": 5, "later": [1]}
    let mut codec = GatewayCodec::default();
    let error = codec.decode(&mut raw_frame(MessageType::Begun, b"\x80")).unwrap_err();
    assert!(error.to_string().contains("batch_id"), "{error}");
    let body = b"\x82\xa8batch_id\x05\xa5later\x91\x01";
    let message = codec.decode(&mut raw_frame(MessageType::Begun, body)).unwrap();
    assert_eq!(message, Some(WorkerMessage::Begun(Begun { batch_id: 5 })));
}

#[test]
fn a_message_that_travels_the_other_way_is_refused() {
    let mut frame = BytesMut::new();
    let embed = Embed::new(1, Pooling::Cls, 0, [&[1][..]].into_iter());
    GatewayCodec::default().encode(GatewayMessage::Embed(embed), &mut frame).unwrap();
    assert!(matches!(GatewayCodec::default().decode(&mut frame), Err(ProtocolError::UnexpectedType(16))));
    let mut begun = encoded(WorkerMessage::Begun(Begun { batch_id: 1 }));
    assert!(matches!(WorkerCodec::default().decode(&mut begun), Err(ProtocolError::UnexpectedType(3))));
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        let mut received = BytesMut::from(&bytes[..]);
        let _ = GatewayCodec::default().decode_eof(&mut received);
        let mut received = BytesMut::from(&bytes[..]);
        let _ = WorkerCodec::default().decode_eof(&mut received);
    }

    #[test]
    fn any_body_behind_a_valid_header_is_read_or_refused(
        message_type in prop::sample::select(vec![1_u8, 2, 3, 4, 5, 6, 7, 16]),
        body in prop::collection::vec(any::<u8>(), 0..256),
    ) {
        let mut frame = raw_frame(MessageType::try_from(message_type).unwrap(), &body);
        let _ = GatewayCodec::default().decode(&mut frame);
    }

    #[test]
    fn embed_frames_survive_the_round_trip(
        texts in prop::collection::vec(prop::collection::vec(any::<u32>(), 1..20), 1..20),
        batch_id in any::<u64>(),
        threads in any::<u16>(),
    ) {
        let embed = Embed::new(batch_id, Pooling::Last, threads, texts.iter().map(Vec::as_slice));
        let mut frame = BytesMut::new();
        GatewayCodec::default().encode(GatewayMessage::Embed(embed.clone()), &mut frame).unwrap();
        prop_assert!(frame.len() > HEADER_BYTES);
        prop_assert_eq!(WorkerCodec::default().decode(&mut frame).unwrap(), Some(GatewayMessage::Embed(embed)));
    }
}
