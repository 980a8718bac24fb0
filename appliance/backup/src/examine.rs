use std::fs;
use std::path::Path;

use polder_members::Members;
use polder_site::Store;
use rusqlite::{Connection, OpenFlags};

use crate::gather::{LABEL, Label};
use crate::{BackupError, FORMAT};

/// What a restored folder turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Examined {
    /// What the box is called.
    pub name: String,
    /// When the backup was made, RFC 3339.
    pub made_at: String,
    /// People with a way in.
    pub members: usize,
    /// SHA-256 of its authority's certificate, as members know it.
    pub fingerprint: String,
}

impl Examined {
    /// In words, for a report.
    pub fn words(&self) -> String {
        let members = match self.members {
            1 => "1 member".to_owned(),
            n => format!("{n} members"),
        };
        format!(
            "the box {} as of {}, with {members} and its own certificate authority",
            self.name, self.made_at
        )
    }
}

/// Looks whether a restored folder is a whole box: what it says of itself, its database page by page, its site, and that the authority's key
/// and certificate belong together. Makes nothing that is missing.
pub fn examine(folder: &Path) -> Result<Examined, BackupError> {
    let not_whole = BackupError::NotWhole;
    let label = fs::read_to_string(folder.join(LABEL))
        .map_err(|_| not_whole("it does not say what it is".to_owned()))?;
    #[derive(serde::Deserialize)]
    struct Head {
        format: u32,
    }
    // The format first: a newer one may say other things.
    let head: Head = toml::from_str(&label).map_err(|e| not_whole(e.message().to_owned()))?;
    if head.format > FORMAT {
        return Err(BackupError::Newer { found: head.format.to_string() });
    }
    let label: Label = toml::from_str(&label).map_err(|e| not_whole(e.message().to_owned()))?;
    let site = Store::open(folder).and_then(|store| store.current());
    if site.map_err(|error| not_whole(chain(&error)))?.is_none() {
        return Err(not_whole("it has no site.toml".to_owned()));
    }
    let path = folder.join("polder.db");
    if !path.is_file() {
        return Err(not_whole("it has no members' database".to_owned()));
    }
    whole_database(&path)?;
    let members = Members::open(&path).map_err(|error| not_whole(chain(&error)))?;
    let members = members.members().map_err(|error| not_whole(chain(&error)))?;
    let ca = polder_pki::examine(&folder.join("pki")).map_err(|error| not_whole(chain(&error)))?;
    Ok(Examined {
        name: label.name,
        made_at: label.made_at,
        members: members.len(),
        fingerprint: ca.fingerprint,
    })
}

fn whole_database(path: &Path) -> Result<(), BackupError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let answer = Connection::open_with_flags(path, flags)
        .and_then(|db| db.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0)));
    match answer {
        Ok(answer) if answer == "ok" => Ok(()),
        Ok(answer) => {
            Err(BackupError::NotWhole(format!("its members' database is damaged: {answer}")))
        }
        Err(error) => {
            Err(BackupError::NotWhole(format!("its members' database cannot be read: {error}")))
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
