//! How the Responses API words an answer.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::answering::Head;
use crate::generate::{Finish, Piece};
use crate::stream::{Wording, named};
use crate::wire::answer::Usage;
use crate::wire::error::ApiError;

/// One response that is being written.
#[derive(Debug)]
pub(crate) struct Response {
    head: Head,
    /// What it repeats from the request.
    repeated: Map<String, Value>,
    /// Events so far.
    sequence: u64,
    /// What was said, once anything was.
    text: Option<String>,
    finish: Option<Finish>,
}

impl Response {
    pub(crate) fn new(head: Head, repeated: Map<String, Value>) -> Self {
        Self { head, repeated, sequence: 0, text: None, finish: None }
    }

    fn object(&self, status: &str, output: Value, usage: Option<Usage>) -> Map<String, Value> {
        let incomplete = (status == "incomplete").then(|| json!({"reason": "max_output_tokens"}));
        let mut map = self.repeated.clone();
        let own = json!({
            "id": format!("resp_{}", self.head.id), "object": "response",
            "created_at": self.head.created, "model": self.head.model, "status": status,
            "output": output, "usage": usage.map(used), "error": null,
            "incomplete_details": incomplete, "store": false, "background": false,
            "previous_response_id": null, "tools": [], "tool_choice": "auto",
            "parallel_tool_calls": true, "text": {"format": {"type": "text"}},
            "truncation": "disabled",
        });
        if let Value::Object(own) = own {
            map.extend(own);
        }
        map
    }

    fn item(&self, status: &str, content: Value) -> Value {
        json!({
            "id": format!("msg_{}", self.head.id), "type": "message", "role": "assistant",
            "status": status, "content": content,
        })
    }

    /// Whether the answer is all of it.
    fn status(&self) -> &'static str {
        match self.finish {
            Some(Finish::Length) => "incomplete",
            _ => "completed",
        }
    }

    fn event(&mut self, mut event: Value, out: &mut Vec<Bytes>) {
        event["sequence_number"] = self.sequence.into();
        self.sequence += 1;
        out.push(named(&event));
    }

    /// An event about the one part of the one item.
    fn part_event(&mut self, kind: &str, more: Value, out: &mut Vec<Bytes>) {
        let mut event = json!({
            "type": kind, "item_id": format!("msg_{}", self.head.id), "output_index": 0,
            "content_index": 0,
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            event[key] = value.clone();
        }
        self.event(event, out);
    }

    fn begin(&mut self, out: &mut Vec<Bytes>) {
        if self.text.is_some() {
            return;
        }
        self.text = Some(String::new());
        let item = self.item("in_progress", json!([]));
        let added = json!({"type": "response.output_item.added", "output_index": 0, "item": item});
        self.event(added, out);
        self.part_event("response.content_part.added", json!({"part": part("")}), out);
    }
}

fn part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

fn used(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt,
        "input_tokens_details": {
            "cached_tokens": usage.cached.min(usage.prompt), "cache_write_tokens": 0,
        },
        "output_tokens": usage.completion, "output_tokens_details": {"reasoning_tokens": 0},
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
        if !piece.text.is_empty() {
            self.begin(out);
            if let Some(text) = &mut self.text {
                text.push_str(&piece.text);
            }
            let delta = json!({"delta": piece.text, "logprobs": []});
            self.part_event("response.output_text.delta", delta, out);
        }
        self.finish = self.finish.or(piece.finish);
    }

    fn close(&mut self, usage: Usage, out: &mut Vec<Bytes>) {
        self.begin(out);
        let (text, status) = (self.text.clone().unwrap_or_default(), self.status());
        let done = json!({"text": text, "logprobs": []});
        self.part_event("response.output_text.done", done, out);
        self.part_event("response.content_part.done", json!({"part": part(&text)}), out);
        let item = self.item(status, json!([part(&text)]));
        let done = json!({"type": "response.output_item.done", "output_index": 0, "item": item});
        self.event(done, out);
        let response = self.object(status, json!([item]), Some(usage));
        let kind = format!("response.{status}");
        self.event(json!({"type": kind, "response": response}), out);
    }

    fn broken(&mut self, error: &ApiError, out: &mut Vec<Bytes>) {
        let mut response = self.object("failed", json!([]), None);
        let error = json!({"code": "server_error", "message": error.message});
        response.insert("error".into(), error);
        self.event(json!({"type": "response.failed", "response": response}), out);
    }

    fn take(&mut self, piece: Piece) {
        self.finish = self.finish.or(piece.finish);
        self.text.get_or_insert_default().push_str(&piece.text);
    }

    fn whole(&mut self, usage: Usage) -> Value {
        let status = self.status();
        let item = self.item(status, json!([part(self.text.as_deref().unwrap_or_default())]));
        self.object(status, json!([item]), Some(usage)).into()
    }
}
