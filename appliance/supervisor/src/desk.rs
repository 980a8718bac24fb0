use std::sync::Arc;
use std::time::Duration;

use polder_control::{Actor, ControlError, Handler, Outlet, Reply, Request};

use crate::parts::Parts;
use crate::runs::Intent;
use crate::work::{Refusal, Work};

/// A watcher is sent at most one batch of news in this time.
const BREATH: Duration = Duration::from_millis(100);
/// A watcher is sent its status at least this often: only by writing does one notice that it left.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// A watcher that has not taken its news in this time is let go.
const PATIENCE: Duration = Duration::from_secs(10);

/// Answers what comes in on `control.sock`.
pub(crate) struct Desk<P: Parts>(pub(crate) Arc<Work<P>>);

impl<P: Parts> Handler<Request, Reply> for Desk<P> {
    async fn handle(
        &self,
        request: Request,
        outlet: &mut Outlet<Reply>,
    ) -> Result<(), ControlError> {
        if request == Request::Watch {
            return self.watch(outlet).await;
        }
        let reply = self.answer(request).await.unwrap_or_else(Reply::Refused);
        outlet.send(&reply).await
    }
}

impl<P: Parts> Desk<P> {
    async fn answer(&self, request: Request) -> Result<Reply, Refusal> {
        let work = &self.0;
        Ok(match request {
            Request::Status => Reply::Status(Box::new(work.board.status())),
            Request::Machine => Reply::Machine(work.machine().await),
            Request::Preview(change) => {
                let (differences, plan) = work.preview(change).await?;
                Reply::Preview { differences, plan }
            }
            Request::Apply { change, by } => {
                Reply::Accepted(work.apply(Intent::Change(change), by).await?)
            }
            Request::Import { recipe, from, by } => {
                Reply::Accepted(work.apply(Intent::Import { recipe, from }, by).await?)
            }
            Request::Cancel(id) => {
                work.cancel(id)?;
                Reply::Done
            }
            Request::Confirm { run, by } => {
                work.confirm(run, by).await?;
                Reply::Done
            }
            Request::Runs => Reply::Runs(work.board.runs()),
            Request::Imported => Reply::Imported(work.imported().await?),
            Request::Record { by: Actor::Itself, .. } => {
                return Err("only the supervisor speaks for the box itself".to_owned());
            }
            Request::Record { by, what, on } => {
                work.record(by, &what, &on).await?;
                Reply::Done
            }
            Request::Disk => Reply::Disk(work.disk().await?),
            Request::Seal { by } => Reply::RecoveryKey(work.seal(by).await?),
            Request::ConfirmSeal { key, by } => {
                work.confirm_seal(key, by).await?;
                Reply::Done
            }
            Request::Power { how, by } => {
                work.power(how, by).await?;
                Reply::Done
            }
            Request::StartPart { part, by } => {
                work.start_again(part, by).await?;
                Reply::Done
            }
            Request::Supply(supply) => Reply::Supplied { drained: work.supply(*supply).await },
            Request::UpsPassword { text, by } => {
                work.keep_ups_password(text, by).await?;
                Reply::Done
            }
            Request::SetClock { to, by } => {
                work.set_clock(to, by).await?;
                Reply::Done
            }
            Request::Updates => Reply::Updates(Box::new(work.updates().await?)),
            Request::CheckUpdate => Reply::Updates(Box::new(work.check_update().await?)),
            Request::Shell => Reply::Shell(work.shell()),
            Request::OpenShell { key, hours, by } => {
                Reply::Shell(work.open_shell(&key, hours, by).await?)
            }
            Request::CloseShell { by } => Reply::Shell(work.close_shell(by).await?),
            Request::PreviewUpdate(wish) => {
                let plan = work.preview_update(wish).await?;
                Reply::Preview { differences: Vec::new(), plan }
            }
            Request::Update { wish, by } => {
                Reply::Accepted(work.apply(Intent::Update(wish), by).await?)
            }
            Request::Backup => Reply::Backup(Box::new(work.backup_status().await?)),
            Request::BackupKit { by } => Reply::Kit(work.backup_kit(by).await?),
            Request::ConfirmKit { key, by } => {
                work.confirm_kit(key, by).await?;
                Reply::Done
            }
            Request::PreviewBackup(wish) => {
                let plan = work.preview_backup(wish).await?;
                Reply::Preview { differences: Vec::new(), plan }
            }
            Request::Backups { wish, key, by } => {
                Reply::Accepted(work.back_up(wish, key, by).await?)
            }
            Request::Takeover => Reply::Takeover(work.takeover_status().await?.map(Box::new)),
            Request::PreviewTakeover(wish) => {
                let plan = work.preview_takeover(wish).await?;
                Reply::Preview { differences: Vec::new(), plan }
            }
            Request::TakeOver { wish, by } => Reply::Accepted(work.take_over(wish, by).await?),
            Request::ServeAnyway { by } => {
                work.serve_anyway(by).await?;
                Reply::Done
            }
            Request::Yield { yields, by } => {
                work.set_yields(yields, by).await?;
                Reply::Done
            }
            Request::PairSpare { address, code, by } => {
                Reply::Accepted(work.pair_spare(address, code, by).await?)
            }
            Request::Judge => Reply::Judged(work.judge().await?),
            Request::Noticed { what, on } => {
                // Nobody but a part of the box can open this socket, and what a person does is told by `Record`.
                work.record(Actor::Itself, &what, &on).await?;
                Reply::Done
            }
            Request::AuditHead => Reply::AuditHead(work.audit_head()),
            Request::Audit { before, limit } => Reply::Audit(work.audit(before, limit).await?),
            Request::PreviewEnd { keep_models } => {
                let plan = work.preview_end(keep_models).await?;
                Reply::Preview { differences: Vec::new(), plan }
            }
            Request::End { keep_models, by, fingerprint } => {
                Reply::Ended(Box::new(work.end_box(keep_models, by, fingerprint).await?))
            }
            Request::Watch => unreachable!("answered before"),
        })
    }

    async fn watch(&self, outlet: &mut Outlet<Reply>) -> Result<(), ControlError> {
        let board = &self.0.board;
        let mut bell = board.bell();
        let mut seen = 0;
        loop {
            let (news, now) = board.news(seen);
            seen = now;
            for event in news {
                tokio::time::timeout(PATIENCE, outlet.send(&Reply::Event(event)))
                    .await
                    .unwrap_or(Err(ControlError::Slow(PATIENCE)))?;
            }
            tokio::time::sleep(BREATH).await;
            let ringing = bell.wait_for(|clock| *clock > seen);
            match tokio::time::timeout(HEARTBEAT, ringing).await.map(|rung| rung.is_ok()) {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(_) => board.part_changed(),
            }
        }
    }
}
