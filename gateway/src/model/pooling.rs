//! How the vectors of tokens become the vector of a text: the file of the module `Pooling`.

use std::path::Path;

use akidb_protocol::Pooling;
use serde_json::Value;

use super::object::Object;

/// The keys of the older form, one for each mode, and what the newer form calls the mode.
const OLDER_FORM: [(&str, &str); 6] = [
    ("pooling_mode_cls_token", "cls"),
    ("pooling_mode_max_tokens", "max"),
    ("pooling_mode_mean_tokens", "mean"),
    ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
    ("pooling_mode_weightedmean_tokens", "weightedmean"),
    ("pooling_mode_lasttoken", "lasttoken"),
];
/// Both of them name the length of a token's vector.
const DIMENSION_KEYS: [&str; 2] = ["embedding_dimension", "word_embedding_dimension"];
const UNSUPPORTED: &str = "is not supported: only one of mean, cls and lasttoken is";

/// What the file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PoolingFile {
    pub(super) pooling: Pooling,
    /// Whether the tokens of a prompt are pooled like those of the text.
    pub(super) pools_prompt: bool,
}

impl PoolingFile {
    /// Reads it; `None` when there is none. Its dimension must be that of the model.
    pub(super) fn read(model: &Path, name: &str, dimension: usize) -> Result<Option<Self>, String> {
        let Some(mut file) = Object::read(model, name)? else { return Ok(None) };
        let reason = format!("must be the `hidden_size` of `config.json`, {dimension}");
        for key in DIMENSION_KEYS {
            file.accept(key, |stated| stated.as_u64() == Some(dimension as u64), &reason)?;
        }
        let pooling = mode(&mut file)?;
        let pools_prompt = file.flag("include_prompt")?.unwrap_or(true);
        file.refuse_unknown()?;
        Ok(Some(Self { pooling, pools_prompt }))
    }
}

/// The newer form decides where a file has both, and the mean where it names no mode.
fn mode(file: &mut Object) -> Result<Pooling, String> {
    let mut switched_on = Vec::new();
    for (key, mode) in OLDER_FORM {
        // Python takes `null` for false.
        let value = file.take(key).filter(|value| !value.is_null());
        match value.as_ref().map(|value| (value, value.as_bool())) {
            None | Some((_, Some(false))) => {}
            Some((_, Some(true))) => switched_on.push((key, mode)),
            Some((value, None)) => return Err(file.refusal(key, value, "must be true or false")),
        }
    }
    if let Some(value) = file.take("pooling_mode") {
        let only = match &value {
            Value::Array(modes) if modes.len() == 1 => &modes[0],
            other => other,
        };
        return only
            .as_str()
            .and_then(named)
            .ok_or_else(|| file.refusal("pooling_mode", &value, UNSUPPORTED));
    }
    match switched_on[..] {
        [] => Ok(Pooling::Mean),
        [(key, mode)] => named(mode).ok_or_else(|| file.refusal(key, &true.into(), UNSUPPORTED)),
        [(first, _), (second, _), ..] => {
            let reason = format!("asks for a second pooling next to `{first}`; only one is supported");
            Err(file.refusal(second, &true.into(), &reason))
        }
    }
}

fn named(mode: &str) -> Option<Pooling> {
    match mode {
        "mean" => Some(Pooling::Mean),
        "cls" => Some(Pooling::Cls),
        "lasttoken" => Some(Pooling::Last),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(config: &str) -> Result<PoolingFile, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("pooling.json"), config).unwrap();
        PoolingFile::read(folder.path(), "pooling.json", 8).map(Option::unwrap)
    }

    #[test]
    fn both_forms_of_a_pooling_are_understood() {
        for (config, expected) in [
            (r#"{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": false}"#, Pooling::Mean),
            (r#"{"pooling_mode_cls_token": true, "word_embedding_dimension": 8}"#, Pooling::Cls),
            (r#"{"pooling_mode_lasttoken": true, "pooling_mode_max_tokens": null}"#, Pooling::Last),
            (r#"{"pooling_mode": "mean", "embedding_dimension": 8, "include_prompt": true}"#, Pooling::Mean),
            (r#"{"pooling_mode": "cls"}"#, Pooling::Cls),
            (r#"{"pooling_mode": ["lasttoken"], "pooling_mode_mean_tokens": true}"#, Pooling::Last),
            (r#"{"pooling_mode_mean_tokens": false, "pooling_mode_cls_token": false}"#, Pooling::Mean),
            (r#"{"word_embedding_dimension": 8}"#, Pooling::Mean),
            ("{}", Pooling::Mean),
        ] {
            assert_eq!(read(config), Ok(PoolingFile { pooling: expected, pools_prompt: true }), "{config}");
        }
        assert!(!read(r#"{"include_prompt": false}"#).unwrap().pools_prompt);
    }

    #[test]
    fn a_pooling_that_we_cannot_do_is_refused_with_its_key() {
        for (config, key) in [
            (r#"{"pooling_mode_max_tokens": true}"#, "pooling_mode_max_tokens"),
            (r#"{"pooling_mode_mean_sqrt_len_tokens": true}"#, "pooling_mode_mean_sqrt_len_tokens"),
            (r#"{"pooling_mode_weightedmean_tokens": true}"#, "pooling_mode_weightedmean_tokens"),
            (
                r#"{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true}"#,
                "pooling_mode_mean_tokens",
            ),
            (r#"{"pooling_mode_mean_tokens": "true"}"#, "pooling_mode_mean_tokens"),
            (r#"{"pooling_mode_cls_token": "false"}"#, "pooling_mode_cls_token"),
            (r#"{"pooling_mode_cls_token": 1}"#, "pooling_mode_cls_token"),
            (r#"{"pooling_mode_first_token": true}"#, "pooling_mode_first_token"),
            (r#"{"pooling_mode_first_token": false}"#, "pooling_mode_first_token"),
            (r#"{"pooling_mode": "max"}"#, "pooling_mode"),
            (r#"{"pooling_mode": "mean_tokens"}"#, "pooling_mode"),
            (r#"{"pooling_mode": "cls_token"}"#, "pooling_mode"),
            (r#"{"pooling_mode": "Mean"}"#, "pooling_mode"),
            (r#"{"pooling_mode": ["mean", "cls"]}"#, "pooling_mode"),
            (r#"{"pooling_mode": ["mean", "mean"]}"#, "pooling_mode"),
            (r#"{"pooling_mode": []}"#, "pooling_mode"),
            (r#"{"pooling_mode": [["mean"]]}"#, "pooling_mode"),
            (r#"{"pooling_mode": null, "pooling_mode_cls_token": true}"#, "pooling_mode"),
            (r#"{"pooling_mode": {"cls": true}}"#, "pooling_mode"),
            (r#"{"include_prompt": null}"#, "include_prompt"),
            (r#"{"include_prompt": "false"}"#, "include_prompt"),
            (r#"{"include_prompt": 0}"#, "include_prompt"),
            (r#"{"word_embedding_dimension": 9}"#, "word_embedding_dimension"),
            (r#"{"word_embedding_dimension": 8, "embedding_dimension": 4}"#, "embedding_dimension"),
            (r#"{"embedding_dimension": "8"}"#, "embedding_dimension"),
            (r#"{"embedding_dimension": 8.5}"#, "embedding_dimension"),
            (r#"{"pooling_mode": "cls", "layer": 3}"#, "layer"),
            (r#"{"pooling_mode": "cls", "pooling_mode": "mean"}"#, "pooling_mode"),
        ] {
            let refusal = read(config).unwrap_err();
            let named = refusal.contains("`pooling.json`") && refusal.contains(&format!("`{key}`"));
            assert!(named && !refusal.contains('\n'), "{config}: {refusal}");
        }
        assert!(read("[]").unwrap_err().contains("`pooling.json`"));
        assert!(read("").unwrap_err().contains("`pooling.json`"));
    }
}
