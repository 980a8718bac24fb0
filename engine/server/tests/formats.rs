//! Answers of a certain form, over the socket.

#![allow(clippy::unwrap_used)] // Helpers outside test functions unwrap too.

mod common;

use common::{Server, chat, completion, limits};
use polder_scheduler::Config;
use polder_scheduler::fake::FakeBackend;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

/// A model that says anything at all; its seed and what was said decide.
async fn babbler() -> Server {
    Server::with(FakeBackend::new(limits()), Config::default()).await
}

fn schema() -> Value {
    json!({
        "type": "object", "additionalProperties": false, "required": ["greeting", "count", "kind"],
        "properties": {
            "greeting": {"type": "string", "maxLength": 12},
            "count": {"type": "integer", "minimum": 1, "maximum": 99},
            "kind": {"enum": ["x", "y"]},
        },
    })
}

fn strict(schema: Value) -> Value {
    json!({"type": "json_schema",
        "json_schema": {"name": "answer", "strict": true, "schema": schema}})
}

fn assert_satisfies(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text:?}"));
    let map = value.as_object().unwrap();
    assert_eq!(map.len(), 3, "{text}");
    assert!(map["greeting"].as_str().unwrap().chars().count() <= 12);
    assert!((1..=99).contains(&map["count"].as_i64().unwrap()));
    assert!(map["kind"] == "x" || map["kind"] == "y");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_satisfies_its_schema_alone_and_among_others() {
    let server = babbler().await;
    let asked = chat(json!({"response_format": strict(schema()), "n": 3, "max_tokens": 900}));
    let plain = |seed: u64| chat(json!({"seed": seed, "max_tokens": 60, "ignore_eos": true}));
    let alone = server.post(CHAT, asked.clone()).await.json();
    let mut plain_alone = Vec::new();
    for seed in 0..3 {
        plain_alone.push(server.post(CHAT, plain(seed)).await.json()["choices"].clone());
    }
    let mut texts: Vec<&str> = Vec::new();
    for choice in alone["choices"].as_array().unwrap() {
        assert_eq!(choice["finish_reason"], "stop");
        let text = choice["message"]["content"].as_str().unwrap();
        assert_satisfies(text);
        texts.push(text);
    }
    assert_eq!(texts.len(), 3);
    assert!(texts[0] != texts[1] && texts[1] != texts[2]);
    // Together: everybody gets the same as before.
    let (together, others) = tokio::join!(server.post(CHAT, asked), async {
        tokio::join!(
            server.post(CHAT, plain(0)),
            server.post(CHAT, plain(1)),
            server.post(CHAT, plain(2))
        )
    });
    assert_eq!(together.json()["choices"], alone["choices"]);
    for (other, alone) in [others.0, others.1, others.2].iter().zip(plain_alone) {
        assert_eq!(other.json()["choices"], alone);
    }
}

#[tokio::test]
async fn a_stream_a_stop_string_and_a_limit_end_it_as_they_end_any_answer() {
    let server = babbler().await;
    let with = |more: Value| {
        let mut body = chat(json!({"response_format": strict(schema()), "max_tokens": 900}));
        for (key, value) in more.as_object().unwrap() {
            body[key] = value.clone();
        }
        body
    };
    let whole = server.post(CHAT, with(json!({}))).await.json();
    let whole = whole["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    let streamed = server.post(CHAT, with(json!({"stream": true}))).await.events();
    let text: String = streamed
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(text, whole);
    let stopped = server.post(CHAT, with(json!({"stop": "\"count\""}))).await.json();
    let choice = &stopped["choices"][0];
    assert_eq!(choice["finish_reason"], "stop");
    assert_eq!(choice["message"]["content"], whole.split("\"count\"").next().unwrap());
    let cut = server.post(CHAT, with(json!({"max_tokens": 4}))).await.json();
    assert_eq!(cut["choices"][0]["finish_reason"], "length");
    assert!(whole.starts_with(cut["choices"][0]["message"]["content"].as_str().unwrap()));
}

#[tokio::test]
async fn every_way_to_ask_for_a_form_is_honoured() {
    let server = babbler().await;
    let said = async |more: Value| {
        let mut more = more;
        more["max_tokens"] = json!(900);
        let answer = server.post(TEXT, completion(more.clone())).await;
        assert_eq!(answer.status, 200, "{more}: {}", answer.text);
        assert_eq!(answer.header("x-polder-ignored"), None);
        let body = answer.json();
        assert_eq!(body["choices"][0]["finish_reason"], "stop", "{more}");
        body["choices"][0]["text"].as_str().unwrap().to_owned()
    };
    assert_satisfies(&said(json!({"response_format": strict(schema())})).await);
    assert_satisfies(&said(json!({"structured_outputs": {"json": schema()}})).await);
    assert_satisfies(&said(json!({"structured_outputs": {"json": schema().to_string()}})).await);
    assert_satisfies(&said(json!({"guided_json": schema()})).await);
    let number = said(json!({"structured_outputs": {"regex": "^[1-9][0-9]{3}$"}})).await;
    assert!((1000..10_000).contains(&number.parse().unwrap()), "{number}");
    assert_eq!(said(json!({"guided_regex": "nö+?n{2}|nönn"})).await.find("nö"), Some(0));
    for more in [
        json!({"structured_outputs": {"choice": ["yes.", "no/"]}}),
        json!({"guided_choice": ["yes.", "no/"]}),
    ] {
        assert!(["yes.", "no/"].contains(&said(more).await.as_str()));
    }
    let lark = "start: \"a\" b\nb: \"(\" b? \")\" | /[0-9]/\n";
    let nested = said(json!({"structured_outputs": {"grammar": lark}, "seed": 5})).await;
    assert!(nested.starts_with('a') && nested.matches('(').count() == nested.matches(')').count());
    assert_eq!(said(json!({"guided_grammar": "start: \"ok\""})).await, "ok");
}

#[tokio::test]
async fn a_form_that_cannot_be_had_is_refused_where_it_stands() {
    let server = babbler().await;
    let at = Some("response_format.json_schema.schema");
    for (schema, names) in [
        (json!({"type": "array", "uniqueItems": true}), "uniqueItems"),
        (json!({"$ref": "https://example.com/x.json"}), "https://example.com/x.json"),
        (json!({"type": "string", "pattern": "("}), "unclosed group"),
        (json!({"allOf": [{"minimum": 3, "type": "integer"}, {"maximum": 2}]}), ""),
        (json!("{"), "must be a JSON schema"),
        (json!([]), "must be a JSON schema"),
        (Value::Null, "must be a JSON schema"),
    ] {
        for (path, body) in [
            (CHAT, chat(json!({"response_format": strict(schema.clone())}))),
            (TEXT, completion(json!({"response_format": strict(schema.clone())}))),
        ] {
            let told = server.post(path, body).await.refusal(400, at, None);
            assert!(told.contains(names), "{told}");
        }
    }
    let deep = (0..40).fold(json!({}), |inner, _| json!({"properties": {"a": inner}}));
    for (more, param) in [
        (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema"),
        (json!({"response_format": 7}), "response_format"),
        (json!({"guided_regex": "["}), "guided_regex"),
        (json!({"guided_regex": 1}), "guided_regex"),
        (json!({"guided_choice": []}), "guided_choice"),
        (json!({"guided_choice": [1]}), "guided_choice"),
        (json!({"guided_json": deep}), "guided_json"),
        (json!({"structured_outputs": {}}), "structured_outputs"),
        (json!({"structured_outputs": {"regex": "a", "choice": ["b"]}}), "structured_outputs"),
        (json!({"structured_outputs": {"grammar": "x"}}), "structured_outputs.grammar"),
        (json!({"guided_regex": "a", "guided_choice": ["b"]}), "guided_choice"),
    ] {
        server.post(CHAT, chat(more)).await.refusal(400, Some(param), None);
    }
    let unsupported = Some("unsupported_parameter");
    let tag = json!({"structured_outputs": {"regex": "a", "structural_tag": "{}"}});
    let answer = server.post(CHAT, chat(tag)).await;
    answer.refusal(400, Some("structured_outputs.structural_tag"), unsupported);
    let endless = json!({"response_format": {"type": "json_object"}, "ignore_eos": true});
    server.post(CHAT, chat(endless)).await.refusal(400, Some("ignore_eos"), unsupported);
    // Nobody else notices.
    assert_eq!(server.post(CHAT, chat(json!({"max_tokens": 3}))).await.status, 200);
}
