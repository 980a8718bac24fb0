//! One call written as elements: `<function=f><parameter=a>…</parameter></function>`.

use std::sync::Arc;

use super::call::{Emit, LONGEST_NAME};
use super::json::quote;
use super::marker::{Expect, Met, Seen, Watch};
use super::tools::{Tools, Types};

pub(super) const FUNCTION: &str = "<function=";
const PARAMETER: &str = "<parameter=";
const PARAMETER_END: &str = "</parameter>";
const FUNCTION_END: &str = "</function>";

/// Reads what follows `<function=`.
#[derive(Debug)]
pub(super) struct FunctionReader {
    tools: Arc<Tools>,
    /// No tag around it announced a call: only a tool on offer may be named.
    bare: bool,
    /// All of it, until it is sure to be a call.
    raw: String,
    begun: bool,
    name: String,
    parameter: String,
    /// The parameters before this one.
    parameters: usize,
    at: At,
}

#[derive(Debug)]
enum At {
    Name,
    /// After the name or a parameter.
    Body(Expect),
    Parameter,
    Value(Value),
    /// After what may be the end of a value: with the word that it is.
    ValueEnd(Value, &'static str, Expect),
}

/// A value being read.
#[derive(Debug)]
struct Value {
    types: Types,
    /// Sent as it comes; otherwise kept until it is whole.
    live: bool,
    kept: String,
    watch: Watch,
    /// The newline after the opening tag is no part of it.
    fresh: bool,
    /// Nor is the one before the closing tag.
    newline: bool,
}

/// How far a function is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Function {
    /// It goes on.
    On,
    /// It is over; these characters belong to what follows.
    Call(String),
    /// It is no call: all of it after the opening.
    NoCall(String),
}

impl FunctionReader {
    pub(super) fn tagged(tools: Arc<Tools>) -> Self {
        Self {
            tools,
            bare: false,
            raw: String::new(),
            begun: false,
            name: String::new(),
            parameter: String::new(),
            parameters: 0,
            at: At::Name,
        }
    }

    pub(super) fn bare(tools: Arc<Tools>) -> Self {
        Self { bare: true, ..Self::tagged(tools) }
    }

    pub(super) fn is_bare(&self) -> bool {
        self.bare
    }

    /// Takes one character.
    pub(super) fn feed(&mut self, character: char, emit: &mut Emit) -> Function {
        if !self.begun {
            self.raw.push(character);
        }
        match std::mem::replace(&mut self.at, At::Name) {
            At::Name => self.in_name(character),
            At::Body(expect) => self.in_body(expect, character, emit),
            At::Parameter => self.in_parameter(character, emit),
            At::Value(value) => self.in_value(value, character, emit),
            At::ValueEnd(value, end, expect) => {
                self.after_value(value, end, expect, character, emit)
            }
        }
    }

    fn go(&mut self, at: At) -> Function {
        self.at = at;
        Function::On
    }

    fn in_name(&mut self, character: char) -> Function {
        if character == '>' {
            self.name = self.name.trim().to_owned();
            if !self.name.is_empty() && (!self.bare || self.tools.has(&self.name)) {
                return self.go(At::Body(Expect::new(BODY)));
            }
        } else if character != '\n' && character != '<' && self.name.len() < LONGEST_NAME {
            self.name.push(character);
            return self.go(At::Name);
        }
        Function::NoCall(std::mem::take(&mut self.raw))
    }

    fn in_body(&mut self, mut expect: Expect, character: char, emit: &mut Emit) -> Function {
        let met = expect.feed(character);
        if let (Met::Word(_), false) = (&met, self.begun) {
            emit.begin(&self.name);
            self.begun = true;
            self.raw = String::new();
        }
        match met {
            Met::Maybe => self.go(At::Body(expect)),
            Met::Word(0) => {
                self.parameter.clear();
                self.go(At::Parameter)
            }
            Met::Word(_) => self.over(String::new(), emit),
            Met::Other(rest) if self.begun => self.over(rest, emit),
            Met::Other(_) => Function::NoCall(std::mem::take(&mut self.raw)),
        }
    }

    fn over(&mut self, rest: String, emit: &mut Emit) -> Function {
        emit.arguments(if self.parameters == 0 { "{}" } else { "}" });
        emit.end();
        Function::Call(rest)
    }

    fn in_parameter(&mut self, character: char, emit: &mut Emit) -> Function {
        if character == '>' && !self.parameter.trim().is_empty() {
            let name = self.parameter.trim();
            emit.arguments(if self.parameters == 0 { "{" } else { ", " });
            emit.arguments(&quote(name));
            emit.arguments(": ");
            self.parameters += 1;
            let types = self.tools.types(&self.name, name);
            let live = types.only_text();
            if live {
                emit.arguments("\"");
            }
            let watch = Watch::new([PARAMETER_END, FUNCTION_END]);
            let kept = String::new();
            let value = Value { types, live, kept, watch, fresh: true, newline: false };
            return self.go(At::Value(value));
        }
        if character == '>' || character == '\n' || self.parameter.len() >= LONGEST_NAME {
            let rest = format!("{PARAMETER}{}{character}", self.parameter);
            return self.over(rest, emit);
        }
        self.parameter.push(character);
        self.go(At::Parameter)
    }

    fn in_value(&mut self, mut value: Value, character: char, emit: &mut Emit) -> Function {
        for seen in value.watch.feed(character) {
            match seen {
                Seen::Plain(plain) => value.put(plain, emit),
                Seen::Marker(0) => {
                    let at = At::ValueEnd(value, PARAMETER_END, Expect::new(AFTER_PARAMETER));
                    return self.go(at);
                }
                Seen::Marker(_) => {
                    let at = At::ValueEnd(value, FUNCTION_END, Expect::new(AFTER_FUNCTION));
                    return self.go(at);
                }
            }
        }
        self.go(At::Value(value))
    }

    /// A closing tag ends a value only where what follows it could follow; a file that speaks of
    /// such tags may be a value too.
    fn after_value(
        &mut self,
        mut value: Value,
        end: &'static str,
        mut expect: Expect,
        character: char,
        emit: &mut Emit,
    ) -> Function {
        match expect.feed(character) {
            Met::Maybe => self.go(At::ValueEnd(value, end, expect)),
            Met::Word(0) if end == PARAMETER_END => {
                value.end(emit);
                self.parameter.clear();
                self.go(At::Parameter)
            }
            Met::Word(word) => {
                value.end(emit);
                let rest = match (end == PARAMETER_END, word) {
                    (true, 1) => String::new(),
                    (true, word) => AFTER_PARAMETER[word].to_owned(),
                    (false, word) => AFTER_FUNCTION[word].to_owned(),
                };
                self.over(rest, emit)
            }
            Met::Other(rest) => {
                end.chars().for_each(|plain| value.put(plain, emit));
                self.at = At::Value(value);
                let mut characters = rest.chars();
                while let Some(character) = characters.next() {
                    match self.feed(character, emit) {
                        Function::On => {}
                        Function::Call(more) => return Function::Call(more + characters.as_str()),
                        Function::NoCall(raw) => {
                            return Function::NoCall(raw + characters.as_str());
                        }
                    }
                }
                Function::On
            }
        }
    }

    /// Nothing follows. A call that was cut off stays without an end: what it was to be is not
    /// known.
    pub(super) fn finish(&mut self, emit: &mut Emit) -> Function {
        match std::mem::replace(&mut self.at, At::Name) {
            _ if !self.begun => return Function::NoCall(std::mem::take(&mut self.raw)),
            At::Value(mut value) => value.cut(emit),
            // Whether the tag ended the value is not known either.
            At::ValueEnd(mut value, FUNCTION_END, _) => {
                FUNCTION_END.chars().for_each(|plain| value.put(plain, emit));
                value.cut(emit);
            }
            At::ValueEnd(mut value, ..) => value.end(emit),
            _ => {}
        }
        Function::Call(String::new())
    }
}

const BODY: &[&str] = &[PARAMETER, FUNCTION_END];
const AFTER_PARAMETER: &[&str] = &[PARAMETER, FUNCTION_END, "</tool_call>", "</seed:tool_call>"];
const AFTER_FUNCTION: &[&str] = &["</tool_call>", "</seed:tool_call>"];

impl Value {
    fn put(&mut self, character: char, emit: &mut Emit) {
        if std::mem::take(&mut self.fresh) && character == '\n' {
            return;
        }
        if std::mem::take(&mut self.newline) {
            self.say('\n', emit);
        }
        match character {
            '\n' => self.newline = true,
            character => self.say(character, emit),
        }
    }

    fn say(&mut self, character: char, emit: &mut Emit) {
        if self.live {
            let quoted = quote(character.encode_utf8(&mut [0; 4]));
            emit.arguments(&quoted[1..quoted.len() - 1]);
        } else {
            self.kept.push(character);
        }
    }

    fn end(&mut self, emit: &mut Emit) {
        match self.live {
            true => emit.arguments("\""),
            false => emit.arguments(&self.types.read(&self.kept)),
        }
    }

    /// It was cut off: it goes out as it is, so that nothing is lost and nothing looks whole.
    fn cut(&mut self, emit: &mut Emit) {
        let held = self.watch.finish();
        held.chars().for_each(|character| self.put(character, emit));
        emit.arguments(&self.kept);
    }
}
