//! From a model's text to what its answer says: content, and beside it thoughts and calls.

use std::sync::Arc;

use polder_chat::StopStrings;
use polder_chat::reply::{Dialect, ReplyEvent, ReplyParser, Tools};

use crate::generate::Finish;

/// How a model's replies to one request are read.
#[derive(Debug, Clone)]
pub(crate) struct ReplyForm {
    pub(crate) dialect: Dialect,
    /// The tools on offer; None reads calls as text.
    pub(crate) tools: Option<Arc<Tools>>,
    /// The prompt has begun the model's thoughts.
    pub(crate) thinking: bool,
    /// One call ends the answer.
    pub(crate) one_call: bool,
}

/// Reads one growing answer.
#[derive(Debug)]
pub(crate) struct Reply {
    /// None where all text is content.
    parser: Option<ReplyParser>,
    /// Watches the content alone.
    stop: StopStrings,
    one_call: bool,
    /// A call is complete.
    called: bool,
}

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    Content(String),
    /// Anything else.
    Beside(ReplyEvent),
}

/// What became certain.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    pub(crate) parts: Vec<Part>,
    /// The answer ends here, whatever the model would have gone on to say.
    pub(crate) finish: Option<Finish>,
    /// Some of the text was thoughts.
    pub(crate) thought: bool,
}

impl Reply {
    pub(crate) fn new(form: Option<&ReplyForm>, stop: &[String]) -> Self {
        let parser =
            form.map(|form| ReplyParser::new(&form.dialect, form.tools.clone(), form.thinking));
        let one_call = form.is_some_and(|form| form.one_call);
        Self { parser, stop: StopStrings::new(stop), one_call, called: false }
    }

    /// All text is content, character for character.
    pub(crate) fn is_plain(&self) -> bool {
        self.parser.is_none()
    }

    pub(crate) fn push(&mut self, text: String) -> Heard {
        let thinking = self.parser.as_ref().is_some_and(ReplyParser::is_thinking);
        let events = match &mut self.parser {
            None => vec![ReplyEvent::Content(text)],
            Some(parser) => parser.push(&text),
        };
        let told = events.iter().any(|event| matches!(event, ReplyEvent::Reasoning(_)));
        Heard { thought: thinking || told, ..self.judge(events) }
    }

    /// The model has said all it will: `rest`, and then nothing, for this reason.
    pub(crate) fn finish(&mut self, rest: String, reason: Finish) -> Heard {
        let mut heard = self.push(rest);
        if heard.finish.is_none() {
            let events = self.parser.as_mut().map(ReplyParser::finish).unwrap_or_default();
            let last = self.judge(events);
            heard.parts.extend(last.parts);
            heard.finish = last.finish;
        }
        if heard.finish.is_none() {
            heard.content(self.stop.finish());
            let called = reason == Finish::Stop && self.called;
            heard.finish = Some(if called { Finish::ToolCalls } else { reason });
        }
        heard
    }

    fn judge(&mut self, events: Vec<ReplyEvent>) -> Heard {
        let mut heard = Heard::default();
        for event in events {
            if let ReplyEvent::Content(text) = event {
                let outcome = self.stop.push(&text);
                heard.content(outcome.text);
                if let Some(which) = outcome.which {
                    let stop = Finish::StopString(which);
                    heard.finish = Some(if self.called { Finish::ToolCalls } else { stop });
                    return heard;
                }
                continue;
            }
            // What was held back as the beginning of a stop string does not go on beyond this.
            heard.content(self.stop.finish());
            let ended = matches!(event, ReplyEvent::CallEnd { .. });
            heard.parts.push(Part::Beside(event));
            self.called |= ended;
            if ended && self.one_call {
                heard.finish = Some(Finish::ToolCalls);
                return heard;
            }
        }
        heard
    }
}

impl Heard {
    fn content(&mut self, text: String) {
        if !text.is_empty() {
            self.parts.push(Part::Content(text));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polder_chat::{ChatTemplate, Tokenizer};
    use polder_model::{GgufTokenizer, TokenizerSource};
    use serde_json::json;

    fn form(one_call: bool) -> ReplyForm {
        let keys = GgufTokenizer {
            model: "gpt2".into(),
            tokens: vec!["a".into()],
            ..GgufTokenizer::default()
        };
        let tokenizer = Tokenizer::from_source(&TokenizerSource::Gguf(Box::new(keys))).unwrap();
        let template = ChatTemplate::new("{% if tools %}<tool_call></think>{% endif %}").unwrap();
        let tool = json!({"type": "function", "function": {"name": "f"}});
        ReplyForm {
            dialect: template.dialect(&tokenizer),
            tools: Some(Arc::new(Tools::new(&[tool]))),
            thinking: false,
            one_call,
        }
    }

    /// Content, thoughts, calls with their arguments, and how it ended.
    fn read(form: Option<&ReplyForm>, stop: &str, text: &str) -> (String, String, String, Finish) {
        let mut reply = Reply::new(form, &[stop.to_owned()]);
        let [mut content, mut thoughts, mut calls] = [const { String::new() }; 3];
        let mut hear = |heard: Heard| {
            for part in heard.parts {
                match part {
                    Part::Content(text) => content.push_str(&text),
                    Part::Beside(ReplyEvent::Reasoning(text)) => thoughts.push_str(&text),
                    Part::Beside(ReplyEvent::CallBegin { name, .. }) => calls.push_str(&name),
                    Part::Beside(ReplyEvent::CallArguments { fragment, .. }) => {
                        calls.push_str(&fragment)
                    }
                    Part::Beside(_) => {}
                }
            }
            heard.finish
        };
        let ended = text.chars().find_map(|character| hear(reply.push(character.into())));
        let ended = ended.or_else(|| hear(reply.finish(String::new(), Finish::Stop)));
        (content, thoughts, calls, ended.unwrap())
    }

    const CALLS: &str = "<think>STOP it</think>Well. <tool_call>{\"name\": \"f\", \"arguments\": \
        {\"a\": \"STOP\"}}</tool_call><tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>";

    #[test]
    fn a_stop_string_is_looked_for_in_the_content_alone() {
        let form = form(false);
        let (content, thoughts, calls, ended) = read(Some(&form), "STOP", CALLS);
        assert_eq!((content.as_str(), thoughts.as_str()), ("Well.", "STOP it"));
        assert_eq!((calls.as_str(), ended), ("f{\"a\": \"STOP\"}f{}", Finish::ToolCalls));
        let (content, _, calls, ended) = read(Some(&form), "ell", CALLS);
        assert_eq!((content.as_str(), calls.as_str(), ended), ("W", "", Finish::StopString(0)));
        let (content, thoughts, ..) = read(None, "ell", CALLS);
        assert_eq!((content.as_str(), thoughts.as_str()), ("<think>STOP it</think>W", ""));
    }

    #[test]
    fn a_token_that_is_thoughts_in_part_counts_as_thought() {
        let mut reply = Reply::new(Some(&form(false)), &[]);
        let pieces = ["<think>", "Ra", "in?</th", "ink>So", " be it."];
        let thought = pieces.map(|piece| reply.push(piece.into()).thought);
        assert_eq!(thought, [false, true, true, true, false]);
        let mut reply = Reply::new(Some(&form(false)), &[]);
        assert!(reply.push("<think>Ra".into()).thought);
        let mut plain = Reply::new(None, &[]);
        assert!(!plain.push("<think>Ra".into()).thought);
    }

    #[test]
    fn where_one_call_is_wanted_the_first_ends_the_answer() {
        let (_, _, calls, ended) = read(Some(&form(true)), "", CALLS);
        assert_eq!((calls.as_str(), ended), ("f{\"a\": \"STOP\"}", Finish::ToolCalls));
    }

    #[test]
    fn a_call_that_was_cut_off_is_no_reason_to_call() {
        let cut = &CALLS[..CALLS.find("STOP\"}").unwrap()];
        let (_, _, calls, ended) = read(Some(&form(false)), "", cut);
        assert_eq!((calls.as_str(), ended), ("f{\"a\": \"", Finish::Stop));
    }
}
