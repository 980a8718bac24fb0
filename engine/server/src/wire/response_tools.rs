//! The tools of a request to the Responses API.

use serde_json::{Map, Value, json};

use crate::wire::error::{ApiError, shortened};
use crate::wire::fields::{Fields, Ignored};
use crate::wire::tools::{
    ToolChoice, ToolUse, check_distinct, check_name, check_schema, nothing_to_choose, take_list,
    unknown_function,
};

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
    if choice == "none" {
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
    let choice = parse_choice(fields, &choice, &tools)?;
    if strict && choice == ToolChoice::Auto {
        // Nothing holds the model to the schema.
        ignored.add("tools[].strict".into());
    }
    Ok(ToolUse { tools, choice, parallel })
}

fn parse_choice(fields: &Fields, choice: &Value, tools: &[Value]) -> Result<ToolChoice, ApiError> {
    let named = choice.get("name").and_then(Value::as_str);
    match (choice.as_str(), named.filter(|_| choice["type"] == "function")) {
        (Some("auto"), _) => Ok(ToolChoice::Auto),
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

/// One tool as chat templates want it.
fn parse_tool(
    index: usize,
    tool: Value,
    strict: &mut bool,
    ignored: &mut Ignored,
) -> Result<Value, ApiError> {
    let path = format!("tools[{index}]");
    let mut tool = Fields::nested(tool, &path, "tools[]")?;
    let kind = tool.string("type")?.unwrap_or_default();
    if kind != "function" {
        return Err(ApiError::bad_field(
            &path,
            format!(
                "\"{path}\" is of the type \"{}\", which is not supported here; send functions \
                 only.",
                shortened(&kind)
            ),
        )
        .code("unsupported_parameter"));
    }
    let name = tool.string("name")?.unwrap_or_default();
    check_name(&tool.name("name"), &name)?;
    let description = tool.string("description")?;
    let schema = tool.take("parameters");
    check_schema(&tool.name("parameters"), schema.as_ref())?;
    *strict |= tool.boolean("strict")?.unwrap_or(false);
    tool.ignore("defer_loading", |defer| *defer == false, ignored);
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
