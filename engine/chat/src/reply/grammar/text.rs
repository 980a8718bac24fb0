//! Values that are written bare, without quotes: what of a schema can be said of them.

use serde_json::{Map, Value};

use super::NoGrammar;
use super::lark::{literal, regex};

/// What a bare value may be.
#[derive(Debug, Default)]
pub(super) struct Bare {
    /// Terminals of texts.
    texts: Vec<String>,
    /// Terminals of words that the reader takes for other values.
    words: Vec<String>,
    /// Schemas of values that stand there as JSON.
    pub(super) json: Vec<Value>,
    /// What no text may begin with, because the reader would take it for such JSON.
    taken: String,
    /// What no text may be, because only some of these words are values.
    taken_words: Vec<&'static str>,
    /// Bytes of all patterns in `texts`.
    pub(super) pattern_bytes: usize,
}

impl Bare {
    /// All that is no JSON, as one terminal, where there is any.
    pub(super) fn terminal(&self) -> Option<String> {
        let any_of = |terminals: &[String]| format!("(({}))", terminals.join(") | ("));
        let mut texts = Vec::new();
        if !self.texts.is_empty() {
            texts.push(any_of(&self.texts));
            if !self.taken.is_empty() {
                // All in a class but these stand for themselves.
                let class = self.taken.replace('[', "\\[").replace('-', "\\-");
                texts.push(format!("~{}", regex(&format!("\\s*[{class}](?s:.*)"))));
            }
            if !self.taken_words.is_empty() {
                let words = self.taken_words.join("|");
                texts.push(format!("~{}", regex(&format!("\\s*({words})\\s*"))));
            }
        }
        let texts = Some(texts.join(" & ")).filter(|texts| !texts.is_empty());
        let words = Some(&self.words).filter(|words| !words.is_empty()).map(|words| any_of(words));
        let options: Vec<String> = texts.into_iter().chain(words).collect();
        Some(format!("({})", options.join(" | "))).filter(|_| !options.is_empty())
    }
}

/// Schemas within schemas, and references, that are followed.
const DEEPEST: usize = 8;

/// Say nothing about a value.
const SILENT: [&str; 13] = [
    "title",
    "description",
    "default",
    "examples",
    "example",
    "deprecated",
    "readOnly",
    "writeOnly",
    "$comment",
    "$schema",
    "$id",
    "$defs",
    "definitions",
];

/// Say something of texts alone.
const OF_TEXT: [&str; 3] = ["minLength", "maxLength", "pattern"];

const TYPES: [&str; 7] = ["string", "null", "boolean", "integer", "number", "array", "object"];

/// What a value may be that satisfies `schema`, which stands in `root`.
pub(super) fn bare(schema: &Value, root: &Value) -> Result<Bare, NoGrammar> {
    let mut bare = Bare::default();
    gather(schema, root, 0, &mut bare)?;
    Ok(bare)
}

fn gather(schema: &Value, root: &Value, depth: usize, bare: &mut Bare) -> Result<(), NoGrammar> {
    if depth > DEEPEST {
        return Err(NoGrammar::schema(format!(
            "it is nested more than {DEEPEST} deep; make it flatter"
        )));
    }
    let nothing = Map::new();
    let rules = match schema {
        Value::Bool(true) | Value::Null => &nothing,
        Value::Object(rules) => rules,
        _ => return Err(NoGrammar::schema("one of its properties allows no value")),
    };
    let said: Vec<&str> =
        rules.keys().map(String::as_str).filter(|key| !SILENT.contains(key)).collect();
    if let Some(path) = rules.get("$ref").and_then(Value::as_str) {
        alone("$ref", &said)?;
        let target = path.strip_prefix('#').and_then(|path| root.pointer(path));
        let target = target.ok_or_else(|| NoGrammar::keyword("$ref"))?;
        return gather(target, root, depth + 1, bare);
    }
    for key in ["anyOf", "oneOf", "allOf"] {
        let Some(options) = rules.get(key).and_then(Value::as_array) else { continue };
        alone(key, &said)?;
        // Of one only one can hold.
        if key != "anyOf" && options.len() > 1 {
            return Err(NoGrammar::keyword(key));
        }
        return options.iter().try_for_each(|option| gather(option, root, depth + 1, bare));
    }
    let listed = rules.get("enum").and_then(Value::as_array).cloned();
    if let Some(values) = listed.or_else(|| rules.get("const").map(|value| vec![value.clone()])) {
        return one_of(values, rules, &said, bare);
    }
    let types = types(rules);
    for name in if types.is_empty() { vec!["string"] } else { types } {
        let known = TYPES.iter().find(|known| **known == name);
        let known = known.ok_or_else(|| NoGrammar::keyword("type"))?;
        match *known {
            "string" => {
                let text = text(rules, &said, bare)?;
                bare.texts.push(text);
            }
            other => other_type(other, rules, &said, root, bare),
        }
    }
    Ok(())
}

fn types(rules: &Map<String, Value>) -> Vec<&str> {
    match rules.get("type") {
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        name => name.and_then(Value::as_str).into_iter().collect(),
    }
}

fn is(value: &Value, name: &str) -> bool {
    match value {
        Value::Null => name == "null",
        Value::Bool(_) => name == "boolean",
        Value::String(_) => name == "string",
        Value::Array(_) => name == "array",
        Value::Object(_) => name == "object",
        Value::Number(number) => {
            let whole = number.as_f64().is_some_and(|number| number.fract() == 0.0);
            name == "number" || (name == "integer" && whole)
        }
    }
}

/// What is said here must be all that is said.
fn alone(key: &str, said: &[&str]) -> Result<(), NoGrammar> {
    match said.iter().all(|other| *other == key) {
        true => Ok(()),
        false => Err(NoGrammar::keyword(key)),
    }
}

fn one_of(
    values: Vec<Value>,
    rules: &Map<String, Value>,
    said: &[&str],
    bare: &mut Bare,
) -> Result<(), NoGrammar> {
    let limits = limits(rules, said, bare)?;
    let types = types(rules);
    let fits = |value: &Value| types.is_empty() || types.iter().any(|name| is(value, name));
    let values: Vec<Value> = values.into_iter().filter(fits).collect();
    let words: Vec<String> = values.iter().filter_map(Value::as_str).map(literal).collect();
    if !words.is_empty() {
        bare.texts.push(
            std::iter::once(format!("({})", words.join(" | ")))
                .chain(limits)
                .collect::<Vec<_>>()
                .join(" & "),
        );
    }
    for value in values {
        match &value {
            Value::String(_) => {}
            Value::Null => bare.words.push(literal("null")),
            Value::Bool(_) => {
                bare.words.push(literal(&value.to_string()));
                bare.taken_words.extend(["true", "false", "True", "False"]);
            }
            other => {
                bare.taken.push_str(beginnings(other));
                bare.json.push(serde_json::json!({"enum": [value]}));
            }
        }
    }
    Ok(())
}

fn beginnings(value: &Value) -> &'static str {
    match value {
        Value::Array(_) => "[(",
        Value::Object(_) => "{",
        _ => NUMBERS,
    }
}

const NUMBERS: &str = "+-.0123456789";

/// Any text that keeps to what the schema says of texts, as one terminal.
fn text(rules: &Map<String, Value>, said: &[&str], bare: &mut Bare) -> Result<String, NoGrammar> {
    let limits = limits(rules, said, bare)?;
    match limits.is_empty() {
        true => Ok("/(?s:.*)/".into()),
        false => Ok(limits.join(" & ")),
    }
}

fn limits(
    rules: &Map<String, Value>,
    said: &[&str],
    bare: &mut Bare,
) -> Result<Vec<String>, NoGrammar> {
    const UNKNOWN: [&str; 5] = ["format", "contentEncoding", "contentMediaType", "not", "if"];
    if let Some(unknown) = said.iter().find(|key| UNKNOWN.contains(key) || key.starts_with('$')) {
        return Err(NoGrammar::keyword(unknown));
    }
    let number = |key: &str| match rules.get(key) {
        None => Ok(None),
        Some(count) => count.as_u64().map(Some).ok_or_else(|| NoGrammar::keyword(key)),
    };
    let mut limits = Vec::new();
    match (number("minLength")?.unwrap_or(0), number("maxLength")?) {
        (0, None) => {}
        (least, None) => limits.push(regex(&format!("(?s:.){{{least},}}"))),
        (least, Some(most)) => limits.push(regex(&format!("(?s:.){{{least},{most}}}"))),
    }
    if let Some(pattern) = rules.get("pattern").and_then(Value::as_str) {
        bare.pattern_bytes += pattern.len();
        limits.push(regex(&whole(pattern)?));
    }
    Ok(limits)
}

/// A pattern that a part of the text matches, as one that all of it does.
fn whole(pattern: &str) -> Result<String, NoGrammar> {
    let (inner, begins) = match pattern.strip_prefix('^') {
        Some(inner) => (inner, ""),
        None => (pattern, "(?s:.*)"),
    };
    let escaped =
        |text: &str| text.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 1;
    let (inner, ends) = match inner.strip_suffix('$') {
        Some(inner) if !escaped(inner) => (inner, ""),
        _ => (inner, "(?s:.*)"),
    };
    // Where the anchors belong to one of several options, they are not the whole's.
    let anchored = begins.is_empty() || ends.is_empty();
    if anchored && inner.contains('|') && options_outside(inner) {
        return Err(NoGrammar::schema(
            "its \"pattern\" has anchors in some of its options; use \"^(…|…)$\"",
        ));
    }
    Ok(format!("{begins}({inner}){ends}"))
}

/// Whether an alternative stands outside of all brackets.
fn options_outside(pattern: &str) -> bool {
    let (mut open, mut escaped) = (0_i32, false);
    for byte in pattern.bytes() {
        match byte {
            _ if std::mem::take(&mut escaped) => {}
            b'\\' => escaped = true,
            b'(' | b'[' => open += 1,
            b')' | b']' => open -= 1,
            b'|' if open <= 0 => return true,
            _ => {}
        }
    }
    false
}

/// A value of another type. Where the schema says no more than the type, whatever the reader takes for
/// such a value is one, and the words for it are texts.
fn other_type(
    name: &str,
    rules: &Map<String, Value>,
    said: &[&str],
    root: &Value,
    bare: &mut Bare,
) {
    let plain = said.iter().all(|key| *key == "type" || OF_TEXT.contains(key));
    match name {
        "null" => return bare.words.push(literal("null")),
        "boolean" => return bare.words.push("\"true\" | \"false\"".into()),
        "integer" if plain => return bare.words.push("/-?(0|[1-9][0-9]{0,15})/".into()),
        "number" if plain => {
            return bare.words.push("/-?(0|[1-9][0-9]{0,15})(\\.[0-9]{1,15})?/".into());
        }
        "array" => bare.taken.push_str("[("),
        "object" => bare.taken.push('{'),
        _ => bare.taken.push_str(NUMBERS),
    }
    let mut rules = rules.clone();
    rules.retain(|key, _| !OF_TEXT.contains(&key.as_str()));
    rules.insert("type".into(), name.into());
    bare.json.push(super::within(&rules.into(), root));
}
