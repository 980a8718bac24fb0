//! The seam between the scheduler and the hardware.
//!
//! A scheduler describes one forward pass as a flat [`StepBatch`]; a back end runs it and answers
//! with a [`StepOutput`]. [`Backend::submit`] and [`Backend::collect`] are the only hot calls:
//! the host may submit step *n + 1* before it has read what step *n* sampled, because an input
//! token can be [`Input::Sampled`], "whatever the slot's last output was".
//!
//! Shapes: a step holds `T` tokens of `S` sequences. `inputs`, `positions` have length `T`;
//! `sequences` has length `S` and cuts `0..T` into consecutive runs. A token's KV goes to
//! `block_table[position / block_tokens]` at row `position % block_tokens`. No sequence reads a position in a block of another one that
//! is written in the same step: what is kept of one can be shared from the next step on.
//!
//! Drafts: several [`Want::Sample`] rows of one slot in one step are a *draft*. They stand in
//! `outputs` one after the other, after tokens of one sequence that follow each other, and every
//! token after the first of them is a guess, given by the host, at what the row before it samples.
//! Each row samples as if the guesses before it were the text: at its own position, with them in
//! the slot's history. The rows up to and including the first one that samples something else than
//! the guess after it *count*: what they sample is what the slot would have sampled one step at a
//! time, and goes into its history. Those behind are [`Row::Void`], as if they had never been asked
//! for. KV of guesses that were wrong lies behind the slot's last token, where the next step writes.

pub mod check;
mod host;
mod keep;

use std::ops::Range;
use std::sync::Arc;

pub use host::{HostBlock, HostMemory, Lent};
pub use keep::Writer;

/// An index into the model's vocabulary.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct TokenId(pub u32);

/// One block of the KV pool: `block_tokens` positions of every layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

/// A place for one running sequence inside the back end: its last sampled token and its token
/// history (for penalties) live there between steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u16);

/// A token to feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// The host knows it.
    Host(TokenId),
    /// The token that the step before sampled (or will have sampled) into this slot.
    Sampled(Slot),
}

/// One sequence's part of a step: `tokens` consecutive entries of the flat arrays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceStep {
    /// Where the sequence's state lives.
    pub slot: Slot,
    /// Its entries in `inputs` and `positions`.
    pub tokens: Range<u32>,
    /// Its entries in `block_table`; they cover every position up to its last token.
    pub blocks: Range<u32>,
}

/// A copy between blocks, done in order before the step's first layer (fork, restore, spill).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvCopy {
    /// Read from here.
    pub from: BlockId,
    /// Write to here.
    pub to: BlockId,
}

/// A sequence takes a slot: the slot's history becomes `history` (the tokens that penalties
/// count: the prompt, and what was sampled where the sequence had a slot before).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotReset {
    /// Which slot.
    pub slot: Slot,
    /// Its entries in [`StepBatch::histories`].
    pub history: Range<u32>,
    /// The last so many of them were sampled; the very last one is then what the slot sampled last.
    pub sampled: u32,
}

/// What to read out after one token.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputRow {
    /// Index into `inputs`: the row whose final hidden state is used.
    pub token: u32,
    /// Whose row it is.
    pub slot: Slot,
    /// What to do with it.
    pub want: Want,
}

/// What an output row asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Want {
    /// Sample a token into the slot, under these parameters. The row sees the slot's history as it
    /// was before the step, and in a draft (see the crate) the guesses before it.
    Sample(Sampling),
    /// Every logit, in vocabulary order.
    Logits,
    /// The hidden state after the final norm (embeddings).
    Hidden,
}

/// How to choose a token. Order: penalties and bias, then grammar mask, then temperature, then
/// top-k, top-p and min-p, then the draw.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 means greedy.
    pub temperature: f32,
    /// Keep the k best; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set of best tokens whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// Drop tokens less likely than this fraction of the best one; 0 drops none.
    pub min_p: f32,
    /// With the output's position it fixes the draw: the same seed gives the same answer,
    /// whatever else is in the batch.
    pub seed: u64,
    /// Subtracted once from every token already in the slot's history's sampled part (OpenAI).
    pub presence_penalty: f32,
    /// Subtracted once per occurrence (OpenAI).
    pub frequency_penalty: f32,
    /// Divides (positive) or multiplies (negative) logits of tokens in the history; 1 is off.
    pub repetition_penalty: f32,
    /// Added to single logits.
    pub bias: Vec<(TokenId, f32)>,
    /// Bit `i` of word `i / 32` allows token `i`. None allows all.
    pub mask: Option<Vec<u32>>,
    /// Return the logprobs of this many best tokens beside the chosen one; None returns none.
    pub logprobs: Option<u8>,
}

impl Sampling {
    /// The most likely token, nothing else.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: 0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            bias: Vec::new(),
            mask: None,
            logprobs: None,
        }
    }

    /// Where the draw at a position falls: a whole number of 2^-53, from 0 to below 1. Two rounds of the splitmix64 finaliser.
    pub fn draw(&self, position: u32) -> u64 {
        let mix = |mut z: u64| {
            z = z.wrapping_add(0x9E37_79B9_7F4A_7C15);
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        };
        mix(mix(self.seed) ^ u64::from(position)) >> 11
    }
}

/// One forward pass. Cleared and refilled every step, so that steady state allocates nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepBatch {
    /// `T` tokens to feed.
    pub inputs: Vec<Input>,
    /// `T` positions, each counted from the start of its sequence.
    pub positions: Vec<u32>,
    /// `S` sequences, in the order of their tokens.
    pub sequences: Vec<SequenceStep>,
    /// The sequences' block tables, end to end.
    pub block_table: Vec<BlockId>,
    /// Block copies to do first, in order.
    pub copies: Vec<KvCopy>,
    /// Slots that start anew with this step.
    pub resets: Vec<SlotReset>,
    /// The resets' histories, end to end.
    pub histories: Vec<TokenId>,
    /// What to read out.
    pub outputs: Vec<OutputRow>,
}

impl StepBatch {
    /// Empties every list and keeps their memory.
    pub fn clear(&mut self) {
        self.inputs.clear();
        self.positions.clear();
        self.sequences.clear();
        self.block_table.clear();
        self.copies.clear();
        self.resets.clear();
        self.histories.clear();
        self.outputs.clear();
    }
}

/// A step that was submitted and not yet collected. Tickets are collected in submission order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(pub u64);

/// The answer to a step: one entry per [`OutputRow`], in order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StepOutput {
    /// The rows.
    pub rows: Vec<Row>,
}

/// The answer to one output row.
#[derive(Debug, Clone, PartialEq)]
pub enum Row {
    /// For [`Want::Sample`].
    Sampled(SampledToken),
    /// For [`Want::Sample`], where the logits are no distribution: one of them is NaN or
    /// infinitely large, or none is possible. Whatever the slot samples until it starts anew means
    /// nothing.
    Unusable,
    /// For [`Want::Sample`] in a draft: a guess before it was wrong.
    Void,
    /// For [`Want::Logits`]: `vocab` values.
    Logits(Vec<f32>),
    /// For [`Want::Hidden`]: `hidden` values.
    Hidden(Vec<f32>),
}

/// A chosen token. Logprobs are natural logs of the softmax of the raw logits (before
/// temperature and filters, after penalties, bias and mask).
#[derive(Debug, Clone, PartialEq)]
pub struct SampledToken {
    /// The token.
    pub token: TokenId,
    /// Its logprob, where asked for.
    pub logprob: Option<f32>,
    /// The best tokens and their logprobs, best first.
    pub top: Vec<(TokenId, f32)>,
}

/// What a back end can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most tokens in one step.
    pub step_tokens: u32,
    /// Sequences that can run at once.
    pub slots: u16,
    /// Blocks in the KV pool.
    pub blocks: u32,
    /// Positions in one block.
    pub block_tokens: u32,
    /// Longest sequence the model was made for.
    pub context: u32,
    /// Vocabulary size.
    pub vocab: u32,
    /// KV bytes of one position, all layers.
    pub kv_bytes_per_token: u64,
}

impl Limits {
    /// KV bytes of one block, all layers: what [`Backend::export_block`] writes.
    pub fn block_bytes(&self) -> u64 {
        self.kv_bytes_per_token * u64::from(self.block_tokens)
    }
}

/// Which part of a model a back end is, where several devices run it together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// From 0.
    pub rank: u32,
    /// How many there are.
    pub world: u32,
}

impl Place {
    /// All of it, on one device.
    pub const ALONE: Self = Self { rank: 0, world: 1 };
}

impl Default for Place {
    fn default() -> Self {
        Self::ALONE
    }
}

/// Why a step could not be run.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The batch contradicts itself or the limits; nothing was run.
    #[error("step refused: {0}")]
    BadBatch(String),
    /// A block that is not in the pool, or bytes that are no block; nothing was read or written.
    #[error("KV block refused: {0}")]
    BadBlock(String),
    /// A ticket that was never given out, or was collected already.
    #[error("ticket {0} is not in flight")]
    UnknownTicket(u64),
    /// The back end cannot do this at all; callers do without.
    #[error("this back end cannot {0}")]
    Unsupported(&'static str),
    /// The device failed; the engine must restart.
    #[error("the device failed: {0}")]
    Device(String),
}

/// Copies of blocks that were begun and are not known to be done. Each number is given once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Carry(pub u64);

/// What a call that begins copies says.
#[derive(Debug)]
pub enum Begun {
    /// They are done. Of blocks that go out: their bytes, in order.
    Done(Vec<HostBlock>),
    /// They go on beside steps; [`Backend::carried`] will say when they are done.
    Later(Carry),
}

/// Copies that are done.
#[derive(Debug)]
pub struct Carried {
    /// Which.
    pub carry: Carry,
    /// Of blocks that went out: their bytes, in order.
    pub blocks: Vec<HostBlock>,
}

/// Something that can run a model.
pub trait Backend: Send {
    /// What it can hold. Constant after load.
    fn limits(&self) -> Limits;
    /// Starts a step.
    fn submit(&mut self, step: &StepBatch) -> Result<Ticket, BackendError>;
    /// Waits for a step and takes its output.
    fn collect(&mut self, ticket: Ticket) -> Result<StepOutput, BackendError>;

    /// Replaces the content of `into` by a block of the KV pool, [`Limits::block_bytes`] bytes in the back end's own layout. In order with
    /// steps: it sees what all steps submitted before it write, collected or not, and nothing of later ones. Waits for them.
    fn export_block(&mut self, block: BlockId, into: &mut Vec<u8>) -> Result<(), BackendError> {
        let _ = (block, into);
        Err(BackendError::Unsupported("read KV blocks out"))
    }

    /// Writes a block of the KV pool with what [`Self::export_block`] gave, from any block of a back end that was loaded alike: the same model,
    /// precision and block size. In order with steps: those submitted before it do not see it, later ones do. A wrong number of bytes is refused
    /// before anything is written; what the bytes say cannot be checked.
    fn import_block(&mut self, block: BlockId, bytes: &[u8]) -> Result<(), BackendError> {
        let _ = (block, bytes);
        Err(BackendError::Unsupported("write KV blocks"))
    }
    /// Begins to copy blocks of the KV pool out. As [`Self::export_block`] it sees what all steps submitted before it write and nothing of later
    /// ones, which may overwrite the blocks at once; it does not wait. No more blocks than [`Self::export_room`] says.
    fn begin_export(&mut self, blocks: &[BlockId]) -> Result<Begun, BackendError> {
        let export = |block: &BlockId| {
            let mut bytes = Vec::new();
            self.export_block(*block, &mut bytes).map(|()| bytes.into())
        };
        blocks.iter().map(export).collect::<Result<_, _>>().map(Begun::Done)
    }

    /// How many blocks can begin to go out now. More, once [`Self::carried`] has said that others have left.
    fn export_room(&self) -> usize {
        usize::MAX
    }

    /// Begins to write blocks of the KV pool. As [`Self::import_block`] it is in order with steps; it does not wait, but a step that is
    /// submitted before [`Self::carried`] has said that it is done and has one of the blocks in its table does.
    fn begin_import(
        &mut self,
        blocks: Vec<(BlockId, Arc<HostBlock>)>,
    ) -> Result<Begun, BackendError> {
        for (block, bytes) in &blocks {
            self.import_block(*block, bytes)?;
        }
        Ok(Begun::Done(Vec::new()))
    }

    /// Takes the next copies that are done, if any are. Those that go out are done in the order in which they were begun, and so are those
    /// that come in. With `wait` it waits until some are done, where some go on.
    fn carried(&mut self, wait: bool) -> Result<Option<Carried>, BackendError> {
        let _ = wait;
        Ok(None)
    }

    /// Host memory for blocks, up to about so many bytes, to and from which this back end copies fastest; None: any will do. Once, before
    /// the first copy.
    fn host_memory(&mut self, bytes: u64) -> Option<Arc<dyn HostMemory>> {
        let _ = bytes;
        None
    }
}
