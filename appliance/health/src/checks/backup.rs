use polder_control::{Check, Issue, Severity};

use super::{DAY, issue, span};
use crate::seen::Seen;

/// Backups are made hourly and drills weekly.
const LATE: i64 = DAY;
const VERY_LATE: i64 = 7 * DAY;
const UNPROVED: i64 = 21 * DAY;
/// A new box has other things to do first.
const NO_PLACE: i64 = 3 * DAY;
const NO_PLACE_YET: i64 = 14 * DAY;
/// A drill fetches a whole copy: where that is paid by its amount, the box waits for another way, and somebody should try it now and then.
const UNPROVED_BY_METER: i64 = 90 * DAY;
/// The first drill is due with the first backup.
const NO_DRILL: i64 = 10 * DAY;

/// How old the last copy is, and when one was last restored to see whether it can be.
pub(super) fn check(seen: &Seen) -> Vec<Issue> {
    let Some(backup) = &seen.backup else { return Vec::new() };
    let Some(to) = &backup.to else { return nowhere(seen).into_iter().collect() };
    let why = |why: &Option<String>| {
        why.as_ref().map(|why| format!(": {}", why.trim_end_matches('.'))).unwrap_or_default()
    };
    let advice = "Look whether the spare box or the disk is there and turned on, and whether it has room; then make a backup by hand to see what it says";
    let age = backup.last.map(|last| seen.now.saturating_sub(last));
    let copies = match age {
        None => Some((
            Severity::Warning,
            format!("there is no backup on {to} yet{}", why(&backup.failed)),
        )),
        Some(age) if age > LATE => {
            let severity = if age > VERY_LATE { Severity::Urgent } else { Severity::Warning };
            Some((
                severity,
                format!("the last backup on {to} is {} old{}", span(age), why(&backup.failed)),
            ))
        }
        Some(_) => None,
    };
    let unproved = backup.drill.map(|drill| seen.now.saturating_sub(drill));
    let never = seen.unproved.map(|since| seen.now.saturating_sub(since));
    let never = never.filter(|age| *age > NO_DRILL);
    let drill = match (&backup.drill_failed, unproved, never) {
        (Some(_), ..) => Some((
            Severity::Urgent,
            format!(
                "the last backup could not be restored when that was tried{}",
                why(&backup.drill_failed)
            ),
        )),
        // It rightly waits; but who pays for every copy should not trust them for ever.
        (None, age, never) if backup.metered => {
            let age = age.or(never).filter(|age| *age > UNPROVED_BY_METER);
            let what = |age| {
                format!(
                    "no backup has been restored for a trial for {}: the way to {to} is paid by its amount, and the box waits for one that is not",
                    span(age)
                )
            };
            age.map(|age| (Severity::Notice, what(age)))
        }
        (None, Some(age), _) if age > UNPROVED => Some((
            Severity::Warning,
            format!("nobody has tried for {} whether a backup can be restored", span(age)),
        )),
        (None, None, Some(age)) => {
            let severity = if age > UNPROVED { Severity::Warning } else { Severity::Notice };
            Some((
                severity,
                format!(
                    "there have been backups for {}, and none was ever restored for a trial",
                    span(age)
                ),
            ))
        }
        _ => None,
    };
    let by_meter = "Press “Restore the newest for a trial” on the page Backups once it may cost what a whole copy costs";
    let drill_advice =
        if backup.metered && backup.drill_failed.is_none() { by_meter } else { advice };
    let told = |on, advice, (severity, what): (Severity, String)| {
        issue(Check::Backup, on, severity, what, advice)
    };
    let copies = copies.map(|issue| told("the copies", advice, issue));
    let disk = backup.away.as_ref().map(|why| {
        let what = format!("no backup can be made: {}", why.trim_end_matches('.'));
        let advice = "Put the disk right, or plug it in again: the next backup goes there by itself. Or choose another place on the page Backups";
        told("the disk", advice, (Severity::Warning, what))
    });
    let drill = drill.map(|issue| told("the drill", drill_advice, issue));
    disk.into_iter().chain(copies).chain(drill).collect()
}

/// A collective lives with the box, and nobody has said where backups go. A trial has nothing to lose.
fn nowhere(seen: &Seen) -> Option<Issue> {
    let age = seen.now.saturating_sub(seen.lived_in?);
    let severity = match age {
        age if age > NO_PLACE_YET => Severity::Warning,
        age if age > NO_PLACE => Severity::Notice,
        _ => return None,
    };
    let what = "nobody has said where backups go: when the disk dies, everybody's keys, settings and accounts die with it".to_owned();
    let advice = "Name a place on the page Backups: a second box, a disk on USB or a server. The page has you print the emergency kit first, without which nobody reads a backup";
    Some(issue(Check::Backup, "the place", severity, what, advice))
}

#[cfg(test)]
mod tests {
    use polder_control::BackupSeen;

    use super::*;

    fn told(
        last: Option<i64>,
        drill: Option<i64>,
        drill_failed: Option<&str>,
    ) -> Vec<(String, Severity)> {
        let drill_failed = drill_failed.map(str::to_owned);
        let to = Some("the spare elm".to_owned());
        let backup = Some(BackupSeen { to, last, drill, drill_failed, ..BackupSeen::default() });
        let now = 100 * DAY;
        let issues = check(&Seen { now, backup, ..Seen::default() });
        issues.into_iter().map(|i| (i.id.on, i.severity)).collect()
    }

    #[test]
    fn a_box_that_people_live_with_is_asked_for_a_place_gently_at_first_and_a_trial_is_not() {
        let now = 100 * DAY;
        let told = |lived_in: Option<i64>| {
            let backup = Some(BackupSeen::default());
            let issues = check(&Seen { now, backup, lived_in, ..Seen::default() });
            issues.first().map(|issue| issue.severity)
        };
        assert_eq!(told(None), None);
        assert_eq!(told(Some(98 * DAY)), None);
        assert_eq!(told(Some(96 * DAY)), Some(Severity::Notice));
        assert_eq!(told(Some(80 * DAY)), Some(Severity::Warning));
    }

    #[test]
    fn backups_of_which_none_was_ever_restored_are_told() {
        let now = 100 * DAY;
        let told = |since: i64| {
            let backup =
                BackupSeen { to: Some("elm".into()), last: Some(now), ..BackupSeen::default() };
            let seen = Seen { now, backup: Some(backup), unproved: Some(since), ..Seen::default() };
            check(&seen).first().map(|issue| (issue.id.on.clone(), issue.severity))
        };
        assert_eq!(told(95 * DAY), None);
        assert_eq!(told(85 * DAY), Some(("the drill".to_owned(), Severity::Notice)));
        assert_eq!(told(70 * DAY), Some(("the drill".to_owned(), Severity::Warning)));
    }

    #[test]
    fn a_disk_that_was_pulled_out_is_told_before_its_backups_are_old() {
        let now = 100 * DAY;
        let backup = BackupSeen {
            away: Some("the disk SAFE is not plugged in; plug it in".into()),
            to: Some("the disk SAFE".into()),
            last: Some(now),
            drill: Some(now),
            ..BackupSeen::default()
        };
        let issues = check(&Seen { now, backup: Some(backup), ..Seen::default() });
        assert_eq!(issues.len(), 1);
        assert_eq!((issues[0].id.on.as_str(), issues[0].severity), ("the disk", Severity::Warning));
        assert!(issues[0].what.contains("the disk SAFE is not plugged in"), "{}", issues[0].what);
    }

    #[test]
    fn no_drill_is_missed_where_it_would_be_paid_by_its_amount_until_it_is_very_late() {
        let now = 200 * DAY;
        let told = |drill: Option<i64>, unproved: Option<i64>, drill_failed: Option<String>| {
            let to = Some("the server far.example.org".to_owned());
            let copies =
                BackupSeen { to, last: Some(now), drill, drill_failed, ..BackupSeen::default() };
            let backup = Some(BackupSeen { metered: true, ..copies });
            let issues = check(&Seen { now, backup, unproved, ..Seen::default() });
            issues.first().map(|issue| (issue.severity, issue.advice.contains("for a trial")))
        };
        assert_eq!(told(Some(now - 60 * DAY), None, None), None);
        assert_eq!(told(None, Some(now - 60 * DAY), None), None);
        assert_eq!(told(Some(now - 100 * DAY), None, None), Some((Severity::Notice, true)));
        assert_eq!(told(None, Some(now - 100 * DAY), None), Some((Severity::Notice, true)));
        let failed = Some("a file is missing".to_owned());
        assert_eq!(told(Some(now), None, failed), Some((Severity::Urgent, false)));
    }

    #[test]
    fn a_late_backup_a_missing_one_and_one_that_cannot_be_restored_are_told() {
        let fresh = Some(100 * DAY - 3600);
        assert_eq!(told(fresh, fresh, None), []);
        assert_eq!(told(None, None, None), [("the copies".to_owned(), Severity::Warning)]);
        assert_eq!(
            told(Some(98 * DAY), fresh, None),
            [("the copies".to_owned(), Severity::Warning)]
        );
        assert_eq!(
            told(Some(80 * DAY), fresh, None),
            [("the copies".to_owned(), Severity::Urgent)]
        );
        assert_eq!(
            told(fresh, Some(70 * DAY), None),
            [("the drill".to_owned(), Severity::Warning)]
        );
        let failed = told(fresh, fresh, Some("a file is missing."));
        assert_eq!(failed, [("the drill".to_owned(), Severity::Urgent)]);
    }
}
