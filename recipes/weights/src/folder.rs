//! A folder or USB disk as a source. What is in it is hostile: no link is followed.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use polder_recipes::{Digest, FileSpec, Recipe};
use rustix::fs::{Mode, OFlags, open, openat};

use crate::select::Listed;
use crate::{WeightsError, names};

/// A folder that someone brought.
#[derive(Debug)]
pub(crate) struct Folder {
    root: PathBuf,
}

/// A file in it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Found {
    /// Its path in the folder.
    pub(crate) path: String,
    pub(crate) size: u64,
    /// Its modification time: a copy goes on only while it is the same.
    pub(crate) mark: String,
}

impl Folder {
    pub(crate) fn open(root: &Path) -> Result<Self, WeightsError> {
        let fail = |why| WeightsError::SourceGone {
            file: "the model".into(),
            folder: root.to_owned(),
            why,
        };
        match root.metadata() {
            Ok(found) if found.is_dir() => Ok(Self { root: root.to_owned() }),
            Ok(_) => Err(fail(io::Error::other("it is not a folder"))),
            Err(e) => Err(fail(e)),
        }
    }
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }
    /// Looks for a file in the recipe's own folder, beside it, and, on a disk that holds another
    /// box's store, under its digest.
    pub(crate) fn find(
        &self,
        recipe: &str,
        name: &str,
        digest: Option<&Digest>,
    ) -> Result<Option<Found>, WeightsError> {
        let by_digest = digest.into_iter().flat_map(|digest| {
            let blob = format!("blobs/sha256/{digest}");
            [format!("weights/{blob}"), blob]
        });
        for path in [format!("{recipe}/{name}"), name.to_owned()].into_iter().chain(by_digest) {
            match self.file(&path).and_then(|file| file.metadata()) {
                Ok(found) => return Ok(Some(describe(path, &found))),
                Err(e) if missing(&e) => {}
                Err(why) => return Err(self.gone(name, why)),
            }
        }
        Ok(None)
    }
    /// The plain files of the folder, or of its folder with the recipe's name.
    pub(crate) fn list(&self, recipe: &str) -> Result<Vec<Listed>, WeightsError> {
        let own = self.root.join(recipe);
        let folder = if own.is_dir() { &own } else { &self.root };
        let mut listed = Vec::new();
        for path in crate::store::files_in(folder)? {
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            listed.push(Listed { name: name.to_owned(), size: None, sha256: None });
            if listed.len() > names::MOST_FILES {
                let why = format!("{} has more than 4096 files", folder.display());
                return Err(WeightsError::Recipe { recipe: recipe.to_owned(), why });
            }
        }
        Ok(listed)
    }
    /// Opens a plain file, component by component and through no link.
    pub(crate) fn file(&self, path: &str) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let mut at = open(&self.root, flags | OFlags::DIRECTORY, Mode::empty())?;
        let mut parts = path.split('/').peekable();
        while let Some(part) = parts.next() {
            let kind = if parts.peek().is_some() { OFlags::DIRECTORY } else { OFlags::NONBLOCK };
            let opened = openat(&at, part, flags | kind | OFlags::NOFOLLOW, Mode::empty());
            at = opened.map_err(|e| match e {
                rustix::io::Errno::LOOP => io::Error::other(
                    "it is a symbolic link, which is not followed; copy the folder with `cp -rL`",
                ),
                e => e.into(),
            })?;
        }
        let file = File::from(at);
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is not a plain file"));
        }
        Ok(file)
    }
    /// Whether every file of a pinned recipe seems to be here: by name or digest, and by size. Whether it is
    /// the right one only reading it can tell.
    pub(crate) fn holds(&self, recipe: &Recipe) -> bool {
        let here = |file: &FileSpec| {
            let found = self.find(&recipe.name, &file.name, file.sha256.as_ref()).ok().flatten();
            found.is_some_and(|found| Some(found.size) == file.size)
        };
        recipe.is_pinned() && recipe.files.iter().all(here)
    }
    pub(crate) fn gone(&self, file: &str, why: io::Error) -> WeightsError {
        WeightsError::SourceGone { file: file.to_owned(), folder: self.root.clone(), why }
    }
}

fn missing(why: &io::Error) -> bool {
    matches!(why.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn describe(path: String, found: &Metadata) -> Found {
    let mark = format!("{}.{:09}", found.mtime(), found.mtime_nsec());
    Found { path, size: found.len(), mark }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_link_is_refused_even_inside_the_path() {
        let secret = tempfile::tempdir().unwrap();
        fs::write(secret.path().join("shadow"), "secret").unwrap();
        let disk = tempfile::tempdir().unwrap();
        symlink(secret.path().join("shadow"), disk.path().join("m.gguf")).unwrap();
        symlink(secret.path(), disk.path().join("sub")).unwrap();
        let folder = Folder::open(disk.path()).unwrap();
        let said = folder.find("m", "m.gguf", None).unwrap_err().to_string();
        assert!(said.contains("symbolic link"), "{said}");
        assert!(folder.file("sub/shadow").is_err());
    }
    #[test]
    fn a_pipe_is_refused_and_does_not_hang() {
        let disk = tempfile::tempdir().unwrap();
        let made = std::process::Command::new("mkfifo").arg(disk.path().join("m.gguf")).status();
        assert!(made.unwrap().success());
        let folder = Folder::open(disk.path()).unwrap();
        assert!(folder.find("m", "m.gguf", None).unwrap_err().to_string().contains("plain file"));
    }
    #[test]
    fn a_file_is_found_under_its_name_its_recipe_or_its_digest() {
        let disk = tempfile::tempdir().unwrap();
        let digest = Digest::from_bytes([1; 32]);
        for path in ["a".into(), "m/b".into(), format!("blobs/sha256/{digest}")] {
            let path = disk.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        let folder = Folder::open(disk.path()).unwrap();
        assert_eq!(folder.find("m", "a", None).unwrap().unwrap().path, "a");
        assert_eq!(folder.find("m", "b", None).unwrap().unwrap().path, "m/b");
        assert!(folder.find("m", "c", Some(&digest)).unwrap().is_some());
        assert_eq!(folder.find("m", "c", None).unwrap(), None);
    }
    #[test]
    fn a_folder_that_is_not_there_says_so() {
        let said = Folder::open(Path::new("/no/such/disk")).unwrap_err().to_string();
        assert!(said.contains("/no/such/disk") && said.contains("plug the disk in"), "{said}");
    }
}
