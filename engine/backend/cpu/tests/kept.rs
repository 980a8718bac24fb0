//! What a conversation's earlier turns left behind gives the same bits as reading everything anew.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

mod common;

use std::sync::Arc;

use common::{load, tiny};
use polder_backend::{Backend, SampledToken, Sampling, StepBatch, TokenId};
use polder_backend_cpu::{CpuBackend, Precision};
use polder_model::Model;
use polder_scheduler::{Config, Event, MemberId, Request, RequestId, Scheduler};

struct Engine {
    scheduler: Scheduler,
    backend: CpuBackend,
    asked: u64,
}

impl Engine {
    fn new(model: &Arc<Model>, precision: Precision) -> Self {
        let backend = load(model, precision);
        let scheduler = Scheduler::new(backend.limits(), Config::default()).unwrap();
        Self { scheduler, backend, asked: 0 }
    }

    /// What is said after these prompts, which run together, and how many tokens did not have to be read.
    fn say(&mut self, prompts: &[Vec<u32>]) -> Vec<(Vec<SampledToken>, u32)> {
        let first = self.asked;
        let requests = prompts.iter().map(|prompt| {
            self.asked += 1;
            let request = Request {
                member: MemberId::new("ada"),
                prompt: prompt.iter().copied().map(TokenId).collect(),
                max_tokens: 24,
                stop_tokens: [].into(),
                sampling: Sampling { logprobs: Some(3), ..Sampling::greedy() },
                prompt_logprobs: None,
                pooling: None,
            };
            (RequestId(self.asked), request)
        });
        let requests = requests.collect();
        self.scheduler.admit(requests).unwrap();
        let mut said = vec![(Vec::new(), 0); prompts.len()];
        let (mut batch, mut events) = (StepBatch::default(), Vec::new());
        while self.scheduler.plan_step(&mut batch) {
            let output = common::step(&mut self.backend, &batch);
            self.scheduler.take(output, &mut events).unwrap();
            for (id, event) in events.drain(..) {
                let said = &mut said[(id.0 - first - 1) as usize];
                match event {
                    Event::Token(token) => said.0.push(token),
                    Event::Finished { cached, .. } => said.1 = cached,
                    _ => {}
                }
            }
        }
        said
    }
}

#[test]
fn turns_that_find_what_was_kept_say_the_same_bits_as_turns_that_read_everything() {
    for name in ["qwen3", "mixed"] {
        let model = tiny(name);
        for precision in [Precision::F32, Precision::Stored] {
            let mut kept = Engine::new(&model, precision);
            // Two conversations that begin alike, turn by turn and side by side.
            let mut texts: Vec<Vec<u32>> = vec![(0..37).map(|i| (i * 29 + 7) % 64).collect(); 2];
            texts[1].extend([3, 1, 4]);
            for turn in 0..4 {
                let said = kept.say(&texts);
                let anew = Engine::new(&model, precision).say(&texts);
                for (n, text) in texts.iter_mut().enumerate() {
                    assert_eq!(said[n].0, anew[n].0, "{name} {precision:?}, turn {turn}");
                    assert!(said[n].1 as usize >= if turn == 0 { 0 } else { text.len() - 30 });
                    text.extend(said[n].0.iter().map(|token| token.token.0));
                    text.extend([5, 11 + turn]);
                }
            }
            let stats = kept.scheduler.stats();
            assert!(stats.cached_tokens > stats.asked_tokens / 2, "{stats:?}");
        }
    }
}
