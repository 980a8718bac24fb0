use polder_control::{Check, Issue, Severity, UplinkState, UplinkStatus};

use super::{MINUTE, issue, span};
use crate::seen::Seen;

/// An uplink may be away so long without anybody being told.
const BLINK: u64 = 5 * MINUTE as u64;
/// And so long it may work badly: lines have bad evenings.
const BAD_SPELL: u64 = 30 * MINUTE as u64;

/// Ways out that do not work, or badly. One of several that is away is a warning, all of them are urgent.
pub(super) fn check(seen: &Seen) -> Vec<Issue> {
    let none_works = seen.uplinks.iter().all(is_away);
    seen.uplinks.iter().filter_map(|uplink| of_one(uplink, none_works)).collect()
}

fn of_one(uplink: &UplinkStatus, none_works: bool) -> Option<Issue> {
    let (name, since) = (&uplink.name, span(uplink.for_seconds as i64));
    let words = uplink.state.words();
    let (severity, what, advice) = match uplink.state {
        _ if is_away(uplink) && uplink.for_seconds > BLINK => (
            if none_works { Severity::Urgent } else { Severity::Warning },
            format!("the uplink {name} has not worked for {since}: {words}"),
            "Look at its cable and at the router or modem: pull its plug for a minute. If it stays, call whoever sells that line",
        ),
        UplinkState::Poor if uplink.for_seconds > BAD_SPELL => (
            Severity::Warning,
            format!("the uplink {name} {words}, for {since} now ({} % lost)", uplink.loss_percent),
            "Look who else uses that line, and where the modem's antenna stands; if it stays, call whoever sells that line",
        ),
        _ => return None,
    };
    Some(issue(Check::Uplink, &name.to_string(), severity, what, advice))
}

pub(super) fn is_away(uplink: &UplinkStatus) -> bool {
    matches!(uplink.state, UplinkState::NoCable | UplinkState::NoAddress | UplinkState::Silent)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uplink(name: &str, state: UplinkState, for_seconds: u64) -> UplinkStatus {
        UplinkStatus {
            name: name.parse().unwrap(),
            interface: "enp1s0".parse().unwrap(),
            metered: false,
            in_use: false,
            state,
            for_seconds,
            loss_percent: 30,
            delay_ms: None,
            lost_lately: 0,
            addresses: Vec::new(),
            silent_targets: Vec::new(),
            port: None,
            dead: None,
            stands_in: None,
        }
    }

    fn told(other: UplinkState, state: UplinkState, for_seconds: u64) -> Vec<Severity> {
        let uplinks = vec![uplink("fibre", state, for_seconds), uplink("5g", other, 9)];
        check(&Seen { uplinks, ..Seen::default() }).iter().map(|issue| issue.severity).collect()
    }

    #[test]
    fn one_lost_uplink_is_a_warning_and_the_last_one_is_urgent() {
        use UplinkState::{Good, NoCable, Silent};
        assert_eq!(told(Good, Silent, 1000), [Severity::Warning]);
        assert_eq!(told(NoCable, Silent, 1000), [Severity::Urgent]);
        assert_eq!(told(NoCable, Silent, BLINK), []);
    }

    #[test]
    fn an_uplink_that_works_badly_is_told_of_when_it_stays_so() {
        use UplinkState::{Good, Poor, Returning};
        assert_eq!(told(Good, Poor, 1000), []);
        assert_eq!(told(Good, Poor, 3600), [Severity::Warning]);
        assert_eq!(told(Good, Returning, 3600), []);
        assert_eq!(told(Poor, UplinkState::Silent, 3600), [Severity::Warning]);
    }
}
