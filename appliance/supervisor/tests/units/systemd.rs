//! The least of systemd and logind that the supervisor needs, on a bus of its own. Its units are
//! real processes of the toy box.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use polder_supervisor::systemd::Bus;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::io::{AsyncReadExt, BufReader};
use tokio::net::UnixListener;
use tokio::process::Command;
use tokio::task::JoinHandle;
use zbus::connection::Builder;
use zbus::names::BusName;
use zbus::{Connection, Guid, ObjectServer, OwnedObjectPath, Variant, fdo, interface};

const UNITS: &str = "/org/freedesktop/systemd1/unit";
const JOB: &str = "/org/freedesktop/systemd1/job/1";

/// A running systemd, and the bus that it answers on.
pub(crate) struct Systemd {
    all: Arc<All>,
    socket: PathBuf,
    serving: Option<JoinHandle<()>>,
}

struct All {
    program: PathBuf,
    state: PathBuf,
    units: Mutex<BTreeMap<String, Unit>>,
    lines: tokio::sync::Mutex<Vec<Connection>>,
    calls: Mutex<Vec<String>>,
    lives: Mutex<u64>,
    forbids: Mutex<bool>,
    going_down: Mutex<bool>,
    locks: Mutex<Vec<OwnedFd>>,
}

#[derive(Clone, Default)]
struct Unit {
    active: &'static str,
    job: u32,
    invocation: Vec<u8>,
    pid: u32,
    result: &'static str,
    code: i32,
    status: i32,
    said: String,
}

impl Systemd {
    pub(crate) async fn of(program: &Path, state: &Path) -> Self {
        let all = Arc::new(All {
            program: program.to_owned(),
            state: state.to_owned(),
            units: Mutex::default(),
            lines: Default::default(),
            calls: Mutex::default(),
            lives: Mutex::default(),
            forbids: Mutex::default(),
            going_down: Mutex::default(),
            locks: Mutex::default(),
        });
        let mut systemd = Self { all, socket: state.join("bus"), serving: None };
        systemd.come_back();
        systemd
    }

    pub(crate) fn bus(&self) -> Bus {
        let address = format!("unix:path={}", self.socket.display());
        Bus::over(move || Builder::address(address.as_str()).p2p().build())
    }

    /// The bus is there again.
    pub(crate) fn come_back(&mut self) {
        let listener = UnixListener::bind(&self.socket).unwrap();
        let all = self.all.clone();
        self.serving = Some(tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let stream = stream.into_std().unwrap();
                let mut builder = Builder::unix_stream(stream)
                    .server(Guid::generate())
                    .p2p()
                    .serve_at("/org/freedesktop/systemd1", Manager(all.clone()))
                    .serve_at("/org/freedesktop/login1", Login(all.clone()));
                let known: Vec<String> = all.units.lock().unwrap().keys().cloned().collect();
                for unit in known {
                    let path = path_of(&unit);
                    builder = builder
                        .serve_at(path.clone(), OfUnit(all.clone(), unit.clone()))
                        .serve_at(path, OfService(all.clone(), unit));
                }
                if let Ok(line) = builder.build().await {
                    all.lines.lock().await.push(line);
                }
            }
        }));
    }

    /// The bus goes away, with every connection to it. The units live on.
    pub(crate) async fn go_away(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
            let _ = serving.await;
        }
        std::fs::remove_file(&self.socket).unwrap();
        for line in self.all.lines.lock().await.drain(..) {
            line.close().await.unwrap();
        }
    }

    pub(crate) fn forbid(&self) {
        *self.all.forbids.lock().unwrap() = true;
    }

    /// What was asked of systemd and logind so far, one line each.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.all.calls.lock().unwrap().clone()
    }

    pub(crate) fn pid(&self, unit: &str) -> u32 {
        self.all.units.lock().unwrap().get(unit).map_or(0, |unit| unit.pid)
    }

    /// Starts a unit that no supervisor asked for.
    pub(crate) async fn start(&self, unit: &str) {
        self.all.start(unit).await;
        while self.pid(unit) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Somebody turns the machine off.
    pub(crate) async fn begin_shutdown(&self) {
        *self.all.going_down.lock().unwrap() = true;
        let body = (true,);
        self.all
            .signal(
                "/org/freedesktop/login1",
                "org.freedesktop.login1.Manager",
                "PrepareForShutdown",
                &body,
            )
            .await;
    }

    /// Whether everybody who delayed the shutdown has let go.
    pub(crate) fn nobody_delays(&self) -> bool {
        let locks = self.all.locks.lock().unwrap();
        locks.iter().all(|lock| {
            // The other end is closed: reading says so at once.
            matches!(rustix::io::read(lock, &mut [0u8; 1]), Ok(0))
        })
    }
}

impl All {
    fn note(&self, call: String) -> fdo::Result<()> {
        self.calls.lock().unwrap().push(call);
        match *self.forbids.lock().unwrap() {
            true => Err(fdo::Error::AccessDenied("Permission denied".to_owned())),
            false => Ok(()),
        }
    }

    fn change(&self, unit: &str, change: impl FnOnce(&mut Unit)) {
        change(self.units.lock().unwrap().entry(unit.to_owned()).or_insert_with(|| Unit {
            active: "inactive",
            result: "success",
            ..Unit::default()
        }));
    }

    fn unit(&self, unit: &str) -> Unit {
        self.units.lock().unwrap()[unit].clone()
    }

    async fn signal<B>(&self, path: &str, interface: &str, name: &str, body: &B)
    where
        B: serde::Serialize + zbus::DynamicType,
    {
        for line in self.lines.lock().await.iter() {
            let _ = line.emit_signal(None::<BusName<'_>>, path, interface, name, body).await;
        }
    }

    async fn changed(&self, unit: &str) {
        let body = (
            "org.freedesktop.systemd1.Unit",
            HashMap::<String, Variant<'_>>::new(),
            vec!["ActiveState"],
        );
        let path = path_of(unit);
        self.signal(path.as_str(), "org.freedesktop.DBus.Properties", "PropertiesChanged", &body)
            .await;
    }

    /// As systemd does it: a job first, a process a moment later.
    async fn start(self: &Arc<Self>, unit: &str) {
        self.change(unit, |_| {});
        if matches!(self.unit(unit).active, "active" | "activating") {
            return;
        }
        self.change(unit, |unit| unit.job = 1);
        let (all, unit) = (self.clone(), unit.to_owned());
        tokio::spawn(async move {
            while all.unit(&unit).active == "deactivating" {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            all.live(&unit).await;
        });
    }

    async fn live(self: Arc<Self>, unit: &str) {
        let part = unit.strip_suffix(".service").unwrap().strip_prefix("polder-").unwrap();
        let mut arguments: Vec<&str> = part.splitn(2, '@').collect();
        // The same program, by its unit file.
        if ["served", "contained"].contains(&arguments[0]) {
            arguments[0] = "engine";
        }
        let mut child = Command::new(&self.program)
            .args(arguments)
            .arg("--state")
            .arg(&self.state)
            // So that nothing is left over, however this test ends.
            .env("POLDER_LIFELINE", "1")
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let _lifeline = child.stdin.take();
        let life = {
            let mut lives = self.lives.lock().unwrap();
            *lives += 1;
            lives.to_be_bytes().to_vec()
        };
        self.change(unit, |unit| {
            *unit = Unit {
                active: "active",
                invocation: life,
                pid: child.id().unwrap(),
                result: "success",
                ..Unit::default()
            };
        });
        self.changed(unit).await;
        let mut said = String::new();
        let mut errors = BufReader::new(child.stderr.take().unwrap());
        let _ = errors.read_to_string(&mut said).await;
        let status = child.wait().await.unwrap();
        use std::os::unix::process::ExitStatusExt;
        self.change(unit, |unit| {
            (unit.active, unit.result, unit.code, unit.status) =
                match (status.code(), status.signal()) {
                    (Some(0), _) => ("inactive", "success", 1, 0),
                    (Some(code), _) => ("failed", "exit-code", 1, code),
                    (None, signal) => ("failed", "signal", 2, signal.unwrap()),
                };
            unit.pid = 0;
            // What a real part tells with sd_notify.
            if unit.result == "exit-code" {
                unit.said = format!("error: {}", said.lines().last().unwrap_or_default());
            }
        });
        self.changed(unit).await;
    }
}

fn path_of(unit: &str) -> OwnedObjectPath {
    let escape = |c: char| match c.is_ascii_alphanumeric() {
        true => c.to_string(),
        false => format!("_{:02x}", c as u32),
    };
    let name: String = unit.chars().map(escape).collect();
    format!("{UNITS}/{name}").try_into().unwrap()
}

fn job() -> OwnedObjectPath {
    JOB.try_into().unwrap()
}

type Listed =
    (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

struct Manager(Arc<All>);

#[interface(name = "org.freedesktop.systemd1.Manager")]
impl Manager {
    async fn subscribe(&self) {}

    async fn load_unit(
        &self,
        name: String,
        #[zbus(object_server)] server: &ObjectServer,
    ) -> fdo::Result<OwnedObjectPath> {
        self.0.change(&name, |_| {});
        let path = path_of(&name);
        server.at(path.clone(), OfUnit(self.0.clone(), name.clone())).await?;
        server.at(path.clone(), OfService(self.0.clone(), name)).await?;
        Ok(path)
    }

    async fn start_unit(&self, name: String, mode: String) -> fdo::Result<OwnedObjectPath> {
        self.0.note(format!("StartUnit {name} {mode}"))?;
        self.0.start(&name).await;
        Ok(job())
    }

    async fn stop_unit(&self, name: String, mode: String) -> fdo::Result<OwnedObjectPath> {
        self.0.note(format!("StopUnit {name} {mode}"))?;
        if let Some(pid) = Pid::from_raw(self.0.unit(&name).pid as i32) {
            self.0.change(&name, |unit| unit.active = "deactivating");
            let _ = kill_process(pid, Signal::TERM);
        }
        Ok(job())
    }

    async fn kill_unit(&self, name: String, whom: String, signal: i32) -> fdo::Result<()> {
        self.0.note(format!("KillUnit {name} {whom} {signal}"))?;
        if let Some(pid) = Pid::from_raw(self.0.unit(&name).pid as i32) {
            let signal = Signal::from_named_raw(signal).unwrap();
            let _ = match whom.as_str() {
                "all" => kill_process_group(pid, signal),
                _ => kill_process(pid, signal),
            };
        }
        Ok(())
    }

    async fn list_units_by_patterns(
        &self,
        states: Vec<String>,
        patterns: Vec<String>,
    ) -> Vec<Listed> {
        let others = ["polder-wan.service", "polder-power.service"];
        let kinds = ["polder-engine@", "polder-served@", "polder-contained@"];
        let slots = kinds.map(|kind| format!("{kind}*.service"));
        assert_eq!(patterns[..3], slots);
        assert_eq!(patterns[3..], others);
        let units = self.0.units.lock().unwrap();
        let ours = units.iter().filter(|(name, unit)| {
            let slot = kinds.iter().any(|kind| name.starts_with(kind));
            slot && states.iter().any(|state| state == unit.active)
        });
        ours.map(|(name, unit)| {
            let text = String::new;
            let path = path_of(name);
            let active = unit.active.to_owned();
            (name.clone(), text(), text(), active, text(), text(), path, 0, text(), job())
        })
        .collect()
    }
}

struct OfUnit(Arc<All>, String);

#[interface(name = "org.freedesktop.systemd1.Unit")]
impl OfUnit {
    #[zbus(property)]
    async fn active_state(&self) -> String {
        self.0.unit(&self.1).active.to_owned()
    }
    #[zbus(property)]
    async fn job(&self) -> (u32, OwnedObjectPath) {
        (self.0.unit(&self.1).job, job())
    }
    #[zbus(property, name = "InvocationID")]
    async fn invocation_id(&self) -> Vec<u8> {
        self.0.unit(&self.1).invocation
    }
}

struct OfService(Arc<All>, String);

#[interface(name = "org.freedesktop.systemd1.Service")]
impl OfService {
    #[zbus(property, name = "MainPID")]
    async fn main_pid(&self) -> u32 {
        self.0.unit(&self.1).pid
    }
    #[zbus(property)]
    async fn result(&self) -> String {
        self.0.unit(&self.1).result.to_owned()
    }
    #[zbus(property)]
    async fn exec_main_code(&self) -> i32 {
        self.0.unit(&self.1).code
    }
    #[zbus(property)]
    async fn exec_main_status(&self) -> i32 {
        self.0.unit(&self.1).status
    }
    #[zbus(property)]
    async fn status_text(&self) -> String {
        self.0.unit(&self.1).said
    }
}

struct Login(Arc<All>);

#[interface(name = "org.freedesktop.login1.Manager")]
impl Login {
    async fn power_off(&self, interactive: bool) -> fdo::Result<()> {
        self.0.note(format!("PowerOff {interactive}"))
    }
    async fn reboot(&self, interactive: bool) -> fdo::Result<()> {
        self.0.note(format!("Reboot {interactive}"))
    }
    async fn inhibit(
        &self,
        what: String,
        who: String,
        why: String,
        mode: String,
    ) -> fdo::Result<zbus::OwnedFd> {
        self.0.note(format!("Inhibit {what} by {who} ({why}) {mode}"))?;
        let (ours, theirs) = rustix::pipe::pipe().unwrap();
        rustix::fs::fcntl_setfl(&ours, rustix::fs::OFlags::NONBLOCK).unwrap();
        self.0.locks.lock().unwrap().push(ours);
        Ok(theirs.into())
    }
    #[zbus(property)]
    async fn preparing_for_shutdown(&self) -> bool {
        *self.0.going_down.lock().unwrap()
    }
}
