//! Calls of earlier turns, as a template wants them.
//!
//! OpenAI's clients send the arguments of a call as text and no content beside it. Most templates
//! want the arguments as an object; some want the text; some show calls only where the content is
//! null, others stumble over null. Which, a template does not say: it is tried out once, with a call
//! made up for the purpose.

use serde_json::{Map, Value, json};

/// How a template wants calls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct CallForm {
    /// Arguments as the text of their JSON.
    arguments_as_text: bool,
    /// No content is null, not empty text.
    null_content: bool,
}

/// The forms, the likeliest first.
const FORMS: [CallForm; 4] = [
    CallForm { arguments_as_text: false, null_content: false },
    CallForm { arguments_as_text: true, null_content: false },
    CallForm { arguments_as_text: false, null_content: true },
    CallForm { arguments_as_text: true, null_content: true },
];

const NAME: &str = "probe_tool";
const KEY: &str = "probe_key";
/// Rust and Python write its last character as an escape, JSON as itself.
const VALUE: &str = "probe value\u{7f}";

/// The first form in which the template shows a call; `render` gives what it makes of messages, or
/// None where it fails.
pub(crate) fn find(render: impl Fn(Vec<Value>) -> Option<String>) -> CallForm {
    let shows = |form: &CallForm| {
        let mut messages = probe();
        form.apply(&mut messages);
        render(messages).is_some_and(|text| {
            let python = text.contains(&format!("'{KEY}'"));
            [NAME, KEY, VALUE].iter().all(|word| text.contains(word)) && !python
        })
    };
    FORMS.into_iter().find(shows).unwrap_or_default()
}

fn probe() -> Vec<Value> {
    let call = json!({
        "id": "probe1234", "type": "function",
        "function": {"name": NAME, "arguments": {KEY: VALUE}},
    });
    vec![
        json!({"role": "user", "content": "probe"}),
        json!({"role": "assistant", "content": "", "tool_calls": [call]}),
        json!({"role": "tool", "content": "probe", "tool_call_id": "probe1234", "name": NAME}),
    ]
}

impl CallForm {
    /// Brings messages with calls into this form.
    pub(crate) fn apply(self, messages: &mut [Value]) {
        for message in messages.iter_mut().filter_map(Value::as_object_mut) {
            let Some(Value::Array(calls)) = message.get_mut("tool_calls") else { continue };
            if self.arguments_as_text {
                let functions = calls.iter_mut().filter_map(|call| call.get_mut("function"));
                functions.filter_map(Value::as_object_mut).for_each(arguments_to_text);
            }
            if self.null_content && message.get("content").is_some_and(|content| content == "") {
                message.insert("content".into(), Value::Null);
            }
        }
    }
}

fn arguments_to_text(function: &mut Map<String, Value>) {
    if let Some(arguments @ Value::Object(_)) = function.get_mut("arguments") {
        *arguments = crate::json::python_json(arguments).into();
    }
}
