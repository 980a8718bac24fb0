//! Anthropic's API, as its SDK reads it.

#![allow(clippy::unwrap_used)] // Helpers outside test functions unwrap too.

mod common;

use common::{MODEL, SAYS, Server, chat, message};
use serde_json::{Value, json};

const MESSAGES: &str = "/v1/messages";
const COUNT: &str = "/v1/messages/count_tokens";
/// <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n, a token for each byte.
const PROMPT: u64 = 21;

#[tokio::test]
async fn a_message_has_every_part_that_an_sdk_reads() {
    let server = Server::parrot().await;
    let answer = server.post(MESSAGES, message(json!({}))).await;
    assert_eq!(answer.status, 200);
    let body = answer.json();
    assert!(body["id"].as_str().unwrap().starts_with("msg_"));
    assert_eq!(body["type"], "message");
    assert_eq!(body["role"], "assistant");
    assert_eq!(body["model"], MODEL);
    assert_eq!(body["content"], json!([{"type": "text", "text": SAYS[0]}]));
    assert_eq!(body["stop_reason"], "end_turn");
    assert_eq!(body["stop_sequence"], Value::Null);
    assert_eq!(
        body["usage"],
        json!({
            "input_tokens": PROMPT, "output_tokens": SAYS[0].len() + 1,
            "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
        })
    );
    assert_eq!(answer.header("x-polder-prompt-tokens"), Some("21"));
    assert_eq!(answer.header("x-polder-ignored"), None);
}

#[tokio::test]
async fn a_stream_begins_its_block_with_the_first_word_and_ends_with_reason_and_usage() {
    let server = Server::parrot().await;
    let with = [("te", "trailers")];
    let answer = server.post_with(MESSAGES, &with, message(json!({"stream": true}))).await;
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    let expected = format!("prompt=21,completion={}", SAYS[0].len() + 1);
    assert_eq!(answer.usage_trailer(), Some(expected.as_str()));
    let events = answer.named_events();
    let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    let deltas = SAYS[0].chars().count();
    assert_eq!(kinds[..3], ["message_start", "ping", "content_block_start"]);
    assert!(kinds[3..3 + deltas].iter().all(|kind| *kind == "content_block_delta"));
    assert_eq!(kinds[3 + deltas..], ["content_block_stop", "message_delta", "message_stop"]);
    let start = &events[0]["message"];
    assert_eq!(start["content"], json!([]));
    assert_eq!(start["stop_reason"], Value::Null);
    assert_eq!(start["usage"]["input_tokens"], PROMPT);
    let text: String = events.iter().filter_map(|event| event["delta"]["text"].as_str()).collect();
    assert_eq!(text, SAYS[0]);
    let end = &events[events.len() - 2];
    assert_eq!(end["delta"], json!({"stop_reason": "end_turn", "stop_sequence": null}));
    assert_eq!(end["usage"]["output_tokens"], SAYS[0].len() + 1);
}

#[tokio::test]
async fn the_reason_says_which_stop_sequence_it_was_or_that_the_limit_was_reached() {
    let server = Server::parrot().await;
    for stream in [false, true] {
        let body = message(json!({"stop_sequences": ["nothing", "👋, b"], "stream": stream}));
        let answer = server.post(MESSAGES, body).await;
        let (reason, text) = match stream {
            false => {
                let body = answer.json();
                let text = body["content"][0]["text"].as_str().unwrap().to_owned();
                (json!([body["stop_reason"], body["stop_sequence"]]), text)
            }
            true => {
                let events = answer.named_events();
                let delta = &events[events.len() - 2]["delta"];
                let text = events.iter().filter_map(|event| event["delta"]["text"].as_str());
                (json!([delta["stop_reason"], delta["stop_sequence"]]), text.collect())
            }
        };
        assert_eq!(reason, json!(["stop_sequence", "👋, b"]));
        assert_eq!(text, "Hello wörld ");
    }
    let body = server.post(MESSAGES, message(json!({"max_tokens": 5}))).await.json();
    assert_eq!(body["stop_reason"], "max_tokens");
    // Nothing said is no block.
    let body = server.post(MESSAGES, message(json!({"stop_sequences": ["Hello"]}))).await.json();
    assert_eq!(body["content"], json!([]));
}

#[tokio::test]
async fn what_was_known_is_counted_apart_and_a_billing_line_does_not_hide_it() {
    let server = Server::parrot().await;
    let ask = async |path: &str, number: usize, stream: bool| {
        let line = format!("x-anthropic-billing-header: cc_version=2.1; cch={number:05x};");
        let system = json!([{"type": "text", "text": line},
            {"type": "text", "text": "You are kind. ".repeat(10),
             "cache_control": {"type": "ephemeral"}}]);
        let answer = server.post(path, message(json!({"system": system, "stream": stream}))).await;
        assert_eq!(answer.header("x-polder-ignored"), None);
        match stream {
            true => answer.named_events().iter().rev().nth(1).unwrap()["usage"].clone(),
            false => answer.json()["usage"].clone(),
        }
    };
    let first = ask(MESSAGES, 1, false).await;
    assert_eq!(first["cache_read_input_tokens"], 0);
    let all = first["input_tokens"].as_u64().unwrap();
    for stream in [false, true] {
        let again = ask(MESSAGES, 2, stream).await;
        let (read, known) = (&again["input_tokens"], &again["cache_read_input_tokens"]);
        assert_eq!(read.as_u64().unwrap() + known.as_u64().unwrap(), all);
        assert!(read.as_u64().unwrap() <= 16, "{again}");
    }
    let system = |line: &str| json!({"role": "system", "content": format!("{line}You are kind.")});
    let count = async |first: Value| {
        let body = chat(json!({"messages": [first, {"role": "user", "content": "Hi"}]}));
        server.post("/v1/chat/completions", body).await.json()["usage"]["prompt_tokens"].clone()
    };
    let line = "x-anthropic-billing-header: cch=1;\n";
    assert_eq!(count(system(line)).await, count(system("")).await);
}

#[tokio::test]
async fn tokens_are_counted_without_an_answer() {
    let server = Server::parrot().await;
    let mut body = message(json!({}));
    body.as_object_mut().unwrap().remove("max_tokens");
    let answer = server.post(COUNT, body.clone()).await;
    assert_eq!(answer.json(), json!({"input_tokens": PROMPT}));
    // Counting uses nothing that a key would pay for.
    assert_eq!(answer.header("x-polder-prompt-tokens"), None);
    body["messages"][0]["content"] = "x".repeat(2000).into();
    assert_eq!(server.post(COUNT, body.clone()).await.json()["input_tokens"], PROMPT + 1998);
    body["messages"][0]["content"] = "x".repeat(1 << 20).into();
    server.post(COUNT, body).await.anthropic_refusal(400, "invalid_request_error");
}

#[tokio::test]
async fn refusals_have_anthropics_shape_and_name_the_field() {
    let server = Server::parrot().await;
    let user = |block: Value| json!({"messages": [{"role": "user", "content": [block]}]});
    for (more, name) in [
        (json!({"max_tokens": null}), "max_tokens"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"temperature": 1.5}), "temperature"),
        (json!({"tools": [{"name": "f", "input_schema": {}}]}), "tools"),
        (json!({"thinking": {"type": "enabled", "display": "loud"}}), "thinking.display"),
        (json!({"tool_choice": {"type": "any"}}), "tool_choice"),
        (json!({"thinking": {"type": "between"}}), "thinking.type"),
        (json!({"output_config": {"format": {}}}), "output_config.format"),
        (json!({"output_config": {"effort": "low"}}), "output_config.effort"),
        (json!({"mcp_servers": [{"url": "x"}]}), "mcp_servers"),
        (json!({"stop_sequences": [""]}), "stop_sequences"),
        (json!({"system": 7}), "system"),
        (json!({"system": [{"type": "image"}]}), "system[0]"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": [{"role": "king", "content": "x"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content"),
        (
            json!({"messages": [{"role": "user", "content": "x"},
            {"role": "assistant", "content": "The answer is ("}]}),
            "messages[1]",
        ),
        (user(json!({"type": "image", "source": {}})), "messages[0].content[0]"),
        (user(json!({"type": "document", "source": {}})), "messages[0].content[0]"),
        (user(json!({"type": "tool_use", "id": "1", "name": "f"})), "messages[0].content[0]"),
        (user(json!({"type": "tool_result"})), "messages[0].content[0]"),
        (user(json!({"type": "tool_result", "tool_use_id": "1", "content": "x"})), "messages"),
    ] {
        let answer = server.post(MESSAGES, message(more.clone())).await;
        let said = answer.anthropic_refusal(400, "invalid_request_error");
        assert!(said.contains(&format!("\"{name}\"")), "{more}: {said}");
    }
    let other = server.post(MESSAGES, message(json!({"model": "claude-5"}))).await;
    assert!(other.anthropic_refusal(404, "not_found_error").contains(MODEL));
    let long = json!({"messages": [{"role": "user", "content": "x".repeat(2000)}]});
    let refused = server.post(MESSAGES, message(long)).await;
    let said = refused.anthropic_refusal(400, "invalid_request_error");
    assert!(said.starts_with("prompt is too long: "), "{said}");
}

#[tokio::test]
async fn what_has_no_effect_is_named_and_what_asks_for_nothing_is_taken() {
    let server = Server::parrot().await;
    let body = message(json!({
        "frobnicate": 1, "thinking": {"type": "enabled", "budget_tokens": 1024},
        "tools": [{"name": "f"}], "tool_choice": {"type": "none"},
        "messages": [{"role": "user", "content": [
            {"type": "text", "text": "x", "citations": [{}]},
            {"type": "text", "text": "y", "citations": null}]}],
    }));
    let answer = server.post(MESSAGES, body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let mut names: Vec<&str> = answer.header("x-polder-ignored").unwrap().split(", ").collect();
    names.sort_unstable();
    assert_eq!(
        names,
        ["frobnicate", "messages[].content[].citations", "thinking.budget_tokens", "tools"]
    );
    let body = message(json!({
        "tools": [], "tool_choice": {"type": "auto"}, "thinking": {"type": "disabled"},
        "output_config": {"effort": "high"}, "metadata": {"user_id": "x"},
        "cache_control": {"type": "ephemeral"}, "service_tier": "auto", "mcp_servers": [],
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    }));
    let answer = server.post_with(MESSAGES, &[("x-polder-strict", "1")], body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
}
