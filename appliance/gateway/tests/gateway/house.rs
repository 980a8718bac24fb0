//! A whole box in a temporary folder: the real gateway, a pretended engine and supervisor.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use polder_control::{
    BoxStatus, Client, ControlError, DoorReply, DoorRequest, EngineStatus, Event, Handler, Outlet,
    PartState, PartStatus, Reply, Request as Ask, Sockets,
};
use polder_gateway::{GatewayOptions, Limits, run};
use polder_members::{Member, Members, NewKey, NewMember, Role, Secret};
use polder_site::{EngineSlot, Site, Store};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UnixListener};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

pub(crate) struct House {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) port: u16,
    pub(crate) site: Site,
    pub(crate) engine: Arc<Engine>,
    pub(crate) status: watch::Sender<BoxStatus>,
    pub(crate) records: Arc<Mutex<Vec<String>>>,
    /// Opens the API and other apps; a steward's.
    pub(crate) key: String,
    /// The same steward in a browser.
    pub(crate) session: String,
    pub(crate) supervisor: JoinHandle<()>,
    stop: Option<oneshot::Sender<()>>,
    pub(crate) gateway: JoinHandle<()>,
}

/// What a test wants otherwise.
pub(crate) struct Wish {
    /// What the engine takes for common when the door opens.
    pub(crate) common: &'static str,
    /// The status with which it says that.
    pub(crate) says_common: u16,
    pub(crate) limits: Limits,
    pub(crate) supervised: bool,
    pub(crate) listen: Vec<&'static str>,
    pub(crate) members: fn(&Members, &Member),
}

impl Default for Wish {
    fn default() -> Self {
        Self {
            common: "[]",
            says_common: 200,
            limits: Limits::default(),
            supervised: true,
            listen: vec!["127.0.0.1"],
            members: |_, _| {},
        }
    }
}

pub(crate) fn new_member(name: &str) -> NewMember {
    let password = Secret::new("correct horse battery".to_owned());
    NewMember { name: name.to_owned(), email: Some(format!("{name}@example.org")), password }
}

impl House {
    pub(crate) async fn open() -> Self {
        Self::open_as(Wish::default()).await
    }

    pub(crate) async fn open_with(limits: Limits) -> Self {
        Self::open_as(Wish { limits, ..Wish::default() }).await
    }

    pub(crate) async fn open_as(wish: Wish) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path();
        let sockets = Sockets::of(state);
        std::fs::create_dir_all(sockets.folder()).unwrap();

        let members = Members::open(&state.join("polder.db")).unwrap();
        let steward = members.add_member(&new_member("ada"), Role::Steward).unwrap();
        let new = NewKey { scopes: polder_members::Scope::ALL.to_vec(), ..NewKey::default() };
        let key = members.mint_key(steward.id, &new).unwrap().key.expose().to_owned();
        let session = members.begin_session(steward.id).unwrap().1.expose().to_owned();
        (wish.members)(&members, &steward);
        drop(members);

        std::fs::create_dir_all(sockets.engine(&"fast".parse().unwrap()).parent().unwrap())
            .unwrap();
        let engine = Engine::start(&sockets.engine(&"fast".parse().unwrap()));
        *engine.common.lock().unwrap() = wish.common.to_owned();
        engine.says_common.store(wish.says_common, Ordering::SeqCst);
        for _ in 0..5 {
            let port = free_port();
            let mut site = Site::unclaimed(port);
            site.name = "oak".parse().unwrap();
            site.door.listen = wish.listen.iter().map(|ip| ip.parse().unwrap()).collect();
            site.door.names = vec!["gpu.example.org".to_owned()];
            let slot = EngineSlot::serving("small".parse().unwrap());
            site.engines = BTreeMap::from([("fast".parse().unwrap(), slot)]);
            Store::open(state).unwrap().write(&site, "test").unwrap();
            let (status, seen) = watch::channel(box_status(&site, &sockets, PartState::Ready));
            let records = Arc::default();
            let supervisor = match wish.supervised {
                true => supervise(&sockets.control(), seen, &records),
                false => tokio::spawn(async {}),
            };
            let (stop, stopped) = oneshot::channel::<()>();
            let options = GatewayOptions { state: state.to_owned(), limits: wish.limits.clone() };
            let gateway = tokio::spawn(async move {
                if let Err(error) = run(options, async { drop(stopped.await) }).await {
                    eprintln!("the gateway ended: {error:?}");
                }
            });
            if !up(&sockets, &gateway).await {
                // Somebody else's test took the port meanwhile.
                supervisor.abort();
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
            return Self {
                folder,
                port,
                site,
                engine,
                status,
                records,
                key,
                session,
                supervisor,
                stop: Some(stop),
                gateway,
            };
        }
        panic!("no free port was to be had");
    }

    pub(crate) fn sockets(&self) -> Sockets {
        Sockets::of(self.folder.path())
    }

    pub(crate) fn ca_file(&self) -> PathBuf {
        self.folder.path().join("pki/ca.pem")
    }

    pub(crate) async fn console(&self, question: DoorRequest) -> DoorReply {
        let mut client: Client<DoorRequest, DoorReply> =
            Client::connect(&self.sockets().gateway()).await.unwrap();
        client.ask(&question).await.unwrap()
    }

    /// Says how the engine is.
    pub(crate) fn say(&self, state: PartState) {
        self.status.send_replace(box_status(&self.site, &self.sockets(), state));
    }

    /// Says that something of the box is different now.
    pub(crate) fn change(&self, how: impl FnOnce(&mut BoxStatus)) {
        self.status.send_modify(how);
    }

    /// The supervisor goes, and with it every line to it.
    pub(crate) async fn lose_supervisor(&mut self) {
        self.supervisor.abort();
        let _ = (&mut self.supervisor).await;
    }

    pub(crate) fn start_supervisor(&mut self) {
        self.supervisor =
            supervise(&self.sockets().control(), self.status.subscribe(), &self.records);
    }

    pub(crate) fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }

    /// From this machine's browser: plain HTTP.
    pub(crate) async fn here(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.port)).await.unwrap()
    }

    /// From another address.
    pub(crate) async fn from(&self, address: &str) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(address.parse().unwrap(), 0)).unwrap();
        socket.connect(SocketAddr::from(([127, 0, 0, 1], self.port))).await.unwrap()
    }

    /// From another address, over TLS, offering these protocols.
    pub(crate) async fn tls_from(
        &self,
        address: &str,
        protocols: &[&str],
    ) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        self.tls_to("oak.local", address, protocols).await
    }

    /// The same, under another name of the box.
    pub(crate) async fn tls_to(
        &self,
        host: &str,
        address: &str,
        protocols: &[&str],
    ) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        self.tls_over(self.from(address).await, host, protocols).await
    }

    /// The same over a connection that is there.
    pub(crate) async fn tls_over(
        &self,
        stream: TcpStream,
        host: &str,
        protocols: &[&str],
    ) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let ca = std::fs::read(self.ca_file()).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&ca).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
        let name = rustls::pki_types::ServerName::try_from(host.to_owned()).unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        connector.connect(name, stream).await
    }

    /// One request over plain HTTP from this machine, and everything that comes back until the
    /// connection closes (it is asked to).
    pub(crate) async fn ask(&self, head: &str, body: &str) -> String {
        let (line, headers) = head.split_once('\n').unwrap_or((head, ""));
        let mut text = format!("{line} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
        for header in headers.lines().filter(|line| !line.trim().is_empty()) {
            text += &format!("{}\r\n", header.trim());
        }
        if !body.is_empty() {
            text += &format!("content-length: {}\r\n", body.len());
        }
        text += &format!("\r\n{body}");
        say(self.here().await, text.as_bytes()).await
    }

    /// One chat question with the steward's key.
    pub(crate) async fn chat(&self, body: &str) -> String {
        let key = &self.key;
        self.ask(&format!("POST /v1/chat/completions\nauthorization: Bearer {key}"), body).await
    }
}

/// Writes, then reads to the end.
pub(crate) async fn say(mut stream: impl AsyncRead + AsyncWrite + Unpin, text: &[u8]) -> String {
    stream.write_all(text).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer));
    // A reset after the answer is an end too.
    let _ = read.await.expect("the connection was not closed");
    String::from_utf8_lossy(&answer).into_owned()
}

/// Reads until `mark` has come.
pub(crate) async fn until(stream: &mut (impl AsyncRead + Unpin), mark: &str) -> String {
    let mut seen = String::new();
    let mut piece = [0; 4096];
    let read = async {
        while !seen.contains(mark) {
            let n = stream.read(&mut piece).await.unwrap();
            assert!(n > 0, "closed before {mark:?}: {seen}");
            seen += &String::from_utf8_lossy(&piece[..n]);
        }
    };
    tokio::time::timeout(Duration::from_secs(10), read).await.expect("it did not come");
    seen
}

pub(crate) fn status_of(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
}

/// Waits for something that will be true soon.
pub(crate) async fn soon(what: &str, mut is: impl FnMut() -> bool) {
    for _ in 0..500 {
        if is() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}: not within 5 s");
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

async fn up(sockets: &Sockets, gateway: &JoinHandle<()>) -> bool {
    for _ in 0..1000 {
        if let Ok(mut client) = Client::<DoorRequest, DoorReply>::connect(&sockets.gateway()).await
            && client.ask(&DoorRequest::Ready).await.is_ok()
        {
            // Follows the supervisor too, if there is one.
            tokio::time::sleep(Duration::from_millis(20)).await;
            return true;
        }
        if gateway.is_finished() {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the gateway did not come up");
}

pub(crate) fn box_status(site: &Site, sockets: &Sockets, state: PartState) -> BoxStatus {
    let part = |state| PartStatus { state, restarts: 0, pid: None };
    let engines = site
        .engines
        .iter()
        .map(|(name, slot)| EngineStatus {
            name: name.clone(),
            recipe: slot.recipe.clone(),
            socket: sockets.engine(name),
            part: part(state.clone()),
            note: None,
        })
        .collect();
    BoxStatus {
        supply: None,
        closed: None,
        others: Vec::new(),
        safe: false,
        site: site.clone(),
        gateway: part(PartState::Ready),
        engines,
    }
}

struct Supervisor {
    status: watch::Receiver<BoxStatus>,
    records: Arc<Mutex<Vec<String>>>,
}

impl Handler<Ask, Reply> for Supervisor {
    async fn handle(&self, ask: Ask, outlet: &mut Outlet<Reply>) -> Result<(), ControlError> {
        match ask {
            Ask::Watch => {
                let mut status = self.status.clone();
                loop {
                    let now = status.borrow_and_update().clone();
                    outlet.send(&Reply::Event(Event::Status(Box::new(now)))).await?;
                    if status.changed().await.is_err() {
                        return Ok(());
                    }
                }
            }
            Ask::Record { by, what, on } => {
                self.records.lock().unwrap().push(format!("{by} {what} {on}"));
                outlet.send(&Reply::Done).await
            }
            _ => outlet.send(&Reply::Refused("not in this test".to_owned())).await,
        }
    }
}

fn supervise(
    path: &Path,
    status: watch::Receiver<BoxStatus>,
    records: &Arc<Mutex<Vec<String>>>,
) -> JoinHandle<()> {
    let supervisor = Arc::new(Supervisor { status, records: records.clone() });
    let path = path.to_owned();
    tokio::spawn(async move {
        let _ = polder_control::serve::<Ask, Reply, _>(&path, supervisor).await;
    })
}

/// Pretends to be an engine. The question says what it shall do: `tokens`, `pause_ms` between them,
/// `break_after` so many, `stream`.
pub(crate) struct Engine {
    path: PathBuf,
    /// Every request's line, headers and body, but for the questions what is common.
    pub(crate) seen: Mutex<Vec<(String, HeaderMap, String)>>,
    /// What it takes for common to all members, and how often it was asked for that.
    pub(crate) common: Mutex<String>,
    pub(crate) asked_common: AtomicUsize,
    /// The status of its answer to that; 0 is none at all.
    pub(crate) says_common: AtomicU16,
    /// Answers begun, and those that were dropped before their end.
    pub(crate) begun: AtomicUsize,
    pub(crate) dropped: AtomicUsize,
    /// Connections taken.
    pub(crate) connections: AtomicUsize,
    /// Pieces written, by all answers.
    pub(crate) written: AtomicUsize,
    task: Mutex<Option<JoinHandle<()>>>,
}

#[derive(serde::Deserialize, Default)]
#[serde(default)]
struct Play {
    tokens: usize,
    pause_ms: u64,
    break_after: Option<usize>,
    stream: bool,
    /// Bytes of filling in every event.
    fat: usize,
    /// Headers come only after this.
    think_ms: u64,
    /// Instead of 200.
    status: Option<u16>,
}

impl Engine {
    pub(crate) fn start(path: &Path) -> Arc<Self> {
        let engine = Arc::new(Self {
            path: path.to_owned(),
            seen: Mutex::default(),
            common: Mutex::new("[]".to_owned()),
            asked_common: AtomicUsize::new(0),
            says_common: AtomicU16::new(200),
            begun: AtomicUsize::new(0),
            dropped: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            written: AtomicUsize::new(0),
            task: Mutex::default(),
        });
        engine.resume();
        engine
    }

    /// Ends it, and every connection to it.
    pub(crate) fn kill(&self) {
        if let Some(task) = self.task.lock().unwrap().take() {
            task.abort();
        }
        let _ = std::fs::remove_file(&self.path);
    }

    pub(crate) fn resume(self: &Arc<Self>) {
        let listener = UnixListener::bind(&self.path).unwrap();
        let engine = self.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let engine = engine.clone();
                engine.connections.fetch_add(1, Ordering::SeqCst);
                connections.spawn(async move {
                    let service = service_fn(move |request| answer(engine.clone(), request));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        *self.task.lock().unwrap() = Some(task);
    }

    pub(crate) fn last_headers(&self) -> HeaderMap {
        self.seen.lock().unwrap().last().unwrap().1.clone()
    }

    pub(crate) fn requests(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

type Piece = Result<Frame<Bytes>, std::io::Error>;

async fn answer(
    engine: Arc<Engine>,
    request: Request<Incoming>,
) -> Result<Response<StreamBody<tokio_stream::wrappers::ReceiverStream<Piece>>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let text = String::from_utf8_lossy(&body).into_owned();
    let line = format!("{} {}", parts.method, parts.uri);
    if line == "GET /beginnings" {
        engine.asked_common.fetch_add(1, Ordering::SeqCst);
        let status = engine.says_common.load(Ordering::SeqCst);
        if status == 0 {
            std::future::pending::<()>().await;
        }
        let (sender, receiver) = tokio::sync::mpsc::channel::<Piece>(1);
        let common = engine.common.lock().unwrap().clone();
        sender.try_send(Ok(Frame::data(common.into()))).unwrap();
        let response = Response::builder().status(status);
        return Ok(response.body(StreamBody::new(receiver.into())).unwrap());
    }
    if line == "PUT /beginnings" {
        *engine.common.lock().unwrap() = text.clone();
    }
    engine.seen.lock().unwrap().push((line, parts.headers, text));
    engine.begun.fetch_add(1, Ordering::SeqCst);
    let play: Play = serde_json::from_slice(&body).unwrap_or_default();
    tokio::time::sleep(Duration::from_millis(play.think_ms)).await;
    let kind = if play.stream { "text/event-stream" } else { "application/json" };
    let response = Response::builder()
        .status(play.status.unwrap_or(200))
        .header("content-type", kind)
        .header("trailer", "x-polder-usage")
        .header("x-polder-prompt-tokens", "7")
        .header("x-polder-ignored", "next_months_field")
        .header("set-cookie", "engine=1")
        .header("connection", "x-hop")
        .header("x-hop", "1");
    let (sender, receiver) = tokio::sync::mpsc::channel::<Piece>(1);
    tokio::spawn(async move {
        if play_out(&engine, play, &sender).await.is_none() {
            engine.dropped.fetch_add(1, Ordering::SeqCst);
        }
    });
    let body = StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(receiver));
    Ok(response.body(body).unwrap())
}

/// `None` when nobody listens any more.
async fn play_out(
    engine: &Engine,
    play: Play,
    sender: &tokio::sync::mpsc::Sender<Piece>,
) -> Option<()> {
    let say = async |text: String| {
        engine.written.fetch_add(1, Ordering::SeqCst);
        sender.send(Ok(Frame::data(Bytes::from(text)))).await.ok()
    };
    if !play.stream {
        say(format!("{{\"object\":\"answer\",\"tokens\":{}}}", play.tokens)).await?;
    } else {
        for n in 0..play.tokens {
            if play.break_after == Some(n) {
                let _ = sender.send(Err(std::io::ErrorKind::BrokenPipe.into())).await;
                return Some(());
            }
            say(format!("data: {{\"n\":{n},\"fat\":\"{}\"}}\n\n", "x".repeat(play.fat))).await?;
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(play.pause_ms)) => {}
                () = sender.closed() => return None,
            }
        }
        say("data: [DONE]\n\n".to_owned()).await?;
    }
    let mut trailers = HeaderMap::new();
    let used = format!("prompt=7,completion={}", play.tokens);
    trailers.insert("x-polder-usage", used.parse().unwrap());
    sender.send(Ok(Frame::trailers(trailers))).await.ok()
}
