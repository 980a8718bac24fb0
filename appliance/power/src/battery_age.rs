//! How old a battery is: what a UPS says of it, in the words of its driver, and what a steward says. Pure.

use jiff::civil::{Date, date};

/// No battery of a UPS lives for so many years: some tell the day of their firmware, for ever.
const OLDEST: i64 = 15 * 366 * 86_400;
/// A day begins in Kiribati before it does at the zero meridian.
const DAY: i64 = 86_400;

/// What upsd has the battery's day in.
pub const VARIABLES: [&str; 2] = ["battery.date", "battery.mfr.date"];
/// And that on which the UPS itself was made, which says nothing of a battery that was changed.
pub const MADE: &str = "ups.mfr.date";

/// The day in a driver's words: `2021/09/17`, `2021-09-17`, `08/02/03` and `08/02/2003` with the month first. Nothing where it is none: drivers
/// also say `not set`, `?` and `CPS`.
pub fn day(text: &str) -> Option<Date> {
    let parts: Vec<&str> = text.trim().split(['/', '-', '.']).collect();
    let [first, second, third] = parts[..] else { return None };
    let number = |part: &str| {
        let digits = (1..=4).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
        part.parse::<i16>().ok().filter(|_| digits)
    };
    let (a, b, c) = (number(first)?, number(second)?, number(third)?);
    let (year, month, day) = match (first.len(), third.len()) {
        (4, 1..=2) => (a, b, c),
        (1..=2, 4) => (c, a, b),
        (1..=2, 2) => (if c < 80 { 2000 + c } else { 1900 + c }, a, b),
        _ => return None,
    };
    // Where it cannot be a month, the day was first.
    let (month, day) = if month > 12 { (day, month) } else { (month, day) };
    let day = Date::new(year, i8::try_from(month).ok()?, i8::try_from(day).ok()?).ok()?;
    (date(1990, 1, 1)..=date(2200, 1, 1)).contains(&day).then_some(day)
}

/// The newest of several days: a battery is at most as old as its UPS, a day on which it was changed is later than that on which it was made,
/// and one that nobody ever entered is the oldest of all.
pub fn newest<'a>(said: impl Iterator<Item = &'a str>) -> Option<Date> {
    said.filter_map(day).max()
}

/// When a UPS was made, Unix seconds, by what it says itself, with the same limits.
pub fn made(ups: Option<Date>, now: i64) -> Option<i64> {
    since(ups, None, now)
}

/// Since when the battery is in, Unix seconds: the later of what the UPS says and of what a steward says. Days that lie in the future or before
/// anything lasts are none.
pub fn since(ups: Option<Date>, steward: Option<Date>, now: i64) -> Option<i64> {
    let seconds = |day: Date| {
        let at = day.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second();
        (now - OLDEST..=now + DAY).contains(&at).then_some(at)
    };
    ups.and_then(seconds).max(steward.and_then(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_read_as_drivers_write_them_and_other_words_are_none() {
        for (text, wanted) in [
            ("2021/09/17", date(2021, 9, 17)),
            (" 2021-09-17", date(2021, 9, 17)),
            ("08/02/03", date(2003, 8, 2)),
            ("10/17/96", date(1996, 10, 17)),
            ("17.10.2019", date(2019, 10, 17)),
            ("11/14/2020", date(2020, 11, 14)),
        ] {
            assert_eq!(day(text), Some(wanted), "{text}");
        }
        for text in [
            "CPS",
            "?",
            "not set",
            "",
            "2021",
            "2021/13/45",
            "0000/00/00",
            "1/2/3/4",
            "+021/-9/17",
            "99999/1/1",
            "1970/01/01",
        ] {
            assert_eq!(day(text), None, "{text}");
        }
    }

    #[test]
    fn the_newest_day_counts_whoever_says_it_and_none_in_the_future() {
        let at = |day: Date| day.to_zoned(jiff::tz::TimeZone::UTC).unwrap().timestamp().as_second();
        let now = at(date(2026, 11, 27));
        // APC's day of nobody, as thousands of them say it.
        let ups = newest(["2001/09/25", "2021/05/24", "CPS"].into_iter());
        assert_eq!(ups, Some(date(2021, 5, 24)));
        assert_eq!(since(ups, None, now), Some(at(date(2021, 5, 24))));
        let changed = Some(date(2025, 3, 1));
        assert_eq!(since(ups, changed, now), Some(at(date(2025, 3, 1))));
        assert_eq!(since(Some(date(2026, 1, 2)), changed, now), Some(at(date(2026, 1, 2))));
        assert_eq!(since(Some(date(2001, 9, 25)), None, now), None, "nothing lasts that long");
        assert_eq!(since(Some(date(2027, 9, 25)), changed, now), Some(at(date(2025, 3, 1))));
        assert_eq!(since(None, None, now), None);
    }
}
