//! How fast blocks go to disk and come back, beside a plain file with as many bytes.
//!
//! `cargo run --release -p polder-kv --example speed [FOLDER] [MEBIBYTES]`; the folder decides which disk. Everything is
//! read cold: the page cache is emptied of it before.

use std::error::Error;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use polder_backend::TokenId;
use polder_kv::{ModelDigest, Store, StoreOptions};
use rustix::fs::{Advice, fadvise};

/// 16 tokens of a model of 30 billion parameters with FP8 KV (48 KiB each).
const BLOCK: usize = 768 * 1024;
const TOKENS: usize = 16;
const MINUTE: Duration = Duration::from_secs(60);

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let parent = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let mebibytes: usize = arguments.next().map_or(Ok(512), |text| text.parse())?;
    let blocks = (mebibytes << 20) / BLOCK;
    let folder = tempfile::tempdir_in(parent)?;
    let plain = plain_file(&folder.path().join("plain"), blocks)?;
    println!("{blocks} blocks of {} KiB, {mebibytes} MiB", BLOCK >> 10);
    report("plain file: write", blocks, plain.0, None);
    report("plain file: read, one thread", blocks, plain.1, None);

    let options = StoreOptions {
        folder: Some(folder.path().join("kv")),
        host_bytes: (blocks * BLOCK) as u64,
        disk_bytes: 2 * (blocks * BLOCK) as u64,
        disk_reserve_bytes: 1 << 30,
        ..StoreOptions::new(ModelDigest([1; 32]), BLOCK, TOKENS)
    };
    let text: Vec<TokenId> = (0..(blocks * TOKENS) as u32).map(TokenId).collect();
    let store = Store::open(options.clone())?;
    let bodies: Vec<Vec<u8>> = (0..blocks).map(body).collect();
    let start = Instant::now();
    let mut digest = store.root();
    for (tokens, bytes) in text.chunks_exact(TOKENS).zip(bodies) {
        digest = store.put("ada", &digest, tokens, bytes).digest;
    }
    let put = start.elapsed();
    if !store.settle(10 * MINUTE) || store.counters().disk_blocks != blocks as u64 {
        return Err(format!("not everything was written: {:?}", store.counters()).into());
    }
    each("store: put, the caller's time", blocks, put);
    report("store: put until on disk", blocks, start.elapsed(), Some(plain.0));
    let start = Instant::now();
    read_all(&store, &text, blocks)?;
    each("store: read from host memory", blocks, start.elapsed());
    drop(store);

    let start = Instant::now();
    let store = Store::open(StoreOptions { host_bytes: 0, ..options })?;
    each("store: open", blocks, start.elapsed());
    let start = Instant::now();
    let found = store.find("ada", &text).blocks.len();
    each("store: find", found, start.elapsed());
    let start = Instant::now();
    read_all(&store, &text, blocks)?;
    report("store: read from disk", blocks, start.elapsed(), Some(plain.1));
    Ok(())
}

/// Writes and reads a file; how long each took.
fn plain_file(path: &Path, blocks: usize) -> Result<(Duration, Duration), Box<dyn Error>> {
    let bodies: Vec<Vec<u8>> = (0..blocks).map(body).collect();
    let start = Instant::now();
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
    for (at, bytes) in bodies.iter().enumerate() {
        file.write_all_at(bytes, (at * BLOCK) as u64)?;
    }
    file.sync_data()?;
    let written = start.elapsed();
    fadvise(&file, 0, None, Advice::DontNeed)?;
    let start = Instant::now();
    for at in 0..blocks {
        // As the store does: every block is memory of its own.
        let mut bytes = vec![0; BLOCK];
        file.read_exact_at(&mut bytes, (at * BLOCK) as u64)?;
        std::hint::black_box(bytes);
    }
    let read = start.elapsed();
    std::fs::remove_file(path)?;
    Ok((written, read))
}

fn read_all(store: &Store, text: &[TokenId], blocks: usize) -> Result<(), Box<dyn Error>> {
    let found = store.find("ada", text).blocks;
    if found.len() != blocks {
        return Err(format!("{} of {blocks} blocks were found", found.len()).into());
    }
    let (done, answers) = channel();
    for (at, handle) in found.iter().enumerate() {
        let done = done.clone();
        store.read(handle, move |bytes| {
            // Fails only when the reading below has failed already.
            let _ = done.send((at, bytes));
        });
    }
    for _ in 0..blocks {
        let (at, bytes) = answers.recv_timeout(MINUTE)?;
        let bytes = bytes?;
        if bytes[..8] != (at as u64).to_le_bytes() {
            return Err(format!("block {at} has the bytes of another").into());
        }
    }
    Ok(())
}

fn body(number: usize) -> Vec<u8> {
    let mut bytes = vec![number as u8; BLOCK];
    bytes[..8].copy_from_slice(&(number as u64).to_le_bytes());
    bytes
}

fn each(what: &str, blocks: usize, took: Duration) {
    println!("{what:<32} {:9.2} µs a block", took.as_secs_f64() * 1e6 / blocks as f64);
}

fn report(what: &str, blocks: usize, took: Duration, plain: Option<Duration>) {
    let rate = (blocks * BLOCK) as f64 / took.as_secs_f64() / 1e9;
    let ratio = plain.map_or(String::new(), |plain| {
        format!("   {:.2} of the plain file's speed", plain.as_secs_f64() / took.as_secs_f64())
    });
    println!("{what:<32} {rate:9.2} GB/s{ratio}");
}
