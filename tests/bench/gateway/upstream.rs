//! The server behind both doors: answers at once, or streams an event every 20 ms.

use std::convert::Infallible;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::IntervalStream;

/// Nanoseconds since this process began: upstream and load share the clock.
pub(crate) fn now() -> u128 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos()
}

/// Listens on a Unix socket for as long as the process lives.
pub(crate) fn serve(socket: &Path) {
    let listener = tokio::net::UnixListener::bind(socket).expect("the socket is ours");
    let routes = Router::new()
        .route("/health", get(|| async { "ok" }))
        .route("/verify", get(|| async { StatusCode::NO_CONTENT }))
        .route("/v1/chat/completions", post(answer));
    tokio::spawn(async move { axum::serve(listener, routes).await });
}

async fn answer(body: Bytes) -> Response {
    if !body.windows(14).any(|w| w == b"\"stream\": true") {
        let text = r#"{"id":"x","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"Hello."},"finish_reason":"stop"}]}"#;
        return ([("content-type", "application/json")], text).into_response();
    }
    let events = IntervalStream::new(tokio::time::interval(Duration::from_millis(20)))
        .map(|_| Ok::<_, Infallible>(Bytes::from(format!("data: {}\n\n", now()))));
    ([("content-type", "text/event-stream")], Body::from_stream(events)).into_response()
}
