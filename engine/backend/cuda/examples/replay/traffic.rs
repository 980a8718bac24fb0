//! Who asks for what, and when: agents as a coding agent's published trace has them, and people who chat.
//!
//! The trace's means: a prompt of 67.8k tokens, of which 85.7 % were known, an answer of 527, 7.83 calls a turn. From these follows, with
//! common instructions of 12k: a turn opens with 25.5k new tokens, and each call after it brings 7.4k. Lengths are even between a
//! quarter and seven quarters of their mean. A tool takes two seconds, a person reads and types for five.
//!
//! Nobody asks by the clock: whoever has an answer asks the next thing after a pause, so that a slow engine is asked less.

use std::io::{BufRead, Write};

use serde::{Deserialize, Serialize};

/// One thing that is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Say {
    /// Who asks. What one asks is asked in the order of the file.
    pub(crate) who: String,
    /// Whose share of the machine it takes.
    pub(crate) member: String,
    pub(crate) agent: bool,
    /// Begins a new text with this many common tokens; None goes on with the last text and its answer.
    pub(crate) opens: Option<u32>,
    /// Tokens that nobody has seen.
    pub(crate) new: u32,
    /// Tokens of the answer.
    pub(crate) answer: u32,
    /// Milliseconds since the answer before it, or since the speaker came.
    pub(crate) pause_ms: u32,
}

/// Common instructions of all agents, and of all who chat.
const AGENTS_COMMON: u32 = 12_000;
const CHATS_COMMON: u32 = 500;
/// Means of a turn of an agent.
const OPENING: f64 = 25_500.0;
const CALL: f64 = 7_370.0;
const ANSWER: f64 = 527.0;
const CALLS: f64 = 7.83;
/// Calls that each agent has in a trace; more than fit into a replay.
const AGENT_SAYS: usize = 60;
const CHAT_SAYS: usize = 120;
/// Members that agents belong to, in turn.
const OWNERS: usize = 4;

struct Chance(u64);

impl Chance {
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        // High bits of Knuth's generator, mixed once.
        let bits = (self.0 ^ self.0 >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (bits >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Even around a mean.
    fn about(&mut self, mean: f64) -> f64 {
        mean * (0.25 + 1.5 * self.unit())
    }

    /// 4 to 12.
    fn calls(&mut self) -> usize {
        (4.0 + self.unit() * (2.0 * (CALLS - 4.0) + 1.0)) as usize
    }
}

/// So many agents, and people who chat.
pub(crate) fn draw(seed: u64, agents: usize, people: usize) -> Vec<Say> {
    let mut all = Vec::new();
    for n in 0..people {
        let mut chance = Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (n as u64 + 1) << 32);
        for at in 0..CHAT_SAYS {
            all.push(Say {
                who: format!("person-{n}"),
                member: format!("person-{n}"),
                agent: false,
                opens: (at % 8 == 0).then_some(CHATS_COMMON),
                new: chance.about(100.0) as u32,
                answer: chance.about(160.0) as u32,
                pause_ms: chance.about(5000.0) as u32,
            });
        }
    }
    for n in 0..agents {
        let mut chance = Chance(seed.wrapping_mul(0xd1b5_4a32_d192_ed03) ^ (n as u64 + 1) << 40);
        let mut left = 0;
        for at in 0..AGENT_SAYS {
            let opens = left == 0;
            let mut new = chance.about(if opens { OPENING } else { CALL });
            if opens {
                left = chance.calls();
            }
            if at == 0 {
                // Who is met is somewhere in a turn, not at its beginning.
                let behind = (chance.unit() * left as f64) as usize;
                new += behind as f64 * (CALL + ANSWER);
                left -= behind;
            }
            left -= 1;
            all.push(Say {
                who: format!("agent-{n}"),
                member: format!("agents-{}", n % OWNERS),
                agent: true,
                opens: opens.then_some(AGENTS_COMMON),
                new: new as u32,
                answer: chance.about(ANSWER) as u32,
                pause_ms: chance.about(2000.0) as u32,
            });
        }
    }
    all
}

/// One line each.
pub(crate) fn write(says: &[Say], mut to: impl Write) -> std::io::Result<()> {
    for say in says {
        writeln!(to, "{}", serde_json::to_string(say)?)?;
    }
    Ok(())
}

pub(crate) fn read(from: impl BufRead) -> std::io::Result<Vec<Say>> {
    from.lines().map(|line| Ok(serde_json::from_str(&line?)?)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn agents_have_the_means_of_the_published_trace() {
        let says = draw(7, 3000, 0);
        let (mut texts, mut turns) = (HashMap::<&str, u32>::new(), 0);
        let (mut prompts, mut known, mut answers, mut calls) = (0.0, 0.0, 0.0, 0.0);
        // Not an agent's first turn, which is cut, nor its last.
        let (mut seen, mut waiting) = (HashMap::<&str, u32>::new(), Vec::new());
        for say in &says {
            let turn = seen.entry(&say.who).or_default();
            *turn += u32::from(say.opens.is_some());
            let before = match say.opens {
                Some(common) => common,
                None => texts[say.who.as_str()],
            };
            texts.insert(&say.who, before + say.new + say.answer);
            if *turn > 1 {
                waiting.push((say.who.as_str(), *turn, before, say.new, say.answer));
            }
        }
        for (who, turn, before, new, answer) in waiting {
            if turn < seen[who] {
                turns += u32::from(before == AGENTS_COMMON);
                prompts += f64::from(before + new);
                known += f64::from(before);
                answers += f64::from(answer);
                calls += 1.0;
            }
        }
        let near =
            |found: f64, wanted: f64| assert!((found / wanted - 1.0).abs() < 0.02, "{found}");
        near(prompts / calls, 67_800.0);
        near(known / prompts, 0.857);
        near(answers / calls, 527.0);
        near(calls / f64::from(turns), 7.83);
    }

    #[test]
    fn a_trace_comes_back_as_it_was_written_and_is_the_same_for_the_same_seed() {
        let says = draw(3, 2, 2);
        let mut text = Vec::new();
        write(&says, &mut text).unwrap();
        assert!(read(&text[..]).unwrap() == says);
        assert!(draw(3, 5, 2)[..2 * CHAT_SAYS] == says[..2 * CHAT_SAYS]);
        assert!(draw(4, 2, 2) != says);
    }
}
