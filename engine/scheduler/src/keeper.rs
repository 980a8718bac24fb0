//! What the engine's thread does for the tiers beside the device: puts blocks there, has them read, and gives up reads
//! that take too long.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use polder_backend::{Backend, BackendError, BlockId, TokenId};
use polder_kv::{Block, ChainDigest, Kept, ReadError, RestoreEstimate, Store, Tier};

use crate::request::RequestId;
use crate::scheduler::Scheduler;
use crate::tiers::{KeptBlock, Owner, PutWork, RestoreId, RestoreWork, Tiers};

/// Blocks of one sequence that are read at the same time.
const AT_ONCE: usize = 32;
/// So much longer than it may stand still a tier may take in all, before the rest is read by the model.
const IN_ALL: u32 = 6;
/// Steps that read fewer tokens say little about how fast a long text is read.
const TELLING: u32 = 32;

/// A block that came from a tier, or did not.
pub(crate) struct Came {
    pub(crate) id: RestoreId,
    /// Its place in [`RestoreWork::blocks`].
    pub(crate) at: usize,
    pub(crate) when: Instant,
    pub(crate) block: Result<Block, ReadError>,
}

/// Called from the threads that read.
type Tell = Arc<dyn Fn(Came) + Send + Sync>;

/// See the module.
pub(crate) struct Keeper {
    store: Arc<Store>,
    estimate: Arc<Mutex<RestoreEstimate>>,
    tell: Tell,
    /// Longest that no block at all may come while some are waited for.
    patience: Duration,
    reading: HashMap<RestoreId, Reading>,
    last_came: Instant,
    puts: Vec<PutWork>,
    restores: Vec<RestoreWork>,
}

struct Reading {
    work: RestoreWork,
    /// The next block to ask for, and how many were asked for and have not come.
    next: usize,
    away: usize,
    /// When something was asked for last, and when something came.
    asked: Instant,
    last: Instant,
    bytes: u64,
    /// Set when nobody waits for it any more: what is asked for and not begun is not read.
    cancelled: Arc<AtomicBool>,
    /// Time that the tier took, and that writing to the device took. What waits for a step in between is neither's fault.
    reading: Duration,
    writing: Duration,
}

impl Reading {
    /// The slower one, where they come from both.
    fn tier(&self) -> Tier {
        let disk = self.work.blocks.iter().any(|block| block.tier == Tier::Disk);
        if disk { Tier::Disk } else { Tier::Host }
    }
}

impl Keeper {
    pub(crate) fn new(store: Arc<Store>, patience: Duration, tell: Tell) -> Self {
        Self {
            store,
            estimate: Arc::default(),
            tell,
            patience,
            reading: HashMap::new(),
            last_came: Instant::now(),
            puts: Vec::new(),
            restores: Vec::new(),
        }
    }

    /// What the scheduler asks.
    pub(crate) fn tiers(&self, block_tokens: u32, block_bytes: u64) -> Box<dyn Tiers> {
        Box::new(StoreTiers {
            store: Arc::clone(&self.store),
            estimate: Arc::clone(&self.estimate),
            block_tokens: block_tokens.into(),
            block_bytes,
        })
    }

    /// Puts what became full, as much as is due now. Must come before the next step is planned.
    pub(crate) fn put(
        &mut self,
        scheduler: &mut Scheduler,
        backend: &mut dyn Backend,
    ) -> Result<(), BackendError> {
        let mut refused: Option<RequestId> = None;
        scheduler.put_work(&mut self.puts);
        for put in self.puts.drain(..) {
            if refused == Some(put.id) {
                continue;
            }
            let mut bytes = Vec::new();
            backend.export_block(put.block, &mut bytes)?;
            let done = self.store.put(name(&put.owner), &put.parent, &put.tokens, bytes);
            if !matches!(done.kept, Kept::New | Kept::Already) {
                refused = Some(put.id);
                scheduler.not_kept(put.id);
            }
        }
        Ok(())
    }

    /// Begins to read what the scheduler wants back.
    pub(crate) fn restore(&mut self, scheduler: &mut Scheduler, now: Instant) {
        scheduler.restore_work(&mut self.restores);
        for work in std::mem::take(&mut self.restores) {
            if !scheduler.is_restoring(work.id) {
                continue;
            }
            let (id, none) = (work.id, Duration::ZERO);
            let (next, away, bytes, reading, writing) = (0, 0, 0, none, none);
            let (asked, last) = (now, now);
            let cancelled = Arc::default();
            let reading =
                Reading { work, next, away, asked, last, bytes, cancelled, reading, writing };
            self.reading.insert(id, reading);
            self.ask(id, now);
        }
    }

    /// A block has come, or will not come.
    pub(crate) fn came(
        &mut self,
        came: Came,
        scheduler: &mut Scheduler,
        backend: &mut dyn Backend,
    ) -> Result<(), BackendError> {
        let Came { id, at, when, block } = came;
        if block == Err(ReadError::Cancelled) {
            // That says nothing about the tier.
            return Ok(());
        }
        self.last_came = self.last_came.max(when);
        let Some(reading) = self.reading.get_mut(&id) else { return Ok(()) };
        reading.away = reading.away.saturating_sub(1);
        reading.reading += when.saturating_duration_since(reading.asked.max(reading.last));
        reading.last = reading.last.max(when);
        match block {
            Ok(bytes) => {
                if let Some(place) = scheduler.place_of(id, at) {
                    let begins = Instant::now();
                    backend.import_block(place, &bytes)?;
                    reading.writing += begins.elapsed();
                    scheduler.restored(id, at);
                    reading.bytes += bytes.len() as u64;
                }
            }
            Err(_) => scheduler.not_restored(id, at),
        }
        match scheduler.is_restoring(id) {
            true => self.ask(id, Instant::now()),
            false => self.end(id),
        }
        Ok(())
    }

    /// Has those sequences read on whose blocks do not come.
    pub(crate) fn give_up_late(&mut self, scheduler: &mut Scheduler, now: Instant) {
        let late: Vec<RestoreId> = self
            .reading
            .iter()
            .filter(|(id, reading)| self.until(reading) <= now || !scheduler.is_restoring(**id))
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            if scheduler.is_restoring(id) {
                log::warn!(
                    "kept KV does not come back from the disk in time; its tokens are read again"
                );
                scheduler.stop_restoring(id);
                if let Some(reading) = self.reading.get_mut(&id) {
                    // It was slow, also where nothing came at all.
                    reading.reading +=
                        now.saturating_duration_since(reading.asked.max(reading.last));
                    reading.bytes = reading.bytes.max(1);
                }
            }
            self.end(id);
        }
    }

    /// When [`Self::give_up_late`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.reading.values().map(|reading| self.until(reading)).min()
    }

    /// A step of so many tokens, `read` of them prompts', took so long.
    pub(crate) fn stepped(&self, tokens: u32, read: u32, took: Duration) {
        if read >= TELLING && read >= tokens / 4 * 3 {
            lock(&self.estimate).prefilled(read.into(), took);
        }
    }

    fn until(&self, reading: &Reading) -> Instant {
        let stands_still = self.last_came.max(reading.asked) + self.patience;
        let left = (self.patience * IN_ALL).saturating_sub(reading.reading);
        stands_still.min(reading.asked.max(reading.last) + left)
    }

    /// Asks for as many blocks as may be away.
    fn ask(&mut self, id: RestoreId, now: Instant) {
        let Some(reading) = self.reading.get_mut(&id) else { return };
        while reading.away < AT_ONCE && reading.next < reading.work.blocks.len() {
            let at = reading.next;
            reading.next += 1;
            reading.away += 1;
            reading.asked = now;
            let tell = Arc::clone(&self.tell);
            let came = move |block| tell(Came { id, at, when: Instant::now(), block });
            match self.store.locate(name(&reading.work.owner), &reading.work.blocks[at].digest) {
                Some(handle) => self.store.read_unless(&handle, &reading.cancelled, came),
                None => came(Err(ReadError::Gone)),
            }
        }
    }

    /// Nobody waits for it any more.
    fn end(&mut self, id: RestoreId) {
        let Some(reading) = self.reading.remove(&id) else { return };
        reading.cancelled.store(true, Ordering::Relaxed);
        let took = reading.reading + reading.writing;
        lock(&self.estimate).restored(reading.tier(), reading.bytes, took);
    }
}

/// Whether a back end's blocks can be kept in a store: it lets them be read, and they are as long as the store's.
pub(crate) fn can_keep(backend: &mut dyn Backend) -> Result<bool, BackendError> {
    match backend.export_block(BlockId(0), &mut Vec::new()) {
        Ok(()) => Ok(true),
        Err(BackendError::Unsupported(what)) => {
            log::warn!("the back end cannot {what}; nothing is kept beside the device");
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// An owner's name in the store. What belongs to all who trust each other has one that no member's can be.
pub(crate) fn name(owner: &Owner) -> &str {
    match owner {
        Owner::Member(member) => member.as_str(),
        Owner::Trusting => TRUSTING,
    }
}

/// No header can hold a line break, and members' names come in one.
const TRUSTING: &str = "\ntrusting";

/// The store as the scheduler sees it.
#[derive(Debug)]
struct StoreTiers {
    store: Arc<Store>,
    estimate: Arc<Mutex<RestoreEstimate>>,
    block_tokens: u64,
    block_bytes: u64,
}

impl Tiers for StoreTiers {
    fn root(&self) -> ChainDigest {
        self.store.root()
    }

    fn find(&mut self, owner: &Owner, tokens: &[TokenId]) -> Vec<KeptBlock> {
        let found = self.store.find(name(owner), tokens).blocks;
        found.iter().map(|at| KeptBlock { digest: at.digest(), tier: at.tier }).collect()
    }

    fn contains(&mut self, owner: &Owner, digest: &ChainDigest) -> bool {
        self.store.contains(name(owner), digest)
    }

    fn worth_restoring(&mut self, blocks: usize, tier: Tier) -> bool {
        let (blocks, each) = (blocks as u64, self.block_bytes);
        lock(&self.estimate).worth_restoring(blocks * self.block_tokens, blocks * each, tier)
    }
}

/// What a thread that panicked left behind is still the last that is known.
fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
