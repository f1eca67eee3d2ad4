//! What the tokenizer's classes of `transformers` make of `tokenizer.json`.
//!
//! Most of them take no more than the vocabulary from it, and build everything else themselves, by the settings in
//! `tokenizer_config.json`: these, and the classes' own defaults, win over what `tokenizer.json` says. This follows
//! `transformers` 5.24: `models/auto/tokenization_auto.py`, `tokenization_utils_tokenizers.py`, and
//! `models/{bert,roberta,xlm_roberta,camembert,qwen2}/tokenization_*.py`.

use serde_json::{Value, json};
use tokenizers::AddedToken;

use super::file::{ListedToken, TokenizerFile};
use super::normalizers;
use super::settings::Settings;

/// Splits text like the tokenizer of Qwen2 and Qwen3.
const QWEN2_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Settings that only some classes read.
const OF_SOME_CLASSES: [&str; 4] =
    ["do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space"];
/// Classes that do not work by `tokenizer.json` at all.
const WITHOUT_FILE: [&str; 8] = [
    "BertJapaneseTokenizer",
    "BertTokenizerLegacy",
    "BertweetTokenizer",
    "ByT5Tokenizer",
    "CanineTokenizer",
    "FlaubertTokenizer",
    "PhobertTokenizer",
    "XLMTokenizer",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// `TokenizersBackend`: everything is as `tokenizer.json` says.
    AsFiled,
    /// A class that is not known here; probably it agrees with `tokenizer.json`.
    Unknown,
    Bert,
    Roberta,
    XlmRoberta,
    Camembert,
    Qwen2,
}

/// What `config.json` says of the tokenizer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Family {
    /// `model_type`.
    pub(crate) model_type: String,
    /// `tokenizer_class`, which is looked at where `tokenizer_config.json` has none.
    pub(crate) tokenizer_class: Option<String>,
}

impl Class {
    fn of(family: &Family, settings: &Settings) -> Result<Self, String> {
        let own = match family.model_type.as_str() {
            "bert" | "nomic_bert" => Self::Bert,
            "roberta" => Self::Roberta,
            "xlm-roberta" => Self::XlmRoberta,
            "camembert" => Self::Camembert,
            "qwen3" => Self::Qwen2,
            // The class that files of ModernBERT name is known to be wrong.
            "modernbert" => return Ok(Self::AsFiled),
            _ => Self::Unknown,
        };
        let Some(name) = settings.class().or(family.tokenizer_class.as_deref()) else { return Ok(own) };
        let name = name.trim_end_matches("Fast");
        if WITHOUT_FILE.contains(&name) {
            return Err(format!(
                "`tokenizer_class` is `{name}`, which does not work by `tokenizer.json`, and is not supported"
            ));
        }
        Ok(match name {
            "BertTokenizer" => Self::Bert,
            "RobertaTokenizer" => Self::Roberta,
            "XLMRobertaTokenizer" => Self::XlmRoberta,
            "CamembertTokenizer" => Self::Camembert,
            "Qwen2Tokenizer" => Self::Qwen2,
            "PreTrainedTokenizer" | "TokenizersBackend" | "PythonBackend" => Self::AsFiled,
            _ => Self::Unknown,
        })
    }

    /// The kind of model that it builds.
    fn kind(self) -> Option<&'static str> {
        match self {
            Self::AsFiled | Self::Unknown => None,
            Self::Bert => Some("WordPiece"),
            Self::Roberta | Self::Qwen2 => Some("BPE"),
            Self::XlmRoberta | Self::Camembert => Some("Unigram"),
        }
    }

    /// What a token with a role is called where nobody says.
    fn default_role(self, role: &str) -> Option<&'static str> {
        match (self, role) {
            (Self::Bert, "unk_token") => Some("[UNK]"),
            (Self::Bert, "sep_token") => Some("[SEP]"),
            (Self::Bert, "pad_token") => Some("[PAD]"),
            (Self::Bert, "cls_token") => Some("[CLS]"),
            (Self::Bert, "mask_token") => Some("[MASK]"),
            (Self::Qwen2, "unk_token" | "eos_token" | "pad_token") => Some("<|endoftext|>"),
            (Self::Roberta | Self::XlmRoberta | Self::Camembert, role) => match role {
                "bos_token" | "cls_token" => Some("<s>"),
                "eos_token" | "sep_token" => Some("</s>"),
                "unk_token" => Some("<unk>"),
                "pad_token" => Some("<pad>"),
                "mask_token" => Some("<mask>"),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Changes `tokenizer.json` to what the model's class makes of it. The error is one line for a person.
pub(super) fn apply(file: &mut TokenizerFile, settings: &Settings, family: &Family) -> Result<(), String> {
    let class = Class::of(family, settings)?;
    let fits = class.kind().is_none_or(|kind| file.model["type"] == kind);
    let class = if fits { class } else { Class::AsFiled };
    if !fits {
        tracing::warn!(
            model = file.model["type"].as_str(),
            "the tokenizer's class does not match `tokenizer.json`: using `tokenizer.json` alone"
        );
    }
    let before = file.clone();
    list_added_tokens(file, settings, class)?;
    let template =
        |file: &TokenizerFile, first: &str, last: &str| template(file, settings, class, [first, last]);
    match class {
        Class::AsFiled => {}
        Class::Unknown => refuse_differences(file, settings)?,
        Class::Bert => {
            file.normalizer = json!({
                "type": "BertNormalizer",
                "clean_text": true,
                "handle_chinese_chars": settings.flag("tokenize_chinese_chars", true)?,
                "strip_accents": settings.choice("strip_accents")?,
                "lowercase": settings.flag("do_lower_case", true)?,
            });
            file.pre_tokenizer = json!({"type": "BertPreTokenizer"});
            file.post_processor = template(file, "cls_token", "sep_token")?;
            file.model["unk_token"] = json!(role(settings, class, "unk_token"));
            file.model["continuing_subword_prefix"] = json!("##");
            file.model["max_input_chars_per_word"] = json!(100);
        }
        Class::Roberta => {
            let add_prefix_space = settings.flag("add_prefix_space", false)?;
            file.normalizer = Value::Null;
            file.pre_tokenizer = byte_level(add_prefix_space, true);
            file.post_processor = template(file, "cls_token", "sep_token")?;
            plain_bpe(&mut file.model);
        }
        Class::XlmRoberta | Class::Camembert => {
            let is_charsmap = |part: &&Value| part["type"] == "Precompiled";
            file.normalizer = normalizers::parts(&file.normalizer)
                .into_iter()
                .find(is_charsmap)
                .cloned()
                .unwrap_or_default();
            let scheme = if settings.flag("add_prefix_space", true)? { "always" } else { "never" };
            file.pre_tokenizer = json!({"type": "Sequence", "pretokenizers": [
                {"type": "WhitespaceSplit"},
                {"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": scheme, "split": true},
            ]});
            file.post_processor = template(file, "bos_token", "eos_token")?;
            let unknown = role(settings, class, "unk_token");
            let is_unknown = |entry: &Value| entry[0].as_str() == unknown;
            let entries = file.model["vocab"].as_array().into_iter().flatten();
            let unk_id = match class {
                Class::XlmRoberta => 3,
                _ => entries.map(is_unknown).position(|is_unknown| is_unknown).unwrap_or(0),
            };
            file.model["unk_id"] = json!(unk_id);
            file.model["byte_fallback"] = json!(false);
        }
        Class::Qwen2 => {
            let add_prefix_space = settings.flag("add_prefix_space", false)?;
            file.normalizer = json!({"type": "NFC"});
            file.pre_tokenizer = json!({"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": QWEN2_PATTERN}, "behavior": "Isolated", "invert": false},
                byte_level(add_prefix_space, false),
            ]});
            plain_bpe(&mut file.model);
        }
    }
    tell(&before, file, class);
    Ok(())
}

fn role<'a>(settings: &'a Settings, class: Class, role: &str) -> Option<&'a str> {
    settings.role(role).or_else(|| class.default_role(role))
}

fn byte_level(add_prefix_space: bool, use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true, "use_regex": use_regex})
}

/// Everything but the vocabulary and the merges is as the classes set it.
fn plain_bpe(model: &mut Value) {
    for key in ["dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"] {
        model[key] = Value::Null;
    }
    for key in ["fuse_unk", "byte_fallback", "ignore_merges"] {
        model[key] = json!(false);
    }
}

/// A text between two tokens.
fn template(
    file: &TokenizerFile,
    settings: &Settings,
    class: Class,
    roles: [&str; 2],
) -> Result<Value, String> {
    let mut ids = serde_json::Map::new();
    let mut pieces = Vec::new();
    for name in roles {
        let token = role(settings, class, name).unwrap_or_default();
        let id = id_of(file, token).ok_or_else(|| {
            format!("the `{name}` of its texts, {token:?}, is not in the vocabulary of `tokenizer.json`")
        })?;
        ids.insert(token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]}));
        pieces.push(json!({"SpecialToken": {"id": token, "type_id": 0}}));
    }
    let text = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    let single = [pieces[0].clone(), text("A"), pieces[1].clone()];
    let pair = [&single[..], &[text("B")]].concat();
    Ok(json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": ids}))
}

fn id_of(file: &TokenizerFile, token: &str) -> Option<u64> {
    let of_model = match &file.model["vocab"] {
        Value::Array(entries) => {
            entries.iter().position(|entry| entry[0] == token).and_then(|id| u64::try_from(id).ok())
        }
        vocabulary => vocabulary[token].as_u64(),
    };
    let listed = || file.added_tokens.iter().find(|listed| listed.token.content == token);
    of_model.or_else(|| listed().map(|listed| listed.id.into()))
}

/// Tokens that are looked for before everything else: those of the settings, where they have any, and the special ones.
fn list_added_tokens(file: &mut TokenizerFile, settings: &Settings, class: Class) -> Result<(), String> {
    let mut special = settings.special()?;
    let defaults =
        ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
    let unstated = defaults.iter().filter(|role| settings.role(role).is_none());
    special.extend(
        unstated.filter_map(|role| class.default_role(role)).map(|name| AddedToken::from(name, true)),
    );
    let of_settings = settings.added_tokens()?;
    let older = settings.older_tokens(&special);
    let is_rebuilt = class.kind().is_some();
    let mut listed =
        if is_rebuilt && of_settings.is_some() { Vec::new() } else { std::mem::take(&mut file.added_tokens) };
    for token in of_settings.into_iter().flatten() {
        replace_or_push(&mut listed, token);
    }
    for token in older {
        if !listed.iter().any(|other| other.token.content == token.token.content) {
            listed.push(token);
        }
    }
    file.added_tokens = listed;
    for token in special {
        let named = |other: &&mut ListedToken| other.token.content == token.content;
        if let Some(other) = file.added_tokens.iter_mut().find(named) {
            other.token.special = true;
            if class == Class::Qwen2 {
                other.token = AddedToken::from(token.content, true);
            }
        } else if let Some(id) = id_of(file, &token.content).and_then(|id| u32::try_from(id).ok()) {
            // One that is not in the vocabulary would get an id that the model does not know.
            file.added_tokens.push(ListedToken { id, token });
        }
    }
    Ok(())
}

fn replace_or_push(listed: &mut Vec<ListedToken>, token: ListedToken) {
    match listed.iter_mut().find(|other| other.token.content == token.token.content) {
        Some(other) => other.token = token.token,
        None => listed.push(token),
    }
}

/// Of a class that is not known, settings that contradict `tokenizer.json` cannot be obeyed.
fn refuse_differences(file: &TokenizerFile, settings: &Settings) -> Result<(), String> {
    let normalizers = normalizers::parts(&file.normalizer);
    let bert = normalizers.iter().find(|part| part["type"] == "BertNormalizer");
    let byte_level = json!([file.pre_tokenizer, file.pre_tokenizer["pretokenizers"]]).to_string();
    for key in OF_SOME_CLASSES {
        let Some(wanted) = settings.choice(key)? else { continue };
        let is_so = match (key, bert) {
            ("do_lower_case", Some(bert)) => bert["lowercase"] == wanted,
            ("do_lower_case", None) => wanted == normalizers.iter().any(|part| part["type"] == "Lowercase"),
            ("strip_accents", Some(bert)) => bert["strip_accents"] == wanted,
            ("tokenize_chinese_chars", Some(bert)) => bert["handle_chinese_chars"] == wanted,
            ("add_prefix_space", _) => !byte_level.contains(&format!("\"add_prefix_space\":{}", !wanted)),
            _ => true,
        };
        if !is_so {
            return Err(format!(
                "`{key}` in `tokenizer_config.json` is {wanted}, `tokenizer.json` says otherwise, and which of them counts is not known for this `tokenizer_class`"
            ));
        }
    }
    Ok(())
}

/// Says what was changed.
fn tell(before: &TokenizerFile, after: &TokenizerFile, class: Class) {
    let parts = [
        ("normalizer", &before.normalizer, &after.normalizer),
        ("pre_tokenizer", &before.pre_tokenizer, &after.pre_tokenizer),
    ];
    let changed: Vec<&str> =
        parts.iter().filter(|(_, before, after)| before != after).map(|(name, ..)| *name).collect();
    if !changed.is_empty() {
        tracing::info!(
            class = ?class,
            parts = changed.join(", "),
            "replacing parts of `tokenizer.json`, as `transformers` does for this class"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{Needs, Reading, Tokenizer, TruncationDirection};
    use super::*;

    /// Loads a tiny model's tokenizer, of whose files some keys are changed.
    fn load(model: &str, change: &Value) -> Result<Tokenizer, String> {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sidecar-py/tests/golden").join(model);
        let folder = tempfile::tempdir().unwrap();
        let read = |name: &str| -> Value {
            let bytes = std::fs::read(golden.join(name)).unwrap_or_else(|_| b"{}".to_vec());
            serde_json::from_slice(&bytes).unwrap()
        };
        for name in
            ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]
        {
            let mut file = read(name);
            for (key, value) in change[name].as_object().into_iter().flatten() {
                file[key] = value.clone();
            }
            std::fs::write(folder.path().join(name), file.to_string()).unwrap();
        }
        let model_type = read("config.json")["model_type"].as_str().unwrap().to_owned();
        let family = Family { model_type, tokenizer_class: None };
        let needs = Needs { max_tokens: 128, end_token: None, vocabulary: None, lower_case: false, family };
        Tokenizer::load(folder.path(), needs, 2)
    }

    async fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
        let tokens = tokenizer.tokenize(vec![text.to_owned()], Reading::default(), deadline).await;
        tokens.unwrap().remove(0).ids
    }

    #[tokio::test]
    async fn token_ids_are_those_of_the_reference_whichever_file_says_what() {
        let golden: Value = include_str!("../../tests/data/tokenizer_classes.json").parse().unwrap();
        let mut wrong = Vec::new();
        let mut compared = 0;
        for case in golden["cases"].as_array().unwrap() {
            let (model, change) = (case["model"].as_str().unwrap(), &case["change"]);
            let tokenizer = load(model, change).unwrap();
            let texts = golden["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap());
            for (text, expected) in texts.zip(case["ids"].as_array().unwrap()) {
                // The reference adds `<mask>` with an id that the model does not know, and cannot compute such texts.
                if model == "tiny-xlm-roberta" && text.contains("<mask>") {
                    continue;
                }
                let ids = ids(&tokenizer, text).await;
                compared += 1;
                if json!(ids) != *expected {
                    wrong.push(format!("{model} {change} {text}: {ids:?}, not {expected}"));
                }
            }
        }
        assert!(compared > 200, "{compared}");
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn where_a_long_text_is_cut_is_what_the_files_say() {
        let truncation =
            |side: &str| json!({"direction": side, "max_length": 8, "strategy": "LongestFirst", "stride": 0});
        for (change, expected) in [
            (json!({}), TruncationDirection::Right),
            (json!({"tokenizer_config.json": {"truncation_side": "left"}}), TruncationDirection::Left),
            (json!({"tokenizer.json": {"truncation": truncation("Left")}}), TruncationDirection::Left),
            (
                json!({"tokenizer.json": {"truncation": truncation("Left")}, "tokenizer_config.json": {"truncation_side": "right"}}),
                TruncationDirection::Right,
            ),
        ] {
            assert_eq!(load("tiny-bert", &change).unwrap().truncation(), expected, "{change}");
        }
    }

    #[test]
    fn a_setting_that_cannot_be_obeyed_is_refused_with_its_file_key_and_value() {
        let config = |keys: Value| json!({"tokenizer_config.json": keys});
        for (change, parts) in [
            (config(json!({"do_lower_case": "no"})), ["`do_lower_case`", "\"no\""]),
            (config(json!({"strip_accents": 1})), ["`strip_accents`", "is 1"]),
            (config(json!({"truncation_side": "middle"})), ["`truncation_side`", "middle"]),
            (config(json!({"auto_map": {"AutoTokenizer": ["x.Y", null]}})), ["`auto_map`", "x.Y"]),
            (
                config(json!({"tokenizer_class": "BertJapaneseTokenizer"})),
                ["`tokenizer_class`", "BertJapanese"],
            ),
            (
                config(json!({"tokenizer_class": "OddTokenizer", "do_lower_case": false})),
                ["`do_lower_case`", "`tokenizer_config.json`"],
            ),
            (
                config(json!({"fast_tokenizer_files": ["tokenizer.4.0.json"]})),
                ["`fast_tokenizer_files`", "4.0"],
            ),
            (config(json!({"cls_token": "[GONE]"})), ["`cls_token`", "[GONE]"]),
            (config(json!({"split_special_tokens": "yes"})), ["`split_special_tokens`", "yes"]),
        ] {
            let refusal = load("tiny-bert", &change).unwrap_err();
            assert!(parts.iter().all(|part| refusal.contains(part)), "{change}: {refusal}");
        }
    }
}
