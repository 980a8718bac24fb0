//! What is and what comes next, for people.

use std::time::Duration;

use polder_control::PowerPhase;

use crate::policy::{Rules, Seen, Why};

/// One or two sentences.
pub fn words(rules: &Rules, seen: &Seen, phase: PowerPhase, why: Why, may_start: bool) -> String {
    let because = match why {
        Why::Runtime => "the battery lasts only a little longer than stopping takes".to_owned(),
        Why::Charge => format!("the battery has {} % or less", rules.low_charge),
        Why::Low => "the UPS says that its battery is low".to_owned(),
        Why::SilentOnBattery => {
            "the UPS was on battery when it was last heard, and it is not heard any more".to_owned()
        }
        Why::Blind => "the UPS does not say how long its battery lasts".to_owned(),
        Why::Forced => {
            "upsd says that the power of the UPS goes (FSD; if that is over, start upsd again)"
                .to_owned()
        }
        _ => "the mains is away".to_owned(),
    };
    match phase {
        PowerPhase::Mains => match why {
            Why::Unheard => "The UPS has not been heard yet.".to_owned(),
            Why::SilentOnMains => format!(
                "The UPS has not been heard for {}; a power cut would go unnoticed.",
                say(seen.silent)
            ),
            _ if !may_start => format!(
                "The mains is there. Engines start when the battery has {} %{}.",
                rules.start_charge,
                charge(seen)
            ),
            _ => "The mains is there.".to_owned(),
        },
        PowerPhase::OnBattery => {
            let rest = rules.save_after.saturating_sub(seen.on_battery);
            format!(
                "The mains is away; imports wait. If it stays away, the box saves power in {} and takes no new long answers.",
                say(rest)
            )
        }
        PowerPhase::Saving => {
            let until = seen.left().map(|left| left.saturating_sub(rules.stopping() + rules.margin));
            let when = match until {
                Some(until) => format!(", in about {},", say(until)),
                None => String::new(),
            };
            format!(
                "The mains is away; the box saves power and takes no new long answers. At {} %{when} it lets answers finish and turns itself off.",
                rules.low_charge
            )
        }
        PowerPhase::Draining if why == Why::Returning => {
            "The mains is back; if it stays for some seconds, everything starts again.".to_owned()
        }
        PowerPhase::Draining => format!(
            "The box stops, because {because}: answers come to their end, and then the machine turns itself off. If the mains comes back before that, everything starts again."
        ),
        PowerPhase::TellSecondaries => {
            "All is written down. Other machines on the UPS were told and finish; then this machine turns itself off, also if the mains is back.".to_owned()
        }
        PowerPhase::PowerOff => {
            "All is written down, and the machine turns itself off. It starts again when the power is back.".to_owned()
        }
    }
}

fn charge(seen: &Seen) -> String {
    match seen.last.as_ref().and_then(|last| last.charge) {
        Some(charge) => format!("; it has {charge} %"),
        None => String::new(),
    }
}

/// A time as people say it.
pub fn say(time: Duration) -> String {
    match time.as_secs() {
        1 => "1 second".to_owned(),
        seconds @ 0..120 => format!("{seconds} seconds"),
        seconds @ 120..7200 => format!("{} minutes", seconds / 60),
        seconds => format!("{} hours", seconds / 3600),
    }
}
