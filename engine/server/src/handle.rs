//! The engine as answers hold it: they hear its thread, or that it will never say anything again.

use std::ops::Deref;

use polder_scheduler::EngineHandle;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;

/// An [`EngineHandle`] that does not wait for a thread that hangs.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    engine: EngineHandle,
    hung: watch::Receiver<bool>,
}

impl Handle {
    /// `hung` turns true when the engine is given up.
    pub(crate) fn new(engine: EngineHandle, hung: watch::Receiver<bool>) -> Self {
        Self { engine, hung }
    }

    /// What the engine says next. None: it has ended, or was given up. May be dropped while it waits.
    pub(crate) async fn hear<T>(&mut self, events: &mut UnboundedReceiver<T>) -> Option<T> {
        tokio::select! {
            biased;
            event = events.recv() => event,
            // Nobody who could give it up any more: then the thread speaks or ends.
            Ok(_) = self.hung.wait_for(|hung| *hung) => None,
        }
    }
}

impl Deref for Handle {
    type Target = EngineHandle;

    fn deref(&self) -> &EngineHandle {
        &self.engine
    }
}
