//! What the served model offers, and what the choices of one request come to.

use akidb_protocol::Pooling;

use super::request::{EmbedRequest, Prompt};
use super::vector::VectorForm;
use crate::error::{EmbedError, shorten};
use crate::model::{Model, Prompts};
use crate::tokenizer::{Reading, TruncationDirection};

/// Shortest vector that a request may ask for, where the model's own is not shorter.
const FEWEST_DIMENSIONS: usize = 32;

/// What a model was trained to do, and does where a request does not choose.
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) dimension: usize,
    pub(super) pooling: Pooling,
    pub(super) normalize: bool,
    pub(super) pools_prompt: bool,
    pub(super) prompts: Prompts,
    pub(super) truncation: TruncationDirection,
}

/// What is to be done for a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) pooling: Pooling,
    pub(super) reading: Reading,
    pub(super) form: VectorForm,
}

impl Offer {
    pub(super) fn of(model: &Model, truncation: TruncationDirection) -> Self {
        Self {
            dimension: model.dimension,
            pooling: model.pooling,
            normalize: model.normalize,
            pools_prompt: model.pools_prompt,
            prompts: model.prompts.clone(),
            truncation,
        }
    }

    /// Settles what a request leaves open, and refuses what the model cannot do.
    pub(super) fn plan(&self, request: &EmbedRequest) -> Result<Plan, EmbedError> {
        let pooling = request.pooling.unwrap_or(self.pooling);
        let prompt = self.prompt(&request.prompt)?;
        if !self.pools_prompt && pooling != Pooling::Last && !prompt.is_empty() {
            return Err(EmbedError::PromptNotSupported);
        }
        let form = VectorForm {
            dimension: self.dimension(request.dimensions)?,
            normalize: request.normalize.unwrap_or(self.normalize),
        };
        let truncation = request.truncation_direction.unwrap_or(self.truncation);
        Ok(Plan { pooling, reading: Reading { prompt, truncation }, form })
    }

    fn prompt(&self, prompt: &Prompt) -> Result<String, EmbedError> {
        match prompt {
            Prompt::Default => Ok(self.prompts.default_text().to_owned()),
            Prompt::Named(name) => match self.prompts.named(name) {
                Some(text) => Ok(text.to_owned()),
                None => Err(EmbedError::UnknownPrompt {
                    requested: shorten(name),
                    known: shorten(&self.prompts.names()),
                }),
            },
            Prompt::Instruction(task) if task.trim().is_empty() => Err(EmbedError::EmptyInstruction),
            Prompt::Instruction(task) => self.prompts.instruction(task),
        }
    }

    fn dimension(&self, requested: Option<usize>) -> Result<usize, EmbedError> {
        let most = self.dimension;
        let least = FEWEST_DIMENSIONS.min(most);
        match requested {
            None => Ok(most),
            Some(requested) if (least..=most).contains(&requested) => Ok(requested),
            Some(requested) => Err(EmbedError::InvalidDimensions { requested, least, most }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(dimension: usize, pools_prompt: bool) -> Offer {
        let prompts = Prompts::known("qwen3");
        let truncation = TruncationDirection::Right;
        Offer { dimension, pooling: Pooling::Mean, normalize: false, pools_prompt, prompts, truncation }
    }

    fn request() -> EmbedRequest {
        EmbedRequest::new(vec!["a".to_owned()])
    }

    fn named(name: &str) -> EmbedRequest {
        EmbedRequest { prompt: Prompt::Named(name.to_owned()), ..request() }
    }

    #[test]
    fn what_a_request_leaves_open_is_the_models() {
        let plan = offer(64, true).plan(&request()).unwrap();
        let form = VectorForm { dimension: 64, normalize: false };
        assert_eq!(plan, Plan { pooling: Pooling::Mean, reading: Reading::default(), form });
        let chosen = EmbedRequest {
            pooling: Some(Pooling::Cls),
            normalize: Some(true),
            dimensions: Some(32),
            prompt: Prompt::Instruction("Rank".to_owned()),
            truncation_direction: Some(TruncationDirection::Left),
            ..request()
        };
        let reading =
            Reading { prompt: "Instruct: Rank\nQuery:".to_owned(), truncation: TruncationDirection::Left };
        let form = VectorForm { dimension: 32, normalize: true };
        assert_eq!(offer(64, true).plan(&chosen), Ok(Plan { pooling: Pooling::Cls, reading, form }));
    }

    #[test]
    fn dimensions_are_from_32_to_the_models_own() {
        for (dimension, requested, is_right) in [
            (64, 32, true),
            (64, 64, true),
            (64, 31, false),
            (64, 65, false),
            (64, 0, false),
            (64, usize::MAX, false),
            (8, 8, true),
            (8, 7, false),
            (8, 32, false),
        ] {
            let request = EmbedRequest { dimensions: Some(requested), ..request() };
            let plan = offer(dimension, true).plan(&request);
            let expected = if is_right {
                Ok(requested)
            } else {
                Err(EmbedError::InvalidDimensions { requested, least: dimension.min(32), most: dimension })
            };
            assert_eq!(plan.map(|plan| plan.form.dimension), expected, "{requested} of {dimension}");
        }
    }

    #[test]
    fn a_prompt_must_exist_and_an_instruction_have_words() {
        let refusal = offer(64, true).plan(&named(&"p".repeat(1000))).unwrap_err();
        let EmbedError::UnknownPrompt { requested, known } = refusal else { panic!("{refusal}") };
        assert!(requested.len() < 310 && known == "document, query", "{requested} {known}");
        for empty in ["", " \n"] {
            let request = EmbedRequest { prompt: Prompt::Instruction(empty.to_owned()), ..request() };
            assert_eq!(offer(64, true).plan(&request), Err(EmbedError::EmptyInstruction));
        }
    }

    #[test]
    fn a_model_that_leaves_prompts_out_of_its_pooling_takes_only_prompts_without_text() {
        let offer = offer(64, false);
        assert_eq!(offer.plan(&named("query")), Err(EmbedError::PromptNotSupported));
        assert!(offer.plan(&named("document")).is_ok() && offer.plan(&request()).is_ok());
        let pooled = |pooling| EmbedRequest { pooling: Some(pooling), ..named("query") };
        // The first token would be that of the text, and the last one is that anyway.
        assert_eq!(offer.plan(&pooled(Pooling::Cls)), Err(EmbedError::PromptNotSupported));
        assert!(offer.plan(&pooled(Pooling::Last)).is_ok());
    }
}
