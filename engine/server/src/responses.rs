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
    let request = parse_responses(body, strict)?;
    app.check_model(&request.model)?;
    let template = chat::template(engine)?;
    chat::check_tools(template, &request.messages, "input")?;
    let effort = request.effort.as_deref();
    let variables = chat::thinking("reasoning.effort", effort, |word| template.mentions(word))?;
    let capacity = engine.handle.capacity();
    let prompt = chat::encode(engine, request.messages, variables, capacity as usize)?;
    if prompt.len() >= capacity as usize {
        return Err(too_long(prompt.len(), capacity));
    }
    let repeated = request.repeated;
    Ok(Ask {
        words: Box::new(move |head| Box::new(response::Response::new(head, repeated))),
        prompts: vec![prompt],
        knobs: request.knobs,
        echo: false,
        reply: None,
        ignored: request.ignored,
    })
}
