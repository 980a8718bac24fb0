//! One call written as a JSON object: `{"name": "f", "arguments": {…}}`.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::call::{Emit, LONGEST_NAME};
use super::json::{Fed, Json, Place};
use super::tools::Tools;

/// Keys that such an object may have where nothing else shows that it is a call.
const KEYS: [&str; 6] = ["name", "arguments", "parameters", "function", "type", "id"];

/// Reads one such object. The arguments are sent on while they grow if the name came first.
#[derive(Debug)]
pub(super) struct ObjectReader {
    /// Where nothing but the object itself shows that it is a call: the tools that it may name.
    known: Option<Arc<Tools>>,
    json: Json,
    /// All of it, until it is sure to be a call.
    raw: String,
    key: String,
    /// The value being read, where it is kept.
    value: String,
    reading: Reading,
    name: Option<String>,
    /// Arguments that came before the name.
    arguments: Option<String>,
    sent: Sent,
}

/// What the value being read is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    Nothing,
    Name,
    Arguments,
    /// Arguments that are sent on as they come.
    Live,
    Other,
}

/// How much of the call went out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    Nothing,
    /// The beginning, and a part of the arguments.
    Part,
    /// All of it.
    Call,
}

/// How far an object is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Object {
    /// It goes on.
    On,
    /// It was a call and is over; these characters belong to what follows.
    Call(String),
    /// It is no call: all of it.
    NoCall(String),
    /// It was begun as a call and is no JSON any more: this character.
    Spoiled(char),
}

impl ObjectReader {
    /// Reads a call that a marker announced.
    pub(super) fn announced() -> Self {
        Self {
            known: None,
            json: Json::new(),
            raw: String::new(),
            key: String::new(),
            value: String::new(),
            reading: Reading::Nothing,
            name: None,
            arguments: None,
            sent: Sent::Nothing,
        }
    }

    /// Reads what is a call only if it names one of these tools and has no other keys.
    pub(super) fn bare(tools: Arc<Tools>) -> Self {
        Self { known: Some(tools), ..Self::announced() }
    }

    /// Takes one character; the first is the opening bracket.
    pub(super) fn feed(&mut self, character: char, emit: &mut Emit) -> Object {
        let before = self.json.place();
        let spelled = self.json.spell(character);
        let fed = self.json.feed(character);
        if self.sent == Sent::Nothing {
            self.raw.push(character);
        }
        if fed == Fed::Wrong {
            return match self.sent {
                Sent::Nothing => self.no_call(),
                Sent::Part => Object::Spoiled(character),
                // What is missing is a bracket; the call is whole.
                Sent::Call => Object::Call(character.to_string()),
            };
        }
        let after = self.json.place();
        if !self.follow(before, after, character, &spelled, emit) {
            return self.no_call();
        }
        match fed {
            Fed::Ended => self.end(emit),
            _ => Object::On,
        }
    }

    /// Nothing follows.
    pub(super) fn finish(&mut self) -> Object {
        match self.sent {
            Sent::Nothing => self.no_call(),
            // A call that was cut off stays without an end.
            Sent::Part | Sent::Call => Object::Call(String::new()),
        }
    }

    fn no_call(&mut self) -> Object {
        Object::NoCall(std::mem::take(&mut self.raw))
    }

    /// Keeps or sends the character; false if this can be no call.
    fn follow(
        &mut self,
        before: Place,
        after: Place,
        character: char,
        spelled: &str,
        emit: &mut Emit,
    ) -> bool {
        match (before, after) {
            (Place::Between, Place::Key) => self.key.clear(),
            (Place::Key, Place::Key) if self.key.len() <= LONGEST_NAME => self.key.push(character),
            (Place::Key, Place::Between) => return self.key_read(),
            _ => {}
        }
        if before == Place::BeforeValue && after != Place::BeforeValue {
            self.value.clear();
            if let (Reading::Arguments, '{', Sent::Nothing, Some(name)) =
                (self.reading, character, self.sent, &self.name)
            {
                emit.begin(name);
                self.sent = Sent::Part;
                self.reading = Reading::Live;
                self.raw = String::new();
            }
        }
        let within = matches!(after, Place::InValue | Place::InBareValue);
        // The quote or bracket that ended a value is a part of it; what ended a number is not.
        let last = before == Place::InValue && !within;
        if within || last {
            match self.reading {
                Reading::Live => emit.arguments(spelled),
                Reading::Name | Reading::Arguments => self.value.push_str(spelled),
                Reading::Nothing | Reading::Other => {}
            }
        }
        match !within && matches!(before, Place::InValue | Place::InBareValue) {
            true => self.value_read(emit),
            false => true,
        }
    }

    fn key_read(&mut self) -> bool {
        self.reading = match self.key.as_str() {
            "name" => Reading::Name,
            // One dialect names the tool here, another nests the call in it, which is no call here.
            "function" if self.name.is_none() => Reading::Name,
            "arguments" | "parameters" => Reading::Arguments,
            _ => Reading::Other,
        };
        self.sent != Sent::Nothing
            || self.known.is_none()
            || KEYS.iter().any(|known| *known == self.key)
    }

    fn value_read(&mut self, emit: &mut Emit) -> bool {
        match std::mem::replace(&mut self.reading, Reading::Nothing) {
            Reading::Live => {
                emit.end();
                self.sent = Sent::Call;
            }
            Reading::Name if self.sent == Sent::Nothing => {
                let name = serde_json::from_str::<String>(&self.value).unwrap_or_default();
                if name.is_empty() || name.len() > LONGEST_NAME {
                    return false;
                }
                if self.known.as_ref().is_some_and(|tools| !tools.has(&name)) {
                    return false;
                }
                self.name = Some(name);
            }
            Reading::Arguments if self.sent == Sent::Nothing => {
                self.arguments = Some(std::mem::take(&mut self.value));
            }
            _ => {}
        }
        true
    }

    fn end(&mut self, emit: &mut Emit) -> Object {
        if self.sent == Sent::Nothing {
            // Without arguments an object with a name is a call only where a marker says so.
            let told = self.arguments.is_some() || self.known.is_none();
            let arguments = self.arguments.as_deref().map_or(Some("{}".into()), as_object);
            match (self.name.take().filter(|_| told), arguments) {
                (Some(name), Some(arguments)) => emit.whole(&name, &arguments),
                _ => return self.no_call(),
            }
        }
        Object::Call(String::new())
    }
}

/// Arguments as the text of an object: also where they were written as a string that holds one, or
/// as nothing.
fn as_object(text: &str) -> Option<String> {
    if text.starts_with('{') {
        return Some(text.to_owned());
    }
    match serde_json::from_str(text).ok()? {
        Value::Null => Some("{}".into()),
        Value::String(inner) => {
            serde_json::from_str::<Map<String, Value>>(&inner).ok()?;
            Some(inner)
        }
        _ => None,
    }
}
