//! Heads and softmax attention over the pool: `kernels/heads.cu` and `kernels/attention.cu`.

use std::ffi::CString;

use polder_model::RopeLayout;

use crate::arch::Arch;
use crate::device::{Device, Failure, Kernel, Loaded, Ptr, Shape, Stream};
use crate::pack::{KernelError, Pack};
use crate::parts;
use crate::sources::module;

/// In `kv_rows`: a token whose keys and values nobody wants.
pub const NO_ROW: u32 = u32::MAX;

/// Head widths that there are kernels for.
pub const HEAD_DIMS: [usize; 4] = [64, 96, 128, 256];

/// Positions of one step of a warp; a block of the pool holds a multiple of them.
const STEP: usize = 16;

/// Fewer steps than these are not shared out further: to put parts together through memory takes longer than a block's share of them,
/// or a cluster's block's.
const LEAST_STEPS: u32 = 8;
const LEAST_CLUSTER_STEPS: u32 = 32;

/// How keys and values are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvFormat {
    /// As they are computed with.
    Bf16,
    /// e4m3 with a scale for each position and head.
    Fp8,
}

impl KvFormat {
    fn number(self) -> u32 {
        match self {
            Self::Bf16 => 0,
            Self::Fp8 => 1,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
        }
    }
}

/// What all layers have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HeadShape {
    /// Of queries; a multiple of `kv_heads`.
    pub heads: usize,
    /// Of keys and values.
    pub kv_heads: usize,
    /// Values of a head: one of [`HEAD_DIMS`].
    pub head_dim: usize,
    /// Positions of a block: a multiple of 16.
    pub block_tokens: usize,
    /// How keys and values are kept.
    pub format: KvFormat,
}

impl HeadShape {
    /// Bytes of one block of one layer.
    pub fn block_bytes(&self) -> usize {
        let rows = 2 * self.kv_heads * self.block_tokens;
        match self.format {
            KvFormat::Bf16 => rows * self.head_dim * 2,
            KvFormat::Fp8 => rows * (self.head_dim + size_of::<f32>()),
        }
    }

    /// Query heads of a key/value head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Values of a token's queries, keys and values.
    pub fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    fn check(&self) {
        assert!(HEAD_DIMS.contains(&self.head_dim), "no kernel for heads of {}", self.head_dim);
        assert!(self.heads.is_multiple_of(self.kv_heads), "{self:?}");
        assert!(self.block_tokens > 0 && self.block_tokens.is_multiple_of(STEP), "{self:?}");
    }
}

fn layout_number(layout: RopeLayout) -> u32 {
    match layout {
        RopeLayout::Interleaved => 0,
        RopeLayout::Halves => 1,
    }
}

fn small(n: usize) -> u32 {
    u32::try_from(n).expect("sizes of a checked model and a bounded step")
}

/// How heads turn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Turn {
    /// `[dims / 2]` f64: radians a position.
    pub frequencies: Ptr,
    /// How many values turn; even.
    pub dims: usize,
    /// Which ones turn together.
    pub layout: RopeLayout,
    /// What cosines and sines are multiplied with.
    pub amplitude: f32,
}

/// Prepares queries, and puts keys and values into the pool.
#[derive(Debug)]
pub struct Heads {
    shape: HeadShape,
    kernel: Kernel,
    _module: Loaded,
}

/// One layer's heads of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadsCall {
    /// `[tokens][qkv_width]` bf16.
    pub qkv: Ptr,
    /// `[tokens][q_stride]` bf16: the queries as attention reads them. May be `qkv`.
    pub q: Ptr,
    /// Values from a token to the next one; a multiple of 8.
    pub q_stride: usize,
    /// The layer's first block.
    pub pool: Ptr,
    /// `[tokens]` u32. Written before the step's first kernel, as all that is not the result of one.
    pub positions: Ptr,
    /// `[tokens]` u32: `block * block_tokens + place`, or [`NO_ROW`].
    pub kv_rows: Ptr,
    /// `[head_dim]` f32, or none.
    pub q_norm: Ptr,
    /// `[head_dim]` f32, or none.
    pub k_norm: Ptr,
    /// What is added to the mean of the squares.
    pub eps: f32,
    /// How heads turn.
    pub turn: Turn,
    /// Tokens of the step.
    pub tokens: usize,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct HeadsArgs {
    qkv: Ptr,
    q: Ptr,
    pool: Ptr,
    positions: Ptr,
    kv_rows: Ptr,
    q_norm: Ptr,
    k_norm: Ptr,
    frequencies: Ptr,
    block_bytes: u64,
    eps: f32,
    amplitude: f32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    dims: u32,
    layout: u32,
    block_tokens: u32,
    format: u32,
    q_stride: u32,
}

impl Heads {
    /// Heads that a block of the grid takes, a warp each.
    const TOGETHER: usize = 8;

    /// # Panics
    /// If there is no kernel for the shape.
    pub fn load(pack: &Pack, device: &Device, shape: HeadShape) -> Result<Self, KernelError> {
        shape.check();
        let module = pack.load(module("heads"), device)?;
        Ok(Self { shape, kernel: module.kernel(c"heads")?, _module: module })
    }

    /// Puts the work into a stream.
    pub fn run(&self, stream: &Stream, call: &HeadsCall) -> Result<(), Failure> {
        let shape = &self.shape;
        let args = HeadsArgs {
            qkv: call.qkv,
            q: call.q,
            pool: call.pool,
            positions: call.positions,
            kv_rows: call.kv_rows,
            q_norm: call.q_norm,
            k_norm: call.k_norm,
            frequencies: call.turn.frequencies,
            block_bytes: shape.block_bytes() as u64,
            eps: call.eps,
            amplitude: call.turn.amplitude,
            heads: small(shape.heads),
            kv_heads: small(shape.kv_heads),
            head_dim: small(shape.head_dim),
            dims: small(call.turn.dims),
            layout: layout_number(call.turn.layout),
            block_tokens: small(shape.block_tokens),
            format: shape.format.number(),
            q_stride: small(call.q_stride),
        };
        let heads = (shape.heads + 2 * shape.kv_heads).div_ceil(Self::TOGETHER);
        let launch = Shape {
            grid: [small(call.tokens), small(heads), 1],
            block: small(Self::TOGETHER * 32),
            shared: 0,
            overlaps: true,
        };
        // SAFETY: the caller's addresses reach as far as the call says.
        unsafe { stream.launch(&self.kernel, &launch, &args) }
    }
}

/// One sequence of a step, as the kernels take it: `[first token, tokens, first entry of the block table, positions after the
/// step]`. No tokens: nobody's.
pub type SequenceArgs = [u32; 4];

/// Who does what of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Work {
    /// Sequences of at most so many tokens are decoded.
    pub few: u32,
    /// Whether there may be some of them.
    pub decode: bool,
    /// Whether no sequence has more than one token.
    pub single: bool,
    /// `[sequence, tile]` of the others, the longest first. A tile's word is its number, which part of its walk, and of how many
    /// (16, 8 and 8 bits from below; 0 of 0 is a whole one).
    pub tiles: Vec<[u32; 2]>,
    /// Whether walks were cut.
    pub cut: bool,
}

/// How decode is shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodePlan {
    /// Of a block of the grid; a power of two.
    pub warps: u32,
    /// Steps on their way to each warp: 1 to 4.
    pub stages: u32,
    /// Blocks of the grid on each multiprocessor.
    pub together: u32,
    /// Blocks that put their parts of a walk together in shared memory, one or a power of two up to 8.
    pub cluster: u32,
    /// Fewer steps are no share for a team of the grid: a block, or a cluster.
    pub least: u32,
}

impl DecodePlan {
    /// For a card (bytes of shared memory that a block may take, and multiprocessors), a shape, rows of a tile, and sequences. Two small blocks on a multiprocessor fill each other's ends of walks
    /// where there are many; one large one has fewer parts to put together where there are few.
    fn of(most: usize, processors: u32, shape: &HeadShape, rows: usize, count: usize) -> Self {
        let fits = |plan: &Self| {
            let bytes = plan.shared(shape, rows, processors, Attend::MOST_SEQUENCES) + 1024;
            bytes * plan.together as usize <= most
        };
        let of = |warps, stages, together| Self {
            warps,
            stages,
            together,
            cluster: 1,
            least: LEAST_STEPS,
        };
        let many = [of(4, 2, 2), of(4, 1, 2)].into_iter().filter(|_| count >= Self::MANY);
        let few = [of(8, 2, 1), of(8, 1, 1), of(4, 2, 1), of(4, 1, 1)];
        many.chain(few).find(fits).unwrap_or(of(2, 1, 1))
    }

    /// From so many sequences on they are many.
    const MANY: usize = 16;

    /// In clusters, as large as find room for a team of each key/value head. `at_once` says how many of a plan do.
    fn clustered(
        self,
        kv_heads: usize,
        fits: impl Fn(&Self) -> bool,
        at_once: impl Fn(&Self) -> Result<u32, Failure>,
    ) -> Result<Self, Failure> {
        for cluster in [8, 4] {
            let plan = Self { cluster, least: LEAST_CLUSTER_STEPS * cluster, ..self };
            if fits(&plan) && at_once(&plan)? as usize >= kv_heads {
                return Ok(plan);
            }
        }
        Ok(self)
    }

    /// f32 of shared memory to put results together in: of the warps of a block, or the ends of those of all blocks.
    fn merge(&self, shape: &HeadShape, rows: usize, processors: u32) -> usize {
        let teams = ((processors * self.together) as usize / shape.kv_heads).max(1);
        rows * (self.warps as usize * (shape.head_dim + 4)).max(2 * teams)
    }

    /// Bytes of shared memory, as the kernel cuts it.
    fn shared(&self, shape: &HeadShape, rows: usize, processors: u32, sequences: usize) -> usize {
        let step = 2
            * STEP
            * match shape.format {
                KvFormat::Bf16 => shape.head_dim * 2,
                KvFormat::Fp8 => shape.head_dim + size_of::<f32>(),
            };
        let warps = self.warps as usize;
        let merge = self.merge(shape, rows, processors) + warps * rows * 2;
        let given = if self.cluster > 1 { rows * shape.head_dim / 4 * 6 } else { 0 };
        // Queries in rows that are longer by 32, and a new key and value with their scales.
        let heads = rows * (shape.head_dim + 32) / 2 + shape.head_dim + 4;
        let floats = merge + given + heads;
        // Where sequences begin, and barriers of eight bytes.
        let places = (sequences + 2) * size_of::<u32>() + warps * 4 * size_of::<u64>();
        warps * self.stages as usize * step + floats * size_of::<f32>() + places
    }
}

/// Softmax attention.
#[derive(Debug)]
pub struct Attend {
    shape: HeadShape,
    /// Blocks of the decode grid are this many times the plan's.
    processors: u32,
    /// Bytes of shared memory that a block may take.
    most_shared: usize,
    decode: Kernel,
    rows: usize,
    /// How decode is shared out for one sequence, for few, and for many.
    plans: [DecodePlan; 3],
    /// Teams of blocks of each plan, one for each key/value head in each.
    teams: [u32; 3],
    prefill: Kernel,
    /// Puts cut walks together, where the card's kernel can cut them.
    join: Option<Kernel>,
    prefill_plan: PrefillPlan,
    _module: Loaded,
}

/// One layer's attention of a step.
#[derive(Debug, Clone, Copy)]
pub struct AttendCall<'a> {
    /// `[tokens][q_stride]` bf16, what [`Heads`] wrote. With `heads` what it would read.
    pub q: Ptr,
    /// Values from a token to the next one.
    pub q_stride: usize,
    /// What [`Heads`] would have done, to do on the way: of a step whose sequences have no more than one token each. Of the call counts
    /// how heads are normed and turned; queries, pool and positions are attention's.
    pub heads: Option<&'a HeadsCall>,
    /// `[tokens][heads * head_dim]` bf16.
    pub out: Ptr,
    /// The layer's first block.
    pub pool: Ptr,
    /// `[count]` [`SequenceArgs`], written before the step's first kernel.
    pub sequences: Ptr,
    /// How many sequences.
    pub count: usize,
    /// u32, written before the step's first kernel.
    pub block_table: Ptr,
    /// Positions that a token sees, itself included; none: all.
    pub window: Option<u32>,
    /// What products are multiplied with.
    pub scale: f32,
    /// [`Attend::partials`] f32 that only attention uses.
    pub partials: Ptr,
    /// [`Attend::counters`] u32, zeros at first, that only attention uses.
    pub counters: Ptr,
    /// What [`Attend::work`] said of these sequences, or [`Attend::graph_work`].
    pub work: &'a Work,
    /// `work.tiles` on the card.
    pub tiles: Ptr,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct AttendArgs {
    q: Ptr,
    out: Ptr,
    pool: Ptr,
    sequences: Ptr,
    block_table: Ptr,
    partials: Ptr,
    counters: Ptr,
    tiles: Ptr,
    q_norm: Ptr,
    k_norm: Ptr,
    frequencies: Ptr,
    block_bytes: u64,
    block_part: u64,
    group_part: u64,
    count: u32,
    heads: u32,
    kv_heads: u32,
    group: u32,
    teams: u32,
    block_tokens: u32,
    q_stride: u32,
    window: u32,
    few: u32,
    stages: u32,
    scale: f32,
    least: u32,
    merge: u32,
    fuses: u32,
    eps: f32,
    amplitude: f32,
    dims: u32,
    layout: u32,
}

impl Attend {
    /// Rows that are still decoded: a sequence's tokens times the group.
    const FEW_ROWS: usize = 64;
    /// Sequences whose places fit into a block's shared memory.
    pub const MOST_SEQUENCES: usize = 256;

    /// # Panics
    /// If there is no kernel for the shape.
    pub fn load(pack: &Pack, device: &Device, shape: HeadShape) -> Result<Self, KernelError> {
        shape.check();
        let most_shared = device.most_shared()? as usize;
        let module = pack.load(module("attention"), device)?;
        let kernel = |name: String| {
            module.kernel(&CString::new(name).expect("a kernel's name has no zero byte"))
        };
        let (dim, format) = (shape.head_dim, shape.format.name());
        // A tile of sixteen rows of 256 does not fit into registers.
        let rows = if shape.group() > 8 && dim < 256 { 16 } else { 8 };
        let decode = kernel(format!("decode_{dim}_{format}_{}", rows / 8))?;
        let prefill = kernel(format!("prefill_{dim}_{format}"))?;
        let prefill_plan = PrefillPlan::of(device.arch(), &shape);
        prefill.allow_shared(small(prefill_plan.shared))?;
        let join = prefill_plan.cuts.then(|| kernel("prefill_join".into())).transpose()?;
        let plans = [1, 2, DecodePlan::MANY]
            .map(|count| DecodePlan::of(most_shared, device.processors(), &shape, rows, count));
        let mut this = Self {
            shape,
            processors: device.processors(),
            most_shared,
            decode,
            rows,
            plans,
            teams: [1; 3],
            prefill,
            join,
            prefill_plan,
            _module: module,
        };
        this.set_plans(plans)?;
        // With eight rows a cluster gains at 1k what it loses from 2k on; with sixteen it gains everywhere.
        if device.arch().number >= 90 && rows == 16 {
            let fits = |plan: &DecodePlan| this.shared(plan) + 1024 <= most_shared;
            let one = plans[0].clustered(shape.kv_heads, fits, |plan| {
                this.decode.allow_shared(small(this.shared(plan)))?;
                // A card that does not say gets none.
                Ok(this.clusters_at_once(plan).unwrap_or_default())
            })?;
            this.set_plans([one, plans[1], plans[2]])?;
        }
        Ok(this)
    }

    /// Bytes of shared memory of a block, for the most sequences.
    fn shared(&self, plan: &DecodePlan) -> usize {
        plan.shared(&self.shape, self.rows, self.processors, Self::MOST_SEQUENCES)
    }

    fn clusters_at_once(&self, plan: &DecodePlan) -> Result<u32, Failure> {
        self.decode.clusters_at_once(plan.cluster, plan.warps * 32, small(self.shared(plan)))
    }

    /// Shares decode out otherwise, for one sequence, for few and for many: to measure.
    ///
    /// # Panics
    /// If it does not fit into shared memory.
    pub fn set_plans(&mut self, plans: [DecodePlan; 3]) -> Result<(), Failure> {
        let bytes = plans.map(|plan| self.shared(&plan)).into_iter().fold(0, usize::max);
        assert!(bytes <= self.most_shared, "{plans:?} take {bytes} bytes of shared memory");
        self.decode.allow_shared(small(bytes))?;
        let kv_heads = small(self.shape.kv_heads);
        for (plan, teams) in plans.iter().zip(&mut self.teams) {
            let places = match plan.cluster {
                1 => self.processors * plan.together,
                _ => self.decode.clusters_at_once(plan.cluster, plan.warps * 32, small(bytes))?,
            };
            *teams = (places / kv_heads).max(1);
        }
        self.plans = plans;
        Ok(())
    }

    /// How decode is shared out for one sequence, for few, and for many.
    pub fn plans(&self) -> [DecodePlan; 3] {
        self.plans
    }

    /// Blocks of the decode grid: whole teams of one, or one cluster, for each key/value head.
    fn blocks(&self, which: usize) -> u32 {
        self.teams[which] * small(self.shape.kv_heads) * self.plans[which].cluster
    }

    fn most_blocks(&self) -> usize {
        [0, 1, 2].map(|which| self.blocks(which) as usize).into_iter().fold(0, usize::max)
    }

    /// f32 that decode and cut walks need beside their operands, one after the other.
    pub fn partials(&self) -> usize {
        let decode = self.most_blocks() * 2 * self.rows * (self.shape.head_dim + 2);
        let plan = &self.prefill_plan;
        let blocks =
            parts::MOST_ROUNDS as usize * (self.processors as usize).max(self.shape.kv_heads);
        decode.max(usize::from(plan.cuts) * blocks * plan.rows * (self.shape.head_dim + 2))
    }

    /// u32 that decode needs, zeros at first.
    pub fn counters(&self) -> usize {
        self.most_blocks()
    }

    /// What a graph does, whose sequences are not known when it is recorded: decode, each of at most `few` tokens.
    pub fn graph_work(&self) -> Work {
        Work { decode: true, ..self.work(&[]) }
    }

    /// Shares a step's sequences out.
    pub fn work(&self, sequences: &[SequenceArgs]) -> Work {
        work(&self.shape, &self.prefill_plan, self.processors, sequences)
    }

    /// Puts the work into a stream.
    ///
    /// # Panics
    /// If there are more than [`Self::MOST_SEQUENCES`].
    pub fn run(&self, stream: &Stream, call: &AttendCall<'_>) -> Result<(), Failure> {
        assert!(call.count <= Self::MOST_SEQUENCES, "{} sequences", call.count);
        assert!(call.heads.is_none() || call.work.single, "heads on the way of several tokens");
        let which = match call.count {
            ..=1 => 0,
            2..DecodePlan::MANY => 1,
            _ => 2,
        };
        let (shape, plan) = (&self.shape, &self.plans[which]);
        let turn = call.heads.map(|heads| heads.turn);
        let args = AttendArgs {
            q: call.q,
            out: call.out,
            pool: call.pool,
            sequences: call.sequences,
            block_table: call.block_table,
            partials: call.partials,
            counters: call.counters,
            tiles: call.tiles,
            q_norm: call.heads.map_or(Ptr(0), |heads| heads.q_norm),
            k_norm: call.heads.map_or(Ptr(0), |heads| heads.k_norm),
            frequencies: turn.map_or(Ptr(0), |turn| turn.frequencies),
            block_bytes: shape.block_bytes() as u64,
            block_part: (1_u64 << 32).div_ceil((shape.block_tokens / STEP) as u64),
            group_part: (1_u64 << 32).div_ceil(shape.group() as u64),
            count: small(call.count),
            heads: small(shape.heads),
            kv_heads: small(shape.kv_heads),
            group: small(shape.group()),
            teams: self.teams[which],
            block_tokens: small(shape.block_tokens),
            q_stride: small(call.q_stride),
            window: call.window.unwrap_or(u32::MAX),
            few: call.work.few,
            stages: plan.stages,
            scale: call.scale,
            least: plan.least,
            merge: small(plan.merge(shape, self.rows, self.processors)),
            fuses: u32::from(call.heads.is_some()),
            eps: call.heads.map_or(0.0, |heads| heads.eps),
            amplitude: turn.map_or(0.0, |turn| turn.amplitude),
            dims: turn.map_or(0, |turn| small(turn.dims)),
            layout: turn.map_or(0, |turn| layout_number(turn.layout)),
        };
        if call.work.decode {
            let launch = Shape {
                grid: [args.kv_heads * plan.cluster, self.teams[which], 1],
                block: plan.warps * 32,
                shared: small(plan.shared(shape, self.rows, self.processors, call.count)),
                overlaps: true,
            };
            // SAFETY: the caller's addresses reach as far as the call says.
            unsafe { stream.launch_clusters(&self.decode, &launch, plan.cluster, &args) }?;
        }
        if !call.work.tiles.is_empty() {
            let launch = Shape {
                grid: [args.kv_heads, small(call.work.tiles.len()), 1],
                block: self.prefill_plan.threads,
                shared: small(self.prefill_plan.shared),
                overlaps: true,
            };
            // SAFETY: the same.
            unsafe { stream.launch(&self.prefill, &launch, &args) }?;
            if let Some(join) = self.join.as_ref().filter(|_| call.work.cut) {
                let [heads, tiles, _] = launch.grid;
                // Eight rows for each block.
                let grid = [heads, tiles, small(self.prefill_plan.rows / 8)];
                let launch = Shape { grid, block: 256, shared: 0, ..launch };
                // SAFETY: the same.
                unsafe { stream.launch(join, &launch, &args) }?;
            }
        }
        Ok(())
    }
}

/// How a card prefills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PrefillPlan {
    /// Rows of a tile.
    rows: usize,
    threads: u32,
    /// Bytes of shared memory.
    shared: usize,
    /// Walks may be cut.
    cuts: bool,
}

impl PrefillPlan {
    /// `Wide` of `attention_hopper.cuh`, `Tile` of `attention.cu`.
    fn of(arch: Arch, shape: &HeadShape) -> Self {
        let (dim, format) = (shape.head_dim, shape.format);
        if arch.number == 90 && dim == 128 {
            // Begins at a multiple of 1024, and ends with barriers; scales of four tiles of keys and one of queries.
            let scales = if format == KvFormat::Fp8 { 5 * 128 * size_of::<f32>() } else { 0 };
            return Self {
                rows: 128,
                threads: 384,
                shared: 1024 + 5 * 128 * dim * 2 + scales + 128,
                cuts: true,
            };
        }
        let (rows, columns) = if dim <= 128 { (128, 64) } else { (64, 32) };
        let wide = (dim + 8) * 2;
        let shared = match format {
            KvFormat::Bf16 => (rows + 3 * columns) * wide,
            KvFormat::Fp8 => {
                (rows + 2 * columns) * wide + 2 * columns * dim + 4 * columns * size_of::<f32>()
            }
        };
        Self { rows, threads: 128, shared, cuts: false }
    }
}

/// Shares a step out: sequences of many rows to tiles of them, those that read most first, so that none is left at the end.
fn work(
    shape: &HeadShape,
    plan: &PrefillPlan,
    processors: u32,
    sequences: &[SequenceArgs],
) -> Work {
    let few = small((Attend::FEW_ROWS / shape.group()).max(1));
    let mut tiles: Vec<(u32, [u32; 2])> = Vec::new();
    for (n, &[_, tokens, _, positions]) in sequences.iter().enumerate() {
        if tokens <= few {
            continue;
        }
        let all = tokens as usize * shape.group();
        for tile in 0..all.div_ceil(plan.rows) {
            let last = ((tile + 1) * plan.rows).min(all) - 1;
            let sees = positions - tokens + small(last / shape.group()) + 1;
            tiles.push((sees, [small(n), small(tile)]));
        }
    }
    tiles.sort_by_key(|(sees, _)| std::cmp::Reverse(*sees));
    let decode = sequences.iter().any(|[_, tokens, ..]| (1..=few).contains(tokens));
    let single = sequences.iter().all(|[_, tokens, ..]| *tokens <= 1);
    let steps: Vec<u32> = tiles.iter().map(|(sees, _)| sees.div_ceil(parts::STEP)).collect();
    let length =
        if plan.cuts { parts::cut(&steps, small(shape.kv_heads), processors) } else { None };
    let Some(length) = length else {
        let tiles = tiles.into_iter().map(|(_, tile)| tile).collect();
        return Work { few, decode, single, tiles, cut: false };
    };
    let cut = tiles.into_iter().zip(steps).flat_map(|((_, [n, tile]), steps)| {
        let count = steps.div_ceil(length);
        (0..count).map(move |part| [n, tile | part << 16 | count << 24])
    });
    Work { few, decode, single, tiles: cut.collect(), cut: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(heads: usize, kv_heads: usize, head_dim: usize, format: KvFormat) -> HeadShape {
        HeadShape { heads, kv_heads, head_dim, block_tokens: 16, format }
    }

    #[test]
    fn a_block_holds_keys_and_values_and_their_scales() {
        assert_eq!(shape(32, 4, 128, KvFormat::Bf16).block_bytes(), 2 * 4 * 16 * 128 * 2);
        assert_eq!(shape(32, 4, 128, KvFormat::Fp8).block_bytes(), 2 * 4 * 16 * (128 + 4));
    }

    #[test]
    fn every_row_of_a_step_is_done_once_and_the_longest_walk_first() {
        let shape = shape(32, 4, 128, KvFormat::Bf16);
        let sequences = [[0, 1, 0, 900], [1, 0, 0, 0], [1, 40, 60, 2040], [41, 300, 200, 300]];
        let plan = PrefillPlan { rows: 128, threads: 1, shared: 0, cuts: false };
        let work = work(&shape, &plan, 132, &sequences);
        assert!(work.decode);
        assert_eq!(work.few, 8);
        // 40 tokens of 8 rows are 320 rows, that is 3 tiles; 300 are 19.
        let of = |n| work.tiles.iter().filter(|tile| tile[0] == n).count();
        assert_eq!([of(0), of(1), of(2), of(3)], [0, 0, 3, 19]);
        assert_eq!(work.tiles[..4], [[2, 2], [2, 1], [2, 0], [3, 18]]);
    }

    #[test]
    fn a_step_of_one_kind_starts_one_kernel() {
        let shape = shape(9, 3, 64, KvFormat::Bf16);
        let plan = PrefillPlan { rows: 128, threads: 1, shared: 0, cuts: true };
        let work = |sequences: &[SequenceArgs]| work(&shape, &plan, 132, sequences);
        let guesses = work(&[[0, 1, 0, 5], [1, 21, 1, 21]]);
        assert!(guesses.tiles.is_empty() && !guesses.single);
        assert!(work(&[[0, 1, 0, 5], [1, 0, 1, 0]]).single);
        assert!(!work(&[[0, 22, 0, 22]]).decode);
    }

    #[test]
    fn a_few_tokens_behind_a_long_history_are_cut_and_every_part_is_there_once() {
        let shape = shape(32, 4, 128, KvFormat::Fp8);
        let plan = PrefillPlan { rows: 128, threads: 1, shared: 0, cuts: true };
        let work = work(&shape, &plan, 132, &[[0, 100, 0, 60_000], [100, 20, 9, 500]]);
        assert!(work.cut);
        assert!(work.tiles.len() * 4 <= 4 * 132);
        let mut seen = std::collections::HashMap::new();
        for (at, [n, word]) in work.tiles.iter().enumerate() {
            let (tile, part, count) = (word & 0xffff, word >> 16 & 0xff, word >> 24);
            // A tile's parts stand one after the other.
            assert_eq!(work.tiles[at - part as usize], [*n, tile | count << 24]);
            *seen.entry((*n, tile)).or_insert(0) += 1;
            assert!(part < count);
        }
        // 100 tokens of 8 rows are 800 rows, that is 7 tiles; 20 are 2.
        assert_eq!(seen.len(), 9);
        let of = |n: u32| seen.iter().filter(|((m, _), _)| *m == n).map(|(_, parts)| *parts).max();
        assert!(of(0) > of(1));
    }

    #[test]
    fn decode_fits_into_every_card() {
        // With an 8.6 that runs the code for 8.0.
        let cards = [(80, 163), (80, 99), (89, 99), (90, 227), (100, 227), (103, 227), (120, 99)];
        for (number, most) in cards {
            let (arch, most) = (Arch { number }, most << 10);
            for head_dim in HEAD_DIMS {
                for format in [KvFormat::Bf16, KvFormat::Fp8] {
                    let shape = shape(64, 4, head_dim, format);
                    for rows in if head_dim < 256 { vec![8, 16] } else { vec![8] } {
                        for count in [1, 64] {
                            let plan = DecodePlan::of(most, 170, &shape, rows, count);
                            let bytes = |plan: &DecodePlan| {
                                plan.shared(&shape, rows, 170, Attend::MOST_SEQUENCES)
                            };
                            let all = bytes(&plan);
                            assert!(all <= most, "{arch} {shape:?} {rows}: {all}");
                            // Eight if there is room for four of them, else four.
                            let fits = |plan: &DecodePlan| bytes(plan) <= most;
                            let places = [(16, 8), (3, 1)].map(|(places, cluster)| {
                                let at_once = |_: &DecodePlan| Ok(places);
                                let plan = plan.clustered(4, fits, at_once).unwrap();
                                assert!(fits(&plan));
                                plan.cluster == cluster || !fits(&DecodePlan { cluster, ..plan })
                            });
                            assert_eq!(places, [true; 2], "{arch} {shape:?} {rows}");
                        }
                    }
                    let plan = PrefillPlan::of(arch, &shape);
                    assert!(plan.shared <= most, "{arch} {shape:?} {plan:?}");
                }
            }
        }
    }
}
