//! Takes over from a main box, gives back to it, and goes on with what was given: as runs that people see.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use polder_backup::{
    Folders as Backups, KitKey, Location, Record, Repository, Restic, Snapshot, Stop, gather,
    restore,
};
use polder_control::{
    Actor, Client, DoorReply, DoorRequest, Plan, Progress, RunId, SpareReply, SpareRequest, Stand,
    TakeoverStatus, TakeoverWish,
};
use polder_site::{BackupPlace, Site, Spare, SpareRole, Store};
use polder_spare::{Folders, Former, Peer, Tombstones};
use polder_takeover::{
    Action, Facts, ForGood, Permission, Side, Silence, Term, adapt, allowed, become_main, choose,
    give_back, lease, models, receive, takeover,
};
use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;

use super::pair::{Seen, change_term};
use super::{Halt, Refusal, Work, blocking, lock, with_source};
use crate::parts::Parts;
use crate::runs::Intent;

/// Between two looks at whether the main box serves, and at whether the door is closed.
const LOOK: Duration = Duration::from_millis(300);
/// A turn at the backups is waited for so long before the door closes.
const TURN: Duration = Duration::from_secs(60);
/// So many last backups are made where the audit trail goes on after each.
const MOST_SAVES: usize = 5;
/// Files in the state folder that are about this machine, and stay when another box's state comes to it.
const MACHINE: [&str; 2] = ["power", "upstreams"];

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

    /// What there is to know before this box, which stands in, is the main box for good.
    fn for_good(&self, seen: &Seen) -> ForGood {
        let port = self.board.site().spare.map_or(polder_spare::PORT, |spare| spare.port);
        ForGood {
            main: seen.other.clone(),
            there: seen.status.as_ref().is_some_and(is_there),
            term: seen.term.highest,
            port,
            own: seen.term.own.clone(),
            retired: false,
        }
    }

    /// The main box is out, and the site does not say yet that this box is in its place: it was cut off in between. Another one, that was followed long
    /// ago, is none of this.
    async fn retired_already(&self) -> Result<Option<ForGood>, Refusal> {
        let Some(spare) = self.board.site().spare.filter(|s| s.role == SpareRole::ForAnother)
        else {
            return Ok(None);
        };
        let state = self.state.clone();
        let cut_off = blocking(move || Ok(Former::unfinished(&Folders::of(&state))));
        Ok(cut_off.await?.map(|former| ForGood {
            main: former.name,
            there: false,
            term: former.term,
            port: spare.port,
            own: None,
            retired: true,
        }))
    }

    async fn retire_main(&self) -> Result<(), Refusal> {
        match self.ask_spare_part(&SpareRequest::Retire).await? {
            SpareReply::Done => Ok(()),
            _ => Err("the part that speaks with the main box answered something else".to_owned()),
        }
    }

    /// The main box is out: this one is to have a spare of its own, and can be paired with one.
    async fn write_role(self: &Arc<Self>) -> Result<(), Refusal> {
        let mut site = self.board.site();
        let spare = site.spare.unwrap_or(Spare::of(SpareRole::OfThis));
        site.spare = Some(Spare { role: SpareRole::OfThis, ..spare });
        self.write_site(site, "is the main box for good".to_owned()).await?;
        let state = self.state.clone();
        blocking(move || Former::finish(&Folders::of(&state)).map_err(|e| e.to_string())).await
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

    async fn choices(&self, main: &Site) -> Result<Vec<polder_takeover::Choice>, Refusal> {
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
            let all = store.snapshots().map_err(say)?;
            let newest = restore::choose(&all, None, "this spare").map_err(say)?;
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

    async fn fetch_to_take(
        self: &Arc<Self>,
        id: RunId,
        step: usize,
        back: bool,
        cancel: &CancellationToken,
    ) -> Result<(), Refusal> {
        let _turn = self.turn_to_take(cancel).await?;
        let given = match back {
            true => {
                Some(self.given().await?.ok_or("the spare gives nothing back any more")?.snapshot)
            }
            false => None,
        };
        let (state, work, stop) = (self.state.clone(), self.clone(), Stop::default());
        let told = stop.clone();
        let fetching = blocking(move || {
            let say = |error: polder_backup::BackupError| with_source(&error);
            let backups = Backups::of(&state);
            let (store, key) = match back {
                true => store_on_spare(&state)?,
                false => store_of_main(&state)?,
            };
            let all = store.snapshots().map_err(say)?;
            let chosen = restore::choose(&all, given.as_deref(), "the spare").map_err(say)?;
            let mut observer = |progress: Progress| work.board.progress(id, step, progress);
            restore::expect(&backups, &key).map_err(say)?;
            restore::fetch(&backups, &store, &chosen, &mut observer, &told).map_err(say)
        });
        tokio::pin!(fetching);
        tokio::select! {
            done = &mut fetching => done,
            () = cancel.cancelled() => { stop.now(); fetching.await }
            () = self.ending.cancelled() => { stop.now(); fetching.await }
        }
    }

    /// What came becomes a box of this machine.
    async fn fit(&self, back: bool) -> Result<(), Refusal> {
        let incoming = restore::incoming(&Backups::of(&self.state));
        let read = incoming.clone();
        let came = blocking(move || {
            let site = Store::open(&read).and_then(|store| store.current());
            site.map_err(|e| with_source(&e))?.ok_or("the backup has no site.toml".to_owned())
        })
        .await?;
        let here = self.board.site();
        let next = match back {
            // The main box's own models and its own place for backups.
            true => {
                let site = adapt(&came, &here, here.engines.clone(), here.backup.clone());
                // With what its engines are called and which of them is to follow which.
                Site { aliases: here.aliases.clone(), succession: here.succession.clone(), ..site }
            }
            false => adapt(&came, &here, models(&came, &self.choices(&came).await?), None),
        };
        next.check().map_err(|error| error.to_string())?;
        let state = self.state.clone();
        blocking(move || {
            let store = Store::open(&incoming).map_err(|e| with_source(&e))?;
            store.write(&next, "on another machine").map_err(|e| with_source(&e))?;
            keep_of_machine(&state)
                .map_err(|error| format!("could not keep what is this machine's: {error}"))?;
            bury(&state)
        })
        .await
    }

    /// A trial restore gives way: nobody serves meanwhile.
    async fn turn_to_take(
        &self,
        cancel: &CancellationToken,
    ) -> Result<OwnedMutexGuard<()>, Refusal> {
        let turn = self.saving.clone().lock_owned();
        tokio::pin!(turn);
        loop {
            self.pair.hurry.notify_waiters();
            tokio::select! {
                turn = &mut turn => return Ok(turn),
                () = tokio::time::sleep(LOOK) => {}
                () = cancel.cancelled() => return Err("it was stopped".to_owned()),
                () = self.ending.cancelled() => return Err("the box ends".to_owned()),
            }
        }
    }

    /// From here on the main box serves nothing when it comes back.
    async fn raise(&self) -> Result<(), Refusal> {
        let seen = self.pair_seen().await?.ok_or("this box is paired with no other any more")?;
        // It was raised before this run was cut off.
        let begun = seen.status.as_ref().filter(|_| seen.is_begun()).and_then(|s| s.began);
        let began = match begun {
            Some(began) => began,
            None => match self.ask_spare_part(&SpareRequest::RaiseEpoch).await? {
                SpareReply::Epoch(began) => {
                    *lock(&self.pair.failed) = (0, None);
                    began
                }
                _ => {
                    let odd = "the part that speaks with the main box answered something else";
                    return Err(odd.to_owned());
                }
            },
        };
        let late = "this box has heard of a later term; look at the page Takeover";
        let begin = move |term: &mut Term| term.begin(began).then_some(()).ok_or(late.to_owned());
        self.change_term(begin).await
    }

    /// The term is put in place with the state, in the one go that no power cut divides.
    async fn put_in_place(&self, back: bool) -> Result<(), Refusal> {
        let seen = self.pair_seen().await?.ok_or("this box is paired with no other any more")?;
        let aside = restore::aside_now();
        let next = match back {
            true => {
                let given = self.given().await?.ok_or("the spare gives nothing back any more")?;
                seen.term.taking(&given).ok_or("another term began since")?
            }
            false if seen.term.leaves().is_some() => {
                return Err("it was left to the main box meanwhile".to_owned());
            }
            false => seen.term.placed(aside.clone()),
        };
        let state = self.state.clone();
        blocking(move || {
            let backups = Backups::of(&state);
            keep_beside(&backups, &next)?;
            restore::begin_anew(&backups).map_err(|e| with_source(&e))?;
            let key = restore::expected(&backups).map_err(|e| with_source(&e))?;
            restore::ready_as(&backups, &key, &aside).map_err(|e| with_source(&e))
        })
        .await
    }

    /// Comes back when nobody is let in any more. The turn at the backups is taken before: nobody is to wait for one at a closed door.
    async fn close_door(self: &Arc<Self>, cancel: &CancellationToken) -> Result<(), Refusal> {
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
    async fn save_last(self: &Arc<Self>, id: RunId, step: usize) -> Result<(), Refusal> {
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
    async fn hand(self: &Arc<Self>, id: RunId, step: usize) -> Result<(), Refusal> {
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
    async fn hand_at_rest(self: &Arc<Self>) -> Result<Option<u64>, Refusal> {
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

    async fn await_main(&self, cancel: &CancellationToken) -> Result<(), Refusal> {
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
    async fn put_back_own(&self) -> Result<(), Refusal> {
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

/// Whoever only looks has typed nothing.
fn gone_is_said(typed: Option<&str>, main: &str) -> Result<(), Refusal> {
    let sentence = TakeoverWish::gone_for_good(main);
    match typed.is_none_or(|typed| said(typed, &sentence)) {
        true => Ok(()),
        false => {
            Err(format!("type the sentence \"{sentence}\", if that is so; nothing was changed"))
        }
    }
}

/// Whether a sentence was typed, give or take how people write.
fn said(typed: &str, sentence: &str) -> bool {
    let plain = |text: &str| -> String {
        let words: Vec<&str> = text.split_whitespace().collect();
        words.join(" ").trim_end_matches('.').to_lowercase()
    };
    plain(typed) == plain(sentence)
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
    // One that agrees and runs on would serve beside this one if the link broke just then: it is to be turned off.
    Silence { since: Duration::from_secs(since), yields: status.yields, agrees: false, said_dead }
}

/// On a spare: its main box's backups, and the key to them.
fn store_of_main(state: &Path) -> Result<(Restic, KitKey), Refusal> {
    let folders = Folders::of(state);
    let none = "this box is paired with no other any more";
    let peer = Peer::read(&folders).map_err(|e| e.to_string())?.ok_or(none)?;
    let text = fs::read_to_string(folders.main_key()).map_err(|_| {
        format!("{} has not given this spare the key to its backups, so there is nothing to take over with; set its backups up, with the emergency kit, on its page Backups", peer.name)
    })?;
    let key = KitKey::typed(&text).map_err(|e| with_source(&e))?;
    let location = Location::Folder(folders.store_of(&peer.certificate));
    Ok((Restic::of(&location, &key, 0, &Backups::of(state).own()), key))
}

/// On a main box: the same, over the link.
fn store_on_spare(state: &Path) -> Result<(Restic, KitKey), Refusal> {
    let backups = Backups::of(state);
    let key = KitKey::of_box(&backups).map_err(|e| with_source(&e))?;
    // Wherever the box sends its own backups: what is given lies on the spare.
    let location =
        polder_backup::locate(&BackupPlace::Spare, &backups).map_err(|e| with_source(&e))?;
    Ok((Restic::of(&location, &key, 0, &backups.own()), key))
}

/// Files of this machine wait beside, to be put over what came.
fn keep_of_machine(state: &Path) -> std::io::Result<()> {
    let backups = Backups::of(state);
    let (also, incoming) = (restore::also(&backups), restore::incoming(&backups));
    for name in MACHINE {
        let theirs = incoming.join(name);
        if theirs.is_dir() {
            fs::remove_dir_all(&theirs)?;
        }
        copy_folder(&state.join(name), &also.join(name))?;
    }
    Ok(())
}

fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    if !from.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (kind, target) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else if kind.is_file() {
            // With its mode: secrets stay with their owner.
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// The term that is put in place with the state.
fn keep_beside(backups: &Backups, term: &Term) -> Result<(), Refusal> {
    let folder: PathBuf = restore::also(backups).join("spare");
    let path = folder.join("term.json");
    let kept =
        fs::create_dir_all(&folder).and_then(|()| polder_site::write_durably(&path, &term.text()));
    kept.map_err(|error| format!("could not write {}: {error}", path.display()))
}

/// What was revoked on the other box never works again here: it is kept where no restore takes it away, before anything is put in place.
fn bury(state: &Path) -> Result<(), Refusal> {
    let folders = Folders::of(state);
    let lines = Tombstones::all(&folders).map_err(|error| error.to_string())?;
    polder_members::keep_gone_lines(state, &lines.join("\n"))
        .map(drop)
        .map_err(|error| format!("what was revoked could not be kept: {error}"))
}
