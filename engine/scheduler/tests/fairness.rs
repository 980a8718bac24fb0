//! How long members who chat wait beside one who runs 64 agents at 100,000 tokens. The real scheduler, a clocked machine.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

#[path = "../examples/fairness/machine.rs"]
mod machine;
#[path = "../examples/fairness/people.rs"]
mod people;

use machine::H200_30B;
use people::{Crowd, Seen, percentile, watch};
use polder_scheduler::{Config, Cost};

const BOTH: Crowd = Crowd { chatters: 4, agents: 64, seconds: 300.0, seed: 3 };

fn fair(step_tokens: u32) -> Config {
    let cost = H200_30B.cost(step_tokens);
    Config { step_tokens, cost, steps_ahead: 1, ..Config::default() }
}

fn p95(seen: &Seen) -> f64 {
    assert!(seen.first_token.len() >= 40, "only {} questions", seen.first_token.len());
    percentile(&seen.first_token, 0.95)
}

#[test]
fn a_chat_waits_at_most_twice_as_long_beside_64_agents_as_alone() {
    let empty = p95(&watch(&Crowd { agents: 0, ..BOTH }, &H200_30B, fair(512)));
    for (step_tokens, most, least_used) in [(512, 2.0, 0.55), (1024, 2.5, 0.85)] {
        let seen = watch(&BOTH, &H200_30B, fair(step_tokens));
        let times = p95(&seen) / empty;
        assert!(times <= most, "{times:.2} times as long, with {step_tokens} a step");
        // An answer never stands still for longer than a few steps.
        assert!(seen.longest_gap < 0.1, "an agent's answer stood still for {} s", seen.longest_gap);
        // The card is not left idle for it.
        let used = seen.arithmetic / seen.took;
        assert!(used > least_used, "only {used:.2} of the arithmetic is used");
    }
    // What it would be if all prompts were alike, so that this machine is known to be a busy one.
    let alike = Config { cost: Cost::default(), credit: 0, ..fair(512) };
    let times = p95(&watch(&BOTH, &H200_30B, alike)) / empty;
    assert!(times > 3.5, "only {times:.2} times as long without fairness");
}
