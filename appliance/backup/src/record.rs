use std::fs;
use std::io;

use polder_site::write_durably;
use serde::{Deserialize, Serialize};

use crate::key::private_folder;
use crate::{BackupError, Folders};

/// A backup that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// Unix seconds.
    pub at: i64,
    /// Its name in the store.
    pub id: String,
    /// Files.
    pub files: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Bytes that the store did not have yet.
    pub added: u64,
    /// How long the sending took.
    pub milliseconds: u64,
    /// Old ones were removed as the site says; false where the store lets nothing be removed.
    pub thinned: bool,
}

/// Something that went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Unix seconds.
    pub at: i64,
    /// One sentence.
    pub why: String,
    /// The backup itself was made; only old ones could not be removed.
    #[serde(default)]
    pub thinning: bool,
}

/// A drill that was held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drill {
    /// Unix seconds.
    pub at: i64,
    /// What was found: well, or what is wrong.
    pub found: Result<String, String>,
}

/// What was done about backups, and when: `STATE/backup/record.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// When a steward typed the key back from paper. Nothing is sent before.
    pub kit_confirmed: Option<i64>,
    /// The last backup.
    pub saved: Option<Saved>,
    /// The last try, if it failed; none after a good one.
    pub failed: Option<Failure>,
    /// The last drill.
    pub drill: Option<Drill>,
}

impl Record {
    /// The record of this state folder. One that cannot be read is begun anew: it holds nothing but times.
    pub fn read(folders: &Folders) -> Self {
        match fs::read(folders.record()) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                log::error!("{}: {error}; it is begun anew", folders.record().display());
                Self::default()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(error) => {
                log::error!("could not read {}: {error}", folders.record().display());
                Self::default()
            }
        }
    }

    /// Changes it; on disk when this returns.
    pub fn change(folders: &Folders, change: impl FnOnce(&mut Self)) -> Result<Self, BackupError> {
        private_folder(&folders.own())?;
        let mut record = Self::read(folders);
        change(&mut record);
        let text = serde_json::to_vec_pretty(&record).expect("a record has only plain values");
        let path = folders.record();
        write_durably(&path, &text).map_err(|source| BackupError::File { path, source })?;
        Ok(record)
    }
}
