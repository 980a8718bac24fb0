//! Pure: whether an update may be taken, and how old it is.

use jiff::Timestamp;

use crate::{Manifest, Version};

/// What an image with a Polder version in it takes for a wrong clock: nothing was made before this.
const NOT_BEFORE: u64 = 1_750_000_000;
const DAY: u64 = 24 * 3600;

/// Why something is no update for this box: one sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The image has no keys at all.
    #[error(
        "this image was made with no keys for updates in it, so that it can believe none; write a newer image to a stick and install from there"
    )]
    NoKeys,
    /// The signature is not there, broken, or somebody else's.
    #[error("the update is not signed by anyone whom this box trusts ({0}); nothing was changed")]
    Signature(String),
    /// It is not a manifest.
    #[error("the update's manifest cannot be read: {0}")]
    Unreadable(String),
    /// For another kind of machine.
    #[error("{version} is for {theirs} machines and this is one of {ours}")]
    Arch {
        /// What was offered.
        version: Version,
        /// Its kind.
        theirs: String,
        /// This machine's.
        ours: String,
    },
    /// Not newer than what runs.
    #[error(
        "{version} is not newer than {running}, which runs; to go back to what ran before there is `polder update rollback`"
    )]
    Older {
        /// What was offered.
        version: Version,
        /// What runs.
        running: Version,
    },
    /// Older than what ran here before.
    #[error(
        "{version} is older than {highest}, which this box ran already; an older one may have holes that are known by now"
    )]
    Downgrade {
        /// What was offered.
        version: Version,
        /// The newest that was ever kept here.
        highest: Version,
    },
    /// Larger than a slot.
    #[error(
        "{version} needs {needed} bytes and a slot of this box's disk has {room}; install it from a stick, which makes larger ones"
    )]
    TooLarge {
        /// What was offered.
        version: Version,
        /// Bytes of one of its files.
        needed: u64,
        /// Bytes of the partition.
        room: u64,
    },
}

/// The image that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Here {
    /// Its version.
    pub version: Version,
    /// Its machine: `x86_64`.
    pub arch: String,
}

/// Whether this box may take an update. `highest` is the newest version that it ever kept.
pub fn judge(manifest: &Manifest, here: &Here, highest: Option<&Version>) -> Result<(), Refusal> {
    let version = manifest.version.clone();
    if manifest.arch != here.arch {
        let (theirs, ours) = (manifest.arch.clone(), here.arch.clone());
        return Err(Refusal::Arch { version, theirs, ours });
    }
    if version <= here.version {
        return Err(Refusal::Older { version, running: here.version.clone() });
    }
    match highest {
        Some(highest) if version < *highest => {
            Err(Refusal::Downgrade { version, highest: highest.clone() })
        }
        _ => Ok(()),
    }
}

/// How old an update's packages are, in words. Shown and never acted upon: a box may live offline, and its clock
/// may be wrong.
pub fn age(made: u64, now: u64) -> String {
    let day = Timestamp::from_second(i64::try_from(made).unwrap_or(0))
        .map(|at| at.strftime("%Y-%m-%d").to_string())
        .unwrap_or_default();
    if now < NOT_BEFORE {
        return format!(
            "as of {day}; this box's clock is wrong, so that it cannot tell how old that is"
        );
    }
    let words = match now.saturating_sub(made) / DAY {
        0 => "today".to_owned(),
        1 => "yesterday".to_owned(),
        days @ 2..60 => format!("{days} days ago"),
        days => format!("{} months ago", days / 30),
    };
    format!("as of {day}, {words}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::tests::manifest;

    fn here(version: &str) -> Here {
        Here { version: version.parse().unwrap(), arch: "x86_64".into() }
    }

    #[test]
    fn only_a_newer_version_for_this_kind_of_machine_is_taken() {
        let new = manifest("0.2.0");
        assert_eq!(judge(&new, &here("0.1.9"), None), Ok(()));
        for running in ["0.2.0", "0.2.1", "1.0"] {
            let refusal = judge(&new, &here(running), None).unwrap_err().to_string();
            assert!(refusal.contains("not newer than") && refusal.contains(running), "{refusal}");
        }
        let mut other = new;
        other.arch = "aarch64".into();
        let refusal = judge(&other, &here("0.1.0"), None).unwrap_err().to_string();
        assert!(refusal.contains("for aarch64 machines"), "{refusal}");
    }

    #[test]
    fn going_back_by_hand_does_not_open_the_way_for_old_updates() {
        let highest = Some("0.3.0".parse().unwrap());
        let refusal = judge(&manifest("0.2.0"), &here("0.1.0"), highest.as_ref()).unwrap_err();
        assert!(matches!(refusal, Refusal::Downgrade { .. }), "{refusal}");
        assert_eq!(judge(&manifest("0.3.0"), &here("0.1.0"), highest.as_ref()), Ok(()));
    }

    #[test]
    fn age_is_told_in_words_and_not_at_all_by_a_wrong_clock() {
        let made = 1_795_641_866;
        assert_eq!(age(made, made + 5), "as of 2026-11-25, today");
        assert_eq!(age(made, made + DAY), "as of 2026-11-25, yesterday");
        assert_eq!(age(made, made + 40 * DAY), "as of 2026-11-25, 40 days ago");
        assert_eq!(age(made, made + 400 * DAY), "as of 2026-11-25, 13 months ago");
        assert!(age(made, 100).contains("clock is wrong"));
        // A clock that is only a little behind.
        assert_eq!(age(made, made - DAY), "as of 2026-11-25, today");
    }
}
