//! Following a JSON value that comes character by character.

/// Deepest nesting that is followed, as `serde_json` has it.
const DEEPEST: usize = 127;
/// Longest number that is followed.
const LONGEST_NUMBER: usize = 512;

/// Where in a value the last character was.
#[derive(Debug, Clone, PartialEq, Eq)]
enum At {
    /// Before a value.
    Value,
    /// After `[`: a value or the end.
    FirstItem,
    /// After `{`: a key or the end.
    FirstKey,
    /// After a comma in an object.
    Key,
    /// After a key.
    Colon,
    /// After a value.
    After,
    /// In a string; how many characters of an escape must still come (`\` itself counts as `None`).
    Text { key: bool, escape: Escape },
    /// In a number or one of the three words.
    Bare(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Escape {
    No,
    /// After the backslash.
    Begun,
    /// So many hexadecimal digits must follow.
    Digits(u8),
}

/// Follows one object or array, strictly as the specification has it but for one thing: control
/// characters may stand in strings as they are, because models write them so (see [`Json::spell`]).
#[derive(Debug)]
pub(super) struct Json {
    /// Whether each open bracket is an object's.
    open: Vec<bool>,
    at: At,
    ended: bool,
}

/// What a character did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fed {
    /// The value goes on.
    On,
    /// This character ended it.
    Ended,
    /// It cannot be there.
    Wrong,
}

/// Where the next character stands, seen from the outermost object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In one of its keys.
    Key,
    /// Before a value of one of its keys.
    BeforeValue,
    /// In such a value.
    InValue,
    /// In such a value which is a number or a word: only the next character tells where it ends.
    InBareValue,
    /// Elsewhere.
    Between,
}

impl Json {
    pub(super) fn new() -> Self {
        Self { open: Vec::new(), at: At::Value, ended: false }
    }

    /// Takes one character.
    pub(super) fn feed(&mut self, character: char) -> Fed {
        if let At::Bare(word) = &mut self.at {
            if character.is_ascii_alphanumeric() || matches!(character, '+' | '-' | '.') {
                word.push(character);
                return if could_be(word) { Fed::On } else { Fed::Wrong };
            }
            if !is_whole(word) {
                return Fed::Wrong;
            }
            self.at = At::After;
        }
        if let At::Text { key, escape } = self.at {
            return self.in_text(character, key, escape);
        }
        if matches!(character, ' ' | '\n' | '\r' | '\t') {
            return Fed::On;
        }
        let in_object = self.open.last().copied();
        match (&self.at, character, in_object) {
            (At::FirstKey, '}', _) | (At::After, '}', Some(true)) => self.close(),
            (At::FirstItem, ']', _) | (At::After, ']', Some(false)) => self.close(),
            (At::FirstKey | At::Key, '"', _) => self.go(At::Text { key: true, escape: Escape::No }),
            (At::Colon, ':', _) => self.go(At::Value),
            (At::After, ',', Some(true)) => self.go(At::Key),
            (At::After, ',', Some(false)) => self.go(At::Value),
            (At::Value | At::FirstItem, '{' | '[', _) if self.open.len() < DEEPEST => {
                self.open.push(character == '{');
                self.go(if character == '{' { At::FirstKey } else { At::FirstItem })
            }
            // Only an object or an array shows by itself where it ends.
            (_, _, None) => Fed::Wrong,
            (At::Value | At::FirstItem, '"', _) => {
                self.go(At::Text { key: false, escape: Escape::No })
            }
            (At::Value | At::FirstItem, _, _) => {
                let word = character.to_string();
                if could_be(&word) { self.go(At::Bare(word)) } else { Fed::Wrong }
            }
            _ => Fed::Wrong,
        }
    }

    fn in_text(&mut self, character: char, key: bool, escape: Escape) -> Fed {
        let escape = match (escape, character) {
            (Escape::No, '"') => return self.go(if key { At::Colon } else { At::After }),
            (Escape::No, '\\') => Escape::Begun,
            (Escape::No, _) => Escape::No,
            (Escape::Begun, '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't') => Escape::No,
            (Escape::Begun, 'u') => Escape::Digits(4),
            (Escape::Digits(1), '0'..='9' | 'a'..='f' | 'A'..='F') => Escape::No,
            (Escape::Digits(left), '0'..='9' | 'a'..='f' | 'A'..='F') => Escape::Digits(left - 1),
            _ => return Fed::Wrong,
        };
        self.go(At::Text { key, escape })
    }

    fn go(&mut self, at: At) -> Fed {
        self.at = at;
        Fed::On
    }

    fn close(&mut self) -> Fed {
        self.open.pop();
        self.at = At::After;
        self.ended = self.open.is_empty();
        if self.ended { Fed::Ended } else { Fed::On }
    }

    /// Where the next character stands.
    pub(super) fn place(&self) -> Place {
        match (self.open.len(), &self.at) {
            (1, At::Text { key: true, .. }) => Place::Key,
            (1, At::Value) => Place::BeforeValue,
            (1, At::Text { key: false, .. }) => Place::InValue,
            (1, At::Bare(_)) => Place::InBareValue,
            (0 | 1, _) => Place::Between,
            _ => Place::InValue,
        }
    }

    /// How a character is to be written: a control character within a string is escaped.
    pub(super) fn spell(&self, character: char) -> String {
        match self.at {
            At::Text { escape: Escape::No, .. } if character < ' ' => {
                let quoted = quote(character.encode_utf8(&mut [0; 4]));
                quoted[1..quoted.len() - 1].to_owned()
            }
            _ => character.to_string(),
        }
    }
}

/// Whether a number or a word could begin so.
fn could_be(word: &str) -> bool {
    const WORDS: [&str; 3] = ["true", "false", "null"];
    let number = word.starts_with(|first: char| first == '-' || first.is_ascii_digit())
        && word.chars().all(|c| c.is_ascii_digit() || "+-.eE".contains(c));
    (number && word.len() <= LONGEST_NUMBER) || WORDS.iter().any(|known| known.starts_with(word))
}

fn is_whole(word: &str) -> bool {
    match word.starts_with(|first: char| first.is_ascii_alphabetic()) {
        true => matches!(word, "true" | "false" | "null"),
        // Not by value: 1e999 is a number, if one that nobody can hold.
        false => is_number(word),
    }
}

fn is_number(word: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let word = word.strip_prefix('-').unwrap_or(word);
    let (mantissa, exponent) = match word.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (word, None),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (mantissa, None),
    };
    digits(whole)
        && (whole == "0" || !whole.starts_with('0'))
        && fraction.is_none_or(digits)
        && exponent
            .is_none_or(|exponent| digits(exponent.strip_prefix(['+', '-']).unwrap_or(exponent)))
}

/// A text as a JSON string.
pub(super) fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Whether the text is one whole object or array.
    fn whole(text: &str) -> bool {
        let mut json = Json::new();
        let mut characters = text.chars();
        for character in characters.by_ref() {
            match json.feed(character) {
                Fed::On => {}
                Fed::Ended => return characters.as_str().is_empty(),
                Fed::Wrong => return false,
            }
        }
        false
    }

    #[test]
    fn an_escape_a_number_or_a_word_that_json_does_not_have_is_wrong() {
        for wrong in [
            r#"{"a": "\x"}"#,
            r#"{"a": "\u12g4"}"#,
            r#"{"a": 01}"#,
            r#"{"a": 1.}"#,
            r#"{"a": +1}"#,
            r#"{"a": nul}"#,
            r#"{"a": True}"#,
            r#"{"a": 1,}"#,
            "{a: 1}",
            "[1 2]",
            "[}",
            "1",
        ] {
            assert!(!whole(wrong), "{wrong}");
        }
        assert!(whole(r#"{"a": [-0.5e+10, true, null, "\u00e9\n", {}, []]}"#));
        assert!(!whole(&"[".repeat(DEEPEST + 1)));
    }

    proptest! {
        #[test]
        fn what_is_whole_is_what_serde_json_reads(
            text in "[\\[{][\\[\\]{},: \"\\\\u0-9ae.tn-]{0,12}[\\]}]",
        ) {
            let read = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
            prop_assert_eq!(whole(&text), read, "{}", text);
        }
    }
}
