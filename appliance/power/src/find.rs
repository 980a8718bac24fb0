//! UPSes on this machine's own USB, found without asking them anything: what the wizard and the settings page offer.

use std::path::Path;

/// A device that looks like a UPS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Who made it and what it is, in its own words.
    pub name: String,
    /// Of NUT's drivers, the one for it.
    pub driver: &'static str,
    /// USB's numbers for maker and product, such as `051d:0002`.
    pub id: String,
}

/// Makers whose USB devices are UPSes and nothing else, and NUT's driver for them.
const MAKERS: [(&str, &str); 12] = [
    ("051d", "usbhid-ups"), // APC
    ("0463", "usbhid-ups"), // Eaton, MGE
    ("0764", "usbhid-ups"), // CyberPower
    ("09ae", "usbhid-ups"), // Tripp Lite
    ("06da", "usbhid-ups"), // Liebert, Phoenixtec
    ("10af", "usbhid-ups"), // Liebert
    ("0d9f", "usbhid-ups"), // PowerCOM
    ("2b2d", "usbhid-ups"), // Ever
    ("04b3", "usbhid-ups"), // IBM; only where it calls itself a UPS
    ("0665", "nutdrv_qx"),  // Cypress: Voltronic and many more
    ("0f03", "nutdrv_qx"),  // Unitek
    ("0001", "nutdrv_qx"),  // Fry's; only where it calls itself a UPS
];

/// Makers of other things too.
const DOUBTFUL: [&str; 2] = ["04b3", "0001"];

/// The UPSes below a folder like `/sys/bus/usb/devices`.
pub fn ups_below(devices: &Path) -> Vec<Found> {
    let Ok(entries) = std::fs::read_dir(devices) else { return Vec::new() };
    let mut found: Vec<Found> = entries.flatten().filter_map(|entry| look(&entry.path())).collect();
    found.sort_by(|a, b| a.id.cmp(&b.id));
    found
}

fn look(device: &Path) -> Option<Found> {
    let read = |name: &str| {
        let text = std::fs::read_to_string(device.join(name)).ok()?;
        Some(
            text.chars().filter(|c| !c.is_control()).take(80).collect::<String>().trim().to_owned(),
        )
    };
    let (maker, product) = (read("idVendor")?, read("idProduct")?);
    let named =
        [read("manufacturer"), read("product")].into_iter().flatten().filter(|t| !t.is_empty());
    let name = named.collect::<Vec<_>>().join(" ");
    let says_ups = name
        .to_ascii_uppercase()
        .split(|c: char| !c.is_ascii_alphanumeric())
        .any(|word| word == "UPS" || word.ends_with("UPS"));
    let known = MAKERS.iter().find(|(id, _)| *id == maker).map(|(_, driver)| *driver);
    let driver = match known {
        Some(driver) if says_ups || !DOUBTFUL.contains(&&*maker) => driver,
        // A device that speaks of power like any other UPS does.
        None if says_ups => "usbhid-ups",
        _ => return None,
    };
    let id = format!("{maker}:{product}");
    let name = if name.is_empty() { format!("UPS {id}") } else { name };
    Some(Found { name, driver, id })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ups_are_found_among_other_devices_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let device = |name: &str, files: &[(&str, &str)]| {
            let path = folder.path().join(name);
            std::fs::create_dir(&path).unwrap();
            for (file, text) in files {
                std::fs::write(path.join(file), format!("{text}\n")).unwrap();
            }
        };
        device(
            "1-1",
            &[
                ("idVendor", "051d"),
                ("idProduct", "0002"),
                ("manufacturer", "American Power Conversion"),
                ("product", "Back-UPS ES 700 FW:871"),
            ],
        );
        device(
            "1-2",
            &[
                ("idVendor", "046d"),
                ("idProduct", "c31c"),
                ("manufacturer", "Logitech"),
                ("product", "USB Keyboard"),
            ],
        );
        device(
            "1-3",
            &[
                ("idVendor", "04b3"),
                ("idProduct", "3025"),
                ("manufacturer", "IBM"),
                ("product", "Keyboard"),
            ],
        );
        device("1-4", &[("idVendor", "0665"), ("idProduct", "5161")]);
        device("1-0:1.0", &[("bInterfaceClass", "03")]);
        device("1-5", &[("idVendor", "ffff"), ("idProduct", "0001"), ("product", "PW9130 UPS")]);
        let found = ups_below(folder.path());
        let said: Vec<_> = found.iter().map(|f| (f.name.as_str(), f.driver)).collect();
        assert_eq!(
            said,
            [
                ("American Power Conversion Back-UPS ES 700 FW:871", "usbhid-ups"),
                ("UPS 0665:5161", "nutdrv_qx"),
                ("PW9130 UPS", "usbhid-ups"),
            ]
        );
        assert_eq!(ups_below(&folder.path().join("nothing")), []);
    }
}
