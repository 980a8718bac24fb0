//! Numbers as people write them, for formulas and tables.

/// With commas between thousands, no fraction: `192,512`.
pub(crate) fn whole(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut out = String::with_capacity(digits.len() + digits.len() / 3 + 1);
    if value < 0.0 && digits != "0" {
        out.push('-');
    }
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Three figures or so: `0.26`, `3.4`, `582`, `1,320`.
pub(crate) fn short(value: f64) -> String {
    match value.abs() {
        size if size < 0.995 => format!("{value:.2}"),
        size if size < 9.95 => format!("{value:.1}"),
        _ => whole(value),
    }
}

/// `124.1 GB`, `96.0 MB`; decimal prefixes, as makers of memory use them.
pub(crate) fn bytes(value: f64) -> String {
    match value.abs() {
        size if size >= 999.95e12 => format!("{} TB", whole(value / 1e12)),
        size if size >= 999.95e6 => format!("{} GB", tenth(value / 1e9)),
        size if size >= 999.95e3 => format!("{} MB", tenth(value / 1e6)),
        size if size >= 1e3 => format!("{} kB", tenth(value / 1e3)),
        _ => format!("{value:.0} B"),
    }
}

/// Bandwidth: `7.1 TB/s`.
pub(crate) fn per_second(value: f64) -> String {
    if value >= 999.5e9 {
        return format!("{} TB/s", trimmed(value / 1e12));
    }
    format!("{} GB/s", trimmed(value / 1e9))
}

/// Gigabytes without the unit, two decimals: `12.20`.
pub(crate) fn gb(value: f64) -> String {
    format!("{:.2}", value / 1e9)
}

/// Billions (of weights): `233.8`.
pub(crate) fn billions(value: f64) -> String {
    trimmed_to(value / 1e9, if value < 1e9 { 3 } else { 1 })
}

/// Up to three decimals, none of them a trailing zero: `4.156`, `16`.
pub(crate) fn trimmed(value: f64) -> String {
    trimmed_to(value, 3)
}

/// A length in tokens: `8K`, `68K`, `1M`, `512`.
pub(crate) fn tokens(count: u32) -> String {
    match count {
        c if c >= 1 << 20 && c % (1 << 20) == 0 => format!("{}M", c >> 20),
        c if c >= 1024 && c % 1024 == 0 => format!("{}K", c >> 10),
        c if c >= 1000 && c % 1000 == 0 => format!("{}K", c / 1000),
        c => whole(f64::from(c)),
    }
}

fn tenth(value: f64) -> String {
    let whole_part = whole(value.trunc());
    let rounded = format!("{value:.1}");
    // Rounding may carry into the whole part: then write that one.
    match rounded.split_once('.') {
        Some((digits, tenths)) if digits.len() < 4 => format!("{digits}.{tenths}"),
        Some((digits, tenths)) => {
            format!("{}.{tenths}", digits.parse().map_or(whole_part, whole))
        }
        None => rounded,
    }
}

fn trimmed_to(value: f64, places: usize) -> String {
    let text = format!("{value:.places$}");
    if !text.contains('.') {
        return text;
    }
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Breaks a text at spaces so that no line is longer than `width` characters.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    if !line.is_empty() {
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_people_write_them() {
        assert_eq!(whole(192_512.0), "192,512");
        assert_eq!(whole(999.6), "1,000");
        assert_eq!(whole(-0.2), "0");
        assert_eq!(bytes(124.06e9), "124.1 GB");
        assert_eq!(bytes(1_312.5e9), "1,312.5 GB");
        assert_eq!(bytes(98_362_432.0), "98.4 MB");
        assert_eq!(bytes(999.96e9), "1,000.0 GB");
        assert_eq!(short(0.256), "0.26");
        assert_eq!(short(3.44), "3.4");
        assert_eq!(short(581.9), "582");
        assert_eq!(per_second(7.1e12), "7.1 TB/s");
        assert_eq!(per_second(396e9), "396 GB/s");
        assert_eq!(trimmed(16.0), "16");
        assert_eq!(trimmed(4.15625), "4.156");
    }

    #[test]
    fn lengths_are_written_as_people_say_them() {
        assert_eq!(
            [8192, 32_768, 68_000, 131_072, 1 << 20, 500].map(tokens),
            ["8K", "32K", "68K", "128K", "1M", "500"]
        );
    }

    #[test]
    fn no_wrapped_line_is_longer_than_asked() {
        let lines = wrap("one two three four five", 9);
        assert_eq!(lines, ["one two", "three", "four five"]);
    }
}
