//! The arithmetic that everything else waits for, in several forms: AVX-512 with VNNI, AVX2 with VNNI
//! and AVX2 with FMA alone for x86-64, NEON with `SDOT` or `USMMLA` for aarch64, and portable. Which one runs is decided
//! once, when a model is loaded.
//!
//! This module with its children and the team of threads are the only ones with `unsafe` code. Each
//! entry point checks the lengths that its kernels rely on.
//!
//! # One tile
//! A *tile* is [`LANES`] rows of a matrix, interleaved so that a vector register holds the same
//! columns of all of them; sixteen results grow side by side and nothing is summed across lanes.
//!
//! # The order of sums
//! An integer result is exact, so its order is free. Each group of 32 columns then adds
//! `float(sum) * (weight scale * activation scale)`, and a minimum where the format has one, to
//! its row's total, group by group, with separate multiplication and addition: every form gives
//! the same bits, whichever tokens share the batch. Float tiles add column by column; there the
//! vector forms fuse multiplication and addition, the portable one does not.
#![allow(unsafe_code)]

#[macro_use]
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod attend;
#[macro_use]
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod entry;
#[cfg(target_arch = "x86_64")]
#[macro_use]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx_vnni;
mod columns;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
mod vector;

pub(crate) use columns::{Column, Columns};
pub(crate) use vector::{
    add_scaled, exp_sum, floats_to_halves, gate_gelu, gate_silu, halves_to_floats, largest,
    quantize_row, sum_squares,
};

/// Rows in a tile.
pub(crate) const LANES: usize = 16;
/// Columns that share an activation scale.
pub(crate) const GROUP: usize = 32;

/// A form of the kernels that this machine can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Isa(Form);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "aarch64")]
    Dotprod,
    #[cfg(target_arch = "aarch64")]
    I8mm,
}

impl Isa {
    /// The fastest form that this machine can run. An [`Isa`] of a vector form exists only where
    /// the machine has the instructions: that is what makes calling the kernels sound.
    pub(crate) fn detect() -> Self {
        Self::available()[0]
    }

    /// Every form that this machine can run, fastest first.
    pub(crate) fn available() -> Vec<Self> {
        let mut forms = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni");
            if avx2 && avx512 {
                forms.push(Self(Form::Avx512));
            }
            if avx2 && is_x86_feature_detected!("avxvnni") {
                forms.push(Self(Form::AvxVnni));
            }
            if avx2 {
                forms.push(Self(Form::Avx2));
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            use std::arch::is_aarch64_feature_detected;
            let dotprod = is_aarch64_feature_detected!("dotprod");
            if dotprod && is_aarch64_feature_detected!("i8mm") {
                forms.push(Self(Form::I8mm));
            }
            if dotprod {
                forms.push(Self(Form::Dotprod));
            }
        }
        forms.push(Self(Form::Portable));
        forms
    }

    /// A name for the log.
    pub(crate) fn name(self) -> &'static str {
        match self.0 {
            Form::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Form::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Form::AvxVnni => "avx2-vnni",
            #[cfg(target_arch = "x86_64")]
            Form::Avx512 => "avx512-vnni",
            #[cfg(target_arch = "aarch64")]
            Form::Dotprod => "neon-dotprod",
            #[cfg(target_arch = "aarch64")]
            Form::I8mm => "neon-i8mm",
        }
    }
}

/// Sixteen quantized rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IntTile<'a> {
    /// Groups of 32 columns, each 256 bytes (nibbles) or 512.
    ///
    /// Nibbles: byte `64 j + 4 r + i` holds row `r`, column `8 j + i` low and column
    /// `8 j + 4 + i` high. Bytes: byte `64 j + 4 r + i` is row `r`, column `4 j + i`.
    pub(crate) quants: &'a [u8],
    pub(crate) scales: Scales<'a>,
    /// What stands for zero in `quants`; 0 where there are minima.
    pub(crate) zero: i32,
    /// Four-bit quants.
    pub(crate) nibbles: bool,
    /// A minimum for every group.
    pub(crate) mins: bool,
    /// A scale for every 16 columns.
    pub(crate) halves: bool,
}

/// A tile's scales and minima.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Scales<'a> {
    /// As most formats store them, half-precision: `[group][row]`, or `[group][scale, minimum][row]`.
    Stored(&'a [u8]),
    /// Computed for the occasion.
    Floats {
        /// `[group][row]`, or `[group][half][row]` with a scale for every 16 columns.
        scales: &'a [f32],
        /// `[group][row]`, or empty.
        mins: &'a [f32],
    },
}

/// Activations as signed numbers of two bytes, a scale per group: value `= scale * (256 high + low)`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IntRows<'a> {
    /// Groups in a row.
    pub(crate) groups: usize,
    /// `[token][group]`: 32 high bytes, then 32 low ones.
    pub(crate) q: &'a [i8],
    /// `[token][group]`.
    pub(crate) scales: &'a [f32],
    /// `[token][group][half]`: sums of 16 numbers.
    pub(crate) sums: &'a [i32],
    /// `[token][group]`: the scale times the sum of 32 numbers.
    pub(crate) offsets: &'a [f32],
}

impl IntRows<'_> {
    /// Some of the rows.
    pub(crate) fn part(&self, tokens: std::ops::Range<usize>) -> Self {
        let groups = tokens.start * self.groups..tokens.end * self.groups;
        Self {
            groups: self.groups,
            q: &self.q[2 * GROUP * groups.start..2 * GROUP * groups.end],
            scales: &self.scales[groups.clone()],
            sums: &self.sums[2 * groups.start..2 * groups.end],
            offsets: &self.offsets[groups],
        }
    }
}

/// How a float tile is stored: `[column][row]`, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FloatKind {
    F32,
    F16,
    BF16,
}

impl FloatKind {
    pub(crate) fn bytes(self) -> usize {
        match self {
            FloatKind::F32 => 4,
            FloatKind::F16 | FloatKind::BF16 => 2,
        }
    }
}

/// Multiplies one tile with every token: a row of `out` each.
pub(crate) fn int_tile(isa: Isa, tile: &IntTile<'_>, rows: &IntRows<'_>, out: &mut Column<'_>) {
    let groups = rows.groups;
    let tokens = out.rows();
    let minima = 1 + usize::from(tile.mins);
    assert_eq!(tile.quants.len(), groups * if tile.nibbles { 256 } else { 512 }, "quants");
    match tile.scales {
        Scales::Stored(halves) => {
            assert_eq!(halves.len(), groups * LANES * 2 * minima, "stored scales");
            assert!(!tile.halves, "no format stores these");
        }
        Scales::Floats { scales, mins } => {
            let halves = 1 + usize::from(tile.halves);
            assert_eq!(scales.len(), groups * LANES * halves, "scales");
            assert_eq!(mins.len(), groups * LANES * (minima - 1), "minima");
        }
    }
    assert!(!(tile.halves && (tile.nibbles || tile.mins)), "no format has these");
    assert!(!tile.mins || tile.zero == 0, "a minimum or a zero");
    assert_eq!(rows.q.len(), tokens * groups * 2 * GROUP, "activations");
    assert_eq!(rows.scales.len(), tokens * groups, "activation scales");
    assert_eq!(rows.sums.len(), tokens * groups * 2, "activation sums");
    assert_eq!(rows.offsets.len(), tokens * groups, "activation offsets");
    match isa.0 {
        Form::Portable => portable::int_tile(tile, rows, out),
        // SAFETY: `Isa` proves the instructions; the lengths were checked above.
        #[cfg(target_arch = "x86_64")]
        Form::Avx2 => unsafe { avx2::int_tile(tile, rows, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Form::AvxVnni => unsafe { avx_vnni::int_tile(tile, rows, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Form::Avx512 => unsafe { avx512::int_tile(tile, rows, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        Form::Dotprod => unsafe { neon::dotprod::int_tile(tile, rows, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        Form::I8mm => unsafe { neon::i8mm::int_tile(tile, rows, out) },
    }
}

/// Multiplies a float tile of `cols` columns with every token of `x[token][cols]`.
pub(crate) fn float_tile(
    isa: Isa,
    kind: FloatKind,
    tile: &[u8],
    cols: usize,
    x: &[f32],
    out: &mut Column<'_>,
) {
    assert_eq!(tile.len(), cols * LANES * kind.bytes(), "weights");
    assert_eq!(x.len(), out.rows() * cols, "activations");
    match isa.0 {
        Form::Portable => portable::float_tile(kind, tile, cols, x, out),
        // SAFETY: `Isa` proves the instructions; the lengths were checked above.
        #[cfg(target_arch = "x86_64")]
        Form::Avx2 | Form::AvxVnni => unsafe { avx2::float_tile(kind, tile, cols, x, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Form::Avx512 => unsafe { avx512::float_tile(kind, tile, cols, x, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        Form::Dotprod | Form::I8mm => unsafe { neon::float_tile(kind, tile, cols, x, out) },
    }
}

/// Keys or values as they are kept.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Page<'a> {
    Floats(&'a [f32]),
    /// Half-precision bits.
    Halves(&'a [u16]),
}

impl<'a> Page<'a> {
    fn len(self) -> usize {
        match self {
            Page::Floats(page) => page.len(),
            Page::Halves(page) => page.len(),
        }
    }

    /// One of its numbers.
    fn at(self, n: usize) -> f32 {
        match self {
            Page::Floats(page) => page[n],
            Page::Halves(page) => half::f16::from_bits(page[n]).to_f32(),
        }
    }

    /// Some of its numbers.
    pub(crate) fn part(self, range: std::ops::Range<usize>) -> Self {
        match self {
            Page::Floats(page) => Page::Floats(&page[range]),
            Page::Halves(page) => Page::Halves(&page[range]),
        }
    }

    /// As floats, converted into `spare` if need be.
    pub(crate) fn floats(self, isa: Isa, spare: &'a mut Vec<f32>) -> Self {
        let Page::Halves(page) = self else { return self };
        spare.resize(page.len(), 0.0);
        halves_to_floats(isa, page, spare);
        Page::Floats(spare)
    }
}

/// `N` queries `q[d][N]` against sixteen positions `k[d][lane]`: the sums over `d`, times `scale`,
/// go to `to[query * stride + lane]`. A query's sums do not depend on `N`.
pub(crate) fn dots<const N: usize>(
    isa: Isa,
    q: &[f32],
    k: Page<'_>,
    scale: f32,
    to: &mut [f32],
    stride: usize,
) {
    assert!(k.len().is_multiple_of(LANES), "whole positions");
    assert_eq!(q.len() / N, k.len() / LANES, "as many values in a query as in a key");
    assert!(N > 0 && stride >= LANES && to.len() >= (N - 1) * stride + LANES, "room");
    match isa.0 {
        Form::Portable => portable::dots::<N>(q, k, scale, to, stride),
        // SAFETY: `Isa` proves the instructions; the lengths were checked above.
        #[cfg(target_arch = "x86_64")]
        Form::Avx2 | Form::AvxVnni => unsafe { avx2::dots::<N>(q, k, scale, to, stride) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Form::Avx512 => unsafe { avx512::dots::<N>(q, k, scale, to, stride) },
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        Form::Dotprod | Form::I8mm => unsafe { neon::dots::<N>(q, k, scale, to, stride) },
    }
}

/// `N` rows `out[row][dim]` get the sum of `weights[row * stride + n] * values[n][dim]`, added in the
/// order of `n`. A row's sum does not depend on `N`.
pub(crate) fn weigh<const N: usize>(
    isa: Isa,
    out: &mut [f32],
    dim: usize,
    weights: &[f32],
    stride: usize,
    values: Page<'_>,
) {
    let count = values.len() / dim;
    assert_eq!(out.len(), N * dim, "rows");
    assert!(N > 0 && weights.len() >= (N - 1) * stride + count, "weights");
    match isa.0 {
        Form::Portable => portable::weigh::<N>(out, dim, weights, stride, values),
        // SAFETY: `Isa` proves the instructions; the lengths were checked above.
        #[cfg(target_arch = "x86_64")]
        Form::Avx2 | Form::AvxVnni => unsafe {
            avx2::weigh::<N>(out, dim, weights, stride, values)
        },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Form::Avx512 => unsafe { avx512::weigh::<N>(out, dim, weights, stride, values) },
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        Form::Dotprod | Form::I8mm => unsafe {
            neon::weigh::<N>(out, dim, weights, stride, values)
        },
    }
}

/// Bytes that begin on a cache line, so that no vector load straddles two.
#[derive(Debug, Default)]
pub(crate) struct Lines(Vec<Line>);

#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

impl Lines {
    /// At least `bytes` zeros, rounded up to whole lines.
    pub(crate) fn zeroed(bytes: usize) -> Self {
        Self(vec![Line([0; 64]); bytes.div_ceil(64)])
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: a `Line` is 64 initialised bytes without padding, `u8` has no alignment.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * 64) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; every bit pattern is a valid `Line`, and `self` is borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * 64) }
    }
}

#[cfg(test)]
mod tests;
