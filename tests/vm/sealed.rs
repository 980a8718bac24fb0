//! What a machine runs from is what was made: a changed byte is noticed before anything of it runs.

use crate::machine::Disks;

#[test]
fn vm_one_flipped_byte_in_the_system_and_the_machine_does_not_start_from_it() {
    let disks = Disks::fresh();
    disks.flip_a_byte_of_the_system();
    let mut machine = disks.switch_on();
    machine.says("is corrupted");
    // Long after the time that a whole one takes from here to its first page.
    assert!(!machine.says_within("Claim code: ", std::time::Duration::from_secs(60)));
}
