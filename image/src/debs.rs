//! Package files by digest, and layers of them laid out so that apt takes them as a mirror.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use polder_recipes::Digest;
use sha2::{Digest as _, Sha256};

use crate::apt::{Apt, Found};
use crate::command::answer;
use crate::lock::{Layer, Lock, Package, Packages};
use crate::{ImageError, wheels};

/// Every package file that was ever fetched, by its digest.
#[derive(Debug, Clone)]
pub struct Debs {
    folder: PathBuf,
}

impl Debs {
    /// Uses (and makes, if need be) this folder.
    pub fn open(folder: &Path) -> Result<Self, ImageError> {
        fs::create_dir_all(folder).map_err(ImageError::file("make", folder))?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// Where a file with this digest is, or would be, whoever packed it.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(format!("{digest}.deb"))
    }

    /// The packages of these layers of a lock that are not here.
    pub fn missing<'l>(&self, lock: &'l Lock, layers: &[Layer]) -> Vec<(&'l str, &'l Package)> {
        lock.of(layers).into_values().filter(|(_, p)| !self.path(&p.digest).is_file()).collect()
    }

    /// Fetches what is missing of a layer from PyPI. Each file must be the very one that the lock names.
    pub(crate) fn fetch_wheels(
        &self,
        lock: &Lock,
        layer: Layer,
        folder: &Path,
        log: &Path,
    ) -> Result<(), ImageError> {
        for (name, package) in self.missing(lock, &[layer]) {
            let wheel = wheels::fetch(name, &package.version, &folder.join(name), log)?;
            let (found, _) = self.take(&wheel)?;
            if found != package.digest {
                let (name, expected) = (name.to_owned(), package.digest);
                return Err(ImageError::WrongPackage { name, expected, found });
            }
        }
        Ok(())
    }

    /// Takes a file in, whatever its name, and says what it is.
    pub(crate) fn take(&self, file: &Path) -> Result<(Digest, u64), ImageError> {
        let (digest, size) = digest_of(file)?;
        let path = self.path(&digest);
        if !path.is_file() {
            let partial = path.with_extension("partial");
            fs::copy(file, &partial).map_err(ImageError::file("write", &partial))?;
            fs::rename(&partial, &path).map_err(ImageError::file("write", &path))?;
        }
        Ok((digest, size))
    }

    /// Fetches what is missing of these layers of a lock. Each file must be the very one that the lock names.
    pub(crate) fn fetch(&self, lock: &Lock, layers: &[Layer], apt: &Apt) -> Result<(), ImageError> {
        let missing = self.missing(lock, layers);
        let found: Vec<Found> = missing
            .iter()
            .map(|(name, package)| Found {
                name: (*name).to_owned(),
                version: package.version.clone(),
                arch: package.arch.clone(),
            })
            .collect();
        let archives = apt.fetch(&found)?;
        for entry in fs::read_dir(&archives).map_err(ImageError::file("read", &archives))? {
            let path = entry.map_err(ImageError::file("read", &archives))?.path();
            if path.extension().is_some_and(|e| e == "deb") {
                self.take(&path)?;
            }
        }
        let gone = self.missing(lock, layers);
        match gone.first() {
            None => Ok(()),
            Some((name, package)) => Err(ImageError::Gone {
                first: format!("{name} {}", package.version),
                count: gone.len(),
            }),
        }
    }

    /// Fetches what apt found, and says what each is.
    pub(crate) fn bring(&self, apt: &Apt, found: &[Found]) -> Result<Packages, ImageError> {
        let archives = apt.fetch(found)?;
        let mut packages = Packages::new();
        for package in found {
            let path = archives.join(package.file_name());
            if !path.is_file() {
                let first = format!("{} {}", package.name, package.version);
                return Err(ImageError::Gone { first, count: 1 });
            }
            let (digest, size) = self.take(&path)?;
            let (version, arch) = (package.version.clone(), package.arch.clone());
            packages.insert(package.name.clone(), Package { version, arch, size, digest });
        }
        Ok(packages)
    }

    /// Puts a package where it is used, if it is still what the lock says, and says how large it is.
    pub(crate) fn give(&self, name: &str, package: &Package, to: &Path) -> Result<u64, ImageError> {
        let from = self.path(&package.digest);
        let (found, size) = digest_of(&from)?;
        if found != package.digest {
            let (name, expected) = (name.to_owned(), package.digest);
            return Err(ImageError::WrongPackage { name, expected, found });
        }
        link(&from, to).map(|()| size)
    }

    /// Lays packages out in `folder` as a flat repository. Every file is read and compared with its
    /// digest on the way: what is in the image is what the lock says.
    pub(crate) fn lay_out(
        &self,
        layers: &[&Packages],
        also: &[PathBuf],
        suite: &str,
        folder: &Path,
        log: &Path,
    ) -> Result<(), ImageError> {
        fs::create_dir_all(folder).map_err(ImageError::file("make", folder))?;
        let mut index = String::new();
        for (name, package) in layers.iter().copied().flatten() {
            let to = folder.join(format!("{}.deb", package.digest));
            let size = self.give(name, package, &to)?;
            index += &entry(&to, &package.digest, size, log)?;
        }
        for file in also {
            let (digest, size) = digest_of(file)?;
            let to = folder.join(format!("{digest}.deb"));
            link(file, &to)?;
            index += &entry(&to, &digest, size, log)?;
        }
        let path = folder.join("Packages");
        fs::write(&path, &index).map_err(ImageError::file("write", &path))?;
        // mmdebstrap looks for what is essential in the suite that it was told.
        let digest = Digest::from_bytes(Sha256::digest(&index).into());
        let release = format!(
            "Suite: {suite}\nCodename: {suite}\nSHA256:\n {digest} {} Packages\n",
            index.len()
        );
        let path = folder.join("Release");
        fs::write(&path, release).map_err(ImageError::file("write", &path))
    }
}

/// A package's stanza in a repository's index.
fn entry(deb: &Path, digest: &Digest, size: u64, log: &Path) -> Result<String, ImageError> {
    let control = answer("reading a package", Command::new("dpkg-deb").arg("-f").arg(deb), log)?;
    let mut stanza = control.trim_end().to_owned();
    let _ = write!(stanza, "\nFilename: ./{digest}.deb\nSize: {size}\nSHA256: {digest}\n\n");
    Ok(stanza)
}

/// The same file under another name; a copy where the two are on different disks.
fn link(from: &Path, to: &Path) -> Result<(), ImageError> {
    match fs::hard_link(from, to) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(_) => fs::copy(from, to).map(drop).map_err(ImageError::file("write", to)),
    }
}

/// A file's digest and size.
pub(crate) fn digest_of(path: &Path) -> Result<(Digest, u64), ImageError> {
    let fail = || ImageError::file("read", path);
    let mut file = File::open(path).map_err(fail())?;
    let (mut hash, mut size) = (Sha256::new(), 0);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(fail())? {
            0 => return Ok((Digest::from_bytes(hash.finalize().into()), size)),
            n => {
                hash.update(&buffer[..n]);
                size += n as u64;
            }
        }
    }
}
