//! Weights on their way: made by all cores, or read from a file, into a ring of host memory, and from there to the card. Everything
//! overlaps, and the ring is all the memory that it takes, however large the model is.

use std::collections::VecDeque;
use std::ops::DerefMut;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::device::{Buffer, Device, Event, Failure, Pinned, Stream};
use crate::packed::Opened;
use crate::packing::{Piece, Plan};

/// Where weights go: a card, or a test's memory.
pub trait Target {
    /// Host memory that it takes bytes from.
    type Slot: DerefMut<Target = [u8]> + Send;

    /// So many bytes of it.
    fn slot(&self, bytes: usize) -> Result<Self::Slot, Failure>;

    /// Starts to take the first bytes of a slot as a piece's.
    fn take(&mut self, piece: &Piece, slot: Self::Slot) -> Result<(), Failure>;

    /// A slot whose bytes have been taken. `wait` is for the oldest one; none if there is none.
    fn back(&mut self, wait: bool) -> Result<Option<Self::Slot>, Failure>;
}

/// What became of a file of packed weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Came {
    /// All pieces were packed: there was no file.
    Packed,
    /// All were read.
    Read,
    /// Some were damaged, and packed.
    Mended,
}

/// How it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Brought {
    /// From where.
    pub came: Came,
    /// How much of the time the cores packed, in percent: what is left, they waited for the disk or the bus.
    pub packing: u32,
}

/// Most host memory of the ring, where two slots are not more.
const RING: usize = 512 << 20;

/// Brings all pieces of a plan to a target; `progress` hears how many bytes are there.
pub fn bring<T: Target>(
    plan: &Plan<'_>,
    kept: Option<&Opened>,
    target: &mut T,
    threads: usize,
    progress: impl Fn(u64),
) -> Result<Brought, Failure> {
    let began = Instant::now();
    let longest = plan.longest();
    let (damaged, packing) = (AtomicBool::new(false), AtomicU64::new(0));
    let make = |n: usize, slot: &mut [u8]| {
        let slot = &mut slot[..plan.pieces[n].bytes];
        if let Some(kept) = kept {
            match kept.read(n, slot) {
                Ok(()) => return,
                Err(error) if !damaged.swap(true, Ordering::Relaxed) => {
                    log::warn!("packed weights are damaged ({error}); packing again what is");
                }
                Err(_) => {}
            }
        }
        let before = computed();
        plan.pack(n, slot);
        let took = computed().saturating_sub(before).as_micros();
        packing.fetch_add(u64::try_from(took).unwrap_or(u64::MAX), Ordering::Relaxed);
    };
    let (give, free) = channel::<T::Slot>();
    for n in 0..(2 * threads).min(RING / longest.max(1)).clamp(2, 2 * plan.pieces.len().max(1)) {
        match target.slot(longest) {
            Ok(slot) => give.send(slot).expect("the receiver is here"),
            // With less it takes longer.
            Err(_) if n >= 2 => break,
            Err(failure) => return Err(failure),
        }
    }
    let (free, next) = (Mutex::new(free), AtomicUsize::new(0));
    let (full, made) = channel::<(usize, T::Slot)>();
    let sent = std::thread::scope(|scope| {
        for _ in 0..threads.min(plan.pieces.len()) {
            let (full, free, next, make) = (full.clone(), &free, &next, &make);
            scope.spawn(move || {
                loop {
                    let slot = free.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    // Nobody gives back any more.
                    let Ok(mut slot) = slot else { break };
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= plan.pieces.len() {
                        break;
                    }
                    make(n, &mut slot);
                    if full.send((n, slot)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(full);
        let (mut taken, mut bytes) = (0, 0);
        while taken < plan.pieces.len() {
            while let Some(slot) = target.back(false)? {
                let _ = give.send(slot);
            }
            let (n, slot) = match made.try_recv() {
                Ok(found) => found,
                // All slots may be on their way to the card.
                Err(TryRecvError::Empty) => match target.back(true)? {
                    Some(slot) => {
                        let _ = give.send(slot);
                        continue;
                    }
                    None => match made.recv() {
                        Ok(found) => found,
                        // Whoever packs has panicked: the scope says so.
                        Err(_) => break,
                    },
                },
                Err(TryRecvError::Disconnected) => break,
            };
            target.take(&plan.pieces[n], slot)?;
            taken += 1;
            bytes += plan.pieces[n].bytes as u64;
            progress(bytes);
        }
        while target.back(true)?.is_some() {}
        drop(give);
        Ok(())
    });
    sent?;
    let came = match (kept, damaged.into_inner()) {
        (None, _) => Came::Packed,
        (Some(_), false) => Came::Read,
        (Some(_), true) => Came::Mended,
    };
    let all = began.elapsed().as_micros().max(1) as f64 * threads as f64;
    Ok(Brought { came, packing: (100.0 * packing.into_inner() as f64 / all) as u32 })
}

/// How long this thread has computed.
fn computed() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// A card that takes weights, on a stream of its own.
#[derive(Debug)]
pub(crate) struct Card {
    device: Device,
    stream: Stream,
    /// One for each part.
    pub(crate) buffers: Vec<Arc<Buffer<u8>>>,
    on_their_way: VecDeque<(Pinned<u8>, Event)>,
    spare: Vec<Event>,
}

impl Card {
    /// Takes the memory of all parts.
    pub(crate) fn new(device: &Device, plan: &Plan<'_>) -> Result<Self, Failure> {
        let each = plan.parts.iter().map(|part| device.buffer(part.bytes).map(Arc::new));
        let buffers: Result<_, Failure> = each.collect();
        Ok(Self {
            device: device.clone(),
            stream: device.stream()?,
            buffers: buffers?,
            on_their_way: VecDeque::new(),
            spare: Vec::new(),
        })
    }
}

impl Target for Card {
    type Slot = Pinned<u8>;

    fn slot(&self, bytes: usize) -> Result<Pinned<u8>, Failure> {
        self.device.pinned(bytes)
    }

    fn take(&mut self, piece: &Piece, slot: Pinned<u8>) -> Result<(), Failure> {
        let event = match self.spare.pop() {
            Some(event) => event,
            None => self.device.event()?,
        };
        let buffer = &self.buffers[piece.part];
        // SAFETY: the slot is not given back before the event behind the copy has passed.
        unsafe { self.stream.upload(buffer, piece.from, &slot[..piece.bytes]) }?;
        self.stream.record(&event)?;
        self.on_their_way.push_back((slot, event));
        Ok(())
    }

    fn back(&mut self, wait: bool) -> Result<Option<Pinned<u8>>, Failure> {
        let Some((_, event)) = self.on_their_way.front() else { return Ok(None) };
        if wait {
            event.wait()?;
        } else if !event.has_passed()? {
            return Ok(None);
        }
        let done = self.on_their_way.pop_front();
        Ok(done.map(|(slot, event)| {
            self.spare.push(event);
            slot
        }))
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        // Slots are not freed under a copy. What fails here has failed before.
        let _ = self.stream.synchronize();
    }
}

/// Reads back what a card was given, for the file.
#[derive(Debug)]
pub(crate) struct ReadBack {
    stream: Stream,
    done: Event,
    slot: Pinned<u8>,
    buffers: Vec<Arc<Buffer<u8>>>,
    device: Device,
}

impl ReadBack {
    pub(crate) fn new(card: Card, longest: usize) -> Result<Self, Failure> {
        let device = card.device.clone();
        let (stream, done, slot) = (device.stream()?, device.event()?, device.pinned(longest)?);
        Ok(Self { stream, done, slot, buffers: card.buffers.clone(), device })
    }

    /// The bytes of a piece.
    pub(crate) fn piece(&mut self, piece: &Piece, to: &mut Vec<u8>) -> Result<(), Failure> {
        self.device.enter()?;
        let slot = &mut self.slot[..piece.bytes];
        // SAFETY: nobody looks before the event has passed.
        unsafe { self.stream.download(slot, &self.buffers[piece.part], piece.from) }?;
        self.stream.record(&self.done)?;
        self.done.wait()?;
        to.clear();
        to.extend_from_slice(&self.slot[..piece.bytes]);
        Ok(())
    }
}
