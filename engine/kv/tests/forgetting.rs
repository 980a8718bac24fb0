//! What lies on disk says nothing to those without the key, and the key dies with the member.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier};

use common::*;
use polder_kv::{ChainDigest, ModelDigest, ReadError, StoreOptions};

const TEXT: [u32; 6] = [0xdead_0001, 0xdead_0002, 0xdead_0003, 4, 5, 6];

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

fn copy(from: &Path, to: &Path) {
    for path in files(from) {
        let at = to.join(path.strip_prefix(from).unwrap());
        std::fs::create_dir_all(at.parent().unwrap()).unwrap();
        std::fs::copy(path, at).unwrap();
    }
}

#[test]
fn no_file_and_no_name_tells_a_member_a_token_an_address_or_a_byte_of_kv() {
    let folder = tempfile::tempdir().unwrap();
    {
        let store = open(folder.path(), 100, 100);
        put(&store, "ada-lovelace", 0, &TEXT);
        settle(&store);
        assert_eq!(store.counters().disk_blocks, 3);
    }
    let root = ChainDigest::root(&ModelDigest([7; 32]));
    let first = root.then(&tokens(&TEXT[..2]));
    // The address as bytes, by the way that `Debug` does not offer: hashing again.
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    context.update(b"polder-kv root\0");
    context.update(&[7; 32]);
    let root_bytes = context.finish();
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    context.update(b"polder-kv next\0");
    context.update(root_bytes.as_ref());
    TEXT[..2].iter().for_each(|token| context.update(&token.to_le_bytes()));
    let first_bytes = context.finish();
    assert_eq!(first, root.then(&tokens(&TEXT[..2])));
    let needles: [(&str, &[u8]); 5] = [
        ("the member", b"ada-lovelace"),
        ("the bytes", b"plain words"),
        ("a token", &0xdead_0002_u32.to_le_bytes()),
        ("an address", first_bytes.as_ref()),
        ("the first block's parent", root_bytes.as_ref()),
    ];
    let all = files(folder.path());
    assert!(all.len() >= 5, "{all:?}");
    for path in all {
        assert!(!path.to_str().unwrap().contains("ada"));
        let bytes = std::fs::read(&path).unwrap();
        for (what, needle) in &needles {
            assert!(!contains(&bytes, needle), "{what} is in {}", path.display());
        }
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o077, 0, "{}", path.display());
    }
    let keys = folder.path().join("keys");
    assert_eq!(keys.metadata().unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn without_the_key_a_copy_of_everything_else_is_worth_nothing() {
    let (folder, thief) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let system = Arc::new(Fake::default());
    let store = open_with(options(folder.path(), 100, 100), &system);
    put(&store, "ada", 0, &TEXT);
    put(&store, "bob", 0, &TEXT);
    settle(&store);
    copy(folder.path(), thief.path());
    assert_eq!(std::fs::read_dir(folder.path().join("keys")).unwrap().count(), 2);
    store.forget("ada").unwrap();
    assert_eq!(std::fs::read_dir(folder.path().join("keys")).unwrap().count(), 1);
    assert_eq!(readable(&store, "ada", 0, &TEXT), 0);
    assert_eq!(readable(&store, "bob", 0, &TEXT), 3);
    // The entries are cleared and the room is given back.
    settle(&store);
    assert_eq!(store.counters().disk_blocks, 3);
    let blocks = folder.path().join("blocks-000000").metadata().unwrap();
    assert_eq!(blocks.blocks(), 0, "ada's three blocks were this file");
    let entries = std::fs::read(folder.path().join("entries-000000")).unwrap();
    assert!(entries.iter().all(|byte| *byte == 0));

    // Somebody took a copy before, and gets hold of the keys that are left and a new one for ada.
    put(&store, "ada", 1, &[8, 8]);
    settle(&store);
    drop(store);
    std::fs::remove_dir_all(thief.path().join("keys")).unwrap();
    copy(&folder.path().join("keys"), &thief.path().join("keys"));
    let stolen = open_with(options(thief.path(), 100, 100), &system);
    assert_eq!(find(&stolen, "ada", &TEXT).blocks.len(), 0);
    assert_eq!(readable(&stolen, "bob", 0, &TEXT), 3);
}

#[test]
fn a_block_under_the_key_before_does_not_open_under_the_key_after() {
    // The old block is put back, bytes and entry, with the new key's number in its entry.
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 100, 100);
    put(&store, "ada", 0, &TEXT);
    settle(&store);
    let files = ["blocks-000000", "entries-000000"].map(|name| folder.path().join(name));
    let old = files.clone().map(|path| std::fs::read(path).unwrap());
    store.forget("ada").unwrap();
    put(&store, "ada", 1, &TEXT);
    settle(&store);
    drop(store);
    // Whatever slot the new blocks got, their key's number is in front of its entry.
    let number = (0..2)
        .filter_map(|n| std::fs::read(folder.path().join(format!("entries-{n:06}"))).ok())
        .flat_map(|bytes| bytes.chunks_exact(128).map(|c| c[..12].to_vec()).collect::<Vec<_>>())
        .find(|number| number.iter().any(|byte| *byte != 0))
        .unwrap();
    let mut entries = old[1].clone();
    entries.chunks_exact_mut(128).for_each(|entry| entry[..12].copy_from_slice(&number));
    std::fs::write(&files[0], &old[0]).unwrap();
    std::fs::write(&files[1], entries).unwrap();
    let store = open(folder.path(), 100, 100);
    // `readable` would see bytes of the first life.
    readable(&store, "ada", 1, &TEXT);
    assert!(store.counters().disk_blocks <= 3);
}

#[test]
fn a_handle_from_before_and_a_block_on_its_way_are_worth_nothing_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let system = Arc::new(Fake::default());
    let store = open_with(options(folder.path(), 100, 100), &system);
    put(&store, "ada", 0, &TEXT);
    let handle = find(&store, "ada", &TEXT).blocks[0];
    store.forget("ada").unwrap();
    assert_eq!(read(&store, &handle), Err(ReadError::Gone));

    // The disk is in the middle of writing a block.
    system.stuck.store(true, Relaxed);
    put(&store, "bob", 0, &TEXT);
    while !system.waits.load(Relaxed) {
        std::thread::yield_now();
    }
    store.forget("bob").unwrap();
    system.stuck.store(false, Relaxed);
    settle(&store);
    assert_eq!((store.counters().disk_blocks, store.counters().host_blocks), (0, 0));
    assert_eq!(std::fs::read_dir(folder.path().join("keys")).unwrap().count(), 0);
    drop(store);
    let store = open_with(options(folder.path(), 100, 100), &system);
    assert_eq!((readable(&store, "ada", 0, &TEXT), readable(&store, "bob", 0, &TEXT)), (0, 0));
}

#[test]
fn a_block_that_is_waited_for_when_its_member_is_forgotten_is_not_handed_out() {
    let folder = tempfile::tempdir().unwrap();
    let system = Arc::new(Fake::default());
    let store = open_with(options(folder.path(), 100, 100), &system);
    put(&store, "ada", 0, &TEXT);
    put(&store, "bob", 0, &TEXT);
    settle(&store);
    drop(store);
    let store = open_with(options(folder.path(), 0, 100), &system);
    // All that read are busy, and nothing is cleared: the bytes stay where they are.
    system.stuck.store(true, Relaxed);
    let busy = Arc::new(Barrier::new(5));
    for handle in [0, 1, 2, 0].map(|n| find(&store, "bob", &TEXT).blocks[n]) {
        let busy = Arc::clone(&busy);
        store.read(&handle, move |_| {
            busy.wait();
        });
    }
    let (done, answer) = channel();
    let handle = find(&store, "ada", &TEXT).blocks[0];
    store.read(&handle, move |block| done.send(block).unwrap());
    store.forget("ada").unwrap();
    busy.wait();
    assert_eq!(answer.recv().unwrap(), Err(ReadError::Gone));
    system.stuck.store(false, Relaxed);
}

#[test]
fn who_was_not_heard_of_since_the_start_can_be_forgotten_too() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 100, 100);
    put(&store, "ada", 0, &TEXT);
    put(&store, "bob", 0, &TEXT);
    settle(&store);
    drop(store);
    let store = open(folder.path(), 100, 100);
    store.forget("ada").unwrap();
    store.forget("nobody").unwrap();
    assert_eq!(std::fs::read_dir(folder.path().join("keys")).unwrap().count(), 1);
    assert_eq!((readable(&store, "ada", 0, &TEXT), readable(&store, "bob", 0, &TEXT)), (0, 3));
}

#[test]
fn a_key_that_cannot_be_destroyed_is_an_error_and_asking_again_tries_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 100, 100);
    put(&store, "ada", 0, &TEXT);
    settle(&store);
    // A folder in the place of the key's file can be neither overwritten nor removed as a file.
    let key = files(&folder.path().join("keys"))[0].clone();
    let away = folder.path().join("away");
    std::fs::rename(&key, &away).unwrap();
    std::fs::create_dir(&key).unwrap();
    let error = store.forget("ada").unwrap_err();
    assert!(error.to_string().contains("ask to forget again"));
    assert_eq!(readable(&store, "ada", 0, &TEXT), 0, "nothing of theirs is handed out");
    std::fs::remove_dir(&key).unwrap();
    std::fs::rename(&away, &key).unwrap();
    store.forget("ada").unwrap();
    assert!(!key.exists());
}

#[test]
fn a_member_for_whom_nothing_is_kept_any_more_has_no_key_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let system = Arc::new(Fake::default());
    let opened = |options: StoreOptions| open_with(options, &system);
    let store = opened(options(folder.path(), 100, 100));
    put(&store, "ada", 0, &TEXT);
    settle(&store);
    drop(store);
    system.wait(8 * 24 * 3600);
    let store = opened(options(folder.path(), 100, 100));
    assert_eq!(store.counters().disk_blocks, 0);
    assert_eq!(std::fs::read_dir(folder.path().join("keys")).unwrap().count(), 0);
}

#[test]
fn an_erased_folder_is_gone_and_one_that_is_used_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("engine");
    polder_kv::erase(&path).unwrap();
    let store = open(&path, 8, 8);
    put(&store, "ada", 1, &[1, 2, 3, 4]);
    settle(&store);
    assert!(matches!(polder_kv::erase(&path), Err(polder_kv::OpenError::Locked(_))));
    assert_eq!(readable(&store, "ada", 1, &[1, 2, 3, 4]), 2);
    drop(store);
    polder_kv::erase(&path).unwrap();
    assert!(!path.exists());
    assert!(polder_kv::disk_size(&path).unwrap() > 1 << 20);
}

#[test]
fn links_pipes_and_folders_that_an_attacker_left_lead_an_erasure_nowhere() {
    use std::os::unix::fs::symlink;
    let state = tempfile::tempdir().unwrap();
    let precious = state.path().join("polder.db");
    let others = state.path().join("kv/slow/keys");
    std::fs::create_dir_all(&others).unwrap();
    let others_key = others.join("0123456789abcdef01234567");
    let untouched = || {
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "the members' book");
        assert_eq!(std::fs::read_to_string(&others_key).unwrap(), "another engine's key");
    };
    std::fs::write(&precious, "the members' book").unwrap();
    std::fs::write(&others_key, "another engine's key").unwrap();
    let path = state.path().join("kv/fast");
    let keys = path.join("keys");
    let pipe = |at: &Path| {
        let kind = rustix::fs::FileType::Fifo;
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, at, kind, mode, 0).unwrap();
    };
    // In place of keys.
    std::fs::create_dir_all(&keys).unwrap();
    symlink(&precious, keys.join("00112233445566778899aabb")).unwrap();
    pipe(&keys.join("00112233445566778899aabc"));
    std::fs::create_dir_all(keys.join("00112233445566778899aabd/x")).unwrap();
    symlink(state.path(), path.join("blocks-000000")).unwrap();
    symlink(&precious, path.join("lock")).unwrap();
    polder_kv::erase(&path).unwrap();
    assert!(!path.exists());
    untouched();
    // In place of their folder, and of the lock.
    std::fs::create_dir_all(&path).unwrap();
    symlink(&others, &keys).unwrap();
    pipe(&path.join("lock"));
    polder_kv::erase(&path).unwrap();
    assert!(!path.exists());
    untouched();
}
