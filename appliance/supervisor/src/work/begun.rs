//! A takeover whose term has begun and whose state is not in place, because it was cut off or came to nothing: the spare goes on with it or leaves it to
//! the main box, by itself, and says which.

use std::sync::Arc;
use std::time::{Duration, Instant};

use polder_backup::{Folders as Backups, restore};
use polder_control::{Actor, RunState, SpareRequest, SpareStatus, TakeoverWish};
use polder_spare::{Folders, Link};
use polder_takeover::{Begun, Moment, Next, Term, next_of};
use tokio_util::sync::CancellationToken;

use super::pair::{NO_PART, Seen};
use super::takeover::is_there;
use super::{Refusal, Running, Work, blocking, empty, lock, with_source};
use crate::parts::Parts;
use crate::runs::{Intent, Open};

/// Between two looks at whether the main box is there.
const LOOK: Duration = Duration::from_secs(1);

/// What becomes of a takeover that was cut off, as soon as it is known.
enum Resumed {
    /// It is planned anew, and done or refused in words.
    Planned,
    /// It is not known yet whether the main box is there.
    Waits,
    /// The main box serves on.
    Left(String),
}

impl<P: Parts> Work<P> {
    /// The look of a spare every second, where something is begun.
    pub(super) async fn tend_what_is_begun(self: &Arc<Self>, seen: &Seen) {
        if self.takes_over() || self.ending.is_cancelled() {
            return;
        }
        if restore::pending(&Backups::of(&self.state)) {
            // It is put in place by the next start, whatever else is done.
            return self.anew.cancel();
        }
        match self.next_of(seen) {
            Next::Waits => {}
            Next::Leaves => {
                if let Err(why) = self.leave_to_main(&seen.other).await {
                    log::error!("what was begun is not left to {}: {why}", seen.other);
                }
            }
            // What goes on here makes way; it is not done with that yet.
            Next::GoesOn if self.is_changing() => {}
            Next::GoesOn => {
                log::info!("going on with the takeover from {}, whose term has begun", seen.other);
                let wish = TakeoverWish::TakeOver { dead: None };
                if let Err(why) = self.apply(Intent::Takeover(wish), Actor::Itself).await {
                    log::error!("the takeover does not go on: {why}");
                    self.takeover_failed();
                }
            }
        }
    }

    pub(super) fn next_of(&self, seen: &Seen) -> Next {
        let (failed, at) = *lock(&self.pair.failed);
        let status = seen.status.as_ref();
        next_of(&Begun {
            failed,
            since: at.unwrap_or(self.pair.begun).elapsed(),
            listened: Duration::from_secs(status.map_or(0, |status| status.listening)),
            waited: self.waited(),
            there: status.is_some_and(|status| self.hears_main(status)),
            may_leave: seen.term.may_leave() && status.is_some_and(|status| status.may_be_left),
        })
    }

    /// For how long nobody has served here, because of what was begun.
    pub(super) fn waited(&self) -> Duration {
        lock(&self.pair.begun_since).map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Whether the main box was heard a moment ago, and in this life: what is written down of the one before may be its last word.
    fn hears_main(&self, status: &SpareStatus) -> bool {
        let silent = status.silent.and_then(|seconds| u64::try_from(seconds).ok());
        let lived = self.pair.begun.elapsed();
        // It is told in whole seconds, of which the last may not be over: who came back within one must not be mistaken.
        let heard = |silent: u64| Duration::from_secs(silent.saturating_add(1)) <= lived;
        is_there(status) && silent.is_some_and(heard)
    }

    /// A run that takes over goes on, or waits for its turn to.
    pub(super) fn takes_over(&self) -> bool {
        lock(&self.running).values().any(|run| run.takes_over)
    }

    /// A try came to nothing: the next one waits a little longer.
    pub(super) fn takeover_failed(&self) {
        let mut failed = lock(&self.pair.failed);
        *failed = (failed.0.saturating_add(1), Some(Moment::now()));
    }

    /// The main box serves on, with all that it has: it asks for that and hears it.
    async fn leave_to_main(self: &Arc<Self>, other: &str) -> Result<(), Refusal> {
        // No takeover begins meanwhile.
        let _gate = self.gate.lock().await;
        let backups = Backups::of(&self.state);
        if self.takes_over() || restore::pending(&backups) {
            return Ok(());
        }
        // What was fetched has the other box's secrets; and a disk that it has filled must not keep both boxes closed.
        let fetched = backups.clone();
        blocking(move || restore::give_up(&fetched).map_err(|e| with_source(&e))).await?;
        let why = "this box has served since, so nothing can be left";
        let left = self.change_term(move |term| term.leave().ok_or_else(|| why.to_owned())).await?;
        *lock(&self.pair.failed) = (0, None);
        // If this does not arrive, the next look at the pair does it.
        let _ = self.ask_spare_part(&SpareRequest::SetEpoch(left)).await;
        self.note(Actor::Itself, "does not take over, and leaves it to", other).await;
        Ok(())
    }

    /// On a main box whose spare had begun a term: true where that one leaves it to this box, which serves on.
    pub(super) async fn goes_on_as_left(self: &Arc<Self>, term: &Term, other: &str) -> bool {
        let asked = async {
            let link = Link::of(&Folders::of(&self.state))?;
            let null = serde_json::Value::Null;
            link.ask::<_, Option<u64>>(hyper::Method::GET, "/hand/left", &null).await
        };
        let left = match asked.await {
            Ok(left) => left.filter(|left| term.going_on(*left).is_some()),
            Err(error) => {
                log::debug!("{error}");
                None
            }
        };
        let Some(left) = left else { return false };
        let went_on = self.change_term(move |term| {
            *term = term.going_on(left).ok_or("a newer term began")?;
            Ok(())
        });
        if let Err(why) = went_on.await {
            log::error!("this box does not serve on, though that is left to it: {why}");
            return false;
        }
        self.note(Actor::Itself, "serves on, because it was left to it by", other).await;
        true
    }

    /// Takes up a takeover that was cut off, once it is known whether the main box is there.
    pub(super) fn resume_takeover(self: &Arc<Self>, mut open: Open) {
        // That the main box is dead was said of another moment: it may have been turned on since, and serve.
        if let Intent::Takeover(TakeoverWish::TakeOver { dead }) = &mut open.intent {
            *dead = None;
        }
        let (cancel, title) = (CancellationToken::new(), "Take over, or leave it to the main box");
        let waiting = Running {
            cancel: cancel.clone(),
            confirmed: CancellationToken::new(),
            changes: true,
            imports: false,
            takes_over: true,
            saves: false,
            brings: false,
            way_out: false,
            made_way: false,
            title: title.to_owned(),
        };
        lock(&self.running).insert(open.id, waiting);
        self.board.post(open.id, empty(title), RunState::Running);
        let work = self.clone();
        self.tasks.spawn(async move {
            let begun = Instant::now();
            let state = loop {
                match work.resumed(begun).await {
                    Resumed::Planned => return work.resume(open).await,
                    Resumed::Left(why) => break RunState::Failed(why),
                    Resumed::Waits => {}
                }
                tokio::select! {
                    () = tokio::time::sleep(LOOK) => {}
                    () = cancel.cancelled() => break RunState::Cancelled,
                    () = work.ending.cancelled() => return,
                }
            };
            if let Some(mut run) = work.board.run(open.id) {
                run.state = state;
                work.close(run).await;
            }
        });
    }

    async fn resumed(self: &Arc<Self>, begun: Instant) -> Resumed {
        let Ok(Some(seen)) = self.pair_seen().await else { return Resumed::Planned };
        let Some(status) = &seen.status else {
            return if begun.elapsed() > NO_PART { Resumed::Planned } else { Resumed::Waits };
        };
        if !seen.is_begun() {
            // Where the main box was silent it is so for as long as anybody has to listen; where it is there, that is the answer.
            let known = status.may_take_over || self.hears_main(status) || seen.term.stands_in();
            return if known { Resumed::Planned } else { Resumed::Waits };
        }
        match self.next_of(&seen) {
            Next::GoesOn => Resumed::Planned,
            Next::Waits => Resumed::Waits,
            // The run that waits here is the one that would hold it back.
            Next::Leaves => Resumed::Left(format!(
                "{} is there again and has what its last backup lacks, so it serves on; nothing was taken over",
                seen.other
            )),
        }
    }
}
