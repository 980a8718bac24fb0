//! A served engine to talk to, and an HTTP client that talks over its socket.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used)] // Each test file uses its part.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use polder_backend::{Backend, Limits, Sampling, TokenId};
use polder_chat::{ChatTemplate, Tokenizer};
use polder_engine_server::{EngineError, Parts, serve};
use polder_model::{GgufTokenizer, TokenizerSource};
use polder_scheduler::Config;
use polder_scheduler::fake::{FakeBackend, hashed};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub const MODEL: &str = "parrot";
/// What the parrot says to even seeds, and to odd ones.
pub const SAYS: [&str; 2] = ["Hello wörld 👋, bye.", "Nö."];
pub const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n\
    {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
const END: u32 = 257;

/// Thinks where it is not told otherwise, and calls tools as Hermes does.
pub const TEMPLATE: &str = "{% if tools %}<tool_call>{{ tools | tojson }}</tool_call>\n{% endif %}\
    {% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\
    {% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}\
    {% if m.role == 'tool' %}({{ m.tool_call_id }}){% endif %}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n\
    {% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}";

/// Thoughts, words and two calls.
pub const CALLS: &str = "<think>\nRain, say?\n</think>\n\nI look.\n<tool_call>\n{\"name\": \"weather\", \
    \"arguments\": {\"city\": \"Köln\"}}\n</tool_call>\n<tool_call>\n{\"name\": \"clock\", \
    \"arguments\": {}}\n</tool_call>";
pub const PLAIN: &str = "No <tool> is needed, say nothing.";

/// 256 bytes, then `<|im_start|>` and `<|im_end|>`.
pub fn tokenizer() -> Tokenizer {
    // GPT-2's alphabet, in the order of its characters, not of the bytes.
    let mut tokens: Vec<String> = (0x21..=0x7e_u32)
        .chain(0xa1..=0xac)
        .chain(0xae..=0xff)
        .chain(0x100..=0x143)
        .filter_map(char::from_u32)
        .map(String::from)
        .collect();
    assert_eq!(tokens.len(), 256);
    tokens.extend(["<|im_start|>".into(), "<|im_end|>".into()]);
    let mut token_types = vec![1; 256];
    token_types.extend([3, 3]);
    let keys = GgufTokenizer {
        model: "gpt2".into(),
        tokens,
        token_types,
        eos: Some(END),
        ..GgufTokenizer::default()
    };
    Tokenizer::from_source(&TokenizerSource::Gguf(Box::new(keys))).unwrap()
}

pub fn limits() -> Limits {
    Limits {
        step_tokens: 512,
        slots: 8,
        blocks: 512,
        block_tokens: 16,
        context: 1024,
        vocab: 258,
        kv_bytes_per_token: 1,
    }
}

/// Goes on with its text wherever that was left; an end of turn after it.
pub fn parrot() -> FakeBackend {
    saying(SAYS)
}

/// Says one text to even seeds and the other to odd ones.
pub fn saying(texts: [&str; 2]) -> FakeBackend {
    let tokenizer = tokenizer();
    let encode = |text: &str| {
        let mut tokens = tokenizer.encode(text, polder_chat::Special::Plain).unwrap();
        tokens.push(TokenId(END));
        tokens
    };
    let texts = texts.map(encode);
    FakeBackend::with(
        limits(),
        Box::new(move |tokens: &[TokenId], sampling: &Sampling| {
            let text = &texts[(sampling.seed % 2) as usize];
            let said = (0..text.len()).rev().find(|said| tokens.ends_with(&text[..*said]));
            text[said.unwrap_or(0)]
        }),
    )
}

/// Says anything at all and comes to an end soon; its seed and what was said decide.
pub fn babbler() -> FakeBackend {
    let anything = hashed(limits().vocab);
    FakeBackend::with(
        limits(),
        Box::new(move |tokens: &[TokenId], sampling: &Sampling| {
            let token = anything(tokens, sampling);
            if token.0.is_multiple_of(2) { TokenId(END) } else { token }
        }),
    )
}

pub struct Server {
    pub socket: PathBuf,
    pub task: JoinHandle<Result<(), EngineError>>,
    stop: Option<oneshot::Sender<()>>,
    _folder: tempfile::TempDir,
}

impl Server {
    pub async fn parrot() -> Self {
        Self::with(parrot(), Config::default()).await
    }

    pub async fn slow_parrot(config: Config) -> Self {
        Self::with(parrot().slowed(Duration::from_millis(10)), config).await
    }

    pub async fn with(backend: impl Backend + 'static, config: Config) -> Self {
        Self::speaking(CHATML, backend, config).await
    }

    /// Thinks and calls to even seeds.
    pub async fn calling() -> Self {
        Self::speaking(TEMPLATE, saying([CALLS, PLAIN]), Config::default()).await
    }

    /// With a chat template of its own.
    pub async fn speaking(template: &str, backend: impl Backend + 'static, config: Config) -> Self {
        let template = ChatTemplate::new(template).unwrap();
        let server = Self::loading(move |_| {
            Ok(Parts {
                backend: Box::new(backend),
                tokenizer: tokenizer(),
                template: Ok(template),
                config,
                store: None,
                left_behind: false,
                note: None,
            })
        });
        server.ready().await;
        server
    }

    pub fn loading(
        load: impl FnOnce(&dyn Fn(u32)) -> Result<Parts, EngineError> + Send + 'static,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("engine.sock");
        let (stop, stopped) = oneshot::channel::<()>();
        let path = socket.clone();
        let task = tokio::spawn(async move {
            serve(&path, MODEL, load, async {
                let _ = stopped.await;
            })
            .await
        });
        Self { socket, task, stop: Some(stop), _folder: folder }
    }

    pub async fn ready(&self) {
        for _ in 0..2000 {
            if self.socket.exists() && self.get("/health").await.status == 200 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("the engine never became ready");
    }

    pub fn stop(&mut self) {
        self.stop.take().expect("stopped once").send(()).expect("it runs");
    }

    pub async fn get(&self, path: &str) -> Answer {
        Answer::read(open(&self.socket, "GET", path, &[], Vec::new()).await).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.post_with(path, &[], body).await
    }

    pub async fn post_with(&self, path: &str, headers: &[(&str, &str)], body: Value) -> Answer {
        let body = body.to_string().into_bytes();
        Answer::read(open(&self.socket, "POST", path, headers, body).await).await
    }

    /// The value of one line of `/metrics`.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").await.text;
        let line = text.lines().find(|line| line.split(['{', ' ']).next() == Some(name));
        let line = line.unwrap_or_else(|| panic!("no {name} in\n{text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Waits until a metric has a value.
    pub async fn until(&self, name: &str, is: impl Fn(f64) -> bool) {
        for _ in 0..2000 {
            if is(self.metric(name).await) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{name} stayed {}", self.metric(name).await);
    }
}

/// Sends one request on a connection of its own.
pub async fn open(
    socket: &Path,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> Response<Incoming> {
    let stream = UnixStream::connect(socket).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request =
        Request::builder().method(method).uri(path).header("host", "engine").body(()).unwrap();
    for (name, value) in headers {
        request.headers_mut().append(
            http::HeaderName::try_from(*name).unwrap(),
            http::HeaderValue::from_str(value).unwrap(),
        );
    }
    sender.send_request(request.map(|()| Full::new(Bytes::from(body)))).await.unwrap()
}

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
    pub trailers: Option<HeaderMap>,
}

impl Answer {
    pub async fn read(response: Response<Incoming>) -> Self {
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap();
        let trailers = body.trailers().cloned();
        let text = String::from_utf8(body.to_bytes().to_vec()).unwrap();
        Self { status: parts.status, headers: parts.headers, text, trailers }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("not JSON: {}", self.text))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub fn usage_trailer(&self) -> Option<&str> {
        Some(self.trailers.as_ref()?.get("x-polder-usage")?.to_str().unwrap())
    }

    /// The events of a stream, without its end mark, which must be there.
    pub fn events(&self) -> Vec<Value> {
        let mut events: Vec<&str> = self
            .text
            .split("\n\n")
            .filter(|event| !event.is_empty() && !event.starts_with(':'))
            .map(|event| event.strip_prefix("data: ").expect("only data"))
            .collect();
        assert_eq!(events.pop(), Some("[DONE]"));
        events.into_iter().map(|event| serde_json::from_str(event).unwrap()).collect()
    }

    /// The events of a stream whose events have names, which must be their types.
    pub fn named_events(&self) -> Vec<Value> {
        let events = self.text.split("\n\n").filter(|event| !event.is_empty());
        events
            .map(|event| {
                let (name, data) = event.split_once('\n').expect("two lines");
                let data = data.strip_prefix("data: ").expect("data");
                let data: Value = serde_json::from_str(data).unwrap();
                assert_eq!(name.strip_prefix("event: "), data["type"].as_str());
                data
            })
            .collect()
    }

    /// Asserts an Anthropic-shaped refusal and returns its sentence.
    pub fn anthropic_refusal(&self, status: u16, kind: &str) -> String {
        assert_eq!(self.status, status, "{}", self.text);
        let body = self.json();
        assert_eq!((&body["type"], &body["error"]["type"]), (&json!("error"), &json!(kind)));
        let message = body["error"]["message"].as_str().unwrap();
        assert!(message.ends_with('.') && message.len() > 20, "{message}");
        message.to_owned()
    }

    /// Asserts an OpenAI-shaped refusal and returns its sentence.
    pub fn refusal(&self, status: u16, param: Option<&str>, code: Option<&str>) -> String {
        assert_eq!(self.status, status, "{}", self.text);
        let error = &self.json()["error"];
        assert!(error["type"].is_string());
        assert_eq!(error["param"], json!(param), "{}", self.text);
        assert_eq!(error["code"], json!(code), "{}", self.text);
        let message = error["message"].as_str().unwrap();
        assert!(message.ends_with('.') && message.len() > 20, "{message}");
        message.to_owned()
    }
}

/// A request with these fields beside, or instead of, its own.
pub fn with(mut body: Value, more: Value) -> Value {
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

/// A chat request with these fields beside a short message.
pub fn chat(more: Value) -> Value {
    let messages = json!([{"role": "user", "content": "Hi"}]);
    with(json!({"model": MODEL, "messages": messages, "seed": 0}), more)
}

/// A request to Anthropic's API with these fields beside a short message.
pub fn message(more: Value) -> Value {
    with(chat(json!({"max_tokens": 100})), more)
}

/// A request to the Responses API with these fields beside a short input.
pub fn respond(more: Value) -> Value {
    with(json!({"model": MODEL, "input": "Hi", "seed": 0}), more)
}

/// A completion request with these fields beside a short prompt.
pub fn completion(more: Value) -> Value {
    with(json!({"model": MODEL, "prompt": "Say: ", "seed": 0, "max_tokens": 100}), more)
}

/// Two tools as a list of names and schemas: short arguments, and none.
pub fn short_tools() -> [(&'static str, Value); 2] {
    let city = json!({"type": "object", "additionalProperties": false, "required": ["city"],
        "properties": {"city": {"type": "string", "maxLength": 8}}});
    [("weather", city), ("clock", json!({"type": "object", "additionalProperties": false}))]
}

/// Arguments that those tools take.
pub fn assert_fits(name: &str, arguments: &Value) {
    let map = arguments.as_object().unwrap_or_else(|| panic!("{arguments}"));
    match name {
        "weather" => {
            assert_eq!(map.len(), 1, "{arguments}");
            assert!(map["city"].as_str().unwrap().chars().count() <= 8, "{arguments}");
        }
        "clock" => assert!(map.is_empty(), "{arguments}"),
        other => panic!("{other} is not on offer"),
    }
}
