//! What the engine's thread does for the tiers beside the device: puts blocks there, has them read, and gives up reads
//! that take too long. Blocks go out and come in beside steps, where the back end can do that.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use polder_backend::{Backend, BackendError, Begun, BlockId, Carried, Carry, HostBlock, TokenId};
use polder_kv::{Block, ChainDigest, Kept, ReadError, RestoreEstimate, Store, Tier};

use crate::request::{MemberId, RequestId};
use crate::scheduler::Scheduler;
use crate::tiers::{KeptBlock, Owner, PutWork, RestoreId, RestoreWork, Tiers};

/// Blocks of one sequence that are read at the same time.
const AT_ONCE: usize = 32;
/// Blocks that begin to come in together.
const TOGETHER: usize = 32;
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
    /// On their way out, in order. None: its owner was forgotten meanwhile.
    leaving: VecDeque<(Carry, Vec<Option<PutWork>>)>,
    /// That have come and are still to begin their way in.
    landing: Vec<(Landing, Block)>,
    /// On their way in, in order.
    arriving: VecDeque<(Carry, Vec<Landing>)>,
}

/// A block on its way to the device: of which restoring, its place there, and when it set off.
#[derive(Clone, Copy)]
struct Landing {
    id: RestoreId,
    at: usize,
    since: Instant,
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
    /// When a block was on the device last.
    landed: Option<Instant>,
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
            leaving: VecDeque::new(),
            landing: Vec::new(),
            arriving: VecDeque::new(),
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

    /// Has what became full begin its way out, as much as is due now and there is room for. Must come before the next step is planned.
    pub(crate) fn put(
        &mut self,
        scheduler: &mut Scheduler,
        backend: &mut dyn Backend,
    ) -> Result<(), BackendError> {
        scheduler.put_work(backend.export_room(), &mut self.puts);
        if self.puts.is_empty() {
            return Ok(());
        }
        let blocks: Vec<BlockId> = self.puts.iter().map(|put| put.block).collect();
        let puts = self.puts.drain(..).map(Some).collect();
        match backend.begin_export(&blocks)? {
            Begun::Done(blocks) => self.left(puts, blocks, scheduler),
            Begun::Later(carry) => self.leaving.push_back((carry, puts)),
        }
        Ok(())
    }

    /// These blocks are in host memory now.
    fn left(
        &mut self,
        puts: Vec<Option<PutWork>>,
        blocks: Vec<HostBlock>,
        scheduler: &mut Scheduler,
    ) {
        let mut refused: Option<RequestId> = None;
        for (put, bytes) in puts.into_iter().zip(blocks) {
            let Some(put) = put.filter(|put| refused != Some(put.id)) else { continue };
            let done = self.store.put(name(&put.owner), &put.parent, &put.tokens, bytes);
            if !matches!(done.kept, Kept::New | Kept::Already) {
                refused = Some(put.id);
                scheduler.not_kept(put.id);
            }
        }
    }

    /// What is on its way out for them is not kept.
    pub(crate) fn forget(&mut self, member: &MemberId) {
        let of = |owner: &Owner| match owner {
            Owner::Trusting => true,
            Owner::Member(owner) => owner == member,
        };
        for (_, puts) in &mut self.leaving {
            puts.iter_mut().for_each(|put| {
                put.take_if(|put| of(&put.owner));
            });
        }
    }

    /// Begins the way in of what has come, and takes what is done. With `wait` it waits for something that is on its way, if anything is.
    pub(crate) fn carry(
        &mut self,
        scheduler: &mut Scheduler,
        backend: &mut dyn Backend,
        mut wait: bool,
    ) -> Result<(), BackendError> {
        self.set_off(scheduler, backend)?;
        while self.is_carrying() {
            let Some(Carried { carry, blocks }) = backend.carried(wait)? else { break };
            wait = false;
            if self.leaving.front().is_some_and(|(first, _)| *first == carry) {
                let (_, puts) = self.leaving.pop_front().unwrap_or((carry, Vec::new()));
                self.left(puts, blocks, scheduler);
            } else if self.arriving.front().is_some_and(|(first, _)| *first == carry) {
                let (_, landings) = self.arriving.pop_front().unwrap_or((carry, Vec::new()));
                self.landed(landings, scheduler);
            }
        }
        Ok(())
    }

    /// Whether something is on its way out or in.
    pub(crate) fn is_carrying(&self) -> bool {
        self.is_putting() || !self.arriving.is_empty()
    }

    /// Whether something is on its way out.
    pub(crate) fn is_putting(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// What has come begins its way in.
    fn set_off(
        &mut self,
        scheduler: &mut Scheduler,
        backend: &mut dyn Backend,
    ) -> Result<(), BackendError> {
        if self.landing.is_empty() {
            return Ok(());
        }
        let mut landings = Vec::with_capacity(self.landing.len());
        let mut blocks = Vec::with_capacity(self.landing.len());
        for (landing, bytes) in self.landing.drain(..) {
            // Where nobody waits for it any more it must not be written.
            if let Some(place) = scheduler.place_of(landing.id, landing.at) {
                landings.push(landing);
                blocks.push((place, bytes));
            }
        }
        match backend.begin_import(blocks)? {
            Begun::Done(_) => self.landed(landings, scheduler),
            Begun::Later(carry) => self.arriving.push_back((carry, landings)),
        }
        Ok(())
    }

    /// Lets go of what has come and nobody waits for any more: a member's words must not lie there until somebody asks something.
    pub(crate) fn let_go(&mut self, scheduler: &Scheduler) {
        self.landing.retain(|(landing, _)| scheduler.place_of(landing.id, landing.at).is_some());
    }

    /// These blocks are on the device now.
    fn landed(&mut self, landings: Vec<Landing>, scheduler: &mut Scheduler) {
        let now = Instant::now();
        self.last_came = now;
        let mut over = None;
        for Landing { id, at, since } in landings {
            scheduler.restored(id, at);
            let Some(reading) = self.reading.get_mut(&id) else { continue };
            // Of blocks that are on their way together the time counts once.
            let from = reading.landed.map_or(since, |landed| landed.max(since));
            reading.writing += now.saturating_duration_since(from);
            reading.landed = Some(now);
            if over != Some(id) && !scheduler.is_restoring(id) {
                over = Some(id);
                self.end(id);
            }
        }
    }

    /// Begins to read what the scheduler wants back.
    pub(crate) fn restore(&mut self, scheduler: &mut Scheduler, now: Instant) {
        scheduler.restore_work(&mut self.restores);
        for work in std::mem::take(&mut self.restores) {
            if !scheduler.is_restoring(work.id) {
                continue;
            }
            let (id, none) = (work.id, Duration::ZERO);
            let reading = Reading {
                work,
                next: 0,
                away: 0,
                asked: now,
                last: now,
                bytes: 0,
                cancelled: Arc::default(),
                reading: none,
                writing: none,
                landed: None,
            };
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
                reading.bytes += bytes.len() as u64;
                let since = Instant::now();
                self.landing.push((Landing { id, at, since }, bytes));
            }
            Err(_) => scheduler.not_restored(id, at),
        }
        if self.landing.len() >= TOGETHER {
            self.set_off(scheduler, backend)?;
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
