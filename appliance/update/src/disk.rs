//! The disk that a box runs from, as root sees it: which partitions make up its two slots.

use std::fs;
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::{Entry, Here, Keys, Slots, UpdateError, Version};

/// Where the boot partition is mounted.
pub const BOOT: &str = "/efi";
/// Boot entries in it.
pub(crate) const ENTRIES: &str = "EFI/Linux";

/// GPT's types for a root and for its hashes, as the discoverable partitions specification has them.
fn types(arch: &str) -> Option<[&'static str; 2]> {
    match arch {
        "x86_64" => {
            Some(["4f68bce3-e8cd-4db1-96e7-fbcaf984b709", "2c7357ed-ebd2-46d9-aec1-23d437ec2bf5"])
        }
        "aarch64" => {
            Some(["b921b045-1df0-41c3-af44-4c6f280d3fae", "df3300ce-d69f-4c92-978c-9bfb0f38d820"])
        }
        _ => None,
    }
}

/// The image that runs, if this machine runs from one.
pub fn here() -> Result<Option<Here>, UpdateError> {
    let path = Path::new("/usr/lib/os-release");
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(UpdateError::file("read", path))?,
    };
    let arch = std::env::consts::ARCH.to_owned();
    Ok(image_version(&text).map(|version| Here { version, arch }))
}

fn image_version(text: &str) -> Option<Version> {
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.map(|value| value.trim_matches('"').to_owned())
    };
    if value("IMAGE_ID")? != "polder" {
        return None;
    }
    value("IMAGE_VERSION")?.parse().ok()
}

/// The box's own disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Disk {
    /// `/dev/nvme0n1`.
    pub(crate) device: PathBuf,
    /// Root and hashes of the slot that does not run.
    pub(crate) other: [Partition; 2],
}

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Partition {
    /// `/dev/nvme0n1p5`.
    pub(crate) node: PathBuf,
    pub(crate) number: u32,
    pub(crate) bytes: u64,
}

/// What `sfdisk --json` says of a disk.
#[derive(Debug, Deserialize)]
struct Table {
    partitiontable: Partitions,
}

#[derive(Debug, Deserialize)]
struct Partitions {
    #[serde(default = "usual_sector")]
    sectorsize: u64,
    partitions: Vec<Line>,
}

#[derive(Debug, Deserialize)]
struct Line {
    node: String,
    size: u64,
    r#type: String,
}

fn usual_sector() -> u64 {
    512
}

/// The disk that this machine runs from.
pub(crate) fn disk(arch: &str) -> Result<Disk, UpdateError> {
    let fail = |why: &str| {
        UpdateError::Disk(format!("this machine does not run from a disk with two slots: {why}"))
    };
    let root = sysfs_of("/")?;
    let mut running = Vec::new();
    let slaves = root.join("slaves");
    for entry in fs::read_dir(&slaves).map_err(|_| fail("its root is not sealed with hashes"))? {
        let entry = entry.map_err(UpdateError::file("read", &slaves))?;
        running.push(entry.file_name().to_string_lossy().into_owned());
    }
    let part = running.first().ok_or_else(|| fail("its root lies on nothing"))?;
    let whole = parent(Path::new("/sys/class/block").join(part))?;
    if parent(sysfs_of(BOOT)?)? != whole {
        return Err(fail(&format!(
            "its boot partition is on another disk than its root, {whole}; take other Polder disks and sticks out, start it again"
        )));
    }
    let device = Path::new("/dev").join(&whole);
    let mut command = Command::new("sfdisk");
    let table = answer("sfdisk", command.arg("--json").arg(&device))?;
    let types = types(arch).ok_or_else(|| fail(&format!("nobody knows {arch} machines")))?;
    let other = slot(&table, &types, &running).ok_or_else(|| fail("there is no second slot"))?;
    Ok(Disk { device, other })
}

/// The root and the hashes in a table that are not among those that run.
fn slot(table: &str, types: &[&str; 2], running: &[String]) -> Option<[Partition; 2]> {
    let table: Table = serde_json::from_str(table).ok()?;
    let Partitions { sectorsize, partitions } = table.partitiontable;
    let find = |wanted: &str| {
        let mut found = partitions.iter().enumerate().filter(|(_, line)| {
            let name = line.node.rsplit('/').next().unwrap_or_default();
            line.r#type.eq_ignore_ascii_case(wanted) && !running.iter().any(|part| part == name)
        });
        let (_, line) = found.next()?;
        // More than two slots are nobody's; which of them would it be?
        if found.next().is_some() {
            return None;
        }
        let digits =
            line.node.len() - line.node.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        Some(Partition {
            number: line.node[line.node.len() - digits..].parse().ok()?,
            bytes: line.size.checked_mul(sectorsize)?,
            node: PathBuf::from(&line.node),
        })
    };
    Some([find(types[0])?, find(types[1])?])
}

/// The slots as they are now.
pub fn look(here: &Here, keys: &Keys) -> Result<Slots, UpdateError> {
    let disk = disk(&here.arch)?;
    Ok(Slots {
        running: here.version.clone(),
        arch: here.arch.clone(),
        roothash: root_hash().unwrap_or_default(),
        entries: entries(Path::new(BOOT))?,
        room: [disk.other[0].bytes, disk.other[1].bytes],
        keys: keys.count(),
    })
}

/// Every boot entry of ours.
pub(crate) fn entries(boot: &Path) -> Result<Vec<Entry>, UpdateError> {
    let folder = boot.join(ENTRIES);
    let mut found = Vec::new();
    for entry in fs::read_dir(&folder).map_err(UpdateError::file("read", &folder))? {
        let name = entry.map_err(UpdateError::file("read", &folder))?.file_name();
        found.extend(Entry::of_file(&name.to_string_lossy()));
    }
    found.sort_by(|a, b| a.version.cmp(&b.version));
    Ok(found)
}

/// As the kernel was told.
fn root_hash() -> Option<String> {
    let line = fs::read_to_string("/proc/cmdline").ok()?;
    line.split_whitespace().find_map(|word| word.strip_prefix("roothash=")).map(str::to_owned)
}

/// Where sysfs has the device on which something lies.
fn sysfs_of(place: &str) -> Result<PathBuf, UpdateError> {
    let path = Path::new(place);
    let device = fs::metadata(path).map_err(UpdateError::file("look at", path))?.st_dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let link = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    fs::canonicalize(&link).map_err(UpdateError::file("find", &link))
}

/// The disk of a partition, by its name: `nvme0n1`.
fn parent(partition: PathBuf) -> Result<String, UpdateError> {
    let path = fs::canonicalize(&partition).map_err(UpdateError::file("find", &partition))?;
    let disk = path.parent().filter(|_| path.join("partition").exists());
    let name = disk.and_then(Path::file_name).ok_or_else(|| {
        UpdateError::Disk(format!("{} is no partition of a disk", path.display()))
    })?;
    Ok(name.to_string_lossy().into_owned())
}

/// Runs a program of the system and returns what it says.
pub(crate) fn answer(program: &'static str, command: &mut Command) -> Result<String, UpdateError> {
    let fail = |why: String| UpdateError::Program { program, why };
    let output =
        command.env("LC_ALL", "C.UTF-8").output().map_err(|error| fail(error.to_string()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
        return Err(fail(format!("{} ({last})", output.status)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = r#"{"partitiontable": {"label":"gpt","device":"/dev/nvme0n1","unit":"sectors","sectorsize":512,
        "partitions": [
        {"node":"/dev/nvme0n1p1","start":2048,"size":2097152,"type":"C12A7328-F81F-11D2-BA4B-00A0C93EC93B","uuid":"A","name":"polder-esp"},
        {"node":"/dev/nvme0n1p2","start":1,"size":131072,"type":"2C7357ED-EBD2-46D9-AEC1-23D437EC2BF5","uuid":"B","name":"polder_0.1.0"},
        {"node":"/dev/nvme0n1p3","start":1,"size":4194304,"type":"4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709","uuid":"C","name":"polder_0.1.0"},
        {"node":"/dev/nvme0n1p4","start":1,"size":131072,"type":"2C7357ED-EBD2-46D9-AEC1-23D437EC2BF5","uuid":"D","name":"_empty"},
        {"node":"/dev/nvme0n1p12","start":1,"size":4194304,"type":"4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709","uuid":"E","name":"_empty"}]}}"#;

    fn of_nvme(running: &[&str]) -> Option<[Partition; 2]> {
        let running: Vec<String> = running.iter().map(|r| (*r).to_owned()).collect();
        slot(TABLE, &types("x86_64").unwrap(), &running)
    }

    #[test]
    fn the_other_slot_is_the_one_that_does_not_run() {
        let [root, verity] = of_nvme(&["nvme0n1p3", "nvme0n1p2"]).unwrap();
        assert_eq!((root.number, root.bytes), (12, 2 << 30));
        assert_eq!((verity.number, verity.bytes), (4, 64 << 20));
        let [root, verity] = of_nvme(&["nvme0n1p12", "nvme0n1p4"]).unwrap();
        assert_eq!((root.number, verity.number), (3, 2));
    }

    #[test]
    fn a_disk_on_which_neither_slot_runs_has_no_other_one() {
        assert_eq!(of_nvme(&[]), None);
        assert_eq!(slot("{}", &types("x86_64").unwrap(), &[]), None);
    }

    #[test]
    fn only_our_own_images_have_a_version() {
        let ours = "ID=debian\nIMAGE_ID=polder\nIMAGE_VERSION=\"0.1.0\"\n";
        assert_eq!(image_version(ours).unwrap().as_str(), "0.1.0");
        assert_eq!(image_version("ID=debian\nIMAGE_VERSION=1\n"), None);
        assert_eq!(image_version("IMAGE_ID=other\nIMAGE_VERSION=1\n"), None);
    }
}
