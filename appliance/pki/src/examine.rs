//! Looks at a folder of keys without making what is missing: for whoever has just restored one.

use std::path::Path;

use crate::authority::{Authority, Ca};
use crate::keeper::{authority_path, ca_path};
use crate::{PkiError, files};

/// The authority whose certificate members have, if every authority in the folder is whole, with a key that belongs to it.
pub fn examine(folder: &Path) -> Result<Ca, PkiError> {
    let file = ca_path(folder);
    let damaged = |why: &str| PkiError::Damaged { path: file.clone(), why: why.to_owned() };
    let told = files::read(&file)?.ok_or_else(|| damaged("it is not there"))?;
    let mut found = None;
    for index in 0.. {
        let Some(authority) = Authority::read(&authority_path(folder, index))? else { break };
        if authority.pem.trim() == told.trim() {
            found = Some(authority);
        }
    }
    let authority = found.ok_or_else(|| damaged("no authority in the folder has its key"))?;
    Ok(Ca { fingerprint: authority.fingerprint(), pem: authority.pem, file })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Keeper, Names};

    #[test]
    fn a_whole_folder_tells_its_authority_and_nothing_is_made_where_something_is_missing() {
        let state = tempfile::tempdir().unwrap();
        let folder = state.path().join("pki");
        assert!(examine(&folder).is_err() && !folder.exists());
        let names = Names { hosts: vec!["birch.local".into()], addresses: Vec::new() };
        let keeper = Keeper::open(&folder, &names, 1_800_000_000).unwrap();
        assert_eq!(examine(&folder).unwrap(), keeper.ca());
        let path = authority_path(&folder, 0);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(examine(&folder).unwrap_err().to_string().contains("ca.pem"));
        let other = tempfile::tempdir().unwrap();
        Keeper::open(&other.path().join("pki"), &names, 1_800_000_000).unwrap();
        std::fs::copy(authority_path(&other.path().join("pki"), 0), &path).unwrap();
        assert!(examine(&folder).is_err(), "another box's authority was taken for this one's");
        std::fs::write(&path, text).unwrap();
        assert!(examine(&folder).is_ok());
    }
}
