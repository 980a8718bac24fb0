//! A text's vector does not depend on how its tokens came through, nor on who else was there.

#![allow(clippy::unwrap_used)] // Helpers outside test functions unwrap too.

mod common;

use std::collections::{BTreeMap, VecDeque};

use common::{VOCAB, limits, request};
use polder_backend::{Backend, StepBatch, TokenId};
use polder_scheduler::fake::{FakeBackend, hidden};
use polder_scheduler::{Config, Event, Pooling, Request, RequestId, Scheduler};
use proptest::prelude::*;

fn expected(prompt: &[TokenId], pooling: Pooling) -> Vec<f32> {
    let from = match pooling {
        Pooling::Last => prompt.len(),
        Pooling::Mean => 1,
    };
    let states: Vec<Vec<f32>> = (from..=prompt.len()).map(|len| hidden(&prompt[..len])).collect();
    (0..states[0].len())
        .map(|at| {
            let sum: f64 = states.iter().map(|state| f64::from(state[at])).sum();
            (sum / states.len() as f64) as f32
        })
        .collect()
}

/// Runs all of them to their end; what each was told, and what is left in use.
fn run(blocks: u32, config: Config, requests: &[Request]) -> (BTreeMap<u64, Vec<Event>>, usize) {
    let limits = limits(blocks, 3);
    let mut scheduler = Scheduler::new(limits, config).unwrap();
    let mut backend = FakeBackend::new(limits);
    let numbered = requests.iter().cloned().enumerate();
    scheduler
        .admit(numbered.map(|(id, request)| (RequestId(id as u64), request)).collect())
        .unwrap();
    let (mut batch, mut flight) = (StepBatch::default(), VecDeque::new());
    let mut said: BTreeMap<u64, Vec<Event>> = BTreeMap::new();
    loop {
        while flight.len() <= usize::from(config.steps_ahead) && scheduler.plan_step(&mut batch) {
            flight.push_back(backend.submit(&batch).unwrap());
        }
        let Some(ticket) = flight.pop_front() else { break };
        let mut events = Vec::new();
        scheduler.take(backend.collect(ticket).unwrap(), &mut events).unwrap();
        for (id, event) in events {
            said.entry(id.0).or_default().push(event);
        }
    }
    (said, scheduler.stats().blocks_used)
}

proptest! {
    #[test]
    fn every_text_gets_its_own_vector_beside_answers_that_take_the_room(
        texts in prop::collection::vec(
            (prop::collection::vec(1..VOCAB, 1..40), 0..3u8, any::<bool>()), 1..7),
        blocks in 16..30u32,
        step_tokens in 3..20u32,
        steps_ahead in 0..2u8,
    ) {
        let requests: Vec<Request> = texts
            .iter()
            .map(|(prompt, kind, member)| {
                let member = if *member { "a" } else { "b" };
                let pooling = [None, Some(Pooling::Last), Some(Pooling::Mean)][usize::from(*kind)];
                let max_tokens = if pooling.is_some() { 0 } else { 20 };
                Request { pooling, ..request(member, prompt.clone(), max_tokens, 1) }
            })
            .collect();
        let config = Config { step_tokens, steps_ahead, ..Config::default() };
        let (said, left) = run(blocks, config, &requests);
        for (id, request) in requests.iter().enumerate() {
            let events = &said[&(id as u64)];
            let ended = matches!(events.last(), Some(Event::Finished { .. }));
            prop_assert!(ended, "{:?}", events);
            if let Some(pooling) = request.pooling {
                prop_assert_eq!(events.len(), 3);
                prop_assert_eq!(&events[1], &Event::Vector(expected(&request.prompt, pooling)));
            }
        }
        prop_assert_eq!(left, 0);
    }
}

#[test]
fn the_last_tokens_state_needs_only_what_is_new_and_the_mean_all() {
    let prompt: Vec<u32> = (1..22).collect();
    let ask = |pooling| Request { pooling: Some(pooling), ..request("a", prompt.clone(), 0, 0) };
    let requests = [ask(Pooling::Last), ask(Pooling::Last), ask(Pooling::Mean)];
    let (said, _) = run(40, Config::default(), &requests);
    let cached = |id: u64| match said[&id].first() {
        Some(Event::Begun { cached }) => *cached,
        other => panic!("{other:?}"),
    };
    assert_eq!([cached(0), cached(1), cached(2)], [0, 20, 0]);
}

#[test]
fn a_text_as_long_as_the_context_has_a_vector() {
    let prompt: Vec<u32> = (0..64).map(|at| 1 + at % 20).collect();
    let ask = Request { pooling: Some(Pooling::Mean), ..request("a", prompt, 5, 0) };
    let (said, _) = run(40, Config::default(), std::slice::from_ref(&ask));
    assert_eq!(said[&0][1], Event::Vector(expected(&ask.prompt, Pooling::Mean)));
}
