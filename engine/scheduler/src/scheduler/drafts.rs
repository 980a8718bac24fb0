//! Guesses at what answers say next: which ones a step verifies, and what came of them.
//!
//! Guesses take what is left of a step: prompts that are read come first, and no sequence gives up blocks for them. The
//! member whose answer is guessed at pays for all of them, the wrong ones too, because all of them are computed.

use std::time::Duration;

use polder_backend::TokenId;

use crate::drafting::lengths;
use crate::request::Request;
use crate::scheduler::Scheduler;
use crate::sequence::{LOGIT_ROWS, Sequence};

impl Scheduler {
    /// The oldest step in flight took so long, from when the back end could begin it to when it was done. Without this
    /// nobody knows what guesses cost, and few are made.
    pub fn took(&mut self, time: Duration) {
        if let Some((answers, guesses)) = self.in_flight.front().and_then(|step| step.answers) {
            self.step_times.record(answers, guesses, time);
        }
    }

    /// Guesses for each sequence that goes on in the next step, in their order; none at all where nothing is to be guessed.
    pub(super) fn drafts(&mut self, goes_on: impl Fn(&Sequence) -> bool) -> Vec<Vec<TokenId>> {
        let going: Vec<usize> =
            (0..self.running.len()).filter(|index| goes_on(&self.running[*index])).collect();
        let room = self.room_for_guesses(&going);
        if room == 0 {
            return Vec::new();
        }
        let first = &self.running[going[0]].request.member;
        let others = going.iter().any(|index| self.running[*index].request.member != *first);
        let price = self.step_times.price(going.len(), others, room);
        let (mut drafts, mut chances) = (Vec::new(), Vec::new());
        for index in &going {
            let (mut draft, mut likely) = (Vec::new(), Vec::new());
            let sequence = &mut self.running[*index];
            sequence.guess(self.config.draft_tokens, &mut draft, &mut likely);
            drafts.push(draft);
            chances.push(likely);
        }
        let each: Vec<&[f64]> = chances.iter().map(Vec::as_slice).collect();
        let lengths = lengths(&each, going.len(), price);
        for ((index, length), (draft, chances)) in
            going.iter().zip(lengths).zip(drafts.iter_mut().zip(&chances))
        {
            // Who guesses sits the next step out, where that is submitted before this one is read.
            let missed = f64::from(u8::from(self.config.steps_ahead > 0 && going.len() > 1));
            let gain = chances[..length].iter().sum::<f64>();
            let length = if gain > missed { length } else { 0 };
            draft.truncate(match length {
                0 => 0,
                length => self.extend_for_guesses(*index, length),
            });
            self.stats.drafts += u64::from(!draft.is_empty());
            self.stats.draft_tokens += draft.len() as u64;
        }
        drafts
    }

    /// Tokens that are left of a step when these sequences go on and all prompts are read as far as they can. Each guess is
    /// a row of logits for the back end, so that there are few in any case.
    fn room_for_guesses(&self, going: &[usize]) -> usize {
        if self.config.draft_tokens == 0 || going.is_empty() {
            return 0;
        }
        let cost = self.config.cost;
        let (mut tokens, mut work) = (going.len() as u32, 0.0);
        for index in going {
            work += cost.decode(self.running[*index].fed);
        }
        for sequence in self.running.iter().filter(|sequence| sequence.wants_to_read()) {
            tokens = tokens.saturating_add(sequence.readable());
            work += cost.read(sequence.fed, sequence.readable());
        }
        let step = self.config.step_tokens;
        // A guess is read; the furthest text's are the dearest.
        let furthest = going.iter().map(|index| self.running[*index].fed).max().unwrap_or(0);
        let paid = cost.readable(furthest, f64::from(step) - work);
        step.saturating_sub(tokens).min(paid).min(LOGIT_ROWS) as usize
    }

    /// Whether the row behind this guess must be void, and what follows where it is not.
    pub(super) fn is_void(&mut self, index: usize, (guess, last): (TokenId, bool)) -> bool {
        let sequence = &mut self.running[index];
        let right = sequence.draft == Some(true) && sequence.tokens.last() == Some(&guess);
        if right {
            sequence.planned += 1;
            // Where its blocks were taken meanwhile, it has to read again in any case.
            sequence.fed += u32::from(sequence.has_room());
            self.stats.accepted_tokens += 1;
        }
        sequence.draft = (!last).then_some(right);
        !right
    }
}

impl Sequence {
    /// Guesses at its next tokens, and how likely each is to be right together with those before it.
    fn guess(&mut self, most: u32, guesses: &mut Vec<TokenId>, chances: &mut Vec<f64>) {
        let (unread, left) = (self.planned - self.sampled(), self.limit - self.planned - 1);
        let prompt = self.request.prompt.len();
        let Some(repeats) = &mut self.repeats else { return };
        repeats.follow(&self.tokens, prompt);
        repeats.guess(&self.tokens, unread as usize, most.min(left) as usize, guesses, chances);
        // Nothing comes after a token that ends the answer.
        let Request { stop_tokens, .. } = &self.request;
        if let Some(end) = guesses.iter().position(|guess| stop_tokens.contains(guess)) {
            guesses.truncate(end);
            chances.truncate(end);
        }
    }
}
