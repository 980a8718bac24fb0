//! Kernels for AVX2 with FMA: two registers of eight rows make a tile.

use std::arch::x86_64::*;

use super::entry::scale_pointers;
use super::{Column, FloatKind, GROUP, IntRows, IntTile, LANES, Page, Scales};

/// Rows in a register.
const WIDE: usize = 8;

entry_points!("avx2,fma,f16c", [4, 2, 1]);
attention!(
    "avx2,fma,f16c",
    __m256,
    8,
    2,
    |p| _mm256_loadu_ps(p),
    |p: *const u16| _mm256_cvtph_ps(_mm_loadu_si128(p.cast())),
    |p, x| _mm256_storeu_ps(p, x),
    |x| _mm256_set1_ps(x),
    |a, b, c| _mm256_fmadd_ps(a, b, c),
    |a, b| _mm256_mul_ps(a, b)
);

/// Tokens `first .. first + N`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
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
    for side in 0..2 {
        // SAFETY: handed on; `side` is 0 or 1.
        unsafe { half_block::<N, NIBBLES, MINS, HALVES, STORED>(tile, rows, first, side, out) };
    }
}

/// Rows `8 side .. 8 side + 8` with tokens `first .. first + N`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn half_block<
    const N: usize,
    const NIBBLES: bool,
    const MINS: bool,
    const HALVES: bool,
    const STORED: bool,
>(
    tile: &IntTile<'_>,
    rows: &IntRows<'_>,
    first: usize,
    side: usize,
    out: &mut Column<'_>,
) {
    let groups = rows.groups;
    let fifteen = _mm256_set1_epi8(15);
    let (scales, mins) = scale_pointers(&tile.scales);
    let mut total = [_mm256_setzero_ps(); N];
    for g in 0..groups {
        // SAFETY: every index below is within the lengths that `super::int_tile` checked:
        // `g < groups`, `first + t < tokens`, and a side is half of each 64-byte line.
        unsafe {
            let mut w = [_mm256_setzero_si256(); 8];
            if NIBBLES {
                let p = tile.quants.as_ptr().add(g * 256 + 32 * side);
                for j in 0..4 {
                    let both = _mm256_loadu_si256(p.add(64 * j).cast());
                    w[2 * j] = _mm256_and_si256(both, fifteen);
                    w[2 * j + 1] = _mm256_and_si256(_mm256_srli_epi16::<4>(both), fifteen);
                }
            } else {
                let p = tile.quants.as_ptr().add(g * 512 + 32 * side);
                for (j, w) in w.iter_mut().enumerate() {
                    *w = _mm256_loadu_si256(p.add(64 * j).cast());
                }
            }
            let stored =
                |n: usize| _mm256_cvtph_ps(_mm_loadu_si128(scales.add(n * 32 + 16 * side).cast()));
            let float =
                |n: usize| _mm256_loadu_ps(scales.cast::<f32>().add(n * LANES + WIDE * side));
            let scale = match (STORED, HALVES) {
                (true, _) => stored(if MINS { 2 * g } else { g }),
                (false, true) => float(2 * g),
                (false, false) => float(g),
            };
            let second = match (MINS, HALVES, STORED) {
                (true, _, true) => stored(2 * g + 1),
                (true, _, false) => _mm256_loadu_ps(mins.add(g * LANES + WIDE * side)),
                (false, true, _) => float(2 * g + 1),
                (false, false, _) => scale,
            };
            for (t, total) in total.iter_mut().enumerate() {
                let at = (first + t) * groups + g;
                let a = rows.q.as_ptr().add(at * 2 * GROUP).cast::<i32>();
                let a_scales = _mm256_set1_ps(*rows.scales.get_unchecked(at));
                let sum = |half: usize| *rows.sums.get_unchecked(2 * at + half);
                if HALVES {
                    for (half, scale) in [scale, second].into_iter().enumerate() {
                        let w = &w[4 * half..4 * half + 4];
                        let high = byte_dot(w, a.add(4 * half));
                        let low = byte_dot(w, a.add(8 + 4 * half));
                        let dot = whole(high, low, -tile.zero * sum(half));
                        *total = scaled(*total, dot, _mm256_mul_ps(scale, a_scales));
                    }
                    continue;
                }
                let (high, low) = match NIBBLES {
                    true => (nibble_dot(&w, a), nibble_dot(&w, a.add(8))),
                    false => (byte_dot(&w, a), byte_dot(&w, a.add(8))),
                };
                let start = if MINS { 0 } else { -tile.zero * (sum(0) + sum(1)) };
                let dot = whole(high, low, start);
                *total = scaled(*total, dot, _mm256_mul_ps(scale, a_scales));
                if MINS {
                    let offset = _mm256_set1_ps(*rows.offsets.get_unchecked(at));
                    *total = _mm256_add_ps(*total, _mm256_mul_ps(second, offset));
                }
            }
        }
    }
    for (t, total) in total.into_iter().enumerate() {
        // SAFETY: `first + t < tokens`, and a row has `LANES` outputs.
        unsafe { _mm256_storeu_ps(out.row_unchecked(first + t).add(WIDE * side), total) };
    }
}

/// `256 high + low + start`.
#[inline]
#[target_feature(enable = "avx2")]
fn whole(high: __m256i, low: __m256i, start: i32) -> __m256i {
    let both = _mm256_add_epi32(_mm256_slli_epi32::<8>(high), low);
    _mm256_add_epi32(both, _mm256_set1_epi32(start))
}

/// Eight rows of 32 four-bit columns. 16-bit sums hold: 8 * 2 * 15 * 128 = 30720.
///
/// # Safety
/// `a` points to eight groups of four activations.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn nibble_dot(w: &[__m256i; 8], a: *const i32) -> __m256i {
    let mut short = _mm256_setzero_si256();
    for (j, w) in w.iter().enumerate() {
        // SAFETY: `j < 8`.
        let quad = _mm256_set1_epi32(unsafe { a.add(j).read_unaligned() });
        short = _mm256_add_epi16(short, _mm256_maddubs_epi16(*w, quad));
    }
    _mm256_madd_epi16(short, _mm256_set1_epi16(1))
}

/// Eight rows of four columns for each register in `w`. Products of whole bytes overflow 16-bit
/// sums, so both sides widen first.
///
/// # Safety
/// `a` points to `w.len()` groups of four activations.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn byte_dot(w: &[__m256i], a: *const i32) -> __m256i {
    let (mut front, mut back) = (_mm256_setzero_si256(), _mm256_setzero_si256());
    for (j, w) in w.iter().enumerate() {
        // SAFETY: `j < w.len()`.
        let quad = _mm_set1_epi32(unsafe { a.add(j).read_unaligned() });
        let quad = _mm256_cvtepi8_epi16(quad);
        let first = _mm256_cvtepu8_epi16(_mm256_castsi256_si128(*w));
        let last = _mm256_cvtepu8_epi16(_mm256_extracti128_si256::<1>(*w));
        front = _mm256_add_epi32(front, _mm256_madd_epi16(first, quad));
        back = _mm256_add_epi32(back, _mm256_madd_epi16(last, quad));
    }
    // Rows 0 1 4 5 | 2 3 6 7 after the pairwise sum; put them in order.
    let mixed = _mm256_hadd_epi32(front, back);
    _mm256_permute4x64_epi64::<0b11_01_10_00>(mixed)
}

#[inline]
#[target_feature(enable = "avx2")]
fn scaled(total: __m256, dot: __m256i, scale: __m256) -> __m256 {
    _mm256_add_ps(total, _mm256_mul_ps(_mm256_cvtepi32_ps(dot), scale))
}

/// `KIND`: 0 is `F32`, 1 `F16`, 2 `BF16`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn float_block<const N: usize, const KIND: u8>(
    tile: &[u8],
    cols: usize,
    x: &[f32],
    first: usize,
    out: &mut Column<'_>,
) {
    let mut total = [[_mm256_setzero_ps(); 2]; N];
    for c in 0..cols {
        // SAFETY: `c < cols` and `first + t < tokens`, within the lengths that
        // `super::float_tile` checked.
        unsafe {
            let mut w = [_mm256_setzero_ps(); 2];
            for (side, w) in w.iter_mut().enumerate() {
                let at = c * LANES + WIDE * side;
                *w = match KIND {
                    0 => _mm256_loadu_ps(tile.as_ptr().add(at * 4).cast()),
                    1 => _mm256_cvtph_ps(_mm_loadu_si128(tile.as_ptr().add(at * 2).cast())),
                    _ => {
                        let short = _mm_loadu_si128(tile.as_ptr().add(at * 2).cast());
                        let long = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(short));
                        _mm256_castsi256_ps(long)
                    }
                };
            }
            for (t, total) in total.iter_mut().enumerate() {
                let x = _mm256_set1_ps(*x.get_unchecked((first + t) * cols + c));
                total[0] = _mm256_fmadd_ps(w[0], x, total[0]);
                total[1] = _mm256_fmadd_ps(w[1], x, total[1]);
            }
        }
    }
    for (t, [front, back]) in total.into_iter().enumerate() {
        // SAFETY: `first + t < tokens`, and a row has `LANES` outputs.
        unsafe {
            let out = out.row_unchecked(first + t);
            _mm256_storeu_ps(out, front);
            _mm256_storeu_ps(out.add(WIDE), back);
        }
    }
}
