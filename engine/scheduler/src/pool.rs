//! The KV pool's account: every block is either free or owned by exactly one sequence.

use polder_backend::BlockId;

/// Blocks that are free, and a mark for those that are not.
#[derive(Debug)]
pub(crate) struct BlockPool {
    free: Vec<BlockId>,
    owned: Vec<bool>,
}

impl BlockPool {
    /// All `blocks` free; the lowest numbers are given out first.
    pub(crate) fn new(blocks: u32) -> Self {
        Self { free: (0..blocks).rev().map(BlockId).collect(), owned: vec![false; blocks as usize] }
    }

    pub(crate) fn total(&self) -> usize {
        self.owned.len()
    }

    pub(crate) fn available(&self) -> usize {
        self.free.len()
    }

    pub(crate) fn used(&self) -> usize {
        self.total() - self.available()
    }

    /// Appends `count` blocks to `to`; false, and nothing taken, where there are fewer.
    pub(crate) fn take(&mut self, count: usize, to: &mut Vec<BlockId>) -> bool {
        let Some(left) = self.free.len().checked_sub(count) else { return false };
        for block in self.free.drain(left..).rev() {
            self.owned[block.0 as usize] = true;
            to.push(block);
        }
        true
    }

    /// Takes every block of `from` back.
    pub(crate) fn give_back(&mut self, from: &mut Vec<BlockId>) {
        for block in from.drain(..).rev() {
            let owned = &mut self.owned[block.0 as usize];
            assert!(*owned, "block {} was given back twice", block.0);
            *owned = false;
            self.free.push(block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_that_are_not_there_are_not_given_out() {
        let mut pool = BlockPool::new(3);
        let mut mine = Vec::new();
        assert!(pool.take(2, &mut mine));
        assert!(!pool.take(2, &mut mine));
        assert_eq!((mine.len(), pool.used(), pool.available()), (2, 2, 1));
        pool.give_back(&mut mine);
        assert_eq!((mine.len(), pool.used()), (0, 0));
    }

    #[test]
    #[should_panic(expected = "given back twice")]
    fn a_block_given_back_twice_is_a_defect() {
        let mut pool = BlockPool::new(1);
        let mut mine = Vec::new();
        pool.take(1, &mut mine);
        let mut again = mine.clone();
        pool.give_back(&mut mine);
        pool.give_back(&mut again);
    }
}
