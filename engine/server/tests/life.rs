//! An engine's life: loading, clients that leave, stopping, failing, and its socket.

#![allow(clippy::unwrap_used)] // Helpers outside test functions unwrap too.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{
    Answer, CHATML, MODEL, SAYS, Server, chat, completion, limits, open, parrot, tokenizer,
};
use http_body_util::BodyExt;
use polder_backend::{Backend, BackendError, Limits, StepBatch, StepOutput, Ticket, TokenId};
use polder_chat::ChatTemplate;
use polder_engine_server::{EngineError, Parts, serve};
use polder_scheduler::Config;
use polder_scheduler::fake::FakeBackend;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

fn endless(stream: bool) -> Value {
    completion(json!({"ignore_eos": true, "max_tokens": 900, "stream": stream, "n": 2}))
}

#[tokio::test]
async fn a_model_that_is_loading_says_so_and_how_far_it_is() {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let server = Server::loading(move |progress| {
        progress(250);
        wait.recv().unwrap();
        Ok(Parts {
            backend: Box::new(parrot()),
            tokenizer: tokenizer(),
            template: Ok(ChatTemplate::new(CHATML).unwrap()),
            config: Config::default(),
            store: None,
            left_behind: false,
            note: None,
        })
    });
    while !server.socket.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for _ in 0..1000 {
        let health = server.get("/health").await;
        assert_eq!(health.status, 503);
        if health.json() == json!({"status": "loading", "progress": 0.25}) {
            break;
        }
    }
    assert_eq!(server.get("/health").await.json()["progress"], 0.25);
    for path in ["/v1/models", "/v1/models/parrot"] {
        server.get(path).await.refusal(503, None, Some("model_loading"));
    }
    let refused = server.post(CHAT, chat(json!({}))).await;
    refused.refusal(503, None, Some("model_loading"));
    assert_eq!(refused.header("retry-after"), Some("2"));
    assert_eq!(server.metric("polder_kv_blocks").await, 0.0);
    go.send(()).unwrap();
    server.ready().await;
    assert_eq!(server.post(CHAT, chat(json!({}))).await.status, 200);
}

#[tokio::test]
async fn a_model_without_a_chat_template_still_continues_text() {
    let server = Server::loading(|_| {
        Ok(Parts {
            backend: Box::new(parrot()),
            tokenizer: tokenizer(),
            template: Err("it came without a chat template".into()),
            config: Config::default(),
            store: None,
            left_behind: false,
            note: None,
        })
    });
    server.ready().await;
    server.post(CHAT, chat(json!({}))).await.refusal(400, None, Some("no_chat_template"));
    assert_eq!(server.post(TEXT, completion(json!({}))).await.status, 200);
}

#[tokio::test]
async fn a_template_that_refuses_a_conversation_is_quoted() {
    let server = Server::loading(|_| {
        let template = "{{ raise_exception('Only one message, please') }}";
        Ok(Parts {
            backend: Box::new(parrot()),
            tokenizer: tokenizer(),
            template: Ok(ChatTemplate::new(template).unwrap()),
            config: Config::default(),
            store: None,
            left_behind: false,
            note: None,
        })
    });
    server.ready().await;
    let refused = server.post(CHAT, chat(json!({}))).await;
    let message = refused.refusal(400, Some("messages"), None);
    assert!(message.contains("Only one message, please"));
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_blocks() {
    let server = Server::slow_parrot(Config::default()).await;
    for stream in [true, false] {
        let body = endless(stream).to_string().into_bytes();
        let mut request = Box::pin(open(&server.socket, "POST", TEXT, &[], body));
        let mut response = None;
        tokio::select! {
            answer = &mut request => response = Some(answer),
            () = server.until("vllm:num_requests_running", |running| running == 2.0) => {}
        }
        assert_eq!(response.is_some(), stream);
        server.until("polder_kv_blocks_used", |used| used >= 2.0).await;
        if let Some(response) = &mut response {
            response.body_mut().frame().await.unwrap().unwrap();
        }
        drop(request);
        drop(response);
        server.until("polder_kv_blocks_used", |used| used == 0.0).await;
        assert_eq!(server.metric("vllm:num_requests_running").await, 0.0);
    }
}

#[tokio::test]
async fn told_to_stop_it_finishes_what_it_began_and_takes_its_socket_away() {
    let mut server = Server::slow_parrot(Config::default()).await;
    let body = chat(json!({"stream": true})).to_string().into_bytes();
    let mut response = open(&server.socket, "POST", CHAT, &[], body).await;
    response.body_mut().frame().await.unwrap().unwrap();
    server.stop();
    let answer = Answer::read(response).await;
    let said: String = answer
        .events()
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str().map(String::from))
        .collect();
    assert!(SAYS[0].ends_with(&said) && said.len() > 5, "{said}");
    (&mut server.task).await.unwrap().unwrap();
    assert!(!server.socket.exists());
}

#[tokio::test]
async fn the_socket_is_its_owner_s_alone_and_a_dead_one_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("engine.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let start = || {
        let path = path.clone();
        async move {
            let load = |_: &dyn Fn(u32)| {
                Ok(Parts {
                    backend: Box::new(parrot()) as Box<dyn Backend>,
                    tokenizer: tokenizer(),
                    template: Err(String::new()),
                    config: Config::default(),
                    store: None,
                    left_behind: false,
                    note: None,
                })
            };
            serve(&path, MODEL, load, std::future::pending()).await
        }
    };
    let first = tokio::spawn(start());
    for _ in 0..1000 {
        if tokio::net::UnixStream::connect(&path).await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let health = Answer::read(open(&path, "GET", "/health", &[], Vec::new()).await).await;
    assert!(health.text.contains("status"));
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(matches!(start().await, Err(EngineError::InUse { .. })));
    first.abort();
    let _ = first.await;
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(start().await, Err(EngineError::Bind { .. })));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

/// Fails after some steps.
struct Failing(FakeBackend, u32);

impl Backend for Failing {
    fn limits(&self) -> Limits {
        self.0.limits()
    }
    fn submit(&mut self, step: &StepBatch) -> Result<Ticket, BackendError> {
        self.1 = self.1.checked_sub(1).ok_or_else(|| BackendError::Device("it broke".into()))?;
        self.0.submit(step)
    }
    fn collect(&mut self, ticket: Ticket) -> Result<StepOutput, BackendError> {
        self.0.collect(ticket)
    }
}

#[tokio::test]
async fn a_device_that_fails_ends_streams_with_an_error_and_then_the_engine() {
    assert_eq!(limits().slots, 8);
    let mut server = Server::with(Failing(parrot(), 4), Config::default()).await;
    let body = chat(json!({"stream": true})).to_string().into_bytes();
    let answer = Answer::read(open(&server.socket, "POST", CHAT, &[], body).await).await;
    let last = answer.text.trim_end().rsplit("\n\n").next().unwrap();
    let event: Value = serde_json::from_str(last.strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(event["error"]["code"], "engine_stopped");
    let Err(ended) = (&mut server.task).await.unwrap() else { panic!("it ended well") };
    assert!(matches!(ended, EngineError::Scheduler(_)));
    assert_eq!(ended.exit_status(), EngineError::DEVICE_FAILED);
}

#[tokio::test]
async fn numbers_that_are_no_probabilities_end_their_answer_by_name_and_no_other() {
    let vocab = limits().vocab;
    let broken = FakeBackend::with(
        limits(),
        Box::new(move |tokens, sampling| match sampling.seed {
            7 if tokens.len() > 8 => TokenId(vocab),
            _ => TokenId(1),
        }),
    );
    let server = Server::with(broken, Config::default()).await;
    let ask = |seed: u64, stream: bool| {
        completion(json!({"seed": seed, "stream": stream, "max_tokens": 10}))
    };
    let refused = server.post(TEXT, ask(7, false)).await;
    let message = refused.refusal(500, None, Some("model_output_unusable"));
    assert!(message.contains("weights may be damaged"), "{message}");
    let stream = server.post(TEXT, ask(7, true)).await.text;
    let last = stream.trim_end().rsplit("\n\n").next().unwrap();
    let event: Value = serde_json::from_str(last.strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(event["error"]["code"], "model_output_unusable");
    let judged = completion(json!({"prompt": "long enough", "echo": true, "logprobs": 1}));
    let well = server.post(TEXT, judged).await;
    assert_eq!(well.status, 200);
    assert_eq!(server.post(TEXT, ask(6, false)).await.json()["usage"]["completion_tokens"], 10);
    server.until("polder_kv_blocks_used", |used| used == 0.0).await;
}

#[tokio::test]
async fn a_reader_that_stalls_pauses_its_own_answer_and_no_other() {
    const LONG: u64 = 6000;
    let long = Limits { blocks: 1024, context: 8192, ..limits() };
    let talker = FakeBackend::with(long, Box::new(|_, _| TokenId(65)));
    let server = Server::with(talker, Config::default()).await;
    let body = completion(json!({
        "max_tokens": LONG, "stream": true, "stream_options": {"include_usage": true},
    }));
    let mut stalled = open(&server.socket, "POST", TEXT, &[], body.to_string().into_bytes()).await;
    stalled.body_mut().frame().await.unwrap().unwrap();
    // It pauses for good once the buffers on the way are full.
    let (mut steps, mut still) = (0.0, 0);
    while still < 10 {
        tokio::time::sleep(Duration::from_millis(30)).await;
        let before = std::mem::replace(&mut steps, server.metric("polder_steps_total").await);
        let paused = server.metric("polder_requests_paused").await == 1.0;
        still = if paused && steps == before { still + 1 } else { 0 };
    }
    assert!(steps < LONG as f64 / 2.0, "{steps} steps before the pause");
    let other = server.post(TEXT, completion(json!({"max_tokens": 300}))).await.json();
    assert_eq!(other["usage"]["completion_tokens"], 300);
    assert_eq!(server.metric("polder_requests_paused").await, 1.0);
    assert!(server.metric("polder_steps_total").await <= steps + 310.0);
    let events = Answer::read(stalled).await.events();
    assert_eq!(events.last().unwrap()["usage"]["completion_tokens"], LONG);
    server.until("polder_kv_blocks_used", |used| used == 0.0).await;
}

/// Hangs in its steps while it is told to.
struct Hanging(FakeBackend, Arc<AtomicBool>);

impl Backend for Hanging {
    fn limits(&self) -> Limits {
        self.0.limits()
    }
    fn submit(&mut self, step: &StepBatch) -> Result<Ticket, BackendError> {
        while self.1.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.0.submit(step)
    }
    fn collect(&mut self, ticket: Ticket) -> Result<StepOutput, BackendError> {
        self.0.collect(ticket)
    }
}

#[tokio::test]
async fn a_step_that_hangs_ends_its_answers_with_an_error_and_then_the_engine() {
    let hang = Arc::new(AtomicBool::new(false));
    let patience = Duration::from_millis(200);
    let config = Config { patience, first_pace: Duration::from_millis(5), ..Config::default() };
    let mut server = Server::with(Hanging(parrot(), hang.clone()), config).await;
    assert_eq!(server.post(TEXT, completion(json!({}))).await.status, 200);
    // Idle for longer than a step may take is not hung.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(server.get("/health").await.status, 200);
    // One whose answer has begun, and two that wait for their first word.
    let body = endless(true).to_string().into_bytes();
    let mut begun = open(&server.socket, "POST", TEXT, &[], body).await;
    begun.body_mut().frame().await.unwrap().unwrap();
    hang.store(true, Ordering::Relaxed);
    let embedding = json!({"model": MODEL, "input": "some words"});
    let (plain, vector, begun) = tokio::join!(
        server.post(TEXT, completion(json!({}))),
        server.post("/v1/embeddings", embedding),
        Answer::read(begun),
    );
    for refused in [plain, vector] {
        let message = refused.refusal(503, None, Some("engine_stopped"));
        assert!(message.contains("send it again"), "{message}");
        assert!(refused.header("retry-after").is_some());
    }
    let last = begun.text.trim_end().rsplit("\n\n").next().unwrap();
    let event: Value = serde_json::from_str(last.strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(event["error"]["code"], "engine_stopped", "{}", begun.text);
    let Err(ended) = (&mut server.task).await.unwrap() else { panic!("it ended well") };
    assert!(matches!(ended, EngineError::Hung(running) if running > patience), "{ended}");
    assert_eq!(ended.exit_status(), EngineError::DEVICE_FAILED);
    assert!(!server.socket.exists());
    hang.store(false, Ordering::Relaxed);
}

#[tokio::test]
async fn a_model_that_cannot_be_loaded_ends_the_engine_with_the_reason() {
    let mut server = Server::loading(|_| Err(EngineError::LoadPanicked));
    assert!(matches!((&mut server.task).await.unwrap(), Err(EngineError::LoadPanicked)));
    let mut server = Server::loading(|_| panic!("a defect in loading"));
    assert!(matches!((&mut server.task).await.unwrap(), Err(EngineError::LoadPanicked)));
}
