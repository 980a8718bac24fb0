//! Mixtures of experts against references in f64.
#![allow(clippy::unwrap_used, unsafe_code, reason = "a test may, and kernels are started")]

mod common;

use common::{Chance, POISON, bits, device, error, from_bits, median_ms, rounded};
use half::{bf16, f16};
use polder_backend_cuda::device::{Buffer, Device, Ptr};
use polder_backend_cuda::moe::{Call, Input, Mixture, Moe, Output, Part, Space};
use polder_backend_cuda::pack::Pack;
use polder_backend_cuda::tiles::{Matrix, Rows, STRIP, TileFormat, pack_strip};
use polder_model::Activation;

const EPS: f32 = 1e-6;
const FORMATS: [TileFormat; 4] = [
    TileFormat::Bf16,
    TileFormat::Int4 { group: 64 },
    TileFormat::Int4 { group: 128 },
    TileFormat::Fp8,
];

/// The kernels, and what is left of them without what only newer or larger cards can do.
fn both(device: &Device) -> [Moe; 2] {
    [kernels(device), kernels(device).plain()]
}

fn kernels(device: &Device) -> Moe {
    let made = Some(std::env::temp_dir().join("polder-test-kernels"));
    Moe::load(&Pack { shipped: None, made }, device).unwrap()
}

fn from_e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let size = match exponent {
        0 => mantissa * 2f32.powi(-9),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if byte & 0x80 == 0 { size } else { -size }
}

/// A random strip and its true values, `[16][columns]`, of about `1 / sqrt(columns)`.
fn strip(chance: &mut Chance, columns: usize, format: TileFormat) -> (Rows, Vec<f32>) {
    let size = 1.0 / (columns as f64).sqrt();
    let n = STRIP * columns;
    match format {
        TileFormat::Bf16 => {
            let values = rounded(&chance.normals(n, size));
            (Rows::Values(values.clone()), values)
        }
        TileFormat::Int4 { group } => {
            let groups = columns.div_ceil(group);
            let q: Vec<u8> = (0..n).map(|_| chance.below(16) as u8).collect();
            let scale = |c: &mut Chance| f16::from_f64(size / 4.6 * (0.5 + c.unit())).to_f32();
            let scales: Vec<f32> = (0..STRIP * groups).map(|_| scale(chance)).collect();
            let zeros: Vec<u8> = (0..STRIP * groups).map(|_| 4 + chance.below(8) as u8).collect();
            let value = |at: usize| {
                let about = at / columns * groups + at % columns / group;
                (f32::from(q[at]) - f32::from(zeros[about])) * scales[about]
            };
            let values = (0..n).map(value).collect();
            // The groups of a checkpoint: where the last one is not whole, there are smaller ones.
            match columns.is_multiple_of(group) {
                true => (Rows::Grouped { q, scales, zeros, group }, values),
                false => unreachable!("columns in whole groups"),
            }
        }
        TileFormat::Fp8 => {
            let units = columns / 64;
            let byte =
                |c: &mut Chance| (c.below(2) << 7 | (2 + c.below(6)) << 3 | c.below(8)) as u8;
            let bytes: Vec<u8> = (0..n).map(|_| byte(chance)).collect();
            let scales: Vec<f32> =
                (0..STRIP * units).map(|_| (size * (2.0 + chance.unit())) as f32).collect();
            let value =
                |at: usize| from_e4m3(bytes[at]) * scales[at / columns * units + at % columns / 64];
            let values = (0..n).map(value).collect();
            (Rows::Bytes { bytes, scales }, values)
        }
    }
}

/// Random matrices on the card, and their values: `[count][rows][columns]`.
fn matrices(
    device: &Device,
    chance: &mut Chance,
    (rows, columns): (usize, usize),
    format: TileFormat,
    count: usize,
) -> (Matrix, Vec<f32>) {
    let (mut packed, mut values) = (Vec::new(), Vec::new());
    for _ in 0..count * rows / STRIP {
        let (rows, some) = strip(chance, columns, format);
        let mut bytes = vec![0; format.strip_bytes(columns)];
        pack_strip(&rows, columns, format, &mut bytes);
        packed.extend(bytes);
        values.extend(some);
    }
    (Matrix::new(device, &packed, (rows, columns), format, count).unwrap(), values)
}

/// A router from its values.
fn router(device: &Device, values: &[f32], hidden: usize) -> Matrix {
    let experts = values.len() / hidden;
    let mut filled = values.to_vec();
    filled.resize(experts.next_multiple_of(STRIP) * hidden, 0.0);
    let mut packed = Vec::new();
    for strip in filled.chunks(STRIP * hidden) {
        let mut bytes = vec![0; TileFormat::Bf16.strip_bytes(hidden)];
        pack_strip(&Rows::Values(strip.to_vec()), hidden, TileFormat::Bf16, &mut bytes);
        packed.extend(bytes);
    }
    Matrix::new(device, &packed, (experts, hidden), TileFormat::Bf16, 1).unwrap()
}

fn words(space: &Buffer<u8>, at: u64, n: usize) -> Vec<u32> {
    let mut bytes = vec![0; n * 4];
    space.read(at as usize, &mut bytes).unwrap();
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// A space as it must be before the first call, and poison where anything may stand.
fn poisoned(device: &Device, space: &Space) -> Buffer<u8> {
    let buffer = device.buffer::<u8>(space.bytes as usize).unwrap();
    buffer.fill(POISON).unwrap();
    let zeros = vec![0; (space.chosen - space.counts) as usize];
    buffer.write(space.counts as usize, &zeros).unwrap();
    buffer
}

fn is_clean(space: &Space, buffer: &Buffer<u8>, mixture: &Mixture) {
    assert!(words(buffer, space.counts, mixture.experts).iter().all(|n| *n == 0), "lists are left");
    let arrived = words(buffer, space.arrived, space.tokens.div_ceil(8));
    assert!(arrived.iter().all(|n| *n == 0), "counters are left: {arrived:?}");
}

fn normed(x: &[f32], norm: &[f32]) -> Vec<f64> {
    let mean = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / x.len() as f64;
    let scale = 1.0 / (mean + f64::from(EPS)).sqrt();
    let value = |(v, w): (&f32, &f32)| f64::from(*v) * scale * f64::from(*w);
    x.iter().zip(norm).map(value).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// The experts of a token with their weights, after a look at whether they are the best ones.
fn choice(logits: &[f64], chosen: &[u32], weights: &[f32], mixture: &Mixture) -> Vec<(usize, f64)> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
    let max = logits[order[0]];
    let share = |e: usize| (logits[e] - max).exp();
    let whole: f64 = match mixture.renormalized {
        true => chosen.iter().map(|e| share(*e as usize)).sum(),
        false => (0..logits.len()).map(share).sum(),
    };
    let mut seen = std::collections::HashSet::new();
    let taken = chosen.iter().zip(weights).zip(&order).map(|((e, weight), best)| {
        let e = *e as usize;
        assert!(seen.insert(e), "expert {e} twice");
        // Sums in another order: of nearly equal ones either may come first.
        assert!(logits[*best] - logits[e] < 1e-4, "expert {e}, not {best}: {logits:?}");
        let should = share(e) / whole;
        assert!((f64::from(*weight) - should).abs() < 1e-4, "{weight}, not {should}");
        (e, should)
    });
    taken.collect()
}

fn activated(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            0.5 * x
                * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
    }
}

fn round(value: f64) -> f32 {
    bf16::from_f64(value).to_f32()
}

/// A layer with everything that it reads.
struct Layer {
    mixture: Mixture,
    norm: Vec<f32>,
    norm_buffer: Buffer<f32>,
    router: Matrix,
    router_values: Vec<f32>,
    gate_up: Matrix,
    gate_up_values: Vec<f32>,
    down: Matrix,
    down_values: Vec<f32>,
}

/// How tokens are spread over experts.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Spread {
    Even,
    /// All tokens to the same ones.
    Skewed,
}

impl Layer {
    fn new(
        device: &Device,
        chance: &mut Chance,
        mixture: Mixture,
        format: TileFormat,
        spread: Spread,
    ) -> Self {
        let Mixture { hidden, experts, inner, .. } = mixture;
        mixture.check().unwrap();
        let norm: Vec<f32> = (0..hidden).map(|_| (0.5 + chance.unit()) as f32).collect();
        let mut values = rounded(&chance.normals(experts * hidden, 2.0 / (hidden as f64).sqrt()));
        if spread == Spread::Skewed {
            // The stream's first value is large in every token.
            for (e, row) in values.chunks_mut(hidden).enumerate() {
                row[0] = if e % 3 == 1 { 2.0 } else { -1.0 };
            }
        }
        let (gate_up, gate_up_values) =
            matrices(device, chance, (2 * inner, hidden), format, experts);
        let (down, down_values) = matrices(device, chance, (hidden, inner), format, experts);
        Self {
            mixture,
            norm_buffer: device.buffer_of(&norm).unwrap(),
            norm,
            router: router(device, &values, hidden),
            router_values: values,
            gate_up,
            gate_up_values,
            down,
            down_values,
        }
    }

    fn call(&self, tokens: usize, input: Input, output: Output, space: Ptr) -> Call {
        Call {
            tokens,
            input,
            router: self.router.args(),
            gate_up: self.gate_up.args(),
            down: self.down.args(),
            output,
            space,
            overlaps: true,
        }
    }

    /// What one expert makes of one token.
    fn expert(&self, expert: usize, x: &[f32]) -> Vec<f64> {
        let Mixture { hidden, inner, activation, .. } = self.mixture;
        let both = &self.gate_up_values[expert * 2 * inner * hidden..][..2 * inner * hidden];
        let row = |strip: usize, r: usize| &both[(strip * STRIP + r) * hidden..][..hidden];
        let middle: Vec<f32> = (0..inner)
            .map(|i| {
                let gate = dot(row(i / STRIP * 2, i % STRIP), x);
                let up = dot(row(i / STRIP * 2 + 1, i % STRIP), x);
                round(activated(activation, gate) * up)
            })
            .collect();
        let down = &self.down_values[expert * hidden * inner..][..hidden * inner];
        down.chunks(inner).map(|row| dot(row, &middle)).collect()
    }

    /// Runs it three times (from the stream; from what is normed; from the stream in goes) and looks at everything.
    fn check(&self, device: &Device, moe: &Moe, chance: &mut Chance, tokens: usize) {
        let mixture = &self.mixture;
        let Mixture { hidden, chosen: k, experts, .. } = *mixture;
        let what = format!("{tokens} tokens of {mixture:?} in {:?}", self.gate_up.format);
        let stream = device.stream().unwrap();
        let mut x = chance.normals(tokens * hidden, 1.0);
        for row in x.chunks_mut(hidden) {
            row[0] = 8.0;
        }
        let x_buffer = device.buffer_of(&x).unwrap();
        let norms: Vec<f64> = x.chunks(hidden).flat_map(|row| normed(row, &self.norm)).collect();
        let normed_buffer = device.buffer::<u16>(tokens * hidden).unwrap();
        let out = device.buffer::<u16>(tokens * hidden).unwrap();
        let space = mixture.space(tokens);
        let memory = poisoned(device, &space);
        normed_buffer.fill(POISON).unwrap();

        let input = Input::Stream {
            x: x_buffer.at(),
            norm: self.norm_buffer.at(),
            eps: EPS,
            normed: normed_buffer.at(),
        };
        let call = self.call(tokens, input, Output::Add(x_buffer.at()), memory.at());
        // SAFETY: everything is as long as the layer says.
        unsafe { moe.run(&stream, mixture, &space, &call) }.unwrap();
        stream.synchronize().unwrap();
        let got = from_bits(&normed_buffer.values().unwrap());
        assert!(error(&got, &norms) < 3e-3, "norm: {what}");
        is_clean(&space, &memory, mixture);

        let reference = |got: &[f32], memory: &Buffer<u8>| {
            let chosen = words(memory, space.chosen, tokens * k);
            let weights = words(memory, space.weights, tokens * k);
            let weights: Vec<f32> = weights.into_iter().map(f32::from_bits).collect();
            let mut sums = vec![0.0; tokens * hidden];
            let one = |t: usize, to: &mut [f64]| {
                let row = &got[t * hidden..][..hidden];
                let logits: Vec<f64> =
                    self.router_values.chunks(hidden).map(|r| dot(r, row)).collect();
                assert_eq!(logits.len(), experts);
                let of = t * k..(t + 1) * k;
                for (e, weight) in choice(&logits, &chosen[of.clone()], &weights[of], mixture) {
                    for (to, v) in to.iter_mut().zip(self.expert(e, row)) {
                        *to += weight * v;
                    }
                }
            };
            // Hours of a card are dear: all processors of its machine compute.
            let threads = std::thread::available_parallelism().map_or(1, usize::from);
            let per_thread = tokens.div_ceil(threads);
            std::thread::scope(|scope| {
                for (n, some) in sums.chunks_mut(per_thread * hidden).enumerate() {
                    let one = &one;
                    scope.spawn(move || {
                        for (i, to) in some.chunks_mut(hidden).enumerate() {
                            one(n * per_thread + i, to);
                        }
                    });
                }
            });
            sums
        };
        let sums = reference(&got, &memory);
        let added = x_buffer.values().unwrap();
        let difference: Vec<f32> = added.iter().zip(&x).map(|(a, b)| a - b).collect();
        let off = error(&difference, &sums);
        assert!(off < 4e-3, "{off} of the stream: {what}");

        // From what is normed, written as bf16, into poison; the same choice.
        out.fill(POISON).unwrap();
        let input = Input::Normed(normed_buffer.at());
        let call = self.call(tokens, input, Output::Write(out.at()), memory.at());
        // SAFETY: as above.
        unsafe { moe.run(&stream, mixture, &space, &call) }.unwrap();
        let first = out.values().unwrap();
        let off = error(&from_bits(&first), &reference(&got, &memory));
        assert!(off < 5e-3, "{off} of what is normed: {what}");
        is_clean(&space, &memory, mixture);
        // SAFETY: as above.
        unsafe { moe.run(&stream, mixture, &space, &call) }.unwrap();
        assert!(first == out.values().unwrap(), "not the same twice: {what}");

        // In goes of fewer tokens.
        let fewer = mixture.space(tokens.div_ceil(3).max(1));
        let memory = poisoned(device, &fewer);
        out.fill(POISON).unwrap();
        let call = Call { space: memory.at(), ..call };
        // SAFETY: as above.
        unsafe { moe.run(&stream, mixture, &fewer, &call) }.unwrap();
        let off = error(&from_bits(&out.values().unwrap()), &sums);
        assert!(off < 5e-3, "{off} in goes: {what}");
        is_clean(&fewer, &memory, mixture);
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_every_number_of_tokens_in_every_format_is_what_the_experts_make_of_it() {
    let device = device();
    let both = both(&device);
    let mut chance = Chance::new(11);
    for format in FORMATS {
        for spread in [Spread::Even, Spread::Skewed] {
            let mixture = Mixture {
                hidden: 256,
                experts: 24,
                chosen: 4,
                inner: 128,
                renormalized: spread == Spread::Even,
                activation: Activation::Silu,
            };
            let layer = Layer::new(&device, &mut chance, mixture, format, spread);
            for tokens in [1, 2, 3, 8, 9, 31, 64, 65, 100, 600] {
                for moe in &both {
                    layer.check(&device, moe, &mut chance, tokens);
                }
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_odd_mixtures_are_computed_too() {
    let device = device();
    let both = both(&device);
    let mut chance = Chance::new(12);
    let base = Mixture {
        hidden: 192,
        experts: 5,
        chosen: 1,
        inner: 64,
        renormalized: true,
        activation: Activation::GeluTanh,
    };
    let odd = [
        (base, TileFormat::Bf16),
        (Mixture { chosen: 5, ..base }, TileFormat::Int4 { group: 64 }),
        (Mixture { experts: 60, chosen: 16, inner: 320, ..base }, TileFormat::Fp8),
        (
            Mixture { hidden: 64, experts: 300, chosen: 10, renormalized: false, ..base },
            TileFormat::Bf16,
        ),
        (
            Mixture { hidden: 64, experts: 700, chosen: 3, renormalized: false, ..base },
            TileFormat::Fp8,
        ),
        (
            Mixture { hidden: 2880, experts: 4, chosen: 2, inner: 1088, ..base },
            TileFormat::Int4 { group: 64 },
        ),
        (
            Mixture { hidden: 4096, experts: 3, chosen: 2, inner: 1536, ..base },
            TileFormat::Int4 { group: 128 },
        ),
    ];
    for (mixture, format) in odd {
        let layer = Layer::new(&device, &mut chance, mixture, format, Spread::Even);
        for tokens in [1, 7, 21, 130] {
            if mixture.hidden * tokens < 200_000 {
                for moe in &both {
                    layer.check(&device, moe, &mut chance, tokens);
                }
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_the_shape_of_a_real_layer_is_computed_at_every_size_of_step() {
    let device = device();
    let both = both(&device);
    let mut chance = Chance::new(13);
    let mixture = Mixture {
        hidden: 2048,
        experts: 12,
        chosen: 8,
        inner: 768,
        renormalized: true,
        activation: Activation::Silu,
    };
    let format = TileFormat::Int4 { group: 128 };
    let layer = Layer::new(&device, &mut chance, mixture, format, Spread::Even);
    for tokens in [1, 2, 4, 17, 18, 80] {
        layer.check(&device, &both[tokens % 2], &mut chance, tokens);
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_of_equal_experts_the_first_are_chosen() {
    let device = device();
    let both = both(&device);
    let mut chance = Chance::new(14);
    for experts in [40, 128, 400, 1000] {
        let mixture = Mixture {
            hidden: 128,
            experts,
            chosen: 6,
            inner: 64,
            renormalized: true,
            activation: Activation::Silu,
        };
        let layer = Layer::new(&device, &mut chance, mixture, TileFormat::Bf16, Spread::Even);
        // Experts in fours are the same.
        let mut values = layer.router_values.clone();
        for e in 0..experts {
            let from = e / 4 * 4 * 128;
            values.copy_within(from..from + 128, e * 128);
        }
        let router = router(&device, &values, 128);
        for tokens in [1, 2, 5, 40, 41, 600, 601] {
            let normed = rounded(&chance.normals(tokens * 128, 1.0));
            let normed_buffer = device.buffer_of(&bits(&normed)).unwrap();
            let out = device.buffer::<u16>(tokens * 128).unwrap();
            let space = mixture.space(tokens);
            let memory = poisoned(&device, &space);
            let call = Call {
                router: router.args(),
                ..layer.call(
                    tokens,
                    Input::Normed(normed_buffer.at()),
                    Output::Write(out.at()),
                    memory.at(),
                )
            };
            let stream = device.stream().unwrap();
            // SAFETY: everything is as long as the layer says.
            unsafe { both[tokens % 2].run(&stream, &mixture, &space, &call) }.unwrap();
            stream.synchronize().unwrap();
            for chosen in words(&memory, space.chosen, tokens * 6).chunks(6) {
                let fours: Vec<u32> = chosen.iter().map(|e| e % 4).collect();
                assert_eq!(fours, [0, 1, 2, 3, 0, 1], "{chosen:?} of {experts}");
                assert!(chosen[..4].iter().all(|e| e / 4 == chosen[0] / 4), "{chosen:?}");
                assert!(chosen[4] / 4 != chosen[0] / 4 && chosen[4] / 4 == chosen[5] / 4);
            }
        }
    }
}

/// Matrices of a real size whose strips repeat: only the time is looked at.
fn repeated(
    device: &Device,
    chance: &mut Chance,
    (rows, columns): (usize, usize),
    format: TileFormat,
    count: usize,
) -> Matrix {
    let bytes = format.strip_bytes(columns);
    let mut some = Vec::new();
    for _ in 0..8 {
        let (rows, _) = strip(chance, columns, format);
        let mut strip = vec![0; bytes];
        pack_strip(&rows, columns, format, &mut strip);
        some.push(strip);
    }
    let packed: Vec<u8> = (0..count * rows / STRIP).flat_map(|i| some[i % 8].clone()).collect();
    Matrix::new(device, &packed, (rows, columns), format, count).unwrap()
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_speed_of_mixtures() {
    let device = device();
    let moe = kernels(&device);
    let mut chance = Chance::new(15);
    let ceiling = if device.name().contains("H200") { 4660.0 } else { 3350.0 * 0.92 };
    println!("{device:?}; of {ceiling} GB/s and 789 TFLOP/s; us for each call");
    println!(
        "{:<16}{:>6}{:>9}  route, sum  gate_up GB/s  %     down GB/s  %     all GB/s  %  TFLOP/s",
        "", "tokens", "distinct"
    );
    let base = Mixture {
        hidden: 2048,
        experts: 128,
        chosen: 8,
        inner: 768,
        renormalized: true,
        activation: Activation::Silu,
    };
    let large = Mixture { hidden: 4096, inner: 1536, ..base };
    let int4 = TileFormat::Int4 { group: 128 };
    let few: &[usize] = &[1, 2, 4, 8, 16, 32, 64];
    let shapes: [(&str, Mixture, TileFormat, &[usize]); 4] = [
        (
            "30B int4",
            base,
            int4,
            &[1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 2048, 8192],
        ),
        ("235B int4", large, int4, &[1, 2, 4, 8, 16, 32, 64, 8192]),
        ("30B fp8", base, TileFormat::Fp8, few),
        ("30B bf16", base, TileFormat::Bf16, few),
    ];
    // `SPEED_OF="30B int4" SPEED_AT=32`: only that.
    let only = |name: &str| std::env::var(name).ok();
    let (only_of, only_at) = (only("SPEED_OF"), only("SPEED_AT"));
    for (name, mixture, format, all) in shapes {
        if only_of.as_ref().is_some_and(|of| of != name) {
            continue;
        }
        let Mixture { hidden, experts, inner, chosen: k, .. } = mixture;
        let gate_up = repeated(&device, &mut chance, (2 * inner, hidden), format, experts);
        let down = repeated(&device, &mut chance, (hidden, inner), format, experts);
        let values = rounded(&chance.normals(experts * hidden, 1.0 / (hidden as f64).sqrt()));
        let router = router(&device, &values, hidden);
        let norm = device.buffer_of(&vec![1.0_f32; hidden]).unwrap();
        for &tokens in all {
            if only_at.as_ref().is_some_and(|at| *at != tokens.to_string()) {
                continue;
            }
            // Other tokens each time, and so other experts: what is read does not lie in a cache.
            let rounds = if tokens > 64 { 1 } else { 12 };
            let space = mixture.space(tokens);
            let stream = device.stream().unwrap();
            let rounds: Vec<_> = (0..rounds)
                .map(|_| {
                    let x = device.buffer_of(&chance.normals(tokens * hidden, 1.0)).unwrap();
                    let normed = device.buffer::<u16>(tokens * hidden).unwrap();
                    let memory = poisoned(&device, &space);
                    let out = device.buffer::<u16>(tokens * hidden).unwrap();
                    (x, normed, memory, out)
                })
                .collect();
            let call =
                |(x, normed, memory, out): &(Buffer<f32>, Buffer<u16>, Buffer<u8>, Buffer<u16>)| {
                    Call {
                        tokens,
                        input: Input::Stream {
                            x: x.at(),
                            norm: norm.at(),
                            eps: EPS,
                            normed: normed.at(),
                        },
                        router: router.args(),
                        gate_up: gate_up.args(),
                        down: down.args(),
                        output: Output::Write(out.at()),
                        space: memory.at(),
                        overlaps: true,
                    }
                };
            let run = |parts: &[Part]| {
                for round in &rounds {
                    // SAFETY: everything is as long as the layer says.
                    unsafe { moe.run_parts(&stream, &mixture, &space, &call(round), parts) }
                        .unwrap();
                }
            };
            let n = rounds.len() as f32;
            let repeats = if tokens > 64 { 5 } else { 15 };
            let time =
                |parts: &[Part]| median_ms(&device, &stream, repeats, || run(parts)) * 1000.0 / n;
            let whole = time(&Part::ALL);
            // Lists must be empty again before they are filled.
            let routed = time(&[Part::Route, Part::Sum]);
            run(&[Part::Route]);
            let distinct = rounds.iter().map(|(_, _, memory, _)| {
                let mut chosen = words(memory, space.chosen, tokens * k);
                chosen.sort_unstable();
                chosen.dedup();
                chosen.len()
            });
            let distinct = distinct.sum::<usize>() as f64 / f64::from(n);
            let first = time(&[Part::GateUp]);
            let second = time(&[Part::Down]);
            run(&[Part::Sum]);
            let bytes = |m: &Matrix| m.bytes() as f64 / experts as f64 * distinct;
            let (b1, b2) = (bytes(&gate_up), bytes(&down));
            let rate = |bytes: f64, us: f32| bytes / f64::from(us) / 1000.0;
            let percent = |bytes: f64, us: f32| rate(bytes, us) / ceiling * 100.0;
            let flops = (tokens * k * 3 * inner * hidden * 2) as f64;
            println!(
                "{name:<16}{tokens:>6}{distinct:>9.1}{routed:>7.2}{first:>10.2}{:>5.0}{:>4.0} {second:>9.2}{:>5.0}{:>4.0} {whole:>9.2}{:>5.0}{:>4.0}{:>7.1}",
                rate(b1, first),
                percent(b1, first),
                rate(b2, second),
                percent(b2, second),
                rate(b1 + b2, whole),
                percent(b1 + b2, whole),
                flops / f64::from(whole) / 1e6,
            );
        }
    }
}
