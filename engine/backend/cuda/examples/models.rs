//! How fast whole models run on this card, beside what it could do: true shapes, drawn weights. `make bench-gpu` runs it.
//!
//! `models [MODEL...] [--streams 1,8,32] [--context 1024] [--steps 256] [--prefill 2048,8192] [--kv bf16|fp8]`
#![allow(clippy::unwrap_used, unsafe_code, reason = "it measures; what fails ends it")]

use std::time::Instant;

use polder_backend::{
    Backend, BlockId, Input, OutputRow, Sampling, SequenceStep, Slot, SlotReset, StepBatch,
    TokenId, Want,
};
use polder_backend_cuda::attention::KvFormat;
use polder_backend_cuda::backend::{CudaBackend, CudaOptions};
use polder_backend_cuda::device::Device;
use polder_backend_cuda::pack::Pack;
use polder_backend_cuda::synthetic;
use polder_backend_cuda::tiles::TileFormat;
use polder_model::drawn::Stored;
use polder_model::{Attention, Ffn, ModelSpec, huggingface};
use polder_recipes::Shape;

/// What is measured, where nothing else is said.
const MODELS: [&str; 3] = ["qwen3-30b-a3b", "qwen3-8b", "qwen3-235b-a22b"];

/// Bytes a second that this card reads at best, measured with plain reads of 16 GiB on one; none is known of others.
fn ceiling(device: &Device) -> f64 {
    match device.name() {
        name if name.contains("H200") => 4661e9,
        _ => 3350e9 * 0.92,
    }
}

fn main() {
    let mut names = Vec::new();
    let (mut streams, mut context, mut steps, mut prefills) =
        (vec![1, 8, 32], 1024, 128, vec![2048, 8192]);
    let mut kv = KvFormat::Bf16;
    let mut arguments = std::env::args().skip(1);
    let list = |text: String| text.split(',').map(|n| n.parse().unwrap()).collect::<Vec<usize>>();
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().unwrap();
        match argument.as_str() {
            "--streams" => streams = list(value()),
            "--context" => context = value().parse().unwrap(),
            "--steps" => steps = value().parse().unwrap(),
            "--prefill" => prefills = list(value()),
            "--kv" => kv = if value() == "fp8" { KvFormat::Fp8 } else { KvFormat::Bf16 },
            name => names.push(name.to_owned()),
        }
    }
    let device = Device::open(0).unwrap_or_else(|e| panic!("{e}"));
    println!("{}, read ceiling {:.0} GB/s", device.name(), ceiling(&device) / 1e9);
    for name in MODELS {
        if names.is_empty() || names.iter().any(|n| n == name) {
            let shape = Shape::find(name).unwrap();
            let mut spec = huggingface::parse_config(shape.config.as_bytes()).unwrap();
            // Positions are turned further than the model was made for; that costs the same.
            spec.context = 262_144;
            let format = TileFormat::drawn(Stored::of(shape.config).unwrap()).unwrap();
            let most = *streams.iter().max().unwrap();
            measure(
                name,
                &spec,
                (format, kv),
                &device,
                (&streams, most),
                context,
                steps,
                &prefills,
            );
        }
    }
}

#[allow(clippy::too_many_arguments)]
fn measure(
    name: &str,
    spec: &ModelSpec,
    (format, kv): (TileFormat, KvFormat),
    device: &Device,
    (streams, most): (&[usize], usize),
    context: usize,
    steps: usize,
    prefills: &[usize],
) {
    let pack = Pack {
        shipped: std::env::var_os("POLDER_KERNELS").map(Into::into),
        made: Some(std::env::temp_dir().join("polder-test-kernels")),
    };
    let began = Instant::now();
    let weights = synthetic::draw(spec, format, &pack, device, 1).unwrap_or_else(|e| panic!("{e}"));
    let matrix_bytes = weights.matrix_bytes();
    let longest = prefills.iter().copied().max().unwrap_or(0).max((context + steps + 16) * most);
    let options = CudaOptions {
        pack,
        kv,
        kv_tokens: longest as u32 + 64,
        slots: 64,
        step_tokens: 8192,
        ..CudaOptions::default()
    };
    let mut backend = CudaBackend::with_weights(spec, weights, device, &options)
        .unwrap_or_else(|e| panic!("{e}"));
    println!(
        "\n{name}: {:.1} GB of matrices, {:.1} s to draw",
        matrix_bytes as f64 / 1e9,
        began.elapsed().as_secs_f64()
    );
    for count in streams {
        fill(&mut backend, *count, context, context + steps + 16);
        let ms = decode(&mut backend, *count, context, steps, context + steps + 16);
        let floor = floor(spec, (format, kv), *count, context + steps / 2) / ceiling(device) * 1e3;
        println!(
            "  decode {count:>2} x {context}: {:>7.3} ms a step, {:>7.1} tok/s a stream, {:>8.1} in all; floor {floor:.3} ms: {:.0} %",
            ms,
            1e3 / ms,
            1e3 / ms * *count as f64,
            floor / ms * 100.0
        );
    }
    for length in prefills {
        let mut best = f64::MAX;
        for _ in 0..3 {
            let began = Instant::now();
            fill(&mut backend, 1, *length, *length);
            best = best.min(began.elapsed().as_secs_f64());
        }
        let work = prefill_work(spec, *length);
        println!(
            "  prefill {length}: {:.1} ms, {:.0} tok/s, {:.0} TFLOP/s: {:.0} % of 789",
            best * 1e3,
            *length as f64 / best,
            work / best / 1e12,
            work / best / 789e10
        );
    }
}

fn table(n: usize, length: usize, each: usize) -> impl Iterator<Item = BlockId> {
    let blocks = each.div_ceil(16);
    (n * blocks..n * blocks + length.div_ceil(16)).map(|b| BlockId(b as u32))
}

/// Reads a prompt into each stream, in steps of up to 8192 tokens, and samples one token of each. A stream has `room` positions in the pool.
fn fill(backend: &mut CudaBackend, count: usize, length: usize, room: usize) {
    let mut chance = 12345_u64;
    for n in 0..count {
        let mut fed = 0;
        while fed < length {
            let tokens = (length - fed).min(8192);
            let mut batch = StepBatch::default();
            if fed == 0 {
                batch.resets.push(SlotReset { slot: Slot(n as u16), history: 0..0, sampled: 0 });
            }
            batch.inputs.extend((0..tokens).map(|_| {
                chance = chance
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                Input::Host(TokenId((chance >> 33) as u32 % 150_000))
            }));
            batch.positions.extend((fed..fed + tokens).map(|p| p as u32));
            batch.block_table.extend(table(n, fed + tokens, room));
            batch.sequences.push(SequenceStep {
                slot: Slot(n as u16),
                tokens: 0..tokens as u32,
                blocks: 0..batch.block_table.len() as u32,
            });
            fed += tokens;
            if fed == length {
                let token = tokens as u32 - 1;
                batch.outputs.push(OutputRow {
                    token,
                    slot: Slot(n as u16),
                    want: Want::Sample(Sampling::greedy()),
                });
            }
            let ticket = backend.submit(&batch).unwrap();
            backend.collect(ticket).unwrap();
        }
    }
}

/// Median milliseconds of a step, with the host one step ahead.
fn decode(
    backend: &mut CudaBackend,
    count: usize,
    context: usize,
    steps: usize,
    room: usize,
) -> f64 {
    let step = |at: usize| {
        let mut batch = StepBatch::default();
        for n in 0..count {
            let first = batch.block_table.len() as u32;
            batch.inputs.push(Input::Sampled(Slot(n as u16)));
            batch.positions.push((context + at) as u32);
            batch.block_table.extend(table(n, context + at + 1, room));
            let token = n as u32;
            batch.sequences.push(SequenceStep {
                slot: Slot(n as u16),
                tokens: token..token + 1,
                blocks: first..batch.block_table.len() as u32,
            });
            batch.outputs.push(OutputRow {
                token,
                slot: Slot(n as u16),
                want: Want::Sample(Sampling::greedy()),
            });
        }
        batch
    };
    let mut times = Vec::new();
    let mut ticket = backend.submit(&step(0)).unwrap();
    let mut last = Instant::now();
    for at in 1..steps {
        let next = backend.submit(&step(at)).unwrap();
        backend.collect(ticket).unwrap();
        times.push(last.elapsed().as_secs_f64() * 1e3);
        last = Instant::now();
        ticket = next;
    }
    backend.collect(ticket).unwrap();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Bytes that a step of so many streams must read: matrices of the experts that are expected to be chosen, the head, KV.
fn floor(
    spec: &ModelSpec,
    (format, kv): (TileFormat, KvFormat),
    streams: usize,
    length: usize,
) -> f64 {
    let bits = match format {
        TileFormat::Bf16 => 16.0,
        TileFormat::Int4 { .. } => 4.25,
        TileFormat::Fp8 => 8.5,
    };
    let hidden = f64::from(spec.hidden);
    let (mut weights, mut others) = (0.0, 0.0);
    for layer in &spec.layers {
        let Attention::Gqa(a) = &layer.attention;
        weights += hidden * f64::from((2 * a.heads + 2 * a.kv_heads) * a.head_dim);
        match &layer.ffn {
            Ffn::Dense { inner, .. } => weights += 3.0 * hidden * f64::from(*inner),
            Ffn::Moe(moe) => {
                let missed =
                    (1.0 - f64::from(moe.chosen) / f64::from(moe.experts)).powi(streams as i32);
                let distinct = f64::from(moe.experts) * (1.0 - missed);
                weights += 3.0 * hidden * f64::from(moe.inner) * distinct;
                others += 2.0 * hidden * f64::from(moe.experts);
            }
        }
    }
    // A scale of four bytes for each head's 128 bytes.
    let bytes = if kv == KvFormat::Fp8 { 33.0 / 32.0 } else { 2.0 };
    let kv = spec.kv_values_per_token() as f64 * bytes * (streams * length) as f64;
    weights * bits / 8.0 + others + 2.0 * hidden * f64::from(spec.vocab) + kv
}

/// Operations of a prompt: matrices of every token, attention to what is before it, the head once.
fn prefill_work(spec: &ModelSpec, length: usize) -> f64 {
    let hidden = f64::from(spec.hidden);
    let length = length as f64;
    let mut all = 0.0;
    for layer in &spec.layers {
        let Attention::Gqa(a) = &layer.attention;
        all += 2.0 * hidden * f64::from((2 * a.heads + 2 * a.kv_heads) * a.head_dim) * length;
        all += 2.0 * f64::from(a.heads * a.head_dim) * length * length;
        all += match &layer.ffn {
            Ffn::Dense { inner, .. } => 6.0 * hidden * f64::from(*inner) * length,
            Ffn::Moe(moe) => {
                (6.0 * f64::from(moe.inner * moe.chosen) + 2.0 * f64::from(moe.experts))
                    * hidden
                    * length
            }
        };
    }
    all
}
