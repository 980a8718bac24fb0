//! What is wrong, since when, and what was: pure.

use std::cmp::Reverse;

use polder_control::{Check, Issue, Past, Standing};
use serde::{Deserialize, Serialize};

use crate::checks::DAY;

/// An issue that was not seen for so many seconds is over.
const CALM: i64 = 150;
/// Issues that stand at once; a box with more has one trouble in many places.
const MOST_STANDING: usize = 200;
/// Issues that are over and remembered, and for how long.
const MOST_PAST: usize = 200;
const REMEMBERED: i64 = 180 * DAY;
/// As much of a sentence as is kept.
const LONGEST: usize = 600;

/// What is wrong, and what was. It does not grow: the oldest goes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ledger {
    /// What is wrong now, the most urgent first, then the oldest.
    pub standing: Vec<Standing>,
    /// What was wrong, the last first.
    pub past: Vec<Past>,
}

impl Ledger {
    /// Takes in what was found. What belongs to a check that could not be made (`blind`) is left as it is: nobody knows.
    pub fn take(&mut self, now: i64, found: Vec<Issue>, blind: &[Check]) {
        let mut before = std::mem::take(&mut self.standing);
        for issue in found.into_iter().map(shortened) {
            if self.standing.iter().any(|standing| standing.issue.id == issue.id) {
                continue;
            }
            let known = before.iter().position(|standing| standing.issue.id == issue.id);
            // A clock that was set back must not have it begin in the future.
            let since = known.map_or(now, |at| before.remove(at).since.min(now));
            self.standing.push(Standing { issue, since, gone_since: None });
        }
        for mut gone in before {
            let since = gone.gone_since.map_or(now, |since| since.min(now));
            if blind.contains(&gone.issue.id.check) {
                self.standing.push(gone);
            } else if now.saturating_sub(since) < CALM {
                gone.gone_since = Some(since);
                self.standing.push(gone);
            } else {
                let Issue { id, severity, what, .. } = gone.issue;
                self.past.insert(0, Past { id, severity, what, since: gone.since, until: since });
            }
        }
        self.standing.sort_by_key(|s| (Reverse(s.issue.severity), s.since, s.issue.id.clone()));
        self.standing.truncate(MOST_STANDING);
        self.past.retain(|past| now.saturating_sub(past.until) < REMEMBERED);
        self.past.truncate(MOST_PAST);
    }
}

fn shortened(mut issue: Issue) -> Issue {
    let short = |text: &str| {
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST).collect()
    };
    issue.what = short(&issue.what);
    issue.advice = short(&issue.advice);
    issue
}

#[cfg(test)]
mod tests {
    use polder_control::{IssueId, Severity};
    use proptest::prelude::*;

    use super::*;

    fn found(on: &str, severity: Severity) -> Issue {
        Issue {
            id: IssueId { check: Check::Uplink, on: on.into() },
            severity,
            what: "it is down".into(),
            advice: "look at it".into(),
            fix: None,
            unsafe_to_update: false,
        }
    }

    fn on(ledger: &Ledger) -> Vec<&str> {
        ledger.standing.iter().map(|s| s.issue.id.on.as_str()).collect()
    }

    #[test]
    fn an_issue_stands_once_since_it_began_and_is_over_after_a_calm_while() {
        let mut ledger = Ledger::default();
        ledger.take(0, vec![found("a", Severity::Warning)], &[]);
        ledger.take(60, vec![found("a", Severity::Urgent); 3], &[]);
        assert_eq!((ledger.standing.len(), ledger.standing[0].since), (1, 0));
        assert_eq!(ledger.standing[0].issue.severity, Severity::Urgent);
        ledger.take(120, vec![], &[]);
        assert_eq!(ledger.standing[0].gone_since, Some(120));
        // It blinked.
        ledger.take(180, vec![found("a", Severity::Urgent)], &[]);
        assert_eq!((ledger.standing[0].since, ledger.standing[0].gone_since), (0, None));
        ledger.take(240, vec![], &[]);
        ledger.take(240 + CALM, vec![], &[]);
        assert_eq!((on(&ledger).len(), ledger.past.len()), (0, 1));
        assert_eq!((ledger.past[0].since, ledger.past[0].until), (0, 240));
    }

    #[test]
    fn what_nobody_could_look_at_is_neither_over_nor_new() {
        let mut ledger = Ledger::default();
        ledger.take(0, vec![found("a", Severity::Warning)], &[]);
        ledger.take(100_000, vec![], &[Check::Uplink]);
        assert_eq!(on(&ledger), ["a"]);
        ledger.take(100_060, vec![], &[]);
        assert_eq!(on(&ledger), ["a"]);
        ledger.take(100_060 + CALM, vec![], &[]);
        assert!(on(&ledger).is_empty());
    }

    #[test]
    fn the_most_urgent_comes_first_then_the_oldest() {
        let mut ledger = Ledger::default();
        ledger.take(0, vec![found("old", Severity::Warning)], &[]);
        let now = ["new", "old"].map(|on| found(on, Severity::Warning));
        ledger.take(60, [now.to_vec(), vec![found("worst", Severity::Urgent)]].concat(), &[]);
        assert_eq!(on(&ledger), ["worst", "old", "new"]);
    }

    proptest! {
        #[test]
        fn whatever_comes_and_goes_nothing_grows_and_nothing_begins_in_the_future(
            steps in prop::collection::vec((any::<i32>(), prop::collection::vec(0u16..300, 0..40)), 1..120)
        ) {
            let mut ledger = Ledger::default();
            for (now, which) in steps {
                let now = i64::from(now);
                let all = which.iter().map(|n| found(&n.to_string(), Severity::Warning)).collect();
                ledger.take(now, all, &[]);
                prop_assert!(ledger.standing.len() <= MOST_STANDING && ledger.past.len() <= MOST_PAST);
                let mut ids: Vec<_> = ledger.standing.iter().map(|s| &s.issue.id).collect();
                ids.sort();
                ids.dedup();
                prop_assert_eq!(ids.len(), ledger.standing.len());
                for standing in &ledger.standing {
                    prop_assert!(standing.since <= now || standing.gone_since.is_some());
                }
            }
        }
    }
}
