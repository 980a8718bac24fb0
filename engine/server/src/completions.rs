//! `POST /v1/completions`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use http::HeaderMap;
use polder_backend::TokenId;
use polder_chat::ChatError;

use crate::answering::{self, Ask, check_choices, chunks};
use crate::app::{App, Engine, check_tokens};
use crate::generate::{surely_too_long, too_long};
use crate::wire::answer::Kind;
use crate::wire::completions::{Prompt, parse_completion};
use crate::wire::error::ApiError;

pub(crate) async fn answer(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    answering::answer(app, &headers, body, read).await
}

fn read(app: &App, engine: &Engine, body: &[u8], strict: bool) -> Result<Ask, ApiError> {
    let request = parse_completion(body, strict)?;
    app.check_model(&request.model)?;
    // Before any text is read: reading thousands of prompts only to refuse them takes long.
    check_choices(engine, request.prompts.len(), &request.knobs)?;
    let capacity = engine.handle.capacity();
    let answer = usize::from(request.knobs.max_tokens != Some(0));
    let mut prompts = Vec::with_capacity(request.prompts.len());
    for prompt in request.prompts {
        let tokens = match prompt {
            Prompt::Tokens(tokens) => {
                check_tokens(&tokens, engine.vocab, "prompt")?;
                tokens
            }
            Prompt::Text(text) => tokens_of(engine, &text, "prompt")?,
        };
        if tokens.is_empty() {
            return Err(ApiError::bad_field(
                "prompt",
                "\"prompt\" is empty; send at least one character or token.",
            ));
        }
        if tokens.len() + answer > capacity as usize {
            return Err(too_long(tokens.len(), capacity));
        }
        prompts.push(tokens);
    }
    Ok(Ask {
        words: chunks(Kind::Completion, &request.knobs),
        prompts,
        knobs: request.knobs,
        echo: request.echo,
        reply: None,
        ignored: request.ignored,
    })
}

/// The tokens of a text in `field`, as a model reads a text from its beginning.
pub(crate) fn tokens_of(
    engine: &Engine,
    text: &str,
    field: &str,
) -> Result<Vec<TokenId>, ApiError> {
    let capacity = engine.handle.capacity();
    engine
        .tokenizer
        .check_length(text, capacity as usize)
        .and_then(|()| engine.tokenizer.encode_prompt(text))
        .map_err(|error| match error {
            ChatError::TooLong { least, .. } => surely_too_long(least, capacity),
            other => ApiError::bad_field(field, format!("{other}.")),
        })
}
