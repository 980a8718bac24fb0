//! Pure: which disk a seed means, and whether Polder goes onto it without anybody being asked.

use polder_seed::Seed;

use crate::disks::Disk;

/// What a seed comes to on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unattended {
    /// It names no disk: somebody is asked.
    Ask,
    /// Onto this one, without asking.
    Begin(String),
    /// Not without asking; a sentence for the screen.
    No(String),
}

/// Which of these disks `seed` means. `is_box` says whether a disk is a box already: a machine that starts from
/// a stick that was forgotten in it must not lose what it has.
pub fn unattended(seed: &Seed, disks: &[Disk], is_box: &dyn Fn(&Disk) -> bool) -> Unattended {
    let Some(serial) = &seed.disk else { return Unattended::Ask };
    let named: Vec<&Disk> = disks.iter().filter(|disk| disk.serial == *serial).collect();
    let file = polder_seed::FILE;
    match named.as_slice() {
        [] => Unattended::No(format!(
            "{file} names the disk with the number {serial}, which is not in this machine. Choose one here."
        )),
        [disk] => match &disk.refusal {
            Some(why) => Unattended::No(format!(
                "{file} names {}, and that cannot be used: {why}. Choose another one here.",
                disk.name
            )),
            None if is_box(disk) => Unattended::No(format!(
                "Polder is on {} already, so {file} is not followed: take the stick out and start the machine again. \
                 To put Polder on it once more, choose it here.",
                disk.name
            )),
            None => Unattended::Begin(disk.name.clone()),
        },
        _ => Unattended::No(format!(
            "More than one disk says that its number is {serial}, so {file} is not followed. Choose one here."
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disks::Refusal;

    fn disk(name: &str, serial: &str) -> Disk {
        Disk {
            name: name.into(),
            path: format!("/dev/{name}"),
            size: 1 << 40,
            model: String::new(),
            serial: serial.into(),
            content: Vec::new(),
            partitions: Vec::new(),
            refusal: None,
        }
    }

    fn seed(text: &str) -> Seed {
        Seed::parse(&format!("version = 1\n{text}")).unwrap()
    }

    fn no(disks: &[Disk], is_box: bool) -> String {
        match unattended(&seed("disk = \"S1\""), disks, &|_| is_box) {
            Unattended::No(why) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_the_disk_whose_number_is_named_is_written_to_without_asking() {
        let disks = [disk("sda", "S"), disk("sdb", "S1"), disk("sdc", "s1"), disk("sdd", "")];
        let named = unattended(&seed("disk = \"S1\""), &disks, &|_| false);
        assert_eq!(named, Unattended::Begin("sdb".into()));
        assert_eq!(unattended(&seed(""), &disks, &|_| false), Unattended::Ask);
    }

    #[test]
    fn whatever_is_not_quite_as_the_seed_says_is_asked_about() {
        assert!(no(&[disk("sda", "S2"), disk("sdb", "")], false).contains("not in this machine"));
        assert!(no(&[disk("sda", "S1"), disk("sdb", "S1")], false).contains("More than one"));
        let refused = Disk { refusal: Some(Refusal::RunsFromIt), ..disk("sda", "S1") };
        assert!(no(&[refused], false).contains("runs from it"));
    }

    #[test]
    fn a_stick_that_was_forgotten_in_a_box_does_not_wipe_it() {
        assert!(no(&[disk("sda", "S1")], true).contains("take the stick out"));
    }
}
