//! Carries out what is to be done about backups: every hour by itself, and as runs that people see.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use polder_backup::{
    BackupAction, BackupError, Drill, Due, Failure, Folders, KitKey, LeftOut, Record, Repository,
    Restic, Stop, Store, due, examine, gather, locate, look, restore,
};
use polder_control::{
    Actor, BackupSeen, BackupStatus, BackupWish, Client, DoorReply, DoorRequest, KitWords,
    LastBackup, Plan, Progress, RunId, Sockets, Told,
};
use polder_site::{Backup, BackupPlace, EngineSlot, Site, SiteChange};
use tokio_util::sync::CancellationToken;

use super::{Halt, Refusal, Work, blocking, with_source};
use crate::children::Children;
use crate::fit::fit_restored;
use crate::foreign;
use crate::parts::{Part, Parts, Process};
use crate::runs::Intent;

/// Between two looks at what is due, and from the start to the first one.
const LOOK: Duration = Duration::from_secs(30);
const FIRST_LOOK: Duration = Duration::from_secs(10);
/// How long a place for backups is waited for when a change is planned.
const LOOK_AT_STORE: Duration = Duration::from_secs(12);
/// A gateway on a restored box has this long to answer.
const DRILL: Duration = Duration::from_secs(30);
/// Of what is stored, this many percent are read in a drill: all of it in ten weeks, more or less.
const READ: u8 = 10;

impl<P: Parts> Work<P> {
    pub(super) fn folders(&self) -> Folders {
        Folders::of(&self.state)
    }

    pub(crate) async fn backup_status(&self) -> Result<BackupStatus, Refusal> {
        let (folders, site, state) = (self.folders(), self.board.site(), self.state.clone());
        let usb = self.image.as_ref().map(|image| image.usb().clone()).unwrap_or_default();
        blocking(move || {
            let left = LeftOut::noted(&state, &site);
            let left_out = left.iter().map(LeftOut::sentence).collect();
            let disks = usb.on_usb();
            Ok(BackupStatus { left_out, disks, ..status(Record::read(&folders), &site) })
        })
        .await
    }

    /// The key, to be written down; who sees it is written down too.
    pub(crate) async fn backup_kit(self: &Arc<Self>, by: Actor) -> Result<KitWords, Refusal> {
        self.record(by, "looked at", "the key of the backups").await?;
        let folders = self.folders();
        let key = blocking(move || KitKey::of_box(&folders).map_err(|e| sentence(&e))).await?;
        Ok(KitWords(key.expose().to_owned()))
    }

    pub(crate) async fn confirm_kit(
        self: &Arc<Self>,
        typed: KitWords,
        by: Actor,
    ) -> Result<(), Refusal> {
        let folders = self.folders();
        blocking(move || {
            let typed = KitKey::typed(&typed.0).map_err(|e| sentence(&e))?;
            let none = "this box has no key yet; look at the emergency kit first";
            let key = KitKey::read(&folders).map_err(|e| sentence(&e))?.ok_or(none)?;
            match typed == key {
                true => Ok(()),
                false => Err("that is the key of another box, or of an earlier kit; type the one that this box shows".to_owned()),
            }
        })
        .await?;
        self.record(by, "has on paper", "the key of the backups").await?;
        let folders = self.folders();
        blocking(move || {
            let now = jiff::Timestamp::now().as_second();
            let changed = Record::change(&folders, |record| record.kit_confirmed = Some(now));
            changed.map(drop).map_err(|e| sentence(&e))
        })
        .await
    }

    pub(crate) async fn preview_backup(&self, wish: BackupWish) -> Result<Plan, Refusal> {
        Ok(self.plan_of(&Intent::Backup(wish)).await?.0)
    }

    /// Lets a run in. The key for a restore is kept beside the ledger, which everybody may see.
    pub(crate) async fn back_up(
        self: &Arc<Self>,
        wish: BackupWish,
        key: Option<KitWords>,
        by: Actor,
    ) -> Result<RunId, Refusal> {
        if let BackupWish::Restore { from, .. } = &wish {
            let typed = key.ok_or("a restore needs the key of the emergency kit; type it")?;
            let (folders, from) = (self.folders(), from.clone());
            // Found out before anything is let in: whether the place is there and the key opens it.
            blocking(move || {
                let key = KitKey::typed(&typed.0).map_err(|e| sentence(&e))?;
                let location = locate(&from, &folders).map_err(|e| sentence(&e))?;
                let store = Restic::of(&location, &key, 0, &folders.own());
                match look(&store, &location).map_err(|e| sentence(&e))? {
                    Store::Ours(1..) => {}
                    _ => return Err(sentence(&BackupError::NoStore(location.shown()))),
                }
                restore::expect(&folders, &key).map_err(|e| sentence(&e))
            })
            .await?;
        }
        self.apply(Intent::Backup(wish), by).await
    }

    /// Why a wish cannot be had, before there is a plan.
    pub(super) fn backup_wish(
        &self,
        wish: &BackupWish,
        site: &Site,
    ) -> Result<BackupWish, Refusal> {
        match wish {
            BackupWish::Restore { .. } => {}
            BackupWish::Now | BackupWish::Drill if site.backup.is_none() => {
                return Err("nobody has said where backups go; say so on the page Backups, or with `polder backup to PLACE`".to_owned());
            }
            BackupWish::Now | BackupWish::Drill => self.kit_is_on_paper()?,
        }
        Ok(wish.clone())
    }

    fn kit_is_on_paper(&self) -> Result<(), Refusal> {
        match Record::read(&self.folders()).kit_confirmed {
            Some(_) => Ok(()),
            None => Err("nobody has the key of the backups on paper yet; print the emergency kit and type it back first, on the page Backups or with `polder backup kit`".to_owned()),
        }
    }

    /// What is at a place that backups are to go to.
    pub(super) async fn store_at(&self, backup: &Backup) -> Result<Store, Refusal> {
        self.kit_is_on_paper()?;
        if let Some(trouble) = self.disk_trouble(&backup.to) {
            return Err(trouble);
        }
        let (folders, backup) = (self.folders(), backup.clone());
        let to = backup.to.shown();
        let looks = blocking(move || {
            let key = KitKey::of_box(&folders).map_err(|e| sentence(&e))?;
            let location = locate(&backup.to, &folders).map_err(|e| sentence(&e))?;
            let store = Restic::of(&location, &key, backup.limit_kib, &folders.own());
            look(&store, &location).map_err(|e| sentence(&e))
        });
        // A server that says nothing must hold up neither a start nor everybody's other wishes.
        match tokio::time::timeout(LOOK_AT_STORE, looks).await {
            Ok(found) => found,
            Err(_) => {
                Err(format!("{to} does not answer; see that it can be reached, then try again"))
            }
        }
    }

    /// One step of a run.
    pub(super) async fn backup_action(
        self: &Arc<Self>,
        id: RunId,
        step: usize,
        action: BackupAction,
        place: BackupPlace,
        snapshot: Option<String>,
        cancel: &CancellationToken,
    ) -> Result<(), Halt> {
        let _turn = self.saving.lock().await;
        let work = self.clone();
        let observer = move |progress| work.board.progress(id, step, progress);
        let done = self.do_about_backups(action, place, snapshot, observer, cancel).await;
        match done {
            Ok(()) if action == BackupAction::PutInPlace => {
                self.anew.cancel();
                // The ledger of the box that was here goes with it.
                Err(Halt::Interrupted)
            }
            Ok(()) => Ok(()),
            Err(BackupError::Stopped) if cancel.is_cancelled() => {
                self.give_up_restore(action).await;
                Err(Halt::Cancelled)
            }
            Err(BackupError::Stopped) => Err(Halt::Interrupted),
            Err(error) => {
                self.give_up_restore(action).await;
                Err(Halt::Failed(step, sentence(&error)))
            }
        }
    }

    /// A restore that failed leaves nothing: neither what was fetched nor the key that was typed for it.
    async fn give_up_restore(&self, action: BackupAction) {
        use BackupAction::{ExamineRestore, FetchForRestore, FitRestore, PutInPlace};
        if !matches!(action, FetchForRestore | ExamineRestore | FitRestore | PutInPlace) {
            return;
        }
        let folders = self.folders();
        let gone = blocking(move || restore::give_up(&folders).map_err(|e| sentence(&e))).await;
        if let Err(why) = gone {
            log::warn!("{why}");
        }
    }

    async fn do_about_backups(
        self: &Arc<Self>,
        action: BackupAction,
        place: BackupPlace,
        snapshot: Option<String>,
        observer: impl Fn(Progress) + Send + 'static,
        cancel: &CancellationToken,
    ) -> Result<(), BackupError> {
        let (folders, site) = (self.folders(), self.board.site());
        if action == BackupAction::StartDrill {
            let folder = folders.drill();
            let held = tokio::select! {
                held = start_drill(&folder) => held,
                () = cancel.cancelled() => Err(BackupError::Stopped),
                () = self.ending.cancelled() => Err(BackupError::Stopped),
            };
            return self.noted(action, held).await;
        }
        if action == BackupAction::FitRestore {
            let (state, shelf, machine) =
                (self.state.clone(), self.shelf.clone(), self.machine().await);
            let fitted = blocking(move || fit_restored(&state, &*shelf, &machine).map(drop)).await;
            return fitted.map_err(BackupError::NotWhole);
        }
        let lent = match self.lend_disk(action, &place).await {
            Ok(lent) => lent,
            Err(error) => return self.noted(action, Err(error)).await,
        };
        let before = lent.as_ref().map(|_| Record::read(&folders).saved);
        let kept = folders.clone();
        let stop = Stop::default();
        let (told, state) = (stop.clone(), self.state.clone());
        let mut working = tokio::task::spawn_blocking(move || {
            let reading = Reading { folders, site, state: &state };
            reading.act(action, &place, snapshot.as_deref(), &observer, &told)
        });
        let ended = tokio::select! {
            ended = &mut working => ended,
            () = async { tokio::select! { () = cancel.cancelled() => (), () = self.ending.cancelled() => () } } => {
                stop.now();
                working.await
            }
        };
        let broke = |_| {
            Err(BackupError::NotWhole(
                "that broke down inside the box; the log says where".to_owned(),
            ))
        };
        let mut done = ended.unwrap_or_else(broke);
        if let Some(lent) = lent {
            done = self.after_lending(lent, done).await;
        }
        // What was written may not be on a disk that went, or could not be closed.
        if let Some(before) = before.filter(|_| done.is_err())
            && let Err(error) = Record::change(&kept, |record| record.saved = before)
        {
            log::error!("{}", sentence(&error));
        }
        self.noted(action, done).await
    }

    /// What came of a step is kept, for the dashboard and for when the next one is due.
    async fn noted(
        &self,
        action: BackupAction,
        done: Result<(), BackupError>,
    ) -> Result<(), BackupError> {
        let folders = self.folders();
        let work = move || {
            let now = jiff::Timestamp::now().as_second();
            if done.is_err() && is_of_a_drill(action) {
                forget_drill(&folders);
            }
            let why = match &done {
                Ok(()) | Err(BackupError::Stopped) => return done,
                Err(error) => sentence(error),
            };
            use BackupAction::{
                CheckStore, ExamineDrill, FetchForDrill, MakeStore, Save, StartDrill, Thin,
            };
            let noted = match action {
                MakeStore | Save | Thin(_) => Record::change(&folders, |record| {
                    let thinning = matches!(action, Thin(_));
                    record.failed = Some(Failure { at: now, why, thinning });
                }),
                FetchForDrill | ExamineDrill | StartDrill | CheckStore => {
                    Record::change(&folders, |record| {
                        record.drill = Some(Drill { at: now, found: Err(why) });
                    })
                }
                _ => return done,
            };
            if let Err(error) = noted {
                log::error!("{}", sentence(&error));
            }
            done
        };
        tokio::task::spawn_blocking(work).await.unwrap_or(Err(BackupError::Stopped))
    }

    /// Makes what is due, by itself. A backup an hour would fill the list of runs and the trail; only what changes is written there.
    pub(super) fn look_after_backups(self: &Arc<Self>) {
        // What a restore brings in may take hours; backups do not wait for it.
        let bringing = self.clone();
        self.tasks.spawn(async move {
            // One that a power cut has ended; a run that was cut off with it may be at it again already.
            if let Ok(_turn) = bringing.saving.try_lock() {
                bringing.take_disk_back().await;
                let folders = bringing.folders();
                let _ = tokio::task::spawn_blocking(move || forget_drill(&folders)).await;
            }
            bringing.after_a_restore().await;
        });
        // Whoever only waits for an hour to pass keeps nothing of the supervisor alive.
        let (work, ending) = (Arc::downgrade(self), self.ending.clone());
        self.tasks.spawn(async move {
            let mut pause = FIRST_LOOK;
            loop {
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = ending.cancelled() => return,
                }
                pause = LOOK;
                let Some(work) = work.upgrade() else { return };
                work.do_what_is_due().await;
            }
        });
    }

    async fn do_what_is_due(self: &Arc<Self>) {
        let record = Record::read(&self.folders());
        let wanted = self.board.site().backup;
        let away = wanted.as_ref().and_then(|backup| self.disk_trouble(&backup.to));
        let back = self.disk_is_back(away.is_some());
        let far = match wanted.as_ref().map(|backup| &backup.to) {
            Some(BackupPlace::Server(_)) => true,
            Some(BackupPlace::Spare) => polder_spare::Peer::is_far(&self.state),
            Some(BackupPlace::Folder(_) | BackupPlace::Disk { .. }) | None => false,
        };
        let metered = far && self.costs().await.is_some();
        let seen = BackupSeen { away, ..seen(&record, wanted.as_ref(), metered) };
        if let Err(error) = Told::Backup(seen).leave(&self.sockets) {
            log::warn!("the health part does not hear of backups: {error}");
        }
        let Some(backup) = wanted else { return };
        if self.nobody_serves() {
            return;
        }
        // What is left in the battery is for answers; and nothing begins that the end would cut off.
        if self.power.borrow().pauses_work() {
            return;
        }
        let now = jiff::Timestamp::now().as_second();
        // Whoever plugs the disk in again waits for no hour to pass.
        let missed = back && record.kit_confirmed.is_some() && record.failed.is_some();
        let Some(what) = missed.then_some(Due::Backup).or_else(|| due(&record, now, metered))
        else {
            return;
        };
        // Somebody is at it already.
        let Ok(_turn) = self.saving.try_lock() else { return };
        let actions = match what {
            Due::Backup => polder_backup::save_plan(&backup),
            Due::Drill => polder_backup::drill_plan(),
        };
        let gives_way = CancellationToken::new();
        let doing = async {
            for action in actions {
                let to = backup.to.clone();
                self.do_about_backups(action, to, None, |_| {}, &gives_way).await?;
            }
            Ok(())
        };
        tokio::pin!(doing);
        let outcome = tokio::select! {
            outcome = &mut doing => outcome,
            () = self.pair.hurry.notified() => {
                gives_way.cancel();
                doing.await
            }
        };
        let title = match what {
            Due::Backup => "the hourly backup",
            Due::Drill => "the weekly trial restore",
        };
        let bad_before = match what {
            Due::Backup => record.failed.is_some(),
            Due::Drill => record.drill.is_some_and(|drill| drill.found.is_err()),
        };
        match outcome {
            Err(BackupError::Stopped) => {}
            Err(error) => {
                log::error!("{title} failed: {}", sentence(&error));
                if !bad_before {
                    self.note(Actor::Itself, "failed at", title).await;
                }
            }
            Ok(()) if what == Due::Drill => self.note(Actor::Itself, "finished", title).await,
            Ok(()) if bad_before => self.note(Actor::Itself, "succeeded again with", title).await,
            Ok(()) => {}
        }
    }

    /// A restored box has the manifests of its models and not the models: they are brought in, one after the other.
    async fn after_a_restore(self: &Arc<Self>) {
        let marker = self.folders().restored();
        if !marker.exists() {
            return;
        }
        const TOLD: &str = "told\n";
        if std::fs::read_to_string(&marker).is_ok_and(|text| text != TOLD) {
            self.note(Actor::Itself, "was restored from", "a backup").await;
            for left in LeftOut::noted(&self.state, &self.board.site()) {
                self.note(Actor::Itself, "went on after the restore:", &left.sentence()).await;
            }
            if let Err(error) = std::fs::write(&marker, TOLD) {
                log::warn!("could not write {}: {error}", marker.display());
            }
        }
        for (name, slot) in self.board.site().engines {
            // A start takes up what was cut off, which may be this very model: only one comes in at a time.
            if !self.until_nothing_runs().await {
                return;
            }
            // Other servers have their models elsewhere.
            if !foreign::needs_weights(&slot)
                || self.imported().await.unwrap_or_default().contains(&slot.recipe)
            {
                continue;
            }
            let change = SiteChange::Engine { name, slot };
            if let Err(why) = self.apply(Intent::Change(change), Actor::Itself).await {
                log::error!("a model of the restored box is not brought in: {why}");
            }
        }
        if !self.until_nothing_runs().await {
            return;
        }
        // What could not be had today is tried again at the next start.
        let there = self.imported().await.unwrap_or_default();
        let lacks =
            |slot: &EngineSlot| foreign::needs_weights(slot) && !there.contains(&slot.recipe);
        if self.board.site().engines.values().any(lacks) {
            return;
        }
        if let Err(error) = std::fs::remove_file(&marker) {
            log::warn!("could not remove {}: {error}", marker.display());
        }
    }

    /// False when the box ends before that.
    async fn until_nothing_runs(&self) -> bool {
        while self.is_busy() || self.nobody_serves() {
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(500)) => {}
                () = self.ending.cancelled() => return false,
            }
        }
        !self.ending.is_cancelled()
    }
}

/// A copy of everybody's keys is not left lying about, however a drill ended.
fn forget_drill(folders: &Folders) {
    if let Err(error) = restore::clear(&folders.drill()) {
        log::error!("a trial restore could not be removed: {}", sentence(&error));
    }
}

fn is_of_a_drill(action: BackupAction) -> bool {
    use BackupAction::{CheckStore, ExamineDrill, FetchForDrill, StartDrill};
    matches!(action, FetchForDrill | ExamineDrill | StartDrill | CheckStore)
}

/// What a step works on, on a thread where it may block.
struct Reading<'a> {
    folders: Folders,
    site: Site,
    state: &'a Path,
}

impl Reading<'_> {
    fn act(
        &self,
        action: BackupAction,
        place: &BackupPlace,
        snapshot: Option<&str>,
        observer: &dyn Fn(Progress),
        stop: &Stop,
    ) -> Result<(), BackupError> {
        let folders = &self.folders;
        let mut observer = |progress| observer(progress);
        match action {
            BackupAction::MakeStore => self.store(place)?.make(),
            BackupAction::Save => self.save(place, &mut observer, stop),
            BackupAction::Thin(keep) => {
                let thinned = self.store(place)?.thin(&keep, stop)?;
                Record::change(folders, |record| {
                    record.saved.iter_mut().for_each(|saved| saved.thinned = thinned);
                })
                .map(drop)
            }
            BackupAction::FetchForDrill => {
                let store = self.store(place)?;
                let newest = restore::choose(&store.snapshots()?, None, &place.shown())?;
                restore::clear(&folders.drill())?;
                store.fetch(&newest, &folders.drill(), &mut observer, stop).map(drop)
            }
            BackupAction::ExamineDrill => examine(&folders.drill()).map(drop),
            BackupAction::CheckStore => {
                self.store(place)?.check(READ, stop)?;
                let at = jiff::Timestamp::now().as_second();
                let found =
                    Ok("the newest backup is a whole box, and a door started on it".to_owned());
                Record::change(folders, |record| record.drill = Some(Drill { at, found })).map(drop)
            }
            BackupAction::FetchForRestore => {
                let key = restore::expected(folders)?;
                let location = locate(place, folders)?;
                let store = Restic::of(&location, &key, 0, &folders.own());
                let all = store.snapshots()?;
                let chosen = restore::choose(&all, snapshot, &place.shown())?;
                restore::fetch(folders, &store, &chosen, &all, &mut observer, stop)
            }
            BackupAction::ExamineRestore => restore::examine(folders).map(drop),
            BackupAction::PutInPlace => {
                polder_backup::keep_pairing(folders)?;
                restore::begin_anew(folders)?;
                restore::tell_of_passwords(folders, &restore::examine(folders)?.made_at)?;
                restore::ready(folders, &restore::expected(folders)?)
            }
            // Not on this thread.
            BackupAction::StartDrill | BackupAction::FitRestore => Ok(()),
        }
    }

    fn store(&self, place: &BackupPlace) -> Result<Restic, BackupError> {
        let key = KitKey::of_box(&self.folders)?;
        let limit = self.site.backup.as_ref().map_or(0, |backup| backup.limit_kib);
        Ok(Restic::of(&locate(place, &self.folders)?, &key, limit, &self.folders.own()))
    }

    fn save(
        &self,
        place: &BackupPlace,
        observer: &mut dyn FnMut(Progress),
        stop: &Stop,
    ) -> Result<(), BackupError> {
        let stage = self.folders.stage();
        let store = self.store(place)?;
        gather(self.state, &stage, self.site.name.as_str())?;
        let saved = store.save(&stage, self.site.name.as_str(), observer, stop);
        // It holds secrets in the clear, as their own places do, and is of no use any more.
        restore::clear(&stage)?;
        let saved = saved?;
        Record::change(&self.folders, |record| {
            record.saved = Some(saved);
            record.failed = None;
        })
        .map(drop)
    }
}

/// Starts a gateway on a restored folder, at an address that only this machine reaches, and asks it who it is.
pub(super) async fn start_drill(folder: &Path) -> Result<(), BackupError> {
    let not_whole = |why: String| BackupError::NotWhole(why);
    let at = folder.to_owned();
    let examined = tokio::task::spawn_blocking(move || {
        let examined = examine(&at)?;
        only_here(&at).map_err(BackupError::NotWhole)?;
        Ok::<_, BackupError>(examined)
    });
    let examined = examined.await.map_err(|e| not_whole(e.to_string()))??;
    let program = std::env::current_exe().map_err(|e| not_whole(e.to_string()))?;
    let started = Children::of(&program, folder).start(&Part::Gateway).await;
    let mut process = started.map_err(|error| not_whole(with_source(&error)))?;
    let asked = async {
        let begun = Instant::now();
        loop {
            let path = Sockets::of(folder).gateway();
            let reply = async {
                let mut client: Client<DoorRequest, DoorReply> = Client::connect(&path).await?;
                client.ask_within(DRILL, &DoorRequest::Ready).await
            };
            match reply.await {
                Ok(DoorReply::Ready { fingerprint, claimed, .. }) => {
                    return Ok((fingerprint, claimed));
                }
                Ok(_) => return Err("its door answered something else than was asked".to_owned()),
                Err(error) if begun.elapsed() > DRILL => {
                    return Err(format!("its door did not answer: {error}"));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    };
    let answer = tokio::select! {
        answer = asked => answer,
        ended = process.ended() => Err(format!("its door ended: {ended}")),
    };
    process.kill();
    let _ = process.ended().await;
    let (fingerprint, claimed) = answer.map_err(not_whole)?;
    if fingerprint != examined.fingerprint {
        return Err(not_whole("its door shows another certificate authority".to_owned()));
    }
    if claimed != (examined.members > 0) {
        return Err(not_whole("its door does not know its members".to_owned()));
    }
    let folder = folder.to_owned();
    let cleared = tokio::task::spawn_blocking(move || restore::clear(&folder)).await;
    cleared.map_err(|e| not_whole(e.to_string()))?
}

/// The restored site keeps its name and gets a door of its own for the trial.
fn only_here(folder: &Path) -> Result<(), String> {
    let store = polder_site::Store::open(folder).map_err(|e| with_source(&e))?;
    let mut site = store.current().map_err(|e| with_source(&e))?.ok_or("it has no site.toml")?;
    let free = std::net::TcpListener::bind(("127.0.0.1", 0)).and_then(|l| l.local_addr());
    site.door.port = free.map_err(|e| format!("no port is free: {e}"))?.port();
    site.door.listen = vec![std::net::IpAddr::from([127, 0, 0, 1])];
    // A trial calls nobody: neither the relay nor an authority in the box's name.
    (site.certificate, site.dynamic_dns, site.alerts) = (None, None, None);
    (site.power, site.backup, site.spare) = (None, None, None);
    site.uplinks.clear();
    match std::fs::remove_file(folder.join("relay.pass")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.to_string()),
        _ => {}
    }
    store.write(&site, "for a trial").map(drop).map_err(|e| with_source(&e))?;
    let run = Sockets::of(folder);
    std::fs::create_dir_all(run.folder()).map_err(|e| e.to_string())
}

/// What the health part is to know.
fn seen(record: &Record, backup: Option<&Backup>, metered: bool) -> BackupSeen {
    BackupSeen {
        away: None,
        to: backup.map(|backup| backup.to.shown()),
        last: record.saved.as_ref().map(|saved| saved.at),
        failed: record.failed.as_ref().map(|failed| failed.why.clone()),
        drill: record.drill.as_ref().map(|drill| drill.at),
        drill_failed: record.drill.as_ref().and_then(|drill| drill.found.clone().err()),
        metered,
    }
}

fn status(record: Record, site: &Site) -> BackupStatus {
    BackupStatus {
        kit: record.kit_confirmed.is_some(),
        to: site.backup.as_ref().map(|backup| backup.to.shown()),
        last: record.saved.map(|saved| LastBackup {
            at: saved.at,
            bytes: saved.bytes,
            added: saved.added,
            thinned: saved.thinned,
        }),
        failed: record.failed.map(|failed| (failed.at, failed.why)),
        drill: record.drill.map(|drill| (drill.at, drill.found)),
        left_out: Vec::new(),
        disks: Vec::new(),
    }
}

fn sentence(error: &BackupError) -> String {
    with_source(error)
}
