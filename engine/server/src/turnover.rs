//! How soon a place becomes free, for whoever found none.

use std::collections::VecDeque;
use std::time::Instant;

/// Ends that are remembered.
const LAST: usize = 16;
/// What is said before anything ended, in seconds.
const UNKNOWN: u32 = 5;
/// Nobody is sent away for longer.
const MOST: u32 = 120;

/// When the last answers ended: each end lets somebody in who waits.
#[derive(Debug, Default)]
pub(crate) struct Turnover {
    ends: VecDeque<Instant>,
}

impl Turnover {
    /// An answer ended.
    pub(crate) fn ended(&mut self, now: Instant) {
        if self.ends.len() == LAST {
            self.ends.pop_front();
        }
        self.ends.push_back(now);
    }

    /// Whole seconds until the next end, if ends go on coming as they did lately; at least 1.
    pub(crate) fn seconds(&self, now: Instant) -> u32 {
        let Some(first) = self.ends.front() else { return UNKNOWN };
        let each = now.saturating_duration_since(*first).as_secs_f64() / self.ends.len() as f64;
        (each.ceil() as u32).clamp(1, MOST)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_finds_no_place_is_told_to_come_back_when_one_answer_is_likely_to_have_ended() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut turnover = Turnover::default();
        assert_eq!(turnover.seconds(at(0)), UNKNOWN);
        for end in 0..40 {
            turnover.ended(at(end * 3));
        }
        assert_eq!(turnover.seconds(at(39 * 3)), 3);
        // Nothing has ended for an hour: those that run are long ones.
        assert_eq!(turnover.seconds(at(3600)), MOST);
        let mut fast = Turnover::default();
        for _ in 0..5 {
            fast.ended(at(0));
        }
        assert_eq!(fast.seconds(at(0)), 1);
    }
}
