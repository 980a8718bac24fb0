use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use polder_acme::{Acme, Patience};
use polder_control::{BoxStatus, ControlError, DoorReply, DoorRequest, Sockets};
use polder_members::{Members, MembersError};
use polder_pki::{Clock, Keeper, Names, PkiError, Refreshed};
use polder_site::{Site, Store, StoreError};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::connection::Host;
use crate::door::Console;
use crate::handed::Handed;
use crate::limits::Limits;
use crate::link::Link;
use crate::owner::Owner;
use crate::workers::Workers;
use crate::{CaInfo, Gateway, api, common, deeds, fence, forgetting, front, listen, pages, wizard};

/// How often certificates are looked at.
const LOOK_AT_CERTIFICATES: Duration = Duration::from_secs(30);

/// What the gateway is started with.
#[derive(Debug, Clone)]
pub struct GatewayOptions {
    /// The state folder.
    pub state: PathBuf,
    /// How much anybody may ask at once; [`Limits::default`] is for a collective.
    pub limits: Limits,
}

/// The gateway could not start, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// There is no site yet: the supervisor writes the first one.
    #[error("{} has no site.toml yet; start the box with `polder up`", state.display())]
    NoSite {
        /// The state folder.
        state: PathBuf,
    },
    /// The site could not be read.
    #[error(transparent)]
    Site(#[from] StoreError),
    /// The members' database could not be opened.
    #[error(transparent)]
    Members(#[from] MembersError),
    /// Everything here is about to be erased.
    #[error("this box was ended and is being erased; the supervisor finishes that first")]
    Ending,
    /// Keys or certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// No address could be had.
    #[error("could not listen on {address}; is another program using that port?")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The private socket could not be had.
    #[error(transparent)]
    Console(#[from] ControlError),
}

/// Opens the door and keeps it open until `shutdown` comes back; then closes the listeners at once
/// and gives running requests [`Limits::drain`].
pub async fn run(
    options: GatewayOptions,
    shutdown: impl Future<Output = ()>,
) -> Result<(), GatewayError> {
    run_on(Handed::default(), options, shutdown).await
}

/// The same with sockets that were handed over, which are used instead of opening them.
pub async fn run_on(
    handed: Handed,
    options: GatewayOptions,
    shutdown: impl Future<Output = ()>,
) -> Result<(), GatewayError> {
    let GatewayOptions { state, limits } = options;
    // A visitor can have the door started by itself, in the middle of it.
    if state.join(polder_control::END).exists() {
        return Err(GatewayError::Ending);
    }
    let site = Store::open(&state)?
        .current()?
        .ok_or_else(|| GatewayError::NoSite { state: state.clone() })?;
    let members = Members::open(&state.join("polder.db"))?;
    members.set_metering(site.usage.per_member);
    let keeper = Arc::new(Keeper::open(&state.join("pki"), &names(&site), Clock::here())?);
    let tls = TlsAcceptor::from(keeper.server_config(&["h2", "http/1.1"])?);
    let open = listen::open_all(&site.door, &handed)?;

    let sockets = Sockets::of(&state);
    let acme = public_certificate(&state, &site, &keeper);
    let link = Link::follow(&sockets, site, fence::before_anybody_says(&state));
    let (ca_sent, ca) = watch::channel(ca_info(&keeper));
    let _shown = Following(tokio::spawn(show_authority(sockets.authority(), ca.clone())));
    let owner = Owner::of(&state)?;
    let mut gateway = Gateway::new(state, members.clone(), link.clone(), limits, ca);
    gateway.owner = owner;
    gateway.acme = acme.clone();
    let gateway = Arc::new(gateway);
    let (closing, closed) = (CancellationToken::new(), CancellationToken::new());
    let host = Host {
        router: router(gateway.clone()),
        gateway: gateway.clone(),
        tls,
        workers: Workers::start(gateway.limits.threads),
        closing: closing.clone(),
        closed: closed.clone(),
    };
    let tracker = TaskTracker::new();
    let status = link.watch();
    let (outside, beyond) =
        (gateway.outside.clone(), (host.clone(), link.watch(), tracker.clone()));
    let calls = fence::while_open(link.watch(), move || {
        let (host, status, tracker) = beyond.clone();
        outside.clone().follow(host, status, tracker)
    });
    let _outside = Following(tokio::spawn(calls));
    let routers = gateway.outside.clone();
    let routers = routers.look_at_routers(sockets.clone(), keeper.clone(), link.watch());
    let _routers = Following(tokio::spawn(routers));
    let listening = tokio::spawn(listen::keep_open(host, handed, open, status, tracker.clone()));
    let certified = acme.map(|acme| {
        let (status, keeper) = (link.watch(), keeper.clone());
        let orders = fence::while_open(link.watch(), move || {
            let (acme, status, keeper) = (acme.clone(), status.clone(), keeper.clone());
            async move { acme.follow(status, move |chain| keeper.serve_publicly(chain)).await }
        });
        Following(tokio::spawn(orders))
    });
    let following = follow_site(gateway.clone(), keeper, link.watch(), ca_sent);
    let _following = Following(tokio::spawn(following));
    let _closing = Following(tokio::spawn(tell_closed(gateway.clone(), link.watch())));
    let _telling = Following(tokio::spawn(common::tell(gateway.clone(), link.watch())));
    let _deeds = Following(tokio::spawn(deeds::follow(gateway.clone())));
    let _forgetting = Following(tokio::spawn(forgetting::follow(gateway.clone())));

    let _recovering = Following(tokio::spawn(pages::follow_recovery(gateway.clone())));

    let console = sockets.gateway();
    let console = pin!(polder_control::serve::<DoorRequest, DoorReply, _>(
        &console,
        Arc::new(Console(gateway.clone())),
    ));
    let ended = tokio::select! {
        ended = console => ended.map_err(GatewayError::from),
        () = shutdown => Ok(()),
    };
    closing.cancel();
    // An order is gone on with at the next start.
    drop(certified);
    let _ = listening.await;
    tracker.close();
    if tokio::time::timeout(gateway.limits.drain, tracker.wait()).await.is_err() {
        log::warn!("{} connections did not end in time and were cut off", tracker.len());
        closed.cancel();
        tracker.wait().await;
    }
    ended
}

/// Who looks after the certificate that the world trusts. Nothing of the box depends on it: where its files cannot be used, the
/// door opens with the box's own certificate alone.
fn public_certificate(state: &Path, site: &Site, keeper: &Keeper) -> Option<Arc<Acme>> {
    match Acme::open(state, Patience::default()) {
        Ok(acme) => {
            keeper.serve_publicly(acme.current().filter(|_| site.certificate.is_some()));
            Some(acme)
        }
        Err(error) => {
            log::error!("no public certificate can be looked after: {error}");
            None
        }
    }
}

/// Says that the door is closed once it is: whoever hands a state over waits for that.
async fn tell_closed(gateway: Arc<Gateway>, mut status: watch::Receiver<Arc<BoxStatus>>) {
    loop {
        let closed = status.borrow_and_update().closed.is_some();
        gateway.doorway.send_modify(|known| known.closed = closed);
        if status.changed().await.is_err() {
            return;
        }
    }
}

/// Everything that is served.
fn router(gateway: Arc<Gateway>) -> Router {
    Router::new()
        .merge(api::routes())
        .merge(pages::routes())
        .merge(wizard::routes(&gateway))
        .fallback(front::not_found)
        .method_not_allowed_fallback(front::wrong_method)
        .with_state(gateway)
}

/// Ends with its owner.
struct Following(tokio::task::JoinHandle<()>);

impl Drop for Following {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Makes true what a changed site, or time, asks of certificates and counting.
async fn follow_site(
    gateway: Arc<Gateway>,
    keeper: Arc<Keeper>,
    mut status: watch::Receiver<Arc<BoxStatus>>,
    ca: watch::Sender<CaInfo>,
) {
    let mut house = gateway.stand_ins.subscribe();
    let mut complaint = String::new();
    loop {
        house.mark_unchanged();
        let site = status.borrow_and_update().site.clone();
        gateway.members.set_metering(site.usage.per_member);
        let (shared, names) = (keeper.clone(), names(&site));
        let refreshed =
            tokio::task::spawn_blocking(move || shared.refresh(&names, Clock::here())).await;
        match refreshed {
            Ok(Ok(refreshed)) => {
                complaint.clear();
                if let Refreshed::Authority { statement } = refreshed {
                    log::warn!("{statement}");
                    ca.send_replace(ca_info(&keeper));
                }
                gateway.doorway.send_modify(|known| known.names = site.host_names());
            }
            Ok(Err(error)) if complaint != error.to_string() => {
                log::error!("certificates could not be renewed: {error}");
                complaint = error.to_string();
            }
            Ok(Err(_)) => {}
            Err(error) => log::error!("looking after certificates failed: {error}"),
        }
        // A status comes with every change of any part; only a changed site matters here.
        let same = |status: &Arc<BoxStatus>| status.site == site;
        let changed = async {
            loop {
                tokio::select! {
                    // Other addresses: they stand in the certificate.
                    Ok(()) = house.changed() => return true,
                    changed = status.changed() => match changed {
                        Err(_) => return false,
                        Ok(()) if !same(&status.borrow()) => return true,
                        Ok(()) => {}
                    },
                }
            }
        };
        if let Ok(false) = tokio::time::timeout(LOOK_AT_CERTIFICATES, changed).await {
            return;
        }
    }
}

fn names(site: &Site) -> Names {
    Names::of(site, polder_pki::machine_addresses())
}

/// Leaves the certificate that members trust where parts find it that see no keys, also when it becomes another.
async fn show_authority(place: PathBuf, mut ca: watch::Receiver<CaInfo>) {
    loop {
        let (pem, path) = (ca.borrow_and_update().pem.clone(), place.clone());
        let written = tokio::task::spawn_blocking(move || {
            path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
            polder_site::write_durably(&path, pem.as_bytes())
        });
        if let Ok(Err(error)) = written.await {
            log::warn!("{} could not be written: {error}", place.display());
        }
        if ca.changed().await.is_err() {
            return;
        }
    }
}

fn ca_info(keeper: &Keeper) -> CaInfo {
    let ca = keeper.ca();
    CaInfo { file: ca.file, pem: ca.pem, fingerprint: ca.fingerprint }
}
