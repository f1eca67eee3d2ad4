//! The JSON of a response.

use serde::Serialize;

use crate::http::writer::ResponseForm;
use crate::manager::{Embeddings, ModelInfo};

/// What follows the vectors.
#[derive(Serialize)]
struct Rest<'a> {
    model: &'a str,
    dimension: usize,
    usage: Usage,
}

#[derive(Serialize)]
struct Usage {
    total_tokens: u64,
    truncated: usize,
    duration_ms: u64,
}

/// `{"embeddings":[[...],...],"model":...,"dimension":...,"usage":{...}}`
#[derive(Debug)]
pub(super) struct Form {
    rest: Vec<u8>,
}

impl Form {
    pub(super) fn new(embeddings: &Embeddings, info: &ModelInfo) -> Self {
        let duration_ms =
            u64::try_from(embeddings.duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
        let usage =
            Usage { total_tokens: embeddings.total_tokens, truncated: embeddings.truncated, duration_ms };
        let rest = Rest { model: &info.model, dimension: embeddings.dimension, usage };
        Self { rest: serde_json::to_vec(&rest).expect("our own responses are valid JSON: this is a bug") }
    }
}

impl ResponseForm for Form {
    fn open(&mut self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(b"{\"embeddings\":[");
    }

    fn vector(&mut self, bytes: &mut Vec<u8>, index: usize, vector: &[f32]) {
        if index > 0 {
            bytes.push(b',');
        }
        serde_json::to_writer(bytes, vector).expect("numbers are valid JSON: this is a bug");
    }

    fn close(&mut self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(b"],");
        bytes.extend_from_slice(&self.rest[1..]);
    }

    fn closing_bytes(&self) -> usize {
        self.rest.len()
    }
}
