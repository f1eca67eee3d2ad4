//! What `config_sentence_transformers.json` says: the prompts, and which keys are not known.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::object::Object;

const FILE: &str = "config_sentence_transformers.json";
/// Prompts that every model has in the reference, without text where the file does not name them.
const ALWAYS_THERE: [&str; 2] = ["query", "document"];

/// What the file says.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Library {
    pub(super) prompts: BTreeMap<String, String>,
    /// The text where a request says nothing of prompts.
    pub(super) default_prompt: Option<String>,
    /// Keys that are served without being known.
    pub(super) unknown: Vec<String>,
}

impl Library {
    /// Reads it; `None` when there is none. The error is one line for a person.
    pub(super) fn read(model: &Path, dimension: usize) -> Result<Option<Self>, String> {
        Object::read(model, FILE)?.map(|file| Self::of(file, dimension)).transpose()
    }

    fn of(mut file: Object, dimension: usize) -> Result<Self, String> {
        let mut prompts = BTreeMap::new();
        let stated = match file.take("prompts") {
            None | Some(Value::Null) => serde_json::Map::new(),
            Some(Value::Object(stated)) => stated,
            Some(other) => return Err(file.refusal("prompts", &other, "must be an object of strings")),
        };
        for (name, text) in stated {
            let text = match text {
                Value::String(text) => text,
                Value::Null => String::new(),
                other => return Err(file.refusal("prompts", &other, "must be an object of strings")),
            };
            prompts.insert(name, text);
        }
        let default_prompt = match file.take("default_prompt_name") {
            None | Some(Value::Null) => None,
            Some(Value::String(name)) => match prompts.get(&name) {
                Some(text) => Some(text.clone()),
                None if ALWAYS_THERE.contains(&name.as_str()) => None,
                None => {
                    return Err(format!(
                        "`{FILE}` names the default prompt `{}`, which it does not have",
                        name.escape_debug()
                    ));
                }
            },
            Some(other) => return Err(file.refusal("default_prompt_name", &other, "must be a string")),
        };
        // Which kind of model it is, `kind` judged.
        for ignored in ["__version__", "model_type", "requirements", "similarity_fn_name"] {
            file.take(ignored);
        }
        let cuts_nothing = |value: &Value| value.is_null() || value.as_u64() >= Some(dimension as u64);
        let reason = "would shorten every vector, which is not supported: set it to null, and `dimensions` in requests";
        file.accept("truncate_dim", cuts_nothing, reason)?;
        let unknown = file.into_unknown().into_iter().map(|key| format!("{FILE}: {key}")).collect();
        Ok(Self { prompts, default_prompt, unknown })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(config: &str) -> Result<Library, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), config).unwrap();
        Library::read(folder.path(), 8).map(Option::unwrap)
    }

    #[test]
    fn what_changes_no_vector_is_left_alone_and_what_is_unknown_is_named() {
        for nothing in [
            "{}",
            r#"{"__version__": {"sentence_transformers": "9.9"}, "model_type": "SentenceTransformer"}"#,
            r#"{"similarity_fn_name": "dot", "requirements": {"transformers": ">=5.15"}}"#,
            r#"{"prompts": null, "default_prompt_name": null, "truncate_dim": null}"#,
            r#"{"prompts": {}, "default_prompt_name": "query", "truncate_dim": 8}"#,
        ] {
            assert_eq!(read(nothing), Ok(Library::default()), "{nothing}");
        }
        let unknown = read(r#"{"x": 1, "prompts": {"query": null}}"#).unwrap();
        assert_eq!(unknown.unknown, ["config_sentence_transformers.json: x"]);
        assert_eq!(unknown.prompts["query"], "");
    }

    #[test]
    fn a_default_prompt_that_does_not_exist_is_refused() {
        for config in [
            r#"{"default_prompt_name": "gone"}"#,
            r#"{"prompts": {"query": "q: "}, "default_prompt_name": "gone"}"#,
        ] {
            assert!(read(config).unwrap_err().contains("`gone`"), "{config}");
        }
    }

    #[test]
    fn what_would_change_vectors_is_refused_with_its_key() {
        for (config, key) in [
            (r#"{"truncate_dim": 4}"#, "truncate_dim"),
            (r#"{"truncate_dim": 0}"#, "truncate_dim"),
            (r#"{"truncate_dim": -1}"#, "truncate_dim"),
            (r#"{"truncate_dim": "4"}"#, "truncate_dim"),
            (r#"{"truncate_dim": true}"#, "truncate_dim"),
            (r#"{"prompts": ["query: "]}"#, "prompts"),
            (r#"{"prompts": {"query": 1}}"#, "prompts"),
            (r#"{"prompts": {"query": ["a"]}}"#, "prompts"),
            (r#"{"default_prompt_name": 1}"#, "default_prompt_name"),
            (r#"{"prompts": {"a": "x", "a": "y"}}"#, "a"),
        ] {
            let refusal = read(config).unwrap_err();
            assert!(refusal.contains(&format!("`{key}`")) && refusal.contains(FILE), "{config}: {refusal}");
        }
    }
}
