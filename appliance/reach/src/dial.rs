//! What a box does: it calls the relay, holds the line, and takes callers over it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use polder_pin::{Known, Versions};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use crate::line::{self, Welcome};
use crate::pass::Pass;
use crate::place::{Place, from_outside, place};
use crate::relay::prepare;

/// For each step of a call.
const PATIENCE: Duration = Duration::from_secs(5);
/// After a line broke it is called again at once, then less and less often.
const SOON: Duration = Duration::from_millis(250);
const SELDOM: Duration = Duration::from_secs(30);
/// Whoever was told that their pass is not known asks only now and then.
const AFTER_REFUSAL: Duration = Duration::from_secs(60);

/// Somebody outside, over the line. What comes is TLS for one of the box's names.
#[derive(Debug)]
pub struct Caller {
    /// Their bytes.
    pub stream: TokioIo<Upgraded>,
    /// Where they connected from, as the relay says; the unspecified address where it says one of a local network.
    pub remote: SocketAddr,
    /// Where the line left the box.
    pub local: SocketAddr,
}

/// How a line is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LineState {
    /// It is being called.
    Calling,
    /// It is held.
    Held {
        /// Names that callers find the box by.
        names: Vec<String>,
        /// Where it comes from, as the relay sees it.
        seen: SocketAddr,
        /// Whether this uplink can be called from outside without a relay.
        place: Place,
        /// What came of it when the relay tried.
        #[serde(default)]
        tried: Option<Tried>,
    },
    /// It is not held; it will be called again.
    Broken {
        /// One sentence.
        why: String,
    },
}

/// What came of a relay's knocking at the address that a line comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tried {
    /// At which port.
    pub port: u16,
    /// This box answered, by its certificate.
    pub open: bool,
}

/// Where a relay should knock, so that the box knows whether callers come through without it. It may change while a line is held.
#[derive(Debug, Clone, Default)]
pub struct Knock(Arc<Mutex<Option<Doors>>>);

/// What answers where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Doors {
    /// The box's own port.
    pub own: u16,
    /// The one that its router passes on, where it is another or known at all.
    pub mapped: Option<u16>,
    /// SHA-256 of the certificate that whoever names no host is shown there.
    pub fingerprint: [u8; 32],
}

impl Knock {
    /// The relay hears of it within a second.
    pub fn set(&self, doors: Option<Doors>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = doors;
    }

    /// Where it was last told to knock.
    pub fn doors(&self) -> Option<Doors> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is said to the relay of a line that ends there. Behind a provider's translation the address is others' too.
    fn wish(&self, place: Place) -> Option<String> {
        let doors = (*self.0.lock().unwrap_or_else(PoisonError::into_inner))?;
        let port = match place {
            Place::Public => doors.own,
            Place::Router => doors.mapped.unwrap_or(doors.own),
            Place::Provider => return None,
        };
        Some(format!("{port} {}", BASE64_URL_SAFE_NO_PAD.encode(doors.fingerprint)))
    }
}

/// By which uplink a line leaves the box.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Via {
    /// Whichever the machine uses.
    Any,
    /// This interface.
    Interface(String),
}

/// How much a box would rather have callers over another of its lines: they come over those with the smallest number. It may change
/// while a line is held.
#[derive(Debug, Clone, Default)]
pub struct Rank(Arc<AtomicU8>);

impl Rank {
    /// The relay hears of it within a second.
    pub fn set(&self, rank: u8) {
        self.0.store(rank, Ordering::Relaxed);
    }
    /// As it was set last; 0 at first.
    pub fn get(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Holds one line for ever: ends when it is dropped. `told` hears how it is, `take` has every caller.
pub async fn hold(
    pass: &Pass,
    via: &Via,
    rank: &Rank,
    knock: &Knock,
    told: impl Fn(LineState),
    take: impl Fn(Caller) + Clone + Send + Sync + 'static,
) {
    let mut pause = SOON;
    loop {
        told(LineState::Calling);
        let ended = once(pass, via, (rank, knock), &told, take.clone()).await;
        let (why, wait) = match ended {
            Ended::Broke(why) => {
                pause = SOON;
                (why, SOON)
            }
            Ended::NotReached(why) => {
                pause = (pause * 2).min(SELDOM);
                (why, pause)
            }
            Ended::Refused(why) => (why, AFTER_REFUSAL),
        };
        told(LineState::Broken { why });
        tokio::time::sleep(wait).await;
    }
}

enum Ended {
    /// It was held.
    Broke(String),
    NotReached(String),
    /// In the relay's words.
    Refused(String),
}

async fn once(
    pass: &Pass,
    via: &Via,
    (rank, knock): (&Rank, &Knock),
    told: &impl Fn(LineState),
    take: impl Fn(Caller) + Clone + Send + Sync + 'static,
) -> Ended {
    let at = format!("{}:{}", pass.host, pass.port);
    let stream = match call(pass, via).await {
        Ok(stream) => stream,
        Err(why) => return Ended::NotReached(format!("the relay {at} cannot be reached: {why}")),
    };
    let Ok(local) = stream.local_addr() else {
        return Ended::NotReached(format!("the line to {at} broke at once"));
    };
    prepare(&stream);
    // The certificate is known by its fingerprint; the name is only for the first message.
    let name = ServerName::try_from("polder-relay").expect("the literal is a name");
    let connector = TlsConnector::from(Arc::new(config(pass.fingerprint)));
    let stream = match timeout(PATIENCE, connector.connect(name, stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            let why = match polder_pin::is_stranger(&error) {
                true => "its certificate has another fingerprint".to_owned(),
                false => error.to_string(),
            };
            return Ended::NotReached(format!(
                "who answers at {at} is not the relay of this pass ({why})"
            ));
        }
        Err(_) => return Ended::NotReached(format!("the relay {at} does not answer")),
    };
    let heard: watch::Sender<Option<Heard>> = watch::Sender::default();
    let mut hears = heard.subscribe();
    let asked = watch::Sender::new(());
    let mut is_asked = asked.subscribe();
    let tried: watch::Sender<Option<Tried>> = watch::Sender::default();
    let mut is_tried = tried.subscribe();
    let mut welcomed: Option<Welcome> = None;
    let known = Arc::new(Line {
        id: pass.id.clone(),
        secret: Mutex::new(Some(BASE64_URL_SAFE_NO_PAD.encode(pass.secret))),
        heard,
        asked,
        local,
        rank: rank.clone(),
        knock: knock.clone(),
        tried,
    });
    let service = service_fn(move |request| answer(known.clone(), request, take.clone()));
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_header_list_size(16 << 10)
        .max_concurrent_streams(4096)
        .initial_stream_window_size(line::STREAM_WINDOW)
        .initial_connection_window_size(line::LINE_WINDOW);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let mut held = false;
    let quiet = tokio::time::sleep(PATIENCE);
    tokio::pin!(quiet);
    loop {
        tokio::select! {
            ended = &mut connection => {
                let why = match ended {
                    Ok(()) => format!("the relay {at} hung up"),
                    Err(error) => format!("the line to the relay {at} broke: {error}"),
                };
                return match held {
                    true => Ended::Broke(why),
                    false => Ended::NotReached(why),
                };
            }
            changed = hears.changed() => {
                let heard = changed.is_ok().then(|| hears.borrow_and_update().clone()).flatten();
                match heard {
                    Some(Heard::Welcome(welcome)) => {
                        held = true;
                        told(held_as(&welcome, local, None));
                        welcomed = Some(welcome);
                    }
                    Some(Heard::Refused(why)) => return Ended::Refused(why),
                    None => return Ended::Broke(format!("the line to the relay {at} broke")),
                }
            }
            Ok(()) = is_tried.changed() => {
                if let Some(welcome) = &welcomed {
                    told(held_as(welcome, local, *is_tried.borrow_and_update()));
                }
            }
            Ok(()) = is_asked.changed() => {
                quiet.as_mut().reset(Instant::now() + line::PING + line::SILENCE);
            }
            () = &mut quiet => {
                let why = format!("the relay {at} has fallen silent");
                return match held {
                    true => Ended::Broke(why),
                    false => Ended::NotReached(why),
                };
            }
        }
    }
}

fn held_as(welcome: &Welcome, local: SocketAddr, tried: Option<Tried>) -> LineState {
    let (names, seen) = (welcome.names.clone(), welcome.seen);
    LineState::Held { names, seen, place: place(local.ip(), seen.ip()), tried }
}

/// What the relay said of the line.
#[derive(Debug, Clone)]
enum Heard {
    Welcome(Welcome),
    Refused(String),
}

struct Line {
    id: String,
    /// Said once.
    secret: Mutex<Option<String>>,
    heard: watch::Sender<Option<Heard>>,
    /// Told whenever the relay asks whether we are still there.
    asked: watch::Sender<()>,
    local: SocketAddr,
    rank: Rank,
    knock: Knock,
    /// What came of the relay's knocking last.
    tried: watch::Sender<Option<Tried>>,
}

/// What the relay asks.
async fn answer(
    line: Arc<Line>,
    mut request: Request<Incoming>,
    take: impl Fn(Caller) + Send + Sync + 'static,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let welcomed = matches!(*line.heard.borrow(), Some(Heard::Welcome(_)));
    if request.method() == Method::CONNECT {
        if !welcomed {
            return Ok(only(StatusCode::FORBIDDEN));
        }
        let remote = request.headers().get(line::CALLER).and_then(|value| value.to_str().ok());
        let remote = remote.and_then(|text| text.parse::<SocketAddr>().ok());
        let Some(remote) = remote else { return Ok(only(StatusCode::BAD_REQUEST)) };
        let remote = SocketAddr::new(from_outside(remote.ip()), remote.port());
        let local = line.local;
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            match upgrade.await {
                Ok(stream) => take(Caller { stream: TokioIo::new(stream), remote, local }),
                Err(error) => log::debug!("a caller left at once: {error}"),
            }
        });
        return Ok(only(StatusCode::OK));
    }
    match request.uri().path() {
        line::WHO => {
            let secret = line.secret.lock().unwrap_or_else(PoisonError::into_inner).take();
            let Some(secret) = secret else { return Ok(only(StatusCode::FORBIDDEN)) };
            let mut response = only(StatusCode::OK);
            let value = |text: &str| http::HeaderValue::from_str(text);
            if let (Ok(id), Ok(mut secret)) = (value(&line.id), value(&secret)) {
                secret.set_sensitive(true);
                response.headers_mut().insert(line::ID, id);
                response.headers_mut().insert(line::SECRET, secret);
                response.headers_mut().insert(line::RANK, u16::from(line.rank.get()).into());
            }
            Ok(response)
        }
        line::PING_PATH => {
            line.asked.send_replace(());
            let said = request.headers().get(line::TRIED).and_then(|value| value.to_str().ok());
            if let Some(now) = said.and_then(tried) {
                line.tried.send_if_modified(|before| before.replace(now) != Some(now));
            }
            let mut response = only(StatusCode::OK);
            response.headers_mut().insert(line::RANK, u16::from(line.rank.get()).into());
            let place = match &*line.heard.borrow() {
                Some(Heard::Welcome(welcome)) => Some(place(line.local.ip(), welcome.seen.ip())),
                _ => None,
            };
            let wish = place.and_then(|place| line.knock.wish(place));
            if let Some(wish) = wish.and_then(|wish| http::HeaderValue::from_str(&wish).ok()) {
                response.headers_mut().insert(line::TRY, wish);
            }
            Ok(response)
        }
        line::WELCOME if !welcomed => {
            let body = body(request).await;
            match serde_json::from_slice::<Welcome>(&body) {
                Ok(welcome) => {
                    line.heard.send_replace(Some(Heard::Welcome(welcome)));
                    Ok(only(StatusCode::OK))
                }
                Err(_) => Ok(only(StatusCode::BAD_REQUEST)),
            }
        }
        line::REFUSED if !welcomed => {
            let body = body(request).await;
            let why: String = String::from_utf8_lossy(&body).chars().take(300).collect();
            line.heard.send_replace(Some(Heard::Refused(why)));
            Ok(only(StatusCode::OK))
        }
        _ => Ok(only(StatusCode::NOT_FOUND)),
    }
}

/// `8443 open`
fn tried(said: &str) -> Option<Tried> {
    let (port, how) = said.split_once(' ')?;
    let open = match how {
        "open" => true,
        "closed" => false,
        _ => return None,
    };
    Some(Tried { port: port.parse().ok()?, open })
}

async fn body(request: Request<Incoming>) -> Bytes {
    let body = Limited::new(request.into_body(), line::LONGEST).collect().await;
    body.map(|body| body.to_bytes()).unwrap_or_default()
}

fn only(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

async fn call(pass: &Pass, via: &Via) -> Result<TcpStream, String> {
    let looked = tokio::net::lookup_host((pass.host.as_str(), pass.port));
    let addresses: Vec<SocketAddr> = match timeout(PATIENCE, looked).await {
        Ok(Ok(found)) => found.collect(),
        Ok(Err(error)) => return Err(format!("its name is not known ({error})")),
        Err(_) => return Err("its name is not known in time".to_owned()),
    };
    let mut why = "its name has no address".to_owned();
    for address in addresses {
        match timeout(PATIENCE, connect(address, via)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => why = error.to_string(),
            Err(_) => why = "nobody answers".to_owned(),
        }
    }
    Err(why)
}

async fn connect(address: SocketAddr, via: &Via) -> std::io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if let Via::Interface(name) = via {
        socket.bind_device(Some(name.as_bytes()))?;
    }
    socket.connect(address).await
}

pub(crate) fn config(fingerprint: [u8; 32]) -> ClientConfig {
    // Whoever signed it and whatever it says: the pass names it.
    let mut config = polder_pin::calling(Known::fingerprint(fingerprint), Versions::Only13)
        .expect("the provider knows TLS 1.3")
        .with_no_client_auth();
    config.alpn_protocols = vec![line::PROTOCOL.to_vec()];
    // The relay tells by what we speak, not by a name.
    config.enable_sni = false;
    config
}
