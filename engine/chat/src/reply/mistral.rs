//! Calls as Mistral writes them: `[TOOL_CALLS]` and then either a list of
//! `{"name": "f", "arguments": {…}}` or, newer, `f[ARGS]{…}`.

use super::call::{CallReader, Emit, LONGEST_NAME, Reader, Verdict};
use super::live::{Live, LiveArguments};
use super::object::{Object, ObjectReader};
use super::python::in_name;

pub(super) const CALLS: &str = "[TOOL_CALLS]";
pub(super) const ARGUMENTS: &str = "[ARGS]";
pub(super) const CALL_ID: &str = "[CALL_ID]";

/// Reads what follows `[TOOL_CALLS]`.
pub(super) type MistralReader = Reader<At>;

#[derive(Debug)]
pub(super) enum At {
    Start,
    /// In the list; whether a comma came since the last call.
    List {
        comma: bool,
    },
    Object(ObjectReader),
    /// A name and what follows it up to the arguments.
    Name(String),
    Arguments(LiveArguments),
    /// Arguments in the list that are no JSON any more.
    Spoiled,
}

impl MistralReader {
    pub(super) fn new() -> Self {
        Self::beginning(At::Start, ())
    }

    fn begin_object(&mut self) -> Verdict {
        let mut object = ObjectReader::announced();
        // An opening bracket alone says nothing.
        let _ = object.feed('{', &mut Emit::default());
        self.go(At::Object(object))
    }

    fn heard(&mut self, object: Object, emit: &mut Emit) -> Verdict {
        match object {
            Object::On => Verdict::More,
            Object::Call(rest) => {
                self.calls += 1;
                self.raw.clear();
                self.at = At::List { comma: false };
                match rest.chars().next() {
                    Some(character) => self.feed(character, emit),
                    None => Verdict::More,
                }
            }
            Object::NoCall(_) => self.stop(),
            Object::Spoiled(character) => {
                emit.arguments(character.encode_utf8(&mut [0; 4]));
                self.go(At::Spoiled)
            }
        }
    }

    fn in_name(&mut self, mut name: String, character: char, emit: &mut Emit) -> Verdict {
        name.push(character);
        if character == '{' {
            let head = name[..name.len() - 1].trim();
            let head = head.strip_suffix(ARGUMENTS).unwrap_or(head);
            let head = head.split_once(CALL_ID).map_or(head, |(name, _)| name).trim();
            if head.is_empty() || !head.chars().all(in_name) {
                return self.stop();
            }
            emit.begin(head);
            let mut arguments = LiveArguments::new("");
            let _ = arguments.feed('{', emit);
            self.raw.clear();
            return self.go(At::Arguments(arguments));
        }
        let possible = in_name(character) || matches!(character, '[' | ']' | ' ');
        match possible && name.len() <= 2 * LONGEST_NAME {
            true => self.go(At::Name(name)),
            false => self.stop(),
        }
    }
}

impl CallReader for MistralReader {
    fn feed(&mut self, character: char, emit: &mut Emit) -> Verdict {
        if !matches!(self.at, At::Arguments(_) | At::Spoiled) {
            self.raw.push(character);
        }
        match &mut self.at {
            At::Start => match character {
                '[' => self.go(At::List { comma: true }),
                '{' => self.begin_object(),
                space if space.is_whitespace() => Verdict::More,
                first if in_name(first) => self.go(At::Name(first.into())),
                _ => self.stop(),
            },
            At::List { comma } => match character {
                '{' if *comma => self.begin_object(),
                ',' if !*comma => self.go(At::List { comma: true }),
                ']' if self.calls > 0 => Verdict::Over(String::new()),
                space if space.is_whitespace() => Verdict::More,
                _ => self.stop(),
            },
            At::Object(object) => {
                let heard = object.feed(character, emit);
                self.heard(heard, emit)
            }
            At::Name(name) => {
                let name = std::mem::take(name);
                self.in_name(name, character, emit)
            }
            At::Arguments(arguments) => match arguments.feed(character, emit) {
                Live::On => Verdict::More,
                Live::Ended | Live::EndedByMarker => {
                    emit.end();
                    Verdict::Over(String::new())
                }
            },
            At::Spoiled => {
                emit.arguments(character.encode_utf8(&mut [0; 4]));
                Verdict::More
            }
        }
    }

    fn finish(&mut self, emit: &mut Emit) -> Verdict {
        match &mut self.at {
            At::Object(object) => match object.finish() {
                Object::NoCall(_) => self.stop(),
                _ => Verdict::Over(String::new()),
            },
            At::Arguments(arguments) => {
                arguments.finish(emit);
                Verdict::Over(String::new())
            }
            At::Spoiled => Verdict::Over(String::new()),
            At::Start | At::List { .. } | At::Name(_) => self.stop(),
        }
    }
}
