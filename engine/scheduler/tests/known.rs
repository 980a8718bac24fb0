//! What was read once and need not be read again: on the device, and in tiers beside it.

#![allow(clippy::unwrap_used)] // Helpers outside test functions unwrap too.

mod common;

use std::collections::BTreeSet;

use common::bench::{Bench, run};
use common::{VOCAB, alone, limits, request};
use polder_backend::{Backend, TokenId};
use polder_scheduler::fake::hashed;
use polder_scheduler::{Claim, Config, MemberId, Request, RequestId};

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
fn nobody_gives_up_a_slot_for_one_that_waits_for_a_beginning() {
    let config = Config { step_tokens: 8, ..Config::default() };
    let mut bench = Bench::new(limits(100, 3), config);
    let claim = Claim { trusting: true, ..Claim::default() };
    let text: Vec<u32> = (0..56).map(|at| (at * 7 + 2) % VOCAB).collect();
    let reads = Request { claim, ..request("ada", text.clone(), 2, 0) };
    let other: Vec<u32> = (0..30).map(|at| (at * 5 + 1) % VOCAB).collect();
    let asks = vec![
        (RequestId(0), reads.clone()),
        (RequestId(1), request("ada", other, 4, 1)),
        // They trust ada, whose prompt begins as theirs do: there is a slot for one of them only.
        (RequestId(2), Request { member: MemberId::new("bob"), ..reads.clone() }),
        (RequestId(3), Request { member: MemberId::new("eve"), ..reads }),
    ];
    bench.scheduler.admit(asks).unwrap();
    while bench.scheduler.stats().cached_tokens == 0 {
        assert_eq!(bench.scheduler.stats().slots_given_up, 0);
        assert!(bench.turn());
    }
    while bench.turn() {}
    assert!((0..4).all(|id| bench.end_of(RequestId(id)).is_some()));
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
        bench.scheduler.put_work(usize::MAX, &mut some);
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
