//! The image for machines with an ARM processor. Emulated: it never ran on a Grace CPU, nor on any other.

use std::time::Duration;

use crate::claimed::{MODEL, claim};
use crate::machine::{Disks, Kind};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: `make test-vm-all` runs it"]
async fn vm_aarch64_emulated_a_machine_without_a_network_out_is_claimed_and_answers() {
    let disks = Disks::of(Kind::Aarch64).with_models();
    // A browser comes in through its network.
    let (mut machine, owned) = claim(&disks, false).await;
    let answer = owned.client(&machine).chat(MODEL, "What is the capital of France?");
    assert!(!answer.words().is_empty(), "{answer:?}");
    println!(
        "it answered {} s after it was switched on: {}",
        machine.age().as_secs(),
        answer.words()
    );
    machine.says("Everything runs.");
    // It asked for an address and got one.
    assert!(machine.serial().contains("https://10.0.2.15/"), "{}", machine.serial());

    machine.power_button();
    machine.goes_off();
    // The second slot was made at the first start, empty, for an update to come.
    let parts = disks.partitions();
    assert_eq!(parts.iter().filter(|name| *name == "_empty").count(), 2, "{parts:?}");
    assert!(parts.iter().any(|name| name == "polder-var"), "{parts:?}");
    let mut machine = disks.switch_on();
    machine.says("Everything runs.");
    let answer = owned.client(&machine).chat(MODEL, "What is the capital of France?");
    assert!(!answer.words().is_empty(), "{answer:?}");
}

#[test]
#[ignore = "slow: `make test-vm-all` runs it"]
fn vm_aarch64_emulated_one_flipped_byte_in_the_system_and_the_machine_does_not_start_from_it() {
    let disks = Disks::of(Kind::Aarch64);
    disks.flip_a_byte_of_the_system();
    let mut machine = disks.switch_on();
    machine.says("is corrupted");
    assert!(!machine.says_within("Claim code: ", Duration::from_secs(60)));
}
