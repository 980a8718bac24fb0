use polder_control::{Check, Issue, Severity, SpareStatus};

use super::{DAY, HOUR, MINUTE, issue, size, span};
use crate::seen::Seen;

/// A restart of either box takes a few minutes.
const SILENT: i64 = 10 * MINUTE;
const VERY_SILENT: i64 = DAY;
/// Backups are sent every hour, over a metered way once a day.
const LATE: i64 = DAY + 3 * HOUR;
const GIB: u64 = 1 << 30;

/// Whether the two boxes hear each other, whether the spare has room and fresh backups, whether what it keeps can be restored, and whether the
/// audit trail still is what it keeps of it.
pub(super) fn check(seen: &Seen) -> Vec<Issue> {
    let Some(spare) = &seen.spare else { return Vec::new() };
    let Some(peer) = &spare.peer else { return alone(spare).into_iter().collect() };
    let who = match spare.is_spare {
        true => format!("the main box {}", peer.name),
        false => format!("the spare {}", peer.name),
    };
    let told = |on: &str, severity, what, advice: &str| {
        Some(issue(Check::Spare, on, severity, what, advice))
    };
    let silence = spare.silent.filter(|seconds| *seconds >= SILENT).and_then(|seconds| {
        let severity = if seconds >= VERY_SILENT { Severity::Urgent } else { Severity::Warning };
        let why = spare.trouble.as_ref().map(|why| format!(": {}", why.trim_end_matches('.')));
        let what = format!("nothing was heard of {who} for {}{}", span(seconds), why.unwrap_or_default());
        told("the link", severity, what, "Look whether the other box is on and on the network; if it was set up anew, let the two forget each other on the page Spare and pair them again")
    });
    let full = spare.room.filter(|(used, most, free)| {
        let left = most.saturating_sub(*used).min(*free);
        left < most / 10 || left < GIB
    });
    let full = full.and_then(|(used, most, free)| {
        let left = most.saturating_sub(used).min(free);
        let what = format!("the spare has room for {} of backups more", size(left));
        told("the room", Severity::Warning, what, "Let it give more of its disk on its page Spare, or remove there what former main boxes left")
    });
    let late = spare.backup.filter(|at| seen.now.saturating_sub(*at) > LATE);
    let late = late.and_then(|at| {
        let what = format!("the last backup on the spare is {} old", span(seen.now.saturating_sub(at)));
        told("its backups", Severity::Warning, what, "Look on the main box's page Backups whether they go to the spare, and what the last one said")
    });
    let drill = spare.drill.as_ref().and_then(|(_, found)| found.as_ref().err()).and_then(|why| {
        let what = format!("the spare could not restore the newest backup for a trial: {}", why.trim_end_matches('.'));
        told("its trial restore", Severity::Urgent, what, "Make a backup by hand on the main box, so that there is a whole one; if the next trial fails too, let the two forget each other and pair them anew, which begins a new store")
    });
    let trail = spare.truncated.as_ref().and_then(|why| {
        let what = format!("the audit trail is not what the spare keeps of it: {}", why.trim_end_matches('.'));
        told("the audit trail", Severity::Urgent, what, "If the main box was restored from a backup, this is why, and it passes. Otherwise ask every steward who was at the box, and compare with a backup")
    });
    [silence, full, late, drill, trail].into_iter().flatten().collect()
}

/// A box that says that it has a spare and does not know which, as after a restore on another machine.
fn alone(spare: &SpareStatus) -> Option<Issue> {
    (!spare.is_spare).then(|| {
        issue(
            Check::Spare,
            "the link",
            Severity::Warning,
            "this box is to have a spare and is paired with none".to_owned(),
            "Show a code on the spare and type it on this box's page Spare",
        )
    })
}

#[cfg(test)]
mod tests {
    use polder_control::SparePeer;

    use super::*;

    fn told(change: impl Fn(&mut SpareStatus)) -> Vec<(String, Severity)> {
        let now = 100 * DAY;
        let mut spare = SpareStatus {
            peer: Some(SparePeer { name: "ash".into(), ..SparePeer::default() }),
            silent: Some(1),
            room: Some((GIB, 100 * GIB, 200 * GIB)),
            backup: Some(now - HOUR),
            drill: Some((now - DAY, Ok("well".into()))),
            ..SpareStatus::default()
        };
        change(&mut spare);
        let seen = Seen { now, spare: Some(spare), ..Seen::default() };
        check(&seen).into_iter().map(|issue| (issue.id.on, issue.severity)).collect()
    }

    #[test]
    fn silence_a_full_disk_old_backups_a_bad_trial_and_a_trail_cut_off_are_told() {
        use Severity::{Urgent, Warning};
        let one = |on: &str, severity| vec![(on.to_owned(), severity)];
        assert_eq!(told(|_| {}), []);
        assert_eq!(told(|s| s.silent = Some(SILENT)), one("the link", Warning));
        assert_eq!(told(|s| s.silent = Some(VERY_SILENT)), one("the link", Urgent));
        assert_eq!(
            told(|s| s.room = Some((95 * GIB, 100 * GIB, 200 * GIB))),
            one("the room", Warning)
        );
        assert_eq!(told(|s| s.room = Some((GIB, 100 * GIB, GIB / 2))), one("the room", Warning));
        assert_eq!(told(|s| s.backup = Some(98 * DAY)), one("its backups", Warning));
        assert_eq!(
            told(|s| s.drill = Some((1, Err("it has no site.toml".into())))),
            one("its trial restore", Urgent)
        );
        assert_eq!(told(|s| s.truncated = Some("cut".into())), one("the audit trail", Urgent));
        assert_eq!(told(|s| s.peer = None), one("the link", Warning));
        assert_eq!(told(|s| (s.peer, s.is_spare) = (None, true)), []);
    }
}
