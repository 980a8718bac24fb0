//! A question as a server elsewhere is to get it: with the name that the model has there, and told to say what it used. Pure.

use bytes::Bytes;
use polder_site::UpstreamKind;
use serde_json::{Map, Value};

use crate::usage::Usage;

/// A question that may be sent on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// What is sent.
    pub body: Bytes,
    /// The answer comes in events.
    pub stream: bool,
    /// The events say at their end what was used because we asked for that, and not the client.
    pub hide_usage: bool,
    /// Most that it can use there, where that had to be made sure of; see [`Asked::paid`].
    pub most: Usage,
    /// How long the answer may be is there because we said so, and not the client.
    pub(crate) limited: bool,
}

/// A question that is none, or none that can be passed on. Each sentence is fit for a person.
#[derive(Debug, thiserror::Error)]
pub enum QuestionFault {
    /// Not JSON.
    #[error("the request's body is not a JSON object: {0}")]
    Json(#[from] serde_json::Error),
    /// A limit that is none.
    #[error(
        "{0} is not a whole number of 1 or more, and this question would be answered for money, for which the box has to know the most"
    )]
    Limit(&'static str),
    /// What it costs cannot be told before.
    #[error("what {0} costs cannot be told before, and this question would be answered for money")]
    Unpriced(String),
}

/// Does a server of this kind take questions at this path?
pub fn speaks(kind: UpstreamKind, path: &str) -> bool {
    match kind {
        UpstreamKind::Polder => {
            path.starts_with("/v1/") || ["/tokenize", "/detokenize"].contains(&path)
        }
        UpstreamKind::Server | UpstreamKind::Cloud => {
            ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"].contains(&path)
        }
    }
}

impl Asked {
    /// The question in `body`, asked at `path`, of the model that is `called` so there.
    pub fn of(path: &str, body: &[u8], called: &str) -> Result<Self, QuestionFault> {
        Ok(Self::passed_on(path, serde_json::from_slice(body)?, called))
    }

    pub(crate) fn passed_on(path: &str, mut question: Map<String, Value>, called: &str) -> Self {
        let stream = question.get("stream").and_then(Value::as_bool).unwrap_or(false);
        let tells = ["/v1/chat/completions", "/v1/completions"].contains(&path);
        let mut hide_usage = false;
        if stream && tells {
            let options = question.entry("stream_options").or_insert(Value::Null);
            if options.is_null() {
                *options = Value::Object(Map::new());
            }
            // What is no object is for the server to refuse.
            if let Value::Object(options) = options {
                hide_usage = options.get("include_usage") != Some(&Value::Bool(true));
                options.insert("include_usage".to_owned(), Value::Bool(true));
            }
        }
        question.insert("model".to_owned(), called.into());
        let body = Bytes::from(Value::Object(question).to_string());
        Self { body, stream, hide_usage, most: Usage::default(), limited: false }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A server elsewhere that says nothing special.
    pub(crate) fn upstream() -> polder_site::UpstreamServer {
        polder_site::UpstreamServer {
            kind: UpstreamKind::Cloud,
            url: "https://api.example.org/v1".parse().unwrap(),
            authority: None,
            budget: "25".parse().unwrap(),
            currency: Default::default(),
            when_down: false,
            when_full: false,
            full_at: None,
            models: Default::default(),
        }
    }

    const CHAT: &str = "/v1/chat/completions";

    #[test]
    fn the_model_gets_its_name_there_and_everything_else_stays() {
        let asked = Asked::of(
            CHAT,
            br#"{"z":1.5,"model":"big","messages":[{"model":"big"}],"n":2,"max_tokens":7}"#,
            "v/big",
        )
        .unwrap();
        assert_eq!(
            asked.body,
            r#"{"z":1.5,"model":"v/big","messages":[{"model":"big"}],"n":2,"max_tokens":7}"#
        );
        assert!(!asked.stream && !asked.hide_usage);
    }

    #[test]
    fn a_stream_is_told_to_say_what_it_used_and_whoever_wanted_that_too_gets_it() {
        let of = |text: &str| Asked::of(CHAT, text.as_bytes(), "b").unwrap();
        for (text, hidden) in [
            (r#"{"stream":true}"#, true),
            (r#"{"stream":true,"stream_options":null}"#, true),
            (r#"{"stream":true,"stream_options":{"include_usage":false}}"#, true),
            (r#"{"stream":true,"stream_options":{"include_usage":true}}"#, false),
        ] {
            let asked = of(text);
            assert_eq!((asked.stream, asked.hide_usage), (true, hidden), "{text}");
            assert!(std::str::from_utf8(&asked.body).unwrap().contains("\"include_usage\":true"));
        }
        let odd = of(r#"{"stream":true,"stream_options":7}"#);
        assert!(!odd.hide_usage && odd.body.ends_with(b"\"stream_options\":7,\"model\":\"b\"}"));
        let messages = Asked::of("/v1/messages", br#"{"stream":true}"#, "b").unwrap();
        assert!(messages.stream && !messages.hide_usage);
    }

    #[test]
    fn another_polder_speaks_everything_and_others_what_they_all_do() {
        assert!(
            speaks(UpstreamKind::Polder, "/v1/messages")
                && speaks(UpstreamKind::Polder, "/tokenize")
        );
        for kind in [UpstreamKind::Server, UpstreamKind::Cloud] {
            assert!(
                speaks(kind, CHAT) && !speaks(kind, "/v1/messages") && !speaks(kind, "/tokenize")
            );
        }
        assert!(!speaks(UpstreamKind::Polder, "/metrics"));
    }

    proptest! {
        #[test]
        fn no_body_panics(bytes: Vec<u8>, text in "\\{(\"(stream|n|max_tokens|stream_options)\":(true|1|null|\\{\\}|-1|\"x\"),?){0,4}\\}") {
            let _ = Asked::of(CHAT, &bytes, "b");
            let _ = Asked::of(CHAT, text.as_bytes(), "b");
        }
    }
}
