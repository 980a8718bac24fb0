//! Files of the tree that a machine's firmware, boot loader and systemd read before anything of ours can complain.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::collections::BTreeMap;
use std::path::Path;

#[test]
fn a_stick_starts_the_installer_and_a_box_starts_itself() {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("tree/usr/share/polder");
    for (menu, entry) in [("stick", "install_*.efi"), ("box", "polder_*.efi")] {
        let text = std::fs::read_to_string(tree.join(menu).join("loader.conf")).unwrap();
        let default = text.lines().find_map(|line| line.strip_prefix("default "));
        assert_eq!(default, Some(entry), "{menu}");
        assert!(text.lines().any(|line| line == "editor no"), "{menu}");
    }
}

/// The settings of a unit, each with all that it was set to.
fn unit(folder: &str, name: &str) -> BTreeMap<String, Vec<String>> {
    let system = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join("usr/lib/systemd/system");
    let text = std::fs::read_to_string(system.join(name)).unwrap();
    let mut settings: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    for (key, value) in lines.filter_map(|line| line.split_once('=')) {
        settings.entry(key.to_owned()).or_default().push(value.to_owned());
    }
    settings
}

/// The units of our own tree.
fn units() -> Vec<String> {
    let system = Path::new(env!("CARGO_MANIFEST_DIR")).join("tree/usr/lib/systemd/system");
    let names = std::fs::read_dir(system).unwrap().map(|entry| entry.unwrap().file_name());
    let names = names.map(|name| name.to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("polder-") && name.ends_with(".service")).collect()
}

#[test]
fn an_engine_opens_the_cards_and_nothing_else_and_may_pin_memory() {
    let engine = unit("tree", "polder-engine@.service");
    assert_eq!(engine["DevicePolicy"], ["closed"]);
    let devices = &engine["DeviceAllow"];
    assert!(devices.iter().all(|device| {
        device.starts_with("/dev/nvidia")
            || device.starts_with("char-nvidia")
            || device == "char-drm rw"
    }));
    // By the names in /proc/devices: nodes of cards come and go, and paths count only where there is a node when it starts.
    for needed in ["char-nvidia rw", "char-nvidia-uvm rw", "char-nvidia-caps rw"] {
        assert!(devices.iter().any(|device| device == needed), "{needed}");
    }
    // A /dev of its own has no cards.
    assert!(!engine.contains_key("PrivateDevices"));
    assert_eq!(engine["LimitMEMLOCK"], ["infinity"]);
    // The driver's own folder in /proc.
    assert_eq!(engine["ProcSubset"], ["all"]);
    assert!(engine["SupplementaryGroups"][0].split(' ').any(|group| group == "video"));
    assert_eq!(engine["CapabilityBoundingSet"], [""]);
    assert_eq!(engine["NoNewPrivileges"], ["yes"]);
    // CUDA runs under it where nothing has to be compiled for the card (seen with the driver 580 on an H100).
    assert_eq!(engine["MemoryDenyWriteExecute"], ["yes"]);
}

#[test]
fn the_cards_are_closed_to_everybody_who_speaks_with_people() {
    let mut closed = 0;
    for name in units() {
        let unit = unit("tree", &name);
        let allowed = unit.get("DeviceAllow").into_iter().flatten();
        let cards = allowed.filter(|device| device.contains("nvidia")).count();
        // The supervisor asks how much memory they have, the part that looks after health how they are.
        let may = [
            "polder-engine@.service",
            // An engine of others, in a network of its own.
            "polder-contained@.service",
            "polder-supervisor.service",
            "polder-health.service",
            // Root, who limits what they draw and has no network.
            "polder-limit@.service",
        ]
        .contains(&name.as_str());
        assert!(cards == 0 || may, "{name}");
        if unit.get("User").is_some_and(|user| user == &["polder"]) {
            let policy = |key: &str, value: &str| unit.get(key).is_some_and(|is| is == &[value]);
            assert!(policy("PrivateDevices", "yes") || policy("DevicePolicy", "closed"), "{name}");
            closed += 1;
        }
    }
    assert!(closed >= 5);
    assert_eq!(unit("tree", "polder-gateway.service")["PrivateDevices"], ["yes"]);
}

#[test]
fn an_engine_waits_for_the_nodes_of_the_cards_and_they_belong_to_its_group() {
    let cards = unit("driver", "polder-cards.service");
    let begins = |program: &str| cards["ExecStart"].iter().any(|line| line.starts_with(program));
    // A card that this driver does not drive is no failure.
    assert!(begins("-/usr/bin/nvidia-modprobe -c 0 -u") && begins("-/usr/bin/nvidia-smi"));
    // The supervisor plans by the cards' memory, for which it asks the driver.
    for who in ["polder-engine@", "polder-supervisor"] {
        let wait = unit("driver", &format!("{who}.service.d/50-cards.conf"));
        for key in ["Wants", "After"] {
            assert_eq!(wait[key], ["polder-cards.service"]);
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let options = root.join("driver/usr/lib/modprobe.d/polder-nvidia.conf");
    let options = std::fs::read_to_string(options).unwrap();
    // Debian's number of the group video.
    assert!(options.contains("NVreg_DeviceFileGID=44 NVreg_DeviceFileMode=0660"), "{options}");
    // A program that anybody could run as root is no way to get a node.
    let step = std::fs::read_to_string(root.join("steps/driver.sh")).unwrap();
    assert!(step.contains("install -D -m 0755 $programs/$program"), "no bit that makes it root's");
}
