//! Reading a JSON object field by field, so that nothing in it goes unnoticed.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::wire::error::{ApiError, shortened};

/// Most names that an answer lists as ignored.
pub(crate) const MOST_IGNORED: usize = 32;

/// The fields of one object that nobody has asked for yet.
#[derive(Debug)]
pub(crate) struct Fields {
    map: Map<String, Value>,
    /// Where the object stands, for messages: empty, or `messages[3].`.
    path: String,
    /// Where it stands in the list of ignored fields: `messages[].`.
    pattern: String,
}

impl Fields {
    /// A request's body.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Self { map, path: String::new(), pattern: String::new() }),
            Ok(_) => Err(ApiError::bad_request(
                "The body is JSON but not an object; send {\"model\": …, …}.",
            )),
            Err(error) => Err(ApiError::bad_request(format!(
                "The body is not valid JSON (line {}, column {}); send a JSON object.",
                error.line(),
                error.column()
            ))),
        }
    }

    /// An object inside another.
    pub(crate) fn nested(value: Value, path: &str, pattern: &str) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => {
                Ok(Self { map, path: format!("{path}."), pattern: format!("{pattern}.") })
            }
            _ => Err(ApiError::bad_field(path, format!("\"{path}\" must be an object."))),
        }
    }

    /// The field's full name.
    pub(crate) fn name(&self, field: &str) -> String {
        format!("{}{field}", self.path)
    }

    /// Takes a field; null counts as absent.
    pub(crate) fn take(&mut self, field: &str) -> Option<Value> {
        self.map.swap_remove(field).filter(|value| !value.is_null())
    }

    /// Reads fields that change nothing in the answer.
    pub(crate) fn accept(&mut self, fields: &[&str]) {
        for field in fields {
            self.map.swap_remove(*field);
        }
    }

    /// Reads a field that has no effect, and names it unless its value asks for nothing.
    pub(crate) fn ignore(
        &mut self,
        field: &str,
        asks_nothing: impl FnOnce(&Value) -> bool,
        ignored: &mut Ignored,
    ) {
        if self.take(field).is_some_and(|value| !asks_nothing(&value)) {
            ignored.add(format!("{}{field}", self.pattern));
        }
    }

    /// Refuses a field that cannot be honoured, unless its value asks for nothing.
    pub(crate) fn refuse(
        &mut self,
        field: &str,
        asks_nothing: impl FnOnce(&Value) -> bool,
        what_to_do: &str,
    ) -> Result<(), ApiError> {
        match self.take(field) {
            Some(value) if !asks_nothing(&value) => Err(self.unsupported(field, what_to_do)),
            _ => Ok(()),
        }
    }

    /// The refusal of a known field.
    pub(crate) fn unsupported(&self, field: &str, what_to_do: &str) -> ApiError {
        let name = self.name(field);
        ApiError::bad_field(&name, format!("\"{name}\" is not supported here; {what_to_do}."))
            .code("unsupported_parameter")
    }

    fn wrong(&self, field: &str, expected: &str) -> ApiError {
        let name = self.name(field);
        ApiError::bad_field(&name, format!("\"{name}\" must be {expected}."))
    }

    /// A finite number.
    pub(crate) fn number(
        &mut self,
        field: &str,
        range: RangeInclusive<f64>,
    ) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.take(field) else { return Ok(None) };
        match value.as_f64().filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number as f32)),
            None => {
                Err(self
                    .wrong(field, &format!("a number from {} to {}", range.start(), range.end())))
            }
        }
    }

    /// A whole number.
    pub(crate) fn integer(
        &mut self,
        field: &str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.take(field) else { return Ok(None) };
        match value.as_i64().filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(self.wrong(
                field,
                &format!("a whole number from {} to {}", range.start(), range.end()),
            )),
        }
    }

    /// True or false.
    pub(crate) fn boolean(&mut self, field: &str) -> Result<Option<bool>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(_) => Err(self.wrong(field, "true or false")),
        }
    }

    /// A string.
    pub(crate) fn string(&mut self, field: &str) -> Result<Option<String>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::String(value)) => Ok(Some(value)),
            Some(_) => Err(self.wrong(field, "a string")),
        }
    }

    /// What is left is outside the specification: named, or refused where `strict`.
    pub(crate) fn finish(self, ignored: &mut Ignored) {
        for name in self.map.keys() {
            ignored.add(format!("{}{}", self.pattern, shortened(name)));
        }
    }
}

/// Fields that were read and not honoured, each named once.
#[derive(Debug, Default)]
pub(crate) struct Ignored(Vec<String>);

impl Ignored {
    pub(crate) fn add(&mut self, name: String) {
        if self.0.len() < MOST_IGNORED && !self.0.contains(&name) {
            self.0.push(name);
        }
    }

    /// The names, or the refusal that a strict client asked for.
    pub(crate) fn finish(self, strict: bool) -> Result<Vec<String>, ApiError> {
        match self.0.first() {
            Some(first) if strict => Err(ApiError::bad_field(
                first,
                format!(
                    "This key is strict and these fields are not known or not honoured: {}; \
                     leave them out.",
                    self.0.join(", ")
                ),
            )
            .code("unknown_parameter")),
            _ => Ok(self.0),
        }
    }
}
