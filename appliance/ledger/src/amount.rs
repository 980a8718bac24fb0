use std::fmt;
use std::iter::Sum;
use std::ops::{Add, Neg, Sub};

use serde::{Deserialize, Serialize};

use crate::LedgerError;

/// Whole cents. Ten thousand million is the most that one entry may be, so that no sum of a lifetime of entries overflows.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Cents(pub i64);

impl Cents {
    /// The most that one entry may be, either way.
    pub const MOST: i64 = 1_000_000_000_000;

    /// Reads `12`, `12.5`, `12,50`, `-1 234.50`, `1.234,50`, `1'234.50`. The last sign of point or comma with one or two digits after it
    /// is where the cents begin; with three digits it parts thousands.
    pub fn typed(text: &str) -> Result<Self, LedgerError> {
        let wrong = || LedgerError::Amount(text.chars().take(40).collect());
        let space = |c: char| c.is_whitespace() || c == '\'' || c == '’';
        let clean: String = text.trim().chars().filter(|c| !space(*c)).collect();
        let (negative, digits) = match clean.strip_prefix(['-', '−']) {
            Some(rest) => (true, rest),
            None => (false, clean.strip_prefix('+').unwrap_or(&clean)),
        };
        let last = digits.rfind(['.', ',']);
        let (whole, cents) = match last {
            Some(at) if digits.len() - at - 1 <= 2 && digits.len() > at + 1 => {
                (&digits[..at], &digits[at + 1..])
            }
            _ => (digits, ""),
        };
        // What is left of the cents may be parted by one kind of sign, three digits each.
        let mark = if cents.is_empty() { last.map(|at| digits.as_bytes()[at]) } else { None };
        let parts: Vec<&str> = whole.split(['.', ',']).collect();
        let signs: Vec<char> = whole.chars().filter(|c| matches!(c, '.' | ',')).collect();
        let one_kind = signs.windows(2).all(|pair| pair[0] == pair[1]);
        let other_kind = match last {
            Some(at) if !cents.is_empty() => {
                signs.iter().all(|sign| *sign != char::from(digits.as_bytes()[at]))
            }
            _ => mark.is_none() || !signs.is_empty(),
        };
        let grouped = parts.len() == 1
            || (one_kind
                && other_kind
                && (1..=3).contains(&parts[0].len())
                // 0.125 is an eighth, not a hundred and twenty-five.
                && !parts[0].starts_with('0')
                && parts[1..].iter().all(|part| part.len() == 3));
        let plain: String = parts.concat();
        if !grouped || plain.is_empty() || ![plain.as_str(), cents].iter().all(|t| all_digits(t)) {
            return Err(wrong());
        }
        let cents: i64 = match cents.len() {
            0 => 0,
            1 => cents.parse::<i64>().map_err(|_| wrong())? * 10,
            _ => cents.parse().map_err(|_| wrong())?,
        };
        let too_much = || LedgerError::TooMuch(text.chars().take(40).collect());
        let whole: i64 = plain.parse().map_err(|_| too_much())?;
        let all = whole.checked_mul(100).and_then(|w| w.checked_add(cents)).ok_or_else(too_much)?;
        if all > Self::MOST {
            return Err(too_much());
        }
        Ok(Self(if negative { -all } else { all }))
    }

    /// Without its sign.
    pub fn size(self) -> Self {
        Self(self.0.saturating_abs())
    }
}

fn all_digits(text: &str) -> bool {
    text.bytes().all(|c| c.is_ascii_digit())
}

/// `-12.50`: a plain number, as spreadsheets read it.
impl fmt::Display for Cents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let size = self.0.unsigned_abs();
        write!(f, "{sign}{}.{:02}", size / 100, size % 100)
    }
}

impl Add for Cents {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl Sub for Cents {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl Neg for Cents {
    type Output = Self;
    fn neg(self) -> Self {
        Self(self.0.saturating_neg())
    }
}

impl Sum for Cents {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self(0), |a, b| a + b)
    }
}

/// Splits an amount by weights, to the last cent: what is left over after whole cents goes to those with the largest remainders, the
/// first of equals first. Without any weight all have an equal part. Nobody is nobody: an empty list for no weights at all.
pub fn split(total: Cents, weights: &[u64]) -> Vec<Cents> {
    if weights.is_empty() {
        return Vec::new();
    }
    let all: u128 = weights.iter().map(|w| u128::from(*w)).sum();
    let equal = vec![1_u64; weights.len()];
    let (weights, all) = if all == 0 { (&equal[..], equal.len() as u128) } else { (weights, all) };
    let size = u128::from(total.0.unsigned_abs());
    let mut parts: Vec<(u128, u128)> = weights
        .iter()
        .map(|w| {
            let share = size * u128::from(*w);
            (share / all, share % all)
        })
        .collect();
    let given: u128 = parts.iter().map(|(part, _)| part).sum();
    let mut order: Vec<usize> = (0..parts.len()).collect();
    order.sort_by_key(|at| std::cmp::Reverse(parts[*at].1));
    for at in order.into_iter().take((size - given) as usize) {
        parts[at].0 += 1;
    }
    let signed = |part: u128| {
        let part = i64::try_from(part).unwrap_or(i64::MAX);
        Cents(if total.0 < 0 { -part } else { part })
    };
    parts.into_iter().map(|(part, _)| signed(part)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn amounts_are_read_as_people_and_banks_write_them() {
        for (text, cents) in [
            ("12", 1200),
            ("12.5", 1250),
            ("12,50", 1250),
            (" -1 234.50 ", -123_450),
            ("1.234,50", 123_450),
            ("1,234.50", 123_450),
            ("1'234.50", 123_450),
            ("1.234.567,00", 123_456_700),
            ("1.234", 123_400),
            ("+7", 700),
            ("−3,1", -310),
            ("0", 0),
        ] {
            assert_eq!(Cents::typed(text), Ok(Cents(cents)), "{text}");
        }
        for bad in [
            "",
            "-",
            ".",
            "abc",
            "1.2.3",
            "1,2,3",
            "1.23.456",
            "12.345.6,7,8",
            "1e5",
            "0x10",
            "1.",
            "1234.567.890",
            "1,234,56.7.8",
            "--1",
            "1.234.50",
            "0.125",
            "-0,500",
        ] {
            assert!(Cents::typed(bad).is_err(), "{bad:?}: {:?}", Cents::typed(bad));
        }
        assert!(matches!(Cents::typed("99999999999999"), Err(LedgerError::TooMuch(_))));
        assert!(matches!(Cents::typed(&"9".repeat(60)), Err(LedgerError::TooMuch(_))));
    }

    #[test]
    fn what_cannot_be_split_evenly_goes_to_the_largest_remainders() {
        let of = |total, weights: &[u64]| {
            split(Cents(total), weights).into_iter().map(|c| c.0).collect::<Vec<_>>()
        };
        assert_eq!(of(100, &[1, 1, 1]), [34, 33, 33]);
        assert_eq!(of(-100, &[1, 1, 1]), [-34, -33, -33]);
        assert_eq!(of(10, &[0, 0]), [5, 5]);
        assert_eq!(of(10, &[3, 1, 0]), [8, 2, 0]);
        assert_eq!(of(1, &[]), Vec::<i64>::new());
    }

    proptest! {
        #[test]
        fn splitting_never_loses_a_cent_and_is_fair_to_one(
            total in -Cents::MOST..Cents::MOST, weights in prop::collection::vec(any::<u64>(), 1..60),
        ) {
            let parts = split(Cents(total), &weights);
            prop_assert_eq!(parts.iter().map(|c| i128::from(c.0)).sum::<i128>(), i128::from(total));
            let all: u128 = weights.iter().map(|w| u128::from(*w)).sum();
            for (part, weight) in parts.iter().zip(&weights) {
                if all > 0 {
                    let exact = i128::from(total) as f64 * (*weight as f64 / all as f64);
                    prop_assert!((part.0 as f64 - exact).abs() < 1.0 + exact.abs() * 1e-9);
                    prop_assert!(*weight > 0 || part.0 == 0, "nobody pays for nothing");
                }
            }
        }

        #[test]
        fn an_amount_reads_back_as_it_is_shown(cents in -Cents::MOST..=Cents::MOST) {
            prop_assert_eq!(Cents::typed(&Cents(cents).to_string()), Ok(Cents(cents)));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let _ = Cents::typed(&text);
        }
    }
}
