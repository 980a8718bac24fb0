//! Private files: whole or not there at all, and nobody else's to read.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::PkiError;

/// Makes the folder, 0700.
pub fn private_folder(path: &Path) -> Result<(), PkiError> {
    let fail = |source| PkiError::Write { path: path.to_owned(), source };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(fail)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(fail)
}

/// Writes beside, 0600, syncs, renames over, syncs the folder.
pub fn write(path: &Path, content: &str) -> Result<(), PkiError> {
    let fail = |source| PkiError::Write { path: path.to_owned(), source };
    let folder = path.parent().expect("every caller joins a file name to a folder");
    let beside = path.with_extension("new");
    // A leftover might have been made with other permissions.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside).map_err(fail)?;
    file.write_all(content.as_bytes()).and_then(|()| file.sync_all()).map_err(fail)?;
    fs::rename(&beside, path).map_err(fail)?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(fail)
}

/// Reads a text file; `None` if there is none. Whatever its permissions were, they are 0600 after.
pub fn read(path: &Path) -> Result<Option<String>, PkiError> {
    let fail = |source| PkiError::Read { path: path.to_owned(), source };
    match fs::read_to_string(path) {
        Ok(text) => {
            fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(fail)?;
            Ok(Some(text))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(fail(error)),
    }
}
