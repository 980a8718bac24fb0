//! `POST /v1/messages` and `POST /v1/messages/count_tokens`: Anthropic's API.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::HeaderMap;
use polder_backend::TokenId;
use serde_json::{Map, Value, json};

use crate::answering::{self, Ask};
use crate::app::{App, Caller, Engine, aside, name_ignored, read_body};
use crate::chat;
use crate::generate::too_long;
use crate::wire::error::ApiError;
use crate::wire::message::Message;
use crate::wire::messages::{MessagesRequest, Purpose, parse_messages};

/// A refusal in Anthropic's shape.
#[derive(Debug)]
pub(crate) struct Refused(ApiError);

impl From<ApiError> for Refused {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        self.0.respond(&self.0.anthropic())
    }
}

pub(crate) async fn answer(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    Ok(answering::answer(app, &headers, body, read).await?)
}

fn read(app: &App, engine: &Engine, body: &[u8], strict: bool) -> Result<Ask, ApiError> {
    let request = parse_messages(body, Purpose::Answer, strict)?;
    app.check_model(&request.model)?;
    let capacity = engine.handle.capacity();
    let prompt = prompt(engine, &request, capacity as usize)?;
    if prompt.len() >= capacity as usize {
        return Err(too_long(prompt.len(), capacity));
    }
    let stops = request.knobs.stop.clone();
    Ok(Ask {
        words: Box::new(move |head| Box::new(Message::new(head, stops))),
        prompts: vec![prompt],
        knobs: request.knobs,
        echo: false,
        reply: None,
        ignored: request.ignored,
    })
}

pub(crate) async fn count(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    let engine = app.engine()?.clone();
    let strict = Caller::of(&headers).strict;
    let body = read_body(body).await?;
    let this = app.clone();
    let (count, ignored) = aside(&app, body, move |body| {
        let request = parse_messages(body, Purpose::Count, strict)?;
        this.check_model(&request.model)?;
        // More than would fit may be counted, but not without bound.
        let most = 4 * engine.handle.capacity() as usize;
        Ok((prompt(&engine, &request, most)?.len(), request.ignored))
    })
    .await?;
    let mut response = axum::Json(json!({"input_tokens": count})).into_response();
    name_ignored(&app, &mut response, &ignored);
    Ok(response)
}

fn prompt(
    engine: &Engine,
    request: &MessagesRequest,
    most: usize,
) -> Result<Vec<TokenId>, ApiError> {
    let template = chat::template(engine)?;
    chat::check_tools(template, &request.messages, "messages")?;
    let variables = thinking(request, |word| template.mentions(word))?;
    chat::encode(engine, request.messages.clone(), variables, most)
}

/// Whether and how much to think, in the template's own words. A model that does not think has
/// nothing to think less.
fn thinking(
    request: &MessagesRequest,
    mentions: impl Fn(&str) -> bool,
) -> Result<Map<String, Value>, ApiError> {
    // What Anthropic takes for granted asks for nothing.
    let effort = request.effort.as_deref().filter(|effort| *effort != "high");
    let mut variables = chat::thinking("output_config.effort", effort, &mentions)?;
    if let Some(wanted) = request.thinking
        && mentions("enable_thinking")
    {
        variables.insert("enable_thinking".into(), wanted.into());
    }
    Ok(variables)
}
