//! What a step with guesses takes on this card, and how long handing a step over keeps the host: Qwen3-30B-A3B's shape, drawn weights.
#![allow(clippy::unwrap_used, unsafe_code, reason = "it measures; what fails ends it")]

use std::time::Instant;

use polder_backend::{
    Backend, BlockId, Input, OutputRow, Sampling, SequenceStep, Slot, SlotReset, StepBatch,
    TokenId, Want,
};
use polder_backend_cuda::backend::{CudaBackend, CudaOptions};
use polder_backend_cuda::device::Device;
use polder_backend_cuda::pack::Pack;
use polder_backend_cuda::synthetic;
use polder_backend_cuda::tiles::TileFormat;
use polder_model::huggingface;

const CONFIG: &str = r#"{"model_type":"qwen3_moe","hidden_size":2048,"num_hidden_layers":48,"num_attention_heads":32,
    "num_key_value_heads":4,"head_dim":128,"intermediate_size":6144,"moe_intermediate_size":768,"num_experts":128,
    "num_experts_per_tok":8,"norm_topk_prob":true,"decoder_sparse_step":1,"mlp_only_layers":[],"vocab_size":151936,
    "max_position_embeddings":262144,"rope_theta":1000000.0,"rms_norm_eps":1e-6,"tie_word_embeddings":false,
    "hidden_act":"silu","attention_bias":false}"#;
/// Positions before the first measured step, and those that a stream has in the pool.
const CONTEXT: usize = 1024;
const ROOM: usize = 2048;
const STEPS: usize = 60;

fn main() {
    let device = Device::open(0).unwrap_or_else(|e| panic!("{e}"));
    let pack = Pack {
        shipped: std::env::var_os("POLDER_KERNELS").map(Into::into),
        made: Some(std::env::temp_dir().join("polder-test-kernels")),
    };
    let spec = huggingface::parse_config(CONFIG.as_bytes()).unwrap();
    let format = TileFormat::Int4 { group: 128 };
    let weights =
        synthetic::draw(&spec, format, &pack, &device, 1).unwrap_or_else(|e| panic!("{e}"));
    let options = CudaOptions {
        pack,
        kv_tokens: (33 * ROOM) as u32,
        slots: 64,
        step_tokens: 8192,
        ..CudaOptions::default()
    };
    let mut backend = CudaBackend::with_weights(&spec, weights, &device, &options)
        .unwrap_or_else(|e| panic!("{e}"));
    println!("{}; medians of {STEPS} steps", device.name());
    for n in 0..32 {
        let mut prompt = step(n, n + 1, &[0], CONTEXT, false);
        prompt.outputs = prompt.outputs.pop().into_iter().collect();
        // A prompt is read from its start.
        prompt.positions = (0..CONTEXT as u32).collect();
        let ticket = backend.submit(&prompt).unwrap();
        backend.collect(ticket).unwrap();
    }
    for (streams, guesses) in [
        (1, 0),
        (1, 2),
        (1, 4),
        (1, 7),
        (1, 12),
        (1, 16),
        (1, 32),
        (4, 4),
        (8, 0),
        (8, 3),
        (8, 7),
        (16, 2),
    ] {
        // The host waits for each step: it does not know what comes after guesses before they are settled.
        let mut submits = Vec::new();
        let mut times = Vec::new();
        for at in 0..STEPS + 8 {
            let batch = step(0, streams, &[CONTEXT + at], 1 + guesses, true);
            let began = Instant::now();
            let ticket = backend.submit(&batch).unwrap();
            submits.push(began.elapsed().as_secs_f64() * 1e6);
            backend.collect(ticket).unwrap();
            times.push(began.elapsed().as_secs_f64() * 1e3);
        }
        println!(
            "  {streams:>2} streams with {guesses:>2} guesses each: {:>7.3} ms a step, {:>7.0} us of them to submit",
            median(&mut times[8..]),
            median(&mut submits[8..])
        );
    }
    println!("to submit while the step before still runs, us:");
    for (what, guesses, resets) in [
        ("8 streams go on", 0, false),
        ("8 streams with 3 guesses each", 3, false),
        ("8 streams with 12 guesses each", 12, false),
        ("8 streams go on, and a slot starts anew with 1024 tokens", 0, true),
    ] {
        let mut submits = Vec::new();
        let mut before = None;
        for at in 0..STEPS + 8 {
            let mut batch = step(0, 8, &[CONTEXT + at], 1 + guesses, true);
            if resets {
                batch.histories.extend((0..1024).map(TokenId));
                batch.resets.push(SlotReset { slot: Slot(40), history: 0..1024, sampled: 0 });
            }
            let began = Instant::now();
            let ticket = backend.submit(&batch).unwrap();
            submits.push(began.elapsed().as_secs_f64() * 1e6);
            if let Some(before) = before.replace(ticket) {
                backend.collect(before).unwrap();
            }
        }
        backend.collect(before.unwrap()).unwrap();
        println!("  {what}: {:.0}", median(&mut submits[8..]));
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Streams `from..to` feed so many tokens from this position on: what was sampled last, where `goes_on` says so, and tokens that are known.
fn step(from: usize, to: usize, at: &[usize], tokens: usize, goes_on: bool) -> StepBatch {
    let mut batch = StepBatch::default();
    for n in from..to {
        let (first, blocks) = (batch.inputs.len() as u32, batch.block_table.len() as u32);
        let slot = Slot(n as u16);
        if !goes_on {
            batch.resets.push(SlotReset { slot, history: 0..0, sampled: 0 });
        }
        for i in 0..tokens {
            batch.inputs.push(match goes_on && i == 0 {
                true => Input::Sampled(slot),
                false => {
                    Input::Host(TokenId(((n * 7919 + i * 104_729 + at[0] * 31) % 150_000) as u32))
                }
            });
            batch.positions.push((at[0] + i) as u32);
            let token = first + i as u32;
            batch.outputs.push(OutputRow { token, slot, want: Want::Sample(Sampling::greedy()) });
        }
        let end = if goes_on { at[0] + tokens } else { tokens };
        batch
            .block_table
            .extend((0..end.div_ceil(16)).map(|b| BlockId((n * ROOM / 16 + b) as u32)));
        batch.sequences.push(SequenceStep {
            slot,
            tokens: first..first + tokens as u32,
            blocks: blocks..batch.block_table.len() as u32,
        });
    }
    batch
}
