//! Pure: what `lsblk` tells, as disks that a person can choose from, each with what is on it and why it may not
//! be written to.

use serde::Deserialize;

/// Columns that [`survey`] reads.
pub(crate) const COLUMNS: &str =
    "NAME,PATH,TYPE,SIZE,RO,MODEL,SERIAL,TRAN,FSTYPE,LABEL,PARTLABEL,PARTTYPENAME,MOUNTPOINTS";

/// A disk of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// As the system calls it and people type it: `nvme0n1`.
    pub name: String,
    /// Its device.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// What its maker calls it.
    pub model: String,
    /// Its own number; empty where it has none.
    pub serial: String,
    /// One line per thing on it; none on an empty disk.
    pub content: Vec<String>,
    /// Partitions: device and name.
    pub partitions: Vec<(String, String)>,
    /// Why nothing can be put on it.
    pub refusal: Option<Refusal>,
}

/// Why a disk is not written to. Each is part of a sentence: "nothing is put on sda: …".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is the stick.
    #[error("this machine runs from it just now")]
    RunsFromIt,
    /// Somebody works with it.
    #[error("something on it is in use ({0})")]
    InUse(String),
    /// It would not fit.
    #[error("it is too small: {}, and a box needs {}", size(*.has), size(*.needs))]
    TooSmall {
        /// Bytes that it has.
        has: u64,
        /// Bytes that it would need.
        needs: u64,
    },
    /// A switch, or a disk at its end.
    #[error("it does not let itself be written to")]
    ReadOnly,
}

/// What `lsblk` said cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("lsblk's answer cannot be read")]
pub struct SurveyError(#[from] serde_json::Error);

#[derive(Deserialize)]
struct Answer {
    blockdevices: Vec<Device>,
}

#[derive(Deserialize)]
struct Device {
    name: String,
    path: String,
    r#type: String,
    size: u64,
    #[serde(default)]
    ro: bool,
    model: Option<String>,
    serial: Option<String>,
    fstype: Option<String>,
    label: Option<String>,
    partlabel: Option<String>,
    parttypename: Option<String>,
    #[serde(default)]
    mountpoints: Vec<Option<String>>,
    #[serde(default)]
    children: Vec<Device>,
}

/// The disks in an answer of `lsblk --json --bytes --output COLUMNS`. `needs` is what a box takes at least.
pub fn survey(json: &str, needs: u64) -> Result<Vec<Disk>, SurveyError> {
    let answer: Answer = serde_json::from_str(json)?;
    // A drive without a disk in it has no size; a disk of memory is nobody's.
    let disk = |device: &&Device| {
        device.r#type == "disk" && device.size > 0 && !device.name.starts_with("zram")
    };
    Ok(answer.blockdevices.iter().filter(disk).map(|device| device.disk(needs)).collect())
}

impl Device {
    fn disk(&self, needs: u64) -> Disk {
        let word = |text: &Option<String>| plain(text.as_deref().unwrap_or_default());
        let parts = || self.children.iter().filter(|child| child.r#type == "part");
        let partitions = parts()
            .map(|part| (part.path.clone(), part.partlabel.clone().unwrap_or_default()))
            .collect();
        let mut content: Vec<String> = parts().map(Device::content).collect();
        if content.is_empty() && self.fstype.is_some() {
            content.push(self.content());
        }
        Disk {
            name: plain(&self.name),
            path: self.path.clone(),
            size: self.size,
            model: word(&self.model),
            serial: word(&self.serial),
            content,
            partitions,
            refusal: self.refusal(needs),
        }
    }

    fn refusal(&self, needs: u64) -> Option<Refusal> {
        let mounts = self.mounts();
        if mounts.iter().any(|place| place == "/" || place == "/efi") {
            return Some(Refusal::RunsFromIt);
        }
        if let Some(place) = mounts.first() {
            return Some(Refusal::InUse(plain(place)));
        }
        // A volume or an array that is open, even if nothing in it is mounted.
        let inner = self.children.iter().flat_map(|part| match part.r#type.as_str() {
            "part" => part.children.as_slice(),
            _ => std::slice::from_ref(part),
        });
        if let Some(open) = inner.into_iter().next() {
            return Some(Refusal::InUse(plain(&open.name)));
        }
        if self.ro {
            return Some(Refusal::ReadOnly);
        }
        (self.size < needs).then_some(Refusal::TooSmall { has: self.size, needs })
    }

    fn mounts(&self) -> Vec<String> {
        let own = self.mountpoints.iter().flatten().cloned();
        own.chain(self.children.iter().flat_map(Self::mounts)).collect()
    }

    /// One thing on a disk: `"Windows" (ntfs), 500 GB`.
    fn content(&self) -> String {
        let name = self.label.as_ref().or(self.partlabel.as_ref()).filter(|name| !name.is_empty());
        let kind = self.fstype.as_ref().or(self.parttypename.as_ref());
        let text = match (name, kind) {
            (Some(name), Some(kind)) => format!("\"{name}\" ({kind})"),
            (Some(name), None) => format!("\"{name}\""),
            (None, Some(kind)) => kind.clone(),
            (None, None) => "something unknown".to_owned(),
        };
        plain(&format!("{text}, {}", size(self.size)))
    }
}

impl Disk {
    /// One line: name, size, model, number.
    pub fn title(&self) -> String {
        let model = if self.model.is_empty() { "of an unknown make" } else { &self.model };
        let serial = if self.serial.is_empty() { "no number" } else { &self.serial };
        format!("{}  {}  {model}  ({serial})", self.name, size(self.size))
    }

    /// What is on it, in one line.
    pub fn holds(&self) -> String {
        match self.content.as_slice() {
            [] => "empty".to_owned(),
            [one] => one.clone(),
            [first, rest @ ..] => format!("{first} and {} more", rest.len()),
        }
    }
}

/// Bytes as they are printed on disks.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 999.95 && unit + 1 < UNITS.len() {
        (value, unit) = (value / 1000.0, unit + 1);
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// What a disk says of itself may be anything; on a screen it is one line of plain characters.
fn plain(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().map(clean).collect::<String>().trim().chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEEDS: u64 = 7_000_000_000;

    /// As lsblk 2.41 answers on a machine that runs from a stick, with most kinds of disk in it.
    fn machine() -> String {
        serde_json::json!({ "blockdevices": [
            { "name": "sda", "path": "/dev/sda", "type": "disk", "size": 3_400_000_000u64, "ro": false,
              "model": "QEMU HARDDISK   ", "serial": "STICK", "mountpoints": [null], "children": [
                { "name": "sda1", "path": "/dev/sda1", "type": "part", "size": 1_073_741_824u64,
                  "fstype": "vfat", "label": null, "partlabel": "polder-esp", "partuuid": "11",
                  "mountpoints": ["/efi"] },
                { "name": "sda3", "path": "/dev/sda3", "type": "part", "size": 2_147_483_648u64,
                  "partuuid": "33", "mountpoints": [null], "children": [
                    { "name": "root", "path": "/dev/mapper/root", "type": "crypt", "size": 1u64,
                      "mountpoints": ["/"] } ] } ] },
            { "name": "sdb", "path": "/dev/sdb", "type": "disk", "size": 500_107_862_016u64, "ro": false,
              "model": "WD\u{1b}[2J Blue", "serial": "W1", "mountpoints": [null], "children": [
                { "name": "sdb1", "path": "/dev/sdb1", "type": "part", "size": 104_857_600u64, "fstype": "vfat",
                  "partuuid": "b1", "mountpoints": [null] },
                { "name": "sdb2", "path": "/dev/sdb2", "type": "part", "size": 500_000_000_000u64,
                  "fstype": "ntfs", "label": "Windows", "partuuid": "b2", "mountpoints": [null] } ] },
            { "name": "sdc", "path": "/dev/sdc", "type": "disk", "size": 2_000_000_000_000u64, "ro": false,
              "fstype": "linux_raid_member", "mountpoints": [null], "children": [
                { "name": "md0", "path": "/dev/md0", "type": "raid1", "size": 1u64, "mountpoints": [null] } ] },
            { "name": "sdd", "path": "/dev/sdd", "type": "disk", "size": 2_000_000_000u64, "ro": false,
              "mountpoints": [null] },
            { "name": "sde", "path": "/dev/sde", "type": "disk", "size": 2_000_000_000_000u64, "ro": true,
              "mountpoints": [null] },
            { "name": "sdf", "path": "/dev/sdf", "type": "disk", "size": 0u64, "mountpoints": [null] },
            { "name": "zram0", "path": "/dev/zram0", "type": "disk", "size": 9_000_000_000u64,
              "mountpoints": ["[SWAP]"] },
            { "name": "sr0", "path": "/dev/sr0", "type": "rom", "size": 1u64, "mountpoints": [null] },
            { "name": "nvme0n1", "path": "/dev/nvme0n1", "type": "disk", "size": 8_589_934_592u64, "ro": false,
              "model": "QEMU NVMe Ctrl", "serial": "TARGET1", "mountpoints": [null] },
            { "name": "nvme1n1", "path": "/dev/nvme1n1", "type": "disk", "size": 8_589_934_592u64, "ro": false,
              "mountpoints": [null], "children": [
                { "name": "nvme1n1p1", "path": "/dev/nvme1n1p1", "type": "part", "size": 1u64,
                  "mountpoints": ["[SWAP]"] } ] },
        ] })
        .to_string()
    }

    fn refusal(name: &str) -> Option<String> {
        let disks = survey(&machine(), NEEDS).unwrap();
        disks.into_iter().find(|disk| disk.name == name).unwrap().refusal.map(|why| why.to_string())
    }

    #[test]
    fn every_disk_is_listed_and_nothing_else() {
        let disks = survey(&machine(), NEEDS).unwrap();
        let names: Vec<&str> = disks.iter().map(|disk| disk.name.as_str()).collect();
        assert_eq!(names, ["sda", "sdb", "sdc", "sdd", "sde", "nvme0n1", "nvme1n1"]);
        let titles: Vec<String> = disks.iter().map(Disk::title).collect();
        assert_eq!(titles[5], "nvme0n1  8.6 GB  QEMU NVMe Ctrl  (TARGET1)");
        assert_eq!(titles[3], "sdd  2.0 GB  of an unknown make  (no number)");
    }

    #[test]
    fn the_stick_that_the_machine_runs_from_is_refused() {
        assert_eq!(refusal("sda").unwrap(), "this machine runs from it just now");
    }

    #[test]
    fn a_disk_that_is_mounted_or_part_of_something_is_refused() {
        assert_eq!(refusal("sdc").unwrap(), "something on it is in use (md0)");
        assert_eq!(refusal("nvme1n1").unwrap(), "something on it is in use ([SWAP])");
    }

    #[test]
    fn a_disk_that_is_too_small_or_locked_is_refused_in_words() {
        let small = refusal("sdd").unwrap();
        assert_eq!(small, "it is too small: 2.0 GB, and a box needs 7.0 GB");
        assert_eq!(refusal("sde").unwrap(), "it does not let itself be written to");
    }

    #[test]
    fn a_disk_with_somebody_elses_system_is_not_refused_but_shown_with_what_is_on_it() {
        let disks = survey(&machine(), NEEDS).unwrap();
        assert_eq!(disks[1].refusal, None);
        assert_eq!(disks[1].content, ["vfat, 104.9 MB", "\"Windows\" (ntfs), 500.0 GB"]);
        assert_eq!(disks[1].holds(), "vfat, 104.9 MB and 1 more");
        assert_eq!(disks[5].holds(), "empty");
    }

    #[test]
    fn what_a_disk_says_of_itself_cannot_move_the_cursor() {
        let disks = survey(&machine(), NEEDS).unwrap();
        assert!(disks.iter().all(|disk| !disk.title().contains(char::is_control)));
    }
}
