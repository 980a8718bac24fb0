//! Pure: what is in a box's two slots, and which of them the boot loader takes next.

use serde::{Deserialize, Serialize};

use crate::{Refusal, UpdateError, Version};

/// How often a new version is tried before the boot loader takes the other slot again.
pub const TRIES: u32 = 3;

/// A boot entry, as the boot loader reads its name: `polder_0.2.0+2-1.efi`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Of this version.
    pub version: Version,
    /// While it is on trial: tries left, tries done.
    pub tries: Option<(u32, u32)>,
}

impl Entry {
    /// The entry of this file name, if it is one of ours.
    pub fn of_file(name: &str) -> Option<Self> {
        let stem = name.strip_prefix("polder_")?.strip_suffix(".efi")?;
        let (version, tries) = match stem.split_once('+') {
            None => (stem, None),
            Some((version, counter)) => {
                let (left, done) = counter.split_once('-').unwrap_or((counter, "0"));
                (version, Some((left.parse().ok()?, done.parse().ok()?)))
            }
        };
        Some(Self { version: version.parse().ok()?, tries })
    }

    /// Its file name.
    pub fn file(&self) -> String {
        let Self { version, tries } = self;
        match tries {
            None => format!("polder_{version}.efi"),
            Some((left, 0)) => format!("polder_{version}+{left}.efi"),
            Some((left, done)) => format!("polder_{version}+{left}-{done}.efi"),
        }
    }

    /// The boot loader still takes it.
    pub fn is_bootable(&self) -> bool {
        self.tries.is_none_or(|(left, _)| left > 0)
    }
}

/// What the root partitions of the disk hold, and what boots; written down by root for everybody else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slots {
    /// What runs.
    pub running: Version,
    /// The machine: `x86_64`.
    pub arch: String,
    /// The root hash of what runs.
    pub roothash: String,
    /// Everything in the boot partition.
    pub entries: Vec<Entry>,
    /// Bytes of the slot that does not run: its root and its hashes.
    pub room: [u64; 2],
    /// Keys for updates that the image has.
    pub keys: usize,
}

impl Slots {
    /// What the boot loader takes next: entries with tries left or without a count, the newest first; one that
    /// has none left only where there is no other.
    pub fn next(&self) -> Option<&Entry> {
        self.entries.iter().max_by_key(|entry| (entry.is_bootable(), &entry.version))
    }

    /// The entry of what runs.
    pub fn own(&self) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.version == self.running)
    }

    /// The other slot's entry, if there is something in it.
    pub fn other(&self) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.version != self.running)
    }

    /// What a box goes back to when a steward says so.
    pub fn back(&self) -> Result<&Entry, UpdateError> {
        let refuse = |why: String| Err(UpdateError::Disk(why));
        match self.other() {
            None => refuse("there is nothing to go back to: the other slot is empty".to_owned()),
            Some(other) if !other.is_bootable() => refuse(format!(
                "the other slot holds {}, which was left or taken back before; fetch it again to try it once more",
                other.version
            )),
            Some(other) if other.version > self.running => refuse(format!(
                "{} is newer and starts at the next start of the machine anyway",
                other.version
            )),
            Some(other) => Ok(other),
        }
    }

    /// Whether the parts of an update fit the slot.
    pub fn fits(&self, version: &Version, root: u64, verity: u64) -> Result<(), Refusal> {
        let large = |needed, room| needed > room;
        for (needed, room) in [root, verity].into_iter().zip(self.room) {
            if large(needed, room) {
                return Err(Refusal::TooLarge { version: version.clone(), needed, room });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn slots(running: &str, files: &[&str]) -> Slots {
        Slots {
            running: running.parse().unwrap(),
            arch: "x86_64".into(),
            roothash: "00".repeat(32),
            entries: files.iter().map(|file| Entry::of_file(file).unwrap()).collect(),
            room: [1 << 31, 1 << 26],
            keys: 1,
        }
    }

    #[test]
    fn a_new_version_is_taken_until_its_tries_are_used_up() {
        let next = |files: &[&str]| slots("0.1.0", files).next().unwrap().version.to_string();
        assert_eq!(next(&["polder_0.1.0.efi", "polder_0.2.0+3.efi"]), "0.2.0");
        assert_eq!(next(&["polder_0.1.0.efi", "polder_0.2.0+1-2.efi"]), "0.2.0");
        assert_eq!(next(&["polder_0.1.0.efi", "polder_0.2.0+0-3.efi"]), "0.1.0");
        assert_eq!(next(&["polder_0.9.0.efi", "polder_0.10.0.efi"]), "0.10.0");
        assert_eq!(next(&["polder_0.2.0+0-3.efi"]), "0.2.0");
    }

    #[test]
    fn a_box_goes_back_only_to_what_ran_before_and_was_good() {
        let back = |running: &str, files: &[&str]| {
            let slots = slots(running, files);
            slots.back().map(|entry| entry.version.to_string()).map_err(|e| e.to_string())
        };
        assert_eq!(back("0.2.0", &["polder_0.1.0.efi", "polder_0.2.0.efi"]).unwrap(), "0.1.0");
        assert!(back("0.2.0", &["polder_0.2.0.efi"]).unwrap_err().contains("is empty"));
        let bad = back("0.1.0", &["polder_0.1.0.efi", "polder_0.2.0+0-3.efi"]).unwrap_err();
        assert!(bad.contains("taken back before"), "{bad}");
        let new = back("0.1.0", &["polder_0.1.0.efi", "polder_0.2.0+3.efi"]).unwrap_err();
        assert!(new.contains("newer"), "{new}");
    }

    #[test]
    fn an_update_that_is_too_large_is_refused_with_both_sizes() {
        let slots = slots("0.1.0", &["polder_0.1.0.efi"]);
        let version = "0.2.0".parse().unwrap();
        assert_eq!(slots.fits(&version, 1 << 31, 1 << 26), Ok(()));
        let refusal = slots.fits(&version, (1 << 31) + 1, 1).unwrap_err().to_string();
        assert!(refusal.contains("2147483649") && refusal.contains("2147483648"), "{refusal}");
    }

    #[test]
    fn other_files_of_the_boot_partition_are_not_ours() {
        for name in ["polder_.efi", "polder_0.1.0.efi.new", "windows.efi", "polder_0.1.0+x.efi", ""]
        {
            assert_eq!(Entry::of_file(name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn names_read_back_as_they_were_written(left in 0u32..9, done in 0u32..9, counted: bool) {
            let entry = Entry { version: "1.2.3".parse().unwrap(), tries: counted.then_some((left, done)) };
            prop_assert_eq!(Entry::of_file(&entry.file()), Some(entry));
        }

        #[test]
        fn no_file_name_breaks_the_reading(name in ".{0,60}") {
            let _ = Entry::of_file(&name);
        }
    }
}
