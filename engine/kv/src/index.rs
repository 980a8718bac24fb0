//! What is kept where: trees of blocks in two tiers, and who must go when one is full. No I/O, no clock.
//!
//! A node is a block, with a copy in host memory, on disk, or in both. Three things hold at all times:
//!
//! - every node can be reached from its member's beginning, because a node whose last copy goes takes all below it along;
//! - on disk this holds without the host's help: a block is written after its parent and given up before it, so that
//!   what is there after a restart can be reached;
//! - a parent was used no earlier than its children.
//!
//! Whoever is least recently used in a tier, among those without children there, goes first.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use crate::counters::Counters;
use crate::digest::ChainDigest;
use crate::record::Nonce;
use crate::store::{Block, Kept, Tier};

/// A member, by a number that is never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct MemberNo(pub(crate) u32);

/// Where a block belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Address {
    pub(crate) member: MemberNo,
    pub(crate) digest: ChainDigest,
}

/// What lies in a slot of the disk, as its entry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) at: Address,
    pub(crate) parent: ChainDigest,
    /// Blocks before it.
    pub(crate) position: u32,
    /// When it was last used, in seconds.
    pub(crate) used: u64,
    pub(crate) slot: u64,
    /// The nonce of its bytes.
    pub(crate) nonce: Nonce,
}

/// A block to be written.
#[derive(Debug, Clone)]
pub(crate) struct Spill {
    pub(crate) at: Address,
    pub(crate) parent: ChainDigest,
    pub(crate) position: u32,
    pub(crate) used: u64,
    pub(crate) bytes: Block,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct NodeId(usize);

#[derive(Debug, Clone, Copy)]
struct OnDisk {
    slot: u64,
    nonce: Nonce,
    /// The last use that its entry on disk tells.
    stamped: u64,
}

#[derive(Debug)]
struct Node {
    at: Address,
    parent: Option<NodeId>,
    position: u32,
    used: u64,
    host: Option<Block>,
    disk: Option<OnDisk>,
    children: Vec<NodeId>,
    host_children: u32,
    disk_children: u32,
    /// Waits to be written.
    to_spill: bool,
    /// Waits for its entry to be written again.
    to_stamp: bool,
}

/// What both tiers may hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) host_blocks: usize,
    pub(crate) disk_blocks: usize,
    /// Seconds by which an entry's last use may be behind.
    pub(crate) stamp_every: u64,
}

/// All blocks of all members.
#[derive(Debug)]
pub(crate) struct Index {
    bounds: Bounds,
    root: ChainDigest,
    nodes: Vec<Option<Node>>,
    free_nodes: Vec<usize>,
    by_address: HashMap<Address, NodeId>,
    /// First blocks.
    tops: HashMap<MemberNo, Vec<NodeId>>,
    host_leaves: BTreeSet<(u64, NodeId)>,
    disk_leaves: BTreeSet<(u64, NodeId)>,
    spills: VecDeque<Address>,
    stamps: VecDeque<Address>,
    free_slots: BTreeSet<u64>,
    next_slot: u64,
    /// Slots that nobody may reuse before they are cleared.
    uncleared: VecDeque<u64>,
    /// Not free: blocks, blocks being written, and the uncleared.
    slots_taken: usize,
    /// Memory to be given back once nobody waits for us.
    trash: Vec<Block>,
    pub(crate) counts: Counters,
}

impl Index {
    pub(crate) fn new(bounds: Bounds, root: ChainDigest) -> Self {
        Self {
            bounds,
            root,
            nodes: Vec::new(),
            free_nodes: Vec::new(),
            by_address: HashMap::new(),
            tops: HashMap::new(),
            host_leaves: BTreeSet::new(),
            disk_leaves: BTreeSet::new(),
            spills: VecDeque::new(),
            stamps: VecDeque::new(),
            free_slots: BTreeSet::new(),
            next_slot: 0,
            uncleared: VecDeque::new(),
            slots_taken: 0,
            trash: Vec::new(),
            counts: Counters::default(),
        }
    }

    /// Takes in what lies in the slots of the disk; `unclear` are slots that take room for nothing. What cannot be reached, is
    /// there twice or is too much is given up.
    pub(crate) fn load(&mut self, mut written: Vec<Written>, unclear: Vec<u64>) {
        written.sort_by_key(|block| (block.position, block.slot));
        let slots = written.iter().map(|block| block.slot).chain(unclear.iter().copied());
        self.next_slot = slots.max().map_or(0, |last| last + 1);
        self.free_slots = (0..self.next_slot).collect();
        self.slots_taken = unclear.len();
        for slot in &unclear {
            self.free_slots.remove(slot);
        }
        self.uncleared.extend(unclear);
        let mut loaded = Vec::with_capacity(written.len());
        for block in written {
            self.free_slots.remove(&block.slot);
            self.slots_taken += 1;
            let parent = self.parent(block.at.member, &block.parent);
            let position = parent.as_ref().map(|parent| self.position_after(*parent));
            if position != Some(block.position) || self.by_address.contains_key(&block.at) {
                self.uncleared.push_back(block.slot);
                continue;
            }
            let disk = OnDisk { slot: block.slot, nonce: block.nonce, stamped: block.used };
            let parent = parent.flatten();
            loaded.push(self.attach(block.at, parent, block.used, None, Some(disk)));
        }
        for id in loaded.into_iter().rev() {
            let (used, parent) = (self.node(id).used, self.node(id).parent);
            if let Some(parent) = parent
                && self.node(parent).used < used
            {
                self.set_used(parent, used);
            }
        }
        while self.counts.disk_blocks > self.bounds.disk_blocks as u64 {
            let Some((_, leaf)) = self.disk_leaves.first().copied() else { break };
            if let Some(slot) = self.drop_disk(leaf) {
                self.uncleared.push_back(slot);
            }
        }
    }

    /// Where it is kept. Host memory first.
    pub(crate) fn tier(&self, at: &Address) -> Option<Tier> {
        let node = self.node(*self.by_address.get(at)?);
        Some(if node.host.is_some() { Tier::Host } else { Tier::Disk })
    }

    /// It and all before it are used.
    pub(crate) fn touch(&mut self, at: &Address, now: u64) {
        if let Some(id) = self.by_address.get(at).copied() {
            self.touch_node(id, now);
        }
    }

    /// Takes a block into host memory, to be written to disk when there is time.
    pub(crate) fn put(
        &mut self,
        at: Address,
        parent: &ChainDigest,
        bytes: Block,
        now: u64,
    ) -> Kept {
        if let Some(id) = self.by_address.get(&at).copied() {
            self.touch_node(id, now);
            self.trash.push(bytes);
            return Kept::Already;
        }
        let Some(parent) = self.parent(at.member, parent) else {
            self.counts.refusals += 1;
            return Kept::Orphan;
        };
        if let Some(parent) = parent {
            self.touch_node(parent, now);
        }
        if !self.make_room_in_host(parent, u64::MAX) {
            self.counts.refusals += 1;
            return Kept::NoRoom;
        }
        let id = self.attach(at, parent, now, Some(bytes), None);
        self.counts.puts += 1;
        if self.bounds.disk_blocks > 0 {
            self.node_mut(id).to_spill = true;
            self.spills.push_back(at);
            self.forget_spills_of_gone();
        }
        Kept::New
    }

    /// The bytes, where host memory has them.
    pub(crate) fn host(&self, at: &Address) -> Option<Block> {
        self.node(*self.by_address.get(at)?).host.clone()
    }

    /// Where on disk it lies.
    pub(crate) fn on_disk(&self, at: &Address) -> Option<Written> {
        let node = self.node(*self.by_address.get(at)?);
        let disk = node.disk?;
        Some(Written {
            at: *at,
            parent: self.parent_digest(node),
            position: node.position,
            used: node.used,
            slot: disk.slot,
            nonce: disk.nonce,
        })
    }

    /// Keeps in host memory too what was read from disk, if something older can go for it.
    pub(crate) fn restored(&mut self, at: &Address, bytes: &Block) {
        let Some(id) = self.by_address.get(at).copied() else { return };
        if self.node(id).host.is_some() || !self.make_room_in_host(None, self.node(id).used) {
            return;
        }
        // Only host copies went, or blocks that had no other: this one is on disk and still there.
        self.unlist(id);
        self.node_mut(id).host = Some(bytes.clone());
        self.counts.host_blocks += 1;
        self.list(id);
        self.change_parent(id, |parent| parent.host_children += 1);
    }

    /// Forgets a block that could not be read, and those that cannot be reached without it.
    pub(crate) fn failed(&mut self, at: &Address) {
        if let Some(id) = self.by_address.get(at).copied() {
            self.remove(id);
        }
    }

    /// The next block to be written: the first one that is not on disk of the text that has waited longest.
    pub(crate) fn next_spill(&mut self) -> Option<Spill> {
        while let Some(at) = self.spills.front().copied() {
            let Some(mut id) = self.by_address.get(&at).copied() else {
                self.spills.pop_front();
                continue;
            };
            if !self.node(id).to_spill || self.node(id).disk.is_some() {
                self.skip_spill();
                continue;
            }
            while let Some(parent) = self.node(id).parent
                && self.node(parent).disk.is_none()
            {
                id = parent;
            }
            let node = self.node(id);
            let Some(bytes) = node.host.clone() else {
                self.skip_spill();
                continue;
            };
            return Some(Spill {
                at: node.at,
                parent: self.parent_digest(node),
                position: node.position,
                used: node.used,
                bytes,
            });
        }
        None
    }

    /// Does not write the text that is next.
    pub(crate) fn skip_spill(&mut self) {
        if let Some(at) = self.spills.pop_front()
            && let Some(id) = self.by_address.get(&at).copied()
        {
            self.node_mut(id).to_spill = false;
        }
    }

    /// Where the disk stands still, blocks that wait for it go, and must not be waited for in ever longer a row.
    fn forget_spills_of_gone(&mut self) {
        if self.spills.len() > 2 * self.bounds.host_blocks + 64 {
            let Self { spills, by_address, .. } = self;
            spills.retain(|at| by_address.contains_key(at));
        }
    }

    /// Blocks that wait to be written.
    pub(crate) fn spills(&self) -> usize {
        self.spills.len()
    }

    /// Writes nothing more.
    pub(crate) fn stop_spilling(&mut self) {
        while !self.spills.is_empty() {
            self.skip_spill();
        }
        self.bounds.disk_blocks = 0;
    }

    /// A slot to write a block to: a new one if the disk has room, or that of a block that was used less recently.
    pub(crate) fn slot_for(&mut self, spill: &Spill, may_grow: bool) -> Option<u64> {
        if may_grow && self.slots_taken < self.bounds.disk_blocks {
            self.slots_taken += 1;
            return Some(self.free_slots.pop_first().unwrap_or_else(|| {
                self.next_slot += 1;
                self.next_slot - 1
            }));
        }
        let (used, leaf) = self.disk_leaves.first().copied()?;
        // Its own parent was used no earlier, and stays.
        if used < spill.used { self.drop_disk(leaf) } else { None }
    }

    /// A block lies in its slot. Where it is no longer wanted, or has been cut off, the slot is given up.
    pub(crate) fn spilled(&mut self, written: &Written) {
        let id = self.by_address.get(&written.at).copied().filter(|id| {
            let node = self.node(*id);
            node.disk.is_none() && node.parent.is_none_or(|p| self.node(p).disk.is_some())
        });
        let Some(id) = id else {
            self.uncleared.push_back(written.slot);
            return;
        };
        self.unlist(id);
        let disk = OnDisk { slot: written.slot, nonce: written.nonce, stamped: written.used };
        self.node_mut(id).disk = Some(disk);
        self.counts.disk_blocks += 1;
        self.counts.spills += 1;
        self.list(id);
        self.change_parent(id, |parent| parent.disk_children += 1);
    }

    /// A slot that must be cleared, and then [`Self::cleared`].
    pub(crate) fn next_uncleared(&mut self) -> Option<u64> {
        self.uncleared.pop_front()
    }

    /// Whether slots must be cleared.
    pub(crate) fn has_uncleared(&self) -> bool {
        !self.uncleared.is_empty()
    }

    /// A slot can be used again.
    pub(crate) fn cleared(&mut self, slot: u64) {
        self.slots_taken -= 1;
        self.free_slots.insert(slot);
    }

    /// A slot was not written after all.
    pub(crate) fn unwritten(&mut self, slot: u64) {
        self.uncleared.push_back(slot);
    }

    /// A block whose entry should tell a later use. It is taken for told.
    pub(crate) fn next_stamp(&mut self) -> Option<Written> {
        while let Some(at) = self.stamps.pop_front() {
            let Some(id) = self.by_address.get(&at).copied() else { continue };
            let node = self.node_mut(id);
            node.to_stamp = false;
            let used = node.used;
            if let Some(disk) = &mut node.disk {
                disk.stamped = used;
                return self.on_disk(&at);
            }
        }
        None
    }

    /// Whether entries should be written again.
    pub(crate) fn has_stamps(&self) -> bool {
        !self.stamps.is_empty()
    }

    /// Gives up at most `most` blocks that were not used within the retention. True where there may be more.
    pub(crate) fn expire(&mut self, now: u64, retention: Duration, most: usize) -> bool {
        let old = |leaf: Option<&(u64, NodeId)>| {
            leaf.copied()
                .filter(|(used, _)| now.saturating_sub(*used) > retention.as_secs())
                .map(|(_, id)| id)
        };
        for _ in 0..most {
            let before = self.by_address.len();
            if let Some(id) = old(self.disk_leaves.first()) {
                let drops = self.counts.drops;
                if let Some(slot) = self.drop_disk(id) {
                    self.uncleared.push_back(slot);
                }
                self.counts.drops = drops;
            } else if let Some(id) = old(self.host_leaves.first()) {
                let drops = self.counts.drops;
                self.drop_host(id);
                self.counts.drops = drops;
            } else {
                return false;
            }
            self.counts.expired += (before - self.by_address.len()) as u64;
        }
        true
    }

    /// Gives up the blocks below one of a member's beginnings. True where there may be more.
    pub(crate) fn forget(&mut self, member: MemberNo) -> bool {
        let Some(top) = self.tops.get(&member).and_then(|tops| tops.last()).copied() else {
            return false;
        };
        self.remove(top);
        true
    }

    /// Whether a member has blocks here.
    pub(crate) fn has(&self, member: MemberNo) -> bool {
        self.tops.contains_key(&member)
    }

    /// What was used at `since` or later was used `by` seconds later.
    pub(crate) fn shift(&mut self, since: u64, by: u64) {
        for id in (0..self.nodes.len()).map(NodeId) {
            if let Some(used) = self.nodes[id.0].as_ref().map(|node| node.used)
                && used >= since
            {
                self.set_used(id, used.saturating_add(by));
            }
        }
    }

    /// Memory that may be given back.
    pub(crate) fn take_trash(&mut self) -> Vec<Block> {
        std::mem::take(&mut self.trash)
    }

    /// The node before a block, none for the first one; nothing where it is not kept.
    fn parent(&self, member: MemberNo, digest: &ChainDigest) -> Option<Option<NodeId>> {
        if *digest == self.root {
            return Some(None);
        }
        self.by_address.get(&Address { member, digest: *digest }).copied().map(Some)
    }

    fn parent_digest(&self, node: &Node) -> ChainDigest {
        node.parent.map_or(self.root, |parent| self.node(parent).at.digest)
    }

    fn position_after(&self, parent: Option<NodeId>) -> u32 {
        parent.map_or(0, |parent| self.node(parent).position + 1)
    }

    fn attach(
        &mut self,
        at: Address,
        parent: Option<NodeId>,
        used: u64,
        host: Option<Block>,
        disk: Option<OnDisk>,
    ) -> NodeId {
        let (in_host, on_disk) = (u32::from(host.is_some()), u32::from(disk.is_some()));
        let node = Node {
            at,
            parent,
            position: self.position_after(parent),
            used,
            host,
            disk,
            children: Vec::new(),
            host_children: 0,
            disk_children: 0,
            to_spill: false,
            to_stamp: false,
        };
        let id = match self.free_nodes.pop() {
            Some(free) => {
                self.nodes[free] = Some(node);
                NodeId(free)
            }
            None => {
                self.nodes.push(Some(node));
                NodeId(self.nodes.len() - 1)
            }
        };
        self.by_address.insert(at, id);
        self.counts.host_blocks += u64::from(in_host);
        self.counts.disk_blocks += u64::from(on_disk);
        self.list(id);
        match parent {
            None => self.tops.entry(at.member).or_default().push(id),
            Some(_) => self.change_parent(id, |parent| {
                parent.children.push(id);
                parent.host_children += in_host;
                parent.disk_children += on_disk;
            }),
        }
        id
    }

    /// Room for one more block in host memory, from blocks used before `before`. The parent of what comes must stay
    /// somewhere.
    fn make_room_in_host(&mut self, parent: Option<NodeId>, before: u64) -> bool {
        if self.bounds.host_blocks == 0 {
            return false;
        }
        while self.counts.host_blocks >= self.bounds.host_blocks as u64 {
            let may_go = |id: &NodeId| Some(*id) != parent || self.node(*id).disk.is_some();
            let oldest = self
                .host_leaves
                .iter()
                .take_while(|(used, _)| *used < before)
                .map(|(_, id)| *id)
                .find(may_go);
            let Some(oldest) = oldest else { return false };
            self.drop_host(oldest);
        }
        true
    }

    /// Gives up the host's copy.
    fn drop_host(&mut self, id: NodeId) {
        if self.node(id).disk.is_none() {
            self.counts.drops += self.remove(id);
            return;
        }
        self.unlist(id);
        let bytes = self.node_mut(id).host.take();
        self.list(id);
        if let Some(bytes) = bytes {
            self.trash.push(bytes);
            self.counts.host_blocks -= 1;
            self.change_parent(id, |parent| parent.host_children -= 1);
        }
    }

    /// Gives up the disk's copy, which has no children there. Its slot stays taken, by the caller.
    fn drop_disk(&mut self, id: NodeId) -> Option<u64> {
        self.unlist(id);
        let disk = self.node_mut(id).disk.take();
        self.list(id);
        if disk.is_some() {
            self.counts.disk_blocks -= 1;
            self.change_parent(id, |parent| parent.disk_children -= 1);
        }
        if self.node(id).host.is_none() {
            self.counts.drops += self.remove(id);
        }
        disk.map(|disk| disk.slot)
    }

    /// Takes a node out with all below it, in both tiers, and says how many they were.
    fn remove(&mut self, id: NodeId) -> u64 {
        let mut below = vec![id];
        let mut next = 0;
        while let Some(id) = below.get(next).copied() {
            below.extend_from_slice(&self.node(id).children);
            next += 1;
        }
        let count = below.len() as u64;
        for id in below.into_iter().rev() {
            self.unlist(id);
            let (in_host, on_disk, at, top) = {
                let node = self.node(id);
                (node.host.is_some(), node.disk, node.at, node.parent.is_none())
            };
            self.counts.host_blocks -= u64::from(in_host);
            if let Some(disk) = on_disk {
                self.counts.disk_blocks -= 1;
                self.uncleared.push_back(disk.slot);
            }
            self.change_parent(id, |parent| {
                parent.children.retain(|child| *child != id);
                parent.host_children -= u32::from(in_host);
                parent.disk_children -= u32::from(on_disk.is_some());
            });
            if top && let Some(tops) = self.tops.get_mut(&at.member) {
                tops.retain(|other| *other != id);
                if tops.is_empty() {
                    self.tops.remove(&at.member);
                }
            }
            self.by_address.remove(&at);
            if let Some(node) = self.nodes[id.0].take() {
                self.trash.extend(node.host);
            }
            self.free_nodes.push(id.0);
        }
        count
    }

    fn touch_node(&mut self, id: NodeId, now: u64) {
        let mut next = Some(id);
        // Who was used by now has parents who were.
        while let Some(id) = next
            && self.node(id).used < now
        {
            self.set_used(id, now);
            next = self.node(id).parent;
        }
    }

    fn set_used(&mut self, id: NodeId, used: u64) {
        let every = self.bounds.stamp_every;
        self.unlist(id);
        let node = self.node_mut(id);
        node.used = used;
        let at = node.at;
        let stale = node.disk.is_some_and(|disk| used.saturating_sub(disk.stamped) >= every);
        if stale && !node.to_stamp {
            node.to_stamp = true;
            self.stamps.push_back(at);
        }
        self.list(id);
    }

    fn change_parent(&mut self, id: NodeId, change: impl FnOnce(&mut Node)) {
        if let Some(parent) = self.node(id).parent {
            self.unlist(parent);
            change(self.node_mut(parent));
            self.list(parent);
        }
    }

    /// Takes a node out of the lists of those who may go, before it changes.
    fn unlist(&mut self, id: NodeId) {
        let used = self.node(id).used;
        self.host_leaves.remove(&(used, id));
        self.disk_leaves.remove(&(used, id));
    }

    /// Lists a node where it may go.
    fn list(&mut self, id: NodeId) {
        let node = self.node(id);
        let used = node.used;
        let host = node.host.is_some() && node.host_children == 0;
        let disk = node.disk.is_some() && node.disk_children == 0;
        if host {
            self.host_leaves.insert((used, id));
        }
        if disk {
            self.disk_leaves.insert((used, id));
        }
    }

    fn node(&self, id: NodeId) -> &Node {
        self.nodes[id.0].as_ref().expect("whoever is listed is there")
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes[id.0].as_mut().expect("whoever is listed is there")
    }
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
