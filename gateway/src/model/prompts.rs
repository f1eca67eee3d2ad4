//! The texts that a model was trained to read before the text itself.

use std::collections::BTreeMap;

use super::library::Library;
use crate::error::EmbedError;

/// How a prompt begins whose first line is an instruction, the task.
const INSTRUCTION_START: &str = "Instruct: ";
/// How the line after an instruction begins; the text follows it.
const QUERY_LINE: &str = "\nQuery:";
/// The prompt for queries that Qwen3-Embedding was published with.
const QWEN3_QUERY: &str =
    "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:";

/// The prompts of a model. All of them are known by name; one may be used where a request names none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Prompts {
    by_name: BTreeMap<String, String>,
    default: Option<String>,
    /// What stands between an instruction and the text, where the model was trained with instructions.
    after_instruction: Option<String>,
}

impl Prompts {
    /// Takes what the model's file says; without one, what the type of model is known to have.
    pub(super) fn new(model_type: &str, library: Option<Library>) -> Self {
        let is_qwen3 = model_type == "qwen3";
        let Library { prompts: by_name, default_prompt: default, .. } = match library {
            Some(library) => library,
            None if is_qwen3 => Library { prompts: qwen3_prompts(), ..Library::default() },
            None => Library::default(),
        };
        let own = by_name.values().find_map(|prompt| after_instruction(prompt));
        let after_instruction = own.or(is_qwen3.then_some(QUERY_LINE)).map(str::to_owned);
        Self { by_name, default, after_instruction }
    }

    /// What models of a type are known to have, whatever their files say.
    #[cfg(test)]
    pub(crate) fn known(model_type: &str) -> Self {
        Self::new(model_type, None)
    }

    /// The names of all prompts, for people.
    pub(crate) fn names(&self) -> String {
        self.by_name.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
    }

    /// The text where a request says nothing of prompts; mostly empty.
    pub(crate) fn default_text(&self) -> &str {
        self.default.as_deref().unwrap_or_default()
    }

    /// The text of the prompt of this name.
    pub(crate) fn named(&self, name: &str) -> Option<&str> {
        self.by_name.get(name).map(String::as_str)
    }

    /// The text of a prompt for a task in the client's own words.
    pub(crate) fn instruction(&self, task: &str) -> Result<String, EmbedError> {
        let after = self.after_instruction.as_ref().ok_or(EmbedError::InstructionNotSupported)?;
        Ok(format!("{INSTRUCTION_START}{task}{after}"))
    }
}

fn qwen3_prompts() -> BTreeMap<String, String> {
    [("query", QWEN3_QUERY), ("document", "")].map(|(name, text)| (name.to_owned(), text.to_owned())).into()
}

/// The part of a prompt after its instruction, if it has one.
fn after_instruction(prompt: &str) -> Option<&str> {
    let task = prompt.strip_prefix(INSTRUCTION_START)?;
    task.find(QUERY_LINE).map(|position| &task[position..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompts(model_type: &str, named: &[(&str, &str)], default: Option<&str>) -> Prompts {
        let prompts = named.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        let default_prompt = default.map(str::to_owned);
        Prompts::new(model_type, Some(Library { prompts, default_prompt, ..Library::default() }))
    }

    #[test]
    fn a_bare_qwen3_has_the_prompts_it_was_published_with() {
        let bare = Prompts::new("qwen3", None);
        assert_eq!((bare.named("query"), bare.named("document")), (Some(QWEN3_QUERY), Some("")));
        assert_eq!((bare.default_text(), bare.names().as_str()), ("", "document, query"));
        assert_eq!(bare.instruction("Find it"), Ok("Instruct: Find it\nQuery:".to_owned()));
        assert_eq!(Prompts::new("bert", None), Prompts::default());
    }

    #[test]
    fn a_models_own_file_wins() {
        let own = prompts("qwen3", &[("q", "query: ")], Some("query: "));
        assert_eq!((own.default_text(), own.named("query")), ("query: ", None));
        assert_eq!(own.instruction("t"), Ok("Instruct: t\nQuery:".to_owned()));
        assert_eq!(prompts("bert", &[], None), Prompts::default());
    }

    #[test]
    fn instructions_are_for_models_whose_prompts_have_one_and_have_their_form() {
        let e5 = prompts("xlm-roberta", &[("a", "passage: "), ("b", "Instruct: Find\nQuery: ")], None);
        assert_eq!(e5.instruction("Rank"), Ok("Instruct: Rank\nQuery: ".to_owned()));
        for without in [
            &[][..],
            &[("query", "query: ")],
            &[("query", "Instruct: Find. Query: ")],
            &[("query", "Represent this\nQuery: ")],
        ] {
            let refused = prompts("bert", without, None).instruction("Rank");
            assert_eq!(refused, Err(EmbedError::InstructionNotSupported), "{without:?}");
        }
    }
}
