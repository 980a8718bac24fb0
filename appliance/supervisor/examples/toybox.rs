//! The smallest box there can be: toy parts under the real supervisor. It shows what a part owes
//! its supervisor (a lifeline, an answer to "are you ready?", an end when asked), and the tests
//! run it.
//!
//! `toybox supervise --state DIR` keeps `toybox gateway --state DIR`, `toybox engine NAME
//! --state DIR` and, where the site names them, `toybox wan --state DIR`
//! and `toybox power watch --state DIR`, which says nothing of a UPS. A part misbehaves as the file `DIR/behave-PART` says, one word a line:
//! `crash` dies at once, `load MS` gets ready slowly, `busy` spins on every core, `stubborn` does
//! not end when asked, `linger MS` ends late, `not-at ADDRESS` (the gateway) cannot listen there and
//! dies when there is nowhere else, `not-with RECIPE` (an engine) dies if that is its model, `metered` (the wan)
//! has somebody pay for what goes out.

use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use polder_control::{
    Check, ControlError, DoorReply, DoorRequest, Doorway, Handler, HealthReply, HealthReport,
    HealthRequest, Issue, IssueId, Outlet, PowerReply, PowerRequest, Severity, Sockets, Standing,
    UplinkState, UplinkStatus, WanReply, WanRequest, WanStatus,
};
use polder_site::Store;
use polder_supervisor::{Children, Ending, Options, Patience};
use tokio::signal::unix::{SignalKind, signal};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["supervise", "--state", state] => supervise(state.into()),
        ["gateway", "--state", state] => gateway(state.into()),
        ["engine", name, "--state", state] => engine(name, state.into()),
        ["power", "watch", "--state", state] => power(state.into()),
        ["wan", "--state", state] => wan(state.into()),
        ["health", "watch", "--state", state] | ["health", "--state", state] => {
            health(state.into())
        }
        _ => panic!(
            "usage: toybox supervise|gateway|engine NAME|power watch|wan|health watch --state DIR"
        ),
    }
}

#[tokio::main]
async fn supervise(state: PathBuf) {
    let (end, ending) = tokio::sync::watch::channel(Ending::No);
    tokio::spawn(async move {
        asked_to_end().await;
        end.send_replace(Ending::InOrder);
        std::future::pending::<()>().await;
    });
    let parts = Children::of(&std::env::current_exe().expect("this program has a path"), &state);
    let first = polder_site::Site::unclaimed(8443);
    let patience = Patience::default();
    let options = Options { state, first, port: None, listen: None, patience };
    if let Err(error) = polder_supervisor::run(options, parts, Arc::new(Empty), ending).await {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

#[tokio::main]
async fn gateway(state: PathBuf) {
    polder_supervisor::lifeline::hold();
    let behaviour = Behaviour::of(&state, "gateway");
    let door = Door { behaviour: behaviour.clone(), state };
    let doorway = door.doorway();
    if doorway.door.is_some_and(|door| door.listen.len() == doorway.shut.len()) {
        eprintln!("every address is taken");
        std::process::exit(2);
    }
    behaviour.begin();
    let socket = Sockets::of(&door.state).gateway();
    tokio::select! {
        _ = polder_control::serve(&socket, Arc::new(door)) => {}
        () = behaviour.end() => {}
    }
}

#[tokio::main]
async fn power(state: PathBuf) {
    polder_supervisor::lifeline::hold();
    let behaviour = Behaviour::of(&state, "power");
    behaviour.begin();
    let socket = Sockets::of(&state).power();
    tokio::select! {
        _ = polder_control::serve(&socket, Arc::new(Silent)) => {}
        () = behaviour.end() => {}
    }
}

struct Silent;

impl Handler<PowerRequest, PowerReply> for Silent {
    async fn handle(
        &self,
        _: PowerRequest,
        outlet: &mut Outlet<PowerReply>,
    ) -> Result<(), ControlError> {
        outlet.send(&PowerReply::Ready).await
    }
}

struct Door {
    behaviour: Behaviour,
    state: PathBuf,
}

impl Door {
    /// It follows the site at once.
    fn doorway(&self) -> Doorway {
        let site = Store::open(&self.state).expect("the state folder is there").current();
        let site = site.expect("site.toml is readable").expect("there is a site");
        let taken = |address: &IpAddr| self.behaviour.has(&format!("not-at {address}"));
        let shut = site.door.listen.iter().copied().filter(taken);
        let shut = shut.map(|address| (address, "it is taken".to_owned())).collect();
        let (names, door) = (site.host_names(), Some(site.door));
        Doorway { names, door, shut, answering: 0, closed: false }
    }
}

impl Handler<DoorRequest, DoorReply> for Door {
    async fn handle(
        &self,
        question: DoorRequest,
        outlet: &mut Outlet<DoorReply>,
    ) -> Result<(), ControlError> {
        let (ca_file, fingerprint) = (PathBuf::from("ca.pem"), "00".to_owned());
        let reply = match question {
            DoorRequest::Doorway => DoorReply::Doorway(self.doorway()),
            _ => DoorReply::Ready { ca_file, fingerprint, claimed: false, owner_key: false },
        };
        outlet.send(&reply).await
    }
}

#[tokio::main]
async fn wan(state: PathBuf) {
    polder_supervisor::lifeline::hold();
    let behaviour = Behaviour::of(&state, "wan");
    behaviour.begin();
    let socket = Sockets::of(&state).wan();
    tokio::select! {
        _ = polder_control::serve(&socket, Arc::new(Uplinks(state))) => {}
        () = behaviour.end() => {}
    }
}

/// In use is one that is metered as long as the part's behaviour says so.
struct Uplinks(PathBuf);

impl Handler<WanRequest, WanReply> for Uplinks {
    async fn handle(
        &self,
        _: WanRequest,
        outlet: &mut Outlet<WanReply>,
    ) -> Result<(), ControlError> {
        let uplink = UplinkStatus {
            name: "mobile".parse().expect("a name"),
            interface: "wwan0".parse().expect("a name"),
            metered: Behaviour::of(&self.0, "wan").has("metered"),
            in_use: true,
            state: UplinkState::Good,
            for_seconds: 0,
            loss_percent: 0,
            delay_ms: None,
            lost_lately: 0,
            addresses: Vec::new(),
            silent_targets: Vec::new(),
            port: None,
            dead: None,
            stands_in: None,
        };
        let status = WanStatus { uplinks: vec![uplink], ..WanStatus::default() };
        outlet.send(&WanReply::Status(status)).await
    }
}

#[tokio::main]
async fn engine(name: &str, state: PathBuf) {
    polder_supervisor::lifeline::hold();
    let behaviour = Behaviour::of(&state, &format!("engine-{name}"));
    behaviour.begin();
    let name = name.parse().expect("a valid name");
    let site = Store::open(&state).expect("the state folder is there").current();
    let site = site.expect("site.toml is readable").expect("there is a site");
    let recipe = site.engines.get(&name).map(|slot| slot.recipe.to_string()).unwrap_or_default();
    if behaviour.has(&format!("not-with {recipe}")) {
        eprintln!("{recipe} does not fit");
        std::process::exit(4);
    }
    let socket = Sockets::of(&state).engine(&name);
    let folder = socket.parent().expect("the socket is in a folder");
    std::fs::create_dir_all(folder).expect("the socket's folder can be made");
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(socket).expect("the socket can be made");
    let load = behaviour.number("load").unwrap_or(0);
    let begun = Instant::now();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 1024]);
            let done = begun.elapsed().as_millis() as u64;
            let (status, body) = if done >= load {
                ("200 OK", "{}".to_owned())
            } else {
                let progress = done as f64 / load as f64;
                let body = format!(r#"{{"status":"loading","progress":{progress}}}"#);
                ("503 Service Unavailable", body)
            };
            let length = body.len();
            let _ = write!(
                stream,
                "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
            );
        }
    });
    behaviour.end().await;
}

#[tokio::main]
async fn health(state: PathBuf) {
    polder_supervisor::lifeline::hold();
    let behaviour = Behaviour::of(&state, "health");
    behaviour.begin();
    let (socket, well) = (Sockets::of(&state).health(), Arc::new(Well(state)));
    tokio::select! {
        _ = polder_control::serve(&socket, well) => {}
        () = behaviour.end() => {}
    }
}

/// All is well, unless the file `DIR/unsafe` says why it is not.
struct Well(PathBuf);

impl Handler<HealthRequest, HealthReply> for Well {
    async fn handle(
        &self,
        question: HealthRequest,
        outlet: &mut Outlet<HealthReply>,
    ) -> Result<(), ControlError> {
        let mut report = HealthReport::default();
        if let Ok(what) = std::fs::read_to_string(self.0.join("unsafe")) {
            let id = IssueId { check: Check::DiskSpace, on: "the toy".to_owned() };
            let (advice, fix) = ("Make room".to_owned(), None);
            let issue =
                Issue { id, severity: Severity::Urgent, what, advice, fix, unsafe_to_update: true };
            report.standing.push(Standing { issue, since: 0, gone_since: None });
        }
        let reply = match question {
            HealthRequest::Report => HealthReply::Report(Box::new(report)),
            _ => HealthReply::Done,
        };
        outlet.send(&reply).await
    }
}

#[derive(Clone)]
struct Behaviour(String);

impl Behaviour {
    fn of(state: &Path, part: &str) -> Self {
        Self(std::fs::read_to_string(state.join(format!("behave-{part}"))).unwrap_or_default())
    }

    fn has(&self, word: &str) -> bool {
        self.0.lines().any(|line| line == word)
    }

    fn number(&self, word: &str) -> Option<u64> {
        let line = self.0.lines().find_map(|line| line.strip_prefix(word))?;
        line.trim().parse().ok()
    }

    fn begin(&self) {
        if self.has("crash") {
            eprintln!("the toy is broken");
            std::process::exit(3);
        }
        if self.has("busy") {
            let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
            (0..cores).for_each(|_| {
                drop(std::thread::spawn(|| {
                    loop {
                        std::hint::spin_loop()
                    }
                }))
            });
        }
    }

    async fn end(&self) {
        asked_to_end().await;
        if self.has("stubborn") {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(Duration::from_millis(self.number("linger").unwrap_or(0))).await;
    }
}

async fn asked_to_end() {
    let mut term = signal(SignalKind::terminate()).expect("signals can be listened to");
    term.recv().await;
}

/// A shelf without models.
struct Empty;
impl polder_supervisor::Shelf for Empty {
    fn describe(&self, _: &polder_site::RecipeName) -> Option<polder_supervisor::Described> {
        None
    }
    fn imported(&self) -> Result<std::collections::BTreeSet<polder_site::RecipeName>, String> {
        Ok(Default::default())
    }
    fn import(
        &self,
        recipe: &polder_site::RecipeName,
        _: &polder_control::ImportSource,
        _: &(dyn Fn(polder_control::Progress) + Sync),
        _: &polder_weights::CancelFlag,
    ) -> Result<(), polder_supervisor::ImportEnd> {
        Err(polder_supervisor::ImportEnd::Failed(format!("there is no {recipe} in a toy box")))
    }
}
