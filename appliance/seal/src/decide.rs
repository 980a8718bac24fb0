//! Pure: what a disk's slots mean, and what it is sealed to.

use polder_control::Lock;

/// What opens a disk, one for each slot of its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slot {
    /// A passphrase: on a box there is only ever the empty one.
    Passphrase,
    /// A recovery key.
    Recovery,
    /// The machine's chip.
    Chip,
    /// Something that we never made.
    Other,
}

/// Reads what `systemd-cryptenroll` prints of a disk: a heading, then a number and a word for each slot.
pub(crate) fn slots(listed: &str) -> Vec<Slot> {
    let slot = |line: &str| {
        let (number, kind) = line.trim().split_once(' ')?;
        number.parse::<u32>().ok()?;
        Some(match kind.trim() {
            "password" => Slot::Passphrase,
            "recovery" => Slot::Recovery,
            "tpm2" => Slot::Chip,
            _ => Slot::Other,
        })
    };
    listed.lines().filter_map(slot).collect()
}

/// A disk with a passphrase left is open to everybody, whatever else opens it.
pub(crate) fn lock(slots: &[Slot]) -> Lock {
    if slots.contains(&Slot::Passphrase) || slots.is_empty() { Lock::Open } else { Lock::Sealed }
}

/// What of a start the disk is sealed to, as arguments.
///
/// 7 is what the firmware trusts and whether it asks; 12 stays empty unless somebody adds to the command line or
/// puts files beside the system. 11 is the system itself: another version is as good, if the project signed what
/// it measures. A system that nobody signed cannot be told from another, and is not asked for.
pub(crate) fn binding(signed: bool, key: &str) -> Vec<String> {
    let mut arguments = vec!["--tpm2-device=auto".to_owned()];
    if signed {
        arguments.push("--tpm2-pcrs=7+12".to_owned());
        arguments.push(format!("--tpm2-public-key={key}"));
        arguments.push("--tpm2-public-key-pcrs=11".to_owned());
    } else {
        arguments.push("--tpm2-pcrs=7".to_owned());
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_read_as_the_tool_prints_them() {
        let listed = "SLOT TYPE    \n   0 password\n   1 recovery\n   2 tpm2\n   3 fido2\n";
        assert_eq!(slots(listed), [Slot::Passphrase, Slot::Recovery, Slot::Chip, Slot::Other]);
        assert_eq!(slots("No slots found.\n"), []);
    }

    #[test]
    fn a_disk_is_sealed_only_when_its_passphrase_is_gone() {
        assert_eq!(lock(&[Slot::Passphrase]), Lock::Open);
        assert_eq!(lock(&[Slot::Passphrase, Slot::Recovery, Slot::Chip]), Lock::Open);
        assert_eq!(lock(&[Slot::Recovery, Slot::Chip]), Lock::Sealed);
        // Nothing was found out: no promise is made.
        assert_eq!(lock(&[]), Lock::Open);
    }

    #[test]
    fn a_signed_system_is_sealed_to_its_signature_and_an_unsigned_one_to_the_machine() {
        assert_eq!(
            binding(true, "/k").join(" "),
            "--tpm2-device=auto --tpm2-pcrs=7+12 --tpm2-public-key=/k --tpm2-public-key-pcrs=11"
        );
        assert_eq!(binding(false, "/k").join(" "), "--tpm2-device=auto --tpm2-pcrs=7");
    }
}
