//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use http::HeaderMap;
use polder_backend::TokenId;
use polder_chat::{ChatError, ChatTemplate, Conversation};
use serde_json::{Map, Value};

use crate::answering::{self, Ask, chunks};
use crate::app::{App, Engine};
use crate::generate::{surely_too_long, too_long};
use crate::tools::{self, Manners};
use crate::wire::answer::Kind;
use crate::wire::chat::parse_chat;
use crate::wire::error::{ApiError, shortened};
use crate::wire::fields::MOST_IGNORED;

pub(crate) async fn answer(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    answering::answer(app, &headers, body, read).await
}

fn read(app: &App, engine: &Engine, body: &[u8], strict: bool) -> Result<Ask, ApiError> {
    let mut request = parse_chat(body, strict)?;
    app.check_model(&request.model)?;
    let tools = tools::offered(&engine.dialect, &request.tool_use)?;
    let capacity = engine.handle.capacity();
    let template = template(engine)?;
    let effort = request.reasoning_effort.as_deref();
    let mut variables = thinking("reasoning_effort", effort, |word| template.reads(word))?;
    let more = std::mem::take(&mut request.template_variables);
    variables.extend(read_variables(template, more, strict, &mut request.ignored)?);
    if !request.tool_use.tools.is_empty() {
        variables.insert("tools".into(), request.tool_use.tools.clone().into());
    }
    let prompt = encode(engine, request.messages, variables, capacity as usize)?;
    if prompt.len() >= capacity as usize {
        return Err(too_long(prompt.len(), capacity));
    }
    check_thinking(engine, &prompt, "reasoning_effort", effort)?;
    let think_not = "\"reasoning_effort\": \"none\"";
    let manners = Manners { think_not, strict, ignored: &mut request.ignored };
    let (wanted, knobs) = (&request.tool_use, &mut request.knobs);
    let reply = tools::reply_form(engine, &prompt, wanted, tools, knobs, manners)?;
    Ok(Ask {
        words: chunks(Kind::Chat, &request.knobs),
        prompts: vec![prompt],
        knobs: request.knobs,
        echo: false,
        reply,
        ignored: request.ignored,
    })
}

/// Refuses to make a model think less that always thinks; `effort` stands in `field`.
pub(crate) fn check_thinking(
    engine: &Engine,
    prompt: &[TokenId],
    field: &str,
    effort: Option<&str>,
) -> Result<(), ApiError> {
    if effort != Some("none") || !tools::begins_thinking(engine, prompt) {
        return Ok(());
    }
    let message =
        format!("\"{field}\" cannot be \"none\": this model always thinks first; leave it out.");
    Err(ApiError::bad_field(field, message).code("unsupported_parameter"))
}

/// The model's chat template.
pub(crate) fn template(engine: &Engine) -> Result<&ChatTemplate, ApiError> {
    engine.template.as_ref().map_err(|why| {
        ApiError::bad_request(format!(
            "This model cannot chat: {why}; use /v1/completions or another model."
        ))
        .code("no_chat_template")
    })
}

/// Refuses a conversation in `field` that speaks of tools to a model that was not made for them.
pub(crate) fn check_tools(
    template: &ChatTemplate,
    messages: &[Map<String, Value>],
    field: &str,
) -> Result<(), ApiError> {
    let speaks = messages.iter().any(|message| {
        (message["role"] == "tool" && !template.mentions("tool"))
            || (message.contains_key("tool_calls") && !template.mentions("tool_calls"))
    });
    if !speaks {
        return Ok(());
    }
    Err(ApiError::bad_field(
        field,
        format!(
            "\"{field}\" hold calls of tools or their results, which this model was not made for; \
             leave them out."
        ),
    )
    .code("unsupported_parameter"))
}

/// A conversation of at most `most` tokens in the model's own form.
pub(crate) fn encode(
    engine: &Engine,
    messages: Vec<Map<String, Value>>,
    variables: Map<String, Value>,
    most: usize,
) -> Result<Vec<TokenId>, ApiError> {
    let template = template(engine)?;
    for (field, word) in [("tool_calls", "tool_calls"), ("role", "tool")] {
        let used = messages.iter().position(|message| match field {
            "role" => message["role"] == word,
            _ => message.contains_key(field),
        });
        if let Some(index) = used.filter(|_| !template.mentions(word)) {
            let name = format!("messages[{index}].{field}");
            return Err(ApiError::bad_field(
                &name,
                format!(
                    "\"{name}\" speaks of tools, which this model was not made for; leave such \
                     messages out."
                ),
            )
            .code("unsupported_parameter"));
        }
    }
    let conversation = Conversation { messages, add_generation_prompt: true, variables };
    template.encode(&conversation, &engine.tokenizer, most).map_err(|error| match error {
        ChatError::TooLong { least, .. } => surely_too_long(least, engine.handle.capacity()),
        ChatError::TemplateRefused(_) | ChatError::TemplateFailed(_) | ChatError::NoMarkerLeft => {
            ApiError::bad_field("messages", format!("{}.", capitalized(&error.to_string())))
        }
        other => ApiError::bad_request(format!("{}.", capitalized(&other.to_string()))),
    })
}

/// Those variables that the template reads; the others had no effect.
fn read_variables(
    template: &ChatTemplate,
    variables: Map<String, Value>,
    strict: bool,
    ignored: &mut Vec<String>,
) -> Result<Map<String, Value>, ApiError> {
    let (read, unread): (Map<_, _>, Map<_, _>) =
        variables.into_iter().partition(|(name, _)| template.reads(name));
    let names = unread.keys().map(|name| format!("chat_template_kwargs.{}", shortened(name)));
    match unread.keys().next() {
        Some(name) if strict => {
            let name = format!("chat_template_kwargs.{}", shortened(name));
            let message = format!("\"{name}\" has no meaning for this model; leave it out.");
            Err(ApiError::bad_field(&name, message).code("unknown_parameter"))
        }
        _ => {
            ignored.extend(names.take(MOST_IGNORED));
            Ok(read)
        }
    }
}

/// How much to think, as `field` says it, in the template's own words. A template that knows only whether to think, not
/// how much, is told that.
pub(crate) fn thinking(
    field: &str,
    effort: Option<&str>,
    reads: impl Fn(&str) -> bool,
) -> Result<Map<String, Value>, ApiError> {
    let mut variables = Map::new();
    let Some(effort) = effort else { return Ok(variables) };
    if reads("reasoning_effort") {
        variables.insert("reasoning_effort".into(), effort.into());
    }
    for switch in ["enable_thinking", "thinking"] {
        if reads(switch) {
            variables.insert(switch.into(), (effort != "none").into());
        }
    }
    if variables.is_empty() && effort != "none" {
        return Err(ApiError::bad_field(
            field,
            format!("\"{field}\" has no meaning for this model; leave it out or send \"none\"."),
        )
        .code("unsupported_parameter"));
    }
    Ok(variables)
}

fn capitalized(text: &str) -> String {
    let mut characters = text.chars();
    characters
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinking_is_asked_for_only_where_the_template_knows_it() {
        let reads = |word: &'static str| move |other: &str| other == word;
        assert!(thinking("effort", None, reads("x")).unwrap().is_empty());
        assert!(thinking("effort", Some("none"), reads("x")).unwrap().is_empty());
        assert!(thinking("effort", Some("high"), reads("x")).is_err());
        for (effort, thinks) in [("none", false), ("low", true), ("high", true)] {
            for switch in ["enable_thinking", "thinking"] {
                assert_eq!(
                    thinking("effort", Some(effort), reads(switch)).unwrap()[switch],
                    thinks
                );
            }
        }
        let told = thinking("effort", Some("high"), reads("reasoning_effort")).unwrap();
        assert_eq!(told["reasoning_effort"], "high");
    }
}
