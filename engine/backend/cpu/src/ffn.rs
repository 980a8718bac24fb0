//! The second half of a layer: one gated network for every token, or several of which each token takes some.

use polder_model::{self as model, Activation, FfnWeights};

use crate::kernels::{Isa, LANES, add_scaled, gate_gelu, gate_silu};
use crate::matrix::{Activations, Matrix, Multiplier, Packer};

/// The feed-forward part of a layer, packed.
pub(crate) enum Ffn {
    Dense(Gated),
    Moe(Mixture),
}

/// `down(activation(gate(x)) * up(x))`.
pub(crate) struct Gated {
    gate: Matrix,
    up: Matrix,
    down: Matrix,
    activation: Activation,
}

/// A router and its experts.
pub(crate) struct Mixture {
    router: Matrix,
    experts: Vec<Gated>,
    chosen: usize,
    renormalized: bool,
}

/// Memory that mixtures use again and again.
#[derive(Default)]
pub(crate) struct Experts {
    /// What each expert is worth to each token.
    logits: Vec<f32>,
    routes: Vec<Route>,
    left: Activations,
    right: Vec<f32>,
}

/// A token that takes an expert.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Route {
    expert: usize,
    token: usize,
    weight: f32,
}

impl Ffn {
    pub(crate) fn pack(packer: &mut Packer<'_>, spec: &model::Ffn, weights: &FfnWeights) -> Self {
        let mut gated = |w: &model::Gated, activation| Gated {
            gate: Matrix::pack(packer, &w.gate),
            up: Matrix::pack(packer, &w.up),
            down: Matrix::pack(packer, &w.down),
            activation,
        };
        match (spec, weights) {
            (model::Ffn::Dense { activation, .. }, FfnWeights::Dense(one)) => {
                Self::Dense(gated(one, *activation))
            }
            (model::Ffn::Moe(moe), FfnWeights::Moe { router, experts }) => Self::Moe(Mixture {
                experts: experts.iter().map(|expert| gated(expert, moe.activation)).collect(),
                router: Matrix::pack(packer, router),
                chosen: moe.chosen as usize,
                renormalized: moe.renormalized,
            }),
            _ => unreachable!("weights are sorted by the specification"),
        }
    }

    /// `right[token][hidden, filled up]` for `tokens` rows of `hidden` values that `fill` writes.
    pub(crate) fn run(
        &self,
        m: &mut Multiplier,
        (tokens, hidden): (usize, usize),
        fill: impl Fn(usize, &mut [f32]) + Sync,
        left: &mut Activations,
        right: &mut Vec<f32>,
        memory: &mut Experts,
    ) {
        match self {
            Self::Dense(gated) => gated.run(m, (tokens, hidden), fill, left, right),
            Self::Moe(mixture) => {
                left.fill(m, &[&mixture.router], tokens, hidden, fill);
                mixture.run(m, left, right, memory);
            }
        }
    }
}

impl Gated {
    fn run(
        &self,
        m: &mut Multiplier,
        (tokens, hidden): (usize, usize),
        fill: impl Fn(usize, &mut [f32]) + Sync,
        left: &mut Activations,
        right: &mut Vec<f32>,
    ) {
        let isa = m.isa;
        let both = [&self.gate, &self.up];
        left.fill(m, &both, tokens, hidden, fill);
        m.multiply(&both, left, right);
        let (width, inner) = (right.len() / tokens, self.gate.rows);
        let up_at = inner.next_multiple_of(LANES);
        let activate = |t: usize, to: &mut [f32]| {
            let from = &right[t * width..][..width];
            to.copy_from_slice(&from[..inner]);
            self.activate(isa, to, &from[up_at..up_at + inner]);
        };
        left.fill(m, &[&self.down], tokens, inner, activate);
        m.multiply(&[&self.down], left, right);
    }

    fn activate(&self, isa: Isa, gate: &mut [f32], up: &[f32]) {
        match self.activation {
            Activation::Silu => gate_silu(isa, gate, up),
            Activation::GeluTanh => gate_gelu(isa, gate, up),
        }
    }
}

impl Mixture {
    /// Expert by expert, each with the tokens that take it: a weight is read once, and a token's results are added up
    /// in the order of its experts, whoever else is in the step.
    fn run(
        &self,
        m: &mut Multiplier,
        left: &mut Activations,
        right: &mut Vec<f32>,
        memory: &mut Experts,
    ) {
        let Experts { logits, routes, left: own, right: part } = memory;
        let tokens = left.tokens();
        m.multiply(&[&self.router], left, logits);
        let width = logits.len() / tokens;
        routes.clear();
        for (token, logits) in logits.chunks_exact(width).enumerate() {
            let logits = &logits[..self.router.rows];
            let best = choose(logits, self.chosen, self.renormalized);
            routes.extend(best.map(|(expert, weight)| Route { expert, token, weight }));
        }
        routes.sort_by_key(|route| (route.expert, route.token));

        let hidden = self.router.cols;
        let stride = hidden.next_multiple_of(LANES);
        right.clear();
        right.resize(tokens * stride, 0.0);
        let rows = &left.floats;
        for routes in routes.chunk_by(|a, b| a.expert == b.expert) {
            let fill = |n: usize, to: &mut [f32]| {
                to.copy_from_slice(&rows[routes[n].token * hidden..][..hidden]);
            };
            self.experts[routes[0].expert].run(m, (routes.len(), hidden), fill, own, part);
            for (route, from) in routes.iter().zip(part.chunks_exact(stride)) {
                let to = &mut right[route.token * stride..][..stride];
                add_scaled(m.isa, to, route.weight, from);
            }
        }
    }
}

/// The best experts of a token, with their weights: softmax over all of them.
fn choose(logits: &[f32], chosen: usize, renormalized: bool) -> impl Iterator<Item = (usize, f32)> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let shares: Vec<f32> = logits.iter().map(|logit| (logit - max).exp()).collect();
    let all: f32 = shares.iter().sum();
    let mut order: Vec<usize> = (0..shares.len()).collect();
    // Of equals the first. Few are chosen of many, for every token and layer: only those are put into an order.
    let better = |a: &usize, b: &usize| shares[*b].total_cmp(&shares[*a]).then(a.cmp(b));
    order.select_nth_unstable_by(chosen - 1, better);
    order.truncate(chosen);
    order.sort_by(better);
    let some: f32 = order.iter().map(|expert| shares[*expert]).sum();
    let whole = if renormalized { some } else { all };
    order.into_iter().map(move |expert| (expert, shares[expert] / whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_takes_the_best_experts_with_weights_that_add_up() {
        let logits = [0.0, 2.0, 1.0, 2.0];
        let best: Vec<_> = choose(&logits, 2, true).collect();
        assert_eq!(best, [(1, 0.5), (3, 0.5)]);
        let shares: Vec<_> = choose(&logits, 4, false).collect();
        assert!((shares.iter().map(|(_, weight)| weight).sum::<f32>() - 1.0).abs() < 1e-6);
        assert!(choose(&logits, 2, false).all(|(_, weight)| weight < 0.5));
    }
}
