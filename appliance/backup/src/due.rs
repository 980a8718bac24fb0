use crate::Record;

/// Seconds between two backups, and between a failed try and the next one.
const HOUR: i64 = 3600;
const AGAIN: i64 = 600;
/// Seconds between two backups over a way that is paid for by what goes through it.
const DAY: i64 = 24 * HOUR;
/// Seconds between two drills.
const WEEK: i64 = 7 * DAY;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Make a backup.
    Backup,
    /// Restore the last one for a trial.
    Drill,
}

/// What is due at this moment, of a box whose site names a place. `now` is in Unix seconds; a clock that was set back makes due what lies
/// in its future. `metered`: it goes over a way out that is paid for by what goes through it. Then a day may pass between two backups, and no more than
/// that is ever lost; a drill waits for another way.
pub fn due(record: &Record, now: i64, metered: bool) -> Option<Due> {
    let every = if metered { DAY } else { HOUR };
    record.kit_confirmed?;
    let passed = |since: i64, time: i64| now >= since.saturating_add(time) || now < since;
    // Old backups that could not be removed are no reason to make new ones: the next hour's tries that again.
    let tried = record.failed.as_ref().filter(|failed| !failed.thinning).map(|failed| failed.at);
    match (&record.saved, tried) {
        (_, Some(tried)) if passed(tried, AGAIN) => return Some(Due::Backup),
        (_, Some(_)) => {}
        (None, None) => return Some(Due::Backup),
        (Some(saved), None) if passed(saved.at, every) => return Some(Due::Backup),
        _ => {}
    }
    if metered {
        return None;
    }
    record.saved.as_ref()?;
    let held = record.drill.as_ref().map(|drill| drill.at);
    held.is_none_or(|held| passed(held, WEEK)).then_some(Due::Drill)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Drill, Failure, Saved};

    fn saved(at: i64) -> Option<Saved> {
        let id = "x".to_owned();
        Some(Saved { at, id, files: 1, bytes: 1, added: 1, milliseconds: 1, thinned: true })
    }

    #[test]
    fn nothing_is_due_before_the_key_is_known_to_be_on_paper() {
        assert_eq!(due(&Record::default(), 1_000_000, false), None);
        let record = Record { kit_confirmed: Some(1), ..Record::default() };
        assert_eq!(due(&record, 1_000_000, false), Some(Due::Backup));
    }

    #[test]
    fn over_a_metered_way_a_day_may_pass_and_drills_wait() {
        let record =
            Record { kit_confirmed: Some(1), saved: saved(1_000_000), ..Record::default() };
        assert_eq!(due(&record, 1_000_000 + HOUR, true), None);
        assert_eq!(due(&record, 1_000_000 + HOUR - 1, false), Some(Due::Drill));
        assert_eq!(due(&record, 1_000_000 + DAY, true), Some(Due::Backup));
    }

    #[test]
    fn a_failed_backup_is_tried_again_sooner_and_a_clock_set_back_stops_nothing() {
        let drill = Some(Drill { at: 900_000, found: Ok("well".to_owned()) });
        let mut record =
            Record { kit_confirmed: Some(1), saved: saved(1_000_000), drill, failed: None };
        assert_eq!(due(&record, 1_000_000 + HOUR - 1, false), None);
        assert_eq!(due(&record, 1_000_000 + HOUR, false), Some(Due::Backup));
        assert_eq!(due(&record, 5, false), Some(Due::Backup));
        record.failed = Some(Failure { at: 1_001_000, why: "away".to_owned(), thinning: false });
        assert_eq!(due(&record, 1_001_000 + AGAIN - 1, false), None);
        assert_eq!(due(&record, 1_001_000 + AGAIN, false), Some(Due::Backup));
    }

    #[test]
    fn a_failed_removal_of_old_backups_makes_no_new_ones_before_the_hour() {
        let failed = Some(Failure { at: 1_000_001, why: "locked".to_owned(), thinning: true });
        let drill = Some(Drill { at: 900_000, found: Ok("well".to_owned()) });
        let record = Record { kit_confirmed: Some(1), saved: saved(1_000_000), drill, failed };
        assert_eq!(due(&record, 1_000_000 + AGAIN + 1, false), None);
        assert_eq!(due(&record, 1_000_000 + HOUR, false), Some(Due::Backup));
    }

    /// A year in steps of ten minutes, with what is due done at once; the clock is set back an hour in its middle.
    #[test]
    fn in_a_year_there_are_as_many_backups_as_hours_and_as_many_drills_as_weeks() {
        let mut record = Record { kit_confirmed: Some(0), ..Record::default() };
        let (mut backups, mut drills) = (0, 0);
        let year = 366 * 24 * HOUR;
        let mut now = 1_700_000_000;
        for step in 0..year / 600 {
            now += 600;
            if step == year / 1200 {
                now -= HOUR;
            }
            while let Some(what) = due(&record, now, false) {
                match what {
                    Due::Backup => (backups, record.saved) = (backups + 1, saved(now)),
                    Due::Drill => {
                        drills += 1;
                        record.drill = Some(Drill { at: now, found: Ok(String::new()) });
                    }
                }
            }
        }
        assert!((366 * 24 - 2..=366 * 24 + 2).contains(&backups), "{backups}");
        assert!((52..=54).contains(&drills), "{drills}");
    }
}
