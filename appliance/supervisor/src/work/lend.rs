//! Borrows the USB disk that backups go to, on the image, where all disks are only read otherwise: for the steps that write, and no longer.

use std::sync::atomic::Ordering;

use polder_backup::disk::{DiskError, Plugged};
use polder_backup::{BackupAction, BackupError};
use polder_site::{BackupPlace, FileSystemId};

use super::Work;
use crate::image::{Chore, Image};
use crate::parts::Parts;

/// What is lent: which file system, and the device that it was on then.
pub(super) struct Lent {
    id: FileSystemId,
    disk: Plugged,
}

impl<P: Parts> Work<P> {
    /// On the image, why backups cannot be written to the disk that they go to, as far as that is seen without writing. Nothing for other places.
    pub(super) fn disk_trouble(&self, place: &BackupPlace) -> Option<String> {
        let image = self.image.as_ref()?;
        match wanted(image, place)? {
            Ok(_) => None,
            Err(error) => Some(error.to_string()),
        }
    }

    /// Whether the disk that was away is back since this was asked last.
    pub(super) fn disk_is_back(&self, away: bool) -> bool {
        self.disk_away.swap(away, Ordering::Relaxed) && !away
    }

    /// Has the disk opened for a step that writes.
    pub(super) async fn lend_disk(
        &self,
        action: BackupAction,
        place: &BackupPlace,
    ) -> Result<Option<Lent>, BackupError> {
        let Some(image) = self.image.as_ref().filter(|_| writes(action)) else { return Ok(None) };
        let Some(found) = wanted(image, place) else { return Ok(None) };
        let disk = found?;
        let id = disk.id.clone().ok_or_else(|| DiskError::Unformatted(disk.shown()))?;
        match image.helper().does(Chore::LendDisk(id.clone())).await {
            Ok(()) => Ok(Some(Lent { id, disk })),
            Err(unit) => {
                // Pulled out between this look at it and root's own, which knows no name of it.
                if let Some(Err(error)) = wanted(image, place) {
                    return Err(error.into());
                }
                Err(DiskError::Told(image.usb().why_not().unwrap_or(unit)).into())
            }
        }
    }

    /// Gives it back: what was written is on it when this returns. A disk that is not there any more is what was wrong, and not what restic
    /// makes of it.
    pub(super) async fn after_lending(
        &self,
        lent: Lent,
        done: Result<(), BackupError>,
    ) -> Result<(), BackupError> {
        let Some(image) = &self.image else { return done };
        let back = image.helper().does(Chore::TakeDisk(lent.id.clone())).await;
        if let Err(why) = &back {
            log::warn!("{} could not be given back: {why}", lent.disk.shown());
        }
        // Also in the middle of that.
        let now = image.usb().find("", Some(&lent.id));
        let gone = now.map_or(true, |disk| disk.device != lent.disk.device);
        verdict(&lent.disk.shown(), gone, done, back.is_ok())
    }

    /// A supervisor that ended in the middle left the disk open.
    pub(super) async fn take_disk_back(&self) {
        let Some(image) = &self.image else { return };
        // Which may be one that was just tried as a new place.
        let Some(id) = image.usb().lent_now() else { return };
        if let Err(why) = image.helper().does(Chore::TakeDisk(id)).await {
            log::warn!("a disk that was left open could not be closed: {why}");
        }
    }
}

/// What came of a step on a disk that is `gone` meanwhile or was given back, for people.
fn verdict(
    disk: &str,
    gone: bool,
    done: Result<(), BackupError>,
    closed: bool,
) -> Result<(), BackupError> {
    let disk = disk.to_owned();
    match done {
        Err(BackupError::Stopped) => Err(BackupError::Stopped),
        _ if gone => Err(DiskError::Pulled(disk).into()),
        Err(BackupError::NoSpace(_)) => Err(DiskError::Full(disk).into()),
        Ok(()) if !closed => Err(DiskError::Open(disk).into()),
        done => done,
    }
}

/// The disk of a place, if it is one that backups can be written to; nothing for other places.
fn wanted(image: &Image, place: &BackupPlace) -> Option<Result<Plugged, DiskError>> {
    let BackupPlace::Disk { label, id } = place else { return None };
    let found = image.usb().find(label, id.as_ref());
    Some(found.and_then(|disk| disk.takes_backups().map(|()| disk)))
}

/// Whoever only reads needs no disk that can be written to.
fn writes(action: BackupAction) -> bool {
    matches!(action, BackupAction::MakeStore | BackupAction::Save | BackupAction::Thin(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_of_a_disk_is_said_of_the_disk_and_not_of_where_it_was_mounted() {
        let said = |gone, done, closed| match verdict("the disk SAFE", gone, done, closed) {
            Ok(()) => "well".to_owned(),
            Err(error) => error.to_string(),
        };
        let broken = || {
            let place = "/run/polder-disk/backup".to_owned();
            Err(BackupError::Other { place, why: "input/output error".to_owned() })
        };
        assert_eq!(said(false, Ok(()), true), "well");
        assert!(said(true, broken(), false).starts_with("the disk SAFE was pulled out while"));
        // What was written may not be on it, whatever restic said.
        assert!(said(true, Ok(()), true).starts_with("the disk SAFE was pulled out while"));
        let full = Err(BackupError::NoSpace("/run/polder-disk/backup is full".to_owned()));
        assert_eq!(
            said(false, full, true),
            "the disk SAFE is full; make room on it, or take another one"
        );
        assert!(said(false, Ok(()), false).contains("leave it in until the machine is off"));
        assert!(said(false, broken(), true).contains("input/output error"));
        assert_eq!(said(true, Err(BackupError::Stopped), false), "it was stopped");
    }
}
