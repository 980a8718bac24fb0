use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::io;
use std::sync::Arc;

use polder_control::PartName;
use polder_site::EngineName;

use crate::image::Helper;
use crate::systemd::Host;

/// A long-running process of the box.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// The public door.
    Gateway,
    /// The engine of one slot.
    Engine(EngineName),
    /// What watches the UPS.
    Power,
    /// Whoever looks after the uplinks, where the site names any.
    Wan,
    /// Whoever keeps in touch with the other box, where one of the two is the other's spare.
    Spare,
    /// Whoever looks after the box's health.
    Health,
}

impl Part {
    /// How it is called outside, where it is neither the door nor an engine.
    pub(crate) fn name(&self) -> Option<PartName> {
        match self {
            Self::Gateway | Self::Engine(_) => None,
            Self::Power => Some(PartName::Power),
            Self::Wan => Some(PartName::Wan),
            Self::Spare => Some(PartName::Spare),
            Self::Health => Some(PartName::Health),
        }
    }

    /// The part of this name.
    pub(crate) fn of(name: PartName) -> Self {
        match name {
            PartName::Power => Self::Power,
            PartName::Wan => Self::Wan,
            PartName::Spare => Self::Spare,
            PartName::Health => Self::Health,
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateway => f.write_str("gateway"),
            Self::Engine(name) => write!(f, "engine {name}"),
            Self::Power => f.write_str("watch over the UPS"),
            Self::Wan => f.write_str("wan"),
            Self::Spare => f.write_str("link to the other box"),
            Self::Health => f.write_str("health watch"),
        }
    }
}

/// How parts come to run on this machine: as child processes, or as units of the init system.
///
/// An implementation starts one process per part and tells when it has ended; what to do about it
/// is decided elsewhere. Where parts outlive the supervisor, `start` takes over the one that is
/// running already.
pub trait Parts: Send + Sync + 'static {
    /// A started part.
    type Process: Process;

    /// Starts the part. That it exists says nothing about whether it answers. Given up on the way,
    /// nothing is left running.
    fn start(&self, part: &Part) -> impl Future<Output = Result<Self::Process, PartsError>> + Send;

    /// The machine, where the box may turn it off.
    fn machine(&self) -> Option<Host> {
        None
    }

    /// Whoever does root's part in changes of the image, where the machine runs from one.
    fn helper(&self) -> Option<Arc<dyn Helper>> {
        None
    }

    /// Ends every engine that an earlier supervisor left running and that is not wanted any more.
    /// Where parts do not outlive the supervisor there is none.
    fn keep_only(&self, _wanted: &BTreeSet<Part>) -> impl Future<Output = ()> + Send {
        async {}
    }

    /// Ends every part that an earlier supervisor left running, and waits until they have ended: before a state folder is erased under
    /// them.
    fn quiet(&self) -> impl Future<Output = Result<(), PartsError>> + Send {
        async { Ok(()) }
    }

    /// Comes back when every end that was asked for has been passed on to whoever brings it about;
    /// to be waited for before the process ends.
    fn passed_on(&self) -> impl Future<Output = ()> + Send {
        async {}
    }
}

/// One started part.
///
/// Stopping is three words, each said after the one before had its time: [`drain`](Self::drain)
/// (take nothing new, finish what you have, end), [`hurry`](Self::hurry) (end now) and
/// [`kill`](Self::kill), which the process does not get to hear.
pub trait Process: Send {
    /// Its process number, while there is one.
    fn pid(&self) -> Option<u32>;
    /// Waits until it has ended, and says of what. May be dropped and called again.
    fn ended(&mut self) -> impl Future<Output = Ended> + Send;
    /// Asks it to finish what it has and end.
    fn drain(&self);
    /// Asks it to end at once.
    fn hurry(&self);
    /// Ends it and everything that it started.
    fn kill(&self);
}

/// What a part ended of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// `exit status 1`, `signal 9`.
    pub status: String,
    /// The last thing it said, if it said anything.
    pub last_words: Option<String>,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.status)?;
        match &self.last_words {
            Some(words) => write!(f, ", after saying: {words}"),
            None => Ok(()),
        }
    }
}

/// How a process ended, from its exit status or the signal that ended it.
pub(crate) fn exit_words(code: Option<i32>, signal: Option<i32>) -> String {
    match (code, signal) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(9)) => "signal 9 (killed; perhaps memory ran out)".to_owned(),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown end".to_owned(),
    }
}

/// A part could not be started.
#[derive(Debug, thiserror::Error)]
pub enum PartsError {
    /// The program could not be run.
    #[error("could not start {part} from {}: {source}", program.display())]
    Start {
        /// Which part.
        part: Part,
        /// Which program.
        program: std::path::PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The init system did not do what it was asked.
    #[error("could not {act} {unit}: {why}")]
    Unit {
        /// What was to be done.
        act: &'static str,
        /// To which unit.
        unit: String,
        /// Why it was not, and what to do.
        why: String,
    },
}
