//! A conversation in the model's own form.
//!
//! Templates are written for Python's Jinja as Hugging Face's transformers runs it: blocks
//! trimmed, Python's string methods, `tojson` in Python's layout, `raise_exception` and
//! `strftime_now`.

use std::collections::HashSet;
use std::sync::OnceLock;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind};
use polder_backend::TokenId;
use serde_json::{Map, Value};

use crate::error::ChatError;
use crate::escape::{choose_marker, mark_all, strings};
use crate::history::{self, CallForm};
use crate::json::to_json;
use crate::reply::Dialect;
use crate::tokenizer::{Special, Tokenizer};

/// Instructions that one rendering may take: thousands of messages, but no endless loop.
const FUEL: u64 = 5_000_000;
/// Bytes that one rendering may write: twice the largest request.
const MOST_WRITTEN: usize = 64 << 20;

/// Who said what, and how the model should go on.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conversation {
    /// `role`, `content` and whatever else the template knows. The caller answers for `role`
    /// being one of the known words: it is the one string that is not marked.
    pub messages: Vec<Map<String, Value>>,
    /// Begin the model's answer at the end.
    pub add_generation_prompt: bool,
    /// Further variables of the template.
    pub variables: Map<String, Value>,
}

/// A model's chat template, compiled.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    /// Variables that it reads and does not set itself.
    reads: HashSet<String>,
    /// How it wants the calls of earlier turns; tried out when the first ones come.
    calls: OnceLock<CallForm>,
}

const NAME: &str = "chat";

impl ChatTemplate {
    /// Compiles a template.
    pub fn new(source: &str) -> Result<Self, ChatError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| ChatError::TemplateSyntax(said(&error)))?);
        environment.set_fuel(Some(FUEL));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment
            .add_template_owned(NAME, without_generation_tags(source))
            .map_err(|error| ChatError::TemplateSyntax(said(&error)))?;
        let reads = environment
            .get_template(NAME)
            .map_err(|error| ChatError::TemplateSyntax(said(&error)))?
            .undeclared_variables(false);
        Ok(Self { environment, source: source.to_owned(), reads, calls: OnceLock::new() })
    }

    /// Whether the template reads a variable of this name.
    pub fn reads(&self, variable: &str) -> bool {
        self.reads.contains(variable)
    }

    /// How the model marks its thoughts and its calls, by this template and its vocabulary.
    pub fn dialect(&self, tokenizer: &Tokenizer) -> Dialect {
        Dialect::detect(&self.source, tokenizer)
    }

    /// Whether the template mentions a word at all, for example `tools`.
    pub fn mentions(&self, word: &str) -> bool {
        self.source.contains(word)
    }

    /// The conversation as tokens. Control tokens come from the template alone. A conversation
    /// that is certain to have more tokens than `most` is refused unread; one that is not may
    /// still have more.
    pub fn encode(
        &self,
        conversation: &Conversation,
        tokenizer: &Tokenizer,
        most: usize,
    ) -> Result<Vec<TokenId>, ChatError> {
        // Every message takes a token at least: a million of them are refused before any work.
        let least = conversation.messages.len();
        if least > most {
            return Err(ChatError::TooLong { least, most });
        }
        let (text, marker) = self.render(conversation, tokenizer)?;
        tokenizer.check_length(&text, most)?;
        let tokens = tokenizer.encode_marked(&text, Special::Parse, Some(marker))?;
        Ok(tokenizer.with_bos(tokens))
    }

    /// The conversation as text, with the marker that keeps apart what people wrote.
    fn render(
        &self,
        conversation: &Conversation,
        tokenizer: &Tokenizer,
    ) -> Result<(String, char), ChatError> {
        let mut messages: Vec<Value> =
            conversation.messages.iter().cloned().map(Value::Object).collect();
        let mut variables = conversation.variables.clone();
        let marker = {
            let mut written = vec![self.source.as_str()];
            messages.iter().for_each(|message| strings(message, &mut written));
            variables.iter().for_each(|(key, value)| {
                written.push(key);
                strings(value, &mut written);
            });
            choose_marker(written.iter().copied())?
        };
        if messages.iter().any(|message| message.get("tool_calls").is_some()) {
            self.call_form(tokenizer).apply(&mut messages);
        }
        for message in &mut messages {
            let Value::Object(fields) = message else { continue };
            for (key, value) in fields.iter_mut() {
                if key != "role" {
                    mark_all(&tokenizer.specials, value, marker);
                }
            }
        }
        // The names of variables are the template's own.
        for value in variables.values_mut() {
            mark_all(&tokenizer.specials, value, marker);
        }

        let text =
            self.write(messages, conversation.add_generation_prompt, variables, tokenizer)?;
        Ok((text, marker))
    }

    /// How the template wants the calls of earlier turns.
    fn call_form(&self, tokenizer: &Tokenizer) -> CallForm {
        *self.calls.get_or_init(|| {
            history::find(|messages| self.write(messages, true, Map::new(), tokenizer).ok())
        })
    }

    /// What the template makes of this.
    fn write(
        &self,
        messages: Vec<Value>,
        add_generation_prompt: bool,
        variables: Map<String, Value>,
        tokenizer: &Tokenizer,
    ) -> Result<String, ChatError> {
        let mut context = Map::new();
        context.insert("bos_token".into(), tokenizer.bos_text().unwrap_or_default().into());
        context.insert("eos_token".into(), tokenizer.eos_text().unwrap_or_default().into());
        context.extend(variables);
        context.insert("messages".into(), messages.into());
        context.insert("add_generation_prompt".into(), add_generation_prompt.into());
        let mut text = Bounded(Vec::new());
        self.environment
            .get_template(NAME)
            .and_then(|template| template.render_captured_to(Serde(context), &mut text))
            .map_err(|error| match error.kind() {
                ErrorKind::WriteFailure => ChatError::TemplateFailed(format!(
                    "it writes more than {} MiB",
                    MOST_WRITTEN >> 20
                )),
                ErrorKind::InvalidOperation if raised(&error).is_some() => {
                    ChatError::TemplateRefused(raised(&error).unwrap_or_default().to_owned())
                }
                _ => ChatError::TemplateFailed(said(&error)),
            })?;
        String::from_utf8(text.0).map_err(|error| ChatError::TemplateFailed(error.to_string()))
    }
}

/// What a template has written, up to [`MOST_WRITTEN`].
struct Bounded(Vec<u8>);

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len().saturating_add(bytes.len()) > MOST_WRITTEN {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What went wrong and in which line, without the values that were being rendered.
fn said(error: &minijinja::Error) -> String {
    let what = match error.detail() {
        Some(detail) => format!("{}, {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    match error.line() {
        Some(line) => format!("{what} (its line {line})"),
        None => what,
    }
}

const RAISED: &str = "raised: ";

fn raise_exception(message: String) -> Result<String, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
}

fn raised(error: &minijinja::Error) -> Option<&str> {
    error.detail()?.strip_prefix(RAISED)
}

/// The local time, in C's `strftime` language.
fn strftime_now(format: String) -> Result<String, minijinja::Error> {
    jiff::fmt::strtime::format(&format, &jiff::Zoned::now())
        .map_err(|error| minijinja::Error::new(ErrorKind::InvalidOperation, error.to_string()))
}

/// Training tools mark the model's own words with this tag; it says nothing at inference.
fn without_generation_tags(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(len) = rest[start..].find("%}").map(|len| len + 2) else { break };
        let tag = &rest[start..start + len];
        let word = tag[2..len - 2].trim_matches(['-', '+', ' ', '\n', '\t']);
        text.push_str(&rest[..start]);
        if matches!(word, "generation" | "endgeneration") {
            // A tag that is there for its white space control alone.
            let open = if tag.starts_with("{%-") { "{%- if true " } else { "{% if true " };
            let close = if tag.ends_with("-%}") { "-%}" } else { "%}" };
            match word {
                "generation" => text.push_str(&format!("{open}{close}")),
                _ => text.push_str(&format!("{}{close}", open.replace("if true", "endif"))),
            }
        } else {
            text.push_str(tag);
        }
        rest = &rest[start + len..];
    }
    text.push_str(rest);
    text
}
