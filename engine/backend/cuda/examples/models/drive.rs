//! Steps of one kind, over and over: prompts that are read, streams that go on.

use std::time::Instant;

use polder_backend::{
    Backend, BlockId, Input, KvCopy, OutputRow, Sampling, SequenceStep, Slot, SlotReset, StepBatch,
    TokenId, Want,
};
use polder_backend_cuda::backend::CudaBackend;

use crate::energy::Meter;

/// Most tokens of a step.
pub(crate) const STEP: usize = 8192;
/// Longer histories than this are read once and copied, but for their end.
const COPIED: usize = 4096;
/// So much of a copied history is a stream's own: its tokens differ from all others', and so do the experts they choose.
const OWN: usize = 128;
/// An energy counter says little about less time than this, seconds.
const TELLING: f64 = 1.0;

/// Streams that each have `room` positions of their own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Streams {
    pub(crate) count: usize,
    /// Tokens of each one's history.
    pub(crate) context: usize,
    pub(crate) room: usize,
}

/// What was measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured {
    /// Of one step, or of one prompt.
    pub(crate) milliseconds: f64,
    /// Of one step, or of one prompt.
    pub(crate) joules: Option<f64>,
}

impl Streams {
    fn blocks(&self) -> usize {
        self.room.div_ceil(16)
    }

    fn table(&self, n: usize, length: usize) -> impl Iterator<Item = BlockId> + use<> {
        let first = n * self.blocks();
        (first..first + length.div_ceil(16)).map(|b| BlockId(b as u32))
    }

    /// Whether the pool has blocks for all of them.
    pub(crate) fn fit(&self, backend: &CudaBackend) -> bool {
        self.count * self.blocks() <= backend.limits().blocks as usize
    }

    /// Reads a history into each stream, and samples one token of each.
    pub(crate) fn fill(&self, backend: &mut CudaBackend) {
        let mut chance = 12345_u64;
        for n in 0..self.count {
            let copied =
                if n > 0 && self.context > COPIED { self.context - OWN } else { 0 } / 16 * 16;
            let mut fed = copied;
            while fed < self.context {
                let tokens = (self.context - fed).min(STEP);
                let mut batch = StepBatch::default();
                if fed == copied {
                    batch.resets.push(SlotReset {
                        slot: Slot(n as u16),
                        history: 0..0,
                        sampled: 0,
                    });
                    let pairs = self.table(0, copied).zip(self.table(n, copied));
                    batch.copies.extend(pairs.map(|(from, to)| KvCopy { from, to }));
                }
                batch.inputs.extend((0..tokens).map(|_| {
                    chance = chance
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    Input::Host(TokenId((chance >> 33) as u32 % 150_000))
                }));
                batch.positions.extend((fed..fed + tokens).map(|p| p as u32));
                batch.block_table.extend(self.table(n, fed + tokens));
                batch.sequences.push(SequenceStep {
                    slot: Slot(n as u16),
                    tokens: 0..tokens as u32,
                    blocks: 0..batch.block_table.len() as u32,
                });
                fed += tokens;
                if fed == self.context {
                    batch.outputs.push(sample(tokens as u32 - 1, n));
                }
                let ticket = backend.submit(&batch).unwrap();
                backend.collect(ticket).unwrap();
            }
        }
    }

    /// What each stream feeds at position `context + at`: what was sampled last, and so many guesses behind it.
    pub(crate) fn step(&self, at: usize, guesses: usize) -> StepBatch {
        let mut batch = StepBatch::default();
        for n in 0..self.count {
            let slot = Slot(n as u16);
            let (first, blocks) = (batch.inputs.len() as u32, batch.block_table.len() as u32);
            for i in 0..=guesses {
                batch.inputs.push(match i {
                    0 => Input::Sampled(slot),
                    _ => {
                        Input::Host(TokenId(((n * 7919 + i * 104_729 + at * 31) % 150_000) as u32))
                    }
                });
                batch.positions.push((self.context + at + i) as u32);
                batch.outputs.push(sample(first + i as u32, n));
            }
            batch.block_table.extend(self.table(n, self.context + at + 1 + guesses));
            batch.sequences.push(SequenceStep {
                slot,
                tokens: first..batch.inputs.len() as u32,
                blocks: blocks..batch.block_table.len() as u32,
            });
        }
        batch
    }

    /// Goes on with filled streams for so many steps, the host one step ahead: the median step, and what one took of energy.
    pub(crate) fn decode(
        &self,
        backend: &mut CudaBackend,
        steps: usize,
        meter: Option<&Meter>,
    ) -> Measured {
        let mut times = self.run(backend, steps);
        times.sort_by(f64::total_cmp);
        let joules = per_round(meter, || drop(self.run(backend, steps)));
        Measured {
            milliseconds: times[times.len() / 2],
            joules: joules.map(|joules| joules / steps as f64),
        }
    }

    fn run(&self, backend: &mut CudaBackend, steps: usize) -> Vec<f64> {
        let mut times = Vec::new();
        let mut ticket = backend.submit(&self.step(0, 0)).unwrap();
        let mut last = Instant::now();
        for at in 1..steps {
            let next = backend.submit(&self.step(at, 0)).unwrap();
            backend.collect(ticket).unwrap();
            times.push(last.elapsed().as_secs_f64() * 1e3);
            last = Instant::now();
            ticket = next;
        }
        backend.collect(ticket).unwrap();
        times
    }
}

/// Reads one prompt of this length: the best of three, and what one takes of energy.
pub(crate) fn prefill(backend: &mut CudaBackend, length: usize, meter: Option<&Meter>) -> Measured {
    let streams = Streams { count: 1, context: length, room: length };
    let mut best = f64::MAX;
    for _ in 0..3 {
        let began = Instant::now();
        streams.fill(backend);
        best = best.min(began.elapsed().as_secs_f64() * 1e3);
    }
    let joules = per_round(meter, || streams.fill(backend));
    Measured { milliseconds: best, joules }
}

/// Joules of one round, over as many as take long enough to tell.
fn per_round(meter: Option<&Meter>, mut round: impl FnMut()) -> Option<f64> {
    let meter = meter?;
    let (before, began, mut rounds) = (meter.joules()?, Instant::now(), 0.0);
    while began.elapsed().as_secs_f64() < TELLING {
        round();
        rounds += 1.0;
    }
    Some((meter.joules()? - before) / rounds)
}

fn sample(token: u32, n: usize) -> OutputRow {
    OutputRow { token, slot: Slot(n as u16), want: Want::Sample(Sampling::greedy()) }
}
