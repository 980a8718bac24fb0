//! One file for each thing that can be wrong. A check is a function from what was seen to issues; it asks nobody anything.

mod alerts;
mod backup;
mod battery;
mod certificate;
mod clock;
mod disk_health;
mod disk_space;
mod gpu_fault;
mod gpu_heat;
mod gpu_memory;
mod memory;
mod model;
mod outside;
mod part;
mod queue;
mod spare;
mod stewards;
mod update;
mod uplink;
mod weights;

pub use disk_space::forecast;

use polder_control::{Check, Fix, Issue, IssueId, Severity};

use crate::seen::Seen;

pub(crate) const MINUTE: i64 = 60;
pub(crate) const HOUR: i64 = 60 * MINUTE;
pub(crate) const DAY: i64 = 24 * HOUR;
const GIB: u64 = 1 << 30;

/// Everything that is wrong with what was seen.
pub fn all(seen: &Seen) -> Vec<Issue> {
    let checks: [fn(&Seen) -> Vec<Issue>; 20] = [
        gpu_fault::check,
        gpu_memory::check,
        gpu_heat::check,
        memory::check,
        disk_health::check,
        disk_space::check,
        clock::check,
        certificate::check,
        part::check,
        queue::check,
        update::check,
        weights::check,
        uplink::check,
        outside::check,
        battery::check,
        backup::check,
        spare::check,
        alerts::check,
        stewards::check,
        model::check,
    ];
    checks.iter().flat_map(|check| check(seen)).collect()
}

/// An issue without a fix that makes no update unsafe.
fn issue(check: Check, on: &str, severity: Severity, what: String, advice: &str) -> Issue {
    Issue {
        id: IssueId { check, on: on.to_owned() },
        severity,
        what,
        advice: advice.to_owned(),
        fix: None,
        unsafe_to_update: false,
    }
}

fn with_fix(issue: Issue, fix: Fix) -> Issue {
    Issue { fix: Some(fix), ..issue }
}

/// A span as people say it.
pub fn span(seconds: i64) -> String {
    let (count, unit) = match seconds.max(0) {
        s if s >= 2 * DAY => (s / DAY, "days"),
        s if s >= 2 * HOUR => (s / HOUR, "hours"),
        s if s >= 2 * MINUTE => (s / MINUTE, "minutes"),
        s => (s, if s == 1 { "second" } else { "seconds" }),
    };
    format!("{count} {unit}")
}

/// Bytes as people say them.
fn size(bytes: u64) -> String {
    match bytes {
        b if b >= 10 * GIB => format!("{} GiB", b / GIB),
        b if b >= GIB => format!("{:.1} GiB", b as f64 / GIB as f64),
        b => format!("{} MiB", b >> 20),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::seen::*;

    #[test]
    fn a_box_on_which_nothing_was_seen_has_no_issue() {
        assert_eq!(all(&Seen { parts: Some(Vec::new()), ..Seen::default() }), []);
    }

    #[test]
    fn spans_are_said_as_people_say_them() {
        let said: Vec<_> = [1, 59, 3600, 7200, 3 * DAY].map(span).into();
        assert_eq!(said, ["1 second", "59 seconds", "60 minutes", "2 hours", "3 days"]);
    }

    proptest! {
        #[test]
        fn no_numbers_make_a_check_panic_and_no_issue_is_told_twice(
            now in any::<i64>(), free in any::<u64>(), total in any::<u64>(),
            before in prop::collection::vec((any::<i64>(), any::<u64>()), 0..20),
            until in any::<i64>(), from in any::<i64>(), temperature in any::<f64>(), code in any::<u32>(),
            waiting in any::<u64>(), jumped in any::<i64>(), charge in any::<u8>(),
        ) {
            let seen = Seen {
                now,
                cards: Some(vec![Card {
                    temperature: Some(temperature), slows_at: Some(temperature), too_hot: true,
                    uncorrected: Some(waiting), corrected: Some(waiting), ..Card::default()
                }]),
                kernel: Some(vec![
                    KernelEvent { at: from, what: KernelWord::Xid { bus: "0".into(), code } };
                    3
                ]),
                drives: Some(vec![Drive { bad_places: waiting, worn: Some(free), ..Drive::default() }]),
                space: Some(Space { free, total, before }),
                memory: Some(HostMemory { total, available: free }),
                clock: Clock {
                    synchronised: Some(false), unsynchronised_since: Some(from),
                    jumped: Some(jumped), jumped_at: Some(until),
                },
                certificates: Some(vec![Certificate { on: "x".into(), authority: true, from, until }]),
                queues: vec![Queue { engine: "fast".parse().unwrap(), waiting, since: from }],
                battery: Some(polder_control::BatterySeen {
                    charge: Some(charge), installed: Some(from), tested: Some(until), ..Default::default()
                }),
                backup: Some(polder_control::BackupSeen {
                    to: Some("x".into()), last: Some(from), drill: Some(until), ..Default::default()
                }),
                switch: Some(SwitchSeen { alias: "house".into(), model: "m".into(), at: until }),
                ..Seen::default()
            };
            let issues = all(&seen);
            let ids: std::collections::BTreeSet<_> = issues.iter().map(|i| i.id.clone()).collect();
            prop_assert_eq!(ids.len(), issues.len());
            for issue in &issues {
                prop_assert!(!issue.what.ends_with('.') && !issue.advice.ends_with('.'));
            }
        }
    }
}
