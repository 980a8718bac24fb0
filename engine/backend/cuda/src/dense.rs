//! A matrix in bf16 times many tokens on Hopper, both from shared memory: `kernels/dense.cu`.

use std::ffi::c_void;

use cudarc::driver::sys;

use crate::device::{Asked, Failure, Ptr};
use crate::tiles::{COLUMNS, MatrixArgs, STRIP};

/// Rows of the matrix that a block may have, and how many stages of 64 columns it then has on their way.
pub(crate) const WIDTHS: [(u32, u32); 3] = [(256, 4), (192, 5), (128, 6)];
/// Tokens of a block, and of the two of a cluster.
const TOKENS: u32 = 128;
const PAIR: u32 = 2 * TOKENS;
/// Threads of a block: two groups that multiply, one that asks.
pub(crate) const THREADS: u32 = 384;
/// Bytes of shared memory in which a block's warps order their results, and for barriers and a beginning at a multiple of 1024.
const OWN_BYTES: u32 = 8 * 16 * 144;
const REST_BYTES: u32 = 1024 + 128;
/// Tiles of rows that blocks take before the next tokens come: both stay in the second cache.
const BESIDE: u32 = 8;

/// A tensor as the copy engine is told of it: `CUtensorMap`.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy)]
pub(crate) struct TensorMap([u64; 16]);

/// `DenseArgs` of `dense.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct DenseArgs {
    tokens: TensorMap,
    strips: TensorMap,
    pub(crate) bias: Ptr,
    pub(crate) out: Ptr,
    count: u32,
    rows: u32,
    chunks: u32,
    pub(crate) out_stride: u32,
    pub(crate) epilogue: u32,
    pub(crate) activation: u32,
    pub(crate) turned: u32,
    beside: u32,
}

/// `TurnTokensArgs` of `dense.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct TurnTokensArgs {
    pub(crate) from: Ptr,
    pub(crate) pick: Ptr,
    pub(crate) to: Ptr,
    pub(crate) count: u32,
    pub(crate) stride: u32,
    pub(crate) columns: u32,
}

/// Bytes of shared memory of a block.
pub(crate) fn shared_bytes(width: u32) -> u32 {
    let stages = WIDTHS.iter().find(|(rows, _)| *rows == width).map_or(0, |(_, stages)| *stages);
    stages * (TOKENS + width) * 128 + OWN_BYTES + REST_BYTES
}

/// Blocks of a launch, an even number: as many as have something to do, at most one for each multiprocessor.
pub(crate) fn blocks(rows: u32, tokens: u32, width: u32, processors: u32) -> u32 {
    2 * (rows.div_ceil(width) * tokens.div_ceil(PAIR)).min(processors / 2)
}

/// The width that should be done first, and when, in the clocks of `many` of `linear.rs`: about what was measured.
pub(crate) fn best(
    (rows, columns): (u32, u32),
    tokens: u32,
    processors: u32,
) -> Option<(u32, u64)> {
    let clocks = |width: u32| {
        let items = rows.div_ceil(width) * tokens.div_ceil(PAIR);
        let one = 2500 + columns / COLUMNS as u32 * (170 + width * 170 / 64);
        2000 + u64::from(items.div_ceil((processors / 2).max(1))) * u64::from(one)
    };
    WIDTHS.iter().map(|(width, _)| (*width, clocks(*width))).min_by_key(|(_, clocks)| *clocks)
}

impl DenseArgs {
    /// `tokens` rows of the matrix's columns, turned, lie at `right`, `stride` values apart. Where results go is for the caller to say.
    pub(crate) fn new(
        matrix: &MatrixArgs,
        (right, stride): (Ptr, u32),
        tokens: u32,
        width: u32,
    ) -> Result<Self, Failure> {
        let MatrixArgs { tiles, rows, columns, strip_bytes, .. } = *matrix;
        let tokens_map = Tensor {
            at: right,
            kind: sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            sizes: [columns, tokens],
            step: u64::from(stride) * 2,
            piece: [COLUMNS as u32, TOKENS],
            swizzle: sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        };
        let strips_map = Tensor {
            at: tiles,
            kind: sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT64,
            sizes: [(strip_bytes / 8) as u32, rows.div_ceil(STRIP as u32)],
            step: strip_bytes,
            // A chunk of 64 columns; half of the block's strips.
            piece: [256, width / STRIP as u32 / 2],
            swizzle: sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
        };
        Ok(Self {
            tokens: tokens_map.map()?,
            strips: strips_map.map()?,
            bias: Ptr(0),
            out: Ptr(0),
            count: tokens,
            rows,
            chunks: columns / COLUMNS as u32,
            out_stride: 0,
            epilogue: 0,
            activation: 0,
            turned: 0,
            beside: BESIDE,
        })
    }
}

/// Rows of values, and the pieces of them that are copied at once. What is beyond them comes as zeros.
struct Tensor {
    at: Ptr,
    kind: sys::CUtensorMapDataType,
    /// Values of a row, rows.
    sizes: [u32; 2],
    /// Bytes from row to row, a multiple of 16.
    step: u64,
    /// Values, rows.
    piece: [u32; 2],
    swizzle: sys::CUtensorMapSwizzle,
}

impl Tensor {
    fn map(&self) -> Result<TensorMap, Failure> {
        let mut map = TensorMap([0; 16]);
        let sizes = self.sizes.map(u64::from);
        // SAFETY: the map has the room and the alignment that it must have, the arrays are as long as the rank says, and the address is
        // written down, not read.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                (&raw mut map).cast(),
                self.kind,
                2,
                self.at.0 as *mut c_void,
                sizes.as_ptr(),
                &raw const self.step,
                self.piece.as_ptr(),
                [1, 1].as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                self.swizzle,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .asked(|| format!("for a map of {:?} values in pieces of {:?}", self.sizes, self.piece))?;
        Ok(map)
    }
}
