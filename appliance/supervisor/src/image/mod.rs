//! The image that the machine runs from: looks for updates, changes to one, and judges it afterwards.
//!
//! What is written to disks is root's work, behind [`Helper`]; everything here runs as the box's own user, and root
//! believes none of it: it checks signature, version and digests once more.

mod ability;
mod plan;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};

use polder_backup::disk::Disks;
use polder_control::{ImageStatus, OfferStatus, UpdateStatus};
use polder_power::nut::Driver;
use polder_site::FileSystemId;
use polder_update::{Job, KEYS, Keys, Record, Shelf, Slots, UpdateError, Version, age, why};

pub(crate) use ability::able;
pub use plan::{Change, ImageAction};

/// Where root writes down what it found and how far it is.
const TOLD: &str = "/run/polder-slots";
/// Where disks are mounted that people plug in.
const DISKS: &str = "/run/media";
/// Where the kernel shows network ports.
const PORTS: &str = "/sys/class/net";

/// Something that is done by a unit of the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chore {
    /// Look at the slots and write down what is there.
    Look,
    /// Write this version into the slot that does not run.
    Write(Version),
    /// Have the boot loader take the other slot.
    GoBack,
    /// Open the remote shell that was asked for; it looks itself whether it still is.
    OpenShell,
    /// Set the machine's clock, in Unix seconds.
    SetClock(u64),
    /// Run NUT with this driver, as its files say, or end it.
    HearUps(Option<Driver>),
    /// Mount this USB file system so that the box can write backups to it.
    LendDisk(FileSystemId),
    /// Unmount it, and have it only read again.
    TakeDisk(FileSystemId),
    /// Have networkd give the ports the addresses that the site says; whoever does it reads them there.
    GiveAddresses,
    /// Have graphics cards draw this part of their usual power, in percent.
    LimitCards(u8),
}

/// Whoever does root's part. Comes back when it is done; the error is one sentence.
pub trait Helper: Send + Sync {
    /// Where what it does is seen.
    fn places(&self) -> Places {
        Places::default()
    }

    /// Does it.
    fn does(&self, chore: Chore) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>>;
}

/// Folders outside the box's own.
#[derive(Debug, Clone)]
pub struct Places {
    /// Where root writes down what it found and how far it is.
    pub told: PathBuf,
    /// Where disks are mounted that people plug in.
    pub disks: PathBuf,
    /// Where the image has the keys that may sign updates.
    pub keys: PathBuf,
    /// Where NUT finds what it is told of a UPS.
    pub nut: PathBuf,
    /// Where the kernel shows network ports.
    pub ports: PathBuf,
    /// Where the system tells of disks, and where one is lent.
    pub usb: Disks,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            told: TOLD.into(),
            disks: DISKS.into(),
            keys: KEYS.into(),
            nut: polder_power::nut::PLACE.into(),
            ports: PORTS.into(),
            usb: Disks::default(),
        }
    }
}

/// The image, its slots and its updates.
pub(crate) struct Image {
    state: PathBuf,
    places: Places,
    shelf: Shelf,
    helper: Arc<dyn Helper>,
    record: Mutex<Record>,
}

impl Image {
    /// Of the box in this state folder.
    pub(crate) fn of(state: &Path, helper: Arc<dyn Helper>) -> Self {
        let record = Record::load(state).unwrap_or_else(|error| {
            log::error!("what became of earlier updates is not known: {error}");
            Record::default()
        });
        Self {
            state: state.to_owned(),
            places: helper.places(),
            shelf: Shelf::of(state),
            helper,
            record: Mutex::new(record),
        }
    }

    /// As root last wrote it down.
    pub(crate) fn slots(&self) -> Result<Slots, String> {
        let path = self.places.told.join("slots.json");
        let text = std::fs::read(&path).map_err(|_| {
            "this machine does not run from an image with two slots, so that there is nothing to update"
                .to_owned()
        })?;
        serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", path.display()))
    }

    pub(crate) fn job(&self) -> Option<Job> {
        serde_json::from_slice(&std::fs::read(self.places.told.join("job.json")).ok()?).ok()
    }

    pub(crate) fn shelf(&self) -> &Shelf {
        &self.shelf
    }

    pub(crate) fn helper(&self) -> &dyn Helper {
        &*self.helper
    }

    pub(crate) fn disks(&self) -> &Path {
        &self.places.disks
    }

    pub(crate) fn ports(&self) -> &Path {
        &self.places.ports
    }

    pub(crate) fn usb(&self) -> &Disks {
        &self.places.usb
    }

    pub(crate) fn nut(&self) -> &Path {
        &self.places.nut
    }

    pub(crate) fn keys(&self) -> Result<Keys, UpdateError> {
        Keys::in_folder(&self.places.keys)
    }

    pub(crate) fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().expect("nothing panics while it holds this")
    }

    /// Changes what is known, on the disk first.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Record)) -> Result<(), UpdateError> {
        let mut record = self.record();
        let mut next = record.clone();
        change(&mut next);
        if next != *record {
            next.save(&self.state)?;
            *record = next;
        }
        Ok(())
    }

    /// Everything that people are shown.
    pub(crate) fn status(&self, from: Option<&str>, now: u64) -> UpdateStatus {
        let record = self.record().clone();
        let slots = self.slots().ok();
        let offer = record.offer.as_ref().filter(|offer| {
            slots.as_ref().is_some_and(|slots| slots.running < offer.manifest.version)
        });
        UpdateStatus {
            image: slots.map(|slots| ImageStatus {
                version: slots.running.to_string(),
                arch: slots.arch.clone(),
                roothash: slots.roothash.clone(),
                kernel: kernel(),
                driver: driver(),
                other: slots.other().map(|entry| entry.version.to_string()),
                back: match slots.back() {
                    Ok(entry) => Ok(entry.version.to_string()),
                    Err(error) => Err(error.to_string()),
                },
                keys: slots.keys,
            }),
            offer: offer.map(|offer| OfferStatus {
                version: offer.manifest.version.to_string(),
                from: offer.from.clone(),
                age: age(offer.manifest.made, now),
                bytes: offer.manifest.bytes(),
                here: self.shelf.has(&offer.manifest),
                roothash: offer.manifest.roothash.to_string(),
            }),
            trying: record.attempt.as_ref().map(|attempt| attempt.to.to_string()),
            why: why(&record),
            looked: record.looked,
            unlooked: from.and_then(|from| record.unlooked_for(from)),
        }
    }
}

fn driver() -> Option<String> {
    let version = std::fs::read_to_string("/sys/module/nvidia/version").ok()?;
    Some(version.trim().to_owned())
}

fn kernel() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}
