use serde::{Deserialize, Serialize};

/// How the disk is kept shut that holds everything of the box.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// What opens it.
    pub lock: Lock,
    /// The machine has a chip (TPM 2.0) that can keep a secret for it.
    pub chip: bool,
    /// The firmware starts only what its owner's keys have signed.
    pub secure_boot: bool,
    /// The system that runs says, under the project's key, what it measures while it starts.
    pub signed: bool,
}

/// What opens a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lock {
    /// Anything: its passphrase is empty.
    Open,
    /// The machine, or whoever has the recovery key.
    Sealed,
}

impl Disk {
    /// Against whom it is protected: sentences for the steward.
    pub const fn protects(&self) -> &'static str {
        match (self.lock, self.tight()) {
            (Lock::Open, _) => {
                "The disk is encrypted, but its passphrase is empty: whoever takes it out of the machine can read it."
            }
            (Lock::Sealed, true) => {
                "The disk opens only in this machine, and only for a system that this project has signed. Whoever takes it out, or starts the machine from a stick, reads nothing."
            }
            (Lock::Sealed, false) => {
                "The disk opens only in this machine. Whoever takes it out reads nothing; whoever can start the machine from a stick of their own still can."
            }
        }
    }

    /// Whether sealing to this machine, as it is started now, also keeps out another system on it.
    pub const fn tight(&self) -> bool {
        self.chip && self.secure_boot && self.signed
    }

    /// Why sealing would protect no more than a disk that is taken out, or nothing at all.
    pub const fn lacks(&self) -> Option<&'static str> {
        if !self.chip {
            Some(
                "This machine has no TPM 2.0, the chip that could keep the key, or it is switched off in the firmware's menu.",
            )
        } else if !self.signed {
            Some(
                "This system is not signed by a project, so the machine cannot tell it from another one: sealing protects a disk that is taken out, and nothing else.",
            )
        } else if !self.secure_boot {
            Some(
                "Secure Boot is off, so the machine starts any system: sealing protects a disk that is taken out, and nothing else. To have more, take the project's keys into the firmware first: hold the space bar while the machine starts.",
            )
        } else {
            None
        }
    }
}

/// Opens a sealed disk when the machine does not. Never written to a log.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RecoveryKey(String);

/// Words of eight letters; letters that lie on the same keys all over the world.
const WORDS: usize = 8;
const LETTERS: &str = "cbdefghijklnrtuv";

impl RecoveryKey {
    /// As somebody typed it: capitals, spaces and missing hyphens are no mistakes.
    pub fn typed(text: &str) -> Option<Self> {
        let letters: String = text
            .chars()
            .filter(|c| !c.is_whitespace() && *c != '-')
            .map(|c| c.to_ascii_lowercase())
            .collect();
        if letters.len() != WORDS * 8 || !letters.chars().all(|c| LETTERS.contains(c)) {
            return None;
        }
        let words: Vec<&str> = (0..WORDS).map(|n| &letters[n * 8..(n + 1) * 8]).collect();
        Some(Self(words.join("-")))
    }

    /// As it is written down.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for RecoveryKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RecoveryKey(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "eujukuik-ljvniheb-tchngetr-henfkdfn-hjcrhelj-lufhrbcg-ivivhfvr-ncueblhj";

    #[test]
    fn a_key_is_taken_however_it_is_spaced_and_nothing_else_is() {
        let key = RecoveryKey::typed(KEY).unwrap();
        assert_eq!(key.expose(), KEY);
        assert_eq!(RecoveryKey::typed(&KEY.replace('-', " ")), Some(key.clone()));
        assert_eq!(RecoveryKey::typed(&format!(" {}\n", KEY.to_uppercase())), Some(key.clone()));
        for bad in ["", "eujukuik", &KEY.replace('e', "a"), &format!("{KEY}c"), "ü"] {
            assert_eq!(RecoveryKey::typed(bad), None, "{bad}");
        }
        assert!(!format!("{key:?}").contains("euju"));
    }

    #[test]
    fn a_seal_is_only_called_tight_where_another_system_cannot_open_it() {
        let disk =
            |chip, secure_boot, signed| Disk { lock: Lock::Sealed, chip, secure_boot, signed };
        assert_eq!(disk(true, true, true).lacks(), None);
        assert!(disk(true, true, true).protects().contains("starts the machine from a stick"));
        assert!(disk(true, false, true).lacks().unwrap().contains("Secure Boot is off"));
        assert!(disk(true, true, false).lacks().unwrap().contains("not signed"));
        assert!(disk(false, true, true).lacks().unwrap().contains("no TPM"));
        for loose in [disk(true, false, true), disk(true, true, false)] {
            assert!(loose.protects().ends_with("from a stick of their own still can."));
        }
        let open = Disk { lock: Lock::Open, ..disk(true, true, true) };
        assert!(open.protects().contains("passphrase is empty"));
    }
}
