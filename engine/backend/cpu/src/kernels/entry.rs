//! What the vector forms have in common: which variant of their `block` and `float_block` a tile
//! needs, and the walk over the tokens.

use super::Scales;

/// Defines `int_tile` for the instructions `$features` over the module's
/// `block::<N, NIBBLES, MINS, HALVES, STORED>`. It walks over the tokens so many at a time that a
/// decoded group of weights serves them all from registers: the numbers in the brackets, largest
/// first.
///
/// A macro, because a generic function cannot be compiled for the instructions of its caller.
macro_rules! int_entry {
    ($features:literal, [$widest:literal $(, $narrower:literal)*]) => {
        /// # Safety
        /// The machine has the instructions, and the lengths are as `super::int_tile` checks.
        #[target_feature(enable = $features)]
        pub(in crate::kernels) unsafe fn int_tile(tile: &IntTile<'_>, rows: &IntRows<'_>, out: &mut Column<'_>) {
            let stored = matches!(tile.scales, Scales::Stored(_));
            // SAFETY: handed on.
            unsafe {
                match (tile.nibbles, tile.mins, tile.halves, stored) {
                    (true, false, _, false) => blocks::<true, false, false, false>(tile, rows, out),
                    (true, false, _, true) => blocks::<true, false, false, true>(tile, rows, out),
                    (true, true, _, false) => blocks::<true, true, false, false>(tile, rows, out),
                    (true, true, _, true) => blocks::<true, true, false, true>(tile, rows, out),
                    (false, false, false, false) => blocks::<false, false, false, false>(tile, rows, out),
                    (false, false, false, true) => blocks::<false, false, false, true>(tile, rows, out),
                    (false, true, _, false) => blocks::<false, true, false, false>(tile, rows, out),
                    (false, true, _, true) => blocks::<false, true, false, true>(tile, rows, out),
                    (false, false, true, _) => blocks::<false, false, true, false>(tile, rows, out),
                }
            }
        }

        #[target_feature(enable = $features)]
        unsafe fn blocks<const NIBBLES: bool, const MINS: bool, const HALVES: bool, const STORED: bool>(
            tile: &IntTile<'_>,
            rows: &IntRows<'_>,
            out: &mut Column<'_>,
        ) {
            let tokens = out.rows();
            let mut first = 0;
            // SAFETY: `first + N <= tokens` in each call.
            unsafe {
                while tokens - first >= $widest {
                    block::<$widest, NIBBLES, MINS, HALVES, STORED>(tile, rows, first, out);
                    first += $widest;
                }
                $(
                    if tokens - first >= $narrower {
                        block::<$narrower, NIBBLES, MINS, HALVES, STORED>(tile, rows, first, out);
                        first += $narrower;
                    }
                )*
            }
            debug_assert_eq!(first, tokens);
        }
    };
}

/// Defines `float_tile` likewise, over `float_block::<N, KIND>`, for `$widest` tokens and for one.
macro_rules! float_entry {
    ($features:literal, $widest:literal) => {
        /// # Safety
        /// The machine has the instructions, and the lengths are as `super::float_tile` checks.
        #[target_feature(enable = $features)]
        pub(in crate::kernels) unsafe fn float_tile(
            kind: FloatKind,
            tile: &[u8],
            cols: usize,
            x: &[f32],
            out: &mut Column<'_>,
        ) {
            let tokens = out.rows();
            let mut first = 0;
            while first < tokens {
                let wide = tokens - first >= $widest;
                // SAFETY: `first + N <= tokens` in each call.
                unsafe {
                    match (kind, wide) {
                        (FloatKind::F32, true) => {
                            float_block::<$widest, 0>(tile, cols, x, first, out)
                        }
                        (FloatKind::F32, false) => float_block::<1, 0>(tile, cols, x, first, out),
                        (FloatKind::F16, true) => {
                            float_block::<$widest, 1>(tile, cols, x, first, out)
                        }
                        (FloatKind::F16, false) => float_block::<1, 1>(tile, cols, x, first, out),
                        (FloatKind::BF16, true) => {
                            float_block::<$widest, 2>(tile, cols, x, first, out)
                        }
                        (FloatKind::BF16, false) => float_block::<1, 2>(tile, cols, x, first, out),
                    }
                }
                first += if wide { $widest } else { 1 };
            }
        }
    };
}

/// Where a tile's scales begin, whichever form they have, and its minima.
pub(super) fn scale_pointers(scales: &Scales<'_>) -> (*const u8, *const f32) {
    match scales {
        Scales::Stored(halves) => (halves.as_ptr(), std::ptr::null()),
        Scales::Floats { scales, mins } => (scales.as_ptr().cast(), mins.as_ptr()),
    }
}

/// Asks for the weights that come after these: left alone, the processor waits for each line of them.
/// What lies behind a tile is the next one, and asking for what is not there does nothing.
#[inline]
pub(super) fn ahead(weights: *const u8) {
    const BYTES: usize = 4096;
    let address = weights.wrapping_add(BYTES);
    // SAFETY: nothing is read.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    // SAFETY: nothing is read.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!(
            "prfm pldl1keep, [{address}]",
            address = in(reg) address,
            options(readonly, nostack, preserves_flags)
        );
    }
}
