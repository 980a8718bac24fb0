//! Softmax attention over paged keys and values.
//!
//! A query's result depends on its own position and on the keys before it, never on who else is
//! in the step: positions are walked in order, sixteen at a time, in segments of [`SEGMENT`] that
//! begin at the same positions for everybody. Each segment has its own maximum, its own sum and
//! its own weighted values; they are put together from the first to the last, whether one thread
//! has walked all of them or each was somebody else's.

use std::cell::RefCell;
use std::ops::Range;

use polder_backend::BlockId;
use polder_model::Gqa;

use crate::kernels::{Isa, dots, exp_sum, largest, weigh};
use crate::kv::{LayerKv, PAGE};
use crate::matrix::Multiplier;

/// Positions in a segment: few enough that a task's scores stay near.
const SEGMENT: usize = 256;

/// Rows (tokens times query heads) that share a walk over the pages of a key/value head.
const ROWS: usize = 24;

/// Rows that share a value in registers; what is left of the last four is filled up.
const FOUR: usize = 4;

/// More rows than these, and a page is converted once for all of them.
const FEW: usize = 8;

/// Multiplications that are worth another thread.
const WORTH: usize = 1 << 15;

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

/// What all tasks of a step read.
struct Scene<'a> {
    isa: Isa,
    gqa: &'a Gqa,
    kv: &'a LayerKv,
    /// `[token][stride]` with all query heads first.
    q: &'a [f32],
    stride: usize,
}

/// A few consecutive tokens of one sequence against one key/value head.
struct Task<'a> {
    head: usize,
    span: Span<'a>,
    /// `[token][heads of it * head_dim]`.
    out: &'a mut [f32],
}

/// `out[kv head][token][heads of it * head_dim]`, for a later gather: see [`gather`].
pub(crate) fn attend(
    m: &mut Multiplier,
    gqa: &Gqa,
    kv: &LayerKv,
    spans: &[Span<'_>],
    q: &[f32],
    stride: usize,
    out: &mut Vec<f32>,
) {
    let scene = Scene { isa: m.isa, gqa, kv, q, stride };
    let (kv_heads, dim) = (gqa.kv_heads as usize, gqa.head_dim as usize);
    let group = (gqa.heads / gqa.kv_heads) as usize;
    let together = (ROWS / group).max(1);
    let tokens: usize = spans.iter().map(|s| s.tokens.len()).sum();
    out.resize(tokens * kv_heads * group * dim, 0.0);
    let mut tasks = Vec::with_capacity(kv_heads * (tokens / together + spans.len()));
    let mut rest = out.as_mut_slice();
    let (mut work, mut longest) = (0, 0);
    for head in 0..kv_heads {
        for span in spans {
            let mut at = 0;
            while at < span.tokens.len() {
                let n = together.min(span.tokens.len() - at);
                let (out, others) = rest.split_at_mut(n * group * dim);
                rest = others;
                let first = span.tokens.start + at;
                let tokens = first..first + n;
                let span = Span { tokens, position: span.position + at, table: span.table };
                let seen = scene.pages(&span).len();
                work += n * group * dim * seen;
                longest = longest.max(seen);
                tasks.push(Task { head, span, out });
                at += n;
            }
        }
    }
    if work < WORTH {
        tasks.iter_mut().for_each(|task| whole(&scene, task));
    } else if tasks.len() < 2 * m.team.threads() && longest > SEGMENT {
        in_segments(m, &scene, &mut tasks);
    } else {
        // The longest first, so that nobody has one left at the end.
        tasks.sort_unstable_by_key(|task| std::cmp::Reverse(task.span.position));
        m.team.each(&mut tasks, |_, task| whole(&scene, task));
    }
}

/// Puts one token's part of `attend`'s result into `to[heads * head_dim]`.
pub(crate) fn gather(gqa: &Gqa, out: &[f32], tokens: usize, token: usize, to: &mut [f32]) {
    let width = (gqa.heads / gqa.kv_heads * gqa.head_dim) as usize;
    for (head, part) in to.chunks_exact_mut(width).enumerate() {
        part.copy_from_slice(&out[(head * tokens + token) * width..][..width]);
    }
}

/// All segments of a task, one after the other.
fn whole(scene: &Scene<'_>, task: &mut Task<'_>) {
    thread_local! {
        static MEMORY: RefCell<(Queries, Scratch, Partial, Partial)> = RefCell::default();
    }
    MEMORY.with_borrow_mut(|(queries, scratch, all, part)| {
        queries.read(scene, task);
        all.reset(queries.rows, scene.dim());
        for segment in segments(scene.pages(&task.span)) {
            part.walk(scene, task, queries, segment, scratch);
            all.add(part);
        }
        all.finish(task.out);
    });
}

/// Each segment of each task by whoever is free.
fn in_segments(m: &mut Multiplier, scene: &Scene<'_>, tasks: &mut [Task<'_>]) {
    let mut parts: Vec<(usize, Range<usize>, Partial)> = Vec::new();
    for (n, task) in tasks.iter().enumerate() {
        let segments = segments(scene.pages(&task.span));
        parts.extend(segments.map(|segment| (n, segment, Partial::default())));
    }
    let all = &*tasks;
    m.team.each(&mut parts, |_, (n, segment, part)| {
        thread_local! {
            static MEMORY: RefCell<(Queries, Scratch)> = RefCell::default();
        }
        MEMORY.with_borrow_mut(|(queries, scratch)| {
            queries.read(scene, &all[*n]);
            part.walk(scene, &all[*n], queries, segment.clone(), scratch);
        });
    });
    for parts in parts.chunk_by(|a, b| a.0 == b.0) {
        let task = &mut tasks[parts[0].0];
        let mut all = Partial::default();
        all.reset(task.span.tokens.len() * scene.group(), scene.dim());
        parts.iter().for_each(|(.., part)| all.add(part));
        all.finish(task.out);
    }
}

/// The segments that some pages lie in, and which of those.
fn segments(pages: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let first = pages.start / SEGMENT;
    let last = pages.end.div_ceil(SEGMENT);
    (first..last).map(move |n| pages.start.max(n * SEGMENT)..pages.end.min((n + 1) * SEGMENT))
}

impl Scene<'_> {
    fn dim(&self) -> usize {
        self.gqa.head_dim as usize
    }

    /// Query heads of one key/value head.
    fn group(&self) -> usize {
        (self.gqa.heads / self.gqa.kv_heads) as usize
    }

    /// The positions that a token may see.
    fn seen(&self, position: usize) -> Range<usize> {
        let first = self.gqa.window.map_or(0, |w| (position + 1).saturating_sub(w as usize));
        first..position + 1
    }

    /// What any of a span's tokens may see, from the start of a page.
    fn pages(&self, span: &Span<'_>) -> Range<usize> {
        let first = self.seen(span.position).start / PAGE * PAGE;
        first..span.position + span.tokens.len()
    }
}

/// A task's queries, as the kernels like them.
#[derive(Debug, Default)]
struct Queries {
    /// Of tokens and their heads.
    rows: usize,
    /// Eights, then perhaps a four: `[value][row]`.
    values: Vec<f32>,
}

impl Queries {
    fn read(&mut self, scene: &Scene<'_>, task: &Task<'_>) {
        let (dim, group) = (scene.dim(), scene.group());
        self.rows = task.span.tokens.len() * group;
        self.values.clear();
        self.values.resize(self.rows.next_multiple_of(FOUR) * dim, 0.0);
        for (first, many, values) in blocks(self.rows, dim, &mut self.values) {
            for row in first..self.rows.min(first + many) {
                let token = task.span.tokens.start + row / group;
                let at = token * scene.stride + (task.head * group + row % group) * dim;
                let q = &scene.q[at..at + dim];
                for (to, q) in values.iter_mut().skip(row - first).step_by(many).zip(q) {
                    *to = *q;
                }
            }
        }
    }
}

/// Rows in eights, and a four at the end: the first row, how many, and what is theirs.
fn blocks(
    rows: usize,
    dim: usize,
    values: &mut [f32],
) -> impl Iterator<Item = (usize, usize, &mut [f32])> {
    let all = rows.next_multiple_of(FOUR);
    values
        .chunks_mut(2 * FOUR * dim)
        .enumerate()
        .map(move |(n, values)| (n * 2 * FOUR, (all - n * 2 * FOUR).min(2 * FOUR), values))
}

#[derive(Debug, Default)]
struct Scratch {
    /// A page's keys or values, as floats.
    page: Vec<f32>,
    /// `[row][position]`, filled up to whole pages.
    scores: Vec<f32>,
}

/// What rows have got from some of their positions.
#[derive(Debug, Default)]
struct Partial {
    dim: usize,
    /// `[row][value]`, with weights `exp(score - max)`; rows filled up to fours.
    out: Vec<f32>,
    /// For each row its largest score and the sum of its weights; a sum of 0 has seen nothing.
    ends: Vec<(f32, f32)>,
}

impl Partial {
    /// Nothing yet.
    fn reset(&mut self, rows: usize, dim: usize) {
        self.dim = dim;
        self.out.clear();
        self.out.resize(rows.next_multiple_of(FOUR) * dim, 0.0);
        self.ends.clear();
        self.ends.resize(rows, (f32::NEG_INFINITY, 0.0));
    }

    /// What a task's rows get from the positions of one segment.
    fn walk(
        &mut self,
        scene: &Scene<'_>,
        task: &Task<'_>,
        queries: &Queries,
        positions: Range<usize>,
        Scratch { page: spare, scores }: &mut Scratch,
    ) {
        let &Scene { isa, gqa, kv, .. } = scene;
        let (dim, group, rows) = (scene.dim(), scene.group(), queries.rows);
        let Task { head, span, .. } = task;
        self.reset(rows, dim);
        // From the start of the segment: which of its positions a row sees.
        let seen = |row: usize| {
            let seen = scene.seen(span.position + row / group);
            let end = seen.end.min(positions.end).max(positions.start);
            let start = seen.start.clamp(positions.start, end);
            start - positions.start..end - positions.start
        };
        let room = positions.len().next_multiple_of(PAGE);
        scores.resize(rows.next_multiple_of(FOUR) * room, 0.0);
        for at in (0..room).step_by(PAGE) {
            let keys = kv.keys(isa, span.table, positions.start + at, *head, rows > FEW, spare);
            let mut values = queries.values.as_slice();
            let mut first = 0;
            while !values.is_empty() {
                let many = if values.len() >= 2 * FOUR * dim { 2 * FOUR } else { FOUR };
                let (mine, others) = values.split_at(many * dim);
                let to = &mut scores[first * room + at..];
                match many {
                    FOUR => dots::<FOUR>(isa, mine, keys, gqa.scale, to, room),
                    _ => dots::<{ 2 * FOUR }>(isa, mine, keys, gqa.scale, to, room),
                }
                (values, first) = (others, first + many);
            }
        }
        for (row, end) in self.ends.iter_mut().enumerate() {
            let scores = &mut scores[row * room..][..room][seen(row)];
            if !scores.is_empty() {
                let max = largest(isa, scores);
                *end = (max, exp_sum(isa, scores, max));
            }
        }
        for at in (0..room).step_by(PAGE) {
            let values = kv.values(isa, span.table, positions.start + at, *head, rows > FEW, spare);
            for (n, out) in self.out.chunks_exact_mut(FOUR * dim).enumerate() {
                let first = n * FOUR;
                let here = |row: usize| {
                    let seen = seen(row);
                    seen.start.clamp(at, at + PAGE) - at..seen.end.clamp(at, at + PAGE) - at
                };
                let all = here(first);
                let weights = &scores[first * room + at..];
                if (first..rows.min(first + FOUR)).all(|row| here(row) == all) {
                    let values = values.part(all.start * dim..all.end * dim);
                    weigh::<FOUR>(isa, out, dim, &weights[all.start..], room, values);
                    continue;
                }
                for (row, out) in (first..rows).zip(out.chunks_exact_mut(dim)) {
                    let here = here(row);
                    let weights = &weights[(row - first) * room..][here.clone()];
                    let values = values.part(here.start * dim..here.end * dim);
                    weigh::<1>(isa, out, dim, weights, room, values);
                }
            }
        }
    }

    /// Adds what the same rows have got from the positions that follow.
    fn add(&mut self, next: &Self) {
        let rows = self.ends.iter_mut().zip(&next.ends);
        let rows =
            rows.zip(self.out.chunks_exact_mut(self.dim).zip(next.out.chunks_exact(self.dim)));
        for (((max, total), (next_max, next_total)), (out, next)) in rows {
            if *next_total == 0.0 {
                continue;
            }
            if *total == 0.0 {
                (*max, *total) = (*next_max, *next_total);
                out.copy_from_slice(next);
                continue;
            }
            let both = if next_max > max { *next_max } else { *max };
            let (old, new) = ((*max - both).exp(), (*next_max - both).exp());
            (*max, *total) = (both, *total * old + *next_total * new);
            out.iter_mut().zip(next).for_each(|(out, next)| *out = *out * old + *next * new);
        }
    }

    /// The rows' results: weights that add up to one.
    fn finish(&self, to: &mut [f32]) {
        let rows = self.out.chunks_exact(self.dim).zip(to.chunks_exact_mut(self.dim));
        for ((from, to), (_, total)) in rows.zip(&self.ends) {
            let scale = 1.0 / total;
            to.iter_mut().zip(from).for_each(|(to, from)| *to = from * scale);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_begin_at_the_same_positions_for_everybody() {
        let ends = |pages| segments(pages).map(|s| (s.start, s.end)).collect::<Vec<_>>();
        assert_eq!(ends(0..17), [(0, 17)]);
        assert_eq!(ends(0..256), [(0, 256)]);
        assert_eq!(ends(48..600), [(48, 256), (256, 512), (512, 600)]);
        assert_eq!(ends(512..513), [(512, 513)]);
    }
}
