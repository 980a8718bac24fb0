use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use polder_control::PluggedDisk;
use polder_site::{BackupPlace, FileSystemId, plain_label};

use super::{DiskError, Disks};

/// What is written to. Other file systems have owners that a box knows nothing of, or lose what was written when they are pulled out.
const KINDS: [&str; 3] = ["ext4", "exfat", "vfat"];
/// Where disks are mounted to be read.
const MEDIA: &str = "/run/media";
/// More devices than this no machine has that somebody stands before, and udev writes less of each.
const MOST: usize = 512;
const LONGEST: u64 = 64 << 10;
/// The type of the partition that firmware starts from: nobody's files are there.
const FIRMWARE: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";
/// The beginning of what a box's own partitions are called.
const OURS: &str = "polder";

/// A file system of a disk, or a disk without one, that is in the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plugged {
    /// Its device.
    pub device: PathBuf,
    /// Which file system it is.
    pub id: Option<FileSystemId>,
    /// What its owner called it, as udev writes that into a file's name.
    encoded: String,
    /// What its maker calls it.
    pub name: String,
    /// Its file system, as systems call it.
    pub kind: String,
    /// Bytes.
    pub bytes: u64,
    /// Whether it is on USB.
    pub usb: bool,
    /// Whether it cannot be written to.
    pub protected: bool,
    /// Whether it belongs to a Polder system.
    pub system: bool,
}

impl Plugged {
    /// What its owner called it; may be empty.
    pub fn label(&self) -> String {
        decoded(&self.encoded)
    }

    /// What people are told of it.
    pub fn shown(&self) -> String {
        match (plain_label(&self.label()), &self.id) {
            (label, _) if !label.is_empty() => format!("the disk {label}"),
            (_, Some(id)) => format!("the disk {id}"),
            (_, None) => format!("the disk {}", plain_label(&self.name)),
        }
    }

    /// The place for backups on it.
    pub fn place(&self) -> Option<BackupPlace> {
        let id = Some(self.id.clone()?);
        Some(BackupPlace::Disk { label: plain_label(&self.label()).trim().to_owned(), id })
    }

    /// Where udev's rule has it mounted to be read.
    pub(super) fn read_at(&self) -> PathBuf {
        let device = self.device.file_name().unwrap_or_default();
        match self.encoded.is_empty() {
            true => Path::new(MEDIA).join(device),
            false => Path::new(MEDIA).join(&self.encoded),
        }
    }

    /// Whether backups can be written to it, as far as can be told without doing so.
    pub fn takes_backups(&self) -> Result<(), DiskError> {
        let disk = self.shown();
        match self {
            Self { usb: false, .. } => Err(DiskError::NotUsb(disk)),
            Self { system: true, .. } => Err(DiskError::System(disk)),
            Self { id: None, .. } => Err(DiskError::Unformatted(disk)),
            Self { kind, .. } if kind.is_empty() => Err(DiskError::Unformatted(disk)),
            Self { kind, .. } if !KINDS.contains(&kind.as_str()) => {
                let kind = plain_label(kind).chars().take(20).collect();
                Err(DiskError::Kind { disk, kind })
            }
            Self { protected: true, .. } => Err(DiskError::Protected(disk)),
            _ => Ok(()),
        }
    }
}

impl Disks {
    /// The one that is meant: by its identity, else by its label.
    pub fn find(&self, label: &str, id: Option<&FileSystemId>) -> Result<Plugged, DiskError> {
        let called = match (label, id) {
            ("", Some(id)) => id.to_string(),
            (label, _) => label.to_owned(),
        };
        let meant = |disk: &Plugged| match id {
            Some(id) => disk.id.as_ref() == Some(id),
            // Somebody types what is shown.
            None => disk.usb && (disk.label() == label || plain_label(&disk.label()) == label),
        };
        let mut found = self.all().into_iter().filter(meant);
        match (found.next(), found.next()) {
            (Some(disk), None) => Ok(disk),
            (Some(_), Some(_)) => Err(DiskError::Two(called)),
            (None, _) => Err(DiskError::Away(format!("the disk {called}"))),
        }
    }

    /// Disks on USB, for a list; those of a Polder system are left out.
    pub fn on_usb(&self) -> Vec<PluggedDisk> {
        let disks = self.all().into_iter().filter(|disk| disk.usb && !disk.system);
        disks.map(|disk| self.told(&disk)).collect()
    }

    fn told(&self, disk: &Plugged) -> PluggedDisk {
        let free = |at: &PathBuf| {
            let seen = rustix::fs::statvfs(at).ok()?;
            Some(seen.f_bavail.saturating_mul(seen.f_frsize))
        };
        PluggedDisk {
            place: disk.place().map(|place| place.to_string()),
            label: plain_label(&disk.label()),
            name: disk.name.clone(),
            kind: disk.kind.clone(),
            bytes: disk.bytes,
            free: self.mounted_at(&disk.device).first().and_then(free),
            wrong: disk.takes_backups().err().map(|error| error.to_string()),
        }
    }

    /// Whatever is on a disk, or could be, in the order of its devices.
    pub(super) fn all(&self) -> Vec<Plugged> {
        let files = fs::read_dir(&self.udev).into_iter().flatten().flatten();
        let numbers = files.filter_map(|file| {
            let name = file.file_name().into_string().ok()?;
            name.strip_prefix('b').map(str::to_owned)
        });
        let mut found: Vec<_> =
            numbers.take(MOST).filter_map(|number| self.look(&number)).collect();
        found.sort_by(|a, b| a.device.cmp(&b.device));
        found
    }

    fn look(&self, number: &str) -> Option<Plugged> {
        let known = read(&self.udev.join(format!("b{number}")));
        let field = |name: &str| {
            let found = known
                .lines()
                .find_map(|line| line.strip_prefix("E:")?.strip_prefix(name)?.strip_prefix('='));
            found.unwrap_or_default()
        };
        let at = self.devices.join(number);
        let is_part = at.join("partition").exists();
        // Its parts have what is on it.
        if (!is_part && !field("ID_PART_TABLE_TYPE").is_empty() && field("ID_FS_TYPE").is_empty())
            || field("ID_PART_ENTRY_TYPE") == FIRMWARE
        {
            return None;
        }
        let sectors: u64 = read(&at.join("size")).trim().parse().ok()?;
        let told = read(&at.join("uevent"));
        let device = told.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
        // A reader without a card; a device that is no disk.
        if sectors == 0 || device.contains("..") || !["", "disk"].contains(&field("ID_TYPE")) {
            return None;
        }
        let is_set = |path: &str| read(&at.join(path)).trim() == "1";
        let kind = match field("ID_FS_USAGE") {
            "filesystem" => field("ID_FS_TYPE"),
            _ => "",
        };
        let id = (!kind.is_empty()).then(|| field("ID_FS_UUID").parse().ok()).flatten();
        Some(Plugged {
            device: self.dev.join(device),
            id,
            encoded: field("ID_FS_LABEL_ENC").replace(['/', '\0'], "_"),
            name: plain_label(&field("ID_MODEL").replace('_', " ")),
            kind: kind.to_owned(),
            bytes: sectors.saturating_mul(512),
            usb: field("ID_BUS") == "usb",
            // A part of a disk has no switch of its own.
            protected: is_set("ro") || (is_part && is_set("../ro")),
            system: field("ID_PART_ENTRY_NAME").starts_with(OURS),
        })
    }
}

/// A file of the system's, as much of it as there can be.
fn read(path: &Path) -> String {
    let mut text = Vec::new();
    if let Ok(file) = fs::File::open(path) {
        let _ = file.take(LONGEST).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// udev writes bytes that are no letters as `\x20`.
fn decoded(encoded: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), encoded.as_bytes());
    while let Some((first, after)) = rest.split_first() {
        let hex = after.strip_prefix(b"x").and_then(|hex| hex.get(..2));
        let hex = hex.and_then(|hex| std::str::from_utf8(hex).ok());
        let byte = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        (rest, _) = match (first, byte) {
            (b'\\', Some(byte)) => (&after[3..], bytes.push(byte)),
            _ => (after, bytes.push(*first)),
        };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
