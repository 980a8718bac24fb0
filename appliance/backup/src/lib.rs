//! Copies of a box's small precious state (who it is, its members, its keys) on a disk or a server, and a box back from them
//! with nothing but a sheet of paper.
//!
//! - [`fate`] says what of a state folder is copied: pure.
//! - [`gather`] lays that out in one moment's state, [`Restic`] sends it, encrypted with the [`KitKey`], in restic's format.
//! - [`restore`] brings it back, looks at it ([`examine`]) and puts it in place in one go that survives a power cut.
//! - [`due`] says when a copy or a drill is to be made: pure.
//!
//! All calls block. Whoever serves others runs them on a thread of its own.

pub mod disk;
mod due;
mod error;
mod examine;
mod flush;
mod gather;
mod key;
mod kit;
mod left_out;
mod pairing;
mod passage;
mod place;
mod plan;
mod progress;
mod record;
mod restic;
pub mod restore;
mod what;

pub use due::{Due, due};
pub use error::BackupError;
pub use examine::{Examined, examine};
pub use gather::{Gathered, gather};
pub use key::KitKey;
pub use kit::Kit;
pub use left_out::LeftOut;
pub use pairing::{Unpaired, keep_pairing};
pub use place::{Location, Store, locate, look};
pub use plan::{BackupAction, drill_plan, first_plan, restore_plan, save_plan};
pub use record::{Drill, Failure, Record, Saved};
pub use restic::{Repository, Restic, Snapshot, Stop};
pub use what::{Fate, fate};

use std::path::{Path, PathBuf};

/// The layout of what is in a backup; raised when an older version could misread a newer one.
pub const FORMAT: u32 = 1;

/// Where the folders and files of this crate are in a state folder.
#[derive(Debug, Clone)]
pub struct Folders {
    state: PathBuf,
}

impl Folders {
    /// Those of this state folder.
    pub fn of(state: &Path) -> Self {
        Self { state: state.to_owned() }
    }
    /// The key and the record: 0700.
    pub fn own(&self) -> PathBuf {
        self.state.join("backup")
    }
    /// The key: 0600.
    pub fn key(&self) -> PathBuf {
        self.own().join("key")
    }
    /// `name:password` for a server that asks for one: 0600.
    pub fn login(&self) -> PathBuf {
        self.own().join("login")
    }
    /// What was done and when.
    pub fn record(&self) -> PathBuf {
        self.own().join("record.json")
    }
    /// What is sent, while it is sent.
    pub fn stage(&self) -> PathBuf {
        self.own().join("stage")
    }
    /// Where a drill restores to. Its gateway's socket needs a short path.
    pub fn drill(&self) -> PathBuf {
        self.state.join("drill")
    }
    /// What is being restored.
    pub fn restore(&self) -> PathBuf {
        self.state.join("restore")
    }
    /// The key that was typed for a restore, until it is over: 0600.
    pub fn restore_key(&self) -> PathBuf {
        self.own().join("restore-key")
    }
    /// There from the moment a box is restored until its models are being fetched.
    pub fn restored(&self) -> PathBuf {
        self.own().join("restored")
    }
}
