use super::*;

/// Numbers that look random, the same on every run.
fn noise(seed: u64, n: usize) -> impl Iterator<Item = u64> {
    (0..n as u64).map(move |i| {
        let mut z = (seed << 32 | i).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z ^ (z >> 27)
    })
}

fn floats(seed: u64, n: usize) -> Vec<f32> {
    noise(seed, n).map(|z| (z >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
}

#[test]
fn every_vector_form_gives_the_portable_bits_on_integer_tiles() {
    let groups = 5;
    for (nibbles, mins, zero, halves) in [
        (true, false, 8, false),
        (true, true, 0, false),
        (false, false, 128, false),
        (false, true, 0, false),
        (false, false, 32, true),
    ] {
        let bytes = groups * if nibbles { 256 } else { 512 };
        let quants: Vec<u8> = noise(1, bytes).map(|z| z as u8).collect();
        let scales = floats(2, groups * LANES * (1 + usize::from(halves)));
        let mins = if mins { floats(3, groups * LANES) } else { Vec::new() };
        let tile = IntTile { quants: &quants, scales: &scales, mins: &mins, zero, nibbles, halves };
        for tokens in 1..18 {
            let x = floats(4, tokens * groups * GROUP);
            let mut q = vec![0; x.len()];
            let mut a_scales = vec![0.0; tokens * groups];
            let mut sums = vec![0; tokens * groups * 2];
            let portable = Isa(Form::Portable);
            quantize_row(portable, &x, &mut q, &mut a_scales, &mut sums);
            // The extremes too: all weights and activations at their ends.
            q[..GROUP].fill(-127);
            sums[..2].fill(-127 * 16);
            let rows = IntRows { groups, q: &q, scales: &a_scales, sums: &sums };
            let mut expected = vec![0.0; tokens * LANES];
            int_tile(portable, &tile, &rows, &mut expected);
            for isa in Isa::available() {
                let mut out = vec![f32::NAN; tokens * LANES];
                int_tile(isa, &tile, &rows, &mut out);
                assert_eq!(out, expected, "{} with {tokens} tokens", isa.name());
            }
        }
    }
}

#[test]
fn every_vector_form_stays_close_to_the_portable_one_on_float_tiles() {
    let cols = 70;
    for kind in [FloatKind::F32, FloatKind::F16, FloatKind::BF16] {
        let tile: Vec<u8> = floats(5, cols * LANES)
            .into_iter()
            .flat_map(|w| match kind {
                FloatKind::F32 => w.to_le_bytes().to_vec(),
                FloatKind::F16 => half::f16::from_f32(w).to_le_bytes().to_vec(),
                FloatKind::BF16 => half::bf16::from_f32(w).to_le_bytes().to_vec(),
            })
            .collect();
        for tokens in [1, 3, 4, 8, 13] {
            let x = floats(6, tokens * cols);
            let mut expected = vec![0.0; tokens * LANES];
            float_tile(Isa(Form::Portable), kind, &tile, cols, &x, &mut expected);
            for isa in Isa::available() {
                let mut out = vec![f32::NAN; tokens * LANES];
                float_tile(isa, kind, &tile, cols, &x, &mut out);
                for (a, b) in expected.iter().zip(&out) {
                    assert!((a - b).abs() < 1e-4, "{} {kind:?}: {a} and {b}", isa.name());
                }
            }
        }
    }
}

#[test]
fn a_tokens_row_does_not_depend_on_how_many_share_the_tile() {
    let cols = 40;
    let tile: Vec<u8> = floats(7, cols * LANES).iter().flat_map(|w| w.to_le_bytes()).collect();
    let x = floats(8, 13 * cols);
    for isa in Isa::available() {
        let mut together = vec![0.0; 13 * LANES];
        float_tile(isa, FloatKind::F32, &tile, cols, &x, &mut together);
        for t in 0..13 {
            let mut alone = vec![0.0; LANES];
            float_tile(isa, FloatKind::F32, &tile, cols, &x[t * cols..][..cols], &mut alone);
            assert_eq!(alone, together[t * LANES..][..LANES], "{} token {t}", isa.name());
        }
    }
}

#[test]
fn quants_and_what_they_lost_add_up_to_the_row() {
    for isa in Isa::available() {
        let x = floats(9, 50);
        let (mut q, mut scales, mut sums) = (vec![0; 64], vec![0.0; 2], vec![0; 4]);
        quantize_row(isa, &x, &mut q, &mut scales, &mut sums);
        let mut lost = vec![0.0; 50];
        lost_by_rounding(isa, &x, &q, &scales, &mut lost);
        for (i, x) in x.iter().enumerate() {
            assert!(lost[i].abs() <= scales[i / 32] * 0.5001);
            assert!((scales[i / 32] * f32::from(q[i]) + lost[i] - x).abs() < 1e-6);
        }
        assert!(q[50..].iter().all(|q| *q == 0));
        assert_eq!(sums[0], q[..16].iter().map(|q| i32::from(*q)).sum::<i32>());
    }
}

#[test]
fn exponentials_are_right_to_a_few_parts_in_ten_million() {
    for isa in Isa::available() {
        let mut x: Vec<f32> = (0..1000).map(|i| -0.08 * i as f32).collect();
        let expected: Vec<f64> = x.iter().map(|x| f64::from(*x).exp()).collect();
        let sum = exp_sum(isa, &mut x, 0.0);
        for (a, b) in x.iter().zip(&expected) {
            assert!((f64::from(*a) / b - 1.0).abs() < 5e-7, "{}: {a} and {b}", isa.name());
        }
        assert!((f64::from(sum) / expected.iter().sum::<f64>() - 1.0).abs() < 1e-6);
    }
}

#[test]
fn strange_activations_do_not_panic() {
    for isa in Isa::available() {
        let mut x = vec![1.0; 64];
        (x[0], x[1], x[40], x[41]) = (f32::NAN, 1e-40, f32::INFINITY, f32::NEG_INFINITY);
        let (mut q, mut scales, mut sums) = (vec![0; 64], vec![0.0; 2], vec![0; 4]);
        quantize_row(isa, &x, &mut q, &mut scales, &mut sums);
    }
}
