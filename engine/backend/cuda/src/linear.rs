//! Weight matrices times the tokens of a step: `kernels/linear.cu`.

use std::collections::BTreeMap;
use std::ffi::CString;

use crate::device::{Device, Failure, Kernel, Loaded, Ptr, Shape, Stream};
use crate::pack::{KernelError, Pack};
use crate::sources::module;
use crate::tiles::{COLUMNS, MatrixArgs, STRIP};

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

/// What a gate goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x times its logistic function.
    Silu,
    /// GELU by the hyperbolic tangent.
    GeluTanh,
}

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

/// How a multiplication is shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Strips of a block.
    pub strips: u32,
    /// Tokens of a block, in eights.
    pub eights: u32,
    /// Warps of a block, which share out the columns.
    pub warps: u32,
}

/// Tokens up to which a norm may be done on the way.
const FEW: usize = 8;
/// Bytes of shared memory that the normed tokens of a block may take.
const NORMED_BYTES: usize = 96 << 10;
/// Bytes of the sums of one strip for eight tokens in shared memory, and of the sums of squares.
const PART_BYTES: u32 = 8 * 20 * 4;
const SQUARES_BYTES: u32 = 32 * 4;

/// Whether [`Right::Normed`] is for so many tokens of so many columns. If not, the norm is a kernel of its own, which is then also
/// the faster way.
pub fn fuses_norm(tokens: usize, columns: usize) -> bool {
    tokens <= FEW && tokens * columns * 2 <= NORMED_BYTES
}

/// How to share out so many tokens and rows. A pure function: a captured graph always has the same shapes.
pub fn plan(tokens: usize, rows: usize, columns: usize, gated: bool) -> Plan {
    let (strips, tiles) = (rows.div_ceil(STRIP), columns / COLUMNS);
    match tokens {
        0..=8 => {
            // Two strips share what they read of the tokens. With few strips, each has a block: there are more of those.
            let per = if gated || (tokens > 2 && strips > 512) { 2 } else { 1 };
            let warps = if strips / per <= 160 { 16 } else { 8 };
            Plan { strips: per as u32, eights: 1, warps: share(warps, tiles, 2) }
        }
        9..=16 => Plan { strips: 2, eights: 2, warps: share(8, tiles, 2) },
        17..=32 => Plan { strips: 2, eights: 4, warps: share(8, tiles, 2) },
        _ => Plan { strips: 2, eights: 8, warps: share(4, tiles, 1) },
    }
}

/// At most `most` warps, each with `least` tiles where there are so many.
fn share(most: usize, tiles: usize, least: usize) -> u32 {
    most.min(tiles.div_ceil(least)).max(1) as u32
}

/// The kernels.
#[derive(Debug)]
pub struct Linear {
    kernels: BTreeMap<Variant, Kernel>,
    _module: Loaded,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Variant {
    format: u32,
    strips: u32,
    eights: u32,
    normed: bool,
}

impl Variant {
    fn all() -> impl Iterator<Item = Self> {
        let shapes = [(1, 1), (2, 1), (2, 2), (2, 4), (2, 8)];
        (0..3).flat_map(move |format| {
            shapes.into_iter().flat_map(move |(strips, eights)| {
                let normed = [false, true].into_iter().take(if eights == 1 { 2 } else { 1 });
                normed.map(move |normed| Self { format, strips, eights, normed })
            })
        })
    }

    fn name(self) -> String {
        let format = ["bf16", "int4", "fp8"][self.format as usize];
        let normed = if self.normed { "_normed" } else { "" };
        format!("linear_{format}_{}x{}{normed}", self.strips, self.eights)
    }
}

impl Linear {
    /// Loads them.
    pub fn load(pack: &Pack, device: &Device) -> Result<Self, KernelError> {
        let module = pack.load(module("linear"), device)?;
        let mut kernels = BTreeMap::new();
        for variant in Variant::all() {
            let name = CString::new(variant.name()).expect("a name without a zero byte");
            let kernel = module.kernel(&name)?;
            if variant.normed {
                kernel.allow_shared(shared(&Plan::widest(variant), NORMED_BYTES))?;
            }
            kernels.insert(variant, kernel);
        }
        Ok(Self { kernels, _module: module })
    }

    /// Puts a multiplication into a stream.
    ///
    /// # Safety
    /// The addresses reach as far as the call says until the work is done.
    ///
    /// # Panics
    /// If a norm on the way is asked for where [`fuses_norm`] says no.
    pub unsafe fn run(&self, stream: &Stream, call: &Call) -> Result<(), Failure> {
        let gated = matches!(call.out, Out::Gated { .. });
        let (rows, columns) = (call.matrix.rows as usize, call.matrix.columns as usize);
        // SAFETY: the caller's promise.
        unsafe { self.run_as(stream, call, plan(call.tokens, rows, columns, gated)) }
    }

    /// The same, shared out as is said: for measurements.
    ///
    /// # Safety
    /// As for [`Self::run`].
    ///
    /// # Panics
    /// As [`Self::run`], and if there is no kernel for the plan.
    pub unsafe fn run_as(&self, stream: &Stream, call: &Call, plan: Plan) -> Result<(), Failure> {
        if call.tokens == 0 {
            return Ok(());
        }
        let columns = call.matrix.columns as usize;
        let normed = matches!(call.right, Right::Normed { .. });
        assert!(!normed || fuses_norm(call.tokens, columns), "{} tokens normed", call.tokens);
        let variant = Variant {
            format: call.matrix.format,
            strips: plan.strips,
            eights: plan.eights,
            normed,
        };
        let kernel = self.kernels.get(&variant).unwrap_or_else(|| panic!("no kernel for {plan:?}"));
        let normed_bytes = if normed { call.tokens * columns * 2 } else { 0 };
        let strips = call.matrix.rows.div_ceil(STRIP as u32);
        let (each, warps) = shared_out(plan.warps, call.matrix.columns, call.matrix.group);
        let plan = Plan { warps, ..plan };
        let shape = Shape {
            grid: [strips.div_ceil(plan.strips), (call.tokens as u32).div_ceil(8 * plan.eights), 1],
            block: warps * 32,
            shared: shared(&plan, normed_bytes),
            overlaps: true,
        };
        // SAFETY: the caller's promise.
        unsafe { stream.launch(kernel, &shape, &arguments(call, each)) }
    }
}

impl Plan {
    fn widest(variant: Variant) -> Self {
        Self { strips: variant.strips, eights: variant.eights, warps: 16 }
    }
}

/// Bytes of shared memory of a block.
fn shared(plan: &Plan, normed_bytes: usize) -> u32 {
    let parts = plan.warps * plan.strips * plan.eights * PART_BYTES;
    parts + if normed_bytes > 0 { SQUARES_BYTES + normed_bytes as u32 } else { 0 }
}

/// Tiles of 64 columns for each warp, whole groups, and how many warps then have any.
fn shared_out(warps: u32, columns: u32, group: u32) -> (u32, u32) {
    let tiles = columns / COLUMNS as u32;
    let each = tiles.div_ceil(warps).next_multiple_of(group / COLUMNS as u32);
    (each, tiles.div_ceil(each))
}

fn arguments(call: &Call, each: u32) -> LinearArgs {
    let none = Ptr(0);
    let (right, right_stride, stream, norm, eps) = match call.right {
        Right::Bf16 { at, stride } => (at, stride, none, none, 0.0),
        Right::Normed { stream, weight, eps } => {
            (none, call.matrix.columns as usize, stream, weight, eps)
        }
    };
    let (epilogue, out, out_stride, activation) = match call.out {
        Out::Bf16 { at, stride } => (0, at, stride, 0),
        Out::F32 { at, stride } => (1, at, stride, 0),
        Out::Add { at, stride } => (2, at, stride, 0),
        Out::Gated { at, stride, activation } => {
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
        each,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_plan_has_a_kernel_and_fits_into_a_block() {
        let all: Vec<Variant> = Variant::all().collect();
        for tokens in 1..300 {
            for (rows, columns) in [(16, 64), (200, 576), (2048, 4096), (151_936, 2048)] {
                for gated in [false, true] {
                    let plan = plan(tokens, rows, columns, gated);
                    let Plan { strips, eights, warps } = plan;
                    let of = |normed| all.contains(&Variant { format: 1, strips, eights, normed });
                    assert!(of(false), "{tokens} tokens: {plan:?}");
                    assert!(!fuses_norm(tokens, columns) || of(true), "{tokens} tokens: {plan:?}");
                    assert!(!gated || strips % 2 == 0, "pairs of strips stay together");
                    assert!((1..=16).contains(&warps));
                    assert!(shared(&plan, 0) <= 48 << 10, "{plan:?}");
                }
            }
        }
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
