//! What attention multiplies, for the vector forms: one body over registers of any width. The
//! portable form is in `vector`.

/// Defines `dots` and `weigh` for the instructions `$features` over registers of `$wide` floats,
/// `$strip` of which hold a row's values while others pass by.
///
/// A macro, because a generic function cannot be compiled for the instructions of its caller.
macro_rules! attention {
    (
        $features:literal, $register:ty, $wide:literal, $strip:literal,
        $load:expr, $load_halves:expr, $store:expr, $splat:expr, $madd:expr, $mul:expr
    ) => {
        /// So many numbers of a page, `at` from its start.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn load<const HALVES: bool>(page: *const u8, at: usize) -> $register {
            // SAFETY: handed on.
            unsafe {
                match HALVES {
                    true => $load_halves(page.cast::<u16>().add(at)),
                    false => $load(page.cast::<f32>().add(at)),
                }
            }
        }

        /// `N` queries `q[d][N]` against sixteen positions `k[d][lane]`: see `super::dots`.
        ///
        /// # Safety
        /// The machine has the instructions; the lengths are as `super::dots` checks.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn dots<const N: usize>(
            q: &[f32],
            keys: Page<'_>,
            scale: f32,
            to: &mut [f32],
            stride: usize,
        ) {
            // SAFETY: handed on.
            unsafe {
                match keys {
                    Page::Floats(k) => dots_of::<N, false>(q, k.as_ptr().cast(), scale, to, stride),
                    Page::Halves(k) => dots_of::<N, true>(q, k.as_ptr().cast(), scale, to, stride),
                }
            }
        }

        #[target_feature(enable = $features)]
        unsafe fn dots_of<const N: usize, const HALVES: bool>(
            q: &[f32],
            keys: *const u8,
            scale: f32,
            to: &mut [f32],
            stride: usize,
        ) {
            for side in 0..LANES / $wide {
                // SAFETY: within the lengths that `super::dots` checks.
                unsafe {
                    let mut total = [$splat(0.0); N];
                    for d in 0..q.len() / N {
                        let k = load::<HALVES>(keys, d * LANES + side * $wide);
                        let q = q.as_ptr().add(d * N);
                        for (n, total) in total.iter_mut().enumerate() {
                            *total = $madd($splat(*q.add(n)), k, *total);
                        }
                    }
                    for (n, total) in total.into_iter().enumerate() {
                        let to = to.as_mut_ptr().add(n * stride + side * $wide);
                        $store(to, $mul(total, $splat(scale)));
                    }
                }
            }
        }

        /// `N` rows and their weighted values: see `super::weigh`.
        ///
        /// # Safety
        /// The machine has the instructions; the lengths are as `super::weigh` checks.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn weigh<const N: usize>(
            out: &mut [f32],
            dim: usize,
            weights: &[f32],
            stride: usize,
            values: Page<'_>,
        ) {
            let count = values.len() / dim;
            let mut at = 0;
            // SAFETY: each strip is within a row.
            unsafe {
                match values {
                    Page::Floats(values) => {
                        let values = values.as_ptr().cast();
                        at += strips::<N, false>(out, dim, weights, stride, values, count);
                    }
                    Page::Halves(values) => {
                        let values = values.as_ptr().cast();
                        at += strips::<N, true>(out, dim, weights, stride, values, count);
                    }
                }
            }
            for row in 0..N {
                for at in at..dim {
                    let out = &mut out[row * dim + at];
                    for n in 0..count {
                        *out = weights[row * stride + n].mul_add(values.at(n * dim + at), *out);
                    }
                }
            }
        }

        /// As many columns as whole registers hold; says how many.
        #[target_feature(enable = $features)]
        unsafe fn strips<const N: usize, const HALVES: bool>(
            out: &mut [f32],
            dim: usize,
            weights: &[f32],
            stride: usize,
            values: *const u8,
            count: usize,
        ) -> usize {
            let mut at = 0;
            // SAFETY: each strip is within a row.
            unsafe {
                while at + $strip * $wide <= dim {
                    strip::<N, $strip, HALVES>(out, dim, at, weights, stride, values, count);
                    at += $strip * $wide;
                }
                while at + $wide <= dim {
                    strip::<N, 1, HALVES>(out, dim, at, weights, stride, values, count);
                    at += $wide;
                }
            }
            at
        }

        #[target_feature(enable = $features)]
        unsafe fn strip<const N: usize, const S: usize, const HALVES: bool>(
            out: &mut [f32],
            dim: usize,
            at: usize,
            weights: &[f32],
            stride: usize,
            values: *const u8,
            count: usize,
        ) {
            // SAFETY: within the lengths that `super::weigh` checks.
            unsafe {
                let mut total = [[$splat(0.0); S]; N];
                for (row, total) in total.iter_mut().enumerate() {
                    for (s, total) in total.iter_mut().enumerate() {
                        *total = $load(out.as_ptr().add(row * dim + at + s * $wide));
                    }
                }
                for n in 0..count {
                    let mut value: [$register; S] = [$splat(0.0); S];
                    for (s, value) in value.iter_mut().enumerate() {
                        *value = load::<HALVES>(values, n * dim + at + s * $wide);
                    }
                    for (row, total) in total.iter_mut().enumerate() {
                        let weight = $splat(*weights.get_unchecked(row * stride + n));
                        for (total, value) in total.iter_mut().zip(&value) {
                            *total = $madd(weight, *value, *total);
                        }
                    }
                }
                for (row, total) in total.iter().enumerate() {
                    for (s, total) in total.iter().enumerate() {
                        $store(out.as_mut_ptr().add(row * dim + at + s * $wide), *total);
                    }
                }
            }
        }
    };
}
