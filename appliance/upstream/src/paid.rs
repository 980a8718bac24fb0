//! A question to a server that is paid by the token, made such that the most that it can cost is known before it goes out. Pure.

use polder_site::UpstreamModel;
use serde_json::{Map, Value};

use crate::price::Price;
use crate::question::{Asked, QuestionFault};
use crate::usage::Usage;

/// An answer is no longer than this where neither the question nor the site says how long it may be.
pub const USUAL_ANSWER: u64 = 4096;
/// Nor than this, whatever the question says, where the site does not.
pub const LONGEST_ANSWER: u64 = 131_072;
/// Tokens that a server puts before and around a question by itself, at most.
pub const BEFORE_IT: u64 = 1024;

/// What says how long an answer may be. Which of them a server heeds is its own affair.
const LIMITS: [&str; 3] = ["max_completion_tokens", "max_output_tokens", "max_tokens"];
/// What a client may ask for that costs beside the tokens of its text, or another price, or goes round the limit.
const COSTS_BESIDE: [&str; 27] = [
    "audio",
    "background",
    "container",
    "conversation",
    "enable_search",
    "extra_body",
    "file_ids",
    "files",
    "images",
    "max_length",
    "max_new_tokens",
    "mcp_servers",
    "modalities",
    "models",
    "n_predict",
    "num_predict",
    "plugins",
    "prediction",
    "previous_response_id",
    "provider",
    "route",
    "search_parameters",
    "search_settings",
    "service_tier",
    "speed",
    "use_beam_search",
    "web_search_options",
];
/// Kinds of parts that are text, whose tokens are no more than its bytes.
const TEXT: [&str; 13] = [
    "text",
    "input_text",
    "output_text",
    "summary_text",
    "refusal",
    "thinking",
    "redacted_thinking",
    "reasoning",
    "message",
    "tool_use",
    "tool_result",
    "function_call",
    "function_call_output",
];
/// Answers of tools in answers of tools: no deeper.
const DEEPEST: usize = 4;

impl Asked {
    /// The question in `body`, asked at `path` of this model, and the most that it can cost there, in millionths. Where it costs anything, the
    /// question is refused if that cannot be told, and says how long its answer may be if it did not.
    pub fn paid(
        path: &str,
        body: &[u8],
        there: &UpstreamModel,
    ) -> Result<(Self, u64), QuestionFault> {
        let price = Price::of(there);
        if price.is_free() {
            return Ok((Self::of(path, body, &there.called)?, 0));
        }
        let asked = Self::bounded(path, serde_json::from_slice(body)?, there)?;
        let most = price.most(&asked.most, keeps_long(&asked.body));
        Ok((asked, most))
    }

    fn bounded(
        path: &str,
        mut question: Map<String, Value>,
        there: &UpstreamModel,
    ) -> Result<Self, QuestionFault> {
        if let Some(what) = beside(&question) {
            return Err(QuestionFault::Unpriced(what));
        }
        let cap = there.longest.map_or(LONGEST_ANSWER, u64::from);
        let mut longest = None;
        for name in LIMITS {
            let Some(limit) = number(&question, name)? else { continue };
            let limit = limit.min(cap);
            question.insert(name.to_owned(), limit.into());
            longest = longest.max(Some(limit));
        }
        let (heeded, own): (&[&str], _) = match path {
            "/v1/chat/completions" => (&["max_completion_tokens", "max_tokens"], "max_tokens"),
            "/v1/completions" | "/v1/messages" => (&["max_tokens"], "max_tokens"),
            "/v1/responses" => (&["max_output_tokens"], "max_output_tokens"),
            // Nothing is written there.
            _ => (&[], ""),
        };
        let limited = !heeded.is_empty()
            && !heeded.iter().any(|name| question.get(*name).is_some_and(Value::is_u64));
        let usual = there.longest.map_or(USUAL_ANSWER, u64::from);
        let answer = longest.unwrap_or(usual);
        if limited {
            question.insert(own.to_owned(), answer.into());
        }
        let answers = number(&question, "n")?.max(number(&question, "best_of")?).unwrap_or(1);
        let questions = match question.get("prompt") {
            Some(Value::Array(all)) if all.iter().any(|one| !one.is_u64()) => all.len() as u64,
            _ => 1,
        };
        let completion = match heeded {
            [] => 0,
            _ => answer.saturating_mul(answers).saturating_mul(questions),
        };
        let asked = Self::passed_on(path, question, &there.called);
        // No token stands for less than a byte.
        let prompt = asked.body.len() as u64 + BEFORE_IT.saturating_mul(questions);
        Ok(Self { most: Usage { prompt, completion, ..Usage::default() }, limited, ..asked })
    }

    /// The same, saying by its newer name how long the answer may be: for a server that refused the older one, which only we had written.
    pub fn by_the_newer_name(&self, refusal: &[u8]) -> Option<Self> {
        let (older, newer) = ("max_tokens", "max_completion_tokens");
        let named = refusal.windows(newer.len()).any(|part| part == newer.as_bytes());
        if !self.limited || !named {
            return None;
        }
        let mut question: Map<String, Value> = serde_json::from_slice(&self.body).ok()?;
        let limit = question.remove(older)?;
        question.insert(newer.to_owned(), limit);
        Some(Self {
            body: Value::Object(question).to_string().into(),
            limited: false,
            ..self.clone()
        })
    }
}

/// Whether what goes out lets the server keep it for an hour, which costs more than for minutes: only where it has a field for that, which may be in
/// many places. A text that speaks of one has other signs around it.
fn keeps_long(sent: &[u8]) -> bool {
    let has = |field: &[u8]| sent.windows(field.len()).any(|part| part == field);
    has(b"\"ttl\"") || has(b"\"prompt_cache_retention\"")
}

/// A number of 1 or more, if there is anything.
fn number(question: &Map<String, Value>, name: &'static str) -> Result<Option<u64>, QuestionFault> {
    match question.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64() {
            Some(number) if number > 0 => Ok(Some(number)),
            _ => Err(QuestionFault::Limit(name)),
        },
    }
}

/// What costs something beside the tokens of the question's text and of its answer, if anything does.
fn beside(question: &Map<String, Value>) -> Option<String> {
    let asked = |name: &&&str| match question.get(**name) {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Array(all)) if all.is_empty() => false,
        Some(value) => match **name {
            "service_tier" => value != "default",
            "modalities" => *value != Value::from(vec!["text"]),
            _ => true,
        },
    };
    if let Some(name) = COSTS_BESIDE.iter().find(asked) {
        return Some(format!("\u{201c}{name}\u{201d}"));
    }
    let tool = |tool: &Value| match tool["type"].as_str() {
        None | Some("function" | "custom") => None,
        Some(kind) => Some(format!("a tool of the kind \u{201c}{}\u{201d}", short(kind))),
    };
    let list = |name: &str| question.get(name).and_then(Value::as_array).into_iter().flatten();
    let tools = list("tools").find_map(tool);
    // What was stored there may be of any length.
    let stored = question.get("prompt").filter(|prompt| prompt.is_object());
    tools
        .or_else(|| stored.map(|_| "a stored prompt".to_owned()))
        .or_else(|| list("messages").find_map(|message| part(message, 0)))
        .or_else(|| list("input").find_map(|item| part(item, 0)))
        .or_else(|| list("system").find_map(|item| part(item, 0)))
}

/// What in a message, or in a part of one, is not text.
fn part(value: &Value, deep: usize) -> Option<String> {
    let Value::Object(object) = value else {
        // Text, or tokens by their numbers.
        return None;
    };
    let kind = object.get("type").and_then(Value::as_str);
    if let Some(kind) = kind.filter(|kind| !TEXT.contains(kind)) {
        return Some(format!("a part of the kind \u{201c}{}\u{201d}", short(kind)));
    }
    // What OpenAI takes for a reference although it does not say that it is one: of any length.
    let says = ["type", "role", "content", "text"];
    if deep == 0 && object.contains_key("id") && !says.iter().any(|name| object.contains_key(*name))
    {
        return Some("something that is stored there".to_owned());
    }
    let other = ["audio", "images", "image_url", "file", "source"];
    if let Some(name) =
        other.into_iter().find(|name| object.get(*name).is_some_and(|v| !v.is_null()))
    {
        return Some(format!("a part with \u{201c}{name}\u{201d}"));
    }
    if deep > DEEPEST {
        return Some("so deep a nest of answers".to_owned());
    }
    let mut content = object.get("content").into_iter().chain(object.get("output"));
    content.find_map(|content| match content {
        Value::Array(all) => all.iter().find_map(|inner| part(inner, deep + 1)),
        // One part where there should be a list, which some take.
        one => part(one, deep + 1),
    })
}

fn short(kind: &str) -> String {
    kind.chars().filter(|c| !c.is_control()).take(40).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const CHAT: &str = "/v1/chat/completions";

    fn model(input: &str, output: &str, longest: Option<u32>) -> UpstreamModel {
        UpstreamModel {
            called: "v/big".into(),
            input: input.parse().unwrap(),
            output: output.parse().unwrap(),
            cached: None,
            // Counted here are tokens, not money.
            written: Some(input.parse().unwrap()),
            longest,
        }
    }

    fn paid(path: &str, question: &Value, longest: Option<u32>) -> Result<Asked, QuestionFault> {
        let (asked, cost) =
            Asked::paid(path, question.to_string().as_bytes(), &model("1", "1", longest))?;
        assert_eq!(cost, asked.most.prompt + asked.most.completion);
        Ok(asked)
    }

    fn sent(asked: &Asked) -> Value {
        serde_json::from_slice(&asked.body).unwrap()
    }

    #[test]
    fn what_a_question_may_keep_there_is_set_aside_for_and_for_an_hour_where_it_says_so() {
        let there = UpstreamModel { written: None, ..model("1", "1", None) };
        let cost = |content: Value| {
            let question = json!({ "model": "m", "max_tokens": 10, "messages": [{ "role": "user", "content": content }] });
            let (asked, cost) =
                Asked::paid("/v1/messages", question.to_string().as_bytes(), &there).unwrap();
            (asked.most.prompt, cost - 10)
        };
        let (read, most) = cost(json!("the \"ttl\" of a name"));
        assert_eq!(most, (read * 5).div_ceil(4));
        let part = |ttl: Value| json!([{ "type": "text", "text": "x", "cache_control": ttl }]);
        let (read, most) = cost(part(json!({ "type": "ephemeral" })));
        assert_eq!(most, (read * 5).div_ceil(4));
        let (read, most) = cost(part(json!({ "type": "ephemeral", "ttl": "1h" })));
        assert_eq!(most, read * 2);
    }

    #[test]
    fn an_answer_without_a_limit_gets_one_and_a_longer_one_than_there_can_be_a_shorter() {
        let of = |question: Value, longest| {
            let asked = paid(CHAT, &question, longest).unwrap();
            (asked.most.completion, sent(&asked)["max_tokens"].as_u64(), asked.limited)
        };
        assert_eq!(of(json!({}), None), (4096, Some(4096), true));
        assert_eq!(of(json!({"max_tokens": null}), Some(9)), (9, Some(9), true));
        assert_eq!(of(json!({"max_tokens": 7, "n": 3}), None), (21, Some(7), false));
        assert_eq!(of(json!({"max_tokens": 1u64 << 60}), None), (131_072, Some(131_072), false));
        assert_eq!(of(json!({"max_completion_tokens": 8}), Some(5)), (5, None, false));
        // One that nobody heeds there is none, and the dearer of two counts.
        assert_eq!(of(json!({"max_output_tokens": 8}), None), (8, Some(8), true));
        assert_eq!(
            of(json!({"max_completion_tokens": 1, "max_tokens": 9}), None),
            (9, Some(9), false)
        );
        let many =
            paid("/v1/completions", &json!({"prompt": ["a", "b"], "best_of": 2}), None).unwrap();
        assert_eq!(many.most.completion, 4 * 4096);
        let tokens = paid("/v1/completions", &json!({"prompt": [1, 2, 3]}), None).unwrap();
        assert_eq!(tokens.most.completion, 4096);
        let read = paid("/v1/embeddings", &json!({"input": ["a", "b"]}), None).unwrap();
        assert_eq!((read.most.completion, sent(&read).get("max_tokens")), (0, None));
    }

    #[test]
    fn what_costs_nothing_passes_as_it_is() {
        let question = json!({"max_tokens": -1, "web_search_options": {}});
        let (asked, most) =
            Asked::paid(CHAT, question.to_string().as_bytes(), &model("0", "0", None)).unwrap();
        assert_eq!((most, &sent(&asked)["max_tokens"], asked.limited), (0, &json!(-1), false));
    }

    #[test]
    fn a_limit_that_is_none_is_refused_where_money_is_at_stake() {
        for bad in [json!(0), json!(-1), json!(1e9), json!("5000"), json!([])] {
            for name in ["max_tokens", "max_completion_tokens", "n", "best_of"] {
                let says = paid(CHAT, &json!({name: bad}), None).unwrap_err().to_string();
                assert!(says.contains(name) && says.contains("for money"), "{says}");
            }
        }
    }

    #[test]
    fn what_costs_beside_its_tokens_is_refused_by_name() {
        let message = |part: Value| json!({"messages": [{"role": "user", "content": [part]}]});
        for (question, named) in [
            (json!({"web_search_options": {}}), "web_search_options"),
            (json!({"service_tier": "priority"}), "service_tier"),
            (json!({"models": ["dearer"]}), "models"),
            (json!({"n_predict": 100_000}), "n_predict"),
            (json!({"tools": [{"type": "web_search"}]}), "web_search"),
            (json!({"prompt": {"id": "p"}}), "stored prompt"),
            (
                message(json!({"type": "image_url", "image_url": {"url": "https://a/b"}})),
                "image_url",
            ),
            (message(json!({"type": "file", "file": {}})), "file"),
            (message(json!({"type": "tool_result", "content": [{"type": "image"}]})), "image"),
            (json!({"input": [{"type": "item_reference", "id": "x"}]}), "item_reference"),
            (json!({"input": [{"id": "msg_1"}]}), "stored there"),
            (json!({"messages": [{"role": "user", "images": ["AA"], "content": "x"}]}), "images"),
            (json!({"messages": [{"role": "user", "content": {"type": "image"}}]}), "image"),
            (json!({"search_parameters": {"mode": "on"}}), "search_parameters"),
        ] {
            let says = paid(CHAT, &question, None).unwrap_err().to_string();
            assert!(says.contains(named) && says.contains("cannot be told before"), "{says}");
        }
        for fine in [
            json!({"service_tier": "default", "audio": null, "models": []}),
            json!({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]}),
            message(json!({"type": "text", "text": "hello"})),
            json!({"messages": [{"role": "user", "content": "an image_url"}]}),
        ] {
            assert!(paid(CHAT, &fine, None).is_ok(), "{fine}");
        }
    }

    #[test]
    fn a_server_that_knows_only_the_newer_name_is_asked_by_that_once() {
        let refusal = br#"{"error":{"message":"Use 'max_completion_tokens' instead."}}"#;
        let asked = paid(CHAT, &json!({}), None).unwrap();
        let again = asked.by_the_newer_name(refusal).unwrap();
        assert_eq!(sent(&again)["max_completion_tokens"], 4096);
        assert_eq!((sent(&again).get("max_tokens"), again.most), (None, asked.most));
        assert!(again.by_the_newer_name(refusal).is_none());
        assert!(asked.by_the_newer_name(b"no such model").is_none());
        let own = paid(CHAT, &json!({"max_tokens": 5}), None).unwrap();
        assert!(own.by_the_newer_name(refusal).is_none(), "what a client wrote stays");
    }

    /// A server that keeps to what it was sent, as dear as one can be: a token for each byte, all the answers as long as they may be.
    fn dearest(path: &str, sent: &Value, bytes: usize) -> Usage {
        let limit = match path {
            "/v1/responses" => sent["max_output_tokens"].as_u64(),
            CHAT => sent["max_tokens"].as_u64().max(sent["max_completion_tokens"].as_u64()),
            "/v1/embeddings" => Some(0),
            _ => sent["max_tokens"].as_u64(),
        };
        let n = sent["n"].as_u64().max(sent["best_of"].as_u64()).unwrap_or(1);
        let prompts = match &sent["prompt"] {
            Value::Array(all) if all.iter().any(Value::is_string) => all.len() as u64,
            _ => 1,
        };
        let completion = limit.expect("every paid question has a limit") * n * prompts;
        Usage { prompt: bytes as u64 + BEFORE_IT, completion, ..Usage::default() }
    }

    proptest! {
        #[test]
        fn no_server_that_keeps_to_what_it_is_sent_costs_more_than_was_set_aside(
            at in 0usize..5,
            limits in proptest::collection::vec((0usize..3, prop_oneof![Just(Value::Null), (1u64..1 << 40).prop_map(Value::from)]), 0..4),
            n in proptest::option::of(1u64..300), best_of in proptest::option::of(1u64..300),
            prompts in 0usize..5, text in ".{0,200}", longest in proptest::option::of(1u32..200_000),
            input in 0u64..9999, output in 0u64..9999,
        ) {
            let path = [CHAT, "/v1/completions", "/v1/messages", "/v1/responses", "/v1/embeddings"][at];
            let mut question = json!({"model": "m", "messages": [{"role": "user", "content": text}]});
            for (name, limit) in limits {
                question[LIMITS[name]] = limit;
            }
            for (name, number) in [("n", n), ("best_of", best_of)] {
                if let Some(number) = number {
                    question[name] = number.into();
                }
            }
            if path == "/v1/completions" {
                question["prompt"] = vec![text; prompts].into();
            }
            let price = |n: u64| format!("{}.{:02}", n / 100, n % 100);
            let there = model(&price(input), &price(output), longest);
            let (asked, most) = Asked::paid(path, question.to_string().as_bytes(), &there).unwrap();
            let price = Price::of(&there);
            if !price.is_free() {
                let used = dearest(path, &sent(&asked), asked.body.len());
                prop_assert!(price.cost(&used) <= most, "{} > {most}: {}", price.cost(&used), sent(&asked));
            }
        }

        #[test]
        fn no_question_panics(bytes: Vec<u8>, at in 0usize..2, value in "[\\[\\]{}\",:0-9a-z]{0,40}") {
            let path = [CHAT, "/v1/completions"][at];
            let there = model("1", "1", None);
            let _ = Asked::paid(path, &bytes, &there);
            let _ = Asked::paid(path, format!("{{\"messages\":{value}}}").as_bytes(), &there);
        }
    }
}
