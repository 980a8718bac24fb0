//! Heads and attention against references in f64, and their speed.
#![allow(clippy::unwrap_used, unsafe_code, reason = "a test may, and kernels are started")]

mod common;

use common::{Chance, POISON, bits, device, error, from_bits, median_ms, rounded};
use half::bf16;
use polder_backend_cuda::attention::{
    Attend, AttendCall, DecodePlan, HeadShape, Heads, HeadsCall, KvFormat, NO_ROW, SequenceArgs,
    Turn, Work,
};
use polder_backend_cuda::device::{Buffer, Device, Ptr, Stream};
use polder_backend_cuda::pack::Pack;
use polder_model::RopeLayout;

fn pack() -> Pack {
    let made = Some(std::env::temp_dir().join("polder-test-kernels"));
    Pack { shipped: std::env::var_os("POLDER_KERNELS").map(Into::into), made }
}

/// A plan of blocks alone.
fn plan(warps: u32, stages: u32, together: u32) -> DecodePlan {
    DecodePlan { warps, stages, together, cluster: 1, least: 8 }
}

/// What the bits of an e4m3 stand for.
fn e4m3(bits: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f64::from(bits & 7));
    let size = match exponent {
        0 => mantissa / 8.0 * 2_f64.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2_f64.powi(exponent - 7),
    };
    if bits & 0x80 != 0 { -size } else { size }
}

/// A pool's bytes, and where things lie in it.
struct Pool {
    shape: HeadShape,
    bytes: Vec<u8>,
}

impl Pool {
    fn poisoned(shape: HeadShape, blocks: usize) -> Self {
        Self { shape, bytes: vec![POISON; blocks * shape.block_bytes()] }
    }

    /// Where the row of a head lies; `which` 0 is keys, 1 values. The scale's place too.
    fn row(&self, kv_row: usize, which: usize, head: usize) -> (usize, usize) {
        let HeadShape { kv_heads, head_dim, block_tokens, format, .. } = self.shape;
        let block = kv_row / block_tokens * self.shape.block_bytes();
        let row = (which * kv_heads + head) * block_tokens + kv_row % block_tokens;
        let bytes = if format == KvFormat::Bf16 { 2 } else { 1 };
        (block + row * head_dim * bytes, block + 2 * kv_heads * block_tokens * head_dim + row * 4)
    }

    /// Fills the rows of one position.
    fn draw(&mut self, chance: &mut Chance, kv_row: usize) {
        let dim = self.shape.head_dim;
        for which in 0..2 {
            for head in 0..self.shape.kv_heads {
                let (at, scale) = self.row(kv_row, which, head);
                match self.shape.format {
                    KvFormat::Bf16 => {
                        for (i, value) in bits(&chance.normals(dim, 1.0)).into_iter().enumerate() {
                            self.bytes[at + 2 * i..][..2].copy_from_slice(&value.to_le_bytes());
                        }
                    }
                    KvFormat::Fp8 => {
                        for byte in &mut self.bytes[at..at + dim] {
                            // Neither NaN nor always large.
                            *byte = (chance.next() & 0x80) as u8 | chance.below(0x7f) as u8;
                        }
                        // Positions differ by a factor of a thousand.
                        let value = (0.01 * 10_f64.powf(-3.0 * chance.unit())) as f32;
                        self.bytes[scale..scale + 4].copy_from_slice(&value.to_le_bytes());
                    }
                }
            }
        }
    }

    fn values(&self, kv_row: usize, which: usize, head: usize) -> Vec<f64> {
        let (at, scale) = self.row(kv_row, which, head);
        let dim = self.shape.head_dim;
        match self.shape.format {
            KvFormat::Bf16 => self.bytes[at..at + 2 * dim]
                .chunks(2)
                .map(|two| bf16::from_le_bytes([two[0], two[1]]).to_f64())
                .collect(),
            KvFormat::Fp8 => {
                let scale = f32::from_le_bytes(self.bytes[scale..scale + 4].try_into().unwrap());
                self.bytes[at..at + dim].iter().map(|b| e4m3(*b) * f64::from(scale)).collect()
            }
        }
    }
}

/// Blocks in an order that is not theirs.
fn permuted(chance: &mut Chance, n: usize) -> Vec<u32> {
    let mut all: Vec<u32> = (0..n as u32).collect();
    for i in (1..n).rev() {
        all.swap(i, chance.below(i + 1));
    }
    all
}

/// Attention's buffers on the card.
struct Room {
    q: Buffer<u16>,
    out: Buffer<u16>,
    pool: Buffer<u8>,
    sequences: Buffer<u32>,
    table: Buffer<u32>,
    partials: Buffer<f32>,
    counters: Buffer<u32>,
    tiles: Buffer<u32>,
}

fn counters(device: &Device, attend: &Attend) -> Buffer<u32> {
    device.buffer_of(&vec![0_u32; attend.counters()]).unwrap()
}

impl Room {
    fn call<'a>(&self, shape: &HeadShape, count: usize, work: &'a Work) -> AttendCall<'a> {
        AttendCall {
            q: self.q.at(),
            q_stride: shape.heads * shape.head_dim,
            heads: None,
            out: self.out.at(),
            pool: self.pool.at(),
            sequences: self.sequences.at(),
            count,
            block_table: self.table.at(),
            window: None,
            scale: 1.0 / (shape.head_dim as f32).sqrt(),
            partials: self.partials.at(),
            counters: self.counters.at(),
            work,
            tiles: self.tiles.at(),
        }
    }
}

/// Runs a step of sequences (tokens, positions after it) and compares some rows of it with f64. Queries of a head are `sizes` times as
/// large, in turn; what products are multiplied with is as much smaller as the first of them says. Returns the error.
fn check(
    chance: &mut Chance,
    attend: &mut Attend,
    shape: HeadShape,
    steps: &[(usize, usize)],
    window: Option<u32>,
    scale: f32,
    sizes: [f32; 2],
) -> f64 {
    let device = device();
    let stream = device.stream().unwrap();
    let (dim, group, width) = (shape.head_dim, shape.group(), shape.heads * shape.head_dim);
    let blocks_of = |positions: usize| positions.div_ceil(shape.block_tokens);
    let blocks: usize = steps.iter().map(|s| blocks_of(s.1)).sum::<usize>() + 3;
    let order = permuted(chance, blocks);
    let (mut sequences, mut table, mut tokens) = (Vec::<SequenceArgs>::new(), Vec::new(), 0);
    let mut pool = Pool::poisoned(shape, blocks);
    for &(n, positions) in steps {
        let first = table.len();
        table.extend(&order[first..first + blocks_of(positions)]);
        sequences.push([tokens as u32, n as u32, first as u32, positions as u32]);
        for at in 0..positions {
            let block = table[first + at / shape.block_tokens] as usize;
            pool.draw(chance, block * shape.block_tokens + at % shape.block_tokens);
        }
        tokens += n;
    }
    // Rows that are nobody's, as a graph has them.
    tokens += 2;
    let mut q = chance.normals(tokens * width, 2.0);
    for (head, values) in q.chunks_mut(dim).enumerate() {
        values.iter_mut().for_each(|v| *v *= sizes[head % 2]);
    }
    let (q, scale) = (rounded(&q), scale / sizes[0]);
    let work = attend.work(&sequences);
    let room = Room {
        q: device.buffer_of(&bits(&q)).unwrap(),
        out: device.buffer::<u16>(tokens * width).unwrap(),
        pool: device.buffer_of(&pool.bytes).unwrap(),
        sequences: device.buffer_of(sequences.as_flattened()).unwrap(),
        table: device.buffer_of(&table).unwrap(),
        partials: device.buffer(attend.partials()).unwrap(),
        counters: counters(&device, attend),
        tiles: device.buffer_of(work.tiles.as_flattened()).unwrap(),
    };
    room.partials.fill(POISON).unwrap();
    let call = AttendCall { window, scale, ..room.call(&shape, sequences.len(), &work) };
    let mut runs = Vec::new();
    for _ in 0..2 {
        room.out.fill(POISON).unwrap();
        attend.run(&stream, &call).unwrap();
        runs.push(room.out.values().unwrap());
    }
    assert!(runs[0] == runs[1], "the same twice");
    assert!(room.counters.values().unwrap().iter().all(|n| *n == 0), "counters are zero again");
    let out = from_bits(&runs[0]);

    let (mut mine, mut theirs) = (Vec::new(), Vec::new());
    for (&(n, positions), about) in steps.iter().zip(&sequences) {
        let first = about[0] as usize;
        let rows = &out[first * width..(first + n) * width];
        let wrong = rows.iter().position(|v| !v.is_finite());
        assert!(wrong.is_none(), "not written: {wrong:?} of {n} x {width}, {steps:?} {window:?}");
        for pick in 0..(n * shape.heads).min(48) {
            // The first ones and the last ones, and some between.
            let row = match pick {
                _ if n * shape.heads <= 48 => pick,
                0..16 => pick,
                16..32 => n * shape.heads - 1 - (pick - 16),
                _ => chance.below(n * shape.heads),
            };
            let (token, head) = (row / shape.heads, row % shape.heads);
            let at = (first + token) * width + head * dim;
            let q: Vec<f64> = q[at..at + dim].iter().map(|v| f64::from(*v)).collect();
            let sees = positions - n + token + 1;
            let from = window.map_or(0, |w| sees.saturating_sub(w as usize));
            let kv_row = |p: usize| {
                let block = table[about[2] as usize + p / shape.block_tokens] as usize;
                block * shape.block_tokens + p % shape.block_tokens
            };
            let scores: Vec<f64> = (from..sees)
                .map(|p| {
                    let k = pool.values(kv_row(p), 0, head / group);
                    q.iter().zip(k).map(|(a, b)| a * b).sum::<f64>() * f64::from(scale)
                })
                .collect();
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
            let total: f64 = weights.iter().sum();
            let mut sum = vec![0.0; dim];
            for (p, weight) in (from..sees).zip(weights) {
                for (to, v) in sum.iter_mut().zip(pool.values(kv_row(p), 1, head / group)) {
                    *to += weight / total * v;
                }
            }
            mine.extend_from_slice(&out[at..at + dim]);
            theirs.extend(sum);
        }
    }
    let behind = (tokens - 2) * width;
    assert!(runs[0][behind..].iter().all(|v| *v == 0xffff), "rows of nobody are left alone");
    error(&mine, &theirs)
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_attention_is_softmax_over_everything_a_token_sees() {
    check_shapes(KvFormat::Bf16);
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_attention_over_fp8_is_softmax_over_everything_a_token_sees() {
    check_shapes(KvFormat::Fp8);
}

fn check_shapes(format: KvFormat) {
    let shapes = [
        (32, 4, 128, 16),
        (64, 4, 128, 32),
        (9, 3, 64, 16),
        (4, 4, 64, 48),
        (8, 2, 96, 16),
        (8, 4, 256, 16),
        (16, 1, 256, 64),
        (16, 1, 64, 16),
    ];
    std::thread::scope(|scope| {
        for (seed, (heads, kv_heads, head_dim, block_tokens)) in shapes.into_iter().enumerate() {
            let shape = HeadShape { heads, kv_heads, head_dim, block_tokens, format };
            scope.spawn(move || check_shape(&mut Chance::new(seed as u64 + 7), shape));
        }
    });
}

/// Shared out in all ways: as few and as many sequences are, small blocks, clusters that cut walks and that do not.
fn some_plans(attend: &Attend) -> Vec<DecodePlan> {
    let [one, few, many] = attend.plans();
    let mut plans = vec![one, few, many, plan(2, 1, 2), plan(1, 2, 1)];
    if one.cluster > 1 {
        plans.push(DecodePlan { cluster: 4, least: 1, ..one });
        plans.push(DecodePlan { cluster: 2, least: 16, ..plan(2, 1, 1) });
        plans.push(DecodePlan { least: 8, ..one });
    }
    plans
}

fn check_shape(chance: &mut Chance, shape: HeadShape) {
    let device = device();
    let mut worst = 0_f64;
    let mut attend = Attend::load(&pack(), &device, shape).unwrap();
    let plans = some_plans(&attend);
    let steps: [&[(usize, usize)]; 7] = [
        &[(1, 1)],
        &[(1, 1025), (0, 0), (1, 17), (1, 16), (0, 0), (1, 400)],
        &[(1, 3000)],
        &[(2, 700), (3, 3), (4, 33), (1, 64)],
        &[(1, 90), (7, 7), (64, 64), (300, 300), (1, 513)],
        &[(1, 100), (7, 350), (64, 464), (300, 1111), (33, 34)],
        &[(130, 2050)],
    ];
    for (n, step) in steps.into_iter().enumerate() {
        for (m, window) in [None, Some(37), Some(512)].into_iter().enumerate() {
            attend.set_plans([plans[(n + 3 * m) % plans.len()]; 3]).unwrap();
            let scale = [1.0, 0.3][n % 2] / (shape.head_dim as f32).sqrt();
            let error = check(chance, &mut attend, shape, step, window, scale, [1.0; 2]);
            assert!(error < 5e-3, "{shape:?} {step:?} {window:?}: {error:.2e}");
            worst = worst.max(error);
        }
    }
    println!("{shape:?}: {worst:.2e}");
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_queries_of_any_size_ask_the_same() {
    let device = device();
    for format in [KvFormat::Bf16, KvFormat::Fp8] {
        let shape = HeadShape { heads: 32, kv_heads: 4, head_dim: 128, block_tokens: 16, format };
        let mut attend = Attend::load(&pack(), &device, shape).unwrap();
        for sizes in [[1.0, 1.0], [1.0, 0.01], [0.0003, 0.001], [100.0, 3.0], [10_000.0, 5000.0]] {
            let chance = &mut Chance::new(11);
            let step = [(33, 700), (20, 1500)];
            let scale = 1.0 / (shape.head_dim as f32).sqrt();
            let error = check(chance, &mut attend, shape, &step, None, scale, sizes);
            println!("{format:?} times {sizes:?}: {error:.2e}");
            assert!(error < 5e-3, "{shape:?} {sizes:?}: {error:.2e}");
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_graph_serves_every_length() {
    let device = device();
    let stream = device.stream().unwrap();
    let mut chance = Chance::new(9);
    let shape = HeadShape {
        heads: 32,
        kv_heads: 4,
        head_dim: 128,
        block_tokens: 16,
        format: KvFormat::Bf16,
    };
    let attend = Attend::load(&pack(), &device, shape).unwrap();
    let (count, most, width) = (4, 3000, 32 * 128);
    let blocks = count * most / 16 + count;
    let mut pool = Pool::poisoned(shape, blocks);
    (0..blocks * 16).for_each(|row| pool.draw(&mut chance, row));
    let table: Vec<u32> = permuted(&mut chance, blocks);
    let work = attend.graph_work();
    let q = bits(&chance.normals(count * width, 1.0));
    let room = Room {
        q: device.buffer_of(&q).unwrap(),
        out: device.buffer(count * width).unwrap(),
        pool: device.buffer_of(&pool.bytes).unwrap(),
        sequences: device.buffer(count * 4).unwrap(),
        table: device.buffer_of(&table).unwrap(),
        partials: device.buffer(attend.partials()).unwrap(),
        counters: counters(&device, &attend),
        tiles: device.buffer(1).unwrap(),
    };
    room.sequences.fill(0).unwrap();
    let call = room.call(&shape, count, &work);
    let graph = stream.capture(|| attend.run(&stream, &call)).unwrap();
    for lengths in [[1, 2, 3, 0], [3000, 0, 0, 0], [17, 2999, 640, 1], [0, 0, 0, 0]] {
        let mut sequences = Vec::new();
        for (n, length) in lengths.into_iter().enumerate() {
            let first = n * blocks / count;
            sequences.extend([n as u32, u32::from(length > 0), first as u32, length]);
        }
        room.sequences.write(0, &sequences).unwrap();
        room.out.fill(POISON).unwrap();
        // SAFETY: the room is there.
        unsafe { stream.replay(&graph) }.unwrap();
        let together = room.out.values().unwrap();
        for (n, length) in lengths.into_iter().enumerate() {
            let mine = &together[n * width..(n + 1) * width];
            if length == 0 {
                assert!(mine.iter().all(|v| *v == 0xffff), "nobody's row is left alone");
                continue;
            }
            // Each alone: the shares differ, the result must not by more than rounding.
            let mut alone = vec![0_u32; 16];
            alone[..4].copy_from_slice(&sequences[4 * n..][..4]);
            room.sequences.write(0, &alone).unwrap();
            // SAFETY: the same.
            unsafe { stream.replay(&graph) }.unwrap();
            let values = room.out.values().unwrap();
            let alone: Vec<f64> =
                from_bits(&values[n * width..(n + 1) * width]).into_iter().map(f64::from).collect();
            let error = error(&from_bits(mine), &alone);
            assert!(error < 3e-3, "{lengths:?} {n}: {error:.2e}");
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_heads_are_normed_turned_and_kept() {
    let device = device();
    let stream = device.stream().unwrap();
    let mut chance = Chance::new(3);
    // As Llama 3 and YaRN stretch them: some a plain power, some divided, one in between.
    let frequencies = |dims: usize, theta: f64| -> Vec<f64> {
        (0..dims / 2)
            .map(|i| {
                let plain = theta.powf(-2.0 * i as f64 / dims as f64);
                plain / [1.0, 1.0, 2.7, 8.0][i * 8 / dims]
            })
            .collect()
    };
    let cases = [
        (32, 4, 128, 128, RopeLayout::Halves, true),
        (9, 3, 64, 64, RopeLayout::Interleaved, false),
        (4, 2, 96, 48, RopeLayout::Halves, false),
        (4, 2, 96, 32, RopeLayout::Interleaved, true),
        (8, 4, 256, 256, RopeLayout::Halves, true),
    ];
    for (heads, kv_heads, head_dim, dims, layout, normed) in cases {
        for (format, in_place) in [(KvFormat::Bf16, false), (KvFormat::Fp8, true)] {
            let shape = HeadShape { heads, kv_heads, head_dim, block_tokens: 32, format };
            let kernel = Heads::load(&pack(), &device, shape).unwrap();
            let (tokens, blocks, eps, amplitude) = (37, 5, 1e-6, 1.1_f32);
            let width = shape.qkv_width();
            let qkv = rounded(&chance.normals(tokens * width, 1.0));
            let positions: Vec<u32> = (0..tokens)
                .map(|t| match t {
                    0 => 0,
                    1 => 262_143,
                    _ => chance.below(200_000) as u32,
                })
                .collect();
            let rows: Vec<u32> = permuted(&mut chance, blocks * 32)
                .into_iter()
                .take(tokens)
                .enumerate()
                .map(|(t, row)| if t % 9 == 4 { NO_ROW } else { row })
                .collect();
            let [q_norm, k_norm] = [0, 1].map(|_| chance.normals(head_dim, 1.0));
            let frequencies = frequencies(dims, 1e6);
            let q_stride = if in_place { width } else { heads * head_dim };
            let buffers = (
                device.buffer_of(&bits(&qkv)).unwrap(),
                device.buffer::<u16>(tokens * q_stride).unwrap(),
                device.buffer_of(&positions).unwrap(),
                device.buffer_of(&rows).unwrap(),
                device.buffer_of(&q_norm).unwrap(),
                device.buffer_of(&k_norm).unwrap(),
                device.buffer_of(&frequencies).unwrap(),
            );
            let pool = device.buffer::<u8>(blocks * shape.block_bytes()).unwrap();
            pool.fill(POISON).unwrap();
            buffers.1.fill(POISON).unwrap();
            let norm = |buffer: &Buffer<f32>| if normed { buffer.at() } else { Ptr(0) };
            let call = HeadsCall {
                qkv: buffers.0.at(),
                q: if in_place { buffers.0.at() } else { buffers.1.at() },
                q_stride,
                pool: pool.at(),
                positions: buffers.2.at(),
                kv_rows: buffers.3.at(),
                q_norm: norm(&buffers.4),
                k_norm: norm(&buffers.5),
                eps,
                turn: Turn { frequencies: buffers.6.at(), dims, layout, amplitude },
                tokens,
            };
            kernel.run(&stream, &call).unwrap();
            let out = if in_place { &buffers.0 } else { &buffers.1 };
            let q = from_bits(&out.values().unwrap());
            let mut expected = Pool::poisoned(shape, blocks);
            let kept = Pool { shape, bytes: pool.values().unwrap() };

            let head_of = |token: usize, head: usize, weight: Option<&[f32]>, turns: bool| {
                let from = &qkv[token * width + head * head_dim..][..head_dim];
                let mut x: Vec<f64> = from.iter().map(|v| f64::from(*v)).collect();
                if let Some(weight) = weight.filter(|_| normed) {
                    let mean = x.iter().map(|v| v * v).sum::<f64>() / head_dim as f64;
                    let up = 1.0 / (mean + f64::from(eps)).sqrt();
                    x.iter_mut().zip(weight).for_each(|(x, w)| *x *= up * f64::from(*w));
                }
                for (i, frequency) in frequencies.iter().enumerate().filter(|_| turns) {
                    let (a, b) = match layout {
                        RopeLayout::Interleaved => (2 * i, 2 * i + 1),
                        RopeLayout::Halves => (i, i + dims / 2),
                    };
                    let (sin, cos) = (f64::from(positions[token]) * frequency).sin_cos();
                    let (sin, cos) = (sin * f64::from(amplitude), cos * f64::from(amplitude));
                    (x[a], x[b]) = (x[a] * cos - x[b] * sin, x[a] * sin + x[b] * cos);
                }
                x
            };
            let (mut mine, mut theirs) = (Vec::new(), Vec::new());
            for token in 0..tokens {
                for head in 0..heads {
                    mine.extend_from_slice(&q[token * q_stride + head * head_dim..][..head_dim]);
                    theirs.extend(head_of(token, head, Some(&q_norm), true));
                }
            }
            let queries = error(&mine, &theirs);
            assert!(queries < 3e-3, "{shape:?} {layout:?}: queries {queries:.2e}");

            let (mut mine, mut theirs) = (Vec::new(), Vec::new());
            for token in (0..tokens).filter(|t| rows[*t] != NO_ROW) {
                for which in 0..2 {
                    for head in 0..kv_heads {
                        let weight = (which == 0).then_some(k_norm.as_slice());
                        let at = heads + which * kv_heads + head;
                        let reference = head_of(token, at, weight, which == 0);
                        let row = rows[token] as usize;
                        let values = kept.values(row, which, head);
                        let (at, scale) = kept.row(row, which, head);
                        let bytes = if format == KvFormat::Bf16 { 2 } else { 1 };
                        let all = at..at + head_dim * bytes;
                        expected.bytes[all.clone()].copy_from_slice(&kept.bytes[all]);
                        if format == KvFormat::Fp8 {
                            let all = scale..scale + 4;
                            expected.bytes[all.clone()].copy_from_slice(&kept.bytes[all.clone()]);
                            let scale = f32::from_le_bytes(kept.bytes[all].try_into().unwrap());
                            let most = reference.iter().fold(0_f64, |m, v| m.max(v.abs()));
                            let off = (f64::from(scale) * 448.0 / most - 1.0).abs();
                            assert!(off < 1e-3, "scale {scale} for {most}");
                            // Each value is one of the nearest: half a step of its size, or of the smallest.
                            for (value, reference) in values.iter().zip(&reference) {
                                let step = (reference.abs() / 16.0).max(f64::from(scale) / 1024.0);
                                let off = (value - reference).abs();
                                assert!(off < step * 1.01, "{value} for {reference}");
                            }
                        }
                        mine.extend(values.iter().map(|v| *v as f32));
                        theirs.extend(reference);
                    }
                }
            }
            let bound = if format == KvFormat::Bf16 { 3e-3 } else { 4e-2 };
            let pool_error = error(&mine, &theirs);
            assert!(pool_error < bound, "{shape:?} {layout:?}: pool {pool_error:.2e}");
            assert!(kept.bytes == expected.bytes, "nothing else in the pool is touched");
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_attention_sees_what_heads_write_just_before_it() {
    let device = device();
    let stream = device.stream().unwrap();
    let mut chance = Chance::new(11);
    for format in [KvFormat::Bf16, KvFormat::Fp8] {
        let shape = HeadShape { heads: 32, kv_heads: 4, head_dim: 128, block_tokens: 16, format };
        let attend = Attend::load(&pack(), &device, shape).unwrap();
        let heads = Heads::load(&pack(), &device, shape).unwrap();
        // Tokens and positions after the step; the new ones at the start, inside and at the end of sixteen.
        let steps = [(1, 1), (1, 17), (1, 500), (1, 1024), (3, 1026), (2, 129), (1, 2000)];
        let (layers, width, blocks) = (6, 32 * 128, 400);
        let (mut sequences, mut table, mut rows, mut positions) = (vec![], vec![], vec![], vec![]);
        let order = permuted(&mut chance, blocks);
        for (n, after) in steps {
            sequences.push([rows.len(), n, table.len(), after].map(|n| n as u32));
            let first = table.len();
            table.extend(&order[first..first + usize::div_ceil(after, 16)]);
            for at in after - n..after {
                rows.push(table[first + at / 16] * 16 + at as u32 % 16);
                positions.push(at as u32);
            }
        }
        let tokens = rows.len();
        let mut pool = Pool::poisoned(shape, blocks);
        let new = |row: &usize| rows.contains(&(*row as u32));
        (0..blocks * 16).filter(|row| !new(row)).for_each(|row| pool.draw(&mut chance, row));
        let work = attend.work(&sequences);
        assert!(work.decode && work.tiles.is_empty());
        let room = Room {
            q: device.buffer(tokens * width).unwrap(),
            out: device.buffer(tokens * width * layers).unwrap(),
            pool: device.buffer(pool.bytes.len() * layers).unwrap(),
            sequences: device.buffer_of(sequences.as_flattened()).unwrap(),
            table: device.buffer_of(&table).unwrap(),
            partials: device.buffer(attend.partials()).unwrap(),
            counters: counters(&device, &attend),
            tiles: device.buffer(1).unwrap(),
        };
        let qkv: Vec<_> = (0..layers)
            .map(|_| {
                let values = chance.normals(tokens * shape.qkv_width(), 1.0);
                device.buffer_of(&bits(&values)).unwrap()
            })
            .collect();
        let (rows, positions) =
            (device.buffer_of(&rows).unwrap(), device.buffer_of(&positions).unwrap());
        let frequencies: Vec<f64> = (0..64).map(|i| 1e6_f64.powf(f64::from(-i) / 64.0)).collect();
        let frequencies = device.buffer_of(&frequencies).unwrap();
        let fill = || {
            (0..layers).for_each(|n| room.pool.write(n * pool.bytes.len(), &pool.bytes).unwrap());
            room.out.fill(POISON).unwrap();
        };
        let step = |wait: bool| {
            for (n, qkv) in qkv.iter().enumerate() {
                let layer = room.pool.offset(n * pool.bytes.len());
                let turn = Turn {
                    frequencies: frequencies.at(),
                    dims: 128,
                    layout: RopeLayout::Halves,
                    amplitude: 1.0,
                };
                let call = HeadsCall {
                    qkv: qkv.at(),
                    q: room.q.at(),
                    q_stride: width,
                    pool: layer,
                    positions: positions.at(),
                    kv_rows: rows.at(),
                    q_norm: Ptr(0),
                    k_norm: Ptr(0),
                    eps: 1e-6,
                    turn,
                    tokens,
                };
                heads.run(&stream, &call).unwrap();
                if wait {
                    stream.synchronize().unwrap();
                }
                let out = room.out.offset(n * tokens * width);
                let call = room.call(&shape, steps.len(), &work);
                attend.run(&stream, &AttendCall { pool: layer, out, ..call }).unwrap();
                if wait {
                    stream.synchronize().unwrap();
                }
            }
        };
        fill();
        step(true);
        let expected = room.out.values().unwrap();
        assert!(from_bits(&expected).iter().all(|v| v.is_finite()));
        let graph = stream
            .capture(|| {
                step(false);
                Ok(())
            })
            .unwrap();
        for _ in 0..20 {
            fill();
            // SAFETY: what it was recorded with is there.
            unsafe { stream.replay(&graph) }.unwrap();
            assert!(room.out.values().unwrap() == expected, "{format:?}: overlap changes results");
        }
    }
}

/// One token of each sequence: heads done inside attention are what `Heads` makes of them before it, in the pool and in the result.
#[test]
#[ignore = "needs a GPU"]
fn gpu_heads_on_the_way_are_the_heads_before_attention() {
    let device = device();
    let stream = device.stream().unwrap();
    let mut chance = Chance::new(17);
    let cases = [
        (32, 4, 128, 128, 16, RopeLayout::Halves, true),
        (64, 4, 128, 64, 32, RopeLayout::Halves, true),
        (40, 8, 128, 128, 16, RopeLayout::Interleaved, false),
        (9, 3, 64, 64, 16, RopeLayout::Interleaved, false),
        (16, 1, 64, 32, 48, RopeLayout::Halves, true),
        (8, 2, 96, 48, 16, RopeLayout::Halves, true),
        (16, 1, 256, 256, 64, RopeLayout::Halves, true),
        (8, 4, 256, 256, 16, RopeLayout::Halves, false),
    ];
    for (heads, kv_heads, head_dim, dims, block_tokens, layout, normed) in cases {
        for format in [KvFormat::Bf16, KvFormat::Fp8] {
            let shape = HeadShape { heads, kv_heads, head_dim, block_tokens, format };
            let mut attend = Attend::load(&pack(), &device, shape).unwrap();
            let kernel = Heads::load(&pack(), &device, shape).unwrap();
            let lengths: Vec<u32> = vec![1, 16, 0, 17, 500, 1024, 33, 0, 2000, 1, 3777];
            let (layers, width, qkv_width) = (4, heads * head_dim, shape.qkv_width());
            let blocks_of = |positions: u32| (positions as usize).div_ceil(block_tokens);
            let blocks = lengths.iter().map(|n| blocks_of(*n)).sum::<usize>() + 3;
            let order = permuted(&mut chance, blocks);
            let (mut sequences, mut table) = (vec![], vec![]);
            let (mut rows, mut positions) = (vec![], vec![]);
            for (n, length) in lengths.iter().enumerate() {
                let first = table.len();
                sequences.push([n as u32, (*length).min(1), first as u32, *length]);
                table.extend(&order[first..first + blocks_of(*length)]);
                positions.push(length.saturating_sub(1));
                rows.push(match *length as usize {
                    0 => NO_ROW,
                    n => {
                        let block = table[first + (n - 1) / block_tokens] as usize;
                        (block * block_tokens + (n - 1) % block_tokens) as u32
                    }
                });
            }
            let tokens = lengths.len();
            let mut pool = Pool::poisoned(shape, blocks);
            let new = |row: &usize| rows.contains(&(*row as u32));
            // Only what is seen: new rows, those behind them and blocks of nobody keep their poison.
            for (about, length) in sequences.iter().zip(&lengths) {
                for at in 0..*length as usize {
                    let block = table[about[2] as usize + at / block_tokens] as usize;
                    let row = block * block_tokens + at % block_tokens;
                    if !new(&row) {
                        pool.draw(&mut chance, row);
                    }
                }
            }
            let work = attend.work(&sequences);
            assert!(work.single && work.tiles.is_empty());
            let qkv: Vec<_> = (0..layers)
                .map(|_| device.buffer_of(&bits(&chance.normals(tokens * qkv_width, 1.0))).unwrap())
                .collect();
            let norms = [0, 1].map(|_| device.buffer_of(&chance.normals(head_dim, 1.0)).unwrap());
            let frequencies: Vec<f64> =
                (0..dims / 2).map(|i| 1e6_f64.powf(-2.0 * i as f64 / dims as f64)).collect();
            let frequencies = device.buffer_of(&frequencies).unwrap();
            let (rows, positions) =
                (device.buffer_of(&rows).unwrap(), device.buffer_of(&positions).unwrap());
            let norm = |n: usize| if normed { norms[n].at() } else { Ptr(0) };
            let step = |attend: &Attend, room: &Room, fuses: bool, window: Option<u32>| {
                for (n, qkv) in qkv.iter().enumerate() {
                    let layer = room.pool.offset(n * pool.bytes.len());
                    let turn = Turn { frequencies: frequencies.at(), dims, layout, amplitude: 1.1 };
                    let call = HeadsCall {
                        qkv: qkv.at(),
                        q: room.q.at(),
                        q_stride: width,
                        pool: layer,
                        positions: positions.at(),
                        kv_rows: rows.at(),
                        q_norm: norm(0),
                        k_norm: norm(1),
                        eps: 1e-6,
                        turn,
                        tokens,
                    };
                    let out = room.out.offset(n * tokens * width);
                    let base = room.call(&shape, tokens, &work);
                    let base = AttendCall { pool: layer, out, window, ..base };
                    if fuses {
                        let (q, q_stride) = (qkv.at(), qkv_width);
                        let call = AttendCall { q, q_stride, heads: Some(&call), ..base };
                        attend.run(&stream, &call).unwrap();
                    } else {
                        kernel.run(&stream, &call).unwrap();
                        stream.synchronize().unwrap();
                        attend.run(&stream, &base).unwrap();
                        stream.synchronize().unwrap();
                    }
                }
            };
            let mut worst = 0_f64;
            for plan in some_plans(&attend) {
                attend.set_plans([plan; 3]).unwrap();
                let room = Room {
                    partials: device.buffer(attend.partials()).unwrap(),
                    counters: counters(&device, &attend),
                    q: device.buffer(tokens * width).unwrap(),
                    out: device.buffer(tokens * width * layers).unwrap(),
                    pool: device.buffer(pool.bytes.len() * layers).unwrap(),
                    sequences: device.buffer_of(sequences.as_flattened()).unwrap(),
                    table: device.buffer_of(&table).unwrap(),
                    tiles: device.buffer(1).unwrap(),
                };
                let fill = || {
                    (0..layers)
                        .for_each(|n| room.pool.write(n * pool.bytes.len(), &pool.bytes).unwrap());
                    room.out.fill(POISON).unwrap();
                };
                for window in [None, Some(100)] {
                    fill();
                    step(&attend, &room, false, window);
                    let (expected, kept) =
                        (room.out.values().unwrap(), room.pool.values().unwrap());
                    let graph = stream
                        .capture(|| {
                            step(&attend, &room, true, window);
                            Ok(())
                        })
                        .unwrap();
                    for _ in 0..3 {
                        fill();
                        // SAFETY: what it was recorded with is there.
                        unsafe { stream.replay(&graph) }.unwrap();
                        let out = room.out.values().unwrap();
                        let about = format!("{shape:?} {plan:?} {window:?}");
                        for (n, length) in lengths.iter().enumerate() {
                            for layer in 0..layers {
                                let at = (layer * tokens + n) * width;
                                let (mine, theirs) =
                                    (&out[at..at + width], &expected[at..at + width]);
                                if *length == 0 {
                                    assert!(mine.iter().all(|v| *v == 0xffff), "{about}");
                                    continue;
                                }
                                let theirs: Vec<f64> =
                                    from_bits(theirs).into_iter().map(f64::from).collect();
                                let off = error(&from_bits(mine), &theirs);
                                assert!(off < 2e-3, "{about} {n} of {length}: {off:.2e}");
                                worst = worst.max(off);
                            }
                        }
                        let differ = room.pool.values().unwrap();
                        let differ = differ.iter().zip(&kept).filter(|(a, b)| a != b).count();
                        assert!(differ <= 4, "{about}: {differ} bytes of the pool differ");
                        let counters = room.counters.values().unwrap();
                        assert!(counters.iter().all(|n| *n == 0), "counters are zero again");
                    }
                }
            }
            println!("{shape:?} {:?}: {worst:.2e}", attend.plans()[0]);
        }
    }
}

/// Pool, queries and tables for many layers of a step, each sequence of the same length.
struct Bench {
    shape: HeadShape,
    room: Room,
    count: usize,
    layers: usize,
    layer_bytes: usize,
    /// Keys and values read for one layer.
    bytes: f64,
}

impl Bench {
    fn new(
        device: &Device,
        chance: &mut Chance,
        attend: &Attend,
        shape: HeadShape,
        (count, tokens, length): (usize, usize, usize),
    ) -> Self {
        let blocks = length.div_ceil(shape.block_tokens);
        let layer_bytes = count * blocks * shape.block_bytes();
        let layers = (240_000_000 / layer_bytes).clamp(1, 64);
        let pool = device.buffer::<u8>(layers * layer_bytes).unwrap();
        let mut piece: Vec<u8> = match shape.format {
            KvFormat::Bf16 => {
                bits(&chance.normals(1 << 20, 1.0)).into_iter().flat_map(u16::to_le_bytes).collect()
            }
            // Scales come out as small numbers, too.
            KvFormat::Fp8 => (0..1 << 21).map(|_| chance.next() as u8 & 0x3b).collect(),
        };
        piece.truncate(piece.len() / shape.block_bytes().min(piece.len()) * shape.block_bytes());
        for at in (0..pool.len()).step_by(piece.len()) {
            pool.write(at, &piece[..piece.len().min(pool.len() - at)]).unwrap();
        }
        let mut sequences = Vec::new();
        for n in 0..count {
            let numbers = [n * tokens, tokens, n * blocks, length].map(|n| n as u32);
            sequences.push(numbers);
        }
        let width = shape.heads * shape.head_dim;
        let some = bits(&chance.normals(1 << 18, 1.0));
        let q = some.repeat((count * tokens * width).div_ceil(some.len()));
        let work = attend.work(&sequences);
        let room = Room {
            q: device.buffer_of(&q).unwrap(),
            out: device.buffer(count * tokens * width).unwrap(),
            pool,
            sequences: device.buffer_of(sequences.as_flattened()).unwrap(),
            table: device.buffer_of(&permuted(chance, count * blocks)).unwrap(),
            partials: device.buffer(attend.partials()).unwrap(),
            counters: counters(device, attend),
            tiles: device.buffer_of(work.tiles.as_flattened()).unwrap(),
        };
        let per_position = shape.block_bytes() / shape.block_tokens;
        let bytes = (count * length * per_position) as f64;
        Self { shape, room, count, layers, layer_bytes, bytes }
    }

    /// Microseconds of one layer: attention alone, which waits for the one before, or with the heads before it, or with them on the way.
    fn time(
        &self,
        device: &Device,
        stream: &Stream,
        (heads, attend): (Option<(&Heads, &HeadsCall, bool)>, &Attend),
        work: &Work,
    ) -> f64 {
        let launches = self.layers.max(8);
        let ms = median_ms(device, stream, 9, || {
            for n in 0..launches {
                let pool = self.room.pool.offset(n % self.layers * self.layer_bytes);
                let call = self.room.call(&self.shape, self.count, work);
                let call = AttendCall { pool, ..call };
                match heads {
                    Some((_, heads, true)) => {
                        let (q, q_stride) = (heads.qkv, self.shape.qkv_width());
                        let call = AttendCall { q, q_stride, heads: Some(heads), ..call };
                        attend.run(stream, &call).unwrap();
                    }
                    Some((kernel, heads, false)) => {
                        kernel.run(stream, &HeadsCall { pool, ..*heads }).unwrap();
                        attend.run(stream, &call).unwrap();
                    }
                    None => attend.run(stream, &call).unwrap(),
                }
            }
        });
        f64::from(ms) * 1e3 / launches as f64
    }
}

impl Bench {
    /// Microseconds of one layer with what goes before: norms of heads, RoPE, keys and values into the pool. By a kernel before, and on
    /// the way.
    fn with_heads(
        &self,
        device: &Device,
        stream: &Stream,
        pack: &Pack,
        attend: &Attend,
        work: &Work,
    ) -> [f64; 2] {
        let heads = Heads::load(pack, device, self.shape).unwrap();
        let qkv = device.buffer::<u16>(self.count * self.shape.qkv_width()).unwrap();
        qkv.fill(0x3b).unwrap();
        let positions = device.buffer_of(&vec![1000_u32; self.count]).unwrap();
        let rows: Vec<u32> = (0..self.count as u32).map(|n| n * 16 + 3).collect();
        let rows = device.buffer_of(&rows).unwrap();
        let norm = device.buffer_of(&vec![1.0_f32; self.shape.head_dim]).unwrap();
        let dims = self.shape.head_dim;
        let frequencies = device.buffer_of(&vec![0.01_f64; dims / 2]).unwrap();
        let call = HeadsCall {
            qkv: qkv.at(),
            q: self.room.q.at(),
            q_stride: self.shape.heads * dims,
            pool: Ptr(0),
            positions: positions.at(),
            kv_rows: rows.at(),
            q_norm: norm.at(),
            k_norm: norm.at(),
            eps: 1e-6,
            turn: Turn {
                frequencies: frequencies.at(),
                dims,
                layout: RopeLayout::Halves,
                amplitude: 1.0,
            },
            tokens: self.count,
        };
        [false, true]
            .map(|fuses| self.time(device, stream, (Some((&heads, &call, fuses)), attend), work))
    }
}

/// What this card's memory gives, GB/s.
fn ceiling(device: &Device) -> f64 {
    if device.name().contains("H200") { 4660.0 } else { 3350.0 * 0.92 }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_speed_of_decode_attention() {
    let device = device();
    let stream = device.stream().unwrap();
    let mut chance = Chance::new(5);
    println!("{}: decode, us a layer (% of {:.0} GB/s)", device.name(), ceiling(&device));
    for (heads, format) in
        [(32, KvFormat::Bf16), (32, KvFormat::Fp8), (64, KvFormat::Bf16), (64, KvFormat::Fp8)]
    {
        let shape = HeadShape { heads, kv_heads: 4, head_dim: 128, block_tokens: 16, format };
        let mut attend = Attend::load(&pack(), &device, shape).unwrap();
        let [one, few, many] = attend.plans();
        let mut plans = vec![one, few, many];
        if heads == 32 {
            for (cluster, least) in [(4, 8), (4, 32), (8, 8), (8, 64)] {
                plans.push(DecodePlan { cluster, least: least * cluster, ..one });
            }
        }
        println!("{heads} heads {format:?}, one is {one:?}");
        for (count, length) in [
            (1, 128),
            (1, 1024),
            (1, 2048),
            (1, 4096),
            (1, 8192),
            (1, 32768),
            (2, 1024),
            (4, 1024),
            (8, 1024),
            (8, 16384),
            (12, 1024),
            (32, 1024),
            (32, 1100),
            (32, 16384),
            (64, 300),
        ] {
            // The most blocks, for which there is then memory.
            attend.set_plans([many; 3]).unwrap();
            let bench = Bench::new(&device, &mut chance, &attend, shape, (count, 1, length));
            print!("  {count}x{length}:");
            for plan in &plans {
                // Small blocks are for many, clusters for few.
                if plan.together == 2 && count < 8 || plan.cluster > 1 && count > 16 {
                    continue;
                }
                attend.set_plans([*plan; 3]).unwrap();
                let work = attend.graph_work();
                let us = bench.time(&device, &stream, (None, &attend), &work);
                let part = bench.bytes / us / 1e3 / ceiling(&device) * 100.0;
                let DecodePlan { warps, together, cluster, least, .. } = plan;
                print!("  {warps}w/{together}/c{cluster}/{least} {us:.2} ({part:.0}%)");
                if count * length <= 32768 {
                    let [before, fused] =
                        bench.with_heads(&device, &stream, &pack(), &attend, &work);
                    print!(" +heads {before:.2} fused {fused:.2}");
                }
            }
            println!();
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_speed_of_prefill_attention() {
    let device = device();
    let stream = device.stream().unwrap();
    let mut chance = Chance::new(6);
    println!("{}: prefill", device.name());
    for (heads, kv_heads, head_dim) in
        [(32, 4, 128), (64, 4, 128), (32, 8, 128), (32, 8, 64), (16, 8, 256)]
    {
        for format in [KvFormat::Bf16, KvFormat::Fp8] {
            let shape = HeadShape { heads, kv_heads, head_dim, block_tokens: 16, format };
            let attend = Attend::load(&pack(), &device, shape).unwrap();
            let steps = [
                (2048, 2048),
                (8192, 8192),
                (512, 8192),
                (64, 65_536),
                (128, 65_536),
                (256, 65_536),
                (512, 65_536),
                (2048, 65_536),
            ];
            for (tokens, length) in steps {
                if head_dim != 128 && tokens * length > 1 << 24 {
                    continue;
                }
                let bench = Bench::new(&device, &mut chance, &attend, shape, (1, tokens, length));
                let work = attend.work(&[[0, tokens as u32, 0, length as u32]]);
                let us = bench.time(&device, &stream, (None, &attend), &work);
                let sees = length as f64 - tokens as f64 / 2.0;
                let operations = 4.0 * tokens as f64 * sees * (heads * head_dim) as f64;
                let rate = operations / us / 1e6;
                println!(
                    "{heads}/{kv_heads} x {head_dim} {format:?} {tokens} of {length}: {us:.0} us, {rate:.0} TFLOP/s ({:.0} %)",
                    rate / 7.89
                );
            }
        }
    }
}
