//! Host memory for KV blocks that the card reads and writes by itself. It grows as it is used, on a thread of its own.
//!
//! The driver's own call for such memory holds up every other call to the driver meanwhile: 60 ms for 128 MiB, in which no step can begin.
//! So the system gives the memory first, and the driver takes over what is there, in small pieces.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use polder_backend::{HostBlock, HostMemory, Lent};

use crate::device::{Device, Failure};

/// Bytes that are taken at once, about.
const CHUNK_BYTES: usize = 32 << 20;
/// More is taken where fewer bytes than these are free.
const LOW_BYTES: usize = 256 << 20;
/// Whoever was refused asks again after this: what other programs took may be free by then.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// The system's large pages.
const PAGE: usize = 2 << 20;

/// See the module. What is lent keeps it alive.
pub(crate) struct Arena {
    device: Device,
    block_bytes: usize,
    /// Blocks of a chunk, and most blocks in all.
    per_chunk: usize,
    most: usize,
    /// Blocks that only [`Self::take`] gives.
    reserve: usize,
    state: Mutex<State>,
    /// Asks the thread for more. It ends when this is gone.
    grow: Sender<()>,
    /// For what is lent.
    this: Weak<Self>,
}

#[derive(Default)]
struct State {
    /// By the address of their first byte.
    chunks: BTreeMap<usize, Chunk>,
    free: Vec<Place>,
    made: usize,
    growing: bool,
    /// The system gave no more then.
    refused: Option<Instant>,
}

/// Memory of one block, in a chunk that stays as long as the arena.
#[derive(Clone, Copy)]
struct Place(*mut u8);

// SAFETY: memory like any other; whoever holds a place has it alone.
unsafe impl Send for Place {}
// SAFETY: it is only read through a shared reference.
unsafe impl Sync for Place {}

impl Arena {
    /// Takes the first chunk, and later on up to so many blocks, of which the last `reserve` are for whoever owns it.
    pub(crate) fn new(
        device: &Device,
        block_bytes: usize,
        (most, reserve): (usize, usize),
    ) -> Result<Arc<Self>, Failure> {
        let (grow, asked) = channel();
        let per_chunk = (CHUNK_BYTES / block_bytes).clamp(1, most.max(1));
        let arena = Arc::new_cyclic(|this| Self {
            device: device.clone(),
            block_bytes,
            per_chunk,
            most,
            reserve,
            state: Mutex::default(),
            grow,
            this: this.clone(),
        });
        arena.take_chunk()?;
        let weak = Arc::downgrade(&arena);
        let thread = std::thread::Builder::new().name("polder-pinned".into());
        if let Err(error) = thread.spawn(move || grow_when_asked(&asked, &weak)) {
            log::warn!(error:% = error; "host memory for KV does not grow");
        }
        Ok(arena)
    }

    /// Memory for a block, if any is free.
    pub(crate) fn take(&self) -> Option<HostBlock> {
        self.lend_above(0)
    }

    /// Blocks that can be taken now.
    pub(crate) fn free(&self) -> usize {
        let mut state = self.lock();
        self.ask_for_more(&mut state);
        state.free.len()
    }

    /// Whether these bytes lie in it.
    pub(crate) fn holds(&self, bytes: &[u8]) -> bool {
        let at = bytes.as_ptr() as usize;
        let state = self.lock();
        state
            .chunks
            .range(..=at)
            .next_back()
            .is_some_and(|(start, chunk)| at + bytes.len() <= start + chunk.layout.size())
    }

    fn lend_above(&self, reserve: usize) -> Option<HostBlock> {
        let arena = self.this.upgrade()?;
        let mut state = self.lock();
        let place = if state.free.len() > reserve { state.free.pop() } else { None };
        self.ask_for_more(&mut state);
        drop(state);
        place.map(|place| HostBlock::lent(Box::new(Loan { place, arena })))
    }

    fn take_chunk(&self) -> Result<(), Failure> {
        let blocks = self.per_chunk.min(self.most.saturating_sub(self.lock().made));
        if blocks == 0 {
            return Ok(());
        }
        let chunk = Chunk::new(&self.device, blocks * self.block_bytes)?;
        let start = chunk.at;
        let mut state = self.lock();
        state.made += blocks;
        // The lowest first.
        state
            .free
            .extend((0..blocks).rev().map(|n| Place(start.wrapping_add(n * self.block_bytes))));
        state.chunks.insert(start as usize, chunk);
        Ok(())
    }

    /// Before the last one is lent.
    fn ask_for_more(&self, state: &mut State) {
        if self.is_low(state) && !state.growing {
            state.growing = self.grow.send(()).is_ok();
        }
    }

    fn is_low(&self, state: &State) -> bool {
        let low = state.free.len() * self.block_bytes < LOW_BYTES;
        let again = state.refused.is_none_or(|when| when.elapsed() >= ASK_AGAIN);
        low && again && state.made < self.most
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread's work, until the arena is gone.
fn grow_when_asked(asked: &Receiver<()>, arena: &Weak<Arena>) {
    for () in asked {
        loop {
            let Some(arena) = arena.upgrade() else { return };
            let taken = arena.device.enter().and_then(|()| arena.take_chunk());
            let mut state = arena.lock();
            match taken {
                Ok(()) => state.refused = None,
                Err(failure) => {
                    // Once, and not every time that it is asked in vain.
                    if state.refused.replace(Instant::now()).is_none() {
                        log::warn!("host memory for KV stays as it is for now: {failure}");
                    }
                }
            }
            if !arena.is_low(&state) {
                state.growing = false;
                break;
            }
        }
    }
}

/// Memory for some blocks.
struct Chunk {
    at: *mut u8,
    layout: Layout,
    device: Device,
}

// SAFETY: memory like any other.
unsafe impl Send for Chunk {}

impl Chunk {
    fn new(device: &Device, bytes: usize) -> Result<Self, Failure> {
        let what = || format!("the system for {bytes} bytes of memory");
        let layout = Layout::from_size_align(bytes.next_multiple_of(PAGE), PAGE);
        let none = |why: &str| Failure { what: what(), why: why.into(), out_of_memory: true };
        let layout = layout.map_err(|_| none("it is too much"))?;
        // SAFETY: of some bytes; all of them are written before anything reads one.
        let at = unsafe { alloc(layout) };
        if at.is_null() {
            return Err(none("it has no more"));
        }
        // Large pages are there sooner, and the card translates fewer addresses. Where the system has none small ones do.
        // SAFETY: the memory is ours alone.
        let _ = unsafe {
            rustix::mm::madvise(at.cast(), layout.size(), rustix::mm::Advice::LinuxHugepage)
        };
        // SAFETY: the same. So that every page is there.
        unsafe { std::ptr::write_bytes(at, 0, layout.size()) };
        // SAFETY: it stays until this is dropped.
        let registered = unsafe { device.register(at, layout.size()) };
        match registered {
            Ok(()) => Ok(Self { at, layout, device: device.clone() }),
            Err(failure) => {
                // SAFETY: from `alloc`, and nobody has it.
                unsafe { dealloc(at, layout) };
                Err(failure)
            }
        }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: registered and allocated when this was made; what was lent keeps the arena alive, and whoever copies keeps that.
        unsafe {
            self.device.unregister(self.at);
            dealloc(self.at, self.layout);
        }
    }
}

impl HostMemory for Arena {
    fn lend(&self) -> Option<HostBlock> {
        self.lend_above(self.reserve)
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        let (free, made) = (state.free.len(), state.made);
        write!(f, "{free} of {made} blocks of {} pinned bytes free", self.block_bytes)
    }
}

/// A block's memory, lent.
struct Loan {
    place: Place,
    arena: Arc<Arena>,
}

impl Lent for Loan {
    fn bytes(&self) -> &[u8] {
        // SAFETY: a block's bytes in a chunk that the arena keeps, lent once.
        unsafe { std::slice::from_raw_parts(self.place.0, self.arena.block_bytes) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the same, and nobody else has it.
        unsafe { std::slice::from_raw_parts_mut(self.place.0, self.arena.block_bytes) }
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.arena.lock().free.push(self.place);
    }
}
