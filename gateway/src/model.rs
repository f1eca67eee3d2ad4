//! Which model is served, and the facts its own files state: dimension, length limit, pooling, size.

use std::path::{Path, PathBuf};

use akidb_protocol::Pooling;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error::StartError;
use crate::sidecar::Sidecar;

/// Which model to serve.
#[derive(Debug, Clone)]
pub struct Config {
    /// A name, a hub repository, or a directory.
    pub model: String,
    /// Name for requests and answers; `None` derives it from `model`.
    pub served_name: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self { model: "qwen3-0.6b-4bit".to_owned(), served_name: None }
    }
}

/// A model that lies in a local directory, and what its files say.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    /// Name that requests and answers use.
    pub(crate) served_name: String,
    /// Directory in Hugging Face layout.
    pub(crate) path: PathBuf,
    /// Length of every vector.
    pub(crate) dimension: usize,
    /// Longest text, in tokens.
    pub(crate) max_tokens: usize,
    /// Pooling the model was trained with.
    pub(crate) pooling: Pooling,
    /// Size of the weights on disk, in bytes.
    pub(crate) weights_bytes: u64,
}

/// `config.json`, as far as the gateway needs it.
#[derive(Deserialize)]
struct ModelConfig {
    model_type: String,
    hidden_size: usize,
    max_position_embeddings: Option<usize>,
}

/// `sentence_bert_config.json`.
#[derive(Deserialize)]
struct SentenceConfig {
    max_seq_length: Option<usize>,
}

/// `tokenizer_config.json`; a number beyond `usize` stands for "no limit" in some models.
#[derive(Deserialize)]
struct TokenizerConfig {
    model_max_length: Option<f64>,
}

/// `1_Pooling/config.json`.
#[derive(Deserialize)]
struct PoolingConfig {
    #[serde(default)]
    pooling_mode_cls_token: bool,
    #[serde(default)]
    pooling_mode_mean_tokens: bool,
    #[serde(default)]
    pooling_mode_lasttoken: bool,
}

impl Model {
    /// Finds or downloads the model, and reads its files.
    pub(crate) async fn resolve(
        config: &Config,
        sidecar: &Sidecar,
        show_progress: bool,
    ) -> Result<Self, StartError> {
        let prepared = sidecar.prepare(&config.model, show_progress).await?.map_err(|error| {
            match error.code.as_str() {
                "model_not_found" | "hub_unreachable" => StartError::ModelNotFound {
                    reason: error.message,
                    works: command_that_works(
                        std::env::args_os().map(|word| word.to_string_lossy().into_owned()),
                    ),
                },
                _ => StartError::Model { model: config.model.clone(), reason: error.message },
            }
        })?;
        let served_name = config.served_name.clone().unwrap_or_else(|| default_name(&config.model));
        let model = Self::read(served_name, prepared.path)
            .map_err(|reason| StartError::Model { model: config.model.clone(), reason })?;
        tracing::info!(
            model = model.served_name,
            source = prepared.source,
            revision = prepared.revision,
            dimension = model.dimension,
            max_tokens = model.max_tokens,
            pooling = model.pooling.name(),
            "model resolved"
        );
        Ok(model)
    }

    fn read(served_name: String, path: PathBuf) -> Result<Self, String> {
        let config: ModelConfig =
            read_json(&path.join("config.json"))?.ok_or("`config.json` is missing from its directory")?;
        let sentence: Option<SentenceConfig> = read_json(&path.join("sentence_bert_config.json"))?;
        let tokenizer: Option<TokenizerConfig> = read_json(&path.join("tokenizer_config.json"))?;
        let pooling: Option<PoolingConfig> = read_json(&path.join("1_Pooling/config.json"))?;
        let max_tokens = max_tokens(&config, sentence.as_ref(), tokenizer.as_ref()).ok_or(
            "its files state no usable length limit, neither `max_seq_length` nor `max_position_embeddings`",
        )?;
        if config.hidden_size == 0 {
            return Err("`hidden_size` in `config.json` is 0".to_owned());
        }
        Ok(Self {
            served_name,
            dimension: config.hidden_size,
            max_tokens,
            pooling: default_pooling(&config.model_type, pooling.as_ref())?,
            weights_bytes: weights_bytes(&path),
            path,
        })
    }
}

/// A model's name, or the last component of its path.
fn default_name(model: &str) -> String {
    let is_path = Path::new(model).is_dir();
    let canonical = if is_path { std::fs::canonicalize(model).ok() } else { None };
    let last = canonical.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    last.unwrap_or_else(|| model.to_owned())
}

/// `max_seq_length`, else `model_max_length`, but never more than the model has positions.
fn max_tokens(
    config: &ModelConfig,
    sentence: Option<&SentenceConfig>,
    tokenizer: Option<&TokenizerConfig>,
) -> Option<usize> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range was checked")]
    let model_max_length = tokenizer
        .and_then(|tokenizer| tokenizer.model_max_length)
        .filter(|length| (1.0..1e9).contains(length))
        .map(|length| length as usize);
    let stated = sentence.and_then(|sentence| sentence.max_seq_length).or(model_max_length);
    let positions = config.max_position_embeddings;
    let limit = match (stated, positions) {
        (Some(stated), Some(positions)) => stated.min(positions),
        (Some(only), None) | (None, Some(only)) => only,
        (None, None) => return None,
    };
    (limit > 0).then_some(limit)
}

fn default_pooling(model_type: &str, config: Option<&PoolingConfig>) -> Result<Pooling, String> {
    match config {
        Some(PoolingConfig { pooling_mode_mean_tokens: true, .. }) => Ok(Pooling::Mean),
        Some(PoolingConfig { pooling_mode_cls_token: true, .. }) => Ok(Pooling::Cls),
        Some(PoolingConfig { pooling_mode_lasttoken: true, .. }) => Ok(Pooling::Last),
        Some(_) => {
            Err("`1_Pooling/config.json` asks for a pooling other than mean, cls or last token".to_owned())
        }
        None if model_type == "qwen3" => Ok(Pooling::Last),
        None => Ok(Pooling::Mean),
    }
}

/// Reads a JSON file; `None` when there is none.
fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| format!("`{name}` is not valid: {error}")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("`{name}` cannot be read: {error}")),
    }
}

fn weights_bytes(path: &Path) -> u64 {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let weights = entries.filter(|entry| entry.path().extension().is_some_and(|end| end == "safetensors"));
    weights.filter_map(|entry| std::fs::metadata(entry.path()).ok()).map(|data| data.len()).sum()
}

/// The command line as it was typed, with a model that needs no download.
fn command_that_works(arguments: impl Iterator<Item = String>) -> String {
    let mut words = Vec::new();
    let mut arguments = arguments.peekable();
    while let Some(word) = arguments.next() {
        if word == "--model" || word == "--served-model-name" {
            arguments.next();
        } else if !word.starts_with("--model=") && !word.starts_with("--served-model-name=") {
            words.push(word);
        }
    }
    words.extend(["--model".to_owned(), "all-minilm-l6-v2".to_owned()]);
    shlex::try_join(words.iter().map(String::as_str)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(sentence: Option<usize>, tokenizer: Option<f64>, positions: Option<usize>) -> Option<usize> {
        let config =
            ModelConfig { model_type: "bert".to_owned(), hidden_size: 8, max_position_embeddings: positions };
        let sentence = SentenceConfig { max_seq_length: sentence };
        let tokenizer = TokenizerConfig { model_max_length: tokenizer };
        max_tokens(&config, Some(&sentence), Some(&tokenizer))
    }

    #[test]
    fn the_sentence_limit_comes_first_and_never_exceeds_the_positions() {
        assert_eq!(limit(Some(256), Some(512.0), Some(512)), Some(256));
        assert_eq!(limit(None, Some(128.0), Some(512)), Some(128));
        assert_eq!(limit(None, Some(1e30), Some(512)), Some(512));
        assert_eq!(limit(None, Some(131_072.0), Some(32_768)), Some(32_768));
        assert_eq!(limit(Some(0), None, Some(512)), None);
        assert_eq!(limit(None, None, None), None);
    }

    #[test]
    fn the_command_that_works_keeps_the_other_flags() {
        let typed =
            ["bin/akidb-gateway", "--model", "gone", "--workers", "2", "--model=x", "--python", "a b"];
        let works = command_that_works(typed.iter().map(|word| (*word).to_owned()));
        assert_eq!(works, "bin/akidb-gateway --workers 2 --python 'a b' --model all-minilm-l6-v2");
    }

    #[test]
    fn a_pooling_we_cannot_do_is_refused() {
        let config = serde_json::from_str(r#"{"pooling_mode_max_tokens": true}"#).unwrap();
        assert!(default_pooling("bert", Some(&config)).unwrap_err().contains("1_Pooling"));
        assert_eq!(default_pooling("qwen3", None), Ok(Pooling::Last));
        assert_eq!(default_pooling("bert", None), Ok(Pooling::Mean));
    }
}
