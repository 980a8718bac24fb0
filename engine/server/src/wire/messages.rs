//! `POST /v1/messages` and `POST /v1/messages/count_tokens`: Anthropic's requests.

use polder_backend::Sampling;
use serde_json::{Map, Value, json};

use crate::wire::chat::model;
use crate::wire::error::{ApiError, shortened};
use crate::wire::fields::{Fields, Ignored};
use crate::wire::format::{self, Format};
use crate::wire::knobs::{self, Knobs};
use crate::wire::noise::without_billing_line;
use crate::wire::tools::ToolUse;
use crate::wire::{message, message_tools, table};

/// A request that can be served, as far as that can be told without the model.
#[derive(Debug, Clone, PartialEq)]
pub struct MessagesRequest {
    /// The model's name.
    pub model: String,
    /// System prompt and messages as chat templates want them; consecutive ones of one role are
    /// one.
    pub messages: Vec<Map<String, Value>>,
    /// How to answer.
    pub knobs: Knobs,
    /// The tools that the model may call.
    pub tool_use: ToolUse,
    /// Whether to think first; None leaves it to the model.
    pub thinking: Option<bool>,
    /// The answer is to hold what the model thought.
    pub shows_thoughts: bool,
    /// How much to think, where the template knows about that.
    pub effort: Option<String>,
    /// Fields that had no effect, to be named in the answer.
    pub ignored: Vec<String>,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// An answer: `max_tokens` must be there.
    Answer,
    /// The number of tokens.
    Count,
}

/// Reads a request. A strict client is refused where another's unknown field is ignored.
pub fn parse_messages(
    body: &[u8],
    purpose: Purpose,
    strict: bool,
) -> Result<MessagesRequest, ApiError> {
    let mut fields = Fields::parse(body)?;
    let mut ignored = Ignored::default();
    let model = model(&mut fields)?;
    let tool_use = message_tools::parse_tools(&mut fields, &mut ignored)?;
    let mut messages: Vec<Map<String, Value>> =
        parse_system(&mut fields, &mut ignored)?.into_iter().collect();
    messages.extend(parse_turns(&mut fields, &mut ignored)?);
    let mut knobs = parse_knobs(&mut fields, purpose)?;
    let (thinking, shows_thoughts) = parse_thinking(&mut fields, &mut ignored)?;
    let (effort, format) = parse_output_config(&mut fields, &mut ignored)?;
    knobs.format = format;
    table::MESSAGES.settle(&mut fields)?;
    fields.finish(&mut ignored);
    let ignored = ignored.finish(strict)?;
    Ok(MessagesRequest {
        model,
        messages,
        knobs,
        tool_use,
        thinking,
        shows_thoughts,
        effort,
        ignored,
    })
}

fn parse_knobs(fields: &mut Fields, purpose: Purpose) -> Result<Knobs, ApiError> {
    let seed = fields.integer("seed", i64::MIN..=i64::MAX)?;
    let sampling = Sampling {
        temperature: fields.number("temperature", 0.0..=1.0)?.unwrap_or(1.0),
        top_p: fields.number("top_p", 0.0..=1.0)?.unwrap_or(1.0),
        top_k: fields.integer("top_k", 0..=i64::from(u32::MAX))?.unwrap_or(0) as u32,
        seed: seed.unwrap_or(0) as u64,
        ..Sampling::greedy()
    };
    let max_tokens = knobs::parse_max_tokens(fields, &["max_tokens"], 1)?;
    if max_tokens.is_none() && purpose == Purpose::Answer {
        return Err(ApiError::bad_field(
            "max_tokens",
            "\"max_tokens\" is missing; send the most tokens that the answer may have.",
        ));
    }
    Ok(Knobs {
        sampling,
        seeded: seed.is_some(),
        max_tokens,
        stop: knobs::parse_stop(fields, "stop_sequences")?,
        ignore_eos: false,
        n: 1,
        stream: fields.boolean("stream")?.unwrap_or(false),
        include_usage: false,
        format: None,
    })
}

/// Whether to think first, and whether to tell the thoughts.
fn parse_thinking(
    fields: &mut Fields,
    ignored: &mut Ignored,
) -> Result<(Option<bool>, bool), ApiError> {
    let Some(thinking) = fields.take("thinking") else { return Ok((None, false)) };
    let mut thinking = Fields::nested(thinking, "thinking", "thinking")?;
    let kind = thinking.string("type")?.unwrap_or_default();
    let wanted = match kind.as_str() {
        "disabled" => Some(false),
        "enabled" => Some(true),
        // The model decides.
        "adaptive" => None,
        other => {
            return Err(ApiError::bad_field(
                "thinking.type",
                format!(
                    "\"thinking.type\" is \"{}\"; send enabled, adaptive or disabled.",
                    shortened(other)
                ),
            ));
        }
    };
    // Nothing ends the thoughts before "max_tokens" does.
    thinking.ignore("budget_tokens", |_| false, ignored);
    let shown = match thinking.string("display")?.as_deref() {
        None | Some("summarized") => wanted != Some(false),
        Some("omitted") => false,
        Some(other) => {
            return Err(ApiError::bad_field(
                "thinking.display",
                format!(
                    "\"thinking.display\" is \"{}\"; send summarized or omitted.",
                    shortened(other)
                ),
            ));
        }
    };
    thinking.finish(ignored);
    Ok((wanted, shown))
}

fn parse_output_config(
    fields: &mut Fields,
    ignored: &mut Ignored,
) -> Result<(Option<String>, Option<Format>), ApiError> {
    let Some(config) = fields.take("output_config") else { return Ok((None, None)) };
    let mut config = Fields::nested(config, "output_config", "output_config")?;
    let effort = config.string("effort")?;
    let format = format::parse_beside(&mut config, ignored)?;
    config.finish(ignored);
    Ok((effort, format))
}

fn turn(role: &str, content: String) -> Map<String, Value> {
    Map::from_iter([("role".into(), role.into()), ("content".into(), content.into())])
}

/// A string or text blocks, without what differs each time.
fn parse_system(
    fields: &mut Fields,
    ignored: &mut Ignored,
) -> Result<Option<Map<String, Value>>, ApiError> {
    let blocks = match fields.take("system") {
        None => return Ok(None),
        Some(Value::String(text)) => vec![json!({"type": "text", "text": text})],
        Some(Value::Array(blocks)) => blocks,
        Some(_) => {
            return Err(ApiError::bad_field(
                "system",
                "\"system\" must be a string or a list of text blocks.",
            ));
        }
    };
    let mut texts = Vec::with_capacity(blocks.len());
    for (index, block) in blocks.into_iter().enumerate() {
        let text = parse_text(block, &format!("system[{index}]"), "system[]", ignored)?;
        match index {
            0 => texts.push(without_billing_line(&text).to_owned()),
            _ => texts.push(text),
        }
    }
    texts.retain(|text| !text.is_empty());
    Ok((!texts.is_empty()).then(|| turn("system", texts.join("\n"))))
}

/// A block that can only be text.
fn parse_text(
    block: Value,
    path: &str,
    pattern: &str,
    ignored: &mut Ignored,
) -> Result<String, ApiError> {
    let mut block = Fields::nested(block, path, pattern)?;
    match block.string("type")?.as_deref() {
        Some("text") => take_text(block, path, ignored),
        other => Err(unreadable(path, other.unwrap_or_default())),
    }
}

fn take_text(mut block: Fields, path: &str, ignored: &mut Ignored) -> Result<String, ApiError> {
    let text = block.string("text")?.ok_or_else(|| {
        ApiError::bad_field(path, format!("\"{path}\" has no text; send \"text\": \"…\"."))
    })?;
    block.accept(&["cache_control"]);
    block.ignore("citations", |list| list.as_array().is_some_and(Vec::is_empty), ignored);
    block.finish(ignored);
    Ok(text)
}

fn unreadable(path: &str, kind: &str) -> ApiError {
    ApiError::bad_field(
        path,
        format!(
            "\"{path}\" is of the type \"{}\", which this model cannot read; send text blocks only.",
            shortened(kind)
        ),
    )
    .code("unsupported_content")
}

fn parse_turns(
    fields: &mut Fields,
    ignored: &mut Ignored,
) -> Result<Vec<Map<String, Value>>, ApiError> {
    let list = match fields.take("messages") {
        Some(Value::Array(list)) if !list.is_empty() => list,
        _ => {
            return Err(ApiError::bad_field(
                "messages",
                "\"messages\" must be a list with at least one {\"role\": …, \"content\": …}.",
            ));
        }
    };
    let mut turns = Vec::with_capacity(list.len());
    let last = list.len() - 1;
    for (index, message) in list.into_iter().enumerate() {
        let path = format!("messages[{index}]");
        let mut message = Fields::nested(message, &path, "messages[]")?;
        let role = message.string("role")?.unwrap_or_default();
        if !matches!(role.as_str(), "user" | "assistant" | "system") {
            return Err(ApiError::bad_field(
                &message.name("role"),
                format!(
                    "\"{path}.role\" is \"{}\"; send user, assistant or system.",
                    shortened(&role)
                ),
            ));
        }
        if role == "assistant" && index == last {
            return Err(ApiError::bad_field(
                &path,
                format!(
                    "\"{path}\" is the assistant's and the last: an answer that has begun cannot \
                     be continued here; end with a message of the user."
                ),
            )
            .code("unsupported_parameter"));
        }
        let blocks = match message.take("content") {
            Some(Value::String(text)) => vec![json!({"type": "text", "text": text})],
            Some(Value::Array(blocks)) => blocks,
            _ => {
                return Err(ApiError::bad_field(
                    &message.name("content"),
                    format!("\"{path}.content\" must be a string or a list of blocks."),
                ));
            }
        };
        parse_blocks(&path, &role, blocks, ignored, &mut turns)?;
        message.accept(&["cache_control"]);
        message.finish(ignored);
    }
    Ok(turns)
}

/// One message's blocks. A tool's result is a message of its own to chat templates.
fn parse_blocks(
    path: &str,
    role: &str,
    blocks: Vec<Value>,
    ignored: &mut Ignored,
    turns: &mut Vec<Map<String, Value>>,
) -> Result<(), ApiError> {
    let mut said = Said::default();
    let (mut results, empty) = (0, blocks.is_empty());
    for (index, block) in blocks.into_iter().enumerate() {
        let path = format!("{path}.content[{index}]");
        let mut block = Fields::nested(block, &path, "messages[].content[]")?;
        let kind = block.string("type")?.unwrap_or_default();
        match (kind.as_str(), role) {
            ("text", _) => said.texts.push(take_text(block, &path, ignored)?),
            ("thinking", "assistant") => {
                said.thoughts.extend(block.string("thinking")?);
                block.accept(&["signature"]);
                block.finish(ignored);
            }
            // Nobody but who wrote it can read it.
            ("redacted_thinking", "assistant") => ignored.add("messages[].content[]".into()),
            ("tool_use", "assistant") => said.calls.push(parse_call(block, &path, ignored)?),
            ("tool_result", "user") => {
                said.end(role, turns);
                turns.push(parse_result(block, &path, ignored)?);
                results += 1;
            }
            (other, _) => return Err(unreadable(&path, other)),
        }
    }
    if said.texts.is_empty() && (empty || (results == 0 && role == "user")) {
        said.texts.push(String::new());
    }
    said.end(role, turns);
    Ok(())
}

/// What one message says between two results of tools.
#[derive(Debug, Default)]
struct Said {
    texts: Vec<String>,
    thoughts: Vec<String>,
    calls: Vec<Value>,
}

impl Said {
    /// Appends it, to the message before where that is of the same role.
    fn end(&mut self, role: &str, turns: &mut Vec<Map<String, Value>>) {
        let Self { texts, thoughts, mut calls } = std::mem::take(self);
        if texts.is_empty() && thoughts.is_empty() && calls.is_empty() {
            return;
        }
        let text = texts.join("\n");
        let before = turns.last_mut().filter(|turn| turn["role"] == role && role != "system");
        let turn = match before {
            Some(turn) => {
                let before = turn["content"].as_str().unwrap_or_default();
                let joined = match (before.is_empty(), text.is_empty()) {
                    (false, false) => format!("{before}\n{text}"),
                    _ => format!("{before}{text}"),
                };
                turn.insert("content".into(), joined.into());
                turn
            }
            None => {
                turns.push(turn(role, text));
                turns.last_mut().expect("just pushed")
            }
        };
        if !thoughts.is_empty() {
            turn.insert("reasoning_content".into(), thoughts.join("\n").into());
        }
        if !calls.is_empty() {
            if let Some(Value::Array(earlier)) = turn.get_mut("tool_calls") {
                earlier.append(&mut calls);
            } else {
                turn.insert("tool_calls".into(), calls.into());
            }
        }
    }
}

/// A call's id as chat templates know it, without what Anthropic's ids begin with.
fn bare_id(id: &str) -> String {
    id.strip_prefix(message::CALL_PREFIX).unwrap_or(id).to_owned()
}

/// A call that the model made earlier, as templates want it.
fn parse_call(mut block: Fields, path: &str, ignored: &mut Ignored) -> Result<Value, ApiError> {
    let id = bare_id(&block.string("id")?.unwrap_or_default());
    let name = block.string("name")?.unwrap_or_default();
    let input = block.take("input").unwrap_or_else(|| json!({}));
    if id.is_empty() || name.is_empty() || !input.is_object() {
        return Err(ApiError::bad_field(
            path,
            format!("\"{path}\" must hold \"id\", \"name\" and an object \"input\"."),
        ));
    }
    block.accept(&["cache_control", "caller"]);
    block.finish(ignored);
    Ok(json!({"id": id, "type": "function", "function": {"name": name, "arguments": input}}))
}

/// What a tool said, as templates want it.
fn parse_result(
    mut block: Fields,
    path: &str,
    ignored: &mut Ignored,
) -> Result<Map<String, Value>, ApiError> {
    let Some(id) = block.string("tool_use_id")? else {
        return Err(ApiError::bad_field(
            path,
            format!("\"{path}\" must say in \"tool_use_id\" which call it answers."),
        ));
    };
    let content = match block.take("content") {
        None => String::new(),
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => parts
            .into_iter()
            .enumerate()
            .map(|(index, part)| {
                let path = format!("{path}.content[{index}]");
                parse_text(part, &path, "messages[].content[].content[]", ignored)
            })
            .collect::<Result<Vec<_>, _>>()?
            .join("\n"),
        Some(_) => {
            return Err(ApiError::bad_field(
                path,
                format!("\"{path}.content\" must be a string or a list of text blocks."),
            ));
        }
    };
    // Templates have no word for it; what went wrong is in the text.
    block.ignore("is_error", |is| *is == false, ignored);
    block.accept(&["cache_control"]);
    block.finish(ignored);
    let mut result = turn("tool", content);
    result.insert("tool_call_id".into(), bare_id(&id).into());
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(body: Value) -> Vec<Value> {
        let mut whole = json!({"model": "m", "max_tokens": 5});
        for (key, value) in body.as_object().unwrap() {
            whole[key] = value.clone();
        }
        let request = parse_messages(whole.to_string().as_bytes(), Purpose::Answer, false).unwrap();
        request.messages.into_iter().map(Value::Object).collect()
    }

    #[test]
    fn system_blocks_are_one_message_without_the_billing_line() {
        let user = json!([{"role": "user", "content": "Hi"}]);
        let with = |cch: &str| {
            turns(json!({"messages": user, "system": [
                {"type": "text", "text": format!("x-anthropic-billing-header: cch={cch};")},
                {"type": "text", "text": "You are", "cache_control": {"type": "ephemeral"}},
                {"type": "text", "text": "kind."},
            ]}))
        };
        assert_eq!(with("1")[0], json!({"role": "system", "content": "You are\nkind."}));
        assert_eq!(with("1"), with("2"));
        let only = turns(json!({"messages": user, "system": "x-anthropic-billing-header: a=1;"}));
        assert_eq!(only.len(), 1);
    }

    #[test]
    fn turns_of_one_role_are_one_and_results_of_tools_stand_alone() {
        let got = turns(json!({"messages": [
            {"role": "user", "content": "a"},
            {"role": "user", "content": [{"type": "text", "text": "b"}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "look"},
                {"type": "tool_use", "id": "1", "name": "f", "input": {"x": 1}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "1", "content": [
                    {"type": "text", "text": "7"}]},
                {"type": "text", "text": "go on"}]},
        ]}));
        assert_eq!(
            got,
            [
                json!({"role": "user", "content": "a\nb"}),
                json!({"role": "assistant", "content": "look", "reasoning_content": "hm",
                    "tool_calls": [{"id": "1", "type": "function",
                        "function": {"name": "f", "arguments": {"x": 1}}}]}),
                json!({"role": "tool", "content": "7", "tool_call_id": "1"}),
                json!({"role": "user", "content": "go on"}),
            ]
        );
    }
}
