//! Tokens per second of the real model with and without guesses, one line of JSON for each kind of text.
//!
//! `POLDER_SMOLLM2` names the GGUF, `POLDER_THREADS` the threads (2 if unset). The whole engine runs: its thread, its
//! clock, its decision. Rounds with and without guesses alternate, so that both see the same machine; what is
//! printed is the best round of each, and the median of the processor's milliseconds for a token, which say the same on a
//! machine that does other things besides. Reading the prompt is not counted. Linux only.

#[path = "../tests/common/mod.rs"]
mod common;

use std::sync::mpsc::channel;
use std::time::Instant;

use common::{golden_texts, request, smollm2};
use polder_backend::{Sampling, TokenId};
use polder_backend_cpu::{CpuBackend, CpuOptions};
use polder_scheduler::{Config, EngineHandle, Event, Request, spawn};

const ROUNDS: usize = 5;
const TOKENS: u32 = 120;

fn main() {
    let threads = std::env::var("POLDER_THREADS").ok().and_then(|t| t.parse().ok()).unwrap_or(2);
    let model = smollm2();
    let engines = [0, Config::default().draft_tokens].map(|draft_tokens| {
        let options = CpuOptions { threads, kv_tokens: 8192, ..CpuOptions::default() };
        let backend = CpuBackend::load(&model, &options).expect("a model that fits");
        let config = Config { draft_tokens, ..Config::default() };
        spawn(Box::new(backend), config).expect("a thread").handle()
    });
    let texts = golden_texts();
    // A file that was read twice, as an agent's tools show it, and that is written once more; and prose that goes on.
    let file = |n: usize| {
        let text = &texts[n].tokens[..160];
        [text, text, &text[..20]].concat()
    };
    let prose = |n: usize| texts[n].tokens[..180].to_vec();
    let greedy = Sampling::greedy();
    let drawn = Sampling { temperature: 0.8, top_p: 0.9, seed: 4, ..Sampling::greedy() };
    let hot = Sampling { temperature: 1.0, seed: 4, ..Sampling::greedy() };
    let ask = |prompt: &[u32], way: &Sampling| request(prompt, TOKENS, way);
    for (what, requests) in [
        ("repeats", vec![ask(&file(6), &greedy)]),
        ("repeats, drawn", vec![ask(&file(6), &drawn)]),
        ("repeats, four at once", [3, 4, 6, 9].map(|n| ask(&file(n), &greedy)).to_vec()),
        ("does not repeat", vec![ask(&prose(0), &hot)]),
        ("does not repeat, four at once", [0, 2, 4, 7].map(|n| ask(&prose(n), &hot)).to_vec()),
    ] {
        measure(what, threads, &engines, &requests);
    }
}

fn measure(what: &str, threads: usize, engines: &[EngineHandle; 2], requests: &[Request]) {
    let (mut best, mut costs) = ([0.0f64; 2], [Vec::new(), Vec::new()]);
    let before = engines[1].stats();
    for round in 0..=ROUNDS {
        let [plain, guessed] = engines.each_ref().map(|engine| answer(engine, requests));
        assert!(plain.said == guessed.said, "guesses changed an answer");
        // The first round reads the prompts, and learns what guesses cost.
        if round > 0 {
            for (n, answer) in [plain, guessed].iter().enumerate() {
                best[n] = best[n].max(answer.tokens_per_second);
                costs[n].push(answer.processor_ms);
            }
        }
    }
    let [plain, guessed] = costs.map(|mut costs: Vec<f64>| {
        costs.sort_by(f64::total_cmp);
        costs[ROUNDS / 2]
    });
    let after = engines[1].stats();
    println!(
        "{{\"what\": \"{what}\", \"threads\": {threads}, \"tokens_per_second\": {:.1}, \
         \"with_guesses\": {:.1}, \"processor_ms_per_token\": {plain:.2}, \
         \"processor_ms_with_guesses\": {guessed:.2}, \"guesses\": {}, \"right\": {}}}",
        best[0],
        best[1],
        after.draft_tokens - before.draft_tokens,
        after.accepted_tokens - before.accepted_tokens,
    );
}

/// What came of some requests.
struct Answer {
    said: Vec<Vec<TokenId>>,
    tokens_per_second: f64,
    processor_ms: f64,
}

/// Time that this process' threads have had on a processor so far, in milliseconds.
fn processor_ms() -> f64 {
    let threads = std::fs::read_dir("/proc/self/task").expect("Linux");
    let time = |thread: std::fs::DirEntry| {
        let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<f64>().ok()
    };
    threads.flatten().filter_map(time).sum::<f64>() / 1e6
}

/// What is said, from when all have begun to when all are done.
fn answer(engine: &EngineHandle, requests: &[Request]) -> Answer {
    let (sender, events) = channel();
    let sequences = requests.iter().cloned().enumerate().map(|(n, request)| {
        let sender = sender.clone();
        let sink = move |event| sender.send((n, event)).is_ok();
        (request, Box::new(sink) as _)
    });
    engine.submit(sequences.collect());
    drop(sender);
    let mut said = vec![Vec::new(); requests.len()];
    let (mut begun, mut counted) = (None, 0);
    for (n, event) in events {
        if let Event::Token(token) = event {
            said[n].push(token.token);
            counted += u32::from(begun.is_some());
            if begun.is_none() && said.iter().all(|tokens| !tokens.is_empty()) {
                begun = Some((Instant::now(), processor_ms()));
            }
        }
    }
    let (begun, before) = begun.expect("all of them said something");
    let tokens = f64::from(counted);
    Answer {
        said,
        tokens_per_second: tokens / begun.elapsed().as_secs_f64(),
        processor_ms: (processor_ms() - before) / tokens,
    }
}
