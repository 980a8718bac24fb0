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

const PULLED: &str = "it was pulled out while it was written to; backups that were finished before are whole, and the next one is made when it is plugged in again";

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
        let away = |why: String| BackupError::Away { place: place.shown(), why };
        let disk = found.map_err(|error| away(error.to_string()))?;
        let id = disk.id.clone().ok_or_else(|| away("it has no file system".to_owned()))?;
        match image.helper().does(Chore::LendDisk(id.clone())).await {
            Ok(()) => Ok(Some(Lent { id, disk })),
            Err(unit) => Err(away(image.usb().why_not().unwrap_or(unit))),
        }
    }

    /// Gives it back: what was written is on it when this returns. A disk that is not there any more is what was wrong, and not what restic
    /// makes of it.
    pub(super) async fn after_lending(
        &self,
        place: &BackupPlace,
        lent: Lent,
        done: Result<(), BackupError>,
    ) -> Result<(), BackupError> {
        let Some(image) = &self.image else { return done };
        let now = image.usb().find("", Some(&lent.id));
        let gone = now.map_or(true, |disk| disk.device != lent.disk.device);
        let back = image.helper().does(Chore::TakeDisk(lent.id)).await;
        let away = |why: &str| Err(BackupError::Away { place: place.shown(), why: why.to_owned() });
        match (done, back) {
            (Err(BackupError::Stopped), _) => Err(BackupError::Stopped),
            _ if gone => away(PULLED),
            (Ok(()), Err(why)) => {
                log::warn!("{} could not be given back: {why}", place.shown());
                away("it could not be closed; leave it in until the machine is off")
            }
            (done, _) => done,
        }
    }

    /// A supervisor that ended in the middle left the disk open.
    pub(super) async fn take_disk_back(&self) {
        let to = self.board.site().backup.map(|backup| backup.to);
        let (Some(image), Some(place)) = (&self.image, to) else { return };
        let Some(Ok(Plugged { id: Some(id), .. })) = wanted(image, &place) else { return };
        if let Err(why) = image.helper().does(Chore::TakeDisk(id)).await {
            log::debug!("no disk was left open: {why}");
        }
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
