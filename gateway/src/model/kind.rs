//! What kind of model a folder holds, by its own files. No other place decides that.
//!
//! A model that says about itself that it scores pairs, classifies, or gives sparse or several vectors is no embedding model, though its
//! transformer would give vectors, too.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use super::{files, modules};

/// Longest header of a weights' file that is looked at, in bytes; the format allows no longer one.
const LONGEST_HEADER: u64 = 100_000_000;

/// What a model is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// One vector of numbers for a text.
    Embedding,
    /// One score for two texts.
    CrossEncoder,
    /// One of several classes, for a text or its parts.
    Classifier,
    /// A weight for each word of a vocabulary.
    SparseEncoder,
    /// One vector for each token of a text.
    MultiVector,
    /// One of these, or something else: the file has a name that is not known.
    Unknown,
}

impl Kind {
    /// What it is called.
    fn name(self) -> &'static str {
        match self {
            Self::Embedding => "an embedding model",
            Self::CrossEncoder => "a cross-encoder (reranker)",
            Self::Classifier => "a classifier",
            Self::SparseEncoder => "a sparse encoder",
            Self::MultiVector => "a multi-vector (ColBERT) model",
            Self::Unknown => "a model of an unknown kind",
        }
    }
}

/// The files that say what a model is for; `null` where they cannot be read.
#[derive(Debug, Default)]
pub(super) struct Signs {
    /// `config_sentence_transformers.json`.
    library: Value,
    /// `modules.json`.
    modules: Value,
    /// `sentence_bert_config.json`.
    sentence: Value,
    /// `config.json`.
    config: Value,
    /// The first parts of the names of all tensors.
    tensors: Vec<String>,
}

impl Signs {
    /// Reads them from a model's folder. What is wrong with a file is said by who reads it next.
    pub(super) fn read(model: &Path) -> Self {
        let library = loose(model, "config_sentence_transformers.json");
        let modules = loose(model, "modules.json");
        let transformer =
            modules[0]["path"].as_str().filter(|path| modules::is_inside(path)).unwrap_or_default();
        let folder = model.join(transformer);
        Self {
            sentence: loose(&folder, "sentence_bert_config.json"),
            config: loose(&folder, "config.json"),
            tensors: if modules.is_null() { tensors(&folder) } else { Vec::new() },
            library,
            modules,
        }
    }

    /// Refuses what is no embedding model, in one line for a person.
    pub(super) fn check(&self) -> Result<(), String> {
        match self.kind() {
            (Kind::Embedding, _) => Ok(()),
            (kind, sign) => {
                Err(format!("it is {}, not an embedding model: {sign}; use an embedding model", kind.name()))
            }
        }
    }

    /// What the model is, and what says so. The files of the library know better than `config.json`, which may be of a model that
    /// this one was made from.
    fn kind(&self) -> (Kind, String) {
        self.by_library()
            .or_else(|| self.by_modules())
            .or_else(|| self.by_task())
            .or_else(|| self.modules.is_null().then(|| self.by_transformer()).flatten())
            .unwrap_or((Kind::Embedding, String::new()))
    }

    fn by_library(&self) -> Option<(Kind, String)> {
        let file = "config_sentence_transformers.json";
        if let Some(stated) = self.library.get("model_type") {
            let kind = match stated.as_str() {
                Some("SentenceTransformer") => return None,
                Some("CrossEncoder") => Kind::CrossEncoder,
                Some("SparseEncoder") => Kind::SparseEncoder,
                Some("MultiVectorEncoder") => Kind::MultiVector,
                _ => Kind::Unknown,
            };
            return Some((kind, says(file, "model_type", stated)));
        }
        let similarity = &self.library["similarity_fn_name"];
        let is_late = similarity.as_str().is_some_and(|name| name.eq_ignore_ascii_case("maxsim"));
        is_late.then(|| (Kind::MultiVector, says(file, "similarity_fn_name", similarity)))
    }

    fn by_modules(&self) -> Option<(Kind, String)> {
        let types = self.modules.as_array().into_iter().flatten().map(|module| &module["type"]);
        types.into_iter().find_map(|r#type| {
            let name = r#type.as_str()?;
            let of = |package: &str| name.contains(package);
            let class = name.rsplit('.').next().unwrap_or_default();
            let kind = match class {
                _ if of(".sparse_encoder.") => Kind::SparseEncoder,
                _ if of(".cross_encoder.") => Kind::CrossEncoder,
                _ if of(".multi_vector_encoder.") || name.starts_with("pylate.") => Kind::MultiVector,
                "SpladePooling"
                | "MLMTransformer"
                | "SparseAutoEncoder"
                | "SparseStaticEmbedding"
                | "IDF"
                | "CSRSparsity" => Kind::SparseEncoder,
                "LogitScore" => Kind::CrossEncoder,
                "MultiVectorMask" | "HierarchicalTokenPooling" | "LambdaTokenPooling" => Kind::MultiVector,
                _ => return None,
            };
            Some((kind, says("modules.json", "type", r#type)))
        })
    }

    fn by_task(&self) -> Option<(Kind, String)> {
        let task = &self.sentence["transformer_task"];
        let kind = match task.as_str()? {
            "sequence-classification" | "text-generation" | "any-to-any" => Kind::CrossEncoder,
            "fill-mask" => Kind::SparseEncoder,
            "retrieval" => Kind::MultiVector,
            _ => return None,
        };
        Some((kind, says("sentence_bert_config.json", "transformer_task", task)))
    }

    /// For a model without `modules.json`: what it was saved as, and whether it has a head that scores.
    fn by_transformer(&self) -> Option<(Kind, String)> {
        let file = "config.json";
        for key in ["sentence_transformers", "sbert_ce_default_activation_function"] {
            if let Some(value) = self.config.get(key).filter(|value| !value.is_null()) {
                return Some((Kind::CrossEncoder, says(file, key, value)));
            }
        }
        let architectures = &self.config["architectures"];
        let names: Vec<&str> = match architectures {
            Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
            other => other.as_str().into_iter().collect(),
        };
        if let Some(kind) = names.iter().find_map(|name| self.of_architecture(name)) {
            return Some((kind, says(file, "architectures", architectures)));
        }
        if let Some(head) =
            self.tensors.iter().find(|name| ["classifier", "score", "qa_outputs"].contains(&name.as_str()))
        {
            return Some((self.scorer(), format!("its weights have `{head}`")));
        }
        // A model that says what it is may have labels left over from its training; one that does not, has nothing else.
        let labels = ["problem_type", "id2label", "label2id", "num_labels"];
        let labels = if names.is_empty() { &labels[..] } else { &labels[..1] };
        labels.iter().find_map(|key| {
            let value = self.config.get(key).filter(|value| !value.is_null())?;
            Some((self.scorer(), says(file, key, value)))
        })
    }

    fn of_architecture(&self, name: &str) -> Option<Kind> {
        let has = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
        if has(&["ColBERT", "ColBert", "ForRetrieval"]) {
            Some(Kind::MultiVector)
        } else if has(&["Splade", "SPLADE"]) {
            Some(Kind::SparseEncoder)
        } else if has(&["ForSequenceClassification"]) {
            Some(self.scorer())
        } else if has(&["Rerank", "CrossEncoder", "RewardModel"]) {
            Some(Kind::CrossEncoder)
        } else if has(&["Classification", "QuestionAnswering", "MultipleChoice", "NextSentencePrediction"]) {
            Some(Kind::Classifier)
        } else {
            None
        }
    }

    /// With one label it is a score, with several it is a class; transformers has two where nothing is said.
    fn scorer(&self) -> Kind {
        let labels = self.config["id2label"].as_object().map(|labels| labels.len() as u64);
        if labels.or(self.config["num_labels"].as_u64()) == Some(1) {
            Kind::CrossEncoder
        } else {
            Kind::Classifier
        }
    }
}

fn says(file: &str, key: &str, value: &Value) -> String {
    format!("`{file}` has `{key}`: {}", super::object::shown(value))
}

fn loose(folder: &Path, name: &str) -> Value {
    files::read(folder, name).ok().flatten().unwrap_or_default()
}

/// What stands before the first dot in the names of the tensors of all weights in a folder.
fn tensors(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let files = entries.filter(|file| file.extension().is_some_and(|end| end == "safetensors"));
    let names = files.filter_map(|file| header(&file)).flat_map(BTreeMap::into_keys);
    let mut firsts: Vec<String> =
        names.map(|name| name.split('.').next().unwrap_or_default().to_owned()).collect();
    firsts.sort_unstable();
    firsts.dedup();
    firsts
}

/// The header of a file of weights: an object with the name of each tensor, its length before it.
fn header(file: &Path) -> Option<BTreeMap<String, serde::de::IgnoredAny>> {
    let mut file = File::open(file).ok()?;
    let mut length = [0; 8];
    file.read_exact(&mut length).ok()?;
    let length = Some(u64::from_le_bytes(length)).filter(|length| *length <= LONGEST_HEADER)?;
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header).ok()?;
    serde_json::from_slice(&header).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn transformer_and_pooling() -> Value {
        let of_library =
            |name: &str| json!({"path": "", "type": format!("sentence_transformers.models.{name}")});
        json!([of_library("Transformer"), of_library("Pooling")])
    }

    fn bare(config: Value) -> Signs {
        Signs { config, ..Signs::default() }
    }

    fn with_tensor(name: &str, config: Value) -> Signs {
        Signs { tensors: vec!["bert".to_owned(), name.to_owned()], config, ..Signs::default() }
    }

    #[test]
    fn what_is_no_embedding_model_is_told_what_it_is() {
        let library =
            |library: Value| Signs { library, modules: transformer_and_pooling(), ..Signs::default() };
        let module = |name: &str| Signs { modules: json!([{"type": name}]), ..Signs::default() };
        let task = |task: &str| Signs {
            sentence: json!({"transformer_task": task}),
            modules: transformer_and_pooling(),
            ..Signs::default()
        };
        let saved_as = |name: &str| bare(json!({"architectures": [name]}));
        let one_label = |key: &str, value: Value| {
            let mut config = json!({"architectures": ["XLMRobertaForSequenceClassification"]});
            config[key] = value;
            bare(config)
        };
        for (signs, kind, part) in [
            (library(json!({"model_type": "CrossEncoder"})), Kind::CrossEncoder, "`model_type`"),
            (library(json!({"model_type": "SparseEncoder"})), Kind::SparseEncoder, "SparseEncoder"),
            (library(json!({"model_type": "MultiVectorEncoder"})), Kind::MultiVector, "`model_type`"),
            (library(json!({"model_type": "sentencetransformer"})), Kind::Unknown, "`model_type`"),
            (library(json!({"model_type": 1})), Kind::Unknown, "`model_type`: 1"),
            (library(json!({"model_type": null})), Kind::Unknown, "`model_type`: null"),
            (library(json!({"similarity_fn_name": "MaxSim"})), Kind::MultiVector, "MaxSim"),
            (
                module("sentence_transformers.sparse_encoder.models.SpladePooling"),
                Kind::SparseEncoder,
                "Splade",
            ),
            (
                module("sentence_transformers.sparse_encoder.modules.mlm_transformer.MLMTransformer"),
                Kind::SparseEncoder,
                "`modules.json`",
            ),
            (module("sentence_transformers.sparse_encoder.models.IDF"), Kind::SparseEncoder, "IDF"),
            (module("sentence_transformers.models.SpladePooling"), Kind::SparseEncoder, "Splade"),
            (
                module("sentence_transformers.cross_encoder.modules.logit_score.LogitScore"),
                Kind::CrossEncoder,
                "LogitScore",
            ),
            (module("pylate.models.Dense.Dense"), Kind::MultiVector, "pylate"),
            (
                module("sentence_transformers.multi_vector_encoder.modules.MultiVectorMask"),
                Kind::MultiVector,
                "Mask",
            ),
            (task("sequence-classification"), Kind::CrossEncoder, "`transformer_task`"),
            (task("text-generation"), Kind::CrossEncoder, "`transformer_task`"),
            (task("fill-mask"), Kind::SparseEncoder, "`sentence_bert_config.json`"),
            (saved_as("BertForSequenceClassification"), Kind::Classifier, "`architectures`"),
            (one_label("num_labels", json!(1)), Kind::CrossEncoder, "`architectures`"),
            (one_label("id2label", json!({"0": "LABEL_0"})), Kind::CrossEncoder, "`config.json`"),
            (saved_as("BertForTokenClassification"), Kind::Classifier, "Token"),
            (saved_as("RobertaForQuestionAnswering"), Kind::Classifier, "Question"),
            (saved_as("BertForMultipleChoice"), Kind::Classifier, "Choice"),
            (saved_as("BertForNextSentencePrediction"), Kind::Classifier, "Next"),
            (saved_as("HF_ColBERT"), Kind::MultiVector, "ColBERT"),
            (saved_as("BertForSPLADE"), Kind::SparseEncoder, "SPLADE"),
            (bare(json!({"architectures": "BertForTokenClassification"})), Kind::Classifier, "Token"),
            (
                bare(json!({"architectures": ["BertModel", "BertForSequenceClassification"]})),
                Kind::Classifier,
                "[",
            ),
            (
                bare(json!({"architectures": ["BertModel"], "sbert_ce_default_activation_function": "x"})),
                Kind::CrossEncoder,
                "sbert_ce",
            ),
            (
                bare(json!({"architectures": ["BertModel"], "sentence_transformers": {"version": "4.0.1"}})),
                Kind::CrossEncoder,
                "`sentence_transformers`",
            ),
            (
                bare(json!({"architectures": ["BertModel"], "problem_type": "regression"})),
                Kind::Classifier,
                "`problem_type`",
            ),
            (bare(json!({"num_labels": 1})), Kind::CrossEncoder, "`num_labels`"),
            (
                bare(json!({"architectures": null, "id2label": {"0": "negative", "1": "positive"}})),
                Kind::Classifier,
                "`id2label`",
            ),
            (with_tensor("classifier", json!({"num_labels": 1})), Kind::CrossEncoder, "`classifier`"),
            (with_tensor("classifier", json!({"architectures": ["BertModel"]})), Kind::Classifier, "weights"),
            (
                with_tensor("score", json!({"architectures": ["Qwen3Model"], "id2label": {"0": "LABEL_0"}})),
                Kind::CrossEncoder,
                "`score`",
            ),
            (with_tensor("qa_outputs", json!({})), Kind::Classifier, "`qa_outputs`"),
        ] {
            assert_eq!(signs.kind().0, kind, "{signs:?}");
            let reason = signs.check().unwrap_err();
            assert!(reason.contains(part) && reason.contains(kind.name()), "{part} is not in {reason}");
        }
    }

    #[test]
    fn good_embedding_models_say_all_sorts_of_things() {
        for config in [
            json!({}),
            json!({"architectures": ["BertModel"], "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}),
            json!({"architectures": ["BertForMaskedLM"]}),
            json!({"architectures": ["ModernBertForMaskedLM"], "classifier_pooling": "mean", "classifier_dropout": 0.0}),
            json!({"architectures": ["Qwen3ForCausalLM"]}),
            json!({"architectures": ["BertForPreTraining"]}),
            json!({"architectures": ["NomicBertModel"]}),
            json!({"architectures": null, "problem_type": null, "num_labels": null}),
        ] {
            assert_eq!(bare(config).check(), Ok(()));
        }
        // Made from a classifier, and no classifier any more.
        let config = json!({"architectures": ["XLMRobertaForSequenceClassification"], "num_labels": 1});
        let library = json!({"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"});
        let signs = Signs { config, library, modules: transformer_and_pooling(), ..Signs::default() };
        assert_eq!(signs.check(), Ok(()));
    }

    #[test]
    fn tensors_are_looked_at_only_where_nothing_else_says_what_the_model_is() {
        let folder = tempfile::tempdir().unwrap();
        let header = br#"{"classifier.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "__metadata__": {}}"#;
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(header);
        std::fs::write(folder.path().join("model.safetensors"), &file).unwrap();
        std::fs::write(folder.path().join("damaged.safetensors"), b"\xff\xff\xff\xff\xff\xff\xff\xff{")
            .unwrap();
        assert_eq!(Signs::read(folder.path()).kind().0, Kind::Classifier);
        std::fs::write(folder.path().join("modules.json"), transformer_and_pooling().to_string()).unwrap();
        assert_eq!(Signs::read(folder.path()).kind().0, Kind::Embedding);
    }
}
