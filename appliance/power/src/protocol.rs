//! The lines that go between NUT's upsd and those who ask it. No input or output here: text in, text out.

use std::collections::BTreeMap;
use std::fmt::Write;

/// Something to ask of upsd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// Which UPSes are there?
    ListUps,
    /// One variable.
    GetVar(String, String),
    /// All variables of a UPS.
    ListVar(String),
    /// All commands that it takes.
    ListCmd(String),
    /// How many machines count on it.
    NumLogins(String),
    /// Who asks.
    Username(String),
    /// And how that is known.
    Password(String),
    /// This machine lives off this UPS.
    Login(String),
    /// This machine looks after it.
    Primary(String),
    /// The same for upsds older than 2.8.
    Master(String),
    /// Everybody shall hear that its power goes.
    Fsd(String),
    /// The UPS shall do this.
    InstCmd(String, String),
    /// It shall have this variable so.
    SetVar(String, String, String),
    /// This machine counts on it no more.
    Logout,
}

impl Ask {
    /// The line, with its end.
    pub fn line(&self) -> String {
        let words: Vec<&str> = match self {
            Self::ListUps => vec!["LIST", "UPS"],
            Self::GetVar(ups, name) => vec!["GET", "VAR", ups, name],
            Self::ListVar(ups) => vec!["LIST", "VAR", ups],
            Self::ListCmd(ups) => vec!["LIST", "CMD", ups],
            Self::NumLogins(ups) => vec!["GET", "NUMLOGINS", ups],
            Self::Username(name) => vec!["USERNAME", name],
            Self::Password(word) => vec!["PASSWORD", word],
            Self::Login(ups) => vec!["LOGIN", ups],
            Self::Primary(ups) => vec!["PRIMARY", ups],
            Self::Master(ups) => vec!["MASTER", ups],
            Self::Fsd(ups) => vec!["FSD", ups],
            Self::InstCmd(ups, name) => vec!["INSTCMD", ups, name],
            Self::SetVar(ups, name, value) => vec!["SET", "VAR", ups, name, value],
            Self::Logout => vec!["LOGOUT"],
        };
        let mut line = words.into_iter().map(quoted).collect::<Vec<_>>().join(" ");
        line.push('\n');
        line
    }

    /// Whether the answer is a list, with a line before and one after it.
    fn is_list(&self) -> bool {
        matches!(self, Self::ListUps | Self::ListVar(_) | Self::ListCmd(_))
    }
}

/// A word as the protocol carries it. What would end a line is left out: no answer of ours can become a second question.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:/@".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    let mut text = String::from("\"");
    for c in word.chars().filter(|c| !c.is_control()) {
        if c == '"' || c == '\\' {
            text.push('\\');
        }
        // Writing to a text cannot fail.
        let _ = text.write_char(c);
    }
    text.push('"');
    text
}

/// The words of a line; none where its quotes do not close.
pub fn words(line: &str) -> Option<Vec<String>> {
    let (mut words, mut word) = (Vec::new(), None::<String>);
    let mut quotes = false;
    let mut letters = line.chars();
    while let Some(c) = letters.next() {
        match c {
            '\\' => word.get_or_insert_default().push(letters.next()?),
            '"' => {
                word.get_or_insert_default();
                quotes = !quotes;
            }
            c if c.is_ascii_whitespace() && !quotes => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    (!quotes).then_some(words)
}

/// What upsd answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Done.
    Ok,
    /// One value: of a variable, or how many.
    Value(String),
    /// Names with what they are.
    List(BTreeMap<String, String>),
    /// No, in upsd's word: `ACCESS-DENIED`, `DATA-STALE`, `UNKNOWN-UPS`.
    Refused(String),
}

/// What came is no answer to what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Garbled {
    /// Another line than expected.
    #[error("it said {0:?}, which is no answer to the question")]
    Line(String),
    /// More than any upsd says.
    #[error("it says more than any UPS has to say")]
    TooMuch,
}

/// Longest line, and most lines of a list.
const LONGEST: usize = 4096;
const MOST: usize = 2000;

/// Puts an answer together from bytes as they come.
#[derive(Debug)]
pub struct Listener {
    list: bool,
    buffer: Vec<u8>,
    begun: bool,
    entries: BTreeMap<String, String>,
}

impl Listener {
    /// For the answer to this question.
    pub fn to(ask: &Ask) -> Self {
        Self { list: ask.is_list(), buffer: Vec::new(), begun: false, entries: BTreeMap::new() }
    }

    /// More bytes came; gives the answer once it is whole.
    pub fn hear(&mut self, bytes: &[u8]) -> Result<Option<Answer>, Garbled> {
        self.buffer.extend_from_slice(bytes);
        let mut answer = None;
        while let (Some(end), None) = (self.buffer.iter().position(|b| *b == b'\n'), &answer) {
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            answer = self.line(line.trim_end())?;
        }
        match &answer {
            None if self.buffer.len() > LONGEST || self.entries.len() > MOST => {
                Err(Garbled::TooMuch)
            }
            _ => Ok(answer),
        }
    }

    fn line(&mut self, line: &str) -> Result<Option<Answer>, Garbled> {
        let odd = || Garbled::Line(line.chars().filter(|c| !c.is_control()).take(80).collect());
        let words = words(line).ok_or_else(odd)?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        Ok(match (self.list, &words[..]) {
            (_, ["ERR", why, ..]) => Some(Answer::Refused((*why).to_owned())),
            (false, ["OK", ..]) => Some(Answer::Ok),
            (false, ["VAR", _, _, value] | ["NUMLOGINS", _, value]) => {
                Some(Answer::Value((*value).to_owned()))
            }
            (true, ["BEGIN", "LIST", ..]) if !self.begun => {
                self.begun = true;
                None
            }
            (true, ["END", "LIST", ..]) if self.begun => {
                Some(Answer::List(std::mem::take(&mut self.entries)))
            }
            (true, ["UPS", name, value] | ["VAR", _, name, value]) if self.begun => {
                self.entries.insert((*name).to_owned(), (*value).to_owned());
                None
            }
            (true, ["CMD", _, name]) if self.begun => {
                self.entries.insert((*name).to_owned(), String::new());
                None
            }
            _ => return Err(odd()),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hear(ask: &Ask, text: &str) -> Result<Option<Answer>, Garbled> {
        Listener::to(ask).hear(text.as_bytes())
    }

    #[test]
    fn upsds_own_answers_are_understood() {
        let list = Ask::ListVar("box".into());
        let text = "BEGIN LIST VAR box\nVAR box battery.charge \"90\"\nVAR box device.mfr \"A \\\"B\\\" \\\\ C\"\nEND LIST VAR box\n";
        let Ok(Some(Answer::List(said))) = hear(&list, text) else { panic!() };
        assert_eq!(said["battery.charge"], "90");
        assert_eq!(said["device.mfr"], "A \"B\" \\ C");
        let get = Ask::GetVar("box".into(), "ups.status".into());
        assert_eq!(hear(&get, "VAR box ups.status \"OL\"\n"), Ok(Some(Answer::Value("OL".into()))));
        assert_eq!(hear(&get, "ERR DATA-STALE\n"), Ok(Some(Answer::Refused("DATA-STALE".into()))));
        assert_eq!(hear(&Ask::Fsd("box".into()), "OK FSD-SET\n"), Ok(Some(Answer::Ok)));
        let logins = Ask::NumLogins("box".into());
        assert_eq!(hear(&logins, "NUMLOGINS box 2\n"), Ok(Some(Answer::Value("2".into()))));
    }

    #[test]
    fn a_list_that_does_not_begin_or_a_line_from_elsewhere_is_no_answer() {
        let list = Ask::ListUps;
        for text in [
            "END LIST UPS\n",
            "UPS a \"b\"\n",
            "OK\n",
            "VAR a b\n",
            "\n",
            "BEGIN LIST UPS\nBEGIN LIST UPS\n",
            "UPS a \"b\n",
        ] {
            assert!(hear(&list, text).is_err(), "{text}");
        }
        assert_eq!(hear(&list, &"x".repeat(5000)), Err(Garbled::TooMuch));
        let endless = "BEGIN LIST UPS\n".to_owned()
            + &(0..3000).map(|n| format!("UPS u{n} \"x\"\n")).collect::<String>();
        assert_eq!(hear(&list, &endless), Err(Garbled::TooMuch));
    }

    proptest! {
        #[test]
        fn no_bytes_panic_however_they_are_cut(bytes in proptest::collection::vec(any::<u8>(), 0..400), cut in 0usize..400) {
            for ask in [Ask::ListUps, Ask::Login("u".into())] {
                let mut listener = Listener::to(&ask);
                let (first, rest) = bytes.split_at(cut.min(bytes.len()));
                let _ = listener.hear(first).and_then(|_| listener.hear(rest));
            }
        }

        #[test]
        fn an_answer_does_not_depend_on_where_its_bytes_are_cut(cuts in proptest::collection::vec(1usize..30, 0..10)) {
            let text = b"BEGIN LIST VAR b\nVAR b a \"1 \\\" 2\"\nVAR b c \"\"\nEND LIST VAR b\n";
            let whole = Listener::to(&Ask::ListVar("b".into())).hear(text).unwrap();
            let mut listener = Listener::to(&Ask::ListVar("b".into()));
            let (mut rest, mut answer) = (&text[..], None);
            for cut in cuts.into_iter().chain([text.len()]) {
                let (part, after) = rest.split_at(cut.min(rest.len()));
                rest = after;
                answer = answer.or(listener.hear(part).unwrap());
            }
            prop_assert_eq!(answer, whole);
        }

        #[test]
        fn what_is_quoted_is_one_word_and_one_line(word in "\\PC*") {
            let line = Ask::Password(word.clone()).line();
            prop_assert_eq!(line.matches('\n').count(), 1);
            prop_assert_eq!(words(line.trim_end_matches('\n')).unwrap(), ["PASSWORD".to_owned(), word]);
        }

        #[test]
        fn nobody_smuggles_a_second_question(word in any::<String>()) {
            let line = Ask::InstCmd("u".into(), word).line();
            prop_assert_eq!(line.matches(['\n', '\r']).count(), 1);
        }
    }
}
