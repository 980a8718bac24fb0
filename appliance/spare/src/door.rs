//! The spare's door: strangers may only pair, the pinned main box may do everything else, and nobody else gets past the handshake.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::Request;
use axum::response::Response;
use axum::{Extension, Router};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tower::Service;

use crate::desk::Closed;
use crate::messages::Answer;
use crate::routes::{out, pinned, strangers};
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

    pub(crate) fn pinned(&self) -> Option<Certificate> {
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
    pub(crate) fn pair(&self, main: Certificate, name: String) -> Result<(), SpareError> {
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

    pub(crate) fn answer(&self) -> Answer {
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

    pub(crate) fn failed(&mut self, remote: SocketAddr, why: Closed) {
        if self.tries.len() == TRIES_TOLD {
            self.tries.remove(0);
        }
        let at = jiff::Timestamp::from_second(now()).map(|at| at.to_string()).unwrap_or_default();
        self.tries.push(format!("{at}, from {}: {why}", remote.ip()));
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
