//! What time it is for the retention, on machines whose clock may be wrong.
//!
//! Ages are counted on a clock of the store's own. It starts at the latest of what the machine says and what the
//! store has seen before, and goes on with the machine's uptime, so it never goes back and never stands still:
//! a machine that wakes up in 1970 deletes nothing for that, and keeps nothing for ever either, because the time for
//! which it runs still counts. When the machine's clock is set forward, the store's jumps with it, and what was used
//! since the store was opened jumps along: it was used then, whatever the clock said.

/// More than this between the machine's clock and ours means that somebody has set it.
const SET: u64 = 60;

/// Seconds since 1970, as far as is known.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    /// Our time when the machine's uptime was zero.
    base: i128,
    opened: u64,
}

/// The clock was set forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Jump {
    /// What happened at this time or later happened in this session …
    pub(crate) since: u64,
    /// … and so many seconds later than we thought.
    pub(crate) by: u64,
}

impl Clock {
    /// `wall` and `uptime` are the machine's, `seen` the newest time that the store knows of.
    pub(crate) fn start(wall: u64, uptime: u64, seen: u64) -> Self {
        // Later than all before, so that what is used from now on can be told from it.
        let now = wall.max(seen.saturating_add(1));
        Self { base: i128::from(now) - i128::from(uptime), opened: now }
    }

    /// Now, and whether the machine's clock was set since the last call.
    pub(crate) fn read(&mut self, wall: u64, uptime: u64) -> (u64, Option<Jump>) {
        let now = u64::try_from(self.base + i128::from(uptime)).unwrap_or(0);
        if wall <= now.saturating_add(SET) {
            return (now, None);
        }
        let jump = Jump { since: self.opened, by: wall - now };
        self.base += i128::from(jump.by);
        self.opened += jump.by;
        (wall, Some(jump))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_in_1970_neither_ages_what_is_kept_nor_stands_still() {
        let mut clock = Clock::start(5, 100, 1_800_000_000);
        assert_eq!(clock.read(5, 100), (1_800_000_001, None));
        assert_eq!(clock.read(3605, 3700), (1_800_003_601, None));
    }

    #[test]
    fn a_clock_that_is_set_takes_along_what_was_used_since_the_start() {
        let mut clock = Clock::start(7, 10, 0);
        assert_eq!(clock.read(57, 60), (57, None));
        let jump = Jump { since: 7, by: 1_800_000_000 - 107 };
        assert_eq!(clock.read(1_800_000_000, 110), (1_800_000_000, Some(jump)));
        assert_eq!(clock.read(1_800_000_001, 111), (1_800_000_001, None));
        // Set back: ours goes on.
        assert_eq!(clock.read(7, 120), (1_800_000_010, None));
    }
}
