use polder_control::{Check, Issue, Severity};

use super::issue;
use crate::seen::{Card, Seen};

/// Degrees below the point at which a card slows down from which on it is told.
const NEAR: f64 = 3.0;

/// Heat, and what slows a card down that is not its owner's wish. That a card draws as much as it may (`sw_power_cap`) is
/// how it should be under load.
pub(super) fn check(seen: &Seen) -> Vec<Issue> {
    seen.cards.iter().flatten().flat_map(|card| [heat(card), brake(card)]).flatten().collect()
}

fn heat(card: &Card) -> Option<Issue> {
    let on = format!("graphics card {}", card.index);
    let degrees = card.temperature.map(|t| format!(" ({t:.0} °C)")).unwrap_or_default();
    let advice = "Look whether its fans turn and whether warm air can leave: nothing before the vents, no dust in the filters, a cooler room";
    if card.too_hot {
        let what =
            format!("{on} is too hot{degrees} and slows itself down, so that answers take longer");
        return Some(issue(Check::GpuHeat, &on, Severity::Warning, what, advice));
    }
    if let Some((now, most)) = card.memory_temperature
        && now >= most
    {
        let what =
            format!("the memory of {on} is too hot: {now:.0} °C, and {most:.0} °C are good for it");
        return Some(issue(Check::GpuHeat, &on, Severity::Warning, what, advice));
    }
    let (now, limit) = (card.temperature?, card.slows_at?);
    (now >= limit - NEAR).then(|| {
        let what = format!("{on} is at {now:.0} °C and slows itself down at {limit:.0} °C");
        issue(Check::GpuHeat, &on, Severity::Notice, what, advice)
    })
}

fn brake(card: &Card) -> Option<Issue> {
    let on = format!("graphics card {}", card.index);
    card.power_brake.then(|| {
        let what = format!("the power supply makes {on} run at half its speed or less");
        let advice = "The power supply is too weak or about to fail, or a plug of the card is not all the way in. Turn the machine off and look at the plugs first";
        issue(Check::GpuSlow, &on, Severity::Warning, what, advice)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::look::nvidia::cards;

    const CARD: &str = include_str!("../../fixtures/nvidia-smi-3090-590.xml");

    fn told(xml: &str) -> Vec<Issue> {
        check(&Seen { cards: Some(cards(xml).unwrap()), ..Seen::default() })
    }

    #[test]
    fn a_card_at_its_power_limit_is_well() {
        assert!(CARD.contains("sw_power_cap>Active"));
        assert_eq!(told(CARD), []);
    }

    #[test]
    fn heat_is_told_with_degrees_and_what_to_look_at() {
        let near = CARD.replace("<gpu_temp>32 C", "<gpu_temp>93 C");
        assert_eq!(told(&near)[0].severity, Severity::Notice);
        let hot = near.replace("hw_thermal_slowdown>Not Active", "hw_thermal_slowdown>Active");
        let issue = &told(&hot)[0];
        assert!(issue.what.contains("too hot (93 °C)") && issue.advice.contains("fans"));
        // The same in the words of drivers before 535.
        let old = hot.replace("clocks_event_reason", "clocks_throttle_reason");
        assert_eq!(told(&old)[0], *issue);
    }

    #[test]
    fn degrees_that_are_left_count_like_degrees() {
        // Hopper and later tell how far it is to the limit: T.Limit.
        let far = CARD.replace("<gpu_temp_tlimit>N/A", "<gpu_temp_tlimit>46 C");
        let far = far.replace(
            "<gpu_temp_slow_threshold>95 C</gpu_temp_slow_threshold>",
            "<gpu_temp_slow_tlimit_threshold>-2 C</gpu_temp_slow_tlimit_threshold>",
        );
        assert_eq!(told(&far), []);
        let near = far.replace("<gpu_temp_tlimit>46 C", "<gpu_temp_tlimit>0 C");
        assert_eq!(told(&near).len(), 1);
    }

    #[test]
    fn a_power_supply_that_brakes_is_told_apart_from_heat() {
        let brake =
            CARD.replace("hw_power_brake_slowdown>Not Active", "hw_power_brake_slowdown>Active");
        assert_eq!(told(&brake)[0].id.check, Check::GpuSlow);
    }
}
