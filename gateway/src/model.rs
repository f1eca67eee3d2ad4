//! Which model is served, and the facts its own files state.
//!
//! * `files`: the files of transformers as they are written.
//! * `json`: what Python takes for JSON.
//! * `object`: the files of sentence-transformers, of which every key must be known.
//! * `kind`: whether it is an embedding model.
//! * `modules`, `pooling`, `sentence`, `library`: what each file of sentence-transformers says.
//! * `limit`: the longest text.
//! * `memory`: what the weights take in a worker.
//! * `prompts`: the texts that stand before a text.

mod compute;
mod files;
mod json;
mod kind;
mod library;
mod limit;
mod memory;
mod modules;
mod object;
mod pooling;
mod prompts;
mod sentence;

pub use compute::{Compute, CpuWeights, Device, GpuDtype};
pub(crate) use prompts::Prompts;

use std::path::{Path, PathBuf};

use akidb_protocol::Pooling;

use crate::error::StartError;
use crate::sidecar::{Sidecar, Wanted};
use files::{ModelConfig, OneOrMany, TokenizerConfig};
use kind::Signs;
use library::Library;
use modules::{Head, Modules};
use sentence::Sentence;

/// Which model to serve.
#[derive(Debug, Clone)]
pub struct Config {
    /// A name, a hub repository, or a directory.
    pub model: String,
    /// Branch, tag or commit on the hub; `None` is `main`.
    pub revision: Option<String>,
    /// Name for requests and answers; `None` derives it from `model`.
    pub served_name: Option<String>,
    /// What workers compute it with.
    pub compute: Compute,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            model: "qwen3-0.6b-4bit".to_owned(),
            revision: None,
            served_name: None,
            compute: Compute::default(),
        }
    }
}

/// A model in a local directory, and what its files say.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    /// Name that requests and answers use.
    pub(crate) served_name: String,
    /// Folder with `config.json`, `tokenizer.json` and the weights; of older models one within the model.
    pub(crate) path: PathBuf,
    /// Length of every vector.
    pub(crate) dimension: usize,
    /// Longest text, in tokens.
    pub(crate) max_tokens: usize,
    /// Pooling the model was trained with.
    pub(crate) pooling: Pooling,
    /// Whether the model's vectors have length 1.
    pub(crate) normalize: bool,
    /// Whether texts are lower-cased before everything else that the tokenizer does.
    pub(crate) lower_case: bool,
    /// Whether the tokens of a prompt are pooled like those of the text.
    pub(crate) pools_prompt: bool,
    /// What the model was trained to read before a text.
    pub(crate) prompts: Prompts,
    /// The token that every text must end with, where the model reads a text's vector off it.
    pub(crate) end_token: Option<EndToken>,
    /// Keys of its files that are served without being known, each with its file.
    pub(crate) unknown_keys: Vec<String>,
    /// `model_type` of `config.json`.
    pub(crate) model_type: String,
    /// `tokenizer_class` of `config.json`.
    pub(crate) tokenizer_class: Option<String>,
    /// Number of tokens that it has vectors for, where its files say so.
    pub(crate) vocabulary: Option<usize>,
    /// Size of the weights' files, in bytes.
    pub(crate) stored_bytes: u64,
    /// What the weights take in the memory of each worker, in bytes, at most.
    pub(crate) weights_bytes: u64,
}

/// The token appended to every text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EndToken {
    /// What it is called in `tokenizer.json`.
    pub(crate) name: &'static str,
    /// Its id by `config.json`, for a tokenizer that does not know the name.
    pub(crate) id: Option<u32>,
}

impl EndToken {
    /// Qwen3 with last-token pooling reads a text's vector off this token.
    fn of(config: &ModelConfig, pooling: Pooling) -> Option<Self> {
        let first = config.eos_token_id.as_ref().and_then(|ids| OneOrMany::as_slice(ids).first());
        let id = first.and_then(|id| u32::try_from(*id).ok());
        (config.model_type == "qwen3" && pooling == Pooling::Last)
            .then_some(Self { name: "<|endoftext|>", id })
    }
}

impl Model {
    /// Finds or downloads the model, and reads its files.
    pub(crate) async fn resolve(
        config: &Config,
        sidecar: &Sidecar,
        show_progress: bool,
    ) -> Result<Self, StartError> {
        let wanted = Wanted { model: &config.model, revision: config.revision.as_deref() };
        let device = config.compute.device.name();
        let prepared = sidecar.prepare(wanted, device, show_progress).await?.map_err(|error| match error
            .code
            .as_str()
        {
            "model_not_found" | "hub_unreachable" => StartError::ModelNotFound {
                reason: error.message,
                works: command_that_works(
                    std::env::args_os().map(|word| word.to_string_lossy().into_owned()),
                ),
            },
            _ => StartError::Model { model: config.model.clone(), reason: error.message },
        })?;
        let served_name = config.served_name.clone().unwrap_or_else(|| default_name(&config.model));
        for warning in &prepared.warnings {
            tracing::warn!(model = served_name, warning, "model warning");
        }
        let model = Self::read(served_name, &prepared.path, prepared.weights_bytes, config.compute)
            .map_err(|reason| StartError::Model { model: config.model.clone(), reason })?;
        tracing::info!(
            model = model.served_name,
            source = prepared.source,
            revision = prepared.revision,
            dimension = model.dimension,
            max_tokens = model.max_tokens,
            pooling = model.pooling.name(),
            normalized = model.normalize,
            prompts = model.prompts.names(),
            "model resolved"
        );
        if !model.unknown_keys.is_empty() {
            tracing::warn!(
                keys = model.unknown_keys.join(", "),
                "ignoring unknown keys in the model's files"
            );
        }
        if model.weights_bytes > model.stored_bytes {
            tracing::info!(
                bytes_in_each_worker = model.weights_bytes,
                bytes_stored = model.stored_bytes,
                "on a CPU the weights become float32; see --cpu-weights to keep them quantized"
            );
        }
        Ok(model)
    }

    /// Reads the files of a model in a local directory, whose weights take this many bytes. The error is one line for a person.
    pub(crate) fn read(
        served_name: String,
        model: &Path,
        stored_bytes: u64,
        compute: Compute,
    ) -> Result<Self, String> {
        Signs::read(model).check()?;
        let modules = Modules::read(model)?;
        let transformer = modules.as_ref().map_or("", |modules| &modules.transformer);
        let path = model.join(transformer);
        let config: ModelConfig =
            files::read(&path, "config.json")?.ok_or("`config.json` is missing from its directory")?;
        let sentence = Sentence::read(model, transformer)?;
        let tokenizer: Option<TokenizerConfig> = files::read(&path, "tokenizer_config.json")?;
        let max_tokens = limit::max_tokens(&config, &sentence, tokenizer.as_ref())?;
        let dimension = config
            .dimension()
            .filter(|dimension| *dimension > 0)
            .ok_or("`hidden_size` in `config.json` is missing or 0")?;
        let head = Head::read(model, modules.as_ref(), &config.model_type, dimension)?;
        let library = Library::read(model, dimension)?;
        let unknown_keys = library.as_ref().map(|library| library.unknown.clone()).unwrap_or_default();
        let prompts = Prompts::new(&config.model_type, library);
        if !head.pools_prompt && head.pooling != Pooling::Last && !prompts.default_text().is_empty() {
            return Err(
                "it has a default prompt and leaves prompts out of its pooling, which is not supported"
                    .to_owned(),
            );
        }
        Ok(Self {
            served_name,
            dimension,
            max_tokens,
            pooling: head.pooling,
            normalize: head.normalize,
            lower_case: sentence.lower_case,
            pools_prompt: head.pools_prompt,
            prompts,
            end_token: EndToken::of(&config, head.pooling),
            unknown_keys,
            vocabulary: config.vocab_size,
            tokenizer_class: config.tokenizer_class.clone(),
            model_type: config.model_type.clone(),
            stored_bytes,
            weights_bytes: memory::weights_bytes(stored_bytes, &config, compute),
            path,
        })
    }
}

/// The name of a file in a folder within a model.
fn within(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

/// A model's name, or the last component of its path.
fn default_name(model: &str) -> String {
    let is_path = Path::new(model).is_dir();
    let canonical = if is_path { std::fs::canonicalize(model).ok() } else { None };
    let last = canonical.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    last.unwrap_or_else(|| model.to_owned())
}

/// The command line as it was typed, with a model that needs no download.
fn command_that_works(arguments: impl Iterator<Item = String>) -> String {
    let mut words = Vec::new();
    let mut arguments = arguments.peekable();
    while let Some(word) = arguments.next() {
        let flag = word.split('=').next().unwrap_or_default();
        if !["--model", "--revision", "--served-model-name"].contains(&flag) {
            words.push(word);
        } else if flag == word {
            arguments.next();
        }
    }
    words.extend(["--model".to_owned(), "all-minilm-l6-v2".to_owned()]);
    shlex::try_join(words.iter().map(String::as_str)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(files: &[(&str, &str)]) -> Result<Model, String> {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::create_dir_all(folder.path().join(name).parent().unwrap()).unwrap();
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        Model::read("test".to_owned(), folder.path(), 0, Compute::default())
    }

    #[test]
    fn a_bare_qwen3_embedding_is_what_it_was_trained_as() {
        let config = r#"{"model_type": "qwen3", "hidden_size": 1024, "max_position_embeddings": 32768, "eos_token_id": [7, 8]}"#;
        let model =
            read(&[("config.json", config), ("tokenizer_config.json", r#"{"model_max_length": 131072}"#)])
                .unwrap();
        assert_eq!((model.pooling, model.normalize, model.max_tokens), (Pooling::Last, true, 32_768));
        assert_eq!(model.prompts.names(), "document, query");
        assert_eq!(model.end_token, Some(EndToken { name: "<|endoftext|>", id: Some(7) }));
    }

    #[test]
    fn only_a_qwen3_with_last_token_pooling_needs_an_end_token() {
        for (model_type, eos, pooling, expected) in [
            ("qwen3", "5", Pooling::Last, Some(Some(5))),
            ("qwen3", "null", Pooling::Last, Some(None)),
            ("qwen3", "[]", Pooling::Last, Some(None)),
            ("qwen3", "-1", Pooling::Last, Some(None)),
            ("qwen3", "5", Pooling::Mean, None),
            ("bert", "5", Pooling::Last, None),
        ] {
            let json =
                format!(r#"{{"model_type": "{model_type}", "hidden_size": 8, "eos_token_id": {eos}}}"#);
            let config = serde_json::from_str(&json).unwrap();
            assert_eq!(EndToken::of(&config, pooling).map(|token| token.id), expected, "{json}");
        }
    }

    #[test]
    fn everything_of_the_transformer_is_read_from_its_own_folder() {
        let modules = r#"[{"name": "0", "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"},
            {"name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]"#;
        let config = |size: usize| {
            format!(r#"{{"model_type": "bert", "hidden_size": {size}, "max_position_embeddings": 64}}"#)
        };
        let model = read(&[
            ("modules.json", modules),
            ("1_Pooling/config.json", r#"{"word_embedding_dimension": 8}"#),
            ("config.json", &config(4)),
            ("sentence_bert_config.json", r#"{"max_seq_length": 4}"#),
            ("0_Transformer/config.json", &config(8)),
            ("0_Transformer/sentence_bert_config.json", r#"{"max_seq_length": 32, "do_lower_case": true}"#),
            ("config_sentence_transformers.json", r#"{"prompts": {"query": "q: "}, "x": 1}"#),
        ])
        .unwrap();
        assert!(model.path.ends_with("0_Transformer") && model.lower_case && !model.normalize);
        assert_eq!((model.dimension, model.max_tokens), (8, 32));
        assert_eq!(model.prompts.named("query"), Some("q: "));
        assert_eq!(model.unknown_keys, ["config_sentence_transformers.json: x"]);
    }

    #[test]
    fn an_older_nomic_bert_names_its_sizes_as_gpt2_does() {
        for newer in ["", r#", "hidden_size": 768, "max_position_embeddings": 8192"#] {
            let config =
                format!(r#"{{"model_type": "nomic_bert", "n_embd": 768, "n_positions": 8192{newer}}}"#);
            let model = read(&[("config.json", &config)]).unwrap();
            assert_eq!((model.dimension, model.max_tokens), (768, 8192));
        }
        let nameless = r#"{"model_type": "bert", "max_position_embeddings": 64}"#;
        assert!(read(&[("config.json", nameless)]).unwrap_err().contains("hidden_size"));
    }

    #[test]
    fn numbers_that_only_python_writes_may_stand_in_keys_that_are_not_needed() {
        let config = r#"{"model_type": "roberta", "hidden_size": 8, "max_position_embeddings": 66, "pad_token_id": 1,
            "hidden_size": 16, "initializer_range": NaN, "classifier_dropout": -Infinity, "layer_scale": 1e999}"#;
        let tokenizer = r#"{"model_max_length": Infinity}"#;
        let model = read(&[("config.json", config), ("tokenizer_config.json", tokenizer)]).unwrap();
        assert_eq!((model.dimension, model.max_tokens), (16, 64));
        let needed = r#"{"model_type": "bert", "hidden_size": Infinity, "max_position_embeddings": 64}"#;
        assert!(read(&[("config.json", needed)]).unwrap_err().contains("hidden_size"));
    }

    #[test]
    fn a_length_in_the_sentence_file_may_be_null() {
        let config = r#"{"model_type": "bert", "hidden_size": 8, "max_position_embeddings": 64}"#;
        let sentence = r#"{"max_seq_length": null, "do_lower_case": false}"#;
        let model = read(&[("config.json", config), ("sentence_bert_config.json", sentence)]).unwrap();
        assert_eq!((model.max_tokens, model.prompts), (64, Prompts::default()));
    }

    #[test]
    fn the_command_that_works_keeps_the_other_flags() {
        let typed = [
            "bin/akidb-gateway",
            "--model",
            "gone",
            "--revision",
            "v1",
            "--workers",
            "2",
            "--model=x",
            "--python",
            "a b",
        ];
        let works = command_that_works(typed.iter().map(|word| (*word).to_owned()));
        assert_eq!(works, "bin/akidb-gateway --workers 2 --python 'a b' --model all-minilm-l6-v2");
    }
}
