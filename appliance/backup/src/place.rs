use std::fs;
use std::path::{Path, PathBuf};

use polder_site::BackupPlace;

use crate::restic::Repository;
use crate::{BackupError, Folders};

/// In a folder or on a disk, everything is in a folder of this name: what else is there stays untouched.
pub(crate) const FOLDER: &str = "polder-backup";
/// Where systems say which disk has which label, and which is mounted where.
const LABELS: &str = "/dev/disk/by-label";
const IDS: &str = "/dev/disk/by-uuid";
const MOUNTS: &str = "/proc/self/mountinfo";

/// Where backups are, as restic is told it.
#[derive(Clone, PartialEq, Eq)]
pub enum Location {
    /// A folder of their own.
    Folder(PathBuf),
    /// A server.
    Server {
        /// Its address, without anybody's name.
        address: String,
        /// `name:password`, where it asks for them.
        login: Option<String>,
    },
    /// The spare that this box is paired with.
    Spare {
        /// What it is called, for people.
        name: String,
        /// `HOST:PORT`.
        address: String,
        /// The only certificate that is taken from it, in PEM.
        pinned: PathBuf,
        /// This box's certificate for the link and the key to it, in PEM.
        identity: PathBuf,
    },
}

impl Location {
    /// What a person is told: never a password.
    pub fn shown(&self) -> String {
        match self {
            Self::Folder(path) => path.display().to_string(),
            Self::Server { address, .. } => address.clone(),
            Self::Spare { name, .. } => format!("the spare {name}"),
        }
    }
}

impl std::fmt::Debug for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown())
    }
}

/// What is at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// Nothing yet: a store can be made.
    Nothing,
    /// A store that our key opens, with so many backups.
    Ours(usize),
}

/// Finds a place as it is now.
pub fn locate(place: &BackupPlace, folders: &Folders) -> Result<Location, BackupError> {
    match place {
        BackupPlace::Folder(path) => folder_in(path, place),
        BackupPlace::Disk { label, id } => {
            let mounts = fs::read_to_string(MOUNTS).unwrap_or_default();
            let link = match id {
                Some(id) => Path::new(IDS).join(id.as_str()),
                None => Path::new(LABELS).join(escaped(label)),
            };
            let device = fs::canonicalize(link).ok();
            // Whatever is mounted under its name is another disk, where it is known which one is meant.
            let name = id.is_none().then_some(label.as_str());
            let path = mounted(&mounts, device.as_deref(), name).ok_or_else(|| {
                BackupError::Away {
                    place: place.shown(),
                    why: match device {
                        Some(_) => "the disk is plugged in but not mounted; mount it, or wait a moment where the box does that by itself".to_owned(),
                        None => format!("{} is not plugged in; plug it in, or look what it is called", called(label, place)),
                    },
                }
            })?;
            folder_in(&path, place)
        }
        BackupPlace::Server(address) => {
            let login = match fs::read_to_string(folders.login()) {
                Ok(text) => Some(text.trim().to_owned()).filter(|text| !text.is_empty()),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
                Err(source) => return Err(BackupError::File { path: folders.login(), source }),
            };
            Ok(Location::Server { address: address.clone(), login })
        }
        BackupPlace::Spare => spare(folders),
    }
}

fn called(label: &str, place: &BackupPlace) -> String {
    match place {
        BackupPlace::Disk { id: Some(_), .. } => place.shown(),
        _ => format!("a disk called {label}"),
    }
}

fn spare(folders: &Folders) -> Result<Location, BackupError> {
    let at = polder_spare::Folders::of(&folders.state);
    let away = |why: String| BackupError::Away { place: "spare".to_owned(), why };
    let peer = polder_spare::Peer::read(&at).map_err(|error| away(error.to_string()))?;
    let peer = peer.and_then(|peer| Some((peer.address?, peer.name)));
    let (address, name) = peer.ok_or_else(|| {
        away("this box is paired with no spare; pair it on the page Spare".to_owned())
    })?;
    Ok(Location::Spare { name, address, pinned: at.peer_certificate(), identity: at.identity() })
}

/// What is there; an error where it is somebody else's or cannot be reached.
pub fn look(repository: &dyn Repository, location: &Location) -> Result<Store, BackupError> {
    if let Location::Folder(folder) = location
        && !folder.join("config").exists()
    {
        let mut entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Store::Nothing);
            }
            Err(source) => return Err(BackupError::File { path: folder.clone(), source }),
        };
        return match entries.next() {
            None => Ok(Store::Nothing),
            Some(_) => Err(BackupError::Foreign { place: location.shown() }),
        };
    }
    match repository.snapshots() {
        Ok(snapshots) => Ok(Store::Ours(snapshots.len())),
        Err(BackupError::NoStore(_)) => Ok(Store::Nothing),
        Err(error) => Err(error),
    }
}

/// The folder must be there: an unplugged disk leaves none, and a mistyped one is not made.
fn folder_in(path: &Path, place: &BackupPlace) -> Result<Location, BackupError> {
    if !path.is_dir() {
        let why =
            format!("there is no folder {}; plug the disk in, or make the folder", path.display());
        return Err(BackupError::Away { place: place.shown(), why });
    }
    Ok(Location::Folder(path.join(FOLDER)))
}

/// A label as udev writes it into a file's name.
fn escaped(label: &str) -> String {
    label.replace(' ', "\\x20")
}

/// What is mounted where: points and sources.
pub(crate) fn mounts(mountinfo: &str) -> impl Iterator<Item = (PathBuf, PathBuf)> {
    mountinfo.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let point = unescaped(before.split(' ').nth(4)?);
        let source = unescaped(after.split(' ').nth(1)?);
        Some((PathBuf::from(point), PathBuf::from(source)))
    })
}

/// Whether something is mounted at this very place.
pub(crate) fn is_mounted(mountinfo: &str, at: &Path) -> bool {
    mounts(mountinfo).any(|(point, _)| point == at)
}

/// Where a disk is mounted: by its device, else in a folder called after it where disks are mounted that people plug in.
fn mounted(mountinfo: &str, device: Option<&Path>, label: Option<&str>) -> Option<PathBuf> {
    let lines: Vec<_> = mounts(mountinfo).collect();
    let by_device = lines.iter().find(|(_, source)| device == Some(source.as_path()));
    let named = |point: &Path| {
        (point.starts_with("/run/media") || point.starts_with("/media"))
            && label.is_some_and(|label| point.file_name().is_some_and(|name| name == label))
    };
    let found = by_device.or_else(|| lines.iter().find(|(point, _)| named(point)));
    found.map(|(point, _)| point.clone())
}

/// The kernel writes spaces in names as `\040`.
fn unescaped(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
40 22 8:17 / /mnt/old\\040disk rw - ext4 /dev/sdb1 rw
41 22 8:33 / /run/media/SPARE rw,nosuid - vfat /dev/sdc1 rw";

    #[test]
    fn a_disk_is_found_by_its_device_or_by_the_folder_it_is_mounted_in() {
        let at =
            |device: Option<&str>, label| mounted(MOUNTINFO, device.map(Path::new), Some(label));
        assert_eq!(at(Some("/dev/sdb1"), "x"), Some("/mnt/old disk".into()));
        assert_eq!(at(None, "SPARE"), Some("/run/media/SPARE".into()));
        assert_eq!(at(None, "sda1"), None);
        assert_eq!(at(Some("/dev/sdz1"), "OTHER"), None);
        assert_eq!(mounted("nonsense\n - \n", None, Some("x")), None);
        // Another disk of the same name is not taken for it.
        assert_eq!(mounted(MOUNTINFO, None, None), None);
        assert!(is_mounted(MOUNTINFO, Path::new("/mnt/old disk")));
        assert!(!is_mounted(MOUNTINFO, Path::new("/mnt/old")));
    }

    #[test]
    fn a_folder_that_is_not_there_is_not_made_because_it_may_be_an_unplugged_disk() {
        let place = tempfile::tempdir().unwrap();
        let folders = Folders::of(place.path());
        let gone = BackupPlace::Folder(place.path().join("usb"));
        let error = locate(&gone, &folders).unwrap_err().to_string();
        assert!(error.contains("plug the disk in"), "{error}");
        assert!(!place.path().join("usb").exists());
        let here = BackupPlace::Folder(place.path().to_owned());
        let expected = Location::Folder(place.path().join(FOLDER));
        assert_eq!(locate(&here, &folders).unwrap(), expected);
    }

    #[test]
    fn the_name_and_password_for_a_server_are_never_shown() {
        let login = Some("ada:hunter2".to_owned());
        let server = Location::Server { address: "https://spare.local/".to_owned(), login };
        assert!(!format!("{server:?}{}", server.shown()).contains("hunter2"));
    }
}
