//! Whatever comes and goes in whatever order: every request gets exactly its own tokens, and
//! when all are done no block and no slot is missing.

#![allow(clippy::unwrap_used)] // Helpers outside test functions unwrap too.

mod common;

use std::collections::BTreeMap;

use common::bench::{Bench, watch};
use common::{Sums, VOCAB, alone_with, limits, request};
use polder_backend::{Sampling, TokenId};
use polder_scheduler::fake::{FakeBackend, hashed, repeating};
use polder_scheduler::{Claim, Config, Cost, MemberId, Next, Refusal, Request, RequestId, Weight};
use proptest::prelude::*;

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
        short_text in prop_oneof![Just(0), 1u32..33],
    ) {
        let _watch = watch(format!(
            "{:?}",
            (&acts, blocks, slots, step_tokens, steps_ahead, max_waiting, slopes, credit, mask_turns, beside, drafts)
        ));
        let (draft_tokens, repeats, clock) = drafts;
        let cost = Cost { read_slope: slopes.0, decode_slope: slopes.1 };
        let config = Config {
            max_waiting, step_tokens, steps_ahead, cost, credit, draft_tokens, short_text,
            ..Config::default()
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
