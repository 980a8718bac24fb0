//! A machine that computes nothing and takes as long as a real one would.

use polder_backend::{
    Limits, Row, SampledToken, SequenceStep, StepBatch, StepOutput, TokenId, Want,
};
use polder_scheduler::Cost;

/// Bytes and work of a model on a card, from which a step's time follows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Machine {
    /// Bytes a second that a kernel gets out of the card's memory.
    pub(crate) bandwidth: f64,
    /// Floating-point operations a second that a kernel gets out of it.
    pub(crate) arithmetic: f64,
    /// Seconds of a step beside both: launches, sampling.
    pub(crate) overhead: f64,
    /// Bytes of weights that every step reads.
    pub(crate) dense_bytes: f64,
    /// Bytes of all experts, and which part of them one token uses.
    pub(crate) expert_bytes: f64,
    pub(crate) expert_part: f64,
    /// Operations of one token, without attention.
    pub(crate) operations: f64,
    /// Operations of one token's attention for each position before it.
    pub(crate) operations_per_position: f64,
    /// Bytes of KV of one position.
    pub(crate) kv_bytes: f64,
    /// Bytes there are for KV.
    pub(crate) kv_memory: f64,
}

/// Qwen3-30B-A3B in 4 bits with FP8 KV on one H200: 70 % of the bandwidth that was measured there (4.66 TB/s), and
/// as much arithmetic as reads 50,000 tokens a second; vLLM 0.26 was measured at 38,000.
pub(crate) const H200_30B: Machine = Machine {
    bandwidth: 0.7 * 4.66e12,
    arithmetic: 50_000.0 * 6.6e9,
    overhead: 0.5e-3,
    dense_bytes: 1.6e9,
    expert_bytes: 14.9e9,
    expert_part: 8.0 / 128.0,
    operations: 6.6e9,
    operations_per_position: 4.0 * 32.0 * 128.0 * 48.0,
    kv_bytes: 2.0 * 4.0 * 128.0 * 48.0,
    kv_memory: 100e9,
};

const BLOCK: u32 = 16;

impl Machine {
    /// What it can hold, with this many tokens in a step.
    pub(crate) fn limits(&self, step_tokens: u32) -> Limits {
        Limits {
            step_tokens,
            slots: 64,
            blocks: (self.kv_memory / self.kv_bytes) as u32 / BLOCK,
            block_tokens: BLOCK,
            context: 262_144,
            vocab: 151_936,
            kv_bytes_per_token: self.kv_bytes as u64,
        }
    }

    /// What the scheduler is told about it.
    pub(crate) fn cost(&self, step_tokens: u32) -> Cost {
        let token = self.seconds(step_tokens.into(), 0.0, 0.0) / f64::from(step_tokens);
        Cost {
            read_slope: self.operations_per_position / self.arithmetic / token,
            decode_slope: self.kv_bytes / self.bandwidth / token,
        }
    }

    /// How long a step takes, and for how long of that its arithmetic would do.
    pub(crate) fn step(&self, batch: &StepBatch) -> (f64, f64) {
        let tokens = batch.inputs.len() as f64;
        let last = |s: &SequenceStep| f64::from(batch.positions[s.tokens.end as usize - 1]);
        let kv = batch.sequences.iter().map(last).sum();
        let attended: f64 = batch.positions.iter().map(|position| f64::from(*position)).sum();
        let operations = tokens * self.operations + attended * self.operations_per_position;
        (self.seconds(tokens, attended, kv), operations / self.arithmetic)
    }

    /// Seconds for so many tokens, positions that they attend to, and positions whose KV is read. The matrices take what
    /// is slower of reading them and multiplying by them; attention comes between them, and takes what is slower of its own.
    fn seconds(&self, tokens: f64, attended: f64, kv: f64) -> f64 {
        let experts = self.expert_bytes * (1.0 - (1.0 - self.expert_part).powf(tokens));
        let weights = (self.dense_bytes + experts) / self.bandwidth;
        let matrices = weights.max(tokens * self.operations / self.arithmetic);
        let attention = (kv * self.kv_bytes / self.bandwidth)
            .max(attended * self.operations_per_position / self.arithmetic);
        self.overhead + matrices + attention
    }
}

/// An answer of the right shape to every step.
pub(crate) fn answer(batch: &StepBatch) -> StepOutput {
    let row = |row: &polder_backend::OutputRow| match row.want {
        Want::Sample(_) => Row::Sampled(SampledToken {
            // Not the same for all: conversations must not become alike.
            token: TokenId(7 + u32::from(row.slot.0) + batch.positions[row.token as usize] % 999),
            logprob: None,
            top: Vec::new(),
        }),
        _ => unreachable!("nobody asks for anything else here"),
    };
    StepOutput { rows: batch.outputs.iter().map(row).collect() }
}
