//! The part among the others: follows the site, tells how the uplinks are.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use polder_control::{
    Client, ControlError, Event, Handler, Outlet, Reply, Request, Sockets, WanReply, WanRequest,
    WanStatus,
};
use polder_site::{Store, StoreError, Uplinks};
use tokio::sync::{mpsc, watch};

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
    let (status, seen) = watch::channel(WanStatus::default());
    let (announce, _announced) = mpsc::unbounded_channel();
    let sockets = Sockets::of(state);
    let (desk, at) = (Arc::new(Desk(seen)), sockets.wan());
    let answering = polder_control::serve(&at, desk);
    let control = sockets.control();
    let options = Options { policy, pages, uplinks, status, announce };
    tokio::select! {
        ended = run(options, told) => Ok(ended?),
        ended = answering => Ok(ended?),
        () = follow(&control, tell) => Ok(()),
    }
}

/// Passes on which uplinks the site names, as the supervisor tells.
async fn follow(control: &Path, tell: watch::Sender<Uplinks>) {
    loop {
        if let Err(error) = watch_site(control, &tell).await {
            log::debug!("the supervisor does not tell about the site: {error}");
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn watch_site(control: &Path, tell: &watch::Sender<Uplinks>) -> Result<(), ControlError> {
    let mut client: Client<Request, Reply> = Client::connect(control).await?;
    let mut reply = client.ask(&Request::Watch).await?;
    loop {
        if let Reply::Event(Event::Status(status)) = reply {
            tell.send_if_modified(|uplinks| {
                let new = *uplinks != status.site.uplinks;
                *uplinks = status.site.uplinks;
                new
            });
        }
        reply = client.next().await?.ok_or(ControlError::Closed)?;
    }
}

struct Desk(watch::Receiver<WanStatus>);

impl Handler<WanRequest, WanReply> for Desk {
    async fn handle(
        &self,
        question: WanRequest,
        outlet: &mut Outlet<WanReply>,
    ) -> Result<(), ControlError> {
        match question {
            WanRequest::Status => {
                let status = self.0.borrow().clone();
                outlet.send(&WanReply::Status(status)).await
            }
        }
    }
}
