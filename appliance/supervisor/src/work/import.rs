//! Brings in a model, or a container's image; not over an uplink that somebody pays for by what goes through it, and not on battery.

use std::sync::Arc;
use std::time::Duration;

use polder_control::{ImportSource, Progress, RunId, StepState, wan_status};
use polder_site::{Container, RecipeName};
use polder_weights::CancelFlag;
use tokio_util::sync::CancellationToken;

use super::{Halt, Work, blocking};
use crate::foreign;
use crate::parts::Parts;
use crate::shelf::ImportEnd;
use crate::weights::nothing_yet;

/// Between two looks at whether a large transfer may run.
const LOOK: Duration = Duration::from_secs(2);

/// Brings something large in, tells how far it is, and stops when it is told to.
type Bring<T> =
    dyn Fn(&(dyn Fn(Progress) + Sync), &CancelFlag) -> Result<T, ImportEnd> + Send + Sync;

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
        let shelf = self.shelf.clone();
        let bring = move |progress: &(dyn Fn(Progress) + Sync), stop: &CancelFlag| {
            shelf.import(&recipe, &from, progress, stop)
        };
        self.transfer(id, step, near, Arc::new(bring), cancel).await
    }

    /// An image that is here is not asked for anywhere.
    pub(super) async fn bring_image(
        self: &Arc<Self>,
        id: RunId,
        step: usize,
        container: Container,
        cancel: &CancellationToken,
    ) -> Result<(), Halt> {
        let failed = |why| Halt::Failed(step, why);
        if foreign::has_image(&self.state, &container).await.map_err(failed)? {
            return Ok(());
        }
        let (state, wanted) = (self.state.clone(), container.clone());
        let bring = move |progress: &(dyn Fn(Progress) + Sync), stop: &CancelFlag| {
            foreign::fetch_image(&state, &wanted, progress, stop)
        };
        let near = foreign::is_near(&container);
        let fetched = self.transfer(id, step, near, Arc::new(bring), cancel).await?;
        let unpacking = Progress { phase: "unpacking".to_owned(), ..nothing_yet() };
        self.board.progress(id, step, unpacking);
        tokio::select! {
            taken = foreign::take_in(&self.state, &container, fetched) => taken.map_err(failed),
            () = cancel.cancelled() => Err(Halt::Cancelled),
            () = self.ending.cancelled() => Err(Halt::Interrupted),
        }
    }

    /// Until it is in: it waits where it has to, and goes on.
    async fn transfer<T: Send + 'static>(
        self: &Arc<Self>,
        id: RunId,
        step: usize,
        near: bool,
        bring: Arc<Bring<T>>,
        cancel: &CancellationToken,
    ) -> Result<T, Halt> {
        loop {
            let waiting = async {
                while let Some(why) = self.must_wait(near).await {
                    let waiting = Progress { phase: why, ..nothing_yet() };
                    self.board.progress(id, step, waiting);
                    tokio::time::sleep(LOOK).await;
                }
            };
            tokio::select! {
                () = waiting => self.board.step(id, step, StepState::Running(None)),
                () = cancel.cancelled() => return Err(Halt::Cancelled),
                () = self.ending.cancelled() => return Err(Halt::Interrupted),
            }
            match self.transfer_now(id, step, near, &bring, cancel).await {
                Err(ImportEnd::Stopped) if cancel.is_cancelled() => return Err(Halt::Cancelled),
                Err(ImportEnd::Stopped) if self.ending.is_cancelled() => {
                    return Err(Halt::Interrupted);
                }
                // The uplink became a metered one, or the mains is away; what was fetched is kept.
                Err(ImportEnd::Stopped) => {}
                Err(ImportEnd::Failed(why)) => return Err(Halt::Failed(step, why)),
                Ok(done) => return Ok(done),
            }
        }
    }

    /// Until it is in, or may not go on.
    async fn transfer_now<T: Send + 'static>(
        self: &Arc<Self>,
        id: RunId,
        step: usize,
        near: bool,
        bring: &Arc<Bring<T>>,
        cancel: &CancellationToken,
    ) -> Result<T, ImportEnd> {
        let stop = CancelFlag::default();
        let (work, flag, bring) = (self.clone(), stop.clone(), bring.clone());
        let mut importing = tokio::task::spawn_blocking(move || {
            let progress = |progress| work.board.progress(id, step, progress);
            bring(&progress, &flag)
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
