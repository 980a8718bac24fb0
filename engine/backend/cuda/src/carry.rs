//! Blocks on their way between the pool and host memory, beside steps: `kernels/carry.cu`, and two streams of their own.
//!
//! A copy over the bus is fast where it is long, and a block lies in as many parts as there are layers. So what leaves is first gathered on the
//! card, in order with steps, which may overwrite it from then on, and goes out from there while they run. What comes is copied to the
//! card whole and put in its parts there, behind the steps that were there before it. A step that has one of its blocks waits for it on the card.

use std::collections::VecDeque;
use std::sync::Arc;

use polder_backend::{BlockId, Carried, Carry, HostBlock};

use crate::arena::Arena;
use crate::device::{Buffer, Device, Event, Failure, Kernel, Loaded, Pinned, Ptr, Shape, Stream};
use crate::kv::Pool;
use crate::pack::{KernelError, Pack};
use crate::sources::module;

/// Blocks of one launch.
const TOGETHER: usize = 16;
/// Bytes on the card for what has left the pool and not the card, about.
const OUT_BYTES: usize = 192 << 20;

/// See the module.
#[derive(Debug)]
pub(crate) struct Carrier {
    device: Device,
    kernel: Kernel,
    layers: usize,
    /// Of a block, all layers.
    block_bytes: usize,
    outward: Stream,
    inward: Stream,
    /// `[places][layers][bytes]`: what has left the pool, and the places where nothing lies.
    out: Buffer<u8>,
    places: Vec<u32>,
    /// `[TOGETHER][layers][bytes]`: what comes.
    come: Buffer<u8>,
    /// For blocks that come from memory which the card does not read by itself, where there is no other.
    way_round: Pinned<u8>,
    leaving: VecDeque<Leaving>,
    arriving: VecDeque<Arriving>,
    /// Which copies bring a block of the pool; 0 none.
    comes: Vec<u64>,
    begun: u64,
    /// Steps and gathered blocks up to here.
    mark: Event,
    spare: Vec<Event>,
    /// Host memory that the card reads and writes by itself; without it nothing goes beside steps.
    arena: Option<Arc<Arena>>,
    _module: Loaded,
}

#[derive(Debug)]
struct Leaving {
    carry: Carry,
    blocks: Vec<HostBlock>,
    places: Vec<u32>,
    done: Event,
}

#[derive(Debug)]
struct Arriving {
    carry: Carry,
    blocks: Vec<BlockId>,
    /// Is read until it is done.
    _bytes: Vec<Arc<HostBlock>>,
    done: Event,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CarryArgs {
    pool: Ptr,
    packed: Ptr,
    layer_bytes: u64,
    bytes: u32,
    layers: u32,
    out: u32,
    pad: u32,
    blocks: [u32; TOGETHER],
    places: [u32; TOGETHER],
}

impl Carrier {
    /// For a pool of so many blocks with `block_bytes` in each of so many layers. `busy`: blocks that steps fill before the first of them has
    /// left, at most.
    pub(crate) fn new(
        pack: &Pack,
        device: &Device,
        (layers, block_bytes): (usize, usize),
        busy: usize,
    ) -> Result<Self, KernelError> {
        let loaded = pack.load(module("carry"), device)?;
        let whole = layers * block_bytes;
        let places = (OUT_BYTES / whole).clamp(4, busy.max(4));
        Ok(Self {
            kernel: loaded.kernel(c"carry")?,
            layers,
            block_bytes: whole,
            outward: device.stream()?,
            inward: device.stream()?,
            out: device.buffer(places * whole)?,
            places: (0..places as u32).rev().collect(),
            come: device.buffer(TOGETHER * whole)?,
            way_round: device.pinned(whole)?,
            leaving: VecDeque::new(),
            arriving: VecDeque::new(),
            comes: Vec::new(),
            begun: 0,
            mark: device.event()?,
            spare: Vec::new(),
            arena: None,
            device: device.clone(),
            _module: loaded,
        })
    }

    /// Takes pinned host memory for so many bytes, and for what is on its way out beside them.
    pub(crate) fn take_memory(&mut self, bytes: u64) -> Result<Arc<Arena>, Failure> {
        let kept = usize::try_from(bytes).unwrap_or(usize::MAX) / self.block_bytes;
        let reserve = self.places.len();
        let arena = Arena::new(&self.device, self.block_bytes, (kept + 2 * reserve, reserve))?;
        self.arena = Some(Arc::clone(&arena));
        Ok(arena)
    }

    /// Whether blocks go and come beside steps.
    pub(crate) fn is_open(&self) -> bool {
        self.arena.is_some()
    }

    /// Blocks that can begin to leave.
    pub(crate) fn room(&self) -> usize {
        self.arena.as_ref().map_or(usize::MAX, |arena| arena.free().min(self.places.len()))
    }

    /// Begins to copy blocks out that are in the pool when all is done that `steps` has been given. There is room for them.
    pub(crate) fn begin_out(
        &mut self,
        steps: &Stream,
        pool: &Pool,
        blocks: &[BlockId],
    ) -> Result<Carry, Failure> {
        self.hold_back(steps, blocks.iter())?;
        let places = self.places.split_off(self.places.len() - blocks.len());
        for (blocks, places) in blocks.chunks(TOGETHER).zip(places.chunks(TOGETHER)) {
            let blocks: Vec<u32> = blocks.iter().map(|block| block.0).collect();
            self.launch(steps, pool, (&blocks, places), &self.out, true)?;
        }
        steps.record(&self.mark)?;
        self.outward.wait(&self.mark)?;
        let mut to = Vec::with_capacity(places.len());
        for place in &places {
            let arena = self.arena.as_ref().expect("it is open");
            let mut block =
                arena.take().expect("there was room, and nobody else takes the reserve");
            let from = *place as usize * self.block_bytes;
            // SAFETY: the block stays with what is leaving until the event has been passed.
            unsafe { self.outward.download(&mut block, &self.out, from)? };
            to.push(block);
        }
        let done = self.event()?;
        self.outward.record(&done)?;
        let carry = self.next();
        self.leaving.push_back(Leaving { carry, blocks: to, places, done });
        Ok(carry)
    }

    /// Begins to write blocks of the pool, behind all that `steps` has been given.
    pub(crate) fn begin_in(
        &mut self,
        steps: &Stream,
        pool: &Pool,
        blocks: Vec<(BlockId, Arc<HostBlock>)>,
    ) -> Result<Carry, Failure> {
        let carry = self.next();
        steps.record(&self.mark)?;
        let (blocks, mut bytes): (Vec<BlockId>, Vec<Arc<HostBlock>>) = blocks.into_iter().unzip();
        let places: Vec<u32> = (0..TOGETHER as u32).collect();
        for (blocks, bytes) in blocks.chunks(TOGETHER).zip(bytes.chunks_mut(TOGETHER)) {
            for (place, bytes) in bytes.iter_mut().enumerate() {
                self.bring(place, bytes)?;
            }
            // What was in the pool may still be read.
            self.inward.wait(&self.mark)?;
            let blocks: Vec<u32> = blocks.iter().map(|block| block.0).collect();
            let places = &places[..blocks.len()];
            self.launch(&self.inward, pool, (&blocks, places), &self.come, false)?;
        }
        let done = self.event()?;
        self.inward.record(&done)?;
        let most =
            blocks.iter().map(|block| block.0 as usize + 1).fold(self.comes.len(), usize::max);
        self.comes.resize(most, 0);
        blocks.iter().for_each(|block| self.comes[block.0 as usize] = carry.0);
        self.arriving.push_back(Arriving { carry, blocks, _bytes: bytes, done });
        Ok(carry)
    }

    /// Brings a block to the card, from where the card can read it.
    fn bring(&mut self, place: usize, bytes: &mut Arc<HostBlock>) -> Result<(), Failure> {
        let arena = self.arena.as_ref();
        if !arena.is_some_and(|arena| arena.holds(bytes)) {
            match arena.and_then(|arena| arena.take()) {
                Some(mut pinned) => {
                    pinned.copy_from_slice(bytes);
                    *bytes = Arc::new(pinned);
                }
                None => {
                    self.inward.synchronize()?;
                    self.way_round.copy_from_slice(bytes);
                    let at = place * self.block_bytes;
                    // SAFETY: it is waited for.
                    unsafe { self.inward.upload(&self.come, at, &self.way_round)? };
                    return self.inward.synchronize();
                }
            }
        }
        // SAFETY: the bytes stay with what is arriving until the event has been passed.
        unsafe { self.inward.upload(&self.come, place * self.block_bytes, bytes) }
    }

    /// What `steps` is given from now on waits for those of the blocks that are still on their way in.
    pub(crate) fn hold_back<'a>(
        &self,
        steps: &Stream,
        blocks: impl Iterator<Item = &'a BlockId>,
    ) -> Result<(), Failure> {
        let Some(first) = self.arriving.front() else { return Ok(()) };
        let comes = |block: &BlockId| self.comes.get(block.0 as usize).copied().unwrap_or_default();
        let last = blocks.map(comes).max().unwrap_or_default();
        if last < first.carry.0 {
            return Ok(());
        }
        let arriving = self.arriving.iter().find(|arriving| arriving.carry.0 == last);
        arriving.map_or(Ok(()), |arriving| steps.wait(&arriving.done))
    }

    /// The next copies that are done; with `wait` those that were begun first, where there are any.
    pub(crate) fn carried(&mut self, wait: bool) -> Result<Option<Carried>, Failure> {
        let leaves = |leaving: &Leaving| leaving.done.has_passed();
        if self.leaving.front().map_or(Ok(false), leaves)? {
            return self.left();
        }
        let comes = |arriving: &Arriving| arriving.done.has_passed();
        if self.arriving.front().map_or(Ok(false), comes)? {
            return self.arrived();
        }
        if !wait {
            return Ok(None);
        }
        match (self.leaving.front(), self.arriving.front()) {
            (Some(leaving), arriving)
                if arriving.is_none_or(|arriving| arriving.carry > leaving.carry) =>
            {
                leaving.done.wait()?;
                self.left()
            }
            (_, Some(arriving)) => {
                arriving.done.wait()?;
                self.arrived()
            }
            _ => Ok(None),
        }
    }

    fn left(&mut self) -> Result<Option<Carried>, Failure> {
        let Some(Leaving { carry, blocks, places, done }) = self.leaving.pop_front() else {
            return Ok(None);
        };
        self.places.extend(places);
        self.spare.push(done);
        Ok(Some(Carried { carry, blocks }))
    }

    fn arrived(&mut self) -> Result<Option<Carried>, Failure> {
        let Some(Arriving { carry, blocks, done, .. }) = self.arriving.pop_front() else {
            return Ok(None);
        };
        for block in blocks {
            let comes = &mut self.comes[block.0 as usize];
            *comes = if *comes == carry.0 { 0 } else { *comes };
        }
        self.spare.push(done);
        Ok(Some(Carried { carry, blocks: Vec::new() }))
    }

    /// From the pool to `packed`, or the other way.
    fn launch(
        &self,
        stream: &Stream,
        pool: &Pool,
        (blocks, places): (&[u32], &[u32]),
        packed: &Buffer<u8>,
        out: bool,
    ) -> Result<(), Failure> {
        let fill = |values: &[u32]| -> [u32; TOGETHER] {
            std::array::from_fn(|n| values.get(n).copied().unwrap_or_default())
        };
        let args = CarryArgs {
            pool: pool.layer(0),
            packed: packed.at(),
            layer_bytes: pool.layer_bytes() as u64,
            bytes: pool.block_bytes() as u32,
            layers: self.layers as u32,
            out: u32::from(out),
            pad: 0,
            blocks: fill(blocks),
            places: fill(places),
        };
        let rows = args.bytes.div_ceil(16 * 4 * 256);
        let grid = [rows, args.layers, blocks.len() as u32];
        let shape = Shape { grid, block: 256, shared: 0, overlaps: false };
        // SAFETY: blocks are in the pool, places in the buffer, and both stay until the streams are done.
        unsafe { stream.launch(&self.kernel, &shape, &args) }
    }

    fn event(&mut self) -> Result<Event, Failure> {
        self.spare.pop().map_or_else(|| self.device.event(), Ok)
    }

    fn next(&mut self) -> Carry {
        self.begun += 1;
        Carry(self.begun)
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        // Nothing is freed under what still runs. What fails here has failed before.
        let _ = self.device.enter();
        let _ = self.outward.synchronize();
        let _ = self.inward.synchronize();
    }
}
