//! Tokens per second of the real model, one line of JSON for each measurement.
//!
//! `POLDER_SMOLLM2` names the GGUF, `POLDER_THREADS` the threads (2 if unset). Decode: 64 tokens
//! after a prompt of 32, the best of three rounds, greedy and drawn. Prefill: 512 tokens in one step. `--reference`
//! measures the f32 path as well.

use std::sync::Arc;
use std::time::Instant;

use polder_backend::{Backend, BlockId, Input, OutputRow, Sampling, SequenceStep, Slot};
use polder_backend::{StepBatch, TokenId, Want};
use polder_backend_cpu::{CpuBackend, CpuOptions, Precision};
use polder_model::Model;

const BLOCK: u32 = 16;
const ROUNDS: u32 = 3;

fn main() {
    let path = std::env::var_os("POLDER_SMOLLM2")
        .expect("POLDER_SMOLLM2 must name the file SmolLM2-135M-Instruct.Q4_1.gguf");
    let threads = std::env::var("POLDER_THREADS").ok().and_then(|t| t.parse().ok()).unwrap_or(2);
    let model = Arc::new(Model::open(path).expect("a readable model"));
    // The reference path is no figure to be proud of: only on request.
    let reference = std::env::args().any(|a| a == "--reference").then_some(Precision::F32);
    for precision in [Some(Precision::Stored), reference].into_iter().flatten() {
        let options = CpuOptions { precision, threads, kv_tokens: 8192, ..CpuOptions::default() };
        let started = Instant::now();
        let mut backend = CpuBackend::load(&model, &options).expect("a model that fits");
        let load = started.elapsed().as_secs_f64();
        println!(
            "{{\"what\": \"load\", \"precision\": \"{precision:?}\", \"seconds\": {load:.3}}}"
        );
        let greedy = Sampling::greedy();
        let drawn = Sampling { temperature: 0.8, seed: 1, ..Sampling::greedy() };
        let top_p = Sampling { top_p: 0.95, ..drawn.clone() };
        for (what, sampling, batch) in [
            ("decode", &greedy, 1),
            ("decode", &greedy, 8),
            ("decode, drawn", &drawn, 8),
            ("decode, drawn with top-p", &top_p, 8),
        ] {
            let rates = (0..ROUNDS).map(|_| decode(&mut backend, batch, sampling));
            report(what, precision, threads, batch, rates.fold(0.0, f64::max));
        }
        let best = (0..ROUNDS).map(|_| prefill(&mut backend)).fold(0.0, f64::max);
        report("prefill", precision, threads, 512, best);
    }
}

fn report(what: &str, precision: Precision, threads: usize, batch: u32, rate: f64) {
    println!(
        "{{\"what\": \"{what}\", \"precision\": \"{precision:?}\", \"threads\": {threads}, \
         \"batch\": {batch}, \"tokens_per_second\": {rate:.1}}}"
    );
}

/// Tokens of `batch` sequences, each step submitted before the one before is collected.
fn decode(backend: &mut CpuBackend, batch: u32, sampling: &Sampling) -> f64 {
    const PROMPT: u32 = 32;
    const TOKENS: u32 = 64;
    let mut step = StepBatch::default();
    for slot in 0..batch {
        feed(&mut step, slot, 0, (0..PROMPT).map(|i| Input::Host(TokenId(1000 + i + slot))));
        sample(&mut step, slot, sampling);
    }
    let mut ticket = backend.submit(&step).expect("a sensible step");
    let started = Instant::now();
    for n in 0..TOKENS {
        step.clear();
        for slot in 0..batch {
            feed(&mut step, slot, PROMPT + n, [Input::Sampled(Slot(slot as u16))]);
            sample(&mut step, slot, sampling);
        }
        let next = backend.submit(&step).expect("a sensible step");
        backend.collect(ticket).expect("an answer");
        ticket = next;
    }
    backend.collect(ticket).expect("an answer");
    f64::from(TOKENS * batch) / started.elapsed().as_secs_f64()
}

fn prefill(backend: &mut CpuBackend) -> f64 {
    const TOKENS: u32 = 512;
    let mut step = StepBatch::default();
    feed(&mut step, 0, 0, (0..TOKENS).map(|i| Input::Host(TokenId(500 + i * 7 % 4000))));
    sample(&mut step, 0, &Sampling::greedy());
    let started = Instant::now();
    let ticket = backend.submit(&step).expect("a sensible step");
    backend.collect(ticket).expect("an answer");
    f64::from(TOKENS) / started.elapsed().as_secs_f64()
}

fn feed(step: &mut StepBatch, slot: u32, at: u32, tokens: impl IntoIterator<Item = Input>) {
    let (first, blocks) = (step.inputs.len() as u32, step.block_table.len() as u32);
    for (i, token) in tokens.into_iter().enumerate() {
        step.inputs.push(token);
        step.positions.push(at + i as u32);
    }
    let end = step.inputs.len() as u32;
    let needed = (at + end - first).div_ceil(BLOCK);
    step.block_table.extend((0..needed).map(|b| BlockId(slot * 40 + b)));
    step.sequences.push(SequenceStep {
        slot: Slot(slot as u16),
        tokens: first..end,
        blocks: blocks..blocks + needed,
    });
}

fn sample(step: &mut StepBatch, slot: u32, sampling: &Sampling) {
    step.outputs.push(OutputRow {
        token: step.inputs.len() as u32 - 1,
        slot: Slot(slot as u16),
        want: Want::Sample(sampling.clone()),
    });
}
