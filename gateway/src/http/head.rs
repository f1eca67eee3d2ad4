//! What the head of a request says apart from its path: its time limit, and how its body is encoded.

use std::time::Duration;

use hyper::HeaderMap;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderValue};

use super::error::RequestError;
use crate::error::shorten;

/// Carries the time a client gives a request.
const REQUEST_TIMEOUT: &str = "x-request-timeout-ms";
/// Character sets that are UTF-8, or a part of it.
const UTF_8_NAMES: [&str; 4] = ["utf-8", "utf8", "us-ascii", "ascii"];

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

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &[u8]) -> HeaderMap {
        HeaderMap::from_iter([(name.parse().unwrap(), HeaderValue::from_bytes(value).unwrap())])
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
}
