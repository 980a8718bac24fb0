//! Weight matrices as the kernels take them. `kernels/tiles.cuh` says how they lie, and reads what is written here.

use std::sync::Arc;

use half::{bf16, f16};
use polder_model::drawn::Stored;
use polder_model::{Format, Model, Tensor};

use crate::device::{Buffer, Device, Failure, Ptr};

/// Rows of a strip.
pub const STRIP: usize = 16;
/// Columns are a multiple of this.
pub const COLUMNS: usize = 64;

/// How a matrix's values are kept on the card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TileFormat {
    /// As they are, rounded where they were finer.
    Bf16,
    /// Four bits with a scale and a zero for each row and group of columns.
    Int4 {
        /// 64 or 128.
        group: usize,
    },
    /// Eight bits (e4m3) with a scale for each row and 64 columns.
    Fp8,
}

impl TileFormat {
    /// What a tensor is kept as. Formats of ggml, floats, and groups that are no multiple of 64 columns become bf16.
    pub fn of(model: &Model, tensor: &Tensor) -> Self {
        let group = model.group_of(tensor).filter(|group| tensor.cols.is_multiple_of(*group));
        match (tensor.format, group) {
            (Format::F8E4M3, _) => Self::Fp8,
            (_, Some(group)) if group.is_multiple_of(128) => Self::Int4 { group: 128 },
            (_, Some(group)) if group.is_multiple_of(64) => Self::Int4 { group: 64 },
            _ => Self::Bf16,
        }
    }

    /// What matrices that are drawn are kept as; none where no kernel takes their groups.
    pub fn drawn(stored: Stored) -> Option<Self> {
        match stored {
            Stored::Bf16 => Some(Self::Bf16),
            Stored::Awq { group } if group.is_multiple_of(128) => Some(Self::Int4 { group: 128 }),
            Stored::Awq { group } if group.is_multiple_of(64) => Some(Self::Int4 { group: 64 }),
            Stored::Awq { .. } => None,
        }
    }

    /// Columns of a chunk.
    pub fn group(self) -> usize {
        match self {
            Self::Bf16 | Self::Fp8 => 64,
            Self::Int4 { group } => group,
        }
    }

    /// Bytes of one chunk of a strip.
    pub fn chunk_bytes(self) -> usize {
        match self {
            Self::Bf16 => 2048,
            Self::Int4 { group } => group * 8 + 64,
            Self::Fp8 => 1024 + 64,
        }
    }

    /// Bytes of a strip.
    pub fn strip_bytes(self, columns: usize) -> usize {
        columns.div_ceil(self.group()) * self.chunk_bytes()
    }

    /// As the kernels number it.
    pub fn number(self) -> u32 {
        match self {
            Self::Bf16 => 0,
            Self::Int4 { .. } => 1,
            Self::Fp8 => 2,
        }
    }
}

/// A matrix as kernels take it: `Matrix` of `tiles.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MatrixArgs {
    /// The first strip.
    pub tiles: Ptr,
    /// True rows.
    pub rows: u32,
    /// Columns, a multiple of 64.
    pub columns: u32,
    /// [`TileFormat::number`].
    pub format: u32,
    /// [`TileFormat::group`].
    pub group: u32,
    /// Bytes of a strip.
    pub strip_bytes: u64,
    /// Bytes of all strips: from one expert to the next.
    pub matrix_bytes: u64,
}

/// One matrix or several alike (experts), on the card.
#[derive(Debug)]
pub struct Matrix {
    tiles: Arc<Buffer<u8>>,
    /// True rows of each.
    pub rows: usize,
    /// Columns of each.
    pub columns: usize,
    /// How values are kept.
    pub format: TileFormat,
    /// How many.
    pub count: usize,
}

impl Matrix {
    /// Takes `count` packed matrices, end to end.
    ///
    /// # Panics
    /// If the bytes are not theirs.
    pub fn new(
        device: &Device,
        packed: &[u8],
        (rows, columns): (usize, usize),
        format: TileFormat,
        count: usize,
    ) -> Result<Self, Failure> {
        assert_eq!(packed.len(), packed_bytes(rows, columns, format) * count, "packed matrices");
        let tiles = Arc::new(device.buffer_of(packed)?);
        Ok(Self { tiles, rows, columns, format, count })
    }

    /// Takes what lies on the card already.
    pub(crate) fn of(
        tiles: Arc<Buffer<u8>>,
        (rows, columns): (usize, usize),
        format: TileFormat,
        count: usize,
    ) -> Self {
        Self { tiles, rows, columns, format, count }
    }

    /// As kernels take it.
    pub fn args(&self) -> MatrixArgs {
        MatrixArgs {
            tiles: self.tiles.at(),
            rows: u32::try_from(self.rows).expect("rows of a checked model"),
            columns: u32::try_from(self.columns).expect("columns of a checked model"),
            format: self.format.number(),
            group: u32::try_from(self.format.group()).expect("64 or 128"),
            strip_bytes: self.format.strip_bytes(self.columns) as u64,
            matrix_bytes: packed_bytes(self.rows, self.columns, self.format) as u64,
        }
    }

    /// Bytes on the card.
    pub fn bytes(&self) -> usize {
        self.tiles.len()
    }
}

/// Bytes of a packed matrix.
pub fn packed_bytes(rows: usize, columns: usize, format: TileFormat) -> usize {
    rows.div_ceil(STRIP) * format.strip_bytes(columns)
}

/// Sixteen rows before they are packed, row after row.
#[derive(Debug, Clone, PartialEq)]
pub enum Rows {
    /// Their values.
    Values(Vec<f32>),
    /// Four bits of each; scales and zeros of each row's groups.
    Grouped {
        /// `[16][columns]`
        q: Vec<u8>,
        /// `[16][columns / group]`
        scales: Vec<f32>,
        /// `[16][columns / group]`
        zeros: Vec<u8>,
        /// Columns of a group as they are given: a multiple of the format's.
        group: usize,
    },
    /// Bytes of e4m3, and for each row and 64 columns a scale.
    Bytes {
        /// `[16][columns]`
        bytes: Vec<u8>,
        /// `[16][columns / 64]`
        scales: Vec<f32>,
    },
}

/// The row of a chunk in bf16, and the first of the eight columns, that piece `n` of 16 bytes has: see `tiles.cuh`.
pub(crate) fn bf16_piece(n: usize) -> (usize, usize) {
    let (eight, half, g) = (n / 64, n / 32 % 2, n / 4 % 8);
    let t = (n % 4) ^ (g / 2);
    (eight * 8 + g, 16 * t + 8 * half)
}

/// The columns of a chunk of 64 that a lane feeds to step `j` of the tensor cores, in the order of its registers, each with its
/// row: see `tiles.cuh`.
fn fed(lane: usize, j: usize) -> [(usize, usize); 8] {
    let (g, column) = (lane / 4, lane % 4 * 16 + 4 * j);
    [
        (g, column),
        (g, column + 1),
        (g + 8, column),
        (g + 8, column + 1),
        (g, column + 2),
        (g, column + 3),
        (g + 8, column + 2),
        (g + 8, column + 3),
    ]
}

/// Packs a strip.
///
/// # Panics
/// If a length is not what the columns ask for.
pub fn pack_strip(rows: &Rows, columns: usize, format: TileFormat, out: &mut [u8]) {
    assert!(columns.is_multiple_of(COLUMNS), "{columns} columns");
    assert_eq!(out.len(), format.strip_bytes(columns), "bytes of a strip");
    match (format, rows) {
        (TileFormat::Bf16, Rows::Values(values)) => {
            assert_eq!(values.len(), STRIP * columns, "values of a strip");
            for (at, piece) in out.chunks_exact_mut(16).enumerate() {
                let (row, column) = bf16_piece(at % 128);
                let from = row * columns + at / 128 * COLUMNS + column;
                for (value, to) in values[from..].iter().zip(piece.chunks_exact_mut(2)) {
                    to.copy_from_slice(&bf16::from_f32(*value).to_le_bytes());
                }
            }
        }
        (TileFormat::Int4 { group }, Rows::Grouped { q, scales, zeros, group: given }) => {
            assert_eq!(q.len(), STRIP * columns, "values of a strip");
            assert!(given.is_multiple_of(group), "groups of {given} as groups of {group}");
            for (n, chunk) in out.chunks_exact_mut(format.chunk_bytes()).enumerate() {
                let (words, about) = chunk.split_at_mut(group * 8);
                for (at, word) in words.chunks_exact_mut(4).enumerate() {
                    let (j, lane, unit) = (at % 4, at / 4 % 32, at / 128);
                    // A pair's first value in the low half of the word, its second one in the high half.
                    let bits = fed(lane, j).into_iter().enumerate().fold(
                        0_u32,
                        |bits, (i, (row, column))| {
                            let at = row * columns + n * group + unit * COLUMNS + column;
                            // Beyond the last column, where a group is not whole.
                            let value = if n * group + unit * COLUMNS + column < columns {
                                q[at]
                            } else {
                                0
                            };
                            bits | u32::from(value) << (i / 2 * 4 + i % 2 * 16)
                        },
                    );
                    word.copy_from_slice(&bits.to_le_bytes());
                }
                for (row, about) in about.chunks_exact_mut(4).enumerate() {
                    let at = row * (columns / given) + n * group / given;
                    let zero = bf16::from_f32(128.0 + f32::from(zeros[at]));
                    about[..2].copy_from_slice(&f16::from_f32(scales[at]).to_le_bytes());
                    about[2..].copy_from_slice(&zero.to_le_bytes());
                }
            }
        }
        (TileFormat::Fp8, Rows::Bytes { bytes, scales }) => {
            assert_eq!(bytes.len(), STRIP * columns, "values of a strip");
            for (n, chunk) in out.chunks_exact_mut(format.chunk_bytes()).enumerate() {
                let (words, about) = chunk.split_at_mut(1024);
                for (at, word) in words.chunks_exact_mut(8).enumerate() {
                    let (half, lane, load) = (at % 2, at / 2 % 32, at / 64);
                    let places = fed(lane, load * 2 + half);
                    for ((row, column), to) in places.into_iter().zip(word) {
                        *to = bytes[row * columns + n * COLUMNS + column];
                    }
                }
                for (row, about) in about.chunks_exact_mut(4).enumerate() {
                    let scale = scales[row * (columns / COLUMNS) + n];
                    about.copy_from_slice(&scale.to_le_bytes());
                }
            }
        }
        _ => panic!("rows that are not kept as {format:?}"),
    }
}
