//! What a server says of an answer's use, in OpenAI's words, Anthropic's or both: the dearer of the two whole readings. Pure; it does not matter how it is
//! put into pieces.
//!
//! Each dialect is read by itself, and neither figure of one is ever added to one of the other. Both count up: what an event says holds in place of what was
//! said before, unless that was dearer: who says little at the end has not used less than it said before.

use serde_json::Value;

use crate::price::Price;
use crate::usage::{MOST_TOKENS, Usage};

/// What a server said so far, read in each of the two ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Told {
    openai: Reading,
    anthropic: Reading,
}

/// One way of reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Reading {
    /// OpenAI's: all that was read, of which what was or is kept is a part. Anthropic's: what was neither, beside it.
    read: Option<u64>,
    cached: Option<u64>,
    /// For minutes and for an hour together.
    written: Option<u64>,
    written_long: Option<u64>,
    completion: Option<u64>,
}

impl Told {
    /// Takes what an event or an answer says; what is dearer goes by this price.
    pub(crate) fn take(&mut self, value: &Value, price: &Price) {
        for place in [&value["usage"], &value["message"]["usage"], &value["response"]["usage"]] {
            if place.is_object() {
                let said = Self::said(place);
                self.openai = self.openai.then(said.openai, Usage::of_parts, price);
                self.anthropic = self.anthropic.then(said.anthropic, Usage::of_rest, price);
            }
        }
    }

    /// What one object says, in the words of each.
    fn said(usage: &Value) -> Self {
        let number = |value: &Value| value.as_u64().map(|n| n.min(MOST_TOKENS));
        let of = |name: &str| number(&usage[name]);
        let details = [&usage["prompt_tokens_details"], &usage["input_tokens_details"]];
        let detail = |name: &str| details.iter().find_map(|details| number(&details[name]));
        // OpenAI's newer words are Anthropic's, and what they mean is told by this.
        let newer = usage["input_tokens_details"].is_object();
        let openai = newer || !usage["prompt_tokens"].is_null();
        let kept = of("cache_read_input_tokens");
        let spans = &usage["cache_creation"];
        let long = number(&spans["ephemeral_1h_input_tokens"]);
        let short = number(&spans["ephemeral_5m_input_tokens"]);
        let both = short.or(long).map(|_| short.unwrap_or(0) + long.unwrap_or(0));
        // Where the two ways to say it differ, the dearer.
        let written = of("cache_creation_input_tokens").max(both);
        let in_newer = |name: &str| of(name).filter(|_| newer);
        let mut said = Self {
            openai: Reading {
                read: of("prompt_tokens").max(in_newer("input_tokens")),
                cached: detail("cached_tokens"),
                written: detail("cache_write_tokens"),
                written_long: None,
                // Beside OpenAI's whole Anthropic's word for what was said is its word as well.
                completion: of("completion_tokens")
                    .max(in_newer("output_tokens"))
                    .or_else(|| of("output_tokens").filter(|_| openai)),
            },
            anthropic: Reading::default(),
        };
        if openai {
            // Those who pass on to several say Anthropic's parts beside OpenAI's whole. What makes it cheaper counts only where both say so.
            let cached = [said.openai.cached, kept];
            said.openai.cached = cached.into_iter().flatten().min();
            said.openai.written = said.openai.written.max(written);
            said.openai.written_long = long;
        }
        if !newer && (!openai || !usage["input_tokens"].is_null()) {
            said.anthropic = Reading {
                read: of("input_tokens"),
                cached: kept,
                written,
                written_long: long,
                completion: of("output_tokens"),
            };
        }
        said
    }

    /// Whether it was said what was read.
    pub(crate) fn has_prompt(&self) -> bool {
        self.openai.read.or(self.anthropic.read).is_some()
    }

    /// What was used, where the server said what was read.
    pub(crate) fn usage(&self, price: &Price) -> Option<Usage> {
        self.has_prompt().then(|| self.usage_of(0, 0, price))
    }

    /// What was used: so much was read if the server did not say it, and no less was written than this.
    pub(crate) fn usage_of(&self, prompt: u64, completion: u64, price: &Price) -> Usage {
        let (openai, anthropic) = (self.openai, self.anthropic);
        let by_parts = openai.read.map(|_| Usage::of_parts(&openai));
        let by_rest = anthropic.read.map(|_| Usage::of_rest(&anthropic));
        // A side of which one of them says nothing is what the other says. Parts of nothing are no reading: the question is known by its look.
        let whole = |read: Option<Usage>, written: Option<u64>| Usage {
            completion: written.unwrap_or(0).max(completion),
            ..read.unwrap_or(Usage { prompt, ..Usage::default() })
        };
        let (one, other) = (openai.completion, anthropic.completion);
        price.dearer(
            whole(by_parts.or(by_rest), one.or(other)),
            whole(by_rest.or(by_parts), other.or(one)),
        )
    }
}

impl Reading {
    /// With what is said after it.
    fn then(self, next: Self, whole: impl Fn(&Self) -> Usage, price: &Price) -> Self {
        let together = Self {
            read: next.read.or(self.read),
            cached: next.cached.or(self.cached),
            written: next.written.or(self.written),
            written_long: next.written_long.or(self.written_long),
            completion: None,
        };
        let before = Self { completion: None, ..self };
        let dearer =
            match self.read.is_some() && price.is_dearer(&whole(&before), &whole(&together)) {
                true => before,
                false => together,
            };
        // An answer only grows.
        Self { completion: self.completion.max(next.completion), ..dearer }
    }
}

impl Usage {
    /// Of a reading in which what was kept is a part of what was read.
    fn of_parts(said: &Reading) -> Self {
        let (written, long) = (said.written.unwrap_or(0), said.written_long.unwrap_or(0));
        let usage = Self {
            prompt: said.read.unwrap_or(0),
            completion: said.completion.unwrap_or(0),
            cached: said.cached.unwrap_or(0),
            written: written.saturating_sub(long),
            written_long: long,
        };
        usage.sane()
    }

    /// Of a reading in which what was kept is beside the rest.
    fn of_rest(said: &Reading) -> Self {
        let beside = said.cached.unwrap_or(0)
            + said.written.unwrap_or(0).max(said.written_long.unwrap_or(0));
        let read = said.read.unwrap_or(0).saturating_add(beside).min(MOST_TOKENS);
        Self::of_parts(&Reading { read: Some(read), ..*said })
    }
}

#[cfg(test)]
mod tests {
    use polder_site::UpstreamModel;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// Reading costs 10, what was kept 1, writing 50.
    fn price() -> Price {
        let amount = |text: &str| text.parse().unwrap();
        Price::of(&UpstreamModel {
            called: "x".into(),
            input: amount("10"),
            output: amount("50"),
            cached: Some(amount("1")),
            written: None,
            longest: None,
        })
    }

    fn told(said: &[Value]) -> Usage {
        let mut told = Told::default();
        said.iter().for_each(|usage| told.take(&json!({ "usage": usage }), &price()));
        told.usage_of(0, 0, &price())
    }

    fn openai(prompt: u64, cached: Option<u64>, completion: u64) -> Value {
        let mut usage = json!({ "prompt_tokens": prompt, "completion_tokens": completion });
        if let Some(cached) = cached {
            usage["prompt_tokens_details"] = json!({ "cached_tokens": cached });
        }
        usage
    }

    fn anthropic(input: u64, kept: Option<u64>, written: Option<u64>, output: u64) -> Value {
        let mut usage = json!({ "input_tokens": input, "output_tokens": output });
        if let Some(kept) = kept {
            usage["cache_read_input_tokens"] = kept.into();
        }
        if let Some(written) = written {
            usage["cache_creation_input_tokens"] = written.into();
        }
        usage
    }

    #[test]
    fn a_server_that_speaks_both_dialects_is_booked_by_one_of_them() {
        let used =
            |prompt, cached, completion| Usage { prompt, cached, completion, ..Usage::default() };
        // All of it in OpenAI's words, and the same number in Anthropic's: not both together.
        let both = [openai(1000, Some(800), 50), anthropic(1000, None, None, 50)];
        assert_eq!(told(&both), used(1000, 0, 50));
        let both = [openai(1000, Some(800), 50), anthropic(200, Some(800), None, 50)];
        assert_eq!(told(&both), used(1000, 800, 50));
        // The dearer, and whole: what was kept by the one makes the other no cheaper.
        let both = [openai(1000, Some(0), 50), anthropic(100, Some(900), None, 60)];
        assert_eq!(told(&both), used(1000, 0, 50));
        // In one object, as those say it who pass on to several.
        let mut mixed = openai(1000, Some(800), 50);
        mixed["cache_read_input_tokens"] = 800.into();
        mixed["cache_creation_input_tokens"] = 100.into();
        assert_eq!(told(&[mixed.clone()]), Usage { written: 100, ..used(1000, 800, 50) });
        mixed["cache_read_input_tokens"] = 700.into();
        assert_eq!(told(&[mixed]).cached, 700);
        // What only one says of a side is so.
        let split = [json!({ "prompt_tokens": 100 }), json!({ "output_tokens": 7 })];
        assert_eq!(told(&split), used(100, 0, 7));
    }

    #[test]
    fn what_was_kept_is_of_the_word_that_says_what_was_read() {
        // A last word that says little says nothing of it.
        let usage = told(&[openai(900, Some(800), 40), openai(1, Some(0), 1)]);
        assert_eq!((usage.prompt, usage.cached, usage.completion), (900, 800, 40));
        let usage = told(&[openai(900, Some(0), 40), openai(10, Some(10), 40)]);
        assert_eq!((usage.prompt, usage.cached), (900, 0));
        // Nor is it beside what another word says was all.
        let usage = told(&[anthropic(25, Some(0), None, 1), anthropic(5, Some(20), None, 9)]);
        assert_eq!((usage.prompt, usage.cached, usage.completion), (25, 0, 9));
    }

    /// What a server may say: right, wrong, little, in either dialect, in pieces.
    fn said() -> impl Strategy<Value = Value> {
        let n = || prop_oneof![Just(0u64), 1u64..50, Just(u64::MAX)];
        prop_oneof![
            3 => whole(),
            1 => n().prop_map(|p| json!({ "prompt_tokens": p })),
            1 => n().prop_map(|o| json!({ "output_tokens": o })),
            1 => n().prop_map(|c| json!({ "prompt_tokens_details": { "cached_tokens": c } })),
            1 => n().prop_map(|l| json!({ "cache_creation": { "ephemeral_1h_input_tokens": l } })),
        ]
    }

    /// The same, with both sides of it.
    fn whole() -> impl Strategy<Value = Value> {
        let n = || prop_oneof![Just(0u64), 1u64..50, 50u64..5000, Just(u64::MAX)];
        let maybe = move || proptest::option::of(n());
        prop_oneof![
            (n(), maybe(), n()).prop_map(|(p, c, o)| openai(p, c, o)),
            (n(), maybe(), maybe(), n()).prop_map(|(i, k, w, o)| anthropic(i, k, w, o)),
            (n(), n(), maybe(), maybe()).prop_map(|(p, o, k, w)| {
                let mut usage = anthropic(p, k, w, o);
                usage["prompt_tokens"] = p.into();
                usage
            }),
        ]
    }

    proptest! {
        #[test]
        fn the_parts_are_never_more_than_what_was_read(all in proptest::collection::vec(said(), 0..8)) {
            let usage = told(&all);
            prop_assert!(usage.cached + usage.written + usage.written_long <= usage.prompt, "{usage:?}");
        }

        #[test]
        fn two_dialects_are_booked_by_the_dearer_of_them_and_never_by_both(
            openais in proptest::collection::vec((0u64..5000, proptest::option::of(0u64..5000), 0u64..500), 1..5),
            anthropics in proptest::collection::vec((0u64..5000, proptest::option::of(0u64..5000), 0u64..500), 1..5),
            order in proptest::collection::vec(any::<bool>(), 10),
        ) {
            let ones: Vec<Value> = openais.iter().map(|(p, c, o)| openai(*p, *c, *o)).collect();
            let others: Vec<Value> = anthropics.iter().map(|(i, k, o)| anthropic(*i, *k, None, *o)).collect();
            let (mut left, mut right) = (ones.iter(), others.iter());
            let mut mixed = Vec::new();
            for first in order {
                mixed.extend(if first { left.next() } else { right.next() }.cloned());
            }
            mixed.extend(left.chain(right).cloned());
            let dearer = price().dearer(told(&ones), told(&others));
            prop_assert_eq!(price().cost(&told(&mixed)), price().cost(&dearer));
        }

        #[test]
        fn no_later_word_makes_an_answer_cheaper(all in proptest::collection::vec(whole(), 1..8), next in whole()) {
            let before = price().cost(&told(&all));
            let after = price().cost(&told(&[all, vec![next]].concat()));
            prop_assert!(before <= after, "{before} > {after}");
        }

        #[test]
        fn who_says_the_truth_is_booked_by_it_in_either_dialect_or_both(
            fresh in 0u64..5000, kept in 0u64..5000, written in 0u64..5000, output in 1u64..500,
            words in proptest::collection::vec((any::<bool>(), 0.0f64..=1.0), 0..8),
        ) {
            let prompt = fresh + kept + written;
            let word = |first: bool, so_far: u64| match first {
                true => {
                    let mut usage = openai(prompt, Some(kept), so_far);
                    usage["prompt_tokens_details"]["cache_write_tokens"] = written.into();
                    usage
                }
                false => anthropic(fresh, Some(kept), Some(written), so_far),
            };
            let mut all: Vec<Value> =
                words.iter().map(|(first, part)| word(*first, (output as f64 * part) as u64)).collect();
            all.push(word(true, output));
            all.push(word(false, output));
            let truth = Usage { prompt, completion: output, cached: kept, written, written_long: 0 };
            prop_assert_eq!(told(&all), truth);
        }
    }
}
