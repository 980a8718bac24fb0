//! One running sequence: what it has read, what it sampled, and its part of a step.

use polder_backend::{
    BlockId, Input, OutputRow, SequenceStep, Slot, SlotReset, StepBatch, TokenId, Want,
};

use crate::grammar::Masking;
use crate::pooling::Pool;
use crate::prefix::NodeId;
use crate::repeats::Repeats;
use crate::request::{Request, RequestId};
use crate::tiers::{Keeps, Restoring};

/// Most prompt positions whose logits are read back in one step, all sequences together, and most
/// guesses: each is a row of `vocab` floats.
pub(crate) const LOGIT_ROWS: u32 = 32;

/// One sequence in a slot.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) id: RequestId,
    pub(crate) request: Request,
    pub(crate) slot: Slot,
    /// The slot still holds someone else's history.
    pub(crate) fresh: bool,
    /// The prompt, then what was sampled and read back.
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) blocks: Vec<BlockId>,
    /// The nodes of its first blocks, as far as they are kept for whoever begins alike.
    pub(crate) chain: Vec<NodeId>,
    /// How much of its prompt did not have to be read.
    pub(crate) known: Known,
    /// Its reader has not taken what is there: it keeps its place and is not run.
    pub(crate) paused: bool,
    /// Positions whose KV is written once every planned step has run.
    pub(crate) fed: u32,
    /// Tokens that planned steps sample, read back or not.
    pub(crate) planned: u32,
    /// Most tokens to sample.
    pub(crate) limit: u32,
    /// Prompt positions whose logits were asked for.
    pub(crate) logits_planned: u32,
    /// It gives up its slot as soon as what was planned for it is read back.
    pub(crate) leaving: bool,
    /// Its beginning is on its way back to the device: it is not run.
    pub(crate) restoring: Option<Restoring>,
    /// What may be kept of it.
    pub(crate) keeps: Keeps,
    /// Where it is with its masks, if it is under a grammar.
    pub(crate) masking: Option<Masking>,
    /// Where its hidden states are gathered, if they are asked for.
    pub(crate) pool: Option<Pool>,
    /// Where it says again what it said before, if its next tokens may be guessed.
    pub(crate) repeats: Option<Repeats>,
    /// A step with guesses was planned and is not read back, so that nobody knows where it goes on: whether all were right
    /// so far. `fed` and `planned` count that step as one without guesses, and are moved by those that were right.
    pub(crate) draft: Option<bool>,
}

/// How much of a prompt did not have to be read, up to the sequence's first answer.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Known {
    /// How far the sequence has ever come, by reading or by finding: what it finds again of that, after it lost its blocks,
    /// saved nothing.
    reached: u32,
    cached: u32,
    told: bool,
}

impl Known {
    /// So many of its tokens need not be read now; how many of them nobody had read or found for it before.
    pub(crate) fn found(&mut self, tokens: u32) -> u32 {
        if self.told {
            return 0;
        }
        let new = tokens.saturating_sub(self.reached);
        self.reached += new;
        self.cached += new;
        new
    }

    fn read(&mut self, tokens: u32) {
        self.reached = self.reached.max(tokens);
    }

    /// How many in all, the first time that this is asked.
    pub(crate) fn tell(&mut self) -> Option<u32> {
        (!std::mem::replace(&mut self.told, true)).then_some(self.cached)
    }
}

/// Whose an output row is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowOwner {
    pub(crate) id: RequestId,
    /// The prompt position that the row judges; None for a sampled token.
    pub(crate) judges: Option<u32>,
    /// It is a hidden state.
    pub(crate) hidden: bool,
    /// The guess that it comes after, and whether that was the last one.
    pub(crate) guess: Option<(TokenId, bool)>,
}

impl Sequence {
    pub(crate) fn prompt_len(&self) -> u32 {
        self.request.prompt.len() as u32
    }

    pub(crate) fn sampled(&self) -> u32 {
        self.tokens.len() as u32 - self.prompt_len()
    }

    pub(crate) fn has_room(&self) -> bool {
        !self.blocks.is_empty()
    }

    /// Its next input is the token that its slot sampled last.
    pub(crate) fn decodes(&self) -> bool {
        self.has_room() && self.planned > 0 && self.fed + 1 == self.prompt_len() + self.planned
    }

    /// The next step may sample its next token.
    pub(crate) fn wants_token(&self) -> bool {
        self.may_run()
            && self.decodes()
            && self.draft.is_none()
            && self.planned < self.limit
            && self.has_mask()
    }

    /// The next step may read some of its tokens.
    pub(crate) fn wants_to_read(&self) -> bool {
        self.may_run() && self.has_room() && !self.decodes() && self.readable() > 0
    }

    fn may_run(&self) -> bool {
        !self.paused && !self.leaving && self.restoring.is_none()
    }

    /// Nothing that was planned for it is still to be read back, and nothing would be lost with its slot.
    pub(crate) fn may_leave(&self) -> bool {
        self.planned == self.sampled() && self.request.prompt_logprobs.is_none() && self.has_mask()
    }

    /// No grammar keeps it from sampling now.
    fn has_mask(&self) -> bool {
        self.masking.as_ref().is_none_or(Masking::is_ready)
    }

    /// Known tokens still to be read, for a sequence that is not decoding.
    pub(crate) fn unread(&self) -> u32 {
        self.tokens.len() as u32 - self.fed
    }

    /// Known tokens that may be read now: after the last of them one is sampled, which may have to
    /// wait for a mask.
    pub(crate) fn readable(&self) -> u32 {
        self.unread().saturating_sub(u32::from(!self.has_mask()))
    }

    /// How many of its blocks are full of known tokens and written by the steps that were planned.
    pub(crate) fn whole_blocks(&self, block_tokens: u32) -> usize {
        (self.fed.min(self.tokens.len() as u32) / block_tokens) as usize
    }

    /// Reading its next tokens reads logits back.
    pub(crate) fn wants_logits(&self) -> bool {
        self.request.prompt_logprobs.is_some() && self.fed < self.prompt_len()
    }

    /// Appends its next `count` tokens to the batch, and what is to be read out after them. Guesses come where the last
    /// of them samples a token.
    pub(crate) fn plan(
        &mut self,
        count: u32,
        guesses: &[TokenId],
        block_tokens: u32,
        batch: &mut StepBatch,
        rows: &mut Vec<RowOwner>,
    ) {
        let decodes = self.decodes();
        if std::mem::take(&mut self.fresh) {
            let start = batch.histories.len() as u32;
            batch.histories.extend_from_slice(&self.tokens);
            let history = start..batch.histories.len() as u32;
            let sampled = self.sampled();
            batch.resets.push(SlotReset { slot: self.slot, history, sampled });
        }
        let first = batch.inputs.len() as u32;
        for position in self.fed..self.fed + count {
            batch.inputs.push(match decodes {
                true => Input::Sampled(self.slot),
                false => Input::Host(self.tokens[position as usize]),
            });
            batch.positions.push(position);
            self.ask_for_logits(position, batch, rows);
            self.ask_for_hidden(position, batch, rows);
        }
        let end = self.fed + count;
        batch.inputs.extend(guesses.iter().map(|guess| Input::Host(*guess)));
        batch.positions.extend(end..end + guesses.len() as u32);
        let start = batch.block_table.len() as u32;
        let blocks = blocks_for(end + guesses.len() as u32, block_tokens);
        batch.block_table.extend_from_slice(&self.blocks[..blocks]);
        batch.sequences.push(SequenceStep {
            slot: self.slot,
            tokens: first..batch.inputs.len() as u32,
            blocks: start..batch.block_table.len() as u32,
        });
        self.fed += count;
        self.known.read(self.fed);
        if self.fed == self.prompt_len() + self.planned && self.planned < self.limit {
            self.planned += 1;
            let mut sampling = self.request.sampling.clone();
            if let Some(masking) = &mut self.masking {
                sampling.mask = masking.spend();
            }
            let wants = std::iter::repeat_n(Want::Sample(sampling), guesses.len() + 1);
            for (token, want) in (first + count - 1..).zip(wants) {
                batch.outputs.push(OutputRow { token, slot: self.slot, want });
            }
            let owner = RowOwner { id: self.id, judges: None, hidden: false, guess: None };
            rows.push(owner);
            rows.extend(guesses.iter().enumerate().map(|(at, guess)| {
                let last = at + 1 == guesses.len();
                RowOwner { guess: Some((*guess, last)), ..owner }
            }));
            self.draft = (!guesses.is_empty()).then_some(true);
        }
    }

    /// The logits after prompt position `p` judge the prompt's token `p + 1`.
    fn ask_for_logits(&mut self, position: u32, batch: &mut StepBatch, rows: &mut Vec<RowOwner>) {
        let judges = position + 1;
        if self.request.prompt_logprobs.is_none()
            || judges >= self.prompt_len()
            || judges <= self.logits_planned
        {
            return;
        }
        self.logits_planned = judges;
        let token = batch.inputs.len() as u32 - 1;
        batch.outputs.push(OutputRow { token, slot: self.slot, want: Want::Logits });
        rows.push(RowOwner { id: self.id, judges: Some(judges), hidden: false, guess: None });
    }

    fn ask_for_hidden(&mut self, position: u32, batch: &mut StepBatch, rows: &mut Vec<RowOwner>) {
        if self.pool.as_mut().is_some_and(|pool| pool.asks(position)) {
            let token = batch.inputs.len() as u32 - 1;
            batch.outputs.push(OutputRow { token, slot: self.slot, want: Want::Hidden });
            rows.push(RowOwner { id: self.id, judges: None, hidden: true, guess: None });
        }
    }
}

/// Blocks that hold so many tokens.
pub(crate) fn blocks_for(tokens: u32, block_tokens: u32) -> usize {
    tokens.div_ceil(block_tokens) as usize
}
