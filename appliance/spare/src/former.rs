//! Boxes that were the collective's main box and never are again.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Certificate, Folders, SpareError};

/// No list of ours is longer, in bytes and in boxes.
const LONGEST: u64 = 1 << 20;
const MOST: usize = 64;

/// A main box whose spare stayed the main box: `STATE/spare/formers.json` has each, and a second copy beside it, for as long as this box lives. Its link certificate is revoked: it
/// opens nothing any more, and whoever shows it only hears that it is out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Former {
    /// What it was called.
    pub name: String,
    /// How it shows who it is.
    pub certificate: Certificate,
    /// The highest term or epoch that it can have heard of; it never serves in one that is lower.
    pub term: u64,
    /// Where it looks for this box.
    pub port: u16,
    /// Since when, Unix seconds.
    pub at: i64,
    /// It is out, and the site of this box does not say yet that it is in its place.
    #[serde(default)]
    pub unfinished: bool,
}

impl Former {
    /// All of them, oldest first, as far as they can be read: from the list, and from its second copy where the list cannot be.
    pub fn all(folders: &Folders) -> Vec<Self> {
        Lists::read(folders).known()
    }

    /// Whether somebody may come back who has to be told, or people have to be told that this box cannot. A list that cannot be read counts as one.
    pub fn any(state: &Path) -> bool {
        let folders = Folders::of(state);
        let lists = Lists::read(&folders);
        lists.is_damaged() || !lists.known().is_empty() || Self::aside(&folders).is_some()
    }

    /// The one that this box was about to follow when it was cut off.
    pub fn unfinished(folders: &Folders) -> Option<Self> {
        Self::all(folders).into_iter().rfind(|former| former.unfinished)
    }

    /// This box is in the place of all of them, and its site says so.
    pub fn finish(folders: &Folders) -> Result<(), SpareError> {
        let mut all = Self::all(folders);
        if all.iter().all(|former| !former.unfinished) {
            return Ok(());
        }
        all.iter_mut().for_each(|former| former.unfinished = false);
        write(folders, &all)
    }

    /// Writes it down, once for each certificate; on the disk when this returns. A list that cannot be read is set aside, never written over.
    pub fn keep(self, folders: &Folders) -> Result<(), SpareError> {
        let mut all = Self::mend(folders);
        all.retain(|other| other.certificate != self.certificate);
        // A box that outlives so many main boxes need not tell the first one.
        while all.len() >= MOST {
            all.remove(0);
        }
        all.push(self);
        write(folders, &all)
    }

    /// For the part that listens for them: sets a list aside that cannot be read, says so, and writes what is known of it anew. All that are known.
    pub(crate) fn mend(folders: &Folders) -> Vec<Self> {
        let lists = Lists::read(folders);
        let known = lists.known();
        if !lists.is_damaged() {
            return known;
        }
        let aside = folders.formers_aside();
        log::error!(
            "{}; it is set aside as {}, and {} of the machines that are out for good are still known. One that is not cannot hear that it is out when it comes back: it waits and serves nothing, as long as nobody says `polder spare serve-anyway` there",
            lists.why(),
            aside.display(),
            known.len()
        );
        let damaged = match lists.first {
            List::Damaged { .. } => folders.formers(),
            _ => folders.formers_copy(),
        };
        let set_aside = std::fs::rename(damaged, &aside).map_err(SpareError::file(aside));
        // Where nothing can be moved or written, what is known holds for this life.
        if let Err(error) = set_aside.and_then(|()| write(folders, &known)) {
            log::error!("{error}");
        }
        known
    }

    /// Where a list lies that could not be read, if one was set aside: boxes that only it knew cannot hear that they are out.
    pub(crate) fn aside(folders: &Folders) -> Option<PathBuf> {
        Some(folders.formers_aside()).filter(|path| path.exists())
    }
}

fn write(folders: &Folders, all: &[Former]) -> Result<(), SpareError> {
    let text = serde_json::to_vec_pretty(all).expect("a list has only plain values");
    for path in [folders.formers(), folders.formers_copy()] {
        polder_site::write_durably(&path, &text).map_err(SpareError::file(path))?;
    }
    Ok(())
}

/// The list and its second copy, as they are.
struct Lists {
    first: List,
    copy: List,
}

enum List {
    Missing,
    Whole(Vec<Former>),
    /// With those of its boxes that can be read all the same.
    Damaged {
        why: String,
        some: Vec<Former>,
    },
}

impl Lists {
    fn read(folders: &Folders) -> Self {
        Self { first: List::read(&folders.formers()), copy: List::read(&folders.formers_copy()) }
    }

    fn known(&self) -> Vec<Former> {
        match (&self.first, &self.copy) {
            (List::Whole(all), _) => all.clone(),
            (List::Missing, List::Whole(all) | List::Damaged { some: all, .. }) => all.clone(),
            (List::Missing, List::Missing) => Vec::new(),
            (List::Damaged { some, .. }, copy) => {
                let mut all = match copy {
                    List::Whole(all) | List::Damaged { some: all, .. } => all.clone(),
                    List::Missing => Vec::new(),
                };
                for former in some {
                    all.retain(|other| other.certificate != former.certificate);
                    all.push(former.clone());
                }
                all.drain(..all.len().saturating_sub(MOST));
                all
            }
        }
    }

    fn is_damaged(&self) -> bool {
        let damaged = |list: &List| matches!(list, List::Damaged { .. });
        damaged(&self.first) || (damaged(&self.copy) && !matches!(self.first, List::Whole(_)))
    }

    fn why(&self) -> &str {
        [&self.first, &self.copy]
            .into_iter()
            .find_map(|list| match list {
                List::Damaged { why, .. } => Some(why.as_str()),
                _ => None,
            })
            .unwrap_or_default()
    }
}

impl List {
    fn read(path: &Path) -> Self {
        let read = || match std::fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
            Ok(file) if file.len() > LONGEST => Err(io::Error::other("it is too long")),
            Ok(_) => std::fs::read(path).map(Some),
        };
        let damaged = |why: &dyn std::fmt::Display, some| Self::Damaged {
            why: format!("{} cannot be read ({why})", path.display()),
            some,
        };
        let text = match read() {
            Ok(Some(text)) => text,
            Ok(None) => return Self::Missing,
            Err(error) => return damaged(&error, Vec::new()),
        };
        match serde_json::from_slice(&text) {
            Ok(all) => Self::Whole(all),
            // One box that cannot be read takes no other along.
            Err(error) => {
                let each: Vec<serde_json::Value> =
                    serde_json::from_slice(&text).unwrap_or_default();
                let some = each.into_iter().filter_map(|one| serde_json::from_value(one).ok());
                damaged(&error, some.collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Identity;

    /// A box with room for a list, and some that were its main box.
    fn three() -> (tempfile::TempDir, Folders, [Former; 3]) {
        let here = tempfile::tempdir().unwrap();
        let folders = Folders::of(here.path());
        Identity::of_box(&folders).unwrap();
        let former = |name: &str| {
            let there = tempfile::tempdir().unwrap();
            let other = Identity::of_box(&Folders::of(there.path())).unwrap();
            let certificate = other.certificate().clone();
            Former {
                name: name.to_owned(),
                certificate,
                term: 3,
                port: 8444,
                at: 1,
                unfinished: false,
            }
        };
        (here, folders, ["oak", "elm", "ash"].map(former))
    }
    fn names(all: &[Former]) -> Vec<&str> {
        all.iter().map(|former| former.name.as_str()).collect()
    }

    #[test]
    fn a_former_main_box_is_kept_once_and_one_that_was_cut_off_is_known_until_it_is_done() {
        let (here, folders, [oak, elm, _]) = three();
        assert!(!Former::any(here.path()));
        oak.clone().keep(&folders).unwrap();
        let oak = Former { term: 5, ..oak };
        oak.clone().keep(&folders).unwrap();
        assert_eq!(Former::all(&folders), std::slice::from_ref(&oak));
        assert_eq!(Former::unfinished(&folders), None, "it was followed long ago");
        let elm = Former { unfinished: true, ..elm };
        elm.clone().keep(&folders).unwrap();
        assert_eq!(Former::unfinished(&folders), Some(elm));
        Former::finish(&folders).unwrap();
        assert_eq!(Former::unfinished(&folders), None);
        assert_eq!(names(&Former::all(&folders)), ["oak", "elm"]);
    }

    #[test]
    fn a_damaged_list_is_set_aside_and_its_second_copy_tells_everybody_all_the_same() {
        let (here, folders, [oak, elm, _]) = three();
        oak.keep(&folders).unwrap();
        for damage in ["{", "", "null", "[3]", "[{\"name\":\"x\"}]"] {
            std::fs::write(folders.formers(), damage).unwrap();
            assert!(Former::any(here.path()));
            assert_eq!(names(&Former::all(&folders)), ["oak"], "{damage}");
            assert_eq!(names(&Former::mend(&folders)), ["oak"]);
            assert_eq!(std::fs::read_to_string(folders.formers_aside()).unwrap(), damage);
            assert!(!Lists::read(&folders).is_damaged(), "it is whole again");
        }
        // The list itself is gone.
        std::fs::remove_file(folders.formers()).unwrap();
        assert_eq!(names(&Former::all(&folders)), ["oak"]);
        std::fs::write(folders.formers(), "[").unwrap();
        elm.keep(&folders).unwrap();
        assert_eq!(names(&Former::all(&folders)), ["oak", "elm"]);
    }

    #[test]
    fn where_both_copies_are_damaged_what_can_be_read_stays_and_the_box_goes_on() {
        let (here, folders, [oak, elm, ash]) = three();
        let list = serde_json::json!([oak, { "name": "damaged" }, elm]);
        std::fs::write(folders.formers(), list.to_string()).unwrap();
        std::fs::write(folders.formers_copy(), [0xff; 9]).unwrap();
        assert_eq!(names(&Former::mend(&folders)), ["oak", "elm"]);
        assert_eq!(Former::aside(&folders), Some(folders.formers_aside()));
        ash.keep(&folders).unwrap();
        assert_eq!(names(&Former::all(&folders)), ["oak", "elm", "ash"]);
        for path in [folders.formers(), folders.formers_copy()] {
            std::fs::write(path, vec![b' '; 2 << 20]).unwrap();
        }
        assert!(Former::any(here.path()) && Former::mend(&folders).is_empty());
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes: Vec<u8>) {
            let here = tempfile::tempdir().unwrap();
            let folders = Folders::of(here.path());
            std::fs::create_dir(folders.own()).unwrap();
            std::fs::write(folders.formers(), bytes).unwrap();
            let _ = Former::mend(&folders);
        }
    }
}
