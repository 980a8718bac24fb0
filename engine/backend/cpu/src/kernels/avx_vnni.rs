//! Integer tiles for machines that have AVX2's registers and VNNI's multiplication: most PCs since
//! 2021. Everything else there is AVX2's.

use std::arch::x86_64::*;

use super::avx2::WIDE;
use super::entry::{ahead, scale_pointers};
use super::{Column, GROUP, IntRows, IntTile, LANES, Scales};

int_entry!("avx2,fma,f16c,avxvnni", [4, 2, 1]);
half_tiles!("avx2,fma,f16c,avxvnni");

/// As `avx2::products`.
///
/// # Safety
/// There are such weights and such tokens.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
unsafe fn products<const N: usize, const NIBBLES: bool>(
    quants: *const u8,
    a: *const i32,
    next: usize,
    first: usize,
    many: usize,
) -> [__m256i; N] {
    let fifteen = _mm256_set1_epi8(15);
    let mut high = [_mm256_setzero_si256(); N];
    let mut low = high;
    let mut column = |w: __m256i, n: usize| {
        for t in 0..N {
            // SAFETY: handed on.
            let quad =
                |n: usize| _mm256_set1_epi32(unsafe { a.add(t * next + n).read_unaligned() });
            high[t] = _mm256_dpbusd_avx_epi32(high[t], w, quad(n));
            low[t] = _mm256_dpbusd_avx_epi32(low[t], w, quad(8 + n));
        }
    };
    // SAFETY: handed on.
    let line = |n: usize| unsafe { _mm256_loadu_si256(quants.add(64 * n).cast()) };
    if NIBBLES {
        for n in 0..4 {
            let both = line(n);
            ahead(quants.wrapping_add(64 * n));
            column(_mm256_and_si256(both, fifteen), 2 * n);
            column(_mm256_and_si256(_mm256_srli_epi16::<4>(both), fifteen), 2 * n + 1);
        }
    } else {
        for n in first..first + many {
            ahead(quants.wrapping_add(64 * n));
            column(line(n), n);
        }
    }
    for (low, high) in low.iter_mut().zip(high) {
        *low = _mm256_add_epi32(_mm256_slli_epi32::<8>(high), *low);
    }
    low
}
