//! What is kept beside the device, as far as the scheduler sees it: addresses, and never a byte.
//!
//! The scheduler asks what is kept and says what should be put and restored; whoever owns the back end carries that
//! out (`keeper.rs`) and tells what has come. Nothing here waits.

use polder_backend::{BlockId, TokenId};
use polder_kv::{ChainDigest, Tier};

use crate::request::{MemberId, RequestId};

/// Whose kept blocks they are.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// One member's.
    Member(MemberId),
    /// Of all members who trust each other, together.
    Trusting,
}

/// A block that is kept beside the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeptBlock {
    /// Its address.
    pub digest: ChainDigest,
    /// Where it is.
    pub tier: Tier,
}

/// What is kept beside the device, and whether it is worth having back.
pub trait Tiers: std::fmt::Debug + Send {
    /// What comes before the first block of any text.
    fn root(&self) -> ChainDigest;

    /// How these tokens begin, as far as whole blocks of them are kept. Counts as their use.
    fn find(&mut self, owner: &Owner, tokens: &[TokenId]) -> Vec<KeptBlock>;

    /// Whether a block is kept. Does not count as use.
    fn contains(&mut self, owner: &Owner, digest: &ChainDigest) -> bool;

    /// Whether so many blocks of a tier are there sooner than their tokens are read again.
    fn worth_restoring(&mut self, blocks: usize, tier: Tier) -> bool;
}

/// Tells one restoring from all others, also of the same sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RestoreId(pub u64);

/// Blocks to be written back to the device, from the first one on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreWork {
    /// For [`Scheduler::place_of`](crate::Scheduler::place_of) and its neighbours.
    pub id: RestoreId,
    /// Whose they are.
    pub owner: Owner,
    /// Which, in order. They are spoken of by their place in this list.
    pub blocks: Vec<KeptBlock>,
}

/// A full block to be kept beside the device. Good until the next step is planned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutWork {
    /// The sequence that filled it, or used it last.
    pub id: RequestId,
    /// Whose it is.
    pub owner: Owner,
    /// The address of what comes before it.
    pub parent: ChainDigest,
    /// What it holds.
    pub tokens: Box<[TokenId]>,
    /// Where it is.
    pub block: BlockId,
}

/// How much of what a sequence reads and says may be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keeps {
    /// On the device and beside it.
    All,
    /// On the device: beside it there was no room for a block, and none after that could be found.
    OnDevice,
    /// Nothing any more: its member was forgotten while it ran.
    Nothing,
}

/// A sequence whose beginning is on its way back to the device.
#[derive(Debug)]
pub(crate) struct Restoring {
    pub(crate) id: RestoreId,
    /// Its blocks before those.
    pub(crate) first: usize,
    /// Which have come, of those that can.
    pub(crate) came: Vec<bool>,
}

impl Restoring {
    /// All that can come has come.
    pub(crate) fn is_over(&self) -> bool {
        self.came.iter().all(|came| *came)
    }

    /// Blocks that came without a gap.
    pub(crate) fn there(&self) -> usize {
        self.came.iter().take_while(|came| **came).count()
    }
}
