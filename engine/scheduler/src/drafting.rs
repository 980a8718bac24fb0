//! How far to guess ahead: what guesses are worth, and what they cost.
//!
//! A step that verifies guesses takes longer and says more. What a guess is likely to bring is known from the texts
//! (`repeats.rs`), what it costs from the clock. Guesses are made as long as tokens per second rise.

use std::time::Duration;

/// A guess that hardly ever brings anything is not worth the bookkeeping, however cheap it is.
const LEAST_CHANCE: f64 = 0.02;
/// Steps with answers of several members take at most so much longer for somebody's guesses.
const MOST_LONGER: f64 = 0.25;
/// So many guesses are tried where nobody knows what they cost.
const FIRST_TRY: usize = 4;
/// After so many steps without guesses their cost is believed to be half of what it was: what was too dear is tried again.
const HALVES: f64 = 512.0;
/// After so many steps with guesses one goes without, so that it stays known what that takes.
const MOST_WITH: u64 = 32;

/// What guesses would cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Price {
    /// Seconds of the step without any.
    pub(crate) plain: f64,
    /// Further seconds for each.
    pub(crate) guess: f64,
    /// How many may be made in all.
    pub(crate) room: usize,
}

/// How many guesses each sequence makes in a step in which `answers` sequences go on, so that the step is expected to say
/// most tokens per second. `chances` has for each of them the chance that its first guess is right, its first two, and
/// so on.
pub(crate) fn lengths(chances: &[&[f64]], answers: usize, price: Price) -> Vec<usize> {
    let mut gains: Vec<(f64, usize)> = Vec::new();
    for (index, chances) in chances.iter().enumerate() {
        gains.extend(chances.iter().map(|chance| (*chance, index)));
    }
    // The sort is stable, and a sequence's chances only fall: its guesses are taken from the first one on.
    gains.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut lengths = vec![0; chances.len()];
    let (mut tokens, mut seconds) = (answers as f64, price.plain);
    for (gain, index) in gains.into_iter().take(price.room) {
        if gain < LEAST_CHANCE || gain * seconds < price.guess * tokens {
            break;
        }
        (tokens, seconds) = (tokens + gain, seconds + price.guess);
        lengths[index] += 1;
    }
    lengths
}

/// What steps took, by the clock.
#[derive(Debug, Default)]
pub(crate) struct StepTimes {
    /// `[answers]`: steps without guesses.
    plain: Vec<Recent>,
    /// What each guess added, in steps that had some.
    guess: Recent,
    /// Steps without a guess since the last one with some, and the other way round.
    without: u64,
    with: u64,
}

impl StepTimes {
    /// A step in which so many sequences went on, and nothing else was done, took so long.
    pub(crate) fn record(&mut self, answers: usize, guesses: usize, took: Duration) {
        let took = took.as_secs_f64();
        if guesses == 0 {
            if self.plain.len() <= answers {
                self.plain.resize_with(answers + 1, Recent::default);
            }
            self.plain[answers].add(took);
            (self.without, self.with) = (self.without + 1, 0);
        } else {
            if let Some(plain) = self.plain(answers) {
                self.guess.add(((took - plain) / guesses as f64).max(0.0));
            }
            (self.without, self.with) = (0, self.with + 1);
        }
    }

    /// What guesses would cost in a step in which so many sequences go on, `others` if they are of several members.
    pub(crate) fn price(&self, answers: usize, others: bool, room: usize) -> Price {
        let plain = self.plain(answers);
        // What a step takes without guesses must be known, and stay known.
        let without = self.with > if plain.is_none() { 0 } else { MOST_WITH };
        let room = if without { 0 } else { room };
        let plain = plain.unwrap_or(0.0);
        let Some(guess) = self.guess.median() else {
            return Price { plain, guess: 0.0, room: room.min(FIRST_TRY) };
        };
        let guess = guess * 0.5f64.powf(self.without as f64 / HALVES);
        let room = match others && guess > 0.0 {
            true => room.min((plain * MOST_LONGER / guess) as usize),
            false => room,
        };
        Price { plain, guess, room }
    }

    /// Steps with so many answers, or else with the next number of which something is known.
    fn plain(&self, answers: usize) -> Option<f64> {
        let known =
            self.plain.iter().enumerate().filter_map(|(n, times)| Some((n, times.median()?)));
        known.min_by_key(|(n, _)| n.abs_diff(answers)).map(|(_, time)| time)
    }
}

/// The last few of some measurements. Their median does not mind that the machine was busy with something else once.
#[derive(Debug, Default, Clone)]
struct Recent {
    values: [f64; 5],
    count: usize,
}

impl Recent {
    fn add(&mut self, value: f64) {
        self.values[self.count % self.values.len()] = value;
        self.count += 1;
    }

    fn median(&self) -> Option<f64> {
        let mut values = self.values;
        let known = &mut values[..self.count.min(self.values.len())];
        known.sort_unstable_by(f64::total_cmp);
        known.get(known.len().checked_sub(1)? / 2).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Chances of guesses of which each is right so often.
    fn chain(chance: f64, count: i32) -> Vec<f64> {
        (1..=count).map(|n| chance.powi(n)).collect()
    }

    fn of(lists: &[Vec<f64>], answers: usize, price: Price) -> Vec<usize> {
        let lists: Vec<&[f64]> = lists.iter().map(Vec::as_slice).collect();
        lengths(&lists, answers, price)
    }

    #[test]
    fn guesses_that_cost_as_much_as_answers_are_not_made_and_free_ones_all() {
        let price = |guess| Price { plain: 1.0, guess, room: 100 };
        assert_eq!(of(&[chain(0.9, 16)], 1, price(1.0)), [0]);
        assert_eq!(of(&[chain(0.9, 16)], 1, price(0.0)), [16]);
        assert_eq!(of(&[chain(0.1, 16)], 1, price(0.0)), [1]);
        // A quarter of a step each: the second is worth it where the text repeats itself.
        assert_eq!(of(&[chain(0.3, 16)], 1, price(0.25)), [1]);
        assert_eq!(of(&[chain(0.2, 16)], 1, price(0.25)), [0]);
        assert!(of(&[chain(0.98, 16)], 1, price(0.25))[0] > 10);
        assert_eq!(of(&[chain(0.98, 16)], 1, Price { room: 3, ..price(0.25) }), [3]);
    }

    #[test]
    fn the_surer_text_is_guessed_further() {
        let price = Price { plain: 1.0, guess: 0.1, room: 20 };
        assert_eq!(of(&[chain(0.5, 9), chain(0.95, 9)], 2, price), [1, 9]);
        assert_eq!(of(&[chain(0.5, 9), chain(0.95, 9)], 2, Price { room: 6, ..price }), [0, 6]);
    }

    proptest! {
        #[test]
        fn no_other_lengths_say_more_per_second(
            sure in prop::collection::vec(0.05f64..0.99, 1..3),
            more in 0usize..5,
            guess in 0.0f64..1.0,
            room in 0usize..12,
        ) {
            let lists: Vec<Vec<f64>> = sure.iter().map(|chance| chain(*chance, 5)).collect();
            let answers = lists.len() + more;
            let price = Price { plain: 1.0, guess, room };
            let rate = |lengths: &[usize]| {
                let gain: f64 =
                    lists.iter().zip(lengths).map(|(l, n)| l[..*n].iter().sum::<f64>()).sum();
                let guesses = lengths.iter().sum::<usize>() as f64;
                (answers as f64 + gain) / (1.0 + guess * guesses)
            };
            let ours = of(&lists, answers, price);
            prop_assert!(ours.iter().sum::<usize>() <= room);
            let first = 0..=5usize;
            for a in first.clone() {
                for b in first.clone() {
                    let other = if lists.len() == 1 { vec![a] } else { vec![a, b] };
                    if other.iter().sum::<usize>() <= room {
                        // What hardly ever happens is left out.
                        prop_assert!(rate(&ours) >= rate(&other) - 10.0 * LEAST_CHANCE);
                    }
                }
            }
        }
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn what_guesses_cost_is_measured_and_one_hiccup_does_not_matter() {
        let mut times = StepTimes::default();
        assert_eq!(times.price(1, false, 16), Price { plain: 0.0, guess: 0.0, room: FIRST_TRY });
        times.record(1, 4, ms(18));
        // Without a step to compare with that says nothing.
        assert_eq!(times.price(1, false, 16).room, 0);
        for _ in 0..5 {
            times.record(1, 0, ms(10));
            times.record(1, 4, ms(18));
        }
        let price = times.price(1, false, 16);
        assert_eq!((price.plain, price.room), (0.010, 16));
        assert!((price.guess - 0.002).abs() < 1e-9);
        times.record(1, 2, ms(900));
        times.record(1, 0, ms(900));
        times.record(1, 4, ms(18));
        let price = times.price(1, false, 16);
        assert!((price.plain - 0.010).abs() < 1e-9 && (price.guess - 0.002).abs() < 1e-9);
        // Other members' answers wait for at most a quarter of a step.
        assert_eq!(times.price(1, true, 16).room, 1);
    }

    #[test]
    fn guesses_that_do_not_pay_are_given_up_and_tried_again_now_and_then() {
        let mut times = StepTimes::default();
        let surely = chain(0.8, 16);
        let (mut guesses, mut late) = (0, 0);
        for step in 0..20_000 {
            let many = of(std::slice::from_ref(&surely), 1, times.price(1, false, 16))[0];
            // Each guess takes what an answer takes.
            times.record(1, many, ms(10 * (1 + many as u64)));
            guesses += many;
            late += if step > 10_000 { many } else { 0 };
        }
        assert!((5..200).contains(&guesses), "{guesses}");
        assert!(late > 0);
    }

    #[test]
    fn guesses_that_pay_are_made_and_their_price_is_kept_up_to_date() {
        let mut times = StepTimes::default();
        let surely = chain(0.95, 16);
        let mut long = 0;
        for step in 0..2_000u64 {
            // The text grows, and all steps take longer.
            let plain = 10 + step / 100;
            let many = of(std::slice::from_ref(&surely), 1, times.price(1, false, 16))[0];
            times.record(1, many, ms(plain) + ms(plain) * many as u32 / 8);
            long += usize::from(many > 7);
        }
        assert!(long > 1_800, "{long}");
    }
}
