//! What a conversation's earlier turns left behind gives the same bits as reading everything anew.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

mod common;

use std::sync::Arc;

use common::{load, tiny};
use polder_backend::{Backend, SampledToken, Sampling, StepBatch, TokenId};
use polder_backend_cpu::{CpuBackend, Precision};
use polder_model::Model;
use polder_scheduler::{Claim, Config, Event, MemberId, Request, RequestId, Scheduler};

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
        let first = self.asked + 1;
        for prompt in prompts {
            self.ask("ada", prompt, Sampling { logprobs: Some(3), ..Sampling::greedy() });
        }
        let mut said = vec![(Vec::new(), 0); prompts.len()];
        while self.turn(|id, event| match event {
            Event::Token(token) => said[(id - first) as usize].0.push(token),
            Event::Begun { cached } => said[(id - first) as usize].1 = cached,
            _ => {}
        }) {}
        said
    }

    fn ask(&mut self, member: &str, prompt: &[u32], sampling: Sampling) {
        self.asked += 1;
        let request = Request {
            claim: Claim::default(),
            member: MemberId::new(member),
            prompt: prompt.iter().copied().map(TokenId).collect(),
            max_tokens: 24,
            stop_tokens: [].into(),
            sampling,
            prompt_logprobs: None,
            grammar: None,
            pooling: None,
        };
        self.scheduler.admit(vec![(RequestId(self.asked), request)]).unwrap();
    }

    /// One step; false where there is none to run.
    fn turn(&mut self, mut hear: impl FnMut(u64, Event)) -> bool {
        let (mut batch, mut events) = (StepBatch::default(), Vec::new());
        if !self.scheduler.plan_step(&mut batch) {
            return false;
        }
        let output = common::step(&mut self.backend, &batch);
        self.scheduler.take(output, &mut events).unwrap();
        events.into_iter().for_each(|(id, event)| hear(id.0, event));
        true
    }
}

#[test]
fn a_sequence_that_gave_up_its_slot_says_what_it_would_have_said() {
    let model = tiny("qwen3");
    let prompt = |n: u32| -> Vec<u32> { (0..20).map(|i| (i * 29 + 7 * n) % 64).collect() };
    // Penalties count what was said before as well, and draws go by the place in the text.
    let sampling = |n: u32| Sampling {
        temperature: 0.9,
        seed: n.into(),
        presence_penalty: 0.7,
        frequency_penalty: 0.4,
        repetition_penalty: 1.3,
        ..Sampling::greedy()
    };
    let mut together = Engine::new(&model, Precision::F32);
    let slots = u32::from(together.backend.limits().slots);
    let mut said = vec![Vec::new(); 2 * slots as usize];
    for n in 0..slots + 2 {
        together.ask("busy", &prompt(n), sampling(n));
    }
    let mut turns = 0;
    while together.turn(|id, event| {
        if let Event::Token(token) = event {
            said[id as usize - 1].push(token.token);
        }
    }) {
        turns += 1;
        if turns == 9 {
            for (n, member) in (slots + 2..).zip(["bob", "cyd", "dan"]) {
                together.ask(member, &prompt(n), sampling(n));
            }
        }
    }
    assert!(together.scheduler.stats().slots_given_up >= 1);
    for n in 0..slots + 5 {
        let mut alone = Engine::new(&model, Precision::F32);
        let mut own = Vec::new();
        alone.ask("busy", &prompt(n), sampling(n));
        while alone.turn(|_, event| {
            if let Event::Token(token) = event {
                own.push(token.token);
            }
        }) {}
        assert_eq!(said[n as usize], own, "{n}");
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
