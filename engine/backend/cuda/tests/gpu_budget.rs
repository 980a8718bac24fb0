//! Engines that share a card keep to what they may take of it, as the driver counts it.
#![allow(clippy::unwrap_used, reason = "a test may")]

#[path = "common/faults.rs"]
mod faults;
#[path = "../../cpu/tests/common/steps.rs"]
#[allow(dead_code, unreachable_pub, clippy::unwrap_used)]
mod steps;

use std::process::Command;
use std::time::{Duration, Instant};

use faults::inside;
use polder_backend::{Backend, Place, Sampling, StepBatch, Want};
use polder_backend_cuda::backend::{CudaBackend, CudaOptions, LoadError};
use polder_backend_cuda::device::Device;
use polder_backend_cuda::pack::Pack;
use steps::{blocks, feed, goldens, host, open, reset, step, want_last};

const LIMIT: Duration = Duration::from_secs(180);
/// How much of the card an engine of the last test may take, bytes; set for its process.
const SHARE: &str = "POLDER_TEST_SHARE";

fn options(memory: u64) -> CudaOptions {
    let made = Some(std::env::temp_dir().join("polder-test-kernels"));
    CudaOptions {
        pack: Pack { shipped: std::env::var_os("POLDER_KERNELS").map(Into::into), made },
        // More than any card holds: what the budget leaves is taken.
        kv_tokens: 1 << 31,
        memory: Some(memory),
        slots: 64,
        step_tokens: 2048,
        ..CudaOptions::default()
    }
}

fn load(memory: u64) -> Result<CudaBackend, LoadError> {
    CudaBackend::load(&open(&goldens().join("families/qwen3_moe")), &options(memory), |_| ())
}

/// Bytes of the first card that are taken, as the driver tells everybody.
fn used() -> u64 {
    let query = ["--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0"];
    let told = Command::new("nvidia-smi").args(query).output().unwrap().stdout;
    let mib: u64 = String::from_utf8(told).unwrap().trim().parse().unwrap();
    mib << 20
}

/// One token each of so many sequences.
fn many(sequences: u16, sampling: &Sampling) -> StepBatch {
    let mut batch = StepBatch::default();
    for slot in 0..sequences {
        reset(&mut batch, slot, &[1]);
        feed(&mut batch, slot, &host(&[5]), 0, &blocks(u32::from(slot), 1));
        want_last(&mut batch, slot, Want::Sample(sampling.clone()));
    }
    batch
}

/// Every step that is recorded, and a long one.
fn run(backend: &mut CudaBackend) {
    let warm = Sampling { temperature: 0.8, top_p: 0.9, ..Sampling::greedy() };
    for sampling in [Sampling::greedy(), warm] {
        for sequences in [1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 64] {
            step(backend, &many(sequences, &sampling));
        }
    }
    let mut long = StepBatch::default();
    reset(&mut long, 0, &[1]);
    let tokens: Vec<u32> = (0..500).map(|n| n % 300).collect();
    feed(&mut long, 0, &host(&tokens), 0, &blocks(0, 32));
    want_last(&mut long, 0, Want::Logits);
    step(backend, &long);
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_an_engine_takes_no_more_than_its_budget_by_the_driver_s_count() {
    if !inside("gpu_an_engine_takes_no_more_than_its_budget_by_the_driver_s_count", LIMIT) {
        return;
    }
    let before = used();
    let device = Device::open(0).unwrap();
    let open = used();
    drop(device);
    for memory in [3_u64 << 30, 20 << 30] {
        let mut backend = load(memory).unwrap();
        let loaded = used();
        run(&mut backend);
        let after = used();
        let mib = |bytes: u64| bytes >> 20;
        println!(
            "budget {} MiB: a context takes {}, loaded {}, after every step {}; buffers by our own account {}, {} blocks",
            mib(memory),
            mib(open - before),
            mib(loaded - before),
            mib(after - before),
            mib(backend.device().taken()),
            backend.limits().blocks
        );
        assert!(after - before <= memory, "{} MiB more", mib(after - before - memory));
        assert!(after - before > memory / 10 * 7, "most of it is used");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_budget_that_is_too_small_is_refused_with_what_is_lacking_and_nothing_is_kept() {
    let device = Device::open(0).unwrap();
    let free = device.free_memory().unwrap();
    for memory in [1 << 20, 768 << 20, 800 << 20] {
        let refused = load(memory).unwrap_err();
        println!("{} MiB: {refused}", memory >> 20);
        assert!(!matches!(refused, LoadError::Unsupported(_)), "{refused}");
    }
    let kept = free.saturating_sub(device.free_memory().unwrap());
    assert!(kept < 64 << 20, "{} MiB", kept >> 20);
    let place = Place { rank: 1, world: 2 };
    let model = open(&goldens().join("families/llama"));
    let several = CudaOptions { place, memory: None, ..options(0) };
    let why = CudaBackend::load(&model, &several, |_| ()).unwrap_err().to_string();
    assert!(why.contains("place 1 of 2 cards"), "{why}");
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_two_engines_that_start_at_once_both_have_their_share() {
    let name = "gpu_two_engines_that_start_at_once_both_have_their_share";
    if let Ok(share) = std::env::var(SHARE) {
        let mut backend = load(share.parse().unwrap()).unwrap();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(5) {
            run(&mut backend);
        }
        println!("{} blocks of {} bytes", backend.limits().blocks, backend.limits().block_bytes());
        return;
    }
    let whole = Device::memory_of(0).unwrap();
    // Together nearly all of it.
    let processes = [whole / 100 * 20, whole / 100 * 77].map(|share| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", "--nocapture", name]).env(SHARE, share.to_string());
        command.spawn().unwrap()
    });
    for mut process in processes {
        assert!(process.wait().unwrap().success());
    }
}
