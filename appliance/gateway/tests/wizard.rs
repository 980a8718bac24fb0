//! The wizard behind the real door, with the real members' database and a pretended supervisor.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use polder_control::{
    BoxStatus, Client, ControlError, DoorReply, DoorRequest, EngineStatus, Event, Handler, Machine,
    Outlet, PartState, PartStatus, Plan, Reply, Request as Ask, Run, RunId, RunState, Sockets,
};
use polder_gateway::{GatewayOptions, Limits, run};
use polder_site::{Site, Store};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

const MODEL: &str = "smollm2-135m-instruct";

/// A supervisor that does at once whatever it is asked.
struct Supervisor {
    status: watch::Sender<BoxStatus>,
    runs: Mutex<Vec<Run>>,
    records: Mutex<Vec<String>>,
}

impl Supervisor {
    fn answer(&self, ask: Ask) -> Reply {
        match ask {
            Ask::Status => Reply::Status(Box::new(self.status.borrow().clone())),
            Ask::Disk => Reply::Disk(None),
            Ask::Machine => Reply::Machine(Machine {
                cpu: "a processor".into(),
                threads: 2,
                memory: 8 << 30,
                disk_free: 1 << 36,
                disk_total: 1 << 38,
                gpus: Vec::new(),
                driver: None,
                idle_cards: 0,
                ports: Vec::new(),
            }),
            Ask::Imported => Reply::Imported(Vec::new()),
            Ask::Runs => Reply::Runs(self.runs.lock().unwrap().clone()),
            Ask::Apply { change, by } => {
                self.status.send_modify(|status| {
                    status.site = change.applied_to(&status.site);
                    let engines = status.site.engines.iter();
                    status.engines = engines
                        .map(|(name, slot)| EngineStatus {
                            name: name.clone(),
                            recipe: slot.recipe.clone(),
                            socket: "nowhere".into(),
                            part: PartStatus { state: PartState::Ready, restarts: 0, pid: None },
                            note: None,
                        })
                        .collect();
                });
                let mut runs = self.runs.lock().unwrap();
                let id = RunId(runs.len() as u64 + 1);
                let plan = Plan { title: format!("asked by {by}"), steps: Vec::new() };
                runs.insert(0, Run { id, plan, steps: Vec::new(), state: RunState::Done });
                Reply::Accepted(id)
            }
            Ask::Record { by, what, on } => {
                self.records.lock().unwrap().push(format!("{by} {what}: {on}"));
                Reply::Done
            }
            _ => Reply::Refused("not in this test".into()),
        }
    }
}

impl Handler<Ask, Reply> for Supervisor {
    async fn handle(&self, ask: Ask, outlet: &mut Outlet<Reply>) -> Result<(), ControlError> {
        if ask != Ask::Watch {
            return outlet.send(&self.answer(ask)).await;
        }
        let mut status = self.status.subscribe();
        loop {
            let now = status.borrow_and_update().clone();
            outlet.send(&Reply::Event(Event::Status(Box::new(now)))).await?;
            if status.changed().await.is_err() {
                return Ok(());
            }
        }
    }
}

struct Unclaimed {
    folder: tempfile::TempDir,
    port: u16,
    supervisor: Arc<Supervisor>,
    stop: Option<oneshot::Sender<()>>,
    gateway: JoinHandle<()>,
    cookie: String,
}

impl Unclaimed {
    async fn open() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let site = Site::unclaimed(port);
        Store::open(folder.path()).unwrap().write(&site, "test").unwrap();
        let ready = PartStatus { state: PartState::Ready, restarts: 0, pid: None };
        let status = BoxStatus {
            supply: None,
            closed: None,
            others: Vec::new(),
            safe: false,
            site,
            gateway: ready,
            engines: Vec::new(),
        };
        let supervisor = Arc::new(Supervisor {
            status: watch::Sender::new(status),
            runs: Mutex::default(),
            records: Mutex::default(),
        });
        let (path, serving) = (Sockets::of(folder.path()).control(), supervisor.clone());
        tokio::spawn(async move {
            let _ = polder_control::serve::<Ask, Reply, _>(&path, serving).await;
        });
        let gateway = tokio::spawn(async {});
        let cookie = String::new();
        let mut this = Self { folder, port, supervisor, stop: None, gateway, cookie };
        this.start().await;
        this
    }

    /// Starts the gateway, again if it runs.
    async fn start(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
            (&mut self.gateway).await.unwrap();
        }
        let (stop, stopped) = oneshot::channel::<()>();
        let options =
            GatewayOptions { state: self.folder.path().to_owned(), limits: Limits::default() };
        self.gateway = tokio::spawn(async move {
            if let Err(error) = run(options, async { drop(stopped.await) }).await {
                eprintln!("the gateway ended: {error:?}");
            }
        });
        self.stop = Some(stop);
        for _ in 0..1000 {
            if let Some(DoorReply::Ready { .. }) = self.console(DoorRequest::Ready).await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the gateway did not come up");
    }

    async fn console(&self, question: DoorRequest) -> Option<DoorReply> {
        let path = Sockets::of(self.folder.path()).gateway();
        let mut client = Client::<DoorRequest, DoorReply>::connect(&path).await.ok()?;
        client.ask(&question).await.ok()
    }

    async fn code(&self, question: DoorRequest) -> String {
        match self.console(question).await {
            Some(DoorReply::Claim(claim)) => claim.code,
            other => panic!("no code: {other:?}"),
        }
    }

    async fn get(&mut self, path: &str) -> String {
        self.ask("GET", path, "").await
    }

    async fn post(&mut self, path: &str, form: &str) -> String {
        self.ask("POST", path, form).await
    }

    /// As a browser on this machine does, which remembers cookies.
    async fn ask(&mut self, method: &str, path: &str, form: &str) -> String {
        let (port, cookie) = (self.port, &self.cookie);
        let text = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost:{port}\r\norigin: http://localhost:{port}\r\n\
             connection: close\r\ncookie: {cookie}\r\ncontent-length: {}\r\n\
             content-type: application/x-www-form-urlencoded\r\n\r\n{form}",
            form.len()
        );
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut answer));
        read.await.expect("the answer ends").unwrap();
        let answer = String::from_utf8(answer).unwrap();
        for set in answer.lines().filter_map(|line| line.strip_prefix("set-cookie: ")) {
            let pair = set.split(';').next().unwrap();
            self.cookie = format!("{}{pair}; ", self.cookie);
            if pair.ends_with('=') {
                self.cookie = self
                    .cookie
                    .split("; ")
                    .filter(|p| !p.starts_with(pair))
                    .collect::<Vec<_>>()
                    .join("; ");
            }
        }
        answer
    }
}

fn to(answer: &str) -> &str {
    answer.lines().find_map(|line| line.strip_prefix("location: ")).unwrap_or("")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_becomes_the_first_steward_through_the_real_door() {
    let mut at = Unclaimed::open().await;
    assert_eq!(to(&at.get("/").await), "/setup");
    assert_eq!(to(&at.get("/setup").await), "/setup/claim");
    assert!(at.get("/setup/claim").await.contains("polder claim reopen"), "no code yet");
    let code = at.code(DoorRequest::OpenClaim).await;
    let page = at.get("/setup/claim").await;
    assert!(
        page.contains("Step 1 of 8")
            && page.contains("content-security-policy: default-src 'none'")
    );
    assert!(at.get("/setup/claim.js").await.contains("location.hash"));

    assert!(at.post("/setup/claim", "code=AAAAA-AAAAA-AAAAA").await.starts_with("HTTP/1.1 403"));
    let typed = code.to_lowercase().replace('-', "+");
    assert_eq!(to(&at.post("/setup/claim", &format!("code={typed}")).await), "/setup/machine");
    assert!(at.get("/setup/machine").await.contains("a processor, 2 threads"));
    assert_eq!(to(&at.post("/setup/machine", "").await), "/setup/model");
    assert_eq!(to(&at.post("/setup/model", &format!("recipe={MODEL}")).await), "/setup/import");

    // The gateway dies here; the claim and the place are kept.
    at.start().await;
    assert_eq!(to(&at.get("/setup").await), "/setup/import");
    assert_eq!(to(&at.get("/setup/import").await), "/setup/address");
    assert!(at.get("/setup/address").await.contains("compare this fingerprint"));
    assert!(at.post("/setup/address", "name=dune&reach=here").await.contains("takes its name"));
    assert_eq!(to(&at.get("/setup/address").await), "/setup/power");
    assert!(at.get("/setup/power").await.contains("Go on without one"));
    // Nobody speaks of a UPS there, and the page says so.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let page = at.get(&format!("/setup/power?at={nobody}")).await;
    assert!(page.contains(&format!("No machine at {nobody} listens to a UPS")), "{page}");
    at.start().await;
    assert_eq!(to(&at.get("/setup").await), "/setup/power");
    assert_eq!(to(&at.post("/setup/power/on", "").await), "/setup/lines");
    assert!(at.get("/setup/lines").await.contains("Go on with one line"));
    assert_eq!(to(&at.post("/setup/lines/on", "").await), "/setup/member");
    assert_eq!(at.supervisor.status.borrow().site.name.as_str(), "dune");

    let short = at.post("/setup/member", "name=ada&password=short&again=short").await;
    assert!(short.contains("The password is too short"), "{short}");
    let form = "name=ada&password=four+quiet+brown+otters&again=four+quiet+brown+otters";
    let done = at.post("/setup/member", form).await;
    assert!(done.starts_with("HTTP/1.1 200") && done.contains("Your key"), "{done}");
    // The sheet is shown beside this page, which shows the key once only.
    assert!(done.contains("action=\"/backup/kit\" target=\"_blank\""), "{done}");
    let key = done.split("Bearer ").nth(1).and_then(|rest| rest.split(['&', '\'']).next()).unwrap();
    assert!(key.starts_with("plk_"));
    assert!(done.contains(&format!("https://localhost:{}/v1", at.port)));

    // Signed in, the wizard is gone, and the key opens the API.
    assert!(at.get("/").await.contains("ada"));
    assert_eq!(to(&at.get("/setup").await), "/");
    let mut stream = TcpStream::connect(("127.0.0.1", at.port)).await.unwrap();
    let ask = format!(
        "GET /v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nauthorization: Bearer {key}\r\n\r\n"
    );
    stream.write_all(ask.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(!answer.starts_with("HTTP/1.1 401"), "{answer}");

    let records = at.supervisor.records.lock().unwrap().join("\n");
    for told in ["claimed the box: the box", "made the first steward: ada"] {
        assert!(records.contains(&format!("the person claiming the box {told}")), "{records}");
    }
    assert!(!records.contains("otters") && !records.contains(&code));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_box_that_is_set_up_is_opened_again_only_from_the_console() {
    let mut at = Unclaimed::open().await;
    assert!(matches!(at.console(DoorRequest::UpKey).await, Some(DoorReply::Key(_))));
    assert_eq!(to(&at.get("/setup").await), "/");
    assert_eq!(to(&at.get("/setup/claim").await), "/");
    assert!(matches!(at.console(DoorRequest::OpenClaim).await, Some(DoorReply::Claimed)));

    let code = at.code(DoorRequest::ReopenSetup).await;
    assert_eq!(to(&at.get("/setup").await), "/setup/claim");
    assert_eq!(to(&at.post("/setup/claim", &format!("code={code}")).await), "/setup/machine");
    at.post("/setup/machine", "").await;
    at.post("/setup/model", &format!("recipe={MODEL}")).await;
    at.get("/setup/import").await;
    at.post("/setup/address", "name=dune&reach=here").await;
    assert_eq!(to(&at.get("/setup/address").await), "/setup/power");
    assert_eq!(to(&at.post("/setup/power/on", "").await), "/setup/lines");
    assert_eq!(to(&at.post("/setup/lines/on", "").await), "/");
    assert_eq!(to(&at.get("/setup").await), "/");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_claims_at_once_through_the_real_door_exactly_one_wins() {
    let at = Unclaimed::open().await;
    let code = at.code(DoorRequest::OpenClaim).await;
    let port = at.port;
    let claim = |code: String| async move {
        let form = format!("code={code}");
        let text = format!(
            "POST /setup/claim HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
             content-type: application/x-www-form-urlencoded\r\ncontent-length: {}\r\n\r\n{form}",
            form.len()
        );
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.starts_with("HTTP/1.1 303")
    };
    let mut claims = tokio::task::JoinSet::new();
    for _ in 0..6 {
        claims.spawn(claim(code.clone()));
    }
    let won = claims.join_all().await.into_iter().filter(|won| *won).count();
    assert_eq!(won, 1);
}
