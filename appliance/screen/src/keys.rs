//! Pure: what a key does.

/// What the screen shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mode {
    /// Where the box is and how it is.
    #[default]
    Home,
    /// Whether the set-up should be opened again.
    SetUp,
    /// The network ports.
    Network,
    /// Whether the machine should go off or start again.
    Power,
}

/// What somebody at the machine asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// A new code for the set-up.
    ReopenSetUp,
    /// Turn the machine off.
    PowerOff,
    /// Start the machine again.
    Restart,
}

/// What `key` does on a screen that shows `mode`. Nothing that changes the box happens on one key alone.
pub fn press(mode: Mode, key: u8) -> (Mode, Option<Act>) {
    match (mode, key.to_ascii_lowercase()) {
        (Mode::Home, b's') => (Mode::SetUp, None),
        (Mode::Home, b'n') => (Mode::Network, None),
        (Mode::Home, b'p') => (Mode::Power, None),
        (Mode::SetUp, b'y') => (Mode::Home, Some(Act::ReopenSetUp)),
        (Mode::Power, b'o') => (Mode::Home, Some(Act::PowerOff)),
        (Mode::Power, b'r') => (Mode::Home, Some(Act::Restart)),
        _ => (Mode::Home, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_single_key_changes_the_box() {
        for key in 0..=u8::MAX {
            let (_, act) = press(Mode::Home, key);
            assert_eq!(act, None, "{key}");
        }
    }

    #[test]
    fn a_question_is_answered_with_its_letter_and_left_with_any_other() {
        assert_eq!(press(Mode::SetUp, b'Y'), (Mode::Home, Some(Act::ReopenSetUp)));
        assert_eq!(press(Mode::SetUp, b's'), (Mode::Home, None));
        assert_eq!(press(Mode::Power, b'o'), (Mode::Home, Some(Act::PowerOff)));
        assert_eq!(press(Mode::Power, b'\x1b'), (Mode::Home, None));
        assert_eq!(press(Mode::Network, b'o'), (Mode::Home, None));
    }
}
