//! The image with NVIDIA's driver, on a machine without a card: as far as an emulated one can go.

use crate::machine::{Disks, Kind};

/// Loads the driver by hand, and says on the serial line what came of it.
const LOOK: &str = r#"[Unit]
After=multi-user.target polder-screen.service
[Service]
Type=oneshot
StandardOutput=append:/dev/ttyS0
StandardError=append:/dev/ttyS0
ExecStart=/bin/sh -c 'echo; echo "taint at first: $(cat /proc/sys/kernel/tainted)."; \
    modprobe nvidia; echo "kernel log: $(dmesg | grep NVRM: | tail -n 1)."; \
    echo "taint at last: $(cat /proc/sys/kernel/tainted)."; \
    modinfo -F version nvidia; modinfo -F firmware nvidia | while read f; do ls /usr/lib/firmware/$f; done; \
    nvidia-smi; echo "driver looked at."'
"#;

/// O, a module from outside the kernel.
const FOREIGN: u32 = 1 << 12;

#[test]
#[ignore = "slow, and needs another image: `make test-vm-all` runs it"]
fn vm_the_driver_is_signed_fits_the_kernel_and_finds_no_card_in_a_machine_without_one() {
    // A kernel that was started by Secure Boot refuses what nobody signed. The first start takes the project's keys.
    let disks = Disks::guarded(Kind::Driver);
    disks.switch_on().goes_off();
    let mut machine = disks.switch_on_with_services(&[("look", LOOK)]);
    machine.says("Claim code: ");
    machine.says("driver looked at.");
    let serial = machine.serial();
    let after = |words: &str| {
        let (_, rest) =
            serial.split_once(words).unwrap_or_else(|| panic!("no {words:?}: {serial}"));
        rest.split('.').next().unwrap().trim().to_owned()
    };
    // A machine without a card runs none of it, and nothing else is foreign to the kernel.
    assert_eq!(after("taint at first: "), "0");
    // The module's code ran: it fits the kernel to the last symbol.
    assert!(serial.contains("No NVIDIA GPU found"), "{serial}");
    let taint: u32 = after("taint at last: ").parse().unwrap();
    assert_eq!(taint & !FOREIGN, 0, "{serial}");
    assert!(serial.contains("/usr/lib/firmware/nvidia/"), "{serial}");
    // Its own program found its library, and no driver to talk to.
    assert!(serial.contains("couldn't communicate with the NVIDIA driver"), "{serial}");
}
