//! The longest text that a model takes, in tokens. The gateway decides, and a worker says whether it can do it.

use super::files::{ModelConfig, TokenizerConfig};
use super::sentence::Sentence;

/// Longest text, whatever the files say: no model that is served was trained with longer ones.
const MOST_TOKENS: usize = 1 << 20;
/// `model_max_length` of tokenizers that know of no limit is 10^30; from here on it counts as none.
const NO_LIMIT: f64 = 1e9;

/// `max_seq_length`, else `model_max_length`, but never more than the model has positions. The error is one line for a
/// person.
pub(super) fn max_tokens(
    config: &ModelConfig,
    sentence: &Sentence,
    tokenizer: Option<&TokenizerConfig>,
) -> Result<usize, String> {
    let of_tokenizer = match tokenizer.and_then(|tokenizer| tokenizer.model_max_length) {
        Some(length) => model_max_length(length)?,
        None => None,
    };
    let positions = usable_positions(config)?;
    Ok(sentence.max_tokens.or(of_tokenizer).unwrap_or(positions).min(positions).min(MOST_TOKENS))
}

/// `None` where it stands for no limit.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range was checked")]
fn model_max_length(length: f64) -> Result<Option<usize>, String> {
    match length {
        NO_LIMIT.. => Ok(None),
        1.0.. if length.fract() == 0.0 => Ok(Some(length as usize)),
        _ => {
            Err(format!("`model_max_length` in `tokenizer_config.json` is {length}, not a number of tokens"))
        }
    }
}

/// Positions that tokens can have: RoBERTa's positions start after the padding id.
fn usable_positions(config: &ModelConfig) -> Result<usize, String> {
    let stated = config.positions();
    let positions = stated.or_else(|| default_positions(&config.model_type)).ok_or_else(|| {
        format!(
            "`config.json` has no `max_position_embeddings`, and `{}` no usual number of them",
            config.model_type
        )
    })?;
    let usable = match config.model_type.as_str() {
        "roberta" | "xlm-roberta" | "camembert" => {
            let padding = config.pad_token_id.and_then(|id| usize::try_from(id).ok()).unwrap_or(1);
            positions.saturating_sub(padding.saturating_add(1))
        }
        _ => positions,
    };
    if usable == 0 {
        return Err(format!(
            "`max_position_embeddings` in `config.json` is {positions}: none is left for a text"
        ));
    }
    Ok(usable)
}

/// What a model of the family has where `config.json` does not say: the defaults of its configuration's class in
/// `transformers` 5.24. A worker that has fewer says so when it is ready.
fn default_positions(model_type: &str) -> Option<usize> {
    match model_type {
        "bert" | "roberta" | "xlm-roberta" | "camembert" => Some(512),
        "nomic_bert" => Some(2048),
        "modernbert" => Some(8192),
        "qwen3" => Some(32_768),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> ModelConfig {
        serde_json::from_str(json).unwrap()
    }

    fn limit(
        sentence: Option<usize>,
        tokenizer: Option<f64>,
        positions: Option<usize>,
    ) -> Result<usize, String> {
        let positions = serde_json::json!(positions);
        let config = config(&format!(
            r#"{{"model_type": "bert", "hidden_size": 8, "max_position_embeddings": {positions}}}"#
        ));
        let sentence = Sentence { max_tokens: sentence, ..Sentence::default() };
        let tokenizer = TokenizerConfig { model_max_length: tokenizer };
        max_tokens(&config, &sentence, Some(&tokenizer))
    }

    #[test]
    fn the_sentence_limit_comes_first_and_never_exceeds_the_positions() {
        assert_eq!(limit(Some(256), Some(512.0), Some(512)), Ok(256));
        assert_eq!(limit(None, Some(128.0), Some(512)), Ok(128));
        assert_eq!(limit(None, Some(1e30), Some(512)), Ok(512));
        assert_eq!(limit(None, Some(131_072.0), Some(32_768)), Ok(32_768));
        assert_eq!(limit(Some(usize::MAX), None, Some(usize::MAX)), Ok(MOST_TOKENS));
    }

    #[test]
    fn a_limit_that_is_none_is_refused_with_its_key() {
        for (refused, key) in [
            (limit(None, None, Some(0)), "`max_position_embeddings`"),
            (limit(None, Some(0.0), Some(512)), "`model_max_length`"),
            (limit(None, Some(-1.0), Some(512)), "`model_max_length`"),
            (limit(None, Some(0.5), Some(512)), "`model_max_length`"),
            (limit(None, Some(512.5), Some(512)), "`model_max_length`"),
        ] {
            assert!(refused.as_ref().unwrap_err().contains(key), "{refused:?}");
        }
    }

    #[test]
    fn a_family_has_the_usual_positions_where_the_file_does_not_say() {
        for (model_type, expected) in [
            ("bert", 512),
            ("roberta", 510),
            ("xlm-roberta", 510),
            ("camembert", 510),
            ("nomic_bert", 2048),
            ("modernbert", 8192),
            ("qwen3", 32_768),
        ] {
            let config = config(&format!(r#"{{"model_type": "{model_type}", "hidden_size": 8}}"#));
            let tokenizer = TokenizerConfig { model_max_length: Some(131_072.0) };
            assert_eq!(
                max_tokens(&config, &Sentence::default(), Some(&tokenizer)),
                Ok(expected),
                "{model_type}"
            );
        }
        let unknown = config(r#"{"model_type": "new", "hidden_size": 8}"#);
        assert!(
            max_tokens(&unknown, &Sentence::default(), None)
                .unwrap_err()
                .contains("`max_position_embeddings`")
        );
    }

    #[test]
    fn positions_of_the_roberta_family_begin_behind_padding() {
        for (model_type, pad, expected) in [
            ("roberta", "1", Some(512)),
            ("xlm-roberta", "null", Some(512)),
            ("camembert", "0", Some(513)),
            ("roberta", "513", None),
            ("roberta", "9223372036854775807", None),
            ("roberta", "-1", Some(512)),
            ("bert", "0", Some(514)),
        ] {
            let config = config(&format!(
                r#"{{"model_type": "{model_type}", "hidden_size": 8, "max_position_embeddings": 514, "pad_token_id": {pad}}}"#
            ));
            assert_eq!(max_tokens(&config, &Sentence::default(), None).ok(), expected, "{model_type} {pad}");
        }
    }
}
