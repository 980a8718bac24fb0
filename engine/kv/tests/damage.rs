//! Whatever happens to the files, a store opens and never hands out a wrong byte.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use common::*;
use polder_kv::{Kept, ReadError};
use proptest::prelude::*;

const TEXTS: [(&str, [u32; 8]); 3] = [
    ("ada", [1, 2, 3, 4, 5, 6, 7, 8]),
    ("ada", [1, 2, 3, 4, 9, 9, 9, 9]),
    ("bob", [1, 2, 3, 4, 5, 6, 7, 8]),
];

/// Six files with ten blocks of two members.
fn fill(folder: &Path, system: &Arc<Fake>) {
    let store = open_with(options(folder, 100, 100), system);
    for (member, text) in TEXTS {
        put(&store, member, 0, &text);
    }
    settle(&store);
}

/// Opens, reads everything that is found, and goes on as usual. Says how many blocks were read.
fn live_on(folder: &Path) -> usize {
    let read = {
        let store = open(folder, 100, 100);
        // `readable` compares every byte.
        let read = TEXTS.iter().map(|(member, text)| readable(&store, member, 0, text)).sum();
        for (member, text) in TEXTS {
            assert!(!put(&store, member, 0, &text).contains(&Kept::Orphan));
            assert_eq!(readable(&store, member, 0, &text), 4);
        }
        settle(&store);
        assert!(!store.counters().disk_off);
        read
    };
    let store = open(folder, 100, 100);
    for (member, text) in TEXTS {
        assert_eq!(readable(&store, member, 0, &text), 4, "healed");
    }
    assert_eq!(store.counters().failures, 0);
    read
}

#[derive(Debug, Clone)]
enum Damage {
    Flip { at: f64, bit: u8 },
    Cut { at: f64 },
    Zero { at: f64, length: u64 },
    Grow { by: u64 },
    Remove,
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        6 => (0.0..1.0, 0u8..8).prop_map(|(at, bit)| Damage::Flip { at, bit }),
        2 => (0.0..1.0).prop_map(|at| Damage::Cut { at }),
        2 => (0.0..1.0, 1u64..9000).prop_map(|(at, length)| Damage::Zero { at, length }),
        1 => (1u64..9000).prop_map(|by| Damage::Grow { by }),
        1 => Just(Damage::Remove),
    ]
}

fn harm(path: &Path, damage: &Damage) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let length = file.metadata().unwrap().len();
    let place = |at: f64| (at * length as f64) as u64;
    match *damage {
        Damage::Flip { at, bit } if length > 0 => {
            let mut byte = [0];
            file.read_exact_at(&mut byte, place(at)).unwrap();
            file.write_all_at(&[byte[0] ^ 1 << bit], place(at)).unwrap();
        }
        Damage::Flip { .. } => {}
        Damage::Cut { at } => file.set_len(place(at)).unwrap(),
        Damage::Zero { at, length: zeros } => {
            let zeros = zeros.min(length - place(at));
            file.write_all_at(&vec![0; zeros as usize], place(at)).unwrap();
        }
        Damage::Grow { by } => file.write_all_at(&vec![0xa5; by as usize], length).unwrap(),
        Damage::Remove => std::fs::remove_file(path).unwrap(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn damaged_files_never_give_wrong_bytes(
        damages in prop::collection::vec((any::<prop::sample::Index>(), damage()), 1..6),
    ) {
        let folder = tempfile::tempdir().unwrap();
        fill(folder.path(), &Arc::default());
        for (which, damage) in damages {
            let all = files(folder.path());
            harm(&all[which.index(all.len())], &damage);
        }
        live_on(folder.path());
    }

    #[test]
    fn a_power_cut_at_any_byte_loses_at_most_what_was_being_written(
        cut in 0u64..10 * (BYTES as u64 + 16 + 128) + 100,
    ) {
        let (folder, system) = (tempfile::tempdir().unwrap(), Arc::new(Fake::default()));
        system.until_cut.store(cut, Relaxed);
        fill(folder.path(), &system);
        let whole = cut / (BYTES as u64 + 16 + 128);
        let read = live_on(folder.path());
        // Ten blocks in all; two of them are in two texts.
        let at_least = whole.min(10) as usize;
        prop_assert!(read >= at_least, "{} of {} blocks", read, at_least);
    }

    #[test]
    fn what_one_slot_holds_means_nothing_in_another(
        swaps in prop::collection::vec((any::<bool>(), 0u64..10, 0u64..10), 1..8),
    ) {
        let folder = tempfile::tempdir().unwrap();
        fill(folder.path(), &Arc::default());
        for (blocks, one, other) in swaps {
            let (what, size) = if blocks { ("blocks", 8192) } else { ("entries", 128) };
            let file = |slot: u64| {
                let path = folder.path().join(format!("{what}-{:06}", slot / 3));
                OpenOptions::new().read(true).write(true).open(path).unwrap()
            };
            let get = |slot: u64| {
                let mut bytes = vec![0; size as usize];
                let file = file(slot);
                let _ = file.read_at(&mut bytes, slot % 3 * size).unwrap();
                bytes
            };
            let (first, second) = (get(one), get(other));
            file(one).write_all_at(&second, one % 3 * size).unwrap();
            file(other).write_all_at(&first, other % 3 * size).unwrap();
        }
        live_on(folder.path());
    }
}

#[test]
fn entries_of_an_earlier_time_with_todays_blocks_give_no_wrong_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let system = Arc::new(Fake::default());
    let small = || options(folder.path(), 4, 3);
    let store = open_with(small(), &system);
    put(&store, "ada", 0, &[1, 2, 3, 4]);
    settle(&store);
    let entries = folder.path().join("entries-000000");
    let old = std::fs::read(&entries).unwrap();
    for n in 5..20 {
        system.wait(1);
        put(&store, "ada", 0, &[n, n]);
        settle(&store);
    }
    drop(store);
    std::fs::write(&entries, old).unwrap();
    let store = open_with(small(), &system);
    assert_eq!(find(&store, "ada", &[1, 2, 3, 4]).blocks.len(), 2);
    assert_eq!(readable(&store, "ada", 0, &[1, 2, 3, 4]), 0);
    assert_eq!(store.counters().failures, 1);
}

#[test]
fn a_block_that_a_shorter_file_cannot_hold_is_not_even_found() {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path(), &Arc::default());
    let file = OpenOptions::new().write(true).open(folder.path().join("blocks-000000")).unwrap();
    file.set_len(8192 + BYTES as u64 + 15).unwrap();
    let store = open(folder.path(), 100, 100);
    assert_eq!(find(&store, "ada", &TEXTS[0].1).blocks.len(), 1);
    assert_eq!(readable(&store, "ada", 0, &TEXTS[0].1), 1);
    assert_eq!(store.counters().failures, 0);
}

#[test]
fn a_block_that_cannot_be_read_takes_along_what_comes_after_it_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path(), &Arc::default());
    // The second block of ada's first text, which her other text begins with too.
    let file = OpenOptions::new().write(true).open(folder.path().join("blocks-000000")).unwrap();
    file.write_all_at(b"x", 8192 + 100).unwrap();
    let store = open(folder.path(), 100, 100);
    let found = find(&store, "ada", &TEXTS[0].1);
    assert_eq!(found.blocks.len(), 4);
    assert_eq!(read(&store, &found.blocks[1]), Err(ReadError::Damaged));
    assert_eq!(read(&store, &found.blocks[3]), Err(ReadError::Gone));
    assert_eq!(readable(&store, "ada", 0, &TEXTS[1].1), 1);
    assert_eq!(readable(&store, "bob", 0, &TEXTS[2].1), 4);
    assert_eq!((store.counters().failures, store.counters().disk_blocks), (1, 5));
}
