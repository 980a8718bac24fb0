//! Sees to it that of two paired boxes only one serves: keeps the term, closes and opens the door, and goes on with what a spare hands over.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use polder_control::{
    Actor, AuditHead, Client, Closed, SpareReply, SpareRequest, SpareStatus, Stand, TakeoverWish,
};
use polder_spare::{Folders, Lease, Link, Peer};
use polder_takeover::{Given, Heard, Moment, Side, Term, lease};
use tokio::sync::{Notify, OwnedMutexGuard};

use super::takeover::is_there;
use super::{Refusal, Work, blocking, lock, with_source};
use crate::parts::Parts;
use crate::runs::{Intent, Open};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// The part that speaks with the other box answers within this.
const SOON: Duration = Duration::from_secs(2);
/// A part that does not answer for so long after the start cannot ask the spare either.
pub(super) const NO_PART: Duration = Duration::from_secs(20);
/// A box that serves says so on its disk this often.
const STAMP: Duration = Duration::from_secs(5);
/// What is given back and could not be taken is tried again after this.
const AGAIN: Duration = Duration::from_secs(300);

/// What the supervisor knows of the pair in this life of its own.
pub(super) struct Pair {
    /// When this life began.
    pub(super) begun: Moment,
    /// It served a moment ago, or a steward at the machine said that the spare does not: see [`Heard::goes_on`].
    goes_on: AtomicBool,
    /// The state is being handed over.
    pub(super) handing: AtomicBool,
    stamped: Mutex<Option<Instant>>,
    /// When the spare was last heard in this life. The part that hears it may begin anew in between.
    heard: Mutex<Option<Moment>>,
    /// When what is given back could not be taken.
    pub(super) not_taken: Mutex<Option<Instant>>,
    /// How often a takeover came to nothing in this life, and when it last did.
    pub(super) failed: Mutex<(u32, Option<Moment>)>,
    /// Held by whoever changes the term: it is read, changed and written in one go.
    pub(super) terms: tokio::sync::Mutex<()>,
    /// The turn at the backups, from before the door closes until the state is handed over.
    pub(super) turn: Mutex<Option<OwnedMutexGuard<()>>>,
    /// What the audit trail ended with in the last backup.
    pub(super) saved: Mutex<Option<AuditHead>>,
    /// A takeover waits for its turn: trial restores and backups give way.
    pub(super) hurry: Notify,
    /// A takeover has begun here and is not in place: nobody serves.
    pub(super) begun_here: AtomicBool,
    /// Since when it is seen that way, in this life.
    pub(super) begun_since: Mutex<Option<Moment>>,
    /// How long the list of what the main box revoked was when all of it was made true here.
    pub(super) buried: Mutex<Option<u64>>,
}

impl Default for Pair {
    fn default() -> Self {
        Self {
            begun: Moment::now(),
            goes_on: AtomicBool::new(false),
            handing: AtomicBool::new(false),
            stamped: Mutex::default(),
            heard: Mutex::default(),
            not_taken: Mutex::default(),
            failed: Mutex::default(),
            terms: tokio::sync::Mutex::default(),
            turn: Mutex::default(),
            saved: Mutex::default(),
            hurry: Notify::new(),
            begun_here: AtomicBool::new(false),
            begun_since: Mutex::default(),
            buried: Mutex::default(),
        }
    }
}

/// The other box, what this one knows of who serves, and what the part that speaks with the other one knows.
pub(super) struct Seen {
    pub(super) term: Term,
    pub(super) other: String,
    pub(super) status: Option<SpareStatus>,
    pub(super) stand: Stand,
    /// A takeover was cut off, or came to nothing, after its term had begun: known also before that part answers.
    begun: bool,
}

impl Seen {
    /// The same, where something can be done about it: nobody serves in that term, and the main box will not.
    pub(super) fn is_begun(&self) -> bool {
        self.begun && self.status.is_some()
    }
}

impl<P: Parts> Work<P> {
    /// Before the door opens for the first time: closed where it may have to be.
    pub(super) async fn settle_pair(self: &Arc<Self>) {
        self.pair.goes_on.store(self.served_a_moment_ago(), Ordering::Relaxed);
        self.look_at_pair().await;
        let Ok(Some(Seen { term, other, stand, .. })) = self.pair_seen().await else { return };
        if term.side == Side::Spare && stand == Stand::Serves {
            // The trail is the one that came with the backup, and knows nothing of it yet.
            self.note(Actor::Itself, "serves in the place of", &other).await;
        }
        if !term.leftovers.is_empty() {
            let (state, leftovers) = (self.state.clone(), term.leftovers);
            let gone = blocking(move || remove_leftovers(&state, &leftovers)).await;
            let kept = match gone {
                Ok(()) => {
                    self.change_term(|term| {
                        term.leftovers.clear();
                        Ok(())
                    })
                    .await
                }
                Err(why) => Err(why),
            };
            if let Err(why) = kept {
                log::error!("what the main box's state left here is not removed: {why}");
            }
        }
    }

    pub(super) fn look_after_the_pair(self: &Arc<Self>) {
        // Whoever only waits keeps nothing of the supervisor alive.
        let (work, ending) = (Arc::downgrade(self), self.ending.clone());
        self.tasks.spawn(async move {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(LOOK) => {}
                    () = ending.cancelled() => return,
                }
                let Some(work) = work.upgrade() else { return };
                work.look_at_pair().await;
            }
        });
    }

    /// What is to be done about the other box cannot be planned before the part that speaks with it is there.
    pub(super) fn resume_when_linked(self: &Arc<Self>, open: Open) {
        if matches!(open.intent, Intent::Takeover(TakeoverWish::TakeOver { .. })) {
            return self.resume_takeover(open);
        }
        // It is given back to a box that is heard, which takes a moment more.
        let heard = matches!(open.intent, Intent::Takeover(TakeoverWish::GiveBack));
        let work = self.clone();
        self.tasks.spawn(async move {
            let begun = Instant::now();
            let linked = |status: SpareStatus| !heard || is_there(&status);
            while !work.spare_status().await.is_some_and(linked) && begun.elapsed() < NO_PART {
                tokio::select! {
                    () = tokio::time::sleep(LOOK) => {}
                    () = work.ending.cancelled() => return,
                }
            }
            work.resume(open).await;
        });
    }

    pub(super) async fn look_at_pair(self: &Arc<Self>) {
        match self.pair_seen().await {
            Ok(None) => {
                self.note_begun(false);
                self.board.set_closed(None);
            }
            Ok(Some(seen)) => self.go_by(seen).await,
            Err(why) => {
                // Nothing goes on with what cannot be read: whoever parts the two boxes, or restores one, is not to wait for it.
                self.note_begun(false);
                if self.board.closed().is_none() {
                    log::error!("{why}");
                }
                let closed = Closed { stand: Stand::Waits, other: String::new() };
                self.board.set_closed(Some(closed));
            }
        }
    }

    async fn go_by(self: &Arc<Self>, seen: Seen) {
        self.note_begun(seen.begun);
        if seen.begun {
            self.make_way();
        }
        if seen.is_begun() {
            self.tend_what_is_begun(&seen).await;
        }
        // Once the state is given back the main box serves, and all its words count again.
        if seen.term.stands_in() && seen.term.mine.is_some() {
            self.bury_what_came(&seen.other).await;
        }
        let Seen { term, other, stand, .. } = seen;
        let before = self.board.closed().map(|closed| closed.stand);
        let closed = (!stand.is_open()).then_some(Closed { stand, other: other.clone() });
        let news = before != closed.as_ref().map(|closed| closed.stand);
        self.board.set_closed(closed);
        if news && matches!(stand, Stand::Fenced | Stand::Waits | Stand::Retired) {
            let what = match stand {
                Stand::Retired => "closed the door for good, because the main box is now",
                Stand::Fenced => "closed the door, because in its place serves",
                _ => "closed the door until it hears from",
            };
            self.note(Actor::Itself, what, &other).await;
        }
        if term.side == Side::Main && stand == Stand::Serves {
            self.stamp();
        }
        let shut = term.side == Side::Main && stand == Stand::Fenced;
        if shut && !self.goes_on_as_left(&term, &other).await {
            self.take_back_what_is_given(&term).await;
        }
    }

    /// None where this box has no pair.
    pub(super) async fn pair_seen(&self) -> Result<Option<Seen>, Refusal> {
        let state = self.state.clone();
        let Some((mut term, other, new)) = blocking(move || term_of(&state)).await? else {
            return Ok(None);
        };
        if new {
            // It was alone until now, and nobody can have taken over from it.
            self.pair.goes_on.store(true, Ordering::Relaxed);
        }
        let status = self.spare_status().await;
        let mut heard = Heard { goes_on: self.goes_on(), ..Heard::default() };
        match &status {
            Some(status) => {
                // Only a spare begins terms: what a main box says of them is no news to it.
                let highest = match term.side {
                    Side::Spare => status.epoch,
                    Side::Main => status.epoch.max(status.peer_epoch),
                };
                let retired = status.retired && term.side == Side::Main && !term.retired;
                term.retired |= retired;
                if term.heard(highest) || retired {
                    let changed = self.change_term(move |term| {
                        term.heard(highest);
                        term.retired |= retired;
                        Ok(term.clone())
                    });
                    term = changed.await?;
                }
                let own =
                    if term.side == Side::Spare { term.highest } else { term.mine.unwrap_or(0) };
                if status.epoch < own {
                    let _ = self.ask_spare_part(&SpareRequest::SetEpoch(own)).await;
                }
                let silent = status.silent.and_then(|seconds| u64::try_from(seconds).ok());
                // What was heard in an earlier life counts for nothing in this one.
                let ago =
                    silent.map(Duration::from_secs).filter(|ago| *ago < self.pair.begun.elapsed());
                let at = ago.and_then(|ago| Moment::now().before(ago));
                let mut kept = lock(&self.pair.heard);
                *kept = (*kept).max(at);
                heard.failed = status.trouble.is_some();
            }
            None => heard.failed = self.pair.begun.elapsed() > NO_PART,
        }
        let began = match &status {
            Some(status) => status.began,
            None => {
                let folders = Folders::of(&self.state);
                blocking(move || Ok(Lease::began(&folders))).await?
            }
        };
        let begun = term.is_begun(began);
        heard.ago = lock(&self.pair.heard).map(|at| at.elapsed());
        let stand = match polder_takeover::stand(&term, &heard) {
            Stand::Serves if self.pair.handing.load(Ordering::Relaxed) => Stand::Handed,
            stand => stand,
        };
        Ok(Some(Seen { term, other, status, stand, begun }))
    }

    /// Changes the term as it is on the disk, where it is again when this returns. Nobody else changes it meanwhile.
    pub(super) async fn change_term<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Term) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let _terms = self.pair.terms.lock().await;
        let state = self.state.clone();
        blocking(move || change_term(&state, change)).await
    }

    pub(super) async fn spare_status(&self) -> Option<SpareStatus> {
        match self.ask_spare_part(&SpareRequest::Status).await {
            Ok(SpareReply::Status(status)) => Some(*status),
            _ => None,
        }
    }

    pub(super) async fn ask_spare_part(
        &self,
        question: &SpareRequest,
    ) -> Result<SpareReply, Refusal> {
        let asked = async {
            let mut part: Client<SpareRequest, SpareReply> =
                Client::connect(&self.sockets.spare()).await?;
            part.ask_within(SOON, question).await
        };
        match asked.await {
            Ok(SpareReply::Refused(why)) => Err(why),
            Ok(reply) => Ok(reply),
            Err(error) => {
                Err(format!("the part that speaks with the other box does not answer: {error}"))
            }
        }
    }

    /// The machine's owner says that the spare does not serve. It holds while this box goes on; who is off for long asks anew.
    pub(crate) async fn serve_anyway(self: &Arc<Self>, by: Actor) -> Result<(), Refusal> {
        if by != Actor::Console {
            return Err(
                "only somebody at the machine itself can say so, with `polder spare serve-anyway`"
                    .to_owned(),
            );
        }
        let none = "this box has no spare that it would have to ask; it serves as it is";
        let seen = self.pair_seen().await?.ok_or(none)?;
        match (seen.term.side, seen.stand) {
            (Side::Main, Stand::Asks | Stand::Waits) => {}
            (_, Stand::Retired) => {
                return Err(Closed { stand: seen.stand, other: seen.other }.sentence());
            }
            (_, Stand::Fenced) => {
                let lost = match seen.status.as_ref().is_some_and(is_there) {
                    true => "",
                    false => {
                        "; if that box is lost for good: `polder spare unpair`, then restore its newest backup"
                    }
                };
                return Err(format!(
                    "{} serves; give back there, on the page Takeover{lost}",
                    seen.other
                ));
            }
            _ => return Err("this box is not waiting for anybody".to_owned()),
        }
        let what = match seen.term.yields {
            true => "let the box serve, and from now on go on when it cannot hear",
            false => "let the box serve without hearing from",
        };
        self.record(by, what, &seen.other).await?;
        if seen.term.yields {
            // It would stop again at once, and the spare is not to count on a stop that does not come.
            self.change_term(|term| {
                term.yields = false;
                Ok(())
            })
            .await?;
        }
        self.pair.goes_on.store(true, Ordering::Relaxed);
        self.look_at_pair().await;
        Ok(())
    }

    /// Whether this main box stops in a silence of its spare.
    pub(crate) async fn set_yields(
        self: &Arc<Self>,
        yields: bool,
        by: Actor,
    ) -> Result<(), Refusal> {
        let none = "this box has no spare; pair it with one on the page Spare first";
        let seen = self.pair_seen().await?.ok_or(none)?;
        if seen.term.side == Side::Spare {
            return Err("this box is the spare; that is chosen on its main box".to_owned());
        }
        let unheard = !seen.status.as_ref().is_some_and(is_there);
        if !yields && seen.term.yields && unheard && by != Actor::Console {
            return Err("the spare cannot be heard and counts on this box to stop; at the machine itself, `polder spare yield off`, once you know that it does not serve".to_owned());
        }
        let what = if yields {
            "let the box stop when it cannot hear"
        } else {
            "let the box go on when it cannot hear"
        };
        self.record(by, what, &seen.other).await?;
        self.change_term(move |term| {
            term.yields = yields;
            Ok(())
        })
        .await
    }

    /// What the spare hands over, over the link. None where it hands over nothing.
    pub(super) async fn given(&self) -> Result<Option<Given>, Refusal> {
        let link = Link::of(&Folders::of(&self.state)).map_err(|error| error.to_string())?;
        let asked = link.ask(hyper::Method::GET, "/hand/given", &serde_json::Value::Null).await;
        asked.map_err(|error| error.to_string())
    }

    async fn take_back_what_is_given(self: &Arc<Self>, term: &Term) {
        let waits = lock(&self.pair.not_taken).is_some_and(|at| at.elapsed() < AGAIN);
        // A model that comes in may take hours, and is no reason to stay closed.
        if waits || self.is_changing() {
            return;
        }
        match self.given().await {
            Ok(Some(given)) if term.taking(&given).is_some() => {
                let intent = Intent::Takeover(TakeoverWish::TakeBack);
                if let Err(why) = self.apply(intent, Actor::Itself).await {
                    *lock(&self.pair.not_taken) = Some(Instant::now());
                    log::error!("what the spare hands over is not taken: {why}");
                }
            }
            Ok(_) => {}
            Err(why) => log::debug!("{why}"),
        }
    }

    fn goes_on(&self) -> bool {
        self.pair.goes_on.load(Ordering::Relaxed)
    }

    fn stamp(&self) {
        let mut stamped = lock(&self.pair.stamped);
        if stamped.is_some_and(|at| at.elapsed() < STAMP) {
            return;
        }
        *stamped = Some(Instant::now());
        let Some((boot, at)) = boot_time() else { return };
        let path = self.sockets.folder().join("served");
        // It need not survive the boot that it speaks of.
        if let Err(error) = std::fs::write(&path, format!("{boot} {at}\n")) {
            log::warn!("could not write {}: {error}", path.display());
        }
    }

    fn served_a_moment_ago(&self) -> bool {
        let text =
            std::fs::read_to_string(self.sockets.folder().join("served")).unwrap_or_default();
        boot_time().is_some_and(|now| is_recent(&text, &now))
    }
}

/// The term on the disk, read, changed and written. Only to be called by whoever holds [`Pair::terms`].
pub(super) fn change_term<T>(
    state: &Path,
    change: impl FnOnce(&mut Term) -> Result<T, Refusal>,
) -> Result<T, Refusal> {
    let read = Term::read(state).map_err(|error| with_source(&error))?;
    let before = read.ok_or("this box is paired with no other any more")?;
    let mut term = before.clone();
    let done = change(&mut term)?;
    if term != before {
        term.keep(state).map_err(|error| with_source(&error))?;
    }
    Ok(done)
}

/// Only folders that a restore has put aside.
fn remove_leftovers(state: &Path, leftovers: &[String]) -> Result<(), Refusal> {
    let aside = |name: &&String| name.starts_with("before-restore-") && !name.contains('/');
    for name in leftovers.iter().filter(aside) {
        polder_backup::restore::clear(&state.join(name)).map_err(|error| with_source(&error))?;
    }
    Ok(())
}

/// Whether a stamp is of this boot and younger than a lease.
fn is_recent(stamp: &str, (boot, now): &(String, u64)) -> bool {
    let Some((of, at)) = stamp.trim().split_once(' ') else { return false };
    let age = at.parse::<u64>().ok().and_then(|at| now.checked_sub(at));
    of == boot && age.is_some_and(|age| age + STAMP.as_secs() < lease().0.as_secs())
}

/// Which boot this is, and seconds since it.
fn boot_time() -> Option<(String, u64)> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some((boot.trim().to_owned(), Moment::now().since_boot().as_secs()))
}

/// The term, the other box's name and whether the term begins just now; kept in step with whether there is another box at all.
fn term_of(state: &Path) -> Result<Option<(Term, String, bool)>, Refusal> {
    let peer = Peer::read(&Folders::of(state)).map_err(|error| error.to_string())?;
    let term = Term::read(state).map_err(|error| with_source(&error))?;
    match (peer, term) {
        (None, None) => Ok(None),
        // Whatever became of the rest: it never serves again.
        (None, Some(term)) if term.retired => Ok(Some((term, String::new(), false))),
        (None, Some(_)) => {
            Term::forget(state).map_err(|error| with_source(&error))?;
            Ok(None)
        }
        (Some(peer), Some(term)) => Ok(Some((term, peer.name, false))),
        (Some(peer), None) => {
            let side = match peer.side {
                polder_spare::Side::Main => Side::Main,
                polder_spare::Side::Spare => Side::Spare,
            };
            let term = Term::first(side);
            term.keep(state).map_err(|error| with_source(&error))?;
            Ok(Some((term, peer.name, true)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_counts_only_in_its_own_boot_and_for_less_than_a_lease() {
        let now = ("a-b".to_owned(), 1000);
        assert!(is_recent("a-b 950\n", &now));
        for stale in ["a-b 940", "a-b 1001", "c-d 999", "a-b", "", "a-b x"] {
            assert!(!is_recent(stale, &now), "{stale}");
        }
        assert!(boot_time().is_some());
    }

    #[test]
    fn a_pair_that_is_no_more_takes_its_term_along() {
        let state = tempfile::tempdir().unwrap();
        std::fs::create_dir(state.path().join("spare")).unwrap();
        Term::first(Side::Main).keep(state.path()).unwrap();
        assert!(term_of(state.path()).unwrap().is_none());
        assert_eq!(Term::read(state.path()).unwrap(), None);
        // That a box is out for good outlives it.
        let out = Term { retired: true, ..Term::first(Side::Main) };
        out.keep(state.path()).unwrap();
        assert_eq!(term_of(state.path()).unwrap().unwrap().0, out);
        assert_eq!(Term::read(state.path()).unwrap(), Some(out));
    }
}
