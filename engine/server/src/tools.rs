//! Which tools a request offers to the model, whether the model can call them, and how its replies
//! are read.

use std::sync::Arc;

use polder_backend::TokenId;
use polder_chat::reply::{Dialect, Tools};

use crate::app::Engine;
use crate::reply::ReplyForm;
use crate::wire::error::ApiError;
use crate::wire::format::Format;
use crate::wire::tools::{ToolChoice, ToolUse};

/// The tools that the model may call; None where there are none.
pub(crate) fn offered(dialect: &Dialect, wanted: &ToolUse) -> Result<Option<Arc<Tools>>, ApiError> {
    if wanted.tools.is_empty() {
        return Ok(None);
    }
    if dialect.calls().is_none() {
        return Err(ApiError::bad_field(
            "tools",
            "\"tools\" is not supported by this model: it was not made to call tools, or does so in \
             a form that Polder does not know; send \"tool_choice\": \"none\" or leave them out.",
        )
        .code("unsupported_parameter"));
    }
    refuse_to_force(&wanted.choice)?;
    Ok(Some(Arc::new(Tools::new(&wanted.tools))))
}

/// To make a model call a tool its words must be held to a grammar.
fn refuse_to_force(choice: &ToolChoice) -> Result<(), ApiError> {
    let told = match choice {
        ToolChoice::Auto => return Ok(()),
        ToolChoice::Required => "\"required\"".to_owned(),
        ToolChoice::Named(name) => format!("the function \"{name}\""),
    };
    Err(ApiError::bad_field(
        "tool_choice",
        format!(
            "\"tool_choice\" cannot be {told} here: this engine cannot make a model call a tool \
             yet; send \"auto\" and ask for the call in a message."
        ),
    )
    .code("unsupported_parameter"))
}

/// How the replies to a prompt are read; None where all of a reply is content. `think_not` is how
/// the endpoint asks a model not to think.
pub(crate) fn reply_form(
    engine: &Engine,
    prompt: &[TokenId],
    tools: Option<Arc<Tools>>,
    parallel: bool,
    format: Option<&Format>,
    think_not: &str,
) -> Result<Option<ReplyForm>, ApiError> {
    let thinking = begins_thinking(engine, prompt);
    if let Some(format) = format {
        // An answer of a certain form is content from its first word on.
        check_form(&format.field, tools.is_some(), thinking, think_not)?;
        return Ok(None);
    }
    let taken_apart = engine.dialect.thinks() || tools.is_some();
    let form = ReplyForm { dialect: engine.dialect.clone(), tools, thinking, one_call: !parallel };
    Ok(Some(form).filter(|_| taken_apart))
}

/// A form that `field` asks for holds for all that the model says: it can neither call nor think beside it.
fn check_form(field: &str, tools: bool, thinking: bool, think_not: &str) -> Result<(), ApiError> {
    let why = match (tools, thinking) {
        (true, _) => "cannot be honoured beside \"tools\"; send one of them".to_owned(),
        (_, true) => {
            format!("cannot be honoured where the model thinks first; send {think_not} with it")
        }
        _ => return Ok(()),
    };
    let message = format!("\"{field}\" {why}.");
    Err(ApiError::bad_field(field, message).code("unsupported_parameter"))
}

/// Whether the prompt ends with the mark that begins the model's thoughts.
pub(crate) fn begins_thinking(engine: &Engine, prompt: &[TokenId]) -> bool {
    /// Tokens that such a mark and the white space after it may take.
    const MARK: usize = 32;
    let end = &prompt[prompt.len().saturating_sub(MARK)..];
    engine.dialect.begins_thinking(&engine.tokenizer.decode(end))
}
