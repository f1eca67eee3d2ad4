//! What a model's weights take in the memory of each worker.

use super::compute::{Compute, CpuWeights};
use super::files::ModelConfig;

const BITS_OF_FLOAT32: f64 = 32.0;
const BITS_OF_HALF: f64 = 16.0;

/// Size of the weights in a worker, in bytes: as they are stored, and on a CPU as many times more as float32 needs. It is
/// at most this, because the table of words stays as it is stored.
pub(super) fn weights_bytes(stored_bytes: u64, config: &ModelConfig, compute: Compute) -> u64 {
    let growth = if compute.is_on_unified_gpu() { 1.0 } else { growth(config, compute.cpu_weights) };
    scale(stored_bytes, growth)
}

/// How many times larger float32 is than what is stored.
fn growth(config: &ModelConfig, cpu_weights: CpuWeights) -> f64 {
    match (config.quantization(), cpu_weights) {
        (Some(_), CpuWeights::Quantized) => 1.0,
        (Some(quantization), CpuWeights::Float32) => {
            BITS_OF_FLOAT32 / quantization.bits.unwrap_or(BITS_OF_FLOAT32).clamp(1.0, BITS_OF_FLOAT32)
        }
        (None, _) => match config.dtype.as_deref().or(config.torch_dtype.as_deref()) {
            Some("float16" | "bfloat16") => BITS_OF_FLOAT32 / BITS_OF_HALF,
            _ => 1.0,
        },
    }
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an estimate"
)]
fn scale(bytes: u64, factor: f64) -> u64 {
    (bytes as f64 * factor) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn float32_needs_more_than_what_is_stored() {
        let growth = |config: &str, cpu_weights| growth(&serde_json::from_str(config).unwrap(), cpu_weights);
        let quantized =
            r#"{"model_type": "qwen3", "hidden_size": 8, "dtype": "bfloat16", "quantization": {"bits": 4}}"#;
        assert!((growth(quantized, CpuWeights::Float32) - 8.0).abs() < 1e-9);
        assert!((growth(quantized, CpuWeights::Quantized) - 1.0).abs() < 1e-9);
        let half = r#"{"model_type": "qwen3", "hidden_size": 8, "torch_dtype": "float16"}"#;
        assert!((growth(half, CpuWeights::Quantized) - 2.0).abs() < 1e-9);
        let odd = r#"{"model_type": "bert", "hidden_size": 8, "quantization": {"bits": 1e-300}}"#;
        assert!(growth(odd, CpuWeights::Float32) <= 32.0);
    }
}
