//! Kernels for aarch64: four registers make a tile's column. Every such machine has NEON; the
//! instructions that multiply bytes came later, in two steps, and each has its form here.
//!
//! `SDOT` and `USMMLA` are written as assembly, because the compiler's own names for them are not
//! stable.

use std::arch::aarch64::*;
use std::arch::asm;

use super::entry::scale_pointers;
use super::{Column, FloatKind, GROUP, IntRows, IntTile, LANES, Page, Scales};

/// Rows in a register of sums, four columns each in a register of weights.
const WIDE: usize = 4;

float_entry!("neon", 8);
attention!(
    "neon",
    float32x4_t,
    4,
    4,
    |p| vld1q_f32(p),
    |p: *const u16| vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))),
    |p, x| vst1q_f32(p, x),
    |x| vdupq_n_f32(x),
    |a, b, c| vfmaq_f32(c, a, b),
    |a, b| vmulq_f32(a, b)
);

/// For machines with `SDOT`: four signed products summed, for four rows.
pub(super) mod dotprod {
    use super::*;

    int_entry!("neon,dotprod", [8, 4, 2, 1]);

    /// Tokens `first .. first + N`.
    #[target_feature(enable = "neon,dotprod")]
    unsafe fn block<
        const N: usize,
        const NIBBLES: bool,
        const MINS: bool,
        const HALVES: bool,
        const STORED: bool,
    >(
        tile: &IntTile<'_>,
        rows: &IntRows<'_>,
        first: usize,
        out: &mut Column<'_>,
    ) {
        // Whole bytes have no sign and `SDOT` wants one: it gets 128 less, and the zero makes up.
        let zero = if NIBBLES { tile.zero } else { tile.zero - 128 };
        for quarter in 0..LANES / WIDE {
            let mut total = [vdupq_n_f32(0.0); N];
            for g in 0..rows.groups {
                // SAFETY: every index below is within the lengths that `super::int_tile` checked:
                // `g < groups`, `first + t < tokens`, `quarter < 4`.
                unsafe {
                    let mut w = weights::<NIBBLES>(tile, g, quarter);
                    if !NIBBLES {
                        let top = vdupq_n_u8(128);
                        w.iter_mut().for_each(|w| *w = veorq_u8(*w, top));
                    }
                    let w = w.map(|w| vreinterpretq_s8_u8(w));
                    let (scale, second) = scales::<MINS, HALVES, STORED>(tile, g, quarter);
                    for (t, total) in total.iter_mut().enumerate() {
                        let at = (first + t) * rows.groups + g;
                        let a = rows.q.as_ptr().add(at * 2 * GROUP);
                        let a: [int8x16_t; 4] = std::array::from_fn(|n| vld1q_s8(a.add(16 * n)));
                        let none = vdupq_n_s32(0);
                        let half = |n: usize| {
                            let (mut high, mut low) = (none, none);
                            high = sdot::<0>(high, w[4 * n], a[n]);
                            low = sdot::<0>(low, w[4 * n], a[2 + n]);
                            high = sdot::<1>(high, w[4 * n + 1], a[n]);
                            low = sdot::<1>(low, w[4 * n + 1], a[2 + n]);
                            high = sdot::<2>(high, w[4 * n + 2], a[n]);
                            low = sdot::<2>(low, w[4 * n + 2], a[2 + n]);
                            high = sdot::<3>(high, w[4 * n + 3], a[n]);
                            low = sdot::<3>(low, w[4 * n + 3], a[2 + n]);
                            vaddq_s32(vshlq_n_s32::<8>(high), low)
                        };
                        let halves = [half(0), half(1)];
                        *total = grown::<MINS, HALVES>(
                            *total, halves, zero, rows, at, scale, second, !NIBBLES,
                        );
                    }
                }
            }
            for (t, total) in total.into_iter().enumerate() {
                // SAFETY: `first + t < tokens`, and a row has `LANES` outputs.
                unsafe { vst1q_f32(out.row_unchecked(first + t).add(WIDE * quarter), total) };
            }
        }
    }

    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    fn sdot<const LANE: i32>(mut sum: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
        // SAFETY: it reads and writes registers; the feature is enabled.
        unsafe {
            asm!(
                "sdot {sum:v}.4s, {w:v}.16b, {a:v}.4b[{lane}]",
                sum = inout(vreg) sum, w = in(vreg) w, a = in(vreg) a, lane = const LANE,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        sum
    }
}

/// For machines with `USMMLA`: eight products summed, for two rows with the high and the low bytes
/// of a token at once.
pub(super) mod i8mm {
    use super::*;

    int_entry!("neon,dotprod,i8mm", [8, 4, 2, 1]);

    /// Tokens `first .. first + N`.
    #[target_feature(enable = "neon,dotprod,i8mm")]
    unsafe fn block<
        const N: usize,
        const NIBBLES: bool,
        const MINS: bool,
        const HALVES: bool,
        const STORED: bool,
    >(
        tile: &IntTile<'_>,
        rows: &IntRows<'_>,
        first: usize,
        out: &mut Column<'_>,
    ) {
        for quarter in 0..LANES / WIDE {
            let mut total = [vdupq_n_f32(0.0); N];
            for g in 0..rows.groups {
                // SAFETY: every index below is within the lengths that `super::int_tile` checked:
                // `g < groups`, `first + t < tokens`, `quarter < 4`.
                unsafe {
                    let w = weights::<NIBBLES>(tile, g, quarter);
                    // Eight columns of rows 0 and 1, and of rows 2 and 3.
                    let pairs: [[uint8x16_t; 2]; 4] = std::array::from_fn(|n| {
                        let (a, b) =
                            (vreinterpretq_u32_u8(w[2 * n]), vreinterpretq_u32_u8(w[2 * n + 1]));
                        [
                            vreinterpretq_u8_u32(vzip1q_u32(a, b)),
                            vreinterpretq_u8_u32(vzip2q_u32(a, b)),
                        ]
                    });
                    let (scale, second) = scales::<MINS, HALVES, STORED>(tile, g, quarter);
                    for (t, total) in total.iter_mut().enumerate() {
                        let at = (first + t) * rows.groups + g;
                        let a = rows.q.as_ptr().add(at * 2 * GROUP);
                        let a: [int64x2_t; 4] =
                            std::array::from_fn(|n| vreinterpretq_s64_s8(vld1q_s8(a.add(16 * n))));
                        let half = |n: usize| {
                            // Eight high bytes and the eight low ones of the same columns.
                            let front = vreinterpretq_s8_s64(vzip1q_s64(a[n], a[2 + n]));
                            let back = vreinterpretq_s8_s64(vzip2q_s64(a[n], a[2 + n]));
                            let none = vdupq_n_s32(0);
                            let [first, second] = [0, 1].map(|pair| {
                                let sum = usmmla(none, pairs[2 * n][pair], front);
                                usmmla(sum, pairs[2 * n + 1][pair], back)
                            });
                            let high = vuzp1q_s32(first, second);
                            let low = vuzp2q_s32(first, second);
                            vaddq_s32(vshlq_n_s32::<8>(high), low)
                        };
                        let halves = [half(0), half(1)];
                        *total = grown::<MINS, HALVES>(
                            *total, halves, tile.zero, rows, at, scale, second, false,
                        );
                    }
                }
            }
            for (t, total) in total.into_iter().enumerate() {
                // SAFETY: `first + t < tokens`, and a row has `LANES` outputs.
                unsafe { vst1q_f32(out.row_unchecked(first + t).add(WIDE * quarter), total) };
            }
        }
    }

    #[inline]
    #[target_feature(enable = "neon,dotprod,i8mm")]
    fn usmmla(mut sum: int32x4_t, w: uint8x16_t, a: int8x16_t) -> int32x4_t {
        // SAFETY: it reads and writes registers; the feature is enabled.
        unsafe {
            asm!(
                "usmmla {sum:v}.4s, {w:v}.16b, {a:v}.16b",
                sum = inout(vreg) sum, w = in(vreg) w, a = in(vreg) a,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        sum
    }
}

/// A group's weights of four rows: eight times four columns.
///
/// # Safety
/// There is such a group, and `quarter < 4`.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn weights<const NIBBLES: bool>(
    tile: &IntTile<'_>,
    g: usize,
    quarter: usize,
) -> [uint8x16_t; 8] {
    // SAFETY: a group has four or eight lines of 64 bytes, a quarter is 16 of them.
    unsafe {
        if NIBBLES {
            let p = tile.quants.as_ptr().add(g * 256 + 16 * quarter);
            std::array::from_fn(|n| {
                let both = vld1q_u8(p.add(64 * (n / 2)));
                match n % 2 {
                    0 => vandq_u8(both, vdupq_n_u8(15)),
                    _ => vshrq_n_u8::<4>(both),
                }
            })
        } else {
            let p = tile.quants.as_ptr().add(g * 512 + 16 * quarter);
            std::array::from_fn(|n| vld1q_u8(p.add(64 * n)))
        }
    }
}

/// A group's scales of four rows; their minima, or the scales of its second half.
///
/// # Safety
/// There is such a group, and `quarter < 4`.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn scales<const MINS: bool, const HALVES: bool, const STORED: bool>(
    tile: &IntTile<'_>,
    g: usize,
    quarter: usize,
) -> (float32x4_t, float32x4_t) {
    let (scales, mins) = scale_pointers(&tile.scales);
    // SAFETY: within the lengths that `super::int_tile` checked.
    unsafe {
        let stored = |n: usize| {
            let halves = vld1_u16(scales.cast::<u16>().add(n * LANES + WIDE * quarter));
            vcvt_f32_f16(vreinterpret_f16_u16(halves))
        };
        let float = |n: usize| vld1q_f32(scales.cast::<f32>().add(n * LANES + WIDE * quarter));
        match (STORED, MINS, HALVES) {
            (true, true, _) => (stored(2 * g), stored(2 * g + 1)),
            (true, false, _) => (stored(g), vdupq_n_f32(0.0)),
            (false, _, true) => (float(2 * g), float(2 * g + 1)),
            (false, true, false) => (float(g), vld1q_f32(mins.add(g * LANES + WIDE * quarter))),
            (false, false, false) => (float(g), vdupq_n_f32(0.0)),
        }
    }
}

/// A token's totals with what a group adds. `shifted` says that `zero` counts although there are
/// minima.
///
/// # Safety
/// `at` is a token's group.
#[inline]
#[target_feature(enable = "neon")]
#[allow(clippy::too_many_arguments)] // Registers; a struct would only rename them.
unsafe fn grown<const MINS: bool, const HALVES: bool>(
    mut total: float32x4_t,
    halves: [int32x4_t; 2],
    zero: i32,
    rows: &IntRows<'_>,
    at: usize,
    scale: float32x4_t,
    second: float32x4_t,
    shifted: bool,
) -> float32x4_t {
    // SAFETY: within the lengths that `super::int_tile` checked.
    let (a_scale, offset, sums) = unsafe {
        let sums = [2 * at, 2 * at + 1].map(|at| *rows.sums.get_unchecked(at));
        (*rows.scales.get_unchecked(at), *rows.offsets.get_unchecked(at), sums)
    };
    // Multiplied and added apart: fused, the bits would differ from the other forms'.
    let scaled = |total: float32x4_t, dot: int32x4_t, scale: float32x4_t| {
        vaddq_f32(total, vmulq_f32(vcvtq_f32_s32(dot), vmulq_n_f32(scale, a_scale)))
    };
    let without = |dot: int32x4_t, sum: i32| match MINS && !shifted {
        true => dot,
        false => vaddq_s32(dot, vdupq_n_s32(-zero * sum)),
    };
    if HALVES {
        total = scaled(total, without(halves[0], sums[0]), scale);
        return scaled(total, without(halves[1], sums[1]), second);
    }
    let dot = without(vaddq_s32(halves[0], halves[1]), sums[0] + sums[1]);
    total = scaled(total, dot, scale);
    match MINS {
        true => vaddq_f32(total, vmulq_n_f32(second, offset)),
        false => total,
    }
}

/// `KIND`: 0 is `F32`, 1 `F16`, 2 `BF16`.
///
/// # Safety
/// `first + N` tokens are there.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn float_block<const N: usize, const KIND: u8>(
    tile: &[u8],
    cols: usize,
    x: &[f32],
    first: usize,
    out: &mut Column<'_>,
) {
    for quarter in 0..LANES / WIDE {
        let mut total = [vdupq_n_f32(0.0); N];
        for c in 0..cols {
            // SAFETY: `c < cols` and `first + t < tokens`, within the lengths that
            // `super::float_tile` checked.
            unsafe {
                let at = c * LANES + WIDE * quarter;
                let w = match KIND {
                    0 => vld1q_f32(tile.as_ptr().cast::<f32>().add(at)),
                    1 => {
                        let halves = vld1_u16(tile.as_ptr().cast::<u16>().add(at));
                        vcvt_f32_f16(vreinterpret_f16_u16(halves))
                    }
                    _ => {
                        let short = vld1_u16(tile.as_ptr().cast::<u16>().add(at));
                        vreinterpretq_f32_u32(vshll_n_u16::<16>(short))
                    }
                };
                for (t, total) in total.iter_mut().enumerate() {
                    *total = vfmaq_n_f32(*total, w, *x.get_unchecked((first + t) * cols + c));
                }
            }
        }
        for (t, total) in total.into_iter().enumerate() {
            // SAFETY: `first + t < tokens`, and a row has `LANES` outputs.
            unsafe { vst1q_f32(out.row_unchecked(first + t).add(WIDE * quarter), total) };
        }
    }
}
