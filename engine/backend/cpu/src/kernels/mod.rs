//! The arithmetic that everything else waits for, in three forms: AVX-512 with VNNI, AVX2 with
//! FMA, and portable. Which one runs is decided once, when a model is loaded.
//!
//! This module and its children are the only ones with `unsafe` code. Each entry point checks the
//! lengths that its kernels rely on.
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

#[cfg(target_arch = "x86_64")]
#[macro_use]
mod entry;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
mod vector;

pub(crate) use vector::{
    add_scaled, dot_lanes, exp_sum, floats_to_halves, gate_gelu, gate_silu, halves_to_floats,
    lost_by_rounding, quantize_row, sum_squares,
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
    Avx512,
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
            if avx2 {
                forms.push(Self(Form::Avx2));
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
            Form::Avx512 => "avx512-vnni",
        }
    }
}

/// Sixteen quantized rows, their scales already floats.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IntTile<'a> {
    /// Groups of 32 columns, each 256 bytes (nibbles) or 512.
    ///
    /// Nibbles: byte `64 j + 4 r + i` holds row `r`, column `8 j + i` low and column
    /// `8 j + 4 + i` high. Bytes: byte `64 j + 4 r + i` is row `r`, column `4 j + i`.
    pub(crate) quants: &'a [u8],
    /// `[group][row]`, or `[group][half][row]` when `halves`.
    pub(crate) scales: &'a [f32],
    /// `[group][row]`, or empty.
    pub(crate) mins: &'a [f32],
    /// What stands for zero in `quants`.
    pub(crate) zero: i32,
    /// Four-bit quants.
    pub(crate) nibbles: bool,
    /// A scale for every 16 columns.
    pub(crate) halves: bool,
}

/// Activations as signed bytes, a scale per group: value `= scale * q`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IntRows<'a> {
    /// Groups in a row.
    pub(crate) groups: usize,
    /// `[token][group][32]`, from -127 to 127.
    pub(crate) q: &'a [i8],
    /// `[token][group]`.
    pub(crate) scales: &'a [f32],
    /// `[token][group][half]`: sums of 16 quants.
    pub(crate) sums: &'a [i32],
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

/// Multiplies one tile with every token: `out[token][row]`.
pub(crate) fn int_tile(isa: Isa, tile: &IntTile<'_>, rows: &IntRows<'_>, out: &mut [f32]) {
    let groups = rows.groups;
    let tokens = out.len() / LANES;
    let halves = 1 + usize::from(tile.halves);
    assert_eq!(out.len(), tokens * LANES, "whole rows of output");
    assert_eq!(tile.quants.len(), groups * if tile.nibbles { 256 } else { 512 }, "quants");
    assert_eq!(tile.scales.len(), groups * LANES * halves, "scales");
    assert!(tile.mins.is_empty() || tile.mins.len() == groups * LANES, "minima");
    assert!(!(tile.halves && (tile.nibbles || !tile.mins.is_empty())), "no format has these");
    assert_eq!(rows.q.len(), tokens * groups * GROUP, "activations");
    assert_eq!(rows.scales.len(), tokens * groups, "activation scales");
    assert_eq!(rows.sums.len(), tokens * groups * 2, "activation sums");
    match isa.0 {
        Form::Portable => portable::int_tile(tile, rows, out),
        // SAFETY: `Isa` proves the instructions; the lengths were checked above.
        #[cfg(target_arch = "x86_64")]
        Form::Avx2 => unsafe { avx2::int_tile(tile, rows, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Form::Avx512 => unsafe { avx512::int_tile(tile, rows, out) },
    }
}

/// Multiplies a float tile of `cols` columns with every token of `x[token][cols]`.
pub(crate) fn float_tile(
    isa: Isa,
    kind: FloatKind,
    tile: &[u8],
    cols: usize,
    x: &[f32],
    out: &mut [f32],
) {
    let tokens = out.len() / LANES;
    assert_eq!(out.len(), tokens * LANES, "whole rows of output");
    assert_eq!(tile.len(), cols * LANES * kind.bytes(), "weights");
    assert_eq!(x.len(), tokens * cols, "activations");
    match isa.0 {
        Form::Portable => portable::float_tile(kind, tile, cols, x, out),
        // SAFETY: `Isa` proves the instructions; the lengths were checked above.
        #[cfg(target_arch = "x86_64")]
        Form::Avx2 => unsafe { avx2::float_tile(kind, tile, cols, x, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Form::Avx512 => unsafe { avx512::float_tile(kind, tile, cols, x, out) },
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
