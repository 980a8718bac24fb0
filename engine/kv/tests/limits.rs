//! Full disks, other engines, other models, and clocks that are wrong.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use common::*;
use polder_kv::{Kept, ModelDigest, OpenError, Store, StoreOptions};

const TEXT: [u32; 6] = [1, 2, 3, 4, 5, 6];
const DAY: u64 = 24 * 3600;

#[test]
fn a_full_disk_switches_the_tier_off_and_the_rest_goes_on() {
    for kind in [ErrorKind::StorageFull, ErrorKind::QuotaExceeded, ErrorKind::Other] {
        let folder = tempfile::tempdir().unwrap();
        let system = Arc::new(Fake::default());
        let store = open_with(options(folder.path(), 4, 100), &system);
        put(&store, "ada", 0, &TEXT);
        settle(&store);
        *system.error.lock().unwrap() = Some(kind);
        put(&store, "bob", 0, &TEXT[..4]);
        settle(&store);
        assert!(store.counters().disk_off);
        *system.error.lock().unwrap() = None;
        system.wait(1);
        put(&store, "cyd", 0, &TEXT);
        settle(&store);
        let counters = store.counters();
        assert_eq!((counters.disk_blocks, counters.waiting_spills), (3, 0));
        assert_eq!(readable(&store, "cyd", 0, &TEXT), 3);
        assert_eq!(readable(&store, "ada", 0, &TEXT), 3, "what is there can be read");
        drop(store);
        let store = open_with(options(folder.path(), 4, 100), &system);
        assert!(!store.counters().disk_off);
        assert_eq!(readable(&store, "ada", 0, &TEXT), 3);
        assert_eq!(readable(&store, "cyd", 0, &TEXT), 0);
    }
}

#[test]
fn what_others_need_stays_free_and_the_store_makes_do_with_what_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let system = Arc::new(Fake::default());
    let reserved =
        || StoreOptions { disk_reserve_bytes: 1 << 30, ..options(folder.path(), 9, 100) };
    let store = open_with(reserved(), &system);
    put(&store, "ada", 0, &TEXT);
    settle(&store);
    system.free.store((1 << 30) + COST - 1, Relaxed);
    system.wait(10);
    put(&store, "bob", 0, &TEXT);
    settle(&store);
    let counters = store.counters();
    assert_eq!((counters.disk_blocks, counters.spills, counters.disk_off), (3, 6, false));
    drop(store);
    let store = open_with(reserved(), &system);
    assert_eq!((readable(&store, "ada", 0, &TEXT), readable(&store, "bob", 0, &TEXT)), (0, 3));
    system.free.store((1 << 30) + COST, Relaxed);
    put(&store, "ada", 0, &TEXT[..2]);
    settle(&store);
    assert_eq!(store.counters().disk_blocks, 4);
}

#[test]
fn a_real_file_system_that_is_full_is_only_a_tier_less() {
    // /dev/full has no room for anybody.
    struct Full(std::fs::File, Fake);
    impl polder_kv::System for Full {
        fn wall_seconds(&self) -> u64 {
            self.1.wall_seconds()
        }
        fn uptime_seconds(&self) -> u64 {
            self.1.uptime_seconds()
        }
        fn free_bytes(&self, folder: &Path) -> std::io::Result<u64> {
            self.1.free_bytes(folder)
        }
        fn write_at(&self, _: &std::fs::File, bytes: &[u8], at: u64) -> std::io::Result<()> {
            std::os::unix::fs::FileExt::write_all_at(&self.0, bytes, at)
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let system = Arc::new(Full(full, Fake::default()));
    let store = Store::open_on(options(folder.path(), 9, 9), system).unwrap();
    assert_eq!(put(&store, "ada", 0, &TEXT), [Kept::New; 3]);
    settle(&store);
    assert!(store.counters().disk_off);
    assert_eq!(readable(&store, "ada", 0, &TEXT), 3);
}

#[test]
fn two_engines_do_not_share_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 9, 9);
    let second = Store::open(options(folder.path(), 9, 9));
    assert!(matches!(second, Err(OpenError::Locked(path)) if path == folder.path()));
    drop(store);
    Store::open(options(folder.path(), 9, 9)).unwrap();
}

#[test]
fn a_folder_that_cannot_be_used_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = Store::open(options(&file, 9, 9)).unwrap_err();
    assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
    let empty = StoreOptions { block_bytes: 0, ..options(folder.path(), 9, 9) };
    assert!(matches!(Store::open(empty), Err(OpenError::EmptyBlock { .. })));
}

#[test]
fn what_was_kept_for_another_model_size_or_version_is_removed_and_others_files_stay() {
    type Change = fn(StoreOptions) -> StoreOptions;
    let changes: [(&str, Change); 4] = [
        ("model", |o| StoreOptions { model: ModelDigest([8; 32]), ..o }),
        ("bytes", |o| StoreOptions { block_bytes: BYTES + 1, ..o }),
        ("tokens", |o| StoreOptions { block_tokens: 1, ..o }),
        ("layout", |o| StoreOptions { segment_bytes: 8192, ..o }),
    ];
    for (what, change) in changes {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path(), 9, 9);
        put(&store, "ada", 0, &TEXT);
        settle(&store);
        drop(store);
        let secret = std::fs::read(&files(&folder.path().join("keys"))[0]).unwrap();
        std::fs::write(folder.path().join("README"), "ours").unwrap();
        // The same again finds everything.
        assert_eq!(open(folder.path(), 9, 9).counters().disk_blocks, 3);
        let other = Store::open(change(options(folder.path(), 9, 9))).unwrap();
        assert_eq!(other.counters().disk_blocks, 0, "{what}");
        drop(other);
        let left = files(folder.path());
        assert!(left.iter().all(|path| std::fs::read(path).unwrap() != secret));
        let names: Vec<_> = left.iter().map(|path| path.file_name().unwrap().to_owned()).collect();
        assert!(names.iter().all(|n| ["README", "lock", "store", "clock"].iter().any(|o| n == o)));
        assert!(names.iter().any(|name| name == "README"));
    }
    // A version that nobody knows.
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 9, 9);
    put(&store, "ada", 0, &TEXT);
    settle(&store);
    drop(store);
    let path = folder.path().join("store");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("polder-kv 1", "polder-kv 2")).unwrap();
    assert_eq!(open(folder.path(), 9, 9).counters().disk_blocks, 0);
}

#[test]
fn a_smaller_bound_keeps_what_was_used_last() {
    let folder = tempfile::tempdir().unwrap();
    let system = Arc::new(Fake::default());
    let store = open_with(options(folder.path(), 9, 9), &system);
    put(&store, "ada", 0, &TEXT);
    settle(&store);
    system.wait(10);
    put(&store, "bob", 0, &TEXT);
    settle(&store);
    drop(store);
    let store = open_with(options(folder.path(), 9, 4), &system);
    assert_eq!(store.counters().disk_blocks, 4);
    assert_eq!((readable(&store, "ada", 0, &TEXT), readable(&store, "bob", 0, &TEXT)), (1, 3));
}

/// Opens, says how many of ada's blocks are there, and does not use them.
fn kept(folder: &Path, system: &Arc<Fake>) -> u64 {
    let store = open_with(options(folder, 9, 9), system);
    settle(&store);
    store.counters().disk_blocks
}

fn filled(system: &Arc<Fake>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let store = open_with(options(folder.path(), 9, 9), system);
    put(&store, "ada", 0, &TEXT);
    settle(&store);
    drop(store);
    folder
}

#[test]
fn what_nobody_uses_for_the_retention_is_dropped_while_the_store_runs_and_when_it_opens() {
    let system = Arc::new(Fake::default());
    let folder = filled(&system);
    system.wait(7 * DAY - 1);
    let store = open_with(options(folder.path(), 9, 9), &system);
    assert_eq!(find(&store, "ada", &TEXT[..4]).blocks.len(), 2);
    settle(&store);
    system.wait(10);
    settle(&store);
    // The third block was not asked for.
    assert_eq!(store.counters().disk_blocks, 2);
    assert_eq!(store.counters().expired, 1);
    drop(store);
    // That they were used is known after a restart.
    system.wait(7 * DAY - 20);
    assert_eq!(kept(folder.path(), &system), 2);
    system.wait(20);
    assert_eq!(kept(folder.path(), &system), 0);
}

#[test]
fn a_machine_that_wakes_up_in_1970_forgets_nothing_for_that() {
    let system = Arc::new(Fake::default());
    let folder = filled(&system);
    let wall = system.wall.swap(30, Relaxed);
    assert_eq!(kept(folder.path(), &system), 3);
    // The network is there, and with it the time: a day has passed.
    let store = open_with(options(folder.path(), 9, 9), &system);
    put(&store, "bob", 0, &TEXT);
    system.wall.store(wall + DAY, Relaxed);
    settle(&store);
    assert_eq!(store.counters().disk_blocks, 6);
    assert_eq!(store.counters().expired, 0);
    drop(store);
    // Seven days after ada's, but not after bob's.
    system.wall.store(wall + 7 * DAY + 10, Relaxed);
    assert_eq!(kept(folder.path(), &system), 3);
}

#[test]
fn a_machine_that_always_believes_it_is_1970_does_not_keep_for_ever() {
    let system = Arc::new(Fake::default());
    let folder = filled(&system);
    for day in 0..7 {
        // Each start at the same wrong time, a day's work, and then the power is gone.
        system.wall.store(30, Relaxed);
        let store = open_with(options(folder.path(), 9, 9), &system);
        assert_eq!(store.counters().disk_blocks, 3, "day {day}");
        system.wait(DAY + 60);
        settle(&store);
    }
    assert_eq!(kept(folder.path(), &system), 0);
}

#[test]
fn a_clock_that_is_set_while_the_store_runs_ages_nothing_of_today() {
    let system = Arc::new(Fake::default());
    system.wall.store(30, Relaxed);
    let folder = tempfile::tempdir().unwrap();
    let store = open_with(options(folder.path(), 9, 9), &system);
    put(&store, "ada", 0, &TEXT);
    settle(&store);
    system.wall.store(1_800_000_000, Relaxed);
    settle(&store);
    assert_eq!((store.counters().disk_blocks, store.counters().expired), (3, 0));
    drop(store);
    assert_eq!(kept(folder.path(), &system), 3, "the entries tell the right time");
    // And back again.
    system.wall.store(30, Relaxed);
    assert_eq!(kept(folder.path(), &system), 3);
}
