use std::io;
use std::path::PathBuf;

/// A backup could not be made, looked at or restored. Every message is one sentence: what, where, what to do.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// No restic.
    #[error(
        "{0} is not on this machine, and backups are made with it; install it (Debian: apt install restic)"
    )]
    NoRestic(String),
    /// The place is not there.
    #[error("the backups' place {place} cannot be reached: {why}")]
    Away {
        /// Where.
        place: String,
        /// Why, and what to do.
        why: String,
    },
    /// The disk cannot be written to.
    #[error(transparent)]
    Disk(#[from] crate::disk::DiskError),
    /// Nobody has made backups there.
    #[error("there are no backups at {0}; look whether that is the right disk or address")]
    NoStore(String),
    /// Backups of somebody else, or a mistyped key.
    #[error(
        "the key does not open the backups at {0}; compare it with the emergency kit of the box that made them"
    )]
    WrongKey(String),
    /// Somebody mistyped it.
    #[error(
        "that is no key of an emergency kit, or it has a slip: it has nine groups of four letters; type it once more, as it is on the paper"
    )]
    MistypedKey,
    /// What is there is not what was written there.
    #[error(
        "the backups at {place} are damaged ({why}); try an older one with --snapshot, or another copy, and replace the disk"
    )]
    Damaged {
        /// Where.
        place: String,
        /// What was found.
        why: String,
    },
    /// A newer version made it.
    #[error("this backup has a newer format ({found}) than this version of Polder reads ({FORMAT}); use the version that made it", FORMAT = crate::FORMAT)]
    Newer {
        /// The backup's.
        found: String,
    },
    /// The disk is full, here or there.
    #[error("there is no room for it: {0}")]
    NoSpace(String),
    /// Somebody else is at work there.
    #[error("the backups at {0} are being worked on by somebody else; try again in a few minutes")]
    Busy(String),
    /// It may only be added to.
    #[error("the store at {0} takes new backups and lets nothing be removed")]
    AppendOnly(String),
    /// There is no such backup.
    #[error("there is no backup {wanted} at {place}; `polder backup list` says which there are")]
    NoSnapshot {
        /// What was asked for.
        wanted: String,
        /// Where.
        place: String,
    },
    /// The newest lies in the future, or says no time.
    #[error(
        "the newest backup at {place}, {wanted}, says that it was made at {time}, and the clock of this machine says {now}; set the clock that is wrong, or name the backup that is meant"
    )]
    Future {
        /// Its name.
        wanted: String,
        /// Where.
        place: String,
        /// When it says that it was made.
        time: String,
        /// What this machine's clock says.
        now: String,
    },
    /// Something is there that is not ours.
    #[error("{place} has other things in it; choose an empty folder, or one that is not there yet")]
    Foreign {
        /// Where.
        place: String,
    },
    /// What is in the backup is not a box.
    #[error("what is in the backup is not a whole box: {0}")]
    NotWhole(String),
    /// Files of this machine.
    #[error("could not use {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The members' database could not be copied.
    #[error("the members' database could not be copied")]
    Database(#[source] rusqlite::Error),
    /// The members' database of a backup could not be used.
    #[error("the members' database in the backup could not be made ready")]
    Restored(#[source] rusqlite::Error),
    /// The system has no random numbers.
    #[error("no key could be made: {0}")]
    Random(String),
    /// Somebody stopped it.
    #[error("it was stopped")]
    Stopped,
    /// Something else that restic said.
    #[error("the backups at {place} could not be used: {why}")]
    Other {
        /// Where.
        place: String,
        /// Restic's own words.
        why: String,
    },
}

impl BackupError {
    /// What restic's complaint means to a person.
    pub(crate) fn of_restic(place: &str, complaint: &str) -> Self {
        let text = complaint.to_lowercase();
        let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
        let place = place.to_owned();
        let why = last_words(complaint);
        if has(&["wrong password or no key found"]) {
            return Self::WrongKey(place);
        }
        if has(&["no space left on device", "disk quota exceeded", "insufficient storage"]) {
            let free = "make some at the backups' place, or choose another one";
            return Self::NoSpace(format!("{place} is full; {free}"));
        }
        if has(&[
            "connection refused",
            "dial tcp",
            "no such host",
            "tls:",
            "x509:",
            "timeout",
            "deadline exceeded",
        ]) {
            let look = "see whether it runs and is on the network";
            return Self::Away { place, why: format!("{why}; {look}") };
        }
        if has(&["unsupported repository version", "invalid config: unsupported"]) {
            return Self::Newer { found: "of the store".to_owned() };
        }
        if has(&["403 forbidden", "append-only"]) {
            return Self::AppendOnly(place);
        }
        if has(&["401 unauthorized"]) {
            let look = "write its name and password with `polder backup login`";
            return Self::Away { place, why: format!("it asks who we are; {look}") };
        }
        if has(&["repository is already locked", "unable to create lock"]) {
            return Self::Busy(place);
        }
        if has(&[
            "ciphertext verification failed",
            "repository contains errors",
            "does not match",
            "invalid data returned",
            "not found in index",
            "not found in any index",
            "no id found",
            "wrong data returned",
            "unexpected eof",
            "pack file cannot be listed",
        ]) {
            return Self::Damaged { place, why };
        }
        if has(&["is there a repository at", "repository does not exist"]) {
            return Self::NoStore(place);
        }
        Self::Other { place, why }
    }
}

/// As much of a complaint as a sentence can hold: the line that says most.
fn last_words(complaint: &str) -> String {
    let lines = || complaint.lines().map(str::trim).filter(|line| !line.is_empty());
    let fatal = lines().find(|line| line.starts_with("Fatal:"));
    let first = lines().find(|line| line.contains("error") || line.contains("match"));
    let line = match fatal {
        // "There were 3 errors" says nothing.
        Some(line) if !line.contains("There were") => Some(line),
        _ => first.or(fatal).or(lines().next_back()),
    };
    let line = line.unwrap_or("restic said nothing").trim_start_matches("Fatal:").trim();
    line.chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_restic_complains_of_is_said_in_one_sentence_that_names_the_place() {
        // As restic 0.14 says them.
        for (complaint, said) in [
            (
                "Fatal: wrong password or no key found",
                "the key does not open the backups at /mnt/b",
            ),
            (
                "Fatal: unable to open config file: stat /mnt/b/config: no such file or directory\nIs there a repository at the following location?\n/mnt/b",
                "there are no backups at /mnt/b",
            ),
            (
                "Fatal: unable to open config file: client.Head: Head \"http://127.0.0.1:1/config\": dial tcp 127.0.0.1:1: connect: connection refused\nIs there a repository at the following location?\nrest:http://127.0.0.1:1/",
                "the backups' place /mnt/b cannot be reached",
            ),
            (
                "ignoring error for /pki/ca.pem: ciphertext verification failed\nFatal: There were 2 errors",
                "damaged (ignoring error for /pki/ca.pem: ciphertext verification failed)",
            ),
            ("Fatal: repository contains errors", "damaged"),
            ("Fatal: write /mnt/b/data/x: no space left on device", "/mnt/b is full"),
            ("Fatal: unsupported repository version 3", "newer format"),
            (
                "unable to create lock in backend: repository is already locked exclusively by PID 7",
                "by somebody else",
            ),
            ("Remove(<snapshot/1>) returned error, 403 Forbidden", "lets nothing be removed"),
            ("", "restic said nothing"),
        ] {
            let error = BackupError::of_restic("/mnt/b", complaint).to_string();
            assert!(error.contains(said), "{complaint}: {error}");
            assert!(!error.contains('\n'));
        }
    }

    proptest::proptest! {
        #[test]
        fn no_complaint_makes_a_sentence_of_many_lines(text in "(?s).{0,400}") {
            let error = BackupError::of_restic("x", &text).to_string();
            proptest::prop_assert!(!error.contains(['\n', '\r']) && error.len() < 1200);
        }
    }
}
