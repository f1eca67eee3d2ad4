//! Whether the model has a vector for every token that its tokenizer can give.

use tokenizers::Tokenizer as HuggingFaceTokenizer;

use super::special::SpecialTokens;

/// Returns the model's number of tokens where an entry of the vocabulary lies beyond it, so that texts must be looked at.
///
/// An added or special token beyond it is refused: somebody has added it and forgotten the model. The error is one line for
/// a person.
pub(super) fn known_tokens(
    tokenizer: &HuggingFaceTokenizer,
    special: &SpecialTokens,
    vocabulary: usize,
) -> Result<Option<usize>, String> {
    let is_beyond = |id: u32| id as usize >= vocabulary;
    let refusal = |name: &str, id: u32| {
        Err(format!(
            "the token {name:?} of `tokenizer.json` has the id {id}, but `vocab_size` in `config.json` is {vocabulary}"
        ))
    };
    if let Some(id) = special.ids().find(|id| is_beyond(*id)) {
        return refusal(&tokenizer.id_to_token(id).unwrap_or_default(), id);
    }
    let added = tokenizer.get_added_tokens_decoder();
    if let Some((id, token)) = added.iter().filter(|(id, _)| is_beyond(**id)).min_by_key(|(id, _)| **id) {
        return refusal(&token.content, *id);
    }
    let beyond = tokenizer.get_vocab(false).into_values().filter(|id| is_beyond(*id)).count();
    if beyond == 0 {
        return Ok(None);
    }
    tracing::warn!(
        tokens = beyond,
        vocab_size = vocabulary,
        "the tokenizer knows tokens that the model does not: texts with one of them are refused"
    );
    Ok(Some(vocabulary))
}
