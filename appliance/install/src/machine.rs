//! What this machine runs from and which disks it has.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::disks::{COLUMNS, Disk, survey};
use crate::error::InstallError;
use crate::plan::{RootHash, Source, needs};
use crate::work::starts;

/// Of the live entry's command line.
const LIVE: &str = "polder.live";
/// The partitions of a box.
pub(crate) const DEFINITIONS: &str = "/usr/lib/repart.d";
/// The running root file system, which checks what it is read from.
pub(crate) const ROOT: &str = "/dev/mapper/root";

/// What this machine runs from, if that can be installed.
pub fn source() -> Result<Source, InstallError> {
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    if !line.split_whitespace().any(|word| word == LIVE) {
        return Err(InstallError::NotLive);
    }
    let root_hash =
        RootHash::of_command_line(&line).ok_or(InstallError::Unclear("its start has no hash"))?;
    let release = stick(Path::new("/usr/lib/os-release"))?;
    let version = release
        .lines()
        .find_map(|line| line.strip_prefix("IMAGE_VERSION="))
        .map(|version| version.trim_matches('"').to_owned())
        .ok_or(InstallError::Unclear("its system has no version"))?;
    let root_bytes = sectors("/sys/class/block/dm-0/size").unwrap_or_default() * 512;
    let needs = least()?;
    Ok(Source { version, root_hash, root_bytes, needs })
}

/// Bytes that a disk needs at least to be a box.
pub fn least() -> Result<u64, InstallError> {
    let folder = Path::new(DEFINITIONS);
    let entries = fs::read_dir(folder)
        .map_err(|source| InstallError::Stick { path: folder.to_owned(), source })?;
    let definitions: Result<Vec<String>, InstallError> =
        entries.flatten().map(|entry| stick(&entry.path())).collect();
    needs(&definitions?).ok_or(InstallError::Unclear("its partitions have no sizes"))
}

/// This machine's disks, as they are now.
pub fn disks(needs: u64) -> Result<Vec<Disk>, InstallError> {
    let output = Command::new("lsblk")
        .args(["--json", "--bytes", "--output", COLUMNS])
        .output()
        .map_err(InstallError::List)?;
    Ok(survey(&String::from_utf8_lossy(&output.stdout), needs)?)
}

/// One disk by its name, as it is now.
pub fn disk(name: &str, needs: u64) -> Result<Disk, InstallError> {
    let found = disks(needs)?.into_iter().find(|disk| disk.name == name);
    found.ok_or_else(|| InstallError::NoSuchDisk(name.to_owned()))
}

/// Whether Polder is on a disk already: one that was started as a box, or that would start as one.
pub(crate) fn is_box(disk: &Disk) -> bool {
    let partition = |name: &str| disk.partitions.iter().find(|(_, label)| label == name);
    if partition("polder-var").is_some() {
        return true;
    }
    // One on which the power was cut has this partition too, and nothing to start from on it. What cannot be
    // looked into is left alone.
    partition("polder-esp").is_some_and(|(path, _)| starts(Path::new(path)).unwrap_or(true))
}

fn stick(path: &Path) -> Result<String, InstallError> {
    fs::read_to_string(path).map_err(|source| InstallError::Stick { path: path.to_owned(), source })
}

fn sectors(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}
