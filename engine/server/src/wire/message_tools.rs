//! The tools of a request to Anthropic's API.

use serde_json::{Value, json};

use crate::wire::error::{ApiError, shortened};
use crate::wire::fields::{Fields, Ignored};
use crate::wire::tools::{
    ToolChoice, ToolUse, check_distinct, check_name, check_schema, nothing_to_choose, take_list,
    unknown_function,
};

/// Reads `tools` and `tool_choice`.
pub(crate) fn parse_tools(fields: &mut Fields, ignored: &mut Ignored) -> Result<ToolUse, ApiError> {
    let list = take_list(fields)?;
    let (kind, name, parallel) = parse_choice(fields, ignored)?;
    if kind == "none" {
        if !list.is_empty() {
            ignored.add("tools".into());
        }
        return Ok(ToolUse { tools: Vec::new(), choice: ToolChoice::Auto, parallel });
    }
    let mut strict = false;
    let mut tools = Vec::with_capacity(list.len());
    for (index, tool) in list.into_iter().enumerate() {
        tools.push(parse_tool(index, tool, &mut strict, ignored)?);
    }
    check_distinct(&tools, "name")?;
    let choice = match (kind.as_str(), name) {
        ("auto", _) => ToolChoice::Auto,
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
    if strict && choice == ToolChoice::Auto {
        // Nothing holds the model to the schema.
        ignored.add("tools[].strict".into());
    }
    Ok(ToolUse { tools, choice, parallel })
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

/// One tool as chat templates want it.
fn parse_tool(
    index: usize,
    tool: Value,
    strict: &mut bool,
    ignored: &mut Ignored,
) -> Result<Value, ApiError> {
    let path = format!("tools[{index}]");
    let mut tool = Fields::nested(tool, &path, "tools[]")?;
    if let Some(kind) = tool.string("type")?.filter(|kind| kind != "custom") {
        return Err(ApiError::bad_field(
            &path,
            format!(
                "\"{path}\" is of the type \"{}\", which this box does not run and its models do \
                 not know; send tools with a \"name\" and an \"input_schema\" only.",
                shortened(&kind)
            ),
        )
        .code("unsupported_parameter"));
    }
    let name = tool.string("name")?.unwrap_or_default();
    check_name(&tool.name("name"), &name)?;
    let description = tool.string("description")?;
    let schema = tool.take("input_schema");
    check_schema(&tool.name("input_schema"), schema.as_ref())?;
    *strict |= tool.boolean("strict")?.unwrap_or(false);
    // Arguments are sent as they grow in any case.
    tool.accept(&["cache_control", "eager_input_streaming"]);
    tool.ignore("defer_loading", |defer| *defer == false, ignored);
    tool.ignore("allowed_callers", |callers| *callers == json!(["direct"]), ignored);
    tool.finish(ignored);
    let mut function = json!({"name": name});
    if let Some(description) = description {
        function["description"] = description.into();
    }
    if let Some(schema) = schema {
        function["parameters"] = schema;
    }
    Ok(json!({"type": "function", "function": function}))
}
