//! What every handler of the gateway shares.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use polder_acme::Acme;
use polder_control::{BoxStatus, Doorway, Event, Reply, Request, Sockets};
use polder_members::{MemberId, Members, MembersError};
use tokio::sync::{broadcast, watch};

use crate::body::Buffers;
use crate::deeds::Unnoted;
use crate::engines::{EngineAnswer, EngineRefusal, Engines};
use crate::identity::Identities;
use crate::leash::Watchman;
use crate::limits::{Limits, Places};
use crate::link::{AskError, Link};
use crate::metrics::Tally;
use crate::outside::Outside;
use crate::owner::Owner;
use crate::tickets::Tickets;
use crate::verifier::Verified;

/// The box's own certificate authority, as members need to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaInfo {
    /// Where its certificate is on this machine.
    pub file: PathBuf,
    /// The certificate, PEM.
    pub pem: String,
    /// SHA-256 of the certificate, `AB:CD:…`, for reading aloud.
    pub fingerprint: String,
}

/// What every handler shares: axum's state is `Arc<Gateway>`.
pub struct Gateway {
    /// Who may use the box: polder.db.
    pub members: Members,
    pub(crate) state: PathBuf,
    pub(crate) link: Link,
    pub(crate) engines: Engines,
    pub(crate) limits: Arc<Limits>,
    pub(crate) places: Arc<Places>,
    pub(crate) buffers: Buffers,
    pub(crate) watchman: Arc<Watchman>,
    pub(crate) tickets: Tickets,
    pub(crate) verified: Verified,
    pub(crate) identities: Arc<Identities>,
    /// Held by whoever has engines forget members.
    pub(crate) forgetting: tokio::sync::Mutex<()>,
    /// Whose the box is before it has members, where its seed says so.
    pub(crate) owner: Option<Owner>,
    /// Who looks after the certificate that the world trusts; nobody where its files cannot be used.
    pub(crate) acme: Option<Arc<Acme>>,
    /// How members outside come in.
    pub(crate) outside: Arc<Outside>,
    /// Where the box answers while the addresses that it is told to listen on are gone: see `house`.
    pub(crate) stand_ins: watch::Sender<Vec<std::net::IpAddr>>,
    /// What people did that no disk took.
    pub(crate) unnoted: Unnoted,
    /// What the door did since it opened.
    pub tally: Tally,
    ca: watch::Receiver<CaInfo>,
    /// What of the site is true by now, for the supervisor.
    pub(crate) doorway: watch::Sender<Doorway>,
}

impl Gateway {
    pub(crate) fn new(
        state: PathBuf,
        members: Members,
        link: Link,
        limits: Limits,
        ca: watch::Receiver<CaInfo>,
    ) -> Self {
        let engines = Engines::new(link.clone(), limits.patience);
        let (places, buffers) = (Places::new(&limits), Buffers::new(limits.buffered_bytes));
        let watchman = Watchman::new(limits.stall);
        let (limits, tally) = (Arc::new(limits), Tally::default());
        let doorway = watch::Sender::new(Doorway::default());
        let tickets = Tickets::default();
        let outside = Arc::new(Outside::open(&state));
        let identities = Arc::new(Identities::of(&state));
        Self {
            members,
            state,
            link,
            engines,
            limits,
            places,
            buffers,
            watchman,
            tickets,
            verified: Verified::default(),
            identities,
            forgetting: tokio::sync::Mutex::default(),
            owner: None,
            acme: None,
            outside,
            stand_ins: watch::Sender::default(),
            unnoted: Unnoted::default(),
            tally,
            ca,
            doorway,
        }
    }

    /// The state folder.
    pub fn state_folder(&self) -> &std::path::Path {
        &self.state
    }

    /// The sockets in the state folder.
    pub fn sockets(&self) -> Sockets {
        Sockets::of(&self.state)
    }

    /// The box as last heard of from the supervisor.
    pub fn status(&self) -> Arc<BoxStatus> {
        self.link.status()
    }

    /// Changes of [`Gateway::status`].
    pub fn watch_status(&self) -> watch::Receiver<Arc<BoxStatus>> {
        self.link.watch()
    }

    /// False while the supervisor cannot be reached: the status may be stale and nothing can be
    /// changed.
    pub fn supervisor_answers(&self) -> bool {
        self.link.is_up()
    }

    /// Everything the supervisor tells, as it comes: status changes and progress of runs.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.link.events()
    }

    /// Asks the supervisor. A refusal is an error; its sentence is fit for a person.
    pub async fn ask(&self, question: Request) -> Result<Reply, AskError> {
        self.link.ask(question).await
    }

    /// Sends a request to the engine that serves `model` (a recipe or a slot; with one engine, none
    /// need be named), waiting up to 30 s while it starts. Only the path, the headers and the body
    /// of `request` matter. The answer streams; dropping it stops the work.
    pub async fn engine_request(
        &self,
        model: Option<&str>,
        request: http::Request<Bytes>,
    ) -> Result<EngineAnswer, EngineRefusal> {
        self.engines.ask(None, model, request, &AtomicBool::new(false), false).await
    }

    /// The address of a member's that the collective's own identity has proven, where apps may be told it.
    pub(crate) async fn proven_email(&self, id: MemberId) -> Result<Option<String>, MembersError> {
        let status = self.status();
        let Some(sign_in) = status.site.sign_in.as_ref().filter(|s| s.tell_email) else {
            return Ok(None);
        };
        let issuer = sign_in.issuer.to_string();
        self.members.ask(move |m| m.proven_email(id, &issuer)).await
    }

    /// A steward is signed in from this address: connections from there get the places that are
    /// kept when the box is full.
    pub fn favour(&self, address: std::net::IpAddr) {
        self.places.favour(address);
    }

    /// The box's own certificate authority.
    pub fn ca(&self) -> CaInfo {
        self.ca.borrow().clone()
    }
}
