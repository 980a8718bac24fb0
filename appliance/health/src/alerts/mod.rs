//! Whom to tell what, and when: pure. How it is sent is in `mail` and `post`.
//!
//! What was told is compared with what stands; the difference is the next letter. So nothing is told twice, a letter that
//! could not be sent is part of the next, and nothing piles up.

mod letter;
mod mail;
mod post;

use polder_control::{IssueId, Severity, Standing};
use polder_site::AlertsFrom;
use serde::{Deserialize, Serialize};

use crate::checks::{DAY, HOUR, MINUTE};
pub(crate) use letter::Letter;
pub(crate) use mail::{MailTrouble, send as send_mail};
pub(crate) use post::{Agent, check_address};

/// Between two letters with something urgent, and between two others.
const SOON: i64 = MINUTE;
const CALMLY: i64 = 10 * MINUTE;
/// Something that is not urgent has to stand for so long.
const A_BLINK: i64 = 2 * MINUTE;
/// Something that comes and goes has to stand for so long at most before it is told again.
const LONGEST_DOUBT: i64 = HOUR;
/// What is urgent is told again while it stands.
const AGAIN: i64 = DAY;
/// The longest pause after failures.
const LONGEST_PAUSE: i64 = HOUR;
/// Things that are remembered as told.
const MOST: usize = 300;

/// What was told in one way, and how that went.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Told {
    said: Vec<Said>,
    /// No letter before this, Unix seconds.
    next: i64,
    /// Failures since the last success.
    failures: u32,
    /// When it last worked, Unix seconds.
    pub worked: Option<i64>,
    /// Since when it does not, Unix seconds, and why not.
    pub failing: Option<(i64, String)>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Said {
    id: IssueId,
    severity: Severity,
    what: String,
    /// When it was told last.
    at: i64,
    /// When "back to normal" was told.
    over: Option<i64>,
    /// How often it began within about a day.
    times: u32,
}

/// What is to be told from this severity on.
pub(crate) fn least(from: AlertsFrom) -> Severity {
    match from {
        AlertsFrom::Notice => Severity::Notice,
        AlertsFrom::Warning => Severity::Warning,
        AlertsFrom::Urgent => Severity::Urgent,
    }
}

impl Told {
    /// The letter that is due now, if one is.
    pub(crate) fn due(&self, standing: &[Standing], least: Severity, now: i64) -> Option<Letter> {
        // A clock that was set back must not keep it silent for long.
        if now < self.next && self.next.saturating_sub(now) <= LONGEST_PAUSE {
            return None;
        }
        let told = standing.iter().filter(|s| s.issue.severity >= least && self.is_news(s, now));
        let begun: Vec<Standing> = told.cloned().collect();
        let stands = |id: &IssueId| standing.iter().any(|s| s.issue.id == *id);
        let over = self.said.iter().filter(|said| said.over.is_none() && !stands(&said.id));
        let over: Vec<(IssueId, String)> = over.map(|s| (s.id.clone(), s.what.clone())).collect();
        let still = standing.iter().filter(|s| s.issue.severity >= least).count();
        (!begun.is_empty() || !over.is_empty()).then_some(Letter { begun, over, still })
    }

    fn is_news(&self, standing: &Standing, now: i64) -> bool {
        if standing.gone_since.is_some() {
            return false;
        }
        let (issue, stood) = (&standing.issue, now.saturating_sub(standing.since));
        match self.said.iter().find(|said| said.id == issue.id) {
            None => issue.severity == Severity::Urgent || stood >= A_BLINK,
            Some(said) if said.over.is_some() => {
                let doubt = A_BLINK.saturating_mul(1 << said.times.min(10)).min(LONGEST_DOUBT);
                stood >= doubt
            }
            Some(said) => {
                let reminder =
                    issue.severity == Severity::Urgent && now.saturating_sub(said.at) >= AGAIN;
                issue.severity > said.severity || reminder
            }
        }
    }

    /// The letter was sent.
    pub(crate) fn sent(&mut self, letter: &Letter, now: i64) {
        for standing in &letter.begun {
            let issue = &standing.issue;
            let before = self.said.iter().position(|said| said.id == issue.id);
            let before = before.map(|at| self.said.remove(at));
            let began_again = before.as_ref().is_some_and(|said| said.over.is_some());
            let times = before.map_or(0, |said| said.times).saturating_add(began_again.into());
            self.said.insert(
                0,
                Said {
                    id: issue.id.clone(),
                    severity: issue.severity,
                    what: issue.what.clone(),
                    at: now,
                    over: None,
                    times,
                },
            );
        }
        for (id, _) in &letter.over {
            if let Some(said) = self.said.iter_mut().find(|said| said.id == *id) {
                said.over = Some(now);
            }
        }
        self.said.retain(|said| {
            said.over.is_none_or(|over| (0..DAY).contains(&now.saturating_sub(over)))
        });
        self.said.truncate(MOST);
        self.next = now.saturating_add(if letter.is_urgent() { SOON } else { CALMLY });
        self.it_worked(now);
    }

    /// It works.
    pub(crate) fn it_worked(&mut self, now: i64) {
        (self.failures, self.worked, self.failing) = (0, Some(now), None);
    }

    /// It could not be sent: it is tried again after a pause that grows.
    pub(crate) fn failed(&mut self, why: &str, now: i64) {
        let pause = MINUTE.saturating_mul(1 << self.failures.min(6)).min(LONGEST_PAUSE);
        self.failures = self.failures.saturating_add(1);
        self.next = now.saturating_add(pause);
        let since = self.failing.as_ref().map_or(now, |(since, _)| (*since).min(now));
        let why = why.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect();
        self.failing = Some((since, why));
    }
}

#[cfg(test)]
mod tests {
    use polder_control::{Check, Issue};
    use proptest::prelude::*;

    use super::*;

    fn standing(on: &str, severity: Severity, since: i64) -> Standing {
        let id = IssueId { check: Check::Uplink, on: on.into() };
        let issue = Issue {
            id,
            severity,
            what: format!("{on} is down"),
            advice: "look at it".into(),
            fix: None,
            unsafe_to_update: false,
        };
        Standing { issue, since, gone_since: None }
    }

    fn due(told: &Told, standing: &[Standing], now: i64) -> Option<Letter> {
        told.due(standing, Severity::Warning, now)
    }

    #[test]
    fn something_is_told_once_and_back_to_normal_once() {
        let (mut told, issue) = (Told::default(), [standing("a", Severity::Warning, 0)]);
        assert!(due(&told, &issue, A_BLINK - 1).is_none());
        let letter = due(&told, &issue, A_BLINK).unwrap();
        told.sent(&letter, A_BLINK);
        for now in (A_BLINK..10 * DAY).step_by(600) {
            assert!(due(&told, &issue, now).is_none(), "{now}");
        }
        let letter = due(&told, &[], 10 * DAY).unwrap();
        assert_eq!((letter.begun.len(), letter.over.len(), letter.still), (0, 1, 0));
        told.sent(&letter, 10 * DAY);
        assert!(due(&told, &[], 10 * DAY + HOUR).is_none());
        // Nothing of it is left a day later.
        told.sent(&Letter::default(), 11 * DAY + 1);
        assert!(told.said.is_empty());
    }

    #[test]
    fn what_is_urgent_is_told_at_once_and_every_day_and_what_gets_worse_again() {
        let mut told = Told::default();
        let mild = [standing("a", Severity::Warning, 0)];
        told.sent(&due(&told, &mild, 600).unwrap(), 600);
        let worse = [standing("a", Severity::Urgent, 0)];
        assert!(due(&told, &worse, 601).is_none(), "no two letters within ten minutes");
        told.sent(&due(&told, &worse, 1200).unwrap(), 1200);
        assert!(due(&told, &worse, 1200 + AGAIN - 1).is_none());
        assert!(due(&told, &worse, 1200 + AGAIN).is_some());
        assert!(due(&Told::default(), &[standing("b", Severity::Urgent, 5000)], 5000).is_some());
    }

    #[test]
    fn what_comes_and_goes_is_told_less_and_less() {
        let (mut told, mut letters, mut since) = (Told::default(), 0, None);
        // A minute's look: five minutes there, five minutes away, for a day.
        for minute in 0..24 * 60 {
            let now = minute * 60;
            let there = minute % 10 < 5;
            since = if there { since.or(Some(now)) } else { None };
            let now_standing: Vec<_> =
                since.map(|since| standing("a", Severity::Warning, since)).into_iter().collect();
            if let Some(letter) = due(&told, &now_standing, now) {
                told.sent(&letter, now);
                letters += 1;
            }
        }
        assert!((2..=8).contains(&letters), "{letters}");
    }

    #[test]
    fn a_letter_that_could_not_be_sent_is_tried_again_later_and_later() {
        let (mut told, issue) = (Told::default(), [standing("a", Severity::Urgent, 0)]);
        let (mut tries, mut now) = (0, 0);
        while now < DAY {
            if due(&told, &issue, now).is_some() {
                tries += 1;
                told.failed("no way\nout", now);
            }
            now += 60;
        }
        assert!((25..=35).contains(&tries), "{tries}");
        assert_eq!(told.failing, Some((0, "no way out".to_owned())));
        told.sent(&due(&told, &issue, now + HOUR).unwrap(), now + HOUR);
        assert_eq!(told.failing, None);
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_make_it_silent() {
        let (mut told, issue) = (Told::default(), [standing("a", Severity::Urgent, 0)]);
        told.failed("x", 1_000_000_000);
        assert!(due(&told, &issue, 1000).is_some());
    }

    proptest! {
        #[test]
        fn nothing_that_comes_makes_it_grow_or_panic(
            steps in prop::collection::vec((any::<i32>(), prop::collection::vec((0u16..900, any::<i32>()), 0..60), any::<bool>()), 1..80)
        ) {
            let mut told = Told::default();
            for (now, which, works) in steps {
                let all: Vec<_> = which.iter()
                    .map(|(n, since)| standing(&n.to_string(), Severity::Urgent, (*since).into())).collect();
                if let Some(letter) = due(&told, &all, now.into()) {
                    if works { told.sent(&letter, now.into()) } else { told.failed("x", now.into()) }
                }
                prop_assert!(told.said.len() <= MOST);
            }
        }
    }
}
