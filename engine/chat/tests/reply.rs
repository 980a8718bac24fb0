//! Replies in every dialect, however they arrive.

#![allow(clippy::unwrap_used)] // Helpers outside test functions unwrap too.

use std::sync::{Arc, LazyLock};

use polder_chat::Tokenizer;
use polder_chat::reply::{Dialect, ReplyEvent, ReplyParser, Tools};
use polder_model::{GgufTokenizer, TokenizerSource};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// A vocabulary of these words; control tokens are marked.
fn tokenizer(words: &[(&str, bool)]) -> Tokenizer {
    let keys = GgufTokenizer {
        model: "gpt2".into(),
        tokens: words.iter().map(|(word, _)| (*word).to_owned()).collect(),
        token_types: words.iter().map(|(_, control)| if *control { 3 } else { 4 }).collect(),
        ..GgufTokenizer::default()
    };
    Tokenizer::from_source(&TokenizerSource::Gguf(Box::new(keys))).unwrap()
}

/// Each dialect with a template that shows it.
const TEMPLATES: [(&str, &str); 7] = [
    ("hermes", "tools <tool_call>{\"name\": }</tool_call> </think>"),
    ("qwen3-coder", "tools <tool_call><function=f></tool_call> </think>"),
    ("seed", "tools <seed:tool_call><function=f> </seed:think>"),
    ("deepseek", "tools <｜tool▁call▁begin｜> </think>"),
    ("mistral", "tools [TOOL_CALLS] [/THINK]"),
    ("pythonic", "tools <|python_start|> </think>"),
    ("llama3-json", "tools <|python_tag|> </think>"),
];

fn dialect(name: &str) -> Dialect {
    static ALL: LazyLock<Vec<Dialect>> = LazyLock::new(|| {
        let tokenizer = tokenizer(&[("a", false)]);
        TEMPLATES.iter().map(|(_, template)| Dialect::detect(template, &tokenizer)).collect()
    });
    let dialect = ALL.iter().find(|dialect| dialect.calls() == Some(name)).unwrap();
    assert!(dialect.thinks());
    dialect.clone()
}

fn tools() -> Arc<Tools> {
    let tool = |name: &str| {
        json!({"type": "function", "function": {"name": name, "parameters": {"type": "object",
            "properties": {
                "text": {"type": "string"}, "count": {"type": "integer"}, "flag": {"type": "boolean"},
                "list": {"type": "array"}, "map": {"type": "object"}}}}})
    };
    Arc::new(Tools::new(&[tool("get_weather"), tool("write-file")]))
}

/// What a reply says, however it was cut into events.
#[derive(Debug, Default, PartialEq)]
struct Said {
    reasoning: String,
    content: String,
    /// Name, arguments, whether it has an end.
    calls: Vec<(String, String, bool)>,
}

impl Said {
    fn hear(&mut self, events: Vec<ReplyEvent>) {
        for event in events {
            match event {
                ReplyEvent::Reasoning(text) => {
                    assert!(!text.is_empty());
                    self.reasoning.push_str(&text);
                }
                ReplyEvent::Content(text) => {
                    assert!(!text.is_empty());
                    self.content.push_str(&text);
                }
                ReplyEvent::CallBegin { index, name } => {
                    assert_eq!(index, self.calls.len());
                    self.calls.push((name, String::new(), false));
                }
                ReplyEvent::CallArguments { index, fragment } => {
                    assert_eq!(index + 1, self.calls.len());
                    assert!(!self.calls[index].2 && !fragment.is_empty());
                    self.calls[index].1.push_str(&fragment);
                }
                ReplyEvent::CallEnd { index } => {
                    assert_eq!(index + 1, self.calls.len());
                    assert!(!std::mem::replace(&mut self.calls[index].2, true));
                }
            }
        }
    }

    fn arguments(&self) -> Vec<(&str, Value)> {
        let read = |text: &str| serde_json::from_str(text).unwrap_or_else(|_| panic!("{text}"));
        self.calls.iter().map(|(name, arguments, _)| (name.as_str(), read(arguments))).collect()
    }
}

fn said(dialect: &Dialect, tools: Option<Arc<Tools>>, thinking: bool, pieces: &[&str]) -> Said {
    let mut parser = ReplyParser::new(dialect, tools, thinking);
    let mut said = Said::default();
    for piece in pieces {
        said.hear(parser.push(piece));
    }
    said.hear(parser.finish());
    said
}

fn read(name: &str, reply: &str) -> Said {
    said(&dialect(name), Some(tools()), false, &[reply])
}

/// The text cut at some places.
fn pieces<'a>(text: &'a str, cuts: &[prop::sample::Index]) -> Vec<&'a str> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
    at.retain(|at| text.is_char_boundary(*at));
    at.extend([0, text.len()]);
    at.sort_unstable();
    at.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect()
}

/// A call that was asked for.
type Call = (String, Map<String, Value>);

/// How a model of this dialect writes these calls.
fn write(name: &str, calls: &[Call]) -> String {
    let element = |(name, arguments): &Call| {
        let parameter = |(key, value): (&String, &Value)| {
            let text = value.as_str().map_or_else(|| value.to_string(), String::from);
            format!("<parameter={key}>\n{text}\n</parameter>\n")
        };
        let parameters: String = arguments.iter().map(parameter).collect();
        format!("<function={name}>\n{parameters}</function>")
    };
    let object = |key: &str, (name, arguments): &Call| {
        format!("{{\"name\": \"{name}\", \"{key}\": {}}}", Value::from(arguments.clone()))
    };
    let each = |one: &dyn Fn(&Call) -> String, between: &str| -> String {
        calls.iter().map(one).collect::<Vec<_>>().join(between)
    };
    match name {
        "hermes" => {
            each(&|call| format!("<tool_call>\n{}\n</tool_call>", object("arguments", call)), "\n")
        }
        "qwen3-coder" => {
            each(&|call| format!("<tool_call>\n{}\n</tool_call>", element(call)), "\n")
        }
        "seed" => {
            each(&|call| format!("<seed:tool_call>\n{}\n</seed:tool_call>", element(call)), "\n")
        }
        "deepseek" => {
            let one = |(name, arguments): &Call| {
                format!(
                    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{}\n```\
                     <｜tool▁call▁end｜>",
                    Value::from(arguments.clone())
                )
            };
            format!("<｜tool▁calls▁begin｜>{}<｜tool▁calls▁end｜>", each(&one, "\n"))
        }
        "mistral" => {
            format!("[TOOL_CALLS] [{}]", each(&|call| object("arguments", call), ", "))
        }
        "pythonic" => {
            let one = |(name, arguments): &Call| {
                let python = |value: &Value| match value {
                    Value::Bool(true) => "True".into(),
                    Value::Bool(false) => "False".into(),
                    Value::Null => "None".into(),
                    other => other.to_string(),
                };
                let arguments: Vec<String> = arguments
                    .iter()
                    .map(|(key, value)| format!("{key}={}", python(value)))
                    .collect();
                format!("{name}({})", arguments.join(", "))
            };
            format!("<|python_start|>[{}]<|python_end|>", each(&one, ", "))
        }
        "llama3-json" => {
            format!("<|python_tag|>{}", each(&|call| object("parameters", call), "; "))
        }
        other => panic!("{other}"),
    }
}

/// The marks of thoughts.
fn marks(name: &str) -> (&'static str, &'static str) {
    match name {
        "seed" => ("<seed:think>", "</seed:think>"),
        "mistral" => ("[THINK]", "[/THINK]"),
        _ => ("<think>", "</think>"),
    }
}

/// Text that holds parts of markers, but none whole.
fn words() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec![
        "Hello",
        "wörld",
        "<",
        ">",
        "</",
        "<tool",
        "_call",
        "{",
        "}",
        "\"",
        "\\",
        "[",
        "]",
        "`",
        "<|",
        "👋",
        "|>",
        "<think",
        "</thin",
        "name",
        ":",
        ",",
        "\u{7f}",
        "▁",
        "<｜tool",
        "(",
        ")",
        "'",
        "=",
        "</parameter",
        "</function",
        "[TOOL",
        "<function",
        "<parameter",
    ]);
    let space = prop::sample::select(vec!["", " ", "\n", "  \n\t"]);
    prop::collection::vec((word, space), 0..8).prop_map(|words| {
        let text: String = words.into_iter().flat_map(|(word, space)| [word, space]).collect();
        // A letter at each end: what is beside a mark belongs to it.
        let text = format!("a{text}z");
        text.replace("<function=", "<function").replace("<parameter=", "<parameter")
    })
}

fn argument() -> impl Strategy<Value = (String, Value)> {
    prop_oneof![
        words().prop_map(|text| ("text".to_owned(), Value::from(text))),
        any::<i64>().prop_map(|count| ("count".to_owned(), Value::from(count))),
        any::<bool>().prop_map(|flag| ("flag".to_owned(), Value::from(flag))),
        prop::collection::vec(words(), 0..3)
            .prop_map(|list| ("list".to_owned(), Value::from(list))),
        words().prop_map(|text| ("map".to_owned(), json!({"a": text, "b": {"c": [1.5, "\n"]}}))),
    ]
}

fn call() -> impl Strategy<Value = Call> {
    let name = prop::sample::select(vec!["get_weather".to_owned(), "write-file".to_owned()]);
    let arguments = prop::collection::vec(argument(), 0..4);
    (name, arguments).prop_map(|(name, arguments)| (name, arguments.into_iter().collect()))
}

proptest! {
    #[test]
    fn a_reply_is_what_was_said_however_it_arrives(
        which in 0..TEMPLATES.len(),
        reasoning in prop::option::of(words()),
        opened in any::<bool>(),
        content in prop::option::of(words()),
        calls in prop::collection::vec(call(), 0..4),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
    ) {
        let name = TEMPLATES[which].0;
        let (open, close) = marks(name);
        let mut reply = String::new();
        if let Some(reasoning) = &reasoning {
            let open = if opened { "" } else { open };
            reply.push_str(&format!("{open}\n{reasoning}\n{close}\n\n"));
        }
        let thinking = opened && reasoning.is_some();
        reply.push_str(content.as_deref().unwrap_or(""));
        if !calls.is_empty() {
            reply.push_str(&format!("\n{}\n", write(name, &calls)));
        }
        let heard = said(&dialect(name), Some(tools()), thinking, &pieces(&reply, &cuts));
        prop_assert_eq!(&heard.reasoning, reasoning.as_deref().unwrap_or(""), "{}", reply);
        prop_assert_eq!(&heard.content, content.as_deref().unwrap_or(""), "{}", reply);
        let expected: Vec<(&str, Value)> =
            calls.iter().map(|(name, arguments)| (name.as_str(), arguments.clone().into())).collect();
        prop_assert_eq!(heard.arguments(), expected, "{}", reply);
        prop_assert!(heard.calls.iter().all(|(_, _, ended)| *ended));
    }

    #[test]
    fn any_reply_says_the_same_however_it_arrives_and_cut_off_wherever(
        which in 0..TEMPLATES.len(),
        parts in prop::collection::vec(prop_oneof![
            prop::sample::select(vec![
                "<tool_call>", "</tool_call>", "<think>", "</think>", "<function=get_weather>",
                "<parameter=text>", "</parameter>", "</function>", "{\"name\": \"get_weather\"",
                ", \"arguments\": {\"text\": \"x", "}", "{", "[", "]", "<｜tool▁calls▁begin｜>",
                "<｜tool▁call▁begin｜>", "function<｜tool▁sep｜>f\n```json\n", "<｜tool▁call▁end｜>",
                "[TOOL_CALLS]", "<|python_start|>", "get_weather(", "text='x'", ")", "<|python_tag|>",
                ";", "\n", "<seed:tool_call>", "</seed:tool_call>", "[THINK]", "[ARGS]", "\"", "\u{0}",
            ]).prop_map(String::from),
            words(),
        ], 0..14),
        thinking in any::<bool>(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
    ) {
        let dialect = dialect(TEMPLATES[which].0);
        let reply = parts.concat();
        let whole = said(&dialect, Some(tools()), thinking, &[&reply]);
        let cut = said(&dialect, Some(tools()), thinking, &pieces(&reply, &cuts));
        prop_assert_eq!(whole, cut, "{}", reply);
    }

    #[test]
    fn a_reply_without_marks_comes_out_byte_for_byte(
        which in 0..TEMPLATES.len(),
        text in words(),
        around in prop::sample::select(vec!["", " ", "\n\n", "{", "[", "{\"name\": ", "[a("]),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
    ) {
        let reply = format!("{around}{text}{around}");
        let heard = said(&dialect(TEMPLATES[which].0), Some(tools()), false, &pieces(&reply, &cuts));
        prop_assert_eq!(heard, Said { content: reply, ..Said::default() });
    }

    #[test]
    fn no_character_of_what_is_no_call_is_lost(
        which in 0..TEMPLATES.len(),
        head in prop::sample::select(vec![
            "<tool_call>", "<tool_call>\n{\"name\": ", "<tool_call> {\"arguments\": {}, ",
            "<tool_call>\n<function=", "<tool_call><function=f>\n", "<seed:tool_call>\n<function=f>",
            "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁begin｜>\n<｜tool▁call▁begin｜>function",
            "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n", "[TOOL_CALLS]", "[TOOL_CALLS] [{\"name\": ",
            "[TOOL_CALLS] f[ARGS]", "<|python_start|>[get_weather(", "<|python_tag|>", "[get_weather(",
            "{\"name\": \"get_weather\", ", "<function=get_weather>\n",
        ]),
        text in words(),
    ) {
        let reply = format!("{head}?{text}");
        let heard = read(TEMPLATES[which].0, &reply);
        prop_assert!(heard.calls.is_empty());
        prop_assert_eq!(heard.content, reply);
    }
}

#[test]
fn without_tools_on_offer_a_call_is_text() {
    let reply = "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {}}\n</tool_call>";
    let heard = said(&dialect("hermes"), None, false, &[reply]);
    assert_eq!(heard, Said { content: reply.into(), ..Said::default() });
}

#[test]
fn arguments_are_sent_on_as_they_grow() {
    for (name, begin, middle) in [
        ("hermes", "<tool_call>{\"name\": \"f\", \"arguments\": {\"text\": \"", "abc"),
        ("qwen3-coder", "<tool_call><function=f><parameter=text>", "abc"),
        (
            "deepseek",
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"text\": \"",
            "abc",
        ),
        ("mistral", "[TOOL_CALLS]f[ARGS]{\"text\": \"", "abc"),
        ("llama3-json", "{\"name\": \"get_weather\", \"parameters\": {\"text\": \"", "abc"),
    ] {
        let mut parser = ReplyParser::new(&dialect(name), Some(tools()), false);
        let begun = parser.push(begin);
        assert!(matches!(&begun[0], ReplyEvent::CallBegin { index: 0, .. }), "{name} {begun:?}");
        let fragment = middle.to_owned();
        assert_eq!(parser.push(middle), [ReplyEvent::CallArguments { index: 0, fragment }]);
        // Cut off here it has no end.
        assert!(parser.finish().iter().all(|event| !matches!(event, ReplyEvent::CallEnd { .. })));
    }
}

#[test]
fn only_what_could_begin_a_marker_is_held_back() {
    let mut parser = ReplyParser::new(&dialect("hermes"), Some(tools()), false);
    let content = |text: &str| vec![ReplyEvent::Content(text.to_owned())];
    assert_eq!(parser.push("a <"), content("a"));
    assert_eq!(parser.push("b"), content(" <b"));
    assert_eq!(parser.push("<tool_"), []);
    assert_eq!(parser.push("box>"), content("<tool_box>"));
}

#[test]
fn slips_that_models_make_are_read_as_they_were_meant() {
    let call = |text: &str| vec![("get_weather", json!({"text": text}))];
    for (name, reply) in [
        // A bracket too many, one too few, no closing tag, a second opening tag.
        (
            "hermes",
            "<tool_call>{\"name\": \"get_weather\", \"arguments\": {\"text\": \"x\"}}}\n</tool_call>",
        ),
        (
            "hermes",
            "<tool_call>{\"name\": \"get_weather\", \"arguments\": {\"text\": \"x\"}\n</tool_call>",
        ),
        ("hermes", "<tool_call>{\"name\": \"get_weather\", \"arguments\": {\"text\": \"x\"}}"),
        // The arguments first, or as a string.
        (
            "hermes",
            "<tool_call>{\"arguments\": {\"text\": \"x\"}, \"name\": \"get_weather\"}</tool_call>",
        ),
        (
            "hermes",
            "<tool_call>{\"name\": \"get_weather\", \"arguments\": \"{\\\"text\\\": \\\"x\\\"}\"}</tool_call>",
        ),
        // The other form of the same tag.
        (
            "hermes",
            "<tool_call><function=get_weather><parameter=text>x</parameter></function></tool_call>",
        ),
        (
            "qwen3-coder",
            "<tool_call>{\"name\": \"get_weather\", \"arguments\": {\"text\": \"x\"}}</tool_call>",
        ),
        // Without the opening tag, without a closing one.
        (
            "qwen3-coder",
            "<function=get_weather>\n<parameter=text>\nx\n</parameter>\n</function>\n</tool_call>",
        ),
        (
            "qwen3-coder",
            "<tool_call><function=get_weather>\n<parameter=text>\nx\n</function>\n</tool_call>",
        ),
        (
            "qwen3-coder",
            "<tool_call><function=get_weather>\n<parameter=text>\nx\n</parameter>\n</tool_call>",
        ),
        (
            "deepseek",
            "<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{\"text\": \"x\"}<｜tool▁call▁end｜>",
        ),
        ("mistral", "[TOOL_CALLS]get_weather[CALL_ID]abc123def[ARGS]{\"text\": \"x\"}"),
        ("mistral", "[TOOL_CALLS]get_weather{\"text\": \"x\"}"),
        ("pythonic", "[get_weather(text='x')]"),
        ("pythonic", " [ get_weather( text = 'x', ), ]"),
        (
            "llama3-json",
            "{\"type\": \"function\", \"function\": \"get_weather\", \"parameters\": {\"text\": \"x\"}}",
        ),
    ] {
        let heard = read(name, reply);
        assert_eq!(heard.arguments(), call("x"), "{reply}");
        assert_eq!((heard.content.as_str(), heard.calls[0].2), ("", true), "{reply}");
    }
    // A newline that no escape stands for.
    let reply =
        "<tool_call>{\"name\": \"get_weather\", \"arguments\": {\"text\": \"a\nb\"}}</tool_call>";
    assert_eq!(read("hermes", reply).arguments(), call("a\nb"));
}

#[test]
fn a_call_that_is_no_json_after_it_began_stays_as_the_model_wrote_it() {
    let reply = "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"say \"hi\"\"}}</tool_call> \
                 <tool_call>{\"name\": \"g\", \"arguments\": {}}</tool_call>";
    let heard = read("hermes", reply);
    let calls: Vec<(&str, &str)> =
        heard.calls.iter().map(|(name, text, _)| (name.as_str(), text.as_str())).collect();
    assert_eq!(calls, [("f", "{\"a\": \"say \"hi\"\"}}"), ("g", "{}")]);
}

#[test]
fn a_value_may_speak_of_the_tags_around_it() {
    let text = "see </parameter> and </function>\n and <parameter=a> too";
    let reply = format!(
        "<tool_call>\n<function=get_weather>\n<parameter=text>\n{text}\n</parameter>\n\
         <parameter=count>\n3\n</parameter>\n</function>\n</tool_call>"
    );
    let heard = read("qwen3-coder", &reply);
    assert_eq!(heard.arguments(), [("get_weather", json!({"text": text, "count": 3}))]);
}

#[test]
fn a_call_cut_off_anywhere_is_not_taken_for_a_whole_one() {
    for (name, whole) in [
        ("hermes", "<tool_call>{\"name\": \"f\", \"arguments\": {\"text\": \"</function>\"}"),
        (
            "qwen3-coder",
            "<tool_call><function=f><parameter=text>a </function>\n</parameter></function>",
        ),
        ("mistral", "[TOOL_CALLS]f[ARGS]{\"text\": {}}"),
        ("pythonic", "<|python_start|>[f(text=\")\")"),
    ] {
        for (end, _) in whole.char_indices() {
            let heard = read(name, &whole[..end]);
            assert!(heard.calls.iter().all(|(_, text, ended)| {
                !ended && serde_json::from_str::<Value>(text).is_err()
            }));
        }
        let heard = read(name, whole);
        assert!(heard.calls[0].2, "{whole}");
    }
}

#[test]
fn json_that_is_an_answer_is_no_call() {
    for (name, reply) in [
        ("llama3-json", "{\"name\": \"Bob\", \"age\": 3}"),
        ("llama3-json", "{\"name\": \"get_weather\"}"),
        ("llama3-json", "{\"name\": \"get_weather\", \"sun\": 1, \"parameters\": {}}"),
        ("llama3-json", "So: {\"name\": \"get_weather\", \"parameters\": {}}"),
        ("pythonic", "[1, 2]"),
        ("pythonic", "[x(1)]"),
        ("pythonic", "[get_weather(1)]"),
        ("qwen3-coder", "Write <function=other> there."),
    ] {
        let heard = read(name, reply);
        assert_eq!(heard, Said { content: reply.into(), ..Said::default() });
    }
}

#[test]
fn thoughts_are_thoughts_at_the_beginning_alone() {
    let hermes = dialect("hermes");
    let one = |thinking, reply: &str| {
        let heard = said(&hermes, None, thinking, &[reply]);
        (heard.reasoning, heard.content)
    };
    let both = |reasoning: &str, content: &str| (reasoning.to_owned(), content.to_owned());
    assert_eq!(one(false, "<think>\nhm\n</think>\n\nYes."), both("hm", "Yes."));
    assert_eq!(one(true, "hm\n</think>\n\nYes."), both("hm", "Yes."));
    assert_eq!(one(true, "<think>\nhm</think>Yes."), both("hm", "Yes."));
    assert_eq!(one(false, "<think>\n\n</think>\n\nYes."), both("", "Yes."));
    assert_eq!(one(true, "never done"), both("never done", ""));
    let tag = "Write <think> and </think> yourself.";
    assert_eq!(one(false, tag), both("", tag));
    assert_eq!(one(false, "<think>a <think> b</think>c"), both("a <think> b", "c"));
    let never = Dialect::detect("{{ messages }}", &tokenizer(&[("a", false)]));
    let heard = said(&never, None, false, &["<think>x</think>y"]);
    assert_eq!(heard.content, "<think>x</think>y");
}

#[test]
fn control_tokens_are_seen_by_the_parser_alone() {
    let words = [("a", false), ("<|python_tag|>", true), ("<think>", false), ("<tool_call>", true)];
    let tokenizer = Arc::new(tokenizer(&words));
    let dialect = Dialect::detect("tools <|python_tag|>", &tokenizer);
    let shown = dialect.shown();
    assert_eq!(*shown, [polder_backend::TokenId(1)]);
    let mut stream = polder_chat::TextStream::showing(tokenizer, shown);
    assert_eq!(stream.push(polder_backend::TokenId(1)), "<|python_tag|>");
    assert_eq!(stream.push(polder_backend::TokenId(3)), "");
    for tools in [None, Some(tools())] {
        let heard = said(&dialect, tools, false, &["a <|python_tag|>print(1)<|python_tag|>"]);
        assert_eq!(heard, Said { content: "a print(1)".into(), ..Said::default() });
    }
}

#[test]
fn a_reply_of_nothing_but_openings_is_read_in_time() {
    let began = std::time::Instant::now();
    for (name, opening) in [
        ("hermes", "<tool_call>{\"a"),
        ("pythonic", "<|python_start|>[f(a='"),
        ("pythonic", "<|python_start|>[f(a=("),
        ("deepseek", "<｜tool▁call▁begin｜>"),
        ("mistral", "[TOOL_CALLS][{\"a\":\""),
        ("qwen3-coder", "<tool_call>\n<function=f>\n"),
        ("hermes", "<tool_call>\n\n"),
        ("llama3-json", "<|python_tag|>{\"name\":"),
    ] {
        let reply = opening.repeat(20_000);
        let heard = read(name, &reply);
        assert_eq!(heard.content.trim_end(), reply.trim_end(), "{name} {opening}");
    }
    assert!(began.elapsed() < std::time::Duration::from_secs(60), "{:?}", began.elapsed());
}
