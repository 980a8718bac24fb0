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
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, EXPECT};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method};
use http_body_util::Limited;
use polder_control::BoxStatus;
use polder_members::{AtApp, KeyGrant, Member, Role, Scope, Secret, Trying};
use polder_site::{EngineName, Site};
use serde::Deserialize;
use serde_json::json;

use crate::Gateway;
use crate::auth;
use crate::body::swallow;
use crate::elsewhere::{self, Model};
use crate::errors::ApiError;
use crate::naming;
use crate::relay::{Caller, Question, known_status, most_used, relay};
use crate::verifier;

/// Everything that programs use.
pub(crate) fn routes() -> Router<Arc<Gateway>> {
    Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{model}", get(model))
        // What is asked by OpenAI's clients, so that another method hears what these take.
        .route("/v1/chat/completions", post(ask))
        .route("/v1/completions", post(ask))
        .route("/v1/embeddings", post(ask))
        .route("/v1/responses", post(ask))
        // What an engine of another kind may answer beside. A client that looks for more to read hears that it is not there.
        .route("/v1/{*path}", post(ask).get(crate::front::not_found))
        .route("/v1/messages", anthropic())
        .route("/v1/messages/{*path}", anthropic())
        .route("/tokenize", post(ask))
        .route("/detokenize", post(ask))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/auth", get(crate::subrequest::auth))
        .route("/openapi.json", get(description))
}

/// What programs can ask, for programs. Of every box alike, so that anybody may read it.
const DESCRIPTION: &str = include_str!("openapi.json");

async fn description() -> Response {
    ([(CONTENT_TYPE, "application/json")], DESCRIPTION).into_response()
}

/// Who asks something of the API.
enum Asker {
    /// The bearer of a key that opens it.
    Key(Arc<KeyGrant>),
    /// Somebody whom the site's verifier knows.
    Member(Member),
    /// Somebody in whose name an app asks, which they agreed to.
    AtApp(AtApp),
}

impl Asker {
    async fn of(gateway: &Gateway, parts: &Parts) -> Result<Self, ApiError> {
        match verifier::member(gateway, parts).await? {
            Some(member) => Ok(Self::Member(member)),
            None => match api_key(gateway, &parts.headers) {
                Ok(grant) => Ok(Self::Key(grant)),
                // It is no key: perhaps it is what an app was given for somebody who signed in there with the box.
                Err(refusal) => match behind_app(gateway, &parts.headers).await? {
                    Some(mut at) => {
                        // Models, as any member's: what a steward may see beside is not for an app.
                        at.member.role = Role::Member;
                        Ok(Self::AtApp(at))
                    }
                    None => Err(refusal),
                },
            },
        }
    }

    fn role(&self) -> Role {
        match self {
            Self::Key(grant) => grant.role,
            Self::Member(member) | Self::AtApp(AtApp { member, .. }) => member.role,
        }
    }

    /// On whose behalf an engine would work.
    async fn caller(&self, gateway: &Gateway) -> Result<Caller, ApiError> {
        match self {
            Self::Key(grant) => Caller::key(&gateway.members, grant),
            Self::Member(member) => Caller::chat(&gateway.members, member.id).await,
            Self::AtApp(at) => {
                let mut caller = Caller::chat(&gateway.members, at.member.id).await?;
                caller.ends_with(at.ended.clone());
                Ok(caller)
            }
        }
    }

    /// A key may be for some models only, by a name of the collective's own, by recipe or by slot.
    fn may_use(&self, site: &Site, model: &Model) -> bool {
        let Self::Key(grant) = self else { return true };
        let by_slot = |slot: &EngineName| {
            let mut aliases = site.aliases.iter().filter(|(_, led)| *led == slot);
            grant.may_use(slot.as_str()) || aliases.any(|(alias, _)| grant.may_use(alias.as_str()))
        };
        grant.may_use(model.name.as_str()) || model.slot.as_ref().is_some_and(by_slot)
    }

    /// How they try the model that is on trial, if they were chosen for it.
    fn trying(&self, gateway: &Gateway) -> Option<Trying> {
        let member = match self {
            Self::Key(grant) => grant.member,
            Self::Member(member) | Self::AtApp(AtApp { member, .. }) => member.id,
        };
        gateway.members.trying(member)
    }

    /// What its bearer lets nothing leave the box for lives elsewhere in vain.
    fn reaches(&self, site: &Site, model: &Model) -> bool {
        let stays_here = match self {
            Self::Key(grant) => grant.stays_here,
            Self::Member(member) | Self::AtApp(AtApp { member, .. }) => member.stays_here,
        };
        let here = model.slot.is_some() && !elsewhere::lives_on_another_machine(site, model);
        here || !stays_here
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

/// Who is at an app that may ask models in their name.
async fn behind_app(gateway: &Gateway, headers: &HeaderMap) -> Result<Option<AtApp>, ApiError> {
    let given = auth::key_in(headers)?.filter(|_| !auth::has_our_key(headers));
    // What strangers make up ends here, in memory.
    let given = given.filter(|token| gateway.members.may_be_at_app(token));
    let Some(token) = given.map(|token| Secret::new(token.to_owned())) else { return Ok(None) };
    let found = gateway.members.ask(move |members| members.asks_models_for(token.expose())).await;
    found.map_err(|error| {
        log::error!("a member at an app could not be looked up: {error}");
        ApiError::members_unreadable()
    })
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
            if parts.version == http::Version::HTTP_2 || is_short(&parts.headers) {
                swallow(body).await;
            }
            return Err(refusal);
        }
    };
    let body = gateway.buffers.read(body).await?;
    let model = read(&body.bytes, named_model).await?;
    let found = usable(&gateway.status(), &asker, asker.trying(&gateway), model.as_deref())?;
    let mut caller = caller;
    // Two boxes that name each other would pass it round for ever.
    caller.was_passed_on(polder_upstream::hops(&parts.headers));
    if caller.counts_tokens() {
        caller.reserve(read(&body.bytes, most_used).await)?;
    }
    let bytes = match model {
        // Engines know their model by its own name, not by the slot that they run in.
        Some(model) if model != found.name.as_str() => {
            let recipe = found.name.clone();
            read(&body.bytes, move |body| renamed(body, recipe.as_str())).await?
        }
        _ => body.bytes.clone(),
    };
    let root = || PathAndQuery::from_static("/");
    let path = parts.uri.path_and_query().cloned().unwrap_or_else(root);
    let question = Question { method: Method::POST, path, headers: parts.headers, body: bytes };
    Ok(relay(&gateway, caller, &found, question).await)
}

/// Is the body of this HTTP/1.1 request so short that it is sooner read than refused? A client that is still sending when
/// the connection closes under its hands may never see the answer.
fn is_short(headers: &HeaderMap) -> bool {
    const SHORT: u64 = 256 << 10;
    let length = headers.get(CONTENT_LENGTH).and_then(|l| l.to_str().ok()?.parse::<u64>().ok());
    // Whoever expects to be asked for it has not sent it.
    !headers.contains_key(EXPECT) && length.is_none_or(|length| length <= SHORT)
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

/// The model that is asked for, if they may use it.
fn usable(
    status: &BoxStatus,
    asker: &Asker,
    trying: Option<Trying>,
    asked: Option<&str>,
) -> Result<Model, ApiError> {
    let model = elsewhere::find(status, trying, asked)?;
    match asker {
        Asker::Key(grant) if !may_ask(status, asker, &model, trying, asked) => {
            Err(ApiError::not_yours(format!(
                "this API key may not use the model {}; it may use {}",
                model.name,
                grant.models.join(", ")
            )))
        }
        _ => Ok(model),
    }
}

/// A key for the collective's own name opens what is tried under it, too.
fn may_ask(
    status: &BoxStatus,
    asker: &Asker,
    model: &Model,
    trying: Option<Trying>,
    asked: Option<&str>,
) -> bool {
    let by_name = |name: &str| {
        let Asker::Key(grant) = asker else { return true };
        let led = naming::resolve(status, trying, Some(name), jiff::Timestamp::now());
        grant.may_use(name) && led.is_ok_and(|led| Some(&led.name) == model.slot.as_ref())
    };
    asker.may_use(&status.site, model) || asked.is_some_and(by_name)
}

/// A model that lives only elsewhere says where; `root` is the model behind a name of the collective's own.
fn describe(model: &Model) -> serde_json::Value {
    let owner = match (&model.slot, model.elsewhere.first()) {
        (None, Some(upstream)) => upstream.as_str(),
        _ => "polder",
    };
    json!({ "id": model.shown, "object": "model", "created": 0, "owned_by": owner, "root": model.name })
}

async fn models(State(gateway): State<Arc<Gateway>>, asker: Asker) -> Json<serde_json::Value> {
    let (status, trying) = (gateway.status(), asker.trying(&gateway));
    let all = elsewhere::models(&status, trying);
    let usable = all.iter().filter(|model| {
        asker.reaches(&status.site, model)
            && may_ask(&status, &asker, model, trying, Some(&model.shown))
    });
    let data: Vec<_> = usable.map(describe).collect();
    Json(json!({ "object": "list", "data": data }))
}

async fn model(
    State(gateway): State<Arc<Gateway>>,
    Path(model): Path<String>,
    asker: Asker,
) -> Result<Response, ApiError> {
    let (status, trying) = (gateway.status(), asker.trying(&gateway));
    let found = usable(&status, &asker, trying, Some(&model))?;
    Ok(Json(describe(&found)).into_response())
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

    /// Paths of `.route("…", …)` in a source, with the ways to ask.
    fn routed(source: &str) -> std::collections::BTreeSet<(String, String)> {
        let mut all = std::collections::BTreeSet::new();
        for piece in source.split(".route(\"").skip(1) {
            let (path, how) = piece.split_once('"').unwrap();
            let how = how.lines().next().unwrap();
            for (word, method) in [("get(", "get"), ("post(", "post"), ("anthropic(", "post")] {
                if how.contains(word) {
                    all.insert((path.replace("{*id}", "{model}"), method.to_owned()));
                }
            }
        }
        all
    }

    #[test]
    fn the_description_for_programs_names_every_route_there_is_and_no_other() {
        let description: serde_json::Value = serde_json::from_str(DESCRIPTION).unwrap();
        let described: std::collections::BTreeSet<(String, String)> = description["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, ways)| {
                ways.as_object().unwrap().keys().map(|way| (path.clone(), way.clone()))
            })
            .collect();
        let door = routed(include_str!("api.rs").split("mod tests").next().unwrap());
        let engine = routed(include_str!("../../../engine/server/src/app.rs"));
        // What the door alone asks an engine, and what it has its own answer to.
        let between_us = ["/beginnings", "/kv", "/health", "/metrics"];
        let open: std::collections::BTreeSet<_> = engine
            .into_iter()
            .filter(|(path, _)| !between_us.contains(&path.as_str()))
            .chain(door)
            .filter(|(path, _)| !path.contains("{*"))
            .collect();
        assert!(open.len() > 10, "{open:?}");
        assert_eq!(described, open);
    }

    #[test]
    fn every_part_that_the_description_refers_to_is_in_it() {
        let description: serde_json::Value = serde_json::from_str(DESCRIPTION).unwrap();
        let mut count = 0;
        for part in DESCRIPTION.split("\"$ref\": \"#").skip(1) {
            let pointer = part.split('"').next().unwrap();
            assert!(description.pointer(pointer).is_some(), "{pointer}");
            count += 1;
        }
        assert!(count > 20, "{count}");
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
