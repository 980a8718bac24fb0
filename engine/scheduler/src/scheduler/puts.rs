//! Blocks that are to be kept beside the device and are not yet, in the order in which they were offered.

use std::collections::{HashSet, VecDeque};

use polder_backend::BlockId;

use crate::request::RequestId;
use crate::tiers::{Owner, PutWork};

/// Parents come before children. What a block holds stays there as long as it waits here: whoever gives it to somebody else takes it
/// out.
#[derive(Debug, Default)]
pub(crate) struct Puts {
    queue: VecDeque<PutWork>,
    waiting: HashSet<(BlockId, Owner)>,
}

impl Puts {
    /// Once, also where several sequences offer it.
    pub(crate) fn push(&mut self, put: PutWork) {
        if self.waiting.insert((put.block, put.owner.clone())) {
            self.queue.push_back(put);
        }
    }

    pub(crate) fn take(&mut self, most: usize, to: &mut Vec<PutWork>) {
        for put in self.queue.drain(..most.min(self.queue.len())) {
            self.waiting.remove(&(put.block, put.owner.clone()));
            to.push(put);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// The tiers have no room for what this sequence offers.
    pub(crate) fn refused(&mut self, id: RequestId) {
        self.retain(|put| put.id != id);
    }

    /// These blocks are somebody else's from now on.
    pub(crate) fn given_away(&mut self, blocks: &[BlockId]) {
        if !self.is_empty() {
            let blocks: HashSet<&BlockId> = blocks.iter().collect();
            self.retain(|put| !blocks.contains(&put.block));
        }
    }

    pub(crate) fn forget(&mut self, of: impl Fn(&Owner) -> bool) {
        self.retain(|put| !of(&put.owner));
    }

    fn retain(&mut self, keep: impl Fn(&PutWork) -> bool) {
        let Self { queue, waiting } = self;
        queue.retain(|put| {
            let stays = keep(put);
            if !stays {
                waiting.remove(&(put.block, put.owner.clone()));
            }
            stays
        });
    }
}
