//! Vectors of texts.

#![allow(clippy::unwrap_used)] // Helpers outside test functions unwrap too.

mod common;

use common::{MODEL, Server, limits, open, tokenizer};
use polder_backend::TokenId;
use polder_scheduler::Config;
use polder_scheduler::fake::{FakeBackend, hidden};
use serde_json::{Value, json};

const EMBEDDINGS: &str = "/v1/embeddings";

fn unit(vector: &[f64]) -> Vec<f64> {
    let length = vector.iter().map(|value| value * value).sum::<f64>().sqrt();
    vector.iter().map(|value| value / length).collect()
}

/// What the fake back end's hidden states make of a text.
fn expected(text: &str, mean: bool) -> Vec<f64> {
    let tokens: Vec<TokenId> = tokenizer().encode(text, polder_chat::Special::Plain).unwrap();
    let from = if mean { 1 } else { tokens.len() };
    let states: Vec<Vec<f32>> = (from..=tokens.len()).map(|len| hidden(&tokens[..len])).collect();
    let sum = (0..4).map(|at| states.iter().map(|state| f64::from(state[at])).sum::<f64>());
    unit(&sum.collect::<Vec<f64>>())
}

fn assert_close(got: &Value, expected: &[f64]) {
    let got: Vec<f64> = got.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
    assert_eq!(got.len(), expected.len());
    for (a, b) in got.iter().zip(expected) {
        assert!((a - b).abs() < 1e-6, "{got:?} {expected:?}");
    }
}

#[tokio::test]
async fn texts_one_or_many_get_vectors_of_length_one_in_their_order() {
    let server = Server::parrot().await;
    let body = json!({"model": MODEL, "input": "Hello", "user": "me"});
    let answer = server.post_with(EMBEDDINGS, &[("te", "trailers")], body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let body = answer.json();
    assert_eq!((&body["object"], &body["model"]), (&json!("list"), &json!(MODEL)));
    assert_eq!(body["data"][0]["object"], "embedding");
    assert_eq!(body["usage"], json!({"prompt_tokens": 5, "total_tokens": 5}));
    assert_close(&body["data"][0]["embedding"], &expected("Hello", false));
    assert_eq!(answer.header("x-polder-prompt-tokens"), Some("5"));
    assert_eq!(answer.usage_trailer(), Some("prompt=5,completion=0"));

    let texts: Vec<String> = (0..30).map(|n| format!("text {n} {}", "x".repeat(n * 30))).collect();
    for (pooling, mean) in [("last", false), ("mean", true)] {
        let body = json!({"model": MODEL, "input": texts, "pooling": pooling});
        let body = server.post(EMBEDDINGS, body).await.json();
        let data = body["data"].as_array().unwrap();
        assert_eq!(data.len(), texts.len());
        for (index, (one, text)) in data.iter().zip(&texts).enumerate() {
            assert_eq!(one["index"], index);
            assert_close(&one["embedding"], &expected(text, mean));
        }
    }
    server.until("polder_kv_blocks_used", |used| used == 0.0).await;
}

#[tokio::test]
async fn tokens_are_taken_as_they_are_and_base64_is_the_same_numbers() {
    let server = Server::parrot().await;
    let tokens = tokenizer().encode("Hi", polder_chat::Special::Plain).unwrap();
    for input in [json!(tokens), json!([tokens]), json!("Hi")] {
        let body = json!({"model": MODEL, "input": input, "dimensions": 4});
        let body = server.post(EMBEDDINGS, body).await.json();
        assert_close(&body["data"][0]["embedding"], &expected("Hi", false));
    }
    let body = json!({"model": MODEL, "input": "Hi", "encoding_format": "base64"});
    let body = server.post(EMBEDDINGS, body).await.json();
    // Four floats are sixteen bytes.
    let text = body["data"][0]["embedding"].as_str().unwrap();
    assert_eq!((text.len(), text.ends_with("==")), (24, true));
}

#[tokio::test]
async fn what_makes_no_vector_is_refused_by_name() {
    let server = Server::parrot().await;
    let unsupported = Some("unsupported_parameter");
    for (more, param, code) in [
        (json!({"dimensions": 3}), "dimensions", unsupported),
        (json!({"encoding_format": "int8"}), "encoding_format", None),
        (json!({"pooling": "max"}), "pooling", None),
        (json!({"input": ""}), "input", None),
        (json!({"input": []}), "input", None),
        (json!({"input": [258]}), "input", None),
        (json!({"input": vec!["x"; 2049]}), "input", None),
    ] {
        let mut body = json!({"model": MODEL, "input": "x"});
        for (key, value) in more.as_object().unwrap() {
            body[key] = value.clone();
        }
        server.post(EMBEDDINGS, body).await.refusal(400, Some(param), code);
    }
    let full = json!({"model": MODEL, "input": "x".repeat(1024)});
    assert_eq!(server.post(EMBEDDINGS, full).await.status, 200);
    let long = json!({"model": MODEL, "input": "x".repeat(1025)});
    server.post(EMBEDDINGS, long).await.refusal(400, None, Some("context_length_exceeded"));
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_texts_along() {
    let backend = FakeBackend::new(limits()).slowed(std::time::Duration::from_millis(30));
    let config = Config { step_tokens: 8, ..Config::default() };
    let server = Server::with(backend, config).await;
    let body = json!({"model": MODEL, "input": vec!["x".repeat(1000); 50]}).to_string();
    let socket = server.socket.clone();
    let asked =
        tokio::spawn(async move { open(&socket, "POST", EMBEDDINGS, &[], body.into()).await });
    server.until("vllm:num_requests_running", |running| running > 0.0).await;
    asked.abort();
    server.until("vllm:num_requests_running", |running| running == 0.0).await;
    server.until("vllm:num_requests_waiting", |waiting| waiting == 0.0).await;
}
