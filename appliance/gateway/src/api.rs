//! The API: `/v1`, `/tokenize` and `/detokenize` by key, or by the verifier's word; `/health`,
//! `/metrics`, `/auth`.

use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::body::Body;
use axum::extract::{FromRequestParts, Path, Query, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method};
use http_body_util::Limited;
use polder_control::{BoxStatus, EngineStatus};
use polder_members::{KeyGrant, Member, Role, Scope};
use serde::Deserialize;
use serde_json::json;

use crate::Gateway;
use crate::auth;
use crate::body::swallow;
use crate::engines::choose;
use crate::errors::ApiError;
use crate::relay::{Caller, Question, known_status, most_used, relay};
use crate::verifier;

/// Everything that programs use.
pub(crate) fn routes() -> Router<Arc<Gateway>> {
    Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{model}", get(model))
        // What is read under /v1 is above; a client that looks for more hears that it is not there.
        .route("/v1/{*path}", post(ask).get(crate::front::not_found))
        .route("/v1/messages", anthropic())
        .route("/v1/messages/{*path}", anthropic())
        .route("/tokenize", post(ask))
        .route("/detokenize", post(ask))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/auth", get(crate::subrequest::auth))
}

/// Who asks something of the API.
enum Asker {
    /// The bearer of a key that opens it.
    Key(Arc<KeyGrant>),
    /// Somebody whom the site's verifier knows.
    Member(Member),
}

impl Asker {
    async fn of(gateway: &Gateway, parts: &Parts) -> Result<Self, ApiError> {
        match verifier::member(gateway, parts).await? {
            Some(member) => Ok(Self::Member(member)),
            None => api_key(gateway, &parts.headers).map(Self::Key),
        }
    }

    fn role(&self) -> Role {
        match self {
            Self::Key(grant) => grant.role,
            Self::Member(member) => member.role,
        }
    }

    /// On whose behalf an engine would work.
    async fn caller(&self, gateway: &Gateway) -> Result<Caller, ApiError> {
        match self {
            Self::Key(grant) => Caller::key(&gateway.members, grant),
            Self::Member(member) => Caller::chat(&gateway.members, member.id).await,
        }
    }

    /// A key may be for some models only, named by recipe or by slot.
    fn may_use(&self, engine: &EngineStatus) -> bool {
        let Self::Key(grant) = self else { return true };
        grant.may_use(engine.recipe.as_str()) || grant.may_use(engine.name.as_str())
    }
}

impl FromRequestParts<Arc<Gateway>> for Asker {
    type Rejection = ApiError;

    async fn from_request_parts(
        parts: &mut Parts,
        gateway: &Arc<Gateway>,
    ) -> Result<Self, ApiError> {
        Self::of(gateway, parts).await
    }
}

fn api_key(gateway: &Gateway, headers: &HeaderMap) -> Result<Arc<KeyGrant>, ApiError> {
    let grant = auth::grant(&gateway.members, headers)?;
    match grant.opens(Scope::Api) {
        true => Ok(grant),
        false => Err(ApiError::not_yours(
            "this API key does not open the API; make one on your page of the box that does",
        )),
    }
}

/// Passes a question to the engine of the model that it names.
async fn ask(State(gateway): State<Arc<Gateway>>, request: Request) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    // Before the body: a stranger's body is not kept.
    let known = async {
        let asker = Asker::of(&gateway, &parts).await?;
        let caller = asker.caller(&gateway).await?;
        Ok((asker, caller))
    };
    let (asker, caller) = match known.await {
        Ok(known) => known,
        Err(refusal) => {
            if parts.version == http::Version::HTTP_2 {
                swallow(body).await;
            }
            return Err(refusal);
        }
    };
    let body = gateway.buffers.read(body).await?;
    let model = read(&body.bytes, named_model).await?;
    let recipe = usable(&gateway.status(), &asker, model.as_deref())?.recipe.clone();
    let mut caller = caller;
    if caller.counts_tokens() {
        caller.reserve(read(&body.bytes, most_used).await)?;
    }
    let bytes = match model {
        // Engines know their model by its own name, not by the slot that they run in.
        Some(model) if model != recipe.as_str() => {
            let recipe = recipe.clone();
            read(&body.bytes, move |body| renamed(body, recipe.as_str())).await?
        }
        _ => body.bytes.clone(),
    };
    let root = || PathAndQuery::from_static("/");
    let path = parts.uri.path_and_query().cloned().unwrap_or_else(root);
    let question = Question { method: Method::POST, path, headers: parts.headers, body: bytes };
    Ok(relay(&gateway, caller, Some(recipe.as_str()), question).await)
}

/// The same for Anthropic's clients.
fn anthropic() -> MethodRouter<Arc<Gateway>> {
    post(ask).layer(axum::middleware::from_fn(crate::errors::as_anthropic))
}

/// Reads a question; one that takes a while, on a thread where nobody else waits for it.
async fn read<T: Send + 'static>(body: &Bytes, how: impl FnOnce(&[u8]) -> T + Send + 'static) -> T {
    /// Read in a millisecond or two.
    const LONG: usize = 256 << 10;
    if body.len() < LONG {
        return how(body);
    }
    let body = body.clone();
    match tokio::task::spawn_blocking(move || how(&body)).await {
        Ok(read) => read,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// What the request's `model` says, the whole body having been found to be one JSON object.
fn named_model(body: &[u8]) -> Result<Option<String>, ApiError> {
    #[derive(Deserialize)]
    struct Named {
        model: Option<String>,
    }
    serde_json::from_slice::<Named>(body).map(|named| named.model).map_err(|error| {
        ApiError::bad_request(
            "invalid_json",
            format!("the request's body is not a JSON object with a text for its model: {error}"),
        )
    })
}

/// The same question, to the model of this name.
fn renamed(body: &[u8], model: &str) -> Result<Bytes, ApiError> {
    let mut question: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(body)
        .map_err(|error| {
            ApiError::bad_request(
                "invalid_json",
                format!("the request's body is not a JSON object: {error}"),
            )
        })?;
    question.insert("model".to_owned(), model.into());
    Ok(Bytes::from(serde_json::Value::Object(question).to_string()))
}

/// The engine of a model, if they may use it.
fn usable<'a>(
    status: &'a BoxStatus,
    asker: &Asker,
    model: Option<&str>,
) -> Result<&'a EngineStatus, ApiError> {
    let engine = choose(status, model)?;
    match asker {
        Asker::Key(grant) if !asker.may_use(engine) => Err(ApiError::not_yours(format!(
            "this API key may not use the model {}; it may use {}",
            engine.recipe,
            grant.models.join(", ")
        ))),
        _ => Ok(engine),
    }
}

fn describe(engine: &EngineStatus) -> serde_json::Value {
    json!({ "id": engine.recipe, "object": "model", "created": 0, "owned_by": "polder" })
}

async fn models(State(gateway): State<Arc<Gateway>>, asker: Asker) -> Json<serde_json::Value> {
    let status = gateway.status();
    let usable = status.engines.iter().filter(|engine| asker.may_use(engine));
    let data: Vec<_> = usable.map(describe).collect();
    Json(json!({ "object": "list", "data": data }))
}

async fn model(
    State(gateway): State<Arc<Gateway>>,
    Path(model): Path<String>,
    asker: Asker,
) -> Result<Response, ApiError> {
    let status = gateway.status();
    let engine = usable(&status, &asker, Some(&model))?;
    Ok(Json(describe(engine)).into_response())
}

/// Says that the door is open, to anybody; how the rest is, only to the watchful.
async fn health() -> Json<serde_json::Value> {
    Json(json!({ "status": "ok" }))
}

/// As Prometheus reads figures.
const FIGURES: &str = "text/plain; version=0.0.4; charset=utf-8";
/// An engine's figures are a few KiB.
const LONGEST_FIGURES: usize = 4 << 20;

#[derive(Deserialize)]
struct MetricsOf {
    /// An engine's own figures instead of the gateway's.
    engine: Option<String>,
}

async fn metrics(
    State(gateway): State<Arc<Gateway>>,
    Query(of): Query<MetricsOf>,
    asker: Asker,
) -> Result<Response, ApiError> {
    if asker.role() != Role::Steward {
        return Err(ApiError::not_yours("figures of the whole box are for stewards' keys"));
    }
    if let Some(engine) = of.engine {
        let mut request = http::Request::new(Bytes::new());
        *request.uri_mut() = http::Uri::from_static("/metrics");
        let answer = gateway.engine_request(Some(&engine), request).await?.response;
        let status = known_status(answer.status());
        // The engine's own words, and nothing that a browser would take for a page of the box.
        let text = Limited::new(answer.into_body(), LONGEST_FIGURES);
        return Ok((status, [(CONTENT_TYPE, FIGURES)], Body::new(text)).into_response());
    }
    let text = gateway.tally.to_text(gateway.places.taken());
    Ok(([(CONTENT_TYPE, FIGURES)], text).into_response())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_model_is_read_from_an_object_and_from_nothing_else() {
        let read = |text: &str| named_model(text.as_bytes());
        assert_eq!(
            read(r#"{"model":"small","x":[1,{"model":"y"}]}"#).unwrap(),
            Some("small".into())
        );
        assert_eq!(read(r#"{"model":null}"#).unwrap(), None);
        assert_eq!(read("{}").unwrap(), None);
        for bad in
            ["", "[]", "\"x\"", "{", "{\"model\":1}", "{\"model\":\"a\",\"model\":\"b\"}", "{} {}"]
        {
            assert_eq!(read(bad).unwrap_err().code, "invalid_json", "{bad}");
        }
    }

    #[test]
    fn only_the_models_name_changes_when_a_slot_is_named() {
        let body = br#"{"z":1.25,"model":"fast","messages":[{"model":"fast"}],"a":null}"#;
        assert_eq!(
            renamed(body, "small").unwrap(),
            r#"{"z":1.25,"model":"small","messages":[{"model":"fast"}],"a":null}"#.as_bytes()
        );
    }

    proptest! {
        #[test]
        fn no_body_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = named_model(&bytes);
        }
    }
}
