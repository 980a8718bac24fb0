//! What a model replied, taken apart while it grows: what it thought, what it says, which tools it
//! calls with which arguments.
//!
//! [`Dialect`] says how a model marks these; [`ReplyParser`] reads a reply in any pieces. Nothing of
//! a reply is lost or said twice: what looks like a call and is none comes out as content.

mod call;
mod deepseek;
mod dialect;
mod function;
mod grammar;
mod json;
mod live;
mod llama;
mod marker;
mod mistral;
mod object;
mod python;
mod pythonic;
mod tagged;
mod tools;

use std::sync::Arc;

use call::{CallReader, Emit, NewReader, Verdict};
pub use dialect::Dialect;
pub use grammar::{Beside, FORM, NoGrammar, ReplyGrammar, ReplyRules, ThoughtsFirst};
use marker::{Seen, Watch};
pub use tools::Tools;

/// A part of a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplyEvent {
    /// More of what the model thinks before it answers.
    Reasoning(String),
    /// More of the answer itself.
    Content(String),
    /// A call begins.
    CallBegin {
        /// From 0, in the order of the reply.
        index: usize,
        /// The tool's name as the model wrote it: perhaps none that was offered.
        name: String,
    },
    /// More of the arguments of that call: all fragments together are the text of a JSON object,
    /// unless the model wrote no JSON.
    CallArguments {
        /// Which call.
        index: usize,
        /// Text to append.
        fragment: String,
    },
    /// The call is complete. One that was cut off has no end, and its arguments are no whole JSON,
    /// so that nobody takes half a call for one.
    CallEnd {
        /// Which call.
        index: usize,
    },
}

/// Most that looked like calls and were none before the rest is taken for text: what is no call is
/// read again, and a reply of nothing but openings must not be read again and again.
const MOST_MISTAKES: usize = 64;

/// Takes a reply apart while it grows.
#[derive(Debug)]
pub struct ReplyParser {
    dialect: Dialect,
    /// The tools on offer; None reads calls as text.
    tools: Option<Arc<Tools>>,
    state: State,
    /// Nothing but white space was read so far.
    fresh: bool,
    /// White space at this place belongs to the marker before it.
    trim: bool,
    /// White space of the content that belongs to the call after it, if one follows.
    space: String,
    mistakes: usize,
    emit: Emit,
}

#[derive(Debug)]
enum State {
    Thoughts(Watch),
    Content(Watch),
    Call {
        /// What announced it.
        marker: &'static str,
        reader: Box<dyn CallReader>,
    },
}

/// What a marker in the content means.
enum Means {
    Thoughts,
    Call(NewReader),
    /// Only that it is no text.
    Nothing,
}

impl ReplyParser {
    /// A reply of a model that speaks this dialect and was offered these tools. `thinking`: the
    /// prompt has begun the model's thoughts already
    /// ([`Dialect::begins_thinking`]).
    pub fn new(dialect: &Dialect, tools: Option<Arc<Tools>>, thinking: bool) -> Self {
        let mut parser = Self {
            tools: tools.filter(|_| dialect.calls.is_some()),
            dialect: dialect.clone(),
            state: State::Content(Watch::new([])),
            fresh: true,
            trim: false,
            space: String::new(),
            mistakes: 0,
            emit: Emit::default(),
        };
        match dialect.thoughts.filter(|_| thinking) {
            Some(marks) => parser.begin_thoughts(marks),
            None => parser.begin_content(),
        }
        parser
    }

    /// What comes next belongs to thoughts, or ends them.
    pub fn is_thinking(&self) -> bool {
        matches!(self.state, State::Thoughts(_))
    }

    /// Takes more of the reply; what became certain.
    pub fn push(&mut self, text: &str) -> Vec<ReplyEvent> {
        self.read(text);
        std::mem::take(&mut self.emit.events)
    }

    /// The reply is over: what was held back.
    pub fn finish(&mut self) -> Vec<ReplyEvent> {
        while let State::Call { reader, .. } = &mut self.state {
            let before = self.emit.begun;
            let verdict = reader.finish(&mut self.emit);
            let rest = self.heard(verdict, before);
            self.read(&rest);
            if matches!(&self.state, State::Call { .. }) && rest.is_empty() {
                break;
            }
        }
        let held = match &mut self.state {
            State::Thoughts(watch) | State::Content(watch) => watch.finish(),
            State::Call { .. } => String::new(),
        };
        let thoughts = matches!(self.state, State::Thoughts(_));
        for character in held.chars() {
            self.say(character, thoughts);
        }
        let space = std::mem::take(&mut self.space);
        if !thoughts {
            self.emit.content(&space);
        }
        std::mem::take(&mut self.emit.events)
    }

    fn read(&mut self, text: &str) {
        // What is to be read next stands at the end.
        let mut unread: Vec<char> = text.chars().rev().collect();
        while let Some(character) = unread.pop() {
            let again = self.feed(character);
            unread.extend(again.chars().rev());
        }
    }

    /// Takes one character; what is to be read once more.
    fn feed(&mut self, character: char) -> String {
        match &mut self.state {
            State::Call { reader, .. } => {
                let before = self.emit.begun;
                let verdict = reader.feed(character, &mut self.emit);
                self.heard(verdict, before)
            }
            State::Thoughts(watch) => {
                for seen in watch.feed(character) {
                    match seen {
                        Seen::Plain(plain) => self.say(plain, true),
                        Seen::Marker(0) => {
                            self.space.clear();
                            self.trim = true;
                            self.begin_content();
                        }
                        // Some open once more what the prompt has opened.
                        Seen::Marker(_) if self.trim => {}
                        Seen::Marker(_) => {
                            let open = self.dialect.thoughts.map_or("", |marks| marks.open);
                            open.chars().for_each(|plain| self.say(plain, true));
                        }
                    }
                }
                String::new()
            }
            State::Content(watch) => {
                let mut seen = watch.feed(character).into_iter();
                while let Some(next) = seen.next() {
                    match next {
                        Seen::Plain(plain) if self.begins_bare(plain) => {
                            return self.begin_bare(plain, seen);
                        }
                        Seen::Plain(plain) => self.say(plain, false),
                        Seen::Marker(index) => self.meet(index),
                    }
                }
                String::new()
            }
        }
    }

    /// The markers of the content, in the order of their numbers, and what they mean.
    fn meanings(&self) -> impl Iterator<Item = (&'static str, Means)> + use<'_> {
        let thoughts = self.dialect.thoughts.map(|marks| (marks.open, Means::Thoughts));
        let calls = self.dialect.calls.filter(|_| self.tools.is_some());
        let openers = calls.map_or(&[][..], |calls| calls.openers).iter();
        let calls = openers.map(|opener| (opener.marker, Means::Call(opener.reader)));
        let hidden = self.dialect.hidden.iter().map(|marker| (*marker, Means::Nothing));
        thoughts.into_iter().chain(calls).chain(hidden)
    }

    fn meet(&mut self, index: usize) {
        let Some((marker, means)) = self.meanings().nth(index) else { return };
        match (means, self.dialect.thoughts, &self.tools) {
            (Means::Thoughts, Some(marks), _) if self.fresh => self.begin_thoughts(marks),
            (Means::Call(reader), _, Some(tools)) if self.mistakes < MOST_MISTAKES => {
                self.state = State::Call { marker, reader: reader(tools.clone()) };
            }
            _ => self.say_marker(marker),
        }
    }

    /// Whether the answer begins with a character that begins a call without a marker.
    fn begins_bare(&self, character: char) -> bool {
        let bare = self.dialect.calls.filter(|_| self.tools.is_some()).and_then(|calls| calls.bare);
        let begins = self.fresh || self.trim;
        begins
            && self.emit.begun == 0
            && self.mistakes == 0
            && bare.is_some_and(|(first, _)| first == character)
    }

    /// What is to be read once more: the character and what was seen or held after it.
    fn begin_bare(&mut self, first: char, seen: impl Iterator<Item = Seen>) -> String {
        let mut again = String::from(first);
        for seen in seen {
            match seen {
                Seen::Plain(plain) => again.push(plain),
                Seen::Marker(index) => {
                    again.push_str(self.meanings().nth(index).map_or("", |(marker, _)| marker));
                }
            }
        }
        if let State::Content(watch) = &mut self.state {
            again.push_str(&watch.finish());
        }
        let bare = self.dialect.calls.and_then(|calls| calls.bare);
        if let (Some((_, reader)), Some(tools)) = (bare, &self.tools) {
            self.state = State::Call { marker: "", reader: reader(tools.clone()) };
        }
        again
    }

    fn begin_thoughts(&mut self, marks: &'static dialect::Thoughts) {
        self.fresh = false;
        self.trim = true;
        self.space.clear();
        self.state = State::Thoughts(Watch::new([marks.close, marks.open]));
    }

    fn begin_content(&mut self) {
        let watch = Watch::new(self.meanings().map(|(marker, _)| marker));
        self.state = State::Content(watch);
    }

    /// Says a character; white space only once something follows it.
    fn say(&mut self, character: char, thoughts: bool) {
        if character.is_whitespace() {
            if !self.trim {
                self.space.push(character);
            }
            return;
        }
        self.fresh = false;
        self.trim = false;
        let mut text = std::mem::take(&mut self.space);
        text.push(character);
        match thoughts {
            true => self.emit.reasoning(&text),
            false => self.emit.content(&text),
        }
    }

    /// Says a marker that means nothing at its place, unless it is none of the model's words.
    fn say_marker(&mut self, marker: &str) {
        if !self.dialect.hidden.contains(&marker) {
            marker.chars().for_each(|plain| self.say(plain, false));
        }
    }

    /// What a reader says; what is to be read once more. `before`: calls begun before it.
    fn heard(&mut self, verdict: Verdict, before: usize) -> String {
        let State::Call { marker, .. } = &self.state else { return String::new() };
        let marker = *marker;
        if self.emit.begun > before {
            self.space.clear();
            self.fresh = false;
            self.trim = true;
        }
        match verdict {
            Verdict::More => String::new(),
            Verdict::Over(rest) => {
                self.begin_content();
                rest
            }
            Verdict::NoCall(raw) => {
                self.mistakes += 1;
                self.fresh = false;
                self.begin_content();
                if marker.is_empty() {
                    // What the whole reply begins with.
                    let mut characters = raw.chars();
                    characters.next().into_iter().for_each(|first| self.say(first, false));
                    return characters.as_str().to_owned();
                }
                self.say_marker(marker);
                raw
            }
        }
    }
}
