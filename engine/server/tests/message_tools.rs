//! Tools and thoughts over Anthropic's API, as its SDK and Claude Code read them.

#![allow(clippy::unwrap_used)] // Helpers outside test functions unwrap too.

mod common;

use common::{
    Answer, CALLS, PLAIN, Server, TEMPLATE, assert_fits, babbler, message, saying, short_tools,
    with,
};
use polder_scheduler::Config;
use serde_json::{Value, json};

const MESSAGES: &str = "/v1/messages";
const COUNT: &str = "/v1/messages/count_tokens";

fn tools() -> Value {
    let tool = |name: &str| {
        json!({"name": name, "description": "Tells.", "input_schema": {
            "type": "object", "properties": {"city": {"type": "string"}}}})
    };
    json!([tool("weather"), tool("clock")])
}

fn calling(more: Value) -> Value {
    with(message(json!({"tools": tools(), "max_tokens": 400})), more)
}

/// The message that a stream's events make together, as the SDK joins them.
fn joined(answer: &Answer) -> Value {
    let events = answer.named_events();
    let mut message = events[0]["message"].clone();
    let mut open: Option<(usize, String)> = None;
    for event in &events {
        let at = event["index"].as_u64().map(|index| index as usize);
        match event["type"].as_str().unwrap() {
            "content_block_start" => {
                let blocks = message["content"].as_array_mut().unwrap();
                assert_eq!((open.clone(), at), (None, Some(blocks.len())));
                blocks.push(event["content_block"].clone());
                open = Some((at.unwrap(), String::new()));
            }
            "content_block_delta" => {
                let (index, json) = open.as_mut().unwrap();
                assert_eq!(Some(*index), at);
                let delta = &event["delta"];
                let block = &mut message["content"][*index];
                let field = match (delta["type"].as_str().unwrap(), block["type"].as_str().unwrap())
                {
                    ("input_json_delta", "tool_use") => {
                        json.push_str(delta["partial_json"].as_str().unwrap());
                        continue;
                    }
                    ("text_delta", "text") => "text",
                    ("thinking_delta", "thinking") => "thinking",
                    other => panic!("{other:?}"),
                };
                let text = block[field].as_str().unwrap().to_owned();
                block[field] = (text + delta[field].as_str().unwrap()).into();
            }
            "content_block_stop" => {
                let (index, json) = open.take().unwrap();
                assert_eq!(Some(index), at);
                if !json.is_empty() {
                    assert_eq!(message["content"][index]["input"], json!({}));
                    message["content"][index]["input"] =
                        serde_json::from_str(&json).unwrap_or(Value::String(json));
                }
            }
            "message_delta" => {
                assert_eq!(open, None);
                message["stop_reason"] = event["delta"]["stop_reason"].clone();
                message["usage"] = event["usage"].clone();
            }
            _ => {}
        }
    }
    message
}

/// The blocks without the ids of calls, which must differ.
fn content(message: &Value) -> Vec<Value> {
    let mut blocks = message["content"].as_array().unwrap().clone();
    let mut ids: Vec<String> = Vec::new();
    for block in &mut blocks {
        if let Some(Value::String(id)) = block.as_object_mut().unwrap().shift_remove("id") {
            assert!(id.starts_with("toolu_") && !ids.contains(&id), "{id}");
            ids.push(id);
        }
    }
    blocks
}

fn two_calls() -> Vec<Value> {
    vec![
        json!({"type": "tool_use", "name": "weather", "input": {"city": "Köln"}}),
        json!({"type": "tool_use", "name": "clock", "input": {}}),
    ]
}

#[tokio::test]
async fn calls_and_thoughts_are_blocks_whole_or_streamed() {
    let server = Server::calling().await;
    let thought = json!({"type": "thinking", "thinking": "Rain, say?", "signature": ""});
    let said = json!({"type": "text", "text": "I look."});
    for (thinking, shown) in [
        (json!({"type": "enabled", "budget_tokens": 1024}), true),
        (json!({"type": "adaptive"}), true),
        (json!({"type": "adaptive", "display": "omitted"}), false),
        (Value::Null, false),
    ] {
        let whole = server.post(MESSAGES, calling(json!({"thinking": thinking}))).await;
        assert_eq!(whole.status, 200, "{}", whole.text);
        let whole = whole.json();
        let thought = shown.then(|| thought.clone());
        let expected: Vec<Value> =
            thought.into_iter().chain([said.clone()]).chain(two_calls()).collect();
        assert_eq!((content(&whole), &whole["stop_reason"]), (expected, &json!("tool_use")));
        // Every token counts, thoughts and marks too.
        assert_eq!(whole["usage"]["output_tokens"], CALLS.len() + 1);
        let body = calling(json!({"thinking": thinking, "stream": true}));
        let streamed = server.post(MESSAGES, body).await;
        for mark in ["tool_call>", "think>"] {
            assert!(!streamed.text.contains(mark), "{}", streamed.text);
        }
        let streamed = joined(&streamed);
        assert_eq!(content(&streamed), content(&whole));
        assert_eq!(streamed["stop_reason"], "tool_use");
        assert_eq!(streamed["usage"]["output_tokens"], whole["usage"]["output_tokens"]);
    }
}

#[tokio::test]
async fn text_may_follow_a_call_and_no_call_is_no_reason_to_call() {
    let says = ["<tool_call>{\"name\": \"clock\"}</tool_call>\n\nDone.", PLAIN];
    let server = Server::speaking(TEMPLATE, saying(says), Config::default()).await;
    for stream in [false, true] {
        let ask = async |seed: u64| {
            let answer = server.post(MESSAGES, calling(json!({"stream": stream, "seed": seed})));
            let answer = answer.await;
            if stream { joined(&answer) } else { answer.json() }
        };
        let called = ask(0).await;
        let blocks = content(&called);
        assert_eq!(blocks[0], two_calls()[1]);
        assert_eq!(blocks[1..], [json!({"type": "text", "text": "Done."})]);
        assert_eq!(called["stop_reason"], "tool_use");
        let plain = ask(1).await;
        assert_eq!(content(&plain), [json!({"type": "text", "text": PLAIN})]);
        assert_eq!(plain["stop_reason"], "end_turn");
    }
}

#[tokio::test]
async fn without_tools_or_with_none_calls_are_text_and_thoughts_are_still_taken_out() {
    let server = Server::calling().await;
    for more in [json!({"tools": []}), json!({"tool_choice": {"type": "none"}})] {
        let answer = server.post(MESSAGES, calling(more)).await.json();
        let text = CALLS.split_once("</think>\n\n").unwrap().1;
        assert_eq!(content(&answer), [json!({"type": "text", "text": text})]);
        assert_eq!(answer["stop_reason"], "end_turn");
    }
}

#[tokio::test]
async fn without_parallel_calls_the_first_ends_the_message() {
    let server = Server::calling().await;
    let one = json!({"type": "auto", "disable_parallel_tool_use": true});
    let answer = server.post(MESSAGES, calling(json!({"tool_choice": one}))).await.json();
    assert_eq!(content(&answer)[1..], two_calls()[..1]);
    assert_eq!(answer["stop_reason"], "tool_use");
}

#[tokio::test]
async fn a_call_that_is_cut_off_is_no_call_to_act_on() {
    let server = Server::calling().await;
    let limit = CALLS.find("Köln").unwrap() + 2;
    let answer = server.post(MESSAGES, calling(json!({"max_tokens": limit}))).await.json();
    assert_eq!(content(&answer), [json!({"type": "text", "text": "I look."})]);
    assert_eq!(answer["stop_reason"], "max_tokens");
    let body = calling(json!({"max_tokens": limit, "stream": true}));
    let streamed = joined(&server.post(MESSAGES, body).await);
    assert!(streamed["content"][1]["input"].is_string(), "{streamed}");
    assert_eq!(streamed["stop_reason"], "max_tokens");
}

#[tokio::test]
async fn what_a_model_wrote_instead_of_arguments_is_told_as_such() {
    let says = ["<tool_call>{\"name\": \"clock\", \"arguments\": {now}}</tool_call>", PLAIN];
    let server = Server::speaking(TEMPLATE, saying(says), Config::default()).await;
    let answer = server.post(MESSAGES, calling(json!({}))).await.json();
    let input = &answer["content"][0]["input"];
    assert!(input["INVALID_JSON"].as_str().unwrap().starts_with("{now}"), "{answer}");
}

#[tokio::test]
async fn earlier_calls_reach_the_template_under_the_ids_that_it_knows() {
    let server = Server::calling().await;
    let messages = json!([
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": ""},
            {"type": "tool_use", "id": "toolu_abcdefghi", "name": "weather",
             "input": {"city": "<|im_end|>"}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "toolu_abcdefghi", "content": "<|im_end|>"}]},
    ]);
    let body = calling(json!({"messages": messages}));
    let answer = server.post(MESSAGES, body.clone()).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let functions: Vec<Value> = tools()
        .as_array()
        .unwrap()
        .iter()
        .map(|tool| {
            json!({"type": "function", "function": {"name": tool["name"],
                "description": tool["description"], "parameters": tool["input_schema"]}})
        })
        .collect();
    let functions = Value::from(functions).to_string();
    let spaces = functions.matches([',', ':']).count();
    let prompt = "<tool_call></tool_call>\n".len() + functions.len() + spaces
        + 1 + "user\nRain?".len() + 1 + 1
        + 1 + "assistant\n<tool_call>{\"name\": \"weather\", \"arguments\": {\"city\": \"<|im_end|>\"}}</tool_call>".len() + 1 + 1
        + 1 + "tool\n<|im_end|>(abcdefghi)".len() + 1 + 1
        + 1 + "assistant\n".len();
    assert_eq!(answer.json()["usage"]["input_tokens"], prompt);
    // Tools count where tokens are counted.
    let counted = server.post(COUNT, body).await;
    assert_eq!(counted.json(), json!({"input_tokens": prompt}));
}

#[tokio::test]
async fn what_cannot_be_offered_is_refused_by_name() {
    let server = Server::calling().await;
    let list = |tool: Value| json!({"tools": [tool]});
    for (more, name) in [
        (list(json!({"type": "web_search_20250305", "name": "web_search"})), "tools[0]"),
        (list(json!({"type": "bash_20250124", "name": "bash"})), "tools[0]"),
        (list(json!(1)), "tools[0]"),
        (list(json!({"input_schema": {}})), "tools[0].name"),
        (list(json!({"name": "a b", "input_schema": {}})), "tools[0].name"),
        (list(json!({"name": "a", "input_schema": []})), "tools[0].input_schema"),
        (json!({"tools": [{"name": "a"}, {"name": "a"}]}), "tools"),
        (json!({"tools": {}}), "tools"),
        (json!({"tool_choice": "auto"}), "tool_choice"),
        (json!({"tool_choice": {"type": "maybe"}}), "tool_choice"),
        (json!({"tool_choice": {"type": "tool"}}), "tool_choice"),
        (json!({"tool_choice": {"type": "tool", "name": "other"}}), "tool_choice"),
        (json!({"tools": [], "tool_choice": {"type": "any"}}), "tool_choice"),
    ] {
        let answer = server.post(MESSAGES, calling(more.clone())).await;
        let said = answer.anthropic_refusal(400, "invalid_request_error");
        assert!(said.contains(&format!("\"{name}\"")), "{more}: {said}");
    }
    let odd = json!({"name": "f", "type": "custom", "input_schema": {}, "strict": true,
        "input_examples": [{}], "defer_loading": true, "cache_control": {"type": "ephemeral"}});
    let answer = server.post(MESSAGES, calling(list(odd))).await;
    let mut names: Vec<&str> = answer.header("x-polder-ignored").unwrap().split(", ").collect();
    names.sort_unstable();
    assert_eq!(names, ["tools[].defer_loading", "tools[].input_examples"]);
}

#[tokio::test]
async fn a_form_beside_thoughts_is_refused_in_this_apis_words() {
    let form = json!({"format": {"type": "json_schema", "schema": {"type": "object"}}});
    let template = "{{ messages[0].content }}<think>\n";
    let server = Server::speaking(template, saying([PLAIN; 2]), Config::default()).await;
    let answer = server.post(MESSAGES, message(json!({"output_config": form}))).await;
    let said = answer.anthropic_refusal(400, "invalid_request_error");
    assert!(said.contains("\"thinking\": {\"type\": \"disabled\"}"), "{said}");
}

#[tokio::test]
async fn a_model_that_must_call_calls_whatever_it_would_have_said() {
    let server = Server::speaking(TEMPLATE, babbler(), Config::default()).await;
    let tool = |(name, schema): (&str, Value)| json!({"name": name, "input_schema": schema});
    let tools: Vec<Value> = short_tools().map(tool).into();
    let quiet = json!({"tools": tools, "thinking": {"type": "disabled"}});
    for seed in 0..4 {
        for (choice, one, only) in [
            (json!({"type": "any"}), false, None),
            (json!({"type": "any", "disable_parallel_tool_use": true}), true, None),
            (json!({"type": "tool", "name": "clock"}), true, Some("clock")),
        ] {
            let more = with(quiet.clone(), json!({"tool_choice": choice, "seed": seed}));
            let whole = server.post(MESSAGES, calling(more.clone())).await;
            assert_eq!(whole.status, 200, "{}", whole.text);
            let whole = whole.json();
            assert_eq!(whole["stop_reason"], "tool_use", "{whole}");
            let blocks = content(&whole);
            for block in &blocks {
                assert_eq!(block["type"], "tool_use");
                assert_fits(block["name"].as_str().unwrap(), &block["input"]);
            }
            assert!(!blocks.is_empty() && (!one || blocks.len() == 1), "{blocks:?}");
            assert!(only.is_none_or(|only| blocks[0]["name"] == only), "{blocks:?}");
            let body = calling(with(more, json!({"stream": true})));
            let streamed = joined(&server.post(MESSAGES, body).await);
            assert_eq!(content(&streamed), blocks);
            assert_eq!(streamed["stop_reason"], "tool_use");
        }
    }
}

#[tokio::test]
async fn a_schema_that_cannot_be_held_to_is_refused_under_this_apis_name_for_it() {
    let server = Server::calling().await;
    for more in [
        json!({"tool_choice": {"type": "any"}, "tools": [{"name": "f", "input_schema": {"not": {}}}]}),
        json!({"tools": [{"name": "f", "strict": true, "input_schema": {"not": {}}}]}),
    ] {
        let answer = server.post(MESSAGES, calling(more)).await;
        let told = answer.anthropic_refusal(400, "invalid_request_error");
        assert!(told.contains("\"tools[0].input_schema\"") && told.contains("\"not\""), "{told}");
    }
}
