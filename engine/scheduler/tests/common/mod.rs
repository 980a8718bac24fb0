//! Requests to the fake back end, and what must come of them.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used)] // Each test file uses its part.

pub mod bench;
pub mod beside;

use std::sync::Arc;

use polder_backend::{Limits, Sampling, TokenId};
use polder_scheduler::fake::hashed;
use polder_scheduler::{Claim, FinishReason, Grammar, Matcher, MemberId, Next, Request};

pub const VOCAB: u32 = 23;
pub const STOP: TokenId = TokenId(0);

pub fn limits(blocks: u32, slots: u16) -> Limits {
    Limits {
        step_tokens: 64,
        slots,
        blocks,
        block_tokens: 4,
        context: 64,
        vocab: VOCAB,
        kv_bytes_per_token: 1,
    }
}

pub fn request(member: &str, prompt: Vec<u32>, max_tokens: u32, seed: u64) -> Request {
    Request {
        member: MemberId::new(member),
        claim: Claim::default(),
        prompt: prompt.into_iter().map(TokenId).collect(),
        max_tokens,
        stop_tokens: [STOP].into(),
        sampling: Sampling { seed, ..Sampling::greedy() },
        prompt_logprobs: None,
        grammar: None,
        pooling: None,
    }
}

/// What the sequence must say if it is alone in the world.
pub fn alone(request: &Request, capacity: u32) -> (Vec<TokenId>, FinishReason, u32) {
    alone_with(&hashed(VOCAB), request, capacity)
}

/// The same, where `next` is what comes after.
pub fn alone_with(
    next: &dyn Fn(&[TokenId], &Sampling) -> TokenId,
    request: &Request,
    capacity: u32,
) -> (Vec<TokenId>, FinishReason, u32) {
    let mut tokens = request.prompt.clone();
    let limit = request.max_tokens.min(capacity - tokens.len() as u32);
    let mut matcher = request.grammar.as_ref().map(|grammar| grammar.begin());
    let mut mask = request.grammar.as_ref().map(|grammar| grammar.first_mask());
    for sampled in 1..=limit {
        let mut token = next(&tokens, &request.sampling);
        if let Some(mask) = &mask {
            while mask[0] >> token.0 & 1 == 0 {
                token = TokenId((token.0 + 1) % VOCAB);
            }
        }
        if request.stop_tokens.contains(&token) {
            return (tokens[request.prompt.len()..].to_vec(), FinishReason::Stop, sampled);
        }
        tokens.push(token);
        match matcher.as_mut().map(|matcher| matcher.after(token)) {
            None => {}
            Some(Next::Mask(next)) => mask = Some(next),
            // Whoever is full hears of that first.
            Some(_) if sampled == limit => {}
            Some(_) => {
                return (tokens[request.prompt.len()..].to_vec(), FinishReason::Stop, sampled);
            }
        }
    }
    (tokens[request.prompt.len()..].to_vec(), FinishReason::Length, limit)
}

/// A grammar of sums: what may come next depends on all that was said.
#[derive(Debug, Clone)]
pub struct Sums {
    /// So long is an answer, unless it ends before.
    pub length: usize,
    /// What happens then.
    pub end: Next,
    said: Vec<TokenId>,
}

impl Sums {
    pub fn grammar(length: usize, end: Next) -> Arc<dyn Grammar> {
        Arc::new(Self { length, end, said: Vec::new() })
    }

    fn next(&self) -> Next {
        if self.said.len() == self.length {
            return self.end.clone();
        }
        let sum: u32 = self.said.iter().map(|token| token.0 + 1).sum();
        let may = |token: &u32| (token * 7 + sum).is_multiple_of(5) || *token == 3 + sum % 7;
        Next::Mask(vec![(0..VOCAB).filter(may).fold(0, |mask, token| mask | 1 << token)])
    }
}

impl Grammar for Sums {
    fn first_mask(&self) -> Vec<u32> {
        match self.next() {
            Next::Mask(mask) => mask,
            _ => unreachable!("an answer has tokens"),
        }
    }

    fn begin(&self) -> Box<dyn Matcher> {
        Box::new(self.clone())
    }
}

impl Matcher for Sums {
    fn after(&mut self, token: TokenId) -> Next {
        let Next::Mask(mask) = self.next() else { panic!("{token:?} after the end") };
        assert!(mask[0] >> token.0 & 1 == 1, "{token:?} was not allowed");
        self.said.push(token);
        self.next()
    }
}
