//! What an engine asks of a card: drafts, blocks that go out and come back, and a mixed load that leaves nothing behind.
#![allow(clippy::unwrap_used, reason = "a test may")]

#[path = "../../cpu/tests/common/steps.rs"]
#[allow(dead_code, unreachable_pub, clippy::unwrap_used)]
mod steps;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use polder_backend::{Backend, Begun, HostBlock, Limits, Sampling, StepBatch, TokenId, Want};
use polder_backend_cuda::attention::KvFormat;
use polder_backend_cuda::backend::{CudaBackend, CudaOptions};
use polder_backend_cuda::pack::Pack;
use polder_model::Model;
use polder_scheduler::{Claim, Config, Event, MemberId, Request, RequestId, Scheduler};
use steps::{blocks, distance, feed, goldens, host, open, reset, sampled, step, want_last};

fn load(model: &Arc<Model>, kv: KvFormat, kv_tokens: u32) -> CudaBackend {
    let made = Some(std::env::temp_dir().join("polder-test-kernels"));
    let options = CudaOptions {
        pack: Pack { shipped: std::env::var_os("POLDER_KERNELS").map(Into::into), made },
        kv,
        kv_tokens,
        slots: 16,
        step_tokens: 256,
        ..CudaOptions::default()
    };
    CudaBackend::load(model, &options, |_| ()).unwrap_or_else(|e| panic!("{e}"))
}

fn family(name: &str) -> Arc<Model> {
    open(&goldens().join("families").join(name))
}

fn text(seed: u32, length: usize) -> Vec<u32> {
    let mut state = seed.wrapping_mul(747_796_405).wrapping_add(1);
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) % 384
        })
        .collect()
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_block_that_went_out_and_came_back_is_the_same_to_the_bit() {
    for kv in [KvFormat::Bf16, KvFormat::Fp8] {
        let mut one = load(&family("llama"), kv, 1024);
        let tokens = text(1, 65);
        let whole = steps::teacher_force(&mut one, &tokens, 64, &blocks(3, 5)).pop().unwrap();
        let mut exported = vec![Vec::new(); 4];
        for (n, bytes) in exported.iter_mut().enumerate() {
            one.export_block(polder_backend::BlockId(3 + n as u32), bytes).unwrap();
            assert_eq!(bytes.len() as u64, one.limits().block_bytes());
        }
        // Into another engine, at other places.
        let mut two = load(&family("llama"), kv, 512);
        for (n, bytes) in exported.iter().enumerate() {
            two.import_block(polder_backend::BlockId(20 + 2 * n as u32), bytes).unwrap();
        }
        let table: Vec<_> = [20, 22, 24, 26, 9].map(polder_backend::BlockId).to_vec();
        let mut batch = StepBatch::default();
        feed(&mut batch, 0, &host(&tokens[64..]), 64, &table);
        want_last(&mut batch, 0, Want::Logits);
        let there = steps::logits(step(&mut two, &batch).rows.pop().unwrap());
        assert_eq!(whole, there, "{kv:?}");
        assert!(two.import_block(polder_backend::BlockId(0), &exported[0][1..]).is_err());
        assert!(two.export_block(polder_backend::BlockId(99), &mut Vec::new()).is_err());
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_blocks_that_go_and_come_beside_steps_keep_their_order_with_them() {
    let begun = |begun: Begun| match begun {
        Begun::Later(carry) => carry,
        Begun::Done(_) => panic!("it was done at once"),
    };
    for kv in [KvFormat::Bf16, KvFormat::Fp8] {
        let mut backend = load(&family("llama"), kv, 1024);
        let memory = backend.host_memory(4 << 20).unwrap();
        let table = blocks(7, 17);
        let feeds = |tokens: &[u32], first: u32, last: bool| {
            let mut batch = StepBatch::default();
            feed(
                &mut batch,
                0,
                &host(tokens),
                first,
                &table[..((first as usize + tokens.len()).div_ceil(16))],
            );
            if last {
                want_last(&mut batch, 0, Want::Logits);
            }
            batch
        };
        for round in 0..40 {
            let (ours, others) = (text(round, 257), text(1000 + round, 256));
            step(&mut backend, &feeds(&ours[..256], 0, false));
            let whole = step(&mut backend, &feeds(&ours[256..], 256, true)).rows.pop().unwrap();
            let mut waited = Vec::new();
            backend.export_block(table[3], &mut waited).unwrap();
            // Nothing of this waits: the same blocks leave, are overwritten, leave, and come back for the next step.
            let first = begun(backend.begin_export(&table[..16]).unwrap());
            let over = backend.submit(&feeds(&others, 0, false)).unwrap();
            let second = begun(backend.begin_export(&table[..16]).unwrap());
            let taken = loop {
                if let Some(carried) = backend.carried(true).unwrap() {
                    assert_eq!(carried.carry, first);
                    break carried.blocks;
                }
            };
            assert_eq!(taken[3][..], waited, "{kv:?}");
            let taken: Vec<Arc<HostBlock>> = taken.into_iter().map(Arc::new).collect();
            // Half of them from memory that is nobody's in particular.
            let come = taken.iter().enumerate().map(|(n, bytes)| {
                let other = Arc::new(HostBlock::from(bytes.to_vec()));
                (table[n], if n % 2 == 0 { Arc::clone(bytes) } else { other })
            });
            let third = begun(backend.begin_import(come.collect()).unwrap());
            let read = backend.submit(&feeds(&ours[256..], 256, true)).unwrap();
            backend.collect(over).unwrap();
            assert_eq!(
                backend.collect(read).unwrap().rows.pop(),
                Some(whole),
                "{kv:?}, round {round}"
            );
            let mut done = Vec::new();
            while done.len() < 2 {
                done.extend(backend.carried(true).unwrap().map(|carried| carried.carry));
            }
            assert_eq!(done, [second, third]);
            assert!(backend.carried(true).unwrap().is_none());
        }
        let before = backend.export_room();
        assert!(backend.begin_export(&blocks(0, before as u32 + 1)).is_err());
        assert!(backend.begin_import(vec![(table[0], Arc::new(vec![0; 3].into()))]).is_err());
        println!("{kv:?}: room for {before}; {memory:?}");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_eight_bits_of_keys_and_values_stay_near_sixteen() {
    let tokens = text(2, 120);
    for name in ["llama", "qwen3", "gemma3_text"] {
        let [full, small] = [KvFormat::Bf16, KvFormat::Fp8].map(|kv| {
            steps::teacher_force(&mut load(&family(name), kv, 1024), &tokens, 50, &blocks(0, 8))
        });
        let mut apart: Vec<f64> = full.iter().zip(&small).map(|(a, b)| distance(a, b)).collect();
        apart.sort_by(f64::total_cmp);
        println!(
            "{name}: relative L2 of FP8 KV, median {:.1e}, worst {:.1e}",
            apart[60], apart[119]
        );
        // Three bits of mantissa: a sixteenth at worst for each value. These models' weights are drawn, and make more of it.
        assert!(apart[60] < 0.15 && apart[119] < 0.5, "{name}: {} {}", apart[60], apart[119]);
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_step_that_contradicts_itself_is_refused_and_the_next_one_runs() {
    let mut backend = load(&family("llama"), KvFormat::Bf16, 1024);
    let mut good = StepBatch::default();
    reset(&mut good, 0, &[]);
    feed(&mut good, 0, &host(&text(3, 20)), 0, &blocks(0, 2));
    want_last(&mut good, 0, Want::Sample(Sampling::greedy()));
    let first = sampled(&step(&mut backend, &good).rows[0]);
    let mut bad = good.clone();
    bad.block_table[0] = polder_backend::BlockId(1 << 20);
    assert!(backend.submit(&bad).is_err());
    assert_eq!(sampled(&step(&mut backend, &good).rows[0]), first);
    assert!(backend.collect(polder_backend::Ticket(77)).is_err());
    assert!(step(&mut backend, &StepBatch::default()).rows.is_empty());
}

/// Seconds of the mixed load.
fn seconds() -> u64 {
    std::env::var("POLDER_LOAD_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(15)
}

/// The loop of an engine's thread, with the host one step ahead.
struct Engine {
    backend: CudaBackend,
    scheduler: Scheduler,
    ahead: VecDeque<(polder_backend::Ticket, Instant)>,
    batch: StepBatch,
    events: Vec<(RequestId, Event)>,
}

impl Engine {
    fn turn(&mut self) -> bool {
        while self.ahead.len() < 2 && self.scheduler.plan_step(&mut self.batch) {
            let ticket = self.backend.submit(&self.batch).unwrap();
            self.ahead.push_back((ticket, Instant::now()));
        }
        let Some((ticket, began)) = self.ahead.pop_front() else { return false };
        let output = self.backend.collect(ticket).unwrap();
        self.scheduler.took(began.elapsed());
        self.scheduler.take(output, &mut self.events).unwrap();
        true
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_mixed_load_with_cancellations_leaves_nothing_behind() {
    let backend = load(&family("qwen3_moe"), KvFormat::Bf16, 4096);
    let limits: Limits = backend.limits();
    let config = Config { steps_ahead: 1, step_tokens: 192, ..Config::default() };
    let scheduler = Scheduler::new(limits, config).unwrap();
    let mut engine = Engine {
        backend,
        scheduler,
        ahead: VecDeque::new(),
        batch: StepBatch::default(),
        events: Vec::new(),
    };
    let before = engine.backend.device().free_memory().unwrap();
    let mut chance = 99_u64;
    let mut below = |n: u64| {
        chance ^= chance << 13;
        chance ^= chance >> 7;
        chance ^= chance << 17;
        chance % n
    };
    let (mut next, mut cancelled, mut finished, mut tokens) = (0_u64, 0, 0, 0_u64);
    let mut alive: HashMap<RequestId, u32> = HashMap::new();
    let began = Instant::now();
    let time = Duration::from_secs(seconds());
    loop {
        let open = began.elapsed() < time;
        while open && alive.len() < 40 {
            let sampling = match below(4) {
                0 => Sampling::greedy(),
                1 => Sampling {
                    temperature: 0.8,
                    top_p: 0.9,
                    seed: below(1 << 40),
                    ..Sampling::greedy()
                },
                2 => Sampling { repetition_penalty: 1.1, logprobs: Some(3), ..Sampling::greedy() },
                _ => Sampling {
                    temperature: 1.0,
                    top_k: 40,
                    min_p: 0.05,
                    seed: below(9),
                    ..Sampling::greedy()
                },
            };
            // Many begin alike, and some texts repeat themselves.
            let mut prompt = text(below(5) as u32, 1 + below(300) as usize);
            if below(3) == 0 {
                let again = prompt.clone();
                prompt.extend(again);
            }
            let request = Request {
                member: MemberId::new(["ada", "bo", "cy"][below(3) as usize]),
                claim: Claim::default(),
                prompt: prompt.into_iter().map(TokenId).collect(),
                max_tokens: 1 + below(120) as u32,
                stop_tokens: [].into(),
                sampling,
                prompt_logprobs: (below(20) == 0).then_some(2),
                grammar: None,
                pooling: None,
            };
            let id = RequestId(next);
            next += 1;
            if engine.scheduler.admit(vec![(id, request)]).is_ok() {
                alive.insert(id, 0);
            }
        }
        if open && below(8) == 0 {
            let ids: Vec<RequestId> = alive.keys().copied().collect();
            let id = ids[below(ids.len() as u64) as usize];
            if engine.scheduler.cancel(id) {
                alive.remove(&id);
                cancelled += 1;
            }
        }
        let ran = engine.turn();
        for (id, event) in engine.events.drain(..) {
            match event {
                Event::Token(_) => tokens += 1,
                Event::Finished { .. } => {
                    alive.remove(&id);
                    finished += 1;
                }
                Event::Queued | Event::Begun { .. } | Event::Prompt(_) => {}
                other => panic!("{other:?}"),
            }
        }
        if !ran && !open {
            break;
        }
    }
    let stats = engine.scheduler.stats();
    println!(
        "{finished} answers and {cancelled} cancelled, {tokens} tokens in {} steps; {} preemptions, {} drafts, {} guesses right, {} tokens known",
        stats.steps, stats.preemptions, stats.drafts, stats.accepted_tokens, stats.cached_tokens
    );
    assert!(alive.is_empty() && finished > 20 && cancelled > 5, "{alive:?}");
    assert_eq!((stats.running, stats.waiting, stats.blocks_used), (0, 0, 0));
    // Graphs that were recorded on the way take some; what grows with each answer would take more.
    let after = engine.backend.device().free_memory().unwrap();
    assert!(before.saturating_sub(after) < 256 << 20, "{} MiB less", (before - after) >> 20);
}
