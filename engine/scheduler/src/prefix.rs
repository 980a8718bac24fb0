//! What was read before and may be read again: full blocks of KV in a tree over the tokens that they hold.
//!
//! A node is one block. Its place in the tree says which tokens came before, so that two requests that begin alike
//! share blocks as far as they do. Trees of different members have nothing in common: what one of them asked
//! cannot be found out by how fast another one is answered.
//!
//! Whoever uses a node uses all nodes above it. Nodes without users therefore hang at the ends, and every one of them can be had
//! for somebody else, leaf by leaf, the one that was used longest ago first.

use std::collections::{BTreeSet, HashMap};

use polder_backend::{BlockId, TokenId};

use crate::request::MemberId;

/// A node's number while somebody uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct NodeId(usize);

/// What comes before a block: another one, or a member's nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Parent {
    Root(usize),
    Node(NodeId),
}

#[derive(Debug)]
struct Node {
    parent: Parent,
    tokens: Box<[TokenId]>,
    block: BlockId,
    users: u32,
    children: u32,
    /// When its last user left.
    left: u64,
}

/// The trees of all members.
#[derive(Debug)]
pub(crate) struct PrefixCache {
    block_tokens: usize,
    nodes: Vec<Option<Node>>,
    free: Vec<usize>,
    by_place: HashMap<(Parent, Box<[TokenId]>), NodeId>,
    roots: HashMap<MemberId, usize>,
    /// Leaves that nobody uses, by when that began.
    leaves: BTreeSet<(u64, NodeId)>,
    idle: usize,
    clock: u64,
}

impl PrefixCache {
    pub(crate) fn new(block_tokens: u32) -> Self {
        Self {
            block_tokens: block_tokens as usize,
            nodes: Vec::new(),
            free: Vec::new(),
            by_place: HashMap::new(),
            roots: HashMap::new(),
            leaves: BTreeSet::new(),
            idle: 0,
            clock: 0,
        }
    }

    /// Blocks that nobody uses. All of them can be had.
    pub(crate) fn idle(&self) -> usize {
        self.idle
    }

    /// Uses the nodes that hold how these tokens begin, at most `most` of them, and appends them and their blocks.
    pub(crate) fn find(
        &mut self,
        member: &MemberId,
        tokens: &[TokenId],
        most: usize,
        chain: &mut Vec<NodeId>,
        blocks: &mut Vec<BlockId>,
    ) {
        let Some(root) = self.roots.get(member) else { return };
        let mut parent = Parent::Root(*root);
        for part in tokens.chunks_exact(self.block_tokens).take(most) {
            let Some(id) = self.by_place.get(&(parent, Box::from(part))).copied() else { return };
            self.enter(id);
            chain.push(id);
            blocks.push(self.node(id).block);
            parent = Parent::Node(id);
        }
    }

    /// Keeps a block that follows those of `chain`, and appends its node, which is used. Where there is one with the same tokens
    /// already, that one is used instead, and the block stays the caller's own.
    pub(crate) fn keep(
        &mut self,
        member: &MemberId,
        chain: &mut Vec<NodeId>,
        tokens: &[TokenId],
        block: BlockId,
    ) {
        debug_assert_eq!(tokens.len(), self.block_tokens);
        let parent = match chain.last() {
            Some(last) => Parent::Node(*last),
            None => {
                let next = self.roots.len();
                Parent::Root(*self.roots.entry(member.clone()).or_insert(next))
            }
        };
        let place = (parent, Box::from(tokens));
        if let Some(id) = self.by_place.get(&place).copied() {
            self.enter(id);
            chain.push(id);
            return;
        }
        let node = Node { parent, tokens: place.1.clone(), block, users: 1, children: 0, left: 0 };
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
        if let Parent::Node(parent) = parent {
            self.node_mut(parent).children += 1;
        }
        self.by_place.insert(place, id);
        chain.push(id);
    }

    /// Whether this node holds this block.
    pub(crate) fn holds(&self, node: NodeId, block: BlockId) -> bool {
        self.node(node).block == block
    }

    /// Stops using these nodes. Their blocks stay.
    pub(crate) fn leave(&mut self, chain: &mut Vec<NodeId>) {
        self.clock += 1;
        let now = self.clock;
        for id in chain.drain(..).rev() {
            let node = self.node_mut(id);
            node.users -= 1;
            if node.users == 0 {
                node.left = now;
                let leaf = node.children == 0;
                self.idle += 1;
                if leaf {
                    self.leaves.insert((now, id));
                }
            }
        }
    }

    /// Gives up the block that was used longest ago.
    pub(crate) fn evict(&mut self) -> Option<BlockId> {
        let (_, id) = self.leaves.pop_first()?;
        let node = self.nodes[id.0].take().expect("a leaf is there");
        self.free.push(id.0);
        self.idle -= 1;
        self.by_place.remove(&(node.parent, node.tokens));
        if let Parent::Node(parent) = node.parent {
            let above = self.node_mut(parent);
            above.children -= 1;
            if above.users == 0 && above.children == 0 {
                let left = above.left;
                self.leaves.insert((left, parent));
            }
        }
        Some(node.block)
    }

    fn enter(&mut self, id: NodeId) {
        let node = self.node_mut(id);
        node.users += 1;
        let (first, left) = (node.users == 1, node.left);
        if first {
            self.idle -= 1;
            self.leaves.remove(&(left, id));
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
        for (part, block) in tokens(text).chunks_exact(2).zip(blocks) {
            cache.keep(&member, &mut chain, part, BlockId(*block));
        }
        chain
    }

    fn found(cache: &mut PrefixCache, who: &str, text: &[u32]) -> (Vec<NodeId>, Vec<u32>) {
        let (mut chain, mut blocks) = (Vec::new(), Vec::new());
        cache.find(&MemberId::new(who), &tokens(text), 9, &mut chain, &mut blocks);
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
    fn what_was_left_first_goes_first_from_its_end_and_what_is_used_stays() {
        let mut cache = PrefixCache::new(2);
        let mut old = keep(&mut cache, "ada", &[1, 2, 3, 4], &[0, 1]);
        let mut new = keep(&mut cache, "ada", &[1, 2, 5, 6], &[9, 2]);
        // The first block is the older one's; the other copy stays its maker's.
        assert!(cache.holds(new[0], BlockId(0)) && !cache.holds(new[0], BlockId(9)));
        cache.leave(&mut old);
        assert_eq!((cache.evict(), cache.evict()), (Some(BlockId(1)), None));
        cache.leave(&mut new);
        assert_eq!((cache.evict(), cache.evict()), (Some(BlockId(2)), Some(BlockId(0))));
        assert_eq!((cache.idle(), cache.evict()), (0, None));
        assert!(found(&mut cache, "ada", &[1, 2]).1.is_empty());
    }
}
