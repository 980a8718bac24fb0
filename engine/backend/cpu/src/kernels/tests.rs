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
fn the_fastest_form_of_the_machine_is_chosen() {
    let names: Vec<_> = Isa::available().iter().map(|isa| isa.name()).collect();
    assert_eq!(names.last(), Some(&"portable"));
    // `make test-aarch64` knows what its emulated processors can do.
    if let Ok(expected) = std::env::var("POLDER_EXPECTED_KERNELS") {
        assert_eq!(Isa::detect().name(), expected);
    }
}

/// Every row of a matrix sixteen columns wide.
fn on_all(out: &mut [f32], work: impl FnOnce(&mut Column<'_>)) {
    let rows = out.len() / LANES;
    work(&mut Columns::new(out, LANES).column(0, 0, rows));
}

#[test]
fn every_vector_form_gives_the_portable_bits_on_integer_tiles() {
    let groups = 5;
    for (nibbles, mins, zero, halves, stored) in [
        (true, false, 8, false, true),
        (true, false, 8, false, false),
        (true, true, 0, false, true),
        (true, true, 0, false, false),
        (false, false, 128, false, true),
        (false, false, 128, false, false),
        (false, true, 0, false, true),
        (false, true, 0, false, false),
        (false, false, 32, true, false),
    ] {
        let bytes = groups * if nibbles { 256 } else { 512 };
        let mut quants: Vec<u8> = noise(1, bytes).map(|z| z as u8).collect();
        // The extremes too: all weights and activations at their ends.
        quants[..bytes / groups].fill(255);
        let scales = floats(2, groups * LANES * (1 + usize::from(halves)));
        let minima = if mins { floats(3, groups * LANES) } else { Vec::new() };
        let halves_of = |x: f32| half::f16::from_f32(x).to_le_bytes();
        let per_group = LANES * (1 + usize::from(mins));
        let stored_scales: Vec<u8> =
            floats(2, groups * per_group).into_iter().flat_map(halves_of).collect();
        let scales = match stored {
            true => Scales::Stored(&stored_scales),
            false => Scales::Floats { scales: &scales, mins: &minima },
        };
        let tile = IntTile { quants: &quants, scales, zero, nibbles, mins, halves };
        for tokens in 1..18 {
            let x = floats(4, tokens * groups * GROUP);
            let mut q = vec![0; 2 * x.len()];
            let mut a_scales = vec![0.0; tokens * groups];
            let mut sums = vec![0; tokens * groups * 2];
            let mut offsets = vec![0.0; tokens * groups];
            let portable = Isa(Form::Portable);
            quantize_row(portable, &x, &mut q, &mut a_scales, &mut sums, &mut offsets);
            for (at, low) in [(0, -128), (2 * GROUP * (tokens * groups - 1), 127)] {
                q[at..at + GROUP].fill(if low < 0 { -127 } else { 127 });
                q[at + GROUP..at + 2 * GROUP].fill(low);
                let sum = 16 * (256 * i32::from(q[at]) + i32::from(low));
                sums[at / GROUP..at / GROUP + 2].fill(sum);
            }
            let rows = IntRows { groups, q: &q, scales: &a_scales, sums: &sums, offsets: &offsets };
            let mut expected = vec![0.0; tokens * LANES];
            on_all(&mut expected, |out| int_tile(portable, &tile, &rows, out));
            for isa in Isa::available() {
                let mut out = vec![f32::NAN; tokens * LANES];
                on_all(&mut out, |out| int_tile(isa, &tile, &rows, out));
                assert_eq!(out, expected, "{} with {tokens} tokens", isa.name());
            }
        }
    }
}

#[test]
fn an_integer_tile_multiplies() {
    // One group, one token: what it should be is easily said.
    let x = floats(10, GROUP);
    let (mut q, mut scales) = (vec![0; 2 * GROUP], vec![0.0]);
    let (mut sums, mut offsets) = (vec![0; 2], vec![0.0]);
    quantize_row(Isa(Form::Portable), &x, &mut q, &mut scales, &mut sums, &mut offsets);
    let rows = IntRows { groups: 1, q: &q, scales: &scales, sums: &sums, offsets: &offsets };
    let quants: Vec<u8> = noise(11, 512).map(|z| z as u8).collect();
    let (of_rows, minima) = (floats(12, LANES), floats(13, LANES));
    let tile = IntTile {
        quants: &quants,
        scales: Scales::Floats { scales: &of_rows, mins: &minima },
        zero: 0,
        nibbles: false,
        mins: true,
        halves: false,
    };
    for isa in Isa::available() {
        let mut out = vec![0.0; LANES];
        on_all(&mut out, |out| int_tile(isa, &tile, &rows, out));
        for r in 0..LANES {
            let weight = |c: usize| {
                let quant = quants[c / 4 * 64 + 4 * r + c % 4];
                f64::from(of_rows[r]) * f64::from(quant) + f64::from(minima[r])
            };
            let expected: f64 = (0..GROUP).map(|c| weight(c) * f64::from(x[c])).sum();
            assert!(
                (f64::from(out[r]) - expected).abs() < 0.02,
                "{}: {} {expected}",
                isa.name(),
                out[r]
            );
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
            let portable = Isa(Form::Portable);
            on_all(&mut expected, |out| float_tile(portable, kind, &tile, cols, &x, out));
            for isa in Isa::available() {
                let mut out = vec![f32::NAN; tokens * LANES];
                on_all(&mut out, |out| float_tile(isa, kind, &tile, cols, &x, out));
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
        on_all(&mut together, |out| float_tile(isa, FloatKind::F32, &tile, cols, &x, out));
        for t in 0..13 {
            let mut alone = vec![0.0; LANES];
            let x = &x[t * cols..][..cols];
            on_all(&mut alone, |out| float_tile(isa, FloatKind::F32, &tile, cols, x, out));
            assert_eq!(alone, together[t * LANES..][..LANES], "{} token {t}", isa.name());
        }
    }
}

#[test]
fn columns_are_written_side_by_side_and_nowhere_else() {
    let mut out = vec![0.0; 3 * 4 * LANES];
    let mut all = Columns::new(&mut out, 4 * LANES);
    let mut parts = [all.split(1), all.split(2), all.split(1)];
    for (n, part) in parts.iter_mut().enumerate() {
        part.column(0, 1, 2).row(1).fill(n as f32 + 1.0);
    }
    for (n, sixteen) in out.chunks(LANES).enumerate() {
        let expected = match n {
            8 => 1.0,
            9 => 2.0,
            11 => 3.0,
            _ => 0.0,
        };
        assert!(sixteen.iter().all(|x| *x == expected), "sixteen number {n}");
    }
}

#[test]
fn quantized_rows_are_close_and_know_their_sums() {
    for isa in Isa::available() {
        let x = floats(9, 50);
        let (mut q, mut scales) = (vec![0; 128], vec![0.0; 2]);
        let (mut sums, mut offsets) = (vec![0; 4], vec![0.0; 2]);
        quantize_row(isa, &x, &mut q, &mut scales, &mut sums, &mut offsets);
        let number = |i: usize| {
            let at = i / GROUP * 2 * GROUP + i % GROUP;
            256 * i32::from(q[at]) + i32::from(q[at + GROUP])
        };
        for (i, x) in x.iter().enumerate() {
            let error = scales[i / GROUP] * number(i) as f32 - x;
            assert!(error.abs() <= scales[i / GROUP] * 0.51, "{}: {i}", isa.name());
        }
        assert!((50..64).all(|i| number(i) == 0));
        for (half, sum) in sums.iter().enumerate() {
            assert_eq!(*sum, (16 * half..16 * half + 16).map(number).sum::<i32>());
        }
        assert_eq!(offsets[1], scales[1] * (sums[2] + sums[3]) as f32);
    }
}

#[test]
fn what_is_no_number_stays_none_in_a_quantized_row() {
    for isa in Isa::available() {
        for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = floats(16, 2 * GROUP);
            x[GROUP + 5] = broken;
            let (mut q, mut scales) = (vec![0; 4 * GROUP], vec![0.0; 2]);
            let (mut sums, mut offsets) = (vec![0; 4], vec![0.0; 2]);
            quantize_row(isa, &x, &mut q, &mut scales, &mut sums, &mut offsets);
            assert!(scales[0].is_finite() && offsets[0].is_finite());
            assert!(scales[1].is_nan() && offsets[1].is_nan(), "{}", isa.name());
        }
    }
}

#[test]
fn queries_meet_positions_the_same_in_fours_and_in_eights() {
    let (dim, stride) = (40, 20);
    let (queries, keys) = (floats(14, 8 * dim), floats(15, dim * LANES));
    for isa in Isa::available() {
        let mut eight = vec![f32::NAN; 8 * stride];
        dots::<8>(isa, &queries, Page::Floats(&keys), 0.5, &mut eight, stride);
        for at in [0, 4] {
            let some: Vec<f32> = queries.chunks(8).flat_map(|q| q[at..at + 4].to_vec()).collect();
            let mut four = vec![f32::NAN; 4 * stride];
            dots::<4>(isa, &some, Page::Floats(&keys), 0.5, &mut four, stride);
            for (a, b) in four.chunks(stride).zip(eight[at * stride..].chunks(stride)) {
                assert_eq!(a[..LANES], b[..LANES]);
            }
        }
        for row in 0..8 {
            for lane in 0..LANES {
                let dot =
                    |d: usize| f64::from(queries[8 * d + row]) * f64::from(keys[LANES * d + lane]);
                let expected = 0.5 * (0..dim).map(dot).sum::<f64>();
                assert!((f64::from(eight[row * stride + lane]) - expected).abs() < 1e-5);
            }
        }
    }
}

#[test]
fn rows_weigh_values_the_same_alone_and_by_fours() {
    for dim in [5, 16, 64, 83, 128] {
        let (count, stride) = (11, 13);
        let (weights, values) = (floats(16, 4 * stride), floats(17, count * dim));
        for isa in Isa::available() {
            let start = floats(18, 4 * dim);
            let mut four = start.clone();
            weigh::<4>(isa, &mut four, dim, &weights, stride, Page::Floats(&values));
            for row in 0..4 {
                let mut one = start[row * dim..][..dim].to_vec();
                let weights = &weights[row * stride..][..count];
                weigh::<1>(isa, &mut one, dim, weights, stride, Page::Floats(&values));
                assert_eq!(one, four[row * dim..][..dim], "{} row {row} of {dim}", isa.name());
                for (d, one) in one.iter().enumerate() {
                    let sum = (0..count).map(|n| weights[n] * values[n * dim + d]).sum::<f32>();
                    assert!((one - start[row * dim + d] - sum).abs() < 1e-5);
                }
            }
        }
    }
}

#[test]
fn a_page_of_halves_counts_like_its_floats() {
    for (dim, count) in [(64, 16), (83, 5)] {
        let halves: Vec<u16> =
            floats(19, LANES * dim).into_iter().map(|x| half::f16::from_f32(x).to_bits()).collect();
        let (queries, weights) = (floats(20, 4 * dim), floats(21, 4 * LANES));
        for isa in Isa::available() {
            let (page, mut spare) = (Page::Halves(&halves), Vec::new());
            let wide = page.floats(isa, &mut spare);
            let [a, b] = [page, wide].map(|page| {
                let mut scores = vec![0.0; 4 * LANES];
                dots::<4>(isa, &queries, page, 1.0, &mut scores, LANES);
                let mut out = vec![0.0; 4 * dim];
                weigh::<4>(isa, &mut out, dim, &weights, LANES, page.part(0..count * dim));
                (scores, out)
            });
            assert_eq!(a, b, "{}", isa.name());
        }
    }
}

#[test]
fn the_largest_is_found_wherever_it_stands() {
    for isa in Isa::available() {
        for n in 1..40 {
            for at in 0..n {
                let mut x = vec![-3.0; n];
                x[at] = -1.5;
                assert_eq!(largest(isa, &x), -1.5);
            }
        }
        assert_eq!(largest(isa, &[f32::NAN, 1.0]), 1.0);
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
        let (mut q, mut scales) = (vec![0; 128], vec![0.0; 2]);
        let (mut sums, mut offsets) = (vec![0; 4], vec![0.0; 2]);
        quantize_row(isa, &x, &mut q, &mut scales, &mut sums, &mut offsets);
    }
}
