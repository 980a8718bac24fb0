//! What the two boxes say to each other over the link, as JSON.

use serde::{Deserialize, Serialize};

use crate::Certificate;

/// How the main box is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It answers members.
    Serving,
    /// It is starting, or waits to be allowed.
    #[default]
    Starting,
    /// It does not serve, on purpose.
    Resting,
}

/// `POST /link/hello`: first on each connection of the main box's.
#[derive(Clone, Serialize, Deserialize)]
pub struct Hello {
    /// What it is called now.
    pub name: String,
    /// Opens its backups, as on its emergency kit; none while it has none.
    pub key: Option<String>,
}

impl std::fmt::Debug for Hello {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Hello {{ name: {:?}, key: (hidden) }}", self.name)
    }
}

/// `POST /link/beat`: every second.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// The epoch under which the main box serves.
    pub epoch: u64,
    /// How it is.
    pub state: State,
    /// It stops by itself when it does not hear from the spare for the lease.
    #[serde(default)]
    pub yields: bool,
    /// It asks what a spare leaves to it that began to take over and did not; one of an earlier version does not.
    #[serde(default)]
    pub may_be_left: bool,
}

/// The spare's answer to each of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// What the spare is called.
    pub name: String,
    /// The highest epoch that the spare knows. One above the main box's own means that another serves: it must not.
    pub epoch: u64,
    /// It has so many lines of the main box's revocations on disk.
    pub revocations: u64,
    /// SHA-256 over them.
    pub revoked_digest: String,
    /// The last audit head that it keeps: number and hash.
    pub head: Option<(u64, String)>,
    /// What it noticed of heads that do not fit together.
    pub truncated: Option<String>,
    /// Its room.
    pub room: Option<Room>,
    /// When the last backup came in, Unix seconds.
    pub backup: Option<i64>,
    /// What its last trial restore found.
    pub drill: Option<DrillFound>,
    /// The one who asks is out: this box is the collective's main box, for good.
    #[serde(default)]
    pub retired: bool,
}

/// The disk that the spare keeps backups on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// Bytes of backups.
    pub used: u64,
    /// Most bytes of backups that it takes.
    pub most: u64,
    /// Bytes free on the disk.
    pub free: u64,
}

impl Room {
    /// Bytes that may still come.
    pub fn left(&self) -> u64 {
        self.most.saturating_sub(self.used).min(self.free)
    }
}

/// What a trial restore on the spare found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrillFound {
    /// Unix seconds.
    pub at: i64,
    /// Well, or what is wrong: one sentence.
    pub found: Result<String, String>,
}

/// `POST /link/revoked`: lines of the main box's list of what must never work again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Push {
    /// They come after line number so-and-so.
    pub after: u64,
    /// The main box's list is another one than before, and this is its beginning.
    pub anew: bool,
    /// In order, at most [`Push::MOST`].
    pub lines: Vec<String>,
}

impl Push {
    /// More do not fit into one.
    pub const MOST: usize = 1000;
}

/// Its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pushed {
    /// So many are on the spare's disk.
    pub revocations: u64,
}

/// `POST /link/head`: what the main box's audit trail ends with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Entries.
    pub number: u64,
    /// Of the last one, hex.
    pub hash: String,
}

/// `POST /pair/begin`, from a box that is not known yet.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Begin {
    pub(crate) name: String,
    pub(crate) certificate: Certificate,
    /// Base64.
    pub(crate) message: String,
}

/// Its answer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Begun {
    pub(crate) exchange: String,
    pub(crate) name: String,
    /// Base64.
    pub(crate) message: String,
}

/// `POST /pair/prove`, and its answer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Prove {
    pub(crate) exchange: String,
    /// Base64.
    pub(crate) proof: String,
}
