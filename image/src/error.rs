use std::io;
use std::path::{Path, PathBuf};

use polder_recipes::Digest;

use crate::lock::{Layer, LockError};

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
