//! Brings in a model, or a container's image; not over an uplink that somebody pays for by what goes through it, and not on battery.

use std::sync::Arc;
use std::time::Duration;

use polder_control::{Actor, ImportSource, Progress, RunId, RunState, StepState, wan_status};
use polder_site::{Container, RecipeName, Site};
use polder_weights::CancelFlag;
use tokio_util::sync::CancellationToken;

use super::{Halt, Work, blocking, kind, lock, not_kept};
use crate::foreign;
use crate::parts::Parts;
use crate::plan::Action;
use crate::runs::Intent;
use crate::shelf::ImportEnd;
use crate::weights::nothing_yet;

/// Between two looks at whether a large transfer may run.
const LOOK: Duration = Duration::from_secs(2);

/// Brings something large in, tells how far it is, and stops when it is told to.
type Bring<T> =
    dyn Fn(&(dyn Fn(Progress) + Sync), &CancelFlag) -> Result<T, ImportEnd> + Send + Sync;

/// How far an import came.
enum Imported<T> {
    /// It is in.
    In(T),
    /// It had to wait, and may go on. Others may have changed the box meanwhile: [`Work::take_up`].
    Waited,
}

impl<P: Parts> Work<P> {
    async fn import(
        self: &Arc<Self>,
        id: RunId,
        step: usize,
        recipe: RecipeName,
        from: ImportSource,
        cancel: &CancellationToken,
    ) -> Result<Imported<()>, Halt> {
        let (shelf, asked) = (self.shelf.clone(), (recipe.clone(), from.clone()));
        let near = blocking(move || Ok(shelf.is_near(&asked.0, &asked.1))).await;
        let near = near.map_err(|why| Halt::Failed(step, why))?;
        let shelf = self.shelf.clone();
        let bring = move |progress: &(dyn Fn(Progress) + Sync), stop: &CancelFlag| {
            shelf.import(&recipe, &from, progress, stop)
        };
        self.transfer(id, step, near, Arc::new(bring), cancel).await
    }

    /// A container's image, as [`Self::bring_in`]; one that is here is not asked for anywhere.
    pub(super) async fn bring_image(
        self: &Arc<Self>,
        id: RunId,
        step: usize,
        container: Container,
        intent: &Intent,
        cancel: &CancellationToken,
    ) -> Result<Option<(Vec<Action>, Site)>, Halt> {
        let (state, wanted) = (self.state.clone(), container.clone());
        let here = blocking(move || Ok(foreign::has_image(&state, &wanted))).await;
        if here.map_err(|why| Halt::Failed(step, why))? {
            return Ok(None);
        }
        let (state, wanted) = (self.state.clone(), container.clone());
        let bring = move |progress: &(dyn Fn(Progress) + Sync), stop: &CancelFlag| {
            foreign::fetch_image(&state, &wanted, progress, stop)
        };
        let near = foreign::is_near(&container);
        match self.transfer(id, step, near, Arc::new(bring), cancel).await? {
            Imported::In(()) => Ok(None),
            Imported::Waited => self.take_up(id, step, intent, cancel).await.map(Some),
        }
    }

    /// Until it is in, or had to wait and may go on.
    async fn transfer<T: Send + 'static>(
        self: &Arc<Self>,
        id: RunId,
        step: usize,
        near: bool,
        bring: Arc<Bring<T>>,
        cancel: &CancellationToken,
    ) -> Result<Imported<T>, Halt> {
        loop {
            if self.must_wait(near).await.is_some() {
                self.step_aside(id);
                let waiting = async {
                    while let Some(why) = self.must_wait(near).await {
                        self.waits(id, step, why);
                        tokio::time::sleep(LOOK).await;
                    }
                };
                return tokio::select! {
                    () = waiting => Ok(Imported::Waited),
                    () = cancel.cancelled() => Err(Halt::Cancelled),
                    () = self.ending.cancelled() => Err(Halt::Interrupted),
                };
            }
            self.board.step(id, step, StepState::Running(None));
            match self.transfer_now(id, step, near, &bring, cancel).await {
                Err(ImportEnd::Stopped) if cancel.is_cancelled() => return Err(Halt::Cancelled),
                Err(ImportEnd::Stopped) if self.ending.is_cancelled() => {
                    return Err(Halt::Interrupted);
                }
                // The uplink became a metered one, or the mains is away; what was fetched is kept.
                Err(ImportEnd::Stopped) => {}
                Err(ImportEnd::Failed(why)) => return Err(Halt::Failed(step, why)),
                Ok(done) => return Ok(Imported::In(done)),
            }
        }
    }

    /// The same, and after a wait what is to be done instead of the plan that the run began with.
    pub(super) async fn bring_in(
        self: &Arc<Self>,
        id: RunId,
        step: usize,
        recipe: RecipeName,
        from: &ImportSource,
        intent: &Intent,
        cancel: &CancellationToken,
    ) -> Result<Option<(Vec<Action>, Site)>, Halt> {
        match self.import(id, step, recipe, from.clone(), cancel).await? {
            Imported::In(()) => Ok(None),
            Imported::Waited => self.take_up(id, step, intent, cancel).await.map(Some),
        }
    }

    /// A run that waits for an uplink or the mains may wait for days: others may change the box meanwhile, and bring in models.
    fn step_aside(&self, id: RunId) {
        if let Some(running) = lock(&self.running).get_mut(&id) {
            (running.changes, running.imports) = (false, false);
        }
    }

    /// Takes its place among the runs again after [`Self::step_aside`], when it is free, and gives what is to be done by now, with the
    /// site to go back to: the box may be another than the one that the plan was made for.
    async fn take_up(
        &self,
        id: RunId,
        step: usize,
        intent: &Intent,
        cancel: &CancellationToken,
    ) -> Result<(Vec<Action>, Site), Halt> {
        loop {
            {
                let _gate = self.gate.lock().await;
                let fail = |why| Halt::Failed(step, why);
                let (plan, actions) = self.plan_of(intent).await.map_err(fail)?;
                match self.place_for(intent, &actions, &Actor::Itself) {
                    Ok(()) => {
                        let site = self.board.site();
                        let noted = lock(&self.ledger).rebase(id, &site);
                        noted.map_err(|error| fail(not_kept(&error)))?;
                        if let Some(running) = lock(&self.running).get_mut(&id) {
                            (running.changes, running.imports) = kind(intent, &actions);
                        }
                        self.board.post(id, plan, RunState::Running);
                        return Ok((actions, site));
                    }
                    Err(why) => self.waits(id, step, format!("waiting: {why}")),
                }
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = cancel.cancelled() => return Err(Halt::Cancelled),
                () = self.ending.cancelled() => return Err(Halt::Interrupted),
            }
        }
    }

    fn waits(&self, id: RunId, step: usize, why: String) {
        let waiting = Progress { phase: why, ..nothing_yet() };
        self.board.progress(id, step, waiting);
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
        if self.nobody_serves() {
            return Some("waiting for the takeover that has begun here".to_owned());
        }
        // On battery nothing is brought in, from anywhere: it would cost what answers need.
        if self.power.borrow().pauses_work() {
            return Some("waits for the mains".to_owned());
        }
        if near { None } else { self.costs().await }
    }

    /// Why what is sent or fetched now may be paid for by its amount; nothing where it is not. One rule for whatever is large: a model, a backup, what
    /// goes to the spare.
    pub(super) async fn costs(&self) -> Option<String> {
        if self.board.site().uplinks.values().all(|uplink| !uplink.metered) {
            return None;
        }
        match wan_status(&self.sockets).await {
            Some(status) => status.transfers_wait(),
            // Just after a start, perhaps: not known is not free.
            None => Some("waiting until it is known by which line it would come".to_owned()),
        }
    }
}
