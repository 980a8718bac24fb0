//! Members as they are: some who chat, and one with many agents.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use polder_backend::{Sampling, StepBatch, TokenId};
use polder_scheduler::{Claim, Config, Event, MemberId, Request, RequestId, Scheduler};

use crate::machine::{Machine, answer};

/// Who uses the box.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Crowd {
    /// Members who chat.
    pub(crate) chatters: usize,
    /// Agents of one more member, all at once.
    pub(crate) agents: usize,
    /// Seconds to look at.
    pub(crate) seconds: f64,
    pub(crate) seed: u64,
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    /// Seconds from each question of a chat to its first token.
    pub(crate) first_token: Vec<f64>,
    /// Seconds between two tokens of an agent's answer, the longest.
    pub(crate) longest_gap: f64,
    /// Questions of agents that were answered.
    pub(crate) agents_answered: u64,
    /// Seconds that the machine worked, and that its arithmetic alone would have taken.
    pub(crate) took: f64,
    pub(crate) arithmetic: f64,
}

/// One conversation of somebody.
#[derive(Debug)]
struct Talk {
    member: MemberId,
    agent: bool,
    tokens: Vec<TokenId>,
    /// So many tokens a text has when it begins, and when it is given up for a new one.
    begins: u32,
    ends: u32,
    asked: f64,
    last: Option<f64>,
    random: u64,
}

impl Talk {
    fn next(&mut self, below: u32) -> u32 {
        // Knuth's multiplicative generator, high bits.
        self.random =
            self.random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.random >> 33) % u64::from(below.max(1))) as u32
    }

    /// What comes next: more of the same text, or a new one.
    fn say(&mut self) {
        let more = match self.tokens.len() as u32 {
            0 => self.begins / 2 + self.next(self.begins),
            length if length > self.ends => {
                self.tokens.clear();
                self.begins / 2 + self.next(self.begins)
            }
            _ => match self.agent {
                true => 500 + self.next(3000),
                false => 100 + self.next(700),
            },
        };
        for _ in 0..more {
            let token = TokenId(self.next(150_000));
            self.tokens.push(token);
        }
    }

    fn answer_length(&mut self) -> u32 {
        match self.agent {
            true => 100 + self.next(600),
            false => 100 + self.next(300),
        }
    }

    /// Seconds until the next question: a person reads, a tool runs.
    fn pause(&mut self) -> f64 {
        let part = f64::from(1 + self.next(1000)) / 1000.0;
        -part.ln() * if self.agent { 1.5 } else { 10.0 }
    }
}

/// Runs the real scheduler over the machine for a while.
pub(crate) fn watch(crowd: &Crowd, machine: &Machine, config: Config) -> Seen {
    // Its answers are one word over and over: guessing at them would be too easy.
    let config = Config { draft_tokens: 0, ..config };
    let mut scheduler = Scheduler::new(machine.limits(config.step_tokens), config)
        .unwrap_or_else(|error| panic!("{error}"));
    let mut talks: Vec<Talk> = (0..crowd.chatters + crowd.agents)
        .map(|n| {
            let agent = n >= crowd.chatters;
            let name = if agent { "agents".to_owned() } else { format!("m{n}") };
            Talk {
                member: MemberId::new(name),
                agent,
                tokens: Vec::new(),
                begins: if agent { 100_000 } else { 2_000 },
                ends: if agent { 120_000 } else { 12_000 },
                asked: 0.0,
                last: None,
                random: crowd.seed.wrapping_add(n as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15),
            }
        })
        .collect();
    // Microseconds, so that the order of equal times is the order of the talks.
    let mut asks: BinaryHeap<Reverse<(u64, usize)>> = BinaryHeap::new();
    for (n, talk) in talks.iter_mut().enumerate() {
        let start = if talk.agent { 0.0 } else { 5.0 + talk.pause() };
        asks.push(Reverse(((start * 1e6) as u64, n)));
    }
    let (mut now, mut ids, mut seen) = (0.0f64, 0u64, Seen::default());
    let mut asked: BTreeMap<RequestId, usize> = BTreeMap::new();
    let mut in_flight: VecDeque<StepBatch> = VecDeque::new();
    let (mut batch, mut events) = (StepBatch::default(), Vec::new());
    while now < crowd.seconds {
        while let Some(Reverse((at, n))) = asks.peek().copied() {
            if at as f64 / 1e6 > now {
                break;
            }
            asks.pop();
            let talk = &mut talks[n];
            talk.say();
            (talk.asked, talk.last) = (at as f64 / 1e6, None);
            let request = Request {
                member: talk.member.clone(),
                claim: Claim::default(),
                prompt: talk.tokens.clone(),
                max_tokens: talk.answer_length(),
                stop_tokens: [].into(),
                sampling: Sampling::greedy(),
                prompt_logprobs: None,
                grammar: None,
                pooling: None,
            };
            ids += 1;
            match scheduler.admit(vec![(RequestId(ids), request)]) {
                Ok(()) => drop(asked.insert(RequestId(ids), n)),
                // As a client does: again in a while, with the same words.
                Err(_) => asks.push(Reverse((((now + 1.0) * 1e6) as u64, n))),
            }
        }
        let planned =
            in_flight.len() <= config.steps_ahead.into() && scheduler.plan_step(&mut batch);
        if planned {
            in_flight.push_back(batch.clone());
            if in_flight.len() <= config.steps_ahead.into() {
                continue;
            }
        }
        let Some(step) = in_flight.pop_front() else {
            let Some(Reverse((at, _))) = asks.peek() else { break };
            now = now.max(*at as f64 / 1e6);
            continue;
        };
        let (took, arithmetic) = machine.step(&step);
        now += took;
        seen.took += took;
        seen.arithmetic += arithmetic;
        if let Err(error) = scheduler.take(answer(&step), &mut events) {
            panic!("{error}");
        }
        for (id, event) in events.drain(..) {
            let talk = &mut talks[asked[&id]];
            match event {
                Event::Token(token) => {
                    match talk.last.replace(now) {
                        None if !talk.agent => seen.first_token.push(now - talk.asked),
                        Some(before) if talk.agent => {
                            seen.longest_gap = seen.longest_gap.max(now - before);
                        }
                        _ => {}
                    }
                    talk.tokens.push(token.token);
                }
                Event::Begun { .. } => {}
                Event::Finished { .. } => {
                    seen.agents_answered += u64::from(talk.agent);
                    let n = asked.remove(&id).unwrap_or_default();
                    let at = now + talks[n].pause();
                    asks.push(Reverse(((at * 1e6) as u64, n)));
                }
                other => panic!("{other:?}"),
            }
        }
    }
    seen
}

/// The value that such a part of all values does not exceed.
pub(crate) fn percentile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() as f64 * part).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}
