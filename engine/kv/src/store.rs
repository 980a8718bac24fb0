//! The store as callers see it. Decisions are [`Index`]'s; what waits for a disk is done by threads (`spill.rs` and
//! [`read_blocks`]).

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use polder_backend::{HostBlock, HostMemory, TokenId};

use crate::clock::Clock;
use crate::counters::Counters;
use crate::digest::ChainDigest;
use crate::index::{Address, Bounds, Index, Written};
use crate::keys::MemberKey;
use crate::layout::Folder;
use crate::members::Members;
use crate::options::{OpenError, StoreOptions};
use crate::record::{key_id, open_block, open_entry};
use crate::segments::{Geometry, Segments};
use crate::spill::spill_blocks;
use crate::system::{Machine, System};

/// Threads that read from disk and decrypt.
const READERS: usize = 4;

/// A block's bytes.
pub type Block = Arc<HostBlock>;

/// Where a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tier {
    /// In host memory.
    Host,
    /// On disk.
    Disk,
}

/// What became of a block that was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It is in host memory now.
    New,
    /// It was kept before.
    Already,
    /// Not kept: what comes before it is not kept, so nobody would find it.
    Orphan,
    /// Not kept: everything in host memory is needed more.
    NoRoom,
    /// Not kept: not the store's number of bytes or tokens.
    WrongSize,
}

/// The answer to [`Store::put`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Put {
    /// The block's address, which is the next one's parent.
    pub digest: ChainDigest,
    /// Whether it is kept.
    pub kept: Kept,
}

/// A block that was found. Good until the block goes; reading it may say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handle {
    at: Address,
    /// Where it was when it was found.
    pub tier: Tier,
}

impl Handle {
    /// The block's address.
    pub fn digest(&self) -> ChainDigest {
        self.at.digest
    }
}

/// How a text begins, as far as it is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// From the first block on, without a gap.
    pub blocks: Vec<Handle>,
}

/// Why a block was not handed back. Its tokens must be read again, and whatever comes after it too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// It was given up since it was found.
    #[error("the KV block is not kept any more")]
    Gone,
    /// It could not be read, or is not what was written.
    #[error("the KV block cannot be read back as it was written")]
    Damaged,
    /// The store is closing.
    #[error("the KV store is closing")]
    Closing,
    /// Whoever asked does not wait for it any more.
    #[error("nobody waits for the KV block any more")]
    Cancelled,
}

/// A member's key could not be destroyed. Nothing of theirs is handed out any more while this engine runs; until the file is gone, whoever takes
/// the disk could read their blocks. Asking again tries again.
#[derive(Debug, thiserror::Error)]
#[error("cannot destroy a member's KV key; check the disk and ask to forget again")]
pub struct ForgetError(#[source] std::io::Error);

type Done = Box<dyn FnOnce(Result<Block, ReadError>) + Send>;

struct ReadJob {
    written: Written,
    key: Arc<MemberKey>,
    cancelled: Arc<AtomicBool>,
    done: Done,
}

/// What all threads share.
pub(crate) struct Shared {
    pub(crate) system: Arc<dyn System>,
    pub(crate) retention: Duration,
    pub(crate) disk: Option<Disk>,
    /// Where blocks that are read lie, if somebody says where.
    memory: Option<Arc<dyn HostMemory>>,
    state: Mutex<State>,
    /// There is something to spill or to clear.
    pub(crate) work: Condvar,
    /// A round of the spilling thread is over.
    pub(crate) round_over: Condvar,
    reads: Mutex<Reads>,
    reads_come: Condvar,
}

/// The disk tier.
pub(crate) struct Disk {
    pub(crate) folder: Folder,
    pub(crate) segments: Segments,
    pub(crate) geometry: Geometry,
    pub(crate) reserve: u64,
}

pub(crate) struct State {
    pub(crate) index: Index,
    pub(crate) members: Members,
    clock: Clock,
    pub(crate) closing: bool,
    /// Rounds that somebody waits for, and that are over.
    pub(crate) rounds_wanted: u64,
    pub(crate) rounds_over: u64,
}

#[derive(Default)]
struct Reads {
    queue: VecDeque<ReadJob>,
    closing: bool,
}

/// Blocks in host memory and on disk. Cheap to share behind an [`Arc`]; all calls take `&self`.
///
/// When it is dropped it waits for the block that is being written, no more: [`Self::settle`] first, to have the next
/// engine find everything.
pub struct Store {
    shared: Arc<Shared>,
    root: ChainDigest,
    block_bytes: usize,
    block_tokens: usize,
    threads: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("counters", &self.counters()).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the folder, if there is one, and takes in what is kept there. Reads every entry (128 bytes for a block) and no
    /// block.
    pub fn open(options: StoreOptions) -> Result<Self, OpenError> {
        Self::open_on(options, Arc::new(Machine))
    }

    /// The same on a machine of the caller's making, for tests.
    pub fn open_on(options: StoreOptions, system: Arc<dyn System>) -> Result<Self, OpenError> {
        let (bytes, tokens) = (options.block_bytes, options.block_tokens);
        if bytes == 0 || tokens == 0 {
            return Err(OpenError::EmptyBlock { bytes, tokens });
        }
        let geometry = Geometry::new(bytes, options.segment_bytes);
        let blocks = |room: u64, each: u64| usize::try_from(room / each).unwrap_or(usize::MAX);
        let bounds = Bounds {
            host_blocks: blocks(options.host_bytes, bytes as u64),
            disk_blocks: match options.folder {
                Some(_) => blocks(options.disk_bytes, geometry.cost()),
                None => 0,
            },
            stamp_every: (options.retention.as_secs() / 16).clamp(1, 3600),
        };
        let root = ChainDigest::root(&options.model);
        let mut index = Index::new(bounds, root);
        let mut members = Members::default();
        let mut seen = 0;
        let disk = match &options.folder {
            None => None,
            Some(path) => {
                let folder = Folder::open(path, &options)?;
                let segments = Segments::new(path, geometry, Arc::clone(&system));
                let reserve = options.disk_reserve_bytes;
                let disk = Disk { folder, segments, geometry, reserve };
                seen = load(&disk, &mut index, &mut members)
                    .map_err(|source| OpenError::Folder { path: path.clone(), source })?;
                Some(disk)
            }
        };
        let clock = Clock::start(system.wall_seconds(), system.uptime_seconds(), seen);
        let mut state =
            State { index, members, clock, closing: false, rounds_wanted: 0, rounds_over: 0 };
        let now = state.now(&*system);
        while state.index.expire(now, options.retention, 1024) {}
        if let Some(disk) = &disk {
            drop_keys_without_blocks(disk, &mut state, &options)?;
        }
        let shared = Arc::new(Shared {
            system,
            retention: options.retention,
            disk,
            memory: options.memory,
            state: Mutex::new(state),
            work: Condvar::new(),
            round_over: Condvar::new(),
            reads: Mutex::default(),
            reads_come: Condvar::new(),
        });
        let mut store =
            Self { shared, root, block_bytes: bytes, block_tokens: tokens, threads: Vec::new() };
        store.start("polder-kv-spill".into(), spill_blocks)?;
        if store.shared.disk.is_some() {
            for number in 0..READERS {
                store.start(format!("polder-kv-read-{number}"), read_blocks)?;
            }
        }
        Ok(store)
    }

    fn start(&mut self, name: String, run: fn(&Shared)) -> Result<(), OpenError> {
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name(name).spawn(move || run(&shared));
        self.threads.push(thread.map_err(OpenError::Threads)?);
        Ok(())
    }

    /// What comes before the first block of a text.
    pub fn root(&self) -> ChainDigest {
        self.root
    }

    /// Whether a block is kept. Does not count as use.
    pub fn contains(&self, member: &str, digest: &ChainDigest) -> bool {
        self.locate(member, digest).is_some()
    }

    /// A block by its address, if it is kept. Does not count as use.
    pub fn locate(&self, member: &str, digest: &ChainDigest) -> Option<Handle> {
        let mut state = self.shared.lock();
        let at = Address { member: state.members.find(member)?, digest: *digest };
        state.index.tier(&at).map(|tier| Handle { at, tier })
    }

    /// Keeps a block that follows `parent`: in host memory at once, on disk when there is time. Waits for nothing. Where there is
    /// no room the block is not kept, and where the disk is slow blocks leave host memory before they were written.
    pub fn put(
        &self,
        member: &str,
        parent: &ChainDigest,
        tokens: &[TokenId],
        bytes: impl Into<HostBlock>,
    ) -> Put {
        let bytes = bytes.into();
        let digest = parent.then(tokens);
        let mut state = self.shared.lock();
        if tokens.len() != self.block_tokens || bytes.len() != self.block_bytes {
            state.index.counts.refusals += 1;
            return Put { digest, kept: Kept::WrongSize };
        }
        let now = state.now(&*self.shared.system);
        let Ok(member) = state.members.enter(member) else {
            state.index.counts.refusals += 1;
            return Put { digest, kept: Kept::NoRoom };
        };
        let kept = state.index.put(Address { member, digest }, parent, Arc::new(bytes), now);
        let trash = state.index.take_trash();
        drop(state);
        drop(trash);
        if kept == Kept::New {
            self.shared.work.notify_one();
        }
        Put { digest, kept }
    }

    /// How a member's text begins, as far as whole blocks of it are kept. Counts as their use. No I/O.
    pub fn find(&self, member: &str, tokens: &[TokenId]) -> Found {
        let mut state = self.shared.lock();
        let now = state.now(&*self.shared.system);
        let mut blocks = Vec::new();
        let asked = tokens.len() / self.block_tokens;
        if let Some(member) = state.members.find(member) {
            let mut digest = self.root;
            for part in tokens.chunks_exact(self.block_tokens) {
                digest = digest.then(part);
                let at = Address { member, digest };
                let Some(tier) = state.index.tier(&at) else { break };
                blocks.push(Handle { at, tier });
            }
        }
        if let Some(last) = blocks.last() {
            state.index.touch(&last.at, now);
        }
        let in_host = blocks.iter().filter(|handle| handle.tier == Tier::Host).count();
        state.index.counts.host_hits += in_host as u64;
        state.index.counts.disk_hits += (blocks.len() - in_host) as u64;
        state.index.counts.misses += (asked - blocks.len()) as u64;
        Found { blocks }
    }

    /// Hands a block's bytes to `done`: at once, on this thread, where host memory has them, otherwise from a thread that
    /// reads. Blocks are read in the order in which they were asked for, several at a time. `done` is called in any
    /// case; it must neither wait nor panic.
    pub fn read(
        &self,
        handle: &Handle,
        done: impl FnOnce(Result<Block, ReadError>) + Send + 'static,
    ) {
        self.read_unless(handle, &Arc::default(), done);
    }

    /// The same, and where `cancelled` is set before it is the block's turn, the disk is left to others.
    pub fn read_unless(
        &self,
        handle: &Handle,
        cancelled: &Arc<AtomicBool>,
        done: impl FnOnce(Result<Block, ReadError>) + Send + 'static,
    ) {
        let mut state = self.shared.lock();
        let Some(key) = state.members.key(handle.at.member).cloned() else {
            drop(state);
            return done(Err(ReadError::Gone));
        };
        if let Some(bytes) = state.index.host(&handle.at) {
            state.index.counts.host_restores += 1;
            drop(state);
            return done(Ok(bytes));
        }
        let written = state.index.on_disk(&handle.at);
        drop(state);
        let Some(written) = written else { return done(Err(ReadError::Gone)) };
        let (cancelled, done) = (Arc::clone(cancelled), Box::new(done));
        let job = ReadJob { written, key, cancelled, done };
        lock(&self.shared.reads).queue.push_back(job);
        self.shared.reads_come.notify_one();
    }

    /// Forgets a member now. When this returns without an error their key is destroyed, on disk too, and nothing that was kept for them can be read by
    /// anybody; the room that their blocks take on disk is given back in the background. Waits for the disk.
    pub fn forget(&self, member: &str) -> Result<(), ForgetError> {
        let (number, keys) = self.shared.lock().members.leave(member);
        let mut result = Ok(());
        if let Some(disk) = &self.shared.disk {
            for key in keys {
                if let Err(error) = disk.folder.keys.forget(&key) {
                    self.shared.lock().members.bury_later(member, key);
                    result = Err(ForgetError(error));
                }
            }
        }
        // In pieces, so that nobody who puts or finds waits for all of it.
        while let Some(number) = number {
            let mut state = self.shared.lock();
            let more = state.index.forget(number);
            let trash = state.index.take_trash();
            drop(state);
            drop(trash);
            if !more {
                break;
            }
        }
        self.shared.work.notify_one();
        result
    }

    /// Waits until all that was put is on disk or given up, what is too old is dropped, and cleared slots are cleared; at most so
    /// long. Says whether it came to that.
    pub fn settle(&self, within: Duration) -> bool {
        let until = Instant::now() + within;
        let mut state = self.shared.lock();
        state.rounds_wanted += 1;
        let wanted = state.rounds_wanted;
        self.shared.work.notify_one();
        while state.rounds_over < wanted {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.shared.round_over.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// How things stand.
    pub fn counters(&self) -> Counters {
        let state = self.shared.lock();
        let counts = state.index.counts;
        let slot = self.shared.disk.as_ref().map_or(0, |disk| disk.geometry.cost());
        Counters {
            host_bytes: counts.host_blocks * self.block_bytes as u64,
            disk_bytes: counts.disk_blocks * slot,
            waiting_spills: state.index.spills() as u64,
            ..counts
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        lock(&self.shared.reads).closing = true;
        self.shared.work.notify_all();
        self.shared.reads_come.notify_all();
        for thread in self.threads.drain(..) {
            // A panic there has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

impl State {
    /// Now, for ages.
    pub(crate) fn now(&mut self, system: &dyn System) -> u64 {
        let (now, jump) = self.clock.read(system.wall_seconds(), system.uptime_seconds());
        if let Some(jump) = jump {
            self.index.shift(jump.since, jump.by);
        }
        now
    }
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The same bytes where the device reads them best.
    fn place(&self, bytes: Vec<u8>) -> HostBlock {
        match self.memory.as_ref().and_then(|memory| memory.lend()) {
            Some(mut block) if block.len() == bytes.len() => {
                block.copy_from_slice(&bytes);
                block
            }
            _ => bytes.into(),
        }
    }
}

/// What a thread that panicked left behind is still the best that is known.
fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes in what lies on disk, and says what the newest time is that was seen.
fn load(disk: &Disk, index: &mut Index, members: &mut Members) -> std::io::Result<u64> {
    for key in disk.folder.keys.load()? {
        members.load(key);
    }
    let by_key = members.by_key();
    let (mut written, mut unclear) = (Vec::new(), Vec::new());
    disk.segments.scan(|slot, entry| {
        let opened = key_id(entry).and_then(|id| {
            let member = *by_key.get(&id)?;
            open_entry(&disk.folder.identity, member, members.key(member)?, slot, entry)
        });
        match opened {
            Some(block) => written.push(block),
            None => unclear.push(slot),
        }
    })?;
    let mut segments: Vec<u64> =
        written.iter().map(|block| disk.segments.segment_of(block.slot)).collect();
    segments.sort_unstable();
    segments.dedup();
    disk.segments.keep_only(&segments)?;
    unclear.retain(|slot| segments.binary_search(&disk.segments.segment_of(*slot)).is_ok());
    let newest = written.iter().map(|block| block.used).max().unwrap_or(0);
    let seen = disk.folder.seen().unwrap_or(0).max(newest);
    index.load(written, unclear);
    Ok(seen)
}

fn drop_keys_without_blocks(
    disk: &Disk,
    state: &mut State,
    options: &StoreOptions,
) -> Result<(), OpenError> {
    let State { index, members, .. } = state;
    for key in members.retain(|member| index.has(member)) {
        disk.folder.keys.forget(&key).map_err(|source| OpenError::Folder {
            path: options.folder.as_deref().unwrap_or(Path::new("")).join("keys"),
            source,
        })?;
    }
    Ok(())
}

/// The work of a thread that reads.
fn read_blocks(shared: &Shared) {
    let Some(disk) = &shared.disk else { return };
    while let Some((job, closing)) = next_read(shared) {
        let answer = match closing {
            true => Err(ReadError::Closing),
            false if job.cancelled.load(Ordering::Relaxed) => Err(ReadError::Cancelled),
            false => read_block(shared, disk, &job),
        };
        (job.done)(answer);
    }
}

fn next_read(shared: &Shared) -> Option<(ReadJob, bool)> {
    let mut reads = lock(&shared.reads);
    loop {
        if let Some(job) = reads.queue.pop_front() {
            return Some((job, reads.closing));
        }
        if reads.closing {
            return None;
        }
        reads = shared.reads_come.wait(reads).unwrap_or_else(PoisonError::into_inner);
    }
}

fn read_block(shared: &Shared, disk: &Disk, job: &ReadJob) -> Result<Block, ReadError> {
    let ReadJob { written, key, .. } = job;
    let bytes = disk.segments.read_block(written.slot).and_then(|mut bytes| {
        match open_block(&disk.folder.identity, key, written, &mut bytes) {
            true => Ok(Arc::new(shared.place(bytes))),
            false => Err(std::io::Error::other("the block is not what was written")),
        }
    });
    let mut state = shared.lock();
    if key.is_forgotten() || state.members.key(written.at.member).is_none() {
        return Err(ReadError::Gone);
    }
    let still = state
        .index
        .on_disk(&written.at)
        .is_some_and(|now| (now.slot, now.nonce) == (written.slot, written.nonce));
    let result = match bytes {
        Ok(bytes) => {
            state.index.counts.disk_restores += 1;
            state.index.restored(&written.at, &bytes);
            Ok(bytes)
        }
        // Its slot has another block by now.
        Err(_) if !still => Err(ReadError::Gone),
        Err(error) => {
            state.index.counts.failures += 1;
            state.index.failed(&written.at);
            log::warn!(error:% = error; "a kept KV block cannot be read back; its tokens are read again");
            Err(ReadError::Damaged)
        }
    };
    let trash = state.index.take_trash();
    drop(state);
    drop(trash);
    if result == Err(ReadError::Damaged) {
        shared.work.notify_one();
    }
    result
}
