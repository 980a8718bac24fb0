//! What NUT is told about a UPS of this machine's own: pure, files for its upsd and the one driver that is needed. The image runs
//! both; who writes the files and starts them is the supervisor.

use std::path::Path;

use polder_site::{PowerPlan, UpsLine};

use crate::find::Found;

/// Where the files are on the image: for the supervisor to write, for NUT to read.
pub const PLACE: &str = "/run/polder-ups";
/// Who the box itself is to a upsd of its own.
pub const ITSELF: &str = "polder-itself";
/// Of [`PLACE`]: what the box says to prove that.
pub const OWN_PASSWORD: &str = "password";
/// Of [`PLACE`]: exists where the UPS is to cut its outlet once the machine has ended. A hook that systemd runs last of all looks for it.
pub const CUT: &str = "cut";
/// Where upsd listens.
const PORT: u16 = 3493;

/// A driver of NUT's that the image can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// `usbhid-ups`: most UPSes on USB.
    UsbHid,
    /// `nutdrv_qx`: others on USB, and those on serial lines that speak Megatec's protocol.
    Qx,
    /// `snmp-ups`: a card in the network.
    Snmp,
}

impl Driver {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::UsbHid, Self::Qx, Self::Snmp];

    /// Its program's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::UsbHid => "usbhid-ups",
            Self::Qx => "nutdrv_qx",
            Self::Snmp => "snmp-ups",
        }
    }

    /// The one for a UPS that is plugged in like this, where these were found on USB. With none found the usual one waits for one.
    pub fn of(line: &UpsLine, found: &[Found]) -> Self {
        match line {
            UpsLine::Usb => {
                let named = found.first().map(|found| found.driver);
                Self::ALL
                    .into_iter()
                    .find(|driver| Some(driver.name()) == named)
                    .unwrap_or(Self::UsbHid)
            }
            UpsLine::Serial(_) => Self::Qx,
            UpsLine::Snmp(_) => Self::Snmp,
        }
    }
}

/// A file of NUT's, below its folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFile {
    /// Its name.
    pub name: &'static str,
    /// All that is in it.
    pub text: String,
}

/// Passwords at a upsd of the box's own.
pub struct Passwords<'a> {
    /// The box's: one that nobody else has ever seen.
    pub own: &'a str,
    /// That of other machines on the same UPS; without one upsd answers this machine alone.
    pub others: Option<&'a str>,
}

/// The files for a UPS that is plugged in like this.
pub fn files(
    plan: &PowerPlan,
    line: &UpsLine,
    driver: Driver,
    passwords: &Passwords<'_>,
) -> Vec<ConfigFile> {
    let header = "# Written by Polder from its site; whatever is changed here is lost.\n";
    let file = |name, text: String| ConfigFile { name, text: format!("{header}{text}") };
    let name = plan.ups.name();
    let settings = match line {
        UpsLine::Usb => "port = auto".to_owned(),
        UpsLine::Serial(line) => format!("port = /dev/{line}\n  protocol = megatec"),
        UpsLine::Snmp(std::net::IpAddr::V4(address)) => {
            format!("port = {address}\n  community = public")
        }
        UpsLine::Snmp(std::net::IpAddr::V6(address)) => {
            format!("port = udp6:[{address}]:161\n  community = public")
        }
    };
    let driver = driver.name();
    let listen = if passwords.others.is_some() { "0.0.0.0" } else { "127.0.0.1" };
    let mut users = format!(
        "[{ITSELF}]\n  password = {}\n  upsmon primary\n  actions = SET FSD\n  instcmds = ALL\n",
        quoted(passwords.own)
    );
    if let Some(others) = passwords.others {
        users += &format!("[{}]\n  password = {}\n  upsmon secondary\n", plan.user, quoted(others));
    }
    // Whether it is on battery is asked every other second, all else (the charge) less often: by default only every 30 s.
    vec![
        file(
            "ups.conf",
            format!(
                "pollinterval = 2\n[{name}]\n  driver = {driver}\n  pollfreq = 10\n  {settings}\n"
            ),
        ),
        file("upsd.conf", format!("LISTEN {listen} {PORT}\nMAXAGE 10\n")),
        file("upsd.users", users),
        ConfigFile { name: OWN_PASSWORD, text: format!("{}\n", passwords.own) },
    ]
}

/// A value that may have anything in it but the end of a line, which no password has.
fn quoted(value: &str) -> String {
    let value: String = value.chars().filter(|c| !c.is_control()).collect();
    format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
}

/// Has the UPS cut its outlet when this machine has ended, where the image has what does that.
pub fn ask_for_the_cut(place: &Path) -> std::io::Result<()> {
    let file =
        std::fs::File::options().create(true).truncate(true).write(true).open(place.join(CUT))?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(line: &str, others: Option<&str>) -> Vec<ConfigFile> {
        let line: UpsLine = line.parse().unwrap();
        let mut plan = PowerPlan::attached(line.clone());
        plan.user = "spare".to_owned();
        let passwords = Passwords { own: "0a1b", others };
        files(&plan, &line, Driver::of(&line, &[]), &passwords)
    }

    #[test]
    fn nut_is_told_of_the_ups_and_of_nobody_whom_nobody_named() {
        let [ups, upsd, users, own] = &text("usb", None)[..] else { panic!("four files") };
        assert!(
            ups.text.ends_with("[ups]\n  driver = usbhid-ups\n  pollfreq = 10\n  port = auto\n"),
            "{}",
            ups.text
        );
        assert!(upsd.text.contains("\nLISTEN 127.0.0.1 3493\n"), "{}", upsd.text);
        assert_eq!(users.text.matches('[').count(), 1, "{}", users.text);
        assert!(users.text.contains("[polder-itself]\n  password = \"0a1b\"\n  upsmon primary\n"));
        assert_eq!((own.name, own.text.as_str()), ("password", "0a1b\n"));
        let serial = &text("serial:ttyS1", None)[0].text;
        assert!(serial.contains(
            "driver = nutdrv_qx\n  pollfreq = 10\n  port = /dev/ttyS1\n  protocol = megatec\n"
        ));
        let card = &text("snmp:2001:db8::9", None)[0].text;
        assert!(
            card.contains("driver = snmp-ups\n  pollfreq = 10\n  port = udp6:[2001:db8::9]:161\n"),
            "{card}"
        );
    }

    #[test]
    fn other_machines_are_let_in_where_they_have_a_password_and_may_only_listen() {
        let files = text("usb", Some("a \"word\" \\ more\n[root]"));
        assert!(files[1].text.contains("LISTEN 0.0.0.0 3493"));
        let users = &files[2].text;
        assert!(
            users.ends_with(
                "[spare]\n  password = \"a \\\"word\\\" \\\\ more[root]\"\n  upsmon secondary\n"
            ),
            "{users}"
        );
        let spare = users.split("[spare]").nth(1).unwrap();
        assert!(!spare.contains("actions") && !spare.contains("instcmds"));
    }

    #[test]
    fn the_driver_is_the_one_for_what_is_plugged_in() {
        let found =
            |driver| vec![Found { name: "A UPS".to_owned(), driver, id: "0665:5161".to_owned() }];
        assert_eq!(Driver::of(&UpsLine::Usb, &found("nutdrv_qx")), Driver::Qx);
        assert_eq!(Driver::of(&UpsLine::Usb, &found("usbhid-ups")), Driver::UsbHid);
        assert_eq!(Driver::of(&UpsLine::Usb, &[]), Driver::UsbHid);
    }
}
