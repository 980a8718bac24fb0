//! The tools of a request to Anthropic's API.

use serde_json::json;

use crate::wire::error::{ApiError, shortened};
use crate::wire::fields::{Fields, Ignored};
use crate::wire::tools::{
    Parts, ToolChoice, ToolUse, nothing_to_choose, read_flat, take_list, unknown_function,
};

const PARTS: Parts = Parts { schema: "input_schema", strict: "strict" };

/// Reads `tools` and `tool_choice`.
pub(crate) fn parse_tools(fields: &mut Fields, ignored: &mut Ignored) -> Result<ToolUse, ApiError> {
    let list = take_list(fields)?;
    let (kind, name, parallel) = parse_choice(fields, ignored)?;
    let list = match kind == "none" && !list.is_empty() {
        true => {
            ignored.add("tools".into());
            Vec::new()
        }
        false => list,
    };
    let (tools, strict) = read_flat(list, &PARTS, ignored, check_kind)?;
    let choice = match (kind.as_str(), name) {
        ("auto" | "none", _) => ToolChoice::Auto,
        ("any" | "tool", _) if tools.is_empty() => {
            return Err(nothing_to_choose(fields, "{\"type\": \"none\"}"));
        }
        ("any", _) => ToolChoice::Required,
        ("tool", Some(name)) if tools.iter().any(|tool| tool["function"]["name"] == *name) => {
            ToolChoice::Named(name)
        }
        ("tool", Some(name)) => return Err(unknown_function(&name)),
        _ => {
            return Err(ApiError::bad_field(
                "tool_choice",
                "\"tool_choice\" must be of the type auto, any, none, or tool with a \"name\".",
            ));
        }
    };
    Ok(ToolUse { tools, strict, parts: &PARTS, choice, parallel })
}

/// The choice's type, the tool that it names, and whether several may be called.
fn parse_choice(
    fields: &mut Fields,
    ignored: &mut Ignored,
) -> Result<(String, Option<String>, bool), ApiError> {
    let Some(choice) = fields.take("tool_choice") else { return Ok(("auto".into(), None, true)) };
    let mut choice = Fields::nested(choice, "tool_choice", "tool_choice")?;
    let kind = choice.string("type")?.unwrap_or_default();
    let name = choice.string("name")?;
    let one = choice.boolean("disable_parallel_tool_use")?.unwrap_or(false);
    choice.finish(ignored);
    Ok((kind, name, !one))
}

/// Refuses a tool that the box would have to run, and reads what says nothing here.
fn check_kind(path: &str, tool: &mut Fields, ignored: &mut Ignored) -> Result<(), ApiError> {
    if let Some(kind) = tool.string("type")?.filter(|kind| kind != "custom") {
        return Err(ApiError::bad_field(
            path,
            format!(
                "\"{path}\" is of the type \"{}\", which this box does not run and its models do \
                 not know; send tools with a \"name\" and an \"input_schema\" only.",
                shortened(&kind)
            ),
        )
        .code("unsupported_parameter"));
    }
    // Arguments are sent as they grow in any case.
    tool.accept(&["cache_control", "eager_input_streaming"]);
    tool.ignore("defer_loading", |defer| *defer == false, ignored);
    tool.ignore("allowed_callers", |callers| *callers == json!(["direct"]), ignored);
    Ok(())
}
