use std::io;
use std::path::{Path, PathBuf};

use polder_recipes::Digest;

use crate::Arch;
use crate::lock::{Layer, LockError};
use crate::parcel::ParcelError;

/// Why an image could not be made or checked: what failed, on what, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file or folder could not be used.
    #[error("could not {act} {}", path.display())]
    File {
        /// `read`, `write`, `make`.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The folder is no checkout of Polder.
    #[error("{} has no image/packages.toml; run this in a checkout of Polder, or name one with --source", .0.display())]
    NoSource(PathBuf),
    /// `packages.toml` is not as it should be.
    #[error("{}: {}", path.display(), source.message())]
    Want {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: toml::de::Error,
    },
    /// There is no usable lock.
    #[error("{}: {source}", path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: LockError,
    },
    /// A layer is in `packages.toml` but not in the lock.
    #[error("the lock {} has no packages for [{layer}]; make it again with `polder image lock`", path.display())]
    EmptyLayer {
        /// The lock.
        path: PathBuf,
        /// Which layer.
        layer: Layer,
    },
    /// A package of PyPI's is wanted in whatever version there is.
    #[error("image/packages.toml wants {0:?} from PyPI without a version: write NAME==VERSION")]
    Loose(String),
    /// The sealing of the root left no hash.
    #[error("{} holds no root hash; remove its folder from the cache and build again", .0.display())]
    RootHash(PathBuf),
    /// Only root may make file systems with other people's files in them.
    #[error(
        "making an image needs root: it writes files that belong to other users; run it with sudo"
    )]
    NotRoot,
    /// A program that this needs is not here.
    #[error("{program} is not on this machine; install the package {package}")]
    NoProgram {
        /// Which.
        program: String,
        /// Debian's name for it.
        package: &'static str,
    },
    /// A program failed.
    #[error("{what} failed ({status}); the end of {}:\n{tail}", log.display())]
    Failed {
        /// What it was to do.
        what: String,
        /// How it ended.
        status: String,
        /// All that it said.
        log: PathBuf,
        /// The last of it.
        tail: String,
    },
    /// No Debian mirror is known.
    #[error("this machine names no Debian mirror that apt uses; say one with --mirror")]
    NoMirror,
    /// A package of the lock cannot be had any more.
    #[error(
        "the mirror does not have {} any more ({count} packages of the lock are missing): bring a package file that has \
         them with `polder image packages import FILE`, or make a new lock with `polder image lock`",
        first
    )]
    Gone {
        /// The first of them: name and version.
        first: String,
        /// How many there are.
        count: usize,
    },
    /// Packages of a lock are not in the cache.
    #[error(
        "{first} is not here ({count} packages of the lock are missing); build the image once, which fetches them, or \
         bring them with `polder image packages import FILE`"
    )]
    NotHere {
        /// The first of them: name and version.
        first: String,
        /// How many there are.
        count: usize,
    },
    /// A file of packages cannot be used.
    #[error("{}: {source}", path.display())]
    Parcel {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ParcelError,
    },
    /// The description of a driver's bundle is not as it should be.
    #[error("{}: {why}", path.display())]
    Bundle {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A driver's bundle is for other machines.
    #[error(
        "the driver {version} is for {found} and the image for {wanted}; name a bundle for {wanted}"
    )]
    OtherBundle {
        /// The driver's.
        version: String,
        /// As the bundle says.
        found: Arch,
        /// The image's.
        wanted: Arch,
    },
    /// A driver's bundle holds another version than its description says.
    #[error("{} holds the driver {found} and its description says {wanted}; correct the description", path.display())]
    OtherDriver {
        /// The file.
        path: PathBuf,
        /// As the description says.
        wanted: String,
        /// As it is.
        found: String,
    },
    /// The root's kernel is not one that headers can be had for.
    #[error(
        "the lock's root has no kernel with a version in its name; a driver cannot be built for it"
    )]
    NoKernel,
    /// A driver's list of cards cannot be read.
    #[error("the driver's list of cards cannot be read: {0}")]
    Cards(#[source] serde_json::Error),
    /// Cargo's own lock cannot be read.
    #[error("{}: {}", path.display(), source.message())]
    CargoLock {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: toml::de::Error,
    },
    /// A key cannot be used.
    #[error("the key {} cannot be used: {why}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A folder of keys lacks one.
    #[error("there is no {}; `polder image keys DIR` makes a whole folder of keys", .0.display())]
    NoKey(PathBuf),
    /// A key would be written over.
    #[error("{} is there already, and a key that is lost cannot be made again; name an empty folder", .0.display())]
    KeyThere(PathBuf),
    /// There is nothing to sign or to check.
    #[error("{} has no polder_*.sha256; name the folder that `polder image build` wrote to", .0.display())]
    NoSums(PathBuf),
    /// A list of checksums is not as a build writes it.
    #[error("{} is not a list of checksums with files beside it: {line:?}; fetch it again", path.display())]
    Sums {
        /// The file.
        path: PathBuf,
        /// The line that is wrong.
        line: String,
    },
    /// A file is not as its checksum says.
    #[error("{} has the digest {found} and should have {expected}; do not use it, fetch it again", path.display())]
    WrongFile {
        /// Which.
        path: PathBuf,
        /// As the checksum says.
        expected: Digest,
        /// As it is.
        found: Digest,
    },
    /// A list of checksums is not signed by the key.
    #[error("{} is not signed with this key ({why}); do not use what it names", path.display())]
    BadSignature {
        /// The list.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A file lies among signed ones and is not one of them.
    #[error("{} is in no signed list of checksums; do not use it", .0.display())]
    Unsigned(PathBuf),
    /// A package is not what the lock says.
    #[error(
        "{name} has the digest {found} and should have {expected}; somebody changed it, or the transfer broke: fetch it again"
    )]
    WrongPackage {
        /// Which.
        name: String,
        /// As the lock says.
        expected: Digest,
        /// As it is.
        found: Digest,
    },
    /// Two builds that should be the same are not.
    #[error("two builds differ in {}: first at byte {at}", file)]
    Differs {
        /// In which file.
        file: String,
        /// Where.
        at: u64,
    },
    /// The program was compiled by another compiler than the lock says.
    #[error(
        "the lock says rustc {wanted} and this machine has {found}; install that one, or make the lock again with `polder image lock`"
    )]
    OtherRustc {
        /// As the lock says.
        wanted: String,
        /// As it is.
        found: String,
    },
}

impl ImageError {
    pub(crate) fn file(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { act, path: path.to_owned(), source }
    }
}
