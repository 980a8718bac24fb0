//! How Anthropic's API words an answer.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::answering::Head;
use crate::generate::{Finish, Piece};
use crate::stream::{Wording, named};
use crate::wire::answer::Usage;
use crate::wire::error::ApiError;

/// One message that is being written.
#[derive(Debug)]
pub(crate) struct Message {
    head: Head,
    /// The request's stop sequences.
    stops: Vec<String>,
    /// The text block has begun.
    begun: bool,
    finish: Option<Finish>,
}

impl Message {
    pub(crate) fn new(head: Head, stops: Vec<String>) -> Self {
        Self { head, stops, begun: false, finish: None }
    }

    fn object(&self, content: Value, usage: Usage) -> Value {
        let (reason, sequence) = self.stop();
        json!({
            "id": format!("msg_{}", self.head.id), "type": "message", "role": "assistant",
            "model": self.head.model, "content": content, "stop_reason": reason,
            "stop_sequence": sequence, "usage": used(usage),
        })
    }

    fn stop(&self) -> (Value, Value) {
        match self.finish {
            None => (Value::Null, Value::Null),
            Some(Finish::Stop | Finish::ToolCalls) => ("end_turn".into(), Value::Null),
            Some(Finish::Length) => ("max_tokens".into(), Value::Null),
            Some(Finish::StopString(which)) => {
                ("stop_sequence".into(), self.stops.get(which).cloned().into())
            }
        }
    }
}

/// Anthropic counts apart what was read and what was known. Everything that was read is kept, so
/// that nothing is kept at anybody's expense.
fn used(usage: Usage) -> Value {
    let cached = usage.cached.min(usage.prompt);
    json!({
        "input_tokens": usage.prompt - cached, "output_tokens": usage.completion,
        "cache_creation_input_tokens": 0, "cache_read_input_tokens": cached,
    })
}

impl Wording for Message {
    fn open(&mut self, out: &mut Vec<Bytes>) {
        // What was known is told at the end: nothing has been looked up yet.
        let usage = Usage { prompt: self.head.prompt_tokens, ..Usage::default() };
        let message = self.object(json!([]), usage);
        out.push(named(&json!({"type": "message_start", "message": message})));
        out.push(self.alive());
    }

    fn piece(&mut self, piece: Piece, out: &mut Vec<Bytes>) {
        if !piece.text.is_empty() {
            if !std::mem::replace(&mut self.begun, true) {
                out.push(named(&json!({
                    "type": "content_block_start", "index": 0,
                    "content_block": {"type": "text", "text": ""},
                })));
            }
            out.push(named(&json!({
                "type": "content_block_delta", "index": 0,
                "delta": {"type": "text_delta", "text": piece.text},
            })));
        }
        self.finish = self.finish.or(piece.finish);
    }

    fn close(&mut self, usage: Usage, out: &mut Vec<Bytes>) {
        if self.begun {
            out.push(named(&json!({"type": "content_block_stop", "index": 0})));
        }
        let (reason, sequence) = self.stop();
        out.push(named(&json!({
            "type": "message_delta", "usage": used(usage),
            "delta": {"stop_reason": reason, "stop_sequence": sequence},
        })));
        out.push(named(&json!({"type": "message_stop"})));
    }

    fn broken(&mut self, error: &ApiError, out: &mut Vec<Bytes>) {
        out.push(named(&error.anthropic()));
    }

    fn alive(&self) -> Bytes {
        named(&json!({"type": "ping"}))
    }

    fn whole(&mut self, answers: Vec<Piece>, usage: Usage) -> Value {
        let mut content = Vec::new();
        for answer in answers {
            self.finish = answer.finish;
            if !answer.text.is_empty() {
                content.push(json!({"type": "text", "text": answer.text}));
            }
        }
        self.object(content.into(), usage)
    }
}
