//! What `smartctl --json -a` tells of a disk, whatever its kind.

use serde::Deserialize;

use crate::seen::Drive;

#[derive(Deserialize)]
struct Output {
    device: Option<Device>,
    model_name: Option<String>,
    smart_status: Option<Status>,
    nvme_smart_health_information_log: Option<Nvme>,
    ata_smart_attributes: Option<Attributes>,
    ata_smart_data: Option<Data>,
    scsi_grown_defect_list: Option<u64>,
    temperature: Option<Temperature>,
}

#[derive(Deserialize)]
struct Device {
    name: String,
}

#[derive(Deserialize)]
struct Status {
    passed: Option<bool>,
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Nvme {
    critical_warning: u64,
    available_spare: Option<u64>,
    available_spare_threshold: Option<u64>,
    percentage_used: Option<u64>,
    media_errors: u64,
}

#[derive(Deserialize)]
struct Attributes {
    #[serde(default)]
    table: Vec<Attribute>,
}

#[derive(Deserialize)]
struct Attribute {
    id: u32,
    #[serde(default)]
    value: u64,
    raw: Raw,
}

#[derive(Deserialize)]
struct Raw {
    value: u64,
}

#[derive(Deserialize)]
struct Data {
    self_test: Option<SelfTest>,
}

#[derive(Deserialize)]
struct SelfTest {
    status: Option<Status>,
}

#[derive(Deserialize)]
struct Temperature {
    current: Option<i64>,
}

/// The disk that the tool looked at; none where it has nothing to tell, as a virtual one.
pub(crate) fn drive(json: &str) -> Option<Drive> {
    let output: Output = serde_json::from_str(json).ok()?;
    let known = output.smart_status.is_some()
        || output.nvme_smart_health_information_log.is_some()
        || output.ata_smart_attributes.is_some();
    let device = output.device.filter(|_| known)?;
    let word = |text: String| text.chars().filter(|c| !c.is_control()).take(60).collect::<String>();
    let nvme = output.nvme_smart_health_information_log.unwrap_or_default();
    let table = output.ata_smart_attributes.map(|a| a.table).unwrap_or_default();
    // Some makers pack more into the raw value; the count is in its lower half.
    let raw = |id: u32| table.iter().find(|a| a.id == id).map_or(0, |a| a.raw.value & 0xffff_ffff);
    // 231 and 233 count down from 100 on disks without moving parts.
    let left = table.iter().find(|a| a.id == 231 || a.id == 233).map(|a| a.value);
    let worn = nvme.percentage_used.or(left.map(|left| 100u64.saturating_sub(left)));
    let self_test = output.ata_smart_data.and_then(|data| data.self_test?.status?.passed);
    Some(Drive {
        device: word(device.name),
        model: word(output.model_name.unwrap_or_else(|| "of unknown make".to_owned())),
        passed: output.smart_status.and_then(|status| status.passed),
        // 197: places that could not be read and wait; 198: found so by the disk's own search.
        bad_places: nvme.media_errors.max(raw(197)).max(raw(198)),
        replaced: raw(5).max(output.scsi_grown_defect_list.unwrap_or(0)),
        worn,
        spare: nvme.available_spare.zip(nvme.available_spare_threshold),
        critical: nvme.critical_warning,
        temperature: output.temperature.and_then(|t| t.current),
        test_failed: self_test == Some(false),
    })
}

/// The disks that `smartctl --json --scan` names, each with the kind that it takes them for.
pub(crate) fn scanned(json: &str) -> Vec<(String, String)> {
    #[derive(Deserialize)]
    struct Scan {
        #[serde(default)]
        devices: Vec<Found>,
    }
    #[derive(Deserialize)]
    struct Found {
        name: String,
        #[serde(rename = "type")]
        kind: String,
    }
    let plain = |text: &str| {
        !text.is_empty() && text.bytes().all(|c| c.is_ascii_alphanumeric() || b"/,+_-".contains(&c))
    };
    let scan = serde_json::from_str::<Scan>(json).map(|scan| scan.devices).unwrap_or_default();
    let good =
        |found: &Found| found.name.starts_with("/dev/") && plain(&found.name) && plain(&found.kind);
    scan.into_iter().filter(good).take(64).map(|found| (found.name, found.kind)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FAILING: &str = include_str!("../../fixtures/smartctl-ata-failing.json");

    #[test]
    fn real_output_for_disks_of_three_kinds_is_read() {
        let good = drive(include_str!("../../fixtures/smartctl-nvme-good.json")).unwrap();
        assert_eq!(
            (good.device.as_str(), good.worn, good.spare),
            ("/dev/nvme0", Some(0), Some((100, 10)))
        );
        let failing = drive(FAILING).unwrap();
        assert_eq!((failing.passed, failing.replaced, failing.bad_places), (Some(false), 1975, 8));
        assert_eq!(failing.temperature, Some(25));
        assert_eq!(drive(include_str!("../../fixtures/smartctl-virtual-disk.json")), None);
    }

    #[test]
    fn disks_that_a_scan_names_are_words_that_a_command_can_take() {
        let scan = r#"{"devices":[{"name":"/dev/nvme0","info_name":"/dev/nvme0","type":"nvme","protocol":"NVMe"},
            {"name":"/dev/bus/0","type":"megaraid,1"},{"name":"-x","type":"scsi"},{"name":"/dev/sda;rm","type":"sat"}]}"#;
        let found = scanned(scan);
        assert_eq!(
            found,
            [
                ("/dev/nvme0".to_owned(), "nvme".to_owned()),
                ("/dev/bus/0".to_owned(), "megaraid,1".to_owned()),
            ]
        );
    }

    #[test]
    fn the_tool_itself_is_asked_where_it_is() {
        let Ok(scan) = std::process::Command::new("smartctl").args(["--json", "--scan"]).output()
        else {
            eprintln!("not asked: smartctl is not here (Debian: smartmontools)");
            return;
        };
        for (device, kind) in scanned(&String::from_utf8_lossy(&scan.stdout)) {
            assert!(device.starts_with("/dev/") && !kind.is_empty());
        }
    }

    proptest! {
        #[test]
        fn no_output_makes_reading_panic(text in "\\PC{0,200}", at in 0usize..4000) {
            let _ = (drive(&text), scanned(&text));
            let _ = drive(&FAILING[..at.min(FAILING.len())]);
        }
    }
}
