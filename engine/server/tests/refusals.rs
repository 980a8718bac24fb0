//! What cannot be served is refused in one sentence; what has no effect is named.

#![allow(clippy::unwrap_used)] // Helpers outside test functions unwrap too.

mod common;

use common::{Answer, MODEL, Server, chat, completion, open};
use polder_engine_server::wire::chat::parse_chat;
use polder_engine_server::wire::completions::parse_completion;
use polder_engine_server::wire::embeddings::parse_embeddings;
use polder_engine_server::wire::messages::{Purpose, parse_messages};
use polder_engine_server::wire::responses::parse_responses;
use polder_engine_server::wire::tokens::{parse_detokenize, parse_tokenize};
use polder_scheduler::Config;
use proptest::prelude::*;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

#[tokio::test]
async fn fields_outside_the_specification_are_named_or_refused_to_a_strict_key() {
    let server = Server::parrot().await;
    let body = chat(json!({
        "frobnicate": 1, "grüße": 2, "store": true, "top_k": 5, "user": "me",
        "messages": [{"role": "user", "content": [
            {"type": "text", "text": "x", "cache_control": {}, "loudness": 1}], "mood": "good"}],
        "stream": true, "stream_options": {"chunk_size": 3},
    }));
    let answer = server.post(CHAT, body.clone()).await;
    assert_eq!(answer.status, 200);
    let mut names: Vec<&str> = answer.header("x-polder-ignored").unwrap().split(", ").collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "frobnicate",
            "gr??e",
            "messages[].content[].loudness",
            "messages[].mood",
            "store",
            "stream_options.chunk_size",
        ]
    );
    let strict = server.post_with(CHAT, &[("x-polder-strict", "1")], body).await;
    assert_eq!(strict.status, 400);
    assert!(strict.text.contains("frobnicate") && strict.text.contains("messages[].mood"));
    let clean = server.post_with(CHAT, &[("x-polder-strict", "1")], chat(json!({}))).await;
    assert_eq!(clean.status, 200);
    let text = server.post(TEXT, completion(json!({"frobnicate": 1}))).await;
    assert_eq!(text.header("x-polder-ignored"), Some("frobnicate"));
}

#[tokio::test]
async fn known_fields_that_cannot_be_honoured_are_refused_by_name() {
    let server = Server::parrot().await;
    let tool = json!([{"type": "function", "function": {"name": "f"}}]);
    let image = json!([{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "data:"}}]}]);
    let calls = json!([{"role": "assistant", "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}]);
    let unsupported = Some("unsupported_parameter");
    for call in [json!(1), json!("x"), json!({"function": "f"}), json!({"function": {"name": 1}})] {
        let messages = json!([{"role": "assistant", "tool_calls": [call]}]);
        let answer = server.post(CHAT, chat(json!({"messages": messages}))).await;
        answer.refusal(400, Some("messages[0].tool_calls"), None);
    }
    for (more, param, code) in [
        (json!({"tools": tool}), "tools", unsupported),
        (json!({"tools": tool, "tool_choice": "auto"}), "tools", unsupported),
        (json!({"tool_choice": "required"}), "tool_choice", unsupported),
        (json!({"functions": [{"name": "f"}]}), "functions", unsupported),
        (json!({"response_format": {"type": "xml"}}), "response_format", unsupported),
        (json!({"modalities": ["text", "audio"]}), "modalities", unsupported),
        (json!({"audio": {"voice": "x"}}), "audio", unsupported),
        (json!({"web_search_options": {}}), "web_search_options", unsupported),
        (json!({"verbosity": "low"}), "verbosity", unsupported),
        (json!({"reasoning_effort": "high"}), "reasoning_effort", unsupported),
        (json!({"messages": image}), "messages[0].content[0]", Some("unsupported_content")),
        (json!({"messages": calls}), "messages[0].tool_calls", unsupported),
        (json!({"messages": [{"role": "tool", "content": "x"}]}), "messages[0].role", unsupported),
    ] {
        server.post(CHAT, chat(more)).await.refusal(400, Some(param), code);
    }
    for (more, param) in [(json!({"suffix": "x"}), "suffix"), (json!({"best_of": 4}), "best_of")] {
        server.post(TEXT, completion(more)).await.refusal(400, Some(param), unsupported);
    }
    // Asking for nothing is no reason to refuse.
    let nothing = chat(json!({
        "tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "functions": null,
        "modalities": ["text"], "audio": null, "parallel_tool_calls": false, "store": false,
        "reasoning_effort": "none", "verbosity": "medium", "metadata": {"a": "b"}, "n": 1,
        "logit_bias": {}, "stop": null, "top_logprobs": 0, "service_tier": "auto",
        "tool_choice": "none",
    }));
    let answer = server.post_with(CHAT, &[("x-polder-strict", "1")], nothing).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let unused = server.post(CHAT, chat(json!({"tools": tool, "tool_choice": "none"}))).await;
    assert_eq!((unused.status.as_u16(), unused.header("x-polder-ignored")), (200, Some("tools")));
}

#[tokio::test]
async fn a_text_far_beyond_the_context_is_not_tokenized() {
    let server = Server::parrot().await;
    let answer = server.post("/tokenize", json!({"prompt": "x".repeat(1 << 20)})).await;
    answer.refusal(400, Some("prompt"), Some("context_length_exceeded"));
}

#[tokio::test]
async fn values_out_of_range_are_refused_by_name() {
    let server = Server::parrot().await;
    for (more, param) in [
        (json!({"temperature": 2.1}), "temperature"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"top_p": -0.1}), "top_p"),
        (json!({"top_k": -2}), "top_k"),
        (json!({"min_p": 1.5}), "min_p"),
        (json!({"presence_penalty": 3}), "presence_penalty"),
        (json!({"repetition_penalty": 0}), "repetition_penalty"),
        (json!({"seed": 1.5}), "seed"),
        (json!({"n": 0}), "n"),
        (json!({"n": 129}), "n"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_completion_tokens": -1}), "max_completion_tokens"),
        (json!({"stop": [""]}), "stop"),
        (json!({"stop": 7}), "stop"),
        (json!({"stream": "yes"}), "stream"),
        (json!({"stream_options": {"include_usage": true}}), "stream_options"),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
        (json!({"logit_bias": {"x": 1}}), "logit_bias"),
        (json!({"logit_bias": {"1": 101}}), "logit_bias"),
        (json!({"logit_bias": {"258": 1}}), "logit_bias"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": "hi"}), "messages"),
        (json!({"messages": [7]}), "messages[0]"),
        (json!({"messages": [{"role": "king", "content": "x"}]}), "messages[0].role"),
        (json!({"messages": [{"content": "x"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content"),
        (json!({"messages": [{"role": "user", "content": 7}]}), "messages[0].content"),
        (
            json!({"messages": [{"role": "user", "content": "", "tool_calls": [1]}]}),
            "messages[0].tool_calls",
        ),
        (json!({"model": null}), "model"),
    ] {
        server.post(CHAT, chat(more)).await.refusal(400, Some(param), None);
    }
    for (more, param) in [
        (json!({"prompt": null}), "prompt"),
        (json!({"prompt": []}), "prompt"),
        (json!({"prompt": ""}), "prompt"),
        (json!({"prompt": [[]]}), "prompt"),
        (json!({"prompt": [-1]}), "prompt"),
        (json!({"prompt": [258]}), "prompt"),
        (json!({"prompt": ["x", 1]}), "prompt"),
        (json!({"logprobs": 21}), "logprobs"),
        (json!({"prompt": vec!["x"; 200], "n": 2}), "n"),
    ] {
        server.post(TEXT, completion(more)).await.refusal(400, Some(param), None);
    }
    server.post("/tokenize", json!({})).await.refusal(400, Some("prompt"), None);
    server.post("/detokenize", json!({"tokens": [999]})).await.refusal(400, Some("tokens"), None);
}

#[tokio::test]
async fn a_model_that_is_not_here_is_refused_with_the_one_that_is() {
    let server = Server::parrot().await;
    let not_found = Some("model_not_found");
    let asked = server.post(CHAT, chat(json!({"model": "gpt-5"}))).await;
    let message = asked.refusal(404, Some("model"), not_found);
    assert!(message.contains("gpt-5") && message.contains(MODEL));
    server.get("/v1/models/some/other").await.refusal(404, Some("model"), not_found);
}

#[tokio::test]
async fn a_prompt_longer_than_the_context_is_refused_with_both_numbers() {
    let server = Server::parrot().await;
    let long = "x".repeat(2000);
    let code = Some("context_length_exceeded");
    for answer in [
        server.post(CHAT, chat(json!({"messages": [{"role": "user", "content": long}]}))).await,
        server.post(TEXT, completion(json!({"prompt": long}))).await,
    ] {
        let message = answer.refusal(400, None, code);
        assert!(message.contains("1024") && message.contains("20"), "{message}");
    }
    let huge = "x".repeat(8 << 20);
    let answer = server.post(TEXT, completion(json!({"prompt": huge}))).await;
    assert!(answer.refusal(400, None, code).contains("at least"));
    let fits = "x".repeat(1023);
    assert_eq!(server.post(TEXT, completion(json!({"prompt": fits}))).await.status, 200);
    let full = "x".repeat(1024);
    server.post(TEXT, completion(json!({"prompt": full}))).await.refusal(400, None, code);
}

#[tokio::test]
async fn paths_methods_and_bodies_that_make_no_sense_are_refused() {
    let server = Server::parrot().await;
    server.get("/v2/models").await.refusal(404, None, Some("not_found"));
    server.get(CHAT).await.refusal(405, None, Some("method_not_allowed"));
    for body in ["", "{", "[]", "\"x\"", "{\"model\": \"\\ud800\"}", "\u{fffe}"] {
        let answer = open(&server.socket, "POST", CHAT, &[], body.as_bytes().to_vec()).await;
        Answer::read(answer).await.refusal(400, None, None);
    }
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let answer = open(&server.socket, "POST", CHAT, &[], deep.into_bytes()).await;
    Answer::read(answer).await.refusal(400, None, None);
    let large = vec![b' '; (32 << 20) + 1];
    let answer = open(&server.socket, "POST", CHAT, &[], large).await;
    Answer::read(answer).await.refusal(413, None, Some("body_too_large"));
}

#[tokio::test]
async fn a_full_queue_refuses_and_says_when_to_come_back() {
    let config = Config { max_waiting: 3, ..Config::default() };
    let server = Server::slow_parrot(config).await;
    let endless = completion(json!({"ignore_eos": true, "max_tokens": 900, "stream": true}));
    let mut streams = Vec::new();
    // One member gets seven of the eight slots and one of the three places to wait.
    for (member, running, waiting) in [
        ("a", 1, 0),
        ("a", 2, 0),
        ("a", 3, 0),
        ("a", 4, 0),
        ("a", 5, 0),
        ("a", 6, 0),
        ("a", 7, 0),
        ("a", 7, 1),
        ("b", 8, 1),
        ("b", 8, 2),
        // She takes a place of the one with seven, who waits again; that takes nobody's place to wait.
        ("c", 8, 3),
        ("c", 8, 4),
    ] {
        if waiting == 2 {
            let refused =
                server.post_with(TEXT, &[("x-polder-member", "a")], endless.clone()).await;
            let message = refused.refusal(429, None, Some("queue_full"));
            assert!(message.starts_with("1 of your requests"), "{message}");
        }
        let body = endless.to_string().into_bytes();
        let response =
            open(&server.socket, "POST", TEXT, &[("x-polder-member", member)], body).await;
        assert_eq!(response.status(), 200);
        streams.push(response);
        server.until("vllm:num_requests_running", |now| now == f64::from(running)).await;
        server.until("vllm:num_requests_waiting", |now| now == f64::from(waiting)).await;
    }
    let refused = server.post_with(TEXT, &[("x-polder-member", "d")], endless.clone()).await;
    let message = refused.refusal(429, None, Some("queue_full"));
    assert!(message.starts_with("3 requests are waiting"), "{message}");
    assert_eq!(refused.header("retry-after"), Some("5"));
    drop(streams);
    server.until("polder_kv_blocks_used", |used| used == 0.0).await;
    // Twelve were given up, the two that were refused were none.
    let text = server.get("/metrics").await.text;
    let aborted =
        "vllm:request_success_total{finished_reason=\"abort\",model_name=\"parrot\"} 12\n";
    assert!(text.contains(aborted), "{text}");
    assert_eq!(server.metric("vllm:num_requests_waiting").await, 0.0);
}

#[test]
fn names_of_ignored_fields_are_few_and_short() {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "x"}]});
    for number in 0..1000 {
        body[format!("{number}{}", "y".repeat(1000))] = json!(1);
    }
    let request = parse_chat(body.to_string().as_bytes(), false).unwrap();
    assert!(request.ignored.len() <= 32);
    assert!(request.ignored.iter().all(|name| name.chars().count() <= 65));
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        prop::sample::select(vec![
            "user",
            "assistant",
            "tool",
            "text",
            "none",
            "auto",
            "x",
            "",
            "tool_use",
            "tool_result",
            "thinking",
            "enabled",
            "system",
        ])
        .prop_map(Value::from),
        "\\PC{0,6}".prop_map(Value::from),
    ];
    let key = prop::sample::select(vec![
        "role",
        "content",
        "type",
        "text",
        "tool_calls",
        "function",
        "arguments",
        "name",
        "include_usage",
        "1",
        "refusal",
        "input",
        "id",
        "tool_use_id",
        "thinking",
        "budget_tokens",
        "call_id",
        "output",
    ]);
    leaf.prop_recursive(4, 24, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..4).prop_map(|pairs| {
                pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
            }),
        ]
    })
}

const FIELDS: [&str; 56] = [
    "model",
    "messages",
    "prompt",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "n",
    "stop",
    "stream",
    "stream_options",
    "seed",
    "logprobs",
    "top_logprobs",
    "logit_bias",
    "max_tokens",
    "max_completion_tokens",
    "tools",
    "tool_choice",
    "functions",
    "function_call",
    "response_format",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "modalities",
    "audio",
    "verbosity",
    "web_search_options",
    "store",
    "user",
    "metadata",
    "echo",
    "suffix",
    "best_of",
    "tokens",
    "reasoning_effort",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "parallel_tool_calls",
    "ignore_eos",
    "system",
    "stop_sequences",
    "thinking",
    "output_config",
    "input",
    "instructions",
    "reasoning",
    "text",
    "include",
    "dimensions",
    "encoding_format",
    "pooling",
    "other",
];

proptest! {
    #[test]
    fn no_body_makes_a_parser_panic(
        fields in prop::collection::vec((prop::sample::select(FIELDS.to_vec()), any_json()), 0..8),
        strict in any::<bool>(),
        usable in any::<bool>(),
    ) {
        let mut body: serde_json::Map<String, Value> =
            fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        if usable {
            body.entry("model").or_insert(json!("m"));
            body.entry("messages").or_insert(json!([{"role": "user", "content": "x"}]));
        }
        let body = Value::from(body).to_string();
        for error in [
            parse_chat(body.as_bytes(), strict).err(),
            parse_completion(body.as_bytes(), strict).err(),
            parse_messages(body.as_bytes(), Purpose::Answer, strict).err(),
            parse_messages(body.as_bytes(), Purpose::Count, strict).err(),
            parse_responses(body.as_bytes(), strict).err(),
            parse_embeddings(body.as_bytes(), strict).err(),
            parse_tokenize(body.as_bytes(), strict).err(),
            parse_detokenize(body.as_bytes(), strict).err(),
        ].into_iter().flatten() {
            prop_assert!(error.message.ends_with('.'), "{}", error.message);
        }
    }

    #[test]
    fn no_bytes_make_a_parser_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_chat(&body, false);
        let _ = parse_completion(&body, true);
    }
}
