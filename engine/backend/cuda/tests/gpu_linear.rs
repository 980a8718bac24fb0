//! Weight matrices times tokens, against references in f64 from the same rounded numbers.
#![allow(clippy::unwrap_used, unsafe_code, reason = "a test may, and kernels are started")]

mod common;

use common::{Chance, POISON, bits, device, error, from_bits, median_ms, rounded};
use half::f16;
use polder_backend_cuda::basics::{Basics, Norm};
use polder_backend_cuda::device::{Buffer, Device, Ptr, Stream};
use polder_backend_cuda::linear::{Call, Linear, Out, Plan, Right, fuses_norm, scratch_bytes};
use polder_backend_cuda::pack::Pack;
use polder_backend_cuda::tiles::{
    Matrix, MatrixArgs, Rows, STRIP, TileFormat, pack_strip, packed_bytes,
};
use polder_model::Activation;

const FORMATS: [TileFormat; 4] = [
    TileFormat::Bf16,
    TileFormat::Int4 { group: 64 },
    TileFormat::Int4 { group: 128 },
    TileFormat::Fp8,
];

fn linear(device: &Device) -> Linear {
    let made = Some(std::env::temp_dir().join("polder-test-kernels"));
    let shipped = std::env::var_os("POLDER_KERNELS").map(Into::into);
    let mut linear = Linear::load(&Pack { shipped, made }, device).unwrap();
    linear.lend(device.buffer(scratch_bytes(8192, 12_288)).unwrap());
    linear
}

/// What e4m3 means.
fn e4m3(byte: u8) -> f64 {
    let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f64::from(byte & 7));
    match exponent {
        0 => sign * mantissa * 2_f64.powi(-9),
        e => sign * (1.0 + mantissa / 8.0) * 2_f64.powi(e - 7),
    }
}

/// A matrix that is drawn: packed, and its values.
fn drawn(
    chance: &mut Chance,
    (rows, columns): (usize, usize),
    format: TileFormat,
) -> (Vec<u8>, Vec<f64>) {
    let mut packed = vec![0; packed_bytes(rows, columns, format)];
    let mut values = vec![0.0; rows * columns];
    let strip_bytes = format.strip_bytes(columns);
    for (strip, out) in packed.chunks_exact_mut(strip_bytes).enumerate() {
        let true_rows = (rows - strip * STRIP).min(STRIP);
        let here = &mut values[strip * STRIP * columns..][..true_rows * columns];
        let (packed_rows, all) = match format {
            TileFormat::Bf16 => {
                let all = rounded(&chance.normals(STRIP * columns, 0.05));
                let values = all.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
                (Rows::Values(all), values)
            }
            TileFormat::Int4 { .. } => {
                let given = format.group();
                let groups = columns / given;
                let q: Vec<u8> = (0..STRIP * columns).map(|_| chance.below(16) as u8).collect();
                let scales: Vec<f32> = (0..STRIP * groups)
                    .map(|_| f16::from_f64(0.002 + 0.01 * chance.unit()).to_f32())
                    .collect();
                let zeros: Vec<u8> = (0..STRIP * groups).map(|_| chance.below(16) as u8).collect();
                let value = |at: usize| {
                    let group = at / columns * groups + at % columns / given;
                    (f64::from(q[at]) - f64::from(zeros[group])) * f64::from(scales[group])
                };
                let values = (0..q.len()).map(value).collect();
                (Rows::Grouped { q, scales, zeros, group: given }, values)
            }
            TileFormat::Fp8 => {
                let groups = columns / 64;
                // Not NaN (0x7f, 0xff).
                let bytes: Vec<u8> = (0..STRIP * columns)
                    .map(|_| (chance.below(127) | chance.below(2) << 7) as u8)
                    .collect();
                let scales: Vec<f32> =
                    (0..STRIP * groups).map(|_| (1e-4 + 1e-3 * chance.unit()) as f32).collect();
                let value = |at: usize| {
                    e4m3(bytes[at]) * f64::from(scales[at / columns * groups + at % columns / 64])
                };
                let values = (0..bytes.len()).map(value).collect();
                (Rows::Bytes { bytes, scales }, values)
            }
        };
        pack_strip(&packed_rows, columns, format, out);
        here.copy_from_slice(&all[..true_rows * columns]);
    }
    (packed, values)
}

/// `[tokens][rows]`.
fn product(weights: &[f64], right: &[f64], columns: usize) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    right.chunks(columns).flat_map(|x| weights.chunks(columns).map(move |w| dot(w, x))).collect()
}

fn activated(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            0.5 * x
                * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh())
        }
    }
}

/// Gates and ups in turn, sixteen of each.
fn gated(product: &[f64], rows: usize, activation: Activation) -> Vec<f64> {
    let token = |values: &[f64]| -> Vec<f64> {
        let one = |i: usize| {
            let at = i / 16 * 32 + i % 16;
            activated(activation, values[at]) * values[at + 16]
        };
        (0..rows / 2).map(one).collect()
    };
    product.chunks(rows).flat_map(token).collect()
}

/// What a test gives the kernels: tokens with gaps between rows, some of which are read.
struct Case {
    device: Device,
    stream: Stream,
    matrix: Matrix,
    right: Buffer<u16>,
    stride: usize,
    pick: Option<Buffer<u32>>,
    bias: Option<(Buffer<f32>, Vec<f32>)>,
    tokens: usize,
    /// Without bias.
    product: Vec<f64>,
}

impl Case {
    fn new(
        seed: u64,
        (rows, columns): (usize, usize),
        format: TileFormat,
        tokens: usize,
        extras: bool,
    ) -> Self {
        // Groups are whole.
        let columns = columns.next_multiple_of(format.group());
        let device = device();
        let mut chance = Chance::new(seed);
        let (packed, weights) = drawn(&mut chance, (rows, columns), format);
        let matrix = Matrix::new(&device, &packed, (rows, columns), format, 1).unwrap();
        let stride = columns + 24;
        let all = if extras { tokens + 5 } else { tokens };
        let values = rounded(&chance.normals(all * stride, 1.0));
        let picked: Vec<u32> =
            (0..tokens).map(|t| if extras { chance.below(all) as u32 } else { t as u32 }).collect();
        let read: Vec<f64> = picked
            .iter()
            .flat_map(|row| &values[*row as usize * stride..][..columns])
            .map(|v| f64::from(*v))
            .collect();
        let bias = chance.normals(rows, 1.0);
        Self {
            stream: device.stream().unwrap(),
            matrix,
            right: device.buffer_of(&bits(&values)).unwrap(),
            stride,
            pick: extras.then(|| device.buffer_of(&picked).unwrap()),
            bias: extras.then(|| (device.buffer_of(&bias).unwrap(), bias)),
            tokens,
            product: product(&weights, &read, columns),
            device,
        }
    }

    fn call(&self, out: Out) -> Call {
        Call {
            matrix: self.matrix.args(),
            tokens: self.tokens,
            right: Right::Bf16 { at: self.right.at(), stride: self.stride },
            pick: self.pick.as_ref().map_or(Ptr(0), Buffer::at),
            bias: self.bias.as_ref().map_or(Ptr(0), |(bias, _)| bias.at()),
            out,
        }
    }

    fn with_bias(&self) -> Vec<f64> {
        let bias = |row: usize| self.bias.as_ref().map_or(0.0, |(_, bias)| f64::from(bias[row]));
        let rows = self.matrix.rows;
        self.product.iter().enumerate().map(|(i, v)| v + bias(i % rows)).collect()
    }

    fn f32_error(&self, run: impl FnOnce(&Call)) -> f64 {
        let (rows, stride) = (self.matrix.rows, self.matrix.rows + 3);
        let out = self.device.buffer::<f32>(self.tokens * stride).unwrap();
        out.fill(POISON).unwrap();
        run(&self.call(Out::F32 { at: out.at(), stride }));
        let out = out.values().unwrap();
        for row in out.chunks(stride) {
            assert!(row[rows..].iter().all(|v| v.is_nan()), "only what is asked for is written");
        }
        let out: Vec<f32> = out.chunks(stride).flat_map(|row| &row[..rows]).copied().collect();
        error(&out, &self.with_bias())
    }
}

/// Above so many tokens weights are rounded to bf16 after they are scaled.
const EXACT: usize = 64;

fn bound(format: TileFormat, tokens: usize) -> f64 {
    if tokens <= EXACT || format == TileFormat::Bf16 { 1e-5 } else { 3e-3 }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_product_is_the_product_in_every_format_for_any_number_of_tokens() {
    let linear = linear(&device());
    for format in FORMATS {
        for (tokens, (rows, columns), extras) in [
            (1, (200, 576), false),
            (2, (16, 64), false),
            (3, (200, 576), true),
            (8, (200, 2048), true),
            (9, (200, 576), false),
            (16, (48, 640), true),
            (17, (200, 576), true),
            (31, (1000, 192), false),
            (33, (200, 576), true),
            (64, (200, 576), false),
            (65, (200, 576), true),
            (200, (200, 576), true),
            (257, (520, 1152), false),
            (400, (2600, 128), false),
        ] {
            let case = Case::new(tokens as u64, (rows, columns), format, tokens, extras);
            let error = case.f32_error(|call| {
                // SAFETY: the buffers are as long as the call says.
                unsafe { linear.run(&case.stream, call) }.unwrap();
            });
            println!("{format:?} {tokens} x {rows} x {columns}: {error:.1e}");
            assert!(
                error < bound(format, tokens),
                "{format:?} {tokens} x {rows} x {columns}: {error}"
            );
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_product_is_the_same_however_it_is_shared_out() {
    let linear = linear(&device());
    for format in FORMATS {
        let case = Case::new(7, (200, 1152), format, 7, true);
        let split = [1, 2].into_iter().flat_map(|strips| {
            [1, 3, 5, 8, 16].map(|warps| Plan::Split { strips, eights: 1, warps })
        });
        for plan in split {
            let error = case.f32_error(|call| {
                // SAFETY: the buffers are as long as the call says.
                unsafe { linear.run_as(&case.stream, call, plan) }.unwrap();
            });
            assert!(error < 1e-5, "{format:?} {plan:?}: {error}");
        }
        for (tokens, warps, split, all) in [
            (128, 16, 1, 150),
            (128, 8, 1, 150),
            (128, 8, 2, 150),
            (128, 8, 4, 129),
            (64, 8, 4, 61),
            (64, 8, 4, 64),
        ] {
            let case = Case::new(8, (328, 1152), format, all, true);
            let plan = Plan::Wide { tokens, warps, split };
            let error = case.f32_error(|call| {
                // SAFETY: the buffers are as long as the call says.
                unsafe { linear.run_as(&case.stream, call, plan) }.unwrap();
            });
            assert!(error < bound(format, all), "{format:?} {plan:?}: {error}");
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_product_in_four_bits_is_the_same_whoever_holds_the_tokens() {
    let device = device();
    if device.arch().number != 90 {
        return;
    }
    let linear = linear(&device);
    for group in [64, 128] {
        let format = TileFormat::Int4 { group };
        for (tokens, (rows, columns), cluster, clusters) in [
            (1, (200, 576), 1, 3),
            (9, (200, 2048), 1, 13),
            (21, (1000, 1920), 1, 5),
            (32, (40, 2432), 2, 1),
            (33, (328, 4096), 2, 7),
            (64, (200, 2048), 2, 2),
        ] {
            let case = Case::new(tokens as u64, (rows, columns), format, tokens, true);
            for eights in [2, 4] {
                let plan = Plan::Held { eights, cluster, clusters };
                let error = case.f32_error(|call| {
                    // SAFETY: the buffers are as long as the call says.
                    unsafe { linear.run_as(&case.stream, call, plan) }.unwrap();
                });
                assert!(error < 1e-5, "{format:?} {tokens} x {rows} x {columns} {plan:?}: {error}");
            }
        }
    }
}

const DENSE: [Plan; 3] =
    [Plan::Dense { width: 256 }, Plan::Dense { width: 192 }, Plan::Dense { width: 128 }];

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_product_from_shared_memory_alone_is_the_product_whatever_becomes_of_it() {
    let device = device();
    if device.arch().number != 90 {
        return;
    }
    let linear = linear(&device);
    for (tokens, (rows, columns), extras) in [
        (1, (16, 64), false),
        (61, (328, 1152), true),
        (128, (224, 64), true),
        (257, (2080, 640), false),
        (300, (1001, 576), true),
        (1025, (640, 128), true),
    ] {
        let case = Case::new(tokens as u64 + 9, (rows, columns), TileFormat::Bf16, tokens, extras);
        let biased = case.with_bias();
        for plan in DENSE {
            let what = format!("{plan:?}, {tokens} x {rows} x {columns}");
            // SAFETY: in all of them, the buffers are as long as the call says.
            let run = |call: &Call| unsafe { linear.run_as(&case.stream, call, plan) }.unwrap();
            let off = case.f32_error(run);
            assert!(off < 1e-5, "{what}: {off}");
            for stride in [rows, rows.next_multiple_of(8) + 8] {
                let out = device.buffer::<u16>(tokens * stride).unwrap();
                out.fill(POISON).unwrap();
                run(&case.call(Out::Bf16 { at: out.at(), stride }));
                let values = from_bits(&out.values().unwrap());
                let between = values.chunks(stride).flat_map(|row| &row[rows..]);
                assert!(between.into_iter().all(|v| v.is_nan()), "{what}: too much is written");
                let values: Vec<f32> =
                    values.chunks(stride).flat_map(|row| &row[..rows]).copied().collect();
                let off_rounded = error(&values, &biased);
                assert!(off_rounded < 4e-3, "{what}, bf16: {off_rounded}");

                let before = Chance::new(5).normals(tokens * stride, 1.0);
                let results = [0, 1].map(|_| {
                    let x = device.buffer_of(&before).unwrap();
                    run(&case.call(Out::Add { at: x.at(), stride }));
                    x.values().unwrap()
                });
                assert!(results[0] == results[1], "{what}: to the bit, each time");
                let sum: Vec<f64> = before
                    .chunks(stride)
                    .zip(biased.chunks(rows))
                    .flat_map(|(x, y)| {
                        let beyond = &x[rows..];
                        let mut all: Vec<f64> =
                            x.iter().zip(y).map(|(x, y)| f64::from(*x) + y).collect();
                        all.extend(beyond.iter().map(|v| f64::from(*v)));
                        all
                    })
                    .collect();
                let off_added = error(&results[0], &sum);
                assert!(off_added < 1e-5, "{what}, added: {off_added}");
            }
            println!("{what}: {off:.1e}");
            if rows % 32 != 0 {
                continue;
            }
            for activation in [Activation::Silu, Activation::GeluTanh] {
                let stride = rows / 2 + 8;
                let out = device.buffer::<u16>(tokens * stride).unwrap();
                let gate = |turned| {
                    out.fill(POISON).unwrap();
                    let gate = Out::Gated { at: out.at(), stride, activation, turned };
                    run(&Call { bias: Ptr(0), ..case.call(gate) });
                    from_bits(&out.values().unwrap())
                };
                let values = gate(false);
                if rows % 128 == 0 {
                    // Of each 64, the first eight of sixteens come before the others.
                    let turned =
                        |at: usize| at / 64 * 64 + at / 8 % 2 * 32 + at / 16 % 4 * 8 + at % 8;
                    for (row, to) in values.chunks(stride).zip(gate(true).chunks(stride)) {
                        assert!(
                            (0..rows / 2).all(|at| row[at] == to[turned(at)]),
                            "{what}, turned"
                        );
                    }
                }
                let values: Vec<f32> =
                    values.chunks(stride).flat_map(|row| &row[..rows / 2]).copied().collect();
                let off = error(&values, &gated(&case.product, rows, activation));
                assert!(off < 6e-3, "{what}, {activation:?}: {off}");
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_product_is_rounded_or_added_or_gated_as_asked() {
    let device = device();
    let linear = linear(&device);
    for format in FORMATS {
        for (tokens, extras) in
            [(1, true), (5, false), (8, true), (16, false), (30, true), (64, false), (131, true)]
        {
            let rows = 224;
            let case = Case::new(tokens as u64 + 100, (rows, 576), format, tokens, extras);
            let biased = case.with_bias();
            // SAFETY: in all three, the buffers are as long as the call says.
            let run = |out| unsafe { linear.run(&case.stream, &case.call(out)) }.unwrap();

            let out = device.buffer::<u16>(tokens * rows).unwrap();
            out.fill(POISON).unwrap();
            run(Out::Bf16 { at: out.at(), stride: rows });
            let off = error(&from_bits(&out.values().unwrap()), &biased);
            assert!(off < 4e-3, "{format:?} {tokens} tokens, bf16: {off}");

            let before = Chance::new(5).normals(tokens * rows, 1.0);
            let x = device.buffer_of(&before).unwrap();
            run(Out::Add { at: x.at(), stride: rows });
            let sum: Vec<f64> =
                before.iter().zip(&biased).map(|(x, y)| f64::from(*x) + y).collect();
            let off = error(&x.values().unwrap(), &sum);
            assert!(off < bound(format, tokens), "{format:?} {tokens} tokens, added: {off}");

            for activation in [Activation::Silu, Activation::GeluTanh] {
                let stride = rows / 2 + 8;
                let out = device.buffer::<u16>(tokens * stride).unwrap();
                out.fill(POISON).unwrap();
                let call = Call {
                    bias: Ptr(0),
                    ..case.call(Out::Gated { at: out.at(), stride, activation, turned: false })
                };
                // SAFETY: as above.
                unsafe { linear.run(&case.stream, &call) }.unwrap();
                let values = from_bits(&out.values().unwrap());
                let values: Vec<f32> =
                    values.chunks(stride).flat_map(|row| &row[..rows / 2]).copied().collect();
                let off = error(&values, &gated(&case.product, rows, activation));
                assert!(off < 6e-3, "{format:?} {tokens} tokens, {activation:?}: {off}");
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_norm_on_the_way_is_the_norm_of_the_stream() {
    let device = device();
    let linear = linear(&device);
    let eps = 1e-5_f32;
    for format in FORMATS {
        for (tokens, (rows, columns)) in [
            (1, (200, 576)),
            (1, (2080, 8192)),
            (2, (200, 2048)),
            (3, (200, 576)),
            (4, (48, 2048)),
            (5, (16, 64)),
            (7, (200, 1152)),
            (8, (200, 1024)),
        ] {
            let columns = usize::next_multiple_of(columns, format.group());
            assert!(fuses_norm(tokens, columns));
            let mut chance = Chance::new(tokens as u64);
            let (packed, weights) = drawn(&mut chance, (rows, columns), format);
            let matrix = Matrix::new(&device, &packed, (rows, columns), format, 1).unwrap();
            let x = chance.normals((tokens + 2) * columns, 3.0);
            let norm = chance.normals(columns, 1.0);
            let pick: Vec<u32> = (0..tokens).map(|_| chance.below(tokens + 2) as u32).collect();
            let (mut right, mut scales) = (Vec::new(), Vec::new());
            for row in pick.iter().map(|row| &x[*row as usize * columns..][..columns]) {
                let weighed: Vec<f32> = row.iter().zip(&norm).map(|(x, w)| x * w).collect();
                right.extend(rounded(&weighed).into_iter().map(f64::from));
                let squares = row.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>();
                scales.push(1.0 / (squares / columns as f64 + f64::from(eps)).sqrt());
            }
            let mut reference = product(&weights, &right, columns);
            for (row, scale) in reference.chunks_mut(rows).zip(&scales) {
                row.iter_mut().for_each(|v| *v *= scale);
            }
            let buffers = (
                device.buffer_of(&x).unwrap(),
                device.buffer_of(&norm).unwrap(),
                device.buffer_of(&pick).unwrap(),
                device.buffer::<f32>(tokens * rows).unwrap(),
            );
            for strips in [1, 2] {
                for warps in [1, 2, 4, 6, 8, 12, 16] {
                    buffers.3.fill(POISON).unwrap();
                    let call = Call {
                        matrix: matrix.args(),
                        tokens,
                        right: Right::Normed {
                            stream: buffers.0.at(),
                            weight: buffers.1.at(),
                            eps,
                        },
                        pick: buffers.2.at(),
                        bias: Ptr(0),
                        out: Out::F32 { at: buffers.3.at(), stride: rows },
                    };
                    let plan = Plan::Split { strips, eights: 1, warps };
                    let stream = device.stream().unwrap();
                    // SAFETY: the buffers are as long as the call says.
                    unsafe { linear.run_as(&stream, &call, plan) }.unwrap();
                    let off = error(&buffers.3.values().unwrap(), &reference);
                    assert!(off < 1e-5, "{format:?} {tokens} x {rows} x {columns} {plan:?}: {off}");
                }
            }
        }
    }
}

/// A norm that lays tokens out, and a product of them, are the norm and the product that lays them out itself, to the bit.
#[test]
#[ignore = "needs a GPU"]
fn gpu_a_norm_lays_tokens_out_as_products_read_them() {
    let device = device();
    let linear = linear(&device);
    let stream = device.stream().unwrap();
    let made = Some(std::env::temp_dir().join("polder-test-kernels"));
    let shipped = std::env::var_os("POLDER_KERNELS").map(Into::into);
    let basics = Basics::load(&Pack { shipped, made }, &device).unwrap();
    for format in FORMATS {
        for (tokens, (rows, columns)) in [(70, (200, 576)), (300, (2080, 1152)), (1100, (520, 640))]
        {
            let columns = usize::next_multiple_of(columns, format.group());
            let mut chance = Chance::new(tokens as u64);
            let (packed, _) = drawn(&mut chance, (rows, columns), format);
            let matrix = Matrix::new(&device, &packed, (rows, columns), format, 1).unwrap();
            let x = device.buffer_of(&chance.normals(tokens * columns, 3.0)).unwrap();
            let weight = device.buffer_of(&chance.normals(columns, 1.0)).unwrap();
            let normed = device.buffer::<u16>(tokens * columns).unwrap();
            let out = device.buffer::<f32>(tokens * rows).unwrap();
            let norm = |out: Ptr, padded: u32| Norm {
                stream: x.at(),
                add: Ptr(0),
                add_norm: Ptr(0),
                weight: weight.at(),
                pick: Ptr(0),
                out,
                out_f32: Ptr(0),
                eps: 1e-5,
                hidden: columns as u32,
                padded,
            };
            let image = linear.image(&matrix.args(), tokens, false).unwrap();
            let results = [false, true].map(|laid_out| {
                out.fill(POISON).unwrap();
                let (norm, right) = match laid_out {
                    false => {
                        let right = Right::Bf16 { at: normed.at(), stride: columns };
                        (norm(normed.at(), 0), right)
                    }
                    true => (norm(image.at, image.padded), Right::Image(image)),
                };
                let call = Call {
                    matrix: matrix.args(),
                    tokens,
                    right,
                    pick: Ptr(0),
                    bias: Ptr(0),
                    out: Out::F32 { at: out.at(), stride: rows },
                };
                // SAFETY: the buffers are as long as the calls say.
                unsafe {
                    basics.norm(&stream, &norm, tokens).unwrap();
                    linear.run(&stream, &call).unwrap();
                }
                out.values().unwrap()
            });
            assert!(results[0].iter().all(|v| v.is_finite()));
            assert!(results[0] == results[1], "{format:?} {tokens} x {rows} x {columns}");
        }
    }
}

/// Bytes a second that the card reads at best, as was measured with plain reads.
fn ceiling(device: &Device) -> f64 {
    if device.name().contains("H200") { 4660e9 } else { 3350e9 * 0.92 }
}

/// Copies of a matrix that do not fit into the second cache together, filled with numbers that are none too strange.
struct Copies {
    tiles: Buffer<u8>,
    args: Vec<MatrixArgs>,
    bytes: usize,
}

impl Copies {
    fn new(device: &Device, (rows, columns): (usize, usize), format: TileFormat) -> Self {
        let bytes = packed_bytes(rows, columns, format);
        let count = (192_usize << 20).div_ceil(bytes).clamp(2, 48);
        let mut chance = Chance::new(9);
        let piece: Vec<u8> = match format {
            TileFormat::Bf16 => {
                let values = bits(&chance.normals(1 << 20, 0.02));
                values.into_iter().flat_map(u16::to_le_bytes).collect()
            }
            _ => (0..1 << 20)
                .flat_map(|_| (chance.next() as u32 & 0x3f3f_3f3f).to_le_bytes())
                .collect(),
        };
        let tiles = device.buffer::<u8>(count * bytes).unwrap();
        for at in (0..count * bytes).step_by(piece.len()) {
            tiles.write(at, &piece[..piece.len().min(count * bytes - at)]).unwrap();
        }
        let args = (0..count)
            .map(|i| MatrixArgs {
                tiles: tiles.offset(i * bytes),
                rows: rows as u32,
                columns: columns as u32,
                format: format.number(),
                group: format.group() as u32,
                strip_bytes: format.strip_bytes(columns) as u64,
                matrix_bytes: bytes as u64,
            })
            .collect();
        Self { tiles, args, bytes }
    }
}

/// Lets the card run for a while: its clock is low at first.
fn warm(device: &Device, stream: &Stream, copies: &Copies) {
    let linear = linear(device);
    let start = std::time::Instant::now();
    let args = copies.args[0];
    let right = device.buffer_of(&vec![0x3f80_u16; 64 * args.columns as usize]).unwrap();
    let out = device.buffer::<f32>(64 * args.rows as usize).unwrap();
    while start.elapsed().as_secs_f64() < 0.2 {
        for matrix in &copies.args {
            let call = Call {
                matrix: *matrix,
                tokens: 64,
                right: Right::Bf16 { at: right.at(), stride: args.columns as usize },
                pick: Ptr(0),
                bias: Ptr(0),
                out: Out::F32 { at: out.at(), stride: args.rows as usize },
            };
            // SAFETY: the buffers are as long as the call says.
            unsafe { linear.run(stream, &call) }.unwrap();
        }
        stream.synchronize().unwrap();
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_speed_of_products() {
    let device = device();
    let linear = linear(&device);
    let stream = device.stream().unwrap();
    let ceiling = ceiling(&device);
    println!("{}, ceiling {:.0} GB/s", device.name(), ceiling / 1e9);
    let int4 = TileFormat::Int4 { group: 128 };
    let shapes = [
        ("head 30B", (151_936, 2048), TileFormat::Bf16, false),
        ("nearly nothing", (2112, 128), int4, false),
        ("nearly nothing", (2112, 128), TileFormat::Bf16, false),
        ("qkv 30B", (5120, 2048), int4, false),
        ("o 30B", (2048, 4096), int4, false),
        ("qkv 235B", (9216, 4096), int4, false),
        ("o 235B", (4096, 8192), int4, false),
        ("qkv 8B", (6144, 4096), TileFormat::Bf16, false),
        ("o 8B", (4096, 4096), TileFormat::Bf16, false),
        ("gate up 8B", (24_576, 4096), TileFormat::Bf16, true),
        ("down 8B", (4096, 12_288), TileFormat::Bf16, false),
        ("fp8", (9216, 4096), TileFormat::Fp8, false),
    ];
    // `SPEED_OF=30B`: only matrices with that in their names.
    let only = std::env::var("SPEED_OF").unwrap_or_default();
    for (name, (rows, columns), format, gate) in shapes {
        if !name.contains(&only) {
            continue;
        }
        let copies = Copies::new(&device, (rows, columns), format);
        let right = device.buffer_of(&vec![0x3f80_u16; 64 * columns]).unwrap();
        let x = device.buffer_of(&vec![1.0_f32; 64 * columns]).unwrap();
        let norm = device.buffer_of(&vec![1.0_f32; columns]).unwrap();
        let out = device.buffer::<u16>(64 * rows).unwrap();
        warm(&device, &stream, &copies);
        let floor = copies.bytes as f64 / ceiling * 1e6;
        println!(
            "{name} {rows} x {columns} {format:?}: {:.2} MB, {floor:.2} us",
            copies.bytes as f64 / 1e6
        );
        let run = |tokens: usize, normed: bool| {
            let to = (out.at(), if gate { rows / 2 } else { rows });
            let right = match normed {
                false => Right::Bf16 { at: right.at(), stride: columns },
                true => Right::Normed { stream: x.at(), weight: norm.at(), eps: 1e-6 },
            };
            let out = match gate {
                false => Out::Bf16 { at: to.0, stride: to.1 },
                true => Out::Gated {
                    at: to.0,
                    stride: to.1,
                    activation: Activation::Silu,
                    turned: false,
                },
            };
            let (none, matrix) = (Ptr(0), copies.args[0]);
            let call = Call { matrix, tokens, right, pick: none, bias: none, out };
            let plan = linear.plan(&call);
            let ms = median_ms(&device, &stream, 31, || {
                for matrix in &copies.args {
                    let call = Call { matrix: *matrix, ..call };
                    // SAFETY: the buffers are as long as the call says.
                    unsafe { linear.run(&stream, &call) }.unwrap();
                }
            });
            let us = f64::from(ms) * 1e3 / copies.args.len() as f64;
            format!("{us:7.2} us {:3.0} % {plan:?}", floor / us * 100.0)
        };
        for tokens in [1, 2, 4, 8, 16, 32, 64] {
            println!("  {tokens:2} tokens        {}", run(tokens, false));
            if fuses_norm(tokens, columns) {
                println!("            normed {}", run(tokens, true));
            }
        }
        drop(copies.tiles);
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_speed_of_products_of_many_tokens() {
    let device = device();
    let linear = linear(&device);
    let stream = device.stream().unwrap();
    let int4 = TileFormat::Int4 { group: 128 };
    let most = 8192;
    for (name, (rows, columns), format, gate) in [
        ("gate up 8B", (24_576, 4096), TileFormat::Bf16, true),
        ("qkv 8B", (6144, 4096), TileFormat::Bf16, false),
        ("o 8B, added", (4096, 4096), TileFormat::Bf16, false),
        ("down 8B, added", (4096, 12_288), TileFormat::Bf16, false),
        ("qkv 235B", (9216, 4096), int4, false),
        ("qkv 30B", (5120, 2048), int4, false),
        ("o 30B", (2048, 4096), int4, false),
        ("fp8", (9216, 4096), TileFormat::Fp8, false),
    ] {
        let copies = Copies::new(&device, (rows, columns), format);
        warm(&device, &stream, &copies);
        let mut chance = Chance::new(3);
        let right: Vec<u16> = bits(&chance.normals(1 << 20, 1.0));
        let right: Vec<u16> = right.iter().cycle().take(most * columns).copied().collect();
        let right = device.buffer_of(&right).unwrap();
        let added = name.ends_with("added");
        let out = device.buffer::<u16>(most * rows * 2).unwrap();
        out.fill(0).unwrap();
        for tokens in [65, 128, 256, 512, 1024, 2048, 8192] {
            let to = (out.at(), if gate { rows / 2 } else { rows });
            let call = Call {
                matrix: copies.args[0],
                tokens,
                right: Right::Bf16 { at: right.at(), stride: columns },
                pick: Ptr(0),
                bias: Ptr(0),
                out: match gate {
                    false if added => Out::Add { at: to.0, stride: to.1 },
                    false => Out::Bf16 { at: to.0, stride: to.1 },
                    true => Out::Gated {
                        at: to.0,
                        stride: to.1,
                        activation: Activation::Silu,
                        turned: false,
                    },
                },
            };
            let ms = median_ms(&device, &stream, 7, || {
                for matrix in copies.args.iter().take(4) {
                    // SAFETY: the buffers are as long as the call says.
                    unsafe { linear.run(&stream, &Call { matrix: *matrix, ..call }) }.unwrap();
                }
            });
            let us = f64::from(ms) * 1e3 / copies.args.len().min(4) as f64;
            let tflops = 2e-6 * (rows * columns * tokens) as f64 / us;
            println!(
                "{name} {rows} x {columns} {format:?} {tokens:5} tokens: {us:8.1} us {tflops:5.0} TFLOP/s {:?}",
                linear.plan(&call)
            );
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_speed_of_products_of_many_tokens_in_bf16_by_plan() {
    let device = device();
    let linear = linear(&device);
    let stream = device.stream().unwrap();
    let most = 8192;
    for (name, (rows, columns), gate) in [
        ("gate up 8B", (24_576, 4096), true),
        ("qkv 8B", (6144, 4096), false),
        ("o 8B, added", (4096, 4096), false),
        ("down 8B, added", (4096, 12_288), false),
    ] {
        let copies = Copies::new(&device, (rows, columns), TileFormat::Bf16);
        warm(&device, &stream, &copies);
        let mut chance = Chance::new(3);
        let right: Vec<u16> = bits(&chance.normals(1 << 20, 1.0));
        let right: Vec<u16> = right.iter().cycle().take(most * columns).copied().collect();
        let right = device.buffer_of(&right).unwrap();
        let added = name.ends_with("added");
        let out = device.buffer::<u16>(most * rows * 2).unwrap();
        out.fill(0).unwrap();
        for tokens in [128, 256, 384, 512, 1024, 2048, 8192] {
            let to = (out.at(), if gate { rows / 2 } else { rows });
            let call = Call {
                matrix: copies.args[0],
                tokens,
                right: Right::Bf16 { at: right.at(), stride: columns },
                pick: Ptr(0),
                bias: Ptr(0),
                out: match gate {
                    false if added => Out::Add { at: to.0, stride: to.1 },
                    false => Out::Bf16 { at: to.0, stride: to.1 },
                    true => Out::Gated {
                        at: to.0,
                        stride: to.1,
                        activation: Activation::Silu,
                        turned: false,
                    },
                },
            };
            let speed = |plan, turned: bool| {
                let right = match linear.image(&call.matrix, tokens, gate) {
                    Some(image) if turned => Right::Image(image),
                    _ => call.right,
                };
                let ms = median_ms(&device, &stream, 5, || {
                    for matrix in copies.args.iter().take(2) {
                        let call = Call { matrix: *matrix, right, ..call };
                        // SAFETY: the buffers are as long as the call says.
                        unsafe { linear.run_as(&stream, &call, plan) }.unwrap();
                    }
                });
                2e-9 * (rows * columns * tokens) as f64 / (f64::from(ms) / 2.0)
            };
            let wide = [(16, 1), (8, 1), (8, 2), (8, 4)]
                .into_iter()
                .filter(|(_, split)| !gate || *split == 1)
                .map(|(warps, split)| speed(Plan::Wide { tokens: 128, warps, split }, false))
                .fold(0.0, f64::max);
            let dense = DENSE.map(|plan| format!("{:4.0}", speed(plan, false)));
            let chosen = linear.plan(&call);
            let turned = match chosen {
                Plan::Dense { .. } => format!("; laid out before {:4.0}", speed(chosen, true)),
                _ => String::new(),
            };
            println!(
                "{name} {rows} x {columns}, {tokens:5} tokens, TFLOP/s: wide {wide:4.0}, dense 256 / 192 / 128 {}{turned}; {chosen:?}",
                dense.join(" / ")
            );
        }
    }
}
