use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};

use crate::messages::Push;
use crate::{Folders, SpareError};

/// What must never work again: on the main box, where `STATE/gone.jsonl` has it line by line as soon as something is revoked; on the spare,
/// which keeps every line, in the order in which they came, as long as the two are paired.
///
/// Lines are numbered from 1. Here nobody reads what is in them (removed members, revoked keys by their id, never a key): whoever takes over does, with
/// `polder_members`.
#[derive(Debug)]
pub struct Tombstones {
    path: PathBuf,
    /// Those of the main box as it is now.
    current: Vec<String>,
}

/// Between lines of two lists: the main box's list was another one, as after its disk was replaced. What it revoked before stays.
const ANEW: &str = "{\"anew\":true}";
/// A line is some hundred bytes.
const LONGEST: usize = 500;
/// More is not read: years of a large collective.
const LARGEST: u64 = 64 << 20;
/// The main box's own list, in its state folder. `polder_members` writes it.
const OF_MAIN: &str = "gone.jsonl";

impl Tombstones {
    /// On the spare: those that it keeps.
    pub fn read(folders: &Folders) -> Result<Self, SpareError> {
        let path = folders.tombstones();
        let mut current = Vec::new();
        for line in lines(&path)? {
            match line.as_str() {
                ANEW => current.clear(),
                _ => current.push(line),
            }
        }
        Ok(Self { path, current })
    }

    /// On the main box: its own.
    pub fn of_main(state: &Path) -> Result<Self, SpareError> {
        let path = state.join(OF_MAIN);
        Ok(Self { current: lines(&path)?, path })
    }

    /// On the spare: every line that ever came, each once, for a takeover to apply.
    pub fn all(folders: &Folders) -> Result<Vec<String>, SpareError> {
        let mut seen = HashSet::new();
        let all = lines(&folders.tombstones())?.into_iter();
        Ok(all.filter(|line| line != ANEW && seen.insert(line.clone())).collect())
    }

    /// On the spare: how long the list is, in bytes. It only grows while the two are paired.
    pub fn size(folders: &Folders) -> u64 {
        fs::metadata(folders.tombstones()).map_or(0, |data| data.len())
    }

    /// How many there are, and a digest over them.
    pub fn have(&self) -> (u64, String) {
        (self.current.len() as u64, digest(&self.current))
    }

    /// What the spare has to be sent, when it says that it has these; nothing where it has all.
    pub fn missing(&self, has: u64, its_digest: &str) -> Option<Push> {
        let known = usize::try_from(has).ok().filter(|known| *known <= self.current.len());
        let same = known.filter(|known| digest(&self.current[..*known]) == its_digest);
        let after = same.unwrap_or(0);
        if same == Some(self.current.len()) {
            return None;
        }
        let lines = self.current[after..].iter().take(Push::MOST).cloned().collect();
        Some(Push { after: after as u64, anew: same.is_none(), lines })
    }

    /// On the spare: adds what follows; on disk when this returns. Says how many there are now.
    pub fn add(&mut self, push: &Push) -> Result<u64, String> {
        let before = if push.anew { 0 } else { self.current.len() as u64 };
        if push.lines.len() > Push::MOST || push.after != before {
            return Err(format!(
                "revocations must go on after number {before}, at most {} at once",
                Push::MOST
            ));
        }
        let plain = |line: &String| {
            line.len() <= LONGEST
                && line.starts_with('{')
                && line != ANEW
                && serde_json::from_str::<serde_json::Value>(line).is_ok()
                && !line.contains('\n')
        };
        if !push.lines.iter().all(plain) {
            return Err("a revocation is one line of JSON".to_owned());
        }
        let there = fs::metadata(&self.path).map_or(0, |data| data.len());
        if there + (push.lines.len() * LONGEST) as u64 > LARGEST {
            return Err("there are more revocations than a spare keeps".to_owned());
        }
        let mut text = String::new();
        for line in
            push.anew.then_some(ANEW).into_iter().chain(push.lines.iter().map(String::as_str))
        {
            text += line;
            text.push('\n');
        }
        append(&self.path, text.as_bytes()).map_err(|error| error.to_string())?;
        if push.anew {
            self.current.clear();
        }
        self.current.extend(push.lines.iter().cloned());
        Ok(self.current.len() as u64)
    }
}

/// SHA-256 over lines in their order, in hex.
fn digest(lines: &[String]) -> String {
    let mut context = Context::new(&SHA256);
    for line in lines {
        context.update(line.as_bytes());
        context.update(b"\n");
    }
    context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whole lines; half a one at the end was never acknowledged to anybody and comes again.
fn lines(path: &Path) -> Result<Vec<String>, SpareError> {
    let mut text = Vec::new();
    match File::open(path) {
        Ok(file) => {
            file.take(LARGEST).read_to_end(&mut text).map_err(SpareError::file(path))?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(SpareError::file(path)(error)),
    }
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let text = String::from_utf8_lossy(&text[..whole]);
    Ok(text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect())
}

/// Adds to a file that only grows. What a power cut left half there at its end is taken off first.
pub(crate) fn append(path: &Path, text: &[u8]) -> io::Result<()> {
    use std::io::{Seek, SeekFrom, Write};
    const TAIL: u64 = 2 * LONGEST as u64;
    let mut options = OpenOptions::new();
    let mut file =
        options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    let end = file.seek(SeekFrom::End(0))?;
    let from = end.saturating_sub(TAIL);
    file.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    (&mut file).take(TAIL).read_to_end(&mut tail)?;
    let whole = tail.iter().rposition(|b| *b == b'\n').map_or(from, |at| from + at as u64 + 1);
    file.set_len(whole)?;
    file.seek(SeekFrom::Start(whole))?;
    file.write_all(text)?;
    file.sync_all()?;
    if let (Some(folder), 0) = (path.parent(), whole) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str) -> String {
        format!("{{\"number\":1,\"at\":1000,\"what\":{{\"kind\":\"key\",\"key\":\"{id}\"}}}}")
    }

    struct Two {
        main: tempfile::TempDir,
        spare: tempfile::TempDir,
    }

    impl Two {
        fn new() -> Self {
            let two =
                Self { main: tempfile::tempdir().unwrap(), spare: tempfile::tempdir().unwrap() };
            fs::create_dir_all(two.folders().own()).unwrap();
            two
        }
        fn folders(&self) -> Folders {
            Folders::of(self.spare.path())
        }
        fn revoke(&self, text: &str) {
            use std::io::Write;
            let path = self.main.path().join(OF_MAIN);
            let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }
        /// One round; whether something was sent.
        fn push(&self) -> bool {
            let main = Tombstones::of_main(self.main.path()).unwrap();
            let mut spare = Tombstones::read(&self.folders()).unwrap();
            let (has, digest) = spare.have();
            let push = main.missing(has, &digest);
            push.as_ref().is_some_and(|push| spare.add(push).is_ok())
        }
        fn kept(&self) -> Vec<String> {
            Tombstones::all(&self.folders()).unwrap()
        }
    }

    #[test]
    fn each_revocation_is_sent_once_and_half_a_line_is_waited_for() {
        let two = Two::new();
        assert!(!two.push());
        two.revoke(&format!("{}\n{}", key("a"), &key("b")[..9]));
        assert!(two.push() && !two.push());
        two.revoke(&format!("{}\n", &key("b")[9..]));
        assert!(two.push() && !two.push());
        assert_eq!(two.kept(), [key("a"), key("b")]);
    }

    #[test]
    fn what_a_power_cut_left_half_written_on_the_spare_comes_again() {
        let two = Two::new();
        two.revoke(&format!("{}\n", key("a")));
        assert!(two.push());
        append(&two.folders().tombstones(), &key("b").as_bytes()[..7]).unwrap();
        two.revoke(&format!("{}\n", key("b")));
        assert!(two.push());
        assert_eq!(two.kept(), [key("a"), key("b")]);
    }

    #[test]
    fn a_main_box_whose_list_is_another_one_takes_nothing_back() {
        let two = Two::new();
        two.revoke(&format!("{}\n{}\n", key("a"), key("b")));
        assert!(two.push());
        fs::remove_file(two.main.path().join(OF_MAIN)).unwrap();
        two.revoke(&format!("{}\n", key("c")));
        assert!(two.push() && !two.push());
        assert_eq!(two.kept(), [key("a"), key("b"), key("c")]);
        fs::remove_file(two.main.path().join(OF_MAIN)).unwrap();
        assert!(two.push() && !two.push());
        assert_eq!(two.kept().len(), 3);
    }

    #[test]
    fn long_lists_come_in_parts_and_what_is_no_revocation_is_refused() {
        let two = Two::new();
        let many: String = (0..Push::MOST + 5).map(|n| key(&n.to_string()) + "\n").collect();
        two.revoke(&many);
        assert!(two.push() && two.push() && !two.push());
        assert_eq!(two.kept().len(), Push::MOST + 5);
        let mut list = Tombstones::read(&two.folders()).unwrap();
        let after = list.have().0;
        for bad in ["", "no", "[1]", "{\n}", ANEW, &format!("{{\"a\":\"{}\"}}", "a".repeat(600))] {
            let push = Push { after, anew: false, lines: vec![bad.to_owned()] };
            assert!(list.add(&push).is_err(), "{bad}");
        }
        assert!(list.add(&Push { after: 3, anew: false, lines: vec![key("x")] }).is_err());
    }
}
