//! The relay: on any small server with a public address. It passes bytes on by the name that TLS begins with, and holds no key of
//! any box.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustix::net::sockopt;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::first::{First, LONGEST, first};
use crate::line::{self, Welcome};
use crate::register::{Known, Register, RegisterError};
use crate::rewind::{Ends, Rewind};

/// How much anybody may ask of a relay.
#[derive(Debug, Clone)]
pub struct Limits {
    /// For the first message of a connection, and for all that a box says before it has a line.
    pub beginning: Duration,
    /// Connections at once, in all and from one address. Many callers may share one: their provider's.
    pub connections: usize,
    /// See above.
    pub of_one_address: usize,
    /// Lines that a box may hold at once.
    pub lines: usize,
    /// How long a caller waits for a box whose line broke.
    pub patience: Duration,
    /// How long a line may take to accept a caller before another is tried.
    pub line_patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            beginning: Duration::from_secs(5),
            connections: 4096,
            of_one_address: 256,
            // One for each uplink that a site may have, and those that are dead without anybody having noticed.
            lines: 16,
            patience: Duration::from_secs(10),
            line_patience: Duration::from_secs(1),
        }
    }
}

/// Whoever takes nothing for so long is given up.
const STALL: Duration = Duration::from_secs(60);
/// After a box has said its last the caller has this long to hang up.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// A box that wants to be knocked at has this long to answer.
const KNOCKING: Duration = Duration::from_secs(5);
/// How often the folder is looked at: whoever was removed there is cut off within it.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Serves these listeners until `stop`.
pub async fn run(
    register: Register,
    listeners: Vec<TcpListener>,
    limits: Limits,
    stop: CancellationToken,
) -> Result<(), RegisterError> {
    let (certificate, key) = register.identity()?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .and_then(|config| config.with_no_client_auth().with_single_cert(vec![certificate], key))
        .map_err(|error| RegisterError::Key(error.to_string()))?;
    config.alpn_protocols = vec![line::PROTOCOL.to_vec()];
    let relay = Arc::new(Relay {
        known: RwLock::new(Arc::new(register.known()?)),
        tls: TlsAcceptor::from(Arc::new(config)),
        lines: Mutex::default(),
        changed: watch::Sender::default(),
        callers: Mutex::default(),
        numbers: AtomicU64::default(),
        limits,
    });
    let mut tasks = Vec::new();
    for listener in listeners {
        tasks.push(tokio::spawn(relay.clone().listen(listener, stop.clone())));
    }
    tokio::select! {
        () = relay.follow(&register) => {}
        () = stop.cancelled() => {}
    }
    for task in tasks {
        let _ = task.await;
    }
    Ok(())
}

struct Relay {
    known: RwLock<Arc<Known>>,
    tls: TlsAcceptor,
    /// By box, the newest last.
    lines: Mutex<HashMap<String, Vec<Arc<Line>>>>,
    /// Told when a line comes or goes.
    changed: watch::Sender<u64>,
    callers: Mutex<HashMap<IpAddr, usize>>,
    numbers: AtomicU64,
    limits: Limits,
}

/// A connection that a box made and we ask over.
struct Line {
    number: u64,
    secret: Vec<u8>,
    send: SendRequest<Full<Bytes>>,
    /// As the box said last. Callers go over the lines with the smallest.
    rank: AtomicU8,
    /// Cancelled when the box may hold it no more.
    end: CancellationToken,
}

/// A connection from outside, counted until it is dropped.
struct Counted<'a>(&'a Relay, IpAddr);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        let mut callers = self.0.callers();
        if let Some(count) = callers.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                callers.remove(&self.1);
            }
        }
    }
}

impl Relay {
    async fn listen(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, remote)) => {
                    let (relay, stop) = (self.clone(), stop.clone());
                    tokio::spawn(async move {
                        tokio::select! {
                            () = stop.cancelled() => {}
                            () = relay.take(stream, remote) => {}
                        }
                    });
                }
                Err(error) => {
                    // Too many open files, most likely; others end meanwhile.
                    log::warn!("could not take a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// Reads the folder again and again, and ends lines whose boxes were removed.
    async fn follow(&self, register: &Register) {
        loop {
            tokio::time::sleep(LOOK_AGAIN).await;
            let known = match register.known() {
                Ok(known) => Arc::new(known),
                Err(error) => {
                    log::error!("{error}");
                    continue;
                }
            };
            for (id, lines) in self.lines().iter() {
                for line in lines.iter().filter(|line| !known.still(id, &line.secret)) {
                    log::info!("{id} was removed here: its line ends");
                    line.end.cancel();
                }
            }
            *self.known.write().unwrap_or_else(PoisonError::into_inner) = known;
        }
    }

    async fn take(&self, mut stream: TcpStream, remote: SocketAddr) {
        let Some(_counted) = self.count(remote.ip()) else { return };
        prepare(&stream);
        let until = Instant::now() + self.limits.beginning;
        let mut bytes = Vec::new();
        let whom = loop {
            match timeout_at(until, read_some(&mut stream, &mut bytes)).await {
                Ok(Ok(1..)) => {}
                _ => return,
            }
            match first(&bytes) {
                First::More => {}
                whom => break whom,
            }
        };
        match whom {
            First::Box => {
                let stream = Rewind::new(bytes, stream);
                let Ok(Ok(stream)) = timeout_at(until, self.tls.accept(stream)).await else {
                    return;
                };
                if let Err(why) = self.hold(stream, remote, until).await {
                    log::info!(from:% = remote; "a line ended: {why}");
                }
            }
            First::Caller(name) => self.pass_on(&name, remote, bytes, stream).await,
            First::More | First::Nobody => {}
        }
    }

    /// A box's line, from its first word to its end.
    async fn hold(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        remote: SocketAddr,
        until: Instant,
    ) -> Result<(), String> {
        let text = |error: hyper::Error| error.to_string();
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_header_list_size(16 << 10)
            .initial_stream_window_size(line::STREAM_WINDOW)
            .initial_connection_window_size(line::LINE_WINDOW);
        let end = CancellationToken::new();
        // Whatever happens here, the connection ends with it, and every stream over it.
        let _ends = end.clone().drop_guard();
        let stream = TokioIo::new(Ends::new(end.clone(), stream));
        let (mut send, connection) =
            builder.handshake::<_, Full<Bytes>>(stream).await.map_err(text)?;
        let connection = tokio::spawn(connection);
        let who = timeout_at(until, send.send_request(asking(line::WHO, Bytes::new())));
        let who =
            who.await.map_err(|_| "the box did not say who it is".to_owned())?.map_err(text)?;
        let said = |name| who.headers().get(name).and_then(|value| value.to_str().ok());
        let (id, secret) = (said(line::ID).unwrap_or(""), said(line::SECRET).unwrap_or(""));
        let (secret, rank) = (decode(secret), rank(&who).into());
        let Some(names) = self.known().admit(id, &secret) else {
            let why = "the relay does not know this pass; add the box again there, and give it the new one";
            let refused = asking(line::REFUSED, Bytes::from_static(why.as_bytes()));
            let _ = timeout_at(until, send.send_request(refused)).await;
            return Err(format!("{} is not known", id.escape_debug()));
        };
        let welcome = Welcome { names, seen: remote };
        let welcome = serde_json::to_vec(&welcome).expect("names and an address are JSON");
        let answer = timeout_at(until, send.send_request(asking(line::WELCOME, welcome.into())));
        answer.await.map_err(|_| "the box did not take its names".to_owned())?.map_err(text)?;
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let ping = send.clone();
        let line = Arc::new(Line { number, secret, send, rank, end });
        let id = id.to_owned();
        self.add(&id, line.clone());
        log::info!(from:% = remote; "{id} holds a line");
        let ended = tokio::select! {
            ended = connection => match ended {
                Ok(ended) => ended.map_err(text),
                Err(error) => Err(error.to_string()),
            },
            why = silent(ping, &line.rank, remote.ip()) => Err(why),
        };
        self.remove(&id, number);
        ended
    }

    fn add(&self, id: &str, line: Arc<Line>) {
        let mut lines = self.lines();
        let lines_of = lines.entry(id.to_owned()).or_default();
        // The oldest may be dead without anybody having noticed.
        while lines_of.len() >= self.limits.lines.max(1) {
            lines_of.remove(0).end.cancel();
        }
        lines_of.push(line);
        drop(lines);
        self.changed.send_modify(|count| *count += 1);
    }

    fn remove(&self, id: &str, number: u64) {
        let mut lines = self.lines();
        if let Some(lines_of) = lines.get_mut(id) {
            lines_of.retain(|line| line.number != number);
            if lines_of.is_empty() {
                lines.remove(id);
            }
        }
        drop(lines);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Passes a caller's bytes on to the box of that name and back, until either ends.
    async fn pass_on(&self, name: &str, remote: SocketAddr, bytes: Vec<u8>, stream: TcpStream) {
        let Some(id) = self.known().box_of(name).map(str::to_owned) else { return };
        let until = Instant::now() + self.limits.patience;
        let Some(mut line) = self.reach(&id, name, remote, until).await else {
            log::info!("nobody holds a line for {id}: a caller was sent away");
            return;
        };
        if line.write_all(&bytes).await.is_ok() {
            between(stream, line).await;
        }
    }

    /// A way to the box over the line that it prefers, the newest of several, that takes the caller; waits for one while there is none.
    async fn reach(
        &self,
        id: &str,
        name: &str,
        remote: SocketAddr,
        until: Instant,
    ) -> Option<TokioIo<Upgraded>> {
        let mut changed = self.changed.subscribe();
        loop {
            changed.borrow_and_update();
            let mut lines: Vec<Arc<Line>> = self.lines().get(id).cloned().unwrap_or_default();
            lines.reverse();
            lines.sort_by_key(|line| line.rank.load(Ordering::Relaxed));
            for line in &lines {
                let call = call(line.send.clone(), name, remote);
                match timeout(self.limits.line_patience, call).await {
                    Ok(Ok(io)) => return Some(io),
                    Ok(Err(why)) => log::info!("{id} did not take a caller: {why}"),
                    Err(_) => log::info!("{id} did not take a caller in time"),
                }
            }
            // A line that is only slow may take the next try.
            let pause = Duration::from_millis(200);
            let wait = async {
                let _ =
                    timeout(pause * if lines.is_empty() { 50 } else { 1 }, changed.changed()).await;
            };
            timeout_at(until, wait).await.ok()?;
            if Instant::now() >= until {
                return None;
            }
        }
    }

    fn count(&self, ip: IpAddr) -> Option<Counted<'_>> {
        let ip = network(ip);
        let mut callers = self.callers();
        let all: usize = callers.values().sum();
        let own = callers.entry(ip).or_default();
        if all >= self.limits.connections || *own >= self.limits.of_one_address {
            if *own == 0 {
                callers.remove(&ip);
            }
            return None;
        }
        *own += 1;
        Some(Counted(self, ip))
    }

    fn known(&self) -> Arc<Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn lines(&self) -> MutexGuard<'_, HashMap<String, Vec<Arc<Line>>>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn callers(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.callers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Carries bytes both ways until both ends have said their last, or one takes nothing any more: what nobody takes would fill the line
/// that all callers share.
async fn between(caller: impl AsyncRead + AsyncWrite, line: impl AsyncRead + AsyncWrite) {
    let (from_caller, to_caller) = tokio::io::split(caller);
    let (from_box, to_box) = tokio::io::split(line);
    let (asks, answers) = (carry(from_caller, to_box), carry(from_box, to_caller));
    tokio::pin!(asks, answers);
    tokio::select! {
        ended = &mut asks => if ended.is_ok() {
            // Whoever has said all may still be answered.
            let _ = answers.await;
        },
        ended = &mut answers => if ended.is_ok() {
            let _ = timeout(LAST_WORDS, asks).await;
        },
    }
}

async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    let mut some = vec![0; 16 << 10];
    loop {
        let count = from.read(&mut some).await?;
        let stalled = || io::Error::from(io::ErrorKind::TimedOut);
        if count == 0 {
            return timeout(STALL, to.shutdown()).await.map_err(|_| stalled())?;
        }
        let taken = async {
            to.write_all(&some[..count]).await?;
            to.flush().await
        };
        timeout(STALL, taken).await.map_err(|_| stalled())??;
    }
}

/// Comes back when the box does not answer any more. A question of our own, and not HTTP/2's keep-alive: a program answers it, not a library,
/// and the box knows by it that the relay is there.
async fn silent(mut send: SendRequest<Full<Bytes>>, known: &AtomicU8, remote: IpAddr) -> String {
    let mut knocking = Knocking::default();
    loop {
        tokio::time::sleep(line::PING).await;
        let mut asking = asking(line::PING_PATH, Bytes::new());
        if let Some(tried) = knocking.tried().and_then(|tried| tried.parse().ok()) {
            asking.headers_mut().insert(line::TRIED, tried);
        }
        match timeout(line::SILENCE - line::PING, send.send_request(asking)).await {
            Ok(Ok(answer)) => {
                known.store(rank(&answer), Ordering::Relaxed);
                knocking.want(&answer, remote);
            }
            Ok(Err(error)) => return error.to_string(),
            Err(_) => return "the box has fallen silent".to_owned(),
        }
    }
}

/// Knocks where a box wants it, now and then, and only at the address that it called from: whoever has a pass finds out about
/// nobody's ports but those of their own address.
#[derive(Default)]
struct Knocking {
    task: JoinSet<String>,
    /// What was wanted last, and when that was done.
    last: Option<(String, Instant)>,
    tried: Option<String>,
}

impl Knocking {
    /// What came of it last.
    fn tried(&mut self) -> Option<&str> {
        if let Some(Ok(tried)) = self.task.try_join_next() {
            self.tried = Some(tried);
        }
        self.tried.as_deref()
    }

    fn want<B>(&mut self, answer: &http::Response<B>, remote: IpAddr) {
        let said = answer.headers().get(line::TRY).and_then(|value| value.to_str().ok());
        let Some((wish, (port, fingerprint))) = said.and_then(|said| Some((said, knock(said)?)))
        else {
            return;
        };
        let due = self.last.as_ref().is_none_or(|(last, at)| {
            let pause = if last == wish { line::KNOCK } else { line::KNOCK_ELSEWHERE };
            at.elapsed() >= pause
        });
        if due && self.task.is_empty() {
            self.last = Some((wish.to_owned(), Instant::now()));
            self.task.spawn(async move {
                let open = answers(SocketAddr::new(remote, port), fingerprint).await;
                format!("{port} {}", if open { "open" } else { "closed" })
            });
        }
    }
}

/// `8443 FINGERPRINT`
fn knock(said: &str) -> Option<(u16, [u8; 32])> {
    let (port, fingerprint) = said.split_once(' ')?;
    Some((port.parse().ok().filter(|port| *port != 0)?, decode(fingerprint).try_into().ok()?))
}

/// Whether whoever has this certificate answers there.
async fn answers(at: SocketAddr, fingerprint: [u8; 32]) -> bool {
    let mut config = crate::dial::config(fingerprint);
    config.alpn_protocols.clear();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let knocking = async {
        let stream = TcpStream::connect(at).await?;
        let name = rustls_pki_types::ServerName::IpAddress(at.ip().into());
        connector.connect(name, stream).await
    };
    matches!(timeout(KNOCKING, knocking).await, Ok(Ok(_)))
}

/// What a box says of its line; one of an older version prefers none.
fn rank<B>(answer: &http::Response<B>) -> u8 {
    let said = answer.headers().get(line::RANK).and_then(|value| value.to_str().ok());
    said.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Asks the box over its line to take a caller.
async fn call(
    mut send: SendRequest<Full<Bytes>>,
    name: &str,
    remote: SocketAddr,
) -> Result<TokioIo<Upgraded>, String> {
    let request = Request::builder()
        .method(Method::CONNECT)
        .uri(format!("{name}:443"))
        .header(line::CALLER, remote.to_string())
        .body(Full::default())
        .map_err(|error| error.to_string())?;
    send.ready().await.map_err(|error| error.to_string())?;
    let answer = send.send_request(request).await.map_err(|error| error.to_string())?;
    if answer.status() != StatusCode::OK {
        let status = answer.status();
        let body = http_body_util::Limited::new(answer.into_body(), line::LONGEST).collect().await;
        let why = body.map(|body| body.to_bytes()).unwrap_or_default();
        return Err(format!("{status}, {}", String::from_utf8_lossy(&why).escape_debug()));
    }
    hyper::upgrade::on(answer).await.map(TokioIo::new).map_err(|error| error.to_string())
}

fn asking(path: &'static str, body: Bytes) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = http::Uri::from_static(match path {
        line::WHO => "https://box/who",
        line::WELCOME => "https://box/welcome",
        line::PING_PATH => "https://box/ping",
        _ => "https://box/refused",
    });
    request
}

/// Whoever has an IPv6 address has 2^64 of them.
fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => {
            let net = u128::from(ip) >> 64 << 64;
            IpAddr::V6(net.into())
        }
        ip => ip,
    }
}

fn decode(secret: &str) -> Vec<u8> {
    use base64::Engine;
    base64::prelude::BASE64_URL_SAFE_NO_PAD.decode(secret).unwrap_or_default()
}

async fn read_some(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> io::Result<usize> {
    let mut some = [0; 4096];
    let count = stream.read(&mut some).await?;
    bytes.extend_from_slice(&some[..count]);
    match bytes.len() > LONGEST {
        true => Err(io::ErrorKind::InvalidData.into()),
        false => Ok(count),
    }
}

/// Tokens go out as they come, and a line that went dead is noticed.
pub(crate) fn prepare(stream: &TcpStream) {
    let set = stream
        .set_nodelay(true)
        .and_then(|()| Ok(sockopt::set_socket_keepalive(stream, true)?))
        .and_then(|()| Ok(sockopt::set_tcp_keepidle(stream, Duration::from_secs(30))?))
        .and_then(|()| Ok(sockopt::set_tcp_keepintvl(stream, Duration::from_secs(10))?))
        .and_then(|()| Ok(sockopt::set_tcp_keepcnt(stream, 3)?));
    if let Err(error) = set {
        log::debug!("a connection's options could not be set: {error}");
    }
}
