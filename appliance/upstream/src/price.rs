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
    written: u64,
    written_long: u64,
}

impl Price {
    /// As the site says.
    pub fn of(model: &UpstreamModel) -> Self {
        let cached = model.cached.unwrap_or(model.input);
        let input = model.input.millionths();
        // As Anthropic has it: a quarter more than reading, and for an hour twice as much as that. Who says a price says it for minutes.
        let written = match model.written {
            Some(written) => written.millionths(),
            None => times(input, 5, 4),
        };
        Self {
            input,
            output: model.output.millionths(),
            cached: cached.millionths(),
            written,
            written_long: times(written, 8, 5),
        }
    }

    /// What an answer that used this costs, rounded up.
    pub fn cost(&self, usage: &Usage) -> u64 {
        u64::try_from(self.exact(usage).div_ceil(PER)).unwrap_or(u64::MAX)
    }

    /// The same, a million times as much.
    fn exact(&self, usage: &Usage) -> u128 {
        let usage = usage.sane();
        let parts = usage.cached.saturating_add(usage.written).saturating_add(usage.written_long);
        let plain = usage.prompt.saturating_sub(parts);
        let parts = [
            (plain, self.input),
            (usage.cached, self.cached),
            (usage.written, self.written),
            (usage.written_long, self.written_long),
            (usage.completion, self.output),
        ];
        let each = parts.iter().map(|(n, price)| u128::from(*n) * u128::from(*price));
        each.fold(0u128, u128::saturating_add)
    }

    /// A token is a token, whether it was read, kept or written: where it is about how much was used, and not about money.
    pub fn of_tokens() -> Self {
        let one = PER as u64;
        Self { input: one, output: one, cached: one, written: one, written_long: one }
    }

    /// The one that costs more; where they cost the same, the one of more tokens, or the second.
    pub(crate) fn dearer(&self, one: Usage, other: Usage) -> Usage {
        if self.is_dearer(&one, &other) { one } else { other }
    }

    /// Whether the first costs more than the second, or is more at the same price.
    pub(crate) fn is_dearer(&self, one: &Usage, other: &Usage) -> bool {
        let worth = |usage: &Usage| (self.exact(usage), usage.prompt + usage.completion);
        worth(one) > worth(other)
    }

    /// It costs nothing, whatever is asked.
    pub fn is_free(&self) -> bool {
        (self.input, self.output, self.cached, self.written) == (0, 0, 0, 0)
    }

    /// Most that a question may cost which uses so much at most, whatever of it was kept from before or is from now on. For an hour only where the
    /// question says so.
    pub fn most(&self, usage: &Usage, may_keep_long: bool) -> u64 {
        let mut input = self.input.max(self.cached).max(self.written);
        if may_keep_long {
            input = input.max(self.written_long);
        }
        let read = Usage { prompt: usage.prompt, completion: usage.completion, ..Usage::default() };
        Self { input, ..*self }.cost(&read)
    }
}

/// A price that is a part more, rounded up.
fn times(price: u64, by: u128, of: u128) -> u64 {
    u64::try_from((u128::from(price) * by).div_ceil(of)).unwrap_or(u64::MAX)
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
            written: None,
            longest: None,
        })
    }

    #[test]
    fn an_answer_costs_what_was_read_kept_and_written_and_never_less() {
        let price = price("0.15", "0.60", Some("0.02"));
        let used = |prompt, cached, completion| {
            price.cost(&Usage { prompt, cached, completion, ..Usage::default() })
        };
        assert_eq!(used(1_000_000, 0, 1_000_000), 750_000);
        assert_eq!(used(1_000_000, 1_000_000, 0), 20_000);
        assert_eq!(used(1_000_000, 2_000_000, 0), 40_000, "no less was read than was kept");
        assert_eq!(used(1, 0, 0), 1, "a part of a millionth is one");
        assert_eq!(used(0, 0, 0), 0);
    }

    #[test]
    fn without_a_price_for_what_was_kept_it_costs_as_if_it_was_not() {
        let usage = Usage { prompt: 1_000_000, cached: 1_000_000, ..Usage::default() };
        assert_eq!(price("3", "15", None).cost(&usage), 3_000_000);
    }

    #[test]
    fn a_box_of_friends_costs_nothing() {
        let free = price("0", "0", None);
        let much = Usage { prompt: 32 << 20, completion: u64::MAX, ..Usage::default() };
        assert!(free.is_free() && !price("0", "0", Some("0.01")).is_free());
        assert_eq!((free.most(&much, true), free.cost(&Usage::default())), (0, 0));
    }

    #[test]
    fn what_is_kept_from_now_on_costs_a_quarter_more_and_for_an_hour_twice_as_much() {
        let (minutes, hour) = (
            Usage { prompt: 2_000_000, written: 1_000_000, ..Usage::default() },
            Usage { prompt: 2_000_000, written_long: 1_000_000, ..Usage::default() },
        );
        let usual = price("3", "15", Some("0.30"));
        assert_eq!((usual.cost(&minutes), usual.cost(&hour)), (6_750_000, 9_000_000));
        assert_eq!((usual.most(&minutes, false), usual.most(&hour, true)), (7_500_000, 12_000_000));
        let said = Price { written: 0, written_long: 0, ..usual };
        assert_eq!((said.cost(&minutes), said.cost(&hour)), (3_000_000, 3_000_000));
        let both = Usage { prompt: 10, cached: 20, written: 20, written_long: 20, completion: 0 };
        assert_eq!(both.sane(), Usage { prompt: 60, ..both });
        let more = Usage { prompt: 10, written: 1_000_000, ..Usage::default() };
        assert_eq!(usual.cost(&more), 3_750_000, "what is kept is charged, whatever was read");
    }

    proptest! {
        #[test]
        fn what_is_set_aside_is_enough_for_any_answer_within_it(
            prompt in 0u64..1 << 25, completion in 0u64..1 << 20, part in 0.0f64..=1.0,
            kept in 0.0f64..=1.0, short in 0.0f64..=1.0, long in 0.0f64..=1.0, hours: bool,
            prices: [u32; 5],
        ) {
            let [input, output, cached, written, written_long] = prices.map(|p| u64::from(p % 100_000_000));
            let price = Price { input, output, cached, written, written_long };
            let of = |of: u64, part: f64| (of as f64 * part) as u64;
            let most = price.most(&Usage { prompt, completion, ..Usage::default() }, hours);
            let prompt = of(prompt, part);
            // Parts of what was read: more than that was not set aside, and is booked all the same.
            let written_long = if hours { of(prompt, long) } else { 0 };
            let written = of(prompt - written_long, short);
            let usage = Usage {
                prompt,
                completion: of(completion, part),
                cached: of(prompt - written_long - written, kept),
                written,
                written_long,
            };
            prop_assert!(price.cost(&usage) <= most);
        }

        #[test]
        fn no_figures_overflow(tokens: [u64; 5], prices: [u64; 5]) {
            let [input, output, cached, written, written_long] = prices;
            let price = Price { input, output, cached, written, written_long };
            let [prompt, completion, cached, written, written_long] = tokens;
            let _ = price.cost(&Usage { prompt, completion, cached, written, written_long });
            let _ = price.most(&Usage { prompt, completion, ..Usage::default() }, true);
        }
    }
}
