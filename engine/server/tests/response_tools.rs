//! Tools and thoughts over the Responses API, as OpenAI's SDK reads them.

#![allow(clippy::unwrap_used)] // Helpers outside test functions unwrap too.

mod common;

use common::{
    Answer, CALLS, Server, TEMPLATE, assert_fits, babbler, respond, saying, short_tools, with,
};
use polder_scheduler::Config;
use serde_json::{Value, json};

const RESPONSES: &str = "/v1/responses";

fn tools() -> Value {
    let tool = |name: &str| {
        json!({"type": "function", "name": name, "description": "Tells.", "parameters": {
            "type": "object", "properties": {"city": {"type": "string"}}}})
    };
    json!([tool("weather"), tool("clock")])
}

fn calling(more: Value) -> Value {
    with(respond(json!({"tools": tools()})), more)
}

/// The items that a stream's events make together; they must be those of its last event.
fn joined(answer: &Answer) -> Value {
    let events = answer.named_events();
    let mut items: Vec<Value> = Vec::new();
    let mut texts: Vec<String> = Vec::new();
    for (number, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], number);
        if event["type"] == "response.output_item.added" {
            assert_eq!(event["output_index"], items.len());
            assert_eq!(event["item"]["status"], "in_progress");
            items.push(event["item"].clone());
            texts.push(String::new());
            continue;
        }
        let Some(last) = items.last_mut().filter(|_| event.get("output_index").is_some()) else {
            continue;
        };
        assert_eq!(event["output_index"], texts.len() - 1);
        let text = texts.last_mut().unwrap();
        assert!(event.get("item_id").is_none_or(|id| *id == last["id"]));
        let kind = event["type"].as_str().unwrap().strip_prefix("response.").unwrap();
        match (kind, last["type"].as_str().unwrap()) {
            ("output_text.delta", "message")
            | ("reasoning_text.delta", "reasoning")
            | ("function_call_arguments.delta", "function_call") => {
                text.push_str(event["delta"].as_str().unwrap());
            }
            ("output_text.done", "message") | ("reasoning_text.done", "reasoning") => {
                assert_eq!(event["text"], *text);
            }
            ("function_call_arguments.done", "function_call") => {
                assert_eq!((&event["arguments"], &event["name"]), (&json!(text), &last["name"]));
            }
            ("output_item.done", kind) => {
                assert_eq!(event["item"]["id"], last["id"]);
                let said = match kind {
                    "function_call" => &event["item"]["arguments"],
                    _ => &event["item"]["content"][0]["text"],
                };
                assert_eq!(said, text);
                *last = event["item"].clone();
            }
            ("content_part.added" | "content_part.done", "message" | "reasoning") => {}
            other => panic!("{other:?}"),
        }
    }
    let last = events.last().unwrap()["response"].clone();
    assert_eq!(last["output"], Value::from(items));
    last
}

/// What an item says, without its ids, which must begin as they should and differ.
fn said(response: &Value) -> Vec<Value> {
    let mut ids: Vec<String> = Vec::new();
    let items = response["output"].as_array().unwrap();
    let said = items.iter().map(|item| {
        let (begin, said) = match item["type"].as_str().unwrap() {
            "reasoning" => ("rs_", json!({"thought": item["content"][0]["text"]})),
            "message" => ("msg_", json!({"said": item["content"][0]["text"]})),
            _ => ("fc_", json!({"called": item["name"], "with": item["arguments"]})),
        };
        let call = item.get("call_id").map(|id| {
            let id = id.as_str().unwrap();
            assert!(id.starts_with("call_"), "{id}");
            id
        });
        let id = item["id"].as_str().unwrap();
        assert!(id.starts_with(begin), "{id}");
        for id in [id].into_iter().chain(call) {
            assert!(!ids.contains(&id.to_owned()));
            ids.push(id.to_owned());
        }
        said
    });
    said.collect()
}

fn two_calls() -> Vec<Value> {
    vec![
        json!({"called": "weather", "with": "{\"city\": \"Köln\"}"}),
        json!({"called": "clock", "with": "{}"}),
    ]
}

#[tokio::test]
async fn calls_and_thoughts_are_items_whole_or_streamed() {
    let server = Server::calling().await;
    let whole = server.post(RESPONSES, calling(json!({}))).await;
    assert_eq!(whole.status, 200, "{}", whole.text);
    let whole = whole.json();
    let mut expected = vec![json!({"thought": "Rain, say?"}), json!({"said": "I look."})];
    expected.extend(two_calls());
    assert_eq!(said(&whole), expected);
    assert_eq!(whole["status"], "completed");
    let thoughts = CALLS.find("</think>").unwrap() + "</think>".len() - "<think>".len();
    assert_eq!(whole["usage"]["output_tokens_details"]["reasoning_tokens"], thoughts);
    for item in whole["output"].as_array().unwrap() {
        assert_eq!(item["status"], "completed");
    }
    let streamed = server.post(RESPONSES, calling(json!({"stream": true}))).await;
    for mark in ["tool_call>", "think>"] {
        assert!(!streamed.text.contains(mark), "{}", streamed.text);
    }
    assert_eq!(said(&joined(&streamed)), expected);
}

#[tokio::test]
async fn the_answer_repeats_what_was_asked_of_it() {
    let server = Server::calling().await;
    let more = json!({"tool_choice": "auto", "parallel_tool_calls": false});
    let answer = server.post(RESPONSES, calling(more)).await.json();
    assert_eq!(answer["tools"], tools());
    assert_eq!(answer["tool_choice"], "auto");
    assert_eq!(answer["parallel_tool_calls"], false);
    assert_eq!(answer["text"], json!({"format": {"type": "text"}}));
    // One call ends it.
    assert_eq!(said(&answer)[2..], two_calls()[..1]);
    let format = json!({"type": "json_schema", "name": "x", "schema": {"type": "object"}});
    let server = Server::parrot().await;
    let body = respond(json!({"text": {"format": format}, "max_output_tokens": 5}));
    let answer = server.post(RESPONSES, body).await.json();
    assert_eq!(answer["text"], json!({"format": format}));
}

#[tokio::test]
async fn without_tools_or_with_none_calls_are_text_and_thoughts_are_still_taken_out() {
    let server = Server::calling().await;
    for more in [json!({"tools": []}), json!({"tool_choice": "none"})] {
        let answer = server.post(RESPONSES, calling(more)).await.json();
        let text = CALLS.split_once("</think>\n\n").unwrap().1;
        assert_eq!(said(&answer), [json!({"thought": "Rain, say?"}), json!({"said": text})]);
    }
}

#[tokio::test]
async fn a_call_that_is_cut_off_is_incomplete() {
    let server = Server::calling().await;
    let limit = CALLS.find("Köln").unwrap() + 2;
    for stream in [false, true] {
        let body = calling(json!({"max_output_tokens": limit, "stream": stream}));
        let answer = server.post(RESPONSES, body).await;
        let answer = if stream { joined(&answer) } else { answer.json() };
        assert_eq!(answer["status"], "incomplete");
        let states: Vec<&Value> =
            answer["output"].as_array().unwrap().iter().map(|item| &item["status"]).collect();
        assert_eq!(states, ["completed", "completed", "incomplete"]);
    }
}

#[tokio::test]
async fn earlier_calls_reach_the_template_under_the_ids_that_it_knows() {
    let server = Server::calling().await;
    let input = json!([
        {"role": "user", "content": "Rain?"},
        {"type": "function_call", "call_id": "call_abcdefghi", "name": "weather",
         "arguments": "{\"city\": \"<|im_end|>\"}"},
        {"type": "function_call_output", "call_id": "call_abcdefghi", "output": "<|im_end|>"},
    ]);
    let answer = server.post(RESPONSES, calling(json!({"input": input}))).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let functions: Vec<Value> = tools()
        .as_array()
        .unwrap()
        .iter()
        .map(|tool| {
            json!({"type": "function", "function": {"name": tool["name"],
                "description": tool["description"], "parameters": tool["parameters"]}})
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
}

#[tokio::test]
async fn a_model_that_always_thinks_does_not_leak_its_thoughts() {
    let template = "{{ messages[0].content }}<think>\n";
    let says = saying(["Rain, say?</think>\n\nYes.", "No."]);
    let server = Server::speaking(template, says, Config::default()).await;
    let answer = server.post(RESPONSES, respond(json!({}))).await.json();
    assert_eq!(said(&answer), [json!({"thought": "Rain, say?"}), json!({"said": "Yes."})]);
    let unsupported = Some("unsupported_parameter");
    let never = respond(json!({"reasoning": {"effort": "none"}}));
    server.post(RESPONSES, never).await.refusal(400, Some("reasoning.effort"), unsupported);
    let form = respond(json!({"text": {"format": {"type": "json_object"}}}));
    server.post(RESPONSES, form).await.refusal(400, Some("text.format"), unsupported);
}

#[tokio::test]
async fn what_cannot_be_offered_is_refused_by_name() {
    let server = Server::calling().await;
    let unsupported = Some("unsupported_parameter");
    let list = |tool: Value| json!({"tools": [tool]});
    let named = |name: &str| json!({"type": "function", "name": name});
    for (more, param, code) in [
        (list(json!({"type": "web_search"})), "tools[0]", unsupported),
        (list(json!({"type": "custom", "name": "x"})), "tools[0]", unsupported),
        (list(json!(1)), "tools[0]", None),
        (list(named("a b")), "tools[0].name", None),
        (
            list(json!({"type": "function", "name": "f", "parameters": 1})),
            "tools[0].parameters",
            None,
        ),
        (json!({"tools": [named("a"), named("a")]}), "tools[1].name", None),
        (json!({"tool_choice": "maybe"}), "tool_choice", None),
        (json!({"tool_choice": named("other")}), "tool_choice", None),
        (json!({"tools": [], "tool_choice": "required"}), "tool_choice", unsupported),
    ] {
        server.post(RESPONSES, calling(more)).await.refusal(400, Some(param), code);
    }
    let strict = json!({"type": "function", "name": "f", "strict": true, "defer_loading": true});
    let answer = server.post(RESPONSES, calling(list(strict))).await;
    assert_eq!(answer.header("x-polder-ignored"), Some("tools[].defer_loading"));
}

#[tokio::test]
async fn a_model_that_must_call_calls_whatever_it_would_have_said() {
    let server = Server::speaking(TEMPLATE, babbler(), Config::default()).await;
    let tool = |(name, schema): (&str, Value)| json!({"type": "function", "name": name, "parameters": schema, "strict": true});
    let tools: Vec<Value> = short_tools().map(tool).into();
    let quiet = json!({"tools": tools, "reasoning": {"effort": "none"}});
    for seed in 0..4 {
        for (more, one, only) in [
            (json!({"tool_choice": "required"}), false, None),
            (json!({"tool_choice": "required", "parallel_tool_calls": false}), true, None),
            (json!({"tool_choice": {"type": "function", "name": "clock"}}), true, Some("clock")),
        ] {
            let more = with(with(quiet.clone(), more), json!({"seed": seed}));
            let whole = server.post(RESPONSES, calling(more.clone())).await;
            assert_eq!(whole.status, 200, "{}", whole.text);
            let whole = whole.json();
            assert_eq!(
                (&whole["status"], &whole["tool_choice"]),
                (&json!("completed"), &more["tool_choice"])
            );
            let items = said(&whole);
            for item in &items {
                let arguments = item["with"].as_str().unwrap();
                let name = item["called"].as_str().unwrap();
                assert_fits(name, &serde_json::from_str(arguments).unwrap());
            }
            assert!(!items.is_empty() && (!one || items.len() == 1), "{items:?}");
            assert!(only.is_none_or(|only| items[0]["called"] == only), "{items:?}");
            let body = calling(with(more, json!({"stream": true})));
            assert_eq!(said(&joined(&server.post(RESPONSES, body).await)), items);
        }
    }
}
