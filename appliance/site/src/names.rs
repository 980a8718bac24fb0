use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A name was not acceptable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{kind} name {given:?} is not usable: {why}; use 1 to {max} small letters, {signs}, beginning with a letter or digit"
)]
pub struct NameError {
    kind: &'static str,
    given: String,
    why: &'static str,
    max: usize,
    signs: &'static str,
}

fn check(kind: &'static str, given: &str, max: usize, dots: bool) -> Result<(), NameError> {
    let signs = if dots { "digits, dots or dashes" } else { "digits or dashes" };
    let fail =
        |why| Err(NameError { kind, given: given.chars().take(80).collect(), why, max, signs });
    if given.is_empty() {
        return fail("it is empty");
    }
    if given.len() > max {
        return fail("it is too long");
    }
    let ok =
        |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || (dots && c == '.');
    if !given.chars().all(ok) {
        return fail("it has a character that does not belong there");
    }
    if given.starts_with(['-', '.']) || given.ends_with(['-', '.']) || given.contains("..") {
        return fail("it begins or ends with a dash or dot, or has two dots in a row");
    }
    Ok(())
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $kind:literal, $max:literal, $dots:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $type {
            type Err = NameError;
            fn from_str(given: &str) -> Result<Self, NameError> {
                check($kind, given, $max, $dots)?;
                Ok(Self(given.to_owned()))
            }
        }
        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(given: String) -> Result<Self, NameError> {
                given.parse()
            }
        }
        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// What the collective calls its box; also its host name, so `polder` is reached as
    /// `polder.local`.
    BoxName, "box", 63, false
);
name!(
    /// The slot that an engine runs in, such as `fast`.
    EngineName, "engine", 32, false
);
name!(
    /// A web app behind the door, such as `wiki`; also the first part of its host name.
    AppName, "app", 32, false
);
name!(
    /// A recipe: a pinned model.
    RecipeName, "recipe", 64, true
);
name!(
    /// What members' programs call a model, whichever it is just now, such as `house`.
    ModelAlias, "model", 64, true
);
name!(
    /// A way out to the internet, such as `fibre`.
    UplinkName, "uplink", 32, false
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_escape_a_folder_or_a_host_name_are_refused() {
        for bad in ["", "..", ".a", "-a", "a/b", "A", "a b", "a..b", "ä", &"x".repeat(65)] {
            assert!(bad.parse::<RecipeName>().is_err(), "{bad:?} was taken");
        }
        let dotted = "a.b".parse::<BoxName>().unwrap_err().to_string();
        assert!(dotted.contains("digits or dashes"), "it offers dots: {dotted}");
        assert!("qwen3-30b-a3b".parse::<RecipeName>().is_ok());
        assert!("gemma-3.1".parse::<RecipeName>().is_ok());
    }
}
