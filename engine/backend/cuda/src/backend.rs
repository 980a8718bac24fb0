//! The public back end: checks steps, writes them down for the card, and plays or starts what they take.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use polder_backend::check::{Slots, carried};
use polder_backend::{
    Backend, BackendError, Begun, BlockId, Carried, HostBlock, HostMemory, Limits, OutputRow,
    Place, Row, StepBatch, StepOutput, Ticket, Want, Writer,
};
use polder_model::drawn::Stored;
use polder_model::{Attention, Ffn, Model, ModelSpec};

use crate::attention::{Attend, HEAD_DIMS, HeadShape, KvFormat, Work as Sharing};
use crate::budget::{self, TooSmall, size};
use crate::carry::Carrier;
use crate::device::{Buffer, Device, Event, Failure, Graph, NoDevice, Pinned, Plain, Stream};
use crate::forward::{Forward, Places, mixture};
use crate::kv::Pool;
use crate::ledger::RECORDED_STEPS;
use crate::moe::Unfit;
use crate::no_code::NoCode;
use crate::pack::{KernelError, Pack};
use crate::packed::PackedTiles;
use crate::sampling::{self, MOST_VOCAB, Memory, Packed, Room, Sampler, Way};
use crate::sources::MODULES;
use crate::step::{Layout, RECORDED, SEQUENCE, Size, fill_up, samples, write};
use crate::synthetic;
use crate::tiles::TileFormat;
use crate::weights::{DeviceWeights, Unkept, WeightError};

/// How to run a model on a card.
#[derive(Debug, Clone)]
pub struct CudaOptions {
    /// Which card, from 0.
    pub device: u32,
    /// Where kernels are kept.
    pub pack: Pack,
    /// Where packed weights are kept for the next start; None packs them each time.
    pub packed: Option<PackedTiles>,
    /// How keys and values are kept.
    pub kv: KvFormat,
    /// Most positions in the KV pool, rounded up to whole blocks.
    pub kv_tokens: u32,
    /// Most bytes of the KV pool. None: what the card has left when everything else is there, but for a twentieth.
    pub kv_bytes: Option<u64>,
    /// Most bytes of the card's memory for everything: weights, keys and values, work, and what the driver takes for this process. None:
    /// what is free.
    pub memory: Option<u64>,
    /// Which part of the model this is. One card has all of it: anything else is refused.
    pub place: Place,
    /// Positions in a block; a multiple of 16.
    pub block_tokens: u32,
    /// Sequences that can run at once.
    pub slots: u16,
    /// Most tokens in one step.
    pub step_tokens: u32,
}

impl Default for CudaOptions {
    fn default() -> Self {
        Self {
            device: 0,
            pack: Pack::default(),
            packed: None,
            kv: KvFormat::Bf16,
            kv_tokens: 16 * 1024,
            kv_bytes: None,
            memory: None,
            place: Place::ALONE,
            block_tokens: 16,
            slots: 64,
            step_tokens: 4096,
        }
    }
}

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No card.
    #[error(transparent)]
    NoDevice(#[from] NoDevice),
    /// Nothing was compiled for it.
    #[error(transparent)]
    NoCode(#[from] NoCode),
    /// No kernels for it.
    #[error(transparent)]
    Kernels(#[from] KernelError),
    /// The model has widths that the kernels do not take.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// The model has mixtures that the kernels do not take.
    #[error(transparent)]
    Mixture(#[from] Unfit),
    /// The model does something that the kernels do not.
    #[error("the kernels cannot {0}")]
    Unsupported(String),
    /// An option that cannot be.
    #[error("cannot run a model with {0}")]
    Options(String),
    /// There is no room for conversations.
    #[error(
        "{} MiB of the card's memory are left for conversations, and one block of {positions} positions takes {} KiB; end what else uses the card, give this engine more of it, or choose a smaller model",
        .bytes >> 20, .block >> 10
    )]
    NoRoom {
        /// Bytes that are left.
        bytes: u64,
        /// Positions of a block.
        positions: u32,
        /// Bytes of a block.
        block: u64,
    },
    /// There is no room for what computes.
    #[error(
        "the weights take {} of the card's {}, and what is left is not enough to compute with ({failure}); end what else uses the card, or choose a smaller model",
        size(.weights), size(.all)
    )]
    Beside {
        /// Bytes of the weights.
        weights: u64,
        /// Bytes of the card.
        all: u64,
        /// What it could not have.
        failure: Failure,
    },
    /// The model does not fit.
    #[error(transparent)]
    TooSmall(#[from] TooSmall),
    /// The card refuses; out of memory, for one.
    #[error("{0}")]
    Device(#[from] Failure),
}

impl LoadError {
    /// Whether the card had not enough memory: it could run the model, if others left it more.
    pub fn is_memory(&self) -> bool {
        match self {
            Self::Device(failure) | Self::Kernels(KernelError::Device(failure)) => {
                failure.out_of_memory
            }
            Self::Weights(WeightError::Device(failure)) => failure.out_of_memory,
            Self::TooSmall(_) | Self::Beside { .. } | Self::NoRoom { .. } => true,
            _ => false,
        }
    }
}

/// Steps that may be on their way at once.
const IN_FLIGHT: usize = 3;

/// A loaded model on a card.
#[derive(Debug)]
pub struct CudaBackend {
    limits: Limits,
    slots: Slots,
    device: Device,
    stream: Stream,
    forward: Forward,
    pool: Pool,
    sampler: Sampler,
    memory: Memory,
    packed: Packed,
    /// What steps sample, where they do other things too.
    sampling: StepBatch,
    /// Steps as the card reads them.
    words: Buffer<u32>,
    copies: Buffer<u32>,
    logits: Buffer<f32>,
    hidden: Buffer<f32>,
    /// Tiles of attention, for steps that are not recorded.
    tiles: Buffer<u32>,
    room: Room,
    /// Logits of a row.
    stride: usize,
    graphs: HashMap<Recorded, Graph>,
    /// Bytes that they took, about.
    recorded: u64,
    desks: Vec<Desk>,
    in_flight: VecDeque<Flight>,
    given: u64,
    taken: u64,
    /// What broke it. Nothing runs any more.
    broken: Option<Failure>,
    /// Blocks that go and come beside steps, and memory for those that do not.
    carrier: Carrier,
    staging: Pinned<u8>,
    /// The last import has left the staging memory.
    imported: Event,
    /// Keeps packed weights for the next start.
    writer: Option<Writer>,
}

/// What a recorded step is, beside what is read from memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Recorded {
    size: Size,
    /// Every row takes the best token.
    greedy: bool,
    /// Whether attention decodes, and tiles of what it does not decode.
    decode: bool,
    /// Whether no sequence has more than one token: attention then norms and turns heads on the way.
    single: bool,
    tiles: usize,
}

/// Host memory of one step on its way.
#[derive(Debug)]
struct Desk {
    words: Pinned<u32>,
    parameters: Pinned<u32>,
    results: Pinned<u32>,
    /// Starts of slots, copies of blocks and tiles of attention; as long as it was needed.
    extras: Option<Pinned<u32>>,
    /// `[row][vocab]` and `[row][hidden]`, for rows that ask; made when the first one does.
    logits: Option<Pinned<f32>>,
    hidden: Option<Pinned<f32>>,
    done: Event,
}

/// A step on its way.
#[derive(Debug)]
struct Flight {
    desk: usize,
    /// Rows on the card.
    rows: usize,
    asked: Vec<Asked>,
}

/// What a row asked for: without the mask and the biases, which are long and not looked at again.
#[derive(Debug, Clone, Copy)]
enum Asked {
    Sample { logprobs: bool },
    Logits,
    Hidden,
}

impl Asked {
    fn of(output: &OutputRow) -> Self {
        match &output.want {
            Want::Sample(want) => Self::Sample { logprobs: want.logprobs.is_some() },
            Want::Logits => Self::Logits,
            Want::Hidden => Self::Hidden,
        }
    }
}

/// Tiles of attention that a step may have: each has at least 64 rows of a token and a head of a group.
const TILES: usize = 1 << 16;
/// Rows of guesses that a step has room for, beside one of each sequence.
const GUESSES: usize = 64;
/// What one recorded step takes of the card's memory, within reason: the driver's figure is for all processes together.
const LEAST_RECORDED: u64 = 256 << 10;
const MOST_RECORDED: u64 = 8 << 20;
/// Words of texts that room is made for at a start; more than that in one step is asked for when it comes.
const MOST_RESETS: usize = 8 << 20;
/// Logits of so many bytes are kept at once; rows beyond are done after them.
const LOGITS_BYTES: usize = 256 << 20;

impl CudaBackend {
    /// Takes a card and brings the weights there; `progress` hears thousandths.
    pub fn load(
        model: &Arc<Model>,
        options: &CudaOptions,
        progress: impl Fn(u32),
    ) -> Result<Self, LoadError> {
        let device = Self::open(&model.spec, budget::weight_bytes(model), options)?;
        let (weights, unkept) =
            DeviceWeights::load(model, &device, options.packed.as_ref(), progress)?;
        let bytes = weights.matrix_bytes();
        let loaded = Self::with_weights(&model.spec, weights, &device, options);
        let mut backend = loaded.map_err(|error| match error {
            LoadError::Device(failure) | LoadError::Kernels(KernelError::Device(failure))
                if failure.out_of_memory =>
            {
                LoadError::Beside { weights: bytes, all: device.memory(), failure }
            }
            other => other,
        })?;
        backend.writer = unkept.and_then(Unkept::start);
        Ok(backend)
    }

    /// Waits until packed weights are on disk, where they are being written.
    pub fn settle(&mut self) {
        self.writer.iter_mut().for_each(Writer::settle);
    }

    /// Takes a card, and draws weights there: a model's true shape without its files, to measure with.
    pub fn drawn(
        spec: &ModelSpec,
        stored: Stored,
        options: &CudaOptions,
        seed: u64,
    ) -> Result<Self, LoadError> {
        let format = TileFormat::drawn(stored)
            .ok_or_else(|| LoadError::Unsupported(format!("multiply with {stored:?}")))?;
        let device = Self::open(spec, synthetic::bytes(spec, format), options)?;
        let weights = synthetic::draw(spec, format, &options.pack, &device, seed)?;
        Self::with_weights(spec, weights, &device, options)
    }

    /// A card that runs such a model, with its kernels at hand: what is missing shows before weights are touched, which take long.
    fn open(spec: &ModelSpec, weights: u64, options: &CudaOptions) -> Result<Device, LoadError> {
        let device = Device::open(options.device)?;
        check(spec, options)?;
        // Kernels first: a card that has none is not this engine's, whatever memory it has.
        for module in MODULES {
            let loaded = options.pack.load(module, &device);
            loaded.map_err(|why| NoCode::or(why, &device, &options.pack))?;
        }
        budget::keep(&device, weights, options.memory)?;
        Ok(device)
    }

    /// Takes weights that are on the card.
    pub fn with_weights(
        spec: &ModelSpec,
        weights: DeviceWeights,
        device: &Device,
        options: &CudaOptions,
    ) -> Result<Self, LoadError> {
        let shape = check(spec, options)?;
        let vocab = spec.vocab as usize;
        let stride = vocab.next_multiple_of(4);
        // Recorded steps are filled up, and guesses come on top of every sequence's row.
        let least = usize::from(options.slots).max(RECORDED) + GUESSES;
        let rows = (LOGITS_BYTES / (4 * stride)).clamp(least, 1024);
        let step_tokens = (options.step_tokens as usize).max(RECORDED);
        let room = Room { rows, slots: usize::from(options.slots), vocab: spec.vocab };
        let forward =
            Forward::new(spec, weights, &options.pack, device, shape, (step_tokens, rows))?;
        let most = Size {
            tokens: step_tokens,
            sequences: usize::from(options.slots).max(RECORDED),
            rows,
            others: step_tokens,
        };
        let table =
            usize::from(options.slots) * spec.context.div_ceil(options.block_tokens) as usize;
        let words = Layout::of(most).table + table;
        let layers = spec.layers.len();
        let per_token = shape.block_bytes() / shape.block_tokens * layers;
        let staging = device.pinned(shape.block_bytes() * layers)?;
        let sampler = Sampler::load(&options.pack, device)?;
        let mut memory = Memory::new(device, room)?;
        // Every sequence's text may begin in one step: with a budget there is no more to be had once the pool is there.
        let texts = usize::from(options.slots) * (spec.context as usize + 4);
        memory.make_room(device, texts.min(MOST_RESETS))?;
        let desk = || -> Result<Desk, Failure> {
            Ok(Desk {
                words: device.pinned(words)?,
                parameters: device.pinned(room.most_words())?,
                results: device.pinned(memory.results.len())?,
                extras: None,
                logits: None,
                hidden: None,
                done: device.event()?,
            })
        };
        let desks = (0..IN_FLIGHT).map(|_| desk()).collect::<Result<_, _>>()?;
        let words = device.buffer(words)?;
        let copies = device.buffer(4096)?;
        let logits = device.buffer(rows * stride)?;
        let hidden = device.buffer(rows * spec.hidden as usize)?;
        let tiles = device.buffer(TILES * 2)?;
        // Blocks that a step fills leave while the next one fills others.
        let filled = options.step_tokens.div_ceil(options.block_tokens) as usize;
        let busy = 2 * (filled + usize::from(options.slots));
        let parts = (layers, shape.block_bytes());
        let carrier = Carrier::new(&options.pack, device, parts, busy)?;
        // Last, because it takes what is left.
        let free = device.free_memory()?;
        let bytes = options.kv_bytes.unwrap_or(u64::MAX).min(free / 20 * 19);
        let bytes = bytes.min(device.left().unwrap_or(u64::MAX));
        let blocks = blocks(bytes, per_token as u64, options)?;
        let pool = Pool::new(device, layers, blocks as usize, &shape)?;
        let limits = Limits {
            step_tokens: options.step_tokens,
            slots: options.slots,
            blocks,
            block_tokens: options.block_tokens,
            context: spec.context,
            vocab: spec.vocab,
            kv_bytes_per_token: per_token as u64,
        };
        Ok(Self {
            slots: Slots::new(options.slots),
            stream: device.stream()?,
            sampler,
            memory,
            packed: Packed::default(),
            sampling: StepBatch::default(),
            words,
            copies,
            logits,
            hidden,
            tiles,
            imported: device.event()?,
            writer: None,
            room,
            stride,
            graphs: HashMap::new(),
            recorded: 0,
            desks,
            in_flight: VecDeque::new(),
            given: 0,
            taken: 0,
            broken: None,
            carrier,
            staging,
            device: device.clone(),
            limits,
            forward,
            pool,
        })
    }

    /// The card.
    pub fn device(&self) -> &Device {
        &self.device
    }
}

impl Backend for CudaBackend {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn submit(&mut self, step: &StepBatch) -> Result<Ticket, BackendError> {
        self.whole()?;
        if self.in_flight.len() == IN_FLIGHT {
            return Err(BackendError::BadBatch(format!(
                "{IN_FLIGHT} steps are on their way already"
            )));
        }
        self.slots.admit(step, &self.limits)?;
        // Rows that sample, alone: what is sampled has its own order on the card.
        let mixed = step.outputs.iter().any(|output| !samples(output));
        if mixed {
            self.sampling.clone_from(step);
            self.sampling.outputs.retain(samples);
        }
        let size = Size::recorded(step);
        let exact = Size::of(step);
        let rows = size.unwrap_or(exact).rows;
        let sampling = if mixed { &self.sampling } else { step };
        let fits = Layout::of(size.unwrap_or(exact)).words(step) <= self.words.len();
        let filled = match fits {
            true => self.packed.fill(sampling, rows.max(1), &self.room),
            false => {
                Err(BackendError::BadBatch("more rows or blocks than there is room for".into()))
            }
        };
        if filled.is_err() {
            self.slots.undo();
        }
        filled?;
        let desk = (self.given % IN_FLIGHT as u64) as usize;
        let started = self.start(step, size, exact, desk);
        self.note(started)?;
        let asked = step.outputs.iter().map(Asked::of).collect();
        self.in_flight.push_back(Flight { desk, rows, asked });
        let ticket = Ticket(self.given);
        self.given += 1;
        Ok(ticket)
    }

    fn collect(&mut self, ticket: Ticket) -> Result<StepOutput, BackendError> {
        if ticket.0 != self.taken || self.in_flight.is_empty() {
            return Err(BackendError::UnknownTicket(ticket.0));
        }
        self.whole()?;
        let flight = self.in_flight.pop_front().expect("just looked");
        self.taken += 1;
        let waited = self.desks[flight.desk].done.wait();
        self.note(waited)?;
        self.read(&flight)
    }

    fn export_block(&mut self, block: BlockId, into: &mut Vec<u8>) -> Result<(), BackendError> {
        carried(block, None, &self.limits)?;
        self.whole()?;
        let copied = self
            .carrier
            .hold_back(&self.stream, [block].iter())
            .and_then(|()| self.pool.export(&self.stream, block.0, &mut self.staging));
        self.note(copied)?;
        into.clear();
        into.extend_from_slice(&self.staging);
        Ok(())
    }

    fn import_block(&mut self, block: BlockId, bytes: &[u8]) -> Result<(), BackendError> {
        carried(block, Some(bytes.len()), &self.limits)?;
        self.whole()?;
        // What was written before may still be on its way.
        let copied = self.imported.wait().and_then(|()| {
            self.carrier.hold_back(&self.stream, [block].iter())?;
            self.staging.copy_from_slice(bytes);
            // SAFETY: the event is waited for before the memory changes.
            unsafe { self.pool.import(&self.stream, block.0, &self.staging)? };
            self.stream.record(&self.imported)
        });
        self.note(copied)
    }

    fn begin_export(&mut self, blocks: &[BlockId]) -> Result<Begun, BackendError> {
        blocks.iter().try_for_each(|block| carried(*block, None, &self.limits))?;
        if !self.carrier.is_open() {
            let mut out = Vec::with_capacity(blocks.len());
            for block in blocks {
                let mut bytes = Vec::new();
                self.export_block(*block, &mut bytes)?;
                out.push(bytes.into());
            }
            return Ok(Begun::Done(out));
        }
        self.whole()?;
        let room = self.carrier.room();
        if blocks.len() > room {
            let told = format!("{} blocks to go out, and room for {room}", blocks.len());
            return Err(BackendError::BadBlock(told));
        }
        let begun = self.carrier.begin_out(&self.stream, &self.pool, blocks);
        self.note(begun).map(Begun::Later)
    }

    fn export_room(&self) -> usize {
        self.carrier.room()
    }

    fn begin_import(
        &mut self,
        blocks: Vec<(BlockId, Arc<HostBlock>)>,
    ) -> Result<Begun, BackendError> {
        let check = |(block, bytes): &(BlockId, Arc<HostBlock>)| {
            carried(*block, Some(bytes.len()), &self.limits)
        };
        blocks.iter().try_for_each(check)?;
        if !self.carrier.is_open() {
            for (block, bytes) in &blocks {
                self.import_block(*block, bytes)?;
            }
            return Ok(Begun::Done(Vec::new()));
        }
        self.whole()?;
        let begun = self.carrier.begin_in(&self.stream, &self.pool, blocks);
        self.note(begun).map(Begun::Later)
    }

    fn carried(&mut self, wait: bool) -> Result<Option<Carried>, BackendError> {
        self.whole()?;
        let carried = self.carrier.carried(wait);
        self.note(carried)
    }

    fn host_memory(&mut self, bytes: u64) -> Option<Arc<dyn HostMemory>> {
        match self.device.enter().and_then(|()| self.carrier.take_memory(bytes)) {
            Ok(arena) => Some(arena),
            Err(failure) => {
                log::warn!("KV goes to host memory and comes back between steps only: {failure}");
                None
            }
        }
    }
}

impl Drop for CudaBackend {
    fn drop(&mut self) {
        // Nothing is freed under what still runs. What fails here has failed before.
        self.writer = None;
        let _ = self.device.enter();
        let _ = self.stream.synchronize();
        self.graphs.clear();
    }
}

impl CudaBackend {
    /// Refuses everything once the card has failed; makes it the thread's own else.
    fn whole(&mut self) -> Result<(), BackendError> {
        match &self.broken {
            Some(failure) => Err(BackendError::Device(failure.to_string())),
            None => {
                let entered = self.device.enter();
                self.note(entered)
            }
        }
    }

    fn note<T>(&mut self, result: Result<T, Failure>) -> Result<T, BackendError> {
        result.map_err(|failure| {
            let told = BackendError::Device(failure.to_string());
            self.broken.get_or_insert(failure);
            told
        })
    }

    /// Puts a checked step into the stream.
    fn start(
        &mut self,
        step: &StepBatch,
        size: Option<Size>,
        exact: Size,
        number: usize,
    ) -> Result<(), Failure> {
        let desk = &mut self.desks[number];
        let layout = Layout::of(size.unwrap_or(exact));
        let words = layout.words(step);
        write(step, &layout, self.limits.block_tokens, &mut desk.words);
        let parameters = self.packed.words.len();
        desk.parameters[..parameters].copy_from_slice(&self.packed.words);
        // Who attends to what; a step without guesses that goes on with answers says so by its size.
        let (mut sharing, mut play) = (self.forward.recorded_share(), size);
        if exact.tokens > exact.sequences || size.is_none() {
            let sequences = &desk.words[layout.sequences.clone()];
            sharing = self.forward.share(sequences.as_chunks::<SEQUENCE>().0);
            // How a walk over a long history is cut depends on its length: such a step is not recorded.
            play = size.filter(|_| !sharing.cut && fill_up(&mut sharing.tiles));
        }
        let pairs = step.copies.iter().flat_map(|copy| [copy.from.0, copy.to.0]);
        let starts = if self.packed.reset_slots > 0 { self.packed.resets.len() } else { 0 };
        let (copies, tiles) = (2 * step.copies.len(), 2 * sharing.tiles.len());
        let length = (starts + copies + tiles).next_power_of_two();
        let extras = room_for(&self.device, &mut desk.extras, length)?;
        let (first, rest) = extras.split_at_mut(starts);
        first.copy_from_slice(&self.packed.resets[..starts]);
        rest.iter_mut().zip(pairs).for_each(|(to, from)| *to = from);
        rest[copies..copies + tiles].copy_from_slice(sharing.tiles.as_flattened());
        let (starts, rest) = (&*first, &*rest);
        let stream = &self.stream;
        self.carrier.hold_back(stream, step.block_table.iter())?;
        let copied = step.copies.iter().flat_map(|copy| [&copy.from, &copy.to]);
        self.carrier.hold_back(stream, copied)?;
        // SAFETY: a desk is not touched before its step is collected, and one is collected before its desk comes round again.
        unsafe {
            if !starts.is_empty() {
                self.memory.make_room(&self.device, starts.len())?;
                stream.upload(&self.memory.resets, 0, starts)?;
                self.sampler.reset(stream, &self.memory, self.packed.reset_slots)?;
            }
            for pairs in rest[..copies].chunks(self.copies.len() / 2 * 2) {
                stream.upload(&self.copies, 0, pairs)?;
                let (at, count) = (self.copies.at(), pairs.len() / 2);
                self.forward.copy_blocks(stream, &self.pool, at, count)?;
            }
            if tiles > 0 {
                stream.upload(&self.tiles, 0, &rest[copies..copies + tiles])?;
            }
            stream.upload(&self.words, 0, &desk.words[..words])?;
            stream.upload(&self.memory.words, 0, &desk.parameters[..parameters])?;
        }
        if exact.tokens > 0 {
            match play {
                Some(size) => self.play(size, &layout, &sharing)?,
                None => self.launches(size.unwrap_or(exact), &layout, &sharing)?,
            }
        }
        self.fetch(step, exact, &layout, number)
    }

    /// A step of a size that is recorded, or is from now on.
    fn play(&mut self, size: Size, layout: &Layout, sharing: &Sharing) -> Result<(), Failure> {
        let greedy = self.packed.way == Way::Greedy;
        let (decode, single, tiles) = (sharing.decode, sharing.single, sharing.tiles.len());
        let recorded = Recorded { size, greedy, decode, single, tiles };
        if let Some(graph) = self.graphs.get(&recorded) {
            // SAFETY: everything that it was recorded with lives as long as this.
            return unsafe { self.stream.replay(graph) };
        }
        if self.recorded > RECORDED_STEPS {
            return self.launches(size, layout, sharing);
        }
        let free = self.device.free_memory()?;
        let graph = match self.stream.capture(|| self.launches(size, layout, sharing)) {
            Ok(graph) => graph,
            // Nothing else is wrong: the step is launched kernel by kernel, and so are all that are not recorded yet.
            Err(failure) if failure.out_of_memory => {
                log::warn!(
                    "the card has no memory left to record steps: they are launched ({failure})"
                );
                self.recorded = u64::MAX;
                return self.launches(size, layout, sharing);
            }
            Err(failure) => return Err(failure),
        };
        // SAFETY: as above.
        unsafe { self.stream.replay(&graph)? };
        self.graphs.insert(recorded, graph);
        // Others may have taken or given back some meanwhile: it counts within what a step can take.
        let took = free.saturating_sub(self.device.free_memory()?);
        self.recorded += took.clamp(LEAST_RECORDED, MOST_RECORDED);
        if self.recorded > RECORDED_STEPS {
            let (graphs, mebibytes) = (self.graphs.len(), self.recorded >> 20);
            log::info!(graphs = graphs, mebibytes = mebibytes; "recorded steps have all the memory that they may have: steps of other sizes are launched");
        }
        Ok(())
    }

    fn launches(&self, size: Size, layout: &Layout, sharing: &Sharing) -> Result<(), Failure> {
        let places = Places {
            words: &self.words,
            layout,
            last: self.memory.last.at(),
            logits: self.logits.at(),
            stride: self.stride,
        };
        let logits = (self.logits.at(), self.stride as u32);
        // SAFETY: the step lies in `words`, and all of this lives as long as the stream.
        unsafe {
            self.forward.run(
                &self.stream,
                &self.pool,
                size,
                (sharing, self.tiles.at()),
                &places,
            )?;
            self.forward.read_out(&self.stream, 0..size.rows, &places)?;
            self.sampler.sample(
                &self.stream,
                &self.memory,
                self.packed.way,
                logits,
                size.rows as u32,
            )
        }
    }

    /// Brings what the host asked for: what was sampled, and rows of logits and hidden states, of which as many at a time are
    /// computed as there is room for.
    fn fetch(
        &mut self,
        step: &StepBatch,
        size: Size,
        layout: &Layout,
        desk: usize,
    ) -> Result<(), Failure> {
        let (vocab, hidden) = (self.limits.vocab as usize, self.forward.hidden_width());
        let wants = |want: &Want| step.outputs.iter().filter(|output| output.want == *want).count();
        let (logits, states) = (wants(&Want::Logits), wants(&Want::Hidden));
        let desk = &mut self.desks[desk];
        let stream = &self.stream;
        let results = if size.rows > 0 { self.packed.results_len() } else { 0 };
        // SAFETY: a desk is not looked at before its step is collected.
        unsafe {
            stream.download(&mut desk.results[..results], &self.memory.results, 0)?;
            let places = Places {
                words: &self.words,
                layout,
                last: self.memory.last.at(),
                logits: self.logits.at(),
                stride: self.stride,
            };
            if logits > 0 {
                let to = room_for(&self.device, &mut desk.logits, logits * vocab)?;
                for first in (0..logits).step_by(self.room.rows) {
                    let count = self.room.rows.min(logits - first);
                    let rows = size.rows + first..size.rows + first + count;
                    self.forward.read_out(stream, rows, &places)?;
                    for n in 0..count {
                        let to = &mut to[(first + n) * vocab..][..vocab];
                        stream.download(to, &self.logits, n * self.stride)?;
                    }
                }
            }
            if states > 0 {
                let to = room_for(&self.device, &mut desk.hidden, states * hidden)?;
                for first in (0..states).step_by(self.room.rows) {
                    let count = self.room.rows.min(states - first);
                    let rows = size.rows + logits + first;
                    let picks = self.words.offset(layout.picks.start + rows);
                    self.forward.hidden(stream, picks, count, self.hidden.at())?;
                    let to = &mut to[first * hidden..][..count * hidden];
                    stream.download(to, &self.hidden, 0)?;
                }
            }
        }
        stream.record(&desk.done)
    }

    /// What a step that is done says.
    fn read(&mut self, flight: &Flight) -> Result<StepOutput, BackendError> {
        let (vocab, hidden) = (self.limits.vocab as usize, self.forward.hidden_width());
        let desk = &self.desks[flight.desk];
        let (mut sampled, mut logits, mut states) = (0, 0, 0);
        let mut rows = Vec::with_capacity(flight.asked.len());
        let part = |from: &Option<Pinned<f32>>, n: usize, width: usize| {
            from.as_deref().map_or_else(Vec::new, |from| from[n * width..(n + 1) * width].to_vec())
        };
        for asked in &flight.asked {
            rows.push(match *asked {
                Asked::Sample { logprobs } => {
                    sampled += 1;
                    sampling::row(&desk.results, flight.rows, sampled - 1, logprobs)?
                }
                Asked::Logits => {
                    logits += 1;
                    Row::Logits(part(&desk.logits, logits - 1, vocab))
                }
                Asked::Hidden => {
                    states += 1;
                    Row::Hidden(part(&desk.hidden, states - 1, hidden))
                }
            });
        }
        Ok(StepOutput { rows })
    }
}

/// Pinned memory of at least so many values.
fn room_for<'a, T: Plain>(
    device: &Device,
    memory: &'a mut Option<Pinned<T>>,
    values: usize,
) -> Result<&'a mut Pinned<T>, Failure> {
    if memory.as_ref().is_none_or(|memory| memory.len() < values) {
        *memory = Some(device.pinned(values)?);
    }
    Ok(memory.as_mut().expect("just made"))
}

/// Refuses what the kernels do not do, before anything is loaded. Answers with what all layers have in common.
fn check(spec: &ModelSpec, options: &CudaOptions) -> Result<HeadShape, LoadError> {
    let unsupported = |what: String| Err(LoadError::Unsupported(what));
    let mut shapes = spec.layers.iter().map(|layer| {
        let Attention::Gqa(gqa) = &layer.attention;
        HeadShape {
            heads: gqa.heads as usize,
            kv_heads: gqa.kv_heads as usize,
            head_dim: gqa.head_dim as usize,
            block_tokens: options.block_tokens as usize,
            format: options.kv,
        }
    });
    let shape = shapes.next().expect("a checked model has layers");
    if shapes.any(|other| other != shape) {
        return unsupported("run layers with heads of different shapes".into());
    }
    if !HEAD_DIMS.contains(&shape.head_dim) {
        return unsupported(format!(
            "attend with heads of {} values; {HEAD_DIMS:?} they can",
            shape.head_dim
        ));
    }
    if spec.vocab > MOST_VOCAB {
        return unsupported(format!(
            "sample from {} tokens; up to {MOST_VOCAB} they can",
            spec.vocab
        ));
    }
    let mut mixtures = spec.layers.iter().filter_map(|layer| match &layer.ffn {
        Ffn::Moe(moe) => Some(mixture(spec, moe)),
        Ffn::Dense { .. } => None,
    });
    if let Some(first) = mixtures.next() {
        first.check()?;
        if mixtures.any(|other| other != first) {
            return unsupported("run layers with mixtures of different shapes".into());
        }
    }
    if options.place != Place::ALONE {
        return Err(LoadError::Options(format!(
            "place {} of {} cards: one model on several cards is not there yet; use one card",
            options.place.rank, options.place.world
        )));
    }
    if usize::from(options.slots) > Attend::MOST_SEQUENCES || options.slots == 0 {
        return Err(LoadError::Options(format!(
            "{} sequences at once; 1 to {} can be",
            options.slots,
            Attend::MOST_SEQUENCES
        )));
    }
    if options.block_tokens == 0 || !options.block_tokens.is_multiple_of(16) {
        return Err(LoadError::Options(format!(
            "blocks of {} positions; use a multiple of 16",
            options.block_tokens
        )));
    }
    if options.step_tokens == 0 || options.kv_tokens == 0 {
        return Err(LoadError::Options(
            "no tokens in a step, or no positions in the KV pool".into(),
        ));
    }
    Ok(shape)
}

/// Blocks that fit, and no more than are asked for.
fn blocks(bytes: u64, per_token: u64, options: &CudaOptions) -> Result<u32, LoadError> {
    let asked = options.kv_tokens.div_ceil(options.block_tokens);
    let fit = bytes / per_token / u64::from(options.block_tokens);
    match u32::try_from(fit).unwrap_or(u32::MAX).min(asked) {
        0 => Err(LoadError::NoRoom {
            bytes,
            positions: options.block_tokens,
            block: per_token * u64::from(options.block_tokens),
        }),
        blocks => Ok(blocks),
    }
}
