//! Kernels for AVX-512 with VNNI: one register holds a whole tile's column, and one instruction
//! multiplies and sums four columns of sixteen rows.

use std::arch::x86_64::*;

use super::{FloatKind, GROUP, IntRows, IntTile, LANES};

entry_points!("avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c", [8, 4, 2, 1]);

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn block<const N: usize, const NIBBLES: bool, const MINS: bool, const HALVES: bool>(
    tile: &IntTile<'_>,
    rows: &IntRows<'_>,
    first: usize,
    out: &mut [f32],
) {
    let groups = rows.groups;
    let fifteen = _mm512_set1_epi8(15);
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
            let halves = if HALVES { 2 } else { 1 };
            let scales = tile.scales.as_ptr().add(g * LANES * halves);
            let scale = _mm512_loadu_ps(scales);
            let min = match MINS {
                true => _mm512_loadu_ps(tile.mins.as_ptr().add(g * LANES)),
                false => scale,
            };
            for (t, total) in total.iter_mut().enumerate() {
                let at = (first + t) * groups + g;
                let a = rows.q.as_ptr().add(at * GROUP).cast::<i32>();
                let a_scale = *rows.scales.get_unchecked(at);
                let low = *rows.sums.get_unchecked(2 * at);
                let high = *rows.sums.get_unchecked(2 * at + 1);
                let mut even = _mm512_set1_epi32(-tile.zero * low);
                let mut odd = _mm512_set1_epi32(-tile.zero * high);
                for j in 0..4 {
                    let quad = |j: usize| _mm512_set1_epi32(a.add(j).read_unaligned());
                    even = _mm512_dpbusd_epi32(even, w[j], quad(j));
                    odd = _mm512_dpbusd_epi32(odd, w[4 + j], quad(4 + j));
                }
                let a_scales = _mm512_set1_ps(a_scale);
                if HALVES {
                    let second = _mm512_loadu_ps(scales.add(LANES));
                    *total = scaled(*total, even, _mm512_mul_ps(scale, a_scales));
                    *total = scaled(*total, odd, _mm512_mul_ps(second, a_scales));
                } else {
                    let dot = _mm512_add_epi32(even, odd);
                    *total = scaled(*total, dot, _mm512_mul_ps(scale, a_scales));
                }
                if MINS {
                    let sum = _mm512_set1_ps(a_scale * (low + high) as f32);
                    *total = _mm512_add_ps(*total, _mm512_mul_ps(min, sum));
                }
            }
        }
    }
    for (t, total) in total.into_iter().enumerate() {
        // SAFETY: `first + t < tokens`, and a token has `LANES` outputs.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr().add((first + t) * LANES), total) };
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
    out: &mut [f32],
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
        // SAFETY: `first + t < tokens`, and a token has `LANES` outputs.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr().add((first + t) * LANES), total) };
    }
}
