//! Whether the model has a vector for every token that its tokenizer can give.

use tokenizers::Tokenizer as HuggingFaceTokenizer;

use super::special::SpecialTokens;

/// Returns the model's number of tokens if an entry of the vocabulary is beyond it, so that texts must be looked at.
///
/// A special token beyond it is refused, because every text has it. Of an added one the reference says nothing either, as long
/// as no text has it: tokenizers are shared by models of several sizes. The error is one line for a person.
pub(super) fn known_tokens(
    tokenizer: &HuggingFaceTokenizer,
    special: &SpecialTokens,
    vocabulary: usize,
) -> Result<Option<usize>, String> {
    let is_beyond = |id: u32| id as usize >= vocabulary;
    if let Some(id) = special.ids().find(|id| is_beyond(*id)) {
        let name = tokenizer.id_to_token(id).unwrap_or_default();
        return Err(format!(
            "the token {name:?} of `tokenizer.json` has the id {id}, but `vocab_size` in `config.json` is {vocabulary}"
        ));
    }
    let beyond = tokenizer.get_vocab(true).into_values().filter(|id| is_beyond(*id)).count();
    if beyond == 0 {
        return Ok(None);
    }
    tracing::warn!(
        tokens = beyond,
        vocab_size = vocabulary,
        "the tokenizer has tokens that the model lacks: texts containing one are refused"
    );
    Ok(Some(vocabulary))
}
