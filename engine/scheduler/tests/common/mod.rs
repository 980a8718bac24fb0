//! Requests to the fake back end, and what must come of them.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used)] // Each test file uses its part.

use polder_backend::{Limits, Sampling, TokenId};
use polder_scheduler::fake::hashed;
use polder_scheduler::{FinishReason, MemberId, Request};

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
        prompt: prompt.into_iter().map(TokenId).collect(),
        max_tokens,
        stop_tokens: [STOP].into(),
        sampling: Sampling { seed, ..Sampling::greedy() },
        prompt_logprobs: None,
        pooling: None,
    }
}

/// What the sequence must say if it is alone in the world.
pub fn alone(request: &Request, capacity: u32) -> (Vec<TokenId>, FinishReason, u32) {
    let next = hashed(VOCAB);
    let mut tokens = request.prompt.clone();
    let limit = request.max_tokens.min(capacity - tokens.len() as u32);
    for sampled in 1..=limit {
        let token = next(&tokens, &request.sampling);
        if token == STOP {
            return (tokens[request.prompt.len()..].to_vec(), FinishReason::Stop, sampled);
        }
        tokens.push(token);
    }
    (tokens[request.prompt.len()..].to_vec(), FinishReason::Length, limit)
}
