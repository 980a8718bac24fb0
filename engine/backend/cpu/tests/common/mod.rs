//! What the tests share: models, and a scheduler of the simplest kind.
// Each test file uses a part, and each is a crate of its own.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

mod steps;

use std::sync::Arc;
use std::time::Duration;

use polder_backend::{Backend, SampledToken, Sampling, StepBatch, TokenId};
use polder_backend_cpu::{CpuBackend, CpuOptions, Precision};
use polder_model::Model;
use polder_scheduler::{Claim, Config, Event, MemberId, Request, RequestId, Scheduler, Stats};

#[allow(unused_imports)]
pub use steps::*;

pub fn load(model: &Arc<Model>, precision: Precision) -> CpuBackend {
    let options =
        CpuOptions { precision, kv_tokens: 4096, slots: 16, threads: 2, ..CpuOptions::default() };
    CpuBackend::load(model, &options).expect("a model that fits")
}

/// What the scheduler makes of these requests, with so many guesses at a time; guesses cost next to nothing.
pub fn schedule(
    backend: &mut CpuBackend,
    requests: &[Request],
    draft_tokens: u32,
) -> (Vec<Vec<SampledToken>>, Stats) {
    let config = Config { draft_tokens, ..Config::default() };
    let mut scheduler = Scheduler::new(backend.limits(), config).unwrap();
    let numbered = requests.iter().enumerate().map(|(n, r)| (RequestId(n as u64), r.clone()));
    scheduler.admit(numbered.collect()).unwrap();
    let (mut batch, mut events) = (StepBatch::default(), Vec::new());
    while scheduler.plan_step(&mut batch) {
        let output = step(backend, &batch);
        scheduler.took(Duration::from_millis(100 + batch.inputs.len() as u64));
        scheduler.take(output, &mut events).unwrap();
    }
    let mut said = vec![Vec::new(); requests.len()];
    for (id, event) in events {
        match event {
            Event::Token(token) => said[id.0 as usize].push(token),
            Event::Begun { .. } | Event::Finished { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    (said, scheduler.stats())
}

pub fn request(prompt: &[u32], max_tokens: u32, sampling: &Sampling) -> Request {
    Request {
        member: MemberId::new("m"),
        claim: Claim::default(),
        prompt: prompt.iter().copied().map(TokenId).collect(),
        max_tokens,
        stop_tokens: [].into(),
        sampling: sampling.clone(),
        prompt_logprobs: None,
        grammar: None,
        pooling: None,
    }
}
