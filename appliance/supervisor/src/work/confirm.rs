//! A change that could lock everybody out stays only if somebody says, over whatever way is left, that it is good.

use std::sync::Arc;

use polder_control::{Actor, Progress, RunId, StepState, Unit};
use tokio::time::{Duration, Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{Halt, Refusal, Work, lock};
use crate::parts::Parts;

impl<P: Parts> Work<P> {
    /// Somebody says that what a run did is good.
    pub(crate) async fn confirm(self: &Arc<Self>, id: RunId, by: Actor) -> Result<(), Refusal> {
        let waits = self.board.run(id).filter(|run| run.waits_for_confirmation().is_some());
        let run = waits.ok_or_else(|| {
            "nothing waits to be confirmed there; a change that nobody confirmed in time was undone"
                .to_owned()
        })?;
        self.record(by, "confirmed", &run.plan.title).await?;
        match lock(&self.running).get(&id) {
            Some(running) => running.confirmed.cancel(),
            None => return Err("it was undone at this very moment; ask for it again".to_owned()),
        }
        Ok(())
    }

    /// Waits for that, showing how long there is.
    pub(super) async fn until_confirmed(
        &self,
        id: RunId,
        step: usize,
        cancel: &CancellationToken,
    ) -> Result<(), Halt> {
        let confirmed = lock(&self.running).get(&id).map(|running| running.confirmed.clone());
        let confirmed = confirmed.unwrap_or_default();
        let (began, limit) = (Instant::now(), self.patience.confirm);
        loop {
            let left = limit.saturating_sub(began.elapsed());
            if left.is_zero() {
                return Err(Halt::Failed(step, "nobody confirmed it in time".to_owned()));
            }
            let total = limit.as_secs();
            let eta = left.as_secs_f64().ceil() as u64;
            let progress = Progress {
                phase: String::new(),
                done: total.saturating_sub(eta),
                total: Some(total),
                unit: Unit::Items,
                rate: None,
                eta_seconds: Some(eta),
            };
            self.board.step(id, step, StepState::Running(Some(progress)));
            tokio::select! {
                () = confirmed.cancelled() => return Ok(()),
                () = cancel.cancelled() => return Err(Halt::Cancelled),
                () = self.ending.cancelled() => return Err(Halt::Interrupted),
                () = sleep(Duration::from_secs(1).min(left)) => {}
            }
        }
    }
}
