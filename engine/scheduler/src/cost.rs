//! What tokens cost: the later one comes in its text, the more there is to attend to.

/// The work of a token beside one at the start of a text, whose work is 1. Both slopes are 0 where
/// only the weights count.
///
/// A back end that knows its model and its hardware says how they are: a token that is read at
/// position `p` takes `1 + read_slope * p`, one that is sampled `1 + decode_slope * p`. Reading is
/// bound by arithmetic and sampling by memory, so that the second is often the steeper one.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Cost {
    /// Further work for each position before a token that is read.
    pub read_slope: f64,
    /// Further work for each position before a token whose successor is sampled.
    pub decode_slope: f64,
}

impl Cost {
    /// Work of one sequence's part in a step that samples, at this position.
    pub fn decode(self, position: u32) -> f64 {
        1.0 + self.decode_slope * f64::from(position)
    }

    /// Work of reading `count` tokens from this position on.
    pub fn read(self, from: u32, count: u32) -> f64 {
        let (from, count) = (f64::from(from), f64::from(count));
        count + self.read_slope * (count * from + count * (count - 1.0) / 2.0)
    }

    /// Most tokens that can be read from this position on for so much work.
    pub fn readable(self, from: u32, work: f64) -> u32 {
        // A hair more, so that what was computed from a whole number comes back as it.
        let work = work.max(0.0) * (1.0 + 1e-9) + 1e-9;
        let half = self.read_slope / 2.0;
        let first = 1.0 + self.read_slope * f64::from(from) - half;
        let count = match half > 0.0 {
            // half * n * n + first * n = work, in the form that loses no digits to a small slope.
            true => 2.0 * work / (first + (first * first + 4.0 * half * work).sqrt()),
            false => work,
        };
        count as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn as_many_tokens_are_readable_as_their_work_pays_for(
            slope in prop_oneof![Just(0.0), 1e-7f64..0.1],
            from in 0u32..200_000,
            count in 1u32..5_000,
            part in 0.01f64..1.0,
        ) {
            let cost = Cost { read_slope: slope, decode_slope: 0.0 };
            prop_assert_eq!(cost.readable(from, cost.read(from, count)), count);
            let work = cost.read(from, count) * part;
            let some = cost.readable(from, work);
            prop_assert!(cost.read(from, some) <= work * (1.0 + 1e-6) + 1e-6);
            prop_assert!(cost.read(from, some + 1) > work * (1.0 - 1e-6));
        }
    }
}
