//! The part among the others: follows the site, tells how the uplinks are.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use polder_control::{
    Client, ControlError, Event, Handler, Outlet, Reply, Request, Sockets, WanReply, WanRequest,
    WanStatus,
};
use polder_site::{DynamicDns, InterfaceName, Store, StoreError, Uplinks};
use tokio::sync::{mpsc, watch};

use crate::dynamic_dns::Teller;
use crate::netlink::NetlinkError;
use crate::policy::Policy;
use crate::probe::Pages;
use crate::run::{Options, run};

/// Between two tries to reach a supervisor that is away.
const AGAIN: Duration = Duration::from_secs(2);

/// The part could not begin, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum WanError {
    /// There is no box here.
    #[error("there is no box in {} yet; make one with `polder up`", .0.display())]
    NoBox(PathBuf),
    /// What the site says could not be read.
    #[error(transparent)]
    Site(#[from] StoreError),
    /// The kernel does not take part.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Nobody could ask how the uplinks are.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// Looks after the uplinks of the box in this state folder until `told`: those that its site names, and others as soon as it names
/// others.
pub async fn serve(
    state: &Path,
    policy: Policy,
    pages: Pages,
    told: impl Future<Output = ()>,
) -> Result<(), WanError> {
    let site = Store::open(state)?.current()?.ok_or_else(|| WanError::NoBox(state.to_owned()))?;
    let (tell, uplinks) = watch::channel(site.uplinks);
    // A box of a pair does not say that it is where its names are before it knows that it serves.
    let paired = site.spare.is_some();
    let (tell_dns, dns) = watch::channel(site.dynamic_dns.filter(|_| !paired));
    let (said, told_whom) = watch::channel(None);
    let (status, seen) = watch::channel(WanStatus::default());
    // Nor does it ask for a port that its spare may have.
    let (tell_door, door) = watch::channel(Some(site.door.port).filter(|_| !paired));
    let (seen_outside, outside) = watch::channel(BTreeMap::new());
    let (announce, announced) = mpsc::unbounded_channel();
    let teller = Teller { state: state.to_owned(), pages: pages.clone(), said };
    let sockets = Sockets::of(state);
    let (desk, at) = (Arc::new(Desk { seen, told_whom, seen_outside }), sockets.wan());
    let answering = polder_control::serve(&at, desk);
    let control = sockets.control();
    let options = Options {
        policy,
        pages,
        uplinks,
        door,
        state: state.to_owned(),
        seen: outside,
        status,
        announce,
    };
    let site = Site { uplinks: tell, dns: tell_dns, door: tell_door };
    tokio::select! {
        ended = run(options, told) => Ok(ended?),
        ended = answering => Ok(ended?),
        () = follow(&control, site) => Ok(()),
        () = teller.tell(dns, announced) => Ok(()),
    }
}

/// What the site says of all this, as it is now.
struct Site {
    uplinks: watch::Sender<Uplinks>,
    dns: watch::Sender<Option<DynamicDns>>,
    door: watch::Sender<Option<u16>>,
}

/// Passes on what the site says, as the supervisor tells.
async fn follow(control: &Path, tell: Site) {
    loop {
        if let Err(error) = watch_site(control, &tell).await {
            log::debug!("the supervisor does not tell about the site: {error}");
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn watch_site(control: &Path, tell: &Site) -> Result<(), ControlError> {
    let mut client: Client<Request, Reply> = Client::connect(control).await?;
    let mut reply = client.ask(&Request::Watch).await?;
    loop {
        if let Reply::Event(Event::Status(status)) = reply {
            replace(&tell.uplinks, status.site.uplinks);
            let serves = status.closed.is_none();
            replace(&tell.dns, status.site.dynamic_dns.filter(|_| serves));
            replace(&tell.door, Some(status.site.door.port).filter(|_| serves));
        }
        reply = client.next().await?.ok_or(ControlError::Closed)?;
    }
}

/// Says something only where it is new.
fn replace<T: PartialEq>(tell: &watch::Sender<T>, next: T) {
    tell.send_if_modified(|now| {
        let new = *now != next;
        *now = next;
        new
    });
}

struct Desk {
    seen: watch::Receiver<WanStatus>,
    told_whom: watch::Receiver<Option<String>>,
    seen_outside: watch::Sender<BTreeMap<InterfaceName, IpAddr>>,
}

impl Handler<WanRequest, WanReply> for Desk {
    async fn handle(
        &self,
        question: WanRequest,
        outlet: &mut Outlet<WanReply>,
    ) -> Result<(), ControlError> {
        if let WanRequest::Seen(seen) = question {
            replace(&self.seen_outside, seen);
        }
        let mut status = self.seen.borrow().clone();
        status.told = self.told_whom.borrow().clone();
        outlet.send(&WanReply::Status(status)).await
    }
}
