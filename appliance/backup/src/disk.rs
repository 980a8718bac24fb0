//! USB disks for backups: which are plugged in, and root's part on the image, where one is mounted for writing while a backup is written.
//!
//! At all other times all disks are only read (udev mounts them so under `/run/media`). What is decided is pure; what is done, systemd's own
//! `systemd-mount` does, so that the mount is the machine's and goes with the disk when somebody pulls it out.

mod plugged;

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, lchown};
use std::path::{Path, PathBuf};
use std::process::Command;

use polder_site::FileSystemId;

pub use plugged::Plugged;

use crate::place::{FOLDER, is_mounted};

/// Where the disk is lent, and where it is said why one is not.
pub const LENT: &str = "/run/polder-disk";
/// The mount, in [`LENT`].
const MOUNT: &str = "backup";
/// Why the last disk was not lent, in [`LENT`].
const WHY: &str = "why";
/// Longer than any sentence in it.
const LONGEST_WHY: usize = 500;
/// Nothing on it is a program or a device, whoever wrote it.
const SAFE: &str = "nosuid,nodev,noexec";

/// A disk that backups cannot be written to. Each is one sentence for people; the first field is the disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Not there.
    #[error("{0} is not plugged in; plug it in, or choose another one on the page Backups")]
    Away(String),
    /// Nobody can tell which is meant.
    #[error(
        "two disks that are plugged in are called {0}; take one of them out, or choose one on the page Backups"
    )]
    Two(String),
    /// A disk of the machine's own.
    #[error("{0} is not on USB, and backups are written to no other; plug in one on USB")]
    NotUsb(String),
    /// The box's own, or one that boxes are made with.
    #[error("{0} has a Polder system on it; take another one for backups")]
    System(String),
    /// Nothing on it that is known.
    #[error(
        "{0} has no file system that this box knows; on any computer, format it as exFAT (or as ext4 on Linux), which removes everything on it, and plug it in again"
    )]
    Unformatted(String),
    /// A file system that is not written to.
    #[error(
        "{disk} has the file system {kind}, which this box does not write to; on any computer, format it as exFAT (or as ext4 on Linux), which removes everything on it, and plug it in again"
    )]
    Kind {
        /// The disk.
        disk: String,
        /// Its file system, as systems call it.
        kind: String,
    },
    /// Its own switch, or a file system that is read only.
    #[error("{0} is write-protected; look for a switch on it, or take another one")]
    Protected(String),
    /// Somebody reads from it.
    #[error(
        "{0} is being read from, perhaps by a model that is brought in; the backup is made when that is over"
    )]
    Busy(String),
    /// It cannot be mounted.
    #[error(
        "{0} could not be opened for writing; its file system may be damaged: have a computer check it, or take another one"
    )]
    Mount(String),
    /// Full.
    #[error("{0} is full; make room on it, or take another one")]
    Full(String),
    /// Somebody else's folder.
    #[error(
        "the folder {FOLDER} on {disk} belongs to somebody else (user {owner}); rename it, or take another disk"
    )]
    Owner {
        /// The disk.
        disk: String,
        /// A number.
        owner: u32,
    },
    /// Gone in the middle.
    #[error(
        "{0} was pulled out while it was written to; backups that were finished before are whole, and the next one is made when it is plugged in again"
    )]
    Pulled(String),
    /// Written to, and not closed.
    #[error("{0} could not be closed after the backup; leave it in until the machine is off")]
    Open(String),
    /// Something else.
    #[error("{disk} could not be used: {why}")]
    Other {
        /// The disk.
        disk: String,
        /// Why.
        why: io::Error,
    },
    /// What root found, in its words.
    #[error("{0}")]
    Told(String),
}

/// Where a machine tells of its disks.
#[derive(Debug, Clone)]
pub struct Disks {
    /// What udev knows of each device.
    pub udev: PathBuf,
    /// Devices by their numbers.
    pub devices: PathBuf,
    /// Files that are devices.
    pub dev: PathBuf,
    /// What is mounted.
    pub mounts: PathBuf,
    /// Where one is lent.
    pub lent: PathBuf,
}

impl Default for Disks {
    fn default() -> Self {
        Self {
            udev: "/run/udev/data".into(),
            devices: "/sys/dev/block".into(),
            dev: "/dev".into(),
            mounts: "/proc/self/mountinfo".into(),
            lent: LENT.into(),
        }
    }
}

impl Disks {
    /// Mounts this file system for writing by the owner of `whose`, with a folder for the backups. What went wrong is also left for the box to read.
    pub fn lend(&self, id: &FileSystemId, whose: &Path) -> Result<(), DiskError> {
        let _ = fs::remove_file(self.lent.join(WHY));
        let lent = self.try_to_lend(id, whose);
        if let Err(error) = &lent {
            self.unmount(&self.lent.join(MOUNT));
            self.show(id);
            if let Err(source) = fs::write(self.lent.join(WHY), error.to_string()) {
                log::warn!("could not leave word of a disk: {source}");
            }
        }
        lent
    }

    fn try_to_lend(&self, id: &FileSystemId, whose: &Path) -> Result<(), DiskError> {
        let disk = self.find("", Some(id))?;
        let other = |why| DiskError::Other { disk: disk.shown(), why };
        let whose = fs::metadata(whose).map_err(other)?;
        let owner = (whose.uid(), whose.gid());
        let options = judge(&disk, owner)?;
        // One that was pulled out while somebody wrote to it may still be in the way.
        let at = self.lent.join(MOUNT);
        for place in self.mounted_at(&disk.device).into_iter().chain([at.clone()]) {
            if !self.unmount(&place) {
                return Err(DiskError::Busy(disk.shown()));
            }
        }
        let mounts = || mount(&disk.device, &at, &options) && self.is_mounted(&at);
        // One that was just plugged in is checked first, and may be mounted to be read meanwhile, as all are.
        let again = || {
            let read = self.mounted_at(&disk.device);
            !read.is_empty() && read.iter().all(|place| self.unmount(place)) && mounts()
        };
        if !mounts() && !again() {
            return Err(DiskError::Mount(disk.shown()));
        }
        make_folder(&disk.shown(), &at, owner)
    }

    /// Unmounts it, which writes all that waits, and has it be read again as any other.
    pub fn take_back(&self, id: &FileSystemId) -> Result<(), DiskError> {
        let at = self.lent.join(MOUNT);
        if !self.unmount(&at) {
            return Err(DiskError::Busy(format!("the disk {id}")));
        }
        self.show(id);
        Ok(())
    }

    /// To be read, as udev's rule does it; nothing where it was pulled out.
    fn show(&self, id: &FileSystemId) {
        if let Ok(disk) = self.find("", Some(id))
            && disk.usb
            && self.mounted_at(&disk.device).is_empty()
        {
            mount(&disk.device, &disk.read_at(), &format!("ro,{SAFE}"));
        }
    }

    fn is_mounted(&self, at: &Path) -> bool {
        is_mounted(&fs::read_to_string(&self.mounts).unwrap_or_default(), at)
    }

    /// Which file system is lent now.
    pub fn lent_now(&self) -> Option<FileSystemId> {
        let at = self.lent.join(MOUNT);
        let lent = |disk: &Plugged| self.mounted_at(&disk.device).contains(&at);
        self.all().into_iter().find(lent)?.id
    }

    /// Where a device is mounted, as far as this process sees it.
    pub fn mounted_at(&self, device: &Path) -> Vec<PathBuf> {
        let mounts = fs::read_to_string(&self.mounts).unwrap_or_default();
        crate::place::mounts(&mounts)
            .filter(|(_, source)| source == device)
            .map(|(point, _)| point)
            .collect()
    }

    /// True when nothing is mounted there any more.
    fn unmount(&self, at: &Path) -> bool {
        !self.is_mounted(at)
            || (run(Command::new("systemd-umount").arg(at)) && !self.is_mounted(at))
    }

    /// Why the last disk was not lent.
    pub fn why_not(&self) -> Option<String> {
        let why = fs::read_to_string(self.lent.join(WHY)).ok()?;
        Some(why.chars().filter(|c| !c.is_control()).take(LONGEST_WHY).collect())
    }
}

/// How it would be mounted, or why not. `owner`: user and group that may write to it.
fn judge(disk: &Plugged, owner: (u32, u32)) -> Result<String, DiskError> {
    disk.takes_backups()?;
    Ok(match disk.kind.as_str() {
        // These know no owners, so that all on it is whoever's it is mounted for.
        "exfat" | "vfat" => format!("rw,{SAFE},uid={},gid={},umask=0077", owner.0, owner.1),
        // A link that somebody left on it would lead whoever writes elsewhere, or remove what lies there.
        _ => format!("rw,{SAFE},nosymfollow"),
    })
}

/// The folder for the backups, which is the box's own; all else on the disk stays untouched.
fn make_folder(disk: &str, at: &Path, owner: (u32, u32)) -> Result<(), DiskError> {
    let disk = disk.to_owned();
    let folder = at.join(FOLDER);
    match fs::DirBuilder::new().mode(0o700).create(&folder) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => {
            return Err(match error.kind() {
                io::ErrorKind::StorageFull => DiskError::Full(disk),
                io::ErrorKind::ReadOnlyFilesystem => DiskError::Protected(disk),
                _ => DiskError::Other { disk, why: error },
            });
        }
    }
    let about = fs::symlink_metadata(&folder)
        .map_err(|why| DiskError::Other { disk: disk.clone(), why })?;
    match about.uid() {
        // A link could lead root elsewhere.
        _ if !about.is_dir() => Err(DiskError::Owner { disk, owner: about.uid() }),
        uid if uid == owner.0 => Ok(()),
        // A link that is swapped in meanwhile leads nowhere either.
        0 => lchown(&folder, Some(owner.0), Some(owner.1))
            .map_err(|why| DiskError::Other { disk, why }),
        uid => Err(DiskError::Owner { disk, owner: uid }),
    }
}

fn mount(device: &Path, at: &Path, options: &str) -> bool {
    let options = format!("--options={options}");
    run(Command::new("systemd-mount").args(["--collect", &options]).args([device, at]))
}

fn run(command: &mut Command) -> bool {
    match command.output() {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            log::warn!("{}: {}", command.get_program().display(), said.trim());
            false
        }
        Err(error) => {
            log::warn!("{}: {error}", command.get_program().display());
            false
        }
    }
}

#[cfg(test)]
mod tests;
