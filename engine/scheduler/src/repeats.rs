//! What a text may go on with, if it says again what it has said before.
//!
//! Agents repeat themselves: an edited file is most of the file, a tool's answer is quoted, JSON has the same keys again.
//! So the place where the text's last tokens stood before is a good guess at what comes next. Each token that comes is
//! compared with what had been guessed, whether anybody used the guess or not, so that what guesses are worth is known
//! all the time and costs nothing.

use polder_backend::TokenId;

/// Runs of so many tokens are looked up, the longer first.
const RUNS: [usize; 2] = [4, 2];
/// Most places that are remembered for runs of a length: half a megabyte.
const MOST_PLACES: usize = 1 << 17;
/// A longer agreement makes a guess no better.
const LONG: u32 = 16;
/// With so much agreement no other place is looked for.
const SURE: u32 = 8;

/// Where one text repeats itself.
#[derive(Debug, Default)]
pub(crate) struct Repeats {
    /// By the hash of a run of each length in [`RUNS`]: the position after the last such run. 0 is none. Runs with the
    /// same hash push each other out, so that memory is bounded; a place is looked at before it is believed.
    places: [Vec<u32>; 2],
    /// Tokens that were taken in.
    read: usize,
    /// The position whose token is the next guess, and how many tokens before it agree with the text's last ones.
    at: Option<(usize, u32)>,
    worth: Worth,
}

impl Repeats {
    /// Takes in what is new in `tokens`. Guesses are judged by what comes after the `prompt`.
    pub(crate) fn follow(&mut self, tokens: &[TokenId], prompt: usize) {
        if 2 * tokens.len() > self.places[0].len() && self.places[0].len() < MOST_PLACES {
            let places = (2 * tokens.len()).next_power_of_two().clamp(1024, MOST_PLACES);
            self.places = [vec![0; places], vec![0; places]];
            (0..self.read).for_each(|last| self.note(tokens, last));
        }
        for last in self.read..tokens.len() {
            if let Some((next, length)) = &mut self.at {
                let right = tokens[*next] == tokens[last];
                if last >= prompt {
                    self.worth.judge(*length, right);
                }
                // A word may stand for another one, and the text goes on alike.
                (*next, *length) = (*next + 1, if right { *length + 1 } else { 0 });
            }
            if last + 1 >= prompt && self.at.is_none_or(|(_, length)| length < SURE) {
                self.look(tokens, last);
            }
            self.note(tokens, last);
        }
        self.read = tokens.len();
    }

    /// Appends guesses at the tokens after `tokens`, `skip` of them left out and at most `most`, and how likely it is that
    /// the first of them is right, the first two, and so on. What is left out counts as guessed too.
    pub(crate) fn guess(
        &self,
        tokens: &[TokenId],
        skip: usize,
        most: usize,
        guesses: &mut Vec<TokenId>,
        chances: &mut Vec<f64>,
    ) {
        let Some((next, length)) = self.at else { return };
        // Where the guesses come to the text's end, they go on with themselves.
        let period = tokens.len() - next;
        let mut chance = 1.0;
        for at in 0..skip + most {
            chance *= self.worth.chance(length.saturating_add(at as u32));
            if at >= skip {
                guesses.push(tokens[next + at % period]);
                chances.push(chance);
            }
        }
    }

    /// Looks for a place that agrees with more of the text up to `last` than the one that is followed.
    fn look(&mut self, tokens: &[TokenId], last: usize) {
        let text = &tokens[..=last];
        for (places, run) in self.places.iter().zip(RUNS) {
            let Some(place) = run_before(text, run).map(|hash| places[index(hash, places)]) else {
                continue;
            };
            let next = place as usize;
            let before = text[..next].iter().rev().zip(text.iter().rev());
            let length =
                before.take(LONG as usize).take_while(|(old, new)| old == new).count() as u32;
            if length as usize >= run && self.at.is_none_or(|(_, other)| length > other) {
                self.at = Some((next, length));
                return;
            }
        }
    }

    /// Remembers the runs that end with the token at `last`.
    fn note(&mut self, tokens: &[TokenId], last: usize) {
        for (places, run) in self.places.iter_mut().zip(RUNS) {
            if let Some(hash) = run_before(&tokens[..=last], run) {
                let index = index(hash, places);
                places[index] = last as u32 + 1;
            }
        }
    }
}

/// A hash of the last so many tokens, where there are as many.
fn run_before(text: &[TokenId], run: usize) -> Option<u64> {
    let mix = |hash: u64, token: &TokenId| {
        (hash ^ u64::from(token.0)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29)
    };
    Some(text[text.len().checked_sub(run)?..].iter().fold(0, mix))
}

/// `places` is a power of two.
fn index(hash: u64, places: &[u32]) -> usize {
    (hash ^ (hash >> 32)) as usize & (places.len() - 1)
}

/// How often guesses were right, lately, by how many tokens had agreed before.
#[derive(Debug, Default)]
struct Worth {
    right: [f64; 6],
    all: [f64; 6],
}

impl Worth {
    /// What is believed before anything was seen, and how many guesses it counts for.
    const FIRST: [f64; 6] = [0.2, 0.3, 0.35, 0.6, 0.8, 0.9];
    const FIRST_WEIGHT: f64 = 2.0;
    /// What is left of a guess's weight after each one that follows.
    const FADES: f64 = 0.95;

    fn class(length: u32) -> usize {
        // 0, 1, 2 and 3, 4 to 7, 8 to 15, and more.
        (u32::BITS - length.leading_zeros()).min(5) as usize
    }

    fn judge(&mut self, length: u32, right: bool) {
        let class = Self::class(length);
        self.right[class] = self.right[class] * Self::FADES + f64::from(u8::from(right));
        self.all[class] = self.all[class] * Self::FADES + 1.0;
    }

    fn chance(&self, length: u32) -> f64 {
        let class = Self::class(length);
        (self.right[class] + Self::FIRST[class] * Self::FIRST_WEIGHT)
            / (self.all[class] + Self::FIRST_WEIGHT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tokens(ids: impl IntoIterator<Item = u32>) -> Vec<TokenId> {
        ids.into_iter().map(TokenId).collect()
    }

    fn guessed(repeats: &Repeats, text: &[TokenId], skip: usize, most: usize) -> Vec<u32> {
        let (mut guesses, mut chances) = (Vec::new(), Vec::new());
        repeats.guess(text, skip, most, &mut guesses, &mut chances);
        assert_eq!(guesses.len(), chances.len());
        assert!(chances.windows(2).all(|pair| pair[0] > pair[1]));
        assert!(chances.iter().all(|chance| (0.0..1.0).contains(chance)));
        guesses.iter().map(|token| token.0).collect()
    }

    #[test]
    fn a_text_that_begins_to_repeat_itself_is_guessed_to_go_on() {
        let text = tokens([1, 2, 3, 4, 5, 6, 7, 8, 9, 2, 3]);
        let mut repeats = Repeats::default();
        repeats.follow(&text, 0);
        assert_eq!(guessed(&repeats, &text, 0, 4), [4, 5, 6, 7]);
        assert_eq!(guessed(&repeats, &text, 2, 2), [6, 7]);
        // Behind the end of what is known it goes round.
        assert_eq!(guessed(&repeats, &text, 0, 10), [4, 5, 6, 7, 8, 9, 2, 3, 4, 5]);
    }

    #[test]
    fn a_changed_word_does_not_lose_the_place_and_a_longer_agreement_wins() {
        let mut repeats = Repeats::default();
        let mut text = tokens([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1, 2, 3]);
        repeats.follow(&text, 0);
        text.push(TokenId(77));
        repeats.follow(&text, 0);
        assert_eq!(guessed(&repeats, &text, 0, 2), [5, 6]);
        // Two places go on after 3, 4; one of them agrees with what was before.
        let text = tokens([1, 2, 3, 4, 5, 0, 0, 9, 3, 4, 6, 0, 1, 2, 3, 4]);
        let mut repeats = Repeats::default();
        repeats.follow(&text, text.len());
        assert_eq!(guessed(&repeats, &text, 0, 1), [5]);
    }

    #[test]
    fn a_text_without_repeats_is_not_guessed_at() {
        let text = tokens(0..5_000);
        let mut repeats = Repeats::default();
        repeats.follow(&text, 0);
        assert!(guessed(&repeats, &text, 0, 4).is_empty());
    }

    #[test]
    fn chances_follow_what_came_of_guesses() {
        let round = |at: u32| at % 11;
        let mut right = Repeats::default();
        right.follow(&tokens((0..200).map(round)), 0);
        let mut chances = Vec::new();
        right.guess(&tokens((0..200).map(round)), 0, 8, &mut Vec::new(), &mut chances);
        assert!(chances[7] > 0.9, "{chances:?}");
        // Every pair stands there twice, and goes on differently.
        let mut wrong = Repeats::default();
        let text = tokens((0..600).map(|at| if at % 3 == 2 { at } else { at % 3 + 1 }));
        wrong.follow(&text[..599], 0);
        chances.clear();
        wrong.guess(&text[..599], 0, 8, &mut Vec::new(), &mut chances);
        assert!(chances[0] < 0.1, "{chances:?}");
    }

    proptest! {
        #[test]
        fn it_is_the_same_whether_a_text_comes_at_once_or_in_pieces(
            text in prop::collection::vec(0u32..5, 1..300),
            cuts in prop::collection::vec(0usize..300, 0..9),
            skip in 0usize..3,
        ) {
            let text = tokens(text);
            let mut whole = Repeats::default();
            whole.follow(&text, 0);
            let mut pieces = Repeats::default();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut % text.len()).collect();
            cuts.sort_unstable();
            for cut in cuts {
                pieces.follow(&text[..cut], 0);
            }
            pieces.follow(&text, 0);
            let guesses = guessed(&whole, &text, skip, 20);
            prop_assert_eq!(&guesses, &guessed(&pieces, &text, skip, 20));
            prop_assert!(guesses.is_empty() || guesses.len() == 20);
        }
    }
}
