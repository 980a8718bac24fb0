//! What a step with guesses takes on this card, and how long handing a step over keeps the host: Qwen3-30B-A3B's shape, drawn weights.
#![allow(clippy::unwrap_used, unsafe_code, reason = "it measures; what fails ends it")]

#[path = "models/drawn.rs"]
mod drawn;
#[allow(dead_code, reason = "joules are not counted here")]
#[path = "models/drive.rs"]
mod drive;
#[allow(dead_code, reason = "the same")]
#[path = "models/energy.rs"]
mod energy;
#[path = "models/shapes.rs"]
mod shapes;

use std::time::Instant;

use polder_backend::{Backend, Slot, SlotReset, TokenId};
use polder_backend_cuda::backend::CudaOptions;
use polder_backend_cuda::device::Device;

use drive::{STEP, Streams};

/// Positions before the first measured step, and those that a stream has in the pool.
const CONTEXT: usize = 1024;
const ROOM: usize = 2048;
const STEPS: usize = 60;

fn main() {
    let device = Device::open(0).unwrap_or_else(|e| panic!("{e}"));
    let all = Streams { count: 32, context: CONTEXT, room: ROOM };
    let options = CudaOptions {
        kv_tokens: (33 * ROOM) as u32,
        slots: 64,
        step_tokens: STEP as u32,
        ..CudaOptions::default()
    };
    let mut backend = drawn::load(&device, options);
    println!("{}; medians of {STEPS} steps", device.name());
    all.fill(&mut backend);
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
            let batch = Streams { count: streams, ..all }.step(at, guesses);
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
            let mut batch = Streams { count: 8, ..all }.step(at, guesses);
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
