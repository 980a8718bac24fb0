//! What goes wrong with a card, and what the back end makes of it. Each in a process of its own, with a limit: nothing waits for ever.
#![allow(clippy::unwrap_used, reason = "a test may")]

#[path = "common/faults.rs"]
mod faults;
#[path = "../../cpu/tests/common/steps.rs"]
#[allow(dead_code, unreachable_pub, clippy::unwrap_used)]
mod steps;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use faults::{Breaker, inside};
use polder_backend::{Backend, BackendError, Sampling, StepBatch, TokenId, Want};
use polder_backend_cuda::backend::{CudaBackend, CudaOptions, LoadError};
use polder_backend_cuda::device::Device;
use polder_backend_cuda::pack::Pack;
use polder_model::Model;
use polder_scheduler::{Claim, Config, EngineHandle, Event, MemberId, Request};
use steps::{blocks, feed, goldens, host, open, reset, sampled, step, want_last};

/// Longest that any of it takes: kernels may have to be compiled first.
const LIMIT: Duration = Duration::from_secs(120);

fn model() -> Arc<Model> {
    open(&goldens().join("families/qwen3_moe"))
}

fn options() -> CudaOptions {
    let made = Some(std::env::temp_dir().join("polder-test-kernels"));
    CudaOptions {
        pack: Pack { shipped: std::env::var_os("POLDER_KERNELS").map(Into::into), made },
        kv_tokens: 1024,
        slots: 16,
        step_tokens: 256,
        ..CudaOptions::default()
    }
}

fn load(options: &CudaOptions) -> Result<CudaBackend, LoadError> {
    CudaBackend::load(&model(), options, |_| ())
}

/// A step that samples after some tokens, in a slot that begins anew.
fn batch() -> StepBatch {
    let mut batch = StepBatch::default();
    reset(&mut batch, 0, &[1, 2, 3]);
    feed(&mut batch, 0, &host(&[5, 6, 7, 8, 9]), 0, &blocks(0, 1));
    want_last(&mut batch, 0, Want::Sample(Sampling::greedy()));
    batch
}

/// The card breaks under a back end: it says so in a sentence, again and again, and its end waits for nothing.
fn breaks(broken: impl FnOnce(&mut Breaker)) {
    let mut backend = load(&options()).unwrap();
    let first = sampled(&step(&mut backend, &batch()).rows[0]);
    assert_eq!(sampled(&step(&mut backend, &batch()).rows[0]), first);
    let mut breaker = Breaker::new();
    let begun = Instant::now();
    broken(&mut breaker);
    let failed = loop {
        let ran = backend.submit(&batch()).and_then(|ticket| backend.collect(ticket));
        match ran {
            Ok(_) => assert!(begun.elapsed() < Duration::from_secs(5), "it goes on for ever"),
            Err(error) => break error,
        }
    };
    println!("after {:?}: {failed}", begun.elapsed());
    assert!(matches!(&failed, BackendError::Device(why) if !why.is_empty()), "{failed:?}");
    for _ in 0..3 {
        assert!(matches!(backend.submit(&batch()), Err(BackendError::Device(_))));
    }
    let mut bytes = Vec::new();
    let exported = backend.export_block(polder_backend::BlockId(0), &mut bytes);
    assert!(matches!(exported, Err(BackendError::Device(_))));
    let begun = Instant::now();
    drop(backend);
    drop(breaker);
    println!("its end took {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_kernel_that_traps_fails_its_step_and_all_later_ones() {
    if inside("gpu_a_kernel_that_traps_fails_its_step_and_all_later_ones", LIMIT) {
        breaks(|breaker| breaker.trap());
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_kernel_that_writes_nowhere_fails_its_step_and_all_later_ones() {
    if inside("gpu_a_kernel_that_writes_nowhere_fails_its_step_and_all_later_ones", LIMIT) {
        breaks(|breaker| breaker.write_nowhere());
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_after_a_card_was_lost_the_next_process_has_it_whole() {
    if inside("gpu_after_a_card_was_lost_the_next_process_has_it_whole", LIMIT) {
        // Both at once, with steps on their way.
        breaks(|breaker| {
            breaker.write_nowhere();
            breaker.trap();
        });
        return;
    }
    if inside("gpu_a_card_is_whole", LIMIT) {
        unreachable!("this is the process that starts others");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_card_is_whole() {
    let mut backend = load(&options()).unwrap();
    let first = sampled(&step(&mut backend, &batch()).rows[0]);
    assert_eq!(sampled(&step(&mut backend, &batch()).rows[0]), first);
}

fn ask(handle: &EngineHandle) -> Receiver<Event> {
    let (tell, told) = channel();
    let request = Request {
        member: MemberId::new("ada"),
        claim: Claim::default(),
        prompt: (1..30).map(TokenId).collect(),
        max_tokens: 8,
        stop_tokens: [].into(),
        sampling: Sampling::greedy(),
        prompt_logprobs: None,
        grammar: None,
        pooling: None,
    };
    handle.submit(vec![(request, Box::new(move |event| tell.send(event).is_ok()))]);
    told
}

/// Its tokens, or None if it failed.
fn answer(events: &Receiver<Event>) -> Option<Vec<TokenId>> {
    let mut tokens = Vec::new();
    loop {
        match events.recv_timeout(Duration::from_secs(30)).expect("an event within 30 s") {
            Event::Token(token) => tokens.push(token.token),
            Event::Finished { .. } => return Some(tokens),
            Event::Failed => return None,
            _ => {}
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_step_that_hangs_is_noticed_and_one_that_fails_fails_its_answers() {
    if !inside("gpu_a_step_that_hangs_is_noticed_and_one_that_fails_fails_its_answers", LIMIT) {
        return;
    }
    let config = Config {
        steps_ahead: 1,
        patience: Duration::from_secs(1),
        first_pace: Duration::from_millis(20),
        ..Config::default()
    };
    let backend = load(&options()).unwrap();
    let thread = polder_scheduler::spawn(Box::new(backend), config).unwrap();
    let handle = thread.handle();
    let first = answer(&ask(&handle)).unwrap();
    assert_eq!(handle.hung(), None);

    let mut breaker = Breaker::new();
    breaker.hang();
    let waits = ask(&handle);
    let begun = Instant::now();
    while handle.hung().is_none() {
        assert!(begun.elapsed() < Duration::from_secs(20), "nobody notices");
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("noticed after {:?}", begun.elapsed());
    breaker.let_go();
    assert_eq!(answer(&waits), Some(first.clone()), "it was only late");
    assert_eq!(handle.hung(), None);

    let begun = Instant::now();
    breaker.trap();
    while answer(&ask(&handle)).is_some() {
        assert!(begun.elapsed() < Duration::from_secs(5), "it goes on for ever");
    }
    drop(handle);
    let ended = thread.join().unwrap_err();
    println!("{ended}: {:?}", std::error::Error::source(&ended).map(ToString::to_string));
}

/// Takes all that is free but for so many bytes.
fn hog(device: &Device, but: u64) -> Vec<polder_backend_cuda::device::Buffer<u8>> {
    let mut taken = Vec::new();
    let mut piece = 1_usize << 33;
    while piece >= 2 << 20 {
        let free = device.free_memory().unwrap();
        match free.saturating_sub(but) >= piece as u64 {
            true => match device.buffer(piece) {
                Ok(buffer) => taken.push(buffer),
                Err(_) => piece /= 2,
            },
            false => piece /= 2,
        }
    }
    taken
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_model_that_finds_no_memory_says_so_and_loads_when_there_is_some() {
    if !inside("gpu_a_model_that_finds_no_memory_says_so_and_loads_when_there_is_some", LIMIT) {
        return;
    }
    let device = Device::open(0).unwrap();
    let hogged = hog(&device, 2 << 20);
    println!("{} MiB are left", device.free_memory().unwrap() >> 20);
    let refused = load(&options()).unwrap_err();
    println!("{refused}");
    assert!(refused.is_memory(), "{refused}");
    drop(hogged);
    let mut backend = load(&options()).unwrap();
    sampled(&step(&mut backend, &batch()).rows[0]);
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_memory_that_ends_while_steps_run_fails_the_step_by_name() {
    if !inside("gpu_memory_that_ends_while_steps_run_fails_the_step_by_name", LIMIT) {
        return;
    }
    let mut backend = load(&options()).unwrap();
    sampled(&step(&mut backend, &batch()).rows[0]);
    backend.device().keep_to(backend.device().taken());
    // A long history needs room that no step before it did.
    let mut long = batch();
    long.resets.clear();
    long.histories.clear();
    let limits = backend.limits();
    let more = (u32::from(limits.slots) * (limits.context + 4) + 1).max(200_000);
    let history: Vec<u32> = (0..more).map(|n| n % 300).collect();
    reset(&mut long, 0, &history);
    let failed = backend.submit(&long).unwrap_err();
    println!("{failed}");
    assert!(failed.to_string().contains("more than this engine may take"), "{failed}");
    assert!(matches!(failed, BackendError::Device(_)));
    assert!(backend.submit(&batch()).is_err());
}
