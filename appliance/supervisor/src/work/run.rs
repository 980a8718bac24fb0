//! One run: let in, carried out step by step, closed.

use std::sync::Arc;

use polder_control::{
    Actor, BackupWish, ImportSource, Plan, Run, RunId, RunState, StepState, TakeoverWish,
};
use polder_site::{Site, SiteChange};
use tokio_util::sync::CancellationToken;

use super::way::{MADE_WAY, NOBODY_SERVES};
use super::{Halt, Refusal, Running, Work, lock, moves_the_door};
use crate::parts::Parts;
use crate::plan::{Action, must_be_confirmed};
use crate::runs::{Intent, Open};

impl<P: Parts> Work<P> {
    pub(super) async fn resume(self: &Arc<Self>, open: Open) {
        let _gate = self.gate.lock().await;
        self.go_on(open).await;
    }

    /// The same for whoever holds the gate.
    pub(super) async fn go_on(self: &Arc<Self>, open: Open) {
        let Open { id, intent, by, before, .. } = open;
        match self.plan_of(&intent).await {
            Ok((mut plan, mut actions)) => {
                // The site may say already what was asked for; whether the door opens with it,
                // nobody has seen.
                if moves_the_door(&intent) && !actions.contains(&Action::OpenDoor) {
                    plan.steps.push(Action::OpenDoor.step());
                    actions.push(Action::OpenDoor);
                }
                // Nor whether the port has its address.
                if let Intent::Change(SiteChange::Port { .. }) = &intent
                    && !actions.contains(&Action::GiveAddresses)
                {
                    plan.steps.push(Action::GiveAddresses.step());
                    actions.push(Action::GiveAddresses);
                }
                // Nor has anybody said that it is good.
                if let Intent::Change(change) = &intent
                    && must_be_confirmed(change)
                    && !actions.contains(&Action::Confirm)
                {
                    plan.steps.push(Action::Confirm.step());
                    actions.push(Action::Confirm);
                }
                self.note(Actor::Itself, "went on with", &plan.title).await;
                log::info!("going on with: {} (asked for by {by})", plan.title);
                let before = before.unwrap_or_else(|| self.board.site());
                self.set_off(id, intent, &by, before, plan, actions);
            }
            Err(why) => {
                let why = self.put_back_unconfirmed(&intent, before.as_ref(), why).await;
                let run = self.board.post(id, empty("A change"), RunState::Failed(why));
                self.close(run).await;
            }
        }
    }

    /// Lets a run in, writes down who asked, and sets it off. A run that needs nothing is over
    /// when this returns.
    pub(crate) async fn apply(
        self: &Arc<Self>,
        intent: Intent,
        by: Actor,
    ) -> Result<RunId, Refusal> {
        let _gate = self.gate.lock().await;
        if self.ending.is_cancelled() {
            return Err("the box is going down; ask again when it is back".to_owned());
        }
        if self.power.borrow().refuses_all_work() {
            return Err("the mains is away and the box ends its parts; ask again when it is back"
                .to_owned());
        }
        let (plan, actions) = self.plan_of(&intent).await?;
        if actions.is_empty() {
            let run = |id| Run { id, plan, steps: Vec::new(), state: RunState::Done };
            let run = lock(&self.ledger).record(run).map_err(|e| not_kept(&e))?;
            self.board.post(run.id, run.plan, run.state);
            return Ok(run.id);
        }
        self.place_for(&intent, &actions, &by)?;
        self.record(by.clone(), "asked for", &plan.title).await?;
        let before = self.board.site();
        let begun = lock(&self.ledger).begin(intent.clone(), by.clone(), before.clone());
        let id = begun.map_err(|e| not_kept(&e))?;
        self.set_off(id, intent, &by, before, plan, actions);
        Ok(id)
    }

    pub(crate) fn cancel(&self, id: RunId) -> Result<(), Refusal> {
        match lock(&self.running).get(&id) {
            Some(running) => {
                running.cancel.cancel();
                Ok(())
            }
            None if self.board.run(id).is_some() => Err(format!("run {} is over already", id.0)),
            None => Err(format!("there is no run {}", id.0)),
        }
    }

    /// Whether a run that changes the box, or brings in a model, goes on.
    pub(super) fn is_busy(&self) -> bool {
        lock(&self.running).values().any(|run| run.changes || run.imports)
    }

    /// The same without those that only bring in a model, which may take hours.
    pub(super) fn is_changing(&self) -> bool {
        lock(&self.running).values().any(|run| run.changes)
    }

    pub(super) fn place_for(
        &self,
        intent: &Intent,
        actions: &[Action],
        by: &Actor,
    ) -> Result<(), Refusal> {
        let takes_over = matches!(intent, Intent::Takeover(TakeoverWish::TakeOver { .. }));
        if !takes_over && self.nobody_serves() && !self.is_way_out(intent, by) {
            return Err(NOBODY_SERVES.to_owned());
        }
        let (changes, imports) = kind(intent, actions);
        let running = lock(&self.running);
        let taken = running.iter().find(|(_, r)| (r.changes && changes) || (r.imports && imports));
        match taken {
            None => Ok(()),
            Some((id, other)) => Err(format!(
                "the box is busy with \"{}\" (run {}); wait until it is done, or stop it first",
                other.title, id.0
            )),
        }
    }

    /// `before` is the site to go back to if the run does not come to its end.
    pub(super) fn set_off(
        self: &Arc<Self>,
        id: RunId,
        intent: Intent,
        by: &Actor,
        before: Site,
        plan: Plan,
        actions: Vec<Action>,
    ) {
        let (changes, imports) = kind(&intent, &actions);
        let (cancel, confirmed) = (CancellationToken::new(), CancellationToken::new());
        let title = plan.title.clone();
        let takes_over = matches!(intent, Intent::Takeover(TakeoverWish::TakeOver { .. }));
        let running = Running {
            cancel: cancel.clone(),
            confirmed,
            changes,
            imports,
            takes_over,
            saves: matches!(intent, Intent::Backup(_)),
            brings: false,
            way_out: self.is_way_out(&intent, by),
            made_way: false,
            title,
        };
        lock(&self.running).insert(id, running);
        self.board.post(id, plan, RunState::Running);
        let work = self.clone();
        self.tasks.spawn(async move {
            let mut before = before;
            let outcome = match work.carry_out(id, &intent, &mut before, actions, &cancel).await {
                Err(Halt::Failed(step, why)) => {
                    let why = work.put_back(&intent, &before, why, &cancel).await;
                    Err(Halt::Failed(step, why))
                }
                Err(Halt::Cancelled) => {
                    work.put_back(&intent, &before, "it was stopped".to_owned(), &cancel).await;
                    Err(Halt::Cancelled)
                }
                other => other,
            };
            let state = match outcome {
                Ok(()) => {
                    work.forget_images(before).await;
                    RunState::Done
                }
                Err(Halt::Failed(step, why)) => {
                    work.board.step(id, step, StepState::Failed(why.clone()));
                    RunState::Failed(why)
                }
                Err(Halt::Cancelled) if work.made_way(id) => RunState::Failed(MADE_WAY.to_owned()),
                Err(Halt::Cancelled) => RunState::Cancelled,
                Err(Halt::Interrupted) => {
                    log::info!(
                        "stopped in the middle of run {}; it goes on at the next start",
                        id.0
                    );
                    return;
                }
            };
            if let Some(mut run) = work.board.run(id) {
                run.state = state;
                work.close(run).await;
            }
        });
    }

    /// The run is over: in the ledger, in the audit trail, on the board, and its place is free.
    pub(super) async fn close(self: &Arc<Self>, run: Run) {
        let what = match &run.state {
            RunState::Done => "finished",
            RunState::Failed(why) => {
                log::info!("{}: {why}", run.plan.title);
                "failed at"
            }
            RunState::Cancelled => "stopped, as asked,",
            RunState::Running => unreachable!("only a run that is over is closed"),
        };
        self.note(Actor::Itself, what, &run.plan.title).await;
        if let Err(error) = lock(&self.ledger).end(run.clone()) {
            log::error!("could not note the end of run {}: {error}", run.id.0);
        }
        lock(&self.running).remove(&run.id);
        self.board.end(run.id, run.state);
    }

    pub(super) async fn carry_out(
        self: &Arc<Self>,
        id: RunId,
        intent: &Intent,
        before: &mut Site,
        actions: Vec<Action>,
        cancel: &CancellationToken,
    ) -> Result<(), Halt> {
        let from = match intent {
            Intent::Import { from, .. } => from,
            Intent::Change(_) | Intent::Update(_) | Intent::Backup(_) | Intent::Takeover(_) => {
                &ImportSource::Recipe
            }
        };
        let mut actions = actions.into_iter().enumerate();
        while let Some((step, action)) = actions.next() {
            // Once its term has begun a takeover is not stopped: nobody would serve.
            if cancel.is_cancelled() && !action.is_without_return() {
                return Err(Halt::Cancelled);
            }
            if self.ending.is_cancelled() {
                return Err(Halt::Interrupted);
            }
            self.board.step(id, step, StepState::Running(None));
            let done = match action {
                Action::ImportModel { .. } | Action::BringImage { .. } => {
                    self.brings(id, true);
                    let brought = match action {
                        Action::ImportModel { recipe, .. } => {
                            self.bring_in(id, step, recipe, from, intent, cancel).await
                        }
                        Action::BringImage { container, .. } => {
                            self.bring_image(id, step, *container, intent, cancel).await
                        }
                        _ => Ok(None),
                    };
                    self.brings(id, false);
                    match brought {
                        Ok(None) => Ok(()),
                        Ok(Some((anew, site))) => {
                            *before = site;
                            actions = anew.into_iter().enumerate();
                            continue;
                        }
                        Err(halt) => {
                            // A run changes nothing before its model is in: whatever is another now is what others did.
                            *before = self.board.site();
                            Err(halt)
                        }
                    }
                }
                Action::StopEngine(name) => {
                    self.stop_engine(&name).await;
                    Ok(())
                }
                Action::WriteSite { site, why } => {
                    self.write_site(*site, why).await.map_err(|why| Halt::Failed(step, why))
                }
                Action::StartEngine(name) => self.start_engine(id, step, &name, cancel).await,
                Action::OpenDoor => self.open_door(step, before).await,
                Action::WatchUps(_) => {
                    self.watch_ups(true).await.map_err(|why| Halt::Failed(step, why))
                }
                Action::GiveAddresses => {
                    self.give_addresses().await.map_err(|why| Halt::Failed(step, why))
                }
                Action::LeaveSpare => {
                    self.leave_spare().await.map_err(|why| Halt::Failed(step, why))
                }
                Action::TendLink(_) => self.link_settles(step).await,
                Action::Confirm => self.until_confirmed(id, step, cancel).await,
                Action::Image(action) => self.image_action(id, step, action, cancel).await,
                Action::Backup { action, place, snapshot } => {
                    self.backup_action(id, step, action, place, snapshot, cancel).await
                }
                Action::HandOver { action, .. } => match intent {
                    Intent::Takeover(wish) => self.hand_over(id, step, wish, action, cancel).await,
                    _ => unreachable!("only a takeover has such steps"),
                },
            };
            done?;
            self.board.step(id, step, StepState::Done);
        }
        Ok(())
    }
}

/// Whether a run would change the box, and whether it would bring in a model.
pub(super) fn kind(intent: &Intent, actions: &[Action]) -> (bool, bool) {
    let imports = actions.iter().any(|a| matches!(a, Action::ImportModel { .. }));
    let sends = matches!(intent, Intent::Takeover(TakeoverWish::Send));
    let imports = imports || sends;
    let restores = matches!(intent, Intent::Backup(BackupWish::Restore { .. }));
    let changes = matches!(intent, Intent::Change(_) | Intent::Update(_) | Intent::Takeover(_));
    (restores || (changes && !sends), imports)
}

pub(super) fn empty(title: &str) -> Plan {
    Plan { title: title.to_owned(), steps: Vec::new() }
}

pub(super) fn not_kept(error: &std::io::Error) -> Refusal {
    format!("the run could not be noted in the state folder ({error}); is the disk full?")
}
