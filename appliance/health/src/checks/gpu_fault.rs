use std::collections::BTreeMap;

use polder_control::{Check, Issue, Severity};

use super::{DAY, issue};
use crate::seen::{KernelWord, Seen};

/// What an error of the card's driver means, by its number. From NVIDIA's list of Xid errors.
struct Meaning {
    severity: Severity,
    what: &'static str,
    advice: &'static str,
}

/// A card that was in trouble is watched for so long after the last word of it.
const REMEMBERED: i64 = DAY;

/// Errors that the driver of a card wrote into the kernel's log within the last day. For each card, the worst.
pub(super) fn check(seen: &Seen) -> Vec<Issue> {
    let mut worst: BTreeMap<&str, (u32, Meaning, u32)> = BTreeMap::new();
    for event in seen.kernel.iter().flatten() {
        let KernelWord::Xid { bus, code } = &event.what else { continue };
        if seen.now.saturating_sub(event.at) > REMEMBERED {
            continue;
        }
        let Some(meaning) = meaning(*code) else { continue };
        let count = worst.get(bus.as_str()).map_or(0, |(_, _, count)| *count).saturating_add(1);
        let known = worst.get(bus.as_str()).map(|(_, known, _)| known.severity);
        match known {
            Some(severity) if severity >= meaning.severity => {
                if let Some(entry) = worst.get_mut(bus.as_str()) {
                    entry.2 = count;
                }
            }
            _ => drop(worst.insert(bus, (*code, meaning, count))),
        }
    }
    let told = worst.into_iter().map(|(bus, (code, meaning, count))| {
        let card = name(seen, bus);
        let times = if count > 1 {
            format!(", one of {count} reports within a day")
        } else {
            String::new()
        };
        let what = format!("{card} {} (its driver calls it Xid {code}{times})", meaning.what);
        issue(Check::GpuFault, &card, meaning.severity, what, meaning.advice)
    });
    told.collect()
}

/// What people call the card at this place.
fn name(seen: &Seen, bus: &str) -> String {
    let card = seen.cards.iter().flatten().find(|card| card.bus == bus);
    match card {
        Some(card) => format!("graphics card {}", card.index),
        None => format!("the graphics card at {bus}"),
    }
}

/// Errors that a program causes and that harm nobody else are none.
fn meaning(code: u32) -> Option<Meaning> {
    let of = |severity, what, advice| Some(Meaning { severity, what, advice });
    match code {
        48 => of(
            Severity::Urgent,
            "found an error in its memory that it could not put right",
            "Start the machine again. If it comes back within days, the card has to be replaced: this is what its warranty is for",
        ),
        63 | 160 => of(
            Severity::Warning,
            "has put a bad row of its memory aside; the spare one takes over at the next start",
            "Start the machine again when nobody minds. Once or twice in a card's life is no harm",
        ),
        64 | 161 => of(
            Severity::Urgent,
            "has a bad row of memory and could not put it aside",
            "The card has to be replaced: this is what its warranty is for. Until then answers may be wrong",
        ),
        74 | 149 => of(
            Severity::Urgent,
            "lost the link to another card",
            "Turn the machine off, press the cards and the bridge between them firmly into their places, and turn it on again",
        ),
        79 => of(
            Severity::Urgent,
            "does not answer any more",
            "Turn the machine off and pull its plug for a minute. Look whether the card sits firmly, whether its power plugs are all the way in, and whether its fans turn. If it comes back, the power supply may be too weak",
        ),
        92 => of(
            Severity::Warning,
            "puts right very many small errors in its memory",
            "Look whether it gets too hot. If it goes on, ask for a replacement while the warranty lasts",
        ),
        94 => of(
            Severity::Warning,
            "had an error in its memory that hurt one program only",
            "Nothing now: what ran there was started again. If it comes back within days, start the machine again, and then ask for a replacement",
        ),
        95 => of(
            Severity::Urgent,
            "had an error in its memory that may have reached every program",
            "Start the machine again. If it comes back, the card has to be replaced",
        ),
        109 | 119 | 120 | 62 | 61 => of(
            Severity::Urgent,
            "hangs inside: its own little processor does not answer",
            "Start the machine again. If it comes back, take an update of the image when there is one: its driver may know better",
        ),
        123 | 143 | 136 | 140 => of(
            Severity::Urgent,
            "stopped with an error inside the card",
            "Start the machine again. If it comes back within days, the card has to be replaced",
        ),
        54 => of(
            Severity::Urgent,
            "has too little power: a power plug is not in",
            "Turn the machine off and press every power plug of the card all the way in",
        ),
        // What a program did wrong, or the end of one: 8, 13, 31, 32, 43, 45, 68, 69, and what nobody documents.
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::look::kernel::words;
    use crate::seen::{Card, KernelEvent};

    fn seen(now: i64) -> Seen {
        let words = words(include_str!("../../fixtures/xid.log"));
        let kernel = words.into_iter().map(|what| KernelEvent { at: 1000, what }).collect();
        let cards = vec![Card { index: 1, bus: "0000:01:00".into(), ..Card::default() }];
        Seen { now, kernel: Some(kernel), cards: Some(cards), ..Seen::default() }
    }

    #[test]
    fn what_drivers_really_wrote_is_told_in_words_once_for_each_card() {
        let issues = check(&seen(1010));
        let told: Vec<_> = issues.iter().map(|i| i.id.on.as_str()).collect();
        let at = |bus: &str| format!("the graphics card at {bus}");
        // The card at cb:00 has errors 13, which is a program's own, and 109.
        let all = [
            "graphics card 1".to_owned(),
            at("0000:9b:00"),
            at("0000:b3:00"),
            at("0000:cb:00"),
            at("0019:01:00"),
        ];
        assert_eq!(told, all);
        assert!(issues.iter().all(|i| i.severity == Severity::Urgent));
        let fell = issues.iter().find(|i| i.id.on == "graphics card 1").unwrap();
        assert!(fell.what.contains("does not answer any more") && fell.what.contains("Xid 79"));
        assert!(fell.advice.contains("plugs"));
        let hangs = issues.iter().find(|i| i.id.on.contains("9b")).unwrap();
        assert!(
            hangs.what.contains("Xid 119") && hangs.what.contains("2 reports"),
            "{}",
            hangs.what
        );
    }

    #[test]
    fn what_a_program_did_wrong_is_no_fault_of_the_card() {
        let xid = |code| KernelWord::Xid { bus: "0000:01:00".into(), code };
        for code in [13, 31, 43, 45, 69] {
            let kernel = vec![KernelEvent { at: 1000, what: xid(code) }];
            assert_eq!(check(&Seen { now: 1000, kernel: Some(kernel), ..Seen::default() }), []);
        }
    }

    #[test]
    fn a_card_that_was_quiet_for_a_day_is_well() {
        assert_eq!(check(&seen(1000 + REMEMBERED + 1)), []);
    }
}
