//! Text that others wrote, for people to read: with nothing in it that a terminal would obey. A leaf.
//!
//! Model files, hubs, workers and command lines can hold escape sequences, which move the cursor, set a window's title or
//! worse, and signs that turn the direction of writing around, so that a text reads as another one.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io;

/// Whether a terminal takes it for a command (C0, DEL, C1), or it changes the order of what stands around it.
fn is_hazardous(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

fn escape(text: &str, is_kept: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.chars().any(|character| is_hazardous(character) && !is_kept(character)) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_hazardous(character) && !is_kept(character) {
            escaped.extend(character.escape_default());
        } else {
            escaped.push(character);
        }
    }
    Cow::Owned(escaped)
}

/// One line: line breaks are written as `\n`, too.
#[must_use]
pub fn line(text: &str) -> Cow<'_, str> {
    escape(text, |_| false)
}

/// Text with lines of its own.
#[must_use]
pub fn lines(text: &str) -> Cow<'_, str> {
    escape(text, |character| character == '\n')
}

/// JSON, which stays the same JSON: hazardous characters can only be in its strings, and C0 is escaped there already.
#[must_use]
pub fn json(text: &str) -> Cow<'_, str> {
    let is_escaped = |character: char| is_hazardous(character) && character >= ' ';
    if !text.chars().any(is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_escaped(character) {
            // A `String` takes everything; none of these characters needs two units of UTF-16.
            let _ = write!(escaped, "\\u{:04x}", u32::from(character));
        } else {
            escaped.push(character);
        }
    }
    Cow::Owned(escaped)
}

/// A writer of whole pieces of text, each of which goes through one of the functions above.
#[derive(Debug)]
pub struct Printing<W> {
    writer: W,
    escape: fn(&str) -> Cow<'_, str>,
}

impl<W: io::Write> Printing<W> {
    /// Writes to `writer` what `escape` makes of every piece.
    pub fn new(writer: W, escape: fn(&str) -> Cow<'_, str>) -> Self {
        Self { writer, escape }
    }
}

impl<W: io::Write> io::Write for Printing<W> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(piece);
        self.writer.write_all((self.escape)(&text).as_bytes())?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_that_a_terminal_obeys() {
        let hostile = "a\u{1b}[31mb\r\u{7}\u{8}\0\u{7f}\u{9b}2J\u{85}\u{202e}\u{2066}\u{2028}\u{200f}\tz";
        for escaped in [line(hostile), lines(hostile)] {
            assert!(!escaped.chars().any(is_hazardous), "{escaped:?}");
            assert!(escaped.starts_with("a\\u{1b}[31mb\\r\\u{7}\\u{8}\\u{0}\\u{7f}\\u{9b}2J"), "{escaped}");
        }
        assert_eq!(line("one\ntwo"), "one\\ntwo");
        assert_eq!(lines("one\ntwo\r\n"), "one\ntwo\\r\n");
    }

    #[test]
    fn what_people_write_stays_as_it_is() {
        for text in ["modèle 中文 עברית 🙂 e\u{301} \u{200d}", "C:\\path\\to `x` \"y\""] {
            assert!(matches!(line(text), Cow::Borrowed(same) if same == text));
            assert!(matches!(json(text), Cow::Borrowed(same) if same == text));
        }
    }

    #[test]
    fn json_means_what_it_meant() {
        let hostile: String = (0..0x3000).filter_map(char::from_u32).collect();
        let text = serde_json::to_string(&hostile).unwrap();
        let escaped = json(&text);
        assert!(!escaped.chars().any(is_hazardous));
        assert_eq!(serde_json::from_str::<String>(&escaped).unwrap(), hostile);
    }

    #[test]
    fn a_writer_escapes_every_piece() {
        let mut written = Vec::new();
        io::Write::write_all(&mut Printing::new(&mut written, lines), b"a\x1b\xff\n").unwrap();
        assert_eq!(written, "a\\u{1b}\u{fffd}\n".as_bytes());
    }
}
