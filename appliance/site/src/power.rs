use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use jiff::civil::Date;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The UPS, and what the box does when its mains is away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerPlan {
    /// Which UPS, at which upsd: `NAME@HOST`, `NAME@HOST:PORT`.
    pub ups: UpsAddress,
    /// How it is plugged into this machine, whose image then runs NUT for it; without it, that upsd is somebody else's affair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attached: Option<UpsLine>,
    /// Whether this box looks after the UPS for others, or is one of those others.
    #[serde(default)]
    pub role: UpsRole,
    /// Who the box is to upsd; for a UPS of its own, who other machines are to it. The password is the first line of
    /// `power/password` in the state folder.
    #[serde(default = "usual_user")]
    pub user: String,
    /// On battery for this many seconds, the box begins to save: less power for cards, no new long answers.
    #[serde(default = "usual_saving")]
    pub save_after: u32,
    /// At this charge, in percent, it stops and turns the machine off.
    #[serde(default = "usual_low")]
    pub low_charge: u8,
    /// Seconds that the battery shall still last, beyond what stopping takes, when stopping begins.
    #[serde(default = "usual_margin")]
    pub margin: u32,
    /// Seconds that other machines on the same UPS have to say goodbye, after they were told.
    #[serde(default = "usual_others")]
    pub others: u32,
    /// Seconds that they need from their goodbye until they are off.
    #[serde(default = "usual_others_halt")]
    pub others_halt: u32,
    /// After a power cut, engines start from this charge on, in percent.
    #[serde(default = "usual_start")]
    pub start_charge: u8,
    /// While saving, graphics cards may take this part of their usual power; nothing leaves them alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub card_percent: Option<u8>,
    /// Test the battery every month.
    #[serde(default = "usual_test")]
    pub self_test: bool,
    /// The day on which the battery was put in, where a steward said so. One that the UPS itself tells and that is later counts more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub battery_since: Option<Date>,
}

fn usual_user() -> String {
    "polder".to_owned()
}
fn usual_saving() -> u32 {
    30
}
fn usual_low() -> u8 {
    30
}
fn usual_margin() -> u32 {
    120
}
fn usual_others() -> u32 {
    60
}
fn usual_others_halt() -> u32 {
    20
}
fn usual_start() -> u8 {
    40
}
fn usual_test() -> bool {
    true
}

impl PowerPlan {
    /// The usual plan for a UPS.
    pub fn of(ups: UpsAddress) -> Self {
        Self {
            ups,
            attached: None,
            role: UpsRole::default(),
            user: usual_user(),
            save_after: usual_saving(),
            low_charge: usual_low(),
            margin: usual_margin(),
            others: usual_others(),
            others_halt: usual_others_halt(),
            start_charge: usual_start(),
            card_percent: None,
            self_test: usual_test(),
            battery_since: None,
        }
    }

    /// The usual plan for a UPS of this machine's own.
    pub fn attached(line: UpsLine) -> Self {
        let ups = UpsAddress { name: OWN.to_owned(), host: "localhost".to_owned(), port: UPSD };
        Self { attached: Some(line), ..Self::of(ups) }
    }

    /// With the day of its battery that was known before, where it is the same UPS: another one has another battery.
    pub fn with_battery_of(self, before: Option<&Self>) -> Self {
        let same = |before: &&Self| (&before.ups, &before.attached) == (&self.ups, &self.attached);
        let known = before.filter(same).and_then(|before| before.battery_since);
        Self { battery_since: self.battery_since.or(known), ..self }
    }

    /// What is wrong with it, as the end of a sentence that begins with where.
    pub(crate) fn fault(&self) -> Option<String> {
        let Self { low_charge, start_charge, margin, others, card_percent, .. } = self;
        if !(5..=90).contains(low_charge) {
            return Some(format!("power.low_charge is {low_charge}; choose 5 to 90 percent"));
        }
        if !(*low_charge..=95).contains(start_charge) {
            return Some(format!(
                "power.start_charge is {start_charge}; choose {low_charge} (power.low_charge) to 95 percent, so that engines do not start on a battery that would stop them"
            ));
        }
        if *margin > 3600 || *others > 3600 || self.save_after > 3600 {
            return Some(
                "power.margin, power.others and power.save_after are seconds; choose at most 3600"
                    .to_owned(),
            );
        }
        if self.others_halt > LONGEST_HALT {
            return Some(format!(
                "power.others_halt is {} seconds; choose 0 to {LONGEST_HALT}, so that there is battery left for it",
                self.others_halt
            ));
        }
        if self.battery_since.is_some_and(|day| !(1990..=2200).contains(&day.year())) {
            return Some(
                "power.battery_since is no day on which a battery was put in; write one such as 2026-03-01"
                    .to_owned(),
            );
        }
        if card_percent.is_some_and(|percent| !(20..=100).contains(&percent)) {
            return Some("power.card_percent is out of range; choose 20 to 100".to_owned());
        }
        let own = Self::attached(UpsLine::Usb).ups;
        if self.attached.is_some() && (self.ups != own || self.role != UpsRole::Primary) {
            return Some(format!(
                "power.ups is {} as {}, and power.attached says that it is this machine's own; write {own} as primary, or leave power.attached out",
                self.ups, self.role
            ));
        }
        if !is_word(&self.user) {
            return Some("power.user is no name; use letters, digits, - and _".to_owned());
        }
        None
    }
}

/// What the box is to its UPS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpsRole {
    /// It tells the others when the power will go, and waits for them.
    #[default]
    Primary,
    /// It is told by another machine, and says when it is done.
    Secondary,
}

impl fmt::Display for UpsRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Primary => "primary",
            Self::Secondary => "secondary",
        })
    }
}

/// How a UPS is plugged into this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpsLine {
    /// `usb`: by USB, the only one there.
    Usb,
    /// `serial:ttyS1`: by this serial line, speaking Megatec's protocol.
    Serial(String),
    /// `snmp:10.0.0.9`: by a card of its own in the network, at this address.
    Snmp(IpAddr),
}

/// Not a way to plug in a UPS.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no way to plug in a UPS; write usb, or serial: and a line such as serial:ttyS1, or snmp: and an address such as snmp:10.0.0.9"
)]
pub struct UpsLineError(String);

impl FromStr for UpsLine {
    type Err = UpsLineError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = || UpsLineError(text.chars().filter(|c| !c.is_control()).take(80).collect());
        match text.split_once(':') {
            None if text == "usb" => Ok(Self::Usb),
            Some(("serial", line)) if is_serial(line) => Ok(Self::Serial(line.to_owned())),
            Some(("snmp", address)) => address.parse().map(Self::Snmp).map_err(|_| fail()),
            _ => Err(fail()),
        }
    }
}

/// A name below /dev that is a serial line's.
fn is_serial(name: &str) -> bool {
    let number =
        ["ttyS", "ttyUSB", "ttyACM", "ttyAMA"].iter().find_map(|kind| name.strip_prefix(kind));
    number.is_some_and(|n| (1..=3).contains(&n.len()) && n.chars().all(|c| c.is_ascii_digit()))
}

impl fmt::Display for UpsLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usb => f.write_str("usb"),
            Self::Serial(line) => write!(f, "serial:{line}"),
            Self::Snmp(address) => write!(f, "snmp:{address}"),
        }
    }
}

impl Serialize for UpsLine {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for UpsLine {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A UPS at an upsd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpsAddress {
    name: String,
    host: String,
    port: u16,
}

/// What a UPS of this machine's own is called at its upsd.
const OWN: &str = "ups";
/// The most that a machine may need to be off after it said goodbye, in seconds.
const LONGEST_HALT: u32 = 300;
/// Where upsd listens.
const UPSD: u16 = 3493;

impl UpsAddress {
    /// Its name at upsd.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// The machine that upsd runs on.
    pub fn host(&self) -> &str {
        &self.host
    }
    /// The port of upsd.
    pub fn port(&self) -> u16 {
        self.port
    }
}

/// Not a UPS.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no UPS; write its name and the machine that it is connected to, such as ups@localhost or ups@10.0.0.2:3493"
)]
pub struct UpsAddressError(String);

impl FromStr for UpsAddress {
    type Err = UpsAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = || UpsAddressError(text.chars().filter(|c| !c.is_control()).take(80).collect());
        let (name, place) = text.split_once('@').ok_or_else(fail)?;
        let (host, port) = match place.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest.split_once(']').ok_or_else(fail)?;
                host.parse::<std::net::Ipv6Addr>().map_err(|_| fail())?;
                (
                    host,
                    after
                        .strip_prefix(':')
                        .or((after.is_empty()).then_some(""))
                        .ok_or_else(fail)?,
                )
            }
            None => match place.split_once(':') {
                Some((host, port)) if !port.is_empty() => (host, port),
                Some(_) => return Err(fail()),
                None => (place, ""),
            },
        };
        let port = match port {
            "" => UPSD,
            port => port.parse().ok().filter(|port| *port != 0).ok_or_else(fail)?,
        };
        let is_host = |host: &str| {
            !host.is_empty()
                && host.len() <= 253
                && host.chars().all(|c| c.is_ascii_alphanumeric() || ".-:".contains(c))
        };
        if !is_word(name) || !is_host(host) {
            return Err(fail());
        }
        Ok(Self { name: name.to_owned(), host: host.to_owned(), port })
    }
}

/// A name that upsd's protocol carries as it is.
fn is_word(text: &str) -> bool {
    (1..=60).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

impl fmt::Display for UpsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "{}@[{}]", self.name, self.host)?,
            false => write!(f, "{}@{}", self.name, self.host)?,
        }
        if self.port != UPSD { write!(f, ":{}", self.port) } else { Ok(()) }
    }
}

impl Serialize for UpsAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for UpsAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ups_is_written_as_it_was_read() {
        for (text, host, port) in [
            ("ups@localhost", "localhost", 3493),
            ("apc-1@10.0.0.2:13493", "10.0.0.2", 13493),
            ("ups@[fe80::1]", "fe80::1", 3493),
            ("ups@[::1]:99", "::1", 99),
        ] {
            let ups: UpsAddress = text.parse().unwrap();
            assert_eq!((ups.host(), ups.port(), ups.to_string()), (host, port, text.to_owned()));
        }
    }

    #[test]
    fn what_is_no_ups_is_refused_with_what_to_write() {
        for bad in [
            "", "ups", "@host", "ups@", "u s@h", "ups@h:0", "ups@h:", "ups@h:x", "u\"@h",
            "ups@[::1", "ups@[x]", "ups@a b",
        ] {
            let says = bad.parse::<UpsAddress>().unwrap_err().to_string();
            assert!(says.contains("ups@localhost"), "{says}");
        }
    }

    #[test]
    fn a_ups_of_ones_own_is_plugged_in_in_one_of_three_ways() {
        for text in ["usb", "serial:ttyS1", "serial:ttyUSB0", "snmp:10.0.0.9", "snmp:2001:db8::9"] {
            let line: UpsLine = text.parse().unwrap();
            assert_eq!(line.to_string(), text);
            assert_eq!(PowerPlan::attached(line).fault(), None);
        }
        for bad in [
            "",
            "USB",
            "usb:",
            "serial:",
            "serial:sda",
            "serial:../ttyS1",
            "serial:ttyS1\nport",
            "snmp:",
            "snmp:host",
            "snmp:10.0.0.9:161",
            "serial:ttyS1234",
        ] {
            let says = bad.parse::<UpsLine>().unwrap_err().to_string();
            assert!(says.contains("serial:ttyS1"), "{says}");
        }
        let mut plan = PowerPlan::of("box@10.0.0.2".parse().unwrap());
        plan.attached = Some(UpsLine::Usb);
        assert!(plan.fault().unwrap().contains("ups@localhost as primary"));
    }

    #[test]
    fn a_plan_that_would_start_engines_only_to_stop_them_is_refused() {
        let mut plan = PowerPlan::of("ups@localhost".parse().unwrap());
        assert_eq!(plan.fault(), None);
        plan.start_charge = 20;
        assert!(plan.fault().unwrap().contains("power.start_charge is 20; choose 30"));
        plan.low_charge = 0;
        assert!(plan.fault().unwrap().contains("power.low_charge is 0"));
    }

    #[test]
    fn other_machines_are_waited_for_within_bounds_and_a_battery_is_of_some_day() {
        let mut plan = PowerPlan::of("ups@localhost".parse().unwrap());
        plan.others_halt = 300;
        assert_eq!(plan.fault(), None);
        plan.others_halt = 301;
        assert!(
            plan.fault().unwrap().contains("power.others_halt is 301 seconds; choose 0 to 300")
        );
        plan.others_halt = 0;
        plan.battery_since = Some("2023-05-01".parse().unwrap());
        assert_eq!(plan.fault(), None);
        let known = plan.clone();
        let named = |ups: &str| PowerPlan::of(ups.parse().unwrap()).with_battery_of(Some(&known));
        assert_eq!(named(&known.ups.to_string()).battery_since, known.battery_since);
        assert_eq!(named("another@elsewhere").battery_since, None, "another UPS");
        let changed =
            PowerPlan { battery_since: Some("2026-05-01".parse().unwrap()), ..plan.clone() };
        assert_eq!(changed.clone().with_battery_of(Some(&known)), changed);
        plan.battery_since = Some("0203-05-01".parse().unwrap());
        assert!(plan.fault().unwrap().contains("2026-03-01"));
    }
}
