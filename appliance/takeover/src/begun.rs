//! Pure: what becomes of a takeover whose term has begun and whose state is not in place, because it was cut off or came to nothing.

use std::time::Duration;

use crate::lease;

/// For a trial with a short lease: a main box that has lost its spare tries again after five seconds, and has to say who it is before anything else.
const SHORTEST: Duration = Duration::from_secs(10);
/// The first pause after a try that came to nothing; it doubles with each one after it.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
/// The longest pause. Where the main box is silent nobody serves for longer than this and the restore itself.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// A spare listens for so long whether its main box is there, before it goes on by itself: half a lease, which is 30 s, since a main box needs up to
/// 15 s to find its spare again.
pub fn listens() -> Duration {
    (lease().0 / 2).max(SHORTEST)
}

/// A takeover in whose term nobody serves yet: the main box will not, since it hears of the term before it serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begun {
    /// How many tries came to nothing, since this spare's supervisor began.
    pub failed: u32,
    /// Since the last of them, where there was one.
    pub since: Duration,
    /// For how long the part that the main box speaks with has listened. A box that nobody could reach is not silent.
    pub listened: Duration,
    /// For how long nobody has served, as far as this spare's supervisor has seen it.
    pub waited: Duration,
    /// The main box was heard a moment ago: it is on, and serves nothing.
    pub there: bool,
    /// The main box still has the newest state of the collective, and knows how to go on with it.
    pub may_leave: bool,
}

impl Begun {
    /// Long enough for the main box to be found. A link that begins anew again and again never gets there, and is not waited for until nobody knows when.
    fn has_listened(&self) -> bool {
        self.listened >= listens() || self.waited >= LONGEST_PAUSE
    }
}

/// What a spare does about it, by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It takes over.
    GoesOn,
    /// Nothing just now.
    Waits,
    /// It does not take over: the main box serves on, with all that it has.
    Leaves,
}

/// What is done now. A main box that is there is left to serve on, since it has what its last backup lacks; one that is silent is not waited for.
pub fn next_of(begun: &Begun) -> Next {
    let pause = match begun.failed {
        0 => Duration::ZERO,
        failed => FIRST_PAUSE.saturating_mul(1 << (failed - 1).min(10)).min(LONGEST_PAUSE),
    };
    match begun {
        Begun { there: true, may_leave: true, .. } => Next::Leaves,
        Begun { since, .. } if *since >= pause && begun.has_listened() => Next::GoesOn,
        _ => Next::Waits,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun(failed: u32, since: u64) -> Begun {
        let since = Duration::from_secs(since);
        let (listened, waited) = (Duration::from_secs(30), Duration::ZERO);
        Begun { failed, since, listened, waited, there: false, may_leave: true }
    }

    #[test]
    fn a_main_box_that_is_there_serves_on_where_it_still_has_the_newest_state() {
        let just_up = Begun { listened: Duration::ZERO, ..begun(0, 0) };
        let there = Begun { there: true, ..just_up };
        assert_eq!(next_of(&there), Next::Leaves);
        assert_eq!(next_of(&Begun { failed: 7, ..there }), Next::Leaves);
        let newer_here = Begun { may_leave: false, ..there };
        assert_eq!(next_of(&newer_here), Next::Waits);
        assert_eq!(next_of(&Begun { listened: listens(), ..newer_here }), Next::GoesOn);
    }

    #[test]
    fn a_silent_one_is_not_waited_for_and_no_pause_is_longer_than_five_minutes() {
        for (failed, waits) in [(1, 10), (2, 20), (3, 40), (6, 300), (u32::MAX, 300)] {
            assert_eq!(next_of(&begun(failed, waits - 1)), Next::Waits, "{failed}");
            assert_eq!(next_of(&begun(failed, waits)), Next::GoesOn, "{failed}");
        }
    }

    #[test]
    fn nobody_is_silent_before_the_link_has_listened_for_half_a_minute() {
        for failed in [0, 9] {
            let begun =
                |listened| Begun { listened: Duration::from_secs(listened), ..begun(failed, 9999) };
            assert_eq!(next_of(&begun(29)), Next::Waits);
            assert_eq!(next_of(&begun(30)), Next::GoesOn);
            // A link that never gets there, since it begins anew each time, is not waited for longer than five minutes.
            let waited = |waited| Begun { waited: Duration::from_secs(waited), ..begun(3) };
            assert_eq!(next_of(&waited(299)), Next::Waits);
            assert_eq!(next_of(&waited(300)), Next::GoesOn);
            let there = Begun { there: true, ..waited(300) };
            assert_eq!(next_of(&there), Next::Leaves);
        }
    }
}
