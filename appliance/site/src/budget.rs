use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Memory that an engine may take for everything, weights, conversations and work: of the graphics card where it runs on one, else of
/// the machine. `"24 GiB"`, `"40 %"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Budget {
    /// So many bytes.
    Bytes(u64),
    /// A part of all there is, 1 to 100.
    Percent(u8),
}

/// A text that names no amount of memory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no amount of memory; write a number with MB, GB, TB, MiB, GiB, TiB or % behind it, such as \"24 GiB\" or \"40 %\""
)]
pub struct BudgetError(String);

/// Largest first; one that comes out whole is shown.
const UNITS: [(&str, u64); 6] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
];

impl Budget {
    /// Bytes, where all there is are `whole`.
    pub fn of(self, whole: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => (u128::from(whole) * u128::from(percent) / 100) as u64,
        }
    }
}

impl FromStr for Budget {
    type Err = BudgetError;

    fn from_str(text: &str) -> Result<Self, BudgetError> {
        let none = || BudgetError(text.chars().take(40).collect());
        let text = text.trim();
        let end = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(none)?;
        let number: u64 = text[..end].parse().map_err(|_| none())?;
        let unit = text[end..].trim();
        if unit == "%" {
            return match number {
                1..=100 => Ok(Self::Percent(number as u8)),
                _ => Err(none()),
            };
        }
        let (_, bytes) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(none)?;
        // A file's numbers are signed.
        let bytes = number.checked_mul(*bytes).filter(|b| (1..=i64::MAX as u64).contains(b));
        bytes.map(Self::Bytes).ok_or_else(none)
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Percent(percent) => write!(f, "{percent} %"),
            Self::Bytes(bytes) => {
                let whole = UNITS.iter().find(|(_, unit)| bytes.is_multiple_of(*unit));
                let (name, unit) = whole.unwrap_or(&("MiB", 1 << 20));
                write!(f, "{} {name}", bytes / unit)
            }
        }
    }
}

impl TryFrom<String> for Budget {
    type Error = BudgetError;

    fn try_from(text: String) -> Result<Self, BudgetError> {
        text.parse()
    }
}

impl From<Budget> for String {
    fn from(budget: Budget) -> Self {
        budget.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_of_memory_is_read_as_people_write_it_and_written_as_it_is_read() {
        let read = |text: &str| text.parse::<Budget>().unwrap();
        assert_eq!(read("24 GiB"), Budget::Bytes(24 << 30));
        assert_eq!(read("24GB"), Budget::Bytes(24_000_000_000));
        assert_eq!(read(" 40% "), Budget::Percent(40));
        for text in ["24 GiB", "1500 MB", "40 %", "1 TiB", "7 TB"] {
            assert_eq!(read(text).to_string(), text);
        }
        assert_eq!(read("1024 MiB").to_string(), "1 GiB");
        let none =
            ["", "24", "GiB", "-1 GiB", "1.5 GiB", "0 %", "101 %", "0 GB", "9 PB", "99999999 TiB"];
        for text in none {
            let error = text.parse::<Budget>().unwrap_err().to_string();
            assert!(error.contains("such as"), "{text}: {error}");
        }
    }

    #[test]
    fn a_part_is_of_all_there_is() {
        assert_eq!(Budget::Percent(40).of(1000), 400);
        assert_eq!(Budget::Percent(100).of(u64::MAX), u64::MAX);
        assert_eq!(Budget::Bytes(7).of(1000), 7);
    }
}
