//! The unit files of the image, looked at by systemd's own tool and against what the supervisor
//! counts on.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use polder_supervisor::Patience;

/// As `systemd-analyze security` counts (10 is a process that may do anything): parts of a running box, then what
/// writes slots and judges versions, then what needs terminals, devices or other people's files.
const MOST_EXPOSED: [(&str, f64); 27] = [
    ("polder-supervisor.service", 2.0),
    ("polder-gateway.service", 2.0),
    ("polder-engine@.service", 2.0),
    ("polder-served@.service", 2.0),
    // It makes namespaces and mounts, and runs programs of others that write their own code.
    ("polder-contained@.service", 2.5),
    ("polder-power.service", 2.0),
    ("polder-screen.service", 2.0),
    ("polder-wan.service", 2.3),
    ("polder-health.service", 2.0),
    ("polder-spare.service", 2.0),
    ("polder-drives.service", 2.5),
    ("polder-upsd.service", 2.0),
    ("polder-ups@.service", 2.3),
    ("polder-limit@.service", 2.5),
    // On somebody's small server.
    (RELAY, 2.0),
    ("polder-slots.service", 2.0),
    ("polder-update@.service", 2.0),
    ("polder-rollback.service", 2.0),
    ("polder-judge.service", 2.0),
    ("polder-clock@.service", 2.5),
    ("polder-seed.service", 2.0),
    ("polder-seed-port.service", 2.5),
    ("polder-ports.service", 2.5),
    ("polder-disk@.service", 2.5),
    ("polder-seal@.service", 3.0),
    ("polder-shell.service", 4.0),
    ("polder-installer.service", 4.0),
];
/// Keys that came with systemd 254 to 257, which the image has; older tools know nothing of them.
const YOUNG_KEYS: [&str; 3] = ["PrivatePIDs", "PollLimitIntervalSec", "PollLimitBurst"];

const SERVICES: [&str; 10] = [
    "polder-supervisor.service",
    "polder-gateway.service",
    "polder-engine@.service",
    "polder-served@.service",
    "polder-contained@.service",
    "polder-power.service",
    "polder-screen.service",
    "polder-wan.service",
    "polder-health.service",
    "polder-spare.service",
];

fn tree() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../image/tree/usr")
}

/// Not on the image: `polder relay unit` prints it.
const RELAY: &str = "polder-relay.service";

fn text_of(unit: &str) -> String {
    let path = match unit {
        RELAY => Path::new(env!("CARGO_MANIFEST_DIR")).join("../reach").join(unit),
        _ => tree().join("lib/systemd/system").join(unit),
    };
    std::fs::read_to_string(path).unwrap()
}

fn value(unit: &str, key: &str) -> String {
    let text = text_of(unit);
    let found = text.lines().rev().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    found.unwrap_or_else(|| panic!("{unit} has no {key}=")).to_owned()
}

fn seconds(unit: &str, key: &str) -> Duration {
    Duration::from_secs(value(unit, key).parse().unwrap())
}

/// What systemd's tool says of these units of ours, beside all others and with a program that is there; `None` where
/// the tool is not.
fn analyze(arguments: &[&str], units: &[String]) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    for unit in ours() {
        let text =
            ["/usr/bin/polder", "/usr/local/bin/polder", "/usr/lib/nut/%i", "/usr/lib/nut/upsd"]
                .iter()
                .fold(text_of(&unit), |text, program| {
                    text.replace(&format!("={program}"), "=/bin/true")
                });
        std::fs::write(folder.path().join(unit), text).unwrap();
    }
    let units = units.iter().map(|unit| folder.path().join(unit));
    let output = match Command::new("systemd-analyze").args(arguments).args(units).output() {
        Ok(output) => output,
        Err(error) => {
            eprintln!("not looked at by systemd-analyze: {error}");
            return None;
        }
    };
    Some(String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

/// Every unit file of ours.
fn ours() -> Vec<String> {
    let files = tree().join("lib/systemd/system").read_dir().unwrap().flatten();
    let names = files.map(|file| file.file_name().into_string().unwrap());
    let mut names: Vec<String> = names
        .filter(|name| [".service", ".socket", ".timer"].iter().any(|kind| name.ends_with(kind)))
        .collect();
    names.push(RELAY.to_owned());
    names.sort();
    names
}

/// Every value of a key that may be there several times.
fn values(unit: &str, key: &str) -> Vec<String> {
    let text = text_of(unit);
    let lines = text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    lines.flat_map(|line| line.split(' ').map(str::to_owned)).collect()
}

#[test]
fn an_engine_that_was_taken_over_finds_no_member_no_secret_and_no_network() {
    let unit = "polder-engine@.service";
    // An empty folder in place of the box's own, and in it these and nothing else: whoever adds one says here what an
    // attacker learns by it.
    assert_eq!(value(unit, "TemporaryFileSystem"), "/var/lib/polder:ro");
    assert_eq!(
        values(unit, "BindReadOnlyPaths"),
        ["/var/lib/polder/site.toml", "/var/lib/polder/HISTORY", "/var/lib/polder/weights"]
    );
    assert_eq!(
        values(unit, "BindPaths"),
        [
            "/run/polder/engine-%i:/var/lib/polder/run/engine-%i",
            "-/var/lib/polder/kv/%i",
            "-/var/lib/polder/packed/%i"
        ]
    );
    // The ways to the supervisor, the door's console, the init system and the part that opens the disk.
    assert_eq!(
        values(unit, "InaccessiblePaths"),
        [
            "/run/polder",
            "/run/dbus",
            "-/run/polder-seal",
            "-/run/polder-ups",
            "-/run/polder-nut",
            "-/run/polder-disk"
        ]
    );
    for (key, wanted) in [
        ("PrivateNetwork", "yes"),
        ("RestrictAddressFamilies", "AF_UNIX"),
        ("IPAddressDeny", "any"),
        ("PrivatePIDs", "yes"),
        ("PrivateUsers", "yes"),
        ("ProtectSystem", "strict"),
        ("ProtectHome", "yes"),
        ("NoNewPrivileges", "yes"),
        ("CapabilityBoundingSet", ""),
        ("AmbientCapabilities", ""),
        ("DevicePolicy", "closed"),
        ("MemoryDenyWriteExecute", "yes"),
        ("RestrictNamespaces", "yes"),
        ("KeyringMode", "private"),
    ] {
        assert_eq!(value(unit, key), wanted, "{key}");
    }
    // It writes what it keeps, and nothing that another part reads as its own.
    assert_eq!(
        values(unit, "ReadWritePaths"),
        ["-/var/lib/polder/kv/%i", "-/var/lib/polder/packed/%i"]
    );
}

#[test]
fn systemd_finds_nothing_to_complain_about() {
    let units: Vec<String> = ours().iter().map(|unit| unit.replace("@.", "@1.")).collect();
    assert!(units.len() > 15, "{units:?}");
    let Some(said) = analyze(&["verify", "--man=no"], &units) else { return };
    let young = |line: &&str| {
        let key = YOUNG_KEYS.iter().any(|key| line.contains(&format!("'{key}'")));
        key && line.contains("Unknown key")
    };
    let complaints: Vec<&str> = said.lines().filter(|line| !young(line)).collect();
    assert_eq!(complaints, Vec::<&str>::new());
}

#[test]
fn every_part_is_locked_up_well_enough() {
    for (unit, most) in MOST_EXPOSED {
        let arguments = ["security", "--offline=yes", "--no-pager"];
        let Some(said) = analyze(&arguments, &[unit.to_owned()]) else { return };
        let exposure = said.lines().find_map(|line| line.split_once("exposure level for "));
        let exposure = exposure.unwrap_or_else(|| panic!("{unit}: {said}")).1;
        let number = exposure.split_whitespace().find_map(|word| word.parse::<f64>().ok()).unwrap();
        assert!(number <= most, "{unit} is at {number}:\n{said}");
        println!("{number:>4} {unit}");
    }
}

#[test]
fn a_stick_runs_the_installer_and_a_box_never_does() {
    let condition = "ConditionKernelCommandLine";
    assert_eq!(value("polder-installer.service", condition), "polder.live");
    // The gateway and the engines are started by the supervisor and by the socket alone.
    for unit in ["polder-supervisor.service", "polder-screen.service", "polder-gateway.socket"] {
        assert_eq!(value(unit, condition), "!polder.live", "{unit}");
    }
}

#[test]
fn who_looks_after_the_uplinks_may_administer_the_network_and_nothing_else() {
    for key in ["AmbientCapabilities", "CapabilityBoundingSet"] {
        assert_eq!(value("polder-wan.service", key), "CAP_NET_ADMIN");
    }
    // Over the network of the machine, and not of a namespace.
    let text = text_of("polder-wan.service");
    assert!(!text.contains("\nPrivateUsers=") && !text.contains("\nPrivateNetwork="));
    let networkd = tree().join("lib/systemd/networkd.conf.d/50-polder.conf");
    let networkd = std::fs::read_to_string(networkd).unwrap();
    for left_alone in ["ManageForeignRoutes=no", "ManageForeignRoutingPolicyRules=no"] {
        assert!(networkd.lines().any(|line| line == left_alone), "{networkd}");
    }
    let polkit = std::fs::read_to_string(tree().join("share/polkit-1/rules.d/50-polder.rules"));
    assert!(polkit.unwrap().contains(
        "polder-(gateway|health|power|spare|wan|engine@[a-z0-9-]{1,32}|served@[a-z0-9-]{1,32}|contained@[a-z0-9-]{1,32})"
    ));
}

#[test]
fn what_passes_questions_on_sees_where_to_and_with_which_keys_and_nothing_else_of_the_box() {
    let unit = "polder-served@.service";
    assert_eq!(value(unit, "TemporaryFileSystem"), "/var/lib/polder:ro");
    // No member, no weights, nothing that is kept of conversations.
    assert_eq!(
        values(unit, "BindReadOnlyPaths"),
        ["/var/lib/polder/site.toml", "/var/lib/polder/HISTORY", "-/var/lib/polder/upstreams"]
    );
    let socket = "/run/polder/engine-%i:/var/lib/polder/run/engine-%i";
    assert_eq!(values(unit, "BindPaths"), [socket]);
    // The same socket as an engine's: to the door it is one.
    assert!(values("polder-engine@.service", "BindPaths").contains(&socket.to_owned()));
    assert_eq!(
        values(unit, "InaccessiblePaths"),
        values("polder-engine@.service", "InaccessiblePaths")
    );
    // It reaches a server, and no card.
    assert_eq!(value(unit, "RestrictAddressFamilies"), "AF_UNIX AF_INET AF_INET6");
    let text = text_of(unit);
    assert!(!text.contains("\nPrivateNetwork=") && !text.contains("\nIPAddressDeny="), "{text}");
    assert_eq!(
        (value(unit, "PrivateDevices"), value(unit, "CapabilityBoundingSet")),
        ("yes".into(), String::new())
    );
    assert_eq!(value(unit, "ExecStart"), value("polder-engine@.service", "ExecStart"));
}

#[test]
fn a_container_that_was_taken_over_finds_no_member_no_secret_no_network_and_no_right() {
    let (unit, engine) = ("polder-contained@.service", "polder-engine@.service");
    assert_eq!(value(unit, "TemporaryFileSystem"), "/var/lib/polder:ro");
    // Of other slots it may read what was fetched for them, which is public; it may write to its own only.
    assert_eq!(
        values(unit, "BindReadOnlyPaths"),
        [
            "/var/lib/polder/site.toml",
            "/var/lib/polder/HISTORY",
            "/var/lib/polder/weights",
            "-/var/lib/polder/containers/fetched",
            "-/var/lib/polder/containers/lists"
        ]
    );
    let socket = "/run/polder/engine-%i:/var/lib/polder/run/engine-%i";
    let own = "/var/lib/polder/containers/slots/%i";
    assert_eq!(values(unit, "BindPaths"), [socket, own]);
    assert_eq!(values(unit, "ReadWritePaths"), [own]);
    assert_eq!(values(unit, "InaccessiblePaths"), values(engine, "InaccessiblePaths"));
    assert_eq!(values(unit, "DeviceAllow"), values(engine, "DeviceAllow"));
    for (key, wanted) in [
        ("PrivateNetwork", "yes"),
        ("IPAddressDeny", "any"),
        ("IPAddressAllow", "localhost"),
        ("PrivatePIDs", "yes"),
        ("PrivateIPC", "yes"),
        ("PrivateUsers", "yes"),
        ("ProtectSystem", "strict"),
        ("ProtectHome", "yes"),
        ("ProtectControlGroups", "yes"),
        ("NoNewPrivileges", "yes"),
        ("CapabilityBoundingSet", ""),
        ("AmbientCapabilities", ""),
        ("DevicePolicy", "closed"),
        ("RestrictNamespaces", "user mnt pid ipc"),
        ("SystemCallFilter", "@system-service @mount"),
        ("KeyringMode", "private"),
    ] {
        assert_eq!(value(unit, key), wanted, "{key}");
    }
    assert_eq!(value(unit, "ExecStart"), value(engine, "ExecStart"));
    // Without rights there is nobody to switch to, and what an image says of rights is without effect on the box's disk.
    let fstab = std::fs::read_to_string(tree().join("../etc/fstab")).unwrap();
    let var = fstab.lines().find(|line| line.starts_with("/dev/mapper/var ")).unwrap();
    assert!(var.contains("nosuid,nodev"), "{var}");
}

#[test]
fn who_lends_a_disk_sees_nothing_of_the_box_opens_no_device_and_lends_it_to_nobody_else() {
    let unit = "polder-disk@.service";
    assert_eq!(values(unit, "ReadWritePaths"), ["/run/polder-disk"]);
    assert!(values(unit, "InaccessiblePaths").contains(&"-/var/lib/polder".to_owned()));
    assert_eq!(value(unit, "DevicePolicy"), "closed");
    assert!(!text_of(unit).contains("\nDeviceAllow="));
    // It is open no longer than whoever writes to it is there.
    assert_eq!(value(unit, "StopPropagatedFrom"), "polder-supervisor.service");
    let lent = "-/run/polder-disk".to_owned();
    assert!(values("polder-supervisor.service", "ReadWritePaths").contains(&lent));
    // Mounts made later arrive in every part's own view of the machine, whatever is only read in it otherwise.
    for part in SERVICES.iter().filter(|part| **part != "polder-supervisor.service") {
        assert!(values(part, "InaccessiblePaths").contains(&lent), "{part} sees the disk");
    }
    let folders = std::fs::read_to_string(tree().join("lib/tmpfiles.d/polder.conf")).unwrap();
    assert!(folders.contains("d  /run/polder-disk "), "{folders}");
    let rule = tree().join("lib/udev/rules.d/80-polder-disks.rules");
    assert!(std::fs::read_to_string(rule).unwrap().contains("--options=ro,nosuid,nodev,noexec"));
    let polkit = std::fs::read_to_string(tree().join("share/polkit-1/rules.d/50-polder.rules"));
    assert!(polkit.unwrap().contains("/^polder-disk@[0-9A-Fa-f][0-9A-Fa-f-]{3,35}"));
}

/// What of the box's own folder a part sees: it has an empty one in its place, and in that these.
fn sees(unit: &str) -> Vec<String> {
    assert_eq!(value(unit, "TemporaryFileSystem"), "/var/lib/polder:ro", "{unit}");
    let bound = [values(unit, "BindReadOnlyPaths"), values(unit, "BindPaths")].concat();
    bound
        .iter()
        .map(|path| path.rsplit(':').next().unwrap().replace("/var/lib/polder/", ""))
        .collect()
}

fn optional(unit: &str, key: &str) -> Vec<String> {
    if text_of(unit).contains(&format!("\n{key}=")) { values(unit, key) } else { Vec::new() }
}

#[test]
fn parts_do_not_see_each_others_secrets() {
    assert_eq!(sees("polder-power.service"), ["site.toml", "HISTORY", "run", "power"]);
    assert_eq!(sees("polder-wan.service"), ["site.toml", "HISTORY", "uplinks", "run"]);
    let health = "polder-health.service";
    assert!(!text_of(health).contains("\nBindReadOnlyPaths="));
    assert_eq!(value(health, "TemporaryFileSystem"), "/var/lib/polder:ro");
    assert_eq!(
        values(health, "BindPaths"),
        ["/var/lib/polder/health", "/var/lib/polder/weights", "/run/polder:/var/lib/polder/run"]
    );
    for place in ["power", "health", "uplinks", "pki", "polder.db"] {
        let hidden = values("polder-spare.service", "InaccessiblePaths");
        assert!(hidden.contains(&format!("-/var/lib/polder/{place}")), "the link sees {place}");
    }
    for unit in ["polder-screen.service", "polder-judge.service"] {
        let hidden = values(unit, "InaccessiblePaths");
        for place in ["spare", "restore", "drill", "relay.pass", "gone.jsonl", "backup", "power"] {
            assert!(hidden.contains(&format!("-/var/lib/polder/{place}")), "{unit} sees {place}");
        }
    }
    for unit in [
        "polder-power.service",
        "polder-wan.service",
        health,
        "polder-gateway.service",
        "polder-spare.service",
    ] {
        // Who has the box's user may have systemd start and end its parts.
        assert!(
            values(unit, "InaccessiblePaths")
                .iter()
                .any(|p| p.trim_start_matches('-') == "/run/dbus"),
            "{unit}"
        );
        let written =
            values(unit, "ReadWritePaths").into_iter().chain(optional(unit, "ReadOnlyPaths"));
        let own = unit == "polder-power.service";
        let ups = written.filter(|path| path.ends_with("/run/polder-ups")).count();
        assert_eq!(ups, usize::from(own), "{unit} reads what the box says to its upsd");
        let hidden = values(unit, "InaccessiblePaths").contains(&"-/run/polder-ups".to_owned());
        assert_eq!(hidden, !own, "{unit}");
    }
    // What is to be shown has to be there before.
    let folders = std::fs::read_to_string(tree().join("lib/tmpfiles.d/polder.conf")).unwrap();
    for folder in ["power", "uplinks", "health", "weights"] {
        let line = format!("d  /var/lib/polder/{folder} ");
        assert!(folders.contains(&line), "{folder} is not made before parts start");
    }
}

#[test]
fn who_gives_ports_their_addresses_writes_for_networkd_alone_and_sends_nothing() {
    let unit = "polder-ports.service";
    assert_eq!(values(unit, "ReadWritePaths"), ["-/run/systemd/network"]);
    assert_eq!(values(unit, "ReadOnlyPaths"), ["-/var/lib/polder"]);
    assert_eq!(value(unit, "CapabilityBoundingSet"), "CAP_DAC_READ_SEARCH");
    // networkctl refuses to work in another network namespace than networkd's.
    assert!(!text_of(unit).contains("\nPrivateNetwork="));
    for unit in [unit, "polder-seed-port.service"] {
        assert_eq!(value(unit, "RestrictAddressFamilies"), "AF_UNIX", "{unit}");
        assert_eq!(value(unit, "IPAddressDeny"), "any", "{unit}");
    }
    let polkit = std::fs::read_to_string(tree().join("share/polkit-1/rules.d/50-polder.rules"));
    assert!(polkit.unwrap().contains("|ports|"));
    // A folder that is made later would not be its to write.
    let folders = std::fs::read_to_string(tree().join("lib/tmpfiles.d/polder.conf")).unwrap();
    assert!(folders.contains("d  /run/systemd/network "), "{folders}");
}

#[test]
fn nut_hears_a_ups_and_reads_nothing_of_the_box() {
    for unit in ["polder-upsd.service", "polder-ups@.service"] {
        assert_eq!(value(unit, "User"), "nut", "{unit}");
        let hidden = values(unit, "InaccessiblePaths");
        for place in ["/var/lib/polder", "/run/polder", "/run/dbus", "-/run/polder-ups/password"] {
            assert!(hidden.iter().any(|path| path == place), "{unit} sees {place}");
        }
        for key in ["CapabilityBoundingSet", "AmbientCapabilities"] {
            assert_eq!(value(unit, key), "", "{unit}");
        }
        // As the supervisor's files say, which are written before, and for as long as it wants.
        assert!(value(unit, "ConditionPathExists").starts_with("/run/polder-ups/"), "{unit}");
        assert_eq!(value(unit, "Restart"), "always", "{unit}");
        assert_eq!(value(unit, "IPAddressDeny"), "any", "{unit}");
    }
    assert_eq!(value("polder-ups@.service", "PartOf"), "polder-upsd.service");
    // What no card and no disk is.
    for device in values("polder-ups@.service", "DeviceAllow") {
        let known =
            ["char-usb_device", "char-ttyS", "char-ttyAMA", "char-ttyUSB", "char-ttyACM", "rw"];
        assert!(known.contains(&device.as_str()), "{device}");
    }
    let polkit =
        std::fs::read_to_string(tree().join("share/polkit-1/rules.d/50-polder.rules")).unwrap();
    for driver in polder_power::nut::Driver::ALL {
        assert!(polkit.contains(driver.name()), "{driver:?}");
    }
}

#[test]
fn the_ups_cuts_its_outlet_last_of_all_and_only_where_the_watch_asked_for_it() {
    use std::os::unix::fs::PermissionsExt;
    let hook = tree().join("lib/systemd/system-shutdown/polder-ups");
    assert_eq!(hook.metadata().unwrap().permissions().mode() & 0o111, 0o111);
    let text = std::fs::read_to_string(&hook).unwrap();
    let asked = format!("{}/{}", polder_power::nut::PLACE, polder_power::nut::CUT);
    assert!(text.contains(&format!("[ \"$1\" = poweroff ] && [ -e {asked} ] || exit 0")), "{text}");
    // Elsewhere, nothing was asked for; what says so is the shell itself.
    for how in ["reboot", "halt", "poweroff"] {
        assert!(Command::new("sh").arg(&hook).arg(how).status().unwrap().success(), "{how}");
    }
}

#[test]
fn nobody_who_is_locked_up_can_ask_about_the_disk() {
    // Not who answers the network, not who runs models.
    for unit in [
        "polder-gateway.service",
        "polder-engine@.service",
        "polder-served@.service",
        "polder-contained@.service",
        "polder-power.service",
        "polder-wan.service",
        "polder-health.service",
        "polder-spare.service",
    ] {
        assert!(value(unit, "InaccessiblePaths").contains("-/run/polder-seal"), "{unit}");
    }
    assert_eq!(value("polder-seal.socket", "SocketUser"), "polder");
    assert_eq!(value("polder-seal.socket", "SocketMode"), "0600");
}

#[test]
fn systemd_waits_longer_than_the_supervisor_before_it_kills() {
    let Patience { gateway, engine, last, .. } = Patience::default();
    let hurry = Duration::from_secs(2);
    assert!(seconds("polder-gateway.service", "TimeoutStopSec") > gateway + hurry);
    assert!(seconds("polder-engine@.service", "TimeoutStopSec") > engine + hurry);
    assert!(seconds("polder-served@.service", "TimeoutStopSec") > engine + hurry);
    assert!(seconds("polder-contained@.service", "TimeoutStopSec") > engine + hurry);
    assert!(seconds("polder-health.service", "TimeoutStopSec") > last + hurry);
    let imports = Duration::from_secs(3);
    let all = gateway + hurry + last + hurry + imports;
    assert!(seconds("polder-supervisor.service", "TimeoutStopSec") > all);
    let logind = std::fs::read_to_string(tree().join("lib/systemd/logind.conf.d/50-polder.conf"));
    let delay = logind.unwrap().lines().find_map(|line| {
        line.strip_prefix("InhibitDelayMaxSec=").map(|seconds| seconds.parse().unwrap())
    });
    assert!(Duration::from_secs(delay.unwrap()) > all);
}

#[test]
fn the_supervisor_alone_decides_about_restarts_and_is_always_restarted_itself() {
    for unit in [
        "polder-gateway.service",
        "polder-engine@.service",
        "polder-served@.service",
        "polder-contained@.service",
        "polder-power.service",
        "polder-wan.service",
        "polder-health.service",
        "polder-spare.service",
    ] {
        assert_eq!(value(unit, "Restart"), "no");
    }
    assert_eq!(value("polder-supervisor.service", "Restart"), "always");
    // Nothing but these is started by itself.
    let wants = tree().join("lib/systemd/system").read_dir().unwrap().flatten();
    let wants = wants.filter(|e| e.file_name().to_string_lossy().ends_with(".wants"));
    let mut wanted: Vec<String> = wants
        .flat_map(|folder| folder.path().read_dir().unwrap().flatten())
        .map(|link| link.file_name().into_string().unwrap())
        .filter(|name| name.starts_with("polder-gateway") || name.starts_with("polder-engine"))
        .collect();
    wanted.sort();
    assert_eq!(wanted, ["polder-gateway.socket"]);
    for unit in SERVICES {
        assert_eq!(value(unit, "StartLimitIntervalSec"), "0", "{unit}");
        assert_eq!(value(unit, "User"), "polder", "{unit}");
    }
}

#[test]
fn nothing_limits_the_memory_that_the_supervisor_reports_as_the_machines() {
    assert!(!text_of("polder-supervisor.service").contains("\nMemoryMax="));
}
