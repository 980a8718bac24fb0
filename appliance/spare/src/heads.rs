use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

use crate::tombstones::append;
use crate::{Folders, SpareError};

/// On the spare: what the main box's audit trail ended with, so that a trail that was cut off or written anew over there shows here. The
/// file grows by a line each time; of what is older than a month it keeps the last of each day, and every break.
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
/// As many heads are kept before they are thinned: a month of them, which come every five minutes while the trail grows, and decades of days.
const MOST: usize = 30_000;
const DAY: i64 = 86_400;

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
        if !hex {
            return Err("that is no head of an audit trail".to_owned());
        }
        if self.lines.len() >= MOST {
            self.thin(now)?;
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

    /// Makes room; the file is the old one or the new one whatever happens.
    fn thin(&mut self, now: i64) -> Result<(), String> {
        let kept = thinned(&self.lines, now);
        if kept.len() >= MOST {
            return Err(
                "more heads of the audit trail came in a month than it has five minutes".to_owned()
            );
        }
        let line = |line: &Line| serde_json::to_string(line).expect("a line has only plain values");
        let text: String = kept.iter().map(|kept| line(kept) + "\n").collect();
        polder_pki::files::write(&self.folders.heads(), &text)
            .map_err(|error| error.to_string())?;
        self.lines = kept;
        Ok(())
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

/// Of what is older than what is spoken of, the last of each day and each side of a break or a new beginning.
fn thinned(lines: &[Line], now: i64) -> Vec<Line> {
    let of_day = |line: &Line| line.at.div_euclid(DAY);
    let stays = |at: usize| {
        let (line, next) = (&lines[at], lines.get(at + 1));
        let marks = |line: &Line| line.broken || line.number == 0;
        now.saturating_sub(line.at) < SPOKEN_OF
            || marks(line)
            || next.is_none_or(|next| marks(next) || of_day(next) != of_day(line))
    };
    (0..lines.len()).filter(|at| stays(*at)).map(|at| lines[at].clone()).collect()
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
    fn heads_of_many_years_are_thinned_to_days_and_every_break_stays() {
        let state = tempfile::tempdir().unwrap();
        let folders = Folders::of(state.path());
        fs::create_dir_all(folders.own()).unwrap();
        let head =
            |number: u64, at: i64, broken| Line { at, number, hash: format!("{number:x}"), broken };
        // Half a year of a trail that grows every five minutes, with a break in the middle of a day.
        let mut lines: Vec<Line> =
            (1..MOST as u64).map(|n| head(n, n as i64 * 300, false)).collect();
        lines.insert(1000, Line { broken: true, ..head(400, 1000 * 300, false) });
        let text: String = lines.iter().map(|l| serde_json::to_string(l).unwrap() + "\n").collect();
        fs::write(folders.heads(), text).unwrap();
        let mut heads = Heads::read(&folders).unwrap();
        let now = MOST as i64 * 300;
        assert_eq!(heads.keep(MOST as u64, "ff", now).unwrap(), Judged::Grown);
        let kept = Heads::read(&folders).unwrap().lines;
        assert_eq!(kept, heads.lines);
        assert!(kept.len() < 30 * 288 + 90, "{}", kept.len());
        let broken = kept.iter().position(|line| line.broken).unwrap();
        assert_eq!((kept[broken - 1].number, kept[broken].number), (1000, 400));
        assert_eq!(heads.last(), Some((MOST as u64, "ff".to_owned())));
        assert!(kept.windows(2).all(|two| two[1].at - two[0].at <= DAY));
        // Nobody fills it up in a month.
        let crowd = |n| head(n, now, false);
        heads.lines = (1..=MOST as u64).map(crowd).collect();
        assert!(heads.keep(MOST as u64 + 1, "aa", now).unwrap_err().contains("five minutes"));
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
