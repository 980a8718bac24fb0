//! What an answer must be: OpenAI's `response_format`, and vLLM's names for the same and more.

use std::sync::Arc;

use polder_grammar::{Grammar, GrammarSpec, Grammars};
use serde_json::Value;

use crate::wire::error::{ApiError, shortened};
use crate::wire::fields::{Fields, Ignored};

/// A form for answers, and the field that asks for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Format {
    /// The field's full name.
    pub field: String,
    /// What it asks for.
    pub spec: GrammarSpec,
    /// What was asked for elsewhere and is a part of it: a refusal names the part that it is for.
    pub made_of: Vec<Format>,
}

impl Format {
    pub(crate) fn new(field: impl Into<String>, spec: GrammarSpec) -> Self {
        Self { field: field.into(), spec, made_of: Vec::new() }
    }

    /// Compiles it; one that cannot be had is refused by its field. Takes its time.
    pub(crate) fn compile(&self, grammars: &Grammars) -> Result<Arc<dyn Grammar>, ApiError> {
        grammars.compile(&self.spec).map_err(|error| {
            let part = self.made_of.iter().find_map(|part| part.compile(grammars).err());
            part.unwrap_or_else(|| cannot_be_honoured(&self.field, &error))
        })
    }
}

/// The refusal of a form or a schema that `field` asks for.
pub(crate) fn cannot_be_honoured(field: &str, why: &impl std::fmt::Display) -> ApiError {
    ApiError::bad_field(field, format!("\"{field}\" cannot be honoured: {why}."))
}

/// What the answers must be, where that is more than text. Asked for once at most.
pub(crate) fn parse(
    fields: &mut Fields,
    ignored: &mut Ignored,
) -> Result<Option<Format>, ApiError> {
    let mut found = Vec::new();
    found.extend(response_format(fields, ignored)?);
    found.extend(structured_outputs(fields, ignored)?);
    // vLLM's older names.
    for (name, read) in GUIDED {
        if let Some(value) = fields.take(name) {
            found.push(Format::new(name, read(name, value)?));
        }
    }
    match &found[..] {
        [first, second, ..] => Err(ApiError::bad_field(
            &second.field,
            format!(
                "\"{}\" and \"{}\" both say what an answer must be; send one of them.",
                first.field, second.field
            ),
        )),
        _ => Ok(found.pop()),
    }
}

type Read = fn(&str, Value) -> Result<GrammarSpec, ApiError>;

const GUIDED: [(&str, Read); 4] = [
    ("guided_json", read_schema),
    ("guided_regex", read_regex),
    ("guided_choice", read_choice),
    ("guided_grammar", read_lark),
];

const STRUCTURED: [(&str, Read); 4] =
    [("json", read_schema), ("regex", read_regex), ("choice", read_choice), ("grammar", read_lark)];

/// The form in which responses and Anthropic's messages ask: the schema stands beside its type.
pub(crate) fn parse_beside(
    fields: &mut Fields,
    ignored: &mut Ignored,
) -> Result<Option<Format>, ApiError> {
    let name = fields.name("format");
    let Some(value) = fields.take("format") else { return Ok(None) };
    let mut format = Fields::nested(value, &name, &name)?;
    let kind = format.string("type")?.unwrap_or_default();
    let asked = match kind.as_str() {
        "text" => None,
        "json_object" => Some(Format::new(name, GrammarSpec::JsonObject)),
        "json_schema" => Some(schema(&mut format)?),
        other => return Err(unknown(&name, other)),
    };
    format.finish(ignored);
    Ok(asked)
}

fn unknown(field: &str, kind: &str) -> ApiError {
    ApiError::bad_field(
        field,
        format!(
            "\"{field}\" is of the type \"{}\", which is not supported here; send text, json_object \
             or json_schema.",
            shortened(kind)
        ),
    )
    .code("unsupported_parameter")
}

fn response_format(fields: &mut Fields, ignored: &mut Ignored) -> Result<Option<Format>, ApiError> {
    const NAME: &str = "response_format";
    let Some(value) = fields.take(NAME) else { return Ok(None) };
    let mut format = Fields::nested(value, NAME, NAME)?;
    let kind = format.string("type")?.unwrap_or_default();
    let asked = match kind.as_str() {
        "text" => None,
        "json_object" => Some(Format::new(NAME, GrammarSpec::JsonObject)),
        "json_schema" => Some(json_schema(&mut format, ignored)?),
        other => return Err(unknown(NAME, other)),
    };
    format.finish(ignored);
    Ok(asked)
}

/// OpenAI's wrapper around a schema. It is honoured whether it is strict or not.
fn json_schema(format: &mut Fields, ignored: &mut Ignored) -> Result<Format, ApiError> {
    let name = format.name("json_schema");
    let value = format.take("json_schema").unwrap_or_default();
    let mut inner = Fields::nested(value, &name, &name)?;
    let format = schema(&mut inner)?;
    inner.finish(ignored);
    Ok(format)
}

fn schema(fields: &mut Fields) -> Result<Format, ApiError> {
    // Names for people and models; the engine has no use for them.
    fields.string("name")?;
    fields.string("description")?;
    fields.boolean("strict")?;
    let field = fields.name("schema");
    let spec = read_schema(&field, fields.take("schema").unwrap_or_default())?;
    Ok(Format::new(field, spec))
}

fn structured_outputs(
    fields: &mut Fields,
    ignored: &mut Ignored,
) -> Result<Option<Format>, ApiError> {
    const NAME: &str = "structured_outputs";
    let Some(value) = fields.take(NAME) else { return Ok(None) };
    let mut inner = Fields::nested(value, NAME, NAME)?;
    let mut asked = Vec::new();
    for (name, read) in STRUCTURED {
        let field = inner.name(name);
        if let Some(value) = inner.take(name) {
            asked.push(Format::new(&field, read(&field, value)?));
        }
    }
    if inner.boolean("json_object")? == Some(true) {
        asked.push(Format::new(inner.name("json_object"), GrammarSpec::JsonObject));
    }
    for name in [
        "structural_tag",
        "whitespace_pattern",
        "disable_any_whitespace",
        "disable_additional_properties",
    ] {
        inner.refuse(name, |value| value == false, "leave it out")?;
    }
    inner.finish(ignored);
    match asked.len() {
        1 => Ok(asked.pop()),
        _ => Err(ApiError::bad_field(
            NAME,
            format!(
                "\"{NAME}\" must hold one of json, json_object, regex, choice and grammar, and \
                 not several."
            ),
        )),
    }
}

/// A schema, or the text of one.
fn read_schema(field: &str, value: Value) -> Result<GrammarSpec, ApiError> {
    let schema = match value {
        Value::String(text) => serde_json::from_str(&text).unwrap_or_default(),
        other => other,
    };
    match schema {
        Value::Object(_) => Ok(GrammarSpec::JsonSchema(schema)),
        _ => Err(ApiError::bad_field(
            field,
            format!("\"{field}\" must be a JSON schema, an object such as {{\"type\": …}}."),
        )),
    }
}

fn read_regex(field: &str, value: Value) -> Result<GrammarSpec, ApiError> {
    text(field, value, "a regular expression").map(GrammarSpec::Regex)
}

fn read_lark(field: &str, value: Value) -> Result<GrammarSpec, ApiError> {
    text(field, value, "a grammar in Lark's syntax").map(GrammarSpec::Lark)
}

fn text(field: &str, value: Value, what: &str) -> Result<String, ApiError> {
    match value {
        Value::String(text) => Ok(text),
        _ => Err(ApiError::bad_field(field, format!("\"{field}\" must be a string, {what}."))),
    }
}

fn read_choice(field: &str, value: Value) -> Result<GrammarSpec, ApiError> {
    let choices: Option<Vec<String>> = match value {
        Value::Array(list) => {
            list.into_iter().map(|choice| choice.as_str().map(str::to_owned)).collect()
        }
        _ => None,
    };
    choices.filter(|choices| !choices.is_empty()).map(GrammarSpec::Choice).ok_or_else(|| {
        ApiError::bad_field(field, format!("\"{field}\" must be a list of at least one string."))
    })
}
