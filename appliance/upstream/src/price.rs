//! What an answer from elsewhere costs: before, at most, and after. Pure; millionths of the collective's currency.

use polder_site::UpstreamModel;

use crate::usage::Usage;

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

    /// It costs nothing, whatever is asked.
    pub fn is_free(&self) -> bool {
        (self.input, self.output, self.cached) == (0, 0, 0)
    }

    /// Most that a question may cost which uses so much at most, whatever of it was kept from before.
    pub fn most(&self, usage: &Usage) -> u64 {
        let dearest = Self { input: self.input.max(self.cached), ..*self };
        dearest.cost(&Usage { cached: 0, ..*usage })
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
            longest: None,
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
        let much = Usage { prompt: 32 << 20, completion: u64::MAX, cached: 0 };
        assert!(free.is_free() && !price("0", "0", Some("0.01")).is_free());
        assert_eq!((free.most(&much), free.cost(&Usage::default())), (0, 0));
    }

    proptest! {
        #[test]
        fn what_is_set_aside_is_enough_for_any_answer_within_it(
            prompt in 0u64..1 << 25, completion in 0u64..1 << 20, part in 0.0f64..=1.0, kept in 0.0f64..=1.0,
            input in 0u64..100_000_000, output in 0u64..100_000_000, cached in 0u64..100_000_000,
        ) {
            let price = Price { input, output, cached };
            let most = price.most(&Usage { prompt, completion, cached: 0 });
            let prompt = (prompt as f64 * part) as u64;
            let usage = Usage { prompt, completion: (completion as f64 * part) as u64, cached: (prompt as f64 * kept) as u64 };
            prop_assert!(price.cost(&usage) <= most);
        }

        #[test]
        fn no_figures_overflow(prompt: u64, completion: u64, cached: u64, input: u64, output: u64) {
            let price = Price { input, output, cached: input };
            let _ = price.cost(&Usage { prompt, completion, cached });
            let _ = price.most(&Usage { prompt, completion, cached });
        }
    }
}
