//! Packed strips, read as `tiles.cuh` reads them and multiplied as the tensor cores multiply, without a card.
#![allow(clippy::unwrap_used, reason = "a test may")]

#[path = "common/fragments.rs"]
mod fragments;

use fragments::{e4m3, left, scale};
use half::{bf16, f16};
use polder_backend_cuda::tiles::{COLUMNS, Rows, STRIP, TileFormat, pack_strip};
use proptest::prelude::*;

/// One token times a packed strip: fragments gathered from the lanes, then matrix times vector.
fn multiplied(packed: &[u8], format: TileFormat, x: &[f64]) -> Vec<f64> {
    let mut sums = vec![0.0; STRIP];
    for first in (0..x.len()).step_by(COLUMNS) {
        let chunk =
            &packed[first / format.group() * format.chunk_bytes()..][..format.chunk_bytes()];
        let unit = first % format.group() / COLUMNS;
        for j in 0..4 {
            let (mut a, mut b) = ([[0.0; 16]; 16], [0.0; 16]);
            for lane in 0..32 {
                let (g, t) = (lane / 4, lane % 4);
                let values = left(chunk, format, unit, lane, j);
                // a[0], a[1]: k = 2t and the next one, of rows g and g + 8; a[2], a[3]: eight further.
                for (i, value) in values.into_iter().enumerate() {
                    a[g + i / 2 % 2 * 8][2 * t + i / 4 * 8 + i % 2] = value;
                }
                if g == 0 {
                    let mine = &x[first + 16 * t + 4 * j..][..4];
                    (b[2 * t], b[2 * t + 1], b[2 * t + 8], b[2 * t + 9]) =
                        (mine[0], mine[1], mine[2], mine[3]);
                }
            }
            for (row, sum) in sums.iter_mut().enumerate() {
                let product: f64 = a[row].iter().zip(&b).map(|(a, b)| a * b).sum();
                *sum += product * scale(chunk, format, row);
            }
        }
    }
    sums
}

fn numbers(len: usize, seed: u64) -> Vec<f64> {
    let mut state = seed | 1;
    (0..len)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / f64::from(1 << 23) - 1.0
        })
        .collect()
}

fn same(ours: &[f64], right: &[f64]) {
    for (a, b) in ours.iter().zip(right) {
        assert!((a - b).abs() < 1e-9 * (1.0 + b.abs()), "{a} for {b}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_packed_strip_is_the_matrix_that_it_was(units in 1_usize..7, seed: u64, wide: bool, few: bool) {
        let columns = units * COLUMNS;
        let x = numbers(columns, seed);
        let rows = |f: &dyn Fn(usize, usize) -> f64| -> Vec<f64> {
            (0..STRIP).map(|row| (0..columns).map(|k| f(row, k) * x[k]).sum()).collect()
        };
        let drawn = numbers(STRIP * columns, seed ^ 77);

        let values: Vec<f32> = drawn.iter().map(|v| bf16::from_f64(*v).to_f32()).collect();
        let mut packed = vec![0xff; TileFormat::Bf16.strip_bytes(columns)];
        pack_strip(&Rows::Values(values.clone()), columns, TileFormat::Bf16, &mut packed);
        same(&multiplied(&packed, TileFormat::Bf16, &x), &rows(&|row, k| f64::from(values[row * columns + k])));

        // Groups as they are given may be longer than those that are kept.
        let group = if wide { 128 } else { 64 };
        let given = if few { columns } else { group };
        if columns.is_multiple_of(given) && given.is_multiple_of(group) {
            let format = TileFormat::Int4 { group };
            let q: Vec<u8> = drawn.iter().map(|v| ((v + 1.0) * 8.0) as u8 & 15).collect();
            let groups = columns / given;
            let scales: Vec<f32> = numbers(STRIP * groups, seed ^ 5).iter().map(|s| f16::from_f64(s * 0.01).to_f32()).collect();
            let zeros: Vec<u8> = numbers(STRIP * groups, seed ^ 6).iter().map(|z| ((z + 1.0) * 8.0) as u8 & 15).collect();
            let mut packed = vec![0xff; format.strip_bytes(columns)];
            let all = Rows::Grouped { q: q.clone(), scales: scales.clone(), zeros: zeros.clone(), group: given };
            pack_strip(&all, columns, format, &mut packed);
            same(&multiplied(&packed, format, &x), &rows(&|row, k| {
                let at = row * groups + k / given;
                f64::from(scales[at]) * (f64::from(q[row * columns + k]) - f64::from(zeros[at]))
            }));
        }

        let bytes: Vec<u8> = drawn.iter().map(|v| ((v + 1.0) * 128.0) as u8).map(|b| if b & 0x7f == 0x7f { 0 } else { b }).collect();
        let scales: Vec<f32> = numbers(STRIP * units, seed ^ 8).iter().map(|s| *s as f32).collect();
        let mut packed = vec![0xff; TileFormat::Fp8.strip_bytes(columns)];
        pack_strip(&Rows::Bytes { bytes: bytes.clone(), scales: scales.clone() }, columns, TileFormat::Fp8, &mut packed);
        same(&multiplied(&packed, TileFormat::Fp8, &x), &rows(&|row, k| {
            e4m3(bytes[row * columns + k]) * f64::from(scales[row * units + k / COLUMNS])
        }));
    }
}
