//! Changes of the image, with a helper in root's place that only remembers what it was told.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::collections::BTreeSet;
use std::fs;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use minisign::KeyPair;
use polder_backup::disk::Disks;
use polder_control::{
    Actor, Client, ImportSource, PowerPhase, Progress, Reply, Request, Run, RunState, SecretText,
    Sockets, Supply, UpdateStatus, UpdateWish,
};
use polder_power::nut::Driver;
use polder_recipes::Digest;
use polder_site::{Backup, PortAddress, PowerPlan, RecipeName, Site, SiteChange};
use polder_supervisor::{
    Children, Chore, Described, Ending, Helper, ImportEnd, Options, Part, Parts, PartsError,
    Patience, Places, Shelf, SupervisorError,
};
use polder_update::{Entry, Job, JobState, Manifest, Record, Slots};
use polder_weights::CancelFlag;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Root, who does what it is told.
struct Root {
    places: Places,
    state: PathBuf,
    slots: Mutex<Slots>,
    told: Mutex<Vec<Chore>>,
}

impl Root {
    fn write_down(&self) {
        let slots = serde_json::to_vec(&*self.slots.lock().unwrap()).unwrap();
        fs::write(self.places.told.join("slots.json"), slots).unwrap();
    }
}

impl Helper for Root {
    fn places(&self) -> Places {
        self.places.clone()
    }

    fn does(&self, chore: Chore) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        Box::pin(async move {
            self.told.lock().unwrap().push(chore.clone());
            if let Chore::Write(version) = &chore {
                let root =
                    format!("update/files/models/polder-{version}/polder_{version}_x86_64.root");
                assert!(self.state.join(root).exists(), "it was fetched before");
                let job = Job {
                    version: version.clone(),
                    phase: "reading back".into(),
                    done: 1,
                    total: 1,
                    state: JobState::Done,
                };
                let job = serde_json::to_vec(&job).unwrap();
                fs::write(self.places.told.join("job.json"), job).unwrap();
                let entry = Entry { version: version.clone(), tries: Some((3, 0)) };
                self.slots.lock().unwrap().entries.push(entry);
            }
            self.write_down();
            Ok(())
        })
    }
}

/// Parts as child processes, on a machine with slots.
struct OnAnImage(Children, Arc<Root>);

impl Parts for OnAnImage {
    type Process = <Children as Parts>::Process;

    async fn start(&self, part: &Part) -> Result<Self::Process, PartsError> {
        self.0.start(part).await
    }

    fn helper(&self) -> Option<Arc<dyn Helper>> {
        Some(self.1.clone())
    }
}

struct NoModels;

impl Shelf for NoModels {
    fn describe(&self, _: &RecipeName) -> Option<Described> {
        None
    }
    fn imported(&self) -> Result<BTreeSet<RecipeName>, String> {
        Ok(BTreeSet::new())
    }
    fn import(
        &self,
        _: &RecipeName,
        _: &ImportSource,
        _: &(dyn Fn(Progress) + Sync),
        _: &CancelFlag,
    ) -> Result<(), ImportEnd> {
        unreachable!("nobody asks for a model")
    }
}

struct Box_ {
    _folder: TempDir,
    root: Arc<Root>,
    running: Option<Running>,
    /// How long a steward has to confirm.
    confirm: Duration,
}

type Running = (watch::Sender<Ending>, JoinHandle<Result<(), SupervisorError>>);

impl Box_ {
    fn new(keys: &KeyPair) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(&path).unwrap();
            path
        };
        let places = Places {
            told: place("told"),
            disks: place("disks"),
            keys: place("keys"),
            nut: place("nut"),
            ports: place("ports"),
            usb: Disks {
                udev: place("udev"),
                devices: place("devices"),
                dev: "/dev".into(),
                mounts: folder.path().join("mounts"),
                lent: place("lent"),
            },
        };
        fs::write(places.keys.join("a.pub"), keys.pk.to_box().unwrap().to_string()).unwrap();
        let slots = Slots {
            running: "0.1.0".parse().unwrap(),
            arch: "x86_64".into(),
            roothash: "00".repeat(32),
            entries: vec![Entry::of_file("polder_0.1.0.efi").unwrap()],
            room: [1 << 20, 1 << 20],
            keys: 1,
        };
        let state = place("state");
        let root = Root { places, state, slots: Mutex::new(slots), told: Mutex::default() };
        root.write_down();
        let confirm = Duration::from_secs(1);
        let mut box_ = Self { _folder: folder, root: Arc::new(root), running: None, confirm };
        box_.start();
        box_
    }

    fn start(&mut self) {
        let state = self.root.state.clone();
        let parts = OnAnImage(Children::of(&toybox(), &state), self.root.clone());
        let first = Site::unclaimed(1);
        let patience = Patience { confirm: self.confirm, ..Patience::default() };
        let options = Options { state, first, port: None, listen: None, patience };
        let (end, ending) = watch::channel(Ending::No);
        let task = tokio::spawn(polder_supervisor::run(options, parts, Arc::new(NoModels), ending));
        self.running = Some((end, task));
    }

    /// The machine starts again, with this version and these boot entries.
    async fn start_again(&mut self, running: &str, files: &[&str]) {
        let (end, task) = self.running.take().unwrap();
        end.send_replace(Ending::Now);
        task.await.unwrap().unwrap();
        {
            let mut slots = self.root.slots.lock().unwrap();
            slots.running = running.parse().unwrap();
            slots.entries = files.iter().filter_map(|file| Entry::of_file(file)).collect();
        }
        self.root.write_down();
        self.start();
    }

    async fn ask(&self, request: Request) -> Reply {
        let socket = Sockets::of(&self.root.state).control();
        for _ in 0..1000 {
            if let Ok(mut desk) = Client::connect(&socket).await {
                return desk.ask(&request).await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the supervisor does not answer");
    }

    async fn updates(&self) -> UpdateStatus {
        match self.ask(Request::Updates).await {
            Reply::Updates(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    /// Asks for something and waits for what comes of it.
    async fn wish(&self, wish: UpdateWish) -> Result<Run, String> {
        let by = Actor::Member("Ada".into());
        let id = match self.ask(Request::Update { wish, by }).await {
            Reply::Accepted(id) => id,
            Reply::Refused(why) => return Err(why),
            other => panic!("{other:?}"),
        };
        loop {
            let Reply::Runs(runs) = self.ask(Request::Runs).await else { panic!() };
            let run = runs.into_iter().find(|run| run.id == id).unwrap();
            if run.state != RunState::Running {
                return Ok(run);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// A change of the site, through which the UPS is heard on mains.
    async fn change(&self, change: SiteChange) -> Run {
        let by = Actor::Member("Ada".into());
        let Reply::Accepted(id) = self.ask(Request::Apply { change, by }).await else { panic!() };
        loop {
            self.says(PowerPhase::Mains).await;
            let Reply::Runs(runs) = self.ask(Request::Runs).await else { panic!() };
            let run = runs.into_iter().find(|run| run.id == id).unwrap();
            if run.state != RunState::Running {
                return run;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn says(&self, phase: PowerPhase) {
        let supply = Supply { phase, may_start: true, on_mains: Some(true), ..Supply::default() };
        self.ask(Request::Supply(Box::new(supply))).await;
    }

    /// Waits until root was told this last, and forgets what it was told.
    async fn told(&self, chores: &[Chore]) {
        let begun = std::time::Instant::now();
        loop {
            {
                let mut told = self.root.told.lock().unwrap();
                if told.ends_with(chores) {
                    told.clear();
                    return;
                }
                let waited = begun.elapsed();
                assert!(waited < Duration::from_secs(30), "waited for {chores:?}: {told:?}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until root was told so often to give addresses, and forgets what it was told.
    async fn gave_addresses(&self, times: usize) {
        let begun = std::time::Instant::now();
        loop {
            {
                let mut told = self.root.told.lock().unwrap();
                if told.iter().filter(|chore| **chore == Chore::GiveAddresses).count() == times {
                    return told.clear();
                }
                assert!(begun.elapsed() < Duration::from_secs(30), "{told:?}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn audit(&self) -> Vec<String> {
        let Reply::Audit(entries) = self.ask(Request::Audit { before: None, limit: 50 }).await
        else {
            panic!()
        };
        entries
            .into_iter()
            .map(|entry| format!("{} {} {}", entry.by, entry.what, entry.on))
            .collect()
    }

    fn record(&self) -> Record {
        Record::load(&self.root.state).unwrap()
    }

    /// Somebody plugs in a stick with a version that the holder of these keys signed.
    fn plug_in(&self, keys: &KeyPair, version: &str) {
        let stick = self.root.places.disks.join("STICK");
        fs::create_dir_all(&stick).unwrap();
        let part = |ending: &str| {
            let name = format!("polder_{version}_x86_64.{ending}");
            let content = format!("{ending} of {version}");
            fs::write(stick.join(&name), &content).unwrap();
            let sha256 = Digest::from_bytes(Sha256::digest(&content).into());
            polder_update::Part { name, size: content.len() as u64, sha256 }
        };
        let manifest = Manifest {
            version: version.parse().unwrap(),
            arch: "x86_64".into(),
            made: 1_795_641_866,
            roothash: Digest::from_bytes([3; 32]),
            root: part("root"),
            verity: part("verity"),
            entry: part("efi"),
        };
        let (text, path) = (manifest.to_text(), stick.join(manifest.file_name("toml")));
        let reader = std::io::Cursor::new(text.as_bytes());
        let signature = minisign::sign(Some(&keys.pk), &keys.sk, reader, None, None).unwrap();
        fs::write(path.with_added_extension("minisig"), signature.to_bytes()).unwrap();
        fs::write(path, text).unwrap();
    }
}

fn keys() -> KeyPair {
    KeyPair::generate_unencrypted_keypair().unwrap()
}

#[tokio::test]
async fn nut_hears_a_ups_of_the_machines_own_and_cards_draw_less_while_the_box_saves() {
    let box_ = Box_::new(&keys());
    let mut plan = PowerPlan::attached("serial:ttyS1".parse().unwrap());
    plan.card_percent = Some(60);
    let run = box_.change(SiteChange::Power(plan.clone())).await;
    assert_eq!(run.state, RunState::Done, "{run:?}");
    box_.told(&[Chore::HearUps(None), Chore::HearUps(Some(Driver::Qx))]).await;
    let nut = |name: &str| fs::read_to_string(box_.root.places.nut.join(name)).unwrap();
    assert!(nut("ups.conf").contains("/dev/ttyS1"));
    assert!(nut("upsd.conf").contains("LISTEN 127.0.0.1 "));
    assert!(!nut("upsd.users").contains("[polder]"));

    box_.says(PowerPhase::Saving).await;
    box_.told(&[Chore::LimitCards(60)]).await;
    box_.says(PowerPhase::Draining).await;
    box_.says(PowerPhase::Mains).await;
    box_.told(&[Chore::LimitCards(100)]).await;

    // With a password other machines may ask too; it is in one file of the box's and one of NUT's, and nowhere else.
    let text = SecretText::new("a lamp beside the harbour");
    let by = Actor::Member("Ada".into());
    assert_eq!(box_.ask(Request::UpsPassword { text, by: by.clone() }).await, Reply::Done);
    box_.told(&[Chore::HearUps(None), Chore::HearUps(Some(Driver::Qx))]).await;
    assert!(nut("upsd.conf").contains("LISTEN 0.0.0.0 "));
    assert!(nut("upsd.users").contains("[polder]\n  password = \"a lamp beside the harbour\""));
    let kept = box_.root.state.join("power/password");
    assert_eq!(fs::read_to_string(&kept).unwrap(), "a lamp beside the harbour\n");
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);
    let trail = box_.audit().await;
    assert!(trail.contains(&"Ada entered the password for the UPS".to_owned()), "{trail:?}");
    assert!(trail.iter().all(|entry| !entry.contains("harbour")));
    let site = fs::read_to_string(box_.root.state.join("site.toml")).unwrap();
    assert!(site.contains("attached = \"serial:ttyS1\"") && !site.contains("harbour"), "{site}");
    let long = SecretText::new(&"x".repeat(201));
    assert!(matches!(
        box_.ask(Request::UpsPassword { text: long, by: by.clone() }).await,
        Reply::Refused(_)
    ));

    // A watch that ends while the box saves leaves no card at less than it had.
    box_.says(PowerPhase::Saving).await;
    box_.told(&[Chore::LimitCards(60)]).await;
    let run = box_.change(SiteChange::RemovePower).await;
    assert_eq!(run.state, RunState::Done, "{run:?}");
    let begun = std::time::Instant::now();
    loop {
        let told = box_.root.told.lock().unwrap().clone();
        if [Chore::HearUps(None), Chore::LimitCards(100)].iter().all(|chore| told.contains(chore)) {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{told:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!box_.root.places.nut.join("ups.conf").exists());
    let empty = SecretText::new("");
    assert_eq!(box_.ask(Request::UpsPassword { text: empty, by }).await, Reply::Done);
    assert!(!kept.exists());
}

#[tokio::test]
async fn an_update_from_a_stick_is_found_fetched_written_tried_and_kept() {
    let keys = keys();
    let mut box_ = Box_::new(&keys);
    let nothing = box_.ask(Request::CheckUpdate).await;
    assert!(
        matches!(&nothing, Reply::Refused(why) if why.contains("plug in a stick")),
        "{nothing:?}"
    );
    box_.plug_in(&keys, "0.2.0");
    let Reply::Updates(found) = box_.ask(Request::CheckUpdate).await else { panic!() };
    let offer = found.offer.unwrap();
    assert_eq!((offer.version.as_str(), offer.here), ("0.2.0", false));

    let run = box_.wish(UpdateWish::Apply).await.unwrap();
    // There is no machine here that could start again; everything before that is done.
    let RunState::Failed(why) = &run.state else { panic!("{run:?}") };
    assert!(why.contains("cannot be started again from here"), "{why}");
    assert_eq!(*box_.root.told.lock().unwrap(), [Chore::Write("0.2.0".parse().unwrap())]);
    let attempt = box_.record().attempt.unwrap();
    assert_eq!(
        (attempt.from.as_str(), attempt.to.as_str(), attempt.by.as_str()),
        ("0.1.0", "0.2.0", "Ada")
    );
    assert_eq!(box_.updates().await.trying.as_deref(), Some("0.2.0"));

    box_.start_again("0.2.0", &["polder_0.1.0.efi", "polder_0.2.0+2-1.efi"]).await;
    assert_eq!(box_.ask(Request::Judge).await, Reply::Judged(None));
    let status = box_.updates().await;
    assert!(status.why[0].contains("Ada put in 0.2.0") && status.why[0].contains("stays since"));
    assert_eq!((status.trying, status.offer), (None, None));
    assert!(box_.audit().await.contains(&"the box keeps Polder 0.2.0".to_owned()));
}

#[tokio::test]
async fn a_version_that_can_do_less_is_found_out_and_its_end_is_told_by_the_one_before() {
    let keys = keys();
    let mut box_ = Box_::new(&keys);
    box_.plug_in(&keys, "0.2.0");
    box_.ask(Request::CheckUpdate).await;
    box_.wish(UpdateWish::Apply).await.unwrap();
    // As if a model had answered before.
    let mut record = box_.record();
    record.attempt.as_mut().unwrap().before.answering.push("fast".into());
    record.save(&box_.root.state).unwrap();

    box_.start_again("0.2.0", &["polder_0.1.0.efi", "polder_0.2.0+2-1.efi"]).await;
    let judged = box_.ask(Request::Judge).await;
    assert_eq!(judged, Reply::Judged(Some("fast was not there any more".into())));
    box_.start_again("0.1.0", &["polder_0.1.0.efi", "polder_0.2.0+0-3.efi"]).await;
    let entry = "the box went back to Polder 0.1.0".to_owned();
    for _ in 0..500 {
        if box_.audit().await.contains(&entry) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(box_.audit().await.contains(&entry));
    let told = box_.updates().await.why;
    assert!(told[0].contains("It was started 3 times and then left; 0.1.0 runs again"), "{told:?}");
    assert!(told[0].contains("fast was not there any more"), "{told:?}");
}

#[tokio::test]
async fn a_stick_of_somebody_else_changes_nothing() {
    let box_ = Box_::new(&keys());
    box_.plug_in(&keys(), "0.2.0");
    let refused = box_.ask(Request::CheckUpdate).await;
    assert!(
        matches!(&refused, Reply::Refused(why) if why.contains("not signed by anyone")),
        "{refused:?}"
    );
    let why = box_.wish(UpdateWish::Apply).await.unwrap_err();
    assert!(why.contains("look for one first"), "{why}");
    let why = box_.wish(UpdateWish::Back).await.unwrap_err();
    assert!(why.contains("nothing to go back to"), "{why}");
    assert!(box_.root.told.lock().unwrap().is_empty());
}

fn toybox() -> PathBuf {
    let deps = std::env::current_exe().unwrap();
    deps.parent().unwrap().parent().unwrap().join("examples/toybox")
}

#[tokio::test]
async fn an_update_is_refused_while_it_would_be_unsafe_and_only_then() {
    let keys = keys();
    let box_ = Box_::new(&keys);
    box_.plug_in(&keys, "0.2.0");
    assert!(matches!(box_.ask(Request::CheckUpdate).await, Reply::Updates(_)));
    let preview = || Request::PreviewUpdate(UpdateWish::Apply);
    // Nobody who looks after health has to answer for an update.
    assert!(matches!(box_.ask(preview()).await, Reply::Preview { .. }));
    fs::write(box_.root.state.join("unsafe"), "the disk is full").unwrap();
    let health = Sockets::of(&box_.root.state).health();
    while !health.exists() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for wish in [UpdateWish::Apply, UpdateWish::Fetch] {
        let refused = box_.ask(Request::PreviewUpdate(wish)).await;
        let why = "no update now: the disk is full. Make room";
        assert_eq!(refused, Reply::Refused(why.to_owned()));
    }
    fs::remove_file(box_.root.state.join("unsafe")).unwrap();
    assert!(matches!(box_.ask(preview()).await, Reply::Preview { .. }));
}

#[tokio::test]
async fn that_nobody_could_be_asked_for_updates_is_remembered_since_when_until_somebody_answers() {
    let keys = keys();
    let box_ = Box_::new(&keys);
    // Without a place to look nobody failed.
    assert!(matches!(box_.ask(Request::CheckUpdate).await, Reply::Refused(_)));
    assert_eq!(box_.updates().await.unlooked, None);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let updates_from = |folder: &str| {
        let from = format!("http://{free}/{folder}").parse().unwrap();
        SiteChange::Updates(polder_site::Updates { from })
    };
    box_.change(updates_from("updates")).await;
    assert!(matches!(box_.ask(Request::CheckUpdate).await, Reply::Refused(_)));
    let (seconds, why) = box_.updates().await.unlooked.unwrap();
    assert!(why.contains("gave no update") && seconds == 0, "{why}");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert!(matches!(box_.ask(Request::CheckUpdate).await, Reply::Refused(_)));
    let since_the_first = box_.updates().await.unlooked.unwrap().0;
    assert!((1..60).contains(&since_the_first), "{since_the_first}");
    // Another place has not failed yet, and where none is said nobody fails.
    box_.change(updates_from("other")).await;
    assert_eq!(box_.updates().await.unlooked, None);
    assert!(matches!(box_.ask(Request::CheckUpdate).await, Reply::Refused(_)));
    assert_eq!(box_.updates().await.unlooked.unwrap().0, 0);
    box_.change(SiteChange::RemoveUpdates).await;
    assert_eq!(box_.updates().await.unlooked, None);
    box_.change(updates_from("other")).await;
    box_.plug_in(&keys, "0.2.0");
    assert!(matches!(box_.ask(Request::CheckUpdate).await, Reply::Updates(_)));
    assert_eq!(box_.updates().await.unlooked, None);
}

#[tokio::test]
async fn an_address_of_a_port_is_given_by_root_and_taken_back_unless_somebody_confirms() {
    let mut box_ = Box_::new(&keys());
    let port = |name: &str, line: &str| SiteChange::Port {
        port: name.parse().unwrap(),
        address: PortAddress::line(line).unwrap(),
    };
    let by = Actor::Member("Ada".into());
    let by_dhcp = |name: &str| SiteChange::Port {
        port: name.parse().unwrap(),
        address: PortAddress::default(),
    };
    for (name, kind) in [("enp1s0", "1\n"), ("lo0", "772\n")] {
        fs::create_dir(box_.root.places.ports.join(name)).unwrap();
        fs::write(box_.root.places.ports.join(name).join("type"), kind).unwrap();
    }
    for other in ["enp9s0", "lo0"] {
        let change = port(other, "10.0.0.5/8");
        let said = box_.ask(Request::Apply { change, by: by.clone() }).await;
        let why = format!("this machine has no network port called {other}; it has enp1s0");
        assert_eq!(said, Reply::Refused(why));
    }
    let site = |box_: &Box_| fs::read_to_string(box_.root.state.join("site.toml")).unwrap();
    let run = box_.change(port("enp1s0", "10.0.0.5/8 10.0.0.1")).await;
    let RunState::Failed(why) = run.state else { panic!("{run:?}") };
    assert_eq!(why, "nobody confirmed it in time; the change was undone");
    // Once with it, and once without.
    box_.gave_addresses(2).await;
    assert!(!site(&box_).contains("10.0.0.5"), "{}", site(&box_));

    // The power goes before anybody could say that it is good: at the next start it still has to be said, for which there is time.
    box_.confirm = Duration::from_secs(20);
    box_.start_again("0.1.0", &["polder_0.1.0.efi"]).await;
    let change = port("enp1s0", "10.0.0.6/8");
    let Reply::Accepted(run) = box_.ask(Request::Apply { change, by: by.clone() }).await else {
        panic!()
    };
    box_.gave_addresses(1).await;
    box_.start_again("0.1.0", &["polder_0.1.0.efi"]).await;
    box_.gave_addresses(1).await;
    let begun = std::time::Instant::now();
    while box_.ask(Request::Confirm { run, by: by.clone() }).await != Reply::Done {
        assert!(begun.elapsed() < Duration::from_secs(30), "nothing waits to be confirmed");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let begun = std::time::Instant::now();
    loop {
        let Reply::Runs(runs) = box_.ask(Request::Runs).await else { panic!() };
        match runs.into_iter().find(|known| known.id == run).unwrap().state {
            RunState::Done => break,
            RunState::Running => {}
            other => panic!("{other:?}"),
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "it does not end");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(site(&box_).contains("addresses = [\"10.0.0.6/8\"]"), "{}", site(&box_));
    let trail = box_.audit().await;
    assert!(
        trail.contains(&"Ada confirmed Give the port enp1s0 10.0.0.6/8".to_owned()),
        "{trail:?}"
    );

    // Its card is taken out while a change of it is under way: the change cannot go on, and is undone.
    let change = port("enp1s0", "10.0.0.7/8");
    let Reply::Accepted(run) = box_.ask(Request::Apply { change, by: by.clone() }).await else {
        panic!()
    };
    box_.gave_addresses(1).await;
    assert!(site(&box_).contains("10.0.0.7"), "{}", site(&box_));
    fs::remove_dir_all(box_.root.places.ports.join("enp1s0")).unwrap();
    box_.start_again("0.1.0", &["polder_0.1.0.efi"]).await;
    box_.gave_addresses(1).await;
    let Reply::Runs(runs) = box_.ask(Request::Runs).await else { panic!() };
    let ended = runs.into_iter().find(|known| known.id == run).unwrap().state;
    let RunState::Failed(why) = ended else { panic!("{ended:?}") };
    assert!(why.contains("no network port") && why.contains("was undone"), "{why}");
    assert!(site(&box_).contains("addresses = [\"10.0.0.6/8\"]"), "{}", site(&box_));

    // What it has is given up, so that another port may have it; nothing is left of it.
    let change = by_dhcp("enp1s0");
    let Reply::Accepted(run) = box_.ask(Request::Apply { change, by: by.clone() }).await else {
        panic!()
    };
    box_.gave_addresses(1).await;
    while box_.ask(Request::Confirm { run, by: by.clone() }).await != Reply::Done {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!site(&box_).contains("[ports"), "{}", site(&box_));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_is_listed_with_what_is_wrong_with_it_and_none_is_opened_that_takes_no_backups() {
    let box_ = Box_::new(&keys());
    let by = Actor::Member("Ada".into());
    let Reply::Kit(key) = box_.ask(Request::BackupKit { by: by.clone() }).await else { panic!() };
    assert_eq!(box_.ask(Request::ConfirmKit { key, by: by.clone() }).await, Reply::Done);
    let usb = &box_.root.places.usb;
    let plug = |kind: &str| {
        let at = usb.devices.join("8:17");
        fs::create_dir_all(&at).unwrap();
        fs::write(at.join("size"), "131072\n").unwrap();
        fs::write(at.join("uevent"), "DEVNAME=no-such-disk\n").unwrap();
        let known = format!(
            "E:ID_BUS=usb\nE:ID_TYPE=disk\nE:ID_MODEL=Stick\nE:ID_FS_USAGE=filesystem\nE:ID_FS_TYPE={kind}\nE:ID_FS_UUID=1C2E-44AF\nE:ID_FS_LABEL_ENC=SAFE\n"
        );
        fs::write(usb.udev.join("b8:17"), known).unwrap();
    };
    let to = |place: &str| {
        let change = SiteChange::Backup(Backup::to(place.parse().unwrap()));
        let ask = Request::Apply { change, by: by.clone() };
        async {
            match box_.ask(ask).await {
                Reply::Refused(why) => why,
                other => panic!("{other:?}"),
            }
        }
    };
    let away = to("disk:SAFE@1C2E-44AF").await;
    assert!(away.starts_with("the disk SAFE is not plugged in; plug it in"), "{away}");
    plug("ntfs");
    let Reply::Backup(status) = box_.ask(Request::Backup).await else { panic!() };
    let listed: Vec<_> = status.disks.iter().map(|disk| disk.place.as_deref()).collect();
    assert_eq!(listed, [Some("disk:SAFE@1C2E-44AF")]);
    let wrong = status.disks[0].wrong.clone().unwrap();
    assert!(wrong.contains("format it as exFAT"), "{wrong}");
    assert_eq!(to("disk:SAFE@1C2E-44AF").await, wrong);
    assert_eq!(to("disk:SAFE").await, wrong);
    // One that would do, and that nobody has mounted.
    plug("exfat");
    let why = to("disk:SAFE@1C2E-44AF").await;
    assert!(why.contains("the disk SAFE cannot be reached"), "{why}");
    let told = box_.root.told.lock().unwrap().clone();
    assert!(!told.iter().any(|chore| matches!(chore, Chore::LendDisk(_))), "{told:?}");
}
