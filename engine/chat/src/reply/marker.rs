//! Finding markers in a text that comes character by character.

/// Watches for markers and holds back only what could begin one.
#[derive(Debug)]
pub(super) struct Watch {
    markers: Vec<String>,
    held: String,
}

/// What became certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// A character that belongs to no marker.
    Plain(char),
    /// The marker of this index.
    Marker(usize),
}

impl Watch {
    /// Empty markers are left out of the watch, not of the numbering.
    pub(super) fn new<'a>(markers: impl IntoIterator<Item = &'a str>) -> Self {
        Self { markers: markers.into_iter().map(String::from).collect(), held: String::new() }
    }

    /// Takes one character.
    pub(super) fn feed(&mut self, character: char) -> Vec<Seen> {
        self.held.push(character);
        let mut seen = Vec::new();
        while let Some(first) = self.held.chars().next() {
            if let Some(index) = self.markers.iter().position(|marker| *marker == self.held) {
                self.held.clear();
                seen.push(Seen::Marker(index));
            } else if self.markers.iter().any(|marker| marker.starts_with(&self.held)) {
                break;
            } else {
                self.held.drain(..first.len_utf8());
                seen.push(Seen::Plain(first));
            }
        }
        seen
    }

    /// What was held back, when nothing follows.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// White space, and after it one of several words: where the text may go on only so.
#[derive(Debug)]
pub(super) struct Expect {
    words: &'static [&'static str],
    /// Everything read so far.
    raw: String,
    /// Where the white space ends.
    start: usize,
}

/// How far that is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Met {
    /// It could still be one of the words.
    Maybe,
    /// It is the word of this index.
    Word(usize),
    /// It is something else: all that was read.
    Other(String),
}

impl Expect {
    pub(super) fn new(words: &'static [&'static str]) -> Self {
        Self { words, raw: String::new(), start: 0 }
    }

    /// Takes one character.
    pub(super) fn feed(&mut self, character: char) -> Met {
        self.raw.push(character);
        if self.start + character.len_utf8() == self.raw.len() && character.is_whitespace() {
            self.start = self.raw.len();
            return Met::Maybe;
        }
        let word = &self.raw[self.start..];
        match self.words.iter().position(|expected| *expected == word) {
            Some(index) => Met::Word(index),
            None if self.words.iter().any(|expected| expected.starts_with(word)) => Met::Maybe,
            None => Met::Other(std::mem::take(&mut self.raw)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watched(markers: &[&str], text: &str) -> String {
        let mut watch = Watch::new(markers.iter().copied());
        let mut shown = String::new();
        for seen in text.chars().flat_map(|character| watch.feed(character)) {
            match seen {
                Seen::Plain(character) => shown.push(character),
                Seen::Marker(index) => shown.push_str(&format!("({index})")),
            }
        }
        shown + &watch.finish()
    }

    #[test]
    fn markers_are_found_wherever_they_begin() {
        assert_eq!(watched(&["<<a>", "</a>"], "x<<<a>y</<</a></a"), "x<(0)y</<(1)</a");
        assert_eq!(watched(&[], "<a>"), "<a>");
    }

    #[test]
    fn only_what_could_begin_a_marker_is_held_back() {
        let mut watch = Watch::new(["<think>"]);
        assert_eq!(watch.feed('a'), [Seen::Plain('a')]);
        assert_eq!(watch.feed('<'), []);
        assert_eq!(watch.feed('b'), [Seen::Plain('<'), Seen::Plain('b')]);
    }

    #[test]
    fn an_expected_word_may_follow_white_space_only() {
        const WORDS: &[&str] = &["</f>", "<p="];
        let meet = |text: &str| {
            let mut expect = Expect::new(WORDS);
            text.chars().map(|c| expect.feed(c)).find(|met| *met != Met::Maybe)
        };
        assert_eq!(meet("\n  <p="), Some(Met::Word(1)));
        assert_eq!(meet("</f>"), Some(Met::Word(0)));
        assert_eq!(meet(" < "), Some(Met::Other(" < ".into())));
        assert_eq!(meet(" </"), None);
    }
}
