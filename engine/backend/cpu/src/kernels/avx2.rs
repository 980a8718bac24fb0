//! Kernels for AVX2 with FMA: two registers of eight rows make a tile.

use std::arch::x86_64::*;

use super::entry::{ahead, scale_pointers};
use super::{Column, FloatKind, GROUP, IntRows, IntTile, LANES, Page, Scales};

/// Rows in a register.
pub(super) const WIDE: usize = 8;

/// Defines `block` for the instructions `$features` over the module's `products::<N, NIBBLES>`, which
/// multiplies eight rows of some columns with `N` tokens.
macro_rules! half_tiles {
    ($features:literal) => {
        /// Tokens `first .. first + N`.
        #[inline]
        #[target_feature(enable = $features)]
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
            for side in 0..LANES / WIDE {
                // SAFETY: handed on; `side` is 0 or 1.
                unsafe { half::<N, NIBBLES, MINS, HALVES, STORED>(tile, rows, first, side, out) };
            }
        }

        /// Rows `8 side .. 8 side + 8` with tokens `first .. first + N`.
        #[target_feature(enable = $features)]
        unsafe fn half<
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
            let (scales, mins) = scale_pointers(&tile.scales);
            let mut total = [_mm256_setzero_ps(); N];
            for g in 0..groups {
                // SAFETY: every index below is within the lengths that `super::int_tile` checked:
                // `g < groups`, `first + t < tokens`, and a side is half of each 64-byte line.
                unsafe {
                    let stored = |n: usize| {
                        _mm256_cvtph_ps(_mm_loadu_si128(scales.add(n * 32 + 16 * side).cast()))
                    };
                    let float = |n: usize| {
                        _mm256_loadu_ps(scales.cast::<f32>().add(n * LANES + WIDE * side))
                    };
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
                    let bytes = if NIBBLES { 256 } else { 512 };
                    let quants = tile.quants.as_ptr().add(g * bytes + 32 * side);
                    let a = rows.q.as_ptr().add((first * groups + g) * 2 * GROUP).cast::<i32>();
                    // Whole rows apart, so that the sums of all tokens stay in registers.
                    let next = groups * 2 * GROUP / 4;
                    let at = |t: usize| (first + t) * groups + g;
                    if HALVES {
                        for (half, scale) in [scale, second].into_iter().enumerate() {
                            let dots = products::<N, NIBBLES>(quants, a, next, 4 * half, 4);
                            for t in 0..N {
                                let zero = tile.zero * *rows.sums.get_unchecked(2 * at(t) + half);
                                let dot = _mm256_sub_epi32(dots[t], _mm256_set1_epi32(zero));
                                let a_scale = _mm256_set1_ps(*rows.scales.get_unchecked(at(t)));
                                total[t] = scaled(total[t], dot, _mm256_mul_ps(scale, a_scale));
                            }
                        }
                        continue;
                    }
                    let dots = products::<N, NIBBLES>(quants, a, next, 0, 8);
                    for t in 0..N {
                        let mut dot = dots[t];
                        if !MINS {
                            let sums = rows.sums.as_ptr().add(2 * at(t));
                            let zero = tile.zero * (*sums + *sums.add(1));
                            dot = _mm256_sub_epi32(dot, _mm256_set1_epi32(zero));
                        }
                        let a_scale = _mm256_set1_ps(*rows.scales.get_unchecked(at(t)));
                        total[t] = scaled(total[t], dot, _mm256_mul_ps(scale, a_scale));
                        if MINS {
                            let offset = _mm256_set1_ps(*rows.offsets.get_unchecked(at(t)));
                            total[t] = _mm256_add_ps(total[t], _mm256_mul_ps(second, offset));
                        }
                    }
                }
            }
            for (t, total) in total.into_iter().enumerate() {
                // SAFETY: `first + t < tokens`, and a row has `LANES` outputs.
                unsafe { _mm256_storeu_ps(out.row_unchecked(first + t).add(WIDE * side), total) };
            }
        }

        #[inline]
        #[target_feature(enable = $features)]
        fn scaled(total: __m256, dot: __m256i, scale: __m256) -> __m256 {
            _mm256_add_ps(total, _mm256_mul_ps(_mm256_cvtepi32_ps(dot), scale))
        }
    };
}

int_entry!("avx2,fma,f16c", [4, 2, 1]);
float_entry!("avx2,fma,f16c", 4);
half_tiles!("avx2,fma,f16c");
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

/// Eight rows of `4 many` columns, from `4 first` on, with `N` tokens that are `next` apart:
/// `256 high + low` of each.
///
/// # Safety
/// There are such weights and such tokens.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn products<const N: usize, const NIBBLES: bool>(
    quants: *const u8,
    a: *const i32,
    next: usize,
    first: usize,
    many: usize,
) -> [__m256i; N] {
    // SAFETY: handed on; the low bytes lie behind the 32 high ones.
    unsafe {
        let (high, mut low) = match NIBBLES {
            true => nibble_dots::<N>(quants, a, next),
            false => (
                byte_dots::<N>(quants, a, next, first, many),
                byte_dots::<N>(quants, a.add(8), next, first, many),
            ),
        };
        for (low, high) in low.iter_mut().zip(high) {
            *low = _mm256_add_epi32(_mm256_slli_epi32::<8>(high), *low);
        }
        low
    }
}

/// Eight rows of 32 four-bit columns. 16-bit sums hold: 8 * 2 * 15 * 128 = 30720.
///
/// # Safety
/// As for [`products`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn nibble_dots<const N: usize>(
    quants: *const u8,
    a: *const i32,
    next: usize,
) -> ([__m256i; N], [__m256i; N]) {
    let fifteen = _mm256_set1_epi8(15);
    let mut high = [_mm256_setzero_si256(); N];
    let mut low = high;
    let mut column = |w: __m256i, n: usize| {
        for t in 0..N {
            // SAFETY: handed on.
            let quad =
                |n: usize| _mm256_set1_epi32(unsafe { a.add(t * next + n).read_unaligned() });
            high[t] = _mm256_add_epi16(high[t], _mm256_maddubs_epi16(w, quad(n)));
            low[t] = _mm256_add_epi16(low[t], _mm256_maddubs_epi16(w, quad(8 + n)));
        }
    };
    for line in 0..4 {
        // SAFETY: handed on.
        let both = unsafe { _mm256_loadu_si256(quants.add(64 * line).cast()) };
        ahead(quants.wrapping_add(64 * line));
        column(_mm256_and_si256(both, fifteen), 2 * line);
        column(_mm256_and_si256(_mm256_srli_epi16::<4>(both), fifteen), 2 * line + 1);
    }
    let ones = _mm256_set1_epi16(1);
    for t in 0..N {
        high[t] = _mm256_madd_epi16(high[t], ones);
        low[t] = _mm256_madd_epi16(low[t], ones);
    }
    (high, low)
}

/// Eight rows of some byte columns. Products of whole bytes overflow 16-bit sums, so both sides
/// widen first.
///
/// # Safety
/// As for [`products`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn byte_dots<const N: usize>(
    quants: *const u8,
    a: *const i32,
    next: usize,
    first: usize,
    many: usize,
) -> [__m256i; N] {
    let mut front = [_mm256_setzero_si256(); N];
    let mut back = front;
    for n in first..first + many {
        // SAFETY: handed on.
        let w = unsafe { _mm256_loadu_si256(quants.add(64 * n).cast()) };
        ahead(quants.wrapping_add(64 * n));
        let lower = _mm256_cvtepu8_epi16(_mm256_castsi256_si128(w));
        let upper = _mm256_cvtepu8_epi16(_mm256_extracti128_si256::<1>(w));
        for t in 0..N {
            // SAFETY: handed on.
            let quad = _mm_set1_epi32(unsafe { a.add(t * next + n).read_unaligned() });
            let quad = _mm256_cvtepi8_epi16(quad);
            front[t] = _mm256_add_epi32(front[t], _mm256_madd_epi16(lower, quad));
            back[t] = _mm256_add_epi32(back[t], _mm256_madd_epi16(upper, quad));
        }
    }
    for (front, back) in front.iter_mut().zip(back) {
        // Rows 0 1 4 5 | 2 3 6 7 after the pairwise sum; put them in order.
        let mixed = _mm256_hadd_epi32(*front, back);
        *front = _mm256_permute4x64_epi64::<0b11_01_10_00>(mixed);
    }
    front
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
