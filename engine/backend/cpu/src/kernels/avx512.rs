//! Kernels for AVX-512 with VNNI: one register holds a whole tile's column, and one instruction
//! multiplies and sums four columns of sixteen rows.

use std::arch::x86_64::*;

use super::entry::scale_pointers;
use super::{Column, FloatKind, GROUP, IntRows, IntTile, LANES, Scales};

entry_points!("avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c", [8, 4, 2, 1]);

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
            let mut w = [_mm512_setzero_si512(); 8];
            if NIBBLES {
                let p = tile.quants.as_ptr().add(g * 256);
                for j in 0..4 {
                    let both = _mm512_loadu_si512(p.add(64 * j).cast());
                    w[2 * j] = _mm512_and_si512(both, fifteen);
                    w[2 * j + 1] = _mm512_and_si512(_mm512_srli_epi16::<4>(both), fifteen);
                }
            } else {
                let p = tile.quants.as_ptr().add(g * 512);
                for (j, w) in w.iter_mut().enumerate() {
                    *w = _mm512_loadu_si512(p.add(64 * j).cast());
                }
            }
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
            for (t, total) in total.iter_mut().enumerate() {
                let at = (first + t) * groups + g;
                let a = rows.q.as_ptr().add(at * 2 * GROUP).cast::<i32>();
                let a_scales = _mm512_set1_ps(*rows.scales.get_unchecked(at));
                let dot = |high: __m512i, low, n: usize| {
                    let quad = _mm512_set1_epi32(a.add(n).read_unaligned());
                    let next = _mm512_set1_epi32(a.add(8 + n).read_unaligned());
                    (_mm512_dpbusd_epi32(high, w[n], quad), _mm512_dpbusd_epi32(low, w[n], next))
                };
                let none = _mm512_setzero_si512();
                let sum = |half: usize| *rows.sums.get_unchecked(2 * at + half);
                if HALVES {
                    for (half, scale) in [scale, second].into_iter().enumerate() {
                        let start = _mm512_set1_epi32(-tile.zero * sum(half));
                        let (mut high, mut low) = (none, start);
                        for j in 0..4 {
                            (high, low) = dot(high, low, 4 * half + j);
                        }
                        *total = scaled(*total, whole(high, low), _mm512_mul_ps(scale, a_scales));
                    }
                    continue;
                }
                let start = match MINS {
                    true => none,
                    false => _mm512_set1_epi32(-tile.zero * (sum(0) + sum(1))),
                };
                let (mut high, mut low) = (none, start);
                for j in 0..8 {
                    (high, low) = dot(high, low, j);
                }
                *total = scaled(*total, whole(high, low), _mm512_mul_ps(scale, a_scales));
                if MINS {
                    let offset = _mm512_set1_ps(*rows.offsets.get_unchecked(at));
                    *total = _mm512_add_ps(*total, _mm512_mul_ps(second, offset));
                }
            }
        }
    }
    for (t, total) in total.into_iter().enumerate() {
        // SAFETY: `first + t < tokens`, and a row has `LANES` outputs.
        unsafe { _mm512_storeu_ps(out.row_unchecked(first + t), total) };
    }
}

/// `256 high + low`.
#[inline]
#[target_feature(enable = "avx512f")]
fn whole(high: __m512i, low: __m512i) -> __m512i {
    _mm512_add_epi32(_mm512_slli_epi32::<8>(high), low)
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
