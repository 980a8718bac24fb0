//! A machine whose clocks, room and disk do as the test says, and a store of small blocks on it.

#![allow(dead_code, reason = "each test uses its part")]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use polder_backend::TokenId;
use polder_kv::{
    Block, ChainDigest, Found, Handle, Kept, ModelDigest, ReadError, Store, StoreOptions, System,
};

/// Tokens of a block.
pub(crate) const TOKENS: usize = 2;
/// Bytes of a block: more than a page, and no multiple of anything.
pub(crate) const BYTES: usize = 4999;
/// Bytes that a block takes on disk.
pub(crate) const COST: u64 = 8192 + 128;

#[derive(Debug)]
pub(crate) struct Fake {
    pub(crate) wall: AtomicU64,
    pub(crate) uptime: AtomicU64,
    pub(crate) free: AtomicU64,
    /// Bytes that can be written before the power is cut, in the middle of a write perhaps.
    pub(crate) until_cut: AtomicU64,
    /// What writing fails with.
    pub(crate) error: Mutex<Option<io::ErrorKind>>,
    /// Writes wait while this is set.
    pub(crate) stuck: AtomicBool,
    /// A write has begun to wait.
    pub(crate) waits: AtomicBool,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            wall: AtomicU64::new(1_800_000_000),
            uptime: AtomicU64::new(1000),
            free: AtomicU64::new(u64::MAX),
            until_cut: AtomicU64::new(u64::MAX),
            error: Mutex::new(None),
            stuck: AtomicBool::new(false),
            waits: AtomicBool::new(false),
        }
    }
}

impl Fake {
    /// Time goes by.
    pub(crate) fn wait(&self, seconds: u64) {
        self.wall.fetch_add(seconds, Relaxed);
        self.uptime.fetch_add(seconds, Relaxed);
    }
}

impl System for Fake {
    fn wall_seconds(&self) -> u64 {
        self.wall.load(Relaxed)
    }

    fn uptime_seconds(&self) -> u64 {
        self.uptime.load(Relaxed)
    }

    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        Ok(self.free.load(Relaxed))
    }

    fn write_at(&self, file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
        while self.stuck.load(Relaxed) {
            self.waits.store(true, Relaxed);
            std::thread::sleep(Duration::from_millis(1));
        }
        if let Some(kind) = *self.error.lock().unwrap() {
            return Err(kind.into());
        }
        let left = self.until_cut.load(Relaxed);
        let written = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.until_cut.store(left - written as u64, Relaxed);
        file.write_all_at(&bytes[..written], at)?;
        // Who is without power hears of nothing; the caller goes on and reaches no disk.
        Ok(())
    }
}

/// Room for this many blocks.
pub(crate) fn options(folder: &Path, host: u64, disk: u64) -> StoreOptions {
    StoreOptions {
        folder: Some(folder.to_owned()),
        host_bytes: host * BYTES as u64,
        disk_bytes: disk * COST,
        disk_reserve_bytes: 0,
        // Three blocks in a file, so that there are several.
        segment_bytes: 3 * 8192,
        retention: Duration::from_secs(7 * 24 * 3600),
        ..StoreOptions::new(ModelDigest([7; 32]), BYTES, TOKENS)
    }
}

pub(crate) fn open(folder: &Path, host: u64, disk: u64) -> Store {
    open_with(options(folder, host, disk), &Arc::default())
}

pub(crate) fn open_with(options: StoreOptions, system: &Arc<Fake>) -> Store {
    Store::open_on(options, Arc::clone(system) as Arc<dyn System>).unwrap()
}

pub(crate) fn tokens(text: &[u32]) -> Vec<TokenId> {
    text.iter().copied().map(TokenId).collect()
}

/// What a block of a member's text holds; `life` tells a member from the one before they were forgotten.
pub(crate) fn bytes(member: &str, life: u32, text: &[u32]) -> Vec<u8> {
    let mark = format!("plain words of {member}, life {life}, after {text:?}; ");
    mark.bytes().cycle().take(BYTES).collect()
}

/// Puts all whole blocks of a text and says what became of each.
pub(crate) fn put(store: &Store, member: &str, life: u32, text: &[u32]) -> Vec<Kept> {
    let mut parent = store.root();
    (TOKENS..=text.len())
        .step_by(TOKENS)
        .map(|end| {
            let block = tokens(&text[end - TOKENS..end]);
            let put = store.put(member, &parent, &block, bytes(member, life, &text[..end]));
            parent = put.digest;
            put.kept
        })
        .collect()
}

pub(crate) fn find(store: &Store, member: &str, text: &[u32]) -> Found {
    store.find(member, &tokens(text))
}

pub(crate) fn read(store: &Store, handle: &Handle) -> Result<Block, ReadError> {
    let (done, answer) = channel();
    store.read(handle, move |block| done.send(block).unwrap());
    answer.recv_timeout(Duration::from_secs(60)).unwrap()
}

/// Blocks from the beginning of a text that can be found and read. Panics where one is not what was put.
pub(crate) fn readable(store: &Store, member: &str, life: u32, text: &[u32]) -> usize {
    let found = find(store, member, text);
    let mut digest: ChainDigest = store.root();
    for (at, handle) in found.blocks.iter().enumerate() {
        digest = digest.then(&tokens(&text[at * TOKENS..(at + 1) * TOKENS]));
        assert_eq!(handle.digest(), digest);
        match read(store, handle) {
            Ok(block) => {
                assert!(
                    block[..] == bytes(member, life, &text[..(at + 1) * TOKENS])[..],
                    "wrong bytes for {member}'s {text:?}, block {at}"
                );
            }
            Err(_) => return at,
        }
    }
    found.blocks.len()
}

pub(crate) fn settle(store: &Store) {
    assert!(store.settle(Duration::from_secs(60)));
}

/// Every file below a folder.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in folder.read_dir().unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(self::files(&path)),
            false => files.push(path),
        }
    }
    files.sort();
    files
}
