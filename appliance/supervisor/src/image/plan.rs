//! Pure: what a change of the image needs, as steps.

use polder_control::{Step, UpdateWish};
use polder_update::{Offer, Refusal, Slots, UpdateError, Version, judge};

use crate::plan::size;

/// A change of what the machine runs.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Bring an update.
    Fetch(Box<Offer>),
    /// Bring an update and change to it.
    Apply {
        /// The update.
        offer: Box<Offer>,
        /// Whether its files are here already.
        here: bool,
        /// What runs.
        from: Version,
    },
    /// Change to what ran before.
    Back {
        /// What runs.
        from: Version,
        /// What ran before.
        to: Version,
    },
}

/// One thing to do about the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageAction {
    /// Bring the files.
    Fetch(Box<Offer>),
    /// See what the box can do now, and note what is about to be tried.
    Note {
        /// What runs.
        from: Version,
        /// What is tried.
        to: Version,
    },
    /// Write the update into the other slot.
    Write(Version),
    /// Have the boot loader take the other slot.
    Leave {
        /// What runs.
        from: Version,
        /// What ran before.
        to: Version,
    },
    /// Start the machine again.
    Restart {
        /// What runs.
        from: Version,
        /// What is tried; none where it is known to be good.
        trying: Option<Version>,
    },
}

impl Change {
    /// What a wish comes to, or why it cannot be had.
    pub(crate) fn of(
        wish: UpdateWish,
        slots: &Slots,
        offer: Option<&Offer>,
        highest: Option<&Version>,
        here: bool,
    ) -> Result<Self, UpdateError> {
        let from = slots.running.clone();
        if wish == UpdateWish::Back {
            return Ok(Self::Back { from, to: slots.back()?.version.clone() });
        }
        let nothing = "no update was found yet; look for one first, with a stick plugged in or an address set";
        let offer = offer.ok_or_else(|| UpdateError::Disk(nothing.to_owned()))?;
        let image = polder_update::Here { version: from.clone(), arch: slots.arch.clone() };
        judge(&offer.manifest, &image, highest)?;
        fits(offer, slots)?;
        let offer = Box::new(offer.clone());
        Ok(match wish {
            UpdateWish::Apply => Self::Apply { offer, here, from },
            UpdateWish::Fetch | UpdateWish::Back => Self::Fetch(offer),
        })
    }

    pub(crate) fn title(&self) -> String {
        match self {
            Self::Fetch(offer) => format!("Fetch Polder {}", offer.manifest.version),
            Self::Apply { offer, from, .. } => {
                format!("Change from Polder {from} to {}", offer.manifest.version)
            }
            Self::Back { from, to } => format!("Go back from Polder {from} to {to}"),
        }
    }

    pub(crate) fn actions(&self) -> Vec<ImageAction> {
        match self {
            Self::Fetch(offer) => vec![ImageAction::Fetch(offer.clone())],
            Self::Apply { offer, here, from } => {
                let (from, to) = (from.clone(), offer.manifest.version.clone());
                let fetch = (!here).then(|| ImageAction::Fetch(offer.clone()));
                let rest = [
                    ImageAction::Note { from: from.clone(), to: to.clone() },
                    ImageAction::Write(to.clone()),
                    ImageAction::Restart { from, trying: Some(to) },
                ];
                fetch.into_iter().chain(rest).collect()
            }
            Self::Back { from, to } => vec![
                ImageAction::Leave { from: from.clone(), to: to.clone() },
                ImageAction::Restart { from: from.clone(), trying: None },
            ],
        }
    }
}

impl ImageAction {
    pub(crate) fn step(&self) -> Step {
        let (id, title) = match self {
            Self::Fetch(offer) => {
                let (version, bytes) = (&offer.manifest.version, size(offer.manifest.bytes()));
                ("fetch-update", format!("Fetch Polder {version} ({bytes}) from {}", offer.from))
            }
            Self::Note { .. } => (
                "note-abilities",
                "See what the box can do now, to compare with afterwards".to_owned(),
            ),
            Self::Write(version) => {
                ("write-slot", format!("Write {version} beside what runs and read it back"))
            }
            Self::Leave { to, .. } => ("leave-slot", format!("Have {to} started from now on")),
            Self::Restart { from, trying: Some(to) } => (
                "restart",
                format!(
                    "Start the machine again; if {to} can do less than {from} does now, {from} comes back by itself"
                ),
            ),
            Self::Restart { trying: None, .. } => ("restart", "Start the machine again".to_owned()),
        };
        Step { id: id.to_owned(), title }
    }
}

fn fits(offer: &Offer, slots: &Slots) -> Result<(), Refusal> {
    let manifest = &offer.manifest;
    slots.fits(&manifest.version, manifest.root.size, manifest.verity.size)
}

#[cfg(test)]
mod tests {
    use polder_update::{Entry, Manifest, Part};

    use super::*;

    fn offer(version: &str) -> Offer {
        let part = |ending: &str, size| Part {
            name: format!("polder_{version}_x86_64.{ending}"),
            size,
            sha256: polder_recipes::Digest::from_bytes([1; 32]),
        };
        let manifest = Manifest {
            version: version.parse().unwrap(),
            arch: "x86_64".into(),
            made: 1_795_641_866,
            roothash: polder_recipes::Digest::from_bytes([2; 32]),
            root: part("root", 200 << 20),
            verity: part("verity", 2 << 20),
            entry: part("efi", 26 << 20),
        };
        Offer { manifest, from: "/run/media/STICK".into(), at: "now".into() }
    }

    fn slots(running: &str, files: &[&str]) -> Slots {
        Slots {
            running: running.parse().unwrap(),
            arch: "x86_64".into(),
            roothash: String::new(),
            entries: files.iter().filter_map(|file| Entry::of_file(file)).collect(),
            room: [2 << 30, 64 << 20],
            keys: 1,
        }
    }

    fn text(change: &Change) -> String {
        let steps = change.actions().iter().map(ImageAction::step).collect();
        polder_control::Plan { title: change.title(), steps }.to_string()
    }

    #[test]
    fn an_update_is_fetched_compared_written_and_tried() {
        let slots = slots("0.1.0", &["polder_0.1.0.efi"]);
        let offer = offer("0.2.0");
        let plan = |here| Change::of(UpdateWish::Apply, &slots, Some(&offer), None, here).unwrap();
        assert_eq!(
            text(&plan(false)),
            "Change from Polder 0.1.0 to 0.2.0\n  \
             1. Fetch Polder 0.2.0 (228 MiB) from /run/media/STICK\n  \
             2. See what the box can do now, to compare with afterwards\n  \
             3. Write 0.2.0 beside what runs and read it back\n  \
             4. Start the machine again; if 0.2.0 can do less than 0.1.0 does now, 0.1.0 comes back by itself"
        );
        assert_eq!(plan(true).actions().len(), 3);
    }

    #[test]
    fn going_back_needs_something_to_go_back_to() {
        let back = |slots: &Slots| Change::of(UpdateWish::Back, slots, None, None, false);
        let both = slots("0.2.0", &["polder_0.1.0.efi", "polder_0.2.0.efi"]);
        assert_eq!(
            text(&back(&both).unwrap()),
            "Go back from Polder 0.2.0 to 0.1.0\n  \
             1. Have 0.1.0 started from now on\n  \
             2. Start the machine again"
        );
        let one = slots("0.2.0", &["polder_0.2.0.efi"]);
        assert!(back(&one).unwrap_err().to_string().contains("nothing to go back to"));
    }

    #[test]
    fn what_was_not_found_or_may_not_be_taken_is_refused_before_anything_is_done() {
        let slots = slots("0.2.0", &["polder_0.2.0.efi"]);
        let ask = |offer: Option<&Offer>| {
            Change::of(UpdateWish::Apply, &slots, offer, None, false).unwrap_err().to_string()
        };
        assert!(ask(None).contains("look for one first"));
        assert!(ask(Some(&offer("0.2.0"))).contains("not newer"));
        let mut large = offer("0.3.0");
        large.manifest.root.size = 3 << 30;
        assert!(ask(Some(&large)).contains("a slot of this box's disk has"));
    }
}
