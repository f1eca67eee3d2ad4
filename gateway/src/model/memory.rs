//! What a model's weights take in the memory of each worker.

use super::compute::{Compute, CpuWeights, GpuDtype};
use super::files::ModelConfig;

const BITS_OF_FLOAT32: f64 = 32.0;
const BITS_OF_HALF: f64 = 16.0;

/// Size of the weights in a worker, in bytes: as they are stored, and as many times more as the type in which they are
/// held needs. It is at most this, because the table of words stays as it is stored.
pub(super) fn weights_bytes(stored_bytes: u64, config: &ModelConfig, compute: Compute) -> u64 {
    let growth = if compute.is_on_unified_gpu() {
        on_gpu(config, compute.gpu_dtype)
    } else {
        on_cpu(config, compute.cpu_weights)
    };
    scale(stored_bytes, growth)
}

/// How many times larger float32 is than what is stored.
fn on_cpu(config: &ModelConfig, cpu_weights: CpuWeights) -> f64 {
    match (config.quantization(), cpu_weights) {
        (Some(_), CpuWeights::Quantized) => 1.0,
        (Some(quantization), CpuWeights::Float32) => {
            BITS_OF_FLOAT32 / quantization.bits.unwrap_or(BITS_OF_FLOAT32).clamp(1.0, BITS_OF_FLOAT32)
        }
        (None, _) => BITS_OF_FLOAT32 / stored_bits(config),
    }
}

/// The same for the type in which a GPU computes; quantized weights stay as they are.
fn on_gpu(config: &ModelConfig, gpu_dtype: GpuDtype) -> f64 {
    match (config.quantization(), gpu_dtype) {
        (None, GpuDtype::Float32) => BITS_OF_FLOAT32 / stored_bits(config),
        _ => 1.0,
    }
}

fn stored_bits(config: &ModelConfig) -> f64 {
    match config.dtype.as_deref().or(config.torch_dtype.as_deref()) {
        Some("float16" | "bfloat16") => BITS_OF_HALF,
        _ => BITS_OF_FLOAT32,
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
        let growth = |config: &str, cpu_weights| on_cpu(&serde_json::from_str(config).unwrap(), cpu_weights);
        let quantized =
            r#"{"model_type": "qwen3", "hidden_size": 8, "dtype": "bfloat16", "quantization": {"bits": 4}}"#;
        assert!((growth(quantized, CpuWeights::Float32) - 8.0).abs() < 1e-9);
        assert!((growth(quantized, CpuWeights::Quantized) - 1.0).abs() < 1e-9);
        let half = r#"{"model_type": "qwen3", "hidden_size": 8, "torch_dtype": "float16"}"#;
        assert!((growth(half, CpuWeights::Quantized) - 2.0).abs() < 1e-9);
        let odd = r#"{"model_type": "bert", "hidden_size": 8, "quantization": {"bits": 1e-300}}"#;
        assert!(growth(odd, CpuWeights::Float32) <= 32.0);
    }

    #[test]
    fn a_gpu_holds_weights_as_they_are_unless_it_computes_in_float32() {
        let growth = |config: &str, gpu_dtype| on_gpu(&serde_json::from_str(config).unwrap(), gpu_dtype);
        let half = r#"{"model_type": "qwen3", "hidden_size": 8, "torch_dtype": "bfloat16"}"#;
        assert!((growth(half, GpuDtype::Float32) - 2.0).abs() < 1e-9);
        for dtype in [GpuDtype::Float16, GpuDtype::Bfloat16, GpuDtype::Stored] {
            assert!((growth(half, dtype) - 1.0).abs() < 1e-9);
        }
        let whole = r#"{"model_type": "bert", "hidden_size": 8}"#;
        assert!((growth(whole, GpuDtype::Float32) - 1.0).abs() < 1e-9);
        let quantized = r#"{"model_type": "qwen3", "hidden_size": 8, "quantization": {"bits": 4}}"#;
        assert!((growth(quantized, GpuDtype::Float32) - 1.0).abs() < 1e-9);
    }
}
