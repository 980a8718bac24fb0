use polder_control::{Check, Issue, Severity};

use super::{DAY, HOUR, MINUTE, issue, span};
use crate::seen::Seen;

/// After a start it takes a while until somebody was asked for the time.
const PATIENCE: i64 = 20 * MINUTE;
/// Fewer seconds are no jump: a clock is put right by a little now and then.
const A_JUMP: u64 = 60;

/// Nobody tells the machine the time, or its clock jumped.
pub(super) fn check(seen: &Seen) -> Vec<Issue> {
    [alone(seen), jumped(seen)].into_iter().flatten().collect()
}

fn alone(seen: &Seen) -> Option<Issue> {
    let since =
        seen.clock.unsynchronised_since.filter(|_| seen.clock.synchronised == Some(false))?;
    let waited = seen.now.saturating_sub(since);
    (waited > PATIENCE).then(|| {
        // A clock alone goes wrong by seconds a day; certificates and sessions bear minutes.
        let severity = if waited > 3 * DAY { Severity::Warning } else { Severity::Notice };
        let what = format!("nobody has told the machine the time for {}", span(waited));
        let advice = "Look whether the box reaches the internet, and whether the router lets NTP (UDP port 123) out. A machine without internet: set its clock in the set-up now and then";
        issue(Check::Clock, "the time", severity, what, advice)
    })
}

fn jumped(seen: &Seen) -> Option<Issue> {
    let (by, at) = (seen.clock.jumped?, seen.clock.jumped_at?);
    let recent = seen.now.saturating_sub(at) < HOUR;
    (by.unsigned_abs() > A_JUMP && recent).then(|| {
        let way = if by > 0 { "forward" } else { "back" };
        let what = format!("the machine's clock was set {way} by {}", span(by.saturating_abs()));
        let advice = "If nobody set it, the small battery on the main board may be empty: it costs little and is replaced with the machine off. Times in the audit trail before and after do not fit together";
        issue(Check::Clock, "the clock", Severity::Warning, what, advice)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seen::Clock;

    fn told(clock: Clock, now: i64) -> Vec<Issue> {
        check(&Seen { now, clock, ..Seen::default() })
    }

    #[test]
    fn a_clock_that_nobody_tells_is_told_after_a_while_and_louder_after_days() {
        let clock =
            Clock { synchronised: Some(false), unsynchronised_since: Some(0), ..Clock::default() };
        assert_eq!(told(clock.clone(), PATIENCE), []);
        assert_eq!(told(clock.clone(), PATIENCE + 1)[0].severity, Severity::Notice);
        assert_eq!(told(clock, 4 * DAY)[0].severity, Severity::Warning);
        // Where nobody can tell, nothing is claimed.
        assert_eq!(told(Clock { unsynchronised_since: Some(0), ..Clock::default() }, DAY), []);
    }

    #[test]
    fn a_jump_is_told_for_an_hour_and_a_small_one_is_none() {
        let by = |jumped| Clock { jumped: Some(jumped), jumped_at: Some(1000), ..Clock::default() };
        assert!(told(by(-7200), 1001)[0].what.contains("back by 2 hours"));
        assert!(told(by(86_400 * 30), 1001)[0].what.contains("forward by 30 days"));
        assert_eq!(told(by(60), 1001), []);
        assert_eq!(told(by(-7200), 1000 + HOUR), []);
    }
}
