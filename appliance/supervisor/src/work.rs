mod backup;
mod confirm;
mod ending;
mod image;
mod import;
mod mirror;
mod pair;
mod shell;
mod spare;
mod succession;
mod supply;
mod takeover;
mod undo;
mod ups;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use polder_control::{
    Actor, AuditEntry, AuditHead, BackupWish, Disk, Gpu, ImportSource, Machine, PartState, Plan,
    Power, PowerPhase, Run, RunId, RunState, Sockets, StepState, TakeoverWish,
};
use polder_site::{Difference, EngineName, RecipeName, Site, SiteChange, Store, SuccessionStep};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::Trail;
use crate::board::Board;
use crate::doorway;
use crate::foreign;
use crate::image::{Chore, Image};
use crate::keeper::{Keeper, Order};
use crate::kept;
use crate::machine;
use crate::pace::Pace;
use crate::parts::{Part, Parts};
use crate::plan::{Action, Observed, Wanted, must_be_confirmed, plan};
use crate::runs::{Intent, Ledger, Open};
use crate::shelf::Shelf;
use crate::supervisor::Patience;

pub(crate) use takeover::Handing;

/// What the operating system allows the path of a socket.
const LONGEST_SOCKET: usize = 107;
/// At the end of the box, what still works has this long to stop. An import may be held up by a
/// server that says nothing; its journal makes it safe to leave it there.
const LAST_TASKS: Duration = Duration::from_secs(3);

/// Why something was not done: one sentence for the person who asked.
pub(crate) type Refusal = String;

/// Everything the supervisor does: keeps the parts, applies changes, writes it all down.
///
/// One run that changes the box and one that only brings in a model may go on at a time; a second
/// one of its kind is refused, not queued, because what it would do was shown against a box that
/// will be another by then.
pub(crate) struct Work<P: Parts> {
    pub(crate) board: Board,
    state: PathBuf,
    sockets: Sockets,
    parts: Arc<P>,
    shelf: Arc<dyn Shelf>,
    /// The image, where the machine runs from one.
    image: Option<Arc<Image>>,
    patience: Patience,
    store: Mutex<Store>,
    trail: Mutex<Trail>,
    ledger: Mutex<Ledger>,
    keepers: Mutex<BTreeMap<Part, Arc<Keeper>>>,
    /// Held while a run is being let in, so that two cannot pass at once.
    gate: tokio::sync::Mutex<()>,
    running: Mutex<BTreeMap<RunId, Running>>,
    tasks: TaskTracker,
    gpus: tokio::sync::OnceCell<Vec<Gpu>>,
    /// How it was when somebody last looked; whoever changes it forgets that.
    pub(crate) disk: tokio::sync::Mutex<Option<Disk>>,
    /// How far the box has gone towards turning itself off for want of power.
    power: watch::Sender<PowerPhase>,
    /// What graphics cards may draw, in percent of the usual.
    card_power: watch::Sender<u8>,
    /// Engines may be started: no UPS is watched, or its battery has what it takes.
    may_start: watch::Sender<bool>,
    /// All parts that answer people have ended for want of power.
    drained: AtomicBool,
    /// Ends them, or starts the engines when that is time.
    rousing: Mutex<Option<JoinHandle<()>>>,
    /// A box that cannot turn its machine off ends itself.
    pub(crate) spent: CancellationToken,
    /// Held by whoever makes, tries or restores a backup.
    saving: tokio::sync::Mutex<()>,
    /// A restored box waits to be put in place: the supervisor ends and begins anew.
    pub(crate) anew: CancellationToken,
    /// The other box, where there is one.
    pair: pair::Pair,
    /// The supervisor is ending; runs stop where they are and are taken up at the next start.
    pub(crate) ending: CancellationToken,
}

struct Running {
    cancel: CancellationToken,
    confirmed: CancellationToken,
    changes: bool,
    imports: bool,
    title: String,
}

/// How applying a plan ended, other than well.
enum Halt {
    Failed(usize, String),
    Cancelled,
    Interrupted,
}

impl<P: Parts> Work<P> {
    #[expect(
        clippy::too_many_arguments,
        reason = "called once, by the one who opened all of these"
    )]
    pub(crate) fn new(
        state: PathBuf,
        parts: P,
        shelf: Arc<dyn Shelf>,
        patience: Patience,
        site: Site,
        safe: bool,
        store: Store,
        trail: Trail,
        ledger: Ledger,
    ) -> Arc<Self> {
        let sockets = Sockets::of(&state);
        let may_start = watch::Sender::new(site.power.is_none());
        let image = parts.helper().map(|helper| Arc::new(Image::of(&state, helper)));
        Arc::new(Self {
            board: Board::new(sockets.clone(), site, safe, ledger.ended()),
            state,
            sockets,
            parts: Arc::new(parts),
            shelf,
            image,
            patience,
            store: Mutex::new(store),
            trail: Mutex::new(trail),
            ledger: Mutex::new(ledger),
            keepers: Mutex::default(),
            gate: tokio::sync::Mutex::new(()),
            running: Mutex::default(),
            tasks: TaskTracker::new(),
            gpus: tokio::sync::OnceCell::new(),
            disk: tokio::sync::Mutex::default(),
            power: watch::Sender::default(),
            card_power: watch::Sender::new(100),
            may_start,
            drained: AtomicBool::new(false),
            rousing: Mutex::default(),
            spent: CancellationToken::new(),
            saving: tokio::sync::Mutex::default(),
            anew: CancellationToken::new(),
            pair: pair::Pair::default(),
            ending: CancellationToken::new(),
        })
    }

    /// Starts what the site says, and takes up what was cut off. The gateway goes first, so that
    /// there is a page to look at; nothing waits for it.
    pub(crate) async fn begin(self: &Arc<Self>) {
        let engines = match self.board.status().safe {
            true => BTreeMap::new(),
            false => self.board.site().engines,
        };
        let engines = engines.into_keys().map(Part::Engine);
        let power = self.board.site().power.map(|_| Part::Power);
        let uplinks = (!self.board.site().uplinks.is_empty()).then_some(Part::Wan);
        let spare = self.has_link().then_some(Part::Spare);
        let others = power.into_iter().chain(uplinks).chain(spare);
        let wanted: BTreeSet<Part> =
            [Part::Gateway, Part::Health].into_iter().chain(engines).chain(others).collect();
        self.tidy_what_is_kept().await;
        self.hear_ups_again();
        self.tend_cards();
        self.settle_pair().await;
        for part in &wanted {
            // Engines that may start do so at once; others when the battery has what it takes.
            if !matches!(part, Part::Engine(_)) || self.engines_may_start() {
                self.keeper(part).ensure();
            }
        }
        self.start_engines();
        self.parts.keep_only(&wanted).await;
        self.image_started();
        self.shell_again();
        let cut_off = lock(&self.ledger).cut_off();
        let (again, never) = cut_off.unwrap_or_else(|error| {
            log::error!("could not look up what was cut off: {error}");
            Default::default()
        });
        for open in never {
            let plan = self.plan_of(&open.intent).await.map_or_else(|why| empty(&why), |(p, _)| p);
            let why = "it was cut off again and again; look at the log, then ask for it once more";
            if let (Intent::Change(SiteChange::Succession(step)), Some(before)) =
                (&open.intent, &open.before)
            {
                self.leave_succession(step, before, why).await;
            }
            let mut run = self.board.post(open.id, plan, RunState::Failed(why.to_owned()));
            run.state = RunState::Failed(why.to_owned());
            self.close(run).await;
        }
        for open in again {
            match open.intent {
                Intent::Takeover(_) => self.resume_when_linked(open),
                _ => self.resume(open).await,
            }
        }
        self.look_after_backups();
        self.look_after_the_pair();
        self.look_after_what_is_kept();
        self.follow_the_clock();
    }

    async fn resume(self: &Arc<Self>, open: Open) {
        let Open { id, intent, by, before, .. } = open;
        let _gate = self.gate.lock().await;
        match self.plan_of(&intent).await {
            Ok((mut plan, mut actions)) => {
                // The site may say already what was asked for; whether the door opens with it,
                // nobody has seen.
                if moves_the_door(&intent) && !actions.contains(&Action::OpenDoor) {
                    plan.steps.push(Action::OpenDoor.step());
                    actions.push(Action::OpenDoor);
                }
                // Nor has anybody said that it is good.
                if let Intent::Change(change) = &intent
                    && must_be_confirmed(change)
                    && !actions.contains(&Action::Confirm)
                {
                    plan.steps.push(Action::Confirm.step());
                    actions.push(Action::Confirm);
                }
                self.note(Actor::Itself, "went on with", &plan.title).await;
                log::info!("going on with: {} (asked for by {by})", plan.title);
                let before = before.unwrap_or_else(|| self.board.site());
                self.set_off(id, intent, before, plan, actions);
            }
            Err(why) => {
                let run = self.board.post(id, empty("A change"), RunState::Failed(why));
                self.close(run).await;
            }
        }
    }

    /// Stops every part, the door first; the engines finish what came through it.
    pub(crate) async fn end(&self, now: bool) {
        self.ending.cancel();
        if let Some(rousing) = lock(&self.rousing).take() {
            rousing.abort();
        }
        let order = if now { Order::StopNow } else { Order::Stop };
        let keepers: Vec<_> =
            lock(&self.keepers).iter().map(|(p, k)| (p.clone(), k.clone())).collect();
        let (door, others): (Vec<_>, Vec<_>) =
            keepers.into_iter().partition(|(part, _)| *part == Part::Gateway);
        for (group, patience) in [(door, self.patience.gateway), (others, self.patience.last)] {
            group.iter().for_each(|(_, keeper)| keeper.stop(order));
            let stopped = async {
                for (_, keeper) in &group {
                    keeper.until_stopped().await;
                }
            };
            tokio::pin!(stopped);
            if tokio::time::timeout(patience, &mut stopped).await.is_err() {
                group.iter().for_each(|(_, keeper)| keeper.stop(Order::StopNow));
                stopped.await;
            }
        }
        self.tasks.close();
        let last = async { tokio::join!(self.tasks.wait(), self.parts.passed_on()) };
        if tokio::time::timeout(LAST_TASKS, last).await.is_err() {
            log::warn!("something did not stop in time; it goes on at the next start");
        }
    }

    /// Nobody waits any more: whatever is still there ends at once.
    pub(crate) fn end_now(&self) {
        lock(&self.keepers).values().for_each(|keeper| keeper.stop(Order::StopNow));
    }

    /// Nothing goes on by itself from here on, and parts that still run are kept by nobody: the next supervisor takes them over.
    pub(crate) fn let_go(&self) {
        self.ending.cancel();
        if let Some(task) = lock(&self.rousing).take() {
            task.abort();
        }
        let keepers = std::mem::take(&mut *lock(&self.keepers));
        keepers.values().for_each(|keeper| keeper.let_go());
    }

    pub(crate) async fn machine(&self) -> Machine {
        // Asking the driver takes a second, and cards are not changed while a box runs; early in its start the
        // driver may not be there yet, or not tell yet how much memory they have.
        let gpus = match self.gpus.get() {
            Some(gpus) => gpus.clone(),
            None => {
                let (gpus, told) = machine::gpus().await;
                if told {
                    let _ = self.gpus.set(gpus.clone());
                }
                gpus
            }
        };
        machine::detect(&self.state, gpus)
    }

    pub(crate) async fn imported(&self) -> Result<Vec<RecipeName>, Refusal> {
        let shelf = self.shelf.clone();
        Ok(blocking(move || shelf.imported()).await?.into_iter().collect())
    }

    pub(crate) async fn preview(
        &self,
        change: SiteChange,
    ) -> Result<(Vec<Difference>, Plan), Refusal> {
        let site = self.board.site();
        let next = change.applied_to(&site);
        let (plan, _) = self.plan_of(&Intent::Change(change)).await?;
        Ok((site.differences(&next), plan))
    }

    /// Lets a run in, writes down who asked, and sets it off. A run that needs nothing is over
    /// when this returns.
    pub(crate) async fn apply(
        self: &Arc<Self>,
        intent: Intent,
        by: Actor,
    ) -> Result<RunId, Refusal> {
        let _gate = self.gate.lock().await;
        if self.ending.is_cancelled() {
            return Err("the box is going down; ask again when it is back".to_owned());
        }
        if self.power.borrow().refuses_all_work() {
            return Err("the mains is away and the box ends its parts; ask again when it is back"
                .to_owned());
        }
        let (plan, actions) = self.plan_of(&intent).await?;
        if actions.is_empty() {
            let run = |id| Run { id, plan, steps: Vec::new(), state: RunState::Done };
            let run = lock(&self.ledger).record(run).map_err(|e| not_kept(&e))?;
            self.board.post(run.id, run.plan, run.state);
            return Ok(run.id);
        }
        self.place_for(&intent, &actions)?;
        self.record(by.clone(), "asked for", &plan.title).await?;
        let before = self.board.site();
        let begun = lock(&self.ledger).begin(intent.clone(), by, before.clone());
        let id = begun.map_err(|e| not_kept(&e))?;
        self.set_off(id, intent, before, plan, actions);
        Ok(id)
    }

    pub(crate) fn cancel(&self, id: RunId) -> Result<(), Refusal> {
        match lock(&self.running).get(&id) {
            Some(running) => {
                running.cancel.cancel();
                Ok(())
            }
            None if self.board.run(id).is_some() => Err(format!("run {} is over already", id.0)),
            None => Err(format!("there is no run {}", id.0)),
        }
    }

    /// Turns the machine off or on again; the machine's going down then ends this box in order.
    pub(crate) async fn power(self: &Arc<Self>, how: Power, by: Actor) -> Result<(), Refusal> {
        let Some(machine) = self.parts.machine() else {
            if self.power.borrow().is_final() && how == Power::Off {
                self.try_to_record(by, "ended for want of power:", "the box").await;
                log::error!(
                    "the battery of the UPS is nearly empty and all is written down; the box has stopped. It is only a program on this machine, which somebody else has to turn off"
                );
                self.spent.cancel();
                return Ok(());
            }
            return Err("this box is only a program on this machine and cannot turn it off; do that as you usually do"
                .to_owned());
        };
        let what = match how {
            Power::Off => "turned off",
            Power::Restart => "started again",
        };
        let at_its_end = self.power.borrow().is_final();
        match at_its_end {
            // A disk that is full must not keep the machine on until its battery is flat.
            true => self.try_to_record(by, what, "the machine").await,
            false => drop(self.record(by, what, "the machine").await?),
        }
        let gone = match how {
            Power::Off => machine.power_off().await,
            Power::Restart => machine.restart().await,
        };
        gone.map_err(|error| error.to_string())
    }

    /// Sets the machine's clock; whoever tells it the time later over the network is believed more.
    pub(crate) async fn set_clock(self: &Arc<Self>, to: u64, by: Actor) -> Result<(), Refusal> {
        let none = "this box is only a program on this machine; set the clock as you usually do";
        let image = self.image.clone().ok_or(none)?;
        let time = i64::try_from(to).ok().and_then(|to| jiff::Timestamp::from_second(to).ok());
        let time = time.ok_or("that is no time that a clock can show")?;
        self.record(by, "set the clock to", &time.to_string()).await?;
        image.helper().does(Chore::SetClock(to)).await
    }

    /// The same where what is to be written down happens anyway.
    async fn try_to_record(self: &Arc<Self>, by: Actor, what: &str, on: &str) {
        let recorded = tokio::time::timeout(Duration::from_secs(5), self.record(by, what, on));
        match recorded.await {
            Ok(Ok(_)) => {}
            Ok(Err(why)) => log::error!("not written to the audit trail: {what} {on}: {why}"),
            Err(_) => log::error!("not written to the audit trail in time: {what} {on}"),
        }
    }

    /// An entry in the audit trail; on the disk when this returns.
    pub(crate) async fn record(
        self: &Arc<Self>,
        by: Actor,
        what: &str,
        on: &str,
    ) -> Result<AuditEntry, Refusal> {
        let (work, what, on) = (self.clone(), what.to_owned(), on.to_owned());
        blocking(move || {
            lock(&work.trail).append(by, &what, &on).map_err(|e| {
                let source =
                    std::error::Error::source(&e).map(|s| format!(": {s}")).unwrap_or_default();
                format!("{e}{source}; nothing was done, because nobody could look it up later")
            })
        })
        .await
    }

    /// The last entry of the audit trail.
    pub(crate) fn audit_head(&self) -> AuditHead {
        lock(&self.trail).head()
    }

    pub(crate) async fn audit(
        self: &Arc<Self>,
        before: Option<u64>,
        limit: u32,
    ) -> Result<Vec<AuditEntry>, Refusal> {
        let work = self.clone();
        blocking(move || lock(&work.trail).page(before, limit).map_err(|e| e.to_string())).await
    }

    /// What would have to be done, against the box as it is now.
    async fn plan_of(&self, intent: &Intent) -> Result<(Plan, Vec<Action>), Refusal> {
        let site = self.board.site();
        let wanted = match intent {
            Intent::Change(change) => {
                if let SiteChange::Succession(step) = change {
                    site.stepped(step).map_err(|e| e.to_string())?;
                }
                change.applied_to(&site).check().map_err(|e| e.to_string())?;
                Wanted::Change(change.clone())
            }
            Intent::Import { recipe, from } => {
                check_source(from)?;
                Wanted::Model(recipe.clone())
            }
            Intent::Update(wish) => Wanted::Image(self.image_change(*wish).await?),
            Intent::Backup(wish) => Wanted::Backup(self.backup_wish(wish, &site)?),
            Intent::Takeover(wish) => Wanted::Takeover(self.handing(wish).await?),
        };
        let recipe = match &wanted {
            Wanted::Model(recipe) => Some(recipe),
            // A server that somebody else runs may have a model that there is no recipe for.
            Wanted::Change(SiteChange::Engine { slot, .. }) if !foreign::needs_weights(slot) => {
                None
            }
            Wanted::Change(
                SiteChange::Engine { slot, .. }
                | SiteChange::Succession(SuccessionStep::Begin { slot, .. }),
            ) => Some(&slot.recipe),
            Wanted::Change(_) | Wanted::Image(_) | Wanted::Backup(_) | Wanted::Takeover(_) => None,
        };
        if let Some(recipe) = recipe
            && self.shelf.describe(recipe).is_none()
        {
            return Err(format!(
                "there is no recipe called {recipe}; `polder recipes` lists those there are"
            ));
        }
        if let Wanted::Change(SiteChange::Engine { name, .. }) = &wanted
            && self.sockets.engine(name).as_os_str().len() > LONGEST_SOCKET
        {
            return Err(format!(
                "the name {name} is too long for a socket in {}; choose a shorter one",
                self.state.display()
            ));
        }
        if let Wanted::Change(change @ (SiteChange::Engine { .. } | SiteChange::Succession(_))) =
            &wanted
            && change.applied_to(&site).engines != site.engines
        {
            self.shelf.fits(&change.applied_to(&site), &self.machine().await)?;
        }
        if let Wanted::Change(SiteChange::Power(power)) = &wanted
            && power.attached.is_some()
            && self.image.is_none()
        {
            return Err(ups::NO_NUT.to_owned());
        }
        let store = match &wanted {
            Wanted::Change(SiteChange::Backup(backup)) => Some(self.store_at(backup).await?),
            _ => None,
        };
        let imported = self.imported().await?.into_iter().collect();
        let engine =
            |name: &EngineName| (name.clone(), self.board.part(&Part::Engine(name.clone())).state);
        let observed = Observed {
            engines: site.engines.keys().map(engine).collect(),
            gateway: self.board.part(&Part::Gateway).state,
            imported,
            store,
            site,
        };
        Ok(plan(&observed, &wanted, &|recipe| self.shelf.describe(recipe)))
    }

    /// Whether a run that changes the box, or brings in a model, goes on.
    fn is_busy(&self) -> bool {
        lock(&self.running).values().any(|run| run.changes || run.imports)
    }

    fn place_for(&self, intent: &Intent, actions: &[Action]) -> Result<(), Refusal> {
        let (changes, imports) = kind(intent, actions);
        let running = lock(&self.running);
        let taken = running.iter().find(|(_, r)| (r.changes && changes) || (r.imports && imports));
        match taken {
            None => Ok(()),
            Some((id, other)) => Err(format!(
                "the box is busy with \"{}\" (run {}); wait until it is done, or stop it first",
                other.title, id.0
            )),
        }
    }

    /// `before` is the site to go back to if the run does not come to its end.
    fn set_off(
        self: &Arc<Self>,
        id: RunId,
        intent: Intent,
        before: Site,
        plan: Plan,
        actions: Vec<Action>,
    ) {
        let (changes, imports) = kind(&intent, &actions);
        let (cancel, confirmed) = (CancellationToken::new(), CancellationToken::new());
        let title = plan.title.clone();
        let running = Running { cancel: cancel.clone(), confirmed, changes, imports, title };
        lock(&self.running).insert(id, running);
        self.board.post(id, plan, RunState::Running);
        let work = self.clone();
        self.tasks.spawn(async move {
            let mut before = before;
            let outcome = match work.carry_out(id, &intent, &mut before, actions, &cancel).await {
                Err(Halt::Failed(step, why)) => {
                    let why = work.put_back(&intent, &before, why, &cancel).await;
                    Err(Halt::Failed(step, why))
                }
                Err(Halt::Cancelled) => {
                    work.put_back(&intent, &before, "it was stopped".to_owned(), &cancel).await;
                    Err(Halt::Cancelled)
                }
                other => other,
            };
            let state = match outcome {
                Ok(()) => {
                    work.forget_images(before).await;
                    RunState::Done
                }
                Err(Halt::Failed(step, why)) => {
                    work.board.step(id, step, StepState::Failed(why.clone()));
                    RunState::Failed(why)
                }
                Err(Halt::Cancelled) => RunState::Cancelled,
                Err(Halt::Interrupted) => {
                    log::info!(
                        "stopped in the middle of run {}; it goes on at the next start",
                        id.0
                    );
                    return;
                }
            };
            if let Some(mut run) = work.board.run(id) {
                run.state = state;
                work.close(run).await;
            }
        });
    }

    /// The run is over: in the ledger, in the audit trail, on the board, and its place is free.
    async fn close(self: &Arc<Self>, run: Run) {
        let what = match &run.state {
            RunState::Done => "finished",
            RunState::Failed(why) => {
                log::info!("{}: {why}", run.plan.title);
                "failed at"
            }
            RunState::Cancelled => "stopped, as asked,",
            RunState::Running => unreachable!("only a run that is over is closed"),
        };
        self.note(Actor::Itself, what, &run.plan.title).await;
        if let Err(error) = lock(&self.ledger).end(run.clone()) {
            log::error!("could not note the end of run {}: {error}", run.id.0);
        }
        lock(&self.running).remove(&run.id);
        self.board.end(run.id, run.state);
    }

    async fn carry_out(
        self: &Arc<Self>,
        id: RunId,
        intent: &Intent,
        before: &mut Site,
        actions: Vec<Action>,
        cancel: &CancellationToken,
    ) -> Result<(), Halt> {
        let from = match intent {
            Intent::Import { from, .. } => from,
            Intent::Change(_) | Intent::Update(_) | Intent::Backup(_) | Intent::Takeover(_) => {
                &ImportSource::Recipe
            }
        };
        let mut actions = actions.into_iter().enumerate();
        while let Some((step, action)) = actions.next() {
            if cancel.is_cancelled() {
                return Err(Halt::Cancelled);
            }
            if self.ending.is_cancelled() {
                return Err(Halt::Interrupted);
            }
            self.board.step(id, step, StepState::Running(None));
            let done = match action {
                Action::ImportModel { .. } | Action::BringImage(_) => {
                    let brought = match action {
                        Action::ImportModel { recipe, .. } => {
                            self.bring_in(id, step, recipe, from, intent, cancel).await
                        }
                        Action::BringImage(container) => {
                            self.bring_image(id, step, *container, intent, cancel).await
                        }
                        _ => Ok(None),
                    };
                    match brought {
                        Ok(None) => Ok(()),
                        Ok(Some((anew, site))) => {
                            *before = site;
                            actions = anew.into_iter().enumerate();
                            continue;
                        }
                        Err(halt) => {
                            // A run changes nothing before its model is in: whatever is another now is what others did.
                            *before = self.board.site();
                            Err(halt)
                        }
                    }
                }
                Action::StopEngine(name) => {
                    self.stop_engine(&name).await;
                    Ok(())
                }
                Action::WriteSite { site, why } => {
                    self.write_site(*site, why).await.map_err(|why| Halt::Failed(step, why))
                }
                Action::StartEngine(name) => self.start_engine(id, step, &name, cancel).await,
                Action::OpenDoor => self.open_door(step, before).await,
                Action::WatchUps(_) => {
                    self.watch_ups(true).await.map_err(|why| Halt::Failed(step, why))
                }
                Action::LeaveSpare => {
                    self.leave_spare().await.map_err(|why| Halt::Failed(step, why))
                }
                Action::TendLink(_) => self.link_settles(step).await,
                Action::Confirm => self.until_confirmed(id, step, cancel).await,
                Action::Image(action) => self.image_action(id, step, action, cancel).await,
                Action::Backup { action, place, snapshot } => {
                    self.backup_action(id, step, action, place, snapshot, cancel).await
                }
                Action::HandOver { action, .. } => match intent {
                    Intent::Takeover(wish) => self.hand_over(id, step, wish, action, cancel).await,
                    _ => unreachable!("only a takeover has such steps"),
                },
            };
            done?;
            self.board.step(id, step, StepState::Done);
        }
        Ok(())
    }

    async fn stop_engine(&self, name: &EngineName) {
        self.stop_part(&Part::Engine(name.clone())).await;
    }

    async fn stop_part(&self, part: &Part) {
        let keeper = lock(&self.keepers).get(part).cloned();
        if let Some(keeper) = keeper {
            keeper.stop(Order::Stop);
            keeper.until_stopped().await;
            lock(&self.keepers).remove(part);
            self.board.remove_part(part);
        }
    }

    async fn write_site(self: &Arc<Self>, site: Site, why: String) -> Result<(), Refusal> {
        let (work, next) = (self.clone(), site.clone());
        blocking(move || lock(&work.store).write(&next, &why).map_err(|e| with_source(&e))).await?;
        let before = self.board.site();
        self.board.set_site(site);
        self.tidy_what_is_kept().await;
        self.tend_uplinks().await;
        self.tend_link(&before).await;
        Ok(())
    }

    /// Whoever looks after the uplinks runs where there are any, and follows the site by itself.
    async fn tend_uplinks(self: &Arc<Self>) {
        if !self.board.site().uplinks.is_empty() {
            self.keeper(&Part::Wan).ensure();
        } else {
            self.stop_part(&Part::Wan).await;
        }
    }

    /// Images of containers that nobody needs since this run. One that failed forgets none: it is asked for again, perhaps, and they are large.
    async fn forget_images(&self, before: Site) {
        let (state, now) = (self.state.clone(), self.board.site());
        let forget = move || foreign::forget_images(&state, &before, &now);
        if let Err(error) = tokio::task::spawn_blocking(forget).await {
            log::error!("looking after the images of containers failed: {error}");
        }
    }

    async fn tidy_what_is_kept(&self) {
        let (state, site) = (self.state.clone(), self.board.site());
        if let Err(error) = tokio::task::spawn_blocking(move || kept::tidy(&state, &site)).await {
            log::error!("looking after what engines keep failed: {error}");
        }
    }

    async fn start_engine(
        self: &Arc<Self>,
        id: RunId,
        step: usize,
        name: &EngineName,
        cancel: &CancellationToken,
    ) -> Result<(), Halt> {
        let part = Part::Engine(name.clone());
        let keeper = self.keeper(&part);
        let mut loading = keeper.shown.clone();
        let figures = async {
            let mut pace = Pace::default();
            while loading.changed().await.is_ok() {
                let progress = loading.borrow_and_update().loading.clone();
                let progress =
                    progress.map(|progress| pace.of(progress, std::time::Instant::now()));
                self.board.step(id, step, StepState::Running(progress));
            }
        };
        tokio::select! {
            state = self.settles(&part, &keeper) => match state {
                PartState::GaveUp(why) => Err(Halt::Failed(step, format!(
                    "{why}; choose another model, or put right what it says and ask again"
                ))),
                _ => Ok(()),
            },
            () = figures => Ok(()),
            () = cancel.cancelled() => Err(Halt::Cancelled),
            () = self.ending.cancelled() => Err(Halt::Interrupted),
        }
    }

    /// The gateway follows the site while it runs, so that nobody is interrupted; one that was given
    /// up is started again.
    async fn open_door(self: &Arc<Self>, step: usize, before: &Site) -> Result<(), Halt> {
        let keeper = self.keeper(&Part::Gateway);
        let opening = async {
            match self.settles(&Part::Gateway, &keeper).await {
                PartState::GaveUp(why) => Err(why),
                _ => doorway::opens(&self.board.site(), before, &self.sockets).await,
            }
        };
        tokio::select! {
            opened = opening => opened.map_err(|why| Halt::Failed(step, why)),
            () = self.ending.cancelled() => Err(Halt::Interrupted),
        }
    }

    /// The keeper of a part, made at first use.
    fn keeper(self: &Arc<Self>, part: &Part) -> Arc<Keeper> {
        let mut keepers = lock(&self.keepers);
        if let Some(keeper) = keepers.get(part) {
            return keeper.clone();
        }
        let grace = match part {
            Part::Gateway => self.patience.gateway,
            Part::Engine(_) => self.patience.engine,
            Part::Power | Part::Wan | Part::Spare => self.patience.last,
            // It has nothing that somebody waits for.
            Part::Health => self.patience.last,
        };
        let keeper = Keeper::new(self.parts.clone(), part.clone(), self.sockets.clone(), grace);
        let keeper = Arc::new(keeper);
        self.board.add_part(part.clone(), keeper.shown.clone());
        keepers.insert(part.clone(), keeper.clone());
        // Ends when the keeper does; holds nobody back.
        let (work, mut shown) = (Arc::downgrade(self), keeper.shown.clone());
        let part = part.clone();
        tokio::spawn(async move {
            while shown.changed().await.is_ok() {
                let Some(work) = work.upgrade() else { return };
                work.board.part_changed();
                let gave_up = matches!(shown.borrow().status.state, PartState::GaveUp(_));
                if gave_up {
                    work.note(Actor::Itself, "gave up", &format!("the {part}")).await;
                    if part == Part::Power {
                        work.unwatched().await;
                    }
                }
            }
        });
        keeper
    }

    /// An entry that nobody waits for.
    async fn note(self: &Arc<Self>, by: Actor, what: &str, on: &str) {
        if let Err(error) = self.record(by, what, on).await {
            log::error!("{error}");
        }
    }
}

/// Whether a change shows at the door: a name, an address.
fn moves_the_door(intent: &Intent) -> bool {
    use SiteChange::{Certificate, Door, Rename};
    matches!(intent, Intent::Change(Rename(_) | Door { .. } | Certificate(_)))
}

/// Whether a run would change the box, and whether it would bring in a model.
fn kind(intent: &Intent, actions: &[Action]) -> (bool, bool) {
    let imports = actions.iter().any(|a| matches!(a, Action::ImportModel { .. }));
    let sends = matches!(intent, Intent::Takeover(TakeoverWish::Send));
    let imports = imports || sends;
    let restores = matches!(intent, Intent::Backup(BackupWish::Restore { .. }));
    let changes = matches!(intent, Intent::Change(_) | Intent::Update(_) | Intent::Takeover(_));
    (restores || (changes && !sends), imports)
}

fn settled(state: &PartState) -> bool {
    matches!(state, PartState::Ready | PartState::GaveUp(_))
}

/// An address with a password in it would end up in the list of runs.
fn check_source(from: &ImportSource) -> Result<(), Refusal> {
    match from {
        ImportSource::Web(address) => {
            let rest = address.split_once("://").map_or(address.as_str(), |(_, rest)| rest);
            let authority = rest.split('/').next().unwrap_or_default();
            if authority.contains('@') {
                return Err("the address has a name or password in it, which would be written \
                            down; use one without"
                    .to_owned());
            }
            Ok(())
        }
        ImportSource::Folder(path) if !path.is_absolute() => Err(format!(
            "{} is not a whole path; write it from the root, beginning with /",
            path.display()
        )),
        ImportSource::Folder(_) | ImportSource::Recipe => Ok(()),
    }
}

fn empty(title: &str) -> Plan {
    Plan { title: title.to_owned(), steps: Vec::new() }
}

fn not_kept(error: &std::io::Error) -> Refusal {
    format!("the run could not be noted in the state folder ({error}); is the disk full?")
}

fn with_source(error: &dyn std::error::Error) -> Refusal {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|_| Err("that broke down inside the box; the log says where".to_owned()))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while it holds one of these")
}
