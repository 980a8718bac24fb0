//! Random lives of a store against what a map remembers.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use common::*;
use polder_kv::{Kept, Tier};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Put(usize, Vec<u32>),
    Find(usize, Vec<u32>),
    Settle,
    Reopen { settled: bool },
    Forget(usize),
    Wait(u64),
}

const MEMBERS: [&str; 3] = ["ada", "bob", "cyd"];

fn step() -> impl Strategy<Value = Step> {
    let text = || prop::collection::vec(0u32..2, 2..9);
    prop_oneof![
        8 => (0..3usize, text()).prop_map(|(m, t)| Step::Put(m, t)),
        5 => (0..3usize, text()).prop_map(|(m, t)| Step::Find(m, t)),
        2 => Just(Step::Settle),
        2 => any::<bool>().prop_map(|settled| Step::Reopen { settled }),
        1 => (0..3usize).prop_map(Step::Forget),
        2 => (1u64..200_000).prop_map(Step::Wait),
    ]
}

/// What was put, for each member, and how often they were forgotten.
#[derive(Default)]
struct Naive {
    texts: BTreeMap<usize, BTreeSet<Vec<u32>>>,
    lives: [u32; 3],
}

impl Naive {
    fn put(&mut self, member: usize, text: &[u32]) {
        let kept = self.texts.entry(member).or_default();
        for end in (TOKENS..=text.len()).step_by(TOKENS) {
            kept.insert(text[..end].to_vec());
        }
    }

    fn found(&self, member: usize, text: &[u32]) -> usize {
        let Some(kept) = self.texts.get(&member) else { return 0 };
        (TOKENS..=text.len()).step_by(TOKENS).take_while(|end| kept.contains(&text[..*end])).count()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn with_room_for_all_everything_is_found_again_also_after_a_restart(
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let (folder, system) = (tempfile::tempdir().unwrap(), Arc::new(Fake::default()));
        let options = || options(folder.path(), 1000, 1000);
        let mut store = Some(open_with(options(), &system));
        let mut naive = Naive::default();
        for step in steps {
            let open = store.as_ref().unwrap();
            match step {
                Step::Put(who, text) => {
                    let new = put(open, MEMBERS[who], naive.lives[who], &text);
                    let before = naive.found(who, &text);
                    prop_assert!(new[..before].iter().all(|kept| *kept == Kept::Already));
                    prop_assert!(new[before..].iter().all(|kept| *kept == Kept::New));
                    naive.put(who, &text);
                }
                Step::Find(who, text) => {
                    let read = readable(open, MEMBERS[who], naive.lives[who], &text);
                    prop_assert_eq!(read, naive.found(who, &text));
                }
                Step::Settle | Step::Wait(_) => settle(open),
                Step::Reopen { .. } => {
                    settle(open);
                    drop(store.take());
                    store = Some(open_with(options(), &system));
                }
                Step::Forget(who) => {
                    open.forget(MEMBERS[who]).unwrap();
                    naive.lives[who] += 1;
                    naive.texts.remove(&who);
                }
            }
        }
        let open = store.as_ref().unwrap();
        settle(open);
        let blocks: usize = naive.texts.values().map(BTreeSet::len).sum();
        prop_assert_eq!(open.counters().disk_blocks, blocks as u64);
        prop_assert_eq!(open.counters().failures, 0);
    }

    #[test]
    fn with_little_room_what_is_found_is_right_and_the_bounds_hold(
        steps in prop::collection::vec(step(), 1..60),
        host in 1u64..6, disk in 0u64..8,
    ) {
        let (folder, system) = (tempfile::tempdir().unwrap(), Arc::new(Fake::default()));
        let options = || options(folder.path(), host, disk);
        let mut store = Some(open_with(options(), &system));
        let mut naive = Naive::default();
        for step in steps {
            let open = store.as_ref().unwrap();
            match step {
                Step::Put(who, text) => {
                    put(open, MEMBERS[who], naive.lives[who], &text);
                    naive.put(who, &text);
                }
                Step::Find(who, text) => {
                    let read = readable(open, MEMBERS[who], naive.lives[who], &text);
                    prop_assert!(read <= naive.found(who, &text));
                }
                Step::Settle => settle(open),
                Step::Reopen { settled } => {
                    if settled {
                        settle(open);
                    }
                    drop(store.take());
                    store = Some(open_with(options(), &system));
                }
                Step::Forget(who) => {
                    open.forget(MEMBERS[who]).unwrap();
                    naive.lives[who] += 1;
                    naive.texts.remove(&who);
                }
                Step::Wait(seconds) => {
                    system.wait(seconds);
                    // Now and then somebody looks at the clock.
                    settle(open);
                }
            }
            let counters = store.as_ref().unwrap().counters();
            prop_assert!(counters.host_blocks <= host && counters.disk_blocks <= disk);
            prop_assert_eq!(counters.failures, 0);
        }
        drop(store);
        let on_disk: u64 = files(folder.path())
            .iter()
            .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("blocks"))
            .map(|path| std::os::unix::fs::MetadataExt::blocks(&path.metadata().unwrap()) * 512)
            .sum();
        prop_assert!(on_disk <= disk * COST, "{} bytes for {} blocks", on_disk, disk);
    }
}

#[test]
fn what_left_host_memory_comes_back_from_disk_and_is_in_host_memory_again() {
    let folder = tempfile::tempdir().unwrap();
    let system = Arc::new(Fake::default());
    let store = open_with(options(folder.path(), 2, 100), &system);
    put(&store, "ada", 0, &[1, 2, 3, 4]);
    settle(&store);
    system.wait(5);
    put(&store, "bob", 0, &[1, 2, 3, 4]);
    settle(&store);
    let tiers = |member| {
        let found = find(&store, member, &[1, 2, 3, 4, 5, 6]);
        found.blocks.iter().map(|handle| handle.tier).collect::<Vec<_>>()
    };
    assert_eq!(tiers("bob"), [Tier::Host, Tier::Host]);
    system.wait(5);
    assert_eq!(tiers("ada"), [Tier::Disk, Tier::Disk]);
    assert_eq!(readable(&store, "ada", 0, &[1, 2, 3, 4]), 2);
    assert_eq!(tiers("ada"), [Tier::Host, Tier::Host]);
    assert_eq!(tiers("bob"), [Tier::Disk, Tier::Disk]);
    let counters = store.counters();
    assert_eq!((counters.host_blocks, counters.disk_blocks), (2, 4));
    assert_eq!((counters.host_bytes, counters.disk_bytes), (2 * BYTES as u64, 4 * COST));
    assert_eq!((counters.puts, counters.spills, counters.drops), (4, 4, 0));
    assert_eq!((counters.disk_restores, counters.host_restores), (2, 0));
    assert_eq!((counters.host_hits, counters.disk_hits, counters.misses), (4, 6, 4));
}

#[test]
fn putting_waits_for_no_disk_and_what_does_not_fit_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let system = Arc::new(Fake::default());
    let store = open_with(options(folder.path(), 4, 100), &system);
    system.stuck.store(true, Relaxed);
    for n in 0..500 {
        assert_eq!(put(&store, "ada", 0, &[n, n]), [Kept::New]);
        system.wait(1);
    }
    let counters = store.counters();
    assert_eq!((counters.host_blocks, counters.drops, counters.spills), (4, 496, 0));
    assert!(counters.waiting_spills < 100, "the row does not grow for ever");
    assert_eq!(readable(&store, "ada", 0, &[499, 499]), 1);
    system.stuck.store(false, Relaxed);
    settle(&store);
    assert_eq!(store.counters().disk_blocks, 4);
    drop(store);
    let store = open_with(options(folder.path(), 4, 100), &system);
    assert_eq!(readable(&store, "ada", 0, &[499, 499]), 1);
    assert_eq!(readable(&store, "ada", 0, &[0, 0]), 0);
}

#[test]
fn a_store_without_a_folder_keeps_blocks_in_host_memory() {
    let mut options = options(std::path::Path::new("/nowhere"), 3, 100);
    options.folder = None;
    let store = open_with(options, &Arc::default());
    assert_eq!(put(&store, "ada", 0, &[1, 2, 3, 4]), [Kept::New, Kept::New]);
    settle(&store);
    assert_eq!(readable(&store, "ada", 0, &[1, 2, 3, 4, 5, 6]), 2);
    assert_eq!((store.counters().disk_blocks, store.counters().waiting_spills), (0, 0));
    store.forget("ada").unwrap();
    assert_eq!(readable(&store, "ada", 0, &[1, 2]), 0);
}

#[test]
fn blocks_of_a_wrong_size_and_without_a_beginning_are_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 9, 9);
    let (root, two, one) = (store.root(), tokens(&[1, 2]), tokens(&[1]));
    assert_eq!(store.put("ada", &root, &two, vec![0; BYTES - 1]).kept, Kept::WrongSize);
    assert_eq!(store.put("ada", &root, &one, vec![0; BYTES]).kept, Kept::WrongSize);
    let nowhere = root.then(&two);
    assert_eq!(store.put("ada", &nowhere, &two, vec![0; BYTES]).kept, Kept::Orphan);
    assert_eq!(store.counters().refusals, 3);
    let put = store.put("ada", &root, &two, vec![0; BYTES]);
    assert_eq!((put.kept, put.digest), (Kept::New, nowhere));
    assert!(store.contains("ada", &nowhere) && !store.contains("bob", &nowhere));
}

#[test]
fn many_who_put_find_read_and_forget_at_once_get_their_own_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let system = Arc::new(Fake::default());
    let store = open_with(options(folder.path(), 6, 20), &system);
    std::thread::scope(|scope| {
        for (seed, member) in MEMBERS.into_iter().enumerate() {
            let (store, system) = (&store, &system);
            scope.spawn(move || {
                let (mut life, mut state) = (0, seed as u32);
                let mut next = |below: u32| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 16) % below
                };
                for _ in 0..300 {
                    let text: Vec<u32> = (0..2 + next(7)).map(|_| next(2)).collect();
                    match next(20) {
                        0 => {
                            store.forget(member).unwrap();
                            life += 1;
                            assert_eq!(readable(store, member, life, &text), 0);
                        }
                        1 => {
                            system.wait(1);
                            settle(store);
                        }
                        2..10 => drop(put(store, member, life, &text)),
                        _ => drop(readable(store, member, life, &text)),
                    }
                }
            });
        }
    });
    settle(&store);
    let counters = store.counters();
    assert!(counters.disk_restores > 0 && counters.spills > 0);
    assert!(counters.host_blocks <= 6 && counters.disk_blocks <= 20);
    assert_eq!(counters.failures, 0);
}
