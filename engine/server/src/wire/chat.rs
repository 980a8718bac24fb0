//! `POST /v1/chat/completions`: the request.

use serde_json::{Map, Value};

use crate::wire::error::{ApiError, shortened};
use crate::wire::fields::{Fields, Ignored};
use crate::wire::knobs::{self, Knobs, MOST_LOGPROBS};
use crate::wire::tools::{ToolUse, parse_tools};
use crate::wire::{noise, table};

/// A chat request that can be served, as far as that can be told without the model.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatRequest {
    /// The model's name.
    pub model: String,
    /// The messages as chat templates want them: `role` is one of system, user, assistant and
    /// tool, `content` a string.
    pub messages: Vec<Map<String, Value>>,
    /// How to answer.
    pub knobs: Knobs,
    /// How much the model should think first, where the template knows about that.
    pub reasoning_effort: Option<String>,
    /// Further variables of the template.
    pub template_variables: Map<String, Value>,
    /// The tools that the model may call.
    pub tool_use: ToolUse,
    /// Fields that had no effect, to be named in the answer.
    pub ignored: Vec<String>,
}

/// Reads a request. A strict client is refused where another's unknown field is ignored.
pub fn parse_chat(body: &[u8], strict: bool) -> Result<ChatRequest, ApiError> {
    let mut fields = Fields::parse(body)?;
    let mut ignored = Ignored::default();
    let model = model(&mut fields)?;
    let mut messages = parse_messages(&mut fields, &mut ignored)?;
    noise::quieten(&mut messages);
    let mut knobs = knobs::parse(&mut fields, &mut ignored)?;
    knobs.max_tokens =
        knobs::parse_max_tokens(&mut fields, &["max_completion_tokens", "max_tokens"], 1)?;
    knobs.sampling.logprobs = parse_logprobs(&mut fields)?;
    let reasoning_effort = fields.string("reasoning_effort")?;
    let tool_use = parse_tools(&mut fields, &mut ignored)?;
    if !tool_use.tools.is_empty() && knobs.sampling.logprobs.is_some() {
        return Err(fields.unsupported("logprobs", "leave it out where there are \"tools\""));
    }
    let template_variables = parse_template_variables(&mut fields)?;
    if fields.boolean("store")? == Some(true) {
        ignored.add("store".into()); // Nothing is kept here.
    }
    table::CHAT.settle(&mut fields)?;
    fields.finish(&mut ignored);
    let ignored = ignored.finish(strict)?;
    Ok(ChatRequest {
        model,
        messages,
        knobs,
        reasoning_effort,
        template_variables,
        tool_use,
        ignored,
    })
}

pub(crate) fn model(fields: &mut Fields) -> Result<String, ApiError> {
    fields.string("model")?.ok_or_else(|| {
        ApiError::bad_field(
            "model",
            "\"model\" is missing; send the name of a model from /v1/models.",
        )
    })
}

fn parse_logprobs(fields: &mut Fields) -> Result<Option<u8>, ApiError> {
    let wanted = fields.boolean("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=MOST_LOGPROBS)?;
    match (wanted, top) {
        (false, Some(1..)) => Err(ApiError::bad_field(
            "top_logprobs",
            "\"top_logprobs\" needs \"logprobs\": true; send both.",
        )),
        (false, _) => Ok(None),
        (true, top) => Ok(Some(top.unwrap_or(0) as u8)),
    }
}

/// Variables for the chat template, as other engines take them; most of all `enable_thinking`.
fn parse_template_variables(fields: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    /// What the engine itself says to the template.
    const OWN: [&str; 6] =
        ["messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "documents"];
    let name = "chat_template_kwargs";
    let variables = match fields.take(name) {
        None => return Ok(Map::new()),
        Some(Value::Object(variables)) => variables,
        Some(_) => return Err(ApiError::bad_field(name, format!("\"{name}\" must be an object."))),
    };
    match OWN.iter().find(|own| variables.contains_key(**own)) {
        None => Ok(variables),
        Some(own) => Err(ApiError::bad_field(
            &format!("{name}.{own}"),
            format!("\"{name}.{own}\" is not for a request to set; leave it out."),
        )),
    }
}

fn parse_messages(
    fields: &mut Fields,
    ignored: &mut Ignored,
) -> Result<Vec<Map<String, Value>>, ApiError> {
    let wrong = || {
        ApiError::bad_field(
            "messages",
            "\"messages\" must be a list with at least one {\"role\": …, \"content\": …}.",
        )
    };
    match fields.take("messages") {
        Some(Value::Array(list)) if !list.is_empty() => list
            .into_iter()
            .enumerate()
            .map(|(index, message)| parse_message(index, message, ignored))
            .collect(),
        _ => Err(wrong()),
    }
}

fn parse_message(
    index: usize,
    message: Value,
    ignored: &mut Ignored,
) -> Result<Map<String, Value>, ApiError> {
    let path = format!("messages[{index}]");
    let mut fields = Fields::nested(message, &path, "messages[]")?;
    let role = match fields.string("role")?.as_deref() {
        // The newer name for the same thing; templates know the older one.
        Some("system" | "developer") => "system",
        Some("user") => "user",
        Some("assistant") => "assistant",
        Some("tool") => "tool",
        other => {
            let told = other.map_or("missing".into(), |role| format!("\"{}\"", shortened(role)));
            return Err(ApiError::bad_field(
                &fields.name("role"),
                format!(
                    "\"{path}.role\" is {told}; send system, developer, user, assistant or tool."
                ),
            ));
        }
    };
    fields.refuse("audio", |_| false, "send the text of it instead")?;
    fields.refuse("function_call", |_| false, "send \"tool_calls\" instead")?;
    let calls = parse_tool_calls(&mut fields, role)?;
    let refusal = fields.string("refusal")?;
    let content = match fields.take("content") {
        Some(content) => parse_content(&fields.name("content"), content, ignored)?,
        None => match (refusal, calls.is_some()) {
            (Some(refusal), _) => refusal,
            (None, true) => String::new(),
            (None, false) => {
                return Err(ApiError::bad_field(
                    &fields.name("content"),
                    format!("\"{path}.content\" is missing; send a string."),
                ));
            }
        },
    };
    let mut parsed = Map::new();
    parsed.insert("role".into(), role.into());
    parsed.insert("content".into(), content.into());
    if let Some(calls) = calls {
        parsed.insert("tool_calls".into(), calls);
    }
    for field in ["name", "tool_call_id", "reasoning_content"] {
        if let Some(value) = fields.string(field)? {
            parsed.insert(field.into(), value.into());
        }
    }
    fields.accept(&["annotations"]);
    fields.finish(ignored);
    Ok(parsed)
}

/// A string, or text parts, which become one string.
fn parse_content(path: &str, content: Value, ignored: &mut Ignored) -> Result<String, ApiError> {
    let parts = match content {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        _ => {
            return Err(ApiError::bad_field(
                path,
                format!("\"{path}\" must be a string or a list of parts."),
            ));
        }
    };
    let mut texts = Vec::with_capacity(parts.len());
    for (index, part) in parts.into_iter().enumerate() {
        let path = format!("{path}[{index}]");
        let mut part = Fields::nested(part, &path, "messages[].content[]")?;
        let kind = part.string("type")?.unwrap_or_default();
        let text = match kind.as_str() {
            "text" => part.string("text")?,
            "refusal" => part.string("refusal")?,
            other => {
                return Err(ApiError::bad_field(
                    &path,
                    format!(
                        "\"{path}\" is of the type \"{}\", which this model cannot read; send \
                         text parts only.",
                        shortened(other)
                    ),
                )
                .code("unsupported_content"));
            }
        };
        texts.push(text.ok_or_else(|| {
            ApiError::bad_field(&path, format!("\"{path}\" has no text; send \"{kind}\": \"…\"."))
        })?);
        // The prefix cache needs no hint.
        part.accept(&["cache_control", "prompt_cache_breakpoint"]);
        part.finish(ignored);
    }
    Ok(texts.join("\n"))
}

/// Calls that the model made earlier. Templates want their arguments as an object.
fn parse_tool_calls(fields: &mut Fields, role: &str) -> Result<Option<Value>, ApiError> {
    let name = fields.name("tool_calls");
    let wrong = |what: &str| ApiError::bad_field(&name, format!("\"{name}\" {what}."));
    let mut calls = match fields.take("tool_calls") {
        None => return Ok(None),
        Some(Value::Array(list)) if list.is_empty() => return Ok(None),
        Some(Value::Array(_)) if role != "assistant" => {
            return Err(wrong("belongs to messages of the assistant; leave it out"));
        }
        Some(Value::Array(list)) => list,
        Some(_) => return Err(wrong("must be a list")),
    };
    for call in &mut calls {
        // Not by index: what is not an object must be refused, and indexing it panics.
        let function = call.get_mut("function").and_then(Value::as_object_mut);
        let function =
            function.filter(|function| function.get("name").is_some_and(Value::is_string));
        let Some(function) = function else {
            return Err(wrong("must hold {\"function\": {\"name\": …, \"arguments\": …}} objects"));
        };
        let object = match function.get("arguments") {
            // Some clients say so that there were none.
            None | Some(Value::Null) => Some(Map::new().into()),
            Some(Value::String(text)) if text.trim().is_empty() => Some(Map::new().into()),
            Some(Value::String(text)) => {
                serde_json::from_str(text).ok().filter(|arguments: &Value| arguments.is_object())
            }
            Some(_) => None,
        };
        if let Some(object) = object {
            function.insert("arguments".into(), object);
        }
    }
    Ok(Some(Value::Array(calls)))
}
