//! The id of a request, which names it in its response and in the log.

use hyper::header::HeaderValue;
use hyper::{HeaderMap, Response};

/// Carries a request's id, in requests and in responses.
const REQUEST_ID: &str = "x-request-id";
/// Longest id that is taken over from a client.
const LONGEST_ID: usize = 128;

/// Names one request in its response and in the log.
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

    /// Writes it into the head of a response.
    pub(super) fn write<B>(&self, response: &mut Response<B>) {
        if let Ok(value) = HeaderValue::from_str(self.as_str()) {
            response.headers_mut().insert(REQUEST_ID, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_id(value: &[u8]) -> HeaderMap {
        HeaderMap::from_iter([(REQUEST_ID.parse().unwrap(), HeaderValue::from_bytes(value).unwrap())])
    }

    #[test]
    fn a_plain_id_is_taken_over_and_any_other_is_replaced() {
        let longest = "a".repeat(128);
        for id in ["a", "trace-1.2_3:4", &longest] {
            assert_eq!(RequestId::of(&with_id(id.as_bytes())).as_str(), id);
        }
        let too_long = "a".repeat(129);
        for id in ["", "two words", "\"quoted\"", "a,b", "a/b", "\u{e9}", &too_long] {
            let made = RequestId::of(&with_id(id.as_bytes()));
            assert_eq!(made.as_str().len(), 16, "{id}");
        }
        assert_eq!(RequestId::of(&HeaderMap::new()).as_str().len(), 16);
    }
}
