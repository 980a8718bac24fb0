//! Pure: what is done to put Polder on a disk, in order, and what partitions it gets.

use polder_control::{Plan, Step};

use crate::disks::{Disk, Refusal};

/// What this machine runs from, and what a box gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Version of the image.
    pub version: String,
    /// Of the root file system: what is right to read from a disk follows from it.
    pub root_hash: RootHash,
    /// Bytes of the root file system.
    pub root_bytes: u64,
    /// Bytes that a disk needs at least.
    pub needs: u64,
}

/// The hash at the top of dm-verity's tree, 64 hex digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootHash(String);

impl RootHash {
    /// From the kernel's command line.
    pub fn of_command_line(line: &str) -> Option<Self> {
        let hash = line.split_whitespace().find_map(|word| word.strip_prefix("roothash="))?;
        let digits = hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit());
        digits.then(|| Self(hash.to_ascii_lowercase()))
    }

    /// The number (PARTUUID) of the partition with the root.
    pub fn root_partition(&self) -> String {
        uuid(&self.0[..32])
    }

    /// The number of the partition with its hashes.
    pub fn verity_partition(&self) -> String {
        uuid(&self.0[32..])
    }

    /// All of it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn uuid(hex: &str) -> String {
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// One thing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// See whether it is still the disk that was chosen.
    Look,
    /// Wipe it, make partitions.
    Partitions,
    /// Write the root file system and its hashes.
    System,
    /// Read them back through the hashes.
    Check,
    /// Write what the firmware and the boot loader read, the loader itself under another name.
    BootFiles,
    /// Read those back, then give the loader its name: from here on the disk is a box.
    Finish,
}

impl Action {
    const ALL: [Self; 6] =
        [Self::Look, Self::Partitions, Self::System, Self::Check, Self::BootFiles, Self::Finish];

    fn step(self, source: &Source, disk: &Disk) -> Step {
        let (id, title) = match self {
            Self::Look => ("look", format!("Look at {} once more", disk.name)),
            Self::Partitions => {
                ("partitions", format!("Wipe {} and make new partitions", disk.name))
            }
            Self::System => {
                let amount = source.root_bytes.div_ceil(1 << 20);
                ("system", format!("Write Polder {} ({amount} MiB)", source.version))
            }
            Self::Check => ("check", "Read it back from the disk and check every block".to_owned()),
            Self::BootFiles => ("boot-files", "Write what the machine starts from".to_owned()),
            Self::Finish => ("finish", "Read that back too, and make the disk start".to_owned()),
        };
        Step { id: id.to_owned(), title }
    }
}

/// What has to be done to put `source` on `disk`.
pub fn plan(source: &Source, disk: &Disk) -> Result<(Plan, Vec<Action>), Refusal> {
    if let Some(refusal) = &disk.refusal {
        return Err(refusal.clone());
    }
    let title = format!("Put Polder {} on {}", source.version, disk.title());
    let steps = Action::ALL.map(|action| action.step(source, disk));
    Ok((Plan { title, steps: steps.into() }, Action::ALL.into()))
}

/// What systemd-repart is told besides the image's own partitions: which numbers the first slot has, by which
/// the boot entry finds it. File names below a folder of definitions, and what is in them.
pub(crate) fn numbers(hash: &RootHash) -> [(&'static str, String); 2] {
    let file = |uuid: String| format!("[Partition]\nUUID={uuid}\n");
    [
        ("20-verity-a.conf.d/number.conf", file(hash.verity_partition())),
        ("21-root-a.conf.d/number.conf", file(hash.root_partition())),
    ]
}

/// Bytes that these partitions need at least, with the tables at both ends of the disk.
pub(crate) fn needs(definitions: &[String]) -> Option<u64> {
    let least = |text: &String| {
        let size = text.lines().find_map(|line| line.trim().strip_prefix("SizeMinBytes="))?;
        bytes(size.trim())
    };
    let all: Option<u64> = definitions.iter().map(least).sum();
    Some(all? + (2 << 20))
}

/// As systemd writes sizes: `64M`, `2G`.
fn bytes(size: &str) -> Option<u64> {
    let (number, shift) = match size.as_bytes().last()? {
        b'K' => (&size[..size.len() - 1], 10),
        b'M' => (&size[..size.len() - 1], 20),
        b'G' => (&size[..size.len() - 1], 30),
        b'T' => (&size[..size.len() - 1], 40),
        _ => (size, 0),
    };
    number.parse::<u64>().ok()?.checked_shl(shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn disk() -> Disk {
        Disk {
            name: "nvme0n1".into(),
            path: "/dev/nvme0n1".into(),
            size: 8_589_934_592,
            model: "QEMU NVMe Ctrl".into(),
            serial: "TARGET1".into(),
            content: Vec::new(),
            partitions: Vec::new(),
            refusal: None,
        }
    }

    fn source() -> Source {
        let line =
            "quiet roothash=00112233445566778899aabbccddeeff0123456789abcdef0123456789ABCDEF ro";
        let root_hash = RootHash::of_command_line(line).unwrap();
        Source { version: "0.1.0".into(), root_hash, root_bytes: 217_165_824, needs: 6 << 30 }
    }

    #[test]
    fn a_disk_becomes_a_box_only_with_the_last_step() {
        let (plan, actions) = plan(&source(), &disk()).unwrap();
        assert_eq!(
            plan.to_string(),
            "Put Polder 0.1.0 on nvme0n1  8.6 GB  QEMU NVMe Ctrl  (TARGET1)\n  \
             1. Look at nvme0n1 once more\n  \
             2. Wipe nvme0n1 and make new partitions\n  \
             3. Write Polder 0.1.0 (208 MiB)\n  \
             4. Read it back from the disk and check every block\n  \
             5. Write what the machine starts from\n  \
             6. Read that back too, and make the disk start"
        );
        assert_eq!(actions.last(), Some(&Action::Finish));
    }

    #[test]
    fn there_is_no_plan_for_a_disk_that_is_refused() {
        let disk = Disk { refusal: Some(Refusal::RunsFromIt), ..disk() };
        assert_eq!(plan(&source(), &disk), Err(Refusal::RunsFromIt));
    }

    #[test]
    fn the_first_slot_gets_the_numbers_that_the_boot_entry_looks_for() {
        let [verity, root] = numbers(&source().root_hash);
        assert_eq!(root.1, "[Partition]\nUUID=00112233-4455-6677-8899-aabbccddeeff\n");
        assert_eq!(verity.1, "[Partition]\nUUID=01234567-89ab-cdef-0123-456789abcdef\n");
        // Drop-ins are named after what they add to.
        let image = concat!(env!("CARGO_MANIFEST_DIR"), "/../../image/tree/usr/lib/repart.d");
        for (file, _) in [verity, root] {
            let definition = file.split_once(".d/").unwrap().0;
            assert!(std::path::Path::new(image).join(definition).is_file(), "{file}");
        }
    }

    #[test]
    fn a_command_line_without_a_whole_hash_is_no_source() {
        for line in ["", "roothash=", "roothash=12", &format!("roothash={}", "g".repeat(64))] {
            assert_eq!(RootHash::of_command_line(line), None, "{line}");
        }
    }

    #[test]
    fn what_a_box_needs_is_the_sum_of_the_images_own_partitions() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../image/tree/usr/lib/repart.d");
        let texts: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap())
            .collect();
        let (gib, mib) = (1u64 << 30, 1u64 << 20);
        assert_eq!(needs(&texts), Some(6 * gib + 128 * mib + 2 * mib));
        assert_eq!(needs(&["[Partition]\nType=var\n".to_owned()]), None);
    }
}
