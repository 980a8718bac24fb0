//! What the supervisor does about its power, over toy parts: real processes, real sockets, real signals. What a watcher of
//! a UPS would say, the tests say.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use polder_control::{
    Actor, BoxStatus, Client, ImportSource, PartName, PartState, Power, PowerPhase, Progress,
    Reply, Request, RunId, RunState, Sockets, StepState, Supply, Told, Unit,
};
use polder_site::{EngineSlot, PowerPlan, RecipeName, Site, SiteChange, Store};
use polder_supervisor::{
    Children, Described, Ending, ImportEnd, Options, Patience, Shelf, SupervisorError,
};
use polder_weights::CancelFlag;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// Models come in within two seconds, in one go.
#[derive(Default)]
struct Slow {
    imported: Mutex<BTreeSet<RecipeName>>,
    stopped: AtomicUsize,
}

impl Shelf for Slow {
    fn describe(&self, recipe: &RecipeName) -> Option<Described> {
        Some(Described { title: recipe.to_string(), bytes: None })
    }
    fn imported(&self) -> Result<BTreeSet<RecipeName>, String> {
        Ok(self.imported.lock().unwrap().clone())
    }
    fn import(
        &self,
        recipe: &RecipeName,
        _: &ImportSource,
        progress: &(dyn Fn(Progress) + Sync),
        stop: &CancelFlag,
    ) -> Result<(), ImportEnd> {
        let (phase, unit) = ("fetching".to_owned(), Unit::Bytes);
        progress(Progress { phase, done: 0, total: None, unit, rate: None, eta_seconds: None });
        for _ in 0..400 {
            if stop.is_cancelled() {
                self.stopped.fetch_add(1, Ordering::SeqCst);
                return Err(ImportEnd::Stopped);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.imported.lock().unwrap().insert(recipe.clone());
        Ok(())
    }
}

struct Box_ {
    state: TempDir,
    shelf: Arc<Slow>,
    _end: watch::Sender<Ending>,
    task: JoinHandle<Result<(), SupervisorError>>,
}

impl Box_ {
    /// A box with a UPS and an engine.
    async fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        let shelf = Arc::new(Slow::default());
        let mut site = Site::unclaimed(8443);
        site.power = Some(PowerPlan::of("ups@localhost".parse().unwrap()));
        let model: RecipeName = "m1".parse().unwrap();
        shelf.imported.lock().unwrap().insert(model.clone());
        site.engines.insert("fast".parse().unwrap(), EngineSlot::serving(model));
        Store::open(state.path()).unwrap().write(&site, "test").unwrap();
        let (end, ending) = watch::channel(Ending::No);
        let second = Duration::from_secs(1);
        let patience = Patience {
            gateway: 2 * second,
            engine: 2 * second,
            last: second,
            ..Patience::default()
        };
        let options = Options {
            state: state.path().to_owned(),
            first: site,
            port: None,
            listen: None,
            patience,
        };
        let deps = std::env::current_exe().unwrap();
        let toybox: PathBuf = deps.parent().unwrap().parent().unwrap().join("examples/toybox");
        let parts = Children::of(&toybox, state.path());
        let task = tokio::spawn(polder_supervisor::run(options, parts, shelf.clone(), ending));
        let box_ = Self { state, shelf, _end: end, task };
        box_.until(|s| s.gateway.state == PartState::Ready).await;
        box_
    }

    async fn ask(&self, request: Request) -> Reply {
        let path = Sockets::of(self.state.path()).control();
        let begun = Instant::now();
        loop {
            match Client::<Request, Reply>::connect(&path).await {
                Ok(mut desk) => return desk.ask(&request).await.unwrap(),
                Err(error) => assert!(begun.elapsed() < Duration::from_secs(10), "{error}"),
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// As the watcher would say it; whether all parts have ended.
    async fn say(&self, phase: PowerPhase, may_start: bool) -> bool {
        let supply = Supply { phase, may_start, on_mains: Some(true), ..Supply::default() };
        match self.ask(Request::Supply(Box::new(supply))).await {
            Reply::Supplied { drained } => drained,
            other => panic!("{other:?}"),
        }
    }

    async fn status(&self) -> BoxStatus {
        match self.ask(Request::Status).await {
            Reply::Status(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    async fn until(&self, enough: impl Fn(&BoxStatus) -> bool) -> BoxStatus {
        let begun = Instant::now();
        loop {
            let status = self.status().await;
            if enough(&status) {
                return status;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "still {status:?}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    async fn serves(&self) {
        self.until(|s| s.engines[0].part.state == PartState::Ready).await;
    }

    async fn apply(&self, change: SiteChange) -> Reply {
        self.ask(Request::Apply { change, by: Actor::Console }).await
    }

    async fn run(&self, id: RunId) -> polder_control::Run {
        match self.ask(Request::Runs).await {
            Reply::Runs(runs) => runs.into_iter().find(|run| run.id == id).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    /// Waits until its only step is at this.
    async fn does(&self, id: RunId, wanted: &str) {
        let begun = Instant::now();
        loop {
            let run = self.run(id).await;
            if let [StepState::Running(Some(progress))] = &run.steps[..]
                && progress.phase == wanted
            {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "still {run:?}");
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn ends(&self, id: RunId) -> RunState {
        let begun = Instant::now();
        loop {
            let run = self.run(id).await;
            if run.state != RunState::Running {
                return run.state;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "still {run:?}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    async fn drains(&self) {
        let begun = Instant::now();
        while !self.say(PowerPhase::Draining, false).await {
            assert!(begun.elapsed() < Duration::from_secs(10));
            sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn engines_wait_until_the_battery_has_what_it_takes() {
    let box_ = Box_::new().await;
    box_.say(PowerPhase::Mains, false).await;
    sleep(Duration::from_millis(300)).await;
    assert_eq!(box_.status().await.engines[0].part.state, PartState::Stopped);
    box_.say(PowerPhase::Mains, true).await;
    box_.serves().await;
    // Later a low charge stops nobody.
    box_.say(PowerPhase::Mains, false).await;
    box_.serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_parts_end_for_want_of_power_and_start_again_when_the_mains_is_back_in_time() {
    let box_ = Box_::new().await;
    box_.say(PowerPhase::Mains, true).await;
    box_.serves().await;
    box_.drains().await;
    let status = box_.status().await;
    assert_eq!(status.gateway.state, PartState::Stopped);
    assert_eq!(status.engines[0].part.state, PartState::Stopped);
    let Reply::Refused(why) = box_.apply(SiteChange::RemovePower).await else { panic!() };
    assert!(why.contains("ask again when it is back"), "{why}");
    // Back, and not charged: the door opens, the engines wait.
    assert!(!box_.say(PowerPhase::Mains, false).await);
    box_.until(|s| s.gateway.state == PartState::Ready).await;
    assert_eq!(box_.status().await.engines[0].part.state, PartState::Stopped);
    box_.say(PowerPhase::Mains, true).await;
    box_.serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mains_that_is_back_while_parts_still_end_starts_them_again_when_they_have() {
    let box_ = Box_::new().await;
    std::fs::write(box_.state.path().join("behave-engine-fast"), "linger 700").unwrap();
    box_.say(PowerPhase::Mains, true).await;
    box_.serves().await;
    let first = box_.status().await.engines[0].part.pid;
    assert!(!box_.say(PowerPhase::Draining, false).await);
    box_.until(|s| s.engines[0].part.state == PartState::Draining).await;
    assert!(!box_.say(PowerPhase::Mains, true).await);
    box_.until(|s| s.engines[0].part.state == PartState::Ready && s.engines[0].part.pid != first)
        .await;
    box_.until(|s| s.gateway.state == PartState::Ready).await;
    assert!(!box_.say(PowerPhase::Mains, true).await, "an old end counts as a new one");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_waits_on_battery_and_goes_on_with_the_mains() {
    let box_ = Box_::new().await;
    box_.say(PowerPhase::Mains, true).await;
    let import = Request::Import {
        recipe: "m2".parse().unwrap(),
        from: ImportSource::Recipe,
        by: Actor::Console,
    };
    let Reply::Accepted(id) = box_.ask(import).await else { panic!() };
    box_.does(id, "fetching").await;
    box_.say(PowerPhase::OnBattery, true).await;
    box_.does(id, "waits for the mains").await;
    assert_eq!(box_.shelf.stopped.load(Ordering::SeqCst), 1);
    box_.say(PowerPhase::Mains, true).await;
    assert_eq!(box_.ends(id).await, RunState::Done);
    assert!(box_.shelf.imported().unwrap().contains(&"m2".parse().unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_in_the_middle_of_a_cut_is_done_when_the_mains_is_back() {
    let box_ = Box_::new().await;
    box_.say(PowerPhase::Mains, true).await;
    box_.serves().await;
    std::fs::write(box_.state.path().join("behave-engine-fast"), "load 800").unwrap();
    let slot = EngineSlot::serving("m2".parse().unwrap());
    let change = SiteChange::Engine { name: "fast".parse().unwrap(), slot };
    let Reply::Accepted(id) = box_.apply(change).await else { panic!() };
    box_.until(|s| s.engines[0].part.state == PartState::Starting).await;
    box_.drains().await;
    box_.say(PowerPhase::Mains, true).await;
    assert_eq!(box_.ends(id).await, RunState::Done);
    box_.serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_box_that_cannot_turn_its_machine_off_ends_itself_when_the_battery_is_empty() {
    let box_ = Box_::new().await;
    box_.say(PowerPhase::Mains, true).await;
    let off = Request::Power { how: Power::Off, by: Actor::Itself };
    let Reply::Refused(why) = box_.ask(off.clone()).await else { panic!() };
    assert!(why.contains("cannot turn it off"), "{why}");
    box_.drains().await;
    box_.say(PowerPhase::PowerOff, false).await;
    assert_eq!(box_.ask(off).await, Reply::Done);
    tokio::time::timeout(Duration::from_secs(10), box_.task).await.unwrap().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ups_that_is_not_heard_is_not_kept() {
    let box_ = Box_::new().await;
    box_.say(PowerPhase::Mains, true).await;
    let change = SiteChange::Power(PowerPlan::of("other@localhost".parse().unwrap()));
    let Reply::Accepted(id) = box_.apply(change).await else { panic!() };
    let RunState::Failed(why) = box_.ends(id).await else { panic!() };
    assert!(why.contains("says nothing") && why.contains("was undone"), "{why}");
    assert_eq!(box_.status().await.site.power.unwrap().ups.name(), "ups");
}

/// How the part that watches the UPS is.
fn watch(status: &BoxStatus) -> Option<PartState> {
    let power = status.others.iter().find(|other| other.name == PartName::Power)?;
    Some(power.part.state.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_over_the_ups_that_was_given_up_is_in_the_status_and_is_tried_again_when_asked() {
    let box_ = Box_::new().await;
    box_.until(|s| watch(s) == Some(PartState::Ready)).await;
    let behaviour = box_.state.path().join("behave-power");
    std::fs::write(&behaviour, "crash").unwrap();
    // What runs is killed, and what is started in its place dies by itself.
    let again = Request::StartPart { part: PartName::Power, by: Actor::Console };
    let status = box_.status().await;
    let power = status.others.iter().find(|other| other.name == PartName::Power).unwrap();
    let pid = rustix::process::Pid::from_raw(power.part.pid.unwrap().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    box_.until(|s| matches!(watch(s), Some(PartState::GaveUp(_)))).await;
    std::fs::remove_file(&behaviour).unwrap();
    assert_eq!(box_.ask(again).await, Reply::Done);
    box_.until(|s| watch(s) == Some(PartState::Ready)).await;
    // What the site does not ask for is not begun.
    let wan = Request::StartPart { part: PartName::Wan, by: Actor::Console };
    let Reply::Refused(why) = box_.ask(wan).await else { panic!() };
    assert!(why.contains("the site does not ask for it"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_watch_knows_of_a_battery_is_left_for_whoever_looks_after_the_boxs_health() {
    let box_ = Box_::new().await;
    let supply = Supply {
        silent: Some(77),
        tested: Some(1_790_000_000),
        test_failed: Some("Done and error".to_owned()),
        battery_since: Some(1_600_000_000),
        ups_made: Some(1_500_000_000),
        ..Supply::default()
    };
    box_.ask(Request::Supply(Box::new(supply))).await;
    let folder = Sockets::of(box_.state.path()).folder().join(Told::FOLDER);
    let left = Told::left_in(&folder).into_iter().find_map(|(_, told)| match told {
        Told::Battery(battery) => Some(battery),
        _ => None,
    });
    let battery = left.unwrap();
    assert_eq!((battery.silent, battery.tested), (Some(77), Some(1_790_000_000)));
    assert_eq!((battery.installed, battery.made), (Some(1_600_000_000), Some(1_500_000_000)));
    assert_eq!(battery.test_failed.as_deref(), Some("Done and error"));
}
