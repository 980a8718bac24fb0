//! The monthly test of the battery: when, and what is remembered of it.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::policy::{Rules, Seen};

/// What a UPS calls its short test.
pub const COMMAND: &str = "test.battery.start.quick";

/// Between two tests.
const EVERY: Duration = Duration::from_secs(30 * 24 * 3600);
const DAY: i64 = 24 * 3600;
/// Longer than the record gets in a box's life; what is longer is not read.
const LONGEST: u64 = 256 << 10;
/// Under this charge it is not tested.
const FULL: u8 = 90;

/// Whether to test now. `since_last` is none where none was ever made.
pub fn is_due(rules: &Rules, seen: &Seen, running: Duration, since_last: Option<Duration>) -> bool {
    let calm = |reading: &crate::reading::Reading| {
        reading.flags.on_mains
            && !reading.flags.on_battery
            && !reading.flags.testing
            && !reading.flags.forced
            && reading.charge.is_some_and(|charge| charge >= FULL)
    };
    running >= rules.settled
        && seen.silent < Duration::from_secs(10)
        && seen.on_mains >= rules.calm
        && seen.last.as_ref().is_some_and(calm)
        && since_last.is_none_or(|since| since >= EVERY)
}

/// One test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Test {
    /// When it began, Unix seconds.
    pub at: i64,
    /// What the UPS said of it.
    pub result: String,
}

/// What came of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The battery did what it should.
    Passed,
    /// It did not, or only just.
    Failed,
    /// It was tested, and nobody says how that went.
    Unsaid,
    /// It was not tested.
    None,
}

impl Outcome {
    /// Of `ups.test.result`, in which each of NUT's drivers has its own words: `Done and passed`, `Done and warning`, `Done and error`, `Aborted`,
    /// `No test initiated` (USB and SNMP, in either case); `OK`, `BT` (too little in the battery), `NG` (too much load), `NO` (none made) of an old APC.
    pub fn of(result: &str) -> Self {
        let result = result.trim().to_ascii_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| result.contains(word));
        match result.as_str() {
            "ok" => Self::Passed,
            "bt" | "ng" => Self::Failed,
            "no" | "" => Self::None,
            _ if says(&["no test", "not tested", "not supported", "unsupported"]) => Self::None,
            _ if says(&["fail", "error", "warn", "bad", "replace"]) => Self::Failed,
            _ if says(&["pass"]) => Self::Passed,
            _ => Self::Unsaid,
        }
    }
}

/// What is known of the battery that is in, from tests and from what the UPS says now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// When it was last tested, Unix seconds.
    pub tested: Option<i64>,
    /// What the UPS said, where it failed.
    pub failed: Option<String>,
}

/// What the record (oldest first) and the UPS say of the battery that is in since `since`. A UPS that tests by itself counts as well as a test that the
/// box asked for; after a restart it may know of none any more, and then the record counts.
pub fn known(tests: &[Test], says: Option<&str>, since: Option<i64>) -> Known {
    let of_this = |test: &&Test| since.is_none_or(|since| test.at >= since);
    let made = tests.iter().rev().filter(|test| Outcome::of(&test.result) != Outcome::None);
    let tested = made.clone().find(of_this).map(|test| test.at);
    // What was said on the day on which it was put in was said of the one before.
    let old = |test: &Test| since.is_some_and(|since| test.at < since.saturating_add(DAY));
    let last = made.clone().next();
    let recorded = last.filter(|test| !old(test)).map(|test| test.result.as_str());
    let stale = last.is_some_and(|test| old(test) && says == Some(test.result.as_str()));
    let own = says
        .filter(|says| !stale && matches!(Outcome::of(says), Outcome::Passed | Outcome::Failed));
    let counts = own.or(recorded);
    let failed = counts.filter(|result| Outcome::of(result) == Outcome::Failed);
    Known { tested, failed: failed.map(str::to_owned) }
}

impl Test {
    /// How long before `now` it was. Nothing where it lies in the future: then the clock was wrong, at that time or since, and
    /// a battery must not go untested for years because of it.
    pub fn before(&self, now: i64) -> Option<Duration> {
        u64::try_from(now.saturating_sub(self.at)).ok().map(Duration::from_secs)
    }
}

/// The record of tests, a line of JSON each.
#[derive(Debug, Clone)]
pub struct Record(PathBuf);

impl Record {
    /// In this folder.
    pub fn in_folder(folder: &Path) -> Self {
        Self(folder.join("tests.jsonl"))
    }

    /// All of them, oldest first. A line that was cut short by a power cut is left out of account.
    pub fn all(&self) -> Vec<Test> {
        let text = std::fs::File::open(&self.0).and_then(|file| {
            let mut text = String::new();
            file.take(LONGEST).read_to_string(&mut text).map(|_| text)
        });
        let text = text.unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The last one.
    pub fn last(&self) -> Option<Test> {
        self.all().pop()
    }

    /// Writes one down; on disk when this returns.
    pub fn add(&self, test: &Test) -> io::Result<()> {
        if let Some(folder) = self.0.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut file = std::fs::File::options().create(true).append(true).open(&self.0)?;
        writeln!(file, "\n{}", serde_json::to_string(test)?)?;
        file.sync_data()
    }
}

impl std::fmt::Display for Test {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let day = jiff::Timestamp::from_second(self.at).unwrap_or_default();
        write!(f, "{}: {}", day.strftime("%Y-%m-%d"), self.result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reading::{Flags, Reading};

    fn calm() -> Seen {
        let last = Reading { flags: Flags::parse("OL"), charge: Some(100), ..Reading::default() };
        Seen { last: Some(last), on_mains: Duration::from_secs(9999), ..Seen::default() }
    }

    fn is_due(seen: &Seen, running: Duration, since: Option<Duration>) -> bool {
        let plan = polder_site::PowerPlan::of("ups@localhost".parse().unwrap());
        super::is_due(&Rules::of(&plan), seen, running, since)
    }

    #[test]
    fn the_battery_is_tested_once_a_month_and_only_in_calm() {
        let day = |days: u64| Duration::from_secs(days * 24 * 3600);
        assert!(is_due(&calm(), day(1), None));
        assert!(is_due(&calm(), day(99), Some(day(30))));
        assert!(!is_due(&calm(), day(99), Some(day(29))));
        assert!(!is_due(&calm(), day(1) - Duration::from_secs(1), None), "the first day");
        for (status, charge) in [
            ("OB", Some(100)),
            ("OL", Some(89)),
            ("OL", None),
            ("OL TEST", Some(100)),
            ("FSD OL", Some(100)),
            ("", Some(100)),
        ] {
            let mut seen = calm();
            seen.last = Some(Reading { flags: Flags::parse(status), charge, ..Reading::default() });
            assert!(!is_due(&seen, day(2), None), "{status} {charge:?}");
        }
        let silent = Seen { silent: Duration::from_secs(10), ..calm() };
        assert!(!is_due(&silent, day(2), None));
        assert!(!is_due(&Seen::default(), day(2), None));
    }

    /// A year with a leap day in it, looked at every hour as the watch does it, with the record on disk. In its middle the
    /// clock is in 2060 for a day, and a test is made there.
    #[test]
    fn in_a_year_a_battery_is_tested_every_month_and_a_clock_that_was_wrong_stops_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let record = Record::in_folder(folder.path());
        let hour = Duration::from_secs(3600);
        let (begin, mut tests) = (1_830_297_600, Vec::new());
        for n in 0..366 * 24_u32 {
            let right = begin + i64::from(n) * 3600;
            let wrong = (180 * 24..181 * 24).contains(&n);
            let now = if wrong { right + 32 * 365 * 24 * 3600 } else { right };
            let since = record.last().and_then(|last| last.before(now));
            if is_due(&calm(), hour * n, since) {
                record.add(&Test { at: now, result: "Done and passed".to_owned() }).unwrap();
                tests.push(n / 24);
            }
        }
        assert_eq!(tests, [1, 31, 61, 91, 121, 151, 180, 181, 211, 241, 271, 301, 331, 361]);
        let size = std::fs::metadata(folder.path().join("tests.jsonl")).unwrap().len();
        assert!(size < 2000, "{size}");
    }

    #[test]
    fn what_drivers_say_of_a_test_is_read_in_all_their_words() {
        for (result, outcome) in [
            ("Done and passed", Outcome::Passed),
            ("done and passed", Outcome::Passed),
            ("OK", Outcome::Passed),
            ("Done and warning", Outcome::Failed),
            ("Done and error", Outcome::Failed),
            ("Battery test failed", Outcome::Failed),
            ("BT", Outcome::Failed),
            ("NG", Outcome::Failed),
            ("Aborted", Outcome::Unsaid),
            ("In progress", Outcome::Unsaid),
            ("the UPS does not say how it went", Outcome::Unsaid),
            ("No test initiated", Outcome::None),
            ("NO", Outcome::None),
            ("not tested: upsd says CMD-NOT-SUPPORTED", Outcome::None),
        ] {
            assert_eq!(Outcome::of(result), outcome, "{result}");
        }
    }

    #[test]
    fn a_battery_that_failed_is_known_until_it_passes_or_another_one_is_in() {
        let test = |at, result: &str| Test { at, result: result.to_owned() };
        let failed = [test(100 * DAY, "Done and passed"), test(130 * DAY, "Done and error")];
        let said = |tests: &[Test], says, since| known(tests, says, since).failed.is_some();
        assert_eq!(known(&failed, None, None).tested, Some(130 * DAY));
        assert!(said(&failed, None, None));
        assert!(said(&failed, Some("No test initiated"), None), "it started again and forgot");
        assert!(said(&failed, Some("Done and error"), Some(50 * DAY)));
        assert!(!said(&failed, Some("Done and passed"), None), "somebody pressed its button");
        // Another battery: what was said of the one before counts no more, nor does its test.
        let other = Some(131 * DAY);
        assert_eq!(known(&failed, Some("Done and error"), other), Known::default());
        assert!(!said(&failed, Some("Done and error"), Some(130 * DAY)), "put in on that day");
        assert!(said(&failed, Some("Done and warning"), other), "the new one is no good");
        // What was not tested is no test.
        let refused = [test(DAY, "Done and passed"), test(31 * DAY, "not tested: no")];
        assert_eq!(known(&refused, None, None).tested, Some(DAY));
        assert_eq!(known(&[], Some("BT"), None).failed.as_deref(), Some("BT"));
    }

    #[test]
    fn a_record_that_was_cut_short_is_read_up_to_there() {
        let folder = tempfile::tempdir().unwrap();
        let record = Record::in_folder(&folder.path().join("power"));
        assert_eq!(record.last(), None);
        let test = Test { at: 1_767_225_600, result: "Done and passed".to_owned() };
        record.add(&test).unwrap();
        let path = folder.path().join("power/tests.jsonl");
        let mut file = std::fs::File::options().append(true).open(path).unwrap();
        file.write_all(b"{\"at\": 17").unwrap();
        assert_eq!(record.last(), Some(test.clone()));
        record.add(&Test { result: "Done and failed".to_owned(), ..test }).unwrap();
        assert_eq!(record.last().unwrap().to_string(), "2026-01-01: Done and failed");
    }
}
