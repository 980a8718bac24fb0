use polder_control::{Check, Issue, Severity};

use super::issue;
use crate::seen::Seen;

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
    offer.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seen::UpdateSeen;

    #[test]
    fn an_offer_is_a_notice_and_a_trial_makes_another_update_unsafe() {
        let with = |offer: Option<&str>, trying: Option<&str>| {
            let (offer, trying) = (offer.map(str::to_owned), trying.map(str::to_owned));
            check(&Seen { update: Some(UpdateSeen { offer, trying }), ..Seen::default() })
        };
        assert!(!with(Some("0.2.0"), None)[0].unsafe_to_update);
        assert!(with(Some("0.3.0"), Some("0.2.0"))[0].unsafe_to_update);
        assert_eq!(with(None, None), []);
    }
}
