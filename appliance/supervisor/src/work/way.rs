//! Makes way: while a takeover has begun here nobody serves, so nothing else is begun, and what goes on is paused or stopped. And what the main box
//! revoked and tells only when it is back is made true on the box that stands in for it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use polder_control::{Actor, Client, DoorReply, DoorRequest, RunId};
use polder_spare::{Folders, Tombstones};

use super::taking::bury;
use super::{Work, blocking, lock};
use crate::parts::Parts;
use crate::runs::Open;

/// Between two looks at whether somebody serves again.
const LOOK: Duration = Duration::from_secs(1);
/// The door answers within this.
const SOON: Duration = Duration::from_secs(2);

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
            if run.takes_over || run.made_way || !which(run) {
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

    /// What was cut off goes on once somebody serves; if this box takes over it is another box then, and none of this goes on.
    pub(super) fn resume_when_settled(self: &Arc<Self>, open: Open) {
        let work = self.clone();
        self.tasks.spawn(async move {
            while work.nobody_serves() {
                tokio::select! {
                    () = tokio::time::sleep(LOOK) => {}
                    () = work.ending.cancelled() => return,
                }
            }
            work.resume(open).await;
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
                false => bury(&state).map(|news| Some((size, news))),
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
