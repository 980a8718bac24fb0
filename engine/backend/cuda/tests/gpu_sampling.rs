//! Sampling on a card against its definition in f64: order of penalties, bias and mask, filters, draw, logprobs, drafts, histories.
#![allow(clippy::unwrap_used, unsafe_code, reason = "a test may, and kernels are started")]

mod common;

use std::collections::HashMap;

use common::{Chance, POISON, device, median_ms};
use half::bf16;
use polder_backend::{
    Input, OutputRow, Row, SampledToken, Sampling, Slot, SlotReset, StepBatch, TokenId, Want,
};
use polder_backend_cuda::device::{Buffer, Device, Graph, Stream};
use polder_backend_cuda::pack::Pack;
use polder_backend_cuda::sampling::{Memory, Packed, Room, Sampler, Way, row};

// ---- The definition ----------------------------------------------------------------------------------------------------------

/// What a slot has seen: how often each token was sampled, also 0.
#[derive(Debug, Clone, Default)]
struct History {
    seen: HashMap<u32, u32>,
    last: Option<u32>,
}

impl History {
    fn new(tokens: &[u32], sampled: usize) -> Self {
        let mut history = Self::default();
        let (prompt, sampled) = tokens.split_at(tokens.len() - sampled);
        history.seen.extend(prompt.iter().map(|t| (*t, 0)));
        sampled.iter().for_each(|t| history.push(*t));
        history
    }

    fn push(&mut self, token: u32) {
        *self.seen.entry(token).or_insert(0) += 1;
        self.last = Some(token);
    }
}

/// What a row gives, and how near another token was to being drawn, as a share of all.
#[derive(Debug, Clone)]
struct Expected {
    token: u32,
    margin: f64,
    kept: usize,
    logprob: f64,
    top: Vec<(u32, f64)>,
}

fn adjusted(logits: &[f32], want: &Sampling, history: &History) -> Vec<f32> {
    let mut out = logits.to_vec();
    for (token, count) in &history.seen {
        let logit = &mut out[*token as usize];
        *logit = match *logit > 0.0 {
            true => *logit / want.repetition_penalty,
            false => *logit * want.repetition_penalty,
        };
        if *count > 0 {
            *logit -= want.presence_penalty + want.frequency_penalty * *count as f32;
        }
    }
    for (token, bias) in &want.bias {
        out[token.0 as usize] += bias;
    }
    if let Some(mask) = &want.mask {
        let allowed = |i: usize| mask[i / 32] >> (i % 32) & 1 == 1;
        (0..out.len()).filter(|i| !allowed(*i)).for_each(|i| out[i] = f32::NEG_INFINITY);
        if out.iter().all(|l| *l == f32::NEG_INFINITY) {
            out[(0..logits.len()).find(|i| allowed(*i)).unwrap()] = 0.0;
        }
    }
    out
}

fn expected(logits: &[f32], want: &Sampling, history: &History, position: u32) -> Option<Expected> {
    if logits.iter().any(|l| l.is_nan() || *l == f32::INFINITY)
        || logits.iter().all(|l| *l == f32::NEG_INFINITY)
    {
        return None;
    }
    let logits = adjusted(logits, want, history);
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let best = logits.iter().position(|l| *l == max).unwrap();
    let mut order: Vec<u32> =
        (0..logits.len() as u32).filter(|i| logits[*i as usize] > f32::NEG_INFINITY).collect();
    let at = |i: &u32| logits[*i as usize];
    let filters = want.temperature > 0.0 && (want.top_k > 0 || want.top_p < 1.0);
    if filters || want.logprobs.is_some_and(|n| n > 0) {
        order.sort_unstable_by(|a, b| at(b).total_cmp(&at(a)).then(a.cmp(b)));
    }
    let sum: f64 = order.iter().map(|i| f64::from(at(i) - max).exp()).sum();
    let logprob = |i: u32| f64::from(at(&i)) - f64::from(max) - sum.ln();
    let count = usize::from(want.logprobs.unwrap_or(0)).min(order.len());
    let top = order[..count].iter().map(|i| (*i, logprob(*i))).collect();
    let (mut token, mut margin) = (best as u32, 1.0_f64);
    if want.temperature > 0.0 && max.is_finite() {
        let weight = |i: &u32| (f64::from(at(i) - max) / f64::from(want.temperature)).exp();
        if want.top_k > 0 {
            order.truncate(want.top_k as usize);
        }
        if want.top_p < 1.0 {
            let all: f64 = order.iter().map(weight).sum();
            let goal = f64::from(want.top_p) * all;
            let mut sum = 0.0;
            let enough = order.iter().position(|i| {
                sum += weight(i);
                // A sum that just reaches it, or just does not, may do the other when it is rounded.
                margin = margin.min((sum - goal).abs() / all * 10.0);
                sum >= goal
            });
            order.truncate(enough.map_or(order.len(), |last| last + 1));
        }
        if want.min_p > 0.0 {
            order.retain(|i| {
                let near = (weight(i) / f64::from(want.min_p) - 1.0).abs();
                margin = if near < 1e-6 { 0.0 } else { margin };
                weight(i) >= f64::from(want.min_p)
            });
        }
        order.sort_unstable();
        let all: f64 = order.iter().map(weight).sum();
        let u = want.draw(position) as f64 / (1_u64 << 53) as f64;
        let mut sum = 0.0;
        for i in &order {
            margin = margin.min((sum / all - u).abs());
            sum += weight(i);
            if sum > u * all {
                token = *i;
                margin = margin.min((sum / all - u).abs());
                break;
            }
        }
    }
    Some(Expected { token, margin, kept: order.len(), logprob: logprob(token), top })
}

// ---- The card ----------------------------------------------------------------------------------------------------------------

struct Card {
    device: Device,
    stream: Stream,
    sampler: Sampler,
    memory: Memory,
    logits: Buffer<f32>,
    room: Room,
    stride: usize,
    packed: Packed,
    graphs: HashMap<(usize, bool), Graph>,
}

impl Card {
    fn new(room: Room) -> Self {
        let device = device();
        let made = Some(std::env::temp_dir().join("polder-test-kernels"));
        let sampler = Sampler::load(&Pack { shipped: None, made }, &device).unwrap();
        let memory = Memory::new(&device, room).unwrap();
        memory.results.fill(POISON).unwrap();
        let stride = room.vocab.next_multiple_of(4) as usize + 4;
        Self {
            stream: device.stream().unwrap(),
            logits: device.buffer(room.rows * stride).unwrap(),
            sampler,
            memory,
            device,
            room,
            stride,
            packed: Packed::default(),
            graphs: HashMap::new(),
        }
    }

    /// Uploads a step as the engine does; `rows` rows of logits.
    fn prepare(&mut self, step: &StepBatch, rows: usize, logits: &[Vec<f32>]) {
        self.packed.fill(step, rows, &self.room).unwrap();
        let packed = &self.packed;
        self.memory.make_room(&self.device, packed.resets.len()).unwrap();
        self.memory.resets.write(0, &packed.resets).unwrap();
        self.memory.words.write(0, &packed.words).unwrap();
        // Between the rows, and where nothing was asked for, stands what must never be looked at.
        let mut all = vec![f32::NAN; rows * self.stride];
        for (row, logits) in all.chunks_mut(self.stride).zip(logits) {
            row[..logits.len()].copy_from_slice(logits);
        }
        self.logits.write(0, &all).unwrap();
    }

    fn sample(&self, way: Way, rows: usize) {
        let logits = (self.logits.at(), self.stride as u32);
        // SAFETY: everything is as long as the room, and stays.
        unsafe { self.sampler.sample(&self.stream, &self.memory, way, logits, rows as u32) }
            .unwrap();
    }

    /// Runs a step by a graph that was recorded for so many rows.
    fn run(&mut self, step: &StepBatch, rows: usize, logits: &[Vec<f32>]) -> Vec<Option<Row>> {
        self.prepare(step, rows, logits);
        let way = self.packed.way;
        let key = (rows, way == Way::Greedy);
        if !self.graphs.contains_key(&key) {
            let graph = self.stream.capture(|| {
                self.sample(way, rows);
                Ok(())
            });
            self.graphs.insert(key, graph.unwrap());
        }
        // SAFETY: as above.
        unsafe {
            self.sampler.reset(&self.stream, &self.memory, self.packed.reset_slots).unwrap();
            self.stream.replay(&self.graphs[&key]).unwrap();
        }
        self.stream.synchronize().unwrap();
        let mut results = vec![0; self.packed.results_len()];
        self.memory.results.read(0, &mut results).unwrap();
        let read = |(at, output): (usize, &OutputRow)| match &output.want {
            Want::Sample(want) => Some(row(&results, rows, at, want.logprobs.is_some()).unwrap()),
            _ => None,
        };
        step.outputs.iter().enumerate().map(read).collect()
    }

    fn last(&self, slot: usize) -> u32 {
        self.memory.last.values().unwrap()[slot]
    }
}

/// One row for each slot.
fn step_of(wants: &[Sampling], position: u32) -> StepBatch {
    StepBatch {
        inputs: vec![Input::Host(TokenId(0)); wants.len()],
        positions: (0..wants.len() as u32).map(|i| position + 3 * i).collect(),
        outputs: wants
            .iter()
            .enumerate()
            .map(|(i, want)| OutputRow {
                token: i as u32,
                slot: Slot(i as u16),
                want: Want::Sample(want.clone()),
            })
            .collect(),
        ..StepBatch::default()
    }
}

fn reset(step: &mut StepBatch, slot: usize, tokens: &[u32], sampled: usize) {
    let start = step.histories.len() as u32;
    step.histories.extend(tokens.iter().copied().map(TokenId));
    step.resets.push(SlotReset {
        slot: Slot(slot as u16),
        history: start..start + tokens.len() as u32,
        sampled: sampled as u32,
    });
}

/// How often a draw fell next to a boundary and the card took the neighbour, of all that were compared.
#[derive(Debug, Default)]
struct Near {
    other: usize,
    all: usize,
}

impl Near {
    fn compare(&mut self, row: &Row, expected: Option<&Expected>, want: &Sampling, what: &str) {
        self.all += 1;
        let Some(expected) = expected else {
            assert_eq!(*row, Row::Unusable, "{what}");
            return;
        };
        let about = || {
            let bias = want.bias.len();
            let want = Sampling { mask: None, bias: Vec::new(), ..want.clone() };
            let (token, margin, kept) = (expected.token, expected.margin, expected.kept);
            format!(
                "{what}: expected {token}, margin {margin:e}, {kept} kept; {bias} biases, {want:?}"
            )
        };
        let Row::Sampled(SampledToken { token, logprob, top }) = row else {
            panic!("{row:?}; {}", about());
        };
        if token.0 != expected.token {
            assert!(expected.margin < 1e-4, "{row:?}; {}", about());
            self.other += 1;
            return;
        }
        assert_eq!(logprob.is_some(), want.logprobs.is_some(), "{}", about());
        if let Some(logprob) = logprob {
            let near = (f64::from(*logprob) - expected.logprob).abs() < 2e-5;
            let none = expected.logprob.is_nan() && logprob.is_nan();
            assert!(near || none, "{logprob} for {}; {}", expected.logprob, about());
        }
        let ids = |top: &mut dyn Iterator<Item = u32>| top.collect::<Vec<u32>>();
        let (got, due) =
            (ids(&mut top.iter().map(|t| t.0.0)), ids(&mut expected.top.iter().map(|t| t.0)));
        assert_eq!(got, due, "{}", about());
        for (got, due) in top.iter().zip(&expected.top) {
            assert!((f64::from(got.1) - due.1).abs() < 2e-5, "{got:?} for {due:?}; {}", about());
        }
    }
}

/// Logits of many kinds.
fn draw_logits(chance: &mut Chance, vocab: usize) -> Vec<f32> {
    let kind = chance.below(8);
    let scale = [3.0, 1.0, 6.0, 0.0, 2.0, 3.0, 0.02, 4.0][kind];
    let mut logits = chance.normals(vocab, scale);
    match kind {
        // Certain.
        1 => logits[chance.below(vocab)] = 40.0,
        // Ties, as a head in bf16 gives.
        2 | 4 => logits.iter_mut().for_each(|l| *l = bf16::from_f32(*l).to_f32()),
        5 => logits.iter_mut().for_each(|l| *l = (*l * 2.0).round() / 2.0),
        7 => {
            for _ in 0..vocab / 3 {
                logits[chance.below(vocab)] = f32::NEG_INFINITY;
            }
            logits[chance.below(vocab)] = 1.0;
        }
        _ => {}
    }
    logits
}

fn draw_want(chance: &mut Chance, vocab: usize) -> Sampling {
    let mut one = |of: &[f32]| of[chance.below(of.len())];
    let mut want = Sampling {
        temperature: one(&[0.0, 1.0, 0.7, 1.0, 0.05, 2.0, 1e-30]),
        top_k: one(&[0.0, 0.0, 1.0, 40.0, 3000.0, 1e6]) as u32,
        top_p: one(&[1.0, 1.0, 0.95, 0.5, 0.999, 0.0]),
        min_p: one(&[0.0, 0.0, 0.0, 0.05, 1.0]),
        ..Sampling::greedy()
    };
    if one(&[0.0, 1.0]) > 0.0 {
        want.presence_penalty = one(&[0.0, 0.5, -0.25]);
        want.frequency_penalty = one(&[0.0, 0.3]);
        want.repetition_penalty = one(&[1.0, 1.2, 0.9]);
    }
    if one(&[0.0, 0.0, 1.0]) > 0.0 {
        want.logprobs = Some(one(&[0.0, 1.0, 5.0, 20.0]) as u8);
    }
    want.seed = chance.next();
    if chance.below(3) == 0 {
        // Some tokens twice.
        want.bias = (0..1 + chance.below(300))
            .map(|i| {
                (
                    TokenId(chance.below(if i < 9 { 5 } else { vocab }) as u32),
                    chance.normal() as f32,
                )
            })
            .collect();
    }
    if chance.below(3) == 0 {
        let rare = chance.below(2) == 0;
        let mut mask: Vec<u32> =
            (0..vocab.div_ceil(32)).map(|_| chance.next() as u32 & chance.next() as u32).collect();
        if rare {
            mask.iter_mut().for_each(|word| *word &= if chance.below(40) == 0 { 0x10 } else { 0 });
        }
        mask[chance.below(vocab / 32)] |= 0x100;
        want.mask = Some(mask);
    }
    want
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_rows_of_mixed_parameters_are_sampled_as_defined() {
    for (vocab, rows, bucket, steps) in [
        (1000, 64, 64, 60),
        (1003, 5, 8, 60),
        (6007, 64, 64, 30),
        (49152, 48, 48, 6),
        (151_936, 64, 64, 2),
        (151_936, 1, 1, 30),
        (262_144, 16, 24, 2),
    ] {
        let start = std::time::Instant::now();
        let mut chance = Chance::new(vocab as u64 + rows as u64);
        let mut card = Card::new(Room { rows: bucket, slots: bucket, vocab: vocab as u32 });
        let mut histories: Vec<History> = vec![History::default(); rows];
        let mut near = Near::default();
        for at in 0..steps {
            let wants: Vec<Sampling> = (0..rows).map(|_| draw_want(&mut chance, vocab)).collect();
            let mut step = step_of(&wants, 100 * at);
            for (slot, history) in histories.iter_mut().enumerate() {
                if at == 0 || chance.below(4) == 0 {
                    let tokens: Vec<u32> =
                        (0..chance.below(400)).map(|_| chance.below(vocab) as u32).collect();
                    let sampled = chance.below(tokens.len() + 1);
                    reset(&mut step, slot, &tokens, sampled);
                    *history = History::new(&tokens, sampled);
                }
            }
            let logits: Vec<Vec<f32>> =
                (0..rows).map(|_| draw_logits(&mut chance, vocab)).collect();
            let out = card.run(&step, bucket, &logits);
            let mut after = vec![0.0; card.stride * bucket];
            card.logits.read(0, &mut after).unwrap();
            for slot in 0..rows {
                let (want, history) = (&wants[slot], &mut histories[slot]);
                let due = adjusted(&logits[slot], want, history);
                let after = &after[slot * card.stride..][..vocab];
                let other = (0..vocab).filter(|i| after[*i] != due[*i]);
                let other: Vec<_> = other.map(|i| (i, after[i], due[i])).collect();
                let most = usize::from(due.iter().filter(|l| **l > f32::NEG_INFINITY).count() == 1);
                assert!(
                    other.len() <= most,
                    "step {at}, row {slot}: {}, {:?}",
                    other.len(),
                    &other[..other.len().min(9)]
                );
                let position = step.positions[slot];
                let expected = expected(&logits[slot], want, history, position);
                let row = out[slot].as_ref().unwrap();
                near.compare(row, expected.as_ref(), want, &format!("step {at}, row {slot}"));
                let Row::Sampled(sampled) = row else { panic!("{row:?}") };
                history.push(sampled.token.0);
                assert_eq!(card.last(slot), sampled.token.0);
            }
        }
        println!("{vocab} tokens, {rows} rows: {near:?}, {:?}", start.elapsed());
        assert!(near.other <= 1 + near.all / 50, "{near:?}");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_what_is_no_distribution_is_unusable_and_disturbs_no_other_row() {
    let vocab = 5003_usize;
    let mut chance = Chance::new(5);
    let mut card = Card::new(Room { rows: 8, slots: 8, vocab: vocab as u32 });
    let hot = Sampling { temperature: 1.0, ..Sampling::greedy() };
    let wants = [
        Sampling::greedy(),
        hot.clone(),
        Sampling { top_p: 0.9, ..hot.clone() },
        Sampling { logprobs: Some(3), repetition_penalty: 1.2, ..hot.clone() },
        Sampling { mask: Some(vec![!0; vocab.div_ceil(32)]), ..Sampling::greedy() },
    ];
    let mut near = Near::default();
    for wants in [&wants[..], &[Sampling::greedy(), Sampling::greedy()]] {
        for broken in [vec![f32::NAN], vec![f32::INFINITY], vec![-f32::NAN], vec![]] {
            for place in [0, 2047, 2048, vocab - 1] {
                for victim in 0..wants.len() {
                    let mut logits: Vec<Vec<f32>> =
                        wants.iter().map(|_| chance.normals(vocab, 2.0)).collect();
                    match broken.first() {
                        Some(value) => logits[victim][place] = *value,
                        None => logits[victim].fill(f32::NEG_INFINITY),
                    }
                    let mut step = step_of(wants, place as u32);
                    (0..wants.len()).for_each(|slot| reset(&mut step, slot, &[7], 0));
                    let out = card.run(&step, 8, &logits);
                    for (slot, want) in wants.iter().enumerate() {
                        let history = History::new(&[7], 0);
                        let expected =
                            expected(&logits[slot], want, &history, step.positions[slot]);
                        assert_eq!(expected.is_none(), slot == victim);
                        near.compare(out[slot].as_ref().unwrap(), expected.as_ref(), want, "");
                    }
                    assert_eq!(card.last(victim), 0);
                }
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_mask_and_a_bias_outweigh_the_logits() {
    let vocab = 151_936;
    let mut card = Card::new(Room { rows: 4, slots: 4, vocab: vocab as u32 });
    let mut chance = Chance::new(6);
    let only = |tokens: &[usize]| {
        let mut mask = vec![0_u32; vocab / 32];
        tokens.iter().for_each(|token| mask[token / 32] |= 1 << (token % 32));
        Some(mask)
    };
    let hot = Sampling { temperature: 1.0, logprobs: Some(4), ..Sampling::greedy() };
    let never = |token: usize| (TokenId(token as u32), f32::NEG_INFINITY);
    for (a, b) in [(0, 151_935), (77_777, 77_778), (31, 2048)] {
        let logits: Vec<Vec<f32>> = (0..4).map(|_| chance.normals(vocab, 3.0)).collect();
        let wants = [
            Sampling { mask: only(&[b]), top_p: 0.9, ..hot.clone() },
            // All that is allowed is impossible: the first of it.
            Sampling { mask: only(&[a, b]), bias: vec![never(a), never(b)], ..hot.clone() },
            Sampling { mask: only(&[a, b]), bias: vec![never(a)], top_k: 7, ..hot.clone() },
            Sampling { bias: vec![(TokenId(a as u32), 100.0)], ..Sampling::greedy() },
        ];
        let step = step_of(&wants, 9);
        let out = card.run(&step, 4, &logits);
        let mut near = Near::default();
        for (slot, (due, tops)) in [(b, 1), (a, 1), (b, 1), (a, 0)].into_iter().enumerate() {
            let history = History::default();
            let expected = expected(&logits[slot], &wants[slot], &history, step.positions[slot]);
            near.compare(out[slot].as_ref().unwrap(), expected.as_ref(), &wants[slot], "");
            let Some(Row::Sampled(sampled)) = &out[slot] else { panic!("{:?}", out[slot]) };
            assert_eq!((sampled.token.0 as usize, sampled.top.len()), (due, tops), "row {slot}");
        }
    }
}

/// A draft of `length` rows for slot 1 among single rows, whose guesses are right up to row `right`.
fn check_draft(card: &mut Card, chance: &mut Chance, length: usize, right: usize, want: &Sampling) {
    let vocab = card.room.vocab as usize;
    let before: Vec<u32> = (0..20).map(|_| chance.below(40) as u32).collect();
    let mut history = History::new(&before, 8);
    let logits: Vec<Vec<f32>> = (0..length + 2).map(|_| chance.normals(vocab, 2.0)).collect();
    // Rows 0 and length + 1 are other slots'.
    let mut wants = vec![Sampling::greedy()];
    wants.extend((0..length).map(|_| want.clone()));
    wants.push(Sampling::greedy());
    let mut step = step_of(&wants, 30);
    step.positions = (30..30 + wants.len() as u32).collect();
    let mut slots = vec![Slot(0)];
    slots.extend(vec![Slot(1); length]);
    slots.push(Slot(2));
    step.outputs.iter_mut().zip(slots).for_each(|(output, slot)| output.slot = slot);
    reset(&mut step, 1, &before, 8);
    // What each row must give while the guesses are right.
    let mut due = Vec::new();
    for i in 0..length {
        let at = i + 1;
        let expected = expected(&logits[at], want, &history, step.positions[at]).unwrap();
        let token = expected.token;
        if i < right.min(length - 1) {
            step.inputs[at + 1] = Input::Host(TokenId(token));
        } else if i + 1 < length {
            // Wrong, or right by chance later, which must not matter.
            step.inputs[at + 1] = Input::Host(TokenId((token + 1) % vocab as u32));
        }
        if i <= right {
            history.push(token);
            due.push(expected);
        }
    }
    let out = card.run(&step, 24, &logits);
    let mut near = Near::default();
    for i in 0..length {
        let row = out[i + 1].as_ref().unwrap();
        match due.get(i) {
            Some(expected) => {
                near.compare(row, Some(expected), want, &format!("row {i} of {length}"));
                assert_eq!(near.other, 0, "another seed for this test");
            }
            None => assert_eq!(*row, Row::Void, "row {i} of {length}, right up to {right}"),
        }
    }
    let counted = history.seen.clone();
    assert_eq!(card.last(1), history.last.unwrap());
    // A next step sees what counted, and nothing else.
    let all = Sampling {
        frequency_penalty: 0.5,
        repetition_penalty: 1.5,
        logprobs: Some(20),
        ..want.clone()
    };
    let wants = [Sampling::greedy(), all];
    let logits: Vec<Vec<f32>> = (0..2).map(|_| chance.normals(vocab, 0.5)).collect();
    let out = card.run(&step_of(&wants, 90), 24, &logits);
    let expected = expected(&logits[1], &wants[1], &history, 93);
    let about = format!("after {right} of {length}: {counted:?}");
    near.compare(out[1].as_ref().unwrap(), expected.as_ref(), &wants[1], &about);
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_drafts_count_up_to_the_first_wrong_guess() {
    let mut chance = Chance::new(11);
    let mut card = Card::new(Room { rows: 24, slots: 3, vocab: 2000 });
    let hot = Sampling { temperature: 1.0, top_k: 50, seed: 3, ..Sampling::greedy() };
    let penalised = Sampling {
        presence_penalty: 0.5,
        frequency_penalty: 0.7,
        repetition_penalty: 1.3,
        bias: vec![(TokenId(3), 4.0)],
        logprobs: Some(2),
        ..hot.clone()
    };
    for want in [Sampling::greedy(), hot, penalised] {
        for length in 1..=16 {
            for right in 0..length {
                check_draft(&mut card, &mut chance, length, right, &want);
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_long_histories_are_remembered() {
    let vocab = 1000;
    let mut chance = Chance::new(21);
    let mut card = Card::new(Room { rows: 2, slots: 2, vocab });
    // One token so often that its count is full, neighbours beside it.
    let mut tokens: Vec<u32> = (0..100_000).map(|_| chance.below(400) as u32).collect();
    tokens[50_000..90_000].fill(501);
    tokens.extend([500, 502]);
    let sampled = tokens.len() - 45_000;
    let mut wants = vec![
        Sampling {
            repetition_penalty: 1.1,
            frequency_penalty: 0.001,
            logprobs: Some(20),
            ..Sampling::greedy()
        };
        2
    ];
    wants[1].presence_penalty = 0.1;
    let mut step = step_of(&wants, 0);
    reset(&mut step, 0, &tokens, sampled);
    reset(&mut step, 1, &tokens[..300], 0);
    let logits: Vec<Vec<f32>> = (0..2).map(|_| chance.normals(vocab as usize, 9.0)).collect();
    let out = card.run(&step, 2, &logits);
    let mut histories = [History::new(&tokens, sampled), History::new(&tokens[..300], 0)];
    assert!(histories[0].seen[&501] > 32767);
    histories[0].seen.insert(501, 32767);
    let mut near = Near::default();
    for slot in 0..2 {
        let expected =
            expected(&logits[slot], &wants[slot], &histories[slot], step.positions[slot]);
        near.compare(out[slot].as_ref().unwrap(), expected.as_ref(), &wants[slot], "long");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_draws_follow_the_probabilities() {
    let vocab = 1000;
    let mut chance = Chance::new(31);
    let mut card = Card::new(Room { rows: 64, slots: 64, vocab });
    let logits = chance.normals(vocab as usize, 1.5);
    let base = Sampling { temperature: 0.8, ..Sampling::greedy() };
    for want in [
        base.clone(),
        Sampling { top_k: 40, top_p: 0.95, ..base.clone() },
        Sampling { min_p: 0.1, ..base.clone() },
    ] {
        let mut counts = vec![0.0_f64; vocab as usize];
        let steps = 300;
        for at in 0..steps {
            let wants = vec![want.clone(); 64];
            let mut step = step_of(&wants, 0);
            step.positions = (0..64).map(|i| at * 64 + i).collect();
            for row in card.run(&step, 64, &vec![logits.clone(); 64]) {
                let Some(Row::Sampled(sampled)) = row else { panic!("{row:?}") };
                counts[sampled.token.0 as usize] += 1.0;
            }
        }
        // By the definition: which tokens are kept, and how likely each is.
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |i: &usize| (f64::from(logits[*i] - max) / f64::from(want.temperature)).exp();
        let mut kept: Vec<usize> = (0..vocab as usize).collect();
        kept.sort_by(|a, b| weight(b).total_cmp(&weight(a)));
        if want.top_k > 0 {
            kept.truncate(want.top_k as usize);
        }
        let all: f64 = kept.iter().map(weight).sum();
        let mut sum = 0.0;
        let enough = kept.iter().position(|i| {
            sum += weight(i);
            sum >= f64::from(want.top_p) * all
        });
        if want.top_p < 1.0 {
            kept.truncate(enough.unwrap() + 1);
        }
        kept.retain(|i| weight(i) >= f64::from(want.min_p));
        let all: f64 = kept.iter().map(weight).sum();
        let draws = f64::from(steps * 64);
        assert_eq!(kept.iter().map(|i| counts[*i]).sum::<f64>(), draws, "others were drawn");
        // Tokens that are drawn less than ten times go into one class.
        let (mut statistic, mut classes) = (0.0, 0);
        let (mut rare, mut rare_due) = (0.0, 0.0);
        for i in &kept {
            let due = weight(i) / all * draws;
            if due < 10.0 {
                rare += counts[*i];
                rare_due += due;
            } else {
                statistic += (counts[*i] - due).powi(2) / due;
                classes += 1;
            }
        }
        if rare_due > 0.0 {
            statistic += (rare - rare_due).powi(2) / rare_due;
            classes += 1;
        }
        // Mean is the degrees of freedom, variance twice that: four deviations.
        let freedom = f64::from(classes - 1);
        println!("chi-square {statistic:.1} at {freedom} degrees of freedom");
        assert!(statistic < freedom + 4.0 * (2.0 * freedom).sqrt(), "{want:?}");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_row_is_sampled_alike_whoever_is_beside_it() {
    let vocab = 49_155;
    let mut chance = Chance::new(41);
    let wants: Vec<Sampling> = (0..32).map(|_| draw_want(&mut chance, vocab)).collect();
    let logits: Vec<Vec<f32>> = (0..32).map(|_| draw_logits(&mut chance, vocab)).collect();
    let mut card = Card::new(Room { rows: 32, slots: 32, vocab: vocab as u32 });
    let start = |step: &mut StepBatch, slots| {
        (0..slots).for_each(|slot| reset(step, slot, &[1, 2, 3, 4], 2));
    };
    let mut step = step_of(&wants, 5);
    start(&mut step, 32);
    let together = card.run(&step, 32, &logits);
    assert_eq!(card.run(&step, 32, &logits), together, "twice the same");
    for i in 0..32 {
        let mut step = step_of(&wants[i..=i], 5 + 3 * i as u32);
        start(&mut step, 1);
        let alone = card.run(&step, 1, &logits[i..=i]);
        assert_eq!(format!("{:?}", alone[0]), format!("{:?}", together[i]), "row {i}");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_speed_of_sampling() {
    let base = Sampling { temperature: 1.0, ..Sampling::greedy() };
    let filtered = Sampling { top_p: 0.95, top_k: 40, ..base.clone() };
    let cases = [
        ("greedy", Sampling::greedy()),
        ("temperature", base.clone()),
        ("top-k 40, top-p .95", filtered.clone()),
        ("top-p .95", Sampling { top_p: 0.95, ..base.clone() }),
        ("min-p .05", Sampling { min_p: 0.05, ..base.clone() }),
        ("penalties, filtered", Sampling { presence_penalty: 0.01, ..filtered.clone() }),
        ("greedy, 20 logprobs", Sampling { logprobs: Some(20), ..Sampling::greedy() }),
        ("filtered, 20 logprobs", Sampling { logprobs: Some(20), ..filtered.clone() }),
        ("mask, filtered", Sampling { mask: Some(vec![0xffff_fff0; 4748]), ..filtered }),
    ];
    let vocab = 151_936;
    let mut chance = Chance::new(51);
    let mut card = Card::new(Room { rows: 64, slots: 64, vocab });
    println!(
        "{:?}, {vocab} tokens, us a step, logits in the cache as a head leaves them",
        card.device
    );
    for (kind, scale, best) in [("steep", 2.5, 18.0), ("flat", 0.5, 1.0)] {
        for (name, want) in &cases {
            let mut line = format!("{kind:<6} {name:<24}");
            for rows in [1, 8, 32, 64] {
                let logits: Vec<Vec<f32>> = (0..rows)
                    .map(|_| {
                        let mut logits = chance.normals(2048, scale);
                        let normal: Vec<f32> = (0..vocab as usize)
                            .map(|i| {
                                logits[(i * 7 + i / 2048 * 31) % 2048] + (i % 1013) as f32 * 1e-4
                            })
                            .collect();
                        logits = normal;
                        for i in 0..6 {
                            logits[chance.below(vocab as usize)] = best - i as f32 * 0.7;
                        }
                        logits
                    })
                    .collect();
                card.prepare(&step_of(&vec![want.clone(); rows], 7), rows, &logits);
                let way = card.packed.way;
                let times = 20;
                let ms = median_ms(&card.device, &card.stream, 15, || {
                    (0..times).for_each(|_| card.sample(way, rows));
                });
                line += &format!("{:>4} rows {:>7.2}", rows, ms * 1000.0 / times as f32);
            }
            println!("{line}");
        }
    }
}
