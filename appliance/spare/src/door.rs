//! The spare's door: strangers may only pair, the pinned main box may do everything else, and nobody else gets past the handshake.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use polder_takeover::Moment;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tower::Service;

use crate::desk::Closed;
use crate::messages::{Answer, Beat, Begin, Begun, Head, Hello, Prove, Push, Pushed};
use crate::pairing::Binding;
use crate::store::Refused;
use crate::{
    Certificate, Desk, DrillFound, Folders, Former, Heads, Identity, Lease, Peer, Side, SpareError,
    Store, Tombstones, tls,
};

/// From the first byte to the end of the handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A whole request's head.
const HEAD: Duration = Duration::from_secs(15);
/// Everything that a stranger has to say.
const STRANGER: Duration = Duration::from_secs(30);
/// Connections at once: all, and those that have not shown who they are.
const MOST: usize = 64;
const MOST_STRANGERS: usize = 8;
/// Bytes of a message; backups and whatever is mounted have limits of their own.
const LONGEST_FROM_STRANGER: usize = 16 << 10;
const LONGEST: usize = 2 << 20;
/// A pairing that the main box does not settle by coming back is forgotten.
pub(crate) const SETTLE: i64 = 600;
/// Why two boxes stay a pair.
pub const STANDS_IN: &str =
    "one of the two stands in for the other; give back first, on the page Takeover";
/// The same where a takeover has begun and is not in place yet.
pub const TAKES_OVER: &str =
    "the spare is about to take over; wait until it serves, or has left it to the main box";
/// To one that this box has forgotten.
pub(crate) const NO_PAIR: &str = "the two boxes are not paired any more";
/// To who would part with the box that follows this one, and serve beside it then.
pub(crate) const RETIRED: &str = "it is the collective's main box for good, and this machine never is again; make the machine new instead";
/// To a box that was the main box.
const OUT: &str = "this box is the collective's main box for good, and the one that asks never is again; make that machine new";
/// Failed tries that are remembered.
const TRIES_TOLD: usize = 10;

/// Who is at the other end of a request that came over the link: for whoever is mounted there.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The main box's certificate.
    pub certificate: Certificate,
    /// From where.
    pub remote: SocketAddr,
}

/// What others serve over the link, to the pinned main box alone. Each request has a [`Caller`] among its extensions.
#[derive(Default)]
pub struct Mounts {
    /// Below `/hand`: handing the box over and back, weights.
    pub hand: Router,
}

/// Everything that the spare's side knows.
pub(crate) struct Door {
    pub(crate) folders: Folders,
    /// What this box is called.
    pub(crate) name: String,
    pub(crate) percent: u8,
    pub(crate) identity: Identity,
    pub(crate) pin: tls::Pin,
    /// Former main boxes.
    out: tls::Out,
    pub(crate) inner: Mutex<Inner>,
}

pub(crate) struct Inner {
    pub(crate) desk: Desk,
    pub(crate) tries: Vec<String>,
    pub(crate) peer: Option<Peer>,
    pub(crate) lease: Lease,
    /// What the main box has said last of whether it stops in a silence.
    pub(crate) yields: bool,
    pub(crate) tombstones: Tombstones,
    pub(crate) heads: Heads,
    pub(crate) store: Option<Store>,
    /// Main boxes that are out for good, as this door lets them in to hear so.
    pub(crate) formers: Vec<Former>,
}

impl Door {
    pub(crate) fn open(
        state: &std::path::Path,
        name: &str,
        percent: u8,
    ) -> Result<Self, SpareError> {
        let folders = Folders::of(state);
        let identity = Identity::of_box(&folders)?;
        let peer = Peer::read(&folders)?.filter(|peer| peer.side == Side::Spare);
        let formers = Former::all(&folders);
        let mut inner = Inner {
            desk: Desk::default(),
            tries: Vec::new(),
            lease: Lease::read(&folders),
            yields: false,
            tombstones: Tombstones::read(&folders)?,
            heads: Heads::read(&folders)?,
            store: None,
            peer: None,
            formers,
        };
        let pin = tls::Pin::default();
        let certificates = inner.formers.iter().map(|former| former.certificate.clone());
        let out = tls::Out::new(certificates.collect::<Vec<_>>().into());
        if let Some(peer) = peer {
            inner.adopt(peer, &folders, percent)?;
            *pin.write().unwrap_or_else(PoisonError::into_inner) =
                inner.peer.as_ref().map(|peer| peer.certificate.clone());
        }
        Ok(Self {
            folders,
            name: name.to_owned(),
            percent,
            identity,
            pin,
            out,
            inner: Mutex::new(inner),
        })
    }

    pub(crate) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pinned(&self) -> Option<Certificate> {
        self.pin.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn is_out(&self, certificate: &Certificate) -> bool {
        self.out.read().unwrap_or_else(PoisonError::into_inner).contains(certificate)
    }

    /// This box stands in, and stays the main box for good: the other one's certificate opens nothing any more, and it hears why.
    pub(crate) fn retire(&self, port: u16) -> Result<(), String> {
        let say = |error: SpareError| error.to_string();
        let state = self.folders.own().parent().unwrap_or(std::path::Path::new("."));
        let term = polder_takeover::Term::read(state).map_err(|error| error.to_string())?;
        let term = term.filter(|term| term.stands_in()).ok_or(
            "this box does not stand in for another one, so there is none that could be gone",
        )?;
        let (peer, epoch) = {
            let inner = self.inner();
            let peer = inner.peer.clone().ok_or_else(|| say(SpareError::Alone))?;
            (peer, inner.lease.standing(Side::Spare, now()).epoch)
        };
        let certificate = peer.certificate.clone();
        let former = Former {
            name: peer.name,
            certificate: peer.certificate,
            term: term.highest.max(epoch),
            port,
            at: now(),
            unfinished: true,
        };
        // Before anything is forgotten: from here on it is out, whatever is cut off.
        former.clone().keep(&self.folders).map_err(say)?;
        self.inner().formers.push(former);
        self.out.write().unwrap_or_else(PoisonError::into_inner).push(certificate);
        self.forget().map_err(say)
    }

    /// While this box stands in for the main box, both would serve once they are no pair any more.
    pub(crate) fn may_part(&self) -> Result<(), String> {
        let state = self.folders.own().parent().unwrap_or(std::path::Path::new("."));
        let began = self.inner().lease.standing(Side::Spare, now()).began;
        match polder_takeover::Term::read(state) {
            Ok(Some(term)) if term.stands_in() => Err(STANDS_IN.to_owned()),
            // The main box has heard of the term and serves nothing: it would wait for a box that knows it no more.
            Ok(Some(term)) if term.is_begun(began) => Err(TAKES_OVER.to_owned()),
            _ => Ok(()),
        }
    }

    /// Whether the state was handed to the main box, and with it a trail that went on here.
    pub(crate) fn has_handed(&self) -> bool {
        let state = self.folders.own().parent().unwrap_or(std::path::Path::new("."));
        polder_takeover::Term::read(state).ok().flatten().is_some_and(|term| term.given.is_some())
    }

    /// Forgets the main box; connections that it still has are good for nothing from now on.
    pub(crate) fn forget(&self) -> Result<(), SpareError> {
        let mut inner = self.inner();
        *self.pin.write().unwrap_or_else(PoisonError::into_inner) = None;
        Peer::forget(&self.folders)?;
        inner.peer = None;
        inner.store = None;
        inner.lease = Lease::read(&self.folders);
        inner.tombstones = Tombstones::read(&self.folders)?;
        inner.heads = Heads::read(&self.folders)?;
        Ok(())
    }

    /// A pairing that got no further than here is over.
    pub(crate) fn lapse(&self, now: i64) {
        let lapsed = self.inner().peer.as_ref().is_some_and(|peer| {
            !peer.settled && !(0..SETTLE).contains(&now.saturating_sub(peer.paired_at))
        });
        if lapsed {
            log::warn!("the box that paired did not come back; the pairing is forgotten");
            if let Err(error) = self.forget() {
                log::error!("{error}");
            }
        }
    }

    /// A main box proved that it knows the code.
    fn pair(&self, main: Certificate, name: String) -> Result<(), SpareError> {
        self.forget()?;
        let (paired_at, address) = (now(), None);
        let peer =
            Peer { side: Side::Spare, name, certificate: main, address, paired_at, settled: false };
        peer.keep(&self.folders)?;
        let pin = Some(peer.certificate.clone());
        self.inner().adopt(peer, &self.folders, self.percent)?;
        *self.pin.write().unwrap_or_else(PoisonError::into_inner) = pin;
        Ok(())
    }

    fn answer(&self) -> Answer {
        let inner = self.inner();
        let standing = inner.lease.standing(Side::Spare, now());
        let (revocations, revoked_digest) = inner.tombstones.have();
        Answer {
            name: self.name.clone(),
            epoch: standing.epoch,
            revocations,
            revoked_digest,
            head: inner.heads.last(),
            truncated: inner.heads.truncated(now()),
            room: inner.store.as_ref().and_then(|store| store.room().ok()),
            backup: inner.store.as_ref().and_then(Store::last),
            drill: DrillFound::read(&self.folders),
            retired: false,
        }
    }

    /// Listens until the future is dropped.
    pub(crate) async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        mounts: Mounts,
    ) -> Result<(), SpareError> {
        let config = tls::server(&self.identity, self.pin.clone(), self.out.clone())?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let routers = Arc::new((strangers(&self), pinned(&self, mounts), out(&self)));
        let (places, for_strangers) =
            (Arc::new(Semaphore::new(MOST)), Arc::new(Semaphore::new(MOST_STRANGERS)));
        let mut conversations = tokio::task::JoinSet::new();
        loop {
            let place = places.clone().acquire_owned().await.expect("it is never closed");
            let (stream, remote) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    log::warn!("the spare's door could not take a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
            let (door, acceptor) = (self.clone(), acceptor.clone());
            let (routers, for_strangers) = (routers.clone(), for_strangers.clone());
            conversations.spawn(async move {
                let talk = door.converse(stream, remote, &acceptor, &routers, for_strangers);
                if let Err(why) = talk.await {
                    log::debug!("{remote}: {why}");
                }
                drop(place);
            });
            while conversations.try_join_next().is_some() {}
        }
    }

    async fn converse(
        &self,
        stream: TcpStream,
        remote: SocketAddr,
        acceptor: &TlsAcceptor,
        routers: &(Router, Router, Router),
        for_strangers: Arc<Semaphore>,
    ) -> Result<(), String> {
        let _ = stream.set_nodelay(true);
        // Until it has shown who it is, a caller counts as a stranger.
        let stranger =
            for_strangers.try_acquire_owned().map_err(|_| "too many strangers".to_owned())?;
        let stream = timeout(HANDSHAKE, acceptor.accept(stream)).await;
        let stream = stream.map_err(|_| "slow handshake".to_owned())?.map_err(|e| e.to_string())?;
        let shown = stream.get_ref().1.peer_certificates().and_then(|shown| shown.first());
        let shown = shown.map(Certificate::of);
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(Some(HEAD))
            .keep_alive_timeout(HEAD);
        let io = TokioIo::new(stream);
        match shown {
            Some(certificate) => {
                drop(stranger);
                let router = match self.is_out(&certificate) {
                    true => &routers.2,
                    false => &routers.1,
                };
                let router = router.clone().layer(Extension(Caller { certificate, remote }));
                let served = builder.serve_connection(io, TowerToHyperService::new(Plain(router)));
                served.await.map_err(|error| error.to_string())
            }
            None => {
                let router = routers.0.clone().layer(Extension(remote));
                let served = builder.serve_connection(io, TowerToHyperService::new(Plain(router)));
                let served = timeout(STRANGER, served).await;
                drop(stranger);
                served.map_err(|_| "it stayed too long".to_owned())?.map_err(|e| e.to_string())
            }
        }
    }
}

/// hyper's bodies for axum.
#[derive(Clone)]
struct Plain(Router);
impl Service<hyper::Request<hyper::body::Incoming>> for Plain {
    type Response = Response;
    type Error = std::convert::Infallible;
    type Future = <Router as Service<Request>>::Future;
    fn poll_ready(
        &mut self,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Self::Error>> {
        Service::<Request>::poll_ready(&mut self.0, cx)
    }
    fn call(&mut self, request: hyper::Request<hyper::body::Incoming>) -> Self::Future {
        self.0.call(request.map(axum::body::Body::new))
    }
}

impl Inner {
    fn adopt(&mut self, peer: Peer, folders: &Folders, percent: u8) -> Result<(), SpareError> {
        let store = Store::open(&folders.store_of(&peer.certificate), &folders.stores(), percent)?;
        self.store = Some(store);
        self.peer = Some(peer);
        Ok(())
    }

    fn failed(&mut self, remote: SocketAddr, why: Closed) {
        if self.tries.len() == TRIES_TOLD {
            self.tries.remove(0);
        }
        let at = jiff::Timestamp::from_second(now()).map(|at| at.to_string()).unwrap_or_default();
        self.tries.push(format!("{at}, from {}: {why}", remote.ip()));
    }
}

fn strangers(door: &Arc<Door>) -> Router {
    Router::new()
        .route("/pair/begin", post(begin))
        .route("/pair/prove", post(prove))
        .layer(DefaultBodyLimit::max(LONGEST_FROM_STRANGER))
        .with_state(door.clone())
}

fn pinned(door: &Arc<Door>, mounts: Mounts) -> Router {
    Router::new()
        .route("/link/hello", post(hello))
        .route("/link/beat", post(beat))
        .route("/link/revoked", post(revoked))
        .route("/link/head", post(head))
        .route("/link/heads", get(heads))
        .route("/link/agree", post(agree))
        .route("/link/unpair", post(unpair))
        .layer(DefaultBodyLimit::max(LONGEST))
        .with_state(door.clone())
        .nest_service("/backup", Backups(door.clone()))
        .nest("/hand", mounts.hand)
        .layer(from_fn_with_state(door.clone(), still_pinned))
}

/// What a former main box may ask: whether it is still out.
fn out(door: &Arc<Door>) -> Router {
    // What is said is read, so that the connection can be kept.
    let told = async |State(door): State<Arc<Door>>,
                      Extension(caller): Extension<Caller>,
                      _: axum::body::Bytes| {
        let inner = door.inner();
        let former = inner.formers.iter().rfind(|former| former.certificate == caller.certificate);
        let epoch = former.map_or(0, |former| former.term);
        Json(Answer { name: door.name.clone(), epoch, retired: true, ..Answer::default() })
    };
    Router::new()
        .route("/link/hello", post(told))
        .route("/link/beat", post(told))
        .fallback(async |_: axum::body::Bytes| Refused(StatusCode::GONE, OUT.to_owned()))
        .layer(DefaultBodyLimit::max(LONGEST_FROM_STRANGER))
        .with_state(door.clone())
}

/// A connection may be older than the end of the pairing.
async fn still_pinned(
    State(door): State<Arc<Door>>,
    Extension(caller): Extension<Caller>,
    request: Request,
    next: Next,
) -> Response {
    match door.pinned() == Some(caller.certificate) {
        true => next.run(request).await,
        false => Refused(StatusCode::FORBIDDEN, NO_PAIR.to_owned()).into_response(),
    }
}

/// The store of whoever is paired at that moment.
#[derive(Clone)]
struct Backups(Arc<Door>);
impl Service<Request> for Backups {
    type Response = Response;
    type Error = std::convert::Infallible;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Response, Self::Error>> + Send>>;
    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }
    fn call(&mut self, request: Request) -> Self::Future {
        let store = self.0.inner().store.clone();
        Box::pin(async move {
            match store {
                Some(store) => store.routes().call(request).await,
                None => Ok(StatusCode::NOT_FOUND.into_response()),
            }
        })
    }
}

fn say(error: &SpareError) -> Refused {
    log::error!("{error}");
    Refused(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

fn closed(why: Closed) -> Refused {
    let status = match why {
        Closed::Nonsense => StatusCode::BAD_REQUEST,
        Closed::Busy => StatusCode::CONFLICT,
        _ => StatusCode::FORBIDDEN,
    };
    Refused(status, why.to_string())
}

/// Codes are for those who are in the same house.
fn near(ip: IpAddr) -> Result<(), Refused> {
    match is_local_network(ip) {
        true => Ok(()),
        false => Err(Refused(
            StatusCode::FORBIDDEN,
            "boxes pair on one local network; afterwards they may be anywhere".to_owned(),
        )),
    }
}

/// Loopback, private (RFC 1918), link-local, or unique-local (RFC 4193).
pub(crate) fn is_local_network(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_private() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

/// A box's name as another one says it.
pub(crate) fn plain(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
}

async fn begin(
    State(door): State<Arc<Door>>,
    Extension(remote): Extension<SocketAddr>,
    Json(asked): Json<Begin>,
) -> Result<Json<Begun>, Refused> {
    near(remote.ip())?;
    let nonsense = || closed(Closed::Nonsense);
    let message = BASE64_STANDARD.decode(&asked.message).map_err(|_| nonsense())?;
    if !plain(&asked.name) {
        return Err(nonsense());
    }
    let binding = Binding {
        main: asked.certificate,
        main_name: asked.name,
        spare: door.identity.certificate().clone(),
        spare_name: door.name.clone(),
    };
    let begun = door.inner().desk.begin(Instant::now(), &message, &binding);
    let (exchange, message) = begun.map_err(closed)?;
    let message = BASE64_STANDARD.encode(message);
    Ok(Json(Begun { exchange, name: door.name.clone(), message }))
}

async fn prove(
    State(door): State<Arc<Door>>,
    Extension(remote): Extension<SocketAddr>,
    Json(asked): Json<Prove>,
) -> Result<Json<Prove>, Refused> {
    near(remote.ip())?;
    let proof = BASE64_STANDARD.decode(&asked.proof).map_err(|_| closed(Closed::Nonsense))?;
    let proved = {
        let mut inner = door.inner();
        let proved = inner.desk.prove(Instant::now(), &asked.exchange, &proof);
        proved.map_err(|why| {
            log::warn!("{} could not pair: {why}", remote.ip());
            inner.failed(remote, why);
            closed(why)
        })?
    };
    // Pinned and on disk before the main box hears that it may do the same.
    door.pair(proved.main, proved.name).map_err(|error| say(&error))?;
    log::info!("paired with a box at {}", remote.ip());
    Ok(Json(Prove { exchange: asked.exchange, proof: BASE64_STANDARD.encode(proved.proof) }))
}

async fn hello(
    State(door): State<Arc<Door>>,
    Json(hello): Json<Hello>,
) -> Result<Json<Answer>, Refused> {
    if !plain(&hello.name)
        || hello.key.as_ref().is_some_and(|key| key.len() > 100 || key.contains('\n'))
    {
        return Err(closed(Closed::Nonsense));
    }
    if let Some(key) = &hello.key {
        let path = door.folders.main_key();
        let same = std::fs::read_to_string(&path).is_ok_and(|there| there.trim() == key);
        if !same {
            polder_pki::files::write(&path, &format!("{key}\n"))
                .map_err(|error| say(&SpareError::Certificate(error.to_string())))?;
        }
    }
    {
        let mut inner = door.inner();
        let peer = inner.peer.as_mut();
        if let Some(peer) = peer.filter(|peer| !peer.settled || peer.name != hello.name) {
            (peer.settled, peer.name) = (true, hello.name);
            peer.keep(&door.folders).map_err(|error| say(&error))?;
        }
    }
    Ok(Json(door.answer()))
}

async fn beat(
    State(door): State<Arc<Door>>,
    Json(beat): Json<Beat>,
) -> Result<Json<Answer>, Refused> {
    // What begins here must have a number above it that the main box still believes.
    if beat.epoch > polder_takeover::MOST_TERMS / 2 {
        let why = format!("no two boxes change places so often that term {} begins", beat.epoch);
        return Err(Refused(StatusCode::BAD_REQUEST, why));
    }
    let heard = {
        let mut inner = door.inner();
        inner.yields = beat.yields;
        let left = inner.lease.hear_of_leaving(beat.may_be_left);
        left.and_then(|()| inner.lease.hear(beat.epoch, Moment::now(), now()))
    };
    heard.map_err(|error| say(&error))?;
    Ok(Json(door.answer()))
}

async fn revoked(
    State(door): State<Arc<Door>>,
    Json(push): Json<Push>,
) -> Result<Json<Pushed>, Refused> {
    let added = tokio::task::spawn_blocking(move || door.inner().tombstones.add(&push)).await;
    match added {
        Ok(Ok(revocations)) => Ok(Json(Pushed { revocations })),
        Ok(Err(why)) => Err(Refused(StatusCode::CONFLICT, why)),
        Err(error) => Err(Refused(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}

async fn head(
    State(door): State<Arc<Door>>,
    Json(head): Json<Head>,
) -> Result<Json<Answer>, Refused> {
    let kept = door.inner().heads.keep(head.number, &head.hash, now());
    let judged = kept.map_err(|why| Refused(StatusCode::BAD_REQUEST, why))?;
    if !matches!(judged, crate::Judged::Grown | crate::Judged::Same) {
        log::error!("the main box's audit trail does not fit to what is kept of it: {judged:?}");
    }
    Ok(Json(door.answer()))
}

async fn heads(State(door): State<Arc<Door>>) -> Json<Vec<Head>> {
    const MOST: usize = 500;
    let heads = door.inner().heads.to_compare(MOST);
    Json(heads.into_iter().map(|(number, hash)| Head { number, hash }).collect())
}

async fn agree(State(door): State<Arc<Door>>) -> Result<(), Refused> {
    door.inner().lease.agree().map_err(|error| say(&error))
}

async fn unpair(State(door): State<Arc<Door>>) -> Result<(), Refused> {
    door.may_part().map_err(|why| Refused(StatusCode::CONFLICT, why))?;
    log::info!("the main box ended the pairing");
    door.forget().map_err(|error| say(&error))
}

/// Unix seconds.
pub(crate) fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

impl DrillFound {
    /// What the last trial restore on this spare found.
    pub fn read(folders: &Folders) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(folders.drill()).ok()?).ok()
    }

    /// Writes it down.
    pub fn keep(&self, folders: &Folders) -> Result<(), SpareError> {
        let path = folders.drill();
        let text = serde_json::to_vec(self).expect("a report has only plain values");
        polder_site::write_durably(&path, &text).map_err(SpareError::file(path))
    }
}
