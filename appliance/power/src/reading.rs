//! What a UPS says about itself, as figures.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::civil::Date;

use crate::battery_age;

/// What a UPS said at one moment. Drivers leave out what their device does not know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reading {
    /// Its status.
    pub flags: Flags,
    /// Percent of the battery.
    pub charge: Option<u8>,
    /// How long it lasts, by its own count.
    pub runtime: Option<Duration>,
    /// Percent of what it can carry.
    pub load: Option<u8>,
    /// What it says of the last test of its battery.
    pub test_result: Option<String>,
    /// The newest day that it says of its battery.
    pub battery_day: Option<Date>,
    /// The day on which the UPS was made, as it says.
    pub made: Option<Date>,
}

/// `ups.status`, in NUT's words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flags {
    /// OL: the mains is there.
    pub on_mains: bool,
    /// OB: the battery carries the load.
    pub on_battery: bool,
    /// LB: the UPS thinks that the battery is nearly empty.
    pub low: bool,
    /// FSD: everybody was told that the power goes. It stays until upsd ends.
    pub forced: bool,
    /// RB: the battery is worn out.
    pub replace: bool,
    /// CAL, TEST: the UPS drains its battery on purpose, with the mains there.
    pub testing: bool,
}

impl Flags {
    /// Reads `OL CHRG`. Words that mean nothing here are left out of account.
    pub fn parse(status: &str) -> Self {
        let mut flags = Self::default();
        for word in status.split_ascii_whitespace() {
            match word {
                "OL" => flags.on_mains = true,
                "OB" => flags.on_battery = true,
                "LB" => flags.low = true,
                "FSD" => flags.forced = true,
                "RB" => flags.replace = true,
                "CAL" | "TEST" => flags.testing = true,
                _ => {}
            }
        }
        flags
    }

    /// The battery is what the box lives off. A driver that says neither or both is believed where it is worse, but
    /// for a test, in which the mains is there.
    pub fn needs_battery(self) -> bool {
        self.on_battery && !(self.testing && self.on_mains)
    }
}

impl Reading {
    /// From upsd's variables; none where they do not say what the UPS lives off: while a driver starts or ends, upsd has a status
    /// that is neither, and that must not count as mains. Figures that no UPS can mean count as not said.
    pub fn of(variables: &BTreeMap<String, String>) -> Option<Self> {
        let get = |name: &str| variables.get(name).map(String::as_str);
        let number = |name: &str| get(name)?.trim().parse::<f64>().ok().filter(|n| n.is_finite());
        let percent = |name: &str| {
            let value = number(name).filter(|n| (0.0..=1000.0).contains(n))?;
            Some(value.min(255.0) as u8)
        };
        let seconds = |n: &f64| (0.0..=1e7).contains(n);
        let flags = Flags::parse(get("ups.status")?);
        if !(flags.on_mains || flags.on_battery || flags.forced) {
            return None;
        }
        Some(Self {
            flags,
            charge: percent("battery.charge").filter(|charge| *charge <= 100),
            runtime: number("battery.runtime").filter(seconds).map(Duration::from_secs_f64),
            load: percent("ups.load"),
            test_result: get("ups.test.result")
                .map(|text| text.chars().filter(|c| !c.is_control()).take(120).collect()),
            battery_day: battery_age::newest(battery_age::VARIABLES.into_iter().filter_map(get)),
            made: get(battery_age::MADE).and_then(battery_age::day),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Option<Reading> {
        Reading::of(&pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn figures_that_cannot_be_count_as_not_said() {
        let said = of(&[
            ("ups.status", "OB LB DISCHRG"),
            ("battery.charge", "42"),
            ("battery.runtime", "612.5"),
            ("ups.load", "17.0"),
        ]);
        let said = said.unwrap();
        assert!(said.flags.on_battery && said.flags.low && !said.flags.on_mains);
        assert_eq!((said.charge, said.load), (Some(42), Some(17)));
        assert_eq!(said.runtime, Some(Duration::from_millis(612_500)));
        let odd = of(&[
            ("ups.status", "OL"),
            ("battery.charge", "255"),
            ("battery.runtime", "-1"),
            ("ups.load", "NaN"),
        ]);
        let odd = odd.unwrap();
        assert_eq!((odd.charge, odd.runtime, odd.load), (None, None, None));
        assert_eq!(of(&[("battery.charge", "100")]), None, "without a status nothing is known");
        for nothing in ["", "WAIT", "OFF", "LB", "CHRG"] {
            assert_eq!(of(&[("ups.status", nothing), ("battery.charge", "9")]), None);
        }
    }

    #[test]
    fn a_test_of_the_battery_is_no_power_cut() {
        assert!(!Flags::parse("OL OB TEST").needs_battery());
        assert!(!Flags::parse("OL CAL DISCHRG").needs_battery());
        assert!(Flags::parse("OB").needs_battery());
        assert!(Flags::parse("OB TEST").needs_battery());
        assert!(!Flags::parse("").needs_battery());
    }
}
