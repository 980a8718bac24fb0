use std::path::{Path, PathBuf};

use crate::Certificate;

/// Where things about a spare are in a state folder: all below `STATE/spare/`, 0700.
#[derive(Debug, Clone)]
pub struct Folders {
    own: PathBuf,
}

impl Folders {
    /// Those of this state folder.
    pub fn of(state: &Path) -> Self {
        Self { own: state.join("spare") }
    }
    /// The folder itself.
    pub fn own(&self) -> &Path {
        &self.own
    }
    /// This box's link certificate and key, both in PEM: 0600.
    pub fn identity(&self) -> PathBuf {
        self.own.join("identity.pem")
    }
    /// The other box.
    pub fn peer(&self) -> PathBuf {
        self.own.join("peer.json")
    }
    /// Its certificate alone, in PEM, for programs that want a file.
    pub fn peer_certificate(&self) -> PathBuf {
        self.own.join("peer.pem")
    }
    /// On the spare: the key to the main box's backups. 0600.
    pub fn main_key(&self) -> PathBuf {
        self.own.join("main-key")
    }
    /// On the spare: the stores of every main box that it ever was paired with.
    pub fn stores(&self) -> PathBuf {
        self.own.join("stores")
    }
    /// On the spare: the backups of the main box with this certificate, as restic lays a store out in a folder.
    pub fn store_of(&self, main: &Certificate) -> PathBuf {
        self.stores().join(main.short())
    }
    /// On the spare: what must never work again, one JSON line each, see [`Tombstones`](crate::Tombstones).
    pub fn tombstones(&self) -> PathBuf {
        self.own.join("tombstones.jsonl")
    }
    /// On the spare: what the main box's trail ended with, one JSON line each.
    pub fn heads(&self) -> PathBuf {
        self.own.join("heads.jsonl")
    }
    /// When the two last heard of each other, and the epochs.
    pub fn lease(&self) -> PathBuf {
        self.own.join("lease.json")
    }
    /// Boxes that this one followed for good, see [`Former`](crate::Former).
    pub fn formers(&self) -> PathBuf {
        self.own.join("formers.json")
    }
    /// The same once more, for when the list cannot be read.
    pub fn formers_copy(&self) -> PathBuf {
        self.own.join("formers.copy.json")
    }
    /// A list of them that could not be read.
    pub fn formers_aside(&self) -> PathBuf {
        self.own.join("formers.damaged.json")
    }
    /// On the spare: what the last trial restore found.
    pub fn drill(&self) -> PathBuf {
        self.own.join("drill.json")
    }
}
