//! The supervisor's part in changes of the image: finds updates, carries out steps, judges what is on trial.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use polder_control::{
    Actor, Client, HealthReply, HealthRequest, PartState, Plan, Progress, RunId, StepState, Unit,
    UpdateStatus, UpdateWish,
};
use polder_update::{
    Able, Attempt, Here, JobState, Offer, Outcome, Start, UpdateError, Version, find,
};
use polder_weights::{CancelFlag, WeightsError};
use tokio_util::sync::CancellationToken;

use super::{Halt, Refusal, Work, blocking, lock};
use crate::image::{Change, Chore, Image, ImageAction, able};
use crate::parts::{Part, Parts};
use crate::runs::Intent;
use crate::weights::{nothing_yet, shown};

/// A version on trial has this long until its models answer: a large one has to be loaded first.
const TRIAL: Duration = Duration::from_secs(30 * 60);
/// Between two looks at what it can do.
const LOOK: Duration = Duration::from_secs(2);
/// Looks at a box on which everything has settled, before it counts as worse.
const LOOKS: u32 = 5;
/// Between two looks at how far root is with writing.
const WATCH: Duration = Duration::from_millis(500);
/// What the part that looks after the box's health may take to answer.
const HEALTH: Duration = Duration::from_secs(2);
/// Where the site says where to look, this is how often, the first time a while after the start.
const FIRST_CHECK: Duration = Duration::from_secs(15 * 60);
const CHECK: Duration = Duration::from_secs(24 * 3600);

impl<P: Parts> Work<P> {
    fn image(&self) -> Result<&Arc<Image>, Refusal> {
        let none = "this box is only a program on this machine, which has no second slot; update it as you installed it";
        self.image.as_ref().ok_or_else(|| none.to_owned())
    }

    pub(crate) async fn updates(&self) -> Result<UpdateStatus, Refusal> {
        let Some(image) = self.image.clone() else { return Ok(UpdateStatus::default()) };
        let web = self.looks_at();
        blocking(move || Ok(image.status(web.as_deref(), unix_now()))).await
    }

    /// Where the site says that updates are.
    fn looks_at(&self) -> Option<String> {
        self.board.site().updates.map(|updates| updates.from.to_string())
    }

    /// Looks on disks that are plugged in, then where the site says.
    pub(crate) async fn check_update(&self) -> Result<UpdateStatus, Refusal> {
        let image = self.image()?.clone();
        let web = self.looks_at();
        blocking(move || {
            let found = look_for(&image, web.as_deref());
            if let Some(from) = &web {
                note_look(&image, from, &found);
            }
            found.map_err(|error| error.to_string())?;
            Ok(image.status(web.as_deref(), unix_now()))
        })
        .await
    }

    pub(crate) async fn preview_update(&self, wish: UpdateWish) -> Result<Plan, Refusal> {
        Ok(self.plan_of(&Intent::Update(wish)).await?.0)
    }

    /// Refused only where what is wrong makes the update itself unsafe. A health part that does not answer refuses nothing: the
    /// update may be what mends it.
    async fn safe_to_update(&self) -> Result<(), Refusal> {
        let asked = async {
            let path = self.sockets.health();
            let mut client: Client<HealthRequest, HealthReply> =
                Client::connect(&path).await.ok()?;
            client.ask_within(HEALTH, &HealthRequest::Report).await.ok()
        };
        let Some(HealthReply::Report(report)) = asked.await else { return Ok(()) };
        let unsafe_now = report.standing.iter().find(|s| s.issue.unsafe_to_update);
        match unsafe_now.map(|standing| &standing.issue) {
            None => Ok(()),
            Some(issue) => Err(format!("no update now: {}. {}", issue.what, issue.advice)),
        }
    }

    /// What a wish comes to.
    pub(super) async fn image_change(&self, wish: UpdateWish) -> Result<Change, Refusal> {
        let image = self.image()?.clone();
        // Going back is how a box gets out of trouble.
        if wish != UpdateWish::Back {
            self.safe_to_update().await?;
        }
        blocking(move || {
            let slots = image.slots()?;
            let record = image.record().clone();
            let offer = record.offer.as_ref();
            let here = offer.is_some_and(|offer| image.shelf().has(&offer.manifest));
            Change::of(wish, &slots, offer, record.highest.as_ref(), here)
                .map_err(|error| error.to_string())
        })
        .await
    }

    /// One step of a change of the image.
    pub(super) async fn image_action(
        self: &Arc<Self>,
        id: RunId,
        step: usize,
        action: ImageAction,
        cancel: &CancellationToken,
    ) -> Result<(), Halt> {
        let failed = |why: String| Halt::Failed(step, why);
        let image = self.image().map_err(failed)?.clone();
        match action {
            ImageAction::Fetch(offer) => self.fetch_update(id, step, image, *offer, cancel).await,
            ImageAction::Note { from, to } => {
                let before = able(&self.sockets, &self.board.status()).await;
                let by = lock(&self.ledger).who(id).unwrap_or(Actor::Itself).to_string();
                let attempt =
                    Attempt { from, to, by, at: now(), before, boots: Vec::new(), outcome: None };
                image
                    .change(|record| record.begin(attempt))
                    .map_err(|error| failed(error.to_string()))
            }
            ImageAction::Write(version) => {
                let written = self.write_slot(id, step, &image, version).await;
                written.map_err(|why| {
                    // Nothing was changed about what starts.
                    if let Err(error) = image.change(|record| record.attempt = None) {
                        log::error!("{error}");
                    }
                    failed(why)
                })
            }
            ImageAction::Leave { from, to } => {
                image.helper().does(Chore::GoBack).await.map_err(failed)?;
                let by = lock(&self.ledger).who(id).unwrap_or(Actor::Itself).to_string();
                image
                    .change(|record| record.left(&from, &to, &by, &now()))
                    .map_err(|error| failed(error.to_string()))
            }
            ImageAction::Restart { .. } => {
                let machine = self.parts.machine().ok_or_else(|| {
                    failed(
                        "the machine cannot be started again from here; do it yourself".to_owned(),
                    )
                })?;
                machine.restart().await.map_err(|error| failed(error.to_string()))
            }
        }
    }

    async fn fetch_update(
        self: &Arc<Self>,
        id: RunId,
        step: usize,
        image: Arc<Image>,
        offer: Offer,
        cancel: &CancellationToken,
    ) -> Result<(), Halt> {
        let stop = CancelFlag::default();
        let (work, flag) = (self.clone(), stop.clone());
        let mut bringing = tokio::task::spawn_blocking(move || {
            let mut last = nothing_yet();
            let mut observer = |event| {
                last = shown(event, &last);
                work.board.progress(id, step, last.clone());
            };
            image.shelf().bring(&offer.manifest, &offer.from, &mut observer, &flag)
        });
        let ended = tokio::select! {
            ended = &mut bringing => ended,
            () = async { tokio::select! { () = cancel.cancelled() => (), () = self.ending.cancelled() => () } } => {
                stop.cancel();
                bringing.await
            }
        };
        match ended {
            Ok(Ok(())) => Ok(()),
            Ok(Err(UpdateError::Files(WeightsError::Cancelled))) if cancel.is_cancelled() => {
                Err(Halt::Cancelled)
            }
            Ok(Err(UpdateError::Files(WeightsError::Cancelled))) => Err(Halt::Interrupted),
            Ok(Err(error)) => Err(Halt::Failed(step, error.to_string())),
            Err(_) => {
                let why = "fetching broke down; the log says where; what was fetched is kept";
                Err(Halt::Failed(step, why.to_owned()))
            }
        }
    }

    /// Has root write a version, and shows how far it is.
    async fn write_slot(
        &self,
        id: RunId,
        step: usize,
        image: &Arc<Image>,
        version: Version,
    ) -> Result<(), String> {
        let begun = Instant::now();
        let writing = image.helper().does(Chore::Write(version.clone()));
        tokio::pin!(writing);
        let job = || image.job().filter(|job| job.version == version);
        loop {
            let wrote = tokio::time::timeout(WATCH, &mut writing).await;
            match (wrote, job()) {
                (Ok(Ok(())), Some(job)) if job.state == JobState::Done => return Ok(()),
                (Ok(Ok(())), _) => {
                    return Err(format!("nobody says that {version} was written; try again"));
                }
                (Ok(Err(_)), Some(polder_update::Job { state: JobState::Failed(why), .. })) => {
                    return Err(why);
                }
                (Ok(Err(why)), _) => return Err(why),
                (Err(_), Some(job)) if job.state == JobState::Running => {
                    let seconds = begun.elapsed().as_secs_f64();
                    let rate = (job.done > 0).then(|| job.done as f64 / seconds);
                    let left = job.total.saturating_sub(job.done);
                    let progress = Progress {
                        phase: job.phase,
                        done: job.done,
                        total: Some(job.total),
                        unit: Unit::Bytes,
                        rate,
                        eta_seconds: rate.map(|rate| (left as f64 / rate).ceil() as u64),
                    };
                    self.board.step(id, step, StepState::Running(Some(progress)));
                }
                (Err(_), _) => {}
            }
        }
    }

    /// This version has started: says what became of one that was tried, and looks for updates now and then where
    /// the site says where. Nobody waits for it.
    pub(super) fn image_started(self: &Arc<Self>) {
        let Some(image) = self.image.clone() else { return };
        let work = Arc::downgrade(self);
        tokio::spawn(async move {
            if image.slots().is_err() {
                // Not written down yet, or lost with a crash in between.
                if let Err(why) = image.helper().does(Chore::Look).await {
                    log::warn!("the slots of this machine could not be looked at: {why}");
                }
            }
            if let Some(work) = work.upgrade() {
                work.note_start(&image).await;
            }
            tokio::time::sleep(FIRST_CHECK).await;
            while let Some(work) = work.upgrade() {
                if work.board.site().updates.is_some()
                    && let Err(why) = work.check_update().await
                {
                    log::info!("no update: {why}");
                }
                drop(work);
                tokio::time::sleep(CHECK).await;
            }
        });
    }

    /// Notes this start, once, and tells what became of a version that was tried before.
    async fn note_start(self: &Arc<Self>, image: &Arc<Image>) {
        let image = image.clone();
        let told = blocking(move || {
            let slots = image.slots()?;
            let tried = image.record().attempt.clone();
            image
                .change(|record| record.started(&slots, &start()))
                .map_err(|error| error.to_string())?;
            let record = image.record();
            let over = tried.filter(|_| record.attempt.is_none()).and(record.past.first());
            Ok(over.cloned())
        });
        match told.await {
            Ok(Some(Attempt { from, to, outcome: Some(Outcome::TakenBack { .. }), .. })) => {
                log::warn!("Polder {to} was left again by the boot loader; {from} runs");
                self.note(Actor::Itself, "went back to", &format!("Polder {from}")).await;
            }
            Ok(_) => {}
            Err(why) => log::error!("what became of updates could not be noted: {why}"),
        }
    }

    /// Whether the version that runs is no worse than the one before it. Waits until that can be told.
    pub(crate) async fn judge(self: &Arc<Self>) -> Result<Option<String>, Refusal> {
        let image = self.image()?.clone();
        let slots = image.slots()?;
        self.note_start(&image).await;
        let trial = {
            let record = image.record();
            let mut known = record.attempt.iter().chain(record.past.first());
            known.find(|attempt| attempt.to == slots.running).cloned()
        };
        // Put in by hand, or tried before anybody wrote things down: there is nothing to be worse than.
        let Some(trial) = trial else { return Ok(None) };
        let begun = Instant::now();
        let mut looks = 0;
        let verdict = loop {
            let able = able(&self.sockets, &self.board.status()).await;
            let Some(why) = able.worse_than(&trial.before) else { break None };
            looks += u32::from(self.settled(&trial.before));
            if looks >= LOOKS || begun.elapsed() > TRIAL {
                break Some(why);
            }
            tokio::time::sleep(LOOK).await;
        };
        let result = verdict.clone().map_or(Ok(()), Err);
        image
            .change(|record| record.judged(&start(), result))
            .map_err(|error| error.to_string())?;
        let on = format!("Polder {}", trial.to);
        match &verdict {
            None => self.note(Actor::Itself, "keeps", &on).await,
            Some(why) => {
                log::error!("{on} is worse than {}: {why}", trial.from);
                self.note(Actor::Itself, "found worse than before:", &on).await;
            }
        }
        Ok(verdict)
    }

    /// Whether waiting would change anything: the door and every model that mattered have come as far as they will.
    fn settled(&self, before: &Able) -> bool {
        let over = |state: &PartState| matches!(state, PartState::Ready | PartState::GaveUp(_));
        let engine = |name: &String| match name.parse() {
            Ok(name) => {
                let gone = !self.board.site().engines.contains_key(&name);
                gone || over(&self.board.part(&Part::Engine(name)).state)
            }
            Err(_) => true,
        };
        over(&self.board.part(&Part::Gateway).state) && before.answering.iter().all(engine)
    }
}

/// Finds the newest update that may be taken, and remembers it.
fn look_for(image: &Image, web: Option<&str>) -> Result<(), UpdateError> {
    let slots = image.slots().map_err(UpdateError::Disk)?;
    let here = Here { version: slots.running.clone(), arch: slots.arch.clone() };
    let keys = image.keys()?;
    let highest = image.record().highest.clone();
    let ask = |web| find(web, image.disks(), &keys, &here, highest.as_ref());
    let found = match (ask(None), web) {
        (Ok(found), _) => found,
        (Err(UpdateError::NoStick), None) => return Err(UpdateError::NoSource),
        (Err(on_the_stick), None) => return Err(on_the_stick),
        (Err(_), Some(web)) => ask(Some(web))?,
    };
    image.shelf().remember(&found)?;
    let offer = Offer { manifest: found.manifest, from: found.from, at: now() };
    image.change(|record| record.offer = Some(offer))
}

/// Whether somebody out there can be asked for updates is remembered: whoever never hears of one believes that there is none. That there is nothing newer, or
/// nothing for this machine, is an answer.
fn note_look(image: &Image, from: &str, found: &Result<(), UpdateError>) {
    use polder_update::Refusal::{NoKeys, Signature, Unreadable};
    let now = i64::try_from(unix_now()).unwrap_or(i64::MAX);
    let why = match found {
        Ok(()) => None,
        Err(UpdateError::Refused(refusal)) => match refusal {
            NoKeys | Signature(_) | Unreadable(_) => Some(refusal.to_string()),
            _ => None,
        },
        Err(error) => Some(error.to_string()),
    };
    let noted = image.change(|record| record.looked_at(from, now, why));
    if let Err(error) = noted {
        log::warn!("{error}");
    }
}

fn start() -> Start {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    Start { id: id.trim().to_owned(), at: now() }
}

fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Unix seconds; a clock before 1970 is as wrong as one in 1970.
fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
