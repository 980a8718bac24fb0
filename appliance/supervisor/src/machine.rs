use std::fs;
use std::path::Path;
use std::time::Duration;

use polder_control::{Gpu, Machine, Port};

/// The machine that this runs on, its graphics cards included.
pub async fn this_machine(state: &Path) -> Machine {
    detect(state, gpus().await.0)
}

/// What the operating system tells of the hardware, besides the graphics cards.
pub(crate) fn detect(state: &Path, gpus: Vec<Gpu>) -> Machine {
    let (disk_free, disk_total) = disk(state);
    let cards = nvidia_cards(Path::new("/sys/bus/pci/devices"));
    let idle = cards.iter().filter(|driven| !**driven).count() as u32;
    // Both are in the image and nowhere else.
    let image = read("/usr/lib/os-release").lines().any(|line| line == "IMAGE_ID=polder");
    Machine {
        cpu: processor(&read("/proc/cpuinfo")),
        threads: std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
        memory: memory(),
        disk_free,
        disk_total,
        gpus,
        driver: image.then(|| driver_of(cards.len() as u32, idle)),
        idle_cards: idle,
        ports: ports(Path::new("/sys/class/net")),
    }
}

/// The same where it is known by whoever does root's part that it runs from the image: its ports are those that can be given addresses.
pub(crate) fn on_the_image(seen: Machine, net: &Path) -> Machine {
    let cards = nvidia_cards(Path::new("/sys/bus/pci/devices")).len() as u32;
    let driver = seen.driver.unwrap_or_else(|| driver_of(cards, seen.idle_cards));
    Machine { driver: Some(driver), ports: ports(net), ..seen }
}

fn driver_of(cards: u32, idle: u32) -> String {
    let driver = read("/usr/lib/polder/driver");
    about_driver(Some(driver.trim()).filter(|driver| !driver.is_empty()), cards, idle)
}

fn ports(net: &Path) -> Vec<Port> {
    let found = fs::read_dir(net).into_iter().flatten().flatten();
    // Only hardware has a device behind it.
    let real = found.filter(|entry| entry.path().join("device").exists());
    let mut ports: Vec<Port> = real
        .filter_map(|entry| {
            let carrier = fs::read_to_string(entry.path().join("carrier")).unwrap_or_default();
            let name = entry.file_name().into_string().ok()?;
            Some(Port { name, connected: carrier.trim() == "1" })
        })
        .collect();
    ports.sort_by(|a, b| a.name.cmp(&b.name));
    ports
}

/// About the driver in an image, for the NVIDIA cards in the machine, of which some are idle.
fn about_driver(driver: Option<&str>, cards: u32, idle: u32) -> String {
    match (driver, cards, idle) {
        (None, 0, _) => "this image has no NVIDIA driver".to_owned(),
        (None, ..) => {
            "this image has no driver for the NVIDIA card in this machine: take one that has"
                .to_owned()
        }
        (Some(driver), _, 0) => format!("driver {driver}"),
        (Some(driver), ..) => format!(
            "the driver {driver} does not drive {idle} of the NVIDIA cards in this machine: take an image with a newer one"
        ),
    }
}

/// For every graphics card of NVIDIA's whether its driver has taken it.
fn nvidia_cards(devices: &Path) -> Vec<bool> {
    let Ok(entries) = fs::read_dir(devices) else { return Vec::new() };
    let field = |device: &Path, name: &str| {
        fs::read_to_string(device.join(name)).unwrap_or_default().trim().to_owned()
    };
    let paths = entries.flatten().map(|entry| entry.path());
    // 0300 shows pictures, 0302 only computes.
    let cards = paths.filter(|device| {
        let class = field(device, "class");
        field(device, "vendor") == "0x10de"
            && (class.starts_with("0x0300") || class.starts_with("0x0302"))
    });
    let driven = |device: std::path::PathBuf| {
        fs::read_link(device.join("driver")).is_ok_and(|driver| driver.ends_with("nvidia"))
    };
    cards.map(driven).collect()
}

/// Bytes free to us and bytes in all where `state` is; zero where the system does not tell.
fn disk(state: &Path) -> (u64, u64) {
    rustix::fs::statvfs(state).map_or((0, 0), |fs| {
        (fs.f_bavail.saturating_mul(fs.f_frsize), fs.f_blocks.saturating_mul(fs.f_frsize))
    })
}

fn processor(cpuinfo: &str) -> String {
    let field = |key: &str| {
        cpuinfo.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            (name.trim() == key && !value.trim().is_empty()).then(|| value.trim().to_owned())
        })
    };
    // Arm has no "model name".
    field("model name")
        .or_else(|| field("Model"))
        .unwrap_or_else(|| format!("an {} processor", std::env::consts::ARCH))
}

/// Bytes of memory: what is built in, or what our control group may use, whichever is less.
pub fn memory() -> u64 {
    let built_in = meminfo_total(&read("/proc/meminfo")).unwrap_or(0);
    let groups = read("/proc/self/cgroup");
    let group = control_group(&groups);
    let limits = Path::new(group).ancestors().filter_map(|folder| {
        let folder = folder.to_str()?.trim_matches('/');
        let path = format!("/sys/fs/cgroup/{folder}/memory.max");
        read(&path).trim().parse::<u64>().ok()
    });
    let old = read("/sys/fs/cgroup/memory/memory.limit_in_bytes").trim().parse().ok();
    limits.chain(old).fold(built_in, u64::min)
}

fn meminfo_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The unified control group of a process, from its `/proc/PID/cgroup`.
fn control_group(text: &str) -> &str {
    text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/")
}

/// The graphics cards, and whether the driver's own tool told all that it ever will of them. Takes a moment where it is asked.
pub(crate) async fn gpus() -> (Vec<Gpu>, bool) {
    let from_driver = driver_gpus(Path::new("/proc/driver/nvidia/gpus"));
    if from_driver.is_empty() && !Path::new("/dev/nvidiactl").exists() {
        return (Vec::new(), false);
    }
    // A driver in trouble makes the tool hang.
    let asked = tokio::process::Command::new("nvidia-smi")
        .args(["--query-gpu=name,memory.total", "--format=csv,noheader,nounits"])
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(Duration::from_secs(5), asked).await {
        Ok(Ok(out)) if out.status.success() => {
            let listed = smi_gpus(&String::from_utf8_lossy(&out.stdout));
            if listed.is_empty() { (from_driver, false) } else { (listed, true) }
        }
        _ => (from_driver, false),
    }
}

fn driver_gpus(folder: &Path) -> Vec<Gpu> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut folders: Vec<_> = entries.flatten().map(|e| e.path()).collect();
    folders.sort();
    let model = |path: std::path::PathBuf| {
        let text = fs::read_to_string(path.join("information")).ok()?;
        let name = text.lines().find_map(|l| l.strip_prefix("Model:"))?.trim().to_owned();
        Some(Gpu { name, memory: None })
    };
    folders.into_iter().filter_map(model).collect()
}

fn smi_gpus(csv: &str) -> Vec<Gpu> {
    let gpu = |line: &str| {
        let (name, mib) = line.rsplit_once(',')?;
        // Chips that share the machine's memory answer "[N/A]".
        let memory = mib.trim().parse::<u64>().ok().and_then(|m| m.checked_mul(1 << 20));
        Some(Gpu { name: name.trim().to_owned(), memory })
    };
    csv.lines().filter_map(gpu).collect()
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn this_machine_has_a_processor_memory_and_a_disk() {
        let machine = detect(Path::new("/"), gpus().await.0);
        assert!(!machine.cpu.is_empty());
        assert!(machine.threads > 0 && machine.memory > 1 << 20);
        assert!(machine.disk_total >= machine.disk_free && machine.disk_total > 0);
    }

    #[test]
    fn a_card_that_nothing_drives_is_counted_and_other_devices_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let device = |name: &str, vendor: &str, class: &str, driver: Option<&str>| {
            let device = folder.path().join(name);
            fs::create_dir(&device).unwrap();
            fs::write(device.join("vendor"), format!("{vendor}\n")).unwrap();
            fs::write(device.join("class"), format!("{class}\n")).unwrap();
            if let Some(driver) = driver {
                let to = format!("../../../bus/pci/drivers/{driver}");
                std::os::unix::fs::symlink(to, device.join("driver")).unwrap();
            }
        };
        device("0000:01:00.0", "0x10de", "0x030200", Some("nvidia"));
        device("0000:02:00.0", "0x10de", "0x030000", None);
        device("0000:02:00.1", "0x10de", "0x040300", Some("snd_hda_intel"));
        device("0000:03:00.0", "0x10de", "0x030000", Some("vfio-pci"));
        device("0000:04:00.0", "0x8086", "0x030000", None);
        let mut driven = nvidia_cards(folder.path());
        driven.sort_unstable();
        assert_eq!(driven, [false, false, true]);
        assert_eq!(nvidia_cards(&folder.path().join("none")), [false; 0]);
    }

    #[test]
    fn only_hardware_is_a_network_port() {
        let folder = tempfile::tempdir().unwrap();
        for (name, device, carrier) in
            [("enp2s0", true, "0\n"), ("enp1s0", true, "1\n"), ("lo", false, "1\n")]
        {
            let path = folder.path().join(name);
            fs::create_dir_all(if device { path.join("device") } else { path.clone() }).unwrap();
            fs::write(path.join("carrier"), carrier).unwrap();
        }
        let port = |name: &str, connected| Port { name: name.to_owned(), connected };
        assert_eq!(ports(folder.path()), [port("enp1s0", true), port("enp2s0", false)]);
        assert!(ports(&folder.path().join("missing")).is_empty());
    }

    #[test]
    fn an_image_says_what_it_can_drive_whether_there_is_a_card_or_not() {
        assert_eq!(about_driver(None, 0, 0), "this image has no NVIDIA driver");
        assert!(about_driver(None, 1, 1).contains("no driver for the NVIDIA card"));
        assert_eq!(about_driver(Some("NVIDIA 550"), 1, 0), "driver NVIDIA 550");
        assert!(about_driver(Some("NVIDIA 550"), 2, 1).contains("NVIDIA 550 does not drive 1 of"));
    }

    #[test]
    fn the_systems_own_words_are_read() {
        assert_eq!(processor("processor\t: 0\nmodel name\t: Big CPU @ 2:1\n"), "Big CPU @ 2:1");
        assert!(processor("").starts_with("an "));
        assert_eq!(meminfo_total("MemTotal:       16 kB\nMemFree: 1 kB"), Some(16384));
        assert_eq!(meminfo_total("MemTotal: 99999999999999999999 kB"), None);
        assert_eq!(control_group("1:cpu:/x\n0::/box/polder\n"), "/box/polder");
        assert_eq!(
            smi_gpus("NVIDIA H200, 143771\nNVIDIA GB10, [N/A]\n\n"),
            [
                Gpu { name: "NVIDIA H200".into(), memory: Some(143_771 << 20) },
                Gpu { name: "NVIDIA GB10".into(), memory: None },
            ]
        );
    }
}
