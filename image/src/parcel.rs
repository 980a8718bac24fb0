//! The packages of a lock as one file, for building the same image where the mirror has dropped them.
//!
//! A tar archive without compression: first the lock, then every package, named and sorted by digest. The same lock
//! gives the same bytes. Whoever takes one in believes nothing in it but what its digests prove.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;

use polder_recipes::Digest;
use sha2::{Digest as _, Sha256};
use tar::{Archive, Builder, EntryType, Header};

use crate::{Arch, Debs, ImageError, Layer, Lock, LockError};

/// A lock has a few hundred lines.
const LONGEST_LOCK: u64 = 4 << 20;

/// What a package file brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// Whose packages they are.
    pub lock: Lock,
    /// Packages that were not here before.
    pub new: usize,
}

/// A package file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ParcelError {
    /// It cannot be read as an archive, or a package cannot be written.
    #[error("it could not be taken in: {0}")]
    Io(#[from] io::Error),
    /// Something else than a lock comes first.
    #[error(
        "it begins with {0:?} and not with a lock; it was not made by `polder image packages export`"
    )]
    NoLock(String),
    /// The lock in it cannot be used.
    #[error("the lock in it cannot be used: {0}")]
    Lock(#[from] LockError),
    /// Only plain files belong in it.
    #[error("{0:?} in it is no plain file; it was not made by `polder image packages export`")]
    NoFile(String),
    /// A file that the lock in it does not name, or names once and it is there twice.
    #[error("{0:?} in it is not named by its lock, or comes twice; nothing after it was taken")]
    Stranger(String),
    /// A file has another size than the lock in it says.
    #[error("{name} in it has {found} bytes and should have {expected}; fetch the file again")]
    Size {
        /// Which package.
        name: String,
        /// As the lock says.
        expected: u64,
        /// As the archive says.
        found: u64,
    },
    /// A file has other content than the lock in it says.
    #[error("{name} in it has the digest {found} and should have {expected}; fetch the file again")]
    Content {
        /// Which package.
        name: String,
        /// As the lock says.
        expected: Digest,
        /// As it is.
        found: Digest,
    },
    /// It ends too early.
    #[error("it ends before {first} ({count} packages are missing); fetch the file again")]
    Short {
        /// The first that is missing.
        first: String,
        /// How many are.
        count: usize,
    },
}

impl Debs {
    /// Writes every package of the lock to `file`.
    pub fn export(&self, lock: &Lock, file: &Path) -> Result<(), ImageError> {
        let missing = self.missing(lock, &Layer::ALL);
        if let Some((name, package)) = missing.first() {
            let first = format!("{name} {}", package.version);
            return Err(ImageError::NotHere { first, count: missing.len() });
        }
        let partial = file.with_added_extension("partial");
        let done = self
            .write_parcel(lock, &partial)
            .and_then(|()| fs::rename(&partial, file).map_err(ImageError::file("write", file)));
        if done.is_err() {
            let _ = fs::remove_file(&partial);
        }
        done
    }

    /// Takes in the packages of a file that [`export`](Self::export) made.
    pub fn import(&self, file: &Path) -> Result<Imported, ImageError> {
        let archive = File::open(file).map_err(ImageError::file("read", file))?;
        let taken = self.read_parcel(BufReader::with_capacity(1 << 20, archive));
        taken.map_err(|source| ImageError::Parcel { path: file.to_owned(), source })
    }

    fn write_parcel(&self, lock: &Lock, to: &Path) -> Result<(), ImageError> {
        let fail = || ImageError::file("write", to);
        let out = File::create(to).map_err(fail())?;
        let mut archive = Builder::new(BufWriter::with_capacity(1 << 20, out));
        let text = lock.to_string();
        let header = header(&lock_name(lock.arch), text.len() as u64, lock.epoch).map_err(fail())?;
        archive.append(&header, text.as_bytes()).map_err(fail())?;
        for (digest, (name, package)) in lock.all() {
            let path = self.path(&digest);
            let from = File::open(&path).map_err(ImageError::file("read", &path))?;
            let mut from = Hashed { from: from.take(package.size), hash: Sha256::new() };
            let header =
                self::header(&deb_name(&digest), package.size, lock.epoch).map_err(fail())?;
            archive.append(&header, &mut from).map_err(fail())?;
            let found = from.digest();
            if found != digest {
                let (name, expected) = (name.to_owned(), digest);
                return Err(ImageError::WrongPackage { name, expected, found });
            }
        }
        let mut out = archive.into_inner().map_err(fail())?;
        out.flush().and_then(|()| out.get_ref().sync_all()).map_err(fail())
    }

    fn read_parcel(&self, from: impl Read) -> Result<Imported, ParcelError> {
        let mut archive = Archive::new(from);
        // Raw: long names and other additions, which a reader keeps in memory, are refused like all that is no file.
        let mut entries = archive.entries()?.raw(true);
        let mut lock = None;
        let mut awaited: BTreeMap<String, (String, Digest, u64)> = BTreeMap::new();
        let mut new = 0;
        while let Some(entry) = entries.next().transpose()? {
            let header = entry.header();
            let (name, size) = (shown(&header.path_bytes()), header.entry_size()?);
            if header.entry_type() != EntryType::Regular {
                return Err(ParcelError::NoFile(name));
            }
            if lock.is_none() {
                let read = read_lock(&name, size, entry)?;
                let of = |(digest, (name, package)): (Digest, (&str, &crate::Package))| {
                    (
                        deb_name(&digest),
                        (format!("{name} {}", package.version), digest, package.size),
                    )
                };
                awaited = read.all().into_iter().map(of).collect();
                lock = Some(read);
                continue;
            }
            let Some((package, digest, expected)) = awaited.remove(&name) else {
                return Err(ParcelError::Stranger(name));
            };
            if size != expected {
                return Err(ParcelError::Size { name: package, expected, found: size });
            }
            new += usize::from(self.take_proven(package, digest, entry)?);
        }
        let lock = lock.ok_or_else(|| ParcelError::NoLock(String::new()))?;
        match awaited.values().next() {
            None => Ok(Imported { lock, new }),
            Some((first, ..)) => {
                Err(ParcelError::Short { first: first.clone(), count: awaited.len() })
            }
        }
    }

    /// Takes one package in, if it is what it should be; says whether it is new here.
    fn take_proven(
        &self,
        name: String,
        digest: Digest,
        from: impl Read,
    ) -> Result<bool, ParcelError> {
        let place = self.path(&digest);
        let new = !place.is_file();
        let partial = place.with_extension("partial");
        let mut from = Hashed { from, hash: Sha256::new() };
        let copied = File::create(&partial).and_then(|mut to| io::copy(&mut from, &mut to));
        let found = from.digest();
        let proven = match copied {
            Err(error) => Err(error.into()),
            Ok(_) if found != digest => Err(ParcelError::Content { name, expected: digest, found }),
            // Also over one that is here, which may be broken.
            Ok(_) => fs::rename(&partial, &place).map_err(ParcelError::Io),
        };
        if proven.is_err() {
            let _ = fs::remove_file(&partial);
        }
        proven.map(|()| new)
    }
}

fn read_lock(name: &str, size: u64, from: impl Read) -> Result<Lock, ParcelError> {
    let arch = Arch::ALL.into_iter().find(|arch| lock_name(*arch) == name);
    let Some(arch) = arch.filter(|_| size <= LONGEST_LOCK) else {
        return Err(ParcelError::NoLock(name.to_owned()));
    };
    let text = io::read_to_string(from)?;
    let lock = Lock::parse(&text)?;
    if lock.arch == arch { Ok(lock) } else { Err(ParcelError::NoLock(name.to_owned())) }
}

fn lock_name(arch: Arch) -> String {
    format!("{arch}.lock")
}

fn deb_name(digest: &Digest) -> String {
    format!("{digest}.deb")
}

/// Nothing in it depends on who makes the archive, or when.
fn header(name: &str, size: u64, epoch: u64) -> io::Result<Header> {
    let mut header = Header::new_ustar();
    header.set_path(name)?;
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(epoch);
    header.set_size(size);
    header.set_cksum();
    Ok(header)
}

/// A stranger's name, for people to read.
fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).chars().take(120).collect()
}

/// Makes a digest of what is read through it.
struct Hashed<R> {
    from: R,
    hash: Sha256,
}

impl<R> Hashed<R> {
    fn digest(self) -> Digest {
        Digest::from_bytes(self.hash.finalize().into())
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buffer)?;
        self.hash.update(&buffer[..n]);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::{Layer, Package, Packages};

    const CONTENTS: [(&str, &[u8]); 3] =
        [("bash", b"a shell"), ("libc6", b"a library"), ("systemd", &[7; 70_000])];

    fn digest(content: &[u8]) -> Digest {
        Digest::from_bytes(Sha256::digest(content).into())
    }

    fn lock() -> Lock {
        let package = |(name, content): (&str, &[u8])| {
            let (size, digest) = (content.len() as u64, digest(content));
            (name.to_owned(), Package { version: "1".into(), arch: "amd64".into(), size, digest })
        };
        let packages: Packages = CONTENTS.into_iter().map(package).collect();
        let layers = Layer::ALL.into_iter().map(|layer| (layer, Packages::new()));
        Lock {
            arch: Arch::X86_64,
            rustc: "1.95.0".into(),
            epoch: 1_760_000_000,
            layers: layers.chain([(Layer::Root, packages)]).collect(),
        }
    }

    fn empty() -> (TempDir, Debs) {
        let folder = tempfile::tempdir().unwrap();
        let debs = Debs::open(&folder.path().join("debs")).unwrap();
        (folder, debs)
    }

    fn full() -> (TempDir, Debs) {
        let (folder, debs) = empty();
        for (_, content) in CONTENTS {
            fs::write(debs.path(&digest(content)), content).unwrap();
        }
        (folder, debs)
    }

    /// An archive of these entries, for whoever means harm.
    fn archive(entries: &[(&str, EntryType, &[u8])]) -> Vec<u8> {
        let mut archive = Builder::new(Vec::new());
        for (name, kind, content) in entries {
            let mut header = header("x", content.len() as u64, 0).unwrap();
            // `set_path` itself refuses what is tried here.
            let place = &mut header.as_old_mut().name;
            place.fill(0);
            place[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            if *kind == EntryType::Symlink {
                header.set_link_name("/etc/passwd").unwrap();
            }
            header.set_cksum();
            archive.append(&header, *content).unwrap();
        }
        archive.into_inner().unwrap()
    }

    fn refused(archive: &[u8]) -> String {
        taken(archive).unwrap_err().to_string()
    }

    /// Takes an archive in where nothing is. Whatever becomes of it, nothing comes to lie where it should not, and
    /// nothing half.
    fn taken(archive: &[u8]) -> Result<Imported, ParcelError> {
        let (folder, debs) = empty();
        let done = debs.read_parcel(archive);
        let names = |path: &Path| -> Vec<String> {
            let entries = fs::read_dir(path).unwrap();
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
        };
        assert_eq!(names(folder.path()), ["debs"], "{done:?}");
        for name in names(&folder.path().join("debs")) {
            let content = fs::read(folder.path().join("debs").join(&name)).unwrap();
            assert_eq!(name, deb_name(&digest(&content)), "{done:?}");
        }
        done
    }

    #[test]
    fn packages_travel_from_one_machine_to_another() {
        let ((here, full), (_there, empty)) = (full(), empty());
        let file = here.path().join("packages.tar");
        full.export(&lock(), &file).unwrap();
        assert_eq!(empty.import(&file).unwrap(), Imported { lock: lock(), new: 3 });
        assert_eq!(empty.missing(&lock(), &Layer::ALL), []);
        assert_eq!(empty.import(&file).unwrap().new, 0);
        for (_, content) in CONTENTS {
            assert_eq!(fs::read(empty.path(&digest(content))).unwrap(), content);
        }
    }

    #[test]
    fn a_broken_package_is_mended_by_bringing_it_again() {
        let ((here, full), (_there, other)) = (full(), empty());
        let file = here.path().join("packages.tar");
        full.export(&lock(), &file).unwrap();
        fs::write(other.path(&digest(b"a shell")), "half a").unwrap();
        assert_eq!(other.import(&file).unwrap().new, 2);
        assert_eq!(fs::read(other.path(&digest(b"a shell"))).unwrap(), b"a shell");
    }

    #[test]
    fn the_same_lock_gives_the_same_bytes() {
        let ((first, debs), (second, others)) = (full(), full());
        let files = [first.path().join("a.tar"), second.path().join("b.tar")];
        debs.export(&lock(), &files[0]).unwrap();
        // What is not of the lock, and when files were written, is no part of it.
        fs::write(others.path(&digest(b"more")), "more").unwrap();
        let old = std::time::SystemTime::UNIX_EPOCH;
        let deb = File::options().write(true).open(others.path(&digest(b"a shell"))).unwrap();
        deb.set_modified(old).unwrap();
        others.export(&lock(), &files[1]).unwrap();
        let [a, b] = files.map(|file| fs::read(file).unwrap());
        assert!(a == b);
        let mut archive = Archive::new(a.as_slice());
        let told: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let header = entry.header();
                (
                    shown(&header.path_bytes()),
                    [header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap()],
                )
            })
            .collect();
        let mut debs: Vec<String> = CONTENTS.iter().map(|(_, c)| deb_name(&digest(c))).collect();
        debs.sort();
        let names = [vec!["x86_64.lock".to_owned()], debs].concat();
        let expected: Vec<_> =
            names.into_iter().map(|name| (name, [0, 0, 1_760_000_000])).collect();
        assert_eq!(told, expected);
    }

    #[test]
    fn an_export_without_all_packages_or_with_a_changed_one_is_refused_and_leaves_nothing() {
        let (folder, debs) = full();
        let file = folder.path().join("packages.tar");
        fs::write(debs.path(&digest(b"a shell")), "A shell").unwrap();
        let error = debs.export(&lock(), &file).unwrap_err().to_string();
        assert!(error.starts_with("bash has the digest"), "{error}");
        fs::write(debs.path(&digest(b"a shell")), "a").unwrap();
        assert!(debs.export(&lock(), &file).is_err());
        fs::remove_file(debs.path(&digest(b"a shell"))).unwrap();
        let error = debs.export(&lock(), &file).unwrap_err().to_string();
        assert!(error.contains("bash 1") && error.contains('1'), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn only_plain_files_that_the_lock_names_are_taken() {
        let lock = lock().to_string();
        let first = ("x86_64.lock", EntryType::Regular, lock.as_bytes());
        let bash = deb_name(&digest(b"a shell"));
        let kinds = [
            EntryType::Symlink,
            EntryType::Link,
            EntryType::Directory,
            EntryType::Fifo,
            EntryType::Char,
            EntryType::GNUSparse,
            EntryType::GNULongName,
            EntryType::XHeader,
            EntryType::XGlobalHeader,
        ];
        for kind in kinds {
            let error = refused(&archive(&[first, (&bash, kind, b"")]));
            assert!(
                error.contains("is no plain file") && error.contains(&bash),
                "{kind:?}: {error}"
            );
        }
        let climbing = format!("../{bash}");
        let absolute = format!("/tmp/{bash}");
        let dotted = format!("./{bash}");
        for name in [&climbing, &absolute, &dotted, "x86_64.lock", "more.deb", ""] {
            let error = refused(&archive(&[first, (name, EntryType::Regular, b"a shell")]));
            assert!(error.contains("is not named by its lock"), "{name}: {error}");
        }
        let again = (bash.as_str(), EntryType::Regular, b"a shell".as_slice());
        let error = refused(&archive(&[first, again, again]));
        assert!(error.contains("comes twice"), "{error}");
    }

    #[test]
    fn a_package_with_another_size_or_content_is_refused_by_name() {
        let lock = lock().to_string();
        let first = ("x86_64.lock", EntryType::Regular, lock.as_bytes());
        let bash = deb_name(&digest(b"a shell"));
        let with = |content| refused(&archive(&[first, (&bash, EntryType::Regular, content)]));
        assert!(with(b"a longer shell").starts_with("bash 1 in it has 14 bytes and should have 7"));
        assert!(with(b"A SHELL").starts_with("bash 1 in it has the digest"));
    }

    #[test]
    fn a_file_without_a_lock_in_front_is_none_of_ours() {
        let lock = lock().to_string();
        let huge = vec![b'#'; LONGEST_LOCK as usize + 1];
        let bash = deb_name(&digest(b"a shell"));
        for (name, content) in [
            (bash.as_str(), b"a shell".as_slice()),
            ("../x86_64.lock", lock.as_bytes()),
            // The lock of the other kind of machine.
            ("aarch64.lock", lock.as_bytes()),
            ("x86_64.lock", &huge),
        ] {
            let error = refused(&archive(&[(name, EntryType::Regular, content)]));
            assert!(error.contains("not with a lock") && error.contains(name), "{error}");
        }
        let error = refused(&archive(&[("x86_64.lock", EntryType::Regular, b"arch = 7")]));
        assert!(error.starts_with("the lock in it cannot be used"), "{error}");
        assert!(refused(b"").contains("not with a lock"));
        assert!(refused(&[b'x'; 4096]).starts_with("it could not be taken in"));
    }

    #[test]
    fn a_file_that_was_cut_off_anywhere_is_refused() {
        let (folder, debs) = full();
        let file = folder.path().join("packages.tar");
        debs.export(&lock(), &file).unwrap();
        let whole = fs::read(&file).unwrap();
        // The two empty blocks at the end say nothing.
        for end in (0..whole.len() - 1024).step_by(509) {
            refused(&whole[..end]);
        }
    }

    #[test]
    fn a_wrong_byte_anywhere_never_makes_a_wrong_package() {
        let (folder, debs) = full();
        let file = folder.path().join("packages.tar");
        debs.export(&lock(), &file).unwrap();
        let mut bytes = fs::read(&file).unwrap();
        // Close together where headers and the lock are, then here and there.
        for at in (0..2600).step_by(11).chain((2600..bytes.len()).step_by(1009)) {
            bytes[at] ^= 0x11;
            if let Ok(imported) = taken(&bytes) {
                assert_eq!(imported.new, 3, "{at}");
            }
            bytes[at] ^= 0x11;
        }
    }
}
