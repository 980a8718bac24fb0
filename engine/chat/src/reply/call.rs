//! What the readers of all dialects have in common.

use std::sync::Arc;

use super::ReplyEvent;
use super::tools::Tools;

/// Longest name of a tool that is read, bytes; what is longer is no call.
pub(super) const LONGEST_NAME: usize = 128;

/// Reads what follows the opening marker of a call, a character at a time.
pub(super) trait CallReader: std::fmt::Debug + Send {
    /// Takes one character.
    fn feed(&mut self, character: char, emit: &mut Emit) -> Verdict;

    /// Nothing follows. Anything but [`Verdict::More`].
    fn finish(&mut self, emit: &mut Emit) -> Verdict;
}

/// Makes a reader of calls of these tools.
pub(super) type NewReader = fn(Arc<Tools>) -> Box<dyn CallReader>;

/// How far a reader is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It wants more.
    More,
    /// The calls are over; these characters, already taken, belong to what follows.
    Over(String),
    /// It was no call: all characters taken since the marker. No call was emitted.
    NoCall(String),
}

impl Verdict {
    /// No further call, after so many: `raw` was taken for the beginning of one.
    pub(super) fn without_more(raw: String, calls: usize) -> Self {
        if calls == 0 { Self::NoCall(raw) } else { Self::Over(raw) }
    }
}

/// A reader that is at some place, and knows what to give back.
#[derive(Debug)]
pub(super) struct Reader<At, More = ()> {
    /// All since the last call that was whole.
    pub(super) raw: String,
    pub(super) at: At,
    /// Calls that were whole.
    pub(super) calls: usize,
    /// What else it must know.
    pub(super) more: More,
}

impl<At, More> Reader<At, More> {
    /// Nothing read yet.
    pub(super) fn beginning(at: At, more: More) -> Self {
        Self { raw: String::new(), at, calls: 0, more }
    }

    pub(super) fn go(&mut self, at: At) -> Verdict {
        self.at = at;
        Verdict::More
    }

    /// What was read last begins no call.
    pub(super) fn stop(&mut self) -> Verdict {
        Verdict::without_more(std::mem::take(&mut self.raw), self.calls)
    }
}

/// Events on their way out, neighbours joined.
#[derive(Debug, Default)]
pub(super) struct Emit {
    pub(super) events: Vec<ReplyEvent>,
    /// Calls begun so far.
    pub(super) begun: usize,
}

impl Emit {
    pub(super) fn content(&mut self, text: &str) {
        match self.events.last_mut() {
            _ if text.is_empty() => {}
            Some(ReplyEvent::Content(before)) => before.push_str(text),
            _ => self.events.push(ReplyEvent::Content(text.to_owned())),
        }
    }

    pub(super) fn reasoning(&mut self, text: &str) {
        match self.events.last_mut() {
            _ if text.is_empty() => {}
            Some(ReplyEvent::Reasoning(before)) => before.push_str(text),
            _ => self.events.push(ReplyEvent::Reasoning(text.to_owned())),
        }
    }

    pub(super) fn begin(&mut self, name: &str) {
        self.events.push(ReplyEvent::CallBegin { index: self.begun, name: name.to_owned() });
        self.begun += 1;
    }

    /// A fragment of the arguments of the call that was begun last.
    pub(super) fn arguments(&mut self, text: &str) {
        match self.events.last_mut() {
            _ if text.is_empty() => {}
            Some(ReplyEvent::CallArguments { fragment, .. }) => fragment.push_str(text),
            _ => self.events.push(ReplyEvent::CallArguments {
                index: self.begun.saturating_sub(1),
                fragment: text.to_owned(),
            }),
        }
    }

    pub(super) fn end(&mut self) {
        self.events.push(ReplyEvent::CallEnd { index: self.begun.saturating_sub(1) });
    }

    pub(super) fn whole(&mut self, name: &str, arguments: &str) {
        self.begin(name);
        self.arguments(arguments);
        self.end();
    }
}
