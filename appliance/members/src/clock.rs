use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};

/// Where the time comes from.
#[derive(Clone)]
pub struct Clock {
    /// Milliseconds added to the system's time; tests move it.
    ahead: Arc<AtomicI64>,
}

impl Clock {
    /// The machine's own clock.
    pub fn system() -> Self {
        Self { ahead: Arc::default() }
    }

    /// Lets `seconds` pass at once, for everyone who holds a clone of this clock.
    pub fn pass(&self, seconds: i64) {
        self.ahead.fetch_add(seconds.saturating_mul(1000), Ordering::Relaxed);
    }

    /// Unix time in milliseconds.
    pub(crate) fn millis(&self) -> i64 {
        Timestamp::now().as_millisecond() + self.ahead.load(Ordering::Relaxed)
    }

    /// Unix time in seconds.
    pub(crate) fn seconds(&self) -> i64 {
        self.millis().div_euclid(1000)
    }

    /// Today in UTC, `2026-11-23`.
    pub(crate) fn day(&self) -> String {
        self.day_before(0)
    }

    /// The day so many days ago.
    pub(crate) fn day_before(&self, days: i64) -> String {
        let today = self.date();
        today.checked_sub(Span::new().days(days)).unwrap_or(today).to_string()
    }

    /// This month in UTC as a number that grows by one each month.
    pub(crate) fn month(&self) -> i64 {
        let date = self.date();
        i64::from(date.year()) * 12 + i64::from(date.month()) - 1
    }

    /// Such a number as people write it, `2026-11`.
    pub(crate) fn month_in_words(month: i64) -> String {
        format!("{:04}-{:02}", month.div_euclid(12), month.rem_euclid(12) + 1)
    }

    /// Seconds until next month begins in UTC.
    pub(crate) fn seconds_left_in_month(&self) -> u64 {
        let next = self
            .date()
            .last_of_month()
            .tomorrow()
            .and_then(|day| day.to_zoned(TimeZone::UTC))
            .map_or(0, |at| at.timestamp().as_second());
        (next - self.seconds()).max(1) as u64
    }

    fn date(&self) -> Date {
        let at = Timestamp::from_millisecond(self.millis()).unwrap_or(Timestamp::UNIX_EPOCH);
        at.to_zoned(TimeZone::UTC).date()
    }
}
