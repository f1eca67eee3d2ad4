//! `tokenizer_config.json` and the older files next to it, which `transformers` reads together with `tokenizer.json`.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::TruncationDirection;
use super::file::ListedToken;

/// Tokens that have a role, in the order in which `transformers` adds them.
const ROLES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// Keys that decide something, here or in `model/limit.rs`.
const OBEYED: [&str; 13] = [
    "add_prefix_space",
    "added_tokens_decoder",
    "additional_special_tokens",
    "do_lower_case",
    "extra_special_tokens",
    "max_len",
    "model_max_length",
    "model_specific_special_tokens",
    "split_special_tokens",
    "strip_accents",
    "tokenize_chinese_chars",
    "tokenizer_class",
    "truncation_side",
];
/// Keys that change no token of a single text: `transformers` has no use for them where there is a `tokenizer.json`, or they
/// are for padding, pairs of texts, chats, or text made of tokens.
const IGNORED: [&str; 44] = [
    "_commit_hash",
    "_name_or_path",
    "add_bos_token",
    "add_eos_token",
    "audio_token",
    "backend",
    "chat_control_tokens",
    "chat_template",
    "clean_up_tokenization_spaces",
    "device_map",
    "do_basic_tokenize",
    "errors",
    "from_slow",
    "full_tokenizer_file",
    "image_token",
    "is_local",
    "legacy",
    "local_files_only",
    "mask_token_sent",
    "max_length",
    "merges_file",
    "model_input_names",
    "name_or_path",
    "never_split",
    "pad_to_multiple_of",
    "pad_token_id",
    "pad_token_type_id",
    "padding_side",
    "processor_class",
    "response_schema",
    "response_template",
    "return_token_type_ids",
    "sep_token_id",
    "slow_tokenizer_class",
    "sp_model_kwargs",
    "special_tokens_map_file",
    "stride",
    "tokenizer_file",
    "trim_offsets",
    "truncation_strategy",
    "unk_id",
    "use_default_system_prompt",
    "use_fast",
    "vocab_file",
];

/// What the files say that tokens depend on.
#[derive(Debug, Default)]
pub(super) struct Settings {
    keys: Map<String, Value>,
    /// `added_tokens.json`.
    older_tokens: Map<String, Value>,
}

impl Settings {
    /// Reads them from a model's directory. The error is one line for a person.
    pub(super) fn read(model: &Path) -> Result<Self, String> {
        let mut keys = read_object(model, "tokenizer_config.json")?;
        check_keys(&keys)?;
        let mut older_tokens = Map::new();
        if !keys.contains_key("added_tokens_decoder") {
            keys.extend(read_object(model, "special_tokens_map.json")?);
            older_tokens = read_object(model, "added_tokens.json")?;
        }
        Ok(Self { keys, older_tokens })
    }

    /// Keys of which it is not known whether they matter, those of `special_tokens_map.json` among them.
    #[cfg(test)]
    pub(super) fn unknown_keys(&self) -> Vec<&str> {
        unknown_keys(&self.keys)
    }

    /// The class of `transformers` that reads the tokenizer.
    pub(super) fn class(&self) -> Option<&str> {
        self.keys.get("tokenizer_class")?.as_str()
    }

    /// A truth value; `default` also where the file says null.
    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool, String> {
        Ok(self.choice(key)?.unwrap_or(default))
    }

    /// A truth value, or none.
    pub(super) fn choice(&self, key: &str) -> Result<Option<bool>, String> {
        match self.keys.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(value) => Err(bad(key, value, "true or false")),
        }
    }

    /// Where a text is cut that is too long.
    pub(super) fn truncation_side(&self) -> Result<Option<TruncationDirection>, String> {
        match self.keys.get("truncation_side") {
            None => Ok(None),
            Some(Value::String(side)) if side == "left" => Ok(Some(TruncationDirection::Left)),
            Some(Value::String(side)) if side == "right" => Ok(Some(TruncationDirection::Right)),
            Some(value) => Err(bad("truncation_side", value, "\"left\" or \"right\"")),
        }
    }

    /// The text of a token that has a role.
    pub(super) fn role(&self, role: &str) -> Option<&str> {
        content(self.keys.get(role)?)
    }

    /// Every token that has a role or is special otherwise.
    pub(super) fn special(&self) -> Result<Vec<AddedToken>, String> {
        let mut tokens = Vec::new();
        let roles = ROLES.iter().filter_map(|role| self.keys.get(*role));
        let others =
            self.keys.iter().filter(|(key, _)| key.ends_with("_token") && !ROLES.contains(&key.as_str()));
        let more = ["extra_special_tokens", "additional_special_tokens", "model_specific_special_tokens"];
        let more = more.iter().filter_map(|key| self.keys.get(*key)).flat_map(|tokens| match tokens {
            Value::Array(list) => list.iter().collect(),
            Value::Object(named) => named.values().collect(),
            _ => Vec::new(),
        });
        for value in roles.chain(others.map(|(_, value)| value)).chain(more) {
            match (value, content(value)) {
                (Value::String(text), _) => tokens.push(AddedToken::from(text.clone(), true)),
                (Value::Object(_), Some(_)) => tokens.push(AddedToken { special: true, ..flags(value)? }),
                _ => {}
            }
        }
        Ok(tokens)
    }

    /// The added tokens by their ids, which stand in for those of `tokenizer.json`; `None` where the files have none.
    pub(super) fn added_tokens(&self) -> Result<Option<Vec<ListedToken>>, String> {
        let Some(decoder) = self.keys.get("added_tokens_decoder") else { return Ok(None) };
        let Value::Object(decoder) = decoder else {
            return Err(bad("added_tokens_decoder", decoder, "an object"));
        };
        let mut tokens = Vec::new();
        for (id, token) in decoder {
            let id =
                id.parse().map_err(|_error| bad("added_tokens_decoder", token, "tokens by their ids"))?;
            tokens.push(ListedToken { id, token: flags(token)? });
        }
        tokens.sort_unstable_by_key(|listed| listed.id);
        Ok(Some(tokens))
    }

    /// Those of `added_tokens.json`, where it counts.
    pub(super) fn older_tokens(&self, special: &[AddedToken]) -> Vec<ListedToken> {
        let token = |(text, id): (&String, &Value)| {
            let is_special = special.iter().any(|token| token.content == *text);
            let id = id.as_u64().and_then(|id| u32::try_from(id).ok())?;
            Some(ListedToken { id, token: AddedToken::from(text.clone(), is_special) })
        };
        self.older_tokens.iter().filter_map(token).collect()
    }
}

/// The flags that a file need not state are those of a token that is made in Python.
fn flags(token: &Value) -> Result<AddedToken, String> {
    #[derive(Deserialize)]
    struct Stated {
        content: String,
        #[serde(default)]
        single_word: bool,
        #[serde(default)]
        lstrip: bool,
        #[serde(default)]
        rstrip: bool,
        normalized: Option<bool>,
        #[serde(default)]
        special: bool,
    }
    let stated: Stated = serde_json::from_value(token.clone())
        .map_err(|error| format!("a token in `tokenizer_config.json` is not valid: {error}"))?;
    Ok(AddedToken {
        normalized: stated.normalized.unwrap_or(!stated.special),
        content: stated.content,
        single_word: stated.single_word,
        lstrip: stated.lstrip,
        rstrip: stated.rstrip,
        special: stated.special,
    })
}

/// Refuses what cannot be obeyed, and says once what is not known.
fn check_keys(keys: &Map<String, Value>) -> Result<(), String> {
    let is_set = |value: &Value| {
        !matches!(value, Value::Null | Value::Bool(false)) && *value != Value::Array(Vec::new())
    };
    for key in ["auto_map", "fix_mistral_regex", "init_inputs"] {
        if let Some(value) = keys.get(key).filter(|value| is_set(value)) {
            return Err(bad(key, value, "absent: this is not supported"));
        }
    }
    if let Some(files) = keys.get("fast_tokenizer_files")
        && files.as_array().is_none_or(|files| files.iter().any(|file| *file != "tokenizer.json"))
    {
        return Err(bad("fast_tokenizer_files", files, "`tokenizer.json` alone"));
    }
    let unknown = unknown_keys(keys);
    if !unknown.is_empty() {
        tracing::warn!(keys = unknown.join(", "), "ignoring unknown keys in `tokenizer_config.json`");
    }
    Ok(())
}

/// Keys of which it is not known whether they matter.
fn unknown_keys(keys: &Map<String, Value>) -> Vec<&str> {
    let is_known = |key: &&String| {
        OBEYED.contains(&key.as_str())
            || IGNORED.contains(&key.as_str())
            || key.ends_with("_token")
            || ["auto_map", "fix_mistral_regex", "init_inputs", "fast_tokenizer_files"]
                .contains(&key.as_str())
    };
    keys.keys().filter(|key| !is_known(key)).map(String::as_str).collect()
}

fn content(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token["content"].as_str())
}

fn bad(key: &str, value: &Value, wanted: &str) -> String {
    let mut value = value.to_string();
    if value.len() > 100 {
        value.truncate(value.floor_char_boundary(100));
        value.push_str("...");
    }
    format!("`{key}` in `tokenizer_config.json` is {value}, it must be {wanted}")
}

fn read_object(model: &Path, name: &str) -> Result<Map<String, Value>, String> {
    match std::fs::read(model.join(name)) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).map_err(|error| format!("`{name}` is not valid: {error}"))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Map::new()),
        Err(error) => Err(format!("`{name}` cannot be read: {error}")),
    }
}
