//! Tools stand in no request yet but a chat's. The only place that refuses them elsewhere.

use serde_json::Value;

use crate::wire::error::ApiError;
use crate::wire::fields::{Fields, Ignored};

/// Refuses tools, unless they are not to be called; `none` is how this endpoint says that.
pub(crate) fn refuse(
    fields: &mut Fields,
    none: &str,
    ignored: &mut Ignored,
) -> Result<(), ApiError> {
    let tools =
        fields.take("tools").filter(|tools| !tools.as_array().is_some_and(Vec::is_empty)).is_some();
    let choice = fields.take("tool_choice");
    let kind = choice.as_ref().map(|choice| {
        choice.as_str().or_else(|| choice.get("type").and_then(Value::as_str)).unwrap_or_default()
    });
    match (tools, kind) {
        (true, Some("none")) => {
            ignored.add("tools".into());
            Ok(())
        }
        (true, _) => Err(fields.unsupported(
            "tools",
            &format!(
                "this engine cannot call tools yet, send \"tool_choice\": {none} or leave them out"
            ),
        )),
        (false, None | Some("none" | "auto")) => Ok(()),
        (false, Some(_)) => {
            Err(fields.unsupported("tool_choice", &format!("leave it out or send {none}")))
        }
    }
}
