//! Unusual texts, read once at the start: what makes the tokenizer panic, hang or grow must not meet a client first.

use std::collections::BTreeSet;
use std::sync::mpsc::Sender;

use serde_json::Value;

use super::TruncationDirection;
use super::encoder::Encoder;

/// Characters that tokenizers treat in ways of their own.
const CHARACTERS: [&str; 32] = [
    "a",
    "Z",
    "0",
    " ",
    "\n",
    "\t",
    "\0",
    "\u{7f}",
    "\u{a0}",
    "\u{ad}",
    "\u{a3}",
    "\u{df}",
    "\u{130}",
    "\u{301}",
    "e\u{301}",
    "\u{200b}",
    "\u{200c}",
    "\u{200d}",
    "\u{2028}",
    "\u{2581}",
    "\u{3000}",
    "\u{4e2d}",
    "\u{ac00}",
    "\u{1f600}",
    "\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467}",
    "\u{fb01}",
    "\u{fdfa}",
    "\u{feff}",
    "\u{fffd}",
    "\u{10ffff}",
    "\u{627}\u{644}",
    "\u{e01}\u{e33}",
];
/// A run of one character is as long as this.
const RUN_BYTES: usize = 512;
/// One code point is checked out of this many.
const CODE_POINT_STEP: usize = 61;
/// Code points in one text.
const CODE_POINTS_PER_TEXT: usize = 256;
/// Characters that stand in the patterns of the file, at most.
const MOST_PATTERN_CHARACTERS: usize = 128;
/// Added tokens that are put side by side in pairs, and in one text each, at most.
const MOST_PAIRED_TOKENS: usize = 24;
const MOST_ADDED_TOKENS: usize = 2048;
/// Tokens per byte of a text are at most this; no tokenizer has more than three.
const MOST_TOKENS_PER_BYTE: usize = 64;

/// The texts, those that the file itself suggests among them.
pub(super) fn texts(pre_tokenizer: &Value, normalizer: &Value, added_tokens: &[String]) -> Vec<String> {
    let mut texts: Vec<String> = Vec::new();
    let mut runs: BTreeSet<String> = CHARACTERS.iter().map(|&text| text.to_owned()).collect();
    runs.extend(["ab".to_owned(), "a ".to_owned(), "1 ".to_owned(), "! ".to_owned(), " \n".to_owned()]);
    runs.extend(pattern_characters([pre_tokenizer, normalizer]));
    for run in runs {
        texts.push(run.clone());
        texts.push(format!("{}!", run.repeat(RUN_BYTES / run.len())));
    }
    texts.push(CHARACTERS.concat());
    texts.push(CHARACTERS.join(" "));
    let ascii: String = (' '..='~').collect();
    texts.push(ascii.chars().flat_map(|c| [c, ' ', c, c]).collect());
    texts.push(ascii);
    let code_points: Vec<char> = ('\0'..=char::MAX).step_by(CODE_POINT_STEP).collect();
    texts.extend(code_points.chunks(CODE_POINTS_PER_TEXT).map(|chunk| chunk.iter().collect()));
    for token in added_tokens.iter().take(MOST_ADDED_TOKENS) {
        texts.push(format!("a{token} {token}  {token}{token}b\u{a3}"));
    }
    for (first, second) in pairs(added_tokens) {
        texts.push(format!("{first}{second} {first}  {second}\n{first}"));
    }
    texts
}

/// Reads the texts from either end, and after a prompt. The error is one line for a person.
pub(super) fn read(encoder: &Encoder, texts: &[String], step_done: &Sender<()>) -> Result<(), String> {
    for text in texts {
        for (prompt, direction) in [
            ("", TruncationDirection::Right),
            ("", TruncationDirection::Left),
            ("a ", TruncationDirection::Left),
        ] {
            // A text that has no tokens is its sender's concern.
            if let Ok(tokens) = encoder.tokenize(prompt, text, direction)
                && tokens.text_tokens
                    > (prompt.len() + text.len() + encoder.special.len() + 1) * MOST_TOKENS_PER_BYTE
            {
                return Err(format!(
                    "`tokenizer.json` makes {} tokens of {} bytes",
                    tokens.text_tokens,
                    text.len()
                ));
            }
        }
        let _ = step_done.send(());
    }
    Ok(())
}

fn pairs(tokens: &[String]) -> impl Iterator<Item = (&String, &String)> {
    let few = &tokens[..tokens.len().min(MOST_PAIRED_TOKENS)];
    few.iter().flat_map(move |first| few.iter().map(move |second| (first, second)))
}

/// Every character that stands in a pattern, and the patterns that are plain text.
fn pattern_characters(parts: [&Value; 2]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut values = parts.to_vec();
    while let Some(value) = values.pop() {
        match value {
            Value::Array(list) => values.extend(list),
            Value::Object(map) => values
                .extend(map.iter().filter(|(key, _)| *key != "precompiled_charsmap").map(|(_, value)| value)),
            Value::String(text) if !text.is_empty() && text.len() <= RUN_BYTES => {
                found.insert(text.clone());
                found.extend(text.chars().map(String::from));
            }
            _ => {}
        }
    }
    found.into_iter().take(MOST_PATTERN_CHARACTERS).collect()
}
