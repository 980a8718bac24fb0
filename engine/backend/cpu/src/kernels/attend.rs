//! What attention multiplies, for the vector forms: one body over registers of any width. The
//! portable form is in `vector`.

/// Defines `dots` and `weigh` for the instructions `$features` over registers of `$wide` floats,
/// `$strip` of which hold a row's values while others pass by.
///
/// A macro, because a generic function cannot be compiled for the instructions of its caller.
macro_rules! attention {
    (
        $features:literal, $register:ty, $wide:literal, $strip:literal,
        $load:expr, $store:expr, $splat:expr, $madd:expr, $mul:expr
    ) => {
        /// `N` queries `q[d][N]` against sixteen positions `k[d][lane]`: see `super::dots`.
        ///
        /// # Safety
        /// The machine has the instructions; the lengths are as `super::dots` checks.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn dots<const N: usize>(
            q: &[f32],
            k: &[f32],
            scale: f32,
            to: &mut [f32],
            stride: usize,
        ) {
            for side in 0..LANES / $wide {
                // SAFETY: within the lengths that `super::dots` checks.
                unsafe {
                    let mut total = [$splat(0.0); N];
                    for d in 0..k.len() / LANES {
                        let k = $load(k.as_ptr().add(d * LANES + side * $wide));
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
            values: &[f32],
        ) {
            let mut at = 0;
            // SAFETY: each strip is within a row.
            unsafe {
                while at + $strip * $wide <= dim {
                    strip::<N, $strip>(out, dim, at, weights, stride, values);
                    at += $strip * $wide;
                }
                while at + $wide <= dim {
                    strip::<N, 1>(out, dim, at, weights, stride, values);
                    at += $wide;
                }
            }
            for row in 0..N {
                for at in at..dim {
                    let out = &mut out[row * dim + at];
                    for (n, values) in values.chunks_exact(dim).enumerate() {
                        *out = weights[row * stride + n].mul_add(values[at], *out);
                    }
                }
            }
        }

        #[target_feature(enable = $features)]
        unsafe fn strip<const N: usize, const S: usize>(
            out: &mut [f32],
            dim: usize,
            at: usize,
            weights: &[f32],
            stride: usize,
            values: &[f32],
        ) {
            // SAFETY: within the lengths that `super::weigh` checks.
            unsafe {
                let mut total = [[$splat(0.0); S]; N];
                for (row, total) in total.iter_mut().enumerate() {
                    for (s, total) in total.iter_mut().enumerate() {
                        *total = $load(out.as_ptr().add(row * dim + at + s * $wide));
                    }
                }
                for n in 0..values.len() / dim {
                    let values = values.as_ptr().add(n * dim + at);
                    let mut value: [$register; S] = [$splat(0.0); S];
                    for (s, value) in value.iter_mut().enumerate() {
                        *value = $load(values.add(s * $wide));
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
