//! Weight matrices times the tokens of a step: `kernels/linear.cu` for few tokens, `kernels/wide.cu` for many, `kernels/dense.cu` for
//! many and a matrix in bf16.

use std::collections::BTreeMap;
use std::ffi::CString;

use polder_model::Activation;

use crate::dense::{self, DenseArgs, TurnTokensArgs};
use crate::device::{Buffer, Device, Failure, Kernel, Loaded, Ptr, Shape, Stream};
use crate::pack::{KernelError, Pack};
use crate::sources::module;
use crate::tiles::{COLUMNS, MatrixArgs, STRIP, TileFormat};

/// What a matrix is multiplied with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Right {
    /// Rows of bf16.
    Bf16 {
        /// The first row; rows begin at multiples of 16 bytes.
        at: Ptr,
        /// Values from one row to the next, a multiple of 8.
        stride: usize,
    },
    /// Laid out as [`Linear::image`] asked for it.
    Image(Image),
    /// The stream, normed on the way. Only where [`fuses_norm`] says so.
    Normed {
        /// `[.][columns]` f32.
        stream: Ptr,
        /// The norm's weights, `[columns]` f32.
        weight: Ptr,
        /// What is added to the mean of the squares.
        eps: f32,
    },
}

/// Tokens as a multiplication of many reads them: see `image_word` of `tiles.cuh`. Rows behind the tokens may be anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Image {
    /// `[columns / 64][padded][64]` bf16, in an order of their own.
    pub at: Ptr,
    /// Rows, or [`TURNED`].
    pub padded: u32,
}

/// In place of [`Image::padded`]: `[tokens][columns]` bf16, of which each 64 have an order of their own (`turned_pair` of `tiles.cuh`).
pub const TURNED: u32 = u32::MAX;

/// Where the result goes. `stride` is in values, from one token to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Out {
    /// As bf16, `[tokens][rows]`.
    Bf16 {
        /// The first token's.
        at: Ptr,
        /// From token to token.
        stride: usize,
    },
    /// As f32, `[tokens][rows]`.
    F32 {
        /// The first token's.
        at: Ptr,
        /// From token to token.
        stride: usize,
    },
    /// Added to the f32 that stand there.
    Add {
        /// The first token's.
        at: Ptr,
        /// From token to token.
        stride: usize,
    },
    /// Gates and ups, a strip of 16 rows of each in turn: the activated gate times up, as bf16, `[tokens][rows / 2]`. No bias.
    Gated {
        /// The first token's.
        at: Ptr,
        /// From token to token.
        stride: usize,
        /// What the gate goes through.
        activation: Activation,
        /// Whether they come [`TURNED`], where [`Linear::turns`] says that the next product takes them so.
        turned: bool,
    },
}

/// One multiplication.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Call {
    /// The weights.
    pub matrix: MatrixArgs,
    /// How many tokens.
    pub tokens: usize,
    /// What they are multiplied with.
    pub right: Right,
    /// Which rows of the right side, `[tokens]` u32, or none: the first ones.
    pub pick: Ptr,
    /// What is added to each row's result, `[rows]` f32, or none.
    pub bias: Ptr,
    /// Where the result goes.
    pub out: Out,
}

/// `LinearArgs` of `linear.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct LinearArgs {
    matrix: MatrixArgs,
    right: Ptr,
    stream: Ptr,
    norm: Ptr,
    pick: Ptr,
    bias: Ptr,
    out: Ptr,
    tokens: u32,
    right_stride: u32,
    out_stride: u32,
    epilogue: u32,
    activation: u32,
    eps: f32,
    each: u32,
}

/// `LayOutArgs` of `wide.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct LayOutArgs {
    right: Ptr,
    pick: Ptr,
    image: Ptr,
    tokens: u32,
    padded: u32,
    right_stride: u32,
    columns: u32,
}

/// `WideArgs` of `wide.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct WideArgs {
    matrix: MatrixArgs,
    image: Ptr,
    bias: Ptr,
    out: Ptr,
    tokens: u32,
    padded: u32,
    out_stride: u32,
    epilogue: u32,
    activation: u32,
    slots: u32,
    beside: u32,
}

/// How a multiplication is shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// A block for each few strips: `linear` of `linear.cu`.
    Split {
        /// Strips of a block.
        strips: u32,
        /// Tokens of a block, in eights.
        eights: u32,
        /// Warps of a block, which share out the columns.
        warps: u32,
    },
    /// Blocks that hold their columns of the tokens while strips pass by: `held` of `linear.cu`.
    Held {
        /// Tokens of a block, in eights.
        eights: u32,
        /// Blocks that share out the columns.
        cluster: u32,
        /// Clusters, which share out the strips.
        clusters: u32,
    },
    /// Blocks of many strips and tokens: `wide` of `wide.cu`, after the tokens are laid out.
    Wide {
        /// Tokens of a block.
        tokens: u32,
        /// Warps of a block; each has a strip.
        warps: u32,
        /// Blocks that share out the columns.
        split: u32,
    },
    /// Both sides from shared memory: `dense` of `dense.cu`, after the tokens are turned.
    Dense {
        /// Rows of a block.
        width: u32,
    },
}

/// What a plan is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Problem {
    /// The weights. Where they lie does not matter.
    pub matrix: MatrixArgs,
    /// How many tokens.
    pub tokens: usize,
    /// Whether a norm is done on the way.
    pub normed: bool,
    /// Whether pairs of strips are gated.
    pub gated: bool,
    /// Whether there is memory for work on the way.
    pub scratch: bool,
}

/// The card that it is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Card {
    /// Multiprocessors.
    pub processors: u32,
    /// [`Arch::number`](crate::arch::Arch): 90 has what `wide` needs.
    pub arch: u32,
}

/// Tokens up to which a multiplication is never `wide`.
const NARROW: usize = 32;
/// Tokens up to which a norm may be done on the way.
const FEW: usize = 8;
/// Bytes of shared memory that the normed tokens of a block may take. Every block norms them all: with more, a kernel of its own is
/// faster.
const TOKEN_BYTES: usize = 16 << 10;
/// Bytes of the sums of one strip for eight tokens in shared memory, and of the sums of squares.
const PART_BYTES: u32 = 8 * 20 * 4;
const SQUARES_BYTES: u32 = 32 * 4;

/// Bytes of shared memory for what a block of `wide` asks for ahead: alone on its multiprocessor, or one of two.
const WIDE_BYTES: u32 = 220 << 10;
const HALF_BYTES: u32 = 108 << 10;
/// Bytes of a matrix that the second cache keeps beside what else passes through it.
const STAYS: u64 = 32 << 20;
/// Chunks of its strip that each warp asks for ahead.
const WIDE_AHEAD: u32 = 4;
/// Its shapes: tokens, warps, and blocks that share out the columns.
const WIDE: [(u32, u32, u32); 5] =
    [(128, 16, 1), (128, 8, 1), (128, 8, 2), (128, 8, 4), (64, 8, 4)];

/// Bytes of memory for work on the way that so many tokens of so many columns take.
pub fn scratch_bytes(tokens: usize, columns: usize) -> usize {
    if tokens <= NARROW {
        return 0;
    }
    let block = if tokens <= 64 { 64 } else { 128 };
    tokens.next_multiple_of(block) * columns * 2
}

/// Whether [`Right::Normed`] is for so many tokens of so many columns. If not, the norm is a kernel of its own, which is then the
/// faster way.
pub fn fuses_norm(tokens: usize, columns: usize) -> bool {
    tokens <= FEW && tokens * columns * 2 <= TOKEN_BYTES
}

/// How to share out a multiplication. A pure function: a captured graph always has the same shapes.
pub fn plan(problem: &Problem, card: Card) -> Plan {
    let MatrixArgs { rows, format, .. } = problem.matrix;
    let blocks = rows.div_ceil(STRIP as u32).div_ceil(2);
    // Eight warps where all blocks then have their places from the start; else four, and more blocks beside each other.
    let split = |eights: u32, places: u32| Plan::Split {
        strips: 2,
        eights,
        warps: if blocks <= card.processors * places { 8 } else { 4 },
    };
    let narrow = format != TileFormat::Bf16.number();
    let wide = widens(problem, card);
    if let Some(plan) = held(problem, card) {
        return plan;
    }
    match problem.tokens {
        0..=8 => few(problem, card),
        9..=16 => split(2, 2),
        17..=32 => split(4, 1),
        33..=64 if narrow && blocks > card.processors && !problem.gated && wide => {
            Plan::Wide { tokens: 64, warps: 8, split: 4 }
        }
        65.. if wide => many(problem, card),
        _ => split(8, 1),
    }
}

/// For at most eight tokens.
///
/// What is read in a few microseconds is best on its way all at once: of the ways in which every block has its place from the
/// start, the one whose warps have the least to do one after the other, then the one with the fewest blocks. Long reads have
/// blocks enough to follow each other.
fn few(problem: &Problem, card: Card) -> Plan {
    let MatrixArgs { rows, columns, format, .. } = problem.matrix;
    let (strips, tiles) = (rows.div_ceil(STRIP as u32), columns / COLUMNS as u32);
    let least = if problem.gated { 2 } else { 1 };
    let short = format == TileFormat::Int4 { group: 64 }.number();
    let ways = (least..=2).flat_map(|per| [4, 8, 16].map(|warps| (per, warps)));
    // As many warps as registers allow.
    let resident =
        |per: u32, warps: u32| card.processors * (if per == 1 { 21 } else { 16 } / warps);
    ways.filter(|(per, warps)| short && strips.div_ceil(*per) <= resident(*per, *warps))
        .min_by_key(|(per, warps)| (per * tiles.div_ceil(*warps), strips.div_ceil(*per)))
        .map(|(per, warps)| Plan::Split { strips: per, eights: 1, warps })
        .unwrap_or(Plan::Split { strips: least, eights: 1, warps: 8 })
}

/// Columns of a block of `held`, the blocks of its clusters, the tokens that it takes, and the bytes of shared memory.
const HELD_COLUMNS: u32 = 16 * 128;
const HELD_CLUSTERS: [u32; 2] = [1, 2];
const HELD: std::ops::RangeInclusive<usize> = 9..=32;
const HELD_BYTES: u32 = 220 << 10;

/// For some tokens and a matrix in four bits, on Hopper: as many clusters as find a place at once. Wider matrices, whose clusters
/// would have four blocks, are faster in the other ways, and so are more tokens.
fn held(problem: &Problem, card: Card) -> Option<Plan> {
    let MatrixArgs { rows, columns, format, .. } = problem.matrix;
    let int4 = TileFormat::Int4 { group: 64 }.number();
    if card.arch != 90 || problem.normed || format != int4 || !HELD.contains(&problem.tokens) {
        return None;
    }
    let eights = if problem.tokens <= 16 { 2 } else { 4 };
    let cluster = HELD_CLUSTERS.into_iter().find(|n| n * HELD_COLUMNS >= columns)?;
    let strips = rows.div_ceil(STRIP as u32) / if problem.gated { 2 } else { 1 };
    let plan =
        Plan::Held { eights, cluster, clusters: (card.processors / cluster).clamp(1, strips) };
    (held_bytes(problem, plan) <= HELD_BYTES).then_some(plan)
}

/// Bytes of shared memory of such a block: the sums of its warps twice, and of its strips.
fn held_bytes(problem: &Problem, plan: Plan) -> u32 {
    let Plan::Held { eights, clusters, .. } = plan else { unreachable!("a plan of `held`") };
    let strips = problem.matrix.rows.div_ceil(STRIP as u32);
    let most =
        if problem.gated { (strips / 2).div_ceil(clusters) * 2 } else { strips.div_ceil(clusters) };
    eights * (2 * 16 * PART_BYTES + most * 8 * STRIP as u32 * 4)
}

/// Whether `wide` is for it: Hopper, whole groups.
fn widens(problem: &Problem, card: Card) -> bool {
    let MatrixArgs { columns, group, .. } = problem.matrix;
    card.arch == 90 && problem.scratch && !problem.normed && columns.is_multiple_of(group)
}

/// For many tokens: the shape that should be done first, in the tensor cores' clocks. What a block does beside multiplying, and what
/// sharing out the columns costs, is about what was measured.
fn many(problem: &Problem, card: Card) -> Plan {
    let MatrixArgs { rows, columns, format, .. } = problem.matrix;
    let (strips, tiles) = (rows.div_ceil(STRIP as u32), columns / COLUMNS as u32);
    let clocks = |(width, warps, split): &(u32, u32, u32)| {
        let blocks = strips.div_ceil(*warps) * (problem.tokens as u32).div_ceil(*width) * split;
        let tile = if *warps == 16 { 1100 } else { 720 };
        let one = 2500 + if *split > 1 { 3000 } else { 0 } + tiles.div_ceil(*split) * tile;
        // Four blocks of a cluster do not find room everywhere.
        let places = if *split == 4 { card.processors * 7 / 8 } else { card.processors };
        u64::from(blocks.div_ceil(places)) * u64::from(one)
    };
    // Where columns are shared out, pairs of strips are not gated.
    let ways = WIDE
        .into_iter()
        .filter(|(tokens, _, split)| *tokens == 128 && (!problem.gated || *split == 1));
    let best = ways.min_by_key(clocks).expect("the first shape is always there");
    if format == TileFormat::Bf16.number()
        && let Some((width, dense)) =
            dense::best((rows, columns), problem.tokens as u32, card.processors)
        && dense < clocks(&best)
    {
        return Plan::Dense { width };
    }
    Plan::Wide { tokens: best.0, warps: best.1, split: best.2 }
}

/// Slots of a block of `wide` for the tokens of a chunk, and the bytes that they take with the chunks that each warp has ahead, beside
/// room for a whole multiple of 1024 to begin at.
fn wide_slots(matrix: &MatrixArgs, tokens: u32, warps: u32) -> (u32, u32) {
    let left = WIDE_AHEAD * warps * chunk_bytes(matrix);
    let slot = matrix.group / COLUMNS as u32 * tokens * 128;
    let slots = ((if tokens == 128 { WIDE_BYTES } else { HALF_BYTES }) - left) / slot;
    (slots.min(8), slots.min(8) * slot + left + 1024)
}

fn chunk_bytes(matrix: &MatrixArgs) -> u32 {
    (matrix.strip_bytes / u64::from(matrix.columns.div_ceil(matrix.group))) as u32
}

/// The kernels.
#[derive(Debug)]
pub struct Linear {
    kernels: BTreeMap<Variant, Kernel>,
    lay_out: Kernel,
    turn: Kernel,
    card: Card,
    scratch: Option<Buffer<u8>>,
    _modules: [Loaded; 3],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Variant {
    Split { format: u32, strips: u32, eights: u32, normed: bool },
    Held { group: u32, eights: u32, cluster: u32 },
    Wide { format: u32, group: u32, tokens: u32, warps: u32, split: u32 },
    Dense { width: u32 },
}

const FORMATS: [&str; 3] = ["bf16", "int4", "fp8"];

impl Variant {
    fn of(plan: Plan, matrix: &MatrixArgs, normed: bool) -> Self {
        let MatrixArgs { format, group, .. } = *matrix;
        match plan {
            Plan::Split { strips, eights, .. } => Self::Split { format, strips, eights, normed },
            Plan::Held { eights, cluster, .. } => Self::Held { group, eights, cluster },
            Plan::Wide { tokens, warps, split } => {
                Self::Wide { format, group, tokens, warps, split }
            }
            Plan::Dense { width } => Self::Dense { width },
        }
    }

    fn all(arch: u32) -> Vec<Self> {
        let mut all = Vec::new();
        for normed in [false, true] {
            for format in 0..3 {
                for (strips, eights) in [(1, 1), (2, 1), (2, 2), (2, 4), (2, 8)] {
                    if !normed || eights == 1 {
                        all.push(Self::Split { format, strips, eights, normed });
                    }
                }
            }
        }
        for (group, eights, cluster) in HELD_CLUSTERS
            .into_iter()
            .flat_map(|cluster| [2, 4].map(|eights| (eights, cluster)))
            .flat_map(|(eights, cluster)| [64, 128].map(|group| (group, eights, cluster)))
            .filter(|_| arch == 90)
        {
            all.push(Self::Held { group, eights, cluster });
        }
        for (format, group) in [(0, 64), (1, 64), (1, 128), (2, 64)] {
            all.extend(WIDE.map(|(tokens, warps, split)| Self::Wide {
                format,
                group,
                tokens,
                warps,
                split,
            }));
        }
        if arch == 90 {
            all.extend(dense::WIDTHS.map(|(width, _)| Self::Dense { width }));
        }
        all
    }

    fn name(self) -> String {
        let end = |normed| if normed { "_normed" } else { "" };
        match self {
            Self::Split { format, strips, eights, normed } => {
                format!("linear_{}_{strips}x{eights}{}", FORMATS[format as usize], end(normed))
            }
            Self::Held { group, eights, cluster } => format!("held_{group}_{eights}x{cluster}"),
            Self::Wide { format, group, tokens, warps, split } => {
                format!("wide_{}_{group}_{tokens}_{warps}x{split}", FORMATS[format as usize])
            }
            Self::Dense { width } => format!("dense_{width}"),
        }
    }

    /// Most bytes of shared memory that a launch takes.
    fn most_shared(self) -> u32 {
        match self {
            Self::Split { strips, eights, normed, .. } => {
                let warps = if eights == 1 { 16 } else { 8 };
                split_bytes(strips, eights, warps, if normed { TOKEN_BYTES } else { 0 })
            }
            Self::Held { .. } => HELD_BYTES,
            Self::Wide { .. } => WIDE_BYTES + 1024,
            Self::Dense { width } => dense::shared_bytes(width),
        }
    }
}

impl Linear {
    /// Loads them.
    pub fn load(pack: &Pack, device: &Device) -> Result<Self, KernelError> {
        let [split, wide, dense] = ["linear", "wide", "dense"].map(module);
        let modules =
            [pack.load(split, device)?, pack.load(wide, device)?, pack.load(dense, device)?];
        let card = Card { processors: device.processors(), arch: device.arch().number };
        let mut kernels = BTreeMap::new();
        for variant in Variant::all(card.arch) {
            let name = CString::new(variant.name()).expect("a name without a zero byte");
            let of = match variant {
                Variant::Split { .. } | Variant::Held { .. } => 0,
                Variant::Wide { .. } => 1,
                Variant::Dense { .. } => 2,
            };
            let kernel = modules[of].kernel(&name)?;
            let here = card.arch == 90 || matches!(variant, Variant::Split { .. });
            if variant.most_shared() > 48 << 10 && here {
                kernel.allow_shared(variant.most_shared())?;
            }
            kernels.insert(variant, kernel);
        }
        let lay_out = modules[1].kernel(c"lay_out_tokens")?;
        let turn = modules[2].kernel(c"turn_tokens")?;
        Ok(Self { kernels, lay_out, turn, card, scratch: None, _modules: modules })
    }

    /// Takes memory for work on the way: [`scratch_bytes`] of the most tokens and the widest matrix. Without it, or with too little,
    /// many tokens take a slow way. Multiplications that use it follow each other: one stream at a time.
    pub fn lend(&mut self, scratch: Buffer<u8>) {
        self.scratch = Some(scratch);
    }

    fn problem(&self, call: &Call) -> Problem {
        let lent = self.scratch.as_ref().map_or(0, Buffer::len);
        Problem {
            matrix: call.matrix,
            tokens: call.tokens,
            normed: matches!(call.right, Right::Normed { .. }),
            gated: matches!(call.out, Out::Gated { .. }),
            scratch: scratch_bytes(call.tokens, call.matrix.columns as usize) <= lent,
        }
    }

    /// Where tokens are to be laid out for a multiplication of many, by who has them at hand: else it is done before it, by a kernel of
    /// its own. None: [`Right::Bf16`] is read as it is.
    pub fn image(&self, matrix: &MatrixArgs, tokens: usize, gated: bool) -> Option<Image> {
        let scratch = self.scratch.as_ref()?;
        let enough = scratch_bytes(tokens, matrix.columns as usize) <= scratch.len();
        let problem = Problem { matrix: *matrix, tokens, normed: false, gated, scratch: enough };
        let padded = match plan(&problem, self.card) {
            Plan::Split { .. } | Plan::Held { .. } => return None,
            Plan::Wide { tokens: width, .. } => (tokens as u32).next_multiple_of(width),
            Plan::Dense { .. } => TURNED,
        };
        Some(Image { at: scratch.at(), padded })
    }

    /// Whether gated results of one matrix can come [`TURNED`], as a product of them with the next one reads them.
    pub fn turns(&self, gate_up: &MatrixArgs, next: &MatrixArgs, tokens: usize) -> bool {
        let turned = |matrix, gated| {
            self.image(matrix, tokens, gated).is_some_and(|image| image.padded == TURNED)
        };
        turned(gate_up, true) && turned(next, false)
    }

    /// How a call is shared out.
    pub fn plan(&self, call: &Call) -> Plan {
        plan(&self.problem(call), self.card)
    }

    /// Puts a multiplication into a stream.
    ///
    /// # Safety
    /// The addresses reach as far as the call says until the work is done.
    ///
    /// # Panics
    /// If a norm on the way is asked for where [`fuses_norm`] says no.
    pub unsafe fn run(&self, stream: &Stream, call: &Call) -> Result<(), Failure> {
        // SAFETY: the caller's promise.
        unsafe { self.run_as(stream, call, self.plan(call)) }
    }

    /// The same, shared out as is said: for measurements.
    ///
    /// # Safety
    /// As for [`Self::run`].
    ///
    /// # Panics
    /// As [`Self::run`], and if there is no kernel for the plan, or no memory for its work.
    pub unsafe fn run_as(&self, stream: &Stream, call: &Call, plan: Plan) -> Result<(), Failure> {
        if call.tokens == 0 {
            return Ok(());
        }
        let problem = self.problem(call);
        let MatrixArgs { rows, columns, group, .. } = call.matrix;
        assert!(
            !problem.normed || fuses_norm(call.tokens, columns as usize),
            "a norm on the way to {} tokens of {columns} columns",
            call.tokens
        );
        assert!(
            !matches!(
                (call.right, plan),
                (Right::Image(_), Plan::Split { .. } | Plan::Held { .. })
            ),
            "tokens laid out for {plan:?}"
        );
        assert!(
            !matches!(call.out, Out::Gated { turned: true, .. })
                || matches!(plan, Plan::Dense { .. }),
            "results turned by {plan:?}"
        );
        let variant = Variant::of(plan, &call.matrix, problem.normed);
        let kernel = self.kernels.get(&variant).unwrap_or_else(|| panic!("no kernel for {plan:?}"));
        let mut arguments = arguments(call);
        let shape = match plan {
            Plan::Split { strips, eights, warps } => {
                let (each, warps) = shared_out(warps, columns, group);
                arguments.each = each;
                let normed = if problem.normed { call.tokens * columns as usize * 2 } else { 0 };
                Shape {
                    grid: [
                        rows.div_ceil(STRIP as u32).div_ceil(strips),
                        (call.tokens as u32).div_ceil(8 * eights),
                        1,
                    ],
                    block: warps * 32,
                    shared: split_bytes(strips, eights, warps, normed),
                    overlaps: true,
                }
            }
            Plan::Held { eights, cluster, clusters } => Shape {
                grid: [clusters * cluster, arguments.tokens.div_ceil(8 * eights), 1],
                block: HELD_COLUMNS / 128 * 32,
                shared: held_bytes(&problem, plan),
                overlaps: true,
            },
            // SAFETY: the caller's promise.
            Plan::Wide { .. } => {
                return unsafe { self.run_wide(stream, kernel, call, &arguments, plan) };
            }
            Plan::Dense { width } => {
                // SAFETY: the caller's promise.
                return unsafe { self.run_dense(stream, kernel, call, &arguments, width) };
            }
        };
        // SAFETY: the caller's promise.
        unsafe { stream.launch(kernel, &shape, &arguments) }
    }

    /// # Safety
    /// As for [`Self::run`].
    unsafe fn run_wide(
        &self,
        stream: &Stream,
        kernel: &Kernel,
        call: &Call,
        a: &LinearArgs,
        plan: Plan,
    ) -> Result<(), Failure> {
        let MatrixArgs { rows, columns, .. } = call.matrix;
        let Plan::Wide { tokens, warps, split } = plan else { unreachable!("a wide plan") };
        let padded = a.tokens.next_multiple_of(tokens);
        let image = self.scratch.as_ref().expect("a wide plan is for lent memory");
        assert!(
            padded as usize * columns as usize * 2 <= image.len(),
            "memory for {tokens} tokens"
        );
        let image = match call.right {
            Right::Image(image) => {
                assert!(image.padded == padded && a.pick == Ptr(0), "{image:?} for {padded} rows");
                image.at
            }
            _ => image.at(),
        };
        let lay_out = LayOutArgs {
            right: a.right,
            pick: a.pick,
            image,
            tokens: a.tokens,
            padded,
            right_stride: a.right_stride,
            columns,
        };
        let threads = columns / 8 * padded;
        let shape = Shape { overlaps: true, ..Shape::row(threads.div_ceil(256), 256) };
        if !matches!(call.right, Right::Image(_)) {
            // SAFETY: the caller's promise.
            unsafe { stream.launch(&self.lay_out, &shape, &lay_out) }?;
        }
        let (slots, shared) = wide_slots(&call.matrix, tokens, warps);
        let beside = rows.div_ceil(STRIP as u32).div_ceil(warps);
        let wide = WideArgs {
            matrix: call.matrix,
            image,
            bias: a.bias,
            out: a.out,
            tokens: a.tokens,
            padded,
            out_stride: a.out_stride,
            epilogue: a.epilogue,
            activation: a.activation,
            slots,
            beside: if call.matrix.matrix_bytes <= STAYS { beside } else { 8 },
        };
        let grid = [beside, padded / tokens, split];
        let shape = Shape { grid, block: warps * 32, shared, overlaps: true };
        // SAFETY: the caller's promise.
        unsafe { stream.launch(kernel, &shape, &wide) }
    }
}

impl Linear {
    /// # Safety
    /// As for [`Self::run`].
    unsafe fn run_dense(
        &self,
        stream: &Stream,
        kernel: &Kernel,
        call: &Call,
        a: &LinearArgs,
        width: u32,
    ) -> Result<(), Failure> {
        let MatrixArgs { rows, columns, .. } = call.matrix;
        let scratch = self.scratch.as_ref().expect("a dense plan is for lent memory");
        let right = match call.right {
            Right::Image(image) => {
                assert!(image.padded == TURNED && a.pick == Ptr(0), "{image:?} is not turned");
                image.at
            }
            _ => {
                assert!(
                    (a.tokens * columns * 2) as usize <= scratch.len(),
                    "memory for {} tokens",
                    a.tokens
                );
                let turn = TurnTokensArgs {
                    from: a.right,
                    pick: a.pick,
                    to: scratch.at(),
                    count: a.tokens,
                    stride: a.right_stride,
                    columns,
                };
                let threads = columns / 8 * a.tokens;
                let shape = Shape { overlaps: true, ..Shape::row(threads.div_ceil(256), 256) };
                // SAFETY: the caller's promise.
                unsafe { stream.launch(&self.turn, &shape, &turn) }?;
                scratch.at()
            }
        };
        let mut dense = DenseArgs::new(&call.matrix, (right, columns), a.tokens, width)?;
        (dense.bias, dense.out, dense.out_stride) = (a.bias, a.out, a.out_stride);
        (dense.epilogue, dense.activation) = (a.epilogue, a.activation);
        dense.turned = u32::from(matches!(call.out, Out::Gated { turned: true, .. }));
        let shape = Shape {
            shared: dense::shared_bytes(width),
            overlaps: true,
            ..Shape::row(dense::blocks(rows, a.tokens, width, self.card.processors), dense::THREADS)
        };
        // SAFETY: the caller's promise.
        unsafe { stream.launch(kernel, &shape, &dense) }
    }
}

/// Bytes of shared memory of a block of `linear`.
fn split_bytes(strips: u32, eights: u32, warps: u32, normed_bytes: usize) -> u32 {
    let parts = warps * strips * eights * PART_BYTES;
    parts + if normed_bytes > 0 { SQUARES_BYTES + normed_bytes as u32 } else { 0 }
}

/// Tiles of 64 columns for each warp, whole groups, and how many warps then have any.
fn shared_out(warps: u32, columns: u32, group: u32) -> (u32, u32) {
    let tiles = columns / COLUMNS as u32;
    let each = tiles.div_ceil(warps).next_multiple_of(group / COLUMNS as u32);
    (each, tiles.div_ceil(each))
}

fn arguments(call: &Call) -> LinearArgs {
    let none = Ptr(0);
    let (right, right_stride, stream, norm, eps) = match call.right {
        Right::Bf16 { at, stride } => (at, stride, none, none, 0.0),
        Right::Image(_) => (none, 0, none, none, 0.0),
        Right::Normed { stream, weight, eps } => {
            (none, call.matrix.columns as usize, stream, weight, eps)
        }
    };
    let (epilogue, out, out_stride, activation) = match call.out {
        Out::Bf16 { at, stride } => (0, at, stride, 0),
        Out::F32 { at, stride } => (1, at, stride, 0),
        Out::Add { at, stride } => (2, at, stride, 0),
        Out::Gated { at, stride, activation, .. } => {
            (3, at, stride, u32::from(activation == Activation::GeluTanh))
        }
    };
    LinearArgs {
        matrix: call.matrix,
        right,
        stream,
        norm,
        pick: call.pick,
        bias: call.bias,
        out,
        tokens: call.tokens as u32,
        right_stride: right_stride as u32,
        out_stride: out_stride as u32,
        epilogue,
        activation,
        eps,
        each: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(rows: usize, columns: usize, format: TileFormat) -> MatrixArgs {
        MatrixArgs {
            rows: rows as u32,
            columns: columns as u32,
            format: format.number(),
            group: format.group() as u32,
            strip_bytes: format.strip_bytes(columns) as u64,
            ..MatrixArgs::default()
        }
    }

    #[test]
    fn what_every_card_runs_fits_into_the_smallest_one() {
        let split = Variant::all(80).into_iter().filter(|v| matches!(v, Variant::Split { .. }));
        for variant in split {
            assert!(variant.most_shared() <= 99 << 10, "{}", variant.name());
        }
    }

    #[test]
    fn every_plan_has_a_kernel_and_fits_into_a_block() {
        let all = [80, 90].map(Variant::all);
        let formats = [
            TileFormat::Bf16,
            TileFormat::Int4 { group: 64 },
            TileFormat::Int4 { group: 128 },
            TileFormat::Fp8,
        ];
        let shapes =
            [(16, 64), (32, 576), (224, 640), (2048, 4096), (4096, 25_600), (151_936, 2048)];
        for format in formats {
            for ((rows, columns), arch) in shapes.into_iter().flat_map(|s| [(s, 80), (s, 90)]) {
                for tokens in 1..300 {
                    for (gated, normed) in [(false, false), (false, true), (true, false)] {
                        if normed && !fuses_norm(tokens, columns) || gated && rows % 32 != 0 {
                            continue;
                        }
                        let matrix = matrix(rows, columns, format);
                        let scratch = tokens % 2 == 0;
                        let problem = Problem { matrix, tokens, normed, gated, scratch };
                        let plan = plan(&problem, Card { processors: 132, arch });
                        let all = &all[usize::from(arch == 90)];
                        assert!(all.contains(&Variant::of(plan, &matrix, normed)), "{plan:?}");
                        match plan {
                            Plan::Split { strips, eights, warps } => {
                                assert!(!gated || strips % 2 == 0, "pairs stay together");
                                assert!((1..=16).contains(&warps));
                                assert!(split_bytes(strips, eights, warps, 0) <= 96 << 10);
                            }
                            Plan::Held { eights, cluster, clusters } => {
                                assert!(arch == 90 && eights * 8 >= tokens as u32);
                                assert!(cluster * HELD_COLUMNS >= columns as u32);
                                assert!(clusters * cluster <= 132);
                                assert!(held_bytes(&problem, plan) <= HELD_BYTES);
                            }
                            Plan::Wide { tokens: width, warps, .. } => {
                                assert!(arch == 90 && scratch && tokens > NARROW);
                                let (slots, bytes) = wide_slots(&matrix, width, warps);
                                assert!((4..=8).contains(&slots), "{slots}");
                                assert!(bytes <= WIDE_BYTES + 1024);
                                // The sums of a split block, and the warps' own rooms.
                                assert!(bytes - 1024 >= width * 512 + warps * 1280);
                                assert!(scratch_bytes(tokens, 64) >= tokens * 128);
                            }
                            Plan::Dense { width } => {
                                assert!(arch == 90 && scratch && format == TileFormat::Bf16);
                                assert!(dense::shared_bytes(width) <= 227 << 10);
                                assert!(scratch_bytes(tokens, 64) >= tokens * 128);
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn many_tokens_and_a_matrix_in_bf16_meet_in_shared_memory() {
        let card = Card { processors: 132, arch: 90 };
        let chosen = |(rows, columns), tokens, gated| {
            let matrix = matrix(rows, columns, TileFormat::Bf16);
            plan(&Problem { matrix, tokens, normed: false, gated, scratch: true }, card)
        };
        for (shape, gated, tokens, width) in [
            ((24_576, 4096), true, 256, 192),
            ((24_576, 4096), true, 512, 256),
            ((6144, 4096), false, 512, 192),
            ((6144, 4096), false, 2048, 256),
            ((4096, 4096), false, 512, 128),
            ((4096, 12_288), false, 1024, 256),
        ] {
            assert_eq!(chosen(shape, tokens, gated), Plan::Dense { width }, "{shape:?} {tokens}");
            for more in [2048, 8192] {
                assert_eq!(chosen(shape, more, gated), Plan::Dense { width: 256 }, "{shape:?}");
            }
        }
        // A pair of blocks has 256 tokens: with fewer, one would have nothing.
        assert!(matches!(chosen((6144, 4096), 128, false), Plan::Wide { .. }));
        let (blocks, most) = (|tokens| dense::blocks(4096, tokens, 128, 132), 132);
        assert_eq!((blocks(1), blocks(257), blocks(8192)), (64, 128, most));
    }

    #[test]
    fn warps_take_whole_groups_and_every_tile_is_someones() {
        for columns in (64..4096).step_by(64) {
            for (warps, group) in [(1, 64), (7, 128), (8, 64), (16, 128)] {
                let (each, used) = shared_out(warps, columns, group);
                assert_eq!(each % (group / 64), 0);
                assert!(used <= warps && used * each >= columns / 64);
                assert!((used - 1) * each < columns / 64, "the last one has something");
            }
        }
    }
}
