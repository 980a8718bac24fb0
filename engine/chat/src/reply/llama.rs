//! Calls as Llama 3 writes them: `{"name": "f", "parameters": {…}}`, one after another, perhaps
//! after `<|python_tag|>`.

use std::sync::Arc;

use super::call::{CallReader, Emit, Verdict};
use super::object::{Object, ObjectReader};
use super::tools::Tools;

/// Reads what follows the tag, or the opening bracket with which a whole reply begins.
#[derive(Debug)]
pub(super) struct LlamaReader {
    tools: Arc<Tools>,
    /// No tag announced a call.
    bare: bool,
    at: At,
    calls: usize,
}

#[derive(Debug)]
enum At {
    /// Between calls, with the white space and the one separator read there.
    Between(String),
    Object {
        lead: String,
        object: ObjectReader,
    },
    /// Arguments that are no JSON any more: nothing tells where they end.
    Spoiled,
}

/// More white space than this between two calls is no white space between calls.
const MOST_SPACE: usize = 1024;

impl LlamaReader {
    pub(super) fn tagged(tools: Arc<Tools>) -> Self {
        Self { tools, bare: false, at: At::Between(String::new()), calls: 0 }
    }

    /// Takes the opening bracket first, too.
    pub(super) fn bare(tools: Arc<Tools>) -> Self {
        Self { bare: true, ..Self::tagged(tools) }
    }

    fn stop(&self, rest: String) -> Verdict {
        Verdict::without_more(rest, self.calls)
    }

    fn between(&mut self, mut lead: String, character: char, emit: &mut Emit) -> Verdict {
        let separates =
            self.calls > 0 && matches!(character, ';' | ',') && !lead.contains([';', ',']);
        if character == '{' {
            // After the first, as before a bare one, only the object itself shows what it is.
            let mut object = match self.bare || self.calls > 0 {
                true => ObjectReader::bare(self.tools.clone()),
                false => ObjectReader::announced(),
            };
            let _ = object.feed(character, emit);
            self.at = At::Object { lead, object };
            return Verdict::More;
        }
        lead.push(character);
        if (character.is_whitespace() || separates) && lead.len() <= MOST_SPACE {
            self.at = At::Between(lead);
            return Verdict::More;
        }
        self.stop(lead)
    }
}

impl CallReader for LlamaReader {
    fn feed(&mut self, character: char, emit: &mut Emit) -> Verdict {
        match &mut self.at {
            At::Between(lead) => {
                let lead = std::mem::take(lead);
                self.between(lead, character, emit)
            }
            At::Object { lead, object } => match object.feed(character, emit) {
                Object::On => Verdict::More,
                Object::Call(rest) => {
                    self.calls += 1;
                    self.at = At::Between(String::new());
                    match rest.chars().next() {
                        Some(character) => self.feed(character, emit),
                        None => Verdict::More,
                    }
                }
                Object::NoCall(raw) => {
                    let rest = std::mem::take(lead) + &raw;
                    self.stop(rest)
                }
                Object::Spoiled(character) => {
                    emit.arguments(character.encode_utf8(&mut [0; 4]));
                    self.at = At::Spoiled;
                    Verdict::More
                }
            },
            At::Spoiled => {
                emit.arguments(character.encode_utf8(&mut [0; 4]));
                Verdict::More
            }
        }
    }

    fn finish(&mut self, _: &mut Emit) -> Verdict {
        match &mut self.at {
            At::Between(lead) => {
                let lead = std::mem::take(lead);
                self.stop(lead)
            }
            At::Object { lead, object } => match object.finish() {
                Object::NoCall(raw) => {
                    let rest = std::mem::take(lead) + &raw;
                    self.stop(rest)
                }
                _ => Verdict::Over(String::new()),
            },
            At::Spoiled => Verdict::Over(String::new()),
        }
    }
}
