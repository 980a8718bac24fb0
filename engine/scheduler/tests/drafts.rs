//! Guesses at what comes next make answers faster, never different.

#![allow(clippy::unwrap_used)] // Helpers outside test functions unwrap too.

mod common;

use std::collections::VecDeque;
use std::time::Duration;

use common::{Sums, VOCAB, alone_with, limits, request};
use polder_backend::{Backend, Limits, Row, Sampling, StepBatch, TokenId, Want};
use polder_scheduler::fake::{FakeBackend, hashed, repeating};
use polder_scheduler::{Config, Event, Next, Request, RequestId, Scheduler, SchedulerError, Stats};

type Text = fn(&[TokenId], &Sampling) -> TokenId;

fn repeats(tokens: &[TokenId], sampling: &Sampling) -> TokenId {
    repeating(VOCAB)(tokens, sampling)
}

/// The same eight tokens over and over.
fn round(tokens: &[TokenId], _: &Sampling) -> TokenId {
    TokenId(1 + (tokens.last().unwrap().0 % 8))
}

fn changes(tokens: &[TokenId], sampling: &Sampling) -> TokenId {
    hashed(VOCAB)(tokens, sampling)
}

fn endless(member: &str, prompt: Vec<u32>, max_tokens: u32) -> Request {
    Request { stop_tokens: [].into(), ..request(member, prompt, max_tokens, 3) }
}

struct Bench {
    scheduler: Scheduler,
    backend: FakeBackend,
    batch: StepBatch,
    events: Vec<(RequestId, Event)>,
    /// What a step and each token of it take.
    clock: Option<(u64, u64)>,
    milliseconds: u64,
    ahead: usize,
    in_flight: VecDeque<(polder_backend::Ticket, u64)>,
}

impl Bench {
    fn new(limits: Limits, config: Config, text: Text, requests: Vec<Request>) -> Self {
        let mut scheduler = Scheduler::new(limits, config).unwrap();
        let numbered = requests.into_iter().enumerate();
        scheduler.admit(numbered.map(|(id, r)| (RequestId(id as u64), r)).collect()).unwrap();
        Self {
            scheduler,
            backend: FakeBackend::with(limits, Box::new(text)),
            batch: StepBatch::default(),
            events: Vec::new(),
            clock: None,
            milliseconds: 0,
            ahead: config.steps_ahead.into(),
            in_flight: VecDeque::new(),
        }
    }

    fn turn(&mut self) -> bool {
        while self.in_flight.len() <= self.ahead && self.scheduler.plan_step(&mut self.batch) {
            let ticket = self.backend.submit(&self.batch).unwrap();
            self.in_flight.push_back((ticket, self.batch.inputs.len() as u64));
        }
        let Some((ticket, tokens)) = self.in_flight.pop_front() else { return false };
        if let Some((step, each)) = self.clock {
            let took = step + each * tokens;
            self.milliseconds += took;
            self.scheduler.took(Duration::from_millis(took));
        }
        let output = self.backend.collect(ticket).unwrap();
        self.scheduler.take(output, &mut self.events).unwrap();
        let mut work = Vec::new();
        self.scheduler.mask_work(&mut work);
        for work in work {
            self.scheduler.take_mask(work.run(), &mut self.events);
        }
        true
    }

    fn run(&mut self) -> Stats {
        while self.turn() {}
        assert!(self.scheduler.is_idle());
        self.scheduler.stats()
    }

    fn said(&self, id: u64) -> Vec<TokenId> {
        let token = |(of, event): &(RequestId, Event)| match event {
            Event::Token(token) if of.0 == id => Some(token.token),
            _ => None,
        };
        self.events.iter().filter_map(token).collect()
    }
}

#[test]
fn a_text_that_repeats_itself_takes_a_fraction_of_the_steps_and_says_the_same() {
    for (text, most_steps, mixed) in
        [(round as Text, 20, false), (repeats, 45, true), (changes, 50, false)]
    {
        for steps_ahead in [0, 1] {
            let asked = endless("m", (1..9).collect(), 50);
            let config = Config { steps_ahead, ..Config::default() };
            let mut bench = Bench::new(limits(20, 2), config, text, vec![asked.clone()]);
            let stats = bench.run();
            assert_eq!(bench.said(0), alone_with(&text, &asked, 64).0);
            assert!(stats.steps <= most_steps, "{stats:?}");
            assert_eq!(stats.steps + stats.accepted_tokens, 50);
            if mixed {
                // Right guesses, wrong ones, and drafts that begin right and end wrong.
                assert!(stats.accepted_tokens > 5 && stats.draft_tokens > stats.accepted_tokens);
            }
        }
    }
}

#[test]
fn switched_off_or_under_a_grammar_nothing_is_guessed() {
    let mut asked = endless("m", (1..9).collect(), 50);
    let config = Config { draft_tokens: 0, ..Config::default() };
    let mut bench = Bench::new(limits(20, 2), config, round, vec![asked.clone()]);
    assert_eq!((bench.run().drafts, bench.said(0).len()), (0, 50));
    asked.grammar = Some(Sums::grammar(60, Next::Complete));
    let mut bench = Bench::new(limits(20, 2), Config::default(), round, vec![asked]);
    assert_eq!((bench.run().drafts, bench.said(0).len()), (0, 50));
}

/// A text of three thousand tokens of which about every tenth guess is right.
fn tenth(tokens: &[TokenId], sampling: &Sampling) -> TokenId {
    let sure = hashed(10)(&tokens[tokens.len() - 1..], &Sampling::greedy()).0 == 0;
    if sure { round(tokens, sampling) } else { changes(tokens, sampling) }
}

#[test]
fn guesses_are_made_where_they_pay_and_cost_next_to_nothing_where_they_do_not() {
    let long = Limits { context: 4_000, blocks: 1_300, ..limits(1, 2) };
    // What a step and each of its tokens take: tokens for nothing, tokens at a quarter, nothing but tokens.
    for (clock, text, least, most) in [
        ((10, 0), round as Text, 0.05, 0.15),
        ((9, 3), round, 0.28, 0.4),
        ((0, 10), round, 0.9, 1.01),
        ((10, 0), changes, 0.8, 1.0),
        ((9, 3), changes, 0.9, 1.01),
        ((0, 10), changes, 0.99, 1.01),
        ((9, 3), tenth, 0.9, 1.01),
    ] {
        let times = [0, 16].map(|draft_tokens| {
            let asked = endless("m", (1..9).collect(), 3_000);
            let config = Config { draft_tokens, ..Config::default() };
            let mut bench = Bench::new(long, config, text, vec![asked]);
            bench.clock = Some(clock);
            bench.run();
            bench.milliseconds as f64
        });
        let part = times[1] / times[0];
        assert!((least..=most).contains(&part), "{clock:?}: {part}");
    }
}

#[test]
fn prompts_are_read_before_anything_is_guessed_and_steps_do_not_grow() {
    let config = Config { step_tokens: 12, ..Config::default() };
    let asked = vec![endless("m", (1..9).collect(), 40), endless("n", vec![5; 60], 1)];
    let mut bench = Bench::new(limits(40, 2), config, round, asked);
    while bench.turn() {
        let batch = &bench.batch;
        assert!(batch.inputs.len() <= 12);
        let reads = batch.sequences.iter().any(|s| s.slot.0 == 1);
        let samples = |row: &&polder_backend::OutputRow| matches!(row.want, Want::Sample(_));
        if reads && batch.inputs.len() == 12 {
            assert!(batch.outputs.iter().filter(samples).count() <= 2);
        }
    }
    assert_eq!(bench.said(0).len(), 40);
    assert!(bench.scheduler.stats().accepted_tokens > 10);
}

#[test]
fn no_blocks_are_taken_from_anybody_for_guesses() {
    // Four answers that fill the pool to the last block exactly when they are done.
    let asked: Vec<Request> =
        (0..4).map(|n| endless("m", vec![n + 1, n + 2, n + 3, n + 4], 28)).collect();
    let config = |draft_tokens| Config { draft_tokens, ..Config::default() };
    let mut without = Bench::new(limits(32, 4), config(0), round, asked.clone());
    let mut with = Bench::new(limits(32, 4), config(16), round, asked);
    assert_eq!(without.run().preemptions, 0);
    let stats = with.run();
    assert_eq!(stats.preemptions, 0);
    assert!(stats.accepted_tokens > 50, "{stats:?}");
    for id in 0..4 {
        assert_eq!(with.said(id), without.said(id));
    }
}

#[test]
fn a_member_pays_for_wrong_guesses_too() {
    // Two answers go on side by side, one of them guessed at; then both members bring a long prompt.
    let first_read = |draft_tokens| {
        let limits = Limits { context: 4_000, blocks: 3_000, ..limits(1, 5) };
        let config = Config { draft_tokens, step_tokens: 16, ..Config::default() };
        let mut plain = endless("plain", (11..19).collect(), 3_000);
        plain.grammar = Some(Sums::grammar(3_000, Next::Complete));
        let asked = vec![endless("guessed", (1..9).collect(), 3_000), plain];
        let mut bench = Bench::new(limits, config, repeats, asked);
        for _ in 0..200 {
            bench.turn();
        }
        let stats = bench.scheduler.stats();
        for (id, member) in [(2, "guessed"), (3, "plain")] {
            let request = endless(member, vec![id as u32; 100], 1);
            bench.scheduler.admit(vec![(RequestId(id), request)]).unwrap();
        }
        // Whoever is level reads in turns.
        let (mut guessed, mut plain) = (0, 0);
        for _ in 0..2 {
            bench.turn();
            let of = |slot| {
                let own = bench.batch.sequences.iter().find(|s| s.slot.0 == slot);
                own.map_or(0, |sequence| sequence.tokens.len())
            };
            (guessed, plain) = (guessed + of(2), plain + of(3));
        }
        (stats.draft_tokens > 2 * stats.accepted_tokens, guessed, plain)
    };
    assert_eq!(first_read(0), (false, 14, 14));
    assert_eq!(first_read(8), (true, 0, 28));
}

#[test]
fn a_back_end_that_settles_guesses_wrongly_is_found_out() {
    for lie in [0, 1] {
        let asked = endless("m", (1..9).chain(1..9).collect(), 50);
        let text: Text = if lie == 0 { round } else { changes };
        let mut bench = Bench::new(limits(20, 2), Config::default(), text, vec![asked]);
        let refused = loop {
            assert!(bench.scheduler.plan_step(&mut bench.batch), "nothing was guessed");
            let ticket = bench.backend.submit(&bench.batch).unwrap();
            let mut output = bench.backend.collect(ticket).unwrap();
            let rows = output.rows.len();
            if rows > 1 {
                // A right guess is called wrong, or a wrong one right.
                output.rows[1] = if lie == 0 { Row::Void } else { output.rows[0].clone() };
            }
            match bench.scheduler.take(output, &mut bench.events) {
                Ok(()) => assert_eq!(rows, 1),
                Err(error) => break error,
            }
        };
        assert!(matches!(refused, SchedulerError::WrongAnswer { .. }), "{refused}");
    }
}
