//! The image with NVIDIA's driver, on a machine without a card: as far as an emulated one can go.

use crate::claimed::claim;
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

/// A node of one of the driver's devices, which no driver answers for, before an engine starts.
const NODE: &str = r#"[Unit]
Before=polder-supervisor.service
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'mknod -m 0660 /dev/nvidia-uvm-tools c 195 200; chgrp video /dev/nvidia-uvm-tools'
"#;

/// What an engine and the gateway are given of the cards, as the kernel has it; and the kernels that lie there.
const LOOK_AT_ENGINE: &str = r#"[Unit]
After=multi-user.target polder-screen.service
[Service]
Type=oneshot
TimeoutStartSec=20min
StandardOutput=append:/dev/ttyS0
StandardError=append:/dev/ttyS0
ExecStart=/bin/bash -c 'echo; \
    until journalctl -b -q -u polder-engine@* | grep -q "processor computes"; do sleep 2; done; \
    journalctl -b -q -o cat -u polder-engine@* | grep "processor computes" | tail -n 1; \
    engine=$$(systemctl list-units --plain --no-legend polder-engine@* | cut -d" " -f1); \
    of() { systemctl show --value -p $$2 $$1; }; \
    open() { (echo $$BASHPID > /sys/fs/cgroup$$(of $$1 ControlGroup)/cgroup.procs; : < $$2) 2>&1 | sed "s/^.*: //"; }; \
    dev() { ls /proc/$$(of $$1 MainPID)/root/dev | grep nvidia; }; \
    echo engine, uvm-tools: $$(open $$engine /dev/nvidia-uvm-tools).; \
    echo engine, disk: $$(open $$engine /dev/nvme0n1).; \
    echo gateway, uvm-tools: $$(open polder-gateway.service /dev/nvidia-uvm-tools).; \
    echo nodes of the engine: $$(dev $$engine).; \
    echo nodes of the gateway: $$(dev polder-gateway.service).; \
    echo $$(grep Groups: /proc/$$(of $$engine MainPID)/status).; \
    echo cards: $$(of polder-cards.service ActiveState) $$(of polder-cards.service Result).; \
    echo failed units: $$(systemctl --failed --plain --no-legend).; \
    polder engine kernels check; echo checked: $$?.; \
    ls /usr/share/doc/nvidia-cuda-nvrtc/copyright; \
    echo compilers: $$(find / -xdev -name "*nvrtc*.so*" | wc -l).; echo engine looked at.'
"#;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow, and needs another image: `make test-vm-all` runs it"]
async fn vm_an_engine_of_the_image_with_the_driver_has_its_kernels_and_says_that_there_is_no_card()
{
    let disks = Disks::of(Kind::Driver).with_models();
    let (mut machine, _) = claim(&disks, false).await;
    machine.says("Everything runs.");
    machine.power_button();
    machine.goes_off();
    let mut machine = disks.switch_on_with_services(&[("node", NODE), ("look", LOOK_AT_ENGINE)]);
    machine.says("engine looked at.");
    let serial = machine.serial();
    for told in [
        "NVIDIA's driver is here, and finds no card: the processor computes",
        // Let through to a driver that is not there; closed before anybody is asked.
        "engine, uvm-tools: No such device or address.",
        "engine, disk: Operation not permitted.",
        "gateway, uvm-tools: Operation not permitted.",
        "nodes of the engine: nvidia-uvm-tools.",
        "nodes of the gateway: .",
        // A machine without a card has nothing to wake, and nothing that failed.
        "cards: inactive exec-condition.",
        "failed units: .",
        "sm_80: whole (",
        "sm_89: whole",
        "sm_90a: whole",
        "checked: 0.",
        "/usr/share/doc/nvidia-cuda-nvrtc/copyright",
        "compilers: 0.",
    ] {
        assert!(serial.contains(told), "no {told:?}: {serial}");
    }
    // Debian's number of the group video, to which the nodes belong.
    let (_, groups) = serial.split_once("Groups: ").unwrap();
    let groups = groups.split('.').next().unwrap();
    assert!(groups.split_whitespace().any(|group| group == "44"), "{groups}");
}
