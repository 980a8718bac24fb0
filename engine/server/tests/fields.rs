//! Every field that the pinned SDKs know is honoured, accepted or refused by name, as its table says.

#![allow(clippy::unwrap_used)] // Helpers outside test functions unwrap too.

mod common;

use common::{MODEL, Server, chat, completion, message, respond};
use polder_engine_server::wire::table::{self, Table};
use serde_json::{Value, json};

/// A kind of request, its table, its path, and a body that is complete.
fn requests() -> Vec<(&'static str, &'static Table, &'static str, Value)> {
    let mut counted = message(json!({}));
    counted.as_object_mut().unwrap().remove("max_tokens");
    vec![
        ("chat", &table::CHAT, "/v1/chat/completions", chat(json!({}))),
        ("completions", &table::COMPLETIONS, "/v1/completions", completion(json!({}))),
        ("embeddings", &table::EMBEDDINGS, "/v1/embeddings", json!({"model": MODEL, "input": "x"})),
        ("messages", &table::MESSAGES, "/v1/messages", message(json!({}))),
        ("responses", &table::RESPONSES, "/v1/responses", respond(json!({}))),
        ("count_tokens", &table::MESSAGES, "/v1/messages/count_tokens", counted),
    ]
}

fn with(body: &Value, field: &str, value: Value) -> Value {
    let mut body = body.clone();
    body[field] = value;
    body
}

#[test]
fn every_field_of_the_sdks_is_in_exactly_one_list() {
    let sdk: Value = serde_json::from_str(include_str!("../fields/sdk.json")).unwrap();
    let known = sdk["requests"].as_object().unwrap();
    for (request, table, _, _) in requests() {
        let fields = known[request].as_array().unwrap();
        assert!(fields.len() > 4, "{request}");
        for field in fields.iter().map(|field| field.as_str().unwrap()) {
            let lists = [
                table.honoured.iter().any(|name| name == field),
                table.accepted.iter().any(|name| name == field),
                table.refused.iter().any(|refused| refused.name == field),
            ];
            assert_eq!(lists.iter().filter(|there| **there).count(), 1, "{request}: {field}");
        }
    }
}

#[tokio::test]
async fn what_the_table_refuses_is_a_400_that_names_it() {
    let server = Server::parrot().await;
    for (request, table, path, body) in requests() {
        for refused in &table.refused {
            let answer = server.post(path, with(&body, &refused.name, "x".into())).await;
            assert_eq!(answer.status, 400, "{request}: {}", refused.name);
            let said = answer.json()["error"]["message"].as_str().unwrap().to_owned();
            assert!(said.contains(&format!("\"{}\"", refused.name)), "{request}: {said}");
            for value in refused.unless.iter().cloned().chain([Value::Null]) {
                let answer = server.post(path, with(&body, &refused.name, value)).await;
                assert_eq!(answer.status, 200, "{request}: {}: {}", refused.name, answer.text);
                assert_eq!(answer.header("x-polder-ignored"), None);
            }
        }
    }
}

#[tokio::test]
async fn what_the_table_accepts_or_honours_is_not_named_as_ignored() {
    let server = Server::parrot().await;
    for (request, table, path, body) in requests() {
        for name in &table.accepted {
            let answer = server.post(path, with(&body, name, "x".into())).await;
            assert_eq!(answer.status, 200, "{request}: {name}: {}", answer.text);
            assert_eq!(answer.header("x-polder-ignored"), None, "{request}: {name}");
        }
        let mut honoured = body.clone();
        for name in &table.honoured {
            if body.get(name).is_none() {
                honoured[name] = Value::Null;
            }
        }
        let answer = server.post(path, honoured).await;
        assert_eq!(answer.status, 200, "{request}: {}", answer.text);
        assert_eq!(answer.header("x-polder-ignored"), None, "{request}");
        // What the code reads itself it also judges.
        for name in &table.honoured {
            let answer = server.post(path, with(&body, name, json!([[true]]))).await;
            assert_eq!(answer.status, 400, "{request}: {name} is not read");
        }
    }
}
