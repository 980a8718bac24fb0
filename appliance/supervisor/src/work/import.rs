//! Brings in a model; not over an uplink that somebody pays for by what goes through it, and not on battery.

use std::sync::Arc;
use std::time::Duration;

use polder_control::{ImportSource, RunId, StepState, wan_status};
use polder_site::RecipeName;
use polder_weights::CancelFlag;
use tokio_util::sync::CancellationToken;

use super::{Halt, Work, blocking};
use crate::parts::Parts;
use crate::shelf::ImportEnd;
use crate::weights::nothing_yet;

/// Between two looks at whether a large transfer may run.
const LOOK: Duration = Duration::from_secs(2);

impl<P: Parts> Work<P> {
    pub(super) async fn import(
        self: &Arc<Self>,
        id: RunId,
        step: usize,
        recipe: RecipeName,
        from: ImportSource,
        cancel: &CancellationToken,
    ) -> Result<(), Halt> {
        let (shelf, asked) = (self.shelf.clone(), (recipe.clone(), from.clone()));
        let near = blocking(move || Ok(shelf.is_near(&asked.0, &asked.1))).await;
        let near = near.map_err(|why| Halt::Failed(step, why))?;
        loop {
            let waiting = async {
                while let Some(why) = self.must_wait(near).await {
                    let waiting = polder_control::Progress { phase: why, ..nothing_yet() };
                    self.board.progress(id, step, waiting);
                    tokio::time::sleep(LOOK).await;
                }
            };
            tokio::select! {
                () = waiting => self.board.step(id, step, StepState::Running(None)),
                () = cancel.cancelled() => return Err(Halt::Cancelled),
                () = self.ending.cancelled() => return Err(Halt::Interrupted),
            }
            match self.import_now(id, step, &recipe, &from, near, cancel).await {
                Err(ImportEnd::Stopped) if cancel.is_cancelled() => return Err(Halt::Cancelled),
                Err(ImportEnd::Stopped) if self.ending.is_cancelled() => {
                    return Err(Halt::Interrupted);
                }
                // The uplink became a metered one, or the mains is away; what was fetched is kept.
                Err(ImportEnd::Stopped) => {}
                Err(ImportEnd::Failed(why)) => return Err(Halt::Failed(step, why)),
                Ok(()) => return Ok(()),
            }
        }
    }

    /// Until it is in, or may not go on.
    async fn import_now(
        self: &Arc<Self>,
        id: RunId,
        step: usize,
        recipe: &RecipeName,
        from: &ImportSource,
        near: bool,
        cancel: &CancellationToken,
    ) -> Result<(), ImportEnd> {
        let stop = CancelFlag::default();
        let (work, flag, recipe, from) = (self.clone(), stop.clone(), recipe.clone(), from.clone());
        let mut importing = tokio::task::spawn_blocking(move || {
            let progress = |progress| work.board.progress(id, step, progress);
            work.shelf.import(&recipe, &from, &progress, &flag)
        });
        let must_stop = async {
            loop {
                tokio::time::sleep(LOOK).await;
                if self.must_wait(near).await.is_some() {
                    return;
                }
            }
        };
        let ended = tokio::select! {
            ended = &mut importing => ended,
            () = async { tokio::select! {
                () = cancel.cancelled() => (),
                () = self.ending.cancelled() => (),
                () = must_stop => (),
                () = self.imports(false) => (),
            } } => {
                stop.cancel();
                importing.await
            }
        };
        ended.unwrap_or_else(|_| {
            let why = "the import broke down; the log says where; what was fetched is kept";
            Err(ImportEnd::Failed(why.to_owned()))
        })
    }

    /// Why a large transfer may not run now.
    async fn must_wait(&self, near: bool) -> Option<String> {
        // On battery nothing is brought in, from anywhere: it would cost what answers need.
        if self.power.borrow().pauses_work() {
            return Some("waits for the mains".to_owned());
        }
        if near || self.board.site().uplinks.values().all(|uplink| !uplink.metered) {
            return None;
        }
        wan_status(&self.sockets).await?.transfers_wait()
    }
}
