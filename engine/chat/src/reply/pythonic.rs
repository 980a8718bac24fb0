//! Calls written as Python: `[f(a=1), g(b="x")]`.

use std::sync::Arc;

use serde_json::Value;

use super::call::{CallReader, Emit, LONGEST_NAME, Reader, Verdict};
use super::marker::{Expect, Met};
use super::python::{in_name, read_arguments};
use super::tools::Tools;

/// Reads what follows an opening marker, or the opening bracket with which a whole reply begins.
/// A call is sent when it is whole: Python's literals are no JSON.
pub(super) type PythonicReader = Reader<At, List>;

#[derive(Debug)]
pub(super) struct List {
    /// Without a marker only tools on offer are called.
    known: Option<Arc<Tools>>,
    /// The marker after the list; empty where there is none.
    close: &'static [&'static str],
}

#[derive(Debug)]
pub(super) enum At {
    /// Before the list.
    Start,
    Name(String),
    Arguments {
        name: String,
        text: String,
        depth: usize,
        quote: Option<char>,
        escaped: bool,
    },
    /// After a call.
    Next,
    /// After the list, where a marker closes it.
    Close(Expect),
}

impl PythonicReader {
    pub(super) fn announced(close: &'static [&'static str]) -> Self {
        Self::beginning(At::Start, List { known: None, close })
    }

    /// Takes the opening bracket first, too.
    pub(super) fn bare(tools: Arc<Tools>) -> Self {
        Self::beginning(At::Start, List { known: Some(tools), close: &[] })
    }

    fn list_over(&mut self) -> Verdict {
        match self.more.close {
            [] => Verdict::Over(String::new()),
            close => self.go(At::Close(Expect::new(close))),
        }
    }

    fn in_name(&mut self, mut name: String, character: char) -> Verdict {
        if character.is_whitespace() && name.is_empty() {
            return self.go(At::Name(name));
        }
        if character == ']' && name.is_empty() && self.calls > 0 {
            return self.list_over(); // Python allows a comma after the last.
        }
        if character == '(' && !name.is_empty() {
            if self.more.known.as_ref().is_some_and(|tools| !tools.has(&name)) {
                return self.stop();
            }
            let text = String::new();
            return self.go(At::Arguments { name, text, depth: 0, quote: None, escaped: false });
        }
        if !in_name(character) || name.len() >= LONGEST_NAME {
            return self.stop();
        }
        name.push(character);
        self.go(At::Name(name))
    }
}

impl CallReader for PythonicReader {
    fn feed(&mut self, character: char, emit: &mut Emit) -> Verdict {
        self.raw.push(character);
        match &mut self.at {
            At::Start => match character {
                '[' => self.go(At::Name(String::new())),
                space if space.is_whitespace() && self.raw.len() <= LONGEST_NAME => Verdict::More,
                _ => self.stop(),
            },
            At::Name(name) => {
                let name = std::mem::take(name);
                self.in_name(name, character)
            }
            At::Arguments { name, text, depth, quote, escaped } => {
                match (*quote, character) {
                    _ if std::mem::take(escaped) => {}
                    (Some(_), '\\') => *escaped = true,
                    (Some(open), end) if open == end => *quote = None,
                    (Some(_), _) => {}
                    (None, '"' | '\'') => *quote = Some(character),
                    (None, '(' | '[' | '{') => *depth += 1,
                    (None, ')') if *depth == 0 => {
                        let Some(arguments) = read_arguments(text) else { return self.stop() };
                        emit.whole(name, &Value::from(arguments).to_string());
                        self.calls += 1;
                        self.raw.clear();
                        return self.go(At::Next);
                    }
                    (None, ')' | ']' | '}') if *depth == 0 => return self.stop(),
                    (None, ')' | ']' | '}') => *depth -= 1,
                    (None, _) => {}
                }
                text.push(character);
                Verdict::More
            }
            At::Next => match character {
                ',' => self.go(At::Name(String::new())),
                ']' => self.list_over(),
                space if space.is_whitespace() && self.raw.len() <= LONGEST_NAME => Verdict::More,
                _ => self.stop(),
            },
            At::Close(expect) => match expect.feed(character) {
                Met::Maybe => Verdict::More,
                Met::Word(_) => Verdict::Over(String::new()),
                Met::Other(rest) => Verdict::Over(rest),
            },
        }
    }

    fn finish(&mut self, _: &mut Emit) -> Verdict {
        match self.at {
            At::Close(_) => Verdict::Over(String::new()),
            _ => self.stop(),
        }
    }
}
