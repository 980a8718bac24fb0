use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An image's version: `0.1.0`, `0.1.0.7`. Numbers, so that an older one can be told from a newer one; it is
/// part of file names and of partition labels.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Version {
    text: String,
    numbers: Vec<u32>,
}

/// No version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a version; it is numbers with dots between them, as in 0.1.0, at most {LONGEST} characters"
)]
pub struct VersionError(String);

/// A partition's label has 36 characters, `polder_` among them.
const LONGEST: usize = 24;

impl Version {
    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for Version {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        let fail = || VersionError(text.chars().take(60).collect());
        let number = |part: &str| {
            let plain =
                part == "0" || (!part.starts_with('0') && part.bytes().all(|b| b.is_ascii_digit()));
            if plain { part.parse().ok() } else { None }
        };
        let numbers: Option<Vec<u32>> = text.split('.').map(number).collect();
        match numbers {
            Some(numbers) if text.len() <= LONGEST => Ok(Self { text: text.to_owned(), numbers }),
            _ => Err(fail()),
        }
    }
}

impl TryFrom<String> for Version {
    type Error = VersionError;
    fn try_from(text: String) -> Result<Self, VersionError> {
        text.parse()
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.text
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.numbers.cmp(&other.numbers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_version_is_greater_by_its_numbers() {
        let version = |text: &str| text.parse::<Version>().unwrap();
        assert!(version("0.10.0") > version("0.9.9"));
        assert!(version("1.0.1") > version("1.0"));
    }

    #[test]
    fn what_is_not_numbers_and_dots_is_no_version() {
        for text in [
            "",
            "1.",
            ".1",
            "1..2",
            "v1",
            "1-2",
            "01",
            "1.0\n",
            "1/2",
            "99999999999",
            &"1.".repeat(20),
        ] {
            let error = text.parse::<Version>().unwrap_err().to_string();
            assert!(error.contains("is not a version"), "{text}: {error}");
        }
    }
}
