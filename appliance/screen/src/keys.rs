//! Pure: what a key does.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use polder_control::RecoveryKey;
use polder_pki::decide::plausible;
use polder_seal::Reset;
use polder_site::{InterfaceName, PortAddress};

/// What the screen shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Mode {
    /// Where the box is and how it is.
    #[default]
    Home,
    /// Whether the set-up should be opened again.
    SetUp,
    /// The network ports.
    Network,
    /// One of them: how it should get its address.
    Port(InterfaceName),
    /// Its address, as far as it is typed.
    Address {
        /// Whose.
        port: InterfaceName,
        /// So far.
        typed: String,
        /// What is wrong with it, if that was said.
        wrong: Option<String>,
    },
    /// Whether the machine should go off or start again.
    Power,
    /// Whether it should start once without engines and apps.
    SafeMode,
    /// What a reset should leave.
    Reset,
    /// The box's name, typed back before it forgets.
    Name {
        /// What is to be left.
        reset: Reset,
        /// So far.
        typed: String,
    },
    /// The recovery key, as far as it is typed.
    Unlock(String),
    /// Whether the machine should open the disk by itself again.
    Anew(RecoveryKey),
    /// The time, as far as it is typed.
    Clock(String),
}

/// What somebody at the machine asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// A new code for the set-up.
    ReopenSetUp,
    /// Turn the machine off.
    PowerOff,
    /// Start the machine again.
    Restart,
    /// The same, once without engines and apps.
    SafeMode,
    /// Forget.
    Reset(Reset),
    /// Open the disk.
    Open {
        /// With this key.
        key: RecoveryKey,
        /// And seal it to the machine as it is started now.
        anew: bool,
    },
    /// Set the clock, in Unix seconds.
    SetClock(u64),
    /// Give a port this address, or have it ask a router.
    GiveAddress {
        /// Which port.
        port: InterfaceName,
        /// What it gets.
        address: PortAddress,
    },
    /// Keep the change of the network that waits for it.
    KeepNetwork,
    /// Nothing; say why.
    Say(&'static str),
}

/// What of the box a key depends on.
#[derive(Debug, Clone, Copy)]
pub struct Here<'a> {
    /// The box's name.
    pub name: &'a str,
    /// The disk is the box's own, and can be made to forget.
    pub disk: bool,
    /// It could not be opened at this start.
    pub locked: bool,
    /// The clock shows a time at which this program did not exist.
    pub early: bool,
    /// The machine's network ports.
    pub ports: &'a [InterfaceName],
    /// A change of the network is undone soon unless somebody confirms it.
    pub waits: bool,
}

/// Nobody types more than a recovery key.
const LONGEST: usize = 100;
const ESCAPE: u8 = 0x1b;

/// What `key` does on a screen that shows `mode`. Nothing that changes the box happens on one key alone.
pub fn press(mode: Mode, key: u8, here: Here<'_>) -> (Mode, Option<Act>) {
    let lower = key.to_ascii_lowercase();
    match mode {
        Mode::Home => (from_home(lower, here), None),
        Mode::Network if lower == b'y' && here.waits => (Mode::Network, Some(Act::KeepNetwork)),
        Mode::Network => (port(key, here).map_or(Mode::Home, Mode::Port), None),
        Mode::Port(port) if lower == b'd' => give(port, PortAddress::default()),
        Mode::Port(port) if lower == b'a' => (typing_address(port, String::new(), None), None),
        Mode::Address { port, typed, .. } => match line(typed, key) {
            Line::More(typed) => (typing_address(port, typed, None), None),
            Line::Whole(typed) => match PortAddress::line(&typed) {
                Ok(address) => give(port, address),
                Err(fault) => (typing_address(port, typed, Some(fault.to_string())), None),
            },
            Line::Left => (Mode::Network, None),
        },
        Mode::SetUp if lower == b'y' => (Mode::Home, Some(Act::ReopenSetUp)),
        Mode::Power if lower == b'o' => (Mode::Home, Some(Act::PowerOff)),
        Mode::Power if lower == b'r' => (Mode::Home, Some(Act::Restart)),
        Mode::SafeMode if lower == b'y' => (Mode::Home, Some(Act::SafeMode)),
        Mode::Reset if lower == b'e' => name(Reset::Everything),
        // Nothing on a locked disk can be kept.
        Mode::Reset if lower == b'm' && !here.locked => name(Reset::KeepModels),
        Mode::Name { reset, typed } => match line(typed, key) {
            Line::More(typed) => (Mode::Name { reset, typed }, None),
            Line::Whole(typed) if typed.trim() == here.name => {
                (Mode::Home, Some(Act::Reset(reset)))
            }
            Line::Whole(_) => {
                (Mode::Home, Some(Act::Say("That is not the box's name; nothing was reset.")))
            }
            Line::Left => (Mode::Home, None),
        },
        Mode::Unlock(typed) => match line(typed, key) {
            Line::More(typed) => (Mode::Unlock(typed), None),
            Line::Whole(typed) => match RecoveryKey::typed(&typed) {
                Some(key) => (Mode::Anew(key), None),
                None => {
                    let why = "That is no recovery key yet: it has eight words of eight letters.";
                    (Mode::Unlock(typed), Some(Act::Say(why)))
                }
            },
            Line::Left => (Mode::Home, None),
        },
        Mode::Clock(typed) => match line(typed, key) {
            Line::More(typed) => (Mode::Clock(typed), None),
            Line::Whole(typed) => match time(&typed) {
                Some(time) => (Mode::Home, Some(Act::SetClock(time))),
                None => {
                    let why = "That is no time after this program was made: write it as in 2027-03-31 14:05.";
                    (Mode::Clock(typed), Some(Act::Say(why)))
                }
            },
            Line::Left => (Mode::Home, None),
        },
        Mode::Anew(key) => (Mode::Home, Some(Act::Open { key, anew: lower == b'y' })),
        _ => (Mode::Home, None),
    }
}

fn from_home(key: u8, here: Here<'_>) -> Mode {
    match key {
        b's' => Mode::SetUp,
        b'n' => Mode::Network,
        b'p' => Mode::Power,
        b'm' if here.disk && !here.locked => Mode::SafeMode,
        b'f' if here.disk => Mode::Reset,
        b'u' if here.locked => Mode::Unlock(String::new()),
        b't' if here.disk && here.early => Mode::Clock(String::new()),
        _ => Mode::Home,
    }
}

/// The port that a digit stands for, where its address is the image's affair. On a locked disk there is nobody who could write it down.
fn port(key: u8, here: Here<'_>) -> Option<InterfaceName> {
    let place = usize::from(key.checked_sub(b'1').filter(|place| *place < 9)?);
    here.ports.get(place).filter(|_| here.disk && !here.locked).cloned()
}

/// The list of ports stays, where the change is confirmed.
fn give(port: InterfaceName, address: PortAddress) -> (Mode, Option<Act>) {
    (Mode::Network, Some(Act::GiveAddress { port, address }))
}

fn typing_address(port: InterfaceName, typed: String, wrong: Option<String>) -> Mode {
    Mode::Address { port, typed, wrong }
}

fn name(reset: Reset) -> (Mode, Option<Act>) {
    (Mode::Name { reset, typed: String::new() }, None)
}

/// Date and time as somebody types them; in Greenwich's zone, because the box knows no other and certificates bear a day's
/// difference.
fn time(typed: &str) -> Option<u64> {
    let time = DateTime::strptime("%Y-%m-%d %H:%M", typed.trim()).ok()?;
    let seconds = TimeZone::UTC.to_timestamp(time).ok()?.as_second();
    plausible(seconds).then_some(seconds).and_then(|seconds| u64::try_from(seconds).ok())
}

enum Line {
    More(String),
    Whole(String),
    Left,
}

/// A line as it is typed: the end of it, a letter taken back, or one more.
fn line(mut typed: String, key: u8) -> Line {
    match key {
        b'\r' | b'\n' => return Line::Whole(typed),
        ESCAPE => return Line::Left,
        0x08 | 0x7f => drop(typed.pop()),
        b' '..=b'~' if typed.len() < LONGEST => typed.push(char::from(key)),
        _ => {}
    }
    Line::More(typed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "eujukuik-ljvniheb-tchngetr-henfkdfn-hjcrhelj-lufhrbcg-ivivhfvr-ncueblhj";
    const OPEN: Here<'_> =
        Here { name: "birch", disk: true, locked: false, early: false, ports: &[], waits: false };
    const LOCKED: Here<'_> = Here { locked: true, ..OPEN };

    fn typing(mode: Mode, text: &str, here: Here<'_>) -> (Mode, Vec<Act>) {
        let mut acts = Vec::new();
        let mode = text.bytes().fold(mode, |mode, key| {
            let (mode, act) = press(mode, key, here);
            acts.extend(act);
            mode
        });
        (mode, acts)
    }

    #[test]
    fn no_single_key_changes_the_box() {
        for here in [OPEN, LOCKED] {
            for key in 0..=u8::MAX {
                let (_, act) = press(Mode::Home, key, here);
                assert_eq!(act, None, "{key}");
            }
        }
    }

    #[test]
    fn a_question_is_answered_with_its_letter_and_left_with_any_other() {
        assert_eq!(press(Mode::SetUp, b'Y', OPEN), (Mode::Home, Some(Act::ReopenSetUp)));
        assert_eq!(press(Mode::SetUp, b's', OPEN), (Mode::Home, None));
        assert_eq!(press(Mode::Power, b'o', OPEN), (Mode::Home, Some(Act::PowerOff)));
        assert_eq!(press(Mode::Power, b'\x1b', OPEN), (Mode::Home, None));
        assert_eq!(press(Mode::Network, b'o', OPEN), (Mode::Home, None));
        assert_eq!(typing(Mode::Home, "my", OPEN).1, [Act::SafeMode]);
        assert_eq!(typing(Mode::Home, "mm", OPEN).1, []);
    }

    #[test]
    fn whoever_stands_at_the_machine_gives_a_port_an_address_or_has_it_ask_a_router() {
        let ports: Vec<InterfaceName> = ["enp1s0", "enp2s0"].map(|p| p.parse().unwrap()).into();
        let here = Here { ports: &ports, ..OPEN };
        let gives = |port: &InterfaceName, address| {
            (Mode::Network, vec![Act::GiveAddress { port: port.clone(), address }])
        };
        assert_eq!(typing(Mode::Home, "n2d", here), gives(&ports[1], PortAddress::default()));
        let address = PortAddress::line("192.168.7.20/24 192.168.7.1").unwrap();
        let typed = "n1a192.168.7.99\x7f\x7f20/24 192.168.7.1\r";
        assert_eq!(typing(Mode::Home, typed, here), gives(&ports[0], address));
        // What cannot be is said, and can be put right.
        let (mode, acts) = typing(Mode::Home, "n1a192.168.7.20\r", here);
        let Mode::Address { typed, wrong: Some(wrong), .. } = mode else { panic!("{mode:?}") };
        assert!(typed == "192.168.7.20" && wrong.contains("length of its network"), "{wrong}");
        assert!(acts.is_empty());
        assert_eq!(typing(Mode::Home, "n1a\x1b", here), (Mode::Network, vec![]));
        for nothing in ["n3d", "n0d", "nd", "nxd", "n1x", "ny"] {
            assert_eq!(typing(Mode::Home, nothing, here).1, [], "{nothing}");
        }
        // What waits is kept with two keys, and elsewhere the machine's own system has the addresses.
        let waits = Here { waits: true, ..here };
        assert_eq!(typing(Mode::Home, "ny", waits), (Mode::Network, vec![Act::KeepNetwork]));
        assert_eq!(typing(Mode::Home, "n1d", Here { disk: false, ..here }).1, []);
        assert_eq!(typing(Mode::Home, "n1d", Here { locked: true, ..here }).1, []);
    }

    #[test]
    fn a_box_forgets_only_after_its_name_was_typed() {
        assert_eq!(typing(Mode::Home, "febirch\r", OPEN).1, [Act::Reset(Reset::Everything)]);
        assert_eq!(
            typing(Mode::Home, "fmbirxx\x7f\x7fch\n", OPEN).1,
            [Act::Reset(Reset::KeepModels)]
        );
        let (mode, acts) = typing(Mode::Home, "fepolder\r", OPEN);
        assert!(mode == Mode::Home && matches!(acts[..], [Act::Say(_)]), "{acts:?}");
        assert_eq!(typing(Mode::Home, "febirch\x1b\r", OPEN).1, []);
    }

    #[test]
    fn a_clock_that_cannot_be_right_is_set_to_a_time_that_can() {
        let early = Here { early: true, ..OPEN };
        let (mode, acts) = typing(Mode::Home, "t2027-03-31 14:05\r", early);
        assert_eq!((mode, acts), (Mode::Home, vec![Act::SetClock(1_806_501_900)]));
        for wrong in ["t1999-12-31 23:59\r", "t31.3.2027\r", "t2027-13-01 00:00\r", "t\r"] {
            let (mode, acts) = typing(Mode::Home, wrong, early);
            assert!(
                matches!((&mode, &acts[..]), (Mode::Clock(_), [Act::Say(_)])),
                "{wrong}: {acts:?}"
            );
        }
        assert_eq!(typing(Mode::Home, "t", OPEN), (Mode::Home, vec![]));
    }

    #[test]
    fn a_locked_disk_is_opened_with_its_key_or_forgotten_whole() {
        let (mode, acts) = typing(Mode::Home, &format!("u{KEY}\r"), LOCKED);
        assert!(matches!(mode, Mode::Anew(_)) && acts.is_empty());
        let key = RecoveryKey::typed(KEY).unwrap();
        let open = |anew| Act::Open { key: key.clone(), anew };
        assert_eq!(typing(mode.clone(), "y", LOCKED).1, [open(true)]);
        assert_eq!(typing(mode, "n", LOCKED).1, [open(false)]);
        let (mode, acts) = typing(Mode::Home, "ueuju\r", LOCKED);
        assert!(mode == Mode::Unlock("euju".into()) && matches!(acts[..], [Act::Say(_)]));
        assert_eq!(typing(Mode::Home, "fm", LOCKED).0, Mode::Home);
        assert_eq!(typing(Mode::Home, "u", OPEN).0, Mode::Home);
    }

    #[test]
    fn a_machine_that_only_runs_the_program_is_never_made_to_forget() {
        let here = Here { disk: false, ..OPEN };
        assert_eq!(typing(Mode::Home, "febirch\r", here).1, []);
        assert_eq!(typing(Mode::Home, "my", here).1, []);
    }
}
