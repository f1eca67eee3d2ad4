//! How texts are read, by the file of the module `Transformer`: `sentence_bert_config.json` or one of its siblings.

use std::path::Path;

use serde_json::Value;

use super::object::Object;

/// Names of the file in all versions of the library; the first one that says something counts.
const FILES: [&str; 7] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
];
/// What the reference's own loaders are given, in the older and the newer spelling, and which of it changes no vector.
const LOADERS: [(&str, &[&str]); 6] = [
    ("model_args", HARMLESS_FOR_MODELS),
    ("model_kwargs", HARMLESS_FOR_MODELS),
    ("tokenizer_args", HARMLESS_FOR_TOKENIZERS),
    ("processor_kwargs", HARMLESS_FOR_TOKENIZERS),
    ("config_args", HARMLESS_FOR_CONFIGS),
    ("config_kwargs", HARMLESS_FOR_CONFIGS),
];
const HARMLESS_FOR_MODELS: &[&str] = &[
    "add_pooling_layer",
    "attn_implementation",
    "device_map",
    "dtype",
    "low_cpu_mem_usage",
    "torch_dtype",
    "trust_remote_code",
];
const HARMLESS_FOR_TOKENIZERS: &[&str] =
    &["clean_up_tokenization_spaces", "padding_side", "trust_remote_code", "use_fast"];
const HARMLESS_FOR_CONFIGS: &[&str] =
    &["attn_implementation", "dtype", "torch_dtype", "trust_remote_code", "use_cache"];
const UNSUPPORTED: &str = "is not supported and would change vectors: use another model";

/// What the file says.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Sentence {
    /// Longest text, in tokens.
    pub(super) max_tokens: Option<usize>,
    /// Whether texts are lower-cased before everything else that the tokenizer does.
    pub(super) lower_case: bool,
}

impl Sentence {
    /// Reads it from the folder of the transformer within a model. The error is one line for a person.
    pub(super) fn read(model: &Path, transformer: &str) -> Result<Self, String> {
        for name in FILES {
            let file = Object::read(model, &super::within(transformer, name))?;
            if let Some(file) = file.filter(|file| !file.is_empty()) {
                return Self::of(file);
            }
        }
        Ok(Self::default())
    }

    fn of(mut file: Object) -> Result<Self, String> {
        let mut max_tokens = length(&mut file, "max_seq_length")?;
        let lower_case = match file.take("do_lower_case") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(lower_case)) => lower_case,
            Some(other) => return Err(file.refusal("do_lower_case", &other, "must be true or false")),
        };
        let is_task = |value: &Value| value == "feature-extraction";
        file.accept("transformer_task", is_task, UNSUPPORTED)?;
        let is_output = |value: &Value| value == "token_embeddings";
        file.accept("module_output_name", is_output, UNSUPPORTED)?;
        for key in ["query_length", "document_length", "query_expansion", "tokenizer_name_or_path"] {
            file.accept(key, Value::is_null, UNSUPPORTED)?;
        }
        // How texts of several lengths are computed side by side.
        file.accept("unpad_inputs", |value| value.is_null() || value.is_boolean(), "must be true or false")?;
        check_modalities(&mut file)?;
        check_processing(&mut file)?;
        for (key, harmless) in LOADERS {
            let Some(mut arguments) = file.object(key)? else { continue };
            for argument in harmless {
                arguments.take(argument);
            }
            if harmless == HARMLESS_FOR_TOKENIZERS {
                max_tokens = length(&mut arguments, "model_max_length")?.or(max_tokens);
            }
            arguments.refuse_unknown()?;
        }
        file.refuse_unknown()?;
        Ok(Self { max_tokens, lower_case })
    }
}

/// A length in tokens; `null` is as good as none.
fn length(file: &mut Object, key: &str) -> Result<Option<usize>, String> {
    match file.take(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            let length = value.as_u64().filter(|length| *length > 0);
            let length = length.and_then(|length| usize::try_from(length).ok());
            length.map(Some).ok_or_else(|| file.refusal(key, &value, "must be a whole number above 0"))
        }
    }
}

/// Only texts, and these read off the last layer: a chat template would be put around them for `message`.
fn check_modalities(file: &mut Object) -> Result<(), String> {
    let Some(mut modalities) = file.object("modality_config")? else { return Ok(()) };
    let mut text = modalities.object("text")?.ok_or_else(|| modalities.missing("text"))?;
    text.accept("method", |value| value == "forward", UNSUPPORTED)?;
    let is_last = |value: &Value| match value.as_array() {
        Some(path) => path[..] == ["last_hidden_state"],
        None => value == "last_hidden_state",
    };
    text.accept("method_output_name", is_last, UNSUPPORTED)?;
    text.refuse_unknown()?;
    let reason = "puts a chat template around texts, which is not supported: use another model";
    modalities.accept("message", |_| false, reason)?;
    modalities.refuse_unknown()
}

/// How the tokenizer is called; only what the gateway does anyway.
fn check_processing(file: &mut Object) -> Result<(), String> {
    let Some(mut processing) = file.object("processing_kwargs")? else { return Ok(()) };
    for other in ["audio", "image", "video", "chat_template"] {
        processing.take(other);
    }
    for key in ["common", "text"] {
        let Some(mut arguments) = processing.object(key)? else { continue };
        let is_padding = |value: &Value| *value == Value::Bool(true) || value == "longest";
        arguments.accept("padding", is_padding, UNSUPPORTED)?;
        let is_truncation = |value: &Value| *value == Value::Bool(true) || value == "longest_first";
        arguments.accept("truncation", is_truncation, UNSUPPORTED)?;
        arguments.accept("add_special_tokens", |value| *value == Value::Bool(true), UNSUPPORTED)?;
        arguments.refuse_unknown()?;
    }
    processing.refuse_unknown()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(files: &[(&str, &str)], transformer: &str) -> Result<Sentence, String> {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::create_dir_all(folder.path().join(name).parent().unwrap()).unwrap();
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        Sentence::read(folder.path(), transformer)
    }

    fn said(max_tokens: Option<usize>, lower_case: bool) -> Result<Sentence, String> {
        Ok(Sentence { max_tokens, lower_case })
    }

    #[test]
    fn length_and_case_are_obeyed() {
        for (file, expected) in [
            (r#"{"max_seq_length": 256, "do_lower_case": false}"#, said(Some(256), false)),
            (r#"{"max_seq_length": null, "do_lower_case": true}"#, said(None, true)),
            (
                r#"{"max_seq_length": 256, "tokenizer_args": {"model_max_length": 128}}"#,
                said(Some(128), false),
            ),
            (
                r#"{"max_seq_length": 256, "processor_kwargs": {"model_max_length": null}}"#,
                said(Some(256), false),
            ),
            (r#"{"do_lower_case": null}"#, said(None, false)),
            ("{}", said(None, false)),
        ] {
            assert_eq!(read(&[("sentence_bert_config.json", file)], ""), expected, "{file}");
        }
        assert_eq!(read(&[], ""), said(None, false));
    }

    #[test]
    fn the_first_file_that_says_something_counts() {
        let roberta = ("sentence_roberta_config.json", r#"{"max_seq_length": 128}"#);
        let xlnet = ("sentence_xlnet_config.json", r#"{"max_seq_length": 32, "do_lower_case": true}"#);
        assert_eq!(read(&[roberta, xlnet], ""), said(Some(128), false));
        assert_eq!(read(&[xlnet], ""), said(Some(32), true));
        assert_eq!(read(&[("sentence_bert_config.json", "{}"), roberta], ""), said(Some(128), false));
        assert_eq!(read(&[("0/sentence_bert_config.json", roberta.1), xlnet], "0"), said(Some(128), false));
        assert_eq!(read(&[xlnet], "0"), said(None, false));
        for name in FILES {
            let reason = read(&[(name, r#"{"do_lower_case": 1}"#)], "").unwrap_err();
            assert!(reason.contains(&format!("`{name}`")), "{reason}");
        }
    }

    #[test]
    fn what_newer_versions_write_is_taken_where_it_changes_nothing() {
        for file in [
            r#"{"transformer_task": "feature-extraction", "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}, "module_output_name": "token_embeddings"}"#,
            r#"{"modality_config": {"text": {"method": "forward", "method_output_name": ["last_hidden_state"]}}}"#,
            r#"{"processing_kwargs": {}, "unpad_inputs": null, "query_length": null, "document_length": null, "query_expansion": null}"#,
            r#"{"processing_kwargs": {"chat_template": {"add_generation_prompt": true}, "text": {"padding": true, "truncation": true}, "common": {}}}"#,
            r#"{"unpad_inputs": false, "model_args": {"add_pooling_layer": false, "torch_dtype": "float16"}}"#,
            r#"{"model_kwargs": {}, "processor_kwargs": {"padding_side": "left"}, "config_kwargs": {"use_cache": false}, "config_args": {"trust_remote_code": true}}"#,
            r#"{"tokenizer_name_or_path": null}"#,
        ] {
            assert_eq!(read(&[("sentence_bert_config.json", file)], ""), said(None, false), "{file}");
        }
    }

    #[test]
    fn what_would_change_vectors_is_refused_with_its_key() {
        for (file, key) in [
            (r#"{"max_seq_length": 0}"#, "max_seq_length"),
            (r#"{"max_seq_length": -1}"#, "max_seq_length"),
            (r#"{"max_seq_length": "256"}"#, "max_seq_length"),
            (r#"{"max_seq_length": 256.0}"#, "max_seq_length"),
            (r#"{"max_seq_length": true}"#, "max_seq_length"),
            (r#"{"max_seq_length": [256]}"#, "max_seq_length"),
            (r#"{"max_seq_length": 1, "max_seq_length": 2}"#, "max_seq_length"),
            (r#"{"do_lower_case": "true"}"#, "do_lower_case"),
            (r#"{"do_lower_case": "false"}"#, "do_lower_case"),
            (r#"{"do_lower_case": 1}"#, "do_lower_case"),
            (r#"{"do_lower_cas": true}"#, "do_lower_cas"),
            (r#"{"DO_LOWER_CASE": true}"#, "DO_LOWER_CASE"),
            (r#"{"transformer_task": "fill-mask"}"#, "transformer_task"),
            (r#"{"transformer_task": null}"#, "transformer_task"),
            (r#"{"module_output_name": "sentence_embedding"}"#, "module_output_name"),
            (r#"{"modality_config": null}"#, "modality_config"),
            (r#"{"modality_config": {}}"#, "modality_config"),
            (r#"{"modality_config": {"text": {"method": "get_text_features"}}}"#, "method"),
            (
                r#"{"modality_config": {"text": {"method_output_name": "pooler_output"}}}"#,
                "method_output_name",
            ),
            (
                r#"{"modality_config": {"text": {"method_output_name": ["hidden_states", 3]}}}"#,
                "method_output_name",
            ),
            (r#"{"modality_config": {"text": {"layer": 3}}}"#, "layer"),
            (r#"{"modality_config": {"text": {}, "message": {"method": "forward"}}}"#, "message"),
            (r#"{"processing_kwargs": null}"#, "processing_kwargs"),
            (r#"{"processing_kwargs": {"text": {"max_length": 16}}}"#, "max_length"),
            (r#"{"processing_kwargs": {"text": {"add_special_tokens": false}}}"#, "add_special_tokens"),
            (r#"{"processing_kwargs": {"common": {"truncation": false}}}"#, "truncation"),
            (r#"{"processing_kwargs": {"text": {"padding": "max_length"}}}"#, "padding"),
            (r#"{"processing_kwargs": {"texts": {}}}"#, "texts"),
            (r#"{"unpad_inputs": "no"}"#, "unpad_inputs"),
            (r#"{"query_length": 32}"#, "query_length"),
            (r#"{"document_length": 0}"#, "document_length"),
            (r#"{"query_expansion": {"strategy": "fixed", "length": 32}}"#, "query_expansion"),
            (r#"{"tokenizer_name_or_path": "other/tokenizer"}"#, "tokenizer_name_or_path"),
            (r#"{"model_args": {"variant": "fp16"}}"#, "variant"),
            (r#"{"model_args": {"is_decoder": true}}"#, "is_decoder"),
            (r#"{"model_args": null}"#, "model_args"),
            (r#"{"tokenizer_args": {"do_lower_case": true}}"#, "do_lower_case"),
            (r#"{"processor_kwargs": {"add_prefix_space": true}}"#, "add_prefix_space"),
            (r#"{"processor_kwargs": {"model_max_length": "128"}}"#, "model_max_length"),
            (r#"{"config_args": {"num_hidden_layers": 3}}"#, "num_hidden_layers"),
            (r#"{"config_kwargs": {"is_causal": false}}"#, "is_causal"),
            (r#"{"pooling": "cls"}"#, "pooling"),
        ] {
            let refusal = read(&[("sentence_bert_config.json", file)], "").unwrap_err();
            assert!(refusal.contains(&format!("`{key}`")) && !refusal.contains('\n'), "{file}: {refusal}");
            assert!(refusal.contains("`sentence_bert_config.json`"), "{file}: {refusal}");
        }
        for file in ["[]", "null", "", "{"] {
            assert!(read(&[("sentence_bert_config.json", file)], "").is_err(), "{file}");
        }
    }
}
