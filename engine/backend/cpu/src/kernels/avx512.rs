//! Kernels for AVX-512 with VNNI: one register holds a whole tile's column, and one instruction
//! multiplies and sums four columns of sixteen rows.

use std::arch::x86_64::*;

use super::entry::{ahead, scale_pointers};
use super::{Column, FloatKind, GROUP, IntRows, IntTile, LANES, Page, Scales};

int_entry!("avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c", [8, 4, 2, 1]);
float_entry!("avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c", 8);

attention!(
    "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c",
    __m512,
    16,
    4,
    |p| _mm512_loadu_ps(p),
    |p: *const u16| _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())),
    |p, x| _mm512_storeu_ps(p, x),
    |x| _mm512_set1_ps(x),
    |a, b, c| _mm512_fmadd_ps(a, b, c),
    |a, b| _mm512_mul_ps(a, b)
);

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
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
    let groups = rows.groups;
    let fifteen = _mm512_set1_epi8(15);
    let (scales, mins) = scale_pointers(&tile.scales);
    let mut total = [_mm512_setzero_ps(); N];
    for g in 0..groups {
        // SAFETY: every index below is within the lengths that `super::int_tile` checked:
        // `g < groups`, `first + t < tokens`.
        unsafe {
            let stored = |n: usize| _mm512_cvtph_ps(_mm256_loadu_si256(scales.add(n * 32).cast()));
            let float = |n: usize| _mm512_loadu_ps(scales.cast::<f32>().add(n * LANES));
            let scale = match (STORED, HALVES) {
                (true, _) => stored(if MINS { 2 * g } else { g }),
                (false, true) => float(2 * g),
                (false, false) => float(g),
            };
            let second = match (MINS, HALVES, STORED) {
                (true, _, true) => stored(2 * g + 1),
                (true, _, false) => _mm512_loadu_ps(mins.add(g * LANES)),
                (false, true, _) => float(2 * g + 1),
                (false, false, _) => scale,
            };
            let quants = tile.quants.as_ptr().add(g * if NIBBLES { 256 } else { 512 });
            let a = rows.q.as_ptr().add((first * groups + g) * 2 * GROUP).cast::<i32>();
            // Whole rows apart, so that the sums of all tokens stay in registers.
            let next = groups * 2 * GROUP / 4;
            let at = |t: usize| (first + t) * groups + g;
            let quad = |t: usize, n: usize| _mm512_set1_epi32(a.add(t * next + n).read_unaligned());
            let dots = |columns: std::ops::Range<usize>| {
                let mut high = [_mm512_setzero_si512(); N];
                let mut low = high;
                let mut column = |w: __m512i, n: usize| {
                    for t in 0..N {
                        high[t] = _mm512_dpbusd_epi32(high[t], w, quad(t, n));
                        low[t] = _mm512_dpbusd_epi32(low[t], w, quad(t, 8 + n));
                    }
                };
                if NIBBLES {
                    for line in 0..4 {
                        let both = _mm512_loadu_si512(quants.add(64 * line).cast());
                        ahead(quants.add(64 * line));
                        column(_mm512_and_si512(both, fifteen), 2 * line);
                        let upper = _mm512_and_si512(_mm512_srli_epi16::<4>(both), fifteen);
                        column(upper, 2 * line + 1);
                    }
                } else {
                    for n in columns {
                        ahead(quants.add(64 * n));
                        column(_mm512_loadu_si512(quants.add(64 * n).cast()), n);
                    }
                }
                for t in 0..N {
                    low[t] = _mm512_add_epi32(_mm512_slli_epi32::<8>(high[t]), low[t]);
                }
                low
            };
            if HALVES {
                for (half, scale) in [scale, second].into_iter().enumerate() {
                    let dots = dots(4 * half..4 * half + 4);
                    for t in 0..N {
                        let zero = tile.zero * *rows.sums.get_unchecked(2 * at(t) + half);
                        let dot = _mm512_sub_epi32(dots[t], _mm512_set1_epi32(zero));
                        let a_scale = _mm512_set1_ps(*rows.scales.get_unchecked(at(t)));
                        total[t] = scaled(total[t], dot, _mm512_mul_ps(scale, a_scale));
                    }
                }
                continue;
            }
            let dots = dots(0..8);
            for t in 0..N {
                let mut dot = dots[t];
                if !MINS {
                    let sums = rows.sums.as_ptr().add(2 * at(t));
                    let zero = tile.zero * (*sums + *sums.add(1));
                    dot = _mm512_sub_epi32(dot, _mm512_set1_epi32(zero));
                }
                let a_scale = _mm512_set1_ps(*rows.scales.get_unchecked(at(t)));
                total[t] = scaled(total[t], dot, _mm512_mul_ps(scale, a_scale));
                if MINS {
                    let offset = _mm512_set1_ps(*rows.offsets.get_unchecked(at(t)));
                    total[t] = _mm512_add_ps(total[t], _mm512_mul_ps(second, offset));
                }
            }
        }
    }
    for (t, total) in total.into_iter().enumerate() {
        // SAFETY: `first + t < tokens`, and a row has `LANES` outputs.
        unsafe { _mm512_storeu_ps(out.row_unchecked(first + t), total) };
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn scaled(total: __m512, dot: __m512i, scale: __m512) -> __m512 {
    _mm512_add_ps(total, _mm512_mul_ps(_mm512_cvtepi32_ps(dot), scale))
}

/// `KIND`: 0 is `F32`, 1 `F16`, 2 `BF16`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn float_block<const N: usize, const KIND: u8>(
    tile: &[u8],
    cols: usize,
    x: &[f32],
    first: usize,
    out: &mut Column<'_>,
) {
    let mut total = [_mm512_setzero_ps(); N];
    for c in 0..cols {
        // SAFETY: `c < cols` and `first + t < tokens`, within the lengths that
        // `super::float_tile` checked.
        unsafe {
            let w = match KIND {
                0 => _mm512_loadu_ps(tile.as_ptr().add(c * 64).cast()),
                1 => _mm512_cvtph_ps(_mm256_loadu_si256(tile.as_ptr().add(c * 32).cast())),
                _ => {
                    let short = _mm256_loadu_si256(tile.as_ptr().add(c * 32).cast());
                    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(short)))
                }
            };
            for (t, total) in total.iter_mut().enumerate() {
                let x = _mm512_set1_ps(*x.get_unchecked((first + t) * cols + c));
                *total = _mm512_fmadd_ps(w, x, *total);
            }
        }
    }
    for (t, total) in total.into_iter().enumerate() {
        // SAFETY: `first + t < tokens`, and a row has `LANES` outputs.
        unsafe { _mm512_storeu_ps(out.row_unchecked(first + t), total) };
    }
}
