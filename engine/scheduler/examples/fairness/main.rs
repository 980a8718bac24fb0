//! What fairness costs: the real scheduler over a machine that is only clocked, with one member who runs 64 agents on
//! texts of 100,000 tokens and four members who chat. `--plot FILE` draws it.

mod machine;
mod people;
mod plot;

use std::process::ExitCode;

use machine::{H200_30B, Machine};
use people::{Crowd, Seen, percentile, watch};
use polder_scheduler::{Config, Cost};

/// One way to share the machine, and what came of it.
pub(crate) struct Point {
    pub(crate) fair: bool,
    pub(crate) step_tokens: u32,
    /// Time to the first token of a chat that 95 % do not exceed, over that on a box without agents.
    pub(crate) wait: f64,
    /// Part of the card's arithmetic that was used.
    pub(crate) used: f64,
}

const STEPS: [u32; 5] = [128, 256, 512, 1024, 2048];
/// The step with which the box is measured empty.
const USUAL: u32 = 512;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let plot = match (arguments.next().as_deref(), arguments.next()) {
        (None, _) => None,
        (Some("--plot"), Some(file)) => Some(file),
        _ => {
            eprintln!("usage: fairness [--plot FILE.svg]");
            return ExitCode::FAILURE;
        }
    };
    let both = Crowd { chatters: 4, agents: 64, seconds: 1200.0, seed: 1 };
    let empty = watch(&Crowd { agents: 0, ..both }, &H200_30B, fair(&H200_30B, USUAL));
    let wait = |seen: &Seen, part| percentile(&seen.first_token, part) * 1e3;
    println!(
        "Qwen3-30B-A3B in 4 bits on an H200, clocked: 4 members chat, 1 runs 64 agents at 100,000 tokens"
    );
    println!(
        "a box without agents: first token of a chat p50 {:.0} ms, p95 {:.0} ms",
        wait(&empty, 0.5),
        wait(&empty, 0.95)
    );
    println!();
    println!(
        "shared by             step   first token p50   p95    p95 / empty   arithmetic   agents answered   longest pause of an answer"
    );
    let mut points = Vec::new();
    for (name, fair, steps_ahead) in
        [("members, fairly", true, 1), ("prompts, all alike", false, 1), ("no step ahead", true, 0)]
    {
        for step_tokens in STEPS {
            let config = Config { steps_ahead, ..self::fair(&H200_30B, step_tokens) };
            let config = if fair { config } else { alike(config) };
            let seen = watch(&both, &H200_30B, config);
            let point = Point {
                fair,
                step_tokens,
                wait: wait(&seen, 0.95) / wait(&empty, 0.95),
                used: seen.arithmetic / seen.took,
            };
            println!(
                "{name:20} {step_tokens:5}   {:12.0} ms {:6.0} ms   {:8.2} x   {:8.1} %   {:15}   {:8.0} ms",
                wait(&seen, 0.5),
                wait(&seen, 0.95),
                point.wait,
                100.0 * point.used,
                seen.agents_answered,
                1e3 * seen.longest_gap,
            );
            // What is drawn is what a device does.
            if steps_ahead > 0 {
                points.push(point);
            }
        }
    }
    if let Some(file) = plot
        && let Err(error) = plot::draw(&points, &file)
    {
        eprintln!("could not draw {file}: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// As Polder shares.
pub(crate) fn fair(machine: &Machine, step_tokens: u32) -> Config {
    Config { step_tokens, cost: machine.cost(step_tokens), steps_ahead: 1, ..Config::default() }
}

/// Every token costs the same, and nobody is ever behind.
fn alike(config: Config) -> Config {
    Config { cost: Cost::default(), credit: 0, ..config }
}
