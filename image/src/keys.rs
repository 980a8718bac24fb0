//! The project's keys: what makes an image ours to a machine that starts it (Secure Boot), to the disk that it opens
//! (the values a boot measures) and to a box that takes an update. A folder that is on no box and in no checkout.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use minisign::{KeyPair, PublicKeyBox};
use sha2::{Digest as _, Sha256};

use crate::plan::scripts;
use crate::{Arch, ImageError, Workshop};

/// Signs updates; the public half goes into every image.
const UPDATE: [&str; 2] = ["update.key", "update.pub"];
/// Signs what a machine starts, and the lists by which it takes the key for its own.
const SECURE_BOOT: [&str; 2] = ["secure-boot.key", "secure-boot.crt"];
/// Signs the values that a boot of the image measures.
const MEASURED: [&str; 2] = ["pcr.key", "pcr.pub"];

/// A folder of keys that is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    folder: PathBuf,
    update: Vec<PathBuf>,
    boot: [u8; 32],
}

impl Keys {
    /// The keys in this folder. Whoever signs updates may be several: every `update*.pub` goes into the image.
    pub fn open(folder: &Path) -> Result<Self, ImageError> {
        let folder = folder.canonicalize().map_err(ImageError::file("read", folder))?;
        let mut update = Vec::new();
        for entry in fs::read_dir(&folder).map_err(ImageError::file("read", &folder))? {
            let path = entry.map_err(ImageError::file("read", &folder))?.path();
            if is_update_key(&path) {
                readable(&path)?;
                update.push(path);
            }
        }
        update.sort();
        if update.is_empty() {
            return Err(ImageError::NoKey(folder.join(UPDATE[1])));
        }
        let mut public = Sha256::new();
        for [secret, shown] in [SECURE_BOOT, MEASURED] {
            if !folder.join(secret).is_file() {
                return Err(ImageError::NoKey(folder.join(secret)));
            }
            let path = folder.join(shown);
            let text = fs::read(&path).map_err(|error| match error.kind() {
                ErrorKind::NotFound => ImageError::NoKey(path.clone()),
                _ => ImageError::file("read", &path)(error),
            })?;
            public.update((text.len() as u64).to_le_bytes());
            public.update(text);
        }
        Ok(Self { folder, update, boot: public.finalize().into() })
    }

    /// Where they are.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Of the public halves: a signature of these kinds follows from its text and its key.
    pub(crate) fn digests(&self) -> Result<Digests, ImageError> {
        let mut update = Sha256::new();
        for path in &self.update {
            let text = fs::read(path).map_err(ImageError::file("read", path))?;
            for part in [name(path).as_bytes(), &text] {
                update.update((part.len() as u64).to_le_bytes());
                update.update(part);
            }
        }
        Ok(Digests { update: update.finalize().into(), boot: self.boot })
    }

    /// Lays out, in this new folder, what every image may show.
    pub(crate) fn lay_out_public(&self, folder: &Path) -> Result<(), ImageError> {
        fs::create_dir_all(folder).map_err(ImageError::file("make", folder))?;
        for path in &self.update {
            let to = folder.join(name(path));
            fs::copy(path, &to).map_err(ImageError::file("write", &to))?;
        }
        Ok(())
    }
}

/// What an image was signed with, for its products' keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digests {
    /// Of the keys whose updates it takes.
    pub update: [u8; 32],
    /// Of those that sign what a machine starts.
    pub boot: [u8; 32],
}

impl Workshop {
    /// Makes a folder of new keys. `password` locks the one for updates. What is there already is never written
    /// over: a key that is lost cannot be made again.
    pub fn make_keys(
        &self,
        arch: Arch,
        folder: &Path,
        password: Option<String>,
    ) -> Result<Vec<PathBuf>, ImageError> {
        let mut make = fs::DirBuilder::new();
        make.recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(ImageError::file("make", folder))?;
        let all = [UPDATE, SECURE_BOOT, MEASURED].concat();
        let paths: Vec<PathBuf> = all.iter().map(|name| folder.join(name)).collect();
        if let Some(there) = paths.iter().find(|path| path.exists()) {
            return Err(ImageError::KeyThere(there.clone()));
        }
        let (room, log) = (self.builder(arch)?, self.cache.log("keys")?);
        room.run("making keys", scripts::KEYS, &[("keys", folder)], &[], &log)?;
        make_update_key(folder, password)?;
        Keys::open(folder)?;
        Ok(paths)
    }
}

fn make_update_key(folder: &Path, password: Option<String>) -> Result<(), ImageError> {
    let [secret, public] = UPDATE.map(|name| folder.join(name));
    let fail =
        |why: minisign::PError| ImageError::Key { path: secret.clone(), why: why.to_string() };
    let locked = password.is_some();
    let pair = match password {
        Some(password) => KeyPair::generate_encrypted_keypair(Some(password)),
        None => KeyPair::generate_unencrypted_keypair(),
    }
    .map_err(fail)?;
    let comment = if locked { "Polder updates, locked" } else { "Polder updates" };
    let text = pair.sk.to_box(Some(comment)).map_err(fail)?.to_string();
    write_new(&secret, 0o600, &text)?;
    write_new(&public, 0o644, &pair.pk.to_box().map_err(fail)?.to_string())
}

fn write_new(path: &Path, mode: u32, text: &str) -> Result<(), ImageError> {
    let mut options = fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(mode).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(ImageError::file("write", path))
}

fn is_update_key(path: &Path) -> bool {
    let name = name(path);
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    name.starts_with("update") && name.ends_with(".pub") && name.chars().all(plain)
}

/// A box would refuse every update by a key that cannot be read.
fn readable(path: &Path) -> Result<(), ImageError> {
    let text = fs::read_to_string(path).map_err(ImageError::file("read", path))?;
    let fail = |why: String| ImageError::Key { path: path.to_owned(), why };
    let key = PublicKeyBox::from_string(&text).and_then(PublicKeyBox::into_public_key);
    key.map(drop).map_err(|error| fail(error.to_string()))
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// What `make_keys` leaves, with other people's parts as plain words.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        make_update_key(folder.path(), None).unwrap();
        for name in [SECURE_BOOT, MEASURED].concat() {
            fs::write(folder.path().join(name), name).unwrap();
        }
        folder
    }

    #[test]
    fn a_secret_key_is_readable_to_its_owner_only_and_never_written_over() {
        let folder = folder();
        let mode =
            |name: &str| fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode("update.key") & 0o777, 0o600);
        let error = make_update_key(folder.path(), None).unwrap_err().to_string();
        assert!(error.contains("could not write") && error.contains("update.key"), "{error}");
    }

    #[test]
    fn what_the_new_key_signs_is_good_for_its_public_half() {
        let folder = tempfile::tempdir().unwrap();
        make_update_key(folder.path(), Some("mill".into())).unwrap();
        let image = tempfile::tempdir().unwrap();
        let (disk, list) = ("polder_1_x86_64.raw", "polder_1_x86_64.sha256");
        fs::write(image.path().join(disk), "a disk").unwrap();
        let digest = polder_recipes::Digest::from_bytes(Sha256::digest("a disk").into());
        fs::write(image.path().join(list), format!("{digest}  {disk}\n")).unwrap();
        let [secret, public] = UPDATE.map(|name| folder.path().join(name));
        crate::sign(image.path(), &secret, Some("mill".into())).unwrap();
        crate::check(image.path(), &public).unwrap();
    }

    #[test]
    fn a_folder_that_lacks_a_key_is_refused_by_its_name() {
        for name in ["update.pub", "secure-boot.key", "secure-boot.crt", "pcr.key", "pcr.pub"] {
            let folder = folder();
            fs::remove_file(folder.path().join(name)).unwrap();
            let error = Keys::open(folder.path()).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("polder image keys"), "{error}");
        }
        let folder = folder();
        fs::write(folder.path().join("update-2.pub"), "no key").unwrap();
        let error = Keys::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("update-2.pub cannot be used"), "{error}");
    }

    #[test]
    fn every_key_for_updates_is_shown_and_no_secret() {
        let folder = folder();
        let keys = Keys::open(folder.path()).unwrap();
        let before = keys.digests().unwrap();
        let copy = folder.path().join("update-next.pub");
        fs::copy(folder.path().join("update.pub"), copy).unwrap();
        let keys = Keys::open(folder.path()).unwrap();
        let after = keys.digests().unwrap();
        assert!(before.update != after.update && before.boot == after.boot);
        let out = folder.path().join("out");
        keys.lay_out_public(&out).unwrap();
        let mut names: Vec<_> =
            fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["update-next.pub", "update.pub"]);
    }

    #[test]
    fn another_certificate_is_another_digest() {
        let folder = folder();
        let before = Keys::open(folder.path()).unwrap().digests().unwrap();
        fs::write(folder.path().join("secure-boot.crt"), "another").unwrap();
        let after = Keys::open(folder.path()).unwrap().digests().unwrap();
        assert!(before.boot != after.boot && before.update == after.update);
    }
}
