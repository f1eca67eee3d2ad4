//! Responses: JSON, other content, and errors.

use std::time::Duration;

use hyper::header::{ACCEPT_ENCODING, ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use serde::Serialize;

use super::content::Content;
use super::dialects::Dialect;
use super::error::Refusal;
use super::request_id::RequestId;

/// Content type of every JSON response.
pub(super) const JSON: &str = "application/json";

/// The response to a request that failed.
pub(super) fn error(dialect: &dyn Dialect, refusal: &Refusal, id: &RequestId) -> Response<Content> {
    let Refusal { status, code, .. } = *refusal;
    tracing::info!(request_id = id.as_str(), code, status = status.as_u16(), "request refused");
    let body = dialect.refuse(refusal, id.as_str());
    let mut response = content(status, JSON, Content::Whole(body.into()));
    let headers = response.headers_mut();
    if let Some(wait) = refusal.retry_after {
        headers.insert(RETRY_AFTER, retry_after(wait).into());
    }
    for (name, value) in [(ACCEPT_ENCODING, refusal.accept_encoding), (ALLOW, refusal.allow)] {
        if let Some(value) = value {
            headers.insert(name, HeaderValue::from_static(value));
        }
    }
    response
}

/// Whole seconds to wait, at least one, and up to half as many more: clients refused together must not come back together.
fn retry_after(wait: Duration) -> u64 {
    let seconds = (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1);
    seconds + fastrand::u64(0..=seconds.div_ceil(2))
}

/// A JSON response.
pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Response<Content> {
    let bytes = serde_json::to_vec(body).expect("our own responses are valid JSON: this is a bug");
    content(status, JSON, Content::Whole(bytes.into()))
}

/// A response of any type.
pub(super) fn content(status: StatusCode, content_type: &'static str, content: Content) -> Response<Content> {
    let mut response = Response::new(content);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_to_wait_is_in_whole_seconds_at_least_one_and_spread() {
        for (wait, least, most) in [(0, 1, 2), (1000, 1, 2), (1001, 2, 3), (9500, 10, 15)] {
            let waits: Vec<u64> = (0..200).map(|_| retry_after(Duration::from_millis(wait))).collect();
            assert_eq!((waits.iter().min(), waits.iter().max()), (Some(&least), Some(&most)), "{wait} ms");
        }
    }
}
