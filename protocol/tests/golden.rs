//! The golden frames in `vectors/` are what this crate writes, byte by byte, and what it reads.
//!
//! `AKIDB_WRITE_GOLDEN=1 cargo test -p akidb-protocol --test golden` writes them anew after a deliberate
//! change of the protocol.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};

use akidb_protocol::{
    Begun, Embed, Failed, Fatal, GatewayCodec, GatewayMessage, Heartbeat, Hello, Pooling, Ready, Vectors,
    WorkerCodec, WorkerMessage,
};
use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};
use tokio_util::codec::{Decoder, Encoder};

enum Message {
    Worker(WorkerMessage),
    Gateway(GatewayMessage),
}

fn golden() -> Vec<(&'static str, Message, Value)> {
    let ready = Ready {
        model_type: "bert".to_owned(),
        dimension: 384,
        max_tokens: 256,
        device: "cpu".to_owned(),
        dtype: "float32".to_owned(),
        blas: "openblas".to_owned(),
        warnings: vec!["a warning with \u{e9}".to_owned()],
        warm_up_tokens: 512,
        warm_up_seconds: 0.125,
    };
    let values: Vec<u8> = [1.0_f32, -0.5, 0.25, 3.5].iter().flat_map(|value| value.to_le_bytes()).collect();
    let texts: [&[u32]; 2] = [&[101, 7592, 2088, 102], &[101, 70_000, 102]];
    let embed = Embed::new(258, Pooling::Mean, 2, texts.into_iter());
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    vec![
        (
            "hello",
            Message::Worker(WorkerMessage::Hello(Hello { pid: 4242, sidecar_version: "0.1.0".to_owned() })),
            json!({"pid": 4242, "sidecar_version": "0.1.0"}),
        ),
        ("ready", Message::Worker(WorkerMessage::Ready(ready.clone())), json!(ready)),
        (
            "begun",
            Message::Worker(WorkerMessage::Begun(Begun { batch_id: u64::MAX })),
            json!({"batch_id": u64::MAX}),
        ),
        (
            "vectors",
            Message::Worker(WorkerMessage::Vectors(Vectors {
                batch_id: 258,
                count: 2,
                dimension: 2,
                compute_seconds: 0.0625,
                vectors: Bytes::from(values.clone()),
            })),
            json!({"batch_id": 258, "count": 2, "dimension": 2, "compute_seconds": 0.0625,
                   "vectors": hex(&values)}),
        ),
        (
            "failed",
            Message::Worker(WorkerMessage::Failed(Failed {
                batch_id: 3,
                code: "inference_failed".to_owned(),
                message: "out of memory".to_owned(),
            })),
            json!({"batch_id": 3, "code": "inference_failed", "message": "out of memory"}),
        ),
        (
            "fatal",
            Message::Worker(WorkerMessage::Fatal(Fatal {
                code: "bad_model".to_owned(),
                message: "no weights".to_owned(),
            })),
            json!({"code": "bad_model", "message": "no weights"}),
        ),
        (
            "heartbeat",
            Message::Worker(WorkerMessage::Heartbeat(Heartbeat { steps_done: 70_000, memory_bytes: None })),
            json!({"steps_done": 70_000}),
        ),
        (
            "heartbeat_with_memory",
            Message::Worker(WorkerMessage::Heartbeat(Heartbeat {
                steps_done: 70_000,
                memory_bytes: Some(1 << 33),
            })),
            json!({"steps_done": 70_000, "memory_bytes": 1_u64 << 33}),
        ),
        (
            "embed",
            Message::Gateway(GatewayMessage::Embed(embed.clone())),
            json!({"batch_id": 258, "pooling": "mean", "threads": 2, "lengths": hex(&embed.lengths),
                   "token_ids": hex(&embed.token_ids)}),
        ),
    ]
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors")
}

fn encode(message: &Message) -> BytesMut {
    let mut frame = BytesMut::new();
    match message {
        Message::Worker(message) => WorkerCodec::default().encode(message.clone(), &mut frame).unwrap(),
        Message::Gateway(message) => GatewayCodec::default().encode(message.clone(), &mut frame).unwrap(),
    }
    frame
}

#[test]
fn frames_are_written_and_read_as_the_golden_files_say() {
    let write = std::env::var_os("AKIDB_WRITE_GOLDEN").is_some();
    let mut index = Vec::new();
    for (name, message, fields) in golden() {
        let file = format!("{name}.bin");
        let frame = encode(&message);
        let kind = name.split("_with_").next();
        index.push(json!({"file": file, "type": kind, "fields": fields}));
        if write {
            std::fs::write(folder().join(&file), &frame).unwrap();
        }
        let stored = std::fs::read(folder().join(&file)).unwrap();
        assert_eq!(&frame[..], &stored[..], "{file} is not what this crate writes");

        let mut received = BytesMut::from(&stored[..]);
        match message {
            Message::Worker(expected) => {
                assert_eq!(GatewayCodec::default().decode(&mut received).unwrap(), Some(expected));
            }
            Message::Gateway(expected) => {
                assert_eq!(WorkerCodec::default().decode(&mut received).unwrap(), Some(expected));
            }
        }
    }
    let path = folder().join("index.json");
    if write {
        std::fs::write(&path, serde_json::to_string_pretty(&index).unwrap() + "\n").unwrap();
    }
    let stored: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(stored, Value::Array(index));
}
