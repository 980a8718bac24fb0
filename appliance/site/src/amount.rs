use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An amount of the collective's currency, in millionths: exact, never negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Amount(u64);

/// Not an amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not an amount of money; write it with a point and at most six digits after it, as in 25 or 0.15"
)]
pub struct AmountError(String);

const ONE: u64 = 1_000_000;
/// More than this is a mistake; sums of them still fit.
const MOST: u64 = 1_000_000_000 * ONE;

impl Amount {
    /// So many millionths.
    pub const fn of_millionths(millionths: u64) -> Self {
        Self(millionths)
    }

    /// In millionths.
    pub const fn millionths(self) -> u64 {
        self.0
    }
}

impl FromStr for Amount {
    type Err = AmountError;

    fn from_str(given: &str) -> Result<Self, AmountError> {
        let refuse = || AmountError(given.chars().take(40).collect());
        let (whole, part) = given.split_once('.').unwrap_or((given, "0"));
        let digits = |text: &str, most: usize| {
            (1..=most).contains(&text.len()) && text.bytes().all(|c| c.is_ascii_digit())
        };
        if !digits(whole, 10) || !digits(part, 6) {
            return Err(refuse());
        }
        let number = |text: &str| text.parse::<u64>().map_err(|_| refuse());
        let millionths = number(whole)? * ONE + number(&format!("{part:0<6}"))?;
        if millionths > MOST { Err(refuse()) } else { Ok(Self(millionths)) }
    }
}

impl fmt::Display for Amount {
    /// With two digits after the point, or as many as it has.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = format!("{:06}", self.0 % ONE);
        let part = part.trim_end_matches('0');
        write!(f, "{}.{part:0<2}", self.0 / ONE)
    }
}

impl TryFrom<String> for Amount {
    type Error = AmountError;
    fn try_from(given: String) -> Result<Self, AmountError> {
        given.parse()
    }
}

impl From<Amount> for String {
    fn from(money: Amount) -> Self {
        money.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn money_is_exact_and_shown_as_people_write_it() {
        for (text, millionths, shown) in [
            ("25", 25_000_000, "25.00"),
            ("0.15", 150_000, "0.15"),
            ("0.075", 75_000, "0.075"),
            ("12.5", 12_500_000, "12.50"),
            ("0.000001", 1, "0.000001"),
            ("1000000000", MOST, "1000000000.00"),
        ] {
            let money: Amount = text.parse().unwrap();
            assert_eq!((money.millionths(), money.to_string().as_str()), (millionths, shown));
        }
        for bad in [
            "",
            "-1",
            "1,50",
            ".5",
            "5.",
            "1.0000001",
            "1e3",
            " 1",
            "€5",
            "1000000000.000001",
            "99999999999",
        ] {
            assert!(bad.parse::<Amount>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_amount_reads_back(millionths in 0..=MOST) {
            let money = Amount::of_millionths(millionths);
            prop_assert_eq!(money.to_string().parse::<Amount>().unwrap(), money);
        }
    }
}
