//! `models/<name>/`: the files of a model under their own names, as relative links to blobs. The
//! whole store can be moved or mounted elsewhere and the links still hold.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::WeightsError;
use crate::manifest::StoredFile;
use crate::partial::sync_folder_of;

/// Whether every file is there and leads to its own blob.
pub(crate) fn is_right(folder: &Path, files: &[StoredFile]) -> bool {
    files
        .iter()
        .all(|file| fs::read_link(folder.join(&file.name)).is_ok_and(|found| found == target(file)))
}

/// Makes the folder hold exactly these files. It is built beside and swapped in.
pub(crate) fn build(folder: &Path, files: &[StoredFile]) -> Result<(), WeightsError> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    // Recipe names do not start with a dot, so these belong to no model.
    let fresh = folder.with_file_name(format!(".{name}.fresh"));
    let old = folder.with_file_name(format!(".{name}.old"));
    let links = || -> io::Result<()> {
        remove(&fresh)?;
        remove(&old)?;
        fs::create_dir(&fresh)?;
        for file in files {
            let link = fresh.join(&file.name);
            if let Some(parent) = link.parent() {
                fs::create_dir_all(parent)?;
            }
            symlink(target(file), link)?;
        }
        match fs::rename(folder, &old) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        fs::rename(&fresh, folder)?;
        sync_folder_of(folder)?;
        remove(&old)
    };
    links().map_err(WeightsError::writing(&name, folder))
}

/// Removes a folder of links; what they lead to stays.
pub(crate) fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn target(file: &StoredFile) -> PathBuf {
    let up = 2 + file.name.matches('/').count();
    PathBuf::from(format!("{}blobs/sha256/{}", "../".repeat(up), file.sha256))
}

#[cfg(test)]
mod tests {
    use polder_recipes::Digest;

    use super::*;

    #[test]
    fn links_lead_to_their_blobs_from_any_depth() {
        let root = tempfile::tempdir().unwrap();
        let digest = Digest::from_bytes([7; 32]);
        fs::create_dir_all(root.path().join("blobs/sha256")).unwrap();
        fs::create_dir(root.path().join("models")).unwrap();
        fs::write(root.path().join(format!("blobs/sha256/{digest}")), "weights").unwrap();
        let file = |name: &str| StoredFile { name: name.into(), size: 7, sha256: digest };
        let folder = root.path().join("models/m");
        build(&folder, &[file("x"), file("old")]).unwrap();
        let files = [file("x"), file("a/b/y")];
        build(&folder, &files).unwrap();
        assert_eq!(fs::read_to_string(folder.join("x")).unwrap(), "weights");
        assert_eq!(fs::read_to_string(folder.join("a/b/y")).unwrap(), "weights");
        assert!(!folder.join("old").exists());
        assert!(is_right(&folder, &files));
        assert!(!is_right(&folder, &[file("gone")]));
    }
}
