//! One forward pass, layer by layer, as the specification says.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use polder_backend::check::{guesses, usize_range};
use polder_backend::{
    BlockId, Input, Limits, OutputRow, Row, StepBatch, StepOutput, TokenId, Want,
};
use polder_model::{Attention, Gqa, LayerSpec, LayerWeights, Model, Rope, RopeLayout, Tensor};

use crate::attention::{Span, attend, gather};
use crate::backend::Precision;
use crate::ffn::{Experts, Ffn};
use crate::kernels::{Isa, LANES, sum_squares};
use crate::kv::{KvFormat, LayerKv};
use crate::matrix::{Activations, Matrix, Multiplier, Packer};
use crate::packed::Shelf;
use crate::sampling::{History, Scratch, sample, settle};
use crate::team::Team;

/// A packed model, its KV pool and its slots. Steps that reach it have been checked.
pub(crate) struct Forward {
    model: Arc<Model>,
    multiplier: Multiplier,
    layers: Vec<Layer>,
    output_norm: Vec<f32>,
    head: Matrix,
    kv: Vec<LayerKv>,
    /// The different ropes of the layers.
    ropes: Vec<TurnTable>,
    slots: Vec<History>,
    work: Work,
}

/// One layer, packed.
struct Layer {
    spec: LayerSpec,
    /// Which of the ropes turns it.
    rope: usize,
    attention_norm: Vec<f32>,
    q: Matrix,
    k: Matrix,
    v: Matrix,
    /// All three end to end, or empty.
    qkv_bias: Vec<f32>,
    qk_norm: Option<[Vec<f32>; 2]>,
    o: Matrix,
    attention_post_norm: Option<Vec<f32>>,
    ffn_norm: Vec<f32>,
    ffn: Ffn,
    ffn_post_norm: Option<Vec<f32>>,
}

/// Memory that steps use again and again.
#[derive(Default)]
struct Work {
    /// `[token][hidden]`: the residual stream.
    x: Vec<f32>,
    /// The left side of the next multiplication.
    left: Activations,
    /// `[token][..]`: the result of the last multiplication.
    right: Vec<f32>,
    attended: Vec<f32>,
    halves: Vec<u16>,
    experts: Experts,
    /// One for each row that samples.
    draws: Vec<Scratch>,
}

/// Cosines and sines for the positions of a step.
struct TurnTable {
    rope: Rope,
    frequencies: Vec<f64>,
    /// `[token][pair]`.
    turns: Vec<(f32, f32)>,
}

impl Forward {
    pub(crate) fn new(
        model: Arc<Model>,
        (precision, format): (Precision, Option<KvFormat>),
        limits: &Limits,
        isa: Isa,
        mut team: Team,
        shelf: Shelf,
    ) -> (Self, Shelf) {
        let floats = precision == Precision::F32;
        let mut packer = Packer { team: &mut team, model: &model, floats, shelf };
        let spec = &model.spec;
        let mut ropes: Vec<TurnTable> = Vec::new();
        let mut layers = Vec::with_capacity(spec.layers.len());
        let mut kv = Vec::with_capacity(spec.layers.len());
        for (layer, weights) in spec.layers.iter().zip(&model.weights.layers) {
            let Attention::Gqa(gqa) = &layer.attention;
            let rope = ropes.iter().position(|r| r.rope == gqa.rope).unwrap_or_else(|| {
                let frequencies = gqa.rope.frequencies();
                ropes.push(TurnTable { rope: gqa.rope.clone(), frequencies, turns: Vec::new() });
                ropes.len() - 1
            });
            layers.push(Layer::pack(&mut packer, layer, weights, rope));
            kv.push(LayerKv::new(
                gqa,
                limits.blocks as usize,
                limits.block_tokens as usize,
                format,
            ));
        }
        let head = model.weights.output.as_ref().unwrap_or(&model.weights.embedding);
        let head = Matrix::pack(&mut packer, head);
        let shelf = packer.shelf;
        let forward = Self {
            output_norm: norm_weights(&model, &model.weights.output_norm),
            head,
            multiplier: Multiplier { isa, team, read: Arc::default() },
            layers,
            kv,
            ropes,
            slots: (0..limits.slots).map(|_| History::default()).collect(),
            work: Work::default(),
            model,
        };
        (forward, shelf)
    }

    /// Counts the bytes of weights that are read.
    pub(crate) fn read(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.multiplier.read)
    }

    /// Replaces the content of `into` by a block, layer after layer.
    pub(crate) fn export(&self, block: BlockId, into: &mut Vec<u8>) {
        into.clear();
        self.kv.iter().for_each(|kv| kv.export(block, into));
    }

    /// Overwrites a block with as many bytes as [`Self::export`] gives.
    pub(crate) fn import(&mut self, block: BlockId, mut bytes: &[u8]) {
        self.kv.iter_mut().for_each(|kv| kv.import(block, &mut bytes));
    }

    /// Runs a checked step.
    pub(crate) fn run(&mut self, step: &StepBatch) -> StepOutput {
        for reset in &step.resets {
            let history = &step.histories[usize_range(&reset.history)];
            let (prompt, sampled) = history.split_at(history.len() - reset.sampled as usize);
            self.slots[usize::from(reset.slot.0)].reset(prompt, sampled);
        }
        for copy in &step.copies {
            self.kv.iter_mut().for_each(|kv| kv.copy(copy.from, copy.to));
        }
        if step.inputs.is_empty() {
            return StepOutput::default();
        }
        self.embed(step);
        for table in &mut self.ropes {
            table.prepare(&step.positions);
        }
        let spans: Vec<Span<'_>> = step
            .sequences
            .iter()
            .map(|s| Span {
                tokens: usize_range(&s.tokens),
                position: step.positions[s.tokens.start as usize] as usize,
                table: &step.block_table[usize_range(&s.blocks)],
            })
            .collect();
        let eps = self.model.spec.norm_eps;
        let m = &mut self.multiplier;
        for (layer, kv) in self.layers.iter().zip(&mut self.kv) {
            layer.attention(m, eps, &self.ropes[layer.rope], kv, &spans, &mut self.work);
            layer.feed_forward(m, eps, &mut self.work);
        }
        self.read_out(step)
    }

    fn embed(&mut self, step: &StepBatch) {
        let spec = &self.model.spec;
        let hidden = spec.hidden as usize;
        self.work.x.resize(step.inputs.len() * hidden, 0.0);
        for (input, x) in step.inputs.iter().zip(self.work.x.chunks_exact_mut(hidden)) {
            let TokenId(id) = match input {
                Input::Host(token) => *token,
                Input::Sampled(slot) => {
                    self.slots[usize::from(slot.0)].last.expect("a checked slot has sampled")
                }
            };
            self.model.row(&self.model.weights.embedding, id as usize, x);
            if spec.embedding_scale != 1.0 {
                x.iter_mut().for_each(|x| *x *= spec.embedding_scale);
            }
        }
    }

    /// The last norm and the head, for the rows that are asked for and no others.
    fn read_out(&mut self, step: &StepBatch) -> StepOutput {
        let hidden = self.model.spec.hidden as usize;
        let vocab = self.model.spec.vocab as usize;
        let eps = self.model.spec.norm_eps;
        let isa = self.multiplier.isa;
        let work = &mut self.work;
        let row = |token: u32| token as usize * hidden..(token as usize + 1) * hidden;
        let logit_rows: Vec<(usize, &OutputRow)> =
            step.outputs.iter().enumerate().filter(|(_, o)| o.want != Want::Hidden).collect();
        work.left.fill(
            &mut self.multiplier,
            &[&self.head],
            logit_rows.len(),
            hidden,
            |n, to: &mut [f32]| {
                to.copy_from_slice(&work.x[row(logit_rows[n].1.token)]);
                norm(isa, to, &self.output_norm, eps);
            },
        );
        self.multiplier.multiply(&[&self.head], &work.left, &mut work.right);
        let stride = vocab.next_multiple_of(LANES);
        let slots = &self.slots;
        if work.draws.len() < logit_rows.len() {
            work.draws.resize_with(logit_rows.len(), Scratch::default);
        }
        let rows = logit_rows.iter().zip(work.right.chunks_exact_mut(stride)).zip(&mut work.draws);
        let mut judged: Vec<_> =
            rows.map(|((asked, logits), scratch)| (*asked, logits, scratch, None)).collect();
        self.multiplier.team.each(&mut judged, |_, ((at, output), logits, scratch, row)| {
            let logits = &mut logits[..vocab];
            *row = Some(match &output.want {
                Want::Sample(want) => {
                    let history = &slots[usize::from(output.slot.0)];
                    let position = step.positions[output.token as usize];
                    let guesses = guesses(step, *at);
                    let sampled = sample(logits, want, history, guesses, position, scratch);
                    sampled.map_or(Row::Unusable, Row::Sampled)
                }
                _ => Row::Logits(logits.to_vec()),
            });
        });
        let judged: Vec<_> = judged.into_iter().filter_map(|(.., row)| row).collect();
        let mut judged = judged.into_iter();
        let mut rows = Vec::with_capacity(step.outputs.len());
        for output in &step.outputs {
            if matches!(output.want, Want::Hidden) {
                let mut x = work.x[row(output.token)].to_vec();
                norm(isa, &mut x, &self.output_norm, eps);
                rows.push(Row::Hidden(x));
                continue;
            }
            rows.push(judged.next().expect("a row for each output"));
        }
        settle(step, &mut rows, &mut self.slots);
        StepOutput { rows }
    }
}

impl Layer {
    fn pack(
        packer: &mut Packer<'_>,
        spec: &LayerSpec,
        weights: &LayerWeights,
        rope: usize,
    ) -> Self {
        let model = packer.model;
        let mut matrix = |t: &Tensor| Matrix::pack(packer, t);
        let values = |t: &Tensor| model.values(t);
        let norm = |t: &Tensor| norm_weights(model, t);
        let [q, k, v, o] = [&weights.q, &weights.k, &weights.v, &weights.o].map(&mut matrix);
        Self {
            spec: spec.clone(),
            rope,
            attention_norm: norm(&weights.attention_norm),
            q,
            k,
            v,
            qkv_bias: weights.qkv_bias.iter().flatten().flat_map(values).collect(),
            qk_norm: weights.qk_norm.as_ref().map(|[q, k]| [norm(q), norm(k)]),
            o,
            attention_post_norm: weights.attention_post_norm.as_ref().map(norm),
            ffn_norm: norm(&weights.ffn_norm),
            ffn: Ffn::pack(packer, &spec.ffn, &weights.ffn),
            ffn_post_norm: weights.ffn_post_norm.as_ref().map(norm),
        }
    }

    fn attention(
        &self,
        m: &mut Multiplier,
        eps: f32,
        turns: &TurnTable,
        kv: &mut LayerKv,
        spans: &[Span<'_>],
        work: &mut Work,
    ) {
        let Attention::Gqa(gqa) = &self.spec.attention;
        let Work { x, left, right, attended, halves, .. } = work;
        let isa = m.isa;
        let hidden = self.attention_norm.len();
        let tokens = x.len() / hidden;
        let all = [&self.q, &self.k, &self.v];
        left.fill(m, &all, tokens, hidden, normed(isa, x, &self.attention_norm, eps));
        m.multiply(&all, left, right);

        let width = right.len() / tokens;
        let k_at = self.q.rows.next_multiple_of(LANES);
        let v_at = k_at + self.k.rows.next_multiple_of(LANES);
        let heads = Heads { gqa, k_at, v_at, eps, isa };
        let share = m.team.share(tokens, 8);
        let mut pieces: Vec<_> = right.chunks_mut(share * width).collect();
        m.team.each(&mut pieces, |n, rows| {
            for (i, row) in rows.chunks_exact_mut(width).enumerate() {
                self.prepare_heads(&heads, turns.of(n * share + i), row);
            }
        });
        for span in spans {
            for (i, t) in span.tokens.clone().enumerate() {
                let row = &right[t * width..(t + 1) * width];
                let k = &row[k_at..k_at + self.k.rows];
                let v = &row[v_at..v_at + self.v.rows];
                kv.write(isa, span.table, span.position + i, k, v, halves);
            }
        }
        attend(m, gqa, kv, spans, right, width, attended);
        let gather = |t: usize, to: &mut [f32]| gather(gqa, attended, tokens, t, to);
        left.fill(m, &[&self.o], tokens, self.o.cols, gather);
        m.multiply(&[&self.o], left, right);
        add_rows(m, x, right, hidden, self.attention_post_norm.as_deref(), eps);
    }

    /// Bias, head norms and rotation of one token's queries and keys.
    fn prepare_heads(&self, heads: &Heads<'_>, turns: &[(f32, f32)], row: &mut [f32]) {
        let Heads { gqa, k_at, v_at, eps, isa } = *heads;
        if !self.qkv_bias.is_empty() {
            let (q, kv) = self.qkv_bias.split_at(self.q.rows);
            let (k, v) = kv.split_at(self.k.rows);
            for (at, bias) in [(0, q), (k_at, k), (v_at, v)] {
                row[at..].iter_mut().zip(bias).for_each(|(y, b)| *y += b);
            }
        }
        let dim = gqa.head_dim as usize;
        for (n, (at, len)) in [(0, self.q.rows), (k_at, self.k.rows)].into_iter().enumerate() {
            for head in row[at..at + len].chunks_exact_mut(dim) {
                if let Some(norms) = &self.qk_norm {
                    norm(isa, head, &norms[n], eps);
                }
                turn(gqa.rope.layout, turns, head);
            }
        }
    }

    fn feed_forward(&self, m: &mut Multiplier, eps: f32, work: &mut Work) {
        let Work { x, left, right, experts, .. } = work;
        let hidden = self.ffn_norm.len();
        let tokens = x.len() / hidden;
        let fill = normed(m.isa, x, &self.ffn_norm, eps);
        self.ffn.run(m, (tokens, hidden), fill, left, right, experts);
        add_rows(m, x, right, hidden, self.ffn_post_norm.as_deref(), eps);
    }
}

/// A norm's weights, as they are multiplied with.
fn norm_weights(model: &Model, tensor: &Tensor) -> Vec<f32> {
    let mut values = model.values(tensor);
    if model.spec.norms_from_one {
        values.iter_mut().for_each(|w| *w += 1.0);
    }
    values
}

/// What preparing a token's heads needs besides the layer.
#[derive(Clone, Copy)]
struct Heads<'a> {
    gqa: &'a Gqa,
    k_at: usize,
    v_at: usize,
    eps: f32,
    isa: Isa,
}

impl TurnTable {
    fn prepare(&mut self, positions: &[u32]) {
        self.turns.clear();
        let amplitude = f64::from(self.rope.amplitude());
        for position in positions {
            self.turns.extend(self.frequencies.iter().map(|f| {
                let (sin, cos) = (f64::from(*position) * f).sin_cos();
                ((cos * amplitude) as f32, (sin * amplitude) as f32)
            }));
        }
    }

    fn of(&self, token: usize) -> &[(f32, f32)] {
        &self.turns[token * self.frequencies.len()..][..self.frequencies.len()]
    }
}

/// Rotates the pairs of one head.
fn turn(layout: RopeLayout, turns: &[(f32, f32)], head: &mut [f32]) {
    let rotate = |a: &mut f32, b: &mut f32, (cos, sin): (f32, f32)| {
        (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
    };
    match layout {
        RopeLayout::Interleaved => {
            for ([a, b], t) in head.as_chunks_mut::<2>().0.iter_mut().zip(turns) {
                rotate(a, b, *t);
            }
        }
        RopeLayout::Halves => {
            let (front, back) = head[..2 * turns.len()].split_at_mut(turns.len());
            for ((a, b), t) in front.iter_mut().zip(back).zip(turns) {
                rotate(a, b, *t);
            }
        }
    }
}

/// `x * weight / sqrt(mean(x^2) + eps)`.
fn norm(isa: Isa, x: &mut [f32], weight: &[f32], eps: f32) {
    let scale = 1.0 / (sum_squares(isa, x) / x.len() as f32 + eps).sqrt();
    for (x, w) in x.iter_mut().zip(weight) {
        *x = *x * scale * w;
    }
}

/// Writes a row of `x`, normed.
fn normed(isa: Isa, x: &[f32], weight: &[f32], eps: f32) -> impl Fn(usize, &mut [f32]) + Sync {
    let hidden = weight.len();
    move |t, to| {
        to.copy_from_slice(&x[t * hidden..][..hidden]);
        norm(isa, to, weight, eps);
    }
}

/// Adds each token's result to the residual stream, normed first where the layer says so.
fn add_rows(
    m: &mut Multiplier,
    x: &mut [f32],
    results: &mut [f32],
    hidden: usize,
    post_norm: Option<&[f32]>,
    eps: f32,
) {
    let width = hidden.next_multiple_of(LANES);
    let share = m.team.share(x.len() / hidden, 32);
    let pieces = x.chunks_mut(share * hidden).zip(results.chunks_mut(share * width));
    let isa = m.isa;
    m.team.each(&mut pieces.collect::<Vec<_>>(), |_, (x, results)| {
        for (x, y) in x.chunks_exact_mut(hidden).zip(results.chunks_exact_mut(width)) {
            let y = &mut y[..hidden];
            if let Some(weight) = post_norm {
                norm(isa, y, weight, eps);
            }
            x.iter_mut().zip(y).for_each(|(x, y)| *x += *y);
        }
    });
}
