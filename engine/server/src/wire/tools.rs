//! The tools of a chat request.

use serde_json::Value;

use crate::wire::error::{ApiError, shortened};
use crate::wire::fields::{Fields, Ignored};

/// Most tools in one request.
const MOST_TOOLS: usize = 512;
/// Longest name of a tool.
const LONGEST_NAME: usize = 128;

/// The tools on offer, and how they may be called.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolUse {
    /// As chat templates want them: `{"type": "function", "function": {"name": …, …}}`.
    pub tools: Vec<Value>,
    /// Whether and which the model calls.
    pub choice: ToolChoice,
    /// It may call several in one answer.
    pub parallel: bool,
}

/// Whether and which tool the model calls. Where it may call none, no tools are on offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolChoice {
    /// As it likes.
    Auto,
    /// One at least.
    Required,
    /// This one.
    Named(String),
}

/// Reads `tools`, `tool_choice`, `parallel_tool_calls` and what they were called before.
pub(crate) fn parse_tools(fields: &mut Fields, ignored: &mut Ignored) -> Result<ToolUse, ApiError> {
    refuse_the_older_names(fields, ignored)?;
    let mut tools = parse_list(fields, ignored)?;
    let choice = match fields.take("tool_choice") {
        None => ToolChoice::Auto,
        Some(Value::String(word)) if word == "auto" => ToolChoice::Auto,
        Some(Value::String(word)) if word == "none" => {
            if !tools.is_empty() {
                ignored.add("tools".into());
                tools.clear();
            }
            ToolChoice::Auto
        }
        Some(_) if tools.is_empty() => {
            return Err(fields.unsupported(
                "tool_choice",
                "there are no \"tools\" to choose from, leave it out or send \"none\"",
            ));
        }
        Some(Value::String(word)) if word == "required" => ToolChoice::Required,
        Some(choice) => ToolChoice::Named(parse_choice(&choice, &tools)?),
    };
    let parallel = fields.boolean("parallel_tool_calls")?.unwrap_or(true);
    Ok(ToolUse { tools, choice, parallel })
}

fn refuse_the_older_names(fields: &mut Fields, ignored: &mut Ignored) -> Result<(), ApiError> {
    let nothing = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
    let none = fields.take("function_call");
    let is_none = none.as_ref().is_some_and(|choice| choice == "none");
    match fields.take("functions").filter(|list| !nothing(list)) {
        Some(_) if is_none => ignored.add("functions".into()),
        Some(_) => return Err(fields.unsupported("functions", "send \"tools\" instead")),
        None if none.is_some_and(|choice| choice != "none" && choice != "auto") => {
            return Err(fields.unsupported("function_call", "send \"tool_choice\" instead"));
        }
        None => {}
    }
    Ok(())
}

fn parse_list(fields: &mut Fields, ignored: &mut Ignored) -> Result<Vec<Value>, ApiError> {
    let list = match fields.take("tools") {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) if list.len() <= MOST_TOOLS => list,
        Some(_) => {
            return Err(ApiError::bad_field(
                "tools",
                format!("\"tools\" must be a list of at most {MOST_TOOLS} tools."),
            ));
        }
    };
    let mut names: Vec<&str> = Vec::with_capacity(list.len());
    for (index, tool) in list.iter().enumerate() {
        let name = check_tool(index, tool, ignored)?;
        if names.contains(&name) {
            return Err(ApiError::bad_field(
                &format!("tools[{index}].function.name"),
                format!("\"tools\" has two functions \"{name}\"; give each a name of its own."),
            ));
        }
        names.push(name);
    }
    Ok(list)
}

/// A tool's name, if the tool is one that can be offered.
fn check_tool<'a>(
    index: usize,
    tool: &'a Value,
    ignored: &mut Ignored,
) -> Result<&'a str, ApiError> {
    let path = format!("tools[{index}]");
    match tool.get("type").and_then(Value::as_str) {
        Some("function") => {}
        Some(other) => {
            return Err(ApiError::bad_field(
                &path,
                format!(
                    "\"{path}\" is of the type \"{}\", which is not supported here; send \
                     functions only.",
                    shortened(other)
                ),
            )
            .code("unsupported_parameter"));
        }
        None => {
            return Err(ApiError::bad_field(
                &path,
                format!(
                    "\"{path}\" must be {{\"type\": \"function\", \"function\": {{\"name\": …}}}}."
                ),
            ));
        }
    }
    let function = tool.get("function").and_then(Value::as_object);
    let name = function.and_then(|function| function.get("name")).and_then(Value::as_str);
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let fits = |name: &&str| (1..=LONGEST_NAME).contains(&name.len()) && name.chars().all(allowed);
    let (Some(function), Some(name)) = (function, name.filter(fits)) else {
        let name = format!("{path}.function.name");
        return Err(ApiError::bad_field(
            &name,
            format!(
                "\"{name}\" must be at most {LONGEST_NAME} letters, digits, underscores, hyphens \
                 and dots."
            ),
        ));
    };
    let parameters = function.get("parameters").filter(|schema| !schema.is_null());
    if parameters.is_some_and(|schema| !schema.is_object()) {
        let name = format!("{path}.function.parameters");
        let message = format!("\"{name}\" must be a JSON schema, an object.");
        return Err(ApiError::bad_field(&name, message));
    }
    if function.get("strict").is_some_and(|strict| strict == true) {
        // Nothing holds the model to the schema.
        ignored.add("tools[].function.strict".into());
    }
    Ok(name)
}

fn parse_choice(choice: &Value, tools: &[Value]) -> Result<String, ApiError> {
    let name = choice.get("function").and_then(|function| function.get("name"));
    let name = name.and_then(Value::as_str).filter(|_| choice["type"] == "function");
    match name {
        Some(name) if tools.iter().any(|tool| tool["function"]["name"] == name) => {
            Ok(name.to_owned())
        }
        Some(name) => Err(ApiError::bad_field(
            "tool_choice",
            format!(
                "\"tool_choice\" names the function \"{}\", which is not in \"tools\".",
                shortened(name)
            ),
        )),
        None => Err(ApiError::bad_field(
            "tool_choice",
            "\"tool_choice\" must be \"auto\", \"none\", \"required\" or {\"type\": \"function\", \
             \"function\": {\"name\": …}}.",
        )),
    }
}
