//! A real model, from its file to an answer over the socket.

#![allow(clippy::unwrap_used)] // Helpers outside test functions unwrap too.

mod common;

use std::path::PathBuf;
use std::time::Duration;

use common::{Answer, open};
use polder_engine_server::{EngineOptions, run};
use serde_json::{Value, json};

async fn serve_smollm2() -> (PathBuf, tempfile::TempDir) {
    let model = std::env::var_os("POLDER_SMOLLM2").map(PathBuf::from).expect(
        "set POLDER_SMOLLM2 to the path of SmolLM2-135M-Instruct.Q4_1.gguf to run this test",
    );
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("engine.sock");
    let mut options = EngineOptions::new("test", &socket, model, "smollm2-135m-instruct");
    options.context = Some(2048);
    options.kv_memory = Some(256 << 20);
    tokio::spawn(async move { run(options, std::future::pending()).await.unwrap() });
    for _ in 0..6000 {
        if socket.exists() {
            let health = open(&socket, "GET", "/health", &[], Vec::new()).await;
            if health.status() == 200 {
                return (socket, folder);
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the model did not load within a minute");
}

async fn ask(socket: &std::path::Path, question: &str, more: Value) -> Answer {
    let mut body = json!({
        "model": "smollm2-135m-instruct", "temperature": 0, "max_tokens": 24,
        "messages": [{"role": "user", "content": question}],
    });
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    let body = body.to_string().into_bytes();
    let headers = [("te", "trailers")];
    Answer::read(open(socket, "POST", "/v1/chat/completions", &headers, body).await).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn model_answers_the_same_alone_streamed_and_among_others() {
    let (socket, _folder) = serve_smollm2().await;
    let question = "What is the capital of France?";
    let alone = ask(&socket, question, json!({})).await;
    assert_eq!(alone.status, 200, "{}", alone.text);
    let body = alone.json();
    let said = body["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert!(said.contains("Paris"), "{said}");
    let prompt = body["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(alone.header("x-polder-prompt-tokens"), Some(prompt.to_string().as_str()));

    let streamed = ask(&socket, question, json!({"stream": true})).await;
    let text: String = streamed
        .events()
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str().map(String::from))
        .collect();
    assert_eq!(text, said);
    assert!(streamed.usage_trailer().unwrap().starts_with(&format!("prompt={prompt},")));

    let other = |number: usize| {
        let (socket, text) = (socket.clone(), format!("Count from {number} to 30."));
        tokio::spawn(async move { ask(&socket, &text, json!({"max_tokens": 40})).await })
    };
    let others: Vec<_> = (0..4).map(other).collect();
    let among = ask(&socket, question, json!({})).await.json();
    assert_eq!(among["choices"][0]["message"]["content"], said);
    for other in others {
        assert_eq!(other.await.unwrap().status, 200);
    }

    let seeded = json!({"temperature": 1.0, "top_p": 0.9, "seed": 7, "n": 2});
    let first = ask(&socket, "Tell me a story.", seeded.clone()).await.json();
    let again = ask(&socket, "Tell me a story.", seeded).await.json();
    assert_eq!(first["choices"], again["choices"]);
    assert_ne!(
        first["choices"][0]["message"]["content"],
        first["choices"][1]["message"]["content"]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn model_judges_a_sensible_text_as_likelier_than_nonsense() {
    let (socket, _folder) = serve_smollm2().await;
    let judge = async |text: &str| {
        let body = json!({
            "model": "smollm2-135m-instruct", "prompt": text, "echo": true, "logprobs": 1,
            "max_tokens": 0,
        });
        let body = body.to_string().into_bytes();
        let answer = open(&socket, "POST", "/v1/completions", &[], body).await;
        let body = Answer::read(answer).await.json();
        let logprobs = &body["choices"][0]["logprobs"];
        assert_eq!(
            logprobs["tokens"].as_array().unwrap().len() as u64,
            body["usage"]["prompt_tokens"]
        );
        let logprobs: Vec<f64> = logprobs["token_logprobs"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_f64)
            .collect();
        logprobs.iter().sum::<f64>() / logprobs.len() as f64
    };
    let sense = judge("The sun rises in the east and sets in the west.").await;
    let nonsense = judge("The east sun the in sets rises and west in the.").await;
    assert!(sense > nonsense + 1.0, "{sense} {nonsense}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn model_answers_as_a_schema_says_and_leaves_others_alone() {
    let (socket, _folder) = serve_smollm2().await;
    let schema = json!({
        "type": "object", "additionalProperties": false,
        "required": ["city", "people", "river", "sights"],
        "properties": {
            "city": {"type": "string", "maxLength": 20},
            "people": {"type": "integer", "minimum": 1, "maximum": 100_000_000},
            "river": {"type": ["string", "null"], "maxLength": 20},
            "sights": {"type": "array", "maxItems": 3, "items": {"enum": ["tower", "museum", "park"]}},
        },
    });
    let format = json!({"type": "json_schema", "json_schema": {"name": "city", "schema": schema}});
    let question = "Describe Paris as JSON.";
    let form = |more: Value| {
        let mut form = json!({"response_format": format, "max_tokens": 400});
        for (key, value) in more.as_object().unwrap() {
            form[key] = value.clone();
        }
        form
    };
    let plain = json!({"max_tokens": 30});
    let alone = ask(&socket, "What is the capital of France?", plain.clone()).await.json();
    let best = ask(&socket, question, form(json!({}))).await.json();
    let several = form(json!({"temperature": 1.5, "seed": 3, "n": 3}));
    let (drawn, among) = tokio::join!(
        ask(&socket, question, several.clone()),
        ask(&socket, "What is the capital of France?", plain),
    );
    assert_eq!(among.json()["choices"], alone["choices"]);
    let drawn = drawn.json();
    let choices = drawn["choices"].as_array().unwrap().iter().chain([&best["choices"][0]]);
    for choice in choices {
        let text = choice["message"]["content"].as_str().unwrap();
        println!("{text}");
        assert_eq!(choice["finish_reason"], "stop", "{text}");
        let value: Value = serde_json::from_str(text).unwrap();
        let map = value.as_object().unwrap();
        assert_eq!(map.keys().collect::<Vec<_>>(), ["city", "people", "river", "sights"]);
        assert!(map["city"].as_str().unwrap().chars().count() <= 20);
        assert!((1..=100_000_000).contains(&map["people"].as_i64().unwrap()));
        assert!(map["river"].is_null() || map["river"].is_string());
        for sight in map["sights"].as_array().unwrap() {
            assert!(["tower", "museum", "park"].contains(&sight.as_str().unwrap()));
        }
    }
    // The same question, alone, has the same answers.
    assert_eq!(ask(&socket, question, several).await.json()["choices"], drawn["choices"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn model_speaks_anthropics_api_and_the_responses_api_with_the_same_words() {
    let (socket, _folder) = serve_smollm2().await;
    let question = "What is the capital of France?";
    let chat = ask(&socket, question, json!({})).await.json();
    let words = chat["choices"][0]["message"]["content"].clone();
    let post = async |path: &str, body: Value| {
        Answer::read(open(&socket, "POST", path, &[], body.to_string().into_bytes()).await).await
    };
    let message = post(
        "/v1/messages",
        json!({
            "model": "smollm2-135m-instruct", "temperature": 0, "max_tokens": 24,
            "messages": [{"role": "user", "content": question}],
        }),
    )
    .await
    .json();
    assert_eq!(message["content"][0]["text"], words);
    // The last block of what was asked before is there already.
    assert!(message["usage"]["cache_read_input_tokens"].as_u64().unwrap() > 0, "{message}");
    let response = post(
        "/v1/responses",
        json!({
            "model": "smollm2-135m-instruct", "temperature": 0, "max_output_tokens": 24,
            "input": question,
        }),
    )
    .await
    .json();
    assert_eq!(response["output"][0]["content"][0]["text"], words);
    assert_eq!(response["usage"]["input_tokens"], chat["usage"]["prompt_tokens"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn model_vectors_of_like_sentences_are_closer_than_of_unlike_ones() {
    let (socket, _folder) = serve_smollm2().await;
    let vectors = async |input: Value| -> Vec<Vec<f64>> {
        let body = json!({"model": "smollm2-135m-instruct", "input": input, "pooling": "mean"});
        let body = body.to_string().into_bytes();
        let answer =
            Answer::read(open(&socket, "POST", "/v1/embeddings", &[], body).await).await.json();
        let data = answer["data"].as_array().unwrap().iter();
        data.map(|one| {
            let vector = one["embedding"].as_array().unwrap().iter();
            vector.map(|value| value.as_f64().unwrap()).collect()
        })
        .collect()
    };
    let texts = [
        "The cat is sleeping on the sofa.",
        "A kitten naps on the couch.",
        "The central bank raised its interest rates.",
    ];
    let all = vectors(json!(texts)).await;
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    assert_eq!(all[0].len(), 576);
    assert!(all.iter().all(|vector| (dot(vector, vector) - 1.0).abs() < 1e-4));
    assert!(dot(&all[0], &all[1]) > dot(&all[0], &all[2]));
    // Alone it is the same vector.
    let alone = vectors(json!(texts[2])).await;
    assert!(dot(&all[2], &alone[0]) > 0.9999);
}
