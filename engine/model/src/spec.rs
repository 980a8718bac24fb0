//! What a model is, in terms that any back end can execute: a list of layer descriptors.
//!
//! A family (llama, qwen2, qwen3, gemma3, ...) is nothing but a reader of its configuration to these
//! descriptors; back ends never ask for a family's name.

use std::sync::Arc;

use crate::error::ModelError;

/// What a model is.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// The family's name as the file gives it; for people, never for decisions.
    pub family: String,
    /// Rows of the embedding; every token id is below it.
    pub vocab: u32,
    /// Width of the hidden state.
    pub hidden: u32,
    /// Longest sequence the model was made for.
    pub context: u32,
    /// The layers, first to last.
    pub layers: Vec<LayerSpec>,
    /// Added to the mean square in every RMS norm.
    pub norm_eps: f32,
    /// The output matrix is the embedding.
    pub tied_head: bool,
    /// Multiplies embeddings; 1 for most.
    pub embedding_scale: f32,
    /// Norms multiply with one more than what is stored (gemma's safetensors).
    pub norms_from_one: bool,
}

impl ModelSpec {
    /// KV values (keys and values together) of one position, over all layers.
    pub fn kv_values_per_token(&self) -> u64 {
        self.layers
            .iter()
            .map(|layer| match &layer.attention {
                Attention::Gqa(a) => 2 * u64::from(a.kv_heads) * u64::from(a.head_dim),
            })
            .sum()
    }

    /// How much work a token is for each position before it, beside its work at the start of a text: attention's
    /// multiplications over those of the matrices. Layers that look back a little way only count as if they never did.
    pub fn attention_slope(&self) -> f64 {
        let (matrices, attention) = self.multiplications();
        attention / matrices
    }

    /// Weights of its layers that a token is multiplied with: of a mixture, those of the experts that it goes to.
    pub fn active_weights(&self) -> f64 {
        self.multiplications().0
    }

    /// Of a token: with matrices, and with each position before it.
    fn multiplications(&self) -> (f64, f64) {
        let (mut matrices, mut attention) = (0.0, 0.0);
        let hidden = f64::from(self.hidden);
        for layer in &self.layers {
            let Attention::Gqa(a) = &layer.attention;
            let (heads, head_dim) = (f64::from(a.heads), f64::from(a.head_dim));
            // Queries and output; keys and values.
            matrices += 2.0 * hidden * head_dim * (heads + f64::from(a.kv_heads));
            matrices += match &layer.ffn {
                Ffn::Dense { inner, .. } => 3.0 * hidden * f64::from(*inner),
                Ffn::Moe(moe) => {
                    let used = 3.0 * f64::from(moe.chosen) * f64::from(moe.inner);
                    hidden * (used + f64::from(moe.experts))
                }
            };
            if a.window.is_none() {
                // Scores, and what they weigh.
                attention += 2.0 * heads * head_dim;
            }
        }
        (matrices, attention)
    }

    /// Refuses numbers that no back end could execute, so that none has to check again: widths
    /// are positive and below 2^20, heads divide, floats are finite.
    pub(crate) fn check(&self) -> Result<(), ModelError> {
        let width = |name: &str, value: u32| match value {
            1..=0xF_FFFF => Ok(()),
            _ => Err(ModelError::Config(format!("{name} is {value}"))),
        };
        let positive = |name: &str, value: f32| match value.is_finite() && value > 0.0 {
            true => Ok(()),
            false => Err(ModelError::Config(format!("{name} is {value}"))),
        };
        let refuse = |what: String| Err(ModelError::Config(what));
        width("the hidden size", self.hidden)?;
        if self.vocab == 0 || self.vocab > 1 << 24 || self.context == 0 {
            return refuse(format!("{} tokens, {} positions", self.vocab, self.context));
        }
        if self.layers.is_empty() || self.layers.len() > MAX_LAYERS {
            return refuse(format!("the model has {} layers", self.layers.len()));
        }
        positive("the norm's epsilon", self.norm_eps)?;
        positive("the embedding's scale", self.embedding_scale)?;
        for layer in &self.layers {
            let Attention::Gqa(a) = &layer.attention;
            width("the head count", a.heads)?;
            width("the key/value head count", a.kv_heads)?;
            width("the head width", a.head_dim)?;
            width("the width of all heads", a.heads.saturating_mul(a.head_dim))?;
            if !a.heads.is_multiple_of(a.kv_heads) {
                return refuse(format!(
                    "{} heads do not share {} key/value heads evenly",
                    a.heads, a.kv_heads
                ));
            }
            if !a.head_dim.is_multiple_of(2)
                || !a.rope.dims.is_multiple_of(2)
                || a.rope.dims > a.head_dim
            {
                return refuse(format!("heads of {} with {} turned", a.head_dim, a.rope.dims));
            }
            width("the number of turned values", a.rope.dims)?;
            positive("the attention scale", a.scale)?;
            positive("the base of RoPE", a.rope.theta)?;
            if a.window == Some(0) {
                return refuse("the attention window is 0".into());
            }
            match &a.rope.scaling {
                RopeScaling::None => {}
                RopeScaling::Linear { factor } => positive("the RoPE factor", *factor)?,
                RopeScaling::Divisors(d) => {
                    if d.len() != a.rope.dims as usize / 2 {
                        return refuse(format!("{} RoPE factors", d.len()));
                    }
                    d.iter().try_for_each(|d| positive("a RoPE factor", *d))?;
                }
                RopeScaling::Llama3 { factor, low, high, original_context } => {
                    positive("the RoPE factor", *factor)?;
                    positive("the low RoPE factor", *low)?;
                    positive("the high RoPE factor", high - low)?;
                    if *original_context == 0 {
                        return refuse("the original context is 0".into());
                    }
                }
                RopeScaling::Yarn(yarn) => {
                    positive("the RoPE factor", yarn.factor)?;
                    positive("YaRN's slow bound", yarn.slow)?;
                    positive("YaRN's fast bound", yarn.fast - yarn.slow)?;
                    positive("YaRN's attention factor", yarn.attention)?;
                    if yarn.original_context == 0 {
                        return refuse("the original context is 0".into());
                    }
                }
            }
            match &layer.ffn {
                Ffn::Dense { inner, .. } => width("the feed-forward width", *inner)?,
                Ffn::Moe(moe) => {
                    width("the experts' width", moe.inner)?;
                    width(
                        "the experts' width all together",
                        moe.inner.saturating_mul(moe.experts),
                    )?;
                    if moe.experts == 0 || moe.experts > MAX_EXPERTS {
                        return refuse(format!("a layer has {} experts", moe.experts));
                    }
                    if moe.chosen == 0 || moe.chosen > moe.experts {
                        return refuse(format!(
                            "each token chooses {} of {} experts",
                            moe.chosen, moe.experts
                        ));
                    }
                }
            }
        }
        Ok(())
    }
}

/// The deepest published model has 126.
pub(crate) const MAX_LAYERS: usize = 1024;
/// The published model with the most has 896.
const MAX_EXPERTS: u32 = 4096;

/// One layer: `x += attention(norm(x)); x += ffn(norm(x))`.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerSpec {
    /// The first half.
    pub attention: Attention,
    /// The second half.
    pub ffn: Ffn,
    /// Each half's result is normed once more before it is added (gemma3).
    pub post_norms: bool,
}

/// How tokens see each other.
#[derive(Debug, Clone, PartialEq)]
pub enum Attention {
    /// Softmax attention; several query heads share a key/value head.
    Gqa(Gqa),
}

/// Grouped-query attention.
#[derive(Debug, Clone, PartialEq)]
pub struct Gqa {
    /// Query heads; a multiple of `kv_heads`.
    pub heads: u32,
    /// Key/value heads.
    pub kv_heads: u32,
    /// Width of one head, even.
    pub head_dim: u32,
    /// Multiplies `q . k`.
    pub scale: f32,
    /// Query, key and value projections have a bias.
    pub qkv_bias: bool,
    /// Each query and key head passes an RMS norm before RoPE.
    pub qk_norm: bool,
    /// A token sees only this many positions back, itself included. None: all.
    pub window: Option<u32>,
    /// Rotary positions.
    pub rope: Rope,
}

/// Rotary position embedding over the first `dims` values of each head.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Which values form a pair.
    pub layout: RopeLayout,
    /// How many values turn; even, at most `head_dim`.
    pub dims: u32,
    /// Base of the frequencies.
    pub theta: f32,
    /// How frequencies are stretched.
    pub scaling: RopeScaling,
}

impl Rope {
    /// What cosines and sines are multiplied with; 1 for most. Queries and keys both get it, so that it shows squared
    /// in what they come to together.
    pub fn amplitude(&self) -> f32 {
        match &self.scaling {
            RopeScaling::Yarn(yarn) => yarn.attention,
            _ => 1.0,
        }
    }

    /// Radians per position for each of the `dims / 2` pairs:
    /// `theta^(-2 i / dims)`, then stretched.
    pub fn frequencies(&self) -> Vec<f64> {
        let half = self.dims as usize / 2;
        (0..half)
            .map(|i| {
                let plain = f64::from(self.theta).powf(-2.0 * i as f64 / f64::from(self.dims));
                match &self.scaling {
                    RopeScaling::None => plain,
                    RopeScaling::Linear { factor } => plain / f64::from(*factor),
                    RopeScaling::Divisors(divisors) => plain / f64::from(divisors[i]),
                    RopeScaling::Llama3 { factor, low, high, original_context } => {
                        llama3(plain, *factor, *low, *high, *original_context)
                    }
                    RopeScaling::Yarn(yarn) => yarn.stretch(plain, i, self),
                }
            })
            .collect()
    }
}

/// Llama 3.1's rule: short wavelengths stay, long ones slow down by `factor`, those between blend.
fn llama3(plain: f64, factor: f32, low: f32, high: f32, original_context: u32) -> f64 {
    let (factor, low, high) = (f64::from(factor), f64::from(low), f64::from(high));
    let turns = f64::from(original_context) * plain / std::f64::consts::TAU;
    if turns < low {
        plain / factor
    } else if turns > high {
        plain
    } else {
        let smooth = (turns - low) / (high - low);
        (1.0 - smooth) * plain / factor + smooth * plain
    }
}

impl Yarn {
    /// One frequency: the fast ones stay, the slow ones are divided, those between blend by their number.
    fn stretch(&self, plain: f64, pair: usize, rope: &Rope) -> f64 {
        let (dims, theta) = (f64::from(rope.dims), f64::from(rope.theta));
        // The pair that turns so often over the original context.
        let pair_of = |turns: f32| {
            let context = f64::from(self.original_context);
            dims * (context / (f64::from(turns) * std::f64::consts::TAU)).ln() / (2.0 * theta.ln())
        };
        let (mut first, mut last) = (pair_of(self.fast), pair_of(self.slow));
        if self.whole {
            (first, last) = (first.floor(), last.ceil());
        }
        let (first, last) = (first.max(0.0), last.min(dims - 1.0));
        let slow = ((pair as f64 - first) / (last - first).max(0.001)).clamp(0.0, 1.0);
        plain / f64::from(self.factor) * slow + plain * (1.0 - slow)
    }
}

/// Which values of a head turn together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeLayout {
    /// Neighbours: `(0, 1), (2, 3), ...` (GGUF files of the llama family).
    Interleaved,
    /// First half with second half: `(0, n/2), (1, n/2 + 1), ...` (everything else).
    Halves,
}

/// How RoPE's frequencies are stretched for long contexts.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// They are not.
    None,
    /// All divided by `factor`.
    Linear {
        /// How much.
        factor: f32,
    },
    /// Divided one by one; `dims / 2` values, all positive.
    Divisors(Arc<[f32]>),
    /// Llama 3.1's rule.
    Llama3 {
        /// How much the slowest are divided.
        factor: f32,
        /// Fewer turns over the original context than this: fully divided.
        low: f32,
        /// More turns than this: untouched.
        high: f32,
        /// The context the model was first trained for.
        original_context: u32,
    },
    /// YaRN (arXiv 2309.00071): by how often a pair turns over the original context.
    Yarn(Yarn),
}

/// YaRN's figures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Yarn {
    /// How much the slowest are divided.
    pub factor: f32,
    /// Pairs that turn more often than this stay: its `beta_fast`.
    pub fast: f32,
    /// Pairs that turn less often than this are divided in full: its `beta_slow`.
    pub slow: f32,
    /// The context the model was first trained for.
    pub original_context: u32,
    /// See [`Rope::amplitude`].
    pub attention: f32,
    /// The bounds are rounded to whole pairs.
    pub whole: bool,
}

/// What follows attention.
#[derive(Debug, Clone, PartialEq)]
pub enum Ffn {
    /// `down(activation(gate(x)) * up(x))`.
    Dense {
        /// Width between.
        inner: u32,
        /// On the gate.
        activation: Activation,
    },
    /// Several of those, of which each token takes some.
    Moe(Moe),
}

/// A mixture of experts: a router's softmax over all of them, the best for each token, their results added up by
/// their weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Moe {
    /// How many there are.
    pub experts: u32,
    /// How many a token takes.
    pub chosen: u32,
    /// Width between, of each.
    pub inner: u32,
    /// On the gate.
    pub activation: Activation,
    /// The weights of those that a token takes are scaled to add up to one.
    pub renormalized: bool,
}

/// A gate's non-linearity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// GELU, tanh form.
    GeluTanh,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(scaling: RopeScaling) -> Rope {
        Rope { layout: RopeLayout::Halves, dims: 4, theta: 10_000.0, scaling }
    }

    #[test]
    fn a_tokens_attention_takes_as_much_as_its_matrices_at_some_position() {
        let layer = |window, ffn| LayerSpec {
            attention: Attention::Gqa(Gqa {
                heads: 32,
                kv_heads: 4,
                head_dim: 128,
                scale: 1.0,
                qkv_bias: false,
                qk_norm: true,
                window,
                rope: rope(RopeScaling::None),
            }),
            ffn,
            post_norms: false,
        };
        let experts = Ffn::Moe(Moe {
            experts: 128,
            chosen: 8,
            inner: 768,
            activation: Activation::Silu,
            renormalized: true,
        });
        let mut spec = ModelSpec {
            family: "qwen3moe".into(),
            vocab: 151_936,
            hidden: 2048,
            context: 40_960,
            layers: vec![layer(None, experts.clone()); 48],
            norm_eps: 1e-6,
            tied_head: false,
            embedding_scale: 1.0,
            norms_from_one: false,
        };
        // Qwen3-30B-A3B: 56.9 million weights a layer and token, 8,192 products a layer and position.
        let all = spec.attention_slope();
        assert!((1.0 / all - 6944.0).abs() < 1.0, "{}", 1.0 / all);
        spec.layers[..24].fill(layer(Some(512), experts));
        assert!((spec.attention_slope() - all / 2.0).abs() < 1e-9);
    }

    #[test]
    fn plain_frequencies_fall_by_the_base() {
        let f = rope(RopeScaling::None).frequencies();
        assert_eq!(f.len(), 2);
        assert!((f[0] - 1.0).abs() < 1e-12 && (f[1] - 0.01).abs() < 1e-12);
    }

    #[test]
    fn linear_scaling_divides_every_frequency() {
        let f = rope(RopeScaling::Linear { factor: 4.0 }).frequencies();
        assert!((f[0] - 0.25).abs() < 1e-12 && (f[1] - 0.0025).abs() < 1e-12);
    }

    #[test]
    fn llama3_scaling_keeps_fast_turns_and_slows_slow_ones() {
        let scaling =
            RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original_context: 128 };
        let f = rope(scaling).frequencies();
        // 128 / (2 pi) = 20 turns: kept; 0.2 turns: divided by 8.
        assert!((f[0] - 1.0).abs() < 1e-12);
        assert!((f[1] - 0.01 / 8.0).abs() < 1e-12);
    }
}
