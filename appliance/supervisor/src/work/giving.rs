//! Gives the state back: the door is closed, a last backup made, the state handed over, and this box is again what it was.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use polder_backup::{Folders as Backups, KitKey, Record, Repository, Stop, gather, restore};
use polder_control::{Actor, Client, DoorReply, DoorRequest, Progress, RunId, SpareRequest};
use tokio_util::sync::CancellationToken;

use super::pair::change_term;
use super::takeover::is_there;
use super::taking::{keep_beside, store_of_main};
use super::{Refusal, Work, blocking, lock, with_source};
use crate::parts::Parts;

/// Between two looks at whether the main box serves, and at whether the door is closed.
const LOOK: Duration = Duration::from_millis(300);
/// A turn at the backups is waited for so long before the door closes.
const TURN: Duration = Duration::from_secs(60);
/// So many last backups are made where the audit trail goes on after each.
const MOST_SAVES: usize = 5;

impl<P: Parts> Work<P> {
    /// Comes back when nobody is let in any more. The turn at the backups is taken before: nobody is to wait for one at a closed door.
    pub(super) async fn close_door(
        self: &Arc<Self>,
        cancel: &CancellationToken,
    ) -> Result<(), Refusal> {
        let seen = self.pair_seen().await?.ok_or("this box is paired with no other any more")?;
        let turn = tokio::select! {
            turn = self.saving.clone().lock_owned() => turn,
            () = tokio::time::sleep(TURN) => return Err("a backup or a trial restore goes on here; ask again when it is done, this box serves on".to_owned()),
            () = cancel.cancelled() => return Err("it was stopped".to_owned()),
            () = self.ending.cancelled() => return Err("the box ends".to_owned()),
        };
        *lock(&self.pair.turn) = Some(turn);
        // Before the last backup: the trail that goes over is to know it.
        self.record(Actor::Itself, "closes the door and hands the state back to", &seen.other)
            .await?;
        self.pair.handing.store(true, Ordering::Relaxed);
        self.look_at_pair().await;
        let gateway = self.sockets.gateway();
        let closed = async {
            loop {
                let asked = async {
                    let mut door: Client<DoorRequest, DoorReply> =
                        Client::connect(&gateway).await.ok()?;
                    door.ask(&DoorRequest::Doorway).await.ok()
                };
                if let Some(DoorReply::Doorway(doorway)) = asked.await
                    && doorway.closed
                {
                    return;
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::select! {
            () = closed => Ok(()),
            () = tokio::time::sleep(Duration::from_secs(30)) => Err("the door does not close; look at its log, then try again".to_owned()),
            () = self.ending.cancelled() => Err("the box ends".to_owned()),
        }
    }

    /// Under the turn that was taken when the door closed.
    pub(super) async fn save_last(self: &Arc<Self>, id: RunId, step: usize) -> Result<(), Refusal> {
        *lock(&self.pair.saved) = Some(self.audit_head());
        let (state, name, work) = (self.state.clone(), self.board.site().name, self.clone());
        blocking(move || {
            let say = |error: polder_backup::BackupError| with_source(&error);
            let (store, _) = store_of_main(&state)?;
            let backups = Backups::of(&state);
            let stage = backups.stage();
            gather(&state, &stage, name.as_str()).map_err(say)?;
            let mut observer = |progress: Progress| work.board.progress(id, step, progress);
            let saved = store.save(&stage, name.as_str(), &mut observer, &Stop::default());
            restore::clear(&stage).map_err(say)?;
            let saved = saved.map_err(say)?;
            Record::change(&backups, |record| record.saved = Some(saved)).map(drop).map_err(say)
        })
        .await
    }

    /// The state is the main box's from here on, whatever happens. A line that came into the audit trail after the last backup would be in neither of
    /// the two: then another one is made.
    pub(super) async fn hand(self: &Arc<Self>, id: RunId, step: usize) -> Result<(), Refusal> {
        for _ in 0..MOST_SAVES {
            if let Some(highest) = self.hand_at_rest().await? {
                // If this does not arrive, the next look at the pair does it.
                let _ = self.ask_spare_part(&SpareRequest::SetEpoch(highest)).await;
                drop(lock(&self.pair.turn).take());
                return Ok(());
            }
            log::info!("the audit trail went on after the last backup; another one is made");
            self.save_last(id, step).await?;
        }
        Err("the audit trail does not come to rest; look at it, then try again".to_owned())
    }

    /// None where the trail went on since the last backup.
    pub(super) async fn hand_at_rest(self: &Arc<Self>) -> Result<Option<u64>, Refusal> {
        let _terms = self.pair.terms.lock().await;
        let (state, work) = (self.state.clone(), self.clone());
        blocking(move || {
            let saved =
                Record::read(&Backups::of(&state)).saved.ok_or("the last backup was not made")?;
            // Nothing is written there until the term is on the disk.
            let trail = lock(&work.trail);
            if lock(&work.pair.saved).as_ref() != Some(&trail.head()) {
                return Ok(None);
            }
            change_term(&state, |term| Ok(Some(term.give(saved.id))))
        })
        .await
    }

    pub(super) async fn await_main(&self, cancel: &CancellationToken) -> Result<(), Refusal> {
        loop {
            let seen =
                self.pair_seen().await?.ok_or("this box is paired with no other any more")?;
            let Some(given) = &seen.term.given else {
                return Err("a new term began; nothing is given back any more".to_owned());
            };
            if seen
                .status
                .is_some_and(|status| is_there(&status) && status.peer_epoch >= given.term)
            {
                return Ok(());
            }
            let stopped =
                "it was stopped; the state stays handed over, and the main box may still take it"
                    .to_owned();
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = cancel.cancelled() => return Err(stopped),
                () = self.ending.cancelled() => return Err(stopped),
            }
        }
    }

    /// The spare's own state, as it was put aside when it took over.
    pub(super) async fn put_back_own(&self) -> Result<(), Refusal> {
        let seen = self.pair_seen().await?.ok_or("this box is paired with no other any more")?;
        let (state, term) = (self.state.clone(), seen.term);
        blocking(move || {
            let say = |error: polder_backup::BackupError| with_source(&error);
            let backups = Backups::of(&state);
            let aside = term.own.as_ref().map(|name| state.join(name)).filter(|path| path.join("site.toml").exists());
            let aside = aside.ok_or("this box's own former state is not there any more; it stays closed until it is set up anew: install it again, or where it runs under `polder up`, give it an empty folder with --state")?;
            let incoming = restore::incoming(&backups);
            gather(&aside, &incoming, "spare").map_err(say)?;
            let _ = fs::remove_file(incoming.join(restore::FORMER_KEY));
            let kept = fs::read_to_string(aside.join(restore::FORMER_KEY)).ok();
            let key = match kept.and_then(|text| KitKey::typed(&text).ok()) {
                Some(key) => key,
                None => KitKey::make().map_err(say)?,
            };
            let put = restore::aside_now();
            keep_beside(&backups, &term.resting(put.clone()))?;
            restore::ready_as(&backups, &key, &put).map_err(say)
        })
        .await
    }
}
