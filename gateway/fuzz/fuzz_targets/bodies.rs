//! Arbitrary bodies for `POST /api/v1/embed`.
//!
//! What must hold: no panic; a refusal says why in a line that is not as long as the body; what is accepted is what a
//! plain JSON parser finds there, and is found again when it is written as JSON and parsed once more.
#![no_main]

use akidb_gateway::benchmark::parse_texts;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

/// Longest reason of a refusal, in bytes: it goes into the answer.
const LONGEST_REASON_BYTES: usize = 500;

fuzz_target!(|body: &[u8]| {
    let texts = match parse_texts(body) {
        Ok(texts) => texts,
        Err(reason) => {
            assert!(reason.len() <= LONGEST_REASON_BYTES, "{} bytes of reason", reason.len());
            return;
        }
    };
    // A number that is too large for it, under a key that we ignore, makes the plain parser give up.
    if let Ok(value) = serde_json::from_slice::<Value>(body) {
        assert_eq!(value["texts"], json!(texts));
    }
    let again = json!({ "texts": texts }).to_string();
    assert_eq!(parse_texts(again.as_bytes()), Ok(texts));
});
