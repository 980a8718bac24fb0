//! Connections: TLS and HTTP/1.1 with limits, for the few browsers that look at an installer.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use polder_gateway::Peer;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

/// Browsers open several each; whoever holds more keeps nobody from the machine's own screen.
const CONNECTIONS: usize = 64;
/// For a handshake, and for a request's head.
const HURRY: Duration = Duration::from_secs(10);
/// No page needs longer.
const LONGEST: Duration = Duration::from_secs(120);

/// On every address of the machine.
pub(super) fn listen(port: u16) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v6()?;
    rustix::net::sockopt::set_ipv6_v6only(&socket, false)?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))?;
    socket.listen(128)
}

/// Serves without end.
pub(super) async fn serve(listener: TcpListener, tls: TlsAcceptor, router: Router) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                log::warn!("could not take a connection: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (tls, router) = (tls.clone(), router.clone());
        tokio::spawn(async move {
            let _ = timeout(LONGEST, converse(stream, tls, router)).await;
            drop(place);
        });
    }
}

async fn converse(stream: TcpStream, tls: TlsAcceptor, router: Router) {
    let address = |address: io::Result<SocketAddr>| {
        address.map(|a| SocketAddr::new(a.ip().to_canonical(), a.port()))
    };
    let (Ok(remote), Ok(local)) = (address(stream.peer_addr()), address(stream.local_addr()))
    else {
        return;
    };
    let Ok(Ok(stream)) = timeout(HURRY, tls.accept(stream)).await else { return };
    let router = router.layer(axum::Extension(Peer { remote, local, tls: true }));
    let ended = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HURRY)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .await;
    if let Err(error) = ended {
        log::debug!("a connection ended: {error}");
    }
}
