use polder_control::{Check, Issue, Severity};

use super::{MINUTE, issue, span};
use crate::seen::Seen;

/// An uplink may be away so long without anybody being told.
const BLINK: i64 = 5 * MINUTE;

/// Ways out that do not work. One of several is a warning, all of them are urgent.
pub(super) fn check(seen: &Seen) -> Vec<Issue> {
    let none_works = seen.uplinks.iter().all(|uplink| !uplink.works);
    let lost = seen
        .uplinks
        .iter()
        .filter(|uplink| !uplink.works && seen.now.saturating_sub(uplink.since) > BLINK);
    let told = lost.map(|uplink| {
        let severity = if none_works { Severity::Urgent } else { Severity::Warning };
        let gone = span(seen.now.saturating_sub(uplink.since));
        let what = format!("the uplink {} has not worked for {gone}: {}", uplink.name, uplink.words);
        let advice = "Look at its cable and at the router or modem: pull its plug for a minute. If it stays, call whoever sells that line";
        issue(Check::Uplink, &uplink.name, severity, what, advice)
    });
    told.collect()
}

#[cfg(test)]
mod tests {
    use polder_control::UplinkSeen;

    use super::*;

    #[test]
    fn one_lost_uplink_is_a_warning_and_the_last_one_is_urgent() {
        let uplink = |name: &str, works| UplinkSeen {
            name: name.into(),
            works,
            in_use: works,
            since: 0,
            words: "nobody out there answers".into(),
        };
        let told = |works, now| {
            let uplinks = vec![uplink("fibre", false), uplink("5g", works)];
            check(&Seen { now, uplinks, ..Seen::default() }).first().map(|i| i.severity)
        };
        assert_eq!(told(true, 1000), Some(Severity::Warning));
        assert_eq!(told(false, 1000), Some(Severity::Urgent));
        assert_eq!(told(false, BLINK), None);
    }
}
