//! The files of a model's directory that the gateway needs, as they are written.

use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::json;

/// `config.json`. Older files of `nomic_bert` name some keys as GPT-2 does.
#[derive(Debug, Deserialize)]
pub(super) struct ModelConfig {
    pub(super) model_type: String,
    hidden_size: Option<usize>,
    n_embd: Option<usize>,
    max_position_embeddings: Option<usize>,
    n_positions: Option<usize>,
    pub(super) vocab_size: Option<usize>,
    pub(super) tokenizer_class: Option<String>,
    /// Some models state -1 where they have none.
    pub(super) pad_token_id: Option<i64>,
    pub(super) eos_token_id: Option<OneOrMany<i64>>,
    /// The type of the weights; newer files call it `dtype`.
    pub(super) torch_dtype: Option<String>,
    pub(super) dtype: Option<String>,
    quantization: Option<Quantization>,
    quantization_config: Option<Quantization>,
}

impl ModelConfig {
    /// Length of a token's vector.
    pub(super) fn dimension(&self) -> Option<usize> {
        self.hidden_size.or(self.n_embd)
    }

    /// How the weights are quantized, where they are; some files say it twice.
    pub(super) fn quantization(&self) -> Option<&Quantization> {
        self.quantization.as_ref().or(self.quantization_config.as_ref())
    }

    /// Positions that the model has, those of padding included.
    pub(super) fn positions(&self) -> Option<usize> {
        self.max_position_embeddings.or(self.n_positions)
    }
}

/// How MLX quantized the weights. What is wrong with it, the worker says.
#[derive(Debug, Deserialize)]
pub(super) struct Quantization {
    pub(super) bits: Option<f64>,
}

/// A key that holds one value, or a list of them.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    pub(super) fn as_slice(&self) -> &[T] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

/// `tokenizer_config.json`; a number beyond `usize` stands for "no limit" in some models.
#[derive(Debug, Deserialize)]
pub(super) struct TokenizerConfig {
    /// Older files call it `max_len`.
    #[serde(alias = "max_len")]
    pub(super) model_max_length: Option<f64>,
}

/// Reads a JSON file of the directory; `None` when there is none.
pub(super) fn read<T: DeserializeOwned>(folder: &Path, name: &str) -> Result<Option<T>, String> {
    match std::fs::read(folder.join(name)) {
        Ok(bytes) => json::parse(&bytes).map(Some).map_err(|error| format!("`{name}` is not valid: {error}")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("`{name}` cannot be read: {error}")),
    }
}
