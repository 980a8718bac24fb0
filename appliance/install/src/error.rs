//! Everything that can go wrong while a disk is made a box. Each message is for somebody at the screen.

use std::io;
use std::path::PathBuf;

use crate::disks::{Refusal, SurveyError};

/// Polder could not be put on a disk.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// Started where there is nothing to install from.
    #[error(
        "this machine does not run from a stick with Polder on it; write the image to a stick and start the machine from that"
    )]
    NotLive,
    /// The running system does not say what it is.
    #[error("the stick does not tell what is on it ({0}); write the image to it once more")]
    Unclear(&'static str),
    /// A file of the running system.
    #[error("could not read {} from the stick; write the image to the stick once more, or to another one", path.display())]
    Stick {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The disks could not be listed.
    #[error("could not ask lsblk for this machine's disks")]
    List(#[source] io::Error),
    /// Nor understood.
    #[error("could not list this machine's disks")]
    Survey(#[from] SurveyError),
    /// A name that is no disk.
    #[error("this machine has no disk called {0}; `polder install --list` shows those it has")]
    NoSuchDisk(String),
    /// Somebody else was first.
    #[error("Polder is being put on a disk already; wait until that is over")]
    Busy,
    /// It may not be written to.
    #[error("nothing is put on {disk}: {why}")]
    Refused {
        /// Which.
        disk: String,
        /// Why.
        why: Refusal,
    },
    /// Another one has its name now.
    #[error(
        "{0} is not the disk any more that was chosen; nothing was written to it, choose again"
    )]
    OtherDisk(String),
    /// It does not answer.
    #[error(
        "{0} is gone: it does not answer any more; look at its cable and its slot, then choose a disk again. What was written so far does not start"
    )]
    Vanished(String),
    /// It does not take what is written.
    #[error("{disk} could not be written to; it may be broken, so choose another disk")]
    Write {
        /// Which.
        disk: String,
        /// Why.
        source: io::Error,
    },
    /// The tool that makes partitions failed.
    #[error("{disk} could not be given new partitions ({said}); choose it again, or another one")]
    Partitions {
        /// Which.
        disk: String,
        /// The tool's own last words.
        said: String,
    },
    /// The disk gives back something else than was written.
    #[error(
        "{disk} gives back something else than was written to it ({what}), so it is broken or its cable is; choose another disk. This one does not start"
    )]
    Differs {
        /// Which.
        disk: String,
        /// What.
        what: String,
    },
}
