//! Whether a step makes sense, decided before anything runs: every back end asks this first.

use std::ops::Range;

use crate::{BackendError, BlockId, Input, Limits, OutputRow, Sampling, StepBatch, TokenId, Want};

/// What the host knows about slots: which hold a sampled token, or will when the steps in flight
/// are done.
#[derive(Debug, Clone)]
pub struct Slots {
    sampled: Vec<bool>,
    busy: Vec<bool>,
    before: Vec<bool>,
}

impl Slots {
    /// So many slots, none of which has sampled.
    pub fn new(count: u16) -> Self {
        let count = usize::from(count);
        Self { sampled: vec![false; count], busy: vec![false; count], before: Vec::new() }
    }

    /// Refuses a step that contradicts itself or the limits, else notes what it will sample.
    pub fn admit(&mut self, step: &StepBatch, limits: &Limits) -> Result<(), BackendError> {
        self.busy.fill(false);
        self.before.clone_from(&self.sampled);
        if let Err(refusal) = self.check(step, limits) {
            self.sampled.clone_from(&self.before);
            return Err(refusal);
        }
        for output in &step.outputs {
            if matches!(output.want, Want::Sample(_)) {
                self.sampled[usize::from(output.slot.0)] = true;
            }
        }
        Ok(())
    }

    /// Forgets the step that was admitted last: it was not run after all.
    pub fn undo(&mut self) {
        self.sampled.clone_from(&self.before);
    }

    fn check(&mut self, step: &StepBatch, limits: &Limits) -> Result<(), BackendError> {
        let tokens = step.inputs.len();
        if tokens > limits.step_tokens as usize || step.positions.len() != tokens {
            return bad(format!(
                "{tokens} tokens and {} positions, at most {} fit",
                step.positions.len(),
                limits.step_tokens
            ));
        }
        for reset in &step.resets {
            let slot = self.slot(reset.slot.0)?;
            let history = step.histories.get(usize_range(&reset.history));
            let Some(history) = history else {
                return bad(format!("slot {slot} starts with a history that is not there"));
            };
            if reset.sampled as usize > history.len() {
                return bad(format!("slot {slot} starts with more sampled tokens than tokens"));
            }
            history.iter().try_for_each(|t| known(*t, limits))?;
            self.sampled[slot] = reset.sampled > 0;
        }
        for copy in &step.copies {
            block(copy.from, limits)?;
            block(copy.to, limits)?;
        }
        for input in &step.inputs {
            match input {
                Input::Host(token) => known(*token, limits)?,
                Input::Sampled(slot) => {
                    let slot = self.slot(slot.0)?;
                    if !self.sampled[slot] {
                        return bad(format!("slot {slot} has sampled no token yet"));
                    }
                }
            }
        }
        let mut next = 0;
        for sequence in &step.sequences {
            let slot = self.slot(sequence.slot.0)?;
            if std::mem::replace(&mut self.busy[slot], true) {
                return bad(format!("slot {slot} has two sequences"));
            }
            let range = &sequence.tokens;
            if range.start != next || range.end <= next || range.end as usize > tokens {
                return bad(format!("a sequence has the tokens {range:?} after {next}"));
            }
            next = range.end;
            let positions = &step.positions[usize_range(range)];
            let run = positions.windows(2).all(|p| p[0].checked_add(1) == Some(p[1]));
            let last = positions[positions.len() - 1];
            if !run || last >= limits.context {
                return bad(format!(
                    "slot {slot} has positions that do not follow each other up to {last}, below {}",
                    limits.context
                ));
            }
            let Some(blocks) = step.block_table.get(usize_range(&sequence.blocks)) else {
                return bad(format!("slot {slot} has blocks that are not in the table"));
            };
            if blocks.len() <= (last / limits.block_tokens) as usize {
                return bad(format!("slot {slot} has no block for position {last}"));
            }
            blocks.iter().try_for_each(|b| block(*b, limits))?;
        }
        if next as usize != tokens {
            return bad(format!("{tokens} tokens, {next} of them in sequences"));
        }
        for output in &step.outputs {
            self.slot(output.slot.0)?;
            if output.token as usize >= tokens {
                return bad(format!("output of token {} of {tokens}", output.token));
            }
            if let Want::Sample(sampling) = &output.want {
                parameters(sampling, limits)?;
            }
        }
        self.check_drafts(step)
    }

    /// A slot that samples several times does so in a draft.
    fn check_drafts(&mut self, step: &StepBatch) -> Result<(), BackendError> {
        self.busy.fill(false);
        let mut before: Option<&OutputRow> = None;
        for output in &step.outputs {
            let goes_on = before.is_some_and(|before| same_draft(before, output));
            let samples = matches!(output.want, Want::Sample(_));
            let slot = output.slot.0;
            if samples && std::mem::replace(&mut self.busy[usize::from(slot)], true) && !goes_on {
                return bad(format!("slot {slot} samples twice, with other rows between"));
            }
            if let Some(before) = before.filter(|_| goes_on) {
                // The first sequence that ends behind the row is the one it belongs to.
                let at = step.sequences.partition_point(|s| s.tokens.end <= output.token);
                let follows = before.token + 1 == output.token
                    && step
                        .sequences
                        .get(at)
                        .is_some_and(|s| s.slot == output.slot && s.tokens.contains(&before.token));
                if !follows {
                    return bad(format!(
                        "slot {slot} samples twice, after tokens that do not follow each other"
                    ));
                }
                if let Input::Sampled(_) = step.inputs[output.token as usize] {
                    return bad(format!("slot {slot} has a draft with a token that nobody knows"));
                }
            }
            before = Some(output);
        }
        Ok(())
    }

    fn slot(&self, slot: u16) -> Result<usize, BackendError> {
        let slot = usize::from(slot);
        if slot < self.busy.len() {
            return Ok(slot);
        }
        bad(format!("slot {slot} of {}", self.busy.len()))
    }
}

/// The guesses before a step's output row, where it stands in a draft: the inputs after the rows
/// before it. Steps that reach it have been checked.
pub fn guesses(step: &StepBatch, row: usize) -> &[Input] {
    let end = step.outputs[row].token as usize;
    let before = step.outputs[..row].iter().rev();
    let rows = before.take_while(|other| same_draft(other, &step.outputs[row])).count();
    &step.inputs[end + 1 - rows..=end]
}

/// Both rows sample into the same slot.
pub fn same_draft(a: &OutputRow, b: &OutputRow) -> bool {
    a.slot == b.slot && matches!((&a.want, &b.want), (Want::Sample(_), Want::Sample(_)))
}

fn parameters(s: &Sampling, limits: &Limits) -> Result<(), BackendError> {
    let finite = [s.temperature, s.top_p, s.min_p, s.presence_penalty, s.frequency_penalty]
        .iter()
        .all(|v| v.is_finite());
    let sane = finite
        && s.temperature >= 0.0
        && (0.0..=1.0).contains(&s.top_p)
        && (0.0..=1.0).contains(&s.min_p)
        && s.repetition_penalty.is_finite()
        && s.repetition_penalty > 0.0;
    if !sane {
        return bad("sampling parameters outside their ranges".into());
    }
    for (token, bias) in &s.bias {
        known(*token, limits)?;
        if bias.is_nan() {
            return bad(format!("the bias of token {} is not a number", token.0));
        }
    }
    if let Some(mask) = &s.mask {
        let vocab = limits.vocab as usize;
        if mask.len() != vocab.div_ceil(32) {
            return bad(format!("a mask of {} words for {vocab} tokens", mask.len()));
        }
        let tail = if vocab.is_multiple_of(32) { u32::MAX } else { (1 << (vocab % 32)) - 1 };
        let (last, front) = mask.split_last().expect("a vocabulary has tokens");
        if front.iter().all(|w| *w == 0) && last & tail == 0 {
            return bad("a mask that allows no token".into());
        }
    }
    Ok(())
}

fn known(token: TokenId, limits: &Limits) -> Result<(), BackendError> {
    if token.0 < limits.vocab {
        return Ok(());
    }
    bad(format!("token {} of {}", token.0, limits.vocab))
}

/// Refuses a block that is not in the pool, or a number of bytes that no block has.
pub fn carried(block: BlockId, bytes: Option<usize>, limits: &Limits) -> Result<(), BackendError> {
    if block.0 >= limits.blocks {
        return Err(BackendError::BadBlock(format!("number {} of {}", block.0, limits.blocks)));
    }
    match bytes {
        Some(bytes) if bytes as u64 != limits.block_bytes() => Err(BackendError::BadBlock(
            format!("{bytes} bytes, but a block has {}", limits.block_bytes()),
        )),
        _ => Ok(()),
    }
}

fn block(block: BlockId, limits: &Limits) -> Result<(), BackendError> {
    if block.0 < limits.blocks {
        return Ok(());
    }
    bad(format!("block {} of {}", block.0, limits.blocks))
}

/// A range of the step's lists, to index with.
pub fn usize_range(range: &Range<u32>) -> Range<usize> {
    range.start as usize..range.end as usize
}

fn bad<T>(what: String) -> Result<T, BackendError> {
    Err(BackendError::BadBatch(what))
}
