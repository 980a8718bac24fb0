use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The collective keeps its books here. What is in them is no part of the site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Money {
    /// What all of it is counted in.
    pub currency: Currency,
}

/// A currency by its three letters, such as `EUR`. Amounts have two places.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Currency(String);

/// Three letters were expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no currency; write its three letters, such as EUR")]
pub struct CurrencyError(String);

impl Currency {
    /// Its three letters.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Currency {
    type Err = CurrencyError;

    fn from_str(text: &str) -> Result<Self, CurrencyError> {
        let text = text.trim();
        match text.len() == 3 && text.bytes().all(|c| c.is_ascii_alphabetic()) {
            true => Ok(Self(text.to_ascii_uppercase())),
            false => Err(CurrencyError(text.chars().take(40).collect())),
        }
    }
}

impl TryFrom<String> for Currency {
    type Error = CurrencyError;
    fn try_from(text: String) -> Result<Self, CurrencyError> {
        text.parse()
    }
}

impl From<Currency> for String {
    fn from(currency: Currency) -> Self {
        currency.0
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_currency_is_three_letters() {
        assert_eq!("eur ".parse::<Currency>().unwrap().as_str(), "EUR");
        for bad in ["", "EU", "EURO", "€", "E1R"] {
            assert!(bad.parse::<Currency>().is_err(), "{bad}");
        }
    }
}
