//! The seed: a small file on a stick that says, before anybody sees a screen, which disk a new box goes onto and
//! what it shall be. `seed.html` on the same stick makes it; the installer carries it to the box.
//!
//! [`Seed::parse`] is strict, because nobody is there to ask: a field that is not known is an error in words.
//! [`take`] is what a box does with it when it starts.

mod network;
mod owner;
mod port;
mod take;

pub use network::{Network, NetworkError, Wanted};
pub use owner::{NotAKey, OwnerKey, claim_text};
pub use port::{Seen, bind, choose, look, ports};
pub use take::{BOUND, KEPT, TakeError, take};

use polder_site::BoxName;
use serde::Deserialize;

/// What it is called on a stick and in a box's boot partition.
pub const FILE: &str = "polder-seed.toml";

/// A longer one is none.
const LONGEST: usize = 8 << 10;

/// What a new box shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seed {
    /// The number that the disk's maker gave it: Polder goes onto that one without asking.
    pub disk: Option<String>,
    /// What the box is called.
    pub name: Option<BoxName>,
    /// Its address, where the router gives none.
    pub network: Option<Network>,
    /// Whose the box is: nobody claims it with a code then.
    pub owner: Option<OwnerKey>,
}

/// A seed that cannot be followed. Each is one sentence for the screen.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// Not the format.
    #[error("{FILE} cannot be read ({0}); make it anew with seed.html")]
    Format(String),
    /// Of another time.
    #[error(
        "{FILE} is of version {0}, and this Polder reads version 1; make it anew with the seed.html of this stick"
    )]
    Version(i64),
    /// A language that nobody has written yet.
    #[error("{FILE} asks for the language {0:?}; this Polder speaks only \"en\"")]
    Language(String),
    /// An address that is none.
    #[error("{FILE} has a network that does not work: {0}")]
    Network(#[from] NetworkError),
    /// Half a number.
    #[error("{FILE} names a disk by an empty number; leave `disk` out to be asked")]
    NoDisk,
    /// A key that could never be used.
    #[error("{FILE} cannot be followed: {0}; make it anew with seed.html")]
    Owner(#[from] NotAKey),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    version: i64,
    disk: Option<String>,
    name: Option<BoxName>,
    language: Option<String>,
    network: Option<network::Written>,
    owner: Option<String>,
}

impl Seed {
    /// Reads one.
    pub fn parse(text: &str) -> Result<Self, SeedError> {
        if text.len() > LONGEST {
            return Err(SeedError::Format("it is too long".to_owned()));
        }
        // Editors of other systems begin a file with a mark.
        let text = text.trim_start_matches('\u{feff}');
        let written: Written = toml::from_str(text).map_err(|error| {
            let before = |end: usize| &text.as_bytes()[..end.min(text.len())];
            let newlines = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == b'\n').count();
            let line = error.span().map(|span| newlines(before(span.start)) + 1);
            let message = error.message().replace('\n', " ");
            SeedError::Format(match line {
                Some(line) => format!("line {line}: {message}"),
                None => message,
            })
        })?;
        let Written { version, disk, name, language, network, owner } = written;
        if version != 1 {
            return Err(SeedError::Version(version));
        }
        if let Some(language) = language.filter(|language| language != "en") {
            return Err(SeedError::Language(language));
        }
        let disk = disk.map(|disk| disk.trim().to_owned());
        if disk.as_deref() == Some("") {
            return Err(SeedError::NoDisk);
        }
        let network = network.map(Network::try_from).transpose()?;
        let owner = owner.map(|key| key.parse()).transpose()?;
        Ok(Self { disk, name, network, owner })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_seed_says_where_the_box_goes_and_how_it_is_reached() {
        let seed = Seed::parse(
            "\u{feff}version = 1\r\ndisk = \" S4EV-1 \"\r\nname = \"meadow\"\r\nlanguage = \"en\"\r\n\
             [network]\r\naddress = \"192.168.7.20/24\"\r\ngateway = \"192.168.7.1\"\r\ndns = [\"9.9.9.9\"]\r\n",
        )
        .unwrap();
        assert_eq!(seed.disk.as_deref(), Some("S4EV-1"));
        assert_eq!(seed.name.unwrap().as_str(), "meadow");
        assert_eq!(seed.network.unwrap().address.gateways[0].to_string(), "192.168.7.1");
        let least = Seed::parse("version = 1").unwrap();
        assert_eq!(least, Seed { disk: None, name: None, network: None, owner: None });
    }

    proptest::proptest! {
        #[test]
        fn no_text_is_more_than_a_sentence(text in "(version = 1\n)?(\\PC|\n){0,200}") {
            if let Err(error) = Seed::parse(&text) {
                proptest::prop_assert!(!error.to_string().contains('\n'));
            }
        }
    }

    #[test]
    fn a_bad_seed_is_one_sentence_that_says_what_to_do() {
        let said = |text: &str| Seed::parse(text).unwrap_err().to_string();
        let cases = [
            ("", "make it anew"),
            ("version = 2", "of version 2"),
            ("version = 1\nlanguage = \"de\"", "\"de\"; this Polder speaks only"),
            ("version = 1\nnaem = \"x\"", "line 2: unknown field `naem`"),
            ("version = 1\nname = \"A B\"", "not usable"),
            ("version = 1\ndisk = \"\"", "empty number"),
            ("version = 1\nowner = \"x\"", "owner's key"),
            ("version = 1\n[network]\naddress = \"192.168.7.20\"", "/24"),
            ("\0\0\0", "cannot be read"),
        ];
        for (text, words) in cases {
            let said = said(text);
            assert!(said.contains(words), "{text:?}: {said}");
            assert!(!said.contains('\n'), "{said}");
        }
        assert!(said(&"#".repeat(9000)).contains("too long"));
    }
}
