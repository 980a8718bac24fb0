//! Pure: what a key does on the machine's own screen.

use polder_control::{Run, RunState};

use crate::disks::Disk;

/// What one screen shows while nothing is written; each screen and serial line has its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// The disks, and what was typed of one's number.
    List(String),
    /// One disk by its name, and what was typed of that.
    Confirm {
        /// Which.
        disk: String,
        /// So far.
        typed: String,
        /// Something else was typed before.
        wrong: bool,
    },
    /// Whether the machine should go off or start again.
    Power,
}

impl Default for Mode {
    fn default() -> Self {
        Self::List(String::new())
    }
}

/// What somebody at the machine asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Put Polder on the disk with this name.
    Install(String),
    /// A new code for a browser; an earlier one, and who used it, is out.
    NewCode,
    /// Back to the list, from something that failed.
    Dismiss,
    /// Turn the machine off.
    PowerOff,
    /// Start the machine again.
    Restart,
}

/// Longer than any disk's name.
const LONGEST: usize = 32;
const ENTER: [u8; 2] = [b'\r', b'\n'];
const ESCAPE: u8 = 0x1b;
const BACK: [u8; 2] = [0x7f, 0x08];

/// What `key` does. Nothing is written to a disk before its whole name was typed.
pub fn press(mode: Mode, key: u8, disks: &[Disk], run: Option<&Run>) -> (Mode, Option<Act>) {
    match run.map(|run| &run.state) {
        // What is being written is not stopped: a disk that is half done is of no use to anybody.
        Some(RunState::Running) => return (Mode::default(), None),
        Some(RunState::Done) => {
            return match key.to_ascii_lowercase() {
                b'r' => (Mode::default(), Some(Act::Restart)),
                b'o' => (Mode::default(), Some(Act::PowerOff)),
                _ => (Mode::default(), None),
            };
        }
        Some(_) => return (Mode::default(), Some(Act::Dismiss)),
        None => {}
    }
    match mode {
        Mode::List(typed) => list(typed, key, disks),
        Mode::Confirm { disk, typed, .. } => confirm(disk, typed, key, disks),
        Mode::Power => match key.to_ascii_lowercase() {
            b'r' => (Mode::default(), Some(Act::Restart)),
            b'o' => (Mode::default(), Some(Act::PowerOff)),
            _ => (Mode::default(), None),
        },
    }
}

fn list(typed: String, key: u8, disks: &[Disk]) -> (Mode, Option<Act>) {
    if ENTER.contains(&key) {
        let number = typed.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
        let chosen = number.and_then(|index| disks.get(index));
        let mode = match chosen.filter(|disk| disk.refusal.is_none()) {
            Some(disk) => {
                Mode::Confirm { disk: disk.name.clone(), typed: String::new(), wrong: false }
            }
            None => Mode::default(),
        };
        return (mode, None);
    }
    match key {
        b'p' | b'P' => (Mode::Power, None),
        b'c' | b'C' => (Mode::default(), Some(Act::NewCode)),
        b'0'..=b'9' => (Mode::List(longer(typed, key)), None),
        _ => (Mode::List(shorter(typed, key)), None),
    }
}

fn confirm(disk: String, typed: String, key: u8, disks: &[Disk]) -> (Mode, Option<Act>) {
    if key == ESCAPE || !disks.iter().any(|one| one.name == disk && one.refusal.is_none()) {
        return (Mode::default(), None);
    }
    if ENTER.contains(&key) {
        return match typed == disk {
            true => (Mode::default(), Some(Act::Install(disk))),
            false => (Mode::Confirm { disk, typed: String::new(), wrong: true }, None),
        };
    }
    let typed = if key.is_ascii_graphic() { longer(typed, key) } else { shorter(typed, key) };
    (Mode::Confirm { disk, typed, wrong: false }, None)
}

fn longer(mut typed: String, key: u8) -> String {
    if typed.len() < LONGEST {
        typed.push(char::from(key));
    }
    typed
}

fn shorter(mut typed: String, key: u8) -> String {
    if BACK.contains(&key) {
        typed.pop();
    }
    typed
}

#[cfg(test)]
mod tests {
    use polder_control::{Plan, RunId};
    use proptest::prelude::*;

    use super::*;
    use crate::disks::Refusal;

    fn disk(name: &str, refusal: Option<Refusal>) -> Disk {
        Disk {
            name: name.into(),
            path: format!("/dev/{name}"),
            size: 1 << 40,
            model: String::new(),
            serial: String::new(),
            content: Vec::new(),
            partitions: Vec::new(),
            refusal,
        }
    }

    fn disks() -> Vec<Disk> {
        vec![disk("sda", Some(Refusal::RunsFromIt)), disk("sdb", None), disk("nvme0n1", None)]
    }

    fn typed(keys: &str) -> (Mode, Option<Act>) {
        let mut at = (Mode::default(), None);
        for key in keys.bytes() {
            assert_eq!(at.1, None, "{keys:?} goes on after its end");
            at = press(at.0, key, &disks(), None);
        }
        at
    }

    fn run(state: RunState) -> Run {
        let plan = Plan { title: String::new(), steps: Vec::new() };
        Run { id: RunId(1), plan, steps: Vec::new(), state }
    }

    #[test]
    fn a_disk_is_written_to_after_its_number_and_its_whole_name() {
        assert_eq!(typed("3\rnvme0n1\r").1, Some(Act::Install("nvme0n1".into())));
        assert_eq!(typed("2\rsdX\x7fb\r").1, Some(Act::Install("sdb".into())));
        for almost in ["3\rnvme0n\r", "3\rsdb\r", "3\r\r", "3\ry\r", "3\rNVME0N1\r", "3\r nvme0n1"]
        {
            assert_eq!(typed(almost).1, None, "{almost:?}");
        }
    }

    #[test]
    fn a_wrong_name_is_asked_for_again_and_escape_leads_back() {
        let Mode::Confirm { disk, typed: so_far, wrong } = typed("3\rsdb\r").0 else { panic!() };
        assert_eq!((disk.as_str(), so_far.as_str(), wrong), ("nvme0n1", "", true));
        assert_eq!(typed("3\rnvme\x1b").0, Mode::default());
    }

    #[test]
    fn the_stick_cannot_be_chosen_nor_a_number_that_is_none() {
        for number in ["1\r", "4\r", "0\r", "\r", "99999999999999999999\r"] {
            assert_eq!(typed(number), (Mode::default(), None), "{number:?}");
        }
    }

    #[test]
    fn what_is_being_written_takes_no_keys_and_what_failed_leads_back_with_any() {
        for key in 0..=u8::MAX {
            let (_, act) = press(Mode::Power, key, &disks(), Some(&run(RunState::Running)));
            assert_eq!(act, None);
            let failed = run(RunState::Failed("x".into()));
            let (_, act) = press(Mode::default(), key, &disks(), Some(&failed));
            assert_eq!(act, Some(Act::Dismiss));
        }
        let done = run(RunState::Done);
        assert_eq!(press(Mode::default(), b'r', &disks(), Some(&done)).1, Some(Act::Restart));
        assert_eq!(press(Mode::default(), b'\r', &disks(), Some(&done)).1, None);
    }

    proptest! {
        #[test]
        fn no_keys_write_to_a_disk_without_its_name_among_them(keys in prop::collection::vec(any::<u8>(), 0..60)) {
            let mut mode = Mode::default();
            for (index, key) in keys.iter().enumerate() {
                let (next, act) = press(mode, *key, &disks(), None);
                if let Some(Act::Install(name)) = act {
                    let before: Vec<u8> = keys[..index].to_vec();
                    prop_assert!(name != "sda");
                    let mut wanted = name.bytes();
                    // In this order, with whatever between.
                    let mut next = wanted.next();
                    for key in before {
                        if Some(key) == next { next = wanted.next(); }
                    }
                    prop_assert_eq!(next, None);
                }
                mode = next;
            }
        }
    }
}
