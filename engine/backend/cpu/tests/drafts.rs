//! A draft changes nothing but the number of steps: the same tokens, to the bit.

mod common;

use std::sync::Arc;

use common::{
    blocks, feed, golden_texts, host, load, request, reset, schedule, smollm2, step, tiny,
    want_last,
};
use polder_backend::{
    Backend, BackendError, Input, OutputRow, Row, SampledToken, Sampling, Slot, StepBatch, TokenId,
    Want,
};
use polder_backend_cpu::Precision;
use polder_model::Model;

const SLOT: u16 = 2;
const TOKENS: usize = 40;

fn prompt() -> Vec<u32> {
    (0..21).map(|i| (i * 29 + 7) % 64).collect()
}

/// Ways of sampling that differ in what they need of the text before.
fn ways() -> Vec<Sampling> {
    let greedy = Sampling { logprobs: Some(3), ..Sampling::greedy() };
    let hot = Sampling { temperature: 1.2, seed: 5, ..greedy.clone() };
    let penalties = Sampling {
        presence_penalty: 0.4,
        frequency_penalty: 0.6,
        repetition_penalty: 1.4,
        ..greedy.clone()
    };
    vec![
        Sampling { top_p: 0.9, top_k: 20, ..hot.clone() },
        Sampling { temperature: 0.7, seed: 8, ..penalties.clone() },
        Sampling { bias: vec![(TokenId(9), 1.5)], mask: Some(vec![!5, u32::MAX]), ..hot },
        penalties,
        greedy,
    ]
}

fn start(batch: &mut StepBatch, sampling: &Sampling) {
    reset(batch, SLOT, &prompt());
    feed(batch, SLOT, &host(&prompt()), 0, &blocks(0, 5));
    want_last(batch, SLOT, Want::Sample(sampling.clone()));
}

fn token(row: &Row) -> SampledToken {
    match row {
        Row::Sampled(token) => token.clone(),
        other => panic!("expected a token, got {other:?}"),
    }
}

/// One token after the other.
fn plainly(model: &Arc<Model>, precision: Precision, sampling: &Sampling) -> Vec<SampledToken> {
    let mut backend = load(model, precision);
    let mut batch = StepBatch::default();
    start(&mut batch, sampling);
    let mut said = vec![token(&step(&mut backend, &batch).rows[0])];
    while said.len() < TOKENS {
        let mut batch = StepBatch::default();
        let position = (prompt().len() + said.len() - 1) as u32;
        feed(&mut batch, SLOT, &[Input::Sampled(Slot(SLOT))], position, &blocks(0, 5));
        want_last(&mut batch, SLOT, Want::Sample(sampling.clone()));
        said.push(token(&step(&mut backend, &batch).rows[0]));
    }
    said
}

/// Appends a token and guesses at what comes after it, with a sample after each.
fn draft(batch: &mut StepBatch, said: usize, guesses: &[u32], sampling: &Sampling) {
    let mut inputs = vec![Input::Sampled(Slot(SLOT))];
    inputs.extend(host(guesses));
    let first = batch.inputs.len() as u32;
    feed(batch, SLOT, &inputs, (prompt().len() + said - 1) as u32, &blocks(0, 5));
    for token in first..first + inputs.len() as u32 {
        let want = Want::Sample(sampling.clone());
        batch.outputs.push(OutputRow { token, slot: Slot(SLOT), want });
    }
}

/// With drafts of which `right` says how many guesses are right, step by step, and then one is wrong.
fn drafted(
    model: &Arc<Model>,
    precision: Precision,
    sampling: &Sampling,
    truth: &[SampledToken],
    right: impl Fn(usize) -> usize,
) -> Vec<SampledToken> {
    let mut backend = load(model, precision);
    let mut batch = StepBatch::default();
    start(&mut batch, sampling);
    let mut said = vec![token(&step(&mut backend, &batch).rows[0])];
    for turn in 0.. {
        if said.len() >= TOKENS {
            break;
        }
        let right = right(turn).min(TOKENS - said.len());
        let mut guesses: Vec<u32> =
            truth[said.len()..][..right].iter().map(|token| token.token.0).collect();
        let wrong = truth.get(said.len() + right).map(|token| (token.token.0 + 1) % 64);
        guesses.extend(wrong);
        guesses.extend(wrong.map(|_| 3));
        // Somebody else's tokens stand before, and draft as well.
        let mut batch = StepBatch::default();
        feed(&mut batch, 7, &host(&[1, 2, 3]), 0, &blocks(10, 1));
        for token in 1..3 {
            let want = Want::Sample(Sampling::greedy());
            batch.outputs.push(OutputRow { token, slot: Slot(7), want });
        }
        draft(&mut batch, said.len(), &guesses, sampling);
        let rows = step(&mut backend, &batch).rows.split_off(2);
        assert_eq!(rows.len(), guesses.len() + 1);
        let counted = rows.iter().take_while(|row| **row != Row::Void).count();
        assert_eq!(counted, right + 1);
        assert!(rows[counted..].iter().all(|row| *row == Row::Void));
        said.extend(rows[..counted].iter().map(token));
    }
    said.truncate(TOKENS);
    said
}

#[test]
fn drafts_that_are_right_wrong_or_half_right_give_the_same_tokens_and_logprobs() {
    for name in ["qwen3", "mixed"] {
        let model = tiny(name);
        for precision in [Precision::F32, Precision::Stored] {
            for sampling in ways() {
                let truth = plainly(&model, precision, &sampling);
                for right in [|_| 0, |turn| turn % 5, |_| 9] {
                    let said = drafted(&model, precision, &sampling, &truth, right);
                    assert_eq!(said, truth, "{name} {precision:?} {sampling:?}");
                }
            }
        }
    }
}

#[test]
fn the_token_after_a_draft_is_the_last_one_that_counts() {
    let model = tiny("llama");
    let sampling = Sampling::greedy();
    let truth = plainly(&model, Precision::Stored, &sampling);
    let mut backend = load(&model, Precision::Stored);
    let mut batch = StepBatch::default();
    start(&mut batch, &sampling);
    step(&mut backend, &batch);
    let mut batch = StepBatch::default();
    let wrong = (truth[2].token.0 + 1) % 64;
    draft(&mut batch, 1, &[truth[1].token.0, wrong, 5, 5], &sampling);
    // The next step does not wait for what counts: it knows by other ways that three do.
    let first = backend.submit(&batch).unwrap();
    let mut batch = StepBatch::default();
    draft(&mut batch, 3, &[], &sampling);
    let second = backend.submit(&batch).unwrap();
    assert_eq!(backend.collect(first).unwrap().rows[2..], [Row::Void, Row::Void, Row::Void]);
    assert_eq!(token(&backend.collect(second).unwrap().rows[0]), truth[3]);
}

#[test]
fn a_draft_that_contradicts_itself_is_refused_and_harms_nothing() {
    let model = tiny("llama");
    let mut backend = load(&model, Precision::F32);
    let good = || {
        let mut batch = StepBatch::default();
        start(&mut batch, &Sampling::greedy());
        feed(&mut batch, 5, &host(&[1, 2, 3]), 0, &blocks(10, 1));
        for token in 21..24 {
            let want = Want::Sample(Sampling::greedy());
            batch.outputs.push(OutputRow { token, slot: Slot(5), want });
        }
        batch
    };
    let first = step(&mut backend, &good()).rows;
    type Spoil = fn(&mut StepBatch);
    let spoilers: [(&str, Spoil); 5] = [
        ("do not follow", |b| b.outputs[2].token = 23),
        ("do not follow", |b| b.outputs[3].token = 22),
        // The prompt's last token and the other's first ones, as if they were one text.
        ("do not follow", |b| b.outputs[0].slot = Slot(5)),
        ("rows between", |b| b.outputs.swap(0, 1)),
        ("nobody knows", |b| b.inputs[23] = Input::Sampled(Slot(5))),
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
    assert_eq!(step(&mut backend, &good()).rows, first);
}

#[test]
fn answers_that_the_scheduler_guesses_at_are_the_same_to_the_bit() {
    for name in ["qwen3", "mixed"] {
        let model = tiny(name);
        let mut right = 0;
        for precision in [Precision::F32, Precision::Stored] {
            // All ways of sampling side by side, over a text that repeats itself.
            let text: Vec<u32> = (0..60).map(|at| (at % 9 * 7 + 3) % 64).collect();
            let requests: Vec<_> = ways().iter().map(|way| request(&text, 120, way)).collect();
            let mut backend = load(&model, precision);
            let (plain, stats) = schedule(&mut backend, &requests, 0);
            assert_eq!(stats.draft_tokens, 0);
            let (guessed, stats) = schedule(&mut backend, &requests, 8);
            assert_eq!(guessed, plain, "{name} {precision:?}");
            assert!(stats.draft_tokens > stats.accepted_tokens);
            right += stats.accepted_tokens;
        }
        assert!(right > 20, "{name}: {right}");
    }
}

#[test]
fn model_smollm2_repeats_a_text_in_a_fraction_of_the_steps_and_says_the_same() {
    let model = smollm2();
    let mut backend = load(&model, Precision::Stored);
    let drawn = Sampling { temperature: 0.8, top_p: 0.9, seed: 4, ..Sampling::greedy() };
    for (sampling, most_steps) in [(Sampling::greedy(), 20), (drawn, 30)] {
        // A program, twice, and how it begins once more.
        let text = &golden_texts()[6].tokens[..160];
        let again = [text, text, &text[..20]].concat();
        let asked = [request(&again, 100, &sampling)];
        let (plain, without) = schedule(&mut backend, &asked, 0);
        let (guessed, with) = schedule(&mut backend, &asked, 16);
        assert_eq!(guessed, plain);
        println!("{} steps instead of {}: {with:?}", with.steps, without.steps);
        assert!(with.steps <= most_steps, "{with:?}");
    }
}
