use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::digest::ModelDigest;
use polder_backend::TokenId;

const BOUNDS: Bounds = Bounds { host_blocks: 5, disk_blocks: 7, stamp_every: 10 };

fn root() -> ChainDigest {
    ChainDigest::root(&ModelDigest([1; 32]))
}

fn address(member: u32, text: &[u32]) -> (Address, ChainDigest) {
    let (mut parent, mut digest) = (root(), root());
    for token in text {
        parent = digest;
        digest = digest.then(&[TokenId(*token)]);
    }
    (Address { member: MemberNo(member), digest }, parent)
}

fn put(index: &mut Index, member: u32, text: &[u32], now: u64) -> Kept {
    let (at, parent) = address(member, text);
    index.put(at, &parent, Arc::new(vec![0].into()), now)
}

/// Writes what waits, as the spilling thread does, with room to grow.
fn spill_all(index: &mut Index) -> Vec<Written> {
    let mut all = Vec::new();
    while let Some(spill) = index.next_spill() {
        match index.slot_for(&spill, true) {
            Some(slot) => {
                let Spill { at, parent, position, used, .. } = spill;
                let written = Written { at, parent, position, used, slot, nonce: [0; 12] };
                index.spilled(&written);
                all.push(written);
            }
            None => index.skip_spill(),
        }
    }
    all
}

/// Everything that must hold at all times, counted anew. `in_flight` slots are being written.
fn check(index: &Index, in_flight: usize) {
    let nodes: Vec<(NodeId, &Node)> = (0..index.nodes.len())
        .filter_map(|at| Some((NodeId(at), index.nodes[at].as_ref()?)))
        .collect();
    let (mut host_leaves, mut disk_leaves) = (BTreeSet::new(), BTreeSet::new());
    let mut slots = BTreeSet::new();
    for (id, node) in &nodes {
        assert_eq!(index.by_address.get(&node.at), Some(id));
        assert!(node.host.is_some() || node.disk.is_some(), "a node without a copy");
        let children = || nodes.iter().filter(|(_, child)| child.parent == Some(*id));
        let host = children().filter(|(_, child)| child.host.is_some()).count();
        let disk = children().filter(|(_, child)| child.disk.is_some()).count();
        assert_eq!((node.host_children, node.disk_children), (host as u32, disk as u32));
        assert_eq!(node.children.len(), children().count());
        assert!(children().all(|(child, _)| node.children.contains(child)));
        if let Some(parent) = node.parent {
            let parent = index.node(parent);
            assert!(parent.used >= node.used, "a parent was used before its child");
            assert!(node.disk.is_none() || parent.disk.is_some(), "cut off on disk");
            assert_eq!(node.position, parent.position + 1);
        } else {
            assert!(index.tops[&node.at.member].contains(id) && node.position == 0);
        }
        if node.host.is_some() && host == 0 {
            host_leaves.insert((node.used, *id));
        }
        if node.disk.is_some() && disk == 0 {
            disk_leaves.insert((node.used, *id));
        }
        if let Some(disk) = node.disk {
            assert!(slots.insert(disk.slot), "a slot with two blocks");
        }
    }
    assert_eq!(index.by_address.len(), nodes.len());
    let tops = nodes.iter().filter(|(_, node)| node.parent.is_none()).count();
    assert_eq!(index.tops.values().map(Vec::len).sum::<usize>(), tops);
    assert_eq!((&index.host_leaves, &index.disk_leaves), (&host_leaves, &disk_leaves));
    let in_host = nodes.iter().filter(|(_, node)| node.host.is_some()).count();
    assert_eq!(index.counts.host_blocks, in_host as u64);
    assert_eq!(index.counts.disk_blocks, slots.len() as u64);
    assert!(in_host <= BOUNDS.host_blocks && index.slots_taken <= BOUNDS.disk_blocks);
    assert_eq!(index.slots_taken, slots.len() + index.uncleared.len() + in_flight);
    for slot in slots.iter().chain(&index.uncleared) {
        assert!(!index.free_slots.contains(slot) && *slot < index.next_slot);
    }
}

#[test]
fn the_end_that_was_used_longest_ago_goes_first_and_the_disk_still_has_it() {
    let mut index = Index::new(BOUNDS, root());
    for (now, length) in [(1, 1), (2, 2), (3, 3)] {
        assert_eq!(put(&mut index, 1, &[1, 2, 3][..length], now), Kept::New);
    }
    assert_eq!(put(&mut index, 1, &[9], 4), Kept::New);
    assert_eq!(put(&mut index, 1, &[9], 5), Kept::Already);
    assert_eq!(put(&mut index, 2, &[1, 2], 5), Kept::Orphan);
    assert_eq!(spill_all(&mut index).len(), 4);
    assert_eq!(put(&mut index, 2, &[1], 6), Kept::New);
    assert_eq!(put(&mut index, 2, &[5], 7), Kept::New);
    let tier = |index: &Index, member, text: &[u32]| index.tier(&address(member, text).0);
    assert_eq!(tier(&index, 1, &[1, 2, 3]), Some(Tier::Disk));
    assert_eq!(tier(&index, 1, &[1, 2]), Some(Tier::Host));
    check(&index, 0);
    // Without a disk it is gone, and what was never written cannot be had again.
    for token in 10..15 {
        put(&mut index, 3, &[token], 8);
    }
    assert_eq!((tier(&index, 2, &[1]), tier(&index, 1, &[1])), (None, Some(Tier::Disk)));
    assert_eq!(index.counts.drops, 2);
    check(&index, 0);
}

#[test]
fn a_text_longer_than_host_memory_keeps_how_it_begins() {
    let mut index = Index::new(BOUNDS, root());
    let text: Vec<u32> = (0..8).collect();
    let kept: Vec<Kept> = (1..=8).map(|n| put(&mut index, 1, &text[..n], 1)).collect();
    assert_eq!(kept[..5], [Kept::New; 5]);
    assert_eq!(kept[5..], [Kept::NoRoom, Kept::Orphan, Kept::Orphan]);
    // Once its end is on disk, the host's copy of it may go for what follows.
    spill_all(&mut index);
    assert_eq!(put(&mut index, 1, &text[..6], 1), Kept::New);
    check(&index, 0);
}

#[test]
fn a_text_longer_than_the_disk_is_not_written_over_itself() {
    let mut index = Index::new(Bounds { host_blocks: 9, disk_blocks: 3, ..BOUNDS }, root());
    for n in 1..=9 {
        put(&mut index, 1, &[1, 2, 3, 4, 5, 6, 7, 8, 9][..n], 1);
    }
    assert_eq!(spill_all(&mut index).len(), 3);
    assert!(index.on_disk(&address(1, &[1, 2, 3]).0).is_some());
    assert!(index.on_disk(&address(1, &[1, 2, 3, 4]).0).is_none());
}

#[test]
fn what_lies_twice_or_cut_off_on_disk_is_given_up_and_the_rest_is_found() {
    let mut first = Index::new(BOUNDS, root());
    for n in 1..=4 {
        put(&mut first, 1, &[1, 2, 3, 4][..n], 20 - n as u64);
    }
    let mut written = spill_all(&mut first);
    let twice = Written { slot: 6, ..written[0] };
    written.push(twice);
    written.remove(2);
    let mut index = Index::new(BOUNDS, root());
    index.load(written, vec![5]);
    check(&index, 0);
    assert_eq!(index.counts.disk_blocks, 2);
    assert!(index.tier(&address(1, &[1, 2]).0).is_some());
    let mut uncleared: Vec<u64> = std::iter::from_fn(|| index.next_uncleared()).collect();
    uncleared.sort_unstable();
    assert_eq!(uncleared, [3, 5, 6]);
}

#[test]
fn a_block_that_lands_after_its_parent_was_lost_is_given_up() {
    let mut index = Index::new(BOUNDS, root());
    put(&mut index, 1, &[1], 1);
    spill_all(&mut index);
    put(&mut index, 1, &[1, 2], 1);
    let spill = index.next_spill().unwrap();
    let slot = index.slot_for(&spill, true).unwrap();
    // Both are lost, and put again, while it is being written.
    index.failed(&address(1, &[1]).0);
    put(&mut index, 1, &[1], 2);
    put(&mut index, 1, &[1, 2], 2);
    let Spill { at, parent, position, used, .. } = spill;
    index.spilled(&Written { at, parent, position, used, slot, nonce: [0; 12] });
    check(&index, 0);
    assert!(index.on_disk(&at).is_none());
    assert_eq!(spill_all(&mut index).len(), 2);
    check(&index, 0);
}

#[test]
fn an_entry_that_does_not_fit_its_parent_is_given_up() {
    let mut first = Index::new(BOUNDS, root());
    put(&mut first, 1, &[1], 1);
    put(&mut first, 1, &[1, 2], 1);
    let mut written = spill_all(&mut first);
    written[1].position = 2;
    let mut index = Index::new(BOUNDS, root());
    index.load(written, Vec::new());
    check(&index, 0);
    assert_eq!((index.counts.disk_blocks, index.next_uncleared()), (1, Some(1)));
}

#[test]
fn what_was_used_before_the_clock_was_set_is_as_old_as_it_was() {
    let mut index = Index::new(BOUNDS, root());
    put(&mut index, 1, &[1], 100);
    put(&mut index, 1, &[2], 200);
    index.shift(150, 1_000_000);
    let week = Duration::from_secs(7);
    while index.expire(1_000_205, week, 1) {}
    check(&index, 0);
    assert!(index.tier(&address(1, &[1]).0).is_none());
    assert!(index.tier(&address(1, &[2]).0).is_some());
    assert_eq!((index.counts.expired, index.counts.drops), (1, 0));
}

#[derive(Debug, Clone)]
enum Step {
    Put(u32, Vec<u32>),
    Find(u32, Vec<u32>),
    Restore(u32, Vec<u32>),
    Fail(u32, Vec<u32>),
    Spill { may_grow: bool, fails: bool },
    Land,
    Clear,
    Stamp,
    Wait(u64),
    Expire(u64),
    Forget(u32),
    Shift(u64),
    Reload,
}

fn step() -> impl Strategy<Value = Step> {
    let text = || prop::collection::vec(0u32..2, 1..5);
    let member = || 0u32..2;
    prop_oneof![
        8 => (member(), text()).prop_map(|(m, t)| Step::Put(m, t)),
        3 => (member(), text()).prop_map(|(m, t)| Step::Find(m, t)),
        2 => (member(), text()).prop_map(|(m, t)| Step::Restore(m, t)),
        1 => (member(), text()).prop_map(|(m, t)| Step::Fail(m, t)),
        8 => (any::<bool>(), prop::bool::weighted(0.1)).prop_map(|(may_grow, fails)| Step::Spill { may_grow, fails }),
        8 => Just(Step::Land),
        4 => Just(Step::Clear),
        2 => Just(Step::Stamp),
        4 => (1u64..12).prop_map(Step::Wait),
        1 => (0u64..40).prop_map(Step::Expire),
        1 => member().prop_map(Step::Forget),
        1 => (1u64..50).prop_map(Step::Shift),
        1 => Just(Step::Reload),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn whatever_happens_every_block_can_be_reached_and_every_count_is_right(
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut index = Index::new(BOUNDS, root());
        let mut now = 100;
        // What the spilling thread is writing.
        let mut flying: Option<Written> = None;
        for step in steps {
            match step {
                Step::Put(member, text) => {
                    // As the engine does: a block comes after those before it.
                    for n in 1..=text.len() {
                        put(&mut index, member, &text[..n], now);
                        check(&index, usize::from(flying.is_some()));
                    }
                }
                Step::Find(member, text) => {
                    let found = (1..=text.len())
                        .take_while(|n| index.tier(&address(member, &text[..*n]).0).is_some())
                        .count();
                    if found > 0 {
                        index.touch(&address(member, &text[..found]).0, now);
                    }
                    // Whatever is kept further on would be found.
                    for n in found + 1..=text.len() {
                        prop_assert_eq!(index.tier(&address(member, &text[..n]).0), None);
                    }
                }
                Step::Restore(member, text) => {
                    let at = address(member, &text).0;
                    if index.on_disk(&at).is_some() {
                        index.restored(&at, &Arc::new(vec![1].into()));
                        prop_assert!(index.on_disk(&at).is_some());
                    }
                }
                Step::Fail(member, text) => {
                    let at = address(member, &text).0;
                    index.failed(&at);
                    prop_assert_eq!(index.tier(&at), None);
                }
                Step::Spill { may_grow, fails } => {
                    if flying.is_none() && let Some(spill) = index.next_spill() {
                        match index.slot_for(&spill, may_grow) {
                            None => index.skip_spill(),
                            Some(slot) if fails => index.unwritten(slot),
                            Some(slot) => {
                                let Spill { at, parent, position, used, .. } = spill;
                                let nonce = [0; 12];
                                flying = Some(Written { at, parent, position, used, slot, nonce });
                            }
                        }
                    }
                }
                Step::Land => {
                    if let Some(written) = flying.take() {
                        index.spilled(&written);
                    }
                }
                Step::Clear => {
                    if let Some(slot) = index.next_uncleared() {
                        index.cleared(slot);
                    }
                }
                Step::Stamp => {
                    if let Some(written) = index.next_stamp() {
                        prop_assert_eq!(index.on_disk(&written.at), Some(written));
                    }
                }
                Step::Wait(seconds) => now += seconds,
                Step::Expire(seconds) => {
                    let retention = Duration::from_secs(seconds);
                    while index.expire(now, retention, 2) {}
                    prop_assert!(index.nodes.iter().flatten().all(|n| n.used + seconds >= now));
                }
                Step::Forget(member) => {
                    while index.forget(MemberNo(member)) {}
                    prop_assert!(!index.has(MemberNo(member)));
                    prop_assert!(index.by_address.keys().all(|at| at.member != MemberNo(member)));
                }
                Step::Shift(by) => {
                    index.shift(now.saturating_sub(20), by);
                    now += by;
                }
                Step::Reload => {
                    let on_disk: Vec<Written> =
                        index.by_address.keys().filter_map(|at| index.on_disk(at)).collect();
                    let kept = on_disk.len() as u64;
                    let mut again = Index::new(BOUNDS, root());
                    again.load(on_disk, index.uncleared.iter().copied().collect());
                    prop_assert_eq!(again.counts.disk_blocks, kept);
                    flying = None;
                    index = again;
                }
            }
            index.take_trash();
            check(&index, usize::from(flying.is_some()));
        }
    }
}
