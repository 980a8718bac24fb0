//! Whatever a model says, what comes out has the form that was asked for.

#![allow(clippy::unwrap_used)] // Helpers outside test functions unwrap too.

mod common;

use common::judge::satisfies;
use common::{VOCAB, allowed, answer, draw, grammars, tokenizer};
use polder_grammar::{GrammarError, GrammarSpec, Grammars};
use polder_scheduler::Next;
use proptest::prelude::*;
use serde_json::{Value, json};

/// Schemas as people send them: OpenAI's strict subset first, then what is honoured beyond it.
fn schemas() -> Vec<Value> {
    let person = json!({
        "type": "object", "additionalProperties": false, "required": ["name", "age", "tags"],
        "properties": {
            "name": {"type": "string", "description": "The full name"},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"type": "string", "enum": ["a", "ü", "q\"/"]}},
        },
    });
    let tree = json!({
        "type": "object", "additionalProperties": false, "required": ["value", "children"],
        "properties": {
            "value": {"type": ["number", "null"]},
            "children": {"type": "array", "maxItems": 2, "items": {"$ref": "#"}},
        },
    });
    let shapes = json!({
        "$defs": {
            "circle": {
                "type": "object", "additionalProperties": false, "required": ["kind", "r"],
                "properties": {"kind": {"const": "circle"}, "r": {"type": "number"}},
            },
            "point": {
                "type": "object", "additionalProperties": false, "required": ["kind"],
                "properties": {"kind": {"const": "point"}, "on": {"type": "boolean"}},
            },
        },
        "type": "object", "additionalProperties": false, "required": ["shape"],
        "properties": {"shape": {"anyOf": [{"$ref": "#/$defs/circle"}, {"$ref": "#/$defs/point"}]}},
    });
    vec![
        person,
        tree,
        shapes,
        json!({"type": "object"}),
        json!({"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 4}),
        json!({"type": "string", "minLength": 2, "maxLength": 6}),
        json!({"type": "string", "pattern": "^[a-z]+-[0-9]{2}$"}),
        json!({"type": "string", "format": "date"}),
        json!({"enum": [1, "two", null, {"three": [3]}]}),
        json!({"type": "object", "additionalProperties": {"type": "boolean"}}),
        json!({"type": "number", "exclusiveMinimum": -1.5, "maximum": 20}),
        json!({"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 7}]}),
        json!({"oneOf": [{"type": "string", "maxLength": 3}, {"type": "boolean"}]}),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_drawn_is_json_that_satisfies_its_schema(
        numbers in prop::collection::vec(any::<u16>(), 0..60),
    ) {
        let (tokenizer, grammars) = shared();
        for schema in schemas() {
            let grammar = grammars.compile(&GrammarSpec::JsonSchema(schema.clone())).unwrap();
            let said = answer(&*grammar, tokenizer, 2000, draw(tokenizer, &numbers));
            let said = said.unwrap_or_else(|| panic!("no end under {schema}"));
            let Some(value) = json(&said) else { continue };
            prop_assert!(satisfies(&schema, &schema, &value), "{} {}", schema, said);
        }
    }

    #[test]
    fn a_json_object_is_an_object(numbers in prop::collection::vec(any::<u16>(), 0..200)) {
        let (tokenizer, grammars) = shared();
        let grammar = grammars.compile(&GrammarSpec::JsonObject).unwrap();
        let said = answer(&*grammar, tokenizer, 3000, draw(tokenizer, &numbers)).unwrap();
        prop_assert!(json(&said).is_none_or(|value| value.is_object()), "{said}");
    }

    #[test]
    fn a_choice_is_one_of_the_texts(
        choices in prop::collection::vec("\\PC{1,8}", 1..6),
        numbers in prop::collection::vec(any::<u16>(), 40),
    ) {
        let (tokenizer, grammars) = shared();
        let grammar = grammars.compile(&GrammarSpec::Choice(choices.clone())).unwrap();
        let said = answer(&*grammar, tokenizer, 100, draw(tokenizer, &numbers)).unwrap();
        prop_assert!(choices.contains(&said), "{said:?} of {choices:?}");
    }
}

/// What the text says. None where that is JSON with a number that no machine number can hold.
fn json(text: &str) -> Option<Value> {
    let any = serde_json::from_str::<serde::de::IgnoredAny>(text);
    assert!(any.is_ok(), "{any:?}: {text:?}");
    match serde_json::from_str(text) {
        Ok(value) => Some(value),
        Err(error) if error.to_string().contains("number out of range") => None,
        Err(error) => panic!("{error}: {text:?}"),
    }
}

fn shared() -> (&'static polder_chat::Tokenizer, &'static Grammars) {
    use std::sync::LazyLock;
    static SHARED: LazyLock<(std::sync::Arc<polder_chat::Tokenizer>, Grammars)> =
        LazyLock::new(|| (tokenizer(), grammars()));
    (&SHARED.0, &SHARED.1)
}

#[test]
fn an_answer_may_end_exactly_where_it_is_complete() {
    let (tokenizer, grammars) = shared();
    let end = tokenizer.ends()[0];
    let grammar = grammars.compile(&GrammarSpec::Regex("^ab+$".into())).unwrap();
    let token = |text| tokenizer.encode(text, polder_chat::Special::Plain).unwrap()[0];
    assert_eq!(allowed(&grammar.first_mask()), [token("a")]);
    let mut matcher = grammar.begin();
    let Next::Mask(mask) = matcher.after(token("a")) else { panic!("it goes on") };
    assert_eq!(allowed(&mask), [token("b")]);
    let Next::Mask(mask) = matcher.after(token("b")) else { panic!("it goes on") };
    assert_eq!(allowed(&mask), [token("b"), end]);
    // Where nothing can follow it says so at once.
    let grammar = grammars.compile(&GrammarSpec::Choice(vec!["a".into()])).unwrap();
    assert_eq!(grammar.begin().after(token("a")), Next::Complete);
    assert!(matches!(grammar.begin().after(token("b")), Next::Stuck(_)));
}

#[test]
fn white_space_in_json_has_an_end() {
    let (tokenizer, grammars) = shared();
    let grammar = grammars.compile(&GrammarSpec::JsonObject).unwrap();
    let token = |text| tokenizer.encode(text, polder_chat::Special::Plain).unwrap()[0];
    let mut matcher = grammar.begin();
    let mut next = matcher.after(token("{"));
    let mut spaces = 0;
    while let Next::Mask(mask) = &next
        && allowed(mask).contains(&token("\n"))
    {
        spaces += 1;
        assert!(spaces <= 64);
        next = matcher.after(token("\n"));
    }
    assert_eq!(spaces, 64);
    assert!(matches!(next, Next::Mask(_)));
}

#[test]
fn no_grammar_allows_the_control_tokens_that_end_no_answer() {
    let (_, grammars) = shared();
    let control = polder_backend::TokenId(VOCAB - 5 - 2);
    for spec in [GrammarSpec::JsonObject, GrammarSpec::Regex("(?s:.*)".into())] {
        let grammar = grammars.compile(&spec).unwrap();
        assert!(!allowed(&grammar.first_mask()).contains(&control));
    }
}

#[test]
fn what_is_not_honoured_is_refused_by_name() {
    let (_, grammars) = shared();
    for (schema, names) in [
        (json!({"type": "array", "uniqueItems": true}), "\"uniqueItems\""),
        (json!({"not": {"type": "string"}}), "\"not\""),
        (json!({"type": "object", "dependentRequired": {"a": ["b"]}}), "\"dependentRequired\""),
        (json!({"properties": {"a": {"if": {}, "then": {}}}}), "\"if\", \"then\""),
        (json!({"type": "string", "format": "sonnet"}), "sonnet"),
        (json!({"$ref": "https://example.com/schema.json"}), "https://example.com"),
        (json!({"$ref": "#/$defs/missing"}), "missing"),
        (json!({"oneOf": [{"type": "integer"}, {"type": "number"}]}), "\"oneOf\""),
        (json!({"x-guidance": {"lenient": true}, "not": {}}), "\"not\""),
        (json!({"type": "text"}), "text"),
        (json!({"type": "string", "pattern": "a("}), "unclosed group"),
        (json!(false), "object"),
    ] {
        let refused = grammars.compile(&GrammarSpec::JsonSchema(schema.clone())).unwrap_err();
        let told = refused.to_string();
        assert!(told.contains(names) && !told.contains('\n'), "{schema}: {told}");
    }
    for spec in [
        GrammarSpec::Regex("a(".into()),
        GrammarSpec::Regex(String::new()),
        GrammarSpec::Regex("(?=a)b".into()),
        GrammarSpec::Lark("start: nothing".into()),
        GrammarSpec::Lark(String::new()),
        GrammarSpec::Choice(vec![]),
        GrammarSpec::Choice(vec!["a".into(), String::new()]),
        GrammarSpec::JsonSchema(json!({"type": "integer", "minimum": 3, "maximum": 2})),
    ] {
        assert!(matches!(grammars.compile(&spec), Err(GrammarError::Unusable(_))), "{spec:?}");
    }
}

#[test]
fn a_grammar_in_lark_is_followed() {
    let (tokenizer, grammars) = shared();
    let sum = "start: term (\"+\" term)*\nterm: /[0-9]{1,3}/ | \"(\" start \")\"\n";
    let grammar = grammars.compile(&GrammarSpec::Lark(sum.into())).unwrap();
    let mut text = "(1+22)+333".chars();
    let mut draw = |_: &[_], _| match text.next() {
        Some(character) => {
            let text = character.to_string();
            tokenizer.encode(&text, polder_chat::Special::Plain).unwrap()[0]
        }
        None => tokenizer.ends()[0],
    };
    assert_eq!(answer(&*grammar, tokenizer, 30, &mut draw).unwrap(), "(1+22)+333");
}

#[test]
fn what_judges_the_answers_can_say_no() {
    for (schema, wrong) in schemas().iter().zip([
        r#"{"name": "x", "age": 151, "tags": []}"#,
        r#"{"value": 1, "children": [{"value": "x", "children": []}]}"#,
        r#"{"shape": {"kind": "point", "r": 1}}"#,
        "[]",
        "[1]",
        r#""a""#,
        r#""a-1""#,
        r#""2000-13-01""#,
        "2",
        r#"{"a": 1}"#,
        "-1.5",
        "8",
        r#""long""#,
    ]) {
        assert!(!satisfies(schema, schema, &serde_json::from_str(wrong).unwrap()), "{schema}");
    }
}
