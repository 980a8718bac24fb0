//! The listening sockets: one per address that the site names, opened and closed as the site
//! changes.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use polder_control::BoxStatus;
use polder_pki::machine_addresses;
use polder_site::Door;
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::GatewayError;
use crate::connection::Host;
use crate::handed::Handed;
use crate::house::{GONE, stand_ins};
use crate::peer::{canonical, is_local_network};

/// Connections that the kernel keeps for us while we are busy.
const BACKLOG: u32 = 1024;
/// How often an address that could not be had is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// Opens every address of the door. At least one must be had, or one that may stand in for it.
pub(crate) fn open_all(
    door: &Door,
    handed: &Handed,
) -> Result<HashMap<SocketAddr, TcpListener>, GatewayError> {
    let mut open = HashMap::new();
    let mut failed = None;
    for address in addresses(door) {
        match open_one(address, handed) {
            Ok(listener) => {
                open.insert(address, listener);
            }
            Err(source) => {
                log::error!("could not listen on {address}: {source}");
                failed = Some(GatewayError::Listen { address, source });
            }
        }
    }
    match (open.is_empty(), failed) {
        // The box may stand in another house.
        (true, Some(_)) if !stand_ins(&door.listen, &machine_addresses()).is_empty() => Ok(open),
        (true, Some(error)) => Err(error),
        _ => Ok(open),
    }
}

/// Serves the open listeners, and whatever addresses the site names later, until the door closes.
/// Then every listener is closed at once; connections are for the `tracker` to wait for.
pub(crate) async fn keep_open(
    host: Host,
    handed: Handed,
    open: HashMap<SocketAddr, TcpListener>,
    mut status: watch::Receiver<Arc<BoxStatus>>,
    tracker: TaskTracker,
) {
    let mut running: HashMap<SocketAddr, Running> = open
        .into_iter()
        .map(|(address, listener)| (address, Running::start(&host, listener, &tracker)))
        .collect();
    let mut gone_since: Option<Instant> = None;
    // Other networks of the same house, which a steward left out: a cable that comes out opens no door there.
    let mut beside = Vec::new();
    loop {
        let door = status.borrow_and_update().site.door.clone();
        let here = machine_addresses();
        let local = |ip: &IpAddr| is_local_network(*ip) && !ip.is_loopback();
        if door.listen.iter().any(|ip| local(ip) && here.contains(ip)) {
            beside.clone_from(&here);
        }
        let mut instead = stand_ins(&door.listen, &here);
        instead.retain(|ip| !beside.contains(ip));
        if instead.is_empty() {
            gone_since = None;
        } else if gone_since.get_or_insert_with(Instant::now).elapsed() < GONE {
            instead.clear();
        }
        if *host.gateway.stand_ins.borrow() != instead {
            if !instead.is_empty() {
                log::warn!(
                    "the addresses that the site names are gone; the box answers where it is now, and the page \"Moving house\" makes that last"
                );
            }
            host.gateway.stand_ins.send_replace(instead.clone());
        }
        let instead = instead.into_iter().map(|ip| SocketAddr::new(ip, door.port)).collect();
        let wanted = [addresses(&door), handed.plain(&door).collect(), instead].concat();
        let gone: Vec<_> = running.keys().filter(|a| !wanted.contains(a)).copied().collect();
        for address in gone {
            if let Some(listener) = running.remove(&address) {
                log::info!("closing {address}");
                listener.close().await;
            }
        }
        let mut shut = Vec::new();
        for address in wanted {
            if running.contains_key(&address) {
                continue;
            }
            match open_one(address, &handed) {
                Ok(listener) => {
                    log::info!("listening on {address}");
                    running.insert(address, Running::start(&host, listener, &tracker));
                }
                Err(error) => {
                    if gone_since.is_none() {
                        log::warn!("could not listen on {address}, trying again: {error}");
                    }
                    shut.push((address.ip(), error.to_string()));
                }
            }
        }
        let watched = door.listen.iter().any(|ip| is_local_network(*ip) && !ip.is_loopback());
        let again = !shut.is_empty() || watched;
        host.gateway.doorway.send_modify(|known| (known.door, known.shut) = (Some(door), shut));
        tokio::select! {
            () = host.closing.cancelled() => break,
            changed = status.changed() => if changed.is_err() { break },
            () = tokio::time::sleep(TRY_AGAIN), if again => {}
        }
    }
    for (_, listener) in running {
        listener.close().await;
    }
}

/// A listener at work.
struct Running {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    fn start(host: &Host, listener: TcpListener, tracker: &TaskTracker) -> Self {
        let stop = host.closing.child_token();
        let task = tokio::spawn(accept(host.clone(), listener, stop.clone(), tracker.clone()));
        Self { stop, task }
    }

    /// Comes back when the socket is closed, so that another may take its place.
    async fn close(self) {
        self.stop.cancel();
        let _ = self.task.await;
    }
}

async fn accept(host: Host, listener: TcpListener, stop: CancellationToken, tracker: TaskTracker) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Too many open files, most likely; others end meanwhile.
                log::warn!("could not take a connection: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let place = match host.gateway.places.take(canonical(remote).ip()) {
            Ok(place) => place,
            Err(why) => {
                host.gateway.tally.refused(why);
                continue;
            }
        };
        host.gateway.tally.connection();
        // It is this thread's until it is another's.
        let Ok(stream) = stream.into_std() else { continue };
        let (host, seat) = (host.clone(), host.workers.seat());
        let runtime = seat.runtime().clone();
        let conversation = async move {
            let closed = host.closed.clone();
            if let Ok(stream) = TcpStream::from_std(stream) {
                tokio::select! {
                    biased;
                    () = host.converse(stream) => {}
                    () = closed.cancelled() => {}
                }
            }
            drop((place, seat));
        };
        tracker.spawn_on(conversation, &runtime);
    }
}

fn addresses(door: &Door) -> Vec<SocketAddr> {
    let mut all: Vec<_> = door.listen.iter().map(|ip| SocketAddr::new(*ip, door.port)).collect();
    all.sort();
    all.dedup();
    all
}

fn open_one(address: SocketAddr, handed: &Handed) -> io::Result<TcpListener> {
    if let Some(listener) = handed.open(address) {
        return TcpListener::from_std(listener?);
    }
    let socket = match address.ip() {
        IpAddr::V4(_) => TcpSocket::new_v4()?,
        IpAddr::V6(_) => {
            let socket = TcpSocket::new_v6()?;
            // `::` and `0.0.0.0` may both be asked for; each is then its own socket.
            sockopt::set_ipv6_v6only(&socket, true)?;
            socket
        }
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
