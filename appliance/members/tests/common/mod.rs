//! A members' database in a folder of its own, with a clock that tests move.
#![allow(dead_code, reason = "each test file uses its own part of this")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::IpAddr;
use std::path::PathBuf;

use polder_members::{Clock, Member, Members, NewMember, Role, Secret};

/// A database and what it needs to live.
pub(crate) struct Place {
    pub(crate) members: Members,
    pub(crate) clock: Clock,
    pub(crate) path: PathBuf,
    pub(crate) _folder: tempfile::TempDir,
}

pub(crate) const PASSWORD: &str = "four words in a row";

pub(crate) fn place() -> Place {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("polder.db");
    let clock = Clock::system();
    let members = Members::open_with_clock(&path, clock.clone()).unwrap();
    Place { members, clock, path, _folder: folder }
}

impl Place {
    /// Closes the database and opens it anew, as a restart does.
    pub(crate) fn restart(self) -> Self {
        let Self { members, clock, path, _folder } = self;
        drop(members);
        let members = Members::open_with_clock(&path, clock.clone()).unwrap();
        Self { members, clock, path, _folder }
    }
    pub(crate) fn add(&self, name: &str, role: Role) -> Member {
        self.members.add_member(&person(name), role).unwrap()
    }
}

pub(crate) fn person(name: &str) -> NewMember {
    NewMember { name: name.into(), email: None, password: secret(PASSWORD) }
}

pub(crate) fn secret(text: &str) -> Secret {
    Secret::new(text.into())
}

pub(crate) fn home() -> IpAddr {
    "192.168.1.7".parse().unwrap()
}
