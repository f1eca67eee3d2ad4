//! What a model consists of, by `modules.json`: a transformer, a pooling, and perhaps a normalization.
//!
//! The modules run in the order of the file; `idx` is not looked at, as in the reference.

use std::path::{Component, Path};

use akidb_protocol::Pooling;
use serde_json::Value;

use super::object::{self, Object};
use super::pooling::PoolingFile;

const FILE: &str = "modules.json";
/// Where the pooling is described when there is no `modules.json`.
const POOLING_FOLDER: &str = "1_Pooling";
/// Names of the modules that are supported, in all versions of the library.
const SUPPORTED: [(Stage, &[&str]); 4] = [
    (
        Stage::Transformer,
        &[
            "sentence_transformers.models.Transformer",
            "sentence_transformers.models.Transformer.Transformer",
            "sentence_transformers.base.modules.Transformer",
            "sentence_transformers.base.modules.transformer.Transformer",
            "sentence_transformers.sentence_transformer.modules.Transformer",
        ],
    ),
    (
        Stage::Pooling,
        &[
            "sentence_transformers.models.Pooling",
            "sentence_transformers.models.Pooling.Pooling",
            "sentence_transformers.sentence_transformer.modules.Pooling",
            "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
        ],
    ),
    (
        Stage::Normalize,
        &[
            "sentence_transformers.models.Normalize",
            "sentence_transformers.models.Normalize.Normalize",
            "sentence_transformers.base.modules.Normalize",
            "sentence_transformers.base.modules.normalize.Normalize",
            "sentence_transformers.sentence_transformer.modules.Normalize",
            "sentence_transformers.sentence_transformer.modules.normalize.Normalize",
        ],
    ),
    (
        Stage::Dropout,
        &[
            "sentence_transformers.models.Dropout",
            "sentence_transformers.models.Dropout.Dropout",
            "sentence_transformers.sentence_transformer.modules.Dropout",
            "sentence_transformers.sentence_transformer.modules.dropout.Dropout",
        ],
    ),
];
/// What all modules of the library are called like.
const LIBRARY: &str = "sentence_transformers.";

/// What a supported module does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Transformer,
    Pooling,
    Normalize,
    /// It does nothing but in training.
    Dropout,
}

/// The modules of a model that has the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Modules {
    /// The folder of `config.json`, the tokenizer and the weights; empty where that is the model's own.
    pub(super) transformer: String,
    pooling: String,
    /// The folder of each normalization.
    normalizations: Vec<String>,
}

impl Modules {
    /// Reads the file; `None` when there is none. The error is one line for a person.
    pub(super) fn read(model: &Path) -> Result<Option<Self>, String> {
        object::read(model, FILE)?.map(Self::of).transpose()
    }

    fn of(list: Value) -> Result<Self, String> {
        let Value::Array(list) = list else {
            return Err(format!("`{FILE}` is {}, not a list of modules", object::shown(&list)));
        };
        let mut stages: Vec<(Stage, String)> = Vec::new();
        let mut names = Vec::new();
        for (position, module) in list.into_iter().enumerate() {
            let place = format!("module {position} in `{FILE}`");
            let mut module = Object::new(place.clone(), module)?;
            let name = module.text("name")?;
            if name.is_some() && names.contains(&name) {
                return Err(format!("{place} has the `name` of another one, which it would replace"));
            }
            names.push(name);
            stages.push(stage(module)?);
        }
        in_order(stages)
    }
}

/// Reads one module.
fn stage(mut module: Object) -> Result<(Stage, String), String> {
    let r#type = module.text("type")?.ok_or_else(|| module.missing("type"))?;
    let supported = SUPPORTED.iter().find(|(_, names)| names.contains(&r#type.as_str()));
    let Some((stage, _)) = supported else {
        return Err(module.refusal("type", &r#type.clone().into(), unsupported(&r#type)));
    };
    let path = module.text("path")?.ok_or_else(|| module.missing("path"))?;
    if !is_inside(&path) {
        return Err(module.refusal("path", &path.into(), "is not inside the model"));
    }
    for ignored in ["idx", "kwargs"] {
        module.take(ignored);
    }
    module.refuse_unknown()?;
    Ok((*stage, path))
}

fn unsupported(r#type: &str) -> &'static str {
    if r#type.starts_with(LIBRARY) {
        "is not supported, and vectors without it would be wrong: use a model of Transformer, Pooling and Normalize"
    } else {
        "is Python code of the model's own, which never runs here: use a model of Transformer, Pooling and Normalize"
    }
}

/// A transformer, then a pooling, then whatever is done with its vector.
fn in_order(stages: Vec<(Stage, String)>) -> Result<Modules, String> {
    let mut stages = stages.into_iter().filter(|(stage, _)| *stage != Stage::Dropout).peekable();
    let transformer = stages.next_if(|(stage, _)| *stage == Stage::Transformer);
    let pooling = stages.next_if(|(stage, _)| *stage == Stage::Pooling);
    let rest: Vec<(Stage, String)> = stages.collect();
    match (transformer, pooling) {
        (Some((_, transformer)), Some((_, pooling)))
            if rest.iter().all(|(stage, _)| *stage == Stage::Normalize) =>
        {
            let normalizations = rest.into_iter().map(|(_, path)| path).collect();
            Ok(Modules { transformer, pooling, normalizations })
        }
        _ => Err(format!(
            "`{FILE}` must name one Transformer first, then one Pooling, then Normalize or nothing: other orders are not supported"
        )),
    }
}

/// Whether a path leads from a folder to nowhere but into it.
pub(super) fn is_inside(path: &str) -> bool {
    !path.contains(['\\', '\0'])
        && Path::new(path).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

/// How token vectors become the vector of a text, as the model was trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) pooling: Pooling,
    pub(super) normalize: bool,
    /// Whether the tokens of a prompt are pooled like those of the text.
    pub(super) pools_prompt: bool,
}

impl Head {
    /// Reads the files of the modules after the transformer. The error is one line for a person.
    pub(super) fn read(
        model: &Path,
        modules: Option<&Modules>,
        model_type: &str,
        dimension: usize,
    ) -> Result<Self, String> {
        let file = format!("{}/config.json", modules.map_or(POOLING_FOLDER, |modules| &modules.pooling));
        let pooling = match modules {
            // It would be the transformer's own file.
            Some(modules) if modules.pooling == modules.transformer => None,
            _ => PoolingFile::read(model, &file, dimension)?,
        };
        if modules.is_some() && pooling.is_none() {
            return Err(format!("`{file}` is missing, which `{FILE}` names"));
        }
        for folder in modules.iter().flat_map(|modules| &modules.normalizations) {
            check_normalization(model, folder)?;
        }
        // Without any file, what models of the type are trained with.
        let usual = if model_type == "qwen3" { Pooling::Last } else { Pooling::Mean };
        let pooling = pooling.unwrap_or(PoolingFile { pooling: usual, pools_prompt: true });
        Ok(Self {
            pooling: pooling.pooling,
            normalize: modules.is_none_or(|modules| !modules.normalizations.is_empty()),
            pools_prompt: pooling.pools_prompt,
        })
    }
}

/// A normalization may have a file, which may say that it normalizes something else.
fn check_normalization(model: &Path, folder: &str) -> Result<(), String> {
    if folder.is_empty() {
        return Ok(());
    }
    let Some(mut file) = Object::read(model, &format!("{folder}/config.json"))? else { return Ok(()) };
    let is_vector = |value: &Value| value == "sentence_embedding";
    let reason = "is not supported: only `sentence_embedding` is";
    file.accept("module_input_name", is_vector, reason)?;
    file.accept("module_output_name", |value| value.is_null() || is_vector(value), reason)?;
    file.refuse_unknown()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn modules(list: &[(&str, &str)]) -> Result<Modules, String> {
        let module = |(path, r#type): &(&str, &str)| json!({"path": path, "type": r#type});
        Modules::of(list.iter().map(module).collect())
    }

    fn of_library(list: &[(&str, &str)]) -> Result<Modules, String> {
        let types: Vec<String> =
            list.iter().map(|(_, r#type)| format!("sentence_transformers.models.{type}")).collect();
        let list: Vec<(&str, &str)> =
            list.iter().zip(&types).map(|((path, _), r#type)| (*path, r#type.as_str())).collect();
        modules(&list)
    }

    fn found(transformer: &str, pooling: &str, normalizations: &[&str]) -> Result<Modules, String> {
        let normalizations = normalizations.iter().map(|folder| (*folder).to_owned()).collect();
        Ok(Modules { transformer: transformer.to_owned(), pooling: pooling.to_owned(), normalizations })
    }

    #[test]
    fn modules_say_where_everything_is_and_whether_to_normalize() {
        let list = [("", "Transformer"), ("pool", "Pooling"), ("3", "Dropout"), ("2", "Normalize")];
        assert_eq!(of_library(&list), found("", "pool", &["2"]));
        let list = [("0_Transformer", "Transformer"), ("1_Pooling", "Pooling")];
        assert_eq!(of_library(&list), found("0_Transformer", "1_Pooling", &[]));
        let list = [("", "Transformer"), ("p", "Pooling"), ("", "Normalize"), ("", "Normalize")];
        assert_eq!(of_library(&list), found("", "p", &["", ""]));
    }

    #[test]
    fn the_names_of_all_versions_of_the_library_are_known() {
        for (transformer, pooling, normalize) in [
            ("models.Transformer", "models.Pooling", "models.Normalize"),
            (
                "base.modules.transformer.Transformer",
                "sentence_transformer.modules.pooling.Pooling",
                "sentence_transformer.modules.normalize.Normalize",
            ),
            (
                "base.modules.transformer.Transformer",
                "sentence_transformer.modules.pooling.Pooling",
                "base.modules.normalize.Normalize",
            ),
        ] {
            let names = [transformer, pooling, normalize].map(|name| format!("sentence_transformers.{name}"));
            let list = [("", names[0].as_str()), ("1", &names[1]), ("2", &names[2])];
            assert_eq!(modules(&list), found("", "1", &["2"]), "{names:?}");
        }
    }

    #[test]
    fn a_module_that_is_not_of_the_library_is_its_own_code() {
        for foreign in [
            "custom_st.Transformer",
            "foo.Pooling",
            "models.Transformer",
            "Transformer",
            "",
            "xsentence_transformers.models.Transformer",
            "custom.sentence_transformers.models.Transformer",
            " sentence_transformers.models.Transformer",
        ] {
            let reason = modules(&[("", foreign)]).unwrap_err();
            assert!(
                reason.contains(&format!("`type`: {foreign:?}")) && reason.contains("Python code"),
                "{reason}"
            );
        }
        for unsupported in [
            "Dense",
            "WordEmbeddings",
            "LSTM",
            "normalize",
            "",
            "transformer.Transformer",
            "Pooling.Transformer",
        ] {
            let reason = of_library(&[("", "Transformer"), ("1_Pooling", "Pooling"), ("2", unsupported)]);
            let reason = reason.unwrap_err();
            assert!(reason.contains(&format!(".{unsupported}\"")) && !reason.contains('\n'), "{reason}");
            assert!(reason.contains("module 2 in `modules.json`"), "{reason}");
        }
    }

    #[test]
    fn an_order_that_is_not_computed_is_refused() {
        for list in [
            &[][..],
            &["Transformer"],
            &["Pooling"],
            &["Transformer", "Normalize"],
            &["Pooling", "Transformer"],
            &["Normalize", "Transformer", "Pooling"],
            &["Transformer", "Normalize", "Pooling"],
            &["Transformer", "Transformer", "Pooling"],
            &["Transformer", "Pooling", "Pooling"],
            &["Transformer", "Pooling", "Normalize", "Transformer"],
        ] {
            let list: Vec<(&str, &str)> = list.iter().map(|name| ("x", *name)).collect();
            assert!(of_library(&list).unwrap_err().contains("`modules.json`"), "{list:?}");
        }
    }

    #[test]
    fn every_key_of_a_module_is_looked_at() {
        let transformer = || json!({"path": "", "type": "sentence_transformers.models.Transformer"});
        let with = |key: &str, value: Value| {
            let mut module = transformer();
            module[key] = value;
            module
        };
        let pooling = json!({"name": "1", "path": "p", "type": "sentence_transformers.models.Pooling"});
        let read = |first: Value| Modules::of(json!([first, pooling]));
        let first = with("kwargs", json!(["task"]));
        assert_eq!(read(first), found("", "p", &[]));
        assert_eq!(read(with("idx", json!(7))), found("", "p", &[]));
        for (first, part) in [
            (with("name", json!("1")), "`name`"),
            (with("name", json!(0)), "`name`"),
            (with("path", json!(null)), "`path`"),
            (with("type", json!(["x"])), "`type`"),
            (with("args", json!({})), "`args`"),
            (json!({"path": ""}), "`type`"),
            (json!({"type": "sentence_transformers.models.Transformer"}), "`path`"),
            (json!("Transformer"), "not an object"),
        ] {
            let reason = read(first).unwrap_err();
            assert!(reason.contains(part) && reason.contains("`modules.json`"), "{reason}");
        }
        assert!(Modules::of(json!({"0": {}})).unwrap_err().contains("not a list"));
    }

    #[test]
    fn no_path_leads_out_of_the_model() {
        for path in ["..", "../other", "1_Pooling/../..", "/etc", "a/../b", "..\\other", "C:\\x", "a\0b"] {
            let reason = of_library(&[(path, "Transformer")]).unwrap_err();
            assert!(reason.contains("is not inside the model"), "{reason}");
        }
        for path in ["", ".", "./1_Pooling", "a/b", "..a"] {
            assert!(of_library(&[("", "Transformer"), (path, "Pooling")]).is_ok(), "{path}");
        }
    }

    fn head(files: &[(&str, &str)], modules: Option<&Modules>) -> Result<Head, String> {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::create_dir_all(folder.path().join(name).parent().unwrap()).unwrap();
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        Head::read(folder.path(), modules, "bert", 8)
    }

    #[test]
    fn without_modules_vectors_are_normalized_and_with_them_only_where_they_say_so() {
        let expected = |pooling, normalize, pools_prompt| Ok(Head { pooling, normalize, pools_prompt });
        assert_eq!(head(&[], None), expected(Pooling::Mean, true, true));
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Head::read(folder.path(), None, "qwen3", 8), expected(Pooling::Last, true, true));
        let cls = r#"{"pooling_mode_cls_token": true, "include_prompt": false}"#;
        assert_eq!(head(&[("1_Pooling/config.json", cls)], None), expected(Pooling::Cls, true, false));
        let modules = of_library(&[("", "Transformer"), ("P", "Pooling")]).unwrap();
        assert_eq!(head(&[("P/config.json", cls)], Some(&modules)), expected(Pooling::Cls, false, false));
    }

    #[test]
    fn the_files_that_modules_name_must_be_theirs() {
        let modules =
            of_library(&[("", "Transformer"), ("1_Pooling", "Pooling"), ("2", "Normalize")]).unwrap();
        let pooling = ("1_Pooling/config.json", "{}");
        assert!(head(&[], Some(&modules)).unwrap_err().contains("`1_Pooling/config.json` is missing"));
        for fine in ["{}", r#"{"module_input_name": "sentence_embedding", "module_output_name": null}"#] {
            assert!(head(&[pooling, ("2/config.json", fine)], Some(&modules)).unwrap().normalize, "{fine}");
        }
        for (bad, key) in [
            (r#"{"module_input_name": "token_embeddings"}"#, "module_input_name"),
            (r#"{"module_output_name": "x"}"#, "module_output_name"),
            (r#"{"p": 1}"#, "p"),
        ] {
            let reason = head(&[pooling, ("2/config.json", bad)], Some(&modules)).unwrap_err();
            assert!(reason.contains("`2/config.json`") && reason.contains(&format!("`{key}`")), "{reason}");
        }
        let beside = of_library(&[("", "Transformer"), ("", "Pooling")]).unwrap();
        assert!(head(&[("config.json", "{}")], Some(&beside)).unwrap_err().contains("is missing"));
    }
}
