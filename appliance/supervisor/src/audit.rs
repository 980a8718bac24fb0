use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use polder_control::{Actor, AuditEntry, AuditHead};
use sha2::{Digest, Sha256};

/// What stands before the first entry.
const BEGINNING: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// The longest text in one field; what comes from outside is cut to this.
const LONGEST_TEXT: usize = 200;
/// The longest line that is taken for an entry.
const LONGEST_LINE: u64 = 64 << 10;
/// The most entries that one page has.
const LONGEST_PAGE: u32 = 500;

/// The audit trail could not be used.
#[derive(Debug, thiserror::Error)]
pub enum TrailError {
    /// It could not be opened or read.
    #[error("could not read the audit trail {}", path.display())]
    Read {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// An entry could not be kept; the trail is as it was.
    #[error("could not write to the audit trail {}", path.display())]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// How the trail was found when it was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Every entry follows from the one before.
    Whole,
    /// A power cut left half a line at the end, which was never acknowledged; it was taken off.
    Repaired {
        /// How many bytes were taken off.
        bytes: u64,
    },
    /// Somebody or something changed it: the sentence says where.
    Broken(String),
}

/// Who did what, when: one JSON line per entry, each with a SHA-256 over the one before and itself,
/// so that a line which was changed, or is missing before another one, shows. Lines cut off the end do
/// not, unless somebody kept a [`Trail::head`] elsewhere: see [`verify`]. An entry is on the disk before it
/// is acknowledged.
#[derive(Debug)]
pub struct Trail {
    path: PathBuf,
    file: File,
    /// Where each line begins; the last number is where the next will.
    offsets: Vec<u64>,
    last: AuditEntry,
}

impl Trail {
    /// Opens (and makes, if need be) the trail of this state folder, and checks it.
    pub fn open(state: &Path) -> Result<(Self, Verdict), TrailError> {
        let path = state.join("audit").join("trail.jsonl");
        let read = |source| TrailError::Read { path: path.clone(), source };
        let folder = path.parent().expect("the path was joined to a folder");
        fs::create_dir_all(folder).map_err(read)?;
        let mut options = OpenOptions::new();
        options.create(true).read(true).append(true).mode(0o600);
        let file = options.open(&path).map_err(read)?;
        for folder in [folder, state] {
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(read)?;
        }
        let mut trail = Self { path: path.clone(), file, offsets: vec![0], last: before_all() };
        let verdict = trail.check().map_err(read)?;
        Ok((trail, verdict))
    }

    /// Adds an entry, and returns when it is on the disk.
    pub fn append(&mut self, by: Actor, what: &str, on: &str) -> Result<AuditEntry, TrailError> {
        let mut entry = AuditEntry {
            number: self.last.number.saturating_add(1),
            at: Timestamp::now().to_string(),
            by: tidy_actor(by),
            what: tidy(what),
            on: tidy(on),
            hash: String::new(),
        };
        entry.hash = hash(&self.last.hash, &entry);
        let mut line = serde_json::to_vec(&entry).expect("an entry has only text and numbers");
        line.push(b'\n');
        let written = self.file.write_all(&line).and_then(|()| self.file.sync_data());
        if let Err(source) = written {
            // Half an entry must not stand before the next one.
            let _ = self.file.set_len(self.end());
            return Err(TrailError::Write { path: self.path.clone(), source });
        }
        self.offsets.push(self.end() + line.len() as u64);
        self.last = entry.clone();
        Ok(entry)
    }

    /// How long the trail is and what it ends with, to be kept elsewhere.
    pub fn head(&self) -> AuditHead {
        AuditHead { number: self.last.number, hash: self.last.hash.clone() }
    }

    /// Entries with a smaller number than `before`, newest first, at most `limit` of them.
    pub fn page(&self, before: Option<u64>, limit: u32) -> Result<Vec<AuditEntry>, TrailError> {
        let lines = self.offsets.len() - 1;
        let limit = limit.min(LONGEST_PAGE) as usize;
        // Entry n is line n - 1, unless the chain is broken; then the numbers in the lines decide.
        let until = before.map_or(lines, |b| lines.min(b.saturating_sub(1) as usize));
        let from = until.saturating_sub(limit);
        let (begin, end) = (self.offsets[from], self.offsets[until]);
        let read = |source| TrailError::Read { path: self.path.clone(), source };
        let mut file = File::open(&self.path).map_err(read)?;
        file.seek(SeekFrom::Start(begin)).map_err(read)?;
        let mut text = Vec::new();
        file.take(end - begin).read_to_end(&mut text).map_err(read)?;
        let entries = text.split(|b| *b == b'\n');
        Ok(entries.rev().filter_map(|line| serde_json::from_slice(line).ok()).collect())
    }

    fn end(&self) -> u64 {
        *self.offsets.last().expect("the list is made with one number and only grows")
    }

    /// Reads every line, follows the chain, and takes off a torn end.
    fn check(&mut self) -> io::Result<Verdict> {
        let Self { path, offsets, last, .. } = self;
        let mut end = 0;
        let followed = follow(path, &mut |entry, bytes| {
            end += bytes;
            offsets.push(end);
            if let Some(entry) = entry {
                *last = entry.clone();
            }
        })?;
        if followed.torn > 0 {
            self.file.set_len(self.end())?;
            self.file.sync_all()?;
        }
        Ok(match (followed.fault, followed.torn) {
            (Some(fault), _) => Verdict::Broken(fault),
            (None, 0) => Verdict::Whole,
            (None, bytes) => Verdict::Repaired { bytes },
        })
    }
}

/// Checks the trail of a state folder without touching it, also while a box runs on it. Where somebody kept a
/// `head` elsewhere, entries that were cut off the end or written anew show as well. Half a line at the very end is one that is just being
/// written, or was never acknowledged.
pub fn verify(state: &Path, head: Option<&AuditHead>) -> Result<(AuditHead, Verdict), TrailError> {
    let path = state.join("audit").join("trail.jsonl");
    let (mut last, mut at_head) = (before_all(), None);
    if head.is_some_and(|head| head.number == 0) {
        at_head = Some(BEGINNING.to_owned());
    }
    let followed = follow(&path, &mut |entry, _| {
        let Some(entry) = entry else { return };
        if head.is_some_and(|head| head.number == entry.number) {
            at_head = Some(entry.hash.clone());
        }
        last = entry.clone();
    });
    let followed = followed.map_err(|source| TrailError::Read { path, source })?;
    let cut = head.and_then(|head| match at_head {
        Some(hash) if hash == head.hash => None,
        Some(_) => Some(format!(
            "entry {} is not the one that was known before: it and what follows were written anew",
            head.number
        )),
        None => Some(format!(
            "it ends with entry {}, and entry {} was known before: the end was cut off",
            last.number, head.number
        )),
    });
    let verdict = followed.fault.or(cut).map_or(Verdict::Whole, Verdict::Broken);
    Ok((AuditHead { number: last.number, hash: last.hash }, verdict))
}

/// What came of following the chain.
struct Followed {
    /// The first thing that is wrong.
    fault: Option<String>,
    /// Bytes of half a line at the very end.
    torn: u64,
}

/// Reads every line and follows the chain; `each` hears of every line, its entry where it is one, and its length in bytes.
fn follow(path: &Path, each: &mut dyn FnMut(Option<&AuditEntry>, u64)) -> io::Result<Followed> {
    let mut reader = BufReader::new(File::open(path)?);
    let (mut fault, mut last, mut lines) = (None, before_all(), 0u64);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = (&mut reader).take(LONGEST_LINE).read_until(b'\n', &mut line)? as u64;
        if read == 0 {
            return Ok(Followed { fault, torn: 0 });
        }
        if line.last() != Some(&b'\n') && reader.fill_buf()?.is_empty() {
            return Ok(Followed { fault, torn: read });
        }
        lines += 1;
        let entry = serde_json::from_slice::<AuditEntry>(&line).ok();
        let wrong = match &entry {
            None => Some(format!("line {lines} is not an entry")),
            Some(e) if Some(e.number) != last.number.checked_add(1) => {
                Some(format!("entry {} follows entry {}", e.number, last.number))
            }
            Some(e) if e.hash != hash(&last.hash, e) => {
                Some(format!("entry {} or the one before it was changed", e.number))
            }
            Some(_) => None,
        };
        // The first fault is the one to tell; what comes after it follows from it.
        fault = fault.or(wrong);
        each(entry.as_ref(), read);
        if let Some(entry) = entry {
            last = entry;
        }
    }
}

/// SHA-256 over the hash before and the entry's own text without its hash, in hexadecimal.
fn hash(before: &str, entry: &AuditEntry) -> String {
    let said = (entry.number, &entry.at, &entry.by, &entry.what, &entry.on);
    let said = serde_json::to_vec(&said).expect("an entry has only text and numbers");
    let digest =
        Sha256::new().chain_update(before).chain_update("\n").chain_update(said).finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn before_all() -> AuditEntry {
    AuditEntry {
        number: 0,
        at: String::new(),
        by: Actor::Itself,
        what: String::new(),
        on: String::new(),
        hash: BEGINNING.to_owned(),
    }
}

fn tidy_actor(by: Actor) -> Actor {
    match by {
        Actor::Member(name) => Actor::Member(tidy(&name)),
        other => other,
    }
}

fn tidy(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(state: &Path, entries: u64) -> PathBuf {
        let (mut trail, verdict) = Trail::open(state).unwrap();
        assert_eq!(verdict, Verdict::Whole);
        for i in 0..entries {
            trail.append(Actor::Member("ada".into()), "invited", &format!("guest {i}")).unwrap();
        }
        trail.path
    }

    #[test]
    fn pages_go_back_from_the_newest_without_a_gap() {
        let state = tempfile::tempdir().unwrap();
        filled(state.path(), 25);
        let (trail, verdict) = Trail::open(state.path()).unwrap();
        assert_eq!(verdict, Verdict::Whole);
        let (mut seen, mut before) = (Vec::new(), None);
        loop {
            let page = trail.page(before, 10).unwrap();
            let Some(last) = page.last() else { break };
            before = Some(last.number);
            seen.extend(page.iter().map(|e| e.number));
        }
        assert_eq!(seen, (1..=25).rev().collect::<Vec<_>>());
        assert_eq!(trail.page(Some(0), 10).unwrap(), []);
        assert_eq!(trail.page(Some(u64::MAX), 0).unwrap(), []);
        assert_eq!(trail.page(None, u32::MAX).unwrap().len(), 25);
    }

    #[test]
    fn only_the_owner_may_read_the_trail() {
        use std::os::unix::fs::PermissionsExt;
        let state = tempfile::tempdir().unwrap();
        let path = filled(state.path(), 1);
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_line_that_a_power_cut_left_half_is_taken_off_and_the_chain_goes_on() {
        let state = tempfile::tempdir().unwrap();
        let path = filled(state.path(), 3);
        let whole = fs::read(&path).unwrap();
        for cut in [1, 20, 100] {
            fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            let (mut trail, verdict) = Trail::open(state.path()).unwrap();
            assert!(matches!(verdict, Verdict::Repaired { bytes } if bytes > 0), "{verdict:?}");
            assert_eq!(trail.append(Actor::Console, "looked", "x").unwrap().number, 3);
            assert_eq!(Trail::open(state.path()).unwrap().1, Verdict::Whole);
        }
    }

    #[test]
    fn a_changed_a_missing_and_a_forged_entry_all_show() {
        let state = tempfile::tempdir().unwrap();
        let path = filled(state.path(), 4);
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let verdict = |text: String| {
            fs::write(&path, text).unwrap();
            Trail::open(state.path()).unwrap().1
        };
        let broken = |v: Verdict| matches!(v, Verdict::Broken(_));
        assert!(broken(verdict(text.replace("guest 1", "guest 9"))));
        assert!(broken(verdict([lines[0], lines[2], lines[3], ""].join("\n"))));
        assert!(broken(verdict(text.replace("\"number\":3", "\"number\":7"))));
        assert!(broken(verdict(format!("{text}garbage\n"))));
        assert!(broken(verdict(format!("{text}\n"))));
        assert_eq!(verdict(text.clone()), Verdict::Whole);
    }

    #[test]
    fn a_trail_that_was_cut_or_written_anew_shows_to_whoever_kept_its_head() {
        let state = tempfile::tempdir().unwrap();
        let path = filled(state.path(), 5);
        let whole = fs::read_to_string(&path).unwrap();
        let (head, verdict) = verify(state.path(), None).unwrap();
        assert_eq!((head.number, verdict), (5, Verdict::Whole));
        assert_eq!(head, Trail::open(state.path()).unwrap().0.head());
        // It only grew since.
        Trail::open(state.path()).unwrap().0.append(Actor::Console, "looked", "x").unwrap();
        assert_eq!(verify(state.path(), Some(&head)).unwrap().1, Verdict::Whole);
        let cut: String = whole.lines().take(3).map(|line| format!("{line}\n")).collect();
        fs::write(&path, cut).unwrap();
        let (shorter, verdict) = verify(state.path(), Some(&head)).unwrap();
        assert!(matches!(verdict, Verdict::Broken(why) if why.contains("cut off")));
        assert_eq!(verify(state.path(), None).unwrap().1, Verdict::Whole);
        // Somebody goes on from there: the chain is whole again, and still not the one that was.
        for i in 0..4 {
            Trail::open(state.path())
                .unwrap()
                .0
                .append(Actor::Itself, "forged", &i.to_string())
                .unwrap();
        }
        let anew = verify(state.path(), Some(&head)).unwrap().1;
        assert!(matches!(anew, Verdict::Broken(why) if why.contains("written anew")));
        assert_eq!(verify(state.path(), Some(&shorter)).unwrap().1, Verdict::Whole);
        let nothing = AuditHead { number: 0, hash: BEGINNING.to_owned() };
        assert_eq!(verify(state.path(), Some(&nothing)).unwrap().1, Verdict::Whole);
    }

    #[test]
    fn looking_at_a_trail_does_not_change_it() {
        let state = tempfile::tempdir().unwrap();
        let path = filled(state.path(), 2);
        let torn = [fs::read(&path).unwrap(), b"{\"number\":3".to_vec()].concat();
        fs::write(&path, &torn).unwrap();
        assert_eq!(verify(state.path(), None).unwrap().1, Verdict::Whole);
        assert_eq!(fs::read(&path).unwrap(), torn);
        assert!(verify(&state.path().join("nowhere"), None).is_err());
    }

    #[test]
    fn control_characters_and_endless_texts_do_not_get_in() {
        let state = tempfile::tempdir().unwrap();
        let (mut trail, _) = Trail::open(state.path()).unwrap();
        let name = "a\n\u{1b}[2J".to_owned() + &"x".repeat(10_000);
        let entry = trail.append(Actor::Member(name.clone()), &name, &name).unwrap();
        for text in [&entry.what, &entry.on, &entry.by.to_string()] {
            assert!(text.len() <= 4 * LONGEST_TEXT && !text.contains(['\n', '\u{1b}']));
        }
        assert_eq!(Trail::open(state.path()).unwrap().1, Verdict::Whole);
    }

    proptest::proptest! {
        #[test]
        fn no_file_makes_opening_panic(bytes in proptest::collection::vec(0u8.., 0..400)) {
            let state = tempfile::tempdir().unwrap();
            fs::create_dir(state.path().join("audit")).unwrap();
            fs::write(state.path().join("audit/trail.jsonl"), bytes).unwrap();
            if let Ok((mut trail, _)) = Trail::open(state.path()) {
                let entry = trail.append(Actor::Console, "a", "b").unwrap();
                assert_eq!(trail.page(None, 1).unwrap(), [entry]);
            }
        }
    }
}
