//! A change of model goes on by the clock: an announced switch, and the hours of a trial.

use std::sync::Arc;
use std::time::Duration;

use polder_control::Actor;
use polder_site::{Site, SiteChange, SuccessionStep};

use super::Work;
use crate::parts::Parts;
use crate::runs::Intent;

/// Between two looks at the clock: it may be set.
const LOOK: Duration = Duration::from_millis(500);
/// After something that was due was refused: the box is busy, or the mains is away.
const REFUSED: Duration = Duration::from_secs(5);

impl<P: Parts> Work<P> {
    /// Takes each step when it is due. One that the box was off for is taken when it is on again.
    pub(super) fn follow_the_clock(self: &Arc<Self>) {
        let work = self.clone();
        self.tasks.spawn(async move {
            let (mut pause, mut said) = (LOOK, String::new());
            loop {
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = work.ending.cancelled() => return,
                }
                pause = LOOK;
                let due = work.board.site().succession_due(jiff::Timestamp::now());
                let Some(step) = due.filter(|_| !work.board.status().safe) else { continue };
                let intent = Intent::Change(SiteChange::Succession(step));
                if let Err(why) = work.apply(intent, Actor::Itself).await {
                    pause = REFUSED;
                    if said != why {
                        log::info!("what is due about the change of model waits: {why}");
                        said = why;
                    }
                }
            }
        });
    }

    /// A step that was cut off too often is undone, so that the clock does not bring it up again.
    pub(super) async fn leave_succession(
        self: &Arc<Self>,
        step: &SuccessionStep,
        before: &Site,
        why: &str,
    ) {
        let site = self.board.site();
        let back = site.after_failed(step, before);
        if back == site {
            return;
        }
        for name in site.engines.keys().filter(|name| !site.tells_alike(&back, name)) {
            self.stop_engine(name).await;
        }
        match self.write_site(back, format!("undone: {why}")).await {
            Ok(()) => self.start_engines(),
            Err(error) => log::error!("the change of model could not be undone: {error}"),
        }
    }
}
