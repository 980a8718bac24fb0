//! How fast answers come: ceilings set by what a step must read and compute, never promises.

use polder_recipes::{Architecture, BoxSpec, Label, Quantization, Recipe};
use serde::Serialize;

use crate::assumptions::Assumptions;
use crate::count::{Weights, attention_flop_per_token, distinct_experts};
use crate::memory::Split;
use crate::quantity::{Quantity, Span, Unit};
use crate::text;

/// How many people are answered at once.
pub(crate) const TOGETHER: [u32; 3] = [1, 8, 32];
/// Lengths of their conversations.
const CONTEXTS: [u32; 5] = [0, 8192, 32_768, 68_000, 131_072];
const PROMPTS: [u32; 4] = [8192, 32_768, 68_000, 131_072];

/// What one step reads of the weights when it makes a token for each of `together` people.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepRow {
    /// People answered at once.
    pub together: u32,
    /// Different experts that they visit in a layer; none in a model without experts.
    pub distinct_experts: Option<Quantity>,
    /// Weights read per step.
    pub weights_read: Quantity,
    /// How long that takes at least, conversations not counted.
    pub time: Quantity,
}

/// How fast an answer is written.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DecodeRow {
    /// People answered at once.
    pub together: u32,
    /// Length of each one's conversation so far, in tokens.
    pub context: u32,
    /// Longer than the model was made for.
    pub beyond_context: bool,
    /// Whether that many conversations of that length stay in fast memory together.
    pub all_ready: bool,
    /// Read per step: weights and every conversation.
    pub read: Quantity,
    /// How long a step takes at least.
    pub time: Quantity,
    /// Tokens per second for each person, at most.
    pub ceiling: Quantity,
    /// What an engine probably reaches of it.
    pub likely: Span,
}

/// How fast a prompt is read that is not remembered from before.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PrefillRow {
    /// Its length in tokens.
    pub tokens: u32,
    /// Longer than the model was made for.
    pub beyond_context: bool,
    /// Work per token on average.
    pub work: Quantity,
    /// Tokens read per second.
    pub speed: Quantity,
    /// Seconds until the answer begins.
    pub wait: Quantity,
}

/// Seconds to read `bytes`, of which `slow_bytes` come from the slow memory; 0 for nothing.
pub fn step_seconds(bytes: f64, slow_bytes: f64, fast_rate: f64, slow_rate: f64) -> f64 {
    let slow = if slow_bytes > 0.0 { slow_bytes / slow_rate } else { 0.0 };
    (bytes - slow_bytes) / fast_rate + slow
}

/// What the speed tables share.
pub(crate) struct Speed<'a> {
    pub(crate) spec: &'a BoxSpec,
    pub(crate) recipe: &'a Recipe,
    pub(crate) architecture: &'a Architecture,
    pub(crate) quantization: &'a Quantization,
    pub(crate) weights: Weights,
    pub(crate) split: &'a Split,
    pub(crate) assumed: &'a Assumptions,
}

impl Speed<'_> {
    pub(crate) fn steps(&self) -> Vec<StepRow> {
        TOGETHER.map(|together| self.step(together)).into()
    }

    pub(crate) fn decode(&self) -> Vec<DecodeRow> {
        let row = |context| TOGETHER.map(|together| self.decode_row(together, context));
        CONTEXTS.into_iter().flat_map(row).collect()
    }

    pub(crate) fn prefill(&self) -> Vec<PrefillRow> {
        PROMPTS.map(|tokens| self.prefill_row(tokens)).into()
    }

    fn step(&self, together: u32) -> StepRow {
        let fixed = self.weights.fixed_step_bytes(self.quantization);
        let experts = self.weights.expert_step_bytes(self.quantization, together);
        let distinct = self.weights.moe.first().map(|moe| {
            let (e, k) = (moe.experts, moe.top_k);
            Quantity::computed(
                distinct_experts(e, k, together),
                Unit::Experts,
                format!("{e} x (1 - ({}/{e})^{together})", e - k),
            )
        });
        let seconds = self.seconds(fixed + experts, experts, together);
        StepRow {
            together,
            distinct_experts: distinct,
            weights_read: Quantity::computed(
                fixed + experts,
                Unit::Bytes,
                if experts > 0.0 {
                    format!(
                        "{} of attention, dense parts, routers and head + {} of experts",
                        text::bytes(fixed),
                        text::bytes(experts)
                    )
                } else {
                    "attention, dense parts and head".to_owned()
                },
            ),
            time: self.time(seconds, fixed + experts, experts, together),
        }
    }

    fn decode_row(&self, together: u32, context: u32) -> DecodeRow {
        let weights = self.weights.fixed_step_bytes(self.quantization);
        let experts = self.weights.expert_step_bytes(self.quantization, together);
        let each = if context == 0 { 0.0 } else { self.split.kv.step_bytes(context) };
        let people = f64::from(together);
        let read = weights + experts + people * each;
        let seconds = self.seconds(read, experts, together);
        let rate = 1.0 / seconds;
        let (low, high) = self.assumed.decode_efficiency;
        let low = if seconds < 1e-3 { low.min(self.assumed.short_step_efficiency) } else { low };
        let room = self.split.memory.conversations.value;
        DecodeRow {
            together,
            context,
            beyond_context: self.recipe.context.is_some_and(|most| context > most),
            all_ready: people * self.split.kv.session_bytes(context) <= room,
            read: Quantity::computed(
                read,
                Unit::Bytes,
                format!(
                    "{} of weights + {together} x {}",
                    text::bytes(weights + experts),
                    text::bytes(each)
                ),
            ),
            time: self.time(seconds, read, experts, together),
            ceiling: Quantity::computed(
                rate,
                Unit::TokensPerSecond,
                format!("1 / {} ms", text::trimmed(seconds * 1e3)),
            ),
            likely: Span::new(
                (rate * low, rate * high),
                Unit::TokensPerSecond,
                Label::Estimate,
                format!("{} x {:.0} to {:.0} %", text::short(rate), low * 100.0, high * 100.0),
            ),
        }
    }

    fn prefill_row(&self, tokens: u32) -> PrefillRow {
        let through = 2.0 * self.weights.per_token();
        let looking = attention_flop_per_token(self.architecture, tokens);
        let work = through + looking;
        let peak = self.spec.compute.value;
        let share = self.assumed.prefill_utilisation;
        let per_token = work / (peak * share);
        // Experts in slow memory are read anew for every chunk.
        let moving = self.split.in_slow / self.slow_rate() / f64::from(self.assumed.prefill_chunk);
        let seconds = per_token + if self.split.in_slow > 0.0 { moving } else { 0.0 };
        let mut how = format!("{} x {:.0} % / {:.1} GFLOP", flops(peak), share * 100.0, work / 1e9);
        if self.split.in_slow > 0.0 {
            how += &format!(
                ", and {} from slow memory per {} tokens",
                text::bytes(self.split.in_slow),
                text::whole(f64::from(self.assumed.prefill_chunk))
            );
        }
        let speed = 1.0 / seconds;
        PrefillRow {
            tokens,
            beyond_context: self.recipe.context.is_some_and(|most| tokens > most),
            work: Quantity::computed(
                work,
                Unit::FlopPerToken,
                format!(
                    "2 x {} bn weights + {:.1} GFLOP of attention",
                    text::billions(self.weights.per_token()),
                    looking / 1e9
                ),
            ),
            speed: Quantity::new(speed, Unit::TokensPerSecond, Label::Estimate, how),
            wait: Quantity::new(
                f64::from(tokens) / speed,
                Unit::Seconds,
                Label::Estimate,
                format!("{} / {}", text::whole(f64::from(tokens)), text::whole(speed)),
            ),
        }
    }

    /// A step is held up by reading or by computing, whichever takes longer.
    fn seconds(&self, read: f64, experts: f64, together: u32) -> f64 {
        self.reading(read, experts).max(self.computing(together)).max(1e-9)
    }

    fn reading(&self, read: f64, experts: f64) -> f64 {
        step_seconds(
            read,
            experts * self.slow_share(),
            self.spec.fast.bandwidth.value,
            self.slow_rate(),
        )
    }

    fn computing(&self, together: u32) -> f64 {
        2.0 * self.weights.per_token() * f64::from(together) / self.spec.compute.value
    }

    fn time(&self, seconds: f64, read: f64, experts: f64, together: u32) -> Quantity {
        let fast = self.spec.fast.bandwidth.value;
        let slow = experts * self.slow_share();
        let how = if self.computing(together) > self.reading(read, experts) {
            format!(
                "{together} x 2 x {} bn weights / {}",
                text::billions(self.weights.per_token()),
                flops(self.spec.compute.value)
            )
        } else if slow > 0.0 {
            format!(
                "{} / {} + {} / {}",
                text::bytes(read - slow),
                text::per_second(fast),
                text::bytes(slow),
                text::per_second(self.slow_rate())
            )
        } else {
            format!("{} / {}", text::bytes(read), text::per_second(fast))
        };
        Quantity::computed(seconds * 1e3, Unit::Milliseconds, how)
    }

    /// Share of the experts' bytes that are in slow memory.
    fn slow_share(&self) -> f64 {
        let all = self.weights.expert_bytes(self.quantization);
        if all > 0.0 { (self.split.in_slow / all).min(1.0) } else { 0.0 }
    }

    fn slow_rate(&self) -> f64 {
        self.spec.slow.as_ref().map_or(1.0, |tier| tier.bandwidth.value)
    }
}

fn flops(per_second: f64) -> String {
    if per_second >= 999.5e12 {
        return format!("{} PFLOPS", text::trimmed(per_second / 1e15));
    }
    format!("{} TFLOPS", text::trimmed(per_second / 1e12))
}
