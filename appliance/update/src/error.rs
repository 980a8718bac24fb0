use std::io;
use std::path::{Path, PathBuf};

use polder_weights::WeightsError;

use crate::{Refusal, Version};

/// An update could not be looked for, brought, written or told about.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// A file could not be used.
    #[error("could not {act} {}: {source}", path.display())]
    File {
        /// What was to be done.
        act: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A program of the system did not do its work.
    #[error("{program} failed: {why}")]
    Program {
        /// Which.
        program: &'static str,
        /// The end of what it said.
        why: String,
    },
    /// What is offered may not be taken.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A server did not give its manifest.
    #[error("{address} gave no update: {why}")]
    Server {
        /// What was asked for.
        address: String,
        /// Why not, and what to do.
        why: String,
    },
    /// No stick or disk has an update on it.
    #[error(
        "no disk that is plugged in has a Polder update on it; plug in a stick with the files polder_*.toml and polder_*.toml.minisig, then look again"
    )]
    NoStick,
    /// Nobody said where updates come from.
    #[error(
        "this box was not told where updates come from; give it a web address, or plug in a stick that has one on it"
    )]
    NoSource,
    /// The files of an update.
    #[error(transparent)]
    Files(#[from] WeightsError),
    /// The update was not brought yet.
    #[error("{0} is not on this box yet; fetch it first")]
    NotHere(Version),
    /// What was written is not what should have been.
    #[error(
        "{what} of {version} was written to {} but reads back differently; the disk may be failing: try again, and look after another disk if it happens again",
        place.display()
    )]
    ReadBack {
        /// Which part.
        what: &'static str,
        /// Of which version.
        version: Version,
        /// Where.
        place: PathBuf,
    },
    /// What lies here is not what the manifest says.
    #[error("{} is not the file that its manifest names; fetch {version} again", path.display())]
    WrongFile {
        /// The file.
        path: PathBuf,
        /// Of which version.
        version: Version,
    },
    /// The machine's disk is not a box's disk.
    #[error("{0}")]
    Disk(String),
}

impl UpdateError {
    /// For `map_err` on file operations.
    pub(crate) fn file(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { act, path, source }
    }
}
