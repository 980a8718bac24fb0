//! JSON in the layout of Python's `json.dumps`, in which models have learned it.

use minijinja::value::{Kwargs, Value as Jinja};
use minijinja::{Error, ErrorKind};
use serde::Serialize;
use serde_json::Value;

use crate::escape::MARKERS;

/// JSON as Python's `json.dumps` lays it out, by default with `ensure_ascii=False`.
pub(crate) fn to_json(value: &Jinja, options: Kwargs) -> Result<Jinja, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let ascii: Option<bool> = options.get("ensure_ascii")?;
    let sorted: Option<bool> = options.get("sort_keys")?;
    let separators: Option<(String, String)> = match options.get::<Option<Jinja>>("separators")? {
        None => None,
        Some(pair) => {
            let mut parts = pair.try_iter()?.map(|part| part.to_string());
            parts.next().zip(parts.next())
        }
    };
    options.assert_all_used()?;
    let mut value = serde_json::to_value(value)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    if sorted == Some(true) {
        value.sort_all_objects();
    }
    // With an indent Python ends lines without a space.
    let comma = if indent.is_some() { "," } else { ", " };
    let (comma, colon) = separators.unwrap_or((comma.into(), ": ".into()));
    let indent = indent.map(|indent| " ".repeat(indent.min(16)));
    let mut text = layout(&value, PythonLayout { comma, colon, indent, depth: 0, empty: true });
    if ascii == Some(true) {
        text = only_ascii(&text);
    }
    Ok(Jinja::from_safe_string(text))
}

/// JSON in the layout that models learn: Python's.
pub(crate) fn python_json(value: &Value) -> String {
    let (comma, colon) = (", ".into(), ": ".into());
    layout(value, PythonLayout { comma, colon, indent: None, depth: 0, empty: true })
}

fn layout(value: &Value, layout: PythonLayout) -> String {
    let mut bytes = Vec::new();
    let mut writer = serde_json::Serializer::with_formatter(&mut bytes, layout);
    // Writing a value into memory does not fail, and JSON is UTF-8.
    value
        .serialize(&mut writer)
        .map_or_else(|_| value.to_string(), |()| String::from_utf8_lossy(&bytes).into_owned())
}

/// What is no ASCII stands in JSON only within strings, where an escape says the same.
fn only_ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for character in json.chars() {
        // A marker of people's words must still be found when they are taken out.
        if character.is_ascii() || MARKERS.contains(&character) {
            text.push(character);
            continue;
        }
        for unit in character.encode_utf16(&mut [0; 2]) {
            text.push_str(&format!("\\u{unit:04x}"));
        }
    }
    text
}

/// `", "` and `": "` between things, or what was asked for; each on a line of its own where there is
/// an indent.
struct PythonLayout {
    comma: String,
    colon: String,
    indent: Option<String>,
    depth: usize,
    /// Nothing stands in the innermost brackets yet.
    empty: bool,
}

impl PythonLayout {
    fn open<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        bracket: &str,
    ) -> std::io::Result<()> {
        self.depth += 1;
        self.empty = true;
        writer.write_all(bracket.as_bytes())
    }

    fn close<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        bracket: &str,
    ) -> std::io::Result<()> {
        self.depth = self.depth.saturating_sub(1);
        if !std::mem::replace(&mut self.empty, false) {
            self.line(writer)?;
        }
        writer.write_all(bracket.as_bytes())
    }

    fn next<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        self.empty = false;
        if !first {
            writer.write_all(self.comma.as_bytes())?;
        }
        self.line(writer)
    }

    fn line<W: ?Sized + std::io::Write>(&self, writer: &mut W) -> std::io::Result<()> {
        match &self.indent {
            None => Ok(()),
            Some(indent) => writer.write_all(format!("\n{}", indent.repeat(self.depth)).as_bytes()),
        }
    }
}

impl serde_json::ser::Formatter for PythonLayout {
    fn begin_array<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        self.open(writer, "[")
    }

    fn end_array<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        self.close(writer, "]")
    }

    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        self.next(writer, first)
    }

    fn begin_object<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        self.open(writer, "{")
    }

    fn end_object<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        self.close(writer, "}")
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        self.next(writer, first)
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
    ) -> std::io::Result<()> {
        writer.write_all(self.colon.as_bytes())
    }
}
