use polder_control::{Check, Issue, Severity};

use super::{DAY, GIB, HOUR, issue, size, span};
use crate::seen::{Seen, Space};

/// What the database, keys and logs need to go on, whatever the size of the disk.
const LAST: u64 = GIB;
/// Less than this is little.
const LITTLE: u64 = 10 * GIB;
/// A forecast needs to have watched for so long.
const WATCHED: i64 = 6 * HOUR;

/// Room where the box's state is, and when it will be gone if it goes on as in the last days.
pub(super) fn check(seen: &Seen) -> Vec<Issue> {
    let Some(space) = seen.space.as_ref().filter(|space| space.total > 0) else {
        return Vec::new();
    };
    const ON: &str = "the box's disk";
    const ADVICE: &str = "Remove models that nobody uses, or keep less of conversations on disk (both on the page Models). A larger disk is the other way";
    let little = LITTLE.min(space.total / 20);
    let told = |severity, what: String| {
        let unsafe_to_update = space.free < LAST.min(space.total / 50);
        vec![Issue { unsafe_to_update, ..issue(Check::DiskSpace, ON, severity, what, ADVICE) }]
    };
    let free = size(space.free);
    if space.free < LAST.min(space.total / 50) {
        return told(
            Severity::Urgent,
            format!("{ON} is full: {free} are free, and soon nothing can be written down any more"),
        );
    }
    let left = forecast(space, seen.now);
    if let Some(left) = left.filter(|left| *left < 2 * DAY) {
        return told(
            Severity::Urgent,
            format!("{ON} will be full in about {}: {free} are free", span(left)),
        );
    }
    if space.free < little {
        return told(Severity::Warning, format!("{ON} is nearly full: {free} are free"));
    }
    match left.filter(|left| *left < 14 * DAY) {
        Some(left) => told(
            Severity::Warning,
            format!("{ON} will be full in about {}: {free} are free", span(left)),
        ),
        None => Vec::new(),
    }
}

/// Seconds until nothing is free, by the straight line that fits best what was free before (least squares). None where it
/// does not become less, where too little was watched, or where it is farther than anybody can see. One import does not count as
/// a trend: the line has to say so and the last half of the time alone as well.
pub fn forecast(space: &Space, now: i64) -> Option<i64> {
    let points: Vec<(f64, f64)> = space
        .before
        .iter()
        .filter(|(at, _)| *at <= now)
        .map(|(at, free)| ((now.saturating_sub(*at)) as f64, *free as f64))
        .collect();
    let watched = points.iter().map(|(ago, _)| *ago).fold(0.0, f64::max);
    if points.len() < 6 || watched < WATCHED as f64 {
        return None;
    }
    let late: Vec<_> = points.iter().copied().filter(|(ago, _)| *ago <= watched / 2.0).collect();
    // Bytes that are lost each second.
    let speed = slope(&points)?.min(slope(&late)?);
    let left = space.free as f64 / speed;
    (speed > 0.0 && left < (365 * DAY) as f64).then_some(left as i64)
}

/// How much the second value grows with the first.
fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let count = points.len() as f64;
    let mean = |pick: fn(&(f64, f64)) -> f64| points.iter().map(pick).sum::<f64>() / count;
    let (x, y) = (mean(|p| p.0), mean(|p| p.1));
    let spread: f64 = points.iter().map(|p| (p.0 - x) * (p.0 - x)).sum();
    let together: f64 = points.iter().map(|p| (p.0 - x) * (p.1 - y)).sum();
    (spread > 0.0).then(|| together / spread).filter(|slope| slope.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;

    /// A disk of 1 TiB that lost `per_day` bytes a day for `days`.
    fn shrinking(free: u64, per_day: u64, days: i64) -> Seen {
        let ago = |hours: i64| (NOW - hours * HOUR, free + per_day * hours as u64 / 24);
        let before = (0..=days * 24).rev().map(ago).collect();
        Seen { now: NOW, space: Some(Space { free, total: 1024 * GIB, before }), ..Seen::default() }
    }

    #[test]
    fn a_disk_that_fills_is_told_with_the_day() {
        let seen = shrinking(100 * GIB, 10 * GIB, 7);
        let left = forecast(seen.space.as_ref().unwrap(), NOW).unwrap();
        assert!((left - 10 * DAY).abs() < DAY / 2, "{left}");
        let issues = check(&seen);
        assert_eq!(issues[0].severity, Severity::Warning);
        assert!(
            issues[0].what.contains("full in about 10 days") || issues[0].what.contains("9 days")
        );
        assert!(!issues[0].unsafe_to_update);
        assert_eq!(check(&shrinking(100 * GIB, 100 * GIB, 7))[0].severity, Severity::Urgent);
    }

    #[test]
    fn one_import_and_a_short_watch_are_no_trend() {
        let mut seen = shrinking(400 * GIB, 0, 7);
        let space = seen.space.as_mut().unwrap();
        // A model of 300 GiB came five days ago.
        space
            .before
            .iter_mut()
            .filter(|(at, _)| *at < NOW - 5 * DAY)
            .for_each(|b| b.1 += 300 * GIB);
        assert_eq!(forecast(space, NOW), None);
        assert_eq!(check(&seen), []);
        let mut short = shrinking(100 * GIB, 900 * GIB, 1);
        short.space.as_mut().unwrap().before.retain(|(at, _)| *at > NOW - 3 * HOUR);
        assert_eq!(check(&short), []);
    }

    #[test]
    fn a_full_disk_makes_an_update_unsafe_and_a_nearly_full_one_does_not() {
        let full = check(&shrinking(GIB / 2, 0, 1));
        assert!(full[0].unsafe_to_update && full[0].severity == Severity::Urgent);
        let nearly = check(&shrinking(8 * GIB, 0, 1));
        assert!(!nearly[0].unsafe_to_update && nearly[0].severity == Severity::Warning);
        assert_eq!(check(&shrinking(200 * GIB, 0, 1)), []);
    }
}
