use std::collections::BTreeMap;

use polder_backend::{Backend, Limits, Sampling, StepBatch, TokenId};
use proptest::prelude::*;

use super::*;
use crate::fake::FakeBackend;
use crate::request::{Claim, Refusal, Request, RequestId};
use crate::scheduler::{Config, Scheduler};

const MEMBERS: u8 = 8;

fn member(number: u8) -> MemberId {
    MemberId::new(format!("m{number}"))
}

#[derive(Debug, Clone)]
enum Act {
    Ask { member: u8, max_tokens: u32 },
    Turn,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    // Low numbers ask much more often than high ones.
    let asking = (0..MEMBERS, 0..MEMBERS).prop_map(|(a, b)| a.min(b));
    prop::collection::vec(
        prop_oneof![
            5 => (asking, 1u32..40).prop_map(|(member, max_tokens)| Act::Ask { member, max_tokens }),
            1 => Just(Act::Turn),
        ],
        1..120,
    )
}

proptest! {
    #[test]
    fn nobody_is_kept_out_by_those_who_ask_for_more(
        acts in acts(),
        slots in 1u16..7,
        max_waiting in 1usize..16,
    ) {
        let limits = Limits {
            step_tokens: 64, slots, blocks: 200, block_tokens: 4, context: 64, vocab: 23,
            kv_bytes_per_token: 1,
        };
        let config = Config { max_waiting, ..Config::default() };
        let mut scheduler = Scheduler::new(limits, config).unwrap();
        let mut backend = FakeBackend::new(limits);
        let mut batch = StepBatch::default();
        for (number, act) in acts.into_iter().enumerate() {
            match act {
                Act::Ask { member: asks, max_tokens } => {
                    // No two begin alike: those would wait for each other.
                    let own = number as u32;
                    let prompt = [own % 23, own / 23, 1, 1, 1].map(TokenId).to_vec();
                    let request = Request {
                        member: member(asks), claim: Claim::default(), prompt, max_tokens,
                        stop_tokens: [].into(), sampling: Sampling::greedy(),
                        prompt_logprobs: None,
            grammar: None,
                        pooling: None,
                    };
                    let waiting = scheduler.waiting();
                    let mine = waiting.newcomers_of(&member(asks));
                    let others =
                        (0..MEMBERS).filter(|other| waiting.newcomers_of(&member(*other)) > 0).count();
                    match scheduler.admit(vec![(RequestId(number as u64), request)]) {
                        Ok(()) => {}
                        Err(Refusal::ShareFull { waiting }) => {
                            prop_assert_eq!(waiting, mine);
                            prop_assert!(mine >= 1);
                        }
                        // Only where many different members wait, not where one or two do.
                        Err(Refusal::QueueFull { .. }) => {
                            prop_assert!(1 << (others - 1) >= max_waiting, "{} wait", others);
                        }
                        Err(other) => prop_assert!(false, "{}", other),
                    }
                }
                Act::Turn => {
                    let count = |scheduler: &Scheduler| -> BTreeMap<u8, usize> {
                        (0..MEMBERS).map(|m| (m, running(scheduler.running(), &member(m)))).collect()
                    };
                    let before = count(&scheduler);
                    if !scheduler.plan_step(&mut batch) { continue; }
                    let after = count(&scheduler);
                    let free = usize::from(slots) - after.values().sum::<usize>();
                    for asks in (0..MEMBERS).filter(|m| scheduler.waiting().peek(&member(*m)).is_some()) {
                        prop_assert!(free <= usize::from(after[&asks] > 0), "a slot stays empty");
                        for (other, has) in &after {
                            prop_assert!(*has <= before[other] || *has <= after[&asks] + 1);
                            prop_assert!(after[&asks] > 0 || *has <= 1, "m{} has no slot", asks);
                        }
                    }
                    if slots > 1 {
                        prop_assert!(after.values().all(|has| *has < slots.into()));
                    }
                    let ticket = backend.submit(&batch).unwrap();
                    let output = backend.collect(ticket).unwrap();
                    scheduler.take(output, &mut Vec::new()).unwrap();
                }
            }
        }
    }
}

#[test]
fn one_member_may_take_half_of_the_places_and_the_next_half_of_the_rest() {
    let most = |places: usize| (0..=places).filter(|mine| may_wait(*mine, places - mine)).max();
    for places in 1..20 {
        assert_eq!(most(places), Some(most_waiting(places)));
    }
    assert_eq!(most_waiting(256), 128);
}

#[test]
fn the_last_slot_waits_for_a_member_who_has_none() {
    let usual = Claim::default();
    assert!(may_start(0, 1, usual) && may_start(5, 2, usual));
    assert!(!may_start(1, 1, usual) && !may_start(0, 0, usual));
    let two = Claim { most_running: 2, ..usual };
    assert!(may_start(1, 9, two) && !may_start(2, 9, two));
}
