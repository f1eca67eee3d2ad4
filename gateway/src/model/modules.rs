//! What stands behind the transformer: pooling and normalization, from `modules.json` and the pooling's own file.

use std::path::{Component, Path};

use akidb_protocol::Pooling;

use super::files::{self, Module, OneOrMany, PoolingConfig};

/// Where the pooling is described when nothing says otherwise.
const POOLING_FOLDER: &str = "1_Pooling";
/// How the older form of a pooling's file begins the name of each mode.
const MODE_PREFIX: &str = "pooling_mode_";

/// How token vectors become the vector of a text, as the model was trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) pooling: Pooling,
    pub(super) normalize: bool,
    /// Whether the tokens of a prompt are pooled like those of the text.
    pub(super) pools_prompt: bool,
}

impl Head {
    /// Reads a model's directory. The error is one line for a person.
    pub(super) fn read(folder: &Path, model_type: &str) -> Result<Self, String> {
        let modules: Option<Vec<Module>> = files::read(folder, "modules.json")?;
        let stages = modules.as_deref().map(Stages::of).transpose()?;
        let named = stages.as_ref().and_then(|stages| stages.pooling_folder);
        let file = format!("{}/config.json", named.unwrap_or(POOLING_FOLDER));
        let config: Option<PoolingConfig> = files::read(folder, &file)?;
        if named.is_some() && config.is_none() {
            return Err(format!("`{file}` is missing, which `modules.json` names"));
        }
        let normalize = stages.is_none_or(|stages| stages.normalize);
        Ok(Self {
            pooling: pooling(model_type, &file, config.as_ref())?,
            normalize,
            pools_prompt: config.and_then(|config| config.include_prompt).unwrap_or(true),
        })
    }
}

/// What `modules.json` says.
#[derive(Debug, PartialEq, Eq)]
struct Stages<'a> {
    pooling_folder: Option<&'a str>,
    normalize: bool,
}

impl<'a> Stages<'a> {
    fn of(modules: &'a [Module]) -> Result<Self, String> {
        let mut stages = Self { pooling_folder: None, normalize: false };
        for Module { path, r#type } in modules {
            if !is_inside(path) {
                return Err(format!("`modules.json` names the path `{path}`, which is not inside the model"));
            }
            match r#type.rsplit('.').next().unwrap_or_default() {
                "Pooling" if !path.is_empty() => stages.pooling_folder = Some(path),
                "Normalize" => stages.normalize = true,
                "Transformer" | "Pooling" | "Dropout" => {}
                unknown => {
                    return Err(format!(
                        "`modules.json` has the module `{unknown}`, which is not supported: vectors without it would be wrong"
                    ));
                }
            }
        }
        Ok(stages)
    }
}

/// Whether a path leads from a folder to nowhere but into it.
fn is_inside(path: &str) -> bool {
    Path::new(path).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

/// The pooling that a file asks for in either form; without a file, what models of the type are trained with.
fn pooling(model_type: &str, file: &str, config: Option<&PoolingConfig>) -> Result<Pooling, String> {
    let Some(config) = config else {
        return Ok(if model_type == "qwen3" { Pooling::Last } else { Pooling::Mean });
    };
    let named = config.pooling_mode.as_ref().map_or(&[][..], OneOrMany::as_slice).iter().map(String::as_str);
    let switched_on = config
        .others
        .iter()
        .filter(|(_, value)| **value == serde_json::Value::Bool(true))
        .filter_map(|(key, _)| key.strip_prefix(MODE_PREFIX));
    let mut modes = Vec::new();
    for mode in named.chain(switched_on) {
        let pooling = match mode {
            "mean" | "mean_tokens" => Pooling::Mean,
            "cls" | "cls_token" => Pooling::Cls,
            "lasttoken" => Pooling::Last,
            _ => return Err(format!("`{file}` asks for a pooling other than mean, cls or last token")),
        };
        if !modes.contains(&pooling) {
            modes.push(pooling);
        }
    }
    match modes[..] {
        [only] => Ok(only),
        [] => Err(format!("`{file}` asks for no pooling, neither mean nor cls nor last token")),
        _ => Err(format!("`{file}` asks for several poolings at once, which is not supported")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pooling_of(config: &str) -> Result<Pooling, String> {
        pooling("bert", "1_Pooling/config.json", Some(&serde_json::from_str(config).unwrap()))
    }

    fn modules(list: &[(&str, &str)]) -> Vec<Module> {
        let module = |(path, r#type): &(&str, &str)| Module {
            path: (*path).to_owned(),
            r#type: format!("sentence_transformers.models.{type}"),
        };
        list.iter().map(module).collect()
    }

    #[test]
    fn a_pooling_we_cannot_do_is_refused() {
        for config in [
            r#"{"pooling_mode_max_tokens": true}"#,
            r#"{"pooling_mode": "max"}"#,
            r#"{"pooling_mode_weightedmean_tokens": true}"#,
            r#"{"pooling_mode_mean_tokens": true, "pooling_mode_max_tokens": true}"#,
            r#"{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true}"#,
            r#"{"pooling_mode": ["mean", "cls"]}"#,
            r#"{"pooling_mode": "cls", "pooling_mode_mean_tokens": true}"#,
            r#"{"pooling_mode_mean_tokens": false}"#,
        ] {
            assert!(pooling_of(config).unwrap_err().contains("1_Pooling"), "{config}");
        }
        assert_eq!(pooling("qwen3", "", None), Ok(Pooling::Last));
        assert_eq!(pooling("bert", "", None), Ok(Pooling::Mean));
    }

    #[test]
    fn both_forms_of_a_pooling_are_understood() {
        for (config, expected) in [
            (r#"{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": false}"#, Pooling::Mean),
            (r#"{"pooling_mode_cls_token": true, "word_embedding_dimension": 8}"#, Pooling::Cls),
            (r#"{"pooling_mode_lasttoken": true}"#, Pooling::Last),
            (r#"{"pooling_mode": "mean", "embedding_dimension": 8}"#, Pooling::Mean),
            (r#"{"pooling_mode": "cls"}"#, Pooling::Cls),
            (r#"{"pooling_mode": ["lasttoken"], "pooling_mode_lasttoken": true}"#, Pooling::Last),
        ] {
            assert_eq!(pooling_of(config), Ok(expected), "{config}");
        }
    }

    #[test]
    fn known_modules_say_where_the_pooling_is_and_whether_to_normalize() {
        let list = modules(&[("", "Transformer"), ("pool", "Pooling"), ("3", "Dropout"), ("2", "Normalize")]);
        assert_eq!(Stages::of(&list), Ok(Stages { pooling_folder: Some("pool"), normalize: true }));
        let list = modules(&[("", "Transformer"), ("", "Pooling")]);
        assert_eq!(Stages::of(&list), Ok(Stages { pooling_folder: None, normalize: false }));
    }

    #[test]
    fn a_module_we_do_not_know_is_named() {
        for unknown in ["Dense", "WordEmbeddings", "LSTM", "normalize", ""] {
            let list = modules(&[("", "Transformer"), ("1_Pooling", "Pooling"), ("2", unknown)]);
            let reason = Stages::of(&list).unwrap_err();
            assert!(reason.contains(&format!("`{unknown}`")) && !reason.contains('\n'), "{reason}");
        }
    }

    #[test]
    fn no_path_leads_out_of_the_model() {
        for path in ["..", "../other", "1_Pooling/../..", "/etc", "a/../b"] {
            let reason = Stages::of(&modules(&[(path, "Pooling")])).unwrap_err();
            assert!(reason.contains(path), "{reason}");
        }
        for path in ["", ".", "./1_Pooling", "a/b", "..a"] {
            assert!(Stages::of(&modules(&[(path, "Pooling")])).is_ok(), "{path}");
        }
    }

    #[test]
    fn without_modules_vectors_are_normalized_and_with_them_only_where_they_say_so() {
        let folder = tempfile::tempdir().unwrap();
        let head = |model_type| Head::read(folder.path(), model_type);
        let expected = |pooling, normalize, pools_prompt| Ok(Head { pooling, normalize, pools_prompt });
        assert_eq!(head("bert"), expected(Pooling::Mean, true, true));
        assert_eq!(head("qwen3"), expected(Pooling::Last, true, true));
        let modules = r#"[{"idx": 0, "name": "0", "path": "", "type": "x.Transformer"}, {"path": "P", "type": "x.Pooling"}]"#;
        std::fs::write(folder.path().join("modules.json"), modules).unwrap();
        std::fs::create_dir(folder.path().join("P")).unwrap();
        let config = r#"{"pooling_mode_cls_token": true, "include_prompt": false}"#;
        std::fs::write(folder.path().join("P/config.json"), config).unwrap();
        assert_eq!(head("bert"), expected(Pooling::Cls, false, false));
    }
}
