//! What a router may pass on because it was asked to: written down before each question, so that a yes that nobody hears any more is known too.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::ask::{Speech, WHOLE};
use crate::upnp::Control;

/// A port that was asked for, and that the router has neither refused nor taken back as far as this box knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// In which protocol.
    pub speech: Speech,
    /// The port outside that was wished for or given.
    pub outside: u16,
    /// For how long, in seconds; 0 for ever.
    pub seconds: u32,
    /// Whether the router said yes. Otherwise it may yet.
    pub given: bool,
    /// When it was asked last.
    pub at: Instant,
    pub(crate) control: Option<Control>,
}

impl Asked {
    /// Whether it ends only when somebody ends it.
    pub fn is_for_ever(&self) -> bool {
        self.seconds == 0
    }

    /// Whether the router took it back by itself by now.
    fn is_over(&self) -> bool {
        !self.is_for_ever() && self.at.elapsed() >= Duration::from_secs(self.seconds.into())
    }

    /// Which router it was, as far as it says so of itself.
    pub fn router_id(&self) -> Option<&str> {
        self.control.as_ref()?.id.as_deref()
    }

    /// To the router it is one port, however often it was asked for: over UDP one for each of this machine's, by UPnP one for each outside.
    fn is_same(&self, speech: Speech, outside: u16) -> bool {
        self.speech == speech && (speech != Speech::Upnp || self.outside == outside)
    }
}

/// Why a question was not put.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unput {
    /// Nobody wants a port any more.
    #[error("nobody wants a port any more")]
    Closed,
    /// What has no end has to be remembered, and could not be.
    #[error(
        "it gives a port only for ever, and that is not asked for because it could not be written down here: {0}"
    )]
    Unwritten(io::Error),
}

type Keep = Box<dyn Fn(&[Asked]) -> io::Result<()> + Send + Sync>;

/// What one router was asked for this machine's one port.
pub struct Book {
    pages: Mutex<Pages>,
    keep: Keep,
}

#[derive(Default)]
struct Pages {
    asked: Vec<Asked>,
    closed: bool,
}

impl Book {
    /// An empty one. `keep` is called with everything that has no end before it is asked for and whenever that became less; where it
    /// fails before a question, nothing is asked for ever.
    pub fn new(keep: impl Fn(&[Asked]) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self { pages: Mutex::default(), keep: Box::new(keep) }
    }

    /// From now on nothing more is asked for; what is under way may still be heard.
    pub fn close(&self) {
        self.pages().closed = true;
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.pages().closed
    }

    /// What may be open at the router.
    pub fn open(&self) -> Vec<Asked> {
        let mut pages = self.pages();
        pages.asked.retain(|asked| !asked.is_over());
        pages.asked.clone()
    }

    /// Whether an answer is under way that comes over a connection, so that it says for certain what became of the question.
    pub fn hears(&self) -> bool {
        let under_way = |asked: &Asked| asked.at.elapsed() < WHOLE && !asked.given;
        self.open().iter().any(|asked| asked.speech == Speech::Upnp && under_way(asked))
    }

    /// Before a question: what was known of this port until now.
    pub(crate) fn ask(&self, next: Asked) -> Result<Option<Asked>, Unput> {
        let mut pages = self.pages();
        if pages.closed {
            return Err(Unput::Closed);
        }
        let before = pages.take(next.speech, next.outside);
        // One that was for ever is so until the router has said otherwise.
        let for_ever = before.as_ref().is_some_and(Asked::is_for_ever);
        let seconds = if for_ever { 0 } else { next.seconds };
        pages.asked.push(Asked { seconds, ..next });
        if seconds == 0
            && !for_ever
            && let Err(error) = self.write(&pages)
        {
            pages.asked.pop();
            pages.asked.extend(before);
            return Err(Unput::Unwritten(error));
        }
        Ok(before)
    }

    /// What is known of a port that was asked for in this way.
    pub(crate) fn known(&self, speech: Speech) -> Option<Asked> {
        self.open().into_iter().find(|asked| asked.speech == speech)
    }

    /// The router said yes.
    pub(crate) fn given(&self, speech: Speech, outside: u16, seconds: u32) {
        self.change(|pages| {
            if let Some(asked) = pages.take(speech, outside) {
                pages.asked.push(Asked { outside, seconds, given: true, ..asked });
            }
        });
    }

    /// The router said no: it is as it was before the question.
    pub(crate) fn refused(&self, speech: Speech, outside: u16, before: Option<Asked>) {
        self.change(|pages| {
            pages.take(speech, outside);
            pages.asked.extend(before);
        });
    }

    /// It is open no more.
    pub(crate) fn ended(&self, asked: &Asked) {
        self.change(|pages| drop(pages.take(asked.speech, asked.outside)));
    }

    /// Writes down what is without end where that is less or more than before.
    fn change(&self, change: impl FnOnce(&mut Pages)) {
        let mut pages = self.pages();
        let before = pages.for_ever();
        change(&mut pages);
        if pages.for_ever() != before {
            // What is written down too much is asked about once more than needed.
            let _ = self.write(&pages);
        }
    }

    fn write(&self, pages: &Pages) -> io::Result<()> {
        (self.keep)(&pages.for_ever())
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pages {
    fn take(&mut self, speech: Speech, outside: u16) -> Option<Asked> {
        let place = self.asked.iter().position(|asked| asked.is_same(speech, outside))?;
        Some(self.asked.remove(place))
    }

    fn for_ever(&self) -> Vec<Asked> {
        self.asked.iter().filter(|asked| asked.is_for_ever()).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn asked(outside: u16, seconds: u32) -> Asked {
        let at = Instant::now();
        Asked { speech: Speech::Upnp, outside, seconds, given: false, at, control: None }
    }

    #[test]
    fn what_has_no_end_is_written_down_before_it_is_asked_for_and_until_it_is_over() {
        let written: Arc<Mutex<Vec<Vec<u16>>>> = Arc::default();
        let kept = written.clone();
        let book = Book::new(move |list| {
            kept.lock().unwrap().push(list.iter().map(|asked| asked.outside).collect());
            Ok(())
        });
        let before = book.ask(asked(443, 1200)).unwrap();
        book.refused(Speech::Upnp, 443, before);
        assert!(written.lock().unwrap().is_empty() && book.open().is_empty());
        book.ask(asked(443, 0)).unwrap();
        assert_eq!(written.lock().unwrap().last().unwrap(), &[443]);
        book.given(Speech::Upnp, 443, 0);
        // Asked for again for a while, and not answered: it may still be for ever.
        book.ask(asked(443, 1200)).unwrap();
        assert!(book.open()[0].is_for_ever());
        book.given(Speech::Upnp, 443, 1200);
        assert_eq!(written.lock().unwrap().last().unwrap(), &[] as &[u16]);
        book.close();
        assert!(matches!(book.ask(asked(8443, 0)), Err(Unput::Closed)));
        assert_eq!(book.open().len(), 1);
    }

    #[test]
    fn what_cannot_be_written_down_is_not_asked_for_for_ever() {
        let book = Book::new(|_| Err(io::ErrorKind::StorageFull.into()));
        assert!(matches!(book.ask(asked(443, 0)), Err(Unput::Unwritten(_))));
        assert!(book.open().is_empty());
        assert!(book.ask(asked(443, 1200)).is_ok());
    }
}
