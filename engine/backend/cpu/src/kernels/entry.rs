//! What the vector forms have in common: which variant of their `block` and `float_block` a tile
//! needs, and the walk over the tokens.

/// Defines `int_tile` and `float_tile` for the instructions `$features` over the module's
/// `block::<N, NIBBLES, MINS, HALVES>` and `float_block::<N, KIND>`. They walk over the tokens so
/// many at a time that a decoded group of weights serves them all from registers: the numbers in
/// the brackets, largest first.
///
/// A macro, because a generic function cannot be compiled for the instructions of its caller.
macro_rules! entry_points {
    ($features:literal, [$widest:literal $(, $narrower:literal)*]) => {
        /// # Safety
        /// The machine has the instructions, and the lengths are as `super::int_tile` checks.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn int_tile(tile: &IntTile<'_>, rows: &IntRows<'_>, out: &mut [f32]) {
            // SAFETY: handed on.
            unsafe {
                match (tile.nibbles, tile.mins.is_empty(), tile.halves) {
                    (true, true, _) => blocks::<true, false, false>(tile, rows, out),
                    (true, false, _) => blocks::<true, true, false>(tile, rows, out),
                    (false, true, false) => blocks::<false, false, false>(tile, rows, out),
                    (false, false, _) => blocks::<false, true, false>(tile, rows, out),
                    (false, true, true) => blocks::<false, false, true>(tile, rows, out),
                }
            }
        }

        #[target_feature(enable = $features)]
        unsafe fn blocks<const NIBBLES: bool, const MINS: bool, const HALVES: bool>(
            tile: &IntTile<'_>,
            rows: &IntRows<'_>,
            out: &mut [f32],
        ) {
            let tokens = out.len() / LANES;
            let mut first = 0;
            // SAFETY: `first + N <= tokens` in each call.
            unsafe {
                while tokens - first >= $widest {
                    block::<$widest, NIBBLES, MINS, HALVES>(tile, rows, first, out);
                    first += $widest;
                }
                $(
                    if tokens - first >= $narrower {
                        block::<$narrower, NIBBLES, MINS, HALVES>(tile, rows, first, out);
                        first += $narrower;
                    }
                )*
            }
            debug_assert_eq!(first, tokens);
        }

        /// # Safety
        /// The machine has the instructions, and the lengths are as `super::float_tile` checks.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn float_tile(
            kind: FloatKind,
            tile: &[u8],
            cols: usize,
            x: &[f32],
            out: &mut [f32],
        ) {
            let tokens = out.len() / LANES;
            let mut first = 0;
            while first < tokens {
                let wide = tokens - first >= $widest;
                // SAFETY: `first + N <= tokens` in each call.
                unsafe {
                    match (kind, wide) {
                        (FloatKind::F32, true) => float_block::<$widest, 0>(tile, cols, x, first, out),
                        (FloatKind::F32, false) => float_block::<1, 0>(tile, cols, x, first, out),
                        (FloatKind::F16, true) => float_block::<$widest, 1>(tile, cols, x, first, out),
                        (FloatKind::F16, false) => float_block::<1, 1>(tile, cols, x, first, out),
                        (FloatKind::BF16, true) => float_block::<$widest, 2>(tile, cols, x, first, out),
                        (FloatKind::BF16, false) => float_block::<1, 2>(tile, cols, x, first, out),
                    }
                }
                first += if wide { $widest } else { 1 };
            }
        }
    };
}
