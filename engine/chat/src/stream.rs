//! From sampled tokens to text that can be sent while it grows.

use std::sync::Arc;

use polder_backend::TokenId;

use crate::tokenizer::Tokenizer;

/// The text of one growing answer. A character whose bytes are spread over several tokens is
/// held back until it is whole.
#[derive(Debug, Clone)]
pub struct TextStream {
    tokenizer: Arc<Tokenizer>,
    /// Control tokens that are shown by name.
    shown: Arc<[TokenId]>,
    pending: Vec<u8>,
}

impl TextStream {
    /// Nothing said yet.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self::showing(tokenizer, [].into())
    }

    /// As [`Self::new`], but these control tokens come as their names: for a reader that knows
    /// them, such as [`ReplyParser`](crate::reply::ReplyParser), not for people.
    pub fn showing(tokenizer: Arc<Tokenizer>, shown: Arc<[TokenId]>) -> Self {
        Self { tokenizer, shown, pending: Vec::new() }
    }

    /// The text that this token completes. Control tokens have none, but for those that are shown.
    pub fn push(&mut self, token: TokenId) -> String {
        if self.shown.contains(&token) {
            return self.push_named(token);
        }
        self.pending.extend_from_slice(self.tokenizer.bytes(token));
        self.whole_characters()
    }

    /// As [`Self::push`], with the names of control tokens, as a prompt shows them.
    pub fn push_named(&mut self, token: TokenId) -> String {
        self.pending.extend_from_slice(self.tokenizer.name(token));
        self.whole_characters()
    }

    fn whole_characters(&mut self) -> String {
        let mut text = String::new();
        loop {
            match std::str::from_utf8(&self.pending) {
                Ok(valid) => {
                    text.push_str(valid);
                    self.pending.clear();
                    return text;
                }
                Err(error) => {
                    let valid = error.valid_up_to();
                    text.push_str(&String::from_utf8_lossy(&self.pending[..valid]));
                    let Some(bad) = error.error_len() else {
                        self.pending.drain(..valid);
                        return text;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    self.pending.drain(..valid + bad);
                }
            }
        }
    }

    /// What is left when no token follows: a character that never became whole.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}

/// What may be sent of a text that must not show its stop strings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopOutcome {
    /// Text that is certain to come before any stop string.
    pub text: String,
    /// A stop string was found; it and all after it are cut off.
    pub stopped: bool,
    /// Which one, counted as they were given.
    pub which: Option<usize>,
}

/// Watches a growing text for stop strings and holds back what might be the beginning of one.
#[derive(Debug, Clone)]
pub struct StopStrings {
    /// As they were given; empty ones stop nothing.
    stops: Arc<[String]>,
    held: String,
}

impl StopStrings {
    /// Empty strings are left out: they stop nothing.
    pub fn new(stops: &[String]) -> Self {
        Self { stops: stops.into(), held: String::new() }
    }

    fn given(&self) -> impl Iterator<Item = (usize, &String)> {
        self.stops.iter().enumerate().filter(|(_, stop)| !stop.is_empty())
    }

    /// Takes more text.
    pub fn push(&mut self, text: &str) -> StopOutcome {
        if self.given().next().is_none() {
            return StopOutcome { text: text.to_owned(), stopped: false, which: None };
        }
        self.held.push_str(text);
        let found =
            self.given().filter_map(|(which, stop)| Some((self.held.find(&**stop)?, which)));
        if let Some((at, which)) = found.min() {
            self.held.truncate(at);
            let text = std::mem::take(&mut self.held);
            return StopOutcome { text, stopped: true, which: Some(which) };
        }
        let keep = self.given().map(|(_, stop)| begun(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        let text = std::mem::replace(&mut self.held, rest);
        StopOutcome { text, stopped: false, which: None }
    }

    /// What was held back, when no text follows.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Bytes at the end of `text` that are the beginning of `stop`.
fn begun(text: &str, stop: &str) -> usize {
    stop.char_indices().rev().map(|(at, _)| at).find(|at| text.ends_with(&stop[..*at])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_stop_string_across_several_pieces_is_never_shown() {
        let mut watch = StopStrings::new(&["\n\nUser:".into(), "END".into()]);
        let shown: Vec<StopOutcome> =
            ["Hello\n", "\nUs", "ual", " E", "N", "D more"].map(|piece| watch.push(piece)).into();
        let text: String = shown.iter().map(|outcome| outcome.text.as_str()).collect();
        assert_eq!(text, "Hello\n\nUsual ");
        assert_eq!(shown[1].text, "");
        assert_eq!((shown[5].stopped, shown[5].which), (true, Some(1)));
    }

    #[test]
    fn an_empty_stop_string_stops_nothing_and_keeps_its_number() {
        let mut watch = StopStrings::new(&[String::new(), "b".into()]);
        assert_eq!(watch.push("a").which, None);
        assert_eq!(watch.push("b").which, Some(1));
    }

    proptest! {
        #[test]
        fn the_cut_does_not_depend_on_how_the_text_arrives(
            text in "[ab\u{e9}]{0,30}",
            stops in prop::collection::vec("[ab\u{e9}]{1,4}", 0..3),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let mut at: Vec<usize> =
                cuts.iter().map(|cut| cut.index(text.len() + 1)).filter(|at| text.is_char_boundary(*at)).collect();
            at.extend([0, text.len()]);
            at.sort_unstable();
            let mut watch = StopStrings::new(&stops);
            let (mut shown, mut stopped) = (String::new(), false);
            for pair in at.windows(2) {
                let outcome = watch.push(&text[pair[0]..pair[1]]);
                shown.push_str(&outcome.text);
                if outcome.stopped { stopped = true; break; }
            }
            if !stopped { shown.push_str(&watch.finish()); }
            let cut = stops.iter().filter_map(|stop| text.find(stop.as_str())).min();
            prop_assert_eq!(stopped, cut.is_some());
            // Arriving in pieces, an earlier-ending stop string may be found before one that
            // begins further left is complete; it is never shown either way.
            prop_assert!(stops.iter().all(|stop| !shown.contains(stop.as_str())));
            if cut.is_none() { prop_assert_eq!(shown, text); }
        }
    }
}
