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
    hurry: watch::Receiver<bool>,
}

impl Handle {
    /// `hung` turns true when the engine is given up, `hurry` when answers have to come to their end.
    pub(crate) fn new(
        engine: EngineHandle,
        hung: watch::Receiver<bool>,
        hurry: watch::Receiver<bool>,
    ) -> Self {
        Self { engine, hung, hurry }
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

    /// The same, but for answers that have to come to their end; once they know, they are not told again.
    pub(crate) async fn hear_or_hurry<T>(
        &mut self,
        events: &mut UnboundedReceiver<T>,
        knows: bool,
    ) -> Heard<T> {
        let mut hurry = self.hurry.clone();
        tokio::select! {
            heard = self.hear(events) => heard.map_or(Heard::Ended, Heard::Event),
            Ok(_) = hurry.wait_for(|hurry| *hurry), if !knows => Heard::Hurry,
        }
    }
}

/// What an answer hears next.
pub(crate) enum Heard<T> {
    /// Something about it.
    Event(T),
    /// It has to come to its end.
    Hurry,
    /// The engine has ended, or was given up.
    Ended,
}

impl Deref for Handle {
    type Target = EngineHandle;

    fn deref(&self) -> &EngineHandle {
        &self.engine
    }
}
