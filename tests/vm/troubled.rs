//! A disk that is full and a clock that lost the time: the machine's own screen says so, and the box goes on.

use crate::claimed::{MODEL, claimed, wizard};
use crate::machine::Disks;

/// Takes all that is free but 20 MB.
const FILL: &str = r#"[Unit]
RequiresMountsFor=/var/tmp
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'fallocate -l $$(($$(stat -f -c "%%a * %%S" /var/tmp) - 20000000)) /var/tmp/filler'
"#;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: `make test-vm-all` runs it"]
async fn vm_a_box_whose_disk_is_full_says_so_answers_and_starts_again() {
    let (disks, owned) = claimed().await;
    let mut machine = disks.switch_on_with_services(&[("fill", FILL)]);
    machine.says("The disk is almost full:");
    machine.says("Everything runs.");
    let answer = owned.client(&machine).chat(MODEL, "What is the capital of France?");
    assert!(!answer.words().is_empty(), "{answer:?}");
    // What has to be written down still is: a sign-in, a name, a key.
    let browser = owned.browser(&machine).await;
    browser.visit(&format!("https://localhost:{}/members", machine.port)).await;
    browser.see("h1").await;
    browser.close().await;
    machine.power_button();
    machine.goes_off();

    let mut machine = disks.switch_on();
    machine.says("The disk is almost full:");
    machine.says("Everything runs.");
    let answer = owned.client(&machine).chat(MODEL, "What is the capital of France?");
    assert!(!answer.words().is_empty(), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: `make test-vm-all` runs it"]
async fn vm_a_machine_whose_clock_begins_in_1970_is_told_the_time_at_its_screen() {
    let disks = Disks::fresh();
    let mut machine = disks.switch_on_with(&["-rtc", "base=1970-01-01T00:10:00"]);
    let browser = wizard(&mut machine).await;
    machine.says("The clock is wrong: it shows");
    machine.press("t");
    machine.says("Type today's date");
    machine.press("tomorrow\r");
    machine.says("That is no time after this program was made");
    machine.press("\x1b");
    machine.press("t");
    machine.press("2027-03-31 14:05\r");
    machine.says("The clock is set.");
    // Nothing of the set-up is lost by that.
    browser.press("Go on: what opens the disk").await;
    browser.hear("This machine has no TPM 2.0").await;
    browser.close().await;
    machine.power_button();
    machine.goes_off();

    // The machine's own clock went on.
    let mut machine = disks.switch_on_with(&["-rtc", "base=2027-03-31T15:00:00"]);
    machine.says("It has no model yet.");
    assert_eq!(machine.said("The clock is wrong"), 0, "{}", machine.serial());
}
