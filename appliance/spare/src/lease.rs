use std::io;

use polder_takeover::{MOST_TERMS, Moment};
use serde::{Deserialize, Serialize};

use crate::{Folders, Side, SpareError};

/// When a box last heard of the other one, and the epochs: `STATE/spare/lease.json`. Written by the part `spare` alone.
///
/// An epoch is counted up when the spare takes over. Of two boxes with the same members the one of the higher epoch serves.
#[derive(Debug)]
pub struct Lease {
    folders: Folders,
    kept: Kept,
    started: Moment,
    heard: Option<Moment>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Kept {
    /// Unix seconds of the last word, some seconds old at most.
    heard: Option<i64>,
    /// Under which this box serves or would serve.
    epoch: u64,
    /// The other one's, as last heard.
    peer_epoch: u64,
    /// On a spare: the last one that it began itself. What was begun and cut off is known by it.
    began: Option<u64>,
    /// On a spare: its main box knows how to go on where a takeover comes to nothing.
    may_be_left: bool,
    /// On a former main box: it has heard that it is out, for good.
    retired: bool,
}

impl Kept {
    /// What a box of an earlier version believed of a peer that names a number nobody can have come to is let go.
    fn of(text: &[u8]) -> Result<Self, serde_json::Error> {
        let kept: Self = serde_json::from_slice(text)?;
        Ok(match kept.peer_epoch.max(kept.epoch) <= MOST_TERMS {
            true => kept,
            false => Self { retired: kept.retired, ..Self::default() },
        })
    }
}

/// How the two are to each other at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Seconds since the last word; none where there never was one.
    pub silent: Option<i64>,
    /// This box's epoch.
    pub epoch: u64,
    /// The other one's.
    pub peer_epoch: u64,
    /// On the spare: the main box was silent for a lease.
    pub may_take_over: bool,
    /// On the main box: it was out of touch for a lease or longer, so that the spare may serve by now. It must hear from it, or be told by a
    /// steward that there is none, before it serves.
    pub must_ask: bool,
    /// Another box serves under a higher epoch: this one must not.
    pub fenced: bool,
    /// On the main box: the other one is the main box for good.
    pub retired: bool,
    /// On the spare: the last epoch that it began itself.
    pub began: Option<u64>,
    /// On the spare: the main box knows how to go on where a takeover comes to nothing.
    pub may_be_left: bool,
}

/// The word is written down this often: a lease is a minute, and a disk has only so many writes.
const WRITE: i64 = 10;

impl Lease {
    /// As it was left. Where the file cannot be read, this box knows nothing and is as careful as it can be.
    pub fn read(folders: &Folders) -> Self {
        let kept = match std::fs::read(folders.lease()) {
            Ok(text) => Kept::of(&text).unwrap_or_else(|error| {
                log::error!("{}: {error}; it is begun anew", folders.lease().display());
                Kept::default()
            }),
            Err(_) => Kept::default(),
        };
        Self { folders: folders.clone(), kept, started: Moment::now(), heard: None }
    }

    /// Whether this box has heard that it is out for good, as it is written down here; none where that cannot be read.
    pub fn is_out(folders: &Folders) -> Option<bool> {
        match std::fs::read(folders.lease()) {
            Ok(text) => serde_json::from_slice(&text).ok().map(|kept: Kept| kept.retired),
            Err(error) => (error.kind() == io::ErrorKind::NotFound).then_some(false),
        }
    }

    /// On a spare: the last epoch that it began itself, as it is written down here; none where that cannot be read.
    pub fn began(folders: &Folders) -> Option<u64> {
        let text = std::fs::read(folders.lease()).ok()?;
        Kept::of(&text).ok()?.began
    }

    /// The other box was heard, with this epoch. `since` is from when on that is certain: on the main box the moment at which it asked, since
    /// the spare counts from when it heard the question and not from when the answer came.
    pub fn hear(&mut self, peer_epoch: u64, since: Moment, now: i64) -> Result<(), SpareError> {
        self.heard = Some(since);
        let old = self.kept.heard.is_none_or(|heard| now < heard || now - heard >= WRITE);
        if !old && self.kept.peer_epoch == peer_epoch {
            return Ok(());
        }
        (self.kept.heard, self.kept.peer_epoch) = (Some(now), peer_epoch);
        self.write()
    }

    /// On a main box: its spare is the main box, and this one never is again. On disk when this returns.
    pub fn retire(&mut self) -> Result<(), SpareError> {
        if self.kept.retired {
            return Ok(());
        }
        self.kept.retired = true;
        self.write()
    }

    /// On the spare: whether the main box knows how to go on where a takeover comes to nothing.
    pub fn hear_of_leaving(&mut self, may_be_left: bool) -> Result<(), SpareError> {
        if self.kept.may_be_left == may_be_left {
            return Ok(());
        }
        self.kept.may_be_left = may_be_left;
        self.write()
    }

    /// Serves from now on, under an epoch above every one that is known. On disk when this returns, and that it was this box that began it.
    pub fn raise(&mut self) -> Result<u64, SpareError> {
        let epoch = self.kept.epoch.max(self.kept.peer_epoch).saturating_add(1);
        if epoch > MOST_TERMS {
            return Err(SpareError::Terms(epoch));
        }
        (self.kept.epoch, self.kept.began) = (epoch, Some(epoch));
        self.write()?;
        Ok(epoch)
    }

    /// Knows that this epoch is its own. Never lowered.
    pub fn raise_to(&mut self, epoch: u64) -> Result<(), SpareError> {
        if epoch > MOST_TERMS {
            return Err(SpareError::Terms(epoch));
        }
        if epoch > self.kept.epoch {
            self.kept.epoch = epoch;
            return self.write();
        }
        Ok(())
    }

    /// How the two are to each other, seen from this side. `now` in Unix seconds.
    pub fn standing(&self, side: Side, now: i64) -> Standing {
        let kept = &self.kept;
        let written = kept.heard.map(|heard| now.saturating_sub(heard));
        let silent = match (self.heard, written) {
            (Some(heard), _) => Some(i64::try_from(heard.elapsed().as_secs()).unwrap_or(i64::MAX)),
            (None, written) => written,
        };
        decide(side, silent, self.since_start(), kept)
    }

    fn since_start(&self) -> i64 {
        i64::try_from(self.started.elapsed().as_secs()).unwrap_or(i64::MAX)
    }

    fn write(&self) -> Result<(), SpareError> {
        let path = self.folders.lease();
        let text = serde_json::to_vec(&self.kept).expect("a lease has only plain values");
        let pki = |error: polder_pki::PkiError| SpareError::Certificate(error.to_string());
        polder_pki::files::private_folder(self.folders.own()).map_err(pki)?;
        polder_site::write_durably(&path, &text).map_err(SpareError::file(path))
    }
}

/// Each side errs to the side of not serving. The spare does not know how long it was away itself, so that it counts from its own start
/// at most; the main box trusts what is written down, which is older than the truth. A clock that was set back counts as long ago.
fn decide(side: Side, silent: Option<i64>, since_start: i64, kept: &Kept) -> Standing {
    let fenced = kept.peer_epoch > kept.epoch;
    let (lease, margin) = polder_takeover::lease();
    let whole = |time: std::time::Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    let long = |seconds: i64| !(0..whole(lease)).contains(&seconds);
    let waits = whole(lease) + whole(margin);
    let waited =
        silent.is_some_and(|seconds| !(0..waits).contains(&seconds)) && since_start >= waits;
    Standing {
        silent,
        epoch: kept.epoch,
        peer_epoch: kept.peer_epoch,
        may_take_over: side == Side::Spare && waited,
        must_ask: side == Side::Main && (fenced || silent.is_some_and(long)),
        fenced,
        retired: kept.retired,
        began: kept.began,
        may_be_left: kept.may_be_left,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LEASE;

    const MARGIN: i64 = 5;

    fn at(side: Side, silent: Option<i64>, since_start: i64) -> Standing {
        decide(side, silent, since_start, &Kept::default())
    }

    #[test]
    fn the_spare_may_take_over_only_after_a_lease_of_silence_that_it_was_there_for_itself() {
        let waits = LEASE + MARGIN;
        assert!(!at(Side::Spare, Some(waits - 1), 1000).may_take_over);
        assert!(at(Side::Spare, Some(waits), 1000).may_take_over);
        // It was off itself.
        assert!(!at(Side::Spare, Some(9999), waits - 1).may_take_over);
        // It has never heard a word: there is no box to take over for.
        assert!(!at(Side::Spare, None, 9999).may_take_over);
    }

    #[test]
    fn the_main_box_must_ask_once_the_spare_may_have_taken_over_or_its_clock_makes_no_sense() {
        assert!(!at(Side::Main, Some(LEASE - 1), 1).must_ask);
        assert!(at(Side::Main, Some(LEASE), 1).must_ask);
        assert!(at(Side::Main, Some(-5), 1).must_ask);
        // Paired a moment ago: nobody has taken over yet.
        assert!(!at(Side::Main, None, 1).must_ask);
        let fenced = Kept { epoch: 1, peer_epoch: 2, ..Kept::default() };
        let standing = decide(Side::Main, Some(0), 1, &fenced);
        assert!(standing.must_ask && standing.fenced);
    }

    /// Whatever the main box's silence was, one of the two does not serve.
    #[test]
    fn there_is_no_moment_at_which_the_spare_may_take_over_and_the_main_box_need_not_ask() {
        for silent in 0..300 {
            // The main box's record is never younger than what the spare knows.
            for lag in 0..WRITE {
                let spare = at(Side::Spare, Some(silent), 1000).may_take_over;
                let main = at(Side::Main, Some(silent + lag), 0).must_ask;
                assert!(!spare || main, "{silent} {lag}");
            }
        }
    }

    #[test]
    fn epochs_only_grow_and_are_there_after_a_restart() {
        let state = tempfile::tempdir().unwrap();
        let folders = Folders::of(state.path());
        let mut lease = Lease::read(&folders);
        lease.hear(4, Moment::now(), 1000).unwrap();
        assert!(lease.standing(Side::Main, 1000).fenced);
        assert_eq!(lease.raise().unwrap(), 5);
        lease.raise_to(3).unwrap();
        let lease = Lease::read(&folders);
        let standing = lease.standing(Side::Spare, 1030);
        assert_eq!((standing.epoch, standing.peer_epoch, standing.silent), (5, 4, Some(30)));
        assert!(!standing.fenced && !standing.may_take_over);
        // Which of them it began itself is there too, and no other is taken for it.
        assert_eq!(standing.began, Some(5));
        let mut lease = lease;
        lease.raise_to(9).unwrap();
        lease.hear_of_leaving(true).unwrap();
        let standing = Lease::read(&folders).standing(Side::Spare, 1030);
        assert_eq!((standing.epoch, standing.began, standing.may_be_left), (9, Some(5), true));
    }

    #[test]
    fn no_term_begins_whose_number_the_other_box_would_not_believe() {
        let state = tempfile::tempdir().unwrap();
        let mut lease = Lease::read(&Folders::of(state.path()));
        assert!(lease.raise_to(MOST_TERMS + 1).is_err());
        lease.raise_to(MOST_TERMS).unwrap();
        let why = lease.raise().unwrap_err().to_string();
        assert!(why.contains("pair the boxes anew"), "{why}");
        assert_eq!(lease.standing(Side::Spare, 0).epoch, MOST_TERMS);
    }

    #[test]
    fn a_number_that_nobody_can_have_come_to_is_let_go_and_that_a_box_is_out_is_not() {
        let state = tempfile::tempdir().unwrap();
        let folders = Folders::of(state.path());
        assert_eq!(Lease::is_out(&folders), Some(false));
        let mut lease = Lease::read(&folders);
        lease.hear(u64::MAX, Moment::now(), 1000).unwrap();
        lease.retire().unwrap();
        let standing = Lease::read(&folders).standing(Side::Main, 1000);
        assert!(standing.retired && !standing.fenced, "{standing:?}");
        assert_eq!(Lease::is_out(&folders), Some(true));
        std::fs::write(folders.lease(), "{").unwrap();
        assert_eq!(Lease::is_out(&folders), None);
    }

    #[test]
    fn words_cost_few_writes() {
        let state = tempfile::tempdir().unwrap();
        let folders = Folders::of(state.path());
        let mut lease = Lease::read(&folders);
        lease.hear(0, Moment::now(), 1000).unwrap();
        let written = |folders: &Folders| std::fs::read_to_string(folders.lease()).unwrap();
        let first = written(&folders);
        lease.hear(0, Moment::now(), 1005).unwrap();
        assert_eq!(written(&folders), first);
        lease.hear(0, Moment::now(), 1010).unwrap();
        assert_ne!(written(&folders), first);
    }
}
