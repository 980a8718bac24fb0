use jiff::Timestamp;
use jiff::tz::TimeZone;
use maud::{Markup, html};

/// `94 MiB`: three figures at most, powers of 1024.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (n as f64, 0);
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let places = usize::from(unit > 0 && value < 10.0);
    format!("{value:.places$} {}", UNITS[unit])
}

/// `1,234,567`, as in the planner's formulas.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() * 2);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `45 s`, `3 min 20 s`, `2 h 5 min`, `4 days`.
pub fn duration(seconds: u64) -> String {
    let two = |big: u64, a: &str, small: u64, b: &str| match small {
        0 => format!("{big} {a}"),
        _ => format!("{big} {a} {small} {b}"),
    };
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => two(seconds / 60, "min", seconds % 60, "s"),
        3600..86400 => two(seconds / 3600, "h", seconds % 3600 / 60, "min"),
        86400..172_800 => "1 day".into(),
        _ => format!("{} days", seconds / 86400),
    }
}

/// `12 MiB/s`.
pub fn per_second(bytes_per_second: f64) -> String {
    format!("{}/s", bytes(bytes_per_second.max(0.0) as u64))
}

/// `23.4 tokens/s`.
pub fn tokens_per_second(rate: f64) -> String {
    let places = usize::from(rate < 100.0 && rate > 0.0);
    format!("{:.places$} tokens/s", rate.max(0.0))
}

/// `42 %`, with a space that does not break.
pub fn percent(fraction: f64) -> String {
    format!("{:.0}\u{a0}%", fraction.clamp(0.0, 1.0) * 100.0)
}

/// A moment, as how long ago or how long until, with the date on hovering.
pub fn when(at: i64, now: i64) -> Markup {
    let (away, future) = (now.abs_diff(at), at > now);
    let date = Timestamp::from_second(at).unwrap_or(Timestamp::UNIX_EPOCH).to_zoned(TimeZone::UTC);
    let words = match away {
        0..45 if future => "in a moment".into(),
        0..45 => "just now".into(),
        45..5400 => ago((away + 30) / 60, "minute", future),
        5400..129_600 => ago((away + 1800) / 3600, "hour", future),
        129_600..3_888_000 => ago((away + 43200) / 86400, "day", future),
        _ => date.strftime("%-d %b %Y").to_string(),
    };
    html! {
        time datetime=(date.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
            title=(date.strftime("%-d %b %Y, %H:%M UTC").to_string()) { (words) }
    }
}

/// [`when`] for a moment written as RFC 3339; text that is none is shown as it is.
pub fn when_rfc3339(at: &str, now: i64) -> Markup {
    match at.parse::<Timestamp>() {
        Ok(at) => when(at.as_second(), now),
        Err(_) => html! { (at) },
    }
}

fn ago(n: u64, unit: &str, future: bool) -> String {
    let s = if n == 1 { "" } else { "s" };
    if future { format!("in {n} {unit}{s}") } else { format!("{n} {unit}{s} ago") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_the_unit_a_person_would_choose() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 KiB"),
            (98_362_432, "94 MiB"),
            (5 << 30, "5.0 GiB"),
            (u64::MAX, "16777216 TiB"),
        ];
        for (n, text) in cases {
            assert_eq!(bytes(n), text);
        }
    }

    #[test]
    fn times_have_two_units_at_most() {
        let cases = [
            (5, "5 s"),
            (60, "1 min"),
            (200, "3 min 20 s"),
            (7500, "2 h 5 min"),
            (90_000, "1 day"),
            (400_000, "4 days"),
        ];
        for (n, text) in cases {
            assert_eq!(duration(n), text);
        }
    }

    #[test]
    fn large_counts_are_grouped_by_three() {
        assert_eq!(count(12), "12");
        assert_eq!(count(1_234_567), "1,234,567");
    }

    #[test]
    fn moments_are_said_as_people_say_them() {
        let words = |at: i64| {
            let text = when(at, 1_000_000_000).into_string();
            text.split_once('>').unwrap().1.trim_end_matches("</time>").to_owned()
        };
        assert_eq!(words(1_000_000_000 - 10), "just now");
        assert_eq!(words(1_000_000_000 - 60), "1 minute ago");
        assert_eq!(words(1_000_000_000 + 7200), "in 2 hours");
        assert_eq!(words(1_000_000_000 - 3 * 86400), "3 days ago");
        assert_eq!(words(0), "1 Jan 1970");
        assert_eq!(when_rfc3339("<b>", 0).into_string(), "&lt;b&gt;");
    }

    proptest::proptest! {
        #[test]
        fn no_number_makes_them_panic(n: u64, f: f64, a: i64, b: i64) {
            let _ = (bytes(n), count(n), duration(n), per_second(f), percent(f), tokens_per_second(f));
            let _ = when(a, b);
        }
    }
}
