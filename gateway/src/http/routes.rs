//! Which path is whose, and the way of a request from its head to its response.

use hyper::body::Incoming;
use hyper::header::{CONNECTION, HOST, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, Version};
use tracing::Instrument;

use super::body::RequestBody;
use super::connection::Progress;
use super::content::Content;
use super::context::Context;
use super::dialects::Dialect;
use super::dialects::native::Native;
use super::error::{Refusal, RequestError};
use super::request_id::RequestId;
use super::{exchange, operations, respond};

/// Who answers at a path.
#[derive(Debug, Clone, Copy)]
enum Handler {
    /// Embeddings, in a dialect. `POST` only.
    Embed(&'static dyn Dialect),
    /// The others: `GET` and `HEAD`.
    Health,
    Livez,
    Readyz,
    Metrics,
}

/// Every path.
const ROUTES: [(&str, Handler); 5] = [
    ("/api/v1/embed", Handler::Embed(&Native)),
    ("/health", Handler::Health),
    ("/livez", Handler::Livez),
    ("/readyz", Handler::Readyz),
    ("/metrics", Handler::Metrics),
];

/// The dialect of errors where the path has none.
const DEFAULT_DIALECT: &dyn Dialect = &Native;

impl Handler {
    fn at(path: &str) -> Option<Self> {
        ROUTES.iter().find(|(known, _)| *known == path).map(|(_, handler)| *handler)
    }

    fn dialect(self) -> &'static dyn Dialect {
        match self {
            Self::Embed(dialect) => dialect,
            _ => DEFAULT_DIALECT,
        }
    }

    fn check_method(self, method: &Method) -> Result<(), RequestError> {
        let (is_accepted, allowed) = match self {
            Self::Embed(_) => (*method == Method::POST, "POST"),
            _ => (*method == Method::GET || *method == Method::HEAD, "GET"),
        };
        if is_accepted { Ok(()) } else { Err(RequestError::MethodNotAllowed { allowed }) }
    }
}

/// Answers one request; also says whether all of it was read.
pub(super) async fn answer(
    request: Request<Incoming>,
    states_two_lengths: bool,
    progress: Progress,
    context: &Context,
) -> (Response<Content>, bool) {
    let (head, body) = request.into_parts();
    let id = RequestId::of(&head.headers);
    let span = tracing::info_span!("request", request_id = id.as_str());
    let answer = async {
        let mut body = RequestBody::new(body, progress);
        let handler = Handler::at(head.uri.path());
        let result = match check(&head, states_two_lengths, context) {
            Ok(()) => handle(handler, &head, &mut body, context).await,
            Err(error) => Err(error),
        };
        let mut response = result.unwrap_or_else(|error| {
            let refusal = Refusal::from(&error);
            context.metrics.request_rejected(refusal.code);
            let dialect = handler.map_or(DEFAULT_DIALECT, Handler::dialect);
            respond::error(dialect, &refusal, &id)
        });
        id.write(&mut response);
        if context.manager.is_draining() || !body.is_read() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        (response, body.is_read())
    };
    answer.instrument(span).await
}

/// Refuses what is refused at every path.
fn check(head: &Parts, states_two_lengths: bool, context: &Context) -> Result<(), RequestError> {
    if head.version == Version::HTTP_11 && head.headers.get_all(HOST).iter().count() != 1 {
        return Err(RequestError::InvalidHttp("it must have exactly one Host header"));
    }
    if states_two_lengths {
        return Err(RequestError::InvalidHttp("it has both Content-Length and Transfer-Encoding"));
    }
    context.gatekeeper.check(head)
}

async fn handle(
    handler: Option<Handler>,
    head: &Parts,
    body: &mut RequestBody,
    context: &Context,
) -> Result<Response<Content>, RequestError> {
    let handler = handler.ok_or(RequestError::NotFound)?;
    handler.check_method(&head.method)?;
    match handler {
        Handler::Embed(dialect) => exchange::embed(dialect, &head.headers, body, context).await,
        Handler::Health => Ok(operations::health(&context.manager)),
        Handler::Livez => Ok(operations::live()),
        Handler::Readyz => Ok(operations::ready(&context.manager)),
        Handler::Metrics => Ok(operations::metrics(&context.manager, &head.headers)),
    }
}
