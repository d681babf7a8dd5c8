//! What answers have in common: why a text ended, streams of events, and what is refused.

use std::convert::Infallible;
use std::time::Duration;

use axum::http::HeaderValue;
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use elapid::core::generate::End;
use futures_util::{Stream, StreamExt};

use crate::error::ApiError;

/// The time between comments while nothing else is sent: clients and proxies close connections that are silent.
const ALIVE: Duration = Duration::from_secs(5);

/// Whether a text was cut off: by a limit of tokens, or because the server stops.
pub(crate) fn is_cut_off(end: End) -> bool {
    matches!(end, End::Length | End::Interrupted)
}

/// Why a text ended, as OpenAI and Ollama name it.
pub(crate) fn reason(end: End) -> &'static str {
    if is_cut_off(end) { "length" } else { "stop" }
}

/// The answer where clients ask for embeddings.
pub(crate) async fn no_embeddings() -> ApiError {
    ApiError::bad("this server generates text: it has no embeddings").code("unsupported")
}

/// A response that streams server-sent events, with comments while there are none.
pub(crate) fn events(events: impl Stream<Item = Sent> + Send + 'static) -> Response {
    let stream = events.map(Ok::<_, Infallible>);
    let mut response =
        Sse::new(stream).keep_alive(KeepAlive::new().interval(ALIVE).text("working")).into_response();
    let headers = response.headers_mut();
    // Proxies must not collect the events.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}
