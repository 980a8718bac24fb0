//! A sequence's results do not depend on its company, and a batch reads each weight once.

mod common;

use std::sync::Arc;

use common::{
    blocks, feed, host, load, logits, reset, sampled, step, teacher_force, tiny, want_last,
};
use polder_backend::{
    Backend, BackendError, BlockId, Input, KvCopy, OutputRow, Row, Sampling, SequenceStep, Slot,
    StepBatch, Ticket, TokenId, Want,
};
use polder_backend_cpu::{CpuBackend, CpuOptions, Precision};
use polder_model::Model;

const BOTH: [Precision; 2] = [Precision::F32, Precision::Stored];

fn prompt(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| (i * 29 + 7) % 64).collect()
}

fn models() -> [Arc<Model>; 2] {
    [tiny("qwen3"), tiny("mixed")]
}

#[test]
fn a_prompt_cut_into_any_pieces_gives_the_same_bits() {
    for model in models() {
        for precision in BOTH {
            let mut backend = load(&model, precision);
            let tokens = prompt(100);
            let whole = teacher_force(&mut backend, &tokens, 100, &blocks(0, 7));
            for piece in [1, 7, 64] {
                let pieces = teacher_force(&mut backend, &tokens, piece, &blocks(20, 7));
                assert_eq!(whole, pieces, "{precision:?} in pieces of {piece}");
            }
        }
    }
}

#[test]
fn scattered_blocks_give_the_same_bits_as_neighbours() {
    for model in models() {
        let mut backend = load(&model, Precision::Stored);
        let tokens = prompt(90);
        let order = teacher_force(&mut backend, &tokens, 90, &blocks(0, 6));
        let scattered: Vec<BlockId> = [31, 4, 200, 17, 5, 90].map(BlockId).to_vec();
        assert_eq!(order, teacher_force(&mut backend, &tokens, 90, &scattered));
    }
}

#[test]
fn a_row_alone_and_among_eight_others_gives_the_same_bits() {
    for model in models() {
        for precision in BOTH {
            let mut backend = load(&model, precision);
            let tokens = prompt(40);
            let alone = teacher_force(&mut backend, &tokens, 39, &blocks(0, 3)).pop().unwrap();
            // Eight others: long prompts, short ones, single tokens. Ours is in the middle.
            let mut batch = StepBatch::default();
            for other in 0..8u32 {
                if other == 4 {
                    feed(&mut batch, 0, &host(&tokens[39..]), 39, &blocks(0, 3));
                    want_last(&mut batch, 0, Want::Logits);
                }
                let others = prompt([1, 30, 17, 2, 64, 8, 1, 5][other as usize]);
                let table = blocks(10 + 5 * other, 5);
                feed(&mut batch, 1 + other as u16, &host(&others), 0, &table);
                want_last(&mut batch, 1 + other as u16, Want::Sample(Sampling::greedy()));
            }
            let out = step(&mut backend, &batch);
            assert_eq!(logits(out.rows[4].clone()), alone, "{precision:?}");
        }
    }
}

#[test]
fn a_batch_of_eight_reads_exactly_the_weights_of_a_batch_of_one() {
    let model = tiny("mixed");
    let mut backend = load(&model, Precision::Stored);
    let mut read = |rows: u16| {
        let mut batch = StepBatch::default();
        for row in 0..rows {
            feed(&mut batch, row, &host(&[u32::from(row)]), 0, &blocks(u32::from(row), 1));
            want_last(&mut batch, row, Want::Sample(Sampling::greedy()));
        }
        let before = backend.weight_bytes_read();
        step(&mut backend, &batch);
        backend.weight_bytes_read() - before
    };
    let one = read(1);
    // Half a million weights at four to eight bits.
    assert!((300_000..1_200_000).contains(&one), "{one}");
    assert_eq!(read(8), one);
    assert_eq!(read(3), one);
}

#[test]
fn only_rows_that_are_asked_for_pass_the_head() {
    let model = tiny("mixed");
    let mut backend = load(&model, Precision::Stored);
    let mut batch = StepBatch::default();
    feed(&mut batch, 0, &host(&prompt(20)), 0, &blocks(0, 2));
    step(&mut backend, &batch);
    let without = backend.weight_bytes_read();
    want_last(&mut batch, 0, Want::Logits);
    step(&mut backend, &batch);
    assert!(backend.weight_bytes_read() > 2 * without);
}

#[test]
fn a_step_may_feed_what_the_step_before_has_not_sampled_yet() {
    let model = tiny("llama");
    let mut backend = load(&model, Precision::F32);
    let run = |backend: &mut CpuBackend, ahead: bool| -> Vec<u32> {
        let mut tokens = Vec::new();
        let mut waiting: Option<Ticket> = None;
        for n in 0..6 {
            let mut batch = StepBatch::default();
            match n {
                0 => {
                    reset(&mut batch, 3, &prompt(5));
                    feed(&mut batch, 3, &host(&prompt(5)), 0, &blocks(0, 1));
                }
                _ => feed(&mut batch, 3, &[Input::Sampled(Slot(3))], 4 + n, &blocks(0, 1)),
            }
            want_last(&mut batch, 3, Want::Sample(Sampling::greedy()));
            let ticket = backend.submit(&batch).unwrap();
            if let Some(before) = waiting.replace(ticket).filter(|_| ahead) {
                tokens.push(sampled(&backend.collect(before).unwrap().rows[0]));
            }
            if !ahead {
                tokens.push(sampled(&backend.collect(waiting.take().unwrap()).unwrap().rows[0]));
            }
        }
        tokens.extend(waiting.map(|t| sampled(&backend.collect(t).unwrap().rows[0])));
        tokens
    };
    let ahead = run(&mut backend, true);
    assert_eq!(ahead.len(), 6);
    assert_eq!(ahead, run(&mut backend, false));
}

#[test]
fn a_copied_block_continues_like_the_original() {
    let model = tiny("qwen2");
    let mut backend = load(&model, Precision::Stored);
    let tokens = prompt(20);
    let whole = teacher_force(&mut backend, &tokens, 20, &blocks(0, 2));
    let mut batch = StepBatch::default();
    batch.copies.push(KvCopy { from: BlockId(0), to: BlockId(9) });
    feed(&mut batch, 1, &host(&tokens[16..]), 16, &[BlockId(9), BlockId(12)]);
    want_last(&mut batch, 1, Want::Logits);
    let out = step(&mut backend, &batch);
    assert_eq!(logits(out.rows[0].clone()), whole[19]);
}

#[test]
fn hidden_states_come_after_the_last_norm() {
    let model = tiny("llama3-tied");
    let mut backend = load(&model, Precision::F32);
    let mut batch = StepBatch::default();
    feed(&mut batch, 0, &host(&[5, 6]), 0, &blocks(0, 1));
    want_last(&mut batch, 0, Want::Hidden);
    want_last(&mut batch, 0, Want::Logits);
    let mut rows = step(&mut backend, &batch).rows.into_iter();
    let Some(Row::Hidden(hidden)) = rows.next() else { panic!("hidden first") };
    let logits = logits(rows.next().unwrap());
    // The head is the embedding: a logit is a dot product with one of its rows.
    let embedding = model.values(&model.weights.embedding);
    let dot: f32 = hidden.iter().zip(&embedding[7 * hidden.len()..]).map(|(a, b)| a * b).sum();
    assert!((dot - logits[7]).abs() < 1e-3);
}

#[test]
fn hidden_states_of_every_token_need_no_logits_beside_them() {
    let model = tiny("qwen2");
    let read = |cuts: &[usize]| -> Vec<Vec<f32>> {
        let mut backend = load(&model, Precision::F32);
        let tokens = [5, 6, 7, 8, 9];
        let mut hidden = Vec::new();
        for cut in cuts.windows(2) {
            let mut batch = StepBatch::default();
            feed(&mut batch, 0, &host(&tokens[cut[0]..cut[1]]), cut[0] as u32, &blocks(0, 1));
            for token in 0..(cut[1] - cut[0]) as u32 {
                batch.outputs.push(OutputRow { token, slot: Slot(0), want: Want::Hidden });
            }
            for row in step(&mut backend, &batch).rows {
                let Row::Hidden(state) = row else { panic!("{row:?}") };
                hidden.push(state);
            }
        }
        hidden
    };
    let (whole, cut) = (read(&[0, 5]), read(&[0, 2, 3, 5]));
    assert_eq!((whole.len(), cut.len()), (5, 5));
    for (a, b) in whole.iter().flatten().zip(cut.iter().flatten()) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
}

#[test]
fn the_same_seed_gives_the_same_answer_whatever_else_is_in_the_batch() {
    let model = tiny("qwen2");
    let mut backend = load(&model, Precision::Stored);
    let hot = |seed| Want::Sample(Sampling { temperature: 1.5, seed, ..Sampling::greedy() });
    let mut run = |others: u16| -> Vec<u32> {
        let mut tokens = Vec::new();
        for n in 0..12u32 {
            let mut batch = StepBatch::default();
            for slot in 0..=others {
                let table = blocks(u32::from(slot), 1);
                match n {
                    0 => {
                        reset(&mut batch, slot, &[3]);
                        feed(&mut batch, slot, &host(&[3]), 0, &table);
                    }
                    _ => feed(&mut batch, slot, &[Input::Sampled(Slot(slot))], n, &table),
                }
                want_last(&mut batch, slot, hot(u64::from(slot) + 40));
            }
            tokens.push(sampled(&step(&mut backend, &batch).rows[0]));
        }
        tokens
    };
    assert_eq!(run(0), run(5));
}

#[test]
fn a_batch_that_contradicts_itself_is_refused_and_harms_nothing() {
    let model = tiny("llama");
    let mut backend = load(&model, Precision::F32);
    let good = || {
        let mut batch = StepBatch::default();
        feed(&mut batch, 0, &host(&[1, 2, 3]), 0, &blocks(0, 1));
        want_last(&mut batch, 0, Want::Sample(Sampling::greedy()));
        batch
    };
    type Spoil = fn(&mut StepBatch);
    let spoilers: Vec<(&str, Spoil)> = vec![
        ("token 64 of 64", |b| b.inputs[1] = Input::Host(TokenId(64))),
        ("sampled no token", |b| b.inputs[0] = Input::Sampled(Slot(0))),
        ("slot 16", |b| b.sequences[0].slot = Slot(16)),
        ("slot 99", |b| b.outputs[0].slot = Slot(99)),
        ("2 positions", |b| b.positions.truncate(2)),
        ("follow", |b| b.positions[2] = 7),
        ("follow", |b| b.positions.copy_from_slice(&[u32::MAX - 1, u32::MAX, 0])),
        ("below 256", |b| b.positions.copy_from_slice(&[255, 256, 257])),
        ("no block for position", |b| b.positions.copy_from_slice(&[15, 16, 17])),
        ("block 999", |b| b.block_table[0] = BlockId(999)),
        ("not in the table", |b| b.sequences[0].blocks = 0..9),
        ("the tokens", |b| b.sequences[0].tokens = 1..3),
        ("the tokens", |b| b.sequences[0].tokens = 0..4),
        ("in sequences", |b| b.sequences[0].tokens = 0..2),
        ("in sequences", |b| b.sequences.clear()),
        ("two sequences", |b| {
            b.sequences[0].tokens = 0..2;
            b.sequences.push(SequenceStep { slot: Slot(0), tokens: 2..3, blocks: 0..1 });
        }),
        ("output of token 3", |b| b.outputs[0].token = 3),
        ("block 4096", |b| b.copies.push(KvCopy { from: BlockId(4096), to: BlockId(0) })),
        ("history", |b| reset_without_history(b)),
        ("ranges", |b| spoil_sampling(b, |s| s.temperature = f32::NAN)),
        ("ranges", |b| spoil_sampling(b, |s| s.repetition_penalty = 0.0)),
        ("token 70", |b| spoil_sampling(b, |s| s.bias.push((TokenId(70), 1.0)))),
        ("not a number", |b| spoil_sampling(b, |s| s.bias.push((TokenId(7), f32::NAN)))),
        ("mask of 1 words", |b| spoil_sampling(b, |s| s.mask = Some(vec![1]))),
        ("allows no token", |b| spoil_sampling(b, |s| s.mask = Some(vec![0, 0]))),
    ];
    for (message, spoil) in spoilers {
        let mut batch = good();
        spoil(&mut batch);
        match backend.submit(&batch) {
            Err(BackendError::BadBatch(what)) => {
                assert!(what.contains(message), "{what:?} should contain {message:?}");
            }
            other => panic!("{message}: {other:?}"),
        }
    }
    assert!(matches!(backend.collect(Ticket(0)), Err(BackendError::UnknownTicket(0))));
    step(&mut backend, &good());
    assert!(matches!(backend.collect(Ticket(0)), Err(BackendError::UnknownTicket(0))));
}

fn reset_without_history(batch: &mut StepBatch) {
    batch.resets.push(polder_backend::SlotReset { slot: Slot(0), history: 0..3, sampled: 0 });
}

fn spoil_sampling(batch: &mut StepBatch, spoil: fn(&mut Sampling)) {
    let OutputRow { want: Want::Sample(sampling), .. } = &mut batch.outputs[0] else {
        panic!("the good batch samples");
    };
    spoil(sampling);
}

#[test]
fn options_that_cannot_be_are_refused_by_name() {
    let model = tiny("llama");
    let refuse = |options: CpuOptions| CpuBackend::load(&model, &options).unwrap_err().to_string();
    assert!(refuse(CpuOptions { block_tokens: 20, ..Default::default() }).contains("of 20"));
    assert!(refuse(CpuOptions { slots: 0, ..Default::default() }).contains("no slots"));
}

#[test]
fn an_empty_step_gives_an_empty_answer() {
    let model = tiny("llama");
    let mut backend = load(&model, Precision::Stored);
    assert!(step(&mut backend, &StepBatch::default()).rows.is_empty());
}

#[test]
fn a_weight_that_is_no_number_spoils_the_sequences_that_read_it_and_no_others() {
    let path = common::goldens().join("tiny/llama/model.gguf");
    let mut bytes = std::fs::read(&path).unwrap();
    let embedding = polder_model::gguf::parse(&bytes)
        .unwrap()
        .tensors()
        .iter()
        .find(|tensor| tensor.name == "token_embd.weight")
        .cloned()
        .unwrap();
    let hidden = embedding.dims[0];
    let at = embedding.offset + 4 * 5 * hidden;
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("model.gguf");
    std::fs::write(&broken, bytes).unwrap();

    let mut backends = [load(&tiny("llama"), Precision::Stored), {
        load(&common::open(&broken), Precision::Stored)
    }];
    let hot = Sampling { temperature: 1.0, seed: 9, ..Sampling::greedy() };
    let mut run = |which: usize, poisoned: bool| {
        let mut rows = Vec::new();
        for (position, first) in [(0, [3, 4]), (2, [6, 7])] {
            let mut batch = StepBatch::default();
            // The poisoned one comes first and its blocks lie beside.
            let other = if poisoned { [1, 5] } else { [1, 2] };
            for (slot, tokens) in [(0, other), (1, first)] {
                if position == 0 {
                    reset(&mut batch, slot, &tokens);
                }
                feed(&mut batch, slot, &host(&tokens), position, &blocks(slot.into(), 1));
                want_last(&mut batch, slot, Want::Sample(hot.clone()));
            }
            rows.extend(step(&mut backends[which], &batch).rows);
        }
        rows
    };
    let healthy = run(0, false);
    let spoiled = run(1, true);
    assert_eq!([&spoiled[0], &spoiled[2]], [&Row::Unusable; 2]);
    assert_eq!([&spoiled[1], &spoiled[3]], [&healthy[1], &healthy[3]]);
    // Whoever gets the blocks next is not spoiled either.
    assert_eq!(run(1, false), healthy);
}
