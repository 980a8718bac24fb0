//! Takes over from a main box, gives back to it, and goes on with what was given: as runs that people see.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use polder_backup::{Folders as Backups, Repository, Snapshot, restore};
use polder_control::{Actor, Plan, RunId, Stand, TakeoverStatus, TakeoverWish};
use polder_site::Site;
use polder_spare::{Folders, Tombstones};
use polder_takeover::{
    Action, Facts, Permission, Side, Silence, allowed, become_main, choose, give_back, lease,
    receive, takeover,
};
use tokio_util::sync::CancellationToken;

use super::for_good::gone_is_said;
use super::pair::Seen;
use super::taking::{newest_of_main, store_of_main};
use super::{Halt, Refusal, Work, blocking, lock, with_source};
use crate::parts::Parts;
use crate::runs::Intent;

/// What a wish comes to on this box.
#[derive(Debug, Clone, PartialEq)]
pub struct Handing {
    /// The steps that people see.
    pub plan: Plan,
    /// What is done.
    pub actions: Vec<Action>,
}

impl<P: Parts> Work<P> {
    pub(crate) async fn takeover_status(&self) -> Result<Option<TakeoverStatus>, Refusal> {
        let Some(seen) = self.pair_seen().await? else { return Ok(None) };
        let is_spare = seen.term.side == Side::Spare;
        let outlook = match (is_spare, seen.stand) {
            // What a steward would be told who types the name: nothing is done with it here.
            (true, Stand::Own) => self.facts(&seen, true).await.map(|facts| facts.sentences()),
            (true, Stand::Serves) => Ok(self.for_good(&seen).sentences()),
            _ => Ok(Vec::new()),
        };
        let main_is_there = is_spare && seen.status.as_ref().is_some_and(is_there);
        Ok(Some(TakeoverStatus {
            is_spare,
            other: seen.other,
            stand: seen.stand,
            term: seen.term.highest,
            yields: seen.term.yields,
            outlook,
            main_is_there,
        }))
    }

    pub(crate) async fn preview_takeover(&self, wish: TakeoverWish) -> Result<Plan, Refusal> {
        Ok(self.handing(&wish).await?.plan)
    }

    pub(crate) async fn take_over(
        self: &Arc<Self>,
        wish: TakeoverWish,
        by: Actor,
    ) -> Result<RunId, Refusal> {
        if wish == TakeoverWish::TakeBack {
            return Err(
                "a main box takes back by itself what its spare gives; give back there".to_owned()
            );
        }
        if wish == (TakeoverWish::BecomeMain { gone: None }) {
            let why = "say that the main box is gone for good, in a sentence that the plan names";
            return Err(why.to_owned());
        }
        self.apply(Intent::Takeover(wish), by).await
    }

    /// What a wish comes to, or why it cannot be had.
    pub(super) async fn handing(&self, wish: &TakeoverWish) -> Result<Handing, Refusal> {
        let none = "this box is paired with no other; do that on the page Spare first";
        let Some(seen) = self.pair_seen().await? else {
            let TakeoverWish::BecomeMain { gone } = wish else { return Err(none.to_owned()) };
            let facts = self.retired_already().await?.ok_or(none)?;
            gone_is_said(gone.as_deref(), &facts.main)?;
            let (plan, actions) = become_main(&facts);
            return Ok(Handing { plan, actions });
        };
        let (plan, actions) = match wish {
            TakeoverWish::TakeOver { dead } => {
                if dead.as_ref().is_some_and(|typed| *typed != seen.other) {
                    return Err(format!(
                        "the main box is called {}; type that, if it is off and stays off",
                        seen.other
                    ));
                }
                takeover(&self.facts(&seen, dead.is_some()).await?)
            }
            TakeoverWish::GiveBack => {
                let (plan, mut actions) = give_back(&seen.other, seen.term.highest);
                let handed = seen.term.given.is_some();
                if seen.term.side != Side::Spare || !seen.term.theirs {
                    return Err("this box does not stand in for another one, so there is nothing to give back".to_owned());
                }
                if handed {
                    // What was cut off goes on: the state is out of this box's hands.
                    let skipped = actions.iter().position(|a| *a == Action::Await).unwrap_or(0);
                    actions.drain(..skipped);
                    let steps = plan.steps[skipped..].to_vec();
                    return Ok(Handing { plan: Plan { steps, ..plan }, actions });
                }
                if !seen.status.as_ref().is_some_and(is_there) {
                    return Err(format!(
                        "{} is not there; turn it on, see that it reaches this box, and ask again",
                        seen.other
                    ));
                }
                (plan, actions)
            }
            TakeoverWish::BecomeMain { gone } => {
                if seen.stand != Stand::Serves || seen.term.side != Side::Spare {
                    return Err("this box does not stand in for another one, so it cannot stay in its place".to_owned());
                }
                gone_is_said(gone.as_deref(), &seen.other)?;
                become_main(&self.for_good(&seen))
            }
            TakeoverWish::Send => {
                if seen.term.side == Side::Spare {
                    return Err(
                        "this box is the spare; models are sent from its main box".to_owned()
                    );
                }
                return self.sending(&seen.other).await;
            }
            TakeoverWish::TakeBack => {
                let given = self.given().await?.ok_or("the spare gives nothing back just now")?;
                seen.term
                    .taking(&given)
                    .ok_or("this box has taken back what the spare gives already, or has heard of something newer; nothing was changed")?;
                receive(&seen.other, given.term)
            }
        };
        Ok(Handing { plan, actions })
    }

    /// Everything that a takeover is about, or why there can be none.
    async fn facts(&self, seen: &Seen, said_dead: bool) -> Result<Facts, Refusal> {
        let status = seen.status.clone().ok_or(
            "the part that speaks with the main box does not answer yet; ask again in a moment",
        )?;
        let permission = match seen.is_begun() {
            true => Permission::Begun,
            false => allowed(&seen.term, &seen.other, &silence(&status, said_dead))?,
        };
        let (backup, main) = self.newest_of_main().await?;
        let state = self.state.clone();
        let revoked =
            blocking(move || Tombstones::all(&Folders::of(&state)).map_err(|e| e.to_string()));
        let age = backup
            .time
            .parse::<jiff::Timestamp>()
            .map_or(0, |at| jiff::Timestamp::now().as_second() - at.as_second());
        Ok(Facts {
            main: seen.other.clone(),
            spare: self.board.site().name.to_string(),
            backup: (backup.id.chars().take(8).collect(), age),
            term: seen.term.highest,
            permission,
            choices: self.choices(&main).await?,
            revoked: revoked.await?.len(),
        })
    }

    pub(super) async fn choices(
        &self,
        main: &Site,
    ) -> Result<Vec<polder_takeover::Choice>, Refusal> {
        let (machine, imported) = (self.machine().await, self.imported().await?);
        let fits = |site: &Site| self.shelf.fits(site, &machine);
        Ok(choose(main, &self.board.site(), &imported.into_iter().collect(), &fits))
    }

    /// The main box's newest backup, and the site in it.
    async fn newest_of_main(&self) -> Result<(Snapshot, Site), Refusal> {
        let state = self.state.clone();
        blocking(move || {
            let say = |error: polder_backup::BackupError| with_source(&error);
            let (store, _) = store_of_main(&state)?;
            let newest = newest_of_main(&state, &store)?;
            let text = store.lines(&newest, "site.toml").map_err(say)?.join("\n");
            let site = Site::from_toml(&text).map_err(|error| error.to_string())?;
            Ok((newest, site))
        })
        .await
    }

    /// One step of a run.
    pub(super) async fn hand_over(
        self: &Arc<Self>,
        id: RunId,
        step: usize,
        wish: &TakeoverWish,
        action: Action,
        cancel: &CancellationToken,
    ) -> Result<(), Halt> {
        let done = self.hand_over_step(id, step, wish, &action, cancel).await;
        match done {
            Ok(()) if matches!(action, Action::PutInPlace | Action::PutBack) => {
                self.anew.cancel();
                // The ledger of the box that was here goes with it.
                Err(Halt::Interrupted)
            }
            Ok(()) => Ok(()),
            // It is said to be ready, so that the next start puts it in place, whatever failed after that.
            Err(why) if restore::pending(&Backups::of(&self.state)) => {
                log::error!("{why}; it is put in place all the same");
                self.anew.cancel();
                Err(Halt::Interrupted)
            }
            Err(_) if cancel.is_cancelled() => Err(Halt::Cancelled),
            Err(_) if self.ending.is_cancelled() => Err(Halt::Interrupted),
            Err(why) => Err(Halt::Failed(step, why)),
        }
    }

    /// After a run that failed or was stopped: what was fetched has the other box's secrets, and goes.
    pub(super) async fn come_to_nothing(&self, wish: &TakeoverWish) {
        // Until it was handed over the state is this box's, and it serves on.
        self.pair.handing.store(false, Ordering::Relaxed);
        drop(lock(&self.pair.turn).take());
        if matches!(wish, TakeoverWish::TakeOver { .. }) {
            self.takeover_failed();
        }
        if matches!(wish, TakeoverWish::Send | TakeoverWish::BecomeMain { .. }) {
            return;
        }
        if *wish == TakeoverWish::TakeBack {
            *lock(&self.pair.not_taken) = Some(Instant::now());
        }
        let backups = Backups::of(&self.state);
        let gone = blocking(move || restore::give_up(&backups).map_err(|e| with_source(&e))).await;
        if let Err(why) = gone {
            log::warn!("{why}");
        }
    }

    async fn hand_over_step(
        self: &Arc<Self>,
        id: RunId,
        step: usize,
        wish: &TakeoverWish,
        action: &Action,
        cancel: &CancellationToken,
    ) -> Result<(), Refusal> {
        let back = *wish == TakeoverWish::TakeBack;
        match action {
            Action::Fetch => self.fetch_to_take(id, step, back, cancel).await,
            Action::Examine => {
                let backups = Backups::of(&self.state);
                blocking(move || restore::examine(&backups).map(drop).map_err(|e| with_source(&e)))
                    .await
            }
            Action::Fit => self.fit(back).await,
            Action::Raise => self.raise().await,
            Action::PutInPlace => self.put_in_place(back).await,
            Action::CloseDoor => self.close_door(cancel).await,
            Action::Save => self.save_last(id, step).await,
            Action::Hand => self.hand(id, step).await,
            Action::Await => self.await_main(cancel).await,
            Action::PutBack => self.put_back_own().await,
            Action::Send(recipe) => self.send_model(id, step, recipe, cancel).await,
            Action::Retire => self.retire_main().await,
            Action::WriteRole => self.write_role().await,
            Action::Listen => match self.link_settles(step).await {
                Err(Halt::Failed(_, why)) => Err(why),
                _ => Ok(()),
            },
        }
    }
}

/// Whether the main box was heard a moment ago.
pub(super) fn is_there(status: &polder_control::SpareStatus) -> bool {
    let soon = i64::try_from(lease().0.as_secs()).unwrap_or(i64::MAX).min(10);
    status.silent.is_some_and(|seconds| (0..soon).contains(&seconds))
}

fn silence(status: &polder_control::SpareStatus, said_dead: bool) -> Silence {
    let since = status.silent.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(0);
    // The part knows how long it was there itself to hear something, and counts no longer than that.
    let (lease, margin) = lease();
    let waits = (lease + margin).as_secs();
    let long = status
        .silent
        .is_some_and(|seconds| !(0..i64::try_from(waits).unwrap_or(i64::MAX)).contains(&seconds));
    let silent = status.may_take_over && long;
    let since = if silent { since.max(waits) } else { since.min(waits - 1) };
    Silence { since: Duration::from_secs(since), yields: status.yields, said_dead }
}
