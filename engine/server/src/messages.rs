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
use crate::tools::{self, Manners};
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
    let mut request = parse_messages(body, Purpose::Answer, strict)?;
    app.check_model(&request.model)?;
    let capacity = engine.handle.capacity();
    let tools = tools::offered(&engine.dialect, &request.tool_use)?;
    let prompt = prompt(engine, &request, capacity as usize)?;
    if prompt.len() >= capacity as usize {
        return Err(too_long(prompt.len(), capacity));
    }
    let think_not = "\"thinking\": {\"type\": \"disabled\"}";
    let manners = Manners { think_not, strict, ignored: &mut request.ignored };
    let (wanted, knobs) = (&request.tool_use, &mut request.knobs);
    let reply = tools::reply_form(engine, &prompt, wanted, tools, knobs, manners)?;
    let (stops, shows_thoughts) = (request.knobs.stop.clone(), request.shows_thoughts);
    Ok(Ask {
        words: Box::new(move |head| Box::new(Message::new(head, stops, shows_thoughts))),
        prompts: vec![prompt],
        knobs: request.knobs,
        echo: false,
        reply,
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
        tools::offered(&engine.dialect, &request.tool_use)?;
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
    let mut variables = thinking(request, |word| template.reads(word))?;
    if !request.tool_use.tools.is_empty() {
        variables.insert("tools".into(), request.tool_use.tools.clone().into());
    }
    chat::encode(engine, request.messages.clone(), variables, most)
}

/// Whether and how much to think, in the template's own words. A model that does not think has
/// nothing to think less.
fn thinking(
    request: &MessagesRequest,
    reads: impl Fn(&str) -> bool,
) -> Result<Map<String, Value>, ApiError> {
    // What Anthropic takes for granted asks for nothing.
    let effort = request.effort.as_deref().filter(|effort| *effort != "high");
    let mut variables = chat::thinking("output_config.effort", effort, &reads)?;
    if let Some(wanted) = request.thinking {
        for switch in ["enable_thinking", "thinking"].into_iter().filter(|switch| reads(switch)) {
            variables.insert(switch.into(), wanted.into());
        }
    }
    Ok(variables)
}
