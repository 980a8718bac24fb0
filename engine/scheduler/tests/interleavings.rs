//! Whatever comes and goes in whatever order: every request gets exactly its own tokens, and
//! when all are done no block and no slot is missing.

#![allow(clippy::unwrap_used)] // Helpers outside test functions unwrap too.

mod common;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use common::beside::Beside;
use common::{STOP, Sums, VOCAB, alone, alone_with, limits, request};
use polder_backend::{Backend, Limits, OutputRow, Sampling, StepBatch, Ticket, TokenId, Want};
use polder_scheduler::fake::{FakeBackend, hashed, repeating};
use polder_scheduler::{
    Claim, Config, Cost, Event, FinishReason, MaskWork, MemberId, Next, Refusal, Request,
    RequestId, Scheduler, SchedulerError, Weight,
};
use proptest::prelude::*;

/// The loop of the engine's thread, one call at a time.
struct Bench {
    scheduler: Scheduler,
    backend: FakeBackend,
    in_flight: VecDeque<Ticket>,
    ahead: usize,
    batch: StepBatch,
    said: BTreeMap<RequestId, Vec<Event>>,
    /// Whose readers take nothing.
    paused: BTreeSet<RequestId>,
    /// Masks that are being computed, and how many turns each takes.
    masks: VecDeque<MaskWork>,
    mask_turns: usize,
    turns: usize,
    /// The tiers beside the device, if there are any.
    beside: Option<Beside>,
    /// Milliseconds of a step and of each token in it, where there is a clock.
    clock: Option<(u64, u64)>,
}

impl Bench {
    fn new(limits: Limits, config: Config) -> Self {
        Self {
            scheduler: Scheduler::new(limits, config).unwrap(),
            backend: FakeBackend::new(limits),
            in_flight: VecDeque::new(),
            ahead: config.steps_ahead.into(),
            batch: StepBatch::default(),
            said: BTreeMap::new(),
            paused: BTreeSet::new(),
            masks: VecDeque::new(),
            mask_turns: 0,
            turns: 0,
            beside: None,
            clock: None,
        }
    }

    /// With tiers beside the device, where reads come as the seed says; smoothly with 0.
    fn beside(limits: Limits, config: Config, seed: u64) -> Self {
        let bench = Self::new(limits, config);
        let (beside, scheduler) = Beside::new(bench.scheduler, limits.block_tokens, seed);
        Self { scheduler, beside: Some(beside), ..bench }
    }

    /// Everything on the device is as after a start.
    fn restart(&mut self, limits: Limits, config: Config) {
        let next = Self::beside(limits, config, 0);
        let mut beside = next.beside.unwrap();
        beside.take_over(self.beside.as_ref().unwrap());
        (self.scheduler, self.backend) = (next.scheduler, next.backend);
        self.beside = Some(beside);
    }

    fn keep(&mut self) {
        if let Some(beside) = &mut self.beside {
            beside.put(&mut self.scheduler, &mut self.backend);
        }
    }

    /// Puts all that is left to be put, as an engine does that has nothing else to do.
    fn settle(&mut self) {
        for _ in 0..1000 {
            if !self.scheduler.has_puts() {
                return;
            }
            self.keep();
        }
        panic!("it puts for ever");
    }

    /// Submits what can be submitted and reads one step; false when there was nothing to do.
    fn turn(&mut self) -> bool {
        while self.in_flight.len() <= self.ahead {
            self.scheduler.pause_where(|id| self.paused.contains(&id));
            self.keep();
            if !self.scheduler.plan_step(&mut self.batch) {
                break;
            }
            self.in_flight.push_back(self.backend.submit(&self.batch).unwrap());
        }
        let waited = self.scheduler.stats().restoring;
        if let Some(beside) = &mut self.beside {
            beside.restore(&mut self.scheduler, &mut self.backend);
        }
        let came = waited > 0;
        let restoring = self.scheduler.stats().restoring;
        let busy = self.beside.as_ref().is_some_and(Beside::busy);
        assert!(restoring == 0 || busy, "something waits for blocks that nobody reads");
        let mut events = Vec::new();
        let ticket = self.in_flight.pop_front();
        let tokens = self.batch.inputs.len() as u64;
        let stalled = ticket.is_none() && self.masks.is_empty() && !busy && !came;
        if let Some(ticket) = ticket {
            let output = self.backend.collect(ticket).unwrap();
            if let Some((step, each)) = self.clock {
                self.scheduler.took(Duration::from_millis(step + each * tokens));
            }
            self.scheduler.take(output, &mut events).unwrap();
        }
        self.turns += 1;
        let mut work = Vec::new();
        self.scheduler.mask_work(&mut work);
        self.masks.extend(work);
        // The last comer first, now and then: they come back in any order.
        while self.masks.len() > self.mask_turns
            || (!self.masks.is_empty()
                && (ticket.is_none() || self.turns.is_multiple_of(self.mask_turns + 1)))
        {
            let work = self.masks.pop_back().unwrap();
            self.scheduler.take_mask(work.run(), &mut events);
        }
        for (id, event) in events {
            self.said.entry(id).or_default().push(event);
        }
        self.keep();
        !stalled
    }

    fn tokens_of(&self, id: RequestId) -> Vec<TokenId> {
        let events = self.said.get(&id).map(Vec::as_slice).unwrap_or_default();
        events
            .iter()
            .filter_map(|event| match event {
                Event::Token(token) => Some(token.token),
                _ => None,
            })
            .collect()
    }

    /// How much of its prompt did not have to be read, if it has begun.
    fn known_of(&self, id: RequestId) -> Option<u32> {
        let mut events = self.said.get(&id)?.iter();
        let Some(Event::Begun { cached }) = events.next() else {
            panic!("something was said before it had begun");
        };
        assert!(!events.any(|event| matches!(event, Event::Begun { .. })), "it begins once");
        Some(*cached)
    }

    fn end_of(&self, id: RequestId) -> Option<(FinishReason, u32)> {
        match self.said.get(&id)?.last()? {
            Event::Finished { reason, sampled } => Some((*reason, *sampled)),
            _ => None,
        }
    }
}

#[derive(Debug, Clone)]
enum Act {
    Admit {
        member: u8,
        prompt: Vec<u32>,
        max_tokens: u32,
        seed: u64,
        claim: Claim,
        /// So many tokens its grammar allows, if it has one.
        under: Option<usize>,
    },
    Cancel(prop::sample::Index),
    /// A reader stops reading, or reads again.
    Stall(prop::sample::Index),
    /// A tier loses a block.
    Lose(prop::sample::Index),
    /// A member wants to be forgotten.
    Forget(u8),
    Turns(u8),
    /// The site says that the first of the texts is common to all, or no longer.
    Common(bool),
}

/// A prompt like no other, or the beginning of one of three texts with something of its own behind it.
fn prompts() -> impl Strategy<Value = Vec<u32>> {
    let own = || prop::collection::vec(0..VOCAB, 1..40);
    let told = (0u32..3, 1u32..36, prop::collection::vec(0..VOCAB, 0..4)).prop_map(
        |(text, length, tail)| {
            (0..length).map(|at| (text + 1) * (at + 3) % VOCAB).chain(tail).collect()
        },
    );
    prop_oneof![own(), told]
}

fn claims() -> impl Strategy<Value = Claim> {
    (0u16..400, prop_oneof![Just(u16::MAX), 0u16..3], -1i32..2, any::<bool>()).prop_map(
        |(weight, most_running, priority, trusting)| Claim {
            weight: Weight::percent(weight),
            most_running,
            priority,
            trusting,
        },
    )
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let prompt = prompts();
    prop::collection::vec(
        prop_oneof![
            4 => (
                0u8..4, prompt, 1u32..40, any::<u64>(), claims(), prop::option::of(1usize..30)
            ).prop_map(
                |(member, prompt, max_tokens, seed, claim, under)| {
                    Act::Admit { member, prompt, max_tokens, seed, claim, under }
                }
            ),
            1 => any::<prop::sample::Index>().prop_map(Act::Cancel),
            2 => any::<prop::sample::Index>().prop_map(Act::Stall),
            1 => any::<prop::sample::Index>().prop_map(Act::Lose),
            1 => (0u8..4).prop_map(Act::Forget),
            3 => (0u8..6).prop_map(Act::Turns),
            1 => any::<bool>().prop_map(Act::Common),
        ],
        1..60,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn everyone_gets_exactly_their_tokens_and_nothing_leaks(
        acts in acts(),
        blocks in 6u32..40,
        slots in 1u16..7,
        step_tokens in 1u32..64,
        steps_ahead in 0u8..2,
        max_waiting in 1usize..20,
        slopes in prop_oneof![Just((0.0, 0.0)), (0.0f64..0.5, 0.0f64..2.0)],
        credit in 0u32..100,
        mask_turns in 0usize..4,
        beside in prop::option::of(any::<u64>()),
        drafts in (0u32..9, any::<bool>(), prop::option::of((1u64..20, 0u64..20))),
    ) {
        let (draft_tokens, repeats, clock) = drafts;
        let cost = Cost { read_slope: slopes.0, decode_slope: slopes.1 };
        let config = Config {
            max_waiting, step_tokens, steps_ahead, cost, credit, draft_tokens, ..Config::default()
        };
        let mut bench = match beside {
            None => Bench::new(limits(blocks, slots), config),
            Some(seed) => Bench::beside(limits(blocks, slots), config, seed),
        };
        bench.mask_turns = mask_turns;
        bench.clock = clock;
        type Text = fn(&[TokenId], &Sampling) -> TokenId;
        let text: Text = match repeats {
            true => |tokens, sampling| repeating(VOCAB)(tokens, sampling),
            false => |tokens, sampling| hashed(VOCAB)(tokens, sampling),
        };
        bench.backend = FakeBackend::with(limits(blocks, slots), Box::new(text));
        let capacity = bench.scheduler.capacity();
        // As the first of the texts that several begin with.
        let common: Vec<TokenId> = (0..18).map(|at| TokenId((at + 3) % VOCAB)).collect();
        bench.scheduler.share_beginnings(std::slice::from_ref(&common));
        let mut taken: BTreeMap<RequestId, (Request, bool)> = BTreeMap::new();
        for (number, act) in acts.into_iter().enumerate() {
            match act {
                Act::Common(true) => bench.scheduler.share_beginnings(std::slice::from_ref(&common)),
                Act::Common(false) => bench.scheduler.share_beginnings(&[]),
                Act::Admit { member, prompt, max_tokens, seed, claim, under } => {
                    let id = RequestId(number as u64);
                    let mut request = request(&format!("m{member}"), prompt, max_tokens, seed);
                    request.claim = claim;
                    request.grammar = under.map(|length| Sums::grammar(length, Next::Complete));
                    let waiting = bench.scheduler.stats().waiting;
                    match bench.scheduler.admit(vec![(id, request.clone())]) {
                        Ok(()) => {
                            taken.insert(id, (request, false));
                        }
                        Err(Refusal::QueueFull { .. }) => prop_assert!(waiting >= max_waiting),
                        Err(Refusal::ShareFull { waiting: mine }) => prop_assert!(mine > 0),
                        Err(Refusal::TooLong { .. }) => {
                            prop_assert!(request.prompt.len() + 1 > capacity as usize);
                        }
                        Err(other) => prop_assert!(false, "{}", other),
                    }
                }
                Act::Cancel(which) => {
                    if taken.is_empty() { continue; }
                    let id = *which.get(&taken.keys().copied().collect::<Vec<_>>());
                    let known = bench.scheduler.cancel(id);
                    prop_assert_eq!(known, bench.end_of(id).is_none() && !taken[&id].1);
                    if known {
                        taken.get_mut(&id).unwrap().1 = true;
                        prop_assert!(!bench.scheduler.cancel(id));
                    }
                }
                Act::Stall(which) => {
                    if taken.is_empty() { continue; }
                    let id = *which.get(&taken.keys().copied().collect::<Vec<_>>());
                    if !bench.paused.remove(&id) { bench.paused.insert(id); }
                }
                Act::Lose(which) => {
                    if let Some(beside) = &mut bench.beside { beside.lose(which); }
                }
                Act::Forget(member) => {
                    let member = MemberId::new(format!("m{member}"));
                    if let Some(beside) = &mut bench.beside { beside.forget(&member); }
                    bench.scheduler.forget(&member);
                }
                Act::Turns(count) => {
                    let said = |bench: &Bench| -> Vec<usize> {
                        bench.paused.iter().map(|id| bench.tokens_of(*id).len()).collect()
                    };
                    let before = said(&bench);
                    for _ in 0..count { bench.turn(); }
                    // What was in flight when they were paused, or the step that starts one, for the first
                    // time or again, and nothing more.
                    let step = usize::from(steps_ahead) * (1 + draft_tokens as usize)
                        + bench.scheduler.stats().slots_given_up as usize;
                    for (after, before) in said(&bench).into_iter().zip(before) {
                        prop_assert!(after <= before.max(1) + step);
                    }
                }
            }
            let stats = bench.scheduler.stats();
            prop_assert!(stats.running <= slots.into());
            prop_assert!(stats.blocks_used + stats.blocks_kept <= stats.blocks_total);
            prop_assert!(stats.cached_tokens + stats.restored_tokens <= stats.asked_tokens);
            prop_assert!(stats.restored_tokens <= stats.looked_up_tokens);
            prop_assert!(stats.accepted_tokens <= stats.draft_tokens);
            prop_assert!(stats.draft_tokens <= stats.drafts * u64::from(draft_tokens));
        }
        let mut turns = 0;
        for stalled in [true, false] {
            if !stalled { bench.paused.clear(); }
            while bench.turn() {
                turns += 1;
                prop_assert!(turns < 20_000, "it never ends");
            }
            // Slots are not taken away from a stalled reader, everything else is.
            let stats = bench.scheduler.stats();
            prop_assert!(stats.waiting == 0 || stats.paused > 0);
            prop_assert_eq!(stats.running, stats.paused);
        }
        bench.settle();
        if let Some(beside) = &bench.beside {
            let step = bench.scheduler.config().step_tokens.div_ceil(4) as usize;
            prop_assert!(beside.most_put <= step + usize::from(slots));
        }
        prop_assert!(bench.scheduler.is_idle());
        let stats = bench.scheduler.stats();
        prop_assert_eq!((stats.running, stats.waiting, stats.blocks_used), (0, 0, 0));
        let known = taken.keys().filter_map(|id| bench.known_of(*id)).map(u64::from).sum::<u64>();
        let found = stats.cached_tokens + stats.restored_tokens;
        prop_assert!(known <= found);
        if taken.values().all(|(_, cancelled)| !cancelled) {
            prop_assert_eq!(known, found);
            prop_assert!(stats.prompt_tokens + known >= stats.asked_tokens);
        }
        for (id, (request, cancelled)) in &taken {
            let known = bench.known_of(*id).unwrap_or(0);
            prop_assert!(known < request.prompt.len() as u32);
            let (tokens, reason, sampled) = alone_with(&text, request, capacity);
            if *cancelled {
                let said = bench.tokens_of(*id);
                prop_assert_eq!(&said[..], &tokens[..said.len()]);
                prop_assert_eq!(bench.end_of(*id), None);
            } else {
                prop_assert_eq!(bench.tokens_of(*id), tokens);
                prop_assert_eq!(bench.end_of(*id), Some((reason, sampled)));
            }
        }
    }
}

#[test]
fn a_full_pool_makes_the_last_comer_start_again_and_loses_nothing() {
    let config = Config { max_waiting: 8, step_tokens: 64, steps_ahead: 1, ..Config::default() };
    let mut bench = Bench::new(limits(10, 4), config);
    let mut requests = Vec::new();
    for id in 0..4 {
        // Without a stop token all of them grow to their limit and do not fit together.
        let mut request = request("m", vec![3, id as u32 + 1], 30, id);
        request.stop_tokens = [].into();
        bench.scheduler.admit(vec![(RequestId(id), request.clone())]).unwrap();
        requests.push(request);
    }
    while bench.turn() {}
    assert!(bench.scheduler.stats().preemptions > 0);
    for (id, request) in requests.iter().enumerate() {
        let mut tokens = request.prompt.clone();
        for _ in 0..30 {
            tokens.push(hashed(VOCAB)(&tokens, &request.sampling));
        }
        assert_eq!(bench.tokens_of(RequestId(id as u64)), tokens[2..]);
    }
}

#[test]
fn a_long_prompt_is_read_in_chunks_while_others_decode() {
    let config = Config { max_waiting: 8, step_tokens: 8, steps_ahead: 0, ..Config::default() };
    let mut bench = Bench::new(limits(40, 2), config);
    let mut first = request("m", vec![1], 40, 7);
    first.stop_tokens = [].into();
    bench.scheduler.admit(vec![(RequestId(0), first)]).unwrap();
    bench.turn();
    bench.scheduler.admit(vec![(RequestId(1), request("n", vec![2; 50], 1, 7))]).unwrap();
    let before = bench.tokens_of(RequestId(0)).len();
    let mut turns = 0;
    while bench.end_of(RequestId(1)).is_none() {
        bench.turn();
        turns += 1;
        assert_eq!(bench.tokens_of(RequestId(0)).len(), before + turns);
        assert!(bench.batch.inputs.len() <= 8);
    }
    assert_eq!(turns, 50usize.div_ceil(7));
}

#[test]
fn judged_prompts_deliver_one_logprob_for_each_token_after_the_first() {
    for max_tokens in [0, 2] {
        let config = Config { max_waiting: 8, step_tokens: 9, steps_ahead: 1, ..Config::default() };
        let mut bench = Bench::new(limits(40, 2), config);
        let prompt: Vec<u32> = (0..45).map(|token| token % VOCAB).collect();
        let mut judged = request("m", prompt.clone(), max_tokens, 7);
        judged.prompt_logprobs = Some(2);
        bench.scheduler.admit(vec![(RequestId(0), judged)]).unwrap();
        while bench.turn() {
            let samples = |row: &OutputRow| matches!(row.want, Want::Sample(_));
            assert!(max_tokens > 0 || !bench.batch.outputs.iter().any(samples));
        }
        let judged: Vec<u32> = bench.said[&RequestId(0)]
            .iter()
            .filter_map(|event| match event {
                Event::Prompt(list) => Some(list),
                _ => None,
            })
            .flatten()
            .map(|judged| {
                assert_eq!(judged.top.len(), 2);
                judged.token.0
            })
            .collect();
        assert_eq!(judged, prompt[1..]);
        assert!(bench.end_of(RequestId(0)).is_some());
        assert!(bench.scheduler.is_idle());
    }
}

#[test]
fn many_judged_prompts_share_the_rows_of_one_step() {
    let config = Config { max_waiting: 8, step_tokens: 200, steps_ahead: 0, ..Config::default() };
    let mut bench = Bench::new(limits(60, 4), config);
    for id in 0..4 {
        let mut judged = request("m", vec![1; 50], 0, 7);
        judged.prompt_logprobs = Some(0);
        bench.scheduler.admit(vec![(RequestId(id), judged)]).unwrap();
    }
    while bench.turn() {
        assert!(bench.batch.outputs.len() <= 32, "{}", bench.batch.outputs.len());
    }
    assert!((0..4).all(|id| bench.end_of(RequestId(id)).is_some()));
}

#[test]
fn what_cannot_run_is_refused_before_it_waits() {
    let mut scheduler = Scheduler::new(limits(4, 2), Config::default()).unwrap();
    let mut refused = |request: Request| {
        scheduler.admit(vec![(RequestId(0), request)]).expect_err("it must be refused")
    };
    assert_eq!(refused(request("m", vec![], 1, 0)), Refusal::EmptyPrompt);
    assert_eq!(
        refused(request("m", vec![1; 16], 1, 0)),
        Refusal::TooLong { prompt: 16, capacity: 16 }
    );
    assert_eq!(
        refused(request("m", vec![VOCAB], 1, 0)),
        Refusal::UnknownToken { token: VOCAB, vocab: VOCAB }
    );
    assert_eq!(refused(request("m", vec![1], 0, 0)), Refusal::NothingAsked);
    assert!(matches!(
        Scheduler::new(limits(0, 2), Config::default()),
        Err(SchedulerError::NoRoom { what: "KV blocks" })
    ));
}

#[test]
fn a_group_is_taken_whole_or_not_at_all() {
    let config = Config { max_waiting: 5, ..Config::default() };
    let mut scheduler = Scheduler::new(limits(40, 2), config).unwrap();
    let group = |first: u64, count: u64| {
        (first..first + count)
            .map(|id| (RequestId(id), request("m", vec![1], 1, id)))
            .collect::<Vec<_>>()
    };
    scheduler.admit(group(0, 2)).unwrap();
    assert_eq!(scheduler.admit(group(2, 2)), Err(Refusal::ShareFull { waiting: 2 }));
    assert_eq!(scheduler.admit(group(2, 4)), Err(Refusal::QueueFull { waiting: 2 }));
    assert_eq!(scheduler.stats().waiting, 2);
}

#[test]
fn a_question_is_answered_beside_a_member_whose_books_fill_slots_and_blocks() {
    for steps_ahead in [0, 1] {
        let config = Config { steps_ahead, ..Config::default() };
        let mut bench = Bench::new(limits(18, 4), config);
        let capacity = bench.scheduler.capacity();
        let mut asked = Vec::new();
        for id in 0..6 {
            let mut book = request("busy", vec![1, 2, id as u32 + 3], 60, id);
            book.stop_tokens = [].into();
            bench.scheduler.admit(vec![(RequestId(id), book.clone())]).unwrap();
            asked.push(book);
        }
        while bench.scheduler.stats().blocks_used < 17 {
            assert!(bench.turn());
        }
        for id in 6..12 {
            let question = request("quiet", vec![4; 12], 3, id);
            bench.scheduler.admit(vec![(RequestId(id), question.clone())]).unwrap();
            asked.push(question);
            let mut turns = 0;
            while bench.end_of(RequestId(id)).is_none() {
                bench.turn();
                turns += 1;
            }
            assert!(turns <= 6, "{turns}");
        }
        assert!((0..6).any(|id| bench.end_of(RequestId(id)).is_none()));
        while bench.turn() {}
        for (id, request) in asked.iter().enumerate() {
            let mut expected = request.prompt.clone();
            let limit = request.max_tokens.min(capacity - expected.len() as u32);
            for _ in 0..limit {
                expected.push(hashed(VOCAB)(&expected, &request.sampling));
            }
            let stop = match request.stop_tokens.is_empty() {
                true => None,
                false => expected.iter().skip(request.prompt.len()).position(|t| *t == STOP),
            };
            let expected = &expected[request.prompt.len()..];
            assert_eq!(
                bench.tokens_of(RequestId(id as u64)),
                expected[..stop.unwrap_or(expected.len())]
            );
        }
    }
}

#[test]
fn a_member_without_a_slot_gets_one_of_a_member_with_several_and_nothing_is_lost() {
    for steps_ahead in [0, 1] {
        let config = Config { steps_ahead, ..Config::default() };
        let mut bench = Bench::new(limits(60, 3), config);
        let mut asked = Vec::new();
        let ask = |bench: &mut Bench, asked: &mut Vec<Request>, member: &str, length| {
            let id = asked.len() as u32;
            let mut request = request(member, vec![1, id + 2, 3], length, id.into());
            request.stop_tokens = [].into();
            bench.scheduler.admit(vec![(RequestId(id.into()), request.clone())]).unwrap();
            asked.push(request);
        };
        for _ in 0..4 {
            ask(&mut bench, &mut asked, "busy", 40);
        }
        for _ in 0..9 {
            bench.turn();
        }
        // The last slot was kept for the first of them, the second takes one of the two others.
        for quiet in ["ada", "bob"] {
            ask(&mut bench, &mut asked, quiet, 9);
        }
        let mut turns = 0;
        while (4..6).any(|id| bench.end_of(RequestId(id)).is_none()) {
            bench.turn();
            turns += 1;
            assert!(turns < 16, "they wait for whole answers");
        }
        assert_eq!(bench.scheduler.stats().slots_given_up, 1);
        assert!((0..4).all(|id| bench.end_of(RequestId(id)).is_none()));
        while bench.turn() {}
        for (id, request) in asked.iter().enumerate() {
            let id = RequestId(id as u64);
            let mut tokens = request.prompt.clone();
            for _ in 0..request.max_tokens {
                tokens.push(hashed(VOCAB)(&tokens, &request.sampling));
            }
            assert_eq!(bench.tokens_of(id), tokens[3..], "{}", id.0);
            assert_eq!(bench.end_of(id), Some((FinishReason::Length, request.max_tokens)));
        }
    }
}

#[test]
fn a_question_is_read_before_the_rest_of_somebodys_book() {
    let config = Config { step_tokens: 8, ..Config::default() };
    let mut bench = Bench::new(limits(60, 4), config);
    bench.scheduler.admit(vec![(RequestId(0), request("busy", vec![1; 60], 1, 0))]).unwrap();
    bench.scheduler.admit(vec![(RequestId(1), request("busy", vec![2; 60], 1, 0))]).unwrap();
    bench.turn();
    bench.scheduler.admit(vec![(RequestId(2), request("quiet", vec![3; 24], 1, 0))]).unwrap();
    for _ in 0..3 {
        assert!(bench.end_of(RequestId(2)).is_none());
        bench.turn();
    }
    assert!(bench.end_of(RequestId(2)).is_some());
}

#[test]
fn a_step_with_long_histories_has_fewer_tokens() {
    let cost = Cost { read_slope: 0.5, decode_slope: 0.0 };
    let config = Config { step_tokens: 20, cost, ..Config::default() };
    let mut bench = Bench::new(limits(60, 4), config);
    bench.scheduler.admit(vec![(RequestId(0), request("m", vec![1; 60], 1, 0))]).unwrap();
    let mut read = Vec::new();
    while bench.turn() {
        read.push(bench.batch.inputs.len());
    }
    assert_eq!(read.iter().sum::<usize>(), 60);
    assert_eq!(read[..3], [7, 3, 3]);
    assert_eq!(read.last(), Some(&1));
}

#[test]
fn a_stalled_reader_pauses_its_own_sequence_and_loses_its_blocks_to_others() {
    for steps_ahead in [0, 1] {
        let config = Config { steps_ahead, ..Config::default() };
        let mut bench = Bench::new(limits(16, 4), config);
        let ask = |bench: &mut Bench, id: u64| {
            let mut request = request(&format!("m{id}"), vec![id as u32 + 1; 9], 50, id);
            request.stop_tokens = [].into();
            bench.scheduler.admit(vec![(RequestId(id), request.clone())]).unwrap();
            request
        };
        let stalled = ask(&mut bench, 0);
        while bench.tokens_of(RequestId(0)).len() < 40 {
            bench.turn();
        }
        bench.paused.insert(RequestId(0));
        while bench.turn() {}
        let said = bench.tokens_of(RequestId(0)).len();
        assert!(said <= 41 && bench.scheduler.stats().blocks_used >= 12);
        // It keeps its blocks while nobody needs them.
        let reading = ask(&mut bench, 1);
        while bench.turn() {}
        assert!(bench.end_of(RequestId(1)).is_some());
        assert_eq!(bench.tokens_of(RequestId(0)).len(), said);
        assert!(bench.scheduler.stats().preemptions > 0);
        bench.paused.clear();
        while bench.turn() {}
        for (id, request) in [(0, &stalled), (1, &reading)] {
            let mut tokens = request.prompt.clone();
            for _ in 0..50 {
                tokens.push(hashed(VOCAB)(&tokens, &request.sampling));
            }
            assert_eq!(bench.tokens_of(RequestId(id)), tokens[9..]);
        }
    }
}

#[test]
fn a_sequence_whose_logits_are_no_numbers_ends_by_itself_and_others_go_on() {
    for steps_ahead in [0, 1] {
        let config = Config { max_waiting: 8, step_tokens: 64, steps_ahead, ..Config::default() };
        let mut bench = Bench::new(limits(40, 4), config);
        let usual = hashed(VOCAB);
        // Whoever begins with a 7 and is six tokens long.
        bench.backend = FakeBackend::with(
            limits(40, 4),
            Box::new(move |tokens, sampling| match tokens[0] == TokenId(7) {
                true if tokens.len() >= 6 => TokenId(VOCAB),
                true => TokenId(1),
                false => usual(tokens, sampling),
            }),
        );
        let healthy = request("m", vec![1, 2], 20, 3);
        bench.scheduler.admit(vec![(RequestId(0), healthy.clone())]).unwrap();
        bench.scheduler.admit(vec![(RequestId(1), request("m", vec![7; 3], 20, 3))]).unwrap();
        let mut judged = request("m", vec![7; 9], 0, 3);
        judged.prompt_logprobs = Some(1);
        bench.scheduler.admit(vec![(RequestId(2), judged)]).unwrap();
        while bench.turn() {}
        assert!(bench.scheduler.is_idle());
        let (tokens, reason, sampled) = alone(&healthy, bench.scheduler.capacity());
        assert_eq!(bench.tokens_of(RequestId(0)), tokens);
        assert_eq!(bench.end_of(RequestId(0)), Some((reason, sampled)));
        assert_eq!(bench.tokens_of(RequestId(1)), [TokenId(1); 3]);
        for broken in [1, 2] {
            assert_eq!(bench.said[&RequestId(broken)].last(), Some(&Event::Unusable));
            let ends = |event: &&Event| **event == Event::Unusable;
            assert_eq!(bench.said[&RequestId(broken)].iter().filter(ends).count(), 1);
        }
    }
}

/// Runs one request to its end: what it said, and how much of its prompt did not have to be read.
fn run(bench: &mut Bench, id: u64, request: Request) -> (Vec<TokenId>, u32) {
    let id = RequestId(id);
    bench.scheduler.admit(vec![(id, request)]).unwrap();
    while bench.turn() {}
    bench.settle();
    assert!(bench.end_of(id).is_some());
    (bench.tokens_of(id), bench.known_of(id).unwrap())
}

#[test]
fn a_second_turn_reads_what_is_new_and_another_member_reads_everything() {
    let mut bench = Bench::new(limits(60, 4), Config::default());
    let capacity = bench.scheduler.capacity();
    let prompt: Vec<u32> = (1..31).collect::<Vec<u32>>().iter().map(|t| t % VOCAB).collect();
    let first = request("ada", prompt.clone(), 7, 1);
    let (said, cached) = run(&mut bench, 1, first);
    assert_eq!(cached, 0);
    // What was said belongs to what was read.
    let mut longer = prompt.clone();
    longer.extend(said.iter().map(|token| token.0));
    longer.extend([5, 6, 7]);
    let second = request("ada", longer.clone(), 5, 2);
    let (again, cached) = run(&mut bench, 2, second.clone());
    assert_eq!(again, alone(&second, capacity).0);
    let whole = (prompt.len() + said.len() - 1) as u32 / 4 * 4;
    assert!(cached >= whole.min(28) && cached.is_multiple_of(4), "{cached} of {whole}");
    let other = request("bob", longer, 5, 2);
    assert_eq!(run(&mut bench, 3, other), (again, 0));
    let stats = bench.scheduler.stats();
    assert_eq!(stats.cached_tokens, u64::from(cached));
    assert!(stats.blocks_used == 0 && stats.blocks_kept > 0);
}

#[test]
fn what_is_common_or_trusted_is_read_once_for_all() {
    let text: Vec<u32> = (0..32).map(|at| (at * 5 + 1) % VOCAB).collect();
    let mut bench = Bench::new(limits(60, 4), Config::default());
    let common: Vec<TokenId> = text[..18].iter().copied().map(TokenId).collect();
    bench.scheduler.share_beginnings(std::slice::from_ref(&common));
    assert_eq!(run(&mut bench, 1, request("ada", text.clone(), 2, 0)).1, 0);
    assert_eq!(run(&mut bench, 2, request("bob", text.clone(), 2, 0)).1, 16);
    assert_eq!(run(&mut bench, 3, request("ada", text.clone(), 2, 0)).1, 28);
    let trusting = |name: &str| {
        let mut request = request(name, [&[9, 9], &text[..]].concat(), 2, 0);
        request.claim.trusting = true;
        request
    };
    assert_eq!(run(&mut bench, 4, trusting("ada")).1, 0);
    assert_eq!(run(&mut bench, 5, trusting("bob")).1, 32);
    let wary = Request { claim: Claim::default(), ..trusting("cyd") };
    assert_eq!(run(&mut bench, 6, wary).1, 0);
}

#[test]
fn what_is_kept_makes_room_for_what_is_asked_oldest_first() {
    let mut bench = Bench::new(limits(16, 2), Config::default());
    let text = |n: u32| -> Vec<u32> { (0..24).map(|at| (at * n + 1) % VOCAB).collect() };
    for n in 1..6 {
        assert_eq!(run(&mut bench, n.into(), request("ada", text(n), 2, 0)).1, 0);
    }
    assert!(bench.scheduler.stats().evictions > 0);
    // The last one is there still, the first one is not.
    assert_eq!(run(&mut bench, 10, request("ada", text(5), 2, 0)).1, 20);
    assert_eq!(run(&mut bench, 11, request("ada", text(1), 2, 0)).1, 0);
}

#[test]
fn several_that_begin_alike_and_come_together_read_their_beginning_once() {
    let config = Config { step_tokens: 16, ..Config::default() };
    let mut bench = Bench::new(limits(100, 8), config);
    let capacity = bench.scheduler.capacity();
    let text: Vec<u32> = (0..40).map(|at| (at * 7 + 2) % VOCAB).collect();
    let requests: Vec<Request> =
        (0..5).map(|n| request("ada", [&text[..], &[n]].concat(), 6, n.into())).collect();
    let other = request("bob", vec![1, 2, 3], 3, 9);
    let numbered = |(n, request): (usize, &Request)| (RequestId(n as u64), request.clone());
    bench.scheduler.admit(requests.iter().enumerate().map(numbered).collect()).unwrap();
    bench.scheduler.admit(vec![(RequestId(9), other)]).unwrap();
    bench.turn();
    // Nobody else waits for that.
    assert_eq!(bench.scheduler.stats().running, 2);
    while bench.turn() {}
    for (n, request) in requests.iter().enumerate() {
        assert_eq!(bench.tokens_of(RequestId(n as u64)), alone(request, capacity).0);
    }
    let stats = bench.scheduler.stats();
    assert_eq!((stats.cached_tokens, stats.asked_tokens), (4 * 40, 5 * 41 + 3));
}

#[test]
fn a_grammar_that_is_stuck_ends_its_own_sequence_and_says_why() {
    for steps_ahead in [0, 1] {
        let config = Config { steps_ahead, ..Config::default() };
        let mut bench = Bench::new(limits(40, 4), config);
        let healthy = request("m", vec![1, 2], 20, 3);
        let mut stuck = request("m", vec![5, 6], 20, 3);
        stuck.stop_tokens = [].into();
        stuck.grammar = Some(Sums::grammar(4, Next::Stuck("no more".into())));
        bench.scheduler.admit(vec![(RequestId(0), healthy.clone())]).unwrap();
        bench.scheduler.admit(vec![(RequestId(1), stuck)]).unwrap();
        while bench.turn() {}
        assert!(bench.scheduler.is_idle());
        let (tokens, reason, sampled) = alone(&healthy, bench.scheduler.capacity());
        assert_eq!(bench.tokens_of(RequestId(0)), tokens);
        assert_eq!(bench.end_of(RequestId(0)), Some((reason, sampled)));
        assert_eq!(bench.tokens_of(RequestId(1)).len(), 4);
        assert_eq!(bench.said[&RequestId(1)].last(), Some(&Event::Stuck("no more".into())));
    }
}

#[test]
fn a_sequence_that_read_what_was_there_already_can_still_fill_the_whole_pool() {
    let mut bench = Bench::new(limits(6, 1), Config::default());
    let mut whole = request("m", vec![6, 8, 10, 12], 20, 5);
    whole.stop_tokens = [].into();
    // A prompt of one block is read again, because what follows its last token is asked for.
    assert_eq!(run(&mut bench, 0, Request { max_tokens: 1, ..whole.clone() }).1, 0);
    assert_eq!(bench.scheduler.stats().blocks_kept, 1);
    assert_eq!(run(&mut bench, 1, whole).0.len(), 20);
    assert_eq!(bench.scheduler.stats().preemptions, 0);
}

#[test]
fn a_second_turn_after_a_restart_restores_what_was_read_and_says_the_same() {
    for steps_ahead in [0, 1] {
        let config = Config { steps_ahead, ..Config::default() };
        let mut bench = Bench::beside(limits(60, 4), config, 0);
        let capacity = bench.scheduler.capacity();
        let prompt: Vec<u32> = (1..31).map(|token| token % VOCAB).collect();
        let mut first = request("ada", prompt.clone(), 9, 1);
        first.stop_tokens = [].into();
        let (said, _) = run(&mut bench, 1, first);
        bench.restart(limits(60, 4), config);
        let longer = [&prompt[..], &said.iter().map(|token| token.0).collect::<Vec<_>>()].concat();
        let second = request("ada", [&longer[..], &[5, 6]].concat(), 5, 2);
        // 30 tokens and 9 are 38 positions with KV, nine whole blocks; the last answer's token has none.
        assert_eq!(run(&mut bench, 2, second.clone()), (alone(&second, capacity).0, 36));
        let stats = bench.scheduler.stats();
        assert_eq!(
            (stats.restored_tokens, stats.looked_up_tokens, stats.cached_tokens),
            (36, 41, 0)
        );
        assert_eq!(stats.prompt_tokens, 5);
        // From the device now, and nobody else's.
        assert_eq!(run(&mut bench, 3, second.clone()).1, 40);
        let other = request("bob", second.prompt.iter().map(|token| token.0).collect(), 5, 2);
        assert_eq!(run(&mut bench, 4, other), (alone(&second, capacity).0, 0));
        assert_eq!(bench.scheduler.stats().restored_tokens, 36);
    }
}

#[test]
fn what_was_given_up_on_the_device_comes_back_also_for_a_sequence_that_lost_its_blocks() {
    let mut bench = Bench::beside(limits(16, 2), Config::default(), 0);
    let text = |n: u32| -> Vec<u32> { (0..24).map(|at| (at * n + 1) % VOCAB).collect() };
    for n in 1..6 {
        assert_eq!(run(&mut bench, n.into(), request("ada", text(n), 2, 0)).1, 0);
    }
    assert!(bench.scheduler.stats().evictions > 0);
    assert_eq!(run(&mut bench, 11, request("ada", text(1), 2, 0)).1, 20);

    // Four that do not fit together: who gives up their blocks reads little again.
    let mut read = Vec::new();
    for mut bench in [
        Bench::new(limits(12, 4), Config::default()),
        Bench::beside(limits(12, 4), Config::default(), 0),
    ] {
        for id in 0..4 {
            let mut request = request("m", vec![3, id as u32 + 1], 40, id);
            request.stop_tokens = [].into();
            bench.scheduler.admit(vec![(RequestId(id), request)]).unwrap();
        }
        while bench.turn() {}
        assert!(bench.scheduler.stats().preemptions > 0);
        assert!((0..4).all(|id| bench.tokens_of(RequestId(id)).len() == 40));
        read.push(bench.scheduler.stats().prompt_tokens);
    }
    assert!(2 * read[1] < read[0], "{read:?}");
}

#[test]
fn a_beginning_that_the_tiers_lost_is_offered_again_while_the_device_has_it() {
    let mut bench = Bench::beside(limits(60, 2), Config::default(), 0);
    let text: Vec<u32> = (0..32).map(|at| (at * 5 + 1) % VOCAB).collect();
    let common: Vec<TokenId> = text[..18].iter().copied().map(TokenId).collect();
    bench.scheduler.share_beginnings(std::slice::from_ref(&common));
    run(&mut bench, 1, request("ada", text.clone(), 1, 0));
    let kept = |bench: &Bench| bench.beside.as_ref().unwrap().kept();
    assert_eq!(kept(&bench), 8);
    // What is common on the device is everybody's own beside it.
    assert_eq!(run(&mut bench, 2, request("bob", text.clone(), 1, 0)).1, 16);
    assert_eq!(kept(&bench), 16);
    bench.beside.as_mut().unwrap().forget(&MemberId::new("ada"));
    assert_eq!(kept(&bench), 8);
    assert_eq!(run(&mut bench, 3, request("ada", text, 1, 0)).1, 28);
    assert_eq!(kept(&bench), 16);
}

#[test]
fn a_long_text_that_the_tiers_lost_is_put_there_again_a_few_blocks_at_a_time() {
    let config = Config { step_tokens: 8, ..Config::default() };
    let mut bench = Bench::beside(limits(40, 2), config, 0);
    let text: Vec<u32> = (0..60).map(|at| (at * 5 + 1) % VOCAB).collect();
    run(&mut bench, 1, request("ada", text.clone(), 1, 0));
    bench.beside.as_mut().unwrap().forget(&MemberId::new("ada"));
    let kept = |bench: &Bench| bench.beside.as_ref().unwrap().kept();
    let ask = |bench: &mut Bench, id| {
        let request = request("ada", text.clone(), 1, 0);
        bench.scheduler.admit(vec![(RequestId(id), request)]).unwrap();
    };
    ask(&mut bench, 2);
    while bench.end_of(RequestId(2)).is_none() {
        bench.turn();
    }
    // Two blocks that a step fills, and one for each slot.
    assert_eq!((kept(&bench), bench.beside.as_ref().unwrap().most_put), (4, 4));
    // Whoever asks again meanwhile offers nothing twice.
    ask(&mut bench, 3);
    bench.scheduler.plan_step(&mut bench.batch);
    let (mut all, mut some) = (Vec::new(), Vec::new());
    while bench.scheduler.has_puts() {
        bench.scheduler.put_work(&mut some);
        assert!(some.len() <= 4);
        all.extend(some.drain(..).map(|put| put.block));
    }
    assert_eq!((all.len(), all.iter().collect::<BTreeSet<_>>().len()), (11, 11));
}

#[test]
fn what_the_device_gave_up_before_it_was_put_is_not_put() {
    let config = Config { step_tokens: 8, ..Config::default() };
    let mut bench = Bench::beside(limits(16, 2), config, 0);
    let text: Vec<u32> = (0..56).map(|at| (at * 5 + 1) % VOCAB).collect();
    let mut asked = request("ada", text, 5, 0);
    asked.stop_tokens = [].into();
    run(&mut bench, 1, asked.clone());
    bench.beside.as_mut().unwrap().forget(&MemberId::new("ada"));
    bench.scheduler.admit(vec![(RequestId(2), asked)]).unwrap();
    bench.turn();
    assert!(bench.scheduler.has_puts() && bench.scheduler.cancel(RequestId(2)));
    // Whoever has these blocks now reads into them at once.
    run(&mut bench, 3, request("bob", vec![7; 60], 1, 0));
    assert!(bench.scheduler.stats().evictions > 0);
    assert!(bench.beside.as_ref().unwrap().kept() < 14 + 15);
}

#[test]
fn a_member_who_was_forgotten_is_read_again_and_what_ran_meanwhile_leaves_nothing() {
    for (trusting, steps_ahead) in [(false, 0), (true, 0), (false, 1), (true, 1)] {
        let config = Config { steps_ahead, ..Config::default() };
        let mut bench = Bench::beside(limits(60, 4), config, 0);
        let capacity = bench.scheduler.capacity();
        let text: Vec<u32> = (0..32).map(|at| (at * 5 + 1) % VOCAB).collect();
        let ask = |name: &str, more: u32| {
            let mut request = request(name, [&text[..], &[more]].concat(), 12, 0);
            request.claim.trusting = trusting;
            request.stop_tokens = [].into();
            request
        };
        run(&mut bench, 1, ask("bob", 1));
        run(&mut bench, 2, ask("ada", 1));
        bench.scheduler.admit(vec![(RequestId(3), ask("ada", 2))]).unwrap();
        (0..4).for_each(|_| assert!(bench.turn()));
        let ada = MemberId::new("ada");
        bench.beside.as_mut().unwrap().forget(&ada);
        bench.scheduler.forget(&ada);
        while bench.turn() {}
        assert_eq!(bench.tokens_of(RequestId(3)), {
            let mut tokens: Vec<TokenId> = ask("ada", 2).prompt;
            (0..12).for_each(|_| tokens.push(hashed(VOCAB)(&tokens, &ask("ada", 2).sampling)));
            tokens[33..].to_vec()
        });
        // What others trust each other with went too; what is a member's own did not.
        let bobs = if trusting { 0 } else { 11 };
        assert_eq!(bench.beside.as_ref().unwrap().kept(), bobs);
        assert_eq!(run(&mut bench, 4, ask("ada", 2)).1, 0);
        assert_eq!(run(&mut bench, 5, ask("ada", 2)).1, 32, "from then on as ever");
        assert_eq!(run(&mut bench, 6, ask("bob", 1)).1, 32);
        let stats = bench.scheduler.stats();
        assert!(stats.blocks_used == 0 && stats.blocks_kept <= 60 && capacity > 40);
    }
}

#[test]
fn what_comes_back_counts_also_for_a_sequence_that_lost_its_blocks_while_it_waited() {
    let text: Vec<u32> = (0..40).map(|at| (at * 7 + 2) % VOCAB).collect();
    let mut bench = Bench::beside(limits(16, 4), Config::default(), 0);
    run(&mut bench, 1, request("ada", text.clone(), 1, 0));
    bench.restart(limits(16, 4), Config::default());
    let mut other = request("bob", vec![1, 2], 40, 0);
    other.stop_tokens = [].into();
    bench.scheduler.admit(vec![(RequestId(2), other)]).unwrap();
    bench.turn();
    let again = request("ada", [&text[..], &[5]].concat(), 2, 0);
    bench.scheduler.admit(vec![(RequestId(3), again.clone())]).unwrap();
    bench.beside.as_mut().unwrap().hold = true;
    while bench.scheduler.stats().preemptions == 0 {
        assert!(bench.turn());
    }
    assert_eq!((bench.known_of(RequestId(3)), bench.scheduler.stats().restored_tokens), (None, 0));
    bench.beside.as_mut().unwrap().hold = false;
    while bench.turn() {}
    assert_eq!(bench.tokens_of(RequestId(3)), alone(&again, bench.scheduler.capacity()).0);
    assert_eq!(bench.known_of(RequestId(3)), Some(40));
    let stats = bench.scheduler.stats();
    assert_eq!((stats.restored_tokens, stats.looked_up_tokens), (40, 41));
}

#[test]
fn what_a_sequence_has_read_itself_is_nothing_that_was_known() {
    // Both do not fit: who gives up their blocks finds some of them again.
    let mut bench = Bench::new(limits(12, 2), Config { step_tokens: 16, ..Config::default() });
    for id in 0..2 {
        let mut request = request(&format!("m{id}"), vec![id as u32 + 1; 20], 24, id);
        request.stop_tokens = [].into();
        bench.scheduler.admit(vec![(RequestId(id), request)]).unwrap();
    }
    while bench.turn() {}
    assert!(bench.scheduler.stats().preemptions > 0);
    assert_eq!([0, 1].map(|id| bench.known_of(RequestId(id))), [Some(0); 2]);
    assert_eq!(bench.scheduler.stats().cached_tokens, 0);
}

#[test]
fn whoever_begins_alike_waits_for_what_comes_back_and_a_read_that_hangs_is_given_up() {
    let text: Vec<u32> = (0..40).map(|at| (at * 7 + 2) % VOCAB).collect();
    for hangs in [false, true] {
        let mut bench = Bench::beside(limits(100, 8), Config::default(), 0);
        run(&mut bench, 1, request("ada", text.clone(), 1, 0));
        bench.restart(limits(100, 8), Config::default());
        for n in 0..3 {
            let prompt = [&text[..], &[n]].concat();
            let asked = request("ada", prompt, 2, 0);
            bench.scheduler.admit(vec![(RequestId(10 + u64::from(n)), asked)]).unwrap();
        }
        assert!(!bench.scheduler.plan_step(&mut bench.batch));
        let stats = bench.scheduler.stats();
        assert_eq!((stats.running, stats.restoring, stats.waiting), (1, 1, 2));
        if hangs {
            let mut work = Vec::new();
            bench.scheduler.restore_work(&mut work);
            assert_eq!(work[0].blocks.len(), 10);
            // The first three came, the fifth too, and then nothing does.
            for at in [0, 2, 1, 4] {
                let block = bench.scheduler.place_of(work[0].id, at).unwrap();
                let bytes: Vec<u8> =
                    text[4 * at..4 * at + 4].iter().map(|token| *token as u8 + 1).collect();
                bench.backend.import_block(block, &bytes).unwrap();
                bench.scheduler.restored(work[0].id, at);
            }
            bench.scheduler.stop_restoring(work[0].id);
        }
        while bench.turn() {}
        assert_eq!(bench.scheduler.stats().restored_tokens, if hangs { 12 } else { 40 });
        assert_eq!(bench.scheduler.stats().cached_tokens, 80);
        for n in 0..3 {
            let asked = request("ada", [&text[..], &[n]].concat(), 2, 0);
            assert_eq!(
                bench.tokens_of(RequestId(10 + u64::from(n))),
                alone(&asked, bench.scheduler.capacity()).0
            );
        }
    }
}
