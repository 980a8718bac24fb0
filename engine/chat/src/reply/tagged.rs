//! Calls between `<tool_call>` and `</tool_call>`: JSON objects as Hermes and Qwen write them, or
//! `<function=…>` elements as Qwen3-Coder and Seed do. Models that learned one sometimes write the
//! other, so both are read.

use std::sync::Arc;

use super::call::{CallReader, Emit, Verdict};
use super::function::{FUNCTION, Function, FunctionReader};
use super::marker::{Seen, Watch};
use super::object::{Object, ObjectReader};
use super::tools::Tools;

/// Reads what follows the opening tag, or an opening `<function=` that stands alone.
#[derive(Debug)]
pub(super) struct TaggedReader {
    close: &'static str,
    tools: Arc<Tools>,
    at: At,
    /// White space before the call being read.
    lead: String,
    calls: usize,
}

/// More white space than this between two calls is no white space between calls.
const MOST_SPACE: usize = 1024;

#[derive(Debug)]
enum At {
    /// Between calls: white space, brackets too many, and what could be the next thing.
    Between(String),
    Object(ObjectReader),
    /// Arguments that are no JSON any more, up to the closing tag.
    Spoiled(Watch),
    Function(FunctionReader),
}

impl TaggedReader {
    pub(super) fn new(close: &'static str, tools: Arc<Tools>) -> Self {
        Self { close, tools, at: At::Between(String::new()), lead: String::new(), calls: 0 }
    }

    /// Without the tag around it.
    pub(super) fn bare_function(close: &'static str, tools: Arc<Tools>) -> Self {
        let at = At::Function(FunctionReader::bare(tools.clone()));
        Self { at, ..Self::new(close, tools) }
    }

    fn between(&mut self, mut read: String, character: char) -> Verdict {
        read.push(character);
        let word = read.trim_start();
        // A bracket too many is a slip that models make; it is no text.
        let word = if self.calls > 0 { word.trim_start_matches(['}', ' ', '\n']) } else { word };
        if word == self.close {
            return match self.calls {
                0 => Verdict::NoCall(read),
                _ => Verdict::Over(String::new()),
            };
        }
        let at = match word {
            FUNCTION => At::Function(FunctionReader::tagged(self.tools.clone())),
            "{" => {
                let mut object = ObjectReader::announced();
                // An opening bracket alone says nothing.
                let _ = object.feed('{', &mut Emit::default());
                At::Object(object)
            }
            _ if read.len() > MOST_SPACE => return self.stop(read),
            _ if self.close.starts_with(word) || FUNCTION.starts_with(word) => {
                self.at = At::Between(read);
                return Verdict::More;
            }
            _ => return self.stop(read),
        };
        read.truncate(read.len() - word.len());
        self.lead = read;
        self.at = at;
        Verdict::More
    }

    /// These characters are no call, nor what may stand between calls.
    fn stop(&self, rest: String) -> Verdict {
        match self.calls {
            0 => Verdict::NoCall(rest),
            _ => Verdict::Over(rest),
        }
    }

    /// A call is over, and this comes next.
    fn next(&mut self, rest: &str, emit: &mut Emit) -> Verdict {
        self.calls += 1;
        self.at = At::Between(String::new());
        let mut characters = rest.chars();
        while let Some(character) = characters.next() {
            match self.feed(character, emit) {
                Verdict::More => {}
                Verdict::Over(more) => return Verdict::Over(more + characters.as_str()),
                Verdict::NoCall(more) => return Verdict::NoCall(more + characters.as_str()),
            }
        }
        Verdict::More
    }

    /// What was taken for a call is none.
    fn no_call(&mut self, raw: &str) -> Verdict {
        let lead = std::mem::take(&mut self.lead);
        self.stop(lead + raw)
    }

    fn heard_object(&mut self, object: Object, emit: &mut Emit) -> Verdict {
        match object {
            Object::On => Verdict::More,
            Object::Call(rest) => self.next(&rest, emit),
            Object::NoCall(raw) => self.no_call(&raw),
            Object::Spoiled(character) => {
                let mut watch = Watch::new([self.close]);
                let over = spoil(&mut watch, character, emit);
                self.at = At::Spoiled(watch);
                if over { Verdict::Over(String::new()) } else { Verdict::More }
            }
        }
    }

    fn heard_function(&mut self, function: Function, bare: bool, emit: &mut Emit) -> Verdict {
        match function {
            Function::On => Verdict::More,
            Function::Call(rest) => self.next(&rest, emit),
            // Whoever saw it begin knows how it opened.
            Function::NoCall(raw) if bare => Verdict::NoCall(raw),
            Function::NoCall(raw) => self.no_call(&format!("{FUNCTION}{raw}")),
        }
    }
}

/// Sends a character of arguments that are no JSON; true where the closing tag was met.
fn spoil(watch: &mut Watch, character: char, emit: &mut Emit) -> bool {
    for seen in watch.feed(character) {
        match seen {
            Seen::Plain(plain) => emit.arguments(plain.encode_utf8(&mut [0; 4])),
            Seen::Marker(_) => {
                emit.end();
                return true;
            }
        }
    }
    false
}

impl CallReader for TaggedReader {
    fn feed(&mut self, character: char, emit: &mut Emit) -> Verdict {
        match &mut self.at {
            At::Between(read) => {
                let read = std::mem::take(read);
                self.between(read, character)
            }
            At::Object(object) => {
                let heard = object.feed(character, emit);
                self.heard_object(heard, emit)
            }
            At::Spoiled(watch) => match spoil(watch, character, emit) {
                true => Verdict::Over(String::new()),
                false => Verdict::More,
            },
            At::Function(function) => {
                let bare = function.is_bare();
                let heard = function.feed(character, emit);
                self.heard_function(heard, bare, emit)
            }
        }
    }

    fn finish(&mut self, emit: &mut Emit) -> Verdict {
        match &mut self.at {
            At::Between(read) => {
                let read = std::mem::take(read);
                self.stop(read)
            }
            At::Object(object) => match object.finish() {
                Object::NoCall(raw) => self.no_call(&raw),
                _ => Verdict::Over(String::new()),
            },
            At::Spoiled(watch) => {
                emit.arguments(&watch.finish());
                Verdict::Over(String::new())
            }
            At::Function(function) => {
                let bare = function.is_bare();
                match function.finish(emit) {
                    Function::NoCall(raw) if bare => Verdict::NoCall(raw),
                    Function::NoCall(raw) => self.no_call(&format!("{FUNCTION}{raw}")),
                    _ => Verdict::Over(String::new()),
                }
            }
        }
    }
}
