//! How the Responses API words an answer.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::answering::Head;
use crate::generate::{Finish, Judged, Piece};
use crate::stream::{Wording, named};
use crate::wire::answer::{Usage, opinion};
use crate::wire::blocks::{Block, Blocks, Step};
use crate::wire::error::ApiError;
use crate::wire::reply::call_id;

/// What the id of a call begins with.
pub(crate) const CALL_PREFIX: &str = "call_";

/// One response that is being written.
#[derive(Debug)]
pub(crate) struct Response {
    head: Head,
    /// What it repeats from the request.
    repeated: Map<String, Value>,
    /// Events so far.
    sequence: u64,
    blocks: Blocks,
    /// The tokens of the text, where logprobs are asked for: all of it is one text then.
    judged: Option<Vec<Judged>>,
    /// How many of them the events so far have told.
    told: usize,
    /// The item that the limit cut off.
    cut: Option<usize>,
    finish: Option<Finish>,
}

impl Response {
    pub(crate) fn new(head: Head, repeated: Map<String, Value>, logprobs: bool) -> Self {
        let (blocks, cut, finish) = (Blocks::default(), None, None);
        let judged = logprobs.then(Vec::new);
        Self { head, repeated, sequence: 0, blocks, judged, told: 0, cut, finish }
    }

    /// What the model thought of the tokens from this one on.
    fn opinions(&self, from: usize) -> Value {
        self.judged.iter().flat_map(|all| &all[from..]).map(opinion).collect()
    }

    fn part(&self, block: &Block, text: &str, logprobs: Value) -> Value {
        match block {
            Block::Thoughts(_) => json!({"type": "reasoning_text", "text": text}),
            _ => json!({
                "type": "output_text", "text": text, "annotations": [], "logprobs": logprobs,
            }),
        }
    }

    fn object(&self, status: &str, output: Value, usage: Option<Usage>) -> Map<String, Value> {
        let incomplete = (status == "incomplete").then(|| json!({"reason": "max_output_tokens"}));
        let mut map = self.repeated.clone();
        let own = json!({
            "id": format!("resp_{}", self.head.id), "object": "response",
            "created_at": self.head.created, "model": self.head.model, "status": status,
            "output": output, "usage": usage.map(used), "error": null,
            "incomplete_details": incomplete, "store": false, "background": false,
            "previous_response_id": null, "truncation": "disabled",
        });
        if let Value::Object(own) = own {
            map.extend(own);
        }
        map
    }

    /// Whether the answer is all of it.
    fn status(&self) -> &'static str {
        match self.finish {
            Some(Finish::Length) => "incomplete",
            _ => "completed",
        }
    }

    fn item_id(&self, index: usize) -> String {
        let kind = match self.blocks.list()[index] {
            Block::Thoughts(_) => "rs",
            Block::Text(_) => "msg",
            Block::Call { .. } => "fc",
        };
        format!("{kind}_{}{index:02x}", self.head.id)
    }

    /// An item as it begins: nothing in it yet.
    fn begun(&self, index: usize) -> Value {
        match &self.blocks.list()[index] {
            Block::Call { call, name, .. } => self.call(index, *call, name, "", "in_progress"),
            _ => self.holding(index, json!([]), "in_progress"),
        }
    }

    /// An item as it ends.
    fn ended(&self, index: usize) -> Value {
        let status = if self.cut == Some(index) { "incomplete" } else { "completed" };
        match &self.blocks.list()[index] {
            Block::Call { call, name, arguments, .. } => {
                self.call(index, *call, name, arguments, status)
            }
            block @ (Block::Text(text) | Block::Thoughts(text)) => {
                self.holding(index, json!([self.part(block, text, self.opinions(0))]), status)
            }
        }
    }

    /// An item of text or thoughts.
    fn holding(&self, index: usize, content: Value, status: &str) -> Value {
        let id = self.item_id(index);
        match self.blocks.list()[index] {
            Block::Thoughts(_) => json!({
                "id": id, "type": "reasoning", "summary": [], "content": content, "status": status,
            }),
            _ => json!({
                "id": id, "type": "message", "role": "assistant", "status": status,
                "content": content,
            }),
        }
    }

    fn call(&self, index: usize, call: usize, name: &str, arguments: &str, status: &str) -> Value {
        json!({
            "id": self.item_id(index), "type": "function_call", "status": status, "name": name,
            "call_id": format!("{CALL_PREFIX}{}", call_id(&self.head.id, 0, call)),
            "arguments": arguments,
        })
    }

    fn output(&self) -> Value {
        (0..self.blocks.list().len()).map(|index| self.ended(index)).collect()
    }

    fn event(&mut self, mut event: Value, out: &mut Vec<Bytes>) {
        event["sequence_number"] = self.sequence.into();
        self.sequence += 1;
        out.push(named(&event));
    }

    /// An event about what is in an item.
    fn inner(&mut self, index: usize, kind: &str, more: Value, out: &mut Vec<Bytes>) {
        let mut event = json!({
            "type": format!("response.{kind}"), "item_id": self.item_id(index),
            "output_index": index,
        });
        if !matches!(self.blocks.list()[index], Block::Call { .. }) {
            event["content_index"] = 0.into();
        }
        for (key, value) in more.as_object().into_iter().flatten() {
            event[key] = value.clone();
        }
        self.event(event, out);
    }

    fn tell(&mut self, step: Step, out: &mut Vec<Bytes>) {
        match step {
            Step::Begun(index) => self.tell_begun(index, out),
            Step::More(index, more) => {
                let (kind, more) = match &self.blocks.list()[index] {
                    Block::Thoughts(_) => ("reasoning_text.delta", json!({"delta": more})),
                    Block::Text(_) => {
                        let logprobs = self.opinions(self.told);
                        self.told = self.judged.as_ref().map_or(0, Vec::len);
                        ("output_text.delta", json!({"delta": more, "logprobs": logprobs}))
                    }
                    Block::Call { .. } => ("function_call_arguments.delta", json!({"delta": more})),
                };
                self.inner(index, kind, more, out);
            }
            Step::Ended(index) => self.tell_ended(index, out),
        }
    }

    fn tell_begun(&mut self, index: usize, out: &mut Vec<Bytes>) {
        let item = self.begun(index);
        let added = json!({
            "type": "response.output_item.added", "output_index": index, "item": item,
        });
        self.event(added, out);
        let part = match &self.blocks.list()[index] {
            Block::Call { .. } => return,
            block => self.part(block, "", json!([])),
        };
        self.inner(index, "content_part.added", json!({"part": part}), out);
    }

    fn tell_ended(&mut self, index: usize, out: &mut Vec<Bytes>) {
        let (kind, done, part) = match &self.blocks.list()[index] {
            block @ Block::Thoughts(text) => {
                let part = self.part(block, text, Value::Null);
                ("reasoning_text.done", json!({"text": text}), Some(part))
            }
            block @ Block::Text(text) => {
                let done = json!({"text": text, "logprobs": self.opinions(0)});
                ("output_text.done", done, Some(self.part(block, text, self.opinions(0))))
            }
            Block::Call { name, arguments, .. } => {
                let done = json!({"name": name, "arguments": arguments});
                ("function_call_arguments.done", done, None)
            }
        };
        self.inner(index, kind, done, out);
        if let Some(part) = part {
            self.inner(index, "content_part.done", json!({"part": part}), out);
        }
        let item = self.ended(index);
        let done =
            json!({"type": "response.output_item.done", "output_index": index, "item": item});
        self.event(done, out);
    }

    fn hear(&mut self, mut piece: Piece) -> Vec<Step> {
        if let Some(all) = &mut self.judged {
            all.append(&mut piece.tokens);
        }
        self.finish = self.finish.or(piece.finish);
        self.blocks.hear(piece)
    }

    /// Ends what still grows. An answer without any word is an empty one.
    fn finish(&mut self) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.blocks.list().is_empty() {
            self.blocks.begin(Block::Text(String::new()), &mut steps);
        }
        self.cut = self.blocks.open().filter(|_| self.finish == Some(Finish::Length));
        steps.extend(self.blocks.end());
        steps
    }
}

fn used(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt,
        "input_tokens_details": {
            "cached_tokens": usage.cached.min(usage.prompt), "cache_write_tokens": 0,
        },
        "output_tokens": usage.completion, "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.completion,
    })
}

impl Wording for Response {
    fn open(&mut self, out: &mut Vec<Bytes>) {
        for kind in ["response.created", "response.in_progress"] {
            let response = self.object("in_progress", json!([]), None);
            self.event(json!({"type": kind, "response": response}), out);
        }
    }

    fn piece(&mut self, piece: Piece, out: &mut Vec<Bytes>) {
        for step in self.hear(piece) {
            self.tell(step, out);
        }
    }

    fn close(&mut self, usage: Usage, out: &mut Vec<Bytes>) {
        for step in self.finish() {
            self.tell(step, out);
        }
        let status = self.status();
        let response = self.object(status, self.output(), Some(usage));
        self.event(json!({"type": format!("response.{status}"), "response": response}), out);
    }

    fn broken(&mut self, error: &ApiError, out: &mut Vec<Bytes>) {
        let mut response = self.object("failed", json!([]), None);
        let error = json!({"code": "server_error", "message": error.message});
        response.insert("error".into(), error);
        self.event(json!({"type": "response.failed", "response": response}), out);
    }

    fn take(&mut self, piece: Piece) {
        self.hear(piece);
    }

    fn whole(&mut self, usage: Usage) -> Value {
        self.finish();
        let status = self.status();
        self.object(status, self.output(), Some(usage)).into()
    }
}
