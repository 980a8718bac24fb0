//! What an answer may be asked to be, and how the library is told.

use std::collections::BTreeSet;
use std::fmt::Write;

use llguidance::api::TopLevelGrammar;
use polder_chat::reply::{FORM, ReplyGrammar};
use serde_json::{Value, json};

use crate::error::GrammarError;

/// Most bytes of a schema, as compact JSON, of all schemas and rules of a reply, and of all choices
/// together.
const MOST_BYTES: usize = 256 << 10;
/// Most bytes of a regular expression, of a grammar, and of all patterns in a schema together.
/// Reading them takes time by the square of their length.
const MOST_PATTERN_BYTES: usize = 8 << 10;
/// Deepest nesting of objects and lists in a schema, and of brackets in what is no JSON.
const MOST_DEPTH: usize = 64;
/// The numbers of all `multipleOf` in a schema, multiplied: whether a number is a multiple is told
/// from its digits by as many states.
const MOST_MULTIPLES: u64 = 10_000;
/// White space between the parts of a JSON text, at most so much at one place. Without a bound a
/// small model that likes new lines writes nothing else.
const JSON_SPACE: &str = r"[\x20\x0A\x0D\x09]{1,64}";

/// A form for answers.
#[derive(Debug, Clone, PartialEq)]
pub enum GrammarSpec {
    /// Any JSON object.
    JsonObject,
    /// JSON that satisfies this schema.
    JsonSchema(Value),
    /// Text that this regular expression matches from its beginning to its end, in the syntax of
    /// Rust's `regex` crate.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// Text that follows this grammar, in llguidance's dialect of Lark.
    Lark(String),
    /// A whole reply: calls of tools, and what else it may be.
    Reply {
        /// How the model lays out calls, and the schemas of their arguments.
        grammar: ReplyGrammar,
        /// What the grammar calls its form, where it has one: JSON.
        form: Option<Box<GrammarSpec>>,
    },
}

impl GrammarSpec {
    /// Refuses what is not read at all.
    pub(crate) fn check(&self) -> Result<(), GrammarError> {
        let mut most = MOST_BYTES;
        let (bytes, depth) = match self {
            Self::JsonObject => (0, 0),
            Self::JsonSchema(schema) => {
                check_schemas(&[schema], 0)?;
                (schema.to_string().len(), depth(schema))
            }
            Self::Regex(text) | Self::Lark(text) if text.trim().is_empty() => {
                return Err(GrammarError::Unusable("it is empty".into()));
            }
            Self::Lark(text) if sets_temperature(text) => {
                return Err(GrammarError::Unusable(
                    "it sets a rule's temperature, which is not supported here; leave that out"
                        .into(),
                ));
            }
            Self::Regex(text) | Self::Lark(text) => {
                most = MOST_PATTERN_BYTES;
                (text.len(), brackets(text))
            }
            Self::Choice(choices) if choices.iter().any(String::is_empty) => {
                return Err(GrammarError::Unusable("one of the choices is empty".into()));
            }
            Self::Choice(choices) if choices.is_empty() => {
                return Err(GrammarError::Unusable("there is nothing to choose from".into()));
            }
            Self::Choice(choices) => (choices.iter().map(String::len).sum(), 0),
            Self::Reply { grammar, form } => {
                form.as_ref().map_or(Ok(()), |form| form.check())?;
                check_reply(grammar)?
            }
        };
        match (bytes > most, depth > MOST_DEPTH) {
            (true, _) => Err(GrammarError::TooLong { bytes, most }),
            (_, true) => Err(GrammarError::TooDeep { most: MOST_DEPTH }),
            (false, false) => Ok(()),
        }
    }

    /// In the library's terms.
    pub(crate) fn to_library(&self) -> TopLevelGrammar {
        match self {
            Self::JsonObject => json_schema(json!({"type": "object"})),
            Self::JsonSchema(schema) => json_schema(schema.clone()),
            Self::Regex(regex) => TopLevelGrammar::from_regex(unanchored(regex)),
            Self::Choice(choices) => TopLevelGrammar::from_regex(&one_of(choices)),
            Self::Lark(grammar) => TopLevelGrammar::from_lark(grammar.clone()),
            Self::Reply { grammar, form } => {
                let mut whole = TopLevelGrammar::from_lark(grammar.lark.clone());
                let schemas = grammar.schemas.iter();
                let mut parts: Vec<_> =
                    schemas.map(|(name, schema)| (&**name, json_schema(schema.clone()))).collect();
                parts.extend(form.iter().map(|form| (FORM, form.to_library())));
                for (name, part) in parts {
                    whole.grammars.extend(part.grammars.into_iter().map(|mut grammar| {
                        grammar.name = Some(name.to_owned());
                        grammar
                    }));
                }
                whole
            }
        }
    }
}

/// The bytes of rules and schemas together, and how deep the deepest schema is: all are one grammar,
/// and share its limits.
fn check_reply(grammar: &ReplyGrammar) -> Result<(usize, usize), GrammarError> {
    let schemas: Vec<&Value> = grammar.schemas.iter().map(|(_, schema)| schema).collect();
    let bytes = schemas.iter().map(|schema| schema.to_string().len()).sum::<usize>();
    let deepest = schemas.iter().map(|schema| depth(schema)).max().unwrap_or_default();
    check_schemas(&schemas, grammar.pattern_bytes)?;
    Ok((bytes + grammar.lark.len(), deepest))
}

fn json_schema(mut schema: Value) -> TopLevelGrammar {
    if let Some(map) = schema.as_object_mut() {
        // The library's own settings. A schema's word for them is no word of JSON Schema, and
        // would let it turn off what refuses keywords that are not honoured.
        map.insert("x-guidance".into(), json!({"whitespace_pattern": JSON_SPACE}));
    }
    TopLevelGrammar::from_json_schema(schema)
}

/// What the library would take for something else than JSON Schema says. Beside the schemas there are so
/// many bytes of patterns.
fn check_schemas(schemas: &[&Value], more_patterns: usize) -> Result<(), GrammarError> {
    if !schemas.iter().all(|schema| schema.is_object()) {
        return Err(GrammarError::Unusable("a schema is an object; send {\"type\": …}".into()));
    }
    let numbers = multiples(schemas);
    if numbers > MOST_MULTIPLES {
        return Err(GrammarError::Unusable(format!(
            "its \"multipleOf\" numbers multiply to {numbers}, and at most {MOST_MULTIPLES} can be checked"
        )));
    }
    match patterns(schemas) + more_patterns {
        0..=MOST_PATTERN_BYTES => Ok(()),
        bytes => Err(GrammarError::Unusable(format!(
            "its patterns have {bytes} bytes together, and at most {MOST_PATTERN_BYTES} are read"
        ))),
    }
}

/// Bytes of everything that may be a regular expression.
fn patterns(schemas: &[&Value]) -> usize {
    let (mut bytes, mut left) = (0, schemas.to_vec());
    while let Some(value) = left.pop() {
        match value {
            Value::Array(list) => left.extend(list),
            Value::Object(map) => {
                bytes += map.get("pattern").and_then(Value::as_str).map_or(0, str::len);
                if let Some(Value::Object(map)) = map.get("patternProperties") {
                    bytes += map.keys().map(String::len).sum::<usize>();
                }
                left.extend(map.values());
            }
            _ => {}
        }
    }
    bytes
}

/// A rule's attributes stand in brackets behind its name.
fn sets_temperature(grammar: &str) -> bool {
    let attribute = |at: usize| grammar[..at].trim_end().ends_with(['[', ',']);
    let sets = |(at, word): (usize, &str)| {
        attribute(at) && grammar[at + word.len()..].trim_start().starts_with('=')
    };
    grammar.match_indices("temperature").any(sets)
}

/// The digits of every different `multipleOf`, multiplied.
fn multiples(schemas: &[&Value]) -> u64 {
    let (mut numbers, mut left) = (BTreeSet::new(), schemas.to_vec());
    while let Some(value) = left.pop() {
        match value {
            Value::Array(list) => left.extend(list),
            Value::Object(map) => {
                if let Some(Value::Number(number)) = map.get("multipleOf") {
                    let digits: String =
                        number.to_string().chars().filter(char::is_ascii_digit).collect();
                    numbers.insert(digits.trim_matches('0').parse().unwrap_or(u64::MAX));
                }
                left.extend(map.values());
            }
            _ => {}
        }
    }
    numbers.into_iter().fold(1, |product: u64, number: u64| product.saturating_mul(number))
}

/// Objects and lists around the innermost value. Walks without calling itself.
fn depth(value: &Value) -> usize {
    let (mut deepest, mut left) = (0, vec![(value, 1)]);
    while let Some((value, depth)) = left.pop() {
        deepest = deepest.max(depth);
        match value {
            Value::Array(list) => left.extend(list.iter().map(|value| (value, depth + 1))),
            Value::Object(map) => left.extend(map.values().map(|value| (value, depth + 1))),
            _ => {}
        }
    }
    deepest
}

/// Brackets that are open at the same time, at most; those within texts count too.
fn brackets(text: &str) -> usize {
    let (mut deepest, mut open) = (0, 0usize);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => open += 1,
            b')' | b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(open);
    }
    deepest
}

/// The whole answer is matched in any case, and the library knows no anchors.
fn unanchored(regex: &str) -> &str {
    let regex = regex.strip_prefix('^').unwrap_or(regex);
    match regex.strip_suffix('$') {
        Some(rest) if rest.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 0 => rest,
        _ => regex,
    }
}

/// A regular expression for one of these texts.
fn one_of(choices: &[String]) -> String {
    let mut regex = String::new();
    for choice in choices {
        regex.push(if regex.is_empty() { '(' } else { '|' });
        for character in choice.chars() {
            match character.is_ascii_alphanumeric() {
                true => regex.push(character),
                false => write!(regex, "\\u{{{:x}}}", character as u32)
                    .expect("writing to a string does not fail"),
            }
        }
    }
    regex + ")"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_or_too_deep_is_not_read() {
        let deep = (0..100).fold(json!({}), |inner, _| json!({"items": inner}));
        assert_eq!(
            GrammarSpec::JsonSchema(deep).check(),
            Err(GrammarError::TooDeep { most: MOST_DEPTH })
        );
        let deep = GrammarSpec::Lark(format!("start: {}", "(".repeat(5_000)));
        assert_eq!(deep.check(), Err(GrammarError::TooDeep { most: MOST_DEPTH }));
        let long = GrammarSpec::Regex("a".repeat(MOST_PATTERN_BYTES + 1));
        assert!(matches!(long.check(), Err(GrammarError::TooLong { .. })));
        let long = json!({"items": [{"pattern": "a".repeat(5000)}, {"pattern": "b".repeat(5000)}]});
        assert!(matches!(GrammarSpec::JsonSchema(long).check(), Err(GrammarError::Unusable(_))));
        assert_eq!(GrammarSpec::Regex("(a)(b)(c)".repeat(100)).check(), Ok(()));
    }

    #[test]
    fn a_temperature_within_a_grammar_is_not_ignored() {
        let check = |text: &str| GrammarSpec::Lark(text.into()).check();
        assert!(check("start: a\na[lazy, temperature = 0.5]: /x+/").is_err());
        assert_eq!(check("start: \"temperature=\" /[0-9]+/"), Ok(()));
    }

    #[test]
    fn anchors_around_a_whole_expression_are_what_is_meant_anyway() {
        assert_eq!(unanchored("^a+$"), "a+");
        assert_eq!(unanchored(r"a\$"), r"a\$");
        assert_eq!(unanchored(r"a\\$"), r"a\\");
    }

    #[test]
    fn a_choice_is_taken_by_its_letters() {
        assert_eq!(one_of(&["a.".into(), "ü/".into()]), r"(a\u{2e}|\u{fc}\u{2f})");
    }
}
