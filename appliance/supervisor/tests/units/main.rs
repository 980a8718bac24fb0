//! The real supervisor over units of a small systemd: real processes, a real bus.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

mod systemd;

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use polder_control::{
    Actor, BoxStatus, Client, ImportSource, PartState, Power, Progress, Reply, Request, Run,
    RunState, Sockets,
};
use polder_site::{Container, EngineKind, EngineSlot, RecipeName, Served, Site, SiteChange};
use polder_supervisor::systemd::{Bus, Host, Units};
use polder_supervisor::{
    Described, Ending, ImportEnd, Options, Part, Parts, Patience, Shelf, SupervisorError,
};
use polder_weights::CancelFlag;
use rustix::process::{Pid, Signal, kill_process};
use systemd::Systemd;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

const GATEWAY: &str = "polder-gateway.service";
const ENGINE: &str = "polder-engine@fast.service";

/// Every model is there.
struct FullShelf;

impl Shelf for FullShelf {
    fn describe(&self, recipe: &RecipeName) -> Option<Described> {
        Some(Described { title: recipe.to_string(), bytes: None })
    }
    fn imported(&self) -> Result<BTreeSet<RecipeName>, String> {
        Ok(["m1", "m2"].map(|name| name.parse().unwrap()).into())
    }
    fn import(
        &self,
        _: &RecipeName,
        _: &ImportSource,
        _: &(dyn Fn(Progress) + Sync),
        _: &CancelFlag,
    ) -> Result<(), ImportEnd> {
        unreachable!("every model is there")
    }
}

struct Box_ {
    state: TempDir,
    systemd: Systemd,
    end: watch::Sender<Ending>,
    task: JoinHandle<Result<(), SupervisorError>>,
}

impl Box_ {
    async fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        let systemd = Systemd::of(&toybox(), state.path()).await;
        let (end, task) = begin(&state, &systemd);
        let box_ = Self { state, systemd, end, task };
        box_.until(|s| s.gateway.state == PartState::Ready).await;
        box_
    }

    async fn serving() -> Self {
        let box_ = Self::new().await;
        let run = box_.serve("m1").await;
        assert_eq!(run.state, RunState::Done, "{run:?}");
        box_
    }

    /// The supervisor crashes; another one begins.
    async fn crashed(self) -> Self {
        let Self { state, systemd, task, .. } = self;
        task.abort();
        let _ = task.await;
        // A child that is just being started has its parent's lock until it is a program of its own.
        let lock = File::open(Sockets::of(state.path()).folder().join("supervisor.lock")).unwrap();
        lock.lock().unwrap();
        drop(lock);
        let (end, task) = begin(&state, &systemd);
        Self { state, systemd, end, task }
    }

    async fn ask(&self, request: Request) -> Reply {
        let begun = Instant::now();
        loop {
            let desk = Client::connect(&Sockets::of(self.state.path()).control()).await;
            match desk {
                Ok(mut desk) => return desk.ask(&request).await.unwrap(),
                Err(error) => assert!(begun.elapsed() < Duration::from_secs(20), "{error}"),
            }
            sleep(Duration::from_millis(5)).await;
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
            assert!(begun.elapsed() < Duration::from_secs(30), "still {status:?}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    async fn change(&self, change: SiteChange) -> Run {
        let by = Actor::Member("ada".to_owned());
        let Reply::Accepted(id) = self.ask(Request::Apply { change, by }).await else {
            panic!("refused");
        };
        let begun = Instant::now();
        loop {
            let Reply::Runs(runs) = self.ask(Request::Runs).await else { panic!("no runs") };
            let run = runs.into_iter().find(|run| run.id == id).unwrap();
            if run.state != RunState::Running {
                return run;
            }
            assert!(begun.elapsed() < Duration::from_secs(40), "still {run:?}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    async fn serve(&self, model: &str) -> Run {
        let slot = EngineSlot::serving(model.parse().unwrap());
        self.change(SiteChange::Engine { name: "fast".parse().unwrap(), slot }).await
    }

    fn behave(&self, part: &str, behaviour: &str) {
        std::fs::write(self.state.path().join(format!("behave-{part}")), behaviour).unwrap();
    }

    fn was_asked(&self, call: &str) -> usize {
        self.systemd.calls().iter().filter(|asked| *asked == call).count()
    }

    async fn over(self) {
        self.end.send_replace(Ending::InOrder);
        self.task.await.unwrap().unwrap();
        assert_eq!((self.systemd.pid(GATEWAY), self.systemd.pid(ENGINE)), (0, 0), "it still runs");
    }
}

fn begin(
    state: &TempDir,
    systemd: &Systemd,
) -> (watch::Sender<Ending>, JoinHandle<Result<(), SupervisorError>>) {
    let (end, ending) = watch::channel(Ending::No);
    let second = Duration::from_secs(1);
    let options = Options {
        state: state.path().to_owned(),
        first: Site::unclaimed(8443),
        port: None,
        listen: None,
        patience: Patience {
            gateway: 2 * second,
            engine: 2 * second,
            last: second,
            confirm: second,
        },
    };
    let units = Units::on(systemd.bus(), &options.state);
    (end, tokio::spawn(polder_supervisor::run(options, units, Arc::new(FullShelf), ending)))
}

/// Examples are built beside the tests.
fn toybox() -> PathBuf {
    let deps = std::env::current_exe().unwrap();
    deps.parent().unwrap().parent().unwrap().join("examples/toybox")
}

fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
}

fn ready(status: &BoxStatus) -> bool {
    status.engines.first().is_some_and(|engine| engine.part.state == PartState::Ready)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_dies_comes_back_and_the_gateway_does_not_notice() {
    let box_ = Box_::serving().await;
    let before = box_.status().await;
    assert_eq!(before.engines[0].part.pid, Some(box_.systemd.pid(ENGINE)));
    kill(box_.systemd.pid(ENGINE));
    let after = box_.until(|s| s.engines[0].part.restarts == 1 && ready(s)).await;
    assert_ne!(after.engines[0].part.pid, before.engines[0].part.pid);
    assert_eq!(after.gateway, before.gateway);
    box_.over().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_only_crashes_is_given_up_with_what_it_said() {
    let box_ = Box_::new().await;
    box_.behave("engine-fast", "crash");
    let RunState::Failed(why) = box_.serve("m1").await.state else { panic!("it did not fail") };
    assert!(why.contains("died 5 times") && why.contains("exit status 3"), "{why}");
    assert!(why.contains("after saying: the toy is broken"), "{why}");
    assert_eq!(box_.was_asked(&format!("StartUnit {ENGINE} replace")), 5);
    box_.over().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_makes_room_is_asked_to_finish_first() {
    let box_ = Box_::serving().await;
    let first = box_.systemd.pid(ENGINE);
    let run = box_.serve("m2").await;
    assert_eq!(run.state, RunState::Done, "{run:?}");
    assert_ne!(box_.systemd.pid(ENGINE), first);
    assert_eq!(box_.was_asked(&format!("KillUnit {ENGINE} main 15")), 1);
    let calls = box_.systemd.calls();
    assert!(!calls.iter().any(|c| c.starts_with("StopUnit") || c.ends_with(" 9")), "{calls:?}");
    box_.over().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_does_not_end_is_hurried_and_then_killed_with_all_it_started() {
    let box_ = Box_::new().await;
    box_.behave("engine-fast", "stubborn");
    box_.serve("m1").await;
    let run = box_.change(SiteChange::RemoveEngine("fast".parse().unwrap())).await;
    assert_eq!(run.state, RunState::Done, "{run:?}");
    let calls = box_.systemd.calls();
    let end = [
        format!("KillUnit {ENGINE} main 15"),
        format!("KillUnit {ENGINE} main 15"),
        format!("KillUnit {ENGINE} all 9"),
    ];
    assert!(calls.ends_with(&end), "{calls:?}");
    box_.over().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_outlive_a_supervisor_that_crashes_and_the_next_one_takes_them_over() {
    let box_ = Box_::serving().await;
    box_.systemd.start("polder-engine@left-over.service").await;
    let (gateway, engine) = (box_.systemd.pid(GATEWAY), box_.systemd.pid(ENGINE));
    let starts = box_.was_asked(&format!("StartUnit {ENGINE} replace"));

    let box_ = box_.crashed().await;
    let status = box_.until(|s| ready(s) && s.gateway.state == PartState::Ready).await;
    assert_eq!(status.gateway.pid, Some(gateway));
    assert_eq!(status.engines[0].part.pid, Some(engine));
    assert_eq!(box_.was_asked(&format!("StartUnit {ENGINE} replace")), starts);
    let begun = Instant::now();
    while box_.systemd.pid("polder-engine@left-over.service") != 0 {
        assert!(begun.elapsed() < Duration::from_secs(10), "an engine that nobody wants runs on");
        sleep(Duration::from_millis(10)).await;
    }
    // What was taken over is looked after like one's own.
    kill(engine);
    box_.until(|s| s.engines[0].part.restarts == 1 && ready(s)).await;
    box_.over().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_another_server_serves_is_a_unit_with_a_network_and_one_that_a_container_serves_is_one_without()
 {
    const SERVED: &str = "polder-served@fast.service";
    const CONTAINED: &str = "polder-contained@fast.service";
    let box_ = Box_::serving().await;
    let recipe: polder_site::RecipeName = "tiny".parse().unwrap();
    let mut slot = EngineSlot::serving(recipe);
    let url = "https://elm.example.org:8443/v1".parse().unwrap();
    slot.kind = EngineKind::Url;
    slot.served = Some(Box::new(Served { url, authority: None, called: None }));
    let change = SiteChange::Engine { name: "fast".parse().unwrap(), slot: slot.clone() };
    box_.change(change).await;
    // The one went, the other came; and what is asked of the slot goes the same way as before.
    assert_eq!(box_.systemd.pid(ENGINE), 0);
    assert_ne!(box_.systemd.pid(SERVED), 0);
    let status = box_.until(ready).await;
    assert_eq!(status.engines[0].part.pid, Some(box_.systemd.pid(SERVED)));
    // The next supervisor takes it over.
    let pid = box_.systemd.pid(SERVED);
    let box_ = box_.crashed().await;
    let status = box_.until(ready).await;
    assert_eq!((status.engines[0].part.pid, box_.systemd.pid(SERVED)), (Some(pid), pid));
    slot.recipe = "m1".parse().unwrap();
    slot.kind = EngineKind::Container;
    slot.served = None;
    slot.container = Some(Box::new(Container {
        image: "docker.io/vllm/vllm-openai".parse().unwrap(),
        digest: lying_image(box_.state.path()).parse().unwrap(),
        authority: None,
        port: 8000,
        arguments: Vec::new(),
        called: None,
        health: None,
        environment: Default::default(),
    }));
    let change = |slot: &EngineSlot| SiteChange::Engine {
        name: "fast".parse().unwrap(),
        slot: slot.clone(),
    };
    let run = box_.change(change(&slot)).await;
    assert_eq!(run.state, RunState::Done, "{run:?}");
    assert_eq!((box_.systemd.pid(ENGINE), box_.systemd.pid(SERVED)), (0, 0));
    let pid = box_.systemd.pid(CONTAINED);
    assert_ne!(pid, 0);
    let status = box_.until(ready).await;
    assert_eq!(status.engines[0].part.pid, Some(pid));
    // What it unpacks goes into a folder that it finds: it may make none.
    let unpacked = box_.state.path().join("containers/slots/fast");
    std::fs::write(unpacked.join("storage"), "an image").unwrap();
    let box_ = box_.crashed().await;
    box_.until(ready).await;
    assert_eq!((box_.systemd.pid(CONTAINED), unpacked.join("storage").exists()), (pid, true));
    // Our own engine again: the container is gone, what was unpacked, and the image that nobody names any more.
    (slot.kind, slot.container) = (EngineKind::Polder, None);
    let run = box_.change(change(&slot)).await;
    assert_eq!(run.state, RunState::Done, "{run:?}");
    assert_eq!(box_.systemd.pid(CONTAINED), 0);
    assert_ne!(box_.systemd.pid(ENGINE), 0);
    assert!(!unpacked.exists());
    let images = box_.state.path().join("containers/fetched/images");
    assert_eq!(std::fs::read_dir(images).unwrap().count(), 0);
    box_.over().await;
}

/// An image that was fetched before, which nobody looks into here; gives its digest.
fn lying_image(state: &std::path::Path) -> String {
    use sha2::Digest;
    let hex = |text: &str| -> String {
        sha2::Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let described =
        |text: &str| format!("{{\"digest\":\"sha256:{}\",\"size\":{}}}", hex(text), text.len());
    let manifest =
        format!("{{\"config\":{},\"layers\":[{}]}}", described("{}"), described("a layer"));
    let folder = state.join("containers/fetched/images").join(hex(&manifest));
    std::fs::create_dir_all(&folder).unwrap();
    for (name, text) in [
        ("manifest.json".to_owned(), manifest.as_str()),
        (hex("{}"), "{}"),
        (hex("a layer"), "a layer"),
    ] {
        std::fs::write(folder.join(name), text).unwrap();
    }
    format!("sha256:{}", hex(&manifest))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bus_that_is_away_kills_nobody_and_what_died_meanwhile_is_seen_afterwards() {
    let mut box_ = Box_::serving().await;
    let before = box_.status().await;
    box_.systemd.go_away().await;
    sleep(Duration::from_secs(3)).await;
    assert_eq!(box_.status().await, before);
    kill(box_.systemd.pid(ENGINE));
    sleep(Duration::from_millis(500)).await;
    box_.systemd.come_back();
    let after = box_.until(|s| s.engines[0].part.restarts == 1 && ready(s)).await;
    assert_eq!(after.gateway, before.gateway);
    box_.over().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_somebody_else_restarted_is_taken_over_again() {
    let box_ = Box_::serving().await;
    let before = box_.systemd.pid(ENGINE);
    kill(before);
    // What still counts as running is not started.
    while box_.systemd.pid(ENGINE) == before {
        sleep(Duration::from_millis(1)).await;
    }
    box_.systemd.start(ENGINE).await;
    let now = box_.systemd.pid(ENGINE);
    box_.until(|s| ready(s) && s.engines[0].part.pid == Some(now)).await;
    box_.over().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_box_goes_back_to_a_version_that_does_not_know_all_of_its_site() {
    let state = tempfile::tempdir().unwrap();
    let newer = Site::unclaimed(8443).to_toml() + "\n[lamps]\nkitchen = true\n";
    std::fs::write(state.path().join("site.toml"), newer).unwrap();
    let systemd = Systemd::of(&toybox(), state.path()).await;
    let (end, task) = begin(&state, &systemd);
    let box_ = Box_ { state, systemd, end, task };
    assert_eq!(box_.serve("m1").await.state, RunState::Done);
    let site = std::fs::read_to_string(box_.state.path().join("site.toml")).unwrap();
    assert!(site.contains("[engines.fast]") && site.contains("[lamps]\nkitchen = true"), "{site}");
    box_.over().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sockets_may_be_on_another_file_system() {
    let (state, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::os::unix::fs::symlink(run.path(), state.path().join("run")).unwrap();
    let systemd = Systemd::of(&toybox(), state.path()).await;
    let (end, task) = begin(&state, &systemd);
    let box_ = Box_ { state, systemd, end, task };
    box_.until(|s| s.gateway.state == PartState::Ready).await;
    for socket in ["control.sock", "gateway.sock"] {
        assert!(run.path().join(socket).exists(), "{socket} is elsewhere");
    }
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&run.path().metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o700);
    box_.over().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_supervisor_without_a_bus_waits_for_it_and_ends_when_told() {
    let state = tempfile::tempdir().unwrap();
    let mut systemd = Systemd::of(&toybox(), state.path()).await;
    systemd.go_away().await;
    let (end, task) = begin(&state, &systemd);
    let box_ = Box_ { state, systemd, end, task };
    box_.until(|s| s.gateway.state == PartState::Starting).await;
    box_.end.send_replace(Ending::InOrder);
    tokio::time::timeout(Duration::from_secs(10), box_.task).await.unwrap().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_is_given_up_leaves_nothing_running_that_ran_before_it() {
    const LEFT_OVER: &str = "polder-engine@left-over.service";
    let mut box_ = Box_::new().await;
    box_.systemd.start(LEFT_OVER).await;
    box_.systemd.go_away().await;
    let (units, part) =
        (Units::on(box_.systemd.bus(), box_.state.path()), "left-over".parse().unwrap());
    let start = async { units.start(&Part::Engine(part)).await.map(drop) };
    let started = tokio::time::timeout(Duration::from_millis(300), start).await;
    assert!(started.is_err(), "there is no bus");
    assert_ne!(box_.systemd.pid(LEFT_OVER), 0, "it ended by itself");
    box_.systemd.come_back();
    let begun = Instant::now();
    while box_.systemd.pid(LEFT_OVER) != 0 {
        assert!(begun.elapsed() < Duration::from_secs(10), "an engine that nobody keeps runs on");
        sleep(Duration::from_millis(10)).await;
    }
    box_.over().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_supervisor_that_ends_while_it_starts_a_part_has_it_stopped_first() {
    let Box_ { state, mut systemd, end, task } = Box_::new().await;
    let first = end;
    systemd.go_away().await;
    task.abort();
    let _ = task.await;
    drop(first);
    let (end, task) = begin(&state, &systemd);
    let box_ = Box_ { state, systemd, end, task };
    box_.until(|s| s.gateway.state == PartState::Starting).await;
    let Box_ { state: _state, mut systemd, end, task } = box_;
    end.send_replace(Ending::InOrder);
    sleep(Duration::from_millis(500)).await;
    systemd.come_back();
    task.await.unwrap().unwrap();
    let stop = format!("StopUnit {GATEWAY} replace");
    assert!(systemd.calls().contains(&stop), "{:?}", systemd.calls());
}

#[tokio::test]
async fn a_bus_that_says_nothing_does_not_hold_up_the_start_of_the_box() {
    let units = Units::on(Bus::over(std::future::pending), Path::new("/nowhere"));
    let begun = Instant::now();
    units.keep_only(&BTreeSet::new()).await;
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_user_who_may_not_start_units_is_told_what_to_look_at() {
    let state = tempfile::tempdir().unwrap();
    let systemd = Systemd::of(&toybox(), state.path()).await;
    systemd.forbid();
    let Err(error) = Units::on(systemd.bus(), Path::new("/nowhere")).start(&Part::Gateway).await
    else {
        panic!()
    };
    let said = error.to_string();
    assert!(said.starts_with("could not start polder-gateway.service: "), "{said}");
    assert!(said.contains("polkit"), "{said}");
}

#[tokio::test]
async fn a_machine_is_turned_off_and_restarted_without_asking_anybody() {
    let state = tempfile::tempdir().unwrap();
    let systemd = Systemd::of(&toybox(), state.path()).await;
    let host = Host::on(systemd.bus());
    host.power_off().await.unwrap();
    host.restart().await.unwrap();
    assert_eq!(systemd.calls(), ["PowerOff false", "Reboot false"]);
    systemd.forbid();
    let error = host.power_off().await.unwrap_err().to_string();
    assert!(error.starts_with("could not turn off this machine: "), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_at_the_machine_turns_it_off_and_the_trail_hears_of_it() {
    let box_ = Box_::new().await;
    for (how, call) in [(Power::Off, "PowerOff false"), (Power::Restart, "Reboot false")] {
        assert_eq!(box_.ask(Request::Power { how, by: Actor::Console }).await, Reply::Done);
        assert!(box_.systemd.calls().iter().any(|made| made == call), "{:?}", box_.systemd.calls());
    }
    let Reply::Audit(trail) = box_.ask(Request::Audit { before: None, limit: 2 }).await else {
        panic!("no trail")
    };
    let did: Vec<&str> = trail.iter().map(|entry| entry.what.as_str()).collect();
    assert_eq!(did, ["started again", "turned off"]);
    box_.over().await;
}

#[tokio::test]
async fn a_shutdown_waits_for_whoever_holds_it_and_is_noticed_by_them() {
    let state = tempfile::tempdir().unwrap();
    let systemd = Systemd::of(&toybox(), state.path()).await;
    let host = Host::on(systemd.bus());
    let hold = host.hold("parts finish what they have").await.unwrap();
    assert_eq!(systemd.calls(), ["Inhibit shutdown by Polder (parts finish what they have) delay"]);
    assert!(!systemd.nobody_delays());
    let noticed = tokio::spawn(async move { host.goes_down().await });
    sleep(Duration::from_millis(200)).await;
    assert!(!noticed.is_finished());
    systemd.begin_shutdown().await;
    tokio::time::timeout(Duration::from_secs(5), noticed).await.unwrap().unwrap();
    drop(hold);
    assert!(systemd.nobody_delays());
}
