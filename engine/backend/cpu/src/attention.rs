//! Softmax attention over paged keys and values.
//!
//! A query's result depends on its own position and on the keys before it, never on who else is
//! in the step: positions are walked in order, sixteen at a time, from the start of the page that
//! holds the first one it may see.

use std::ops::Range;

use polder_backend::BlockId;
use polder_model::Gqa;
use rayon::prelude::*;

use crate::kernels::{Isa, add_scaled, dot_lanes, exp_sum};
use crate::kv::{LayerKv, PAGE};

/// Tokens that share a walk over the pages.
const TOGETHER: usize = 8;

/// One sequence's tokens in a step.
#[derive(Debug, Clone)]
pub(crate) struct Span<'a> {
    /// Their rows.
    pub(crate) tokens: Range<usize>,
    /// The first one's position; the others follow.
    pub(crate) position: usize,
    /// The sequence's blocks.
    pub(crate) table: &'a [BlockId],
}

/// `out[kv head][token][heads of it * head_dim]`, for a later gather: see [`gather`].
/// `q` is `[token][stride]` with all query heads first.
pub(crate) fn attend(
    isa: Isa,
    gqa: &Gqa,
    kv: &LayerKv,
    spans: &[Span<'_>],
    q: &[f32],
    stride: usize,
    out: &mut Vec<f32>,
) {
    let (kv_heads, dim) = (gqa.kv_heads as usize, gqa.head_dim as usize);
    let group = (gqa.heads / gqa.kv_heads) as usize;
    let tokens: usize = spans.iter().map(|s| s.tokens.len()).sum();
    out.resize(tokens * kv_heads * group * dim, 0.0);
    if tokens == 0 {
        return;
    }
    let mut tasks = Vec::with_capacity(kv_heads * tokens);
    let mut rest = out.as_mut_slice();
    let mut work = 0;
    for head in 0..kv_heads {
        for span in spans {
            let mut at = 0;
            while at < span.tokens.len() {
                let n = TOGETHER.min(span.tokens.len() - at);
                let (mine, others) = rest.split_at_mut(n * group * dim);
                rest = others;
                let first = span.tokens.start + at;
                let part = Span {
                    tokens: first..first + n,
                    position: span.position + at,
                    table: span.table,
                };
                work += n * group * dim * (part.position + n);
                tasks.push((head, part, mine));
                at += n;
            }
        }
    }
    let run = |scratch: &mut Scratch, (head, span, out): (usize, Span<'_>, &mut [f32])| {
        few(isa, gqa, kv, &span, head, q, stride, out, scratch);
    };
    // Less than this is done before another thread has woken.
    if work < 1 << 17 {
        let mut scratch = Scratch::default();
        tasks.into_iter().for_each(|task| run(&mut scratch, task));
    } else {
        tasks.into_par_iter().for_each_init(Scratch::default, run);
    }
}

/// Puts `attend`'s result into token order: `to[token][heads * head_dim]`.
pub(crate) fn gather(gqa: &Gqa, out: &[f32], to: &mut [f32]) {
    let width = (gqa.heads / gqa.kv_heads * gqa.head_dim) as usize;
    let heads = gqa.kv_heads as usize;
    let tokens = to.len() / (width * heads);
    for (t, row) in to.chunks_exact_mut(width * heads).enumerate() {
        for (head, part) in row.chunks_exact_mut(width).enumerate() {
            part.copy_from_slice(&out[(head * tokens + t) * width..][..width]);
        }
    }
}

#[derive(Debug, Default)]
struct Scratch {
    page: Vec<f32>,
    /// `[query][positions]`.
    scores: Vec<f32>,
}

/// A few consecutive tokens of one sequence against one key/value head.
#[allow(clippy::too_many_arguments)] // Plain data; a struct would only rename it.
fn few(
    isa: Isa,
    gqa: &Gqa,
    kv: &LayerKv,
    span: &Span<'_>,
    head: usize,
    q: &[f32],
    stride: usize,
    out: &mut [f32],
    scratch: &mut Scratch,
) {
    let dim = gqa.head_dim as usize;
    let group = (gqa.heads / gqa.kv_heads) as usize;
    let n = span.tokens.len();
    let seen = |i: usize| {
        let last = span.position + i;
        let first = gqa.window.map_or(0, |w| (last + 1).saturating_sub(w as usize));
        first..last + 1
    };
    let from = seen(0).start / PAGE * PAGE;
    let to = span.position + n;
    let room = (to - from).next_multiple_of(PAGE);
    scratch.scores.resize(n * group * room, 0.0);
    for page in (from..to).step_by(PAGE) {
        let keys = kv.keys(isa, span.table, page, head, &mut scratch.page);
        for i in 0..n {
            let seen = seen(i);
            if seen.end <= page || seen.start >= page + PAGE {
                continue;
            }
            for g in 0..group {
                let at = (span.tokens.start + i) * stride + (head * group + g) * dim;
                let dots = dot_lanes(isa, &q[at..at + dim], keys);
                let scores = &mut scratch.scores[(i * group + g) * room + page - from..][..PAGE];
                for (score, dot) in scores.iter_mut().zip(dots) {
                    *score = dot * gqa.scale;
                }
            }
        }
    }
    out.fill(0.0);
    for i in 0..n {
        let seen = seen(i);
        for g in 0..group {
            let row = &mut scratch.scores[(i * group + g) * room..][..room];
            let row = &mut row[seen.start - from..seen.end - from];
            let max = row.iter().fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a });
            let total = exp_sum(isa, row, max);
            let scale = 1.0 / total;
            row.iter_mut().for_each(|p| *p *= scale);
        }
    }
    for page in (from..to).step_by(PAGE) {
        let values = kv.values(isa, span.table, page, head, &mut scratch.page);
        for i in 0..n {
            let seen = seen(i);
            let first = seen.start.max(page);
            let last = seen.end.min(page + PAGE);
            for g in 0..group {
                let out = &mut out[(i * group + g) * dim..][..dim];
                for position in first..last {
                    let p = scratch.scores[(i * group + g) * room + position - from];
                    let value = &values[(position - page) * dim..][..dim];
                    add_scaled(isa, out, p, value);
                }
            }
        }
    }
}
