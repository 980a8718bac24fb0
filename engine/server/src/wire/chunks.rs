//! How chat and plain completions word an answer: chunks without names, `[DONE]` at the end.

use bytes::Bytes;
use serde_json::Value;

use crate::generate::Piece;
use crate::stream::{Wording, data};
use crate::wire::answer::{Envelope, Usage};
use crate::wire::error::ApiError;

/// The answers to one request.
#[derive(Debug)]
pub(crate) struct Chunks {
    envelope: Envelope,
    /// Which choices have had their first event.
    opened: Vec<bool>,
    /// Characters sent for each choice.
    offsets: Vec<usize>,
    /// Those that are sent as a whole, one for each choice.
    answers: Vec<Piece>,
}

impl Chunks {
    pub(crate) fn new(envelope: Envelope, choices: usize) -> Self {
        let answers = (0..choices).map(|choice| Piece { choice, ..Piece::default() }).collect();
        Self { envelope, opened: vec![false; choices], offsets: vec![0; choices], answers }
    }

    fn delta(&self, piece: &Piece, offset: usize) -> Bytes {
        data(&self.envelope.chunk(vec![self.envelope.delta(piece, offset)], None))
    }
}

impl Wording for Chunks {
    fn piece(&mut self, piece: Piece, out: &mut Vec<Bytes>) {
        if !std::mem::replace(&mut self.opened[piece.choice], true)
            && let Some(opening) = self.envelope.opening(piece.choice)
        {
            out.push(data(&self.envelope.chunk(vec![opening], None)));
        }
        let offset = self.offsets[piece.choice];
        self.offsets[piece.choice] += piece.text.chars().count();
        match piece.finish {
            // The last words and the reason go in two events, as clients are used to.
            Some(finish) if piece.says_something() => {
                let choice = piece.choice;
                out.push(self.delta(&Piece { finish: None, ..piece }, offset));
                let last = Piece { choice, finish: Some(finish), ..Piece::default() };
                out.push(self.delta(&last, offset));
            }
            None if !piece.says_something() => {}
            _ => out.push(self.delta(&piece, offset)),
        }
    }

    fn close(&mut self, usage: Usage, out: &mut Vec<Bytes>) {
        if self.envelope.include_usage {
            out.push(data(&self.envelope.chunk(Vec::new(), Some(usage))));
        }
        out.push(Bytes::from_static(b"data: [DONE]\n\n"));
    }

    fn broken(&mut self, error: &ApiError, out: &mut Vec<Bytes>) {
        out.push(data(&error.body()));
    }

    fn take(&mut self, piece: Piece) {
        let answer = &mut self.answers[piece.choice];
        let said = answer.text.chars().count();
        answer.text.push_str(&piece.text);
        answer.besides.extend(piece.besides);
        answer.tokens.extend(piece.tokens.into_iter().map(|mut token| {
            token.offset += said;
            token
        }));
        answer.finish = answer.finish.or(piece.finish);
    }

    fn whole(&mut self, usage: Usage) -> Value {
        self.envelope.whole(&self.answers, usage)
    }
}
