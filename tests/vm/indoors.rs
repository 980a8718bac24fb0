//! The image's own system without a machine around it, in namespaces of this one: its init, its units locked up as they are, its NUT. What
//! needs no firmware, no disk and no kernel of its own is seen here in seconds, with processors that are not emulated.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use polder_control::{
    Actor, BackupWish, Client, KitWords, Reply, Request, RunId, RunState, StepState,
};
use polder_site::{
    Backup, Container, EngineKind, EngineSlot, PortAddress, SiteChange, Uplink, Uplinks,
};
use polder_stories::{need, scaled};
use tempfile::TempDir;

use crate::machine::Kind;

#[path = "../../appliance/upstream/tests/toy/mod.rs"]
#[allow(dead_code, reason = "another test takes all of it")]
mod toy;

/// Whatever one waits for here takes seconds on a machine that does nothing else.
const PATIENCE: Duration = Duration::from_secs(180);

/// The system, and what it keeps when it is off.
struct Indoors {
    folder: TempDir,
    system: Option<Child>,
}

impl Indoors {
    fn new() -> Self {
        let mut indoors = Self { folder: tempfile::tempdir().unwrap(), system: None };
        indoors.start();
        indoors
    }

    fn start(&mut self) {
        let folder = self.folder.path();
        fs::write(folder.join("kmsg"), []).unwrap();
        let log = fs::File::create(folder.join("system.log")).unwrap();
        let mut command = Command::new("unshare");
        command.args([
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--cgroup",
            "--net",
            "--uts",
            "--ipc",
            "--",
        ]);
        command.args(["sh", "-c", include_str!("indoors.sh"), "indoors"]);
        command.arg(Kind::Plain.image().with_extension("root")).arg(folder);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.system = Some(command.spawn().unwrap());
        self.until("the supervisor", |indoors| indoors.polder(&["status"]).status.success());
    }

    /// Its init, as this machine counts processes.
    fn init(&self) -> Option<u32> {
        let outer = self.system.as_ref()?.id();
        let children = fs::read_to_string(format!("/proc/{outer}/task/{outer}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    fn inside(&self, command: &[&str]) -> Output {
        let init = self.init().unwrap_or(0).to_string();
        let mut enter = Command::new("nsenter");
        enter.args(["-t", &init, "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w", "--"]);
        enter.args([
            "/usr/bin/env",
            "-i",
            "PATH=/usr/sbin:/usr/bin",
            "POLDER_STATE=/var/lib/polder",
        ]);
        enter.args(command).stdin(Stdio::null()).output().unwrap()
    }

    /// As somebody with the box's user would.
    fn polder(&self, arguments: &[&str]) -> Output {
        self.inside(&[&["runuser", "-u", "polder", "--", "polder"], arguments].concat())
    }

    fn says(&self, arguments: &[&str]) -> String {
        let output = self.polder(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}\n{}", self.log());
        String::from_utf8(output.stdout).unwrap()
    }

    fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) -> Duration {
        let begun = Instant::now();
        while !holds(self) {
            assert!(begun.elapsed() < scaled(PATIENCE), "waited for {what}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(100));
        }
        begun.elapsed()
    }

    fn log(&self) -> String {
        let journal = self.inside(&["journalctl", "-b", "--no-pager", "-n", "60"]);
        let system = fs::read_to_string(self.folder.path().join("system.log")).unwrap_or_default();
        format!("{system}\n{}", String::from_utf8_lossy(&journal.stdout))
    }

    /// Waits until it has turned itself off.
    fn goes_off(&mut self) {
        let begun = Instant::now();
        let system = self.system.as_mut().unwrap();
        while system.try_wait().unwrap().is_none() {
            if begun.elapsed() > scaled(PATIENCE) {
                panic!("it does not turn itself off:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.system = None;
    }

    /// What a unit's process finds in place of the box's own folder.
    fn sees(&self, unit: &str) -> Vec<String> {
        let pid = self.inside(&["systemctl", "show", "-P", "MainPID", unit]).stdout;
        let pid = String::from_utf8(pid).unwrap();
        let listed = self.inside(&["ls", &format!("/proc/{}/root/var/lib/polder", pid.trim())]);
        String::from_utf8(listed.stdout).unwrap().split_whitespace().map(str::to_owned).collect()
    }

    async fn ask(&self, request: Request) -> Reply {
        let socket = format!("/proc/{}/root/run/polder/control.sock", self.init().unwrap());
        let mut desk = Client::connect(&PathBuf::from(socket)).await.unwrap();
        desk.ask(&request).await.unwrap()
    }
}

impl Drop for Indoors {
    fn drop(&mut self) {
        // Its init goes with it.
        if let Some(system) = &mut self.system {
            let _ = system.kill();
            let _ = system.wait();
        }
    }
}

/// A UPS at the end of the system's serial cable.
struct Ups {
    ups: Child,
    told: Arc<Mutex<Vec<String>>>,
}

impl Ups {
    fn of(indoors: &Indoors) -> Self {
        let mut python = Command::new("python3");
        python.args(["-c", include_str!("../../appliance/power/tests/nut/megatec.py")]);
        python.arg(format!("/proc/{}/root/dev", indoors.init().unwrap()));
        let mut ups = python.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let told = Arc::<Mutex<Vec<_>>>::default();
        let (out, tell) = (BufReader::new(ups.stdout.take().unwrap()), told.clone());
        std::thread::spawn(move || {
            out.lines().map_while(Result::ok).for_each(|line| tell.lock().unwrap().push(line));
        });
        Self { ups, told }
    }

    fn is(&mut self, how: &str) {
        writeln!(self.ups.stdin.as_mut().unwrap(), "{how}").unwrap();
    }

    fn was_told_to_cut(&self) -> bool {
        self.told.lock().unwrap().iter().any(|what| what.starts_with("cut S"))
    }
}

impl Drop for Ups {
    fn drop(&mut self) {
        let _ = self.ups.kill();
        let _ = self.ups.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn indoors_a_battery_that_runs_low_ends_in_a_system_that_is_off_and_an_outlet_that_is_cut() {
    let mut indoors = Indoors::new();
    let mut ups = Ups::of(&indoors);
    let said = indoors.says(&["power", "use", "serial:ttyS1"]);
    assert!(said.contains("heard and watched"), "{said}");
    let said = indoors.says(&["power", "status"]);
    assert!(said.contains("The mains is there.") && said.contains("battery   100 %"), "{said}");
    assert_eq!(indoors.sees("polder-power.service"), ["HISTORY", "power", "run", "site.toml"]);
    assert_eq!(indoors.sees("polder-health.service"), ["health", "run", "weights"]);

    // What was acknowledged the moment before is what may be lost.
    let said = Request::Record {
        by: Actor::Console,
        what: "said before the cut".to_owned(),
        on: "the story".to_owned(),
    };
    assert_eq!(indoors.ask(said).await, Reply::Done);
    let cut = Instant::now();
    ups.is("mains 0\nvolts 21.0");
    indoors.goes_off();
    println!("indoors: system off {:.1} s after the mains went away", cut.elapsed().as_secs_f64());
    assert!(ups.was_told_to_cut());
    let last = fs::read_to_string(indoors.folder.path().join("kmsg")).unwrap();
    assert!(last.ends_with("polder: the UPS cuts its outlet\n"), "{last}");

    // The mains is back, and the battery charges first.
    indoors.start();
    let mut ups = Ups::of(&indoors);
    ups.is("volts 22.4");
    indoors.until("the battery", |indoors| {
        indoors
            .says(&["power", "status"])
            .contains("Engines start when the battery has 40 %; it has 3")
    });
    let trail = indoors.says(&["audit"]);
    for wanted in
        ["said before the cut", "ends its parts, for want of", "turns itself off, for want of"]
    {
        assert!(trail.contains(wanted), "no {wanted:?} in {trail}");
    }
    ups.is("volts 26.0");
    indoors.until("a full battery", |indoors| {
        indoors.says(&["power", "status"]).starts_with("The mains is there.\n")
    });
    // A button turns it off without a word to the UPS.
    indoors.inside(&["systemctl", "poweroff", "--no-block"]);
    indoors.goes_off();
    assert!(!ups.was_told_to_cut(), "the outlet is cut though the mains is there");
}

/// A network beyond two cables, in which somebody takes connections at 10.9.N.1.
struct Beyond(Child);

impl Beyond {
    fn of(indoors: &Indoors) -> Self {
        let listen = "import socket, select\n\
            doors = [socket.create_server((f'10.9.{n}.1', p)) for n in (1, 2) for p in (7, 8)]\n\
            print('there', flush=True)\n\
            while True:\n    for door in select.select(doors, [], [])[0]: door.accept()[0].close()";
        let script = format!(
            "ip link set lo up; echo; read moved; for n in 1 2; do ip addr add 10.9.$n.1/24 dev far$n; ip link set far$n up; done; exec python3 -c \"{listen}\""
        );
        let mut beyond = Command::new("unshare");
        beyond.args(["--net", "sh", "-c", &script]);
        let mut beyond = beyond.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(beyond.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        for n in [1, 2] {
            let moved = format!("ip link set far{n} netns {}", beyond.id());
            let init = indoors.init().unwrap().to_string();
            let done =
                Command::new("nsenter").args(["-t", &init, "-n", "sh", "-c", &moved]).status();
            assert!(done.unwrap().success());
        }
        beyond.stdin.take().unwrap().write_all(b"moved\n").unwrap();
        out.read_line(&mut line).unwrap();
        assert!(line.contains("there"), "{line}");
        for n in [1, 2] {
            let way = format!("ip route add default via 10.9.{n}.1 dev up{n} metric {n}");
            indoors.inside(&["sh", "-c", &way]);
        }
        Self(beyond)
    }

    fn pull(&self, cable: &str) {
        let beyond = self.0.id().to_string();
        let mut pull = Command::new("nsenter");
        pull.args(["-t", &beyond, "-n", "ip", "link", "set", cable, "down"]);
        assert!(pull.status().unwrap().success());
    }
}

impl Drop for Beyond {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn indoors_a_system_whose_first_cable_is_pulled_goes_out_by_the_second() {
    let indoors = Indoors::new();
    let beyond = Beyond::of(&indoors);
    let uplink = |n: u8| Uplink {
        interface: format!("up{n}").parse().unwrap(),
        order: n,
        metered: false,
        ask_router: false,
        targets: [7, 8].map(|port| format!("10.9.{n}.1:{port}").parse().unwrap()).to_vec(),
    };
    let both = [("fibre", uplink(1)), ("mobile", uplink(2))];
    let both: Uplinks =
        both.into_iter().map(|(name, uplink)| (name.parse().unwrap(), uplink)).collect();
    let (change, by) = (SiteChange::Uplinks(both), Actor::Console);
    let Reply::Accepted(run) = indoors.ask(Request::Apply { change, by: by.clone() }).await else {
        panic!("the uplinks are refused")
    };
    loop {
        let Reply::Runs(runs) = indoors.ask(Request::Runs).await else { panic!() };
        let state = runs.into_iter().find(|known| known.id == run).unwrap();
        match state.state {
            RunState::Done => break,
            RunState::Running => {}
            other => panic!("{other:?}"),
        }
        if matches!(state.steps.last(), Some(StepState::Running(_))) {
            indoors.ask(Request::Confirm { run, by: by.clone() }).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The part that answers starts only now.
    let status =
        |indoors: &Indoors| String::from_utf8(indoors.polder(&["wan", "status"]).stdout).unwrap();
    indoors.until("both uplinks", |indoors| status(indoors).matches(": works").count() == 2);
    assert!(status(&indoors).contains("through fibre"), "{}", status(&indoors));
    assert_eq!(indoors.sees("polder-wan.service"), ["HISTORY", "run", "site.toml", "uplinks"]);
    let way = |indoors: &Indoors| {
        let init = indoors.init().unwrap().to_string();
        let mut ask = Command::new("nsenter");
        ask.args(["-t", &init, "-n", "ip", "-4", "route", "get", "198.51.100.7"]);
        String::from_utf8(ask.output().unwrap().stdout).unwrap()
    };
    assert!(way(&indoors).contains("dev up1"), "{}", way(&indoors));
    let cut = Instant::now();
    beyond.pull("far1");
    while !way(&indoors).contains("dev up2") {
        assert!(cut.elapsed() < scaled(PATIENCE), "{}", indoors.log());
    }
    println!(
        "indoors: out by the second {:.3} s after the first cable was pulled",
        cut.elapsed().as_secs_f64()
    );
    assert!(status(&indoors).contains("through mobile"), "{}", status(&indoors));
}

/// What networkd has given a port, as this machine's `ip` shows it.
fn addresses(indoors: &Indoors, port: &str) -> String {
    let init = indoors.init().unwrap().to_string();
    let mut ask = Command::new("nsenter");
    ask.args(["-t", &init, "-n", "ip", "-o", "addr", "show", "dev", port]);
    String::from_utf8(ask.output().unwrap().stdout).unwrap()
}

async fn run_of(indoors: &Indoors, line: &str) -> RunId {
    let address = match line {
        "" => PortAddress::default(),
        line => PortAddress::line(line).unwrap(),
    };
    let change = SiteChange::Port { port: "up1".parse().unwrap(), address };
    match indoors.ask(Request::Apply { change, by: Actor::Console }).await {
        Reply::Accepted(run) => run,
        other => panic!("{other:?}"),
    }
}

/// How a run ends; `confirm`: somebody says that it is good.
async fn end_of(indoors: &Indoors, id: RunId, confirm: bool) -> RunState {
    loop {
        let Reply::Runs(runs) = indoors.ask(Request::Runs).await else { panic!() };
        let run = runs.into_iter().find(|known| known.id == id).unwrap();
        if run.state != RunState::Running {
            return run.state;
        }
        if confirm && run.waits_for_confirmation().is_some() {
            indoors.ask(Request::Confirm { run: id, by: Actor::Console }).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn indoors_networkd_gives_a_port_the_address_that_the_site_says_and_takes_it_back() {
    let mut indoors = Indoors::new();
    // The other ends of the cables are on.
    let plug = "ip link set far1 up; ip link set far2 up";
    indoors.inside(&["sh", "-c", plug]);
    let has = |address: &'static str| move |i: &Indoors| addresses(i, "up1").contains(address);
    let lacks = |address: &'static str| move |i: &Indoors| !addresses(i, "up1").contains(address);
    let first = run_of(&indoors, "10.77.0.5/24 10.77.0.1 fd77::5/64").await;
    indoors.until("the address", has("inet 10.77.0.5/24"));
    indoors.until("the other family's", has("inet6 fd77::5/64"));
    assert!(!addresses(&indoors, "up2").contains("10.77"), "the other port is left alone");
    assert_eq!(end_of(&indoors, first, true).await, RunState::Done);
    // Another one, which nobody confirms: the first is back.
    let second = run_of(&indoors, "10.78.0.5/24").await;
    indoors.until("the other address", has("inet 10.78.0.5/24"));
    indoors.until("the first gone", lacks("10.77.0.5"));
    let RunState::Failed(why) = end_of(&indoors, second, false).await else { panic!() };
    assert!(why.ends_with("nobody confirmed it in time; the change was undone"), "{why}");
    indoors.until("the first again", has("inet 10.77.0.5/24"));
    indoors.until("the second gone", lacks("10.78.0.5"));
    // It is there after a start, before anybody asks for it.
    indoors.inside(&["systemctl", "--no-block", "poweroff"]);
    indoors.goes_off();
    indoors.start();
    indoors.inside(&["sh", "-c", plug]);
    indoors.until("the address after a start", has("inet 10.77.0.5/24"));
    // These cables are no hardware, which the image's own file is about.
    let usual = "printf '[Match]\nName=up1\n\n[Network]\nDHCP=yes\n' > /run/systemd/network/80-cable.network";
    indoors.inside(&["sh", "-c", usual]);
    let third = run_of(&indoors, "").await;
    assert_eq!(end_of(&indoors, third, true).await, RunState::Done);
    indoors.until("no address of its own", lacks("10.77.0.5"));
    // Only what the site says is written, and by nobody but root.
    let (change, by) = (PortAddress::line("10.79.0.5/24").unwrap(), Actor::Console);
    let change = SiteChange::Port { port: "up9".parse().unwrap(), address: change };
    let refused = indoors.ask(Request::Apply { change, by }).await;
    assert!(matches!(&refused, Reply::Refused(why) if why.contains("no network port called up9")));
    let listed = indoors.inside(&["ls", "/run/systemd/network"]).stdout;
    assert!(!String::from_utf8(listed).unwrap().contains("70-polder-port-"));
}

/// What the process of a slot answers to one question over its own socket; the whole of it, as it comes.
fn ask_slot(indoors: &Indoors, head: &str, body: &str) -> Option<String> {
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    let folder = format!("/proc/{}/root/run/polder/engine-big", indoors.init()?);
    let socket = fs::read_dir(folder).ok()?.flatten().next()?.path();
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(scaled(Duration::from_secs(20)))).ok()?;
    let length = body.len();
    let text = format!(
        "{head} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(text.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn indoors_a_container_serves_a_slot_without_anybodys_rights_and_goes_with_it() {
    let indoors = Indoors::new();
    let var = indoors.folder.path().join("var/tmp");
    let digest = toy::archive(&var.join("toy.tar"), &toy::toy(), false);
    let mut copy = Command::new("cp");
    copy.arg("-Lr").arg(need("POLDER_SMOLLM2_FOLDER")).arg(var.join("disk"));
    assert!(copy.status().unwrap().success());
    indoors.inside(&["chmod", "-R", "a+rX", "/var/tmp/toy.tar", "/var/tmp/disk"]);
    indoors.says(&["weights", "import", "smollm2-135m-instruct", "--from", "/var/tmp/disk"]);
    indoors.says(&["engine", "image", "import", "/var/tmp/toy.tar"]);

    let mut slot = EngineSlot::serving("smollm2-135m-instruct".parse().unwrap());
    slot.kind = EngineKind::Container;
    slot.container = Some(Box::new(Container {
        image: "localhost/toy".parse().unwrap(),
        digest,
        authority: None,
        port: 8000,
        arguments: vec!["8000".to_owned()],
        called: Some("toy".to_owned()),
        health: None,
        environment: Default::default(),
    }));
    let name: polder_site::EngineName = "big".parse().unwrap();
    let change = SiteChange::Engine { name: name.clone(), slot };
    let run = accepted(&indoors, change).await;
    until_done(&indoors, run).await;
    const UNIT: &str = "polder-contained@big.service";
    let answers = |indoors: &Indoors| {
        let answer = ask_slot(indoors, "POST /v1/chat/completions", "{\"model\":\"m\"}");
        answer.is_some_and(|answer| answer.contains("200 OK") && answer.contains("kept alone toy"))
    };
    indoors.until("an answer", answers);
    assert_eq!(
        indoors.sees(UNIT),
        ["HISTORY", "containers", "run", "site.toml", "weights"],
        "{}",
        indoors.log()
    );
    // Nobody of them is root, or could become it.
    let toy = |indoors: &Indoors| {
        let found = indoors.inside(&["pidof", "toy"]).stdout;
        String::from_utf8(found).unwrap().trim().to_owned()
    };
    let first = toy(&indoors);
    let about = indoors.inside(&["cat", &format!("/proc/{first}/status")]).stdout;
    let about = String::from_utf8(about).unwrap();
    for wanted in ["Uid:\t640\t640\t640\t640", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"] {
        assert!(about.contains(wanted), "no {wanted:?} in {about}");
    }
    let tasks = "/sys/fs/cgroup/system.slice/system-polder\\x2dcontained.slice/polder-contained@big.service/cgroup.procs";
    let users = format!("for pid in $(cat '{tasks}'); do stat -c %u /proc/$pid; done | sort -u");
    let users = indoors.inside(&["sh", "-c", &users]).stdout;
    assert_eq!(String::from_utf8(users).unwrap(), "640\n");

    // Killed, it takes the container along, and is started again with what it had unpacked.
    indoors.inside(&["systemctl", "kill", "--kill-whom=main", "--signal=KILL", UNIT]);
    indoors.until("another container", |indoors| {
        let now = toy(indoors);
        !now.is_empty() && !now.contains(' ') && now != first && answers(indoors)
    });
    let unpacked = "/var/lib/polder/containers/slots/big";
    assert!(indoors.inside(&["test", "-d", unpacked]).status.success());
    let run = accepted(&indoors, SiteChange::RemoveEngine(name)).await;
    until_done(&indoors, run).await;
    assert_eq!(toy(&indoors), "");
    assert!(!indoors.inside(&["test", "-e", unpacked]).status.success());
}

async fn accepted(indoors: &Indoors, change: SiteChange) -> RunId {
    match indoors.ask(Request::Apply { change, by: Actor::Console }).await {
        Reply::Accepted(run) => run,
        other => panic!("refused: {other:?}"),
    }
}

async fn until_done(indoors: &Indoors, id: RunId) {
    loop {
        let Reply::Runs(runs) = indoors.ask(Request::Runs).await else { panic!() };
        let run = runs.into_iter().find(|known| known.id == id).unwrap();
        match run.state {
            RunState::Done => return,
            RunState::Running => tokio::time::sleep(Duration::from_millis(50)).await,
            other => panic!("{other:?}\n{}", indoors.log()),
        }
    }
}

async fn backs_up(indoors: &Indoors, wish: BackupWish, key: Option<KitWords>) -> RunState {
    match indoors.ask(Request::Backups { wish, key, by: Actor::Console }).await {
        Reply::Accepted(run) => end_of(indoors, run, false).await,
        Reply::Refused(why) => RunState::Failed(why),
        other => panic!("{other:?}"),
    }
}

async fn changes(indoors: &Indoors, change: SiteChange) {
    let Reply::Accepted(run) = indoors.ask(Request::Apply { change, by: Actor::Console }).await
    else {
        panic!("it is refused")
    };
    assert_eq!(end_of(indoors, run, false).await, RunState::Done, "{}", indoors.log());
}

/// No device can be mounted here as a machine mounts one, which `usb_backup.rs` sees; what a disk would be mounted at is a place in memory.
#[tokio::test(flavor = "multi_thread")]
async fn indoors_a_kit_a_backup_a_trial_and_a_restore_are_what_the_supervisors_unit_allows() {
    let indoors = Indoors::new();
    let place = "/run/polder-disk/backup";
    let mounted = indoors.inside(&["sh", "-ec", &format!(
        "mkdir {place}; mount -t tmpfs -o mode=700,uid=$(id -u polder),gid=$(id -g polder) disk {place}"
    )]);
    assert!(mounted.status.success(), "{mounted:?}");
    // It came after the supervisor's unit began, and is for the supervisor alone.
    let seen_by = |unit: &str| {
        let pid = indoors.inside(&["systemctl", "show", "-P", "MainPID", unit]).stdout;
        let pid = String::from_utf8(pid).unwrap();
        let mounts = indoors.inside(&["cat", &format!("/proc/{}/mountinfo", pid.trim())]).stdout;
        let mounts = String::from_utf8(mounts).unwrap();
        let root = format!("/proc/{}/root{place}", pid.trim());
        (mounts.contains(place), indoors.inside(&["ls", &root]).status.success())
    };
    assert_eq!(seen_by("polder-supervisor.service"), (true, true));
    for unit in ["polder-gateway.service", "polder-health.service"] {
        indoors.until("the part", |i| i.inside(&["systemctl", "is-active", unit]).status.success());
        assert!(!seen_by(unit).1, "{unit} sees the disk");
    }

    let by = Actor::Console;
    let Reply::Kit(kit) = indoors.ask(Request::BackupKit { by: by.clone() }).await else {
        panic!()
    };
    let on_paper = Request::ConfirmKit { key: kit.clone(), by: by.clone() };
    assert_eq!(indoors.ask(on_paper).await, Reply::Done);
    changes(&indoors, SiteChange::Backup(Backup::to(place.parse().unwrap()))).await;
    for wish in [BackupWish::Now, BackupWish::Drill] {
        let done = backs_up(&indoors, wish, None).await;
        assert_eq!(done, RunState::Done, "{}", indoors.log());
    }

    // The box is called something else since, and is again what it was.
    changes(&indoors, SiteChange::Rename("later".parse().unwrap())).await;
    assert!(indoors.says(&["status"]).contains("later"));
    let wish = BackupWish::Restore { from: place.parse().unwrap(), snapshot: None };
    let restore = Request::Backups { wish, key: Some(kit), by };
    let accepted = indoors.ask(restore).await;
    assert!(matches!(accepted, Reply::Accepted(_)), "{accepted:?}\n{}", indoors.log());
    indoors.until("the box of the backup", |indoors| {
        let status = indoors.polder(&["status"]);
        status.status.success() && !String::from_utf8_lossy(&status.stdout).contains("later")
    });
}
