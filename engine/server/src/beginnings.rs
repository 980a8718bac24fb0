//! `PUT /beginnings`: the site says which instructions are common to all members. `GET` says which they are.
//!
//! Everybody's requests may share what was read of them; nobody learns anything from that, because the words are the site's
//! own. For the gateway only: whoever else comes to the socket is this box as well.

use std::sync::{Arc, PoisonError};

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use polder_backend::TokenId;
use polder_chat::{ChatTemplate, Conversation, Tokenizer};
use serde_json::{Map, json};

use crate::app::{App, aside, read_body};
use crate::wire::error::ApiError;

/// Most instructions at once.
const MOST: usize = 1000;

/// Takes a list of instructions, which replace those of before. Answers with how many tokens of each can be shared: 0 where
/// the model has no place for instructions.
pub(crate) async fn set(State(app): State<Arc<App>>, body: Body) -> Result<Response, ApiError> {
    let engine = app.engine()?.clone();
    let body = read_body(body).await?;
    let handle = engine.handle.clone();
    let (texts, beginnings) = aside(&app, body, move |body| {
        let texts: Vec<String> = serde_json::from_slice(body)
            .ok()
            .filter(|texts: &Vec<String>| texts.len() <= MOST)
            .ok_or_else(|| {
                ApiError::bad_request(format!("The body must be a list of at most {MOST} texts."))
            })?;
        let most = engine.handle.capacity() as usize;
        let begins = |text: &String| match &engine.template {
            Ok(template) => beginning(template, &engine.tokenizer, text, most),
            Err(_) => Vec::new(),
        };
        let beginnings: Vec<Vec<TokenId>> = texts.iter().map(begins).collect();
        Ok((texts, beginnings))
    })
    .await?;
    let tokens: Vec<usize> = beginnings.iter().map(Vec::len).collect();
    {
        // Of two that come together the same one is the last in both places.
        let mut common = app.common.lock().unwrap_or_else(PoisonError::into_inner);
        handle
            .share_beginnings(beginnings.into_iter().filter(|tokens| !tokens.is_empty()).collect());
        *common = texts;
    }
    Ok(axum::Json(json!({ "tokens": tokens })).into_response())
}

/// The instructions that hold now, as they were set: a gateway that starts beside an engine which has been running for long
/// need not set them anew.
pub(crate) async fn get(State(app): State<Arc<App>>) -> axum::Json<Vec<String>> {
    axum::Json(app.common.lock().unwrap_or_else(PoisonError::into_inner).clone())
}

/// How every conversation begins that has these instructions, whatever is asked: where two that ask something else part.
fn beginning(
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    instructions: &str,
    most: usize,
) -> Vec<TokenId> {
    let asking = |question: &str| {
        let message = |role: &str, content: &str| {
            Map::from_iter([
                ("role".to_owned(), role.into()),
                ("content".to_owned(), content.into()),
            ])
        };
        let conversation = Conversation {
            messages: vec![message("system", instructions), message("user", question)],
            add_generation_prompt: true,
            variables: Map::new(),
        };
        template.encode(&conversation, tokenizer, most).ok()
    };
    // No template writes both of these alike, or either into the instructions.
    let (Some(mut one), Some(other)) = (asking("1"), asking("?")) else { return Vec::new() };
    let alike = one.iter().zip(&other).take_while(|(a, b)| a == b).count();
    one.truncate(alike);
    one
}
