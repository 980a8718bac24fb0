//! When to start a part again after it died, and when to stop trying. Nothing here waits or looks
//! at a clock: time comes in as a number, so that the tests run hours in no time.

use std::time::Duration;

/// Deaths further back than this no longer count. Long, because a part may take minutes to load
/// before it dies; one that can work wipes the slate by itself with a stable stretch.
pub const WINDOW: Duration = Duration::from_secs(30 * 60);
/// This many deaths within [`WINDOW`], none of them after a stable stretch, are a crash loop.
pub const MOST_DEATHS: usize = 5;
/// A part that answered for this long was stable: whatever it died of, it can work.
pub const STABLE: Duration = Duration::from_secs(30);
/// The pause after the first death; it doubles with each one after it.
pub const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// One death of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Death {
    /// When, since any fixed moment.
    pub at: Duration,
    /// How long it had been answering; zero if it never did.
    pub ready_for: Duration,
}

/// What to do after a death.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// Start it again after this pause.
    After(Duration),
    /// It died this often, this fast: somebody must look.
    GiveUp {
        /// How often.
        deaths: usize,
        /// Between the first of them and now.
        within: Duration,
    },
}

/// Decides after the last death of `history` (oldest first). `jitter` is a random number from 0 to
/// 1; it lengthens the pause by up to a quarter, so that parts that fell together do not keep
/// rising and falling together.
pub fn decide(history: &[Death], now: Duration, jitter: f64) -> Restart {
    let counted = counted(history, now);
    let unstable = counted.iter().filter(|death| death.ready_for < STABLE).count();
    if unstable >= MOST_DEATHS {
        let first = counted[counted.len() - unstable];
        return Restart::GiveUp { deaths: unstable, within: now.saturating_sub(first.at) };
    }
    let doublings = counted.len().saturating_sub(1).min(16) as u32;
    let pause = FIRST_PAUSE.saturating_mul(1 << doublings).min(LONGEST_PAUSE);
    Restart::After(pause.mul_f64(1.0 + jitter.clamp(0.0, 1.0) / 4.0))
}

/// The deaths that still say something: recent, and since the part last was stable. A death after
/// a stable stretch is itself the first of a new row.
fn counted(history: &[Death], now: Duration) -> &[Death] {
    let fresh = history.iter().position(|d| now.saturating_sub(d.at) <= WINDOW);
    let recent = &history[fresh.unwrap_or(history.len())..];
    let stable = recent.iter().rposition(|d| d.ready_for >= STABLE).unwrap_or(0);
    &recent[stable..]
}

/// Forgets what [`decide`] would not look at, so that a history stays short for years.
pub fn forget(history: &mut Vec<Death>, now: Duration) {
    let keep = counted(history, now).len();
    history.drain(..history.len() - keep);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lives of these lengths (seconds until ready, seconds ready), one after another, with the
    /// pauses that are decided between them. Gives the pauses, and when it gave up.
    fn simulate(lives: impl IntoIterator<Item = (f64, f64)>) -> (Vec<Duration>, Option<Duration>) {
        let (mut now, mut history, mut pauses) = (Duration::ZERO, Vec::new(), Vec::new());
        for (starting, ready) in lives {
            let ready = Duration::from_secs_f64(ready);
            now += Duration::from_secs_f64(starting) + ready;
            history.push(Death { at: now, ready_for: ready });
            forget(&mut history, now);
            match decide(&history, now, 0.0) {
                Restart::After(pause) => {
                    pauses.push(pause);
                    now += pause;
                }
                Restart::GiveUp { .. } => return (pauses, Some(now)),
            }
        }
        (pauses, None)
    }

    #[test]
    fn a_part_that_dies_at_once_every_time_is_given_up_after_five_deaths() {
        let (pauses, gave_up) = simulate(std::iter::repeat_n((0.1, 0.0), 100));
        assert_eq!(pauses.len(), MOST_DEATHS - 1);
        assert!(gave_up.unwrap() < Duration::from_secs(10));
    }

    #[test]
    fn pauses_double_up_to_their_cap() {
        let (pauses, gave_up) = simulate(std::iter::repeat_n((1.0, 0.0), 4));
        assert_eq!(pauses, [250, 500, 1000, 2000].map(Duration::from_millis));
        assert!(gave_up.is_none());
        let many: Vec<Death> = (0..4000)
            .map(|i| Death { at: Duration::from_millis(i), ready_for: Duration::ZERO })
            .chain([Death { at: Duration::from_secs(5), ready_for: STABLE }])
            .collect();
        assert_eq!(decide(&many, Duration::from_secs(5), 0.0), Restart::After(FIRST_PAUSE));
    }

    #[test]
    fn a_part_that_dies_once_an_hour_is_always_started_again_at_once() {
        let (pauses, gave_up) = simulate(std::iter::repeat_n((2.0, 3600.0), 1000));
        assert!(gave_up.is_none());
        assert!(pauses.iter().all(|p| *p == FIRST_PAUSE));
    }

    #[test]
    fn a_part_that_takes_minutes_to_fail_every_time_is_given_up_as_well() {
        for minutes in [0.5, 1.0, 5.0] {
            let (pauses, gave_up) = simulate(std::iter::repeat_n((minutes * 60.0, 0.0), 50));
            assert_eq!(pauses.len(), MOST_DEATHS - 1, "{minutes}");
            assert!(gave_up.unwrap() < WINDOW, "{minutes}");
        }
    }

    #[test]
    fn deaths_that_are_hours_apart_are_no_crash_loop_even_when_none_was_stable() {
        let (pauses, gave_up) = simulate(std::iter::repeat_n((7200.0, 20.0), 50));
        assert!(gave_up.is_none());
        assert!(pauses.iter().all(|p| *p == FIRST_PAUSE));
    }

    #[test]
    fn one_stable_stretch_wipes_the_slate() {
        let lives = [(0.1, 0.0); 4].into_iter().chain([(1.0, 31.0)]).chain([(0.1, 0.0); 3]);
        assert!(simulate(lives).1.is_none());
    }

    #[test]
    fn a_part_that_breaks_for_good_after_a_long_good_life_is_given_up_as_well() {
        let lives = [(1.0, 86_400.0)].into_iter().chain(std::iter::repeat_n((0.1, 0.0), 10));
        let (pauses, gave_up) = simulate(lives);
        assert_eq!(pauses.len(), MOST_DEATHS);
        assert!(gave_up.unwrap() < Duration::from_secs(86_400 + 15));
    }

    #[test]
    fn jitter_lengthens_a_pause_by_a_quarter_at_most() {
        let history = [Death { at: Duration::ZERO, ready_for: Duration::ZERO }];
        let pause = |jitter| match decide(&history, Duration::ZERO, jitter) {
            Restart::After(pause) => pause,
            other => panic!("{other:?}"),
        };
        assert_eq!(pause(0.0), FIRST_PAUSE);
        assert_eq!(pause(1.0), FIRST_PAUSE.mul_f64(1.25));
        assert_eq!(pause(f64::MAX), pause(1.0));
    }
}
