//! The tools of a request to the Responses API.

use serde_json::{Map, Value};

use crate::wire::error::{ApiError, shortened};
use crate::wire::fields::{Fields, Ignored};
use crate::wire::tools::{
    Parts, ToolChoice, ToolUse, nothing_to_choose, read_flat, take_list, unknown_function,
};

const PARTS: Parts = Parts { schema: "parameters", strict: "strict" };

/// Reads `tools`, `tool_choice` and `parallel_tool_calls`, and notes in `repeated` what the answer
/// says of them.
pub(crate) fn parse_tools(
    fields: &mut Fields,
    repeated: &mut Map<String, Value>,
    ignored: &mut Ignored,
) -> Result<ToolUse, ApiError> {
    let list = take_list(fields)?;
    let choice = fields.take("tool_choice").unwrap_or_else(|| "auto".into());
    let parallel = fields.boolean("parallel_tool_calls")?.unwrap_or(true);
    repeated.insert("tools".into(), list.clone().into());
    repeated.insert("tool_choice".into(), choice.clone());
    repeated.insert("parallel_tool_calls".into(), parallel.into());
    let list = match choice == "none" && !list.is_empty() {
        true => {
            ignored.add("tools".into());
            Vec::new()
        }
        false => list,
    };
    let (tools, strict) = read_flat(list, &PARTS, ignored, check_kind)?;
    let choice = parse_choice(fields, &choice, &tools)?;
    Ok(ToolUse { tools, strict, parts: &PARTS, choice, parallel })
}

fn parse_choice(fields: &Fields, choice: &Value, tools: &[Value]) -> Result<ToolChoice, ApiError> {
    let named = choice.get("name").and_then(Value::as_str);
    match (choice.as_str(), named.filter(|_| choice["type"] == "function")) {
        (Some("auto" | "none"), _) => Ok(ToolChoice::Auto),
        (Some("required"), _) | (_, Some(_)) if tools.is_empty() => {
            Err(nothing_to_choose(fields, "\"none\""))
        }
        (Some("required"), _) => Ok(ToolChoice::Required),
        (_, Some(name)) if tools.iter().any(|tool| tool["function"]["name"] == name) => {
            Ok(ToolChoice::Named(name.to_owned()))
        }
        (_, Some(name)) => Err(unknown_function(name)),
        _ => Err(ApiError::bad_field(
            "tool_choice",
            "\"tool_choice\" must be \"auto\", \"none\", \"required\" or {\"type\": \"function\", \
             \"name\": …}.",
        )),
    }
}

/// Refuses a tool that is no function.
fn check_kind(path: &str, tool: &mut Fields, ignored: &mut Ignored) -> Result<(), ApiError> {
    let kind = tool.string("type")?.unwrap_or_default();
    if kind != "function" {
        return Err(ApiError::bad_field(
            path,
            format!(
                "\"{path}\" is of the type \"{}\", which is not supported here; send functions \
                 only.",
                shortened(&kind)
            ),
        )
        .code("unsupported_parameter"));
    }
    tool.ignore("defer_loading", |defer| *defer == false, ignored);
    Ok(())
}
