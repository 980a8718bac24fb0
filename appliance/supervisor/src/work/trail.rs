//! Entries in the audit trail.

use std::sync::Arc;
use std::time::Duration;

use polder_control::{Actor, AuditEntry, AuditHead};

use super::{Refusal, Work, blocking, lock};
use crate::parts::Parts;

impl<P: Parts> Work<P> {
    /// An entry in the audit trail; on the disk when this returns.
    pub(crate) async fn record(
        self: &Arc<Self>,
        by: Actor,
        what: &str,
        on: &str,
    ) -> Result<AuditEntry, Refusal> {
        let (work, what, on) = (self.clone(), what.to_owned(), on.to_owned());
        blocking(move || {
            lock(&work.trail).append(by, &what, &on).map_err(|e| {
                let source =
                    std::error::Error::source(&e).map(|s| format!(": {s}")).unwrap_or_default();
                format!("{e}{source}; nothing was done, because nobody could look it up later")
            })
        })
        .await
    }

    /// An entry that nobody waits for.
    pub(super) async fn note(self: &Arc<Self>, by: Actor, what: &str, on: &str) {
        if let Err(error) = self.record(by, what, on).await {
            log::error!("{error}");
        }
    }

    /// The same where what is to be written down happens anyway.
    pub(super) async fn try_to_record(self: &Arc<Self>, by: Actor, what: &str, on: &str) {
        let recorded = tokio::time::timeout(Duration::from_secs(5), self.record(by, what, on));
        match recorded.await {
            Ok(Ok(_)) => {}
            Ok(Err(why)) => log::error!("not written to the audit trail: {what} {on}: {why}"),
            Err(_) => log::error!("not written to the audit trail in time: {what} {on}"),
        }
    }

    /// The last entry of the audit trail.
    pub(crate) fn audit_head(&self) -> AuditHead {
        lock(&self.trail).head()
    }

    pub(crate) async fn audit(
        self: &Arc<Self>,
        before: Option<u64>,
        limit: u32,
    ) -> Result<Vec<AuditEntry>, Refusal> {
        let work = self.clone();
        blocking(move || lock(&work.trail).page(before, limit).map_err(|e| e.to_string())).await
    }
}
