//! Steps, and what they are held against: for the tests of every back end.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use polder_backend::{
    Backend, BlockId, Input, OutputRow, Row, Sampling, SequenceStep, Slot, SlotReset, StepBatch,
    StepOutput, TokenId, Want,
};
use polder_model::Model;

/// Where a test runs on another machine than it was built on, `POLDER_GOLDENS` says where they are.
pub fn goldens() -> PathBuf {
    match std::env::var_os("POLDER_GOLDENS") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../cpu/goldens"),
    }
}

pub fn tiny(name: &str) -> Arc<Model> {
    open(&goldens().join("tiny").join(name).join("model.gguf"))
}

pub fn open(path: &Path) -> Arc<Model> {
    Arc::new(Model::open(path).expect("a readable model"))
}

/// The real model. Tests that need it fail without it: a test that skips itself proves nothing.
pub fn smollm2() -> Arc<Model> {
    let path = std::env::var_os("POLDER_SMOLLM2").expect(
        "POLDER_SMOLLM2 must name the file SmolLM2-135M-Instruct.Q4_1.gguf; `make test` sets it",
    );
    open(Path::new(&path))
}

pub fn step(backend: &mut impl Backend, batch: &StepBatch) -> StepOutput {
    let ticket = backend.submit(batch).expect("a sensible step");
    backend.collect(ticket).expect("an answer")
}

/// Appends a run of one sequence's tokens to a step. `table` covers all its positions.
pub fn feed(batch: &mut StepBatch, slot: u16, tokens: &[Input], position: u32, table: &[BlockId]) {
    let (first, blocks) = (batch.inputs.len() as u32, batch.block_table.len() as u32);
    batch.inputs.extend_from_slice(tokens);
    batch.positions.extend((0..tokens.len() as u32).map(|i| position + i));
    batch.block_table.extend_from_slice(table);
    batch.sequences.push(SequenceStep {
        slot: Slot(slot),
        tokens: first..batch.inputs.len() as u32,
        blocks: blocks..batch.block_table.len() as u32,
    });
}

/// Starts a slot anew with these tokens as its history.
pub fn reset(batch: &mut StepBatch, slot: u16, history: &[u32]) {
    let first = batch.histories.len() as u32;
    batch.histories.extend(history.iter().map(|t| TokenId(*t)));
    batch.resets.push(SlotReset {
        slot: Slot(slot),
        history: first..batch.histories.len() as u32,
        sampled: 0,
    });
}

/// Asks for something of the token fed last.
pub fn want_last(batch: &mut StepBatch, slot: u16, want: Want) {
    let token = batch.inputs.len() as u32 - 1;
    batch.outputs.push(OutputRow { token, slot: Slot(slot), want });
}

pub fn host(tokens: &[u32]) -> Vec<Input> {
    tokens.iter().map(|t| Input::Host(TokenId(*t))).collect()
}

pub fn blocks(from: u32, count: u32) -> Vec<BlockId> {
    (from..from + count).map(BlockId).collect()
}

/// The logits after every token, fed in pieces of `piece`.
pub fn teacher_force(
    backend: &mut impl Backend,
    tokens: &[u32],
    piece: usize,
    table: &[BlockId],
) -> Vec<Vec<f32>> {
    let mut all = Vec::new();
    for (n, part) in tokens.chunks(piece).enumerate() {
        let mut batch = StepBatch::default();
        feed(&mut batch, 0, &host(part), (n * piece) as u32, table);
        for token in 0..part.len() as u32 {
            batch.outputs.push(OutputRow { token, slot: Slot(0), want: Want::Logits });
        }
        all.extend(step(backend, &batch).rows.into_iter().map(logits));
    }
    all
}

pub fn logits(row: Row) -> Vec<f32> {
    match row {
        Row::Logits(logits) => logits,
        other => panic!("expected logits, got {other:?}"),
    }
}

pub fn sampled(row: &Row) -> u32 {
    match row {
        Row::Sampled(s) => s.token.0,
        other => panic!("expected a token, got {other:?}"),
    }
}

/// `|a - b| / |a|`.
pub fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |x: f64| x * x;
    let apart: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(a - b))).sum();
    let norm: f64 = a.iter().map(|a| square(f64::from(*a))).sum();
    (apart / norm).sqrt()
}

pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    max + logits.iter().map(|l| (f64::from(*l) - max).exp()).sum::<f64>().ln()
}

/// KL divergence of the softmax of `b` from that of `a`.
pub fn divergence(a: &[f32], b: &[f32]) -> f64 {
    let (na, nb) = (log_sum_exp(a), log_sum_exp(b));
    a.iter()
        .zip(b)
        .map(|(a, b)| {
            let (p, q) = (f64::from(*a) - na, f64::from(*b) - nb);
            p.exp() * (p - q)
        })
        .sum()
}

/// Little-endian numbers from a file.
pub struct Bytes(pub Vec<u8>, pub usize);

impl Bytes {
    pub fn open(path: &Path) -> Self {
        Self(std::fs::read(path).expect("a committed file"), 0)
    }

    pub fn take(&mut self, n: usize) -> &[u8] {
        self.1 += n;
        &self.0[self.1 - n..self.1]
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    pub fn u32s(&mut self, n: usize) -> Vec<u32> {
        (0..n).map(|_| self.u32()).collect()
    }

    pub fn u16s(&mut self, n: usize) -> Vec<u16> {
        (0..n).map(|_| u16::from_le_bytes(self.take(2).try_into().unwrap())).collect()
    }

    pub fn f32s(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| f32::from_bits(self.u32())).collect()
    }

    pub fn is_empty(&self) -> bool {
        self.1 == self.0.len()
    }
}

/// One text of `smollm2.bin`; `goldens/make.py` describes the file.
pub struct GoldenText {
    pub tokens: Vec<u32>,
    pub positions: Vec<GoldenPosition>,
    pub seed: u64,
}

/// What llama.cpp says after one token.
pub struct GoldenPosition {
    /// The best tokens, best first.
    pub ids: Vec<u16>,
    pub logits: Vec<f32>,
    pub log_sum_exp: f32,
    pub norm: f32,
    pub sketch: Vec<f32>,
}

pub fn golden_texts() -> Vec<GoldenText> {
    let mut file = Bytes::open(&goldens().join("smollm2.bin"));
    let texts = file.u32();
    let positions = file.u32() as usize;
    let (top, dims) = (file.u32() as usize, file.u32() as usize);
    let seed = u64::from_le_bytes(file.take(8).try_into().unwrap());
    let read = |_| GoldenText {
        tokens: file.u32s(positions),
        positions: (0..positions)
            .map(|_| GoldenPosition {
                ids: file.u16s(top),
                logits: file.f32s(top),
                log_sum_exp: file.f32s(1)[0],
                norm: file.f32s(1)[0],
                sketch: file.f32s(dims),
            })
            .collect(),
        seed,
    };
    (0..texts).map(read).collect()
}

impl GoldenPosition {
    /// A lower bound of the KL divergence of `ours` that is tight when the best tokens hold most
    /// of the mass: the rest counts as one token.
    pub fn divergence(&self, ours: &[f32]) -> f64 {
        let ours_total = log_sum_exp(ours);
        let (mut kl, mut p_rest, mut q_rest) = (0.0, 1.0, 1.0);
        for (id, logit) in self.ids.iter().zip(&self.logits) {
            let p = f64::from(*logit) - f64::from(self.log_sum_exp);
            let q = f64::from(ours[usize::from(*id)]) - ours_total;
            kl += p.exp() * (p - q);
            p_rest -= p.exp();
            q_rest -= q.exp();
        }
        if p_rest > 1e-6 && q_rest > 1e-6 {
            kl += p_rest * (p_rest / q_rest).ln();
        }
        kl
    }

    /// The estimated relative L2 distance of `ours`, from the sketch.
    pub fn distance(&self, seed: u64, ours: &[f32]) -> f64 {
        let mut sketch = vec![0.0f64; self.sketch.len()];
        for (v, logit) in ours.iter().enumerate() {
            let bits = splitmix(seed.wrapping_add(v as u64));
            for (d, sum) in sketch.iter_mut().enumerate() {
                let sign = 1.0 - 2.0 * ((bits >> d) & 1) as f64;
                *sum += sign * f64::from(*logit);
            }
        }
        let apart: f64 =
            sketch.iter().zip(&self.sketch).map(|(a, b)| (a - f64::from(*b)).powi(2)).sum();
        (apart / sketch.len() as f64).sqrt() / f64::from(self.norm)
    }
}

fn splitmix(z: u64) -> u64 {
    let z = z.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// What `transformers` answers, as `goldens/families.py` wrote it.
pub struct Expected {
    /// Prompts, and what is said after each.
    pub sequences: Vec<(Vec<u32>, Vec<u32>)>,
    /// Of every position of the last one.
    pub rows: Vec<Vec<f32>>,
}

pub fn expected(name: &str) -> Expected {
    let mut file = Bytes::open(&goldens().join("families").join(name).join("expected.bin"));
    let [sequences, steps, vocab] = [(); 3].map(|()| file.u32() as usize);
    let sequences = (0..sequences).map(|_| {
        let length = file.u32() as usize;
        (file.u32s(length), file.u32s(steps))
    });
    let sequences = sequences.collect();
    let rows = file.u32() as usize;
    let rows = (0..rows).map(|_| file.f32s(vocab)).collect();
    assert!(file.is_empty());
    Expected { sequences, rows }
}

/// Blocks of one sequence: 128 positions.
pub const BLOCKS: u32 = 8;

/// Greedy answers to prompts that run together, each prompt fed in pieces.
pub fn answers(
    backend: &mut impl Backend,
    prompts: &[&[u32]],
    piece: usize,
    steps: usize,
) -> Vec<Vec<u32>> {
    let table = |n: usize| -> Vec<BlockId> { blocks(n as u32 * BLOCKS, BLOCKS) };
    let mut fed = vec![0; prompts.len()];
    let mut answers = vec![Vec::new(); prompts.len()];
    while answers.iter().any(|answer| answer.len() < steps) {
        let (mut batch, mut asked) = (StepBatch::default(), Vec::new());
        for (n, prompt) in prompts.iter().enumerate() {
            let text: Vec<u32> = prompt.iter().chain(&answers[n]).copied().collect();
            let tokens = &text[fed[n]..text.len().min(fed[n] + piece)];
            if tokens.is_empty() || answers[n].len() == steps {
                continue;
            }
            if fed[n] == 0 {
                reset(&mut batch, n as u16, &[]);
            }
            feed(&mut batch, n as u16, &host(tokens), fed[n] as u32, &table(n));
            fed[n] += tokens.len();
            if fed[n] == text.len() {
                want_last(&mut batch, n as u16, Want::Sample(Sampling::greedy()));
                asked.push(n);
            }
        }
        let output = step(backend, &batch);
        for (n, row) in asked.iter().zip(&output.rows) {
            answers[*n].push(sampled(row));
        }
    }
    answers
}
