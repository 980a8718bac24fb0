//! Prompts of a length: plain words in no order, so that nobody's texts are needed.

use crate::mix::{Chance, Shape};

const WORDS: [&str; 64] = [
    "river", "stone", "window", "letter", "garden", "morning", "paper", "winter", "table",
    "market", "bridge", "music", "number", "silver", "forest", "engine", "island", "summer",
    "doctor", "village", "mirror", "ticket", "basket", "copper", "harbor", "pencil", "yellow",
    "travel", "museum", "kitchen", "planet", "shadow", "carpet", "button", "circle", "dinner",
    "farmer", "ladder", "magnet", "needle", "orange", "pocket", "rabbit", "saddle", "tunnel",
    "valley", "wagon", "anchor", "candle", "desert", "feather", "guitar", "hammer", "insect",
    "jacket", "kettle", "lantern", "marble", "napkin", "oven", "parcel", "quarry", "ribbon",
    "statue",
];

/// So many words, the same for the same seed.
pub fn words(count: usize, seed: u64) -> String {
    let mut chance = Chance::new(seed);
    let one = |chance: &mut Chance| WORDS[chance.below(WORDS.len() as u64) as usize];
    (0..count).map(|_| one(&mut chance)).collect::<Vec<_>>().join(" ")
}

/// Words of salt: enough that no two measurements begin alike, even in the first tokens, which caches compare.
const SALT: usize = 4;

/// How a server's tokens relate to words.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ratio {
    /// Tokens of a message of no words: what the template adds.
    pub template: f64,
    /// Tokens of one more word.
    pub word: f64,
}

impl Ratio {
    /// From the tokens that messages of two lengths took.
    pub fn of(few: (usize, u32), many: (usize, u32)) -> Self {
        let word = (f64::from(many.1) - f64::from(few.1)) / (many.0 as f64 - few.0 as f64);
        // A server that counts strangely must not make prompts endless.
        let word = if word.is_finite() { word.clamp(0.25, 16.0) } else { 1.0 };
        Self { template: (f64::from(few.1) - word * few.0 as f64).max(0.0), word }
    }

    fn count(&self, tokens: u32) -> usize {
        (f64::from(tokens) / self.word).round() as usize
    }

    /// A prompt of about this many tokens, of which `known` begin as all others of the same salt do.
    pub fn prompt(&self, shape: &Shape, seed: u64, salt: u64) -> String {
        let known = self.count(shape.known);
        let new = self.count(shape.prompt - shape.known);
        let new = new.saturating_sub((self.template / self.word) as usize).max(1);
        // The salt takes the place of words; a prompt of fewer words is some longer.
        let salted = words(SALT, salt);
        match known {
            0 => format!("{salted} {}", words(new.saturating_sub(SALT).max(1), seed)),
            known => {
                let known = words(known.saturating_sub(SALT).max(1), 0);
                format!("{salted} {known} {}", words(new, seed))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_have_the_length_that_is_asked_for_and_begin_alike_where_that_is_asked_for() {
        // Three tokens for two words, and twenty around them.
        let tokens = |text: &str| 20 + text.split(' ').count() as u32 * 3 / 2;
        let ratio = Ratio::of((10, tokens(&words(10, 1))), (210, tokens(&words(210, 1))));
        let shape = Shape { prompt: 1000, answer: 1, known: 300 };
        let (a, b) = (ratio.prompt(&shape, 5, 1), ratio.prompt(&shape, 6, 1));
        assert!((980..1020).contains(&tokens(&a)), "{}", tokens(&a));
        let alike = a.split(' ').zip(b.split(' ')).take_while(|(a, b)| a == b).count();
        assert!((195..210).contains(&alike), "{alike}");
        assert_eq!(a, ratio.prompt(&shape, 5, 1));
    }

    #[test]
    fn what_is_asked_again_with_another_salt_begins_otherwise_and_goes_on_alike() {
        let ratio = Ratio { template: 10.0, word: 1.5 };
        for shape in [
            Shape { prompt: 600, answer: 1, known: 0 },
            Shape { prompt: 600, answer: 1, known: 300 },
            Shape { prompt: 5, answer: 1, known: 2 },
        ] {
            let (a, b) = (ratio.prompt(&shape, 5, 1), ratio.prompt(&shape, 5, 2));
            let start = |text: &str| text.split(' ').take(SALT).collect::<Vec<_>>().join(" ");
            assert_ne!(start(&a), start(&b));
            assert_eq!(a.strip_prefix(&start(&a)), b.strip_prefix(&start(&b)));
        }
    }

    #[test]
    fn strange_counts_make_no_endless_prompts() {
        let ratio = Ratio::of((10, 500), (200, 3));
        assert!(ratio.prompt(&Shape { prompt: 100, answer: 1, known: 0 }, 1, 1).len() < 10_000);
        assert!(Ratio::of((5, 7), (5, 7)).word.is_finite());
    }
}
