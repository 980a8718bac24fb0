//! Makes way: while a takeover has begun here nobody serves, so nothing else is begun, and what goes on is paused or stopped. And what the main box
//! revoked and tells only when it is back is made true on the box that stands in for it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use polder_control::{Actor, BackupWish, Client, DoorReply, DoorRequest, RunId, RunState};
use polder_site::SiteChange;
use polder_spare::{Folders, Tombstones};
use polder_takeover::{LONGEST_PAUSE, Moment};

use tokio_util::sync::CancellationToken;

use super::taking::bury_late;
use super::{Running, Work, blocking, empty, lock};
use crate::parts::Parts;
use crate::runs::{Intent, Open};

/// Between two looks at whether somebody serves again.
const LOOK: Duration = Duration::from_secs(1);
/// The door answers within this.
const SOON: Duration = Duration::from_secs(2);

/// A takeover that came to nothing so often is not what people wait for, where they ask for a way out.
const STUCK: u32 = 3;

/// Why nothing else is begun.
pub(super) const NOBODY_SERVES: &str = "a takeover has begun on this box and nobody serves until it is in place, or left to the main box; look at the page Takeover, and ask again then";
/// Why something was stopped.
pub(super) const MADE_WAY: &str =
    "it made way for a takeover, since nobody serves meanwhile; ask for it again when that is over";

impl<P: Parts> Work<P> {
    /// A takeover is under way here, or has begun and waits to be gone on with.
    pub(super) fn nobody_serves(&self) -> bool {
        self.pair.begun_here.load(Ordering::Relaxed) || self.takes_over()
    }

    /// What was begun came to nothing again and again, as where the backups are damaged, or does not even begin.
    pub(super) fn is_stuck(&self) -> bool {
        is_stuck(lock(&self.pair.failed).0, self.waited())
    }

    /// Whether somebody asks for what may help where a takeover is stuck.
    pub(super) fn is_way_out(&self, intent: &Intent, by: &Actor) -> bool {
        helps(intent) && *by != Actor::Itself && self.is_stuck()
    }

    /// A takeover has begun here and is not in place; since when, is counted from the first time that it is seen.
    pub(super) fn note_begun(&self, begun: bool) {
        self.pair.begun_here.store(begun, Ordering::Relaxed);
        let mut since = lock(&self.pair.begun_since);
        *since = begun.then(|| since.unwrap_or_else(Moment::now));
    }

    /// Everything else that goes on here ends in order, as if somebody had stopped it; a model that comes in pauses and goes on afterwards.
    pub(super) fn make_way(&self) {
        self.stop_for_takeover(|run| !run.brings);
        self.pair.hurry.notify_waiters();
    }

    /// Whoever is at the backups ends in order: a takeover waits for its turn.
    pub(super) fn hurry_backups(&self) {
        self.stop_for_takeover(|run| run.saves);
        self.pair.hurry.notify_waiters();
    }

    fn stop_for_takeover(&self, which: impl Fn(&super::Running) -> bool) {
        for (id, run) in lock(&self.running).iter_mut() {
            if run.takes_over || run.way_out || run.made_way || !which(run) {
                continue;
            }
            log::info!("\"{}\" (run {}) makes way for a takeover", run.title, id.0);
            run.made_way = true;
            run.cancel.cancel();
        }
    }

    /// Whether a run was stopped for a takeover.
    pub(super) fn made_way(&self, id: RunId) -> bool {
        lock(&self.running).get(&id).is_some_and(|run| run.made_way)
    }

    /// A run begins, or is done, with bringing something large in.
    pub(super) fn brings(&self, id: RunId, brings: bool) {
        if let Some(run) = lock(&self.running).get_mut(&id) {
            run.brings = brings;
        }
    }

    /// What was cut off goes on once somebody serves and it has its place among the runs again; if this box takes over it is another box then, and none of
    /// this goes on. Until then it can be stopped.
    pub(super) fn resume_when_settled(self: &Arc<Self>, open: Open) {
        let (cancel, title) = (CancellationToken::new(), "A change that was cut off");
        let waiting = Running {
            cancel: cancel.clone(),
            confirmed: CancellationToken::new(),
            changes: false,
            imports: false,
            takes_over: false,
            saves: false,
            // It waits already.
            brings: true,
            way_out: false,
            made_way: false,
            title: title.to_owned(),
        };
        lock(&self.running).insert(open.id, waiting);
        self.board.post(open.id, empty(title), RunState::Running);
        let work = self.clone();
        self.tasks.spawn(async move {
            loop {
                if !work.nobody_serves() || work.is_way_out(&open.intent, &open.by) {
                    let _gate = work.gate.lock().await;
                    let place = match work.plan_of(&open.intent).await {
                        Ok((_, actions)) => work.place_for(&open.intent, &actions, &open.by),
                        // Whoever goes on with it says why it cannot.
                        Err(_) => Ok(()),
                    };
                    if place.is_ok() && !cancel.is_cancelled() && !work.ending.is_cancelled() {
                        let id = open.id;
                        work.go_on(open).await;
                        // Stopped while it set off.
                        if cancel.is_cancelled() {
                            let _ = work.cancel(id);
                        }
                        return;
                    }
                }
                tokio::select! {
                    () = tokio::time::sleep(LOOK) => {}
                    () = cancel.cancelled() => break,
                    () = work.ending.cancelled() => return,
                }
            }
            // As every run that is stopped, and not in the middle of another's.
            let _gate = loop {
                let gate = work.gate.lock().await;
                if !work.is_changing() {
                    break gate;
                }
                drop(gate);
                tokio::select! {
                    () = tokio::time::sleep(LOOK) => {}
                    () = work.ending.cancelled() => return,
                }
            };
            if let Some(before) = &open.before {
                let why = "it was stopped".to_owned();
                work.put_back(&open.intent, before, why, &cancel).await;
            }
            if let Some(mut run) = work.board.run(open.id) {
                run.state = RunState::Cancelled;
                work.close(run).await;
            }
        });
    }

    /// On a box that stands in: what the main box revoked and tells only now works here no more either. Before the door opens it is in the list that
    /// the door reads first; later the door is told, until it has heard.
    pub(super) async fn bury_what_came(self: &Arc<Self>, other: &str) {
        let (state, before) = (self.state.clone(), *lock(&self.pair.buried));
        let buried = blocking(move || {
            let size = Tombstones::size(&Folders::of(&state));
            match before == Some(size) {
                true => Ok(None),
                // What grows meanwhile is seen at the next look.
                false => bury_late(&state).map(|news| Some((size, news))),
            }
        });
        let (size, news) = match buried.await {
            Ok(None) => return,
            Ok(Some(buried)) => buried,
            Err(why) => return log::error!("what {other} revoked may still work here: {why}"),
        };
        if news > 0 {
            self.note(Actor::Itself, "takes out what was revoked on", other).await;
        }
        let path = self.sockets.gateway();
        let told = async {
            let mut door: Client<DoorRequest, DoorReply> = Client::connect(&path).await?;
            door.ask_within(SOON, &DoorRequest::HearGone).await
        };
        match told.await {
            Ok(DoorReply::Gone(_)) => *lock(&self.pair.buried) = Some(size),
            Ok(DoorReply::Refused(why)) => {
                log::error!("what {other} revoked may still work at the door: {why}");
            }
            Ok(_) => log::error!("the door answered something else than what it took out"),
            // It reads the list when it starts, and is told once more in case it was just starting.
            Err(error) => log::debug!("{error}"),
        }
    }
}

fn is_stuck(failed: u32, waited: Duration) -> bool {
    failed >= STUCK || waited >= LONGEST_PAUSE
}

/// Another backup, no pair, another version, another address: what a takeover that cannot be done may lack, or be given up for.
fn helps(intent: &Intent) -> bool {
    match intent {
        Intent::Backup(wish) => matches!(wish, BackupWish::Restore { .. }),
        Intent::Change(SiteChange::RemoveSpare | SiteChange::Port { .. }) | Intent::Update(_) => {
            true
        }
        Intent::Change(_) | Intent::Import { .. } | Intent::Takeover(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_to_nothing_three_times_or_for_five_minutes_is_stuck_and_only_what_helps_passes() {
        let at = |failed, seconds| is_stuck(failed, Duration::from_secs(seconds));
        assert!(!at(0, 0) && !at(2, 299));
        assert!(at(3, 0) && at(0, 300));
        let from = polder_site::BackupPlace::Spare;
        let restore = BackupWish::Restore { from, snapshot: None };
        assert!(helps(&Intent::Backup(restore)));
        assert!(helps(&Intent::Change(SiteChange::RemoveSpare)));
        assert!(!helps(&Intent::Backup(BackupWish::Now)));
        assert!(!helps(&Intent::Change(SiteChange::Rename("birch".parse().unwrap()))));
    }
}
