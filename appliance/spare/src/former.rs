//! Boxes that were the collective's main box and never are again.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Certificate, Folders, SpareError};

/// No list of ours is longer, in bytes and in boxes.
const LONGEST: u64 = 1 << 20;
const MOST: usize = 64;

/// A main box whose spare stayed the main box: `STATE/spare/formers.json` has each, for as long as this box lives. Its link certificate is revoked: it
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
}

impl Former {
    /// All of them, oldest first. A list that cannot be read is an error: silence would let nobody hear that they are out.
    pub fn all(folders: &Folders) -> Result<Vec<Self>, SpareError> {
        let path = folders.formers();
        let read = || match std::fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
            Ok(file) if file.len() > LONGEST => Err(io::Error::other("it is too long")),
            Ok(_) => std::fs::read(&path).map(Some),
        };
        let Some(text) = read().map_err(SpareError::file(&path))? else { return Ok(Vec::new()) };
        serde_json::from_slice(&text)
            .map_err(|error| SpareError::Damaged { path, why: error.to_string() })
    }

    /// Whether somebody may come back who has to be told. A list that cannot be read counts as one.
    pub fn any(state: &Path) -> bool {
        Self::all(&Folders::of(state)).map_or(true, |all| !all.is_empty())
    }

    /// Writes it down, once for each certificate; on the disk when this returns.
    pub fn keep(self, folders: &Folders) -> Result<(), SpareError> {
        let mut all = Self::all(folders)?;
        all.retain(|other| other.certificate != self.certificate);
        // A box that outlives so many main boxes need not tell the first one.
        while all.len() >= MOST {
            all.remove(0);
        }
        all.push(self);
        let path = folders.formers();
        let text = serde_json::to_vec_pretty(&all).expect("a list has only plain values");
        polder_site::write_durably(&path, &text).map_err(SpareError::file(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Identity;

    #[test]
    fn a_former_main_box_is_kept_once_and_a_list_that_cannot_be_read_is_no_empty_one() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let folders = Folders::of(here.path());
        let other = Identity::of_box(&Folders::of(there.path())).unwrap();
        Identity::of_box(&folders).unwrap();
        assert!(!Former::any(here.path()));
        let former = |term| Former {
            name: "oak".to_owned(),
            certificate: other.certificate().clone(),
            term,
            port: 8444,
            at: 1,
        };
        former(3).keep(&folders).unwrap();
        former(5).keep(&folders).unwrap();
        assert_eq!(Former::all(&folders).unwrap(), [former(5)]);
        std::fs::write(folders.formers(), "{").unwrap();
        assert!(Former::any(here.path()));
        let why = Former::all(&folders).unwrap_err().to_string();
        assert!(why.contains("formers.json"), "{why}");
        assert!(former(6).keep(&folders).is_err(), "it was written over");
    }
}
