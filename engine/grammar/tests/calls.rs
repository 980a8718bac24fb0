//! Whatever a model says under a grammar of replies, its own reader finds in it what was asked for.

#![allow(clippy::unwrap_used)] // Helpers outside test functions unwrap too.

mod common;

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use common::judge::satisfies;
use common::{allowed, tokenizer_with};
use polder_backend::TokenId;
use polder_chat::reply::{
    Beside, Dialect, ReplyEvent, ReplyParser, ReplyRules, ThoughtsFirst, Tools,
};
use polder_chat::{Special, TextStream, Tokenizer};
use polder_grammar::{Grammar, GrammarSpec, Grammars};
use polder_scheduler::Next;
use proptest::prelude::*;
use serde_json::{Value, json};

/// Each way to lay out calls: a template that shows it, and its marks.
const LAYOUTS: [(&str, &str, &[&str]); 11] = [
    ("hermes", "tools <tool_call> <think>", &["<tool_call>", "</tool_call>"]),
    ("qwen3-coder", "tools <tool_call><function= <think>", &["<tool_call>", "</tool_call>"]),
    (
        "seed",
        "tools <seed:tool_call><function= <seed:think>",
        &["<seed:tool_call>", "</seed:tool_call>"],
    ),
    ("deepseek", "tools <｜tool▁call▁begin｜>```json <think>", DEEPSEEK),
    ("deepseek", "tools <｜tool▁call▁begin｜> <think>", DEEPSEEK),
    ("mistral", "tools [TOOL_CALLS] [THINK]", &["[TOOL_CALLS]"]),
    ("mistral", "tools [TOOL_CALLS][ARGS] [THINK]", &["[TOOL_CALLS]", "[ARGS]"]),
    (
        "mistral",
        "tools [TOOL_CALLS][CALL_ID][ARGS] [THINK]",
        &["[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"],
    ),
    (
        "pythonic",
        "tools <|tool_call_start|> <think>",
        &["<|tool_call_start|>", "<|tool_call_end|>"],
    ),
    ("pythonic", "tools [func_name1( <think>", &[]),
    ("llama3-json", "tools <|python_tag|> <think>", &[]),
];
const DEEPSEEK: &[&str] = &[
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁sep｜>",
];
const THOUGHTS: [&str; 6] =
    ["<think>", "</think>", "<seed:think>", "</seed:think>", "[THINK]", "[/THINK]"];

/// A model.
struct Model {
    name: &'static str,
    /// What announces calls, if anything.
    mark: &'static str,
    /// What begins and ends thoughts.
    thoughts: (&'static str, &'static str),
    dialect: Dialect,
    tokenizer: Arc<Tokenizer>,
    grammars: Grammars,
    vocab: u32,
}

/// Every layout, with its marks as control tokens and as text, and so the marks of thoughts.
static MODELS: LazyLock<Vec<Model>> = LazyLock::new(|| {
    let mut models = Vec::new();
    for (name, template, marks) in LAYOUTS {
        for (calls, thoughts) in [(true, true), (false, false), (true, false)] {
            let mut controls = vec!["<|im_start|>"];
            controls.extend(marks.iter().copied().filter(|_| calls));
            let place = THOUGHTS.iter().position(|open| template.contains(open)).unwrap();
            let spelled = (THOUGHTS[place], THOUGHTS[place + 1]);
            controls.extend([spelled.0, spelled.1].into_iter().filter(|_| thoughts));
            let tokenizer = tokenizer_with(&controls);
            let dialect = Dialect::detect(template, &tokenizer);
            assert_eq!(dialect.calls(), Some(name));
            let vocab = 256 + 12 + controls.len() as u32 + 1;
            let grammars = Grammars::new(tokenizer.clone(), vocab);
            let mark = marks.first().copied().unwrap_or_default();
            models.push(Model {
                name,
                mark,
                thoughts: spelled,
                dialect,
                tokenizer,
                grammars,
                vocab,
            });
        }
    }
    models
});

fn list() -> Vec<Value> {
    let tool = |name: &str, parameters: Value| json!({"type": "function", "function": {"name": name, "parameters": parameters}});
    vec![
        tool(
            "weather",
            json!({"type": "object", "additionalProperties": false,
            "required": ["city", "days"], "properties": {
                "unit": {"type": "string", "enum": ["C", "F", "K\n"]},
                "city": {"type": "string", "minLength": 1, "maxLength": 9},
                "days": {"type": "integer", "minimum": 1, "maximum": 14},
            }}),
        ),
        tool(
            "weather.all",
            json!({"type": "object", "additionalProperties": false,
            "$defs": {"place": {"type": "object", "additionalProperties": false,
                "required": ["x"], "properties": {"x": {"type": "number"}}}},
            "properties": {
                "places": {"type": "array", "maxItems": 2, "items": {"$ref": "#/$defs/place"}},
                "first": {"$ref": "#/$defs/place"},
                "exact": {"type": "boolean"},
                "nothing": {"type": "null"},
                "note": {"type": ["string", "null"]},
                "limit": {"anyOf": [{"type": "integer", "minimum": 3}, {"type": "string", "maxLength": 5}]},
                "mixed": {"enum": ["a", 7, true, null]},
                "code": {"type": "string", "pattern": "^[a-z]+-/[0-9]$"},
                "count": {"type": ["integer", "string"]},
                "sure": {"anyOf": [{"enum": [true]}, {"type": "string", "maxLength": 6}]},
                "size": {"type": ["integer", "string"], "enum": ["5", 7, true, "x", 2.5]},
            }}),
        ),
        tool("now", Value::Null),
    ]
}

/// What a reply says.
#[derive(Debug, Default)]
struct Said {
    thoughts: String,
    content: String,
    /// Name, arguments and whether it is whole.
    calls: Vec<(String, String, bool)>,
}

fn read(model: &Model, thinking: bool, tokens: &[TokenId]) -> Said {
    let tools = Some(Arc::new(Tools::new(&list())));
    let mut stream = TextStream::showing(model.tokenizer.clone(), model.dialect.shown());
    let mut parser = ReplyParser::new(&model.dialect, tools, thinking);
    let mut said = Said::default();
    let mut events = Vec::new();
    for token in tokens {
        events.extend(parser.push(&stream.push(*token)));
    }
    events.extend(parser.push(&stream.finish()));
    events.extend(parser.finish());
    for event in events {
        match event {
            ReplyEvent::Reasoning(text) => said.thoughts += &text,
            ReplyEvent::Content(text) => said.content += &text,
            ReplyEvent::CallBegin { name, .. } => said.calls.push((name, String::new(), false)),
            ReplyEvent::CallArguments { fragment, .. } => {
                said.calls.last_mut().unwrap().1 += &fragment
            }
            ReplyEvent::CallEnd { .. } => said.calls.last_mut().unwrap().2 = true,
        }
    }
    said
}

/// Says `lead`, draws by these numbers, and then whatever comes to an end soonest.
fn draw(model: &Model, grammar: &dyn Grammar, lead: &[TokenId], numbers: &[u16]) -> Vec<TokenId> {
    let plain = |text: &str| model.tokenizer.encode(text, Special::Plain).unwrap();
    let ends = model.tokenizer.ends();
    let closing = plain("\"}/]),><=:-10sae");
    // What ends a value without quotes, and thoughts.
    let script: Vec<TokenId> =
        plain("\n</parameter>\n</think></seed:think>[/THINK]").into_iter().collect();
    let any = plain("\u{1}")[0];
    let (mut mask, mut matcher) = (grammar.first_mask(), grammar.begin());
    let (mut said, mut at) = (Vec::new(), 0);
    for step in 0..3000_usize {
        let allowed = allowed(&mask);
        assert!(!allowed.is_empty() && allowed.iter().all(|token| token.0 < model.vocab));
        let marks: Vec<TokenId> = allowed
            .iter()
            .copied()
            .filter(|token| token.0 >= 268 && !ends.contains(token))
            .collect();
        let number = step.checked_sub(lead.len()).map(|step| numbers.get(step));
        let token = match number.flatten() {
            _ if step < lead.len() => lead[step],
            // Marks are rare among all tokens.
            Some(number) if !marks.is_empty() && number % 5 == 0 => {
                marks[usize::from(*number / 5) % marks.len()]
            }
            Some(number) => allowed[usize::from(*number) % allowed.len()],
            None if ends.iter().any(|end| allowed.contains(end)) => ends[0],
            None if !marks.is_empty() => {
                let closes = |mark: &&TokenId| {
                    let name = String::from_utf8_lossy(model.tokenizer.name(**mark));
                    name.contains('/') || name.contains("end")
                };
                *marks.iter().find(closes).unwrap_or(&marks[0])
            }
            None if allowed.contains(&any) => {
                at += 1;
                let wanted = script[(at - 1) % script.len()];
                if allowed.contains(&wanted) { wanted } else { allowed[at % allowed.len()] }
            }
            None => {
                at = 0;
                let soon = closing.iter().find(|token| allowed.contains(token));
                soon.copied().unwrap_or(allowed[step % allowed.len()])
            }
        };
        if ends.contains(&token) {
            return said;
        }
        said.push(token);
        match matcher.after(token) {
            Next::Mask(next) => mask = next,
            Next::Complete => return said,
            Next::Stuck(why) => panic!("{}: {why} after {:?}", model.name, text(model, &said)),
        }
    }
    let said = text(model, &said);
    panic!("{}: no end of {}", model.name, said.chars().take(1000).collect::<String>());
}

fn text(model: &Model, tokens: &[TokenId]) -> String {
    let mut stream = TextStream::showing(model.tokenizer.clone(), model.dialect.shown());
    tokens.iter().map(|token| stream.push(*token)).collect()
}

fn compile(model: &Model, rules: &ReplyRules<'_>, form: Option<Value>) -> Arc<dyn Grammar> {
    let grammar = model.dialect.grammar(rules).unwrap();
    let form = form.map(|schema| Box::new(GrammarSpec::JsonSchema(schema)));
    let spec = GrammarSpec::Reply { grammar: grammar.clone(), form };
    let compiled = model.grammars.compile(&spec);
    compiled.unwrap_or_else(|why| panic!("{}: {why}\n{}", model.name, grammar.lark))
}

/// A number beyond what a machine can hold, which the reader of Python tells as text.
fn told_as_text(value: &Value) -> bool {
    match value {
        Value::String(text) => text.parse::<f64>().is_ok_and(f64::is_infinite),
        Value::Array(list) => list.iter().any(told_as_text),
        Value::Object(map) => map.values().any(told_as_text),
        _ => false,
    }
}

/// Every call is whole, of an offered tool, and has arguments that follow its schema.
fn check(model: &Model, said: &Said, tokens: &[TokenId]) {
    for (name, arguments, whole) in &said.calls {
        let context = || format!("{}: {name} {arguments} of {:?}", model.name, text(model, tokens));
        assert!(whole, "{}", context());
        let list = list();
        let tool = list.iter().find(|tool| tool["function"]["name"] == **name);
        let schema = &tool.unwrap_or_else(|| panic!("{}", context()))["function"]["parameters"];
        let arguments = match serde_json::from_str::<Value>(arguments) {
            Ok(arguments) if told_as_text(&arguments) => continue,
            Ok(arguments) => arguments,
            Err(error) if error.to_string().contains("number out of range") => continue,
            Err(error) => panic!("{error}: {}", context()),
        };
        match schema {
            Value::Null => assert_eq!(arguments, json!({}), "{}", context()),
            schema => assert!(satisfies(schema, schema, &arguments), "{}", context()),
        }
    }
}

const FIRSTS: [ThoughtsFirst; 3] =
    [ThoughtsFirst::No, ThoughtsFirst::Begun, ThoughtsFirst::Perhaps];

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn a_reply_that_must_call_calls_what_is_offered_as_its_schema_says(
        numbers in prop::collection::vec(any::<u16>(), 0..120),
        first in 0..3_usize,
        one_call in any::<bool>(),
        named in any::<bool>(),
    ) {
        let tools = Tools::new(&list());
        let thoughts = FIRSTS[first];
        for model in MODELS.iter() {
            let only = named.then_some("weather.all");
            let rules = ReplyRules { tools: &tools, only, one_call, beside: Beside::Nothing, thoughts };
            let grammar = compile(model, &rules, None);
            let tokens = draw(model, &*grammar, &[], &numbers);
            let said = read(model, thoughts == ThoughtsFirst::Begun, &tokens);
            check(model, &said, &tokens);
            let context = format!("{}: {said:?} of {:?}", model.name, text(model, &tokens));
            prop_assert!(said.content.is_empty() && !said.calls.is_empty(), "{}", context);
            prop_assert!(!one_call || said.calls.len() == 1, "{}", context);
            prop_assert!(!named || said.calls.iter().all(|call| call.0 == "weather.all"), "{}", context);
            prop_assert!(thoughts != ThoughtsFirst::No || said.thoughts.is_empty(), "{}", context);
        }
    }

    #[test]
    fn where_tools_are_strict_calls_within_text_follow_their_schemas(
        numbers in prop::collection::vec(any::<u16>(), 0..120),
        first in 0..3_usize,
        calls in any::<bool>(),
    ) {
        let mut strict = list();
        strict[0]["function"]["strict"] = true.into();
        strict[2]["function"]["strict"] = true.into();
        let tools = Tools::new(&strict);
        let thoughts = FIRSTS[first];
        for model in MODELS.iter().filter(|model| model.dialect.marks_calls()) {
            let (only, one_call) = (None, false);
            let rules = ReplyRules { tools: &tools, only, one_call, beside: Beside::Text, thoughts };
            let grammar = compile(model, &rules, None);
            let (open, close) = model.thoughts;
            let encode = |text: &str, special| model.tokenizer.encode(text, special).unwrap();
            let mut lead = Vec::new();
            if thoughts == ThoughtsFirst::Perhaps {
                lead.extend(encode(open, Special::Parse));
            }
            if thoughts != ThoughtsFirst::No {
                // A mark in thoughts announces no call.
                lead.extend(encode(&format!("Say {}?", model.mark), Special::Plain));
                lead.extend(encode(close, Special::Parse));
            }
            if calls {
                lead.extend(encode(&format!("So: {}", model.mark), Special::Parse));
            }
            let tokens = draw(model, &*grammar, &lead, &numbers);
            let mut said = read(model, thoughts == ThoughtsFirst::Begun, &tokens);
            prop_assert!(!calls || !said.calls.is_empty(), "{:?}", said);
            // The second is not strict.
            said.calls.retain(|call| call.0 != "weather.all");
            check(model, &said, &tokens);
        }
    }

    #[test]
    fn beside_a_form_a_reply_is_calls_or_has_the_form(
        numbers in prop::collection::vec(any::<u16>(), 0..80),
        first in 0..3_usize,
    ) {
        let schema = json!({"type": "object", "additionalProperties": false, "required": ["a"],
            "properties": {"a": {"type": "boolean"}}});
        let tools = Tools::new(&list());
        let thoughts = FIRSTS[first];
        for model in MODELS.iter().filter(|model| model.dialect.marks_calls()) {
            let (only, one_call) = (None, false);
            let rules = ReplyRules { tools: &tools, only, one_call, beside: Beside::Form, thoughts };
            let grammar = compile(model, &rules, Some(schema.clone()));
            let tokens = draw(model, &*grammar, &[], &numbers);
            let said = read(model, thoughts == ThoughtsFirst::Begun, &tokens);
            check(model, &said, &tokens);
            match said.calls.is_empty() {
                true => {
                    let answer: Value = serde_json::from_str(&said.content).unwrap();
                    prop_assert!(satisfies(&schema, &schema, &answer), "{:?}", said);
                }
                false => prop_assert!(said.content.is_empty(), "{:?}", said),
            }
        }
    }
}

/// Compiles the grammar of a reply that must call one of these tools.
fn forced(model: &Model, tools: &[Value]) -> Result<Arc<dyn Grammar>, String> {
    let tools = Tools::new(tools);
    let (beside, thoughts) = (Beside::Nothing, ThoughtsFirst::Perhaps);
    let rules = ReplyRules { tools: &tools, only: None, one_call: false, beside, thoughts };
    let grammar = model.dialect.grammar(&rules).map_err(|why| why.to_string())?;
    let spec = GrammarSpec::Reply { grammar, form: None };
    model.grammars.compile(&spec).map_err(|why| why.to_string())
}

#[test]
fn many_tools_and_hostile_schemas_are_compiled_or_refused_soon() {
    /// A test machine may be slow; what hangs takes forever.
    const SOON: Duration = Duration::from_secs(20);
    let tool = |index: usize, parameters: Value| json!({"type": "function", "function": {"name": format!("f{index}"), "parameters": parameters}});
    let properties: serde_json::Map<String, Value> = (0..12)
        .map(|index| (format!("p{index}"), json!({"type": ["string", "null"], "maxLength": 90})))
        .collect();
    let plain = json!({"type": "object", "properties": properties, "required": ["p1", "p7"]});
    let long = |text: &str| json!({"properties": {"a": {"type": "string", "pattern": text}}});
    let many: Vec<Value> = (0..128).map(|index| tool(index, plain.clone())).collect();
    let hostile = [
        long(&"(a|b)*c{0,999}".repeat(200)),
        long(&"(".repeat(2000)),
        long("a("),
        long("a\\"),
        long("/\n\u{7f}"),
        long("(?=x)"),
        json!({"properties": {"a": {"type": "string", "maxLength": 4_000_000_000_u64}}}),
        json!({"properties": {"a": {"$ref": "#/properties/a"}}}),
        json!({"properties": {"a>\n": {}, "b\"/": {"const": "x\n</parameter>"}}, "required": ["b\"/"]}),
        (0..60).fold(json!({}), |inner, _| json!({"properties": {"a": {"anyOf": [inner]}}})),
    ];
    for model in MODELS.iter().step_by(3) {
        let begun = Instant::now();
        let grammar = forced(model, &many).unwrap_or_else(|why| panic!("{}: {why}", model.name));
        assert!(!allowed(&grammar.first_mask()).is_empty());
        assert!(begun.elapsed() < SOON, "{}: {:?}", model.name, begun.elapsed());
        for schema in &hostile {
            let begun = Instant::now();
            if let Err(told) = forced(model, &[tool(0, schema.clone())]) {
                assert!(!told.contains('\n') && told.chars().count() < 500, "{told}");
            }
            assert!(begun.elapsed() < SOON, "{}: {:?} {schema}", model.name, begun.elapsed());
        }
    }
}

#[test]
fn what_a_layout_cannot_keep_to_is_refused_by_name() {
    let tool = |schema: Value| {
        json!({"type": "function", "function": {"name": "f",
            "parameters": {"properties": {"a": schema}}}})
    };
    let elements = MODELS.iter().find(|model| model.name == "qwen3-coder").unwrap();
    for (schema, names) in [
        (json!({"type": "string", "format": "date"}), "\"format\""),
        (json!({"oneOf": [{"type": "string"}, {"type": "null"}]}), "\"oneOf\""),
        (json!({"type": "string", "pattern": "^a|b$"}), "\"pattern\""),
        (json!({"type": "string", "minLength": 2.0}), "\"minLength\""),
        (json!({"type": "string", "anyOf": [{"type": ["integer", "string"]}]}), "\"anyOf\""),
        (json!({"$ref": "#/nowhere"}), "\"$ref\""),
    ] {
        let told = forced(elements, &[tool(schema)]).err().unwrap();
        assert!(told.contains(names), "{told}");
    }
    let whole = json!({"type": "function", "function": {"name": "f",
        "parameters": {"type": "object", "minProperties": 2}}});
    assert!(forced(elements, &[whole]).err().unwrap().contains("\"minProperties\""));
    let named = json!({"type": "function", "function": {"name": "f",
        "parameters": {"properties": {"a b": {}}}}});
    let pythonic = MODELS.iter().find(|model| model.name == "pythonic").unwrap();
    assert!(forced(pythonic, &[named]).err().unwrap().contains("\"a b\""));
    // Nothing tells a bare call from text.
    let tools = Tools::new(&list());
    for (name, marked) in [("llama3-json", false), ("hermes", true)] {
        let model = MODELS.iter().find(|model| model.name == name).unwrap();
        let (beside, thoughts) = (Beside::Text, ThoughtsFirst::No);
        let rules = ReplyRules { tools: &tools, only: None, one_call: false, beside, thoughts };
        assert_eq!(model.dialect.grammar(&rules).is_ok(), marked);
        assert_eq!(model.dialect.marks_calls(), marked);
    }
}
