//! What the head of a request says beside its path: the request's id, its time limit, and how long its body is.

use std::time::Duration;

use hyper::HeaderMap;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderValue};

use super::respond::RequestError;
use crate::error::shorten;

/// Carries a request's id, in requests and in answers.
pub(super) const REQUEST_ID: &str = "x-request-id";
/// Carries the time a client gives a request.
const REQUEST_TIMEOUT: &str = "x-request-timeout-ms";
/// Character sets that are UTF-8, or a part of it.
const UTF_8_NAMES: [&str; 4] = ["utf-8", "utf8", "us-ascii", "ascii"];
/// Longest id that is taken over from a client.
const LONGEST_ID: usize = 128;
/// Longest header name that is looked for, colon included.
const LONGEST_NAME: usize = "transfer-encoding:".len();

/// Names one request in its answer and in the log.
#[derive(Debug)]
pub(super) struct RequestId(String);

impl RequestId {
    /// The client's own id, when it is 1 to 128 characters of `[A-Za-z0-9._:-]`; else a new one.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
        let is_plain = |character: char| character.is_ascii_alphanumeric() || "._:-".contains(character);
        match given {
            Some(id) if (1..=LONGEST_ID).contains(&id.len()) && id.chars().all(is_plain) => {
                Self(id.to_owned())
            }
            _ => Self(format!("{:016x}", fastrand::u64(..))),
        }
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// The time that the client gives its request, if it says so.
pub(super) fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, RequestError> {
    let mut values = headers.get_all(REQUEST_TIMEOUT).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let milliseconds = value.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    match milliseconds.and_then(|text| text.parse::<u64>().ok()) {
        Some(milliseconds) if milliseconds > 0 && values.next().is_none() => {
            Ok(Some(Duration::from_millis(milliseconds)))
        }
        _ => Err(RequestError::InvalidHeader {
            name: REQUEST_TIMEOUT,
            value: shorten(&String::from_utf8_lossy(value.as_bytes())),
            wanted: "one whole number of milliseconds, at least 1",
        }),
    }
}

/// Refuses a body that is compressed, or in a character set that is not UTF-8: JSON is sent in no other.
pub(super) fn check_encoding(headers: &HeaderMap) -> Result<(), RequestError> {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let codings: Vec<String> = headers.get_all(CONTENT_ENCODING).iter().map(text).collect();
    let codings = codings.iter().flat_map(|codings| codings.split(',')).map(str::trim);
    let mut foreign = codings.filter(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case("identity"));
    let types: Vec<String> = headers.get_all(CONTENT_TYPE).iter().map(text).collect();
    let parameters =
        types.iter().flat_map(|kind| kind.split(';').skip(1)).filter_map(|part| part.split_once('='));
    let mut charsets = parameters
        .filter(|(name, _)| name.trim().eq_ignore_ascii_case("charset"))
        .map(|(_, value)| value.trim().trim_matches('"'));
    let is_foreign = |charset: &&str| !UTF_8_NAMES.iter().any(|name| charset.eq_ignore_ascii_case(name));
    match foreign.next().or_else(|| charsets.find(is_foreign)) {
        Some(encoding) => Err(RequestError::UnsupportedEncoding { encoding: shorten(encoding) }),
        None => Ok(()),
    }
}

/// Looks for the two headers that say how long a body is, in the bytes of a head as they arrive.
///
/// Hyper drops a `Content-Length` beside a `Transfer-Encoding`, so that a handler cannot see that there were both: what a
/// proxy in front may have understood otherwise.
#[derive(Debug, Default)]
pub(super) struct LengthScan {
    /// The beginning of the current line.
    line: [u8; LONGEST_NAME],
    filled: usize,
    /// Whether a line with something in it was seen; empty ones may stand before a request.
    has_begun: bool,
    has_ended: bool,
    has_length: bool,
    has_encoding: bool,
}

impl LengthScan {
    /// Takes the next bytes; those behind the head are left alone.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if self.has_ended {
                return;
            }
            if *byte == b'\n' {
                self.end_line();
            } else if self.filled < LONGEST_NAME {
                self.line[self.filled] = byte.to_ascii_lowercase();
                self.filled += 1;
            }
        }
    }

    fn end_line(&mut self) {
        let line = &self.line[..self.filled];
        if matches!(line, b"" | b"\r") {
            self.has_ended = self.has_begun;
        } else {
            self.has_begun = true;
            self.has_length |= line.starts_with(b"content-length:");
            self.has_encoding |= line.starts_with(b"transfer-encoding:");
        }
        self.filled = 0;
    }

    /// Whether the head had both.
    pub(super) fn found_both(&self) -> bool {
        self.has_length && self.has_encoding
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &[u8]) -> HeaderMap {
        HeaderMap::from_iter([(name.parse().unwrap(), HeaderValue::from_bytes(value).unwrap())])
    }

    #[test]
    fn a_plain_id_is_taken_over_and_any_other_is_replaced() {
        let longest = "a".repeat(128);
        for id in ["a", "trace-1.2_3:4", &longest] {
            assert_eq!(RequestId::of(&headers(REQUEST_ID, id.as_bytes())).as_str(), id);
        }
        let too_long = "a".repeat(129);
        for id in ["", "two words", "\"quoted\"", "a,b", "a/b", "\u{e9}", &too_long] {
            let made = RequestId::of(&headers(REQUEST_ID, id.as_bytes()));
            assert_eq!(made.as_str().len(), 16, "{id}");
        }
        assert_eq!(RequestId::of(&HeaderMap::new()).as_str().len(), 16);
    }

    #[test]
    fn a_time_limit_is_a_whole_number_of_milliseconds() {
        assert_eq!(timeout(&HeaderMap::new()).unwrap(), None);
        let of = |value: &str| timeout(&headers(REQUEST_TIMEOUT, value.as_bytes()));
        assert_eq!(of("1500").unwrap(), Some(Duration::from_millis(1500)));
        let huge = "9".repeat(1000);
        for value in ["0", "-1", "+1", "1.5", "1s", "", "soon", "\u{e9}", &huge] {
            let message = of(value).unwrap_err().to_string();
            assert!(message.contains(REQUEST_TIMEOUT) && message.len() < 500, "{message}");
        }
        let mut two = headers(REQUEST_TIMEOUT, b"5");
        two.append(REQUEST_TIMEOUT, HeaderValue::from_static("6"));
        assert!(timeout(&two).is_err());
    }

    #[test]
    fn a_body_is_neither_compressed_nor_in_another_character_set() {
        for (name, value, refused) in [
            ("content-encoding", "", None),
            ("content-encoding", "identity", None),
            ("content-encoding", "Identity, identity", None),
            ("content-encoding", "gzip", Some("gzip")),
            ("content-encoding", "GZIP", Some("GZIP")),
            ("content-encoding", "identity, br", Some("br")),
            ("content-encoding", "deflate,", Some("deflate")),
            ("content-encoding", "zstd", Some("zstd")),
            ("content-encoding", "x-gzip", Some("x-gzip")),
            ("content-encoding", "aws-chunked", Some("aws-chunked")),
            ("content-type", "application/json", None),
            ("content-type", "application/x-www-form-urlencoded", None),
            ("content-type", "application/json; charset=UTF-8", None),
            ("content-type", "application/json;charset=\"utf-8\"", None),
            ("content-type", "text/plain; Charset = us-ascii", None),
            ("content-type", "multipart/form-data; boundary=x", None),
            ("content-type", "application/json; charset=utf-16", Some("utf-16")),
            ("content-type", "application/json; boundary=x; CHARSET=\"Shift_JIS\"", Some("Shift_JIS")),
            ("content-type", "application/json; charset=utf-7", Some("utf-7")),
            ("content-type", "application/json; charset=koi8-r", Some("koi8-r")),
        ] {
            let outcome = check_encoding(&headers(name, value.as_bytes()));
            let named = match outcome {
                Ok(()) => None,
                Err(RequestError::UnsupportedEncoding { encoding }) => Some(encoding),
                Err(error) => panic!("{error}"),
            };
            assert_eq!(named.as_deref(), refused, "{name}: {value}");
        }
        let mut two = headers("content-encoding", b"identity");
        two.append(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        assert!(check_encoding(&two).is_err());
    }

    fn found_both(head: &str) -> bool {
        let mut scans = [LengthScan::default(), LengthScan::default()];
        scans[0].feed(head.as_bytes());
        head.as_bytes().chunks(1).for_each(|byte| scans[1].feed(byte));
        assert_eq!(scans[0].found_both(), scans[1].found_both(), "{head:?}");
        scans[0].found_both()
    }

    #[test]
    fn two_statements_of_length_are_found_in_any_order_and_case() {
        for head in [
            "POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "\r\n\r\nPOST / HTTP/1.1\r\nTRANSFER-ENCODING:chunked\r\nx: y\r\ncontent-length:1\r\n\r\n",
            "POST / HTTP/1.1\ncontent-length: 1\ntransfer-encoding: chunked\n\n",
        ] {
            assert!(found_both(head), "{head:?}");
        }
    }

    #[test]
    fn one_statement_or_a_second_one_in_a_body_or_a_value_is_not_two() {
        for head in [
            "POST / HTTP/1.1\r\ncontent-length: 1\r\n\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\ncontent-length: 1\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\nx: content-length: 1\r\nx-content-length: 1\r\n\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-lengths: 1\r\n\r\n",
        ] {
            assert!(!found_both(head), "{head:?}");
        }
    }
}
