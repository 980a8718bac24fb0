use polder_control::{Check, Issue, Severity};

use super::{HOUR, issue, span};
use crate::seen::Seen;

/// Ways to tell stewards that have not worked for some hours. They may then be told in another way.
pub(super) fn check(seen: &Seen) -> Vec<Issue> {
    let mute = seen.mute.iter().filter(|mute| seen.now.saturating_sub(mute.since) > 3 * HOUR);
    let told = mute.map(|mute| {
        let what = format!(
            "stewards could not be told by {} for {}: {}",
            mute.channel,
            span(seen.now.saturating_sub(mute.since)),
            mute.why.trim_end_matches('.')
        );
        let advice = "Send a test from the page Health; the answer of the other side says what it does not like";
        issue(Check::Alerts, &mute.channel, Severity::Warning, what, advice)
    });
    told.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seen::Mute;

    #[test]
    fn a_way_that_does_not_work_for_hours_is_told() {
        let mute = vec![Mute { channel: "mail".into(), since: 0, why: "no answer.".into() }];
        let told = |now| check(&Seen { now, mute: mute.clone(), ..Seen::default() }).len();
        assert_eq!((told(HOUR), told(4 * HOUR)), (0, 1));
    }
}
