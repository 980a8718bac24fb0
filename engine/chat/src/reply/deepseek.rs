//! Calls as DeepSeek writes them. V3 and R1 put the name after the kind and the arguments into a
//! fence; V3.1 writes name and arguments alone:
//!
//! ```text
//! <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f
//! ```json
//! {…}
//! ```<｜tool▁call▁end｜><｜tool▁calls▁end｜>
//! ```

use super::call::{CallReader, Emit, LONGEST_NAME, Reader, Verdict};
use super::live::{Live, LiveArguments};
use super::marker::{Expect, Met, Seen, Watch};

pub(super) const CALLS_BEGIN: &str = "<｜tool▁calls▁begin｜>";
pub(super) const CALLS_END: &str = "<｜tool▁calls▁end｜>";
pub(super) const CALL_BEGIN: &str = "<｜tool▁call▁begin｜>";
pub(super) const CALL_END: &str = "<｜tool▁call▁end｜>";
pub(super) const SEPARATOR: &str = "<｜tool▁sep｜>";

/// What may stand between calls.
const BETWEEN: &[&str] = &[CALL_BEGIN, CALLS_END];
/// What may stand after arguments.
const TAIL: &[&str] = &[CALL_END, "```", CALLS_END];

/// Reads what follows the first marker.
pub(super) type DeepSeekReader = Reader<At>;

#[derive(Debug)]
pub(super) enum At {
    Between(Expect),
    /// The kind, or already the name.
    Kind {
        kind: String,
        watch: Watch,
    },
    /// After the separator: arguments, or a name and the fence.
    Head {
        kind: String,
        head: String,
    },
    Arguments(LiveArguments),
    Tail(Expect),
}

impl DeepSeekReader {
    /// Behind the marker that begins several calls.
    pub(super) fn of_calls() -> Self {
        Self::beginning(At::Between(Expect::new(BETWEEN)), ())
    }

    /// Behind the one that begins a single call.
    pub(super) fn of_call() -> Self {
        Self::beginning(kind(), ())
    }

    fn call_over(&mut self, emit: &mut Emit) {
        emit.end();
        self.calls += 1;
        self.raw.clear();
    }
}

fn kind() -> At {
    At::Kind { kind: String::new(), watch: Watch::new([SEPARATOR]) }
}

/// What the text after the separator says so far: the name, once the arguments begin.
enum Head {
    Unsure,
    Begins(String),
    Wrong,
}

fn judge(kind: &str, head: &str) -> Head {
    let trimmed = head.trim_start();
    if trimmed == "{" {
        return named(kind);
    }
    let Some((name, fence)) = trimmed.split_once('\n') else {
        let fits = trimmed.len() <= LONGEST_NAME && head.len() <= 2 * LONGEST_NAME;
        return if fits { Head::Unsure } else { Head::Wrong };
    };
    let fence = fence.trim_start();
    match fence.strip_prefix("```json").unwrap_or(fence).trim_start() {
        // What stands before the arguments is short.
        _ if head.len() > 4 * LONGEST_NAME => Head::Wrong,
        "{" => named(name),
        "" => Head::Unsure,
        _ if "```json".starts_with(fence) => Head::Unsure,
        _ => Head::Wrong,
    }
}

fn named(name: &str) -> Head {
    match name.trim() {
        "" => Head::Wrong,
        name => Head::Begins(name.to_owned()),
    }
}

impl CallReader for DeepSeekReader {
    fn feed(&mut self, character: char, emit: &mut Emit) -> Verdict {
        // Once a call was begun there is no way back.
        if !matches!(self.at, At::Arguments(_) | At::Tail(_)) {
            self.raw.push(character);
        }
        match &mut self.at {
            At::Between(expect) => match expect.feed(character) {
                Met::Maybe => Verdict::More,
                Met::Word(0) => self.go(kind()),
                Met::Word(_) => Verdict::Over(String::new()),
                Met::Other(_) => self.stop(),
            },
            At::Kind { kind, watch } => {
                for seen in watch.feed(character) {
                    match seen {
                        Seen::Plain(plain) if kind.len() < LONGEST_NAME && plain != '\n' => {
                            kind.push(plain);
                        }
                        Seen::Plain(_) => return self.stop(),
                        Seen::Marker(_) => {
                            let kind = std::mem::take(kind);
                            return self.go(At::Head { kind, head: String::new() });
                        }
                    }
                }
                Verdict::More
            }
            At::Head { kind, head } => {
                head.push(character);
                match judge(kind, head) {
                    Head::Unsure => Verdict::More,
                    Head::Wrong => self.stop(),
                    Head::Begins(name) => {
                        emit.begin(&name);
                        let mut arguments = LiveArguments::new(CALL_END);
                        let _ = arguments.feed('{', emit);
                        self.raw.clear();
                        self.go(At::Arguments(arguments))
                    }
                }
            }
            At::Arguments(arguments) => match arguments.feed(character, emit) {
                Live::On => Verdict::More,
                Live::Ended => {
                    self.call_over(emit);
                    self.go(At::Tail(Expect::new(TAIL)))
                }
                Live::EndedByMarker => {
                    self.call_over(emit);
                    self.go(At::Between(Expect::new(BETWEEN)))
                }
            },
            At::Tail(expect) => match expect.feed(character) {
                Met::Maybe => Verdict::More,
                Met::Word(0) => self.go(At::Between(Expect::new(BETWEEN))),
                Met::Word(1) => self.go(At::Tail(Expect::new(TAIL))),
                Met::Word(_) => Verdict::Over(String::new()),
                Met::Other(rest) => Verdict::Over(rest),
            },
        }
    }

    fn finish(&mut self, emit: &mut Emit) -> Verdict {
        match &mut self.at {
            At::Between(_) | At::Kind { .. } | At::Head { .. } => self.stop(),
            At::Arguments(arguments) => {
                arguments.finish(emit);
                Verdict::Over(String::new())
            }
            At::Tail(_) => Verdict::Over(String::new()),
        }
    }
}
