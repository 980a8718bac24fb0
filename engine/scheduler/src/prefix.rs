//! What was read before and may be read again: full blocks of KV in a tree over the tokens that they hold.
//!
//! A node is one block. Its place in the tree says which tokens came before, so that two requests that begin alike
//! share blocks as far as they do. Trees of different members have nothing in common, so that what one of them asked
//! cannot be found out by how fast another one is answered; except for beginnings that were registered as common to all,
//! whose nodes are in a tree of their own, and for members who trust each other, who have one tree together.
//!
//! Whoever uses a node uses all nodes above it. Nodes without users therefore hang at the ends, and every one of them can be had
//! for somebody else, leaf by leaf, the one that was used longest ago first. They are taken from whoever has most; those of
//! a member with few are not taken for a member with more, unless they were away for long or nothing else could go on.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;
use polder_backend::{BlockId, TokenId};
use polder_kv::ChainDigest;

use crate::request::MemberId;

/// A node's number while somebody uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct NodeId(usize);

/// The tree of what is common to all.
const COMMON: usize = 0;
#[derive(Debug)]
struct Node {
    /// Whose tree it is in. The node before it may be in that of what is common.
    root: usize,
    /// None where nothing comes before it.
    parent: Option<NodeId>,
    tokens: Box<[TokenId]>,
    /// Its address in the tiers beside the device, where there are any.
    digest: Option<ChainDigest>,
    block: BlockId,
    users: u32,
    children: u32,
    /// When its last user left.
    left: u64,
}

/// One member's tree.
#[derive(Debug, Default)]
struct Root {
    /// Blocks in it, and of those how many nobody uses.
    nodes: usize,
    idle: usize,
    /// The step in which it was last used.
    used: u64,
    /// It is nobody's any more: nothing in it is found again, and its nodes go as soon as nobody uses them.
    forgotten: bool,
    /// Its leaves that nobody uses, by when that began.
    leaves: BTreeSet<(u64, NodeId)>,
}

/// Whose tree it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose<'a> {
    Member(&'a MemberId),
    /// Of everybody who trusts the others.
    Trusting,
}

/// For whom blocks are taken; None where something must go on at any cost.
pub(crate) type Taker<'a> = Option<Whose<'a>>;

/// After so many steps without a use, a quarter of an hour or more, what a member keeps is anybody's.
const LONG_AWAY: u64 = 100_000;

/// The trees of all members.
#[derive(Debug)]
pub(crate) struct PrefixCache {
    block_tokens: usize,
    nodes: Vec<Option<Node>>,
    free: Vec<usize>,
    /// Nodes by tree, the node before them, and tokens.
    by_place: HashTable<NodeId>,
    hasher: RandomState,
    /// Beginnings that all members may share.
    common: Vec<Box<[TokenId]>>,
    members: HashMap<MemberId, usize>,
    /// The tree of members who trust each other.
    trusting: usize,
    roots: Vec<Root>,
    idle: usize,
    /// The address of what comes before all texts.
    beginning: Option<ChainDigest>,
    /// Counts whoever stops using something, so that it is known what was left first.
    clock: u64,
    step: u64,
}

impl PrefixCache {
    pub(crate) fn new(block_tokens: u32) -> Self {
        Self {
            block_tokens: block_tokens as usize,
            nodes: Vec::new(),
            free: Vec::new(),
            by_place: HashTable::new(),
            hasher: RandomState::new(),
            common: Vec::new(),
            members: HashMap::new(),
            trusting: 1,
            roots: vec![Root::default(), Root::default()],
            idle: 0,
            beginning: None,
            clock: 0,
            step: 0,
        }
    }

    /// Nodes have addresses from now on, after this one.
    pub(crate) fn address_from(&mut self, beginning: ChainDigest) {
        self.beginning = Some(beginning);
    }

    /// A node's address, where nodes have any.
    pub(crate) fn digest(&self, id: NodeId) -> Option<ChainDigest> {
        self.node(id).digest
    }

    /// Blocks that nobody uses.
    pub(crate) fn idle(&self) -> usize {
        self.idle
    }

    /// A step begins.
    pub(crate) fn tick(&mut self) {
        self.step += 1;
    }

    /// All members may share how these texts begin, block by block, and no others any more.
    pub(crate) fn set_common(&mut self, beginnings: &[Vec<TokenId>]) {
        self.common = beginnings.iter().map(|tokens| tokens.as_slice().into()).collect();
    }

    /// How many blocks at the beginning of these tokens are common to all.
    pub(crate) fn common_blocks(&self, tokens: &[TokenId]) -> usize {
        let alike = |other: &[TokenId]| {
            other.iter().zip(tokens).take_while(|(a, b)| a == b).count() / self.block_tokens
        };
        self.common.iter().map(|other| alike(other)).max().unwrap_or(0)
    }

    /// Of the blocks that nobody uses, how many can be had for this member.
    pub(crate) fn idle_for(&self, member: Taker<'_>) -> usize {
        let taker = self.size_of(member);
        let may = (0..self.roots.len()).filter(|root| self.may_take(taker, *root));
        may.map(|root| self.roots[root].idle).sum()
    }

    fn size_of(&self, member: Taker<'_>) -> Option<usize> {
        member.map(|whose| self.roots.get(self.root_of(whose)).map_or(0, |root| root.nodes))
    }

    /// What is common goes last: nodes of all trees may follow it.
    fn may_take(&self, taker: Option<usize>, root: usize) -> bool {
        let Root { nodes, used, forgotten, .. } = self.roots[root];
        let away = self.step - used > LONG_AWAY;
        forgotten || taker.is_none_or(|size| root != COMMON && (nodes >= size || away))
    }

    /// Uses the nodes that hold how these tokens begin, at most `most` of them, and appends them and their blocks.
    pub(crate) fn find(
        &mut self,
        whose: Whose<'_>,
        tokens: &[TokenId],
        most: usize,
        chain: &mut Vec<NodeId>,
        blocks: &mut Vec<BlockId>,
    ) {
        let (root, common) = (self.root_of(whose), self.common_blocks(tokens));
        for (at, part) in tokens.chunks_exact(self.block_tokens).take(most).enumerate() {
            let root = if at < common { COMMON } else { root };
            let Some(id) = self.lookup(root, chain.last().copied(), part) else { return };
            self.enter(id);
            chain.push(id);
            blocks.push(self.node(id).block);
        }
    }

    fn lookup(&self, root: usize, parent: Option<NodeId>, tokens: &[TokenId]) -> Option<NodeId> {
        let hash = self.hasher.hash_one((root, parent, tokens));
        let is = |id: &NodeId| {
            let node = self.node(*id);
            node.root == root && node.parent == parent && *node.tokens == *tokens
        };
        self.by_place.find(hash, is).copied()
    }

    /// Keeps the block that follows those of `chain` at the beginning of `tokens`, and appends its node, which is used.
    /// Where there is one with the same tokens already, that one is used instead, and the caller's block is not needed any
    /// more. Says which block it is.
    pub(crate) fn keep(
        &mut self,
        whose: Whose<'_>,
        chain: &mut Vec<NodeId>,
        tokens: &[TokenId],
        block: BlockId,
    ) -> BlockId {
        let at = chain.len() * self.block_tokens;
        let before = chain.last().is_none_or(|last| self.node(*last).root == COMMON);
        let common = before && chain.len() < self.common_blocks(tokens);
        let root = if common { COMMON } else { self.make_root_of(whose) };
        let (parent, tokens) = (chain.last().copied(), &tokens[at..at + self.block_tokens]);
        if let Some(id) = self.lookup(root, parent, tokens) {
            self.enter(id);
            chain.push(id);
            return self.node(id).block;
        }
        self.roots[root].nodes += 1;
        let before = parent.map_or(self.beginning, |parent| self.node(parent).digest);
        let digest = before.map(|before| before.then(tokens));
        let tokens = tokens.into();
        let node = Node { root, parent, tokens, digest, block, users: 1, children: 0, left: 0 };
        let id = match self.free.pop() {
            Some(at) => {
                self.nodes[at] = Some(node);
                NodeId(at)
            }
            None => {
                self.nodes.push(Some(node));
                NodeId(self.nodes.len() - 1)
            }
        };
        if let Some(parent) = parent {
            self.node_mut(parent).children += 1;
        }
        let Self { nodes, hasher, by_place, .. } = self;
        let hash = |id: &NodeId| {
            let node = nodes[id.0].as_ref().expect("a node that can be found is there");
            hasher.hash_one((node.root, node.parent, &*node.tokens))
        };
        by_place.insert_unique(hash(&id), id, hash);
        chain.push(id);
        block
    }

    /// The tree of whoever asks; past the last one where they have none yet.
    fn root_of(&self, whose: Whose<'_>) -> usize {
        match whose {
            Whose::Member(member) => self.members.get(member).copied().unwrap_or(self.roots.len()),
            Whose::Trusting => self.trusting,
        }
    }

    fn make_root_of(&mut self, whose: Whose<'_>) -> usize {
        let root = self.root_of(whose);
        if let (Whose::Member(member), true) = (whose, root == self.roots.len()) {
            let root = self.new_root();
            self.members.insert(member.clone(), root);
            return root;
        }
        root
    }

    /// An empty tree, in the place of one that was forgotten and of which nothing is left, or behind all others.
    fn new_root(&mut self) -> usize {
        let left_over = self.roots.iter().position(|root| root.forgotten && root.nodes == 0);
        let at = left_over.unwrap_or(self.roots.len());
        if at == self.roots.len() {
            self.roots.push(Root::default());
        }
        self.roots[at] = Root { used: self.step, ..Root::default() };
        at
    }

    /// Nothing that was kept for them is found again. Appends the blocks that nobody uses; the others can be had as soon as
    /// their users leave.
    pub(crate) fn forget(&mut self, whose: Whose<'_>, to: &mut Vec<BlockId>) {
        let root = self.root_of(whose);
        if root == self.roots.len() {
            return;
        }
        self.roots[root].forgotten = true;
        to.extend(std::iter::from_fn(|| self.evict_one(&[root])));
        match whose {
            Whose::Member(member) => {
                self.members.remove(member);
            }
            Whose::Trusting => self.trusting = self.new_root(),
        }
    }

    /// Stops using these nodes. Their blocks stay.
    pub(crate) fn leave(&mut self, chain: &mut Vec<NodeId>) {
        self.clock += 1;
        let (now, step) = (self.clock, self.step);
        for id in chain.drain(..).rev() {
            let node = self.node_mut(id);
            node.users -= 1;
            if node.users == 0 {
                node.left = now;
                let (leaf, root) = (node.children == 0, node.root);
                self.idle += 1;
                self.roots[root].idle += 1;
                self.roots[root].used = step;
                if leaf {
                    self.roots[root].leaves.insert((now, id));
                }
            }
        }
    }

    /// Gives up so many of the blocks that [`PrefixCache::idle_for`] counts.
    pub(crate) fn evict(&mut self, count: usize, member: Taker<'_>, to: &mut Vec<BlockId>) {
        let taker = self.size_of(member);
        let may = |at: &usize| self.may_take(taker, *at);
        let from: Vec<usize> = (0..self.roots.len()).filter(may).collect();
        to.extend(std::iter::from_fn(|| self.evict_one(&from)).take(count));
    }

    /// Gives up a block: of the member who has most of them, the one that was used longest ago. Whoever reads much
    /// pushes out what they kept themselves, and not what others come back to.
    fn evict_one(&mut self, from: &[usize]) -> Option<BlockId> {
        let oldest = |root: &Root| root.leaves.first().map(|(left, _)| std::cmp::Reverse(*left));
        let can = from.iter().copied().filter(|at| !self.roots[*at].leaves.is_empty());
        let at = can.max_by_key(|at| {
            let root = &self.roots[*at];
            (root.forgotten, root.nodes, oldest(root))
        })?;
        let root = &mut self.roots[at];
        root.nodes -= 1;
        root.idle -= 1;
        let (_, id) = root.leaves.pop_first()?;
        let node = self.node(id);
        let hash = self.hasher.hash_one((node.root, node.parent, &*node.tokens));
        if let Ok(place) = self.by_place.find_entry(hash, |other| *other == id) {
            place.remove();
        }
        let node = self.nodes[id.0].take().expect("a leaf is there");
        self.free.push(id.0);
        self.idle -= 1;
        if let Some(parent) = node.parent {
            let above = self.node_mut(parent);
            above.children -= 1;
            if above.users == 0 && above.children == 0 {
                let (left, root) = (above.left, above.root);
                self.roots[root].leaves.insert((left, parent));
            }
        }
        Some(node.block)
    }

    fn enter(&mut self, id: NodeId) {
        let node = self.node_mut(id);
        node.users += 1;
        let (first, left, root) = (node.users == 1, node.left, node.root);
        if first {
            self.idle -= 1;
            self.roots[root].idle -= 1;
            self.roots[root].leaves.remove(&(left, id));
        }
    }

    fn node(&self, id: NodeId) -> &Node {
        self.nodes[id.0].as_ref().expect("a node in use is there")
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes[id.0].as_mut().expect("a node in use is there")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(text: &[u32]) -> Vec<TokenId> {
        text.iter().copied().map(TokenId).collect()
    }

    /// Keeps all of a text, whose blocks have these numbers.
    fn keep(cache: &mut PrefixCache, who: &str, text: &[u32], blocks: &[u32]) -> Vec<NodeId> {
        let (mut chain, member) = (Vec::new(), MemberId::new(who));
        for block in blocks {
            cache.keep(Whose::Member(&member), &mut chain, &tokens(text), BlockId(*block));
        }
        chain
    }

    fn evicted(cache: &mut PrefixCache, count: usize, taker: Taker<'_>) -> Vec<u32> {
        let mut blocks = Vec::new();
        cache.evict(count, taker, &mut blocks);
        blocks.into_iter().map(|block| block.0).collect()
    }

    fn found(cache: &mut PrefixCache, who: &str, text: &[u32]) -> (Vec<NodeId>, Vec<u32>) {
        let (mut chain, mut blocks) = (Vec::new(), Vec::new());
        let member = MemberId::new(who);
        cache.find(Whose::Member(&member), &tokens(text), 9, &mut chain, &mut blocks);
        (chain, blocks.into_iter().map(|block| block.0).collect())
    }

    #[test]
    fn a_text_that_begins_alike_finds_the_blocks_as_far_as_it_does() {
        let mut cache = PrefixCache::new(2);
        let mut first = keep(&mut cache, "ada", &[1, 2, 3, 4, 5, 6], &[10, 11, 12]);
        cache.leave(&mut first);
        assert_eq!(cache.idle(), 3);
        let (mut chain, blocks) = found(&mut cache, "ada", &[1, 2, 3, 4, 9, 9, 7]);
        assert_eq!((blocks, cache.idle()), (vec![10, 11], 1));
        cache.leave(&mut chain);
        // In the middle of a block nothing is shared, and nothing with another member.
        assert!(found(&mut cache, "ada", &[1, 9, 3, 4]).1.is_empty());
        assert!(found(&mut cache, "bob", &[1, 2, 3, 4]).1.is_empty());
    }

    #[test]
    fn whoever_has_most_gives_up_first_however_long_others_are_away() {
        let mut cache = PrefixCache::new(2);
        let mut small = keep(&mut cache, "ada", &[1, 2, 3, 4], &[0, 1]);
        cache.leave(&mut small);
        for at in 0..4 {
            let block = 10 + 2 * at;
            let mut large = keep(&mut cache, "bob", &[5 + at, 6, 7, 8], &[block, block + 1]);
            cache.leave(&mut large);
        }
        // Bob's, oldest first, until both have as many; then the one that was left first.
        assert_eq!(evicted(&mut cache, 99, None), [11, 10, 13, 12, 15, 14, 1, 17, 0, 16]);
    }

    #[test]
    fn a_registered_beginning_is_shared_by_all_and_what_follows_it_by_nobody() {
        let mut cache = PrefixCache::new(2);
        cache.set_common(&[tokens(&[1, 2, 3, 4, 5])]);
        let mut first = keep(&mut cache, "ada", &[1, 2, 3, 4, 5, 6, 7, 8], &[0, 1, 2, 3]);
        let (mut chain, blocks) = found(&mut cache, "bob", &[1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(blocks, [0, 1]);
        assert!(found(&mut cache, "bob", &[5, 6]).1.is_empty());
        cache.leave(&mut chain);
        let mut second = keep(&mut cache, "bob", &[1, 2, 3, 4, 5, 6], &[8, 9, 4]);
        assert_eq!(cache.node(second[1]).block, BlockId(1));
        assert_eq!(cache.node(second[2]).block, BlockId(4));
        cache.leave(&mut first);
        cache.leave(&mut second);
        // What is common is not taken for one of them.
        let (ada, bob) = (MemberId::new("ada"), MemberId::new("bob"));
        assert_eq!(cache.idle_for(Some(Whose::Member(&ada))), 2);
        assert_eq!(evicted(&mut cache, 9, Some(Whose::Member(&bob))), [3, 2, 4]);
        assert_eq!(evicted(&mut cache, 9, None), [1, 0]);
        assert!(found(&mut cache, "ada", &[1, 2]).1.is_empty());
    }

    #[test]
    fn members_who_trust_each_other_share_and_others_do_not() {
        let mut cache = PrefixCache::new(2);
        let mut chain = Vec::new();
        cache.keep(Whose::Trusting, &mut chain, &tokens(&[1, 2]), BlockId(7));
        assert!(found(&mut cache, "ada", &[1, 2]).1.is_empty());
        let (mut other, mut blocks) = (Vec::new(), Vec::new());
        cache.find(Whose::Trusting, &tokens(&[1, 2, 3]), 9, &mut other, &mut blocks);
        assert_eq!((other, blocks), (chain, vec![BlockId(7)]));
    }

    #[test]
    fn a_member_with_more_does_not_take_what_a_member_with_less_keeps() {
        let mut cache = PrefixCache::new(2);
        let (ada, bob) = (MemberId::new("ada"), MemberId::new("bob"));
        let (ada, bob) = (Whose::Member(&ada), Whose::Member(&bob));
        let mut small = keep(&mut cache, "ada", &[1, 2, 3, 4], &[0, 1]);
        cache.leave(&mut small);
        let mut large = keep(&mut cache, "bob", &[5, 6, 7, 8, 9, 9], &[2, 3, 4]);
        assert_eq!(cache.idle_for(Some(bob)), 0);
        assert!(evicted(&mut cache, 9, Some(bob)).is_empty());
        cache.leave(&mut large);
        assert_eq!((cache.idle_for(Some(bob)), cache.idle_for(Some(ada))), (3, 5));
        assert_eq!(evicted(&mut cache, 1, Some(ada)), [4]);
        // Now he has no more than she.
        assert_eq!(cache.idle_for(Some(bob)), 4);
        let mut large = keep(&mut cache, "bob", &[8, 8, 8, 8], &[5, 6]);
        assert_eq!((cache.idle_for(Some(bob)), cache.idle_for(None)), (2, 4));
        (0..=LONG_AWAY).for_each(|_| cache.tick());
        assert_eq!(cache.idle_for(Some(bob)), 4);
        cache.leave(&mut large);
    }

    #[test]
    fn what_was_left_first_goes_first_from_its_end_and_what_is_used_stays() {
        let mut cache = PrefixCache::new(2);
        let mut old = keep(&mut cache, "ada", &[1, 2, 3, 4], &[0, 1]);
        let mut new = keep(&mut cache, "ada", &[1, 2, 5, 6], &[9, 2]);
        // The first block is the older one's.
        assert_eq!(cache.node(new[0]).block, BlockId(0));
        cache.leave(&mut old);
        assert_eq!(evicted(&mut cache, 9, None), [1]);
        cache.leave(&mut new);
        assert_eq!(evicted(&mut cache, 9, None), [2, 0]);
        assert_eq!(cache.idle(), 0);
        assert!(found(&mut cache, "ada", &[1, 2]).1.is_empty());
    }

    #[test]
    fn what_was_forgotten_is_not_found_and_goes_first_however_little_it_is() {
        let mut cache = PrefixCache::new(2);
        let ada = MemberId::new("ada");
        let mut large = keep(&mut cache, "bob", &[5, 6, 7, 8, 9, 9], &[2, 3, 4]);
        let mut old = keep(&mut cache, "ada", &[1, 2, 3, 4], &[0, 1]);
        let mut used = keep(&mut cache, "ada", &[1, 2], &[0]);
        cache.leave(&mut old);
        let mut gone = Vec::new();
        cache.forget(Whose::Member(&ada), &mut gone);
        assert_eq!(gone, [BlockId(1)]);
        assert!(found(&mut cache, "ada", &[1, 2, 3, 4]).1.is_empty());
        // She starts anew beside what is still used.
        let mut new = keep(&mut cache, "ada", &[1, 2], &[8]);
        cache.leave(&mut used);
        cache.leave(&mut large);
        cache.leave(&mut new);
        let cyd = MemberId::new("cyd");
        let roots = cache.roots.len();
        assert_eq!(evicted(&mut cache, 2, Some(Whose::Member(&cyd))), [0, 4]);
        cache.forget(Whose::Trusting, &mut gone);
        keep(&mut cache, "dan", &[1, 2], &[0]);
        assert!(cache.roots.len() <= roots + 1, "an empty tree is used again");
        assert_eq!(found(&mut cache, "ada", &[1, 2]).1, [8]);
    }
}
