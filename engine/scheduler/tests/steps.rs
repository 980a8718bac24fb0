//! What goes into a step, who runs and who waits.

#![allow(clippy::unwrap_used)] // Helpers outside test functions unwrap too.

mod common;

use common::bench::Bench;
use common::{STOP, Sums, VOCAB, alone, limits, request};
use polder_backend::{Limits, OutputRow, TokenId, Want};
use polder_scheduler::fake::{FakeBackend, hashed};
use polder_scheduler::{
    Config, Cost, Event, FinishReason, Next, Refusal, Request, RequestId, Scheduler, SchedulerError,
};

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

/// A pool for texts of up to 640 tokens: 40 are short, and long ones leave 80 to short ones.
fn pool_of_640() -> (Limits, Config) {
    let limits = Limits { context: 640, ..limits(160, 8) };
    (limits, Config { max_waiting: 64, steps_ahead: 1, ..Config::default() })
}

fn endless(member: &str, prompt: usize, max_tokens: u32, seed: u64) -> Request {
    let mut request = request(member, vec![3; prompt], max_tokens, seed);
    request.stop_tokens = [].into();
    request
}

#[test]
fn a_short_question_is_answered_while_a_long_text_waits_for_room() {
    let (limits, config) = pool_of_640();
    let mut bench = Bench::new(limits, config);
    for (id, member) in ["ada", "bob", "eve"].into_iter().enumerate() {
        let long = endless(member, 240, 60, id as u64);
        bench.scheduler.admit(vec![(RequestId(id as u64), long)]).unwrap();
    }
    for _ in 0..20 {
        bench.turn();
    }
    assert_eq!((bench.scheduler.stats().running, bench.scheduler.stats().waiting), (2, 1));
    // Whoever chats has nothing, as eve has not, and came after her.
    for id in 10..20 {
        let short = endless("cat", 9, 3, id);
        bench.scheduler.admit(vec![(RequestId(id), short)]).unwrap();
        while bench.end_of(RequestId(id)).is_none() {
            assert!(bench.turn());
        }
        assert!((0..3).all(|long| bench.end_of(RequestId(long)).is_none()), "they end first");
    }
    // Nobody is thrown out for it, and she has room as soon as one of the two ends.
    assert_eq!(bench.scheduler.stats().preemptions, 0);
    while bench.turn() {}
    assert!((0..3).all(|long| bench.end_of(RequestId(long)).is_some()));
}

#[test]
fn a_text_that_fills_the_pool_is_not_passed_for_ever() {
    let (limits, config) = pool_of_640();
    let mut bench = Bench::new(limits, config);
    let mut next = 1;
    let mut chats: Vec<u64> = Vec::new();
    while bench.end_of(RequestId(0)).is_none() {
        assert!(next < 200, "{next} short ones went past");
        chats.retain(|id| bench.end_of(RequestId(*id)).is_none());
        // Some are always there, each of a member who has had nothing.
        while chats.len() < 3 {
            let short = endless(&format!("chat {next}"), 9, 5 + next as u32 % 4, next);
            bench.scheduler.admit(vec![(RequestId(next), short)]).unwrap();
            chats.push(next);
            next += 1;
        }
        if next == 4 {
            let long = endless("ada", 620, 2, 0);
            bench.scheduler.admit(vec![(RequestId(0), long)]).unwrap();
        }
        bench.turn();
    }
    assert!(next > 40, "only {next} short ones went past");
}
