//! A stick and an empty disk become a box: by somebody who has a serial line and types the disk's name, and by a
//! seed where nobody is there.

use std::time::Duration;

use crate::machine::{Disks, Machine, Port};

#[test]
#[ignore = "slow: `make test-vm-all` runs it"]
fn vm_a_stick_makes_a_box_of_an_empty_disk_and_the_box_starts_from_its_own_disk_with_the_stick_still_in()
 {
    let mut disks = Disks::empty_with_the_image_on_a_stick();
    let mut machine = disks.switch_on();
    let disk = machine.says("nvme0n1  12.9 GB");
    assert!(disk.contains("BOX0001"), "{disk}");
    let stick = machine.says("(STICK1)\n      Not this one:");
    assert_eq!(stick, "this machine runs from it just now.");
    // The stick cannot be chosen, and another name is no yes.
    machine.press("2\r");
    machine.says("type the disk's name");
    machine.press("sda\r");
    machine.says("That was another name.");
    machine.press("nvme0n1\r");
    machine.says("Polder is on the disk, and what was read back is right.");
    machine.press("o");
    machine.goes_off();

    // With the stick in, which has the same system under the same numbers: the box is the disk.
    disks.move_the_stick(Some(Port::Last));
    let mut machine = disks.switch_on();
    machine.says("Claim code: ");
    let serial = machine.serial();
    assert!(!serial.contains("Install Polder"), "{serial}");
    machine.power_button();
    machine.goes_off();
    assert!(disks.the_stick_is_the_image(), "something wrote to the stick");

    disks.move_the_stick(None);
    let mut machine = disks.switch_on();
    machine.says("Claim code: ");
}

#[test]
#[ignore = "slow: `make test-vm-all` runs it"]
fn vm_a_seed_on_the_stick_makes_a_box_that_nobody_has_to_look_at() {
    let seed = "version = 1\ndisk = \"BOX0001\"\nname = \"meadow\"\n\
                owner = \"046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296\
                4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5\"\n\
                [network]\naddress = \"10.0.2.20/24\"\ngateway = \"10.0.2.2\"\n";
    let mut disks = Disks::empty_with_the_image_on_a_stick().with_seed(seed);
    let mut machine = disks.switch_on();
    machine.says("The machine turns itself off in");
    machine.goes_off();

    // The stick was forgotten in the machine: what is on the disk stays there.
    let mut machine = disks.switch_on();
    machine.says("Polder is on nvme0n1 already");
    machine.press("p");
    machine.says("Nothing is being written.");
    machine.press("o");
    machine.goes_off();

    disks.move_the_stick(None);
    let mut machine = disks.switch_on();
    machine.says("https://meadow.local/");
    machine.says("https://10.0.2.20/");
    machine.says("This box waits for its owner");
    assert!(!machine.serial().contains("Claim code"));
}

#[test]
#[ignore = "slow: `make test-vm-all` runs it"]
fn vm_a_disk_that_vanishes_while_it_is_written_and_a_power_cut_leave_a_machine_that_begins_again() {
    let mut disks = Disks::empty_with_the_image_on_a_stick();
    disks.answer(&["qemu-img", "create", "-q", "-f", "raw", "/mnt/vm/loose.raw", "12G"]);
    let mut machine = disks.switch_on_with(&[
        "-device",
        "virtio-scsi-pci",
        "-drive",
        "file=/mnt/vm/loose.raw,format=raw,if=none,id=loose,cache=unsafe",
        "-device",
        "scsi-hd,id=loose,drive=loose,serial=BOX0002",
    ]);
    begin_on(&mut machine, "BOX0002");
    std::thread::sleep(Duration::from_secs(5));
    machine.pull_out("loose");
    let why = machine.says("Polder is not installed:");
    assert!(!why.is_empty(), "{}", machine.serial());

    machine.press("x");
    begin_on(&mut machine, "BOX0001");
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(machine.said("what was read back is right"), 0, "it was too fast to be cut off");
    drop(machine);
    let mut machine = disks.switch_on();
    begin_on(&mut machine, "BOX0001");
    machine.says("Polder is on the disk, and what was read back is right.");
    machine.press("o");
    machine.goes_off();
    disks.move_the_stick(None);
    disks.switch_on().says("Claim code: ");
}

/// Chooses the disk with this number on its label, and has it written.
fn begin_on(machine: &mut Machine, label: &str) {
    machine.says("Number of the disk, then Enter:");
    machine.says(&format!("({label})"));
    let serial = machine.serial();
    let line = serial.lines().rfind(|line| line.contains(&format!("({label})"))).unwrap();
    let [number, name] = [0, 1].map(|n| line.split_whitespace().nth(n).unwrap().to_owned());
    machine.press(&format!("{number}\r"));
    machine.says(&format!("type the disk's name, {name},"));
    machine.press(&format!("{name}\r"));
    machine.says("Leave the machine on and the stick in.");
}
