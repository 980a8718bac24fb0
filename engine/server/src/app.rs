//! What the engine answers to, and with what.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use polder_chat::reply::Dialect;
use polder_chat::{ChatTemplate, Tokenizer};
use polder_grammar::Grammars;
use polder_scheduler::{Claim, MemberId, Stats, Weight};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::handle::Handle;
use crate::metrics::Metrics;
use crate::wire::answer;
use crate::wire::error::{ApiError, shortened};
use crate::wire::tokens::{parse_detokenize, parse_tokenize};
use crate::{beginnings, chat, completions, embeddings, messages, responses};

/// Largest request body.
const MAX_BODY: usize = 32 << 20;

/// A loaded model, ready to answer.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) handle: Handle,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) grammars: Grammars,
    /// The chat template, or why there is none.
    pub(crate) template: Result<ChatTemplate, String>,
    /// How the model calls tools and marks its thoughts.
    pub(crate) dialect: Dialect,
    pub(crate) vocab: u32,
    /// Most answers that one request may ask for.
    pub(crate) most_sequences: usize,
    /// What was kept on disk before may still be there.
    pub(crate) left_behind: bool,
    /// One sentence, where it runs less well than this machine could.
    pub(crate) note: Option<String>,
}

/// Everything that a handler may touch.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) served_as: String,
    pub(crate) started: u64,
    pub(crate) engine: OnceLock<Arc<Engine>>,
    /// Thousandths of the loading that are done.
    pub(crate) progress: AtomicU32,
    pub(crate) stopping: AtomicBool,
    /// The instructions that are common to all members.
    pub(crate) common: Mutex<Vec<String>>,
    pub(crate) metrics: Arc<Metrics>,
    /// Requests that are read at the same time.
    pub(crate) readers: Arc<Semaphore>,
}

/// How many requests are read at the same time.
pub(crate) const READERS: usize = 4;
/// A larger body is read alone.
const LARGE: usize = 1 << 20;

impl App {
    /// The engine, or the answer to give until there is one.
    pub(crate) fn engine(&self) -> Result<&Arc<Engine>, ApiError> {
        self.engine.get().ok_or_else(|| {
            ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                format!(
                    "The model \"{}\" is still loading; try again in a few seconds.",
                    self.served_as
                ),
            )
            .code("model_loading")
            .retry_after(2)
        })
    }

    /// Refuses a model that is not served here.
    pub(crate) fn check_model(&self, asked: &str) -> Result<(), ApiError> {
        if asked == self.served_as {
            return Ok(());
        }
        let mut error = ApiError::new(
            StatusCode::NOT_FOUND,
            format!(
                "The model \"{}\" is not served here; \"{}\" is.",
                shortened(asked),
                self.served_as
            ),
        );
        error.param = Some("model".into());
        Err(error.code("model_not_found"))
    }
}

/// All routes.
pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat::answer))
        .route("/v1/completions", post(completions::answer))
        .route("/v1/messages", post(messages::answer))
        .route("/v1/messages/count_tokens", post(messages::count))
        .route("/v1/embeddings", post(embeddings::answer))
        .route("/v1/responses", post(responses::answer))
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/beginnings", put(beginnings::set).get(beginnings::get))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/kv", delete(forget))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(axum::middleware::from_fn_with_state(app.clone(), count_refusals))
        .with_state(app)
}

/// What the gateway says about a request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Caller {
    pub(crate) member: MemberId,
    pub(crate) claim: Claim,
    pub(crate) strict: bool,
}

impl Caller {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let number = |name: &str| text(name)?.parse::<u16>().ok();
        Self {
            member: MemberId::new(text("x-polder-member").unwrap_or_default()),
            claim: Claim {
                weight: number("x-polder-weight").map_or(Weight::USUAL, Weight::percent),
                most_running: number("x-polder-most-running").unwrap_or(u16::MAX),
                priority: -i32::from(text("x-polder-background") == Some("1")),
                trusting: text("x-polder-trusting") == Some("1"),
            },
            strict: text("x-polder-strict") == Some("1"),
        }
    }
}

/// The whole body, if it is not too large.
pub(crate) async fn read_body(body: Body) -> Result<Bytes, ApiError> {
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("The body is larger than {} MiB; send less text.", MAX_BODY >> 20),
        )
        .code("body_too_large")),
        Err(_) => Err(ApiError::bad_request(
            "The body ended before it was complete; send the request again.",
        )),
    }
}

/// Reads a body away from the threads that serve everyone, a few at a time and a large one alone:
/// parsed JSON takes many times the room of its text.
pub(crate) async fn aside<T: Send + 'static>(
    app: &App,
    body: Bytes,
    work: impl FnOnce(&[u8]) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let turns = if body.len() > LARGE { READERS } else { 1 };
    let turn = app.readers.clone().acquire_many_owned(turns as u32).await.ok();
    // The turn ends with the work, not with the wait for it: a client that leaves frees nothing
    // early.
    let work = move || {
        let _turn = turn;
        work(&body)
    };
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| {
        Err(ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "The engine failed to read this request; tell the steward.",
        ))
    })
}

/// Names in the answer what had no effect.
pub(crate) fn name_ignored(app: &App, response: &mut Response, ignored: &[String]) {
    app.metrics.ignored_fields(ignored.len());
    if ignored.is_empty() {
        return;
    }
    let names: String = ignored
        .join(", ")
        .chars()
        .map(|character| if matches!(character, ' '..='~') { character } else { '?' })
        .collect();
    let value = HeaderValue::from_str(&names).expect("printable ASCII");
    response.headers_mut().insert(HeaderName::from_static("x-polder-ignored"), value);
}

async fn health(State(app): State<Arc<App>>) -> Response {
    let unavailable = StatusCode::SERVICE_UNAVAILABLE;
    if app.stopping.load(Ordering::Relaxed) {
        return (unavailable, axum::Json(json!({"status": "stopping"}))).into_response();
    }
    match app.engine.get() {
        Some(engine) => match engine.handle.hung() {
            None => {
                let mut body = json!({"status": "ok", "model": app.served_as});
                if let Some(note) = &engine.note {
                    body["note"] = note.as_str().into();
                }
                axum::Json(body).into_response()
            }
            Some(running) => hung(running),
        },
        None => {
            let progress = f64::from(app.progress.load(Ordering::Relaxed)) / 1000.0;
            let body = json!({"status": "loading", "progress": progress});
            (unavailable, axum::Json(body)).into_response()
        }
    }
}

/// Not a 503: that says "not yet", and whoever asks would wait. This one says "start me anew".
fn hung(running: Duration) -> Response {
    let message = format!(
        "A forward pass has been running for {} s, far longer than such passes take; the engine \
         hangs and must be started anew.",
        running.as_secs()
    );
    log::error!("{message}");
    let body = json!({"status": "hung", "message": message});
    (StatusCode::INTERNAL_SERVER_ERROR, axum::Json(body)).into_response()
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    let handle = app.engine.get().map(|engine| &engine.handle);
    let stats = handle.map_or_else(Stats::default, |handle| handle.stats());
    let kept = handle.and_then(|handle| handle.kept());
    let kind = HeaderValue::from_static("text/plain; version=0.0.4");
    ([(CONTENT_TYPE, kind)], app.metrics.text(&stats, kept.as_ref(), &app.served_as))
        .into_response()
}

/// "Forget me now": when this answers, nothing that was kept for the member can be read by anybody.
async fn forget(State(app): State<Arc<App>>, headers: HeaderMap) -> Result<StatusCode, ApiError> {
    let engine = app.engine()?.clone();
    let handle = engine.handle.clone();
    if !headers.contains_key("x-polder-member") {
        return Err(ApiError::bad_request(
            "This request names no member; say in x-polder-member who is to be forgotten.",
        ));
    }
    let member = Caller::of(&headers).member;
    match tokio::task::spawn_blocking(move || handle.forget(&member)).await {
        Ok(Ok(())) if engine.left_behind => Err(ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "What was kept on disk before cannot be opened or removed now; ask again when this engine has started anew.",
        )
        .retry_after(60)),
        Ok(Ok(())) => Ok(StatusCode::NO_CONTENT),
        failed => {
            let why = failed.map(|done| done.err());
            log::error!(why:? = why; "a member could not be forgotten");
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            Err(ApiError::new(
                status,
                "The key to what was kept could not be destroyed; check the disk and ask again.",
            ))
        }
    }
}

async fn models(State(app): State<Arc<App>>) -> Result<axum::Json<Value>, ApiError> {
    let context = app.engine()?.handle.capacity();
    let model = answer::model(&app.served_as, app.started, context);
    Ok(axum::Json(json!({"object": "list", "data": [model]})))
}

async fn model(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<axum::Json<Value>, ApiError> {
    let context = app.engine()?.handle.capacity();
    app.check_model(&id)?;
    Ok(axum::Json(answer::model(&app.served_as, app.started, context)))
}

async fn tokenize(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let engine = app.engine()?.clone();
    let strict = Caller::of(&headers).strict;
    let body = read_body(body).await?;
    let capacity = engine.handle.capacity();
    let (tokens, ignored) = aside(&app, body, move |body| {
        let request = parse_tokenize(body, strict)?;
        // More than would fit may be counted, but not without bound.
        let most = 4 * capacity as usize;
        engine.tokenizer.check_length(&request.text, most).map_err(|_| {
            ApiError::bad_field(
                "prompt",
                format!("\"prompt\" has more than {most} tokens; send it in several parts."),
            )
            .code("context_length_exceeded")
        })?;
        let tokens = match request.add_special_tokens {
            true => engine.tokenizer.encode_prompt(&request.text),
            false => engine.tokenizer.encode(&request.text, polder_chat::Special::Parse),
        };
        let tokens = tokens.map_err(|error| ApiError::bad_field("prompt", format!("{error}.")))?;
        Ok((tokens, request.ignored))
    })
    .await?;
    let body = json!({"count": tokens.len(), "max_model_len": capacity, "tokens": tokens});
    let mut response = axum::Json(body).into_response();
    name_ignored(&app, &mut response, &ignored);
    Ok(response)
}

async fn detokenize(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let engine = app.engine()?.clone();
    let strict = Caller::of(&headers).strict;
    let body = read_body(body).await?;
    let (text, ignored) = aside(&app, body, move |body| {
        let request = parse_detokenize(body, strict)?;
        check_tokens(&request.tokens, engine.vocab, "tokens")?;
        Ok((engine.tokenizer.decode(&request.tokens), request.ignored))
    })
    .await?;
    let mut response = axum::Json(json!({"prompt": text})).into_response();
    name_ignored(&app, &mut response, &ignored);
    Ok(response)
}

/// Refuses tokens that the model does not have.
pub(crate) fn check_tokens(
    tokens: &[polder_backend::TokenId],
    vocab: u32,
    field: &str,
) -> Result<(), ApiError> {
    match tokens.iter().find(|token| token.0 >= vocab) {
        None => Ok(()),
        Some(token) => Err(ApiError::bad_field(
            field,
            format!(
                "\"{field}\" holds the token {}, but the model's tokens end at {}; send smaller \
                 ids.",
                token.0,
                vocab.saturating_sub(1)
            ),
        )),
    }
}

async fn no_such_path() -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "There is nothing at this path; the API is under /v1, for example /v1/models.",
    )
    .code("not_found")
}

async fn wrong_method() -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "This path does not take this method; ask with POST where a body is sent, else with GET.",
    )
    .code("method_not_allowed")
}

async fn count_refusals(
    State(app): State<Arc<App>>,
    request: axum::extract::Request,
    next: axum::middleware::Next,
) -> Response {
    let counts = request.uri().path() != "/health";
    let response = next.run(request).await;
    if counts && (response.status().is_client_error() || response.status().is_server_error()) {
        app.metrics.refused();
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    /// How many of five bodies of this length are read at the same time.
    async fn together(len: usize) -> usize {
        let app = Arc::new(App {
            served_as: String::new(),
            started: 0,
            engine: OnceLock::new(),
            progress: AtomicU32::new(0),
            stopping: AtomicBool::new(false),
            common: Mutex::default(),
            metrics: Arc::new(Metrics::new()),
            readers: Arc::new(Semaphore::new(READERS)),
        });
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut readers = tokio::task::JoinSet::new();
        for _ in 0..5 {
            let (app, now, most) = (app.clone(), now.clone(), most.clone());
            readers.spawn(async move {
                aside(&app, Bytes::from(vec![b' '; len]), move |body| {
                    assert_eq!(body.len(), len);
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(100));
                    now.fetch_sub(1, Ordering::SeqCst);
                    Ok(())
                })
                .await
            });
        }
        while let Some(read) = readers.join_next().await {
            read.unwrap().unwrap();
        }
        most.load(Ordering::SeqCst)
    }

    #[tokio::test]
    async fn small_bodies_are_read_together_and_large_ones_alone() {
        assert_eq!(together(LARGE).await, READERS);
        assert_eq!(together(LARGE + 1).await, 1);
    }
}
