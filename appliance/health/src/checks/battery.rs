use polder_control::{Check, Issue, Severity};

use super::{DAY, MINUTE, issue, span};
use crate::seen::Seen;

/// Lead batteries last three to five years.
const OLD: i64 = 4 * 365 * DAY;
/// The box tests a battery monthly.
const UNTESTED: i64 = 70 * DAY;
/// A UPS that is plugged in anew, or its machine that is started again, is heard within a few minutes.
const SILENT: u64 = 5 * MINUTE as u64;

/// Mains, and whether the battery would carry the box.
pub(super) fn check(seen: &Seen) -> Vec<Issue> {
    let Some(battery) = &seen.battery else { return unheard(seen).into_iter().collect() };
    let mut issues = Vec::new();
    if battery.on_mains.is_none() {
        issues.extend(unheard(seen));
    }
    if battery.on_mains == Some(false) {
        let charge = battery.charge.map(|c| format!(", which has {c} % left")).unwrap_or_default();
        let what = format!("the mains is away and the box runs from its battery{charge}");
        let advice = "Nothing, if the power comes back soon: the box turns itself off in order before the battery is empty, and on again afterwards";
        let issue = issue(Check::Battery, "the mains", Severity::Urgent, what, advice);
        issues.push(Issue { unsafe_to_update: true, ..issue });
    }
    if let Some(silent) = battery.silent.filter(|silent| *silent > SILENT) {
        let what = format!(
            "the UPS has not been heard for {}, and a power cut would end the box in the middle of what it does",
            span(i64::try_from(silent).unwrap_or(i64::MAX))
        );
        let advice = "Look whether the UPS is on and its cable to this machine is in, at both ends; where another machine listens to it, look whether that one is on. The page Power says what is wrong with hearing it";
        issues.push(issue(Check::Battery, "the UPS", Severity::Warning, what, advice));
    }
    let aged = |since: Option<i64>| since.map(|since| seen.now.saturating_sub(since));
    let told = |severity, what: String| {
        let advice = "Buy a battery of the type that is printed on the UPS, and put it in; most can be changed while the box runs. Then enter the day on the page Power";
        issue(Check::Battery, "the battery", severity, what, advice)
    };
    if battery.replace {
        issues.push(told(Severity::Warning, "the UPS asks for a new battery".to_owned()));
    } else if let Some(why) = &battery.test_failed {
        let what = format!("the battery failed its last test: {}", why.trim_end_matches('.'));
        issues.push(told(Severity::Warning, what));
    } else if let Some(age) = aged(battery.installed).filter(|age| *age > OLD) {
        let what = format!("the battery is {} years old", age / (365 * DAY));
        issues.push(told(Severity::Notice, what));
    } else if let Some(age) =
        aged(battery.made.filter(|_| battery.installed.is_none())).filter(|age| *age > OLD)
    {
        let what = format!(
            "the UPS was made {} years ago, and nobody has said when its battery was changed",
            age / (365 * DAY)
        );
        let advice = "If you know the day, enter it on the page Power. If it is still the first battery, buy one of the type that is printed on the UPS, put it in, and enter that day";
        issues.push(issue(Check::Battery, "the battery", Severity::Notice, what, advice));
    } else if let Some(age) = aged(battery.tested).filter(|age| *age > UNTESTED) {
        let what = format!("the battery was not tested for {}", span(age));
        issues.push(told(Severity::Notice, what));
    }
    issues
}

/// What is known of a power cut in the middle of which the UPS fell silent. That it is silent is an issue of its own; this one is not urgent for ever: no battery
/// lasts for days.
fn unheard(seen: &Seen) -> Option<Issue> {
    let age = seen.now.saturating_sub(seen.mains_away?);
    if age <= i64::try_from(SILENT).unwrap_or(i64::MAX) {
        return None;
    }
    let what = format!("the mains was away when the UPS was last heard, {} ago", span(age));
    let advice = "Look whether there is mains, and whether the UPS is on and its cable to this machine is in, at both ends. Once it is heard this ends by itself";
    let told = |severity, what| issue(Check::Battery, "the mains", severity, what, advice);
    Some(match age <= DAY {
        true => Issue { unsafe_to_update: true, ..told(Severity::Warning, what) },
        false => {
            let lasts = "; no battery lasts that long, so that it is back, or this machine is not on that UPS";
            told(Severity::Notice, what + lasts)
        }
    })
}

#[cfg(test)]
mod tests {
    use polder_control::BatterySeen;

    use super::*;

    fn told(battery: BatterySeen) -> Vec<Issue> {
        check(&Seen { now: 2 * OLD, battery: Some(battery), ..Seen::default() })
    }

    #[test]
    fn no_update_is_taken_while_the_mains_is_away() {
        let away =
            BatterySeen { on_mains: Some(false), charge: Some(71), ..BatterySeen::default() };
        let issues = told(away);
        assert!(issues[0].unsafe_to_update && issues[0].what.contains("71 %"));
        assert_eq!(told(BatterySeen { on_mains: Some(true), ..BatterySeen::default() }), []);
    }

    #[test]
    fn a_power_cut_of_which_nobody_hears_the_end_is_told_as_what_is_known_and_ever_less_loudly() {
        let now = 2 * OLD;
        let told = |age: i64, battery: Option<BatterySeen>| {
            let issues =
                check(&Seen { now, battery, mains_away: Some(now - age), ..Seen::default() });
            let mains = issues.into_iter().find(|issue| issue.id.on == "the mains")?;
            Some((mains.severity, mains.unsafe_to_update, mains.what))
        };
        let silent = || Some(BatterySeen { silent: Some(7200), ..BatterySeen::default() });
        assert_eq!(told(60, silent()), None, "what stands goes on standing for so long");
        for battery in [silent(), None, Some(BatterySeen::default())] {
            let (severity, no_update, what) = told(2 * 3600, battery).unwrap();
            assert_eq!((severity, no_update), (Severity::Warning, true));
            assert_eq!(what, "the mains was away when the UPS was last heard, 2 hours ago");
        }
        let (severity, no_update, what) = told(3 * DAY, silent()).unwrap();
        assert_eq!((severity, no_update), (Severity::Notice, false), "{what}");
        let away = BatterySeen { on_mains: Some(false), ..BatterySeen::default() };
        assert_eq!(told(3 * DAY, Some(away)).unwrap().0, Severity::Urgent);
    }

    #[test]
    fn a_ups_that_is_not_heard_for_minutes_is_told() {
        let silent = |seconds| BatterySeen { silent: Some(seconds), ..BatterySeen::default() };
        assert_eq!(told(silent(SILENT)), []);
        let issues = told(silent(420));
        assert!(issues[0].what.starts_with("the UPS has not been heard for 7 minutes"));
        assert_eq!(issues[0].severity, Severity::Warning);
    }

    #[test]
    fn an_old_an_untested_and_a_failing_battery_are_told_one_at_a_time() {
        let old = BatterySeen { installed: Some(0), tested: Some(0), ..BatterySeen::default() };
        assert_eq!(told(old.clone()).len(), 1);
        assert!(told(old.clone())[0].what.contains("8 years old"));
        let failed = BatterySeen { test_failed: Some("it lasted 12 s".into()), ..old.clone() };
        assert_eq!(told(failed)[0].severity, Severity::Warning);
        assert!(told(old.clone())[0].advice.ends_with("enter the day on the page Power"));
        let made = BatterySeen { made: Some(0), installed: None, ..old.clone() };
        assert!(told(made.clone())[0].what.starts_with("the UPS was made 8 years ago"));
        let changed = BatterySeen { installed: Some(2 * OLD), ..made };
        assert!(told(changed)[0].what.contains("not tested"), "its battery is new");
        let untested = BatterySeen { installed: None, ..old };
        assert!(told(untested)[0].what.contains("not tested"));
    }
}
