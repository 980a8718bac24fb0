//! The other box: pairing with it, keeping in touch, leaving it, and on a spare the weekly trial restore of what it keeps.

use std::sync::Arc;
use std::time::Duration;

use polder_backup::{KitKey, Location, Repository, Restic, Stop, examine, restore};
use polder_control::{
    Actor, Client, Closed, PartState, RunId, SecretText, SpareReply, SpareRequest, Stand,
};
use polder_site::{Retention, Site, SiteChange, Spare, SpareRole};
use polder_spare::{Code, DrillFound, Folders, Former, Lease, Peer, Side};

use super::takeover::is_there;
use super::{Halt, Refusal, Work, blocking};
use crate::parts::{Part, Parts};
use crate::runs::Intent;

/// The part tells the other box, which may be away.
const LEAVE: Duration = Duration::from_secs(15);
/// Between two looks at what is due.
const LOOK: Duration = Duration::from_secs(5);
const DAY: i64 = 86_400;
const WEEK: i64 = 7 * DAY;
/// Of what is stored, this many percent are read in a trial restore.
const READ: u8 = 10;
/// Why a trial restore says nothing.
const GAVE_WAY: &str = "it gave way to a takeover";

impl<P: Parts> Work<P> {
    /// Proves to the spare that somebody here knows its code; from then on the box has a spare.
    pub(crate) async fn pair_spare(
        self: &Arc<Self>,
        address: String,
        code: SecretText,
        by: Actor,
    ) -> Result<RunId, Refusal> {
        let site = self.board.site();
        let at = Folders::of(&self.state);
        if site.spare.is_some_and(|spare| spare.role == SpareRole::ForAnother) {
            return Err("this box is a spare itself; let it be none first".to_owned());
        }
        if address.is_empty() || address.len() > 260 || address.contains(char::is_whitespace) {
            return Err("type the spare's address, such as ash.local or 192.168.1.20".to_owned());
        }
        let code: Code =
            code.expose().parse().map_err(|e: polder_spare::SpareError| e.to_string())?;
        self.record(by.clone(), "pairs the box with the spare at", &address).await?;
        let folders = self.folders();
        // Made at first use; the spare holds trial restores with it and may take over with it.
        let key = blocking(move || KitKey::of_box(&folders).map_err(|e| super::with_source(&e)));
        let key = Some(key.await?.expose().to_owned());
        let name = site.name.to_string();
        let peer = polder_spare::pair(&self.state, &address, &code, &name, key).await;
        let peer = peer.map_err(|error| error.to_string())?;
        let change = SiteChange::Spare(Spare::of(SpareRole::OfThis));
        let begun = self.apply(Intent::Change(change), by).await;
        if begun.is_err() {
            log::warn!("paired with {}, and then nothing came of it", peer.name);
            if let Err(error) = Peer::forget(&at) {
                log::error!("{error}");
            }
        }
        begun
    }

    /// Whether the part that speaks with other boxes has anything to do.
    pub(super) fn has_link(&self) -> bool {
        self.board.site().spare.is_some() || Former::any(&self.state)
    }

    /// The part runs where there is another box, and starts anew with what the site says of it now.
    pub(super) async fn tend_link(self: &Arc<Self>, before: &Site) {
        let now = self.board.site();
        if !self.has_link() {
            return self.stop_part(&Part::Spare).await;
        }
        if (before.spare, &before.name) != (now.spare, &now.name) {
            self.stop_part(&Part::Spare).await;
        }
        self.keeper(&Part::Spare).ensure();
    }

    pub(super) async fn link_settles(self: &Arc<Self>, step: usize) -> Result<(), Halt> {
        if !self.has_link() {
            return Ok(());
        }
        let keeper = self.keeper(&Part::Spare);
        tokio::select! {
            state = self.settles(&Part::Spare, &keeper) => match state {
                PartState::GaveUp(why) => Err(Halt::Failed(step, why)),
                _ => Ok(()),
            },
            () = self.ending.cancelled() => Err(Halt::Interrupted),
        }
    }

    /// The part tells the other box. Where the part does not answer, this box forgets the other one all the same.
    pub(super) async fn leave_spare(&self) -> Result<(), Refusal> {
        let seen = self.pair_seen().await;
        if let Err(why) = &seen {
            let folders = Folders::of(&self.state);
            let out = blocking(move || Ok(Lease::is_out(&folders))).await?;
            let heard = self.spare_status().await.as_ref().is_some_and(is_there);
            may_leave_unread(out, heard, why)?;
        }
        // A term that cannot be read is ended this way.
        if let Ok(Some(seen)) = seen {
            let heard = seen.status.as_ref().is_some_and(is_there);
            if seen.stand == Stand::Retired {
                let closed = Closed { stand: seen.stand, other: seen.other };
                return Err(closed.sentence());
            }
            // In the middle of a takeover the main box would be left with a spare that knows it no more.
            let stuck = seen.is_begun() && self.is_stuck();
            if self.takes_over() || (seen.is_begun() && !stuck) {
                return Err(polder_spare::TAKES_OVER.to_owned());
            }
            if seen.term.stands_in() || (seen.stand == Stand::Fenced && heard) {
                return Err(polder_spare::STANDS_IN.to_owned());
            }
            // The spare counts on the stop that this box has promised, and would take over by silence alone.
            if seen.term.side == polder_takeover::Side::Main && seen.term.yields && !heard {
                return Err(format!(
                    "{} cannot be heard, and may take over because this box has promised to stop then; see that it is off or can be reached, or, once you know that it does not serve, `polder spare yield off` at this machine",
                    seen.other
                ));
            }
        }
        let asked = async {
            let path = self.sockets.spare();
            let mut part: Client<SpareRequest, SpareReply> = Client::connect(&path).await?;
            part.ask_within(LEAVE, &SpareRequest::Unpair).await
        };
        match asked.await {
            Ok(SpareReply::Done) => Ok(()),
            // The main box does not answer, and its spare cannot take over: somebody has decided that the two are none any more.
            Ok(SpareReply::Refused(why)) if why == polder_spare::TAKES_OVER && self.is_stuck() => {
                let folders = Folders::of(&self.state);
                blocking(move || Peer::forget(&folders).map_err(|e| e.to_string())).await
            }
            Ok(SpareReply::Refused(why)) => Err(why),
            Ok(_) => Err("the link to the other box answered something else".to_owned()),
            // It may be asking the other box still, which may refuse: the two must not disagree.
            Err(error) if self.link_runs() => Err(format!(
                "the part that speaks with the other box does not answer ({error}); ask again in a moment"
            )),
            Err(error) => {
                log::warn!("the other box is not told that the two are no pair any more: {error}");
                let folders = Folders::of(&self.state);
                blocking(move || Peer::forget(&folders).map_err(|e| e.to_string())).await
            }
        }
    }

    fn link_runs(&self) -> bool {
        self.board.part(&Part::Spare).state == PartState::Ready
    }

    /// Holds what is due, by itself. To look costs next to nothing, and the first backup is proved as soon as it is there.
    pub(super) fn look_after_what_is_kept(self: &Arc<Self>) {
        let work = self.clone();
        self.tasks.spawn(async move {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(LOOK) => work.prove_what_is_kept().await,
                    () = work.ending.cancelled() => return,
                }
            }
        });
    }

    /// On a spare: once a week the newest backup is restored for a trial, a failed one again after a day.
    async fn prove_what_is_kept(self: &Arc<Self>) {
        let role = self.board.site().spare.map(|spare| spare.role);
        let pauses = self.power.borrow().pauses_work() || self.nobody_serves();
        if role != Some(SpareRole::ForAnother) || pauses {
            return;
        }
        let at = Folders::of(&self.state);
        let Some(kept) = blocking(move || Ok(Kept::of(at))).await.ok().flatten() else { return };
        let now = jiff::Timestamp::now().as_second();
        let last = DrillFound::read(&kept.at);
        if !is_due(last.as_ref(), now) {
            return;
        }
        let Ok(_turn) = self.saving.try_lock() else { return };
        let found = self.drill_kept(&kept).await;
        // It is due still.
        if self.ending.is_cancelled() || found.as_ref().is_err_and(|why| why == GAVE_WAY) {
            return;
        }
        let bad_before = last.is_some_and(|last| last.found.is_err());
        let title = "the weekly trial restore of the main box";
        match &found {
            Ok(_) => self.note(Actor::Itself, "finished", title).await,
            Err(why) => {
                log::error!("{title} failed: {why}");
                if !bad_before {
                    self.note(Actor::Itself, "failed at", title).await;
                }
            }
        }
        let report = DrillFound { at: jiff::Timestamp::now().as_second(), found };
        if let Err(error) = report.keep(&kept.at) {
            log::error!("{error}");
        }
    }

    async fn drill_kept(&self, kept: &Kept) -> Result<String, String> {
        let stop = Stop::default();
        let (own, store, told) = (self.folders(), kept.store(&self.folders()), stop.clone());
        let fetch = async {
            let (own, store, told) = (own.clone(), store.clone(), told.clone());
            let folder = kept.store.clone();
            blocking(move || {
                let say = |error| super::with_source(&error);
                let all = store.snapshots().map_err(say)?;
                let newest = restore::choose_arrived(&all, &folder, "the spare").map_err(say)?;
                restore::clear(&own.drill()).map_err(say)?;
                store.fetch(&newest, &own.drill(), &mut |_| {}, &told).map_err(say)?;
                examine(&own.drill()).map(|examined| examined.words()).map_err(say)
            })
            .await
        };
        let words = self.unless_ending(fetch, &stop).await?;
        let started = async {
            super::backup::start_drill(&own.drill()).await.map_err(|e| super::with_source(&e))
        };
        self.unless_ending(started, &stop).await?;
        let check = blocking(move || {
            let say = |error| super::with_source(&error);
            store.check(READ, &told).map_err(say)?;
            // Nobody else may: the main box can only add.
            store.thin(&Retention::default(), &told).map(drop).map_err(say)
        });
        self.unless_ending(check, &stop).await?;
        Ok(format!("the newest backup is {words}; a door started on it"))
    }

    async fn unless_ending<T>(
        &self,
        work: impl Future<Output = Result<T, String>>,
        stop: &Stop,
    ) -> Result<T, String> {
        tokio::pin!(work);
        tokio::select! {
            done = &mut work => done,
            () = self.ending.cancelled() => {
                stop.now();
                Err("the box went down in the middle of it".to_owned())
            }
            () = self.pair.hurry.notified() => {
                stop.now();
                // What it reads must have ended before something else is put in the same place.
                let _ = work.await;
                Err(GAVE_WAY.to_owned())
            }
        }
    }
}

/// Whether a box that cannot read its own term may leave the other one. `out`: whether it has heard that it is out for good, in the words of the other file
/// that says so, where that can be read. Without a pair a box serves: one that is out must not come to that.
fn may_leave_unread(out: Option<bool>, heard: bool, why: &str) -> Result<(), Refusal> {
    match (out, heard) {
        (Some(true), _) => Err(Closed { stand: Stand::Retired, other: String::new() }.sentence()),
        // The other box is asked first, and says no to one that is out.
        (Some(false), _) | (None, true) => Ok(()),
        (None, false) => Err(format!(
            "{why}; whether this box is out for good cannot be read either, so it forgets nothing before it hears the other box; see that that one can be reached, or make this machine new"
        )),
    }
}

/// What this box keeps of its main box.
struct Kept {
    at: Folders,
    key: KitKey,
    store: std::path::PathBuf,
}

impl Kept {
    /// Nothing before there is a pair, its key and a backup.
    fn of(at: Folders) -> Option<Self> {
        let peer = Peer::read(&at).ok().flatten().filter(|peer| peer.side == Side::Spare)?;
        let key = std::fs::read_to_string(at.main_key()).ok()?;
        let key = KitKey::typed(&key).ok()?;
        let store = at.store_of(&peer.certificate);
        std::fs::read_dir(store.join("snapshots")).ok()?.next()?.ok()?;
        Some(Self { at, key, store })
    }

    fn store(&self, own: &polder_backup::Folders) -> Restic {
        Restic::of(&Location::Folder(self.store.clone()), &self.key, 0, &own.own())
    }
}

/// A clock that was set back makes due what lies in its future.
fn is_due(last: Option<&DrillFound>, now: i64) -> bool {
    last.is_none_or(|last| {
        let every = if last.found.is_ok() { WEEK } else { DAY };
        !(0..every).contains(&now.saturating_sub(last.at))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_box_that_is_out_for_good_and_cannot_read_its_term_does_not_forget_that() {
        let may = |out, heard| may_leave_unread(out, heard, "it is damaged");
        for heard in [true, false] {
            assert!(may(Some(true), heard).unwrap_err().contains("out for good"));
            assert_eq!(may(Some(false), heard), Ok(()));
        }
        assert!(may(None, false).unwrap_err().contains("it is damaged; whether"));
        assert_eq!(may(None, true), Ok(()));
    }

    #[test]
    fn a_trial_is_due_at_the_first_backup_every_week_and_the_day_after_a_bad_one() {
        let found = |at, found: Result<&str, &str>| DrillFound {
            at,
            found: found.map(str::to_owned).map_err(str::to_owned),
        };
        assert!(is_due(None, 0));
        let good = found(1_000_000, Ok("well"));
        assert!(
            !is_due(Some(&good), 1_000_000 + WEEK - 1) && is_due(Some(&good), 1_000_000 + WEEK)
        );
        assert!(is_due(Some(&good), 5));
        let bad = found(1_000_000, Err("it has no site.toml"));
        assert!(!is_due(Some(&bad), 1_000_000 + DAY - 1) && is_due(Some(&bad), 1_000_000 + DAY));
    }
}
