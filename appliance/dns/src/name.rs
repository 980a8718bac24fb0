use std::fmt;
use std::str::FromStr;

/// A DNS name, lower case, without its last dot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

/// Not a name that a zone could have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a name in the DNS; write letters, digits, dashes and underscores, with dots between them"
)]
pub struct NameError(String);

impl Name {
    /// As text, without its last dot.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Is it `zone`, or below it?
    pub fn is_within(&self, zone: &Self) -> bool {
        self.0.strip_suffix(&zone.0).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    }

    /// Labels with their lengths, uncompressed: how it is signed and sent.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        for label in self.0.split('.') {
            // 63 at most, see `from_str`.
            out.push(label.len() as u8);
            out.extend_from_slice(label.as_bytes());
        }
        out.push(0);
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(given: &str) -> Result<Self, NameError> {
        let refuse = || NameError(given.chars().take(80).collect());
        let name = given.strip_suffix('.').unwrap_or(given);
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_')
        };
        // 255 bytes with the lengths of the first label and of the root.
        if name.len() > 253 || !name.split('.').all(label) {
            return Err(refuse());
        }
        Ok(Self(name.to_ascii_lowercase()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn a_name_is_one_whatever_its_case_and_last_dot_and_nothing_else_is() {
        assert_eq!(name("_acme-challenge.Box.Example."), name("_acme-challenge.box.example"));
        let long = format!("{}.example", "a".repeat(64));
        let longer = vec!["abcdefg"; 40].join(".");
        for bad in ["", ".", "a..b", ".a", "a b", "a\0", "ä.example", "*.example", &long, &longer]
        {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_only_ends_alike_is_not_within_a_zone() {
        assert!(name("a.box.example").is_within(&name("box.example")));
        assert!(name("box.example").is_within(&name("box.example")));
        assert!(!name("mybox.example").is_within(&name("box.example")));
        assert!(!name("example").is_within(&name("box.example")));
    }

    #[test]
    fn on_the_wire_every_label_has_its_length() {
        let mut out = Vec::new();
        name("ab.c").write(&mut out);
        assert_eq!(out, b"\x02ab\x01c\0");
    }
}
