//! From logits to a token.
//!
//! Order: penalties and bias, then the mask, then temperature, then top-k, top-p and min-p, then
//! the draw. The draw is a pure function of the seed and the position, so that the same seed
//! gives the same answer whatever else is in the batch.

use std::collections::HashMap;

use polder_backend::check::same_draft;
use polder_backend::{Input, Row, SampledToken, Sampling, StepBatch, TokenId};

/// What a slot remembers of its sequence.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// How often each token was sampled, and whether it stood in the prompt (then 0 is possible).
    seen: HashMap<u32, u32>,
    /// The last sampled token.
    pub(crate) last: Option<TokenId>,
}

impl History {
    /// Starts anew with a prompt and what was sampled after it.
    pub(crate) fn reset(&mut self, prompt: &[TokenId], sampled: &[TokenId]) {
        self.seen.clear();
        self.seen.extend(prompt.iter().map(|t| (t.0, 0)));
        self.last = None;
        sampled.iter().for_each(|token| self.push(*token));
    }

    /// Notes a sampled token.
    pub(crate) fn push(&mut self, token: TokenId) {
        *self.seen.entry(token.0).or_insert(0) += 1;
        self.last = Some(token);
    }
}

/// Notes what the rows of a step sampled, in order, and voids the rows that come after a wrong guess.
pub(crate) fn settle(step: &StepBatch, rows: &mut [Row], slots: &mut [History]) {
    for (at, output) in step.outputs.iter().enumerate() {
        let drafted = at > 0 && same_draft(&step.outputs[at - 1], output);
        let counts = !drafted
            || matches!(&rows[at - 1], Row::Sampled(sampled)
                if step.inputs[output.token as usize] == Input::Host(sampled.token));
        let slot = &mut slots[usize::from(output.slot.0)];
        match &rows[at] {
            Row::Sampled(_) | Row::Unusable if !counts => rows[at] = Row::Void,
            Row::Sampled(sampled) => slot.push(sampled.token),
            // The next step may be on its way already and reads what the slot holds.
            Row::Unusable => slot.push(TokenId(0)),
            Row::Void | Row::Logits(_) | Row::Hidden(_) => {}
        }
    }
}

/// Memory that draws use again and again.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// The tokens that are still possible.
    order: Vec<u32>,
    /// `[token]`: how likely each of those is, beside the best one.
    weights: Vec<f64>,
}

/// Chooses a token after the history and these guesses; `logits` is used up. None where they are no
/// distribution: what a broken weight file computes must not pass for an answer.
pub(crate) fn sample(
    logits: &mut [f32],
    want: &Sampling,
    history: &History,
    guesses: &[Input],
    position: u32,
    scratch: &mut Scratch,
) -> Option<SampledToken> {
    if !is_distribution(logits) {
        return None;
    }
    adjust(logits, want, history, guesses);
    let best = best(logits);
    let (logprob, top, normaliser) = logprobs(logits, want, &mut scratch.order);
    let token = match want.temperature > 0.0 {
        false => best,
        true => draw(logits, want, best, uniform(want, position), scratch),
    };
    Some(SampledToken {
        token: TokenId(token as u32),
        logprob: logprob.then(|| logits[token] - normaliser),
        top,
    })
}

/// No NaN, nothing infinitely likely, and something possible.
fn is_distribution(logits: &[f32]) -> bool {
    logits.iter().all(|logit| *logit < f32::INFINITY)
        && logits.iter().any(|logit| *logit > f32::NEG_INFINITY)
}

/// Penalties, bias and mask.
fn adjust(logits: &mut [f32], want: &Sampling, history: &History, guesses: &[Input]) {
    let penalties = want.repetition_penalty != 1.0
        || want.presence_penalty != 0.0
        || want.frequency_penalty != 0.0;
    if penalties {
        // A draft is short: walking through it is cheaper than a history of its own.
        let guessed = |token: u32| {
            guesses.iter().filter(|guess| **guess == Input::Host(TokenId(token))).count() as u32
        };
        for (token, count) in &history.seen {
            penalise(&mut logits[*token as usize], want, count + guessed(*token));
        }
        for (at, guess) in guesses.iter().enumerate() {
            if let Input::Host(token) = guess
                && !history.seen.contains_key(&token.0)
                && !guesses[..at].contains(guess)
            {
                penalise(&mut logits[token.0 as usize], want, guessed(token.0));
            }
        }
    }
    for (token, bias) in &want.bias {
        logits[token.0 as usize] += bias;
    }
    if let Some(mask) = &want.mask {
        for (logits, word) in logits.chunks_mut(32).zip(mask) {
            for (bit, logit) in logits.iter_mut().enumerate() {
                if word >> bit & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        // A mask outweighs everything: were all that it allows impossible, the first one stands.
        if logits.iter().all(|l| *l == f32::NEG_INFINITY) {
            let allowed = (0..logits.len()).find(|i| mask[i / 32] >> (i % 32) & 1 == 1);
            logits[allowed.expect("a checked mask allows a token")] = 0.0;
        }
    }
}

/// The logit of a token that was seen, and sampled so often.
fn penalise(logit: &mut f32, want: &Sampling, count: u32) {
    if *logit > 0.0 {
        *logit /= want.repetition_penalty;
    } else {
        *logit *= want.repetition_penalty;
    }
    if count > 0 {
        *logit -= want.presence_penalty + want.frequency_penalty * count as f32;
    }
}

/// The first of the largest.
fn best(logits: &[f32]) -> usize {
    let mut best = 0;
    for (i, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = i;
        }
    }
    best
}

/// Whether logprobs are wanted, the best tokens with theirs, and what to subtract from a logit.
fn logprobs(
    logits: &[f32],
    want: &Sampling,
    order: &mut Vec<u32>,
) -> (bool, Vec<(TokenId, f32)>, f32) {
    let Some(count) = want.logprobs else { return (false, Vec::new(), 0.0) };
    let max = logits[best(logits)];
    if max.is_infinite() {
        return (true, Vec::new(), max);
    }
    let sum: f64 = logits.iter().map(|l| f64::from(l - max).exp()).sum();
    let normaliser = (f64::from(max) + sum.ln()) as f32;
    order.clear();
    order.extend(0..logits.len() as u32);
    let count = usize::from(count).min(order.len());
    first_best(order, count, logits);
    let possible = |i: &&u32| logits[**i as usize] > f32::NEG_INFINITY;
    let top = order[..count]
        .iter()
        .filter(possible)
        .map(|i| (TokenId(*i), logits[*i as usize] - normaliser))
        .collect();
    (true, top, normaliser)
}

/// Moves the `count` largest to the front, largest first, lower ids first among equals.
fn first_best(order: &mut [u32], count: usize, logits: &[f32]) {
    let rank = |a: &u32, b: &u32| {
        logits[*b as usize].total_cmp(&logits[*a as usize]).then_with(|| a.cmp(b))
    };
    if count == 0 {
        return;
    }
    if count < order.len() {
        order.select_nth_unstable_by(count - 1, rank);
    }
    order[..count].sort_unstable_by(rank);
}

/// Temperature, filters, draw. `u` is in `[0, 1)`.
fn draw(logits: &[f32], want: &Sampling, best: usize, u: f64, scratch: &mut Scratch) -> usize {
    let max = logits[best];
    if max.is_infinite() {
        return best;
    }
    let Scratch { order, weights } = scratch;
    order.clear();
    order.extend((0..logits.len() as u32).filter(|i| logits[*i as usize] > f32::NEG_INFINITY));
    let top_k = match want.top_k as usize {
        0 => order.len(),
        k => k.min(order.len()),
    };
    if top_k < order.len() {
        first_best(order, top_k, logits);
        order.truncate(top_k);
    }
    // What is left of an earlier draw is never read: below, only tokens in `order` are.
    weights.resize(logits.len(), 0.0);
    let temperature = f64::from(want.temperature);
    for i in order.iter() {
        let i = *i as usize;
        weights[i] = (f64::from(logits[i] - max) / temperature).exp();
    }
    let weight = |i: &u32| weights[*i as usize];
    if want.top_p < 1.0 {
        let all: f64 = order.iter().map(weight).sum();
        let goal = f64::from(want.top_p) * all;
        // Most of the mass sits in few tokens: sort a small front first, more only if needed.
        let mut sorted = 64.min(order.len());
        let keep = loop {
            first_best(order, sorted, logits);
            let mut sum = 0.0;
            let enough = order[..sorted].iter().position(|i| {
                sum += weight(i);
                sum >= goal
            });
            match enough {
                Some(last) => break last + 1,
                None if sorted == order.len() => break sorted,
                None => sorted = (sorted * 8).min(order.len()),
            }
        };
        order.truncate(keep);
    }
    if want.min_p > 0.0 {
        order.retain(|i| weight(i) >= f64::from(want.min_p) || *i as usize == best);
    }
    // Vocabulary order, so that the draw does not depend on how the filters sorted.
    order.sort_unstable();
    let all: f64 = order.iter().map(weight).sum();
    let mut left = u * all;
    for i in order.iter() {
        left -= weight(i);
        if left < 0.0 {
            return *i as usize;
        }
    }
    best
}

/// Where the draw falls, in `[0, 1)`.
fn uniform(want: &Sampling, position: u32) -> f64 {
    want.draw(position) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
#[path = "sampling_tests.rs"]
mod tests;
