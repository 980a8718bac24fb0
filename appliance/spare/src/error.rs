use std::io;
use std::path::PathBuf;

/// Something about the spare did not work.
#[derive(Debug, thiserror::Error)]
pub enum SpareError {
    /// A file of the state folder could not be used.
    #[error("could not use {}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is there and says nothing that makes sense.
    #[error("{} cannot be read ({why}); unpair the boxes and pair them again", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A certificate or key could not be made.
    #[error("no certificate for the link could be made: {0}")]
    Certificate(String),
    /// The system has no random numbers.
    #[error("no code could be made: {0}")]
    Random(String),
    /// Not a code.
    #[error("{0:?} is no pairing code; type it as the spare shows it, such as 4821-otter-lamp")]
    NoCode(String),
    /// This box is paired with none.
    #[error("this box is paired with no other; pair it on the page Spare")]
    Alone,
    /// No other box would believe the number of a term.
    #[error(
        "term {0} cannot begin, since no other box would believe its number; pair the boxes anew"
    )]
    Terms(u64),
    /// This box has a pair already.
    #[error("this box is paired with {0} already; unpair them first")]
    Taken(String),
    /// Nobody answers there.
    #[error(
        "{address} cannot be reached: {why}; see that the box is on, says that it is a spare, and is on the same network"
    )]
    Away {
        /// Where.
        address: String,
        /// Why.
        why: String,
    },
    /// The codes, or the certificates that they bind, are not the same at both ends.
    #[error(
        "the code is not the one that {address} shows; look at it again, and type it letter for letter"
    )]
    WrongCode {
        /// Where.
        address: String,
    },
    /// Somebody who knows another code stands between the boxes, or the spare is not what it says.
    #[error(
        "{address} does not prove that it knows the code: somebody may stand between the two boxes; nothing was paired. Show a new code and try again"
    )]
    Impostor {
        /// Where.
        address: String,
    },
    /// The other box said no.
    #[error("{who} says: {why}")]
    Refused {
        /// Who.
        who: String,
        /// In its own words.
        why: String,
    },
    /// The other box said something that we do not understand.
    #[error(
        "{who} answered something that this version does not understand ({why}); are both boxes of one version?"
    )]
    Foreign {
        /// Who.
        who: String,
        /// What.
        why: String,
    },
    /// The port is somebody else's.
    #[error("could not listen at port {port}: {source}; choose another one on the page Spare")]
    Listen {
        /// Which.
        port: u16,
        /// Why.
        source: io::Error,
    },
    /// The private socket.
    #[error(transparent)]
    Control(#[from] polder_control::ControlError),
}

impl SpareError {
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}
