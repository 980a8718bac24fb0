use std::sync::Arc;
use std::time::{Duration, Instant};

use polder_control::{PartState, PartStatus, Progress, Sockets};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::parts::{Ended, Part, Parts, Process};
use crate::probe::{self, Health};
use crate::restart::{self, Death, Restart};

/// Between two questions to a part that is not ready yet, and to one that is.
const ASK_STARTING: Duration = Duration::from_millis(40);
const ASK_READY: Duration = Duration::from_secs(2);
/// A part that takes longer than this to get ready is not asked quite as often.
const PROMPT_START: Duration = Duration::from_secs(3);
/// How long one answer may take. An engine in the middle of a long step answers late, not never.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// This many unanswered questions in a row, and a part that was ready hangs.
const MOST_SILENCES: u32 = 3;
/// A part that has not answered at all this long after its start hangs.
const SILENT_START: Duration = Duration::from_secs(60);
/// Between "end now" and the signal that nobody can refuse.
const HURRY: Duration = Duration::from_secs(2);

/// What a part is told to be. Told again with a larger number, it is started afresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Run(u64),
    Stop,
    /// Without waiting for what it still has to do.
    StopNow,
}

/// How a part is, with the figures of its loading.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Shown {
    pub(crate) status: PartStatus,
    pub(crate) loading: Option<Progress>,
    /// What it has to say, though it is ready.
    pub(crate) note: Option<String>,
    /// The newest order that this is about: an older state must not be taken for the answer.
    pub(crate) order: Order,
}

/// Keeps one part as it is told to be.
pub(crate) struct Keeper {
    order: watch::Sender<Order>,
    pub(crate) shown: watch::Receiver<Shown>,
    task: JoinHandle<()>,
}

impl Keeper {
    /// A keeper for `part`, which is not running yet. A part has `grace` to finish what it has.
    pub(crate) fn new<P: Parts>(
        parts: Arc<P>,
        part: Part,
        sockets: Sockets,
        grace: Duration,
    ) -> Self {
        let (order, orders) = watch::channel(Order::Stop);
        let status = PartStatus { state: PartState::Stopped, restarts: 0, pid: None };
        let (show, shown) =
            watch::channel(Shown { status, loading: None, note: None, order: Order::Stop });
        let keeping = Keeping {
            parts,
            part,
            sockets,
            grace,
            orders,
            show,
            deaths: Vec::new(),
            begun: Instant::now(),
        };
        Self { order, shown, task: tokio::spawn(keeping.keep()) }
    }

    /// Start it; if it runs, stop it in order and start it afresh. Forgets earlier deaths.
    pub(crate) fn start(&self) -> Order {
        let next = match *self.order.borrow() {
            Order::Run(number) => Order::Run(number + 1),
            Order::Stop | Order::StopNow => Order::Run(1),
        };
        self.order.send_replace(next);
        next
    }

    /// Start it unless it is running or about to. One that was given up, or that waits after a
    /// death, is started at once.
    pub(crate) fn ensure(&self) -> Order {
        let order = *self.order.borrow();
        let down = {
            let shown = self.shown.borrow();
            let state = &shown.status.state;
            shown.order == order
                && matches!(state, PartState::GaveUp(_) | PartState::Waiting { .. })
        };
        if matches!(order, Order::Run(_)) && !down { order } else { self.start() }
    }

    /// Keeps nothing any more, whoever else still waits for this part.
    pub(crate) fn let_go(&self) {
        self.task.abort();
    }

    pub(crate) fn stop(&self, order: Order) {
        self.order.send_replace(order);
    }

    /// How it is after `order` was taken up, as soon as `enough` says so.
    pub(crate) async fn until(
        &self,
        order: Order,
        enough: impl Fn(&PartState) -> bool,
    ) -> PartState {
        let mut shown = self.shown.clone();
        let seen = shown.wait_for(|s| s.order == order && enough(&s.status.state)).await;
        seen.map_or(PartState::Stopped, |s| s.status.state.clone())
    }

    pub(crate) async fn until_stopped(&self) {
        let mut shown = self.shown.clone();
        let _ = shown.wait_for(|s| s.status.state == PartState::Stopped).await;
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.let_go();
    }
}

struct Keeping<P> {
    parts: Arc<P>,
    part: Part,
    sockets: Sockets,
    grace: Duration,
    orders: watch::Receiver<Order>,
    show: watch::Sender<Shown>,
    deaths: Vec<Death>,
    begun: Instant,
}

/// How one life of a part ended.
enum Life {
    /// It was told to.
    Told,
    /// By itself.
    Died { why: String, ready_for: Duration },
    /// It goes on, and nobody gives orders any more: the next supervisor takes it over.
    Left,
}

impl<P: Parts> Keeping<P> {
    async fn keep(mut self) {
        let mut lives = 0u32;
        loop {
            let order = *self.orders.borrow_and_update();
            self.take_up(order, lives);
            if !matches!(order, Order::Run(_)) {
                self.deaths.clear();
                if self.orders.changed().await.is_err() {
                    return;
                }
                continue;
            }
            lives = lives.saturating_add(1);
            match self.live().await {
                Life::Told => self.deaths.clear(),
                Life::Died { why, ready_for } => {
                    if !self.mourn(why, ready_for).await {
                        return;
                    }
                }
                Life::Left => return,
            }
        }
    }

    /// One life, from its start to its end.
    async fn live(&mut self) -> Life {
        let started = tokio::select! {
            started = self.parts.start(&self.part) => started,
            changed = self.orders.changed() => return told(&changed),
        };
        let mut process = match started {
            Ok(process) => process,
            Err(error) => {
                return Life::Died { why: error.to_string(), ready_for: Duration::ZERO };
            }
        };
        let pid = process.pid();
        self.show(PartState::Starting, pid);
        log::info!("started the {} (process {})", self.part, pid.unwrap_or(0));
        let (started, mut ready_since, mut silences) = (Instant::now(), None::<Instant>, 0);
        let mut heard = false;
        loop {
            let pause = match ready_since {
                Some(_) => ASK_READY,
                None if started.elapsed() < PROMPT_START => ASK_STARTING,
                None => ASK_STARTING * 5,
            };
            let asking = async {
                sleep(pause).await;
                probe::ask(&self.part, &self.sockets, ANSWER_LIMIT).await
            };
            let health = tokio::select! {
                ended = process.ended() => return died(&ended, ready_since),
                changed = self.orders.changed() => {
                    let life = told(&changed);
                    if matches!(life, Life::Told) {
                        self.end(&mut process).await;
                    }
                    return life;
                }
                health = asking => health,
            };
            match health {
                Health::Ready(note) => {
                    (silences, heard) = (0, true);
                    if ready_since.is_none() {
                        ready_since = Some(Instant::now());
                        self.show(PartState::Ready, pid);
                        let took = started.elapsed();
                        log::info!("the {} is ready after {took:.1?}", self.part);
                    }
                    self.show.send_if_modified(|s| {
                        let same = s.note == note;
                        s.note = note;
                        !same
                    });
                }
                Health::Loading(progress) => {
                    (silences, heard) = (0, true);
                    ready_since = None;
                    self.show(PartState::Starting, pid);
                    self.show.send_if_modified(|s| {
                        let same = s.loading == progress;
                        s.loading = progress;
                        !same
                    });
                }
                Health::Silent(why) => {
                    silences += 1;
                    let hangs = if heard {
                        silences >= MOST_SILENCES
                    } else {
                        started.elapsed() > SILENT_START
                    };
                    if hangs {
                        log::warn!("the {} does not answer ({why}); ending it", self.part);
                        process.kill();
                        process.ended().await;
                        let why = format!("it stopped answering: {why}");
                        return Life::Died { why, ready_for: lasted(ready_since) };
                    }
                }
            }
        }
    }

    /// Drain, then hurry, then kill, each with its time.
    async fn end(&mut self, process: &mut P::Process) {
        self.show(PartState::Draining, process.pid());
        let mut grace = self.grace;
        if *self.orders.borrow_and_update() == Order::StopNow {
            grace = Duration::ZERO;
        } else {
            process.drain();
        }
        let deadline = Instant::now() + grace;
        loop {
            tokio::select! {
                _ = process.ended() => return,
                () = sleep(deadline.saturating_duration_since(Instant::now())) => break,
                changed = self.orders.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    if *self.orders.borrow_and_update() == Order::StopNow {
                        break;
                    }
                }
            }
        }
        process.hurry();
        if tokio::time::timeout(HURRY, process.ended()).await.is_err() {
            log::warn!("the {} did not end when asked; it was killed", self.part);
            process.kill();
            process.ended().await;
        }
    }

    /// Decides what a death means, and waits as long as that takes. False when nobody gives orders
    /// any more.
    async fn mourn(&mut self, why: String, ready_for: Duration) -> bool {
        let now = self.begun.elapsed();
        self.deaths.push(Death { at: now, ready_for });
        restart::forget(&mut self.deaths, now);
        match restart::decide(&self.deaths, now, chance()) {
            Restart::After(pause) => {
                log::warn!("the {} died of {why}; starting it again in {pause:.1?}", self.part);
                let retry_ms = pause.as_millis() as u64;
                self.show(PartState::Waiting { retry_ms, why }, None);
                tokio::select! {
                    () = sleep(pause) => true,
                    changed = self.orders.changed() => {
                        self.deaths.clear();
                        changed.is_ok()
                    }
                }
            }
            Restart::GiveUp { deaths, within } => {
                let sentence = format!(
                    "the {} died {deaths} times within {} s, the last time of {why}",
                    self.part,
                    within.as_secs().max(1)
                );
                log::error!("{sentence}; it is not started again until somebody asks");
                self.show(PartState::GaveUp(sentence), None);
                let changed = self.orders.changed().await;
                self.deaths.clear();
                changed.is_ok()
            }
        }
    }

    /// Shows the order and the state that it begins with in one go, so that nobody takes an
    /// older state for the outcome.
    fn take_up(&self, order: Order, restarts: u32) {
        let state = match order {
            Order::Run(_) => PartState::Starting,
            Order::Stop | Order::StopNow => PartState::Stopped,
        };
        let restarts =
            if state == PartState::Starting { restarts } else { restarts.saturating_sub(1) };
        let status = PartStatus { state, restarts, pid: None };
        self.show.send_replace(Shown { status, loading: None, note: None, order });
    }

    fn show(&self, state: PartState, pid: Option<u32>) {
        self.show.send_if_modified(|shown| {
            let same = shown.status.state == state && shown.status.pid == pid;
            if !same {
                (shown.status.state, shown.status.pid, shown.loading) = (state, pid, None);
                shown.note = None;
            }
            !same
        });
    }
}

/// That there is nobody left to give orders is not an order.
fn told(changed: &Result<(), watch::error::RecvError>) -> Life {
    if changed.is_ok() { Life::Told } else { Life::Left }
}

fn died(ended: &Ended, ready_since: Option<Instant>) -> Life {
    Life::Died { why: ended.to_string(), ready_for: lasted(ready_since) }
}

fn lasted(since: Option<Instant>) -> Duration {
    since.map_or(Duration::ZERO, |since| since.elapsed())
}

/// A number from 0 to 1 that differs from part to part and from time to time. The standard
/// library's hash keys are random enough to spread restarts.
fn chance() -> f64 {
    use std::hash::{BuildHasher, Hasher};
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    random as f64 / u64::MAX as f64
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::parts::PartsError;

    /// A part that runs on until it is asked to end, and what it was asked.
    #[derive(Clone, Default)]
    struct Lasting(Arc<Mutex<Vec<&'static str>>>);

    impl Lasting {
        fn hears(&self, word: &'static str) {
            self.0.lock().unwrap().push(word);
        }
    }

    impl Parts for Lasting {
        type Process = Self;
        async fn start(&self, _: &Part) -> Result<Self, PartsError> {
            self.hears("start");
            Ok(self.clone())
        }
    }

    impl Process for Lasting {
        fn pid(&self) -> Option<u32> {
            None
        }
        async fn ended(&mut self) -> Ended {
            while self.0.lock().unwrap().len() < 2 {
                sleep(Duration::from_millis(1)).await;
            }
            Ended { status: "what it was asked".to_owned(), last_words: None }
        }
        fn drain(&self) {
            self.hears("drain");
        }
        fn hurry(&self) {
            self.hears("hurry");
        }
        fn kill(&self) {
            self.hears("kill");
        }
    }

    /// A keeper whose task nobody aborts: as when the abort comes while it is being polled.
    async fn runs(part: &Lasting) -> (watch::Sender<Order>, JoinHandle<()>) {
        let (order, orders) = watch::channel(Order::Run(1));
        let status = PartStatus { state: PartState::Stopped, restarts: 0, pid: None };
        let (show, _) =
            watch::channel(Shown { status, loading: None, note: None, order: Order::Stop });
        let keeping = Keeping {
            parts: Arc::new(part.clone()),
            part: Part::Gateway,
            sockets: Sockets::of(std::path::Path::new("/nowhere")),
            grace: Duration::from_secs(20),
            orders,
            show,
            deaths: Vec::new(),
            begun: Instant::now(),
        };
        let task = tokio::spawn(keeping.keep());
        while part.0.lock().unwrap().is_empty() {
            sleep(Duration::from_millis(1)).await;
        }
        (order, task)
    }

    #[tokio::test]
    async fn a_part_runs_on_when_nobody_gives_orders_any_more() {
        let part = Lasting::default();
        let (order, task) = runs(&part).await;
        drop(order);
        tokio::time::timeout(Duration::from_secs(10), task).await.unwrap().unwrap();
        assert_eq!(*part.0.lock().unwrap(), ["start"]);
    }

    #[tokio::test]
    async fn a_part_is_asked_to_finish_when_it_is_told_to_stop() {
        let part = Lasting::default();
        let (order, task) = runs(&part).await;
        order.send_replace(Order::Stop);
        while part.0.lock().unwrap().len() < 2 {
            sleep(Duration::from_millis(1)).await;
        }
        drop(order);
        tokio::time::timeout(Duration::from_secs(10), task).await.unwrap().unwrap();
        assert_eq!(*part.0.lock().unwrap(), ["start", "drain"]);
    }
}
