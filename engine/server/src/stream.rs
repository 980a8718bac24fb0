//! Answers on their way out: server-sent events one piece at a time, or one body at the end,
//! each with the usage in a trailer where the client takes trailers.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, TE, TRAILER};
use http::{HeaderMap, HeaderValue};
use http_body::Frame;
use http_body_util::StreamBody;
use serde_json::Value;
use tokio::time::Instant;

use crate::generate::{Generation, Piece};
use crate::wire::answer::Usage;
use crate::wire::error::ApiError;

/// After so long without a token, a comment shows that the stream is alive.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(10);

const USAGE_TRAILER: &str = "x-polder-usage";

/// Whether the client takes trailers.
pub(crate) fn takes_trailers(headers: &HeaderMap) -> bool {
    headers
        .get_all(TE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|word| word.trim().eq_ignore_ascii_case("trailers"))
}

/// How an endpoint words an answer: what it sends as events, and what as a whole.
pub(crate) trait Wording: Send {
    /// Before the first token.
    fn open(&mut self, _out: &mut Vec<Bytes>) {}
    /// More of the answer.
    fn piece(&mut self, piece: Piece, out: &mut Vec<Bytes>);
    /// After the last token.
    fn close(&mut self, usage: Usage, out: &mut Vec<Bytes>);
    /// The answer cannot go on; nothing follows.
    fn broken(&mut self, error: &ApiError, out: &mut Vec<Bytes>);
    /// Nothing to say, but alive.
    fn alive(&self) -> Bytes {
        Bytes::from_static(b": keep-alive\n\n")
    }
    /// More of an answer that is sent as a whole.
    fn take(&mut self, piece: Piece);
    /// All that was taken, in one body.
    fn whole(&mut self, usage: Usage) -> Value;
}

/// An event without a name.
pub(crate) fn data(event: &Value) -> Bytes {
    Bytes::from(format!("data: {event}\n\n"))
}

/// An event with the name that its `type` says.
pub(crate) fn named(event: &Value) -> Bytes {
    let name = event["type"].as_str().unwrap_or_default();
    Bytes::from(format!("event: {name}\ndata: {event}\n\n"))
}

/// The whole answer in one body.
pub(crate) async fn whole(
    mut generation: Generation,
    mut wording: Box<dyn Wording>,
    trailers: bool,
) -> Result<Response, ApiError> {
    while let Some(piece) = generation.next().await {
        wording.take(piece?);
    }
    let usage = generation.usage();
    let body = Bytes::from(wording.whole(usage).to_string());
    Ok(json(body, usage, trailers))
}

/// A body of JSON that is complete, with what it used.
pub(crate) fn json(body: Bytes, usage: Usage, trailers: bool) -> Response {
    let body = match trailers {
        false => Body::from(body),
        true => {
            let frames = [Frame::data(body), usage_frame(usage)].map(Ok::<_, Infallible>);
            Body::new(StreamBody::new(stream::iter(frames)))
        }
    };
    response(body, "application/json", trailers)
}

/// The answer as it grows; each stretch of silence as long as `keep_alive` ends with a sign of life.
pub(crate) fn events(
    generation: Generation,
    mut wording: Box<dyn Wording>,
    trailers: bool,
    keep_alive: Duration,
) -> Response {
    let mut opening = Vec::new();
    wording.open(&mut opening);
    let state = Events {
        keep_alive,
        quiet_since: Instant::now(),
        frames: opening.into_iter().map(Frame::data).collect(),
        generation: Some(generation),
        wording,
        trailers,
    };
    let frames = stream::unfold(state, |mut state| async move {
        let frame = state.next().await?;
        Some((Ok::<_, Infallible>(frame), state))
    });
    let mut response = response(Body::new(StreamBody::new(frames)), "text/event-stream", trailers);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

struct Events {
    generation: Option<Generation>,
    wording: Box<dyn Wording>,
    frames: VecDeque<Frame<Bytes>>,
    trailers: bool,
    keep_alive: Duration,
    /// When the last frame went out: not every piece makes one.
    quiet_since: Instant,
}

impl Events {
    async fn next(&mut self) -> Option<Frame<Bytes>> {
        let frame = self.frame().await;
        self.quiet_since = Instant::now();
        frame
    }

    async fn frame(&mut self) -> Option<Frame<Bytes>> {
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return Some(frame);
            }
            let generation = self.generation.as_mut()?;
            let mut out = Vec::new();
            let until = self.quiet_since + self.keep_alive;
            let over = match tokio::time::timeout_at(until, generation.next()).await {
                Err(_) => return Some(Frame::data(self.wording.alive())),
                Ok(Some(Ok(piece))) => {
                    self.wording.piece(piece, &mut out);
                    false
                }
                Ok(Some(Err(error))) => {
                    self.wording.broken(&error, &mut out);
                    true
                }
                Ok(None) => {
                    self.wording.close(generation.usage(), &mut out);
                    true
                }
            };
            self.frames.extend(out.into_iter().map(Frame::data));
            if over {
                self.end();
            }
        }
    }

    fn end(&mut self) {
        if let Some(generation) = self.generation.take()
            && self.trailers
        {
            self.frames.push_back(usage_frame(generation.usage()));
        }
    }
}

fn response(body: Body, content_type: &'static str, trailers: bool) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    if trailers {
        headers.insert(TRAILER, HeaderValue::from_static(USAGE_TRAILER));
    }
    response
}

fn usage_frame(usage: Usage) -> Frame<Bytes> {
    let value = format!("prompt={},completion={}", usage.prompt, usage.completion);
    let mut trailers = HeaderMap::new();
    trailers.insert(USAGE_TRAILER, HeaderValue::from_str(&value).expect("digits and commas"));
    Frame::trailers(trailers)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http_body_util::BodyExt;
    use polder_backend::{Limits, Sampling, TokenId};
    use polder_model::{GgufTokenizer, TokenizerSource};
    use polder_scheduler::fake::FakeBackend;
    use polder_scheduler::{Claim, Config, MemberId, Request};

    use super::*;
    use crate::generate::Job;
    use crate::metrics::Metrics;
    use crate::wire::answer::{Envelope, Kind};
    use crate::wire::chunks::Chunks;

    #[tokio::test]
    async fn a_long_silence_is_filled_with_comments() {
        let keys = GgufTokenizer {
            model: "gpt2".into(),
            tokens: vec!["a".into()],
            ..GgufTokenizer::default()
        };
        let tokenizer = polder_chat::Tokenizer::from_source(&TokenizerSource::Gguf(Box::new(keys)));
        let limits = Limits {
            step_tokens: 16,
            slots: 1,
            blocks: 4,
            block_tokens: 16,
            context: 64,
            vocab: 1,
            kv_bytes_per_token: 1,
        };
        let backend = FakeBackend::new(limits).slowed(Duration::from_millis(300));
        let engine = polder_scheduler::spawn(Box::new(backend), Config::default()).unwrap();
        let job = Job {
            prompt: 0,
            request: Request {
                member: MemberId::new("m"),
                claim: Claim::default(),
                prompt: vec![TokenId(0)],
                max_tokens: 1,
                stop_tokens: [].into(),
                sampling: Sampling::greedy(),
                prompt_logprobs: None,
                grammar: None,
                pooling: None,
            },
            stop: Vec::new(),
            echo: false,
            reply: None,
        };
        let metrics = Arc::new(Metrics::new());
        let tokenizer = Arc::new(tokenizer.unwrap());
        let (_give_up, hung) = tokio::sync::watch::channel(false);
        let handle = crate::handle::Handle::new(engine.handle(), hung.clone(), hung);
        let generation = Generation::start(handle, metrics, tokenizer, vec![job], 1).await.unwrap();
        let envelope = Envelope {
            kind: Kind::Completion,
            id: "x".into(),
            created: 0,
            model: "m".into(),
            logprobs: false,
            include_usage: false,
        };
        let wording = Box::new(Chunks::new(envelope, 1));
        let response = events(generation, wording, false, Duration::from_millis(50));
        let text = response.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(text.to_vec()).unwrap();
        assert!(text.starts_with(": keep-alive\n\n"), "{text}");
        assert!(text.contains("\"text\":\"a\"") && text.ends_with("data: [DONE]\n\n"), "{text}");
    }
}
