//! A model's layers as plain data: enough to compute its memory and speed, not enough to run it.

use serde::{Deserialize, Serialize};

/// What a model is made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Architecture {
    /// Width of the stream between layers.
    pub hidden: u32,
    /// Tokens in the vocabulary.
    pub vocab: u32,
    /// Whether the output head is the embedding table used a second time.
    #[serde(default)]
    pub tied_head: bool,
    /// The layers, in groups of equal ones; order does not matter to the planner.
    pub layers: Vec<LayerGroup>,
}

/// Some layers that are all alike.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerGroup {
    /// How many.
    pub count: u32,
    /// What mixes tokens.
    pub attention: Attention,
    /// What works on each token alone.
    pub feed_forward: FeedForward,
}

/// How a layer mixes tokens, and so what it must remember of each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Attention {
    /// Grouped-query attention: a key and a value per KV head and token.
    Gqa {
        /// Query heads.
        heads: u32,
        /// Heads of the key and value; what is remembered is proportional to these.
        kv_heads: u32,
        /// Numbers per head.
        head_dim: u32,
        /// Looks only this many tokens back, and forgets older ones.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        window: Option<u32>,
        /// The query projection is doubled to carry an output gate.
        #[serde(default)]
        output_gate: bool,
    },
    /// Multi-head latent attention: one compressed vector per token, shared by all heads.
    Mla {
        /// Query heads.
        heads: u32,
        /// Width of the compressed query.
        q_rank: u32,
        /// Width of the remembered vector.
        kv_rank: u32,
        /// Per head, the part without position.
        nope_dim: u32,
        /// The part with position; remembered once for all heads.
        rope_dim: u32,
        /// Per head, the value's width.
        value_dim: u32,
    },
    /// Gated delta rule (linear attention): a state of fixed size per conversation, however long.
    GatedDelta {
        /// Heads of query and key.
        key_heads: u32,
        /// Heads of the value.
        value_heads: u32,
        /// Numbers per key head.
        key_dim: u32,
        /// Numbers per value head.
        value_dim: u32,
        /// Tokens that the short convolution sees.
        conv: u32,
    },
    /// Compressed attention (DeepSeek V4): one shared key/value vector per `ratio` tokens, beside
    /// a short window of every token.
    Compressed {
        /// Query heads.
        heads: u32,
        /// Width of the one key/value vector.
        head_dim: u32,
        /// Width of the compressed query.
        q_rank: u32,
        /// Groups of the output projection.
        o_groups: u32,
        /// Width of each group's bottleneck.
        o_rank: u32,
        /// Tokens of which every one is remembered.
        window: u32,
        /// Older tokens per remembered vector; none: the layer has only its window.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ratio: Option<u32>,
        /// Picks which of the compressed vectors are looked at; none: all are.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        indexer: Option<Indexer>,
    },
}

/// The small attention that picks which compressed vectors a token looks at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Indexer {
    /// Its query heads.
    pub heads: u32,
    /// Width of the key that it remembers per compressed vector.
    pub head_dim: u32,
    /// How many vectors it picks.
    pub top_k: u32,
}

/// What a layer does to each token alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum FeedForward {
    /// Gate, up and down projection; every weight is used by every token.
    Dense {
        /// Width between up and down.
        inter: u32,
    },
    /// A router sends each token to a few of many experts.
    Moe {
        /// Experts in the layer.
        experts: u32,
        /// How many of them each token visits.
        top_k: u32,
        /// Width inside one expert.
        inter: u32,
        /// Width of the shared expert(s) that every token visits as well; 0: none.
        #[serde(default)]
        shared_inter: u32,
    },
}

/// Bits per weight as stored, scales and zero points included.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantization {
    /// What people call it: `AWQ 4-bit, groups of 128`.
    pub name: String,
    /// Attention, dense feed-forward and shared experts.
    pub weights: f64,
    /// Routed experts; as `weights` if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<f64>,
    /// Routers.
    #[serde(default = "sixteen")]
    pub router: f64,
    /// The embedding table.
    #[serde(default = "sixteen")]
    pub embedding: f64,
    /// The output head, where it is not the embedding table.
    #[serde(default = "sixteen")]
    pub head: f64,
}

impl Quantization {
    /// Bits per weight of the routed experts.
    pub fn expert_bits(&self) -> f64 {
        self.experts.unwrap_or(self.weights)
    }
}

impl Architecture {
    /// How many layers there are.
    pub fn layer_count(&self) -> u64 {
        self.layers.iter().map(|group| u64::from(group.count)).sum()
    }
}

fn sixteen() -> f64 {
    16.0
}
