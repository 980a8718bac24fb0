//! What a machine runs from is what was made: a changed byte is noticed before anything of it runs.

use crate::machine::{Disks, Kind};

#[test]
fn vm_one_flipped_byte_in_the_system_and_the_machine_does_not_start_from_it() {
    let disks = Disks::fresh();
    disks.flip_a_byte_of_the_system();
    let mut machine = disks.switch_on();
    machine.says("is corrupted");
    // Long after the time that a whole one takes from here to its first page.
    assert!(!machine.says_within("Claim code: ", std::time::Duration::from_secs(60)));
}

#[test]
fn vm_what_an_update_would_fetch_of_the_image_without_a_driver_is_under_400_megabytes() {
    let disk = Kind::Plain.image();
    let size = |kind| disk.with_extension(kind).metadata().unwrap().len();
    let all = ["root", "verity", "efi"].map(size).iter().sum::<u64>();
    assert!((100_000_000..400_000_000).contains(&all), "{all} bytes");
}
