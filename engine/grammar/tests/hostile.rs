//! What is sent to break something ends with a sentence, soon, and takes nothing else along.

#![allow(clippy::unwrap_used)] // Helpers outside test functions unwrap too.

mod common;

use std::fmt::Write;
use std::time::{Duration, Instant};

use common::{answer, draw, grammars, tokenizer};
use polder_grammar::{GrammarSpec, Grammars};
use proptest::prelude::*;
use serde_json::{Value, json};

/// A test machine may be slow and this build is not optimized; what hangs takes forever.
const SOON: Duration = Duration::from_secs(20);

/// Compiles, and where that works draws some tokens.
fn try_out(grammars: &Grammars, spec: &GrammarSpec) -> Result<(), String> {
    let tokenizer = tokenizer();
    let started = Instant::now();
    eprintln!("begin {:.70}", format!("{spec:?}"));
    let outcome = grammars.compile(spec).map_err(|error| error.to_string());
    let compiled = started.elapsed();
    let outcome = outcome.map(|grammar| {
        let mut drawing = draw(&tokenizer, &[7, 300, 21, 9]);
        let mut mask = grammar.first_mask();
        let mut matcher = grammar.begin();
        for at in 0..12 {
            let token = drawing(&common::allowed(&mask), at);
            if tokenizer.ends().contains(&token) {
                break;
            }
            match matcher.after(token) {
                polder_scheduler::Next::Mask(next) => mask = next,
                _ => break,
            }
        }
    });
    let took = started.elapsed();
    eprintln!("compiled {compiled:?} whole {took:?} {outcome:?} {:.70}", format!("{spec:?}"));
    assert!(took < SOON, "{took:?}");
    if let Err(told) = &outcome {
        assert!(!told.contains('\n') && told.chars().count() < 500, "{told}");
    }
    outcome
}

#[test]
fn schemas_that_explode_are_refused_or_bounded() {
    let grammars = grammars();
    let many =
        |count: usize| -> Vec<Value> { (0..count).map(|n| json!(format!("v{n}"))).collect() };
    let wide: serde_json::Map<String, Value> =
        (0..3000).map(|n| (format!("p{n}"), json!({"type": ["string", "null"]}))).collect();
    // Each level doubles what the one before says.
    let doubled = |keyword: &str| {
        (0..11).fold(json!({"type": "string"}), |inner, n| {
            json!({keyword: [
                {"properties": {format!("a{n}"): inner}}, {"properties": {format!("b{n}"): inner}},
            ]})
        })
    };
    let mut product = Vec::new();
    for n in 0..12 {
        product.push(json!({"anyOf": [
            {"properties": {format!("a{n}"): {"const": 1}}},
            {"properties": {format!("b{n}"): {"const": 2}}},
            {"required": [format!("c{n}")]},
        ]}));
    }
    let defs: serde_json::Map<String, Value> = (0..60)
        .map(|n| {
            let next = format!("#/$defs/d{}", n + 1);
            (format!("d{n}"), json!({"allOf": [{"$ref": next}, {"$ref": next}]}))
        })
        .chain([("d60".into(), json!({"type": "object"}))])
        .collect();
    for schema in [
        json!({"enum": many(20_000)}),
        json!({"type": "object", "properties": wide}),
        json!({"type": "array", "minItems": 1_000_000_000}),
        json!({"type": "array", "maxItems": 4_000_000_000u64, "items": {"type": "null"}}),
        json!({"type": "object", "minProperties": 1_000_000}),
        json!({"type": "string", "minLength": 2_000_000_000}),
        json!({"type": "string", "maxLength": 2_000_000_000}),
        json!({"type": "string", "minLength": 100_000, "maxLength": 1_000_000, "pattern": "a.*b.*c"}),
        json!({"type": "string", "pattern": "((a{1000}){1000}){1000}"}),
        json!({"type": "string", "pattern": "(.*a.{200}){5}"}),
        json!({"type": "string", "pattern": "(a|b|ab)*c{0,500}(a?){500}"}),
        json!({"type": "number", "minimum": 1e-300, "maximum": 1e300}),
        json!({"type": "integer", "multipleOf": 1_000_003}),
        json!({"type": "number", "multipleOf": 1e-200}),
        json!({"$ref": "#"}),
        json!({"allOf": [{"$ref": "#"}]}),
        json!({"$ref": "#/$defs/d0", "$defs": defs}),
        json!({"allOf": product}),
        doubled("anyOf"),
        doubled("allOf"),
        json!({"patternProperties": {"(a|b)*c.{50}": {}, "(b|a)*d.{50}": {}, "x.*y.*z.*": {}}}),
    ] {
        // Where it compiles that is as well: what counts is that it ends.
        let _outcome = try_out(&grammars, &GrammarSpec::JsonSchema(schema));
    }
    // Whoever comes next notices nothing.
    try_out(&grammars, &GrammarSpec::JsonObject).unwrap();
}

#[test]
fn expressions_and_grammars_that_explode_are_refused_or_bounded() {
    let grammars = grammars();
    let mut chain = String::from("start: r0\n");
    for n in 0..200 {
        writeln!(chain, "r{n}: r{} r{}", n + 1, n + 1).unwrap();
    }
    chain.push_str("r200: \"a\"\n");
    for spec in [
        GrammarSpec::Regex("((((a{100}){100}){100}){100}){100}".into()),
        GrammarSpec::Regex("(a*)*".repeat(500)),
        GrammarSpec::Regex(".*".repeat(300) + "x"),
        GrammarSpec::Regex(r"\p{L}{1000}".repeat(20)),
        GrammarSpec::Regex("a?".repeat(4_000)),
        GrammarSpec::Regex("(a|b)*a(a|b){18}".into()),
        GrammarSpec::Regex("(".repeat(60) + &")*".repeat(60)),
        GrammarSpec::Regex("x".repeat(8_000)),
        GrammarSpec::Lark("start: start start | \"a\" |".into()),
        GrammarSpec::Lark("start: start\n".into()),
        GrammarSpec::Lark("start: x\nx: y\ny: x\n".into()),
        GrammarSpec::Lark("start: A\nA: B\nB: A\n".into()),
        GrammarSpec::Lark("start: \"a\"{1000000000}\n".into()),
        GrammarSpec::Lark("start: ".to_owned() + &"(".repeat(60) + "\"a\"" + &")*".repeat(60)),
        GrammarSpec::Lark(chain),
        GrammarSpec::Choice((0..20_000).map(|n| format!("choice {n}")).collect()),
    ] {
        let _outcome = try_out(&grammars, &spec);
    }
    try_out(&grammars, &GrammarSpec::Regex("a+".into())).unwrap();
}

fn schema_like() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!({})),
        Just(json!(true)),
        Just(json!(null)),
        any::<i32>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z$#/\\[(*+?{}]{0,6}".prop_map(Value::from),
        Just(json!({"$ref": "#"})),
        Just(json!({"type": "string", "pattern": "a|b*"})),
        Just(json!("object")),
        Just(json!("array")),
        Just(json!("integer")),
    ];
    leaf.prop_recursive(5, 40, 5, |inner| {
        let keyword = prop::sample::select(vec![
            "type",
            "properties",
            "required",
            "items",
            "anyOf",
            "allOf",
            "oneOf",
            "enum",
            "const",
            "minimum",
            "maximum",
            "multipleOf",
            "minLength",
            "maxLength",
            "pattern",
            "format",
            "additionalProperties",
            "patternProperties",
            "prefixItems",
            "minItems",
            "maxItems",
            "$ref",
            "$defs",
            "minProperties",
            "maxProperties",
            "not",
            "x-guidance",
            "a",
            "",
        ]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((keyword, inner), 0..5).prop_map(|pairs| {
                Value::Object(pairs.into_iter().map(|(key, value)| (key.into(), value)).collect())
            }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn anything_that_looks_like_a_schema_ends_soon(schema in schema_like()) {
        use std::sync::LazyLock;
        static GRAMMARS: LazyLock<Grammars> = LazyLock::new(grammars);
        let _outcome = try_out(&GRAMMARS, &GrammarSpec::JsonSchema(schema));
    }

    #[test]
    fn anything_that_looks_like_an_expression_ends_soon(text in "[ab.*+?|(){}\\[\\]\\\\^$0-9,\n:\" A-C]{0,60}") {
        use std::sync::LazyLock;
        static GRAMMARS: LazyLock<Grammars> = LazyLock::new(grammars);
        let _outcome = try_out(&GRAMMARS, &GrammarSpec::Regex(text.clone()));
        let _outcome = try_out(&GRAMMARS, &GrammarSpec::Lark(format!("start: {text}")));
    }
}

#[test]
fn answers_to_one_question_do_not_notice_each_other() {
    let (grammars, tokenizer) = (grammars(), tokenizer());
    let spec = GrammarSpec::JsonSchema(json!({"type": "array", "items": {"type": "string"}}));
    let grammar = grammars.compile(&spec).unwrap();
    let numbers: Vec<u16> = (0..50).map(|n| n * 977).collect();
    let alone = answer(&*grammar, &tokenizer, 900, draw(&tokenizer, &numbers)).unwrap();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let (grammar, tokenizer, numbers) = (&grammar, &tokenizer, &numbers);
                scope.spawn(move || {
                    answer(&**grammar, tokenizer, 900, draw(tokenizer, numbers)).unwrap()
                })
            })
            .collect();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), alone);
        }
    });
}
