//! Answers as OpenAI's SDKs read them.

use serde_json::{Map, Value, json};

use crate::generate::{Judged, Piece};
use crate::wire::reply;

/// What an SDK needs for a logprob that is minus infinity.
const LEAST_LOGPROB: f32 = -9999.0;

/// Which of the two endpoints is answering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Chat,
    Completion,
}

/// Tokens read and written, as billed everywhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) prompt: u64,
    pub(crate) completion: u64,
    /// Of the prompts', those that did not have to be read: an earlier request began alike.
    pub(crate) cached: u64,
    /// Of the answers', those that are thoughts.
    pub(crate) reasoning: u64,
}

impl Usage {
    fn json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": { "cached_tokens": self.cached.min(self.prompt) },
            "completion_tokens_details": { "reasoning_tokens": self.reasoning },
        })
    }
}

/// The parts that every object of one answer shares.
#[derive(Debug, Clone)]
pub(crate) struct Envelope {
    pub(crate) kind: Kind,
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) model: String,
    /// The client asked for logprobs.
    pub(crate) logprobs: bool,
    /// The client asked for the usage at the end of the stream.
    pub(crate) include_usage: bool,
}

impl Envelope {
    fn object(&self, object: &str, choices: Vec<Value>) -> Map<String, Value> {
        let mut map = Map::new();
        map.insert("id".into(), self.id.clone().into());
        map.insert("object".into(), object.into());
        map.insert("created".into(), self.created.into());
        map.insert("model".into(), self.model.clone().into());
        map.insert("system_fingerprint".into(), FINGERPRINT.into());
        map.insert("choices".into(), choices.into());
        map
    }

    /// One event of a stream.
    pub(crate) fn chunk(&self, choices: Vec<Value>, usage: Option<Usage>) -> Value {
        let object = match self.kind {
            Kind::Chat => "chat.completion.chunk",
            Kind::Completion => "text_completion",
        };
        let mut map = self.object(object, choices);
        if self.include_usage {
            map.insert("usage".into(), usage.map_or(Value::Null, Usage::json));
        }
        map.into()
    }

    /// The first event for a choice, where there is one.
    pub(crate) fn opening(&self, choice: usize) -> Option<Value> {
        (self.kind == Kind::Chat).then(|| {
            json!({
                "index": choice, "delta": {"role": "assistant", "content": ""},
                "logprobs": null, "finish_reason": null,
            })
        })
    }

    /// What a piece of an answer says, in a stream.
    pub(crate) fn delta(&self, piece: &Piece, offset: usize) -> Value {
        let finish = piece.finish.map(|finish| finish.name());
        match self.kind {
            Kind::Chat => {
                let delta = match (piece.besides.first(), piece.text.is_empty()) {
                    (Some(event), _) => reply::delta(event, &self.id, piece.choice),
                    (None, true) => json!({}),
                    (None, false) => json!({"content": piece.text}),
                };
                json!({
                    "index": piece.choice, "delta": delta,
                    "logprobs": self.chat_logprobs(&piece.tokens, true), "finish_reason": finish,
                })
            }
            Kind::Completion => json!({
                "index": piece.choice, "text": piece.text,
                "logprobs": self.text_logprobs(&piece.tokens, offset, true),
                "finish_reason": finish,
            }),
        }
    }

    /// The whole answer at once.
    pub(crate) fn whole(&self, choices: &[Piece], usage: Usage) -> Value {
        let (object, choices): (_, Vec<Value>) = match self.kind {
            Kind::Chat => (
                "chat.completion",
                choices
                    .iter()
                    .map(|choice| {
                        json!({
                            "index": choice.choice,
                            "message": reply::message(
                                &choice.text, &choice.besides, &self.id, choice.choice,
                            ),
                            "logprobs": self.chat_logprobs(&choice.tokens, false),
                            "finish_reason": choice.finish.map(|finish| finish.name()),
                        })
                    })
                    .collect(),
            ),
            Kind::Completion => (
                "text_completion",
                choices
                    .iter()
                    .map(|choice| {
                        json!({
                            "index": choice.choice, "text": choice.text,
                            "logprobs": self.text_logprobs(&choice.tokens, 0, false),
                            "finish_reason": choice.finish.map(|finish| finish.name()),
                        })
                    })
                    .collect(),
            ),
        };
        let mut map = self.object(object, choices);
        map.insert("usage".into(), usage.json());
        map.into()
    }

    fn chat_logprobs(&self, tokens: &[Judged], streaming: bool) -> Value {
        if !self.logprobs || (streaming && tokens.is_empty()) {
            return Value::Null;
        }
        let content: Vec<Value> = tokens.iter().map(opinion).collect();
        json!({"content": content, "refusal": null})
    }

    fn text_logprobs(&self, tokens: &[Judged], offset: usize, streaming: bool) -> Value {
        if !self.logprobs || (streaming && tokens.is_empty()) {
            return Value::Null;
        }
        let names: Vec<String> = tokens.iter().map(|token| readable(&token.name)).collect();
        let logprobs: Vec<Option<f32>> =
            tokens.iter().map(|token| token.logprob.map(finite)).collect();
        let top: Vec<Value> = tokens
            .iter()
            .map(|token| match token.logprob {
                None => Value::Null,
                Some(_) => token
                    .top
                    .iter()
                    .map(|(name, logprob)| (readable(name), Value::from(finite(*logprob))))
                    .collect::<Map<_, _>>()
                    .into(),
            })
            .collect();
        let offsets: Vec<usize> = tokens.iter().map(|token| offset + token.offset).collect();
        json!({
            "tokens": names, "token_logprobs": logprobs, "top_logprobs": top,
            "text_offset": offsets,
        })
    }
}

/// What the model thought of a token, as chats and responses tell it.
pub(crate) fn opinion(token: &Judged) -> Value {
    let entry = |name: &[u8], logprob: f32| json!({"token": String::from_utf8_lossy(name), "logprob": finite(logprob), "bytes": name});
    let mut own = entry(&token.name, token.logprob.unwrap_or(LEAST_LOGPROB));
    own["top_logprobs"] = token.top.iter().map(|(name, logprob)| entry(name, *logprob)).collect();
    own
}

const FINGERPRINT: &str = concat!("polder-", env!("CARGO_PKG_VERSION"));

/// The list of what is served: one model.
pub(crate) fn model(name: &str, created: u64, context: u32) -> Value {
    json!({
        "id": name, "object": "model", "created": created, "owned_by": "polder",
        "max_model_len": context,
    })
}

fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { LEAST_LOGPROB }
}

/// A token's text; where it is no text by itself, its bytes in OpenAI's spelling.
fn readable(name: &[u8]) -> String {
    match std::str::from_utf8(name) {
        Ok(text) => text.to_owned(),
        Err(_) => {
            let hex: String = name.iter().map(|byte| format!("\\x{byte:02x}")).collect();
            format!("bytes:{hex}")
        }
    }
}
