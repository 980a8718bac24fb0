//! How much is read beside answers, so that they go on as often as they should.
//!
//! What a token costs is known only within reason ([`crate::Cost`]): many short shares of long prompts take longer than one long share
//! of the same work. So steps are watched, and less is read in the next ones where they take too long.

use std::time::Duration;

/// Never less than this part: prompts must be read as well, whatever answers cost by themselves.
const LEAST: f64 = 0.125;
/// More is read again where steps take less than this part of what they may, a little at a time.
const ROOMY: f64 = 0.85;
const MORE: f64 = 1.03;
/// One slow step may be somebody else's doing: it halves what is read at most.
const LESS: f64 = 0.5;

/// Which part of a step's usual work is read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    gap: Option<Duration>,
    part: f64,
    /// What steps take, in seconds, that only go on with answers, lately.
    alone: f64,
}

impl Pace {
    /// Steps should take no longer than `gap`; without one, all of a step's work is always read.
    pub(crate) fn new(gap: Option<Duration>) -> Self {
        Self { gap, part: 1.0, alone: 0.0 }
    }

    /// 1 for all of it.
    pub(crate) fn part(self) -> f64 {
        self.part
    }

    /// A step that only went on with answers took so long.
    pub(crate) fn saw_answers(&mut self, took: Duration) {
        self.alone += 0.1 * (took.as_secs_f64() - self.alone);
    }

    /// A step that read prompts and went on with answers took so long.
    pub(crate) fn saw(&mut self, took: Duration) {
        let Some(gap) = self.gap else { return };
        // Where answers take most of it by themselves, reading nothing would not make them smooth.
        let gap = gap.as_secs_f64().max(2.0 * self.alone).max(1e-6);
        let of_gap = took.as_secs_f64() / gap;
        if of_gap > 1.0 {
            self.part *= (1.0 / of_gap).max(LESS);
        } else if of_gap < ROOMY {
            self.part *= MORE;
        }
        self.part = self.part.clamp(LEAST, 1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Steps of a machine whose answers take `fixed` and all that could be read `whole`, in milliseconds.
    fn settles(fixed: f64, whole: f64, gap: u64) -> (f64, Pace) {
        let mut pace = Pace::new(Some(Duration::from_millis(gap)));
        let mut took = 0.0;
        for _ in 0..400 {
            took = fixed + whole * pace.part();
            pace.saw(Duration::from_secs_f64(took / 1e3));
        }
        (took, pace)
    }

    proptest! {
        #[test]
        fn steps_come_to_take_no_longer_than_they_should_where_reading_less_can_do_it(
            fixed in 0.0f64..30.0, whole in 0.0f64..300.0,
        ) {
            let (took, pace) = settles(fixed, whole, 40);
            prop_assert!((LEAST..=1.0).contains(&pace.part()));
            prop_assert!(took <= 40.0 * 1.001 * MORE || pace.part() == LEAST, "{took} ms");
            // Nor is less read than may be.
            prop_assert!(pace.part() == 1.0 || took >= 40.0 * ROOMY / MORE || pace.part() == LEAST);
        }
    }

    #[test]
    fn answers_that_are_slow_by_themselves_do_not_keep_prompts_from_being_read() {
        let mut pace = Pace::new(Some(Duration::from_millis(40)));
        // It has to come back from the least, by three parts in a hundred.
        for _ in 0..140 {
            pace.saw_answers(Duration::from_millis(60));
            pace.saw(Duration::from_millis(100));
        }
        assert_eq!(pace.part(), 1.0);
    }

    #[test]
    fn one_slow_step_is_made_up_for_and_without_a_bound_all_is_read() {
        let mut pace = Pace::new(Some(Duration::from_millis(40)));
        pace.saw(Duration::from_secs(9));
        assert_eq!(pace.part(), LESS);
        for _ in 0..40 {
            pace.saw(Duration::from_millis(20));
        }
        assert_eq!(pace.part(), 1.0);
        let mut free = Pace::new(None);
        free.saw(Duration::from_secs(9));
        assert_eq!(free.part(), 1.0);
    }
}
