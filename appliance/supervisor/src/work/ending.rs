//! The end of the box: what it would do, and the word from which on it is done.

use std::sync::Arc;
use std::time::Duration;

use polder_control::{Actor, EndRecord, Plan};
use sha2::{Digest, Sha256};

use super::{Refusal, Work, blocking, lock};
use crate::erase::{self, Order};
use crate::parts::Parts;

/// The page with the record has this long to reach the browser that asked for it.
const LAST_PAGE: Duration = Duration::from_secs(3);

impl<P: Parts> Work<P> {
    pub(crate) async fn preview_end(&self, keep_models: bool) -> Result<Plan, Refusal> {
        let disk = self.disk().await?.map(|disk| disk.lock);
        let state = self.state.clone();
        let seen = blocking(move || {
            erase::look(&state).map_err(|e| format!("could not look at {}: {e}", state.display()))
        })
        .await?;
        Ok(erase::plan(&seen, keep_models, disk))
    }

    /// Writes down that the box ends; soon after, the supervisor ends and its next beginning erases everything.
    pub(crate) async fn end_box(
        self: &Arc<Self>,
        keep_models: bool,
        by: Vec<String>,
        fingerprint: String,
    ) -> Result<EndRecord, Refusal> {
        if by.is_empty() {
            return Err("nobody agreed to the end".to_owned());
        }
        let _gate = self.gate.lock().await;
        if !lock(&self.running).is_empty() {
            return Err("something is being changed just now; wait until it is over, or stop it, on the dashboard".to_owned());
        }
        let plan = self.preview_end(keep_models).await?;
        let who = Actor::Member(by.join(" and "));
        self.record(who, "decided the end of", "the box").await?;
        let record = EndRecord {
            name: self.board.site().name.to_string(),
            at: jiff::Timestamp::now().to_string(),
            by,
            fingerprint,
            keep_models,
            steps: plan.steps.into_iter().map(|step| step.title).collect(),
            audit: self.audit_head(),
        };
        let digest = Sha256::digest(record.text().as_bytes());
        let digest = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let order = Order { keep_models, record: digest, audit: record.audit.clone() };
        let state = self.state.clone();
        blocking(move || {
            erase::order(&state, &order).map_err(|error| {
                format!("the end could not be written down, and nothing was done: {error}")
            })
        })
        .await?;
        let work = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(LAST_PAGE).await;
            work.anew.cancel();
        });
        Ok(record)
    }
}
