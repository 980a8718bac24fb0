//! Counts a model's weights and what it remembers per conversation, from its layers alone.

use polder_recipes::{Architecture, Attention, FeedForward, Quantization};

use crate::text;

/// How many different experts of a layer `tokens` tokens visit together, if each visits `top_k` of
/// `experts` evenly and independently: `E (1 - (1 - k/E)^n)`.
pub fn distinct_experts(experts: u32, top_k: u32, tokens: u32) -> f64 {
    let (all, picked) = (f64::from(experts.max(1)), f64::from(top_k));
    let missed = (1.0 - picked / all).clamp(0.0, 1.0);
    all * (1.0 - missed.powf(f64::from(tokens)))
}

/// A model's weights by where they are and how often they are read; in numbers, not bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Weights {
    /// All attention, of every kind.
    pub attention: f64,
    /// Dense feed-forward and shared experts: read for every token.
    pub dense: f64,
    /// Layers with experts.
    pub moe: Vec<MoeLayers>,
    /// Routers.
    pub router: f64,
    /// The embedding table, of which a token reads one row.
    pub embedding: f64,
    /// The output head; 0 where it is the embedding table.
    pub head: f64,
    tied: bool,
}

/// Some layers with experts, all alike.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MoeLayers {
    /// How many.
    pub layers: f64,
    /// Experts in each.
    pub experts: u32,
    /// Visited by each token.
    pub top_k: u32,
    /// Weights of one expert.
    pub per_expert: f64,
}

impl Weights {
    /// Counts them. Norms, biases and the like are left out: under a thousandth.
    pub fn of(architecture: &Architecture) -> Self {
        let hidden = f64::from(architecture.hidden);
        let table = hidden * f64::from(architecture.vocab);
        let mut weights = Self {
            attention: 0.0,
            dense: 0.0,
            moe: Vec::new(),
            router: 0.0,
            embedding: table,
            head: if architecture.tied_head { 0.0 } else { table },
            tied: architecture.tied_head,
        };
        for group in &architecture.layers {
            let layers = f64::from(group.count);
            weights.attention += layers * attention_weights(&group.attention, hidden);
            match group.feed_forward {
                FeedForward::Dense { inter } => {
                    weights.dense += layers * 3.0 * hidden * f64::from(inter);
                }
                FeedForward::Moe { experts, top_k, inter, shared_inter } => {
                    weights.dense += layers * 3.0 * hidden * f64::from(shared_inter);
                    weights.router += layers * hidden * f64::from(experts);
                    let per_expert = 3.0 * hidden * f64::from(inter);
                    weights.moe.push(MoeLayers { layers, experts, top_k, per_expert });
                }
            }
        }
        weights
    }

    /// All weights.
    pub fn total(&self) -> f64 {
        let experts = self.moe.iter().map(|m| m.layers * f64::from(m.experts) * m.per_expert);
        self.attention + self.dense + self.router + self.embedding + self.head + sum(experts)
    }

    /// Weights that one token is multiplied with.
    pub fn per_token(&self) -> f64 {
        let experts = self.moe.iter().map(|m| m.layers * f64::from(m.top_k) * m.per_expert);
        self.attention + self.dense + self.router + self.head_size() + sum(experts)
    }

    /// Weights that makers count as active: those of [`Self::per_token`] and the embedding table.
    pub fn active(&self) -> f64 {
        self.per_token() + if self.tied { 0.0 } else { self.embedding }
    }

    /// Bytes of all weights.
    pub fn bytes(&self, q: &Quantization) -> f64 {
        ((self.attention + self.dense) * q.weights
            + self.router * q.router
            + self.embedding * q.embedding
            + self.head * q.head)
            / 8.0
            + self.expert_bytes(q)
    }

    /// Bytes of all routed experts.
    pub fn expert_bytes(&self, q: &Quantization) -> f64 {
        let all = |m: &MoeLayers| m.layers * f64::from(m.experts) * m.per_expert;
        sum(self.moe.iter().map(all)) * q.expert_bits() / 8.0
    }

    /// Bytes that every step reads, however many tokens it makes: attention, dense parts, routers
    /// and the head.
    pub fn fixed_step_bytes(&self, q: &Quantization) -> f64 {
        let head_bits = if self.tied { q.embedding } else { q.head };
        ((self.attention + self.dense) * q.weights
            + self.router * q.router
            + self.head_size() * head_bits)
            / 8.0
    }

    /// Bytes of experts that a step of `tokens` tokens reads, as far as expected.
    pub fn expert_step_bytes(&self, q: &Quantization, tokens: u32) -> f64 {
        let read =
            |m: &MoeLayers| m.layers * distinct_experts(m.experts, m.top_k, tokens) * m.per_expert;
        sum(self.moe.iter().map(read)) * q.expert_bits() / 8.0
    }

    /// How [`Self::bytes`] comes about.
    pub fn bytes_formula(&self, q: &Quantization) -> String {
        let mut parts = Vec::new();
        let mut add = |count: f64, bits: f64, what: &str| {
            if count > 0.0 {
                parts.push(format!(
                    "{} bn {what} x {} bit",
                    text::billions(count),
                    text::trimmed(bits)
                ));
            }
        };
        let experts = self.expert_bytes(q) * 8.0 / q.expert_bits();
        add(experts, q.expert_bits(), "in experts");
        add(self.attention + self.dense, q.weights, "in attention and dense parts");
        add(self.router, q.router, "in routers");
        if self.tied {
            add(self.embedding, q.embedding, "in embedding and head (one table)");
        } else {
            add(self.embedding, q.embedding, "in the embedding");
            add(self.head, q.head, "in the head");
        }
        format!("({}) / 8", parts.join(" + "))
    }

    fn head_size(&self) -> f64 {
        if self.tied { self.embedding } else { self.head }
    }
}

fn attention_weights(attention: &Attention, hidden: f64) -> f64 {
    let f = f64::from;
    match attention {
        Attention::Gqa { heads, kv_heads, head_dim, output_gate, .. } => {
            let query = f(*heads) * f(*head_dim);
            let gate = if *output_gate { query } else { 0.0 };
            hidden * (2.0 * query + gate + 2.0 * f(*kv_heads) * f(*head_dim))
        }
        Attention::Mla { heads, q_rank, kv_rank, nope_dim, rope_dim, value_dim } => {
            let head = f(*nope_dim) + f(*rope_dim);
            hidden * f(*q_rank)
                + f(*q_rank) * f(*heads) * head
                + hidden * (f(*kv_rank) + f(*rope_dim))
                + f(*kv_rank) * f(*heads) * (f(*nope_dim) + f(*value_dim))
                + f(*heads) * f(*value_dim) * hidden
        }
        Attention::GatedDelta { key_heads, value_heads, key_dim, value_dim, conv } => {
            let keys = f(*key_heads) * f(*key_dim);
            let values = f(*value_heads) * f(*value_dim);
            // query, key, value; output gate; two gates per value head; output; convolution
            hidden * (2.0 * keys + values)
                + hidden * values
                + hidden * 2.0 * f(*value_heads)
                + values * hidden
                + (2.0 * keys + values) * f(*conv)
        }
        Attention::Compressed {
            heads, head_dim, q_rank, o_groups, o_rank, ratio, indexer, ..
        } => {
            let query = f(*heads) * f(*head_dim);
            let projections = hidden * f(*q_rank)
                + f(*q_rank) * query
                + hidden * f(*head_dim)
                + query * f(*o_rank)
                + f(*o_groups) * f(*o_rank) * hidden;
            // A compressor projects to key/value and to its gate, and twice where windows overlap.
            let overlap = if indexer.is_some() { 2.0 } else { 1.0 };
            let compressor =
                if ratio.is_some() { 2.0 * hidden * f(*head_dim) * overlap } else { 0.0 };
            let index = indexer.as_ref().map_or(0.0, |i| {
                f(*q_rank) * f(i.heads) * f(i.head_dim)
                    + hidden * f(i.heads)
                    + 2.0 * hidden * f(i.head_dim) * overlap
            });
            projections + compressor + index
        }
    }
}

/// What a conversation leaves in memory, and what a step reads of it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct KvShape {
    /// Bytes for every token, however long ago.
    pub growing: f64,
    /// Bytes for each of the last few tokens, and how few.
    pub windows: Vec<(f64, f64)>,
    /// Bytes per conversation, however long.
    pub fixed: f64,
    /// Compressed vectors that are kept but not all read: bytes per token kept, and the most bytes
    /// that a step reads of them.
    picked: Vec<(f64, f64)>,
    /// How it comes about: for each kind of layer the text before their number, it, and the text
    /// after.
    parts: Vec<(String, u32, String)>,
}

impl KvShape {
    /// For `kv_bits` per remembered number. Recurrent states stay in 32 bits.
    pub fn of(architecture: &Architecture, kv_bits: f64) -> Self {
        let bytes = kv_bits / 8.0;
        let per = text::trimmed(bytes);
        let mut shape = Self::default();
        for group in &architecture.layers {
            let layers = f64::from(group.count);
            let count = group.count;
            let f = f64::from;
            match &group.attention {
                Attention::Gqa { kv_heads, head_dim, window, .. } => {
                    let each = layers * 2.0 * f(*kv_heads) * f(*head_dim) * bytes;
                    let what = format!("2 x {kv_heads} heads x {head_dim} x ");
                    let size = format!(" layers x {per} B");
                    match window {
                        None => {
                            shape.growing += each;
                            shape.part(what, count, size);
                        }
                        Some(window) => shape.window(each, *window, (what, count, size)),
                    }
                }
                Attention::Mla { kv_rank, rope_dim, .. } => {
                    shape.growing += layers * (f(*kv_rank) + f(*rope_dim)) * bytes;
                    let what = format!("({kv_rank} + {rope_dim}) x ");
                    shape.part(what, count, format!(" layers x {per} B"));
                }
                Attention::GatedDelta { key_heads, value_heads, key_dim, value_dim, conv } => {
                    let state = f(*value_heads) * f(*key_dim) * f(*value_dim) * 4.0;
                    let channels =
                        2.0 * f(*key_heads) * f(*key_dim) + f(*value_heads) * f(*value_dim);
                    let recent = channels * (f(*conv) - 1.0) * 2.0;
                    shape.fixed += layers * (state + recent);
                    let state = text::bytes(state + recent);
                    let what = format!(" layers whose state is {state} each, however long");
                    shape.part(String::new(), count, what);
                }
                Attention::Compressed { head_dim, window, ratio, indexer, .. } => {
                    let vector = f(*head_dim) * bytes;
                    let what = (format!("{head_dim} x "), count, format!(" layers x {per} B"));
                    shape.window(layers * vector, *window, what);
                    let Some(ratio) = ratio else { continue };
                    let stored = layers * vector / f(*ratio);
                    shape.growing += stored;
                    let mut what = format!("{head_dim} x ");
                    if let Some(indexer) = indexer {
                        shape.growing += layers * f(indexer.head_dim) * bytes / f(*ratio);
                        shape.picked.push((stored, layers * vector * f(indexer.top_k)));
                        what = format!("({head_dim} + {}) x ", indexer.head_dim);
                    }
                    shape.part(what, count, format!(" layers / {ratio} x {per} B"));
                }
            }
        }
        shape
    }

    fn window(&mut self, each: f64, window: u32, (before, count, after): (String, u32, String)) {
        self.windows.push((each, f64::from(window)));
        let last = text::whole(f64::from(window));
        self.part(before, count, format!("{after} for the last {last} tokens only"));
    }

    /// Notes a part of the formula; layers that differ only in number become one part.
    fn part(&mut self, before: String, count: u32, after: String) {
        let alike = |(b, _, a): &&mut (String, u32, String)| *b == before && *a == after;
        match self.parts.iter_mut().find(alike) {
            Some((_, layers, _)) => *layers = layers.saturating_add(count),
            None => self.parts.push((before, count, after)),
        }
    }

    /// Bytes that a conversation of `tokens` tokens takes.
    pub fn session_bytes(&self, tokens: u32) -> f64 {
        let tokens = f64::from(tokens);
        self.growing * tokens + self.window_bytes(tokens) + self.fixed
    }

    /// Bytes that a step reads (and writes back, for recurrent states) for one conversation of
    /// `tokens` tokens.
    pub fn step_bytes(&self, tokens: u32) -> f64 {
        let tokens = f64::from(tokens);
        let unread =
            sum(self.picked.iter().map(|(stored, most)| (stored * tokens - most).max(0.0)));
        self.growing * tokens - unread + self.window_bytes(tokens) + 2.0 * self.fixed
    }

    /// How it comes about, kind of layer by kind of layer.
    pub fn formula(&self) -> String {
        let part = |(before, count, after): &(String, u32, String)| {
            let layers =
                if *count == 1 { after.replacen(" layers", " layer", 1) } else { after.clone() };
            format!("{before}{count}{layers}")
        };
        self.parts.iter().map(part).collect::<Vec<_>>().join("; plus ")
    }

    fn window_bytes(&self, tokens: f64) -> f64 {
        sum(self.windows.iter().map(|(each, window)| each * tokens.min(*window)))
    }
}

/// Floating-point operations of attention alone, for each token of a prompt of `tokens` on
/// average: every token looks at half of the others, as far as its layer lets it.
pub(crate) fn attention_flop_per_token(architecture: &Architecture, tokens: u32) -> f64 {
    let f = f64::from;
    let mean = f(tokens) / 2.0;
    let of = |attention: &Attention| match attention {
        Attention::Gqa { heads, head_dim, window, .. } => {
            let seen = window.map_or(mean, |window| mean.min(f(window)));
            4.0 * f(*heads) * f(*head_dim) * seen
        }
        Attention::Mla { heads, nope_dim, rope_dim, value_dim, .. } => {
            2.0 * f(*heads) * (f(*nope_dim) + f(*rope_dim) + f(*value_dim)) * mean
        }
        Attention::GatedDelta { value_heads, key_dim, value_dim, .. } => {
            6.0 * f(*value_heads) * f(*key_dim) * f(*value_dim)
        }
        Attention::Compressed { heads, head_dim, window, ratio, indexer, .. } => {
            let vectors = ratio.map_or(0.0, |ratio| mean / f(ratio));
            let seen = indexer.as_ref().map_or(vectors, |i| vectors.min(f(i.top_k)));
            let index =
                indexer.as_ref().map_or(0.0, |i| 2.0 * f(i.heads) * f(i.head_dim) * vectors);
            4.0 * f(*heads) * f(*head_dim) * (seen + mean.min(f(*window))) + index
        }
    };
    sum(architecture.layers.iter().map(|group| f(group.count) * of(&group.attention)))
}

/// From plain zero: the standard sum of nothing is minus zero, which a formula would show.
pub(crate) fn sum(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |all, value| all + value)
}

#[cfg(test)]
mod tests {
    use polder_recipes::Recipe;

    use super::*;

    #[test]
    fn every_model_is_counted_within_two_percent_of_what_its_maker_says() {
        for recipe in Recipe::builtin() {
            let said = recipe.parameters.unwrap();
            let counted = Weights::of(recipe.architecture.as_ref().unwrap());
            let off = counted.total() / said.total as f64 - 1.0;
            assert!(off.abs() < 0.02, "{}: {:.2} %", recipe.name, off * 100.0);
            let off = counted.active() / said.active as f64 - 1.0;
            assert!(off.abs() < 0.06, "{}: active {:.2} %", recipe.name, off * 100.0);
        }
    }

    #[test]
    fn one_token_visits_exactly_its_own_experts_and_many_visit_nearly_all() {
        assert!((distinct_experts(128, 8, 1) - 8.0).abs() < 1e-9);
        assert!((distinct_experts(128, 8, 8) - 51.6).abs() < 0.05);
        assert!((distinct_experts(128, 8, 32) - 111.8).abs() < 0.1);
        assert_eq!(distinct_experts(8, 8, 5), 8.0);
        assert_eq!(distinct_experts(0, 0, 0), 0.0);
    }

    #[test]
    fn a_window_stops_growing_where_it_ends() {
        let recipe = Recipe::find("gemma-3-270m").unwrap();
        let shape = KvShape::of(recipe.architecture.as_ref().unwrap(), 16.0);
        // 3 layers of 2 x 1 x 256 x 2 B grow; 15 stop at 512 tokens.
        assert_eq!(shape.growing, 3072.0);
        assert_eq!(shape.session_bytes(100), 18.0 * 1024.0 * 100.0);
        assert_eq!(shape.session_bytes(10_000), 3072.0 * 10_000.0 + 15.0 * 1024.0 * 512.0);
    }
}
