//! The real supervisor over toy parts: real processes, real sockets, real signals.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use polder_control::{
    Actor, BoxStatus, Client, EngineStatus, Event, ImportSource, PartState, Power, Progress, Reply,
    Request, Run, RunId, RunState, Sockets, StepState, Unit,
};
use polder_site::{EngineSlot, RecipeName, Site, SiteChange, Store};

#[path = "keeping/image.rs"]
mod image;
#[path = "keeping/succession.rs"]
mod succession;
#[path = "keeping/takeover.rs"]
mod takeover;
use polder_supervisor::{
    Children, Described, Ending, ImportEnd, Options, Patience, Shelf, SupervisorError,
};
use polder_weights::CancelFlag;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

type Desk = Client<Request, Reply>;

/// Models called `m1` to `m9`; an import takes as long as it is told to.
#[derive(Default)]
struct ToyShelf {
    imported: Mutex<BTreeSet<RecipeName>>,
    import_ms: AtomicU64,
    fails: AtomicBool,
    /// The server that a model comes from says nothing, and nobody hears that it should stop.
    stalled: AtomicBool,
}

impl Shelf for ToyShelf {
    fn describe(&self, recipe: &RecipeName) -> Option<Described> {
        let title = recipe.as_str().strip_prefix('m')?;
        Some(Described { title: format!("Model {title}"), bytes: Some(1 << 20) })
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
        let begun = Instant::now();
        let total = self.import_ms.load(Ordering::SeqCst);
        loop {
            while self.stalled.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
            }
            let done = (begun.elapsed().as_millis() as u64).min(total);
            let (phase, unit) = ("fetching".to_owned(), Unit::Bytes);
            progress(Progress {
                phase,
                done,
                total: Some(total),
                unit,
                rate: None,
                eta_seconds: None,
            });
            if stop.is_cancelled() {
                return Err(ImportEnd::Stopped);
            }
            if self.fails.load(Ordering::SeqCst) {
                return Err(ImportEnd::Failed("a byte was wrong; try again".to_owned()));
            }
            if done == total {
                self.imported.lock().unwrap().insert(recipe.clone());
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

struct Box_ {
    state: TempDir,
    shelf: Arc<ToyShelf>,
    end: watch::Sender<Ending>,
    task: JoinHandle<Result<(), SupervisorError>>,
}

impl Box_ {
    async fn new(behaviours: &[(&str, &str)]) -> Self {
        let state = tempfile::tempdir().unwrap();
        for (part, behaviour) in behaviours {
            behave(state.path(), part, behaviour);
        }
        let shelf = Arc::new(ToyShelf::default());
        let (end, task) = begin(state.path(), &shelf);
        let box_ = Self { state, shelf, end, task };
        box_.until(|s| s.gateway.state == PartState::Ready).await;
        box_
    }

    async fn again(self) -> Self {
        let box_ = self.restarted().await;
        box_.until(|s| s.gateway.state == PartState::Ready).await;
        box_
    }

    async fn restarted(self) -> Self {
        self.restarted_after(|| ()).await
    }

    /// With something done while it is off.
    async fn restarted_after(self, done: impl FnOnce()) -> Self {
        let Self { state, shelf, end, task } = self;
        end.send_replace(Ending::InOrder);
        task.await.unwrap().unwrap();
        done();
        let (end, task) = begin(state.path(), &shelf);
        Self { state, shelf, end, task }
    }

    async fn desk(&self) -> Desk {
        desk(self.state.path()).await
    }

    async fn ask(&self, request: Request) -> Reply {
        self.desk().await.ask(&request).await.unwrap()
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

    async fn apply(&self, change: SiteChange) -> RunId {
        match self.ask(Request::Apply { change, by: ada() }).await {
            Reply::Accepted(id) => id,
            other => panic!("{other:?}"),
        }
    }

    async fn run(&self, id: RunId) -> Run {
        match self.ask(Request::Runs).await {
            Reply::Runs(runs) => runs.into_iter().find(|run| run.id == id).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    async fn until_over(&self, id: RunId) -> Run {
        let begun = Instant::now();
        loop {
            let run = self.run(id).await;
            if run.state != RunState::Running {
                return run;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "still {run:?}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    async fn serve(&self, model: &str) {
        let run = self.until_over(self.apply(serve(model)).await).await;
        assert_eq!(run.state, RunState::Done, "{run:?}");
    }

    async fn audit(&self) -> Vec<String> {
        match self.ask(Request::Audit { before: None, limit: 100 }).await {
            Reply::Audit(entries) => {
                entries.iter().rev().map(|e| format!("{} {} {}", e.by, e.what, e.on)).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    async fn over(self) {
        self.end.send_replace(Ending::InOrder);
        self.task.await.unwrap().unwrap();
    }
}

fn begin(
    state: &Path,
    shelf: &Arc<ToyShelf>,
) -> (watch::Sender<Ending>, JoinHandle<Result<(), SupervisorError>>) {
    let (end, ending) = watch::channel(Ending::No);
    let running = polder_supervisor::run(
        options(state),
        Children::of(&toybox(), state),
        shelf.clone(),
        ending,
    );
    (end, tokio::spawn(running))
}

fn options(state: &Path) -> Options {
    let second = Duration::from_secs(1);
    let patience =
        Patience { gateway: 2 * second, engine: 2 * second, last: second, confirm: second };
    let (state, first) = (state.to_owned(), Site::unclaimed(8443));
    Options { state, first, port: None, listen: None, patience }
}

async fn desk(state: &Path) -> Desk {
    let begun = Instant::now();
    loop {
        match Client::connect(&Sockets::of(state).control()).await {
            Ok(desk) => return desk,
            Err(error) => assert!(begun.elapsed() < Duration::from_secs(10), "{error}"),
        }
        sleep(Duration::from_millis(5)).await;
    }
}

/// Examples are built beside the tests.
fn toybox() -> PathBuf {
    let deps = std::env::current_exe().unwrap();
    deps.parent().unwrap().parent().unwrap().join("examples/toybox")
}

fn behave(state: &Path, part: &str, behaviour: &str) {
    std::fs::write(state.join(format!("behave-{part}")), behaviour.replace("; ", "\n")).unwrap();
}

fn ada() -> Actor {
    Actor::Member("ada".to_owned())
}

fn serve(model: &str) -> SiteChange {
    let slot = EngineSlot::serving(model.parse().unwrap());
    SiteChange::Engine { name: "fast".parse().unwrap(), slot }
}

fn alive(pid: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Err(_) => false,
        // A dead process that a container without an init has not cleared away.
        Ok(stat) => !stat.contains(") Z "),
    }
}

fn pid(status: &EngineStatus) -> u32 {
    status.part.pid.expect("it runs")
}

fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_model_is_imported_started_and_written_down_and_survives_a_restart_of_the_box() {
    let box_ = Box_::new(&[]).await;
    box_.shelf.import_ms.store(300, Ordering::SeqCst);
    let Reply::Preview { differences, plan } = box_.ask(Request::Preview(serve("m1"))).await else {
        panic!("no preview");
    };
    assert_eq!(differences.len(), 2);
    let id = box_.apply(serve("m1")).await;
    let run = box_.until_over(id).await;
    assert_eq!(run.state, RunState::Done);
    assert_eq!(run.plan, plan, "what was shown is what was done");
    assert!(run.steps.iter().all(|s| *s == StepState::Done));
    let engine = &box_.status().await.engines[0];
    assert_eq!((engine.recipe.as_str(), &engine.part.state), ("m1", &PartState::Ready));
    assert_eq!(
        box_.audit().await,
        ["ada asked for Serve Model 1 as fast", "the box finished Serve Model 1 as fast"]
    );

    let box_ = box_.again().await;
    let status = box_.until(|s| s.engines.iter().all(|e| e.part.state == PartState::Ready)).await;
    assert_eq!(status.engines.len(), 1);
    assert_eq!(box_.run(id).await.state, RunState::Done, "old runs are still known");
    let same = box_.apply(serve("m1")).await;
    assert!(same > id);
    let run = box_.run(same).await;
    assert_eq!((run.state, run.plan.steps.len()), (RunState::Done, 0), "nothing was needed");
    box_.over().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_in_safe_mode_runs_no_engine_until_the_machine_starts_again() {
    let box_ = Box_::new(&[]).await;
    box_.serve("m1").await;
    let wish = box_.state.path().join("safe-mode");
    std::fs::write(&wish, "").unwrap();
    let box_ = box_.again().await;
    let status = box_.status().await;
    assert!(status.safe && !wish.exists());
    assert_eq!(status.engines[0].part.state, PartState::Stopped);
    let said = box_.audit().await;
    let safe = "somebody at the console started without engines and apps the box";
    assert_eq!(said.last().map(String::as_str), Some(safe));
    // A supervisor that crashes in safe mode comes back in safe mode.
    let box_ = box_.again().await;
    assert!(box_.status().await.safe);
    assert_eq!(box_.audit().await.len(), said.len(), "said once");
    // What a machine forgets when it starts again.
    std::fs::remove_file(box_.state.path().join("run/safe-mode")).unwrap();
    let box_ = box_.again().await;
    let status = box_.until(|s| s.engines[0].part.state == PartState::Ready).await;
    assert!(!status.safe);
    box_.over().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_engine_comes_back_and_the_gateway_does_not_notice() {
    let box_ = Box_::new(&[]).await;
    box_.serve("m1").await;
    let before = box_.status().await;
    kill(pid(&before.engines[0]));
    let after = box_
        .until(|s| s.engines[0].part.restarts == 1 && s.engines[0].part.state == PartState::Ready)
        .await;
    assert_ne!(pid(&after.engines[0]), pid(&before.engines[0]));
    assert_eq!(after.gateway, before.gateway);
    box_.over().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_only_crashes_is_given_up_with_its_reason_until_somebody_asks_again() {
    let box_ = Box_::new(&[("engine-fast", "crash")]).await;
    let run = box_.until_over(box_.apply(serve("m1")).await).await;
    let RunState::Failed(why) = run.state else { panic!("{:?}", run.state) };
    assert!(why.contains("died 5 times") && why.contains("exit status 3"), "{why}");
    assert!(why.contains("the toy is broken"), "{why}");
    assert!(matches!(run.steps.last(), Some(StepState::Failed(_))), "{:?}", run.steps);
    assert_eq!(box_.status().await.engines, [], "the site names a model that does not run");

    behave(box_.state.path(), "engine-fast", "");
    box_.serve("m1").await;
    behave(box_.state.path(), "engine-fast", "crash");
    kill(pid(&box_.status().await.engines[0]));
    let gave_up = |s: &BoxStatus| matches!(s.engines[0].part.state, PartState::GaveUp(_));
    let status = box_.until(gave_up).await;
    sleep(Duration::from_millis(500)).await;
    assert_eq!(box_.status().await, status, "it was started again");

    behave(box_.state.path(), "engine-fast", "");
    let run = box_.until_over(box_.apply(serve("m1")).await).await;
    assert_eq!(run.state, RunState::Done);
    assert_eq!(run.plan.steps.len(), 1);
    box_.over().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_does_not_start_gives_way_to_the_one_before_it() {
    let box_ = Box_::new(&[("engine-fast", "not-with m2")]).await;
    box_.serve("m1").await;
    let site = box_.status().await.site;
    let run = box_.until_over(box_.apply(serve("m2")).await).await;
    let RunState::Failed(why) = run.state else { panic!("{:?}", run.state) };
    assert!(why.contains("m2 does not fit"), "{why}");
    assert!(why.ends_with("; the model before it is back"), "{why}");
    let status = box_.status().await;
    assert_eq!(status.site, site);
    let engine = &status.engines[0];
    assert_eq!((engine.recipe.as_str(), &engine.part.state), ("m1", &PartState::Ready));
    box_.over().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switch_that_is_stopped_while_the_new_model_loads_brings_the_old_one_back() {
    let box_ = Box_::new(&[]).await;
    box_.serve("m1").await;
    behave(box_.state.path(), "engine-fast", "load 60000");
    let id = box_.apply(serve("m2")).await;
    box_.until(|s| s.engines.iter().any(|e| e.recipe.as_str() == "m2")).await;
    behave(box_.state.path(), "engine-fast", "");
    assert_eq!(box_.ask(Request::Cancel(id)).await, Reply::Done);
    assert_eq!(box_.until_over(id).await.state, RunState::Cancelled);
    let ready = |s: &BoxStatus| s.engines[0].part.state == PartState::Ready;
    assert_eq!(box_.until(ready).await.engines[0].recipe.as_str(), "m1");
    box_.over().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_door_that_does_not_open_is_put_back_also_when_the_box_went_down_in_between() {
    let box_ = Box_::new(&[("gateway", "not-at 127.0.0.2")]).await;
    let before = box_.status().await.site;
    let door = SiteChange::Door { listen: vec!["127.0.0.2".parse().unwrap()], names: vec![] };
    let id = box_.apply(door).await;
    box_.until(|s| s.site != before).await;
    // Nowhere to listen: now it does not even start.
    let box_ = box_.restarted().await;
    assert_ne!(box_.status().await.site, before, "there is nothing to put back");
    let RunState::Failed(why) = box_.until_over(id).await.state else { panic!() };
    assert!(why.contains("address is taken") && why.ends_with("the change was undone"), "{why}");
    assert_eq!(box_.status().await.site, before);
    box_.until(|s| s.gateway.state == PartState::Ready).await;
    box_.over().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_from_a_server_that_says_nothing_does_not_hold_up_the_end() {
    let box_ = Box_::new(&[]).await;
    box_.shelf.stalled.store(true, Ordering::SeqCst);
    let shelf = box_.shelf.clone();
    box_.apply(serve("m1")).await;
    let ended = tokio::time::timeout(Duration::from_secs(12), box_.over()).await;
    shelf.stalled.store(false, Ordering::SeqCst);
    assert!(ended.is_ok(), "the box waits for the server");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_box_that_is_only_a_program_does_not_turn_the_machine_off() {
    let box_ = Box_::new(&[]).await;
    let asked = Request::Power { how: Power::Off, by: Actor::Console };
    let Reply::Refused(why) = box_.ask(asked).await else { panic!("it did") };
    assert!(why.contains("only a program on this machine"), "{why}");
    box_.over().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_part_outlives_a_killed_supervisor_not_even_a_busy_or_stubborn_one() {
    let state = tempfile::tempdir().unwrap();
    let mut site = Site::unclaimed(8443);
    for name in ["busy", "stubborn"] {
        behave(state.path(), &format!("engine-{name}"), name);
        let slot = EngineSlot::serving("m1".parse().unwrap());
        site.engines.insert(name.parse().unwrap(), slot);
    }
    Store::open(state.path()).unwrap().write(&site, "test").unwrap();
    let mut supervisor = tokio::process::Command::new(toybox())
        .args(["supervise", "--state"])
        .arg(state.path())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut desk = desk(state.path()).await;
    let begun = Instant::now();
    let status = loop {
        let Reply::Status(status) = desk.ask(&Request::Status).await.unwrap() else { panic!() };
        let parts = status.engines.iter().map(|e| &e.part).chain([&status.gateway]);
        if parts.map(|p| &p.state).all(|state| *state == PartState::Ready) {
            break status;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{status:?}");
        sleep(Duration::from_millis(20)).await;
    };
    let pids: Vec<u32> = status.engines.iter().map(pid).chain(status.gateway.pid).collect();
    assert_eq!(pids.len(), 3);
    kill(supervisor.id().unwrap());
    supervisor.wait().await.unwrap();
    let killed = Instant::now();
    while pids.iter().any(|pid| alive(*pid)) {
        assert!(killed.elapsed() < Duration::from_secs(2), "an orphan: {pids:?}");
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_supervisor_on_the_same_state_says_so_and_leaves_the_first_alone() {
    let box_ = Box_::new(&[]).await;
    let (_end, second) = begin(box_.state.path(), &box_.shelf);
    let error = second.await.unwrap().unwrap_err();
    assert!(matches!(error, SupervisorError::Taken { process: Some(_), .. }), "{error}");
    assert!(error.to_string().contains(&std::process::id().to_string()));
    assert_eq!(box_.status().await.gateway.state, PartState::Ready);
    box_.over().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_finish_what_they_have_and_one_that_will_not_end_is_killed() {
    let box_ = Box_::new(&[("gateway", "linger 700"), ("engine-fast", "stubborn")]).await;
    box_.serve("m1").await;
    let status = box_.status().await;
    let pids = [status.gateway.pid.unwrap(), pid(&status.engines[0])];
    let begun = Instant::now();
    box_.end.send_replace(Ending::InOrder);
    let drains = |s: &BoxStatus| s.gateway.state == PartState::Draining;
    let during = box_.until(drains).await;
    assert_eq!(during.engines[0].part.state, PartState::Ready, "engines outlast the gateway");
    box_.task.await.unwrap().unwrap();
    // 0.7 s for the gateway; 1 s of grace and 2 s of hurry for the engine.
    let took = begun.elapsed();
    assert!(took > Duration::from_millis(3_500) && took < Duration::from_secs(8), "{took:?}");
    assert!(!pids.into_iter().any(alive));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_hurries_the_end() {
    let box_ = Box_::new(&[("gateway", "linger 60000")]).await;
    let gateway = box_.status().await.gateway.pid.unwrap();
    let begun = Instant::now();
    box_.end.send_replace(Ending::InOrder);
    sleep(Duration::from_millis(200)).await;
    assert!(alive(gateway));
    box_.end.send_replace(Ending::Now);
    box_.task.await.unwrap().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    assert!(!alive(gateway));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_change_is_refused_with_the_name_of_the_first_and_can_be_made_after_it_is_stopped()
{
    let box_ = Box_::new(&[]).await;
    box_.shelf.import_ms.store(60_000, Ordering::SeqCst);
    let gateway = box_.status().await.gateway;
    let first = box_.apply(serve("m1")).await;
    let rename = SiteChange::Rename("birch".parse().unwrap());
    let change = rename.clone();
    let Reply::Refused(why) = box_.ask(Request::Apply { change, by: ada() }).await else {
        panic!("two changes at once");
    };
    assert!(why.contains("Serve Model 1"), "{why}");
    assert_eq!(box_.ask(Request::Cancel(first)).await, Reply::Done);
    let run = box_.until_over(first).await;
    assert_eq!(run.state, RunState::Cancelled);
    assert!(box_.status().await.engines.is_empty(), "the site names a model that is not there");
    assert!(matches!(box_.ask(Request::Cancel(first)).await, Reply::Refused(_)));
    let run = box_.until_over(box_.apply(rename).await).await;
    assert_eq!(run.state, RunState::Done);
    assert_eq!(box_.status().await.site.name.as_str(), "birch");
    assert_eq!(box_.status().await.gateway, gateway, "the gateway was started again for a name");
    box_.over().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_may_be_made_while_a_model_is_only_being_brought_in() {
    let box_ = Box_::new(&[]).await;
    box_.shelf.import_ms.store(60_000, Ordering::SeqCst);
    let import = |recipe: &str| Request::Import {
        recipe: recipe.parse().unwrap(),
        from: ImportSource::Recipe,
        by: ada(),
    };
    let Reply::Accepted(first) = box_.ask(import("m1")).await else { panic!() };
    assert!(matches!(box_.ask(import("m2")).await, Reply::Refused(_)));
    let rename = SiteChange::Rename("birch".parse().unwrap());
    let run = box_.until_over(box_.apply(rename).await).await;
    assert_eq!(run.state, RunState::Done);
    box_.ask(Request::Cancel(first)).await;
    box_.over().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_the_end_of_the_box_cut_off_goes_on_under_its_own_number() {
    let box_ = Box_::new(&[]).await;
    box_.shelf.import_ms.store(60_000, Ordering::SeqCst);
    let id = box_.apply(serve("m1")).await;
    sleep(Duration::from_millis(50)).await;
    box_.shelf.import_ms.store(100, Ordering::SeqCst);
    let box_ = box_.again().await;
    assert_eq!(box_.until_over(id).await.state, RunState::Done);
    assert_eq!(box_.status().await.engines[0].part.state, PartState::Ready);
    box_.over().await;
}

/// The parts beside gateway and engines, which start in their own time.
fn others_are_ready(status: &BoxStatus) -> bool {
    let ready = |other: &polder_control::OtherPart| other.part.state == PartState::Ready;
    !status.others.is_empty() && status.others.iter().all(ready)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_fails_leaves_the_engine_that_runs_alone() {
    let box_ = Box_::new(&[]).await;
    box_.serve("m1").await;
    let before = box_.until(others_are_ready).await;
    box_.shelf.fails.store(true, Ordering::SeqCst);
    let run = box_.until_over(box_.apply(serve("m2")).await).await;
    assert_eq!(run.state, RunState::Failed("a byte was wrong; try again".to_owned()));
    assert_eq!(box_.status().await, before);
    box_.over().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_door_that_does_not_open_is_put_back_as_it_was() {
    let box_ = Box_::new(&[("gateway", "not-at 127.0.0.2")]).await;
    let before = box_.until(others_are_ready).await;
    let listen = vec!["127.0.0.1".parse().unwrap(), "127.0.0.2".parse().unwrap()];
    let id = box_.apply(SiteChange::Door { listen, names: vec![] }).await;
    let RunState::Failed(why) = box_.until_over(id).await.state else { panic!() };
    let taken = "could not be opened at 127.0.0.2, port 8443: it is taken; the change was undone";
    assert!(why.ends_with(taken), "{why}");
    assert_eq!(box_.status().await, before, "the gateway was touched");
    box_.over().await;
}

fn two_uplinks() -> SiteChange {
    let uplink = |interface: &str, order| polder_site::Uplink {
        interface: interface.parse().unwrap(),
        order,
        metered: false,
        ask_router: false,
        targets: Vec::new(),
    };
    let named = [("fibre", uplink("enp1s0", 1)), ("mobile", uplink("wwan0", 2))];
    let named = named.into_iter().map(|(name, uplink)| (name.parse().unwrap(), uplink));
    SiteChange::Uplinks(named.collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn other_uplinks_are_undone_unless_somebody_confirms_them() {
    let box_ = Box_::new(&[]).await;
    let before = box_.until(others_are_ready).await;
    let wan = Sockets::of(box_.state.path()).wan();
    let id = box_.apply(two_uplinks()).await;
    box_.until(|s| s.site.uplinks.len() == 2).await;
    while !wan.exists() {
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(box_.run(id).await.waits_for_confirmation(), Some(1));
    let RunState::Failed(why) = box_.until_over(id).await.state else { panic!() };
    assert_eq!(why, "nobody confirmed it in time; the change was undone");
    assert_eq!(box_.status().await, before);
    assert!(!wan.exists(), "nobody ended the part");

    let late = box_.ask(Request::Confirm { run: id, by: ada() }).await;
    assert!(matches!(&late, Reply::Refused(why) if why.contains("was undone")), "{late:?}");

    let id = box_.apply(two_uplinks()).await;
    while box_.run(id).await.waits_for_confirmation().is_none() {
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(box_.ask(Request::Confirm { run: id, by: ada() }).await, Reply::Done);
    assert_eq!(box_.until_over(id).await.state, RunState::Done);
    assert_eq!(box_.status().await.site.uplinks.len(), 2);
    let audit = box_.audit().await;
    assert!(
        audit.iter().any(|e| e == "ada confirmed Go out by fibre, else by mobile"),
        "{audit:?}"
    );
    // The part comes back with the box.
    let box_ = box_.restarted().await;
    while !wan.exists() {
        sleep(Duration::from_millis(10)).await;
    }
    box_.over().await;
}

/// A box that goes out by an uplink that somebody pays for.
async fn on_a_metered_line() -> Box_ {
    let box_ = Box_::new(&[("wan", "metered")]).await;
    let SiteChange::Uplinks(mut uplinks) = two_uplinks() else { panic!() };
    uplinks.values_mut().for_each(|uplink| uplink.metered = true);
    let id = box_.apply(SiteChange::Uplinks(uplinks)).await;
    while box_.run(id).await.waits_for_confirmation().is_none() {
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(box_.ask(Request::Confirm { run: id, by: ada() }).await, Reply::Done);
    box_.until_over(id).await;
    while !Sockets::of(box_.state.path()).wan().exists() {
        sleep(Duration::from_millis(10)).await;
    }
    box_
}

/// What the first step of a run waits for.
async fn waits(box_: &Box_, id: RunId) -> String {
    loop {
        let run = box_.run(id).await;
        if let StepState::Running(Some(progress)) = &run.steps[0]
            && progress.phase.starts_with("waiting")
        {
            return progress.phase.clone();
        }
        assert_eq!(run.state, RunState::Running);
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_waits_while_somebody_pays_for_what_goes_out_and_says_so() {
    let box_ = on_a_metered_line().await;
    let import = |from| Request::Import { recipe: "m1".parse().unwrap(), from, by: ada() };
    let Reply::Accepted(id) = box_.ask(import(ImportSource::Recipe)).await else { panic!() };
    let why = waits(&box_, id).await;
    assert!(why.starts_with("waiting: mobile is metered; bring it on a disk"), "{why}");
    // Somebody brings it on a disk, or another uplink is used.
    let Reply::Accepted(disk) = box_.ask(import(ImportSource::Folder("/m1".into()))).await else {
        panic!()
    };
    assert_eq!(box_.until_over(disk).await.state, RunState::Done);
    assert_eq!(box_.ask(Request::Cancel(id)).await, Reply::Done);
    assert_eq!(box_.until_over(id).await.state, RunState::Cancelled);
    behave(box_.state.path(), "wan", "");
    box_.serve("m2").await;
    box_.over().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn imports_that_wait_for_a_line_hold_nobody_up_and_go_on_with_the_box_as_it_is_then() {
    let box_ = on_a_metered_line().await;
    let slot = |name: &str, model: &str| {
        let slot = EngineSlot::serving(model.parse().unwrap());
        SiteChange::Engine { name: name.parse().unwrap(), slot }
    };
    // Two at once, each of which would change the box.
    let first = box_.apply(slot("fast", "m1")).await;
    waits(&box_, first).await;
    let second = box_.apply(slot("large", "m2")).await;
    waits(&box_, second).await;
    let dropped = box_.apply(slot("fast", "m3")).await;
    waits(&box_, dropped).await;

    // The box is changed meanwhile, and a run that is stopped takes none of that back.
    let renamed = box_.apply(SiteChange::Rename("dune".parse().unwrap())).await;
    assert_eq!(box_.until_over(renamed).await.state, RunState::Done);
    box_.shelf.imported.lock().unwrap().insert("m4".parse().unwrap());
    let here = box_.apply(slot("fast", "m4")).await;
    assert_eq!(box_.until_over(here).await.state, RunState::Done);
    assert_eq!(box_.ask(Request::Cancel(dropped)).await, Reply::Done);
    assert_eq!(box_.until_over(dropped).await.state, RunState::Cancelled);
    let site = box_.status().await.site;
    assert_eq!(site.engines[&"fast".parse().unwrap()].recipe.as_str(), "m4");
    assert_eq!(site.name.as_str(), "dune");

    // They wait over a restart too, and then go on one after the other.
    let box_ = box_.restarted().await;
    waits(&box_, first).await;
    waits(&box_, second).await;
    box_.shelf.import_ms.store(300, Ordering::SeqCst);
    behave(box_.state.path(), "wan", "");
    assert_eq!(box_.until_over(first).await.state, RunState::Done);
    assert_eq!(box_.until_over(second).await.state, RunState::Done);
    let site = box_.status().await.site;
    assert_eq!(site.name.as_str(), "dune", "an old plan was written over a newer site");
    let serves = |name: &str| site.engines[&name.parse().unwrap()].recipe.to_string();
    assert_eq!((serves("fast"), serves("large")), ("m1".to_owned(), "m2".to_owned()));
    box_.over().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_had_confirmed_when_the_box_went_down_still_has_to_be() {
    let box_ = Box_::new(&[]).await;
    let id = box_.apply(two_uplinks()).await;
    while box_.run(id).await.waits_for_confirmation().is_none() {
        sleep(Duration::from_millis(5)).await;
    }
    let box_ = box_.restarted().await;
    let RunState::Failed(why) = box_.until_over(id).await.state else { panic!() };
    assert!(why.ends_with("the change was undone"), "{why}");
    assert!(box_.status().await.site.uplinks.is_empty());
    box_.over().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_sees_the_status_then_the_figures_of_an_import_and_of_a_slow_start() {
    let box_ = Box_::new(&[("engine-fast", "load 600")]).await;
    box_.shelf.import_ms.store(600, Ordering::SeqCst);
    let mut watcher = box_.desk().await;
    let first = watcher.ask(&Request::Watch).await.unwrap();
    assert!(matches!(first, Reply::Event(Event::Status(_))), "{first:?}");
    let id = box_.apply(serve("m1")).await;
    let mut phases = BTreeSet::new();
    loop {
        let next = tokio::time::timeout(Duration::from_secs(20), watcher.next()).await;
        let Reply::Event(event) = next.unwrap().unwrap().unwrap() else { panic!() };
        let Event::Run(run) = event else { continue };
        assert_eq!(run.id, id);
        phases.extend(run.steps.iter().filter_map(|step| match step {
            StepState::Running(Some(progress)) => Some(progress.phase.clone()),
            _ => None,
        }));
        if run.state != RunState::Running {
            assert_eq!(run.state, RunState::Done);
            break;
        }
    }
    assert_eq!(phases.into_iter().collect::<Vec<_>>(), ["fetching", "loading"]);
    box_.over().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_in_a_sentence_before_anything_is_done() {
    let box_ = Box_::new(&[]).await;
    let refused = async |request: Request| match box_.ask(request).await {
        Reply::Refused(why) => why,
        other => panic!("{other:?}"),
    };
    let apply = |change| Request::Apply { change, by: ada() };
    assert!(refused(apply(serve("nobody"))).await.contains("no recipe called nobody"));
    let door = SiteChange::Door { listen: vec![], names: vec![] };
    assert!(refused(apply(door)).await.contains("door.listen is empty"));
    let from = ImportSource::Web("https://ada:secret@example.org/x".to_owned());
    let import = Request::Import { recipe: "m1".parse().unwrap(), from, by: ada() };
    let why = refused(import).await;
    assert!(!why.contains("secret"), "{why}");
    assert!(refused(Request::Cancel(RunId(99))).await.contains("no run 99"));
    let (what, on) = ("x".to_owned(), "y".to_owned());
    refused(Request::Record { by: Actor::Itself, what, on }).await;
    assert_eq!(box_.audit().await, Vec::<String>::new());
    box_.over().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_removed_ends_and_is_forgotten() {
    let box_ = Box_::new(&[]).await;
    box_.serve("m1").await;
    let engine = pid(&box_.status().await.engines[0]);
    let remove = SiteChange::RemoveEngine("fast".parse().unwrap());
    let run = box_.until_over(box_.apply(remove).await).await;
    assert_eq!(run.state, RunState::Done);
    assert!(!alive(engine));
    assert_eq!(box_.status().await.engines, []);
    box_.over().await;
}
