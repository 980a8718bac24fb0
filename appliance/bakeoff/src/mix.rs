//! What is asked: how long prompts and answers are. Never what they say.

use serde::{Deserialize, Serialize};

/// Longest prompt or answer that is believed, tokens.
const MOST: u32 = 1_000_000;

/// One request's lengths, tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Of the prompt.
    #[serde(alias = "prompt_tokens")]
    pub prompt: u32,
    /// Of the answer.
    #[serde(alias = "completion_tokens")]
    pub answer: u32,
    /// Of the prompt, how many are the same for all requests: instructions that everybody sends.
    #[serde(default)]
    pub known: u32,
}

/// What one model was used for by one member on one day, summed up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// Requests.
    pub requests: u64,
    /// Tokens of their prompts.
    pub prompt: u64,
    /// Tokens of their answers.
    pub completion: u64,
}

/// Requests by their lengths, and how often each kind comes.
#[derive(Debug, Clone, PartialEq)]
pub struct Mix {
    shapes: Vec<(Shape, u64)>,
}

/// Why there is no mix.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MixError {
    /// A line is no request.
    #[error(
        "line {line} of the mix is no request ({why}); write one per line, such as {{\"prompt\": 1200, \"answer\": 150}}"
    )]
    Line {
        /// Which, from 1.
        line: usize,
        /// What is wrong.
        why: String,
    },
    /// Nothing in it.
    #[error(
        "the mix has no requests; write one per line, such as {{\"prompt\": 1200, \"answer\": 150}}"
    )]
    Empty,
    /// The box has counted nothing.
    #[error(
        "this box has counted no requests: turn usage on in the site and come back in some days, or name a file of lengths with --mix"
    )]
    NotUsed,
}

impl Mix {
    /// One JSON object per line with the tokens of a prompt and an answer; empty lines are skipped.
    pub fn from_lines(text: &str) -> Result<Self, MixError> {
        let mut shapes = Vec::new();
        for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let wrong = |why: String| MixError::Line { line: at + 1, why };
            let shape: Shape = serde_json::from_str(line).map_err(|e| wrong(e.to_string()))?;
            for (what, tokens) in [("prompt", shape.prompt), ("answer", shape.answer)] {
                if tokens == 0 || tokens > MOST {
                    return Err(wrong(format!("{tokens} tokens of {what}, 1 to {MOST} can be")));
                }
            }
            if shape.known >= shape.prompt {
                return Err(wrong("all of the prompt is known".into()));
            }
            shapes.push((shape, 1));
        }
        if shapes.is_empty() { Err(MixError::Empty) } else { Ok(Self { shapes }) }
    }

    /// From what the box counted: every request of a row has the row's mean lengths.
    pub fn from_usage(rows: impl IntoIterator<Item = Used>) -> Result<Self, MixError> {
        let mean = |sum: u64, requests: u64| {
            u32::try_from((sum / requests).clamp(1, MOST.into())).unwrap_or(MOST)
        };
        let shapes: Vec<(Shape, u64)> = rows
            .into_iter()
            .filter(|row| row.requests > 0)
            .map(|Used { requests, prompt, completion }| {
                let (prompt, answer) = (mean(prompt, requests), mean(completion, requests));
                (Shape { prompt, answer, known: 0 }, requests)
            })
            .collect();
        if shapes.is_empty() { Err(MixError::NotUsed) } else { Ok(Self { shapes }) }
    }

    /// So many requests, each kind as often as it comes; the same ones for the same seed.
    pub fn draw(&self, seed: u64, count: usize) -> Vec<Shape> {
        let all: u64 = self.shapes.iter().map(|(_, often)| often).sum();
        let mut chance = Chance::new(seed);
        let mut one = || {
            let mut at = chance.below(all);
            for (shape, often) in &self.shapes {
                match at.checked_sub(*often) {
                    Some(rest) => at = rest,
                    None => return *shape,
                }
            }
            self.shapes[0].0
        };
        (0..count).map(|_| one()).collect()
    }
}

/// Numbers that are drawn, the same for the same seed.
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// From 0 to below this. The splitmix64 generator.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % end.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_wrong_line_is_named_with_what_to_write() {
        let said = |text: &str| Mix::from_lines(text).unwrap_err().to_string();
        assert!(said("{\"prompt\": 5, \"answer\": 2}\n\n{\"prompt\": 5}").contains("line 3"));
        assert!(said("{\"prompt\": 0, \"answer\": 2}").contains("0 tokens of prompt"));
        assert!(said("{\"prompt\": 9, \"answer\": 2, \"known\": 9}").contains("known"));
        assert!(said("\n").contains("no requests"));
    }

    #[test]
    fn what_a_box_counted_is_drawn_as_often_as_it_came() {
        let rows = [
            Used { requests: 30, prompt: 3000, completion: 600 },
            Used { requests: 10, prompt: 90_000, completion: 1000 },
            Used { requests: 0, prompt: 0, completion: 0 },
        ];
        let drawn = Mix::from_usage(rows).unwrap().draw(3, 4000);
        let long = drawn.iter().filter(|shape| shape.prompt == 9000).count();
        assert!((900..1100).contains(&long), "{long}");
        assert!(drawn.iter().all(|shape| *shape == Shape { prompt: 9000, answer: 100, known: 0 }
            || *shape == Shape { prompt: 100, answer: 20, known: 0 }));
        assert_eq!(Mix::from_usage([]), Err(MixError::NotUsed));
    }

    proptest! {
        #[test]
        fn any_text_is_a_mix_or_a_sentence_and_what_is_drawn_was_in_it(text in "\\PC{0,80}", lines in prop::collection::vec((1u32..900, 1u32..900), 1..9)) {
            if let Err(error) = Mix::from_lines(&text) {
                prop_assert!(!error.to_string().is_empty());
            }
            let text: String = lines.iter().map(|(p, a)| format!("{{\"prompt_tokens\":{p},\"completion_tokens\":{a}}}\n")).collect();
            for shape in Mix::from_lines(&text).unwrap().draw(1, 50) {
                prop_assert!(lines.contains(&(shape.prompt, shape.answer)));
            }
        }
    }
}
