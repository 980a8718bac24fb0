//! Opens a remote shell for a while, and closes it.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use polder_control::{Actor, OpenShell};
use polder_site::write_durably;

use super::{Refusal, Work, blocking};
use crate::image::Chore;
use crate::parts::Parts;
use crate::shell::{OPEN_SHELL, ShellOrder};

impl<P: Parts> Work<P> {
    /// The shell that is open, if one is.
    pub(crate) fn shell(&self) -> Option<OpenShell> {
        let ShellOrder { fingerprint, until, .. } = ShellOrder::open(&self.state, now())?;
        Some(OpenShell { fingerprint, until })
    }

    /// Opens one for the holder of a key; one that is open already is this one's from now on.
    pub(crate) async fn open_shell(
        self: &Arc<Self>,
        key: &str,
        hours: u64,
        by: Actor,
    ) -> Result<Option<OpenShell>, Refusal> {
        let none = "this box is only a program on this machine; log in there as you usually do";
        let image = self.image.clone().ok_or(none)?;
        let order = ShellOrder::of(key, hours, now())?;
        let what = format!("opened a shell for {hours} h for the key");
        self.record(by, &what, &order.fingerprint).await?;
        let path = self.state.join(OPEN_SHELL);
        blocking(move || {
            let fail =
                |error| format!("could not write {} ({error}); is the disk full?", path.display());
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder).map_err(fail)?;
            }
            let text = serde_json::to_vec(&order).expect("an order has only plain values");
            write_durably(&path, &text).map_err(fail)
        })
        .await?;
        // One for another key is just closing, and then comes up again for this one.
        image.helper().does(Chore::OpenShell).await?;
        Ok(self.shell())
    }

    /// Closes it; whoever is inside is put out within a second or two.
    pub(crate) async fn close_shell(
        self: &Arc<Self>,
        by: Actor,
    ) -> Result<Option<OpenShell>, Refusal> {
        if let Some(open) = self.shell() {
            self.record(by, "closed the shell for the key", &open.fingerprint).await?;
            let path = self.state.join(OPEN_SHELL);
            std::fs::remove_file(&path)
                .map_err(|error| format!("could not remove {}: {error}", path.display()))?;
        }
        Ok(self.shell())
    }

    /// A shell whose time is not up is open also after a start.
    pub(super) fn shell_again(self: &Arc<Self>) {
        let (Some(image), Some(open)) = (self.image.clone(), self.shell()) else { return };
        tokio::spawn(async move {
            if let Err(why) = image.helper().does(Chore::OpenShell).await {
                log::error!("the shell for the key {} is not open: {why}", open.fingerprint);
            }
        });
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
