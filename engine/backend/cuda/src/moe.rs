//! Mixtures of experts: `kernels/moe_*.cu`, and which of their kernels a step takes.

use polder_model::Activation;

use crate::device::{Device, Failure, Kernel, Loaded, Ptr, Shape, Stream};
use crate::pack::{KernelError, Pack};
use crate::sources::module;
use crate::tiles::{MatrixArgs, STRIP, TileFormat};

/// Threads of most blocks.
const THREADS: u32 = 256;
/// The most experts that a token may have.
const MOST_CHOSEN: usize = 16;
/// The most experts that a layer may have.
const MOST_EXPERTS: usize = 4096;
/// Tokens that the tensor cores take at a time.
const COLUMNS: usize = 8;
/// Up to so many tokens blocks go by pairs of a token and an expert, above by experts.
const FEW: usize = 8;
/// Up to so many tokens blocks of the router look at eight of them, above at 64: those are slow, and read the router less often.
const FEW_TO_ROUTE: usize = 512;
/// Tokens that they then look at.
const MANY_TO_ROUTE: usize = 64;
/// Up to so many tokens a block goes through an expert's tokens by eights, above they go in tiles. Measured: alike at 200.
const SEVERAL: usize = 192;
/// Times 16 values of an expert that a block computes one after the other, where strips are in shared memory.
const PER_BLOCK: usize = 3;
/// Tokens and strips of a tile where tokens are many.
const TILE_TOKENS: usize = 128;
const TILE_STRIPS: usize = 16;
/// Bytes of shared memory that a block may have without asking; with asking, what every card has.
const MOST_SHARED: u32 = 88 << 10;

/// The kernels.
#[derive(Debug)]
pub struct Moe {
    /// Where blocks see each other's shared memory.
    route_cluster: Option<Kernel>,
    route_few: Kernel,
    norm_many: Kernel,
    route_many: Kernel,
    /// Where there is `wgmma`.
    turn: Option<Kernel>,
    combine: Kernel,
    formats: [Format; 4],
    /// Blocks that go through a list of work.
    blocks: u32,
    /// What such a block has on its way: `STAGES` of `moe_many.cu`.
    stages: usize,
    /// Bytes of shared memory that a block may ask for.
    most: usize,
    /// Bytes of shared memory up to which a block's strips are put there: two such blocks fit.
    most_staged: usize,
    /// Kernels are good as long as these are there.
    _modules: [Loaded; 3],
}

/// The kernels of one format.
#[derive(Debug)]
struct Format {
    gate_up_few: Kernel,
    down_few: Kernel,
    down_each: Kernel,
    staged: Option<Staged>,
    gate_up_many: Kernel,
    down_many: Kernel,
    wide: Option<Wide>,
}

/// Those with `wgmma`.
#[derive(Debug)]
struct Wide {
    gate_up: Kernel,
    down: Kernel,
}

/// Those with strips in shared memory. Wide formats have none: they fill registers just as well.
#[derive(Debug)]
struct Staged {
    gate_up: Kernel,
    down_few: Kernel,
    down_each: Kernel,
}

/// One layer's mixture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mixture {
    /// Width of the stream.
    pub hidden: usize,
    /// How many experts there are.
    pub experts: usize,
    /// How many of them each token has.
    pub chosen: usize,
    /// Width inside an expert.
    pub inner: usize,
    /// A token's weights are made to add up to one.
    pub renormalized: bool,
    /// Of the gate.
    pub activation: Activation,
}

/// A mixture that the kernels cannot compute.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Too many for a token.
    #[error(
        "{chosen} of {experts} experts for a token: this back end takes 1 to {MOST_CHOSEN}, and not more than there are"
    )]
    Chosen {
        /// How many.
        chosen: usize,
        /// Of how many.
        experts: usize,
    },
    /// Too many.
    #[error("{0} experts: this back end takes up to {MOST_EXPERTS}")]
    Experts(usize),
    /// A width that tiles do not cover.
    #[error("{what} of {width} values: this back end takes multiples of 64, up to {most}")]
    Width {
        /// Of what.
        what: &'static str,
        /// How wide.
        width: usize,
        /// How wide it may be.
        most: usize,
    },
}

/// What the router reads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Input {
    /// The stream, f32, which is normed on the way; what is normed is written too.
    Stream {
        /// `[T][hidden]` f32
        x: Ptr,
        /// Weights of the norm, `[hidden]` f32
        norm: Ptr,
        /// Of the norm.
        eps: f32,
        /// `[T][hidden]` bf16, written
        normed: Ptr,
    },
    /// What is normed already: `[T][hidden]` bf16
    Normed(Ptr),
}

/// Where the result goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Added to the stream, `[T][hidden]` f32
    Add(Ptr),
    /// Written, `[T][hidden]` bf16
    Write(Ptr),
}

/// What a call consists of, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Norm, router, choice.
    Route,
    /// Gate, up, and what is made of both.
    GateUp,
    /// Down; of one token, or few, the weighted sum too.
    Down,
    /// The weighted sum, where `Down` leaves it. The lists of experts are then empty again.
    Sum,
}

impl Part {
    /// All of them.
    pub const ALL: [Part; 4] = [Part::Route, Part::GateUp, Part::Down, Part::Sum];
}

/// One step of one layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Call {
    /// T
    pub tokens: usize,
    /// What is read.
    pub input: Input,
    /// The router, bf16: `[experts][hidden]`
    pub router: MatrixArgs,
    /// Strips of gate and up in turn: `[experts][2 * inner][hidden]`
    pub gate_up: MatrixArgs,
    /// `[experts][hidden][inner]`
    pub down: MatrixArgs,
    /// What is written.
    pub output: Output,
    /// Memory for what lies between: [`Space::bytes`] of them, zeros before the first call. Calls for different layers may
    /// share it, one after the other.
    pub space: Ptr,
    /// Every launch overlaps the one before it.
    pub overlaps: bool,
}

/// How the memory between the kernels is laid out: the same for every step of up to so many tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// More tokens than these are done in several goes.
    pub tokens: usize,
    /// Zeros, before and after: pairs of each expert.
    pub counts: u64,
    /// Zeros, before and after: blocks that have come by, for each eight tokens.
    pub arrived: u64,
    /// `[T][chosen]` u32
    pub chosen: u64,
    /// `[T][chosen]` f32
    pub weights: u64,
    /// `[splits][T][experts]` f32
    pub logits: u64,
    /// `[experts][T]` u32
    pub lists: u64,
    /// `[T * chosen][inner]` bf16
    pub inner: u64,
    /// `[T * chosen][hidden]` bf16
    pub each: u64,
    /// All of it.
    pub bytes: u64,
}

impl Mixture {
    /// Whether the kernels can compute it.
    pub fn check(&self) -> Result<(), Unfit> {
        let Self { hidden, experts, chosen, inner, .. } = *self;
        if chosen == 0 || chosen > MOST_CHOSEN || chosen > experts {
            return Err(Unfit::Chosen { chosen, experts });
        }
        if experts > MOST_EXPERTS {
            return Err(Unfit::Experts(experts));
        }
        // As much as eight rows in shared memory, and sixteen, are on every card.
        let most_hidden = (MOST_SHARED as usize - (12 << 10)) / 16 - 8;
        let most_inner = MOST_SHARED as usize / 32 - 8;
        for (what, width, most) in
            [("a stream", hidden, most_hidden), ("an expert", inner, most_inner)]
        {
            if width == 0 || !width.is_multiple_of(64) || width > most {
                return Err(Unfit::Width { what, width, most });
            }
        }
        Ok(())
    }

    /// Parts of the router's columns for eight tokens each: enough blocks for few tokens, and not more than there is work for.
    fn splits(&self, tokens: usize) -> usize {
        let warps = (THREADS / 32) as usize;
        let blocks = self.experts.div_ceil(STRIP) * tokens.div_ceil(COLUMNS);
        (64 / blocks).clamp(1, (self.hidden / 64).div_ceil(warps).clamp(1, 8))
    }

    /// As the kernels number it.
    fn activation_number(&self) -> u32 {
        match self.activation {
            Activation::Silu => 0,
            Activation::GeluTanh => 1,
        }
    }

    /// The layout for steps of up to so many tokens.
    pub fn space(&self, tokens: usize) -> Space {
        let mut bytes = 0_u64;
        let mut take = |len: usize| {
            let at = bytes;
            bytes += (len as u64).next_multiple_of(256);
            at
        };
        let pairs = tokens * self.chosen;
        let parts = |t: usize| self.splits(t) * t;
        let most_parts = (1..=tokens.min(FEW_TO_ROUTE)).map(parts).max().unwrap_or(0).max(tokens);
        Space {
            tokens,
            counts: take(self.experts * 4),
            arrived: take(tokens.div_ceil(COLUMNS) * 4),
            chosen: take(pairs * 4),
            weights: take(pairs * 4),
            logits: take(most_parts * self.experts * 4),
            lists: take(self.experts * tokens * 4),
            inner: take(pairs * self.inner * 2),
            each: take(pairs * self.hidden * 2),
            bytes,
        }
    }
}

/// `RouteArgs` of `moe_route.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct RouteArgs {
    x: Ptr,
    norm: Ptr,
    normed: Ptr,
    router: MatrixArgs,
    logits: Ptr,
    arrived: Ptr,
    chosen: Ptr,
    weights: Ptr,
    counts: Ptr,
    lists: Ptr,
    eps: f32,
    tokens: u32,
    chosen_per_token: u32,
    renormalized: u32,
}

/// `GateUpArgs` of `moe_few.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct GateUpArgs {
    x: Ptr,
    experts: MatrixArgs,
    chosen: Ptr,
    counts: Ptr,
    lists: Ptr,
    out: Ptr,
    tokens: u32,
    chosen_per_token: u32,
    activation: u32,
    together: u32,
    per_block: u32,
    per_token: u32,
}

/// `DownArgs` of `moe_few.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct DownArgs {
    input: Ptr,
    experts: MatrixArgs,
    chosen: Ptr,
    weights: Ptr,
    counts: Ptr,
    lists: Ptr,
    each: Ptr,
    x: Ptr,
    out: Ptr,
    tokens: u32,
    chosen_per_token: u32,
    count: u32,
}

/// `ManyArgs` of `moe_many.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct ManyArgs {
    input: Ptr,
    experts: MatrixArgs,
    counts: Ptr,
    lists: Ptr,
    out: Ptr,
    tokens: u32,
    pairs_per_row: u32,
    count: u32,
    activation: u32,
}

/// `TurnArgs` of `moe_many.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct TurnArgs {
    input: Ptr,
    out: Ptr,
    columns: u32,
}

/// What one go takes: a call's tokens from `first` on, and where they lie.
struct Go<'a> {
    mixture: &'a Mixture,
    call: &'a Call,
    space: &'a Space,
    first: usize,
    tokens: usize,
}

impl Moe {
    /// Compiles, or takes what is kept.
    pub fn load(pack: &Pack, device: &Device) -> Result<Self, KernelError> {
        let load = |name| pack.load(module(name), device);
        let [route, few, many] = [load("moe_route")?, load("moe_few")?, load("moe_many")?];
        let kernel = |from: &Loaded, name: &str| {
            let name = std::ffi::CString::new(name).expect("a name without a zero byte");
            let kernel = from.kernel(&name)?;
            kernel.prefer_shared()?;
            Ok::<_, Failure>(kernel)
        };
        // Beside what the kernels always take.
        let most = device.most_shared()? - (2 << 10);
        let route_cluster = match device.arch().number >= 90 {
            true => {
                let kernel = kernel(&route, "route_cluster")?;
                kernel.allow_shared(most - (4 << 10))?;
                Some(kernel)
            }
            false => None,
        };
        let large = |from, name: String| {
            let kernel = kernel(from, &name)?;
            kernel.allow_shared(most)?;
            Ok::<_, Failure>(kernel)
        };
        let plain = |name: String| {
            let kernel = kernel(&few, &name)?;
            kernel.allow_shared(MOST_SHARED)?;
            Ok::<_, Failure>(kernel)
        };
        let wide = device.arch().number == 90;
        let format = |name: &str, staged: bool| {
            let staged = match staged {
                true => Some(Staged {
                    gate_up: large(&few, format!("gate_up_staged_{name}"))?,
                    down_few: large(&few, format!("down_few_staged_{name}"))?,
                    down_each: large(&few, format!("down_each_staged_{name}"))?,
                }),
                false => None,
            };
            let wide = match wide {
                true => Some(Wide {
                    gate_up: large(&many, format!("gate_up_wide_{name}"))?,
                    down: large(&many, format!("down_wide_{name}"))?,
                }),
                false => None,
            };
            Ok::<_, Failure>(Format {
                gate_up_few: plain(format!("gate_up_few_{name}"))?,
                down_few: plain(format!("down_few_{name}"))?,
                down_each: plain(format!("down_each_{name}"))?,
                staged,
                gate_up_many: large(&many, format!("gate_up_many_{name}"))?,
                down_many: large(&many, format!("down_many_{name}"))?,
                wide,
            })
        };
        Ok(Self {
            route_cluster,
            route_few: kernel(&route, "route_few")?,
            norm_many: kernel(&route, "norm_many")?,
            route_many: kernel(&route, "route_many")?,
            turn: if wide { Some(kernel(&many, "turn")?) } else { None },
            combine: kernel(&few, "combine")?,
            formats: [
                format("bf16", false)?,
                format("int4_64", true)?,
                format("int4_128", true)?,
                format("fp8", true)?,
            ],
            blocks: device.processors(),
            stages: stages(device.arch().number),
            most: most as usize,
            most_staged: most as usize / 2,
            _modules: [route, few, many],
        })
    }

    /// The same without what only newer or larger cards can do.
    pub fn plain(self) -> Self {
        Self { route_cluster: None, turn: None, most_staged: 0, ..self }
    }

    /// Whether the router norms each of so many tokens once: then a kernel for the norm would be one too many.
    pub fn norms_alone(&self, tokens: usize) -> bool {
        self.route_cluster.is_some() && tokens <= FEW_TO_ROUTE
    }

    /// Routes, and computes the experts.
    ///
    /// # Safety
    /// The call's addresses reach as far as it says, and stay until the work is done; the mixture is checked.
    pub unsafe fn run(
        &self,
        stream: &Stream,
        mixture: &Mixture,
        space: &Space,
        call: &Call,
    ) -> Result<(), Failure> {
        // SAFETY: the caller's promise.
        unsafe { self.run_parts(stream, mixture, space, call, &Part::ALL) }
    }

    /// Some of it, each over all tokens that one go takes.
    ///
    /// # Safety
    /// As for [`Self::run`]; what earlier parts write is there.
    pub unsafe fn run_parts(
        &self,
        stream: &Stream,
        mixture: &Mixture,
        space: &Space,
        call: &Call,
        parts: &[Part],
    ) -> Result<(), Failure> {
        for first in (0..call.tokens).step_by(space.tokens.max(1)) {
            let tokens = space.tokens.min(call.tokens - first);
            let go = Go { mixture, call, space, first, tokens };
            for part in parts {
                // SAFETY: the caller's promise.
                unsafe {
                    match part {
                        Part::Route => self.route(stream, &go)?,
                        Part::GateUp => self.gate_up(stream, &go)?,
                        Part::Down => self.down(stream, &go)?,
                        Part::Sum => self.sum(stream, &go)?,
                    }
                }
            }
        }
        Ok(())
    }

    /// # Safety
    /// As for [`Self::run`].
    unsafe fn route(&self, stream: &Stream, go: &Go<'_>) -> Result<(), Failure> {
        let (x, norm, eps) = match go.call.input {
            Input::Stream { x, norm, eps, .. } => (go.row(x, 4), norm, eps),
            Input::Normed(_) => (Ptr(0), Ptr(0), 0.0),
        };
        let arguments = RouteArgs {
            x,
            norm,
            normed: go.normed(),
            router: go.call.router,
            logits: go.at(go.space.logits),
            arrived: go.at(go.space.arrived),
            chosen: go.at(go.space.chosen),
            weights: go.at(go.space.weights),
            counts: go.counts(),
            lists: go.at(go.space.lists),
            eps,
            tokens: number(go.tokens),
            chosen_per_token: number(go.mixture.chosen),
            renormalized: u32::from(go.mixture.renormalized),
        };
        let strips = go.mixture.experts.div_ceil(STRIP);
        if go.tokens > FEW_TO_ROUTE {
            let norm = go.shape([go.tokens, 1, 1], THREADS, 0);
            let grid = [strips.div_ceil(8), go.tokens.div_ceil(MANY_TO_ROUTE), 1];
            // SAFETY: the caller's promise.
            return unsafe {
                if x != Ptr(0) {
                    stream.launch(&self.norm_many, &norm, &arguments)?;
                }
                stream.launch(&self.route_many, &go.shape(grid, THREADS, 0), &arguments)
            };
        }
        let tiles = go.tokens.div_ceil(COLUMNS);
        let (kernel, shape) = match &self.route_cluster {
            Some(kernel) => {
                let Mixture { hidden, experts, .. } = *go.mixture;
                let shared = hidden * 4 + COLUMNS * (hidden + 8) * 2 + experts * 4;
                (kernel, go.shape([8, tiles, 1], THREADS, shared))
            }
            None => {
                let splits = go.mixture.splits(go.tokens);
                (&self.route_few, go.shape([strips, splits, tiles], THREADS, 0))
            }
        };
        // SAFETY: the caller's promise.
        unsafe { stream.launch(kernel, &shape, &arguments) }
    }

    /// # Safety
    /// As for [`Self::run`].
    unsafe fn gate_up(&self, stream: &Stream, go: &Go<'_>) -> Result<(), Failure> {
        if self.goes_in_tiles(go) {
            // SAFETY: the caller's promise.
            return unsafe { self.many(stream, go, true) };
        }
        let Mixture { hidden, inner, experts, chosen, .. } = *go.mixture;
        let together = together(go.tokens);
        let staged = |per_block: usize| {
            let buffers = per_block.min(2);
            let parts = if together < COLUMNS { buffers } else { 1 };
            buffers * 2 * go.call.gate_up.strip_bytes as usize
                + together * ((hidden + 8) * 2 + parts * 8 * 2 * 20 * 4)
        };
        let format = self.format(&go.call.gate_up);
        let fits = |per_block| self.fits(format, staged(per_block)).then_some(per_block);
        let per_block = (go.tokens > 1).then(|| fits(PER_BLOCK)).flatten().unwrap_or(1);
        let staged = staged(per_block);
        let arguments = GateUpArgs {
            x: go.normed(),
            experts: go.call.gate_up,
            chosen: go.at(go.space.chosen),
            counts: go.counts(),
            lists: go.at(go.space.lists),
            out: go.at(go.space.inner),
            tokens: number(go.tokens),
            chosen_per_token: number(go.mixture.chosen),
            activation: go.mixture.activation_number(),
            together: number(together),
            per_block: number(per_block),
            per_token: per_token(chosen),
        };
        let rows = if go.few() { go.tokens * chosen } else { experts };
        let (kernel, blocks, shared) = match &format.staged {
            Some(kernels) if self.fits(format, staged) => {
                (&kernels.gate_up, (inner / STRIP).div_ceil(per_block), staged)
            }
            _ => {
                let rows = go.tokens.min(COLUMNS) * (hidden + 8) * 2;
                (&format.gate_up_few, inner / STRIP, rows)
            }
        };
        let shape = go.shape([blocks, rows, 1], THREADS, shared);
        // SAFETY: the caller's promise.
        unsafe { stream.launch(kernel, &shape, &arguments) }
    }

    /// Whether strips are put into shared memory.
    fn fits(&self, format: &Format, shared: usize) -> bool {
        format.staged.is_some() && shared <= self.most_staged
    }

    /// # Safety
    /// As for [`Self::run`].
    unsafe fn down(&self, stream: &Stream, go: &Go<'_>) -> Result<(), Failure> {
        let call = go.call;
        let arguments = go.down_arguments();
        let Mixture { hidden, inner, chosen, experts, .. } = *go.mixture;
        let format = self.format(&call.down);
        if go.few() {
            let threads = number(chosen) * 32;
            let staged = chosen * (call.down.strip_bytes as usize + inner * 2);
            let (kernel, shared) = match &format.staged {
                Some(kernels) if self.fits(format, staged) => (&kernels.down_few, staged),
                _ => (&format.down_few, chosen * inner * 2),
            };
            let shape = go.shape([hidden / STRIP, go.tokens, 1], threads, shared);
            // SAFETY: the caller's promise.
            return unsafe { stream.launch(kernel, &shape, &arguments) };
        }
        if self.goes_in_tiles(go) {
            // SAFETY: the caller's promise.
            return unsafe { self.many(stream, go, false) };
        }
        let rows = COLUMNS * (inner + 8) * 2;
        let staged = |warps: usize| {
            warps * call.down.strip_bytes as usize + rows + COLUMNS * (warps * 16 + 8) * 2
        };
        // Fewer warps where strips are long: three such blocks should fit.
        let warps = if staged(8) * 3 > self.most_staged * 2 { 4 } else { 8 };
        let (kernel, warps, shared) = match &format.staged {
            Some(kernels) if self.fits(format, staged(warps)) => {
                (&kernels.down_each, warps, staged(warps))
            }
            _ => (&format.down_each, 8, rows),
        };
        let grid = [(hidden / STRIP).div_ceil(warps), experts, 1];
        let shape = go.shape(grid, number(warps) * 32, shared);
        // SAFETY: the caller's promise.
        unsafe { stream.launch(kernel, &shape, &arguments) }
    }

    /// # Safety
    /// As for [`Self::run`].
    unsafe fn sum(&self, stream: &Stream, go: &Go<'_>) -> Result<(), Failure> {
        if go.few() {
            return Ok(());
        }
        let eights = go.mixture.hidden / 8;
        let threads = eights.next_multiple_of(32).min(THREADS as usize);
        let shape = go.shape([eights.div_ceil(threads), go.tokens, 1], number(threads), 0);
        // SAFETY: the caller's promise.
        unsafe { stream.launch(&self.combine, &shape, &go.down_arguments()) }
    }

    /// Whether tokens are many, and a block of those for many finds room. Some cards have too little for hundreds of experts in bf16:
    /// these then take the way of fewer tokens, which is slow and right.
    fn goes_in_tiles(&self, go: &Go<'_>) -> bool {
        let stages = self.turn.is_none().then_some(self.stages);
        go.tokens > SEVERAL
            && tiles_bytes(&go.call.gate_up, go.mixture.experts, stages, true) <= self.most
            && tiles_bytes(&go.call.down, go.mixture.experts, stages, false) <= self.most
    }

    /// # Safety
    /// As for [`Self::run`].
    unsafe fn many(&self, stream: &Stream, go: &Go<'_>, gated: bool) -> Result<(), Failure> {
        let (space, mixture) = (go.space, go.mixture);
        let (experts, input, pairs_per_row, out) = match gated {
            true => (go.call.gate_up, go.normed(), mixture.chosen, go.at(space.inner)),
            false => (go.call.down, go.at(space.inner), 1, go.at(space.each)),
        };
        let arguments = ManyArgs {
            input,
            experts,
            counts: go.counts(),
            lists: go.at(space.lists),
            out,
            tokens: number(go.tokens),
            pairs_per_row: number(pairs_per_row),
            count: number(mixture.experts),
            activation: mixture.activation_number(),
        };
        let format = self.format(&experts);
        if let (Some(turn), Some(wide)) = (&self.turn, &format.wide) {
            // What experts make of tokens is not there yet: its place holds the tokens, turned.
            let turned = go.at(space.each);
            let hidden = mixture.hidden;
            let shared = tiles_bytes(&experts, mixture.experts, None, gated);
            let shape = go.shape([self.blocks as usize, 1, 1], THREADS, shared);
            if !gated {
                // SAFETY: the caller's promise.
                return unsafe { stream.launch(&wide.down, &shape, &arguments) };
            }
            let turns = TurnArgs { input, out: turned, columns: number(hidden) };
            let threads = (hidden / 8).next_multiple_of(32).min(THREADS as usize);
            let grid = [(hidden / 8).div_ceil(threads), go.tokens, 1];
            // SAFETY: the caller's promise.
            return unsafe {
                stream.launch(turn, &go.shape(grid, number(threads), 0), &turns)?;
                stream.launch(&wide.gate_up, &shape, &ManyArgs { input: turned, ..arguments })
            };
        }
        let kernel = if gated { &format.gate_up_many } else { &format.down_many };
        let shared = tiles_bytes(&experts, mixture.experts, Some(self.stages), gated);
        let shape = go.shape([self.blocks as usize, 1, 1], THREADS, shared);
        // SAFETY: the caller's promise.
        unsafe { stream.launch(kernel, &shape, &arguments) }
    }

    fn format(&self, matrix: &MatrixArgs) -> &Format {
        let int4 = TileFormat::Int4 { group: 64 }.number();
        &self.formats[match (matrix.format, matrix.group) {
            (format, 64) if format == int4 => 1,
            (format, _) if format == int4 => 2,
            (format, _) if format == TileFormat::Fp8.number() => 3,
            _ => 0,
        }]
    }
}

impl Go<'_> {
    fn few(&self) -> bool {
        self.tokens <= FEW
    }

    fn down_arguments(&self) -> DownArgs {
        let (x, out) = match self.call.output {
            Output::Add(x) => (self.row(x, 4), Ptr(0)),
            Output::Write(out) => (Ptr(0), self.row(out, 2)),
        };
        DownArgs {
            input: self.at(self.space.inner),
            experts: self.call.down,
            chosen: self.at(self.space.chosen),
            weights: self.at(self.space.weights),
            counts: self.counts(),
            lists: self.at(self.space.lists),
            each: self.at(self.space.each),
            x,
            out,
            tokens: number(self.tokens),
            chosen_per_token: number(self.mixture.chosen),
            count: number(self.mixture.experts),
        }
    }

    fn at(&self, offset: u64) -> Ptr {
        Ptr(self.call.space.0 + offset)
    }

    /// Where the first token's row of the stream lies, of values of so many bytes.
    fn row(&self, start: Ptr, bytes: usize) -> Ptr {
        match start {
            Ptr(0) => Ptr(0),
            Ptr(at) => Ptr(at + (self.first * self.mixture.hidden * bytes) as u64),
        }
    }

    fn normed(&self) -> Ptr {
        let (Input::Stream { normed, .. } | Input::Normed(normed)) = self.call.input;
        self.row(normed, 2)
    }

    /// None where nobody counts.
    fn counts(&self) -> Ptr {
        if self.few() { Ptr(0) } else { self.at(self.space.counts) }
    }

    fn shape(&self, grid: [usize; 3], block: u32, shared: usize) -> Shape {
        let shared = number(shared);
        Shape { grid: grid.map(number), block, shared, overlaps: self.call.overlaps }
    }
}

/// Tokens of an expert that a block takes at a time where strips are in shared memory: about as many as an expert has.
fn together(tokens: usize) -> usize {
    match tokens {
        1 => 1,
        2..=4 => 2,
        5..=40 => 4,
        _ => COLUMNS,
    }
}

/// A pair's number times this is its token times 2^32, and a rest. 0 where that is no number of 32 bits: a pair is a token.
fn per_token(chosen: usize) -> u32 {
    u32::try_from((1_u64 << 32).div_ceil(chosen as u64)).unwrap_or(0)
}

/// Bytes of shared memory of 64 columns of a strip.
fn unit_bytes(matrix: &MatrixArgs) -> usize {
    match matrix.format {
        0 => 2048,
        1 => 512 + 64,
        _ => 1024 + 64,
    }
}

/// Bytes of shared memory of a block for many tokens: what is on its way, or else its result, whichever is more. `stages` is none for
/// `wide`, which begins at a multiple of one KiB.
fn tiles_bytes(matrix: &MatrixArgs, experts: usize, stages: Option<usize>, gated: bool) -> usize {
    let strips = TILE_STRIPS * unit_bytes(matrix);
    let tiles = match stages {
        Some(stages) => {
            let width = if gated { 128 } else { 256 };
            (stages * (TILE_TOKENS * 128 + strips)).max(TILE_TOKENS * (width + 8) * 2)
        }
        None => {
            let deep = if matrix.format == TileFormat::Bf16.number() { 4 } else { 8 };
            deep * (64 * 128 + strips) + 1024
        }
    };
    tiles + before_bytes(experts)
}

/// What is on its way at once where there are many tokens: `STAGES` of `moe_many.cu`. Code for 8.0 runs on 8.6 too, which has less shared memory.
fn stages(arch: u32) -> usize {
    if (90..120).contains(&arch) { 3 } else { 2 }
}

/// Bytes of what says which tiles are whose.
fn before_bytes(experts: usize) -> usize {
    (experts + 1) * 4
}

fn number(n: usize) -> u32 {
    u32::try_from(n).expect("sizes of a checked mixture and of a step")
}

#[cfg(test)]
mod tests {
    use super::*;

    const QWEN3_30B: Mixture = Mixture {
        hidden: 2048,
        experts: 128,
        chosen: 8,
        inner: 768,
        renormalized: true,
        activation: Activation::Silu,
    };

    #[test]
    fn a_mixture_that_the_kernels_cannot_compute_is_refused_by_a_sentence() {
        let refused = |mixture: Mixture, about: &str| {
            let sentence = mixture.check().unwrap_err().to_string();
            assert!(sentence.contains(about), "{sentence}");
        };
        assert_eq!(QWEN3_30B.check(), Ok(()));
        assert_eq!(Mixture { hidden: 4096, inner: 1536, ..QWEN3_30B }.check(), Ok(()));
        refused(Mixture { chosen: 17, ..QWEN3_30B }, "17 of 128 experts");
        refused(Mixture { chosen: 0, ..QWEN3_30B }, "0 of 128 experts");
        refused(Mixture { experts: 4, chosen: 5, ..QWEN3_30B }, "5 of 4 experts");
        refused(Mixture { experts: 5000, ..QWEN3_30B }, "5000 experts");
        refused(Mixture { inner: 96, ..QWEN3_30B }, "an expert of 96 values");
        refused(Mixture { hidden: 65536, ..QWEN3_30B }, "a stream of 65536 values");
    }

    #[test]
    fn what_lies_between_the_kernels_does_not_overlap() {
        for tokens in [1, 7, 64, 65, 8192] {
            let space = QWEN3_30B.space(tokens);
            let pairs = (tokens * 8) as u64;
            let parts = (1..=tokens.min(512)).map(|t| QWEN3_30B.splits(t) * t).max().unwrap();
            let mut places = [
                (space.counts, 128 * 4),
                (space.arrived, tokens.div_ceil(8) as u64 * 4),
                (space.chosen, pairs * 4),
                (space.weights, pairs * 4),
                (space.logits, parts.max(tokens) as u64 * 128 * 4),
                (space.lists, 128 * tokens as u64 * 4),
                (space.inner, pairs * 768 * 2),
                (space.each, pairs * 2048 * 2),
                (space.bytes, 0),
            ];
            places.sort_unstable();
            for two in places.windows(2) {
                assert!(two[0].0 + two[0].1 <= two[1].0, "{two:?} of {space:?}");
            }
        }
    }

    #[test]
    fn many_experts_in_bf16_do_not_go_in_tiles_on_a_card_with_little_shared_memory() {
        let little = (99 << 10) - (2 << 10);
        let fits = |format: TileFormat, experts| {
            let matrix = MatrixArgs { format: format.number(), ..MatrixArgs::default() };
            [true, false]
                .iter()
                .all(|gated| tiles_bytes(&matrix, experts, Some(2), *gated) <= little)
        };
        assert!(fits(TileFormat::Bf16, 128));
        assert!(!fits(TileFormat::Bf16, 256) && !fits(TileFormat::Bf16, 4096));
        assert!(fits(TileFormat::Int4 { group: 128 }, MOST_EXPERTS));
        assert!(fits(TileFormat::Fp8, 1024));
    }

    #[test]
    fn a_pairs_token_is_found_without_a_division() {
        for chosen in 1..=MOST_CHOSEN as u64 {
            let per_token = per_token(chosen as usize);
            for pair in 0..1 << 17 {
                let found = match per_token {
                    0 => pair,
                    per_token => (pair * u64::from(per_token)) >> 32,
                };
                assert_eq!(found, pair / chosen, "{pair} of {chosen}");
            }
        }
    }
}
