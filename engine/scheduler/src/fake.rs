//! A back end that computes nothing and believes nothing: for tests.
//!
//! Its "KV" is the tokens themselves, written to the blocks it is told to write and read back
//! through the block tables it is given; its next token is a function of the sequence so far.
//! A batch that mixes up two sequences, reuses a block too early or forgets a token therefore
//! either is refused or answers with the wrong token.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use polder_backend::{
    Backend, BackendError, Begun, BlockId, Carried, Carry, HostBlock, Input, Limits, OutputRow,
    Row, SampledToken, Sampling, SequenceStep, StepBatch, StepOutput, Ticket, TokenId, Want,
};

/// What comes after these tokens, sampled with this seed. A token that the vocabulary does not
/// have stands for logits that are no numbers.
pub type NextToken = Box<dyn Fn(&[TokenId], &Sampling) -> TokenId + Send>;

/// See the module.
pub struct FakeBackend {
    limits: Limits,
    next: NextToken,
    delay: Duration,
    kv: Vec<Option<TokenId>>,
    slots: Vec<FakeSlot>,
    done: Vec<(Ticket, StepOutput)>,
    tickets: u64,
    /// How often it is asked for copies before they are done, where they are not done at once.
    late: Option<u32>,
    leaving: VecDeque<Travelling>,
    arriving: VecDeque<Travelling>,
    carries: u64,
}

/// Blocks on their way.
struct Travelling {
    carry: Carry,
    asked: u32,
    out: Vec<HostBlock>,
    come: Vec<(BlockId, Arc<HostBlock>)>,
}

#[derive(Debug, Default, Clone)]
struct FakeSlot {
    last: Option<TokenId>,
    history: Vec<TokenId>,
}

impl std::fmt::Debug for FakeBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FakeBackend").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// The fake's usual answer: a hash of all tokens and the seed.
pub fn hashed(vocab: u32) -> impl Fn(&[TokenId], &Sampling) -> TokenId + Send {
    move |tokens, sampling| {
        let mut hash = 0xcbf2_9ce4_8422_2325u64 ^ sampling.seed;
        for token in tokens {
            hash = (hash ^ u64::from(token.0)).wrapping_mul(0x0100_0000_01b3);
        }
        TokenId(((hash ^ (hash >> 32)) % u64::from(vocab)) as u32)
    }
}

/// A text that says again what it said, with a change now and then: a hash of the last two tokens, and every ninth time
/// of all.
pub fn repeating(vocab: u32) -> impl Fn(&[TokenId], &Sampling) -> TokenId + Send {
    move |tokens, sampling| {
        let whole = tokens.len().is_multiple_of(9);
        let from = if whole { 0 } else { tokens.len().saturating_sub(2) };
        hashed(vocab)(&tokens[from..], sampling)
    }
}

/// The token, or the first one after it (and round again) that the mask allows.
fn masked(token: TokenId, mask: &[u32], vocab: u32) -> Result<TokenId, BackendError> {
    if mask.len() != vocab.div_ceil(32) as usize {
        return Err(bad(format!("a mask of {} words for {vocab} tokens", mask.len())));
    }
    (0..vocab)
        .map(|more| (token.0 + more) % vocab)
        .find(|token| mask[*token as usize / 32] >> (token % 32) & 1 == 1)
        .map(TokenId)
        .ok_or_else(|| bad("a mask that allows no token".into()))
}

impl FakeBackend {
    /// Answers with [`hashed`].
    pub fn new(limits: Limits) -> Self {
        Self::with(limits, Box::new(hashed(limits.vocab)))
    }

    /// Answers with `next`.
    pub fn with(limits: Limits, next: NextToken) -> Self {
        Self {
            next,
            delay: Duration::ZERO,
            kv: vec![None; (limits.blocks * limits.block_tokens) as usize],
            slots: vec![FakeSlot::default(); limits.slots.into()],
            done: Vec::new(),
            tickets: 0,
            late: None,
            leaving: VecDeque::new(),
            arriving: VecDeque::new(),
            carries: 0,
            limits,
        }
    }

    /// Blocks are on their way until it was asked so often. What comes in is not there before, whoever reads it.
    pub fn late(mut self, asked: u32) -> Self {
        self.late = Some(asked);
        self
    }

    /// Every step takes this long.
    pub fn slowed(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    fn place(&self, table: &[BlockId], position: u32) -> Result<usize, BackendError> {
        let block = table
            .get((position / self.limits.block_tokens) as usize)
            .ok_or_else(|| bad(format!("position {position} has no block")))?;
        if block.0 >= self.limits.blocks {
            return Err(bad(format!("block {} does not exist", block.0)));
        }
        Ok((block.0 * self.limits.block_tokens + position % self.limits.block_tokens) as usize)
    }

    /// A block's positions, and how many bytes each has.
    fn positions(&self, block: BlockId) -> Result<(std::ops::Range<usize>, usize), BackendError> {
        if block.0 >= self.limits.blocks {
            return Err(BackendError::BadBlock(format!("block {} does not exist", block.0)));
        }
        let each = self.limits.block_tokens as usize;
        let first = block.0 as usize * each;
        Ok((first..first + each, self.limits.kv_bytes_per_token.min(8) as usize))
    }

    fn run(&mut self, step: &StepBatch) -> Result<StepOutput, BackendError> {
        check_ranges(step, &self.limits)?;
        check_drafts(step)?;
        for reset in &step.resets {
            let history = &step.histories[reset.history.start as usize..reset.history.end as usize];
            self.slots[reset.slot.0 as usize] = FakeSlot {
                last: history.last().copied().filter(|_| reset.sampled > 0),
                history: history.to_vec(),
            };
        }
        let mut rows = Vec::new();
        let mut outputs = step.outputs.iter().peekable();
        for sequence in &step.sequences {
            let table =
                &step.block_table[sequence.blocks.start as usize..sequence.blocks.end as usize];
            for index in sequence.tokens.clone() {
                let position = step.positions[index as usize];
                let token = match step.inputs[index as usize] {
                    Input::Host(token) => token,
                    Input::Sampled(slot) => self.slots[slot.0 as usize]
                        .last
                        .ok_or_else(|| bad("a slot that sampled nothing is read".into()))?,
                };
                let place = self.place(table, position)?;
                self.kv[place] = Some(token);
                // What was on its way there came before, and is nobody's now.
                let block = place as u32 / self.limits.block_tokens;
                for travelling in &mut self.arriving {
                    travelling.come.retain(|(to, _)| to.0 != block);
                }
                while let Some(row) = outputs.next_if(|row| row.token == index) {
                    let so_far = (0..=position)
                        .map(|at| {
                            self.kv[self.place(table, at)?]
                                .ok_or_else(|| bad(format!("position {at} was never written")))
                        })
                        .collect::<Result<Vec<_>, _>>()?;
                    // It comes after a guess, or after nothing.
                    let guessed = drafted(step, rows.len()).then_some(token);
                    let wrong = guessed.is_some_and(|guess| match rows.last() {
                        Some(Row::Sampled(sampled)) => sampled.token != guess,
                        _ => true,
                    });
                    rows.push(match wrong {
                        true => Row::Void,
                        false => self.answer(row, so_far)?,
                    });
                }
            }
        }
        if outputs.next().is_some() {
            return Err(bad("outputs are not in the order of their tokens".into()));
        }
        Ok(StepOutput { rows })
    }

    fn answer(&mut self, row: &OutputRow, so_far: Vec<TokenId>) -> Result<Row, BackendError> {
        let sampling = match &row.want {
            Want::Sample(sampling) => sampling,
            Want::Hidden => return Ok(Row::Hidden(hidden(&so_far))),
            _ => {
                let mut logits = vec![0.0; self.limits.vocab as usize];
                match logits.get_mut((self.next)(&so_far, &Sampling::greedy()).0 as usize) {
                    Some(logit) => *logit = 4.0,
                    None => logits.fill(f32::NAN),
                }
                return Ok(Row::Logits(logits));
            }
        };
        let slot = &mut self.slots[row.slot.0 as usize];
        if slot.history != so_far {
            return Err(bad(format!("slot {} holds another sequence's history", row.slot.0)));
        }
        let token = (self.next)(&so_far, sampling);
        let token = match &sampling.mask {
            None => token,
            Some(mask) => masked(token, mask, self.limits.vocab)?,
        };
        let unusable = token.0 >= self.limits.vocab;
        let token = if unusable { TokenId(0) } else { token };
        slot.last = Some(token);
        slot.history.push(token);
        if unusable {
            return Ok(Row::Unusable);
        }
        let top = sampling.logprobs.map_or(0, u32::from);
        Ok(Row::Sampled(SampledToken {
            token,
            logprob: sampling.logprobs.map(|_| -0.5),
            top: (0..top)
                .map(|rank| (TokenId((token.0 + rank) % self.limits.vocab), -0.5 - rank as f32))
                .collect(),
        }))
    }
}

impl Backend for FakeBackend {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn submit(&mut self, step: &StepBatch) -> Result<Ticket, BackendError> {
        std::thread::sleep(self.delay);
        let output = self.run(step)?;
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.done.push((ticket, output));
        Ok(ticket)
    }

    fn collect(&mut self, ticket: Ticket) -> Result<StepOutput, BackendError> {
        match self.done.first() {
            Some((first, _)) if *first == ticket => Ok(self.done.remove(0).1),
            _ => Err(BackendError::UnknownTicket(ticket.0)),
        }
    }

    /// A position is its token and one, or 0 where nothing was written yet, in as many bytes as the limits say.
    fn export_block(&mut self, block: BlockId, into: &mut Vec<u8>) -> Result<(), BackendError> {
        let (positions, width) = self.positions(block)?;
        into.clear();
        for token in &self.kv[positions] {
            let bytes = token.map_or(0, |token| u64::from(token.0) + 1).to_le_bytes();
            if bytes[width..].iter().any(|byte| *byte != 0) {
                return Err(bad(format!("{token:?} does not fit {width} bytes")));
            }
            into.extend_from_slice(&bytes[..width]);
        }
        Ok(())
    }

    fn import_block(&mut self, block: BlockId, bytes: &[u8]) -> Result<(), BackendError> {
        let (positions, width) = self.positions(block)?;
        if bytes.len() != positions.len() * width {
            return Err(BackendError::BadBlock(format!("{} bytes", bytes.len())));
        }
        for (position, bytes) in self.kv[positions].iter_mut().zip(bytes.chunks_exact(width)) {
            let number =
                bytes.iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
            *position = number.checked_sub(1).map(|token| TokenId(token as u32));
        }
        Ok(())
    }

    fn begin_export(&mut self, blocks: &[BlockId]) -> Result<Begun, BackendError> {
        let mut out = Vec::new();
        for block in blocks {
            let mut bytes = Vec::new();
            self.export_block(*block, &mut bytes)?;
            out.push(bytes.into());
        }
        if self.late.is_none() {
            return Ok(Begun::Done(out));
        }
        let carry = self.next_carry();
        self.leaving.push_back(Travelling { carry, asked: 0, out, come: Vec::new() });
        Ok(Begun::Later(carry))
    }

    fn export_room(&self) -> usize {
        match self.late {
            None => usize::MAX,
            Some(_) => 6_usize.saturating_sub(self.leaving.iter().map(|t| t.out.len()).sum()),
        }
    }

    fn begin_import(
        &mut self,
        blocks: Vec<(BlockId, Arc<HostBlock>)>,
    ) -> Result<Begun, BackendError> {
        if self.late.is_none() {
            for (block, bytes) in &blocks {
                self.import_block(*block, bytes)?;
            }
            return Ok(Begun::Done(Vec::new()));
        }
        for (block, _) in &blocks {
            let (positions, _) = self.positions(*block)?;
            self.kv[positions].fill(None);
        }
        let carry = self.next_carry();
        self.arriving.push_back(Travelling { carry, asked: 0, out: Vec::new(), come: blocks });
        Ok(Begun::Later(carry))
    }

    fn carried(&mut self, wait: bool) -> Result<Option<Carried>, BackendError> {
        let late = self.late.unwrap_or_default();
        for out in [true, false] {
            let queue = if out { &mut self.leaving } else { &mut self.arriving };
            let Some(first) = queue.front_mut() else { continue };
            first.asked += 1;
            if first.asked > late || wait {
                let Some(Travelling { carry, out, come, .. }) = queue.pop_front() else { continue };
                for (block, bytes) in come {
                    self.import_block(block, &bytes)?;
                }
                return Ok(Some(Carried { carry, blocks: out }));
            }
        }
        Ok(None)
    }
}

impl FakeBackend {
    fn next_carry(&mut self) -> Carry {
        self.carries += 1;
        Carry(self.carries)
    }
}

/// A hidden state that tells of every token before it: the token, how many there are, their sum, and
/// one that is the same for all.
pub fn hidden(so_far: &[TokenId]) -> Vec<f32> {
    let last = so_far.last().map_or(0, |token| token.0);
    let sum: u32 = so_far.iter().map(|token| token.0).sum();
    vec![last as f32, so_far.len() as f32, sum as f32, 1.0]
}

/// Whether this output row goes on a draft.
fn drafted(step: &StepBatch, row: usize) -> bool {
    let samples = |row: &OutputRow| matches!(row.want, Want::Sample(_)).then_some(row.slot);
    let slot = samples(&step.outputs[row]);
    slot.is_some() && row.checked_sub(1).is_some_and(|at| samples(&step.outputs[at]) == slot)
}

/// Who samples several times does so after tokens of their own that follow each other and are known.
fn check_drafts(step: &StepBatch) -> Result<(), BackendError> {
    let mut sampled = HashSet::new();
    for (at, row) in step.outputs.iter().enumerate() {
        let own = |sequence: &&SequenceStep| sequence.tokens.contains(&row.token);
        let sequence = step.sequences.iter().find(own);
        if sequence.is_none_or(|sequence| sequence.slot != row.slot) {
            return Err(bad(format!("a row of slot {} after somebody else's token", row.slot.0)));
        }
        let first = !matches!(row.want, Want::Sample(_)) || sampled.insert(row.slot);
        let goes_on = drafted(step, at)
            && step.outputs[at - 1].token + 1 == row.token
            && matches!(step.inputs.get(row.token as usize), Some(Input::Host(_)));
        if first == goes_on {
            return Err(bad(format!("slot {} has no sensible draft", row.slot.0)));
        }
    }
    Ok(())
}

fn bad(what: String) -> BackendError {
    BackendError::BadBatch(what)
}

/// What must hold for every batch, whatever is in it.
fn check_ranges(step: &StepBatch, limits: &Limits) -> Result<(), BackendError> {
    let total = step.inputs.len() as u32;
    if total == 0 || total > limits.step_tokens || step.positions.len() as u32 != total {
        return Err(bad(format!("{total} tokens and {} positions", step.positions.len())));
    }
    let (mut tokens, mut blocks) = (0, 0);
    let (mut slots, mut read, mut written) = (HashSet::new(), HashSet::new(), HashSet::new());
    for sequence in &step.sequences {
        if sequence.tokens.start != tokens
            || sequence.tokens.is_empty()
            || sequence.blocks.start != blocks
        {
            return Err(bad("sequences are not consecutive".into()));
        }
        (tokens, blocks) = (sequence.tokens.end, sequence.blocks.end);
        if sequence.slot.0 >= limits.slots || !slots.insert(sequence.slot) {
            return Err(bad(format!("slot {} twice, or none such", sequence.slot.0)));
        }
        let range = sequence.blocks.start as usize..sequence.blocks.end as usize;
        // Several may read a block; who writes to it has it alone.
        let first = step.positions[tokens as usize - sequence.tokens.len()] / limits.block_tokens;
        for (at, block) in step.block_table.get(range).into_iter().flatten().enumerate() {
            let mine = at >= first as usize;
            let theirs = written.contains(block) || (mine && read.contains(block));
            if theirs {
                return Err(bad(format!("block {} belongs to two sequences", block.0)));
            }
            read.insert(*block);
            if mine {
                written.insert(*block);
            }
        }
    }
    if tokens != total || blocks as usize != step.block_table.len() {
        return Err(bad("tokens or blocks belong to no sequence".into()));
    }
    if step.positions.iter().any(|position| *position >= limits.context) {
        return Err(bad("a position is beyond the context".into()));
    }
    Ok(())
}
