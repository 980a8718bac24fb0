//! The machine's figures as people and other parts see them.

use polder_control::{Family, UplinkState, UplinkStatus, WanStatus};
use polder_site::{Uplink, UplinkName};

use crate::machine::{Machine, Why};
use crate::routing::Link;
use crate::{Condition, Time};

/// How the uplinks are, at this time.
pub(crate) fn status(
    machine: &Machine,
    uplinks: &[(UplinkName, Uplink)],
    links: &[Link],
    why: Why,
    trouble: Option<String>,
    now: Time,
) -> WanStatus {
    let (in_use, _) = machine.in_use();
    let one = |(place, ((name, uplink), link)): (usize, (&(UplinkName, Uplink), &Link))| {
        let view = machine.view(place)?;
        let targets = uplink.probed();
        let silent = view.away.iter().filter_map(|n| targets.get(*n));
        Some(UplinkStatus {
            name: name.clone(),
            interface: uplink.interface.clone(),
            metered: uplink.metered,
            in_use: place == in_use,
            state: state(view.condition),
            for_seconds: now.saturating_sub(view.since).as_secs(),
            loss_percent: view.quality.loss_percent(),
            delay_ms: view.quality.delay.map(|d| u32::try_from(d.as_millis()).unwrap_or(u32::MAX)),
            lost_lately: u32::try_from(view.flaps).unwrap_or(u32::MAX),
            addresses: link.addresses.iter().copied().collect(),
            silent_targets: silent.map(ToString::to_string).collect(),
            port: None,
            dead: [false, true]
                .into_iter()
                .find(|six| view.dead[usize::from(*six)])
                .map(Family::of),
            stands_in: [false, true]
                .into_iter()
                .find(|six| place != in_use && machine.ways()[usize::from(*six)] == place)
                .map(Family::of),
        })
    };
    let back = machine.returning().and_then(|(place, when)| {
        Some((uplinks.get(place)?.0.clone(), when.saturating_sub(now).as_secs()))
    });
    let listed: Vec<UplinkStatus> = uplinks.iter().zip(links).enumerate().filter_map(one).collect();
    let why = if listed.is_empty() { String::new() } else { words(why).to_owned() };
    WanStatus { uplinks: listed, why, back, trouble, told: None }
}

fn state(condition: Condition) -> UplinkState {
    match condition {
        Condition::NoCarrier => UplinkState::NoCable,
        Condition::NoAddress => UplinkState::NoAddress,
        Condition::Silent => UplinkState::Silent,
        Condition::Answering => UplinkState::Returning,
        Condition::Poor => UplinkState::Poor,
        Condition::Good => UplinkState::Good,
    }
}

/// Why the uplink in use is in use.
pub(crate) fn words(why: Why) -> &'static str {
    match why {
        Why::Start => "it was there when the box started",
        Why::Lost(Condition::NoCarrier) => "the one before it lost its cable",
        Why::Lost(Condition::NoAddress) => "the one before it lost its address",
        Why::Lost(Condition::Silent | Condition::Answering) => {
            "nobody answered through the one before it"
        }
        Why::Lost(Condition::Poor | Condition::Good) => {
            "the one before it lost too much or was too slow"
        }
        Why::Preferred => "it is preferred, and has worked well for long enough",
    }
}
