//! The tools that a request offers, as far as reading their calls needs them.

use serde_json::Value;

use super::json::quote;
use super::python;

/// The tools on offer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tools(Vec<Tool>);

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tool {
    pub(super) name: String,
    /// The JSON schema of its arguments.
    pub(super) parameters: Value,
    /// It must be called with arguments that follow the schema.
    pub(super) strict: bool,
}

impl Tools {
    /// From OpenAI's list: `{"type": "function", "function": {"name": …, "parameters": …}}`. What
    /// has no name is left out.
    pub fn new(tools: &[Value]) -> Self {
        let tool = |tool: &Value| {
            let function = tool.get("function")?;
            let name = function.get("name")?.as_str()?.to_owned();
            let parameters = function.get("parameters").cloned().unwrap_or_default();
            let strict = function.get("strict").and_then(Value::as_bool).unwrap_or(false);
            Some(Tool { name, parameters, strict })
        };
        Self(tools.iter().filter_map(tool).collect())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Tool> {
        self.0.iter()
    }

    /// Whether there is a tool of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|tool| tool.name == name)
    }

    /// The JSON types that an argument may have; empty where the schema does not say.
    pub(super) fn types(&self, tool: &str, argument: &str) -> Types {
        let tool = self.0.iter().find(|known| known.name == tool);
        let schema = tool
            .and_then(|tool| tool.parameters.get("properties"))
            .and_then(|properties| properties.get(argument));
        tool.zip(schema)
            .map_or_else(Types::default, |(tool, schema)| Types::of(schema, &tool.parameters))
    }
}

/// JSON types that a value may have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Types(Vec<&'static str>);

/// References and alternatives that are followed.
const DEEPEST: usize = 8;

impl Types {
    /// Those that `schema` says, which stands in `root`.
    pub(super) fn of(schema: &Value, root: &Value) -> Self {
        let mut types = Self::default();
        types.gather(schema, root, 0);
        types
    }

    /// A value may be text. So may one of which the schema says nothing.
    pub(super) fn allow_text(&self) -> bool {
        self.0.is_empty() || self.0.contains(&"string")
    }

    fn gather(&mut self, schema: &Value, root: &Value, depth: usize) {
        if depth > DEEPEST {
            return;
        }
        match schema.get("type") {
            Some(Value::String(name)) => self.add(name),
            Some(Value::Array(names)) => {
                names.iter().filter_map(Value::as_str).for_each(|name| self.add(name));
            }
            _ => {
                let values = schema.get("enum").and_then(Value::as_array).into_iter().flatten();
                values.chain(schema.get("const")).for_each(|value| self.add(type_of(value)));
            }
        }
        for alternatives in ["anyOf", "oneOf", "allOf"] {
            let schemas = schema.get(alternatives).and_then(Value::as_array);
            schemas.into_iter().flatten().for_each(|one| self.gather(one, root, depth + 1));
        }
        if let Some(path) = schema.get("$ref").and_then(Value::as_str)
            && let Some(schema) = path.strip_prefix('#').and_then(|path| root.pointer(path))
        {
            self.gather(schema, root, depth + 1);
        }
    }

    fn add(&mut self, name: &str) {
        const NAMES: [&str; 7] =
            ["string", "number", "integer", "boolean", "object", "array", "null"];
        let known = NAMES.into_iter().find(|known| *known == name);
        self.0.extend(known.filter(|known| !self.0.contains(known)));
    }

    /// Every value is text, so that it can be sent before it is whole. So is one of which the
    /// schema says nothing.
    pub(super) fn only_text(&self) -> bool {
        self.0.iter().all(|name| *name == "string")
    }

    /// A value that was written as bare text, as JSON.
    pub(super) fn read(&self, text: &str) -> String {
        let trimmed = text.trim();
        if !self.only_text() {
            let json = serde_json::from_str::<Value>(trimmed).ok();
            // The model's own spelling stays, unless Python's had to be read.
            let spelled = json.is_some().then(|| trimmed.to_owned());
            if let Some(value) = json.or_else(|| python::read(trimmed))
                && self.allow(&value)
            {
                return spelled.unwrap_or_else(|| value.to_string());
            }
        }
        quote(text)
    }

    fn allow(&self, value: &Value) -> bool {
        let name = type_of(value);
        let named = |wanted: &str| self.0.contains(&wanted);
        match name {
            // What is text already needs no quotes of its own.
            "string" => !named("string"),
            "number" => named("number") || (named("integer") && is_whole(value)),
            name => named(name),
        }
    }
}

/// As the specification has it, `5.0` is an integer.
fn is_whole(value: &Value) -> bool {
    value.as_f64().is_some_and(|number| number.fract() == 0.0)
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn types(schema: Value) -> Types {
        let parameters = json!({"properties": {"x": schema}, "$defs": {"n": {"type": "integer"}}});
        let tool = json!({"type": "function", "function": {"name": "f", "parameters": parameters}});
        Tools::new(&[tool]).types("f", "x")
    }

    #[test]
    fn bare_text_becomes_what_the_schema_says() {
        for (schema, text, json) in [
            (json!({"type": "string"}), "5", "\"5\""),
            (json!({"type": "string"}), "a\n\"b\"", "\"a\\n\\\"b\\\"\""),
            (json!({"type": "integer"}), " 5 ", "5"),
            (json!({"type": "integer"}), "five", "\"five\""),
            (json!({"type": ["integer", "string"]}), "5.5", "\"5.5\""),
            (json!({"type": "integer"}), "5.0", "5.0"),
            (json!({"type": "number"}), "5.50", "5.50"),
            (json!({"type": "boolean"}), "true", "true"),
            (json!({"type": "boolean"}), "True", "true"),
            (json!({"type": "object"}), "{\"a\":  1}", "{\"a\":  1}"),
            (json!({"type": "object"}), "{'a': None}", "{\"a\":null}"),
            (json!({"type": "array"}), "[1, 2]", "[1, 2]"),
            (json!({"type": ["string", "null"]}), "null", "null"),
            (json!({"type": ["string", "null"]}), "nil", "\"nil\""),
            (json!({"anyOf": [{"type": "string"}, {"type": "integer"}]}), "5", "5"),
            (json!({"$ref": "#/$defs/n"}), "5", "5"),
            (json!({"enum": [1, 2]}), "2", "2"),
            (json!({"enum": ["1", "2"]}), "2", "\"2\""),
            (json!({}), "5", "\"5\""),
        ] {
            assert_eq!(types(schema.clone()).read(text), json, "{schema} {text}");
        }
    }

    #[test]
    fn a_schema_that_refers_to_itself_is_read_all_the_same() {
        let looped = json!({"$ref": "#/properties/x", "type": "integer"});
        assert_eq!(types(looped).read("1"), "1");
    }
}
