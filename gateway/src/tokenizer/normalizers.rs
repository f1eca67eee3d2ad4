//! What a normalizer of `tokenizer.json` may do: the library does not look.

use serde_json::Value;
use tokenizers::utils::SysRegex;

/// Most bytes that a normalizer puts into a text at one place.
const LONGEST_INSERTION: usize = 64;
/// Most bytes that one byte of a text may become when all replacements are taken together.
const MOST_GROWTH: usize = 1024;

/// Refuses what makes the library panic, or take memory without end. The error is one line for a person.
pub(super) fn check(normalizer: &Value) -> Result<(), String> {
    let mut growth = 1_usize;
    for part in parts(normalizer) {
        match part["type"].as_str() {
            Some("Replace") => growth = growth.saturating_mul(check_replace(part)?),
            Some("Prepend") => {
                check_insertion("Prepend", &part["prepend"])?;
            }
            Some("Precompiled") => check_charsmap(&part["precompiled_charsmap"])?,
            _ => {}
        }
    }
    if growth > MOST_GROWTH {
        return Err(format!(
            "the `Replace` normalizers of `tokenizer.json` can make {growth} bytes of one, at most {MOST_GROWTH} are allowed"
        ));
    }
    Ok(())
}

/// A normalizer, or those of a sequence, in their order.
pub(super) fn parts(normalizer: &Value) -> Vec<&Value> {
    match normalizer["normalizers"].as_array() {
        Some(sequence) => sequence.iter().flat_map(parts).collect(),
        None if normalizer.is_null() => Vec::new(),
        None => vec![normalizer],
    }
}

/// Returns how many bytes it makes of one, at most.
fn check_replace(replace: &Value) -> Result<usize, String> {
    let inserted = check_insertion("Replace", &replace["content"])?;
    let pattern = &replace["pattern"];
    if let Some(text) = pattern["String"].as_str() {
        if text.is_empty() {
            return Err("a `Replace` normalizer of `tokenizer.json` has the empty `pattern`".to_owned());
        }
        return Ok(inserted.div_ceil(text.len()).max(1));
    }
    if let Some(regex) = pattern["Regex"].as_str()
        && matches_nothing(regex)?
    {
        return Err(format!(
            "a `Replace` normalizer of `tokenizer.json` has a `pattern` that matches between two characters: {regex:?}"
        ));
    }
    Ok(inserted.max(1))
}

fn check_insertion(kind: &str, content: &Value) -> Result<usize, String> {
    let bytes = content.as_str().map_or(0, str::len);
    if bytes > LONGEST_INSERTION {
        return Err(format!(
            "a `{kind}` normalizer of `tokenizer.json` puts {bytes} bytes into a text, at most {LONGEST_INSERTION} are allowed"
        ));
    }
    Ok(bytes)
}

/// Whether it has a match without characters in one of a few texts, its own characters among them.
fn matches_nothing(pattern: &str) -> Result<bool, String> {
    let regex = SysRegex::new(pattern).map_err(|error| {
        format!("a `Replace` normalizer of `tokenizer.json` has a bad `pattern`: {error}")
    })?;
    let printable: String = (' '..='~').collect();
    let spaced: String = printable.chars().flat_map(|c| [c, ' ', c, c]).collect();
    let texts = ["", "a", " ", "a b", "\n", "1", "\u{e9}\u{4e2d} \u{1f600}", pattern, &printable, &spaced];
    Ok(texts.iter().any(|text| regex.find_iter(text).any(|(start, end)| start == end)))
}

/// Walks through the trie as the library does, along every path that it has.
fn check_charsmap(charsmap: &Value) -> Result<(), String> {
    let refusal = |reason: &str| {
        format!("the `precompiled_charsmap` of the `Precompiled` normalizer in `tokenizer.json` {reason}")
    };
    let bytes = match charsmap.as_str() {
        Some(text) => decode_base64(text).ok_or_else(|| refusal("is not base64"))?,
        None => return Err(refusal(&format!("is {}, not a string", kind_of(charsmap)))),
    };
    let (trie, replacements) = divide(&bytes).ok_or_else(|| refusal("is cut off"))?;
    let replacements = std::str::from_utf8(replacements).map_err(|_error| refusal("is not UTF-8"))?;
    if trie.is_empty() {
        return Err(refusal("is empty"));
    }
    if replacements.split('\0').any(|text| text.len() > LONGEST_INSERTION) {
        return Err(refusal(&format!("has a replacement of more than {LONGEST_INSERTION} bytes")));
    }
    if trie_is_closed(&trie, replacements) { Ok(()) } else { Err(refusal("points outside of itself")) }
}

/// Whether every step from every node that can be reached leads to one, and every value to a replacement.
fn trie_is_closed(trie: &[usize], replacements: &str) -> bool {
    let mut seen = vec![false; trie.len()];
    let mut nodes = vec![offset(trie[0])];
    while let Some(node) = nodes.pop() {
        for byte in 1..=0xff_usize {
            let Some(unit) = trie.get(node ^ byte) else { return false };
            if unit & ((1 << 31) | 0xff) != byte || std::mem::replace(&mut seen[node ^ byte], true) {
                continue;
            }
            let next = node ^ byte ^ offset(*unit);
            if (unit >> 8) & 1 == 1 {
                let Some(leaf) = trie.get(next) else { return false };
                if !replacements.is_char_boundary(leaf & ((1 << 31) - 1)) {
                    return false;
                }
            }
            nodes.push(next);
        }
    }
    true
}

fn offset(unit: usize) -> usize {
    (unit >> 10) << ((unit & (1 << 9)) >> 6)
}

/// The trie, in front of which stands its length in bytes, and the texts behind it.
fn divide(bytes: &[u8]) -> Option<(Vec<usize>, &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()? / 4 * 4;
    let (trie, replacements) = rest.split_at_checked(length)?;
    let units = trie.chunks_exact(4).map(|unit| u32::from_le_bytes([unit[0], unit[1], unit[2], unit[3]]));
    Some((units.map(|unit| unit as usize).collect(), replacements))
}

/// The standard alphabet, padded.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3 + 3);
    let (mut bits, mut count) = (0_u32, 0);
    for digit in digits.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from((bits >> count) & 0xff).ok()?);
        }
    }
    text.len().is_multiple_of(4).then_some(bytes)
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
