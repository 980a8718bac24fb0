//! Looks over the supervisor's shoulder and tells the person at the console.

use std::path::Path;
use std::time::Duration;

use anyhow::{anyhow, bail};
use polder_control::{
    Actor, BoxStatus, Client, DoorReply, DoorRequest, EngineStatus, Event, PartState, Reply,
    Request, RunId, RunState, Sockets, StepState,
};
use polder_site::{EngineName, Site, SiteChange};

use crate::console::{ProgressLine, complain};
use crate::state::{ask_door, unexpected};

/// Between two looks at something that is about to happen.
const LOOK: Duration = Duration::from_millis(25);

/// A box that this process has just started.
pub(crate) struct Follower {
    sockets: Sockets,
}

/// The gateway, once it is up.
pub(crate) struct Door {
    pub(crate) ca_file: std::path::PathBuf,
    pub(crate) fingerprint: String,
    pub(crate) claimed: bool,
}

impl Follower {
    pub(crate) fn of(state: &Path) -> Self {
        Self { sockets: Sockets::of(state) }
    }

    /// Waits until the gateway answers, or for the reason why it never will.
    pub(crate) async fn door(&self) -> anyhow::Result<Door> {
        loop {
            if let Ok(DoorReply::Ready { ca_file, fingerprint, claimed, .. }) =
                self.ask_door(&DoorRequest::Ready).await
            {
                return Ok(Door { ca_file, fingerprint, claimed });
            }
            if let Ok(status) = self.status().await
                && let PartState::GaveUp(why) = status.gateway.state
            {
                bail!(why);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    pub(crate) async fn ask_door(&self, request: &DoorRequest) -> anyhow::Result<DoorReply> {
        ask_door(&self.sockets.gateway(), request).await
    }

    pub(crate) async fn status(&self) -> anyhow::Result<BoxStatus> {
        match self.ask(&Request::Status).await? {
            Reply::Status(status) => Ok(*status),
            _ => Err(unexpected()),
        }
    }

    async fn ask(&self, request: &Request) -> anyhow::Result<Reply> {
        match self.connect().await?.ask(request).await? {
            Reply::Refused(why) => bail!(why),
            reply => Ok(reply),
        }
    }

    async fn connect(&self) -> anyhow::Result<Client<Request, Reply>> {
        Ok(Client::connect(&self.sockets.control()).await?)
    }

    /// Makes the change and shows its steps until it is done.
    pub(crate) async fn apply(&self, change: SiteChange) -> anyhow::Result<()> {
        self.follow(&Request::Apply { change, by: Actor::Console }).await
    }

    /// Asks for something that is done in steps, and shows them until it is done.
    pub(crate) async fn follow(&self, request: &Request) -> anyhow::Result<()> {
        let Reply::Accepted(id) = self.ask(request).await? else {
            return Err(unexpected());
        };
        let mut line = ProgressLine::new();
        let done = self.watch_run(id, &mut line).await;
        line.finish("");
        done
    }

    /// Lets what an earlier start began come to its end, whichever it is.
    pub(crate) async fn let_finish(&self) -> anyhow::Result<()> {
        let Reply::Runs(runs) = self.ask(&Request::Runs).await? else { return Err(unexpected()) };
        for run in runs.into_iter().rev().filter(|run| run.state == RunState::Running) {
            let mut line = ProgressLine::new();
            let ended = self.watch_run(run.id, &mut line).await;
            line.finish("");
            if let Err(why) = ended {
                log::warn!("{}: {why}", run.plan.title);
            }
        }
        Ok(())
    }

    async fn watch_run(&self, id: RunId, line: &mut ProgressLine) -> anyhow::Result<()> {
        let mut watching = self.connect().await?;
        let mut news = Some(watching.ask(&Request::Watch).await?);
        // It may have been over before we looked.
        if let Reply::Runs(runs) = self.ask(&Request::Runs).await?
            && let Some(run) = runs.into_iter().find(|run| run.id == id)
        {
            news = Some(Reply::Event(Event::Run(run)));
        }
        while let Some(reply) = news {
            if let Reply::Event(Event::Run(run)) = reply
                && run.id == id
            {
                match run.state {
                    RunState::Done => return Ok(()),
                    RunState::Failed(why) => bail!(why),
                    RunState::Cancelled => bail!("somebody stopped it; what was fetched is kept"),
                    RunState::Running => {}
                }
                let running =
                    run.plan.steps.iter().zip(&run.steps).find_map(|(step, state)| match state {
                        StepState::Running(progress) => Some((step, progress)),
                        _ => None,
                    });
                if let Some((step, progress)) = running {
                    line.show(&step.title, progress.as_ref());
                }
            }
            news = watching.next().await?;
        }
        Err(anyhow!("the box went down in the middle of it; start it again and it goes on"))
    }

    /// Waits until an engine answers, or for the reason why it never will.
    pub(crate) async fn engine(&self, name: &EngineName) -> anyhow::Result<EngineStatus> {
        let mut line = ProgressLine::new();
        loop {
            let status = self.status().await?;
            let Some(engine) = status.engines.into_iter().find(|e| e.name == *name) else {
                bail!("the engine {name} was removed while it started");
            };
            match &engine.part.state {
                PartState::Ready => {
                    line.finish("");
                    return Ok(engine);
                }
                PartState::GaveUp(why) => bail!("{why}"),
                _ => line.show(&format!("Starting the engine {name}"), None),
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What is said of a box with other names, once it has a certificate for them.
    async fn renamed(&self, site: &Site) -> anyhow::Result<String> {
        let certified = async {
            while !matches!(
                self.ask_door(&DoorRequest::Doorway).await,
                Ok(DoorReply::Doorway(doorway)) if doorway.names == site.host_names()
            ) {
                tokio::time::sleep(LOOK).await;
            }
        };
        // If it gets none, the change is undone, and that is told next.
        let _ = tokio::time::timeout(NEW_CERTIFICATE, certified).await;
        let Door { ca_file, fingerprint, .. } = self.door().await?;
        Ok(format!(
            "the box is called {} now; its certificate is signed by {}\n    \
             with the SHA-256 fingerprint {fingerprint}",
            site.name,
            ca_file.display()
        ))
    }

    /// Tells of what changes, until the box goes down.
    pub(crate) async fn tell(&self, mut told: BoxStatus) -> anyhow::Result<()> {
        let mut watching = self.connect().await?;
        let mut news = Some(watching.ask(&Request::Watch).await?);
        while let Some(reply) = news {
            if let Reply::Event(Event::Status(status)) = reply {
                changes(&told, &status).iter().for_each(complain);
                if told.site.host_names() != status.site.host_names() {
                    complain(self.renamed(&status.site).await?);
                }
                told = *status;
            }
            news = watching.next().await?;
        }
        Ok(())
    }
}

/// How long the gateway may take to make its certificate for another name.
const NEW_CERTIFICATE: Duration = Duration::from_secs(5);

/// What of a change is worth a line on a calm console: an engine that answers now.
fn changes(before: &BoxStatus, after: &BoxStatus) -> Vec<String> {
    let was_ready = |engine: &EngineStatus| {
        before.engines.iter().any(|e| {
            e.name == engine.name && e.recipe == engine.recipe && e.part.state == PartState::Ready
        })
    };
    let fresh = |e: &&EngineStatus| e.part.state == PartState::Ready && !was_ready(e);
    let line = |e: &EngineStatus| format!("{} answers: {}", e.name, e.recipe);
    after.engines.iter().filter(fresh).map(line).collect()
}

#[cfg(test)]
mod tests {
    use polder_control::PartStatus;

    use super::*;

    #[test]
    fn an_engine_that_begins_to_answer_is_told_once() {
        let part = |state| PartStatus { state, restarts: 0, pid: None };
        let status = |state| BoxStatus {
            closed: None,
            others: Vec::new(),
            supply: None,
            safe: false,
            site: Site::unclaimed(1),
            gateway: part(PartState::Ready),
            engines: vec![EngineStatus {
                name: "fast".parse().unwrap(),
                recipe: "tiny".parse().unwrap(),
                socket: "/x".into(),
                part: part(state),
                note: None,
            }],
        };
        let (starting, ready) = (status(PartState::Starting), status(PartState::Ready));
        assert_eq!(changes(&starting, &ready), ["fast answers: tiny"]);
        assert_eq!(changes(&ready, &ready), Vec::<String>::new());
        assert_eq!(changes(&ready, &starting), Vec::<String>::new());
    }
}
