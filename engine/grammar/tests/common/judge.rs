//! Whether a value satisfies a schema: enough of JSON Schema for the schemas of these tests, written
//! from the specification and not from what made the answers.
#![allow(unreachable_pub, missing_docs, clippy::unwrap_used)] // As the rest of the tests.

use serde_json::Value;

/// `root` is what `$ref` leads into.
pub fn satisfies(root: &Value, schema: &Value, value: &Value) -> bool {
    let rules = match schema {
        Value::Bool(any) => return *any,
        other => other.as_object().unwrap(),
    };
    rules.iter().all(|(keyword, rule)| holds(root, schema, keyword, rule, value))
}

fn holds(root: &Value, schema: &Value, keyword: &str, rule: &Value, value: &Value) -> bool {
    let options = || rule.as_array().unwrap().iter();
    let fits = |schema: &Value| satisfies(root, schema, value);
    let count = rule.as_u64().map(|count| count as usize);
    let bound = rule.as_f64();
    match (keyword, value) {
        ("$ref", _) => {
            let pointer = rule.as_str().unwrap().strip_prefix('#').unwrap();
            fits(root.pointer(pointer).unwrap())
        }
        ("type", _) if rule.is_array() => options().any(|kind| is(kind, value)),
        ("type", _) => is(rule, value),
        ("enum", _) => options().any(|one| one == value),
        ("const", _) => rule == value,
        ("anyOf", _) => options().any(fits),
        ("allOf", _) => options().all(fits),
        ("oneOf", _) => options().filter(|one| fits(one)).count() == 1,
        ("required", Value::Object(map)) => {
            options().all(|name| map.contains_key(name.as_str().unwrap()))
        }
        ("properties", Value::Object(map)) => {
            let inner = |(name, value)| rule.get(name).is_none_or(|s| satisfies(root, s, value));
            map.iter().all(inner)
        }
        ("additionalProperties", Value::Object(map)) => {
            let known =
                |name: &str| schema.get("properties").is_some_and(|p| p.get(name).is_some());
            map.iter().all(|(name, value)| known(name) || satisfies(root, rule, value))
        }
        ("items", Value::Array(list)) => list.iter().all(|value| satisfies(root, rule, value)),
        ("minItems", Value::Array(list)) => Some(list.len()) >= count,
        ("maxItems", Value::Array(list)) => Some(list.len()) <= count,
        ("minLength", Value::String(text)) => Some(text.chars().count()) >= count,
        ("maxLength", Value::String(text)) => Some(text.chars().count()) <= count,
        ("minimum", Value::Number(number)) => number.as_f64() >= bound,
        ("maximum", Value::Number(number)) => number.as_f64() <= bound,
        ("exclusiveMinimum", Value::Number(number)) => number.as_f64() > bound,
        ("pattern", Value::String(text)) => {
            let (between, digits) = match rule.as_str().unwrap() {
                "^[a-z]+-[0-9]{2}$" => ("-", 2),
                "^[a-z]+-/[0-9]$" => ("-/", 1),
                other => panic!("no test judges {other}"),
            };
            text.split_once(between).is_some_and(|(word, number)| {
                !word.is_empty()
                    && word.bytes().all(|byte| byte.is_ascii_lowercase())
                    && number.len() == digits
                    && number.bytes().all(|byte| byte.is_ascii_digit())
            })
        }
        ("format", Value::String(text)) => {
            assert_eq!(rule, "date");
            let parts: Vec<u32> = text.split('-').map(|part| part.parse().unwrap()).collect();
            text.len() == 10 && (1..=12).contains(&parts[1]) && (1..=31).contains(&parts[2])
        }
        ("description" | "$defs", _) => true,
        (
            "required"
            | "properties"
            | "additionalProperties"
            | "items"
            | "minItems"
            | "maxItems"
            | "minLength"
            | "maxLength"
            | "minimum"
            | "maximum"
            | "exclusiveMinimum"
            | "pattern"
            | "format",
            _,
        ) => true,
        (other, _) => panic!("no test judges {other}"),
    }
}

fn is(kind: &Value, value: &Value) -> bool {
    match kind.as_str().unwrap() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("no such type: {other}"),
    }
}
