//! `POST /v1/responses`: the request.

use polder_backend::Sampling;
use serde_json::{Map, Value, json};

use crate::wire::chat::model;
use crate::wire::error::{ApiError, shortened};
use crate::wire::fields::{Fields, Ignored};
use crate::wire::format::{self, Format};
use crate::wire::knobs::{self, Knobs, MOST_LOGPROBS};
use crate::wire::tools::ToolUse;
use crate::wire::{noise, response, response_tools, table};

/// A request that can be served, as far as that can be told without the model.
#[derive(Debug, Clone, PartialEq)]
pub struct ResponsesRequest {
    /// The model's name.
    pub model: String,
    /// Instructions and input as chat templates want them.
    pub messages: Vec<Map<String, Value>>,
    /// How to answer.
    pub knobs: Knobs,
    /// The tools that the model may call.
    pub tool_use: ToolUse,
    /// How much to think, where the template knows about that.
    pub effort: Option<String>,
    /// What the answer repeats from the request.
    pub repeated: Map<String, Value>,
    /// Fields that had no effect, to be named in the answer.
    pub ignored: Vec<String>,
}

/// Reads a request. A strict client is refused where another's unknown field is ignored.
pub fn parse_responses(body: &[u8], strict: bool) -> Result<ResponsesRequest, ApiError> {
    let mut fields = Fields::parse(body)?;
    let mut ignored = Ignored::default();
    let model = model(&mut fields)?;
    let mut repeated = Map::new();
    let tool_use = response_tools::parse_tools(&mut fields, &mut repeated, &mut ignored)?;
    let instructions = fields.string("instructions")?;
    let mut messages = Vec::new();
    messages.extend(instructions.clone().map(|text| said("system", text)));
    parse_input(&mut fields, &mut messages, &mut ignored)?;
    noise::quieten(&mut messages);
    let mut knobs = parse_knobs(&mut fields, &mut ignored)?;
    let effort = parse_reasoning(&mut fields, &mut ignored)?;
    knobs.format = parse_text(&mut fields, &mut repeated, &mut ignored)?;
    knobs.sampling.logprobs = parse_logprobs(&mut fields)?;
    if fields.boolean("store")? == Some(true) {
        return Err(fields.unsupported("store", "no answer is stored here, send false"));
    }
    let metadata = match fields.take("metadata") {
        None => json!({}),
        Some(metadata @ Value::Object(_)) => metadata,
        Some(_) => {
            return Err(ApiError::bad_field("metadata", "\"metadata\" must be an object."));
        }
    };
    table::RESPONSES.settle(&mut fields)?;
    fields.finish(&mut ignored);
    let ignored = ignored.finish(strict)?;
    repeated.extend([
        ("instructions".into(), instructions.into()),
        ("max_output_tokens".into(), knobs.max_tokens.into()),
        ("metadata".into(), metadata),
        ("temperature".into(), knobs.sampling.temperature.into()),
        ("top_logprobs".into(), knobs.sampling.logprobs.unwrap_or(0).into()),
        ("top_p".into(), knobs.sampling.top_p.into()),
        ("reasoning".into(), json!({"effort": effort, "summary": null})),
    ]);
    Ok(ResponsesRequest { model, messages, knobs, tool_use, effort, repeated, ignored })
}

fn parse_knobs(fields: &mut Fields, ignored: &mut Ignored) -> Result<Knobs, ApiError> {
    let seed = fields.integer("seed", i64::MIN..=i64::MAX)?;
    let sampling = Sampling {
        temperature: fields.number("temperature", 0.0..=2.0)?.unwrap_or(1.0),
        top_p: fields.number("top_p", 0.0..=1.0)?.unwrap_or(1.0),
        top_k: fields.integer("top_k", -1..=i64::from(u32::MAX))?.unwrap_or(0).max(0) as u32,
        min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(0.0),
        seed: seed.unwrap_or(0) as u64,
        ..Sampling::greedy()
    };
    let max_tokens = knobs::parse_max_tokens(fields, &["max_output_tokens"], 1)?;
    let stream = fields.boolean("stream")?.unwrap_or(false);
    knobs::parse_stream_options(fields, stream, ignored)?;
    Ok(Knobs {
        sampling,
        seeded: seed.is_some(),
        max_tokens,
        stop: Vec::new(),
        ignore_eos: false,
        n: 1,
        stream,
        include_usage: false,
        format: None,
    })
}

fn parse_reasoning(fields: &mut Fields, ignored: &mut Ignored) -> Result<Option<String>, ApiError> {
    let Some(reasoning) = fields.take("reasoning") else { return Ok(None) };
    let mut reasoning = Fields::nested(reasoning, "reasoning", "reasoning")?;
    let effort = reasoning.string("effort")?;
    // What is left asks for summaries, which nobody writes here.
    reasoning.finish(ignored);
    Ok(effort)
}

/// Reads `text`, and notes in `repeated` what the answer says of it.
fn parse_text(
    fields: &mut Fields,
    repeated: &mut Map<String, Value>,
    ignored: &mut Ignored,
) -> Result<Option<Format>, ApiError> {
    let text = fields.take("text").unwrap_or_else(|| json!({}));
    let format = text.get("format").filter(|format| !format.is_null()).cloned();
    let format = format.unwrap_or_else(|| json!({"type": "text"}));
    repeated.insert("text".into(), json!({"format": format}));
    let mut text = Fields::nested(text, "text", "text")?;
    let format = format::parse_beside(&mut text, ignored)?;
    text.refuse(
        "verbosity",
        |word| word == "medium",
        "ask for short or long answers in a message instead",
    )?;
    text.finish(ignored);
    Ok(format)
}

/// How many other tokens to tell beside each, if any are asked for. What else the answer may be asked to
/// hold is about tools that are not there.
fn parse_logprobs(fields: &mut Fields) -> Result<Option<u8>, ApiError> {
    let top = fields.integer("top_logprobs", 0..=MOST_LOGPROBS)?;
    let list = match fields.take("include") {
        None => Vec::new(),
        Some(Value::Array(list)) if list.iter().all(Value::is_string) => list,
        Some(_) => {
            return Err(ApiError::bad_field("include", "\"include\" must be a list of strings."));
        }
    };
    match (list.iter().any(|what| what == "message.output_text.logprobs"), top) {
        (true, top) => Ok(Some(top.unwrap_or(0) as u8)),
        (false, None | Some(0)) => Ok(None),
        (false, _) => Err(ApiError::bad_field(
            "top_logprobs",
            "\"top_logprobs\" needs \"include\": [\"message.output_text.logprobs\"]; send both.",
        )),
    }
}

fn said(role: &str, content: String) -> Map<String, Value> {
    Map::from_iter([("role".into(), role.into()), ("content".into(), content.into())])
}

fn parse_input(
    fields: &mut Fields,
    messages: &mut Vec<Map<String, Value>>,
    ignored: &mut Ignored,
) -> Result<(), ApiError> {
    let items = match fields.take("input") {
        Some(Value::String(text)) => {
            messages.push(said("user", text));
            return Ok(());
        }
        Some(Value::Array(items)) if !items.is_empty() => items,
        _ => {
            return Err(ApiError::bad_field(
                "input",
                "\"input\" must be a string or a list with at least one item.",
            ));
        }
    };
    // Thoughts stand before what they led to.
    let mut thoughts = Vec::new();
    for (index, item) in items.into_iter().enumerate() {
        let path = format!("input[{index}]");
        let mut item = Fields::nested(item, &path, "input[]")?;
        item.accept(&["id", "status", "phase", "caller"]);
        let kind = item.string("type")?;
        match kind.as_deref() {
            None | Some("message") => messages.push(parse_message(&mut item, &path, ignored)?),
            Some("reasoning") => {
                thoughts.extend(parse_thoughts(&mut item, &path, ignored)?);
                item.finish(ignored);
                continue;
            }
            Some("function_call") => add_call(&mut item, &path, messages)?,
            Some("function_call_output") => {
                let Some(call) = item.string("call_id")? else {
                    return Err(ApiError::bad_field(
                        &path,
                        format!("\"{path}\" must say in \"call_id\" which call it answers."),
                    ));
                };
                let text = parse_parts(&mut item, "output", &path, ignored)?;
                let mut result = said("tool", text);
                result.insert("tool_call_id".into(), bare_id(&call).into());
                item.accept(&["name", "namespace"]);
                messages.push(result);
            }
            Some(other) => return Err(unreadable(&path, other)),
        }
        item.finish(ignored);
        if let Some(last) = messages.last_mut().filter(|last| last["role"] == "assistant")
            && !thoughts.is_empty()
        {
            last.insert("reasoning_content".into(), thoughts.join("\n").into());
        }
        thoughts.clear();
    }
    match messages.iter().any(|message| message["role"] != "system") {
        true => Ok(()),
        false => Err(ApiError::bad_field(
            "input",
            "\"input\" holds no message that could be answered; send one of the user.",
        )),
    }
}

fn unreadable(path: &str, kind: &str) -> ApiError {
    ApiError::bad_field(
        path,
        format!(
            "\"{path}\" is of the type \"{}\", which this model cannot read; send messages of text.",
            shortened(kind)
        ),
    )
    .code("unsupported_content")
}

fn parse_message(
    item: &mut Fields,
    path: &str,
    ignored: &mut Ignored,
) -> Result<Map<String, Value>, ApiError> {
    let role = match item.string("role")?.as_deref() {
        Some("system" | "developer") => "system",
        Some("user") => "user",
        Some("assistant") => "assistant",
        other => {
            return Err(ApiError::bad_field(
                &item.name("role"),
                format!(
                    "\"{path}.role\" is \"{}\"; send system, developer, user or assistant.",
                    shortened(other.unwrap_or_default())
                ),
            ));
        }
    };
    Ok(said(role, parse_parts(item, "content", path, ignored)?))
}

/// A string, or parts of text, which become one string.
fn parse_parts(
    item: &mut Fields,
    field: &str,
    path: &str,
    ignored: &mut Ignored,
) -> Result<String, ApiError> {
    let path = format!("{path}.{field}");
    let parts = match item.take(field) {
        Some(Value::String(text)) => return Ok(text),
        Some(Value::Array(parts)) => parts,
        _ => {
            return Err(ApiError::bad_field(
                &path,
                format!("\"{path}\" must be a string or a list of parts."),
            ));
        }
    };
    let mut texts = Vec::with_capacity(parts.len());
    for (index, part) in parts.into_iter().enumerate() {
        let path = format!("{path}[{index}]");
        let mut part = Fields::nested(part, &path, &format!("input[].{field}[]"))?;
        let kind = part.string("type")?.unwrap_or_default();
        let text = match kind.as_str() {
            "input_text" | "output_text" | "text" => part.string("text")?,
            "refusal" => part.string("refusal")?,
            other => return Err(unreadable(&path, other)),
        };
        texts.push(text.ok_or_else(|| {
            ApiError::bad_field(&path, format!("\"{path}\" has no text; send \"text\": \"…\"."))
        })?);
        part.accept(&["annotations", "logprobs", "prompt_cache_breakpoint"]);
        part.finish(ignored);
    }
    Ok(texts.join("\n"))
}

/// Earlier thoughts, as far as they are text.
fn parse_thoughts(
    item: &mut Fields,
    path: &str,
    ignored: &mut Ignored,
) -> Result<Vec<String>, ApiError> {
    item.accept(&["summary"]);
    // Nobody but who wrote it can read it.
    item.ignore("encrypted_content", |_| false, ignored);
    let parts = match item.take("content") {
        None => return Ok(Vec::new()),
        Some(Value::Array(parts)) => parts,
        Some(_) => {
            return Err(ApiError::bad_field(
                path,
                format!("\"{path}.content\" must be a list of parts."),
            ));
        }
    };
    Ok(parts.iter().filter_map(|part| Some(part.get("text")?.as_str()?.to_owned())).collect())
}

/// A call's id as chat templates know it, without what ids begin with here.
fn bare_id(id: &str) -> &str {
    id.strip_prefix(response::CALL_PREFIX).unwrap_or(id)
}

/// A call that the model made earlier, in the message that it was made in.
fn add_call(
    item: &mut Fields,
    path: &str,
    messages: &mut Vec<Map<String, Value>>,
) -> Result<(), ApiError> {
    let (id, name) = (item.string("call_id")?, item.string("name")?);
    let arguments = item.string("arguments")?.unwrap_or_default();
    let (Some(id), Some(name)) = (id, name) else {
        return Err(ApiError::bad_field(
            path,
            format!("\"{path}\" must hold \"call_id\", \"name\" and \"arguments\"."),
        ));
    };
    // Templates want an object; what is none stays as it was said.
    let arguments = match serde_json::from_str(&arguments) {
        Ok(object @ Value::Object(_)) => object,
        _ => Value::String(arguments),
    };
    item.accept(&["namespace"]);
    let call = json!({"id": bare_id(&id), "type": "function", "function": {"name": name, "arguments": arguments}});
    if messages.last().is_none_or(|last| last["role"] != "assistant") {
        messages.push(said("assistant", String::new()));
    }
    let last = messages.last_mut().expect("just pushed where there was none");
    match last.get_mut("tool_calls") {
        Some(Value::Array(calls)) => calls.push(call),
        _ => drop(last.insert("tool_calls".into(), json!([call]))),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_become_messages_with_thoughts_and_calls_in_their_place() {
        let body = json!({"model": "m", "instructions": "Be kind.", "input": [
            {"role": "user", "content": "a"},
            {"type": "reasoning", "id": "r", "summary": [], "content": [
                {"type": "reasoning_text", "text": "hm"}]},
            {"type": "message", "role": "assistant", "id": "m", "status": "completed", "content": [
                {"type": "output_text", "text": "look", "annotations": []}]},
            {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{\"x\":1}"},
            {"type": "function_call", "call_id": "2", "name": "g", "arguments": "?"},
            {"type": "function_call_output", "call_id": "1", "output": "7"},
        ]});
        let request = parse_responses(body.to_string().as_bytes(), true).unwrap();
        let call = |id: &str, name: &str, arguments: Value| {
            json!({"id": id, "type": "function",
                "function": {"name": name, "arguments": arguments}})
        };
        assert_eq!(
            request.messages.into_iter().map(Value::Object).collect::<Vec<_>>(),
            [
                json!({"role": "system", "content": "Be kind."}),
                json!({"role": "user", "content": "a"}),
                json!({"role": "assistant", "content": "look", "reasoning_content": "hm",
                    "tool_calls": [call("1", "f", json!({"x": 1})), call("2", "g", json!("?"))]}),
                json!({"role": "tool", "content": "7", "tool_call_id": "1"}),
            ]
        );
    }
}
