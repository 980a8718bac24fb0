use polder_control::{Check, Issue, Severity};

use super::issue;
use crate::seen::{Drive, Seen};

/// Degrees Celsius above which disks age quickly.
const HOT: i64 = 70;

/// What disks say about themselves. For each, the worst.
pub(super) fn check(seen: &Seen) -> Vec<Issue> {
    seen.drives.iter().flatten().filter_map(of).collect()
}

fn of(drive: &Drive) -> Option<Issue> {
    let on = &drive.device;
    let disk = format!("the disk {on} ({})", drive.model);
    let told =
        |severity, what: String, advice| Some(issue(Check::DiskHealth, on, severity, what, advice));
    const REPLACE: &str = "Make sure that there is a backup today. Then get a new disk of the same size or larger, and restore onto it";
    // NVMe's critical warnings: bit 0 spare room, 2 reliability, 3 read only, 4 its own backup power.
    if drive.passed == Some(false) || drive.critical & 0b11101 != 0 || drive.test_failed {
        return told(Severity::Urgent, format!("{disk} says that it is about to fail"), REPLACE);
    }
    if let Some((left, warns_at)) = drive.spare
        && left <= warns_at
    {
        return told(
            Severity::Urgent,
            format!("{disk} has {left} % of its spare room left"),
            REPLACE,
        );
    }
    if drive.bad_places > 0 {
        return told(
            Severity::Warning,
            format!("{disk} could not read {} of its places", drive.bad_places),
            "Make sure that backups work. If the number grows, replace the disk soon; models can be imported again, but not members and keys",
        );
    }
    if let Some(worn) = drive.worn.filter(|worn| *worn >= 90) {
        return told(
            Severity::Warning,
            format!("{disk} has used up {worn} % of the life it was made for"),
            "It may go on for long. Make sure that backups work, and plan for a new disk",
        );
    }
    if let Some(degrees) = drive.temperature.filter(|degrees| *degrees >= HOT) {
        return told(
            Severity::Warning,
            format!("{disk} is at {degrees} °C"),
            "Look whether air can reach it, and whether the small cooling plate on it is still there",
        );
    }
    (drive.replaced >= 50).then(|| {
        let what = format!("{disk} has replaced {} of its places by spare ones", drive.replaced);
        let advice = "Make sure that backups work, and replace the disk when the number grows";
        issue(Check::DiskHealth, on, Severity::Warning, what, advice)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::look::smart::drive;

    fn told(json: &str) -> Vec<Issue> {
        check(&Seen { drives: Some(drive(json).into_iter().collect()), ..Seen::default() })
    }

    #[test]
    fn a_good_disk_and_a_virtual_one_have_no_issue() {
        assert_eq!(told(include_str!("../../fixtures/smartctl-nvme-good.json")), []);
        assert_eq!(told(include_str!("../../fixtures/smartctl-virtual-disk.json")), []);
    }

    #[test]
    fn a_disk_that_calls_itself_healthy_but_could_not_read_is_told() {
        let issues = told(include_str!("../../fixtures/smartctl-nvme-media-errors.json"));
        assert_eq!(issues[0].severity, Severity::Warning);
        assert!(issues[0].what.contains("could not read 7"), "{}", issues[0].what);
    }

    #[test]
    fn a_disk_that_fails_is_urgent_and_the_advice_begins_with_a_backup() {
        let issues = told(include_str!("../../fixtures/smartctl-ata-failing.json"));
        assert_eq!((issues.len(), issues[0].severity), (1, Severity::Urgent));
        assert!(issues[0].what.contains("Hitachi HDS721050DLE630"));
        assert!(issues[0].advice.starts_with("Make sure that there is a backup"));
        // Without its own verdict, what it counts still speaks.
        let mild = include_str!("../../fixtures/smartctl-ata-failing.json")
            .replace("\"passed\": false", "\"passed\": true");
        assert!(told(&mild)[0].what.contains("could not read 8"), "{}", told(&mild)[0].what);
    }

    #[test]
    fn wear_heat_and_spare_room_of_an_nvme_disk_are_told() {
        let good = include_str!("../../fixtures/smartctl-nvme-good.json");
        let worn = good.replace("\"percentage_used\": 0", "\"percentage_used\": 97");
        assert!(told(&worn)[0].what.contains("97 %"));
        let spare = good.replace("\"available_spare\": 100", "\"available_spare\": 10");
        assert_eq!(told(&spare)[0].severity, Severity::Urgent);
        let critical = good.replace("\"critical_warning\": 0", "\"critical_warning\": 8");
        assert_eq!(told(&critical)[0].severity, Severity::Urgent);
        // Bit 1 is heat, which is no reason to replace it.
        let warm = good.replace("\"critical_warning\": 0", "\"critical_warning\": 2");
        assert_eq!(told(&warm), []);
        let hot = good.replace("\"current\": 35", "\"current\": 82");
        assert!(told(&hot)[0].what.contains("82 °C"));
    }
}
