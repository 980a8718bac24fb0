//! What an answer from elsewhere costs: before, at most, and after. Pure; millionths of the collective's currency.

use polder_site::UpstreamModel;

use crate::usage::Usage;

/// Where nothing is said of an answer's length, so many tokens are set aside for it.
const USUAL_ANSWER: u64 = 4096;
/// No more than this is set aside for one answer; what is longer is still counted as it was.
const LONG_ANSWER: u64 = 131_072;
/// Prices are for so many tokens.
const PER: u128 = 1_000_000;

/// The price of one model, in millionths for a million tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Price {
    input: u64,
    output: u64,
    cached: u64,
}

impl Price {
    /// As the site says.
    pub fn of(model: &UpstreamModel) -> Self {
        let cached = model.cached.unwrap_or(model.input);
        Self {
            input: model.input.millionths(),
            output: model.output.millionths(),
            cached: cached.millionths(),
        }
    }

    /// What an answer that used this costs, rounded up.
    pub fn cost(&self, usage: &Usage) -> u64 {
        let cached = usage.cached.min(usage.prompt);
        let parts = [
            (usage.prompt - cached, self.input),
            (cached, self.cached),
            (usage.completion, self.output),
        ];
        let each = parts.iter().map(|(n, price)| u128::from(*n) * u128::from(*price));
        let sum = each.fold(0u128, u128::saturating_add);
        u64::try_from(sum.div_ceil(PER)).unwrap_or(u64::MAX)
    }

    /// Most that a question of so many bytes may cost, and be answered with so many tokens at most: a token for every second
    /// byte, which is more than any text has but the oddest, and nothing kept from before.
    pub fn most(&self, bytes: usize, answer: Option<u64>, answers: u64) -> u64 {
        let completion =
            answer.unwrap_or(USUAL_ANSWER).min(LONG_ANSWER).saturating_mul(answers.clamp(1, 128));
        let usage = Usage { prompt: bytes.div_ceil(2) as u64, completion, cached: 0 };
        let dearest = Self { input: self.input.max(self.cached), ..*self };
        dearest.cost(&usage)
    }
}

/// What a question is taken to have been where nobody says how many tokens it had: a token for every four bytes.
pub fn prompt_estimate(bytes: usize) -> u64 {
    (bytes / 4).max(1) as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn price(input: &str, output: &str, cached: Option<&str>) -> Price {
        let amount = |text: &str| text.parse().unwrap();
        let cached = cached.map(amount);
        Price::of(&UpstreamModel {
            called: "x".into(),
            input: amount(input),
            output: amount(output),
            cached,
        })
    }

    #[test]
    fn an_answer_costs_what_was_read_kept_and_written_and_never_less() {
        let price = price("0.15", "0.60", Some("0.02"));
        let used = |prompt, cached, completion| price.cost(&Usage { prompt, cached, completion });
        assert_eq!(used(1_000_000, 0, 1_000_000), 750_000);
        assert_eq!(used(1_000_000, 1_000_000, 0), 20_000);
        assert_eq!(used(1_000_000, 2_000_000, 0), 20_000, "no more is kept than was read");
        assert_eq!(used(1, 0, 0), 1, "a part of a millionth is one");
        assert_eq!(used(0, 0, 0), 0);
    }

    #[test]
    fn without_a_price_for_what_was_kept_it_costs_as_if_it_was_not() {
        let usage = Usage { prompt: 1_000_000, cached: 1_000_000, completion: 0 };
        assert_eq!(price("3", "15", None).cost(&usage), 3_000_000);
    }

    #[test]
    fn a_box_of_friends_costs_nothing() {
        let free = price("0", "0", None);
        assert_eq!(
            (free.most(32 << 20, Some(u64::MAX), 128), free.cost(&Usage::default())),
            (0, 0)
        );
    }

    proptest! {
        #[test]
        fn what_is_set_aside_is_enough_for_any_answer_as_long_as_was_asked_for(
            bytes in 0usize..1 << 25, answer in 0u64..LONG_ANSWER, part in 0.0f64..1.0, kept in 0.0f64..1.0,
            input in 0u64..100_000_000, output in 0u64..100_000_000, cached in 0u64..100_000_000,
        ) {
            let price = Price { input, output, cached };
            let prompt = ((bytes / 2) as f64 * part) as u64;
            let usage = Usage { prompt, completion: (answer as f64 * part) as u64, cached: (prompt as f64 * kept) as u64 };
            prop_assert!(price.cost(&usage) <= price.most(bytes, Some(answer), 1));
        }

        #[test]
        fn no_figures_overflow(prompt: u64, completion: u64, cached: u64, input: u64, output: u64, bytes: usize) {
            let price = Price { input, output, cached: input };
            let _ = price.cost(&Usage { prompt, completion, cached });
            let _ = price.most(bytes, Some(completion), prompt);
        }
    }
}
