//! A machine that never ran starts from the image and becomes somebody's box, without a way out to the internet.

use std::time::Duration;

use polder_stories::scaled;

use crate::claimed::{MODEL, claim, keep};
use crate::machine::Disks;

/// An emulated machine needs some ten seconds to go off. Each part that does not end by itself costs 45 or more.
const UNHURRIED: Duration = Duration::from_secs(40);

/// How the system itself is, on the serial line.
const LOOK: &str = r#"[Unit]
After=multi-user.target polder-screen.service
[Service]
Type=oneshot
StandardOutput=append:/dev/ttyS0
ExecStart=/bin/sh -c 'echo; echo failed units: $(systemctl --failed --plain --no-legend).; \
    echo ordering cycles: $(journalctl -b -q | grep -c "ordering cycle").; \
    echo taint: $(cat /proc/sys/kernel/tainted).; echo looked.'
"#;

#[tokio::test(flavor = "multi_thread")]
async fn vm_a_machine_without_a_network_out_is_claimed_and_answers_from_a_plugged_in_disk() {
    let disks = Disks::fresh().with_models();
    let (mut machine, owned) = claim(&disks, true).await;
    let answer = owned.client(&machine).chat(MODEL, "What is the capital of France?");
    assert!(!answer.words().is_empty(), "{answer:?}");
    machine.says("Everything runs.");

    // The power button ends everything in order, without waiting for anybody who has nothing to do, and what was
    // acknowledged is there at the next start.
    machine.power_button();
    machine.goes_off_within(scaled(UNHURRIED));
    let mut machine = disks.switch_on_with_services(&[("look", LOOK)]);
    machine.says("Everything runs.");
    machine.says("looked.");
    let serial = machine.serial();
    for well in ["failed units: .", "ordering cycles: 0.", "taint: 0."] {
        assert!(serial.contains(well), "no {well:?}: {serial}");
    }
    let answer = owned.client(&machine).chat(MODEL, "What is the capital of France?");
    assert!(!answer.words().is_empty(), "{answer:?}");

    // A key on the serial line turns it off too.
    machine.press("p");
    machine.says("turn the machine off");
    machine.press("o");
    machine.goes_off();
    keep(&disks, &owned);
}
