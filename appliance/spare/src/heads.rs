use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

use crate::tombstones::append;
use crate::{Folders, SpareError};

/// On the spare: what the main box's audit trail ended with, hour after hour. The file only grows, so that a trail that was cut off or
/// written anew over there shows here.
#[derive(Debug)]
pub struct Heads {
    folders: Folders,
    lines: Vec<Line>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Line {
    /// Unix seconds.
    at: i64,
    /// How many entries there are.
    number: u64,
    /// The last one's hash, in hex.
    hash: String,
    /// It does not fit to the one before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    broken: bool,
}

/// What a head is beside the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judged {
    /// The trail has grown.
    Grown,
    /// Nothing was added.
    Same,
    /// There are fewer entries than there were.
    Shorter,
    /// As many, and the last is another one.
    Rewritten,
}

/// A break is spoken of for this long, in seconds.
const SPOKEN_OF: i64 = 30 * 86_400;
/// Heads that are read: a decade of hours.
const MOST: usize = 100_000;

impl Heads {
    /// Those of this state folder.
    pub fn read(folders: &Folders) -> Result<Self, SpareError> {
        let path = folders.heads();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(SpareError::File { path, source }),
        };
        // A line that the power cut off at its end is nobody's.
        let lines = text.lines().filter_map(|line| serde_json::from_str(line).ok());
        Ok(Self { folders: folders.clone(), lines: lines.collect() })
    }

    /// Keeps one; on disk when this returns. One that does not fit is kept too, with a mark.
    pub fn keep(&mut self, number: u64, hash: &str, now: i64) -> Result<Judged, String> {
        let hex = hash.len() <= 128 && hash.bytes().all(|b| b.is_ascii_hexdigit());
        if !hex || self.lines.len() >= MOST {
            return Err("that is no head of an audit trail".to_owned());
        }
        let judged = judge(self.lines.last(), number, hash);
        if judged != Judged::Same {
            let broken = matches!(judged, Judged::Shorter | Judged::Rewritten);
            let line = Line { at: now, number, hash: hash.to_owned(), broken };
            let mut text = serde_json::to_vec(&line).expect("a line has only plain values");
            text.push(b'\n');
            append(&self.folders.heads(), &text).map_err(|error| error.to_string())?;
            self.lines.push(line);
        }
        Ok(judged)
    }

    /// The trail that comes next need not fit: the state was handed over, and with it a trail that went on elsewhere.
    pub fn begin_anew(&mut self, now: i64) -> Result<(), SpareError> {
        if self.last().is_none() {
            return Ok(());
        }
        let line = Line { at: now, number: 0, hash: String::new(), broken: false };
        let mut text = serde_json::to_vec(&line).expect("a line has only plain values");
        text.push(b'\n');
        let path = self.folders.heads();
        append(&path, &text).map_err(|source| SpareError::File { path, source })?;
        self.lines.push(line);
        Ok(())
    }

    /// The last one: number and hash.
    pub fn last(&self) -> Option<(u64, String)> {
        let last = self.lines.last().filter(|line| line.number > 0);
        last.map(|line| (line.number, line.hash.clone()))
    }

    /// Those that a trail must still have, newest first, since it last broke: number and hash.
    pub fn to_compare(&self, most: usize) -> Vec<(u64, String)> {
        let mut found = Vec::new();
        for line in self.lines.iter().rev().take(most).take_while(|line| line.number > 0) {
            found.push((line.number, line.hash.clone()));
            if line.broken {
                break;
            }
        }
        found
    }

    /// A break of the last weeks, in one sentence.
    pub fn truncated(&self, now: i64) -> Option<String> {
        let pairs = self.lines.windows(2).rev();
        let fresh = |line: &Line| line.broken && now.saturating_sub(line.at) < SPOKEN_OF;
        let [before, after] = pairs.clone().find(|pair| fresh(&pair[1]))? else { return None };
        let at =
            jiff::Timestamp::from_second(after.at).map(|at| at.to_string()).unwrap_or_default();
        Some(match after.number < before.number {
            true => format!(
                "at {at} the main box's audit trail had {} entries, and it had had {}: the last ones were cut off",
                after.number, before.number
            ),
            false => format!(
                "at {at} entry {} of the main box's audit trail was another one than before: the trail was written anew",
                after.number
            ),
        })
    }
}

fn judge(last: Option<&Line>, number: u64, hash: &str) -> Judged {
    match last {
        Some(last) if number < last.number => Judged::Shorter,
        Some(last) if number == last.number && hash != last.hash => Judged::Rewritten,
        Some(last) if number == last.number => Judged::Same,
        _ => Judged::Grown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trail_that_was_cut_off_or_written_anew_shows_and_goes_on_showing() {
        let state = tempfile::tempdir().unwrap();
        let folders = Folders::of(state.path());
        fs::create_dir_all(folders.own()).unwrap();
        let mut heads = Heads::read(&folders).unwrap();
        assert_eq!(heads.keep(3, "aa", 100).unwrap(), Judged::Grown);
        assert_eq!(heads.keep(3, "aa", 200).unwrap(), Judged::Same);
        assert_eq!(heads.keep(9, "bb", 300).unwrap(), Judged::Grown);
        assert_eq!(heads.truncated(300), None);
        assert_eq!(heads.keep(9, "cc", 400).unwrap(), Judged::Rewritten);
        assert!(heads.truncated(400).unwrap().contains("written anew"));
        assert_eq!(heads.keep(4, "dd", 500).unwrap(), Judged::Shorter);
        assert_eq!(heads.keep(5, "ee", 600).unwrap(), Judged::Grown);
        let heads = Heads::read(&folders).unwrap();
        let said = heads.truncated(700).unwrap();
        assert!(said.contains("had 4 entries, and it had had 9"), "{said}");
        assert_eq!(heads.to_compare(10), [(5, "ee".to_owned()), (4, "dd".to_owned())]);
        assert_eq!(heads.truncated(500 + SPOKEN_OF), None);
        assert!(Heads::read(&folders).unwrap().keep(1, "not hex", 1).is_err());
    }

    #[test]
    fn a_trail_that_was_handed_over_need_not_fit_and_is_held_to_itself_from_then_on() {
        let state = tempfile::tempdir().unwrap();
        let folders = Folders::of(state.path());
        fs::create_dir_all(folders.own()).unwrap();
        let mut heads = Heads::read(&folders).unwrap();
        heads.begin_anew(1).unwrap();
        assert_eq!(heads.keep(9, "aa", 1).unwrap(), Judged::Grown);
        heads.begin_anew(2).unwrap();
        let mut heads = Heads::read(&folders).unwrap();
        assert_eq!((heads.last(), heads.to_compare(9)), (None, Vec::new()));
        assert_eq!(heads.keep(5, "bb", 3).unwrap(), Judged::Grown);
        assert_eq!(heads.keep(5, "cc", 4).unwrap(), Judged::Rewritten);
        assert!(heads.truncated(5).is_some());
    }
}
