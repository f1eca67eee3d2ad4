//! The files of models that people use must be accepted, whatever becomes stricter.
//!
//! `popular_models.json` has their files in the form that their authors published, written down from what is publicly known and not
//! copied: sizes and the like may differ. Their tokenizers are tiny ones of the same kind. The tests of the workers read the same
//! `config.json`.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Family, Needs, Tokenizer, settings::Settings};
use crate::model::{Compute, Model};

#[derive(Deserialize)]
struct Popular {
    name: String,
    /// The tiny model that lends it `tokenizer.json`.
    tokenizer: String,
    files: Map<String, Value>,
    expected: Expected,
}

#[derive(Debug, Deserialize, PartialEq, Eq)]
struct Expected {
    pooling: String,
    normalize: bool,
    max_tokens: usize,
    dimension: usize,
    lower_case: bool,
    /// Their names.
    prompts: String,
}

/// What is read from the files, and the keys that a warning would name.
fn read(folder: &Path, popular: &Popular) -> Result<(Expected, Vec<String>), String> {
    for (name, content) in &popular.files {
        std::fs::create_dir_all(folder.join(name).parent().unwrap()).unwrap();
        std::fs::write(folder.join(name), content.to_string()).unwrap();
    }
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sidecar-py/tests/golden");
    std::fs::copy(golden.join(&popular.tokenizer).join("tokenizer.json"), folder.join("tokenizer.json"))
        .unwrap();
    let model = Model::read(popular.name.clone(), folder, 0, Compute::default())?;
    let family =
        Family { model_type: model.model_type.clone(), tokenizer_class: model.tokenizer_class.clone() };
    let needs = Needs {
        max_tokens: model.max_tokens,
        end_token: model.end_token,
        vocabulary: None,
        lower_case: model.lower_case,
        family,
    };
    Tokenizer::load(folder, needs, 2)?;
    let mut unknown = model.unknown_keys.clone();
    unknown.extend(Settings::read(folder)?.unknown_keys().into_iter().map(str::to_owned));
    let expected = Expected {
        pooling: model.pooling.name().to_owned(),
        normalize: model.normalize,
        max_tokens: model.max_tokens,
        dimension: model.dimension,
        lower_case: model.lower_case,
        prompts: model.prompts.names(),
    };
    Ok((expected, unknown))
}

#[test]
fn the_files_of_models_that_people_use_are_accepted() {
    let models: Vec<Popular> =
        serde_json::from_str(include_str!("../../tests/data/popular_models.json")).unwrap();
    let mut wrong = Vec::new();
    for popular in &models {
        let folder = tempfile::tempdir().unwrap();
        match read(folder.path(), popular) {
            Ok((found, unknown)) if found == popular.expected && unknown.is_empty() => {}
            other => wrong.push(format!("{}: {other:?}", popular.name)),
        }
    }
    assert!(models.len() > 40 && wrong.is_empty(), "{}", wrong.join("\n"));
}
