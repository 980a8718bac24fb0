use polder_control::{Check, Fix, Issue, Severity};

use super::{DAY, issue, span, with_fix};
use crate::seen::Seen;

/// A server may be away for so long; it is asked once a day.
const UNLOOKED: i64 = 7 * DAY;

/// A newer version, and one that is on trial. While one is, another update would take away what it could go back to.
pub(super) fn check(seen: &Seen) -> Vec<Issue> {
    let Some(update) = &seen.update else { return Vec::new() };
    if let Some(version) = &update.trying {
        let what = format!("Polder {version} is on trial");
        let advice = "Nothing: it stays or goes by itself within half an hour. No other update is taken until then";
        let issue = issue(Check::Update, "the image", Severity::Notice, what, advice);
        return vec![Issue { unsafe_to_update: true, ..issue }];
    }
    let offer = update.offer.iter().map(|version| {
        let what = format!("there is an update: Polder {version}");
        let advice = "Take it on the page Versions when a few minutes without answers are no harm. What runs now is kept, and comes back by itself if the new version can do less";
        issue(Check::Update, "the image", Severity::Notice, what, advice)
    });
    let unlooked = update.unlooked.iter().filter_map(|(age, why)| {
        let what = format!(
            "nobody could look for updates for {}: {}",
            span(*age),
            why.trim_end_matches('.')
        );
        let advice = "Look whether the box reaches the internet and whether the address on the page Versions is right; a stick with an update on it works as well";
        let issue = issue(Check::Update, "looking for updates", Severity::Notice, what, advice);
        (*age > UNLOOKED).then(|| with_fix(issue, Fix::CheckUpdate))
    });
    offer.chain(unlooked).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seen::UpdateSeen;

    #[test]
    fn an_offer_is_a_notice_and_a_trial_makes_another_update_unsafe() {
        let with = |offer: Option<&str>, trying: Option<&str>| {
            let (offer, trying) = (offer.map(str::to_owned), trying.map(str::to_owned));
            let update = Some(UpdateSeen { offer, trying, unlooked: None });
            check(&Seen { update, ..Seen::default() })
        };
        assert!(!with(Some("0.2.0"), None)[0].unsafe_to_update);
        assert!(with(Some("0.3.0"), Some("0.2.0"))[0].unsafe_to_update);
        assert_eq!(with(None, None), []);
    }

    #[test]
    fn updates_that_nobody_could_look_for_are_told_after_a_week_with_a_button() {
        let told = |age: i64| {
            let why = "updates.example.org gave no update: no answer.".to_owned();
            let update = Some(UpdateSeen { unlooked: Some((age, why)), ..UpdateSeen::default() });
            // Whatever the clock says.
            check(&Seen { now: 40 * 365 * DAY, update, ..Seen::default() })
        };
        assert_eq!(told(UNLOOKED), []);
        let issues = told(UNLOOKED + DAY);
        assert!(issues[0].what.starts_with("nobody could look for updates for 8 days"));
        assert_eq!(issues[0].fix, Some(Fix::CheckUpdate));
    }
}
