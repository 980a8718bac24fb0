mod again;
mod backup;
mod begun;
mod confirm;
mod ending;
mod for_good;
mod giving;
mod image;
mod import;
mod lend;
mod machine;
mod mirror;
mod pair;
mod parts;
mod planned;
mod ports;
mod run;
mod shell;
mod spare;
mod succession;
mod supply;
mod takeover;
mod taking;
mod trail;
mod undo;
mod ups;
mod way;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use polder_control::{Disk, Gpu, PartState, PowerPhase, RunId, RunState, Sockets};
use polder_site::{Site, SiteChange, Store};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::Trail;
use crate::board::Board;
use crate::image::Image;
use crate::keeper::{Keeper, Order};
use crate::parts::{Part, Parts};
use crate::runs::{Intent, Ledger};
use crate::shelf::Shelf;
use crate::supervisor::Patience;

use run::{empty, kind, not_kept};
pub(crate) use takeover::Handing;

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
    saving: Arc<tokio::sync::Mutex<()>>,
    /// The disk that backups go to was not there when somebody looked last.
    disk_away: AtomicBool,
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
    /// It takes over from the main box.
    takes_over: bool,
    /// It makes, tries or restores a backup.
    saves: bool,
    /// It is bringing something large in, which pauses by itself where it has to.
    brings: bool,
    /// Somebody asked for it because a takeover comes to nothing again and again.
    way_out: bool,
    /// It was stopped for a takeover.
    made_way: bool,
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
            saving: Arc::default(),
            disk_away: AtomicBool::default(),
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
            let why = "it was cut off again and again; look at the log, then ask for it once more"
                .to_owned();
            if let (Intent::Change(SiteChange::Succession(step)), Some(before)) =
                (&open.intent, &open.before)
            {
                self.leave_succession(step, before, &why).await;
            }
            let why = self.put_back_unconfirmed(&open.intent, open.before.as_ref(), why).await;
            let mut run = self.board.post(open.id, plan, RunState::Failed(why.clone()));
            run.state = RunState::Failed(why);
            self.close(run).await;
        }
        for open in again {
            match open.intent {
                Intent::Takeover(_) => self.resume_when_linked(open),
                // What only brings a model in pauses by itself.
                Intent::Import { .. } => self.resume(open).await,
                _ if self.nobody_serves() => self.resume_when_settled(open),
                _ => self.resume(open).await,
            }
        }
        self.look_after_backups();
        self.look_after_the_pair();
        self.look_after_what_is_kept();
        self.follow_the_clock();
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
}

/// Whether a change shows at the door: a name, an address.
fn moves_the_door(intent: &Intent) -> bool {
    use SiteChange::{Certificate, Door, Rename};
    matches!(intent, Intent::Change(Rename(_) | Door { .. } | Certificate(_)))
}

fn settled(state: &PartState) -> bool {
    matches!(state, PartState::Ready | PartState::GaveUp(_))
}

pub(crate) fn with_source(error: &dyn std::error::Error) -> Refusal {
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
