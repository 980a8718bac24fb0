//! One connection from its first byte to its last: TLS or not, HTTP/1.1 or 2, and its time limits.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use polder_reach::dial::Caller;
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::Gateway;
use crate::limits::Limits;
use crate::patient::Patient;
use crate::peer::{Peer, canonical};
use crate::workers::Workers;
use crate::{fence, front};

/// The first byte of a TLS record that begins a handshake; no HTTP method begins with it.
const TLS_HANDSHAKE: u8 = 0x16;
/// How long a lost client on a dead line can go unnoticed while nothing is sent.
const PROBE_AFTER: Duration = Duration::from_secs(30);

/// What every connection is served with. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Host {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) router: Router,
    pub(crate) tls: TlsAcceptor,
    pub(crate) workers: Workers,
    /// Cancelled when the door closes: finish what runs, take nothing new.
    pub(crate) closing: CancellationToken,
    /// Cancelled when that took too long.
    pub(crate) closed: CancellationToken,
}

impl Host {
    /// Serves one connection until it is over, or another box serves in this one's place.
    pub(crate) async fn converse(self, stream: TcpStream) {
        let shuts = fence::shuts(self.gateway.link.watch());
        tokio::select! {
            () = self.speak(stream) => {}
            () = shuts => {}
        }
    }

    async fn speak(self, stream: TcpStream) {
        let (Ok(remote), Ok(local)) = (stream.peer_addr(), stream.local_addr()) else { return };
        prepare(&stream);
        let limit = self.gateway.limits.handshake;
        let mut first = [0];
        let Ok(Ok(1)) = timeout(limit, stream.peek(&mut first)).await else { return };
        let peer = |tls| peer(remote, local, tls);
        if first[0] != TLS_HANDSHAKE {
            return self.serve_http1(stream, peer(false)).await;
        }
        let accepted = timeout(limit, self.tls.accept(stream)).await;
        let Ok(Ok(stream)) = accepted else {
            log::debug!("a TLS handshake did not come to its end");
            return;
        };
        self.serve(stream, peer(true)).await;
    }

    /// The same for somebody who came over a line to a relay. It is always TLS.
    pub(crate) async fn converse_from_outside(self, caller: Caller) {
        let peer = peer(caller.remote, caller.local, true);
        let shuts = fence::shuts(self.gateway.link.watch());
        let accepted = timeout(self.gateway.limits.handshake, self.tls.accept(caller.stream)).await;
        match accepted {
            Ok(Ok(stream)) => tokio::select! {
                () = self.serve(stream, peer) => {}
                () = shuts => {}
            },
            _ => log::debug!("a TLS handshake from outside did not come to its end"),
        }
    }

    async fn serve<S>(self, stream: TlsStream<S>, peer: Peer)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => self.serve_http2(stream, peer).await,
            _ => self.serve_http1(stream, peer).await,
        }
    }

    async fn serve_http1(self, stream: impl AsyncRead + AsyncWrite + Unpin + 'static, peer: Peer) {
        let limits = self.gateway.limits.clone();
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            // Covers the wait between two requests as well.
            .header_read_timeout(limits.head)
            .max_headers(limits.headers)
            .max_buf_size(limits.head_bytes);
        let busy = Arc::new(Busy::default());
        let closing = self.closing.clone();
        let io = TokioIo::new(Patient::new(stream, limits.stall));
        let connection = builder.serve_connection(io, self.service(peer, busy.clone()));
        drive(connection, &busy, &limits, closing).await;
    }

    async fn serve_http2(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peer: Peer,
    ) {
        let limits = self.gateway.limits.clone();
        let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits.streams)
            .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
            .max_send_buf_size(64 << 10)
            .keep_alive_interval(Some(PROBE_AFTER))
            .keep_alive_timeout(limits.stall);
        let busy = Arc::new(Busy::default());
        let closing = self.closing.clone();
        let io = TokioIo::new(Patient::new(stream, limits.stall));
        let connection = builder.serve_connection(io, self.service(peer, busy.clone()));
        drive(connection, &busy, &limits, closing).await;
    }

    fn service(
        self,
        peer: Peer,
        busy: Arc<Busy>,
    ) -> impl hyper::service::Service<
        Request<Incoming>,
        Response = Response<Held>,
        Error = Infallible,
        Future = impl Future<Output = Result<Response<Held>, Infallible>> + Send + 'static,
    > {
        service_fn(move |request| {
            let held = busy.begin();
            let answer = front::answer(self.gateway.clone(), self.router.clone(), peer, request);
            async move { Ok(answer.await.map(|body| Held { body, _held: held })) }
        })
    }
}

fn peer(remote: SocketAddr, local: SocketAddr, tls: bool) -> Peer {
    Peer { remote: canonical(remote), local: canonical(local), tls }
}

/// Tokens go out as they come, and a line that went dead is noticed.
fn prepare(stream: &TcpStream) {
    let set = stream
        .set_nodelay(true)
        .and_then(|()| Ok(sockopt::set_socket_keepalive(stream, true)?))
        .and_then(|()| Ok(sockopt::set_tcp_keepidle(stream, PROBE_AFTER)?))
        .and_then(|()| Ok(sockopt::set_tcp_keepintvl(stream, Duration::from_secs(10))?))
        .and_then(|()| Ok(sockopt::set_tcp_keepcnt(stream, 3)?));
    if let Err(error) = set {
        log::debug!("a connection's options could not be set: {error}");
    }
}

/// Runs a connection to its end; asks it to end when the door closes or it idles too long.
async fn drive<C>(connection: C, busy: &Busy, limits: &Limits, closing: CancellationToken)
where
    C: GracefulConnection,
    C::Error: std::error::Error,
{
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        // In this order: nearly every wake-up is for the connection.
        biased;
        ended = connection.as_mut() => Some(ended),
        () = closing.cancelled() => None,
        () = busy.idle(limits.head, limits.idle) => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection => ended,
                // Whoever was asked to leave and asks nothing more is shown out.
                () = busy.idle(limits.head, limits.head) => return,
            }
        }
    };
    if let Err(error) = ended {
        log::debug!("a connection ended: {error}");
    }
}

/// How many requests a connection has under way.
#[derive(Default)]
struct Busy {
    running: AtomicUsize,
    served: AtomicUsize,
    since: Mutex<Option<Instant>>,
}

impl Busy {
    fn begin(self: &Arc<Self>) -> Under {
        self.running.fetch_add(1, Ordering::SeqCst);
        self.served.fetch_add(1, Ordering::Relaxed);
        Under(self.clone())
    }

    /// Comes back once nothing was under way for `limit`; before the first request, for `first`.
    async fn idle(&self, first: Duration, limit: Duration) {
        self.touch();
        loop {
            let limit = if self.served.load(Ordering::Relaxed) == 0 { first } else { limit };
            let since = *self.since.lock().unwrap_or_else(PoisonError::into_inner);
            let running = self.running.load(Ordering::SeqCst) > 0;
            let until = match since {
                Some(since) if !running => since + limit,
                _ => Instant::now() + limit,
            };
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }

    fn touch(&self) {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }
}

/// A request under way.
struct Under(Arc<Busy>);

impl Drop for Under {
    fn drop(&mut self) {
        self.0.touch();
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

/// An answer's body, during which its connection is not idle.
struct Held {
    body: Body,
    _held: Under,
}

impl http_body::Body for Held {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
