//! Every parser that meets bytes from outside, by name. A parser may refuse; it may not panic, hang
//! or take memory that its input did not pay for. `make fuzz` feeds them, `make test` replays what
//! fuzzing found worth keeping.

mod forms;

use std::sync::{Arc, LazyLock};

use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use polder_chat::reply::{Dialect, ReplyEvent, ReplyParser, Tools};
use polder_engine_server::wire;

/// A parser under its name.
pub type Parser = (&'static str, fn(&[u8]));

/// All of them. Each has a folder of its name in `tests/fuzz/corpus`.
pub const PARSERS: &[Parser] = &[
    ("gguf", |bytes| drop(polder_model::gguf::parse(bytes))),
    ("safetensors", |bytes| drop(polder_model::huggingface::parse_tensors(bytes))),
    ("safetensors_index", |bytes| drop(polder_model::huggingface::parse_index(bytes))),
    ("model_config", |bytes| {
        drop(polder_model::huggingface::parse_config(bytes));
        drop(polder_model::huggingface::parse_method(bytes));
    }),
    ("recipe", |bytes| text(bytes, |t| drop(polder_recipes::Recipe::from_toml(t)))),
    ("site", |bytes| text(bytes, |t| drop(polder_site::Site::from_toml(t)))),
    ("control", |bytes| drop(serde_json::from_slice::<polder_control::Request>(bytes))),
    ("chat_request", |bytes| drop(wire::chat::parse_chat(bytes, false))),
    ("tokenize_request", |bytes| drop(wire::tokens::parse_tokenize(bytes, false))),
    ("request_head", request_head),
    ("reply", reply),
    ("json_schema", forms::json_schema),
    ("tool_schema", forms::tool_schema),
    ("completion_request", |bytes| drop(wire::completions::parse_completion(bytes, true))),
    ("message_request", |bytes| {
        drop(wire::messages::parse_messages(bytes, wire::messages::Purpose::Answer, false));
    }),
    ("response_request", |bytes| drop(wire::responses::parse_responses(bytes, false))),
    ("embedding_request", |bytes| drop(wire::embeddings::parse_embeddings(bytes, false))),
];

/// Feeds one parser.
pub fn feed(name: &str, bytes: &[u8]) {
    let (_, parser) =
        PARSERS.iter().find(|(n, _)| *n == name).expect("a fuzz target names a parser that exists");
    parser(bytes);
}

fn text(bytes: &[u8], parse: impl FnOnce(&str)) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        parse(text);
    }
}

/// A request's address and headers, as the door judges them: whatever comes, no header that the door
/// itself asserts is left for an engine to believe.
fn request_head(bytes: &[u8]) {
    let mut lines = bytes.split(|b| *b == b'\n');
    let uri = lines.next().and_then(|line| Uri::try_from(line).ok()).unwrap_or_default();
    let mut headers = HeaderMap::new();
    for line in lines.take(100) {
        let Some(colon) = line.iter().position(|b| *b == b':') else { continue };
        let (name, value) =
            (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(&line[colon + 1..]));
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    drop(polder_gateway::host::request_host(&uri, &headers));
    let _plain = polder_gateway::headers::framing_is_plain(&headers);
    polder_gateway::headers::drop_asserted(&mut headers);
    assert!(
        !headers.keys().any(|name| polder_gateway::headers::is_asserted(name.as_str())),
        "a spoofed header is left"
    );
    drop(polder_gateway::headers::towards_engine(&headers));
}

/// A model's reply: the first byte chooses the dialect, the second how the text is cut. However it is
/// cut it says the same, and where it has no mark it comes out as it is.
fn reply(bytes: &[u8]) {
    static DIALECTS: LazyLock<Vec<Dialect>> = LazyLock::new(|| {
        let tokenizer = polder_chat::Tokenizer::from_json(TOKENIZER).expect("it is valid");
        TEMPLATES.iter().map(|template| Dialect::detect(template, &tokenizer)).collect()
    });
    let [which, cut, text @ ..] = bytes else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let dialect = &DIALECTS[usize::from(*which) % DIALECTS.len()];
    let thinking = which & 0x80 != 0;
    let whole = said(dialect, thinking, &[text]);
    let every = usize::from(*cut).max(1);
    let characters: Vec<char> = text.chars().collect();
    let pieces: Vec<String> =
        characters.chunks(every).map(|piece| piece.iter().collect()).collect();
    let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
    assert_eq!(whole, said(dialect, thinking, &pieces), "the cut changes what is said");
    let marks = ['<', '[', '{'];
    if !thinking && !text.contains(marks) {
        let content = ReplyEvent::Content(text.to_owned());
        let expected = if text.is_empty() { Vec::new() } else { vec![content] };
        assert_eq!(whole, expected, "text without marks is not content");
    }
}

/// The events of a reply, neighbours joined.
fn said(dialect: &Dialect, thinking: bool, pieces: &[&str]) -> Vec<ReplyEvent> {
    let tool = serde_json::json!({"type": "function", "function": {"name": "f", "parameters": {
        "properties": {"a": {"type": "string"}, "n": {"type": ["integer", "null"]}}}}});
    let tools = Some(Arc::new(Tools::new(&[tool])));
    let mut parser = ReplyParser::new(dialect, tools, thinking);
    let mut said: Vec<ReplyEvent> = Vec::new();
    let mut events: Vec<ReplyEvent> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
    events.extend(parser.finish());
    for event in events {
        match (said.last_mut(), event) {
            (Some(ReplyEvent::Content(before)), ReplyEvent::Content(text))
            | (Some(ReplyEvent::Reasoning(before)), ReplyEvent::Reasoning(text)) => {
                before.push_str(&text);
            }
            (
                Some(ReplyEvent::CallArguments { fragment: before, .. }),
                ReplyEvent::CallArguments { fragment, .. },
            ) => before.push_str(&fragment),
            (_, event) => said.push(event),
        }
    }
    said
}

/// What shows each dialect.
const TEMPLATES: [&str; 8] = [
    "tools <tool_call> </think>",
    "tools <tool_call><function= </think>",
    "tools <seed:tool_call><function= </seed:think>",
    "tools <｜tool▁call▁begin｜> </think>",
    "tools [TOOL_CALLS] [/THINK]",
    "tools <|python_start|>",
    "tools <|python_tag|>",
    "{{ messages }}",
];

/// A vocabulary of one word, and a mark that is a control token.
const TOKENIZER: &[u8] = br#"{"version": "1.0", "truncation": null, "padding": null,
    "added_tokens": [{"id": 1, "content": "<|python_tag|>", "special": true, "single_word": false,
        "lstrip": false, "rstrip": false, "normalized": false}],
    "normalizer": null, "pre_tokenizer": null, "post_processor": null,
    "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
    "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
        "vocab": {"a": 0}, "merges": []}}"#;
