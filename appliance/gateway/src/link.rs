//! The gateway's line to the supervisor: what the box is doing, and questions to it.
//!
//! The line may be down (an update, a crash). Then the last status stands, the line is tried again
//! with growing pauses, and whoever asks hears a clear "not just now".

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use polder_control::{
    BoxStatus, Client, Closed, EngineStatus, Event, PartState, PartStatus, Reply, Request, Sockets,
};
use polder_site::Site;
use tokio::sync::{broadcast, watch};

/// How long the supervisor may take over one answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// The same where a disk is sealed: its keys are made slow on purpose.
const SEALED_WITHIN: Duration = Duration::from_secs(300);
/// First and longest pause between two tries to reach it.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// A question that got no useful answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The supervisor cannot be reached just now.
    #[error("the box's supervisor does not answer just now ({0}); try again in a moment")]
    Away(#[source] polder_control::ControlError),
    /// It said no; its own sentence.
    #[error("{0}")]
    Refused(String),
}

/// The line itself. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Link {
    control: PathBuf,
    status: watch::Receiver<Arc<BoxStatus>>,
    up: watch::Receiver<bool>,
    events: broadcast::Sender<Event>,
}

impl Link {
    /// Begins to follow the supervisor of this state folder. Until it answers, the box is taken to
    /// be what `site` says, with every engine still starting, and its door as `closed` says.
    pub(crate) fn follow(sockets: &Sockets, site: Site, closed: Option<Closed>) -> Self {
        let assumed = BoxStatus { closed, ..assumed(site, sockets) };
        let (status, status_seen) = watch::channel(Arc::new(assumed));
        let (up, up_seen) = watch::channel(false);
        let (events, _) = broadcast::channel(256);
        let link = Self { control: sockets.control(), status: status_seen, up: up_seen, events };
        let follower =
            Follower { control: link.control.clone(), status, up, events: link.events.clone() };
        tokio::spawn(follower.run());
        link
    }

    /// The box as last heard of.
    pub(crate) fn status(&self) -> Arc<BoxStatus> {
        self.status.borrow().clone()
    }

    /// Changes of [`Link::status`].
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<BoxStatus>> {
        self.status.clone()
    }

    /// False while the supervisor cannot be reached: then the status may be stale.
    pub(crate) fn is_up(&self) -> bool {
        *self.up.borrow()
    }

    /// Everything the supervisor tells: status changes and progress of runs, as it comes. A reader
    /// that falls far behind loses the oldest.
    pub(crate) fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Asks one question. [`Reply::Refused`] comes back as [`AskError::Refused`].
    pub(crate) async fn ask(&self, question: Request) -> Result<Reply, AskError> {
        let mut client: Client<Request, Reply> =
            Client::connect(&self.control).await.map_err(AskError::Away)?;
        let within = match &question {
            Request::Disk | Request::Seal { .. } | Request::ConfirmSeal { .. } => SEALED_WITHIN,
            _ => ANSWER_WITHIN,
        };
        match client.ask_within(within, &question).await.map_err(AskError::Away)? {
            Reply::Refused(why) => Err(AskError::Refused(why)),
            reply => Ok(reply),
        }
    }
}

struct Follower {
    control: PathBuf,
    status: watch::Sender<Arc<BoxStatus>>,
    up: watch::Sender<bool>,
    events: broadcast::Sender<Event>,
}

impl Follower {
    async fn run(self) {
        let mut pause = PAUSE.0;
        while !self.status.is_closed() {
            match self.listen().await {
                true => pause = PAUSE.0,
                false => pause = (pause * 2).min(PAUSE.1),
            }
            if self.up.send_replace(false) {
                log::warn!("the supervisor does not answer any more; trying again");
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.status.closed() => {}
            }
        }
    }

    /// Hears events until the line breaks; true if it heard any.
    async fn listen(&self) -> bool {
        let Ok(mut client) = Client::<Request, Reply>::connect(&self.control).await else {
            return false;
        };
        let mut next = client.ask(&Request::Watch).await.map(Some);
        let mut heard = false;
        while let Ok(Some(Reply::Event(event))) = next {
            heard = true;
            if !self.up.send_replace(true) {
                log::info!("the supervisor answers");
            }
            if let Event::Status(status) = &event {
                self.status.send_replace(Arc::new((**status).clone()));
            }
            // Nobody listening is no error.
            let _ = self.events.send(event);
            next = tokio::select! {
                next = client.next() => next,
                () = self.status.closed() => return heard,
            };
        }
        heard
    }
}

fn assumed(site: Site, sockets: &Sockets) -> BoxStatus {
    let part = |state| PartStatus { state, restarts: 0, pid: None };
    let engines = site
        .engines
        .iter()
        .map(|(name, slot)| EngineStatus {
            name: name.clone(),
            recipe: slot.recipe.clone(),
            socket: sockets.engine(name),
            part: part(PartState::Starting),
            note: None,
        })
        .collect();
    BoxStatus {
        supply: None,
        closed: None,
        others: Vec::new(),
        safe: false,
        gateway: part(PartState::Ready),
        engines,
        site,
    }
}
