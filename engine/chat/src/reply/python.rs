//! Python's literals, where a model writes them instead of JSON.

use serde_json::{Map, Number, Value};

/// Deepest nesting that is read.
const DEEPEST: usize = 64;

/// One literal.
pub(super) fn read(text: &str) -> Option<Value> {
    let mut reader = Reader { rest: text };
    let value = reader.value(0)?;
    reader.space();
    reader.rest.is_empty().then_some(value)
}

/// What stands between the brackets of a call: `a=1, b="x"`.
pub(super) fn read_arguments(text: &str) -> Option<Map<String, Value>> {
    let mut reader = Reader { rest: text };
    let mut arguments = Map::new();
    loop {
        reader.space();
        if reader.rest.is_empty() {
            return Some(arguments);
        }
        let name = reader.name()?;
        reader.space();
        reader.eat('=')?;
        arguments.insert(name.to_owned(), reader.value(0)?);
        reader.space();
        if !reader.rest.is_empty() {
            reader.eat(',')?;
        }
    }
}

/// May be part of a name; of one with dots too, as in `weather.today`.
pub(super) fn in_name(character: char) -> bool {
    character.is_alphanumeric() || matches!(character, '_' | '-' | '.')
}

struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn eat(&mut self, wanted: char) -> Option<()> {
        self.rest = self.rest.strip_prefix(wanted)?;
        Some(())
    }

    fn take(&mut self, belongs: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|character| !belongs(character)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }

    fn name(&mut self) -> Option<&'a str> {
        Some(self.take(in_name)).filter(|name| !name.is_empty())
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        if depth > DEEPEST {
            return None;
        }
        self.space();
        match self.rest.chars().next()? {
            quote @ ('"' | '\'') => Some(Value::String(self.text(quote)?)),
            '[' => self.items(']', depth),
            '(' => self.items(')', depth),
            '{' => self.object(depth),
            first if first.is_ascii_digit() || matches!(first, '-' | '+' | '.') => self.number(),
            _ => match self.name()? {
                "True" | "true" => Some(true.into()),
                "False" | "false" => Some(false.into()),
                "None" | "null" => Some(Value::Null),
                _ => None,
            },
        }
    }

    fn number(&mut self) -> Option<Value> {
        let word = self.take(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
        let word = word.strip_prefix('+').unwrap_or(word);
        if let Ok(number) = serde_json::from_str::<Number>(word) {
            return Some(Value::Number(number));
        }
        // `.5` and `5.` are numbers in Python alone; one that no machine can hold stays as it was
        // written, so that the call is not lost.
        let value = word.parse::<f64>().ok().filter(|value| !value.is_nan())?;
        Some(Number::from_f64(value).map_or_else(|| word.into(), Value::Number))
    }

    fn items(&mut self, end: char, depth: usize) -> Option<Value> {
        self.rest = &self.rest[1..];
        let mut items = Vec::new();
        loop {
            self.space();
            if self.eat(end).is_some() {
                return Some(Value::Array(items));
            }
            items.push(self.value(depth + 1)?);
            self.space();
            if !self.rest.starts_with(end) {
                self.eat(',')?;
            }
        }
    }

    fn object(&mut self, depth: usize) -> Option<Value> {
        self.rest = &self.rest[1..];
        let mut object = Map::new();
        loop {
            self.space();
            if self.eat('}').is_some() {
                return Some(Value::Object(object));
            }
            let key = match self.value(depth + 1)? {
                Value::String(key) => key,
                key @ (Value::Number(_) | Value::Bool(_) | Value::Null) => key.to_string(),
                _ => return None,
            };
            self.space();
            self.eat(':')?;
            object.insert(key, self.value(depth + 1)?);
            self.space();
            if !self.rest.starts_with('}') {
                self.eat(',')?;
            }
        }
    }

    fn text(&mut self, quote: char) -> Option<String> {
        self.rest = &self.rest[1..];
        let mut text = String::new();
        let mut characters = self.rest.chars();
        loop {
            match characters.next()? {
                end if end == quote => break,
                '\\' => match characters.next()? {
                    '\n' => {}
                    'n' => text.push('\n'),
                    't' => text.push('\t'),
                    'r' => text.push('\r'),
                    'b' => text.push('\u{8}'),
                    'f' => text.push('\u{c}'),
                    'x' => text.push(code(&mut characters, 2)?),
                    'u' => text.push(utf16(&mut characters)?),
                    'U' => text.push(code(&mut characters, 8)?),
                    same @ ('\\' | '\'' | '"') => text.push(same),
                    // Python leaves what is no escape as it is.
                    other => text.extend(['\\', other]),
                },
                other => text.push(other),
            }
        }
        self.rest = characters.as_str();
        Some(text)
    }
}

fn code(characters: &mut std::str::Chars<'_>, digits: usize) -> Option<char> {
    char::from_u32(hex(characters, digits)?)
}

fn hex(characters: &mut std::str::Chars<'_>, digits: usize) -> Option<u32> {
    (0..digits)
        .try_fold(0_u32, |value, _| Some(value.checked_mul(16)? + characters.next()?.to_digit(16)?))
}

/// `\u` and four digits; two of them where JSON writes one character as a pair.
fn utf16(characters: &mut std::str::Chars<'_>) -> Option<char> {
    let first = hex(characters, 4)?;
    if !(0xd800..0xdc00).contains(&first) {
        return char::from_u32(first);
    }
    (characters.next()? == '\\' && characters.next()? == 'u').then_some(())?;
    let second = hex(characters, 4)?.checked_sub(0xdc00).filter(|low| *low < 0x400)?;
    char::from_u32(0x10000 + ((first - 0xd800) << 10) + second)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn python_values_become_json() {
        for (text, value) in [
            ("'it\\'s'", json!("it's")),
            (r#""a\n\x41\u00e9\U0001f600\d""#, json!("a\nAé😀\\d")),
            (r#""\ud83d\ude00""#, json!("😀")),
            ("[1, -2.5, .5, 1e3, (True, None,)]", json!([1, -2.5, 0.5, 1000.0, [true, null]])),
            ("{'a': {1: False}, }", json!({"a": {"1": false}})),
            ("-12e+463", json!("-12e+463")),
            (r#""\b\f""#, json!("\u{8}\u{c}")),
        ] {
            assert_eq!(read(text), Some(value), "{text}");
        }
        for wrong in ["", "'a", "[1 2]", "f(x)", "{[]: 1}", "'\\ud83d'", "1 2", "[,]", "nan"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
        assert_eq!(read(&"[".repeat(100_000)), None);
    }

    #[test]
    fn arguments_have_names() {
        let arguments = read_arguments("a=1, b = \"x, y=2\" ,").unwrap();
        assert_eq!(Value::from(arguments), json!({"a": 1, "b": "x, y=2"}));
        assert_eq!(read_arguments(" "), Some(Map::new()));
        assert_eq!(read_arguments("1, a=2"), None);
        assert_eq!(read_arguments("a=1 b=2"), None);
    }

    proptest! {
        #[test]
        fn nothing_makes_the_reader_panic(text in "[\\[\\](){}'\"\\\\xuU=,:0-9aTé. -]{0,24}") {
            let _ = read(&text);
            let _ = read_arguments(&text);
        }
    }
}
