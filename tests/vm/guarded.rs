//! A disk is sealed to its machine: it opens for the next version of the system, and not for a start that somebody
//! tampered with; and a machine that has the project's keys starts nothing else.

use std::time::Duration;

use crate::claimed::wizard;
use crate::machine::{Disks, Kind};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: `make test-vm-all` runs it"]
async fn vm_a_sealed_disk_opens_for_the_next_version_and_not_for_a_changed_command_line() {
    let disks = Disks::guarded(Kind::Plain);
    // A virtual machine in set-up mode takes the project's keys by itself, and starts again.
    disks.switch_on().goes_off();

    let mut machine = disks.switch_on();
    let browser = wizard(&mut machine).await;
    browser.press("Go on: what opens the disk").await;
    browser.at("/setup/disk").await;
    browser.hear("its passphrase is empty").await;
    assert!(!browser.words().await.contains("Secure Boot is off"), "{}", browser.words().await);
    browser.picture("vm-disk-1-open").await;
    browser.press("Seal the disk").await;
    browser.see("#recovery-key").await;
    browser.picture("vm-disk-2-key").await;
    let key = browser.read("#recovery-key").await;
    browser.fill("key", &key.replace("c", "d")).await;
    browser.press("I have it: seal the disk").await;
    browser.hear("does not open with that key").await;
    browser.fill("key", &key.to_uppercase().replace('-', " ")).await;
    browser.press("I have it: seal the disk").await;
    browser.at("/setup/model").await;
    browser.visit(&format!("https://localhost:{}/setup/disk", machine.port)).await;
    browser.hear("only for a system that this project has signed").await;
    browser.picture("vm-disk-3-sealed").await;
    browser.close().await;
    assert!(!machine.serial().contains(&key), "the key is nowhere but on the page");
    machine.power_button();
    machine.goes_off();

    // Another version, signed with the same key: the machine opens the disk, and its owner's state is on it.
    disks.put_in_version("0.2.0");
    let mut machine = disks.switch_on();
    machine.says("It has no model yet.");
    assert!(machine.serial().contains("Polder"));
    machine.power_button();
    machine.goes_off();

    // The same system, told something that nobody signed.
    let tampered = "type=11,value=io.systemd.stub.kernel-cmdline-extra=polder.tampered=1";
    let mut machine = disks.switch_on_with(&["-smbios", tampered]);
    machine.says("The disk is locked");
    machine.press("u");
    machine.press(&key.replace("c", "d"));
    machine.press("\r");
    machine.says("by itself again");
    machine.press("n");
    machine.says("does not open with that key");
    machine.press("u");
    machine.press(&key.replace('-', ""));
    machine.press("\r");
    machine.press("n");
    machine.says("It has no model yet.");
    machine.power_button();
    machine.goes_off();

    // A system without its signature is not started at all.
    disks.take_the_signature_off("0.2.0");
    let machine = disks.switch_on();
    assert!(!machine.says_within("Claim code: ", Duration::from_secs(90)));
    let said = machine.serial();
    assert!(said.contains("Access denied") || said.contains("Security"), "{said}");
}
