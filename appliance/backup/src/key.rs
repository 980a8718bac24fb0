use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{BackupError, Folders};

/// Letters that lie on the same keys all over the world.
const LETTERS: &[u8; 16] = b"cbdefghijklnrtuv";
/// Random bytes, and then two that show a slip of the pen.
const RANDOM: usize = 16;
const CHECK: usize = 2;

/// Opens a box's backups: nine groups of four letters, on paper with a steward. Never written to a log.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KitKey(String);

impl KitKey {
    /// A new one.
    pub fn make() -> Result<Self, BackupError> {
        let mut bytes = [0; RANDOM];
        getrandom::fill(&mut bytes).map_err(|e| BackupError::Random(e.to_string()))?;
        Ok(Self::of(&bytes))
    }

    fn of(bytes: &[u8; RANDOM]) -> Self {
        let check = Sha256::digest(bytes);
        let letters: Vec<u8> = bytes
            .iter()
            .chain(&check[..CHECK])
            .flat_map(|byte| [byte >> 4, byte & 15])
            .map(|half| LETTERS[usize::from(half)])
            .collect();
        let groups: Vec<&str> =
            letters.chunks(4).map(|four| std::str::from_utf8(four).expect("ASCII")).collect();
        Self(groups.join("-"))
    }

    /// As somebody typed it: capitals, spaces and missing hyphens are no mistakes, a wrong letter is.
    pub fn typed(text: &str) -> Result<Self, BackupError> {
        let mut halves = Vec::new();
        for c in text.chars().filter(|c| !c.is_whitespace() && *c != '-').take(100) {
            let half = LETTERS.iter().position(|l| char::from(*l) == c.to_ascii_lowercase());
            halves.push(half.ok_or(BackupError::MistypedKey)? as u8);
        }
        if halves.len() != (RANDOM + CHECK) * 2 {
            return Err(BackupError::MistypedKey);
        }
        let mut bytes = [0; RANDOM];
        for (byte, pair) in bytes.iter_mut().zip(halves.chunks(2)) {
            *byte = pair[0] << 4 | pair[1];
        }
        let key = Self::of(&bytes);
        let typed: Vec<u8> = halves.iter().map(|half| LETTERS[usize::from(*half)]).collect();
        let meant: Vec<u8> = key.0.bytes().filter(|c| *c != b'-').collect();
        if typed == meant { Ok(key) } else { Err(BackupError::MistypedKey) }
    }

    /// As it is written down, and as restic is told it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The groups, to be laid out on a page.
    pub fn groups(&self) -> impl Iterator<Item = &str> {
        self.0.split('-')
    }

    /// The box's key, if it has one.
    pub fn read(folders: &Folders) -> Result<Option<Self>, BackupError> {
        match fs::read_to_string(folders.key()) {
            Ok(text) => Self::typed(&text).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(BackupError::File { path: folders.key(), source }),
        }
    }

    /// The box's key, made at first use.
    pub fn of_box(folders: &Folders) -> Result<Self, BackupError> {
        if let Some(key) = Self::read(folders)? {
            return Ok(key);
        }
        let key = Self::make()?;
        key.keep(&folders.key())?;
        Ok(key)
    }

    /// Writes it to a file that only the owner can read, whole or not at all.
    pub(crate) fn keep(&self, path: &Path) -> Result<(), BackupError> {
        let fail = |source| BackupError::File { path: path.to_owned(), source };
        private_folder(path.parent().expect("a key is in a folder"))?;
        let beside = path.with_extension("new");
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&beside)
            .map_err(fail)?;
        writeln!(file, "{}", self.0).and_then(|()| file.sync_all()).map_err(fail)?;
        fs::rename(&beside, path).map_err(fail)
    }
}

/// Makes a folder for its owner only, if it is not there.
pub(crate) fn private_folder(path: &Path) -> Result<(), BackupError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| BackupError::File { path: path.to_owned(), source })
}

impl fmt::Debug for KitKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KitKey(hidden)")
    }
}

impl TryFrom<String> for KitKey {
    type Error = BackupError;
    fn try_from(text: String) -> Result<Self, BackupError> {
        Self::typed(&text)
    }
}

impl From<KitKey> for String {
    fn from(key: KitKey) -> Self {
        key.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_taken_however_it_is_spaced_and_one_wrong_letter_is_noticed() {
        let key = KitKey::make().unwrap();
        assert_eq!(key.groups().count(), 9);
        let spaced = format!(" {} \n", key.expose().to_uppercase().replace('-', "  "));
        assert_eq!(KitKey::typed(&spaced).unwrap(), key);
        for (at, letter) in key.expose().char_indices().filter(|(_, c)| *c != '-') {
            let other = if letter == 'c' { 'b' } else { 'c' };
            let mut wrong = key.expose().to_owned();
            wrong.replace_range(at..=at, &other.to_string());
            // The check has 16 bits: one letter of the random part goes unnoticed once in 65536.
            assert!(KitKey::typed(&wrong).map_or(true, |other| other != key), "{at}");
        }
        for bad in ["", "cccc", &format!("{}c", key.expose()), "üüüü", &"a".repeat(36)] {
            assert!(KitKey::typed(bad).is_err(), "{bad}");
        }
        assert!(!format!("{key:?}").contains(&key.expose()[..9]));
    }

    #[test]
    fn a_known_key_is_read_with_its_check_and_not_without() {
        let key = KitKey::of(&[7; RANDOM]);
        let (head, tail) = key.expose().split_at(key.expose().len() - 1);
        let other = if tail == "c" { "b" } else { "c" };
        assert!(matches!(KitKey::typed(&format!("{head}{other}")), Err(BackupError::MistypedKey)));
    }

    #[test]
    fn the_boxs_key_is_made_once_and_is_its_owners_only() {
        use std::os::unix::fs::PermissionsExt;
        let state = tempfile::tempdir().unwrap();
        let folders = Folders::of(state.path());
        assert!(KitKey::read(&folders).unwrap().is_none());
        let key = KitKey::of_box(&folders).unwrap();
        assert_eq!(KitKey::of_box(&folders).unwrap(), key);
        let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(folders.own()), mode(folders.key())), (0o700, 0o600));
    }
}
