//! The arguments of one tool's calls, in each notation.

use serde_json::{Map, Value, json};

use super::lark::{literal, without};
use super::layout::Notation;
use super::text::bare;
use super::{NoGrammar, Writer, within};
use crate::reply::python::in_name;
use crate::reply::tools::{Tool, Types};

/// One argument.
struct Property<'a> {
    name: &'a str,
    schema: Value,
    required: bool,
}

/// What ends an argument that is an element.
const ELEMENT_END: &str = "\n</parameter>\n";

/// A text that may stand in an element: it ends neither it nor all of them.
const IN_ELEMENT: &str = "IN_ELEMENT";

/// Longest name of an argument where any may be written, and where its reader follows it.
const LONGEST_NAME: usize = 100;

impl Writer<'_> {
    /// What the rules of arguments have in common.
    pub(super) fn shared(&mut self) {
        if self.layout.arguments == Notation::Elements {
            self.rule(IN_ELEMENT, &without(&["</parameter>", "</function>"]));
        }
    }

    /// What stands for the arguments in the rule of a call. Where they are not held to the schema any will do.
    pub(super) fn arguments(
        &mut self,
        index: usize,
        tool: &Tool,
        held: bool,
    ) -> Result<String, NoGrammar> {
        match (self.layout.arguments, held) {
            (Notation::Json, true) => {
                Ok(self.schema(format!("t{index}"), object(&tool.parameters)?))
            }
            (Notation::Json, false) => {
                Ok(self.schema(format!("t{index}"), json!({"type": "object"})))
            }
            (Notation::Elements, true) => self.elements(index, &tool.parameters),
            (Notation::Elements, false) => {
                self.up_to("any_text", IN_ELEMENT, ELEMENT_END);
                Ok(format!("(\"<parameter=\" {ANY_NAME} \">\\n\" any_text)*"))
            }
            (Notation::Python, true) => self.named(index, &tool.parameters),
            (Notation::Python, false) => {
                let any = self.schema(format!("t{index}"), json!({}));
                let one = format!("{ANY_NAME} \"=\" {any}");
                Ok(format!("({one} (\", \" {one})*)?"))
            }
        }
    }

    /// A schema under a name, as a part of a rule.
    fn schema(&mut self, name: String, schema: Value) -> String {
        let reference = format!("@{name}");
        self.schemas.push((name, schema));
        reference
    }

    /// `<parameter=a>…</parameter>` for each property, in the order of the schema.
    fn elements(&mut self, index: usize, parameters: &Value) -> Result<String, NoGrammar> {
        let mut all = Vec::new();
        for (place, property) in properties(parameters)?.into_iter().enumerate() {
            let name = property.name;
            if name.trim() != name || name.contains(['>', '\n']) {
                return Err(unwritable(name));
            }
            let key = format!("t{index}p{place}");
            let options = self.element(&key, &property.schema, parameters)?;
            let open = literal(&format!("<parameter={name}>\n"));
            self.rule(&key, &format!("{open} ({})", options.join(" | ")));
            all.push(format!("{key}{}", if property.required { "" } else { "?" }));
        }
        Ok(all.join(" "))
    }

    /// What may stand in an element and end it.
    fn element(
        &mut self,
        key: &str,
        schema: &Value,
        root: &Value,
    ) -> Result<Vec<String>, NoGrammar> {
        const CLOSE: &str = r"/[ \n]*<\/parameter>\n/";
        if !Types::of(schema, root).allow_text() {
            let json = self.schema(key.to_owned(), within(schema, root));
            return Ok(vec![format!("{json} {CLOSE}")]);
        }
        let bare = bare(schema, root)?;
        self.pattern_bytes += bare.pattern_bytes;
        let mut options = Vec::new();
        if let Some(text) = bare.terminal() {
            let name = format!("{key}v");
            self.up_to(&name, &format!("{IN_ELEMENT} & {text}"), ELEMENT_END);
            options.push(name);
        }
        for (place, schema) in bare.json.into_iter().enumerate() {
            let json = self.schema(format!("{key}j{place}"), schema);
            options.push(format!("{json} {CLOSE}"));
        }
        Ok(options)
    }

    /// `a=1, b="x"`, in the order of the schema.
    fn named(&mut self, index: usize, parameters: &Value) -> Result<String, NoGrammar> {
        let properties = properties(parameters)?;
        // What may follow where nothing stands before it, and where something does.
        let last = properties.len();
        for alone in [true, false] {
            self.rule(&format!("t{index}{}{last}", after(alone)), "\"\"");
        }
        for (place, property) in properties.iter().enumerate() {
            let name = property.name;
            if name.is_empty() || !name.chars().all(in_name) {
                return Err(unwritable(name));
            }
            let value = match property.schema["type"].as_str() {
                Some("boolean") if is_plain(&property.schema) => {
                    "(\"True\" | \"False\")".to_owned()
                }
                Some("null") if is_plain(&property.schema) => "\"None\"".to_owned(),
                _ => self.schema(format!("t{index}p{place}"), within(&property.schema, parameters)),
            };
            self.rule(
                &format!("t{index}p{place}"),
                &format!("{} {value}", literal(&format!("{name}="))),
            );
            for alone in [true, false] {
                let comma = if alone { "" } else { "\", \"" };
                let next = place + 1;
                let mut body = format!("{comma} t{index}p{place} t{index}{}{next}", after(false));
                if !property.required {
                    body.push_str(&format!(" | t{index}{}{next}", after(alone)));
                }
                self.rule(&format!("t{index}{}{place}", after(alone)), &body);
            }
        }
        Ok(format!("t{index}{}0", after(true)))
    }
}

const ANY_NAME: &str = "/[a-zA-Z_][a-zA-Z0-9_]{0,60}/";

fn after(alone: bool) -> char {
    if alone { 'a' } else { 'b' }
}

fn is_plain(schema: &Value) -> bool {
    let said = |key: &String| matches!(key.as_str(), "type" | "description" | "title" | "default");
    schema.as_object().is_some_and(|rules| rules.keys().all(said))
}

fn unwritable(name: &str) -> NoGrammar {
    let name: String = name.chars().take(LONGEST_NAME).collect();
    NoGrammar::schema(format!("this model cannot write an argument named {}", literal(&name)))
}

/// The schema of all arguments together, which are an object in any case. Where there is none there are none.
fn object(parameters: &Value) -> Result<Value, NoGrammar> {
    let Some(rules) = parameters.as_object() else {
        return Ok(json!({"type": "object", "properties": {}, "additionalProperties": false}));
    };
    let mut rules = rules.clone();
    is_object(&rules)?;
    rules.insert("type".into(), "object".into());
    Ok(rules.into())
}

fn is_object(rules: &Map<String, Value>) -> Result<(), NoGrammar> {
    let object = match rules.get("type") {
        None => true,
        Some(Value::Array(names)) => names.iter().any(|name| name == "object"),
        Some(name) => name == "object",
    };
    match object {
        true => Ok(()),
        false => Err(NoGrammar::schema("its \"type\" must be \"object\"")),
    }
}

/// The arguments one by one, where they are not written as one object.
fn properties(parameters: &Value) -> Result<Vec<Property<'_>>, NoGrammar> {
    const KNOWN: [&str; 13] = [
        "type",
        "properties",
        "required",
        "additionalProperties",
        "title",
        "description",
        "$defs",
        "definitions",
        "$schema",
        "$id",
        "$comment",
        "examples",
        "default",
    ];
    let Some(rules) = parameters.as_object() else { return Ok(Vec::new()) };
    is_object(rules)?;
    if let Some(other) = rules.keys().find(|key| !KNOWN.contains(&key.as_str())) {
        return Err(NoGrammar::schema(format!(
            "it uses \"{other}\" beside \"properties\", which is not supported where a model writes \
             its arguments one by one; leave it out"
        )));
    }
    let required: Vec<&str> = rules
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let known = rules.get("properties").and_then(Value::as_object);
    let mut properties: Vec<Property<'_>> = known
        .into_iter()
        .flatten()
        .map(|(name, schema)| Property {
            name,
            schema: schema.clone(),
            required: required.contains(&name.as_str()),
        })
        .collect();
    for name in required {
        if !properties.iter().any(|property| property.name == name) {
            properties.push(Property { name, schema: json!({}), required: true });
        }
    }
    match properties.iter().find(|property| property.name.len() > LONGEST_NAME) {
        Some(property) => Err(unwritable(property.name)),
        None => Ok(properties),
    }
}
