use polder_control::{Disk, RecoveryKey};
use serde::{Deserialize, Serialize};

/// Where questions are taken, on an image.
pub const SOCKET: &str = "/run/polder-seal/sock";
/// Is there while the disk could not be opened at this start.
pub const LOCKED: &str = "/run/polder-seal/locked";
/// In the state folder: the next start, and only that one, runs neither engines nor apps.
pub const SAFE_MODE: &str = "safe-mode";

/// One question to the part that runs as root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ask {
    /// How the disk is kept shut. → [`Answer::Disk`].
    Look,
    /// Makes a recovery key; everything else stays. → [`Answer::RecoveryKey`].
    Seal,
    /// Seals the disk to the machine and takes the empty passphrase away, given that this key opens it. →
    /// [`Answer::Done`].
    Confirm(RecoveryKey),
    /// Opens a disk that the machine did not open, and goes on with the start. → [`Answer::Done`].
    Open {
        /// The key.
        key: RecoveryKey,
        /// Seal it anew to the machine as it is started now.
        anew: bool,
    },
    /// Forget, and start again. → [`Answer::Done`].
    Reset(Reset),
    /// Start again, once without engines and apps. → [`Answer::Done`].
    SafeMode,
}

/// What a reset leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reset {
    /// Nothing: the disk's key is destroyed.
    Everything,
    /// The models.
    KeepModels,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// The disk.
    Disk(Disk),
    /// The new recovery key, said once.
    RecoveryKey(RecoveryKey),
    /// Done.
    Done,
    /// No; one sentence.
    Refused(String),
}
