//! Thoughts and calls as OpenAI's SDKs read them, beside the content of a chat answer.

use polder_chat::reply::ReplyEvent;
use serde_json::{Map, Value, json};

/// What a part of an answer adds to a streamed message; nothing for the end of a call, which
/// shows by what follows.
pub(crate) fn delta(event: &ReplyEvent, answer: &str, choice: usize) -> Value {
    match event {
        ReplyEvent::Reasoning(text) => json!({"reasoning_content": text}),
        ReplyEvent::Content(text) => json!({"content": text}),
        ReplyEvent::CallBegin { index, name } => json!({"tool_calls": [{
            "index": index, "id": call_id(answer, choice, *index), "type": "function",
            "function": {"name": name, "arguments": ""},
        }]}),
        ReplyEvent::CallArguments { index, fragment } => json!({"tool_calls": [{
            "index": index, "function": {"arguments": fragment},
        }]}),
        ReplyEvent::CallEnd { .. } => json!({}),
    }
}

/// A whole message: its content, and what stands beside it.
pub(crate) fn message(content: &str, besides: &[ReplyEvent], answer: &str, choice: usize) -> Value {
    let mut reasoning = String::new();
    let mut calls: Vec<(usize, &str, String)> = Vec::new();
    for event in besides {
        match event {
            ReplyEvent::Reasoning(text) => reasoning.push_str(text),
            ReplyEvent::CallBegin { index, name } => calls.push((*index, name, String::new())),
            ReplyEvent::CallArguments { fragment, .. } => {
                calls.iter_mut().rev().take(1).for_each(|(_, _, text)| text.push_str(fragment));
            }
            ReplyEvent::CallEnd { .. } | ReplyEvent::Content(_) => {}
        }
    }
    let mut message = Map::new();
    message.insert("role".into(), "assistant".into());
    let content = match content.is_empty() && !calls.is_empty() {
        true => Value::Null,
        false => content.into(),
    };
    message.insert("content".into(), content);
    message.insert("refusal".into(), Value::Null);
    if !reasoning.is_empty() {
        message.insert("reasoning_content".into(), reasoning.into());
    }
    if !calls.is_empty() {
        let call = |(index, name, arguments): (usize, &str, String)| {
            json!({
                "id": call_id(answer, choice, index), "type": "function",
                "function": {"name": name, "arguments": arguments},
            })
        };
        message.insert("tool_calls".into(), calls.into_iter().map(call).collect());
    }
    message.into()
}

/// A name for a call that no other call has: nine letters and digits, because some models' templates
/// take nothing else. It follows from the answer's id, which is random.
pub(crate) fn call_id(answer: &str, choice: usize, index: usize) -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let place = ((choice as u64) << 32 | index as u64) + 1;
    // FNV-1a, and a last stir so that neighbours do not look alike.
    let hash =
        answer.bytes().chain(place.to_le_bytes()).fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3_u64)
        });
    let mut left = (hash ^ (hash >> 29)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    left ^= left >> 32;
    (0..9)
        .map(|_| {
            let digit = DIGITS[(left % 36) as usize];
            left /= 36;
            char::from(digit)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_has_a_name_of_its_own() {
        let mut ids: Vec<String> = Vec::new();
        for answer in ["chatcmpl-1", "chatcmpl-2"] {
            for choice in 0..20 {
                ids.extend((0..20).map(|index| call_id(answer, choice, index)));
            }
        }
        assert!(ids.iter().all(|id| id.len() == 9));
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 800);
    }
}
