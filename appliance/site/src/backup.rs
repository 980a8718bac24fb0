use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a box keeps copies of its small precious state, how many, and how fast it may send them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    /// The place.
    pub to: BackupPlace,
    /// Most KiB per second that are sent; 0 is as fast as it goes. Always written: see `unknown.rs`.
    #[serde(default)]
    pub limit_kib: u32,
    /// Which of the copies are kept.
    #[serde(default)]
    pub keep: Retention,
}

impl Backup {
    /// To this place, with the usual values for everything else.
    pub fn to(to: BackupPlace) -> Self {
        Self { to, limit_kib: 0, keep: Retention::default() }
    }
}

/// Of how many of the last hours, days, weeks and months one copy is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Retention {
    /// Hours.
    pub hours: u16,
    /// Days.
    pub days: u16,
    /// Weeks.
    pub weeks: u16,
    /// Months.
    pub months: u16,
}

impl Default for Retention {
    fn default() -> Self {
        Self { hours: 48, days: 14, weeks: 8, months: 12 }
    }
}

impl Retention {
    /// False where every copy would go.
    pub fn keeps_something(&self) -> bool {
        self.hours > 0 || self.days > 0 || self.weeks > 0 || self.months > 0
    }
}

/// A place for backups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum BackupPlace {
    /// A folder of this machine, from the root.
    Folder(PathBuf),
    /// A folder on a disk, wherever it is mounted.
    Disk {
        /// What its file system is called; may be empty where it has an identity.
        label: String,
        /// Which one it is, whatever it is called; none where it is found by its label.
        id: Option<FileSystemId>,
    },
    /// A server that speaks restic's own protocol, by its address.
    Server(String),
    /// The spare that this box is paired with.
    Spare,
}

impl BackupPlace {
    /// What a person is told of it: a disk's name rather than its number.
    pub fn shown(&self) -> String {
        match self {
            Self::Disk { label, id: Some(id) } if label.is_empty() => format!("the disk {id}"),
            Self::Disk { label, id: Some(_) } => format!("the disk {label}"),
            other => other.to_string(),
        }
    }
}

/// The number that a file system got when it was made (its UUID), as the system writes it: hexadecimal digits and hyphens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileSystemId(String);

impl FileSystemId {
    /// As it is in a name of a file or a unit.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for FileSystemId {
    type Err = BackupPlaceError;

    fn from_str(given: &str) -> Result<Self, BackupPlaceError> {
        let plain = |c: u8| c.is_ascii_hexdigit() || c == b'-';
        let good =
            (4..=36).contains(&given.len()) && !given.starts_with('-') && given.bytes().all(plain);
        match good {
            true => Ok(Self(given.to_owned())),
            false => Err(BackupPlaceError(given.chars().take(80).collect())),
        }
    }
}

impl fmt::Display for FileSystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a file system is called, with what a site does not write as underscores.
pub fn plain_label(label: &str) -> String {
    let mut plain = String::new();
    for c in label.trim().chars() {
        let c = if is_plain(c) { c } else { '_' };
        if plain.len() + c.len_utf8() > LONGEST_LABEL {
            break;
        }
        plain.push(c);
    }
    plain
}

fn is_plain(c: char) -> bool {
    c.is_alphanumeric() || "_- ".contains(c)
}

/// Not a place for backups.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no place for backups; write a folder from the root (/mnt/backup), a disk by its label (disk:LABEL), a server without name and password in it (rest:https://spare.local:8000/box), or the box's spare (spare)"
)]
pub struct BackupPlaceError(String);

/// Bytes; file systems allow no longer ones.
const LONGEST_LABEL: usize = 40;
/// Longer than any place that somebody would type.
const LONGEST: usize = 300;

impl FromStr for BackupPlace {
    type Err = BackupPlaceError;

    fn from_str(given: &str) -> Result<Self, BackupPlaceError> {
        let refuse = || BackupPlaceError(given.chars().take(80).collect());
        if given.len() > LONGEST || given.chars().any(char::is_control) {
            return Err(refuse());
        }
        if given == "spare" {
            return Ok(Self::Spare);
        }
        if let Some(disk) = given.strip_prefix("disk:") {
            let (label, id) = match disk.split_once('@') {
                Some((label, id)) => (label, Some(id.parse().map_err(|_| refuse())?)),
                None => (disk, None),
            };
            // It becomes a part of a path.
            let good = label.len() <= LONGEST_LABEL && label.chars().all(is_plain);
            let named = !label.trim().is_empty() || (label.is_empty() && id.is_some());
            return match good && named {
                true => Ok(Self::Disk { label: label.to_owned(), id }),
                false => Err(refuse()),
            };
        }
        if let Some(address) = given.strip_prefix("rest:") {
            let rest = address.strip_prefix("https://").or_else(|| address.strip_prefix("http://"));
            let host = rest.ok_or_else(refuse)?.split('/').next().unwrap_or_default();
            // A password in it would be everybody's to read in site.toml.
            let plain = |c: u8| c.is_ascii_alphanumeric() || b"-._~%:/[]".contains(&c);
            if host.is_empty() || !address.bytes().all(plain) {
                return Err(refuse());
            }
            return Ok(Self::Server(address.to_owned()));
        }
        let path = Path::new(given);
        let up = path.components().any(|part| part == std::path::Component::ParentDir);
        if !path.is_absolute() || path.parent().is_none() || up {
            return Err(refuse());
        }
        Ok(Self::Folder(path.to_owned()))
    }
}

impl fmt::Display for BackupPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "{}", path.display()),
            Self::Disk { label, id: None } => write!(f, "disk:{label}"),
            Self::Disk { label, id: Some(id) } => write!(f, "disk:{label}@{id}"),
            Self::Server(address) => write!(f, "rest:{address}"),
            Self::Spare => f.write_str("spare"),
        }
    }
}

impl TryFrom<String> for BackupPlace {
    type Error = BackupPlaceError;
    fn try_from(given: String) -> Result<Self, BackupPlaceError> {
        given.parse()
    }
}

impl From<BackupPlace> for String {
    fn from(place: BackupPlace) -> Self {
        place.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_folder_a_disk_or_a_server_and_is_written_as_it_was_read() {
        for given in [
            "/mnt/backup",
            "disk:POLDER-BACKUP",
            "disk:My disk@1C2E-44AF",
            "disk:@0a1b2c3d-1111-2222-3333-444455556666",
            "rest:https://spare.local:8000/box",
            "spare",
        ] {
            assert_eq!(given.parse::<BackupPlace>().unwrap().to_string(), given);
        }
        for bad in [
            "",
            "/",
            "backup",
            "/mnt/../etc",
            "disk:",
            "disk:a/b",
            "disk:..",
            "disk:@",
            "disk: @1C2E-44AF",
            "disk:a@../sda1",
            "disk:a@-1C2E-44AF",
            "disk:a@12",
            "rest:example.org",
            "rest:https://",
            "rest:https://ada:secret@example.org/",
            "sftp:host:/x",
            &format!("/{}", "a".repeat(400)),
        ] {
            let error = bad.parse::<BackupPlace>().unwrap_err().to_string();
            assert!(error.contains("no place for backups"), "{bad}");
        }
    }

    #[test]
    fn people_are_told_what_a_disk_is_called_and_its_number_where_it_has_no_name() {
        let shown = |place: &str| place.parse::<BackupPlace>().unwrap().shown();
        assert_eq!(shown("disk:SAFE@1C2E-44AF"), "the disk SAFE");
        assert_eq!(shown("disk:@1C2E-44AF"), "the disk 1C2E-44AF");
        assert_eq!(shown("disk:SAFE"), "disk:SAFE");
        assert_eq!(plain_label(" a/b\n@é "), "a_b__é");
        assert_eq!(plain_label(&"é".repeat(30)).len(), 40);
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_a_place_panic_and_what_is_read_can_be_read_again(text in ".{0,80}") {
            if let Ok(place) = text.parse::<BackupPlace>() {
                proptest::prop_assert_eq!(place.to_string().parse::<BackupPlace>().unwrap(), place);
            }
        }
    }
}
