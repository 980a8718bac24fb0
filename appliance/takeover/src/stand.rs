//! Pure: whether a box may serve, and whether a spare may take over.

use std::sync::OnceLock;
use std::time::Duration;

use polder_control::Stand;
use serde::{Deserialize, Serialize};

use crate::{Side, Term};

/// So long without a word, and a main box that yields has stopped; and no main box is taken for dead before.
pub const LEASE: Duration = Duration::from_secs(60);
/// Another lease in seconds, for trials with two boxes on one machine. Both must have the same.
const OTHER_LEASE: &str = "POLDER_LEASE";

/// The lease, and how much longer than the main box the spare waits, since their clocks need not go at one pace: a twelfth.
pub fn lease() -> (Duration, Duration) {
    static LEASED: OnceLock<Duration> = OnceLock::new();
    let lease = *LEASED.get_or_init(|| {
        let other = std::env::var(OTHER_LEASE).ok().and_then(|text| text.parse().ok());
        let other = other.filter(|seconds| (1..=3600).contains(seconds)).map(Duration::from_secs);
        other
            .inspect(|lease| log::warn!("the lease is {} s, for a trial", lease.as_secs()))
            .unwrap_or(LEASE)
    });
    (lease, Duration::from_secs(lease.as_secs().div_ceil(12)))
}

/// What a main box has heard of its spare, since its supervisor began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Heard {
    /// Since the last question that was answered was *sent*; none where none was. By a clock that nobody sets.
    pub ago: Option<Duration>,
    /// A question was asked, and there was no answer.
    pub failed: bool,
    /// It served in this boot, by its own stamp, less than a lease before it began: it goes on rather than comes back. Or a
    /// steward at the machine has said that the spare does not serve. That is of the moment: who is off for longer asks anew.
    pub goes_on: bool,
}

/// Whether this box may serve. Pure; `heard` is for a main box only.
pub fn stand(term: &Term, heard: &Heard) -> Stand {
    if term.retired {
        return Stand::Retired;
    }
    if !term.theirs {
        return Stand::Own;
    }
    match term.mine {
        None if term.given.is_some() => return Stand::Handed,
        Some(mine) if mine >= term.highest => {}
        _ => return Stand::Fenced,
    }
    // From a spare that stands in nobody takes over by silence.
    if term.side == Side::Spare {
        return Stand::Serves;
    }
    match (heard.ago, term.yields) {
        (Some(ago), _) if ago <= lease().0 => Stand::Serves,
        // It was never away: whoever takes over from it has to ask it, or a steward who is sure.
        (Some(_), false) => Stand::Serves,
        (None, false) if heard.goes_on => Stand::Serves,
        (Some(_), true) => Stand::Waits,
        (None, _) if heard.failed => Stand::Waits,
        (None, _) => Stand::Asks,
    }
}

/// What a spare has heard of its main box. By a clock that nobody sets, or the longest there is after a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Silence {
    /// Since its last word.
    pub since: Duration,
    /// What it said last of whether it stops in such a silence.
    pub yields: bool,
    /// A steward has typed its name: it is off and stays off.
    pub said_dead: bool,
}

/// Why a spare may take over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Permission {
    /// It stops by itself in a silence of this length, and it was that long.
    Silent,
    /// A steward said that it is dead.
    SaidDead,
    /// A takeover was cut off after its term had begun: nobody serves in it, and the main box will not.
    Begun,
}

/// Whether a spare may take over from its main box; a sentence where it may not. Pure.
pub fn allowed(term: &Term, main: &str, silence: &Silence) -> Result<Permission, String> {
    if term.side != Side::Spare {
        return Err("this is the main box; a takeover is begun on its spare".to_owned());
    }
    if term.mine == Some(term.highest) {
        return Err(format!("this box serves for {main} already"));
    }
    let (lease, margin) = lease();
    let silent = silence.since >= lease + margin;
    match silence {
        Silence { yields: true, .. } if silent => Ok(Permission::Silent),
        Silence { said_dead: true, .. } if silent => Ok(Permission::SaidDead),
        Silence { said_dead: true, since, .. } => Err(format!(
            "{main} said something {} s ago, so it is not dead; turn it off, wait a minute, and ask again",
            since.as_secs()
        )),
        _ if silent => Err(format!(
            "{main} is silent, but may serve members that this box does not see; make sure that it is off and stays off, then type its name"
        )),
        _ => Err(format!(
            "{main} is there; to change over, turn it off, wait a minute, and type its name"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }
    fn after(ago: Option<u64>) -> Heard {
        Heard { ago: ago.map(secs), ..Heard::default() }
    }

    #[test]
    fn a_main_box_that_comes_back_serves_nothing_before_its_spare_was_heard() {
        let term = Term::first(Side::Main);
        assert_eq!(stand(&term, &after(None)), Stand::Asks);
        assert_eq!(stand(&term, &Heard { failed: true, ..after(None) }), Stand::Waits);
        assert_eq!(stand(&term, &after(Some(0))), Stand::Serves);
        let goes_on = Heard { goes_on: true, failed: true, ago: None };
        assert_eq!(stand(&term, &goes_on), Stand::Serves);
        let yields = Term { yields: true, ..term.clone() };
        assert_eq!(stand(&yields, &goes_on), Stand::Waits);
    }

    #[test]
    fn a_higher_term_closes_the_door_whatever_else_is_true() {
        let mut term = Term::first(Side::Main);
        term.highest = 2;
        let heard = Heard { goes_on: true, ..after(Some(0)) };
        assert_eq!(stand(&term, &heard), Stand::Fenced);
    }

    #[test]
    fn a_box_that_runs_outlives_its_spare_unless_it_promised_to_stop() {
        let mut term = Term::first(Side::Main);
        assert_eq!(stand(&term, &after(Some(99_999))), Stand::Serves);
        term.yields = true;
        assert_eq!(stand(&term, &after(Some(60))), Stand::Serves);
        assert_eq!(stand(&term, &after(Some(61))), Stand::Waits);
    }

    #[test]
    fn silence_alone_is_enough_only_for_a_box_that_promised_to_stop() {
        let term = Term::first(Side::Spare);
        let silent = Silence { since: secs(65), yields: false, said_dead: false };
        let why = allowed(&term, "oak", &silent).unwrap_err();
        assert!(why.contains("off and stays off"), "{why}");
        let promised = Silence { yields: true, ..silent };
        assert_eq!(allowed(&term, "oak", &promised), Ok(Permission::Silent));
        let early = Silence { since: secs(64), said_dead: true, ..promised };
        assert!(allowed(&term, "oak", &early).unwrap_err().contains("64 s ago"));
        let dead = Silence { said_dead: true, ..silent };
        assert_eq!(allowed(&term, "oak", &dead), Ok(Permission::SaidDead));
        assert!(allowed(&Term::first(Side::Main), "oak", &dead).is_err());
        let mut serving = term;
        serving.raise();
        assert!(allowed(&serving.serving(), "oak", &dead).unwrap_err().contains("already"));
    }
}
