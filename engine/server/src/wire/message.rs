//! How Anthropic's API words an answer.

use bytes::Bytes;
use polder_chat::reply::ReplyEvent;
use serde_json::{Value, json};

use crate::answering::Head;
use crate::generate::{Finish, Piece};
use crate::stream::{Wording, named};
use crate::wire::answer::Usage;
use crate::wire::blocks::{Block, Blocks, Step};
use crate::wire::error::ApiError;
use crate::wire::reply::call_id;

/// One message that is being written.
#[derive(Debug)]
pub(crate) struct Message {
    head: Head,
    /// The request's stop sequences.
    stops: Vec<String>,
    /// The thoughts are asked for; otherwise nothing shows that there were any.
    shows_thoughts: bool,
    blocks: Blocks,
    finish: Option<Finish>,
}

/// What the id of a call begins with.
pub(crate) const CALL_PREFIX: &str = "toolu_";

impl Message {
    pub(crate) fn new(head: Head, stops: Vec<String>, shows_thoughts: bool) -> Self {
        Self { head, stops, shows_thoughts, blocks: Blocks::default(), finish: None }
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
            Some(Finish::Stop) => ("end_turn".into(), Value::Null),
            Some(Finish::ToolCalls) => ("tool_use".into(), Value::Null),
            Some(Finish::Length) => ("max_tokens".into(), Value::Null),
            Some(Finish::StopString(which)) => {
                ("stop_sequence".into(), self.stops.get(which).cloned().into())
            }
        }
    }

    /// What a piece adds to the message.
    fn hear(&mut self, mut piece: Piece) -> Vec<Step> {
        self.finish = self.finish.or(piece.finish);
        if !self.shows_thoughts {
            piece.besides.retain(|event| !matches!(event, ReplyEvent::Reasoning(_)));
        }
        self.blocks.hear(piece)
    }

    fn tell(&self, step: Step, out: &mut Vec<Bytes>) {
        let event = match step {
            Step::Begun(index) => json!({
                "type": "content_block_start", "index": index,
                "content_block": self.empty(&self.blocks.list()[index]),
            }),
            Step::More(index, more) => json!({
                "type": "content_block_delta", "index": index,
                "delta": match self.blocks.list()[index] {
                    Block::Thoughts(_) => json!({"type": "thinking_delta", "thinking": more}),
                    Block::Text(_) => json!({"type": "text_delta", "text": more}),
                    Block::Call { .. } => json!({"type": "input_json_delta", "partial_json": more}),
                },
            }),
            Step::Ended(index) => json!({"type": "content_block_stop", "index": index}),
        };
        out.push(named(&event));
    }

    /// A block that has just begun.
    fn empty(&self, block: &Block) -> Value {
        match block {
            Block::Thoughts(_) => thoughts(""),
            Block::Text(_) => json!({"type": "text", "text": ""}),
            Block::Call { call, name, .. } => self.call(*call, name, json!({})),
        }
    }

    /// A block as a whole; None for a call that was cut off, so that nobody acts on half of one.
    fn block(&self, block: &Block) -> Option<Value> {
        match block {
            Block::Thoughts(text) => Some(thoughts(text)),
            Block::Text(text) => Some(json!({"type": "text", "text": text})),
            Block::Call { whole: false, .. } => None,
            Block::Call { call, name, arguments, .. } => {
                Some(self.call(*call, name, input(arguments)))
            }
        }
    }

    fn call(&self, call: usize, name: &str, input: Value) -> Value {
        let id = format!("{CALL_PREFIX}{}", call_id(&self.head.id, 0, call));
        json!({"type": "tool_use", "id": id, "name": name, "input": input})
    }
}

/// Nobody checks here whether thoughts come back as they were, so that there is nothing to sign.
fn thoughts(text: &str) -> Value {
    json!({"type": "thinking", "thinking": text, "signature": ""})
}

/// The arguments of a call as an object. What is none is told under the name that Anthropic gives
/// it, so that the tool refuses it and the model sees why.
fn input(arguments: &str) -> Value {
    match serde_json::from_str(arguments) {
        Ok(object @ Value::Object(_)) => object,
        _ if arguments.trim().is_empty() => json!({}),
        _ => json!({"INVALID_JSON": arguments}),
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
        for step in self.hear(piece) {
            self.tell(step, out);
        }
    }

    fn close(&mut self, usage: Usage, out: &mut Vec<Bytes>) {
        if let Some(step) = self.blocks.end() {
            self.tell(step, out);
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

    fn take(&mut self, piece: Piece) {
        self.hear(piece);
    }

    fn whole(&mut self, usage: Usage) -> Value {
        let content = self.blocks.list().iter().filter_map(|block| self.block(block)).collect();
        self.object(content, usage)
    }
}
