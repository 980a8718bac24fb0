//! The Responses API, as OpenAI's SDK reads it.

#![allow(clippy::unwrap_used)] // Helpers outside test functions unwrap too.

mod common;

use common::{MODEL, SAYS, Server, respond, with};
use serde_json::{Value, json};

const RESPONSES: &str = "/v1/responses";

#[tokio::test]
async fn a_response_has_every_part_that_an_sdk_reads() {
    let server = Server::parrot().await;
    let body = respond(json!({"metadata": {"a": "b"}, "temperature": 0.5, "instructions": "Be."}));
    let answer = server.post(RESPONSES, body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.header("x-polder-ignored"), None);
    let body = answer.json();
    assert!(body["id"].as_str().unwrap().starts_with("resp_"));
    for (field, expected) in [
        ("object", json!("response")),
        ("model", json!(MODEL)),
        ("status", json!("completed")),
        ("store", json!(false)),
        ("error", Value::Null),
        ("incomplete_details", Value::Null),
        ("metadata", json!({"a": "b"})),
        ("temperature", json!(0.5)),
        ("instructions", json!("Be.")),
        ("max_output_tokens", Value::Null),
    ] {
        assert_eq!(body[field], expected, "{field}");
    }
    let item = &body["output"][0];
    assert_eq!(item["type"], "message");
    assert_eq!(item["content"][0]["text"], SAYS[0]);
    let prompt = answer.header("x-polder-prompt-tokens").unwrap().parse::<usize>().unwrap();
    let completion = SAYS[0].len() + 1;
    assert_eq!(
        body["usage"],
        json!({
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": completion, "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + completion,
        })
    );
}

#[tokio::test]
async fn a_stream_tells_each_step_in_numbered_events() {
    let server = Server::parrot().await;
    let trailers = [("te", "trailers")];
    let answer = server.post_with(RESPONSES, &trailers, respond(json!({"stream": true}))).await;
    let expected = format!("prompt=21,completion={}", SAYS[0].len() + 1);
    assert_eq!(answer.usage_trailer(), Some(expected.as_str()));
    let events = answer.named_events();
    let numbers: Vec<u64> =
        events.iter().map(|event| event["sequence_number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (0..events.len() as u64).collect::<Vec<_>>());
    let mut kinds: Vec<&str> = events
        .iter()
        .map(|event| event["type"].as_str().unwrap().strip_prefix("response.").unwrap())
        .collect();
    kinds.dedup();
    assert_eq!(
        kinds,
        [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "completed",
        ]
    );
    let text: String = events.iter().filter_map(|event| event["delta"].as_str()).collect();
    assert_eq!(text, SAYS[0]);
    let last = &events.last().unwrap()["response"];
    assert_eq!(last["output"][0]["content"][0]["text"], SAYS[0]);
    assert_eq!(last["usage"]["output_tokens"], SAYS[0].len() + 1);
    let item = &events[2]["item"]["id"];
    assert!(events.iter().filter_map(|event| event.get("item_id")).all(|id| id == item));
}

#[tokio::test]
async fn an_answer_that_reaches_its_limit_is_incomplete() {
    let server = Server::parrot().await;
    for stream in [false, true] {
        let body = respond(json!({"max_output_tokens": 5, "stream": stream}));
        let answer = server.post(RESPONSES, body).await;
        let response = match stream {
            false => answer.json(),
            true => {
                let last = answer.named_events().pop().unwrap();
                assert_eq!(last["type"], "response.incomplete");
                last["response"].clone()
            }
        };
        assert_eq!(response["status"], "incomplete");
        assert_eq!(response["incomplete_details"], json!({"reason": "max_output_tokens"}));
        assert_eq!(response["output"][0]["content"][0]["text"], "Hello");
    }
}

#[tokio::test]
async fn what_would_be_stored_or_cannot_be_done_is_refused_by_name() {
    let server = Server::parrot().await;
    let image = json!([{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]);
    let unsupported = Some("unsupported_parameter");
    for (more, param, code) in [
        (json!({"store": true}), "store", unsupported),
        (json!({"previous_response_id": "resp_1"}), "previous_response_id", unsupported),
        (json!({"conversation": "conv_1"}), "conversation", unsupported),
        (json!({"background": true}), "background", unsupported),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0]", unsupported),
        (json!({"tools": [{"type": "function", "name": "f"}]}), "tools", unsupported),
        (json!({"tool_choice": "required"}), "tool_choice", unsupported),
        (json!({"text": {"format": {"type": "json_schema"}}}), "text.format.schema", None),
        (json!({"text": {"verbosity": "low"}}), "text.verbosity", unsupported),
        (json!({"reasoning": {"effort": "high"}}), "reasoning.effort", unsupported),
        (json!({"include": "message.output_text.logprobs"}), "include", None),
        (json!({"top_logprobs": 2}), "top_logprobs", None),
        (json!({"top_logprobs": 21}), "top_logprobs", None),
        (json!({"input": image}), "input[0].content[0]", Some("unsupported_content")),
        (
            json!({"input": [{"type": "item_reference", "id": "x"}]}),
            "input[0]",
            Some("unsupported_content"),
        ),
        (
            json!({"input": [{"type": "function_call_output", "call_id": "1", "output": "x"}]}),
            "input",
            unsupported,
        ),
        (json!({"input": []}), "input", None),
        (json!({"input": [{"role": "system", "content": "x"}]}), "input", None),
        (json!({"input": [{"role": "king", "content": "x"}]}), "input[0].role", None),
        (json!({"max_output_tokens": 0}), "max_output_tokens", None),
    ] {
        server.post(RESPONSES, respond(more)).await.refusal(400, Some(param), code);
    }
    let body = respond(json!({
        "store": false, "background": false, "tools": [], "tool_choice": "auto",
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "reasoning": {"effort": "none"}, "include": ["reasoning.encrypted_content"],
        "truncation": "auto", "parallel_tool_calls": false,
    }));
    let answer = server.post_with(RESPONSES, &[("x-polder-strict", "1")], body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
}

#[tokio::test]
async fn logprobs_are_told_of_every_token_of_the_text() {
    let server = Server::parrot().await;
    let asked = json!({"include": ["message.output_text.logprobs"], "top_logprobs": 2});
    let bytes = |list: &Value| -> Vec<u8> {
        let entries = list.as_array().unwrap().iter();
        entries
            .flat_map(|entry| {
                assert!(entry["logprob"].is_number());
                assert_eq!(entry["top_logprobs"].as_array().unwrap().len(), 2);
                entry["bytes"].as_array().unwrap().iter().map(|byte| byte.as_u64().unwrap() as u8)
            })
            .collect()
    };
    let whole = server.post(RESPONSES, respond(asked.clone())).await.json();
    assert_eq!(whole["top_logprobs"], 2);
    let list = &whole["output"][0]["content"][0]["logprobs"];
    assert_eq!(bytes(list), SAYS[0].as_bytes());
    let body = respond(with(asked.clone(), json!({"stream": true})));
    let events = server.post(RESPONSES, body).await.named_events();
    let of = |kind: &'static str| events.iter().filter(move |event| event["type"] == kind);
    let told: Vec<u8> =
        of("response.output_text.delta").flat_map(|event| bytes(&event["logprobs"])).collect();
    assert_eq!(told, SAYS[0].as_bytes());
    assert_eq!(of("response.output_text.done").next().unwrap()["logprobs"], *list);
    let done = of("response.content_part.done").next().unwrap();
    assert_eq!(done["part"]["logprobs"], *list);
    // Which token is a thought is not known.
    let thinks = Server::calling().await;
    let answer = thinks.post(RESPONSES, respond(asked)).await;
    answer.refusal(400, Some("include"), Some("unsupported_parameter"));
}
