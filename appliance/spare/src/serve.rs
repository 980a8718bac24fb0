//! The part `spare` of a box: on a spare the door and what is behind it, on a main box the one who keeps in touch.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use polder_control::{
    ControlError, Handler, Outlet, Sockets, SparePeer, SpareReply, SpareRequest, SpareStatus, Told,
};
use polder_site::{Site, SpareRole};
use polder_takeover::Moment;
use tokio::net::TcpListener;

use crate::door::{Door, now};
use crate::follow::Follower;
use crate::store::bytes_in;
use crate::{Folders, Former, Identity, Mounts, Peer, Side, SpareError, Store};

/// What is old or was thinned out is looked at this often.
const TIDY: Duration = Duration::from_secs(60);
/// The health part is told this often.
const TELL: Duration = Duration::from_secs(20);

/// Runs the side that the site says until `told` is done. A site that says nothing about a spare needs no such part.
pub async fn serve(
    state: &Path,
    site: &Site,
    mounts: Mounts,
    told: impl Future<Output = ()>,
) -> Result<(), SpareError> {
    let folders = Folders::of(state);
    let formers = Former::mend(&folders);
    let socket = Sockets::of(state).spare();
    match site.spare {
        Some(spare) if spare.role == SpareRole::ForAnother => {
            let door = Arc::new(Door::open(state, site.name.as_str(), spare.disk_percent)?);
            let port = spare.port;
            let listener = listen(port).map_err(|source| SpareError::Listen { port, source })?;
            let handler = Arc::new(OnSpare { door: door.clone(), port, since: Moment::now() });
            tokio::select! {
                ended = polder_control::serve(&socket, handler.clone()) => ended.map_err(Into::into),
                ended = door.clone().serve(listener, mounts) => ended,
                () = tidy(&door) => Ok(()),
                () = tell(state, || handler.status()) => Ok(()),
                () = told => Ok(()),
            }
        }
        None if formers.is_empty() && Former::aside(&folders).is_none() => {
            told.await;
            Ok(())
        }
        // A box that has a spare or is to have one, or that has to tell its former main box that it is out.
        follows => {
            let follower = Arc::new(Follower::of(state, site.name.as_str()));
            let handler = Arc::new(OnMain { follower: follower.clone() });
            let in_touch = async {
                match follows {
                    Some(_) => follower.keep_in_touch().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                ended = polder_control::serve(&socket, handler.clone()) => ended.map_err(Into::into),
                () = tell_formers(state, site, &formers) => Ok(()),
                () = tell(state, || handler.status().unwrap_or_default()) => Ok(()),
                () = in_touch => Ok(()),
                () = told => Ok(()),
            }
        }
    }
}

/// Keeps an ear open where former main boxes look for this one.
///
/// Never comes back: the box serves and has its spare, whatever becomes of this. A machine that cannot ask serves nothing.
async fn tell_formers(state: &Path, site: &Site, formers: &[Former]) {
    let mut ports: Vec<u16> = formers.iter().map(|former| former.port).collect();
    ports.sort_unstable();
    ports.dedup();
    let cannot = "if the former main box comes back, it cannot hear that it is out, and waits";
    let door = match Door::open(state, site.name.as_str(), 1) {
        _ if ports.is_empty() => return std::future::pending().await,
        Ok(door) => Arc::new(door),
        Err(error) => {
            log::error!("{error}: {cannot}");
            return std::future::pending().await;
        }
    };
    let mut listening = tokio::task::JoinSet::new();
    for port in ports {
        match listen(port) {
            Ok(listener) => {
                listening.spawn(door.clone().serve(listener, Mounts::default()));
            }
            Err(error) => log::error!("port {port} is not to be had ({error}): {cannot}"),
        }
    }
    while let Some(ended) = listening.join_next().await {
        if let Ok(Err(error)) = ended {
            log::error!("{error}: {cannot}");
        }
    }
    std::future::pending().await
}

/// Both kinds of addresses through one socket, where the machine has both.
fn listen(port: u16) -> std::io::Result<TcpListener> {
    let open = |socket: tokio::net::TcpSocket, address: &str| {
        socket.set_reuseaddr(true)?;
        socket.bind(format!("{address}:{port}").parse().expect("the literal is an address"))?;
        socket.listen(64)
    };
    match tokio::net::TcpSocket::new_v6().and_then(|socket| open(socket, "[::]")) {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Err(error),
        Err(_) => open(tokio::net::TcpSocket::new_v4()?, "0.0.0.0"),
    }
}

/// The health part is to know how things are.
async fn tell(state: &Path, status: impl Fn() -> SpareStatus) {
    let sockets = Sockets::of(state);
    loop {
        if let Err(error) = Told::Spare(Box::new(status())).leave(&sockets) {
            log::warn!("the health part does not hear of the other box: {error}");
        }
        tokio::time::sleep(TELL).await;
    }
}

async fn tidy(door: &Door) {
    for minute in 0u64.. {
        door.lapse(now());
        let store = door.inner().store.clone().filter(|_| minute.is_multiple_of(10));
        if let Some(store) = store {
            let _ = tokio::task::spawn_blocking(move || store.count()).await;
        }
        tokio::time::sleep(TIDY).await;
    }
}

struct OnSpare {
    door: Arc<Door>,
    port: u16,
    /// Since when it listens.
    since: Moment,
}

impl Handler<SpareRequest, SpareReply> for OnSpare {
    async fn handle(
        &self,
        question: SpareRequest,
        outlet: &mut Outlet<SpareReply>,
    ) -> Result<(), ControlError> {
        let answer = self.answer(question).await;
        outlet.send(&answer.unwrap_or_else(SpareReply::Refused)).await
    }
}

impl OnSpare {
    async fn answer(&self, question: SpareRequest) -> Result<SpareReply, String> {
        let door = &self.door;
        let say = |error: SpareError| error.to_string();
        match question {
            SpareRequest::Status => Ok(SpareReply::Status(Box::new(self.status()))),
            SpareRequest::ShowCode => {
                let mut inner = door.inner();
                if let Some(peer) = inner.peer.as_ref().filter(|peer| peer.settled) {
                    return Err(say(SpareError::Taken(peer.name.clone())));
                }
                let at = Instant::now();
                let code = inner.desk.show(at).map_err(say)?;
                inner.tries.clear();
                let left = inner.desk.shown(at).map_or(0, |(_, left)| left.as_secs());
                Ok(SpareReply::Code { code: code.expose().to_owned(), seconds: left })
            }
            SpareRequest::HideCode => {
                door.inner().desk.close();
                Ok(SpareReply::Done)
            }
            SpareRequest::Unpair => {
                door.may_part()?;
                door.inner().desk.close();
                door.forget().map_err(say)?;
                Ok(SpareReply::Done)
            }
            SpareRequest::RemoveOld => {
                for folder in old(&door.folders) {
                    std::fs::remove_dir_all(&folder).map_err(|error| {
                        format!("could not remove {}: {error}", folder.display())
                    })?;
                }
                Ok(SpareReply::Done)
            }
            SpareRequest::Heads => Ok(SpareReply::Heads(door.inner().heads.to_compare(500))),
            SpareRequest::RaiseEpoch => {
                let mut inner = door.inner();
                let peer = inner.peer.as_ref().map(|peer| peer.name.clone());
                let peer = peer.ok_or_else(|| say(SpareError::Alone))?;
                if !inner.lease.standing(Side::Spare, now()).may_take_over {
                    return Err(format!(
                        "{peer} was heard a moment ago and may still serve; turn it off, and wait a minute"
                    ));
                }
                inner.lease.raise().map(SpareReply::Epoch).map_err(say)
            }
            SpareRequest::SetEpoch(epoch) => {
                let handed = door.has_handed();
                let mut inner = door.inner();
                // The state goes over with a new epoch, and with it a trail that went on here. What is only left to the main box keeps its trail.
                if handed && epoch > inner.lease.standing(Side::Spare, now()).epoch {
                    inner.heads.begin_anew(now()).map_err(say)?;
                }
                inner.lease.raise_to(epoch).map_err(say)?;
                Ok(SpareReply::Epoch(epoch))
            }
            SpareRequest::Retire => {
                door.retire(self.port)?;
                door.inner().desk.close();
                Ok(SpareReply::Done)
            }
        }
    }

    fn status(&self) -> SpareStatus {
        let door = &self.door;
        let mut inner = door.inner();
        let at = now();
        let standing = inner.lease.standing(Side::Spare, at);
        let code = inner.desk.shown(Instant::now()).map(|(_, left)| left.as_secs());
        let room = inner.store.as_ref().and_then(|store| store.room().ok());
        SpareStatus {
            is_spare: true,
            port: self.port,
            listening: self.since.elapsed().as_secs(),
            own: door.identity.certificate().short(),
            peer: inner.peer.as_ref().map(shown),
            code,
            tries: inner.tries.clone(),
            silent: standing.silent,
            trouble: None,
            epoch: standing.epoch,
            peer_epoch: standing.peer_epoch,
            may_take_over: standing.may_take_over,
            began: standing.began,
            may_be_left: standing.may_be_left,
            yields: inner.yields,
            must_ask: false,
            fenced: standing.fenced,
            revoked: None,
            confirmed: inner.tombstones.have().0,
            head: inner.heads.last().map(|(number, _)| number),
            truncated: inner.heads.truncated(at),
            room: room.map(|room| (room.used, room.most, room.free)),
            backup: inner.store.as_ref().and_then(Store::last),
            drill: crate::DrillFound::read(&door.folders).map(|drill| (drill.at, drill.found)),
            old: old(&door.folders).iter().map(|folder| bytes_in(folder)).sum(),
            retired: false,
            formers: formers(&door.folders),
            formers_aside: aside(&door.folders),
        }
    }
}

/// Stores of main boxes that are not paired with this one.
fn old(folders: &Folders) -> Vec<std::path::PathBuf> {
    let current =
        Peer::read(folders).ok().flatten().map(|peer| folders.store_of(&peer.certificate));
    let Ok(entries) = std::fs::read_dir(folders.stores()) else { return Vec::new() };
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| Some(path) != current.as_ref())
        .collect()
}

struct OnMain {
    follower: Arc<Follower>,
}

impl Handler<SpareRequest, SpareReply> for OnMain {
    async fn handle(
        &self,
        question: SpareRequest,
        outlet: &mut Outlet<SpareReply>,
    ) -> Result<(), ControlError> {
        let answer = self.answer(question).await;
        outlet.send(&answer.unwrap_or_else(|error| SpareReply::Refused(error.to_string()))).await
    }
}

impl OnMain {
    async fn answer(&self, question: SpareRequest) -> Result<SpareReply, SpareError> {
        match question {
            SpareRequest::Status => Ok(SpareReply::Status(Box::new(self.status()?))),
            SpareRequest::Unpair => self.follower.unpair().await.map(|()| SpareReply::Done),
            SpareRequest::Heads => {
                let heads = self.follower.heads().await?;
                Ok(SpareReply::Heads(heads.into_iter().map(|h| (h.number, h.hash)).collect()))
            }
            SpareRequest::SetEpoch(epoch) => {
                self.follower.inner().lease.raise_to(epoch)?;
                Ok(SpareReply::Epoch(epoch))
            }
            SpareRequest::ShowCode
            | SpareRequest::HideCode
            | SpareRequest::RemoveOld
            | SpareRequest::Retire
            | SpareRequest::RaiseEpoch => {
                Ok(SpareReply::Refused("this box is no spare; it has one".to_owned()))
            }
        }
    }

    fn status(&self) -> Result<SpareStatus, SpareError> {
        let folders = &self.follower.folders;
        let own = Identity::of_box(folders)?.certificate().short();
        let peer = Peer::read(folders)?.as_ref().map(shown);
        let inner = self.follower.inner();
        let standing = inner.lease.standing(Side::Main, now());
        let answer = inner.answer.clone().unwrap_or_default();
        Ok(SpareStatus {
            is_spare: false,
            port: 0,
            listening: 0,
            own,
            peer,
            code: None,
            tries: Vec::new(),
            silent: standing.silent,
            trouble: inner.trouble.clone(),
            epoch: standing.epoch,
            peer_epoch: standing.peer_epoch,
            may_take_over: false,
            began: None,
            may_be_left: false,
            yields: false,
            must_ask: standing.must_ask,
            fenced: standing.fenced,
            revoked: inner.revoked,
            confirmed: answer.revocations,
            head: answer.head.map(|(number, _)| number),
            truncated: inner.lacks.clone().or(answer.truncated),
            room: answer.room.map(|room| (room.used, room.most, room.free)),
            backup: answer.backup,
            drill: answer.drill.map(|drill| (drill.at, drill.found)),
            old: 0,
            retired: standing.retired,
            formers: formers(folders),
            formers_aside: aside(folders),
        })
    }
}

fn formers(folders: &Folders) -> Vec<(String, i64)> {
    Former::all(folders).into_iter().map(|former| (former.name, former.at)).collect()
}

fn aside(folders: &Folders) -> Option<String> {
    Former::aside(folders).map(|path| path.display().to_string())
}

fn shown(peer: &Peer) -> SparePeer {
    SparePeer {
        name: peer.name.clone(),
        fingerprint: peer.certificate.short(),
        address: peer.address.clone(),
        paired_at: peer.paired_at,
        settled: peer.settled,
    }
}
