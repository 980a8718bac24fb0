use std::fmt;
use std::str::FromStr;

use zeroize::Zeroize;

use crate::SpareError;
use crate::words::WORDS;

/// A pairing code: four digits and two words, such as `4821-otter-lamp`. 27 bits, for three tries. Never written to a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Code(String);

impl Code {
    /// A new one.
    pub fn make() -> Result<Self, SpareError> {
        let mut bytes = [0; 6];
        let random = |bytes: &mut [u8]| {
            getrandom::fill(bytes).map_err(|error| SpareError::Random(error.to_string()))
        };
        random(&mut bytes)?;
        // Of 65536 numbers the last few would make some codes likelier than others.
        let digits = loop {
            let number = u16::from_le_bytes([bytes[0], bytes[1]]);
            if number < 60_000 {
                break number % 10_000;
            }
            random(&mut bytes)?;
        };
        let word = |byte: u8| WORDS[usize::from(byte) % WORDS.len()];
        Ok(Self(format!("{digits:04}-{}-{}", word(bytes[2]), word(bytes[3]))))
    }

    /// The code itself: to be shown on the spare's page, and as the password of the exchange.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl FromStr for Code {
    type Err = SpareError;

    /// As somebody typed it: capitals and spaces are no mistakes. Whether it is the right one only the other box knows.
    fn from_str(typed: &str) -> Result<Self, SpareError> {
        let refuse = || {
            // It may be the right one but for a letter: no log is to have it.
            SpareError::NoCode("what was typed".to_owned())
        };
        if typed.len() > 60 {
            return Err(refuse());
        }
        let lower = typed.trim().to_ascii_lowercase();
        let mut parts =
            lower.split(|c: char| c == '-' || c.is_whitespace()).filter(|p| !p.is_empty());
        let (Some(digits), Some(first), Some(second), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(refuse());
        };
        let digit = digits.len() == 4 && digits.bytes().all(|b| b.is_ascii_digit());
        let word = |word: &str| word.bytes().all(|b| b.is_ascii_lowercase());
        if !digit || !word(first) || !word(second) {
            return Err(refuse());
        }
        Ok(Self(format!("{digits}-{first}-{second}")))
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Code(hidden)")
    }
}

impl Drop for Code {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_all_different_plain_and_far_enough_apart() {
        for (at, word) in WORDS.iter().enumerate() {
            assert!(word.bytes().all(|b| b.is_ascii_lowercase()), "{word}");
            assert!((4..=8).contains(&word.len()), "{word}");
            for other in &WORDS[at + 1..] {
                assert!(
                    word[..4.min(word.len())] != other[..4.min(other.len())]
                        || word[4..] != other[4..]
                );
                assert_ne!(word, other);
            }
        }
    }

    #[test]
    fn a_code_is_taken_however_it_is_typed_and_shows_in_no_log() {
        for _ in 0..200 {
            let code = Code::make().unwrap();
            assert_eq!(code.expose().parse::<Code>().unwrap(), code);
            let typed = format!("  {} ", code.expose().to_uppercase().replace('-', "  "));
            assert_eq!(typed.parse::<Code>().unwrap(), code);
            assert_eq!(format!("{code:?}"), "Code(hidden)");
        }
        for bad in [
            "",
            "4821",
            "4821-otter",
            "482-otter-lamp",
            "4821-otter-lamp-x",
            "x821-otter-lamp",
            "4821-ött-lamp",
            &"4".repeat(99),
        ] {
            let error = bad.parse::<Code>().unwrap_err().to_string();
            assert!(
                error.contains("no pairing code") && !error.contains("otter-lamp-x"),
                "{error}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_a_code_panic(text in ".{0,80}") {
            let _ = text.parse::<Code>();
        }
    }
}
