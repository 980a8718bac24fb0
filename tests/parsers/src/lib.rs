//! Every parser that meets bytes from outside, by name. A parser may refuse; it may not panic, hang
//! or take memory that its input did not pay for. `make fuzz` feeds them, `make test` replays what
//! fuzzing found worth keeping.

use http::{HeaderMap, HeaderName, HeaderValue, Uri};
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
