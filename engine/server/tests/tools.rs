//! Tools and thoughts over the wire, as OpenAI's SDKs read them.

#![allow(clippy::unwrap_used)] // Helpers outside test functions unwrap too.

mod common;

use common::{
    Answer, CALLS, PLAIN, Server, TEMPLATE, assert_fits, babbler, chat, saying, short_tools, with,
};
use polder_engine_server::wire::chat::parse_chat;
use polder_scheduler::Config;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

fn tools() -> Value {
    let tool = |name: &str| {
        json!({"type": "function", "function": {"name": name, "description": "Tells.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}})
    };
    json!([tool("weather"), tool("clock")])
}

/// The message that a stream's deltas make together, as an SDK joins them, and the last reason.
fn joined(answer: &Answer, choice: u64) -> (Value, Value) {
    let mut message = json!({"content": "", "reasoning_content": "", "tool_calls": []});
    let mut reason = Value::Null;
    for event in answer.events() {
        let Some(part) = event["choices"].get(0).filter(|part| part["index"] == choice) else {
            continue;
        };
        assert_eq!(reason, Value::Null, "nothing follows the reason");
        reason = part["finish_reason"].clone();
        for field in ["content", "reasoning_content"] {
            if let Some(text) = part["delta"][field].as_str() {
                message[field] = (message[field].as_str().unwrap().to_owned() + text).into();
            }
        }
        for call in part["delta"]["tool_calls"].as_array().into_iter().flatten() {
            let calls = message["tool_calls"].as_array_mut().unwrap();
            let index = call["index"].as_u64().unwrap() as usize;
            let fragment = call["function"]["arguments"].as_str().unwrap();
            if index == calls.len() {
                assert_eq!((&call["type"], fragment), (&json!("function"), ""));
                let mut call = call.clone();
                call.as_object_mut().unwrap().remove("index");
                calls.push(call);
            } else {
                assert_eq!(index + 1, calls.len());
                assert!(call.get("id").is_none() && call["function"].get("name").is_none());
                let arguments = calls[index]["function"]["arguments"].as_str().unwrap().to_owned();
                calls[index]["function"]["arguments"] = (arguments + fragment).into();
            }
        }
    }
    (message, reason)
}

#[tokio::test]
async fn calls_come_as_tool_calls_whole_or_streamed() {
    let server = Server::calling().await;
    let whole = server.post(CHAT, chat(json!({"tools": tools()}))).await;
    assert_eq!(whole.status, 200, "{}", whole.text);
    let choice = &whole.json()["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    let message = &choice["message"];
    assert_eq!((&message["role"], &message["content"]), (&json!("assistant"), &json!("I look.")));
    assert_eq!(message["reasoning_content"], "Rain, say?");
    let calls = message["tool_calls"].as_array().unwrap();
    let said: Vec<(&Value, &Value)> = calls
        .iter()
        .map(|call| (&call["function"]["name"], &call["function"]["arguments"]))
        .collect();
    assert_eq!(
        said,
        [(&json!("weather"), &json!("{\"city\": \"Köln\"}")), (&json!("clock"), &json!("{}"))]
    );
    assert!(calls.iter().all(|call| call["type"] == "function"));
    assert_ne!(calls[0]["id"], calls[1]["id"]);
    // Every token counts, marks too.
    assert_eq!(whole.json()["usage"]["completion_tokens"], CALLS.len() + 1);
    // A token for each byte; those of the opening mark come before the thoughts.
    let thoughts = CALLS.find("</think>").unwrap() + "</think>".len() - "<think>".len();
    assert_eq!(whole.json()["usage"]["completion_tokens_details"]["reasoning_tokens"], thoughts);

    let options = json!({"include_usage": true});
    let body = chat(json!({"tools": tools(), "stream": true, "stream_options": options}));
    let streamed = server.post(CHAT, body).await;
    let usage = streamed.events().last().unwrap()["usage"].clone();
    assert_eq!(usage["completion_tokens_details"]["reasoning_tokens"], thoughts);
    let (joined, reason) = joined(&streamed, 0);
    assert_eq!(reason, "tool_calls");
    assert_eq!(joined["content"], "I look.");
    assert_eq!(joined["reasoning_content"], "Rain, say?");
    let names = |calls: &[Value]| -> Vec<Value> {
        calls.iter().map(|call| call["function"].clone()).collect()
    };
    assert_eq!(names(joined["tool_calls"].as_array().unwrap()), names(calls));
    for event in streamed.events() {
        let text = event.to_string();
        assert!(!text.contains("tool_call>") && !text.contains("think>"), "{text}");
    }
}

#[tokio::test]
async fn without_tools_or_with_none_the_thoughts_alone_are_taken_out() {
    let server = Server::calling().await;
    for more in [json!({}), json!({"tools": tools(), "tool_choice": "none"})] {
        let choice = &server.post(CHAT, chat(more)).await.json()["choices"][0];
        let text = CALLS.split_once("</think>\n\n").unwrap().1;
        assert_eq!(choice["message"]["content"], text);
        assert_eq!(choice["finish_reason"], "stop");
        assert!(choice["message"].get("tool_calls").is_none());
    }
}

#[tokio::test]
async fn an_answer_without_calls_or_thoughts_stays_as_it_is() {
    let server = Server::calling().await;
    for stream in [false, true] {
        let body = chat(json!({"tools": tools(), "stream": stream, "seed": 1}));
        let answer = server.post(CHAT, body).await;
        let (content, reason) = if stream {
            let (message, reason) = joined(&answer, 0);
            (message["content"].clone(), reason)
        } else {
            let choice = answer.json()["choices"][0].clone();
            (choice["message"]["content"].clone(), choice["finish_reason"].clone())
        };
        assert_eq!((content, reason), (json!(PLAIN), json!("stop")));
    }
}

#[tokio::test]
async fn several_answers_call_each_for_itself() {
    let server = Server::calling().await;
    let body = server.post(CHAT, chat(json!({"tools": tools(), "n": 3}))).await.json();
    let choices = body["choices"].as_array().unwrap();
    let calls = |choice: &Value| choice["message"]["tool_calls"].as_array().map_or(0, Vec::len);
    assert_eq!(choices.iter().map(calls).collect::<Vec<_>>(), [2, 0, 2]);
    let id = |choice: &Value| choice["message"]["tool_calls"][0]["id"].clone();
    assert_ne!(id(&choices[0]), id(&choices[2]));
    let streamed = server.post(CHAT, chat(json!({"tools": tools(), "n": 2, "stream": true}))).await;
    assert_eq!(joined(&streamed, 0).0["tool_calls"].as_array().unwrap().len(), 2);
    assert_eq!(joined(&streamed, 1).0["content"], PLAIN);
}

#[tokio::test]
async fn without_parallel_calls_the_first_ends_the_answer() {
    let server = Server::calling().await;
    for stream in [false, true] {
        let body = chat(json!({
            "tools": tools(), "parallel_tool_calls": false, "stream": stream,
        }));
        let answer = server.post(CHAT, body).await;
        let (calls, reason) = if stream {
            let (message, reason) = joined(&answer, 0);
            (message["tool_calls"].clone(), reason)
        } else {
            let choice = answer.json()["choices"][0].clone();
            (choice["message"]["tool_calls"].clone(), choice["finish_reason"].clone())
        };
        assert_eq!(calls.as_array().unwrap().len(), 1);
        assert_eq!(calls[0]["function"]["arguments"], "{\"city\": \"Köln\"}");
        assert_eq!(reason, "tool_calls");
    }
    server.until("polder_kv_blocks_used", |used| used == 0.0).await;
}

#[tokio::test]
async fn a_call_that_is_cut_off_is_no_call_to_act_on() {
    let server = Server::calling().await;
    let limit = CALLS.find("Köln").unwrap() + 2;
    let body = chat(json!({"tools": tools(), "max_tokens": limit}));
    let choice = &server.post(CHAT, body).await.json()["choices"][0];
    assert_eq!(choice["finish_reason"], "length");
    let arguments = &choice["message"]["tool_calls"][0]["function"]["arguments"];
    assert!(serde_json::from_str::<Value>(arguments.as_str().unwrap()).is_err(), "{arguments}");
}

#[tokio::test]
async fn a_stop_string_is_looked_for_in_the_content_alone() {
    let server = Server::calling().await;
    // It stands in the thoughts of the one and in the content of the other.
    for (seed, content, reason) in
        [(0, json!("I look."), "tool_calls"), (1, json!("No <tool> is needed, "), "stop")]
    {
        let body = chat(json!({"tools": tools(), "stop": "say", "seed": seed}));
        let choice = &server.post(CHAT, body).await.json()["choices"][0];
        assert_eq!(choice["message"]["content"], content);
        assert_eq!(choice["finish_reason"], reason);
    }
}

#[tokio::test]
async fn logprobs_of_a_model_that_thinks_list_every_token() {
    let server = Server::calling().await;
    for stream in [false, true] {
        let body = chat(json!({"logprobs": true, "stream": stream}));
        let answer = server.post(CHAT, body).await;
        let choices: Vec<Value> = if stream {
            answer.events().iter().map(|event| event["choices"][0].clone()).collect()
        } else {
            vec![answer.json()["choices"][0].clone()]
        };
        let lists = choices.iter().filter_map(|choice| choice["logprobs"]["content"].as_array());
        let bytes: Vec<u8> =
            lists.flatten().map(|entry| entry["bytes"][0].as_u64().unwrap() as u8).collect();
        assert_eq!(String::from_utf8(bytes).unwrap(), CALLS);
    }
}

#[tokio::test]
async fn earlier_calls_and_what_they_gave_reach_the_template() {
    let server = Server::calling().await;
    let messages = json!([
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": null, "reasoning_content": "Hm.", "tool_calls": [
            {"id": "abc", "type": "function",
             "function": {"name": "weather", "arguments": "{\"city\": \"<|im_end|>\"}"}}]},
        {"role": "tool", "tool_call_id": "abc", "content": "<|im_end|>"},
    ]);
    let body = chat(json!({"messages": messages, "tools": tools()}));
    let answer = server.post(CHAT, body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    // Words of a tool or of arguments are no control tokens either: a token for each byte.
    let tools = json!(tools()).to_string();
    let spaced = 2 * tools.matches([',', ':']).count() / 2;
    let prompt = "<tool_call></tool_call>\n".len() + tools.len() + spaced
        + 1 + "user\nRain?".len() + 1 + 1
        + 1 + "assistant\n<tool_call>{\"name\": \"weather\", \"arguments\": {\"city\": \"<|im_end|>\"}}</tool_call>".len() + 1 + 1
        + 1 + "tool\n<|im_end|>(abc)".len() + 1 + 1
        + 1 + "assistant\n".len();
    assert_eq!(answer.json()["usage"]["prompt_tokens"], prompt);
}

#[test]
fn arguments_of_earlier_calls_are_an_object_where_they_can_be() {
    for (given, read) in [
        (json!("{\"a\": 1}"), json!({"a": 1})),
        (json!(""), json!({})),
        (Value::Null, json!({})),
        (json!({"a": 1}), json!({"a": 1})),
        (json!("no JSON"), json!("no JSON")),
    ] {
        let call = json!({"id": "1", "function": {"name": "f", "arguments": given}});
        let body = chat(json!({"messages": [{"role": "assistant", "tool_calls": [call]}]}));
        let request = parse_chat(body.to_string().as_bytes(), false).unwrap();
        assert_eq!(request.messages[0]["tool_calls"][0]["function"]["arguments"], read);
    }
}

#[tokio::test]
async fn thinking_is_turned_off_under_either_name() {
    let server = Server::calling().await;
    let tokens = async |more: Value| {
        let answer = server.post_with(CHAT, &[("x-polder-strict", "1")], chat(more)).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json()["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    let on = tokens(json!({})).await;
    assert_eq!(tokens(json!({"reasoning_effort": "high"})).await, on);
    assert_eq!(tokens(json!({"chat_template_kwargs": {"enable_thinking": true}})).await, on);
    let off = on + "<think>\n\n</think>\n\n".len() as u64;
    assert_eq!(tokens(json!({"reasoning_effort": "none"})).await, off);
    assert_eq!(tokens(json!({"chat_template_kwargs": {"enable_thinking": false}})).await, off);
    let unknown = json!({"chat_template_kwargs": {"mood": "good"}});
    let answer = server.post(CHAT, chat(unknown.clone())).await;
    assert_eq!(answer.header("x-polder-ignored"), Some("chat_template_kwargs.mood"));
    let strict = server.post_with(CHAT, &[("x-polder-strict", "1")], chat(unknown)).await;
    strict.refusal(400, Some("chat_template_kwargs.mood"), Some("unknown_parameter"));
    for wrong in [json!(1), json!({"messages": []})] {
        let answer = server.post(CHAT, chat(json!({"chat_template_kwargs": wrong}))).await;
        assert_eq!(answer.status, 400);
    }
}

#[tokio::test]
async fn a_model_whose_prompt_begins_its_thoughts_thinks_from_the_first_word() {
    let template = "{{ messages[0].content }}<think>\n";
    let says = ["Rain, say?</think>\n\nYes.", "No."];
    let server = Server::speaking(template, saying(says), Config::default()).await;
    let message = server.post(CHAT, chat(json!({}))).await.json()["choices"][0]["message"].clone();
    assert_eq!(
        (&message["content"], &message["reasoning_content"]),
        (&json!("Yes."), &json!("Rain, say?"))
    );
    let body = chat(json!({"reasoning_effort": "none"}));
    server.post(CHAT, body).await.refusal(
        400,
        Some("reasoning_effort"),
        Some("unsupported_parameter"),
    );
}

#[tokio::test]
async fn what_cannot_be_offered_is_refused_by_name() {
    let server = Server::calling().await;
    let unsupported = Some("unsupported_parameter");
    let named = |name: &str| json!({"type": "function", "function": {"name": name}});
    let list = |tool: Value| json!({"tools": [tool]});
    for (more, param, code) in [
        (
            json!({"tools": tools(), "tool_choice": "required", "ignore_eos": true}),
            "ignore_eos",
            unsupported,
        ),
        (json!({"tools": tools(), "tool_choice": named("other")}), "tool_choice", None),
        (json!({"tools": tools(), "tool_choice": "maybe"}), "tool_choice", None),
        (json!({"tools": tools(), "logprobs": true}), "logprobs", unsupported),
        (json!({"tools": 1}), "tools", None),
        (json!({"tools": [named("a"), named("a")]}), "tools[1].function.name", None),
        (list(json!({"type": "custom", "custom": {"name": "x"}})), "tools[0]", unsupported),
        (list(json!({"name": "x"})), "tools[0]", None),
        (list(json!(1)), "tools[0]", None),
        (list(named("a b")), "tools[0].function.name", None),
        (list(named("")), "tools[0].function.name", None),
        (list(json!({"type": "function"})), "tools[0].function.name", None),
        (
            list(json!({"type": "function", "function": {"name": "f", "parameters": []}})),
            "tools[0].function.parameters",
            None,
        ),
    ] {
        server.post(CHAT, chat(more)).await.refusal(400, Some(param), code);
    }
    let odd = |schema: Value| {
        json!({"tools": [named("a"), {"type": "function",
        "function": {"name": "f", "parameters": schema}}], "tool_choice": "required"})
    };
    for (schema, names) in [
        (json!({"type": "object", "minProperties": 3, "not": {}}), "\"not\""),
        (json!({"type": "array"}), "\"object\""),
    ] {
        let answer = server.post(CHAT, chat(odd(schema))).await;
        let told = answer.refusal(400, Some("tools[1].function.parameters"), None);
        assert!(told.contains(names), "{told}");
    }
}

/// A chat with tools that take little.
fn short(more: Value) -> Value {
    let tool = |(name, schema): (&str, Value)| json!({"type": "function", "function": {"name": name, "parameters": schema}});
    let tools: Vec<Value> = short_tools().map(tool).into();
    with(chat(json!({"tools": tools, "reasoning_effort": "none"})), more)
}

/// Asserts that a message is calls and nothing else, of tools that are on offer; their names.
fn assert_calls(message: &Value) -> Vec<String> {
    assert!(message["content"].as_str().is_none_or(str::is_empty), "{message}");
    let call = |call: &Value| {
        let name = call["function"]["name"].as_str().unwrap().to_owned();
        let arguments = call["function"]["arguments"].as_str().unwrap();
        assert_fits(&name, &serde_json::from_str(arguments).unwrap());
        name
    };
    let names: Vec<String> =
        message["tool_calls"].as_array().into_iter().flatten().map(call).collect();
    assert!(!names.is_empty(), "{message}");
    names
}

#[tokio::test]
async fn a_model_that_must_call_calls_whatever_it_would_have_said() {
    let server = Server::speaking(TEMPLATE, babbler(), Config::default()).await;
    let clock = json!({"type": "function", "function": {"name": "clock"}});
    for seed in 0..4 {
        for (more, one, only) in [
            (json!({"tool_choice": "required"}), false, None),
            (json!({"tool_choice": "required", "parallel_tool_calls": false}), true, None),
            (json!({"tool_choice": clock}), true, Some("clock")),
        ] {
            let more = with(more, json!({"seed": seed}));
            let whole = server.post(CHAT, short(more.clone())).await;
            assert_eq!(whole.status, 200, "{}", whole.text);
            assert_eq!(whole.header("x-polder-ignored"), None);
            let choice = whole.json()["choices"][0].clone();
            assert_eq!(choice["finish_reason"], "tool_calls", "{choice}");
            let names = assert_calls(&choice["message"]);
            assert!(!one || names.len() == 1, "{names:?}");
            assert!(only.is_none_or(|only| names == [only]), "{names:?}");
            let streamed = server.post(CHAT, short(with(more, json!({"stream": true})))).await;
            let (message, reason) = joined(&streamed, 0);
            assert_eq!((assert_calls(&message), reason), (names, json!("tool_calls")));
        }
    }
}

#[tokio::test]
async fn a_model_that_must_call_may_think_first() {
    let template = "{% if tools %}<tool_call>{% endif %}{{ messages[0].content }}<think>\n";
    let says = ["Rain?</think>\n\nNo.", "Say <tool_call>?</think>No."];
    let server = Server::speaking(template, saying(says), Config::default()).await;
    for (seed, thought) in [(0, "Rain?"), (1, "Say <tool_call>?")] {
        let body = chat(json!({"tools": short(json!({}))["tools"], "tool_choice": "required",
            "parallel_tool_calls": false, "seed": seed}));
        let answer = server.post(CHAT, body).await.json();
        let message = &answer["choices"][0]["message"];
        assert_eq!(message["reasoning_content"], thought);
        assert_calls(message);
    }
}

#[tokio::test]
async fn a_strict_tool_is_called_as_its_schema_says_where_a_mark_announces_calls() {
    let call = "{\"name\": \"weather\", \"arguments\": {\"town\": 1}}";
    let text = format!("Well. <tool_call>\n{call}\n</tool_call>");
    let server = Server::speaking(TEMPLATE, saying([&text; 2]), Config::default()).await;
    let mut body = short(json!({"parallel_tool_calls": false}));
    let loose = server.post(CHAT, body.clone()).await.json();
    let arguments = &loose["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"];
    assert_eq!(arguments, "{\"town\": 1}");
    body["tools"][0]["function"]["strict"] = true.into();
    let answer = server.post(CHAT, body.clone()).await;
    assert_eq!(answer.header("x-polder-ignored"), None);
    let mut message = answer.json()["choices"][0]["message"].clone();
    assert_eq!(message["content"].take(), "Well.");
    assert_eq!(assert_calls(&message), ["weather"]);
    // Where nothing but the call itself shows that it is one, text cannot be told from it.
    let bare = "{% if tools %}<|python_tag|>{% endif %}{{ messages[0].content }}";
    let server = Server::speaking(bare, saying([PLAIN; 2]), Config::default()).await;
    let answer = server.post(CHAT, with(body.clone(), json!({"reasoning_effort": null}))).await;
    assert_eq!(answer.header("x-polder-ignored"), Some("tools[].function.strict"));
    let answer = server.post_with(CHAT, &[("x-polder-strict", "1")], body).await;
    answer.refusal(400, Some("tools[].function.strict"), Some("unsupported_parameter"));
}

#[tokio::test]
async fn beside_a_form_a_model_calls_or_answers_in_it() {
    let schema = json!({"type": "object", "additionalProperties": false, "required": ["ok"],
        "properties": {"ok": {"type": "boolean"}}});
    let form = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    let calls = "<tool_call>\n{\"name\": \"clock\", \"arguments\": {}}\n</tool_call>";
    let server =
        Server::speaking(TEMPLATE, saying([calls, "{\"ok\": maybe}"]), Config::default()).await;
    let called = server.post(CHAT, short(json!({"response_format": form}))).await.json();
    assert_eq!(assert_calls(&called["choices"][0]["message"]), ["clock"]);
    let body = short(json!({"response_format": form, "seed": 1}));
    let said = server.post(CHAT, body).await.json()["choices"][0]["message"].clone();
    let answer: Value = serde_json::from_str(said["content"].as_str().unwrap()).unwrap();
    assert!(answer["ok"].is_boolean() && said.get("tool_calls").is_none(), "{said}");
    // What is no JSON has no place beside calls.
    let body = short(json!({"guided_choice": ["yes", "no"]}));
    server.post(CHAT, body).await.refusal(
        400,
        Some("guided_choice"),
        Some("unsupported_parameter"),
    );
}
