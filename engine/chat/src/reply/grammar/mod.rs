//! What a reply may be, as a grammar: calls of tools in the model's own layout, with arguments that
//! follow their schemas, alone or beside text or an answer of a certain form.
//!
//! The grammars are in llguidance's dialect of Lark. Marks that are control tokens stand in them by
//! their numbers, all others by their text. Whatever a grammar allows, a
//! [`ReplyParser`](super::ReplyParser) of the same dialect reads as it was meant.

mod arguments;
mod lark;
mod layout;
mod text;

use serde_json::{Map, Value};

use super::dialect::{Dialect, Thoughts};
use super::tools::{Tool, Tools};
use lark::{escaped, literal, regex, without};
use layout::{ARGUMENTS, ID, NAME};
pub(super) use layout::{
    DEEPSEEK, HERMES, LLAMA3_JSON, Layout, Layouts, MISTRAL, PYTHONIC, QWEN3_CODER, SEED,
};

/// See the module.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplyGrammar {
    /// The rules; `@name` is a schema of that name, or [`FORM`].
    pub lark: String,
    /// JSON schemas by the names that the rules have for them.
    pub schemas: Vec<(String, Value)>,
    /// Bytes of all patterns that came from schemas into the rules.
    pub pattern_bytes: usize,
}

/// What the rules call the form of an answer that is no call.
pub const FORM: &str = "form";

/// What a reply may be.
#[derive(Debug, Clone, Copy)]
pub struct ReplyRules<'a> {
    /// Those that may be called.
    pub tools: &'a Tools,
    /// Only this one of them.
    pub only: Option<&'a str>,
    /// One call at most.
    pub one_call: bool,
    /// What stands beside calls.
    pub beside: Beside,
    /// Whether thoughts come first.
    pub thoughts: ThoughtsFirst,
}

/// What a reply may hold that is no call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beside {
    /// Nothing: it is calls.
    Nothing,
    /// Any text, before, between and after calls. A tool that is not strict may then have any
    /// arguments.
    Text,
    /// An answer of the form that the grammar calls [`FORM`], instead of calls.
    Form,
}

/// Whether a reply begins with thoughts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThoughtsFirst {
    /// It does not.
    No,
    /// The prompt has begun them, and they must end.
    Begun,
    /// It may.
    Perhaps,
}

/// Why there is no such grammar, in a sentence that goes on from what cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoGrammar {
    /// This model's calls have no mark to know them by.
    #[error("this model's calls have no mark of their own, so that no text can stand beside them")]
    NoMark,
    /// It calls no tools.
    #[error("this model calls no tools")]
    NoCalls,
    /// A tool's schema asks for what cannot be held to in this model's layout.
    #[error("{why}")]
    Schema {
        /// The tool's place in the list.
        tool: usize,
        /// What it is.
        why: String,
    },
}

impl NoGrammar {
    fn schema(why: impl Into<String>) -> Self {
        Self::Schema { tool: 0, why: why.into() }
    }

    fn keyword(keyword: &str) -> Self {
        Self::schema(format!(
            "it uses \"{keyword}\" where this model writes a value without quotes, which is not \
             supported here; leave it out"
        ))
    }

    fn of(self, index: usize) -> Self {
        match self {
            Self::Schema { why, .. } => Self::Schema { tool: index, why },
            other => other,
        }
    }
}

impl Dialect {
    /// The grammar of replies that keep to these rules.
    pub fn grammar(&self, rules: &ReplyRules<'_>) -> Result<ReplyGrammar, NoGrammar> {
        let layout = self.layout.ok_or(NoGrammar::NoCalls)?;
        let beginning = layout.beginning();
        let mark = self.markers().find(|mark| beginning.starts_with(mark));
        if mark.is_none() && rules.beside != Beside::Nothing {
            return Err(NoGrammar::NoMark);
        }
        let mut writer = Writer {
            dialect: self,
            layout,
            said: "",
            lark: String::new(),
            schemas: Vec::new(),
            pattern_bytes: 0,
        };
        match (rules.beside, mark) {
            (Beside::Text, Some(mark)) => writer.within_text(rules.thoughts, mark),
            (beside, _) => {
                let thoughts = writer.thoughts(rules.thoughts);
                let form =
                    if beside == Beside::Form { format!(" | @{FORM}") } else { String::new() };
                writer.rule("start", &format!("{thoughts} (calls{form})"));
                writer.calls(rules.one_call);
            }
        }
        writer.rule("ID", "/[a-zA-Z0-9]{9}/");
        writer.shared();
        let wanted = |tool: &&(usize, &Tool)| rules.only.is_none_or(|only| tool.1.name == only);
        let tools: Vec<(usize, &Tool)> = rules.tools.iter().enumerate().collect();
        let tools: Vec<_> = tools.iter().filter(wanted).collect();
        for (index, tool) in &tools {
            let held = rules.beside != Beside::Text || tool.strict;
            writer.call(*index, tool, held).map_err(|error| error.of(*index))?;
        }
        let calls: Vec<String> = tools.iter().map(|(index, _)| format!("t{index}")).collect();
        writer.rule("call", &calls.join(" | "));
        let Writer { lark, schemas, pattern_bytes, .. } = writer;
        Ok(ReplyGrammar { lark, schemas, pattern_bytes })
    }

    /// Whether a mark tells calls from text, so that other things may be said beside them.
    pub fn marks_calls(&self) -> bool {
        let beginning = self.layout.map(Layout::beginning);
        beginning.is_some_and(|text| self.markers().any(|mark| text.starts_with(mark)))
    }

    /// A mark's number, where it is a control token.
    fn token(&self, mark: &str) -> Option<u32> {
        let place = self.hidden.iter().position(|hidden| *hidden == mark)?;
        Some(self.shown.get(place)?.0)
    }

    /// A text with the marks in it, as a sequence of literals and tokens.
    fn sequence(&self, text: &str) -> String {
        let (mut parts, mut rest) = (Vec::new(), text);
        while !rest.is_empty() {
            let met = self.hidden.iter().filter_map(|mark| Some((rest.find(mark)?, *mark))).min();
            let (plain, mark) = met.map_or((rest, ""), |(at, mark)| (&rest[..at], mark));
            if !plain.is_empty() {
                parts.push(literal(plain));
            }
            parts.extend(self.token(mark).map(|token| format!("<[{token}]>")));
            rest = &rest[plain.len() + mark.len()..];
        }
        parts.join(" ")
    }
}

/// A schema of a part of `root`, with what it may refer to.
fn within(schema: &Value, root: &Value) -> Value {
    let mut part = match schema {
        Value::Object(rules) => rules.clone(),
        _ => Map::new(),
    };
    for shared in ["$defs", "definitions"] {
        if let Some(definitions) = root.get(shared).filter(|_| !part.contains_key(shared)) {
            part.insert(shared.into(), definitions.clone());
        }
    }
    part.into()
}

struct Writer<'a> {
    dialect: &'a Dialect,
    layout: &'static Layout,
    /// The mark of calls, where it stands before their rule and not in it.
    said: &'static str,
    lark: String,
    schemas: Vec<(String, Value)>,
    pattern_bytes: usize,
}

/// White space after thoughts.
const GAP: &str = "/[ \\n]{1,4}/";

impl Writer<'_> {
    fn rule(&mut self, name: &str, body: &str) {
        self.lark.push_str(&format!("{name}: {body}\n"));
    }

    /// A text up to and with this one, which it does not hold before: `text` says what it may be.
    fn up_to(&mut self, name: &str, text: &str, end: &str) {
        let terminal = name.to_uppercase();
        self.rule(&terminal, text);
        self.rule(&format!("{name}[suffix={}]", literal(end)), &terminal);
    }

    /// Thoughts and the white space after them, as a part of a rule.
    fn thoughts(&mut self, first: ThoughtsFirst) -> &'static str {
        let Some(marks) = self.dialect.thoughts else { return "" };
        self.rule("GAP", GAP);
        match first {
            ThoughtsFirst::No => "",
            ThoughtsFirst::Begun => {
                self.thinking(marks, "");
                "thinking GAP?"
            }
            ThoughtsFirst::Perhaps => {
                self.thinking(marks, marks.open);
                "(thinking GAP?)?"
            }
        }
    }

    /// The rule of thoughts that begin with this mark, if with any.
    fn thinking(&mut self, marks: &Thoughts, open: &str) {
        let token = |mark| self.dialect.token(mark).map(|token| format!("<[{token}]>"));
        let (opening, closing) = (token(open), token(marks.close));
        let said = if opening.is_some() { "" } else { open };
        let text = format!("(?s:{}.*)", escaped(said));
        let opening = opening.unwrap_or_default();
        match closing {
            Some(closing) => {
                // A text that may be empty is none where it is.
                let optional = if said.is_empty() { "?" } else { "" };
                self.rule("THOUGHTS", &regex(&text));
                self.rule("thinking", &format!("{opening} THOUGHTS{optional} {closing}"));
            }
            None => {
                self.up_to("thoughts", &regex(&text), marks.close);
                self.rule("thinking", &format!("{opening} thoughts"));
            }
        }
    }

    /// Calls, one or more. What stands before them, if anything, is the mark `said`.
    fn calls(&mut self, one: bool) {
        let layout = self.layout;
        let open = layout.open.strip_prefix(self.said).unwrap_or(layout.open);
        let (open, close) = (self.dialect.sequence(open), self.dialect.sequence(layout.close));
        // Where each call has the mark, a further one comes as the first did.
        let alone = one || (layout.open.is_empty() && !self.said.is_empty());
        let more = match alone {
            true => String::new(),
            false => format!("({} call)*", self.dialect.sequence(layout.between)),
        };
        self.rule("calls", &format!("{open} call {more} {close}"));
    }

    /// Any text with calls in it, which begin with this mark.
    fn within_text(&mut self, thoughts: ThoughtsFirst, mark: &'static str) {
        self.said = mark;
        let dialect = self.dialect;
        let openers = dialect.calls.map_or(&[][..], |calls| calls.openers).iter();
        let spelled =
            openers.map(|opener| opener.marker).filter(|one| dialect.token(one).is_none());
        let spelled: Vec<&str> = spelled.collect();
        // A text that begins like thoughts is thoughts, in which no mark counts.
        let perhaps = dialect.thoughts.filter(|_| thoughts == ThoughtsFirst::Perhaps);
        let spelled_thoughts = perhaps.filter(|marks| dialect.token(marks.open).is_none());
        let unlike = spelled_thoughts.map_or(String::new(), |marks| {
            format!(" & ~{}", regex(&format!("\\s*{}(?s:.*)", escaped(marks.open))))
        });
        self.text_and_calls("first", "FIRST_TEXT", &spelled, &unlike);
        self.text_and_calls("next", "TEXT", &spelled, "");
        self.rule("rest", "(next calls)* TEXT?");
        let unthought = "(first calls rest | FIRST_TEXT?)";
        let start = match (thoughts, dialect.thoughts) {
            (ThoughtsFirst::Begun, Some(marks)) => {
                self.thinking(marks, "");
                "thinking rest".to_owned()
            }
            (ThoughtsFirst::Perhaps, Some(marks)) => {
                self.thinking(marks, marks.open);
                format!("thinking rest | {unthought}")
            }
            _ => unthought.to_owned(),
        };
        self.rule("start", &start);
        self.calls(false);
    }

    /// The rules of a text without marks, and of one up to the mark that begins calls.
    fn text_and_calls(&mut self, name: &str, text: &str, spelled: &[&str], unlike: &str) {
        let mark = self.said;
        self.rule(text, &format!("{} & /(?s:.+)/{unlike}", without(spelled)));
        match self.dialect.token(mark) {
            Some(token) => self.rule(name, &format!("{text}? <[{token}]>")),
            None => {
                let others: Vec<&str> =
                    spelled.iter().copied().filter(|one| *one != mark).collect();
                self.up_to(name, &format!("{}{unlike}", without(&others)), mark);
            }
        }
    }

    /// One tool's call; `held` to its schema.
    fn call(&mut self, index: usize, tool: &Tool, held: bool) -> Result<(), NoGrammar> {
        let layout = self.layout;
        let mark = if layout.open.is_empty() { self.said } else { "" };
        let call = layout.call.strip_prefix(mark).unwrap_or(layout.call);
        let (head, tail) = call.split_once(ARGUMENTS).unwrap_or((call, ""));
        let head: Vec<String> = head
            .split(ID)
            .map(|part| self.dialect.sequence(&part.replace(NAME, &tool.name)))
            .collect();
        let arguments = self.arguments(index, tool, held)?;
        let tail = self.dialect.sequence(tail);
        self.rule(&format!("t{index}"), &format!("{} {arguments} {tail}", head.join(" ID ")));
        Ok(())
    }
}
