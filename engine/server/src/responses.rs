//! `POST /v1/responses`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use http::HeaderMap;

use crate::answering::{self, Ask};
use crate::app::{App, Engine};
use crate::chat;
use crate::generate::too_long;
use crate::tools::{self, Manners};
use crate::wire::error::ApiError;
use crate::wire::response;
use crate::wire::responses::parse_responses;

pub(crate) async fn answer(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    answering::answer(app, &headers, body, read).await
}

fn read(app: &App, engine: &Engine, body: &[u8], strict: bool) -> Result<Ask, ApiError> {
    let mut request = parse_responses(body, strict)?;
    app.check_model(&request.model)?;
    let tools = tools::offered(&engine.dialect, &request.tool_use)?;
    let template = chat::template(engine)?;
    chat::check_tools(template, &request.messages, "input")?;
    let effort = request.effort.as_deref();
    let mut variables = chat::thinking("reasoning.effort", effort, |word| template.reads(word))?;
    if !request.tool_use.tools.is_empty() {
        variables.insert("tools".into(), request.tool_use.tools.clone().into());
    }
    let capacity = engine.handle.capacity();
    let prompt = chat::encode(engine, request.messages, variables, capacity as usize)?;
    if prompt.len() >= capacity as usize {
        return Err(too_long(prompt.len(), capacity));
    }
    chat::check_thinking(engine, &prompt, "reasoning.effort", request.effort.as_deref())?;
    let think_not = "\"reasoning\": {\"effort\": \"none\"}";
    let manners = Manners { think_not, strict, ignored: &mut request.ignored };
    let (wanted, knobs) = (&request.tool_use, &mut request.knobs);
    let reply = tools::reply_form(engine, &prompt, wanted, tools, knobs, manners)?;
    let (repeated, logprobs) = (request.repeated, request.knobs.sampling.logprobs.is_some());
    if logprobs && reply.is_some() {
        // Which token made which item is not told.
        let message = "\"include\" cannot hold message.output_text.logprobs where there are \"tools\" \
                       or the model thinks; leave that out.";
        return Err(ApiError::bad_field("include", message).code("unsupported_parameter"));
    }
    Ok(Ask {
        words: Box::new(move |head| Box::new(response::Response::new(head, repeated, logprobs))),
        prompts: vec![prompt],
        knobs: request.knobs,
        echo: false,
        reply,
        ignored: request.ignored,
    })
}
