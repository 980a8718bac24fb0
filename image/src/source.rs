//! The checkout that an image is made from: what it wants, what it locks, and digests of its parts.

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::{Arch, ImageError, Lock, Want};

/// A checkout of Polder.
#[derive(Debug, Clone)]
pub struct Source {
    root: PathBuf,
    lock: Option<PathBuf>,
}

/// The folders and files that `polder` is compiled from.
const COMPILED: [&str; 9] = [
    "Cargo.toml",
    "Cargo.lock",
    "appliance",
    "engine",
    "firstboot",
    "image/src",
    "image/Cargo.toml",
    "image/steps",
    "recipes",
];

impl Source {
    /// The checkout in this folder.
    pub fn open(root: &Path) -> Result<Self, ImageError> {
        let root = root.canonicalize().map_err(ImageError::file("read", root))?;
        if root.join("image/packages.toml").is_file() {
            Ok(Self { root, lock: None })
        } else {
            Err(ImageError::NoSource(root))
        }
    }

    /// With this lock instead of the checkout's own.
    pub fn with_lock(mut self, lock: Option<&Path>) -> Self {
        self.lock = lock.map(Path::to_owned);
        self
    }

    /// Its folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What it wants.
    pub fn want(&self) -> Result<Want, ImageError> {
        let path = self.root.join("image/packages.toml");
        let text = fs::read_to_string(&path).map_err(ImageError::file("read", &path))?;
        Want::parse(&text).map_err(|source| ImageError::Want { path, source })
    }

    /// Where the lock for `arch` is.
    pub fn lock_path(&self, arch: Arch) -> PathBuf {
        let own = || self.root.join("image").join(format!("{arch}.lock"));
        self.lock.clone().unwrap_or_else(own)
    }

    /// The lock for `arch`.
    pub fn lock(&self, arch: Arch) -> Result<Lock, ImageError> {
        let path = self.lock_path(arch);
        let text = fs::read_to_string(&path).map_err(ImageError::file("read", &path))?;
        Lock::parse(&text).map_err(|source| ImageError::Lock { path, source })
    }

    /// Files that go into the image as they are.
    pub fn tree(&self) -> PathBuf {
        self.root.join("image/tree")
    }

    /// Digest of [`tree`](Self::tree): names, modes, contents.
    pub fn tree_digest(&self) -> Result<[u8; 32], ImageError> {
        digest(&self.root, &["image/tree"])
    }

    /// The same of a folder that is laid over it. What begins with a dot counts as left behind, here too.
    pub(crate) fn digest_of_tree(folder: &Path) -> Result<[u8; 32], ImageError> {
        digest(folder, &["."])
    }

    /// Files that go in beside a driver.
    pub fn driver_tree(&self) -> PathBuf {
        self.root.join("image/driver")
    }

    /// Digest of [`driver_tree`](Self::driver_tree).
    pub fn driver_tree_digest(&self) -> Result<[u8; 32], ImageError> {
        digest(&self.root, &["image/driver"])
    }

    /// Digest of everything that `polder` is compiled from.
    pub fn program_digest(&self) -> Result<[u8; 32], ImageError> {
        digest(&self.root, &COMPILED)
    }
}

/// Folders and files of a crate that are in no program.
const NO_PART: [&str; 5] = ["target", "tests", "examples", "benches", "README.md"];

/// Of these files and folders below `root`, whatever order the disk has them in.
fn digest(root: &Path, parts: &[&str]) -> Result<[u8; 32], ImageError> {
    let mut files = Vec::new();
    for part in parts {
        collect(&root.join(part), &mut files)?;
    }
    files.sort();
    let mut hash = Sha256::new();
    for path in files {
        use std::os::unix::fs::PermissionsExt;
        let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
        let data = fs::symlink_metadata(&path).map_err(ImageError::file("read", &path))?;
        let (kind, content) = if data.is_symlink() {
            let to = fs::read_link(&path).map_err(ImageError::file("read", &path))?;
            ("link", to.to_string_lossy().into_owned().into_bytes())
        } else {
            // Of a file's mode only this much is kept by git.
            let kind = if data.permissions().mode() & 0o100 == 0 { "file" } else { "program" };
            (kind, fs::read(&path).map_err(ImageError::file("read", &path))?)
        };
        for part in [name.as_bytes(), kind.as_bytes(), &content] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    }
    Ok(hash.finalize().into())
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<(), ImageError> {
    let data = fs::symlink_metadata(path).map_err(ImageError::file("read", path))?;
    if !data.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(path).map_err(ImageError::file("read", path))? {
        let entry = entry.map_err(ImageError::file("read", path))?;
        let name = entry.file_name();
        // What a compiler or an editor left behind, and what no program is compiled from.
        if NO_PART.iter().any(|other| name == *other) || name.to_string_lossy().starts_with('.') {
            continue;
        }
        collect(&entry.path(), files)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_changes_with_names_modes_and_contents_and_with_nothing_else() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir_all(root.join("a/target")).unwrap();
        fs::write(root.join("a/x"), "1").unwrap();
        let first = digest(root, &["a"]).unwrap();
        fs::write(root.join("a/target/out"), "1").unwrap();
        fs::write(root.join("a/.swp"), "1").unwrap();
        fs::write(root.join("a/README.md"), "1").unwrap();
        assert_eq!(digest(root, &["a"]).unwrap(), first);
        fs::write(root.join("a/x"), "2").unwrap();
        let second = digest(root, &["a"]).unwrap();
        assert_ne!(second, first);
        fs::set_permissions(root.join("a/x"), fs::Permissions::from_mode(0o755)).unwrap();
        let third = digest(root, &["a"]).unwrap();
        assert_ne!(third, second);
        fs::rename(root.join("a/x"), root.join("a/y")).unwrap();
        assert_ne!(digest(root, &["a"]).unwrap(), third);
    }
}
