//! Which of two boxes a machine is, and which addresses its ports have, says the machine and not the backup that comes to it.

use std::fs;
use std::path::{Path, PathBuf};

use polder_site::{BackupPlace, Site, Spare, SpareRole};
use polder_spare::{Peer, Side};

use crate::key::private_folder;
use crate::{BackupError, Folders, restore};

/// What a restored box is, where the backup says otherwise than this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unpaired {
    /// The box that was backed up had a spare; this machine has none.
    HadSpare,
    /// It was a spare; this machine is none.
    WasSpare,
}

impl Unpaired {
    /// For stewards: what is so, and what to do.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::HadSpare => {
                "The backup that this box came back from was of a box with a spare. That pairing was between two machines, and this one is paired with none: it has no spare until you pair it, and where backups went to the spare they need a place again."
            }
            Self::WasSpare => {
                "The backup that this box came back from was of a box that was another one's spare. That pairing was between two machines, and this one is paired with none: it is nobody's spare until you say so."
            }
        }
    }

    /// What was noted when this state folder was restored; nothing once the box is paired.
    pub fn noted(state: &Path) -> Option<Self> {
        match fs::read_to_string(note_in(state)).ok()?.trim() {
            "had-spare" => Some(Self::HadSpare),
            "was-spare" => Some(Self::WasSpare),
            _ => None,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::HadSpare => "had-spare\n",
            Self::WasSpare => "was-spare\n",
        }
    }
}

/// What the box that came is on this machine: its pairing is this machine's, and none where there is none. Pure.
fn pairing(came: &Site, here: Option<Spare>, paired: Option<Side>) -> (Site, Option<Unpaired>) {
    let mut site = came.clone();
    let role = paired.map(|side| match side {
        Side::Main => SpareRole::OfThis,
        Side::Spare => SpareRole::ForAnother,
    });
    site.spare = role.map(|role| match here.or(came.spare) {
        Some(spare) => Spare { role, ..spare },
        None => Spare::of(role),
    });
    let has_spare = role == Some(SpareRole::OfThis);
    site.backup.take_if(|backup| !has_spare && backup.to == BackupPlace::Spare);
    let lost = match (came.spare, site.spare) {
        (Some(was), None) if was.role == SpareRole::OfThis => Some(Unpaired::HadSpare),
        (Some(_), None) => Some(Unpaired::WasSpare),
        _ => None,
    };
    (site, lost)
}

/// Gives what was fetched this machine's pairing and its ports' addresses. To be called before [`restore::ready`].
pub fn keep_pairing(folders: &Folders) -> Result<(), BackupError> {
    let state = folders.restore().parent().unwrap_or(Path::new(".")).to_owned();
    let not_whole =
        |error: &dyn std::error::Error| BackupError::NotWhole(format!("its site: {error}"));
    let store = polder_site::Store::open(&restore::incoming(folders)).map_err(|e| not_whole(&e))?;
    let Some(came) = store.current().map_err(|e| not_whole(&e))? else { return Ok(()) };
    let peer = Peer::read(&polder_spare::Folders::of(&state));
    // One that cannot be read is no reason to lose what it may say: the part that uses it says what is wrong.
    let here = site_here(&state).and_then(|site| site.spare);
    let paired = match peer {
        Ok(peer) => peer.map(|peer| peer.side),
        Err(_) => here.map(|spare| match spare.role {
            SpareRole::OfThis => Side::Main,
            SpareRole::ForAnother => Side::Spare,
        }),
    };
    let (mut site, lost) = pairing(&came, here, paired);
    // Whoever restores a box sits before it at an address that it has now; the seed of the box that comes was for another machine.
    site.ports = polder_seed::ports(&state).unwrap_or_default();
    private_folder(&restore::also(folders))?;
    let decided = restore::also(folders).join(polder_seed::BOUND);
    polder_site::write_durably(&decided, b"none: this box was restored\n")
        .map_err(|source| BackupError::File { path: decided, source })?;
    if site != came {
        site.check().map_err(|e| not_whole(&e))?;
        store.write(&site, "restored on another machine").map_err(|e| not_whole(&e))?;
    }
    let word = match lost {
        Some(lost) => lost.word(),
        // What an earlier restore has noted is not so any more.
        None if note_in(&state).exists() => "\n",
        None => return Ok(()),
    };
    let note = note_in(&restore::also(folders));
    let folder = note.parent().unwrap_or(Path::new("."));
    private_folder(folder)?;
    polder_site::write_durably(&note, word.as_bytes())
        .map_err(|source| BackupError::File { path: note, source })
}

/// The site of the box that is here now, if there is one that can be read.
fn site_here(state: &Path) -> Option<Site> {
    Site::from_toml(&fs::read_to_string(state.join("site.toml")).ok()?).ok()
}

fn note_in(state: &Path) -> PathBuf {
    state.join("spare/unpaired")
}

#[cfg(test)]
mod tests {
    use polder_site::Backup;

    use super::*;

    fn main_with_spare() -> Site {
        let mut site = Site::unclaimed(8443);
        site.spare = Some(Spare { port: 9444, ..Spare::of(SpareRole::OfThis) });
        site.backup = Some(Backup::to(BackupPlace::Spare));
        site
    }

    #[test]
    fn a_restored_box_has_the_pairing_of_its_machine_and_none_where_there_is_none() {
        let came = main_with_spare();
        // The machine that the backup is of.
        assert_eq!(pairing(&came, came.spare, Some(Side::Main)), (came.clone(), None));
        // Another machine: neither a spare nor backups to one.
        let (site, lost) = pairing(&came, None, None);
        assert_eq!(
            (site.spare, site.backup.is_none(), lost),
            (None, true, Some(Unpaired::HadSpare))
        );
        site.check().unwrap();
        // One that is to be a spare and is paired with nobody is not kept so by what the site says.
        let ready = Some(Spare::of(SpareRole::ForAnother));
        assert_eq!(pairing(&came, ready, None).0.spare, None);
        // A machine that is another box's spare stays it, and keeps no backups with itself.
        let (site, lost) = pairing(&came, ready, Some(Side::Spare));
        assert_eq!((site.spare, site.backup.is_none(), lost), (ready, true, None));
        site.check().unwrap();
        // A backup of before the pairing.
        let alone = Site::unclaimed(8443);
        let (site, lost) = pairing(&alone, came.spare, Some(Side::Main));
        assert_eq!((site.spare, lost), (came.spare, None));
        let spare = Site { spare: ready, ..Site::unclaimed(8443) };
        assert_eq!(pairing(&spare, None, None).1, Some(Unpaired::WasSpare));
        assert_eq!(pairing(&alone, None, None), (alone, None));
    }

    #[test]
    fn what_was_fetched_is_changed_before_it_is_put_in_place_and_the_box_says_so() {
        let state = tempfile::tempdir().unwrap();
        let folders = Folders::of(state.path());
        // A backup without a site is somebody else's affair.
        fs::create_dir_all(restore::incoming(&folders)).unwrap();
        keep_pairing(&folders).unwrap();
        let store = polder_site::Store::open(&restore::incoming(&folders)).unwrap();
        store.write(&main_with_spare(), "as it was").unwrap();
        keep_pairing(&folders).unwrap();
        let site = store.current().unwrap().unwrap();
        assert_eq!((site.spare, site.backup), (None, None));
        assert_eq!(Unpaired::noted(state.path()), None);
        restore::ready(&folders, &crate::KitKey::make().unwrap()).unwrap();
        restore::settle(state.path()).unwrap().unwrap();
        assert_eq!(Unpaired::noted(state.path()), Some(Unpaired::HadSpare));
        let here = Site::from_toml(&fs::read_to_string(state.path().join("site.toml")).unwrap());
        assert_eq!(here.unwrap().spare, None);
        // The address at which it is reached now is this machine's, also where it came from a seed; the other box's is not taken.
        let (seed, bound) = (state.path().join("seed.toml"), state.path().join("seed.port"));
        fs::write(&seed, "version = 1\n[network]\naddress = \"10.0.0.5/8\"\n").unwrap();
        assert_eq!(fs::read_to_string(&bound).unwrap(), "none: this box was restored\n");
        assert!(polder_seed::ports(state.path()).unwrap().is_empty());
        fs::write(&bound, "enp1s0\n").unwrap();
        // Another backup, of a box that was alone.
        fs::create_dir_all(restore::incoming(&folders)).unwrap();
        let store = polder_site::Store::open(&restore::incoming(&folders)).unwrap();
        store.write(&Site::unclaimed(8443), "as it was").unwrap();
        keep_pairing(&folders).unwrap();
        restore::ready_as(&folders, &crate::KitKey::make().unwrap(), "before-restore-2").unwrap();
        restore::settle(state.path()).unwrap().unwrap();
        assert_eq!(Unpaired::noted(state.path()), None);
    }
}
