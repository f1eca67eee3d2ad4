//! The longest text that a model takes, in tokens.

use super::files::{ModelConfig, SentenceConfig, TokenizerConfig};

/// `max_seq_length`, else `model_max_length`, but never more than the model has positions.
pub(super) fn max_tokens(
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
    let limit = match (stated, usable_positions(config)) {
        (Some(stated), Some(positions)) => stated.min(positions),
        (Some(only), None) | (None, Some(only)) => only,
        (None, None) => return None,
    };
    (limit > 0).then_some(limit)
}

/// Positions that tokens can have: RoBERTa's count from behind that of padding.
fn usable_positions(config: &ModelConfig) -> Option<usize> {
    let positions = config.positions()?;
    Some(match config.model_type.as_str() {
        "roberta" | "xlm-roberta" | "camembert" => {
            let padding = config.pad_token_id.and_then(|id| usize::try_from(id).ok()).unwrap_or(1);
            positions.saturating_sub(padding.saturating_add(1))
        }
        _ => positions,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> ModelConfig {
        serde_json::from_str(json).unwrap()
    }

    fn limit(sentence: Option<usize>, tokenizer: Option<f64>, positions: Option<usize>) -> Option<usize> {
        let positions = serde_json::json!(positions);
        let config = config(&format!(
            r#"{{"model_type": "bert", "hidden_size": 8, "max_position_embeddings": {positions}}}"#
        ));
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
            assert_eq!(max_tokens(&config, None, None), expected, "{model_type} {pad}");
        }
    }
}
