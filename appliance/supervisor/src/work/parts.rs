//! Starts and stops parts as the site says, and writes the site.

use std::sync::Arc;

use polder_control::{Actor, PartState, RunId, StepState};
use polder_site::{EngineName, Site};
use tokio_util::sync::CancellationToken;

use super::{Halt, Refusal, Work, blocking, lock, with_source};
use crate::doorway;
use crate::foreign;
use crate::keeper::{Keeper, Order};
use crate::kept;
use crate::pace::Pace;
use crate::parts::{Part, Parts};

impl<P: Parts> Work<P> {
    /// The keeper of a part, made at first use.
    pub(super) fn keeper(self: &Arc<Self>, part: &Part) -> Arc<Keeper> {
        let mut keepers = lock(&self.keepers);
        if let Some(keeper) = keepers.get(part) {
            return keeper.clone();
        }
        let grace = match part {
            Part::Gateway => self.patience.gateway,
            Part::Engine(_) => self.patience.engine,
            Part::Power | Part::Wan | Part::Spare => self.patience.last,
            // It has nothing that somebody waits for.
            Part::Health => self.patience.last,
        };
        let keeper = Keeper::new(self.parts.clone(), part.clone(), self.sockets.clone(), grace);
        let keeper = Arc::new(keeper);
        self.board.add_part(part.clone(), keeper.shown.clone());
        keepers.insert(part.clone(), keeper.clone());
        // Ends when the keeper does; holds nobody back.
        let (work, mut shown) = (Arc::downgrade(self), keeper.shown.clone());
        let part = part.clone();
        tokio::spawn(async move {
            while shown.changed().await.is_ok() {
                let Some(work) = work.upgrade() else { return };
                work.board.part_changed();
                let gave_up = matches!(shown.borrow().status.state, PartState::GaveUp(_));
                if gave_up {
                    work.note(Actor::Itself, "gave up", &format!("the {part}")).await;
                    if part == Part::Power {
                        work.unwatched().await;
                    }
                }
            }
        });
        keeper
    }

    pub(super) async fn start_engine(
        self: &Arc<Self>,
        id: RunId,
        step: usize,
        name: &EngineName,
        cancel: &CancellationToken,
    ) -> Result<(), Halt> {
        let part = Part::Engine(name.clone());
        let keeper = self.keeper(&part);
        let mut loading = keeper.shown.clone();
        let figures = async {
            let mut pace = Pace::default();
            while loading.changed().await.is_ok() {
                let progress = loading.borrow_and_update().loading.clone();
                let progress =
                    progress.map(|progress| pace.of(progress, std::time::Instant::now()));
                self.board.step(id, step, StepState::Running(progress));
            }
        };
        tokio::select! {
            state = self.settles(&part, &keeper) => match state {
                PartState::GaveUp(why) => Err(Halt::Failed(step, format!(
                    "{why}; choose another model, or put right what it says and ask again"
                ))),
                _ => Ok(()),
            },
            () = figures => Ok(()),
            () = cancel.cancelled() => Err(Halt::Cancelled),
            () = self.ending.cancelled() => Err(Halt::Interrupted),
        }
    }

    pub(super) async fn stop_engine(&self, name: &EngineName) {
        self.stop_part(&Part::Engine(name.clone())).await;
    }

    pub(super) async fn stop_part(&self, part: &Part) {
        let keeper = lock(&self.keepers).get(part).cloned();
        if let Some(keeper) = keeper {
            keeper.stop(Order::Stop);
            keeper.until_stopped().await;
            lock(&self.keepers).remove(part);
            self.board.remove_part(part);
        }
    }

    /// The gateway follows the site while it runs, so that nobody is interrupted; one that was given
    /// up is started again.
    pub(super) async fn open_door(
        self: &Arc<Self>,
        step: usize,
        before: &Site,
    ) -> Result<(), Halt> {
        let keeper = self.keeper(&Part::Gateway);
        let opening = async {
            match self.settles(&Part::Gateway, &keeper).await {
                PartState::GaveUp(why) => Err(why),
                _ => doorway::opens(&self.board.site(), before, &self.sockets).await,
            }
        };
        tokio::select! {
            opened = opening => opened.map_err(|why| Halt::Failed(step, why)),
            () = self.ending.cancelled() => Err(Halt::Interrupted),
        }
    }

    pub(super) async fn write_site(
        self: &Arc<Self>,
        site: Site,
        why: String,
    ) -> Result<(), Refusal> {
        let (work, next) = (self.clone(), site.clone());
        blocking(move || lock(&work.store).write(&next, &why).map_err(|e| with_source(&e))).await?;
        let before = self.board.site();
        self.board.set_site(site);
        self.tidy_what_is_kept().await;
        self.tend_uplinks().await;
        self.tend_link(&before).await;
        Ok(())
    }

    /// Whoever looks after the uplinks runs where there are any, and follows the site by itself.
    pub(super) async fn tend_uplinks(self: &Arc<Self>) {
        if !self.board.site().uplinks.is_empty() {
            self.keeper(&Part::Wan).ensure();
        } else {
            self.stop_part(&Part::Wan).await;
        }
    }

    /// Images of containers that nobody needs since this run. One that failed forgets none: it is asked for again, perhaps, and they are large.
    pub(super) async fn forget_images(&self, before: Site) {
        let (state, now) = (self.state.clone(), self.board.site());
        let forget = move || foreign::forget_images(&state, &before, &now);
        if let Err(error) = tokio::task::spawn_blocking(forget).await {
            log::error!("looking after the images of containers failed: {error}");
        }
    }

    pub(super) async fn tidy_what_is_kept(&self) {
        let (state, site) = (self.state.clone(), self.board.site());
        if let Err(error) = tokio::task::spawn_blocking(move || kept::tidy(&state, &site)).await {
            log::error!("looking after what engines keep failed: {error}");
        }
    }
}
