//! Moments by the boot's own clock: nobody sets it, and it goes on while the machine sleeps.

use std::time::Duration;

/// A moment in this boot.
///
/// Not [`std::time::Instant`], which stands still in a sleep: a box that was asleep for an hour would take what it heard before for a word of just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Duration);

impl Moment {
    /// This one.
    pub fn now() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        Self(Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0)))
    }

    /// Since then, sleep included.
    pub fn elapsed(self) -> Duration {
        Self::now().0.saturating_sub(self.0)
    }

    /// So long before this one; none before the boot.
    pub fn before(self, ago: Duration) -> Option<Self> {
        self.0.checked_sub(ago).map(Self)
    }

    /// Since the boot.
    pub fn since_boot(self) -> Duration {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_follow_each_other_and_begin_with_the_boot() {
        let now = Moment::now();
        assert!(now <= Moment::now() && now.elapsed() < Duration::from_secs(60));
        assert_eq!(now.before(now.since_boot() + Duration::from_secs(1)), None);
        let before = now.before(Duration::from_millis(1)).unwrap();
        assert!(before < now && before.elapsed() >= Duration::from_millis(1));
    }
}
