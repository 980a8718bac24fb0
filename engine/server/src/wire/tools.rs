//! The tools of a chat request, and what those of other requests have in common with them.

use serde_json::{Value, json};

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
    /// Which of them are to be called with arguments that follow their schemas, by their places.
    pub strict: Vec<usize>,
    /// What the endpoint calls the parts of a tool.
    pub parts: &'static Parts,
    /// Whether and which the model calls.
    pub choice: ToolChoice,
    /// It may call several in one answer.
    pub parallel: bool,
}

/// What an endpoint calls the parts of a tool, behind `tools[…].`.
#[derive(Debug, PartialEq, Eq)]
pub struct Parts {
    /// The schema of its arguments.
    pub schema: &'static str,
    /// Whether they must follow it.
    pub strict: &'static str,
}

/// Chat completions.
const PARTS: Parts = Parts { schema: "function.parameters", strict: "function.strict" };

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
    let mut tools = parse_list(fields)?;
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
        Some(_) if tools.is_empty() => return Err(nothing_to_choose(fields, "\"none\"")),
        Some(Value::String(word)) if word == "required" => ToolChoice::Required,
        Some(choice) => ToolChoice::Named(parse_choice(&choice, &tools)?),
    };
    let strict = |index: &usize| tools[*index]["function"]["strict"] == true;
    let strict = (0..tools.len()).filter(strict).collect();
    let parallel = fields.boolean("parallel_tool_calls")?.unwrap_or(true);
    Ok(ToolUse { tools, strict, parts: &PARTS, choice, parallel })
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

/// What stands in `tools`.
pub(crate) fn take_list(fields: &mut Fields) -> Result<Vec<Value>, ApiError> {
    match fields.take("tools") {
        None => Ok(Vec::new()),
        Some(Value::Array(list)) if list.len() <= MOST_TOOLS => Ok(list),
        Some(_) => Err(ApiError::bad_field(
            "tools",
            format!("\"tools\" must be a list of at most {MOST_TOOLS} tools."),
        )),
    }
}

/// Tools that are written flat, as chat templates want them, and the places of those that are strict.
/// `check` looks at what else the endpoint knows of a tool.
pub(crate) fn read_flat(
    list: Vec<Value>,
    parts: &Parts,
    ignored: &mut Ignored,
    check: impl Fn(&str, &mut Fields, &mut Ignored) -> Result<(), ApiError>,
) -> Result<(Vec<Value>, Vec<usize>), ApiError> {
    let (mut tools, mut strict) = (Vec::with_capacity(list.len()), Vec::new());
    for (index, tool) in list.into_iter().enumerate() {
        let path = format!("tools[{index}]");
        let mut tool = Fields::nested(tool, &path, "tools[]")?;
        check(&path, &mut tool, ignored)?;
        let name = tool.string("name")?.unwrap_or_default();
        check_name(&tool.name("name"), &name)?;
        let description = tool.string("description")?;
        let schema = tool.take(parts.schema);
        check_schema(&tool.name(parts.schema), schema.as_ref())?;
        if tool.boolean(parts.strict)? == Some(true) {
            strict.push(index);
        }
        tool.finish(ignored);
        let mut function = json!({"name": name});
        if let Some(description) = description {
            function["description"] = description.into();
        }
        if let Some(schema) = schema {
            function["parameters"] = schema;
        }
        tools.push(json!({"type": "function", "function": function}));
    }
    check_distinct(&tools, "name")?;
    Ok((tools, strict))
}

/// Tools as chat templates want them, each of another name; `field` is where a name stands in the
/// request's own form.
fn check_distinct(tools: &[Value], field: &str) -> Result<(), ApiError> {
    let mut names: Vec<&str> = Vec::with_capacity(tools.len());
    for (index, tool) in tools.iter().enumerate() {
        let name = tool["function"]["name"].as_str().unwrap_or_default();
        if names.contains(&name) {
            return Err(ApiError::bad_field(
                &format!("tools[{index}].{field}"),
                format!("\"tools\" has two functions \"{name}\"; give each a name of its own."),
            ));
        }
        names.push(name);
    }
    Ok(())
}

/// Refuses a name that a tool cannot have; it stands in `field`.
fn check_name(field: &str, name: &str) -> Result<(), ApiError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if (1..=LONGEST_NAME).contains(&name.len()) && name.chars().all(allowed) {
        return Ok(());
    }
    Err(ApiError::bad_field(
        field,
        format!(
            "\"{field}\" must be at most {LONGEST_NAME} letters, digits, underscores, hyphens \
             and dots."
        ),
    ))
}

/// Refuses what is no schema of a tool's arguments; it stands in `field`.
fn check_schema(field: &str, schema: Option<&Value>) -> Result<(), ApiError> {
    if schema.is_none_or(|schema| schema.is_object() || schema.is_null()) {
        return Ok(());
    }
    let message = format!("\"{field}\" must be a JSON schema, an object.");
    Err(ApiError::bad_field(field, message))
}

/// The refusal of a choice where there is none; `none` is how the endpoint says so.
pub(crate) fn nothing_to_choose(fields: &Fields, none: &str) -> ApiError {
    let what = format!("there are no \"tools\" to choose from, leave it out or send {none}");
    fields.unsupported("tool_choice", &what)
}

/// The refusal of a choice that is not on offer.
pub(crate) fn unknown_function(name: &str) -> ApiError {
    ApiError::bad_field(
        "tool_choice",
        format!(
            "\"tool_choice\" names the function \"{}\", which is not in \"tools\".",
            shortened(name)
        ),
    )
}

fn parse_list(fields: &mut Fields) -> Result<Vec<Value>, ApiError> {
    let list = take_list(fields)?;
    for (index, tool) in list.iter().enumerate() {
        check_tool(index, tool)?;
    }
    check_distinct(&list, "function.name")?;
    Ok(list)
}

/// Refuses a tool that cannot be offered.
fn check_tool(index: usize, tool: &Value) -> Result<(), ApiError> {
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
    let part = |name: &str| function.and_then(|function| function.get(name));
    let name = part("name").and_then(Value::as_str).unwrap_or_default();
    check_name(&format!("{path}.function.name"), name)?;
    check_schema(&format!("{path}.function.parameters"), part("parameters"))
}

fn parse_choice(choice: &Value, tools: &[Value]) -> Result<String, ApiError> {
    let name = choice.get("function").and_then(|function| function.get("name"));
    let name = name.and_then(Value::as_str).filter(|_| choice["type"] == "function");
    match name {
        Some(name) if tools.iter().any(|tool| tool["function"]["name"] == name) => {
            Ok(name.to_owned())
        }
        Some(name) => Err(unknown_function(name)),
        None => Err(ApiError::bad_field(
            "tool_choice",
            "\"tool_choice\" must be \"auto\", \"none\", \"required\" or {\"type\": \"function\", \
             \"function\": {\"name\": …}}.",
        )),
    }
}
