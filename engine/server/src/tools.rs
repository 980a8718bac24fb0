//! Which tools a request offers to the model, and whether the model can call them.

use std::sync::Arc;

use polder_chat::reply::{Dialect, Tools};

use crate::wire::error::ApiError;
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
