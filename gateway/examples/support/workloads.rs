//! What benchmarks and the count of instructions run: one batch of 32 texts of 33 tokens on its way.

use akidb_gateway::{Pooling, benchmark};
use akidb_protocol::{Embed, GatewayCodec, GatewayMessage, Vectors, WorkerCodec, WorkerMessage};
use bytes::{Bytes, BytesMut};
use std::hint::black_box;
use tokio_util::codec::{Decoder, Encoder};

const TEXTS: usize = 32;
const TOKENS: usize = 33;
const DIMENSION: usize = 384;

/// A name, and a function that does one piece of work.
pub(crate) type Workload = (&'static str, Box<dyn Fn()>);

/// Everything there is to run.
pub(crate) fn all() -> Vec<Workload> {
    let texts: Vec<Vec<u32>> =
        (0..TEXTS).map(|text| (0..TOKENS).map(|token| id(text, token)).collect()).collect();
    let vectors: Vec<Vec<f32>> =
        (0..TEXTS).map(|text| (0..DIMENSION).map(|place| number(text, place)).collect()).collect();
    let body =
        format!("{{\"texts\":[{}]}}", vec![format!("\"{}\"", "a word of text ".repeat(10)); TEXTS].join(","));
    let lengths: Vec<usize> = (0..1000).map(|text| 5 + text * 37 % 200).collect();
    let answer = encoded(&vectors);
    vec![
        (
            "codec_encode_embed",
            Box::new(move || {
                let embed = Embed::new(1, Pooling::Mean, 2, texts.iter().map(Vec::as_slice));
                let mut frame = BytesMut::new();
                drop(black_box(GatewayCodec::default().encode(GatewayMessage::Embed(embed), &mut frame)));
                black_box(frame);
            }),
        ),
        (
            "codec_decode_vectors",
            Box::new(move || {
                let mut received = BytesMut::from(&answer[..]);
                black_box(GatewayCodec::default().decode(&mut received).is_ok());
            }),
        ),
        (
            "packing_1000_texts",
            Box::new(move || {
                black_box(benchmark::form_batches(black_box(&lengths), 512));
            }),
        ),
        (
            "json_parse_32_texts",
            Box::new(move || {
                black_box(benchmark::parse_request(black_box(body.as_bytes())));
            }),
        ),
        (
            "json_write_32_vectors",
            Box::new(move || {
                black_box(benchmark::write_answer(vectors.clone()));
            }),
        ),
    ]
}

fn id(text: usize, token: usize) -> u32 {
    u32::try_from((text * 7919 + token * 104_729) % 30_000).unwrap_or(0)
}

fn number(text: usize, place: usize) -> f32 {
    (f32::from(u16::try_from((text * 7919 + place * 31) % 2003).unwrap_or(0)) - 1001.5) / 20_011.0
}

fn encoded(vectors: &[Vec<f32>]) -> BytesMut {
    let numbers: Vec<u8> = vectors.iter().flatten().flat_map(|number| number.to_le_bytes()).collect();
    let message = WorkerMessage::Vectors(Vectors {
        batch_id: 1,
        count: u32::try_from(TEXTS).unwrap_or(0),
        dimension: u32::try_from(DIMENSION).unwrap_or(0),
        compute_seconds: 0.05,
        vectors: Bytes::from(numbers),
    });
    let mut frame = BytesMut::new();
    drop(WorkerCodec::default().encode(message, &mut frame));
    frame
}
